//! SHA-1 of eight streams, each in one 32-bit lane of the 256-bit registers of AVX2.
//!
//! Chaining values and whole steps enter; chaining values leave. The rounds are those of RFC 3174
//! §6.1 on vectors; sixteen words of eight streams are turned from rows into columns first.
//! Invariant: bytes are read only inside the given slices.
//!
//! JUSTIFICATION of `unsafe`: instructions that not every x86-64 has, and unaligned access.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_or_si256,
    _mm256_permute2x128_si256, _mm256_set_epi64x, _mm256_set1_epi32, _mm256_setr_epi32,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{START, State, Step};

/// The number of streams that fills the registers.
pub(super) const WIDTH: usize = 8;

/// Fewer streams than this are faster one after the other.
const WORTH_IT: usize = 3;

/// Whether this processor has what [`compress`] needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Advances `states[i]` by the steps of `streams[i]`, at most [`WIDTH`] of them; only where
/// [`is_available`].
pub(super) fn compress(states: &mut [State], streams: &[&[Step]]) {
    if streams.len() < WORTH_IT {
        return super::compress_portably(states, streams);
    }
    debug_assert!(is_available() && states.len() <= WIDTH);
    // Lanes without a stream of their own follow the first one.
    let mut all_states = [START; WIDTH];
    let mut all_streams = [streams[0]; WIDTH];
    all_states[..states.len()].copy_from_slice(states);
    all_streams[..streams.len()].copy_from_slice(streams);
    // SAFETY: an engine of this kind is only made where `is_available` found the instructions.
    unsafe { steps(&mut all_states, &all_streams) };
    states.copy_from_slice(&all_states[..states.len()]);
}

#[target_feature(enable = "avx2")]
fn steps(states: &mut [State; WIDTH], streams: &[&[Step]; WIDTH]) {
    let step_count = streams.iter().map(|stream| stream.len()).min().unwrap_or(0);
    let mut sums = [_mm256_setzero_si256(); 5];
    for (index, sum) in sums.iter_mut().enumerate() {
        let [a, b, c, d, e, f, g, h] = states.map(|state| state[index].cast_signed());
        *sum = _mm256_setr_epi32(a, b, c, d, e, f, g, h);
    }
    for index in 0..step_count {
        let mut w = columns(streams, index);
        let values = rounds(sums, &mut w);
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = _mm256_add_epi32(*sum, value);
        }
    }
    for (index, sum) in sums.into_iter().enumerate() {
        let mut lanes = [0u32; WIDTH];
        // SAFETY: `lanes` is 32 bytes, and the store has no alignment to keep.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        for (state, lane) in states.iter_mut().zip(lanes) {
            state[index] = lane;
        }
    }
}

/// The eighty rounds of one step, on the chaining values `v` and the words `w`.
#[inline]
#[target_feature(enable = "avx2")]
fn rounds(v: [__m256i; 5], w: &mut [__m256i; 16]) -> [__m256i; 5] {
    let [mut a, mut b, mut c, mut d, mut e] = v;
    macro_rules! round {
        ($f:ident $k:ident $t:expr, $a:ident $b:ident $c:ident $d:ident $e:ident) => {
            let sum = _mm256_add_epi32($e, _mm256_add_epi32($k, word(w, $t)));
            let sum = $f(sum, $b, $c, $d);
            $e = _mm256_add_epi32(sum, rotate::<5, 27>($a));
            $b = rotate::<30, 2>($b);
        };
    }
    // After five rounds the five values have their names back.
    macro_rules! fives {
        ($f:ident $k:ident $($t:literal)*) => {$(
            round!($f $k $t, a b c d e);
            round!($f $k $t + 1, e a b c d);
            round!($f $k $t + 2, d e a b c);
            round!($f $k $t + 3, c d e a b);
            round!($f $k $t + 4, b c d e a);
        )*};
    }
    let k = _mm256_set1_epi32(0x5a82_7999);
    fives!(add_choice k 0 5 10 15);
    let k = _mm256_set1_epi32(0x6ed9_eba1);
    fives!(add_parity k 20 25 30 35);
    let k = _mm256_set1_epi32(0x8f1b_bcdc_u32.cast_signed());
    fives!(add_majority k 40 45 50 55);
    let k = _mm256_set1_epi32(0xca62_c1d6_u32.cast_signed());
    fives!(add_parity k 60 65 70 75);
    [a, b, c, d, e]
}

