//! What a swarm is told at its start: limits, policies, identity; and what swarms of a core share.
//!
//! Plain values. Invariant: every default is safe for a server on the Internet; the limits that
//! are no setting are constants here.
#![forbid(unsafe_code)]

use super::bans::{Bans, Offender, is_local};
use super::blocklist::Blocklist;
use super::choker::{Choker, Phase, Slots, default_of};
use super::contacts::{SOURCE_COUNT, Source};
use super::destinations::{Destinations, Wait};
use super::magnet::METADATA_BYTES_MAX;
use super::priority::canonical_priority;
use crate::dht::Votes;
use crate::metainfo::RawInfo;
use crate::rate::Bucket;
use crate::tracker::AddressPolicy;
use crate::tracker::policy::permits_operator;
use crate::units::{Bitfield, InfoHash, PeerId};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Addresses of one torrent that are remembered without being connected.
pub const CONTACTS_MAX: usize = 2000;
/// Banned addresses that are remembered for all torrents; the one that would expire first makes
/// room.
pub const BANS_MAX: usize = 16 * 1024;
/// How long a ban lasts.
pub const BAN_TTL: Duration = Duration::from_secs(24 * 3600);
/// Outgoing connections that one swarm starts per second.
pub const CONNECTS_PER_SECOND_MAX: u32 = 10;
/// Outgoing connections that all swarms of a worker start per second, unless it is set otherwise.
pub const WORKER_CONNECTS_PER_SECOND_MAX: u32 = 100;
/// Addresses of our own that are known.
pub const OWN_ADDRS_MAX: usize = 32;
/// Outgoing connections of one swarm that are not through their handshake.
pub const HALF_OPEN_MAX: usize = 32;
/// Blocks that we have asked one peer for and that are on their way.
pub const REQUESTS_OUT_MAX: u32 = 2048;
/// Requests at one peer before its rate is known: 1 MiB.
pub const REQUESTS_OUT_START: u32 = 64;
/// Requests at one peer, however slow it is, unless it is snubbed.
pub const REQUESTS_OUT_MIN: u32 = 4;
/// The `reqq` of a peer that does not say.
pub const REQQ_DEFAULT: u32 = 250;
/// Peers that one block is asked from at the same time in the endgame.
pub const ENDGAME_PEERS_MAX: usize = 3;
/// Requests at one peer that fall into the endgame.
pub const ENDGAME_REQUESTS_MAX: usize = 16;
/// How long a block has been asked for before it is asked from somebody else too.
pub const ENDGAME_AGE: Duration = Duration::from_millis(500);
/// Pieces that are picked at random before rarity counts.
pub const RANDOM_FIRST_PIECES: u32 = 4;
/// Control bytes that may wait for a peer that does not read, beside its bitfield.
pub const CONTROL_LEN_MAX: usize = 256 * 1024;
/// Messages of no use (repeats, cancels of nothing, signs of life) per second, over ten seconds.
pub const NUISANCES_PER_SECOND_MAX: u32 = 200;
/// Requests taken back while they wait per second, over ten seconds: four times all that may wait.
/// The end of a torrent takes back each request once, and whoever plays a file while it comes takes
/// them all back with each jump.
pub const CANCELS_PER_SECOND_MAX: u32 = 820;
/// Changes of choke and interest of one peer per second.
pub const STATE_CHANGES_PER_SECOND_MAX: u32 = 100;
/// Between two unchokes of one peer that we go by: each has everything asked of it anew.
pub const UNCHOKE_INTERVAL: Duration = Duration::from_secs(1);
/// Requests that are no use to anybody: too long, for pieces we lack, while choked.
pub const INVALID_REQUESTS_MAX: u32 = 300;
/// How long after our choke requests that were on their way are no offence.
pub const CHOKED_REQUESTS_GRACE: Duration = Duration::from_secs(2);
/// Blocks that nobody asked the peer for.
pub const UNREQUESTED_MAX: u32 = 30;
/// Rejects of our requests in a row, without one block.
pub const REJECTS_MAX: u32 = 4 * REQUESTS_OUT_MAX;
/// Pieces that a peer is not asked for, because it rejected them, until they are tried again.
pub const REFUSED_MAX: usize = 64;
/// Blocks that a peer skips while it delivers later ones.
pub const WITHHELD_MAX: usize = 64;
/// Pieces in an allowed-fast set (BEP 6).
pub const ALLOWED_FAST_MAX: usize = 10;
/// How many times its length an allowed-fast piece is served to a peer that we choke.
pub const ALLOWED_FAST_REPEATS_MAX: u64 = 3;
/// Pieces that failed their hash and whose blocks are remembered until the good ones are known.
pub const SUSPECT_PIECES_MAX: usize = 64;
/// Failed attempts at one piece that are remembered.
pub const SUSPECT_ATTEMPTS_MAX: usize = 4;
/// Pieces that we may have when peers of a magnet link are carried over; beyond that they are met
/// again.
pub const ADOPTED_HAVES_MAX: u32 = 1000;
/// Peers that one peer has been told of and that are still here.
pub const PEX_TOLD_MAX: usize = 50;
/// Messages of peer exchange that come too early before the connection ends.
pub const PEX_EARLY_MAX: u32 = 10;
/// Requests for metadata of one peer that wait.
pub const METADATA_QUEUE_MAX: usize = 64;
/// How many times its length metadata is served to one peer.
pub const METADATA_REPEATS_MAX: u64 = 2;
/// Addresses whose earlier connections the choker remembers.
pub const RECENT_MAX: usize = 1024;
/// For how long it does.
pub const RECENT_TTL: Duration = Duration::from_secs(600);

