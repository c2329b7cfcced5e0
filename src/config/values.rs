//! The kinds of values that settings and flags have in common.
//!
//! Text enters, a checked value leaves, and its text reads back as the same value. Invariant: a
//! value that is out of range is refused with a sentence, never cut to fit.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::swarm::choker::{self, Choker, Phase};

/// Why a text is not a value of its setting.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{text}\" is not {expected}")]
pub struct ParseError {
    text: String,
    expected: Cow<'static, str>,
}

fn refuse(text: &str, expected: impl Into<Cow<'static, str>>) -> ParseError {
    let cut: String = text.chars().take(64).collect();
    ParseError { text: cut.escape_debug().to_string(), expected: expected.into() }
}

/// A number of bytes: `1048576`, `1024KiB` or `1MiB`. Units: B, KiB, MiB, GiB, TiB (powers of
/// 1024) and kB, MB, GB, TB (powers of 1000); `1.5GiB` is fine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "String")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size is a number of bytes or a text such as \"10MiB\"")]
enum SizeText {
    Number(u64),
    Text(String),
}

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
];

impl FromStr for Size {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || refuse(text, "a size such as 512, 16KiB, 10MiB or 1.5GiB");
        let plain = text.trim();
        let digits_end =
            plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
        let (number, unit) = plain.split_at(digits_end);
        let unit = unit.trim().to_ascii_lowercase();
        let &(_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let mut bytes = whole.checked_mul(factor).ok_or_else(wrong)?;
        if !fraction.is_empty() {
            let numerator: u128 = fraction.parse().map_err(|_| wrong())?;
            let places = u32::try_from(fraction.len()).ok().filter(|&places| places <= 9);
            let denominator = 10_u128.pow(places.ok_or_else(wrong)?);
            let part = u64::try_from(numerator * u128::from(factor) / denominator);
            bytes = bytes.checked_add(part.map_err(|_| wrong())?).ok_or_else(wrong)?;
        }
        // TOML has no numbers beyond this one.
        if i64::try_from(bytes).is_err() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<SizeText> for Size {
    type Error = ParseError;

    fn try_from(value: SizeText) -> Result<Self, ParseError> {
        match value {
            SizeText::Number(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match binary.iter().find(|&&(_, bits)| self.0 > 0 && self.0.trailing_zeros() >= bits) {
            Some((unit, bits)) => write!(out, "{}{unit}", self.0 >> bits),
            None => write!(out, "{}", self.0),
        }
    }
}

/// Reads a list in which one value alone is a list of one, as users write it.
pub(super) fn one_or_list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let value = match toml::Value::deserialize(deserializer)? {
        list @ toml::Value::Array(_) => list,
        one => toml::Value::Array(vec![one]),
    };
    value.try_into().map_err(D::Error::custom)
}

/// Processors by number, as in `0-3,8`; empty means all that the process may use.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreList(BTreeSet<u16>);

/// Linux cannot have more processors than this (`NR_CPUS` of the largest kernels).
const CORE_INDEX_MAX: u16 = 8191;

impl CoreList {
    /// The numbers, ascending; none means all that the process may use.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().map(|&core| usize::from(core))
    }

    /// Whether no processor is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for CoreList {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || refuse(text, "a list of processors such as 0-3,8");
        let number = |text: &str| {
            let index = text.trim().parse::<u16>().ok().filter(|&index| index <= CORE_INDEX_MAX);
            index.ok_or_else(wrong)
        };
        let mut cores = BTreeSet::new();
        for part in text.split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            cores.extend(first..=last);
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for &core in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == core => *last = core,
                _ => ranges.push((core, core)),
            }
        }
        for (index, (first, last)) in ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if first == last {
                write!(out, "{comma}{first}")?;
            } else {
                write!(out, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// Where outgoing connections leave from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Bind {
    /// The kernel chooses.
    #[default]
    Any,
    /// This address of ours.
    Addr(IpAddr),
    /// This network interface.
    Interface(String),
}

impl FromStr for Bind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        if let Ok(addr) = text.parse() {
            return Ok(Self::Addr(addr));
        }
        // The kernel's dev_valid_name and IFNAMSIZ.
        let valid = text.len() < 16
            && !matches!(text, "." | "..")
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
        if valid {
            Ok(Self::Interface(text.to_owned()))
        } else {
            Err(refuse(text, "an IP address or a network interface"))
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Addr(addr) => addr.fmt(out),
            Self::Interface(name) => name.fmt(out),
        }
    }
}

