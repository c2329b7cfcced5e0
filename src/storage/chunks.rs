//! What was read from cold files, for the peers that wait for it and those that come next.
//!
//! A chunk is a range of at most [`CHUNK_LEN`] bytes inside one piece: large enough for a disk to
//! be read at its full rate, small enough to be all used. Keys and buffers enter, shared buffers
//! and the waiters to wake leave. Invariant: chunks in memory, those being read included, never
//! hold more than the limit given at the start; a chunk that a send still needs is not dropped.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use crate::units::{Block, PieceIndex};

/// Length of a chunk in bytes: at 128 KiB random reads reach a disk's rate, at 256 KiB with room.
pub const CHUNK_LEN: u32 = 256 * 1024;

/// The least limit, in bytes: a block that lies across two chunks needs both at once.
const BYTES_MIN: usize = 2 * CHUNK_LEN as usize;

/// Peers that may wait for one chunk; further ones ask again when memory is free.
pub const WAITERS_MAX: usize = 1024;

/// Names a chunk among all torrents of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkKey {
    /// The worker's number for the torrent.
    pub torrent: u32,
    /// The piece it lies in.
    pub piece: PieceIndex,
    /// Its number inside the piece.
    pub index: u32,
}

impl ChunkKey {
    /// The chunk that holds byte `begin` of `piece`.
    pub fn of(torrent: u32, piece: PieceIndex, begin: u32) -> Self {
        Self { torrent, piece, index: begin / CHUNK_LEN }
    }

    /// First byte of the chunk, counted from the start of its piece.
    pub fn begin(&self) -> u32 {
        self.index * CHUNK_LEN
    }

    /// One number for tables: distinct as long as a piece has at most 2,048 chunks and a torrent
    /// at most 2²¹ pieces, which the limits of metainfo hold.
    pub fn number(&self) -> u64 {
        u64::from(self.torrent) << 32 | u64::from(self.piece.0) << 11 | u64::from(self.index)
    }
}

/// The chunks that `block` lies in: one, or two where a block is not aligned.
pub fn chunks_of(torrent: u32, block: Block) -> impl Iterator<Item = ChunkKey> {
    let last = block.begin + block.len.saturating_sub(1);
    (block.begin / CHUNK_LEN..=last / CHUNK_LEN).map(move |index| ChunkKey {
        torrent,
        piece: block.piece,
        index,
    })
}

/// What the table says to a peer that wants a chunk.
#[derive(Debug)]
pub enum Answer {
    /// Here it is.
    Ready(Rc<Vec<u8>>),
    /// It is being read; the peer is woken when it is there.
    Reading,
    /// Nobody reads it yet: the caller reads it into this buffer, the peer is woken afterwards.
    Read(Vec<u8>),
    /// No memory for it now: ask again when some is free.
    Full,
}

#[derive(Debug)]
enum Entry {
    Reading(Vec<u32>),
    Ready(Rc<Vec<u8>>),
}

/// The chunks of one worker.
#[derive(Debug)]
pub struct Chunks {
    entries: HashMap<ChunkKey, Entry>,
    /// Ready chunks, oldest first.
    order: VecDeque<ChunkKey>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
}

