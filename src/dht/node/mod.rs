//! One node of the DHT: one socket, one family of addresses, one id.
//!
//! Datagrams, torrents, questions and `now` enter; datagrams and [`Event`]s leave. Invariant: no
//! socket, clock or name is known here, every queue and table has its limit, and nothing is sent
//! to an address that did not pass the policy.
//!
//! What comes in goes one of two ways: queries of others are answered in `answer`, answers to
//! our own are used in `ask`. Everything that happens by itself happens in
//! [`Node::handle_timeout`].
#![forbid(unsafe_code)]

mod answer;
mod ask;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::address::{Gate, Origin, Subnet};
use super::counters::{Counters, Dropped};
use super::encode::DATAGRAM_LEN_MAX;
use super::krpc::{Body, Message};
use super::limiter::{self, Limiter};
use super::lookup::{Lookup, SEEDS_MAX};
use super::pending::Pending;
use super::saved::{NODES_MAX, Saved};
use super::schedule::{Announce, Schedule, Task};
use super::secrets::Secrets;
use super::store::Store;
use super::table::{K, Table};
use super::votes::Votes;
use super::{Contact, NodeId};
use crate::rate::Bucket;
use crate::tracker::AddressPolicy;
use crate::units::InfoHash;

/// Lookups for torrents that run at a time.
pub const LOOKUPS_MAX: usize = 24;

/// Time between the starts of two lookups.
pub const LOOKUP_GAP: Duration = Duration::from_millis(50);

/// Nodes of the table that a lookup starts from: some may be gone.
pub const CONTACTS_FIRST: usize = 2 * K;

/// Addresses that wait for a first ping.
pub const CANDIDATES_MAX: usize = 256;

/// How many of them may come from those who ask us or are named by others: only words, so far.
pub const CANDIDATES_HEARD_MAX: usize = 64;

/// Time between two first pings.
pub const PING_GAP: Duration = Duration::from_millis(100);

/// Time between two looks at the table.
pub const TICK: Duration = Duration::from_secs(10);

/// Questionable nodes that are pinged at each look.
pub const PROBES_PER_TICK_MAX: usize = 4;

/// The first and the longest time between two tries to find more than a handful of nodes; it
/// doubles from one to the other.
pub const BOOTSTRAP_RANGE: (Duration, Duration) =
    (Duration::from_secs(5), Duration::from_secs(300));

/// Time from the first answer of a saved node to a search for more.
pub const BOOTSTRAP_SOON: Duration = Duration::from_millis(500);

/// Addresses to start from that are kept.
pub const BOOTSTRAP_MAX: usize = SEEDS_MAX;

/// Datagrams that wait for the socket; answers beyond half of it are dropped.
pub const OUT_MAX: usize = 1024;

/// Events that wait to be fetched; the oldest goes for a new one.
pub const EVENTS_MAX: usize = 1024;

/// Nodes of the other family that wait to be fetched.
pub const FOREIGN_MAX: usize = 32;

/// Peers that one lookup gives.
pub const PEERS_PER_LOOKUP_MAX: usize = 500;

/// Bytes of answers per second, over all askers, unless the settings say otherwise.
pub const REPLY_RATE: u64 = 16_000;

/// Announces that began this late are overdue.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(300);

/// What a node is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port of the socket; the unspecified address if it is bound to all.
    pub local: SocketAddr,
    /// Which addresses may be talked to and told.
    pub policy: AddressPolicy,
    /// 32 random bytes, for tokens and transaction ids.
    pub secret: [u8; 32],
    /// Seed of every other choice.
    pub seed: u64,
    /// What was saved the last time.
    pub saved: Saved,
    /// Whether queries are not answered (BEP 43).
    pub is_read_only: bool,
    /// Whether announces say that the TCP port is the one their datagram comes from.
    pub implied_port: bool,
    /// Whether there is a node of the other family beside this one, so that its nodes are wanted.
    pub wants_both: bool,
    /// Bytes of answers per second; [`REPLY_RATE`] is what a server uses.
    pub reply_rate: u64,
}

impl Config {
    /// The settings of a server, without anything saved.
    pub fn new(local: SocketAddr, policy: AddressPolicy, secret: [u8; 32], seed: u64) -> Self {
        Self {
            local,
            policy,
            secret,
            seed,
            saved: Saved::default(),
            is_read_only: false,
            implied_port: false,
            wants_both: false,
            reply_rate: REPLY_RATE,
        }
    }
}

