//! The server's hash threads and their queue.
//!
//! Jobs enter in order; each leaves through its own callback, on a hash thread. Threads first help
//! the check that began first, then begin the next, so a large torrent has all of them, many small
//! ones run side by side, and a disk is read mostly in one direction. A job that waits costs its
//! entry in the queue. Invariant: every job that was taken is answered exactly once, also when it
//! is cancelled and when the checker is dropped.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::{
    Checked, Content, JOBS_MAX, Options, Progress, Reader, THREADS_MAX, Task, lower_priority,
    thread_name,
};

/// One torrent to check.
pub struct Job {
    /// What must be there.
    pub content: Arc<dyn Content>,
    /// The save path.
    pub root: PathBuf,
    /// How to watch and cancel it.
    pub progress: Arc<Progress>,
    /// Takes the result, on a hash thread: it should only pass it on.
    pub done: Box<dyn FnOnce(Checked) + Send>,
}

/// The queue already holds [`JOBS_MAX`] jobs, or the checker is ending; the job comes back.
#[derive(thiserror::Error)]
#[error("{JOBS_MAX} checks are already waiting")]
pub struct QueueFull(pub Job);

impl std::fmt::Debug for QueueFull {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("QueueFull")
    }
}

/// Hash threads that work through a queue of checks.
///
/// Dropping it cancels what runs and what waits, answers all of it, and joins the threads.
pub struct Checker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A check that began, and how many threads are in it.
struct Running {
    task: Arc<Task>,
    helper_count: usize,
    done: Box<dyn FnOnce(Checked) + Send>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    /// Jobs that left `waiting` and are not in `running` yet.
    beginning: Vec<Arc<Progress>>,
    is_closed: bool,
}

impl State {
    fn is_full(&self) -> bool {
        self.is_closed || self.waiting.len() >= JOBS_MAX
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    thread_count: usize,
}

/// What a thread does next.
enum Next {
    Help(Arc<Task>),
    Begin(Job),
}

impl Checker {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives us no thread.
    pub fn start(options: Options) -> io::Result<Self> {
        let thread_count = options.threads.clamp(1, THREADS_MAX);
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, wake: Condvar::new(), thread_count });
        let mut checker = Self { shared, threads: Vec::with_capacity(thread_count) };
        for index in 0..thread_count {
            let shared = Arc::clone(&checker.shared);
            let run = move || {
                lower_priority(options);
                shared.run();
            };
            checker.threads.push(thread_name(index).spawn(run)?);
        }
        Ok(checker)
    }

    /// Whether [`Checker::submit`] would refuse a job now.
    pub fn is_full(&self) -> bool {
        self.shared.lock().is_full()
    }

    /// Queues `job` behind the others.
    pub fn submit(&self, job: Job) -> Result<(), QueueFull> {
        let mut state = self.shared.lock();
        if state.is_full() {
            return Err(QueueFull(job));
        }
        state.waiting.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Number of jobs that wait for a thread.
    pub fn waiting_count(&self) -> usize {
        self.shared.lock().waiting.len()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        let running = state.running.iter().map(|running| &running.task.progress);
        running.chain(&state.beginning).for_each(|progress| progress.cancel());
        state.waiting.iter().for_each(|job| job.progress.cancel());
        drop(state);
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut reader = Reader::new();
        while let Some(next) = self.next() {
            match next {
                Next::Help(task) => {
                    task.work(&mut reader);
                    self.leave(task);
                }
                Next::Begin(job) => self.begin(job, &mut reader),
            }
        }
    }

    /// Waits for something to do; `None` once the checker ends and the queue is empty.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if let Some(running) =
                state.running.iter_mut().find(|running| !running.task.is_exhausted())
            {
                running.helper_count += 1;
                return Some(Next::Help(Arc::clone(&running.task)));
            }
            if let Some(job) = state.waiting.pop_front() {
                state.beginning.push(Arc::clone(&job.progress));
                return Some(Next::Begin(job));
            }
            if state.is_closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self, job: Job, reader: &mut Reader) {
        let Job { content, root, progress, done } = job;
        if progress.is_cancelled() {
            self.lock().forget(&progress);
            return done(Checked::never_begun(content.geometry()));
        }
        let task = Arc::new(Task::new(content, &root, Arc::clone(&progress), self.thread_count));
        let mut state = self.lock();
        state.forget(&progress);
        state.running.push(Running { task: Arc::clone(&task), helper_count: 1, done });
        drop(state);
        if task.has_work_for_others() {
            self.wake.notify_all();
        }
        task.work(reader);
        self.leave(task);
    }

    /// The last thread that leaves an exhausted task answers its job.
    fn leave(&self, task: Arc<Task>) {
        let mut state = self.lock();
        let is_it = |running: &Running| Arc::ptr_eq(&running.task, &task);
        let Some(place) = state.running.iter().position(is_it) else { return };
        state.running[place].helper_count -= 1;
        // Given back under the lock, so that the last one out holds the only one.
        drop(task);
        if state.running[place].helper_count > 0 {
            return;
        }
        let running = state.running.remove(place);
        drop(state);
        if let Some(task) = Arc::into_inner(running.task) {
            (running.done)(task.finish());
        }
    }
}

impl State {
    fn forget(&mut self, progress: &Arc<Progress>) {
        if let Some(place) = self.beginning.iter().position(|other| Arc::ptr_eq(other, progress)) {
            self.beginning.swap_remove(place);
        }
    }
}
