//! Files that go wrong while they are served: one torrent stops, the other goes on.

use std::fs::OpenOptions;
use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::peer::requests;
use super::*;
use crate::metrics::DisconnectReason;
use crate::storage::recovery::READ_ERRORS_MAX;
use crate::storage::{Error, Mode};
use crate::units::{Block, PieceIndex};
use crate::worker::mailbox::TorrentState;

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
        Report::Failed(info_hash, error, _) => {
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
        assert!(matches!(report, Report::Failed(_, Error::Missing { .. }, _)), "{report:?}");
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

/// The first block of every piece.
fn firsts(torrent: &Torrent) -> Vec<Block> {
    let pieces = (0..torrent.geometry.piece_count()).map(PieceIndex);
    pieces.filter_map(|piece| torrent.geometry.block(piece, 0)).collect()
}

#[test]
fn a_piece_that_cannot_be_read_is_refused_and_no_others_are() {
    let torrent = any_torrent(1 << 20, 15);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let fleet = Fleet::start(1, 1, ring, &Options { mode: Mode::Read, ..options() });
        let (member, firsts) = (&fleet.members[0], firsts(&torrent));
        let totals = fleet.seed(0, &torrent);
        member.seen.bad_reads.store(1, Relaxed);
        let mut peer = Peer::asking(member.addr, &torrent, 24, &firsts[..1]);
        peer.read_until("a reject", |peer| !peer.rejects.is_empty());
        assert_eq!(peer.rejects, firsts[..1]);
        // It stays refused although the disk answers again, and all else is served.
        peer.send(&requests(&firsts));
        peer.read_until("the others", |peer| firsts[1..].iter().all(|&it| peer.has(it)));
        peer.read_until("a second reject", |peer| peer.rejects.len() == 2);
        peer.assert_right(&torrent);
        assert!(!peer.has(firsts[0]));
        assert_eq!(totals.state(), TorrentState::Downloading);
        wait_for("what is left", || {
            totals.left.load(Relaxed) == u64::from(torrent.geometry.piece_len_nominal())
        });
        assert_eq!(member.core.disconnects[DisconnectReason::Banned].get(), 0);
        drop(peer);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn too_many_pieces_that_cannot_be_read_stop_the_torrent() {
    let torrent = any_torrent(3 << 20, 16);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let mut fleet = Fleet::start(1, 1, ring, &Options { mode: Mode::Read, ..options() });
        fleet.seed(0, &torrent);
        let member = &fleet.members[0];
        member.seen.bad_reads.store(READ_ERRORS_MAX as usize - 1, Relaxed);
        let firsts = firsts(&torrent);
        let (last, firsts) = firsts.split_last().unwrap();
        let mut peer = Peer::asking(member.addr, &torrent, 25, firsts);
        let lost = READ_ERRORS_MAX as usize - 1;
        peer.read_until("answers", |peer| {
            peer.rejects.len() == lost && peer.blocks.len() == firsts.len() - lost
        });
        peer.assert_right(&torrent);
        member.seen.bad_reads.store(1, Relaxed);
        peer.send(&requests(&[*last]));
        peer.read_to_end();
        let report = fleet.report();
        let Report::Failed(_, Error::Io { action: "read", .. }, had) = report else {
            panic!("{report:?}");
        };
        assert_eq!(had.have.len() - had.have.count(), READ_ERRORS_MAX - 1);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

/// What cannot be read comes again from somebody else, and is written where it was.
#[test]
fn a_lost_piece_is_fetched_and_written_anew() {
    let (torrent, other) = (any_torrent(1 << 20, 17), any_torrent(1 << 20, 17));
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let options = Options { mode: Mode::Read, ..options() };
        let mut fleet = Fleet::start(1, 1, ring, &options);
        let helper = Fleet::start(2, 1, ring, &options);
        helper.seed(0, &other);
        let totals = fleet.seed(0, &torrent);
        let member = &fleet.members[0];
        let block = torrent.geometry.block(PieceIndex(3), 0).unwrap();
        member.seen.bad_reads.store(1, Relaxed);
        let mut peer = Peer::asking(member.addr, &torrent, 26, &[block]);
        peer.read_until("a reject", |peer| !peer.rejects.is_empty());
        assert_eq!(totals.state(), TorrentState::Downloading);
        fleet.introduce(0, &torrent, &[helper.members[0].addr]);
        wait_for("the piece to be back", || totals.state() == TorrentState::Seeding);
        assert_eq!(totals.left.load(Relaxed), 0);
        peer.rejects.clear();
        peer.send(&requests(&[block]));
        peer.expect(&torrent, &[block]);
        assert!(torrent.is_same_at(torrent.path()));
        // It was complete before: nobody is told that it is so now.
        assert!(fleet.report_now().is_none());
        drop(peer);
        fleet.wait_until_idle();
        helper.wait_until_idle();
        assert!(fleet.stop().is_empty());
        assert!(helper.stop().is_empty());
    });
}

#[test]
fn a_file_deleted_before_the_last_piece_is_no_complete_torrent() {
    let torrent = any_torrent(1 << 20, 18);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let mut fleet = Fleet::start(1, 1, ring, &options());
        let helper = Fleet::start(2, 1, ring, &options());
        let totals = fleet.fetch(0, &torrent);
        let path =
            fleet.save_path.path().join(torrent.content(torrent.path()).metainfo.name.clone());
        let path = path.join("one");
        wait_for("the file", || path.exists());
        std::fs::remove_file(&path).unwrap();
        helper.seed(0, &torrent);
        fleet.introduce(0, &torrent, &[helper.members[0].addr]);
        let report = fleet.report();
        assert!(matches!(report, Report::Failed(_, Error::Missing { .. }, _)), "{report:?}");
        assert_eq!(totals.state(), TorrentState::Error);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
        assert!(helper.stop().is_empty());
    });
}
