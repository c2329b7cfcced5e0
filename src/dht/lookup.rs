//! One iterative lookup (BEP 5): ask the closest nodes known for closer ones, until there are none.
//!
//! Nodes, answers and silences enter; whom to ask next, and the closest nodes that answered,
//! leave. Invariant: at most [`SHORTLIST_MAX`] nodes are kept, [`QUERIES_MAX`] asked and [`ALPHA`]
//! waited for at a time; one host is asked once, and of one network at most
//! [`SHORTLIST_PER_SUBNET_MAX`] hosts count.
//!
//! Whoever wants to own a lookup puts many nodes near its target. Ids that belong to their
//! addresses (BEP 42) cannot be chosen so freely; so of the nodes that decide a lookup at most
//! [`UNVERIFIED_MAX`] have other ids, as long as there are enough, and these come on top: they take
//! no place from the others.
//!
//! A datagram that is lost must not cost one of the closest nodes: when everybody else has answered,
//! those that are late are asked once more.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use super::address::{Origin, Subnet};
use super::id::Distance;
use super::table::K;
use super::{Contact, NodeId};

/// Queries that are waited for at a time.
pub(super) const ALPHA: usize = 4;

/// Nodes that one lookup keeps.
pub(super) const SHORTLIST_MAX: usize = 96;

/// Nodes of one /24 or /64 that one lookup keeps.
pub(super) const SHORTLIST_PER_SUBNET_MAX: usize = 8;

/// Queries that one lookup sends.
pub(super) const QUERIES_MAX: usize = 120;

/// Unanswered queries of one lookup, late ones included.
pub(super) const IN_FLIGHT_MAX: usize = 16;

/// How often one node is asked.
pub(super) const TRIES_MAX: u8 = 2;

/// Nodes with ids of their own choice beside the [`K`] others that decide a lookup.
pub(super) const UNVERIFIED_MAX: usize = K / 2;

/// Addresses without ids that one lookup starts from.
pub(super) const SEEDS_MAX: usize = 32;

/// How far a node of the shortlist is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    New,
    Asked,
    /// It was asked, and others answer faster.
    Late,
    Replied,
    Failed,
}

#[derive(Clone, Debug)]
struct Candidate {
    distance: Distance,
    contact: Contact,
    is_verified: bool,
    stage: Stage,
    /// Queries that it was sent.
    tries: u8,
    /// Answers it took to learn of it.
    hop_count: u32,
    token: Option<Vec<u8>>,
}

/// A lookup on its way.
#[derive(Debug)]
pub(super) struct Lookup {
    target: NodeId,
    /// Sorted by distance.
    shortlist: Vec<Candidate>,
    seeds: Vec<SocketAddr>,
    seeds_asked: Vec<(SocketAddr, Stage)>,
    query_count: usize,
    reply_count: usize,
}

impl Lookup {
    /// A lookup that starts from nodes, and from addresses where there are too few.
    pub(super) fn new(target: NodeId, contacts: &[Contact], seeds: &[SocketAddr]) -> Self {
        let mut lookup = Self {
            target,
            shortlist: Vec::new(),
            seeds: seeds.iter().rev().take(SEEDS_MAX).copied().collect(),
            seeds_asked: Vec::new(),
            query_count: 0,
            reply_count: 0,
        };
        contacts.iter().for_each(|contact| lookup.add(*contact, 0));
        lookup
    }

    pub(super) fn target(&self) -> NodeId {
        self.target
    }

