//! Magnet links on the control thread: from a link to the torrent that it names.
//!
//! Links and metadata enter; an [`Event`] with a whole torrent leaves, which the caller adds or
//! removes. Until then the torrent has a home worker, is announced, and looks for peers as any other
//! does. Invariant: nothing is on the disk of a torrent whose metadata is not here, and names of
//! peers are looked up without anybody waiting.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::dht::Finder;
use super::engine::{AddError, Engine, Event};
use crate::metainfo::Metainfo;
use crate::metainfo::magnet::{Magnet, PeerName};
use crate::metrics::MetadataResult;
use crate::swarm::{self, Source};
use crate::tracker;
use crate::units::InfoHash;
use crate::worker::mailbox::{Letter, MetadataProgress, NewMagnet, Totals};

/// Bytes that trackers are told are missing while nobody knows how many are: some, so that they name
/// seeds.
const LEFT_UNKNOWN: u64 = 16 * 1024;

/// Names that are looked up at a time, for all links together.
const LOOK_UPS_MAX: usize = 8;

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 8;

/// How long it is until names are looked up again, at first and at last.
const LOOK_UP_WAIT_MIN: Duration = Duration::from_secs(30);
/// See [`LOOK_UP_WAIT_MIN`].
const LOOK_UP_WAIT_MAX: Duration = Duration::from_secs(3600);

/// Addresses that names of links led to, waiting for the engine.
const NAMED_MAX: usize = 64;

/// A torrent whose metadata is being looked for.
pub struct Pending {
    /// The link.
    pub link: Arc<Magnet>,
    /// How far its worker is.
    pub progress: Arc<MetadataProgress>,
    pub(super) totals: Arc<Totals>,
    pub(super) home: usize,
}

/// Where the names of links are looked up.
pub(super) struct Names {
    turns: Arc<Semaphore>,
    sender: mpsc::Sender<(InfoHash, Vec<SocketAddr>)>,
    pub(super) found: mpsc::Receiver<(InfoHash, Vec<SocketAddr>)>,
}

impl Names {
    pub(super) fn new() -> Self {
        let (sender, found) = mpsc::channel(NAMED_MAX);
        Self { turns: Arc::new(Semaphore::new(LOOK_UPS_MAX)), sender, found }
    }
}