impl Chunks {
    /// An empty table that may hold `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        let (entries, order, spare) = (HashMap::new(), VecDeque::new(), Vec::new());
        Self { entries, order, spare, bytes: 0, bytes_max: bytes_max.max(BYTES_MIN) }
    }

    /// Bytes of memory held, those being read into included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The chunk if it is here, without asking for it.
    pub fn ready(&self, key: ChunkKey) -> Option<&Rc<Vec<u8>>> {
        match self.entries.get(&key) {
            Some(Entry::Ready(data)) => Some(data),
            _ => None,
        }
    }

    /// Whether the chunk is on its way from the disk. Its pages are in the page cache by then, but
    /// locked until their data is there: whoever touches them waits.
    pub fn is_reading(&self, key: ChunkKey) -> bool {
        matches!(self.entries.get(&key), Some(Entry::Reading(_)))
    }

    /// Asks for the chunk `key` of `len` bytes on behalf of `waiter`.
    pub fn request(&mut self, key: ChunkKey, len: usize, waiter: u32) -> Answer {
        match self.entries.get_mut(&key) {
            Some(Entry::Ready(data)) => return Answer::Ready(Rc::clone(data)),
            Some(Entry::Reading(waiters)) => {
                if waiters.last() != Some(&waiter) {
                    if waiters.len() == WAITERS_MAX {
                        return Answer::Full;
                    }
                    waiters.push(waiter);
                }
                return Answer::Reading;
            }
            None => {}
        }
        while self.bytes + len > self.bytes_max {
            if !self.evict_one() {
                return Answer::Full;
            }
        }
        self.bytes += len;
        self.entries.insert(key, Entry::Reading(vec![waiter]));
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(len, 0);
        Answer::Read(buffer)
    }

    /// Takes what was read, whole; returns the peers that wait for it.
    pub fn finish(&mut self, key: ChunkKey, buffer: Vec<u8>) -> Vec<u32> {
        match self.entries.insert(key, Entry::Ready(Rc::new(buffer))) {
            Some(Entry::Reading(waiters)) => {
                self.order.push_back(key);
                waiters
            }
            // The torrent was removed meanwhile: nobody waits, the entry goes as well.
            _ => {
                self.entries.remove(&key);
                Vec::new()
            }
        }
    }

    /// Notes that the chunk could not be read; returns the peers that wait for it.
    pub fn fail(&mut self, key: ChunkKey, buffer: Vec<u8>) -> Vec<u32> {
        match self.entries.remove(&key) {
            Some(Entry::Reading(waiters)) => {
                self.release(buffer);
                waiters
            }
            _ => Vec::new(),
        }
    }

    /// Forgets all chunks of a torrent. Reads under way end in [`Chunks::finish`], without waiters.
    pub fn forget(&mut self, torrent: u32, len_of: impl Fn(ChunkKey) -> usize) {
        self.order.retain(|key| key.torrent != torrent);
        let bytes = &mut self.bytes;
        self.entries.retain(|key, _| {
            let keep = key.torrent != torrent;
            if !keep {
                *bytes -= len_of(*key);
            }
            keep
        });
    }

    /// Drops the oldest chunk that no send needs any more.
    fn evict_one(&mut self) -> bool {
        for position in 0..self.order.len() {
            let key = self.order[position];
            let Some(Entry::Ready(data)) = self.entries.get(&key) else { continue };
            if Rc::strong_count(data) > 1 {
                continue;
            }
            self.order.remove(position);
            if let Some(Entry::Ready(data)) = self.entries.remove(&key)
                && let Ok(buffer) = Rc::try_unwrap(data)
            {
                self.release(buffer);
            }
            return true;
        }
        false
    }

    fn release(&mut self, buffer: Vec<u8>) {
        /// Buffers kept for the next reads; more would only hide memory from the limit.
        const SPARE_MAX: usize = 4;
        self.bytes -= buffer.len();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = CHUNK_LEN as usize;

    fn key(index: u32) -> ChunkKey {
        ChunkKey { torrent: 0, piece: PieceIndex(9), index }
    }

    fn read(chunks: &mut Chunks, index: u32) -> Vec<u8> {
        match chunks.request(key(index), LEN, 1) {
            Answer::Read(buffer) => buffer,
            other => panic!("chunk {index}: {other:?}"),
        }
    }

    #[test]
    fn a_chunk_is_read_once_for_all_who_want_it() {
        let mut chunks = Chunks::new(4 * LEN);
        let buffer = read(&mut chunks, 0);
        assert!(matches!(chunks.request(key(0), LEN, 2), Answer::Reading));
        assert_eq!(chunks.finish(key(0), buffer), [1, 2]);
        assert!(matches!(chunks.request(key(0), LEN, 3), Answer::Ready(_)));
        assert!(chunks.ready(key(0)).is_some());
    }

    #[test]
    fn memory_is_bounded_and_chunks_in_use_stay() {
        let mut chunks = Chunks::new(2 * LEN);
        for index in 0..2 {
            let buffer = read(&mut chunks, index);
            chunks.finish(key(index), buffer);
        }
        let used = Rc::clone(chunks.ready(key(0)).unwrap());
        let _third = read(&mut chunks, 2);
        assert!(chunks.ready(key(0)).is_some(), "a chunk that a send needs was dropped");
        assert!(chunks.ready(key(1)).is_none());
        assert!(matches!(chunks.request(key(3), LEN, 1), Answer::Full));
        assert_eq!(chunks.bytes(), 2 * LEN);
        drop(used);
        assert!(matches!(chunks.request(key(3), LEN, 1), Answer::Read(_)));
    }

    #[test]
    fn a_failed_read_and_a_removed_torrent_give_their_memory_back() {
        let mut chunks = Chunks::new(2 * LEN);
        let (failed, removed) = (read(&mut chunks, 0), read(&mut chunks, 1));
        assert_eq!(chunks.fail(key(0), failed), [1]);
        chunks.forget(0, |_| LEN);
        assert_eq!(chunks.bytes(), 0);
        assert!(chunks.finish(key(1), removed).is_empty());
        assert_eq!(chunks.bytes(), 0);
        assert!(chunks.ready(key(1)).is_none());
    }

    #[test]
    fn blocks_lie_in_one_chunk_or_two() {
        let block = |begin, len| Block { piece: PieceIndex(3), begin, len };
        assert_eq!(chunks_of(0, block(0, 16_384)).count(), 1);
        assert_eq!(chunks_of(0, block(CHUNK_LEN - 16_384, 16_384)).count(), 1);
        assert_eq!(chunks_of(0, block(CHUNK_LEN - 1, 2)).count(), 2);
    }
}
