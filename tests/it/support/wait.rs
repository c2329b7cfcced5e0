//! Waiting for conditions, with a deadline and without fixed delays.
//!
//! A question enters and is asked again until it has an answer. Invariant: this is the only place
//! of the integration tests that sleeps, and never longer than one poll interval.

use std::time::Duration;

use seedring::sys::clock;

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Asks until there is an answer; panics with `what` when it takes longer than `limit`.
pub(crate) fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    match within(limit, &mut ask) {
        Some(answer) => answer,
        None => panic!("{what}: not within {limit:?}"),
    }
}

/// Asks until there is an answer or `limit` is over.
pub(crate) fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = clock::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if clock::now() >= end {
            return None;
        }
        pause();
    }
}

/// One poll interval.
#[expect(clippy::disallowed_methods, reason = "the poll interval of every wait for a condition")]
pub(crate) fn pause() {
    std::thread::sleep(POLL);
}
