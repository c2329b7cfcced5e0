//! Which addresses outside input may send us to: trackers, redirects, peers in replies.
//!
//! An address enters, permission or the reason for refusal leaves. Invariant: the addresses of
//! cloud metadata services are never permitted, whatever the settings say, and an IPv4 address
//! dressed as IPv6 (mapped, NAT64, 6to4) is judged as the IPv4 address that it is.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Addresses at which clouds hand credentials to whoever asks from inside the machine.
const METADATA: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];

/// Why an address is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason {
    /// A cloud's metadata service.
    #[error("it is the address of a cloud metadata service")]
    Metadata,
    /// 0.0.0.0/8 or `::`.
    #[error("it is the unspecified address")]
    Unspecified,
    /// 224.0.0.0/4, `ff00::/8`, 255.255.255.255.
    #[error("it is a multicast or broadcast address")]
    Multicast,
    /// 127.0.0.0/8 or `::1`.
    #[error("it is a loopback address, and net.allow_local does not open it")]
    Loopback,
    /// 169.254.0.0/16 or `fe80::/10`.
    #[error("it is a link-local address, and net.allow_local does not open it")]
    LinkLocal,
    /// RFC 1918, RFC 6598 (carrier NAT), RFC 2544, RFC 4193 (`fc00::/7`), `fec0::/10`.
    #[error("it is a private address, and net.allow_local does not open it")]
    Private,
    /// 192.0.0.0/24, 240.0.0.0/4 and what else no host on the Internet has.
    #[error("it is a reserved address, and net.allow_local does not open it")]
    Reserved,
}

impl Reason {
    /// Nothing opens such an address: neither the settings nor an operator who names it.
    fn is_final(self) -> bool {
        matches!(self, Self::Metadata | Self::Unspecified | Self::Multicast)
    }
}

/// A range of addresses in the notation of RFC 4632, such as `10.0.0.0/8` or `fd00::/8`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    prefix: u8,
}

/// Why a text is not a range of addresses.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseCidrError {
    /// It has another form.
    #[error("`{}` is no network such as 10.0.0.0/8 or fd00::/8", super::display_text(.0.as_bytes()))]
    Form(String),
    /// It looks like a network, but would be one address.
    #[error("{0} is one address: give the bits of its network, as in {0}/{1}, or {0}/{2}")]
    NoBits(IpAddr, u8, u8),
}

/// What may be connected to. The default permits the public Internet only.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AddressPolicy {
    /// Whether 127.0.0.0/8 and `::1` are open.
    pub allow_loopback: bool,
    /// Whether private ranges (RFC 1918, carrier NAT, unique local) are open.
    pub allow_private: bool,
    /// Ranges that are open besides; they also open link-local and reserved addresses.
    pub allow: Vec<Cidr>,
}

impl AddressPolicy {
    /// The policy of a server that listens on `listen`: the scope of a loopback, private or
    /// link-local address is open, and so are the ranges of `net.allow_local`.
    pub fn for_listen(listen: &[IpAddr], allow_local: &[Cidr]) -> Self {
        let mut policy = Self { allow: allow_local.to_vec(), ..Self::default() };
        for ip in listen {
            match classify(plain(*ip)) {
                Err(Reason::Loopback) => policy.allow_loopback = true,
                Err(Reason::Private) => policy.allow_private = true,
                Err(Reason::LinkLocal) => policy.allow.push(Cidr::link_local(*ip)),
                _ => {}
            }
        }
        policy
    }

    /// Whether `ip` may be connected to.
    ///
    /// # Errors
    /// The range that closes it.
    pub fn permits(&self, ip: IpAddr) -> Result<(), Reason> {
        let plain = plain(ip);
        let verdict = classify(plain);
        let open = match verdict {
            Ok(()) => true,
            Err(reason) if reason.is_final() => false,
            Err(Reason::Loopback) => self.allow_loopback || self.is_listed(ip, plain),
            Err(Reason::Private) => self.allow_private || self.is_listed(ip, plain),
            Err(_) => self.is_listed(ip, plain),
        };
        if open { Ok(()) } else { verdict }
    }

    fn is_listed(&self, ip: IpAddr, plain: IpAddr) -> bool {
        self.allow.iter().any(|range| range.contains(ip) || range.contains(plain))
    }
}

