//! A server never connects to itself, by whichever of its addresses others name it.

use std::path::Path;

use crate::support::data::{Shape, single};
use crate::support::netns::{self, Host};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, seedring};
use crate::support::tracker::Listener;
use crate::support::{dir, free_addr};

/// A seed of the torrent at an address of its own.
fn seed(host: &Host, dir: &Path, content: &crate::support::data::Content) -> Server {
    let mut command = seedring(&["seed", "--listen", "20.0.0.2:0"]);
    command.arg(&content.torrent).arg("--data").arg(&content.root);
    Server::wait_ready(Process::start("seed", dir, &mut host.command(&command)))
}

#[test]
fn a_server_that_is_named_to_itself_does_not_connect() {
    if !netns::is_root("own::a_server_that_is_named_to_itself_does_not_connect") {
        return;
    }
    let dir = dir();
    let content = single(dir.path(), "data", 1 << 20, 140, &Shape::pieces_of(64 << 10));
    // All of this network leads to the host itself.
    let host = Host::alone(&["20.0.0.1/16"]);
    let seed = seed(&host, dir.path(), &content);
    let port = host.enter(|| free_addr("20.0.0.1")).port();
    let peer = |ip: [u8; 4], port: u16| [&ip[..], &port.to_be_bytes()].concat();
    let peers = [
        // Of its interface, of its loopback device, and how the tracker sees it.
        peer([20, 0, 0, 1], port),
        peer([127, 0, 0, 1], port),
        peer([20, 0, 9, 9], port),
        peer([20, 0, 0, 2], seed.peer.port()),
    ];
    let tracker =
        host.enter(|| Listener::telling("20.0.0.1", &peers.concat(), Some([20, 0, 9, 9])));
    let content = content.with_tracker(dir.path(), &tracker.url());
    let home = Home::new(dir.path(), "home");
    let command = home.command(&format!("0.0.0.0:{port}"), &["--no-dht"]);
    let mut command = host.command(&command);
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    home.add(&content);
    host.enter(|| {
        server.wait_torrents("seeding", 1, TRANSFER);
        let tried = |labels: &[&str]| server.metric("seedring_handshakes_total", labels);
        assert_eq!(tried(&["result=\"self\""]), 0.0, "it met itself");
        let named = ["source=\"tracker\""];
        assert_eq!(server.metric("seedring_peer_addresses_total", &named), 1.0);
        server.wait_metric("seedring_peers_by_source", &[], START, |it| it >= 0.0);
    });
    content.assert_same_in(&home.downloads);
    server.stop();
    seed.stop();
}
