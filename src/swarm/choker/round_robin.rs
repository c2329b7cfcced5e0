//! Round robin: a seed serves everybody in turn.
//!
//! A turn ends after twenty pieces, or after a time that is as long as it can be while everybody
//! still comes round within [`ROUNDS_TO_SERVE_ALL`]: one minute if few wait, one round if many do.
//! Then the peer yields to whoever waits, and its own wait begins. Invariant: neither speed nor
//! coming back under a new connection moves a peer forward in the line.
#![forbid(unsafe_code)]

use super::{
    Candidate, Choker, Optimistic, Phase, ROUND, ROUND_SLACK, ROUNDS_TO_SERVE_ALL, Round, banded,
    millis,
};

/// Pieces after which a turn ends: a newcomer has something to trade with then.
const TURN_PIECES: u64 = 20;

/// The longest turn in rounds while somebody waits.
const TURN_ROUNDS_MAX: u32 = 6;

pub(super) struct RoundRobin;

impl Choker for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn phase(&self) -> Phase {
        Phase::Seeding
    }

    fn score(&self, candidate: &Candidate, round: &Round) -> u64 {
        place_in_line(candidate, round)
    }

    fn optimistic(&self) -> Optimistic {
        Optimistic::Off
    }
}

/// A turn that lasts comes first, then those who wait, longest first, then turns that are over,
/// longest last. Below 2^58, for chokers that add a criterion of their own above it.
pub(super) fn place_in_line(candidate: &Candidate, round: &Round) -> u64 {
    let shortest_first = u64::MAX >> 8;
    let unchoked = shortest_first.saturating_sub(millis(candidate.unchoked_for));
    match (candidate.unchoked, is_turn_over(candidate, round)) {
        (true, false) => banded(2, unchoked),
        (false, _) => banded(1, millis(candidate.waiting_for)),
        (true, true) => banded(0, unchoked),
    }
}

fn is_turn_over(candidate: &Candidate, round: &Round) -> bool {
    candidate.uploaded_in_turn >= TURN_PIECES * u64::from(round.piece_len)
        || candidate.unchoked_for + ROUND_SLACK >= ROUND * turn_rounds(round)
}

/// Rounds that a turn lasts, so that every slot gets round to its share of the peers in time.
fn turn_rounds(round: &Round) -> u32 {
    let turns_per_slot = round.interested_count.div_ceil(round.slot_count.max(1)).max(1);
    (ROUNDS_TO_SERVE_ALL / turns_per_slot).clamp(1, TURN_ROUNDS_MAX)
}
