//! Torrents that find no memory for their pieces. The worker itself checks in every turn that what
//! it has in memory stays within its limit.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::peer::{beginning, offer};
use super::transfer::{many_files, transfer_with};
use super::*;
use crate::metrics::{Direction, Encryption};
use crate::units::{BLOCK_LEN, PeerId};
use crate::wire::Handshake;
use crate::worker::fetch::BACKLOG_MAX;
use crate::worker::in_place::IN_PLACE_BYTES_MAX;

/// Options with so much memory for pieces.
fn tight(piece_bytes_max: u64) -> Options {
    Options { piece_bytes_max, ..options() }
}

/// Turns a byte of each of these blocks of `torrent` where its data lies.
fn spoil(torrent: &Torrent, blocks: &[crate::units::Block]) {
    let file = std::fs::OpenOptions::new().write(true).open(torrent.file(0)).unwrap();
    for &block in blocks {
        let at = torrent.geometry.piece_start(block.piece) + u64::from(block.begin);
        file.write_all_at(&[!torrent.bytes_of(block)[0]], at).unwrap();
    }
}

#[test]
fn what_finds_no_memory_arrives_whole() {
    let torrent = many_files();
    let piece_len = u64::from(torrent.geometry.piece_len_nominal());
    for budget in [0, 3 * piece_len + 1] {
        let scenario = |ring| transfer_with(ring, &torrent, &tight(budget), false);
        on_every_ring(Faults::rough(), 40..42, scenario);
    }
}

#[test]
fn pieces_of_several_steps_and_blocks_in_many_files_arrive_whole() {
    let names: Vec<String> = (0..500).map(|number| format!("{number:04}")).collect();
    let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), 137)).collect();
    files.push(("long", 5_000_000));
    let torrent = Torrent::new(&files, 2 << 20, 41);
    let scenario = |ring| transfer_with(ring, &torrent, &tight(0), false);
    on_every_ring(Faults::rough(), 50..52, scenario);
}

/// One seeder has wrong data; the worker finds out from what it wrote, and takes it of the other.
fn fetch_from_a_corrupter(ring: Ring, good: &Torrent, bad: &Torrent, at_once: bool) {
    let (corrupter, seeder) =
        (Fleet::start(1, 1, ring, &options()), Fleet::start(3, 1, ring, &options()));
    let mut leecher = Fleet::start(2, 1, ring, &tight(0));
    let up = at_once.then_some(1_000_000);
    corrupter.post(0, Letter::Budget { slots: None, up, down: None });
    corrupter.seed(0, bad);
    seeder.seed(0, good);
    leecher.fetch(0, good);
    leecher.introduce(0, good, &[corrupter.members[0].addr]);
    let core = Arc::clone(&leecher.members[0].core);
    if at_once {
        // It stays slow, so that both have a part in the first attempt.
        wait_for("a wrong block", || core.received_payload_bytes.get() > 0);
    } else {
        wait_for("a ban", || core.disconnects[DisconnectReason::Banned].get() > 0);
    }
    leecher.introduce(0, good, &[seeder.members[0].addr]);
    let report = leecher.report();
    assert!(matches!(report, Report::Finished(_)), "{report:?}");
    assert!(core.piece_hash_failures.get() > 0, "nothing was found");
    assert_eq!(core.disconnects[DisconnectReason::Banned].get(), 1, "the right one");
    assert!(good.is_same_at(leecher.save_path.path()));
    assert!(leecher.stop().is_empty());
    corrupter.stop();
    seeder.stop();
}

#[test]
fn a_bad_block_is_found_on_disk_and_fetched_again() {
    let make = || any_torrent(2_000_000, 42);
    let (good, bad) = (make(), make());
    spoil(&bad, &bad.blocks()[40..41]);
    on_every_ring(Faults::rough(), 60..62, |ring| fetch_from_a_corrupter(ring, &good, &bad, false));
}

