//! Open files of one worker while its disk hangs: nothing is asked twice, nothing dropped by it.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::Torrent;
use super::fleet::idle_worker;
use crate::metrics::SendPath;
use crate::ring::Uring;
use crate::storage::{Mode, files};
use crate::swarm;
use crate::units::Bitfield;
use crate::worker::blocking::{LANE_JOBS_MAX, Lane};
use crate::worker::connection::Sending;
use crate::worker::mailbox::{NewTorrent, Totals};
use crate::worker::table::Key;
use crate::worker::torrent::{FILES_RETRY, Store};
use crate::worker::{Target, Worker};

/// Makes the only thread for files hang until the end that is returned is gone.
fn hang(worker: &Worker<Uring>) -> Sender<()> {
    let (until, hang) = channel::<()>();
    let job = Box::new(move || assert!(hang.recv().is_err()));
    assert!(worker.shared.blocking.run(Lane::Device(0), job).is_ok());
    while worker.shared.blocking.waiting_count() > 0 {
        std::thread::yield_now();
    }
    until
}

/// A worker with a complete torrent whose files are being opened behind a job that hangs.
fn opening(torrent: &Torrent) -> (Worker<Uring>, Key, Sender<()>) {
    let (mut worker, _) = idle_worker();
    let until = hang(&worker);
    let info_hash = torrent.info_hash;
    worker.add_torrent(NewTorrent {
        info_hash,
        content: torrent.content(torrent.path()),
        have: Bitfield::all(torrent.geometry.piece_count()),
        in_files: Bitfield::all(torrent.geometry.piece_count()),
        known: Vec::new(),
        options: swarm::Options { info_hash, ..swarm::Options::default() },
        totals: Arc::new(Totals::new(0)),
    });
    let key = worker.by_hash[&info_hash];
    worker.need_files(key);
    (worker, key, until)
}

#[test]
fn what_was_sent_to_who_has_left_is_counted() {
    let torrent = Torrent::new(&[("data", 100_000)], 16 << 10, 64);
    let (mut worker, key, _until) = opening(&torrent);
    let totals = Arc::clone(&worker.torrents.get(key).unwrap().totals);
    let gone = Key { slot: 7, generation: 3 };
    let sending = Sending {
        batch: std::rc::Rc::default(),
        sent: 0,
        payload_left: 16_384,
        read_left: 10_000,
        since: worker.now,
        moved_at: worker.now,
    };
    let tag = Target::Send(gone).tag();
    // The kernel took all of one, and nothing of the next; a third is nobody's.
    for result in [Ok(20_000), Err(std::io::ErrorKind::ConnectionReset.into())] {
        worker.last_sends.keep(gone, key, &sending);
        worker.on_sent(tag, result, false);
        assert!(worker.last_sends.is_empty());
    }
    worker.on_sent(tag, Ok(16_384), false);
    worker.housekeep();
    assert_eq!(totals.uploaded.load(std::sync::atomic::Ordering::Relaxed), 16_384);
    let sent = |path| worker.core.sent_payload_bytes[path].get();
    assert_eq!((sent(SendPath::Read), sent(SendPath::Copy)), (10_000, 6_384));
}

#[test]
fn files_of_a_torrent_are_compared_once_at_a_time() {
    let torrent = Torrent::new(&[("data", 100_000)], 16 << 10, 61);
    let (mut worker, key, _until) = opening(&torrent);
    let have = Bitfield::all(torrent.geometry.piece_count());
    let opened =
        files::open(&torrent.content(torrent.path()), false, Mode::Auto, &[], &have, &have);
    worker.on_opened(key, Lane::Device(0), opened);
    let before = worker.shared.blocking.waiting_count();
    for _ in 0..3 {
        worker.compare(key);
    }
    assert_eq!(worker.shared.blocking.waiting_count(), before + 1);
    worker.on_compared(key, Ok((Vec::new(), Vec::new())));
    worker.compare(key);
    assert_eq!(worker.shared.blocking.waiting_count(), before + 2);
}

#[test]
fn files_are_closed_by_a_thread_that_may_block_whoever_holds_on_to_them() {
    let torrent = Torrent::new(&[("data", 1_000_000)], 16 << 10, 62);
    let (mut worker, key, until) = opening(&torrent);
    let have = Bitfield::all(torrent.geometry.piece_count());
    let content = torrent.content(torrent.path());
    let open = || files::open(&content, false, Mode::Map, &[], &have, &have);
    worker.on_opened(key, Lane::Device(0), open());
    let Store::Open(open_files) = &worker.torrents.get(key).unwrap().store else { panic!() };
    let file = open_files.files[0].as_ref().unwrap();
    let (in_flight, lease) = (std::rc::Rc::clone(&file.handle), file.lease.clone());
    assert!(lease.is_some(), "it is not mapped");
    let before = worker.shared.blocking.waiting_count();
    worker.remove_torrent(&torrent.info_hash);
    // An operation still has it: it waits, and is closed elsewhere once that has ended.
    assert_eq!((worker.remains.len(), worker.shared.blocking.waiting_count()), (1, before));
    drop(in_flight);
    worker.close_remains();
    assert_eq!((worker.remains.len(), worker.shared.blocking.waiting_count()), (1, before));
    drop(lease);
    worker.close_remains();
    assert_eq!((worker.remains.len(), worker.shared.blocking.waiting_count()), (0, before + 1));

    // What was opened for one that is gone goes the same way.
    worker.on_opened(key, Lane::Device(0), open());
    assert_eq!(worker.shared.blocking.waiting_count(), before + 2);
    drop(until);
    let begun = crate::sys::clock::now();
    while worker.shared.blocking.waiting_count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "they are not closed");
        std::thread::yield_now();
    }
}

#[test]
fn files_that_found_no_room_are_asked_for_again_soon_whatever_timer_was_set_before() {
    let torrent = Torrent::new(&[("data", 100_000)], 16 << 10, 63);
    let (mut worker, key, until) = opening(&torrent);
    let content = torrent.content(torrent.path());
    let have = Bitfield::all(torrent.geometry.piece_count());
    let opened = files::open(&content, false, Mode::Auto, &[], &have, &have);
    worker.on_opened(key, Lane::Device(0), opened);
    let at = worker.torrents.get(key).unwrap().files_timer.unwrap();
    // Nobody uses them: they are closed, and looked at later once more.
    worker.now = at;
    worker.on_files_timer(key);
    let it = worker.torrents.get(key).unwrap();
    assert!(matches!(it.store, Store::Closed) && it.files_timer.unwrap() > at + FILES_RETRY);
    // Now somebody does, while its lane is full.
    let lane = it.lane();
    while worker.shared.blocking.run(lane.clone(), Box::new(|| {})).is_ok() {}
    assert!(worker.shared.blocking.waiting_count() >= LANE_JOBS_MAX);
    assert_eq!(worker.shared.blocking.refused_count(), 1);
    worker.need_files(key);
    let retry_at = worker.torrents.get(key).unwrap().files_timer.unwrap();
    assert_eq!(retry_at, at + FILES_RETRY);
    // There is room again: they are asked for when the timer fires, not with each block.
    drop(until);
    while worker.shared.blocking.waiting_count() > 0 {
        std::thread::yield_now();
    }
    let store = |worker: &mut Worker<Uring>, now| {
        worker.now = now;
        worker.on_files_timer(key);
        matches!(worker.torrents.get(key).unwrap().store, Store::Opening)
    };
    worker.need_files(key);
    assert!(!store(&mut worker, retry_at - FILES_RETRY / 2), "a timer of before counts");
    assert!(store(&mut worker, retry_at), "they are not asked for again");
}
