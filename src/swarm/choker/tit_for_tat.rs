//! Tit for tat: while we fetch, slots go to those who give us most (BEP 3).
//!
//! A peer that snubs us ranks below one that never gave anything; the optimistic slot is how
//! strangers get to show what they give. Invariant: what we gave a peer does not count.
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
        banded(u8::from(!candidate.snubbed), candidate.downloaded_rate)
    }

    fn optimistic(&self) -> Optimistic {
        Optimistic::Drawn
    }
}
