//! Tit for tat: while we fetch, slots go to those who give us most (BEP 3).
//!
//! Below those who give now come those who gave before, then those who never did, then those who
//! snub us; the optimistic slot is how strangers get to show what they give. Invariant: what we
//! gave a peer does not count.
#![forbid(unsafe_code)]

use super::{Candidate, Choker, Optimistic, Phase, Round, banded};

pub(super) struct TitForTat;

impl Choker for TitForTat {
    fn name(&self) -> &'static str {
        "tit_for_tat"
    }

    fn phase(&self) -> Phase {
        Phase::Leeching
    }

    fn score(&self, candidate: &Candidate, _: &Round) -> u64 {
        let (given, rate) = (candidate.downloaded_len, candidate.downloaded_rate);
        match (candidate.snubbed, rate, given) {
            (true, ..) => banded(0, 0),
            (false, 0, 0) => banded(1, 0),
            // It gave once and may again; without this, slots that nobody earns at the moment
            // would go to free riders as often as to those whom the last choke interrupted.
            (false, 0, _) => banded(2, given),
            (false, ..) => banded(3, rate),
        }
    }

    fn optimistic(&self) -> Optimistic {
        Optimistic::Drawn
    }
}
