//! Announces over real sockets: a hostile HTTP server, and a real tracker.
//!
//! Everything is on the loopback interface with ports of the system's choice.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "tracker/tls.rs"]
mod tls;
#[path = "tracker/udp.rs"]
mod udp;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use seedring::metrics::AnnounceResult;
use seedring::sys::clock;
use seedring::tracker::http::{Bind, HttpConfig, HttpExecutor};
use seedring::tracker::reply::BODY_LEN_MAX;
use seedring::tracker::{
    AddressPolicy, Announce, Config, Event, Failure, Found, Handle, Reply, Retry, Service, Totals,
    TrackerUrl,
};
use seedring::units::{InfoHash, PeerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const HASH: InfoHash = InfoHash([0xA5; 20]);
const WALL: Duration = Duration::from_secs(20);

/// What the server does with one request.
enum Script {
    /// Sends these bytes and closes.
    Send(Vec<u8>),
    /// Sends these bytes and never closes.
    Stall(Vec<u8>),
    /// Sends these bytes, then the same chunk again and again.
    Endless(Vec<u8>),
    /// Sends a body with its length and waits for the next request.
    Keep(Vec<u8>),
}

/// An HTTP server of the tests; it remembers the first line of each request.
struct Server {
    at: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connection_count: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(at: &str, respond: impl Fn(&str) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let connection_count = Arc::<Mutex<usize>>::default();
        let respond = Arc::new(respond);
        let task = tokio::spawn({
            let (requests, connections) = (Arc::clone(&requests), Arc::clone(&connection_count));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    *connections.lock().unwrap() += 1;
                    tokio::spawn(converse(stream, Arc::clone(&requests), Arc::clone(&respond)));
                }
            }
        });
        Self { at, requests, connection_count, task }
    }

    fn url(&self) -> String {
        format!("http://{}/announce", self.at)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn converse<F: Fn(&str) -> Script>(
    mut stream: TcpStream,
    requests: Arc<Mutex<Vec<String>>>,
    respond: Arc<F>,
) {
    loop {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            request.push(byte);
        }
        let request = String::from_utf8(request).unwrap();
        let script = respond(&request);
        requests.lock().unwrap().push(request);
        match script {
            Script::Send(bytes) => {
                let _gone = stream.write_all(&bytes).await;
                return;
            }
            Script::Stall(bytes) => {
                let _gone = stream.write_all(&bytes).await;
                let _closed = stream.read_u8().await;
                return;
            }
            Script::Endless(bytes) => {
                let mut is_open = stream.write_all(&bytes).await.is_ok();
                while is_open {
                    is_open = stream.write_all(&[b'x'; 65_536]).await.is_ok();
                }
                return;
            }
            Script::Keep(body) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _gone = stream.write_all(head.as_bytes()).await;
                let _gone = stream.write_all(&body).await;
            }
        }
    }
}

fn answer(body: &[u8]) -> Script {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    Script::Send([head.as_bytes(), body].concat())
}

fn raw(text: &str) -> Script {
    Script::Send(text.as_bytes().to_vec())
}

