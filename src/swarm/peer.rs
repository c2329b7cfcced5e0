//! One connected peer as the swarm sees it, and why one is refused or closed.
//!
//! Plain state and its vocabulary; the rules are in the files beside this one. Invariant: every
//! list here is bounded by a constant of [`super::options`], and an idle peer holds no heap memory
//! but its pieces.
#![forbid(unsafe_code)]

use super::contacts::Source;
use super::options::{REFUSED_MAX, REQQ_DEFAULT, REQUESTS_OUT_MAX};
use super::partial::Origin;
use super::pex::{PexIn, PexOut};
use super::pipeline::Pipeline;
use super::queue::RequestQueue;
use super::throttle::Wait;
use crate::rate::Meter;
use crate::units::{Bitfield, Block, PeerId, PieceIndex};
use crate::wire::Message;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

/// A connected peer of one swarm: valid until `handle_disconnected` returns, then used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey(pub u32);

/// What a handshake told of a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerInit {
    /// Where it is.
    pub addr: SocketAddr,
    /// How it names itself.
    pub peer_id: PeerId,
    /// Both sides have the Fast extension (BEP 6).
    pub fast: bool,
    /// Both sides have the extension protocol (BEP 10).
    pub extensions: bool,
    /// Both sides have a node of the DHT (BEP 5).
    pub dht: bool,
    /// We connected to it.
    pub outgoing: bool,
}

/// Why a peer is not taken in; the caller closes the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// A connection with this peer is open already.
    #[error("the peer is connected already")]
    Duplicate,
    /// It has our own peer id.
    #[error("the peer is ourselves")]
    Ourselves,
    /// Its address is banned.
    #[error("the address is banned")]
    Banned,
    /// The blocklist names its address.
    #[error("the blocklist names the address")]
    Blocked,
    /// All places are taken.
    #[error("the torrent has as many connections as it may have")]
    Full,
    /// As many peers of this host are connected as may be.
    #[error("the host has as many connections as it may have")]
    FullForAddress,
    /// Loopback and private addresses are not welcome here.
    #[error("the address is local, and net.allow_local does not open it")]
    LocalAddress,
    /// A private torrent, and the peer was not learnt from a tracker.
    #[error("the torrent is private, and the peer was not learnt from a tracker")]
    Private,
}

impl Refused {
    /// The name of the reason in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Duplicate => "duplicate",
            Self::Ourselves => "ourselves",
            Self::Banned => "banned",
            Self::Blocked => "blocked",
            Self::Full => "full",
            Self::FullForAddress => "full_for_address",
            Self::LocalAddress => "local_address",
            Self::Private => "private",
        }
    }
}

/// Why a connection ends: returned where the peer broke a rule, or inside `Action::Close`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// A bitfield of the wrong size or with spare bits set, or a late word that it has nothing.
    #[error("the bitfield has the wrong size, has spare bits, or takes pieces back")]
    BadBitfield,
    /// A piece index that the torrent does not have.
    #[error("the piece index is out of range")]
    BadPiece,
    /// A request whose range lies outside its piece.
    #[error("the request lies outside its piece")]
    BadRequest,
    /// A message of an extension that the handshake did not agree on.
    #[error("the message belongs to an extension that was not negotiated")]
    NotNegotiated,
    /// An extension handshake that is not one.
    #[error("the extension handshake cannot be read")]
    BadHandshake,
    /// A message about metadata that is none, or contradicts what the peer said before.
    #[error("the ut_metadata message cannot be read or contradicts an earlier one")]
    BadMetadata,
    /// A message of peer exchange that is none.
    #[error("the ut_pex message cannot be read")]
    BadPex,
    /// Messages of peer exchange come too often.
    #[error("ut_pex messages come more often than once a minute")]
    PexFlood,
    /// A private torrent, and the peer was not learnt from a tracker.
    #[error("the torrent is private, and the peer was not learnt from a tracker")]
    Private,
    /// Too many requests that cannot be served.
    #[error("too many requests that cannot be served")]
    InvalidRequests,
    /// Too many requests although we choke it.
    #[error("too many requests while choked")]
    RequestsWhileChoked,
    /// Too many blocks that were not asked for.
    #[error("too many blocks that nobody asked for")]
    Unrequested,
    /// Rejects everything it is asked for.
    #[error("too many rejects")]
    Rejects,
    /// Choke or interest changes too often.
    #[error("choke or interest changes too often")]
    StateFlood,
    /// Too many messages without use.
    #[error("too many messages of no use")]
    NuisanceFlood,
    /// Takes back what it asks for, again and again.
    #[error("requests are made and taken back too often")]
    CancelFlood,
    /// Control messages pile up because it does not read.
    #[error("the peer does not read")]
    NotReading,
    /// A block was begun and did not come through.
    #[error("a block that was begun did not come through in time")]
    BlockStalled,
    /// Leaves out blocks that it was asked for.
    #[error("too many blocks were left out")]
    Withholding,
    /// Nothing was heard for too long.
    #[error("nothing was heard of the peer for too long")]
    Inactive,
    /// Nothing has moved for long, and others want the place.
    #[error("nothing has moved for long, and others want the place")]
    Idle,
    /// More was said before the metadata came than could be kept.
    #[error("the peer is met again, because not all that it said could be kept")]
    Forgotten,
    /// Both sides have everything, or want no more.
    #[error("both sides have everything that they want")]
    NothingToTrade,
    /// The blocklist names it now.
    #[error("the blocklist names the address")]
    Blocked,
    /// It sent wrong data.
    #[error("the peer sent wrong data and is banned")]
    Banned,
    /// Another connection with the same peer took its place.
    #[error("another connection with the same peer took over")]
    Replaced,
}

