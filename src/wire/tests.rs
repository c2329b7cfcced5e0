//! The codec as a whole: what is encoded is decoded however it is split, and what is not a message
//! is refused on five bytes and costs nothing.
#![forbid(unsafe_code)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::units::BLOCK_LEN;

const PIECE_COUNT: u32 = 20;

fn decoder() -> Decoder {
    Decoder::new(Limits::new(PIECE_COUNT))
}

fn block(piece: u32, begin: u32, len: u32) -> Block {
    Block { piece: PieceIndex(piece), begin, len }
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out);
    out
}

fn block_message(block: Block, data: &[u8]) -> Vec<u8> {
    [&block_header(block), data].concat()
}

/// Turns what the decoder gave back into the bytes of whole messages, and checks on the way that
/// the chunks of a block come as they should.
#[derive(Default)]
struct Frames {
    whole: Vec<Vec<u8>>,
    under_way: Option<(Block, Vec<u8>)>,
}

impl Frames {
    fn push(&mut self, incoming: Incoming<'_>) {
        match incoming {
            Incoming::Message(message) => {
                assert!(self.under_way.is_none(), "{message:?} inside a block");
                self.whole.push(encoded(&message));
            }
            Incoming::Payload { block, offset, data } => {
                let (expected, mut gathered) =
                    self.under_way.take().unwrap_or_else(|| (block, Vec::new()));
                assert_eq!((block, offset as usize), (expected, gathered.len()));
                assert!(offset == 0 || !data.is_empty(), "an empty chunk inside a block");
                gathered.extend_from_slice(data);
                assert!(gathered.len() <= block.len as usize);
                if gathered.len() == block.len as usize {
                    self.whole.push(block_message(block, &gathered));
                } else {
                    self.under_way = Some((block, gathered));
                }
            }
        }
    }
}

/// The error that `bytes` alone bring about.
fn refusal(limits: Limits, bytes: &[u8]) -> Option<Error> {
    Decoder::new(limits).decode_all(bytes, |_| {}).err()
}

