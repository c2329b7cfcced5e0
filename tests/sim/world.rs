//! The world: nodes, links and a clock, all of it out of one seed.
//!
//! Events come out of one queue in their order; disks take their time; faults come and go. What
//! breaks a promise is written down in `violations`. Invariant: the same plan and seed give the
//! same run.

use crate::node::{Character, Node, digest};
use seedring::swarm::choker::Slots;
use seedring::swarm::{Action, Options, PeerKey, Shared, Source};
use seedring::swarm::{Swarm, Verdict};
use seedring::units::{BLOCK_LEN, Bitfield, Geometry, PeerId, PieceIndex};
use seedring::wire::Decoder;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Where every node listens.
const LISTEN_PORT: u16 = 6881;

/// A defect put in on purpose, to see that the checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Defect {
    None,
    /// Every piece counts as good.
    NoVerification,
    /// Nobody is ever unchoked.
    NoUnchoke,
    /// Requests for piece 0 never leave.
    NeverAsksForPiece0,
    /// A block goes out before its piece was verified.
    ServesUnverified,
    /// Whoever is unchoked gets what it asks for, whether it is there or not.
    ServesLacked,
}

/// Who takes part, and how well the world treats them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) piece_len: u32,
    pub(crate) total_len: u64,
    pub(crate) seeds: usize,
    pub(crate) leechers: usize,
    pub(crate) adversaries: Vec<Character>,
    pub(crate) slots: Option<u32>,
    /// Leechers from this one on never upload.
    pub(crate) free_riders: usize,
    /// The first leechers, up to this one, want some of the pieces only.
    pub(crate) choosy: usize,
    /// Leechers begin with so many percent of the pieces, each with its own.
    pub(crate) head_start: u32,
    pub(crate) rate: (u64, u64),
    pub(crate) delay_ms: (u64, u64),
    /// Connections are cut, attempts fail and disks lose pieces until this moment.
    pub(crate) faults_until_ms: u64,
    pub(crate) end_ms: u64,
    pub(crate) sequential: bool,
    pub(crate) fast: bool,
    pub(crate) partial_pieces_max: usize,
    /// Bytes of pieces that a node may have in memory; beyond it they are fetched in place.
    pub(crate) piece_bytes_max: u64,
    pub(crate) down: Option<u64>,
    pub(crate) up: Option<u64>,
    pub(crate) defect: Defect,
    /// The run ends as soon as all honest nodes are complete.
    pub(crate) stop_when_done: bool,
    /// At first all know the first node only, and that one nobody.
    pub(crate) hub: bool,
    pub(crate) private: bool,
    /// Peers tell each other of peers.
    pub(crate) exchange: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Timer { node: usize, serial: u64 },
    Deliver { end: usize, serial: u64 },
    Ready { end: usize, serial: u64 },
    Hashed { node: usize, piece: u32, digests: bool },
    Written { node: usize, piece: u32 },
    Dial { from: usize, to: usize },
    Nobody { from: usize, addr: SocketAddr },
    Fault,
    Mischief { node: usize },
}

