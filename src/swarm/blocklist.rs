//! Addresses that the operator wants nothing to do with, from a file of ranges.
//!
//! The text of a list enters, "is it blocked?" leaves. One range stands on a line, in any of three
//! ways, which may be mixed: CIDR (`10.0.0.0/8`, or an address alone), P2P (`some name:1.2.3.4-1.2.3.9`)
//! and DAT (`1.2.3.4 - 1.2.3.9 , 000 , some name`, where a level above 127 lets the range pass). Empty
//! lines and lines that begin with `#` or `;` are passed over. IPv6 addresses stand wherever IPv4
//! addresses do. A broken line costs itself only. Invariant: a list takes no more memory than [`BLOCKLIST_RANGES_MAX`] ranges, its ranges are
//! sorted and do not touch, and a look-up takes as many steps as they have binary digits.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use crate::bencode::excerpt;

/// Ranges of one family in a list, before they are merged.
pub const BLOCKLIST_RANGES_MAX: usize = 2_000_000;

/// Longest line in bytes.
pub const BLOCKLIST_LINE_LEN_MAX: usize = 4096;

/// Broken lines that are told; the others are counted.
pub const BROKEN_LINES_TOLD_MAX: usize = 8;

/// From this level on a line of a DAT list does not block.
const LEVEL_PASSED: u32 = 128;

/// Why a line of a list is passed over, or a text is no blocklist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlocklistError {
    /// A line has none of the three forms.
    #[error("line {line} of the blocklist is no range of addresses: {text}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// The line, cut and escaped.
        text: String,
    },
    /// A range that ends before it begins.
    #[error("the range in line {line} of the blocklist ends before it begins: {text}")]
    Backwards {
        /// Its number, from 1.
        line: usize,
        /// The line, cut and escaped.
        text: String,
    },
    /// There are more ranges than [`BLOCKLIST_RANGES_MAX`].
    #[error("the blocklist has more than {BLOCKLIST_RANGES_MAX} ranges at line {line}")]
    TooMany {
        /// The first line too many, from 1.
        line: usize,
    },
    /// Every line is broken: it is something else.
    #[error("no line of the blocklist is a range of addresses; it must be plain text")]
    NoRange,
}

/// A list as it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadBlocklist {
    /// Its ranges.
    pub list: Blocklist,
    /// Lines that were passed over because they are broken.
    pub broken_count: u64,
    /// The first [`BROKEN_LINES_TOLD_MAX`] of them.
    pub broken: Vec<BlocklistError>,
}

/// Ranges of addresses, first and last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blocklist {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Blocklist {
    /// Reads a list. Bytes that are not UTF-8 may stand in names.
    ///
    /// # Errors
    /// There are too many ranges, or broken lines and nothing else.
    pub fn parse(text: &[u8]) -> Result<ReadBlocklist, BlocklistError> {
        let mut read = ReadBlocklist::default();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut is_passed = false;
        for (line, raw) in (1..).zip(text.split(|&byte| byte == b'\n')) {
            let bytes = raw.trim_ascii();
            if bytes.is_empty() || bytes.starts_with(b"#") || bytes.starts_with(b";") {
                continue;
            }
            match read.list.read_line(line, bytes) {
                Ok(()) => is_passed = true,
                Err(error @ BlocklistError::TooMany { .. }) => return Err(error),
                Err(error) => {
                    read.broken_count += 1;
                    if read.broken.len() < BROKEN_LINES_TOLD_MAX {
                        read.broken.push(error);
                    }
                }
            }
        }
        if !is_passed && read.broken_count > 0 {
            return Err(BlocklistError::NoRange);
        }
        merge(&mut read.list.v4, |last| last.checked_add(1));
        merge(&mut read.list.v6, |last| last.checked_add(1));
        Ok(read)
    }

    fn read_line(&mut self, line: usize, bytes: &[u8]) -> Result<(), BlocklistError> {
        let wrong = || BlocklistError::Line { line, text: excerpt(bytes) };
        if bytes.len() > BLOCKLIST_LINE_LEN_MAX {
            return Err(wrong());
        }
        let (first, last) = match range(&String::from_utf8_lossy(bytes)).ok_or_else(wrong)? {
            Line::Range(first, last) => canonical(first, last),
            Line::Passed => return Ok(()),
        };
        let is_full = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                self.v4.push((first.to_bits(), last.to_bits()));
                self.v4.len() > BLOCKLIST_RANGES_MAX
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                self.v6.push((first.to_bits(), last.to_bits()));
                self.v6.len() > BLOCKLIST_RANGES_MAX
            }
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                return Err(BlocklistError::Backwards { line, text: excerpt(bytes) });
            }
            _ => return Err(wrong()),
        };
        if is_full { Err(BlocklistError::TooMany { line }) } else { Ok(()) }
    }

    /// Whether `ip` is in one of the ranges; an IPv4 address mapped into IPv6 counts as what it is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => is_in(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => is_in(&self.v6, ip.to_bits()),
        }
    }

    /// Ranges, once those that touch are one.
    pub fn range_count(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// A range of IPv4 addresses that are mapped into IPv6 is one of IPv4.
fn canonical(first: IpAddr, last: IpAddr) -> (IpAddr, IpAddr) {
    match (first.to_canonical(), last.to_canonical()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.into(), last.into()),
        _ => (first, last),
    }
}

