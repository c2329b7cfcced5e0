//! UDP, at the worker that is the home of its sockets.
//!
//! Datagrams from the network, and those that other threads want sent, enter; what came leaves to
//! the control thread with its sender, the number of its socket and its kind, which its content
//! tells, so that all protocols share the sockets. Invariant: the worker never waits for a queue:
//! what finds one full is dropped and counted.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;

use super::mailbox::Mailbox;
use super::table::Table;
use super::target::Target;
use super::{Timer, Worker};
use crate::metrics::{DatagramDrop, DatagramKind, Direction};
use crate::ring::{Datagram, Driver, Handle, Op, Pool, Tag};
use crate::tracker::udp::is_reply;

/// The worker that has the sockets.
pub const HOME: usize = 0;

/// Datagrams that may wait for the control thread.
pub const ARRIVALS_MAX: usize = 4096;

/// Datagrams that may wait for the worker to send them.
pub const DEPARTURES_MAX: usize = 4096;

/// Datagrams that are begun to be sent in one turn. (Those that come in one are bounded by the
/// buffers of their pool.)
const DEPARTURES_PER_TURN: usize = 64;

/// Datagrams that the kernel may hold on their way out.
const SENDS_MAX: usize = 256;

/// How long receiving pauses after an error that is none of a datagram's.
const RECEIVE_PAUSE: Duration = Duration::from_secs(1);

/// What an earlier datagram of ours may have met; the next receive is not concerned.
const OF_EARLIER: [i32; 4] =
    [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ENETUNREACH];

/// What a datagram is: a bencoded dictionary is of the DHT (BEP 5); one that begins with the
/// number of an action, 0 to 3, is a UDP tracker's answer (BEP 15). One of uTP (BEP 29) begins
/// with a byte that ends in version 1, and so is neither.
pub fn kind_of(bytes: &[u8]) -> DatagramKind {
    match bytes {
        [b'd', .., b'e'] => DatagramKind::Dht,
        _ if is_reply(bytes) => DatagramKind::Tracker,
        _ => DatagramKind::Unknown,
    }
}

/// A datagram that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// The number of the socket that it came to, in the order of [`Udp::addrs`].
    pub socket: usize,
    /// Who sent it, or whom the sender pretends to be.
    pub from: SocketAddr,
    /// What it is.
    pub kind: DatagramKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A datagram that is to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Departure {
    /// The number of the socket that it leaves through; `None` for one that reaches `to`.
    pub socket: Option<usize>,
    /// Where to.
    pub to: SocketAddr,
    /// What it is, for whoever counts.
    pub kind: DatagramKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why a datagram is not sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unsent {
    /// Too many wait already; here it is again.
    #[error("too many datagrams wait to be sent")]
    Full(Departure),
    /// No socket of ours reaches such an address.
    #[error("no UDP socket of ours reaches {0}")]
    Unreachable(SocketAddr),
}

/// What both ends see.
#[derive(Default, Debug)]
struct Door {
    /// Nothing is sent any more.
    is_closed: AtomicBool,
    /// Nothing is received: the kernel cannot do it as we ask.
    is_deaf: AtomicBool,
    /// Departures that were dropped before they reached the worker.
    full_count: AtomicU64,
    unreachable_count: AtomicU64,
}

/// The way out for datagrams, for other threads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Udp {
    addrs: Arc<[SocketAddr]>,
    departures: SyncSender<Departure>,
    mailboxes: Arc<OnceLock<Vec<Mailbox>>>,
    door: Arc<Door>,
}

/// The worker's end: the sockets, and its sides of the queues.
#[derive(Debug)]
pub struct WorkerEnd {
    sockets: Vec<OwnedFd>,
    arrivals: mpsc::Sender<Arrival>,
    departures: Receiver<Departure>,
    door: Arc<Door>,
}

