//! The end of an engine, within the time that was promised.
//!
//! An [`Engine`] enters; trackers that were told and workers that have written and flushed remain.
//! Invariant: nobody is waited for without a limit.

use std::time::Duration;

use super::engine::{Engine, UNSENT_RETRY};
use crate::control::state::StoredBan;
use crate::worker::mailbox::{Letter, Report};

/// How long `shutdown` gives the trackers and the workers, together within the 10 s promised.
const TRACKERS_STOP: Duration = Duration::from_secs(5);
const WORKERS_STOP: Duration = Duration::from_millis(7_500);

impl Engine {
    /// Announces `stopped`, lets the workers write and flush, and ends within the promised time.
    /// Leaves the bans that the state has not heard of.
    pub async fn shutdown(mut self) -> Vec<StoredBan> {
        // Hash threads that hold results must not wait for somebody to take them.
        self.checked.1.close();
        self.probed.1.close();
        for worker in 0..self.loads.len() {
            self.post(worker, Letter::Stop);
        }
        let (worker_count, trackers) = (self.loads.len(), self.trackers.clone());
        let trackers = trackers.shutdown(TRACKERS_STOP);
        tokio::pin!(trackers);
        let mut is_said = false;
        let workers = async {
            let mut stopped = self.gone_count;
            while stopped < worker_count {
                self.post_unsent();
                tokio::select! {
                    report = self.reports.recv() => match report {
                        Some(Report::Stopped(_) | Report::Died(..)) => stopped += 1,
                        // What they have hashed at the end counts as well.
                        Some(Report::Banned(offender, until)) => self.note_ban(offender, until),
                        Some(_) => {}
                        None => return,
                    },
                    // Trackers may have to be told by datagrams: their worker ends after that.
                    _unsaid = &mut trackers, if !is_said => {
                        is_said = true;
                        self.hub.udp().close();
                    }
                    () = self.hub.turn(&self.cells) => {}
                    () = tokio::time::sleep(UNSENT_RETRY) => {}
                }
            }
        };
        let workers = tokio::time::timeout(WORKERS_STOP, workers).await;
        if !is_said {
            let _unsaid = trackers.await;
        }
        if workers.is_err() {
            tracing::warn!("a worker did not end in time; what it had verified may not be flushed");
        }
        let bans = self.take_fresh_bans();
        // It joins its threads, which may hang on a disk: nobody waits for that.
        let checker = self.checker;
        tokio::task::spawn_blocking(move || drop(checker));
        bans
    }
}