/// Whether `ip` may be connected to when the operator names it, who needs no permission for ranges
/// that are closed to others.
///
/// # Errors
/// No host for peers can be there: a cloud's metadata service, a multicast or unspecified address.
pub fn permits_operator(ip: IpAddr) -> Result<(), Reason> {
    classify(plain(ip)).or_else(|reason| if reason.is_final() { Err(reason) } else { Ok(()) })
}

impl Cidr {
    /// Whether `ip` lies in the range; addresses of the other family never do, and what is mapped
    /// into IPv6 (`::ffff:0:0/96`) is IPv4 and nothing else.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let shared_bit_count = match (self.base, ip.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => (base.to_bits() ^ ip.to_bits()).leading_zeros(),
            (IpAddr::V6(base), IpAddr::V6(ip)) => (base.to_bits() ^ ip.to_bits()).leading_zeros(),
            _ => return false,
        };
        shared_bit_count >= u32::from(self.prefix)
    }

    fn link_local(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self { base: Ipv4Addr::new(169, 254, 0, 0).into(), prefix: 16 },
            IpAddr::V6(_) => {
                Self { base: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), prefix: 10 }
            }
        }
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    /// Reads `ADDRESS/BITS`; an address alone is the range that holds only it, unless it ends in
    /// zeros as networks do: then the bits were forgotten.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCidrError::Form(text.to_owned());
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = base.trim().parse().map_err(|_| error())?;
        let prefix_max = if base.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = match prefix {
            Some(bits) => bits.trim().parse().map_err(|_| error())?,
            None if zero_bits(base) >= prefix_max / 4 => {
                let likely = prefix_max - zero_bits(base) / 8 * 8;
                return Err(ParseCidrError::NoBits(base, likely, prefix_max));
            }
            None => prefix_max,
        };
        if prefix > prefix_max {
            return Err(error());
        }
        Ok(match (base.to_canonical(), prefix.checked_sub(96)) {
            // A range of addresses that are mapped into IPv6 is one of IPv4.
            (v4 @ IpAddr::V4(_), Some(prefix)) if base.is_ipv6() => Self { base: v4, prefix },
            _ => Self { base, prefix },
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.base, self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = ParseCidrError;

    fn try_from(text: String) -> Result<Self, ParseCidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> Self {
        range.to_string()
    }
}

/// Bits that are 0 at the end of an address.
fn zero_bits(ip: IpAddr) -> u8 {
    let count = match ip {
        IpAddr::V4(ip) => ip.to_bits().trailing_zeros(),
        IpAddr::V6(ip) => ip.to_bits().trailing_zeros(),
    };
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// The IPv4 address inside an IPv6 one, where a gateway or the kernel would connect to it.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match (a, b) {
        (0x64, 0xff9b) if [c, d, e, f] == [0; 4] => v4(g, h),
        (0x2002, _) => v4(b, c),
        (0, 0) if [c, d, e, f] == [0; 4] && (g, h) > (0, 1) => v4(g, h),
        _ => ip,
    }
}

/// The IPv4 addresses that an address of 64:ff9b:1::/48 (RFC 8215) may stand for. Each network that
/// uses these for its own NAT64 chooses how much of them is its prefix, and so where the IPv4
/// address begins; bits 64 to 71 never belong to it (RFC 6052, 2.2).
fn local_nat64(ip: Ipv6Addr) -> [Ipv4Addr; 4] {
    let [.., a, b, _, c, d, e, f, g, h, i] = ip.octets();
    [[a, b, c, d], [b, c, d, e], [c, d, e, f], [f, g, h, i]].map(Ipv4Addr::from)
}

/// The range an address lies in; `Ok` for the public Internet.
fn classify(ip: IpAddr) -> Result<(), Reason> {
    if METADATA.contains(&ip) {
        return Err(Reason::Metadata);
    }
    match ip {
        IpAddr::V4(ip) => classify_v4(ip),
        IpAddr::V6(ip) => classify_v6(ip),
    }
}

fn classify_v4(ip: Ipv4Addr) -> Result<(), Reason> {
    let reason = match ip.octets() {
        [0, ..] => Reason::Unspecified,
        [127, ..] => Reason::Loopback,
        [169, 254, ..] => Reason::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => Reason::Multicast,
        [192, 0, 0, _] | [240..=255, ..] => Reason::Reserved,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Reason::Private,
        [100, 64..=127, ..] | [198, 18..=19, ..] => Reason::Private,
        _ => return Ok(()),
    };
    Err(reason)
}

