//! Torrents of which no more than the info-hash is known, on their home worker: connections on one
//! side, [`MagnetSwarm`] on the other.
//!
//! A letter and peers enter; the `info` dictionary leaves in a report. When the torrent is added,
//! its swarm takes the connections over. Invariant: all torrents without metadata together have at
//! most one connection in [`CONNS_SHARE`], so that they take no place from those that have
//! something to share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::connection::{Conn, MagnetPeer, Peer, Phase, Subject};
use super::fetch::{PROGRESS_INTERVAL, why_closed};
use super::mailbox::{MetadataProgress, NewMagnet, Report};
use super::table::{Key, Table};
use super::{Timer, Worker};
use crate::metrics::{Direction, DisconnectReason, HandshakeResult};
use crate::ring::{Batch, Driver};
use crate::swarm::{
    Carried, MagnetAction, MagnetSwarm, Options, PeerKey, Source, Swarm, TURNOVER_PAUSE,
};
use crate::units::{Bitfield, Geometry, InfoHash};
use crate::wire::Incoming;

/// Of the connections of a worker, one in so many may be about torrents without metadata.
const CONNS_SHARE: usize = 4;

/// One torrent without metadata.
pub(super) struct Magnet {
    pub(super) info_hash: InfoHash,
    pub(super) swarm: MagnetSwarm,
    /// The connection of each peer, by the machine's slot.
    conns: Vec<Option<Key>>,
    /// When the machine's timer on the wheel fires.
    timer_at: Option<Instant>,
    is_dirty: bool,
    progress: Arc<MetadataProgress>,
}

/// What becomes of the connections of a torrent whose metadata came.
pub(super) struct CarriedConns {
    magnet: Key,
    geometry: Geometry,
    conns: Vec<(Key, Carried)>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Magnets {
    table: Table<Magnet>,
    by_hash: HashMap<InfoHash, Key>,
    /// Those to look at before the turn ends.
    dirty: Vec<Key>,
    conn_count: usize,
    /// When their peers were last asked to make room for each other.
    turned_over_at: Option<Instant>,
}

impl Magnets {
    /// The one with this key.
    pub(super) fn get(&self, key: Key) -> Option<&Magnet> {
        self.table.get(key)
    }

    /// The one with this key.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Magnet> {
        self.table.get_mut(key)
    }

    /// The key of the one with this info-hash.
    pub(super) fn find(&self, info_hash: &InfoHash) -> Option<Key> {
        self.by_hash.get(info_hash).copied()
    }

    /// Connections with peers of all of them.
    pub(super) fn conn_count(&self) -> usize {
        self.conn_count
    }

    fn remove(&mut self, info_hash: &InfoHash) -> Option<(Key, Magnet)> {
        let key = self.by_hash.remove(info_hash)?;
        Some((key, self.table.remove(key)?))
    }
}

impl Magnet {
    fn conn_of(&self, peer: PeerKey) -> Option<Key> {
        self.conns.get(peer.0 as usize).copied().flatten()
    }

    /// Writes what others read.
    fn publish(&self) {
        let (blocks, blocks_all) = self.swarm.progress();
        self.progress.peers.store(self.swarm.peer_count() as u64, Relaxed);
        self.progress.sources.store(self.swarm.source_count() as u64, Relaxed);
        self.progress.blocks.store(blocks.into(), Relaxed);
        self.progress.blocks_all.store(blocks_all.into(), Relaxed);
        self.progress.accepted.store(self.swarm.accepted(), Relaxed);
    }
}

/// A torrent that was without metadata until now, and its key.
pub(super) struct Known {
    key: Key,
    magnet: Magnet,
}

impl Known {
    /// Its swarm, and what becomes of its connections: for [`Worker::carry_over`].
    pub(super) fn into_swarm(
        self,
        now: Instant,
        geometry: Geometry,
        have: Bitfield,
        options: Options,
    ) -> (Swarm, Option<CarriedConns>) {
        let Magnet { swarm, conns, .. } = self.magnet;
        let (swarm, carried) = swarm.into_swarm(now, geometry, have, options);
        let conn_of = |peer: PeerKey| conns.get(peer.0 as usize).copied().flatten();
        let conns = carried.into_iter().filter_map(|it| Some((conn_of(it.0)?, it))).collect();
        (swarm, Some(CarriedConns { magnet: self.key, geometry, conns }))
    }
}

