//! How many peers have each piece, and the pieces in the order of that number.
//!
//! Peers' pieces enter, "which pickable piece is rarest among those that this peer has" leaves.
//! The pieces are one permutation cut into buckets: bucket 0 holds those that must not be picked
//! (ours, not wanted, or being fetched), bucket n + 1 those that n peers have; a step between neighbouring
//! buckets is one swap. Peers that have everything are not counted here, they would move every
//! piece alike. A peer that comes or goes with many pieces only changes the counts; the order is
//! then made anew by one counting sort before the next pick.
//!
//! Invariant: `order` is a permutation of all pieces, and each piece lies in its bucket unless
//! `stale` is set.
#![forbid(unsafe_code)]

use crate::units::{Bitfield, PieceIndex};

/// Pieces that one pick looks at in the order of rarity before it takes any piece the peer has.
const PICK_SCAN_MAX: usize = 4096;

pub(super) struct Availability {
    counts: Vec<u16>,
    pickable: Bitfield,
    order: Vec<u32>,
    position: Vec<u32>,
    /// First position of each bucket; one entry more than there are buckets.
    bounds: Vec<u32>,
    stale: bool,
}

impl Availability {
    /// Of `len` pieces nobody has any; those that `is_pickable` may be picked. Ties are in random
    /// order.
    pub(super) fn new(
        len: u32,
        is_pickable: impl Fn(PieceIndex) -> bool,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let mut pickable = Bitfield::none(len);
        let mut order: Vec<u32> = (0..len).collect();
        rng.shuffle(&mut order);
        for piece in order.iter().copied().map(PieceIndex).filter(|&piece| is_pickable(piece)) {
            pickable.set(piece);
        }
        let pieces = order.len();
        let mut fresh = Self {
            counts: vec![0; pieces],
            pickable,
            order,
            position: vec![0; pieces],
            bounds: Vec::new(),
            stale: true,
        };
        fresh.sort();
        fresh
    }

    /// Number of peers that have `piece`, those that have everything left out.
    pub(super) fn count(&self, piece: PieceIndex) -> u16 {
        self.counts.get(piece.0 as usize).copied().unwrap_or(0)
    }

    pub(super) fn is_pickable(&self, piece: PieceIndex) -> bool {
        self.pickable.has(piece)
    }

    /// Number of pieces that may be picked.
    pub(super) fn pickable_count(&self) -> u32 {
        self.pickable.count()
    }

    pub(super) fn add(&mut self, piece: PieceIndex) {
        let at = piece.0 as usize;
        let Some(count) = self.counts.get_mut(at) else {
            return;
        };
        *count = count.saturating_add(1);
        if self.pickable.has(piece) && !self.stale {
            self.raise(piece);
        }
    }

    pub(super) fn add_all(&mut self, pieces: &Bitfield) {
        self.stale |= self.is_bulk(pieces);
        pieces.iter().for_each(|piece| self.add(piece));
    }

