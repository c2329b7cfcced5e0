//! Peers that others announced to us (BEP 5), and what is told of them.
//!
//! Announces and `now` enter; peers, filters and samples leave. Invariant: at most
//! [`HASHES_MAX`] torrents with [`PEERS_MAX`] peers each, of one IP at most [`PEERS_PER_IP_MAX`],
//! and nothing is told that is older than [`PEER_LIFE`].
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::address::Origin;
use super::bloom::Bloom;
use super::encode::Samples;
use super::krpc::SAMPLES_MAX;
use crate::units::InfoHash;

/// Torrents; the one whose last announce is longest ago goes for a new one.
pub(super) const HASHES_MAX: usize = 2000;

/// Peers of one torrent; the one whose announce is longest ago goes for a new one.
pub(super) const PEERS_MAX: usize = 100;

/// Peers with one IP of one torrent, where addresses are public.
pub(super) const PEERS_PER_IP_MAX: usize = 4;

/// How long an announce is believed.
pub(super) const PEER_LIFE: Duration = Duration::from_secs(30 * 60);

/// How long the same samples are given (BEP 51).
pub(super) const SAMPLES_INTERVAL: Duration = Duration::from_secs(300);

/// The torrents that we keep for others.
#[derive(Debug, Default)]
pub(super) struct Store {
    torrents: BTreeMap<InfoHash, Torrent>,
    by_announce: BTreeSet<(Instant, InfoHash)>,
    samples: Vec<InfoHash>,
    sampled_at: Option<Instant>,
}

#[derive(Debug)]
struct Torrent {
    announced_at: Instant,
    peers: BTreeMap<SocketAddr, Peer>,
}

#[derive(Debug)]
struct Peer {
    announced_at: Instant,
    is_seed: bool,
}

impl Torrent {
    fn live(&self, now: Instant) -> impl Iterator<Item = (&SocketAddr, &Peer)> {
        self.peers.iter().filter(move |(_, peer)| is_alive(now, peer.announced_at))
    }

    /// Forgets the oldest peer of those that `is_meant` names.
    fn drop_oldest(&mut self, is_meant: impl Fn(&SocketAddr) -> bool) {
        let meant = self.peers.iter().filter(|(addr, _)| is_meant(addr));
        let oldest = meant.min_by_key(|(_, peer)| peer.announced_at).map(|(addr, _)| *addr);
        oldest.map(|addr| self.peers.remove(&addr));
    }
}

fn is_alive(now: Instant, announced_at: Instant) -> bool {
    now.saturating_duration_since(announced_at) < PEER_LIFE
}

impl Store {
    /// Takes an announce.
    pub(super) fn announce(
        &mut self,
        now: Instant,
        hash: InfoHash,
        addr: SocketAddr,
        is_seed: bool,
    ) {
        self.expire(now);
        if !self.torrents.contains_key(&hash) && self.torrents.len() >= HASHES_MAX {
            self.by_announce.pop_first().map(|(_, oldest)| self.torrents.remove(&oldest));
        }
        let torrent = self
            .torrents
            .entry(hash)
            .or_insert_with(|| Torrent { announced_at: now, peers: BTreeMap::new() });
        self.by_announce.remove(&(torrent.announced_at, hash));
        torrent.announced_at = now;
        self.by_announce.insert((now, hash));
        torrent.peers.retain(|_, peer| is_alive(now, peer.announced_at));
        if !torrent.peers.contains_key(&addr) {
            let origin = Origin::of(addr);
            let is_same_host = |other: &SocketAddr| Origin::of(*other) == origin;
            if torrent.peers.keys().filter(|other| is_same_host(other)).count() >= PEERS_PER_IP_MAX
            {
                torrent.drop_oldest(is_same_host);
            } else if torrent.peers.len() >= PEERS_MAX {
                torrent.drop_oldest(|_| true);
            }
        }
        torrent.peers.insert(addr, Peer { announced_at: now, is_seed });
    }

    /// Peers of one family, in random order, at most [`PEERS_MAX`].
    pub(super) fn peers(
        &self,
        now: Instant,
        hash: InfoHash,
        is_v4: bool,
        no_seeds: bool,
        rng: &mut fastrand::Rng,
    ) -> Vec<SocketAddr> {
        let Some(torrent) = self.torrents.get(&hash) else { return Vec::new() };
        let wanted = torrent
            .live(now)
            .filter(|(addr, peer)| addr.is_ipv4() == is_v4 && !(no_seeds && peer.is_seed));
        let mut peers: Vec<_> = wanted.map(|(addr, _)| *addr).collect();
        rng.shuffle(&mut peers);
        peers
    }

    /// Filters over seeds and leeches (BEP 33); `None` for a torrent that nobody announced.
    pub(super) fn filters(&self, now: Instant, hash: InfoHash) -> Option<(Bloom, Bloom)> {
        let torrent = self.torrents.get(&hash)?;
        let (mut seeds, mut leeches) = (Bloom::default(), Bloom::default());
        for (addr, peer) in torrent.live(now) {
            let filter = if peer.is_seed { &mut seeds } else { &mut leeches };
            filter.insert(addr.ip());
        }
        Some((seeds, leeches))
    }

