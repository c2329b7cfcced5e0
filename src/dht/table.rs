//! The routing table (BEP 5): the nodes that we know, many near our id and few far from it.
//!
//! Nodes that answered, failures and `now` enter; the closest nodes, and nodes worth a ping, leave.
//! Invariant: a node is here only because it answered a query of ours; one host has one place, one
//! network at most [`NODES_PER_SUBNET_MAX`], and there are at most [`BUCKETS_MAX`] buckets of
//! [`K`] nodes and as many spares.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::address::{Origin, Subnet};
use super::{Contact, NodeId};

/// Nodes in a bucket, and in the answer to a lookup (BEP 5).
pub const K: usize = 8;

/// Buckets; the last one holds whatever is closer to us. Only a network of 2^35 nodes needs more.
pub(super) const BUCKETS_MAX: usize = 32;

/// Nodes of one /24 or /64, spares included.
pub(super) const NODES_PER_SUBNET_MAX: usize = 4;

/// Silence after which a node is questionable, and a bucket stale (BEP 5).
pub(super) const FRESH: Duration = Duration::from_secs(15 * 60);

/// Failures in a row that make a node bad.
pub(super) const BAD_FAILURES: u8 = 2;

/// Failures in a row after which a node goes even if nobody takes its place.
pub(super) const GONE_FAILURES: u8 = 5;

/// Time between two pings of one questionable node.
const PROBE_EVERY: Duration = Duration::from_secs(20);

/// What a node is good for (BEP 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// It answered or asked within [`FRESH`].
    Good,
    /// It has been silent for longer, or missed one query.
    Questionable,
    /// It missed several queries in a row.
    Bad,
}

#[derive(Clone, Debug)]
struct Entry {
    contact: Contact,
    is_verified: bool,
    replied_at: Instant,
    /// When it last sent anything.
    heard_at: Instant,
    probed_at: Option<Instant>,
    failure_count: u8,
}

impl Entry {
    fn state(&self, now: Instant) -> State {
        if self.failure_count >= BAD_FAILURES {
            State::Bad
        } else if self.failure_count == 0 && now.saturating_duration_since(self.heard_at) < FRESH {
            State::Good
        } else {
            State::Questionable
        }
    }
}

#[derive(Clone, Debug)]
struct Bucket {
    nodes: Vec<Entry>,
    /// They answered when there was no place.
    spares: Vec<Entry>,
    /// When a node last came in or answered; `None` if it is to be looked up soon.
    touched_at: Option<Instant>,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { nodes: Vec::new(), spares: Vec::new(), touched_at: Some(now) }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.nodes.iter().chain(&self.spares)
    }

    /// Puts the best spare into a free place.
    fn promote(&mut self) {
        if self.nodes.len() < K
            && let Some((index, _)) = self
                .spares
                .iter()
                .enumerate()
                .max_by_key(|(_, spare)| (spare.is_verified, spare.replied_at))
        {
            let spare = self.spares.remove(index);
            self.nodes.push(spare);
        }
    }

    /// Keeps a node that has no place; the worst spare goes for it.
    fn spare(&mut self, entry: Entry) {
        self.spares.push(entry);
        if self.spares.len() > K {
            let rank = |spare: &Entry| (spare.is_verified, spare.replied_at);
            let worst = (0..self.spares.len()).min_by_key(|at| rank(&self.spares[*at]));
            worst.map(|index| self.spares.remove(index));
        }
    }
}

/// Nodes of one family around one id of ours.
#[derive(Debug)]
pub(super) struct Table {
    own: NodeId,
    buckets: Vec<Bucket>,
}

impl Table {
    pub(super) fn new(now: Instant, own: NodeId) -> Self {
        Self { own, buckets: vec![Bucket::new(now)] }
    }

    /// Our id.
    pub(super) fn own(&self) -> NodeId {
        self.own
    }