/// Word `t` of the message schedule; the last sixteen are kept.
#[inline]
#[target_feature(enable = "avx2")]
fn word(w: &mut [__m256i; 16], t: usize) -> __m256i {
    if t >= 16 {
        let near = _mm256_xor_si256(w[(t - 3) % 16], w[(t - 8) % 16]);
        let far = _mm256_xor_si256(w[(t - 14) % 16], w[t % 16]);
        let x = _mm256_xor_si256(near, far);
        // Doubling instead of shifting: more of the processor's units can add.
        w[t % 16] = _mm256_or_si256(_mm256_add_epi32(x, x), _mm256_srli_epi32::<31>(x));
    }
    w[t % 16]
}

#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const LEFT: i32, const RIGHT: i32>(x: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<LEFT>(x), _mm256_srli_epi32::<RIGHT>(x))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_choice(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    let chosen = _mm256_and_si256(b, _mm256_xor_si256(c, d));
    _mm256_add_epi32(sum, _mm256_xor_si256(d, chosen))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_parity(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_xor_si256(d, _mm256_xor_si256(b, c)))
}

/// The two halves of the majority have no bit in common, so adding each is adding their union.
#[inline]
#[target_feature(enable = "avx2")]
fn add_majority(sum: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m256i {
    let sum = _mm256_add_epi32(sum, _mm256_and_si256(b, c));
    _mm256_add_epi32(sum, _mm256_and_si256(d, _mm256_xor_si256(b, c)))
}

/// The sixteen words of step `index`: one vector per word, one lane per stream.
#[inline]
#[target_feature(enable = "avx2")]
fn columns(streams: &[&[Step]; WIDTH], index: usize) -> [__m256i; 16] {
    let swap = _mm256_set_epi64x(
        0x0c0d_0e0f_0809_0a0b,
        0x0405_0607_0001_0203,
        0x0c0d_0e0f_0809_0a0b,
        0x0405_0607_0001_0203,
    );
    let mut words = [_mm256_setzero_si256(); 16];
    for (half, words) in words.as_chunks_mut().0.iter_mut().enumerate() {
        let mut rows = [_mm256_setzero_si256(); WIDTH];
        for (row, stream) in rows.iter_mut().zip(streams) {
            let part: &[u8; 32] = &stream[index].as_chunks().0[half];
            // SAFETY: `part` is 32 bytes, and the load has no alignment to keep.
            let loaded = unsafe { _mm256_loadu_si256(part.as_ptr().cast()) };
            *row = _mm256_shuffle_epi8(loaded, swap);
        }
        *words = transpose(rows);
    }
    words
}

/// Turns eight rows of eight words into eight columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let [ab, ab_high] = [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
    let [cd, cd_high] = [_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d)];
    let [ef, ef_high] = [_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f)];
    let [gh, gh_high] = [_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h)];
    // Column i of the first four rows in the low half, column i + 4 in the high half.
    let abcd = [
        _mm256_unpacklo_epi64(ab, cd),
        _mm256_unpackhi_epi64(ab, cd),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ];
    let efgh = [
        _mm256_unpacklo_epi64(ef, gh),
        _mm256_unpackhi_epi64(ef, gh),
        _mm256_unpacklo_epi64(ef_high, gh_high),
        _mm256_unpackhi_epi64(ef_high, gh_high),
    ];
    let mut columns = [_mm256_setzero_si256(); 8];
    for index in 0..4 {
        let (low, high) = (abcd[index], efgh[index]);
        columns[index] = _mm256_permute2x128_si256::<0x20>(low, high);
        columns[index + 4] = _mm256_permute2x128_si256::<0x31>(low, high);
    }
    columns
}
