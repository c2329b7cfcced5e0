//! Requests that are not served: each is counted by what became of it, and none costs more.

use seedring::units::{BLOCK_LEN, Block, PieceIndex};
use seedring::wire::{Message, encode};

use super::{requests, seeding};
use crate::support::data::{Shape, single};
use crate::support::dir;
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, fetch_from};
use crate::support::wire::{Event, RawPeer, block};

/// Requests that a peer may have waiting.
const QUEUE_MAX: u32 = 2048;

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
