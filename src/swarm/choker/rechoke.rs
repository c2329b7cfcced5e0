//! The round: what every choker has in common.
//!
//! Candidates, slots and a choker enter; who changes state leaves. Invariant: after a decision is
//! carried out no more peers are unchoked than there are slots, and no slot is free while an
//! interested peer is choked.
#![forbid(unsafe_code)]

use super::{
    Candidate, Choker, NEWCOMER, Optimistic, ROUND, ROUND_SLACK, Round, Slots, UNCHOKE_MIN, millis,
};
use std::cmp::Ordering;
use std::time::Duration;

/// How long a peer keeps the optimistic slot while we fetch: three rounds, as a peer needs that
/// long to finish a piece and to give one back (BEP 3).
const DRAWN_TURN: Duration = ROUND.saturating_mul(3);

/// Chances to be drawn of a newcomer: three times those of a peer that gave us something (BEP 3).
const NEWCOMER_WEIGHT: u64 = 6;

/// Chances of a peer that gave us something on this connection.
const GIVER_WEIGHT: u64 = 2;

/// Chances of a peer that had its time to give and gave nothing.
const TAKER_WEIGHT: u64 = 1;

/// Nobody waits longer than so many times what drawing everybody once would take.
const DRAWN_WAIT_FACTOR: u32 = 2;

/// What a round changes. Keys are in the order of the candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Choked peers to unchoke.
    pub unchoke: Vec<u32>,
    /// Unchoked peers to choke.
    pub choke: Vec<u32>,
    /// The peer in the optimistic slot, be it new there or not. Whoever is named here has
    /// [`Candidate::optimistic`] set in the next round, and nobody else.
    pub optimistic: Option<u32>,
}

/// A slot given between rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The peer to unchoke.
    pub unchoke: u32,
    /// A peer to choke first: it holds a slot without being interested.
    pub choke: Option<u32>,
}

/// The order of candidates; the greatest comes first. The index makes it total.
type Rank = (Tier, u64, u64, u64, usize);

/// What goes before any score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Unchoked, but no longer interested: keeps a slot that nobody wants, so that a peer whose
    /// interest flickers costs no messages.
    Idle,
    /// Interested.
    Interested,
    /// Unchoked so recently that choking it would be flapping.
    Fresh,
}

/// Decides rounds. Holds nothing but memory that is used again: one serves all torrents of a core.
#[derive(Debug, Default)]
pub struct Rechoke {
    ranks: Vec<Rank>,
    keeps: Vec<bool>,
    decision: Decision,
}

impl Rechoke {
    /// Without memory yet; it grows to the largest round it sees.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decides one round for the peers of one torrent, `piece_len` bytes a piece.
    ///
    /// Takes linear time. With slots for everybody nobody is choked.
    pub fn run(
        &mut self,
        candidates: &[Candidate],
        slots: Slots,
        piece_len: u32,
        choker: &dyn Choker,
        rng: &mut fastrand::Rng,
    ) -> &Decision {
        self.keeps.clear();
        self.decision.unchoke.clear();
        self.decision.choke.clear();
        self.decision.optimistic = None;
        let holders = candidates.iter().filter(|peer| peer.interested || peer.unchoked).count();
        match slots {
            Slots::Limited(limit) if count_u32(holders) > limit => {
                self.keeps.resize(candidates.len(), false);
                self.choose(candidates, limit, piece_len, choker, rng);
            }
            _ => self.keeps.resize(candidates.len(), true),
        }
        for (peer, &keep) in candidates.iter().zip(&self.keeps) {
            match (peer.unchoked, keep) {
                (true, false) => self.decision.choke.push(peer.key),
                (false, true) if peer.interested => self.decision.unchoke.push(peer.key),
                _ => {}
            }
        }
        &self.decision
    }

    /// Sets `keeps` for exactly `slot_count` peers; there are more that could be.
    fn choose(
        &mut self,
        candidates: &[Candidate],
        slot_count: u32,
        piece_len: u32,
        choker: &dyn Choker,
        rng: &mut fastrand::Rng,
    ) {
        let round = Round { interested_count: interested_count(candidates), slot_count, piece_len };
        let policy = choker.optimistic();
        let standing = candidates.iter().position(|peer| stands(peer, policy));
        self.ranks.clear();
        self.ranks.extend(
            candidates
                .iter()
                .enumerate()
                .filter(|&(index, _)| Some(index) != standing)
                .filter_map(|(index, peer)| rank(index, peer, choker, &round)),
        );
        let slot_count = slot_count as usize;
        let fresh = self.ranks.iter().filter(|rank| rank.0 == Tier::Fresh).count();
        let standing = standing.filter(|_| fresh < slot_count);
        let wants_optimistic = policy != Optimistic::Off && fresh < slot_count;
        let regular = slot_count - usize::from(wants_optimistic);
        self.keep_best(regular);
        if !wants_optimistic {
            return;
        }
        let chosen = standing.or_else(|| draw(candidates, &self.keeps, policy, rng));
        match chosen {
            Some(index) => {
                self.keeps[index] = true;
                self.decision.optimistic = Some(candidates[index].key);
            }
            None => self.keep_best(slot_count),
        }
    }

