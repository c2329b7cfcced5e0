//! SHA-1: one stream, and several at once with every engine that this processor has.

use seedring::sys::sha1::{self, Engine};

use crate::timing::{Bench, Per, fold};

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let piece_len = bench.size(1 << 20, 1 << 12);
    let count = bench.size(48, 8);
    let mut content = vec![0; piece_len * count];
    fastrand::Rng::with_seed(4).fill(&mut content);
    let pieces: Vec<&[u8]> = content.chunks(piece_len).collect();

    bench.case(
        "hash: one stream",
        Per::Byte,
        content.len(),
        || (),
        |()| pieces.iter().fold(0, |sum, piece| fold(sum, first_word(&sha1::digest(piece)))),
    );
    for engine in Engine::all() {
        let name = format!("hash: {} lanes of {}", engine.width(), engine.name());
        bench.case(
            &name,
            Per::Byte,
            content.len(),
            || (),
            |()| {
                let digests = sha1::digest_many(engine, &pieces);
                digests.iter().fold(0, |sum, digest| fold(sum, first_word(digest)))
            },
        );
    }
}

fn first_word(digest: &[u8; 20]) -> u64 {
    digest.first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
}
