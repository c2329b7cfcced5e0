//! Threads that may block on a disk, shared so that a disk that hangs holds up only itself.
//!
//! Jobs enter, each in the lane of the disk that it is about, and are begun in their lane's order;
//! lanes take turns. Threads are made when all are busy, and end when there are more than needed.
//! Invariant: a lane holds at most [`LANE_THREADS`] threads, so that those of a mount that does not
//! answer queue behind each other and nobody else does; whoever hands a job over never waits.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::sys::file::Identity;
use crate::sys::process::AbortOnPanic;

/// Work that may block, run elsewhere.
pub type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait in one lane, and lanes that there may be.
pub const LANE_JOBS_MAX: usize = 1024;
/// See [`LANE_JOBS_MAX`].
pub const LANES_MAX: usize = 1024;

/// Threads that work in one lane at a time.
pub const LANE_THREADS: usize = 4;

/// Threads without a job that are kept for the next ones.
const SPARE_THREADS_MAX: usize = 2;

/// What hangs together if it hangs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Lane {
    /// A file system, by its number.
    Device(u64),
    /// The save path of torrents of which nothing was found yet, on whatever file system.
    Folder(PathBuf),
}

impl Lane {
    /// The lane of a torrent of which these files are known, the first one deciding.
    pub fn of(known: &[Option<Identity>], save_path: &Path) -> Self {
        match known.iter().flatten().next() {
            Some(file) => Self::Device(file.dev),
            None => Self::Folder(save_path.to_owned()),
        }
    }
}

/// The door to threads that may block on a disk: those that open, reserve, stat and close files, or
/// those that look at the files of torrents in error. The threads end when every door is gone.
#[derive(Clone, Debug)]
pub struct Blocking {
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door(Arc<Pool>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.wake.notify_all();
    }
}

struct Pool {
    name: &'static str,
    threads_max: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Those with a job that waits or runs.
    lanes: HashMap<Lane, Queue>,
    /// Lanes with a job that a thread may take, each once.
    ready: VecDeque<Lane>,
    thread_count: usize,
    busy_count: usize,
    refused_count: u64,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running_count: usize,
    is_ready: bool,
}

impl Blocking {
    /// Starts the first thread; all are called `name`, and there are `threads_max` of them at most.
    ///
    /// # Errors
    /// If the system gives us no thread.
    pub fn start(name: &'static str, threads_max: usize) -> std::io::Result<Self> {
        let state = State { thread_count: 1, ..State::default() };
        let (state, wake) = (Mutex::new(state), Condvar::new());
        let pool = Arc::new(Pool { name, threads_max: threads_max.max(1), state, wake });
        pool.spawn()?;
        Ok(Self { door: Arc::new(Door(pool)) })
    }

    /// Hands a job over; gives it back when too many wait in its lane already.
    pub fn run(&self, lane: Lane, job: Job) -> Result<(), Job> {
        let pool = &self.door.0;
        let mut state = pool.lock();
        let has_room = match state.lanes.get(&lane) {
            Some(queue) => queue.waiting.len() < LANE_JOBS_MAX,
            None => state.lanes.len() < LANES_MAX,
        };
        if !has_room {
            state.refused_count += 1;
            return Err(job);
        }
        state.push(lane, job);
        drop(state);
        pool.wake.notify_one();
        Ok(())
    }

    /// Hands over what is to be dropped. It is never refused: what it holds is open, and of that the
    /// system has a limit.
    pub fn drop_there(&self, lane: Lane, open: impl Send + 'static) {
        let pool = &self.door.0;
        pool.lock().push(lane, Box::new(move || drop(open)));
        pool.wake.notify_one();
    }

    /// Jobs that wait for a thread.
    pub fn waiting_count(&self) -> usize {
        self.door.0.lock().lanes.values().map(|queue| queue.waiting.len()).sum()
    }

