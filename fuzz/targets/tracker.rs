//! Trackers over HTTP: answers, dates, URLs, where they may lead, and the schedule that follows.

#[path = "../../src/tracker/http_date.rs"]
mod http_date;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use seedring::tracker::announcer::TRACKER_ID_LEN_MAX;
use seedring::tracker::policy::{Reason, permits_operator};
use seedring::tracker::reply::{PEERS_MAX, parse, parse_scrape};
use seedring::tracker::{
    AddressPolicy, Announce, Announcer, Cidr, Event, Failure, Options, Reply, TrackerUrl,
    display_text, tracker_url,
};
use seedring::units::InfoHash;

use super::metainfo::URL_LEN_MAX;
use super::{Input, Script, assert_sentence, start, texts};

/// A text of a tracker: it may be empty, but is short, and no terminal would obey it.
fn assert_shown(text: &str) {
    assert!(text.len() < 8192 && !text.contains(char::is_control), "{text:?}");
}

/// The body of an answer to an announce.
pub(super) fn reply(data: &[u8]) {
    assert_shown(&display_text(data));
    match parse(data) {
        Ok(reply) => {
            assert!(reply.peers.len() <= PEERS_MAX);
            let mut seen = reply.peers.clone();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), reply.peers.len(), "a peer twice");
            for peer in &reply.peers {
                assert!(peer.port() != 0 && peer.ip() == peer.ip().to_canonical(), "{peer}");
            }
            for time in [reply.interval, reply.min_interval].into_iter().flatten() {
                assert!(!time.is_zero());
            }
            reply.warning.iter().for_each(|text| assert_shown(text));
        }
        Err(failure) => assert_shown(&failure.to_string()),
    }
}

pub(super) fn reply_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        "d8:completei5e10:downloadedi9e10:incompletei3e8:intervali1800e12:min intervali900e5:peers0:e",
        "d5:peersld2:ip7:1.1.1.14:porti1eed2:ip3:::14:porti3eed2:ip9:localhost4:porti4eeee",
        "d14:failure reason2:no8:retry ini5ee",
        "d14:failure reason2:no8:retry in5:nevere",
        "d14:failure reason5:\u{1b}[1m\n8:retry in1:7e",
        "d8:intervali-1e10:tracker id3:abc15:warning message3:hi\u{7}e\r\n",
        "<html><body>nginx</body></html>",
        "d5:peersi1ee",
        "",
    ]);
    seeds.push(
        b"d11:external ip4:\x01\x02\x03\x045:peers8:\x01\x01\x01\x01\x1a\xe1\x02\x026:peers618:\
            \x2a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x1a\xe1e"
            .to_vec(),
    );
    let named_twice = [[9, 9, 9, 9, 0x1a, 0xe1]; 2].concat();
    seeds.push([&b"d5:peers12:"[..], &named_twice, b"e"].concat());
    seeds
}

/// The body of an answer to a scrape.
pub(super) fn scrape(data: &[u8]) {
    let torrents = [InfoHash([b'a'; 20]), InfoHash([b'b'; 20]), InfoHash([b'a'; 20])];
    match parse_scrape(data, &torrents) {
        Ok(rows) => assert!(rows.len() == torrents.len() && rows[0] == rows[2]),
        Err(failure) => assert_shown(&failure.to_string()),
    }
}

pub(super) fn scrape_seeds() -> Vec<Vec<u8>> {
    let row = "d8:completei5e10:downloadedi9e10:incompletei3ee";
    let mut seeds = texts(["d5:filesdee", "d5:filesi1ee", "d14:failure reason2:noe", "le"]);
    seeds.push(format!("d5:filesd20:{}{row}20:{}li1eeee", "a".repeat(20), "b".repeat(20)).into());
    seeds
}

/// A date in a header is the moment that it names.
pub(super) fn date(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(seconds) = http_date::parse(text) else { return };
    assert!((0..=253_402_300_800).contains(&seconds), "{seconds}");
    assert_eq!(
        http_date::parse(&written(seconds)),
        Some(seconds).filter(|&it| it < 253_402_300_800)
    );
}

