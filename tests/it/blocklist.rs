//! The blocklist: whom it names is met neither way, and it is read again when it changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::support::data::{Content, Shape, single};
use crate::support::dir;
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER};
use crate::support::tracker::Listener;
use crate::support::wire::{Event, RawPeer, connect_from, handshake};

/// How long a change of the file may take to be in force.
const RENEWED: Duration = Duration::from_secs(40);

const GOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
const BAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

fn start(home: &Home, list: &std::path::Path) -> Process {
    let mut command = home.command("127.0.0.1:0", &["--no-dht"]);
    command.env("SEEDRING__NET__BLOCKLIST", list);
    Process::start("run", &home.dir, &mut command)
}

/// A connection from `ip` that has said its handshake.
fn connect(ip: Ipv4Addr, to: SocketAddr, content: &Content, id: u32) -> RawPeer {
    let mut peer = RawPeer::over(connect_from(ip, to).unwrap(), &content.metainfo);
    // It may be closed already.
    let _ = peer.try_send(&handshake(&content.metainfo, id));
    peer
}

#[test]
fn whom_the_list_names_is_met_neither_way() {
    let dir = dir();
    let content = single(dir.path(), "data", 1 << 20, 150, &Shape::pieces_of(64 << 10));
    // A seed that everything could be had of, were it not for the list.
    let seed = Server::seed(dir.path(), &content, &format!("{BAD}:0"), &[]);
    let peer = [&BAD.octets()[..], &seed.peer.port().to_be_bytes()].concat();
    let tracker = Listener::naming(&peer);
    let content = content.with_tracker(dir.path(), &tracker.url());
    let list = dir.path().join("list.txt");
    std::fs::write(&list, "# bad ones\nsomebody:127.0.0.60-127.0.0.69\nnonsense\n").unwrap();
    let home = Home::new(dir.path(), "home");
    let mut server = Server::wait_ready(start(&home, &list));
    let told = "line 3 of the blocklist is no range of addresses: \"nonsense\": passed over";
    assert!(server.process.stderr().contains(told), "{}", server.process.tail());
    assert_eq!(server.metric("seedring_blocklist_ranges", &[]), 1.0);
    assert_eq!(server.metric("seedring_blocklist_broken_lines", &[]), 1.0);
    home.add(&content);
    server.wait_metric("seedring_peer_addresses_blocked_total", &[], START, |it| it == 1.0);
    assert_eq!(server.metric("seedring_peer_addresses_total", &[]), 0.0);

    connect(BAD, server.peer, &content, 1).expect_close();
    let blocked = ["result=\"blocked\""];
    server.wait_metric("seedring_accepts_total", &blocked, START, |it| it == 1.0);
    let mut good = connect(GOOD, server.peer, &content, 2);
    good.read_handshake();

    // Another list: the one that is connected is to go, and the seed may be met.
    std::fs::write(&list, format!("{GOOD}/32\n127.0.0.7 - 127.0.0.9 , 0 , x\n")).unwrap();
    server.wait_metric("seedring_blocklist_ranges", &[], RENEWED, |it| it == 2.0);
    good.expect_close();
    let reason = ["reason=\"blocked\""];
    server.wait_metric("seedring_disconnects_total", &reason, START, |it| it == 1.0);
    let mut peer = connect(BAD, server.peer, &content, 3);
    peer.read_handshake();

    // What cannot be read changes nothing.
    std::fs::remove_file(&list).unwrap();
    let (process, text) = (&mut server.process, "the blocklist before it stays in force");
    let err = home.dir.join("run.err");
    process.wait_for("a warning", RENEWED, || {
        std::fs::read_to_string(&err).unwrap().contains(text).then_some(())
    });
    assert_eq!(server.metric("seedring_blocklist_ranges", &[]), 2.0);
    assert_eq!(connect(GOOD, server.peer, &content, 4).next(), Event::Closed);
    server.stop();

    // With no list at all the seed is met.
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, TRANSFER);
    server.stop();
    seed.stop();
}

#[test]
fn a_server_does_not_start_without_its_list() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let list = dir.path().join("list.txt");
    let mut process = start(&home, &list);
    assert_eq!(process.wait(START), 2, "{}", process.tail());
    assert!(process.stderr().contains("cannot read the blocklist"), "{}", process.tail());
    std::fs::write(&list, "<html>\n</html>\n").unwrap();
    let mut process = start(&home, &list);
    assert_eq!(process.wait(START), 2, "{}", process.tail());
    assert!(process.stderr().contains("it must be plain text"), "{}", process.tail());
}
