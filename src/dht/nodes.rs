//! All nodes of ours together: one per socket (BEP 45), of one family or both (BEP 32).
//!
//! Datagrams with the number of their socket, torrents and `now` enter; datagrams with the number
//! of the socket they leave through, and events, leave. Invariant: nodes share nothing but the
//! addresses that they name to each other.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Instant;

use super::node::{Config, Event, Node};
use super::saved::to_file;
use super::schedule::Announce;
use crate::units::InfoHash;

/// Sockets at most.
pub(super) const NODES_MAX: usize = 16;

/// The nodes of one program. A node's number is its place among the settings it was made of.
#[derive(Debug)]
pub struct Dht {
    nodes: Vec<Node>,
    /// Whose turn it is to transmit.
    turn: usize,
}

impl Dht {
    /// One node per socket, at most 16; nodes of both families want each other's.
    pub fn new(now: Instant, configs: Vec<Config>) -> Self {
        let is_both = configs.iter().any(|it| it.local.is_ipv4())
            && configs.iter().any(|it| it.local.is_ipv6());
        let node = |config| Node::new(now, Config { wants_both: is_both, ..config });
        Self { nodes: configs.into_iter().take(NODES_MAX).map(node).collect(), turn: 0 }
    }

    /// The nodes, in the order of their sockets.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What is worth saving of all of them, for [`from_file`](super::from_file); nothing if they
    /// know nobody, for what was saved before is then worth more.
    pub fn export(&self, now: Instant) -> Option<Vec<u8>> {
        let all: Vec<_> = self.nodes.iter().map(|node| node.export(now)).collect();
        all.iter().any(|saved| !saved.nodes.is_empty()).then(|| to_file(&all))
    }

