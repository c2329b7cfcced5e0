//! Which pieces are wanted, and what follows when that changes.
//!
//! A set of pieces enters; what is fetched, and of whom, follows. Without a set all are wanted. A
//! swarm that has what it wants fetches no more and says so (BEP 21): it is a partial seed, unless it
//! has everything. Invariant: no piece that is not wanted is opened, and `missing` equals a recount.
#![forbid(unsafe_code)]

use super::availability::Availability;
use super::peer::{Peer, Pieces};
use super::{Swarm, options::Options};
use crate::units::{Bitfield, PieceIndex};
use crate::wire::{ExtensionHandshake, encode_extension_handshake};
use std::time::Instant;

/// What is wanted of a torrent.
pub(super) struct Wanted {
    /// `None`: everything.
    pieces: Option<Bitfield>,
    /// Pieces that are wanted and not ours.
    missing: u32,
}

impl Wanted {
    /// Of a torrent of which we have `have`. A set over another number of pieces counts as none.
    pub(super) fn new(pieces: Option<Bitfield>, have: &Bitfield) -> Self {
        let pieces = pieces.filter(|pieces| pieces.len() == have.len());
        let missing = match &pieces {
            Some(pieces) => have.count_lacking_of(pieces),
            None => have.len() - have.count(),
        };
        Self { pieces, missing }
    }

    /// Whether `piece` is wanted.
    pub(super) fn has(&self, piece: PieceIndex) -> bool {
        self.pieces.as_ref().is_none_or(|pieces| pieces.has(piece))
    }

    /// Whether `piece` is wanted and not in `have`.
    pub(super) fn lacks(&self, have: &Bitfield, piece: PieceIndex) -> bool {
        !have.has(piece) && self.has(piece)
    }

    /// How many pieces are wanted and missing.
    pub(super) fn missing(&self) -> u32 {
        self.missing
    }

    /// Notes that `piece` became ours, or is not any more; whether that makes a difference to us.
    pub(super) fn note(&mut self, piece: PieceIndex, is_ours: bool) -> bool {
        if !self.has(piece) {
            return false;
        }
        self.missing = if is_ours { self.missing.saturating_sub(1) } else { self.missing + 1 };
        true
    }

    /// How many of `pieces` are wanted and not in `have`.
    pub(super) fn count_lacking(&self, have: &Bitfield, pieces: &Bitfield) -> u32 {
        match &self.pieces {
            None => have.count_lacking_of(pieces),
            Some(_) => {
                let lacking = pieces.iter().filter(|&piece| self.lacks(have, piece)).count();
                u32::try_from(lacking).unwrap_or(u32::MAX)
            }
        }
    }
}

impl Swarm {
    /// Whether every piece that is wanted is on disk.
    pub fn is_finished(&self) -> bool {
        self.wanted.missing() == 0
    }

    /// Whether pieces that are wanted are missing and to be fetched.
    pub(super) fn wants_pieces(&self) -> bool {
        self.options.fetch && !self.is_finished()
    }

    /// Whether `piece` is wanted, ours or not.
    pub fn is_wanted(&self, piece: PieceIndex) -> bool {
        self.wanted.has(piece)
    }

    /// Changes what is wanted; `None` is everything. Pieces under way that are not wanted any more
    /// are given up. `Action::Finished` follows if nothing that is wanted is missing any more.
    pub fn set_wanted(&mut self, now: Instant, pieces: Option<Bitfield>) {
        let was_finished = self.is_finished();
        self.wanted = Wanted::new(pieces, &self.have);
        let wanted = &self.wanted;
        let partials = self.partials.keys().copied();
        for piece in partials.filter(|&piece| !wanted.has(piece)).collect::<Vec<_>>() {
            self.abandon(piece);
        }
        for (_, peer) in &mut self.peers {
            if let Pieces::Some(pieces) = &peer.pieces {
                peer.wanted = self.wanted.count_lacking(&self.have, pieces);
            }
        }
        self.availability = None;
        if self.wants_pieces() {
            self.regain_availability();
        }
        match (was_finished, self.is_finished()) {
            (false, true) => self.finish(),
            (true, false) => self.tell_upload_only(false),
            _ => {}
        }
        for key in self.keys() {
            self.update_interest(key);
            self.refill(now, key);
        }
        self.start_seconds(now);
        if self.wants_pieces() {
            self.contacts.revive_seeds(now);
            self.connect_due(now);
        }
        self.settle(now);
    }

    /// Forgets what has come of a piece that is not ours; it is fetched anew if it is wanted.
    pub fn give_up(&mut self, now: Instant, piece: PieceIndex) {
        self.abandon(piece);
        self.settle(now);
    }

    /// Counts again who has what, after a time in which it did not matter.
    pub(super) fn regain_availability(&mut self) {
        if self.availability.is_some() {
            return;
        }
        let mut fresh = fresh_availability(&self.wanted, &self.have, &mut self.rng);
        for &piece in self.partials.keys() {
            fresh.set_pickable(piece, false);
        }
        for (_, peer) in &self.peers {
            if let Pieces::Some(pieces) = &peer.pieces {
                fresh.add_all(pieces);
            }
        }
        self.availability = Some(fresh);
    }

    /// Tells every peer whether we want no more data.
    pub(super) fn tell_upload_only(&mut self, upload_only: bool) {
        for key in self.keys() {
            let Some(peer) = self.peer_mut(key).filter(|peer| peer.extensions) else { continue };
            say_upload_only(peer, upload_only);
            self.wake(key);
        }
    }
}

/// What is wanted, and who has it, at the start of a swarm.
pub(super) fn begin(
    options: &mut Options,
    have: &Bitfield,
    rng: &mut fastrand::Rng,
) -> (Wanted, Option<Availability>) {
    let wanted = Wanted::new(options.wanted.take(), have);
    let wants_pieces = options.fetch && wanted.missing() > 0;
    let availability = wants_pieces.then(|| fresh_availability(&wanted, have, rng));
    (wanted, availability)
}

fn fresh_availability(wanted: &Wanted, have: &Bitfield, rng: &mut fastrand::Rng) -> Availability {
    Availability::new(have.len(), |piece| wanted.lacks(have, piece), rng)
}

fn say_upload_only(peer: &mut Peer, upload_only: bool) {
    let handshake =
        ExtensionHandshake { upload_only: Some(upload_only), ..ExtensionHandshake::default() };
    encode_extension_handshake(&handshake, &mut peer.control);
}
