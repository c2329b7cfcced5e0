//! Single peers that do not behave, against a swarm: what each limit lets through, and what not.

use super::tests::{PIECES, Pair, block, init, pair, piece};
use super::*;
use crate::units::BLOCK_LEN;
use crate::wire::Message;
use std::time::Duration;

#[test]
fn a_ban_holds_for_every_torrent_that_shares_it() {
    let mut liar = Pair::fetching();
    let shared = Rc::clone(&liar.swarm.shared);
    let have = Bitfield::none(PIECES);
    let mut other = Swarm::new(liar.swarm.geometry, have, Options::default(), shared);
    let now = liar.now;
    let guilty = other.handle_connected(now, init(7, 2, false)).unwrap();
    let honest = other.handle_connected(now, init(7, 3, false)).unwrap();
    let known = [init(8, 2, true).addr, init(8, 3, true).addr];
    other.handle_contacts(now, Source::Tracker, &known);
    while other.poll_action().is_some() {}
    // It is found out in one swarm, and the caller tells the other one.
    liar.swarm.ban_offender(now, Offender::of(init(1, 2, false).addr));
    other.handle_bans(now);
    let closed = std::iter::from_fn(|| other.poll_action());
    let closed: Vec<_> = closed.filter(|action| matches!(action, Action::Close(..))).collect();
    assert_eq!(closed, [Action::Close(guilty, Error::Banned)]);
    other.handle_disconnected(now, guilty);
    assert!(other.peer(honest).is_some());
    assert_eq!(other.handle_connected(now, init(9, 2, false)), Err(Refused::Banned));
    // Nor is it sought out, whoever names it.
    for source in Source::ALL {
        other.handle_contacts(now, source, &[init(10, 2, true).addr]);
    }
    let tried = |swarm: &mut Swarm, now| {
        swarm.handle_timeout(now);
        let actions = std::iter::from_fn(|| swarm.poll_action());
        actions.filter(|action| matches!(action, Action::Connect(_))).count()
    };
    assert_eq!(tried(&mut other, now + Duration::from_secs(2)), 0);
    // When it is over, it is over.
    let later = now + BAN_TTL;
    assert!(other.handle_connected(later, init(9, 2, false)).is_ok());
}

#[test]
fn who_was_banned_since_it_was_named_is_not_tried() {
    let mut pair = Pair::fetching();
    // All places for attempts are taken while it waits.
    let addrs: Vec<_> = (1..=100).map(|id| init(5000, id, true).addr).collect();
    pair.swarm.handle_contacts(pair.now, Source::Operator, &addrs);
    let shared = Rc::clone(&pair.swarm.shared);
    let tried = |pair: &mut Pair| {
        let actions = std::iter::from_fn(|| pair.swarm.poll_action());
        let tried = actions.filter_map(|action| match action {
            Action::Connect(addr) => Some(addr),
            _ => None,
        });
        tried.collect::<Vec<_>>()
    };
    let first = tried(&mut pair);
    assert!(!first.is_empty() && first.len() < 100);
    // The caller is told by another worker; this swarm has no peers that it would be told for.
    for addr in addrs.iter().filter(|addr| !first.contains(addr)) {
        shared.ban(Offender::of(*addr), pair.now + BAN_TTL);
    }
    for addr in first {
        pair.swarm.handle_connect_failed(pair.now, addr);
        pair.swarm.contacts.forget(addr);
    }
    for _ in 0..20 {
        pair.now += Duration::from_secs(1);
        pair.swarm.handle_timeout(pair.now);
        assert_eq!(tried(&mut pair), []);
    }
    assert_eq!(pair.swarm.contacts.len(), 0);
}

