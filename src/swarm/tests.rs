//! Single peers against a swarm: serving, and what hostile ones are answered.

use super::*;
use crate::units::{BLOCK_LEN, InfoHash};
use crate::wire::{Decoder, ExtensionHandshake, Incoming, Message};
use std::time::Duration;

pub(super) const PIECES: u32 = 8;

pub(super) struct Pair {
    pub(super) swarm: Swarm,
    pub(super) key: PeerKey,
    pub(super) now: Instant,
}

pub(super) fn piece(index: u32) -> PieceIndex {
    PieceIndex(index)
}

pub(super) fn block(index: u32, number: u32) -> Block {
    Block { piece: piece(index), begin: number * BLOCK_LEN, len: BLOCK_LEN }
}

pub(super) fn init(port: u16, id: u8, outgoing: bool) -> PeerInit {
    let addr = SocketAddr::from(([20, 0, 0, id], port));
    PeerInit { addr, peer_id: PeerId([id; 20]), fast: true, extensions: true, dht: false, outgoing }
}

pub(super) fn pair(have: Bitfield, options: Options) -> Pair {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    let now = Instant::now();
    let geometry = Geometry::new(u64::from(PIECES * 4 * BLOCK_LEN), 4 * BLOCK_LEN).unwrap();
    let shared = Shared::new(None, None, Slots::Unlimited);
    let mut swarm = Swarm::new(geometry, have, options, shared);
    let key = swarm.handle_connected(now, init(1, 2, false)).unwrap();
    Pair { swarm, key, now }
}

impl Pair {
    pub(super) fn say(&mut self, message: Message<'_>) -> Result<(), Error> {
        self.swarm.handle_message(self.now, self.key, message)
    }

    /// What is sent to the peer: messages as text, and blocks.
    pub(super) fn hear(&mut self) -> (Vec<String>, Vec<Block>) {
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        while self.swarm.poll_transmit(self.now, self.key, 1 << 20, &mut control, &mut blocks) {}
        let mut texts = Vec::new();
        let mut decoder = Decoder::new(crate::wire::Limits::new(PIECES));
        decoder
            .decode_all(&control, |incoming| {
                if let Incoming::Message(message) = incoming {
                    texts.push(format!("{message:?}"));
                }
            })
            .unwrap();
        (texts, blocks)
    }

    pub(super) fn serving(options: Options) -> Self {
        let mut pair = pair(Bitfield::all(PIECES), options);
        pair.say(Message::HaveNone).unwrap();
        pair.say(Message::Interested).unwrap();
        pair
    }

    /// A swarm that lacks everything, and a peer that gives.
    pub(super) fn fetching() -> Self {
        let mut pair = pair(Bitfield::none(PIECES), Options::default());
        pair.say(Message::HaveAll).unwrap();
        pair.say(Message::Unchoke).unwrap();
        pair
    }
}

#[test]
fn a_seed_greets_unchokes_and_serves_in_order() {
    let mut pair = Pair::serving(Options::default());
    let (texts, _) = pair.hear();
    assert_eq!(texts[0], "HaveAll");
    assert!(texts[1].starts_with("Extended { id: 0"), "{texts:?}");
    assert_eq!(texts[2..], ["Unchoke"]);
    let wanted: Vec<Block> = (0..4).map(|number| block(3, number)).collect();
    for &one in &wanted {
        pair.say(Message::Request(one)).unwrap();
        pair.say(Message::Request(one)).unwrap();
    }
    pair.say(Message::Cancel(wanted[1])).unwrap();
    let (texts, blocks) = pair.hear();
    assert_eq!(blocks, [wanted[0], wanted[2], wanted[3]]);
    assert_eq!(texts, [format!("{:?}", Message::Reject(wanted[1]))]);
    pair.swarm.check_invariants();
}

