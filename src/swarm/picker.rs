//! Which block to ask which peer for.
//!
//! A peer goes on with its own piece; else it takes over a partial piece that nobody works on,
//! opens a new one (rarest first; at random for the first few; in order if sequential), or joins
//! others. When most of the budget is used, or while there is little to trade with, joining comes
//! before opening. When no block is free any more, late ones are asked for twice: the endgame.
//!
//! Invariant: no more than `partial_pieces_max` pieces are under way in memory and no more than
//! [`IN_PLACE_PIECES_MAX`] in place, and a suspect piece is asked of one peer only.
#![forbid(unsafe_code)]

use super::Swarm;
use super::options::{ENDGAME_AGE, ENDGAME_REQUESTS_MAX, IN_PLACE_PIECES_MAX, RANDOM_FIRST_PIECES};
use super::partial::{Askers, Partial, Phase, Slot};
use super::peer::{Asked, Peer, PeerKey, Pieces};
use super::throttle::Wait;
use crate::units::{Block, PieceIndex};
use crate::wire::Message;
use std::time::Instant;

/// Blocks that one search for an endgame block looks at.
const ENDGAME_SCAN_MAX: usize = 4096;
/// Idle peers that are tried again when something becomes free; the others wait for the second.
const KICK_MAX: usize = 16;
/// Fewer pieces than this under way are never the limit.
const PARTIALS_MIN: usize = 2;

/// Where the blocks of a piece that is opened go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opening {
    /// To the memory for pieces.
    InMemory,
    /// To the disk, as they come.
    InPlace,
}

impl Swarm {
    /// Asks the peer for as much as its pipeline takes.
    pub(super) fn refill(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        let is_mute = peer.peer_choking && peer.allowed_fast.is_empty();
        if peer.closing || !peer.am_interested || is_mute || self.availability.is_none() {
            return;
        }
        let limit = if peer.snubbed { 1 } else { peer.pipeline.len().min(peer.reqq) };
        let limit = limit as usize;
        // A few at a time, so that requests share messages and packets.
        if peer.asked.len() >= limit || peer.asked.len() > limit * 3 / 4 {
            return;
        }
        let room = self.down.room(now, &self.shared.down, peer.down_wait);
        let mut taken = 0;
        let mut missing = limit - peer.asked.len();
        while missing > 0 && taken < room {
            let Some(block) = self.pick(key).or_else(|| self.pick_late(now, key)) else {
                self.down_passed(key);
                self.rest(key);
                break;
            };
            self.ask(now, key, block);
            taken += u64::from(block.len);
            missing -= 1;
        }
        self.down.take(now, &self.shared.down, taken);
        if taken >= room
            && missing > 0
            && let Some(peer) = self.peers.get_mut(key.0 as usize)
        {
            self.down.enter(now, &self.shared.down, key, &mut peer.down_wait);
        } else {
            self.down_passed(key);
        }
    }

    fn down_passed(&mut self, key: PeerKey) {
        if let Some(peer) = self.peer_mut(key)
            && peer.down_wait == Wait::Called
        {
            peer.down_wait = Wait::No;
        }
    }

    /// Nothing to ask for: the peer waits among the idle.
    fn rest(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(key.0 as usize)
            && !peer.idle
        {
            peer.idle = true;
            self.idle.push_back(key);
        }
    }

    /// Tries idle peers again after something became free.
    pub(super) fn kick_idle(&mut self, now: Instant) {
        if std::mem::take(&mut self.kick) {
            self.retry_idle(now, KICK_MAX);
        }
    }

    pub(super) fn retry_idle(&mut self, now: Instant, count: usize) {
        for _ in 0..self.idle.len().min(count) {
            let Some(key) = self.idle.pop_front() else {
                return;
            };
            if let Some(peer) = self.peer_mut(key) {
                peer.idle = false;
                self.refill(now, key);
            }
        }
    }

    fn ask(&mut self, now: Instant, key: PeerKey, block: Block) {
        let index = Self::block_index(block);
        let Some(partial) = self.partials.get_mut(&block.piece) else {
            return;
        };
        let askers = match partial.slot(index) {
            Some(Slot::Asked(askers)) => askers.with(now, key),
            _ => Some(Askers::one(now, key)),
        };
        let (Some(askers), Some(peer)) = (askers, self.peers.get_mut(key.0 as usize)) else {
            return;
        };
        peer.asked_count += 1;
        peer.asked.push_back(Asked { block, at: now, number: peer.asked_count });
        peer.say(Message::Request(block));
        self.set_slot(block.piece, index, Slot::Asked(askers));
        self.wake(key);
    }

