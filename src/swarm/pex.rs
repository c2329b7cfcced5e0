//! Peer exchange with connected peers (BEP 11): whom we tell of whom, and what we take.
//!
//! Messages and rounds of the choker enter; messages and addresses to try leave. Invariant: a
//! private torrent sends none and takes none (BEP 27); a peer hears at most once a minute, of at
//! most [`PEX_TOLD_MAX`] peers at a time, and of each of those that it is gone; an address of local
//! scope is told only to somebody who is local, too; nothing below port 1024 is taken.
#![forbid(unsafe_code)]

use super::bans::is_local;
use super::options::{PEX_EARLY_MAX, PEX_TOLD_MAX};
use super::peer::{Error, Peer, PeerKey};
use super::{Source, Swarm};
use crate::wire::{PexMessage, pex_flags};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Between two messages to one peer.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between two messages of one peer, at least: theirs is a minute too, but the network is not even.
const INTERVAL_MIN: Duration = Duration::from_secs(45);
/// Lowest port that is taken from gossip; what listens below is no peer.
const PORT_MIN: u16 = 1024;
/// Peers that are looked at per message for some to tell of.
const SAMPLE: usize = 4 * PEX_TOLD_MAX;

/// What a peer told us, as far as it limits what it may tell.
#[derive(Default)]
pub(super) struct PexIn {
    heard_at: Option<Instant>,
    early: u32,
}

impl PexIn {
    /// The peers that a message names and that may be tried; empty if it comes too early. Seeds
    /// are among them only if we want something of them.
    pub(super) fn take(
        &mut self,
        now: Instant,
        payload: &[u8],
        wants_seeds: bool,
    ) -> Result<Vec<SocketAddr>, Error> {
        let since = self.heard_at.map(|at| now.saturating_duration_since(at));
        if since.is_some_and(|since| since < INTERVAL_MIN) {
            self.early += 1;
            return if self.early > PEX_EARLY_MAX { Err(Error::PexFlood) } else { Ok(Vec::new()) };
        }
        self.heard_at = Some(now);
        let message = PexMessage::parse(payload).map_err(|_| Error::BadPex)?;
        let wanted = |&(addr, flags): &(SocketAddr, u8)| {
            addr.port() >= PORT_MIN && (wants_seeds || flags & pex_flags::SEED == 0)
        };
        Ok(message.added.iter().filter(|named| wanted(named)).map(|(addr, _)| *addr).collect())
    }
}

/// What we told a peer.
#[derive(Default)]
pub(super) struct PexOut {
    /// Its id for `ut_pex`; 0 if it has none.
    pub(super) id: u8,
    told: Vec<SocketAddr>,
    next_at: Option<Instant>,
}

impl Swarm {
    /// Whether peers may be exchanged at all.
    pub(super) fn exchanges_peers(&self) -> bool {
        self.options.pex && !self.options.private
    }

    pub(super) fn on_pex(
        &mut self,
        now: Instant,
        key: PeerKey,
        payload: &[u8],
    ) -> Result<(), Error> {
        self.nuisance(key)?;
        let wants_seeds = !self.is_finished();
        let allowed = self.exchanges_peers();
        let Some(peer) = self.peer_mut(key).filter(|_| allowed) else { return Ok(()) };
        let addrs = peer.pex_in.take(now, payload, wants_seeds)?;
        if !addrs.is_empty() {
            self.learn(now, Source::Pex, &addrs);
        }
        Ok(())
    }

    /// Tells every peer whose minute is over what is new to it.
    pub(super) fn say_pex(&mut self, now: Instant, keys: &[PeerKey]) {
        if !self.exchanges_peers() {
            return;
        }
        for &key in keys {
            let due = self.peer(key).is_some_and(|peer| {
                peer.pex_out.id != 0 && peer.pex_out.next_at.is_none_or(|at| now >= at)
            });
            if due {
                self.say_pex_to(now, key, keys);
            }
        }
    }

    fn say_pex_to(&mut self, now: Instant, key: PeerKey, keys: &[PeerKey]) {
        let first = self.rng.usize(..keys.len().max(1));
        let Some(peer) = self.peer(key).filter(|peer| !peer.closing) else { return };
        let (itself, told) = (peer.listen_addr(), &peer.pex_out.told);
        let to_local = is_local(peer.addr.ip());
        let gone = |addr: &SocketAddr| !self.listening.contains_key(addr);
        let dropped: Vec<SocketAddr> = told.iter().copied().filter(gone).collect();
        let room = PEX_TOLD_MAX.saturating_sub(told.len() - dropped.len());
        let mut added: Vec<(SocketAddr, u8)> = Vec::new();
        // From a random place on, so that not everybody hears of the same few.
        for other in keys.iter().cycle().skip(first).take(keys.len().min(SAMPLE)) {
            if added.len() == room {
                break;
            }
            let Some(other) = self.peer(*other).filter(|other| !other.closing) else { continue };
            let Some(addr) = other.listen_addr().filter(|addr| Some(*addr) != itself) else {
                continue;
            };
            let is_new = !told.contains(&addr) && added.iter().all(|(other, _)| *other != addr);
            if is_new && (to_local || !is_local(addr.ip())) && addr.port() >= PORT_MIN {
                added.push((addr, other.pex_flags()));
            }
        }
        if added.is_empty() && dropped.is_empty() {
            return;
        }
        let Some(peer) = self.peer_mut(key) else { return };
        peer.pex_out.told.retain(|addr| !dropped.contains(addr));
        peer.pex_out.told.extend(added.iter().map(|(addr, _)| *addr));
        peer.pex_out.next_at = Some(now + INTERVAL);
        let id = peer.pex_out.id;
        PexMessage { added, dropped }.encode(id, &mut peer.control);
        self.wake(key);
    }

    /// The peer can be met under another address than before, or under one at all.
    pub(super) fn relist(&mut self, before: Option<SocketAddr>, after: Option<SocketAddr>) {
        if before == after {
            return;
        }
        if let Some(addr) = before
            && let Some(count) = self.listening.get_mut(&addr)
        {
            *count -= 1;
            if *count == 0 {
                self.listening.remove(&addr);
            }
        }
        if let Some(addr) = after {
            *self.listening.entry(addr).or_default() += 1;
        }
    }
}

impl Peer {
    /// Where others can connect to it, if we know.
    pub(super) fn listen_addr(&self) -> Option<SocketAddr> {
        let ip = self.addr.ip().to_canonical();
        let port = if self.outgoing { Some(self.addr.port()) } else { self.listen_port };
        port.map(|port| SocketAddr::new(ip, port))
    }

    fn pex_flags(&self) -> u8 {
        let seed = if self.is_seed() { pex_flags::SEED } else { 0 };
        seed | if self.outgoing { pex_flags::REACHABLE } else { 0 }
    }
}
