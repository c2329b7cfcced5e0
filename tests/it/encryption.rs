//! Encrypted connections (MSE): with clients that require them, each way, and among our own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::interop_aria2::aria2;
use crate::interop_libtorrent::libtorrent;
use crate::interop_qbittorrent::QBittorrent;
use crate::interop_transmission::{REQUIRED, Transmission};
use crate::support::data::{Content, Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, fetch_from, seedring, start_get};
use crate::support::tracker::OpenTracker;
use crate::support::{dir, free_addr};

/// What makes libtorrent take and make encrypted streams only.
const FORCED: [&str; 3] =
    ["set:in_enc_policy=0", "set:out_enc_policy=0", "set:allowed_enc_level=2"];
/// What makes it take and make none.
const NONE: [&str; 2] = ["set:in_enc_policy=2", "set:out_enc_policy=2"];

fn content(dir: &Path, seed: u64) -> Content {
    single(dir, "data", 3 << 20, seed, &Shape::pieces_of(64 << 10))
}

/// A server that seeds `content`, under a policy.
fn server(dir: &Path, content: &Content, encryption: &str) -> Server {
    let home = Home::new(dir, "seed");
    content.copy_to(&home.downloads);
    let mut command = home.command("127.0.0.1:0", &[]);
    command.env("SEEDRING__NET__ENCRYPTION", encryption);
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add(content);
    server.wait_torrents("seeding", 1, START);
    server
}

/// How many peers came in, by encryption.
fn came_in(server: &Server, encryption: &str) -> f64 {
    let label = format!("encryption=\"{encryption}\"");
    server.metric("seedring_peer_connections_total", &["direction=\"in\"", &label])
}

/// Every connection that became a peer was encrypted.
fn assert_encrypted(server: &Server) {
    assert_eq!(came_in(server, "none"), 0.0);
    assert!(came_in(server, "rc4") >= 1.0);
}

/// A command of `seedring get` under a policy.
fn get(dir: &Path, content: &Content, peer: SocketAddr, encryption: &str) -> Command {
    let output = dir.join("fetched");
    std::fs::create_dir_all(&output).unwrap();
    let mut command = seedring(&["get", "--listen", "127.0.0.1:0", "--timeout", "10", "--peer"]);
    command.arg(peer.to_string()).arg("-o").arg(output).arg(&content.torrent);
    command.env("SEEDRING__NET__ENCRYPTION", encryption);
    command
}

/// A seed by libtorrent, and where it is.
fn libtorrent_seed(dir: &Path, content: &Content, words: &[&str]) -> (Process, SocketAddr) {
    let mut command = libtorrent("seed", content, &content.root, "127.0.0.1");
    let mut seed = Process::start("libtorrent-seed", dir, command.args(words));
    let port = seed.wait_for_line("listening ", START).parse().unwrap();
    seed.wait_for_line("seeding", START);
    (seed, SocketAddr::new([127, 0, 0, 1].into(), port))
}

/// Lets libtorrent fetch from a server.
fn libtorrent_fetches(dir: &Path, content: &Content, server: &Server, words: &[&str]) {
    let output = dir.join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent("leech", content, &output, "127.0.0.1");
    command.arg(server.peer.to_string()).args(words);
    Process::start("libtorrent-leech", dir, &mut command).wait_ok(TRANSFER);
    content.assert_same_in(&output);
}

#[test]
fn libtorrent_that_requires_encryption_is_reached_and_served() {
    let dir = dir();
    let content = content(dir.path(), 120);
    let (_seed, addr) = libtorrent_seed(dir.path(), &content, &FORCED);
    fetch_from(dir.path(), &content, addr);
    let server = server(dir.path(), &content, "allow");
    libtorrent_fetches(dir.path(), &content, &server, &FORCED);
    assert_encrypted(&server);
    server.stop();
}

#[test]
fn transmission_that_requires_encryption_is_reached() {
    let dir = dir();
    let content = content(dir.path(), 121);
    let mut seed = Transmission::start_with(dir.path(), REQUIRED);
    seed.add(&content, &content.root);
    seed.wait_complete(&content, START);
    fetch_from(dir.path(), &content, seed.peer);
}

#[test]
fn transmission_that_requires_encryption_fetches() {
    let dir = dir();
    let content = content(dir.path(), 122);
    let output = dir.path().join("by-transmission");
    std::fs::create_dir(&output).unwrap();
    let mut leech = Transmission::start_with(dir.path(), REQUIRED);
    leech.add(&content, &output);
    // It never connects to loopback by itself: our side has to.
    let peers = [leech.peer];
    let _seed = start_get("seed", dir.path(), &content, &content.root, &peers, &["--seed"]);
    leech.wait_complete(&content, TRANSFER);
    content.assert_same_in(&output);
}