/// The two ends of the queues between the worker that is to have `sockets`, each with the address
/// that it is bound to, and other threads: their way out, and where arrivals come out.
pub fn ends(
    sockets: Vec<(SocketAddr, OwnedFd)>,
    mailboxes: Arc<OnceLock<Vec<Mailbox>>>,
) -> (WorkerEnd, Udp, mpsc::Receiver<Arrival>) {
    let (arrivals, arrived) = mpsc::channel(ARRIVALS_MAX);
    let (departures, departing) = sync_channel(DEPARTURES_MAX);
    let door = Arc::<Door>::default();
    let (addrs, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    let end = WorkerEnd { sockets, arrivals, departures: departing, door: Arc::clone(&door) };
    (end, Udp { addrs: addrs.into(), departures, mailboxes, door }, arrived)
}

impl Udp {
    /// The addresses of the sockets, in the order of their numbers.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Whether there is a socket for IPv4 (true) or IPv6 (false).
    pub fn reaches(&self, is_ipv4: bool) -> bool {
        self.addrs.iter().any(|addr| addr.is_ipv4() == is_ipv4)
    }

    /// Whether a question sent to `to` and its answer have a way.
    pub fn has_way(&self, to: SocketAddr) -> bool {
        !self.door.is_deaf.load(Relaxed) && choose(&self.addrs, to).is_some()
    }

    /// Sends a datagram through a socket that reaches `to`.
    ///
    /// # Errors
    /// [`Unsent`]; the datagram is dropped and counted.
    pub fn send(&self, kind: DatagramKind, to: SocketAddr, bytes: Vec<u8>) -> Result<(), Unsent> {
        let sent = self.offer(Departure { socket: None, to, kind, bytes });
        if matches!(sent, Err(Unsent::Full(_))) {
            self.door.full_count.fetch_add(1, Relaxed);
        }
        sent
    }

    /// Sends a datagram, or gives it back for another try; only one that can never be sent is
    /// counted.
    ///
    /// # Errors
    /// [`Unsent`].
    pub fn offer(&self, mut departure: Departure) -> Result<(), Unsent> {
        let to = departure.to;
        let socket = match departure.socket {
            Some(index) => (index < self.addrs.len()).then_some(index),
            None => choose(&self.addrs, to),
        };
        if socket.is_none() {
            self.door.unreachable_count.fetch_add(1, Relaxed);
            return Err(Unsent::Unreachable(to));
        }
        let wanted = std::mem::replace(&mut departure.socket, socket);
        match self.departures.try_send(departure) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(it) | TrySendError::Disconnected(it)) => {
                Err(Unsent::Full(Departure { socket: wanted, ..it }))
            }
        }
    }

    /// Says that all was said: what waits is still sent, then the worker may end.
    pub fn close(&self) {
        self.door.is_closed.store(true, Release);
        self.wake();
    }

    fn wake(&self) {
        let home = self.mailboxes.get().and_then(|mailboxes| mailboxes.get(HOME));
        home.into_iter().for_each(Mailbox::wake);
    }
}

/// The socket for an address: of its family, and not one of loopback for others.
fn choose(addrs: &[SocketAddr], to: SocketAddr) -> Option<usize> {
    let is_near = to.ip().is_loopback();
    let reaches = |addr: &&SocketAddr| {
        addr.is_ipv4() == to.is_ipv4() && (is_near || !addr.ip().is_loopback())
    };
    let fits = |addr: &SocketAddr| reaches(&addr) && addr.ip().is_loopback() == is_near;
    let best = addrs.iter().position(fits);
    best.or_else(|| addrs.iter().position(|addr| reaches(&addr)))
}

/// What the worker keeps; nothing at those that are not the home of the sockets.
#[derive(Default)]
pub(super) struct Datagrams {
    sockets: Vec<Handle>,
    queues: Option<Queues>,
    sends: Table<Send>,
    /// There may be more departures than the last turn took.
    more_wait: bool,
    /// Nothing more will be sent, and nothing waits.
    is_drained: bool,
}

struct Queues {
    arrivals: mpsc::Sender<Arrival>,
    departures: Receiver<Departure>,
    door: Arc<Door>,
}

/// A datagram that the kernel has.
struct Send {
    to: SocketAddr,
    kind: DatagramKind,
}

impl Datagrams {
    /// Whether departures wait that a turn would begin to send.
    pub(super) fn has_more(&self) -> bool {
        self.more_wait
    }

