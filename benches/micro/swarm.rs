//! The swarm on both sides of a transfer, without any IO around it.
//!
//! `pick`: peers that have everything or half of it answer whatever they are asked for, until the
//! torrent is complete; the time is that of a block from choosing it to having it. `serve`: peers
//! ask, and what is due is handed out; the time is that of a block from its request to its send.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use seedring::swarm::choker::Slots;
use seedring::swarm::{Action, Options, Payload, PeerInit, PeerKey, Shared, Swarm, Verdict};
use seedring::sys::clock;
use seedring::units::{BLOCK_LEN, Bitfield, Block, Geometry, PeerId, PieceIndex};
use seedring::wire::{Decoder, Incoming, Limits, Message};

use crate::timing::{Bench, Per, fold};

const PIECE_LEN: u32 = 1 << 20;

const PIECE_BLOCKS: u32 = PIECE_LEN / BLOCK_LEN;

/// Bytes of blocks that one send takes.
const SEND_LEN: u64 = 1 << 20;

/// How far the clock goes on when everybody had a turn.
const TURN: Duration = Duration::from_millis(5);

/// Turns after which a swarm that is not complete is stuck.
const TURNS_MAX: usize = 1_000_000;

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let piece_count = u32::try_from(bench.size(2000, 4)).expect("a small number");
    let geometry = Geometry::new(u64::from(piece_count) * u64::from(PIECE_LEN), PIECE_LEN)
        .expect("a whole number of pieces");
    let block_count = piece_count as usize * PIECE_BLOCKS as usize;
    let now = clock::now();
    for (peer_count, halves) in [(4, false), (100, false), (100, true), (500, true)] {
        let peer_count = bench.size(peer_count, 2);
        let what = if halves { "half of it" } else { "everything" };
        let name = format!("pick: {peer_count} peers with {what}");
        let prepare = || Leech::new(now, geometry, peer_count, halves && peer_count > 2);
        bench.case(&name, Per::Item("block"), block_count, prepare, Leech::fetch_all);
    }
    for (peer_count, depth) in [(8, 128), (500, 8)] {
        let peer_count = bench.size(peer_count, 2);
        let turns = bench.size(400_000 / (peer_count * depth), 1);
        let name = format!("serve: {peer_count} peers × {depth} requests");
        let prepare = || Seed::new(now, geometry, peer_count);
        let count = peer_count * depth * turns;
        bench.case(&name, Per::Item("block"), count, prepare, |seed| seed.serve(depth, turns));
    }
}

fn options() -> Options {
    Options { seed: 6, ..Options::default() }
}

fn connect(swarm: &mut Swarm, now: Instant, index: usize) -> PeerKey {
    let number = u32::try_from(index).expect("a small number");
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + number);
    let mut peer_id = [0; 20];
    peer_id[..4].copy_from_slice(&(number + 1).to_be_bytes());
    let addr = SocketAddr::from((ip, 6881));
    let peer_id = PeerId(peer_id);
    let init =
        PeerInit { addr, peer_id, fast: true, extensions: false, dht: false, outgoing: true };
    swarm.handle_connected(now, init).expect("the swarm takes everybody")
}

fn hear(swarm: &mut Swarm, now: Instant, key: PeerKey, message: Message<'_>) {
    swarm.handle_message(now, key, message).expect("the peer keeps to the rules");
}

/// A swarm that fetches, and its peers.
struct Leech {
    swarm: Swarm,
    now: Instant,
    peers: Vec<PeerKey>,
    /// Requests that were made of each peer and are not answered.
    asked: Vec<VecDeque<Block>>,
    checksum: u64,
}

impl Leech {
    fn new(now: Instant, geometry: Geometry, peer_count: usize, halves: bool) -> Self {
        let have = Bitfield::none(geometry.piece_count());
        let shared = Shared::new(None, None, Slots::Unlimited);
        let mut swarm = Swarm::new(geometry, have, options(), shared);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut peers = Vec::new();
        for index in 0..peer_count {
            let key = connect(&mut swarm, now, index);
            // Of every piece somebody has it: the peers come in pairs that complete each other.
            if halves && index + 1 < peer_count {
                let mut bits = Bitfield::none(geometry.piece_count());
                for piece in (0..geometry.piece_count()).map(PieceIndex) {
                    if rng.bool() {
                        bits.set(piece);
                    }
                }
                hear(&mut swarm, now, key, Message::Bitfield(&bits.to_wire()));
            } else {
                hear(&mut swarm, now, key, Message::HaveAll);
            }
            hear(&mut swarm, now, key, Message::Unchoke);
            peers.push(key);
        }
        let asked = vec![VecDeque::new(); peer_count];
        Self { swarm, now, peers, asked, checksum: 0 }
    }

