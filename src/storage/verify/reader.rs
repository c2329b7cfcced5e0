//! One hash thread's hands: its buffers, its open files, its reads.
//!
//! Pieces to read enter; digests that fit are told to the [`Task`]. Several pieces advance in step,
//! one chunk of each at a time, so that the bytes are hashed while they are in the cache.
//! Invariant: memory and descriptors are bounded by [`CHUNK_LEN_MAX`] and [`FILES_OPEN_MAX`].

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::{CHUNK_LEN_MAX, FILES_OPEN_MAX, Task};
use crate::sys::clock;
use crate::sys::file;
use crate::sys::sha1::{Digest, Engine, Lanes, STREAMS_MAX};
use crate::units::PieceIndex;

/// Below this length a file is neither searched for holes nor read ahead: reading is as cheap.
const LARGE_FILE_LEN: u64 = 64 * 1024;

/// Bytes asked for in one read-ahead; the kernel would cut a longer one silently.
const READ_AHEAD_LEN: u64 = 512 * 1024;

/// A file that is kept open, with the last hole and the last data that were seen around a place.
struct Open {
    file: usize,
    fd: OwnedFd,
    sees_holes: bool,
    hole: Range<u64>,
    data: Range<u64>,
}

impl Open {
    /// Whether the bytes `range` were never written. Where that cannot be told, they were.
    fn is_hole(&mut self, range: &Range<u64>) -> bool {
        if !self.sees_holes || self.data.contains(&range.start) {
            return false;
        }
        if self.hole.contains(&range.start) && range.end <= self.hole.end {
            return true;
        }
        match file::next_data(self.fd.as_fd(), range.start) {
            Ok(None) => self.hole = range.start..u64::MAX,
            Ok(Some(data)) if data > range.start => self.hole = range.start..data,
            Ok(Some(data)) => {
                let end = file::next_hole(self.fd.as_fd(), data);
                self.data = data..end.ok().flatten().unwrap_or(u64::MAX);
                return false;
            }
            Err(_) => {
                self.sees_holes = false;
                return false;
            }
        }
        range.end <= self.hole.end
    }
}

/// One piece's buffer. The kernel copies faster to the start of a page.
#[derive(Clone)]
#[repr(align(4096))]
struct Chunk([u8; CHUNK_LEN_MAX]);

/// A file number, and why it could not be read.
type Failure = (usize, io::Error);

/// What a hash thread brings along; it serves one task after another.
pub(super) struct Reader {
    buffers: Vec<Chunk>,
    /// The last used first.
    open: Vec<Open>,
}

impl Reader {
    pub(super) fn new() -> Self {
        let count = Engine::best().width().min(STREAMS_MAX);
        Self { buffers: vec![Chunk([0; CHUNK_LEN_MAX]); count], open: Vec::new() }
    }

    /// Closes the files of a task that is over.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }

    /// Whether `piece` lies wholly in holes and padding.
    pub(super) fn is_hole(&mut self, task: &Task, piece: PieceIndex) -> bool {
        // A short last piece has a zero hash of its own, not worth knowing.
        if task.geometry.piece_len(piece) != task.geometry.piece_len_nominal() {
            return false;
        }
        task.extents(task.piece_range(piece)).all(|extent| {
            extent.is_virtual
                || task.present_len(extent.file) >= LARGE_FILE_LEN
                    && self.open(task, extent.file).is_ok_and(|open| open.is_hole(&extent.range))
        })
    }

    /// Asks the disk for `pieces`, in their order, without waiting.
    pub(super) fn read_ahead(&mut self, task: &Task, pieces: &[PieceIndex]) {
        for run in pieces.chunk_by(|one, next| one.0 + 1 == next.0) {
            let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
            let range = task.piece_range(first).start..task.piece_range(last).end;
            for extent in task.extents(range) {
                if extent.is_virtual || task.present_len(extent.file) < LARGE_FILE_LEN {
                    continue;
                }
                let Ok(open) = self.open(task, extent.file) else { continue };
                let mut start = extent.range.start;
                while start < extent.range.end {
                    let end = extent.range.end.min(start + READ_AHEAD_LEN);
                    // Advice: where it is refused, reading is only slower.
                    let _ = file::advise_needed(open.fd.as_fd(), start..end);
                    start = end;
                }
            }
        }
    }

