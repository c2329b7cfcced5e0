//! Hostile peers: each costs its own connection and bounded memory; others never notice.

mod floods;
mod requests;
mod sources;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use seedring::metainfo::Metainfo;
use seedring::units::{Block, PieceIndex};
use seedring::wire::{Message, encode};

use crate::support::data::{Content, Shape, single};
use crate::support::server::{Home, START, Server, TRANSFER, start_get};
use crate::support::wire::{Event, RawPeer, block, handshake};
use crate::support::{dir, heavy, wait};

/// How much a server may grow under attack.
const GROWTH_MAX: u64 = 12 << 20;

fn seeding(dir: &Path, len: u64, seed: u64) -> (Server, Content) {
    let home = Home::new(dir, "home");
    let content = single(dir, "content", len, seed, &Shape::pieces_of(64 << 10));
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    (server, content)
}

fn disconnects(server: &Server, reason: &str) -> f64 {
    server.metric("seedring_disconnects_total", &[&format!("reason=\"{reason}\"")])
}

fn requests(server: &Server, result: &str) -> f64 {
    server.metric("seedring_requests_total", &[&format!("result=\"{result}\"")])
}

/// Whoever sends this is closed on, and soon.
fn is_closed_on(server: &Server, metainfo: &Metainfo, id: u32, what: &str, bytes: &[u8]) {
    let mut peer = RawPeer::handshaken(server.peer, metainfo, id);
    // The server may close before all of it is written.
    let _ = peer.try_send(bytes);
    let end = seedring::sys::clock::now() + Duration::from_secs(10);
    loop {
        match peer.next() {
            Event::Closed => return,
            _ => assert!(seedring::sys::clock::now() < end, "not closed on {what}"),
        }
    }
}

fn message(id: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len() + 1).unwrap().to_be_bytes().to_vec();
    bytes.push(id);
    bytes.extend_from_slice(body);
    bytes
}

fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

/// Streams that a peer is closed on for, each with a name.
fn violations(metainfo: &Metainfo) -> Vec<(&'static str, Vec<u8>)> {
    let pieces = metainfo.geometry.piece_count();
    let bits = pieces.div_ceil(8) as usize;
    let full = vec![0xff; bits];
    let mut spare = vec![0; bits];
    *spare.last_mut().unwrap() = 1;
    assert_ne!(pieces % 8, 0, "the last byte has spare bits");
    vec![
        ("a length of 2^32-1", [&[0xff; 4][..], &[6]].concat()),
        ("a length of 1 GiB, cold", [&[0x40, 0, 0, 0][..], &[5]].concat()),
        ("a block of 1 MiB", [&[0, 0x10, 0, 9][..], &[7], &[0; 64]].concat()),
        ("an extended message of 64 MiB", [&[4, 0, 0, 0][..], &[20, 0]].concat()),
        ("an unknown message", message(99, &[])),
        ("a request that is too short", message(6, &[0; 5])),
        ("a have that is too long", message(4, &[0; 8])),
        ("a choke with a body", message(0, &[1])),
        ("a bitfield that is too short", message(5, &full[1..])),
        ("a bitfield that is too long", message(5, &vec![0; bits + 1])),
        ("a bitfield with spare bits", message(5, &spare)),
        ("a have of a piece that is not there", message(4, &numbers(&[pieces]))),
        ("a have of the last number", message(4, &numbers(&[u32::MAX]))),
        ("an extension handshake that is no dictionary", message(20, b"\0i1e")),
        ("nesting in an extension handshake", message(20, &[&[0][..], &[b'l'; 10_000]].concat())),
    ]
}

