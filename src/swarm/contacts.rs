//! Addresses that might be peers: whom to connect to next, and when to try again.
//!
//! Addresses enter from trackers, DHT, peer exchange and operators; results of attempts follow;
//! the next address that is due leaves, of those due the one with the best canonical priority (BEP
//! 40). Invariant: at most [`CONTACTS_MAX`] addresses are held,
//! and at most [`HALF_OPEN_MAX`] of them are being tried.
#![forbid(unsafe_code)]

use super::bans::is_local;
use super::destinations::Wait;
use super::options::{CONNECTS_PER_SECOND_MAX, CONTACTS_MAX, HALF_OPEN_MAX, Shared};
use super::peer::Refused;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Wait before the second attempt; each further one waits three times as long.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(900);
/// Failures in a row after which an address is forgotten, unless an operator or a link gave it.
const FAILURES_MAX: u32 = 7;
/// Addresses of a link that are known and of which none is forgotten: as many as it can name. Names
/// among them lead to new addresses again and again, so that more may be known.
const MAGNET_KEPT_MAX: usize = crate::metainfo::magnet::PEERS_MAX;
/// How long nothing is tried after there was no room: at a full worker thousands of torrents wait.
const POSTPONE: Duration = Duration::from_secs(15);

/// Addresses of one host, under its ports, that are known of gossip.
const PER_HOST_KNOWN_MAX: usize = 8;
/// Addresses of one network (24 bits of IPv4, 64 of IPv6) that are known of gossip.
const PER_NET_KNOWN_MAX: usize = 128;
/// Addresses that are due and among which the best is looked for.
const LOOK_MAX: usize = 64;

/// Kinds of [`Source`].
pub const SOURCE_COUNT: usize = 7;

/// Who told us of an address; those that are trusted more come later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// The peer itself, when it connected to us and said where it listens.
    Incoming,
    /// Peer exchange with a connected peer (BEP 11).
    Pex,
    /// The DHT (BEP 5).
    Dht,
    /// Local service discovery (BEP 14).
    Lsd,
    /// A tracker.
    Tracker,
    /// A magnet link (`x.pe`).
    Magnet,
    /// A command line or an API call: never forgotten.
    Operator,
}

impl Source {
    /// All of them, in order.
    pub const ALL: [Self; SOURCE_COUNT] = [
        Self::Incoming,
        Self::Pex,
        Self::Dht,
        Self::Lsd,
        Self::Tracker,
        Self::Magnet,
        Self::Operator,
    ];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Pex => "pex",
            Self::Dht => "dht",
            Self::Lsd => "lsd",
            Self::Tracker => "tracker",
            Self::Magnet => "magnet",
            Self::Operator => "manual",
        }
    }

    /// Whether peers of a private torrent may come from there (BEP 27): from its trackers, and from
    /// whoever runs this. Those that come by themselves had it from a tracker, too.
    pub(super) fn suits_private(self) -> bool {
        matches!(self, Self::Incoming | Self::Tracker | Self::Magnet | Self::Operator)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// To be tried at this moment; the number puts equals in random order.
    Due(Instant, u32),
    Trying,
    Connected,
    /// A seed while we seed: not to be tried until we lack something.
    Seed,
    /// Us, or not allowed: remembered so as not to be tried.
    Useless,
}

struct Contact {
    /// The most trusted one that named it, and all of them, one bit each.
    source: Source,
    sources: u8,
    /// Its place among those that are due at the same time: the lowest comes first.
    rank: u32,
    failures: u32,
    state: State,
}

#[derive(Default)]
pub(super) struct Contacts {
    known: BTreeMap<SocketAddr, Contact>,
    due: BTreeSet<(Instant, u32, SocketAddr)>,
    trying: usize,
    budget: u32,
    budget_at: Option<Instant>,
}

impl Contacts {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn trying_count(&self) -> usize {
        self.trying
    }

    /// Whether an attempt at `addr` is on its way: only its own end ends it.
    pub(super) fn is_trying(&self, addr: SocketAddr) -> bool {
        self.known.get(&addr).is_some_and(|contact| contact.state == State::Trying)
    }

    /// How many addresses each source has named that are known now, in the order of
    /// [`Source::ALL`]; one that several have named counts for each.
    pub(super) fn by_source(&self) -> [usize; SOURCE_COUNT] {
        let named = |source: Source| {
            self.known.values().filter(|contact| contact.sources & 1 << source as u8 != 0).count()
        };
        Source::ALL.map(named)
    }

    /// The most trusted source of an address that is known.
    pub(super) fn source_of(&self, addr: SocketAddr) -> Option<Source> {
        self.known.get(&addr).map(|contact| contact.source)
    }

    /// Whether local discovery has named a peer at `ip`, under any port.
    pub(super) fn is_neighbour(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let ports = SocketAddr::new(ip, 0)..=SocketAddr::new(ip, u16::MAX);
        self.known.range(ports).any(|(_, contact)| contact.sources & 1 << Source::Lsd as u8 != 0)
    }

