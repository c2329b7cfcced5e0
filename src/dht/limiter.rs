//! How many queries one host and one network may ask.
//!
//! `now` and sources enter, permission leaves. Invariant: at most [`SOURCES_MAX`] sources are
//! remembered, each costs a few words, and a source that was forgotten had its full burst anyway
//! or there was a flood that no honest host is part of.
//!
//! For each source one moment is kept: when it will have its full burst again. A query moves that
//! moment by its cost, and is refused if that would move it further than the burst from `now`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Sources that are remembered, of one kind.
pub(super) const SOURCES_MAX: usize = 4096;

/// Queries per second from one host.
pub(super) const HOST_RATE: u32 = 5;

/// Queries that a silent host may ask at once.
pub(super) const HOST_BURST: u32 = 50;

/// Queries per second from one /24 or /64.
pub(super) const SUBNET_RATE: u32 = 20;

/// Queries that a silent network may ask at once.
pub(super) const SUBNET_BURST: u32 = 200;

/// A full table is searched for sources to forget at most this often.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Limits sources of one kind.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    cost: Duration,
    burst: Duration,
    full_at: BTreeMap<K, Instant>,
    swept_at: Option<Instant>,
}

impl<K: Ord + Copy> Limiter<K> {
    /// `rate` queries per second after `burst` at once.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let cost = Duration::from_secs(1) / rate.max(1);
        Self { cost, burst: cost * burst, full_at: BTreeMap::new(), swept_at: None }
    }

    /// Whether `source` may ask now; if so, that counts.
    pub(super) fn admit(&mut self, now: Instant, source: K) -> bool {
        let full_at = match self.full_at.get(&source).copied() {
            Some(full_at) => full_at.max(now),
            None if self.has_room(now) => now,
            None => return false,
        };
        let next = full_at + self.cost;
        let is_admitted = next.saturating_duration_since(now) <= self.burst;
        if is_admitted {
            self.full_at.insert(source, next);
        }
        is_admitted
    }

    /// Sources remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.full_at.len()
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.full_at.len() < SOURCES_MAX {
            return true;
        }
        let is_rested = |swept_at| now.saturating_duration_since(swept_at) >= SWEEP_EVERY;
        if self.swept_at.is_none_or(is_rested) {
            self.swept_at = Some(now);
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        self.full_at.len() < SOURCES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = super::super::tests::start();
        let mut limiter = Limiter::new(HOST_RATE, HOST_BURST);
        let admitted = |limiter: &mut Limiter<u32>, at: u64, count: u32| {
            let now = start + Duration::from_millis(at);
            (0..count).filter(|_| limiter.admit(now, 1)).count()
        };
        assert_eq!(admitted(&mut limiter, 0, 1000), 50);
        assert_eq!(admitted(&mut limiter, 1000, 1000), 5);
        assert_eq!(admitted(&mut limiter, 1100, 1000), 0);
        assert_eq!(admitted(&mut limiter, 61_000, 1000), 50);
        assert!(limiter.admit(start, 2), "another host is not concerned");
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let start = super::super::tests::start();
        let mut limiter = Limiter::new(HOST_RATE, HOST_BURST);
        let admitted = (0..100_000).filter(|source| limiter.admit(start, *source)).count();
        assert_eq!((admitted, limiter.len()), (SOURCES_MAX, SOURCES_MAX));
        assert!(limiter.admit(start + Duration::from_secs(1), u32::MAX));
        assert_eq!(limiter.len(), 1);
    }
}
