//! UDP trackers over real sockets: a scripted one, and what it does wrong on purpose.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use seedring::metrics::{AnnounceResult, Registry};
use seedring::sys::net::Bind;
use seedring::tracker::http::HttpConfig;
use seedring::tracker::udp::{Ignored, SCRAPE_MAX};
use seedring::tracker::{
    AddressPolicy, Announce, Config, Event, Executor, Failure, Reply, Scraped, Service, Totals,
    TrackerUrl,
};
use seedring::units::{InfoHash, PeerId};
use tokio::net::UdpSocket;

use super::{HASH, Script, Server, WALL, add, answer, open_policy, wait_for, within};

/// One datagram that came in.
#[derive(Clone, Debug)]
struct Request {
    action: u32,
    transaction: [u8; 4],
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// A UDP tracker of the tests; it remembers what it was asked.
struct UdpTracker {
    at: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for UdpTracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl UdpTracker {
    /// Sends what `respond` says, each datagram by itself.
    async fn start(
        at: &str,
        respond: impl Fn(&Request) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let socket = UdpSocket::bind(at).await.unwrap();
        let at = socket.local_addr().unwrap();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let kept = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let bytes = buffer[..len].to_vec();
                let action = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
                let transaction = bytes[12..16].try_into().unwrap();
                let request = Request { action, transaction, from, bytes };
                let answers = respond(&request);
                kept.lock().unwrap().push(request);
                for answer in answers {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self { at, requests, task }
    }

    /// One that answers as it should.
    async fn honest(at: &str) -> Self {
        let is_ipv4 = at.starts_with('1');
        Self::start(at, move |request| vec![honest(request, is_ipv4)]).await
    }

    fn url(&self) -> String {
        format!("udp://{}/announce", self.at)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn count(&self, action: u32) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.action == action).count()
    }
}

const CONNECTION: u64 = 0x0123_4567_89AB_CDEF;

fn connected(request: &Request) -> Vec<u8> {
    [&[0; 4][..], &request.transaction, &CONNECTION.to_be_bytes()].concat()
}

/// The right answer: one peer, or a row for each torrent.
fn honest(request: &Request, is_ipv4: bool) -> Vec<u8> {
    let peer: &[u8] = if is_ipv4 {
        &[127, 0, 0, 1, 0, 4]
    } else {
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 6]
    };
    match request.action {
        0 => connected(request),
        1 => {
            let numbers = [0, 0, 3, 0x84, 0, 0, 0, 2, 0, 0, 0, 5];
            [&[0, 0, 0, 1][..], &request.transaction, &numbers, peer].concat()
        }
        _ => {
            let rows = request.bytes[16..].chunks(20).flat_map(|hash| {
                let seeders = u32::from(hash[0]);
                [seeders, 7, 1].into_iter().flat_map(u32::to_be_bytes)
            });
            [&[0, 0, 0, 2][..], &request.transaction, &rows.collect::<Vec<_>>()].concat()
        }
    }
}

fn executor(policy: AddressPolicy, bind: Option<Bind>) -> Executor {
    let peer_id = PeerId(*b"-sg0100-abcdefghijkl");
    Executor::new(HttpConfig { peer_id, port: 6881, key: 7, policy, bind }, 3, None).unwrap()
}

async fn announce(executor: &Executor, url: &str, wall: Duration) -> Result<Reply, Failure> {
    let url = TrackerUrl::parse(url).unwrap();
    let announce = Announce { slot: 0, url, event: Event::Started, numwant: 50, tracker_id: None };
    executor.announce(HASH, &announce, Totals { uploaded: 1, downloaded: 2, left: 3 }, wall).await
}

#[tokio::test]
async fn an_announce_says_what_bep_15_asks_for() {
    let tracker = UdpTracker::start("127.0.0.1:0", |request| {
        let mut answer = honest(request, true);
        if request.action == 1 {
            answer.extend([10, 0, 0, 1, 0, 1, 224, 0, 0, 1, 0, 1]);
        }
        vec![answer]
    })
    .await;
    let executor = executor(open_policy(), None);
    let url = format!("udp://{}/a?pass=x", tracker.at);
    let reply = announce(&executor, &url, WALL).await.unwrap();
    assert_eq!(reply.interval, Some(Duration::from_secs(900)));
    assert_eq!((reply.seeder_count, reply.leecher_count), (Some(5), Some(2)));
    assert_eq!(reply.peers, ["127.0.0.1:4".parse().unwrap()], "others are closed by the policy");
    assert_eq!((reply.dropped_count, reply.external_ip), (2, None));
    announce(&executor, &url, WALL).await.unwrap();
    let requests = tracker.requests();
    let actions: Vec<_> = requests.iter().map(|request| request.action).collect();
    assert_eq!(actions, [0, 1, 1], "the connection is used again");
    let bytes = &requests[1].bytes;
    assert_eq!(bytes[..8], CONNECTION.to_be_bytes());
    assert_eq!((&bytes[16..36], &bytes[36..56]), (&HASH.0[..], &b"-sg0100-abcdefghijkl"[..]));
    let numbers: Vec<_> = bytes[56..80].chunks(8).map(|it| it[7]).collect();
    assert_eq!(numbers, [2, 3, 1], "downloaded, left, uploaded");
    assert_eq!(bytes[80..96], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 50]);
    assert_eq!(bytes[96..], *b"\x1a\xe1\x02\x09/a?pass=x");
}

