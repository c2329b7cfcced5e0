//! Files that go wrong while they are served: one torrent stops, the other goes on.

use std::fs::OpenOptions;

use super::fleet::options;
use super::peer::requests;
use super::*;
use crate::metrics::DisconnectReason;
use crate::storage::{Error, Mode};

/// Truncates the file of one of two torrents while a batch of it waits for a slow peer.
fn cut_while_served(ring: Ring, torrents: &[Torrent; 2], mode: Mode) {
    let [cut, whole] = torrents;
    let mut fleet = Fleet::start(1, 1, ring, &Options { mode, ..options() });
    let addr = fleet.members[0].addr;
    fleet.seed(0, cut);
    fleet.seed(0, whole);
    let mut other = Peer::asking(addr, whole, 20, &whole.blocks()[..4]);
    let mut slow = Peer::narrow(addr, cut, 21, &cut.blocks());
    slow.read_until("a first block", |peer| !peer.blocks.is_empty());
    let file = OpenOptions::new().write(true).open(cut.file(0)).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    slow.read_to_end();
    slow.assert_right(cut);
    match fleet.report() {
        Report::Failed(info_hash, error) => {
            assert_eq!(info_hash, cut.info_hash);
            assert!(
                matches!(error, Error::Truncated { found: 0, expected, .. } if expected == len),
                "{error:?}"
            );
        }
        report => panic!("{report:?}"),
    }
    assert_eq!(fleet.members[0].core.disconnects[DisconnectReason::Storage].get(), 1);
    // A torrent in error talks to nobody.
    let mut late = Peer::asking(addr, cut, 22, &cut.blocks()[..1]);
    late.read_to_end();
    assert!(late.blocks.is_empty());
    let blocks = whole.blocks();
    other.send(&requests(&blocks));
    other.expect(whole, &blocks);
    drop(other);
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}

#[test]
fn a_truncated_file_stops_its_torrent_and_no_other() {
    for mode in [Mode::Map, Mode::Read] {
        let scenario = |ring| {
            let torrents = [any_torrent(10 << 20, 12), any_torrent(800_000, 13)];
            cut_while_served(ring, &torrents, mode);
        };
        on_every_ring(Faults::rough(), 0..2, scenario);
    }
}

#[test]
fn a_file_that_is_missing_at_first_use_stops_its_torrent() {
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let torrent = any_torrent(100_000, 14);
        std::fs::remove_file(torrent.file(0)).unwrap();
        let mut fleet = Fleet::start(1, 1, ring, &options());
        fleet.seed(0, &torrent);
        let mut peer = Peer::asking(fleet.members[0].addr, &torrent, 23, &torrent.blocks());
        peer.read_to_end();
        let report = fleet.report();
        assert!(matches!(report, Report::Failed(_, Error::Missing { .. })), "{report:?}");
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}
