//! The promises of the swarm, as a recount.
//!
//! Nothing enters or leaves; it panics where a promise is broken. Invariant: it changes nothing.
#![forbid(unsafe_code)]

use super::options::{IN_PLACE_PIECES_MAX, REQUESTS_OUT_MAX};
use super::partial::{Phase, Slot};
use super::peer::Pieces;
use super::throttle::Wait;
use super::{Counts, REQUEST_QUEUE_MAX, Swarm, key_of};
use crate::units::PieceIndex;
use std::collections::BTreeMap;

/// Above this size a recount after every input would take too long.
#[cfg(debug_assertions)]
const FULL_CHECK_MAX: usize = 256;

impl Swarm {
    #[cfg(debug_assertions)]
    /// What `settle` checks in debug builds: everything while the swarm is small.
    pub(super) fn check_cheap_invariants(&self) {
        // The recount of requests is quadratic in those of a peer: long pipelines are left out.
        let requests = self.peers.iter().map(|(_, peer)| peer.asked.len()).max().unwrap_or(0);
        let sum = self.peers.len() * 8 + self.have.len() as usize + self.partials.len();
        if sum + requests < FULL_CHECK_MAX {
            self.check_invariants();
        }
    }

    /// Recounts everything that is kept as it changes.
    ///
    /// # Panics
    /// If a counter, an index or a limit is wrong: a defect of this room, never of a peer.
    pub fn check_invariants(&self) {
        self.check_counts();
        self.check_listening();
        self.check_blocks();
        self.check_availability();
        self.contacts.check_invariants();
        self.suspects.check_invariants();
        let idle = self.peers.iter().filter(|(_, peer)| peer.idle).count();
        assert_eq!(self.idle.len(), idle, "idle peers stand in the list once");
    }

    fn check_listening(&self) {
        let mut listening = BTreeMap::new();
        for addr in self.peers.iter().filter_map(|(_, peer)| peer.listen_addr()) {
            *listening.entry(addr).or_default() += 1;
        }
        assert_eq!(listening, self.listening, "where peers can be met equals a recount");
    }

    fn check_counts(&self) {
        let mut counts = Counts::default();
        for (slot, peer) in &self.peers {
            let key = key_of(slot);
            counts.have_all += u32::from(matches!(peer.pieces, Pieces::All));
            counts.interested += u32::from(peer.peer_interested);
            counts.unchoked += u32::from(!peer.am_choking);
            counts.interesting += u32::from(peer.am_interested);
            assert!(peer.queue.len() <= REQUEST_QUEUE_MAX as usize);
            assert!(peer.asked.len() <= REQUESTS_OUT_MAX as usize);
            assert!(peer.late.len() <= REQUESTS_OUT_MAX as usize);
            for (throttle, wait) in [(&self.up, peer.up_wait), (&self.down, peer.down_wait)] {
                let places = throttle.line().iter().filter(|&&other| other == key).count();
                assert_eq!(places, usize::from(wait == Wait::InLine), "a line holds each once");
            }
            let wanted = match &peer.pieces {
                Pieces::Some(pieces) => {
                    pieces.iter().filter(|&piece| self.wanted.lacks(&self.have, piece)).count()
                }
                Pieces::None | Pieces::All => 0,
            };
            assert_eq!(peer.wanted as usize, wanted, "{key:?} has pieces that we lack");
            let interesting = match peer.pieces {
                Pieces::All => self.wants_pieces(),
                _ => self.wants_pieces() && wanted > 0,
            };
            assert_eq!(peer.am_interested, interesting, "interest is right");
        }
        assert_eq!(counts, self.counts, "counters equal recounts");
        assert!(self.shared.unchoked.get() >= counts.unchoked);
    }

    fn check_blocks(&self) {
        let mut asked = 0;
        let mut arriving = 0;
        let in_place = self.partials.values().filter(|partial| partial.is_in_place).count();
        assert_eq!(self.in_place_count, in_place, "pieces in place equal a recount");
        assert!(in_place <= IN_PLACE_PIECES_MAX);
        for (&piece, partial) in &self.partials {
            partial.check_invariants();
            assert!(self.wanted.lacks(&self.have, piece), "what is under way is wanted, not ours");
            let open = partial.phase == Phase::Fetching && partial.free > 0;
            assert_eq!(self.open.contains(&piece), open, "open pieces have free blocks");
            for (index, slot) in (0u32..).zip(&partial.blocks) {
                let block = self.geometry.block(piece, index);
                if let Slot::Asked(askers) = slot {
                    for key in askers.iter() {
                        let peer = self.peer(key).expect("who was asked is there");
                        assert!(peer.asked.iter().any(|asked| Some(asked.block) == block));
                        asked += 1;
                    }
                }
                if let Slot::Arriving(key) = slot {
                    let peer = self.peer(*key).expect("who sends is there");
                    assert_eq!(peer.receiving.map(|(block, _)| block), block);
                    arriving += 1;
                }
            }
        }
        assert!(self.open.iter().all(|piece| self.partials.contains_key(piece)));
        let listed: usize = self.peers.iter().map(|(_, peer)| peer.asked.len()).sum();
        assert_eq!(asked, listed, "every request stands at its block");
        let receiving = self.peers.iter().filter(|(_, peer)| peer.receiving.is_some()).count();
        assert!(arriving <= receiving);
    }

    fn check_availability(&self) {
        let pieces = || (0..self.have.len()).map(PieceIndex);
        let missing = pieces().filter(|&piece| self.wanted.lacks(&self.have, piece)).count();
        assert_eq!(self.wanted.missing() as usize, missing, "missing pieces equal a recount");
        assert_eq!(self.availability.is_none(), !self.wants_pieces());
        let Some(availability) = &self.availability else {
            assert!(self.partials.is_empty());
            return;
        };
        availability.check_invariants();
        for piece in pieces() {
            let those = self.peers.iter().filter(|(_, peer)| match &peer.pieces {
                Pieces::Some(pieces) => pieces.has(piece),
                Pieces::None | Pieces::All => false,
            });
            assert_eq!(usize::from(availability.count(piece)), those.count(), "recount");
            let lacking = self.wanted.lacks(&self.have, piece);
            let pickable = lacking && !self.partials.contains_key(&piece);
            assert_eq!(availability.is_pickable(piece), pickable, "piece {piece} is pickable");
        }
    }
}
