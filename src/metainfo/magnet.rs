//! Magnet links (BEP 9, BEP 53): an info-hash, and where to look for it, in one line of text.
//!
//! A link enters [`Magnet::parse`], or a file that holds one [`Magnet::parse_file`]; a description
//! leaves, and becomes a link again by its `Display`. Invariant: a link is read no further than
//! [`LINK_LEN_MAX`], every list has an end, and in what is written everything but unreserved
//! characters (RFC 3986) is percent-encoded, so that no name can add a parameter.
//!
//! What is taken: `xt=urn:btih:` in 40 hexadecimal or 32 base32 digits, `dn`, `tr`, `ws`, `x.pe`
//! and `so`, each also with a number (`tr.1`). Trackers, web seeds and peers that cannot be used
//! are left out with a sentence in [`Magnet::warnings`]. Parameters of other names are not kept.
#![forbid(unsafe_code)]

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url, form_urlencoded};

use super::selection::{FileSelection, ParseSelectionError};
use super::urls::{Purpose, Warnings, usable_url};
use super::{Error, Metainfo, TIERS_MAX, TRACKERS_MAX, WEB_SEEDS_MAX};
use crate::bencode::{Encoder, excerpt};
use crate::units::InfoHash;

/// Longest link in bytes.
pub const LINK_LEN_MAX: usize = 16 << 10;

/// Longest link in bytes as [`Magnet`]'s `Display` writes what was read: encoding makes it longer.
pub const STORED_LEN_MAX: usize = 8 * LINK_LEN_MAX;

/// Most parameters of a link that are looked at.
pub const PARAMETERS_MAX: usize = 1024;

/// Most peers of a link that are kept.
pub const PEERS_MAX: usize = 64;

const SCHEME: &str = "magnet:?";
const V1: &str = "urn:btih:";
const V2: &str = "urn:btmh:";

/// What a magnet link says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Magnet {
    /// The torrent.
    pub info_hash: InfoHash,
    /// What to call it until its metadata is there; untrusted text, never a path.
    pub name: Option<String>,
    /// Trackers, each once, in the order of the link.
    pub trackers: Vec<Url>,
    /// HTTP servers that have the files (BEP 19).
    pub web_seeds: Vec<Url>,
    /// Peers to ask first; names among them are to be looked up.
    pub peers: Vec<PeerName>,
    /// The files that are wanted; `None` for all.
    pub files: Option<FileSelection>,
    /// What was left out, one sentence each.
    pub warnings: Vec<String>,
}

/// Where a peer is, as a link has it (`x.pe`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerName {
    /// An address, or a name that has to be looked up.
    pub host: Host<String>,
    /// Its TCP port, never 0.
    pub port: u16,
}

/// A magnet link that is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MagnetError {
    /// It is longer than is read.
    #[error("the magnet link has {len} bytes, and {len_max} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        len_max: usize,
    },
    /// It is something else.
    #[error("{0} is not a magnet link: it does not begin with {SCHEME:?}")]
    NotMagnet(String),
    /// It has more parameters than [`PARAMETERS_MAX`].
    #[error("the magnet link has more than {PARAMETERS_MAX} parameters")]
    TooManyParameters,
    /// No `xt` names a torrent.
    #[error("the magnet link has no info-hash (xt=urn:btih:...)")]
    NoInfoHash,
    /// A torrent of BEP 52 without the hash that v1 clients know.
    #[error("the magnet link names a v2 torrent only (urn:btmh), and v2 is not built yet")]
    V2Only,
    /// An info-hash in neither of its two forms.
    #[error("{0} is not an info-hash of 40 hexadecimal or 32 base32 digits")]
    InfoHash(String),
    /// Two different info-hashes.
    #[error("the magnet link names two torrents, {0} and {1}")]
    TwoTorrents(InfoHash, InfoHash),
    /// A selection of files that cannot be read: fetching all of them would not be meant.
    #[error("the magnet link selects files (so=) in a way that cannot be read: {0}")]
    Selection(#[from] ParseSelectionError),
    /// A `.magnet` file without text.
    #[error("the file is empty")]
    Empty,
    /// A `.magnet` file that is no UTF-8.
    #[error("the file is not text")]
    NotText,
    /// A `.magnet` file with several lines of text.
    #[error("the file holds more than one line, and one magnet link is taken from a file")]
    SeveralLines,
}

impl MagnetError {
    /// The name of this refusal in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "magnet_too_long",
            Self::NotMagnet(_) => "not_a_magnet",
            Self::TooManyParameters => "magnet_parameters",
            Self::NoInfoHash => "magnet_without_hash",
            Self::V2Only => "magnet_v2_only",
            Self::InfoHash(_) => "magnet_hash",
            Self::TwoTorrents(..) => "magnet_two_hashes",
            Self::Selection(_) => "magnet_selection",
            Self::Empty => "magnet_empty",
            Self::NotText => "magnet_not_text",
            Self::SeveralLines => "magnet_lines",
        }
    }
}