impl<D: Driver> Worker<D> {
    pub(super) fn add_magnet(&mut self, new: NewMagnet) {
        let NewMagnet { options, progress } = new;
        let info_hash = options.info_hash;
        let is_here = self.by_hash.contains_key(&info_hash);
        if is_here || self.magnets.find(&info_hash).is_some() || self.stopping.is_some() {
            return;
        }
        let swarm = MagnetSwarm::new(options, Rc::clone(&self.budget));
        let (conns, timer_at, is_dirty) = (Vec::new(), None, false);
        let magnet = Magnet { info_hash, swarm, conns, timer_at, is_dirty, progress };
        let key = self.magnets.table.insert(magnet);
        self.magnets.by_hash.insert(info_hash, key);
    }

    /// Whether torrents without metadata may have one more connection.
    pub(super) fn has_room_for_magnets(&self) -> bool {
        self.magnets.conn_count < self.options.connections_max.div_ceil(CONNS_SHARE)
    }

    /// Has the peers that are of no use give way, whichever torrent they are for: a few torrents
    /// must not keep all others waiting. What comes free is free in a moment, not now.
    pub(super) fn make_room_for_magnets(&mut self) -> bool {
        let now = self.now;
        let is_soon = |at: Instant| now.saturating_duration_since(at) < TURNOVER_PAUSE;
        if !self.magnets.turned_over_at.is_some_and(is_soon) {
            self.magnets.turned_over_at = Some(now);
            for key in self.magnets.table.keys() {
                if let Some(magnet) = self.magnets.get_mut(key) {
                    magnet.swarm.close_silent(now);
                    self.touch_magnet(key);
                }
            }
        }
        false
    }

    /// Has those give memory up that are missed least, while torrents without metadata together
    /// have too much.
    fn shed_metadata(&mut self) {
        while self.budget.has_too_much_metadata() {
            let worth = |key: &Key| self.magnets.get(*key)?.swarm.least_worth();
            let holding = self.magnets.table.keys().into_iter();
            let least = holding.filter_map(|key| Some((worth(&key)?, key)));
            let Some((_, key)) = least.min_by(|(one, _), (other, _)| one.cmp(other)) else {
                return;
            };
            if let Some(magnet) = self.magnets.get_mut(key) {
                tracing::debug!(torrent = %magnet.info_hash, "metadata dropped for want of memory");
                magnet.swarm.drop_least(self.now);
                self.touch_magnet(key);
            }
        }
    }

    /// A torrent without metadata turned out to be private: whoever must not be its peer goes, and
    /// whoever is being tried.
    pub(super) fn make_private(&mut self, info_hash: &InfoHash) {
        let Some(key) = self.magnets.find(info_hash) else { return };
        if let Some(magnet) = self.magnets.get_mut(key) {
            magnet.swarm.make_private();
        }
        self.touch_magnet(key);
        self.give_up_strangers(Subject::Magnet(key));
    }

    /// Ends the connections under way with whom a private torrent must not connect to.
    fn give_up_strangers(&mut self, subject: Subject) {
        let expects = |addr| match subject {
            Subject::Torrent(key) => {
                self.torrents.get(key).is_some_and(|it| it.swarm.expects(addr))
            }
            Subject::Magnet(key) => self.magnets.get(key).is_some_and(|it| it.swarm.expects(addr)),
        };
        let is_stranger = |conn: &Conn| match conn.phase {
            Phase::Connecting { torrent } | Phase::Outgoing { torrent, .. } => {
                torrent == subject && !expects(conn.addr)
            }
            _ => false,
        };
        let keys = self.conns.keys().into_iter();
        let strangers: Vec<Key> =
            keys.filter(|&key| self.conns.get(key).is_some_and(is_stranger)).collect();
        strangers.into_iter().for_each(|key| self.give_up(key, HandshakeResult::Refused));
    }

    pub(super) fn add_magnet_contacts(
        &mut self,
        info_hash: &InfoHash,
        source: Source,
        addrs: &[SocketAddr],
    ) {
        let Some(key) = self.magnets.find(info_hash) else { return };
        if let Some(magnet) = self.magnets.get_mut(key) {
            magnet.swarm.handle_contacts(self.now, source, addrs);
            self.touch_magnet(key);
        }
    }