#[test]
fn budget_cuts_and_says_that_there_is_more() {
    let mut pair = Pair::serving(Options::default());
    (0..4).for_each(|number| pair.say(Message::Request(block(0, number))).unwrap());
    let (mut control, mut blocks) = (Vec::new(), Vec::new());
    let budget = u64::from(3 * BLOCK_LEN) - 1;
    assert!(pair.swarm.poll_transmit(pair.now, pair.key, budget, &mut control, &mut blocks));
    assert_eq!(blocks.len(), 2);
    assert!(!pair.swarm.poll_transmit(pair.now, pair.key, budget, &mut control, &mut blocks));
    assert_eq!(blocks.len(), 4);
}

#[test]
fn a_rate_limit_holds_and_nothing_is_lost() {
    let rate = u64::from(10 * BLOCK_LEN);
    let mut pair = Pair::serving(Options { up: Some(rate), ..Options::default() });
    for number in 0..32 {
        pair.say(Message::Request(block(number / 4, number % 4))).unwrap();
    }
    let (start, mut sent) = (pair.now, 0);
    while sent < 32 {
        while pair.swarm.poll_action().is_some() {}
        sent += pair.hear().1.len();
        let passed = pair.now.duration_since(start).as_secs_f64();
        assert!(sent as f64 <= 10.0 * passed + 3.0, "{sent} blocks after {passed} s");
        if sent < 32 {
            pair.now = pair.swarm.poll_timeout().unwrap().max(pair.now);
            pair.swarm.handle_timeout(pair.now);
        }
    }
    assert!(pair.now.duration_since(start) < Duration::from_secs(5));
}

#[test]
fn a_full_queue_rejects_and_a_lost_piece_is_not_served() {
    let mut pair = pair(Bitfield::all(PIECES), Options::default());
    pair.say(Message::Interested).unwrap();
    pair.hear();
    pair.say(Message::Request(block(0, 0))).unwrap();
    pair.say(Message::Request(block(1, 0))).unwrap();
    pair.swarm.handle_lost(pair.now, piece(0));
    let (texts, blocks) = pair.hear();
    assert_eq!(blocks, [block(1, 0)]);
    assert!(texts.contains(&format!("{:?}", Message::Reject(block(0, 0)))), "{texts:?}");
    for number in 0..=REQUEST_QUEUE_MAX {
        let one = Block { piece: piece(1), begin: number, len: 1 };
        pair.say(Message::Request(one)).unwrap();
    }
    assert_eq!(pair.swarm.totals().requests_overflowed, 1);
    assert_eq!(pair.swarm.shared.counted().requests_rejected, 2);
}

