//! The datagrams of UDP trackers (BEP 15, BEP 41), to and from bytes.
//!
//! Invariant: no input panics, and of a reply no more than `PEERS_MAX` peers or
//! [`SCRAPE_MAX`] rows are taken. All numbers are big-endian.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::super::reply::{Peers, Reply, Scraped};
use super::super::{Event, Totals, display_text};
use super::Announcement;
use crate::tracker::families::Family;
use crate::units::{InfoHash, PeerId};

/// Torrents that one scrape can ask for.
pub const SCRAPE_MAX: usize = 74;

/// What every connect begins with.
const PROTOCOL_ID: u64 = 0x0417_2710_1980;

const CONNECT: u32 = 0;
const ANNOUNCE: u32 = 1;
const SCRAPE: u32 = 2;
const ERROR: u32 = 3;

/// Bytes of an announce before its options.
const ANNOUNCE_LEN: usize = 98;

/// The option that carries a piece of path and query (BEP 41).
const URL_DATA: u8 = 2;

/// What a datagram from a tracker says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    Connected(u64),
    Announced(Box<Reply>),
    Scraped(Vec<Scraped>),
    /// To an announce, without anything in it.
    Empty,
    /// Its text, cut and escaped.
    Error(String),
}

/// Whether a datagram can be a tracker's at all; those of the DHT and of uTP never are.
pub fn is_reply(bytes: &[u8]) -> bool {
    let header = head(bytes);
    header.is_some_and(|(action, _)| action <= ERROR)
}

/// Action and transaction id of an answer.
fn head(bytes: &[u8]) -> Option<(u32, u32)> {
    let (action, rest) = bytes.split_first_chunk()?;
    let (transaction, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*action), u32::from_be_bytes(*transaction)))
}

/// The transaction that an answer belongs to.
pub(super) fn transaction_of(bytes: &[u8]) -> Option<u32> {
    head(bytes).map(|(_, transaction)| transaction)
}

pub(super) fn connect(transaction: u32) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(16);
    datagram.extend(PROTOCOL_ID.to_be_bytes());
    datagram.extend(CONNECT.to_be_bytes());
    datagram.extend(transaction.to_be_bytes());
    datagram
}

/// Who announces.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) peer_id: PeerId,
    pub(super) port: u16,
    pub(super) key: u32,
}

pub(super) fn announce(
    connection: u64,
    transaction: u32,
    sender: &Sender,
    what: &Announcement,
) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(ANNOUNCE_LEN + what.url_data.len() + 16);
    let Totals { uploaded, downloaded, left } = what.totals;
    datagram.extend(connection.to_be_bytes());
    datagram.extend(ANNOUNCE.to_be_bytes());
    datagram.extend(transaction.to_be_bytes());
    datagram.extend(what.info_hash.0);
    datagram.extend(sender.peer_id.0);
    // The numbers are signed on the other side.
    for number in [downloaded, left, uploaded] {
        datagram.extend(number.min(i64::MAX.unsigned_abs()).to_be_bytes());
    }
    datagram.extend(event_number(what.event).to_be_bytes());
    // Address 0: the one that this comes from.
    datagram.extend([0; 4]);
    datagram.extend(sender.key.to_be_bytes());
    datagram.extend(u32::from(what.numwant).to_be_bytes());
    datagram.extend(sender.port.to_be_bytes());
    for part in what.url_data.as_bytes().chunks(usize::from(u8::MAX)) {
        datagram.push(URL_DATA);
        datagram.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
        datagram.extend(part);
    }
    datagram
}

fn event_number(event: Event) -> u32 {
    match event {
        Event::Periodic => 0,
        Event::Completed => 1,
        Event::Started => 2,
        Event::Stopped => 3,
    }
}

/// Asks for at most [`SCRAPE_MAX`] torrents; the rest is left out.
pub(super) fn scrape(connection: u64, transaction: u32, torrents: &[InfoHash]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(16 + 20 * torrents.len());
    datagram.extend(connection.to_be_bytes());
    datagram.extend(SCRAPE.to_be_bytes());
    datagram.extend(transaction.to_be_bytes());
    torrents.iter().take(SCRAPE_MAX).for_each(|hash| datagram.extend(hash.0));
    datagram
}

