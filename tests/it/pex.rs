//! Peer exchange (BEP 11) with real clients: A knows B only, B knows C, and A learns of C. Once with
//! seedring in the place of A, and once in the place of B.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::interop_libtorrent::libtorrent;
use crate::interop_transmission::Transmission;
use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::netns::{self, Host};
use crate::support::process::{Process, line_of};
use crate::support::server::{Home, START, Server, addresses, seedring};
use crate::support::wait;

/// Others exchange peers every minute or every minute and a half.
const LEARNT: Duration = Duration::from_secs(150);

/// Where A, B and C are. Transmission meets nobody on loopback addresses.
const A: &str = "10.78.0.1";
const B: &str = "10.78.0.2";
const C: &str = "10.78.0.3";

fn host() -> Host {
    Host::alone(&[A, B, C].map(|ip| format!("{ip}/24")).each_ref().map(String::as_str))
}

/// More than C gives in the time that all this takes: nobody is done, and nobody leaves.
fn content(dir: &Path, seed: u64) -> Content {
    single(dir, "data", 16 << 20, seed, &Shape::pieces_of(64 << 10))
}

/// `seedring get` at `ip` that knows `peers` and finds no others by itself.
fn get(
    host: &Host,
    dir: &Path,
    name: &str,
    content: &Content,
    ip: &str,
    peers: &[SocketAddr],
) -> Process {
    let is_c = ip == C;
    let output = if is_c { content.root.clone() } else { dir.join(name) };
    std::fs::create_dir_all(&output).unwrap();
    let mut command = seedring(&["get", "--seed", "--no-dht", "--no-lsd"]);
    command.args(["--listen", &format!("{ip}:0")]).arg(&content.torrent).arg("-o").arg(&output);
    // The kernel would let all of them leave from the first address.
    command.env("SEEDRING__NET__BIND", ip);
    for peer in peers {
        command.args(["--peer", &peer.to_string()]);
    }
    if is_c {
        // It is told of nobody, and it is slow.
        command.arg("--no-pex").env("SEEDRING__LIMITS__UP", "40KiB");
    }
    Process::start(name, dir, &mut host.command(&command))
}

/// Where a `get` listens.
fn addr_of(get: &Process) -> SocketAddr {
    let line = wait::until("a ready line", START, || line_of(&get.stderr(), "ready "));
    addresses(&line).unwrap().0
}

/// A server at A that knows B and wants the torrent.
fn server_that_knows(host: &Host, home: &Home, content: &Content, b: SocketAddr) -> Server {
    let words = ["--no-dht", "--no-lsd", "--bind", A];
    let command = home.command(&format!("{A}:0"), &words);
    let mut command = host.command(&command);
    let server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add_link("a.magnet", &format!("{}&x.pe={b}", content.link()));
    server
}

/// Waits until a server has met somebody whom another peer named.
fn wait_learnt(host: &Host, mut server: Server) {
    host.enter(|| {
        let by_pex = ["source=\"pex\""];
        // Transmission may name somebody by a port that he only connected from, too.
        server.wait_metric("seedring_peers_by_source", &by_pex, LEARNT, |it| it >= 1.0);
    });
    server.stop();
}

/// libtorrent that wants the torrent, at `ip`.
fn leech(host: &Host, dir: &Path, content: &Content, ip: &str, peers: &[SocketAddr]) -> Process {
    let output = dir.join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent("leech", content, &output, ip);
    command.args(peers.iter().map(ToString::to_string));
    Process::start("libtorrent-leech", dir, &mut host.command(&command))
}

#[test]
fn libtorrent_tells_of_its_peers() {
    if !netns::is_root("pex::libtorrent_tells_of_its_peers") {
        return;
    }
    let (dir, host) = (dir(), host());
    let content = content(dir.path(), 160);
    let mut b = leech(&host, dir.path(), &content, B, &[]);
    let port: u16 = b.wait_for_line("listening ", START).parse().unwrap();
    let b_addr = SocketAddr::new(B.parse().unwrap(), port);
    let _c = get(&host, dir.path(), "c", &content, C, &[b_addr]);
    let home = Home::new(dir.path(), "home");
    let server = server_that_knows(&host, &home, &content, b_addr);
    wait_learnt(&host, server);
}

#[test]
fn libtorrent_is_told_of_our_peers() {
    if !netns::is_root("pex::libtorrent_is_told_of_our_peers") {
        return;
    }
    let (dir, host) = (dir(), host());
    let content = content(dir.path(), 161);
    let c = get(&host, dir.path(), "c", &content, C, &[]);
    let c_addr = addr_of(&c);
    let b = get(&host, dir.path(), "b", &content, B, &[c_addr]);
    let mut a = leech(&host, dir.path(), &content, A, &[addr_of(&b)]);
    assert_eq!(a.wait_for_line("pex ", LEARNT), c_addr.to_string());
}

#[test]
fn transmission_tells_of_its_peers() {
    if !netns::is_root("pex::transmission_tells_of_its_peers") {
        return;
    }
    let (dir, host) = (dir(), host());
    let content = content(dir.path(), 162);
    let mut b = Transmission::start_on(dir.path(), &host, B);
    b.add(&content, &dir.path().join("by-transmission"));
    let _c = get(&host, dir.path(), "c", &content, C, &[b.peer]);
    let home = Home::new(dir.path(), "home");
    let server = server_that_knows(&host, &home, &content, b.peer);
    wait_learnt(&host, server);
}

#[test]
fn transmission_is_told_of_our_peers() {
    if !netns::is_root("pex::transmission_is_told_of_our_peers") {
        return;
    }
    let (dir, host) = (dir(), host());
    let content = content(dir.path(), 163);
    let mut a = Transmission::start_on(dir.path(), &host, A);
    a.add(&content, &dir.path().join("by-transmission"));
    let c = get(&host, dir.path(), "c", &content, C, &[]);
    let b = get(&host, dir.path(), "b", &content, B, &[a.peer, addr_of(&c)]);
    addr_of(&b);
    wait::until("C among the peers of Transmission", LEARNT, || {
        a.peers(&content).contains(&format!("{C} ")).then_some(())
    });
}