fn redirect(to: &str) -> Script {
    raw(&format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"))
}

fn open_policy() -> AddressPolicy {
    AddressPolicy { allow_loopback: true, ..AddressPolicy::default() }
}

fn executor(policy: AddressPolicy, bind: Option<Bind>) -> HttpExecutor {
    let peer_id = PeerId(*b"-sg0100-abcdefghijkl");
    HttpExecutor::new(HttpConfig { peer_id, port: 6881, key: 7, policy, bind }).unwrap()
}

async fn announce_with(
    executor: &HttpExecutor,
    url: &str,
    wall: Duration,
) -> Result<Reply, Failure> {
    let url = TrackerUrl::parse(url).unwrap();
    let announce = Announce { slot: 0, url, event: Event::Started, numwant: 50, tracker_id: None };
    executor.announce(HASH, &announce, Totals { uploaded: 1, downloaded: 2, left: 3 }, wall).await
}

async fn announce(url: &str) -> Result<Reply, Failure> {
    announce_with(&executor(open_policy(), None), url, WALL).await
}

/// What an announce to a server with this one answer comes to.
async fn meets(respond: impl Fn(&str) -> Script + Send + Sync + 'static) -> Result<Reply, Failure> {
    let server = Server::start("127.0.0.1:0", respond).await;
    announce(&server.url()).await
}

async fn failure(respond: impl Fn(&str) -> Script + Send + Sync + 'static) -> Failure {
    meets(respond).await.expect_err("a failure")
}

#[tokio::test]
async fn an_announce_says_what_bep_3_asks_for() {
    let peers = b"\x7f\0\0\x01\x1a\xe1\x0a\0\0\x01\x1a\xe1\xe0\0\0\x01\x1a\xe1";
    let body = [b"d8:intervali900e5:peers18:", &peers[..], b"e"].concat();
    let server = Server::start("127.0.0.1:0", move |_| answer(&body)).await;
    let reply = announce(&format!("{}?pass=x", server.url())).await.unwrap();
    assert_eq!(reply.interval, Some(Duration::from_secs(900)));
    assert_eq!(reply.peers, ["127.0.0.1:6881".parse().unwrap()], "others are closed by the policy");
    assert_eq!(reply.dropped_count, 2);
    let requests = server.requests();
    let request = &requests[0];
    let line = format!(
        "GET /announce?pass=x&info_hash={}&peer_id=-sg0100-abcdefghijkl&port=6881&uploaded=1\
         &downloaded=2&left=3&compact=1&no_peer_id=1&numwant=50&key=00000007&event=started \
         HTTP/1.1\r\n",
        "%A5".repeat(20)
    );
    assert!(request.starts_with(&line), "{request}");
    let lower = request.to_lowercase();
    let agent = format!("user-agent: seedring/{}\r\n", env!("CARGO_PKG_VERSION"));
    assert!(lower.contains(&agent) && lower.contains("accept-encoding: identity\r\n"), "{request}");
}

#[tokio::test]
async fn hostile_bodies_are_failures() {
    let endless = b"HTTP/1.1 200 OK\r\n\r\nd5:peers".to_vec();
    let failed = failure(move |_| Script::Endless(endless.clone())).await;
    assert!(matches!(&failed, Failure::Malformed(why) if why.contains("1048576")), "{failed}");

    let claimed = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY_LEN_MAX * 1000);
    let failed = failure(move |_| Script::Endless(claimed.clone().into_bytes())).await;
    assert!(matches!(failed, Failure::Malformed(_)), "{failed}");

    let gzip = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x08\x08";
    let failed = failure(move |_| raw(gzip)).await;
    assert!(matches!(&failed, Failure::Malformed(why) if why.contains("compressed")), "{failed}");

    let failed = failure(|_| answer(b"<html><h1>It works!</h1></html>")).await;
    assert!(matches!(failed, Failure::Malformed(_)), "{failed}");

    let failed = failure(|_| raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nd")).await;
    assert!(matches!(failed, Failure::Malformed(_) | Failure::Connect(_)), "{failed}");

    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n";
    let failed = failure(move |_| raw(chunked)).await;
    assert!(matches!(failed, Failure::Malformed(_)), "{failed}");

    let flood = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Flood: 1\r\n".repeat(1000));
    let failed = failure(move |_| raw(&flood)).await;
    assert!(matches!(failed, Failure::Malformed(_)), "{failed}");

    let endless_line = b"HTTP/1.1 200 OK\r\nX-Endless: ".to_vec();
    let failed = failure(move |_| Script::Endless(endless_line.clone())).await;
    assert!(matches!(failed, Failure::Malformed(_)), "{failed}");

    let failed = failure(|_| answer(b"d14:failure reason9:go\x1b[1m awaye")).await;
    assert!(matches!(failed, Failure::Malformed(_) | Failure::Reason { .. }), "{failed}");
    assert!(!failed.to_string().contains('\x1b'));
}

#[tokio::test]
async fn statuses_are_understood() {
    let busy = "HTTP/1.1 429 Too Many\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n";
    let failed = failure(move |_| raw(busy)).await;
    assert_eq!(failed.retry(), Some(Retry::After(Duration::from_secs(120))));
    assert_eq!(failed.label(), "http");

    let failed = failure(|_| raw("HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno")).await;
    assert_eq!(failed, Failure::Status { status: 500, retry_after: None });

    let failed = failure(|_| raw("HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(failed.is_unregistered());

    let said = "HTTP/1.1 400 Bad\r\nContent-Length: 24\r\n\r\nd14:failure reason3:bade";
    let failed = failure(move |_| raw(said)).await;
    assert_eq!(failed, Failure::Reason { reason: "bad".into(), retry: None });
}

#[tokio::test]
async fn one_deadline_holds_for_the_whole_exchange() {
    let wall = Duration::from_millis(300);
    let scripts: [fn() -> Script; 3] = [
        || Script::Stall(Vec::new()),
        || Script::Stall(b"HTTP/1.1 200 OK\r\nX-Slow: ".to_vec()),
        || Script::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nd".to_vec()),
    ];
    for script in scripts {
        let server = Server::start("127.0.0.1:0", move |_| script()).await;
        let result = announce_with(&executor(open_policy(), None), &server.url(), wall).await;
        assert_eq!(result, Err(Failure::Timeout(wall)));
        assert_eq!(server.requests().len(), 1, "the server was reached");
    }
}

#[tokio::test]
async fn redirects_are_followed_a_little_and_checked_always() {
    let server = Server::start("127.0.0.1:0", |request| {
        if request.starts_with("GET /there") { answer(b"de") } else { redirect("/there?x=1") }
    })
    .await;
    assert_eq!(announce(&server.url()).await, Ok(Reply::default()));
    assert_eq!(server.requests().len(), 2);

    let server = Server::start("127.0.0.1:0", |_| redirect("/announce")).await;
    assert_eq!(announce(&server.url()).await.unwrap_err().label(), "refused");
    assert_eq!(server.requests().len(), 6, "the first and five more");

    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
        "http://2852039166/",
        "http://0xa9.0xfe.0xa9.0xfe/",
        "http://10.0.0.1/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "file:///etc/passwd",
        "http://user:password@127.0.0.1/",
    ] {
        let failed = failure(move |_| redirect(target)).await;
        assert_eq!(failed.label(), "refused", "{target}: {failed}");
        assert!(!failed.to_string().contains("user:password"), "{failed}");
    }
}

#[tokio::test]
async fn a_redirect_to_a_name_is_judged_by_its_addresses() {
    let aim = Server::start("127.0.0.1:0", |_| answer(b"de")).await;
    let port = aim.at.port();
    let location = format!("http://localhost:{port}/announce");
    let server = Server::start("127.0.0.2:0", move |_| redirect(&location)).await;
    let allow = vec!["127.0.0.2/32".parse().unwrap()];
    let narrow = executor(AddressPolicy { allow, ..AddressPolicy::default() }, None);
    let failed = announce_with(&narrow, &server.url(), WALL).await.unwrap_err();
    assert_eq!(failed.label(), "refused", "{failed}");
    assert_eq!(server.requests().len(), 1, "it was reached");
    assert_eq!(*aim.connection_count.lock().unwrap(), 0, "and led nowhere");
}

#[tokio::test]
async fn nothing_reaches_a_closed_address() {
    let server = Server::start("127.0.0.1:0", |_| answer(b"de")).await;
    let closed = executor(AddressPolicy::default(), None);
    let port = server.at.port();
    for url in [
        format!("http://127.0.0.1:{port}/a"),
        format!("http://0x7f000001:{port}/a"),
        format!("http://[::ffff:127.0.0.1]:{port}/a"),
        format!("http://localhost:{port}/a"),
    ] {
        let failed = announce_with(&closed, &url, WALL).await.unwrap_err();
        assert_eq!(failed.label(), "refused", "{url}: {failed}");
    }
    assert_eq!(*server.connection_count.lock().unwrap(), 0, "not even a connection");
}

#[tokio::test]
async fn faults_of_the_way_have_their_names() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let failed = announce(&format!("http://{free}/a")).await.unwrap_err();
    assert_eq!(failed.label(), "connect", "{failed}");

    let failed = announce("http://no-such-name.invalid/a?key=secret").await.unwrap_err();
    assert_eq!(failed.label(), "dns", "{failed}");
    assert!(!failed.to_string().contains("secret"));

    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/a", server.local_addr().unwrap());
    let plain = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 this is not TLS\r\n\r\n").await.unwrap();
        let _closed = stream.read(&mut [0; 4096]).await;
    });
    let failed = announce(&url).await.unwrap_err();
    assert_eq!(failed.label(), "tls", "{failed}");
    plain.await.unwrap();
}

