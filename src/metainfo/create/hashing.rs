//! Hashing the pieces of files on several threads. An edge: it reads files and blocks.
//!
//! Files and their layout enter, a SHA-1 for each piece leaves. Several pieces advance in step, one
//! chunk of each at a time, so that the bytes are hashed while they are in the cache. Invariant: a
//! thread holds one buffer and one open file for each of those, whatever the length of a piece; the
//! hashes are all there or none is given.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::Metainfo;
use super::CreateError;
use super::content::{Source, Stat};
use crate::sys::sha1::{Digest, Engine, Lanes, STREAMS_MAX};
use crate::units::{PieceIndex, to_usize};

/// Bytes of a piece that a thread reads at once.
const CHUNK_LEN: usize = 64 << 10;

/// Most threads that hash; with [`STREAMS_MAX`] files each they stay within the usual limit.
const THREADS_MAX: usize = 64;

/// A piece and where its hash goes.
type Slot<'h> = (&'h mut Digest, PieceIndex);

/// What a thread reads one of its pieces with.
struct Hand {
    buffer: Vec<u8>,
    /// The file that was read last.
    open: Option<(usize, File)>,
}

/// The work that threads share: which piece is next, what is done, what went wrong.
pub(super) struct Hashing<'a> {
    files: &'a [Source],
    draft: &'a Metainfo,
    engine: Engine,
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
    ) -> Result<Vec<Digest>, CreateError> {
        let hashing = Hashing {
            files,
            draft,
            engine: Engine::best(),
            progress,
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let mut hashes = vec![[0; 20]; draft.geometry.piece_count() as usize];
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { available() } else { threads };
        let threads = threads.min(THREADS_MAX).min(hashes.len());
        // Few pieces are shared out among the threads rather than hashed side by side on one.
        let width = hashing.engine.width().min(hashes.len().div_ceil(threads.max(1)));
        let slots = Mutex::new(hashes.iter_mut().zip((0..).map(PieceIndex)));
        let next = || -> Vec<Slot<'_>> {
            slots.lock().unwrap_or_else(PoisonError::into_inner).by_ref().take(width).collect()
        };
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
    fn work<'h>(&self, next: &dyn Fn() -> Vec<Slot<'h>>) {
        let hand = || Hand { buffer: vec![0; CHUNK_LEN], open: None };
        let mut hands: Vec<_> = std::iter::repeat_with(hand).take(self.engine.width()).collect();
        let len = |slot: &Slot<'_>| self.draft.geometry.piece_len(slot.1);
        while !self.stop.load(Ordering::Relaxed) {
            let mut group = next();
            if group.is_empty() {
                return;
            }
            // The last piece may be shorter than those before.
            for equal in group.chunk_by_mut(|one, next| len(one) == len(next)) {
                if let Err(error) = self.hash(equal, &mut hands) {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
    }

    /// Hashes pieces of one length in step; leaves them unfinished if another thread failed.
    fn hash(&self, group: &mut [Slot<'_>], hands: &mut [Hand]) -> Result<(), CreateError> {
        let (geometry, count) = (self.draft.geometry, group.len());
        let piece_len = group.first().map_or(0, |slot| geometry.piece_len(slot.1)) as usize;
        let mut lanes = Lanes::new(self.engine, count);
        for from in (0..piece_len).step_by(CHUNK_LEN) {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let len = CHUNK_LEN.min(piece_len - from);
            for ((_, piece), hand) in group.iter().zip(&mut *hands) {
                self.fill(hand, len, geometry.piece_start(*piece) + from as u64)?;
            }
            let mut chunks: [&[u8]; STREAMS_MAX] = [&[]; STREAMS_MAX];
            for (chunk, hand) in chunks.iter_mut().zip(&*hands) {
                *chunk = &hand.buffer[..len];
            }
            lanes.update(&chunks[..count]);
            let read = (len * count) as u64;
            let done = self.done.fetch_add(read, Ordering::Relaxed) + read;
            (self.progress)(done, geometry.total_len());
        }
        for ((hash, _), digest) in group.iter_mut().zip(lanes.finish()) {
            **hash = digest;
        }
        Ok(())
    }

    /// Reads `len` bytes of the torrent from `start` on.
    fn fill(&self, hand: &mut Hand, len: usize, start: u64) -> Result<(), CreateError> {
        let mut rest = &mut hand.buffer[..len];
        for extent in self.draft.layout.extents(start, len as u64) {
            let source = &self.files[extent.file];
            if hand.open.as_ref().is_none_or(|(index, _)| *index != extent.file) {
                hand.open = Some((extent.file, source.open()?));
            }
            let Some((_, file)) = hand.open.as_ref() else { continue };
            let (part, behind) = rest.split_at_mut(to_usize(extent.len));
            file.read_exact_at(part, extent.offset).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => source.changed(),
                _ => source.io(error),
            })?;
            rest = behind;
        }
        Ok(())
    }
}
