//! Queries of ours: pings, lookups, announces, and what their answers bring.
//!
//! Goals, answers and silences enter; datagrams and events leave. Invariant: an answer is used
//! only if it was waited for and comes from the node that was asked; of what it names only
//! addresses that pass the policy are kept.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{
    BOOTSTRAP_SOON, CONTACTS_FIRST, Event, FOREIGN_MAX, Node, OUT_MAX, Outcome,
    PEERS_PER_LOOKUP_MAX,
};
use crate::dht::address::Refusal;
use crate::dht::bloom::Bloom;
use crate::dht::counters::{Asked, Dropped, Method};
use crate::dht::encode::QueryOut;
use crate::dht::krpc::{Args, Reply};
use crate::dht::lookup::Lookup;
use crate::dht::pending::{Due, Purpose};
use crate::dht::schedule::{Found, Task};
use crate::dht::table::K;
use crate::dht::{Contact, NodeId};
use crate::units::InfoHash;

/// What a lookup is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    /// To find nodes around ourselves.
    Bootstrap,
    /// To find nodes where none was heard of lately.
    Refresh,
    /// A torrent.
    Torrent(InfoHash, Task),
}

/// A lookup on its way, and what it brought so far.
#[derive(Debug)]
pub(super) struct Running {
    goal: Goal,
    lookup: Lookup,
    peers: BTreeSet<SocketAddr>,
    filters: Option<(Bloom, Bloom)>,
}

impl Running {
    pub(super) fn is_for_torrent(&self) -> bool {
        matches!(self.goal, Goal::Torrent(..))
    }

    pub(super) fn is_bootstrap(&self) -> bool {
        self.goal == Goal::Bootstrap
    }

    pub(super) fn is_refresh(&self) -> bool {
        self.goal == Goal::Refresh
    }

    fn args(&self) -> Args {
        match self.goal {
            Goal::Bootstrap | Goal::Refresh => Args::FindNode { target: self.lookup.target() },
            Goal::Torrent(info_hash, task) => {
                Args::GetPeers { info_hash, scrape: task == Task::Scrape, no_seeds: false }
            }
        }
    }
}

impl Node {
    /// Looks for the nodes around ourselves; false if there is nobody to ask.
    pub(super) fn start_bootstrap(&mut self, now: Instant) -> bool {
        let own = self.id();
        let contacts = self.table.closest(now, &own, CONTACTS_FIRST);
        if contacts.is_empty() && self.bootstrap.is_empty() {
            return false;
        }
        if !self.lookups.values().any(Running::is_bootstrap) {
            let seeds = self.bootstrap.clone();
            self.start(now, Goal::Bootstrap, Lookup::new(own, &contacts, &seeds));
        }
        true
    }

    pub(super) fn start_task(&mut self, now: Instant, hash: InfoHash, task: Task) {
        let contacts = self.table.closest(now, &hash.into(), CONTACTS_FIRST);
        self.start(now, Goal::Torrent(hash, task), Lookup::new(hash.into(), &contacts, &[]));
    }

    pub(super) fn start(&mut self, now: Instant, goal: Goal, lookup: Lookup) {
        self.lookup_number += 1;
        let running = Running { goal, lookup, peers: BTreeSet::new(), filters: None };
        self.lookups.insert(self.lookup_number, running);
        self.drive(now, self.lookup_number);
    }

    pub(super) fn ping(&mut self, now: Instant, addr: SocketAddr, id: Option<NodeId>) {
        self.send(now, addr, id, Purpose::Ping, &Args::Ping);
    }

