//! The thread that computes what encrypted openings need.
//!
//! Jobs enter; those of connections that we make run before those of connections that are made to
//! us, each kind in its order. Invariant: whoever hands a job over never waits; at most [`JOBS_MAX`]
//! of each kind wait, which is a fifth of a second's work; and peers have no more than
//! [`THEIRS_PER_SECOND_MAX`] computed per second, whatever number of workers they connect to.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::process::AbortOnPanic;

/// Jobs of one kind that may wait.
pub const JOBS_MAX: usize = 1024;

/// Jobs per second that peers can cause: each takes 0.16 ms, so this is a third of a core.
pub const THEIRS_PER_SECOND_MAX: u32 = 2000;

/// Of these, how many at once.
const THEIRS_BURST_MAX: u32 = 1000;

/// Whose connection a job is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// We made it.
    Ours,
    /// It was made to us.
    Theirs,
}

type Job = Box<dyn FnOnce() + Send>;

/// The door to the thread, which ends when every door is gone.
#[derive(Clone, Debug)]
pub struct Keys {
    door: Arc<Door>,
}

#[derive(Debug)]
struct Door(Arc<Queue>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.wake.notify_one();
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    ours: VecDeque<Job>,
    theirs: VecDeque<Job>,
    pace: Pace,
    is_closed: bool,
}

/// How many jobs peers may cause, as the moment at which the burst is whole again.
#[derive(Clone, Copy, Default, Debug)]
struct Pace(Option<Instant>);

impl Pace {
    /// Takes one; false if too many were taken.
    fn take(&mut self, now: Instant) -> bool {
        let step = Duration::from_secs(1) / THEIRS_PER_SECOND_MAX;
        let whole_at = self.0.map_or(now, |at| at.max(now));
        let may = whole_at.saturating_duration_since(now) <= step * (THEIRS_BURST_MAX - 1);
        if may {
            self.0 = Some(whole_at + step);
        }
        may
    }
}

impl Keys {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives us none.
    pub fn start() -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let inner = Arc::clone(&queue);
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            let _guard = AbortOnPanic;
            while let Some(job) = inner.next() {
                job();
            }
        })?;
        Ok(Self { door: Arc::new(Door(queue)) })
    }

    /// Hands a job over; false if too many wait already, or peers want too many.
    pub(super) fn run(&self, now: Instant, side: Side, job: Job) -> bool {
        let mut state = self.door.0.lock();
        let has_room = match side {
            Side::Ours => state.ours.len() < JOBS_MAX,
            Side::Theirs => state.theirs.len() < JOBS_MAX && state.pace.take(now),
        };
        if has_room {
            match side {
                Side::Ours => state.ours.push_back(job),
                Side::Theirs => state.theirs.push_back(job),
            }
            drop(state);
            self.door.0.wake.notify_one();
        }
        has_room
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job; `None` when every door is gone and nothing waits.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.ours.pop_front() {
                return Some(job);
            }
            if let Some(job) = state.theirs.pop_front() {
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Queue")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::sys::clock;

    const WAIT_MAX: Duration = Duration::from_secs(20);

    #[test]
    fn peers_have_so_much_computed_and_no_more() {
        let (mut pace, now) = (Pace::default(), clock::now());
        let taken = (0..2 * THEIRS_BURST_MAX).filter(|_| pace.take(now)).count();
        assert_eq!(taken, THEIRS_BURST_MAX as usize);
        let later = now + Duration::from_secs(1);
        let taken = (0..2 * THEIRS_PER_SECOND_MAX).filter(|_| pace.take(later)).count();
        assert_eq!(taken, THEIRS_BURST_MAX as usize, "a burst is all that is saved up");
        let taken = (0..1000).filter(|ms| pace.take(later + Duration::from_millis(*ms))).count();
        assert!((998..=1000).contains(&taken), "{taken}");
    }

    /// However many jobs peers cause, ours find room and come first.
    #[test]
    fn a_flood_of_theirs_keeps_none_of_ours_waiting() {
        let keys = Keys::start().unwrap();
        let (begun, has_begun) = channel();
        let (until, hang) = channel::<()>();
        let now = clock::now();
        let hanging = Box::new(move || {
            begun.send(()).unwrap();
            assert!(hang.recv().is_err());
        });
        assert!(keys.run(now, Side::Theirs, hanging));
        has_begun.recv_timeout(WAIT_MAX).unwrap();
        let (told, order) = channel();
        let mut refused = false;
        for second in 0..3 {
            let now = now + Duration::from_secs(second);
            for _ in 0..THEIRS_BURST_MAX {
                let told = told.clone();
                let job = Box::new(move || told.send(Side::Theirs).unwrap());
                refused |= !keys.run(now, Side::Theirs, job);
            }
        }
        assert!(refused, "the queue has no end");
        let job = Box::new(move || told.send(Side::Ours).unwrap());
        assert!(keys.run(now, Side::Ours, job), "no room for ours");
        drop((until, keys));
        let order: Vec<_> = order.iter().collect();
        assert_eq!(order[0], Side::Ours);
        // What was handed over is still done.
        assert_eq!(order.len(), JOBS_MAX + 1);
    }
}