impl Engine {
    /// Looks for the metadata of a link; `peers` are asked beside those that it names. Then comes
    /// [`Event::Metadata`] or [`Event::Unusable`], once.
    ///
    /// # Errors
    /// The torrent is here already, or is being looked for.
    pub fn add_magnet(
        &mut self,
        link: Magnet,
        peers: Vec<SocketAddr>,
    ) -> Result<InfoHash, AddError> {
        let info_hash = link.info_hash;
        if self.torrents.contains_key(&info_hash) || self.magnets.contains_key(&info_hash) {
            return Err(AddError::Duplicate(info_hash));
        }
        let home = self.least_loaded();
        let (link, progress) = (Arc::new(link), Arc::<MetadataProgress>::default());
        let totals = Arc::new(Totals::new(LEFT_UNKNOWN));
        self.loads[home] += 1;
        let new =
            NewMagnet { options: self.swarm_options(info_hash), progress: Arc::clone(&progress) };
        self.post(home, Letter::AddMagnet(Box::new(new)));
        self.shared.directory.insert(info_hash, home);
        if let Some(finder) = &self.finder {
            finder.seek(info_hash);
        }
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.seek(info_hash);
        }
        let urls = |tier: &[url::Url]| tier.iter().map(ToString::to_string).collect();
        let tiers: Vec<Vec<String>> = link.tiers().map(urls).collect();
        let name = link.name.as_deref().map(crate::metainfo::shown_name).unwrap_or_default();
        self.announce(info_hash, &name, &tiers, &totals);
        self.look_up_peers(&link);
        let known: Vec<_> = link.peers.iter().filter_map(PeerName::addr).collect();
        for addr in &known {
            if let Err(reason) = self.settings.policy.permits(addr.ip()) {
                tracing::warn!(torrent = %info_hash, %addr, "a peer of the link is not tried: {reason}");
            }
        }
        self.magnets.insert(info_hash, Pending { link, progress, totals, home });
        self.add_peers(&info_hash, Source::Operator, peers);
        self.add_peers(&info_hash, Source::Magnet, known);
        Ok(info_hash)
    }

    /// A torrent whose metadata is being looked for, or waits to be added.
    pub fn magnet(&self, info_hash: &InfoHash) -> Option<&Pending> {
        self.magnets.get(info_hash)
    }

    /// How many torrents are without metadata.
    pub fn magnet_count(&self) -> usize {
        self.magnets.len()
    }

    /// Looks no more for the metadata of a link.
    pub fn remove_magnet(&mut self, info_hash: &InfoHash) {
        if let Some(pending) = self.magnets.remove(info_hash) {
            self.leave_home(info_hash, pending.home);
        }
    }

    /// The metadata of a link came; its SHA-1 is the info-hash.
    pub(super) fn on_metadata(&mut self, info_hash: InfoHash, info: &[u8]) -> Option<Event> {
        let pending = self.magnets.get(&info_hash)?;
        let home = pending.home;
        match pending.link.metainfo(info) {
            Ok(metainfo) => {
                self.keep_private(&metainfo, home);
                self.cells.metadata_fetches[MetadataResult::Ok].add(1);
                Some(Event::Metadata(Box::new(metainfo)))
            }
            Err(error) => {
                self.cells.metadata_fetches[MetadataResult::Unusable].add(1);
                self.remove_magnet(&info_hash);
                Some(Event::Unusable(info_hash, error.to_string()))
            }
        }
    }

    /// A torrent that was looked for is here: it keeps its home, and its trackers where they are the
    /// same.
    pub(super) fn end_magnet(&mut self, metainfo: &Metainfo) {
        let Some(pending) = self.magnets.remove(&metainfo.info_hash) else { return };
        self.keep_private(metainfo, pending.home);
        pending.totals.left.store(metainfo.geometry.total_len(), Relaxed);
        if !pending.link.tiers().eq(metainfo.trackers.iter().map(Vec::as_slice)) {
            self.trackers.remove(metainfo.info_hash);
        }
    }

    /// The torrent of a link is known: if it is private (BEP 27), nobody is told of it any more, and
    /// strangers go at once, however long its check takes.
    fn keep_private(&mut self, metainfo: &Metainfo, home: usize) {
        if !metainfo.private {
            return;
        }
        if let Some(finder) = &self.finder {
            finder.remove(metainfo.info_hash);
        }
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.remove(&metainfo.info_hash);
        }
        self.post(home, Letter::Private(metainfo.info_hash));
    }

    /// The worker that has the fewest torrents.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.loads.len()).min_by_key(|&worker| self.loads[worker]).unwrap_or(0)
    }

    /// How the peers of a torrent are met, as far as that is the same for all.
    pub(super) fn swarm_options(&self, info_hash: InfoHash) -> swarm::Options {
        swarm::Options {
            seed: fastrand::u64(..),
            info_hash,
            peer_id: self.shared.peer_id,
            listen_port: self.peer_addrs().first().map(SocketAddr::port),
            dht_port: self.finder.as_ref().map(Finder::port),
            ..self.settings.torrent.clone()
        }
    }

    /// Announces a torrent from now on, unless it is announced already.
    pub(super) fn announce(
        &self,
        info_hash: InfoHash,
        name: &str,
        tiers: &[Vec<String>],
        totals: &Arc<Totals>,
    ) {
        let totals = Arc::clone(totals);
        let source = move || tracker::Totals {
            uploaded: totals.uploaded.load(Relaxed),
            downloaded: totals.downloaded.load(Relaxed),
            left: totals.left.load(Relaxed),
        };
        match self.trackers.add(info_hash, tiers, Arc::new(source)) {
            // It was when it had no metadata yet.
            Ok(()) | Err(tracker::scheduler::AddError::Duplicate) => {}
            Err(error) => {
                tracing::warn!(torrent = %info_hash, %name, %error, "not announced");
            }
        }
    }

    /// Has the names among the peers of a link looked up.
    fn look_up_peers(&self, link: &Arc<Magnet>) {
        if link.peers.iter().all(|peer| peer.addr().is_some()) {
            return;
        }
        let (turns, sender) = (Arc::clone(&self.names.turns), self.names.sender.clone());
        tokio::spawn(look_up(Arc::downgrade(link), turns, sender, LOOK_UP_WAIT_MIN));
    }
}

/// Looks the peers of a link up that are named, again and again after `wait` and longer, because a name may come to mean
/// another host, until nobody needs the link any more.
async fn look_up(
    link: Weak<Magnet>,
    turns: Arc<Semaphore>,
    sender: mpsc::Sender<(InfoHash, Vec<SocketAddr>)>,
    mut wait: Duration,
) {
    let Some((info_hash, names)) = link.upgrade().map(|link| {
        let named = link.peers.iter().filter(|peer| peer.addr().is_none());
        (link.info_hash, named.map(|peer| (peer.host.to_string(), peer.port)).collect::<Vec<_>>())
    }) else {
        return;
    };
    loop {
        for (host, port) in &names {
            // It is never closed.
            let turn = turns.acquire().await;
            let found = tokio::net::lookup_host((host.as_str(), *port)).await;
            let found = found.map(|addrs| addrs.take(ADDRESSES_MAX).collect::<Vec<_>>());
            drop(turn);
            if link.strong_count() == 0 {
                return;
            }
            match found {
                // The swarm judges them, as it does all addresses.
                Ok(addrs) => {
                    if sender.send((info_hash, addrs)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!(torrent = %info_hash, host, %error, "cannot look up a peer");
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_UP_WAIT_MAX);
        if link.strong_count() == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_are_looked_up_as_long_as_the_link_is_needed() {
        let link = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567\
                    &x.pe=localhost:7000&x.pe=no.such.name.invalid:1";
        let link = Arc::new(Magnet::parse(link).unwrap());
        let (sender, mut found) = mpsc::channel(1);
        let turns = Arc::new(Semaphore::new(1));
        let wait = Duration::from_millis(1);
        let task = tokio::spawn(look_up(Arc::downgrade(&link), turns, sender, wait));
        for _ in 0..3 {
            let (info_hash, addrs) = found.recv().await.unwrap();
            assert_eq!(info_hash, link.info_hash);
            assert!(addrs.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 7000));
        }
        drop(link);
        while found.recv().await.is_some() {}
        task.await.unwrap();
    }
}
