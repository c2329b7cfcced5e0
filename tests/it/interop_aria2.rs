//! aria2, driven by its command line; it learns of peers from a tracker only.

use std::ffi::OsStr;
use std::path::Path;

use crate::support::data::{Content, Shape, big, odd_tree};
use crate::support::process::{Process, program};
use crate::support::server::{START, Server, TRANSFER, fetch_from};
use crate::support::tracker::OpenTracker;
use crate::support::{dir, free_addr, heavy};

/// Starts aria2c on a torrent.
pub(crate) fn aria2(dir: &Path, content: &Content, save_path: &Path, words: &[&str]) -> Process {
    aria2_of(dir, content.torrent.as_os_str(), save_path, words)
}

/// Starts aria2c on a torrent or a magnet link.
pub(crate) fn aria2_of(
    dir: &Path,
    source: impl AsRef<OsStr>,
    save_path: &Path,
    words: &[&str],
) -> Process {
    let mut command = program("aria2c");
    command.args([
        "--no-conf",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
    ]);
    command.args([
        "--enable-peer-exchange=false",
        "--file-allocation=none",
        "--console-log-level=info",
    ]);
    command.args(["--interface=127.0.0.1", "--summary-interval=0", "--allow-overwrite=true"]);
    command.arg("--dir").arg(save_path).args(words).arg(source);
    Process::start("aria2", dir, &mut command)
}

fn seeds(dir: &Path, content: &Content) {
    let addr = free_addr("127.0.0.1");
    let port = format!("--listen-port={}", addr.port());
    let words = [&port, "--seed-ratio=0.0", "--bt-seed-unverified=true", "--check-integrity=false"];
    let mut seed = aria2(dir, content, &content.root, &words);
    seed.wait_for("open port", START, || std::net::TcpStream::connect(addr).ok());
    fetch_from(dir, content, addr);
}

fn fetches(dir: &Path, content: &Content) {
    let mut tracker = OpenTracker::start(dir, &[content]);
    let content = content.with_tracker(dir, &tracker.url());
    let server = Server::seed(dir, &content, "127.0.0.1:0", &[]);
    tracker.wait_seeds(&content, 1);
    let output = dir.join("by-aria2");
    std::fs::create_dir(&output).unwrap();
    let port = format!("--listen-port={}", free_addr("127.0.0.1").port());
    let mut leech = aria2(dir, &content, &output, &[&port, "--seed-time=0"]);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
}

#[test]
fn it_seeds_a_big_file() {
    let (_heavy, dir) = (heavy(), dir());
    seeds(dir.path(), big());
}

#[test]
fn it_fetches_a_big_file() {
    let (_heavy, dir) = (heavy(), dir());
    fetches(dir.path(), big());
}

#[test]
fn it_seeds_many_odd_files() {
    let dir = dir();
    seeds(dir.path(), &odd_tree(dir.path(), 20, &Shape::pieces_of(32 << 10)));
}

#[test]
fn it_fetches_many_odd_files() {
    let dir = dir();
    fetches(dir.path(), &odd_tree(dir.path(), 21, &Shape::pieces_of(32 << 10)));
}