/// One direction's sender: what it has on the way, and the other side's decoder.
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) key: PeerKey,
    pub(crate) peer: usize,
    /// Index of the other end.
    pub(crate) other: usize,
    pub(crate) serial: u64,
    pub(crate) open: bool,
    pub(crate) busy_until: u64,
    pub(crate) wants: bool,
    pub(crate) on_the_way: std::collections::VecDeque<Vec<u8>>,
    pub(crate) decoder: Option<Decoder>,
    pub(crate) arriving: Option<(bool, Vec<u8>)>,
    pub(crate) rate: u64,
    pub(crate) delay_ms: u64,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Node>,
    pub(crate) violations: Vec<String>,
    pub(crate) now_ms: u64,
    pub(crate) content: Vec<u8>,
    pub(crate) geometry: Geometry,
    /// Peers that each node had unchoked at some time.
    pub(crate) served: BTreeMap<(usize, usize), u64>,
    pub(crate) ends: Vec<End>,
    start: Instant,
    pub(crate) rng: fastrand::Rng,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(crate) serial: u64,
    pub(crate) next_port: u16,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut rng = fastrand::Rng::with_seed(plan.seed);
        let geometry = Geometry::new(plan.total_len, plan.piece_len).unwrap();
        let mut content = vec![0; usize::try_from(plan.total_len).unwrap()];
        rng.fill(&mut content);
        #[expect(clippy::disallowed_methods, reason = "the zero of the virtual clock")]
        let start = Instant::now();
        let mut world = Self {
            geometry,
            content,
            nodes: Vec::new(),
            violations: Vec::new(),
            now_ms: 0,
            served: BTreeMap::new(),
            ends: Vec::new(),
            start,
            rng,
            queue: BinaryHeap::new(),
            serial: 0,
            next_port: 20_000,
            plan,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let plan = self.plan.clone();
        for _ in 0..plan.seeds {
            self.add_node(Character::Honest, true, plan.slots, false);
        }
        for number in 0..plan.leechers {
            let rides = number >= plan.leechers - plan.free_riders;
            let slots = if rides { Some(0) } else { plan.slots };
            self.add_node(Character::Honest, false, slots, number < plan.choosy);
        }
        for &character in &plan.adversaries {
            self.add_node(character, true, None, false);
        }
        let count = self.nodes.len();
        for from in 0..count {
            let addrs: Vec<SocketAddr> = (0..count)
                .filter(|&to| to != from && (to == 0 || !plan.hub))
                .map(|to| self.nodes[to].addr)
                .collect();
            let now = self.now();
            self.nodes[from].swarm.handle_contacts(now, Source::Operator, &addrs);
            self.drain(from);
            if self.nodes[from].character != Character::Honest {
                let wait = self.rng.u64(1..500);
                self.after(wait, Event::Mischief { node: from });
            }
        }
        if plan.faults_until_ms > 0 {
            self.after(1000, Event::Fault);
        }
    }

    fn add_node(
        &mut self,
        character: Character,
        complete: bool,
        slots: Option<u32>,
        is_choosy: bool,
    ) {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        let pieces = self.geometry.piece_count();
        let mut have = if complete { Bitfield::all(pieces) } else { Bitfield::none(pieces) };
        for piece in (0..pieces).map(PieceIndex) {
            if self.rng.u32(..100) < self.plan.head_start {
                have.set(piece);
            }
        }
        let wanted = is_choosy.then(|| {
            let mut wanted = Bitfield::none(pieces);
            for piece in (0..pieces).map(PieceIndex).filter(|_| self.rng.u32(..3) == 0) {
                wanted.set(piece);
            }
            wanted
        });
        let slots = if self.plan.defect == Defect::NoUnchoke { Some(0) } else { slots };
        let options = Options {
            peer_id: PeerId([number; 20]),
            sequential: self.plan.sequential,
            slots: Slots::from(slots),
            pex: self.plan.exchange,
            private: self.plan.private,
            listen_port: self.plan.exchange.then_some(LISTEN_PORT),
            down: self.plan.down,
            up: self.plan.up,
            partial_pieces_max: self.plan.partial_pieces_max,
            wanted: wanted.clone(),
            seed: self.rng.u64(..),
            ..Options::default()
        };
        let shared = Shared::new(None, None, Slots::Unlimited);
        shared.piece_bytes_max.set(self.plan.piece_bytes_max);
        let may_have = wanted.map(|mut wanted| {
            have.iter().for_each(|piece| {
                wanted.set(piece);
            });
            wanted
        });
        let disk = have.iter().map(|piece| (piece.0, self.truth(piece).to_vec())).collect();
        let swarm = Swarm::new(self.geometry, have, options, std::rc::Rc::clone(&shared));
        self.nodes.push(Node {
            swarm,
            shared,
            character,
            addr: SocketAddr::from(([20, 0, 0, number], LISTEN_PORT)),
            disk,
            buffers: BTreeMap::new(),
            sources: BTreeMap::new(),
            wrong: BTreeMap::new(),
            bans: Vec::new(),
            timer_serial: 0,
            slots,
            got: BTreeMap::new(),
            may_have,
            finished_at_ms: None,
        });
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn truth(&self, piece: PieceIndex) -> &[u8] {
        let start = usize::try_from(self.geometry.piece_start(piece)).unwrap();
        &self.content[start..start + self.geometry.piece_len(piece) as usize]
    }

    pub(crate) fn after(&mut self, wait_ms: u64, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((self.now_ms + wait_ms, self.serial, event)));
    }

    pub(crate) fn violation(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(format!("at {} ms: {text}", self.now_ms));
        }
    }

    /// Runs to the end of the plan, or until nothing is left to wait for.
    pub(crate) fn run(&mut self) {
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > self.plan.end_ms || !self.violations.is_empty() {
                break;
            }
            self.now_ms = at;
            self.handle(event);
            let quiet = self.now_ms >= self.plan.faults_until_ms;
            if self.plan.stop_when_done && quiet && self.is_done() {
                break;
            }
        }
        self.judge();
    }

    /// Runs until some node has fetched so many bytes.
    pub(crate) fn run_until_one_got(&mut self, len: u64) {
        self.run_until(|world| (0..world.nodes.len()).any(|node| world.got(node) >= len));
    }

    /// Runs until something holds.
    pub(crate) fn run_until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self)
            && let Some(Reverse((at, _, event))) = self.queue.pop()
        {
            if at > self.plan.end_ms {
                break;
            }
            self.now_ms = at;
            self.handle(event);
        }
    }

    /// Payload bytes that the node has fetched.
    pub(crate) fn got(&self, node: usize) -> u64 {
        self.nodes[node].got.values().sum()
    }

    /// Pairs of nodes, the first one not among them, that were connected at some time.
    pub(crate) fn pairs_of_leechers(&self) -> Vec<(usize, usize)> {
        let pairs = self.ends.iter().map(|end| (end.node, end.peer));
        let mut pairs: Vec<_> = pairs.filter(|(from, to)| *from > 0 && from < to).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs
    }

    pub(crate) fn is_done(&self) -> bool {
        self.honest().all(|(_, node)| node.swarm.is_finished())
    }

    pub(crate) fn honest(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.character == Character::Honest)
    }

    /// What must hold at the end.
    fn judge(&mut self) {
        let mut found = Vec::new();
        for (number, node) in self.honest() {
            if self.plan.stop_when_done && !node.swarm.is_finished() {
                found.push(format!(
                    "liveness: node {number} has {:?} at the end: {:?}",
                    node.swarm.bitfield(),
                    node.swarm.stats(self.now()),
                ));
            }
            for (&source, &count) in &node.wrong {
                let ip = self.nodes[source].addr.ip();
                if node.swarm.is_complete() && !node.bans_ip(ip) {
                    found.push(format!(
                        "node {number} did not ban node {source} for {count} wrong blocks"
                    ));
                }
            }
            node.swarm.check_invariants();
        }
        found.into_iter().for_each(|text| self.violation(text));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer { node, serial } => {
                if self.nodes[node].timer_serial == serial {
                    let now = self.now();
                    self.nodes[node].swarm.handle_timeout(now);
                    self.drain(node);
                }
            }
            Event::Ready { end, serial } => {
                if self.ends[end].open && self.ends[end].serial == serial {
                    self.transmit(end);
                }
            }
            Event::Deliver { end, serial } => {
                if self.ends[end].open && self.ends[end].serial == serial {
                    self.deliver(end);
                }
            }
            Event::Hashed { node, piece, digests } => self.hashed(node, piece, digests),
            Event::Written { node, piece } => self.written(node, piece),
            Event::Dial { from, to } => self.dial(from, to),
            Event::Nobody { from, addr } => {
                let now = self.now();
                self.nodes[from].swarm.handle_connect_failed(now, addr);
                self.drain(from);
            }
            Event::Fault => self.fault(),
            Event::Mischief { node } => self.mischief(node),
        }
    }

    /// Does what the node's swarm wants done, and sets its timer.
    pub(crate) fn drain(&mut self, number: usize) {
        while let Some(action) = self.nodes[number].swarm.poll_action() {
            match action {
                Action::Transmit(key) => {
                    if let Some(end) = self.end_of(number, key) {
                        self.transmit(end);
                    }
                }
                Action::Close(key, reason) => self.closed(number, key, reason),
                Action::Connect(addr) => {
                    let wait = self.rng.u64(1..200);
                    match self.nodes.iter().position(|node| node.addr == addr) {
                        Some(to) => self.after(wait, Event::Dial { from: number, to }),
                        // Whoever bends messages names peers that do not exist.
                        None => self.after(wait, Event::Nobody { from: number, addr }),
                    }
                }
                Action::Verify { piece, digests } => {
                    let wait = self.rng.u64(0..20);
                    self.after(wait, Event::Hashed { node: number, piece: piece.0, digests });
                }
                Action::Discard(piece) => self.nodes[number].discard(piece),
                Action::Ban(offender, _) => {
                    self.nodes[number].bans.push(offender);
                    let node = &self.nodes[number];
                    let wrongly: Vec<usize> = self
                        .honest()
                        .filter(|(_, other)| node.bans_ip(other.addr.ip()))
                        .map(|(other, _)| other)
                        .collect();
                    for other in wrongly {
                        self.violation(format!("S8: node {number} banned honest node {other}"));
                    }
                }
                // Its nodes have no DHT.
                Action::Node(_) => {}
                Action::Finished => self.nodes[number].finished_at_ms = Some(self.now_ms),
            }
        }
        self.check_slots(number);
        self.check_memory(number);
        let now = self.now();
        if let Some(at) = self.nodes[number].swarm.poll_timeout() {
            let wait = at.saturating_duration_since(now).as_nanos().div_ceil(1_000_000).max(1);
            self.nodes[number].timer_serial += 1;
            let serial = self.nodes[number].timer_serial;
            self.after(u64::try_from(wait).unwrap(), Event::Timer { node: number, serial });
        }
    }

    fn check_slots(&mut self, number: usize) {
        let now = self.now();
        let node = &self.nodes[number];
        let unchoked = node.swarm.stats(now).unchoked;
        if node.slots.is_some_and(|slots| unchoked > slots) {
            self.violation(format!("S4: node {number} unchoked {unchoked}"));
        }
    }

    fn check_memory(&mut self, number: usize) {
        let used = self.nodes[number].shared.piece_bytes();
        if used > self.plan.piece_bytes_max {
            self.violation(format!("node {number} has {used} bytes of pieces in memory"));
        }
    }

    fn hashed(&mut self, number: usize, piece: u32, digests: bool) {
        let now = self.now();
        let index = PieceIndex(piece);
        let truth = self.truth(index).to_vec();
        let node = &mut self.nodes[number];
        let Some(data) = node.buffers.get(&piece) else {
            return;
        };
        let good = *data == truth || self.plan.defect == Defect::NoVerification;
        let list: Vec<_> = data.chunks(BLOCK_LEN as usize).map(digest).collect();
        if !good {
            let chunks = data.chunks(BLOCK_LEN as usize).zip(truth.chunks(BLOCK_LEN as usize));
            for ((theirs, right), begin) in chunks.zip((0u32..).step_by(BLOCK_LEN as usize)) {
                if theirs != right
                    && let Some(&source) = node.sources.get(&(piece, begin))
                {
                    *node.wrong.entry(source).or_default() += 1;
                }
            }
        }
        let verdict = match good {
            true => Verdict::Good(if digests { list } else { Vec::new() }),
            false => Verdict::Bad(list),
        };
        node.swarm.handle_verified(now, index, verdict);
        if good {
            let wait = self.rng.u64(0..50);
            self.after(wait, Event::Written { node: number, piece });
        }
        self.drain(number);
    }

    fn written(&mut self, number: usize, piece: u32) {
        let now = self.now();
        let index = PieceIndex(piece);
        let truth = self.truth(index).to_vec();
        let node = &mut self.nodes[number];
        let Some(data) = node.buffers.remove(&piece) else {
            return;
        };
        let right = data == truth;
        node.disk.insert(piece, data);
        node.swarm.handle_stored(now, index);
        if node.may_have.as_ref().is_some_and(|may_have| !may_have.has(index)) {
            self.violation(format!(
                "S9: node {number} fetched piece {piece}, which it does not want"
            ));
            return;
        }
        if !right && node.character == Character::Honest {
            self.violation(format!("S2: node {number} has wrong data in piece {piece}"));
        }
        if self.plan.defect == Defect::ServesUnverified {
            self.nodes[number].disk.remove(&piece);
        }
        self.drain(number);
    }
}
