//! Who may come in: decisions about incoming connections before anything is known of them.
//!
//! Addresses and moments enter; a place, a refusal, or the name of somebody who has to give way
//! leaves. A network (the /24 of an IPv4 address, the /48 of an IPv6 address) may have
//! [`NETWORK_HANDSHAKES_MAX`] handshakes open, and may connect [`NETWORK_BURST_MAX`] times at once
//! and [`NETWORK_RATE_MAX`] times per second after that. Addresses of local scope are exempt from
//! both: behind one of them there may be a tunnel, a proxy or a container's gateway with all peers
//! of the world, so they are told apart by address and port, and each connection is a network of
//! its own. For everybody holds: when all places are taken, the one that came first and has said
//! nothing gives way to the newcomer, because an honest peer speaks at once.
//!
//! Invariant: every table here is bounded, and nobody with a whole handshake gives way here (peers
//! with whom nothing moves do, [`crate::swarm::Swarm::idle_peers`]).
#![forbid(unsafe_code)]

use super::table::Key;
use crate::swarm::is_local;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Incoming handshakes that a worker waits for at a time.
pub(super) const HANDSHAKES_MAX: usize = 1024;

/// Incoming handshakes that one network may have open at a worker.
pub(super) const NETWORK_HANDSHAKES_MAX: usize = 64;

/// Connections per second that a worker takes from one network, in the long run.
pub(super) const NETWORK_RATE_MAX: u32 = 16;

/// Connections that it takes at once from a network that was quiet.
pub(super) const NETWORK_BURST_MAX: u32 = 128;

/// Networks whose rate is remembered; those that were quiet longest are forgotten first.
pub(super) const NETWORKS_MAX: usize = 4096;

/// How long to leave a listener alone after its first failure, and after the last of many.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_millis(1600);

/// A network that counts as one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Network(IpAddr);

impl Network {
    /// The network of an address; `None` for one of local scope.
    fn of(ip: IpAddr) -> Option<Self> {
        match ip.to_canonical() {
            ip if is_local(ip) => None,
            IpAddr::V4(ip) => Some(Self(Ipv4Addr::from_bits(ip.to_bits() >> 8 << 8).into())),
            IpAddr::V6(ip) => Some(Self(Ipv6Addr::from_bits(ip.to_bits() >> 80 << 80).into())),
        }
    }
}

/// Why a connection is closed at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Its network has as many handshakes open as it may.
    Handshakes,
    /// Its network connects too often.
    Rate,
}

/// A place among the incoming handshakes; whoever got it gives it back by [`Admission::leave`].
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    network: Option<Network>,
}

/// The incoming handshakes of one worker.
#[derive(Default, Debug)]
pub(super) struct Admission {
    /// In the order in which they came: those that said nothing yet, and those that did.
    silent: BTreeMap<u64, Key>,
    talking: BTreeMap<u64, Key>,
    next_number: u64,
    /// Handshakes that are open, by network; no more entries than handshakes.
    open: BTreeMap<Network, usize>,
    rates: Rates,
}

impl Admission {
    /// Judges a connection from `ip` by its network, and counts it there.
    ///
    /// # Errors
    /// Why it has to be closed.
    pub(super) fn judge(&mut self, now: Instant, ip: IpAddr) -> Result<(), Refusal> {
        let Some(network) = Network::of(ip) else { return Ok(()) };
        if self.open.get(&network).is_some_and(|&open| open >= NETWORK_HANDSHAKES_MAX) {
            return Err(Refusal::Handshakes);
        }
        if self.rates.take(now, network) { Ok(()) } else { Err(Refusal::Rate) }
    }

    /// Whether every place is taken.
    pub(super) fn is_full(&self) -> bool {
        self.silent.len() + self.talking.len() >= HANDSHAKES_MAX
    }

    /// Who gives way if somebody has to: of those that said nothing the first that came, or else
    /// the first whose handshake is still not whole.
    pub(super) fn oldest(&self) -> Option<Key> {
        self.silent.values().chain(self.talking.values()).next().copied()
    }

    /// Gives a place to a connection.
    pub(super) fn enter(&mut self, ip: IpAddr, key: Key) -> Place {
        let (number, network) = (self.next_number, Network::of(ip));
        self.next_number += 1;
        self.silent.insert(number, key);
        if let Some(network) = network {
            *self.open.entry(network).or_default() += 1;
        }
        Place { number, network }
    }

    /// Something of the handshake has come.
    pub(super) fn heard(&mut self, place: &Place) {
        if let Some(key) = self.silent.remove(&place.number) {
            self.talking.insert(place.number, key);
        }
    }

    /// The handshake is over, or the connection.
    pub(super) fn leave(&mut self, place: Place) {
        let Place { number, network } = place;
        if self.silent.remove(&number).is_none() {
            self.talking.remove(&number);
        }
        let Some(network) = network else { return };
        if let Some(open) = self.open.get_mut(&network) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&network);
            }
        }
    }
}

/// How often networks connect: for each the moment at which its burst is whole again.
///
/// Two generations of half the size make room without a search: when the younger one is full it
/// becomes the older one, whose entries were not seen for longest and go.
#[derive(Default, Debug)]
struct Rates {
    young: BTreeMap<Network, Instant>,
    old: BTreeMap<Network, Instant>,
}