#[test]
fn every_message_has_its_bytes() {
    let range = block(1, 0x4000, 0x2000);
    let table: [(Message<'_>, &[u8]); 17] = [
        (Message::KeepAlive, b"\0\0\0\0"),
        (Message::Choke, b"\0\0\0\x01\x00"),
        (Message::Unchoke, b"\0\0\0\x01\x01"),
        (Message::Interested, b"\0\0\0\x01\x02"),
        (Message::NotInterested, b"\0\0\0\x01\x03"),
        (Message::Have(PieceIndex(0x0102_0304)), b"\0\0\0\x05\x04\x01\x02\x03\x04"),
        (Message::Bitfield(&[0xff, 0, 0x80]), b"\0\0\0\x04\x05\xff\0\x80"),
        (Message::Request(range), b"\0\0\0\x0d\x06\0\0\0\x01\0\0\x40\0\0\0\x20\0"),
        (Message::Cancel(range), b"\0\0\0\x0d\x08\0\0\0\x01\0\0\x40\0\0\0\x20\0"),
        (Message::Port(0x1ae1), b"\0\0\0\x03\x09\x1a\xe1"),
        (Message::Suggest(PieceIndex(7)), b"\0\0\0\x05\x0d\0\0\0\x07"),
        (Message::HaveAll, b"\0\0\0\x01\x0e"),
        (Message::HaveNone, b"\0\0\0\x01\x0f"),
        (Message::Reject(range), b"\0\0\0\x0d\x10\0\0\0\x01\0\0\x40\0\0\0\x20\0"),
        (Message::AllowedFast(PieceIndex(9)), b"\0\0\0\x05\x11\0\0\0\x09"),
        (Message::Extended { id: 3, payload: b"de" }, b"\0\0\0\x04\x14\x03de"),
        (Message::Extended { id: 0, payload: b"" }, b"\0\0\0\x02\x14\0"),
    ];
    for (message, bytes) in table {
        assert_eq!(encoded(&message), bytes, "{message:?}");
        for split in 0..=bytes.len() {
            let mut decoder = decoder();
            let mut decoded = 0;
            for part in [&bytes[..split], &bytes[split..]] {
                let mut input = part;
                while let Some(incoming) = decoder.decode(&mut input).unwrap() {
                    assert_eq!(incoming, Incoming::Message(message), "split at {split}");
                    decoded += 1;
                }
                assert!(input.is_empty());
            }
            assert_eq!(decoded, 1, "{message:?} split at {split}");
            assert!(!decoder.is_mid_message());
            assert_eq!((decoder.heap_len(), decoder.bytes_taken()), (0, bytes.len() as u64));
        }
    }
}

#[test]
fn a_block_is_streamed_from_where_it_lies() {
    let bytes = block_message(block(3, 0x8000, 5), b"bytes");
    let mut decoder = decoder();
    let mut input = &bytes[..12];
    assert_eq!(decoder.decode(&mut input), Ok(None));

    let chunk =
        |offset, data| Ok(Some(Incoming::Payload { block: block(3, 0x8000, 5), offset, data }));
    let mut input = &bytes[12..13];
    assert_eq!(decoder.decode(&mut input), chunk(0, b""), "the header alone is told");
    assert_eq!(decoder.decode(&mut input), Ok(None));

    let mut input = &bytes[13..15];
    let Ok(Some(Incoming::Payload { data, .. })) = decoder.decode(&mut input) else { panic!() };
    assert_eq!(data.as_ptr(), bytes[13..].as_ptr(), "nothing is copied");
    assert_eq!(decoder.decode(&mut input), Ok(None));

    let rest = [&bytes[15..], b"\0\0\0\x01\x01"].concat();
    let mut input = &rest[..];
    assert_eq!(decoder.decode(&mut input), chunk(2, b"tes"));
    assert_eq!(decoder.decode(&mut input), Ok(Some(Incoming::Message(Message::Unchoke))));
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(decoder.heap_len(), 0);
}

#[test]
fn every_wrong_length_is_refused_on_five_bytes() {
    let limits = Limits::new(PIECE_COUNT);
    let right = |id: u8, len: u32| match id {
        0..=3 | 14 | 15 => len == 1,
        4 | 13 | 17 => len == 5,
        5 => len == 4,
        6 | 8 | 16 => len == 13,
        7 => (10..=16384 + 9).contains(&len),
        9 => len == 3,
        20 => (2..=65536).contains(&len),
        _ => false,
    };
    let lens = (1..=20).chain([
        16384 + 9,
        16384 + 10,
        65536,
        65537,
        1 << 20,
        i32::MAX as u32,
        1 << 31,
        u32::MAX,
    ]);
    for len in lens {
        for id in 0..=u8::MAX {
            let head = [&len.to_be_bytes()[..], &[id]].concat();
            let label = match id {
                0..=3 | 14 | 15 => "state_len",
                4 | 13 | 17 => "index_len",
                5 => "bitfield_len",
                6 | 8 | 16 => "range_len",
                7 => "block_len",
                9 => "port_len",
                20 => "extended_len",
                _ => "unknown_message",
            };
            let expected = (!right(id, len)).then_some(label);
            let error = refusal(limits, &head);
            assert_eq!(error.as_ref().map(Error::label), expected, "id {id}, length {len}");

            // Byte by byte it is the fifth that tells, and the refusal stays.
            let mut decoder = Decoder::new(limits);
            assert_eq!(decoder.decode_all(&head[..4], |_| {}), Ok(()));
            for more in [&head[4..], b"", b"\0\0\0\0\0\0\0\0"] {
                let result = decoder.decode_all(more, |_| {});
                if let Some(error) = &error {
                    assert_eq!(result, Err(error.clone()));
                }
            }
            assert!(decoder.heap_len() <= 16, "{} for id {id}", decoder.heap_len());
        }
    }
}

#[test]
fn limits_are_those_of_the_torrent() {
    for (piece_count, len) in [(0, 1), (1, 2), (8, 2), (9, 3), (u32::MAX, (1 << 29) + 1)] {
        let limits = Limits::new(piece_count);
        let head = |len: u32| [&len.to_be_bytes()[..], &[5]].concat();
        assert_eq!(refusal(limits, &head(len)), None);
        let error = Error::BitfieldLen { len: len + 1, expected: len };
        assert_eq!(refusal(limits, &head(len + 1)), Some(error));
    }
    let limits = Limits { block_len_max: 5, ..Limits::new(1) };
    assert_eq!(refusal(limits, &[0, 0, 0, 14, 7]), None);
    assert_eq!(refusal(limits, &[0, 0, 0, 15, 7]), Some(Error::BlockLen { len: 15, max: 14 }));
}

#[test]
fn memory_follows_what_arrived_and_goes_with_the_message() {
    let payload = vec![7; 65534];
    let bytes = encoded(&Message::Extended { id: 1, payload: &payload });
    let mut decoder = decoder();
    let mut given = 0;
    for (index, byte) in bytes.iter().enumerate() {
        decoder
            .decode_all(&[*byte], |incoming| {
                assert_eq!(
                    incoming,
                    Incoming::Message(Message::Extended { id: 1, payload: &payload })
                );
                given += 1;
            })
            .unwrap();
        assert!(decoder.heap_len() <= (2 * index).min(payload.len()), "after {index} bytes");
    }
    assert_eq!((given, decoder.heap_len()), (1, 0));
    assert!(size_of::<Decoder>() <= 128, "{} bytes", size_of::<Decoder>());

    let mut lying = Decoder::new(Limits::new(u32::MAX));
    lying.decode_all(&[0x20, 0, 0, 1, 5, 0, 0], |_| {}).unwrap();
    assert!(lying.heap_len() <= 4);
}

#[test]
fn a_dribble_is_told_from_a_slow_peer() {
    let bytes = encoded(&Message::Extended { id: 1, payload: &[0; 8000] });
    let mut decoder = decoder();
    assert_eq!(decoder.progress(), None);
    decoder.decode_all(&bytes[..10], |_| {}).unwrap();
    let first = decoder.progress().unwrap();
    decoder.decode_all(&bytes[10..1033], |_| {}).unwrap();
    assert!(decoder.progress().unwrap().is_stalled_since(&first), "1023 bytes are too few");
    decoder.decode_all(&bytes[1033..1034], |_| {}).unwrap();
    assert!(!decoder.progress().unwrap().is_stalled_since(&first), "1024 are enough");

    decoder.decode_all(&bytes[1034..], |_| {}).unwrap();
    assert_eq!(decoder.progress(), None);
    decoder.decode_all(&[0], |_| {}).unwrap();
    let second = decoder.progress().unwrap();
    decoder.decode_all(&[0, 0, 0, 0], |_| {}).unwrap();
    assert!(!decoder.progress().unwrap().is_stalled_since(&second), "it is another message");
}

/// 17-byte requests, as a leecher sends them.
fn requests(count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        encode(&Message::Request(block(index / 16, index % 16 * BLOCK_LEN, BLOCK_LEN)), &mut bytes);
    }
    bytes
}

