//! Rates: a token bucket that limits one, a meter that measures one.
//!
//! `now` and byte counts enter; how much may pass, when more may, and bytes per second leave.
//! Invariant: nothing here reads a clock or sleeps, and a `now` that lies before an earlier one is
//! taken for that earlier one.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

const SECOND_NANOS: u64 = 1_000_000_000;

/// How much of its rate a [`Bucket`] can save up while nobody takes.
///
/// Long enough that a core which looks again after a busy spell has lost nothing, short enough
/// that ten seconds after an idle time the rate is exceeded by one percent.
pub const BURST: Duration = Duration::from_millis(100);

/// The least burst in bytes of a bucket with a rate: one block, or slow rates could send nothing.
pub const BURST_LEN_MIN: u64 = crate::units::BLOCK_LEN as u64;

/// A token bucket: one token is one byte.
///
/// # The rule for overdrafts
/// Whoever wants to move bytes asks [`available`](Self::available) and may move a whole batch if
/// that is not 0, then [`take`](Self::take)s all of it; the level becomes negative and nobody
/// moves anything until it is paid off. So in any time `t` at most `rate * t + burst` bytes pass,
/// plus the one batch that went over; a caller that cuts its batch to what is available stays
/// within `rate * t + burst`.
///
/// A bucket is full when it is made. Fractions of a byte are kept, so no rounding adds up.
///
/// ```
/// use seedring::rate::Bucket;
/// use std::time::{Duration, Instant};
/// # #[allow(clippy::disallowed_methods)]
/// let start = Instant::now();
/// let mut bucket = Bucket::new(Some(1_000_000));
/// assert_eq!(bucket.available(start), 100_000);
/// bucket.take(start, 150_000);
/// assert_eq!(bucket.available(start), 0);
/// assert_eq!(bucket.ready_at(start, 1), Some(start + Duration::from_nanos(50_001_000)));
/// ```
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Bytes per second; `None` lets everything pass.
    rate: Option<u64>,
    /// Whole bytes that may pass; negative after an overdraft.
    level: i64,
    /// What was earned of the next byte, in billionths.
    fraction: u64,
    /// When `level` was last brought up to date; `None` while the bucket is still full.
    updated_at: Option<Instant>,
}

impl Bucket {
    /// A full bucket; `None` is no limit, `Some(0)` lets nothing pass.
    pub fn new(rate_bytes_per_second: Option<u64>) -> Self {
        let level = rate_bytes_per_second.map_or(0, burst_len);
        Self { rate: rate_bytes_per_second, level, fraction: 0, updated_at: None }
    }

    /// The limit in bytes per second.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Changes the limit from `now` on. What was earned and what is owed stays, cut to the new
    /// burst; a bucket that had no limit starts full.
    pub fn set_rate(&mut self, now: Instant, rate_bytes_per_second: Option<u64>) {
        self.refill(now);
        match (self.rate, rate_bytes_per_second) {
            (Some(_), Some(rate)) => {
                self.level = self.level.min(burst_len(rate));
                self.fraction = 0;
                self.rate = Some(rate);
            }
            _ => *self = Self::new(rate_bytes_per_second),
        }
    }

    /// Bytes that may pass now: 0 after an overdraft, `u64::MAX` without a limit.
    pub fn available(&self, now: Instant) -> u64 {
        match self.rate {
            None => u64::MAX,
            Some(rate) => u64::try_from(self.level_at(now, rate).0).unwrap_or(0),
        }
    }

    /// Notes that `len` bytes pass, whether or not they were available.
    pub fn take(&mut self, now: Instant, len: u64) {
        if self.rate.is_some() {
            self.refill(now);
            self.level = self.level.saturating_sub(i64::try_from(len).unwrap_or(i64::MAX));
        }
    }