#[test]
fn broken_rules_close() {
    let late = |pair: &mut Pair| {
        pair.say(Message::Have(piece(0)))?;
        pair.say(Message::HaveNone)
    };
    let flap = |pair: &mut Pair| {
        (0..=STATE_CHANGES_PER_SECOND_MAX).try_for_each(|_| pair.say(Message::NotInterested))
    };
    let repeat = |pair: &mut Pair| {
        (0..=10 * NUISANCES_PER_SECOND_MAX + 1).try_for_each(|_| pair.say(Message::KeepAlive))
    };
    let unknown = |pair: &mut Pair| {
        let message = Message::Extended { id: 9, payload: &[] };
        (0..=10 * NUISANCES_PER_SECOND_MAX).try_for_each(|_| pair.say(message))
    };
    let gift = |pair: &mut Pair| {
        (0..=UNREQUESTED_MAX)
            .try_for_each(|_| pair.swarm.handle_payload(pair.now, pair.key, block(0, 0)).map(drop))
    };
    type Act<'a> = &'a dyn Fn(&mut Pair) -> Result<(), Error>;
    let cases: [(Act<'_>, Error); 10] = [
        (&|pair| pair.say(Message::Have(piece(PIECES))), Error::BadPiece),
        (&|pair| pair.say(Message::AllowedFast(piece(PIECES))), Error::BadPiece),
        (&|pair| pair.say(Message::Request(block(0, 4))), Error::BadRequest),
        (&|pair| pair.say(Message::Bitfield(&[1, 2])), Error::BadBitfield),
        (&late, Error::BadBitfield),
        (&flap, Error::StateFlood),
        (&repeat, Error::NuisanceFlood),
        (&unknown, Error::NuisanceFlood),
        (&gift, Error::Unrequested),
        (&|pair| pair.say(Message::Extended { id: 0, payload: b"le" }), Error::BadHandshake),
    ];
    for (act, expected) in cases {
        let mut pair = pair(Bitfield::none(PIECES), Options::default());
        assert_eq!(act(&mut pair), Err(expected));
    }
}

#[test]
fn a_bitfield_in_mid_stream_adds_what_is_new() {
    let mut pair = pair(Bitfield::none(PIECES), Options::default());
    pair.say(Message::Have(piece(1))).unwrap();
    let mut more = Bitfield::none(PIECES);
    more.set(piece(2));
    more.set(piece(4));
    let has = |pair: &Pair| -> Vec<u32> {
        let pieces = &pair.swarm.peers[pair.key.0 as usize].pieces;
        (0..PIECES).filter(|&index| pieces.has(piece(index))).collect()
    };
    // Twice: the second time nothing is new.
    for _ in 0..2 {
        pair.say(Message::Bitfield(&more.to_wire())).unwrap();
        assert_eq!(has(&pair), [1, 2, 4]);
        pair.swarm.check_invariants();
    }
    pair.say(Message::Bitfield(&Bitfield::all(PIECES).to_wire())).unwrap();
    assert_eq!(has(&pair).len(), PIECES as usize);
    pair.swarm.check_invariants();
}

#[test]
fn requests_while_choked_are_rejected_then_close() {
    let mut pair = pair(
        Bitfield::all(PIECES),
        Options { slots: Slots::Limited(0), info_hash: InfoHash([3; 20]), ..Options::default() },
    );
    pair.hear();
    let asks = (0..10_000).try_for_each(|number: u32| {
        let result = pair.say(Message::Request(block(number % PIECES, number % 4)));
        pair.hear();
        result
    });
    assert_eq!(asks, Err(Error::RequestsWhileChoked));
    let counted = pair.swarm.shared.counted();
    assert_eq!(counted.requests_choked, u64::from(INVALID_REQUESTS_MAX) + 1);
    assert_eq!(Counted { requests_choked: 0, ..counted }, Counted::default());
}

#[test]
fn an_attempt_counts_until_it_ends() {
    let mut pair = pair(Bitfield::none(PIECES), Options::default());
    let addr = SocketAddr::from(([20, 0, 0, 2], 7000));
    pair.swarm.handle_contacts(pair.now, Source::Tracker, &[addr]);
    assert_eq!(pair.swarm.contacts.trying_count(), 1);
    // Somebody who came from there says meanwhile that this is where it listens, and leaves.
    let theirs = ExtensionHandshake { p: Some(7000), ..ExtensionHandshake::default() };
    pair.say(Message::Extended { id: 0, payload: &theirs.encode() }).unwrap();
    assert_eq!(pair.swarm.contacts.trying_count(), 1);
    pair.swarm.handle_disconnected(pair.now, pair.key);
    assert_eq!(pair.swarm.contacts.trying_count(), 1);
    pair.swarm.handle_connect_failed(pair.now, addr);
    assert_eq!(pair.swarm.contacts.trying_count(), 0);
}

#[test]
fn a_ban_is_told_and_counted_once_until_it_is_over() {
    let mut pair = Pair::fetching();
    let shared = Rc::clone(&pair.swarm.shared);
    let offender = Offender::of("1.2.3.4:5".parse().unwrap());
    let other = Offender::of("1.2.3.5:5".parse().unwrap());
    for who in [offender, offender, other, offender] {
        pair.swarm.ban_offender(pair.now, who);
    }
    let told = std::iter::from_fn(|| pair.swarm.poll_action());
    assert_eq!(told.filter(|action| matches!(action, Action::Ban(..))).count(), 2);
    assert_eq!(shared.banned_count(), 2);
    pair.now += BAN_TTL + choker::ROUND;
    pair.swarm.handle_timeout(pair.now);
    assert_eq!(shared.banned_count(), 0);
    pair.swarm.ban_offender(pair.now, offender);
    drop(pair);
    assert_eq!(shared.banned_count(), 1, "it outlasts the torrent");
}

#[test]
fn a_piece_is_fetched_stored_and_told() {
    let mut pair = Pair::fetching();
    let mut told = 0;
    for _ in 0..200 {
        let (texts, _) = pair.hear();
        told += texts.iter().filter(|text| text.starts_with("Have(")).count();
        let asked: Vec<Block> = pair.swarm.peers[0].asked.iter().map(|a| a.block).collect();
        for one in asked {
            let payload = pair.swarm.handle_payload(pair.now, pair.key, one);
            assert_eq!(payload, Ok(Payload::Accept));
            pair.swarm.handle_block(pair.now, pair.key, one);
        }
        while let Some(action) = pair.swarm.poll_action() {
            if let Action::Verify { piece, .. } = action {
                pair.swarm.handle_verified(pair.now, piece, Verdict::Good(Vec::new()));
                assert!(!pair.swarm.bitfield().has(piece));
                pair.swarm.handle_stored(pair.now, piece);
            }
        }
    }
    assert!(pair.swarm.is_complete());
    assert_eq!(told, 0, "who has everything is told nothing");
    assert!(pair.swarm.peers[0].closing, "two seeds part");
}

#[test]
fn a_lone_corrupter_is_banned_at_once() {
    let mut pair = Pair::fetching();
    pair.hear();
    let asked: Vec<Block> = pair.swarm.peers[0].asked.iter().map(|a| a.block).collect();
    for one in asked {
        assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, one), Ok(Payload::Accept));
        pair.swarm.handle_block(pair.now, pair.key, one);
    }
    let actions =
        |swarm: &mut Swarm| std::iter::from_fn(|| swarm.poll_action()).collect::<Vec<_>>();
    let verify = actions(&mut pair.swarm);
    let Some(Action::Verify { piece, .. }) =
        verify.iter().find(|action| matches!(action, Action::Verify { .. }))
    else {
        panic!("nothing to verify in {verify:?}");
    };
    assert!(!pair.swarm.is_discarding(*piece));
    pair.swarm.handle_verified(pair.now, *piece, Verdict::Bad(Vec::new()));
    assert!(pair.swarm.is_discarding(*piece), "until the caller has heard of it");
    assert!(actions(&mut pair.swarm).contains(&Action::Close(pair.key, Error::Banned)));
    assert!(!pair.swarm.is_discarding(*piece));
    pair.swarm.handle_disconnected(pair.now, pair.key);
    assert_eq!(pair.swarm.handle_connected(pair.now, init(9, 2, false)), Err(Refused::Banned));
}