/// What a node has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Peers of a torrent, each told once per lookup; more may follow until it is `Done`.
    Peers {
        /// The torrent.
        info_hash: InfoHash,
        /// At least one, in no order.
        peers: Vec<SocketAddr>,
    },
    /// A lookup ended.
    Done {
        /// The torrent.
        info_hash: InfoHash,
        /// What it was for.
        task: Task,
        /// How it went.
        outcome: Outcome,
    },
    /// Others see us at another address than we knew, and our id may have followed it (BEP 42).
    Moved {
        /// The address.
        external_ip: IpAddr,
        /// Our id now.
        id: NodeId,
    },
}

/// How a lookup went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Queries that were sent.
    pub query_count: usize,
    /// Answers that came.
    pub reply_count: usize,
    /// Answers in a row that led to the closest node.
    pub hop_count: u32,
    /// Peers that were told.
    pub peer_count: usize,
    /// Nodes that an announce was sent to.
    pub announce_count: usize,
    /// Seeds and leeches in all, about, if anybody counts them; only of a scrape (BEP 33).
    pub estimate: Option<(u32, u32)>,
}

/// Gauges of a node, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gauges {
    /// Nodes that answered or asked lately.
    pub good_count: usize,
    /// Nodes that were silent for a while.
    pub questionable_count: usize,
    /// Nodes that did not answer twice.
    pub bad_count: usize,
    /// Nodes whose id belongs to their address (BEP 42), of all of these.
    pub verified_count: usize,
    /// Queries on their way.
    pub pending_count: usize,
    /// Lookups on their way.
    pub lookup_count: usize,
    /// Torrents that we announce.
    pub torrent_count: usize,
    /// Torrents whose announce is overdue by [`OVERDUE_AFTER`].
    pub overdue_count: usize,
    /// Torrents that we keep peers of for others.
    pub stored_hash_count: usize,
    /// Peers that we keep for others.
    pub stored_peer_count: usize,
}

/// One node; see the module's text.
#[derive(Debug)]
pub struct Node {
    gate: Gate,
    is_read_only: bool,
    implied_port: bool,
    wants_both: bool,
    rng: fastrand::Rng,
    secrets: Secrets,
    table: Table,
    pending: Pending,
    store: Store,
    votes: Votes,
    schedule: Schedule,
    hosts: Limiter<Origin>,
    subnets: Limiter<Subnet>,
    replies: Bucket,
    lookups: BTreeMap<u64, ask::Running>,
    lookup_number: u64,
    lookup_at: Instant,
    candidates: VecDeque<SocketAddr>,
    ping_at: Instant,
    bootstrap: Vec<SocketAddr>,
    bootstrap_at: Instant,
    bootstrap_wait: Duration,
    tick_at: Instant,
    /// When anybody answered us last.
    answered_at: Option<Instant>,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<Event>,
    foreign: Vec<Contact>,
    counters: Counters,
}

impl Node {
    /// A node that knows nobody but what was saved.
    pub fn new(now: Instant, config: Config) -> Self {
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let saved = config.saved;
        let is_fitting = |id: &NodeId| saved.external_ip.is_none_or(|ip| id.is_valid_for(ip));
        let id = saved.id.filter(is_fitting).unwrap_or_else(|| match saved.external_ip {
            Some(ip) => NodeId::for_ip(ip, &mut rng),
            None => NodeId::random(&mut rng),
        });
        let gate = Gate { policy: config.policy, local: config.local, external: saved.external_ip };
        let mut node = Self {
            gate,
            is_read_only: config.is_read_only,
            implied_port: config.implied_port,
            wants_both: config.wants_both,
            rng,
            secrets: Secrets::new(now, &config.secret),
            table: Table::new(now, id),
            pending: Pending::default(),
            store: Store::default(),
            votes: Votes::default(),
            schedule: Schedule::default(),
            hosts: Limiter::new(limiter::HOST_RATE, limiter::HOST_BURST),
            subnets: Limiter::new(limiter::SUBNET_RATE, limiter::SUBNET_BURST),
            replies: Bucket::new(Some(config.reply_rate)),
            lookups: BTreeMap::new(),
            lookup_number: 0,
            lookup_at: now,
            candidates: VecDeque::new(),
            ping_at: now,
            bootstrap: Vec::new(),
            bootstrap_at: now,
            bootstrap_wait: BOOTSTRAP_RANGE.0,
            tick_at: now,
            answered_at: None,
            out: VecDeque::new(),
            events: VecDeque::new(),
            foreign: Vec::new(),
            counters: Counters::default(),
        };
        saved.nodes.iter().take(NODES_MAX).for_each(|contact| node.insert_node(contact.addr));
        node
    }

