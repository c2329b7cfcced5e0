//! Requests that are not served: each is counted by what became of it, and none costs more.

use std::net::Ipv4Addr;
use std::time::Duration;

use seedring::units::{BLOCK_LEN, Block, PieceIndex};
use seedring::wire::{Message, encode};

use super::{disconnects, requests, seeding};
use crate::support::data::{Content, Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, fetch_from};
use crate::support::wire::{Event, RawPeer, block, connect_from, handshake};
use crate::support::{dir, network, wait};

/// Requests that a peer may have waiting.
const QUEUE_MAX: u32 = 2048;

/// How long a peer may take nothing of what it is sent.
const STALL: Duration = Duration::from_secs(120);

#[test]
fn what_became_of_a_request_is_counted() {
    let dir = dir();
    let (mut server, content) = seeding(dir.path(), 16 << 20, 170);
    let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, 1);
    // Too early: nobody unchoked it.
    peer.request(block(&content.metainfo, 1, 0));
    peer.expect("a reject", |event| matches!(event, Event::Reject(_)));
    peer.become_unchoked();
    // Far more than the queue and the socket hold, all different, and nothing is read.
    let (mut bytes, count) = (Vec::new(), 3 * QUEUE_MAX);
    let numbered = |number: u32| Block {
        piece: PieceIndex(number % 256),
        begin: 0,
        len: BLOCK_LEN - number / 256,
    };
    for number in 0..count {
        encode(&Message::Request(numbered(number)), &mut bytes);
    }
    peer.send(&bytes);
    let limit = START;
    let some = |count: f64| count >= 1.0;
    server.wait_metric("seedring_requests_total", &["result=\"rejected\""], limit, some);
    // Some of them wait still, and are taken back.
    let mut bytes = Vec::new();
    for number in 0..count {
        encode(&Message::Cancel(numbered(number)), &mut bytes);
    }
    // It may be closed on before the last one, for so many cancels of nothing.
    let _ = peer.try_send(&bytes);
    server.wait_metric("seedring_requests_total", &["result=\"cancelled\""], limit, some);
    assert_eq!(requests(&server, "choked"), 1.0);
    assert_eq!(requests(&server, "invalid"), 0.0);
    drop(peer);
    fetch_from(dir.path(), &content, server.peer);
    server.stop();
}

#[test]
fn allowed_fast_pieces_are_served_three_times_and_no_more() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "content", 4 << 20, 171, &Shape::pieces_of(BLOCK_LEN));
    content.copy_to(&home.downloads);
    let mut command = home.command("127.0.0.1:0", &[]);
    command.env("SEEDRING__LIMITS__SLOTS_PER_TORRENT", "1");
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let mut first = RawPeer::handshaken(server.peer, &content.metainfo, 1);
    first.become_unchoked();

    let mut second = RawPeer::handshaken(server.peer, &content.metainfo, 2);
    let Event::AllowedFast(piece) =
        second.expect("a piece", |event| matches!(event, Event::AllowedFast(_)))
    else {
        unreachable!()
    };
    let wanted = block(&content.metainfo, piece.0, 0);
    let mut served = 0;
    for _ in 0..100 {
        second.request(wanted);
        let answer =
            second.expect("an answer", |it| matches!(it, Event::Block(..) | Event::Reject(_)));
        if matches!(answer, Event::Reject(_)) {
            break;
        }
        served += 1;
    }
    // Ten pieces of one block each.
    assert_eq!(served, 3 * 10);
    let one = |count: f64| count == 1.0;
    server.wait_metric("seedring_requests_total", &["result=\"choked\""], START, one);
    // Who has the slot never noticed, and the choker goes round.
    first.request(block(&content.metainfo, 1, 0));
    first.expect("a block", |event| matches!(event, Event::Block(..)));
    server.wait_metric("seedring_choker_rounds_total", &[], START, |count| count >= 1.0);
    server.stop();
}

