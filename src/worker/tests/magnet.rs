//! Torrents without metadata: fetched from peers, handed in, carried over; and what ends them.

use std::sync::atomic::Ordering::Relaxed;

use super::peer::{beginning, greeting};
use super::*;
use crate::metrics::{Direction, DisconnectReason, Encryption, HandshakeResult};
use crate::swarm;
use crate::units::Bitfield;

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
