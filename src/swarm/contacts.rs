//! Addresses that might be peers: whom to connect to next, and when to try again.
//!
//! Addresses enter from trackers, DHT, peer exchange and operators; results of attempts follow;
//! the next address that is due leaves. Invariant: at most [`CONTACTS_MAX`] addresses are held,
//! and at most [`HALF_OPEN_MAX`] of them are being tried.
#![forbid(unsafe_code)]

use super::options::{CONNECTS_PER_SECOND_MAX, CONTACTS_MAX, HALF_OPEN_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Wait before the second attempt; each further one waits three times as long.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(900);
/// Failures in a row after which an address is forgotten, unless an operator gave it.
const FAILURES_MAX: u32 = 7;

/// Who told us of an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// Peer exchange with a connected peer (BEP 11).
    Pex,
    /// The DHT (BEP 5).
    Dht,
    /// Local service discovery (BEP 14).
    Lsd,
    /// A tracker.
    Tracker,
    /// A command line, an API call or a magnet link: never forgotten.
    Operator,
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
    source: Source,
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

    /// Learns of `addr`; a full table only takes what an operator says, in place of another one.
    pub(super) fn insert(&mut self, now: Instant, source: Source, addr: SocketAddr, tie: u32) {
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return;
        }
        if let Some(contact) = self.known.get_mut(&addr) {
            contact.source = contact.source.max(source);
            return;
        }
        if self.known.len() >= CONTACTS_MAX {
            let last = self.due.last().copied().filter(|_| source == Source::Operator);
            let Some((_, _, victim)) = last else {
                return;
            };
            self.forget(victim);
        }
        self.known.insert(addr, Contact { source, failures: 0, state: State::Trying });
        self.trying += 1;
        self.set(addr, State::Due(now, tie));
    }

    /// The next address to connect to now, within the budget; it counts as being tried.
    pub(super) fn take(&mut self, now: Instant) -> Option<SocketAddr> {
        let &(at, _, addr) = self.due.first()?;
        if at > now || self.trying >= HALF_OPEN_MAX {
            return None;
        }
        if self.budget_at.is_none_or(|at| now >= at) {
            self.budget = CONNECTS_PER_SECOND_MAX;
            self.budget_at = Some(now + Duration::from_secs(1));
        }
        self.budget = self.budget.checked_sub(1)?;
        self.set(addr, State::Trying);
        Some(addr)
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
    pub(super) fn failed(&mut self, now: Instant, addr: SocketAddr, tie: u32) {
        let Some(contact) = self.known.get_mut(&addr) else {
            return;
        };
        contact.failures = contact.failures.saturating_add(1);
        let wait = RETRY_FIRST.saturating_mul(3u32.saturating_pow(contact.failures - 1));
        if contact.failures > FAILURES_MAX && contact.source != Source::Operator {
            self.forget(addr);
        } else {
            self.set(addr, State::Due(now + wait.min(RETRY_MAX), tie));
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
        let seeds: Vec<_> =
            self.known.iter().filter(|(_, c)| is_seed(c)).map(|(&addr, _)| addr).collect();
        for (addr, tie) in seeds.into_iter().zip(0..) {
            self.set(addr, State::Due(now, tie));
        }
    }

    pub(super) fn forget(&mut self, addr: SocketAddr) {
        self.set(addr, State::Useless);
        self.known.remove(&addr);
    }

    /// Forgets what `unwanted` says.
    pub(super) fn forget_if(&mut self, unwanted: impl Fn(SocketAddr) -> bool) {
        let gone: Vec<_> = self.known.keys().copied().filter(|&addr| unwanted(addr)).collect();
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
mod tests {
    use super::*;

    fn addr(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        Instant::now()
    }

    #[test]
    fn budget_and_half_open_cap_hold() {
        let (mut contacts, start) = (Contacts::default(), now());
        (1..=100).for_each(|port| contacts.insert(start, Source::Tracker, addr(port), 0));
        let mut taken = 0;
        for second in 0..10 {
            let at = start + Duration::from_secs(second);
            let before = taken;
            while contacts.take(at).is_some() {
                taken += 1;
            }
            assert!(taken - before <= CONNECTS_PER_SECOND_MAX as usize);
            contacts.check_invariants();
        }
        assert_eq!(taken, HALF_OPEN_MAX);
    }

    #[test]
    fn failures_back_off_and_end() {
        let (mut contacts, mut at) = (Contacts::default(), now());
        contacts.insert(at, Source::Dht, addr(1), 0);
        contacts.insert(at, Source::Operator, addr(2), 0);
        let mut tries = [0, 0, 0];
        for _ in 0..40_000 {
            while let Some(tried) = contacts.take(at) {
                tries[usize::from(tried.port())] += 1;
                contacts.failed(at, tried, 0);
            }
            at += Duration::from_secs(1);
            contacts.check_invariants();
        }
        assert_eq!(tries[1], FAILURES_MAX + 1);
        assert!(tries[2] > tries[1] + 5, "{tries:?}");
        assert_eq!(contacts.len(), 1);
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut contacts, start) = (Contacts::default(), now());
        (1..=3000).for_each(|port| contacts.insert(start, Source::Pex, addr(port), 0));
        assert_eq!(contacts.len(), CONTACTS_MAX);
        contacts.insert(start, Source::Operator, addr(4000), 0);
        assert_eq!(contacts.len(), CONTACTS_MAX);
        contacts.check_invariants();
    }
}