#[test]
fn a_million_messages_are_taken_in_one_pass() {
    let bytes = requests(1_000_000);
    // Buffers of a prime length, so that requests straddle them at every offset.
    let mut decoder = decoder();
    let mut count = 0u32;
    for chunk in bytes.chunks(16_381) {
        decoder
            .decode_all(chunk, |incoming| {
                let expected = block(count / 16, count % 16 * BLOCK_LEN, BLOCK_LEN);
                assert_eq!(incoming, Incoming::Message(Message::Request(expected)));
                count += 1;
            })
            .unwrap();
    }
    assert_eq!((count, decoder.bytes_taken()), (1_000_000, bytes.len() as u64));

    // Each call moves on: a million keep-alives are a million calls and one more.
    let keep_alives = vec![0; 4_000_000];
    let mut input = &keep_alives[..];
    let mut calls = 1;
    while decoder.decode(&mut input).unwrap().is_some() {
        calls += 1;
        assert_eq!(input.len(), 4_000_000 - 4 * (calls - 1));
    }
    assert_eq!(calls, 1_000_001);
}

/// The bytes of one message that a decoder of [`PIECE_COUNT`] pieces takes.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let any_block =
        || (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(p, b, l)| block(p, b, l));
    let plain = proptest::sample::select(vec![
        Message::KeepAlive,
        Message::Choke,
        Message::Unchoke,
        Message::Interested,
        Message::NotInterested,
        Message::HaveAll,
        Message::HaveNone,
    ]);
    let bytes = |len| proptest::collection::vec(any::<u8>(), len);
    let payload = prop_oneof![9 => bytes(0..40), 1 => bytes(3000..5000)];
    let data = prop_oneof![9 => bytes(1..40), 1 => bytes(16384..16385)];
    prop_oneof![
        plain.prop_map(|message| encoded(&message)),
        any::<u32>().prop_map(|piece| encoded(&Message::Have(PieceIndex(piece)))),
        any::<u32>().prop_map(|piece| encoded(&Message::Suggest(PieceIndex(piece)))),
        any::<u32>().prop_map(|piece| encoded(&Message::AllowedFast(PieceIndex(piece)))),
        any::<[u8; 3]>().prop_map(|bits| encoded(&Message::Bitfield(&bits))),
        any_block().prop_map(|block| encoded(&Message::Request(block))),
        any_block().prop_map(|block| encoded(&Message::Cancel(block))),
        any_block().prop_map(|block| encoded(&Message::Reject(block))),
        any::<u16>().prop_map(|port| encoded(&Message::Port(port))),
        (any::<u8>(), payload)
            .prop_map(|(id, payload)| encoded(&Message::Extended { id, payload: &payload })),
        (any::<u32>(), any::<u32>(), data).prop_map(|(piece, begin, data)| {
            block_message(block(piece, begin, u32::try_from(data.len()).unwrap()), &data)
        }),
    ]
}