#[test]
fn a_suspect_piece_that_stands_still_costs_its_peer_no_other_piece() {
    let mut pair = Pair::fetching();
    pair.hear();
    let asked = |pair: &Pair| -> Vec<Block> {
        pair.swarm.peers[0].asked.iter().map(|asked| asked.block).collect()
    };
    let bring = |pair: &mut Pair, one: Block| {
        assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, one), Ok(Payload::Accept));
        assert!(pair.swarm.handle_block(pair.now, pair.key, one));
    };
    // One block of each of two pieces, and the rest of the first is refused.
    let first = asked(&pair)[0];
    bring(&mut pair, first);
    for other in asked(&pair).into_iter().filter(|block| block.piece == first.piece) {
        pair.say(Message::Reject(other)).unwrap();
    }
    let second = asked(&pair)[0];
    bring(&mut pair, second);
    let rest = asked(&pair);
    assert!(rest.iter().any(|block| block.piece == second.piece));
    assert!(rest.iter().all(|block| block.piece != first.piece));
    for piece in [first.piece, second.piece] {
        let partial = pair.swarm.partials.get_mut(&piece).unwrap();
        (partial.is_suspect, partial.exclusive) = (true, Some(pair.key));
    }
    while pair.swarm.poll_action().is_some() {}
    pair.swarm.handle_timeout(pair.now + Duration::from_secs(1));
    let missing = |piece| pair.swarm.partials.get(&piece).map(|partial| partial.missing);
    assert_eq!((missing(first.piece), missing(second.piece)), (Some(4), Some(3)));
    let exclusive = |piece| pair.swarm.partials[&piece].exclusive;
    assert_eq!((exclusive(first.piece), exclusive(second.piece)), (None, Some(pair.key)));
}

