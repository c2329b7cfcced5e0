//! A node among a few others, datagram by datagram.
#![forbid(unsafe_code)]

use super::*;
use crate::dht::counters::{Answered, Asked, Method};
use crate::dht::encode::{AMPLIFICATION_MAX, QueryOut, ReplyOut};
use crate::dht::krpc::{Args, Query, Reply};
use crate::dht::tests::start;
use std::collections::BTreeSet;

const SAYS: Announce = Announce { port: 7000, is_seed: true };
const FOREVER: Duration = Duration::from_secs(1_000_000);
const HASH: InfoHash = InfoHash([0x77; 20]);

fn addr(host: u8) -> SocketAddr {
    ([8, host, 8, 8], 6881).into()
}

fn config(local: SocketAddr, seed: u64) -> Config {
    let mut secret = [0; 32];
    fastrand::Rng::with_seed(seed).fill(&mut secret);
    Config::new(local, AddressPolicy::default(), secret, seed)
}

fn node(now: Instant, host: u8) -> Node {
    Node::new(now, config(addr(host), u64::from(host)))
}

/// A few nodes on a network without loss and with a delay of 20 ms.
struct World {
    now: Instant,
    nodes: Vec<Node>,
    wire: VecDeque<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
    events: Vec<(usize, Event)>,
}

impl World {
    fn new(count: u8) -> Self {
        let now = start();
        let mut nodes: Vec<_> = (0..count).map(|host| node(now, host)).collect();
        nodes.iter_mut().skip(1).for_each(|node| node.set_bootstrap(now, &[addr(0)]));
        Self { now, nodes, wire: VecDeque::new(), events: Vec::new() }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.drain();
            let timeouts = self.nodes.iter().map(|node| node.poll_timeout(self.now));
            let arrival = self.wire.front().map(|datagram| datagram.0);
            let next = timeouts.chain(arrival).min().unwrap().max(self.now);
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
            while self.wire.front().is_some_and(|datagram| datagram.0 <= next) {
                let (_, from, to, datagram) = self.wire.pop_front().unwrap();
                let found = self.nodes.iter_mut().find(|node| node.gate.local == to);
                found.into_iter().for_each(|it| it.handle_datagram(next, from, &datagram, None));
            }
            for node in &mut self.nodes {
                if node.poll_timeout(next) <= next {
                    node.handle_timeout(next);
                }
                node.schedule.check_invariants();
                node.table.check_invariants();
            }
        }
    }

    fn drain(&mut self) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let from = node.gate.local;
            while let Some((to, datagram)) = node.poll_transmit() {
                let at = self.now + Duration::from_millis(20);
                self.wire.push_back((at, from, to, datagram));
            }
            self.events.extend(std::iter::from_fn(|| node.poll_event()).map(|it| (index, it)));
        }
    }

    fn peers_found(&self, index: usize) -> BTreeSet<SocketAddr> {
        let of_node = self.events.iter().filter(|(it, _)| *it == index);
        of_node
            .filter_map(|(_, event)| match event {
                Event::Peers { peers, .. } => Some(peers.clone()),
                _ => None,
            })
            .flatten()
            .collect()
    }
}

fn query_bytes(id: NodeId, args: &Args) -> Vec<u8> {
    let query = QueryOut {
        transaction: b"tt",
        id: &id,
        is_read_only: true,
        wants_both: false,
        args,
        port: 7000,
    };
    query.encode()
}

/// Asks `node` from `from`, and gives its answer.
fn ask(node: &mut Node, now: Instant, from: SocketAddr, args: &Args) -> Option<Message> {
    node.handle_datagram(now, from, &query_bytes(NodeId([3; 20]), args), None);
    let (to, datagram) = node.poll_transmit()?;
    assert_eq!(to, from);
    Some(Message::parse(&datagram).unwrap())
}

fn reply_of(message: Option<Message>) -> Reply {
    match message.map(|message| message.body) {
        Some(Body::Reply(reply)) => reply,
        other => panic!("{other:?}"),
    }
}

fn get_peers() -> Args {
    Args::GetPeers { info_hash: HASH, scrape: false, no_seeds: false }
}

