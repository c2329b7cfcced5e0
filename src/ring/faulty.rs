//! A driver that makes everything happen that a kernel may do, in an order that a seed decides.
//!
//! It wraps another driver. Operations go through it late, cut short or not at all; events come
//! out shuffled, late, and sometimes as errors. What callers may rely on still holds, because they
//! do rely on it:
//! - each operation has exactly its events, a zero-copy send's [`Event::Released`] after its
//!   [`Event::Sent`];
//! - events of one tag of accepts, of receives and of sends keep their order, so a stream of bytes
//!   is never reordered; anything else may overtake anything;
//! - a datagram is whole or lost, never doubled; those of one receive come in any order;
//! - a byte of a stream is never lost or doubled: what a short receive leaves over comes with the next receive
//!   on that socket. (A socket that leaves its driver between two receives loses it: where sockets
//!   move between workers, set [`Faults::short_recv`] to zero.)
//!
//! Invariant: the same seed and the same calls make the same decisions.

use super::{Counters, Driver, Event, Handle, Op, RecvBuffer, Tag, Waker};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// How often each thing happens, as probabilities between 0 and 1.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Faults {
    /// An event is kept back for some turns.
    pub late_event: f64,
    /// An operation is kept back for some turns; cancelled meanwhile, it never starts.
    pub late_push: f64,
    /// A zero-copy send is released late; a plain one on a zero-copy request is held as well.
    pub late_release: f64,
    /// Most turns that something is kept back.
    pub turns_max: u64,
    /// A send takes only some of its bytes.
    pub short_send: f64,
    /// A receive brings only some of what has arrived.
    pub short_recv: f64,
    /// A read ends early, as if the file did.
    pub short_read: f64,
    /// A write takes only some of its bytes.
    pub short_write: f64,
    /// A datagram is lost, on its way out or in.
    pub lost_datagram: f64,
    /// A receive finds its pool empty.
    pub enobufs: f64,
    /// An operation fails: `EPIPE`, `EPERM`, `ECONNRESET`, `ECONNREFUSED`, `EMFILE`, `EIO` or `ENOSPC`. A
    /// zero-copy send may fail and still hold its memory.
    pub failure: f64,
}

impl Faults {
    /// All that correct code has to survive without losing a connection or a byte. Reads are not
    /// cut short, since that would say that a file was.
    pub fn rough() -> Faults {
        Faults {
            late_event: 0.3,
            late_push: 0.2,
            late_release: 0.5,
            turns_max: 8,
            short_send: 0.3,
            short_recv: 0.3,
            short_read: 0.0,
            short_write: 0.3,
            lost_datagram: 0.1,
            enobufs: 0.1,
            failure: 0.0,
        }
    }

    /// The same with errors: connections break and disks fail.
    pub fn hostile() -> Faults {
        Faults { short_read: 0.05, failure: 0.02, ..Faults::rough() }
    }
}

/// What an order is kept in: events, and operations, of one stream do not overtake each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stream {
    Accept(u64),
    Recv(u64),
    Send(u64),
    /// Of one receive of datagrams: its last event is its last.
    Datagrams(u64),
    /// Of one operation only.
    Alone(u64),
    /// Of the notification of one zero-copy send.
    Release(u64),
    Wake,
}

/// An operation that has not had its last event.
#[derive(Debug)]
struct Pushed {
    tag: Tag,
    stream: Stream,
    /// Of a receive: where from.
    socket: Option<Weak<OwnedFd>>,
    /// Of a send: whether zero-copy was asked for.
    zero_copy: bool,
}

/// An event on its way out; its tag is the number of the operation.
#[derive(Debug)]
struct Held {
    due: u64,
    stream: Stream,
    event: Event,
}

/// An operation on its way in.
#[derive(Debug)]
struct Late {
    due: u64,
    id: u64,
    op: Op,
}

/// A driver with faults; see the module.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    faults: Faults,
    rng: fastrand::Rng,
    turn: u64,
    next_id: u64,
    /// By number, which is the tag that the inner driver sees.
    pushed: BTreeMap<u64, Pushed>,
    late: VecDeque<Late>,
    held: VecDeque<Held>,
    /// What short receives left over, by the address of the socket's handle, which the weak share
    /// keeps from being used again.
    leftovers: BTreeMap<usize, (Weak<OwnedFd>, RecvBuffer)>,
}

