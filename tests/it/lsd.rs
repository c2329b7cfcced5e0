//! Local discovery (BEP 14): seedring and libtorrent on two hosts, which know nothing of each
//! other but that they share a wire.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::interop_libtorrent::{libtorrent, libtorrent_of};
use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::netns::{self, Host, ip_of};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, seedring};

/// Addresses of the two hosts.
const V4: [&str; 2] = ["10.77.0.1/24", "10.77.0.2/24"];
const V6: [&str; 2] = ["fd77::1/64", "fd77::2/64"];

fn content(dir: &Path, seed: u64) -> Content {
    single(dir, "data", 2 << 20, seed, &Shape::pieces_of(64 << 10))
}

/// A server on `host` without any other way to find peers.
fn serve(host: &Host, home: &Home, addr: &str, words: &[&str]) -> Server {
    let listen = std::net::SocketAddr::new(ip_of(addr), 0).to_string();
    let words = [&["--no-dht", "--no-pex"], words].concat();
    let mut command = host.command(&home.command(&listen, &words));
    Server::wait_ready(Process::start("run", &home.dir, &mut command))
}

/// libtorrent on `host`, with local discovery only.
fn libtorrent_on(host: &Host, dir: &Path, name: &str, command: &mut Command) -> Process {
    command.arg("set:enable_lsd=1");
    Process::start(name, dir, &mut host.command(command))
}

/// seedring is there first, and hears libtorrent announce.
fn hears_a_seed(addrs: [&str; 2], seed: u64) {
    let dir = dir();
    let content = content(dir.path(), seed);
    let [ours, theirs] = Host::pair(&addrs[..1], &addrs[1..]);
    let home = Home::new(dir.path(), "home");
    let mut server = serve(&ours, &home, addrs[0], &[]);
    home.add(&content);
    let sent = ["result=\"sent\""];
    ours.enter(|| {
        server.wait_metric("seedring_local_datagrams_total", &sent, START, |it| it > 0.0)
    });
    let host = ip_of(addrs[1]).to_string();
    let mut command = libtorrent("seed", &content, &content.root, &host);
    let _seed = libtorrent_on(&theirs, dir.path(), "libtorrent-seed", &mut command);
    ours.enter(|| server.wait_torrents("seeding", 1, TRANSFER));
    content.assert_same_in(&home.downloads);
    ours.enter(|| {
        let heard = ["result=\"received\""];
        assert!(server.metric("seedring_local_datagrams_total", &heard) > 0.0);
    });
    server.stop();
}

/// libtorrent is there first, and hears seedring announce.
fn is_heard_by_a_leecher(addrs: [&str; 2], seed: u64) {
    let dir = dir();
    let content = content(dir.path(), seed);
    let [ours, theirs] = Host::pair(&addrs[..1], &addrs[1..]);
    let output = dir.path().join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let host = ip_of(addrs[1]).to_string();
    let mut command = libtorrent("leech", &content, &output, &host);
    let mut leech = libtorrent_on(&theirs, dir.path(), "libtorrent-leech", &mut command);
    leech.wait_for_line("listening ", START);
    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let server = serve(&ours, &home, addrs[0], &[]);
    home.add(&content);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    // It announces more than once, so that we may have heard it as well.
    let told = "received peer from local service discovery";
    assert!(leech.stderr().contains(told), "{}", leech.tail());
    server.stop();
}

#[test]
fn a_seed_of_libtorrent_is_found() {
    if !netns::is_root("lsd::a_seed_of_libtorrent_is_found") {
        return;
    }
    hears_a_seed(V4, 120);
}

#[test]
fn a_seed_of_libtorrent_is_found_over_ipv6() {
    if !netns::is_root("lsd::a_seed_of_libtorrent_is_found_over_ipv6") {
        return;
    }
    hears_a_seed(V6, 121);
}

#[test]
fn libtorrent_finds_a_seed_of_ours() {
    if !netns::is_root("lsd::libtorrent_finds_a_seed_of_ours") {
        return;
    }
    is_heard_by_a_leecher(V4, 122);
}

#[test]
fn libtorrent_finds_a_seed_of_ours_over_ipv6() {
    if !netns::is_root("lsd::libtorrent_finds_a_seed_of_ours_over_ipv6") {
        return;
    }
    is_heard_by_a_leecher(V6, 123);
}

#[test]
fn a_link_alone_finds_a_neighbour_of_a_server_with_public_addresses() {
    if !netns::is_root("lsd::a_link_alone_finds_a_neighbour_of_a_server_with_public_addresses") {
        return;
    }
    let dir = dir();
    let content = content(dir.path(), 124);
    let [ours, theirs] = Host::pair(&V4[..1], &V4[1..]);
    let mut command =
        libtorrent_of("seed", content.torrent.as_os_str(), &content.root, "10.77.0.2");
    let mut seed = libtorrent_on(&theirs, dir.path(), "libtorrent-seed", &mut command);
    seed.wait_for_line("seeding", START);
    // Listening everywhere it takes nobody from private networks, but for neighbours.
    let output = dir.path().join("out");
    let mut command = seedring(&["get", "--no-dht", "--no-pex", "--timeout", "60"]);
    command.arg(content.link()).arg("-o").arg(&output);
    let mut get = Process::start("get", dir.path(), &mut ours.command(&command));
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
}

#[test]
fn nobody_is_told_when_it_is_switched_off() {
    if !netns::is_root("lsd::nobody_is_told_when_it_is_switched_off") {
        return;
    }
    let dir = dir();
    let content = content(dir.path(), 125);
    let [ours, theirs] = Host::pair(&V4[..1], &V4[1..]);
    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let mut server = serve(&ours, &home, V4[0], &["--no-lsd"]);
    home.add(&content);
    ours.enter(|| server.wait_torrents("seeding", 1, START));
    let output = dir.path().join("out");
    let mut command = seedring(&["get", "--listen", "10.77.0.2:0", "--no-dht", "--timeout", "3"]);
    command.arg(&content.torrent).arg("-o").arg(&output);
    let mut get = Process::start("get", dir.path(), &mut theirs.command(&command));
    assert_eq!(get.wait(Duration::from_secs(60)), 1, "{}", get.tail());
    ours.enter(|| {
        for result in ["result=\"sent\"", "result=\"received\""] {
            assert_eq!(server.metric("seedring_local_datagrams_total", &[result]), 0.0);
        }
    });
    server.stop();
}