    /// Takes an answer.
    pub(super) fn handle_reply(
        &mut self,
        now: Instant,
        from: SocketAddr,
        transaction: &[u8],
        reply: Reply,
    ) {
        let Some(sent) = self.pending.handle_answer(now, from, transaction) else {
            self.counters.drop(Dropped::Unasked);
            return;
        };
        self.counters.ask(sent.method, Asked::Reply);
        self.counters.waited(now.saturating_duration_since(sent.sent_at));
        self.answered_at = Some(now);
        if reply.id == self.id() || sent.id.is_some_and(|id| id != reply.id) {
            self.counters.drop(Dropped::WrongId);
            self.table.remove(from);
            // It may have learnt its address and moved; an id of its own choice is no excuse.
            let contact = Contact { id: reply.id, addr: from };
            if contact.is_verified() && contact.id != self.id() {
                self.table.handle_reply(now, contact);
            }
            self.handle_no_answer(now, from, sent.purpose);
            return;
        }
        let contact = Contact { id: reply.id, addr: from };
        if let Some(silent) = self.table.handle_reply(now, contact) {
            self.ping(now, silent.addr, Some(silent.id));
        }
        if self.table.len() < K && now >= self.bootstrap_at {
            self.tick_at = self.tick_at.min(now + BOOTSTRAP_SOON);
        }
        if let Some(external) = reply.external {
            self.handle_vote(now, from.ip(), external.ip());
        }
        match sent.purpose {
            Purpose::Ping => {}
            Purpose::Announce => self.counters.announce_count += 1,
            Purpose::Lookup(number) => self.handle_step(now, number, contact, reply),
        }
    }

    /// Takes an error message; the node is there, but of no use for what was asked.
    pub(super) fn handle_error(&mut self, now: Instant, from: SocketAddr, transaction: &[u8]) {
        let Some(sent) = self.pending.handle_answer(now, from, transaction) else {
            self.counters.drop(Dropped::Unasked);
            return;
        };
        self.counters.ask(sent.method, Asked::Error);
        self.counters.waited(now.saturating_duration_since(sent.sent_at));
        self.handle_no_answer(now, from, sent.purpose);
    }

    /// Looks for answers that are late or lost.
    pub(super) fn handle_silence(&mut self, now: Instant) {
        while let Some(due) = self.pending.poll_due(now) {
            match due {
                Due::Late(addr, sent) => {
                    if let Purpose::Lookup(number) = sent.purpose {
                        let running = self.lookups.get_mut(&number);
                        running.into_iter().for_each(|it| it.lookup.handle_late(addr));
                        self.drive(now, number);
                    }
                }
                Due::Lost(addr, sent) => {
                    self.counters.ask(sent.method, Asked::Lost);
                    // Where nobody answered meanwhile, it is our own network that failed.
                    if self.answered_at.is_some_and(|at| at >= sent.sent_at) {
                        self.table.handle_failure(addr);
                    }
                    self.handle_no_answer(now, addr, sent.purpose);
                }
            }
        }
    }

    fn handle_no_answer(&mut self, now: Instant, addr: SocketAddr, purpose: Purpose) {
        if let Purpose::Lookup(number) = purpose {
            let running = self.lookups.get_mut(&number);
            running.into_iter().for_each(|it| it.lookup.handle_failure(addr));
            self.drive(now, number);
        }
    }

    /// Uses what a node answered to a step of a lookup.
    fn handle_step(&mut self, now: Instant, number: u64, from: Contact, reply: Reply) {
        let nodes = self.sift_nodes(reply.nodes);
        let Some(running) = self.lookups.get_mut(&number) else { return };
        if running.lookup.handle_reply(from, reply.token, &nodes)
            && let Goal::Torrent(info_hash, _) = running.goal
        {
            if let (Some(seeds), Some(leeches)) = (reply.seeds, reply.leeches) {
                let filters = running.filters.get_or_insert_default();
                filters.0.merge(&seeds);
                filters.1.merge(&leeches);
            }
            let mut peers = Vec::new();
            for peer in reply.values {
                if self.gate.admit_peer(peer).is_err() {
                    self.counters.poisoned_count += 1;
                } else if running.peers.len() < PEERS_PER_LOOKUP_MAX && running.peers.insert(peer) {
                    peers.push(peer);
                }
            }
            if !peers.is_empty() {
                self.event(Event::Peers { info_hash, peers });
            }
        }
        self.drive(now, number);
    }

    /// The nodes of our family that may be asked; those of the other one are kept apart.
    fn sift_nodes(&mut self, nodes: Vec<Contact>) -> Vec<Contact> {
        let mut kept = Vec::with_capacity(nodes.len());
        for node in nodes {
            match self.gate.admit_node(node.addr) {
                Ok(()) if node.id != self.id() => kept.push(node),
                Ok(()) => {}
                Err(Refusal::Family) if self.gate.admit_peer(node.addr).is_ok() => {
                    if self.wants_both && self.foreign.len() < FOREIGN_MAX {
                        self.foreign.push(node);
                    }
                }
                Err(_) => self.counters.poisoned_count += 1,
            }
        }
        kept
    }

