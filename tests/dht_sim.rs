//! A thousand nodes of the DHT in memory: a virtual clock, loss, churn and liars, one seed.
//!
//! `SIM_SEED=7 cargo test --test dht_sim -- --nocapture` runs another seed; every run prints its
//! seed and the figures. Invariant: nothing here looks at the real clock for anything but the zero
//! of the virtual one.
//!
//! Four in five nodes are real [`Node`]s. The others lie, in four ways; all of them answer pings
//! honestly, so they get into routing tables.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use seedring::dht::encode::{QueryOut, ReplyOut};
use seedring::dht::krpc::{Args, Body, Message, Query};
use seedring::dht::{Announce, Config, Contact, Event, K, Node, NodeId, Outcome, Task};
use seedring::tracker::AddressPolicy;
use seedring::units::InfoHash;

/// Torrents that are announced and found in each world.
const HASHES: usize = 120;

/// One of so many is surrounded by sybils.
const ATTACKED_EVERY: usize = 6;

/// Of a hundred datagrams, how many are lost.
const LOSS_PERCENT: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    /// Names nodes next to the target that do not exist.
    Phantoms,
    /// Names addresses that must not be contacted.
    Poison,
    /// Answers in another's name, with wrong transaction ids, and unasked.
    Forgery,
    /// Sits next to one hash, names only its like, and forgets what it is told.
    Sybil(usize),
}

enum Actor {
    Honest(Box<Node>),
    Liar { lie: Lie, id: NodeId },
    Dead,
}

struct Member {
    addr: SocketAddr,
    actor: Actor,
    /// When its timer goes off, if it is set.
    wakes_at: Option<Instant>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrival { from: SocketAddr, to: usize, datagram: Vec<u8> },
    Timer(usize),
}

struct World {
    now: Instant,
    rng: fastrand::Rng,
    members: Vec<Member>,
    by_addr: BTreeMap<SocketAddr, usize>,
    queue: BinaryHeap<Reverse<(Instant, u64, Happening)>>,
    sequence: u64,
    events: Vec<(usize, Event)>,
    hashes: Vec<InfoHash>,
    datagram_count: u64,
    /// Queries that went to addresses where nobody may be sent.
    poisoned_count: u64,
}

