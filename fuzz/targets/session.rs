//! A live swarm: peers whose bytes are decoded, a disk, time, and everything that can go wrong.
//!
//! The input chooses a torrent and settings, and then what happens, one event after the other. What
//! is judged after each: only blocks that are on disk are handed out, every request can be answered,
//! what the swarm believes of the disk is so, nobody is banned who sent no wrong byte, queues stay
//! within their limits, and timers come to an end.

mod link;
mod seeds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use seedring::metainfo::Metainfo;
use seedring::swarm::choker::Slots;
use seedring::swarm::{
    Action, BlockDigest, Blocklist, Error, HALF_OPEN_MAX, Limits, Offender, Options, PeerInit,
    PeerKey, Refused, Shared, Source, Swarm, Verdict,
};
use seedring::tracker::AddressPolicy;
use seedring::tracker::policy::permits_operator;
use seedring::units::{BLOCK_LEN, Bitfield, Geometry, PeerId, PieceIndex, to_usize};

use self::link::Link;
use super::metainfo::directory;
use super::{Input, start};

pub(super) use self::seeds::seeds;

/// Peers at a time.
const SLOTS: usize = 5;
/// Places for peers.
const CONNECTIONS_MAX: usize = 4;
/// Events of one input: more take too long to show anything new.
const EVENTS_MAX: usize = 200;
/// Timers that may go off while at most half a minute passes.
const TIMEOUTS_MAX: u32 = 20_000;
/// Actions that may follow from one event.
const ACTIONS_MAX: u32 = 20_000;

const OURSELVES: PeerId = PeerId([0xaa; 20]);

/// What the disk is to do.
enum Job {
    Verify(PieceIndex, bool),
    Write(PieceIndex),
}

impl Job {
    fn piece(&self) -> PieceIndex {
        match self {
            Self::Verify(piece, _) | Self::Write(piece) => *piece,
        }
    }
}

pub(super) struct Session {
    now: Instant,
    swarm: Swarm,
    shared: Rc<Shared>,
    geometry: Geometry,
    is_private: bool,
    exchanges: bool,
    /// Pieces on disk, and all that ever were.
    disk: Bitfield,
    ever: Bitfield,
    links: [Option<Link>; SLOTS],
    buffers: BTreeMap<PieceIndex, Vec<u8>>,
    jobs: VecDeque<Job>,
    trying: VecDeque<SocketAddr>,
    /// Who sent a block that was wrong.
    liars: BTreeSet<Offender>,
    blocklist: Option<Arc<Blocklist>>,
}

/// A torrent with an empty file, one shorter than a block and one of several pieces; and other ones.
fn torrent(kind: usize) -> Metainfo {
    let usual: &[(u64, &[&[u8]])] = &[(0, &[b"e"]), (100, &[b"s"]), (150_000, &[b"l"])];
    let (files, piece_len) = match kind {
        0 => (usual, 32_768),
        1 => (&usual[1..2], 16_384),
        2 => (usual, 20_000),
        3 => (&usual[..1], 16_384),
        4 => (usual, 16_384),
        _ => (usual, 1 << 20),
    };
    Metainfo::parse(&directory(files, piece_len, "")).unwrap()
}

/// What all torrents begin with.
static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |offset: u64| (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).to_le_bytes()[0];
    (0..160_000).map(byte).collect()
});

/// The right bytes of a part of a piece.
fn truth(geometry: &Geometry, piece: PieceIndex, begin: u32, len: u32) -> &'static [u8] {
    let first = to_usize(geometry.piece_start(piece)) + begin as usize;
    &CONTENT[first..first + len as usize]
}

/// Stands in for SHA-1: any function that tells blocks apart will do.
fn digest(data: &[u8]) -> BlockDigest {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in data.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    let mut out = [0; 20];
    out[..8].copy_from_slice(&hash.to_le_bytes());
    out
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut session = Session::new(&mut input);
    let shared = Rc::clone(&session.shared);
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        session.step(&mut input);
        session.check();
    }
    session.pass(Duration::from_secs(30));
    session.check();
    let liar_count = session.liars.len();
    drop(session);
    let held = (shared.unchoked_count(), shared.piece_bytes());
    assert_eq!(held, (0, 0), "what a swarm held is given back");
    // Bans hold for all torrents, and so outlive this one.
    assert!(shared.banned_count() <= liar_count, "somebody was banned who never lied");
}

