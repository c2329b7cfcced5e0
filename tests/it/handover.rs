//! Two workers: connections find the home worker of their torrent and lose nothing on the way.

use std::time::Duration;

use seedring::wire::{Message, encode};

use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::server::{Home, START};
use crate::support::wire::{Event, RawPeer, block, handshake};

/// Torrents and peers, as many of these on each of those.
const TORRENT_COUNT: u32 = 8;
const PEER_COUNT: u32 = 64;

#[test]
fn sockets_of_the_wrong_worker_are_handed_over_and_lose_nothing() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(32 << 10);
    let contents: Vec<Content> = (0..TORRENT_COUNT)
        .map(|index| {
            let name = format!("torrent-{index}");
            single(dir.path(), &name, 500_000 + u64::from(index), 100 + u64::from(index), &shape)
        })
        .collect();
    let mut server = home.run(&["--cores", "0,1"]);
    for content in &contents {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    server.wait_torrents("seeding", TORRENT_COUNT, START);

    let mut peers = Vec::new();
    for id in 0..PEER_COUNT {
        let content = &contents[(id % TORRENT_COUNT) as usize];
        let mut peer = RawPeer::connect(server.peer, &content.metainfo);
        // One write: what stands behind the handshake is read with it, on the wrong worker.
        let mut bytes = handshake(&content.metainfo, id);
        encode(&Message::HaveNone, &mut bytes);
        encode(&Message::Interested, &mut bytes);
        for index in 0..2 {
            encode(&Message::Request(block(&content.metainfo, 1, index)), &mut bytes);
        }
        peer.send(&bytes);
        peers.push((peer, content));
    }
    for (peer, content) in &mut peers {
        peer.read_handshake();
        peer.expect("unchoke", |event| *event == Event::Unchoke);
        let data = std::fs::read(content.path()).unwrap();
        // Each of the requests behind the handshake is answered, with the block or a refusal.
        let mut answers = 0;
        while answers < 2 {
            let event = peer
                .expect("an answer", |event| matches!(event, Event::Block(..) | Event::Reject(_)));
            answers += 1;
            if let Event::Block(block, bytes) = event {
                let start = (32 << 10) * block.piece.0 as usize + block.begin as usize;
                assert!(bytes == data[start..start + bytes.len()], "wrong bytes");
            }
        }
        peer.request(block(&content.metainfo, 3, 1));
        let event = peer.expect("a block", |event| matches!(event, Event::Block(..)));
        let Event::Block(_, bytes) = event else { unreachable!("it was waited for") };
        let start = 3 * (32 << 10) + (16 << 10);
        assert!(bytes == data[start..start + bytes.len()], "wrong bytes");
    }

    let handovers = |result: &str| {
        server.metric("seedring_handovers_total", &[&format!("result=\"{result}\"")])
    };
    let sent = handovers("sent");
    assert!(sent > 0.0, "the kernel deals sockets to both workers, torrents live on one");
    assert!(sent < f64::from(PEER_COUNT), "and some arrive where they belong");
    assert_eq!(handovers("adopted"), sent);
    assert_eq!(handovers("dropped"), 0.0);
    for core in ["core=\"0\"", "core=\"1\""] {
        let bytes = server.metric("seedring_sent_payload_bytes_total", &[core]);
        assert!(bytes > 0.0, "{core} served nothing");
    }
    let ok = server.metric("seedring_handshakes_total", &["direction=\"in\"", "result=\"ok\""]);
    assert_eq!(ok, f64::from(PEER_COUNT));
    let peers_count = server.metric("seedring_peer_connections_total", &["direction=\"in\""]);
    assert_eq!(peers_count, f64::from(PEER_COUNT));
    drop(peers);
    let none = |count: f64| count == 0.0;
    server.wait_metric("seedring_connections", &[], Duration::from_secs(20), none);
    server.stop();
}
