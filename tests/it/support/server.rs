//! seedring itself as a child: `run`, `seed`, `get`, and what `/metrics` says.
//!
//! Arguments enter, a process with its addresses leaves. Invariant: every port is chosen by the
//! system, on loopback.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::data::Content;
use super::process::Process;
use super::wait;

/// How long a start may take, on a loaded machine, a check of the data included.
pub(crate) const START: Duration = Duration::from_secs(90);

/// How long any one transfer may take.
pub(crate) const TRANSFER: Duration = Duration::from_secs(90);

/// `seedring` with these words.
pub(crate) fn seedring(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seedring"));
    command.args(words);
    command
}

/// A `seedring` that serves.
#[derive(Debug)]
pub(crate) struct Server {
    /// The process.
    pub(crate) process: Process,
    /// Where peers reach it.
    pub(crate) peer: SocketAddr,
    /// Where HTTP reaches it.
    pub(crate) http: Option<SocketAddr>,
}

/// The folders of a `seedring run`.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    /// Everything.
    pub(crate) dir: PathBuf,
    /// `--state`
    pub(crate) state: PathBuf,
    /// `--downloads`
    pub(crate) downloads: PathBuf,
    /// `--watch`
    pub(crate) watch: PathBuf,
}

impl Home {
    /// Makes the folders under `DIR/NAME`.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let dir = dir.join(name);
        let part = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        Self { state: part("state"), downloads: part("downloads"), watch: part("watch"), dir }
    }

    /// Starts `seedring run` in these folders, with more words behind.
    pub(crate) fn run(&self, words: &[&str]) -> Server {
        self.run_at("127.0.0.1:0", words)
    }

    /// Starts `seedring run` with a peer address of its own.
    pub(crate) fn run_at(&self, listen: &str, words: &[&str]) -> Server {
        Server::wait_ready(self.start(listen, words))
    }

    /// Starts `seedring run` without waiting for anything.
    pub(crate) fn start(&self, listen: &str, words: &[&str]) -> Process {
        Process::start("run", &self.dir, &mut self.command(listen, words))
    }

    /// `seedring run` in these folders, to be changed and started.
    pub(crate) fn command(&self, listen: &str, words: &[&str]) -> Command {
        let mut command = seedring(&["run", "--listen", listen, "--http", "127.0.0.1:0"]);
        command.arg("--state").arg(&self.state).arg("--downloads").arg(&self.downloads);
        command.arg("--watch").arg(&self.watch).args(words);
        command
    }

    /// Hands a torrent over through the watch folder, the way careful programs do it.
    pub(crate) fn add(&self, content: &Content) {
        let name = content.torrent.file_name().unwrap();
        let hidden = self.dir.join(name);
        std::fs::copy(&content.torrent, &hidden).unwrap();
        std::fs::rename(hidden, self.watch.join(name)).unwrap();
    }
}

impl Home {
    /// Hands a magnet link over through the watch folder.
    pub(crate) fn add_link(&self, name: &str, link: &str) {
        let hidden = self.dir.join(name);
        std::fs::write(&hidden, format!("{link}\n")).unwrap();
        std::fs::rename(hidden, self.watch.join(name)).unwrap();
    }

    /// Waits until a file is in the watch folder.
    pub(crate) fn wait_watched(&self, name: &str) {
        wait::until(name, START, || self.watch.join(name).exists().then_some(()));
    }
}

impl Server {
    /// Starts `seedring seed` on loopback.
    pub(crate) fn seed(dir: &Path, content: &Content, listen: &str, words: &[&str]) -> Self {
        let mut command = seedring(&["seed", "--listen", listen]);
        command.arg(&content.torrent).arg("--data").arg(&content.root).args(words);
        Self::wait_ready(Process::start("seed", dir, &mut command))
    }

    /// Waits for the line that says where it serves.
    pub(crate) fn wait_ready(mut process: Process) -> Self {
        let line = process.wait_for_line("ready ", START);
        let (peer, http) = addresses(&line).unwrap_or_else(|| panic!("ready {line}"));
        Self { process, peer, http }
    }

