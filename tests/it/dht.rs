//! Torrents without a tracker: their peers are found through a DHT of this test's own.

use std::net::SocketAddr;
use std::time::Duration;

use crate::interop_libtorrent::libtorrent;
use crate::support::data::{Shape, single};
use crate::support::dir;
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, start_get};

/// How long a node may take to enter the DHT and to announce.
const FOUND: Duration = Duration::from_secs(60);

/// A server that has nothing and answers the questions of others.
fn node(dir: &std::path::Path) -> (Server, String) {
    let server = Home::new(dir, "node").run(&[]);
    let addr = server.peer.to_string();
    (server, addr)
}

#[test]
fn a_torrent_without_trackers_is_fetched_through_the_dht() {
    let dir = dir();
    let content = single(dir.path(), "data", 3 << 20, 90, &Shape::pieces_of(64 << 10));
    let (node, bootstrap) = node(dir.path());
    let bootstrap = ["--dht-bootstrap", &bootstrap];
    let home = Home::new(dir.path(), "seed");
    content.copy_to(&home.downloads);
    let mut seed = home.run(&bootstrap);
    home.add(&content);
    seed.wait_torrents("seeding", 1, START);
    let output = dir.path().join("out");
    let mut get = start_get("get", dir.path(), &content, &output, &[], &bootstrap);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    seed.stop();
    node.stop();
}

#[test]
fn libtorrent_and_seedring_find_each_other_through_the_dht() {
    let dir = dir();
    let (node, bootstrap) = node(dir.path());
    let words = ["--dht-bootstrap", &bootstrap];

    let theirs = single(dir.path(), "theirs", 2 << 20, 91, &Shape::pieces_of(64 << 10));
    let mut command = libtorrent("seed", &theirs, &theirs.root, "127.0.0.1");
    command.arg(format!("dht={bootstrap}"));
    let mut seed = Process::start("libtorrent-seed", dir.path(), &mut command);
    seed.wait_for_line("seeding", START);
    let output = dir.path().join("by-seedring");
    let mut get = start_get("get", dir.path(), &theirs, &output, &[], &words);
    get.wait_ok(FOUND + TRANSFER);
    theirs.assert_same_in(&output);

    let ours = single(dir.path(), "ours", 2 << 20, 92, &Shape::pieces_of(64 << 10));
    let home = Home::new(dir.path(), "seed");
    ours.copy_to(&home.downloads);
    let mut server = home.run(&words);
    home.add(&ours);
    server.wait_torrents("seeding", 1, START);
    let output = dir.path().join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent("leech", &ours, &output, "127.0.0.1");
    command.arg(format!("dht={bootstrap}"));
    let mut leech = Process::start("libtorrent-leech", dir.path(), &mut command);
    leech.wait_ok(FOUND + TRANSFER);
    ours.assert_same_in(&output);
    server.stop();
    node.stop();
}

#[test]
fn a_private_torrent_is_not_named_to_the_dht() {
    let dir = dir();
    let shape = Shape { private: true, ..Shape::pieces_of(64 << 10) };
    let content = single(dir.path(), "data", 1 << 20, 93, &shape);
    let (node, bootstrap) = node(dir.path());
    let home = Home::new(dir.path(), "seed");
    content.copy_to(&home.downloads);
    let mut seed = home.run(&["--dht-bootstrap", &bootstrap]);
    home.add(&content);
    seed.wait_torrents("seeding", 1, START);
    let words = ["--dht-bootstrap", &bootstrap, "--timeout", "6"];
    let mut get = start_get("get", dir.path(), &content, &dir.path().join("out"), &[], &words);
    assert_eq!(get.wait(FOUND), 1, "{}", get.tail());
    assert!(
        get.stderr().contains("the torrent is private: the DHT is not asked"),
        "{}",
        get.tail()
    );
    let _: SocketAddr = bootstrap.parse().unwrap();
    seed.stop();
    node.stop();
}
