//! The stopwatch of the micro-benches.
//!
//! A case enters as a function that does its work once; a line leaves. Invariant: the work's result
//! is used (it is folded into the checksum that is printed), so that none of it can be left out.

use std::hint::black_box;
use std::time::Duration;

use seedring::sys::clock;

use crate::common::Spread;

/// Rounds of a case that count; the one before them warms up.
const ROUNDS: usize = 7;

/// How large the inputs are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scale {
    /// For figures.
    Full,
    /// To see that it runs.
    Smoke,
}

/// What an item of a case is, for the unit of its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Per {
    /// A thing of some kind: nanoseconds.
    Item(&'static str),
    /// A byte: GiB per second.
    Byte,
}

/// Runs cases.
#[derive(Debug)]
pub(crate) struct Bench {
    scale: Scale,
    filter: Option<String>,
}

impl Bench {
    /// Runs the cases whose name contains `filter`, or all.
    pub(crate) fn new(scale: Scale, filter: Option<String>) -> Self {
        Self { scale, filter }
    }

    /// `full`, or `smoke` where times do not matter.
    pub(crate) fn size(&self, full: usize, smoke: usize) -> usize {
        if self.scale == Scale::Full { full } else { smoke }
    }

    /// Whether a case is wanted; what is costly to prepare is asked for first.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// The heads of the columns.
    pub(crate) fn print_head(&self) {
        println!("{:<44} {:>32}   checksum", "case", "median (min–max)");
    }

    /// Times `work`, which handles `count` items on what `prepare` made and returns a checksum.
    pub(crate) fn case<T>(
        &self,
        name: &str,
        per: Per,
        count: usize,
        mut prepare: impl FnMut() -> T,
        mut work: impl FnMut(T) -> u64,
    ) {
        if !self.wants(name) {
            return;
        }
        let rounds = if self.scale == Scale::Full { ROUNDS } else { 1 };
        let mut expected = None;
        let mut times = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let input = black_box(prepare());
            let started = clock::now();
            let checksum = black_box(work(input));
            let elapsed = clock::now() - started;
            assert_eq!(*expected.get_or_insert(checksum), checksum, "{name}: rounds differ");
            if round > 0 {
                times.push(elapsed);
            }
        }
        let line = describe(per, count, &times);
        println!("{name:<44} {line:>32}   {:016x}", expected.unwrap_or(0));
    }
}

fn describe(per: Per, count: usize, times: &[Duration]) -> String {
    let seconds = times.iter().map(Duration::as_secs_f64);
    match per {
        Per::Item(unit) => {
            let spread = Spread::of(seconds.map(|it| it * 1e9 / count as f64));
            spread.map_or_else(String::new, |it| format!("{it:.1} ns/{unit}"))
        }
        Per::Byte => {
            let spread = Spread::of(seconds.map(|it| count as f64 / (1u64 << 30) as f64 / it));
            spread.map_or_else(String::new, |it| format!("{it:.2} GiB/s"))
        }
    }
}

/// Folds a value into a checksum; the order counts.
pub(crate) fn fold(checksum: u64, value: u64) -> u64 {
    (checksum.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95)
}
