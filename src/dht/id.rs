//! Node ids: the 160-bit space, distances in it, and ids that belong to an address (BEP 42).
//!
//! Ids, addresses and a generator enter; ids, distances and verdicts leave. Invariant: an id made
//! for an address is valid for it, and no id is refused to an address that is not public.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;

use super::address::is_local;
use crate::units::InfoHash;

/// Bits of an id.
pub(super) const ID_BITS: usize = 160;

/// What of an IPv4 address an id depends on (BEP 42).
const MASK_V4: [u8; 4] = [0x03, 0x0f, 0x3f, 0xff];

/// What of the first half of an IPv6 address an id depends on (BEP 42).
const MASK_V6: [u8; 8] = [0x01, 0x03, 0x07, 0x0f, 0x1f, 0x3f, 0x7f, 0xff];

/// CRC-32C, reflected: the polynomial 0x1edc6f41 with its bits in the other order.
const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// A place in the id space: a node's name, or what is looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 20]);

/// How far two ids are apart (BEP 5: their exclusive or, as a big-endian number).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Distance([u8; 20]);

impl NodeId {
    /// Twenty bytes, `None` of another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// An id that belongs to no address.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        let mut bytes = [0; 20];
        rng.fill(&mut bytes);
        Self(bytes)
    }

    /// An id for the node that others see at `ip` (BEP 42).
    pub fn for_ip(ip: IpAddr, rng: &mut fastrand::Rng) -> Self {
        let mut id = Self::random(rng);
        let [a, b, c] = prefix(ip, id.0[19]);
        id.0[0] = a;
        id.0[1] = b;
        id.0[2] = c & 0xf8 | id.0[2] & 0x07;
        id
    }

    /// Whether a node at `ip` may have this id (BEP 42); any id is right where addresses are local.
    pub fn is_valid_for(&self, ip: IpAddr) -> bool {
        let [a, b, c] = prefix(ip, self.0[19]);
        is_local(ip) || (self.0[0] == a && self.0[1] == b && self.0[2] & 0xf8 == c & 0xf8)
    }

    /// How far `other` is away.
    pub fn distance(&self, other: &Self) -> Distance {
        Distance(std::array::from_fn(|at| self.0[at] ^ other.0[at]))
    }

    /// How many leading bits both share, at most 160.
    pub fn shared_bits(&self, other: &Self) -> usize {
        let distance = self.distance(other).0;
        let zeros = distance.iter().take_while(|byte| **byte == 0).count();
        let rest = distance.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
        zeros * 8 + rest
    }

    /// A random id that shares the first `bit_count` bits with this one, and not the next, if
    /// there is one.
    pub fn random_beside(&self, bit_count: usize, rng: &mut fastrand::Rng) -> Self {
        let mut id = Self::random(rng);
        for at in 0..=bit_count.min(ID_BITS - 1) {
            let bit = 0x80 >> (at % 8);
            let wanted = if at == bit_count { !self.0[at / 8] } else { self.0[at / 8] };
            id.0[at / 8] = id.0[at / 8] & !bit | wanted & bit;
        }
        id
    }
}

/// The first 24 bits of the ids of `ip`, of which 21 count.
fn prefix(ip: IpAddr, random: u8) -> [u8; 3] {
    let salt = (random & 0x07) << 5;
    let crc = match ip {
        IpAddr::V4(ip) => {
            let octets = ip.octets();
            let mut bytes: [u8; 4] = std::array::from_fn(|at| octets[at] & MASK_V4[at]);
            bytes[0] |= salt;
            CRC32C.checksum(&bytes)
        }
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let mut bytes: [u8; 8] = std::array::from_fn(|at| octets[at] & MASK_V6[at]);
            bytes[0] |= salt;
            CRC32C.checksum(&bytes)
        }
    };
    let [a, b, c, _] = crc.to_be_bytes();
    [a, b, c]
}

impl From<InfoHash> for NodeId {
    fn from(info_hash: InfoHash) -> Self {
        Self(info_hash.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        InfoHash(self.0).fmt(out)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_the_one_of_castagnoli() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_vectors_of_bep_42() {
        let table = [
            ("124.31.75.21", 1, [0x5f, 0xbf, 0xbf]),
            ("21.75.31.124", 86, [0x5a, 0x3c, 0xe9]),
            ("65.23.51.170", 22, [0xa5, 0xd4, 0x32]),
            ("84.124.73.14", 65, [0x1b, 0x03, 0x21]),
            ("43.213.53.83", 90, [0xe5, 0x6f, 0x6c]),
        ];
        for (ip, random, expected) in table {
            let ip: IpAddr = ip.parse().unwrap();
            let [a, b, c] = prefix(ip, random);
            assert_eq!([a, b, c & 0xf8], [expected[0], expected[1], expected[2] & 0xf8], "{ip}");
            let mut id = [0; 20];
            id[..3].copy_from_slice(&expected);
            id[19] = random;
            assert!(NodeId(id).is_valid_for(ip), "{ip}");
            id[0] ^= 1;
            assert!(!NodeId(id).is_valid_for(ip), "{ip}");
        }
    }

    #[test]
    fn ids_made_for_an_address_are_valid_there_and_not_elsewhere() {
        let mut rng = fastrand::Rng::with_seed(42);
        for ip in ["9.9.9.9", "203.0.113.7", "2a00:1450::1", "2600::"] {
            let ip: IpAddr = ip.parse().unwrap();
            for _ in 0..64 {
                assert!(NodeId::for_ip(ip, &mut rng).is_valid_for(ip));
            }
            assert!(!NodeId::for_ip(ip, &mut rng).is_valid_for("8.8.4.4".parse().unwrap()));
        }
        for local in ["127.0.0.1", "10.1.2.3", "::1", "fd00::1"] {
            assert!(NodeId::random(&mut rng).is_valid_for(local.parse().unwrap()));
        }
    }

    #[test]
    fn shared_bits_and_random_neighbours_agree() {
        let mut rng = fastrand::Rng::with_seed(1);
        let id = NodeId::random(&mut rng);
        assert_eq!(id.shared_bits(&id), ID_BITS);
        for bits in 0..ID_BITS {
            assert_eq!(id.shared_bits(&id.random_beside(bits, &mut rng)), bits);
        }
        assert_eq!(id.random_beside(ID_BITS, &mut rng), id);
        let near = id.random_beside(100, &mut rng);
        let far = id.random_beside(9, &mut rng);
        assert!(id.distance(&near) < id.distance(&far));
        assert_eq!(NodeId::from_slice(&[0; 19]), None);
    }
}