impl Error {
    /// The name of the reason in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::BadBitfield => "bad_bitfield",
            Self::BadPiece => "bad_piece",
            Self::BadRequest => "bad_request",
            Self::NotNegotiated => "not_negotiated",
            Self::BadHandshake => "bad_handshake",
            Self::BadMetadata => "bad_metadata",
            Self::BadPex => "bad_pex",
            Self::PexFlood => "pex_flood",
            Self::Private => "private",
            Self::InvalidRequests => "invalid_requests",
            Self::RequestsWhileChoked => "requests_while_choked",
            Self::Unrequested => "unrequested",
            Self::Rejects => "rejects",
            Self::StateFlood => "state_flood",
            Self::NuisanceFlood => "nuisance_flood",
            Self::CancelFlood => "cancel_flood",
            Self::NotReading => "not_reading",
            Self::BlockStalled => "block_stalled",
            Self::Withholding => "withholding",
            Self::Inactive => "inactive",
            Self::Idle => "idle",
            Self::Forgotten => "forgotten",
            Self::NothingToTrade => "nothing_to_trade",
            Self::Blocked => "blocked",
            Self::Banned => "banned",
            Self::Replaced => "replaced",
        }
    }
}

/// What a peer has.
pub(super) enum Pieces {
    None,
    Some(Bitfield),
    All,
}

impl Pieces {
    pub(super) fn has(&self, piece: PieceIndex) -> bool {
        match self {
            Self::None => false,
            Self::Some(pieces) => pieces.has(piece),
            Self::All => true,
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::None => false,
            Self::Some(pieces) => pieces.is_complete(),
            Self::All => true,
        }
    }

    pub(super) fn count(&self, piece_count: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::Some(pieces) => pieces.count(),
            Self::All => piece_count,
        }
    }
}

/// A block that the peer was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) block: Block,
    pub(super) at: Instant,
    pub(super) number: u64,
}

pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    pub(super) id: PeerId,
    pub(super) source: Source,
    pub(super) fast: bool,
    pub(super) extensions: bool,
    /// Both sides have a node of the DHT, and it has not said yet where its own is.
    pub(super) dht: bool,
    pub(super) outgoing: bool,
    pub(super) connected_at: Instant,
    pub(super) tie: u64,
    /// A close was ordered: nothing it says counts, nothing is sent.
    pub(super) closing: bool,
    /// `Transmit` waits among the actions.
    pub(super) transmit_due: bool,
    pub(super) up_wait: Wait,
    pub(super) down_wait: Wait,

    pub(super) am_choking: bool,
    pub(super) am_interested: bool,
    pub(super) peer_choking: bool,
    /// When it last unchoked us, and whether it has since and that is not taken up yet.
    pub(super) peer_unchoked_at: Option<Instant>,
    pub(super) unchoke_due: bool,
    pub(super) peer_interested: bool,
    pub(super) optimistic: bool,
    pub(super) unchoked_at: Option<Instant>,
    pub(super) choked_at: Option<Instant>,
    pub(super) waiting_since: Option<Instant>,
    pub(super) uploaded_in_turn: u64,
    pub(super) uploaded_recently: u64,

    pub(super) pieces: Pieces,
    /// Pieces that it has and that we want and lack, unless it has all.
    pub(super) wanted: u32,
    pub(super) spoke: bool,
    pub(super) upload_only: bool,
    pub(super) reqq: u32,
    /// Its id for `ut_metadata`; 0 if it has none.
    pub(super) metadata_id: u8,
    /// Blocks of metadata that it waits for, and bytes that it was promised so far.
    pub(super) metadata_due: VecDeque<u32>,
    pub(super) metadata_served: u64,
    /// The TCP port under which it says that it listens.
    pub(super) listen_port: Option<u16>,
    pub(super) pex_in: PexIn,
    pub(super) pex_out: PexOut,

    pub(super) control: Vec<u8>,
    pub(super) queue: RequestQueue,
    pub(super) fast_set: Vec<PieceIndex>,
    pub(super) fast_sent: u64,

    pub(super) asked: VecDeque<Asked>,
    pub(super) asked_count: u64,
    /// Highest number among the requests that were answered.
    pub(super) answered: u64,
    /// Blocks that were taken back but may still arrive.
    pub(super) late: VecDeque<Block>,
    /// Pieces that it rejected or left out of late: not asked of it for a while.
    pub(super) refused: Vec<PieceIndex>,
    pub(super) withheld: usize,
    pub(super) receiving: Option<(Block, Instant)>,
    /// Since when nothing is received from it because our disk does not keep up.
    pub(super) paused_at: Option<Instant>,
    /// The piece it works on, with the serial of the attempt.
    pub(super) current: Option<(PieceIndex, u64)>,
    pub(super) allowed_fast: Vec<PieceIndex>,
    pub(super) pipeline: Pipeline,
    pub(super) snubbed: bool,
    pub(super) last_block_at: Instant,
    /// Waits in the swarm's list of those for whom nothing was found to ask for.
    pub(super) idle: bool,

    pub(super) up: Meter,
    pub(super) down: Meter,
    pub(super) uploaded: u64,
    pub(super) downloaded: u64,
    /// When payload last went to it.
    pub(super) last_served_at: Option<Instant>,
    pub(super) last_heard_at: Instant,
    pub(super) last_sent_at: Instant,

    pub(super) state_changes: u32,
    pub(super) state_changes_since: Instant,
    pub(super) nuisances: u32,
    pub(super) cancels: u32,
    pub(super) invalid_requests: u32,
    pub(super) choked_requests: u32,
    pub(super) unrequested: u32,
    pub(super) rejects: u32,
}

