//! What all benches share: how several measurements of one thing become one line.
//!
//! Samples enter; a median with its spread leaves. Invariant: nothing is averaged away: the lowest
//! and the highest sample are always shown beside the middle one.

use std::fmt;

/// The middle of some samples, and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    /// The median; of an even number of samples the mean of the middle two.
    pub(crate) median: f64,
    /// The lowest sample.
    pub(crate) min: f64,
    /// The highest sample.
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one sample; `None` without any.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.into_iter().collect();
        samples.sort_by(f64::total_cmp);
        let (&min, &max) = (samples.first()?, samples.last()?);
        let (low, high) = (samples[(samples.len() - 1) / 2], samples[samples.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// With a precision, as in `{:.2}`: the median, and the spread if there is one.
impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = out.precision().unwrap_or(2);
        write!(out, "{:.digits$}", self.median)?;
        if self.min < self.max {
            write!(out, " ({:.digits$}–{:.digits$})", self.min, self.max)?;
        }
        Ok(())
    }
}
