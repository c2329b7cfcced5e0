//! Decoding: the requests that a seed reads, and the blocks that a leech reads.

use seedring::units::{BLOCK_LEN, Block, PieceIndex};
use seedring::wire::{Decoder, Incoming, Limits, Message, block_header, encode};

use crate::timing::{Bench, Per, fold};

/// Bytes of one receive of a seed, and of a leech: as the worker's buffers are.
const RECEIVE_LENS: [usize; 2] = [4 << 10, 256 << 10];

const PIECE_COUNT: u32 = 2048;

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut draw = || Block {
        piece: PieceIndex(rng.u32(..PIECE_COUNT)),
        begin: rng.u32(..64) * BLOCK_LEN,
        len: BLOCK_LEN,
    };
    let count = bench.size(500_000, 100);
    let mut requests = Vec::new();
    for _ in 0..count {
        encode(&Message::Request(draw()), &mut requests);
    }
    case(bench, "decode: request, 4 KiB receives", &requests, count, RECEIVE_LENS[0]);

    let count = bench.size(8000, 10);
    let mut blocks = Vec::new();
    for _ in 0..count {
        let block = draw();
        blocks.extend_from_slice(&block_header(block));
        blocks.resize(blocks.len() + block.len as usize, 7);
    }
    case(bench, "decode: piece of 16 KiB, 256 KiB receives", &blocks, count, RECEIVE_LENS[1]);
}

fn case(bench: &Bench, name: &str, input: &[u8], count: usize, receive_len: usize) {
    let prepare = || Decoder::new(Limits::new(PIECE_COUNT));
    bench.case(name, Per::Item("message"), count, prepare, |mut decoder| {
        let mut checksum = 0;
        for received in input.chunks(receive_len) {
            let handle = |incoming: Incoming<'_>| match incoming {
                Incoming::Message(Message::Request(block)) => {
                    checksum = fold(checksum, u64::from(block.piece.0 ^ block.begin));
                }
                Incoming::Payload { block, offset, data } => {
                    let place = u64::from(block.piece.0 ^ block.begin ^ offset);
                    checksum = fold(checksum, place ^ data.len() as u64);
                }
                Incoming::Message(_) => {}
            };
            decoder.decode_all(received, handle).expect("what was encoded is valid");
        }
        checksum
    });
}
