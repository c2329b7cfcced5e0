//! Cells: numbers that one thread writes and every thread may read.
//!
//! Increments enter, sums leave when somebody reads. Invariant: a write is a relaxed load and a
//! relaxed store, which is right because each cell has a single writer: two writers would lose
//! counts (never more than that), so hash threads and helpers get cells of their own.

use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto;

use super::labels::Labels;

/// What a metric is to Prometheus, and how many cells one of its series takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// A [`Counter`].
    Counter,
    /// [`Seconds`]: a counter in seconds.
    Seconds,
    /// A [`Gauge`].
    Gauge,
    /// A [`Histogram`] with these bounds.
    Histogram(&'static [f64; BUCKETS]),
}

/// A number that only grows.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

/// A number that follows a state.
#[derive(Default, Debug)]
pub struct Gauge(AtomicU64);

/// Time that only grows; kept in nanoseconds, exported in seconds.
#[derive(Default, Debug)]
pub struct Seconds(AtomicU64);

/// Upper bounds in seconds of the buckets of a [`Histogram`], the last one (infinity) left out.
/// Turns of up to a millisecond are not stalls and are not counted at all.
pub const STALL_BUCKETS: [f64; 6] = [0.003_2, 0.012_8, 0.051_2, 0.204_8, 0.819_2, 3.276_8];

/// Bounded buckets of every [`Histogram`]; what lies beyond them has one more.
pub const BUCKETS: usize = STALL_BUCKETS.len();

/// Upper bounds in seconds for what goes over the network and may take half a minute.
pub const LATENCY_BUCKETS: [f64; BUCKETS] = [0.025, 0.1, 0.4, 1.6, 6.4, 25.6];

/// The bounds of a [`Histogram`].
pub trait Bounds {
    /// In seconds, rising.
    const BOUNDS: &'static [f64; BUCKETS];
}

/// [`STALL_BUCKETS`].
#[derive(Debug)]
pub struct Stalls;

/// [`LATENCY_BUCKETS`].
#[derive(Debug)]
pub struct Latencies;

impl Bounds for Stalls {
    const BOUNDS: &'static [f64; BUCKETS] = &STALL_BUCKETS;
}

impl Bounds for Latencies {
    const BOUNDS: &'static [f64; BUCKETS] = &LATENCY_BUCKETS;
}

/// Durations in buckets.
#[derive(Debug)]
pub struct Histogram<B = Stalls> {
    buckets: [Counter; BUCKETS + 1],
    nanos: Counter,
    bounds: std::marker::PhantomData<fn(B)>,
}

/// One cell per combination of label values, `N` of them, picked by the label's enum.
///
/// ```
/// # use seedring::metrics::{Core, Direction, HandshakeResult};
/// # let core = Core::default();
/// core.handshakes[(Direction::Incoming, HandshakeResult::Ok)].add(1);
/// ```
#[derive(Debug)]
pub struct Family<C, L, const N: usize> {
    cells: [C; N],
    labels: std::marker::PhantomData<fn(L)>,
}

