//! Peers and hosts that the operator names: texts to addresses that are connected to at all.
//!
//! A text of the command line or the host of a URL enters, addresses leave, or a sentence.
//! Invariant: the addresses of cloud metadata services never leave, whatever name leads to them.

use std::io;
use std::net::SocketAddr;

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
        let parsed = if let Ok(addr) = text.parse() {
            Self::Addr(addr)
        } else {
            let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
            let port = port.parse().map_err(|_| wrong())?;
            if host.contains(':') {
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
        Ok(parsed)
    }

    /// Its addresses.
    ///
    /// # Errors
    /// One sentence: the name has none, or none that is connected to.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        match self {
            Self::Addr(addr) => Ok(vec![*addr]),
            Self::Name(name, port) => look_up(name, *port).await.map_err(|error| {
                format!("cannot look up the host of --peer {name}:{port}: {error}")
            }),
        }
    }
}

/// The addresses of a name that are connected to when the operator gives the name.
async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((name, port)).await?;
    let mut refused = None;
    let permitted = found.filter(|addr| match permits(addr) {
        Ok(()) => true,
        Err(reason) => {
            refused = Some((*addr, reason));
            false
        }
    });
    let permitted: Vec<_> = permitted.take(ADDRESSES_MAX).collect();
    match refused {
        Some((addr, reason)) if permitted.is_empty() => {
            Err(io::Error::other(format!("its address is {}: {reason}", addr.ip())))
        }
        _ => Ok(permitted),
    }
}

fn permits(addr: &SocketAddr) -> Result<(), Reason> {
    policy::permits_operator(addr.ip())
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
        for text in ["", "nonsense", "a:", "a:65536", ":1", "a b:1"] {
            assert!(Peer::parse(text).unwrap_err().contains("ADDR:PORT"), "{text}");
        }
    }

    #[tokio::test]
    async fn names_lead_to_addresses_or_to_a_sentence() {
        let found = Peer::parse("localhost:7").unwrap().addresses().await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7), "{found:?}");
        assert!(!found.is_empty());
        let gone = Peer::parse("nowhere.invalid:7").unwrap().addresses().await.unwrap_err();
        assert!(
            gone.starts_with("cannot look up the host of --peer nowhere.invalid:7: "),
            "{gone}"
        );
        let refused = look_up("169.254.169.254", 80).await.unwrap_err().to_string();
        assert!(refused.contains("cloud metadata"), "{refused}");
    }
}
