//! Why a torrent is refused.
//!
//! Invariant: each variant is one sentence that names the value at fault; text from the torrent is
//! cut and escaped in it.
#![forbid(unsafe_code)]

use super::{
    COLLISIONS_MAX, FILE_LEN_MAX, PATH_DEPTH_MAX, PATH_LEN_MAX, PIECE_COUNT_MAX, PIECE_LEN_MAX,
};
use crate::bencode;

/// A torrent that is not taken; nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes are not one bencoded value.
    #[error("not a torrent: {0}")]
    Bencode(#[from] bencode::Error),
    /// The value is an integer, a string or a list.
    #[error("the torrent is not a dictionary")]
    NotADictionary,
    /// A key that every v1 torrent has is not there.
    #[error("the torrent has no {key:?}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of another kind than BEP 3 gives it.
    #[error("{key:?} is not {expected}")]
    WrongKind {
        /// The key.
        key: &'static str,
        /// The kind it should have.
        expected: &'static str,
    },
    /// A torrent of BEP 52 without the part that v1 clients read.
    #[error("this torrent is v2 only, and only v1 and hybrid torrents are supported")]
    V2Only,
    /// Both `length` and `files`: clients differ in which of them they believe.
    #[error("the torrent has both \"length\" and \"files\", so its content is ambiguous")]
    Ambiguous,
    /// `files` is an empty list.
    #[error("the torrent lists no files")]
    NoFiles,
    /// `piece length` is not between 1 and [`PIECE_LEN_MAX`].
    #[error("a piece length of {value} bytes is not between 1 and {PIECE_LEN_MAX}")]
    PieceLength {
        /// The value.
        value: i64,
    },
    /// There are more pieces than [`PIECE_COUNT_MAX`].
    #[error("{count} pieces are more than {PIECE_COUNT_MAX}")]
    TooManyPieces {
        /// Pieces that the lengths make.
        count: u64,
    },
    /// `pieces` is not a row of SHA-1 hashes.
    #[error("{len} bytes of piece hashes are not a multiple of 20")]
    PiecesLength {
        /// Its length.
        len: usize,
    },
    /// `pieces` has another number of hashes than there are pieces.
    #[error("the torrent has {found} piece hashes for {expected} pieces")]
    PieceCount {
        /// Pieces that the lengths make.
        expected: u64,
        /// Hashes found.
        found: usize,
    },
    /// A file's length is missing or no integer.
    #[error("file {index} has no length that is an integer")]
    FileLengthKind {
        /// Index of the file, from 0.
        index: usize,
    },
    /// A file's length is not between 0 and [`FILE_LEN_MAX`].
    #[error(
        "file {index} has a length of {value} bytes, which is not between 0 and {FILE_LEN_MAX}"
    )]
    FileLength {
        /// Index of the file, from 0.
        index: usize,
        /// The value.
        value: i64,
    },
    /// The lengths of the files do not add up in 64 bits.
    #[error("the lengths of the files add up to more than 64 bits can hold at file {index}")]
    TotalLength {
        /// Index of the file, from 0.
        index: usize,
    },
    /// A file's path is not a list of at least one string.
    #[error("file {index} has no path that is a list of names")]
    Path {
        /// Index of the file, from 0.
        index: usize,
    },
    /// A name that would lead out of the torrent's directory, or nowhere.
    #[error("the name {name} is not allowed: {reason}")]
    Name {
        /// The name, cut and escaped.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path has more than [`PATH_DEPTH_MAX`] names.
    #[error("the path of file {index} is {depth} names deep, and {PATH_DEPTH_MAX} are allowed")]
    PathDepth {
        /// Index of the file, from 0.
        index: usize,
        /// Names in it.
        depth: usize,
    },
    /// A path is longer than [`PATH_LEN_MAX`], made safe.
    #[error("the path of file {index} is {len} bytes long, and {PATH_LEN_MAX} are allowed")]
    PathLength {
        /// Index of the file, from 0.
        index: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// More than [`COLLISIONS_MAX`] files had to be renamed because their path was taken.
    #[error("more than {COLLISIONS_MAX} files share their path with another file")]
    Collisions,
    /// A symbolic link (BEP 47) that claims to have content.
    #[error("file {index} is a symbolic link with a length of {len} bytes instead of 0")]
    SymlinkLength {
        /// Index of the file, from 0.
        index: usize,
        /// Its length.
        len: u64,
    },
}

impl Error {
    /// The name of this refusal in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Bencode(error) => error.label(),
            Self::NotADictionary => "not_a_dictionary",
            Self::Missing { .. } => "missing_key",
            Self::WrongKind { .. } => "wrong_kind",
            Self::V2Only => "v2_only",
            Self::Ambiguous => "length_and_files",
            Self::NoFiles => "no_files",
            Self::PieceLength { .. } => "piece_length",
            Self::TooManyPieces { .. } => "too_many_pieces",
            Self::PiecesLength { .. } => "pieces_length",
            Self::PieceCount { .. } => "piece_count",
            Self::FileLengthKind { .. } => "file_length_kind",
            Self::FileLength { .. } => "file_length",
            Self::TotalLength { .. } => "total_length",
            Self::Path { .. } => "path",
            Self::Name { .. } => "name",
            Self::PathDepth { .. } => "path_depth",
            Self::PathLength { .. } => "path_length",
            Self::Collisions => "collisions",
            Self::SymlinkLength { .. } => "symlink_length",
        }
    }
}
