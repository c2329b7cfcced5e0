//! Fetching: blocks in, pieces done.
//!
//! Headers of blocks, stored blocks, verdicts and written pieces enter. Invariant: a block has one
//! writer at a time; a piece is ours, told to others and served only after `handle_stored`.
#![forbid(unsafe_code)]

use super::options::{REJECTS_MAX, UNREQUESTED_MAX};
use super::partial::{Partial, Phase, Slot};
use super::peer::{Error, PeerKey, Pieces};
use super::{Action, Payload, Swarm, Verdict};
use crate::units::{Block, PieceIndex};
use crate::wire::Message;
use std::time::Instant;

impl Swarm {
    /// A peer begins to send `block`: says what becomes of its bytes. Unless that is `Discard`, the
    /// caller calls `handle_block` once all are here, unless the connection ends before.
    ///
    /// # Errors
    /// The peer sent too many blocks that it was not asked for; the caller closes the connection.
    pub fn handle_payload(
        &mut self,
        now: Instant,
        key: PeerKey,
        block: Block,
    ) -> Result<Payload, Error> {
        let Some(peer) = self.peers.get_mut(key.0 as usize).filter(|peer| !peer.closing) else {
            return Ok(Payload::Discard);
        };
        peer.last_heard_at = now;
        if let Some((unfinished, _)) = peer.receiving.take() {
            // The caller lost track of it; nobody else may wait for its end.
            self.unreceive(key, unfinished);
        }
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return Ok(Payload::Discard);
        };
        if let Some(asked) = peer.take_asked(block) {
            peer.answered = peer.answered.max(asked.number);
            peer.pipeline.handle_answer(now.saturating_duration_since(asked.at));
        } else if let Some(at) = peer.late.iter().position(|&other| other == block) {
            peer.late.remove(at);
        } else {
            peer.unrequested += 1;
            let is_too_many = peer.unrequested > UNREQUESTED_MAX;
            self.count_discarded(block);
            return if is_too_many { Err(Error::Unrequested) } else { Ok(Payload::Discard) };
        }
        peer.last_block_at = now;
        let index = Self::block_index(block);
        let partial = self.partials.get(&block.piece).filter(|partial| partial.takes_from(key));
        let is_in_place = partial.is_some_and(|partial| partial.is_in_place);
        let askers = match partial.and_then(|partial| partial.slot(index)) {
            Some(Slot::Asked(askers)) => Some(askers),
            Some(Slot::Free) => None,
            _ => {
                self.count_discarded(block);
                self.release(key, block);
                self.refill(now, key);
                self.settle(now);
                return Ok(Payload::Discard);
            }
        };
        peer.receiving = Some((block, now));
        self.set_slot(block.piece, index, Slot::Arriving(key));
        for other in askers.into_iter().flat_map(|askers| askers.iter()).filter(|&o| o != key) {
            self.cancel(other, block);
        }
        self.settle(now);
        Ok(if is_in_place { Payload::AcceptInPlace } else { Payload::Accept })
    }

    fn count_discarded(&self, block: Block) {
        self.shared.count(|counted| counted.bytes_discarded += u64::from(block.len));
    }

    /// Whether `block` is still the one that the peer brings.
    pub fn awaits(&self, key: PeerKey, block: Block) -> bool {
        let partial = self.partials.get(&block.piece);
        let slot = partial.and_then(|partial| partial.slot(Self::block_index(block)));
        slot == Some(Slot::Arriving(key))
    }

    /// A block that had begun to arrive will not be whole.
    pub(super) fn unreceive(&mut self, key: PeerKey, block: Block) {
        let index = Self::block_index(block);
        let slot = self.partials.get(&block.piece).and_then(|partial| partial.slot(index));
        if slot == Some(Slot::Arriving(key)) {
            self.set_slot(block.piece, index, Slot::Free);
        }
    }

    /// The block comes from somebody else: not needed of this peer any more.
    fn cancel(&mut self, key: PeerKey, block: Block) {
        if let Some(peer) = self.peer_mut(key)
            && peer.take_asked(block).is_some()
        {
            peer.say(Message::Cancel(block));
            peer.expect_late(block);
            self.wake(key);
            self.rest_soon(key);
        }
    }

    /// Has the peer looked at again, for there may be room in its pipeline.
    pub(super) fn rest_soon(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(key.0 as usize)
            && !peer.idle
        {
            peer.idle = true;
            self.idle.push_back(key);
            self.kick = true;
        }
    }

    /// The caller had no room for an accepted block: it is asked for again.
    pub fn handle_dropped(&mut self, now: Instant, key: PeerKey, block: Block) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        if peer.receiving.take_if(|(arriving, _)| *arriving == block).is_none() {
            return;
        }
        peer.last_heard_at = now;
        peer.last_block_at = now;
        self.count_discarded(block);
        self.unreceive(key, block);
        self.refill(now, key);
        self.settle(now);
    }

    /// All bytes of an accepted block are here. Whether the block is taken: meanwhile its piece may
    /// have begun anew, and then these bytes belong to nothing.
    pub fn handle_block(&mut self, now: Instant, key: PeerKey, block: Block) -> bool {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return false;
        };
        if peer.receiving.take_if(|(arriving, _)| *arriving == block).is_none() {
            return false;
        }
        peer.last_heard_at = now;
        peer.last_block_at = now;
        peer.snubbed = false;
        peer.rejects = 0;
        peer.pipeline.handle_block(now);
        peer.down.add(now, u64::from(block.len));
        peer.downloaded += u64::from(block.len);
        let origin = peer.origin();
        self.down_meter.add(now, u64::from(block.len));
        self.totals.downloaded += u64::from(block.len);
        let index = Self::block_index(block);
        let arriving = |partial: &&mut Partial| partial.slot(index) == Some(Slot::Arriving(key));
        let partial = self.partials.get_mut(&block.piece).filter(arriving);
        let source = partial.map(|partial| partial.origin(origin));
        if let Some(source) = source {
            self.set_slot(block.piece, index, Slot::Stored(source));
            self.complete_if_whole(block.piece);
        }
        self.refill(now, key);
        self.settle(now);
        source.is_some()
    }

    fn complete_if_whole(&mut self, piece: PieceIndex) {
        let Some(partial) = self.partials.get_mut(&piece) else {
            return;
        };
        if partial.missing == 0 && partial.phase == Phase::Fetching {
            partial.phase = Phase::Verifying;
            partial.exclusive = None;
            let digests = self.suspects.are_wanted(piece);
            self.actions.push_back(Action::Verify { piece, digests });
        }
    }

    /// The hash of a piece is known.
    pub fn handle_verified(&mut self, now: Instant, piece: PieceIndex, verdict: Verdict) {
        let Some(partial) = self.partials.get_mut(&piece) else {
            return;
        };
        if partial.phase != Phase::Verifying {
            return;
        }
        match verdict {
            Verdict::Good(digests) => {
                partial.phase = Phase::Writing;
                self.totals.pieces_good += 1;
                self.clear_suspects(now, piece, &digests);
            }
            Verdict::Bad(digests) => {
                self.totals.pieces_bad += 1;
                self.totals.corrupt += u64::from(self.geometry.piece_len(piece));
                self.blame(now, piece, digests);
            }
            Verdict::Unreadable => self.restart(piece),
        }
        self.settle(now);
    }

    /// Fetches a partial piece anew, from its first block.
    pub(super) fn restart(&mut self, piece: PieceIndex) {
        let Some(partial) = self.partials.get_mut(&piece) else {
            return;
        };
        let slots = partial.blocks.clone();
        for (index, slot) in (0u32..).zip(slots) {
            if let (Slot::Asked(askers), Some(block)) = (slot, self.geometry.block(piece, index)) {
                for key in askers.iter() {
                    self.cancel(key, block);
                }
            }
        }
        self.serial += 1;
        if let Some(partial) = self.partials.get_mut(&piece) {
            partial.reset(self.serial);
            self.open.insert(piece);
        }
        self.kick = true;
        self.actions.push_back(Action::Discard(piece));
        self.discard_count += 1;
    }

    /// Gives up a partial piece; it may be picked again.
    pub(super) fn abandon(&mut self, piece: PieceIndex) {
        if !self.partials.contains_key(&piece) {
            return;
        }
        self.restart(piece);
        self.drop_partial(piece);
        if let Some(availability) = &mut self.availability {
            availability.set_pickable(piece, self.wanted.lacks(&self.have, piece));
        }
    }

    /// A piece is under way no more.
    fn drop_partial(&mut self, piece: PieceIndex) {
        let partial = self.partials.remove(&piece);
        if partial.as_ref().is_some_and(|partial| partial.is_in_place) {
            self.in_place_count -= 1;
        } else if partial.is_some() {
            let len = u64::from(self.geometry.piece_len(piece));
            let left = self.shared.piece_bytes.get().saturating_sub(len);
            self.shared.piece_bytes.set(left);
        }
        self.open.remove(&piece);
    }

    /// A good piece is on disk: from now on it is ours, is told to others and served.
    ///
    /// Also for pieces that were found on disk without having been fetched.
    pub fn handle_stored(&mut self, now: Instant, piece: PieceIndex) {
        if piece.0 >= self.geometry.piece_count() || self.have.has(piece) {
            return;
        }
        if self.partials.get(&piece).is_some_and(|partial| partial.phase == Phase::Fetching) {
            self.abandon(piece);
        }
        self.drop_partial(piece);
        self.have.set(piece);
        let was_wanted = self.wanted.note(piece, true);
        if let Some(availability) = &mut self.availability {
            availability.set_pickable(piece, false);
        }
        for key in self.keys() {
            self.tell_have(key, piece, was_wanted);
        }
        self.kick = true;
        if was_wanted && self.is_finished() {
            self.finish();
        }
        self.settle(now);
    }

    fn tell_have(&mut self, key: PeerKey, piece: PieceIndex, was_wanted: bool) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        let theirs = peer.pieces.has(piece);
        if theirs && was_wanted && matches!(peer.pieces, Pieces::Some(_)) {
            peer.wanted -= 1;
        }
        if !theirs {
            peer.say(Message::Have(piece));
            self.wake(key);
        }
        if let Err(reason) = self.check_control(key) {
            self.close(key, reason);
        }
        self.update_interest(key);
    }

    /// The last piece that is wanted is ours.
    pub(super) fn finish(&mut self) {
        for piece in self.partials.keys().copied().collect::<Vec<_>>() {
            self.abandon(piece);
        }
        self.availability = None;
        self.suspects.clear();
        self.actions.push_back(Action::Finished);
        self.tell_upload_only(true);
        for key in self.keys() {
            self.take_back_all(key, true);
            self.close_if_useless(key);
        }
    }

    /// A piece that counted as ours is not readable: it is not served any more, and fetched again
    /// if this torrent fetches.
    pub fn handle_lost(&mut self, now: Instant, piece: PieceIndex) {
        if self.partials.get(&piece).is_some_and(|partial| partial.phase != Phase::Fetching) {
            self.abandon(piece);
        }
        if self.have.clear(piece) {
            self.lost_any = true;
            let is_wanted = self.wanted.note(piece, false);
            if self.wants_pieces() {
                self.regain_availability();
            }
            if let Some(availability) = &mut self.availability {
                availability.set_pickable(piece, is_wanted);
            }
            for (_, peer) in &mut self.peers {
                if let Pieces::Some(pieces) = &peer.pieces {
                    peer.wanted += u32::from(is_wanted && pieces.has(piece));
                }
            }
            for key in self.keys() {
                self.update_interest(key);
                self.refill(now, key);
            }
            self.start_seconds(now);
            self.contacts.revive_seeds(now);
            self.connect_due(now);
        }
        self.settle(now);
    }

    /// Interested exactly if the peer has something that we want and lack.
    pub(super) fn update_interest(&mut self, key: PeerKey) {
        let wants_pieces = self.wants_pieces();
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        let interesting = match peer.pieces {
            Pieces::None => false,
            Pieces::Some(_) => wants_pieces && peer.wanted > 0,
            Pieces::All => wants_pieces,
        };
        if interesting == peer.am_interested {
            return;
        }
        peer.am_interested = interesting;
        if interesting {
            self.counts.interesting += 1;
            peer.say(Message::Interested);
        } else {
            self.counts.interesting -= 1;
            peer.say(Message::NotInterested);
        }
        self.wake(key);
    }

    pub(super) fn on_reject(&mut self, key: PeerKey, block: Block) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if peer.take_asked(block).is_none() {
            return match peer.late.iter().position(|&other| other == block) {
                Some(at) => {
                    peer.late.remove(at);
                    Ok(())
                }
                None => self.nuisance(key),
            };
        }
        peer.rejects += 1;
        if peer.rejects > REJECTS_MAX {
            return Err(Error::Rejects);
        }
        peer.pipeline.handle_reject();
        peer.refuse(block.piece);
        self.release(key, block);
        self.rest_soon(key);
        Ok(())
    }
}