#[tokio::test]
async fn forged_short_and_foreign_datagrams_disturb_nothing() {
    let forger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tracker = UdpTracker::start("127.0.0.1:0", move |request| {
        let good = honest(request, true);
        let mut poisoned = good.clone();
        poisoned.extend([6, 6, 6, 6, 0, 6]);
        // It knows the transaction and comes first, but from elsewhere.
        forger.send_to(&poisoned, request.from).unwrap();
        let mut unknown = good.clone();
        unknown[4] ^= 1;
        let mut action = good.clone();
        action[3] ^= 1;
        action.resize(64, 0);
        let dht = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe".to_vec();
        vec![vec![], dht, good[..10].to_vec(), unknown, action, good.clone(), good]
    })
    .await;
    let executor = executor(open_policy(), None);
    let reply = announce(&executor, &tracker.url(), WALL).await.unwrap();
    assert_eq!(reply.peers, ["127.0.0.1:4".parse().unwrap()]);
    let expected = Ignored { malformed: 6, transaction: 4, source: 2, action: 2 };
    wait_for("the last copy", || executor.udp().ignored() == expected).await;
}

#[tokio::test]
async fn each_family_is_told_by_itself() {
    let v4 = UdpTracker::honest("127.0.0.1:0").await;
    let v6 = UdpTracker::honest(&format!("[::1]:{}", v4.at.port())).await;
    let executor = executor(open_policy(), None);
    let reply = announce(&executor, &v6.url(), WALL).await.unwrap();
    assert_eq!(reply.peers, ["[::1]:6".parse().unwrap()], "18 bytes each");
    let name = ("localhost", v4.at.port());
    let known: Vec<_> = tokio::net::lookup_host(name).await.unwrap().collect();
    let url = format!("udp://localhost:{}", v4.at.port());
    let reply = announce(&executor, &url, WALL).await.unwrap();
    let told = |port| reply.peers.iter().any(|peer| peer.port() == port);
    assert_eq!(told(4), known.iter().any(SocketAddr::is_ipv4), "{known:?}");
    assert_eq!(told(6), known.iter().any(SocketAddr::is_ipv6), "{known:?}");
}

#[tokio::test]
async fn nothing_is_sent_where_it_must_not_go() {
    let tracker = UdpTracker::honest("127.0.0.1:0").await;
    let port = tracker.at.port();
    let closed = executor(AddressPolicy::default(), None);
    for url in [
        format!("udp://127.0.0.1:{port}/a"),
        format!("udp://0x7f000001:{port}/a"),
        format!("udp://[::ffff:127.0.0.1]:{port}/a"),
        format!("udp://localhost:{port}/a"),
        format!("udp://169.254.169.254:{port}/a"),
    ] {
        let failed = announce(&closed, &url, WALL).await.unwrap_err();
        assert_eq!(failed.label(), "refused", "{url}: {failed}");
    }
    assert!(tracker.requests().is_empty(), "not even a datagram");

    let bound = executor(open_policy(), Some(Bind::Address("127.0.0.9".parse().unwrap())));
    announce(&bound, &tracker.url(), WALL).await.unwrap();
    let from = tracker.requests()[0].from.ip();
    assert_eq!(from, "127.0.0.9".parse::<IpAddr>().unwrap());
    // A host of the other family cannot be reached from there, and nothing goes around it.
    let failed = announce(&bound, "udp://[::1]:9/a", WALL).await.unwrap_err();
    assert_eq!(failed.label(), "dns", "{failed}");
}

