//! Stopping and starting again: what was added is there, what is on disk is checked.

use std::fs;
use std::path::Path;
use std::time::Duration;

use seedring::control::state::State;

use crate::support::data::{Content, Shape, odd_tree, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, fetch_from, start_get};
use crate::support::tracker::Listener;
use crate::support::{dir, wait};

/// Something that has all of a torrent and gives it to a server. The two find each other through
/// nobody: a `get` that seeds on connects to the server.
fn feed(dir: &Path, content: &Content, server: &Server) -> Process {
    let origin = dir.join("origin");
    fs::create_dir_all(&origin).unwrap();
    content.copy_to(&origin);
    start_get("feed", dir, content, &origin, &[server.peer], &["--seed"])
}

#[test]
fn a_restart_loads_all_torrents_and_checks_their_data() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(32 << 10);
    let contents = [
        single(dir.path(), "one", 1_000_000, 70, &shape),
        single(dir.path(), "two", 1_000_001, 71, &shape),
        odd_tree(dir.path(), 72, &shape),
    ];
    let mut server = home.run(&[]);
    for content in &contents {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    server.wait_torrents("seeding", 3, START);
    server.stop();

    let mut server = home.run(&[]);
    server.wait_torrents("seeding", 3, START);
    fetch_from(dir.path(), &contents[2], server.peer);
    // Ended without a warning: nothing that was added may be lost.
    server.process.signal(libc::SIGKILL);
    assert_eq!(server.process.wait(START), 128 + libc::SIGKILL);

    // What changed meanwhile is not offered.
    let path = home.downloads.join("two");
    let mut bytes = fs::read(&path).unwrap();
    bytes[333_333] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut server = home.run(&[]);
    server.wait_torrents("seeding", 2, START);
    server.wait_torrents("downloading", 1, START);
    server.stop();
}

#[test]
fn a_download_goes_on_after_a_restart() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "data", 8 << 20, 73, &Shape::pieces_of(64 << 10));
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("downloading", 1, START);
    let feeder = feed(dir.path(), &content, &server);
    server.wait_metric("seedring_pieces_verified_total", &[], START, |count| count >= 5.0);
    server.process.signal(libc::SIGKILL);
    server.process.wait(START);
    drop(feeder);

    let mut server = home.run(&[]);
    let feeder = feed(dir.path(), &content, &server);
    server.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();
}

#[test]
fn a_clean_stop_announces_stopped_and_ends_in_time() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let tracker = Listener::start();
    let shape = Shape { trackers: vec![tracker.url()], ..Shape::pieces_of(32 << 10) };
    let contents = [
        single(dir.path(), "one", 500_000, 74, &shape),
        single(dir.path(), "two", 500_000, 75, &shape),
    ];
    let server = home.run(&[]);
    for content in &contents {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    let count = |event: &str| tracker.lines().iter().filter(|line| line.contains(event)).count();
    wait::until("announces of both", START, || (count("event=started") >= 2).then_some(()));
    assert_eq!(count("event=stopped"), 0);
    server.stop();
    assert_eq!(count("event=stopped"), 2, "{:?}", tracker.lines());
    assert_eq!(count("event=completed"), 0, "nothing was completed: {:?}", tracker.lines());
    let port_is_named = tracker.lines().iter().all(|line| line.contains("port="));
    assert!(port_is_named, "{:?}", tracker.lines());
}

#[test]
fn a_stop_does_not_wait_for_a_tracker_that_is_silent() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/announce", silent.local_addr().unwrap());
    let shape = Shape { trackers: vec![url], ..Shape::pieces_of(32 << 10) };
    let content = single(dir.path(), "one", 500_000, 76, &shape);
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    silent.set_nonblocking(true).unwrap();
    let held = wait::until("an announce", START, || silent.accept().ok());
    server.process.signal(libc::SIGTERM);
    server.process.wait_ok(Duration::from_secs(10));
    drop(held);
}

