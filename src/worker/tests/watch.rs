//! A driver that passes everything on and notes what must hold of it.
//!
//! Invariants checked on every push: one receive and one send in flight per connection, and no two
//! writes to one place of a file, for either may end first. At the
//! end it tells which files were written to behind their last flush.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::ring::{Counters, Driver, Event, Op, Tag, Waker};

/// How often a ring that keeps events back looks whether it still should.
const HOLD_STEP: Duration = Duration::from_millis(1);

/// What a [`Watch`] tells other threads.
#[derive(Default, Debug)]
pub(super) struct Seen {
    /// Operations in flight before the last wait.
    pub(super) in_flight: AtomicUsize,
    /// Files that were written to after their last flush began; known once the worker has ended.
    pub(super) unflushed: AtomicUsize,
    /// Writes that were begun.
    pub(super) writes: AtomicUsize,
    /// Reads that were begun.
    pub(super) reads: AtomicUsize,
    /// Reads from now on that end in an error of the medium.
    pub(super) bad_reads: AtomicUsize,
    /// While set, the ends of reads and writes of files are kept back.
    pub(super) holds_files: AtomicBool,
    /// Whether the last wait was for nothing that a connection receives or sends, and no hurry.
    pub(super) is_quiet: AtomicBool,
    /// Whether the worker has ended and the ring is gone.
    pub(super) is_over: AtomicBool,
}

/// See the module.
pub(super) struct Watch<D> {
    inner: D,
    seen: Arc<Seen>,
    streams: BTreeSet<u64>,
    /// The file of each write in flight, by the address of its handle.
    writes: BTreeMap<u64, usize>,
    unflushed: BTreeSet<usize>,
    /// File and range of each write of whose end the worker does not know.
    ranges: BTreeMap<u64, (usize, Range<u64>)>,
    /// Events that are kept back.
    held: VecDeque<Event>,
}

impl<D: Driver> Watch<D> {
    pub(super) fn new(inner: D, seen: Arc<Seen>) -> Self {
        Self {
            inner,
            seen,
            streams: BTreeSet::new(),
            writes: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            ranges: BTreeMap::new(),
            held: VecDeque::new(),
        }
    }
}

impl<D: Driver> Driver for Watch<D> {
    fn push(&mut self, tag: Tag, op: Op) {
        match &op {
            Op::Recv { .. } | Op::Send { .. } => {
                assert!(self.streams.insert(tag.0), "two at a time on one stream: {op:?}");
            }
            Op::Read { .. } => {
                self.seen.reads.fetch_add(1, Relaxed);
            }
            Op::Write { file, offset, len, .. } => {
                self.seen.writes.fetch_add(1, Relaxed);
                let (file, range) = (Rc::as_ptr(file).addr(), *offset..*offset + *len as u64);
                let overlaps = |(other, it): &(usize, Range<u64>)| {
                    *other == file && it.start < range.end && range.start < it.end
                };
                assert!(!self.ranges.values().any(overlaps), "two writes to {range:?}");
                self.ranges.insert(tag.0, (file, range));
                self.writes.insert(tag.0, file);
            }
            Op::Sync { file } => {
                self.unflushed.remove(&Rc::as_ptr(file).addr());
            }
            _ => {}
        }
        self.inner.push(tag, op);
    }

    fn cancel(&mut self, tag: Tag) {
        self.inner.cancel(tag);
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut VecDeque<Event>) -> io::Result<()> {
        self.seen.in_flight.store(self.inner.in_flight() + self.held.len(), Relaxed);
        let is_quiet = self.streams.is_empty() && timeout != Some(Duration::ZERO);
        self.seen.is_quiet.store(is_quiet, Relaxed);
        let timeout = if self.held.is_empty() { timeout } else { Some(HOLD_STEP) };
        let mut fresh = VecDeque::new();
        self.inner.wait(timeout, &mut fresh)?;
        if !self.seen.holds_files.load(Relaxed) {
            // One per turn, so that the worker acts on each before it sees the next.
            events.extend(self.held.pop_front());
        }
        for mut event in fresh {
            if let Event::Read { result, .. } = &mut event
                && self.seen.bad_reads.load(Relaxed) > 0
            {
                self.seen.bad_reads.fetch_sub(1, Relaxed);
                *result = Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let is_of_file = matches!(event, Event::Read { .. } | Event::Written { .. });
            match &event {
                Event::Received { tag, .. } | Event::Sent { tag, .. } => {
                    self.streams.remove(&tag.0);
                }
                Event::Written { tag, .. } => self.unflushed.extend(self.writes.remove(&tag.0)),
                _ => {}
            }
            let is_held = self.seen.holds_files.load(Relaxed) || !self.held.is_empty();
            let is_held = is_of_file && is_held;
            if is_held { &mut self.held } else { &mut *events }.push_back(event);
        }
        for event in &*events {
            if let Event::Written { tag, .. } = event {
                self.ranges.remove(&tag.0);
            }
        }
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
}

impl<D> Drop for Watch<D> {
    fn drop(&mut self) {
        self.seen.unflushed.store(self.unflushed.len(), Relaxed);
        self.seen.is_over.store(true, Relaxed);
    }
}
