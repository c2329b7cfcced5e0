//! The line of peers that wait for a rate limit.
//!
//! Peers enter at the back when a bucket is empty, and are called from the front as tokens come;
//! who was called may pass once. So everybody gets a turn, and nobody passes the line by being
//! noisier. Invariant: a peer stands in the line at most once.
#![forbid(unsafe_code)]

use super::peer::PeerKey;
use crate::rate::Bucket;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Limits that others change are looked at again after this long.
const RECHECK: Duration = Duration::from_millis(500);

/// Between two calls, those who were called get time to take their tokens.
const PAUSE: Duration = Duration::from_millis(2);

/// Where a peer stands with one limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    No,
    InLine,
    /// May pass once, although others stand in line.
    Called,
}

/// One direction: the torrent's own bucket, and the line before it and the shared one.
pub(super) struct Throttle {
    pub(super) bucket: Bucket,
    line: VecDeque<PeerKey>,
    at: Option<Instant>,
}

impl Throttle {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { bucket: Bucket::new(rate), line: VecDeque::new(), at: None }
    }

    /// Bytes that a peer with `wait` may pass now; 0 if others come first.
    pub(super) fn room(&self, now: Instant, shared: &RefCell<Bucket>, wait: Wait) -> u64 {
        if wait != Wait::Called && !self.line.is_empty() {
            return 0;
        }
        self.bucket.available(now).min(shared.borrow().available(now))
    }

    pub(super) fn take(&mut self, now: Instant, shared: &RefCell<Bucket>, len: u64) {
        if len > 0 {
            self.bucket.take(now, len);
            shared.borrow_mut().take(now, len);
        }
    }

    /// Puts `key` at the back of the line, unless it stands there.
    pub(super) fn enter(
        &mut self,
        now: Instant,
        shared: &RefCell<Bucket>,
        key: PeerKey,
        wait: &mut Wait,
    ) {
        if *wait != Wait::InLine {
            *wait = Wait::InLine;
            self.line.push_back(key);
        }
        if self.at.is_none() {
            self.schedule(now, shared);
        }
    }

    /// How many of the line may be called now, a block each.
    pub(super) fn due_count(&mut self, now: Instant, shared: &RefCell<Bucket>) -> usize {
        if self.at.is_none_or(|at| now < at) {
            return 0;
        }
        let available = self.bucket.available(now).min(shared.borrow().available(now));
        let blocks = available.div_ceil(u64::from(crate::units::BLOCK_LEN));
        self.line.len().min(usize::try_from(blocks).unwrap_or(usize::MAX))
    }

    /// Sets the next moment anew if the last one has come.
    pub(super) fn reschedule(&mut self, now: Instant, shared: &RefCell<Bucket>) {
        if self.at.is_some_and(|at| now >= at) {
            self.schedule(now, shared);
        }
    }

    /// Takes the front of the line.
    pub(super) fn call(&mut self) -> Option<PeerKey> {
        self.line.pop_front()
    }

    pub(super) fn leave(&mut self, key: PeerKey) {
        self.line.retain(|&other| other != key);
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn schedule(&mut self, now: Instant, shared: &RefCell<Bucket>) {
        let own = self.bucket.ready_at(now, u64::from(crate::units::BLOCK_LEN));
        let common = shared.borrow().ready_at(now, u64::from(crate::units::BLOCK_LEN));
        let ready = own.zip(common).map_or(now + RECHECK, |(own, common)| own.max(common));
        self.at = (!self.line.is_empty()).then(|| ready.clamp(now + PAUSE, now + RECHECK));
    }

    /// The line, for recounts.
    pub(super) fn line(&self) -> &VecDeque<PeerKey> {
        &self.line
    }
}
