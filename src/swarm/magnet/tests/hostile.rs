//! Peers of a magnet link that hold places, memory and time, and those that a private torrent must not
//! have.

use super::*;

/// How long it takes `liars` to keep a seed, which comes after them, from giving its metadata.
fn delay(liars: &[Kind], info_len: usize) -> Duration {
    let mut world = World::new(info_len, 11, liars);
    world.run(0);
    world.join(Kind::Seed);
    let begun = world.now;
    world.run(24 * 3600);
    assert!(world.found.as_ref() == Some(&world.info), "{liars:?}");
    let its = Offender::of(init(u8::try_from(liars.len() + 1).unwrap(), true).addr);
    assert!(!world.banned.contains(&its), "{liars:?}");
    world.now - begun
}

#[test]
fn nobody_is_kept_waiting_by_slow_lies() {
    let len = 100_000;
    let long: fn(u32) -> u32 = |number| (8 << 20) - 20 * number;
    let cases: [(Vec<Kind>, u64); 5] = [
        ((0..3).map(|it| Kind::Trickler(long(it))).collect(), 90),
        ((0..3).map(|it| Kind::Reclaimer(long(it))).collect(), 90),
        ((0..30).map(|it| Kind::Reclaimer(long(it))).collect(), 90),
        ((0..10).map(|_| Kind::Trickler(len)).collect(), 900),
        ((0..10).map(|_| Kind::Reclaimer(len)).collect(), 900),
    ];
    for (liars, seconds_max) in cases {
        let delay = delay(&liars, len as usize).as_secs();
        assert!(delay <= seconds_max, "{delay} s with {liars:?}");
    }
    // Where all is as long as can be, a turn of each of them is what it costs.
    let liars: Vec<_> = (0..10).map(|it| Kind::Reclaimer(long(it) - 1)).collect();
    let delay = delay(&liars, 8 << 20).as_secs();
    assert!(delay <= 600, "{delay} s");
}

#[test]
fn whoever_changes_its_mind_twice_is_banned() {
    let mut world = World::new(1, 12, &[Kind::Reclaimer(40_000)]);
    world.run(3600);
    assert_eq!(world.banned, [Offender::of(init(1, true).addr)]);
}

#[test]
fn whoever_leaves_in_the_middle_comes_after_others() {
    let rank_of = |world: &World| {
        let key = world.peers.last().unwrap().1;
        world.magnet.fetch.uselessness(key)
    };
    let mut world = World::new(1, 19, &[Kind::Mute(40_000)]);
    let leaver = world.peers[0].1;
    while world.exchange() {}
    world.hang_up(leaver);
    world.join_as(Kind::Mute(40_000), init(1, true)).unwrap();
    assert_eq!(rank_of(&world), Some((0, 1)));
    while world.exchange() {}
    assert_eq!(world.requests[1], 2, "it is asked all the same: there is nobody else");
    // One that we close is not to blame.
    let key = world.peers[1].1;
    world.magnet.close(key, Error::Replaced);
    world.hang_up(key);
    world.join_as(Kind::Mute(40_000), init(1, true)).unwrap();
    assert_eq!(rank_of(&world), Some((0, 1)));
}

#[test]
fn mutes_cannot_keep_every_place() {
    let mutes: Vec<Kind> = (0..50).map(|number| Kind::Mute(50_000 + number)).collect();
    let mut world = World::new(50_000, 13, &mutes);
    world.is_stubborn = true;
    world.run(0);
    let seed = init(251, true);
    world.magnet.handle_contacts(world.now, Source::Tracker, &[seed.addr]);
    for second in 0.. {
        assert!(second < 120, "the seed is not let in");
        world.run(1);
        world.now += Duration::from_secs(1);
        if world.tried.contains(&seed.addr) {
            break;
        }
    }
    world.join_as(Kind::Seed, seed).unwrap();
    world.run(600);
    assert!(world.found.as_ref() == Some(&world.info));
}