#[test]
fn one_public_host_has_few_places_and_a_network_of_its_own_does_not_help() {
    let mut pair = pair(Bitfield::none(PIECES), Options::default());
    let max = pair.swarm.options.connections_per_host_max;
    let mut id = 10;
    let mut knock = |addr: String| {
        id += 1;
        let peer_id = PeerId([id; 20]);
        let addr = addr.parse().unwrap();
        let init =
            PeerInit { addr, peer_id, fast: true, extensions: true, dht: false, outgoing: false };
        pair.swarm.handle_connected(pair.now, init).map(drop)
    };
    for number in 0..max {
        assert_eq!(knock(format!("9.9.9.9:{}", 5000 + number)), Ok(()));
        // One machine has as many of these addresses as it likes.
        assert_eq!(knock(format!("[2600::{}]:5000", number + 1)), Ok(()));
        // Behind one of these there may be anybody.
        assert_eq!(knock(format!("10.0.0.1:{}", 5000 + number)), Ok(()));
    }
    assert_eq!(knock("9.9.9.9:7000".into()), Err(Refused::FullForAddress));
    assert_eq!(knock("[::ffff:9.9.9.9]:7001".into()), Err(Refused::FullForAddress));
    assert_eq!(knock("[2600::ffff]:5000".into()), Err(Refused::FullForAddress));
    for other in ["9.9.9.10:5000", "[2600:0:0:1::1]:5000", "10.0.0.1:7000"] {
        assert_eq!(knock(other.into()), Ok(()));
    }
}

#[test]
fn requests_that_are_made_and_taken_back_are_few() {
    let mut pair = Pair::serving(Options::default());
    let max = CANCELS_PER_SECOND_MAX * message::NUISANCE_SECONDS;
    let one = block(0, 0);
    let undo = |pair: &mut Pair, count: u32| {
        (0..count).try_for_each(|_| {
            pair.say(Message::Request(one))?;
            pair.say(Message::Cancel(one))?;
            // It reads all the while.
            pair.hear();
            Ok::<_, Error>(())
        })
    };
    assert_eq!(undo(&mut pair, max), Ok(()));
    // The count begins anew with each round of the choker.
    pair.now += choker::ROUND;
    pair.swarm.handle_timeout(pair.now);
    assert_eq!(undo(&mut pair, max), Ok(()));
    assert_eq!(undo(&mut pair, 1), Err(Error::CancelFlood));
}

#[test]
fn an_honest_end_takes_back_all_that_waits_and_goes_on() {
    let mut pair = Pair::serving(Options::default());
    // As much as may wait at all, several times in a row, by whoever jumps about in a film.
    let all = |number: u32| Block { piece: piece(number % PIECES), begin: number / PIECES, len: 1 };
    for _ in 0..3 {
        for number in 0..REQUEST_QUEUE_MAX {
            pair.say(Message::Request(all(number))).unwrap();
        }
        for number in 0..REQUEST_QUEUE_MAX {
            pair.say(Message::Cancel(all(number))).unwrap();
        }
        assert_eq!(pair.hear().1, []);
    }
    // What it takes back too late is on its way already: that is no use, and no offence.
    for number in 0..REQUEST_QUEUE_MAX / 2 {
        pair.say(Message::Request(all(number))).unwrap();
        pair.hear();
        pair.say(Message::Cancel(all(number))).unwrap();
    }
    pair.say(Message::Request(block(1, 1))).unwrap();
    assert_eq!(pair.hear().1, [block(1, 1)]);
}

#[test]
fn cancels_of_nothing_are_counted() {
    let mut pair = Pair::serving(Options::default());
    let max = NUISANCES_PER_SECOND_MAX * message::NUISANCE_SECONDS;
    let cancels = |pair: &mut Pair, count| {
        (0..count).try_for_each(|_| pair.say(Message::Cancel(block(0, 0))))
    };
    assert_eq!(cancels(&mut pair, max), Ok(()));
    assert_eq!(pair.hear().0.iter().filter(|text| text.starts_with("Reject")).count(), 0);
    assert_eq!(cancels(&mut pair, 1), Err(Error::NuisanceFlood));
}

/// Lets time pass in steps of the swarm's own; `act` comes after each.
fn pass(pair: &mut Pair, end: Instant, mut act: impl FnMut(&mut Pair)) {
    while pair.now < end {
        let next = pair.swarm.poll_timeout().map_or(end, |at| at.max(pair.now));
        pair.now = next.min(end).max(pair.now + Duration::from_millis(1));
        pair.swarm.handle_timeout(pair.now);
        act(pair);
    }
}