impl Magnet {
    /// A link that says no more than which torrent it is.
    pub fn new(info_hash: InfoHash) -> Self {
        Self {
            info_hash,
            name: None,
            trackers: Vec::new(),
            web_seeds: Vec::new(),
            peers: Vec::new(),
            files: None,
            warnings: Vec::new(),
        }
    }

    /// Whether `text` means to be a magnet link, good or bad.
    pub fn is_link(text: &str) -> bool {
        let scheme = text.trim_start().as_bytes().get(..7);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"magnet:"))
    }

    /// Reads a link; white space around it does not matter.
    ///
    /// ```
    /// use seedring::metainfo::magnet::Magnet;
    /// let hash = "c9e15763f722f23e98a29decdfae341b98d53056";
    /// let link = format!("magnet:?xt=urn:btih:{hash}&dn=a%26b&tr=udp%3A%2F%2Ft%3A1&so=0,2-4");
    /// let magnet = Magnet::parse(&link).unwrap();
    /// assert_eq!(magnet.name.as_deref(), Some("a&b"));
    /// assert_eq!(magnet.to_string(), link);
    /// ```
    pub fn parse(text: &str) -> Result<Self, MagnetError> {
        Self::parse_up_to(text, LINK_LEN_MAX)
    }

    /// Reads a link that `Display` wrote, of up to [`STORED_LEN_MAX`] bytes.
    ///
    /// # Errors
    /// As [`Magnet::parse`].
    pub fn parse_stored(text: &str) -> Result<Self, MagnetError> {
        Self::parse_up_to(text, STORED_LEN_MAX)
    }

    fn parse_up_to(text: &str, len_max: usize) -> Result<Self, MagnetError> {
        let text = text.trim();
        if text.len() > len_max {
            return Err(MagnetError::TooLong { len: text.len(), len_max });
        }
        let query = match text.get(..SCHEME.len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => &text[SCHEME.len()..],
            _ => return Err(MagnetError::NotMagnet(excerpt(text.as_bytes()))),
        };
        let mut reader = Reader::default();
        for (number, (key, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
            if number >= PARAMETERS_MAX {
                return Err(MagnetError::TooManyParameters);
            }
            reader.take(&key, &value)?;
        }
        reader.finish()
    }

    /// Reads a `.magnet` file: one link, with white space and a byte order mark around it if need
    /// be.
    pub fn parse_file(bytes: &[u8]) -> Result<Self, MagnetError> {
        // Room for white space, but not for a file of something else.
        if bytes.len() > 2 * LINK_LEN_MAX {
            let len_max = 2 * LINK_LEN_MAX;
            return Err(MagnetError::TooLong { len: bytes.len(), len_max });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| MagnetError::NotText)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
        if text.is_empty() {
            return Err(MagnetError::Empty);
        }
        if text.contains(['\r', '\n']) {
            return Err(MagnetError::SeveralLines);
        }
        Self::parse(text)
    }

    /// The trackers in tiers, as the torrent of this link has them: one tier each, as other clients
    /// do, since they are equally likely to know the torrent; the last tier has the rest.
    pub fn tiers(&self) -> impl Iterator<Item = &[Url]> {
        let alone_count = self.trackers.len().min(TIERS_MAX - 1);
        let (alone, rest) = self.trackers.split_at(alone_count);
        alone.chunks(1).chain(Some(rest).filter(|rest| !rest.is_empty()))
    }

    /// The torrent that `info`, fetched from peers, and this link make together. The caller has
    /// compared its SHA-1 with [`Magnet::info_hash`].
    ///
    /// # Errors
    /// The dictionary describes no torrent that can be taken.
    pub fn metainfo(&self, info: &[u8]) -> Result<Metainfo, Error> {
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            if !self.trackers.is_empty() {
                dict.list(b"announce-list", |tiers| {
                    for urls in self.tiers() {
                        tiers.list(|tier| {
                            for url in urls {
                                tier.bytes(url.as_str().as_bytes());
                            }
                        });
                    }
                });
            }
            dict.raw(b"info", info);
            if !self.web_seeds.is_empty() {
                dict.list(b"url-list", |urls| {
                    for url in &self.web_seeds {
                        urls.bytes(url.as_str().as_bytes());
                    }
                });
            }
        });
        Metainfo::parse(&encoder.finish())
    }
}

/// A link as far as it was read.
#[derive(Default)]
struct Reader {
    info_hash: Option<InfoHash>,
    has_v2: bool,
    name: Option<String>,
    trackers: Vec<Url>,
    web_seeds: Vec<Url>,
    peers: Vec<PeerName>,
    files: Option<FileSelection>,
    warnings: Warnings,
}

impl Reader {
    fn take(&mut self, key: &str, value: &str) -> Result<(), MagnetError> {
        // Links copied out of HTML have `&amp;` between their parameters.
        let key = key.strip_prefix("amp;").unwrap_or(key);
        let numbered = key.rsplit_once('.').filter(|(_, number)| number.parse::<u32>().is_ok());
        match numbered.map_or(key, |(name, _)| name) {
            "xt" => self.topic(value)?,
            "dn" if !value.is_empty() => drop(self.name.get_or_insert_with(|| value.to_owned())),
            "tr" => {
                let tracker = (Purpose::Tracker, "tracker", TRACKERS_MAX);
                take_url(&mut self.trackers, value, tracker, &mut self.warnings);
            }
            "ws" => {
                let seed = (Purpose::WebSeed, "web seed", WEB_SEEDS_MAX);
                take_url(&mut self.web_seeds, value, seed, &mut self.warnings);
            }
            "x.pe" => self.peer(value),
            "so" if self.files.is_none() => self.files = Some(value.parse()?),
            _ => {}
        }
        Ok(())
    }