#[test]
fn of_two_that_sent_a_piece_the_right_one_is_banned() {
    let make = || Torrent::new(&[("one", 900_000)], 1 << 20, 43);
    let (good, bad) = (make(), make());
    spoil(&bad, &bad.blocks());
    on_every_ring(Faults::rough(), 70..74, |ring| fetch_from_a_corrupter(ring, &good, &bad, true));
}

/// A ban takes back blocks that are still being written; what comes for them instead waits.
#[test]
fn a_block_is_not_written_over_one_that_is_being_written() {
    let make = || Torrent::new(&[("one", 20 << 20)], 8 << 20, 49);
    let (good, bad) = (make(), make());
    spoil(&bad, &bad.blocks());
    let piece_len = u64::from(good.geometry.piece_len_nominal());
    on_every_ring(Faults::rough(), 120..124, |ring| {
        let (corrupter, seeder) =
            (Fleet::start(1, 1, ring, &options()), Fleet::start(3, 1, ring, &options()));
        let mut leecher = Fleet::start(2, 1, ring, &tight(piece_len));
        let (core, seen) =
            (Arc::clone(&leecher.members[0].core), Arc::clone(&leecher.members[0].seen));
        seen.holds_files.store(true, Relaxed);
        corrupter.seed(0, &bad);
        seeder.seed(0, &good);
        leecher.fetch(0, &good);
        leecher.introduce(0, &good, &[corrupter.members[0].addr]);
        // The first piece is in memory: no disk is needed to see that it is bad.
        wait_for("a ban", || core.disconnects[DisconnectReason::Banned].get() > 0);
        leecher.introduce(0, &good, &[seeder.members[0].addr]);
        wait_for("the other peer", || {
            core.peer_connections[(Direction::Outgoing, Encryption::Plain)].get() > 1
        });
        seen.holds_files.store(false, Relaxed);
        let report = leecher.report();
        assert!(matches!(report, Report::Finished(_)), "{report:?}");
        assert!(good.is_same_at(leecher.save_path.path()));
        assert!(leecher.stop().is_empty());
        corrupter.stop();
        seeder.stop();
    });
}

#[test]
fn while_the_disk_stands_still_little_is_received() {
    let torrent = Torrent::new(&[("one", 24 << 20)], 1 << 20, 44);
    on_every_ring(Faults::rough(), 80..82, |ring| {
        let seeder = Fleet::start(1, 1, ring, &options());
        let mut leecher = Fleet::start(2, 1, ring, &tight(0));
        seeder.seed(0, &torrent);
        let (core, seen) =
            (Arc::clone(&leecher.members[0].core), Arc::clone(&leecher.members[0].seen));
        seen.holds_files.store(true, Relaxed);
        leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let received = &core.received_payload_bytes;
        wait_for("blocks", || received.get() > 1 << 20);
        // It asks for nothing more, and sleeps until it is woken.
        wait_for("the receiving to stop", || seen.is_quiet.load(Relaxed));
        assert!(received.get() <= IN_PLACE_BYTES_MAX as u64, "{} bytes", received.get());
        let before = received.get();
        wait_for("the buffers to be counted", || core.in_place_buffers.get() > 0);
        assert_eq!(received.get(), before, "the receiving goes on");
        seen.holds_files.store(false, Relaxed);
        let report = leecher.report();
        assert!(matches!(report, Report::Finished(_)), "{report:?}");
        assert!(torrent.is_same_at(leecher.save_path.path()));
        assert_eq!(core.in_place_blocks.get(), torrent.blocks().len() as u64);
        assert_eq!(core.in_place_bytes.get(), torrent.geometry.total_len());
        wait_for("the buffers to be free", || core.in_place_buffers.get() == 0);
        assert!(leecher.stop().is_empty());
        seeder.stop();
    });
}