/// Requests among what is sent to the peer now.
fn requests(pair: &mut Pair) -> usize {
    pair.hear().0.iter().filter(|text| text.starts_with("Request(")).count()
}

/// The peer answers all it is asked for, with data that is right.
fn deliver(pair: &mut Pair) {
    let asked: Vec<Block> = pair.swarm.peers[0].asked.iter().map(|asked| asked.block).collect();
    for one in asked {
        if let Ok(Payload::Accept) = pair.swarm.handle_payload(pair.now, pair.key, one) {
            pair.swarm.handle_block(pair.now, pair.key, one);
        }
    }
    while let Some(action) = pair.swarm.poll_action() {
        if let Action::Verify { piece, .. } = action {
            pair.swarm.handle_verified(pair.now, piece, Verdict::Good(Vec::new()));
            pair.swarm.handle_stored(pair.now, piece);
        }
    }
}

#[test]
fn a_peer_that_flaps_is_asked_anew_once_a_second() {
    let mut pair = Pair::fetching();
    let start = pair.now;
    let all = requests(&mut pair);
    assert_eq!(all, 32, "all of it");
    let mut asked = 0;
    for step in 1..=400_u32 {
        pair.now = start + step * Duration::from_millis(25);
        pair.swarm.handle_timeout(pair.now);
        pair.say(if step % 2 == 0 { Message::Unchoke } else { Message::Choke }).unwrap();
        asked += requests(&mut pair);
        while pair.swarm.poll_action().is_some() {}
        pair.swarm.check_invariants();
    }
    assert!((all..=10 * all).contains(&asked), "asked for {asked} blocks in ten seconds");
    // What it says last counts although it comes early, and nothing was lost on the way.
    pair.say(Message::Choke).unwrap();
    pair.say(Message::Unchoke).unwrap();
    let end = pair.now + Duration::from_secs(3);
    pass(&mut pair, end, deliver);
    assert!(pair.swarm.is_complete());
}

#[test]
fn an_unchoke_that_came_early_is_taken_back_by_a_choke() {
    let mut pair = Pair::fetching();
    pair.hear();
    for message in [Message::Choke, Message::Unchoke, Message::Choke] {
        pair.say(message).unwrap();
    }
    let end = pair.now + Duration::from_secs(5);
    let mut asked = 0;
    pass(&mut pair, end, |pair| asked += requests(pair));
    assert_eq!(asked, 0);
    // Long after the last one, it counts at once; said again, it changes nothing.
    pair.say(Message::Unchoke).unwrap();
    assert_eq!(requests(&mut pair), 32);
    pair.say(Message::Unchoke).unwrap();
    assert_eq!(requests(&mut pair), 0);
}

#[test]
fn requests_that_cannot_be_served_are_refused_and_few() {
    let long = Block { piece: piece(0), begin: 0, len: BLOCK_LEN + 1 };
    let lacked = block(5, 0);
    for one in [long, lacked] {
        let mut have = Bitfield::none(PIECES);
        have.set(piece(0));
        let mut pair = pair(have, Options::default());
        pair.say(Message::Interested).unwrap();
        pair.hear();
        let ask = |pair: &mut Pair, count: u32| {
            (0..count).try_for_each(|_| {
                pair.say(Message::Request(one))?;
                let refused = (vec![format!("{:?}", Message::Reject(one))], Vec::new());
                assert_eq!(pair.hear(), refused);
                Ok::<_, Error>(())
            })
        };
        assert_eq!(ask(&mut pair, INVALID_REQUESTS_MAX), Ok(()), "{one:?}");
        // What can be served is served all the while.
        pair.say(Message::Request(block(0, 0))).unwrap();
        assert_eq!(pair.hear().1, [block(0, 0)]);
        assert_eq!(ask(&mut pair, 1), Err(Error::InvalidRequests), "{one:?}");
        let counted = pair.swarm.shared.counted().requests_invalid;
        assert_eq!(counted, u64::from(INVALID_REQUESTS_MAX) + 1);
    }
}

