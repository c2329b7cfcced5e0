//! Torrents without metadata: fetched from peers, handed in, carried over; and what ends them.

use std::sync::atomic::Ordering::Relaxed;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::peer::{beginning, greeting};
use super::*;
use crate::metrics::{Direction, DisconnectReason, Encryption, HandshakeResult};
use crate::swarm;
use crate::swarm::{MagnetAction, PeerInit, Refused, Source};
use crate::units::Bitfield;
use crate::units::PeerId;
use crate::worker::connection::Subject;
use crate::worker::mailbox::{MetadataProgress, NewMagnet};

/// A fleet of one worker that seeds a torrent and serves its metadata.
fn seeder(ring: Ring, torrent: &Torrent) -> Fleet {
    let fleet = Fleet::start(1, 1, ring, &fleet::options());
    let content = torrent.content(torrent.path());
    let metadata = Some(content.metainfo.shared_info());
    let have = Bitfield::all(torrent.geometry.piece_count());
    let options = swarm::Options { metadata, ..swarm::Options::default() };
    fleet.add_with(0, torrent, torrent.path(), have, options);
    fleet
}

#[test]
fn a_connection_goes_on_when_the_metadata_is_there() {
    // 3,000 pieces: four blocks of metadata.
    let torrent = Torrent::new(&[("one", 3000 * 16384)], 16384, 60);
    on_every_ring(Faults::rough(), 0..4, |ring| {
        let seeder = seeder(ring, &torrent);
        let mut leecher = Fleet::start(2, 1, ring, &fleet::options());
        let progress = leecher.seek(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let info = torrent.content(torrent.path()).metainfo.raw_info().to_vec();
        let report = leecher.report();
        assert!(
            matches!(&report, Report::Metadata(hash, it) if *hash == torrent.info_hash && *it == info)
        );
        let blocks = [&progress.blocks, &progress.blocks_all].map(|it| it.load(Relaxed));
        assert_eq!(blocks, [4, 4]);
        leecher.fetch(0, &torrent);
        let report = leecher.report();
        assert!(matches!(report, Report::Finished(_)), "{report:?}");
        assert!(torrent.is_same_at(leecher.save_path.path()));
        let met = &leecher.members[0].core.peer_connections;
        assert_eq!(met[(Direction::Outgoing, Encryption::Plain)].get(), 1);
        seeder.wait_until_idle();
        leecher.wait_until_idle();
        assert!(leecher.stop().is_empty());
        assert!(seeder.stop().is_empty());
    });
}

#[test]
fn blocks_nobody_asked_for_and_a_removal_end_connections() {
    let torrent = any_torrent(100_000, 61);
    on_every_ring(Faults::rough(), 0..3, |ring| {
        let mut fleet = Fleet::start(1, 1, ring, &fleet::options());
        fleet.seek(0, &torrent);
        let (addr, core) = (fleet.members[0].addr, Arc::clone(&fleet.members[0].core));
        let mut pushy = Peer::connect(addr, &torrent, &greeting(&torrent, 30));
        pushy.send(&beginning(torrent.blocks()[0], 9));
        pushy.read_to_end();
        wait_for("it to be counted", || core.disconnects[DisconnectReason::Protocol].get() == 1);
        let mut patient = Peer::connect(addr, &torrent, &greeting(&torrent, 31));
        let met = || core.handshakes[(Direction::Incoming, HandshakeResult::Ok)].get() == 2;
        wait_for("the other peer", met);
        fleet.post(0, Letter::Remove(torrent.info_hash));
        fleet.expect_removed(&torrent);
        patient.read_to_end();
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn torrents_without_metadata_leave_places_to_others() {
    let torrents = [any_torrent(100_000, 62), any_torrent(100_000, 63)];
    let fleet = Fleet::start(1, 1, Ring::Plain, &fleet::options());
    torrents.iter().for_each(|torrent| drop(fleet.seek(0, torrent)));
    let (addr, core) = (fleet.members[0].addr, &fleet.members[0].core);
    let mut peers = Vec::new();
    for name in 0..20 {
        for (which, torrent) in torrents.iter().enumerate() {
            let name = 100 + 2 * name + u8::try_from(which).unwrap();
            peers.push(Peer::connect(addr, torrent, &greeting(torrent, name)));
        }
    }
    let count = |result| core.handshakes[(Direction::Incoming, result)].get();
    // A quarter of a hundred.
    wait_for("all of them", || count(HandshakeResult::Limit) == 15);
    assert_eq!(count(HandshakeResult::Ok), 25);
    drop(peers);
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}

/// Somebody whom a worker connects to and who says nothing, after our handshake was read.
fn silent(listener: &TcpListener) -> std::net::TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream.read_exact(&mut [0; 68]).unwrap();
    stream
}

#[test]
fn connections_under_way_are_not_handed_to_a_private_torrent() {
    let torrent = Torrent::new(&[("one", 30 * 16384)], 16384, 64);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let seeder = seeder(ring, &torrent);
        let mut leecher = Fleet::start(2, 1, ring, &fleet::options());
        leecher.seek(0, &torrent);
        let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let addrs = listeners.each_ref().map(|it| it.local_addr().unwrap());
        for (source, addr) in [(Source::Dht, addrs[0]), (Source::Tracker, addrs[1])] {
            let (info_hash, addrs) = (torrent.info_hash, vec![addr]);
            leecher.post(0, Letter::Contacts { info_hash, source, addrs });
        }
        let [mut stranger, mut friend] = listeners.each_ref().map(silent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        assert!(matches!(leecher.report(), Report::Metadata(..)));
        let path = leecher.save_path.path();
        let options = swarm::Options { private: true, ..swarm::Options::default() };
        let none = Bitfield::none(torrent.geometry.piece_count());
        leecher.add_with(0, &torrent, path, none, options);
        assert!(matches!(leecher.report(), Report::Finished(_)));
        let core = Arc::clone(&leecher.members[0].core);
        let count = |result| core.handshakes[(Direction::Outgoing, result)].get();
        wait_for("the stranger to be left", || count(HandshakeResult::Refused) == 1);
        assert_eq!(stranger.read(&mut [0; 1]).unwrap_or(0), 0);
        friend.write_all(&greeting(&torrent, 70)).unwrap();
        wait_for("the friend", || count(HandshakeResult::Ok) == 2);
        drop(friend);
        seeder.wait_until_idle();
        leecher.wait_until_idle();
        assert!(leecher.stop().is_empty());
        assert!(seeder.stop().is_empty());
    });
}

#[test]
fn a_torrent_that_turns_out_to_be_private_leaves_strangers_at_once() {
    let torrent = any_torrent(100_000, 65);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let fleet = Fleet::start(1, 1, ring, &fleet::options());
        fleet.seek(0, &torrent);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addrs = vec![listener.local_addr().unwrap()];
        let info_hash = torrent.info_hash;
        fleet.post(0, Letter::Contacts { info_hash, source: Source::Pex, addrs });
        let mut stranger = silent(&listener);
        fleet.post(0, Letter::Private(info_hash));
        let core = Arc::clone(&fleet.members[0].core);
        let count = || core.handshakes[(Direction::Outgoing, HandshakeResult::Refused)].get();
        wait_for("the stranger to be left", || count() == 1);
        assert_eq!(stranger.read(&mut [0; 1]).unwrap_or(0), 0);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn one_magnet_makes_room_for_another() {
    let (mut worker, _core) = fleet::idle_worker();
    let mut magnet = |byte: u8| {
        let info_hash = InfoHash([byte; 20]);
        let options = swarm::Options { info_hash, ..swarm::Options::default() };
        let progress = Arc::<MetadataProgress>::default();
        worker.add_magnet(NewMagnet { options, progress });
        worker.magnets.find(&info_hash).unwrap()
    };
    let [idle, other] = [1, 2].map(&mut magnet);
    let init = |name: u8| {
        let addr = SocketAddr::from(([20, 0, 0, name], 5000));
        let peer_id = PeerId([name; 20]);
        PeerInit { addr, peer_id, fast: true, extensions: true, dht: false, outgoing: false }
    };
    // Nobody is behind these; it is the count that matters.
    let mut name = 0;
    while worker.has_room_for_magnets() {
        name += 1;
        let peer = worker.admit(Subject::Magnet(idle), init(name)).unwrap().unwrap();
        worker.enter_magnet(idle, peer, Key { slot: u32::from(name), generation: 0 });
    }
    let closed = |worker: &mut Worker<_>| {
        let swarm = &mut worker.magnets.get_mut(idle).unwrap().swarm;
        std::iter::from_fn(|| swarm.poll_action())
            .filter(|action| matches!(action, MagnetAction::Close(..)))
            .count()
    };
    assert_eq!(worker.admit(Subject::Magnet(other), init(200)), Some(Err(Refused::Full)));
    assert_eq!(closed(&mut worker), 0, "they came a moment ago");
    worker.now += Duration::from_secs(60);
    assert_eq!(worker.admit(Subject::Magnet(other), init(200)), Some(Err(Refused::Full)));
    assert_eq!(closed(&mut worker), usize::from(name));
}