    /// Jobs that were given back so far.
    pub fn refused_count(&self) -> u64 {
        self.door.0.lock().refused_count
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread that was counted already.
    fn spawn(self: &Arc<Self>) -> std::io::Result<()> {
        let pool = Arc::clone(self);
        let spawned = std::thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let _guard = AbortOnPanic;
            pool.work();
        });
        if spawned.is_err() {
            self.lock().thread_count -= 1;
        }
        spawned.map(drop)
    }

    fn work(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            if let Some((lane, job)) = state.take() {
                // Whoever comes next finds a thread, if this one does not come back.
                let is_last =
                    state.busy_count == state.thread_count && state.thread_count < self.threads_max;
                state.thread_count += usize::from(is_last);
                drop(state);
                if is_last && let Err(error) = self.spawn() {
                    tracing::warn!(%error, "no further thread for files can be started");
                }
                job();
                state = self.lock();
                state.finish(lane);
                continue;
            }
            let spare_count = state.thread_count - state.busy_count;
            if state.is_closed || spare_count > SPARE_THREADS_MAX {
                state.thread_count -= 1;
                return;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn push(&mut self, lane: Lane, job: Job) {
        self.lanes.entry(lane.clone()).or_default().waiting.push_back(job);
        self.offer(lane);
    }

    /// Lets threads have the next job of a lane, if it may have one more of them.
    fn offer(&mut self, lane: Lane) {
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        if !queue.is_ready && !queue.waiting.is_empty() && queue.running_count < LANE_THREADS {
            queue.is_ready = true;
            self.ready.push_back(lane);
        }
    }

    fn take(&mut self) -> Option<(Lane, Job)> {
        let lane = self.ready.pop_front()?;
        let queue = self.lanes.get_mut(&lane)?;
        queue.is_ready = false;
        let job = queue.waiting.pop_front()?;
        queue.running_count += 1;
        self.busy_count += 1;
        self.offer(lane.clone());
        Some((lane, job))
    }

    /// A job of a lane has ended.
    fn finish(&mut self, lane: Lane) {
        self.busy_count -= 1;
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        queue.running_count -= 1;
        if queue.running_count == 0 && queue.waiting.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.offer(lane);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::*;

    const WAIT_MAX: Duration = Duration::from_secs(20);

    /// A job that hangs until the sender of the pair is gone, after saying that it has begun.
    fn hanging(begun: &Sender<()>) -> (Job, Sender<()>) {
        let (until, hang): (Sender<()>, Receiver<()>) = channel();
        let begun = begun.clone();
        let job = Box::new(move || {
            // Those that run when the test is over are told to nobody.
            let _ = begun.send(());
            assert!(hang.recv().is_err());
        });
        (job, until)
    }

    fn ran(pool: &Blocking, lane: Lane) -> Receiver<()> {
        let (done, is_done) = channel();
        assert!(pool.run(lane, Box::new(move || done.send(()).unwrap())).is_ok());
        is_done
    }

    #[test]
    fn a_disk_that_hangs_holds_up_only_itself() {
        let pool = Blocking::start("test", 3 * LANE_THREADS).unwrap();
        let (begun, has_begun) = channel();
        let mut ends = Vec::new();
        for device in [1, 2] {
            for _ in 0..2 * LANE_THREADS {
                let (job, until) = hanging(&begun);
                assert!(pool.run(Lane::Device(device), job).is_ok());
                ends.push(until);
            }
        }
        for _ in 0..2 * LANE_THREADS {
            has_begun.recv_timeout(WAIT_MAX).unwrap();
        }
        // Both hang with all they may have, and as many jobs again wait behind those.
        let behind = ran(&pool, Lane::Device(1));
        let folder = Lane::Folder("/somewhere".into());
        for lane in [Lane::Device(3), folder] {
            assert_eq!(ran(&pool, lane).recv_timeout(WAIT_MAX), Ok(()));
        }
        assert_eq!(pool.waiting_count(), 2 * LANE_THREADS + 1);
        assert!(behind.try_recv().is_err(), "it went past those of its disk");
        assert!(has_begun.try_recv().is_err(), "a lane has more threads than it may");
        ends.clear();
        assert_eq!(behind.recv_timeout(WAIT_MAX), Ok(()));
    }

    #[test]
    fn a_full_lane_refuses_jobs_but_not_what_is_to_be_dropped() {
        struct Told(Sender<std::thread::ThreadId>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(std::thread::current().id()).unwrap();
            }
        }
        let pool = Blocking::start("test", 2).unwrap();
        let (begun, has_begun) = channel();
        let (job, until) = hanging(&begun);
        assert!(pool.run(Lane::Device(1), job).is_ok());
        has_begun.recv_timeout(WAIT_MAX).unwrap();
        let (job, until_too) = hanging(&begun);
        assert!(pool.run(Lane::Device(1), job).is_ok());
        has_begun.recv_timeout(WAIT_MAX).unwrap();
        for _ in 0..LANE_JOBS_MAX {
            assert!(pool.run(Lane::Device(1), Box::new(|| {})).is_ok());
        }
        assert!(pool.run(Lane::Device(1), Box::new(|| {})).is_err());
        assert!(pool.run(Lane::Device(2), Box::new(|| {})).is_ok(), "others have room");
        let (told, dropped) = channel();
        pool.drop_there(Lane::Device(1), Told(told));
        assert!(dropped.try_recv().is_err());
        drop((until, until_too));
        let thread = dropped.recv_timeout(WAIT_MAX).unwrap();
        assert_ne!(thread, std::thread::current().id());
    }

    #[test]
    fn threads_end_with_the_last_door() {
        let pool = Blocking::start("test", 1).unwrap();
        assert_eq!(ran(&pool, Lane::Device(1)).recv_timeout(WAIT_MAX), Ok(()));
        let inner = Arc::downgrade(&pool.door.0);
        let second_door = pool.clone();
        drop(pool);
        let last = ran(&second_door, Lane::Device(2));
        drop(second_door);
        // What was handed over is still done.
        assert_eq!(last.recv_timeout(WAIT_MAX), Ok(()));
        let begun = crate::sys::clock::now();
        while inner.strong_count() > 0 {
            assert!(begun.elapsed() < WAIT_MAX, "a thread goes on");
            std::thread::yield_now();
        }
    }
}