    /// Asks for a resource; returns status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http.expect("it has an HTTP address"), path)
    }

    /// The sum of all series of a metric whose labels contain all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let mut found = false;
        let sum = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (series_name, rest) = series.split_once('{').unwrap_or((series, ""));
            let same = series_name == name && labels.iter().all(|label| rest.contains(label));
            found |= same;
            same.then(|| value.parse::<f64>().unwrap())
        });
        let sum = sum.sum();
        assert!(found, "no series {name} with {labels:?}");
        sum
    }

    /// Waits until a metric satisfies a condition; returns its value.
    pub(crate) fn wait_metric(
        &mut self,
        name: &str,
        labels: &[&str],
        limit: Duration,
        holds: impl Fn(f64) -> bool,
    ) -> f64 {
        let mut last = f64::NAN;
        let reached = wait::within(limit, || {
            assert!(self.process.try_code().is_none(), "it ended\n{}", self.process.tail());
            last = self.metric(name, labels);
            holds(last).then_some(last)
        });
        reached.unwrap_or_else(|| {
            panic!("{name}{labels:?} is {last} after {limit:?}\n{}", self.process.tail())
        })
    }

    /// Waits until as many torrents are in a state.
    pub(crate) fn wait_torrents(&mut self, state: &str, count: u32, limit: Duration) {
        let label = format!("state=\"{state}\"");
        self.wait_metric("seedring_torrents", &[&label], limit, |value| value == f64::from(count));
    }

    /// Ends it as an operator would and wants it to end well and in time.
    pub(crate) fn stop(mut self) {
        self.process.signal(libc::SIGTERM);
        self.process.wait_ok(Duration::from_secs(10));
    }
}

/// Starts `seedring get` of a torrent from peers into `output`.
pub(crate) fn start_get(
    name: &str,
    dir: &Path,
    content: &Content,
    output: &Path,
    peers: &[SocketAddr],
    words: &[&str],
) -> Process {
    start_get_of(name, dir, content.torrent.as_os_str(), output, peers, words)
}

/// Starts `seedring get` of whatever `source` leads to.
pub(crate) fn start_get_of(
    name: &str,
    dir: &Path,
    source: impl AsRef<OsStr>,
    output: &Path,
    peers: &[SocketAddr],
    words: &[&str],
) -> Process {
    std::fs::create_dir_all(output).unwrap();
    let mut command = seedring(&["get"]);
    if !words.contains(&"--timeout") {
        command.args(["--timeout", "60"]);
    }
    command.arg(source).arg("-o").arg(output).args(words);
    for peer in peers {
        command.args(["--peer", &peer.to_string()]);
    }
    if !words.contains(&"--listen") {
        let host = if peers.iter().any(SocketAddr::is_ipv6) { "[::1]:0" } else { "127.0.0.1:0" };
        command.args(["--listen", host]);
    }
    Process::start(name, dir, &mut command)
}

/// Fetches a torrent from `peer` and wants every byte.
pub(crate) fn fetch_from(dir: &Path, content: &Content, peer: SocketAddr) {
    let output = dir.join("fetched");
    let mut get = start_get("get", dir, content, &output, &[peer], &[]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
}

/// The addresses of a ready line, without its first word.
pub(crate) fn addresses(line: &str) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let (peer, http) = line.split_once(' ')?;
    let peer = peer.strip_prefix("peer=")?.parse().ok()?;
    match http.strip_prefix("http=")? {
        "-" => Some((peer, None)),
        addr => Some((peer, Some(addr.parse().ok()?))),
    }
}

/// One HTTP request.
pub(crate) fn http_get(addr: SocketAddr, path: &str) -> (u16, String) {
    http(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"))
}

/// One HTTP exchange; returns status and body.
pub(crate) fn http(addr: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8_lossy(&reply);
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_else(|| panic!("not HTTP: {head}")), body.to_owned())
}
