//! The driver on the kernel's io_uring: one `io_uring_enter` per turn does everything.
//!
//! Operations enter and are written into the submission queue; completions are copied out of the
//! completion queue, matched with their operation and leave as events. Invariant: what an
//! operation owns stays in its slot until the kernel has said the last word about it, whatever
//! the result; if that word does not come in time at the end, the memory is leaked, not freed.

use super::buffers::{BufferRing, RecvBuffer};
use super::counters::{Counters, OpKind};
use super::datagram;
use super::entry::{self, POOL_COUNT, Scratch};
use super::setup::{self, Config, Features, Unavailable};
use super::slots::{InFlight, Key, Slots};
use super::waker::Waker;
use super::{Driver, Event, Op, Pool, Tag};
use crate::sys::clock;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Most completions handled in one wait, so that a turn of the worker stays short.
pub const EVENTS_MAX: usize = 256;

/// How long a dropped driver waits for the kernel to end what is in flight.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The bit of a zero-copy notification that says that it copied (`IORING_NOTIF_USAGE_ZC_COPIED`).
const NOTIFICATION_COPIED: u32 = 1 << 31;

/// A completion, copied out of the queue.
#[derive(Clone, Copy, Debug)]
struct Completion {
    key: u64,
    result: i32,
    flags: u32,
}

/// The driver on io_uring. It belongs to the thread that made it.
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    features: Features,
    slots: Slots,
    /// Boxed for a stable address: the kernel writes the eventfd's count here.
    wake_count: Box<u64>,
    is_wake_armed: bool,
    waker: Arc<Waker>,
    /// In the order of [`entry::pool_index`]; none once they were leaked.
    pools: [Option<BufferRing>; POOL_COUNT],
    scratch: Scratch,
    /// Entries that found the submission queue full, in order.
    unsent: VecDeque<squeue::Entry>,
    /// Events that need no kernel.
    ready: VecDeque<Event>,
    completions: Vec<Completion>,
    counters: Counters,
}

/// The ring of the crate, which has no Debug.
struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ring").field(self.0.params()).finish()
    }
}

impl Uring {
    /// Builds the best ring that the kernel gives. Call it on the thread that will use it.
    ///
    /// # Errors
    /// [`Unavailable`], which says why and what to do about it.
    pub fn new(config: &Config) -> Result<Uring, Unavailable> {
        let (ring, features) = setup::build(config)?;
        let explain = |error: io::Error| Unavailable::explain(&error);
        let pool = |group, buffers: setup::Buffers| {
            BufferRing::new(&ring, group, buffers.count, buffers.len).map_err(explain)
        };
        let pools = [
            Some(pool(0, config.small_buffers)?),
            Some(pool(1, config.large_buffers)?),
            Some(pool(2, config.datagram_buffers)?),
        ];
        let waker = Arc::new(Waker::new().map_err(explain)?);
        Ok(Uring {
            ring: Ring(ring),
            features,
            slots: Slots::default(),
            wake_count: Box::new(0),
            is_wake_armed: false,
            waker,
            pools,
            scratch: Scratch::default(),
            unsent: VecDeque::new(),
            ready: VecDeque::new(),
            completions: Vec::with_capacity(EVENTS_MAX),
            counters: Counters::default(),
        })
    }

    /// What this ring can do.
    pub fn features(&self) -> Features {
        self.features
    }

    fn pool(&self, pool: Pool) -> Option<&BufferRing> {
        self.pools[entry::pool_index(pool)].as_ref()
    }

    /// Writes an entry into the submission queue, or behind those that wait for room there.
    fn queue(&mut self, entry: squeue::Entry) {
        if self.unsent.is_empty() {
            if self.write(&entry) {
                return;
            }
            self.counters.sq_full += 1;
            // An error comes again, and is reported, at the next wait.
            let handed_over = self.enter(0, 0, None).is_ok();
            if handed_over && self.write(&entry) {
                return;
            }
        }
        self.unsent.push_back(entry);
    }

