//! The nouns of the protocol: info-hash, peer id, piece, block, bitfield.
//!
//! Plain values enter and leave; every other room builds on these types. Invariant: nothing here
//! performs IO, reads a clock or allocates by a number that came from outside unchecked.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

/// Length in bytes of the unit that peers ask each other for (BEP 3, in universal practice 16 KiB).
pub const BLOCK_LEN: u32 = 16 * 1024;

/// SHA-1 of the raw `info` dictionary: the identity of a v1 torrent (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHash(pub [u8; 20]);

/// The 20 bytes by which a peer names itself in a handshake (BEP 3, BEP 20).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub [u8; 20]);

/// Index of a piece of a torrent, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PieceIndex(pub u32);

/// A range inside one piece, at most [`BLOCK_LEN`] bytes long when we are the one that asks.
///
/// The wire's `piece` message carries one of these; the field calls both things "piece", we call
/// the hashed unit *piece* and the requested unit *block*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Block {
    /// The piece the range lies in.
    pub piece: PieceIndex,
    /// First byte, counted from the start of the piece.
    pub begin: u32,
    /// Length in bytes.
    pub len: u32,
}

/// A length or offset as the machine counts memory. On 64-bit machines, the only ones that map
/// whole torrents, nothing is lost; elsewhere a too large value saturates and is refused later.
pub fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The numbers that say how a torrent is cut: enough to judge any index a peer sends.
///
/// ```
/// use seedring::units::{Geometry, PieceIndex};
/// let geometry = Geometry::new(40_000, 16_384).unwrap();
/// assert_eq!(geometry.piece_count(), 3);
/// assert_eq!(geometry.piece_len(PieceIndex(2)), 40_000 - 2 * 16_384);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    total_len: u64,
    piece_len: u32,
    piece_count: u32,
}

impl Geometry {
    /// A torrent of `total_len` bytes in pieces of `piece_len` bytes; `None` if `piece_len` is 0
    /// or the pieces cannot be counted in 32 bits.
    pub fn new(total_len: u64, piece_len: u32) -> Option<Self> {
        if piece_len == 0 {
            return None;
        }
        let piece_count = u32::try_from(total_len.div_ceil(u64::from(piece_len))).ok()?;
        Some(Self { total_len, piece_len, piece_count })
    }

    /// Bytes of the whole torrent, padding files included.
    pub fn total_len(&self) -> u64 {
        self.total_len
    }

    /// Number of pieces; 0 for a torrent of nothing but empty files.
    pub fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// The nominal length of a piece in bytes; only the last one may be shorter.
    pub fn piece_len_nominal(&self) -> u32 {
        self.piece_len
    }

    /// Length in bytes of `piece`; 0 for an index that does not exist.
    pub fn piece_len(&self, piece: PieceIndex) -> u32 {
        let start = self.piece_start(piece);
        let left = self.total_len.saturating_sub(start);
        u32::try_from(left.min(u64::from(self.piece_len))).unwrap_or(self.piece_len)
    }

    /// Offset in bytes of the first byte of `piece` in the torrent.
    pub fn piece_start(&self, piece: PieceIndex) -> u64 {
        u64::from(piece.0) * u64::from(self.piece_len)
    }

    /// Number of blocks that `piece` is asked for in.
    pub fn block_count(&self, piece: PieceIndex) -> u32 {
        self.piece_len(piece).div_ceil(BLOCK_LEN)
    }

    /// The block number `index` of `piece`, `None` past its end.
    pub fn block(&self, piece: PieceIndex, index: u32) -> Option<Block> {
        let begin = index.checked_mul(BLOCK_LEN)?;
        let left = self.piece_len(piece).checked_sub(begin)?;
        (left > 0).then(|| Block { piece, begin, len: left.min(BLOCK_LEN) })
    }