impl Session {
    fn new(input: &mut Input<'_>) -> Self {
        let metainfo = torrent(input.below(6));
        let (have, bits, more) = (input.byte(), input.byte(), input.byte());
        let geometry = metainfo.geometry;
        let count = geometry.piece_count();
        let mut disk = Bitfield::none(count);
        for piece in (0..count).filter(|piece| have >> (piece % 8) & 1 == 1) {
            disk.set(PieceIndex(piece));
        }
        let is = |bit: u8| bits >> bit & 1 == 1;
        let may = |bit: u8| more >> bit & 1 == 1;
        let options = Options {
            dht_port: Some(6881),
            info_hash: metainfo.info_hash,
            peer_id: OURSELVES,
            listen_port: Some(6881),
            private: is(0),
            pex: !is(1),
            metadata: (!is(2)).then(|| metainfo.shared_info()),
            sequential: is(3),
            slots: if is(4) { Slots::Limited(1) } else { Slots::Unlimited },
            up: is(5).then_some(40_000),
            down: is(6).then_some(40_000),
            fetch: !is(7),
            connections_max: CONNECTIONS_MAX,
            connections_per_host_max: 2,
            partial_pieces_max: if may(0) { 2 } else { 64 },
            local: may(1).then(AddressPolicy::default),
            idle_min: Duration::from_secs(if may(2) { 1 } else { 60 }),
            seed: u64::from(more),
            ..Options::default()
        };
        let (is_private, exchanges) = (options.private, options.pex && !options.private);
        let shared = Shared::new(None, None, Slots::Unlimited);
        if may(3) {
            shared.piece_bytes_max.set(0);
        }
        shared.set_own_addrs(&["1.2.3.4:6881".parse().unwrap()]);
        let swarm = Swarm::new(geometry, disk.clone(), options, Rc::clone(&shared));
        Self {
            now: start(),
            swarm,
            shared,
            geometry,
            is_private,
            exchanges,
            ever: disk.clone(),
            disk,
            links: [const { None }; SLOTS],
            buffers: BTreeMap::new(),
            jobs: VecDeque::new(),
            trying: VecDeque::new(),
            liars: BTreeSet::new(),
            blocklist: None,
        }
    }

