//! Messages of peer exchange (BEP 11): who joined and who left since the last one.
//!
//! The payload of an extended message enters, a [`PexMessage`] leaves, and back. Invariant: no more
//! than [`PEX_PEERS_MAX`] addresses of each family are read or written per list, whatever is sent;
//! an address that is mapped into IPv6 is the IPv4 address that it is.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Message, encode};
use crate::bencode::{Document, Encoder, Limits, Value};

/// The name of the extension in handshakes.
pub const PEX_NAME: &[u8] = b"ut_pex";

/// Addresses of one family in one list.
pub const PEX_PEERS_MAX: usize = 50;

/// Longest payload that is read, in bytes: far more than full lists take.
pub const PEX_LEN_MAX: usize = 8 << 10;

/// What is said of a peer, one bit each.
pub mod pex_flags {
    /// It prefers encryption.
    pub const ENCRYPTION: u8 = 0x01;
    /// It has everything, or wants nothing.
    pub const SEED: u8 = 0x02;
    /// It speaks uTP.
    pub const UTP: u8 = 0x04;
    /// It knows the holepunch extension.
    pub const HOLEPUNCH: u8 = 0x08;
    /// It can be connected to: somebody has.
    pub const REACHABLE: u8 = 0x10;
}

/// What one message says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PexMessage {
    /// Peers that joined, each with its flags.
    pub added: Vec<(SocketAddr, u8)>,
    /// Peers that left.
    pub dropped: Vec<SocketAddr>,
}

impl PexMessage {
    /// Reads a payload. A part of an address at the end of a list is passed over, and so is what
    /// has port 0.
    ///
    /// # Errors
    /// [`Error::Pex`] or [`Error::PexForm`].
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        if payload.len() > PEX_LEN_MAX {
            return Err(Error::PexForm);
        }
        let (document, _) = Document::parse_prefix(payload, &Limits::PEX).map_err(Error::Pex)?;
        let root = document.root();
        if root.as_dict().is_none() {
            return Err(Error::PexForm);
        }
        let list = |key: &[u8]| root.get(key).and_then(|list: Value<'_>| list.as_bytes());
        let mut message = Self::default();
        let families: [(&[u8], &[u8], usize); 2] =
            [(b"added", b"added.f", 6), (b"added6", b"added6.f", 18)];
        for (addrs, flags, len) in families {
            let flags = list(flags).unwrap_or_default().iter().copied().chain(std::iter::repeat(0));
            let addrs = list(addrs).unwrap_or_default().chunks_exact(len).take(PEX_PEERS_MAX);
            let named =
                addrs.zip(flags).filter_map(|(bytes, flags)| Some((address(bytes)?, flags)));
            message.added.extend(named);
        }
        for (key, len) in [(&b"dropped"[..], 6), (b"dropped6", 18)] {
            let addrs = list(key).unwrap_or_default().chunks_exact(len).take(PEX_PEERS_MAX);
            message.dropped.extend(addrs.filter_map(address));
        }
        Ok(message)
    }

    /// Appends the extended message with this `id`, the peer's own for the extension, to `out`.
    pub fn encode(&self, id: u8, out: &mut Vec<u8>) {
        let [mut added, mut flags, mut added6, mut flags6, mut dropped, mut dropped6] =
            [const { Vec::new() }; 6];
        for (addr, bits) in &self.added {
            let (addrs, flags) = match addr.ip().to_canonical() {
                IpAddr::V4(_) => (&mut added, &mut flags),
                IpAddr::V6(_) => (&mut added6, &mut flags6),
            };
            if flags.len() < PEX_PEERS_MAX {
                push(addrs, *addr);
                flags.push(*bits);
            }
        }
        for addr in &self.dropped {
            let (addrs, len) = match addr.ip().to_canonical() {
                IpAddr::V4(_) => (&mut dropped, 6),
                IpAddr::V6(_) => (&mut dropped6, 18),
            };
            if addrs.len() < PEX_PEERS_MAX * len {
                push(addrs, *addr);
            }
        }
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            // The lists of IPv4 are there even if they are empty: some clients count on it.
            dict.bytes(b"added", &added).bytes(b"added.f", &flags);
            dict.bytes(b"dropped", &dropped);
            if !added6.is_empty() || !dropped6.is_empty() {
                dict.bytes(b"added6", &added6).bytes(b"added6.f", &flags6);
                dict.bytes(b"dropped6", &dropped6);
            }
        });
        encode(&Message::Extended { id, payload: &encoder.finish() }, out);
    }
}

fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_last_chunk::<2>()?;
    let ip = match ip.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
    };
    let port = u16::from_be_bytes(*port);
    (port != 0).then(|| SocketAddr::new(ip.to_canonical(), port))
}

fn push(addrs: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => addrs.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => addrs.extend_from_slice(&ip.octets()),
    }
    addrs.extend_from_slice(&addr.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &PexMessage) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(1, &mut out);
        out.split_off(6)
    }

    #[test]
    fn messages_are_those_of_the_bep_and_read_back() {
        let v4: SocketAddr = "1.2.3.4:258".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        let message = PexMessage { added: vec![(v4, 0x12)], dropped: vec![v4] };
        let bytes = encoded(&message);
        let expected = b"d5:added6:\x01\x02\x03\x04\x01\x027:added.f1:\x127:dropped6:\x01\x02\x03\x04\x01\x02e";
        assert_eq!(bytes, expected);
        assert_eq!(PexMessage::parse(&bytes), Ok(message));
        let both = PexMessage { added: vec![(v4, 0), (v6, 2)], dropped: vec![v6] };
        assert_eq!(PexMessage::parse(&encoded(&both)), Ok(both));
        let mapped: SocketAddr = "[::ffff:1.2.3.4]:258".parse().unwrap();
        let message = PexMessage { added: vec![(mapped, 0)], dropped: Vec::new() };
        assert_eq!(PexMessage::parse(&encoded(&message)).unwrap().added, [(v4, 0)]);
    }

    #[test]
    fn lists_have_an_end() {
        let added = (1..=300).map(|port| (SocketAddr::from(([9, 9, 9, 9], port)), 0)).collect();
        let message = PexMessage { added, dropped: Vec::new() };
        assert_eq!(PexMessage::parse(&encoded(&message)).unwrap().added.len(), PEX_PEERS_MAX);
        let long = [b"d5:added1200:".to_vec(), vec![1; 1200], b"e".to_vec()].concat();
        assert_eq!(PexMessage::parse(&long).unwrap().added.len(), PEX_PEERS_MAX);
        let huge = [b"d5:added9000:".to_vec(), vec![1; 9000], b"e".to_vec()].concat();
        assert_eq!(PexMessage::parse(&huge), Err(Error::PexForm));
    }

    #[test]
    fn nonsense_is_refused_or_passed_over() {
        let none = Ok(PexMessage::default());
        for payload in [&b"de"[..], b"d5:addedi1ee", b"d5:added5:aaaaae", b"d5:added6:aaaa\0\0e"] {
            assert_eq!(PexMessage::parse(payload), none, "{}", payload.escape_ascii());
        }
        for payload in [&b""[..], b"le", b"i1e", b"d5:added", b"d5:added6:aaaaae"] {
            assert!(PexMessage::parse(payload).is_err(), "{}", payload.escape_ascii());
        }
        proptest::proptest!(|(bytes: Vec<u8>)| {
            if let Ok(message) = PexMessage::parse(&bytes) {
                drop(encoded(&message));
            }
        });
    }
}
