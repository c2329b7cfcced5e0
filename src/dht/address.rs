//! Which addresses the DHT talks to, and which of them count as one.
//!
//! Addresses enter; permission, and the host or network they stand for, leave. Invariant: nothing
//! is ever sent to an address that the policy refuses, to a port below [`PORT_MIN`], or to
//! ourselves, whoever names it.
//!
//! Public hosts are told apart by their IP alone, or one host could be any number of nodes.
//! Where addresses are local, many honest nodes share an IP, and the port tells them apart.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use super::NodeId;
use crate::tracker::AddressPolicy;

/// Ports below this belong to services that others could be made to bother through us.
pub const PORT_MIN: u16 = 1024;

/// A node, as others tell us of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Contact {
    /// Its id.
    pub id: NodeId,
    /// Where its datagrams come from and go to.
    pub addr: SocketAddr,
}

impl Contact {
    /// Whether the id belongs to the address (BEP 42).
    pub fn is_verified(&self) -> bool {
        self.id.is_valid_for(self.addr.ip())
    }
}

/// One host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Origin {
    Public(IpAddr),
    Local(SocketAddr),
}

impl Origin {
    pub(super) fn of(addr: SocketAddr) -> Self {
        if is_local(addr.ip()) { Self::Local(addr) } else { Self::Public(addr.ip()) }
    }
}

/// What one owner usually has as a whole: a /24 or, with IPv6, a /64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Subnet {
    is_v4: bool,
    prefix: u64,
}

impl Subnet {
    /// `None` where addresses are local: there networks are small and trusted.
    pub(super) fn of(ip: IpAddr) -> Option<Self> {
        if is_local(ip) {
            return None;
        }
        Some(match ip {
            IpAddr::V4(ip) => Self { is_v4: true, prefix: u64::from(ip.to_bits() >> 8) },
            IpAddr::V6(ip) => {
                let prefix = u64::try_from(ip.to_bits() >> 64).unwrap_or_default();
                Self { is_v4: false, prefix }
            }
        })
    }
}

/// Whether `ip` is no address of the public Internet.
pub(super) fn is_local(ip: IpAddr) -> bool {
    AddressPolicy::default().permits(ip).is_err()
}

/// Why an address is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Family,
    Port,
    Policy,
    Ourselves,
}

/// The rules for one node of ours.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) policy: AddressPolicy,
    /// Where our socket is bound, maybe to all addresses.
    pub(super) local: SocketAddr,
    /// Where others see us, once enough of them said so.
    pub(super) external: Option<IpAddr>,
}

impl Gate {
    /// Whether a node may be at `addr`.
    pub(super) fn admit_node(&self, addr: SocketAddr) -> Result<(), Refusal> {
        if addr.is_ipv4() != self.local.is_ipv4() {
            return Err(Refusal::Family);
        }
        self.admit_peer(addr)
    }

    /// Whether a peer, of either family, may be at `addr`.
    pub(super) fn admit_peer(&self, addr: SocketAddr) -> Result<(), Refusal> {
        if addr.port() < PORT_MIN {
            return Err(Refusal::Port);
        }
        let is_external = Some(addr.ip()) == self.external && addr.port() == self.local.port();
        if addr == self.local || is_external {
            return Err(Refusal::Ourselves);
        }
        self.policy.permits(addr.ip()).map_err(|_| Refusal::Policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn poisoned_addresses_are_refused() {
        let gate = Gate {
            policy: AddressPolicy::default(),
            local: addr("0.0.0.0:6881"),
            external: Some("9.9.9.9".parse().unwrap()),
        };
        let table = [
            ("1.2.3.4:6881", Ok(())),
            ("9.9.9.9:6882", Ok(())),
            ("9.9.9.9:6881", Err(Refusal::Ourselves)),
            ("0.0.0.0:6881", Err(Refusal::Ourselves)),
            ("0.0.0.0:6882", Err(Refusal::Policy)),
            ("224.0.0.1:6881", Err(Refusal::Policy)),
            ("255.255.255.255:6881", Err(Refusal::Policy)),
            ("127.0.0.1:6881", Err(Refusal::Policy)),
            ("10.0.0.1:6881", Err(Refusal::Policy)),
            ("169.254.169.254:6881", Err(Refusal::Policy)),
            ("1.2.3.4:0", Err(Refusal::Port)),
            ("1.2.3.4:53", Err(Refusal::Port)),
            ("[2a00::1]:6881", Err(Refusal::Family)),
        ];
        for (text, expected) in table {
            assert_eq!(gate.admit_node(addr(text)), expected, "{text}");
        }
        assert_eq!(gate.admit_peer(addr("[2a00::1]:6881")), Ok(()));
        assert_eq!(gate.admit_peer(addr("[::ffff:10.0.0.1]:6881")), Err(Refusal::Policy));
    }

    #[test]
    fn hosts_and_networks_are_told_apart() {
        let same = |one: &str, two: &str| Origin::of(addr(one)) == Origin::of(addr(two));
        assert!(same("1.2.3.4:2000", "1.2.3.4:2001") && !same("1.2.3.4:2000", "1.2.3.5:2000"));
        assert!(!same("127.0.0.1:2000", "127.0.0.1:2001"));
        let net = |text: &str| Subnet::of(text.parse().unwrap());
        assert_eq!(net("1.2.3.4"), net("1.2.3.255"));
        assert_ne!(net("1.2.3.4"), net("1.2.4.4"));
        assert_eq!(net("2a00::1"), net("2a00::ffff:0:0:1"));
        assert_ne!(net("2a00::1"), net("2a00:0:0:1::1"));
        assert_eq!(net("10.0.0.1"), None);
    }
}
