//! Lists of addresses from a file, and what neighbours say by multicast.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use seedring::lsd::{self, Discovery, Error, Search};
use seedring::swarm::Blocklist;
use seedring::units::InfoHash;

use super::{Input, Script, assert_sentence, start, texts};

/// A blocklist: order and repetition change nothing, what a line names is blocked, and what is
/// broken is told.
pub(super) fn blocklist(data: &[u8]) {
    let read = match Blocklist::parse(data) {
        Ok(read) => read,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    read.broken.iter().for_each(|error| assert_sentence(&error.to_string()));
    assert_eq!(read.broken.is_empty(), read.broken_count == 0);
    let parse = |text: &[u8]| Blocklist::parse(text).unwrap();
    let list = read.list;
    let plain = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    let lines: Vec<&[u8]> = plain.split(|&byte| byte == b'\n').collect();
    assert!(list.range_count() <= lines.len());
    let reversed: Vec<&[u8]> = lines.iter().rev().copied().collect();
    let reversed = parse(&[b"\n", &reversed.join(&b'\n')[..]].concat());
    assert_eq!((reversed.list, reversed.broken_count), (list.clone(), read.broken_count));
    assert_eq!(parse(&[plain, b"\n", plain].concat()).list, list);
    let everything = parse(&[plain, b"\n0.0.0.0/0\n::/0"].concat()).list;
    assert_eq!(everything.range_count(), 2);
    for line in lines {
        let text = String::from_utf8_lossy(line.trim_ascii());
        if let Ok(ip) = text.parse::<IpAddr>() {
            assert!(list.contains(ip), "{ip} stands there");
            if let IpAddr::V4(ip) = ip {
                assert!(list.contains(ip.to_ipv6_mapped().into()));
            }
        }
    }
    assert!(everything.contains(Ipv4Addr::BROADCAST.into()));
    if list.range_count() == 0 {
        assert!(!list.contains(Ipv4Addr::UNSPECIFIED.into()));
    }
}

pub(super) fn blocklist_seeds() -> Vec<Vec<u8>> {
    texts([
        "10.0.0.0/8\n192.168.1.1\n2001:db8::/32\n",
        "# words\n; more\n\nname: with: colons:1.2.3.4-1.2.3.9\r\n",
        "001.002.003.004 - 001.002.003.009 , 000 , name\n5.6.7.8 - 5.6.7.9 , 200 , passed\n",
        "v6:2001:db8::1-2001:db8::ffff\n0.0.0.0-255.255.255.255\n",
        "1.2.3.4\n1.2.3.5\n1.2.3.6-1.2.3.4\n",
        "\u{feff}1.2.3.4/33\n",
        "255.255.255.255\n0.0.0.0/0\n::/0\n",
        "::ffff:1.2.3.4\n::ffff:5.0.0.0/104\n",
    ])
}

/// Datagrams of neighbours among torrents of ours, with time passing.
pub(super) fn lsd(data: &[u8]) {
    let mut input = Input(data);
    let mut now = start();
    let mut discovery = Discovery::new(6881, 7);
    let hash = |index: u8| InfoHash([index; 20]);
    let mut ours = [false; 8];
    let (mut read, mut second) = (0u32, now);
    while !input.is_empty() {
        match input.below(5) {
            0 => {
                let (index, is_private) = (input.below(ours.len()), input.flag());
                let index8 = u8::try_from(index).unwrap();
                assert_eq!(discovery.insert(now, hash(index8), is_private), !is_private);
                ours[index] |= !is_private;
            }
            1 => {
                let index = input.below(ours.len());
                discovery.remove(&hash(u8::try_from(index).unwrap()));
                ours[index] = false;
            }
            2 => {
                now += Duration::from_millis(u64::from(input.u16()) * 10);
                if let Some(search) = discovery.poll_datagram(now) {
                    assert!(search.info_hashes.len() <= lsd::HASHES_MAX);
                    assert!(search.info_hashes.iter().all(|it| ours[usize::from(it.0[0])]));
                    let datagram = search.encode(lsd::group(true));
                    assert!(datagram.len() <= lsd::DATAGRAM_LEN_MAX);
                    assert_eq!(Search::parse(&datagram), Ok(search));
                    count_read(now, &mut read, &mut second);
                    let from = lsd::group(true);
                    let heard = discovery.handle_datagram(now, from, true, &datagram);
                    assert!(matches!(heard, Err(Error::Own | Error::Flood)), "our own words");
                    assert!(discovery.poll_timeout().is_none_or(|at| at > now));
                }
            }
            3 => {
                count_read(now, &mut read, &mut second);
                let from = SocketAddr::from(([10, 0, 0, input.byte()], 6771));
                let is_near = input.flag();
                let heard = discovery.handle_datagram(now, from, is_near, input.chunk());
                assert!(is_near || heard.is_err());
                for (info_hash, peer) in heard.into_iter().flatten() {
                    assert!(read <= lsd::READ_PER_SECOND_MAX, "too many are read");
                    assert!(ours[usize::from(info_hash.0[0])], "not a torrent of ours");
                    assert!(peer.ip() == from.ip() && peer.port() >= 1024);
                }
            }
            _ => search(input.chunk()),
        }
    }
    search(data);
}

/// Counts what is read in the second that began with the first of it.
fn count_read(now: Instant, read: &mut u32, second: &mut Instant) {
    if now >= *second + Duration::from_secs(1) {
        (*read, *second) = (0, now);
    }
    *read += 1;
}

/// One datagram, both ways.
fn search(datagram: &[u8]) {
    let search = match Search::parse(datagram) {
        Ok(search) => search,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    assert!(search.port >= 1024 && (1..=lsd::HASHES_MAX).contains(&search.info_hashes.len()));
    for is_v4 in [true, false] {
        let written = search.encode(lsd::group(is_v4));
        assert!(written.len() <= lsd::DATAGRAM_LEN_MAX, "{} bytes", written.len());
        assert_eq!(Search::parse(&written).as_ref(), Ok(&search));
    }
}

pub(super) fn lsd_seeds() -> Vec<Vec<u8>> {
    let info_hash = "07".repeat(20);
    let good = format!(
        "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6889\r\nInfohash: {info_hash}\r\n\
         Infohash: {info_hash}\r\ncookie: name\r\n\r\n\r\n"
    );
    let other = format!("BT-SEARCH * HTTP/1.0\nport:1024\ninfohash:{info_hash}\n\n");
    let torrents = Script::default().bytes(&[0, 7, 0, 0, 1, 1, 2, 0xff, 0xff, 2, 0, 1]);
    let live = torrents.bytes(&[3, 9]).chunk(good.as_bytes()).bytes(&[1, 7]);
    let live = live.bytes(&[3, 9]).chunk(other.as_bytes()).bytes(&[2, 0xff, 0xff]).0;
    let parsed = Script::default().bytes(&[4]).chunk(good.as_bytes()).0;
    let cut = good.as_bytes()[..60].to_vec();
    vec![good.into_bytes(), other.into_bytes(), cut, live, parsed]
}
