//! The server's hash threads and their queue.
//!
//! Jobs enter in order; each leaves through its own callback, on a hash thread. Threads first help
//! the check that began first, then begin the next, so a large torrent has all of them, many small
//! ones run side by side, and a disk is read mostly in one direction. A job that waits costs its
//! entry in the queue. A file system that does not answer keeps the threads that are in it, and
//! gets no more: others take their place, and its jobs are held until it moves again.
//! Invariant: every job that was taken is answered exactly once, also when it is cancelled and when
//! the checker is dropped.

mod stalls;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{
    Checked, Content, JOBS_MAX, Options, Progress, Reader, THREADS_MAX, Task, lower_priority,
    thread_name,
};
use crate::sys::mounts;
use crate::sys::process::AbortOnPanic;
use stalls::{Pace, Stalls};

/// How long a check may stand still before its file system is taken to hang.
pub const STALL_AFTER: Duration = Duration::from_secs(10);

/// One torrent to check.
pub struct Job {
    /// What must be there.
    pub content: Arc<dyn Content>,
    /// The save path.
    pub root: PathBuf,
    /// How to watch and cancel it.
    pub progress: Arc<Progress>,
    /// Takes the result, on a hash thread; it may read what else the answer needs of the same disk.
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
/// Dropping it cancels what runs and what waits, answers all of it, and joins the threads: that
/// takes as long as the slowest disk.
pub struct Checker {
    shared: Arc<Shared>,
}

/// A check that left the queue, and how many threads are in it.
struct Running {
    progress: Arc<Progress>,
    /// See [`Job::place`].
    place: PathBuf,
    thread_count: usize,
    pace: Pace,
    /// `None` while the first thread looks at its files, and while the last one answers.
    task: Option<Arc<Task>>,
    /// `None` while it is called.
    done: Option<Box<dyn FnOnce(Checked) + Send>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Vec<Running>,
    stalls: Stalls,
    /// Threads that live.
    thread_count: usize,
    threads: Vec<JoinHandle<()>>,
    /// Whether the thread that looks for stalls looks again by itself.
    is_watched: bool,
    is_closed: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Something to do, or the end.
    wake: Condvar,
    /// A check begins, or the end: for the thread that looks for stalls.
    watch: Condvar,
    options: Options,
    stall_after: Duration,
    mounts: Mounts,
}

/// Where the table of mounts comes from.
type Mounts = Box<dyn Fn() -> mounts::Table + Send + Sync>;

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
        Self::start_with(options, STALL_AFTER, Box::new(mounts::Table::read))
    }

    /// [`Checker::start`] with another patience and other mounts.
    pub(super) fn start_with(
        options: Options,
        stall_after: Duration,
        mounts: Mounts,
    ) -> io::Result<Self> {
        let options = Options { threads: options.threads.clamp(1, THREADS_MAX), ..options };
        let (state, wake, watch) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state, wake, watch, options, stall_after, mounts });
        let checker = Self { shared };
        let shared = &checker.shared;
        for _ in 0..options.threads {
            shared.spawn(&mut shared.lock())?;
        }
        let watcher = Arc::clone(shared);
        let watcher =
            std::thread::Builder::new().name("hash-watch".to_owned()).spawn(move || {
                let _guard = AbortOnPanic;
                watcher.watch_for_stalls();
            })?;
        shared.lock().threads.push(watcher);
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

    /// Number of jobs that wait for a thread, or for their file system to answer.
    pub fn waiting_count(&self) -> usize {
        self.shared.lock().waiting_count()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.running.iter().for_each(|running| running.progress.cancel());
        // Cancelled jobs are answered without a look at the disk.
        state.release_all();
        state.waiting.iter().for_each(|job| job.progress.cancel());
        drop(state);
        self.shared.wake.notify_all();
        self.shared.watch.notify_all();
        loop {
            let Some(thread) = self.shared.lock().threads.pop() else { return };
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one more hash thread.
    fn spawn(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let shared = Arc::clone(self);
        let run = move || {
            let _guard = AbortOnPanic;
            lower_priority(shared.options);
            shared.run();
        };
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread_name(state.thread_count).spawn(run)?);
        state.thread_count += 1;
        Ok(())
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

    /// Waits for something to do; `None` once the checker ends and the queue is empty, and for a
    /// thread that only took the place of one that is back.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if state.thread_count > self.options.threads + state.lost_count() {
                state.thread_count -= 1;
                return None;
            }
            if let Some(task) = state.help() {
                return Some(Next::Help(task));
            }
            if let Some(job) = state.next_job() {
                return Some(Next::Begin(job));
            }
            if state.is_closed {
                state.thread_count -= 1;
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn begin(&self, job: Job, reader: &mut Reader) {
        let place = job.place();
        let Job { content, root, progress, done } = job;
        if progress.is_cancelled() {
            return done(Checked::never_begun(content.geometry()));
        }
        let mut state = self.lock();
        if state.is_closed {
            progress.cancel();
        }
        let pace = Pace::new(progress.steps());
        let running = Running {
            progress: Arc::clone(&progress),
            place,
            thread_count: 1,
            pace,
            task: None,
            done: Some(done),
        };
        state.running.push(running);
        let is_watched = state.is_watched;
        drop(state);
        if !is_watched {
            self.watch.notify_one();
        }
        let threads = self.options.threads;
        let task = Arc::new(Task::new(content, &root, Arc::clone(&progress), threads));
        let mut state = self.lock();
        if let Some(running) = state.running.iter_mut().find(|running| running.is(&progress)) {
            running.task = Some(Arc::clone(&task));
        }
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
        let is_it = |running: &Running| running.is(&task.progress);
        let Some(place) = state.running.iter().position(is_it) else { return };
        state.running[place].thread_count -= 1;
        // Given back under the lock, so that the last one out holds the only one.
        drop(task);
        if state.running[place].thread_count > 0 {
            return;
        }
        // The answer may look at the disk once more: while it does, its thread is in the check.
        let running = &mut state.running[place];
        running.thread_count = 1;
        let (progress, task) = (Arc::clone(&running.progress), running.task.take());
        let done = running.done.take();
        drop(state);
        if let Some((task, done)) = task.and_then(Arc::into_inner).zip(done) {
            done(task.finish());
        }
        let mut state = self.lock();
        let Some(place) = state.running.iter().position(|it| it.is(&progress)) else { return };
        if state.running.remove(place).pace.is_stalled {
            self.settle(&mut state);
        }
    }
}

impl Job {
    /// Where its first file is: what else is on that disk hangs with it. A disk may be mounted
    /// beneath the save path.
    fn place(&self) -> PathBuf {
        self.content.file(0).map_or_else(|| self.root.clone(), |file| self.root.join(file.path))
    }
}

impl Running {
    fn is(&self, progress: &Arc<Progress>) -> bool {
        Arc::ptr_eq(&self.progress, progress)
    }
}

impl State {
    fn waiting_count(&self) -> usize {
        self.waiting.len() + self.stalls.held_count()
    }

    fn is_full(&self) -> bool {
        self.is_closed || self.waiting_count() >= JOBS_MAX
    }

    /// Joins the first check with something left to do.
    fn help(&mut self) -> Option<Arc<Task>> {
        let Self { running, stalls, .. } = self;
        running.iter_mut().find_map(|running| {
            let task = running.task.as_ref().filter(|task| !task.is_exhausted())?;
            if stalls.holds(&running.place) {
                return None;
            }
            running.thread_count += 1;
            Some(Arc::clone(task))
        })
    }

    /// The next job that may begin; those of file systems that hang are put aside.
    fn next_job(&mut self) -> Option<Job> {
        loop {
            let job = self.waiting.pop_front()?;
            match self.stalls.hold(job) {
                None => {}
                Some(job) => return Some(job),
            }
        }
    }
}
