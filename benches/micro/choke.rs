//! The choker's round over ten thousand peers, with each of the policies.

use std::time::Duration;

use seedring::swarm::choker::{CHOKERS, Candidate, Optimistic, Rechoke, Slots};

use crate::timing::{Bench, Per, fold};

const SLOTS: u32 = 500;
const PIECE_LEN: u32 = 1 << 20;

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let count = bench.size(10_000, 600);
    let mut rng = fastrand::Rng::with_seed(2);
    let candidates: Vec<Candidate> = (0u32..).take(count).map(|key| draw(key, &mut rng)).collect();
    for choker in CHOKERS {
        let name = format!("choke: round of {count}, {}", choker.name());
        let mut candidates = candidates.clone();
        if choker.optimistic() == Optimistic::Off {
            candidates.iter_mut().for_each(|peer| peer.optimistic = false);
        }
        let prepare = || (Rechoke::new(), fastrand::Rng::with_seed(3));
        bench.case(&name, Per::Item("peer"), count, prepare, |(mut rechoke, mut rng)| {
            let slots = Slots::Limited(SLOTS);
            let decision = rechoke.run(&candidates, slots, PIECE_LEN, *choker, &mut rng);
            let changes = decision.unchoke.iter().chain(&decision.choke);
            let checksum = changes.fold(0, |sum, &key| fold(sum, u64::from(key)));
            fold(checksum, decision.optimistic.map_or(0, u64::from))
        });
    }
}

fn draw(key: u32, rng: &mut fastrand::Rng) -> Candidate {
    let unchoked = key < SLOTS;
    let seconds = |rng: &mut fastrand::Rng| Duration::from_secs(rng.u64(..600));
    Candidate {
        key,
        interested: rng.u32(..10) > 0,
        unchoked,
        optimistic: key == 0,
        snubbed: rng.u32(..50) == 0,
        connected_for: seconds(rng),
        unchoked_for: if unchoked { seconds(rng) } else { Duration::ZERO },
        waiting_for: if unchoked { Duration::ZERO } else { seconds(rng) },
        downloaded_rate: rng.u64(..1 << 24),
        downloaded_len: rng.u64(..1 << 34),
        uploaded_rate: rng.u64(..1 << 24),
        uploaded_in_turn: if unchoked { rng.u64(..1 << 30) } else { 0 },
        uploaded_recently: rng.u64(..1 << 30),
        progress_permille: rng.u16(..=1000),
        tie: rng.u64(..),
    }
}