fn bump(cell: &AtomicU64, change: impl FnOnce(u64) -> u64) {
    cell.store(change(cell.load(Ordering::Relaxed)), Ordering::Relaxed);
}

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        bump(&self.0, |value| value.wrapping_add(n));
    }

    /// Takes over a running total that is kept elsewhere; it must not fall.
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// `n` more than before.
    pub fn add(&self, n: u64) {
        bump(&self.0, |value| value.saturating_add(n));
    }

    /// `n` less than before, not below 0.
    pub fn sub(&self, n: u64) {
        bump(&self.0, |value| value.saturating_sub(n));
    }

    /// Exactly `value` now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Seconds {
    /// Adds `time`.
    pub fn add(&self, time: Duration) {
        bump(&self.0, |nanos| nanos.wrapping_add(nanos_of(time)));
    }

    /// Takes over a running total that is kept elsewhere; it must not fall.
    pub fn set(&self, total: Duration) {
        self.0.store(nanos_of(total), Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn nanos_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<B> Default for Histogram<B> {
    fn default() -> Self {
        let (buckets, nanos) = Default::default();
        Self { buckets, nanos, bounds: std::marker::PhantomData }
    }
}

impl<B: Bounds> Histogram<B> {
    /// Counts one event that took `time`.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = B::BOUNDS.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].add(1);
        self.nanos.add(nanos_of(time));
    }

    /// Number of events so far.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }
}

impl<C: Default, L, const N: usize> Default for Family<C, L, N> {
    fn default() -> Self {
        Self { cells: std::array::from_fn(|_| C::default()), labels: std::marker::PhantomData }
    }
}

impl<C, L: Labels, const N: usize> Index<L> for Family<C, L, N> {
    type Output = C;

    fn index(&self, labels: L) -> &C {
        &self.cells[labels.index()]
    }
}

/// What stands in one line of the catalogue: a cell or a family of them.
pub(super) trait Field {
    /// How the cells are exported.
    const KIND: Kind;

    /// Appends the raw cells, [`Kind::cell_count`] per series.
    fn read(&self, values: &mut Vec<u64>);
}

impl Field for Counter {
    const KIND: Kind = Kind::Counter;

    fn read(&self, values: &mut Vec<u64>) {
        values.push(self.get());
    }
}

impl Field for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn read(&self, values: &mut Vec<u64>) {
        values.push(self.get());
    }
}

impl Field for Seconds {
    const KIND: Kind = Kind::Seconds;

    fn read(&self, values: &mut Vec<u64>) {
        values.push(self.0.load(Ordering::Relaxed));
    }
}

impl<B: Bounds> Field for Histogram<B> {
    const KIND: Kind = Kind::Histogram(B::BOUNDS);

    fn read(&self, values: &mut Vec<u64>) {
        values.extend(self.buckets.iter().map(Counter::get));
        values.push(self.nanos.get());
    }
}

impl<C: Field, L: Labels, const N: usize> Field for Family<C, L, N> {
    const KIND: Kind = C::KIND;

    fn read(&self, values: &mut Vec<u64>) {
        self.cells.iter().for_each(|cell| cell.read(values));
    }
}

impl Kind {
    /// Cells that one series of this kind is made of.
    pub(super) fn cell_count(self) -> usize {
        match self {
            Self::Counter | Self::Seconds | Self::Gauge => 1,
            Self::Histogram(_) => BUCKETS + 2,
        }
    }

    /// The kind in Prometheus' words.
    pub(super) fn prometheus(self) -> proto::MetricType {
        match self {
            Self::Counter | Self::Seconds => proto::MetricType::COUNTER,
            Self::Gauge => proto::MetricType::GAUGE,
            Self::Histogram(_) => proto::MetricType::HISTOGRAM,
        }
    }

    /// Writes the cells of one series into `metric`.
    pub(super) fn fill(self, metric: &mut proto::Metric, cells: &[u64]) {
        let first = cells.first().copied().unwrap_or_default();
        match self {
            Self::Counter => metric.set_counter(counter(exported(first))),
            Self::Seconds => metric.set_counter(counter(seconds(first))),
            Self::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(exported(first));
                metric.set_gauge(gauge);
            }
            Self::Histogram(bounds) => metric.set_histogram(histogram(bounds, cells)),
        }
    }
}

fn counter(value: f64) -> proto::Counter {
    let mut counter = proto::Counter::default();
    counter.set_value(value);
    counter
}

fn histogram(bounds: &[f64; BUCKETS], cells: &[u64]) -> proto::Histogram {
    let mut below = 0;
    let mut buckets = Vec::with_capacity(BUCKETS);
    for (&bound, count) in bounds.iter().zip(cells) {
        below += count;
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(below);
        buckets.push(bucket);
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(below + cells.get(BUCKETS).copied().unwrap_or(0));
    histogram.set_sample_sum(seconds(cells.last().copied().unwrap_or(0)));
    histogram
}

/// Prometheus' numbers are doubles: exact up to 2^53, which is nine petabytes.
#[expect(clippy::cast_precision_loss, reason = "the format has no integers")]
fn exported(value: u64) -> f64 {
    value as f64
}

fn seconds(nanos: u64) -> f64 {
    exported(nanos) / 1e9
}