#[test]
fn requests_that_were_on_their_way_at_a_choke_are_no_offence() {
    let mut pair = Pair::serving(Options::default());
    pair.hear();
    pair.swarm.choke(pair.now, pair.key);
    let ask = |pair: &mut Pair, count: u32| {
        (0..count).try_for_each(|_| {
            pair.say(Message::Request(block(0, 0)))?;
            assert_eq!(pair.hear().1, []);
            Ok::<_, Error>(())
        })
    };
    pair.now += CHOKED_REQUESTS_GRACE;
    assert_eq!(ask(&mut pair, 2 * INVALID_REQUESTS_MAX), Ok(()));
    pair.now += Duration::from_millis(1);
    assert_eq!(ask(&mut pair, INVALID_REQUESTS_MAX), Ok(()));
    assert_eq!(ask(&mut pair, 1), Err(Error::RequestsWhileChoked));
}

#[test]
fn the_later_of_two_answers_in_the_endgame_is_dropped_and_no_offence() {
    let mut pair = Pair::fetching();
    let (first, shared) = (pair.key, Rc::clone(&pair.swarm.shared));
    pair.now += ENDGAME_AGE;
    let second = pair.swarm.handle_connected(pair.now, init(1, 3, false)).unwrap();
    for message in [Message::HaveAll, Message::Unchoke] {
        pair.swarm.handle_message(pair.now, second, message).unwrap();
    }
    let mut count = 0;
    // All that is left was asked of the first one: of the second it is asked for again.
    while let Some(one) = pair.swarm.peers[1].asked.front().map(|asked| asked.block) {
        assert_eq!(pair.swarm.handle_payload(pair.now, first, one), Ok(Payload::Accept));
        assert!(pair.swarm.handle_block(pair.now, first, one));
        assert_eq!(pair.swarm.handle_payload(pair.now, second, one), Ok(Payload::Discard));
        count += 1;
        assert_eq!(shared.counted().bytes_discarded, u64::from(count * BLOCK_LEN));
        assert_eq!(pair.swarm.peers[1].unrequested, 0, "after {count}");
    }
    assert!(count > UNREQUESTED_MAX, "{count} blocks came twice");
}

/// A swarm that lacks all of many pieces of one block each, and a peer that has them.
fn wide(pieces: u32) -> Pair {
    let Pair { now, .. } = Pair::fetching();
    let geometry = Geometry::new(u64::from(pieces * BLOCK_LEN), BLOCK_LEN).unwrap();
    let shared = Shared::new(None, None, Slots::Unlimited);
    let options = Options { partial_pieces_max: pieces as usize, ..Options::default() };
    let mut swarm = Swarm::new(geometry, Bitfield::none(pieces), options, shared);
    let key = swarm.handle_connected(now, init(1, 2, false)).unwrap();
    swarm.handle_message(now, key, Message::HaveAll).unwrap();
    Pair { swarm, key, now }
}

#[test]
fn a_flood_of_allowed_fast_pieces_is_taken_for_ten() {
    const PIECES: u32 = 40;
    let mut pair = wide(PIECES);
    for index in 0..PIECES {
        pair.say(Message::AllowedFast(piece(index))).unwrap();
    }
    let peer = &pair.swarm.peers[0];
    assert_eq!((peer.allowed_fast.len(), peer.asked.len()), (ALLOWED_FAST_MAX, ALLOWED_FAST_MAX));
    let over = PIECES - u32::try_from(ALLOWED_FAST_MAX).unwrap();
    let max = NUISANCES_PER_SECOND_MAX * message::NUISANCE_SECONDS - over;
    let repeat = |pair: &mut Pair, count: u32| {
        (0..count).try_for_each(|count| pair.say(Message::AllowedFast(piece(count % PIECES))))
    };
    assert_eq!(repeat(&mut pair, max), Ok(()));
    assert_eq!(repeat(&mut pair, 1), Err(Error::NuisanceFlood));
}

#[test]
fn hints_at_pieces_that_do_not_exist_end_the_connection() {
    for message in [Message::Suggest(piece(PIECES)), Message::Suggest(piece(u32::MAX))] {
        let mut pair = Pair::fetching();
        assert_eq!(pair.say(Message::Suggest(piece(PIECES - 1))), Ok(()));
        assert_eq!(pair.say(message), Err(Error::BadPiece));
    }
}

