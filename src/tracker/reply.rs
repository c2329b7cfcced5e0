//! The answers of trackers: what they hold, and those over HTTP from bytes to values.
//!
//! A body of at most [`BODY_LEN_MAX`] bytes enters, a [`Reply`], rows of [`Scraped`] or a
//! [`Failure`] leave (BEP 3, 7, 23, 24, 31, 48). Invariant: no input panics, at most [`PEERS_MAX`] peers leave, none with port
//! 0, and no text that was not cut and escaped.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::policy::{AddressPolicy, Reason};
use super::{Failure, Retry, display_text};
use crate::bencode::{self, Dict, Value};
use crate::units::InfoHash;

/// Bytes of a tracker's answer that are read.
pub const BODY_LEN_MAX: usize = 1 << 20;

/// Peers that are taken from one answer, over all its lists.
pub const PEERS_MAX: usize = 200;

/// What a tracker answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reply {
    /// Its `interval`, not yet clamped; `None` if absent or senseless.
    pub interval: Option<Duration>,
    /// Its `min interval`, not yet clamped.
    pub min_interval: Option<Duration>,
    /// Seeds it knows (`complete`).
    pub seeder_count: Option<u32>,
    /// Leeches it knows (`incomplete`).
    pub leecher_count: Option<u32>,
    /// Completed downloads it counted (`downloaded`).
    pub download_count: Option<u32>,
    /// Its `tracker id`, to be sent back.
    pub tracker_id: Option<Vec<u8>>,
    /// Our address as it sees it (BEP 24).
    pub external_ip: Option<IpAddr>,
    /// Its `warning message`, cut and escaped.
    pub warning: Option<String>,
    /// The peers, in its order, without repetitions.
    pub peers: Vec<SocketAddr>,
    /// Entries that were dropped: port 0, no address, a torn tail, over [`PEERS_MAX`], repeated,
    /// or closed by the address policy.
    pub dropped_count: u32,
    /// One of those that the address policy closed, and why.
    pub refused: Option<(IpAddr, Reason)>,
}

impl Reply {
    /// Drops the peers that the policy closes, and remembers one of them.
    pub(super) fn keep_permitted(&mut self, policy: &AddressPolicy) {
        let Self { peers, dropped_count, refused, .. } = self;
        peers.retain(|peer| {
            let Err(reason) = policy.permits(peer.ip()) else { return true };
            *dropped_count = dropped_count.saturating_add(1);
            refused.get_or_insert((peer.ip(), reason));
            false
        });
    }
}

/// What a tracker knows of one torrent; nothing if it does not know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scraped {
    /// Seeds (`complete`).
    pub seeder_count: Option<u32>,
    /// Leeches (`incomplete`).
    pub leecher_count: Option<u32>,
    /// Completed downloads (`downloaded`).
    pub download_count: Option<u32>,
}

/// Reads the body of the answer to a scrape (BEP 48): one row for each of `torrents`.
///
/// # Errors
/// As for [`parse`].
pub fn parse_scrape(body: &[u8], torrents: &[InfoHash]) -> Result<Vec<Scraped>, Failure> {
    let parsed = bencode::Document::parse_prefix(body, &bencode::Limits::TRACKER);
    let (document, _) = parsed.map_err(|error| Failure::Malformed(error.to_string()))?;
    let root = document.root().as_dict();
    let root = root.ok_or_else(|| Failure::Malformed("it is not a dictionary".into()))?;
    if let Some(reason) = text(&root, b"failure reason") {
        return Err(Failure::Reason { reason, retry: retry_in(&root) });
    }
    let files = root.get(b"files").and_then(|files| files.as_dict());
    let files = files.ok_or_else(|| Failure::Malformed("it has no files".into()))?;
    let row = |hash: &InfoHash| {
        let file = files.get(&hash.0).and_then(|file| file.as_dict());
        let count = |key: &[u8]| file.as_ref().and_then(|file| count(file, key));
        Scraped {
            seeder_count: count(b"complete"),
            leecher_count: count(b"incomplete"),
            download_count: count(b"downloaded"),
        }
    };
    Ok(torrents.iter().map(row).collect())
}

