//! Connections that another worker accepted.

use super::fleet::options;
use super::*;
use crate::metrics::HandoverResult;

const PEERS: u8 = 3;

/// Peers of two torrents, each connecting to the worker that is not the home.
fn wrong_doors(ring: Ring, torrents: &[Torrent; 2]) {
    let fleet = Fleet::start(1, 2, ring, &options());
    for (home, torrent) in torrents.iter().enumerate() {
        fleet.seed(home, torrent);
    }
    let mut peers = Vec::new();
    for name in 0..PEERS {
        for (home, torrent) in torrents.iter().enumerate() {
            // More than one receive buffer holds: some of it comes behind the hand-over.
            let mut blocks = torrent.blocks();
            blocks.rotate_left(usize::from(name) * 7);
            let peer = Peer::asking(fleet.members[1 - home].addr, torrent, 50 + name, &blocks);
            peers.push((peer, torrent, blocks));
        }
    }
    for (peer, torrent, blocks) in &mut peers {
        peer.expect(torrent, blocks);
    }
    for (number, member) in fleet.members.iter().enumerate() {
        let count = |result| member.core.handovers[result].get();
        assert_eq!(count(HandoverResult::Sent), u64::from(PEERS), "worker {number}");
        assert_eq!(count(HandoverResult::Adopted), u64::from(PEERS), "worker {number}");
    }
    drop(peers);
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}

#[test]
fn nothing_of_a_first_segment_is_lost_on_the_way_home() {
    let torrents = [any_torrent(4_500_000, 5), any_torrent(900_000, 6)];
    assert!(torrents[0].blocks().len() * 17 > 4096);
    let faults = rough_without_short_receives();
    on_every_ring(faults, 0..5, |ring| wrong_doors(ring, &torrents));
}

#[test]
fn a_connection_for_a_torrent_that_has_just_gone_is_closed() {
    let torrent = any_torrent(100_000, 7);
    on_every_ring(rough_without_short_receives(), 0..3, |ring| {
        let mut fleet = Fleet::start(1, 2, ring, &options());
        fleet.seed(1, &torrent);
        fleet.post(1, Letter::Remove(torrent.info_hash));
        fleet.expect_removed(&torrent);
        let mut peer = Peer::asking(fleet.members[0].addr, &torrent, 9, &torrent.blocks());
        peer.read_to_end();
        assert!(peer.blocks.is_empty());
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}