    /// Sends the next queries of a lookup, and ends it if there are none.
    fn drive(&mut self, now: Instant, number: u64) {
        let Some(mut running) = self.lookups.remove(&number) else { return };
        let args = running.args();
        let is_wanted = match running.goal {
            Goal::Torrent(hash, Task::Announce) => self.schedule.announce(hash).is_some(),
            _ => true,
        };
        while is_wanted && let Some((addr, id)) = running.lookup.poll_query() {
            if !self.send(now, addr, id, Purpose::Lookup(number), &args) {
                running.lookup.handle_failure(addr);
            }
        }
        if !is_wanted || running.lookup.is_done() {
            self.finish(now, &running);
        } else {
            self.lookups.insert(number, running);
        }
    }

    fn finish(&mut self, now: Instant, running: &Running) {
        self.counters.lookup_count += 1;
        let Goal::Torrent(info_hash, task) = running.goal else {
            if running.is_bootstrap() {
                self.table.make_stale();
            }
            self.tick_at = self.tick_at.min(now + BOOTSTRAP_SOON);
            return;
        };
        let announce_count = match task {
            Task::Announce => self.announce(now, info_hash, &running.lookup),
            Task::FindPeers | Task::Scrape => 0,
        };
        let found = Found { announce_count, peer_count: running.peers.len() };
        self.schedule.handle_done(now, (info_hash, task), found, &mut self.rng);
        let (query_count, reply_count) = running.lookup.counts();
        let filters = running.filters.as_ref();
        let outcome = Outcome {
            query_count,
            reply_count,
            hop_count: running.lookup.hop_count(),
            peer_count: running.peers.len(),
            announce_count,
            estimate: filters.map(|(seeds, leeches)| (seeds.estimate(), leeches.estimate())),
        };
        self.event(Event::Done { info_hash, task, outcome });
    }

    /// Announces to the closest nodes that gave a token; gives how many were told.
    fn announce(&mut self, now: Instant, info_hash: InfoHash, lookup: &Lookup) -> usize {
        let Some(announce) = self.schedule.announce(info_hash) else { return 0 };
        let port = (!self.implied_port).then_some(announce.port);
        let mut count = 0;
        for (contact, token) in lookup.closest() {
            let Some(token) = token.map(<[u8]>::to_vec) else { continue };
            let args = Args::AnnouncePeer { info_hash, port, token, is_seed: announce.is_seed };
            let is_sent = self.send(now, contact.addr, Some(contact.id), Purpose::Announce, &args);
            count += usize::from(is_sent);
        }
        count
    }

    /// Sends a query; false if there is no place for it.
    fn send(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        id: Option<NodeId>,
        purpose: Purpose,
        args: &Args,
    ) -> bool {
        let transaction = self.secrets.next_transaction();
        let method = Method::of(args);
        if self.out.len() >= OUT_MAX
            || !self.pending.insert(now, addr, transaction, (purpose, method, id))
        {
            self.counters.drop(Dropped::QueueFull);
            return false;
        }
        let query = QueryOut {
            transaction: &transaction.to_be_bytes(),
            id: &self.id(),
            is_read_only: self.is_read_only,
            wants_both: self.wants_both,
            args,
            port: self.gate.local.port(),
        };
        self.transmit(addr, query.encode(), OUT_MAX)
    }

    /// Takes one node's word on where we are; our id follows when most agree (BEP 42).
    fn handle_vote(&mut self, now: Instant, voter: IpAddr, ip: IpAddr) {
        let Some(ip) = self.votes.handle_vote(now, voter, ip, self.gate.external) else { return };
        self.gate.external = Some(ip);
        if !self.id().is_valid_for(ip) {
            let id = NodeId::for_ip(ip, &mut self.rng);
            self.table.set_own(now, id);
            self.start_bootstrap(now);
        }
        self.event(Event::Moved { external_ip: ip, id: self.id() });
    }
}
