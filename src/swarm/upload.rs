//! Serving: requests in, blocks out. The hot path of a seed.
//!
//! A request is judged and queued by a few comparisons and one look-up; `poll_transmit` hands out
//! the queue as far as budget and limits go. Invariant: a block leaves only if its piece is ours
//! at that moment; nothing here allocates per block.
#![forbid(unsafe_code)]

use super::Swarm;
use super::message::NUISANCE_SECONDS;
use super::options::{
    CANCELS_PER_SECOND_MAX, CHOKED_REQUESTS_GRACE, CONTROL_LEN_MAX, INVALID_REQUESTS_MAX,
};
use super::peer::{Error, PeerKey};
use super::queue::Push;
use super::throttle::Wait;
use crate::units::{BLOCK_LEN, Block};
use crate::wire::{Message, encode};
use std::time::Instant;

impl Swarm {
    pub(super) fn on_request(
        &mut self,
        now: Instant,
        key: PeerKey,
        block: Block,
    ) -> Result<(), Error> {
        if !self.geometry.contains(block) {
            self.shared.count(|counted| counted.requests_invalid += 1);
            return Err(Error::BadRequest);
        }
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return Ok(());
        };
        if peer.am_choking && !peer.may_ask_choked(block, &self.geometry) {
            self.shared.count(|counted| counted.requests_choked += 1);
            let grace = peer
                .choked_at
                .is_some_and(|at| now.saturating_duration_since(at) <= CHOKED_REQUESTS_GRACE);
            peer.choked_requests += u32::from(!grace);
            if peer.choked_requests > INVALID_REQUESTS_MAX {
                return Err(Error::RequestsWhileChoked);
            }
            return self.reject(key, block);
        }
        let ours = self.have.has(block.piece);
        if block.len > BLOCK_LEN || !ours {
            self.shared.count(|counted| counted.requests_invalid += 1);
            peer.invalid_requests += u32::from(ours || !self.lost_any);
            if peer.invalid_requests > INVALID_REQUESTS_MAX {
                return Err(Error::InvalidRequests);
            }
            return self.reject(key, block);
        }
        match peer.queue.push(self.hash_key, block) {
            Push::Queued => self.wake(key),
            Push::Duplicate => self.nuisance(key)?,
            Push::Full => {
                self.totals.requests_overflowed += 1;
                self.shared.count(|counted| counted.requests_rejected += 1);
                self.reject(key, block)?;
            }
        }
        Ok(())
    }

    pub(super) fn on_cancel(&mut self, key: PeerKey, block: Block) -> Result<(), Error> {
        let hash_key = self.hash_key;
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if peer.queue.cancel(hash_key, block) {
            peer.cancels += 1;
            let is_flood = peer.cancels > CANCELS_PER_SECOND_MAX * NUISANCE_SECONDS;
            self.shared.count(|counted| counted.requests_cancelled += 1);
            if is_flood {
                return Err(Error::CancelFlood);
            }
            // BEP 6: every request is answered, a cancelled one by a reject.
            return self.reject(key, block);
        }
        self.nuisance(key)
    }

    /// A block that was handed out by `poll_transmit` cannot be sent after all: its piece was lost
    /// meanwhile. The peer hears of it if it knows the word (BEP 6); others ask somebody else in
    /// time (BEP 3 has no answer).
    pub fn handle_unsendable(&mut self, now: Instant, key: PeerKey, block: Block) {
        self.shared.count(|counted| counted.requests_rejected += 1);
        if let Err(reason) = self.reject(key, block) {
            self.close(key, reason);
        }
        self.settle(now);
    }

    /// Says no, to a peer that knows the word.
    fn reject(&mut self, key: PeerKey, block: Block) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key).filter(|peer| peer.fast) else {
            return Ok(());
        };
        peer.say(Message::Reject(block));
        self.check_control(key)?;
        self.wake(key);
        Ok(())
    }

    /// Control messages do not pile up without end for a peer that does not read.
    pub(super) fn check_control(&self, key: PeerKey) -> Result<(), Error> {
        let bitfield_len = self.have.len().div_ceil(8) as usize;
        match self.peer(key) {
            Some(peer) if peer.control.len() > CONTROL_LEN_MAX + bitfield_len => {
                Err(Error::NotReading)
            }
            _ => Ok(()),
        }
    }

    /// Appends encoded messages to `control`, and to `blocks` what has to be sent after them: at
    /// most `budget` bytes of blocks, as many as the rate limits allow. True if budget alone was in
    /// the way of more; what a limit holds back is announced by `Action::Transmit` later.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        key: PeerKey,
        budget: u64,
        control: &mut Vec<u8>,
        blocks: &mut Vec<Block>,
    ) -> bool {
        let more = self.say_metadata(key);
        self.poll_blocks(now, key, budget, control, blocks) || more
    }

    fn poll_blocks(
        &mut self,
        now: Instant,
        key: PeerKey,
        budget: u64,
        control: &mut Vec<u8>,
        blocks: &mut Vec<Block>,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(key.0 as usize).filter(|peer| !peer.closing) else {
            return false;
        };
        if !peer.control.is_empty() {
            control.append(&mut peer.control);
            peer.last_sent_at = now;
        }
        if peer.queue.is_empty() {
            return false;
        }
        let room = self.up.room(now, &self.shared.up, peer.up_wait);
        let (mut sent, mut more) = (0, false);
        while let Some(block) = peer.queue.peek() {
            let len = u64::from(block.len);
            if sent + len > budget {
                more = true;
                break;
            }
            if sent >= room {
                break;
            }
            peer.queue.pop(self.hash_key);
            if self.have.has(block.piece) {
                blocks.push(block);
                sent += len;
                continue;
            }
            self.shared.count(|counted| counted.requests_rejected += 1);
            if peer.fast {
                encode(&Message::Reject(block), control);
            }
        }
        self.up.take(now, &self.shared.up, sent);
        if sent > 0 {
            peer.last_sent_at = now;
        }
        if peer.am_choking {
            peer.fast_sent += sent;
        }
        if more || peer.queue.is_empty() {
            if peer.up_wait == Wait::Called {
                peer.up_wait = Wait::No;
            }
            return more;
        }
        self.up.enter(now, &self.shared.up, key, &mut peer.up_wait);
        false
    }

    /// Payload bytes that the connection of a peer had taken that has left since.
    pub fn handle_last_sent(&mut self, now: Instant, payload_len: u64) {
        self.totals.uploaded += payload_len;
        self.up_meter.add(now, payload_len);
    }

    /// Payload bytes that the connection has taken: for meters, totals and the choker.
    pub fn handle_sent(&mut self, now: Instant, key: PeerKey, payload_len: u64) {
        self.handle_last_sent(now, payload_len);
        if let Some(peer) = self.peer_mut(key) {
            peer.up.add(now, payload_len);
            peer.uploaded += payload_len;
            peer.uploaded_in_turn += payload_len;
            peer.last_sent_at = now;
            if payload_len > 0 {
                peer.last_served_at = Some(now);
            }
        }
    }
}