#[test]
fn aria2_that_requires_encryption_is_reached_and_served() {
    let dir = dir();
    let content = content(dir.path(), 123);
    let addr = free_addr("127.0.0.1");
    let port = format!("--listen-port={}", addr.port());
    let force = "--bt-force-encryption=true";
    let words = [force, &port, "--seed-ratio=0.0", "--bt-seed-unverified=true"];
    let mut seed = aria2(dir.path(), &content, &content.root, &words);
    seed.wait_for("open port", START, || std::net::TcpStream::connect(addr).ok());
    fetch_from(dir.path(), &content, addr);

    let mut tracker = OpenTracker::start(dir.path(), &[&content]);
    let content = content.with_tracker(dir.path(), &tracker.url());
    let server = server(dir.path(), &content, "allow");
    tracker.wait_seeds(&content, 1);
    let output = dir.path().join("by-aria2");
    std::fs::create_dir(&output).unwrap();
    let port = format!("--listen-port={}", free_addr("127.0.0.1").port());
    let mut leech = aria2(dir.path(), &content, &output, &[force, &port, "--seed-time=0"]);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    assert_encrypted(&server);
    server.stop();
}

#[test]
fn qbittorrent_that_requires_encryption_is_reached_and_served() {
    let dir = dir();
    let content = content(dir.path(), 124);
    let mut seed = QBittorrent::start_with(dir.path(), 1);
    seed.add(&content, &content.root);
    seed.wait_complete(&content, START);
    fetch_from(dir.path(), &content, seed.peer);
    drop(seed);

    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let server = server(dir.path(), &content, "allow");
    let output = dir.path().join("by-qbittorrent");
    std::fs::create_dir(&output).unwrap();
    let mut leech = QBittorrent::start_with(&other, 1);
    leech.add(&content, &output);
    leech.add_peer(&content, server.peer);
    leech.wait_complete(&content, TRANSFER);
    content.assert_same_in(&output);
    assert_encrypted(&server);
    server.stop();
}

#[test]
fn ours_that_require_encryption_find_each_other_and_nobody_else() {
    let dir = dir();
    let content = content(dir.path(), 125);
    let server = server(dir.path(), &content, "require");
    // Plain first, then the other way.
    for policy in ["require", "prefer", "allow"] {
        let name = format!("get-{policy}");
        let mut command = get(dir.path(), &content, server.peer, policy);
        Process::start(&name, dir.path(), &mut command).wait_ok(TRANSFER);
        content.assert_same_in(&dir.path().join("fetched"));
        std::fs::remove_dir_all(dir.path().join("fetched")).unwrap();
    }
    assert_encrypted(&server);
    assert_eq!(came_in(&server, "rc4"), 3.0);
    let refused = ["direction=\"in\"", "result=\"plain\""];
    assert_eq!(server.metric("seedring_handshakes_total", &refused), 1.0);
    let mut command = get(dir.path(), &content, server.peer, "off");
    let mut plain = Process::start("get-off", dir.path(), &mut command);
    assert_eq!(plain.wait(Duration::from_secs(60)), 1, "{}", plain.tail());
    assert_encrypted(&server);
    server.stop();
}

#[test]
fn policies_meet_libtorrent_where_they_can() {
    let dir = dir();
    let content = content(dir.path(), 126);
    // It takes both; the first attempt decides.
    let (seed, addr) = libtorrent_seed(dir.path(), &content, &[]);
    for (name, policy) in [("get-1", "require"), ("get-2", "off"), ("get-3", "prefer")] {
        let mut command = get(dir.path(), &content, addr, policy);
        Process::start(name, dir.path(), &mut command).wait_ok(TRANSFER);
        content.assert_same_in(&dir.path().join("fetched"));
        std::fs::remove_dir_all(dir.path().join("fetched")).unwrap();
    }
    drop(seed);
    // It speaks plainly only: who prefers encryption goes the other way, who requires it does not.
    let (_seed, addr) = libtorrent_seed(dir.path(), &content, &NONE);
    let mut command = get(dir.path(), &content, addr, "prefer");
    Process::start("get-4", dir.path(), &mut command).wait_ok(TRANSFER);
    content.assert_same_in(&dir.path().join("fetched"));
    std::fs::remove_dir_all(dir.path().join("fetched")).unwrap();
    let mut command = get(dir.path(), &content, addr, "require");
    let mut required = Process::start("get-5", dir.path(), &mut command);
    assert_eq!(required.wait(Duration::from_secs(60)), 1, "{}", required.tail());
}
