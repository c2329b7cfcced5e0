//! What the torrents without metadata of one worker hold in memory, together.
//!
//! Lengths enter, and are counted where all of them see it. Invariant: what is dropped is not
//! counted any more.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;

use crate::swarm::Shared;

/// Bytes of metadata that have come and are not judged yet, of all torrents of one worker: eight of
/// the longest that there can be.
pub(in crate::swarm) const METADATA_BYTES_MAX: u64 = 64 << 20;

/// Bytes of what peers said about their pieces before the metadata was here, of all torrents of one
/// worker.
pub(super) const SAID_BYTES_MAX: u64 = 32 << 20;

/// Bytes that one owner holds; they are given back when it goes.
pub(super) struct Held {
    shared: Rc<Shared>,
    /// Where they are counted.
    cell: fn(&Shared) -> &Cell<u64>,
    bytes: u64,
}

impl Held {
    /// Nothing yet.
    pub(super) fn new(shared: Rc<Shared>, cell: fn(&Shared) -> &Cell<u64>) -> Self {
        Self { shared, cell, bytes: 0 }
    }

    /// The owner holds so many bytes now.
    pub(super) fn set(&mut self, bytes: usize) {
        let all = (self.cell)(&self.shared);
        all.set(all.get() - self.bytes + bytes as u64);
        self.bytes = bytes as u64;
    }

    /// The owner holds so many more.
    pub(super) fn add(&mut self, bytes: usize) {
        let all = (self.cell)(&self.shared);
        all.set(all.get() + bytes as u64);
        self.bytes += bytes as u64;
    }

    /// Bytes that the owner holds.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}
