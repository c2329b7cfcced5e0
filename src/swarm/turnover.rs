//! Who gives way when every place is taken: peers with whom nothing has moved for long.
//!
//! A moment enters; the peers that may go leave, those that would be missed least first. Without
//! this whoever fills all places and says no more than that it is alive would keep everybody else
//! out. Invariant: a peer that waits for its turn, that we owe blocks to, or with whom a block is
//! under way never gives way.
#![forbid(unsafe_code)]

use super::peer::{Error, Peer, PeerKey};
use super::{Swarm, key_of};
use std::time::{Duration, Instant};

/// One in so many of all peers gives way at a time, so that newcomers in a row find room.
pub const TURNOVER_SHARE: usize = 25;

/// How long it is before all peers are looked through again: a flood of newcomers finds nobody else
/// in between.
pub const TURNOVER_PAUSE: Duration = Duration::from_secs(1);

/// A peer that may give way. The least is the one that is missed least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct IdlePeer {
    /// Whether one side wants something of the other.
    pub is_of_interest: bool,
    /// Since when no payload has moved between us.
    pub since: Instant,
    /// Who it is.
    pub key: PeerKey,
}

impl Swarm {
    /// Peers with whom nothing has moved for `Options::idle_min`.
    pub fn idle_peers(&self, now: Instant) -> impl Iterator<Item = IdlePeer> {
        self.peers.iter().filter_map(move |(slot, peer)| {
            let since = peer.idle_since()?;
            let is_idle = now.saturating_duration_since(since) >= self.options.idle_min;
            let is_of_interest = peer.am_interested || peer.peer_interested;
            is_idle.then(|| IdlePeer { is_of_interest, since, key: key_of(slot) })
        })
    }

    /// Has idle peers closed for one that comes. False if there are none.
    pub(super) fn make_room(&mut self, now: Instant) -> bool {
        if self.next_turnover.is_some_and(|at| now < at) {
            return false;
        }
        self.next_turnover = Some(now + TURNOVER_PAUSE);
        let mut idle: Vec<_> = self.idle_peers(now).collect();
        idle.sort_unstable();
        idle.truncate(self.peers.len().div_ceil(TURNOVER_SHARE));
        for peer in &idle {
            self.close(peer.key, Error::Idle);
        }
        !idle.is_empty()
    }
}

impl Peer {
    /// Since when nothing has moved; `None` while something is under way or it waits for its turn.
    fn idle_since(&self) -> Option<Instant> {
        let waits = self.peer_interested && self.am_choking;
        if waits || self.closing || self.receiving.is_some() || !self.queue.is_empty() {
            return None;
        }
        let moved = [Some(self.last_block_at), self.last_served_at, self.unchoked_at];
        moved.into_iter().flatten().max()
    }
}