impl<D: Driver> Faulty<D> {
    /// Wraps a driver; all decisions follow from `seed`.
    pub fn new(inner: D, faults: Faults, seed: u64) -> Faulty<D> {
        Faulty {
            inner,
            faults,
            rng: fastrand::Rng::with_seed(seed),
            turn: 0,
            next_id: 0,
            pushed: BTreeMap::new(),
            late: VecDeque::new(),
            held: VecDeque::new(),
            leftovers: BTreeMap::new(),
        }
    }

    /// The driver inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    /// A turn in the future, or this one.
    fn due(&mut self, probability: f64) -> u64 {
        if self.happens(probability) {
            self.turn + self.rng.u64(1..=self.faults.turns_max.max(1))
        } else {
            self.turn
        }
    }

    /// Puts an event on its way out.
    fn hold(&mut self, stream: Stream, mut event: Event) {
        self.swap_datagrams(stream, &mut event);
        let probability = match stream {
            Stream::Release(_) => self.faults.late_release,
            _ => self.faults.late_event,
        };
        let due = self.due(probability);
        self.held.push_back(Held { due, stream, event });
    }

    /// Lets a datagram change places with one that came earlier, if that is to happen.
    fn swap_datagrams(&mut self, stream: Stream, event: &mut Event) {
        let probability = self.faults.late_event;
        let Event::Datagram { result, .. } = event else { return };
        if !self.happens(probability) {
            return;
        }
        let earlier = self.held.iter_mut().filter(|held| held.stream == stream);
        let mut earlier = earlier.filter_map(|held| match &mut held.event {
            Event::Datagram { result, .. } => Some(result),
            _ => None,
        });
        if let Some(other) = earlier.next()
            && result.is_ok()
            && other.is_ok()
        {
            std::mem::swap(result, other);
        }
    }

    /// Cuts an operation short, if that is to happen.
    fn shorten(&mut self, op: &mut Op) {
        match op {
            Op::Send { batch, from, .. } => {
                let rest = batch.len().saturating_sub(*from);
                if rest > 1 && self.happens(self.faults.short_send) {
                    *batch = Rc::new(batch.prefix(*from + self.rng.usize(1..rest)));
                }
            }
            Op::Read { len, .. } if *len > 1 && self.happens(self.faults.short_read) => {
                *len = self.rng.usize(1..*len);
            }
            Op::Write { len, .. } if *len > 1 && self.happens(self.faults.short_write) => {
                *len = self.rng.usize(1..*len);
            }
            _ => {}
        }
    }

    /// Answers an operation without the inner driver, if that is to happen.
    fn refuse(&mut self, id: u64, op: &mut Op) -> Option<Event> {
        if let Op::Recv { socket, .. } = op {
            if let Some((_, rest)) = self.leftovers.remove(&address(socket)) {
                return Some(Event::Received { tag: Tag(id), result: Ok(rest) });
            }
            if self.happens(self.faults.enobufs) {
                return Some(failed(id, op, libc::ENOBUFS, false));
            }
        }
        if matches!(op, Op::ReceiveFrom { .. }) && self.happens(self.faults.enobufs) {
            return Some(failed(id, op, libc::ENOBUFS, false));
        }
        if let Op::SendTo { bytes, .. } = op
            && self.happens(self.faults.lost_datagram)
        {
            return Some(Event::SentTo { tag: Tag(id), result: Ok(bytes.len()) });
        }
        if !self.happens(self.faults.failure) {
            return None;
        }
        let (errno, held) = match op {
            Op::Accept { .. } => (libc::EMFILE, false),
            // An answer to what was sent earlier may say so to a receive.
            Op::Connect { .. } | Op::ReceiveFrom { .. } => (libc::ECONNREFUSED, false),
            Op::SendTo { .. } => (libc::EPERM, false),
            Op::Recv { .. } => (libc::ECONNRESET, false),
            Op::Send { zero_copy, .. } => (libc::EPIPE, *zero_copy && self.rng.bool()),
            Op::Read { .. } | Op::Sync { .. } => (libc::EIO, false),
            Op::Write { .. } => (libc::ENOSPC, false),
        };
        Some(failed(id, op, errno, held))
    }