#[test]
fn a_suspect_piece_whose_peer_waits_for_the_limit_goes_on() {
    let mut pair = pair(Bitfield::none(PIECES), Options { down: Some(1), ..Options::default() });
    pair.say(Message::HaveAll).unwrap();
    pair.say(Message::Unchoke).unwrap();
    while let Some(block) = pair.swarm.peers[0].asked.front().map(|asked| asked.block) {
        assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, block), Ok(Payload::Accept));
        pair.swarm.handle_block(pair.now, pair.key, block);
    }
    let piece = pair.swarm.peers[0].waits_for_rate().unwrap();
    let partial = pair.swarm.partials.get_mut(&piece).unwrap();
    (partial.is_suspect, partial.exclusive) = (true, Some(pair.key));
    let missing = partial.missing;
    assert!(missing < 4, "nothing of it is here");
    pair.swarm.handle_timeout(pair.now + Duration::from_secs(1));
    assert_eq!(pair.swarm.partials[&piece].missing, missing);
}

#[test]
fn what_a_paused_peer_owes_is_not_late() {
    let mut pair = Pair::fetching();
    let first = pair.swarm.peers[0].asked[0].block;
    assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, first), Ok(Payload::Accept));
    pair.swarm.handle_paused(pair.now, pair.key);
    let pass = |pair: &mut Pair, seconds| {
        for _ in 0..seconds {
            pair.hear();
            pair.now += Duration::from_secs(1);
            pair.swarm.handle_timeout(pair.now);
            while let Some(action) = pair.swarm.poll_action() {
                if let Action::Close(_, error) = action {
                    return Some(error);
                }
            }
        }
        None
    };
    assert_eq!(pass(&mut pair, 1000), None);
    pair.swarm.handle_resumed(pair.now, pair.key);
    assert_eq!(pass(&mut pair, 59), None);
    assert_eq!(pair.swarm.totals().snubbed, 0);
    assert_eq!(pass(&mut pair, 1), Some(Error::BlockStalled));
}

#[test]
fn a_silent_peer_is_snubbed_then_closed() {
    let mut pair = Pair::fetching();
    let start = pair.now;
    let mut was_snubbed = false;
    for _ in 0..5000 {
        pair.hear();
        pair.now = pair.swarm.poll_timeout().unwrap();
        pair.swarm.handle_timeout(pair.now);
        was_snubbed |= pair.swarm.stats(pair.now).snubbed == 1;
        while let Some(action) = pair.swarm.poll_action() {
            if action == Action::Close(pair.key, Error::Inactive) {
                assert!(was_snubbed);
                assert!(pair.now.duration_since(start) >= Duration::from_secs(600));
                return;
            }
        }
    }
    panic!("it is still there after {:?}", pair.now.duration_since(start));
}

#[test]
fn admission_refuses_who_must_not_come() {
    let mut pair = pair(
        Bitfield::none(PIECES),
        Options { peer_id: PeerId([9; 20]), connections_max: 3, ..Options::default() },
    );
    let mut knock = |port, id| pair.swarm.handle_connected(pair.now, init(port, id, false));
    assert_eq!(knock(1, 9), Err(Refused::Ourselves));
    assert_eq!(knock(1, 2), Err(Refused::Duplicate));
    assert_eq!(knock(7, 2), Err(Refused::Duplicate));
    assert!(knock(1, 3).is_ok() && knock(1, 4).is_ok());
    assert_eq!(knock(1, 5), Err(Refused::Full));
}