#[test]
fn nodes_find_each_other_and_their_peers() {
    let mut world = World::new(20);
    world.run(Duration::from_secs(30));
    for node in &world.nodes {
        assert!(node.gauges(world.now).good_count >= K, "{:?}", node.gauges(world.now));
        assert_eq!(node.external_ip(), Some(node.gate.local.ip()), "they tell each other");
        assert!(node.id().is_valid_for(node.gate.local.ip()));
    }
    let now = world.now;
    assert!(world.nodes[5].add_torrent(now, HASH, SAYS));
    world.run(Duration::from_secs(5));
    assert!(world.nodes[9].find_peers(HASH));
    world.run(Duration::from_secs(5));
    let peer = SocketAddr::new(addr(5).ip(), 7000);
    assert_eq!(world.peers_found(9), BTreeSet::from([peer]));
    assert!(world.nodes[11].scrape(HASH));
    world.run(Duration::from_secs(5));
    let done = world.events.iter().filter_map(|(_, event)| match event {
        Event::Done { task, outcome, .. } => Some((*task, *outcome)),
        _ => None,
    });
    let done: Vec<_> = done.collect();
    assert_eq!(done.len(), 3);
    assert_eq!((done[0].0, done[0].1.announce_count), (Task::Announce, K));
    assert_eq!((done[1].0, done[1].1.peer_count), (Task::FindPeers, 1));
    assert_eq!((done[2].0, done[2].1.estimate), (Task::Scrape, Some((1, 0))));
    assert!(world.nodes[5].counters().announce_count >= 8);
}

#[test]
fn torrents_are_announced_again_until_they_are_removed() {
    let mut world = World::new(10);
    world.run(Duration::from_secs(10));
    let now = world.now;
    world.nodes[1].add_torrent(now, HASH, SAYS);
    world.run(Duration::from_secs(3600));
    let announces = world.nodes[1].counters().lookup_count;
    let done =
        world.events.iter().filter(|(at, it)| *at == 1 && matches!(it, Event::Done { .. })).count();
    assert!((4..=5).contains(&done), "{done} in an hour, of {announces} lookups");
    world.nodes[1].remove_torrent(HASH);
    world.events.clear();
    world.run(Duration::from_secs(3600));
    assert!(!world.events.iter().any(|(_, event)| matches!(event, Event::Done { .. })));
    let (hash_count, peer_count) = world.nodes[2].store.counts();
    assert_eq!((hash_count, peer_count), (0, 0), "it expired");
}

