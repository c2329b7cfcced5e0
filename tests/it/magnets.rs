//! Magnet links: metadata from and to other clients, through a DHT, from a watch folder, over a
//! restart. `hostile` has peers that lie about it.

mod hostile;

use std::net::SocketAddr;
use std::path::Path;

use crate::interop_aria2::{aria2, aria2_of};
use crate::interop_libtorrent::{libtorrent, libtorrent_of, nodes};
use crate::interop_transmission::Transmission;
use crate::support::data::{Content, Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, start_get, start_get_of};
use crate::support::tracker::OpenTracker;
use crate::support::{dir, free_addr};

/// How long it may take to find somebody through the DHT, and then everything else.
const FOUND: std::time::Duration = std::time::Duration::from_secs(120);

/// A torrent whose metadata has several blocks.
fn content(dir: &Path, seed: u64) -> Content {
    single(dir, "data", 30 << 20, seed, &Shape::pieces_of(16 << 10))
}

/// Fetches a torrent by its link from `peer` and wants every byte.
fn fetch(dir: &Path, content: &Content, peer: SocketAddr) {
    assert!(content.metainfo.raw_info().len() > 2 * 16 * 1024);
    let output = dir.join("by-link");
    let mut get = start_get_of("get", dir, content.link(), &output, &[peer], &["--no-dht"]);
    get.wait_ok(TRANSFER);
    assert!(get.stderr().contains("the metadata is here: \"data\", 30.0 MiB"), "{}", get.tail());
    content.assert_same_in(&output);
}

#[test]
fn libtorrent_gives_metadata() {
    let dir = dir();
    let content = content(dir.path(), 100);
    let mut command = libtorrent("seed", &content, &content.root, "127.0.0.1");
    let mut seed = Process::start("libtorrent-seed", dir.path(), &mut command);
    let port = seed.wait_for_line("listening ", START).parse().unwrap();
    seed.wait_for_line("seeding", START);
    fetch(dir.path(), &content, SocketAddr::new("127.0.0.1".parse().unwrap(), port));
}

#[test]
fn libtorrent_takes_metadata() {
    let dir = dir();
    let content = content(dir.path(), 101);
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent_of("leech", content.link(), &output, "127.0.0.1");
    command.arg(server.peer.to_string());
    let mut leech = Process::start("libtorrent-leech", dir.path(), &mut command);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
}

#[test]
fn transmission_gives_metadata() {
    let dir = dir();
    let content = content(dir.path(), 102);
    let mut seed = Transmission::start(dir.path());
    seed.add(&content, &content.root);
    seed.wait_complete(&content, START);
    fetch(dir.path(), &content, seed.peer);
}

#[test]
fn transmission_takes_metadata() {
    let dir = dir();
    let content = content(dir.path(), 103);
    let output = dir.path().join("by-transmission");
    std::fs::create_dir(&output).unwrap();
    let mut leech = Transmission::start(dir.path());
    leech.add_of(&content.link(), &output);
    // It never connects to loopback by itself: our side has to.
    let (root, peers) = (&content.root, [leech.peer]);
    let mut seed = start_get("seed", dir.path(), &content, root, &peers, &["--seed"]);
    leech.wait_complete(&content, TRANSFER);
    content.assert_same_in(&output);
    seed.signal(libc::SIGTERM);
    assert_eq!(seed.wait(START), 143, "{}", seed.tail());
}

#[test]
fn aria2_gives_metadata() {
    let dir = dir();
    let content = content(dir.path(), 104);
    let addr = free_addr("127.0.0.1");
    let port = format!("--listen-port={}", addr.port());
    let words = [&port, "--seed-ratio=0.0", "--bt-seed-unverified=true", "--check-integrity=false"];
    let mut seed = aria2(dir.path(), &content, &content.root, &words);
    seed.wait_for("open port", START, || std::net::TcpStream::connect(addr).ok());
    fetch(dir.path(), &content, addr);
}

#[test]
fn aria2_takes_metadata() {
    let dir = dir();
    let content = content(dir.path(), 105);
    let mut tracker = OpenTracker::start(dir.path(), &[&content]);
    let content = content.with_tracker(dir.path(), &tracker.url());
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    tracker.wait_seeds(&content, 1);
    let output = dir.path().join("by-aria2");
    std::fs::create_dir(&output).unwrap();
    let port = format!("--listen-port={}", free_addr("127.0.0.1").port());
    let mut leech = aria2_of(dir.path(), content.link(), &output, &[&port, "--seed-time=0"]);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
}

