//! qBittorrent, driven by its web API.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::data::{Content, Shape, big, odd_tree};
use crate::support::process::{Process, program};
use crate::support::server::{START, Server, TRANSFER, fetch_from, http};
use crate::support::{dir, free_addr, heavy};

/// Separates the parts of a form; not in any torrent of the tests.
const BOUNDARY: &str = "----------seedring-test-boundary";

/// A running qbittorrent-nox.
#[derive(Debug)]
pub(crate) struct QBittorrent {
    process: Process,
    api: SocketAddr,
    /// Where peers reach it.
    pub(crate) peer: SocketAddr,
}

impl QBittorrent {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, 0)
    }

    /// Starts one with a configuration of its own and its setting for encryption: 1 requires it.
    pub(crate) fn start_with(dir: &Path, encryption: u8) -> Self {
        let home = dir.join("qbittorrent");
        let config = home.join("qBittorrent/config");
        std::fs::create_dir_all(&config).unwrap();
        let (api, peer) = (free_addr("127.0.0.1"), free_addr("127.0.0.1"));
        let settings = format!(
            "[LegalNotice]\nAccepted=true\n\
             [BitTorrent]\nSession\\Port={}\nSession\\DHTEnabled=false\nSession\\PeXEnabled=false\n\
             Session\\LSDEnabled=false\nSession\\BTProtocol=TCP\nSession\\QueueingSystemEnabled=false\n\
             Session\\Encryption={encryption}\n\
             Session\\Preallocation=false\nSession\\MultiConnectionsPerIp=true\n\
             [Network]\nPortForwardingEnabled=false\n\
             [Preferences]\nWebUI\\Address=127.0.0.1\nWebUI\\Port={}\nWebUI\\LocalHostAuth=false\n\
             WebUI\\CSRFProtection=false\nWebUI\\HostHeaderValidation=false\n\
             Connection\\UPnP=false\nWebUI\\UseUPnP=false\n",
            peer.port(),
            api.port()
        );
        std::fs::write(config.join("qBittorrent.conf"), settings).unwrap();
        let mut command = program("qbittorrent-nox");
        command.arg(format!("--profile={}", home.display()));
        command.env("HOME", &home);
        let mut process = Process::start("qbittorrent", dir, &mut command);
        process.wait_for("web API", START, || std::net::TcpStream::connect(api).ok());
        Self { process, api, peer }
    }

    fn post(&self, path: &str, kind: &str, body: &[u8]) {
        let Self { api, .. } = self;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\
             Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        );
        let (status, reply) = exchange(*api, &[head.as_bytes(), body].concat());
        assert_eq!(status, 200, "{path}: {reply}");
    }

    pub(crate) fn add(&self, content: &Content, save_path: &Path) {
        let mut body = Vec::new();
        for (name, value) in [
            ("savepath", save_path.to_str().unwrap()),
            ("autoTMM", "false"),
            ("contentLayout", "Original"),
        ] {
            let part = format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
            body.extend_from_slice(part.as_bytes());
        }
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"torrents\"; \
             filename=\"t.torrent\"\r\nContent-Type: application/x-bittorrent\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(&std::fs::read(&content.torrent).unwrap());
        body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
        let kind = format!("multipart/form-data; boundary={BOUNDARY}");
        self.post("/api/v2/torrents/add", &kind, &body);
    }

    fn state(api: SocketAddr, content: &Content) -> Option<(String, f64)> {
        let path = format!("/api/v2/torrents/info?hashes={}", content.info_hash());
        let request = format!("GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n");
        let (_, body) = http(api, &request);
        let torrents: serde_json::Value = serde_json::from_str(&body).ok()?;
        let torrent = torrents.get(0)?;
        Some((torrent["state"].as_str()?.to_owned(), torrent["progress"].as_f64()?))
    }

    pub(crate) fn wait_complete(&mut self, content: &Content, limit: Duration) {
        let api = self.api;
        self.process.wait_for("complete torrent", limit, || {
            let (state, progress) = Self::state(api, content)?;
            let is_up = state.ends_with("UP") && state != "checkingUP";
            (is_up && progress >= 1.0).then_some(())
        });
    }

    pub(crate) fn add_peer(&mut self, content: &Content, peer: SocketAddr) {
        let (api, hash) = (self.api, content.info_hash());
        // Peers can be named only once the torrent was taken in.
        self.process.wait_for("torrent", START, || Self::state(api, content));
        let body = format!("hashes={hash}&peers={peer}");
        self.post(
            "/api/v2/torrents/addPeers",
            "application/x-www-form-urlencoded",
            body.as_bytes(),
        );
    }
}

fn exchange(addr: SocketAddr, request: &[u8]) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(START)).unwrap();
    stream.write_all(request).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply).into_owned();
    let status = reply.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or(0), reply)
}

fn seeds(dir: &Path, content: &Content) {
    let mut seed = QBittorrent::start(dir);
    seed.add(content, &content.root);
    seed.wait_complete(content, START);
    fetch_from(dir, content, seed.peer);
}

fn fetches(dir: &Path, content: &Content) {
    let server = Server::seed(dir, content, "127.0.0.1:0", &[]);
    let output = dir.join("by-qbittorrent");
    std::fs::create_dir(&output).unwrap();
    let mut leech = QBittorrent::start(dir);
    leech.add(content, &output);
    leech.add_peer(content, server.peer);
    leech.wait_complete(content, TRANSFER);
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
    seeds(dir.path(), &odd_tree(dir.path(), 40, &Shape::pieces_of(32 << 10)));
}

#[test]
fn it_fetches_many_odd_files() {
    let dir = dir();
    fetches(dir.path(), &odd_tree(dir.path(), 41, &Shape::pieces_of(32 << 10)));
}
