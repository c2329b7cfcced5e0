//! Private torrents (BEP 27) on the wire: among clients that use the DHT, local discovery and peer
//! exchange, one says nothing of itself there, and takes nobody from there. A public torrent beside
//! it does both, or the test would see nothing at all.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use seedring::lsd::{Search, group};
use seedring::wire::{Message, PexMessage};

use crate::interop_libtorrent::{libtorrent, nodes};
use crate::support::capture::Capture;
use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::netns::{self, Host};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server};
use crate::support::wait;
use crate::support::wire::RawPeer;

/// How long it may take until a public torrent is seen everywhere.
const SEEN: Duration = Duration::from_secs(90);

const OURS: &str = "10.77.0.1";

/// Somebody whom only gossip names.
struct Named {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Named {
    fn new() -> Self {
        let listener = TcpListener::bind("10.77.0.2:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    fn is_met(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// Tells the server of a peer of a torrent by local discovery, and of another one by exchange.
fn gossip(server: SocketAddr, content: &Content, id: u32) -> ([Named; 2], RawPeer) {
    let (by_lsd, by_pex) = (Named::new(), Named::new());
    let to = group(true);
    let info_hashes = vec![content.metainfo.info_hash];
    let search = Search { port: by_lsd.addr.port(), info_hashes, cookie: None };
    let socket = UdpSocket::bind("10.77.0.2:0").unwrap();
    socket.send_to(&search.encode(to), to).unwrap();
    let stream = TcpStream::connect(server).unwrap();
    let mut peer = RawPeer::over(stream, &content.metainfo);
    peer.send(&crate::support::wire::handshake(&content.metainfo, id));
    peer.read_handshake();
    let mut message = Vec::new();
    PexMessage { added: vec![(by_pex.addr, 0)], dropped: Vec::new() }.encode(1, &mut message);
    peer.say(&Message::Extended { id: 0, payload: b"d1:md6:ut_pexi1eee" });
    peer.send(&message);
    ([by_lsd, by_pex], peer)
}

#[test]
fn a_private_torrent_is_silent_where_a_public_one_is_heard() {
    if !netns::is_root("private::a_private_torrent_is_silent_where_a_public_one_is_heard") {
        return;
    }
    let dir = dir();
    let shape = Shape::pieces_of(64 << 10);
    let public = single(dir.path(), "public", 16 << 20, 130, &shape);
    let shape = Shape { private: true, ..shape };
    let private = single(dir.path(), "private", 16 << 20, 131, &shape);
    let theirs: Vec<String> = (2..=6).map(|host| format!("10.77.0.{host}/24")).collect();
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let [our_host, their_host] = Host::pair(&["10.77.0.1/24"], &theirs);
    let capture = Capture::start(&our_host);
    let from: IpAddr = OURS.parse().unwrap();

    let mut command = their_host.command(&nodes(3, "10.77.0.2"));
    let mut node = Process::start("nodes", dir.path(), &mut command);
    let node_addr = format!("10.77.0.2:{}", node.wait_for_line("node ", START));
    let home = Home::new(dir.path(), "home");
    [&public, &private].iter().for_each(|content| content.copy_to(&home.downloads));
    let mut command = home.command(&format!("{OURS}:0"), &["--dht-bootstrap", &node_addr]);
    // So slow that all of them want something until the end.
    command.env("SEEDRING__NET__ENCRYPTION", "off").env("SEEDRING__LIMITS__UP", "100KiB");
    let mut command = our_host.command(&command);
    let mut server = Server::wait_ready(Process::start("run", &home.dir, &mut command));
    [&private, &public].iter().for_each(|content| home.add(content));
    our_host.enter(|| server.wait_torrents("seeding", 2, START));

    let leech = |content: &Content, host: u8| {
        let name = format!("leech-{host}");
        let output = dir.path().join(&name);
        std::fs::create_dir(&output).unwrap();
        let mut command = libtorrent("leech", content, &output, &format!("10.77.0.{host}"));
        command.args([format!("dht={node_addr}"), server.peer.to_string()]);
        command.args(["set:enable_lsd=1", "set:in_enc_policy=2", "set:out_enc_policy=2"]);
        Process::start(&name, dir.path(), &mut their_host.command(&command))
    };
    let hash = |content: &Content| content.metainfo.info_hash.0;
    // The private ones come first: what is said of the others would have been said of them before.
    let _private_leeches = [leech(&private, 5), leech(&private, 6)];
    wait::until("two private peers", START, || {
        (capture.streams(from, &hash(&private), b"").0 >= 2).then_some(())
    });
    let _public_leeches = [leech(&public, 3), leech(&public, 4)];
    wait::until("an announce in the local network", SEEN, || {
        capture.has_datagram(from, public.info_hash().as_bytes()).then_some(())
    });
    wait::until("a look-up in the DHT", SEEN, || {
        capture.has_datagram(from, &hash(&public)).then_some(())
    });
    wait::until("an exchange of peers", SEEN, || {
        (capture.streams(from, &hash(&public), b"5:added").1 > 0).then_some(())
    });
    assert!(capture.streams(from, &hash(&public), b"6:ut_pex").1 > 0);

    let (strangers, _peers) = their_host.enter(|| {
        let (private, first) = gossip(server.peer, &private, 1);
        let (public, second) = gossip(server.peer, &public, 2);
        for (named, how) in public.iter().zip(["local discovery", "exchange"]) {
            wait::until(how, START, || named.is_met().then_some(()));
        }
        (private, [first, second])
    });
    for (named, how) in strangers.iter().zip(["local discovery", "exchange"]) {
        assert!(!named.is_met(), "a private torrent met a peer by {how}");
    }

    let (stream_count, exchange_count) = capture.streams(from, &hash(&private), b"ut_pex");
    assert!(stream_count >= 2 && exchange_count == 0, "{stream_count} {exchange_count}");
    assert_eq!(capture.streams(from, &hash(&private), b"5:added").1, 0);
    assert!(!capture.has_datagram(from, &hash(&private)), "in the DHT");
    assert!(!capture.has_datagram(from, private.info_hash().as_bytes()), "to neighbours");
    capture.assert_whole();
    server.stop();
}