#[tokio::test]
async fn refusals_and_silence_have_their_names() {
    let refusing = UdpTracker::start("127.0.0.1:0", |request| match request.action {
        0 => vec![connected(request)],
        _ => vec![[&[0, 0, 0, 3][..], &request.transaction, b"not registered\x1b"].concat()],
    })
    .await;
    let executor = executor(open_policy(), None);
    let failed = announce(&executor, &refusing.url(), WALL).await.unwrap_err();
    let reason = "not registered\\u{1b}".to_owned();
    assert_eq!(failed, Failure::Reason { reason, retry: None });
    assert!(failed.is_unregistered());

    let silent = UdpTracker::start("127.0.0.1:0", |_| vec![]).await;
    let wall = Duration::from_millis(200);
    let failed = announce(&executor, &silent.url(), wall).await.unwrap_err();
    assert_eq!(failed, Failure::Timeout(wall));
    assert_eq!(silent.count(0), 1, "15 s have not passed");
    let failed = announce(&executor, "udp://no-such-name.invalid:1/a?key=secret", WALL).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.label(), "dns", "{failed}");
}

#[tokio::test]
async fn many_torrents_are_scraped_at_once_by_either_kind() {
    let hashes: Vec<_> = (0..80u8).map(|index| InfoHash([index; 20])).collect();
    let executor = executor(open_policy(), None);
    let tracker = UdpTracker::honest("127.0.0.1:0").await;
    let url = TrackerUrl::parse(&tracker.url()).unwrap();
    let rows = executor.scrape(&url, &hashes, WALL).await.unwrap();
    let row = |seeders| Scraped {
        seeder_count: Some(seeders),
        download_count: Some(7),
        leecher_count: Some(1),
    };
    assert_eq!(rows, (0..80).map(row).collect::<Vec<_>>());
    assert_eq!((tracker.count(0), tracker.count(2)), (1, 2));
    let len = 16 + 20 * SCRAPE_MAX;
    assert_eq!(tracker.requests()[1].bytes.len(), len);

    let server = Server::start("127.0.0.1:0", |request| {
        assert!(request.starts_with("GET /x/scrape?key=1&info_hash="), "{request}");
        let row = format!("20:{}d8:completei3e10:downloadedi7e10:incompletei1ee", "A".repeat(20));
        Script::Keep(format!("d5:filesd{row}ee").into_bytes())
    })
    .await;
    let url = TrackerUrl::parse(&format!("http://{}/x/announce?key=1", server.at)).unwrap();
    let hashes = [InfoHash([b'A'; 20]), InfoHash([b'B'; 20])];
    let rows = executor.scrape(&url, &hashes, WALL).await.unwrap();
    assert_eq!(rows, [row(3), Scraped::default()]);
    let query = format!("info_hash={}&info_hash={} ", "A".repeat(20), "B".repeat(20));
    assert!(server.requests()[0].contains(&query), "{:?}", server.requests());
    let nowhere = TrackerUrl::parse(&format!("http://{}/x", server.at)).unwrap();
    let failed = executor.scrape(&nowhere, &hashes, WALL).await.unwrap_err();
    assert_eq!(failed.label(), "refused", "{failed}");
}

/// A service whose patience is short, and the registry that it counts into.
fn impatient(
    parallel_tiers: bool,
) -> (super::Handle, tokio::sync::mpsc::Receiver<super::Found>, Registry) {
    let registry = Registry::new(1);
    let mut config = Config::new(PeerId([b'a'; 20]), 9, 4);
    config.policy = open_policy();
    config.options.patience = Duration::from_millis(150);
    config.options.parallel_tiers = parallel_tiers;
    config.announce_wall = Duration::from_secs(2);
    config.datagram_wall = Duration::from_secs(2);
    config.cells = Arc::clone(registry.process());
    config.tracker_announces = registry.tracker_announces().clone();
    let (handle, found) = Service::spawn(config).unwrap();
    (handle, found, registry)
}

