//! The pieces of one torrent that are being fetched: their blocks in memory, hashed while hot.
//!
//! Block data enters in any order, a digest leaves. A block that continues what was hashed so far
//! is hashed at once, while it is in the processor's cache; the rest follows when the gap closes.
//! Invariant: no more memory than the open pieces need, and their number is the swarm's to bound.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::sys::sha1::Sha1;
use crate::units::{BLOCK_LEN, Block, Geometry, PieceIndex};

/// The digest of a piece or block.
pub type Digest = [u8; 20];

/// One piece on its way.
struct OpenPiece {
    data: Vec<u8>,
    /// One flag per block: all its bytes are here.
    arrived: Vec<bool>,
    hasher: Sha1,
    /// Blocks from the start of the piece that the hasher has taken.
    hashed_count: usize,
}

/// All pieces of a torrent that are being fetched.
pub struct OpenPieces {
    geometry: Geometry,
    pieces: HashMap<PieceIndex, OpenPiece>,
    bytes: u64,
}

impl OpenPieces {
    /// No piece yet, of a torrent cut as `geometry` says.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, pieces: HashMap::new(), bytes: 0 }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores a part of `block` that starts `offset` bytes into it; false if it does not fit
    /// there, in which case nothing is stored. The first part of a piece takes memory from `make`.
    pub fn store(
        &mut self,
        block: Block,
        offset: u32,
        data: &[u8],
        make: impl FnOnce(usize) -> Vec<u8>,
    ) -> bool {
        if !self.geometry.is_aligned(block)
            || u64::from(offset) + data.len() as u64 > u64::from(block.len)
        {
            return false;
        }
        let piece_len = self.geometry.piece_len(block.piece) as usize;
        let piece = self.pieces.entry(block.piece).or_insert_with(|| {
            self.bytes += piece_len as u64;
            OpenPiece {
                data: make(piece_len),
                arrived: vec![false; piece_len.div_ceil(BLOCK_LEN as usize)],
                hasher: Sha1::new(),
                hashed_count: 0,
            }
        });
        // A block that comes again is another one: what was hashed of it does not count.
        let index = (block.begin / BLOCK_LEN) as usize;
        if let Some(flag) = piece.arrived.get_mut(index)
            && std::mem::take(flag)
            && index < piece.hashed_count
        {
            piece.hasher = Sha1::new();
            piece.hashed_count = 0;
        }
        let start = (block.begin + offset) as usize;
        match piece.data.get_mut(start..start + data.len()) {
            Some(place) => place.copy_from_slice(data),
            None => return false,
        }
        true
    }

    /// Notes that `block` has arrived whole, and hashes it if it is the next one in order.
    pub fn complete(&mut self, block: Block) {
        let Some(piece) = self.pieces.get_mut(&block.piece) else { return };
        let index = (block.begin / BLOCK_LEN) as usize;
        if let Some(flag) = piece.arrived.get_mut(index) {
            *flag = true;
        }
        if piece.hashed_count == index {
            piece.hash_arrived(1);
        }
    }

    /// Hashes up to `blocks_max` more blocks of `piece`; the digest once all are hashed. A piece
    /// that is not here has no digest.
    pub fn digest(&mut self, piece: PieceIndex, blocks_max: usize) -> Progress {
        let Some(open) = self.pieces.get_mut(&piece) else { return Progress::Absent };
        let hashed = open.hash_arrived(blocks_max);
        if open.hashed_count == open.arrived.len() {
            return Progress::Done(open.hasher.clone().finish());
        }
        if hashed == 0 { Progress::Absent } else { Progress::More }
    }

    /// The digest of each block of `piece`, by which the peer that sent a bad one is found.
    pub fn block_digests(&self, piece: PieceIndex) -> Vec<Digest> {
        let Some(open) = self.pieces.get(&piece) else { return Vec::new() };
        let digest = |block: &[u8]| {
            let mut hasher = Sha1::new();
            hasher.update(block);
            hasher.finish()
        };
        open.data.chunks(BLOCK_LEN as usize).map(digest).collect()
    }