/// What one world showed.
#[derive(Debug)]
struct Figures {
    node_count: usize,
    found_percent: usize,
    attacked_percent: usize,
    query_mean: f64,
    query_max: usize,
    hop_mean: f64,
    verified_percent: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let hashes = (0..HASHES).map(|_| InfoHash(NodeId::random(&mut rng).0)).collect();
        #[expect(clippy::disallowed_methods, reason = "the zero of the virtual clock")]
        let now = Instant::now();
        Self {
            now,
            rng,
            members: Vec::new(),
            by_addr: BTreeMap::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
            events: Vec::new(),
            hashes,
            datagram_count: 0,
            poisoned_count: 0,
        }
    }

    fn free_addr(&mut self) -> SocketAddr {
        loop {
            let ip = Ipv4Addr::from_bits(self.rng.u32(0x0b00_0000..0x6400_0000));
            let addr = SocketAddr::new(ip.into(), self.rng.u16(1024..));
            if AddressPolicy::default().permits(ip.into()).is_ok()
                && !self.by_addr.contains_key(&addr)
            {
                return addr;
            }
        }
    }

    fn add(&mut self, addr: SocketAddr, actor: Actor) -> usize {
        let index = self.members.len();
        self.members.push(Member { addr, actor, wakes_at: None });
        self.by_addr.insert(addr, index);
        index
    }

    /// A node that starts from two random others.
    fn join(&mut self) -> usize {
        let addr = self.free_addr();
        let mut secret = [0; 32];
        self.rng.fill(&mut secret);
        let config = Config::new(addr, AddressPolicy::default(), secret, self.rng.u64(..));
        let mut node = Node::new(self.now, config);
        let known: Vec<_> = (0..2).filter_map(|_| self.any_honest()).collect();
        let known: Vec<_> = known.into_iter().map(|at| self.members[at].addr).collect();
        node.set_bootstrap(self.now, &known);
        let index = self.add(addr, Actor::Honest(Box::new(node)));
        self.settle(index);
        index
    }

    fn honest(&self) -> Vec<usize> {
        let is_honest = |at: &usize| matches!(self.members[*at].actor, Actor::Honest(_));
        (0..self.members.len()).filter(is_honest).collect()
    }

    fn any_honest(&mut self) -> Option<usize> {
        let honest = self.honest();
        self.rng.choice(honest)
    }

    fn node(&mut self, index: usize) -> &mut Node {
        match &mut self.members[index].actor {
            Actor::Honest(node) => node,
            _ => panic!("member {index} is no node"),
        }
    }

    /// A liar, which asks `count` honest nodes so that they get to know it.
    fn add_liar(&mut self, lie: Lie, count: usize) {
        let addr = self.free_addr();
        let id = match lie {
            Lie::Sybil(at) => {
                let hash = NodeId::from(self.hashes[at]);
                hash.random_beside(self.rng.usize(24..60), &mut self.rng)
            }
            _ => NodeId::for_ip(addr.ip(), &mut self.rng),
        };
        self.add(addr, Actor::Liar { lie, id });
        let mut honest = self.honest();
        match lie {
            Lie::Sybil(_) => honest.sort_by_key(|at| match &self.members[*at].actor {
                Actor::Honest(node) => node.id().distance(&id),
                _ => unreachable!("only honest ones are listed"),
            }),
            _ => self.rng.shuffle(&mut honest),
        }
        for to in honest.into_iter().take(count) {
            let query = QueryOut {
                transaction: b"liar",
                id: &id,
                is_read_only: false,
                wants_both: false,
                args: &Args::Ping,
                port: 0,
            };
            self.post(addr, self.members[to].addr, query.encode());
        }
    }

    /// Gives a datagram to the network, which may lose it.
    fn post(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.datagram_count += 1;
        if AddressPolicy::default().permits(to.ip()).is_err() || to.port() < 1024 {
            self.poisoned_count += 1;
        }
        let Some(to) = self.by_addr.get(&to).copied() else { return };
        if self.rng.u32(..100) < LOSS_PERCENT {
            return;
        }
        let at = self.now + Duration::from_millis(self.rng.u64(10..200));
        self.push(at, Happening::Arrival { from, to, datagram });
    }

    fn push(&mut self, at: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, happening)));
    }

    /// Takes out of a node what it has to send and to say, and sets its timer.
    fn settle(&mut self, index: usize) {
        let (now, from) = (self.now, self.members[index].addr);
        let Actor::Honest(node) = &mut self.members[index].actor else { return };
        let sent: Vec<_> = std::iter::from_fn(|| node.poll_transmit()).collect();
        let events: Vec<_> = std::iter::from_fn(|| node.poll_event()).collect();
        let at = node.poll_timeout(now).max(now);
        self.events.extend(events.into_iter().map(|event| (index, event)));
        sent.into_iter().for_each(|(to, datagram)| self.post(from, to, datagram));
        if self.members[index].wakes_at.is_none_or(|wakes_at| at < wakes_at) {
            self.members[index].wakes_at = Some(at);
            self.push(at, Happening::Timer(index));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, happening))) = self.queue.pop() else { break };
            self.now = at;
            let index = match happening {
                Happening::Arrival { from, to, datagram } => {
                    self.arrive(from, to, &datagram);
                    to
                }
                Happening::Timer(index) => {
                    let member = &mut self.members[index];
                    if member.wakes_at != Some(at) {
                        continue;
                    }
                    member.wakes_at = None;
                    if let Actor::Honest(node) = &mut member.actor {
                        node.handle_timeout(at);
                    }
                    index
                }
            };
            self.settle(index);
        }
        self.now = end;
    }

    fn arrive(&mut self, from: SocketAddr, to: usize, datagram: &[u8]) {
        let now = self.now;
        match &mut self.members[to].actor {
            Actor::Honest(node) => node.handle_datagram(now, from, datagram, None),
            Actor::Liar { lie, id } => {
                let (lie, id) = (*lie, *id);
                self.lie(lie, id, from, to, datagram);
            }
            Actor::Dead => {}
        }
    }

    fn lie(&mut self, lie: Lie, id: NodeId, asker: SocketAddr, own: usize, datagram: &[u8]) {
        let Ok(message) = Message::parse(datagram) else { return };
        let Body::Query(Query { args, .. }) = message.body else { return };
        let target = match args {
            Args::FindNode { target } | Args::SampleInfohashes { target } => Some(target),
            Args::GetPeers { info_hash, .. } => Some(info_hash.into()),
            _ => None,
        };
        let mut transaction = message.transaction;
        let mut id = id;
        let mut nodes = Vec::new();
        if let Some(target) = target {
            nodes = self.false_nodes(lie, target);
            if lie == Lie::Forgery {
                match self.rng.bool() {
                    true => transaction[0] ^= 1,
                    false => id = target,
                }
                // One more, at somebody who asked nothing.
                let victim = self.any_honest().map(|at| self.members[at].addr);
                let forged = self.false_reply(b"xxxx", target, asker, nodes.clone());
                let addr = self.members[own].addr;
                victim.into_iter().for_each(|victim| self.post(addr, victim, forged.clone()));
            }
        }
        let reply = self.false_reply(&transaction, id, asker, nodes);
        self.post(self.members[own].addr, asker, reply);
    }

    fn false_reply(
        &mut self,
        transaction: &[u8],
        id: NodeId,
        asker: SocketAddr,
        nodes: Vec<Contact>,
    ) -> Vec<u8> {
        // They also say that the asker is somewhere else.
        let elsewhere = SocketAddr::new(self.free_addr().ip(), asker.port());
        let reply = ReplyOut {
            transaction,
            id: Some(id),
            asker: Some(elsewhere),
            nodes,
            lists: (true, false),
            token: Some(b"false".into()),
            ..ReplyOut::default()
        };
        reply.encode(1400).unwrap()
    }

    fn false_nodes(&mut self, lie: Lie, target: NodeId) -> Vec<Contact> {
        if let Lie::Sybil(_) = lie {
            let like = self.members.iter().filter_map(|member| match member.actor {
                Actor::Liar { lie: other, id } if other == lie => {
                    Some(Contact { id, addr: member.addr })
                }
                _ => None,
            });
            return like.take(K).collect();
        }
        let bad: [IpAddr; 5] = [
            [0, 0, 0, 0].into(),
            [127, 0, 0, 1].into(),
            [224, 0, 0, 1].into(),
            [10, 0, 0, 1].into(),
            [169, 254, 169, 254].into(),
        ];
        let mut nodes = Vec::new();
        for at in 0..K {
            let id = target.random_beside(self.rng.usize(20..100), &mut self.rng);
            let addr = match lie {
                Lie::Poison => SocketAddr::new(bad[at % bad.len()], 6881),
                _ => self.free_addr(),
            };
            nodes.push(Contact { id, addr });
        }
        nodes
    }

    /// `count` nodes die and as many join, spread over `time`; those in `kept` stay.
    fn churn(&mut self, time: Duration, count: usize, kept: &[usize]) {
        for _ in 0..count {
            self.run(time / u32::try_from(count).unwrap());
            let mut honest = self.honest();
            honest.retain(|at| !kept.contains(at));
            let victim = self.rng.choice(honest);
            victim.into_iter().for_each(|at| self.members[at].actor = Actor::Dead);
            self.join();
        }
    }
}