#[test]
fn every_violation_costs_its_own_connection() {
    let dir = dir();
    let (mut server, content) = seeding(dir.path(), (1 << 20) + 3 * (64 << 10), 150);
    let mut good = RawPeer::handshaken(server.peer, &content.metainfo, 1);
    good.become_unchoked();
    let before = server.process.anonymous_bytes();
    let violations = violations(&content.metainfo);
    for (index, (what, bytes)) in violations.iter().enumerate() {
        is_closed_on(&server, &content.metainfo, 1000 + index as u32, what, bytes);
        good.request(block(&content.metainfo, index as u32 % 8, 0));
        good.expect("a block", |event| matches!(event, Event::Block(..)));
    }
    let protocol = disconnects(&server, "protocol");
    assert_eq!(protocol, violations.len() as f64);
    let after = server.process.anonymous_bytes();
    assert!(after < before + GROWTH_MAX, "{before} bytes grew to {after}");
    assert!(server.process.try_code().is_none());
    server.stop();
}

#[test]
fn bad_requests_are_refused_without_a_byte() {
    let dir = dir();
    let (mut server, content) = seeding(dir.path(), 1 << 20, 151);
    let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, 2);
    peer.become_unchoked();
    let bad = |piece, begin, len| Block { piece: PieceIndex(piece), begin, len };
    for block in [
        bad(16, 0, 16384),
        bad(u32::MAX, 0, 16384),
        bad(0, 64 << 10, 16384),
        bad(0, u32::MAX, 16384),
        bad(0, u32::MAX - 100, u32::MAX),
        bad(0, 0, 0),
        bad(0, (64 << 10) - 1, 2),
    ] {
        let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, 3 + block.begin % 97);
        peer.become_unchoked();
        peer.request(block);
        let answer = peer.expect("an answer", |event| {
            matches!(event, Event::Reject(_) | Event::Closed | Event::Block(..))
        });
        assert!(!matches!(answer, Event::Block(..)), "{block:?} was served");
    }
    peer.request(block(&content.metainfo, 3, 3));
    peer.expect("a block", |event| matches!(event, Event::Block(..)));
    let all = |count: f64| count == 7.0;
    server.wait_metric("seedring_requests_total", &["result=\"invalid\""], START, all);
    server.stop();
}

#[test]
fn garbage_and_silence_on_the_port_do_not_disturb_a_transfer() {
    let (_heavy, dir) = (heavy(), dir());
    let (mut server, content) = seeding(dir.path(), 24 << 20, 152);
    let before = server.process.anonymous_bytes();
    let output = dir.path().join("out");
    let mut get = start_get("get", dir.path(), &content, &output, &[server.peer], &[]);

    let mut rng = fastrand::Rng::with_seed(153);
    let mut held = Vec::new();
    let tries =
        std::iter::repeat_with(|| attack(&mut rng, server.peer, &content.metainfo)).take(600);
    held.extend(tries.flatten());
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    let after = server.process.anonymous_bytes();
    eprintln!("anonymous bytes: {before} before, {after} after");
    assert!(after < before + GROWTH_MAX, "{before} bytes grew to {after}");
    // Those that never finished their handshake are let go after ten seconds, by themselves.
    assert!(held.len() > 100);
    let all = |count: f64| count >= held.len() as f64;
    let timeouts = ["direction=\"in\"", "result=\"timeout\""];
    server.wait_metric("seedring_handshakes_total", &timeouts, Duration::from_secs(30), all);
    let gone = |count: f64| count == 0.0;
    server.wait_metric("seedring_connections", &[], Duration::from_secs(10), gone);
    drop(held);
    server.stop();
}

/// One hostile connection; returned if it has to stay open to hurt.
fn attack(rng: &mut fastrand::Rng, addr: SocketAddr, metainfo: &Metainfo) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(addr).ok()?;
    match rng.u8(0..7) {
        0 => {
            let garbage: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(5000).collect();
            let _ = stream.write_all(&garbage);
            None
        }
        1 => {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            None
        }
        // Silence, and half a handshake.
        2 => Some(stream),
        3 => {
            let _ = stream.write_all(&handshake(metainfo, rng.u32(..))[..rng.usize(1..68)]);
            Some(stream)
        }
        4 => {
            let mut bytes = handshake(metainfo, rng.u32(..));
            bytes[30] ^= 1;
            let _ = stream.write_all(&bytes);
            None
        }
        5 => {
            let mut bytes = handshake(metainfo, rng.u32(..));
            bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(3000));
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            None
        }
        _ => {
            let _ = stream.write_all(&handshake(metainfo, rng.u32(..)));
            None
        }
    }
}

