//! One tracker host: the torrents that wait for it, its pace, and its rest after faults.
//!
//! Starts and outcomes of announces enter, its place among the hosts leaves. Invariant: a host
//! that rests gets nothing; the first announce after a rest goes alone, and only its success
//! opens the host to the others. A host that never answered, or whose last answer was a fault, is
//! unproven and gets few announces at a time.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::limits::Limits;
use super::scheduler::Rank;
use super::{Failure, Retry};

/// The longest rest that a host can ask for by `Retry-After`.
const ASKED_REST_MAX: Duration = Duration::from_secs(3600);

/// How long a fault is remembered of a host that nothing is announced to any more.
const FAULT_KEPT: Duration = Duration::from_secs(2 * 3600);

/// What is known of one host.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Torrents whose announce to this host is due.
    pub(super) ready: BTreeSet<Rank>,
    pub(super) place: Place,
    in_flight_count: usize,
    /// Faults in a row.
    fault_count: u32,
    fault_at: Option<Instant>,
    /// When it last answered without a fault; `None` if it never did, or was at fault since.
    proven_at: Option<Instant>,
    /// The end of the rest that we give it after faults.
    rest_until: Option<Instant>,
    /// The end of the rest that it asked for.
    asked_until: Option<Instant>,
    /// When its burst is full again; each announce moves it on by one gap.
    paced_until: Option<Instant>,
}

/// Where a host stands among the hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Place {
    /// Nothing to announce, or its limit is reached.
    #[default]
    Off,
    /// Can be announced to now; ranked by what waits first.
    Runnable(Rank),
    /// The same, but it has not answered yet.
    Unproven(Rank),
    /// Waits for its pace.
    Pausing(Instant),
}

impl Host {
    /// Where it stands now.
    pub(super) fn place(&self, now: Instant, limits: &Limits, is_ending: bool) -> Place {
        let in_flight_max = if self.fault_count >= limits.host_fault_max {
            1
        } else if !self.is_proven() {
            limits.in_flight_per_unproven_host_max
        } else if is_ending {
            limits.in_flight_per_host_ending_max
        } else {
            limits.in_flight_per_host_max
        };
        match self.ready.first() {
            None => Place::Off,
            Some(_) if self.in_flight_count >= in_flight_max => Place::Off,
            Some(first) => match self.pace(limits).filter(|at| *at > now && !is_ending) {
                Some(at) => Place::Pausing(at),
                None if self.is_proven() => Place::Runnable(*first),
                None => Place::Unproven(*first),
            },
        }
    }

    /// Whether its last answer was one.
    pub(super) fn is_proven(&self) -> bool {
        self.proven_at.is_some()
    }

    /// Until when it rests, if it does.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rest_until.max(self.asked_until).filter(|until| *until > now)
    }

    /// Ends the rest that we gave it, because a person asks for it: the next announce is a probe.
    /// A rest that it asked for itself goes on.
    pub(super) fn forgive(&mut self) {
        self.rest_until = None;
    }

    /// An announce to it begins.
    pub(super) fn start(&mut self, now: Instant, limits: &Limits) {
        self.in_flight_count += 1;
        let from = self.paced_until.map_or(now, |at| at.max(now));
        self.paced_until = Some(from + limits.host_gap);
    }

    /// An announce to it has ended, with `failure` if there is one to remember. `jitter` lies
    /// between 0 and 1.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        limits: &Limits,
        failure: Option<&Failure>,
        jitter: f64,
    ) {
        self.in_flight_count = self.in_flight_count.saturating_sub(1);
        let Some(failure) = failure.filter(|failure| failure.is_of_host()) else {
            self.fault_count = 0;
            self.fault_at = None;
            self.proven_at = Some(now);
            self.rest_until = None;
            return;
        };
        self.proven_at = None;
        // Those that were on their way when the rest began say nothing new.
        if self.rests_until(now).is_some() {
            return;
        }
        self.fault_count = self.fault_count.saturating_add(1);
        self.rest_after_fault(now, limits, jitter);
        if let Some(Retry::After(wait)) = failure.retry() {
            self.asked_until = Some(now + wait.min(ASKED_REST_MAX));
        }
    }

    /// An announce that began at `started_at` has been silent for too long. If the host has
    /// answered nothing since, that is as good as all the faults after which it rests. True if its
    /// rest begins now.
    pub(super) fn handle_silence(
        &mut self,
        now: Instant,
        limits: &Limits,
        started_at: Instant,
        jitter: f64,
    ) -> bool {
        let has_answered = self.proven_at.is_some_and(|at| at >= started_at);
        if has_answered || self.rests_until(now).is_some() {
            return false;
        }
        self.proven_at = None;
        self.fault_count = self.fault_count.saturating_add(1).max(limits.host_fault_max);
        self.rest_after_fault(now, limits, jitter);
        true
    }

    /// Lets it rest if it has had faults enough.
    fn rest_after_fault(&mut self, now: Instant, limits: &Limits, jitter: f64) {
        self.fault_at = Some(now);
        if let Some(further_count) = self.fault_count.checked_sub(limits.host_fault_max) {
            let rest = limits.host_rest_min.saturating_mul(2u32.saturating_pow(further_count));
            let rest = rest.min(limits.host_rest_max);
            self.rest_until = Some(now + rest + rest.mul_f64(jitter / 10.0));
        }
    }

    /// Whether nothing about it is worth keeping.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        self.ready.is_empty()
            && self.in_flight_count == 0
            && self.fault_at.is_none_or(|at| at + FAULT_KEPT <= now)
            && self.paced_until.is_none_or(|at| at <= now)
    }

    /// When the next announce may begin.
    fn pace(&self, limits: &Limits) -> Option<Instant> {
        let ahead = limits.host_gap.saturating_mul(limits.host_burst.saturating_sub(1));
        self.paced_until.and_then(|at| at.checked_sub(ahead))
    }
}