/// A moment as a header has it, counted day by day.
fn written(seconds: i64) -> String {
    const MONTHS: [(&str, i64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while days >= 365 + i64::from(is_leap(year)) {
        days -= 365 + i64::from(is_leap(year));
        year += 1;
    }
    let mut name = "";
    for (month, len) in MONTHS {
        let len = len + i64::from(month == "Feb" && is_leap(year));
        if days < len {
            name = month;
            break;
        }
        days -= len;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("Xxx, {:02} {name} {year} {hour:02}:{minute:02}:{second:02} GMT", days + 1)
}

pub(super) fn date_seeds() -> Vec<Vec<u8>> {
    texts([
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Tue, 29 Feb 2000 12:00:00 GMT",
        "Wed, 31 Feb 2001 12:00:00 GMT",
        "Mon, 01 Mar 2100 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "120",
    ])
}

/// The URL of a tracker: what leaves is what is judged, and keys are not shown.
pub(super) fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let url = match TrackerUrl::parse(text) {
        Ok(url) => url,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    assert!(url.as_str().len() <= URL_LEN_MAX, "{} bytes", url.as_str().len());
    assert_eq!(TrackerUrl::parse(url.as_str()).as_ref(), Ok(&url));
    assert!(!url.as_str().contains(|byte: char| byte.is_control() || byte == ' '), "{url:?}");
    let (host, port) = url.host_and_port().unwrap();
    assert!(!host.is_empty() && port != 0 && !host.contains(['[', ']', '@', '/']), "{host}");
    assert!(url.as_str().starts_with(url.protocol().scheme()));
    assert_eq!(format!("{url} {url:?}"), format!("{0}/… {0}/…", url.host()));
    let web = url::Url::parse(&url.as_str().replacen("udp:", "http:", 1)).unwrap();
    assert_eq!(tracker_url::check(&web), Ok(()));
    let is_ours = |key: &str| matches!(key, "info_hash" | "peer_id");
    assert!(web.query_pairs().all(|(key, _)| !is_ours(&key)));
}

pub(super) fn url_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        "http://t.example/announce?passkey=0123",
        "HTTPS://T.Example:8443/a b",
        "udp://t.example:6969/announce?x=y",
        "udp://[2001:db8::1]:80",
        "UDP://1.2.3.4:080/..//%zz",
        "http://2130706433/",
        "http://xn--bcher-kva.example/",
        "http://bücher.example:81/é",
        "http://user:secret@t/",
        "udp://user@t:1/",
        "udp://t:0",
        "http://t/?info_hash=x",
        "udp://t:1/?a&%69nfo_hash=x#f",
        "wss://t/",
        "http://t/\r\nX: 1",
    ]);
    seeds.push(format!("http://t/{}", "é".repeat(1000)).into_bytes());
    seeds
}

/// Which addresses a policy opens: however they are written, and some never.
pub(super) fn address_policy(data: &[u8]) {
    let mut input = Input(data);
    let bits = input.byte();
    let (v4, v6) = (IpAddr::from(input.array::<4>()), IpAddr::from(input.array::<16>()));
    let listen = [IpAddr::from(input.array::<4>())];
    let range: Option<Cidr> = std::str::from_utf8(input.0).ok().and_then(|text| text.parse().ok());
    if let Some(range) = range {
        assert_eq!(range.to_string().parse(), Ok(range));
    }
    let allow: Vec<Cidr> = range.into_iter().collect();
    let named = AddressPolicy {
        allow_loopback: bits & 1 == 1,
        allow_private: bits & 2 == 2,
        allow: allow.clone(),
    };
    let closed = AddressPolicy::default();
    for policy in [&closed, &named, &AddressPolicy::for_listen(&listen, &allow)] {
        for ip in [v4, v6] {
            let verdict = policy.permits(ip);
            let is_final =
                matches!(verdict, Err(Reason::Metadata | Reason::Unspecified | Reason::Multicast));
            assert_eq!(permits_operator(ip).is_err(), is_final, "{ip}");
            if closed.permits(ip).is_ok() {
                assert_eq!(verdict, Ok(()), "what is public is open");
            }
            if let Err(reason) = verdict {
                assert_sentence(&reason.to_string());
            }
        }
        if let IpAddr::V4(ip) = v4 {
            let mapped = IpAddr::from(ip.to_ipv6_mapped());
            assert_eq!(policy.permits(mapped).is_ok(), policy.permits(v4).is_ok(), "{mapped}");
        }
    }
}

pub(super) fn address_policy_seeds() -> Vec<Vec<u8>> {
    let seed = |v4: [u8; 4], v6: &str, listen: [u8; 4], range: &str| {
        let v6 = v6.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let script = Script::default().bytes(&[3]).bytes(&v4).bytes(&v6).bytes(&listen);
        script.bytes(range.as_bytes()).0
    };
    vec![
        seed([127, 0, 0, 1], "::1", [127, 0, 0, 1], "10.0.0.0/8"),
        seed([169, 254, 169, 254], "fd00:ec2::254", [10, 0, 0, 1], "0.0.0.0/0"),
        seed([10, 1, 2, 3], "64:ff9b::a00:1", [0, 0, 0, 0], "::ffff:0:0/96"),
        seed([255, 255, 255, 255], "2002:7f00:1::", [1, 2, 3, 4], "::/0"),
        seed([192, 168, 1, 1], "fe80::1", [169, 254, 1, 1], "fe80::/10"),
    ]
}

struct Schedule {
    now: Instant,
    options: Options,
    announcer: Announcer,
    in_flight: Vec<Announce>,
    /// When a tracker was told of us last, and that nothing but the schedule may make it earlier.
    told: BTreeMap<u16, Instant>,
}