/// Pieces of one swarm whose blocks are written as they come, for want of memory.
pub const IN_PLACE_PIECES_MAX: usize = 16;

/// Settings of one swarm.
#[derive(Clone)]
pub struct Options {
    /// What the torrent is called on the wire; the allowed-fast set depends on it.
    pub info_hash: InfoHash,
    /// How we name ourselves: a peer of this name is ourselves.
    pub peer_id: PeerId,
    /// Client name and version for the extension handshake.
    pub client: String,
    /// Extensions to name in our handshake beside our own, with ids from 16 on.
    pub extensions: Vec<(Vec<u8>, u8)>,
    /// The TCP port under which we can be reached, for the extension handshake.
    pub listen_port: Option<u16>,
    /// The UDP port of our node of the DHT, told to peers that have one too (BEP 5); `None` if we
    /// have none, and for private torrents.
    pub dht_port: Option<u16>,
    /// Peers come from trackers and from the operator only, and nothing is told of them (BEP 27).
    pub private: bool,
    /// Whether peers are exchanged with peers (BEP 11).
    pub pex: bool,
    /// The `info` dictionary, if it is served to peers (BEP 9).
    pub metadata: Option<RawInfo>,
    /// Pieces in their order instead of rarest first.
    pub sequential: bool,
    /// Who is unchoked while pieces are wanted.
    pub leech_choker: &'static dyn Choker,
    /// Who is unchoked once we have everything.
    pub seed_choker: &'static dyn Choker,
    /// Upload slots of this torrent.
    pub slots: Slots,
    /// Upload limit of this torrent in payload bytes per second.
    pub up: Option<u64>,
    /// Download limit of this torrent in payload bytes per second.
    pub down: Option<u64>,
    /// Connected peers.
    pub connections_max: usize,
    /// Connected peers of one public host: an IPv4 address, or a /64 of IPv6, which one machine has
    /// to itself. One would do for most; a few are for those who share an address and want the same
    /// torrent: a household, a provider's translator, a rented server with many users.
    pub connections_per_host_max: usize,
    /// Which loopback and private addresses are welcome; `None` for all. They are told apart by
    /// address and port.
    pub local: Option<AddressPolicy>,
    /// Pieces that may be under way in memory, buffered or being written at once; at least 2.
    /// Those that are fetched in place come on top.
    pub partial_pieces_max: usize,
    /// Without a block for this long a peer that owes us some is snubbed.
    pub snub_timeout: Duration,
    /// A block that a peer skipped is asked from others after this long.
    pub request_timeout: Duration,
    /// A peer is closed if a block that it began is not through after this long.
    pub block_timeout: Duration,
    /// A peer is closed if we hear nothing of it for this long.
    pub inactivity_timeout: Duration,
    /// When every place is taken, peers with whom nothing has moved for this long give way.
    pub idle_min: Duration,
    /// A sign of life is sent after this long without any other message.
    pub keep_alive: Duration,
    /// The pieces that are wanted; `None` for all. Later [`super::Swarm::set_wanted`] changes it.
    pub wanted: Option<Bitfield>,
    /// Whether pieces that are missing are fetched. If not, what cannot be read any more is only
    /// not served.
    pub fetch: bool,
    /// Seed of every random choice.
    pub seed: u64,
}

