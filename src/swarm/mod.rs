//! One torrent and its peers: picker, choker, requests and blame, without any IO.
//!
//! What happens enters through `handle_*`, with the time as first argument: connections, messages,
//! stored blocks, verdicts on pieces, timeouts. What has to be done leaves through
//! [`Swarm::poll_action`], [`Swarm::poll_transmit`] and [`Swarm::poll_timeout`]; after any
//! `handle_*` the caller polls actions until there are none.
//!
//! Serving: a request is judged once and queued ([`REQUEST_QUEUE_MAX`] per peer); `poll_transmit`
//! hands out what is due to a peer, as much as fits. Fetching: a peer works through a piece of its
//! own as long as the budget of partial pieces allows, joins others beyond that, and in the
//! endgame doubles what is late. When the budget of memory is used up, a peer that has none of the
//! open pieces opens one *in place*: its blocks are written as they come, and it is hashed from
//! disk. Of those there are few, too ([`IN_PLACE_PIECES_MAX`]); beyond them a peer idles, or doubles
//! late blocks, until one is done.
//!
//! Invariants: no block is handed out of a piece that is not ours by `handle_stored`. The counters
//! equal recounts ([`Swarm::check_invariants`]). No more peers are unchoked than there are slots
//! after a round of the choker. A peer is banned only for data whose hash proves it guilty.
//! Nothing here reads a clock, hashes content, or decides by the order of a hash table.
#![forbid(unsafe_code)]

pub mod choker;

mod availability;
mod bans;
mod blame;
mod blocklist;
mod connect;
mod contacts;
mod destinations;
mod download;
mod extension;
mod fast;
mod invariants;
mod magnet;
mod message;
mod metadata;
mod options;
mod partial;
mod peer;
mod pex;
mod picker;
mod pipeline;
mod priority;
mod queue;
mod slots;
mod stats;
mod throttle;
mod tick;
mod turnover;
mod upload;
mod wanted;

#[cfg(test)]
mod exchange_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wanted_tests;

pub use bans::{Bans, Offender, is_local};
pub use blocklist::{
    BLOCKLIST_LINE_LEN_MAX, BLOCKLIST_RANGES_MAX, BROKEN_LINES_TOLD_MAX, Blocklist, BlocklistError,
    ReadBlocklist,
};
pub use contacts::{SOURCE_COUNT, Source};
pub use destinations::{PER_HOST_MAX, PER_NET_MAX};
pub use magnet::{Carried, MAGNET_PEERS_MAX, MagnetAction, MagnetSwarm, SAID_LEN_MAX};
pub use options::*;
pub use peer::{Error, PeerInit, PeerKey, Refused};
pub use queue::REQUEST_QUEUE_MAX;
pub use stats::{PeerStats, Stats, Totals};
pub use tick::Limits;
pub use turnover::{IdlePeer, TURNOVER_PAUSE, TURNOVER_SHARE};

use crate::rate::Meter;
use crate::units::{Bitfield, Block, Geometry, PeerId, PieceIndex};
use availability::Availability;
use blame::Suspects;
use choker::{Candidate, Rechoke, Slots};
use contacts::Contacts;
use partial::Partial;
use peer::Peer;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;
use throttle::Throttle;
use wanted::Wanted;

/// SHA-1 of one block, to tell who sent a wrong one.
pub type BlockDigest = [u8; 20];

/// What the caller has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Call `poll_transmit` for the peer as soon as its connection can take bytes.
    Transmit(PeerKey),
    /// Close the connection, then call `handle_disconnected`.
    Close(PeerKey, Error),
    /// Connect; then `handle_connected` or `handle_connect_failed`.
    Connect(SocketAddr),
    /// All blocks of the piece are stored: hash it, then `handle_verified`. One that is fetched
    /// in place ([`Swarm::is_in_place`]) is read back for that, once all its writes have ended.
    Verify {
        /// The piece.
        piece: PieceIndex,
        /// Digests of its blocks are wanted even if the piece is good.
        digests: bool,
    },
    /// Forget the data of the piece that is not verified.
    Discard(PieceIndex),
    /// The offender is banned until then ([`BAN_TTL`]), with every swarm of this worker; its
    /// connections here get a `Close` of their own, those with others end by their
    /// [`Swarm::handle_bans`].
    Ban(Offender, Instant),
    /// The peer of this address says that it has a node of the DHT there.
    Node(SocketAddr),
    /// The last piece that is wanted is stored.
    Finished,
}