    /// Whether the worker may end as far as datagrams go.
    pub(super) fn is_done(&self) -> bool {
        self.queues.is_none() || (self.is_drained && self.sends.is_empty())
    }
}

impl<D: Driver> Worker<D> {
    /// Makes the worker the home of the UDP sockets.
    #[must_use]
    pub fn with_datagrams(mut self, end: WorkerEnd) -> Self {
        let WorkerEnd { sockets, arrivals, departures, door } = end;
        self.datagrams.sockets = sockets.into_iter().map(Rc::new).collect();
        self.datagrams.queues = Some(Queues { arrivals, departures, door });
        // What was put in before there was anybody to wake.
        self.datagrams.more_wait = true;
        self
    }

    /// Receives on every socket until it is told otherwise.
    pub(super) fn receive_all_datagrams(&mut self) {
        for index in 0..self.datagrams.sockets.len() {
            self.receive_datagrams(index);
        }
    }

    /// Receives on a socket until it is told otherwise.
    pub(super) fn receive_datagrams(&mut self, index: usize) {
        if let Some(socket) = self.datagrams.sockets.get(index).map(Rc::clone) {
            let op = Op::ReceiveFrom { socket, pool: Pool::Datagrams };
            self.operate(Target::Datagrams(index), op);
        }
    }

