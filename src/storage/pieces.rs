//! The pieces of one torrent that are being fetched: their blocks in memory, until they are hashed.
//!
//! Block data enters in any order, a digest leaves. Several pieces are hashed in step, which takes
//! less than half the time of one after another; what follows the hashed part of a piece without a
//! gap can be hashed while it is still in the processor's cache.
//! Invariant: no more memory than the open pieces need, and their number is the swarm's to bound.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::sys::sha1::{self, Engine, Lanes, STREAMS_MAX, Stream};
use crate::units::{BLOCK_LEN, Block, Geometry, PieceIndex};

/// The digest of a piece or block.
pub type Digest = [u8; 20];

/// Bytes that SHA-1 takes in one step.
const STEP_LEN: usize = 64;

/// One piece on its way.
pub struct OpenPiece {
    data: Vec<u8>,
    /// One flag per block: all its bytes are here.
    arrived: Vec<bool>,
    /// Blocks from the start of the piece that have arrived without a gap.
    gapless_count: usize,
    stream: Stream,
    /// Bytes from the start of the piece that the stream has taken: whole steps.
    hashed_len: usize,
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
                gapless_count: 0,
                stream: Stream::default(),
                hashed_len: 0,
            }
        });
        piece.retract((block.begin / BLOCK_LEN) as usize);
        let start = (block.begin + offset) as usize;
        match piece.data.get_mut(start..start + data.len()) {
            Some(place) => place.copy_from_slice(data),
            None => return false,
        }
        true
    }

    /// Notes that `block` has arrived whole; whether that gives something to hash.
    pub fn complete(&mut self, block: Block) -> bool {
        let Some(piece) = self.pieces.get_mut(&block.piece) else { return false };
        if let Some(flag) = piece.arrived.get_mut((block.begin / BLOCK_LEN) as usize) {
            *flag = true;
        }
        piece.find_gap();
        piece.hashable().is_some()
    }

    /// Hands out a piece for [`hash_together`], if there is something to hash of it. Until it is
    /// given back the others here know nothing of it.
    pub fn lend(&mut self, piece: PieceIndex) -> Option<OpenPiece> {
        self.pieces.get(&piece)?.hashable()?;
        self.pieces.remove(&piece)
    }

    /// Takes back what was lent.
    pub fn take_back(&mut self, piece: PieceIndex, open: OpenPiece) {
        self.pieces.insert(piece, open);
    }

    /// How far the digest of `piece` is. A piece that is not here whole has none.
    pub fn digest(&self, piece: PieceIndex) -> Progress {
        let Some(open) = self.pieces.get(&piece).filter(|open| open.is_whole()) else {
            return Progress::Absent;
        };
        match open.data.get(open.hashed_len..) {
            Some(rest) if rest.len() < STEP_LEN => Progress::Done(open.stream.clone().finish(rest)),
            _ => Progress::More,
        }
    }

    /// Adds to `digests` those of the next blocks of `piece`, about `len_max` bytes of them; by
    /// them the peer that sent a bad one is found. Returns the bytes hashed; `None` if the piece is
    /// not here.
    pub fn digest_blocks(
        &self,
        engine: Engine,
        piece: PieceIndex,
        digests: &mut Vec<Digest>,
        len_max: usize,
    ) -> Option<usize> {
        let data = &self.pieces.get(&piece)?.data;
        let rest = data.get(digests.len() * BLOCK_LEN as usize..).unwrap_or_default();
        let (whole, last) = rest.as_chunks::<{ BLOCK_LEN as usize }>();
        let mut hashed = 0;
        for group in whole.chunks(engine.width()) {
            if hashed >= len_max {
                return Some(hashed);
            }
            let mut blocks = [&[][..]; STREAMS_MAX];
            for (block, bytes) in blocks.iter_mut().zip(group) {
                *block = bytes;
            }
            let mut lanes = Lanes::new(engine, group.len());
            lanes.update(&blocks[..group.len()]);
            digests.extend(lanes.finish());
            hashed += group.len() * BLOCK_LEN as usize;
        }
        if !last.is_empty() {
            digests.push(sha1::digest(last));
        }
        Some(hashed + last.len())
    }

    /// Takes a piece out, with its bytes: to be written, or to be thrown away.
    pub fn remove(&mut self, piece: PieceIndex) -> Option<Vec<u8>> {
        let open = self.pieces.remove(&piece)?;
        self.bytes -= u64::from(self.geometry.piece_len(piece));
        Some(open.data)
    }
}

/// Memory of pieces that are done, for the next ones: fresh memory costs the kernel as much as
/// filling it does.
pub struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    /// The fewest bytes there were since [`Spares::tidy`]: as much was never needed.
    bytes_min: usize,
}

impl Spares {
    /// None yet, and never more than `bytes_max` bytes of them.
    pub fn new(bytes_max: usize) -> Self {
        Self { buffers: Vec::new(), bytes: 0, bytes_max, bytes_min: 0 }
    }