    /// Whether `block` is a non-empty range inside its piece.
    pub fn contains(&self, block: Block) -> bool {
        block.len > 0
            && block.piece.0 < self.piece_count
            && block
                .begin
                .checked_add(block.len)
                .is_some_and(|end| end <= self.piece_len(block.piece))
    }

    /// Whether `block` is exactly one of the blocks that we ask for.
    pub fn is_aligned(&self, block: Block) -> bool {
        block.begin.is_multiple_of(BLOCK_LEN)
            && block.piece.0 < self.piece_count
            && self.block(block.piece, block.begin / BLOCK_LEN) == Some(block)
    }
}

/// A set of pieces, with its size kept.
///
/// Bit 0 of the protocol is the highest bit of the first byte (BEP 3); words hold the same order,
/// so that the wire form is the words in big-endian order, cut to length.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bitfield {
    words: Vec<u64>,
    len: u32,
    ones: u32,
}

impl Bitfield {
    /// An empty set over `len` pieces.
    pub fn none(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, ones: 0 }
    }

    /// The full set over `len` pieces.
    pub fn all(len: u32) -> Self {
        let mut words = vec![u64::MAX; len.div_ceil(64) as usize];
        if let (Some(last), tail @ 1..) = (words.last_mut(), len % 64) {
            *last = u64::MAX << (64 - tail);
        }
        Self { words, len, ones: len }
    }

    /// Reads the wire form; `None` unless it is exactly `len` bits with every spare bit 0 (BEP 3).
    pub fn from_wire(bytes: &[u8], len: u32) -> Option<Self> {
        if bytes.len() != len.div_ceil(8) as usize {
            return None;
        }
        let mut words = Vec::with_capacity(len.div_ceil(64) as usize);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            words.push(u64::from_be_bytes(word));
        }
        if let (Some(last), tail @ 1..) = (words.last(), len % 64)
            && last & (u64::MAX >> tail) != 0
        {
            return None;
        }
        let ones = words.iter().map(|word| word.count_ones()).sum();
        Some(Self { words, len, ones })
    }

    /// The wire form: `ceil(len / 8)` bytes.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.truncate(self.len.div_ceil(8) as usize);
        bytes
    }

    /// Number of pieces the set ranges over.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it ranges over no pieces at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces in the set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Whether every piece is in the set (true of a torrent without pieces).
    pub fn is_complete(&self) -> bool {
        self.ones == self.len
    }

    /// Whether `piece` is in the set; false for an index that does not exist.
    pub fn has(&self, piece: PieceIndex) -> bool {
        piece.0 < self.len && self.words[piece.0 as usize / 64] & Self::bit(piece) != 0
    }

    /// Adds `piece`; true if it was not there. An index that does not exist is ignored.
    pub fn set(&mut self, piece: PieceIndex) -> bool {
        if piece.0 >= self.len || self.has(piece) {
            return false;
        }
        self.words[piece.0 as usize / 64] |= Self::bit(piece);
        self.ones += 1;
        true
    }

    /// Removes `piece`; true if it was there.
    pub fn clear(&mut self, piece: PieceIndex) -> bool {
        if !self.has(piece) {
            return false;
        }
        self.words[piece.0 as usize / 64] &= !Self::bit(piece);
        self.ones -= 1;
        true
    }

    /// The pieces of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().zip(0u32..).flat_map(|(&word, index)| Ones(word, index * 64))
    }

    /// Whether `other` holds a piece that this set lacks.
    pub fn lacks_any_of(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(ours, theirs)| theirs & !ours != 0)
    }

    /// Number of pieces that `other` holds and this set lacks.
    pub fn count_lacking_of(&self, other: &Self) -> u32 {
        let words = self.words.iter().zip(&other.words);
        words.map(|(ours, theirs)| (theirs & !ours).count_ones()).sum()
    }

    fn bit(piece: PieceIndex) -> u64 {
        1 << (63 - piece.0 % 64)
    }
}

