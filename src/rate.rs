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

/// Slots without a byte after which the average is 0; eight times over, it would be 1 / 5,000 of it.
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