    fn fetch_all(mut self) -> u64 {
        for _ in 0..TURNS_MAX {
            self.act();
            if self.swarm.is_complete() {
                return self.checksum;
            }
            for index in 0..self.peers.len() {
                self.collect(index);
                while let Some(block) = self.asked[index].pop_front() {
                    self.answer(self.peers[index], block);
                }
            }
            self.now += TURN;
            if self.swarm.poll_timeout().is_some_and(|at| at <= self.now) {
                self.swarm.handle_timeout(self.now);
            }
        }
        panic!("the swarm is stuck at {} pieces", self.swarm.bitfield().count());
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll_action() {
            if let Action::Verify { piece, .. } = action {
                self.swarm.handle_verified(self.now, piece, Verdict::Good(Vec::new()));
                self.swarm.handle_stored(self.now, piece);
            }
        }
    }

    /// Takes over what the swarm asks of a peer.
    fn collect(&mut self, index: usize) {
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        self.swarm.poll_transmit(self.now, self.peers[index], SEND_LEN, &mut control, &mut blocks);
        let mut decoder = Decoder::new(Limits::new(self.swarm.geometry().piece_count()));
        let (asked, checksum) = (&mut self.asked[index], &mut self.checksum);
        let handle = |incoming: Incoming<'_>| match incoming {
            Incoming::Message(Message::Request(block)) => {
                *checksum = fold(*checksum, u64::from(block.piece.0 ^ block.begin));
                asked.push_back(block);
            }
            Incoming::Message(Message::Cancel(block)) => asked.retain(|other| *other != block),
            _ => {}
        };
        decoder.decode_all(&control, handle).expect("what the swarm says is valid");
    }

    fn answer(&mut self, key: PeerKey, block: Block) {
        let verdict = self.swarm.handle_payload(self.now, key, block);
        if verdict.expect("the block was asked for") == Payload::Accept {
            self.swarm.handle_block(self.now, key, block);
        }
    }
}

/// A swarm that serves, and its peers.
struct Seed {
    swarm: Swarm,
    now: Instant,
    peers: Vec<PeerKey>,
}

impl Seed {
    fn new(now: Instant, geometry: Geometry, peer_count: usize) -> Self {
        let have = Bitfield::all(geometry.piece_count());
        let shared = Shared::new(None, None, Slots::Unlimited);
        let mut swarm = Swarm::new(geometry, have, options(), shared);
        let mut peers = Vec::new();
        for index in 0..peer_count {
            let key = connect(&mut swarm, now, index);
            hear(&mut swarm, now, key, Message::HaveNone);
            hear(&mut swarm, now, key, Message::Interested);
            peers.push(key);
        }
        while swarm.poll_action().is_some() {}
        Self { swarm, now, peers }
    }

    fn serve(mut self, depth: usize, turns: usize) -> u64 {
        let mut rng = fastrand::Rng::with_seed(8);
        let (mut checksum, mut control, mut blocks) = (0, Vec::new(), Vec::new());
        for _ in 0..turns {
            for &key in &self.peers {
                let piece_count = self.swarm.geometry().piece_count();
                let first = rng.u32(..piece_count);
                for number in (0u32..).take(depth) {
                    let piece = PieceIndex((first + number / PIECE_BLOCKS) % piece_count);
                    let begin = number % PIECE_BLOCKS * BLOCK_LEN;
                    let block = Block { piece, begin, len: BLOCK_LEN };
                    hear(&mut self.swarm, self.now, key, Message::Request(block));
                }
            }
            while self.swarm.poll_action().is_some() {}
            for &key in &self.peers {
                loop {
                    blocks.clear();
                    let transmit = &mut self.swarm;
                    transmit.poll_transmit(self.now, key, SEND_LEN, &mut control, &mut blocks);
                    if blocks.is_empty() {
                        break;
                    }
                    let sent = blocks.iter().map(|block| u64::from(block.len)).sum();
                    checksum = blocks.iter().fold(checksum, |sum, block| {
                        fold(sum, u64::from(block.piece.0 ^ block.begin))
                    });
                    self.swarm.handle_sent(self.now, key, sent);
                }
            }
            self.now += TURN;
        }
        checksum
    }
}
