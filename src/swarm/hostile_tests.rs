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
        let init = PeerInit { addr, peer_id, fast: true, extensions: true, outgoing: false };
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
    let cancels =
        |pair: &mut Pair, count| (0..count).try_for_each(|_| pair.say(Message::Cancel(block(0, 0))));
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
    assert!(pair.swarm.peers[0].late.len() <= 10 * all);
    // It said that last: it counts although it came early, and nothing was lost on the way.
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
