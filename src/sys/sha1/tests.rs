//! Every engine of this processor against the `sha1` crate.

use proptest::prelude::*;

use super::*;

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

fn oracle(bytes: &[u8]) -> Digest {
    ::sha1::Sha1::digest(bytes).0
}

/// Says on the test's output which engines were not there to be tested.
#[test]
fn engines_of_this_processor_are_named() {
    let names: Vec<_> = Engine::all().map(Engine::name).collect();
    for name in ["sha-ni", "avx2", "portable"] {
        if !names.contains(&name) {
            println!("untested here, this processor lacks it: {name}");
        }
    }
    assert_eq!(names.last(), Some(&"portable"));
    assert_eq!(Engine::best().name(), names[0]);
    assert!(Engine::all().all(|engine| (1..=STREAMS_MAX).contains(&engine.width())));
}

#[test]
fn the_published_example_holds() {
    // RFC 3174 §7.3, TEST1.
    let expected = [
        0xa9, 0x99, 0x3e, 0x36, 0x47, 0x06, 0x81, 0x6a, 0xba, 0x3e, 0x25, 0x71, 0x78, 0x50, 0xc2,
        0x6c, 0x9c, 0xd0, 0xd8, 0x9d,
    ];
    assert_eq!(digest(b"abc"), expected);
    for engine in Engine::all() {
        for count in 1..=STREAMS_MAX {
            assert_eq!(digest_many(engine, &vec![&b"abc"[..]; count]), vec![expected; count]);
        }
    }
}

#[test]
fn every_short_length_and_every_number_of_streams() {
    let data = bytes(STREAMS_MAX * 301, 1);
    for engine in Engine::all() {
        for len in 0..=300 {
            for count in 0..=STREAMS_MAX {
                let streams: Vec<&[u8]> = data.chunks(301).take(count).map(|c| &c[..len]).collect();
                let mut lanes = Lanes::new(engine, count);
                lanes.update(&streams);
                let expected: Vec<_> = streams.iter().map(|stream| oracle(stream)).collect();
                assert_eq!(lanes.finish(), expected, "{} {len} × {count}", engine.name());
            }
        }
    }
}

#[test]
fn every_alignment() {
    let data = bytes(STREAMS_MAX * 1_000 + 64, 2);
    for engine in Engine::all() {
        for shift in 0..64 {
            let streams: Vec<&[u8]> =
                (0..STREAMS_MAX).map(|lane| &data[lane * 1_000 + shift..][..777]).collect();
            let expected: Vec<_> = streams.iter().map(|stream| oracle(stream)).collect();
            assert_eq!(digest_many(engine, &streams), expected, "{} {shift}", engine.name());
        }
    }
}

#[test]
#[should_panic(expected = "chunks of one length")]
fn unequal_chunks_are_a_mistake() {
    Lanes::new(Engine::best(), 2).update(&[b"one", b"three"]);
}

#[test]
#[should_panic(expected = "one chunk for each stream")]
fn a_missing_chunk_is_a_mistake() {
    Lanes::new(Engine::best(), 2).update(&[b"one"]);
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_digests(
        cuts in proptest::collection::vec(0usize..400, 0..12),
        count in 1usize..=STREAMS_MAX,
        seed in any::<u64>(),
    ) {
        let len: usize = cuts.iter().sum();
        let data: Vec<Vec<u8>> = (0..count as u64).map(|lane| bytes(len, seed ^ lane)).collect();
        let expected: Vec<_> = data.iter().map(|stream| oracle(stream)).collect();
        let mut single = Sha1::new();
        for engine in Engine::all() {
            let mut lanes = Lanes::new(engine, count);
            let mut from = 0;
            for &cut in &cuts {
                let chunks: Vec<&[u8]> =
                    data.iter().map(|stream| &stream[from..from + cut]).collect();
                lanes.update(&chunks);
                from += cut;
            }
            prop_assert_eq!(lanes.count(), count);
            prop_assert_eq!(&lanes.clone().finish(), &expected);
            prop_assert_eq!(&lanes.finish(), &expected);
        }
        let mut from = 0;
        for &cut in &cuts {
            single.update(&data[0][from..from + cut]);
            from += cut;
        }
        prop_assert_eq!(single.clone().finish(), expected[0]);
        for engine in Engine::all() {
            let streams: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(&digest_many(engine, &streams), &expected);
        }
    }

    #[test]
    fn lengths_may_differ_between_pieces(
        lens in proptest::collection::vec(0usize..2_000, 0..20),
        seed in any::<u64>(),
    ) {
        let data: Vec<Vec<u8>> = lens.iter().map(|&len| bytes(len, seed)).collect();
        let pieces: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let expected: Vec<_> = pieces.iter().map(|piece| oracle(piece)).collect();
        for engine in Engine::all() {
            prop_assert_eq!(&digest_many(engine, &pieces), &expected);
        }
    }
}