#[test]
fn who_rejects_everything_is_let_go() {
    let mut pair = Pair::fetching();
    let mut count = 0;
    let error = loop {
        let Some(one) = pair.swarm.peers[0].asked.front().map(|asked| asked.block) else {
            // What it rejected is asked for again after the next round.
            let next = pair.swarm.poll_timeout().unwrap();
            pass(&mut pair, next, |pair| {
                pair.hear();
                while pair.swarm.poll_action().is_some() {}
            });
            continue;
        };
        count += 1;
        assert!(count <= 2 * REJECTS_MAX, "it is still there");
        if let Err(error) = pair.say(Message::Reject(one)) {
            break error;
        }
    };
    assert_eq!((error, count), (Error::Rejects, REJECTS_MAX + 1));
}

#[test]
fn who_never_reads_what_it_provokes_is_let_go() {
    let mut pair = Pair::serving(Options::default());
    let mut number = 0;
    let error = loop {
        // The queue is full soon; from then on each is refused.
        let one = Block { piece: piece(number / (4 * BLOCK_LEN)), begin: number % 65_536, len: 1 };
        assert!(pair.swarm.peers[0].control.len() <= CONTROL_LEN_MAX + 8, "after {number}");
        if let Err(error) = pair.say(Message::Request(one)) {
            break error;
        }
        number += 1;
    };
    assert_eq!(error, Error::NotReading);
}

#[test]
fn who_leaves_out_blocks_is_let_go() {
    let mut pair = wide(400);
    pair.say(Message::Unchoke).unwrap();
    let mut left_out = Vec::new();
    for _ in 0..100 {
        // Always only the last one of those that it was asked for, if it is asked for any.
        if let Some(one) = pair.swarm.peers[0].asked.back().map(|asked| asked.block) {
            assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, one), Ok(Payload::Accept));
            assert!(pair.swarm.handle_block(pair.now, pair.key, one));
        }
        let (end, mut closed) = (pair.now + Duration::from_secs(10), None);
        pass(&mut pair, end, |pair| {
            pair.hear();
            while let Some(action) = pair.swarm.poll_action() {
                if let Action::Close(_, error) = action {
                    closed = Some(error);
                }
            }
        });
        left_out.push(pair.swarm.peers[0].withheld);
        if let Some(error) = closed {
            assert_eq!(error, Error::Withholding);
            assert!(left_out.iter().rev().skip(1).all(|&it| it <= WITHHELD_MAX), "{left_out:?}");
            return;
        }
    }
    panic!("it is still there: {left_out:?}");
}

#[test]
fn who_left_out_all_that_was_left_is_asked_again() {
    let mut pair = Pair::fetching();
    let owed = pair.swarm.peers[0].asked.len();
    let wait = |pair: &mut Pair| {
        let end = pair.now + Duration::from_secs(20);
        pass(pair, end, |pair| {
            pair.hear();
        });
    };
    // It answers the last requests, one by one; those before them are taken back all at once.
    for _ in 0..3 {
        let one = pair.swarm.peers[0].asked.back().unwrap().block;
        assert_eq!(pair.swarm.handle_payload(pair.now, pair.key, one), Ok(Payload::Accept));
        assert!(pair.swarm.handle_block(pair.now, pair.key, one));
        wait(&mut pair);
    }
    assert_eq!(pair.swarm.peers[0].withheld, owed - 3);
    let end = pair.now + Duration::from_secs(20);
    pass(&mut pair, end, deliver);
    assert!(pair.swarm.is_complete());
}

#[test]
fn one_in_twenty_five_gives_way_at_a_time() {
    let mut pair = Pair::serving(Options { connections_max: 60, ..Options::default() });
    for id in 3..62 {
        assert!(pair.swarm.handle_connected(pair.now, init(1, id, false)).is_ok());
    }
    pair.now += Duration::from_secs(61);
    assert!(pair.swarm.handle_connected(pair.now, init(1, 100, false)).is_ok());
    let closed = std::iter::from_fn(|| pair.swarm.poll_action());
    let idle = closed.filter(|action| matches!(action, Action::Close(_, Error::Idle)));
    assert_eq!(idle.count(), 3);
}
