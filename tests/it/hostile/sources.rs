//! Hostile peers that we fetch from: what they send is never kept, and honest ones finish the job.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use seedring::units::Block;
use seedring::wire::{Message, encode};

use super::disconnects;
use crate::support::data::{Content, Shape, single};
use crate::support::server::{Home, START, Server, start_get};
use crate::support::wire::{Event, RawPeer, connect_from, handshake};
use crate::support::{dir, network};

/// How long misbehaviour may take to be noticed.
const NOTICED: Duration = Duration::from_secs(20);

/// A server that lacks all of a torrent of 4 MiB, and a copy of the data elsewhere.
fn fetching(dir: &Path, listen: &str, seed: u64) -> (Home, Server, Content) {
    let home = Home::new(dir, "home");
    let content = single(dir, "content", 4 << 20, seed, &Shape::pieces_of(64 << 10));
    let mut server = home.run_at(listen, &[]);
    home.add(&content);
    server.wait_torrents("downloading", 1, START);
    (home, server, content)
}

/// The bytes of a block as they should be.
fn truth(data: &[u8], block: Block) -> &[u8] {
    let start = (block.piece.0 as usize) * (64 << 10) + block.begin as usize;
    &data[start..start + block.len as usize]
}

/// Answers requests by `answer` until the other side closes.
fn answer(peer: &mut RawPeer, mut answer: impl FnMut(&mut RawPeer, Block) -> bool) {
    loop {
        match peer.next() {
            Event::Request(block) if !answer(peer, block) => return,
            Event::Closed => return,
            _ => {}
        }
    }
}

#[test]
fn who_sends_wrong_data_is_banned_and_does_not_come_back() {
    let name = "hostile::sources::who_sends_wrong_data_is_banned_and_does_not_come_back";
    if !network::is_inside(name) {
        return;
    }
    let dir = dir();
    let (home, mut server, content) = fetching(dir.path(), "20.0.9.1:0", 180);
    let (addr, liar) = (server.peer, Ipv4Addr::new(20, 0, 3, 7));
    let mut peer = RawPeer::over(connect_from(liar, addr).unwrap(), &content.metainfo);
    peer.offer(&content.metainfo, 1);
    answer(&mut peer, |peer, block| peer.send_block(block, &vec![0xee; block.len as usize]));
    let one = |count: f64| count == 1.0;
    server.wait_metric("seedring_banned_peers", &[], NOTICED, one);
    assert_eq!(disconnects(&server, "banned"), 1.0);
    assert!(server.metric("seedring_piece_hash_failures_total", &[]) >= 1.0);

    // Under another name and from another port it is not let in; its neighbour is.
    let mut again = RawPeer::over(connect_from(liar, addr).unwrap(), &content.metainfo);
    again.send(&handshake(&content.metainfo, 2));
    again.expect_close();
    let labels = ["direction=\"in\"", "result=\"refused\""];
    assert_eq!(server.metric("seedring_handshakes_total", &labels), 1.0);
    let neighbour = Ipv4Addr::new(20, 0, 3, 8);
    let mut other = RawPeer::over(connect_from(neighbour, addr).unwrap(), &content.metainfo);
    other.send(&handshake(&content.metainfo, 3));
    other.read_handshake();

    let feeder = start_get("feed", dir.path(), &content, &content.root, &[addr], &["--seed"]);
    server.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    assert_eq!(server.metric("seedring_banned_peers", &[]), 1.0);
    drop(feeder);
    server.stop();
}