#[test]
fn a_thousand_torrents_are_no_storm() {
    let mut world = World::new(10);
    world.run(Duration::from_secs(10));
    let now = world.now;
    for number in 0..1000u32 {
        let mut hash = [0x55; 20];
        hash[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
        world.nodes[1].add_torrent(now, InfoHash(hash), SAYS);
    }
    let mut seconds = 0;
    while world.nodes[1].gauges(world.now).overdue_count > 0
        || world.events.iter().filter(|(_, it)| matches!(it, Event::Done { .. })).count() < 1000
    {
        world.run(Duration::from_secs(1));
        seconds += 1;
        let gauges = world.nodes[1].gauges(world.now);
        assert!(gauges.lookup_count <= LOOKUPS_MAX + 2, "{gauges:?}");
        assert!(gauges.pending_count < 1000, "{gauges:?}");
        assert!(seconds < 120, "{gauges:?}");
    }
    assert!(seconds >= 45, "at most 20 start in a second, but all ended within {seconds} s");
}

#[test]
fn tokens_are_needed_to_announce() {
    let now = start();
    let mut node = node(now, 1);
    let announce = |token: &[u8], port| Args::AnnouncePeer {
        info_hash: HASH,
        port,
        token: token.into(),
        is_seed: false,
    };
    let token = reply_of(ask(&mut node, now, addr(2), &get_peers())).token.unwrap();
    for (from, args) in [
        (addr(2), announce(b"", Some(7000))),
        (addr(2), announce(b"12345678", Some(7000))),
        (addr(3), announce(&token, Some(7000))),
        (addr(2), announce(&token, Some(80))),
    ] {
        assert_eq!(ask(&mut node, now, from, &args).unwrap().body, Body::Error, "{args:?}");
    }
    assert_eq!(node.store.counts(), (0, 0));
    reply_of(ask(&mut node, now, addr(2), &announce(&token, Some(7000))));
    reply_of(ask(&mut node, now, addr(2), &announce(&token, None)));
    let peers: BTreeSet<_> =
        reply_of(ask(&mut node, now, addr(4), &get_peers())).values.into_iter().collect();
    assert_eq!(peers, BTreeSet::from([addr(2), SocketAddr::new(addr(2).ip(), 7000)]));
    let late = now + Duration::from_secs(601);
    let stale = announce(&token, Some(7000));
    assert_eq!(ask(&mut node, late, addr(2), &stale).unwrap().body, Body::Error);
    assert_eq!(node.counters().answered(Method::AnnouncePeer, Answered::Error), 5);
}

#[test]
fn answers_are_limited_per_host_and_in_all_and_never_much_longer_than_queries() {
    let now = start();
    let mut node = node(now, 1);
    let answered = |node: &mut Node, from: SocketAddr| {
        (0..1000).filter(|_| ask(node, now, from, &Args::Ping).is_some()).count()
    };
    assert_eq!(answered(&mut node, addr(2)), 50);
    let (mut sent_len, mut count) = (0, 0);
    for host in 0..250 {
        for low in 0..4 {
            let from: SocketAddr = ([9, host, low, 1], 6881).into();
            let query = query_bytes(NodeId([3; 20]), &get_peers());
            node.handle_datagram(now, from, &query, None);
            while let Some((_, datagram)) = node.poll_transmit() {
                assert!(datagram.len() <= query.len() * AMPLIFICATION_MAX);
                sent_len += datagram.len();
                count += 1;
            }
        }
    }
    assert!(count > 20 && sent_len <= 16_384, "{count} answers of {sent_len} bytes");
    assert!(node.counters().answered(Method::GetPeers, Answered::Limited) > 800);
}

#[test]
fn one_network_cannot_use_up_the_limits_of_all() {
    let now = start();
    let local = "[2001:4860::1]:6881".parse().unwrap();
    let mut node = Node::new(now, config(local, 1));
    let from = |net: u16, host: u64| {
        let bits = 0x2a00 << 112 | u128::from(net) << 64 | u128::from(host);
        SocketAddr::new(std::net::Ipv6Addr::from_bits(bits).into(), 6881)
    };
    let mut answered = 0;
    for host in 1..=limiter::SOURCES_MAX as u64 + 1 {
        answered += u32::from(ask(&mut node, now, from(1, host), &Args::Ping).is_some());
    }
    assert_eq!(answered, limiter::HOST_BURST);
    assert!(ask(&mut node, now, from(2, 1), &Args::Ping).is_some(), "another network");
}

#[test]
fn answers_are_not_sent_to_addresses_that_others_forge() {
    let now = start();
    let mut node = node(now, 1);
    let forged = [
        ("1.2.3.4:53", Dropped::Port),
        ("1.2.3.4:0", Dropped::Port),
        ("127.0.0.1:6881", Dropped::Address),
        ("10.0.0.1:6881", Dropped::Address),
        ("224.0.0.1:6881", Dropped::Address),
        ("8.1.8.8:6881", Dropped::Ourselves),
        ("[2a00::1]:6881", Dropped::Family),
    ];
    for (from, reason) in forged {
        let before = node.counters().dropped(reason);
        assert_eq!(ask(&mut node, now, from.parse().unwrap(), &Args::Ping), None, "{from}");
        assert_eq!(node.counters().dropped(reason), before + 1, "{from}");
    }
    let own = node.id();
    node.handle_datagram(now, addr(2), &query_bytes(own, &Args::Ping), None);
    assert_eq!(node.poll_transmit(), None, "nobody else has our id");
}

#[test]
fn read_only_nodes_are_not_kept_and_answer_nothing() {
    let now = start();
    let mut one = node(now, 1);
    assert!(ask(&mut one, now, addr(2), &Args::Ping).is_some());
    assert!(one.candidates.is_empty(), "the asker says that it is read-only");
    let asker = QueryOut {
        transaction: b"tt",
        id: &NodeId([3; 20]),
        is_read_only: false,
        wants_both: false,
        args: &Args::Ping,
        port: 0,
    };
    one.handle_datagram(now, addr(2), &asker.encode(), None);
    assert_eq!(one.candidates, [addr(2)]);
    let mut silent = Node::new(now, Config { is_read_only: true, ..config(addr(1), 1) });
    assert_eq!(ask(&mut silent, now, addr(2), &Args::Ping), None);
    assert_eq!(silent.counters().dropped(Dropped::ReadOnly), 1);
    silent.insert_node(addr(2));
    silent.handle_timeout(now);
    let (_, datagram) = silent.poll_transmit().unwrap();
    let Body::Query(Query { is_read_only, .. }) = Message::parse(&datagram).unwrap().body else {
        panic!()
    };
    assert!(is_read_only);
}

/// A node with one lookup on its way, and its first query.
fn asking(now: Instant) -> (Node, Contact, Vec<u8>) {
    let mut node = node(now, 1);
    (node.bootstrap_at, node.tick_at) = (now + FOREVER, now + FOREVER);
    let other = Contact { id: NodeId([5; 20]), addr: addr(2) };
    node.table.handle_reply(now, other);
    node.find_peers(HASH);
    node.handle_timeout(now);
    let datagrams = std::iter::from_fn(|| node.poll_transmit());
    let query = datagrams.map(|(_, datagram)| Message::parse(&datagram).unwrap());
    let is_lookup = |message: &Message| matches!(&message.body, Body::Query(query) if matches!(query.args, Args::GetPeers { .. }));
    let transaction = query.into_iter().find(is_lookup).unwrap().transaction;
    (node, other, transaction)
}

fn forged_reply(from: Contact, transaction: &[u8]) -> Vec<u8> {
    let nodes = [
        ([0, 0, 0, 0], 6881),
        ([127, 0, 0, 1], 6881),
        ([224, 0, 0, 1], 6881),
        ([9, 9, 9, 9], 53),
        ([8, 1, 8, 8], 6881),
        ([9, 9, 9, 9], 6881),
    ];
    let contact =
        |(ip, port): ([u8; 4], u16)| Contact { id: NodeId(HASH.0), addr: (ip, port).into() };
    let reply = ReplyOut {
        transaction,
        id: Some(from.id),
        asker: Some(addr(1)),
        nodes: nodes.map(contact).into(),
        lists: (true, false),
        values: nodes.map(|(ip, port)| (ip, port).into()).into(),
        ..ReplyOut::default()
    };
    reply.encode(DATAGRAM_LEN_MAX).unwrap()
}

#[test]
fn poisoned_nodes_and_peers_are_skipped() {
    let now = start();
    let (mut node, other, transaction) = asking(now);
    node.handle_datagram(now, other.addr, &forged_reply(other, &transaction), None);
    assert_eq!(node.counters().poisoned_count, 10);
    let good: SocketAddr = ([9, 9, 9, 9], 6881).into();
    assert_eq!(node.poll_event(), Some(Event::Peers { info_hash: HASH, peers: vec![good] }));
    let asked: Vec<_> = std::iter::from_fn(|| node.poll_transmit()).map(|it| it.0).collect();
    assert_eq!(asked, [good]);
}

#[test]
fn answers_nobody_waits_for_change_nothing() {
    let now = start();
    let (mut node, other, transaction) = asking(now);
    let mut wrong = transaction.clone();
    wrong[3] ^= 1;
    let elsewhere = Contact { addr: addr(9), ..other };
    for (from, transaction, reason) in [
        (other, wrong.as_slice(), Dropped::Unasked),
        (other, b"tt".as_slice(), Dropped::Unasked),
        (elsewhere, transaction.as_slice(), Dropped::Unasked),
    ] {
        node.handle_datagram(now, from.addr, &forged_reply(from, transaction), None);
        assert_eq!((node.poll_event(), node.poll_transmit()), (None, None));
        assert!(node.counters().dropped(reason) > 0);
    }
    assert_eq!(node.counters().dropped(Dropped::Unasked), 3);
    let liar = Contact { id: NodeId([6; 20]), ..other };
    node.handle_datagram(now, other.addr, &forged_reply(liar, &transaction), None);
    assert_eq!(node.counters().dropped(Dropped::WrongId), 1);
    assert_eq!(node.table.len(), 0, "whoever is there now is not the one we knew");
    node.handle_datagram(now, other.addr, &forged_reply(other, &transaction), None);
    assert_eq!(node.counters().dropped(Dropped::Unasked), 4, "an answer counts once");
}

#[test]
fn an_outage_of_our_own_costs_no_nodes() {
    let mut world = World::new(12);
    world.run(Duration::from_secs(30));
    let known = world.nodes[3].table.len();
    let mut lonely = world.nodes.swap_remove(3);
    let mut now = world.now;
    let end = now + Duration::from_secs(3600);
    let mut turns = 0;
    while now < end {
        now = lonely.poll_timeout(now).max(now);
        lonely.handle_timeout(now);
        while lonely.poll_transmit().is_some() {}
        turns += 1;
        assert!(turns < 100_000, "it runs in circles");
    }
    assert_eq!(lonely.table.len(), known);
    assert!(lonely.counters().asked(Method::Ping, Asked::Lost) > 50);
}

#[test]
fn saved_nodes_bring_a_node_back_without_bootstrap() {
    let mut world = World::new(15);
    world.run(Duration::from_secs(60));
    let saved = Saved::parse(&world.nodes[4].export(world.now).to_bytes());
    assert!(saved.nodes.len() >= K && saved.external_ip == Some(addr(4).ip()));
    let id = world.nodes[4].id();
    world.nodes[4] = Node::new(world.now, Config { saved, ..config(addr(4), 99) });
    assert_eq!(world.nodes[4].id(), id);
    let now = world.now;
    world.nodes[4].add_torrent(now, HASH, SAYS);
    world.run(Duration::from_secs(10));
    assert!(world.nodes[4].gauges(world.now).good_count >= K);
    let is_done = |(at, event): &(usize, Event)| {
        *at == 4 && matches!(event, Event::Done { outcome, .. } if outcome.announce_count > 0)
    };
    assert!(world.events.iter().any(is_done));
}

#[test]
fn queues_are_bounded_when_nobody_fetches() {
    let now = start();
    let mut node = node(now, 1);
    for host in 0..=255 {
        for low in 0..=255 {
            node.insert_node(([9, host, low, 1], 6881).into());
        }
    }
    assert_eq!(node.candidates.len(), CANDIDATES_MAX);
    let mut later = now;
    for step in 0..20_000u32 {
        later += Duration::from_millis(20);
        let from =
            SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0900_0000 + step * 300).into(), 6881);
        node.handle_datagram(later, from, &query_bytes(NodeId([3; 20]), &Args::Ping), None);
        node.handle_timeout(later);
    }
    assert!(node.out.len() <= OUT_MAX && node.counters().dropped(Dropped::QueueFull) > 0);
    (0..2 * EVENTS_MAX)
        .for_each(|_| node.event(Event::Moved { external_ip: addr(1).ip(), id: NodeId([0; 20]) }));
    assert_eq!(
        (node.events.len(), node.counters().lost_event_count),
        (EVENTS_MAX, EVENTS_MAX as u64)
    );
}

