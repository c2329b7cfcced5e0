//! Who has a place among the peers of a magnet link: who gets one, who gives way, and who must not
//! have one once the torrent turns out to be private.
//!
//! Handshaken connections and claims of need enter; refusals and closings leave. Invariant: at most
//! [`MAGNET_PEERS_MAX`] peers have a place, and nobody keeps one from others by promises alone.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{MAGNET_PEERS_MAX, MagnetAction, MagnetSwarm, Peer};
use crate::swarm::bans::{Offender, is_local};
use crate::swarm::connect::wins_crossing;
use crate::swarm::{Error, PeerInit, PeerKey, Refused, key_of};

/// A peer that has given nothing of the metadata for this long gives way when all places are taken.
const SILENT_MAX: Duration = Duration::from_secs(30);

impl MagnetSwarm {
    pub(super) fn admit(&mut self, now: Instant, init: &PeerInit) -> Result<(), Refused> {
        let ip = init.addr.ip();
        let local = is_local(ip);
        let others = || self.peers.iter().map(|(_, peer)| &peer.init);
        if init.peer_id == self.options.peer_id {
            return Err(Refused::Ourselves);
        }
        if self.shared.blocks(ip) {
            return Err(Refused::Blocked);
        }
        if self.shared.is_banned(now, init.addr) {
            return Err(Refused::Banned);
        }
        let is_welcome = || self.options.welcomes(ip) || self.contacts.is_neighbour(ip);
        if local && !init.outgoing && !is_welcome() {
            return Err(Refused::LocalAddress);
        }
        if others().any(|other| other.addr == init.addr) {
            return Err(Refused::Duplicate);
        }
        let host = Offender::of(init.addr);
        // Whoever has the id of another one, and comes from elsewhere, may have stolen it, or been
        // robbed of it: nobody is kept out for that.
        let is_same = |other: &PeerInit| {
            let is_there = other.addr.ip() == ip || Offender::of(other.addr) == host;
            other.peer_id == init.peer_id && is_there
        };
        let twin = self.peers.iter().find(|(_, peer)| is_same(&peer.init));
        if let Some((slot, peer)) = twin {
            let age = now.saturating_duration_since(peer.connected_at);
            if !wins_crossing(&self.options.peer_id, init, peer.init.outgoing, age) {
                return Err(Refused::Duplicate);
            }
            self.close(key_of(slot), Error::Replaced);
        }
        let others = || self.peers.iter().map(|(_, peer)| &peer.init);
        let from_there = others().filter(|other| Offender::of(other.addr) == host).count();
        if !local && from_there >= self.options.connections_per_host_max {
            return Err(Refused::FullForAddress);
        }
        // Whoever was closed for being of no use, and comes back at once, must not be faster than
        // those who are tried in its place.
        let is_bad = !init.outgoing && self.fetch.has_faults(&host);
        let kept = if is_bad { self.contacts.trying_count() } else { 0 };
        if self.peers.len() + kept >= self.peers_max() {
            self.close_silent(now);
            return Err(Refused::Full);
        }
        Ok(())
    }

    pub(super) fn peers_max(&self) -> usize {
        self.options.connections_max.min(MAGNET_PEERS_MAX)
    }

    /// Peers without metadata make room for others; if there are none, the one that is least likely
    /// to have what it claims to.
    pub fn close_silent(&mut self, now: Instant) {
        if self.is_done {
            return;
        }
        let is_old = |peer: &Peer| {
            !peer.closing && now.saturating_duration_since(peer.connected_at) >= SILENT_MAX
        };
        let old = self.peers.iter().filter(|(_, peer)| is_old(peer));
        let old: Vec<PeerKey> = old.map(|(slot, _)| key_of(slot)).collect();
        let silent: Vec<PeerKey> =
            old.iter().copied().filter(|&key| !self.fetch.is_source(key)).collect();
        if silent.is_empty() {
            let judged = old.iter().filter_map(|&key| Some((self.fetch.uselessness(key)?, key)));
            if let Some((_, worst)) = judged.max() {
                self.close(worst, Error::Idle);
            }
        }
        silent.into_iter().for_each(|key| self.close(key, Error::Idle));
    }

    /// The torrent turned out to be private (BEP 27), before its swarm is made: whoever was learnt
    /// in a way that does not suit it is forgotten and closed.
    pub fn make_private(&mut self) {
        self.options.private = true;
        for key in self.keys() {
            let Some(peer) = self.peers.get(key.0 as usize) else { continue };
            if peer.init.outgoing && !self.contacts.suits_private(peer.init.addr) {
                self.close(key, Error::Private);
            }
        }
        self.contacts.forget_strangers();
        let contacts = &self.contacts;
        self.actions.retain(|action| match action {
            MagnetAction::Connect(addr) => contacts.suits_private(*addr),
            _ => true,
        });
    }

    /// Whether a connection with `addr`, begun by us, may go on as far as privacy is concerned.
    pub fn expects(&self, addr: SocketAddr) -> bool {
        !self.options.private || self.contacts.suits_private(addr)
    }

    /// How little the metadata that it holds would be missed, if it holds any: as low as can be
    /// goes first, see [`crate::swarm::Shared::has_too_much_metadata`].
    pub fn least_worth(&self) -> Option<impl Ord + use<>> {
        self.fetch.least_worth()
    }

    /// Gives that part of the metadata up.
    pub fn drop_least(&mut self, now: Instant) {
        self.fetch.drop_least(now);
        self.go_on(now);
    }
}