    pub(super) fn touch_magnet(&mut self, key: Key) {
        if let Some(magnet) = self.magnets.get_mut(key)
            && !std::mem::replace(&mut magnet.is_dirty, true)
        {
            self.magnets.dirty.push(key);
        }
    }

    /// Notes the connection of a new peer.
    pub(super) fn enter_magnet(&mut self, key: Key, peer: PeerKey, conn: Key) {
        let Some(magnet) = self.magnets.get_mut(key) else { return };
        let slot = peer.0 as usize;
        if magnet.conns.len() <= slot {
            magnet.conns.resize(slot + 1, None);
        }
        magnet.conns[slot] = Some(conn);
        self.magnets.conn_count += 1;
    }

    /// Forgets the connection of a peer that is gone.
    pub(super) fn leave_magnet(&mut self, key: Key, peer: PeerKey) {
        self.magnets.conn_count -= 1;
        let Some(magnet) = self.magnets.get_mut(key) else { return };
        if let Some(conn) = magnet.conns.get_mut(peer.0 as usize) {
            *conn = None;
        }
        magnet.swarm.handle_disconnected(self.now, peer);
        self.touch_magnet(key);
    }

    /// Gives received bytes to a peer, and asks for more.
    pub(super) fn feed_magnet(&mut self, key: Key, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let is_watched = conn.is_watched;
        let Phase::Magnet(peer) = &mut conn.phase else { return };
        let (magnet_key, now) = (peer.magnet, self.now);
        let Some(magnet) = self.magnets.get_mut(magnet_key) else { return };
        let mut input = bytes;
        let failed = loop {
            match peer.decoder.decode(&mut input) {
                Ok(None) => break None,
                Ok(Some(Incoming::Message(message))) => {
                    if let Err(error) = magnet.swarm.handle_message(now, peer.key, message) {
                        break Some(why_closed(&error));
                    }
                }
                // Nobody was asked for a block.
                Ok(Some(Incoming::Payload { .. })) => break Some(DisconnectReason::Protocol),
                Err(error) => {
                    tracing::debug!(%error, "the peer broke the protocol");
                    break Some(DisconnectReason::Protocol);
                }
            }
        };
        let watch = peer.decoder.progress().filter(|_| !is_watched);
        self.core.protocol_bytes[Direction::Incoming].add(bytes.len() as u64);
        self.shed_metadata();
        self.touch_magnet(magnet_key);
        if let Some(reason) = failed {
            return self.close(key, reason);
        }
        if let Some(progress) = watch {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.is_watched = true;
            }
            self.timers.set(now + PROGRESS_INTERVAL, Timer::Progress(key, progress));
        }
        self.receive(key);
    }

    /// Adds what waits for a peer to a batch; there is never a block among it.
    pub(super) fn fill_for_magnet(&mut self, key: Key, batch: &mut Batch) -> (u64, u64) {
        let Some(conn) = self.conns.get_mut(key) else { return (0, 0) };
        let Phase::Magnet(MagnetPeer { magnet, key: peer, .. }) = conn.phase else {
            return (0, 0);
        };
        let Some(magnet) = self.magnets.get_mut(magnet) else { return (0, 0) };
        self.scratch.control.clear();
        magnet.swarm.poll_transmit(self.now, peer, &mut self.scratch.control);
        // One part more than the handshake.
        let _ = batch.push_bytes(&self.scratch.control);
        self.core.protocol_bytes[Direction::Outgoing].add(self.scratch.control.len() as u64);
        (0, 0)
    }

    /// Carries out what the machines have decided that something happened to.
    pub(super) fn act_on_magnets(&mut self) {
        while let Some(key) = self.magnets.dirty.pop() {
            if let Some(magnet) = self.magnets.get_mut(key) {
                magnet.is_dirty = false;
            }
            self.act_on_magnet(key);
        }
    }

    fn act_on_magnet(&mut self, key: Key) {
        loop {
            let Some(magnet) = self.magnets.get_mut(key) else { return };
            let Some(action) = magnet.swarm.poll_action() else { break };
            match action {
                MagnetAction::Transmit(peer) => {
                    if let Some(conn) = magnet.conn_of(peer) {
                        self.touch_conn(conn);
                    }
                }
                MagnetAction::Close(peer, reason) => {
                    if let Some(conn) = magnet.conn_of(peer) {
                        self.close(conn, why_closed(&reason));
                    }
                }
                MagnetAction::Connect(addr) => self.connect(Subject::Magnet(key), addr),
                MagnetAction::Node(addr) => self.tell_node(addr),
                MagnetAction::Ban(offender, until) => {
                    let info_hash = magnet.info_hash;
                    tracing::warn!(
                        ?offender, torrent = %info_hash,
                        "peer banned: it sent bad metadata"
                    );
                    self.reports.push_back(Report::Banned(offender, until));
                }
                MagnetAction::Metadata(info) => {
                    let info_hash = magnet.info_hash;
                    self.reports.push_back(Report::Metadata(info_hash, info));
                }
            }
        }
        let Some(magnet) = self.magnets.get_mut(key) else { return };
        magnet.publish();
        let Some(at) = magnet.swarm.poll_timeout() else { return };
        if magnet.timer_at.is_none_or(|set| at < set) {
            magnet.timer_at = Some(at);
            self.timers.set(at, Timer::Magnet(key));
        }
    }

    /// Somebody was banned, wherever that was.
    pub(super) fn ban_from_magnets(&mut self) {
        for key in self.magnets.table.keys() {
            if let Some(magnet) = self.magnets.get_mut(key) {
                magnet.swarm.handle_bans(self.now);
                self.touch_magnet(key);
            }
        }
    }

    /// The list of whom nobody has to do with was changed.
    pub(super) fn block_from_magnets(&mut self) {
        for key in self.magnets.table.keys() {
            if let Some(magnet) = self.magnets.get_mut(key) {
                magnet.swarm.handle_blocklist();
                self.touch_magnet(key);
            }
        }
    }

    pub(super) fn on_magnet_timer(&mut self, key: Key) {
        let Some(magnet) = self.magnets.get_mut(key) else { return };
        // A timer that was set again for an earlier time leaves its old place on the wheel.
        if magnet.timer_at.is_some_and(|at| at <= self.now) {
            magnet.timer_at = None;
            magnet.swarm.handle_timeout(self.now);
        }
        self.touch_magnet(key);
    }

    /// Takes a torrent whose metadata came out of the table. Its connections are nobody's until
    /// they are carried over.
    pub(super) fn take_magnet(&mut self, info_hash: &InfoHash) -> Option<Known> {
        let key = self.magnets.find(info_hash)?;
        // Connections that it has decided to begin are begun: the swarm waits for what comes of them.
        self.act_on_magnet(key);
        let (key, magnet) = self.magnets.remove(info_hash)?;
        Some(Known { key, magnet })
    }

    /// Gives the connections of a torrent that was without metadata to the torrent that it is.
    pub(super) fn carry_over(&mut self, carried: CarriedConns, torrent: Key) {
        let CarriedConns { magnet, geometry, conns } = carried;
        for (conn_key, (_, taken)) in conns {
            let peer_key = match taken {
                Ok(peer_key) => peer_key,
                Err(error) => {
                    self.close(conn_key, why_closed(&error));
                    continue;
                }
            };
            let Some(conn) = self.conns.get_mut(conn_key) else { continue };
            let before = std::mem::replace(
                &mut conn.phase,
                Phase::Connecting { torrent: Subject::Torrent(torrent) },
            );
            let Phase::Magnet(MagnetPeer { mut decoder, .. }) = before else {
                conn.phase = before;
                continue;
            };
            decoder.set_piece_count(geometry.piece_count());
            conn.phase = Phase::Peer(Peer::new(torrent, peer_key, decoder));
            self.magnets.conn_count -= 1;
            self.enter_torrent(torrent, peer_key, conn_key);
            self.touch_conn(conn_key);
        }
        // What is under way is under way for the torrent.
        for key in self.conns.keys() {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            match &mut conn.phase {
                Phase::Connecting { torrent: subject }
                | Phase::Outgoing { torrent: subject, .. }
                    if *subject == Subject::Magnet(magnet) =>
                {
                    *subject = Subject::Torrent(torrent);
                }
                _ => {}
            }
        }
        self.give_up_strangers(Subject::Torrent(torrent));
    }

    /// Forgets a torrent without metadata, if there is one.
    pub(super) fn remove_magnet(&mut self, info_hash: &InfoHash) {
        let Some((_, magnet)) = self.magnets.remove(info_hash) else { return };
        for conn in magnet.conns.into_iter().flatten() {
            self.close(conn, DisconnectReason::TorrentStopped);
        }
    }
}