    /// The first moment, not before `now`, at which `want` bytes are available if nobody takes
    /// any; a want above the burst is cut to it. `None`: never, because the rate is 0 or the time
    /// cannot be expressed.
    pub fn ready_at(&self, now: Instant, want: u64) -> Option<Instant> {
        let Some(rate) = self.rate else { return Some(now) };
        let want = i64::try_from(want).unwrap_or(i64::MAX).min(burst_len(rate));
        let (level, fraction) = self.level_at(now, rate);
        let missing = i128::from(want) - i128::from(level);
        if rate == 0 {
            return None;
        }
        let Ok(missing @ 1..) = u128::try_from(missing) else { return Some(now) };
        let units = missing * u128::from(SECOND_NANOS) - u128::from(fraction);
        let wait = u64::try_from(units.div_ceil(u128::from(rate))).ok()?;
        now.max(self.updated_at.unwrap_or(now)).checked_add(Duration::from_nanos(wait))
    }

    fn refill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            (self.level, self.fraction) = self.level_at(now, rate);
        }
        self.updated_at = self.updated_at.max(Some(now));
    }

    /// Level and fraction as they are at `now`.
    fn level_at(&self, now: Instant, rate: u64) -> (i64, u64) {
        let Some(updated_at) = self.updated_at else { return (self.level, 0) };
        let elapsed = now.saturating_duration_since(updated_at).as_nanos();
        let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
        let earned = u128::from(elapsed) * u128::from(rate) + u128::from(self.fraction);
        let bytes = i64::try_from(earned / u128::from(SECOND_NANOS)).unwrap_or(i64::MAX);
        let level = self.level.saturating_add(bytes);
        let full = burst_len(rate);
        if level >= full {
            return (full, 0);
        }
        let fraction = earned % u128::from(SECOND_NANOS);
        (level, u64::try_from(fraction).unwrap_or(0))
    }
}

/// The most a bucket of `rate` bytes per second holds.
fn burst_len(rate: u64) -> i64 {
    if rate == 0 {
        return 0;
    }
    let saved = u128::from(rate) * BURST.as_nanos() / u128::from(SECOND_NANOS);
    i64::try_from(saved.max(u128::from(BURST_LEN_MIN))).unwrap_or(i64::MAX)
}

/// Length of the slots a [`Meter`] counts in.
pub const METER_SLOT: Duration = Duration::from_secs(1);

/// Slots that a [`Meter`] averages over; with eight, what happened 5.2 s ago weighs half.
const METER_WEIGHT: u8 = 8;

/// Slots without a byte after which the average is 0; it would be 1 / 5,000 of itself by then.
const METER_IDLE_SLOTS_MAX: u64 = 64;

/// Fixed point of a meter's average, so that slow rates do not get stuck at a rounding.
const METER_SHIFT: u32 = 8;

/// Measures bytes per second: the mean of whole seconds at first, then a moving average that
/// forgets half within 5.2 s.
///
/// Adding costs a comparison and an addition; the arithmetic happens once per second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    /// When the current slot ends; `None` before the first byte.
    slot_end: Option<Instant>,
    /// Bytes of the current slot.
    slot_len: u64,
    /// Average per slot, shifted by `METER_SHIFT`.
    average: i128,
    /// Whole slots seen, up to `METER_WEIGHT`.
    slot_count: u8,
}

impl Meter {
    /// A meter that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `len` bytes that passed at `now`.
    pub fn add(&mut self, now: Instant, len: u64) {
        match self.slot_end {
            Some(slot_end) if now < slot_end => {}
            _ => self.advance(now),
        }
        self.slot_len = self.slot_len.saturating_add(len);
    }

    /// Bytes per second. While the first second lasts: the bytes of it so far.
    pub fn rate(&self, now: Instant) -> u64 {
        let mut meter = *self;
        if meter.slot_end.is_some() {
            meter.advance(now);
        }
        if meter.slot_count == 0 {
            return meter.slot_len;
        }
        u64::try_from(meter.average >> METER_SHIFT).unwrap_or(u64::MAX)
    }

