//! One connection as its worker holds it: socket, phase, what is on its way out.
//!
//! Plain state; the rooms beside this one act on it. Invariant: what the kernel reads or writes
//! belongs to the ring's operations, so a connection can be dropped at any time.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use super::admission::Place;
use super::in_place::BlockBuffer;
use super::table::Key;
use crate::mse::{Ciphers, Established, Initiator, Job, Responder};
use crate::ring::{Batch, Handle};
use crate::swarm::PeerKey;
use crate::units::{Block, InfoHash};
use crate::wire::{Decoder, HandshakeReader, Progress};

/// A send is kept between these lengths, in bytes: long enough to be cheap, and short enough that
/// the pages it names are still in memory when a slow peer gets to them.
pub(super) const SEND_LEN_MIN: usize = 64 * 1024;
/// See [`SEND_LEN_MIN`].
pub(super) const SEND_LEN_MAX: usize = 1024 * 1024;

/// What a connection is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// A torrent.
    Torrent(Key),
    /// One of which no more than the info-hash is known.
    Magnet(Key),
}

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// We asked for it; the kernel has not answered yet.
    Connecting {
        /// The torrent we want to talk about.
        torrent: Subject,
    },
    /// Somebody connected; its handshake is not whole yet.
    Incoming(HandshakeReader),
    /// We connected and sent our handshake; the answer is not whole yet.
    Outgoing {
        /// The torrent we want to talk about.
        torrent: Subject,
        /// The answer so far.
        reader: HandshakeReader,
    },
    /// Both handshakes are done.
    Peer(Peer),
    /// Both handshakes are done, and metadata is all that can be talked about.
    Magnet(MagnetPeer),
}

impl Phase {
    /// Whether both handshakes are done.
    pub(super) fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_) | Self::Magnet(_))
    }
}

/// The exchange that an encrypted connection begins with.
#[derive(Debug)]
pub(super) enum Exchange {
    /// Somebody connected to us.
    Responder(Responder),
    /// We connected.
    Initiator(Initiator),
}

impl Exchange {
    /// Work for another thread.
    pub(super) fn poll_job(&mut self) -> Option<Job> {
        match self {
            Self::Responder(it) => it.poll_job(),
            Self::Initiator(it) => it.poll_job(),
        }
    }

    /// What is to be sent.
    pub(super) fn poll_transmit(&mut self) -> Vec<u8> {
        match self {
            Self::Responder(it) => it.poll_transmit(),
            Self::Initiator(it) => it.poll_transmit(),
        }
    }

    /// The stream, once it is there.
    pub(super) fn poll_established(&mut self) -> Option<Established> {
        match self {
            Self::Responder(it) => it.poll_established(),
            Self::Initiator(it) => it.poll_established(),
        }
    }
}

/// How a connection that we make begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    /// With an exchange, and not with a handshake.
    pub(super) is_encrypted: bool,
    /// If the peer closes before it has said anything, the other way is tried.
    pub(super) has_other: bool,
}

/// A connection whose handshakes are done.
#[derive(Debug)]
pub(super) struct Peer {
    /// The torrent.
    pub(super) torrent: Key,
    /// What the swarm calls it.
    pub(super) key: PeerKey,
    /// Finds messages in what arrives.
    pub(super) decoder: Decoder,
    /// The block whose data is arriving, and where it goes.
    pub(super) arriving: Option<(Block, Arrival)>,
    /// Blocks that are due to the peer and not in a batch yet, in its order.
    pub(super) due: VecDeque<Block>,
}

impl Peer {
    /// A peer that has sent no block yet.
    pub(super) fn new(torrent: Key, key: PeerKey, decoder: Decoder) -> Self {
        Self { torrent, key, decoder, arriving: None, due: VecDeque::new() }
    }
}

/// A connection whose handshakes are done, about a torrent without metadata.
#[derive(Debug)]
pub(super) struct MagnetPeer {
    /// The torrent.
    pub(super) magnet: Key,
    /// What its machine calls the peer.
    pub(super) key: PeerKey,
    /// Finds messages in what arrives.
    pub(super) decoder: Decoder,
}

/// Where the data of an arriving block goes.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Nowhere: we do not want it.
    Unwanted,
    /// To the rest of its piece.
    InMemory,
    /// Here, until it is whole; then to the disk.
    InPlace(BlockBuffer),
}

/// A batch on its way out.
#[derive(Debug)]
pub(super) struct Sending {
    /// What is being sent.
    pub(super) batch: Rc<Batch>,
    /// Bytes of it that the kernel has taken.
    pub(super) sent: usize,
    /// Bytes of block data in it that have not been counted as sent.
    pub(super) payload_left: u64,
    /// Those among them that were read into memory, not mapped.
    pub(super) read_left: u64,
    /// When its first byte was offered.
    pub(super) since: Instant,
    /// When the kernel last took something of it.
    pub(super) moved_at: Instant,
}

