//! Choking and unchoking: carries out what the choker decides.
//!
//! Changes of interest, rounds and slots enter; choke messages leave. Invariant: as long as there
//! is a free slot no interested peer is choked.
#![forbid(unsafe_code)]

use super::choker::{Candidate, Claim, Slots, pick_next};
use super::peer::{Peer, PeerKey};
use super::{Swarm, key_of};
use crate::wire::Message;
use std::time::{Duration, Instant};

impl Swarm {
    /// Peers that may be unchoked now: by the torrent's own limit, by what it was granted, and by
    /// what the worker's other torrents leave.
    fn slots(&self) -> Slots {
        let own = self.options.slots.min(self.granted);
        match self.shared.slots.get() {
            Slots::Unlimited => own,
            Slots::Limited(limit) => {
                let others = self.shared.unchoked.get().saturating_sub(self.counts.unchoked);
                own.min(Slots::Limited(limit.saturating_sub(others)))
            }
        }
    }

    /// What the torrent wants of the slots that torrents share.
    pub fn slot_claim(&self) -> Claim {
        Claim { wanted: self.options.slots.cut(self.counts.interested), granted: 0 }
    }

    /// Grants a share of the slots that torrents share; more are given out at once, fewer are
    /// taken away by the next round.
    pub fn set_slots_granted(&mut self, now: Instant, granted: Slots) {
        self.granted = granted;
        self.fill_slots(now);
        self.settle(now);
    }

    /// A peer became interested: a free slot is its own at once.
    pub(super) fn on_interested(&mut self, now: Instant, key: PeerKey) {
        if self.slots() == Slots::Unlimited {
            self.unchoke(now, key);
        } else {
            self.fill_slots(now);
        }
    }

    /// Gives free slots to those who wait.
    pub(super) fn fill_slots(&mut self, now: Instant) {
        let slots = self.slots();
        if self.counts.interested == 0 {
            return;
        }
        if slots == Slots::Unlimited {
            for key in self.keys() {
                if self.peer(key).is_some_and(|peer| peer.peer_interested) {
                    self.unchoke(now, key);
                }
            }
            return;
        }
        let choker = self.choker();
        let piece_len = self.geometry.piece_len_nominal();
        self.list_candidates(now);
        while let Some(pick) = pick_next(&self.candidates, slots, piece_len, choker) {
            if let Some(idle) = pick.choke {
                self.choke(now, PeerKey(idle));
                self.mark(idle, false);
            }
            self.unchoke(now, PeerKey(pick.unchoke));
            self.mark(pick.unchoke, true);
        }
    }

    fn mark(&mut self, key: u32, unchoked: bool) {
        if let Some(entry) = self.candidates.iter_mut().find(|entry| entry.key == key) {
            entry.unchoked = unchoked;
        }
    }

    /// A round of the choker.
    pub(super) fn redistribute(&mut self, now: Instant) {
        let (choker, slots) = (self.choker(), self.slots());
        let piece_len = self.geometry.piece_len_nominal();
        self.shared.count(|counted| counted.choker_rounds += 1);
        self.list_candidates(now);
        let mut rechoke = std::mem::take(&mut self.rechoke);
        let decision = rechoke.run(&self.candidates, slots, piece_len, choker, &mut self.rng);
        for &key in &decision.choke {
            self.choke(now, PeerKey(key));
        }
        for &key in &decision.unchoke {
            self.unchoke(now, PeerKey(key));
        }
        for (slot, peer) in &mut self.peers {
            peer.optimistic = decision.optimistic == Some(key_of(slot).0);
        }
        self.rechoke = rechoke;
    }

    fn choker(&self) -> &'static dyn super::choker::Choker {
        if self.wants_pieces() { self.options.leech_choker } else { self.options.seed_choker }
    }

    fn list_candidates(&mut self, now: Instant) {
        let piece_count = self.geometry.piece_count();
        self.candidates.clear();
        self.candidates.extend(
            self.peers
                .iter()
                .filter(|(_, peer)| !peer.closing || !peer.am_choking)
                .map(|(slot, peer)| candidate(now, key_of(slot), peer, piece_count)),
        );
    }

    pub(super) fn unchoke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        if !peer.am_choking || peer.closing {
            return;
        }
        peer.am_choking = false;
        peer.unchoked_at = Some(now);
        peer.choked_at = None;
        peer.waiting_since = None;
        peer.uploaded_in_turn = 0;
        peer.choked_requests = 0;
        peer.say(Message::Unchoke);
        self.counts.unchoked += 1;
        self.shared.unchoked.set(self.shared.unchoked.get() + 1);
        self.wake(key);
    }

    pub(super) fn choke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return;
        };
        if peer.am_choking {
            return;
        }
        peer.am_choking = true;
        peer.choked_at = Some(now);
        peer.unchoked_at = None;
        peer.waiting_since = peer.peer_interested.then_some(now);
        peer.say(Message::Choke);
        let dropped = peer.queue.len() as u64;
        self.shared.count(|counted| counted.requests_choked += dropped);
        while let Some(block) = peer.queue.pop(self.hash_key) {
            if peer.fast {
                peer.say(Message::Reject(block));
            }
        }
        peer.queue.clear();
        self.counts.unchoked -= 1;
        self.shared.unchoked.set(self.shared.unchoked.get().saturating_sub(1));
        self.wake(key);
    }
}

fn candidate(now: Instant, key: PeerKey, peer: &Peer, piece_count: u32) -> Candidate {
    let since =
        |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
    let have = u64::from(peer.pieces.count(piece_count)) * 1000;
    let progress = have.checked_div(u64::from(piece_count)).unwrap_or(0);
    Candidate {
        key: key.0,
        // Who is about to be closed keeps its slot only until somebody wants it.
        interested: peer.peer_interested && !peer.closing,
        unchoked: !peer.am_choking,
        optimistic: peer.optimistic,
        snubbed: peer.snubbed,
        connected_for: now.saturating_duration_since(peer.connected_at),
        unchoked_for: since(peer.unchoked_at),
        waiting_for: since(peer.waiting_since),
        downloaded_len: peer.downloaded,
        downloaded_rate: peer.down.rate(now),
        uploaded_rate: peer.up.rate(now),
        uploaded_in_turn: if peer.am_choking { 0 } else { peer.uploaded_in_turn },
        uploaded_recently: peer.uploaded_recently,
        progress_permille: u16::try_from(progress).unwrap_or(1000),
        tie: peer.tie,
    }
}