    pub(super) fn on_datagram(&mut self, tag: Tag, result: io::Result<Datagram>, last: bool) {
        let Some(Target::Datagrams(index)) = Target::of(tag) else { return };
        let error = match result {
            Ok(datagram) => {
                self.take_datagram(index, &datagram);
                None
            }
            Err(error) => Some(error),
        };
        match error.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EMSGSIZE) => self.core.udp_dropped[DatagramDrop::TooLong].add(1),
            Some(libc::ENOBUFS) => self.core.buffer_exhausted.add(1),
            Some(libc::EINVAL) => {
                tracing::warn!("UDP is off: this kernel is older than Linux 6.0");
                if let Some(queues) = &self.datagrams.queues {
                    queues.door.is_deaf.store(true, Relaxed);
                }
                return;
            }
            _ => {}
        }
        let is_lasting = error.as_ref().is_some_and(|error| {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            !OF_EARLIER.contains(&code) && ![libc::EMSGSIZE, libc::ENOBUFS].contains(&code)
        });
        if last && is_lasting {
            tracing::debug!(?error, "no datagrams can be received for a moment");
            self.timers.set(self.now + RECEIVE_PAUSE, Timer::Datagrams(index));
        } else if last {
            self.receive_datagrams(index);
        }
    }

    /// Counts a datagram and hands it over, if it is of a kind that is known.
    fn take_datagram(&mut self, socket: usize, datagram: &Datagram) {
        let kind = kind_of(&datagram.bytes);
        self.core.udp_datagrams[(Direction::Incoming, kind)].add(1);
        self.core.udp_bytes[(Direction::Incoming, kind)].add(datagram.bytes.len() as u64);
        if kind == DatagramKind::Unknown {
            self.core.udp_dropped[DatagramDrop::Unknown].add(1);
            return;
        }
        let Some(queues) = &self.datagrams.queues else { return };
        match queues.arrivals.try_reserve() {
            Ok(place) => place.send(Arrival {
                socket,
                from: datagram.from,
                kind,
                bytes: datagram.bytes.to_vec(),
            }),
            Err(_) => self.core.udp_dropped[DatagramDrop::QueueIn].add(1),
        }
    }

    /// Begins to send what other threads want sent.
    pub(super) fn send_datagrams(&mut self) {
        let Some(queues) = &self.datagrams.queues else { return };
        // Looked at first: what was put in before it was set is found below.
        let is_closed = queues.door.is_closed.load(Acquire);
        for _ in 0..DEPARTURES_PER_TURN {
            if self.datagrams.sends.len() >= SENDS_MAX {
                // The end of a send makes another turn.
                self.datagrams.more_wait = false;
                return;
            }
            let Some(queues) = &self.datagrams.queues else { return };
            let Ok(departure) = queues.departures.try_recv() else {
                self.datagrams.more_wait = false;
                self.datagrams.is_drained = is_closed;
                return;
            };
            self.send_datagram(departure);
        }
        self.datagrams.more_wait = true;
    }

    fn send_datagram(&mut self, departure: Departure) {
        let Departure { socket, to, kind, bytes } = departure;
        let socket = socket.and_then(|index| self.datagrams.sockets.get(index)).map(Rc::clone);
        if let Some(socket) = socket {
            let key = self.datagrams.sends.insert(Send { to, kind });
            self.operate(Target::SendTo(key), Op::SendTo { socket, to, bytes });
        }
    }

    pub(super) fn on_sent_to(&mut self, tag: Tag, result: io::Result<usize>) {
        let Some(Target::SendTo(key)) = Target::of(tag) else { return };
        let Some(Send { to, kind }) = self.datagrams.sends.remove(key) else { return };
        match result {
            Ok(len) => {
                self.core.udp_datagrams[(Direction::Outgoing, kind)].add(1);
                self.core.udp_bytes[(Direction::Outgoing, kind)].add(len as u64);
            }
            Err(error) => {
                tracing::debug!(%to, %error, "a datagram could not be sent");
                self.core.udp_dropped[DatagramDrop::Send].add(1);
            }
        }
    }

    /// Takes over what was counted at the other end.
    pub(super) fn count_datagrams(&self) {
        if let Some(Queues { door, .. }) = &self.datagrams.queues {
            self.core.udp_dropped[DatagramDrop::QueueOut].set(door.full_count.load(Relaxed));
            let unreachable = door.unreachable_count.load(Relaxed);
            self.core.udp_dropped[DatagramDrop::NoSocket].set(unreachable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_told_apart_by_their_content() {
        let kinds: [(&[u8], DatagramKind); 14] = [
            (b"d1:q4:ping1:t2:aa1:y1:qe", DatagramKind::Dht),
            (b"de", DatagramKind::Dht),
            (b"d", DatagramKind::Unknown),
            (b"d1:q4:ping", DatagramKind::Unknown),
            (b"le", DatagramKind::Unknown),
            (b"", DatagramKind::Unknown),
            (&[0; 16], DatagramKind::Tracker),
            (&[0, 0, 0, 1, 1, 2, 3, 4, 0, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], DatagramKind::Tracker),
            (b"\0\0\0\x03abcd", DatagramKind::Tracker),
            (b"\0\0\0\x03abc", DatagramKind::Unknown),
            (b"\0\0\0\x04abcdefghijkl", DatagramKind::Unknown),
            (b"\0\0\x01\0abcdefghijkl", DatagramKind::Unknown),
            // uTP: data and SYN.
            (b"\x01\0\0\0abcdefghijklmnop", DatagramKind::Unknown),
            (b"A\0\0\0abcdefghijklmnop", DatagramKind::Unknown),
        ];
        for (bytes, kind) in kinds {
            assert_eq!(kind_of(bytes), kind, "{bytes:?}");
        }
    }

    #[test]
    fn a_datagram_leaves_through_a_socket_that_reaches_its_receiver() {
        let addrs = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let to = |text: &str| text.parse::<SocketAddr>().unwrap();
        let everywhere = addrs(&["0.0.0.0:5", "[::]:5"]);
        assert_eq!(choose(&everywhere, to("1.2.3.4:5")), Some(0));
        assert_eq!(choose(&everywhere, to("127.0.0.1:5")), Some(0));
        assert_eq!(choose(&everywhere, to("[::1]:5")), Some(1));
        let both = addrs(&["127.0.0.1:5", "10.0.0.1:5"]);
        assert_eq!(choose(&both, to("1.2.3.4:5")), Some(1));
        assert_eq!(choose(&both, to("127.0.0.1:5")), Some(0));
        assert_eq!(choose(&both[..1], to("1.2.3.4:5")), None);
        assert_eq!(choose(&both[1..], to("127.0.0.1:5")), Some(0));
        assert_eq!(choose(&both, to("[::1]:5")), None);
    }
}