    /// Memory for a piece of `len` bytes, with anything in it.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        while let Some(mut buffer) = self.pop() {
            // A much longer one would hold memory that nobody counts.
            if buffer.capacity() >= len && buffer.capacity() / 2 <= len {
                buffer.resize(len, 0);
                return buffer;
            }
        }
        vec![0; len]
    }

    /// Keeps the memory of a piece, if there is room for it.
    pub fn give(&mut self, buffer: Vec<u8>) {
        if self.bytes.saturating_add(buffer.capacity()) <= self.bytes_max {
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }

    /// Frees what was not needed since the last call.
    pub fn tidy(&mut self) {
        let kept = self.bytes - self.bytes_min;
        while self.bytes > kept && self.pop().is_some() {}
        self.bytes_min = self.bytes;
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop()?;
        self.bytes -= buffer.capacity();
        self.bytes_min = self.bytes_min.min(self.bytes);
        Some(buffer)
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
    /// A block that comes again is another one: what was hashed of it does not count.
    fn retract(&mut self, index: usize) {
        let Some(flag) = self.arrived.get_mut(index) else { return };
        if !std::mem::take(flag) {
            return;
        }
        self.gapless_count = self.gapless_count.min(index);
        if index * (BLOCK_LEN as usize) < self.hashed_len {
            self.stream = Stream::default();
            self.hashed_len = 0;
        }
    }

    fn find_gap(&mut self) {
        while self.arrived.get(self.gapless_count) == Some(&true) {
            self.gapless_count += 1;
        }
    }

    fn is_whole(&self) -> bool {
        self.gapless_count == self.arrived.len()
    }

    /// Whether there is something to hash.
    pub fn has_more(&self) -> bool {
        self.hashable().is_some()
    }

    /// Whole steps that have arrived and are not hashed, if there are any.
    fn hashable(&self) -> Option<&[u8]> {
        let end = (self.gapless_count * BLOCK_LEN as usize).min(self.data.len());
        let bytes = self.data.get(self.hashed_len..end - end % STEP_LEN)?;
        (!bytes.is_empty()).then_some(bytes)
    }
}

/// Hashes up to `len_max` more bytes of each of `pieces` in step, as many of each as the one with
/// the fewest has; returns their number in all. No more than [`STREAMS_MAX`] take part.
pub fn hash_together(engine: Engine, pieces: &mut [OpenPiece], len_max: usize) -> usize {
    let count = pieces.len().min(STREAMS_MAX);
    let pieces = &mut pieces[..count];
    let len = pieces.iter().map(|piece| piece.hashable().map_or(0, <[u8]>::len)).min();
    let len = len.unwrap_or(0).min(len_max.next_multiple_of(STEP_LEN));
    let mut lanes = [const { None }; STREAMS_MAX];
    for (lane, piece) in lanes.iter_mut().zip(pieces) {
        *lane = Some((&mut piece.stream, &piece.data[piece.hashed_len..][..len]));
        piece.hashed_len += len;
    }
    sha1::update_together(engine, &mut lanes);
    len * count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_memory_is_used_again_bounded_and_freed_when_not_needed() {
        let mut spares = Spares::new(4000);
        spares.give(vec![7; 1000]);
        assert_eq!((spares.take(600), spares.bytes()), (vec![7; 600], 0), "used as it is");
        spares.give(vec![7; 1000]);
        assert_eq!((spares.take(10), spares.bytes()), (vec![0; 10], 0), "much too long for it");
        spares.give(vec![7; 10]);
        assert_eq!((spares.take(1000), spares.bytes()), (vec![0; 1000], 0), "too short for it");
        for _ in 0..5 {
            spares.give(vec![0; 1000]);
        }
        assert_eq!(spares.bytes(), 4000, "the fifth finds no room");
        spares.tidy();
        let (one, other) = (spares.take(1000), spares.take(1000));
        spares.give(one);
        spares.give(other);
        spares.tidy();
        assert_eq!(spares.bytes(), 2000, "two were enough");
        spares.tidy();
        assert_eq!(spares.bytes(), 0);
    }

    fn digest(pieces: &mut OpenPieces, piece: PieceIndex) -> Progress {
        while let Some(open) = pieces.lend(piece) {
            let mut lent = [open];
            assert!(hash_together(Engine::best(), &mut lent, 1000) > 0);
            let [open] = lent;
            pieces.take_back(piece, open);
        }
        pieces.digest(piece)
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
            let done = Progress::Done(sha1::digest(&content));
            assert_eq!(digest(&mut pieces, PieceIndex(1)), done);
            let blocks = content.chunks(BLOCK_LEN as usize).map(sha1::digest);
            for len_max in [1, 40_000] {
                let mut found = Vec::new();
                while found.len() < 3 {
                    let engine = Engine::best();
                    pieces.digest_blocks(engine, PieceIndex(1), &mut found, len_max).unwrap();
                }
                assert_eq!(found, blocks.clone().collect::<Vec<_>>());
            }
            assert_eq!(pieces.digest_blocks(Engine::best(), PieceIndex(2), &mut vec![], 1), None);
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
        let done = Progress::Done(sha1::digest(&content));
        assert_eq!(digest(&mut pieces, piece), done);
    }

    #[test]
    fn a_gap_stops_the_digest_and_strangers_are_refused() {
        let geometry = Geometry::new(65_536, 65_536).unwrap();
        let mut pieces = OpenPieces::new(geometry);
        let block = geometry.block(PieceIndex(0), 1).unwrap();
        assert!(pieces.store(block, 0, &[0; 16_384], |len| vec![0; len]));
        assert!(!pieces.complete(block), "it is not the next one to hash");
        assert_eq!(pieces.digest(PieceIndex(0)), Progress::Absent);
        assert!(!pieces.store(block, 1, &[0; 16_384], |len| vec![0; len]));
        assert!(!pieces.store(Block { len: 5, ..block }, 0, &[0; 5], |len| vec![0; len]));
        assert_eq!(pieces.digest(PieceIndex(5)), Progress::Absent);
    }
}