impl Rates {
    /// Takes one connection of a network; false if it has used up what it may.
    fn take(&mut self, now: Instant, network: Network) -> bool {
        let step = Duration::from_secs(1) / NETWORK_RATE_MAX;
        let known = self.young.get(&network).or_else(|| self.old.get(&network));
        let whole_at = known.map_or(now, |&at| at.max(now));
        let used = whole_at.saturating_duration_since(now);
        let may = used <= step * (NETWORK_BURST_MAX - 1);
        if self.young.len() >= NETWORKS_MAX / 2 && !self.young.contains_key(&network) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(network, if may { whole_at + step } else { whole_at });
        may
    }
}

/// How long a listener pauses: longer after each failure in a row.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Pause(u32);

impl Pause {
    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.0.min(16)).min(PAUSE_MAX);
        self.0 = self.0.saturating_add(1);
        pause
    }

    /// A connection was accepted: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    fn key(slot: usize) -> Key {
        Key { slot: u32::try_from(slot).unwrap(), generation: 1 }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A public address for each number, each in a network of its own.
    fn elsewhere(number: usize) -> IpAddr {
        let number = u32::try_from(number).unwrap();
        IpAddr::V4(Ipv4Addr::from_bits((20 << 24) + (number << 8) + 7))
    }

    #[test]
    fn networks_are_those_of_one_owner() {
        let same = |one: &str, other: &str| Network::of(ip(one)) == Network::of(ip(other));
        assert!(same("1.2.3.4", "1.2.3.255"));
        assert!(!same("1.2.3.4", "1.2.4.4"));
        assert!(same("2001:db8:1::1", "2001:db8:1:ffff::2"));
        assert!(!same("2001:db8:1::1", "2001:db8:2::1"));
        assert!(same("::ffff:1.2.3.4", "1.2.3.9"));
        for local in ["127.0.0.1", "::1", "192.168.1.1", "10.0.0.1", "fd00::1", "fe80::1"] {
            assert_eq!(Network::of(ip(local)), None, "{local}");
        }
    }

    #[test]
    fn one_network_holds_some_places_and_no_more() {
        let (mut admission, now) = (Admission::default(), clock::now());
        let mut places = Vec::new();
        for number in 0..NETWORK_HANDSHAKES_MAX {
            let from = ip(&format!("5.6.7.{number}"));
            assert_eq!(admission.judge(now, from), Ok(()));
            places.push(admission.enter(from, key(number)));
        }
        assert_eq!(admission.judge(now, ip("5.6.7.200")), Err(Refusal::Handshakes));
        assert_eq!(admission.judge(now, ip("5.6.8.200")), Ok(()));
        assert_eq!(admission.judge(now, ip("127.0.0.1")), Ok(()));
        admission.leave(places.pop().unwrap());
        assert_eq!(admission.judge(now, ip("5.6.7.200")), Ok(()));
        places.into_iter().for_each(|place| admission.leave(place));
        assert!(admission.open.is_empty() && admission.oldest().is_none());
    }

    #[test]
    fn one_network_connects_in_a_burst_and_then_at_its_rate() {
        let (mut admission, start) = (Admission::default(), clock::now());
        let mut take = |millis: u64| {
            let now = start + Duration::from_millis(millis);
            (0..1000).filter(|_| admission.judge(now, ip("5.6.7.8")).is_ok()).count()
        };
        assert_eq!(take(0), NETWORK_BURST_MAX as usize);
        assert_eq!(take(10), 0);
        assert_eq!(take(1000), NETWORK_RATE_MAX as usize);
        assert_eq!(take(3000), 2 * NETWORK_RATE_MAX as usize);
        assert_eq!(take(100_000), NETWORK_BURST_MAX as usize);
        // Whoever is local is not counted at all.
        let local = (0..1000).filter(|_| admission.judge(start, ip("127.0.0.1")).is_ok()).count();
        assert_eq!(local, 1000);
    }

    #[test]
    fn the_table_of_rates_is_bounded_and_keeps_who_comes_often() {
        let (mut admission, now) = (Admission::default(), clock::now());
        let busy = ip("5.6.7.8");
        while admission.judge(now, busy).is_ok() {}
        for number in 0..4 * NETWORKS_MAX {
            assert_eq!(admission.judge(now, elsewhere(number)), Ok(()));
            assert_eq!(admission.judge(now, busy), Err(Refusal::Rate), "after {number}");
            let known = admission.rates.young.len() + admission.rates.old.len();
            assert!(known <= NETWORKS_MAX, "{known}");
        }
    }

    #[test]
    fn the_silent_give_way_first_and_in_their_order() {
        let mut admission = Admission::default();
        let mut places: Vec<_> = (0..HANDSHAKES_MAX)
            .map(|number| admission.enter(elsewhere(number), key(number)))
            .collect();
        assert!(admission.is_full());
        admission.heard(&places[0]);
        assert_eq!(admission.oldest(), Some(key(1)));
        admission.leave(places.remove(1));
        assert!(!admission.is_full());
        assert_eq!(admission.oldest(), Some(key(2)));
        // Where all have said something, the first that came.
        places.iter().for_each(|place| admission.heard(place));
        assert_eq!(admission.oldest(), Some(key(0)));
        places.into_iter().for_each(|place| admission.leave(place));
        assert_eq!(admission.oldest(), None);
    }

    #[test]
    fn pauses_grow_to_a_limit_and_begin_again() {
        let mut pause = Pause::default();
        let pauses: Vec<_> = (0..40).map(|_| pause.next()).collect();
        assert_eq!(pauses[..3], [100, 200, 400].map(Duration::from_millis));
        assert_eq!(pauses.last(), Some(&PAUSE_MAX));
        pause.reset();
        assert_eq!(pause.next(), PAUSE_MIN);
    }
}
