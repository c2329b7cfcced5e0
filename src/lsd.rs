//! Local service discovery (BEP 14): telling the neighbours which torrents we have, by multicast.
//!
//! Torrents, datagrams and the time enter; datagrams to send, and peers that neighbours named,
//! leave. Sockets are the caller's. Invariant: a private torrent is never named; each torrent is
//! announced every [`ANNOUNCE_INTERVAL`]; one datagram leaves per [`DATAGRAM_INTERVAL_MAX`] on
//! average as long as that is enough for all torrents, and never two within [`DATAGRAM_INTERVAL`];
//! what is read is bounded by [`DATAGRAM_LEN_MAX`], [`HASHES_MAX`] and [`READ_PER_SECOND_MAX`], and
//! neither our own words, known by their cookie, nor those of strangers are listened to.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::units::InfoHash;

/// The port that everybody listens on.
pub const PORT: u16 = 6771;
/// Where datagrams go in IPv4: the organisation's scope.
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 192, 152, 143);
/// Where datagrams go in IPv6: the site's scope.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xefc0, 0x988f);
/// Longest datagram that is read or written, in bytes: one packet on any network.
pub const DATAGRAM_LEN_MAX: usize = 1400;
/// Info-hashes of one datagram.
pub const HASHES_MAX: usize = 20;
/// Between two announces of one torrent; up to a fifth more, so that neighbours do not speak at
/// once.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(300);
/// Between two datagrams of ours, on average: what BEP 14 asks for.
pub const DATAGRAM_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Between two datagrams of ours at least.
pub const DATAGRAM_INTERVAL: Duration = Duration::from_secs(1);
/// Datagrams that may leave ahead of the average, so that a new torrent need not wait for its turn.
pub const DATAGRAMS_AHEAD_MAX: u32 = 5;
/// Torrents that are announced; more of them would never have their turn in time.
pub const TORRENTS_MAX: usize = 300 * HASHES_MAX;
/// Datagrams that are read per second.
pub const READ_PER_SECOND_MAX: u32 = 50;

/// Longest cookie that is read.
const COOKIE_LEN_MAX: usize = 64;

/// One `BT-SEARCH` datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Search {
    /// The TCP port of the sender.
    pub port: u16,
    /// The torrents that it has.
    pub info_hashes: Vec<InfoHash>,
    /// Any word by which the sender knows its own datagrams.
    pub cookie: Option<String>,
}

/// Why a datagram is passed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// It is longer than [`DATAGRAM_LEN_MAX`].
    #[error("the datagram is longer than {DATAGRAM_LEN_MAX} bytes")]
    TooLong,
    /// It is no `BT-SEARCH` request in text.
    #[error("the datagram does not begin with \"BT-SEARCH * HTTP/1.\"")]
    NotSearch,
    /// It has no port, or one that no peer listens on.
    #[error("the datagram has no port, or a port below 1024")]
    Port,
    /// It has no info-hash in 40 hexadecimal digits.
    #[error("the datagram has no info-hash")]
    NoInfoHash,
    /// It is one of ours, which the group brought back.
    #[error("the datagram is our own")]
    Own,
    /// Its sender is in no network of ours.
    #[error("the datagram comes from outside of the local network")]
    Stranger,
    /// There were [`READ_PER_SECOND_MAX`] in this second already.
    #[error("there are more than {READ_PER_SECOND_MAX} datagrams per second")]
    Flood,
}