#[test]
fn memory_is_given_back_where_it_is_missed_least() {
    let mut world = World::new(1, 14, &[Kind::Trickler(80_000), Kind::Trickler(80_000)]);
    world.join(Kind::Trickler(800_000));
    world.run(5);
    let held = world.magnet.fetch.held_len() as u64;
    assert!(held > 0);
    assert_eq!(world.shared.metadata_bytes.get(), held);
    world.shared.metadata_bytes_max.set(held);
    assert!(!world.shared.has_too_much_metadata());
    world.shared.metadata_bytes_max.set(held - 1);
    assert!(world.shared.has_too_much_metadata());
    // The length that one peer alone claims goes first.
    assert!(world.magnet.least_worth().is_some());
    world.magnet.drop_least(world.now);
    let rest = world.shared.metadata_bytes.get();
    assert!(rest > 0 && rest < held && rest <= 80_000, "{rest} of {held} bytes");
    world.magnet.drop_least(world.now);
    assert_eq!(world.shared.metadata_bytes.get(), 0);
    assert!(world.magnet.least_worth().is_none());
    world.run(100);
    assert!(world.shared.metadata_bytes.get() > 0, "they are asked again");
    assert!(world.shared.said_bytes.get() > 0);
    let shared = Rc::clone(&world.shared);
    drop(world);
    assert_eq!((shared.metadata_bytes.get(), shared.said_bytes.get()), (0, 0));
}

#[test]
fn progress_goes_on_after_a_lie() {
    let mut world = World::new(40_000, 15, &[Kind::Liar(40_000)]);
    world.run(5);
    let lies = world.magnet.accepted();
    assert_eq!(lies, 40_000);
    world.run(3600);
    assert_eq!(world.magnet.accepted(), lies, "it is known to have lied");
    world.join(Kind::Seed);
    world.run(5);
    assert_eq!(world.magnet.accepted(), lies + 40_000);
}