/// Ten nodes of libtorrent, and the address of one.
pub(crate) fn dht(dir: &Path) -> (Process, String) {
    let mut nodes = Process::start("nodes", dir, &mut nodes(10, "127.0.0.1"));
    let port = nodes.wait_for_line("node ", START);
    (nodes, format!("127.0.0.1:{port}"))
}

/// A seed of libtorrent that nobody knows of but the DHT.
pub(crate) fn hidden_seed(dir: &Path, content: &Content, node: &str) -> Process {
    let mut command = libtorrent("seed", content, &content.root, "127.0.0.1");
    command.arg(format!("dht={node}"));
    let mut seed = Process::start("libtorrent-seed", dir, &mut command);
    seed.wait_for_line("seeding", START);
    seed
}

#[test]
fn a_link_alone_finds_a_seed_through_the_dht() {
    let dir = dir();
    let content = content(dir.path(), 106);
    let (_nodes, node) = dht(dir.path());
    let _seed = hidden_seed(dir.path(), &content, &node);
    let output = dir.path().join("out");
    let words = ["--dht-bootstrap", &node, "--timeout", "100"];
    let mut get = start_get_of("get", dir.path(), content.link(), &output, &[], &words);
    get.wait_ok(FOUND);
    content.assert_same_in(&output);
}

#[test]
fn a_link_in_a_watch_folder_finds_a_seed_through_the_dht() {
    let dir = dir();
    let content = content(dir.path(), 107);
    let (_nodes, node) = dht(dir.path());
    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&["--dht-bootstrap", &node]);
    home.add_link("a.magnet", &content.link());
    home.wait_watched("a.magnet.added");
    server.wait_torrents("metadata", 1, START);
    let _seed = hidden_seed(dir.path(), &content, &node);
    server.wait_torrents("seeding", 1, FOUND);
    content.assert_same_in(&home.downloads);
    server.stop();
}

#[test]
fn libtorrent_finds_a_seed_of_ours_through_the_dht() {
    let dir = dir();
    let content = content(dir.path(), 108);
    let (_nodes, node) = dht(dir.path());
    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let mut server = home.run(&["--dht-bootstrap", &node]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let output = dir.path().join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent_of("leech", content.link(), &output, "127.0.0.1");
    command.arg(format!("dht={node}"));
    let mut leech = Process::start("libtorrent-leech", dir.path(), &mut command);
    leech.wait_ok(FOUND);
    content.assert_same_in(&output);
    server.stop();
}

#[test]
fn links_outlast_a_restart_until_their_torrents_are_known() {
    let dir = dir();
    let content = content(dir.path(), 109);
    let seed_addr = free_addr("127.0.0.1");
    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&["--no-dht"]);
    // Once by its name, which is looked up, and once by its address.
    let port = seed_addr.port();
    home.add_link("a.magnet", &format!("{}&x.pe=localhost:{port}", content.link()));
    home.wait_watched("a.magnet.added");
    server.wait_torrents("metadata", 1, START);
    home.add_link("again.magnet", &content.link());
    home.wait_watched("again.magnet.added");
    assert_eq!(server.metric("seedring_watch_files_total", &["result=\"duplicate\""]), 1.0);
    home.add_link("bad.magnet", "magnet:?xt=urn:btih:0");
    home.wait_watched("bad.magnet.rejected.txt");
    server.stop();

    let seed = Server::seed(dir.path(), &content, &seed_addr.to_string(), &[]);
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, TRANSFER);
    assert_eq!(server.metric("seedring_torrents", &["state=\"metadata\""]), 0.0);
    content.assert_same_in(&home.downloads);
    seed.stop();
    server.stop();
    // From now on it is a torrent as any other.
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, START);
    server.stop();
}

#[test]
fn a_torrent_file_ends_the_search_for_its_metadata() {
    let dir = dir();
    let content = content(dir.path(), 110);
    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let mut server = home.run(&["--no-dht"]);
    home.add_link("a.magnet", &content.link());
    server.wait_torrents("metadata", 1, START);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    assert_eq!(server.metric("seedring_torrents", &["state=\"metadata\""]), 0.0);
    // It serves, from the worker that looked for the metadata.
    fetch(dir.path(), &content, server.peer);
    server.stop();
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, START);
    server.stop();
}
