//! A hashed timer wheel: what is due when, in steps of [`TICK`].
//!
//! Timers enter with their time, those that are due leave. Setting one is O(1), a turn looks at
//! the slots that have passed and at nothing else. Invariant: a timer never fires early, and at
//! most one tick late when the wheel is turned in time. Nothing is cancelled: whoever takes a due
//! timer checks whether it still means something.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::units::to_usize;

/// The resolution of the wheel.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Slots of the wheel; a timer further away goes round more than once.
const SLOT_COUNT: usize = 512;

/// A wheel of timers of kind `T`.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    slots: Vec<Vec<(u64, T)>>,
    start: Instant,
    /// The first tick that has not been turned past.
    tick: u64,
    count: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel that starts at `now`.
    pub(super) fn new(now: Instant) -> Self {
        let slots = (0..SLOT_COUNT).map(|_| Vec::new()).collect();
        Self { slots, start: now, tick: 0, count: 0 }
    }

    /// Sets a timer for `at`.
    pub(super) fn set(&mut self, at: Instant, timer: T) {
        let since = at.saturating_duration_since(self.start).as_nanos();
        let tick =
            u64::try_from(since.div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX).max(self.tick);
        self.slots[Self::slot(tick)].push((tick, timer));
        self.count += 1;
    }

    /// Moves the timers that are due at `now` to `due`.
    pub(super) fn turn(&mut self, now: Instant, due: &mut Vec<T>) {
        let passed = now.saturating_duration_since(self.start).as_nanos() / TICK.as_nanos();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        if self.count == 0 {
            self.tick = self.tick.max(passed + 1);
            return;
        }
        let slots_passed = (passed + 1).saturating_sub(self.tick).min(SLOT_COUNT as u64);
        for tick in self.tick..self.tick + slots_passed {
            let slot = &mut self.slots[Self::slot(tick)];
            let before = due.len();
            due.extend(slot.extract_if(.., |(at, _)| *at <= passed).map(|(_, timer)| timer));
            self.count -= due.len() - before;
        }
        self.tick = self.tick.max(passed + 1);
    }

    /// When the wheel should be turned next: the first slot ahead that is not empty, or a whole
    /// round from now. `None` without timers.
    pub(super) fn next(&self) -> Option<Instant> {
        if self.count == 0 {
            return None;
        }
        let round = self.tick..self.tick + SLOT_COUNT as u64;
        let due = |&tick: &u64| self.slots[Self::slot(tick)].iter().any(|(at, _)| *at <= tick);
        let tick = round.clone().find(due).unwrap_or(round.end);
        let millis = u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX).saturating_mul(tick);
        Some(self.start + Duration::from_millis(millis))
    }

    fn slot(tick: u64) -> usize {
        to_usize(tick % SLOT_COUNT as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn timers_fire_in_their_tick_and_never_early() {
        let start = clock::now();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut wheel = Wheel::new(start);
        let mut times: Vec<u64> = (0..500).map(|_| rng.u64(0..90_000)).collect();
        for &millis in &times {
            wheel.set(start + Duration::from_millis(millis), millis);
        }
        let (mut now, mut fired) = (start, Vec::new());
        while let Some(next) = wheel.next() {
            now = now.max(next) + Duration::from_millis(rng.u64(0..20));
            let mut due = Vec::new();
            wheel.turn(now, &mut due);
            for millis in due {
                let due_at = start + Duration::from_millis(millis);
                assert!(now >= due_at, "fired early");
                let late = now - due_at;
                assert!(late <= Duration::from_millis(90), "fired {late:?} late");
                fired.push(millis);
            }
        }
        times.sort_unstable();
        fired.sort_unstable();
        assert_eq!(fired, times);
    }

    #[test]
    fn a_timer_in_the_past_is_due_at_the_next_turn() {
        let start = clock::now();
        let mut wheel = Wheel::new(start);
        let mut due = Vec::new();
        wheel.turn(start + Duration::from_secs(100), &mut due);
        wheel.set(start, "late");
        let next = wheel.next().unwrap();
        wheel.turn(next, &mut due);
        assert_eq!(due, ["late"]);
        assert_eq!(wheel.next(), None);
    }
}
