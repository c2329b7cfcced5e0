//! Who must not come back, and until when.
//!
//! Addresses enter with a moment, "is it banned?" leaves. A public IPv4 address is banned as it
//! is, an IPv6 address with its /64, an address of local scope only together with its port (many
//! peers can share one there). Invariant: at most [`BANS_MAX`] entries; nothing is banned longer
//! than it was asked for.
#![forbid(unsafe_code)]

use super::options::BANS_MAX;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

/// What a ban holds against.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Offender {
    /// One public IPv4 address, or the /64 (its low half zero) of a public IPv6 address.
    Host(IpAddr),
    /// One address and port of local scope.
    Local(SocketAddr),
}

impl Offender {
    /// What a ban of the peer at `addr` would hold against.
    pub fn of(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            ip if is_local(ip) => Self::Local(SocketAddr::new(ip, addr.port())),
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

#[derive(Default)]
pub(super) struct Bans(BTreeMap<Offender, Instant>);

impl Bans {
    /// Bans an offender; false if it was banned already, and is for longer now.
    pub(super) fn insert(&mut self, offender: Offender, until: Instant) -> bool {
        if self.0.len() >= BANS_MAX && !self.0.contains_key(&offender) {
            let first = self.0.iter().min_by_key(|&(_, &until)| until).map(|(&who, _)| who);
            first.and_then(|who| self.0.remove(&who));
        }
        self.0.insert(offender, until).is_none()
    }

    /// Number of offenders.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn holds(&self, now: Instant, addr: SocketAddr) -> bool {
        !self.0.is_empty() && self.0.get(&Offender::of(addr)).is_some_and(|&until| now < until)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, until| now < *until);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Offender, Instant)> + '_ {
        self.0.iter().map(|(&who, &until)| (who, until))
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
        assert_eq!(bans.iter().count(), BANS_MAX);
        assert!(!bans.holds(now, "1.0.0.0:1".parse().unwrap()));
        bans.expire(now + BAN_TTL);
        assert_eq!(bans.iter().count(), 0);
    }
}
