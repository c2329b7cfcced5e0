//! The canonical priority of a connection (BEP 40): both sides rank it alike, and nobody can choose
//! a place near the top for many connections.
//!
//! Two addresses enter, a number leaves; higher is better. Invariant: the order of the two does not
//! matter, and addresses of one network differ by more than their last bits only if they have to.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// The priority of a connection between `ours` and `theirs`; `None` if they are of two families.
pub(super) fn canonical_priority(ours: SocketAddr, theirs: SocketAddr) -> Option<u32> {
    let (ours_ip, theirs_ip) = (ours.ip().to_canonical(), theirs.ip().to_canonical());
    if ours_ip == theirs_ip {
        return Some(of_sorted(&ours.port().to_be_bytes(), &theirs.port().to_be_bytes()));
    }
    match (ours_ip, theirs_ip) {
        (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
            let (a, b) = (ours.to_bits(), theirs.to_bits());
            let mask = match (a ^ b).leading_zeros() {
                24.. => u32::MAX,
                16.. => 0xffff_ff55,
                _ => 0xffff_5555,
            };
            Some(of_sorted(&(a & mask).to_be_bytes(), &(b & mask).to_be_bytes()))
        }
        (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
            let (a, b) = (ours.to_bits(), theirs.to_bits());
            // The first 48 bits count whole, and one byte more for each byte more that is shared.
            let whole = ((a ^ b).leading_zeros() / 8 + 1).clamp(6, 16);
            let rest = u128::MAX.checked_shr(8 * whole).unwrap_or(0);
            let mask = !rest | (rest & 0x5555_5555_5555_5555_5555_5555_5555_5555);
            Some(of_sorted(&(a & mask).to_be_bytes(), &(b & mask).to_be_bytes()))
        }
        _ => None,
    }
}

fn of_sorted(a: &[u8], b: &[u8]) -> u32 {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    let mut digest = CRC32C.digest();
    digest.update(first);
    digest.update(second);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(a: &str, b: &str) -> Option<u32> {
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(canonical_priority(a, b), canonical_priority(b, a));
        canonical_priority(a, b)
    }

    #[test]
    fn examples_of_the_bep() {
        let ours = "123.213.32.10:1";
        assert_eq!(priority(ours, "98.76.54.32:2"), Some(0xec2d_7224));
        assert_eq!(priority(ours, "123.213.32.234:2"), Some(0x9956_8189));
    }

    #[test]
    fn ports_decide_on_one_host_and_families_do_not_mix() {
        let same = priority("1.2.3.4:258", "1.2.3.4:772");
        assert_eq!(same, Some(CRC32C.checksum(&[1, 2, 3, 4])));
        assert_eq!(priority("1.2.3.4:1", "[2001:db8::1]:1"), None);
        assert!(priority("[::ffff:1.2.3.4]:1", "1.2.3.5:1") == priority("1.2.3.4:1", "1.2.3.5:1"));
    }

    #[test]
    fn neighbours_in_a_far_network_are_alike_and_near_ones_are_not() {
        let ours = "[2001:db8:1:2::1]:1";
        // Bits outside of the mask are not looked at.
        let far = priority(ours, "[2600:1:2:3::5]:1");
        assert_eq!(far, priority(ours, "[2600:1:2:3::a5]:1"));
        assert_eq!(far, priority(ours, "[2600:1:2:3::af]:1"));
        assert_ne!(priority(ours, "[2001:db8:1:2::5]:1"), priority(ours, "[2001:db8:1:2::7]:1"));
        assert_eq!(priority("9.9.9.9:1", "1.2.3.4:1"), priority("9.9.9.9:1", "1.2.131.142:1"));
    }
}
