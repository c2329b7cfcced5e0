//! The machine behind UDP trackers in virtual time.

use super::*;
use crate::tracker::udp::Announcement;
use crate::tracker::{Event, Reply, Scraped, Totals};
use crate::units::InfoHash;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    start: Instant,
    now: Instant,
    client: Client,
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tracker() -> SocketAddr {
    at("1.2.3.4:80")
}

fn announcement() -> Ask {
    Ask::Announce(Announcement {
        info_hash: InfoHash([7; 20]),
        totals: Totals::default(),
        event: Event::Started,
        numwant: 9,
        url_data: String::new(),
    })
}

/// What a datagram of ours asks for: its action, and its transaction.
fn asked(datagram: &[u8]) -> (u32, [u8; 4]) {
    let action = u32::from_be_bytes(datagram[8..12].try_into().unwrap());
    (action, datagram[12..16].try_into().unwrap())
}

fn connected(transaction: [u8; 4], connection: u64) -> Vec<u8> {
    [&[0; 4][..], &transaction, &connection.to_be_bytes()].concat()
}

fn announced(transaction: [u8; 4]) -> Vec<u8> {
    [&[0, 0, 0, 1][..], &transaction, &[0, 0, 7, 8], &[0; 4], &[0, 0, 0, 1], &[1, 1, 1, 1, 0, 5]]
        .concat()
}

fn refused(transaction: [u8; 4], text: &str) -> Vec<u8> {
    [&[0, 0, 0, 3][..], &transaction, text.as_bytes()].concat()
}

fn reply() -> Reply {
    Reply {
        interval: Some(Duration::from_secs(1800)),
        seeder_count: Some(1),
        leecher_count: Some(0),
        peers: vec![at("1.1.1.1:5")],
        ..Reply::default()
    }
}

impl World {
    fn new() -> Self {
        let start = crate::sys::clock::now();
        let client = Client::new(PeerId([b'p'; 20]), 6881, 1, 5);
        Self { start, now: start, client }
    }

    fn ask(&mut self, to: SocketAddr, seconds: u32) -> RequestId {
        let deadline = self.now + SECOND * seconds;
        self.client.ask(self.now, to, announcement(), deadline).unwrap()
    }

    /// The one datagram that is to be sent.
    fn sent(&mut self) -> Vec<u8> {
        let (_, datagram) = self.client.poll_transmit().expect("a datagram");
        assert_eq!(self.client.poll_transmit(), None, "only one");
        datagram
    }

    fn receive(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        self.client.handle_datagram(self.now, from, datagram)
    }

    /// Answers the connect that is to be sent.
    fn connect(&mut self, to: SocketAddr, connection: u64) {
        let (action, transaction) = asked(&self.sent());
        assert_eq!(action, 0);
        assert!(self.receive(to, &connected(transaction, connection)));
    }

    /// Lets time pass; gives back what was sent, as seconds since the start and action.
    fn run(&mut self, seconds: u32) -> Vec<(u64, u32)> {
        let end = self.now + SECOND * seconds;
        let mut sent = Vec::new();
        loop {
            while let Some((_, datagram)) = self.client.poll_transmit() {
                sent.push(((self.now - self.start).as_secs(), asked(&datagram).0));
            }
            match self.client.poll_timeout().filter(|at| *at <= end) {
                Some(at) => self.now = at,
                None => break,
            }
            self.client.handle_timeout(self.now);
        }
        self.now = end;
        sent
    }

    fn is_empty(&self) -> bool {
        let client = &self.client;
        client.requests.is_empty() && client.transactions.is_empty() && client.timers.is_empty()
    }
}

#[test]
fn transaction_ids_are_not_those_of_a_simple_generator() {
    let ids = |seed| {
        let mut client = Client::new(PeerId([b'p'; 20]), 6881, 1, seed);
        (0..50).map(|_| client.transaction_ids.next()).collect::<Vec<_>>()
    };
    let unique: BTreeSet<u32> = ids(5).into_iter().collect();
    assert_eq!(unique.len(), 50);
    assert_ne!(ids(5), ids(6));
    let mut simple = fastrand::Rng::with_seed(5);
    assert_ne!(ids(5)[0], simple.u32(..));
}