/// Builds a world of `node_count` members, and lets nodes announce and find.
fn figures(node_count: usize, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let honest_count = node_count * 4 / 5;
    for _ in 0..honest_count {
        world.join();
        world.run(Duration::from_secs(60) / u32::try_from(honest_count).unwrap());
    }
    world.run(Duration::from_secs(60));
    for at in 0..node_count * 3 / 20 {
        world.add_liar([Lie::Phantoms, Lie::Poison, Lie::Forgery][at % 3], 30);
    }
    let sybil_count = (node_count - honest_count - node_count * 3 / 20).max(10);
    let attacked_count = (sybil_count / 10).clamp(1, HASHES / ATTACKED_EVERY);
    for at in 0..sybil_count {
        world.add_liar(Lie::Sybil(at % attacked_count * ATTACKED_EVERY), 30);
    }
    world.churn(Duration::from_secs(120), node_count / 20, &[]);
    let mut pairs = Vec::new();
    for hash in world.hashes.clone() {
        let (announcer, finder) = (world.any_honest().unwrap(), world.any_honest().unwrap());
        pairs.push((hash, announcer, finder));
        let now = world.now;
        let says = Announce { port: 20_000, is_seed: true };
        assert!(world.node(announcer).add_torrent(now, hash, says));
        world.settle(announcer);
        world.run(Duration::from_millis(200));
    }
    let kept: Vec<_> = pairs.iter().flat_map(|(_, one, two)| [*one, *two]).collect();
    world.churn(Duration::from_secs(60), node_count / 20, &kept);
    world.events.clear();
    for (hash, _, finder) in &pairs {
        assert!(world.node(*finder).find_peers(*hash));
        world.settle(*finder);
        world.run(Duration::from_millis(200));
    }
    world.run(Duration::from_secs(30));
    assert_eq!(world.poisoned_count, 0, "seed {seed}: something was sent where it must not");
    sum_up(&world, node_count, attacked_count, &pairs)
}

