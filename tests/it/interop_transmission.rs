//! Transmission, driven by `transmission-remote`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::data::{Content, Shape, big, odd_tree};
use crate::support::netns::{Host, inside};
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
    /// The network namespace that it is in, if it is in one of its own.
    host: Option<String>,
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
        let addrs = [(); 2].map(|()| free_addr("127.0.0.1"));
        Self::start_at(dir, None, addrs, encryption, false)
    }

    /// One on a host of a test's own network, that exchanges peers in the open.
    pub(crate) fn start_on(dir: &Path, host: &Host, ip: &str) -> Self {
        let addrs = host.enter(|| [(); 2].map(|()| free_addr(ip)));
        Self::start_at(dir, Some(host.name().to_owned()), addrs, PREFERRED, true)
    }

    fn start_at(
        dir: &Path,
        host: Option<String>,
        [rpc, peer]: [SocketAddr; 2],
        encryption: u8,
        pex: bool,
    ) -> Self {
        let home = dir.join("transmission");
        std::fs::create_dir(&home).unwrap();
        let settings = serde_json::json!({
            "bind-address-ipv4": peer.ip().to_string(),
            "bind-address-ipv6": "::1",
            "dht-enabled": false,
            "encryption": encryption,
            "lpd-enabled": false,
            "pex-enabled": pex,
            "port-forwarding-enabled": false,
            "utp-enabled": false,
            "peer-port": peer.port(),
            "rpc-bind-address": rpc.ip().to_string(),
            "rpc-port": rpc.port(),
            "rpc-whitelist-enabled": false,
            "rpc-host-whitelist-enabled": false,
        });
        std::fs::write(home.join("settings.json"), settings.to_string()).unwrap();
        let mut command = program("transmission-daemon");
        command.args(["--foreground", "--config-dir"]).arg(&home);
        let mut command = match &host {
            Some(host) => inside(host, &command),
            None => command,
        };
        let process = Process::start("transmission", dir, &mut command);
        let mut this = Self { process, host, rpc, peer };
        let (host, words) = (this.host.clone(), [rpc.to_string(), "--session-info".to_owned()]);
        this.process.wait_for("RPC", START, || {
            remote(host.as_deref()).args(&words).output().unwrap().status.success().then_some(())
        });
        this
    }

    /// `transmission-remote` with these words.
    fn remote(&self, words: &[&str]) -> String {
        run(remote(self.host.as_deref()).arg(self.rpc.to_string()).args(words))
    }

    /// The peers that it is connected with, as it shows them.
    pub(crate) fn peers(&self, content: &Content) -> String {
        self.remote(&["--torrent", &content.info_hash(), "--info-peers"])
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
        let (host, rpc, hash) = (self.host.clone(), self.rpc, content.info_hash());
        self.process.wait_for("complete torrent", limit, || {
            let words = [&rpc.to_string(), "--torrent", &hash, "--info"];
            let info = run(remote(host.as_deref()).args(words));
            let is_idle = info.contains("State: Idle") || info.contains("State: Seeding");
            (info.contains("Percent Done: 100%") && is_idle).then_some(())
        });
    }
}

fn remote(host: Option<&str>) -> Command {
    let command = program("transmission-remote");
    host.map(|host| inside(host, &command)).unwrap_or(command)
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
