//! Anti-leech: a seed prefers peers that have almost nothing or almost everything.
//!
//! The first can spread what they get to the most others, the last are about to become seeds; who
//! is half way is served by the rest of the swarm. Peers about equally far from the middle take
//! turns as in [`round_robin`](super::round_robin), and the optimistic slot lets the middle in.
//! Invariant: a peer nearer to an end never loses its slot to one nearer to the middle.
#![forbid(unsafe_code)]

use super::round_robin::place_in_line;
use super::{Candidate, Choker, Optimistic, Phase, Round};

/// Half of the pieces, in thousandths: the place that deserves least.
const MIDDLE_PERMILLE: u16 = 500;

/// Peers within so many thousandths of each other are equals.
const CLASS_PERMILLE: u16 = 50;

/// Bits that [`place_in_line`] uses.
const PLACE_BITS: u32 = 58;

pub(super) struct AntiLeech;

impl Choker for AntiLeech {
    fn name(&self) -> &'static str {
        "anti_leech"
    }

    fn phase(&self) -> Phase {
        Phase::Seeding
    }

    fn score(&self, candidate: &Candidate, round: &Round) -> u64 {
        let progress = candidate.progress_permille.min(2 * MIDDLE_PERMILLE);
        let class = progress.abs_diff(MIDDLE_PERMILLE) / CLASS_PERMILLE;
        u64::from(class) << PLACE_BITS | place_in_line(candidate, round)
    }

    fn optimistic(&self) -> Optimistic {
        Optimistic::Longest
    }
}
