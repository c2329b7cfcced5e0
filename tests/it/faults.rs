//! Disks and files that fail under a running server: one torrent stops and says why, others go on.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::data::{Content, Shape, single, write_random};
use crate::support::process::run;
use crate::support::server::{Home, START, Server, fetch_from, start_get};
use crate::support::wire::{Event, RawPeer, block};
use crate::support::{dir, wait};

/// How soon a file that is gone has to be noticed while the torrent has peers.
const NOTICED: Duration = Duration::from_secs(60);

/// A server that seeds torrents of 4 MiB with these names.
fn seeding(dir: &Path, names: &[&str]) -> (Home, Server, Vec<Content>) {
    let home = Home::new(dir, "home");
    let shape = Shape::pieces_of(64 << 10);
    let contents: Vec<_> = names
        .iter()
        .zip(110..)
        .map(|(name, seed)| single(dir, name, 4 << 20, seed, &shape))
        .collect();
    let mut server = home.run(&[]);
    for content in &contents {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    server.wait_torrents("seeding", names.len() as u32, START);
    (home, server, contents)
}

fn unchoked(server: &Server, content: &Content, id: u32) -> RawPeer {
    let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, id);
    peer.become_unchoked();
    peer
}

fn fetch_block(peer: &mut RawPeer, content: &Content, piece: u32) {
    peer.request(block(&content.metainfo, piece, 0));
    peer.expect("a block", |event| matches!(event, Event::Block(..)));
}

#[test]
fn a_truncated_file_stops_its_torrent_at_the_next_send() {
    let dir = dir();
    let (home, mut server, contents) = seeding(dir.path(), &["victim", "bystander"]);
    let mut peer = unchoked(&server, &contents[0], 1);
    let mut other = unchoked(&server, &contents[1], 2);
    for piece in 0..64 {
        fetch_block(&mut peer, &contents[0], piece);
    }
    let file = OpenOptions::new().write(true).open(home.downloads.join("victim")).unwrap();
    file.set_len(1 << 20).unwrap();
    peer.request(block(&contents[0].metainfo, 60, 0));
    peer.expect_close();
    server.wait_torrents("error", 1, Duration::from_secs(5));
    let log = server.process.stderr();
    assert!(log.contains("victim"), "{log}");
    fetch_block(&mut other, &contents[1], 63);
    // It refuses new peers rather than to serve what is not there.
    let hash_refused = |server: &Server| server.metric("seedring_torrents", &["state=\"seeding\""]);
    assert_eq!(hash_refused(&server), 1.0);
    server.stop();
}

#[test]
fn deleted_and_replaced_files_are_noticed_within_a_minute() {
    let dir = dir();
    let names = ["deleted", "replaced", "rewritten", "bystander"];
    let (home, mut server, contents) = seeding(dir.path(), &names);
    let mut peers: Vec<_> =
        contents.iter().zip(1..).map(|(content, id)| unchoked(&server, content, id)).collect();
    for (peer, content) in peers.iter_mut().zip(&contents) {
        fetch_block(peer, content, 5);
    }
    let path = |name: &str| home.downloads.join(name);
    fs::remove_file(path("deleted")).unwrap();
    write_random(&home.dir.join("other"), 4 << 20, 120);
    fs::rename(home.dir.join("other"), path("replaced")).unwrap();
    // The same inode and size, other bytes: only its time tells.
    let bytes = fs::read(home.downloads.join("replaced")).unwrap();
    fs::write(path("rewritten"), bytes).unwrap();

    let is_failed = |count: f64| count == 3.0;
    server.wait_metric("seedring_torrents", &["state=\"error\""], NOTICED, is_failed);
    let log = server.process.stderr();
    for name in &names[..3] {
        let named =
            |line: &str| line.contains(name) && (line.contains("WARN") || line.contains("ERROR"));
        assert!(log.lines().any(named), "no line about {name}\n{log}");
    }
    fetch_block(&mut peers[3], &contents[3], 6);
    server.stop();
}

