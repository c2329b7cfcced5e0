//! libtorrent 2.1, driven by `tests/interop/lt.py` from the virtual environment of `tests/run.sh`.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::data::{Content, Shape, big, odd_tree};
use crate::support::process::{Process, program};
use crate::support::server::{START, Server, TRANSFER, fetch_from};
use crate::support::{dir, heavy};

/// lt.py with these words.
pub(crate) fn libtorrent(mode: &str, content: &Content, save_path: &Path, host: &str) -> Command {
    libtorrent_of(mode, content.torrent.as_os_str(), save_path, host)
}

/// A DHT of libtorrent's nodes; it prints "node PORT" of the first of them.
pub(crate) fn nodes(count: u32, host: &str) -> Command {
    let mut command = script();
    command.args(["nodes", &count.to_string(), host]);
    command
}

/// The same with a torrent or a magnet link.
pub(crate) fn libtorrent_of(
    mode: &str,
    source: impl AsRef<OsStr>,
    save_path: &Path,
    host: &str,
) -> Command {
    let mut command = script();
    command.arg(mode).arg(source).arg(save_path).arg(format!("{host}:0"));
    command
}

fn script() -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let default = root.join("target/interop-venv/bin/python");
    let python = std::env::var_os("SEEDRING_TEST_PYTHON").map_or(default, PathBuf::from);
    let mut command = program(python);
    command.arg("-Wignore").arg(root.join("tests/interop/lt.py"));
    command
}

fn seeds(dir: &Path, content: &Content, host: &str) {
    let mut command = libtorrent("seed", content, &content.root, host);
    let mut seed = Process::start("libtorrent-seed", dir, &mut command);
    let port = seed.wait_for_line("listening ", START).parse().unwrap();
    seed.wait_for_line("seeding", START);
    fetch_from(dir, content, SocketAddr::new(host.parse().unwrap(), port));
}

fn fetches(dir: &Path, content: &Content, host: &str) {
    let listen = SocketAddr::new(host.parse().unwrap(), 0).to_string();
    let server = Server::seed(dir, content, &listen, &[]);
    let output = dir.join("by-libtorrent");
    std::fs::create_dir(&output).unwrap();
    let mut command = libtorrent("leech", content, &output, host);
    command.arg(format!("{host}:{}", server.peer.port()));
    let mut leech = Process::start("libtorrent-leech", dir, &mut command);
    leech.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
}

#[test]
fn it_seeds_a_big_file() {
    let (_heavy, dir) = (heavy(), dir());
    seeds(dir.path(), big(), "127.0.0.1");
}

#[test]
fn it_fetches_a_big_file() {
    let (_heavy, dir) = (heavy(), dir());
    fetches(dir.path(), big(), "127.0.0.1");
}

#[test]
fn it_seeds_many_odd_files_over_ipv6() {
    let dir = dir();
    seeds(dir.path(), &odd_tree(dir.path(), 10, &Shape::pieces_of(32 << 10)), "::1");
}

#[test]
fn it_fetches_many_odd_files_over_ipv6() {
    let dir = dir();
    fetches(dir.path(), &odd_tree(dir.path(), 11, &Shape::pieces_of(32 << 10)), "::1");
}

#[test]
fn it_seeds_many_odd_files() {
    let dir = dir();
    seeds(dir.path(), &odd_tree(dir.path(), 12, &Shape::pieces_of(32 << 10)), "127.0.0.1");
}

#[test]
fn it_fetches_many_odd_files() {
    let dir = dir();
    fetches(dir.path(), &odd_tree(dir.path(), 13, &Shape::pieces_of(32 << 10)), "127.0.0.1");
}