    /// Queries sent and answers that came.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.query_count, self.reply_count)
    }

    /// Whom to ask now; its id if that is known.
    pub(super) fn poll_query(&mut self) -> Option<(SocketAddr, Option<NodeId>)> {
        let (asked, late) = self.in_flight();
        if asked >= ALPHA || asked + late >= IN_FLIGHT_MAX || self.query_count >= QUERIES_MAX {
            return None;
        }
        let front = self.front(false);
        let fresh = front.iter().copied().find(|at| self.shortlist[*at].stage == Stage::New);
        if let Some(next) = fresh.or_else(|| self.next_retry()) {
            self.query_count += 1;
            let candidate = &mut self.shortlist[next];
            candidate.stage = Stage::Asked;
            candidate.tries += 1;
            return Some((candidate.contact.addr, Some(candidate.contact.id)));
        }
        if front.len() >= K {
            return None;
        }
        let seed = self.seeds.pop()?;
        let is_known = self.shortlist.iter().any(|it| it.contact.addr == seed);
        if is_known || self.seeds_asked.iter().any(|(addr, _)| *addr == seed) {
            return self.poll_query();
        }
        self.query_count += 1;
        self.seeds_asked.push((seed, Stage::Asked));
        Some((seed, None))
    }

    /// Takes an answer: who gave it, its token, and the nodes it names. Gives whether the node was
    /// asked by this lookup and is who it was said to be.
    pub(super) fn handle_reply(
        &mut self,
        from: Contact,
        token: Option<Vec<u8>>,
        nodes: &[Contact],
    ) -> bool {
        if let Some(seed) = self.seeds_asked.iter_mut().find(|(addr, _)| *addr == from.addr) {
            seed.1 = Stage::Replied;
            self.add(from, 0);
        }
        let asked = self.shortlist.iter_mut().find(|it| it.contact.addr == from.addr);
        let Some(candidate) = asked else { return false };
        if candidate.contact.id != from.id {
            candidate.stage = Stage::Failed;
            return false;
        }
        candidate.stage = Stage::Replied;
        candidate.token = token;
        let hop_count = candidate.hop_count + 1;
        self.reply_count += 1;
        nodes.iter().for_each(|node| self.add(*node, hop_count));
        true
    }

    /// Notes that an answer is late; somebody else may be asked meanwhile.
    pub(super) fn handle_late(&mut self, addr: SocketAddr) {
        self.set_stage(addr, Stage::Late);
    }

    /// Notes that no answer came.
    pub(super) fn handle_failure(&mut self, addr: SocketAddr) {
        self.set_stage(addr, Stage::Failed);
    }

    /// Whether nothing that is still to come can change the result for the better.
    pub(super) fn is_done(&self) -> bool {
        let (asked, late) = self.in_flight();
        if self.query_count >= QUERIES_MAX {
            return asked == 0;
        }
        let front = self.front(false);
        let is_settled = front.iter().all(|at| self.shortlist[*at].stage == Stage::Replied);
        match front.len() >= K {
            true => is_settled && self.next_retry().is_none(),
            false => is_settled && self.seeds.is_empty() && asked + late == 0,
        }
    }

    /// The nodes that decided the lookup and answered, the closest first, with their tokens.
    pub(super) fn closest(&self) -> impl Iterator<Item = (Contact, Option<&[u8]>)> {
        self.front(false).into_iter().filter_map(|at| {
            let candidate = &self.shortlist[at];
            let replied = candidate.stage == Stage::Replied;
            replied.then_some((candidate.contact, candidate.token.as_deref()))
        })
    }

    /// Answers in a row that led to the closest node that answered.
    pub(super) fn hop_count(&self) -> u32 {
        let closest = self.shortlist.iter().find(|it| it.stage == Stage::Replied);
        closest.map_or(0, |candidate| candidate.hop_count + 1)
    }

    fn in_flight(&self) -> (usize, usize) {
        let stages = self.shortlist.iter().map(|candidate| candidate.stage);
        let stages = stages.chain(self.seeds_asked.iter().map(|(_, stage)| *stage));
        stages.fold((0, 0), |(asked, late), stage| match stage {
            Stage::Asked => (asked + 1, late),
            Stage::Late => (asked, late + 1),
            _ => (asked, late),
        })
    }

    fn set_stage(&mut self, addr: SocketAddr, stage: Stage) {
        let candidates = self.shortlist.iter_mut().map(|it| (it.contact.addr, &mut it.stage));
        let seeds = self.seeds_asked.iter_mut().map(|(addr, stage)| (*addr, stage));
        for (_, place) in candidates.chain(seeds).filter(|(it, _)| *it == addr) {
            if matches!(place, Stage::Asked | Stage::Late) {
                *place = stage;
            }
        }
    }

    /// The closest node that would decide the lookup if it were not late, and may be asked again.
    fn next_retry(&self) -> Option<usize> {
        self.front(true).into_iter().find(|at| {
            let candidate = &self.shortlist[*at];
            candidate.stage == Stage::Late && candidate.tries < TRIES_MAX
        })
    }

    /// Indices of the nodes that decide the lookup: the [`K`] closest that did not fail and are not
    /// late, unless late ones are taken too; with up to [`UNVERIFIED_MAX`] unverified ones between
    /// them, or as many as there have to be to make up [`K`].
    fn front(&self, takes_late: bool) -> Vec<usize> {
        let (mut front, mut rest) = (Vec::with_capacity(K + UNVERIFIED_MAX), Vec::new());
        let mut unverified_count = 0;
        for (at, candidate) in self.shortlist.iter().enumerate() {
            let is_out = match candidate.stage {
                Stage::Failed => true,
                Stage::Late => !takes_late,
                Stage::New | Stage::Asked | Stage::Replied => false,
            };
            if is_out {
                continue;
            }
            if candidate.is_verified || unverified_count < UNVERIFIED_MAX {
                unverified_count += usize::from(!candidate.is_verified);
                front.push(at);
            } else if rest.len() < K {
                rest.push(at);
            }
            if front.len() - unverified_count == K {
                return front;
            }
        }
        front.extend(rest.into_iter().take(K.saturating_sub(front.len())));
        front.sort_unstable();
        front
    }

    /// Takes a node into the shortlist, unless its host or network is there already.
    fn add(&mut self, contact: Contact, hop_count: u32) {
        let (origin, subnet) = (Origin::of(contact.addr), Subnet::of(contact.addr.ip()));
        let mut subnet_count = 0;
        for other in &self.shortlist {
            let addr = other.contact.addr;
            let is_same = Origin::of(addr) == origin || other.contact.id == contact.id;
            if addr == contact.addr || (is_same && other.stage != Stage::Failed) {
                return;
            }
            subnet_count += usize::from(subnet.is_some() && Subnet::of(addr.ip()) == subnet);
        }
        if subnet_count >= SHORTLIST_PER_SUBNET_MAX {
            return;
        }
        let distance = contact.id.distance(&self.target);
        let at = self.shortlist.partition_point(|other| other.distance < distance);
        let candidate = Candidate {
            distance,
            contact,
            is_verified: contact.is_verified(),
            stage: Stage::New,
            tries: 0,
            hop_count,
            token: None,
        };
        self.shortlist.insert(at, candidate);
        if self.shortlist.len() > SHORTLIST_MAX {
            self.shorten();
        }
    }

    /// Forgets the farthest node that is not waited for; an unverified one where they are more
    /// than half.
    fn shorten(&mut self) {
        let is_waited_for = |it: &Candidate| matches!(it.stage, Stage::Asked | Stage::Late);
        let unverified_count = self.shortlist.iter().filter(|it| !it.is_verified).count();
        let spares_verified = unverified_count > SHORTLIST_MAX / 2;
        let goes = |it: &Candidate| !(is_waited_for(it) || spares_verified && it.is_verified);
        let farthest = self.shortlist.iter().rposition(goes);
        farthest.map(|at| self.shortlist.remove(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: NodeId = NodeId([0; 20]);

    /// A node at `distance`, on a host and network of its own, local so that it is verified.
    fn node(distance: u8) -> Contact {
        let mut id = [0; 20];
        id[1] = distance;
        Contact { id: NodeId(id), addr: ([10, 0, distance, 1], 2000).into() }
    }

    fn public(distance: u8, host: [u8; 4]) -> Contact {
        Contact { addr: (host, 2000).into(), ..node(distance) }
    }

    #[test]
    fn it_walks_towards_the_target_and_ends() {
        let mut lookup = Lookup::new(TARGET, &[node(200)], &[]);
        let mut asked = Vec::new();
        while let Some((addr, id)) = lookup.poll_query() {
            let id = id.unwrap();
            asked.push(id.0[1]);
            // Every node knows those that are up to 30 closer.
            let known: Vec<_> =
                (1..=30).filter_map(|step| id.0[1].checked_sub(step)).map(node).collect();
            let token = Some(vec![id.0[1]]);
            assert!(lookup.handle_reply(Contact { id, addr }, token, &known));
        }
        assert!(lookup.is_done());
        let closest: Vec<_> = lookup.closest().map(|(contact, _)| contact.id.0[1]).collect();
        assert_eq!(closest, (0..8).collect::<Vec<u8>>());
        assert!(lookup.closest().all(|(node, token)| token == Some(&node.id.0[1..2])));
        assert!(asked.len() < 16, "{asked:?}");
        assert_eq!(lookup.hop_count(), 8);
        assert_eq!(lookup.counts(), (asked.len(), asked.len()));
    }

    #[test]
    fn silence_and_lateness_let_others_be_asked() {
        let nodes: Vec<_> = (0..20).map(node).collect();
        let mut lookup = Lookup::new(TARGET, &nodes, &[]);
        let first: Vec<_> = std::iter::from_fn(|| lookup.poll_query()).collect();
        assert_eq!(first.len(), ALPHA);
        lookup.handle_late(first[0].0);
        assert_eq!(lookup.poll_query().unwrap().0, nodes[4].addr);
        lookup.handle_failure(first[1].0);
        assert_eq!(lookup.poll_query().unwrap().0, nodes[5].addr);
        assert!(lookup.poll_query().is_none() && !lookup.is_done());
        assert!(lookup.handle_reply(nodes[0], None, &[]), "late is better than never");
        (2..6).for_each(|at: usize| lookup.handle_failure(nodes[at].addr));
        while let Some((addr, _)) = lookup.poll_query() {
            lookup.handle_failure(addr);
        }
        assert!(lookup.is_done());
        assert_eq!(lookup.closest().next().unwrap().0, nodes[0]);
    }

    #[test]
    fn sybils_of_one_network_or_with_chosen_ids_do_not_decide() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut lookup = Lookup::new(TARGET, &[], &[]);
        (0..100).for_each(|host| lookup.add(public(host, [8, 8, 8, host]), 0));
        assert_eq!(lookup.shortlist.len(), SHORTLIST_PER_SUBNET_MAX);
        (0..100).for_each(|host| lookup.add(public(host, [9, host, 1, 1]), 0));
        assert_eq!(lookup.front(false), (0..8).collect::<Vec<_>>(), "there are no others yet");
        for host in 0..20 {
            let addr: SocketAddr = ([11, host, 1, 1], 2000).into();
            let id = NodeId::for_ip(addr.ip(), &mut rng);
            lookup.add(Contact { id, addr }, 0);
        }
        let front = lookup.front(false);
        let verified = front.iter().filter(|at| lookup.shortlist[**at].is_verified).count();
        assert_eq!((front.len(), verified), (K + UNVERIFIED_MAX, K), "they take nobody's place");
        for host in 0..=255 {
            lookup.add(public(255, [12, host, 1, 1]), 0);
            lookup.add(public(255, [12, 1, host, 1]), 0);
        }
        assert!(lookup.shortlist.len() <= SHORTLIST_MAX);
    }

    #[test]
    fn one_host_is_one_node_and_liars_about_ids_fail() {
        let mut lookup = Lookup::new(TARGET, &[public(9, [8, 8, 8, 8])], &[]);
        let addr: SocketAddr = ([8, 8, 8, 8], 2001).into();
        lookup.add(Contact { addr, ..node(1) }, 0);
        assert_eq!(lookup.shortlist.len(), 1);
        let (addr, _) = lookup.poll_query().unwrap();
        assert!(!lookup.handle_reply(Contact { addr, ..node(0) }, None, &[node(1)]));
        assert!(lookup.is_done() && lookup.closest().next().is_none());
    }

    #[test]
    fn seeds_are_asked_when_there_is_nobody_else() {
        let seeds: Vec<_> = (0..3).map(|at| node(at).addr).collect();
        let mut lookup = Lookup::new(TARGET, &[], &[seeds[0], seeds[1], seeds[1], seeds[2]]);
        let asked: Vec<_> = std::iter::from_fn(|| lookup.poll_query()).collect();
        assert_eq!(asked, [(seeds[0], None), (seeds[1], None), (seeds[2], None)]);
        assert!(!lookup.is_done());
        lookup.handle_failure(seeds[0]);
        lookup.handle_failure(seeds[1]);
        assert!(!lookup.is_done());
        assert!(lookup.handle_reply(Contact { addr: seeds[2], ..node(50) }, None, &[node(7)]));
        let (addr, id) = lookup.poll_query().unwrap();
        assert_eq!((addr, id), (node(7).addr, Some(node(7).id)));
        lookup.handle_failure(addr);
        assert!(lookup.is_done());
    }
}