    pub(super) fn remove_all(&mut self, pieces: &Bitfield) {
        self.stale |= self.is_bulk(pieces);
        for piece in pieces.iter() {
            if self.pickable.has(piece) && !self.stale {
                self.lower(piece);
            }
            if let Some(count) = self.counts.get_mut(piece.0 as usize) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Says whether `piece` may be picked from now on.
    pub(super) fn set_pickable(&mut self, piece: PieceIndex, pickable: bool) {
        let changed = if pickable { self.pickable.set(piece) } else { self.pickable.clear(piece) };
        if !changed || self.stale {
            return;
        }
        for _ in 0..=self.count(piece) {
            if pickable {
                self.raise(piece);
            } else {
                self.lower(piece);
            }
        }
    }

    /// The rarest pickable piece that the peer has (`None`: it has all) and that is not among
    /// `except`; ties are broken by the order.
    pub(super) fn rarest(
        &mut self,
        theirs: Option<&Bitfield>,
        except: &[PieceIndex],
    ) -> Option<PieceIndex> {
        let fits = |piece: PieceIndex| {
            theirs.is_none_or(|theirs| theirs.has(piece)) && !except.contains(&piece)
        };
        let pickable = self.pickable_in_order();
        let scan = pickable.iter().take(PICK_SCAN_MAX);
        let found = scan.copied().map(PieceIndex).find(|&piece| fits(piece));
        if found.is_some() || pickable.len() <= PICK_SCAN_MAX {
            return found;
        }
        self.first(theirs, except)
    }

    /// A pickable piece that the peer has, from a random place of the order.
    pub(super) fn random(
        &mut self,
        theirs: Option<&Bitfield>,
        except: &[PieceIndex],
        rng: &mut fastrand::Rng,
    ) -> Option<PieceIndex> {
        let pickable = self.pickable_in_order();
        let (before, after) = pickable.split_at(rng.usize(..pickable.len().max(1)));
        let fits = |piece: &PieceIndex| {
            theirs.is_none_or(|theirs| theirs.has(*piece)) && !except.contains(piece)
        };
        let scan = after.iter().chain(before).take(PICK_SCAN_MAX);
        let found = scan.copied().map(PieceIndex).find(fits);
        found.or_else(|| self.rarest(theirs, except))
    }

    /// The pickable piece with the lowest index that the peer has.
    pub(super) fn first(
        &self,
        theirs: Option<&Bitfield>,
        except: &[PieceIndex],
    ) -> Option<PieceIndex> {
        let fits = |piece: &PieceIndex| self.pickable.has(*piece) && !except.contains(piece);
        match theirs {
            Some(theirs) => theirs.iter().find(fits),
            None => self.pickable.iter().find(fits),
        }
    }

    /// The pickable pieces, rarest first.
    fn pickable_in_order(&mut self) -> &[u32] {
        if self.stale {
            self.sort();
        }
        let first = self.bounds.get(1).copied().unwrap_or(0) as usize;
        self.order.get(first..).unwrap_or(&[])
    }

    fn is_bulk(&self, pieces: &Bitfield) -> bool {
        pieces.count() > 64 && pieces.count() > pieces.len() / 16
    }

    fn bucket(&self, piece: u32) -> usize {
        if self.pickable.has(PieceIndex(piece)) {
            usize::from(self.counts[piece as usize]) + 1
        } else {
            0
        }
    }

    /// Moves `piece` from its bucket to the next one.
    fn raise(&mut self, piece: PieceIndex) {
        let at = self.position[piece.0 as usize];
        let bucket = self.bucket_at(at);
        if bucket + 2 == self.bounds.len() {
            self.bounds.push(self.bounds[bucket + 1]);
        }
        self.bounds[bucket + 1] -= 1;
        self.swap(at, self.bounds[bucket + 1]);
    }

    /// Moves `piece` from its bucket to the one before.
    fn lower(&mut self, piece: PieceIndex) {
        let at = self.position[piece.0 as usize];
        let bucket = self.bucket_at(at);
        self.swap(at, self.bounds[bucket]);
        self.bounds[bucket] += 1;
    }

    /// The bucket that position `at` lies in.
    fn bucket_at(&self, at: u32) -> usize {
        self.bounds.partition_point(|&bound| bound <= at) - 1
    }

    fn swap(&mut self, one: u32, other: u32) {
        self.order.swap(one as usize, other as usize);
        self.position[self.order[one as usize] as usize] = one;
        self.position[self.order[other as usize] as usize] = other;
    }

    /// One counting sort; pieces of a bucket keep their order.
    fn sort(&mut self) {
        let top = self.counts.iter().copied().max().map_or(0, usize::from);
        let mut bounds = vec![0u32; top + 3];
        for &piece in &self.order {
            bounds[self.bucket(piece) + 1] += 1;
        }
        for bucket in 1..bounds.len() {
            bounds[bucket] += bounds[bucket - 1];
        }
        let mut next = bounds.clone();
        let mut order = vec![0; self.order.len()];
        for &piece in &self.order {
            let slot = &mut next[self.bucket(piece)];
            order[*slot as usize] = piece;
            self.position[piece as usize] = *slot;
            *slot += 1;
        }
        self.order = order;
        self.bounds = bounds;
        self.stale = false;
    }

    /// Panics unless the order is a permutation and every piece lies in its bucket.
    pub(super) fn check_invariants(&self) {
        for (at, &piece) in self.order.iter().enumerate() {
            assert_eq!(self.position[piece as usize] as usize, at, "the order is a permutation");
            if !self.stale {
                let at = self.position[piece as usize];
                assert_eq!(self.bucket_at(at), self.bucket(piece), "piece {piece} is misplaced");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(len: u32, rng: &mut fastrand::Rng, of_100: u32) -> Bitfield {
        let mut field = Bitfield::none(len);
        (0..len).filter(|_| rng.u32(..100) < of_100).for_each(|at| {
            field.set(PieceIndex(at));
        });
        field
    }

    #[test]
    fn order_equals_recount_whatever_happens() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let len = rng.u32(1..400);
            let have = field(len, &mut rng, 20);
            let mut map = Availability::new(len, |piece| !have.has(piece), &mut rng);
            let mut peers: Vec<Bitfield> = Vec::new();
            for _ in 0..200 {
                let piece = PieceIndex(rng.u32(..len));
                match rng.u32(..6) {
                    0 => {
                        let of_100 = rng.u32(..=100);
                        peers.push(field(len, &mut rng, of_100));
                        map.add_all(peers.last().unwrap());
                    }
                    1 if !peers.is_empty() => {
                        map.remove_all(&peers.swap_remove(rng.usize(..peers.len())));
                    }
                    2 if !peers.is_empty() => {
                        let peer = rng.usize(..peers.len());
                        if peers[peer].set(piece) {
                            map.add(piece);
                        }
                    }
                    3 => map.set_pickable(piece, rng.bool()),
                    _ => {
                        let theirs = field(len, &mut rng, 30);
                        let best = theirs.iter().filter(|&p| map.is_pickable(p));
                        let best = best.map(|p| map.count(p)).min();
                        let found = map.rarest(Some(&theirs), &[]);
                        assert_eq!(found.map(|p| map.count(p)), best, "seed {seed}");
                        assert!(found.is_none_or(|p| theirs.has(p) && map.is_pickable(p)));
                        assert_eq!(
                            map.random(Some(&theirs), &[], &mut rng).is_some(),
                            best.is_some()
                        );
                    }
                }
                map.check_invariants();
                let recount = peers.iter().filter(|peer| peer.has(piece)).count();
                assert_eq!(usize::from(map.count(piece)), recount, "seed {seed}");
            }
        }
    }

    #[test]
    fn a_peer_with_the_last_piece_only_is_found_among_many() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut map = Availability::new(100_000, |_| true, &mut rng);
        let mut theirs = Bitfield::none(100_000);
        theirs.set(PieceIndex(99_999));
        map.add_all(&theirs);
        assert_eq!(map.rarest(Some(&theirs), &[]), Some(PieceIndex(99_999)));
    }
}
