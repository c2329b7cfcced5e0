//! The only place that asks for the time. Everything else is told `now`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock, for every timer and rate.
#[expect(clippy::disallowed_methods, reason = "the one door to the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970, for display and state files only: it can jump.
#[expect(clippy::disallowed_methods, reason = "the one door to the wall clock")]
pub fn wall_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