/// Reads a datagram of a tracker of `family`. `None` if it is none, or torn.
pub(super) fn parse(bytes: &[u8], family: Family) -> Option<Answer> {
    let (action, _) = head(bytes)?;
    let rest = bytes.get(8..)?;
    match action {
        CONNECT => {
            let (connection, _) = rest.split_first_chunk()?;
            Some(Answer::Connected(u64::from_be_bytes(*connection)))
        }
        // What opentracker says of torrents that it does not serve.
        ANNOUNCE if rest.is_empty() => Some(Answer::Empty),
        ANNOUNCE => announced(rest, family).map(|reply| Answer::Announced(Box::new(reply))),
        SCRAPE => {
            let rows = rest.chunks_exact(12).take(SCRAPE_MAX);
            Some(Answer::Scraped(rows.map(scraped).collect()))
        }
        // Some end their text as C does.
        ERROR => Some(Answer::Error(display_text(rest.strip_suffix(b"\0").unwrap_or(rest)))),
        _ => None,
    }
}

fn announced(rest: &[u8], family: Family) -> Option<Reply> {
    let (numbers, list) = rest.split_first_chunk::<12>()?;
    let [interval, leecher_count, seeder_count] = thirds(numbers);
    let mut peers = Peers::default();
    match family {
        Family::V4 => peers.add_compact_v4(list),
        Family::V6 => peers.add_compact_v6(list),
    }
    Some(Reply {
        interval: (interval > 0).then(|| Duration::from_secs(u64::from(interval))),
        seeder_count: known(seeder_count),
        leecher_count: known(leecher_count),
        peers: peers.taken,
        dropped_count: peers.dropped_count,
        ..Reply::default()
    })
}

fn scraped(row: &[u8]) -> Scraped {
    let row = row.first_chunk::<12>().copied().unwrap_or_default();
    let [seeder_count, download_count, leecher_count] = thirds(&row).map(known);
    Scraped { seeder_count, leecher_count, download_count }
}

/// A count; the numbers are signed on the other side, and less than nothing means nothing.
fn known(count: u32) -> Option<u32> {
    Some(count).filter(|count| i32::try_from(*count).is_ok())
}