/// The schedule of a torrent whose trackers answer anything.
pub(super) fn announcer(data: &[u8]) {
    let mut input = Input(data);
    let bits = input.byte();
    let options = Options { parallel_tiers: bits & 1 == 1, ..Options::default() };
    let hosts = ["http://a.example/", "udp://b.example:1/x", "https://c.example/", "file:///x"];
    let tiers: Vec<Vec<String>> = (0..input.below(4))
        .map(|_| (0..input.below(4)).map(|_| hosts[input.below(hosts.len())].to_owned()).collect())
        .collect();
    let now = start();
    let rng = fastrand::Rng::with_seed(bits.into());
    let announcer = Announcer::new(now, &options, &tiers, rng);
    let (in_flight, told) = (Vec::new(), BTreeMap::new());
    let mut schedule = Schedule { now, options, announcer, in_flight, told };
    for _ in 0..300 {
        if input.is_empty() {
            break;
        }
        schedule.step(&mut input);
        schedule.poll();
    }
    schedule.end();
}

impl Schedule {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(10) {
            0 | 1 => self.answer(parse(input.chunk())),
            2 => {
                let status = 200 + u16::from(input.byte());
                let retry_after = input.flag().then(|| Duration::from_secs(input.u64()));
                self.answer(Err(Failure::Status { status, retry_after }));
            }
            3 => self.answer(Err(Failure::Timeout(Duration::from_secs(30)))),
            4 => self.now += Duration::from_secs(u64::from(input.u16())),
            5 => self.now += Duration::from_millis(u64::from(input.byte()) * 100),
            6 => {
                let slot = self.in_flight.get(input.below(8)).map(|announce| announce.slot);
                slot.into_iter().for_each(|slot| self.announcer.handle_silence(self.now, slot));
            }
            7 => {
                self.announcer.handle_completed(self.now);
                self.told.clear();
            }
            8 => {
                self.announcer.handle_reannounce(self.now, &self.options);
                self.told.clear();
            }
            _ => {
                let until = self.now + Duration::from_secs(input.byte().into());
                self.announcer.handle_deferred(u16::from(input.byte() % 4), until);
            }
        }
    }

    fn answer(&mut self, result: Result<Reply, Failure>) {
        if self.in_flight.is_empty() {
            return;
        }
        let slot = self.in_flight.remove(0).slot;
        self.announcer.handle_reply(self.now, &self.options, slot, &result);
        if result.is_ok() {
            self.told.insert(slot, self.now);
        }
    }

    fn poll(&mut self) {
        let mut count = 0;
        for chain in 0..self.announcer.chain_count() {
            while let Some(announce) = self.announcer.poll(self.now, chain, &self.options) {
                count += 1;
                assert!(count <= 16, "more announces than trackers");
                let slot = announce.slot;
                assert_eq!(self.announcer.chain_of(slot), Some(chain));
                assert!(self.in_flight.iter().all(|it| it.slot != slot), "twice at a time");
                let id_len = announce.tracker_id.as_ref().map_or(0, Vec::len);
                assert!(id_len <= TRACKER_ID_LEN_MAX && announce.numwant <= self.options.numwant);
                if let Some(at) = self.told.remove(&slot)
                    && announce.event == Event::Periodic
                {
                    let waited = self.now - at;
                    assert!(waited >= self.options.interval_min, "again after {waited:?}");
                }
                self.in_flight.push(announce);
            }
            let soon = self.now + 2 * self.options.interval_max;
            let at = self.announcer.poll_timeout(chain);
            assert!(at.is_none_or(|at| at <= soon), "not asked again for days");
        }
        for tracker in self.announcer.status().trackers {
            assert!(!format!("{tracker:?}").is_empty());
        }
    }

    /// The torrent stops: whoever was told of it hears so once, and then there is silence.
    fn end(mut self) {
        self.announcer.handle_stop(self.now);
        self.told.clear();
        for _ in 0..16 {
            self.poll();
            while !self.in_flight.is_empty() {
                self.answer(Err(Failure::Timeout(Duration::from_secs(5))));
            }
        }
        assert!(self.announcer.is_stopped(), "{:?}", self.announcer.status());
    }
}

pub(super) fn announcer_seeds() -> Vec<Vec<u8>> {
    let one = || Script::default().bytes(&[0, 1, 2, 0, 1]);
    let good = one().bytes(&[5, 0, 0]).chunk(b"d8:intervali1800e10:tracker id2:ide");
    let good =
        good.bytes(&[4, 7, 7, 7, 5, 1, 0]).chunk(b"d8:intervali1ee").bytes(&[4, 0, 30, 4, 0, 31]);
    let tiers =
        Script::default().bytes(&[1, 2, 2, 0, 1, 1, 2]).bytes(&[6, 0, 5, 1, 3, 3, 3, 4, 9, 9]);
    let busy = one().bytes(&[5, 0, 2, 229, 1]).bytes(&[0xff; 8]).bytes(&[4, 1, 1, 8, 5, 9]);
    let gone =
        one().bytes(&[5, 0, 0]).chunk(b"d14:failure reason14:not registerede").bytes(&[4, 9, 9]);
    let never = one().bytes(&[5, 0, 0]).chunk(b"d14:failure reason2:no8:retry in5:nevere");
    let long =
        one().bytes(&[5, 0, 0]).chunk(b"d8:intervali9223372036854775807ee").bytes(&[4, 9, 9]);
    vec![good.0, tiers.0, busy.0, gone.0, never.bytes(&[8, 4, 9, 9]).0, long.bytes(&[9, 9, 1]).0]
}