#[tokio::test]
async fn connections_are_used_again_and_leave_from_the_bound_address() {
    let server = Server::start("127.0.0.1:0", |_| Script::Keep(b"de".to_vec())).await;
    let executor = executor(open_policy(), Some(Bind::Address("127.0.0.9".parse().unwrap())));
    for _ in 0..5 {
        announce_with(&executor, &server.url(), WALL).await.unwrap();
    }
    assert_eq!(*server.connection_count.lock().unwrap(), 1);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a", listener.local_addr().unwrap());
    let accepted = tokio::spawn(async move { listener.accept().await.unwrap().1.ip() });
    let _cut_off = announce_with(&executor, &url, Duration::from_millis(500)).await;
    assert_eq!(accepted.await.unwrap(), "127.0.0.9".parse::<IpAddr>().unwrap());
    // A host of the other family cannot be reached from there, and nothing goes around it.
    let failed = announce_with(&executor, "http://[::1]:9/a", WALL).await.unwrap_err();
    assert_eq!(failed.label(), "dns", "{failed}");
}

#[tokio::test]
async fn a_host_with_both_families_is_told_over_both() {
    let v4 = Server::start("127.0.0.1:0", |_| answer(b"d5:peers6:\x7f\0\0\x01\0\x04e")).await;
    let at_v6 = format!("[::1]:{}", v4.at.port());
    let v6 = Server::start(&at_v6, |_| answer(b"d5:peers6:\x7f\0\0\x01\0\x06e")).await;
    let name = ("localhost", v4.at.port());
    let known: Vec<_> = tokio::net::lookup_host(name).await.unwrap().collect();
    let reply = announce(&format!("http://localhost:{}/a", v4.at.port())).await.unwrap();
    let told = |port| reply.peers.iter().any(|peer| peer.port() == port);
    assert_eq!(told(4), known.iter().any(SocketAddr::is_ipv4), "{known:?}");
    assert_eq!(told(6), known.iter().any(SocketAddr::is_ipv6), "{known:?}");
    let reply = announce(&format!("http://[::1]:{}/a", v6.at.port())).await.unwrap();
    assert_eq!(reply.peers, ["127.0.0.1:6".parse().unwrap()], "an address has its one family");
}

