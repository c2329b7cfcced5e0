//! SHA-1 by the SHA extensions of x86-64, up to four streams interleaved.
//!
//! Chaining values and whole steps enter; chaining values leave. `sha1rnds4` takes six cycles for
//! four rounds and can start every two, so the rounds of other streams fill the wait. Beyond four
//! streams the registers run out. Invariant: bytes are read only inside the given slices.
//!
//! JUSTIFICATION of `unsafe`: instructions that not every x86-64 has, and unaligned loads.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_extract_epi32, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
    _mm_setzero_si128, _mm_sha1msg1_epu32, _mm_sha1msg2_epu32, _mm_sha1nexte_epu32,
    _mm_sha1rnds4_epu32, _mm_shuffle_epi8, _mm_xor_si128,
};

use super::{State, Step};

/// The number of streams that fills the processor.
pub(super) const WIDTH: usize = 4;

/// Whether this processor has what [`compress`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
}

/// Advances `states[i]` by the steps of `streams[i]`; only where [`is_available`].
pub(super) fn compress(states: &mut [State], streams: &[&[Step]]) {
    let (fours, rest) = states.as_chunks_mut();
    let (four_streams, rest_streams) = streams.as_chunks();
    for (states, streams) in fours.iter_mut().zip(four_streams) {
        interleave::<4>(states, streams);
    }
    match rest.len() {
        3 => some::<3>(rest, rest_streams),
        2 => some::<2>(rest, rest_streams),
        _ => some::<1>(rest, rest_streams),
    }
}

fn some<const N: usize>(states: &mut [State], streams: &[&[Step]]) {
    if let (Some(states), Some(streams)) = (states.first_chunk_mut(), streams.first_chunk()) {
        interleave::<N>(states, streams);
    }
}

fn interleave<const N: usize>(states: &mut [State; N], streams: &[&[Step]; N]) {
    debug_assert!(is_available());
    // SAFETY: an engine of this kind is only made where `is_available` found the instructions.
    unsafe { steps(states, streams) }
}

/// The four vectors of a step, words in the order that the instructions want.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn words(step: &Step) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    let mut words = [_mm_setzero_si128(); 4];
    for (word, part) in words.iter_mut().zip(step.as_chunks::<16>().0) {
        // SAFETY: `part` is 16 bytes, and the load has no alignment to keep.
        let loaded = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
        *word = _mm_shuffle_epi8(loaded, swap);
    }
    words
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
#[expect(clippy::needless_range_loop, reason = "one index goes through several arrays in step")]
fn steps<const N: usize>(states: &mut [State; N], streams: &[&[Step]; N]) {
    let step_count = streams.iter().map(|stream| stream.len()).min().unwrap_or(0);
    let signed = states.map(|state| state.map(u32::cast_signed));
    let mut abcd = signed.map(|[a, b, c, d, _]| _mm_set_epi32(a, b, c, d));
    let mut e = signed.map(|[_, _, _, _, e]| _mm_set_epi32(e, 0, 0, 0));
    for index in 0..step_count {
        let (abcd_before, e_before) = (abcd, e);
        let mut w = [[_mm_setzero_si128(); 4]; N];
        for lane in 0..N {
            w[lane] = words(&streams[lane][index]);
        }
        // Four rounds of every stream, then the next four: `$group` counts them from 0 to 19.
        macro_rules! rounds {
            ($function:literal: $($group:literal)*) => {$(
                for lane in 0..N {
                    let w = &mut w[lane];
                    if $group >= 4 {
                        let part = _mm_sha1msg1_epu32(w[$group % 4], w[($group + 1) % 4]);
                        let part = _mm_xor_si128(part, w[($group + 2) % 4]);
                        w[$group % 4] = _mm_sha1msg2_epu32(part, w[($group + 3) % 4]);
                    }
                    let next = if $group == 0 {
                        _mm_add_epi32(e[lane], w[0])
                    } else {
                        _mm_sha1nexte_epu32(e[lane], w[$group % 4])
                    };
                    e[lane] = abcd[lane];
                    abcd[lane] = _mm_sha1rnds4_epu32::<$function>(abcd[lane], next);
                }
            )*};
        }
        rounds!(0: 0 1 2 3 4);
        rounds!(1: 5 6 7 8 9);
        rounds!(2: 10 11 12 13 14);
        rounds!(3: 15 16 17 18 19);
        for lane in 0..N {
            abcd[lane] = _mm_add_epi32(abcd[lane], abcd_before[lane]);
            e[lane] = _mm_sha1nexte_epu32(e[lane], e_before[lane]);
        }
    }
    for lane in 0..N {
        let state = [
            _mm_extract_epi32::<3>(abcd[lane]),
            _mm_extract_epi32::<2>(abcd[lane]),
            _mm_extract_epi32::<1>(abcd[lane]),
            _mm_extract_epi32::<0>(abcd[lane]),
            _mm_extract_epi32::<3>(e[lane]),
        ];
        states[lane] = state.map(i32::cast_unsigned);
    }
}