    /// Takes an event from the inner driver, or a made-up one, and puts it on its way out.
    fn take_in(&mut self, mut event: Event) {
        let Some(id) = tag_of(&mut event).map(|tag| tag.0) else {
            self.hold(Stream::Wake, event);
            return;
        };
        let (stream, socket, zero_copy) = {
            let pushed = self.pushed.get(&id).expect("the inner driver answers what it was asked");
            (pushed.stream, pushed.socket.clone(), pushed.zero_copy)
        };
        match &mut event {
            Event::Received { result: Ok(buffer), .. } => {
                if let Some(socket) = socket.and_then(|socket| socket.upgrade()) {
                    self.cut_receive(&socket, buffer);
                }
            }
            Event::Datagram { result: Ok(_), last: false, .. }
                if self.happens(self.faults.lost_datagram) =>
            {
                return;
            }
            Event::Sent { held, .. }
                if !*held && zero_copy && self.happens(self.faults.late_release) =>
            {
                *held = true;
                self.hold(stream, event);
                let released = Event::Released { tag: Tag(id), copied: true };
                self.hold(Stream::Release(id), released);
                return;
            }
            Event::Released { .. } => {
                self.hold(Stream::Release(id), event);
                return;
            }
            _ => {}
        }
        self.hold(stream, event);
    }

    /// Keeps the end of a receive for the next one, if that is to happen.
    fn cut_receive(&mut self, socket: &Handle, buffer: &mut RecvBuffer) {
        let is_same = |pushed: &&Pushed| {
            let other = pushed.socket.as_ref();
            other.is_some_and(|other| other.as_ptr() == Rc::as_ptr(socket))
        };
        // With another receive in flight, its bytes would overtake the rest of these.
        let is_only = self.pushed.values().filter(is_same).count() == 1;
        if buffer.len() > 1 && is_only && self.happens(self.faults.short_recv) {
            let rest = buffer.split_off(self.rng.usize(1..buffer.len()));
            self.leftovers.insert(address(socket), (Rc::downgrade(socket), rest));
        }
    }

    /// Hands over the operations whose turn has come.
    fn push_late(&mut self) {
        let mut blocked = BTreeSet::new();
        for late in std::mem::take(&mut self.late) {
            let stream = self.pushed.get(&late.id).map(|pushed| pushed.stream);
            if late.due > self.turn || stream.is_some_and(|stream| blocked.contains(&stream)) {
                blocked.extend(stream);
                self.late.push_back(late);
            } else {
                self.start(late.id, late.op);
            }
        }
    }

    /// Hands an operation over, cut short, or answers it.
    fn start(&mut self, id: u64, mut op: Op) {
        match self.refuse(id, &mut op) {
            Some(event) => {
                let is_held = matches!(event, Event::Sent { held: true, .. });
                self.take_in(event);
                if is_held {
                    self.take_in(Event::Released { tag: Tag(id), copied: false });
                }
            }
            None => {
                self.shorten(&mut op);
                self.inner.push(Tag(id), op);
            }
        }
    }

    /// Takes out the events whose turn has come, shuffled as far as their streams allow.
    fn pick_due(&mut self) -> Vec<Event> {
        let mut due: BTreeMap<Stream, VecDeque<Event>> = BTreeMap::new();
        let mut order = Vec::new();
        let mut blocked = BTreeSet::new();
        let mut unsent = BTreeSet::new();
        for mut held in std::mem::take(&mut self.held) {
            let id = tag_of(&mut held.event).map(|tag| tag.0);
            // A release waits until its send's own event has left in an earlier turn.
            let waits_for_send = matches!(held.stream, Stream::Release(id) if unsent.contains(&id));
            if matches!(held.event, Event::Sent { held: true, .. }) {
                unsent.extend(id);
            }
            if held.due > self.turn || blocked.contains(&held.stream) || waits_for_send {
                blocked.insert(held.stream);
                self.held.push_back(held);
            } else {
                order.push(held.stream);
                due.entry(held.stream).or_default().push_back(held.event);
            }
        }
        self.rng.shuffle(&mut order);
        order.iter().filter_map(|stream| due.get_mut(stream)?.pop_front()).collect()
    }