#[test]
fn a_flood_of_requests_is_bounded_and_a_reader_that_stalls_costs_little() {
    let (_heavy, dir) = (heavy(), dir());
    let (mut server, content) = seeding(dir.path(), 24 << 20, 154);
    let before = server.process.anonymous_bytes();
    let metainfo = &content.metainfo;

    // A million requests from somebody who never reads.
    let mut flood = RawPeer::handshaken(server.peer, metainfo, 7);
    flood.become_unchoked();
    let mut batch = Vec::new();
    for index in 0..1000 {
        encode(&Message::Request(block(metainfo, index % 300, 0)), &mut batch);
    }
    let mut stream = flood.stream().try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let flooder = std::thread::spawn(move || {
        let mut sent = 0;
        // It ends when the server closes, or takes no more.
        while sent < 1000 && stream.write_all(&batch).is_ok() {
            sent += 1;
        }
        sent * 1000
    });
    // Many who ask for all they may and never read.
    let mut stalled = Vec::new();
    for id in 0..50 {
        let mut peer = RawPeer::handshaken(server.peer, metainfo, 100 + id);
        peer.become_unchoked();
        let mut bytes = Vec::new();
        for index in 0..250 {
            encode(&Message::Request(block(metainfo, (index + id * 7) % 384, 1)), &mut bytes);
        }
        peer.send(&bytes);
        stalled.push(peer);
    }

    let output = dir.path().join("out");
    let mut get = start_get("get", dir.path(), &content, &output, &[server.peer], &[]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    let sent = flooder.join().unwrap();
    let after = server.process.anonymous_bytes();
    eprintln!("anonymous bytes: {before} before, {after} after {sent} requests");
    assert!(after < before + GROWTH_MAX, "{before} bytes grew to {after}");
    drop((flood, stalled));
    let gone = |count: f64| count == 0.0;
    server.wait_metric("seedring_connections", &[], Duration::from_secs(30), gone);
    server.stop();
}

#[test]
fn a_peer_that_flaps_or_chatters_is_let_go() {
    let dir = dir();
    let (server, content) = seeding(dir.path(), 1 << 20, 155);
    for (id, messages) in [
        (1, [Message::Interested, Message::NotInterested]),
        (2, [Message::KeepAlive, Message::KeepAlive]),
        (3, [Message::Have(PieceIndex(0)), Message::Have(PieceIndex(0))]),
        (4, [Message::Choke, Message::Unchoke]),
    ] {
        let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, id);
        let mut bytes = Vec::new();
        for _ in 0..200 {
            messages.iter().for_each(|message| encode(message, &mut bytes));
        }
        let limit = Duration::from_secs(40);
        wait::until(&format!("an end to {messages:?}"), limit, || peer.try_send(&bytes).err());
    }
    server.stop();
}

#[test]
fn wrong_data_is_never_kept_and_its_sender_is_banned() {
    let dir = dir();
    let content = single(dir.path(), "content", 2 << 20, 156, &Shape::pieces_of(64 << 10));
    // A seed that vouches for data that is wrong in one place.
    let bad = Content { root: dir.path().join("bad"), ..content.clone() };
    std::fs::create_dir(&bad.root).unwrap();
    content.copy_to(&bad.root);
    let mut bytes = std::fs::read(bad.path()).unwrap();
    bytes[700_000] ^= 1;
    std::fs::write(bad.path(), bytes).unwrap();
    let liar = Server::seed(dir.path(), &bad, "127.0.0.1:0", &["--trust"]);
    let output = dir.path().join("out");
    let mut get =
        start_get("lied-to", dir.path(), &content, &output, &[liar.peer], &["--timeout", "4"]);
    assert_eq!(get.wait(TRANSFER), 1, "{}", get.tail());
    // With an honest seed beside the liar it ends well.
    let honest = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let peers = [liar.peer, honest.peer];
    let mut get = start_get("get", dir.path(), &content, &output, &peers, &[]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    honest.stop();
    liar.stop();
}