    /// One event.
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(16);
        let slot = input.below(SLOTS);
        match kind {
            0 => self.connect(slot, input.byte(), input.byte()),
            1 | 2 => self.hear(slot, input.chunk()),
            3..=5 => self.say(slot, input),
            6 | 7 => {
                let (count, damage) = (input.below(16) + 1, input.byte());
                self.deliver(slot, count, damage);
            }
            8 => self.pass(Duration::from_millis(u64::from(input.u16()) % 30_000)),
            9 => {
                for _ in 0..=input.below(8) {
                    self.work(input.byte());
                }
            }
            10 => self.disconnect(slot),
            11 => self.learn(input),
            12 if slot == 0 => {
                let piece = PieceIndex(input.byte().into());
                self.disk.clear(piece);
                self.swarm.handle_lost(self.now, piece);
            }
            12 => self.limit(slot, input.byte()),
            13 => self.block(input.chunk()),
            14 => self.pause(slot, input.byte()),
            _ => self.fail(slot),
        }
        self.drain();
    }

    fn connect(&mut self, slot: usize, flags: u8, id: u8) {
        if self.links[slot].is_some() {
            return;
        }
        let is = |bit: u8| flags >> bit & 1 == 1;
        let called = if is(0) { self.trying.pop_front() } else { None };
        let host = u8::try_from(slot).unwrap() + 1;
        let addr = called.unwrap_or_else(|| match flags >> 5 {
            0 => SocketAddr::from(([10, 0, 0, host], 7000)),
            1 => SocketAddr::from(([0x2a00, 0, 0, 0, 0, 0, 0, u16::from(host)], 7000)),
            2 => SocketAddr::from(([20, 0, 0, 1], 7000 + u16::from(host))),
            _ => SocketAddr::from(([20, 0, 0, host], 7000)),
        });
        let peer_id = if is(3) { OURSELVES } else { PeerId([id % 8; 20]) };
        let (fast, extensions, outgoing) = (!is(1), !is(2), called.is_some());
        let init = PeerInit { addr, peer_id, fast, extensions, dht: true, outgoing };
        match self.swarm.handle_connected(self.now, init) {
            Ok(key) => {
                assert_ne!(peer_id, OURSELVES);
                assert!(self.blocklist.as_ref().is_none_or(|list| !list.contains(addr.ip())));
                self.links[slot] = Some(Link::new(key, init, &self.geometry));
            }
            Err(refused) => assert_eq!(refused == Refused::Ourselves, peer_id == OURSELVES),
        }
    }

    fn slot_of(&self, key: PeerKey) -> Option<usize> {
        self.links.iter().position(|link| link.as_ref().is_some_and(|link| link.key == key))
    }

    fn disconnect(&mut self, slot: usize) {
        if let Some(link) = self.links[slot].take() {
            self.swarm.handle_disconnected(self.now, link.key);
        }
    }

    /// The verdict of a rule: who broke it is gone.
    fn judge(&mut self, slot: usize, verdict: Result<(), Error>) {
        if let Err(error) = verdict {
            super::assert_sentence(&error.to_string());
            self.disconnect(slot);
        }
    }

    /// The next job of the disk; `how` says how it goes.
    fn work(&mut self, how: u8) {
        match self.jobs.pop_front() {
            Some(Job::Verify(piece, digests)) => {
                let verdict = self.verdict(piece, digests, how);
                let is_good = matches!(verdict, Verdict::Good(_));
                self.swarm.handle_verified(self.now, piece, verdict);
                if is_good {
                    self.jobs.push_back(Job::Write(piece));
                }
            }
            Some(Job::Write(piece)) if self.buffers.remove(&piece).is_some() => {
                self.disk.set(piece);
                self.ever.set(piece);
                self.swarm.handle_stored(self.now, piece);
            }
            Some(Job::Write(_)) | None => {}
        }
        self.drain();
    }

    fn verdict(&self, piece: PieceIndex, digests: bool, how: u8) -> Verdict {
        let Some(buffer) = self.buffers.get(&piece).filter(|_| how % 16 != 15) else {
            return Verdict::Unreadable;
        };
        let all = || buffer.chunks(BLOCK_LEN as usize).map(digest).collect();
        let len = self.geometry.piece_len(piece);
        match *buffer == truth(&self.geometry, piece, 0, len) {
            true => Verdict::Good(if digests { all() } else { Vec::new() }),
            false if how % 16 == 14 => Verdict::Bad(Vec::new()),
            false => Verdict::Bad(all()),
        }
    }

    fn learn(&mut self, input: &mut Input<'_>) {
        let source = Source::ALL[input.below(Source::ALL.len())];
        let addrs: Vec<SocketAddr> = (0..input.below(8) + 1)
            .map(|_| match input.below(4) {
                0 => SocketAddr::from((input.array::<16>(), input.u16())),
                1 => SocketAddr::from(([20, 0, 0, input.byte()], 7000)),
                _ => SocketAddr::from((input.array::<4>(), input.u16())),
            })
            .collect();
        self.swarm.handle_contacts(self.now, source, &addrs);
    }

    fn limit(&mut self, slot: usize, how: u8) {
        let rate = |bit: u8| (how >> bit & 1 == 1).then_some(u64::from(how) * 300);
        let slots = Slots::from((how & 1 == 1).then_some(u32::from(how >> 4)));
        self.swarm.set_limits(self.now, Limits { slots, up: rate(1), down: rate(2) });
        let max = if slot == 1 { 0 } else { u64::MAX };
        self.shared.piece_bytes_max.set(max);
    }

    fn block(&mut self, text: &[u8]) {
        self.blocklist = Blocklist::parse(text).ok().map(|read| Arc::new(read.list));
        self.shared.set_blocklist(self.blocklist.clone());
        self.swarm.handle_blocklist(self.now);
    }

    fn pause(&mut self, slot: usize, how: u8) {
        let Some(link) = &mut self.links[slot] else { return };
        match how % 4 {
            0 => self.swarm.handle_paused(self.now, link.key),
            1 => self.swarm.handle_resumed(self.now, link.key),
            2 => link.reads = false,
            _ => {
                link.reads = true;
                self.transmit(slot);
            }
        }
    }

    fn fail(&mut self, slot: usize) {
        let mut missing = (0..self.disk.len()).map(PieceIndex).filter(|&it| !self.disk.has(it));
        if let Some(addr) = self.trying.pop_front() {
            self.swarm.handle_connect_failed(self.now, addr);
        } else if let Some(piece) = missing.nth(slot) {
            // It was there all the time.
            self.disk.set(piece);
            self.ever.set(piece);
            self.swarm.handle_stored(self.now, piece);
        }
    }

    /// Time passes, and timers go off at their moments.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut count = 0;
        while let Some(at) = self.swarm.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.swarm.handle_timeout(self.now);
            self.drain();
            count += 1;
            assert!(count < TIMEOUTS_MAX, "timers do not come to an end");
        }
        self.now = end;
    }

    /// Does what the swarm wants done.
    fn drain(&mut self) {
        let mut count = 0;
        while let Some(action) = self.swarm.poll_action() {
            count += 1;
            assert!(count < ACTIONS_MAX, "actions do not come to an end");
            match action {
                Action::Transmit(key) => {
                    let slot = self.slot_of(key).expect("who is sent to is connected");
                    self.transmit(slot);
                }
                Action::Close(key, error) => {
                    super::assert_sentence(&error.to_string());
                    let slot = self.slot_of(key).expect("who is closed is connected");
                    self.disconnect(slot);
                }
                Action::Connect(addr) => {
                    assert!(permits_operator(addr.ip()).is_ok(), "{addr}");
                    assert_ne!(addr, "1.2.3.4:6881".parse().unwrap(), "ourselves");
                    let blocks = |list: &Arc<Blocklist>| list.contains(addr.ip());
                    assert!(!self.blocklist.as_ref().is_some_and(blocks), "{addr} is blocked");
                    self.trying.push_back(addr);
                    assert!(self.trying.len() <= HALF_OPEN_MAX.min(CONNECTIONS_MAX));
                }
                Action::Node(addr) => {
                    assert!(!addr.ip().is_unspecified(), "{addr} is nobody's");
                }
                Action::Verify { piece, digests } => {
                    self.jobs.push_back(Job::Verify(piece, digests))
                }
                Action::Discard(piece) => {
                    self.buffers.remove(&piece);
                    self.jobs.retain(|job| job.piece() != piece);
                }
                Action::Ban(who, _) => {
                    assert!(self.liars.contains(&who), "{who:?} never lied");
                    self.trying.retain(|addr| Offender::of(*addr) != who);
                }
                Action::Finished => assert!(self.disk.is_complete()),
            }
        }
    }

    /// What must hold between two events.
    fn check(&self) {
        self.swarm.check_invariants();
        assert_eq!(*self.swarm.bitfield(), self.disk, "what is on disk");
        let connected = self.links.iter().flatten().count();
        assert_eq!(self.swarm.peer_count() as usize, connected);
        assert!(connected <= CONNECTIONS_MAX);
        assert_eq!(self.swarm.peers().count(), connected);
        let stats = self.swarm.stats(self.now);
        assert!(stats.half_open as usize <= HALF_OPEN_MAX);
        let asked: usize = self.links.iter().flatten().map(|link| link.asked.len()).sum();
        assert!(to_usize(stats.requests_out) <= asked + self.unread(), "asked of nobody");
        if self.is_private {
            let strangers = [Source::Pex, Source::Dht, Source::Lsd];
            let by_source = self.swarm.by_source();
            let known = |source: &Source| by_source[*source as usize];
            assert!(strangers.iter().all(|source| known(source) == (0, 0)), "{by_source:?}");
        }
    }

    /// Requests that may wait for peers that do not read, at most.
    fn unread(&self) -> usize {
        let silent = self.links.iter().flatten().filter(|link| !link.reads).count();
        silent * seedring::swarm::REQUESTS_OUT_MAX as usize
    }
}