#[test]
fn a_ban_holds_in_every_torrent_and_after_a_restart() {
    let name = "hostile::sources::a_ban_holds_in_every_torrent_and_after_a_restart";
    if !network::is_inside(name) {
        return;
    }
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    // One for each worker, if there are two.
    let [poisoned, other] = [("one", 182), ("two", 183)]
        .map(|(name, seed)| single(dir.path(), name, 1 << 20, seed, &shape));
    let mut server = home.run_at("20.0.9.1:0", &[]);
    home.add(&poisoned);
    home.add(&other);
    server.wait_torrents("downloading", 2, START);
    let (liar, neighbour) = (Ipv4Addr::new(20, 0, 3, 7), Ipv4Addr::new(20, 0, 3, 8));
    let enter = |server: &Server, source: Ipv4Addr, id: u32| {
        let mut peer = RawPeer::over(connect_from(source, server.peer).unwrap(), &other.metainfo);
        peer.send(&handshake(&other.metainfo, id));
        peer
    };
    let [mut guilty, mut honest] = [(liar, 1), (neighbour, 2)].map(|(source, id)| {
        let mut peer = enter(&server, source, id);
        peer.read_handshake();
        peer
    });
    let mut peer = RawPeer::over(connect_from(liar, server.peer).unwrap(), &poisoned.metainfo);
    peer.offer(&poisoned.metainfo, 3);
    answer(&mut peer, |peer, block| peer.send_block(block, &vec![0xee; block.len as usize]));
    guilty.expect_close();
    let two = |count: f64| count == 2.0;
    server.wait_metric("seedring_disconnects_total", &["reason=\"banned\""], NOTICED, two);
    enter(&server, liar, 4).expect_close();
    honest.say(&Message::Interested);
    honest.say(&Message::NotInterested);
    let one = |count: f64| count == 1.0;
    server.wait_metric("seedring_banned_peers", &[], NOTICED, one);
    drop(honest);
    server.stop();

    let mut server = home.run_at("20.0.9.1:0", &[]);
    server.wait_torrents("downloading", 2, START);
    server.wait_metric("seedring_banned_peers", &[], NOTICED, one);
    enter(&server, liar, 5).expect_close();
    enter(&server, neighbour, 6).read_handshake();
    let labels = ["direction=\"in\"", "result=\"refused\""];
    assert_eq!(server.metric("seedring_handshakes_total", &labels), 1.0);
    server.stop();
}

#[test]
fn blocks_that_do_not_fit_are_not_kept_and_flapping_blocks_nobody() {
    let dir = dir();
    let (home, mut server, content) = fetching(dir.path(), "127.0.0.1:0", 181);
    let data = std::fs::read(content.path()).unwrap();
    let (addr, metainfo) = (server.peer, &content.metainfo);
    let half = |block: Block| Block { len: block.len / 2, ..block };
    let shifted = |block: Block| Block { begin: block.begin + 1, len: block.len - 1, ..block };
    let longer = |block: Block| Block { len: block.len + 1, ..block };
    let twice = |peer: &mut RawPeer, block: Block| {
        let bytes = truth(&data, block);
        peer.send_block(block, bytes) && peer.send_block(block, bytes)
    };
    let misfit = |block: Block| vec![0xee; block.len as usize];
    let flap = |peer: &mut RawPeer| {
        let mut bytes = Vec::new();
        encode(&Message::Choke, &mut bytes);
        encode(&Message::Unchoke, &mut bytes);
        peer.try_send(&bytes).is_ok()
    };
    type Answer<'a> = &'a dyn Fn(&mut RawPeer, Block) -> bool;
    let answers: [(&str, Answer<'_>); 5] = [
        ("short", &|peer, block| peer.send_block(half(block), &misfit(half(block)))),
        ("long", &|peer, block| peer.send_block(longer(block), &misfit(longer(block)))),
        ("misaligned", &|peer, block| peer.send_block(shifted(block), &misfit(shifted(block)))),
        ("flapping", &|peer, _| flap(peer)),
        ("twice", &twice),
    ];
    for (id, (what, how)) in (1..).zip(answers) {
        let mut peer = RawPeer::connect(addr, metainfo);
        peer.offer(metainfo, id);
        answer(&mut peer, how);
        let label = ["reason=\"protocol\""];
        let counted = |count: f64| count == f64::from(id);
        server.wait_metric("seedring_disconnects_total", &label, NOTICED, counted);
        assert!(server.process.try_code().is_none(), "after {what}");
    }
    let feeder = start_get("feed", dir.path(), &content, &content.root, &[addr], &["--seed"]);
    server.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    assert_eq!(server.metric("seedring_piece_hash_failures_total", &[]), 0.0);
    assert_eq!(server.metric("seedring_banned_peers", &[]), 0.0);
    drop(feeder);
    server.stop();
}