    /// Gives an event the caller's tag back, and forgets its operation if it was the last.
    fn deliver(&mut self, mut event: Event) -> Event {
        let is_last = match &event {
            Event::Accepted { last, .. } | Event::Datagram { last, .. } => *last,
            Event::Sent { held, .. } => !held,
            _ => true,
        };
        if let Some(tag) = tag_of(&mut event) {
            let id = tag.0;
            *tag = self.pushed.get(&id).map_or(*tag, |pushed| pushed.tag);
            if is_last {
                self.pushed.remove(&id);
            }
        }
        event
    }
}

impl<D: Driver> Driver for Faulty<D> {
    fn push(&mut self, tag: Tag, op: Op) {
        let id = self.next_id;
        self.next_id += 1;
        let (stream, socket, zero_copy) = match &op {
            Op::Accept { .. } => (Stream::Accept(tag.0), None, false),
            Op::Recv { socket, .. } => (Stream::Recv(tag.0), Some(Rc::downgrade(socket)), false),
            Op::Send { zero_copy, .. } => (Stream::Send(tag.0), None, *zero_copy),
            Op::ReceiveFrom { .. } => (Stream::Datagrams(id), None, false),
            _ => (Stream::Alone(id), None, false),
        };
        self.pushed.insert(id, Pushed { tag, stream, socket, zero_copy });
        let due = self.due(self.faults.late_push);
        self.late.push_back(Late { due, id, op });
    }

    fn cancel(&mut self, tag: Tag) {
        let (cancelled, kept): (VecDeque<Late>, _) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|late| self.pushed.get(&late.id).is_some_and(|pushed| pushed.tag == tag));
        self.late = kept;
        for Late { id, mut op, .. } in cancelled {
            let event = failed(id, &mut op, libc::ECANCELED, false);
            self.take_in(event);
        }
        let ids = self.pushed.iter().filter(|(_, pushed)| pushed.tag == tag).map(|(&id, _)| id);
        for id in ids {
            self.inner.cancel(Tag(id));
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, events: &mut VecDeque<Event>) -> io::Result<()> {
        self.turn += 1;
        self.leftovers.retain(|_, (socket, _)| socket.strong_count() > 0);
        self.push_late();
        let has_work = !self.late.is_empty() || !self.held.is_empty();
        let timeout = if has_work { Some(Duration::ZERO) } else { timeout };
        let mut fresh = VecDeque::new();
        self.inner.wait(timeout, &mut fresh)?;
        for event in fresh {
            self.take_in(event);
        }
        for event in self.pick_due() {
            let event = self.deliver(event);
            events.push_back(event);
        }
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.pushed.len()
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
}

/// What a socket is told apart by.
fn address(socket: &Handle) -> usize {
    Rc::as_ptr(socket).addr()
}

/// The tag of an event, if it has one.
fn tag_of(event: &mut Event) -> Option<&mut Tag> {
    match event {
        Event::Accepted { tag, .. }
        | Event::Connected { tag, .. }
        | Event::Received { tag, .. }
        | Event::Datagram { tag, .. }
        | Event::SentTo { tag, .. }
        | Event::Sent { tag, .. }
        | Event::Released { tag, .. }
        | Event::Read { tag, .. }
        | Event::Written { tag, .. }
        | Event::Synced { tag, .. } => Some(tag),
        Event::Woken => None,
    }
}

/// The event of an operation that failed before it began.
fn failed(id: u64, op: &mut Op, errno: i32, held: bool) -> Event {
    let tag = Tag(id);
    let error = io::Error::from_raw_os_error(errno);
    match op {
        Op::Accept { .. } => Event::Accepted { tag, result: Err(error), last: true },
        Op::Connect { .. } => Event::Connected { tag, result: Err(error) },
        Op::Recv { .. } => Event::Received { tag, result: Err(error) },
        Op::ReceiveFrom { .. } => Event::Datagram { tag, result: Err(error), last: true },
        Op::SendTo { .. } => Event::SentTo { tag, result: Err(error) },
        Op::Send { .. } => Event::Sent { tag, result: Err(error), held },
        Op::Read { buffer, .. } => {
            Event::Read { tag, result: Err(error), buffer: std::mem::take(buffer) }
        }
        Op::Write { .. } => Event::Written { tag, result: Err(error) },
        Op::Sync { .. } => Event::Synced { tag, result: Err(error) },
    }
}
