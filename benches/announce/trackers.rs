//! Small trackers over HTTP and UDP, and addresses where there is none.
//!
//! Announces enter, short answers leave after [`LATENCY`], and each tracker remembers which
//! torrents it heard of and when. Invariant: the silent ones accept and never answer, and of the
//! others' protocols only as much is spoken as the service needs.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use seedring::sys::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// What nft drops.
pub(crate) const DROPPED: &str = "127.9.0.0/16";

/// How long the living think.
const LATENCY: Duration = Duration::from_millis(20);

const PORT: u16 = 7001;

/// The last byte of that event in an announce over UDP.
const STOPPED: u8 = 3;

/// What a tracker is like.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Http,
    Udp,
    HttpRefused,
    UdpRefused,
    HttpDropped,
    UdpDropped,
    HttpSilent,
    UdpSilent,
}

/// Each kind, and how many addresses there are of it.
const KINDS: [(Kind, u8); 8] = [
    (Kind::Http, 10),
    (Kind::Udp, 10),
    (Kind::HttpRefused, 2),
    (Kind::UdpRefused, 2),
    (Kind::HttpDropped, 2),
    (Kind::UdpDropped, 1),
    (Kind::HttpSilent, 2),
    (Kind::UdpSilent, 1),
];

impl Kind {
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Http | Self::Udp)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Udp => "UDP",
            Self::HttpRefused => "HTTP, refused",
            Self::UdpRefused => "UDP, refused",
            Self::HttpDropped => "HTTP, dropped",
            Self::UdpDropped => "UDP, dropped",
            Self::HttpSilent => "HTTP, silent",
            Self::UdpSilent => "UDP, silent",
        }
    }

    fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::UdpRefused | Self::UdpDropped | Self::UdpSilent)
    }

    fn has_listener(self) -> bool {
        !matches!(self, Self::HttpRefused | Self::UdpRefused)
    }
}

/// One address, and what was heard there.
#[derive(Clone)]
pub(crate) struct Tracker {
    pub(crate) kind: Kind,
    pub(crate) at: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    start: Option<Instant>,
    torrents: BTreeSet<Vec<u8>>,
    repeat_count: usize,
    first: Option<Duration>,
    last: Option<Duration>,
}

impl Tracker {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.kind.is_udp() { "udp" } else { "http" };
        format!("{scheme}://{}/announce", self.at)
    }

    /// Forgets what was heard; nothing counts before [`begin`](Self::begin).
    pub(crate) fn reset(&self) {
        *self.heard.lock().unwrap() = Heard::default();
    }

    pub(crate) fn begin(&self, start: Instant) {
        self.heard.lock().unwrap().start = Some(start);
    }

    /// Different torrents that were announced.
    pub(crate) fn torrent_count(&self) -> usize {
        self.heard.lock().unwrap().torrents.len()
    }

    /// Announces of torrents that were announced before.
    pub(crate) fn repeat_count(&self) -> usize {
        self.heard.lock().unwrap().repeat_count
    }

    pub(crate) fn first(&self) -> Option<Duration> {
        self.heard.lock().unwrap().first
    }

    pub(crate) fn last(&self) -> Option<Duration> {
        self.heard.lock().unwrap().last
    }

    fn hear(&self, torrent: &[u8]) {
        let mut heard = self.heard.lock().unwrap();
        let Some(start) = heard.start else { return };
        if !heard.torrents.insert(torrent.to_vec()) {
            heard.repeat_count += 1;
            return;
        }
        let at = clock::now() - start;
        heard.first.get_or_insert(at);
        heard.last = Some(at);
    }
}

/// Starts all of them, on a thread that lasts as long as the process.
pub(crate) fn start() -> Vec<Tracker> {
    let mut trackers = Vec::new();
    for (group, (kind, count)) in (1..).zip(KINDS) {
        // Dropped ones have a range of their own.
        let second = if matches!(kind, Kind::HttpDropped | Kind::UdpDropped) { 9 } else { 1 };
        for number in 1..=count {
            let at = (Ipv4Addr::new(127, second, group, number), PORT).into();
            trackers.push(Tracker { kind, at, heard: Arc::default() });
        }
    }
    let served = trackers.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for tracker in served.into_iter().filter(|tracker| tracker.kind.has_listener()) {
                if tracker.kind.is_udp() {
                    let socket = UdpSocket::bind(tracker.at).await.unwrap();
                    tokio::spawn(serve_udp(tracker, socket));
                } else {
                    let listener = TcpListener::bind(tracker.at).await.unwrap();
                    tokio::spawn(serve_http(tracker, listener));
                }
            }
            ready.send(()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    is_ready.recv().unwrap();
    trackers
}

async fn serve_http(tracker: Tracker, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(converse(tracker.clone(), stream));
    }
}

async fn converse(tracker: Tracker, mut stream: TcpStream) {
    const BODY: &str = "d8:intervali1800e5:peers6:\x7f\0\0\x01\0\x09e";
    let mut request = Vec::new();
    loop {
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(len) => request.extend_from_slice(&buffer[..len]),
        }
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        request.clear();
        let hash = text.split("info_hash=").nth(1).and_then(|rest| rest.split('&').next());
        if !text.contains("event=stopped") {
            tracker.hear(hash.unwrap_or_default().as_bytes());
        }
        if tracker.kind == Kind::Http {
            tokio::time::sleep(LATENCY).await;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

async fn serve_udp(tracker: Tracker, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let request = &buffer[..len];
        let (action, transaction) = (request[11], &request[12..16]);
        let answer = if action == 0 {
            [&[0, 0, 0, 0], transaction, &[7; 8]].concat()
        } else {
            if request[83] != STOPPED {
                tracker.hear(&request[16..36]);
            }
            let numbers = [0, 0, 7, 8, 0, 0, 0, 1, 0, 0, 0, 1, 127, 0, 0, 1, 0, 9];
            [&[0, 0, 0, 1], transaction, &numbers].concat()
        };
        if tracker.kind == Kind::Udp {
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(LATENCY).await;
                // Whoever asked may have ended.
                let _gone = socket.send_to(&answer, from).await;
            });
        }
    }
}
