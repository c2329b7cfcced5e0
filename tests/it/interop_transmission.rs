//! Transmission, driven by `transmission-remote`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::data::{Content, Shape, big, odd_tree};
use crate::support::process::{Process, program, run};
use crate::support::server::{START, TRANSFER, fetch_from, start_get};
use crate::support::{dir, free_addr, heavy};

/// Its default: encrypted connections are preferred.
const PREFERRED: u8 = 1;
/// Encrypted connections only.
pub(crate) const REQUIRED: u8 = 2;

/// A running transmission-daemon.
#[derive(Debug)]
pub(crate) struct Transmission {
    process: Process,
    rpc: SocketAddr,
    /// Where peers reach it.
    pub(crate) peer: SocketAddr,
}

impl Transmission {
    /// Starts one with a configuration of its own.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, PREFERRED)
    }

    /// The same with its setting for encryption.
    pub(crate) fn start_with(dir: &Path, encryption: u8) -> Self {
        let home = dir.join("transmission");
        std::fs::create_dir(&home).unwrap();
        let (rpc, peer) = (free_addr("127.0.0.1"), free_addr("127.0.0.1"));
        let settings = serde_json::json!({
            "bind-address-ipv4": "127.0.0.1",
            "bind-address-ipv6": "::1",
            "dht-enabled": false,
            "encryption": encryption,
            "lpd-enabled": false,
            "pex-enabled": false,
            "port-forwarding-enabled": false,
            "utp-enabled": false,
            "peer-port": peer.port(),
            "rpc-bind-address": "127.0.0.1",
            "rpc-port": rpc.port(),
            "rpc-whitelist-enabled": false,
            "rpc-host-whitelist-enabled": false,
        });
        std::fs::write(home.join("settings.json"), settings.to_string()).unwrap();
        let mut command = program("transmission-daemon");
        command.args(["--foreground", "--config-dir"]).arg(&home);
        let process = Process::start("transmission", dir, &mut command);
        let mut this = Self { process, rpc, peer };
        this.process.wait_for("RPC", START, || std::net::TcpStream::connect(rpc).ok());
        this
    }

    /// `transmission-remote` with these words.
    fn remote(&self, words: &[&str]) -> String {
        run(program("transmission-remote").arg(self.rpc.to_string()).args(words))
    }

    /// Adds a torrent and waits until all of it is there.
    pub(crate) fn add(&mut self, content: &Content, save_path: &Path) {
        self.add_of(content.torrent.to_str().unwrap(), save_path);
    }

    /// Adds a torrent or a magnet link.
    pub(crate) fn add_of(&mut self, source: &str, save_path: &Path) {
        self.remote(&["--add", source, "--download-dir", save_path.to_str().unwrap()]);
    }

    /// Waits until all of a torrent is there.
    pub(crate) fn wait_complete(&mut self, content: &Content, limit: Duration) {
        let (rpc, hash) = (self.rpc, content.info_hash());
        self.process.wait_for("complete torrent", limit, || {
            let words = [&rpc.to_string(), "--torrent", &hash, "--info"];
            let info = run(program("transmission-remote").args(words));
            let is_idle = info.contains("State: Idle") || info.contains("State: Seeding");
            (info.contains("Percent Done: 100%") && is_idle).then_some(())
        });
    }
}

fn seeds(dir: &Path, content: &Content) {
    let mut seed = Transmission::start(dir);
    seed.add(content, &content.root);
    seed.wait_complete(content, START);
    fetch_from(dir, content, seed.peer);
}

fn fetches(dir: &Path, content: &Content) {
    let output = dir.join("by-transmission");
    std::fs::create_dir(&output).unwrap();
    let mut leech = Transmission::start(dir);
    leech.add(content, &output);
    // It never connects to loopback by itself, whoever names the address: our side has to.
    let peers = [leech.peer];
    let mut seed = start_get("seed", dir, content, &content.root, &peers, &["--seed"]);
    leech.wait_complete(content, TRANSFER);
    // Version 3.00 leaves empty files out; everything else has to be there.
    let root = output.join(&content.name);
    let left_out = content.name == "odd tree" && !root.join("a/empty").exists();
    if left_out {
        std::fs::write(root.join("a/empty"), b"").unwrap();
    }
    content.assert_same_in(&output);
    seed.signal(libc::SIGTERM);
    assert_eq!(seed.wait(Duration::from_secs(10)), 143, "{}", seed.tail());
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
    seeds(dir.path(), &odd_tree(dir.path(), 30, &Shape::pieces_of(32 << 10)));
}

#[test]
fn it_fetches_many_odd_files() {
    let dir = dir();
    fetches(dir.path(), &odd_tree(dir.path(), 31, &Shape::pieces_of(32 << 10)));
}
