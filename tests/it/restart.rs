//! Stopping and starting again: what was added is there, what is on disk is checked.

use std::fs;
use std::time::Duration;

use crate::support::data::{Shape, odd_tree, single};
use crate::support::server::{Home, START, Server, fetch_from};
use crate::support::tracker::Listener;
use crate::support::{dir, wait};

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
    // The seed finds the server through nobody: a `get` that seeds on connects to it.
    let origin = dir.path().join("origin");
    fs::create_dir(&origin).unwrap();
    content.copy_to(&origin);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("downloading", 1, START);
    let feed = |server: &Server| {
        let peers = [server.peer];
        crate::support::server::start_get(
            "feed",
            dir.path(),
            &content,
            &origin,
            &peers,
            &["--seed"],
        )
    };
    let feeder = feed(&server);
    server.wait_metric("seedring_pieces_verified_total", &[], START, |count| count >= 5.0);
    server.process.signal(libc::SIGKILL);
    server.process.wait(START);
    drop(feeder);

    let mut server = home.run(&[]);
    let feeder = feed(&server);
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
