//! One server fetches from another, for every shape of torrent and way of reading it.

use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::*;
use crate::storage::Mode;
use crate::worker::mailbox::TorrentState;

/// Fetches `torrent` from one worker to another and checks what both say about it.
fn transfer(ring: Ring, torrent: &Torrent, mode: Mode, is_cold: bool) {
    transfer_with(ring, torrent, &Options { mode, ..options() }, is_cold);
}

/// The same with any options.
pub(super) fn transfer_with(ring: Ring, torrent: &Torrent, options: &Options, is_cold: bool) {
    let seeder = Fleet::start(1, 1, ring, options);
    let mut leecher = Fleet::start(2, 1, ring, options);
    if is_cold {
        torrent.make_cold();
    }
    let given = seeder.seed(0, torrent);
    let taken = leecher.fetch(0, torrent);
    leecher.introduce(0, torrent, &[seeder.members[0].addr]);
    match leecher.report() {
        Report::Finished(info_hash) => assert_eq!(info_hash, torrent.info_hash),
        report => panic!("{report:?}"),
    }
    let total = torrent.geometry.total_len();
    assert_eq!(taken.state(), TorrentState::Seeding);
    assert_eq!(taken.left.load(Relaxed), 0);
    // Two seeds have nothing to say to each other.
    seeder.wait_until_idle();
    leecher.wait_until_idle();
    // The rates fade over a minute; the rest is told within one housekeeping.
    wait_for("the seeder's totals", || {
        given.uploaded.load(Relaxed) >= total && given.peers.load(Relaxed) == 0
    });
    wait_for("the peer to be gone", || taken.peers.load(Relaxed) == 0);
    assert_eq!(taken.downloaded.load(Relaxed), total);
    assert_eq!(given.uploaded.load(Relaxed), total);
    let (up, down) = (&seeder.members[0].core, &leecher.members[0].core);
    let sent: u64 =
        crate::metrics::SendPath::ALL.iter().map(|&path| up.sent_payload_bytes[path].get()).sum();
    assert_eq!(sent, total);
    assert_eq!(down.received_payload_bytes.get(), total);
    assert_eq!(down.pieces_verified.get(), u64::from(torrent.geometry.piece_count()));
    assert_eq!(down.piece_hash_failures.get(), 0);
    assert!(torrent.is_same_at(leecher.save_path.path()));
    assert!(leecher.stop().is_empty());
    assert!(seeder.stop().is_empty());
}

#[test]
fn one_file_arrives_whole() {
    let torrent = any_torrent(3_000_000, 1);
    on_every_ring(Faults::rough(), 0..3, |ring| transfer(ring, &torrent, Mode::Auto, false));
}

/// Files that share pieces, tiny and empty ones, padding, and one long enough to be mapped.
pub(super) fn many_files() -> Torrent {
    let files = [
        ("0 empty", 0),
        ("1 tiny", 3),
        ("2/deep/short", 40_000),
        ("3 mapped", 1_500_001),
        ("_____padding_file_0_a", 30_000),
        ("a", 1),
        ("b", 70_001),
        ("c", 700_000),
    ];
    Torrent::new(&files, 64 * 1024, 2)
}

#[test]
fn many_files_arrive_whole_however_they_are_read() {
    let torrent = many_files();
    for (mode, is_cold) in
        [(Mode::Read, false), (Mode::Read, true), (Mode::Map, false), (Mode::Map, true)]
    {
        on_every_ring(Faults::rough(), 10..11, |ring| transfer(ring, &torrent, mode, is_cold));
    }
}

#[test]
fn blocks_in_more_files_than_a_batch_takes_are_read() {
    let names: Vec<String> = (0..2000).map(|number| format!("{number:04}")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), 37)).collect();
    let torrent = Torrent::new(&files, 16 * 1024, 3);
    on_every_ring(Faults::rough(), 20..21, |ring| transfer(ring, &torrent, Mode::Map, false));
}

#[test]
fn a_fetch_through_breaking_connections_and_disks_ends_well_or_says_why() {
    let torrent = any_torrent(2_000_000, 4);
    for seed in 30..36 {
        run_on(Ring::Faulty(Faults::hostile(), seed), |ring| {
            let seeder = Fleet::start(1, 1, ring, &options());
            let mut leecher = Fleet::start(2, 1, ring, &options());
            seeder.seed(0, &torrent);
            let taken = leecher.fetch(0, &torrent);
            leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
            let end = clock::now() + Duration::from_millis(500);
            let mut finished = false;
            while !finished && clock::now() < end {
                match leecher.report_now() {
                    Some(Report::Finished(_)) => finished = true,
                    Some(Report::Failed(..)) => break,
                    Some(report) => panic!("{report:?}"),
                    None => std::thread::park_timeout(Duration::from_millis(1)),
                }
            }
            let left = taken.left.load(Relaxed);
            let save_path = leecher.save_path.path().to_owned();
            let have = torrent.have_at(&save_path);
            let here: u64 =
                have.iter().map(|piece| u64::from(torrent.geometry.piece_len(piece))).sum();
            assert!(here + left >= torrent.geometry.total_len(), "pieces told that are not there");
            assert!(!finished || torrent.is_same_at(&save_path));
            leecher.stop_amid_faults();
            seeder.stop_amid_faults();
        });
    }
}
