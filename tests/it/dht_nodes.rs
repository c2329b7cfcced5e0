//! Our node of the DHT among others: over a restart, by word of a peer alone, with nodes of another
//! make, over IPv6; and the port that UDP trackers see, which is that of the same socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::interop_libtorrent::libtorrent;
use crate::magnets::{dht, hidden_seed};
use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, start_get, start_get_of};
use crate::support::tracker::OpenTracker;
use crate::support::wait;
use crate::support::wire::handshake;

/// How long it may take to find somebody through the DHT, and then everything else.
const FOUND: Duration = Duration::from_secs(120);

fn content(dir: &Path, seed: u64) -> Content {
    single(dir, "data", 2 << 20, seed, &Shape::pieces_of(64 << 10))
}

/// Waits until the server has as many good nodes in its table.
fn wait_nodes(server: &mut Server, family: &str, count: f64) {
    let labels = [&*format!("family=\"{family}\""), "state=\"good\""];
    server.wait_metric("seedring_dht_nodes", &labels, FOUND, |value| value >= count);
}

#[test]
fn a_restarted_server_finds_the_dht_by_the_nodes_that_it_saved() {
    let dir = dir();
    let content = content(dir.path(), 120);
    let (_nodes, node) = dht(dir.path());
    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&["--dht-bootstrap", &node]);
    wait_nodes(&mut server, "ipv4", 5.0);
    server.stop();
    let saved = home.state.join("dht.nodes");
    assert!(saved.metadata().unwrap().len() > 5 * 26, "{saved:?}");

    let _seed = hidden_seed(dir.path(), &content, &node);
    let mut server = home.run(&[]);
    wait_nodes(&mut server, "ipv4", 5.0);
    home.add_link("a.magnet", &content.link());
    server.wait_torrents("seeding", 1, FOUND);
    content.assert_same_in(&home.downloads);
    let replies = ["direction=\"out\"", "result=\"reply\""];
    assert!(server.metric("seedring_dht_queries_total", &replies) >= 5.0);
    assert!(server.metric("seedring_dht_query_seconds_count", &[]) >= 5.0);
    for direction in ["direction=\"in\"", "direction=\"out\""] {
        assert!(server.metric("seedring_dht_bytes_total", &[direction]) > 0.0);
    }
    server.stop();
}

#[test]
fn a_peer_and_we_learn_each_others_nodes_through_their_connection_alone() {
    let dir = dir();
    let content = content(dir.path(), 121);
    let mut command = libtorrent("seed", &content, &content.root, "127.0.0.1");
    command.arg("set:enable_dht=1");
    let mut seed = Process::start("libtorrent-seed", dir.path(), &mut command);
    let port = seed.wait_for_line("listening ", START);
    seed.wait_for_line("seeding", START);
    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&[]);
    home.add_link("a.magnet", &format!("{}&x.pe=127.0.0.1:{port}", content.link()));
    server.wait_torrents("seeding", 1, TRANSFER);
    wait_nodes(&mut server, "ipv4", 1.0);
    seed.wait_for_line("dht", FOUND);
    server.stop();
}

/// The reserved bytes and the first messages that a server greets a peer with which has a node.
fn greeting(server: &Server, content: &Content) -> ([u8; 8], Vec<u8>) {
    let mut stream = TcpStream::connect(server.peer).unwrap();
    stream.set_read_timeout(Some(START)).unwrap();
    let mut ours = handshake(&content.metainfo, 1);
    ours[27] |= 1;
    stream.write_all(&ours).unwrap();
    let mut theirs = [0; 68];
    stream.read_exact(&mut theirs).unwrap();
    let reserved = theirs[20..28].try_into().unwrap();
    // Closed by us in one direction, it is closed by them in the other, and all that was said is
    // here.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = Vec::new();
    let _reset = stream.read_to_end(&mut said);
    (reserved, said)
}