#[test]
fn completed_is_told_once_over_all_runs() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let tracker = Listener::start();
    // The one that feeds it tells the tracker nothing.
    let plain = single(dir.path(), "data", 2 << 20, 77, &Shape::pieces_of(64 << 10));
    let tracked = dir.path().join("tracked");
    fs::create_dir(&tracked).unwrap();
    let content = plain.with_tracker(&tracked, &tracker.url());
    let count = |event: &str| tracker.lines().iter().filter(|line| line.contains(event)).count();
    let path = home.downloads.join("data");
    for run in 1..=3 {
        let mut server = home.run(&[]);
        if run == 1 {
            home.add(&content);
        }
        server.wait_torrents("downloading", 1, START);
        let feeder = feed(dir.path(), &plain, &server);
        server.wait_torrents("seeding", 1, START);
        wait::until("its start", START, || (count("event=started") >= run).then_some(()));
        if run == 1 {
            wait::until("the end", START, || (count("event=completed") == 1).then_some(()));
        }
        drop(feeder);
        server.stop();
        // What it had to tell, it told before this.
        wait::until("its stop", START, || (count("event=stopped") >= run).then_some(()));
        assert_eq!(count("event=completed"), 1, "run {run}: {:?}", tracker.lines());
        // A piece rots: it is fetched again, but the torrent was complete before.
        let mut bytes = fs::read(&path).unwrap();
        bytes[333_333] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
}

/// A torrent that became whole while the server ended, as its database says.
#[test]
fn what_became_complete_at_the_end_is_told_at_the_next_start() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let tracker = Listener::start();
    let shape = Shape { trackers: vec![tracker.url()], ..Shape::pieces_of(64 << 10) };
    let content = single(dir.path(), "data", 1 << 20, 78, &shape);
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    server.stop();
    let count = |event: &str| tracker.lines().iter().filter(|line| line.contains(event)).count();
    assert_eq!(count("event=completed"), 0, "it was complete when it was added");
    let database = rusqlite::Connection::open(home.state.join("seedring.db")).unwrap();
    database.execute("UPDATE torrents SET downloaded = 9, was_whole = 0", []).unwrap();
    database.close().unwrap();
    for run in 2..=3 {
        let mut server = home.run(&[]);
        server.wait_torrents("seeding", 1, START);
        wait::until("its start", START, || (count("event=started") >= run).then_some(()));
        wait::until("the end", START, || (count("event=completed") >= 1).then_some(()));
        server.stop();
        // What it had to tell, it told before this.
        wait::until("its stop", START, || (count("event=stopped") >= run).then_some(()));
    }
    assert_eq!(count("event=completed"), 1, "{:?}", tracker.lines());
}

#[test]
fn what_moved_just_before_a_clean_stop_is_counted() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "data", 4 << 20, 79, &Shape::pieces_of(64 << 10));
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    fetch_from(dir.path(), &content, server.peer);
    server.stop();
    let (_state, stored) = State::open(&home.state).unwrap();
    assert!(stored[0].uploaded >= 4 << 20, "{stored:?}");
    assert!(stored[0].was_whole == Some(true) && stored[0].had_bytes == 4 << 20, "{stored:?}");
}

#[test]
fn files_that_are_missing_of_a_complete_torrent_are_said() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = odd_tree(dir.path(), 80, &Shape::pieces_of(32 << 10));
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    server.stop();
    let on_disk = |file: &seedring::metainfo::File<'_>| file.is_on_disk() && file.len > 0;
    let files: Vec<_> = content.metainfo.layout.files().filter(on_disk).collect();
    let paths: Vec<_> = files.iter().map(|it| home.downloads.join(it.path())).collect();
    assert!(paths.len() > 2, "{paths:?}");
    for path in &paths[1..3] {
        fs::remove_file(path).unwrap();
    }
    let mut server = home.run(&[]);
    server.wait_torrents("downloading", 1, START);
    let log = server.process.stderr();
    let line = log.lines().find(|line| line.contains("are missing"));
    let line = line.unwrap_or_else(|| panic!("not a word: {log}"));
    let first = paths[1].display().to_string();
    for part in ["WARN", "missing_count=2", "fetched anew", &first, &content.info_hash()] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    server.stop();
}