impl Options {
    /// Whether loopback and private addresses like `ip` are welcome.
    pub(super) fn welcomes(&self, ip: IpAddr) -> bool {
        self.local.as_ref().is_none_or(|policy| policy.permits(ip).is_ok())
    }

    /// Whether an address that `source` names may be connected to.
    pub(super) fn may_try(&self, source: Source, ip: IpAddr) -> bool {
        // What the operator names is meant; a neighbour found locally has a local address.
        let is_trusted = matches!(source, Source::Operator | Source::Lsd);
        permits_operator(ip).is_ok() && (is_trusted || !is_local(ip) || self.welcomes(ip))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            info_hash: InfoHash([0; 20]),
            peer_id: PeerId([0; 20]),
            client: String::from(concat!("seedring ", env!("CARGO_PKG_VERSION"))),
            extensions: Vec::new(),
            listen_port: None,
            dht_port: None,
            private: false,
            pex: true,
            metadata: None,
            sequential: false,
            leech_choker: default_of(Phase::Leeching),
            seed_choker: default_of(Phase::Seeding),
            slots: Slots::Unlimited,
            up: None,
            down: None,
            connections_max: 10_000,
            connections_per_host_max: 4,
            local: None,
            partial_pieces_max: 64,
            snub_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            block_timeout: Duration::from_secs(60),
            inactivity_timeout: Duration::from_secs(600),
            idle_min: Duration::from_secs(60),
            keep_alive: Duration::from_secs(100),
            wanted: None,
            fetch: true,
            seed: 0,
        }
    }
}

/// What the swarms of one worker share: its leases of the global limits.
///
/// The worker owns it, hands a clone of the `Rc` to each swarm, and changes it at any time.
#[derive(Debug)]
pub struct Shared {
    /// Upload limit of the worker.
    pub up: RefCell<Bucket>,
    /// Download limit of the worker.
    pub down: RefCell<Bucket>,
    /// Upload slots of the worker.
    pub slots: Cell<Slots>,
    /// Bytes of pieces that its swarms may have in memory. While they are used up, pieces are
    /// fetched in place, [`IN_PLACE_PIECES_MAX`] per swarm, so that no torrent waits for ever.
    pub piece_bytes_max: Cell<u64>,
    /// Bytes of pieces that its swarms have in memory; the swarms keep it.
    pub(super) piece_bytes: Cell<u64>,
    /// Bytes of metadata that its torrents may have in memory before it is judged.
    pub(super) metadata_bytes_max: Cell<u64>,
    /// Bytes of it that they have; torrents without metadata keep it.
    pub(super) metadata_bytes: Cell<u64>,
    /// Bytes of what their peers said about pieces; they keep it.
    pub(super) said_bytes: Cell<u64>,
    /// Peers that its swarms have unchoked; the swarms keep it.
    pub(super) unchoked: Cell<u32>,
    /// What its swarms count.
    pub(super) counted: Cell<Counted>,
    /// Outgoing connections that its swarms may start per second.
    pub connects_per_second_max: Cell<u32>,
    /// Where they have gone lately.
    destinations: RefCell<Destinations>,
    /// Whom its swarms have nothing to do with.
    blocklist: RefCell<Option<Arc<Blocklist>>>,
    /// Where we can be reached ourselves.
    own_addrs: RefCell<Vec<SocketAddr>>,
    /// Where peers say that they see us, one for each family, and what the last of them said.
    seen_at: Cell<[Option<IpAddr>; 2]>,
    votes: RefCell<[Votes; 2]>,
    /// Peers that its swarms have, by who named them, in the order of [`Source::ALL`].
    seated: Cell<[u32; SOURCE_COUNT]>,
    /// Who is banned, by whichever swarm of whichever worker.
    bans: RefCell<Bans>,
}