/// A small file system of its own, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, mib: u32) -> Self {
        fs::create_dir(&path).unwrap();
        run(as_root("mount").args(["-t", "tmpfs", "-o", &size(mib), "tmpfs"]).arg(&path));
        Self(path)
    }

    fn grow(&self, mib: u32) {
        run(as_root("mount").args(["-o", &format!("remount,{}", size(mib))]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that still runs when a test fails must not keep it.
        let _ = as_root("umount").arg("-l").arg(&self.0).status();
    }
}

fn size(mib: u32) -> String {
    format!("size={mib}m,mode=0777")
}

/// Mounting is for root only; elsewhere sudo has to be there, without a password.
fn as_root(program: &str) -> Command {
    let is_root = run(Command::new("id").arg("-u")).trim() == "0";
    let mut command = Command::new(if is_root { program } else { "sudo" });
    if !is_root {
        command.args(["-n", program]);
    }
    command
}

#[test]
fn a_full_disk_stops_the_torrent_and_loses_nothing() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    fs::remove_dir(&home.downloads).unwrap();
    let disk = SmallDisk::mount(home.downloads.clone(), 8);
    let shape = Shape::pieces_of(64 << 10);
    let small = single(dir.path(), "small", 4 << 20, 130, &shape);
    let large = single(dir.path(), "large", 12 << 20, 131, &shape);
    small.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&small);
    server.wait_torrents("seeding", 1, START);
    home.add(&large);
    let origin = dir.path().join("origin");
    fs::create_dir(&origin).unwrap();
    large.copy_to(&origin);
    let feed = |server: &Server| {
        start_get("feed", dir.path(), &large, &origin, &[server.peer], &["--seed"])
    };
    let feeder = feed(&server);
    server.wait_torrents("error", 1, START);
    let log = server.process.stderr();
    assert!(log.contains("space"), "{log}");
    // What is complete goes on, and is whole.
    fetch_from(dir.path(), &small, server.peer);
    small.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();

    // With room again all goes on where it stood.
    disk.grow(64);
    let mut server = home.run(&[]);
    server
        .wait_metric("seedring_torrents", &["state=\"downloading\""], START, |count| count == 1.0);
    let feeder = feed(&server);
    server.wait_torrents("seeding", 2, START);
    large.assert_same_in(&home.downloads);
    small.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();
}

#[test]
fn get_on_a_full_disk_says_so() {
    let dir = dir();
    let disk = SmallDisk::mount(dir.path().join("disk"), 8);
    let content = single(dir.path(), "large", 12 << 20, 132, &Shape::pieces_of(64 << 10));
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let mut get = start_get("get", dir.path(), &content, &disk.0, &[server.peer], &[]);
    assert_eq!(get.wait(START), 1, "{}", get.tail());
    assert!(get.stderr().contains("space"), "{}", get.tail());
    disk.grow(64);
    let mut get = start_get("get", dir.path(), &content, &disk.0, &[server.peer], &[]);
    get.wait_ok(START);
    content.assert_same_in(&disk.0);
    server.stop();
}

#[test]
fn a_file_where_a_folder_should_be_stops_only_that_torrent() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let blocked = crate::support::data::odd_tree(dir.path(), 140, &shape);
    let good = single(dir.path(), "good", 1 << 20, 141, &shape);
    good.copy_to(&home.downloads);
    fs::write(home.downloads.join(&blocked.name), b"in the way").unwrap();
    let mut server = home.run(&[]);
    home.add(&blocked);
    home.add(&good);
    server.wait_torrents("seeding", 1, START);
    server.wait_torrents("error", 1, START);
    assert_eq!(fs::read(home.downloads.join(&blocked.name)).unwrap(), b"in the way");
    wait::until("a log line", START, || {
        server.process.stderr().contains(&blocked.name).then_some(())
    });
    server.stop();
}