/// Address of the HTTP server, `-` for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpListen(pub Option<SocketAddr>);

impl FromStr for HttpListen {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "-" {
            return Ok(Self(None));
        }
        let addr = text.parse().map_err(|_| refuse(text, "an ADDR:PORT, or - for none"))?;
        Ok(Self(Some(addr)))
    }
}

impl fmt::Display for HttpListen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(out),
            None => out.write_str("-"),
        }
    }
}

/// The choker of torrents that seed, by its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SeedChoker(String);

impl SeedChoker {
    /// The choker itself.
    pub fn choker(&self) -> &'static dyn Choker {
        choker::find(Phase::Seeding, &self.0).unwrap_or_else(|| choker::default_of(Phase::Seeding))
    }
}

impl Default for SeedChoker {
    fn default() -> Self {
        Self(choker::default_of(Phase::Seeding).name().to_owned())
    }
}

impl FromStr for SeedChoker {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found =
            choker::find(Phase::Seeding, text.trim()).map(|choker| Self(choker.name().to_owned()));
        found.ok_or_else(|| {
            let names: Vec<_> = choker::of_phase(Phase::Seeding).map(Choker::name).collect();
            refuse(text, format!("one of the chokers for seeding: {}", names.join(", ")))
        })
    }
}

impl fmt::Display for SeedChoker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

macro_rules! as_text {
    ($($kind:ident)+) => {$(
        impl TryFrom<String> for $kind {
            type Error = ParseError;

            fn try_from(text: String) -> Result<Self, ParseError> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }
    )+};
}

as_text! { CoreList Bind HttpListen SeedChoker }

impl From<Size> for String {
    fn from(value: Size) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(cases: &[(&str, Option<T>)])
    where
        T: FromStr<Err = ParseError> + PartialEq + fmt::Debug + fmt::Display + Clone,
    {
        for (text, expected) in cases {
            let parsed = text.parse::<T>();
            assert_eq!(parsed.clone().ok(), *expected, "{text}");
            if let Ok(value) = parsed {
                assert_eq!(value.to_string().parse(), Ok(value), "{text}");
            }
        }
    }

    #[test]
    fn sizes() {
        check(&[
            ("0", Some(Size(0))),
            ("10MiB", Some(Size(10 << 20))),
            (" 1.5 GiB ", Some(Size(3 << 29))),
            ("1000kB", Some(Size(1_000_000))),
            ("1025", Some(Size(1025))),
            ("", None),
            ("-1", None),
            ("1.", Some(Size(1))),
            (".5KiB", None),
            ("1.2.3MB", None),
            ("10 parsecs", None),
            ("99999999999TiB", None),
            ("9223372036854775808", None),
            ("1.99999999999999999999999999999999999999999999GiB", None),
        ]);
    }

    #[test]
    fn core_lists() {
        let list = |cores: &[u16]| Some(CoreList(cores.iter().copied().collect()));
        check(&[
            ("", list(&[])),
            ("0", list(&[0])),
            ("0-2, 5,6", list(&[0, 1, 2, 5, 6])),
            ("3-1", None),
            ("1,,2", None),
            ("-1", None),
            ("0-99999", None),
        ]);
        assert_eq!("6,5,0-2".parse::<CoreList>().unwrap().to_string(), "0-2,5-6");
    }

    #[test]
    fn binds_and_http_addresses() {
        check(&[
            ("", Some(Bind::Any)),
            ("10.0.0.1", Some(Bind::Addr(IpAddr::from([10, 0, 0, 1])))),
            ("wg0", Some(Bind::Interface("wg0".to_owned()))),
            ("../eth0", None),
            ("a-name-that-is-too-long", None),
        ]);
        check(&[
            ("-", Some(HttpListen(None))),
            ("127.0.0.1:0", Some(HttpListen(Some(([127, 0, 0, 1], 0).into())))),
            ("9091", None),
        ]);
    }

    #[test]
    fn what_is_echoed_is_cut_and_escaped() {
        let error = format!("\u{1b}[31m{}", "x".repeat(500)).parse::<Size>().unwrap_err();
        assert!(error.to_string().len() < 200 && !error.to_string().contains('\u{1b}'));
    }
}