/// Reads the body of an answer. What follows the dictionary is ignored, as some trackers append a
/// line break.
///
/// A tail of a compact list that is no whole entry is dropped and counted, not an error: the
/// interval beside it is worth more than the entry.
///
/// # Errors
/// [`Failure::Reason`] for a `failure reason`, [`Failure::Malformed`] for what is not a
/// dictionary.
pub fn parse(body: &[u8]) -> Result<Reply, Failure> {
    let parsed = bencode::Document::parse_prefix(body, &bencode::Limits::TRACKER);
    let (document, _) = parsed.map_err(|error| Failure::Malformed(error.to_string()))?;
    let root = document.root().as_dict();
    let root = root.ok_or_else(|| Failure::Malformed("it is not a dictionary".into()))?;
    if let Some(reason) = text(&root, b"failure reason") {
        return Err(Failure::Reason { reason, retry: retry_in(&root) });
    }
    let mut peers = Peers::default();
    for key in [&b"peers"[..], b"peers6"] {
        if let Some(list) = root.get(key) {
            let is_v6 = key == b"peers6";
            match (list.as_bytes(), list.as_list()) {
                (Some(compact), _) if is_v6 => peers.add_compact_v6(compact),
                (Some(compact), _) => peers.add_compact_v4(compact),
                (_, Some(list)) => list.for_each(|peer| peers.add(address_in(peer))),
                _ => peers.add(None),
            }
        }
    }
    Ok(Reply {
        interval: seconds(&root, b"interval"),
        min_interval: seconds(&root, b"min interval"),
        seeder_count: count(&root, b"complete"),
        leecher_count: count(&root, b"incomplete"),
        download_count: count(&root, b"downloaded"),
        tracker_id: root.get(b"tracker id").and_then(|id| id.as_bytes()).map(<[u8]>::to_vec),
        external_ip: root.get(b"external ip").and_then(|ip| ip.as_bytes()).and_then(ip),
        warning: text(&root, b"warning message"),
        peers: peers.taken,
        dropped_count: peers.dropped_count,
        refused: None,
    })
}

/// The peers taken so far, each once.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) taken: Vec<SocketAddr>,
    seen: BTreeSet<SocketAddr>,
    pub(super) dropped_count: u32,
}

impl Peers {
    /// Takes a peer unless there are enough, it is there already, or its address means nothing.
    fn add(&mut self, peer: Option<SocketAddr>) {
        match peer.filter(|peer| peer.port() != 0) {
            Some(peer) if self.taken.len() < PEERS_MAX && self.seen.insert(peer) => {
                self.taken.push(peer);
            }
            _ => self.dropped_count = self.dropped_count.saturating_add(1),
        }
    }

    /// Takes a compact list of IPv4 peers (BEP 23).
    pub(super) fn add_compact_v4(&mut self, list: &[u8]) {
        self.add_compact(list, address_v4);
    }

    /// Takes a compact list of IPv6 peers (BEP 7).
    pub(super) fn add_compact_v6(&mut self, list: &[u8]) {
        self.add_compact(list, address_v6);
    }

    /// Takes a compact list: addresses of `N` bytes, each followed by a port.
    fn add_compact<const N: usize>(&mut self, list: &[u8], address: fn([u8; N]) -> IpAddr) {
        for entry in list.chunks(N + 2) {
            let entry = entry.split_first_chunk().and_then(|(ip, port)| {
                Some(SocketAddr::new(address(*ip), u16::from_be_bytes(port.try_into().ok()?)))
            });
            self.add(entry);
        }
    }
}

fn address_v4(bytes: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(bytes).into()
}

fn address_v6(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// A peer in dictionary form (BEP 3). A DNS name is no address: resolving it would let a tracker
/// make us ask for names.
fn address_in(peer: Value<'_>) -> Option<SocketAddr> {
    let ip: IpAddr = peer.get(b"ip")?.as_str()?.parse().ok()?;
    let port = u16::try_from(peer.get(b"port")?.as_int()?).ok()?;
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Four or sixteen bytes of an address (BEP 24).
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(address_v4);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(address_v6)).ok()
}

fn text(root: &Dict<'_>, key: &[u8]) -> Option<String> {
    root.get(key)?.as_bytes().map(display_text)
}