    fn topic(&mut self, value: &str) -> Result<(), MagnetError> {
        if after(value, V2).is_some() {
            self.has_v2 = true;
        }
        // Other kinds of hashes are for other networks.
        let Some(digits) = after(value, V1) else { return Ok(()) };
        let wrong = || MagnetError::InfoHash(excerpt(digits.as_bytes()));
        let info_hash = digits.parse().ok().or_else(|| base32(digits)).ok_or_else(wrong)?;
        match self.info_hash.replace(info_hash) {
            Some(other) if other != info_hash => Err(MagnetError::TwoTorrents(other, info_hash)),
            _ => Ok(()),
        }
    }

    fn peer(&mut self, value: &str) {
        let Some(peer) = PeerName::parse(value) else {
            let text = excerpt(value.as_bytes());
            return self.warnings.push(format!("peer {text} left out: it is no host and port"));
        };
        if self.peers.contains(&peer) {
            return;
        }
        if self.peers.len() >= PEERS_MAX {
            return self.warnings.push(format!("peers beyond {PEERS_MAX} were left out"));
        }
        self.peers.push(peer);
    }

    fn finish(self) -> Result<Magnet, MagnetError> {
        let missing = if self.has_v2 { MagnetError::V2Only } else { MagnetError::NoInfoHash };
        Ok(Magnet {
            info_hash: self.info_hash.ok_or(missing)?,
            name: self.name,
            trackers: self.trackers,
            web_seeds: self.web_seeds,
            peers: self.peers,
            files: self.files,
            warnings: self.warnings.into_vec(),
        })
    }
}

fn take_url(
    urls: &mut Vec<Url>,
    value: &str,
    (purpose, what, max): (Purpose, &str, usize),
    warnings: &mut Warnings,
) {
    if value.is_empty() {
        return;
    }
    match usable_url(value.as_bytes(), purpose) {
        Ok(url) if urls.contains(&url) => {}
        Ok(_) if urls.len() >= max => warnings.push(format!("{what}s beyond {max} were left out")),
        Ok(url) => urls.push(url),
        Err(reason) => {
            warnings.push(format!("{what} {} left out: {reason}", excerpt(value.as_bytes())));
        }
    }
}

/// What follows `prefix`, in whatever case that is written.
fn after<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let front = text.get(..prefix.len())?;
    front.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

/// 32 digits of base32 (RFC 4648), which are 20 bytes exactly.
fn base32(digits: &str) -> Option<InfoHash> {
    let digits = digits.as_bytes();
    if digits.len() != 32 {
        return None;
    }
    let mut hash = InfoHash([0; 20]);
    for (eight, five) in digits.chunks_exact(8).zip(hash.0.chunks_exact_mut(5)) {
        let mut bits: u64 = 0;
        for digit in eight {
            let value = match digit.to_ascii_uppercase() {
                letter @ b'A'..=b'Z' => letter - b'A',
                figure @ b'2'..=b'7' => figure - b'2' + 26,
                _ => return None,
            };
            bits = bits << 5 | u64::from(value);
        }
        five.copy_from_slice(&bits.to_be_bytes()[3..]);
    }
    Some(hash)
}

impl PeerName {
    /// Reads `HOST:PORT`, an IPv6 address in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port = port.parse().ok().filter(|&port| port != 0)?;
        let host = Host::parse(host).ok()?;
        Some(Self { host, port })
    }

    /// Its address, unless it is a name.
    pub fn addr(&self) -> Option<SocketAddr> {
        let ip: IpAddr = match &self.host {
            Host::Ipv4(ip) => (*ip).into(),
            Host::Ipv6(ip) => (*ip).into(),
            Host::Domain(_) => return None,
        };
        Some(SocketAddr::new(ip, self.port))
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Magnet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{SCHEME}xt={V1}{}", self.info_hash)?;
        if let Some(name) = &self.name {
            write!(out, "&dn={}", Encoded(name))?;
        }
        for url in &self.trackers {
            write!(out, "&tr={}", Encoded(url.as_str()))?;
        }
        for url in &self.web_seeds {
            write!(out, "&ws={}", Encoded(url.as_str()))?;
        }
        for peer in &self.peers {
            write!(out, "&x.pe={}", Encoded(&peer.to_string()))?;
        }
        match &self.files {
            // Digits, commas and hyphens: nothing to encode, and easy to read.
            Some(files) => write!(out, "&so={files}"),
            None => Ok(()),
        }
    }
}

struct Encoded<'t>(&'t str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.write_char(char::from(byte))
            } else {
                write!(out, "%{byte:02X}")
            }
        })
    }
}

#[cfg(test)]
mod tests;