/// What becomes of the bytes of a block that a peer begins to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Keep them in memory with the rest of their piece, then call `handle_block`.
    Accept,
    /// Call `handle_block` when all of them are here; if it takes the block, write it to its place
    /// on disk. Without room for them, call `handle_dropped` instead.
    AcceptInPlace,
    /// Drop them.
    Discard,
}

/// What hashing a piece said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The hash is right; the digests of its blocks, in order, if `Verify` asked for them.
    Good(Vec<BlockDigest>),
    /// The hash is wrong; the digests of the blocks in order. Empty if they cannot be had: then
    /// nobody can be blamed unless one peer sent everything.
    Bad(Vec<BlockDigest>),
    /// The data could not be read back: nobody's fault, the piece is fetched again.
    Unreadable,
}

/// One torrent and its peers.
pub struct Swarm {
    geometry: Geometry,
    have: Bitfield,
    wanted: Wanted,
    options: Options,
    shared: Rc<Shared>,
    rng: fastrand::Rng,
    /// Key of the hash of every request queue.
    hash_key: u64,

    peers: Slab<Peer>,
    by_addr: BTreeMap<SocketAddr, PeerKey>,
    by_id: BTreeMap<PeerId, PeerKey>,
    /// Where connected peers can be met; several may say the same.
    listening: BTreeMap<SocketAddr, u32>,
    counts: Counts,
    contacts: Contacts,
    /// Bytes that an address got on connections that are gone.
    recent: BTreeMap<Offender, (u64, Instant)>,

    /// Only while pieces that are wanted are missing.
    availability: Option<Availability>,
    partials: BTreeMap<PieceIndex, Partial>,
    /// How many of them are fetched in place.
    in_place_count: usize,
    /// Partial pieces with free blocks.
    open: BTreeSet<PieceIndex>,
    serial: u64,
    suspects: Suspects,
    /// Peers for whom there was nothing to ask; some are tried again when blocks become free.
    idle: VecDeque<PeerKey>,
    kick: bool,
    /// A piece that we had was lost: peers may still ask for it.
    lost_any: bool,

    up: Throttle,
    down: Throttle,
    granted: Slots,
    rechoke: Rechoke,
    candidates: Vec<Candidate>,

    actions: VecDeque<Action>,
    /// Those among them that are `Discard`.
    discard_count: usize,
    totals: Totals,
    up_meter: Meter,
    down_meter: Meter,
    next_second: Option<Instant>,
    next_round: Option<Instant>,
    /// Before this nobody is looked for who might give way.
    next_turnover: Option<Instant>,
}

/// Peers by state, kept as they change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    /// Peers that said they have everything: left out of the availability.
    have_all: u32,
    interested: u32,
    unchoked: u32,
    /// Peers that we want something of.
    interesting: u32,
}

impl Swarm {
    /// A torrent of this `geometry` of which `have` is verified and on disk.
    ///
    /// A `have` over another number of pieces counts as having nothing.
    pub fn new(
        geometry: Geometry,
        have: Bitfield,
        mut options: Options,
        shared: Rc<Shared>,
    ) -> Self {
        let fits = have.len() == geometry.piece_count();
        let have = if fits { have } else { Bitfield::none(geometry.piece_count()) };
        let mut rng = fastrand::Rng::with_seed(options.seed);
        let (wanted, availability) = wanted::begin(&mut options, &have, &mut rng);
        Self {
            geometry,
            availability,
            have,
            wanted,
            hash_key: rng.u64(..) | 1,
            rng,
            up: Throttle::new(options.up),
            down: Throttle::new(options.down),
            options,
            shared,
            peers: Slab::new(),
            by_addr: BTreeMap::new(),
            by_id: BTreeMap::new(),
            listening: BTreeMap::new(),
            counts: Counts::default(),
            contacts: Contacts::default(),
            recent: BTreeMap::new(),
            partials: BTreeMap::new(),
            in_place_count: 0,
            open: BTreeSet::new(),
            serial: 0,
            suspects: Suspects::default(),
            idle: VecDeque::new(),
            kick: false,
            lost_any: false,
            granted: Slots::Unlimited,
            rechoke: Rechoke::new(),
            candidates: Vec::new(),
            actions: VecDeque::new(),
            discard_count: 0,
            totals: Totals::default(),
            up_meter: Meter::new(),
            down_meter: Meter::new(),
            next_second: None,
            next_round: None,
            next_turnover: None,
        }
    }

