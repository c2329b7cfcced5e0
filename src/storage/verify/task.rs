//! One check while it runs: which pieces are still to do, and what was found.
//!
//! Hash threads enter with their [`Reader`] and leave when no piece is left to take; findings are
//! merged once per batch. Invariant: each piece is taken by exactly one thread.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::{
    BATCH_LEN, Checked, Content, ContentFile, ERRORS_MAX, FileReport, FileState, Progress,
    ReadError, Reader,
};
use crate::sys::file;
use crate::sys::sha1::{Digest, Engine, Sha1};
use crate::units::{Geometry, PieceIndex};

/// A part of one file.
pub(super) struct Extent {
    pub(super) file: usize,
    pub(super) is_virtual: bool,
    /// Bytes of the file.
    pub(super) range: Range<u64>,
}

/// Where a file lies in the torrent, and how much of it is on disk.
struct Span {
    start: u64,
    end: u64,
    present_len: u64,
    is_virtual: bool,
}

pub(super) struct Task {
    pub(super) content: Arc<dyn Content>,
    pub(super) progress: Arc<Progress>,
    pub(super) geometry: Geometry,
    pub(super) engine: Engine,
    root: Option<OwnedFd>,
    spans: Vec<Span>,
    /// Pieces of one batch.
    batch_count: u32,
    thread_count: u32,
    /// The first piece that nobody took.
    next: AtomicU32,
    zeros: OnceLock<Digest>,
    found: Mutex<Checked>,
}

impl Task {
    /// Looks at every file, and makes ready for `thread_count` threads.
    pub(super) fn new(
        content: Arc<dyn Content>,
        root: &Path,
        progress: Arc<Progress>,
        thread_count: usize,
    ) -> Self {
        let geometry = content.geometry();
        let engine = Engine::best();
        let mut found = Checked { cancelled: false, ..Checked::never_begun(geometry) };
        let root = match file::open_root(root) {
            Ok(root) => Some(root),
            Err(error) => {
                found.note(None, error);
                None
            }
        };
        let spans = survey(&*content, root.as_ref(), &progress, &mut found);
        Self {
            batch_count: batch_count(geometry, engine, thread_count),
            thread_count: u32::try_from(thread_count).unwrap_or(u32::MAX),
            next: AtomicU32::new(0),
            zeros: OnceLock::new(),
            found: Mutex::new(found),
            content,
            progress,
            geometry,
            engine,
            root,
            spans,
        }
    }

    /// Takes batches of pieces until none is left, or the check is cancelled.
    pub(super) fn work(&self, reader: &mut Reader) {
        let mut batch = self.take(reader);
        while let Some(pieces) = batch {
            // The disk reads the next batch while this one is hashed; the last ones are shared.
            let ahead = if self.is_plenty_left() { self.take(reader) } else { None };
            reader.hash(self, &pieces);
            batch = ahead.or_else(|| self.take(reader));
        }
        reader.close();
    }

    /// Whether a thread may take a batch more than it hashes, and the others still find one.
    fn is_plenty_left(&self) -> bool {
        let left = self.geometry.piece_count().saturating_sub(self.next.load(Ordering::Relaxed));
        left / self.batch_count > self.thread_count
    }

    /// Whether every piece was taken, or nobody wants them any more.
    pub(super) fn is_exhausted(&self) -> bool {
        self.progress.is_cancelled()
            || self.next.load(Ordering::Relaxed) >= self.geometry.piece_count()
    }

    /// The pieces of the next batch that have to be read; the others are decided at once.
    fn take(&self, reader: &mut Reader) -> Option<Vec<PieceIndex>> {
        let piece_count = self.geometry.piece_count();
        if self.progress.is_cancelled() {
            return None;
        }
        let advance =
            |next: u32| (next < piece_count).then(|| next.saturating_add(self.batch_count));
        let (relaxed, next) = (Ordering::Relaxed, &self.next);
        let first = next.fetch_update(relaxed, relaxed, advance).ok()?;
        let end = first.saturating_add(self.batch_count).min(piece_count);
        let mut pieces = Vec::with_capacity((end - first) as usize);
        let mut zeros = Vec::new();
        for piece in (first..end).map(PieceIndex) {
            if !self.is_present(piece) {
                self.decided(piece);
            } else if reader.is_hole(self, piece) {
                self.decided(piece);
                if self.content.piece_hash(piece) == Some(self.zeros()) {
                    zeros.push(piece);
                }
            } else {
                pieces.push(piece);
            }
        }
        self.merge(&zeros, (0, Duration::ZERO), Vec::new());
        reader.read_ahead(self, &pieces);
        Some(pieces)
    }

    /// Whether every file under `piece` is long enough.
    fn is_present(&self, piece: PieceIndex) -> bool {
        let mut len = 0;
        for extent in self.extents(self.piece_range(piece)) {
            if extent.range.end > self.spans[extent.file].present_len {
                return false;
            }
            len += extent.range.end - extent.range.start;
        }
        // Files that are shorter in sum than the torrent leave a gap at its end.
        len == u64::from(self.geometry.piece_len(piece))
    }

    fn decided(&self, piece: PieceIndex) {
        self.progress.advance(self.geometry.piece_len(piece).into());
    }