    /// Our id, which changes when others see us elsewhere.
    pub fn id(&self) -> NodeId {
        self.table.own()
    }

    /// Where others see us, if enough of them said so.
    pub fn external_ip(&self) -> Option<IpAddr> {
        self.gate.external
    }

    /// Whether addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.gate.local.is_ipv4()
    }

    /// Where its socket is bound.
    pub fn local(&self) -> SocketAddr {
        self.gate.local
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many of what there is now.
    pub fn gauges(&self, now: Instant) -> Gauges {
        let [good_count, questionable_count, bad_count] = self.table.counts(now);
        let (stored_hash_count, stored_peer_count) = self.store.counts();
        Gauges {
            good_count,
            questionable_count,
            bad_count,
            verified_count: self.table.verified_count(),
            pending_count: self.pending.len(),
            lookup_count: self.lookups.len(),
            torrent_count: self.schedule.len(),
            overdue_count: self.schedule.overdue_count(now, OVERDUE_AFTER),
            stored_hash_count,
            stored_peer_count,
        }
    }

    /// What is worth saving: our id and address, and the nodes that answered last.
    pub fn export(&self, now: Instant) -> Saved {
        let mut nodes = self.table.export(now);
        nodes.truncate(NODES_MAX);
        let (local, id) = (Some(self.gate.local), Some(self.id()));
        Saved { local, id, external_ip: self.gate.external, nodes }
    }

    /// Names addresses to start from, at most [`BOOTSTRAP_MAX`], instead of earlier ones.
    pub fn set_bootstrap(&mut self, now: Instant, addrs: &[SocketAddr]) {
        let admitted = addrs.iter().filter(|addr| self.gate.admit_node(**addr).is_ok());
        self.bootstrap = admitted.take(BOOTSTRAP_MAX).copied().collect();
        self.bootstrap_at = now;
        self.tick_at = now;
    }

    /// Names a node that may be there; a ping will tell. Sources: the wire's PORT message, the
    /// `nodes` of a torrent.
    pub fn insert_node(&mut self, addr: SocketAddr) {
        self.add_candidate(addr, CANDIDATES_MAX);
    }

    /// Names a node that somebody told us of; it gets a ping if the table has a place for it.
    pub fn offer(&mut self, now: Instant, contact: Contact) {
        if self.table.wants(now, &contact) {
            self.add_candidate(contact.addr, CANDIDATES_HEARD_MAX);
        }
    }

    /// Announces a torrent from now on, every quarter of an hour, or changes what is said of it;
    /// private ones must not get here. False if there are too many.
    pub fn add_torrent(&mut self, now: Instant, info_hash: InfoHash, announce: Announce) -> bool {
        self.schedule.add(now, info_hash, announce)
    }

    /// Stops all that is done for a torrent; nothing is announced to other nodes any more.
    pub fn remove_torrent(&mut self, info_hash: InfoHash) {
        self.schedule.remove(info_hash);
    }

    /// Looks for peers of a torrent, ahead of all announces. False if too many wait already.
    pub fn find_peers(&mut self, info_hash: InfoHash) -> bool {
        self.schedule.ask(info_hash, Task::FindPeers)
    }

    /// Counts the peers of a torrent (BEP 33). False if too many wait already.
    pub fn scrape(&mut self, info_hash: InfoHash) -> bool {
        self.schedule.ask(info_hash, Task::Scrape)
    }

    /// The next datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let (addr, datagram) = self.out.pop_front()?;
        self.counters.sent_len += datagram.len() as u64;
        Some((addr, datagram))
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Nodes of the other family that were named to us since the last call.
    pub fn poll_foreign(&mut self) -> Option<Contact> {
        self.foreign.pop()
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called at the latest; it changes with
    /// every call of anything else.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        let mut at = self.tick_at;
        at = self.pending.next_at().map_or(at, |due| at.min(due));
        if !self.candidates.is_empty() {
            at = at.min(self.ping_at);
        }
        if self.is_ready() {
            let next = self.schedule.next_at(now).map(|due| due.max(self.lookup_at));
            at = next.map_or(at, |due| at.min(due));
        }
        at
    }

    /// Takes one datagram, as the socket gave it. `sibling` is the node of the other family, whose
    /// nodes are told to those that want them.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        sibling: Option<&Self>,
    ) {
        self.counters.received_len += datagram.len() as u64;
        if let Err(refusal) = self.gate.admit_node(from) {
            self.counters.drop(refusal.into());
            return;
        }
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(malformed) => {
                self.counters.drop(malformed.into());
                return;
            }
        };
        match message.body {
            Body::Query(query) => {
                let query = answer::Asked { from, query, len: datagram.len() };
                self.handle_query(now, &message.transaction, query, sibling);
            }
            Body::Reply(reply) => self.handle_reply(now, from, &message.transaction, reply),
            Body::Error => self.handle_error(now, from, &message.transaction),
        }
    }

    /// Does what is due: late and lost answers, pings, lookups, and a look at the table.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.handle_silence(now);
        if now >= self.tick_at {
            self.tick(now);
        }
        if now >= self.ping_at
            && let Some(addr) = self.candidates.pop_front()
        {
            self.ping_at = now + PING_GAP;
            self.ping(now, addr, None);
        }
        if now >= self.lookup_at
            && self.is_ready()
            && let Some((hash, task)) = self.schedule.poll(now)
        {
            self.lookup_at = now + LOOKUP_GAP;
            self.start_task(now, hash, task);
        }
    }

    /// Whether one more lookup for a torrent may start.
    fn is_ready(&self) -> bool {
        self.table.len() > 0
            && self.lookups.values().filter(|it| it.is_for_torrent()).count() < LOOKUPS_MAX
            && !self.lookups.values().any(ask::Running::is_bootstrap)
    }

    /// Looks at the table: is it empty, stale, in doubt?
    fn tick(&mut self, now: Instant) {
        self.tick_at = now + TICK;
        self.store.expire(now);
        if self.table.len() >= K {
            self.bootstrap_wait = BOOTSTRAP_RANGE.0;
        } else if now >= self.bootstrap_at && self.start_bootstrap(now) {
            self.bootstrap_at = now + self.bootstrap_wait;
            self.bootstrap_wait = (self.bootstrap_wait * 2).min(BOOTSTRAP_RANGE.1);
        }
        for _ in 0..PROBES_PER_TICK_MAX {
            let Some(contact) = self.table.poll_questionable(now) else { break };
            self.ping(now, contact.addr, Some(contact.id));
        }
        if self.table.len() > 0
            && !self.lookups.values().any(ask::Running::is_refresh)
            && let Some(target) = self.table.poll_stale(now, &mut self.rng)
        {
            let contacts = self.table.closest(now, &target, CONTACTS_FIRST);
            self.start(now, ask::Goal::Refresh, Lookup::new(target, &contacts, &[]));
        }
    }

    fn add_candidate(&mut self, addr: SocketAddr, count_max: usize) {
        match self.gate.admit_node(addr) {
            Err(_) => self.counters.poisoned_count += 1,
            Ok(()) if self.candidates.contains(&addr) => {}
            Ok(()) if self.candidates.len() < count_max => self.candidates.push_back(addr),
            Ok(()) => self.counters.drop(Dropped::QueueFull),
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.counters.lost_event_count += 1;
        }
        self.events.push_back(event);
    }

    /// Hands a datagram to the socket's queue; false if more than `count_max` wait there.
    fn transmit(&mut self, to: SocketAddr, datagram: Vec<u8>, count_max: usize) -> bool {
        debug_assert!(datagram.len() <= DATAGRAM_LEN_MAX && self.gate.admit_node(to).is_ok());
        let has_place = self.out.len() < count_max;
        match has_place {
            true => self.out.push_back((to, datagram)),
            false => self.counters.drop(Dropped::QueueFull),
        }
        has_place
    }
}