#[test]
fn idle_peers_give_way_and_those_that_wait_or_are_served_do_not() {
    let options = Options { connections_max: 3, slots: Slots::Limited(1), ..Options::default() };
    let mut pair = Pair::serving(options);
    let start = pair.now;
    let at = |seconds| start + Duration::from_secs(seconds);
    let served = pair.key;
    let waiting = pair.swarm.handle_connected(start, init(1, 3, false)).unwrap();
    pair.swarm.handle_message(start, waiting, Message::Interested).unwrap();
    let mute = pair.swarm.handle_connected(start, init(1, 4, false)).unwrap();
    let closed = |pair: &mut Pair| {
        let mut closed = Vec::new();
        while let Some(action) = pair.swarm.poll_action() {
            if let Action::Close(key, error) = action {
                assert_eq!(error, Error::Idle);
                closed.push(key);
            }
        }
        for &key in &closed {
            pair.swarm.handle_disconnected(pair.now, key);
        }
        closed
    };
    let knock = |pair: &mut Pair, seconds, id| {
        // It says that it is alive, as everybody does who wants to keep a place.
        pair.now = at(seconds);
        for key in [served, waiting, mute] {
            pair.swarm.handle_message(pair.now, key, Message::KeepAlive).unwrap();
        }
        pair.swarm.handle_connected(pair.now, init(1, id, false))
    };
    pair.now = at(50);
    pair.swarm.handle_sent(pair.now, served, 16_384);
    assert_eq!(knock(&mut pair, 59, 5), Err(Refused::Full));
    assert!(knock(&mut pair, 61, 6).is_ok());
    assert_eq!(knock(&mut pair, 61, 7), Err(Refused::Full), "they are not looked through again");
    assert_eq!(closed(&mut pair), [mute]);
    assert_eq!(knock(&mut pair, 109, 8), Err(Refused::Full));
    assert!(knock(&mut pair, 111, 9).is_ok());
    assert_eq!(closed(&mut pair), [served]);
    // Now it has the slot, and a minute to make use of it.
    assert!(pair.swarm.idle_peers(at(170)).all(|peer| peer.key != waiting));
    assert!(pair.swarm.idle_peers(at(171)).any(|peer| peer.key == waiting));
}

#[test]
fn nobody_sends_us_to_a_cloud_metadata_address() {
    let mut swarm = pair(Bitfield::none(PIECES), Options::default());
    let addrs = ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "10.0.0.1:80"];
    let addrs = addrs.map(|addr| addr.parse::<SocketAddr>().unwrap());
    for source in [Source::Tracker, Source::Lsd, Source::Operator] {
        swarm.swarm.handle_contacts(swarm.now, source, &addrs);
    }
    let mut tried = Vec::new();
    while let Some(action) = swarm.swarm.poll_action() {
        if let Action::Connect(addr) = action {
            tried.push(addr);
        }
    }
    assert_eq!(tried, addrs[3..]);
}

#[test]
fn a_lost_piece_is_refused_and_fetched_only_by_who_fetches() {
    for fetch in [true, false] {
        let mut pair = Pair::serving(Options { fetch, ..Options::default() });
        let lost = block(2, 0);
        pair.hear();
        pair.swarm.handle_lost(pair.now, lost.piece);
        pair.say(Message::Have(lost.piece)).unwrap();
        // It was handed out before.
        pair.swarm.handle_unsendable(pair.now, pair.key, lost);
        let (texts, _) = pair.hear();
        let reject = format!("{:?}", Message::Reject(lost));
        let expected = if fetch { vec!["Interested".to_owned(), reject] } else { vec![reject] };
        assert_eq!(texts, expected);
        pair.say(Message::Request(lost)).unwrap();
        assert_eq!(pair.hear(), (vec![format!("{:?}", Message::Reject(lost))], Vec::new()));
        pair.swarm.check_invariants();
        pair.swarm.handle_stored(pair.now, lost.piece);
        assert!(pair.swarm.is_complete());
        pair.swarm.check_invariants();
    }
}

