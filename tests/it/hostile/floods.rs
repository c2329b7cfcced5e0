//! Floods of connections: honest peers get in, are served, and can be told of.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use seedring::sys::process::raise_open_files;

use super::seeding;
use crate::support::data::{Content, Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, fetch_from, start_get};
use crate::support::wire::{Event, RawPeer, block, connect_from, handshake};
use crate::support::{dir, heavy, network, wait};

/// Handshakes that one worker waits for, and those of one network.
const HANDSHAKES_MAX: u32 = 1024;
const NETWORK_HANDSHAKES_MAX: u32 = 64;

/// Connections of a flood that goes on for longer than anything it disturbs.
const FLOOD_MAX: u32 = 20_000;

/// How soon something that takes no time at all has to show.
const SOON: Duration = Duration::from_secs(10);

fn accepts(server: &Server, result: &str) -> f64 {
    server.metric("seedring_accepts_total", &[&format!("result=\"{result}\"")])
}

fn handshakes(server: &Server, result: &str) -> f64 {
    let labels = ["direction=\"in\"", &format!("result=\"{result}\"")];
    server.metric("seedring_handshakes_total", &labels)
}

fn asks_for_a_block(peer: &mut RawPeer, content: &Content, piece: u32) {
    peer.request(block(&content.metainfo, piece, 0));
    peer.expect("a block", |event| matches!(event, Event::Block(..)));
}

#[test]
fn silent_connections_give_way_to_honest_ones() {
    let (_heavy, dir) = (heavy(), dir());
    raise_open_files().unwrap();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "content", 8 << 20, 160, &Shape::pieces_of(64 << 10));
    content.copy_to(&home.downloads);
    let mut server = home.run(&["--cores", "0"]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);

    let addr = server.peer;
    // Each from an address of its own.
    let silent = |number: u32| {
        let source = Ipv4Addr::from_bits((127 << 24) + (1 << 16) + number);
        connect_from(source, addr).unwrap()
    };
    let over = 100;
    let mut held: VecDeque<TcpStream> = (0..HANDSHAKES_MAX + over).map(silent).collect();
    let gave_way = |count: f64| count >= f64::from(over);
    let labels = ["direction=\"in\"", "result=\"evicted\""];
    server.wait_metric("seedring_handshakes_total", &labels, SOON, gave_way);

    // The flood goes on while somebody honest comes, fetches and leaves.
    let output = dir.path().join("out");
    let mut get = start_get("get", dir.path(), &content, &output, &[addr], &[]);
    for number in HANDSHAKES_MAX + over..FLOOD_MAX {
        if get.try_code().is_some() {
            break;
        }
        held.push_back(silent(number));
        held.pop_front();
    }
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    assert_eq!(accepts(&server, "limit"), 0.0, "somebody was turned away");
    let waiting = server.metric("seedring_peers", &["state=\"handshaking\""]);
    assert!(waiting <= f64::from(HANDSHAKES_MAX), "{waiting} handshakes");
    drop(held);
    server.stop();
}

#[test]
fn one_network_takes_neither_all_places_nor_all_time() {
    let name = "hostile::floods::one_network_takes_neither_all_places_nor_all_time";
    if !network::is_inside(name) {
        return;
    }
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "content", 1 << 20, 161, &Shape::pieces_of(64 << 10));
    content.copy_to(&home.downloads);
    let mut server = home.run_at("20.0.9.1:0", &["--cores", "0"]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let addr = server.peer;
    let from = |network: u8, host: u8| connect_from(Ipv4Addr::new(20, 0, network, host), addr);

    // As many as may wait, and some more, which are closed at once.
    let held: Vec<_> =
        (0..NETWORK_HANDSHAKES_MAX + 20).map(|it| from(1, it as u8).unwrap()).collect();
    let over = |count: f64| count == 20.0;
    server.wait_metric("seedring_accepts_total", &["result=\"prefix_limit\""], SOON, over);
    let mut peer = RawPeer::over(from(2, 1).unwrap(), &content.metainfo);
    peer.send(&handshake(&content.metainfo, 1));
    peer.read_handshake();
    peer.become_unchoked();
    asks_for_a_block(&mut peer, &content, 1);

    // Another network comes and goes as fast as it can. What the server finds in one turn it may
    // refuse as too many at once, so that it goes on until its pace is what is refused.
    wait::until("refusals for its pace", SOON, || {
        for host in 0..200 {
            drop(from(3, host));
        }
        let labels = ["result=\"prefix_rate\""];
        (server.metric("seedring_accepts_total", &labels) >= 100.0).then_some(())
    });
    let mut peer = RawPeer::over(from(4, 1).unwrap(), &content.metainfo);
    peer.send(&handshake(&content.metainfo, 2));
    peer.read_handshake();
    peer.become_unchoked();
    asks_for_a_block(&mut peer, &content, 2);
    drop(held);
    server.stop();
}

#[test]
fn without_descriptors_newcomers_are_told_and_others_served() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "content", 1 << 20, 162, &Shape::pieces_of(64 << 10));
    content.copy_to(&home.downloads);
    let whole = home.command("127.0.0.1:0", &["--cores", "0"]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
    command.arg(whole.get_program()).args(whole.get_args());
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add(&content);
    server.wait_torrents("seeding", 1, START);

    let mut good = RawPeer::handshaken(server.peer, &content.metainfo, 1);
    good.become_unchoked();
    asks_for_a_block(&mut good, &content, 1);
    // Silence takes every descriptor that is left; what comes then is closed, not left hanging.
    let held: Vec<_> = (0..60).map(|_| TcpStream::connect(server.peer).unwrap()).collect();
    let log = "cannot accept connections";
    wait::until("the end of descriptors", SOON, || {
        server.process.stderr().contains(log).then_some(())
    });
    let mut late = RawPeer::connect(server.peer, &content.metainfo);
    late.expect_close();
    asks_for_a_block(&mut good, &content, 2);
    drop(held);

    // Descriptors come free: it listens again.
    fetch_from(dir.path(), &content, server.peer);
    assert!(accepts(&server, "no_descriptor") >= 1.0);
    assert!(accepts(&server, "error") >= 1.0);
    asks_for_a_block(&mut good, &content, 3);
    drop(good);
    server.stop();
}

#[test]
fn who_dribbles_is_let_go() {
    let dir = dir();
    let (server, content) = seeding(dir.path(), 1 << 20, 163);
    let opening = handshake(&content.metainfo, 1);
    let mut greeting = RawPeer::connect(server.peer, &content.metainfo);
    let mut talking = RawPeer::handshaken(server.peer, &content.metainfo, 2);
    // The head of an extended message that takes minutes at this pace.
    talking.send(&[0, 0, 0x40, 0, 20, 1]);
    let (mut rounds, mut closed) = (0, [false; 2]);
    let limit = Duration::from_secs(40);
    wait::until("an end to both", limit, || {
        // One byte of the handshake every twenty rounds, all the while: ten seconds are over before
        // it is whole, and a time-out that each byte begins anew would never come.
        let byte = opening.get(rounds / 20).filter(|_| rounds % 20 == 0).copied();
        closed[0] |= byte.is_some_and(|byte| greeting.try_send(&[byte]).is_err());
        rounds += 1;
        closed[0] |= handshakes(&server, "timeout") >= 1.0;
        closed[1] |= talking.try_send(&[0]).is_err();
        (closed == [true; 2]).then_some(())
    });
    assert_eq!(super::disconnects(&server, "timeout"), 1.0);
    assert_eq!(handshakes(&server, "timeout"), 1.0);
    fetch_from(dir.path(), &content, server.peer);
    server.stop();
}
