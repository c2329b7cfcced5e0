//! Fastest upload: a seed serves those who take fastest, so that its upload is never idle.
//!
//! Peers that are choked have no rate; the optimistic slot, given each round to the one that
//! waited longest, is how they get one. Invariant: only the measured rate counts.
#![forbid(unsafe_code)]

use super::{Candidate, Choker, Optimistic, Phase, Round};

pub(super) struct FastestUpload;

impl Choker for FastestUpload {
    fn name(&self) -> &'static str {
        "fastest_upload"
    }

    fn phase(&self) -> Phase {
        Phase::Seeding
    }

    fn score(&self, candidate: &Candidate, _: &Round) -> u64 {
        // A peer that we choked since has a rate that still fades; it is not a claim.
        if candidate.unchoked { candidate.uploaded_rate } else { 0 }
    }

    fn optimistic(&self) -> Optimistic {
        Optimistic::Longest
    }
}