/// What the swarms of one worker count together, since its start: no torrent that goes takes its
/// share with it. Requests are counted here unless they were served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Requests refused: the queue was full, or the piece was lost since.
    pub requests_rejected: u64,
    /// Requests that the peer took back in time.
    pub requests_cancelled: u64,
    /// Requests of choked peers, and those that waited when the peer was choked.
    pub requests_choked: u64,
    /// Requests of what does not exist, is too long, or is not ours.
    pub requests_invalid: u64,
    /// Rounds of chokers.
    pub choker_rounds: u64,
    /// Payload bytes of blocks that were dropped: those that came twice or too late, and those that
    /// nobody asked for.
    pub bytes_discarded: u64,
    /// Addresses of peers that became known, by who named them first.
    pub addresses_learnt: [u64; SOURCE_COUNT],
    /// Addresses of peers that were named, or were due to be tried, and are blocked.
    pub addresses_blocked: u64,
}

impl Shared {
    /// Limits in payload bytes per second, and slots; `None` and `Unlimited` are no limit.
    pub fn new(up: Option<u64>, down: Option<u64>, slots: Slots) -> Rc<Self> {
        Rc::new(Self {
            up: RefCell::new(Bucket::new(up)),
            down: RefCell::new(Bucket::new(down)),
            slots: Cell::new(slots),
            piece_bytes_max: Cell::new(u64::MAX),
            piece_bytes: Cell::new(0),
            metadata_bytes_max: Cell::new(METADATA_BYTES_MAX),
            metadata_bytes: Cell::new(0),
            said_bytes: Cell::new(0),
            unchoked: Cell::new(0),
            counted: Cell::default(),
            connects_per_second_max: Cell::new(WORKER_CONNECTS_PER_SECOND_MAX),
            destinations: RefCell::default(),
            blocklist: RefCell::default(),
            own_addrs: RefCell::default(),
            seen_at: Cell::default(),
            votes: RefCell::default(),
            seated: Cell::default(),
            bans: RefCell::default(),
        })
    }

    /// Bans an offender; false if it was banned already. Its peers stay until
    /// [`super::Swarm::handle_bans`] is called.
    pub fn ban(&self, offender: Offender, until: Instant) -> bool {
        self.bans.borrow_mut().insert(offender, until)
    }

    /// Whether the peer at `addr` is banned.
    pub fn is_banned(&self, now: Instant, addr: SocketAddr) -> bool {
        self.bans.borrow().holds(now, addr)
    }

    /// Offenders that are banned.
    pub fn banned_count(&self) -> usize {
        self.bans.borrow().len()
    }

    /// Forgets bans that are over.
    pub(super) fn expire_bans(&self, now: Instant) {
        self.bans.borrow_mut().expire(now);
    }

    /// Changes whom its swarms have nothing to do with. Those that are connected stay until
    /// [`super::Swarm::handle_blocklist`] is called.
    pub fn set_blocklist(&self, blocklist: Option<Arc<Blocklist>>) {
        self.blocklist.replace(blocklist);
    }

