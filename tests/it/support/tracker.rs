//! Trackers: Debian's opentracker, and one in the test that only writes down what it is told.
//!
//! Info-hashes or nothing enter, announce URLs leave. Invariant: both listen on loopback only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seedring::sys::net;

use super::data::Content;
use super::process::{Process, program};
use super::server::http_get;
use super::wait;

/// Longest wait for a tracker.
const LIMIT: Duration = Duration::from_secs(20);

/// A running opentracker.
#[derive(Debug)]
pub(crate) struct OpenTracker {
    process: Process,
    addr: SocketAddr,
    _home: tempfile::TempDir,
}

impl OpenTracker {
    /// Starts one that serves these torrents.
    pub(crate) fn start(dir: &Path, torrents: &[&Content]) -> Self {
        // Started by root it gives its rights up before it reads the list.
        let home = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let lines: String = torrents.iter().map(|it| it.info_hash() + "\n").collect();
        let list = home.path().join("whitelist");
        std::fs::write(&list, lines).unwrap();
        let addr = super::free_addr("127.0.0.1");
        let port = addr.port().to_string();
        let mut command = program("opentracker");
        command.args(["-i", "127.0.0.1", "-p", &port, "-P", &port]);
        command.arg("-w").arg(&list);
        let mut process = Process::start("opentracker", dir, &mut command);
        // The list is read beside the start: until then every torrent is refused.
        process.wait_for("answer", LIMIT, || {
            TcpStream::connect(addr).ok()?;
            let known = |content: &&Content| {
                let query = "&peer_id=-TT0001-asks-only---&port=9&uploaded=0&downloaded=0&left=0";
                let path = format!("/announce?{}{query}&event=stopped", escaped(content));
                http_get(addr, &path).1.contains("interval")
            };
            torrents.iter().all(known).then_some(())
        });
        Self { process, addr, _home: home }
    }

    /// The announce URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// The announce URL for UDP.
    pub(crate) fn udp_url(&self) -> String {
        format!("udp://{}/announce", self.addr)
    }

    /// Seeds and leechers that it knows of a torrent.
    pub(crate) fn scrape(&self, content: &Content) -> (u32, u32) {
        let (status, body) = http_get(self.addr, &format!("/scrape?{}", escaped(content)));
        assert_eq!(status, 200, "{body}");
        (number_after(&body, "8:completei"), number_after(&body, "10:incompletei"))
    }

    /// Waits until it knows at least as many seeds of a torrent.
    pub(crate) fn wait_seeds(&mut self, content: &Content, count: u32) {
        wait::until("an announce of a seed", LIMIT, || {
            assert!(self.process.try_code().is_none(), "{}", self.process.tail());
            (self.scrape(content).0 >= count).then_some(())
        });
    }
}

/// The info-hash as a query names it.
fn escaped(content: &Content) -> String {
    let bytes = content.metainfo.info_hash.0.iter().map(|byte| format!("%{byte:02x}"));
    bytes.fold("info_hash=".to_owned(), |query, byte| query + &byte)
}

fn number_after(text: &str, key: &str) -> u32 {
    let digits = text.split_once(key).and_then(|(_, rest)| rest.split('e').next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A tracker that remembers every request line and names the same peers to everybody, or none.
#[derive(Debug)]
pub(crate) struct Listener {
    addr: SocketAddr,
    socket: TcpListener,
    lines: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    /// Starts one that knows no peers.
    pub(crate) fn start() -> Self {
        Self::naming(&[])
    }

    /// Starts one that names these peers, of six bytes each (BEP 23).
    pub(crate) fn naming(peers: &[u8]) -> Self {
        Self::telling("127.0.0.1", peers, None)
    }

    /// Starts one on `host` that names these peers, and tells everybody that it sees them at an
    /// address (BEP 24).
    pub(crate) fn telling(host: &str, peers: &[u8], external: Option<[u8; 4]>) -> Self {
        let socket = TcpListener::bind((host, 0)).unwrap();
        let peers = peers.to_vec();
        let (addr, accepting) = (socket.local_addr().unwrap(), socket.try_clone().unwrap());
        let (lines, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (lines, ends) = (Arc::clone(&lines), Arc::clone(&ends));
            move || {
                while let Ok((stream, _)) = accepting.accept() {
                    if ends.load(Relaxed) {
                        return;
                    }
                    if let Some(line) = answer(stream, &peers, external) {
                        lines.lock().unwrap().push(line);
                    }
                }
            }
        });
        Self { addr, socket, lines, ends, thread: Some(thread) }
    }

    /// The announce URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/announce", self.addr)
    }

    /// The request lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        // Wakes the thread, whatever network it is in; it may have ended by itself.
        let _ = net::shutdown(self.socket.as_fd());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut stream: TcpStream, peers: &[u8], external: Option<[u8; 4]>) -> Option<String> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(len) if len > 0 => request.extend_from_slice(&buffer[..len]),
            _ => return None,
        }
    }
    let mut body = b"d".to_vec();
    if let Some(ip) = external {
        body.extend_from_slice(&[&b"11:external ip4:"[..], &ip].concat());
    }
    body.extend_from_slice(format!("8:intervali1800e5:peers{}:", peers.len()).as_bytes());
    body.extend_from_slice(peers);
    body.push(b'e');
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).ok()?;
    String::from_utf8_lossy(&request).lines().next().map(str::to_owned)
}