#[test]
fn peers_are_looked_after_when_the_metadata_is_here() {
    let mut world = World::new(1, 16, &[Kind::Seed, Kind::Mute(50_000)]);
    world.run(1);
    assert!(world.found.is_some());
    let (mut said, begun) = (0, world.now);
    while world.magnet.peer_count() > 0 {
        let at = world.magnet.poll_timeout().expect("somebody is connected");
        world.now = world.now.max(at);
        world.magnet.handle_timeout(world.now);
        while let Some(action) = world.magnet.poll_action() {
            match action {
                MagnetAction::Transmit(key) => {
                    let mut bytes = Vec::new();
                    world.magnet.poll_transmit(world.now, key, &mut bytes);
                    said += usize::from(bytes == [0; 4]);
                }
                MagnetAction::Close(key, why) => {
                    assert_eq!(why, Error::Inactive);
                    world.magnet.handle_disconnected(world.now, key);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(said >= 2 * 5, "{said} signs of life");
    assert!(world.now - begun >= Options::default().inactivity_timeout);
    world.now += ROUND;
    world.magnet.handle_timeout(world.now);
    assert_eq!(world.magnet.poll_timeout(), None);
}

#[test]
fn a_stolen_id_keeps_nobody_out() {
    let mut world = World::new(1, 17, &[Kind::Mute(5)]);
    let as_first = |addr: &str, outgoing| PeerInit {
        addr: addr.parse().unwrap(),
        outgoing,
        ..init(1, outgoing)
    };
    let mut knock =
        |init: PeerInit| world.magnet.handle_connected(world.now, init).map(|_| ()).err();
    assert_eq!(knock(as_first("20.0.0.1:6000", true)), Some(Refused::Duplicate), "the same host");
    assert_eq!(knock(as_first("20.0.0.1:5000", false)), Some(Refused::Duplicate));
    assert_eq!(knock(as_first("20.0.9.9:5000", true)), None, "another host");
    // Both connected at the same time: one of the two stays, the same on both sides.
    let ours_first = PeerId([0; 20]) < PeerId([1; 20]);
    assert!(ours_first, "what we began stays");
    assert_eq!(knock(as_first("20.0.0.1:6001", false)), Some(Refused::Duplicate));
    assert_eq!(knock(PeerInit { addr: "20.0.7.7:1".parse().unwrap(), ..init(9, false) }), None);
    assert_eq!(knock(PeerInit { addr: "20.0.7.7:2".parse().unwrap(), ..init(9, true) }), None);
    let closed = std::iter::from_fn(|| world.magnet.poll_action())
        .filter(|action| matches!(action, MagnetAction::Close(_, Error::Replaced)));
    assert_eq!(closed.count(), 1);
}

/// Peers of every kind: learnt from a tracker and from peers, connected and being tried, and one
/// that came by itself.
fn mixed() -> (World, [SocketAddr; 5]) {
    let mut world = World::new(1, 18, &[]);
    let addrs = [1, 2, 3, 4, 5].map(|id| init(id, true).addr);
    world.magnet.handle_contacts(world.now, Source::Tracker, &[addrs[0], addrs[2]]);
    world.magnet.handle_contacts(world.now, Source::Pex, &[addrs[1], addrs[3]]);
    while world.exchange() {}
    world.tried.sort_unstable();
    assert_eq!(world.tried, addrs[..4]);
    for (id, outgoing) in [(1, true), (2, true), (5, false)] {
        world.join_as(Kind::Mute(1), init(id, outgoing)).unwrap();
    }
    (world, addrs)
}

#[test]
fn a_private_torrent_takes_no_strangers_over() {
    let (world, addrs) = mixed();
    let options = Options { private: true, ..Options::default() };
    let none = Bitfield::none(PIECES);
    let keys: Vec<PeerKey> = world.peers.iter().map(|peer| peer.1).collect();
    let (mut swarm, carried) = world.magnet.into_swarm(world.now, geometry(), none, options);
    let of = |key| carried.iter().find(|(old, _)| *old == key).unwrap().1;
    assert!(of(keys[0]).is_ok() && of(keys[2]).is_ok());
    assert_eq!(of(keys[1]), Err(Error::Private));
    let by_source = swarm.contacts.by_source();
    assert_eq!((by_source[Source::Pex as usize], by_source[Source::Tracker as usize]), (0, 2));
    // Those whose handshakes were under way.
    assert_eq!(addrs.map(|addr| swarm.expects(addr)), [true, false, true, false, false]);
    let now = world.now;
    assert_eq!(swarm.handle_connected(now, init(4, true)), Err(Refused::Private));
    assert!(swarm.handle_connected(now, init(3, true)).is_ok());
    assert!(swarm.handle_connected(now, init(4, false)).is_ok(), "it knows us from the tracker");
    swarm.check_invariants();
}

#[test]
fn strangers_go_as_soon_as_a_torrent_is_known_to_be_private() {
    let (mut world, addrs) = mixed();
    let keys: Vec<PeerKey> = world.peers.iter().map(|peer| peer.1).collect();
    while world.magnet.poll_action().is_some() {}
    world.magnet.make_private();
    let action = world.magnet.poll_action();
    assert_eq!(action, Some(MagnetAction::Close(keys[1], Error::Private)));
    assert_eq!(world.magnet.poll_action(), None);
    assert_eq!(addrs.map(|addr| world.magnet.expects(addr)), [true, false, true, false, false]);
    let stranger = "21.0.0.1:5000".parse().unwrap();
    world.magnet.handle_contacts(world.now, Source::Dht, &[stranger]);
    assert_eq!(world.magnet.poll_action(), None);
    world.magnet.handle_contacts(world.now, Source::Tracker, &[stranger]);
    assert_eq!(world.magnet.poll_action(), Some(MagnetAction::Connect(stranger)));
}