impl Sending {
    /// The kernel has taken `count` more bytes. Returns those of block data among them, and those
    /// of these that were read into memory.
    pub(super) fn advance(&mut self, count: usize, now: Instant) -> (u64, u64) {
        self.sent += count;
        self.moved_at = now;
        let payload = self.payload_left.min(count as u64);
        self.payload_left -= payload;
        let read = self.read_left.min(payload);
        self.read_left -= read;
        (payload, read)
    }
}

/// Whether sends ask the kernel to do without a copy. It answers per send whether it could.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ZeroCopy {
    /// No: local peer, old kernel, or it copied after all.
    Off,
    /// Being tried; this many answers are still awaited before it is believed.
    Trying(u8),
    /// Yes.
    On,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    /// The socket, shared with the operations in flight on it.
    pub(super) socket: Handle,
    /// The other side.
    pub(super) addr: SocketAddr,
    /// How far it is.
    pub(super) phase: Phase,
    /// Its place among the incoming handshakes, if it has one.
    pub(super) place: Option<Place>,
    /// How we began it, if we did.
    pub(super) way: Option<Way>,
    /// The exchange before the handshake, while it lasts.
    pub(super) exchange: Option<Box<Exchange>>,
    /// Whether anything came of an exchange.
    pub(super) has_heard: bool,
    /// The torrent that an exchange was about.
    pub(super) about: Option<InfoHash>,
    /// The ciphers of an encrypted stream.
    pub(super) ciphers: Option<Box<Ciphers>>,
    /// Whether a receive is in flight.
    pub(super) receiving: bool,
    /// Bytes to send before anything else, as they go out: of the exchange, and our handshake.
    pub(super) outbox: Vec<u8>,
    /// The batch in flight.
    pub(super) sending: Option<Sending>,
    /// Whether it is on the list of those with something to send.
    pub(super) is_dirty: bool,
    /// Longest batch worth making for it now, in bytes.
    pub(super) send_len_max: usize,
    /// Whether sends ask to do without a copy.
    pub(super) zero_copy: ZeroCopy,
    /// Bytes of zero-copy sends that the kernel still holds, in all and per send, oldest first.
    pub(super) held_len: usize,
    /// See `held_len`.
    pub(super) held: VecDeque<usize>,
    /// Whether a timer watches that the peer takes what is sent.
    pub(super) is_stall_watched: bool,
    /// Whether it is on the list of those that found no memory for a cold read.
    pub(super) is_starved: bool,
    /// Whether a timer watches for progress inside a message.
    pub(super) is_watched: bool,
    /// Whether we do not receive, because too much is on its way to the disk.
    pub(super) is_paused: bool,
    /// Whether it was so since that timer was set: then a lack of progress is ours.
    pub(super) is_excused: bool,
    /// When that last ended.
    pub(super) resumed_at: Option<Instant>,
}

impl Conn {
    /// A connection in its first phase.
    pub(super) fn new(socket: Handle, addr: SocketAddr, phase: Phase) -> Self {
        Self {
            socket,
            addr,
            phase,
            place: None,
            way: None,
            exchange: None,
            has_heard: false,
            about: None,
            ciphers: None,
            receiving: false,
            outbox: Vec::new(),
            sending: None,
            is_dirty: false,
            send_len_max: 4 * SEND_LEN_MIN,
            zero_copy: ZeroCopy::Off,
            held_len: 0,
            held: VecDeque::new(),
            is_stall_watched: false,
            is_starved: false,
            is_watched: false,
            is_paused: false,
            is_excused: false,
            resumed_at: None,
        }
    }

    /// Whether the handshake is yet to come, and nothing has come of it or of an exchange.
    pub(super) fn has_heard_nothing(&self) -> bool {
        match &self.phase {
            Phase::Outgoing { reader, .. } => reader.taken().is_empty() && !self.has_heard,
            _ => false,
        }
    }

    /// Adds bytes of the stream to what goes out first.
    pub(super) fn push_first(&mut self, bytes: &[u8]) {
        let start = self.outbox.len();
        self.outbox.extend_from_slice(bytes);
        if let Some(ciphers) = &mut self.ciphers {
            ciphers.outgoing.apply(&mut self.outbox[start..]);
        }
    }

    /// Since when a block has been arriving that is written in place and that we have taken all the
    /// while; `None` while it is we who do not take it.
    pub(super) fn arriving_since(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Peer(peer) if !self.is_paused => match &peer.arriving {
                Some((_, Arrival::InPlace(buffer))) => {
                    Some(self.resumed_at.map_or(buffer.since(), |at| at.max(buffer.since())))
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// How far a message has come that is under way.
    pub(super) fn progress(&self) -> Option<Progress> {
        match &self.phase {
            Phase::Peer(peer) => peer.decoder.progress(),
            Phase::Magnet(peer) => peer.decoder.progress(),
            _ => None,
        }
    }

    /// The peer, once both handshakes are done.
    pub(super) fn peer(&mut self) -> Option<&mut Peer> {
        match &mut self.phase {
            Phase::Peer(peer) => Some(peer),
            _ => None,
        }
    }
}
