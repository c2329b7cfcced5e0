//! The Bloom filters of scrapes (BEP 33): how many peers, without saying which.
//!
//! IP addresses and filters of others enter, 256 bytes and an estimate leave. Invariant: a filter
//! has always [`BLOOM_LEN`] bytes.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use sha1::{Digest, Sha1};

/// Bytes of a filter.
pub const BLOOM_LEN: usize = 256;

const BIT_COUNT: u16 = 2048;

/// A set of IP addresses that can be counted but not listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bloom(Box<[u8; BLOOM_LEN]>);

impl Default for Bloom {
    fn default() -> Self {
        Self(Box::new([0; BLOOM_LEN]))
    }
}

impl Bloom {
    /// A filter from the wire; `None` of another length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        <[u8; BLOOM_LEN]>::try_from(bytes).ok().map(|bytes| Self(Box::new(bytes)))
    }

    /// The filter as it goes over the wire.
    pub fn as_bytes(&self) -> &[u8; BLOOM_LEN] {
        &self.0
    }

    /// Adds an address.
    pub fn insert(&mut self, ip: IpAddr) {
        let digest: [u8; 20] = match ip {
            IpAddr::V4(ip) => Sha1::digest(ip.octets()).into(),
            IpAddr::V6(ip) => Sha1::digest(ip.octets()).into(),
        };
        for pair in [[digest[0], digest[1]], [digest[2], digest[3]]] {
            let index = u16::from_le_bytes(pair) % BIT_COUNT;
            self.0[usize::from(index / 8)] |= 1 << (index % 8);
        }
    }

    /// Adds what another filter holds.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// About how many addresses were added; a full filter says some thousands.
    pub fn estimate(&self) -> u32 {
        let zeros: u32 = self.0.iter().map(|byte| byte.count_zeros()).sum();
        let bits = f64::from(BIT_COUNT);
        let free = f64::from(zeros).clamp(1.0, bits);
        let estimate = (free / bits).ln() / (2.0 * (1.0 - 1.0 / bits).ln());
        // At most 2048 · ln 2048 / 2, so it fits.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7,809")]
        let whole = estimate.round() as u32;
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn the_example_of_bep_33() {
        let mut bloom = Bloom::default();
        assert_eq!(bloom.estimate(), 0);
        for last in 0..=255 {
            bloom.insert(Ipv4Addr::new(192, 0, 2, last).into());
        }
        for last in 0..0x3e8 {
            bloom.insert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into());
        }
        assert_eq!(bloom.estimate(), 1225, "1224.9308 in the text");
        assert_eq!(bloom.as_bytes()[..8], [0xf6, 0xc3, 0xf5, 0xea, 0xa0, 0x7f, 0xfd, 0x91]);
    }

    #[test]
    fn filters_merge_and_saturate() {
        let (mut one, mut two) = (Bloom::default(), Bloom::default());
        one.insert("1.1.1.1".parse().unwrap());
        two.insert("2.2.2.2".parse().unwrap());
        two.insert("2.2.2.2".parse().unwrap());
        assert_eq!((one.estimate(), two.estimate()), (1, 1));
        one.merge(&two);
        assert_eq!(one.estimate(), 2);
        let full = Bloom::from_slice(&[0xff; BLOOM_LEN]).unwrap();
        assert_eq!(full.estimate(), 7806);
        assert_eq!(Bloom::from_slice(&[0; 255]), None);
    }
}