    /// Changes the state of a block, and keeps `open` right.
    pub(super) fn set_slot(&mut self, piece: PieceIndex, index: u32, slot: Slot) {
        let Some(partial) = self.partials.get_mut(&piece) else {
            return;
        };
        let before = partial.free;
        partial.set(index, slot);
        match (before, partial.free) {
            (0, 1..) if partial.phase == Phase::Fetching => {
                self.open.insert(piece);
            }
            (1.., 0) => {
                self.open.remove(&piece);
            }
            _ => {}
        }
        if partial.free > before {
            self.kick = true;
        }
    }

    /// The next free block for the peer, opening a piece if need be.
    fn pick(&mut self, key: PeerKey) -> Option<Block> {
        let peer = self.peers.get(key.0 as usize)?;
        if let Some((piece, serial)) = peer.current
            && peer.may_give(piece)
            && let Some(partial) = self.partials.get_mut(&piece)
            && partial.serial == serial
            && partial.admits(key)
            && let Some(index) = partial.first_free()
        {
            return self.geometry.block(piece, index);
        }
        let piece = self.choose_piece(key)?;
        self.set_current(key, Some(piece));
        let partial = self.partials.get_mut(&piece)?;
        if partial.is_suspect {
            partial.exclusive = Some(key);
        }
        let index = partial.first_free()?;
        self.geometry.block(piece, index)
    }