#[test]
fn an_announce_connects_first_and_others_use_the_connection() {
    let mut world = World::new();
    let one = world.ask(tracker(), 60);
    let two = world.ask(tracker(), 60);
    world.connect(tracker(), 77);
    let mut asked_for = Vec::new();
    while let Some((to, datagram)) = world.client.poll_transmit() {
        assert_eq!((to, &datagram[..8]), (tracker(), &77u64.to_be_bytes()[..]));
        assert_eq!(asked(&datagram).0, 1);
        asked_for.push(asked(&datagram).1);
    }
    for transaction in asked_for {
        assert!(world.receive(tracker(), &announced(transaction)));
    }
    let answer = || Ok(Answer::Announced(Box::new(reply())));
    assert_eq!(world.client.poll_outcome(), Some((one, answer())));
    assert_eq!(world.client.poll_outcome(), Some((two, answer())));
    assert!(world.is_empty());

    world.now += SECOND * 59;
    let three = world.ask(tracker(), 60);
    assert_eq!(asked(&world.sent()).0, 1, "the id is kept for a minute");
    world.client.cancel(three);
    world.now += SECOND;
    world.ask(tracker(), 60);
    assert_eq!(asked(&world.sent()).0, 0, "and not longer");
    world.ask(at("1.2.3.4:81"), 60);
    assert_eq!(asked(&world.sent()).0, 0, "it is of that address only");
}

#[test]
fn what_is_not_answered_is_sent_again_until_the_deadline() {
    let mut world = World::new();
    let id = world.ask(tracker(), 240);
    assert_eq!(world.run(240), [(0, 0), (15, 0), (45, 0), (105, 0), (225, 0)]);
    let timeout = Failure::Timeout(SECOND * 240);
    assert_eq!(world.client.poll_outcome(), Some((id, Err(timeout))));
    assert!(world.is_empty());

    let mut world = World::new();
    world.ask(tracker(), 60);
    world.connect(tracker(), 1);
    assert_eq!(world.run(59), [(0, 1), (15, 1), (45, 1)]);

    let mut world = World::new();
    world.ask(tracker(), 300);
    world.connect(tracker(), 1);
    let sent = world.run(299);
    assert_eq!(sent[..4], [(0, 1), (15, 1), (45, 1), (105, 0)], "the id has expired by then");
    assert!(sent[4..].iter().all(|(_, action)| *action == 0), "{sent:?}");

    let mut world = World::new();
    world.ask(tracker(), 30_000);
    let sent = world.run(30_000);
    let waits: Vec<_> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert_eq!(waits[..9], [15, 30, 60, 120, 240, 480, 960, 1920, 3840]);
    assert!(waits[9..].iter().all(|wait| *wait == 3840), "{waits:?}");
}

#[test]
fn an_answer_counts_whichever_copy_it_answers() {
    let mut world = World::new();
    world.ask(tracker(), 60);
    let (_, transaction) = asked(&world.sent());
    assert_eq!(world.run(16), [(15, 0)]);
    assert!(world.receive(tracker(), &connected(transaction, 5)));
    let (action, transaction) = asked(&world.sent());
    assert_eq!(action, 1);
    assert!(world.receive(tracker(), &announced(transaction)));
    assert!(!world.receive(tracker(), &announced(transaction)), "a copy of the answer");
    assert_eq!(world.client.ignored(), Ignored { transaction: 1, ..Ignored::default() });
}

#[test]
fn forged_torn_and_wrong_datagrams_are_ignored_and_counted() {
    let mut world = World::new();
    let id = world.ask(tracker(), 60);
    let (_, connect) = asked(&world.sent());
    assert!(!world.receive(at("1.2.3.4:81"), &connected(connect, 5)), "another port");
    assert!(!world.receive(at("1.2.3.5:80"), &connected(connect, 5)), "another address");
    assert!(!world.receive(tracker(), &announced(connect)), "not what was asked");
    assert!(!world.receive(tracker(), &connected([1; 4], 5)), "another transaction");
    assert!(!world.receive(tracker(), &connected(connect, 5)[..15]), "torn");
    assert!(!world.receive(tracker(), b"d1:rd2:id"), "a datagram of the DHT");
    assert!(!world.receive(tracker(), b""));
    assert_eq!(
        world.client.ignored(),
        Ignored { malformed: 3, transaction: 1, source: 2, action: 1 }
    );
    assert_eq!(world.client.poll_transmit(), None);
    let mapped = at("[::ffff:1.2.3.4]:80");
    assert!(
        world.receive(mapped, &connected(connect, 5)),
        "the same address, as some sockets see it"
    );
    let (_, announce) = asked(&world.sent());
    assert!(!world.receive(tracker(), &connected(announce, 6)));
    assert!(!world.receive(tracker(), &announced(announce)[..19]), "short");
    let scraped = [&[0, 0, 0, 2][..], &announce, &[0; 12]].concat();
    assert!(!world.receive(tracker(), &scraped), "not what was asked");
    assert_eq!(world.client.poll_outcome(), None);
    assert!(world.receive(tracker(), &announced(announce)));
    assert_eq!(world.client.poll_outcome().map(|(of, _)| of), Some(id));
    assert!(world.is_empty());
}

