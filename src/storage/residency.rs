//! The memory of which ranges were in the page cache a moment ago.
//!
//! A worker asks the kernel before it sends from a mapping, because a fault would stop every peer
//! of the core. Ranges of hot files are asked for again and again, so an answer is believed for
//! [`TRUST`]; what is evicted within that time costs one fault, which is counted.
//!
//! Keys and times enter, yes or no leaves. Invariant: never more than [`SLOT_COUNT`] answers.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// How long an answer of the kernel is believed.
pub const TRUST: Duration = Duration::from_millis(250);

/// Answers remembered per worker; a colliding one replaces the older.
pub const SLOT_COUNT: usize = 8192;

/// A direct-mapped table of ranges that were resident when last asked for.
#[derive(Debug)]
pub struct Residency {
    slots: Vec<Option<(u64, Instant)>>,
}

impl Default for Residency {
    fn default() -> Self {
        Self { slots: vec![None; SLOT_COUNT] }
    }
}

impl Residency {
    /// Whether the range named `key` was resident less than [`TRUST`] before `now`.
    pub fn is_hot(&self, now: Instant, key: u64) -> bool {
        matches!(self.slots[Self::slot(key)], Some((known, until)) if known == key && now < until)
    }

    /// Notes that the range named `key` is resident at `now`.
    pub fn set_hot(&mut self, now: Instant, key: u64) {
        self.slots[Self::slot(key)] = Some((key, now + TRUST));
    }

    fn slot(key: u64) -> usize {
        // Fibonacci hashing: neighbouring chunks spread over the table.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 51) as usize % SLOT_COUNT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn an_answer_is_believed_for_a_while_and_only_for_its_range() {
        let (mut table, now) = (Residency::default(), clock::now());
        assert!(!table.is_hot(now, 7));
        table.set_hot(now, 7);
        assert!(table.is_hot(now, 7));
        assert!(!table.is_hot(now, 8));
        assert!(!table.is_hot(now + TRUST, 7));
    }

    #[test]
    fn neighbours_do_not_collide() {
        let (mut table, now) = (Residency::default(), clock::now());
        (0..1000).for_each(|key| table.set_hot(now, key));
        let kept = (0..1000).filter(|&key| table.is_hot(now, key)).count();
        assert!(kept > 900, "{kept} of 1000 neighbouring ranges are remembered");
    }
}