/// Sorts ranges and makes one of those that touch; `next` is the address behind one, if any.
fn merge<A: Ord + Copy>(ranges: &mut Vec<(A, A)>, next: impl Fn(A) -> Option<A>) {
    ranges.sort_unstable();
    ranges.dedup_by(|later, kept| {
        let touches = next(kept.1).is_none_or(|behind| later.0 <= behind);
        if touches {
            kept.1 = kept.1.max(later.1);
        }
        touches
    });
    ranges.shrink_to_fit();
}

fn is_in<A: Ord + Copy>(ranges: &[(A, A)], address: A) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= address);
    let range = behind.checked_sub(1).and_then(|at| ranges.get(at));
    range.is_some_and(|&(_, last)| address <= last)
}

/// What a line says.
enum Line {
    Range(IpAddr, IpAddr),
    /// A range with a level that lets it pass.
    Passed,
}

fn range(line: &str) -> Option<Line> {
    cidr(line).or_else(|| dat(line)).or_else(|| p2p(line))
}

fn cidr(line: &str) -> Option<Line> {
    let (base, bits) = line.split_once('/').unwrap_or((line, ""));
    let base: IpAddr = base.parse().ok()?;
    let bits_max = if base.is_ipv4() { 32 } else { 128 };
    let is_whole = !line.contains('/');
    let bits =
        if is_whole { bits_max } else { bits.parse().ok().filter(|&bits| bits <= bits_max)? };
    Some(match base {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            Line::Range(
                (ip.to_bits() & !host).to_be_bytes().into(),
                Ipv4Addr::from_bits(ip.to_bits() | host).into(),
            )
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            Line::Range(
                (ip.to_bits() & !host).to_be_bytes().into(),
                (ip.to_bits() | host).to_be_bytes().into(),
            )
        }
    })
}

/// `1.2.3.4 - 1.2.3.9 , 000 , name`; level and name may be missing.
fn dat(line: &str) -> Option<Line> {
    let mut parts = line.splitn(3, ',');
    let (first, last) = addresses(parts.next()?)?;
    let level = match parts.next().map(str::trim) {
        Some(level) => level.parse().ok()?,
        None => 0,
    };
    Some(if level < LEVEL_PASSED { Line::Range(first, last) } else { Line::Passed })
}

/// `name:1.2.3.4-1.2.3.9`; the name may have colons, and so have IPv6 addresses.
fn p2p(line: &str) -> Option<Line> {
    let mut rest = line;
    while let Some((_, behind)) = rest.split_once(':') {
        if let Some((first, last)) = addresses(behind) {
            return Some(Line::Range(first, last));
        }
        rest = behind;
    }
    None
}

fn addresses(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (first, last) = text.split_once('-')?;
    Some((address(first.trim())?, address(last.trim())?))
}