proptest! {
    #[test]
    fn any_split_decodes_to_the_same(
        frames in proptest::collection::vec(any_frame(), 0..12),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..24),
    ) {
        let stream = frames.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let mut decoder = decoder();
        let mut decoded = Frames::default();
        let mut start = 0;
        for cut in cuts {
            decoder.decode_all(&stream[start..cut], |incoming| decoded.push(incoming)).unwrap();
            prop_assert!(decoder.heap_len() <= CONTROL_LEN_MAX as usize);
            prop_assert_eq!(decoder.bytes_taken(), cut as u64);
            start = cut;
        }
        prop_assert!(!decoder.is_mid_message());
        prop_assert_eq!(decoder.heap_len(), 0);
        prop_assert!(decoded.under_way.is_none());
        prop_assert_eq!(decoded.whole, frames);
    }
}

/// Bytes that often begin a message and now and then are one.
fn hostile(rng: &mut fastrand::Rng, out: &mut Vec<u8>) {
    out.clear();
    while out.len() < 200 || rng.bool() {
        let known = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 20];
        let id = if rng.u8(..) < 4 { rng.u8(..) } else { known[rng.usize(..known.len())] };
        let len = match id {
            _ if rng.u8(..) == 0 => rng.u32(..),
            4 | 13 | 17 => 5,
            5 => 1 + PIECE_COUNT.div_ceil(8),
            6 | 8 | 16 => 13,
            7 => 9 + rng.u32(1..=300),
            9 => 3,
            20 => rng.u32(2..=300),
            _ => 1,
        };
        out.extend_from_slice(&len.to_be_bytes());
        out.push(id);
        out.extend((1..len.min(400)).map(|_| rng.u8(..)));
    }
}

#[test]
fn hostile_bytes_neither_panic_nor_pile_up() {
    let started = crate::sys::clock::now();
    let mut seed = 0;
    let mut stream = Vec::new();
    while crate::sys::clock::now() - started < Duration::from_millis(500) {
        seed += 1;
        let mut rng = fastrand::Rng::with_seed(seed);
        hostile(&mut rng, &mut stream);
        let outcome = |rng: &mut fastrand::Rng, one_by_one: bool| {
            let mut decoder = decoder();
            let mut frames = Frames::default();
            let mut input = &stream[..];
            while !input.is_empty() {
                let len = if one_by_one { 1 } else { rng.usize(1..=input.len()) };
                let (chunk, rest) = input.split_at(len);
                let result = decoder.decode_all(chunk, |incoming| frames.push(incoming));
                assert!(decoder.heap_len() <= 2 * stream.len(), "seed {seed}");
                assert!(decoder.heap_len() <= CONTROL_LEN_MAX as usize, "seed {seed}");
                if let Err(error) = result {
                    return (frames.whole, Some(error));
                }
                input = rest;
            }
            (frames.whole, None)
        };
        let whole = outcome(&mut rng, false);
        assert_eq!(whole, outcome(&mut rng, true), "seed {seed}");

        let mut payload =
            b"d1:md6:ut_pexi1ee13:metadata_sizei9e1:pi6881e4:reqqi9e6:yourip4:abcd1:v1:xe".to_vec();
        for _ in 0..rng.usize(1..4) {
            let index = rng.usize(..payload.len());
            payload[index] = if rng.bool() { rng.u8(..) } else { b"de1:il"[rng.usize(..6)] };
        }
        if let Ok(handshake) = ExtensionHandshake::parse(&payload) {
            let again = ExtensionHandshake::parse(&handshake.encode()).map(|again| again.m);
            assert_eq!(again.map(|m| m.len()), Ok(handshake.m.len()), "seed {seed}");
        }
    }
    assert!(seed > 10, "only {seed} rounds");
}
