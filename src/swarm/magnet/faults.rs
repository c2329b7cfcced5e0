//! Who failed us while metadata was fetched, how often, and who is left alone for a while.
//!
//! Faults enter by [`Offender`], so that they outlast a connection; ranks leave. Invariant: at most
//! [`RECORDS_MAX`] are remembered.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::swarm::Offender;

/// Peers whose failures are remembered; they are counted although a peer comes back.
const RECORDS_MAX: usize = 1024;
/// For how many seconds a peer is left alone after a failure, a reject or no answer.
const ASIDE_SECONDS: std::ops::RangeInclusive<u64> = 20..=70;
/// Lies of one peer alone that ban it.
const SOLO_FAILURES_MAX: u32 = 2;

/// What is held against a peer, the worst first: lies that it told alone, and how often it did not
/// deliver.
pub(super) type Rank = (u32, u32);

#[derive(Default)]
struct Record {
    failures: u32,
    stalls: u32,
    aside_until: Option<Instant>,
}

/// See the module.
pub(super) struct Faults {
    records: BTreeMap<Offender, Record>,
    rng: fastrand::Rng,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { records: BTreeMap::new(), rng: fastrand::Rng::with_seed(seed) }
    }

    /// What is held against `who`, under whatever port it comes.
    pub(super) fn rank(&self, who: &Offender) -> Rank {
        self.records.get(who).map_or((0, 0), |record| (record.failures, record.stalls))
    }

    /// It did not deliver: it is left alone for a while.
    pub(super) fn stall(&mut self, now: Instant, who: Offender) {
        let record = self.set_aside(now, who);
        record.stalls = record.stalls.saturating_add(1);
    }

    /// It left before it had delivered; it may come back at once.
    pub(super) fn leave(&mut self, who: Offender) {
        let record = self.record(who);
        record.stalls = record.stalls.saturating_add(1);
    }

    /// It lied, and nobody else had a part in it; true if that is once too often.
    pub(super) fn fail(&mut self, now: Instant, who: Offender) -> bool {
        let record = self.set_aside(now, who);
        record.failures = record.failures.saturating_add(1);
        record.failures >= SOLO_FAILURES_MAX
    }

    /// It is left alone for a while, and nothing is held against it.
    pub(super) fn suspect(&mut self, now: Instant, who: Offender) {
        self.set_aside(now, who);
    }

    fn set_aside(&mut self, now: Instant, who: Offender) -> &mut Record {
        let wait = Duration::from_secs(self.rng.u64(ASIDE_SECONDS));
        let record = self.record(who);
        record.aside_until = Some(now + wait);
        record
    }

    fn record(&mut self, who: Offender) -> &mut Record {
        if self.records.len() >= RECORDS_MAX && !self.records.contains_key(&who) {
            // Those with the fewest faults are missed least.
            let worth = |it: &Record| (it.failures, it.stalls, it.aside_until);
            let least = self.records.iter().min_by_key(|(_, it)| worth(it));
            if let Some(least) = least.map(|(&who, _)| who) {
                self.records.remove(&least);
            }
        }
        self.records.entry(who).or_default()
    }

    /// Until when it is left alone, if it is.
    pub(super) fn aside_until(&self, who: &Offender) -> Option<Instant> {
        self.records.get(who)?.aside_until
    }

    /// Forgets what time aside is over.
    pub(super) fn expire(&mut self, now: Instant) {
        for record in self.records.values_mut() {
            record.aside_until = record.aside_until.filter(|&until| now < until);
        }
    }
}