#[test]
fn who_takes_nothing_of_what_it_asked_for_is_let_go() {
    let dir = dir();
    let (mut server, content) = seeding(dir.path(), 32 << 20, 172);
    let before = server.process.anonymous_bytes();
    let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, 1);
    peer.become_unchoked();
    // More than both sides' sockets hold, and all of it may wait.
    let mut bytes = Vec::new();
    for number in 0..QUEUE_MAX - 100 {
        encode(&Message::Request(block(&content.metainfo, number / 4, number % 4)), &mut bytes);
    }
    peer.send(&bytes);
    let begun = seedring::sys::clock::now();
    let served = |count: f64| count >= 1.0;
    server.wait_metric("seedring_sent_payload_bytes_total", &[], START, served);
    // Somebody else is served meanwhile, and what waits for the one costs no memory.
    fetch_from(dir.path(), &content, server.peer);
    let after = server.process.anonymous_bytes();
    assert!(after < before + super::GROWTH_MAX, "{before} bytes grew to {after}");
    assert_eq!(disconnects(&server, "slow"), 0.0);
    let one = |count: f64| count == 1.0;
    server.wait_metric("seedring_disconnects_total", &["reason=\"slow\""], STALL * 5 / 4, one);
    assert!(begun.elapsed() > STALL * 3 / 4, "a pause is not a stall");
    server.wait_metric("seedring_connections", &[], START, |count| count == 0.0);
    server.stop();
}

#[test]
fn coming_back_moves_nobody_forward_in_the_line() {
    let name = "hostile::requests::coming_back_moves_nobody_forward_in_the_line";
    if !network::is_inside(name) {
        return;
    }
    let dir = dir();
    let content = single(dir.path(), "content", 4 << 20, 173, &Shape::pieces_of(64 << 10));
    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let mut command = home.command("20.0.9.1:0", &[]);
    command.env("SEEDRING__LIMITS__SLOTS_PER_TORRENT", "1");
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let addr = server.peer;
    // Each from an address of its own, and always a new peer id: who comes back hides it.
    let mut ids = 1..;
    let mut enter = |host: u8| {
        let stream = connect_from(Ipv4Addr::new(20, 0, 3, host), addr).unwrap();
        let mut peer = RawPeer::over(stream, &content.metainfo);
        peer.send(&handshake(&content.metainfo, ids.next().unwrap()));
        peer.read_handshake();
        peer.say(&Message::Interested);
        peer
    };
    let mut greedy = enter(1);
    greedy.expect("unchoke", |event| *event == Event::Unchoke);
    greedy.request(block(&content.metainfo, 1, 0));
    greedy.expect("a block", |event| matches!(event, Event::Block(..)));
    let mut waiting = enter(2);
    is_choked(&mut waiting, &content);
    for host in 3..8 {
        // It comes back at once; whoever waited has the slot all the same.
        drop(greedy);
        greedy = enter(1);
        waiting.expect("unchoke", |event| *event == Event::Unchoke);
        is_choked(&mut greedy, &content);
        // Back once more, behind the next one: it gave its own place up.
        let mut next = enter(host);
        is_choked(&mut next, &content);
        drop(greedy);
        greedy = enter(1);
        is_choked(&mut greedy, &content);
        drop(waiting);
        waiting = next;
        waiting.expect("unchoke", |event| *event == Event::Unchoke);
        drop(waiting);
        greedy.expect("unchoke", |event| *event == Event::Unchoke);
        waiting = enter(host);
        is_choked(&mut waiting, &content);
    }
    server.stop();
}

/// The server has heard all that this peer said, and has not unchoked it.
fn is_choked(peer: &mut RawPeer, content: &Content) {
    peer.request(block(&content.metainfo, 0, 0));
    // A piece of its fast set is served all the same.
    peer.expect("an answer", |event| {
        assert_ne!(*event, Event::Unchoke, "it has the slot");
        matches!(event, Event::Block(..) | Event::Reject(_))
    });
    // Two that wait are told apart by the time they came, in milliseconds.
    wait::pause();
}