#[test]
fn pieces_beyond_the_memory_are_fetched_in_place() {
    let mut pair = pair(Bitfield::none(PIECES), Options::default());
    let shared = Rc::clone(&pair.swarm.shared);
    let piece_len = u64::from(4 * BLOCK_LEN);
    shared.piece_bytes_max.set(2 * piece_len - 1);
    pair.say(Message::HaveAll).unwrap();
    pair.say(Message::Unchoke).unwrap();
    let asked: Vec<Block> = pair.swarm.peers[0].asked.iter().map(|a| a.block).collect();
    assert_eq!(asked.len(), 32, "all of it is asked for");
    assert_eq!(pair.swarm.in_place_count(), 7);
    assert_eq!(shared.piece_bytes(), piece_len);
    for &one in &asked {
        let payload = pair.swarm.handle_payload(pair.now, pair.key, one).unwrap();
        let in_place = pair.swarm.is_in_place(one.piece);
        assert_eq!(payload == Payload::AcceptInPlace, in_place, "{one:?}");
        assert_eq!(payload == Payload::Accept, !in_place, "{one:?}");
        assert!(pair.swarm.handle_block(pair.now, pair.key, one));
        assert!(!pair.swarm.handle_block(pair.now, pair.key, one), "it is here already");
    }
    while let Some(action) = pair.swarm.poll_action() {
        if let Action::Verify { piece, .. } = action {
            pair.swarm.handle_verified(pair.now, piece, Verdict::Good(Vec::new()));
            pair.swarm.handle_stored(pair.now, piece);
        }
    }
    assert!(pair.swarm.is_complete());
    assert_eq!((pair.swarm.in_place_count(), shared.piece_bytes()), (0, 0));
}

#[test]
fn a_piece_is_opened_in_memory_once_there_is_some_again() {
    let mut pair = pair(Bitfield::none(PIECES), Options::default());
    let shared = Rc::clone(&pair.swarm.shared);
    shared.piece_bytes_max.set(0);
    for _ in 0..100 {
        // Four requests at a time are the fewest.
        pair.swarm.peers[0].pipeline.handle_reject();
    }
    pair.say(Message::HaveAll).unwrap();
    pair.say(Message::Unchoke).unwrap();
    let asked: Vec<Block> = pair.swarm.peers[0].asked.iter().map(|a| a.block).collect();
    assert_eq!((asked.len(), pair.swarm.in_place_count()), (4, 1));
    shared.piece_bytes_max.set(1 << 20);
    for &one in &asked {
        assert_eq!(
            pair.swarm.handle_payload(pair.now, pair.key, one),
            Ok(Payload::AcceptInPlace),
            "what was opened in place stays so"
        );
        pair.swarm.handle_block(pair.now, pair.key, one);
    }
    assert_eq!(pair.swarm.in_place_count(), 1);
    assert_eq!(shared.piece_bytes(), u64::from(4 * BLOCK_LEN));
    // Bad data: fetched again where it was.
    let mut corrupter = pair;
    corrupter.swarm.handle_verified(corrupter.now, asked[0].piece, Verdict::Bad(Vec::new()));
    assert!(corrupter.swarm.is_in_place(asked[0].piece));
    drop(corrupter);
    assert_eq!(shared.piece_bytes(), 0);
}

#[test]
fn pieces_in_place_are_few_and_a_block_without_room_is_asked_for_again() {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    let now = Instant::now();
    let geometry = Geometry::new(u64::from(40 * BLOCK_LEN), BLOCK_LEN).unwrap();
    let shared = Shared::new(None, None, Slots::Unlimited);
    shared.piece_bytes_max.set(0);
    let mut swarm =
        Swarm::new(geometry, Bitfield::none(40), Options::default(), Rc::clone(&shared));
    let key = swarm.handle_connected(now, init(1, 2, false)).unwrap();
    swarm.handle_message(now, key, Message::HaveAll).unwrap();
    swarm.handle_message(now, key, Message::Unchoke).unwrap();
    assert_eq!(swarm.peers[0].asked.len(), IN_PLACE_PIECES_MAX);
    assert_eq!(swarm.in_place_count(), IN_PLACE_PIECES_MAX);
    let one = swarm.peers[0].asked[0].block;
    assert_eq!(swarm.handle_payload(now, key, one), Ok(Payload::AcceptInPlace));
    swarm.handle_dropped(now, key, one);
    assert!(!swarm.handle_block(now, key, one), "it was dropped");
    swarm.handle_timeout(now);
    assert!(swarm.peers[0].asked.iter().any(|asked| asked.block == one));
    swarm.check_invariants();
}
