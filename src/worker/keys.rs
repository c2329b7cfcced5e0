//! The thread that computes what encrypted openings need.
//!
//! Jobs enter, and run in their order. Invariant: whoever hands a job over never waits; at most
//! [`JOBS_MAX`] wait, which is a fifth of a second's work.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// Jobs that may wait.
pub const JOBS_MAX: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The door to the thread, which ends when every door is gone.
#[derive(Clone, Debug)]
pub struct Keys {
    jobs: SyncSender<Job>,
}

impl Keys {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives us none.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(JOBS_MAX);
        thread::Builder::new().name("keys".to_owned()).spawn(move || {
            for job in queue {
                job();
            }
        })?;
        Ok(Self { jobs })
    }

    /// Hands a job over; false if too many wait already.
    pub(super) fn run(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }
}
