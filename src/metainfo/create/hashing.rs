//! Hashing the pieces of files on several threads. An edge: it reads files and blocks.
//!
//! Files and their layout enter, a SHA-1 for each piece leaves. Invariant: a thread holds one
//! buffer and one open file, whatever the length of a piece; the hashes are all there or none is
//! given.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha1::{Digest, Sha1};

use super::super::Metainfo;
use super::CreateError;
use super::content::{Source, Stat};
use crate::units::PieceIndex;

/// Bytes that a thread reads at once.
const READ_LEN: usize = 1 << 20;

/// Most threads that hash.
const THREADS_MAX: usize = 256;

/// The work that threads share: which piece is next, what is done, what went wrong.
pub(super) struct Hashing<'a> {
    files: &'a [Source],
    draft: &'a Metainfo,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    done: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<CreateError>>,
}

impl Hashing<'_> {
    pub(super) fn run(
        files: &[Source],
        draft: &Metainfo,
        threads: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Vec<[u8; 20]>, CreateError> {
        let hashing = Hashing {
            files,
            draft,
            progress,
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let mut hashes = vec![[0; 20]; draft.geometry.piece_count() as usize];
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { available() } else { threads };
        let threads = threads.min(THREADS_MAX).min(hashes.len());
        let slots = Mutex::new(hashes.iter_mut().zip((0..).map(PieceIndex)));
        let next = || slots.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| hashing.work(&next));
            }
        });
        let failure = hashing.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = failure {
            return Err(failure);
        }
        for file in files {
            let now = fs::symlink_metadata(&file.path).map_err(|_| file.changed())?;
            if Stat::from(&now) != file.stat {
                return Err(file.changed());
            }
        }
        progress(draft.geometry.total_len(), draft.geometry.total_len());
        Ok(hashes)
    }

    /// One thread: takes pieces until there are none, or another thread failed.
    fn work<'h>(&self, next: &dyn Fn() -> Option<(&'h mut [u8; 20], PieceIndex)>) {
        let mut buffer = vec![0; READ_LEN];
        let mut open = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((hash, piece)) = next() else { return };
            match self.hash(piece, &mut open, &mut buffer) {
                Ok(found) => *hash = found,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
    }

    /// The SHA-1 of one piece; `open` is the file that this thread read last.
    fn hash(
        &self,
        piece: PieceIndex,
        open: &mut Option<(usize, File)>,
        buffer: &mut [u8],
    ) -> Result<[u8; 20], CreateError> {
        let geometry = self.draft.geometry;
        let len = u64::from(geometry.piece_len(piece));
        let mut sha1 = Sha1::new();
        for extent in self.draft.layout.extents(geometry.piece_start(piece), len) {
            let source = &self.files[extent.file];
            if open.as_ref().is_none_or(|(index, _)| *index != extent.file) {
                *open = Some((extent.file, source.open()?));
            }
            let Some((_, file)) = open.as_ref() else { continue };
            let (mut offset, end) = (extent.offset, extent.offset + extent.len);
            while offset < end {
                let want = usize::try_from(end - offset).unwrap_or(READ_LEN).min(buffer.len());
                let chunk = &mut buffer[..want];
                file.read_exact_at(chunk, offset).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => source.changed(),
                    _ => source.io(error),
                })?;
                sha1.update(&*chunk);
                offset += want as u64;
                let done = self.done.fetch_add(want as u64, Ordering::Relaxed) + want as u64;
                (self.progress)(done, geometry.total_len());
            }
        }
        Ok(sha1.finalize().into())
    }
}