    /// Takes a datagram that came through the socket of node `index`.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        index: usize,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let Some((before, rest)) = self.nodes.split_at_mut_checked(index) else { return };
        let Some((node, after)) = rest.split_first_mut() else { return };
        let is_sibling = |other: &&Node| other.is_ipv4() != node.is_ipv4();
        let sibling = before.iter().chain(after.iter()).find(is_sibling);
        node.handle_datagram(now, from, datagram, sibling);
        while let Some(contact) = node.poll_foreign() {
            let others = before.iter_mut().chain(after.iter_mut());
            others
                .filter(|other| other.is_ipv4() == contact.addr.is_ipv4())
                .for_each(|other| other.offer(now, contact));
        }
    }

    /// The next datagram to send: the node whose socket it leaves through, where to, and the bytes.
    pub fn poll_transmit(&mut self) -> Option<(usize, SocketAddr, Vec<u8>)> {
        for _ in 0..self.nodes.len() {
            let index = self.turn % self.nodes.len();
            self.turn = index + 1;
            if let Some((to, datagram)) = self.nodes[index].poll_transmit() {
                return Some((index, to, datagram));
            }
        }
        None
    }

    /// The next thing that happened, and to which node.
    pub fn poll_event(&mut self) -> Option<(usize, Event)> {
        let mut nodes = self.nodes.iter_mut().enumerate();
        nodes.find_map(|(index, node)| node.poll_event().map(|event| (index, event)))
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called at the latest; `None` if there
    /// is no node. It changes with every call of anything else.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.nodes.iter().map(|node| node.poll_timeout(now)).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for node in &mut self.nodes {
            if node.poll_timeout(now) <= now {
                node.handle_timeout(now);
            }
        }
    }

    /// Names addresses to start from; each goes to the nodes of its family.
    pub fn set_bootstrap(&mut self, now: Instant, addrs: &[SocketAddr]) {
        self.nodes.iter_mut().for_each(|node| node.set_bootstrap(now, addrs));
    }

    /// Names a node that may be there: a PORT message, the `nodes` of a torrent.
    pub fn insert_node(&mut self, addr: SocketAddr) {
        let of_family = self.nodes.iter_mut().filter(|node| node.is_ipv4() == addr.is_ipv4());
        of_family.for_each(|node| node.insert_node(addr));
    }

    /// Announces a torrent from now on, or changes what is said of it; private ones must not get
    /// here. False if there are too many.
    pub fn add_torrent(&mut self, now: Instant, info_hash: InfoHash, announce: Announce) -> bool {
        self.all(|node| node.add_torrent(now, info_hash, announce))
    }

    /// Stops all that is done for a torrent.
    pub fn remove_torrent(&mut self, info_hash: InfoHash) {
        self.nodes.iter_mut().for_each(|node| node.remove_torrent(info_hash));
    }

    /// Looks for peers of a torrent, ahead of all announces. False if too many wait already.
    pub fn find_peers(&mut self, info_hash: InfoHash) -> bool {
        self.all(|node| node.find_peers(info_hash))
    }

    /// Counts the peers of a torrent (BEP 33). False if too many wait already.
    pub fn scrape(&mut self, info_hash: InfoHash) -> bool {
        self.all(|node| node.scrape(info_hash))
    }

    fn all(&mut self, mut act: impl FnMut(&mut Node) -> bool) -> bool {
        // Every node is told, whatever the others say.
        let refused = self.nodes.iter_mut().filter_map(|node| (!act(node)).then_some(())).count();
        refused == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dht::encode::QueryOut;
    use crate::dht::krpc::{Args, Body, Message, Reply};
    use crate::dht::table::K;
    use crate::dht::tests::start;
    use crate::dht::{NodeId, Outcome};
    use crate::tracker::AddressPolicy;
    use std::collections::{BTreeMap, BTreeSet, VecDeque};
    use std::time::Duration;

    const HASH: InfoHash = InfoHash([0x5a; 20]);
    const SAYS: Announce = Announce { port: 7000, is_seed: false };

    fn v4(net: u8, host: u8) -> SocketAddr {
        ([net, host, 1, 1], 6881).into()
    }

    fn v6(host: u8) -> SocketAddr {
        format!("[2a00:{host:x}::1]:6881").parse().unwrap()
    }

    fn dht(now: Instant, locals: &[SocketAddr]) -> Dht {
        let config = |(at, local): (usize, &SocketAddr)| {
            let seed = u64::from(local.port()) ^ (at as u64) << 32 ^ seed_of(*local);
            let mut secret = [0; 32];
            fastrand::Rng::with_seed(seed).fill(&mut secret);
            Config::new(*local, AddressPolicy::default(), secret, seed)
        };
        Dht::new(now, locals.iter().enumerate().map(config).collect())
    }

    fn seed_of(addr: SocketAddr) -> u64 {
        addr.to_string().bytes().fold(7, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte))
    }

    /// Programs on a network without loss and with a delay of 20 ms.
    struct World {
        now: Instant,
        dhts: Vec<Dht>,
        places: BTreeMap<SocketAddr, (usize, usize)>,
        wire: VecDeque<(Instant, SocketAddr, SocketAddr, Vec<u8>)>,
        peers: BTreeMap<usize, BTreeSet<SocketAddr>>,
        outcomes: Vec<(usize, usize, Outcome)>,
    }

    impl World {
        fn new(programs: &[Vec<SocketAddr>]) -> Self {
            let now = start();
            let mut places = BTreeMap::new();
            for (at, locals) in programs.iter().enumerate() {
                let own = locals.iter().enumerate().map(|(index, local)| (*local, (at, index)));
                places.extend(own);
            }
            Self {
                now,
                dhts: programs.iter().map(|locals| dht(now, locals)).collect(),
                places,
                wire: VecDeque::new(),
                peers: BTreeMap::new(),
                outcomes: Vec::new(),
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            loop {
                self.drain();
                let timeouts = self.dhts.iter().filter_map(|dht| dht.poll_timeout(self.now));
                let arrival = self.wire.front().map(|datagram| datagram.0);
                let next = timeouts.chain(arrival).min().unwrap().max(self.now);
                if next > end {
                    self.now = end;
                    return;
                }
                self.now = next;
                while self.wire.front().is_some_and(|datagram| datagram.0 <= next) {
                    let (_, from, to, datagram) = self.wire.pop_front().unwrap();
                    if let Some((at, index)) = self.places.get(&to).copied() {
                        self.dhts[at].handle_datagram(next, index, from, &datagram);
                    }
                }
                self.dhts.iter_mut().for_each(|dht| dht.handle_timeout(next));
            }
        }

        fn drain(&mut self) {
            let arrives_at = self.now + Duration::from_millis(20);
            for (at, dht) in self.dhts.iter_mut().enumerate() {
                while let Some((index, to, datagram)) = dht.poll_transmit() {
                    let from = dht.nodes()[index].local();
                    assert_eq!(from.is_ipv4(), to.is_ipv4(), "{from} cannot reach {to}");
                    self.wire.push_back((arrives_at, from, to, datagram));
                }
                while let Some((index, event)) = dht.poll_event() {
                    match event {
                        Event::Peers { peers, .. } => {
                            self.peers.entry(at).or_default().extend(peers);
                        }
                        Event::Done { outcome, .. } => self.outcomes.push((at, index, outcome)),
                        Event::Moved { .. } => {}
                    }
                }
            }
        }
    }

    fn ask(dht: &mut Dht, now: Instant, index: usize, from: SocketAddr, both: bool) -> Reply {
        let args = Args::FindNode { target: NodeId([0x33; 20]) };
        let query = QueryOut {
            transaction: b"tt",
            id: &NodeId([3; 20]),
            is_read_only: true,
            wants_both: both,
            args: &args,
            port: 0,
        };
        dht.handle_datagram(now, index, from, &query.encode());
        let (through, to, datagram) = dht.poll_transmit().unwrap();
        assert_eq!((through, to), (index, from), "it leaves as it came");
        match Message::parse(&datagram).unwrap().body {
            Body::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// BEP 32: who has both families learns the nodes of one through those of the other.
    #[test]
    fn nodes_of_both_families_lead_from_one_to_the_other() {
        let both = |host| vec![v4(8, host), v6(host)];
        let programs: Vec<_> = (0..12).map(both).chain([vec![v4(9, 1)], vec![v6(99)]]).collect();
        let mut world = World::new(&programs);
        let now = world.now;
        for at in 1..12 {
            // Only an IPv4 address is known to anybody.
            world.dhts[at].set_bootstrap(now, &[v4(8, 0)]);
        }
        world.dhts[12].set_bootstrap(now, &[v4(8, 3)]);
        world.dhts[13].set_bootstrap(now, &[v6(3)]);
        world.run(Duration::from_secs(120));
        let good = |world: &World, at: usize, index: usize| {
            world.dhts[at].nodes()[index].gauges(world.now).good_count
        };
        for at in 0..12 {
            assert!(good(&world, at, 0) >= K && good(&world, at, 1) >= K / 2, "program {at}");
        }
        assert!(good(&world, 12, 0) >= K / 2 && good(&world, 13, 0) >= K / 2);

        // What is told to whom: a question of one family gets nodes of the other when it wants them.
        let now = world.now;
        let families = |reply: &Reply| {
            let is_there = |is_v4| reply.nodes.iter().any(|node| node.addr.is_ipv4() == is_v4);
            (is_there(true), is_there(false))
        };
        let dht = &mut world.dhts[5];
        assert_eq!(families(&ask(dht, now, 0, v4(77, 1), false)), (true, false));
        assert_eq!(families(&ask(dht, now, 1, v6(77), false)), (false, true));
        assert_eq!(families(&ask(dht, now, 0, v4(77, 2), true)), (true, true));
        assert_eq!(families(&ask(dht, now, 1, v6(78), true)), (true, true));
        let single = &mut world.dhts[12];
        assert_eq!(families(&ask(single, now, 0, v4(77, 1), true)), (true, false));
    }

    /// BEP 45: a program with several addresses is a node with an id of its own at each, announces
    /// itself from each, and answers through the socket that it was asked by.
    #[test]
    fn several_addresses_are_as_many_nodes_of_one_program() {
        let many = vec![v4(8, 100), v4(9, 100), v6(100), v6(101)];
        let mut programs: Vec<_> = (0..10).map(|host| vec![v4(8, host), v6(host)]).collect();
        programs.push(many.clone());
        let mut world = World::new(&programs);
        let now = world.now;
        for dht in &mut world.dhts[1..] {
            dht.set_bootstrap(now, &[v4(8, 0), v6(0)]);
        }
        world.run(Duration::from_secs(60));
        let now = world.now;
        let own: BTreeSet<_> = world.dhts[10].nodes().iter().map(|node| node.id().0).collect();
        assert_eq!(own.len(), many.len(), "an id each");
        for (node, local) in world.dhts[10].nodes().iter().zip(&many) {
            assert!(node.gauges(now).good_count >= K / 2, "{local}");
            assert_eq!(node.external_ip(), Some(local.ip()));
            assert!(node.id().is_valid_for(local.ip()), "{local}");
        }
        assert!(world.dhts[10].add_torrent(now, HASH, SAYS));
        world.run(Duration::from_secs(20));
        let told: Vec<_> = world.outcomes.iter().filter(|it| it.0 == 10).collect();
        assert_eq!(told.len(), many.len(), "each node announces");
        assert!(told.iter().all(|(.., outcome)| outcome.announce_count > 0), "{told:?}");
        assert!(world.dhts[4].find_peers(HASH));
        world.run(Duration::from_secs(20));
        let expected: BTreeSet<_> =
            many.iter().map(|local| SocketAddr::new(local.ip(), SAYS.port)).collect();
        assert_eq!(world.peers[&4], expected);
        // None of them counts another as a node that it met.
        for (at, node) in world.dhts[10].nodes().iter().enumerate() {
            let others = node.export(world.now).nodes;
            let is_own = |addr: SocketAddr| addr == many[at];
            assert!(!others.iter().any(|contact| is_own(contact.addr)));
        }
    }

    /// A program without IPv6 does not keep what it is told of it.
    #[test]
    fn nodes_of_a_family_that_we_lack_are_dropped() {
        let mut world = World::new(&[vec![v4(8, 0), v6(0)], vec![v4(8, 1), v6(1)], vec![v4(8, 2)]]);
        let now = world.now;
        world.dhts[1].set_bootstrap(now, &[v4(8, 0), v6(0)]);
        world.dhts[2].set_bootstrap(now, &[v4(8, 0)]);
        world.run(Duration::from_secs(60));
        let nodes = world.dhts[2].nodes()[0].export(world.now).nodes;
        assert!(nodes.len() == 2 && nodes.iter().all(|node| node.addr.is_ipv4()), "{nodes:?}");
        assert!(world.dhts[2].export(world.now).is_some());
        assert_eq!(dht(world.now, &[v4(8, 3)]).export(world.now), None, "nobody is worth saving");
    }
}
