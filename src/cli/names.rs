//! Peers and hosts that the operator names: texts to addresses that are connected to at all.
//!
//! A text of the command line or the host of a URL enters, addresses leave, or a sentence.
//! Invariant: the addresses of cloud metadata services never leave, whatever name leads to them.

use std::net::{IpAddr, SocketAddr};
use std::{fmt, io};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

use crate::tracker::policy::{self, Reason};

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 8;

/// A peer as `--peer` names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// By its address.
    Addr(SocketAddr),
    /// By a host name, which is looked up when it is needed.
    Name(String, u16),
}

impl Peer {
    /// Reads `ADDR:PORT` or `NAME:PORT`.
    ///
    /// # Errors
    /// One sentence for the usage: no such thing, or an address that is never connected to.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "ADDR:PORT is expected, as 192.0.2.1:6881 or host.example:6881".to_owned();
        let numbers = "an interface stands in an address by its number, as in [fe80::1%2]:6881";
        let parsed = if let Ok(addr) = text.parse() {
            Self::Addr(addr)
        } else {
            let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let port = port.parse().map_err(|_| wrong())?;
            if host.starts_with('[') && host.contains('%') {
                return Err(numbers.into());
            } else if host.contains(':') && !host.starts_with('[') {
                return Err("an IPv6 address is written in brackets, as [2001:db8::1]:6881".into());
            }
            match Host::parse(host).map_err(|_| wrong())? {
                Host::Domain(name) => Self::Name(name, port),
                Host::Ipv4(ip) => Self::Addr((ip, port).into()),
                Host::Ipv6(ip) => Self::Addr((ip, port).into()),
            }
        };
        if let Self::Addr(addr) = parsed {
            policy::permits_operator(addr.ip()).map_err(|reason| reason.to_string())?;
        }
        match parsed {
            Self::Addr(addr) if addr.port() == 0 => Err(wrong()),
            Self::Name(_, 0) => Err(wrong()),
            parsed => Ok(parsed),
        }
    }

    /// Its addresses.
    ///
    /// # Errors
    /// The name has none, or none that is connected to.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, LookUpError> {
        match self {
            Self::Addr(addr) => Ok(vec![*addr]),
            Self::Name(name, port) => look_up(name, *port).await,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(out, "{addr}"),
            Self::Name(name, port) => write!(out, "{name}:{port}"),
        }
    }
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// The system's words.
    #[error(transparent)]
    System(#[from] io::Error),
    /// It leads where an operator has no business.
    #[error("its address is {0}: {1}")]
    Refused(IpAddr, Reason),
}

/// The addresses of a name that are connected to when the operator gives the name.
async fn look_up(name: &str, port: u16) -> Result<Vec<SocketAddr>, LookUpError> {
    let found = tokio::net::lookup_host((name, port)).await?;
    let mut refused = None;
    let permitted = found.filter(|addr| match policy::permits_operator(addr.ip()) {
        Ok(()) => true,
        Err(reason) => {
            refused = Some(LookUpError::Refused(addr.ip(), reason));
            false
        }
    });
    let permitted: Vec<_> = permitted.take(ADDRESSES_MAX).collect();
    match refused {
        Some(refused) if permitted.is_empty() => Err(refused),
        _ => Ok(permitted),
    }
}

/// The resolver of HTTP clients that fetch what the operator names.
pub(super) struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = look_up(name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Why an address that stands in a URL is not connected to; it never passes a resolver.
pub(super) fn refusal(url: &url::Url) -> Option<Reason> {
    let ip = match url.host()? {
        Host::Ipv4(ip) => ip.into(),
        Host::Ipv6(ip) => ip.into(),
        Host::Domain(_) => return None,
    };
    policy::permits_operator(ip).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_or_names() {
        let addr = |text: &str| Ok(Peer::Addr(text.parse().unwrap()));
        assert_eq!(Peer::parse("192.0.2.1:1"), addr("192.0.2.1:1"));
        assert_eq!(Peer::parse("[2001:db8::1]:2"), addr("[2001:db8::1]:2"));
        assert_eq!(Peer::parse("Host.example:3"), Ok(Peer::Name("host.example".into(), 3)));
        // Other spellings of an address are that address.
        assert_eq!(Peer::parse("0x7f.1:4"), addr("127.0.0.1:4"));
        assert!(Peer::parse("0xa9fea9fe:80").unwrap_err().contains("cloud metadata"));
        assert!(Peer::parse("::1:5").unwrap_err().contains("brackets"));
        assert!(Peer::parse("[fe80::1%eth0]:5").unwrap_err().contains("by its number"));
        assert_eq!(Peer::parse("[fe80::1%2]:5"), addr("[fe80::1%2]:5"));
        for text in ["", "nonsense", "a:", "a:65536", "a:0", "192.0.2.1:0", ":1", "a b:1", "[:1"] {
            assert!(Peer::parse(text).unwrap_err().contains("ADDR:PORT"), "{text}");
        }
    }

    #[tokio::test]
    async fn names_lead_to_addresses_or_to_a_sentence() {
        let found = Peer::parse("localhost:7").unwrap().addresses().await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7), "{found:?}");
        assert!(!found.is_empty());
        let gone = Peer::parse("nowhere.invalid:7").unwrap();
        assert_eq!(gone.to_string(), "nowhere.invalid:7");
        assert!(matches!(gone.addresses().await, Err(LookUpError::System(_))));
        let refused = look_up("169.254.169.254", 80).await.unwrap_err().to_string();
        assert!(refused.contains("cloud metadata"), "{refused}");
    }
}