#[test]
fn a_disk_that_stands_still_takes_no_more_than_its_part_of_the_memory() {
    let torrent = Torrent::new(&[("one", 48 << 20)], 1 << 20, 45);
    on_every_ring(Faults::rough(), 90..92, |ring| {
        let seeder = Fleet::start(1, 1, ring, &options());
        // All of it would fit into the memory for pieces.
        let options = Options { piece_bytes_max: 64 << 20, ..options() };
        let mut leecher = Fleet::start(2, 1, ring, &options);
        seeder.seed(0, &torrent);
        let (core, seen) =
            (Arc::clone(&leecher.members[0].core), Arc::clone(&leecher.members[0].seen));
        seen.holds_files.store(true, Relaxed);
        leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let received = &core.received_payload_bytes;
        wait_for("pieces", || received.get() > BACKLOG_MAX);
        wait_for("the receiving to stop", || seen.is_quiet.load(Relaxed));
        // What is on its way to the disk, what is asked for and one receive.
        assert!(received.get() <= 2 * BACKLOG_MAX, "{} bytes", received.get());
        seen.holds_files.store(false, Relaxed);
        let report = leecher.report();
        assert!(matches!(report, Report::Finished(_)), "{report:?}");
        assert!(torrent.is_same_at(leecher.save_path.path()));
        assert_eq!(core.in_place_blocks.get(), 0);
        assert!(leecher.stop().is_empty());
        seeder.stop();
    });
}

/// As many peers as there are buffers begin a block each and send just enough of it not to be
/// closed for that.
#[test]
fn peers_that_hold_all_buffers_make_room_for_others() {
    let (held, wanted) =
        (Torrent::new(&[("one", 24 << 20)], 1 << 20, 50), any_torrent(2_000_000, 51));
    let buffer_count = IN_PLACE_BYTES_MAX / BLOCK_LEN as usize;
    crate::sys::process::raise_open_files().unwrap();
    on_every_ring(Faults::rough(), 130..131, |ring| {
        let options = Options { connections_max: 2 * buffer_count, ..tight(0) };
        let mut leecher = Fleet::start(2, 1, ring, &options);
        let seeder = Fleet::start(1, 1, ring, &options);
        let (addr, core) = (leecher.members[0].addr, Arc::clone(&leecher.members[0].core));
        leecher.fetch(0, &held);
        leecher.fetch(0, &wanted);
        seeder.seed(0, &wanted);
        let mut slow: Vec<Peer> = (0..buffer_count)
            .map(|number| {
                let mut id = PeerId([9; 20]);
                id.0[..8].copy_from_slice(&number.to_le_bytes());
                let mut first = Handshake::new(held.info_hash, id, false).encode().to_vec();
                first.extend(offer());
                let mut peer = Peer::connect(addr, &held, &first);
                peer.read_until("a request", |peer| !peer.asked.is_empty());
                peer.send(&beginning(peer.asked[0], 1));
                peer
            })
            .collect();
        wait_for("the buffers to be held", || core.in_place_buffers.get() == buffer_count as u64);
        leecher.introduce(0, &wanted, &[seeder.members[0].addr]);
        let (mut report, mut turns) = (None, (0..buffer_count).cycle());
        wait_for("the other torrent", || {
            slow[turns.next().unwrap()].send(&[0; 200]);
            report = leecher.report_now();
            report.is_some()
        });
        assert!(
            matches!(report, Some(Report::Finished(it)) if it == wanted.info_hash),
            "{report:?}"
        );
        // Only so many as others had need of had to go.
        let closed = core.disconnects[DisconnectReason::Timeout].get();
        assert!((1..buffer_count as u64 / 2).contains(&closed), "{closed} were closed");
        drop(slow);
        leecher.stop_amid_faults();
        seeder.stop();
    });
}