    /// Reads and hashes `pieces`, and tells the task which are right.
    pub(super) fn hash(&mut self, task: &Task, pieces: &[PieceIndex]) {
        let len = |piece: &PieceIndex| task.geometry.piece_len(*piece);
        let (mut have, mut errors, mut hashed) = (Vec::new(), Vec::new(), (0, Duration::ZERO));
        for equal in pieces.chunk_by(|one, next| len(one) == len(next)) {
            for group in equal.chunks(self.buffers.len()) {
                let digests = self.hash_group(task, group, &mut errors, &mut hashed);
                let found = group.iter().zip(digests).filter(|(piece, digest)| {
                    digest.is_some() && task.content.piece_hash(**piece) == *digest
                });
                have.extend(found.map(|(piece, _)| *piece));
            }
        }
        task.merge(&have, hashed, errors);
    }

    /// The digests of pieces of one length; `None` for those that could not be read.
    fn hash_group(
        &mut self,
        task: &Task,
        pieces: &[PieceIndex],
        errors: &mut Vec<Failure>,
        (bytes_hashed, hash_time): &mut (u64, Duration),
    ) -> Vec<Option<Digest>> {
        let count = pieces.len();
        let mut lanes = Lanes::new(task.engine, count);
        let mut alive = [true; STREAMS_MAX];
        let piece_len = pieces.first().map_or(0, |piece| task.geometry.piece_len(*piece)) as usize;
        let mut buffers = std::mem::take(&mut self.buffers);
        for from in (0..piece_len).step_by(CHUNK_LEN_MAX) {
            let len = CHUNK_LEN_MAX.min(piece_len - from);
            for ((&piece, buffer), alive) in pieces.iter().zip(&mut buffers).zip(&mut alive) {
                let start = task.geometry.piece_start(piece) + from as u64;
                if *alive && let Err(error) = self.fill(task, &mut buffer.0[..len], start) {
                    // The lane goes on with what is in its buffer; its digest is not looked at.
                    *alive = false;
                    errors.push(error);
                }
            }
            let alive_count = alive[..count].iter().filter(|alive| **alive).count();
            task.progress.advance((len * count) as u64);
            if alive_count == 0 || task.progress.is_cancelled() {
                alive = [false; STREAMS_MAX];
                task.progress.advance(((piece_len - from - len) * count) as u64);
                break;
            }
            *bytes_hashed += (len * alive_count) as u64;
            let mut chunks: [&[u8]; STREAMS_MAX] = [&[]; STREAMS_MAX];
            for (chunk, buffer) in chunks.iter_mut().zip(&buffers) {
                *chunk = &buffer.0[..len];
            }
            let begun = clock::now();
            lanes.update(&chunks[..count]);
            *hash_time += clock::now() - begun;
        }
        self.buffers = buffers;
        let digests = lanes.finish().into_iter().zip(alive);
        digests.map(|(digest, alive)| alive.then_some(digest)).collect()
    }

    /// Reads the bytes of the torrent from `start` on into `buf`.
    fn fill(&mut self, task: &Task, buf: &mut [u8], start: u64) -> Result<(), Failure> {
        let mut rest = buf;
        for extent in task.extents(start..start + rest.len() as u64) {
            let len = extent.range.end - extent.range.start;
            let len = usize::try_from(len).expect("an extent is not longer than the buffer");
            let (part, behind) = rest.split_at_mut(len);
            rest = behind;
            if extent.is_virtual {
                part.fill(0);
                continue;
            }
            let failed = |error| (extent.file, error);
            let open = self.open(task, extent.file).map_err(failed)?;
            file::read_exact_at(open.fd.as_fd(), part, extent.range.start).map_err(failed)?;
        }
        debug_assert!(rest.is_empty(), "pieces that the files do not cover are not read");
        Ok(())
    }

    /// The open file number `index`, which becomes the last used.
    fn open(&mut self, task: &Task, index: usize) -> io::Result<&mut Open> {
        match self.open.iter().position(|open| open.file == index) {
            Some(0) => {}
            Some(place) => self.open[..=place].rotate_right(1),
            None => {
                let fd = task.open(index)?;
                let is_large = task.present_len(index) >= LARGE_FILE_LEN;
                // Some file systems do not see what was written a moment ago as data.
                let kind = is_large.then(|| file::filesystem_kind(fd.as_fd()));
                let sees_holes = kind.is_some_and(|kind| kind.is_ok_and(file::maps_well));
                self.open.truncate(FILES_OPEN_MAX - 1);
                let (hole, data) = (0..0, 0..0);
                self.open.insert(0, Open { file: index, fd, sees_holes, hole, data });
            }
        }
        Ok(&mut self.open[0])
    }
}