    /// Says where we can be reached: the first [`OWN_ADDRS_MAX`] are never tried, and peers are
    /// ranked by them (BEP 40).
    pub fn set_own_addrs(&self, addrs: &[SocketAddr]) {
        let plain = |addr: &SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        self.own_addrs.replace(addrs.iter().take(OWN_ADDRS_MAX).map(plain).collect());
    }

    /// A peer says at which address it sees us (`yourip` of BEP 10). One that most of several
    /// networks agree on is ours, with each port of ours.
    pub(super) fn handle_seen_at(&self, now: Instant, voter: SocketAddr, ip: IpAddr) {
        let (voter, ip) = (voter.ip().to_canonical(), ip.to_canonical());
        let (family, mut seen_at) = (usize::from(ip.is_ipv6()), self.seen_at.get());
        let votes = &mut self.votes.borrow_mut()[family];
        if let Some(won) = votes.handle_vote(now, voter, ip, seen_at[family]) {
            seen_at[family] = Some(won);
            self.seen_at.set(seen_at);
        }
    }

    /// Whether we can be reached at `addr` ourselves.
    fn is_own(&self, addr: SocketAddr) -> bool {
        let own = self.own_addrs.borrow();
        let is_seen = self.seen_at.get().contains(&Some(addr.ip()));
        own.contains(&addr) || (is_seen && own.iter().any(|ours| ours.port() == addr.port()))
    }

    /// A peer that `source` named took its place.
    pub(super) fn seat(&self, source: Source) {
        let mut seated = self.seated.get();
        seated[source as usize] += 1;
        self.seated.set(seated);
    }

    /// Such a peer has gone.
    pub(super) fn unseat(&self, source: Source) {
        let mut seated = self.seated.get();
        seated[source as usize] = seated[source as usize].saturating_sub(1);
        self.seated.set(seated);
    }

    /// Peers that the worker's swarms have, by who named them, in the order of [`Source::ALL`].
    pub fn seated(&self) -> [u32; SOURCE_COUNT] {
        self.seated.get()
    }

    /// Whether the operator wants nothing to do with `ip`.
    pub fn blocks(&self, ip: IpAddr) -> bool {
        self.blocklist.borrow().as_ref().is_some_and(|list| list.contains(ip))
    }

    /// Whether `addr` is ourselves or blocked; the latter is counted.
    pub(super) fn refuses(&self, addr: SocketAddr) -> bool {
        let is_blocked = self.blocks(addr.ip());
        if is_blocked {
            self.count(|counted| counted.addresses_blocked += 1);
        }
        is_blocked || self.is_own(addr)
    }

    /// The canonical priority of a connection with `addr`, if we know an address of ours.
    pub(super) fn priority(&self, addr: SocketAddr) -> Option<u32> {
        self.own_addrs.borrow().iter().find_map(|&ours| canonical_priority(ours, addr))
    }

    /// Whether a connection may be tried now, and if not, why and until when.
    pub(super) fn take_connect(
        &self,
        now: Instant,
        addr: SocketAddr,
        is_exempt: bool,
    ) -> Result<(), Wait> {
        let per_second = self.connects_per_second_max.get();
        self.destinations.borrow_mut().take(now, addr, per_second, is_exempt)
    }

    /// What its swarms have counted so far.
    pub fn counted(&self) -> Counted {
        self.counted.get()
    }

    /// Counts something.
    pub(super) fn count(&self, add: impl FnOnce(&mut Counted)) {
        let mut counted = self.counted.get();
        add(&mut counted);
        self.counted.set(counted);
    }

    /// Bytes of pieces that the worker's swarms have in memory.
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes.get()
    }

    /// Whether torrents without metadata have more of it in memory than they may.
    pub fn has_too_much_metadata(&self) -> bool {
        self.metadata_bytes.get() > self.metadata_bytes_max.get()
    }

    /// Peers that the worker's swarms have unchoked.
    pub fn unchoked_count(&self) -> u32 {
        self.unchoked.get()
    }
}