    /// Sets `keeps` for the `count` greatest ranks.
    fn keep_best(&mut self, count: usize) {
        if count > 0 && count < self.ranks.len() {
            self.ranks.select_nth_unstable_by(count - 1, |one, two| two.cmp(one));
        }
        for &(.., index) in self.ranks.iter().take(count) {
            self.keeps[index] = true;
        }
    }
}

/// Gives a free slot, or one whose holder is not interested, to the choked peer that deserves it
/// most; `None` if there is no such slot or nobody waits. Takes linear time and no memory.
pub fn pick_next(
    candidates: &[Candidate],
    slots: Slots,
    piece_len: u32,
    choker: &dyn Choker,
) -> Option<Pick> {
    let unchoked_count = count_u32(candidates.iter().filter(|peer| peer.unchoked).count());
    let slot_count = slots.cut(u32::MAX);
    let choke = match unchoked_count.cmp(&slot_count) {
        Ordering::Less => None,
        Ordering::Equal => {
            Some(candidates.iter().find(|peer| peer.unchoked && !peer.interested)?.key)
        }
        // Slots were taken away since: the next round chokes somebody first.
        Ordering::Greater => return None,
    };
    let round = Round { interested_count: interested_count(candidates), slot_count, piece_len };
    let best = candidates
        .iter()
        .enumerate()
        .filter(|(_, peer)| peer.interested && !peer.unchoked)
        .filter_map(|(index, peer)| rank(index, peer, choker, &round))
        .max()?;
    Some(Pick { unchoke: candidates[best.4].key, choke })
}

/// The place of a peer among the others; `None` for one that cannot have a slot.
fn rank(index: usize, peer: &Candidate, choker: &dyn Choker, round: &Round) -> Option<Rank> {
    let tier = match (peer.interested, peer.unchoked) {
        (false, false) => return None,
        (false, true) => return Some((Tier::Idle, 0, 0, peer.tie, index)),
        (true, true) if peer.unchoked_for < UNCHOKE_MIN => Tier::Fresh,
        (true, _) => Tier::Interested,
    };
    Some((tier, choker.score(peer, round), millis(peer.waiting_for), peer.tie, index))
}

/// Whether the peer has the optimistic slot and keeps it for this round.
fn stands(peer: &Candidate, policy: Optimistic) -> bool {
    let turn = match policy {
        Optimistic::Off => return false,
        Optimistic::Drawn => DRAWN_TURN,
        Optimistic::Longest => ROUND,
    };
    peer.optimistic && peer.unchoked && peer.interested && peer.unchoked_for + ROUND_SLACK < turn
}

/// The next peer for the optimistic slot, among those who wait and were not kept.
fn draw(
    candidates: &[Candidate],
    keeps: &[bool],
    policy: Optimistic,
    rng: &mut fastrand::Rng,
) -> Option<usize> {
    let waiting = || {
        candidates
            .iter()
            .enumerate()
            .filter(|&(index, peer)| peer.interested && !peer.unchoked && !keeps[index])
    };
    let (longest, peer) = waiting().max_by_key(|(_, peer)| (peer.waiting_for, peer.tie))?;
    if policy == Optimistic::Longest {
        return Some(longest);
    }
    let patience = (DRAWN_TURN * DRAWN_WAIT_FACTOR).saturating_mul(count_u32(waiting().count()));
    if peer.waiting_for > patience {
        return Some(longest);
    }
    let total: u64 = waiting().map(|(_, peer)| weight(peer)).sum();
    let mut left = rng.u64(..total.max(1));
    for (index, peer) in waiting() {
        match left.checked_sub(weight(peer)) {
            Some(less) => left = less,
            None => return Some(index),
        }
    }
    Some(longest)
}

fn weight(peer: &Candidate) -> u64 {
    match (peer.connected_for < NEWCOMER, peer.uploaded_recently, peer.downloaded_len) {
        (true, 0, _) => NEWCOMER_WEIGHT,
        (_, _, 0) => TAKER_WEIGHT,
        _ => GIVER_WEIGHT,
    }
}

fn interested_count(candidates: &[Candidate]) -> u32 {
    count_u32(candidates.iter().filter(|peer| peer.interested).count())
}

fn count_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
