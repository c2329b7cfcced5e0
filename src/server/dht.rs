//! The DHT on the control thread: torrents on one side, datagrams on the other.
//!
//! Public torrents and names of nodes enter, peers leave; the machine that does the work
//! ([`crate::dht`]) is turned by the hub of all machines ([`super::udp`]). Invariant: a private
//! torrent (BEP 27) is not named to it from the moment that we know it is one, which is never for a
//! `.torrent` file; that of a magnet link is private or not only once its metadata is here. Names are
//! looked up without anybody waiting.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::ring::rand::{SecureRandom, SystemRandom};

use super::engine::StartError;
use super::start::new_seed;
use super::udp::{Machine, Transmit};
use crate::dht::{Announce, Config, Dht, Event, from_file};
use crate::metainfo::Metainfo;
use crate::metrics::DhtNode;
use crate::sys::clock;
use crate::tracker::{AddressPolicy, policy::permits_operator};
use crate::units::InfoHash;
use crate::worker::datagrams::Udp;

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 8;

/// Names that are looked up.
const NAMES_MAX: usize = 32;

/// How long it is until names are looked up again, at first and at last.
const LOOK_UP_WAIT_MIN: Duration = Duration::from_secs(30);
/// See [`LOOK_UP_WAIT_MIN`].
const LOOK_UP_WAIT_MAX: Duration = Duration::from_secs(3600);

/// What comes of lookups.
pub(super) enum Found {
    /// Peers of a torrent.
    Peers(InfoHash, Vec<SocketAddr>),
    /// Where most nodes see us.
    External(IpAddr),
}

/// Announces and lookups for the torrents of the engine. Cheap to clone.
#[derive(Clone)]
pub(super) struct Finder {
    dht: Arc<Mutex<Dht>>,
    /// The TCP port that peers reach us at.
    port: u16,
}

