//! A swarm around opentracker: one seed, three leechers of ours, two foreign ones.

use std::time::Duration;

use crate::interop_aria2::aria2;
use crate::interop_libtorrent::libtorrent;
use crate::support::data::{Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, seedring};
use crate::support::tracker::OpenTracker;
use crate::support::{dir, free_addr, heavy};

/// Bytes of the torrent.
const LEN: u64 = 24 << 20;

/// What the seed gives away per second: the swarm is done soon only if leechers give too.
const SEED_RATE: &str = "3MiB";

#[test]
fn it_completes_and_pieces_flow_between_leechers() {
    let (_heavy, dir) = (heavy(), dir());
    let dir = dir.path();
    let content = single(dir, "swarm", LEN, 90, &Shape::pieces_of(128 << 10));
    let mut tracker = OpenTracker::start(dir, &[&content]);
    let content = content.with_tracker(dir, &tracker.url());

    let mut command = seedring(&["seed", "--listen", "127.0.0.1:0"]);
    command.arg(&content.torrent).arg("--data").arg(&content.root);
    command.env("SEEDRING__LIMITS__UP", SEED_RATE);
    let seed = Server::wait_ready(Process::start("seed", dir, &mut command));
    tracker.wait_seeds(&content, 1);

    let homes: Vec<_> = (0..3).map(|index| Home::new(dir, &format!("leecher-{index}"))).collect();
    let mut ours: Vec<_> = homes.iter().map(|home| home.run(&[])).collect();
    for home in &homes {
        home.add(&content);
    }
    let output = |name: &str| {
        let path = dir.join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (by_aria2, by_libtorrent) = (output("by-aria2"), output("by-libtorrent"));
    let port = format!("--listen-port={}", free_addr("127.0.0.1").port());
    // It seeds on: what it has it shall give to the others.
    let mut foreign = aria2(dir, &content, &by_aria2, &[&port, "--seed-ratio=0.0"]);
    let mut command = libtorrent("seed-on", &content, &by_libtorrent, "127.0.0.1");
    let mut other = Process::start("libtorrent", dir, &mut command);

    for server in &mut ours {
        server.wait_torrents("seeding", 1, TRANSFER);
    }
    other.wait_for_line("seeding", TRANSFER);
    let said = dir.join("aria2.out");
    foreign.wait_for("complete download", TRANSFER, || {
        // Its progress line changes its words once all of it is there.
        let text = std::fs::read_to_string(&said).unwrap_or_default();
        text.contains("SEED(").then_some(())
    });
    for home in &homes {
        content.assert_same_in(&home.downloads);
    }
    content.assert_same_in(&by_aria2);
    content.assert_same_in(&by_libtorrent);
    tracker.wait_seeds(&content, 4);

    let sent = |server: &Server| server.metric("seedring_sent_payload_bytes_total", &[]);
    let given: Vec<_> = ours.iter().map(sent).collect();
    eprintln!("bytes given by our leechers: {given:?}");
    assert!(given.iter().sum::<f64>() > LEN as f64, "leechers gave {given:?}");
    for server in ours {
        server.stop();
    }
    seed.stop();
}

#[test]
fn two_servers_find_each_other_and_one_leaves() {
    let dir = dir();
    let dir = dir.path();
    let content = single(dir, "pair", 3 << 20, 91, &Shape::pieces_of(64 << 10));
    let mut tracker = OpenTracker::start(dir, &[&content]);
    let content = content.with_tracker(dir, &tracker.url());
    let seed = Server::seed(dir, &content, "127.0.0.1:0", &[]);
    tracker.wait_seeds(&content, 1);
    let home = Home::new(dir, "leecher");
    let mut leecher = home.run(&[]);
    home.add(&content);
    leecher.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    tracker.wait_seeds(&content, 2);
    // The seed says that it goes, and the tracker forgets it.
    seed.stop();
    crate::support::wait::until("the tracker to forget", Duration::from_secs(10), || {
        (tracker.scrape(&content).0 == 1).then_some(())
    });
    leecher.stop();
}