#[tokio::test]
async fn a_silent_tracker_leaves_the_next_tier_its_turn() {
    let silent = UdpTracker::start("127.0.0.1:0", |_| vec![]).await;
    let server = Server::start("127.0.0.1:0", |_| answer(b"d5:peers6:\x7f\0\0\x01\0\x09e")).await;
    let (handle, mut found, registry) = impatient(false);
    let totals = || Totals { uploaded: 0, downloaded: 0, left: 1 };
    let tiers = [vec![silent.url()], vec![server.url()]];
    handle.add(HASH, &tiers, Arc::new(totals)).unwrap();
    let found = within("a peer of the second tier", found.recv()).await.unwrap();
    assert_eq!(found.peers, ["127.0.0.1:9".parse().unwrap()]);
    let first = || handle.status(HASH).unwrap().trackers[0].clone();
    assert!(first().is_announcing, "its own announce goes on");
    wait_for("its timeout", || first().failure_count == 1).await;
    assert!(first().next_at.is_some(), "and its own back-off");
    let count = |result| {
        let mut counts = handle.counters().announces();
        counts.find(|(label, _)| *label == result).unwrap().1
    };
    assert_eq!((count(AnnounceResult::Ok), count(AnnounceResult::Timeout)), (1, 1));
    let text = registry.render();
    let is_counted = |host: &str, result: &str| {
        let has = |line: &str| line.contains(host) && line.contains(&format!("\"{result}\""));
        text.lines().any(|line| {
            line.starts_with("seedring_tracker_announces_total")
                && has(line)
                && line.ends_with(" 1")
        })
    };
    assert!(is_counted(&format!("udp://{}", silent.at), "timeout"), "{text}");
    assert!(is_counted(&format!("http://{}", server.at), "ok"), "{text}");
    assert!(text.contains("seedring_announce_seconds_count{protocol=\"http\"} 1"), "{text}");
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, 0);
    let lines = server.requests();
    assert!(lines.last().unwrap().contains("event=stopped"), "{lines:?}");
}

/// The announce bench in small: some trackers refuse, some accept and are silent.
#[tokio::test]
async fn many_torrents_pass_dead_trackers_in_time_and_within_the_limits() {
    const TORRENTS: u16 = 600;
    let (mut http, mut udp) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        http.push(Server::start("127.0.0.1:0", |_| Script::Keep(b"de".to_vec())).await);
        udp.push(UdpTracker::honest("127.0.0.1:0").await);
    }
    let silent_udp = UdpTracker::start("127.0.0.1:0", |_| vec![]).await;
    let silent_http = Server::start("127.0.0.1:0", |_| Script::Stall(Vec::new())).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = format!("http://{free}/announce");
    let dead = [silent_udp.url(), silent_http.url(), refused];
    let alive: Vec<_> =
        http.iter().map(Server::url).chain(udp.iter().map(UdpTracker::url)).collect();
    let (handle, _found, _registry) = impatient(true);
    for index in 0..TORRENTS {
        let mut hash = [0; 20];
        hash[..2].copy_from_slice(&index.to_be_bytes());
        let index = usize::from(index);
        let tiers =
            [vec![dead[index % dead.len()].clone()], vec![alive[index % alive.len()].clone()]];
        handle.add(InfoHash(hash), &tiers, Arc::new(Totals::default)).unwrap();
    }
    let heard = || {
        let over_http: usize = http.iter().map(|server| server.requests().len()).sum();
        over_http + udp.iter().map(|tracker| tracker.count(1)).sum::<usize>()
    };
    let mut peak = 0;
    wait_for("all announces to the living", || {
        peak = peak.max(handle.counters().in_flight.load(super::Relaxed));
        heard() >= usize::from(TORRENTS)
    })
    .await;
    assert_eq!(heard(), usize::from(TORRENTS), "each once");
    assert!((1..=50).contains(&peak), "{peak}");
    let tried = silent_http.requests().len() + silent_udp.count(0);
    assert!((2..=12).contains(&tried), "dead ones are tried a few times, not {tried}");
}

#[tokio::test]
async fn the_service_says_hello_and_goodbye_over_udp() {
    let udp = UdpTracker::honest("127.0.0.1:0").await;
    let (handle, mut found, _registry) = impatient(false);
    add(&handle, HASH, &udp.url(), 5);
    let found = within("a peer over UDP", found.recv()).await.unwrap();
    assert_eq!(found.peers, ["127.0.0.1:4".parse().unwrap()]);
    assert!(handle.completed(HASH));
    wait_for("completed", || udp.count(1) == 2).await;
    assert_eq!(handle.shutdown(Duration::from_secs(5)).await, 0);
    let events: Vec<_> =
        udp.requests().iter().filter(|it| it.action == 1).map(|it| it.bytes[83]).collect();
    assert_eq!(events, [2, 1, 3], "started, completed, stopped");
    assert_eq!(udp.count(0), 1);
}