impl Finder {
    /// One node for each socket, which enters the DHT by `bootstrap`, each `HOST:PORT`, and by the
    /// nodes that were `saved` the last time. `None` if there is no socket.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn start(
        udp: &Udp,
        policy: &AddressPolicy,
        port: u16,
        bootstrap: &[String],
        saved: &[u8],
    ) -> Result<Option<Self>, StartError> {
        let mut configs = Vec::new();
        let saved = from_file(saved, udp.addrs());
        for (&local, saved) in udp.addrs().iter().zip(saved) {
            let mut secret = [0; 32];
            SystemRandom::new().fill(&mut secret).map_err(|_| StartError::Random)?;
            let config = Config::new(local, policy.clone(), secret, new_seed()?);
            configs.push(Config { saved, ..config });
        }
        if configs.is_empty() {
            return Ok(None);
        }
        let dht = Arc::new(Mutex::new(Dht::new(clock::now(), configs)));
        let names: Vec<_> = bootstrap.iter().take(NAMES_MAX).cloned().collect();
        if !names.is_empty() {
            tokio::spawn(look_up(names, Arc::downgrade(&dht)));
        }
        Ok(Some(Self { dht, port }))
    }

    /// The UDP port of the nodes: it has the number of the TCP port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What the hub turns.
    pub(super) fn machine(&self) -> Box<dyn Machine> {
        Box::new(self.clone())
    }

    /// Announces a torrent from now on, unless it is private; or says that it is complete now.
    pub(super) fn add(&self, metainfo: &Metainfo, is_seed: bool) {
        if metainfo.private {
            return;
        }
        let (announce, now) = (Announce { port: self.port, is_seed }, clock::now());
        let mut dht = self.lock();
        if !dht.add_torrent(now, metainfo.info_hash, announce) {
            tracing::warn!(torrent = %metainfo.info_hash, "too many torrents: not in the DHT");
        }
        for (host, port) in &metainfo.nodes {
            // Names in torrents are nobody's who could be asked; addresses cost nothing.
            if let Ok(ip) = host.parse() {
                dht.insert_node(SocketAddr::new(ip, *port));
            }
        }
    }

    /// Looks for peers of a torrent without metadata, and announces that we want it. Nobody can
    /// know yet whether it is private.
    pub(super) fn seek(&self, info_hash: InfoHash) {
        let announce = Announce { port: self.port, is_seed: false };
        let mut dht = self.lock();
        if !dht.add_torrent(clock::now(), info_hash, announce) {
            tracing::warn!(torrent = %info_hash, "too many torrents: not in the DHT");
        }
        // Somebody waits for it; announces of many torrents may be overdue.
        if !dht.find_peers(info_hash) {
            tracing::debug!(torrent = %info_hash, "its peers are looked for in its turn");
        }
    }

    /// Stops announcing a torrent.
    pub(super) fn remove(&self, info_hash: InfoHash) {
        self.lock().remove_torrent(info_hash);
    }

    /// Names a node that may be there.
    pub(super) fn insert_node(&self, addr: SocketAddr) {
        self.lock().insert_node(addr);
    }

    /// What was found since this was last asked.
    pub(super) fn poll_found(&self) -> Option<Found> {
        let mut dht = self.lock();
        loop {
            match dht.poll_event()?.1 {
                Event::Peers { info_hash, peers } => return Some(Found::Peers(info_hash, peers)),
                Event::Done { info_hash, task, outcome } => {
                    tracing::debug!(torrent = %info_hash, ?task, ?outcome, "a look-up in the DHT");
                }
                Event::Moved { external_ip, .. } => {
                    tracing::debug!(%external_ip, "nodes of the DHT see us there");
                    return Some(Found::External(external_ip));
                }
            }
        }
    }

    /// Nodes that answered or asked lately.
    pub(super) fn node_count(&self) -> usize {
        let (dht, now) = (self.lock(), clock::now());
        dht.nodes().iter().map(|node| node.gauges(now).good_count).sum()
    }

    /// What the nodes have counted, for the metrics.
    pub(super) fn figures(&self) -> Vec<DhtNode> {
        let (dht, now) = (self.lock(), clock::now());
        let figures = dht.nodes().iter().map(|node| DhtNode {
            is_ipv4: node.is_ipv4(),
            counters: node.counters().clone(),
            gauges: node.gauges(now),
        });
        figures.collect()
    }

    /// What is worth saving, if anything is.
    pub(super) fn export(&self) -> Option<Vec<u8>> {
        self.lock().export(clock::now())
    }

    /// Torrents that are named to others.
    #[cfg(test)]
    pub(super) fn torrent_count(&self) -> usize {
        let (dht, now) = (self.lock(), clock::now());
        dht.nodes().iter().map(|node| node.gauges(now).torrent_count).max().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Dht> {
        self.dht.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine for Finder {
    fn handle_datagram(&mut self, now: Instant, socket: usize, from: SocketAddr, bytes: &[u8]) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.lock().handle_datagram(now, socket, from, bytes);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.lock().handle_timeout(now);
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.lock().poll_timeout(now)
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        let (socket, to, bytes) = self.lock().poll_transmit()?;
        Some(Transmit { socket: Some(socket), to, bytes })
    }
}

/// Looks names up, and again after a while: addresses move, and the network may come later than we.
async fn look_up(names: Vec<String>, dht: std::sync::Weak<Mutex<Dht>>) {
    let mut wait = LOOK_UP_WAIT_MIN;
    loop {
        let mut found = Vec::new();
        for name in &names {
            match tokio::net::lookup_host(name).await {
                Ok(addrs) => {
                    let permitted = addrs.filter(|addr| permits_operator(addr.ip()).is_ok());
                    found.extend(permitted.take(ADDRESSES_MAX));
                }
                Err(error) => tracing::debug!(name, %error, "cannot look up a node of the DHT"),
            }
        }
        let Some(dht) = dht.upgrade() else { return };
        if !found.is_empty() {
            wait = LOOK_UP_WAIT_MAX;
            let now = clock::now();
            dht.lock().unwrap_or_else(PoisonError::into_inner).set_bootstrap(now, &found);
        }
        drop(dht);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_UP_WAIT_MAX);
    }
}