#[test]
fn peers_of_private_torrents_hear_nothing_of_our_node() {
    let dir = dir();
    let open = single(dir.path(), "open", 1 << 20, 122, &Shape::pieces_of(64 << 10));
    let shape = Shape { private: true, ..Shape::pieces_of(64 << 10) };
    let closed = single(dir.path(), "closed", 1 << 20, 123, &shape);
    let home = Home::new(dir.path(), "home");
    for content in [&open, &closed] {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    let mut server = home.run(&[]);
    server.wait_torrents("seeding", 2, START);
    let port = server.peer.port().to_be_bytes();
    let message = [0, 0, 0, 3, 9, port[0], port[1]];
    for (content, is_told) in [(&open, true), (&closed, false)] {
        let (reserved, said) = greeting(&server, content);
        assert_eq!(reserved[7] & 1 == 1, is_told, "{reserved:?}");
        let is_said = said.windows(message.len()).any(|window| window == message);
        assert_eq!(is_said, is_told, "{}", said.escape_ascii());
    }
    server.stop();
}

/// The `mainline` crate's node. Our own is the only one that it is told of.
struct Mainline(mainline::Dht);

#[expect(deprecated, reason = "the other interface of the crate needs a runtime and streams")]
impl Mainline {
    fn start(bootstrap: &str) -> Self {
        let mut builder = mainline::Dht::builder();
        builder.server_mode().bind_address(Ipv4Addr::LOCALHOST).port(0).bootstrap(&[bootstrap]);
        let dht = builder.build().unwrap();
        assert!(dht.bootstrapped());
        Self(dht)
    }

    fn announce(&self, content: &Content, port: u16) {
        self.0.announce_peer(id_of(content), Some(port)).unwrap();
    }

    fn peers(&self, content: &Content) -> Vec<SocketAddr> {
        self.0.get_peers(id_of(content)).flatten().map(SocketAddr::V4).collect()
    }
}

fn id_of(content: &Content) -> mainline::Id {
    mainline::Id::from_bytes(content.metainfo.info_hash.0).unwrap()
}

#[test]
fn a_node_of_the_mainline_crate_and_we_find_what_the_other_announces() {
    let dir = dir();
    let theirs = content(dir.path(), 124);
    let ours = single(dir.path(), "ours", 1 << 20, 125, &Shape::pieces_of(64 << 10));
    let (_nodes, first) = dht(dir.path());
    let mut node = Home::new(dir.path(), "node").run(&["--dht-bootstrap", &first]);
    wait_nodes(&mut node, "ipv4", 5.0);
    let bootstrap = node.peer.to_string();
    let other = Mainline::start(&bootstrap);

    // A seed that announces nothing itself.
    let seed = Server::seed(dir.path(), &theirs, "127.0.0.1:0", &[]);
    other.announce(&theirs, seed.peer.port());
    let words = ["--dht-bootstrap", &bootstrap, "--timeout", "100"];
    let output = dir.path().join("out");
    let mut get = start_get_of("get", dir.path(), theirs.link(), &output, &[], &words);
    get.wait_ok(FOUND);
    theirs.assert_same_in(&output);
    seed.stop();

    let home = Home::new(dir.path(), "home");
    ours.copy_to(&home.downloads);
    let mut server = home.run(&["--dht-bootstrap", &bootstrap]);
    home.add(&ours);
    server.wait_torrents("seeding", 1, START);
    wait::until("the peer that we announced", FOUND, || {
        other.peers(&ours).contains(&server.peer).then_some(())
    });
    server.stop();
    node.stop();
}

#[test]
fn the_dht_works_over_ipv6() {
    let dir = dir();
    let node = Home::new(dir.path(), "node").run_at("[::1]:0", &[]);
    let bootstrap = node.peer.to_string();
    let words = ["--dht-bootstrap", &bootstrap];

    let ours = content(dir.path(), 126);
    let home = Home::new(dir.path(), "home");
    ours.copy_to(&home.downloads);
    let mut server = home.run_at("[::1]:0", &words);
    home.add(&ours);
    server.wait_torrents("seeding", 1, START);
    let output = dir.path().join("by-seedring");
    let listen = ["--listen", "[::1]:0", "--timeout", "100"];
    let link = ours.link();
    let mut get =
        start_get_of("get", dir.path(), &link, &output, &[], &[&words[..], &listen[..]].concat());
    get.wait_ok(FOUND);
    ours.assert_same_in(&output);
    wait_nodes(&mut server, "ipv6", 1.0);

    let output = dir.path().join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent("leech", &ours, &output, "::1");
    command.arg(format!("dht={bootstrap}"));
    let mut leech = Process::start("libtorrent-leech", dir.path(), &mut command);
    leech.wait_ok(FOUND);
    ours.assert_same_in(&output);

    let theirs = single(dir.path(), "theirs", 1 << 20, 127, &Shape::pieces_of(64 << 10));
    let mut command = libtorrent("seed", &theirs, &theirs.root, "::1");
    command.arg(format!("dht={bootstrap}"));
    let mut seed = Process::start("libtorrent-seed", dir.path(), &mut command);
    seed.wait_for_line("seeding", START);
    let output = dir.path().join("from-libtorrent");
    let words = [&words[..], &listen[..]].concat();
    let mut get = start_get("get", dir.path(), &theirs, &output, &[], &words);
    get.wait_ok(FOUND);
    theirs.assert_same_in(&output);
    server.stop();
    node.stop();
}

/// Answers a connect and an announce (BEP 15) with `interval` and no peers; gives the source of each.
fn serve_announce(socket: &UdpSocket) -> Vec<(u8, SocketAddr)> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 2048]);
    while !seen.iter().any(|(action, _)| *action == 1) {
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert!(len >= 16, "{:?}", &buffer[..len]);
        let action = buffer[11];
        seen.push((action, from));
        let mut answer = vec![0, 0, 0, action];
        answer.extend(&buffer[12..16]);
        match action {
            0 => answer.extend([7; 8]),
            _ => answer.extend([0, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 1]),
        }
        socket.send_to(&answer, from).unwrap();
    }
    seen
}

#[test]
fn udp_trackers_see_the_port_of_our_peers() {
    let dir = dir();
    let content = content(dir.path(), 128);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(START)).unwrap();
    let mut real = OpenTracker::start(dir.path(), &[&content]);
    let stub = format!("udp://{}/announce", socket.local_addr().unwrap());
    for (name, url) in [("stub", stub), ("real", real.udp_url())] {
        let home = Home::new(dir.path(), name);
        content.copy_to(&home.downloads);
        let mut server = home.run(&[]);
        let torrents = dir.path().join(format!("{name}-torrent"));
        std::fs::create_dir(&torrents).unwrap();
        home.add(&content.with_tracker(&torrents, &url));
        server.wait_torrents("seeding", 1, START);
        if name == "stub" {
            let seen = serve_announce(&socket);
            assert!(seen.iter().all(|(_, from)| *from == server.peer), "{seen:?}, {}", server.peer);
        } else {
            real.wait_seeds(&content, 1);
        }
        let ok = ["result=\"ok\""];
        server.wait_metric("seedring_announces_total", &ok, START, |count| count >= 1.0);
        let tracker = ["direction=\"in\"", "kind=\"tracker\""];
        assert!(server.metric("seedring_udp_datagrams_total", &tracker) >= 2.0);
        server.stop();
    }
}
