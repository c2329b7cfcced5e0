//! How often one place may be connected to: lists of peers must not become a weapon.
//!
//! Attempts enter, permission or the moment to ask again leaves. All torrents of a worker share
//! one of these, because whoever forges a list forges it for many torrents. Invariant: within a
//! minute no address is tried more than [`PER_HOST_MAX`] times and no network of 256 more than
//! [`PER_NET_MAX`] times; at most [`ENTRIES_MAX`] places are remembered.
#![forbid(unsafe_code)]

use super::Offender;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Attempts at one host per minute, over all torrents and ports.
pub const PER_HOST_MAX: u32 = 16;
/// Attempts at one IPv4 network of 24 bits, or IPv6 network of 48, per minute.
pub const PER_NET_MAX: u32 = 64;
/// Hosts and networks that are counted within a minute.
const ENTRIES_MAX: usize = 16 * 1024;

const WINDOW: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Why an attempt has to wait, and until when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// There were enough attempts of any kind.
    Everybody(Instant),
    /// There were enough at this place.
    Destination(Instant),
}

/// Attempts of the present minute and second.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    hosts: BTreeMap<Offender, u32>,
    nets: BTreeMap<IpAddr, u32>,
    until: Option<Instant>,
    in_second: u32,
    second_until: Option<Instant>,
}

impl Destinations {
    /// One attempt at `addr`, of which there may be `per_second` in all; the place does not matter
    /// if it `is_exempt`.
    pub(super) fn take(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        per_second: u32,
        is_exempt: bool,
    ) -> Result<(), Wait> {
        let until = match self.second_until.filter(|&until| now < until) {
            Some(until) => until,
            None => {
                self.in_second = 0;
                now + SECOND
            }
        };
        self.second_until = Some(until);
        if self.in_second >= per_second {
            return Err(Wait::Everybody(until));
        }
        if !is_exempt {
            self.take_place(now, addr).map_err(Wait::Destination)?;
        }
        self.in_second += 1;
        Ok(())
    }

    fn take_place(&mut self, now: Instant, addr: SocketAddr) -> Result<(), Instant> {
        let until = match self.until.filter(|&until| now < until) {
            Some(until) => until,
            None => {
                self.hosts.clear();
                self.nets.clear();
                now + WINDOW
            }
        };
        self.until = Some(until);
        let (host, net) = (Offender::of(addr), net_of(addr.ip()));
        let tried = self.hosts.get(&host).copied().unwrap_or(0);
        let tried_net = self.nets.get(&net).copied().unwrap_or(0);
        let is_full = self.hosts.len() >= ENTRIES_MAX && tried == 0;
        if tried >= PER_HOST_MAX || tried_net >= PER_NET_MAX || is_full {
            return Err(until);
        }
        self.hosts.insert(host, tried + 1);
        self.nets.insert(net, tried_net + 1);
        Ok(())
    }
}

/// The network that an address is in: what one owner has at least.
fn net_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & 0xffff_ff00).into()),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 80 << 80)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_tried_so_often_in_a_minute() {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let addr = |net: u8, host: u8, port: u16| SocketAddr::from(([9, 9, net, host], port));
        let mut destinations = Destinations::default();
        let tried = (1..100).filter(|&port| destinations.take_place(now, addr(1, 1, port)).is_ok());
        assert_eq!(tried.count(), 16);
        assert_eq!(destinations.take_place(now, addr(1, 1, 1)), Err(now + WINDOW));
        let tried = (2..200).filter(|&host| destinations.take_place(now, addr(1, host, 1)).is_ok());
        assert_eq!(tried.count(), 64 - 16);
        assert_eq!(destinations.take_place(now, addr(2, 1, 1)), Ok(()));
        assert_eq!(destinations.take_place(now + WINDOW, addr(1, 1, 1)), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let mut destinations = Destinations::default();
        for number in 0..100_000_u32 {
            let ip = std::net::Ipv4Addr::from_bits(0x0100_0000 + number * 256);
            let _ = destinations.take_place(now, SocketAddr::from((ip, 5000)));
        }
        assert_eq!(destinations.hosts.len(), ENTRIES_MAX);
        let addr = SocketAddr::from(([9, 9, 9, 9], 5000));
        let taken = (0..50).filter(|_| destinations.take(now, addr, 20, true).is_ok());
        assert_eq!(taken.count(), 20);
        let wait = Err(Wait::Everybody(now + SECOND));
        assert_eq!(destinations.take(now, addr, 20, true), wait);
        assert_eq!(destinations.take(now + SECOND, addr, 20, true), Ok(()));
    }
}