    /// Writes an entry into the submission queue if there is room.
    fn write(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: all that the entry points to is owned by a slot, the scratch memory or this
        // structure, and lives until its last completion or until it was handed over.
        unsafe { self.ring.0.submission().push(entry).is_ok() }
    }

    /// Hands over all entries that found no room, as far as the kernel takes them.
    fn flush_unsent(&mut self) -> io::Result<()> {
        while let Some(entry) = self.unsent.pop_front() {
            if self.write(&entry) {
                continue;
            }
            self.unsent.push_front(entry);
            let before = self.ring.0.submission().len();
            self.enter(0, 0, None)?;
            if self.ring.0.submission().len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Calls the kernel: hands over the submission queue and, if `wanted`, waits for a completion.
    fn enter(&mut self, wanted: u32, flags: u32, timeout: Option<Duration>) -> io::Result<()> {
        let to_submit = self.ring.0.submission().len();
        let timespec = timeout.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        let to_submit = u32::try_from(to_submit).unwrap_or(u32::MAX);
        let flags = flags | EnterFlags::EXT_ARG.bits();
        self.counters.enters += 1;
        // SAFETY: the flags say that the argument is of this type, and it lives during the call.
        let result =
            unsafe { self.ring.0.submitter().enter(to_submit, wanted, flags, Some(&args)) };
        match result {
            Ok(_) => Ok(()),
            // The time is over, a signal came, completions have to be reaped first, or memory is
            // short for a moment: the next turn goes on where this one stopped.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// One turn of the kernel: everything handed over, everything prepared, perhaps waited.
    fn turn(&mut self, is_waiting: bool, timeout: Option<Duration>) -> io::Result<()> {
        let queue = self.ring.0.submission();
        let is_overflown = queue.cq_overflow();
        let is_idle = queue.is_empty() && !queue.taskrun() && !is_overflown;
        drop(queue);
        if is_overflown {
            self.counters.cq_overflow += 1;
        }
        if is_idle && !is_waiting {
            return Ok(());
        }
        let mut flags = EnterFlags::GETEVENTS;
        if self.features.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let timeout = if is_waiting { timeout } else { Some(Duration::ZERO) };
        self.enter(u32::from(is_waiting), flags.bits(), timeout)
    }

    /// Keeps a read armed on the waker.
    fn arm_waker(&mut self) {
        if self.is_wake_armed {
            return;
        }
        self.is_wake_armed = true;
        let into = (&raw mut *self.wake_count).cast::<u8>();
        let entry = opcode::Read::new(Fd(self.waker.fd()), into, 8).build();
        self.queue(entry.user_data(Key::Wake.pack()));
    }

    /// Copies completions out of the queue, then handles them.
    fn reap(&mut self, events: &mut VecDeque<Event>) {
        let mut completions = std::mem::take(&mut self.completions);
        completions.clear();
        completions.extend(self.ring.0.completion().take(EVENTS_MAX).map(|entry| Completion {
            key: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
        for &completion in &completions {
            match Key::unpack(completion.key) {
                Some(Key::Ignored) => {}
                Some(Key::Wake) => {
                    self.is_wake_armed = false;
                    self.counters.wakes += u64::from(completion.result > 0);
                }
                Some(Key::Op { slot, generation }) => {
                    events.extend(self.complete(slot, generation, completion));
                }
                None => self.counters.strays += 1,
            }
        }
        self.completions = completions;
    }

    /// Handles one completion of an operation.
    fn complete(&mut self, slot: u32, generation: u32, completion: Completion) -> Option<Event> {
        let Some(in_flight) = self.slots.get_mut(slot, generation) else {
            self.counters.strays += 1;
            return None;
        };
        if let Some(rest) = rest_of_read(in_flight, completion.result) {
            let key = Key::Op { slot, generation };
            self.queue(rest.user_data(key.pack()));
            return None;
        }
        let kind = kind_of(&in_flight.op, self.features);
        let tag = in_flight.tag;
        let is_notification = cqueue::notif(completion.flags);
        let is_last = !cqueue::more(completion.flags);
        let count = self.counters.of_mut(kind);
        count.completed += u64::from(is_last);
        count.failed += u64::from(completion.result < 0 && !is_notification);
        if is_last {
            let in_flight = self.slots.remove(slot, generation)?;
            if is_notification {
                return Some(self.released(tag, completion.result));
            }
            return Some(self.finish(in_flight, completion));
        }
        match &mut in_flight.op {
            Op::Accept { .. } => Some(accepted(tag, completion.result, false)),
            &mut Op::ReceiveFrom { pool, .. } => {
                let result = self.received(pool, completion).and_then(datagram::parse);
                Some(Event::Datagram { tag, result, last: false })
            }
            Op::Send { .. } => {
                in_flight.is_sent = true;
                let (batch_len, from) = send_range(&in_flight.op);
                Some(self.sent(tag, completion.result, batch_len - from, true))
            }
            _ => {
                self.counters.strays += 1;
                None
            }
        }
    }

    /// Makes the event of an operation's last completion.
    fn finish(&mut self, in_flight: InFlight, completion: Completion) -> Event {
        let InFlight { tag, op, done, .. } = in_flight;
        let result = completion.result;
        match op {
            Op::Accept { .. } => accepted(tag, result, true),
            Op::Connect { .. } => Event::Connected { tag, result: outcome(result).map(drop) },
            Op::Recv { pool, .. } => {
                let result = self.received(pool, completion);
                Event::Received { tag, result }
            }
            Op::ReceiveFrom { pool, .. } => {
                let result = self.received(pool, completion).and_then(datagram::parse);
                Event::Datagram { tag, result, last: true }
            }
            Op::SendTo { .. } => Event::SentTo { tag, result: outcome(result) },
            Op::Send { batch, from, .. } => {
                self.sent(tag, result, batch.len().saturating_sub(from), false)
            }
            Op::Read { buffer, .. } => {
                Event::Read { tag, result: outcome(result).map(|last| done + last), buffer }
            }
            Op::Write { .. } => Event::Written { tag, result: outcome(result) },
            Op::Sync { .. } => Event::Synced { tag, result: outcome(result).map(drop) },
        }
    }

    fn received(&mut self, pool: Pool, completion: Completion) -> io::Result<RecvBuffer> {
        let len = outcome(completion.result);
        // Also a failed or empty receive may have taken a buffer: it goes back by being dropped.
        let bytes = *len.as_ref().unwrap_or(&0);
        let buffer = self.pool(pool).and_then(|pool| pool.take(completion.flags, bytes));
        match len {
            Ok(0) => Ok(RecvBuffer::empty()),
            Ok(_) => buffer.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO)),
            Err(error) => {
                let is_empty = error.raw_os_error() == Some(libc::ENOBUFS);
                self.counters.enobufs += u64::from(is_empty);
                Err(error)
            }
        }
    }

    fn sent(&mut self, tag: Tag, result: i32, asked: usize, held: bool) -> Event {
        let result = outcome(result);
        if result.as_ref().is_ok_and(|&count| count < asked) {
            self.counters.short_sends += 1;
        }
        Event::Sent { tag, result, held }
    }

    fn released(&mut self, tag: Tag, result: i32) -> Event {
        let copied = result.cast_unsigned() & NOTIFICATION_COPIED != 0;
        self.counters.zero_copy_copied += u64::from(copied);
        self.counters.zero_copy_sent += u64::from(!copied);
        Event::Released { tag, copied }
    }
}

/// The kernel's result: a count, or an error.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

fn accepted(tag: Tag, result: i32, last: bool) -> Event {
    let result = outcome(result).map(|_| {
        // SAFETY: the kernel has just made this descriptor for us; each completion names it once.
        unsafe { OwnedFd::from_raw_fd(result) }
    });
    Event::Accepted { tag, result, last }
}

/// A send's batch length and start.
fn send_range(op: &Op) -> (usize, usize) {
    match op {
        Op::Send { batch, from, .. } => (batch.len(), (*from).min(batch.len())),
        _ => (0, 0),
    }
}

/// How an operation is counted.
fn kind_of(op: &Op, features: Features) -> OpKind {
    match op {
        Op::Accept { .. } => OpKind::Accept,
        Op::Connect { .. } => OpKind::Connect,
        Op::Recv { .. } => OpKind::Recv,
        Op::ReceiveFrom { .. } => OpKind::ReceiveFrom,
        Op::SendTo { .. } => OpKind::SendTo,
        Op::Send { zero_copy: true, .. } if features.zero_copy => OpKind::SendZeroCopy,
        Op::Send { .. } => OpKind::Send,
        Op::Read { .. } => OpKind::Read,
        Op::Write { .. } => OpKind::Write,
        Op::Sync { .. } => OpKind::Sync,
    }
}

/// The entry that goes on with a read that brought something, but not all. Only a read that brings
/// nothing is at the end of the file.
fn rest_of_read(in_flight: &mut InFlight, result: i32) -> Option<squeue::Entry> {
    let brought = usize::try_from(result).ok().filter(|&brought| brought > 0)?;
    let Op::Read { len, .. } = &in_flight.op else { return None };
    if in_flight.done + brought >= *len {
        return None;
    }
    in_flight.done += brought;
    entry::read_rest(&mut in_flight.op, in_flight.done)
}

impl Driver for Uring {
    fn push(&mut self, tag: Tag, mut op: Op) {
        let kind = kind_of(&op, self.features);
        self.counters.of_mut(kind).submitted += 1;
        if let Some(event) = entry::refuse(tag, &mut op) {
            let failed = !matches!(event, Event::Sent { .. });
            let count = self.counters.of_mut(kind);
            count.completed += 1;
            count.failed += u64::from(failed);
            self.ready.push_back(event);
            return;
        }
        let group = |pool: &Option<BufferRing>| pool.as_ref().map_or(0, BufferRing::group);
        let groups = self.pools.each_ref().map(group);
        let key = self.slots.insert(tag, op);
        let Key::Op { slot, generation } = key else { return };
        let Some(in_flight) = self.slots.get_mut(slot, generation) else { return };
        let entry = entry::build(&mut in_flight.op, groups, self.features, &mut self.scratch);
        self.queue(entry.user_data(key.pack()));
    }

    fn cancel(&mut self, tag: Tag) {
        let keys: Vec<u64> = self.slots.of_tag(tag).map(Key::pack).collect();
        for key in keys {
            let entry = opcode::AsyncCancel::new(key).build();
            self.queue(entry.user_data(Key::Ignored.pack()));
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut VecDeque<Event>) -> io::Result<()> {
        for pool in self.pools.iter_mut().flatten() {
            pool.publish();
        }
        self.arm_waker();
        self.flush_unsent()?;
        let has_work = !self.ready.is_empty() || !self.unsent.is_empty();
        events.extend(self.ready.drain(..));
        let is_waiting = timeout != Some(Duration::ZERO) && !has_work && self.waker.may_sleep();
        let result = self.turn(is_waiting, timeout);
        if self.unsent.is_empty() && self.ring.0.submission().is_empty() {
            // The kernel has its own copies of all message headers and addresses now.
            self.scratch.recycle();
        }
        self.reap(events);
        if self.waker.stay_awake() {
            events.push_back(Event::Woken);
        }
        result
    }

    fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    fn in_flight(&self) -> usize {
        self.slots.len() + self.ready.len()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Uring {
    /// Cancels everything and waits for the kernel to let go of it, for a bounded time. What it
    /// then still holds (pages of a zero-copy send to a peer that does not read) is leaked.
    fn drop(&mut self) {
        let end = clock::now() + DRAIN_MAX;
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        self.queue(entry.user_data(Key::Ignored.pack()));
        let mut events = VecDeque::new();
        while self.slots.len() > 0 || self.is_wake_armed || !self.unsent.is_empty() {
            let left = end.saturating_duration_since(clock::now());
            if left.is_zero()
                || self.flush_unsent().is_err()
                || self.turn(true, Some(left)).is_err()
            {
                break;
            }
            self.reap(&mut events);
            events.clear();
        }
        if self.slots.len() > 0 || self.is_wake_armed {
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(std::mem::take(&mut self.wake_count));
            self.pools.iter_mut().filter_map(Option::take).for_each(BufferRing::leak);
        }
    }
}
