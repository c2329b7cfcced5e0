//! Hashing what is being fetched.
//!
//! Pieces with bytes to hash enter, verdicts leave for the swarm. As many pieces as the processor
//! takes at once are hashed in step, of whatever torrents, best while their blocks are in its
//! cache; with fewer, a whole piece waits a moment for others. Invariant: a turn hashes a bounded
//! number of bytes, and a whole piece is judged however few others
//! there are.

use std::time::{Duration, Instant};

use super::Worker;
use super::table::Key;
use crate::metrics::HashReason;
use crate::ring::Driver;
use crate::storage::pieces::{self, Digest, OpenPiece, Progress};
use crate::swarm::Verdict;
use crate::sys::clock;
use crate::units::PieceIndex;

/// Bytes hashed per turn, over all pieces: a quarter of a millisecond with four at once.
const HASH_LEN_PER_TURN: usize = 1 << 20;

/// How long a whole piece waits at most for others to be hashed with it.
const HASH_WAIT: Duration = Duration::from_millis(5);

/// A whole piece whose digest is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToHash {
    pub(super) torrent: Key,
    pub(super) piece: PieceIndex,
    /// Whether digests of its blocks are wanted too.
    pub(super) digests: bool,
    pub(super) since: Instant,
}

/// A piece that is judged, but for the digests of its blocks.
#[derive(Debug)]
pub(super) struct ToBlame {
    pub(super) torrent: Key,
    pub(super) piece: PieceIndex,
    good: bool,
    /// Those of its first blocks, so far.
    digests: Vec<Digest>,
}

impl<D: Driver> Worker<D> {
    /// Hashes some of what has arrived, and judges the pieces of which all is hashed.
    pub(super) fn hash_some(&mut self) {
        if self.to_hash.is_empty() && self.to_blame.is_empty() && !self.can_fill_lanes() {
            return;
        }
        let begun = clock::now();
        let mut hashed = self.digest_blocks();
        while hashed < HASH_LEN_PER_TURN {
            match self.hash_group(HASH_LEN_PER_TURN - hashed) {
                0 => break,
                len => hashed += len,
            }
        }
        self.core.hash_seconds.add(clock::now() - begun);
        self.judge_hashed();
    }

    /// Whether there is enough to hash for the processor's best rate.
    pub(super) fn can_fill_lanes(&self) -> bool {
        self.fresh.len() >= self.engine.width()
    }

    /// How long whole pieces may wait for more of them.
    pub(super) fn hash_wait(&self) -> Duration {
        match self.to_hash.front() {
            Some(front) if self.to_hash.len() < self.engine.width() => {
                HASH_WAIT.saturating_sub(self.now.saturating_duration_since(front.since))
            }
            _ => Duration::ZERO,
        }
    }

    /// Hashes one group of pieces; returns the bytes in all, 0 if there is no group.
    fn hash_group(&mut self, len_max: usize) -> usize {
        let width = self.engine.width();
        let is_due = !self.to_hash.is_empty() && self.hash_wait() == Duration::ZERO;
        if !is_due && !self.can_fill_lanes() {
            return 0;
        }
        let mut group = std::mem::take(&mut self.scratch.hash_group);
        let mut lent = std::mem::take(&mut self.scratch.hash_lent);
        if is_due {
            for at in 0..self.to_hash.len() {
                if lent.len() == width {
                    break;
                }
                let entry = self.to_hash[at];
                self.lend((entry.torrent, entry.piece), &mut group, &mut lent);
            }
        }
        while lent.len() < width
            && let Some(place) = self.fresh.pop_front()
        {
            self.lend(place, &mut group, &mut lent);
        }
        let is_full = lent.len() == width;
        let hashed = if (is_full || is_due) && !lent.is_empty() {
            let share = len_max / lent.len();
            pieces::hash_together(self.engine, &mut lent, share)
        } else {
            0
        };
        for ((key, piece), open) in group.drain(..).zip(lent.drain(..)) {
            if open.has_more() {
                self.fresh.push_back((key, piece));
            }
            if let Some(torrent) = self.torrents.get_mut(key) {
                torrent.pieces.take_back(piece, open);
            }
        }
        (self.scratch.hash_group, self.scratch.hash_lent) = (group, lent);
        hashed
    }

    /// Adds a piece to a group, unless there is nothing to hash of it or it is there already.
    fn lend(
        &mut self,
        place: (Key, PieceIndex),
        group: &mut Vec<(Key, PieceIndex)>,
        lent: &mut Vec<OpenPiece>,
    ) {
        let torrent = self.torrents.get_mut(place.0);
        if let Some(open) = torrent.and_then(|torrent| torrent.pieces.lend(place.1)) {
            group.push(place);
            lent.push(open);
        }
    }

    /// Hashes blocks of pieces whose senders may be to blame; returns the bytes hashed.
    fn digest_blocks(&mut self) -> usize {
        let mut hashed = 0;
        while hashed < HASH_LEN_PER_TURN
            && let Some(mut entry) = self.to_blame.pop_front()
        {
            let Some(torrent) = self.torrents.get_mut(entry.torrent) else { continue };
            let (piece, digests) = (entry.piece, &mut entry.digests);
            let len_max = HASH_LEN_PER_TURN - hashed;
            let Some(len) = torrent.pieces.digest_blocks(self.engine, piece, digests, len_max)
            else {
                continue;
            };
            hashed += len;
            if digests.len() < torrent.geometry().block_count(piece) as usize {
                self.to_blame.push_front(entry);
            } else {
                self.judge(entry.torrent, piece, entry.good, entry.digests);
            }
        }
        hashed
    }

    fn judge_hashed(&mut self) {
        for _ in 0..self.to_hash.len() {
            let Some(entry) = self.to_hash.pop_front() else { return };
            let ToHash { torrent: key, piece, digests, .. } = entry;
            let Some(torrent) = self.torrents.get_mut(key) else { continue };
            match torrent.pieces.digest(piece) {
                Progress::More => self.to_hash.push_back(entry),
                Progress::Done(digest) => {
                    let len = torrent.geometry().piece_len(piece);
                    self.core.hash_bytes[HashReason::Download].add(u64::from(len));
                    let good = torrent.content.metainfo.piece_hash(piece) == Some(&digest);
                    if good && !digests {
                        self.judge(key, piece, good, Vec::new());
                    } else {
                        let digests = Vec::new();
                        self.to_blame.push_back(ToBlame { torrent: key, piece, good, digests });
                    }
                }
                Progress::Absent => {
                    // Thrown away since it was whole. A new attempt that lost blocks with the old
                    // one begins again; the swarm ignores this of a piece it does not wait for.
                    torrent.swarm.handle_verified(self.now, piece, Verdict::Unreadable);
                    self.touch_torrent(key);
                }
            }
        }
    }
}