    /// Some of our torrents, the same ones for [`SAMPLES_INTERVAL`] (BEP 51).
    pub(super) fn samples(&mut self, now: Instant, rng: &mut fastrand::Rng) -> Samples {
        self.expire(now);
        let is_young = |at| now.saturating_duration_since(at) < SAMPLES_INTERVAL;
        let sampled_at = self.sampled_at.filter(|at| is_young(*at)).unwrap_or_else(|| {
            self.samples = rng.choose_multiple(self.torrents.keys().copied(), SAMPLES_MAX);
            now
        });
        self.sampled_at = Some(sampled_at);
        let left = SAMPLES_INTERVAL.saturating_sub(now.saturating_duration_since(sampled_at));
        Samples {
            interval: i64::try_from(left.as_secs()).unwrap_or_default(),
            total: i64::try_from(self.torrents.len()).unwrap_or_default(),
            hashes: self.samples.clone(),
        }
    }

    /// Torrents and peers, some of which may have expired.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.torrents.len(), self.torrents.values().map(|torrent| torrent.peers.len()).sum())
    }

    /// Forgets the torrents whose last announce has expired.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((announced_at, hash)) = self.by_announce.first().copied() {
            if is_alive(now, announced_at) {
                break;
            }
            self.by_announce.pop_first();
            self.torrents.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(host: u32, port: u16) -> SocketAddr {
        SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0800_0000 + host).into(), port)
    }

    fn hash(number: u32) -> InfoHash {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        InfoHash(hash)
    }

    #[test]
    fn tables_stay_within_their_limits_and_keep_the_newest() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut store = Store::default();
        for number in 0..3000 {
            let at = now + Duration::from_millis(u64::from(number));
            store.announce(at, hash(number), addr(1, 2000), false);
        }
        assert_eq!(store.counts(), (HASHES_MAX, HASHES_MAX));
        let later = now + Duration::from_secs(3);
        assert!(store.peers(later, hash(999), true, false, &mut rng).is_empty());
        assert_eq!(store.peers(later, hash(1000), true, false, &mut rng).len(), 1);
        for host in 0..500u32 {
            store.announce(
                later + Duration::from_millis(host.into()),
                hash(2999),
                addr(host, 2000),
                false,
            );
        }
        let peers = store.peers(later, hash(2999), true, false, &mut rng);
        assert_eq!(peers.len(), PEERS_MAX);
        assert!(peers.iter().all(|peer| *peer >= addr(400, 2000)), "{peers:?}");
        for port in 3000..4000 {
            store.announce(later + Duration::from_secs(1), hash(2998), addr(7, port), false);
        }
        assert_eq!(
            store.peers(later, hash(2998), true, false, &mut rng).len(),
            PEERS_PER_IP_MAX + 1
        );
    }

    #[test]
    fn announces_expire() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut store = Store::default();
        store.announce(now, hash(1), addr(1, 2000), true);
        store.announce(now + PEER_LIFE / 2, hash(1), addr(2, 2000), false);
        let at =
            |store: &Store, rng: &mut _, at| store.peers(now + at, hash(1), true, false, rng).len();
        assert_eq!(at(&store, &mut rng, PEER_LIFE / 2), 2);
        assert_eq!(at(&store, &mut rng, PEER_LIFE), 1);
        assert_eq!(store.filters(now + PEER_LIFE, hash(1)).unwrap().0.estimate(), 0);
        store.expire(now + PEER_LIFE * 3 / 2);
        assert_eq!(store.counts(), (0, 0));
    }

    #[test]
    fn seeds_are_told_apart_and_families_too() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut store = Store::default();
        for host in 0..10 {
            store.announce(now, hash(1), addr(host, 2000), host < 3);
        }
        store.announce(now, hash(1), "[2a00::1]:2000".parse().unwrap(), false);
        assert_eq!(store.peers(now, hash(1), true, true, &mut rng).len(), 7);
        assert_eq!(store.peers(now, hash(1), true, false, &mut rng).len(), 10);
        assert_eq!(store.peers(now, hash(1), false, false, &mut rng).len(), 1);
        let (seeds, leeches) = store.filters(now, hash(1)).unwrap();
        assert_eq!((seeds.estimate(), leeches.estimate()), (3, 8));
        assert!(store.filters(now, hash(2)).is_none());
    }

    #[test]
    fn samples_stay_for_their_interval() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut store = Store::default();
        for number in 0..100 {
            store.announce(now, hash(number), addr(1, 2000), false);
        }
        let first = store.samples(now, &mut rng);
        assert_eq!((first.hashes.len(), first.total, first.interval), (SAMPLES_MAX, 100, 300));
        let second = store.samples(now + Duration::from_secs(100), &mut rng);
        assert_eq!((&second.hashes, second.interval), (&first.hashes, 200));
        assert_ne!(store.samples(now + SAMPLES_INTERVAL, &mut rng).hashes, first.hashes);
    }
}