    /// Takes a piece out, with its bytes: to be written, or to be thrown away.
    pub fn remove(&mut self, piece: PieceIndex) -> Option<Vec<u8>> {
        let open = self.pieces.remove(&piece)?;
        self.bytes -= u64::from(self.geometry.piece_len(piece));
        Some(open.data)
    }
}

/// How far the digest of a piece is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing can be hashed: a block is missing, or the whole piece.
    Absent,
    /// More is left to hash.
    More,
    /// All blocks are hashed.
    Done(Digest),
}

impl OpenPiece {
    /// Hashes up to `blocks_max` blocks that follow the last hashed one and have arrived.
    fn hash_arrived(&mut self, blocks_max: usize) -> usize {
        let arrived = self.arrived[self.hashed_count..].iter().take_while(|&&here| here).count();
        let count = arrived.min(blocks_max);
        // The last block of a piece may be shorter than the others.
        let place = |blocks: usize| (blocks * BLOCK_LEN as usize).min(self.data.len());
        let (start, end) = (place(self.hashed_count), place(self.hashed_count + count));
        self.hasher.update(&self.data[start..end]);
        self.hashed_count += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha1(data: &[u8]) -> Digest {
        let mut hasher = Sha1::new();
        hasher.update(data);
        hasher.finish()
    }

    #[test]
    fn blocks_in_any_order_and_in_parts_give_the_digest_of_the_piece() {
        let geometry = Geometry::new(3 * 40_000, 40_000).unwrap();
        let content: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut pieces = OpenPieces::new(geometry);
            for index in order {
                let block = geometry.block(PieceIndex(1), index).unwrap();
                let bytes = &content[block.begin as usize..(block.begin + block.len) as usize];
                let (head, tail) = bytes.split_at(1000);
                assert!(pieces.store(block, 0, head, |len| vec![0; len]));
                assert!(pieces.store(block, 1000, tail, |_| unreachable!("the piece is open")));
                pieces.complete(block);
            }
            assert_eq!(pieces.bytes(), 40_000);
            while pieces.digest(PieceIndex(1), 1) == Progress::More {}
            assert_eq!(pieces.digest(PieceIndex(1), 1), Progress::Done(sha1(&content)));
            assert_eq!(pieces.block_digests(PieceIndex(1))[2], sha1(&content[32_768..]));
            assert_eq!(pieces.remove(PieceIndex(1)), Some(content.clone()));
            assert_eq!(pieces.bytes(), 0);
        }
    }

    #[test]
    fn a_block_that_comes_again_replaces_what_was_hashed() {
        let geometry = Geometry::new(40_000, 40_000).unwrap();
        let mut pieces = OpenPieces::new(geometry);
        let piece = PieceIndex(0);
        for (index, byte) in [(0, 1), (1, 9), (1, 2), (2, 3)] {
            let block = geometry.block(piece, index).unwrap();
            let data = vec![byte; block.len as usize];
            assert!(pieces.store(block, 0, &data, |len| vec![0; len]));
            pieces.complete(block);
        }
        let content = [vec![1; 16_384], vec![2; 16_384], vec![3; 40_000 - 32_768]].concat();
        while pieces.digest(piece, 1) == Progress::More {}
        assert_eq!(pieces.digest(piece, 1), Progress::Done(sha1(&content)));
    }

    #[test]
    fn a_gap_stops_the_digest_and_strangers_are_refused() {
        let geometry = Geometry::new(65_536, 65_536).unwrap();
        let mut pieces = OpenPieces::new(geometry);
        let block = geometry.block(PieceIndex(0), 1).unwrap();
        assert!(pieces.store(block, 0, &[0; 16_384], |len| vec![0; len]));
        pieces.complete(block);
        assert_eq!(pieces.digest(PieceIndex(0), 99), Progress::Absent);
        assert!(!pieces.store(block, 1, &[0; 16_384], |len| vec![0; len]));
        assert!(!pieces.store(Block { len: 5, ..block }, 0, &[0; 5], |len| vec![0; len]));
        assert_eq!(pieces.digest(PieceIndex(5), 99), Progress::Absent);
    }
}
