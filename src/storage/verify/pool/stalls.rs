//! Checks that stand still: whose file system hangs, and what waits for it.
//!
//! What each running check has done enters every little while; file systems that hold threads
//! leave, with the jobs that are held for them. Invariant: a job is held only while a check on its
//! file system stands still; a cancelled one never is.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Job, Shared, State};
use crate::sys::clock;
use crate::sys::mounts::{Device, Table};

/// Threads that may hang, beyond those that work: later ones are not replaced.
const LOST_THREADS_MAX: usize = 256;

/// How often running checks are looked at, as a part of the patience with them.
const LOOKS: u32 = 4;

/// How a check moves on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    steps: u64,
    since: Instant,
    pub(super) is_stalled: bool,
}

impl Pace {
    pub(super) fn new(steps: u64) -> Self {
        Self { steps, since: clock::now(), is_stalled: false }
    }

    /// Takes in what was done so far; returns whether the check began or ceased to stand still.
    fn look(&mut self, now: Instant, steps: u64, stall_after: Duration) -> bool {
        if steps != self.steps {
            (self.steps, self.since) = (steps, now);
        }
        let is_stalled = now.saturating_duration_since(self.since) >= stall_after;
        std::mem::replace(&mut self.is_stalled, is_stalled) != is_stalled
    }
}

/// File systems that hang, each with the jobs that wait for it.
#[derive(Default)]
pub(super) struct Stalls {
    held: HashMap<Device, VecDeque<Job>>,
    /// The mounts when it was last worked out what hangs.
    mounts: Table,
}

impl Stalls {
    /// Whether no thread may go to `place`.
    pub(super) fn holds(&self, place: &Path) -> bool {
        !self.held.is_empty() && self.held.contains_key(&self.mounts.device_of(place))
    }

    /// Puts a job aside if its file system hangs, or gives it back.
    pub(super) fn hold(&mut self, job: Job) -> Option<Job> {
        if self.held.is_empty() || job.progress.is_cancelled() {
            return Some(job);
        }
        match self.held.get_mut(&self.mounts.device_of(&job.place())) {
            Some(held) => {
                held.push_back(job);
                None
            }
            None => Some(job),
        }
    }

    pub(super) fn held_count(&self) -> usize {
        self.held.values().map(VecDeque::len).sum()
    }
}

impl Shared {
    /// Looks at the running checks while there are any, until the checker ends.
    pub(super) fn watch_for_stalls(self: &Arc<Self>) {
        let mut state = self.lock();
        while !state.is_closed {
            state.is_watched = !state.running.is_empty();
            if !state.is_watched {
                state = self.watch.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let pause = self.stall_after / LOOKS;
            let waited = self.watch.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            self.look(&mut state);
        }
    }

    fn look(self: &Arc<Self>, state: &mut State) {
        let now = clock::now();
        let mut has_changed = false;
        for running in &mut state.running {
            if running.pace.look(now, running.progress.steps(), self.stall_after) {
                has_changed = true;
                let path = running.place.display();
                if running.pace.is_stalled {
                    let seconds = self.stall_after.as_secs();
                    tracing::warn!(%path, "a check stands still for {seconds} s: its disk does not \
                        answer, and checks of other disks go on without it");
                } else {
                    tracing::info!(%path, "the check goes on");
                }
            }
        }
        if has_changed {
            self.settle(state);
        }
        if state.release_cancelled() {
            self.wake.notify_all();
        }
        let wanted = self.options.threads + state.lost_count();
        while state.thread_count < wanted {
            if let Err(error) = self.spawn(state) {
                tracing::warn!(%error, "no hash thread can be started in place of one that hangs");
                return;
            }
        }
    }

    /// Works out anew which file systems hang, and lets go what waited for the others.
    pub(super) fn settle(&self, state: &mut State) {
        let mounts = (self.mounts)();
        let stalled = state.running.iter().filter(|running| running.pace.is_stalled);
        let mut hanging: HashMap<Device, VecDeque<Job>> =
            stalled.map(|running| (mounts.device_of(&running.place), VecDeque::new())).collect();
        for (device, jobs) in std::mem::take(&mut state.stalls.held) {
            match hanging.get_mut(&device) {
                Some(held) => *held = jobs,
                None => state.requeue(jobs),
            }
        }
        state.stalls = Stalls { held: hanging, mounts };
        self.wake.notify_all();
    }
}

impl State {
    /// Threads that are in checks that stand still, as far as they are replaced.
    pub(super) fn lost_count(&self) -> usize {
        let stalled = self.running.iter().filter(|running| running.pace.is_stalled);
        stalled.map(|running| running.thread_count).sum::<usize>().min(LOST_THREADS_MAX)
    }

    pub(super) fn release_all(&mut self) {
        for (_, jobs) in std::mem::take(&mut self.stalls.held) {
            self.requeue(jobs);
        }
    }

    /// Lets those go that nobody wants any more: they are answered without their disk. Whether
    /// there were any.
    fn release_cancelled(&mut self) -> bool {
        let Self { stalls, waiting, .. } = self;
        let before = waiting.len();
        for held in stalls.held.values_mut() {
            for job in std::mem::take(held) {
                let to = if job.progress.is_cancelled() { &mut *waiting } else { &mut *held };
                to.push_back(job);
            }
        }
        waiting.len() > before
    }

    /// Before all others, since they came before them.
    fn requeue(&mut self, jobs: VecDeque<Job>) {
        for job in jobs.into_iter().rev() {
            self.waiting.push_front(job);
        }
    }
}