fn thirds(bytes: &[u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> Sender {
        Sender { peer_id: PeerId([b'p'; 20]), port: 0x1AE1, key: 0xBEEF }
    }

    fn what(url_data: &str) -> Announcement {
        Announcement {
            info_hash: InfoHash([0xAB; 20]),
            totals: Totals { uploaded: 1, downloaded: 2, left: u64::MAX },
            event: Event::Started,
            numwant: 80,
            url_data: url_data.into(),
        }
    }

    #[test]
    fn requests_are_exact() {
        assert_eq!(
            connect(0x0102_0304),
            [0, 0, 4, 0x17, 0x27, 0x10, 0x19, 0x80, 0, 0, 0, 0, 1, 2, 3, 4]
        );
        let expected = [
            &[9; 8][..],
            &[0, 0, 0, 1, 0, 0, 0, 7],
            &[0xAB; 20],
            &[b'p'; 20],
            &[0, 0, 0, 0, 0, 0, 0, 2],
            &[0x7F, 255, 255, 255, 255, 255, 255, 255],
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 2],
            &[0; 4],
            &[0, 0, 0xBE, 0xEF],
            &[0, 0, 0, 80],
            &[0x1A, 0xE1],
        ]
        .concat();
        let connection = u64::from_be_bytes([9; 8]);
        assert_eq!(announce(connection, 7, &sender(), &what("")), expected);
        assert_eq!(expected.len(), ANNOUNCE_LEN);
        let events = [Event::Periodic, Event::Completed, Event::Started, Event::Stopped];
        assert_eq!(events.map(event_number), [0, 1, 2, 3]);
        let asked = scrape(connection, 7, &[InfoHash([1; 20]); 80]);
        assert_eq!(asked.len(), 16 + 20 * SCRAPE_MAX);
        assert_eq!(asked[8..16], [0, 0, 0, 2, 0, 0, 0, 7]);
    }

    #[test]
    fn path_and_query_go_in_pieces() {
        let short = announce(1, 2, &sender(), &what("/a?b=c"));
        assert_eq!(short[ANNOUNCE_LEN..], *b"\x02\x06/a?b=c");
        let long = announce(1, 2, &sender(), &what(&"x".repeat(600)));
        let pieces = [&[2, 255][..], &[b'x'; 255], &[2, 255], &[b'x'; 255], &[2, 90], &[b'x'; 90]];
        assert_eq!(long[ANNOUNCE_LEN..], pieces.concat());
    }

    #[test]
    fn answers_are_read_by_family() {
        let header = [0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 7, 8, 0, 0, 0, 3, 0, 0, 0, 5];
        let v4 = [&header[..], &[1, 1, 1, 1, 0, 1, 2, 2, 2, 2, 0, 0, 9]].concat();
        let Some(Answer::Announced(reply)) = parse(&v4, Family::V4) else { panic!("no reply") };
        assert_eq!(reply.interval, Some(Duration::from_secs(1800)));
        assert_eq!((reply.seeder_count, reply.leecher_count), (Some(5), Some(3)));
        assert_eq!(reply.peers, ["1.1.1.1:1".parse().unwrap()]);
        assert_eq!(reply.dropped_count, 2, "port 0 and a torn tail");
        let peer = [0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
        let v6 = [&header[..], &peer].concat();
        let Some(Answer::Announced(reply)) = parse(&v6, Family::V6) else { panic!("no reply") };
        assert_eq!(reply.peers, ["[2a00::1]:2".parse().unwrap()]);
        let odd = [&header[..8], &[0, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 1]].concat();
        let Some(Answer::Announced(reply)) = parse(&odd, Family::V4) else { panic!("no reply") };
        assert_eq!(
            (reply.interval, reply.leecher_count, reply.seeder_count),
            (None, None, Some(1))
        );
        let rows = [&[0, 0, 0, 2, 0, 0, 0, 7][..], &header[8..], &[1]].concat();
        let row =
            Scraped { seeder_count: Some(1800), download_count: Some(3), leecher_count: Some(5) };
        assert_eq!(parse(&rows, Family::V4), Some(Answer::Scraped(vec![row])));
        let said = parse(b"\0\0\0\x03\0\0\0\x07no\x1b", Family::V6);
        assert_eq!(said, Some(Answer::Error("no\\u{1b}".into())));
        let said = parse(b"\0\0\0\x03\0\0\0\x07no\0", Family::V6);
        assert_eq!(said, Some(Answer::Error("no".into())));
        assert_eq!(parse(b"\0\0\0\x01\0\0\0\x07", Family::V4), Some(Answer::Empty));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let table: [&[u8]; 6] = [
            b"",
            b"\0\0\0\x01\0\0\0",
            b"\0\0\0\0\0\0\0\x071234567",
            b"\0\0\0\x01\0\0\0\x0712345678901",
            b"\0\0\0\x04\0\0\0\x0712345678",
            b"d1:ad2:id20:aaaaaaaaaaaaaaaaaaaae1:y1:qe",
        ];
        for bytes in table {
            assert_eq!(parse(bytes, Family::V4), None, "{bytes:?}");
        }
        assert!(is_reply(b"\0\0\0\x03\0\0\0\x07") && !is_reply(table[4]) && !is_reply(table[5]));
        let utp = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(!is_reply(&utp) && !is_reply(b""));
        let seed = 3;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            bytes.iter_mut().take(4).for_each(|byte| *byte = 0);
            bytes.get_mut(3).into_iter().for_each(|byte| *byte = rng.u8(..5));
            let family = if rng.bool() { Family::V4 } else { Family::V6 };
            assert!(parse(&bytes, family).is_none() || bytes.len() >= 8, "seed {seed}");
        }
    }
}
