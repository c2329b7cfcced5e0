//! Time passing: rounds of the choker, pipelines, timeouts, signs of life, connects.
//!
//! `now` enters; everything that is due is done. Invariant: no timer runs while nobody is
//! connected and no address is to be tried.
#![forbid(unsafe_code)]

use super::options::WITHHELD_MAX;
use super::partial::Phase;
use super::peer::{Error, Peer, PeerKey};
use super::throttle::Wait;
use super::{Swarm, choker};
use crate::units::{Block, PieceIndex};
use crate::wire::Message;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

impl Swarm {
    /// Does what is due at `now`; the moment is the one of `poll_timeout`, or later.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.connect_due(now);
        self.call_throttled(now);
        if self.next_second.is_some_and(|at| now >= at) {
            self.second(now);
        }
        if self.next_round.is_some_and(|at| now >= at) {
            self.round(now);
        }
        self.settle(now);
    }

    pub(super) fn call_throttled(&mut self, now: Instant) {
        for _ in 0..self.up.due_count(now, &self.shared.up) {
            if let Some(key) = self.up.call()
                && let Some(peer) = self.peer_mut(key)
            {
                peer.up_wait = Wait::Called;
                self.wake(key);
            }
        }
        self.up.reschedule(now, &self.shared.up);
        for _ in 0..self.down.due_count(now, &self.shared.down) {
            if let Some(key) = self.down.call()
                && let Some(peer) = self.peer_mut(key)
            {
                peer.down_wait = Wait::Called;
                self.refill(now, key);
            }
        }
        self.down.reschedule(now, &self.shared.down);
    }

    /// Starts the clock that runs while there is somebody to fetch from.
    pub(super) fn start_seconds(&mut self, now: Instant) {
        if self.availability.is_some() && !self.peers.is_empty() {
            self.next_second.get_or_insert(now + SECOND);
        }
    }

    fn second(&mut self, now: Instant) {
        self.next_second = None;
        self.start_seconds(now);
        for key in self.keys() {
            if let Some(peer) = self.peer_mut(key) {
                peer.pipeline.handle_second(!peer.asked.is_empty());
                if peer.unchoke_due {
                    self.take_unchoke(now, key);
                }
            }
            self.check_progress(now, key);
        }
        self.free_suspects();
        self.retry_idle(now, usize::MAX);
        self.evict_stalled(now);
    }

    /// Snubs, takes back what was left out, closes what stalls.
    fn check_progress(&mut self, now: Instant, key: PeerKey) {
        let options = &self.options;
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        if peer.paused_at.is_some() {
            return;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        if let Some((_, at)) = peer.receiving {
            if since(at) >= options.block_timeout {
                self.close(key, Error::BlockStalled);
            }
            return;
        }
        let Some(oldest) = peer.asked.front().map(|asked| asked.at) else {
            return;
        };
        if since(oldest.max(peer.last_block_at)) >= options.snub_timeout {
            if !std::mem::replace(&mut peer.snubbed, true) {
                self.totals.snubbed += 1;
            }
            self.snub(now, key);
            return;
        }
        let limit = options.request_timeout;
        let left_out: Vec<Block> = peer
            .asked
            .iter()
            .take_while(|asked| since(asked.at) >= limit)
            .filter(|asked| asked.number < peer.answered)
            .map(|asked| asked.block)
            .collect();
        for block in left_out {
            self.take_back(key, block);
        }
    }

    /// The peer owes blocks and sends none: others get them, and it is asked for one at a time.
    fn snub(&mut self, now: Instant, key: PeerKey) {
        if let Some(peer) = self.peer_mut(key) {
            let blocks: Vec<Block> = peer.asked.iter().map(|asked| asked.block).collect();
            for block in blocks {
                peer.refuse(block.piece);
                peer.say(Message::Cancel(block));
            }
        }
        self.take_back_all(key, true);
        self.wake(key);
        self.refill(now, key);
    }

    /// One block that the peer passed over.
    fn take_back(&mut self, key: PeerKey, block: Block) {
        let Some(peer) = self.peer_mut(key) else {
            return;
        };
        if peer.take_asked(block).is_none() {
            return;
        }
        peer.withheld += 1;
        peer.refuse(block.piece);
        peer.expect_late(block);
        peer.say(Message::Cancel(block));
        if peer.withheld > WITHHELD_MAX {
            self.close(key, Error::Withholding);
        }
        self.release(key, block);
        self.wake(key);
        // With the last one nothing is left whose coming would have it asked for more.
        self.rest_soon(key);
    }

    /// Nothing is received from the peer for now: what it owes us is not late through its fault.
    pub fn handle_paused(&mut self, now: Instant, key: PeerKey) {
        if let Some(peer) = self.peer_mut(key) {
            peer.paused_at.get_or_insert(now);
        }
    }

    /// It is received from again. The pause counts for nothing that has a time limit.
    pub fn handle_resumed(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peer_mut(key) else { return };
        let Some(at) = peer.paused_at.take() else { return };
        let pause = now.saturating_duration_since(at);
        if pause < SECOND {
            // Most are so short; going through all requests each time would cost more than it is.
            return;
        }
        let times = peer.asked.iter_mut().map(|asked| &mut asked.at);
        let arriving = peer.receiving.iter_mut().map(|(_, at)| at);
        let last = [&mut peer.last_block_at, &mut peer.last_heard_at];
        for time in times.chain(arriving).chain(last) {
            *time += pause;
        }
    }

    /// A suspect piece whose only peer does not get on with it begins anew with another one; the
    /// peer keeps those that it works on.
    fn free_suspects(&mut self) {
        let stuck: Vec<PieceIndex> = self
            .partials
            .iter()
            .filter(|(_, partial)| partial.phase == Phase::Fetching)
            .filter_map(|(&piece, partial)| {
                let key = partial.exclusive?;
                let works = self.peer(key).is_some_and(|peer| {
                    peer.receiving.is_some_and(|(block, _)| block.piece == piece)
                        || peer.asked.iter().any(|asked| asked.block.piece == piece)
                        || peer.waits_for_rate() == Some(piece)
                });
                (!works).then_some(piece)
            })
            .collect();
        for piece in stuck {
            self.restart(piece);
        }
    }

    /// When the budget is used up by pieces that nobody here can go on with, one is given up for
    /// those who have nothing to do.
    fn evict_stalled(&mut self, now: Instant) {
        let pickable = self.availability.as_ref().map_or(0, |map| map.pickable_count());
        if self.idle.is_empty() || pickable == 0 || self.may_open() {
            return;
        }
        let in_line: BTreeSet<PieceIndex> =
            self.peers.iter().filter_map(|(_, peer)| peer.waits_for_rate()).collect();
        let stalled = self
            .partials
            .iter()
            .filter(|(piece, partial)| {
                let is_untouched = partial.free == partial.missing;
                partial.phase == Phase::Fetching && is_untouched && !in_line.contains(piece)
            })
            .max_by_key(|(_, partial)| partial.missing)
            .map(|(&piece, _)| piece);
        if let Some(piece) = stalled {
            self.abandon(piece);
            self.retry_idle(now, usize::MAX);
        }
    }

    fn round(&mut self, now: Instant) {
        self.next_round = None;
        let keep_alive = self.options.keep_alive;
        let inactive = self.options.inactivity_timeout;
        let keys = self.keys();
        self.say_pex(now, &keys);
        for key in keys {
            let Some(peer) = self.peer_mut(key) else {
                continue;
            };
            peer.nuisances = 0;
            peer.cancels = 0;
            peer.refused.clear();
            let silent_for = now.saturating_duration_since(peer.last_heard_at);
            if silent_for >= inactive && peer.paused_at.is_none() {
                self.close(key, Error::Inactive);
            } else if now.saturating_duration_since(peer.last_sent_at) >= keep_alive
                && peer.control.is_empty()
            {
                peer.say(Message::KeepAlive);
                self.wake(key);
            }
        }
        self.shared.expire_bans(now);
        self.recent.retain(|_, (_, until)| now < *until);
        if !self.peers.is_empty() {
            self.redistribute(now);
            self.next_round = Some(now + choker::ROUND);
        }
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// Changes the limits of this torrent.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        self.options.slots = limits.slots;
        self.up.bucket.set_rate(now, limits.up);
        self.down.bucket.set_rate(now, limits.down);
        self.up.schedule(now, &self.shared.up);
        self.down.schedule(now, &self.shared.down);
        self.fill_slots(now);
        self.settle(now);
    }

    /// Two that want nothing have nothing to say to each other.
    pub(super) fn close_if_useless(&mut self, key: PeerKey) {
        if self.is_finished() && self.peer(key).is_some_and(Peer::is_seed) {
            self.close(key, Error::NothingToTrade);
        }
    }
}

/// Limits of one torrent that can change at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Upload slots.
    pub slots: choker::Slots,
    /// Payload bytes per second sent; `None` is no limit.
    pub up: Option<u64>,
    /// Payload bytes per second fetched; `None` is no limit.
    pub down: Option<u64>,
}
