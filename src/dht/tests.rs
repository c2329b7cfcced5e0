//! What the tests of this room share.
#![forbid(unsafe_code)]

use std::time::Instant;

/// A moment to count from.
#[expect(clippy::disallowed_methods, reason = "the zero of a test's own clock")]
pub(super) fn start() -> Instant {
    Instant::now()
}