#[test]
fn a_flood_of_datagrams_makes_nothing_grow() {
    let mut world = World::new();
    world.ask(tracker(), 60);
    world.sent();
    let seed = 9;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..100_000 {
        let mut bytes: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect();
        bytes.iter_mut().take(3).for_each(|byte| *byte = 0);
        assert!(!world.receive(tracker(), &bytes), "seed {seed}");
    }
    let client = &world.client;
    assert_eq!((client.links.len(), client.requests.len(), client.timers.len()), (1, 1, 2));
    assert!(client.outgoing.is_empty() && client.outcomes.is_empty());
    let Ignored { malformed, transaction, .. } = client.ignored();
    assert_eq!(malformed + transaction, 100_000);
}

#[test]
fn errors_end_what_they_answer() {
    let mut world = World::new();
    let one = world.ask(tracker(), 60);
    let two = world.ask(tracker(), 60);
    let (_, connect) = asked(&world.sent());
    assert!(world.receive(tracker(), &refused(connect, "go away\x1b")));
    let failure = || Err(Failure::Reason { reason: "go away\\u{1b}".into(), retry: None });
    assert_eq!(world.client.poll_outcome(), Some((one, failure())));
    assert_eq!(world.client.poll_outcome(), Some((two, failure())));
    assert!(world.is_empty());
}

#[test]
fn a_tracker_that_forgot_the_connection_is_connected_to_again_once() {
    let mut world = World::new();
    let id = world.ask(tracker(), 60);
    world.connect(tracker(), 1);
    let (_, announce) = asked(&world.sent());
    assert!(world.receive(tracker(), &refused(announce, "Connection ID missmatch.")));
    assert_eq!(world.client.poll_outcome(), None);
    world.connect(tracker(), 2);
    let again = world.sent();
    assert_eq!(again[..8], 2u64.to_be_bytes());
    assert!(world.receive(tracker(), &refused(asked(&again).1, "Connection ID missmatch.")));
    let outcome = world.client.poll_outcome().unwrap();
    assert!(outcome.0 == id && matches!(outcome.1, Err(Failure::Reason { .. })));
    assert!(world.is_empty());
}

#[test]
fn a_scrape_takes_no_more_rows_than_it_asked_for() {
    let mut world = World::new();
    let torrents = vec![InfoHash([1; 20]), InfoHash([2; 20])];
    let deadline = world.now + SECOND * 60;
    let ask = Ask::Scrape(torrents);
    let id = world.client.ask(world.now, at("[2a00::1]:80"), ask, deadline).unwrap();
    world.connect(at("[2a00::1]:80"), 1);
    let datagram = world.sent();
    assert_eq!(datagram.len(), 16 + 40);
    let rows: Vec<u8> = (1..=9u32).flat_map(u32::to_be_bytes).collect();
    let answer = [&[0, 0, 0, 2][..], &asked(&datagram).1, &rows].concat();
    assert!(world.receive(at("[2a00::1]:80"), &answer));
    let row = |seeders, downloads, leechers| Scraped {
        seeder_count: Some(seeders),
        download_count: Some(downloads),
        leecher_count: Some(leechers),
    };
    let expected = Answer::Scraped(vec![row(1, 2, 3), row(4, 5, 6)]);
    assert_eq!(world.client.poll_outcome(), Some((id, Ok(expected))));
}

#[test]
fn what_is_not_wanted_any_more_is_dropped() {
    let mut world = World::new();
    let one = world.ask(tracker(), 60);
    let two = world.ask(tracker(), 60);
    world.client.cancel(one);
    world.sent();
    assert_eq!(world.run(16), [(15, 0)], "the other one still waits");
    world.client.cancel(two);
    assert!(world.is_empty());
    assert_eq!(world.run(600), []);
    world.ask(tracker(), 60);
    world.client.handle_unreachable(tracker(), "no route");
    let outcome = world.client.poll_outcome().map(|(_, result)| result);
    assert_eq!(outcome, Some(Err(Failure::Connect("no route".into()))));
    assert!(world.is_empty());
}

#[test]
fn the_tables_have_an_end() {
    let mut world = World::new();
    for _ in 0..REQUESTS_MAX {
        world.ask(tracker(), 60);
    }
    let deadline = world.now + SECOND * 60;
    let more = world.client.ask(world.now, tracker(), announcement(), deadline);
    assert_eq!(more.unwrap_err().label(), "connect");

    let mut world = World::new();
    for index in 0..u32::try_from(LINKS_MAX).unwrap() + 10 {
        let to = SocketAddr::new(std::net::Ipv4Addr::from_bits(index + (1 << 24)).into(), 80);
        let id = world.ask(to, 60);
        world.client.cancel(id);
        world.client.poll_transmit();
    }
    assert!(world.client.links.len() <= LINKS_MAX && world.is_empty());
}
