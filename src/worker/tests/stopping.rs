//! Stopping in the midst of things.

use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::*;

/// Longest that a stop may take here: far below the deadline that gives up what is not written.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Stops a worker that fetches, once it has begun `writes` writes, and checks that what it had
/// verified is there and flushed.
fn stop_amid_writes(ring: Ring, torrent: &Torrent, writes: usize) {
    let seeder = Fleet::start(1, 1, ring, &options());
    let leecher = Fleet::start(2, 1, ring, &options());
    seeder.seed(0, torrent);
    leecher.fetch(0, torrent);
    leecher.introduce(0, torrent, &[seeder.members[0].addr]);
    let seen = &leecher.members[0].seen;
    wait_for("writes", || seen.writes.load(Relaxed) >= writes);
    let save_path = leecher.save_path.path().to_owned();
    let core = Arc::clone(&leecher.members[0].core);
    let kept = tempfile::TempDir::new().unwrap();
    let begun = clock::now();
    leecher.stop_into(kept.path());
    assert!(clock::now() - begun < STOP_MAX, "a stop waited for nothing");
    assert!(!save_path.exists());
    let here = u64::from(torrent.have_at(kept.path()).count());
    let verified = core.pieces_verified.get();
    assert!(here >= verified, "{here} pieces on disk, {verified} verified");
    seeder.stop();
}

#[test]
fn what_is_verified_is_written_and_flushed() {
    let torrent = Torrent::new(&[("a", 900_000), ("b", 1_200_000)], 32 * 1024, 15);
    for writes in [1, 20] {
        on_every_ring(Faults::rough(), 0..4, |ring| stop_amid_writes(ring, &torrent, writes));
    }
}

/// The writes under way when the worker is told to stop end after its first flush began.
#[test]
fn a_write_that_ends_after_the_flush_is_flushed_again() {
    let torrent = Torrent::new(&[("a", 900_000), ("b", 1_200_000)], 32 * 1024, 16);
    on_every_ring(Faults::rough(), 0..3, |ring| {
        let seeder = Fleet::start(1, 1, ring, &options());
        let leecher = Fleet::start(2, 1, ring, &options());
        seeder.seed(0, &torrent);
        leecher.members[0].seen.holds_files.store(true, Relaxed);
        leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let seen = &leecher.members[0].seen;
        wait_for("writes", || seen.writes.load(Relaxed) >= 5);
        leecher.post(0, Letter::Stop);
        wait_for("the peers to go", || {
            seeder.members[0].core.disconnects[DisconnectReason::PeerClosed].get() > 0
                || seeder.members[0].core.disconnects[DisconnectReason::Io].get() > 0
        });
        seen.holds_files.store(false, Relaxed);
        leecher.stop();
        seeder.stop();
    });
}

/// Files that cannot be opened leave pieces that can never be written; nobody waits for them.
#[test]
fn pieces_of_a_torrent_without_files_hold_up_no_stop() {
    let torrent = any_torrent(1_000_000, 17);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let seeder = Fleet::start(1, 1, ring, &options());
        let mut leecher = Fleet::start(2, 1, ring, &options());
        seeder.seed(0, &torrent);
        // The threads for files are busy until pieces have come.
        let (free, wait) = std::sync::mpsc::channel::<()>();
        leecher.block_files(wait);
        let top = leecher.save_path.path().join("top17");
        std::fs::create_dir(leecher.save_path.path().join("top17")).unwrap();
        std::fs::create_dir(top.join("one")).unwrap();
        leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let core = &leecher.members[0].core;
        wait_for("pieces", || core.pieces_verified.get() > 0);
        drop(free);
        let report = leecher.report();
        assert!(matches!(report, Report::Failed(..)), "{report:?}");
        let begun = clock::now();
        leecher.stop();
        assert!(clock::now() - begun < STOP_MAX, "a stop waited for nothing");
        seeder.stop();
    });
}