fn sum_up(
    world: &World,
    node_count: usize,
    attacked_count: usize,
    pairs: &[(InfoHash, usize, usize)],
) -> Figures {
    let (mut found, mut attacked_found) = (0, 0);
    for (at, (hash, announcer, finder)) in pairs.iter().enumerate() {
        let peer = SocketAddr::new(world.members[*announcer].addr.ip(), 20_000);
        let is_found = world.events.iter().any(|(index, event)| {
            index == finder
                && matches!(event, Event::Peers { info_hash, peers } if info_hash == hash && peers.contains(&peer))
        });
        // A node does not name its own address to itself; it is not asked to.
        let is_found = is_found || announcer == finder;
        let is_attacked = at % ATTACKED_EVERY == 0 && at / ATTACKED_EVERY < attacked_count;
        match is_attacked {
            true => attacked_found += usize::from(is_found),
            false => found += usize::from(is_found),
        }
    }
    let outcomes: Vec<Outcome> = world
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Done { task: Task::FindPeers, outcome, .. } => Some(*outcome),
            _ => None,
        })
        .collect();
    let mean = |of: fn(&Outcome) -> usize| {
        let sum: usize = outcomes.iter().map(of).sum();
        f64::from(u32::try_from(sum).unwrap()) / f64::from(u32::try_from(outcomes.len()).unwrap())
    };
    let honest = world.honest();
    let verified = honest.iter().filter(|at| match &world.members[**at].actor {
        Actor::Honest(node) => node.id().is_valid_for(world.members[**at].addr.ip()),
        _ => false,
    });
    assert!(outcomes.len() >= HASHES - 5, "only {} lookups ended", outcomes.len());
    Figures {
        node_count,
        found_percent: found * 100 / (HASHES - attacked_count),
        attacked_percent: attacked_found * 100 / attacked_count,
        query_mean: mean(|outcome| outcome.query_count),
        query_max: outcomes.iter().map(|outcome| outcome.query_count).max().unwrap(),
        hop_mean: mean(|outcome| outcome.hop_count as usize),
        verified_percent: verified.count() * 100 / honest.len(),
    }
}

/// The mean number of queries may grow by this much from one size to the next, which is double.
const GROWTH_MAX: f64 = 6.0;

/// And by this much on the average of all doublings.
const GROWTH_MEAN_MAX: f64 = 4.0;

#[test]
fn values_are_found_in_o_log_n_messages() {
    let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(vec![5, 6], |seed| vec![seed]);
    seeds.into_iter().for_each(values_are_found);
}

fn values_are_found(seed: u64) {
    println!(
        "seed {seed}; 20 % liars, {LOSS_PERCENT} % loss, 10 % of the nodes replaced meanwhile"
    );
    println!("nodes  found  under attack  queries mean (max)  hops  ids by address");
    let mut all = Vec::new();
    for node_count in [125, 250, 500, 1000] {
        let it = figures(node_count, seed);
        println!(
            "{:5}  {:3} %  {:10} %  {:12.1} ({:3})  {:4.1}  {:12} %",
            it.node_count,
            it.found_percent,
            it.attacked_percent,
            it.query_mean,
            it.query_max,
            it.hop_mean,
            it.verified_percent
        );
        all.push(it);
    }
    for it in &all {
        let log = f64::from(u32::try_from(it.node_count).unwrap()).log2();
        assert!(it.found_percent >= 98, "seed {seed}: {it:?}");
        assert!(it.query_mean <= 16.0 + 2.0 * log, "seed {seed}: {it:?}");
        assert!(it.hop_mean <= log / 2.0, "seed {seed}: {it:?}");
        assert!(it.verified_percent >= 90, "seed {seed}: {it:?}");
    }
    let growth: Vec<_> =
        all.windows(2).map(|pair| pair[1].query_mean - pair[0].query_mean).collect();
    let mean = growth.iter().sum::<f64>() / f64::from(u32::try_from(growth.len()).unwrap());
    println!("each doubling costs {growth:.1?} more queries, {mean:.1} on the average");
    assert!(growth.iter().all(|more| *more <= GROWTH_MAX), "seed {seed}: {growth:?}");
    assert!(mean <= GROWTH_MEAN_MAX, "seed {seed}: {growth:?}");
    let in_all = |of: fn(&Figures) -> usize| all.iter().map(of).sum::<usize>() / all.len();
    let (found, attacked) = (in_all(|it| it.found_percent), in_all(|it| it.attacked_percent));
    assert!(found >= 99 && attacked >= 90, "seed {seed}: {found} % and {attacked} % under attack");
}
