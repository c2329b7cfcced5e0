//! Where a block's bytes are: in a mapping, in memory, on the disk.
//!
//! - [`files`] opens a torrent's files and reserves their space, on threads that may block.
//! - [`residency`] remembers for a moment which ranges are in the page cache.
//! - [`chunks`] holds what was read from cold files, shared by the peers that want it.
//! - [`parts`] keeps what wanted pieces have of files that are not wanted.
//! - [`pieces`] gathers the blocks of a piece that is being fetched, and hashes them while hot.
//! - [`recovery`] decides whether a torrent that its files failed may go on.
//! - [`verify`] checks data that is already there, on hash threads.
//!
//! Invariants: nothing in this room looks into a mapping; nothing on a worker blocks on a disk;
//! every buffer is counted against a named limit.

pub mod chunks;
pub mod files;
pub mod parts;
pub mod pieces;
pub mod recovery;
pub mod residency;
pub mod verify;

use std::path::PathBuf;

use crate::metainfo::Metainfo;
use crate::metainfo::selection::Wanted;
use crate::units::{Bitfield, Geometry, PieceIndex};

/// The unchanging half of a torrent's storage: what it consists of and where it lies. Shared by
/// every thread that has to do with the torrent.
#[derive(Debug)]
pub struct Content {
    /// What the `.torrent` file says.
    pub metainfo: Metainfo,
    /// The folder that holds the torrent's top name.
    pub save_path: PathBuf,
    /// Which of its files are wanted.
    pub wanted: Wanted,
}

impl Content {
    /// All of a torrent, in a folder.
    pub fn new(metainfo: Metainfo, save_path: PathBuf) -> Self {
        Self { metainfo, save_path, wanted: Wanted::default() }
    }

    /// The pieces that have a part in a wanted file; `None` for all.
    pub fn wanted_pieces(&self) -> Option<Bitfield> {
        self.wanted.pieces(&self.metainfo.layout, self.metainfo.geometry)
    }

    /// How many of the wanted pieces are in `have`, and how many there are.
    pub fn wanted_counts(&self, have: &Bitfield) -> (u32, u32) {
        match self.wanted_pieces() {
            None => (have.count(), have.len()),
            Some(wanted) => (wanted.count() - have.count_lacking_of(&wanted), wanted.count()),
        }
    }

    /// Bytes of the pieces that are not in `have`, and of the wanted ones among them.
    pub fn left(&self, have: &Bitfield) -> (u64, u64) {
        let (geometry, wanted) = (self.metainfo.geometry, self.wanted_pieces());
        let (mut left, mut wanted_left) = (0, 0);
        for piece in (0..have.len()).map(PieceIndex).filter(|&piece| !have.has(piece)) {
            let len = u64::from(geometry.piece_len(piece));
            left += len;
            wanted_left += if wanted.as_ref().is_none_or(|it| it.has(piece)) { len } else { 0 };
        }
        (left, wanted_left)
    }

    /// Bytes of the wanted pieces.
    pub fn wanted_len(&self) -> u64 {
        match self.wanted_pieces() {
            None => self.metainfo.geometry.total_len(),
            Some(pieces) => {
                pieces.iter().map(|it| u64::from(self.metainfo.geometry.piece_len(it))).sum()
            }
        }
    }

    /// Whether every wanted piece is in `have`.
    pub fn is_finished(&self, have: &Bitfield) -> bool {
        let (have_count, count) = self.wanted_counts(have);
        have_count == count
    }
}

impl verify::Content for Content {
    fn geometry(&self) -> Geometry {
        self.metainfo.geometry
    }

    fn piece_hash(&self, piece: PieceIndex) -> Option<[u8; 20]> {
        self.metainfo.piece_hash(piece).copied()
    }

    fn file_count(&self) -> usize {
        self.metainfo.layout.file_count()
    }

    fn file(&self, index: usize) -> Option<verify::ContentFile> {
        verify::Content::file(&self.metainfo, index)
    }
}

/// How the blocks of a torrent reach the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Mapped where the file system maps well, read elsewhere.
    #[default]
    Auto,
    /// Always from a mapping when the range is in the page cache.
    Map,
    /// Always read into memory first.
    Read,
}

/// Why a torrent cannot go on with its files. It stops that torrent and no other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The disk is full.
    #[error("no space left for {path}: {needed} bytes are needed, {free} are free")]
    NoSpace {
        /// The file that did not fit.
        path: String,
        /// Bytes it needs in all.
        needed: u64,
        /// Bytes that were free when it was tried.
        free: u64,
    },
    /// A write failed for want of space although it had been reserved, or a quota was met.
    #[error("no space left while writing {path}")]
    DiskFull {
        /// The file that was being written.
        path: String,
    },
    /// A file that was there has gone.
    #[error("{path} is missing")]
    Missing {
        /// The file.
        path: String,
    },
    /// None of its files is there any more, and some were in an earlier run.
    #[error("the files of the torrent are gone from {path}: is the disk mounted?")]
    Gone {
        /// The folder that held its top name.
        path: String,
    },
    /// A file is shorter than the torrent says.
    #[error("{path} was truncated: it should have {expected} bytes and has {found}")]
    Truncated {
        /// The file.
        path: String,
        /// Bytes the torrent says.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A file is not the one that was checked.
    #[error("{path} was changed or replaced by another program")]
    Replaced {
        /// The file.
        path: String,
    },
    /// The path leads out of the save path, or through something that is not a directory.
    #[error("{path} cannot be used: {reason}")]
    Refused {
        /// The file.
        path: String,
        /// What stands in the way.
        reason: String,
    },
    /// Anything else that the system said.
    #[error("cannot {action} {path}: {reason}")]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// The file.
        path: String,
        /// The system's words.
        reason: String,
    },
}

impl Error {
    /// Whether `other` says the same of the same kind of failure, if perhaps with other figures.
    pub fn is_like(&self, other: &Self) -> bool {
        use std::mem::discriminant;
        match (self, other) {
            (Self::Io { .. }, Self::Io { .. }) => self == other,
            _ => discriminant(self) == discriminant(other),
        }
    }

    /// Names the failure of `action` on `path` by what the system said.
    pub fn from_io(action: &'static str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let path = path.display().to_string();
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::DiskFull { path },
            // Where something cannot be made, it is not what is missing.
            Some(libc::ENOENT) if action != "create" => Self::Missing { path },
            Some(libc::EXDEV | libc::ELOOP) => {
                Self::Refused { path, reason: "it leads out of the save path".into() }
            }
            Some(libc::ENOTDIR) => {
                Self::Refused { path, reason: "a file stands where a directory should be".into() }
            }
            _ => Self::Io { action, path, reason: error.to_string() },
        }
    }
}