    pub(super) fn set_current(&mut self, key: PeerKey, piece: Option<PieceIndex>) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        if let Some((piece, serial)) = peer.current.take()
            && let Some(partial) = self.partials.get_mut(&piece)
            && partial.serial == serial
        {
            partial.users = partial.users.saturating_sub(1);
        }
        if let Some(piece) = piece
            && let Some(partial) = self.partials.get_mut(&piece)
        {
            partial.users += 1;
            peer.current = Some((piece, partial.serial));
        }
    }

    /// A piece with free blocks for the peer to work on; a new one becomes partial.
    fn choose_piece(&mut self, key: PeerKey) -> Option<PieceIndex> {
        let peer = self.peers.get(key.0 as usize)?;
        let opening = self.opening();
        let is_scarce = self.have.count() < RANDOM_FIRST_PIECES
            || self.options.sequential
            // Reading a piece back costs more than several peers at one.
            || opening != Some(Opening::InMemory)
            || self.in_memory_count() * 2 >= self.partials_max();
        let mut joinable = self.open.iter().copied().filter(|piece| {
            peer.may_give(*piece) && self.partials.get(piece).is_some_and(|p| p.admits(key))
        });
        let joined = if is_scarce {
            joinable.next()
        } else {
            joinable.find(|piece| self.partials.get(piece).is_some_and(|p| p.users == 0))
        };
        if joined.is_some() {
            return joined;
        }
        if let Some(opening) = opening
            && let Some(piece) = self.pick_new(key, opening)
        {
            return Some(piece);
        }
        let peer = self.peers.get(key.0 as usize)?;
        self.open.iter().copied().find(|piece| {
            peer.may_give(*piece) && self.partials.get(piece).is_some_and(|p| p.admits(key))
        })
    }

    /// How one more piece may be opened now, if at all. While the worker's torrents leave no memory
    /// for it, that is in place.
    fn opening(&self) -> Option<Opening> {
        let len = u64::from(self.geometry.piece_len_nominal());
        let used = self.shared.piece_bytes.get();
        if used.saturating_add(len) <= self.shared.piece_bytes_max.get() {
            (self.in_memory_count() < self.partials_max()).then_some(Opening::InMemory)
        } else {
            (self.in_place_count < IN_PLACE_PIECES_MAX).then_some(Opening::InPlace)
        }
    }

    /// Whether one more piece may be opened.
    pub(super) fn may_open(&self) -> bool {
        self.opening().is_some()
    }

    fn in_memory_count(&self) -> usize {
        self.partials.len() - self.in_place_count
    }

    fn partials_max(&self) -> usize {
        self.options.partial_pieces_max.max(PARTIALS_MIN)
    }

    fn pick_new(&mut self, key: PeerKey, opening: Opening) -> Option<PieceIndex> {
        let peer = self.peers.get(key.0 as usize)?;
        let availability = self.availability.as_mut()?;
        let theirs = match &peer.pieces {
            Pieces::None => return None,
            Pieces::Some(pieces) => Some(pieces),
            Pieces::All => None,
        };
        let piece = if peer.peer_choking {
            let mut fast = peer.allowed_fast.iter().copied();
            fast.find(|&piece| peer.may_give(piece) && availability.is_pickable(piece))
        } else if self.options.sequential {
            availability.first(theirs, &peer.refused)
        } else if self.have.count() < RANDOM_FIRST_PIECES {
            availability.random(theirs, &peer.refused, &mut self.rng)
        } else {
            availability.rarest(theirs, &peer.refused)
        }?;
        availability.set_pickable(piece, false);
        self.serial += 1;
        let count = self.geometry.block_count(piece);
        let is_in_place = opening == Opening::InPlace;
        self.partials.insert(piece, Partial::new(count, is_in_place, self.serial));
        if is_in_place {
            self.in_place_count += 1;
        } else {
            let len = u64::from(self.geometry.piece_len(piece));
            self.shared.piece_bytes.set(self.shared.piece_bytes.get() + len);
        }
        self.open.insert(piece);
        Some(piece)
    }

    /// A block that others were asked for some time ago, when nothing else is left to do.
    fn pick_late(&mut self, now: Instant, key: PeerKey) -> Option<Block> {
        let peer = self.peers.get(key.0 as usize)?;
        if peer.snubbed || peer.asked.len() >= ENDGAME_REQUESTS_MAX {
            return None;
        }
        let start = PieceIndex(self.rng.u32(..=self.geometry.piece_count()));
        let mut left = ENDGAME_SCAN_MAX;
        let pieces = self.partials.range(start..).chain(self.partials.range(..start));
        for (&piece, partial) in pieces {
            if partial.phase != Phase::Fetching || partial.is_suspect || !peer.may_give(piece) {
                continue;
            }
            let is_late = |slot: &Slot| match slot {
                Slot::Asked(askers) => {
                    now.saturating_duration_since(askers.at) >= ENDGAME_AGE
                        && askers.with(now, key).is_some()
                }
                _ => false,
            };
            if let Some(index) = partial.blocks.iter().take(left).position(is_late) {
                self.totals.endgame_requests += 1;
                return self.geometry.block(piece, u32::try_from(index).ok()?);
            }
            left = left.saturating_sub(partial.blocks.len());
            if left == 0 {
                break;
            }
        }
        None
    }

    /// Takes back everything that the peer was asked for; blocks that may still come are
    /// remembered if `late`.
    pub(super) fn take_back_all(&mut self, key: PeerKey, late: bool) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        let asked = std::mem::take(&mut peer.asked);
        for Asked { block, .. } in asked {
            self.release(key, block);
            if late && let Some(peer) = self.peer_mut(key) {
                peer.expect_late(block);
            }
        }
        self.set_current(key, None);
        if late {
            return;
        }
        if let Some((block, _)) = self.peer_mut(key).and_then(|peer| peer.receiving.take()) {
            self.unreceive(key, block);
        }
        self.release_exclusive(key);
    }

    /// The peer will not send `block`.
    pub(super) fn release(&mut self, key: PeerKey, block: Block) {
        let index = Self::block_index(block);
        let slot = self.partials.get(&block.piece).and_then(|partial| partial.slot(index));
        if let Some(Slot::Asked(askers)) = slot {
            let left = askers.without(key).map_or(Slot::Free, Slot::Asked);
            self.set_slot(block.piece, index, left);
        }
    }

    /// Suspect pieces that only this peer may fetch begin anew with another one.
    fn release_exclusive(&mut self, key: PeerKey) {
        let held: Vec<PieceIndex> = self
            .partials
            .iter()
            .filter(|(_, partial)| {
                partial.exclusive == Some(key) && partial.phase == Phase::Fetching
            })
            .map(|(&piece, _)| piece)
            .collect();
        for piece in held {
            self.restart(piece);
        }
    }
}

impl Partial {
    /// Whether a block that the peer sends is taken.
    pub(super) fn takes_from(&self, key: PeerKey) -> bool {
        self.admits(key) && (!self.is_suspect || self.exclusive == Some(key))
    }

    /// Whether the peer may be asked for blocks of it.
    pub(super) fn admits(&self, key: PeerKey) -> bool {
        self.phase == Phase::Fetching && self.exclusive.is_none_or(|only| only == key)
    }
}

impl Peer {
    /// Takes the request for `block` out of those on their way.
    pub(super) fn take_asked(&mut self, block: Block) -> Option<Asked> {
        let at = self.asked.iter().position(|asked| asked.block == block)?;
        self.asked.remove(at)
    }
}
