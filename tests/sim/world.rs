//! The world: nodes, links and a clock, all of it out of one seed.
//!
//! Bytes that one swarm puts on a link come out of it later, cut anywhere, into the other one's
//! decoder; disks take their time; faults come and go. What breaks a promise is written down in
//! `violations`. Invariant: the same plan and seed give the same run.

use crate::node::{Character, Node, digest};
use seedring::swarm::choker::Slots;
use seedring::swarm::{Action, Error, Options, Payload, PeerInit, PeerKey, Shared, Source};
use seedring::swarm::{Swarm, Verdict};
use seedring::units::{BLOCK_LEN, Bitfield, Geometry, PeerId, PieceIndex};
use seedring::wire::{Decoder, Incoming, Limits};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

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
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Timer { node: usize, serial: u64 },
    Deliver { end: usize, serial: u64 },
    Ready { end: usize, serial: u64 },
    Hashed { node: usize, piece: u32, digests: bool },
    Written { node: usize, piece: u32 },
    Dial { from: usize, to: usize },
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
    serial: u64,
    next_port: u16,
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
            self.add_node(Character::Honest, true, plan.slots);
        }
        for number in 0..plan.leechers {
            let rides = number >= plan.leechers - plan.free_riders;
            self.add_node(Character::Honest, false, if rides { Some(0) } else { plan.slots });
        }
        for &character in &plan.adversaries {
            self.add_node(character, true, None);
        }
        let count = self.nodes.len();
        for from in 0..count {
            let addrs: Vec<SocketAddr> =
                (0..count).filter(|&to| to != from).map(|to| self.nodes[to].addr).collect();
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

    fn add_node(&mut self, character: Character, complete: bool, slots: Option<u32>) {
        let number = u8::try_from(self.nodes.len() + 1).unwrap();
        let pieces = self.geometry.piece_count();
        let mut have = if complete { Bitfield::all(pieces) } else { Bitfield::none(pieces) };
        for piece in (0..pieces).map(PieceIndex) {
            if self.rng.u32(..100) < self.plan.head_start {
                have.set(piece);
            }
        }
        let slots = if self.plan.defect == Defect::NoUnchoke { Some(0) } else { slots };
        let options = Options {
            peer_id: PeerId([number; 20]),
            sequential: self.plan.sequential,
            slots: Slots::from(slots),
            down: self.plan.down,
            up: self.plan.up,
            partial_pieces_max: self.plan.partial_pieces_max,
            seed: self.rng.u64(..),
            ..Options::default()
        };
        let shared = Shared::new(None, None, Slots::Unlimited);
        shared.piece_bytes_max.set(self.plan.piece_bytes_max);
        let disk = have.iter().map(|piece| (piece.0, self.truth(piece).to_vec())).collect();
        let swarm = Swarm::new(self.geometry, have, options, std::rc::Rc::clone(&shared));
        self.nodes.push(Node {
            swarm,
            shared,
            character,
            addr: SocketAddr::from(([20, 0, 0, number], 6881)),
            disk,
            buffers: BTreeMap::new(),
            sources: BTreeMap::new(),
            wrong: BTreeMap::new(),
            bans: Vec::new(),
            timer_serial: 0,
            slots,
            got: BTreeMap::new(),
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
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > self.plan.end_ms || (0..self.nodes.len()).any(|node| self.got(node) >= len) {
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

    pub(crate) fn is_done(&self) -> bool {
        self.honest().all(|(_, node)| node.swarm.is_complete())
    }

    pub(crate) fn honest(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.character == Character::Honest)
    }

    /// What must hold at the end.
    fn judge(&mut self) {
        let mut found = Vec::new();
        for (number, node) in self.honest() {
            if self.plan.stop_when_done && !node.swarm.is_complete() {
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
                    let to = self.nodes.iter().position(|node| node.addr == addr).unwrap();
                    let wait = self.rng.u64(1..200);
                    self.after(wait, Event::Dial { from: number, to });
                }
                Action::Verify { piece, digests } => {
                    let wait = self.rng.u64(0..20);
                    self.after(wait, Event::Hashed { node: number, piece: piece.0, digests });
                }
                Action::Discard(piece) => self.nodes[number].discard(piece),
                Action::Ban(offender) => {
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

    fn end_of(&self, node: usize, key: PeerKey) -> Option<usize> {
        self.ends.iter().position(|end| end.open && end.node == node && end.key == key)
    }

    fn dial(&mut self, from: usize, to: usize) {
        let now = self.now();
        let fails = self.now_ms < self.plan.faults_until_ms && self.rng.u32(..10) == 0;
        let to_addr = self.nodes[to].addr;
        if fails {
            self.nodes[from].swarm.handle_connect_failed(now, to_addr);
            return self.drain(from);
        }
        self.next_port = self.next_port.wrapping_add(1).max(1024);
        let from_addr = SocketAddr::new(self.nodes[from].addr.ip(), self.next_port);
        let fast = self.plan.fast && self.rng.u32(..4) > 0;
        let init = |addr, number: usize, outgoing| PeerInit {
            addr,
            peer_id: PeerId([u8::try_from(number + 1).unwrap(); 20]),
            fast,
            extensions: fast,
            outgoing,
        };
        let ours = self.nodes[from].swarm.handle_connected(now, init(to_addr, to, true));
        let Ok(ours) = ours else {
            return self.drain(from);
        };
        match self.nodes[to].swarm.handle_connected(now, init(from_addr, from, false)) {
            Ok(theirs) => {
                self.link(from, ours, to, theirs);
                self.drain(from);
                self.drain(to);
            }
            Err(_) => {
                self.nodes[from].swarm.handle_disconnected(now, ours);
                self.drain(from);
                self.drain(to);
            }
        }
    }

    fn link(&mut self, from: usize, ours: PeerKey, to: usize, theirs: PeerKey) {
        let pieces = self.geometry.piece_count();
        let base = self.ends.len();
        let (slow, fast) = self.plan.rate;
        let (near, far) = self.plan.delay_ms;
        for (node, key, peer, other) in [(from, ours, to, base + 1), (to, theirs, from, base)] {
            self.serial += 1;
            self.ends.push(End {
                node,
                key,
                peer,
                other,
                serial: self.serial,
                open: true,
                busy_until: 0,
                wants: false,
                on_the_way: std::collections::VecDeque::new(),
                decoder: Some(Decoder::new(Limits::new(pieces))),
                arriving: None,
                rate: self.rng.u64(slow..=fast),
                delay_ms: self.rng.u64(near..=far),
            });
        }
    }

    /// The node ends a connection; the other side learns of it at once.
    fn closed(&mut self, number: usize, key: PeerKey, reason: Error) {
        let Some(end) = self.end_of(number, key) else {
            return;
        };
        let peer = self.ends[end].peer;
        let honest = |node: usize| self.nodes[node].character == Character::Honest;
        let harmless = matches!(
            reason,
            Error::NothingToTrade | Error::Replaced | Error::Inactive | Error::BlockStalled
        );
        if honest(number) && honest(peer) && !harmless {
            self.violation(format!("node {number} closed honest node {peer}: {reason}"));
        }
        self.cut(end);
    }

    pub(crate) fn cut(&mut self, end: usize) {
        let other = self.ends[end].other;
        let now = self.now();
        for end in [end, other] {
            self.ends[end].open = false;
            let (node, key) = (self.ends[end].node, self.ends[end].key);
            self.nodes[node].swarm.handle_disconnected(now, key);
        }
        for end in [end, other] {
            self.drain(self.ends[end].node);
        }
    }

    /// Puts on the wire what the swarm has for this end, unless it is busy.
    fn transmit(&mut self, end: usize) {
        if self.now_ms < self.ends[end].busy_until {
            if !std::mem::replace(&mut self.ends[end].wants, true) {
                let wait = self.ends[end].busy_until - self.now_ms;
                let serial = self.ends[end].serial;
                self.after(wait, Event::Ready { end, serial });
            }
            return;
        }
        self.ends[end].wants = false;
        let (number, key) = (self.ends[end].node, self.ends[end].key);
        let now = self.now();
        // About what the link takes in half a second, as a worker would keep it.
        let blocks_max = (self.ends[end].rate / 2 / u64::from(BLOCK_LEN)).clamp(1, 64);
        let budget = u64::from(BLOCK_LEN) * self.rng.u64(1..=blocks_max);
        let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
        let more =
            self.nodes[number].swarm.poll_transmit(now, key, budget, &mut bytes, &mut blocks);
        if self.plan.defect == Defect::NeverAsksForPiece0 {
            bytes = self.without_requests_for_0(&bytes);
        }
        let mut payload = 0;
        for block in blocks {
            self.put_block(end, block, &mut bytes);
            payload += u64::from(block.len);
        }
        if payload > 0 {
            self.nodes[number].swarm.handle_sent(now, key, payload);
            *self.served.entry((number, self.ends[end].peer)).or_default() += payload;
        }
        self.send(end, bytes, more);
    }

    fn send(&mut self, end: usize, mut bytes: Vec<u8>, more: bool) {
        let character = self.nodes[self.ends[end].node].character;
        if let Character::Mutator(of) = character {
            let strikes = self.rng.u32(..of) == 0 && !bytes.is_empty();
            if strikes {
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= self.rng.u8(1..);
            }
        }
        let one = &mut self.ends[end];
        let took = bytes.len() as u64 * 1000 / one.rate + 1;
        one.busy_until = self.now_ms + took;
        let (serial, delay) = (one.serial, one.delay_ms);
        if !bytes.is_empty() {
            one.on_the_way.push_back(bytes);
            self.after(took + delay, Event::Deliver { end, serial });
        }
        if more {
            self.ends[end].wants = true;
            self.after(took, Event::Ready { end, serial });
        }
    }

    /// Bytes come out of the link, cut anywhere.
    fn deliver(&mut self, end: usize) {
        let Some(bytes) = self.ends[end].on_the_way.pop_front() else {
            return;
        };
        let Some(mut decoder) = self.ends[end].decoder.take() else {
            return;
        };
        let mut rest = &bytes[..];
        let mut good = true;
        while !rest.is_empty() && good {
            let cut =
                if self.rng.u32(..4) == 0 { self.rng.usize(1..=rest.len()) } else { rest.len() };
            let (mut input, later) = rest.split_at(cut);
            rest = later;
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(incoming)) if self.ends[end].open => {
                        good = self.receive(end, incoming);
                        if !good {
                            break;
                        }
                    }
                    Ok(_) => break,
                    Err(_) => {
                        good = false;
                        break;
                    }
                }
            }
        }
        self.ends[end].decoder = Some(decoder);
        let other = self.ends[end].other;
        if !good && self.ends[end].open {
            self.cut(other);
        } else if self.ends[end].open {
            self.drain(self.ends[other].node);
        }
    }

    /// One message or chunk reaches the swarm at the other end; false ends the connection.
    fn receive(&mut self, end: usize, incoming: Incoming<'_>) -> bool {
        let other = self.ends[end].other;
        let (number, key, source) =
            (self.ends[other].node, self.ends[other].key, self.ends[end].node);
        let now = self.now();
        let result = match incoming {
            Incoming::Message(message) => {
                self.nodes[number].swarm.handle_message(now, key, message)
            }
            Incoming::Payload { block, offset, data } => {
                let mut result = Ok(());
                // A header may come alone: then the first data has offset 0 as well.
                if offset == 0 && self.ends[end].arriving.is_none() {
                    let payload = self.nodes[number].swarm.handle_payload(now, key, block);
                    result = payload.map(|payload| {
                        let mut accepted = payload != Payload::Discard;
                        if payload == Payload::AcceptInPlace && self.rng.u32(..50) == 0 {
                            // No room for it just now.
                            self.nodes[number].swarm.handle_dropped(now, key, block);
                            accepted = false;
                        }
                        self.ends[end].arriving = Some((accepted, Vec::new()));
                    });
                }
                if let Some((accepted, buffer)) = &mut self.ends[end].arriving {
                    buffer.extend_from_slice(data);
                    if buffer.len() == block.len as usize {
                        let (accepted, buffer) = (*accepted, std::mem::take(buffer));
                        self.ends[end].arriving = None;
                        if accepted {
                            let piece_len = self.geometry.piece_len(block.piece);
                            self.nodes[number].store(block, &buffer, piece_len, source);
                            self.nodes[number].swarm.handle_block(now, key, block);
                        }
                    }
                }
                result
            }
        };
        let Err(error) = result else {
            return true;
        };
        let honest = |node: usize| self.nodes[node].character == Character::Honest;
        if honest(number) && honest(source) {
            self.violation(format!("node {number} closes honest node {source}: {error}"));
        }
        false
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
        if !right && node.character == Character::Honest {
            self.violation(format!("S2: node {number} has wrong data in piece {piece}"));
        }
        if self.plan.defect == Defect::ServesUnverified {
            self.nodes[number].disk.remove(&piece);
        }
        self.drain(number);
    }
}