    /// Whether peers are told of our node of the DHT, and theirs is taken.
    pub fn has_dht(&self) -> bool {
        self.options.dht_port.is_some()
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        self.discard_count -= usize::from(matches!(action, Action::Discard(_)));
        if let Action::Transmit(key) = action
            && let Some(peer) = self.peer_mut(key)
        {
            peer.transmit_due = false;
        }
        Some(action)
    }

    /// Whether the caller is still to hear that it should forget the data of a piece. Until then it
    /// has no place for blocks of its next attempt: they are given back by `handle_dropped`.
    pub fn is_discarding(&self, piece: PieceIndex) -> bool {
        self.discard_count > 0 && self.actions.contains(&Action::Discard(piece))
    }

    /// When `handle_timeout` has to be called, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let contact = self.has_room().then(|| self.contacts.next_at()).flatten();
        let times =
            [self.next_second, self.next_round, self.up.next_at(), self.down.next_at(), contact];
        times.into_iter().flatten().min()
    }

    /// The pieces that are verified and on disk.
    pub fn bitfield(&self) -> &Bitfield {
        &self.have
    }

    /// How the torrent is cut.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether every piece is on disk.
    pub fn is_complete(&self) -> bool {
        self.have.is_complete()
    }

    /// Whether the blocks of `piece` are written as they come.
    pub fn is_in_place(&self, piece: PieceIndex) -> bool {
        self.partials.get(&piece).is_some_and(|partial| partial.is_in_place)
    }

    /// Pieces whose blocks are written as they come; at most [`IN_PLACE_PIECES_MAX`].
    pub fn in_place_count(&self) -> usize {
        self.in_place_count
    }

    /// Whether anybody is connected.
    pub fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    fn peer_mut(&mut self, key: PeerKey) -> Option<&mut Peer> {
        self.peers.get_mut(key.0 as usize)
    }

    fn peer(&self, key: PeerKey) -> Option<&Peer> {
        self.peers.get(key.0 as usize)
    }

    /// The keys of all peers, in order.
    fn keys(&self) -> Vec<PeerKey> {
        self.peers.iter().map(|(slot, _)| key_of(slot)).collect()
    }

    /// Has the caller come and fetch what there is for the peer.
    fn wake(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(key.0 as usize)
            && !peer.transmit_due
            && !peer.closing
        {
            peer.transmit_due = true;
            self.actions.push_back(Action::Transmit(key));
        }
    }

    fn close(&mut self, key: PeerKey, reason: Error) {
        if let Some(peer) = self.peers.get_mut(key.0 as usize)
            && !peer.closing
        {
            peer.closing = true;
            self.actions.push_back(Action::Close(key, reason));
        }
    }

    /// What every `handle_*` ends with.
    fn settle(&mut self, now: Instant) {
        self.kick_idle(now);
        #[cfg(debug_assertions)]
        self.check_cheap_invariants();
    }

    fn block_index(block: Block) -> u32 {
        block.begin / crate::units::BLOCK_LEN
    }
}

fn key_of(slot: usize) -> PeerKey {
    PeerKey(u32::try_from(slot).expect("connections_max keeps the slab small"))
}

impl Drop for Swarm {
    /// Slots and seats of the worker that its peers held, and memory of its pieces, are free again.
    fn drop(&mut self) {
        let left = self.shared.unchoked.get().saturating_sub(self.counts.unchoked);
        self.shared.unchoked.set(left);
        self.peers.iter().for_each(|(_, peer)| self.shared.unseat(peer.source));
        let len = |piece| u64::from(self.geometry.piece_len(piece));
        let in_memory = self.partials.iter().filter(|(_, partial)| !partial.is_in_place);
        let held: u64 = in_memory.map(|(&piece, _)| len(piece)).sum();
        self.shared.piece_bytes.set(self.shared.piece_bytes.get().saturating_sub(held));
    }
}
