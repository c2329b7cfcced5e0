//! Who must not come back, and until when.
//!
//! Addresses enter with a moment, "is it banned?" leaves. A public IPv4 address is banned as it
//! is, an IPv6 address with its /64, an address of local scope only together with its port (many
//! peers can share one there). A ban holds for every torrent: the swarms of a worker share one list,
//! and the server has every worker's list hold what one of them found out. Invariant: at most
//! [`BANS_MAX`] entries; nothing is banned longer than it was asked for.
#![forbid(unsafe_code)]

use super::options::BANS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

/// What a ban holds against.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Offender {
    /// One public IPv4 address, or the /64 (its low half zero) of a public IPv6 address.
    Host(IpAddr),
    /// One address and port of local scope.
    Local(SocketAddr),
}

/// The well-known prefix of translated IPv4 addresses, 64:ff9b::/96 (RFC 6052 §2.1).
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

impl Offender {
    /// What a ban of the peer at `addr` would hold against.
    pub fn of(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            ip if is_local(ip) => Self::Local(SocketAddr::new(ip, addr.port())),
            // Behind a translator (RFC 6052) they would all be one host.
            IpAddr::V6(ip) if ip.segments()[..6] == NAT64 => {
                let [.., a, b, c, d] = ip.octets();
                let ip = Ipv4Addr::new(a, b, c, d);
                Self::of(SocketAddr::new(ip.into(), addr.port()))
            }
            IpAddr::V6(ip) => Self::Host(IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64))),
            ip => Self::Host(ip),
        }
    }
}

/// Whether `ip` is a loopback, private, link-local or unique-local address.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Offenders, and until when they are banned.
#[derive(Debug, Default)]
pub struct Bans {
    by_offender: BTreeMap<Offender, Instant>,
    /// The same by when they end.
    by_end: BTreeSet<(Instant, Offender)>,
}

impl Bans {
    /// Bans an offender; a full list lets the ban go that would end first. False if it was banned
    /// already: the longer time counts.
    pub fn insert(&mut self, offender: Offender, until: Instant) -> bool {
        let before = self.by_offender.get(&offender).copied();
        if before.is_some_and(|before| before >= until) {
            return false;
        }
        match before {
            Some(before) => {
                self.by_end.remove(&(before, offender));
            }
            None if self.by_offender.len() >= BANS_MAX => {
                let first = self.by_end.pop_first();
                first.and_then(|(_, who)| self.by_offender.remove(&who));
            }
            None => {}
        }
        self.by_offender.insert(offender, until);
        self.by_end.insert((until, offender));
        before.is_none()
    }

    /// Number of offenders.
    pub fn len(&self) -> usize {
        self.by_offender.len()
    }

    /// Whether nobody is banned.
    pub fn is_empty(&self) -> bool {
        self.by_offender.is_empty()
    }

    /// Whether the peer at `addr` is banned.
    pub fn holds(&self, now: Instant, addr: SocketAddr) -> bool {
        !self.is_empty()
            && self.by_offender.get(&Offender::of(addr)).is_some_and(|&until| now < until)
    }

    /// Forgets bans that are over.
    pub fn expire(&mut self, now: Instant) {
        while self.by_end.first().is_some_and(|&(until, _)| until <= now) {
            let over = self.by_end.pop_first();
            over.and_then(|(_, who)| self.by_offender.remove(&who));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::options::BAN_TTL;
    use std::time::Duration;

    #[test]
    fn scope_decides_what_is_banned() {
        let cases = [
            ("1.2.3.4:5", "1.2.3.4:6", true),
            ("1.2.3.4:5", "1.2.3.5:5", false),
            ("[2001:db8:0:1::1]:5", "[2001:db8:0:1:ffff::2]:6", true),
            ("[2001:db8:0:1::1]:5", "[2001:db8:0:2::1]:5", false),
            ("127.0.0.1:5", "127.0.0.1:6", false),
            ("10.0.0.1:5", "10.0.0.1:5", true),
            ("[::ffff:1.2.3.4]:5", "1.2.3.4:9", true),
        ];
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        for (banned, asked, expected) in cases {
            let mut bans = Bans::default();
            bans.insert(Offender::of(banned.parse().unwrap()), now + BAN_TTL);
            assert_eq!(bans.holds(now, asked.parse().unwrap()), expected, "{banned} {asked}");
            assert!(!bans.holds(now + BAN_TTL, asked.parse().unwrap()));
        }
    }

    #[test]
    fn the_table_is_bounded_and_expires() {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let mut bans = Bans::default();
        for number in 0..=u32::try_from(BANS_MAX).unwrap() {
            let who = Offender::Host(IpAddr::V4((0x0100_0000 + number).into()));
            bans.insert(who, now + Duration::from_secs(u64::from(number) + 1));
        }
        assert_eq!(bans.len(), BANS_MAX);
        assert!(!bans.holds(now, "1.0.0.0:1".parse().unwrap()));
        assert!(bans.holds(now, "1.0.0.1:1".parse().unwrap()));
        bans.expire(now + Duration::from_secs(3));
        assert_eq!(bans.len(), BANS_MAX - 2);
        bans.expire(now + BAN_TTL);
        assert!(bans.is_empty() && bans.by_end.is_empty());
    }

    #[test]
    fn hosts_behind_a_translator_are_told_apart() {
        let of = |addr: &str| Offender::of(addr.parse().unwrap());
        assert_eq!(of("[64:ff9b::1.2.3.4]:5"), of("1.2.3.4:6"));
        assert_ne!(of("[64:ff9b::1.2.3.4]:5"), of("[64:ff9b::1.2.3.5]:5"));
        // What is private there is told apart by its port, as everywhere.
        assert_ne!(of("[64:ff9b::10.0.0.1]:5"), of("[64:ff9b::10.0.0.1]:6"));
        assert_eq!(of("[2001:db8::1]:5"), of("[2001:db8::2]:5"));
    }

    #[test]
    fn of_two_bans_the_longer_one_counts() {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let (mut bans, addr) = (Bans::default(), "1.2.3.4:5".parse().unwrap());
        let until = |seconds| now + Duration::from_secs(seconds);
        assert!(bans.insert(Offender::of(addr), until(5)));
        assert!(!bans.insert(Offender::of(addr), until(9)));
        assert!(!bans.insert(Offender::of(addr), until(7)));
        bans.expire(until(8));
        assert!(bans.holds(until(8), addr));
        assert!(!bans.holds(until(9), addr));
        assert_eq!((bans.len(), bans.by_end.len()), (1, 1));
    }
}