impl Search {
    /// Reads a datagram. Info-hashes beyond [`HASHES_MAX`], and unknown headers, are passed over.
    ///
    /// # Errors
    /// What it lacks to be one.
    pub fn parse(datagram: &[u8]) -> Result<Self, Error> {
        if datagram.len() > DATAGRAM_LEN_MAX {
            return Err(Error::TooLong);
        }
        let text = std::str::from_utf8(datagram).map_err(|_| Error::NotSearch)?;
        let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r'));
        let first = lines.next().unwrap_or_default();
        if !first.starts_with("BT-SEARCH * HTTP/1.") {
            return Err(Error::NotSearch);
        }
        let mut search = Self { port: 0, info_hashes: Vec::new(), cookie: None };
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("port") {
                search.port = value.parse().unwrap_or(0);
            } else if name.eq_ignore_ascii_case("infohash") {
                if search.info_hashes.len() < HASHES_MAX {
                    search.info_hashes.extend(value.parse::<InfoHash>());
                }
            } else if name.eq_ignore_ascii_case("cookie") && value.len() <= COOKIE_LEN_MAX {
                search.cookie = Some(value.to_owned());
            }
        }
        if search.port < 1024 {
            return Err(Error::Port);
        }
        if search.info_hashes.is_empty() {
            return Err(Error::NoInfoHash);
        }
        Ok(search)
    }

    /// The datagram for the group `to`. The caller keeps to [`HASHES_MAX`] info-hashes.
    pub fn encode(&self, to: SocketAddr) -> Vec<u8> {
        let mut text = format!("BT-SEARCH * HTTP/1.1\r\nHost: {to}\r\nPort: {}\r\n", self.port);
        for info_hash in self.info_hashes.iter().take(HASHES_MAX) {
            text.push_str(&format!("Infohash: {info_hash}\r\n"));
        }
        if let Some(cookie) = &self.cookie {
            text.push_str(&format!("cookie: {cookie}\r\n"));
        }
        text.push_str("\r\n\r\n");
        text.into_bytes()
    }
}

/// The group of a family.
pub fn group(is_v4: bool) -> SocketAddr {
    let ip: IpAddr = if is_v4 { GROUP_V4.into() } else { GROUP_V6.into() };
    SocketAddr::new(ip, PORT)
}

/// Whose turn it is to be announced, and what neighbours say.
pub struct Discovery {
    port: u16,
    cookie: String,
    torrents: BTreeMap<InfoHash, Instant>,
    due: BTreeSet<(Instant, InfoHash)>,
    /// Before this none leaves, and when the next one would be if all kept to the average.
    next_datagram: Option<Instant>,
    next_regular: Option<Instant>,
    read_until: Option<Instant>,
    read_count: u32,
    rng: fastrand::Rng,
}