/// The set bits of one word, highest first, offset by the index of its first piece.
struct Ones(u64, u32);

impl Iterator for Ones {
    type Item = PieceIndex;

    fn next(&mut self) -> Option<PieceIndex> {
        if self.0 == 0 {
            return None;
        }
        let lead = self.0.leading_zeros();
        self.0 &= !(1 << (63 - lead));
        Some(PieceIndex(self.1 + lead))
    }
}

/// Why a text is not an info-hash.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an info-hash is 40 hexadecimal digits")]
pub struct ParseInfoHashError;

impl FromStr for InfoHash {
    type Err = ParseInfoHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        let mut hash = [0; 20];
        if digits.len() != 2 * hash.len() {
            return Err(ParseInfoHashError);
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(ParseInfoHashError);
            *byte = u8::try_from(nibble(pair[0])? * 16 + nibble(pair[1])?)
                .map_err(|_| ParseInfoHashError)?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for PieceIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "#{}", self.0)
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Bitfield({} of {})", self.ones, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitfield_round_trips_and_counts() {
        for len in [0, 1, 7, 8, 9, 63, 64, 65, 130] {
            let mut field = Bitfield::none(len);
            for index in (0..len).step_by(3) {
                assert!(field.set(PieceIndex(index)));
                assert!(!field.set(PieceIndex(index)));
            }
            let wire = field.to_wire();
            assert_eq!(wire.len(), len.div_ceil(8) as usize);
            assert_eq!(Bitfield::from_wire(&wire, len), Some(field.clone()));
            assert_eq!(field.iter().count(), field.count() as usize);
            assert!(field.iter().all(|piece| piece.0 % 3 == 0));
            assert!(Bitfield::all(len).is_complete());
            assert_eq!(
                Bitfield::from_wire(&Bitfield::all(len).to_wire(), len),
                Some(Bitfield::all(len))
            );
        }
    }

    #[test]
    fn bitfield_refuses_spare_bits_and_wrong_lengths() {
        assert_eq!(Bitfield::from_wire(&[0b1000_0001], 7), None);
        assert_eq!(Bitfield::from_wire(&[0], 9), None);
        assert_eq!(Bitfield::from_wire(&[0, 0], 8), None);
    }

    #[test]
    fn bitfield_first_piece_is_the_highest_bit() {
        let mut field = Bitfield::none(9);
        field.set(PieceIndex(0));
        field.set(PieceIndex(8));
        assert_eq!(field.to_wire(), [0x80, 0x80]);
        assert!(Bitfield::none(9).lacks_any_of(&field));
        assert!(!Bitfield::all(9).lacks_any_of(&field));
    }

    #[test]
    fn geometry_judges_blocks() {
        let geometry = Geometry::new(100_000, 32_768).unwrap();
        let block = |piece, begin, len| Block { piece: PieceIndex(piece), begin, len };
        assert_eq!(geometry.piece_count(), 4);
        assert!(geometry.contains(block(3, 0, 1696)));
        assert!(!geometry.contains(block(3, 0, 1697)));
        assert!(!geometry.contains(block(4, 0, 1)));
        assert!(!geometry.contains(block(0, u32::MAX, 2)));
        assert!(!geometry.contains(block(0, 0, 0)));
        assert!(geometry.is_aligned(block(0, BLOCK_LEN, BLOCK_LEN)));
        assert!(!geometry.is_aligned(block(0, 1, BLOCK_LEN)));
        assert!(geometry.is_aligned(block(3, 0, 1696)));
    }

    #[test]
    fn info_hash_parses_hex_only() {
        let text = "0123456789abcdef0123456789ABCDEF01234567";
        assert_eq!(text.parse::<InfoHash>().unwrap().to_string(), text.to_lowercase());
        assert!("zz".parse::<InfoHash>().is_err());
        assert!("é123456789abcdef0123456789abcdef0123456".parse::<InfoHash>().is_err());
    }
}
