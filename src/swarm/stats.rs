//! What can be counted: for metrics, for the control plane, for tests.
//!
//! Plain values, made on demand. Invariant: totals only grow.
#![forbid(unsafe_code)]

use super::choker::Phase;
use super::contacts::{SOURCE_COUNT, Source};
use super::peer::{Peer, PeerKey};
use super::{Swarm, key_of};
use crate::units::{Bitfield, PeerId};
use std::net::SocketAddr;
use std::time::Instant;

/// Sums since the swarm was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Payload bytes that connections took.
    pub uploaded: u64,
    /// Payload bytes stored.
    pub downloaded: u64,
    /// Payload bytes of pieces whose hash was wrong.
    pub corrupt: u64,
    /// Pieces whose hash was wrong.
    pub pieces_bad: u64,
    /// Pieces whose hash was right.
    pub pieces_good: u64,
    /// Peers banned.
    pub banned: u64,
    /// Times that a peer became snubbed.
    pub snubbed: u64,
    /// Blocks asked from a second or third peer.
    pub endgame_requests: u64,
    /// Requests refused because the peer's queue was full.
    pub requests_overflowed: u64,
}

/// A moment of the whole swarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Connected peers.
    pub peers: u32,
    /// Peers that have everything or want nothing.
    pub seeds: u32,
    /// Peers that want something of ours.
    pub interested: u32,
    /// Peers that we do not choke.
    pub unchoked: u32,
    /// Peers that we want something of.
    pub interesting: u32,
    /// Of those, the ones that choke us.
    pub choking_us: u32,
    /// Peers that owe us blocks and do not send.
    pub snubbed: u32,
    /// Blocks that peers wait for.
    pub requests_in: u64,
    /// Blocks that we wait for.
    pub requests_out: u64,
    /// Pieces under way.
    pub partial_pieces: u32,
    /// Addresses known and not connected included.
    pub contacts: u32,
    /// Connections being tried.
    pub half_open: u32,
    /// Payload bytes per second sent.
    pub up_rate: u64,
    /// Payload bytes per second stored.
    pub down_rate: u64,
    /// Which choker decides.
    pub phase: Phase,
}

/// A moment of one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStats {
    /// Its key.
    pub key: PeerKey,
    /// Where it is.
    pub addr: SocketAddr,
    /// How it names itself.
    pub peer_id: PeerId,
    /// Who told us of it.
    pub source: Source,
    /// We connected to it.
    pub outgoing: bool,
    /// We choke it.
    pub am_choking: bool,
    /// We want something of it.
    pub am_interested: bool,
    /// It chokes us.
    pub peer_choking: bool,
    /// It wants something of ours.
    pub peer_interested: bool,
    /// It owes us blocks and does not send.
    pub snubbed: bool,
    /// It has everything or wants nothing.
    pub is_seed: bool,
    /// Pieces that it has.
    pub piece_count: u32,
    /// Blocks that it waits for.
    pub requests_in: u32,
    /// Blocks that we wait for.
    pub requests_out: u32,
    /// Payload bytes sent to it.
    pub uploaded: u64,
    /// Payload bytes stored from it.
    pub downloaded: u64,
    /// Payload bytes per second sent to it.
    pub up_rate: u64,
    /// Payload bytes per second stored from it.
    pub down_rate: u64,
}

impl Swarm {
    /// Sums since the swarm was made.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Peers that are connected.
    pub fn peer_count(&self) -> u32 {
        count(self.peers.len())
    }

    /// A moment of the whole swarm; takes time in proportion to its peers.
    pub fn stats(&self, now: Instant) -> Stats {
        let peers = || self.peers.iter().map(|(_, peer)| peer);
        let those = |is: fn(&Peer) -> bool| count(peers().filter(|peer| is(peer)).count());
        Stats {
            peers: self.peer_count(),
            seeds: those(Peer::is_seed),
            interested: self.counts.interested,
            unchoked: self.counts.unchoked,
            interesting: self.counts.interesting,
            choking_us: those(|peer| peer.am_interested && peer.peer_choking),
            snubbed: those(|peer| peer.snubbed),
            requests_in: peers().map(|peer| peer.queue.len() as u64).sum(),
            requests_out: peers().map(|peer| peer.asked.len() as u64).sum(),
            partial_pieces: count(self.partials.len()),
            contacts: count(self.contacts.len()),
            half_open: count(self.contacts.trying_count()),
            up_rate: self.up_meter.rate(now),
            down_rate: self.down_meter.rate(now),
            phase: if self.is_finished() { Phase::Seeding } else { Phase::Leeching },
        }
    }

    /// A moment of one peer.
    pub fn peer_stats(&self, now: Instant, key: PeerKey) -> Option<PeerStats> {
        let peer = self.peer(key)?;
        Some(PeerStats {
            key,
            addr: peer.addr,
            peer_id: peer.id,
            source: peer.source,
            outgoing: peer.outgoing,
            am_choking: peer.am_choking,
            am_interested: peer.am_interested,
            peer_choking: peer.peer_choking,
            peer_interested: peer.peer_interested,
            snubbed: peer.snubbed,
            is_seed: peer.is_seed(),
            piece_count: peer.pieces.count(self.geometry.piece_count()),
            requests_in: count(peer.queue.len()),
            requests_out: count(peer.asked.len()),
            uploaded: peer.uploaded,
            downloaded: peer.downloaded,
            up_rate: peer.up.rate(now),
            down_rate: peer.down.rate(now),
        })
    }

    /// Addresses that are known, and peers that are connected, for each of [`Source::ALL`]. An
    /// address that several sources have named counts for each, a peer for the most trusted one.
    pub fn by_source(&self) -> [(usize, usize); SOURCE_COUNT] {
        let mut counts = self.contacts.by_source().map(|known| (known, 0));
        for (_, peer) in &self.peers {
            counts[peer.source as usize].1 += 1;
        }
        counts
    }

    /// The peers, in the order of their keys.
    pub fn peers(&self) -> impl Iterator<Item = PeerKey> + '_ {
        self.peers.iter().map(|(slot, _)| key_of(slot))
    }

    /// Pieces that are wanted, and that no connected peer and we do not have: while there are some,
    /// the torrent cannot be finished. Takes time in proportion to the pieces.
    pub fn unavailable_pieces(&self) -> Bitfield {
        let mut missing = Bitfield::none(self.have.len());
        let Some(availability) = self.availability.as_ref().filter(|_| self.counts.have_all == 0)
        else {
            return missing;
        };
        for piece in (0..self.have.len()).map(crate::units::PieceIndex) {
            if self.wanted.lacks(&self.have, piece) && availability.count(piece) == 0 {
                missing.set(piece);
            }
        }
        missing
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