impl Discovery {
    /// For a server whose peers connect to `port`; `seed` makes its cookie and its jitter.
    pub fn new(port: u16, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            port,
            cookie: format!("{:016x}", rng.u64(..)),
            torrents: BTreeMap::new(),
            due: BTreeSet::new(),
            next_datagram: None,
            next_regular: None,
            read_until: None,
            read_count: 0,
            rng,
        }
    }

    /// Announces a torrent from now on. A private one, and one beyond [`TORRENTS_MAX`], is not
    /// taken; false then.
    pub fn insert(&mut self, now: Instant, info_hash: InfoHash, is_private: bool) -> bool {
        let is_full = self.torrents.len() >= TORRENTS_MAX;
        if is_private {
            return false;
        }
        match self.torrents.entry(info_hash) {
            Entry::Vacant(_) if is_full => return false,
            Entry::Vacant(entry) => {
                entry.insert(now);
                self.due.insert((now, info_hash));
            }
            Entry::Occupied(_) => {}
        }
        true
    }

    /// Announces it no more.
    pub fn remove(&mut self, info_hash: &InfoHash) {
        if let Some(at) = self.torrents.remove(info_hash) {
            self.due.remove(&(at, *info_hash));
        }
    }

    /// There is somebody new to tell: all torrents are due.
    pub fn announce_all(&mut self, now: Instant) {
        self.due.clear();
        for (&info_hash, at) in &mut self.torrents {
            *at = now;
            self.due.insert((now, info_hash));
        }
    }

    /// When [`Discovery::poll_datagram`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let &(at, _) = self.due.first()?;
        let ahead = self.pace() * (DATAGRAMS_AHEAD_MAX - 1);
        let regular = self.next_regular.and_then(|next| next.checked_sub(ahead));
        [Some(at), self.next_datagram, regular].into_iter().flatten().max()
    }

    /// Between two datagrams on average, so that each torrent has its turn.
    fn pace(&self) -> Duration {
        let datagrams = self.torrents.len().div_ceil(HASHES_MAX).max(1);
        let enough = ANNOUNCE_INTERVAL / u32::try_from(datagrams).unwrap_or(u32::MAX);
        enough.clamp(DATAGRAM_INTERVAL, DATAGRAM_INTERVAL_MAX)
    }

    /// The torrents to announce now; to be encoded for each group and sent there.
    pub fn poll_datagram(&mut self, now: Instant) -> Option<Search> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return None;
        }
        let due = self.due.iter().take_while(|(at, _)| *at <= now).take(HASHES_MAX);
        let due: Vec<(Instant, InfoHash)> = due.copied().collect();
        for &(at, info_hash) in &due {
            self.due.remove(&(at, info_hash));
            let jitter = self.rng.u64(..ANNOUNCE_INTERVAL.as_secs() / 5);
            let next = now + ANNOUNCE_INTERVAL + Duration::from_secs(jitter);
            self.due.insert((next, info_hash));
            self.torrents.insert(info_hash, next);
        }
        self.next_datagram = Some(now + DATAGRAM_INTERVAL);
        self.next_regular = Some(self.next_regular.map_or(now, |next| next.max(now)) + self.pace());
        Some(Search {
            port: self.port,
            info_hashes: due.into_iter().map(|(_, info_hash)| info_hash).collect(),
            cookie: Some(self.cookie.clone()),
        })
    }

    /// When datagrams may be read again, if there were too many in this second.
    pub fn reads_again_at(&self, now: Instant) -> Option<Instant> {
        self.read_until.filter(|&until| now < until && self.read_count >= READ_PER_SECOND_MAX)
    }

    /// A datagram came: the torrents of ours that the neighbour has, and where it is. `is_near` says
    /// that its sender is in a network of ours.
    ///
    /// # Errors
    /// It is none that can be read, or none that is listened to.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        is_near: bool,
        datagram: &[u8],
    ) -> Result<Vec<(InfoHash, SocketAddr)>, Error> {
        if self.read_until.is_none_or(|until| now >= until) {
            self.read_until = Some(now + Duration::from_secs(1));
            self.read_count = 0;
        }
        if self.read_count >= READ_PER_SECOND_MAX {
            return Err(Error::Flood);
        }
        self.read_count += 1;
        if !is_near {
            return Err(Error::Stranger);
        }
        let search = Search::parse(datagram)?;
        if search.cookie.as_ref() == Some(&self.cookie) {
            return Err(Error::Own);
        }
        let peer = SocketAddr::new(from.ip().to_canonical(), search.port);
        let ours = search.info_hashes.into_iter().filter(|hash| self.torrents.contains_key(hash));
        Ok(ours.map(|info_hash| (info_hash, peer)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        Instant::now()
    }

    fn hash(number: usize) -> InfoHash {
        let mut hash = [0xab; 20];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        InfoHash(hash)
    }

    fn neighbour() -> SocketAddr {
        SocketAddr::from(([192, 168, 1, 9], 6771))
    }

    #[test]
    fn datagrams_are_those_of_the_bep() {
        let search = Search {
            port: 51_413,
            info_hashes: vec![InfoHash([0xab; 20]), InfoHash([1; 20])],
            cookie: Some("me".to_owned()),
        };
        let text = String::from_utf8(search.encode(group(true))).unwrap();
        let expected = format!(
            "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 51413\r\n\
             Infohash: {}\r\nInfohash: {}\r\ncookie: me\r\n\r\n\r\n",
            "ab".repeat(20),
            "01".repeat(20)
        );
        assert_eq!(text, expected);
        assert!(
            search.encode(group(false)).windows(28).any(|it| it == b"Host: [ff15::efc0:988f]:6771")
        );
        assert_eq!(Search::parse(text.as_bytes()), Ok(search));
        let full = Search {
            port: 65_535,
            info_hashes: (0..HASHES_MAX).map(hash).collect(),
            cookie: Some("0".repeat(16)),
        };
        assert!(full.encode(group(false)).len() <= DATAGRAM_LEN_MAX);
        assert_eq!(Search::parse(&full.encode(group(false))), Ok(full));
    }

    #[test]
    fn other_spellings_are_read_and_nonsense_is_not() {
        let hex = "AB".repeat(20);
        let text = format!("BT-SEARCH * HTTP/1.0\nhost: x\nPORT:6881\ninfohash:{hex}\nX: y\n");
        let search = Search::parse(text.as_bytes()).unwrap();
        assert_eq!((search.port, search.info_hashes.len(), search.cookie), (6881, 1, None));
        let head = "BT-SEARCH * HTTP/1.1\r\n";
        let parse = |text: &str| Search::parse(text.as_bytes()).unwrap_err();
        assert_eq!(parse(""), Error::NotSearch);
        assert_eq!(parse("M-SEARCH * HTTP/1.1\r\n"), Error::NotSearch);
        assert_eq!(parse(&format!("{head}Infohash: {hex}\r\n")), Error::Port);
        for port in ["0", "80", "65536", "-1", "x", ""] {
            assert_eq!(parse(&format!("{head}Port: {port}\r\nInfohash: {hex}\r\n")), Error::Port);
        }
        assert_eq!(parse(&format!("{head}Port: 6881\r\nInfohash: 00\r\n")), Error::NoInfoHash);
        assert_eq!(parse(&format!("{head}Port: 6881\r\n\r\nInfohash: {hex}")), Error::NoInfoHash);
        assert_eq!(parse(&format!("{head}{}", "x".repeat(1400))), Error::TooLong);
        assert_eq!(Search::parse(&[0xff; 9]), Err(Error::NotSearch));
        let many = format!("{head}Port: 6881\r\n{}", format!("Infohash: {hex}\n").repeat(25));
        assert_eq!(Search::parse(many.as_bytes()).unwrap().info_hashes.len(), HASHES_MAX);
        proptest::proptest!(|(text in "(?s).{0,300}")| {
            drop(Search::parse(format!("{head}{text}").as_bytes()));
        });
    }

    #[test]
    fn every_torrent_has_its_turn_and_no_more() {
        for seed in 0..5 {
            let (mut discovery, start) = (Discovery::new(5000, seed), now());
            (0..500).for_each(|number| assert!(discovery.insert(start, hash(number), false)));
            assert!(!discovery.insert(start, hash(9999), true));
            let mut told: BTreeMap<InfoHash, Vec<u64>> = BTreeMap::new();
            let (mut at, mut last, mut count) = (start, None, 0);
            while let Some(next) = discovery.poll_timeout() {
                at = at.max(next);
                let second = (at - start).as_secs();
                if second > 1000 {
                    break;
                }
                let search = discovery.poll_datagram(at).unwrap();
                assert!(last.is_none_or(|last| at >= last + DATAGRAM_INTERVAL), "seed {seed}");
                assert!((1..=HASHES_MAX).contains(&search.info_hashes.len()));
                last = Some(at);
                count += 1;
                search
                    .info_hashes
                    .into_iter()
                    .for_each(|it| told.entry(it).or_default().push(second));
            }
            assert_eq!(told.len(), 500, "seed {seed}");
            // 500 torrents in 25 datagrams, every five minutes.
            assert!(count <= 1000 / 12 + DATAGRAMS_AHEAD_MAX, "seed {seed}: {count} datagrams");
            for seconds in told.values() {
                let gaps = seconds.windows(2).map(|pair| pair[1] - pair[0]);
                assert!(seconds.len() >= 2 && gaps.min() >= Some(300), "seed {seed}: {seconds:?}");
            }
            discovery.remove(&hash(3));
            assert_eq!(discovery.due.len(), 499);
        }
    }

    #[test]
    fn few_torrents_are_told_in_a_datagram_per_minute() {
        for seed in 0..5 {
            let (mut discovery, start) = (Discovery::new(5000, seed), now());
            let mut sent = Vec::new();
            // One by one, each as soon as the one before is out.
            for number in 0..30 {
                let at = start + Duration::from_secs(number);
                discovery.insert(at, hash(usize::try_from(number).unwrap()), false);
                sent.extend(discovery.poll_datagram(at).map(|search| search.info_hashes.len()));
            }
            assert_eq!(sent, vec![1; DATAGRAMS_AHEAD_MAX as usize], "seed {seed}");
            let mut at = start;
            while let Some(next) = discovery.poll_timeout().filter(|&it| it < start + 3600 * SECOND)
            {
                at = at.max(next);
                sent.push(discovery.poll_datagram(at).unwrap().info_hashes.len());
            }
            assert!(sent.len() <= 60 + DATAGRAMS_AHEAD_MAX as usize, "seed {seed}: {sent:?}");
            // Each is told about every five and a half minutes.
            assert!(
                (30 * 9..30 * 12).contains(&sent.iter().sum::<usize>()),
                "seed {seed}: {sent:?}"
            );
        }
    }

    #[test]
    fn who_comes_later_is_told_of_everything() {
        let (mut discovery, start) = (Discovery::new(5000, 1), now());
        (0..3).for_each(|number| assert!(discovery.insert(start, hash(number), false)));
        assert_eq!(discovery.poll_datagram(start).unwrap().info_hashes.len(), 3);
        let later = start + 2 * SECOND;
        assert_eq!(discovery.poll_datagram(later), None);
        discovery.announce_all(later);
        assert_eq!(discovery.poll_datagram(later).unwrap().info_hashes.len(), 3);
    }

    #[test]
    fn neighbours_are_heard_and_we_ourselves_are_not() {
        let (mut discovery, start) = (Discovery::new(5000, 1), now());
        discovery.insert(start, hash(1), false);
        let ours = discovery.poll_datagram(start).unwrap().encode(group(true));
        let heard = discovery.handle_datagram(start, neighbour(), true, &ours);
        assert_eq!(heard, Err(Error::Own));
        let theirs = Search { port: 7000, info_hashes: vec![hash(2), hash(1)], cookie: None };
        let datagram = theirs.encode(group(true));
        let stranger = discovery.handle_datagram(start, neighbour(), false, &datagram);
        assert_eq!(stranger, Err(Error::Stranger));
        let peer = SocketAddr::new(neighbour().ip(), 7000);
        let mut hear = || discovery.handle_datagram(start, neighbour(), true, &datagram);
        assert_eq!(hear().unwrap(), [(hash(1), peer)]);
        let taken = (0..1000).filter(|_| hear().is_ok()).count();
        assert_eq!(taken, READ_PER_SECOND_MAX as usize - 3);
        assert_eq!(hear(), Err(Error::Flood));
        let later = start + SECOND;
        assert_eq!(discovery.reads_again_at(start), Some(later));
        assert_eq!(discovery.reads_again_at(later), None);
        assert!(discovery.handle_datagram(later, neighbour(), true, &datagram).is_ok());
        assert_eq!(discovery.reads_again_at(later), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut discovery, start) = (Discovery::new(5000, 1), now());
        let taken = (0..10_000).filter(|&number| discovery.insert(start, hash(number), false));
        assert_eq!(taken.count(), TORRENTS_MAX);
    }
}
