//! Checking data that lies on disk against the piece hashes.
//!
//! A torrent's [`Content`] and a save path enter; [`Checked`] leaves: which pieces are there, what
//! each file looked like, what could not be read. [`check`] blocks and is for the command line;
//! [`Checker`] is the server's hash threads with their queue. Files are read by `pread` into
//! buffers that stay in the processor's cache and are hashed several pieces in step. A piece that
//! touches a missing or short file is missing without being read. So is a piece that lies wholly in
//! holes of sparse or just reserved files, unless its hash is that of zeros: then it is there.
//! Invariant: nothing is written, nothing is mapped, and a failed read only ever costs the pieces
//! it touched.

mod pool;
mod reader;
mod task;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::metainfo::Metainfo;
use crate::sys::file::Identity;
use crate::sys::sha1::Digest;
use crate::units::{Bitfield, Geometry, PieceIndex};

pub use pool::{Checker, Job, QueueFull, STALL_AFTER};
use reader::Reader;
use task::Task;

/// Bytes of each piece that are read and hashed at once. A hash thread holds one such buffer for
/// each of at most [`STREAMS_MAX`](crate::sys::sha1::STREAMS_MAX) pieces: 512 KiB, usually 256.
pub const CHUNK_LEN_MAX: usize = 64 * 1024;

/// Bytes that a thread takes from a torrent at once, where its pieces are smaller.
const BATCH_LEN: u32 = 4 * 1024 * 1024;

/// Files that one hash thread keeps open.
const FILES_OPEN_MAX: usize = 16;

/// Errors that are told one by one; more are only counted.
pub const ERRORS_MAX: usize = 64;

/// Jobs that may wait in the queue of a [`Checker`].
pub const JOBS_MAX: usize = 1 << 17;

/// Most hash threads of one [`Checker`] or one [`check`].
pub const THREADS_MAX: usize = 256;

/// What a torrent says of its data: all that a check needs to know.
pub trait Content: Send + Sync {
    /// How the data is cut into pieces.
    fn geometry(&self) -> Geometry;
    /// The hash that `piece` must have; `None` makes the piece missing.
    fn piece_hash(&self, piece: PieceIndex) -> Option<Digest>;
    /// The number of files, padding and empty ones included.
    fn file_count(&self) -> usize;
    /// The file number `index`, `None` past the last; the torrent's bytes are those of its files in this order.
    fn file(&self, index: usize) -> Option<ContentFile>;
}

/// One file of a torrent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContentFile {
    /// Its path beneath the save path.
    pub path: PathBuf,
    /// Length in bytes.
    pub len: u64,
    /// False for padding, which is zeros, and for links, which have no bytes (BEP 47).
    pub is_on_disk: bool,
}

impl Content for Metainfo {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn piece_hash(&self, piece: PieceIndex) -> Option<Digest> {
        Metainfo::piece_hash(self, piece).copied()
    }

    fn file_count(&self) -> usize {
        self.layout.file_count()
    }

    fn file(&self, index: usize) -> Option<ContentFile> {
        self.layout.file(index).map(|file| ContentFile {
            path: file.path(),
            len: file.len,
            is_on_disk: file.is_on_disk(),
        })
    }
}

/// How a check runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Number of hash threads; at least 1 and at most [`THREADS_MAX`] are used.
    pub threads: usize,
    /// Gives way to everything else on processors and disks.
    pub low_priority: bool,
}

/// The shared view of one check: how far it is, and whether it shall stop.
#[derive(Debug, Default)]
pub struct Progress {
    bytes_done: AtomicU64,
    files_seen: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of the torrent that are decided so far, read or not.
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// Stops the check within a few chunks; its result then says so.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`Progress::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// A number that changes with everything that is done.
    fn steps(&self) -> u64 {
        self.bytes_done().wrapping_add(self.files_seen.load(Ordering::Relaxed))
    }

    /// Something was looked at that is no part of [`Progress::bytes_done`]: the check moves.
    pub(super) fn saw_file(&self) {
        self.files_seen.fetch_add(1, Ordering::Relaxed);
    }

    fn advance(&self, len: u64) {
        self.bytes_done.fetch_add(len, Ordering::Relaxed);
    }
}

/// What a file looked like when the check began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileState {
    /// Padding or a link, which are on no disk.
    Virtual,
    /// A regular file of the right length.
    Whole,
    /// Nothing is there.
    Missing,
    /// A regular file that ends too early.
    Short,
    /// A regular file that goes on behind the torrent's last byte of it.
    Long,
    /// Something is there that cannot be used; the errors say why.
    Unusable,
}

/// What became of one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileReport {
    /// What it looked like.
    pub state: FileState,
    /// Its identity before the first byte was read: if it changes during the check, this no longer
    /// fits, and the pieces are not trusted the next time. `None` unless it is a regular file.
    pub identity: Option<Identity>,
}

/// Something that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", place(*.file))]
pub struct ReadError {
    /// Number of the file; `None` for the save path itself.
    pub file: Option<usize>,
    /// What the system said.
    pub error: io::Error,
}

fn place(file: Option<usize>) -> String {
    file.map_or_else(|| "the folder".to_owned(), |index| format!("file {index}"))
}

/// The result of a check.
#[derive(Debug)]
pub struct Checked {
    /// The pieces that are there and right.
    pub have: Bitfield,
    /// Bytes that were read and hashed.
    pub bytes_hashed: u64,
    /// Time that the threads spent hashing them, without the reading.
    pub hash_time: Duration,
    /// One report for each file, in order; empty if the check was cancelled before it began.
    pub files: Vec<FileReport>,
    /// The first [`ERRORS_MAX`] things that could not be read.
    pub errors: Vec<ReadError>,
    /// How many there were.
    pub error_count: u64,
    /// Whether it was cancelled; pieces not in `have` are then unknown.
    pub cancelled: bool,
}

impl Checked {
    /// Whether everything is there: every piece, and every file, even the empty ones.
    pub fn is_complete(&self) -> bool {
        use FileState::{Missing, Unusable};
        let is_absent = |file: &FileReport| matches!(file.state, Missing | Unusable);
        !self.cancelled && self.have.is_complete() && !self.files.iter().any(is_absent)
    }

    fn never_begun(geometry: Geometry) -> Self {
        Self {
            have: Bitfield::none(geometry.piece_count()),
            bytes_hashed: 0,
            hash_time: Duration::ZERO,
            files: Vec::new(),
            errors: Vec::new(),
            error_count: 0,
            cancelled: true,
        }
    }
}

/// Checks what lies beneath the save path `root`, and returns when it is done or cancelled.
pub fn check(
    content: Arc<dyn Content>,
    root: &Path,
    options: Options,
    progress: Arc<Progress>,
) -> Checked {
    let thread_count = options.threads.clamp(1, THREADS_MAX);
    let task = Task::new(content, root, progress, thread_count);
    let work = || {
        lower_priority(options);
        task.work(&mut Reader::new());
    };
    thread::scope(|scope| {
        for index in 0..thread_count {
            let started = thread_name(index).spawn_scoped(scope, work);
            if started.is_err() {
                // The threads that are there do it all; without any, this one does.
                if index == 0 {
                    task.work(&mut Reader::new());
                }
                break;
            }
        }
    });
    task.finish()
}

fn thread_name(index: usize) -> thread::Builder {
    thread::Builder::new().name(format!("hash-{index}"))
}

fn lower_priority(options: Options) {
    if options.low_priority
        && let Err(error) = crate::sys::file::lower_thread_priority()
    {
        tracing::debug!(%error, "hash threads keep their priority");
    }
}

#[cfg(test)]
mod tests;