    /// Closes every slot that ended by `now`.
    fn advance(&mut self, now: Instant) {
        let Some(slot_end) = self.slot_end else {
            self.slot_end = now.checked_add(METER_SLOT);
            return;
        };
        let Some(late) = now.checked_duration_since(slot_end) else { return };
        let ended = late.as_secs().saturating_add(1);
        if ended > METER_IDLE_SLOTS_MAX {
            self.average = 0;
            self.slot_len = 0;
            self.slot_end = now.checked_add(METER_SLOT);
            return;
        }
        for _ in 0..ended {
            self.close_slot();
        }
        self.slot_end = slot_end.checked_add(Duration::from_secs(ended));
    }

    fn close_slot(&mut self) {
        let slot = i128::from(self.slot_len) << METER_SHIFT;
        self.slot_count = (self.slot_count + 1).min(METER_WEIGHT);
        self.average += (slot - self.average) / i128::from(self.slot_count);
        self.slot_len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    /// What may pass in `elapsed`, computed another way than the bucket does.
    fn allowed(rate: u64, elapsed: Duration) -> u128 {
        u128::from(rate) * elapsed.as_nanos() / 1_000_000_000
            + (u128::from(rate) / 10).max(u128::from(BURST_LEN_MIN))
    }

    proptest! {
        #[test]
        fn bucket_never_exceeds_rate_and_burst(
            rate in prop_oneof![1..100_000u64, 1..20_000_000_000u64],
            steps in prop::collection::vec((0..300_000_000u64, 0..2_000_000u64), 1..200),
        ) {
            let start = start();
            let (mut careful, mut batching) = (Bucket::new(Some(rate)), Bucket::new(Some(rate)));
            let (mut now, mut careful_total, mut batching_total) = (start, 0u128, 0u128);
            for (wait, want) in steps {
                now += Duration::from_nanos(wait);
                // So the bound holds from any moment on, not only from the first.
                prop_assert!(u128::from(careful.available(now)) <= allowed(rate, Duration::ZERO));
                let len = want.min(careful.available(now));
                careful.take(now, len);
                careful_total += u128::from(len);
                prop_assert!(careful_total <= allowed(rate, now - start));
                if batching.available(now) > 0 {
                    prop_assert!(batching_total < allowed(rate, now - start));
                    batching.take(now, want);
                    batching_total += u128::from(want);
                }
            }
        }

        #[test]
        fn bucket_gives_a_greedy_consumer_all_of_its_rate(
            rate in prop_oneof![1..100_000u64, 1..20_000_000_000u64],
            want in 1..2_000_000u64,
        ) {
            let start = start();
            let mut bucket = Bucket::new(Some(rate));
            let (mut now, mut total) = (start, 0u128);
            for _ in 0..2_000 {
                let len = bucket.available(now);
                bucket.take(now, len);
                total += u128::from(len);
                now = bucket.ready_at(now, want).unwrap();
            }
            total += u128::from(bucket.available(now));
            let earned = u128::from(rate) * (now - start).as_nanos() / 1_000_000_000;
            prop_assert!(total >= earned, "{total} of {earned}");
        }

        #[test]
        fn ready_at_is_the_first_moment(
            rate in prop_oneof![1..100_000u64, 1..20_000_000_000u64],
            debt in 0..2_000_000u64, want in 1..BURST_LEN_MIN, later in 0..20_000u64,
        ) {
            let start = start();
            let mut bucket = Bucket::new(Some(rate));
            bucket.take(start, bucket.available(start) + debt);
            let now = start + Duration::from_nanos(later);
            let ready_at = bucket.ready_at(now, want).unwrap();
            prop_assert!(bucket.available(ready_at) >= want);
            if ready_at > now {
                prop_assert!(bucket.available(ready_at - Duration::from_nanos(1)) < want);
            }
        }
    }

    #[test]
    fn bucket_does_not_drift_in_a_million_small_steps() {
        let start = start();
        let mut bucket = Bucket::new(Some(333_333_333));
        bucket.take(start, bucket.available(start));
        let (mut now, mut total) = (start, 0);
        for _ in 0..1_000_000 {
            now += Duration::from_nanos(7);
            let len = bucket.available(now);
            bucket.take(now, len);
            total += len;
        }
        assert_eq!(total, 2_333_333, "7 ms of the rate");
    }

    #[test]
    fn bucket_survives_extremes() {
        let start = start();
        let year = start + Duration::from_secs(365 * 24 * 3600);
        for rate in [1, 12_500_000_000, u64::MAX] {
            let mut bucket = Bucket::new(Some(rate));
            let full = bucket.available(start);
            assert!(full > 0);
            bucket.take(start, full);
            assert_eq!(bucket.available(start), 0);
            assert_eq!(bucket.available(year), full, "at {rate}");
            bucket.take(year, u64::MAX);
            bucket.take(year, u64::MAX);
            assert_eq!(bucket.available(year), 0);
            assert!(bucket.ready_at(year, u64::MAX).is_none_or(|at| at > year));
            assert_eq!(bucket.available(start), 0, "time that goes back earns nothing");
        }
    }

    #[test]
    fn bucket_without_a_limit_and_without_a_rate() {
        let now = start();
        let mut bucket = Bucket::new(None);
        bucket.take(now, u64::MAX);
        assert_eq!((bucket.available(now), bucket.ready_at(now, 9)), (u64::MAX, Some(now)));
        bucket.set_rate(now, Some(0));
        let later = now + Duration::from_secs(3600);
        assert_eq!((bucket.available(later), bucket.ready_at(later, 1)), (0, None));
        bucket.set_rate(later, Some(1_000));
        let second = later + Duration::from_secs(1);
        assert_eq!(bucket.available(second), 1_000, "nothing is earned before a rate is set");
    }

    #[test]
    fn bucket_keeps_its_debt_when_the_rate_changes() {
        let now = start();
        let mut bucket = Bucket::new(Some(1_000_000));
        bucket.take(now, 1_100_000);
        bucket.set_rate(now, Some(2_000_000));
        assert_eq!(bucket.ready_at(now, 0), Some(now + Duration::from_millis(500)));
    }

    #[test]
    fn meter_is_right_at_once_for_a_steady_flow() {
        let start = start();
        let mut meter = Meter::new();
        assert_eq!(meter.rate(start), 0);
        for tick in 0..300 {
            let now = start + Duration::from_millis(100 * tick);
            if tick >= 10 {
                assert_eq!(meter.rate(now), 10_000, "after {tick} tenths");
            }
            meter.add(now, 1_000);
        }
    }

    #[test]
    fn meter_forgets_half_in_its_half_life() {
        let start = start();
        let mut meter = Meter::new();
        for second in 0..100 {
            meter.add(start + Duration::from_secs(second), 1_000_000);
        }
        let at = |second| meter.rate(start + Duration::from_secs(second));
        assert!((1_000_000 - 10..=1_000_000).contains(&at(100)), "{}", at(100));
        let faded = at(105);
        assert!((500_000..530_000).contains(&faded), "{faded}");
        assert!(at(106) < 500_000);
        assert_eq!(at(100 + METER_IDLE_SLOTS_MAX), 0);
        assert_eq!(at(1_000_000_000), 0);
    }

    #[test]
    fn meter_counts_long_flows_exactly_enough() {
        let start = start();
        let mut meter = Meter::new();
        for second in 0..1_000 {
            meter.add(start + Duration::from_secs(second), 3);
            meter.add(start + Duration::from_secs(second), u64::from(second % 2 == 0));
        }
        let rate = meter.rate(start + Duration::from_secs(1_000));
        assert!((3..=4).contains(&rate), "{rate}");
        meter.add(start, 5);
        meter.add(start + Duration::from_secs(1_000), u64::MAX);
        assert!(meter.rate(start + Duration::from_secs(1_001)) > 1 << 60);
    }
}
