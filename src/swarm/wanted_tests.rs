//! Selections: what is picked, what peers are told, and what a change of mind does.

use super::tests::{Pair, block, init, pair, piece};
use super::*;
use crate::units::BLOCK_LEN;
use crate::wire::{Decoder, ExtensionHandshake, Incoming, Limits as WireLimits, Message};
use std::collections::BTreeSet;
use std::time::Duration;

fn set_of(len: u32, pieces: impl IntoIterator<Item = u32>) -> Bitfield {
    let mut set = Bitfield::none(len);
    pieces.into_iter().for_each(|at| {
        set.set(piece(at));
    });
    set
}

fn some_of(len: u32, rng: &mut fastrand::Rng) -> Bitfield {
    let of_100 = rng.u32(..=100);
    set_of(len, (0..len).filter(|_| rng.u32(..100) < of_100).collect::<Vec<_>>())
}

/// A swarm and the peers that give it what it asks for.
struct Field {
    swarm: Swarm,
    now: Instant,
    /// With what they have; `None` for those whose connection was closed.
    peers: Vec<(Option<PeerKey>, Bitfield)>,
    /// Every piece of which a block was asked for.
    asked: BTreeSet<PieceIndex>,
    /// How often it was said that all is here.
    finished: u32,
    /// The last interest that was told to each peer, and whether we want data.
    interest: Vec<bool>,
    upload_only: Vec<bool>,
}

impl Field {
    fn new(geometry: Geometry, have: Bitfield, options: Options) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let shared = Shared::new(None, None, Slots::Unlimited);
        let swarm = Swarm::new(geometry, have, options, shared);
        let (peers, asked) = (Vec::new(), BTreeSet::new());
        Self { swarm, now, peers, asked, finished: 0, interest: vec![], upload_only: vec![] }
    }

    fn meet(&mut self, theirs: &Bitfield) {
        self.peers.push((None, theirs.clone()));
        self.interest.push(false);
        self.upload_only.push(false);
        self.meet_again();
    }

    /// Those whose connection was closed come back.
    fn meet_again(&mut self) {
        for (at, (key, theirs)) in self.peers.iter_mut().enumerate() {
            if key.is_some() {
                continue;
            }
            let number = u8::try_from(at + 2).unwrap();
            let new = self.swarm.handle_connected(self.now, init(1, number, false)).unwrap();
            *key = Some(new);
            let bits = theirs.to_wire();
            for message in [Message::Bitfield(&bits), Message::Unchoke] {
                self.swarm.handle_message(self.now, new, message).unwrap();
            }
        }
    }

    /// Everything that can be done without time passing, in a random order of peers.
    fn settle(&mut self, rng: &mut fastrand::Rng) {
        loop {
            let mut has_moved = false;
            while let Some(action) = self.swarm.poll_action() {
                has_moved = true;
                match action {
                    Action::Verify { piece, .. } => {
                        self.swarm.handle_verified(self.now, piece, Verdict::Good(vec![]));
                        self.swarm.handle_stored(self.now, piece);
                    }
                    Action::Finished => self.finished += 1,
                    Action::Close(key, reason) => {
                        assert_eq!(reason, Error::NothingToTrade);
                        self.swarm.handle_disconnected(self.now, key);
                        let mut gone = self.peers.iter_mut();
                        gone.find(|(other, _)| *other == Some(key)).unwrap().0 = None;
                    }
                    _ => {}
                }
            }
            for at in 0..self.peers.len() {
                let Some(key) = self.peers[at].0 else { continue };
                let requests = self.hear(at, key);
                has_moved |= !requests.is_empty();
                for block in requests.into_iter().filter(|_| rng.u32(..8) > 0) {
                    let taken = self.swarm.handle_payload(self.now, key, block).unwrap();
                    if taken != Payload::Discard {
                        self.swarm.handle_block(self.now, key, block);
                    }
                }
            }
            self.swarm.check_invariants();
            if !has_moved {
                return;
            }
        }
    }

    /// What is asked of a peer; what else it is told is noted.
    fn hear(&mut self, at: usize, key: PeerKey) -> Vec<Block> {
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        while self.swarm.poll_transmit(self.now, key, 1 << 20, &mut control, &mut blocks) {}
        let mut requests = Vec::new();
        let mut decoder = Decoder::new(WireLimits::new(self.swarm.geometry().piece_count()));
        let (interest, upload_only) = (&mut self.interest[at], &mut self.upload_only[at]);
        let decoded = decoder.decode_all(&control, |incoming| match incoming {
            Incoming::Message(Message::Request(block)) => requests.push(block),
            Incoming::Message(Message::Cancel(block)) => requests.retain(|&it| it != block),
            Incoming::Message(Message::Interested) => *interest = true,
            Incoming::Message(Message::NotInterested) => *interest = false,
            Incoming::Message(Message::Extended { id: 0, payload }) => {
                let said = ExtensionHandshake::parse(payload).unwrap();
                *upload_only = said.upload_only.unwrap_or(*upload_only);
            }
            _ => {}
        });
        decoded.unwrap();
        self.asked.extend(requests.iter().map(|block| block.piece));
        requests
    }

    /// Settles until nothing is owed any more: blocks that were left out are asked for again.
    fn run(&mut self, rng: &mut fastrand::Rng) {
        for _ in 0..400 {
            self.settle(rng);
            self.now += Duration::from_secs(1);
            self.swarm.handle_timeout(self.now);
        }
        self.settle(rng);
    }
}