/// An address; IPv4 also with leading zeros, as such lists have them.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() <= 3)?;
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(list: &str, ip: &str) -> bool {
        Blocklist::parse(list.as_bytes()).unwrap().list.contains(ip.parse().unwrap())
    }

    #[test]
    fn all_forms_are_read() {
        let list = "\u{feff}# a comment\r\n\n; another\n10.0.0.0/8\n1.1.1.1\n2001:db8::/32\r\n\
                    Bad: guys, Inc.:2.2.2.2-2.2.2.9\nsix:2600::1-2600::5\n\
                    003.003.003.000 - 003.003.003.255 , 000 , somebody, else\n\
                    4.4.4.4-4.4.4.4,100\n5.5.5.0 - 5.5.5.9 , 200 , friends\n";
        for ip in ["10.255.1.1", "1.1.1.1", "2001:db8:ffff::", "2.2.2.2", "2.2.2.9", "2600::3"] {
            assert!(blocked(list, ip), "{ip}");
        }
        for ip in ["3.3.3.255", "4.4.4.4", "::ffff:4.4.4.4"] {
            assert!(blocked(list, ip), "{ip}");
        }
        for ip in ["11.0.0.0", "1.1.1.2", "2001:db9::", "2.2.2.10", "2600::6", "5.5.5.5", "4.4.4.5"]
        {
            assert!(!blocked(list, ip), "{ip}");
        }
        assert!(blocked("0.0.0.0/0", "255.255.255.255") && !blocked("0.0.0.0/0", "::1"));
        assert!(blocked("::/0", "::1") && !blocked("", "1.1.1.1"));
        for list in ["::ffff:1.2.3.4", "::ffff:1.2.0.0/112", "x:::ffff:1.2.3.0-::ffff:1.2.3.9"] {
            assert!(blocked(list, "1.2.3.4") && blocked(list, "::ffff:1.2.3.4"), "{list}");
        }
        assert!(!blocked("::ffff:1.2.0.0/112", "1.3.0.0") && !blocked("::/0", "1.1.1.1"));
    }

    #[test]
    fn broken_lines_cost_themselves_and_are_named() {
        let error = |list: &str| {
            let read = Blocklist::parse(format!("{list}\n9.9.9.9\n").as_bytes()).unwrap();
            assert!(read.list.contains([9, 9, 9, 9].into()) && read.broken_count == 1, "{list}");
            read.broken[0].clone()
        };
        for line in [
            "x",
            "1.2.3.4/33",
            "::/129",
            "1.2.3/8",
            "1.2.3.4-",
            "a:1.2.3.4-::1",
            "1.2.3.4 - 1.2.3.5 , x",
        ] {
            let expected = BlocklistError::Line { line: 2, text: format!("\"{line}\"") };
            assert_eq!(error(&format!("1.1.1.1\n{line}\n")), expected);
        }
        let backwards = error("#\n#\nname:9.9.9.9-9.9.9.8");
        assert!(backwards.to_string().contains("line 3"), "{backwards}");
        assert!(matches!(error(&"x".repeat(10_000)), BlocklistError::Line { line: 1, .. }));
        assert!(matches!(error("a:0256.1.1.1-1.1.1.1"), BlocklistError::Line { .. }));
        let many = Blocklist::parse(("nonsense\n".repeat(1000) + "1.1.1.1").as_bytes()).unwrap();
        assert_eq!((many.broken_count, many.broken.len()), (1000, BROKEN_LINES_TOLD_MAX));
        let page = Blocklist::parse(b"<html>\n<body>not found</body>\n");
        assert_eq!(page, Err(BlocklistError::NoRange));
        assert_eq!(Blocklist::parse(b"# empty\n").unwrap(), ReadBlocklist::default());
    }

    #[test]
    fn ranges_are_merged_and_found_as_a_plain_search_finds_them() {
        let list = Blocklist::parse(
            b"1.0.0.0/25\n1.0.0.128/25\n1.0.1.0-1.0.1.5\n255.255.255.255\n255.0.0.0/8",
        )
        .unwrap();
        assert_eq!(list.list.range_count(), 2);
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let ranges: Vec<(u32, u32)> = (0..rng.usize(..30))
                .map(|_| (rng.u32(..500), rng.u32(..40)))
                .map(|(first, len)| (first, first + len))
                .collect();
            let ip = |bits: u32| IpAddr::V4(bits.into());
            let lines: Vec<String> = ranges
                .iter()
                .map(|&(first, last)| format!("n:{}-{}", ip(first), ip(last)))
                .collect();
            let list = Blocklist::parse(lines.join("\n").as_bytes()).unwrap().list;
            for bits in 0..600 {
                let expected = ranges.iter().any(|&(first, last)| (first..=last).contains(&bits));
                assert_eq!(list.contains(ip(bits)), expected, "seed {seed}: {bits}");
            }
        }
        proptest::proptest!(|(bytes: Vec<u8>)| drop(Blocklist::parse(&bytes)));
    }
}