/// Damaged, cut, joined and random datagrams.
#[test]
fn damaged_datagrams_cost_nothing() {
    let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(62);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut now = start();
    let (mut node, other, transaction) = asking(now);
    let announce =
        Args::AnnouncePeer { info_hash: HASH, port: None, token: vec![1; 8], is_seed: true };
    let samples = [
        query_bytes(NodeId([3; 20]), &Args::Ping),
        query_bytes(NodeId([4; 20]), &Args::FindNode { target: NodeId([5; 20]) }),
        query_bytes(NodeId([6; 20]), &get_peers()),
        query_bytes(NodeId([6; 20]), &announce),
        query_bytes(NodeId([6; 20]), &Args::SampleInfohashes { target: NodeId([5; 20]) }),
        forged_reply(other, &transaction),
        b"d1:eli201e5:wronge1:t4:aaaa1:y1:ee".to_vec(),
    ];
    for round in 0..30_000 {
        let mut datagram = samples[rng.usize(..samples.len())].clone();
        match rng.u8(..6) {
            0 => datagram.truncate(rng.usize(..datagram.len())),
            1 => (0..rng.usize(1..8)).for_each(|_| {
                let at = rng.usize(..datagram.len());
                datagram[at] = rng.u8(..);
            }),
            2 => {
                let at = rng.usize(..datagram.len());
                let piece: Vec<_> = (0..rng.usize(1..50)).map(|_| rng.u8(..)).collect();
                datagram.splice(at..at, piece);
            }
            3 => datagram.extend(samples[rng.usize(..samples.len())].clone()),
            4 => {
                datagram =
                    (0..rng.usize(..2000)).map(|_| *rng.choice(b"dlei01:9e").unwrap()).collect()
            }
            _ => {
                let digit = datagram.iter().position(|byte| byte.is_ascii_digit()).unwrap_or(0);
                let digits = rng.usize(1..12);
                datagram.splice(digit..=digit, std::iter::repeat_n(b'9', digits));
            }
        }
        let from: SocketAddr = match rng.bool() {
            true => other.addr,
            false => ([rng.u8(..), rng.u8(..), rng.u8(..), 1], rng.u16(..)).into(),
        };
        now += Duration::from_millis(rng.u64(..20));
        node.handle_datagram(now, from, &datagram, None);
        node.handle_timeout(now);
        while let Some((to, sent)) = node.poll_transmit() {
            assert!(to.port() >= 1024 && sent.len() <= DATAGRAM_LEN_MAX, "round {round} of {seed}");
        }
        while node.poll_event().is_some() {}
        assert!(node.candidates.len() <= CANDIDATES_MAX, "round {round} of seed {seed}");
        assert!(node.pending.len() < 500 && node.lookups.len() < 8, "round {round} of seed {seed}");
    }
    node.table.check_invariants();
    let dropped: u64 = Dropped::ALL.iter().map(|reason| node.counters().dropped(*reason)).sum();
    assert!(dropped > 10_000, "{dropped} of seed {seed}");
}