/// A short last piece, and pieces of several blocks.
fn geometry(rng: &mut fastrand::Rng) -> Geometry {
    let piece_len = BLOCK_LEN << rng.u32(..3);
    Geometry::new(rng.u64(1..40 * u64::from(piece_len)), piece_len).unwrap()
}

#[test]
fn every_wanted_piece_is_fetched_and_no_other() {
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let geometry = geometry(&mut rng);
        let len = geometry.piece_count();
        let (wanted, have) = (some_of(len, &mut rng), some_of(len, &mut rng));
        let options = Options {
            wanted: Some(wanted.clone()),
            seed,
            sequential: rng.bool(),
            ..Options::default()
        };
        let mut field = Field::new(geometry, have.clone(), options);
        // Together they have everything, none of them alone.
        let half = some_of(len, &mut rng);
        let rest: Vec<u32> = (0..len).filter(|&at| !half.has(piece(at))).collect();
        let theirs = [half, set_of(len, rest), some_of(len, &mut rng)];
        theirs.iter().for_each(|theirs| field.meet(theirs));
        field.run(&mut rng);
        let lacking: BTreeSet<_> = wanted.iter().filter(|&it| !have.has(it)).collect();
        assert_eq!(field.asked, lacking, "seed {seed}");
        assert!(field.swarm.is_finished(), "seed {seed}");
        assert_eq!(field.swarm.stats(field.now).phase, choker::Phase::Seeding);
        assert_eq!(field.finished, u32::from(!lacking.is_empty()), "seed {seed}");
        for (at, (key, theirs)) in field.peers.iter().enumerate() {
            let told = (field.interest[at], field.upload_only[at]);
            assert!(key.is_none() || told == (false, true), "seed {seed}: {told:?}");
            assert_eq!(key.is_none(), theirs.is_complete(), "seed {seed}: seeds are let go");
        }
        let all = (0..len).map(piece).filter(|&it| wanted.has(it) || have.has(it));
        assert!(all.eq(field.swarm.bitfield().iter()), "seed {seed}");
    }
}

#[test]
fn a_change_of_mind_is_followed() {
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let geometry = geometry(&mut rng);
        let len = geometry.piece_count();
        let mut field =
            Field::new(geometry, Bitfield::none(len), Options { seed, ..Options::default() });
        let mut wanted = some_of(len, &mut rng);
        field.swarm.set_wanted(field.now, Some(wanted.clone()));
        for _ in 0..3 {
            field.meet(&Bitfield::all(len));
        }
        for _ in 0..6 {
            // Whatever is under way may not be wanted any more, and be wanted again.
            wanted = some_of(len, &mut rng);
            field.swarm.set_wanted(field.now, Some(wanted.clone()));
            field.meet_again();
            let held = field.swarm.bitfield().clone();
            field.asked.clear();
            if rng.bool() {
                let lost = piece(rng.u32(..len));
                field.swarm.handle_lost(field.now, lost);
            }
            field.settle(&mut rng);
            let fresh = |it: &PieceIndex| wanted.has(*it);
            assert!(field.asked.iter().all(fresh), "seed {seed}: {:?} {held:?}", field.asked);
        }
        field.swarm.set_wanted(field.now, None);
        field.meet_again();
        field.run(&mut rng);
        assert!(field.swarm.is_complete(), "seed {seed}");
    }
}

#[test]
fn a_peer_without_anything_wanted_is_not_interesting() {
    let options = Options { wanted: Some(set_of(8, [2, 3])), ..Options::default() };
    let mut pair: Pair = pair(Bitfield::none(8), options);
    pair.say(Message::Bitfield(&set_of(8, [0, 1, 4]).to_wire())).unwrap();
    let (texts, _) = pair.hear();
    assert!(!texts.contains(&"Interested".to_owned()), "{texts:?}");
    pair.say(Message::Have(piece(3))).unwrap();
    assert_eq!(pair.hear().0, ["Interested"]);
    // What it is interesting for is found on the disk.
    pair.swarm.handle_stored(pair.now, piece(3));
    assert_eq!(pair.hear().0, ["NotInterested"]);
    assert!(!pair.swarm.is_finished());
}

#[test]
fn a_partial_seed_has_no_use_for_seeds_and_serves_others() {
    let options = Options { wanted: Some(set_of(8, [2])), ..Options::default() };
    let mut pair = pair(set_of(8, [2]), options);
    assert!(pair.swarm.is_finished() && !pair.swarm.is_complete());
    let other = pair.swarm.handle_connected(pair.now, init(9, 3, false)).unwrap();
    pair.swarm.handle_message(pair.now, other, Message::HaveAll).unwrap();
    pair.say(Message::Bitfield(&set_of(8, [0, 1]).to_wire())).unwrap();
    pair.say(Message::Interested).unwrap();
    let actions: Vec<_> = std::iter::from_fn(|| pair.swarm.poll_action()).collect();
    assert!(actions.contains(&Action::Close(other, Error::NothingToTrade)), "{actions:?}");
    pair.say(Message::Request(block(2, 1))).unwrap();
    let (texts, blocks) = pair.hear();
    assert_eq!(blocks, [block(2, 1)]);
    assert!(texts.contains(&"Unchoke".to_owned()), "{texts:?}");
}
