//! Who sent wrong data.
//!
//! Verdicts with block digests enter, bans leave. A bad piece that one address sent alone bans it
//! at once. If several did, the digests of their blocks are kept, the piece is fetched again from
//! one peer only, and once it is good each kept block that differs bans its sender.
//!
//! Invariant: nobody is banned but for a block that is proven wrong; at most
//! [`SUSPECT_PIECES_MAX`] pieces with [`SUSPECT_ATTEMPTS_MAX`] attempts each are remembered.
#![forbid(unsafe_code)]

use super::options::{BAN_TTL, SUSPECT_ATTEMPTS_MAX, SUSPECT_PIECES_MAX};
use super::partial::{Origin, Phase, Slot};
use super::peer::Error;
use super::{Action, BlockDigest, Offender, Swarm};
use crate::units::PieceIndex;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// The blocks of one failed attempt, each with the number of who sent it.
struct Attempt {
    origins: Vec<Origin>,
    blocks: Vec<(u16, BlockDigest)>,
}

#[derive(Default)]
pub(super) struct Suspects(BTreeMap<PieceIndex, Vec<Attempt>>);

impl Suspects {
    /// Whether digests of `piece` would prove somebody guilty.
    pub(super) fn are_wanted(&self, piece: PieceIndex) -> bool {
        self.0.contains_key(&piece)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn remember(&mut self, piece: PieceIndex, attempt: Attempt) {
        if self.0.len() >= SUSPECT_PIECES_MAX && !self.0.contains_key(&piece) {
            return;
        }
        let attempts = self.0.entry(piece).or_default();
        if attempts.len() >= SUSPECT_ATTEMPTS_MAX {
            attempts.remove(0);
        }
        attempts.push(attempt);
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.0.len() <= SUSPECT_PIECES_MAX);
        assert!(self.0.values().all(|attempts| attempts.len() <= SUSPECT_ATTEMPTS_MAX));
    }
}

impl Swarm {
    /// A piece failed its hash.
    pub(super) fn blame(&mut self, now: Instant, piece: PieceIndex, digests: Vec<BlockDigest>) {
        let Some(partial) = self.partials.get_mut(&piece) else {
            return;
        };
        let sources: Vec<u16> = partial
            .blocks
            .iter()
            .filter_map(|slot| if let Slot::Stored(source) = slot { Some(*source) } else { None })
            .collect();
        let origins = std::mem::take(&mut partial.origins);
        partial.is_suspect = true;
        self.restart(piece);
        // One connection sent it alone. Of several, also from one host (many users may be behind it),
        // a good attempt will tell.
        if let [_] = origins[..] {
            self.ban(now, &origins);
        } else if digests.len() == sources.len() {
            let blocks = sources.into_iter().zip(digests).collect();
            self.suspects.remember(piece, Attempt { origins, blocks });
        }
    }

    /// A piece is good: whoever sent other bytes before is guilty.
    pub(super) fn clear_suspects(
        &mut self,
        now: Instant,
        piece: PieceIndex,
        digests: &[BlockDigest],
    ) {
        for attempt in self.suspects.0.remove(&piece).unwrap_or_default() {
            let mut guilty: Vec<Origin> = Vec::new();
            for ((source, theirs), right) in attempt.blocks.iter().zip(digests) {
                if theirs != right
                    && let Some(&origin) = attempt.origins.get(usize::from(*source))
                    && !guilty.contains(&origin)
                {
                    guilty.push(origin);
                }
            }
            self.ban(now, &guilty);
        }
    }

    fn ban(&mut self, now: Instant, guilty: &[Origin]) {
        for origin in guilty {
            self.sentence(now, Offender::of(origin.addr));
        }
        self.shun_banned(now);
    }

    /// Bans, closes what is open, and forgets what was sent.
    pub fn ban_offender(&mut self, now: Instant, offender: Offender) {
        self.sentence(now, offender);
        self.shun_banned(now);
    }

    fn sentence(&mut self, now: Instant, offender: Offender) {
        let until = now + BAN_TTL;
        // Several pieces may prove the same guilt.
        if self.shared.ban(offender, until) {
            self.totals.banned += 1;
            self.actions.push_back(Action::Ban(offender, until));
        }
    }

    /// Somebody was banned for what it sent to another swarm: it is done with here too.
    pub fn handle_bans(&mut self, now: Instant) {
        self.shun_banned(now);
        self.settle(now);
    }

    /// Closes on whoever is banned, and forgets its blocks. Its addresses are forgotten when their
    /// turn comes: there are many of them, and bans are many where somebody wants them to be.
    fn shun_banned(&mut self, now: Instant) {
        let shared = Rc::clone(&self.shared);
        for key in self.keys() {
            if self.peer(key).is_some_and(|peer| shared.is_banned(now, peer.addr)) {
                self.close(key, Error::Banned);
            }
        }
        let mut tainted = Vec::new();
        for (&piece, partial) in &self.partials {
            if partial.phase != Phase::Fetching {
                continue;
            }
            let banned: Vec<bool> =
                partial.origins.iter().map(|origin| shared.is_banned(now, origin.addr)).collect();
            if !banned.contains(&true) {
                continue;
            }
            for (index, slot) in (0u32..).zip(&partial.blocks) {
                if let Slot::Stored(source) = slot
                    && banned.get(usize::from(*source)) == Some(&true)
                {
                    tainted.push((piece, index));
                }
            }
        }
        for (piece, index) in tainted {
            self.set_slot(piece, index, Slot::Free);
        }
    }
}