    /// The bytes of the torrent that `piece` is.
    pub(super) fn piece_range(&self, piece: PieceIndex) -> Range<u64> {
        let start = self.geometry.piece_start(piece);
        start..start + u64::from(self.geometry.piece_len(piece))
    }

    /// The parts of files that the bytes `range` of the torrent lie in.
    pub(super) fn extents(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + '_ {
        let first = self.spans.partition_point(|span| span.end <= range.start);
        let spans = self.spans.iter().enumerate().skip(first);
        let inside = spans.take_while(move |(_, span)| span.start < range.end);
        inside.filter(|(_, span)| span.start < span.end).map(move |(file, span)| Extent {
            file,
            is_virtual: span.is_virtual,
            range: range.start.max(span.start) - span.start..range.end.min(span.end) - span.start,
        })
    }

    /// Whether a second thread would find something to do.
    pub(super) fn has_work_for_others(&self) -> bool {
        self.thread_count > 1 && self.geometry.piece_count() > self.batch_count
    }

    /// Opens the file number `index` for reading.
    pub(super) fn open(&self, index: usize) -> io::Result<OwnedFd> {
        let root = self.root.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let wanted = self.content.file(index).ok_or(io::ErrorKind::NotFound)?;
        file::open_beneath(root.as_fd(), &wanted.path, file::Access::Read)
    }

    /// Length of the file number `index` when the check began.
    pub(super) fn present_len(&self, index: usize) -> u64 {
        self.spans[index].present_len
    }

    /// The hash of a piece of zeros; short last pieces are not asked for it.
    fn zeros(&self) -> Digest {
        *self.zeros.get_or_init(|| {
            let zeros = [0; 4096];
            let mut left = self.geometry.piece_len_nominal() as usize;
            let mut sha1 = Sha1::new();
            while left > 0 {
                let len = left.min(zeros.len());
                sha1.update(&zeros[..len]);
                left -= len;
            }
            sha1.finish()
        })
    }

    /// Adds what one thread found.
    pub(super) fn merge(
        &self,
        have: &[PieceIndex],
        (bytes_hashed, hash_time): (u64, Duration),
        errors: Vec<(usize, io::Error)>,
    ) {
        if have.is_empty() && bytes_hashed == 0 && errors.is_empty() {
            return;
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for &piece in have {
            found.have.set(piece);
        }
        found.bytes_hashed += bytes_hashed;
        found.hash_time += hash_time;
        for (file, error) in errors {
            found.note(Some(file), error);
        }
    }

    /// What was found, once no thread works on it any more.
    pub(super) fn finish(self) -> Checked {
        let mut found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.cancelled = self.progress.is_cancelled();
        found
    }
}

/// Looks at every file of `content`: its place in the torrent, and what is on disk of it.
fn survey(
    content: &dyn Content,
    root: Option<&OwnedFd>,
    progress: &Progress,
    found: &mut Checked,
) -> Vec<Span> {
    let mut spans = Vec::with_capacity(content.file_count());
    let mut start = 0u64;
    for (index, wanted) in
        (0..content.file_count()).map_while(|index| Some((index, content.file(index)?)))
    {
        if progress.is_cancelled() {
            found.files.clear();
            return spans;
        }
        let is_virtual = !wanted.is_on_disk;
        let report = match root {
            _ if is_virtual => FileReport { state: FileState::Virtual, identity: None },
            Some(root) => look_at(root, index, &wanted, found),
            None => FileReport { state: FileState::Missing, identity: None },
        };
        progress.saw_file();
        let size = report.identity.map_or(0, |identity| identity.size);
        let present_len = if is_virtual { wanted.len } else { size };
        let end = start.saturating_add(wanted.len);
        spans.push(Span { start, end, present_len, is_virtual });
        found.files.push(report);
        start = end;
    }
    spans
}

fn look_at(root: &OwnedFd, index: usize, wanted: &ContentFile, found: &mut Checked) -> FileReport {
    use std::cmp::Ordering::{Equal, Greater, Less};
    match file::identity_at(root.as_fd(), &wanted.path) {
        Ok(identity) => {
            let state = match identity.size.cmp(&wanted.len) {
                Less => FileState::Short,
                Equal => FileState::Whole,
                Greater => FileState::Long,
            };
            FileReport { state, identity: Some(identity) }
        }
        Err(error) if is_absence(&error) => {
            FileReport { state: FileState::Missing, identity: None }
        }
        Err(error) => {
            found.note(Some(index), error);
            FileReport { state: FileState::Unusable, identity: None }
        }
    }
}

impl Checked {
    fn note(&mut self, file: Option<usize>, error: io::Error) {
        self.error_count += 1;
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(ReadError { file, error });
        }
    }
}

/// Whole groups of pieces, about [`BATCH_LEN`] bytes, but something for each thread.
fn batch_count(geometry: Geometry, engine: Engine, thread_count: usize) -> u32 {
    let width = u32::try_from(engine.width()).unwrap_or(1).max(1);
    let threads = u32::try_from(thread_count).unwrap_or(u32::MAX).max(1);
    let groups = BATCH_LEN / geometry.piece_len_nominal() / width;
    (groups.max(1) * width).min(geometry.piece_count().div_ceil(threads)).max(1)
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