    /// Nodes with a place.
    pub(super) fn len(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.nodes.len()).sum()
    }

    /// Sorts all nodes anew around another id of ours.
    pub(super) fn set_own(&mut self, now: Instant, own: NodeId) {
        let old = std::mem::replace(self, Self::new(now, own));
        let (nodes, spares): (Vec<_>, Vec<_>) =
            old.buckets.into_iter().map(|bucket| (bucket.nodes, bucket.spares)).unzip();
        for entry in nodes.into_iter().chain(spares).flatten() {
            if entry.contact.id != own {
                self.place(now, entry);
            }
        }
    }

    /// Takes a node that answered at `now`. Gives a questionable node whose place it would take.
    pub(super) fn handle_reply(&mut self, now: Instant, contact: Contact) -> Option<Contact> {
        let index = self.index(&contact.id);
        let bucket = self.buckets.get_mut(index)?;
        let known = bucket.nodes.iter_mut().chain(&mut bucket.spares);
        if let Some(entry) = known.into_iter().find(|entry| entry.contact == contact) {
            entry.replied_at = now;
            entry.heard_at = now;
            entry.failure_count = 0;
            bucket.touched_at = Some(now);
            return None;
        }
        // Whoever has its address now has not the id that we know.
        self.remove(contact.addr);
        if !self.may_enter(now, &contact) {
            return None;
        }
        self.remove_id(&contact.id);
        let entry = Entry {
            contact,
            is_verified: contact.is_verified(),
            replied_at: now,
            heard_at: now,
            probed_at: None,
            failure_count: 0,
        };
        self.place(now, entry)
    }

    /// Notes a query from a node; gives whether it is one of ours.
    pub(super) fn handle_query(&mut self, now: Instant, contact: Contact) -> bool {
        let index = self.index(&contact.id);
        let entries =
            self.buckets.get_mut(index).map(|it| it.nodes.iter_mut().chain(&mut it.spares));
        let known = entries.into_iter().flatten().find(|entry| entry.contact == contact);
        match known {
            Some(entry) => {
                entry.heard_at = now;
                true
            }
            None => false,
        }
    }

    /// Notes that the node at `addr` did not answer.
    pub(super) fn handle_failure(&mut self, addr: SocketAddr) {
        for bucket in &mut self.buckets {
            bucket.spares.retain(|spare| spare.contact.addr != addr);
            let Some(at) = bucket.nodes.iter().position(|node| node.contact.addr == addr) else {
                continue;
            };
            let node = &mut bucket.nodes[at];
            node.failure_count = node.failure_count.saturating_add(1);
            let has_heir = node.failure_count >= BAD_FAILURES && !bucket.spares.is_empty();
            if has_heir || node.failure_count >= GONE_FAILURES {
                bucket.nodes.remove(at);
                bucket.promote();
            }
            return;
        }
    }

    /// Forgets the node at `addr`, because another one is there now.
    pub(super) fn remove(&mut self, addr: SocketAddr) {
        self.remove_if(|contact| contact.addr == addr);
    }

    /// Whether a node that nobody has asked yet could get a place if it answered.
    pub(super) fn wants(&self, now: Instant, contact: &Contact) -> bool {
        let index = self.index(&contact.id);
        let Some(bucket) = self.buckets.get(index) else { return false };
        let mut entries = self.buckets.iter().flat_map(Bucket::entries);
        if let Some(known) = entries.find(|entry| entry.contact.addr == contact.addr) {
            // It may have another id by now, for instance because it learnt its address.
            return known.contact.id != contact.id && contact.is_verified();
        }
        let is_better = |node: &Entry| {
            node.state(now) != State::Good || (!node.is_verified && contact.is_verified())
        };
        let has_place =
            bucket.nodes.len() < K || self.may_split(index) || bucket.nodes.iter().any(is_better);
        has_place && self.may_enter(now, contact)
    }

    /// The nodes closest to `target` that are not bad, at most `count`.
    pub(super) fn closest(&self, now: Instant, target: &NodeId, count: usize) -> Vec<Contact> {
        let nodes = self.buckets.iter().flat_map(|bucket| &bucket.nodes);
        let mut found: Vec<_> = nodes
            .filter(|node| node.state(now) != State::Bad)
            .map(|node| (node.contact.id.distance(target), node.contact))
            .collect();
        if found.len() > count {
            found.select_nth_unstable_by_key(count, |(distance, _)| *distance);
            found.truncate(count);
        }
        found.sort_unstable_by_key(|(distance, _)| *distance);
        found.into_iter().map(|(_, contact)| contact).collect()
    }

    /// Good, questionable and bad nodes.
    pub(super) fn counts(&self, now: Instant) -> [usize; 3] {
        let mut counts = [0; 3];
        for node in self.buckets.iter().flat_map(|bucket| &bucket.nodes) {
            counts[node.state(now) as usize] += 1;
        }
        counts
    }

    /// Nodes whose id belongs to their address (BEP 42).
    pub(super) fn verified_count(&self) -> usize {
        self.buckets.iter().flat_map(|bucket| &bucket.nodes).filter(|node| node.is_verified).count()
    }

    /// The node that has been silent for longest and is worth a ping; that it gets one is noted.
    pub(super) fn poll_questionable(&mut self, now: Instant) -> Option<Contact> {
        let nodes = self.buckets.iter_mut().flat_map(|bucket| &mut bucket.nodes);
        let rested = nodes.filter(|node| {
            let rest = node.probed_at.map(|at| now.saturating_duration_since(at));
            node.state(now) != State::Good && rest.is_none_or(|rest| rest >= PROBE_EVERY)
        });
        let node = rested.min_by_key(|node| (node.probed_at, node.heard_at))?;
        node.probed_at = Some(now);
        Some(node.contact)
    }

    /// An id in a bucket that nothing happened in for [`FRESH`], to be looked up; that it is
    /// looked up is noted.
    pub(super) fn poll_stale(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Option<NodeId> {
        let is_old = |at| now.saturating_duration_since(at) >= FRESH;
        let is_stale = |bucket: &Bucket| bucket.touched_at.is_none_or(is_old);
        let index = self.buckets.iter().position(is_stale)?;
        self.buckets[index].touched_at = Some(now);
        Some(match index + 1 == self.buckets.len() {
            true => self.own.random_beside(index + rng.usize(..4), rng),
            false => self.own.random_beside(index, rng),
        })
    }

    /// Has every bucket that is not full looked up soon: there are nodes around, and we are new.
    pub(super) fn make_stale(&mut self) {
        for bucket in self.buckets.iter_mut().filter(|bucket| bucket.nodes.len() < K) {
            bucket.touched_at = None;
        }
    }

    /// All nodes that are not bad, for saving; those that answered last come first.
    pub(super) fn export(&self, now: Instant) -> Vec<Contact> {
        let nodes = self.buckets.iter().flat_map(|bucket| &bucket.nodes);
        let mut kept: Vec<_> = nodes.filter(|node| node.state(now) != State::Bad).collect();
        kept.sort_by_key(|node| std::cmp::Reverse(node.replied_at));
        kept.into_iter().map(|node| node.contact).collect()
    }

    fn index(&self, id: &NodeId) -> usize {
        self.own.shared_bits(id).min(self.buckets.len() - 1)
    }

    fn may_split(&self, index: usize) -> bool {
        index + 1 == self.buckets.len() && self.buckets.len() < BUCKETS_MAX
    }

    fn remove_id(&mut self, id: &NodeId) {
        self.remove_if(|contact| contact.id == *id);
    }

    fn remove_if(&mut self, is_meant: impl Fn(&Contact) -> bool) {
        for bucket in &mut self.buckets {
            bucket.spares.retain(|entry| !is_meant(&entry.contact));
            if let Some(at) = bucket.nodes.iter().position(|entry| is_meant(&entry.contact)) {
                bucket.nodes.remove(at);
                bucket.promote();
            }
        }
    }

    /// Whether the host, its network and its id allow one more place.
    fn may_enter(&self, now: Instant, contact: &Contact) -> bool {
        let (origin, subnet) = (Origin::of(contact.addr), Subnet::of(contact.addr.ip()));
        let mut subnet_count = 0;
        for entry in self.buckets.iter().flat_map(Bucket::entries) {
            let other = entry.contact.addr;
            let is_alive = entry.state(now) != State::Bad;
            if is_alive && (entry.contact.id == contact.id || Origin::of(other) == origin) {
                return false;
            }
            subnet_count += usize::from(subnet.is_some() && Subnet::of(other.ip()) == subnet);
        }
        subnet_count < NODES_PER_SUBNET_MAX && contact.id != self.own
    }

    /// Gives an entry its place, or one among the spares.
    fn place(&mut self, now: Instant, entry: Entry) -> Option<Contact> {
        let mut index = self.index(&entry.contact.id);
        while self.buckets[index].nodes.len() >= K && self.may_split(index) {
            self.split(now);
            index = self.index(&entry.contact.id);
        }
        let bucket = &mut self.buckets[index];
        bucket.touched_at = Some(now);
        if bucket.nodes.len() < K {
            bucket.nodes.push(entry);
            return None;
        }
        let bad = bucket.nodes.iter().position(|node| node.state(now) == State::Bad);
        if let Some(at) = bad {
            bucket.nodes[at] = entry;
            return None;
        }
        let unverified = bucket.nodes.iter().rposition(|node| !node.is_verified);
        if let Some(at) = unverified.filter(|_| entry.is_verified) {
            let loser = std::mem::replace(&mut bucket.nodes[at], entry);
            bucket.spare(loser);
            return None;
        }
        bucket.spare(entry);
        let silent = bucket.nodes.iter_mut().filter(|it| it.state(now) == State::Questionable);
        let rested = silent.filter(|node| {
            let rest = node.probed_at.map(|at| now.saturating_duration_since(at));
            rest.is_none_or(|rest| rest >= PROBE_EVERY)
        });
        let oldest = rested.min_by_key(|node| node.heard_at)?;
        oldest.probed_at = Some(now);
        Some(oldest.contact)
    }

    /// Splits the last bucket: what is closer to us than its first bit says moves on.
    fn split(&mut self, now: Instant) {
        let depth = self.buckets.len();
        let Some(last) = self.buckets.last_mut() else { return };
        let own = self.own;
        let mut next = Bucket { touched_at: last.touched_at, ..Bucket::new(now) };
        for (from, to) in [(&mut last.nodes, &mut next.nodes), (&mut last.spares, &mut next.spares)]
        {
            let moved = from.extract_if(.., |entry| own.shared_bits(&entry.contact.id) >= depth);
            to.extend(moved);
        }
        while last.nodes.len() < K && !last.spares.is_empty() {
            last.promote();
        }
        while next.nodes.len() < K && !next.spares.is_empty() {
            next.promote();
        }
        self.buckets.push(next);
    }

    /// What must always hold.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let all: Vec<_> = self.buckets.iter().flat_map(Bucket::entries).collect();
        let origins: std::collections::BTreeSet<_> =
            all.iter().map(|entry| Origin::of(entry.contact.addr)).collect();
        let alive = all.iter().filter(|it| it.failure_count < BAD_FAILURES).count();
        assert!(origins.len() >= alive && self.buckets.len() <= BUCKETS_MAX);
        for (index, bucket) in self.buckets.iter().enumerate() {
            assert!(bucket.nodes.len() <= K && bucket.spares.len() <= K);
            for entry in bucket.entries() {
                assert_eq!(self.index(&entry.contact.id), index);
                assert_ne!(entry.contact.id, self.own);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([0; 20]);

    fn contact(host: u32, rng: &mut fastrand::Rng) -> Contact {
        let ip = std::net::Ipv4Addr::from_bits(0x0800_0000 + (host << 8));
        Contact { id: NodeId::random(rng), addr: (ip, 2000).into() }
    }

    fn far(host: u32, rng: &mut fastrand::Rng) -> Contact {
        let mut contact = contact(host, rng);
        contact.id.0[0] |= 0x80;
        contact
    }

    fn verified(host: u32, rng: &mut fastrand::Rng) -> Contact {
        loop {
            let mut contact = contact(host, rng);
            contact.id = NodeId::for_ip(contact.addr.ip(), rng);
            if contact.id.0[0] & 0x80 != 0 {
                return contact;
            }
        }
    }

    #[test]
    fn buckets_split_towards_us_only() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        for host in 0..2000 {
            table.handle_reply(now, contact(host, &mut rng));
            table.check_invariants();
        }
        assert!((7..=12).contains(&table.buckets.len()), "{}", table.buckets.len());
        assert!((56..=90).contains(&table.len()), "{}", table.len());
        let target = NodeId::random(&mut rng);
        let closest = table.closest(now, &target, K);
        assert_eq!(closest.len(), K);
        assert!(closest.is_sorted_by_key(|contact| contact.id.distance(&target)));
        let all = table.closest(now, &target, 1000);
        assert_eq!((all.len(), &all[..K]), (table.len(), &closest[..]));
        table.set_own(now, NodeId([0xff; 20]));
        table.check_invariants();
        assert!(table.len() >= 2 * K);
    }

    #[test]
    fn a_host_has_one_place_and_a_network_few() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        let one = contact(1, &mut rng);
        for port in 2000..2100 {
            let addr = SocketAddr::new(one.addr.ip(), port);
            table.handle_reply(now, Contact { id: NodeId::random(&mut rng), addr });
        }
        assert_eq!(table.len(), 1);
        for host in 1..200u8 {
            let addr = ([8, 0, 1, host], 2000).into();
            table.handle_reply(now, Contact { id: NodeId::random(&mut rng), addr });
        }
        assert_eq!(table.len(), NODES_PER_SUBNET_MAX);
        for port in 2000..2004 {
            let addr = ([127, 0, 0, 1], port).into();
            table.handle_reply(now, Contact { id: NodeId::random(&mut rng), addr });
        }
        assert_eq!(table.len(), NODES_PER_SUBNET_MAX + 4, "local ones are told apart by port");
        table.handle_reply(now, Contact { id: OWN, addr: ([9, 9, 9, 9], 2000).into() });
        assert_eq!(table.len(), NODES_PER_SUBNET_MAX + 4, "our own id is nobody else's");
    }

    #[test]
    fn an_id_stays_with_its_address_until_that_is_bad() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        let honest = far(1, &mut rng);
        let thief = Contact { id: honest.id, ..far(2, &mut rng) };
        table.handle_reply(now, honest);
        table.handle_reply(now, thief);
        assert_eq!(table.closest(now, &OWN, K), [honest]);
        (0..BAD_FAILURES).for_each(|_| table.handle_failure(honest.addr));
        assert!(table.closest(now, &OWN, K).is_empty());
        table.handle_reply(now, thief);
        assert_eq!(table.closest(now, &OWN, K), [thief]);
        let restarted = Contact { addr: thief.addr, ..far(3, &mut rng) };
        table.handle_reply(now, restarted);
        assert_eq!(table.closest(now, &OWN, K), [restarted]);
    }

    #[test]
    fn old_good_nodes_stay_and_silent_ones_are_pinged_first() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        table.buckets.push(Bucket::new(now));
        let old: Vec<_> = (0..8).map(|host| far(host, &mut rng)).collect();
        for node in &old {
            assert_eq!(table.handle_reply(now, *node), None);
        }
        let newcomer = far(100, &mut rng);
        assert!(!table.wants(now, &newcomer));
        assert_eq!(table.handle_reply(now, newcomer), None, "all are good");
        let later = now + FRESH;
        old[1..].iter().for_each(|node| assert!(table.handle_query(later, *node)));
        assert_eq!(table.counts(later), [7, 1, 0]);
        let other = far(101, &mut rng);
        assert!(table.wants(later, &other));
        assert_eq!(table.handle_reply(later, other), Some(old[0]));
        assert_eq!(table.poll_questionable(later), None, "it was pinged just now");
        assert_eq!(table.poll_questionable(later + PROBE_EVERY), Some(old[0]));
        (0..BAD_FAILURES).for_each(|_| table.handle_failure(old[0].addr));
        let kept = table.closest(later, &OWN, 100);
        assert!(
            kept.contains(&other) && !kept.contains(&old[0]),
            "the newest spare took its place"
        );
        table.check_invariants();
    }

    #[test]
    fn verified_nodes_take_the_places_of_others() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        table.buckets.push(Bucket::new(now));
        for host in 0..20 {
            table.handle_reply(now, far(host, &mut rng));
        }
        assert_eq!((table.len(), table.verified_count()), (K, 0));
        for host in 50..58 {
            let node = verified(host, &mut rng);
            assert!(table.wants(now, &node));
            table.handle_reply(now, node);
        }
        assert_eq!((table.len(), table.verified_count()), (K, K));
        assert!(!table.wants(now, &verified(70, &mut rng)));
        table.check_invariants();
    }

    #[test]
    fn failures_end_in_removal_and_stale_buckets_are_named() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(3);
        let mut table = Table::new(now, OWN);
        let node = contact(1, &mut rng);
        table.handle_reply(now, node);
        for _ in 1..GONE_FAILURES {
            table.handle_failure(node.addr);
            assert_eq!(table.len(), 1);
        }
        table.handle_failure(node.addr);
        assert_eq!(table.len(), 0);
        assert_eq!(table.poll_stale(now, &mut rng), None);
        assert!(table.poll_stale(now + FRESH, &mut rng).is_some());
        assert_eq!(table.poll_stale(now + FRESH, &mut rng), None, "it is being looked up");
    }
}