/// Waits for a condition, at most ten seconds.
async fn wait_for(what: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = clock::now() + Duration::from_secs(10);
    while !is_met() {
        assert!(clock::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(Duration::from_secs(10), future).await;
    result.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn service(port: u16) -> (Handle, mpsc::Receiver<Found>) {
    let mut config = Config::new(PeerId([b'a'; 20]), port, u64::from(port));
    config.policy = open_policy();
    Service::spawn(config).unwrap()
}

fn add(handle: &Handle, info_hash: InfoHash, url: &str, left: u64) {
    let totals = move || Totals { uploaded: 0, downloaded: 0, left };
    handle.add(info_hash, &[vec![url.to_owned()]], Arc::new(totals)).unwrap();
}

#[tokio::test]
async fn the_service_announces_many_and_says_goodbye_to_all() {
    let server = Server::start("127.0.0.1:0", |_| {
        Script::Keep(b"d8:completei4e5:peers6:\x7f\0\0\x01\0\x09e".to_vec())
    })
    .await;
    let (handle, mut found) = service(1);
    let hash = |index: u8| InfoHash([index; 20]);
    for index in 0..60 {
        add(&handle, hash(index), &server.url(), u64::from(index));
    }
    for _ in 0..60 {
        let found = within("peers", found.recv()).await.unwrap();
        assert_eq!(found.peers, ["127.0.0.1:9".parse().unwrap()]);
    }
    assert!(handle.completed(hash(7)) && !handle.completed(hash(200)));
    assert_eq!(within("peers", found.recv()).await.map(|found| found.info_hash), Some(hash(7)));
    let status = handle.status(hash(7)).unwrap();
    let tracker = &status.trackers[0];
    assert_eq!((tracker.seeder_count, tracker.failure_count), (Some(4), 0));
    let last = tracker.last.as_ref().unwrap();
    assert_eq!((last.event, &last.result), (Event::Completed, &Ok(1)));
    assert!(status.next_at.is_some_and(|at| at > clock::now()));
    assert!(handle.remove(hash(3)) && handle.status(hash(3)).is_none());
    wait_for("the goodbye of one", || server.requests().len() == 62).await;

    let started_at = clock::now();
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, 0);
    assert!(clock::now() - started_at < Duration::from_secs(5));
    let requests = server.requests();
    let count = |event: &str| requests.iter().filter(|request| request.contains(event)).count();
    assert_eq!(
        ["event=started", "event=completed", "event=stopped", "numwant=0"].map(count),
        [60, 1, 60, 60]
    );
    let counters = handle.counters();
    assert_eq!(counters.announces().next(), Some((AnnounceResult::Ok, 121)));
    let connection_count = *server.connection_count.lock().unwrap();
    assert!(connection_count <= 40, "{connection_count} connections, though they can be kept");
}

#[tokio::test]
async fn the_end_does_not_wait_for_a_tracker_that_hangs() {
    let server = Server::start("127.0.0.1:0", |request| {
        if request.contains("event=stopped") { Script::Stall(Vec::new()) } else { answer(b"de") }
    })
    .await;
    let (handle, _found) = service(2);
    add(&handle, HASH, &server.url(), 0);
    wait_for("the announce", || server.requests().len() == 1).await;
    let is_told = || handle.status(HASH).is_some_and(|status| status.trackers[0].last.is_some());
    wait_for("the answer", is_told).await;
    let started_at = clock::now();
    assert_eq!(handle.shutdown(Duration::from_millis(300)).await, 1);
    let took = clock::now() - started_at;
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
}

/// A real tracker; ended by its process id.
struct OpenTracker {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for OpenTracker {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

impl OpenTracker {
    /// Starts it for one info-hash. The port may be taken by another process between the look and
    /// the start, hence the tries.
    async fn start(info_hash: InfoHash) -> Self {
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            let directory = tempfile::tempdir().unwrap();
            readable_by_all(directory.path());
            std::fs::write(directory.path().join("known"), format!("{info_hash}\n")).unwrap();
            let child = Command::new("opentracker")
                .args(["-i", "127.0.0.1", "-p", &port.to_string(), "-P", &port.to_string()])
                .arg("-d")
                .arg(directory.path())
                .args(["-w", "known"])
                .current_dir(directory.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the program `opentracker` is needed; `tests/run.sh` installs it");
            let mut tracker = Self { child, port, _directory: directory };
            if tracker.is_up(port, info_hash).await {
                return tracker;
            }
        }
        panic!("opentracker did not start");
    }

    /// Where it is, over HTTP or UDP.
    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}/announce", self.port)
    }

    /// It reads its list beside its start, and refuses every torrent until then.
    async fn is_up(&mut self, port: u16, info_hash: InfoHash) -> bool {
        let deadline: Instant = clock::now() + Duration::from_secs(5);
        let hash: String = info_hash.0.iter().map(|byte| format!("%{byte:02x}")).collect();
        let request = format!(
            "GET /announce?info_hash={hash}&peer_id=-TT0001-asks-only---&port=9&uploaded=0\
             &downloaded=0&left=0&event=stopped HTTP/1.0\r\n\r\n"
        );
        while clock::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
                let mut reply = Vec::new();
                // Either may fail while it starts; then it is asked again.
                let _ = stream.write_all(request.as_bytes()).await;
                let _ = stream.read_to_end(&mut reply).await;
                if String::from_utf8_lossy(&reply).contains("interval") {
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

/// The tracker gives up root before it reads its list.
fn readable_by_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Takes what is found until `is_met`.
async fn found_until(
    found: &mut mpsc::Receiver<Found>,
    what: &str,
    is_met: impl Fn(&[SocketAddr]) -> bool,
) {
    within(what, async {
        while let Some(found) = found.recv().await {
            if is_met(&found.peers) {
                return;
            }
        }
        panic!("the service ended before {what}");
    })
    .await;
}

/// Debian's build of opentracker serves IPv4 only; IPv6 is tested against the server above.
#[tokio::test]
async fn two_peers_meet_at_a_real_tracker_and_one_leaves() {
    peers_meet_over("http").await;
}

#[tokio::test]
async fn two_peers_meet_at_a_real_tracker_over_udp_and_one_leaves() {
    peers_meet_over("udp").await;
}

#[tokio::test]
async fn a_real_tracker_is_scraped_over_http_and_udp() {
    let hash = InfoHash([0x5C; 20]);
    let tracker = OpenTracker::start(hash).await;
    let (one, mut found) = service(4011);
    add(&one, hash, &tracker.url("udp"), 0);
    found_until(&mut found, "the answer", |_| true).await;
    for scheme in ["http", "udp"] {
        let url = TrackerUrl::parse(&tracker.url(scheme)).unwrap();
        let rows = one.scrape(&url, &[hash, InfoHash([1; 20])], WALL).await.unwrap();
        assert_eq!((rows.len(), rows[0].seeder_count), (2, Some(1)), "{scheme}: {rows:?}");
        assert!(matches!(rows[1].seeder_count, None | Some(0)), "{scheme}: {rows:?}");
    }
    assert_eq!(one.shutdown(Duration::from_secs(5)).await, 0);
}

async fn peers_meet_over(scheme: &str) {
    // One of its own, so that a tracker of another test at the same port is seen to be another.
    let hash = InfoHash([scheme.as_bytes()[0]; 20]);
    let tracker = OpenTracker::start(hash).await;
    let url = tracker.url(scheme);
    let at = |port: u16| SocketAddr::new([127, 0, 0, 1].into(), port);
    let (one, mut found_by_one) = service(4001);
    let (two, mut found_by_two) = service(4002);
    add(&one, hash, &url, 0);
    found_until(&mut found_by_one, "the first peer itself", |peers| peers.contains(&at(4001)))
        .await;
    let left = Arc::new(AtomicU64::new(10));
    let totals = {
        let left = Arc::clone(&left);
        move || Totals { uploaded: 0, downloaded: 0, left: left.load(Relaxed) }
    };
    two.add(hash, &[vec![url.clone()]], Arc::new(totals)).unwrap();
    found_until(&mut found_by_two, "the first peer", |peers| peers.contains(&at(4001))).await;
    let status = two.status(hash).unwrap();
    assert_eq!(status.trackers[0].seeder_count, Some(1));
    assert_eq!(status.trackers[0].leecher_count, Some(1));
    left.store(0, Relaxed);
    assert!(two.completed(hash), "an event, so it does not wait for the interval");
    found_until(&mut found_by_two, "the answer to completed", |_| true).await;
    let download_count = two.status(hash).unwrap().trackers[0].download_count;
    // Its answer over UDP has no place for it.
    assert_eq!(download_count, (scheme == "http").then_some(1));

    assert_eq!(one.shutdown(Duration::from_secs(5)).await, 0);
    let (three, mut found_by_three) = service(4003);
    add(&three, hash, &url, 10);
    found_until(&mut found_by_three, "the second peer without the first", |peers| {
        peers.contains(&at(4002)) && !peers.contains(&at(4001))
    })
    .await;
    assert_eq!(three.shutdown(Duration::from_secs(5)).await, 0);
    assert_eq!(two.shutdown(Duration::from_secs(5)).await, 0);

    let (four, mut found_by_four) = service(4004);
    add(&four, InfoHash([1; 20]), &url, 10);
    let is_refused = || {
        let status = four.status(InfoHash([1; 20])).unwrap();
        status.trackers[0].last.as_ref().is_some_and(|last| last.result.is_err())
    };
    wait_for("the refusal of an unknown torrent", is_refused).await;
    assert!(found_by_four.try_recv().is_err());
    // Over UDP it says so by an empty answer.
    let is_http = scheme == "http";
    let refusal = if is_http { AnnounceResult::Failure } else { AnnounceResult::Http };
    assert_eq!(four.counters().announces().find(|(_, count)| *count > 0), Some((refusal, 1)));
}
