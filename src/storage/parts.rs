//! The part file: what wanted pieces have of files that are not wanted.
//!
//! A piece at the border of a wanted file can be verified, and served, with all of its bytes only.
//! Those of the neighbour go to `.<info-hash>.seedring-parts` in the save path, a sparse file in
//! which each byte lies at its offset in the torrent. Pieces that a check found whole in the files
//! themselves are read from there, wanted or not. A range of the torrent enters, places on disk
//! leave. Invariant: where a byte lies follows from the selection and from the pieces that were
//! found in the files, and from nothing else; a file that is not wanted is never made, written to
//! or cut.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::Content;
use super::verify::Progress;
use crate::metainfo::Extent;
use crate::sys::file::{self, Access, Identity};
use crate::sys::sha1::Sha1;
use crate::units::{Bitfield, PieceIndex, to_usize};

/// Bytes that are read and hashed at once.
const READ_LEN: usize = 256 * 1024;

impl Content {
    /// Path of the part file beneath the save path.
    pub fn part_file(&self) -> PathBuf {
        PathBuf::from(format!(".{}.seedring-parts", self.metainfo.info_hash))
    }

    /// Path beneath the save path of the file that an [`Extent`] of [`Content::places`] names.
    pub fn path_of(&self, file: usize) -> PathBuf {
        let entry = self.metainfo.layout.file(file);
        entry.map_or_else(|| self.part_file(), |entry| entry.path())
    }

    /// Where the `len` bytes from `start` on lie, which are of one piece: like
    /// [`Layout::extents`](crate::metainfo::Layout::extents), but the file behind the last one of
    /// the layout is the part file. `in_files` are the pieces that are read from the files
    /// themselves.
    pub fn places(
        &self,
        in_files: &Bitfield,
        start: u64,
        len: u64,
    ) -> impl Iterator<Item = Extent> + '_ {
        let has_parts = !self.wanted.is_all() && !in_files.has(self.piece_at(start));
        let mut at = start;
        self.metainfo.layout.extents(start, len).map(move |mut extent| {
            if has_parts && !extent.padding && !self.wanted.has(extent.file) {
                (extent.file, extent.offset) = (self.metainfo.layout.file_count(), at);
            }
            at += extent.len;
            extent
        })
    }

    fn piece_at(&self, offset: u64) -> PieceIndex {
        let nominal = u64::from(self.metainfo.geometry.piece_len_nominal()).max(1);
        PieceIndex(u32::try_from(offset / nominal).unwrap_or(u32::MAX))
    }

    /// The wanted pieces that have bytes of files that are not wanted, in order; a piece that has
    /// some of several comes once for each.
    pub(super) fn pieces_with_parts(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let (layout, geometry) = (&self.metainfo.layout, self.metainfo.geometry);
        let wanted = self.wanted_pieces();
        let files = layout.files().filter(|it| it.is_on_disk() && !self.wanted.has(it.index));
        let pieces = files.flat_map(move |entry| {
            // Only the first and the last one can have a part in another file.
            let mut pieces = entry.pieces(geometry);
            let first = pieces.next();
            [first, pieces.last()]
        });
        pieces.flatten().filter(move |&piece| wanted.as_ref().is_some_and(|it| it.has(piece)))
    }

    /// Adds to `have`, which a check found in the files, the wanted pieces that are whole with what
    /// the part file has. Gives who the part file is, if there is one. Blocks on the disk.
    pub fn check_parts(&self, have: &mut Bitfield, progress: &Progress) -> Option<Identity> {
        if self.wanted.is_all() {
            return None;
        }
        let root = file::open_root(&self.save_path).ok()?;
        let part_file = file::open_beneath(root.as_fd(), &self.part_file(), Access::Read).ok()?;
        let identity = file::identity(part_file.as_fd()).ok()?;
        let mut reader = Reader { content: self, root, open: None, buffer: vec![0; READ_LEN] };
        let in_files = Bitfield::none(have.len());
        for piece in self.pieces_with_parts() {
            if progress.is_cancelled() {
                break;
            }
            if !have.has(piece) && reader.is_right(piece, &in_files) {
                have.set(piece);
            }
        }
        Some(identity)
    }
}

/// Reads pieces from wherever they lie.
struct Reader<'c> {
    content: &'c Content,
    root: OwnedFd,
    /// The file that was read last.
    open: Option<(usize, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Whether a piece has its hash. What cannot be read is not there.
    fn is_right(&mut self, piece: PieceIndex, in_files: &Bitfield) -> bool {
        let content = self.content;
        let geometry = content.metainfo.geometry;
        let (start, len) = (geometry.piece_start(piece), geometry.piece_len(piece));
        let mut sha1 = Sha1::new();
        for extent in content.places(in_files, start, u64::from(len)) {
            if self.hash(&extent, &mut sha1).is_err() {
                return false;
            }
        }
        content.metainfo.piece_hash(piece) == Some(&sha1.finish())
    }

    fn hash(&mut self, extent: &Extent, sha1: &mut Sha1) -> io::Result<()> {
        if !extent.padding && self.open.as_ref().is_none_or(|(file, _)| *file != extent.file) {
            let path = self.content.path_of(extent.file);
            let fd = file::open_beneath(self.root.as_fd(), &path, Access::Read)?;
            self.open = Some((extent.file, fd));
        }
        let (mut offset, end) = (extent.offset, extent.offset + extent.len);
        while offset < end {
            let len = to_usize((end - offset).min(READ_LEN as u64));
            let part = self.buffer.get_mut(..len).unwrap_or_default();
            match &self.open {
                Some((_, fd)) if !extent.padding => file::read_exact_at(fd.as_fd(), part, offset)?,
                _ => part.fill(0),
            }
            sha1.update(part);
            offset += len as u64;
        }
        Ok(())
    }
}