/// A time in seconds; 0 and less mean nothing.
fn seconds(root: &Dict<'_>, key: &[u8]) -> Option<Duration> {
    let seconds = u64::try_from(root.get(key)?.as_int()?).ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn count(root: &Dict<'_>, key: &[u8]) -> Option<u32> {
    u32::try_from(root.get(key)?.as_int()?).ok()
}

/// `retry in` of a failure: minutes, or `never` (BEP 31).
fn retry_in(root: &Dict<'_>) -> Option<Retry> {
    let value = root.get(b"retry in")?;
    if value.as_bytes() == Some(b"never") {
        return Some(Retry::Never);
    }
    let written = value.as_str().and_then(|minutes| minutes.trim().parse().ok());
    let minutes = u64::try_from(value.as_int().or(written)?).ok()?;
    Some(Retry::After(Duration::from_secs(minutes.saturating_mul(60))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(body: &[u8]) -> (Vec<String>, u32) {
        let reply = parse(body).unwrap();
        (reply.peers.iter().map(ToString::to_string).collect(), reply.dropped_count)
    }

    fn with_peers(list: &[u8]) -> Vec<u8> {
        [b"d5:peers", format!("{}:", list.len()).as_bytes(), list, b"e"].concat()
    }

    #[test]
    fn an_honest_reply_is_read_whole() {
        let body = b"d8:completei5e10:downloadedi9e11:external ip4:\x01\x02\x03\x0410:incompletei3e\
            8:intervali1800e12:min intervali900e5:peers6:\x01\x01\x01\x01\x1a\xe16:peers618:\
            \x2a\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe110:tracker id3:\0id15:warning message3:hi\x07e\r\n";
        let expected = Reply {
            interval: Some(Duration::from_secs(1800)),
            min_interval: Some(Duration::from_secs(900)),
            seeder_count: Some(5),
            leecher_count: Some(3),
            download_count: Some(9),
            tracker_id: Some(b"\0id".to_vec()),
            external_ip: Some("1.2.3.4".parse().unwrap()),
            warning: Some("hi\\u{7}".into()),
            peers: vec!["1.1.1.1:6881".parse().unwrap(), "[2a00::1]:6881".parse().unwrap()],
            dropped_count: 0,
            refused: None,
        };
        assert_eq!(parse(body), Ok(expected));
    }

    #[test]
    fn peers_in_dictionaries_are_read_and_names_are_not_resolved() {
        let body = b"d5:peersld2:ip7:1.1.1.14:porti1eed2:ip3:::1 4:porti2eed2:ip3:::14:porti3eed2:ip9:localhost4:porti4ee\
            d2:ip7:1.1.1.24:porti0eed2:ip7:1.1.1.24:porti65536eed2:ip7:1.1.1.24:porti-1eed4:porti1eei7e4:junkee";
        assert!(parse(body).is_err(), "a torn list is no reply");
        let body = b"d5:peersld2:ip7:1.1.1.14:porti1eed2:ip3:::14:porti3eed2:ip9:localhost4:porti4ee\
            d2:ip7:1.1.1.24:porti0eed2:ip7:1.1.1.24:porti65536eed2:ip7:1.1.1.24:porti-1eed4:porti1eei7e4:junkee";
        assert_eq!(peers(body), (vec!["1.1.1.1:1".into(), "[::1]:3".into()], 7));
    }

    #[test]
    fn compact_lists_lose_what_is_no_peer() {
        let one = b"\x01\x01\x01\x01\x00\x01".as_slice();
        let table: [(Vec<u8>, usize, u32); 6] = [
            (vec![], 0, 0),
            (one.to_vec(), 1, 0),
            (one[..5].to_vec(), 0, 1),
            ([one, b"\x02"].concat(), 1, 1),
            ([one, one].concat(), 1, 1),
            (b"\x01\x01\x01\x01\x00\x00".to_vec(), 0, 1),
        ];
        for (list, taken_count, dropped_count) in table {
            let (taken, dropped) = peers(&with_peers(&list));
            assert_eq!((taken.len(), dropped), (taken_count, dropped_count), "{list:?}");
        }
        let many: Vec<u8> =
            (0..100_000u32).flat_map(|ip| [&ip.to_be_bytes()[..], &[1, 1]].concat()).collect();
        let (taken, dropped) = peers(&with_peers(&many));
        assert_eq!((taken.len(), dropped), (PEERS_MAX, 100_000 - 200));
        assert_eq!(peers(b"d5:peersi1ee"), (vec![], 1));
    }

    #[test]
    fn failures_carry_text_and_time() {
        let check = |body: &[u8], reason: &str, retry| {
            let reason = reason.to_owned();
            assert_eq!(parse(body), Err(Failure::Reason { reason, retry }));
        };
        check(b"d14:failure reason4:gone5:peers0:e", "gone", None);
        let retry = |minutes: u64| Some(Retry::After(Duration::from_secs(60 * minutes)));
        check(b"d14:failure reason2:no8:retry ini5ee", "no", retry(5));
        check(b"d14:failure reason2:no8:retry in1:7e", "no", retry(7));
        check(b"d14:failure reason2:no8:retry in5:nevere", "no", Some(Retry::Never));
        check(b"d14:failure reason2:no8:retry ini-5ee", "no", None);
        check(b"d14:failure reason5:\x1b[1m\n8:retry in3:abce", "\\u{1b}[1m\\u{a}", None);
        let long = [b"d14:failure reason900000:".as_slice(), &[b'<'; 900_000], b"e"].concat();
        let Err(Failure::Reason { reason, .. }) = parse(&long) else { panic!("not a failure") };
        assert_eq!(reason.chars().count(), super::super::TEXT_LEN_MAX + 1);
    }

    #[test]
    fn a_scrape_has_a_row_for_each_torrent() {
        let [known, unknown] = [InfoHash([b'a'; 20]), InfoHash([b'b'; 20])];
        let body = format!(
            "d5:filesd20:{}d8:completei5e10:downloadedi9e10:incompletei3eeee",
            "a".repeat(20)
        );
        let row =
            Scraped { seeder_count: Some(5), leecher_count: Some(3), download_count: Some(9) };
        let rows = parse_scrape(body.as_bytes(), &[unknown, known]);
        assert_eq!(rows, Ok(vec![Scraped::default(), row]));
        assert_eq!(parse_scrape(b"d5:filesdee", &[known]), Ok(vec![Scraped::default()]));
        let odd = format!("d5:filesd20:{}li1eeee", "a".repeat(20));
        assert_eq!(parse_scrape(odd.as_bytes(), &[known]), Ok(vec![Scraped::default()]));
        let said = parse_scrape(b"d14:failure reason2:noe", &[known]);
        assert_eq!(said, Err(Failure::Reason { reason: "no".into(), retry: None }));
        for body in [&b"de"[..], b"le", b"", b"d5:filesle", b"d5:filesi1ee"] {
            assert!(matches!(parse_scrape(body, &[known]), Err(Failure::Malformed(_))), "{body:?}");
        }
    }

    #[test]
    fn numbers_without_sense_are_absent() {
        for interval in ["0", "-1", "-9223372036854775808"] {
            let body = format!("d8:completei-1e10:incompletei4294967296e8:intervali{interval}ee");
            assert_eq!(parse(body.as_bytes()), Ok(Reply::default()), "{interval}");
        }
        let body = b"d8:complete1:x11:external ip3:abc8:interval2:99e";
        assert_eq!(parse(body), Ok(Reply::default()));
        let huge = parse(b"d8:intervali9223372036854775807ee").unwrap();
        assert_eq!(huge.interval, Some(Duration::from_secs(i64::MAX.unsigned_abs())));
    }

    #[test]
    fn what_is_no_reply_is_malformed() {
        let nested = [b"d5:peers".as_slice(), &[b'l'; 100_000]].concat();
        let long = vec![b'i'; BODY_LEN_MAX + 1];
        let table: [&[u8]; 9] = [
            b"",
            b"<html><body>nginx</body></html>",
            b"le",
            b"i1e",
            b"d5:peers6:abce",
            b"d5:peers99999999999:e",
            b"d8:intervali18446744073709551616ee",
            &nested,
            &long,
        ];
        for body in table {
            let failure = parse(body).unwrap_err();
            assert_eq!(failure.label(), "http", "{:?}", body.get(..20));
        }
    }

    #[test]
    fn no_bytes_panic() {
        let seed = 7;
        let mut rng = fastrand::Rng::with_seed(seed);
        let body =
            b"d14:failure reason2:no8:intervali1800e5:peersld2:ip7:1.1.1.14:porti1eee6:peers60:e";
        for round in 0..20_000 {
            let mut body = body[rng.usize(..20)..].to_vec();
            for _ in 0..rng.usize(1..6) {
                let index = rng.usize(..body.len());
                body[index] =
                    if rng.bool() { rng.u8(..) } else { *rng.choice(b"dlie0123:").unwrap() };
            }
            let answer = parse(&body);
            assert!(
                answer.is_err() || answer.unwrap().peers.len() < 2,
                "seed {seed} round {round}"
            );
        }
    }
}