/// A torrent goes while its blocks or pieces are being written, or a piece of it read; another
/// takes its place, and nobody is told that it is gone before the last of its writes has ended.
fn replace(ring: Ring, old: &Torrent, new: &Torrent, budget: u64, reads: usize) {
    let seeder = Fleet::start(1, 1, ring, &options());
    let mut leecher = Fleet::start(2, 1, ring, &tight(budget));
    seeder.seed(0, old);
    seeder.seed(0, new);
    let seen = Arc::clone(&leecher.members[0].seen);
    seen.holds_files.store(reads == 0, Relaxed);
    leecher.fetch(0, old);
    leecher.introduce(0, old, &[seeder.members[0].addr]);
    wait_for("writes and reads", || {
        seen.writes.load(Relaxed) >= 5 && seen.reads.load(Relaxed) >= reads
    });
    seen.holds_files.store(true, Relaxed);
    leecher.post(0, Letter::Remove(old.info_hash));
    leecher.fetch(0, new);
    leecher.introduce(0, new, &[seeder.members[0].addr]);
    let writes = seen.writes.load(Relaxed);
    wait_for("writes of the other", || seen.writes.load(Relaxed) > writes);
    if reads == 0 {
        // The end of no write of the old one is known.
        let report = leecher.report_now();
        assert!(report.is_none(), "{report:?}");
    }
    seen.holds_files.store(false, Relaxed);
    leecher.expect_removed(old);
    let report = leecher.report();
    assert!(
        matches!(report, Report::Finished(info_hash) if info_hash == new.info_hash),
        "{report:?}"
    );
    assert!(new.is_same_at(leecher.save_path.path()));
    leecher.stop_amid_faults();
    seeder.stop();
}

#[test]
fn late_writes_and_reads_touch_no_other_torrent() {
    let (old, new) = (any_torrent(30_000_000, 45), any_torrent(900_000, 46));
    let plenty = options().piece_bytes_max;
    for (budget, reads) in [(0, 0), (0, 1), (plenty, 0)] {
        on_every_ring(Faults::rough(), 90..93, |ring| replace(ring, &old, &new, budget, reads));
    }
}

#[test]
fn a_stop_in_the_midst_leaves_nothing_unflushed() {
    let torrent = Torrent::new(&[("a", 900_000), ("b", 1_200_000)], 32 * 1024, 47);
    for writes in [1, 60] {
        on_every_ring(Faults::rough(), 100..103, |ring| {
            let seeder = Fleet::start(1, 1, ring, &options());
            let leecher = Fleet::start(2, 1, ring, &tight(0));
            seeder.seed(0, &torrent);
            leecher.fetch(0, &torrent);
            leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
            let (core, seen) =
                (Arc::clone(&leecher.members[0].core), Arc::clone(&leecher.members[0].seen));
            wait_for("writes", || seen.writes.load(Relaxed) >= writes);
            let kept = tempfile::TempDir::new().unwrap();
            leecher.stop_into(kept.path());
            let here = u64::from(torrent.have_at(kept.path()).count());
            assert!(here >= core.pieces_verified.get());
            seeder.stop();
        });
    }
}

#[test]
fn failing_disks_end_well_or_say_why() {
    let torrent = any_torrent(2_000_000, 48);
    for seed in 110..116 {
        run_on(Ring::Faulty(Faults::hostile(), seed), |ring| {
            let seeder = Fleet::start(1, 1, ring, &options());
            let mut leecher = Fleet::start(2, 1, ring, &tight(200_000));
            seeder.seed(0, &torrent);
            leecher.fetch(0, &torrent);
            leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
            let end = clock::now() + Duration::from_millis(500);
            let mut report = None;
            while report.is_none() && clock::now() < end {
                report = leecher.report_now();
                std::thread::park_timeout(Duration::from_millis(1));
            }
            let is_same = torrent.is_same_at(leecher.save_path.path());
            assert!(!matches!(report, Some(Report::Finished(_))) || is_same);
            leecher.stop_amid_faults();
            seeder.stop_amid_faults();
        });
    }
}