impl Peer {
    pub(super) fn new(now: Instant, init: PeerInit, tie: u64) -> Self {
        Self {
            addr: init.addr,
            id: init.peer_id,
            source: Source::Incoming,
            fast: init.fast,
            extensions: init.extensions,
            dht: init.dht,
            outgoing: init.outgoing,
            connected_at: now,
            tie,
            closing: false,
            transmit_due: false,
            up_wait: Wait::No,
            down_wait: Wait::No,
            am_choking: true,
            am_interested: false,
            peer_choking: true,
            peer_unchoked_at: None,
            unchoke_due: false,
            peer_interested: false,
            optimistic: false,
            unchoked_at: None,
            choked_at: None,
            waiting_since: None,
            uploaded_in_turn: 0,
            uploaded_recently: 0,
            pieces: Pieces::None,
            wanted: 0,
            spoke: false,
            upload_only: false,
            reqq: REQQ_DEFAULT,
            metadata_id: 0,
            metadata_due: VecDeque::new(),
            metadata_served: 0,
            listen_port: None,
            pex_in: PexIn::default(),
            pex_out: PexOut::default(),
            control: Vec::new(),
            queue: RequestQueue::default(),
            fast_set: Vec::new(),
            fast_sent: 0,
            asked: VecDeque::new(),
            asked_count: 0,
            answered: 0,
            late: VecDeque::new(),
            refused: Vec::new(),
            withheld: 0,
            receiving: None,
            paused_at: None,
            current: None,
            allowed_fast: Vec::new(),
            pipeline: Pipeline::default(),
            snubbed: false,
            last_block_at: now,
            idle: false,
            up: Meter::new(),
            down: Meter::new(),
            uploaded: 0,
            downloaded: 0,
            last_served_at: None,
            last_heard_at: now,
            last_sent_at: now,
            state_changes: 0,
            state_changes_since: now,
            nuisances: 0,
            cancels: 0,
            invalid_requests: 0,
            choked_requests: 0,
            unrequested: 0,
            rejects: 0,
        }
    }

    /// Adds a message to what is sent next.
    pub(super) fn say(&mut self, message: Message<'_>) {
        crate::wire::encode(&message, &mut self.control);
    }

    /// The piece that it will be asked for once the download limit allows.
    pub(super) fn waits_for_rate(&self) -> Option<PieceIndex> {
        let (piece, _) = self.current?;
        (self.down_wait != Wait::No).then_some(piece)
    }

    /// Whether blocks of `piece` may be asked of it now.
    pub(super) fn may_give(&self, piece: PieceIndex) -> bool {
        self.pieces.has(piece)
            && (!self.peer_choking || self.allowed_fast.contains(&piece))
            && !self.refused.contains(&piece)
    }

    /// Marks `piece` as one not to ask it for until the list is cleared.
    pub(super) fn refuse(&mut self, piece: PieceIndex) {
        if !self.refused.contains(&piece) {
            if self.refused.len() >= REFUSED_MAX {
                self.refused.remove(0);
            }
            self.refused.push(piece);
        }
    }

    /// Remembers that `block` may still arrive although it was taken back.
    pub(super) fn expect_late(&mut self, block: Block) {
        if self.late.len() >= REQUESTS_OUT_MAX as usize {
            self.late.pop_front();
        }
        self.late.push_back(block);
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { addr: self.addr, id: self.id }
    }

    /// Has everything, or wants nothing.
    pub(super) fn is_seed(&self) -> bool {
        self.upload_only || self.pieces.is_complete()
    }
}