fn classify_v6(ip: Ipv6Addr) -> Result<(), Reason> {
    let reason = match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Reason::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reason::Loopback,
        [0xff00..=0xffff, ..] => Reason::Multicast,
        [0xfe80..=0xfebf, ..] => Reason::LinkLocal,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Reason::Private,
        // Even a public IPv4 address is reached through a gateway of the local network; of those
        // that it may be, the worst counts.
        [0x64, 0xff9b, 1, ..] => {
            let found = local_nat64(ip).map(|inner| classify(inner.into()));
            let worst = [Reason::Metadata, Reason::Loopback, Reason::LinkLocal];
            let worst = worst.into_iter().find(|reason| found.contains(&Err(*reason)));
            worst.unwrap_or(Reason::Private)
        }
        [0x100, 0, 0, 0, ..] | [0x2001, 0, ..] => Reason::Reserved,
        _ => return Ok(()),
    };
    Err(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(policy: &AddressPolicy, ip: &str) -> Result<(), Reason> {
        policy.permits(ip.parse().unwrap())
    }

    #[test]
    fn the_default_is_the_public_internet() {
        let policy = AddressPolicy::default();
        let table = [
            ("1.1.1.1", Ok(())),
            ("172.15.255.255", Ok(())),
            ("172.32.0.0", Ok(())),
            ("100.63.255.255", Ok(())),
            ("100.128.0.0", Ok(())),
            ("2606:4700::1111", Ok(())),
            ("2a00::1", Ok(())),
            ("0.0.0.0", Err(Reason::Unspecified)),
            ("0.1.2.3", Err(Reason::Unspecified)),
            ("::", Err(Reason::Unspecified)),
            ("127.0.0.1", Err(Reason::Loopback)),
            ("127.255.0.9", Err(Reason::Loopback)),
            ("::1", Err(Reason::Loopback)),
            ("::ffff:127.0.0.1", Err(Reason::Loopback)),
            ("::127.0.0.1", Err(Reason::Loopback)),
            ("64:ff9b::7f00:1", Err(Reason::Loopback)),
            ("2002:7f00:1::", Err(Reason::Loopback)),
            ("10.0.0.1", Err(Reason::Private)),
            ("::ffff:10.1.2.3", Err(Reason::Private)),
            ("172.16.0.1", Err(Reason::Private)),
            ("172.31.255.255", Err(Reason::Private)),
            ("192.168.0.1", Err(Reason::Private)),
            ("100.64.0.1", Err(Reason::Private)),
            ("100.127.255.255", Err(Reason::Private)),
            ("198.18.0.1", Err(Reason::Private)),
            ("fc00::1", Err(Reason::Private)),
            ("fd12:3456::1", Err(Reason::Private)),
            ("fec0::1", Err(Reason::Private)),
            ("64:ff9b:1::1", Err(Reason::Private)),
            ("64:ff9b:1:808:8:800::", Err(Reason::Private)),
            ("64:ff9b:1:7f00:0:100::", Err(Reason::Loopback)),
            ("64:ff9b:1:a9fe:1:100::", Err(Reason::LinkLocal)),
            ("169.254.1.1", Err(Reason::LinkLocal)),
            ("fe80::1", Err(Reason::LinkLocal)),
            ("febf::1", Err(Reason::LinkLocal)),
            ("224.0.0.1", Err(Reason::Multicast)),
            ("239.255.255.255", Err(Reason::Multicast)),
            ("255.255.255.255", Err(Reason::Multicast)),
            ("ff02::1", Err(Reason::Multicast)),
            ("192.0.0.8", Err(Reason::Reserved)),
            ("240.0.0.1", Err(Reason::Reserved)),
            ("2001::1", Err(Reason::Reserved)),
            ("100::1", Err(Reason::Reserved)),
            ("169.254.169.254", Err(Reason::Metadata)),
            ("::ffff:169.254.169.254", Err(Reason::Metadata)),
            ("64:ff9b::a9fe:a9fe", Err(Reason::Metadata)),
            ("2002:a9fe:a9fe::", Err(Reason::Metadata)),
            ("100.100.100.200", Err(Reason::Metadata)),
            ("fd00:ec2::254", Err(Reason::Metadata)),
            ("169.254.0.23", Err(Reason::Metadata)),
            ("fe80::a9fe:a9fe", Err(Reason::Metadata)),
            // 169.254.169.254 behind prefixes of 48, 56, 64 and 96 bits.
            ("64:ff9b:1:a9fe:a9:fe00::", Err(Reason::Metadata)),
            ("64:ff9b:1:aaa9:fe:a9fe::", Err(Reason::Metadata)),
            ("64:ff9b:1:aaaa:a9:fea9:fe00:0", Err(Reason::Metadata)),
            ("64:ff9b:1:aaaa:bb:cccc:a9fe:a9fe", Err(Reason::Metadata)),
        ];
        for (ip, expected) in table {
            assert_eq!(judge(&policy, ip), expected, "{ip}");
        }
    }

    #[test]
    fn nothing_opens_metadata_multicast_or_the_unspecified_address() {
        let everything = AddressPolicy {
            allow_loopback: true,
            allow_private: true,
            allow: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        };
        for ip in METADATA {
            assert_eq!(everything.permits(*ip), Err(Reason::Metadata));
            assert_eq!(permits_operator(*ip), Err(Reason::Metadata));
        }
        for ip in ["::ffff:169.254.169.254", "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1::a9fe:a9fe"] {
            assert_eq!(judge(&everything, ip), Err(Reason::Metadata), "{ip}");
            assert_eq!(permits_operator(ip.parse().unwrap()), Err(Reason::Metadata), "{ip}");
        }
        assert_eq!(judge(&everything, "224.0.0.1"), Err(Reason::Multicast));
        assert_eq!(judge(&everything, "0.0.0.0"), Err(Reason::Unspecified));
        for ip in ["127.0.0.1", "169.254.1.1", "fe80::1", "10.0.0.1", "240.0.0.1", "::1"] {
            assert_eq!(judge(&everything, ip), Ok(()), "{ip}");
            assert_eq!(permits_operator(ip.parse().unwrap()), Ok(()), "{ip}");
        }
    }

    #[test]
    fn the_scope_of_the_listener_is_open_and_no_other() {
        let of = |ip: &str| AddressPolicy::for_listen(&[ip.parse().unwrap()], &[]);
        assert_eq!(judge(&of("127.0.0.1"), "::1"), Ok(()));
        assert_eq!(judge(&of("127.0.0.1"), "10.0.0.1"), Err(Reason::Private));
        assert_eq!(judge(&of("192.168.1.2"), "10.0.0.1"), Ok(()));
        assert_eq!(judge(&of("192.168.1.2"), "127.0.0.1"), Err(Reason::Loopback));
        assert_eq!(judge(&of("fe80::1"), "fe80::2"), Ok(()));
        assert_eq!(judge(&of("0.0.0.0"), "127.0.0.1"), Err(Reason::Loopback));
        assert_eq!(judge(&of("::"), "::1"), Err(Reason::Loopback));
        let listed = AddressPolicy::for_listen(&[], &["10.1.0.0/16".parse().unwrap()]);
        assert_eq!(judge(&listed, "10.1.255.255"), Ok(()));
        assert_eq!(judge(&listed, "::ffff:10.1.0.1"), Ok(()));
        assert_eq!(judge(&listed, "10.2.0.0"), Err(Reason::Private));
        let mapped = AddressPolicy::for_listen(&[], &["::ffff:10.1.0.0/112".parse().unwrap()]);
        let v6 = AddressPolicy::for_listen(&[], &["::/0".parse().unwrap()]);
        for ip in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert_eq!(judge(&mapped, ip), Ok(()), "{ip}");
            assert_eq!(judge(&v6, ip), Err(Reason::Private), "{ip}");
        }
    }

    #[test]
    fn ranges_parse_or_say_why_not() {
        let range: Cidr = "fd00::/8".parse().unwrap();
        assert_eq!(range.to_string(), "fd00::/8");
        assert!(range.contains("fdff::1".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains("9.9.9.9".parse().unwrap()));
        assert!(!"9.9.9.9".parse::<Cidr>().unwrap().contains("9.9.9.8".parse().unwrap()));
        for text in ["", "/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1", "10.0.0/8", "a/b"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        let hint = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        for (text, network) in [("10.0.0.0", "/8"), ("192.168.7.0", "/24"), ("fd00::", "/8")] {
            let hint = hint(text);
            assert!(hint.contains(&format!("as in {text}{network}, or {text}/")), "{hint}");
        }
        assert!("fd00::1:0".parse::<Cidr>().is_ok() && "10.0.0.10".parse::<Cidr>().is_ok());
    }
}