    /// Learns of `addr`; a full table takes it in place of one that is trusted less. `tie` ranks it
    /// if its canonical priority is not known.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        source: Source,
        addr: SocketAddr,
        tie: u32,
        shared: &Shared,
    ) {
        let ip = addr.ip();
        if addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return;
        }
        if shared.refuses(addr) || shared.is_banned(now, addr) {
            return;
        }
        if let Some(contact) = self.known.get_mut(&addr) {
            contact.source = contact.source.max(source);
            contact.sources |= 1 << source as u8;
            return;
        }
        // Local addresses are told apart by their ports; but who speaks for itself needs only a few.
        let is_gossip = !is_local(ip) || source == Source::Lsd;
        if source != Source::Operator && is_gossip && self.is_crowded(ip) {
            return;
        }
        if self.known.len() >= CONTACTS_MAX {
            let trusted_less = |addr: &SocketAddr| {
                source == Source::Operator || self.source_of(*addr).is_some_and(|it| it < source)
            };
            let latest = self.due.iter().rev().take(LOOK_MAX).map(|(_, _, addr)| *addr);
            let Some(victim) = latest.into_iter().find(trusted_less) else {
                return;
            };
            self.forget(victim);
        }
        // The highest priority is the lowest rank.
        let rank = shared.priority(addr).map_or(tie, |priority| !priority);
        let sources = 1 << source as u8;
        self.known
            .insert(addr, Contact { source, sources, rank, failures: 0, state: State::Trying });
        self.trying += 1;
        self.set(addr, State::Due(now, rank));
        shared.count(|counted| counted.addresses_learnt[source as usize] += 1);
    }

    /// Whether gossip has named enough addresses of this host, or of its neighbours.
    fn is_crowded(&self, ip: IpAddr) -> bool {
        let count = |first: IpAddr, last: IpAddr, max: usize| {
            let range = SocketAddr::new(first, 0)..=SocketAddr::new(last, u16::MAX);
            self.known.range(range).take(max).count() >= max
        };
        let (first, last): (IpAddr, IpAddr) = match ip {
            IpAddr::V4(ip) => {
                let net = ip.to_bits() & 0xffff_ff00;
                (Ipv4Addr::from_bits(net).into(), Ipv4Addr::from_bits(net | 0xff).into())
            }
            IpAddr::V6(ip) => {
                let net = ip.to_bits() >> 64 << 64;
                let last = net | u128::from(u64::MAX);
                (Ipv6Addr::from_bits(net).into(), Ipv6Addr::from_bits(last).into())
            }
        };
        count(ip, ip, PER_HOST_KNOWN_MAX) || count(first, last, PER_NET_KNOWN_MAX)
    }

    /// A peer that connected to us can be met at `addr`.
    pub(super) fn met(&mut self, now: Instant, addr: SocketAddr, tie: u32, shared: &Shared) {
        self.insert(now, Source::Incoming, addr, tie, shared);
        if !self.is_trying(addr) {
            self.connected(addr);
        }
    }

    /// The next address to connect to now, within all budgets; it counts as being tried.
    pub(super) fn take(&mut self, now: Instant, shared: &Shared) -> Option<SocketAddr> {
        for _ in 0..LOOK_MAX {
            if self.trying >= HALF_OPEN_MAX {
                return None;
            }
            let due = self.due.iter().take_while(|(at, ..)| *at <= now).take(LOOK_MAX);
            let &(_, rank, addr) = due.min_by_key(|(_, rank, _)| *rank)?;
            if shared.refuses(addr) {
                // Another list may let it pass, when somebody names it again.
                self.forget(addr);
                continue;
            }
            if shared.is_banned(now, addr) {
                self.forget(addr);
                continue;
            }
            if self.budget_at.is_none_or(|at| now >= at) {
                self.budget = CONNECTS_PER_SECOND_MAX;
                self.budget_at = Some(now + Duration::from_secs(1));
            }
            if self.budget == 0 {
                return None;
            }
            // What the operator names is meant, and neighbours are no victims of gossip.
            let is_exempt = self.source_of(addr) == Some(Source::Operator) || is_local(addr.ip());
            match shared.take_connect(now, addr, is_exempt) {
                Ok(()) => {
                    self.budget -= 1;
                    self.set(addr, State::Trying);
                    return Some(addr);
                }
                Err(Wait::Everybody(until)) => {
                    self.budget = 0;
                    self.budget_at = Some(until);
                    return None;
                }
                Err(Wait::Destination(until)) => self.set(addr, State::Due(until, rank)),
            }
        }
        None
    }

    /// Whether an address that was taken may be connected to once more at once, as one more try.
    pub(super) fn may_connect_again(
        &self,
        now: Instant,
        addr: SocketAddr,
        shared: &Shared,
    ) -> bool {
        let is_exempt = self.source_of(addr) == Some(Source::Operator) || is_local(addr.ip());
        !shared.refuses(addr)
            && !shared.is_banned(now, addr)
            && shared.take_connect(now, addr, is_exempt).is_ok()
    }

    /// When `take` may have something, if nothing else happens before.
    pub(super) fn next_at(&self) -> Option<Instant> {
        if self.trying >= HALF_OPEN_MAX {
            return None;
        }
        let &(at, _, _) = self.due.first()?;
        Some(if self.budget == 0 { self.budget_at.map_or(at, |more| at.max(more)) } else { at })
    }

    pub(super) fn connected(&mut self, addr: SocketAddr) {
        self.set(addr, State::Connected);
    }

    /// The connection with `addr` was of use: its failures are forgiven.
    pub(super) fn worthwhile(&mut self, addr: SocketAddr) {
        if let Some(contact) = self.known.get_mut(&addr) {
            contact.failures = 0;
        }
    }

    /// An attempt failed, or a connection ended without fault of its own.
    pub(super) fn failed(&mut self, now: Instant, addr: SocketAddr) {
        let Some(contact) = self.known.get_mut(&addr) else {
            return;
        };
        contact.failures = contact.failures.saturating_add(1);
        let wait = RETRY_FIRST.saturating_mul(3u32.saturating_pow(contact.failures - 1));
        let (is_hopeless, source, rank) =
            (contact.failures > FAILURES_MAX, contact.source, contact.rank);
        if is_hopeless && !self.is_kept(source) {
            self.forget(addr);
        } else {
            self.set(addr, State::Due(now + wait.min(RETRY_MAX), rank));
        }
    }

    /// Whether an address of this source stays, however often it failed.
    fn is_kept(&self, source: Source) -> bool {
        let named = || self.known.values().filter(|contact| contact.source == Source::Magnet);
        match source {
            Source::Operator => true,
            Source::Magnet => named().count() <= MAGNET_KEPT_MAX,
            _ => false,
        }
    }

    /// There was no room to try `addr`: it keeps its turn, and nothing is tried for a moment.
    pub(super) fn postponed(&mut self, now: Instant, addr: SocketAddr) {
        let Some(contact) = self.known.get(&addr) else { return };
        let rank = contact.rank;
        self.set(addr, State::Due(now, rank));
        self.budget = 0;
        self.budget_at = Some(now + POSTPONE);
    }

    /// Whether `addr` is known, of a source that suits a private torrent.
    pub(super) fn suits_private(&self, addr: SocketAddr) -> bool {
        self.source_of(addr).is_some_and(Source::suits_private)
    }

    /// There is a connection, but it is not wanted; for most reasons it may be another time.
    pub(super) fn refused(&mut self, now: Instant, addr: SocketAddr, why: &Refused) {
        match why {
            Refused::Ourselves
            | Refused::Banned
            | Refused::Blocked
            | Refused::LocalAddress
            | Refused::Private => {
                self.useless(addr);
            }
            Refused::Duplicate | Refused::Full | Refused::FullForAddress => self.failed(now, addr),
        }
    }

    /// Never to be tried again, as long as it is remembered.
    pub(super) fn useless(&mut self, addr: SocketAddr) {
        self.set(addr, State::Useless);
    }

    /// Not to be tried as long as we have everything, too.
    pub(super) fn is_seed(&mut self, addr: SocketAddr) {
        self.set(addr, State::Seed);
    }

    /// We lack something again: seeds are worth a try.
    pub(super) fn revive_seeds(&mut self, now: Instant) {
        let is_seed = |contact: &Contact| contact.state == State::Seed;
        let seeds: Vec<_> = self
            .known
            .iter()
            .filter(|(_, c)| is_seed(c))
            .map(|(&addr, c)| (addr, c.rank))
            .collect();
        for (addr, rank) in seeds {
            self.set(addr, State::Due(now, rank));
        }
    }

    pub(super) fn forget(&mut self, addr: SocketAddr) {
        self.set(addr, State::Useless);
        self.known.remove(&addr);
    }

    /// Forgets addresses that a private torrent must not have.
    pub(super) fn forget_strangers(&mut self) {
        let is_stranger = |contact: &Contact| !contact.source.suits_private();
        let known = self.known.iter().filter(|(_, contact)| is_stranger(contact));
        let gone: Vec<_> = known.map(|(&addr, _)| addr).collect();
        gone.into_iter().for_each(|addr| self.forget(addr));
    }

    fn set(&mut self, addr: SocketAddr, state: State) {
        let Some(contact) = self.known.get_mut(&addr) else {
            return;
        };
        match contact.state {
            State::Due(at, tie) => {
                self.due.remove(&(at, tie, addr));
            }
            State::Trying => self.trying -= 1,
            State::Connected | State::Seed | State::Useless => {}
        }
        contact.state = state;
        match state {
            State::Due(at, tie) => {
                self.due.insert((at, tie, addr));
            }
            State::Trying => self.trying += 1,
            State::Connected | State::Seed | State::Useless => {}
        }
    }

    pub(super) fn check_invariants(&self) {
        let count = |wanted: fn(&State) -> bool| {
            self.known.values().filter(|contact| wanted(&contact.state)).count()
        };
        assert!(self.known.len() <= CONTACTS_MAX);
        assert!(self.trying <= HALF_OPEN_MAX);
        assert_eq!(self.trying, count(|state| *state == State::Trying));
        assert_eq!(self.due.len(), count(|state| matches!(state, State::Due(..))));
    }
}

#[cfg(test)]
#[path = "contacts_tests.rs"]
mod tests;
