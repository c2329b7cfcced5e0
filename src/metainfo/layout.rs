//! Where the bytes of a torrent lie in its files.
//!
//! A range of the torrent enters, extents of files leave. Invariant: a look-up allocates nothing,
//! and costs the logarithm of the file count, however many empty files there are; every path is
//! relative and made of safe names (see `names.rs`).
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::units::{Geometry, PieceIndex};

/// What a file of a torrent is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FileKind {
    /// An ordinary file.
    #[default]
    Data,
    /// Zeros between files (BEP 47, or BitComet's `_____padding_file_`): counted and hashed, sent
    /// and received as zeros, but never on disk.
    Padding,
    /// A symbolic link (BEP 47): it has no bytes, and is never made on disk.
    Symlink,
}

/// One file of a torrent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'l> {
    /// Its number in the torrent, from 0.
    pub index: usize,
    /// The torrent's name, safe: the first name of the path, or all of it.
    pub top: &'l str,
    /// The names behind [`File::top`], safe, with `/` between them; empty if the torrent is one
    /// file without a directory of its own.
    pub below: &'l str,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the torrent of its first byte.
    pub start: u64,
    /// What it is.
    pub kind: FileKind,
    /// Whether the torrent marks it as executable (BEP 47).
    pub executable: bool,
}

impl File<'_> {
    /// Its path, relative to the save path. Only among [`FileKind::Data`] is it sure that no other
    /// file has the same.
    pub fn path(&self) -> PathBuf {
        let mut path = PathBuf::from(self.top);
        if !self.below.is_empty() {
            path.push(self.below);
        }
        path
    }

    /// Whether the file exists on disk.
    pub fn is_on_disk(&self) -> bool {
        self.kind == FileKind::Data
    }

    /// The pieces that it has a part in; none if it is empty.
    pub fn pieces(&self, geometry: Geometry) -> impl Iterator<Item = PieceIndex> + use<> {
        let nominal = u64::from(geometry.piece_len_nominal()).max(1);
        let index = |offset: u64| u32::try_from(offset / nominal).unwrap_or(u32::MAX);
        let range = if self.len == 0 {
            0..0
        } else {
            index(self.start)..index(self.start + self.len - 1).saturating_add(1)
        };
        range.map(PieceIndex)
    }
}

/// A run of bytes in one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The file's number in the torrent.
    pub file: usize,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// The bytes are zeros that lie in no file on disk.
    pub padding: bool,
}

/// The files of a torrent, in its order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Layout {
    files: Vec<Entry>,
    /// The files that are not empty.
    spans: Vec<Span>,
    name: String,
    /// What follows the name in each path, one behind the other.
    paths: String,
    total_len: u64,
    single_file: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    start: u64,
    path_end: usize,
    kind: FileKind,
    executable: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Span {
    start: u64,
    end: u64,
    file: usize,
    padding: bool,
}

impl Layout {
    /// A layout without files yet; `name` is the name of the torrent, and `single_file` says that
    /// it is the name of its only file, too.
    pub(super) fn new(name: &str, single_file: bool) -> Self {
        Self { name: name.to_owned(), single_file, ..Self::default() }
    }

    /// Adds a file with its path below the torrent's name; false if the lengths no longer add up in
    /// 64 bits.
    #[must_use]
    pub(super) fn push(&mut self, below: &str, len: u64, kind: FileKind, executable: bool) -> bool {
        let start = self.total_len;
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        if len > 0 {
            let padding = kind == FileKind::Padding;
            self.spans.push(Span { start, end, file: self.files.len(), padding });
        }
        self.paths.push_str(below);
        self.files.push(Entry { start, path_end: self.paths.len(), kind, executable });
        self.total_len = end;
        true
    }

    /// Gives back the memory that growing left over.
    pub(super) fn shrink(&mut self) {
        self.files.shrink_to_fit();
        self.spans.shrink_to_fit();
        self.paths.shrink_to_fit();
    }

    /// Number of files, with empty ones and padding.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Bytes of all files, padding included.
    pub fn total_len(&self) -> u64 {
        self.total_len
    }

    /// The torrent's name, safe: the first name of every path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the torrent is one file that lies in the save path itself.
    pub fn is_single_file(&self) -> bool {
        self.single_file
    }

    /// File number `index`; `None` past the last.
    pub fn file(&self, index: usize) -> Option<File<'_>> {
        let entry = self.files.get(index)?;
        let before = index.checked_sub(1).and_then(|before| self.files.get(before));
        let path_start = before.map_or(0, |before| before.path_end);
        let end = self.files.get(index + 1).map_or(self.total_len, |next| next.start);
        Some(File {
            index,
            top: &self.name,
            below: self.paths.get(path_start..entry.path_end)?,
            len: end - entry.start,
            start: entry.start,
            kind: entry.kind,
            executable: entry.executable,
        })
    }

    /// All files, in the order of the torrent.
    pub fn files(&self) -> impl ExactSizeIterator<Item = File<'_>> + '_ {
        let file = |index| self.file(index).expect("the index is below the file count");
        (0..self.files.len()).map(file)
    }

    /// The extents of the `len` bytes from `start` on, in order, as far as the torrent reaches.
    ///
    /// On the path of every send: no allocation, no step for empty files, and no search at all
    /// when there is one file.
    pub fn extents(&self, start: u64, len: u64) -> Extents<'_> {
        let first = match self.spans.len() {
            0 | 1 => 0,
            _ => self.spans.partition_point(|span| span.end <= start),
        };
        let spans = self.spans.get(first..).unwrap_or_default();
        Extents { spans, start, end: start.saturating_add(len).min(self.total_len) }
    }
}

/// The iterator of [`Layout::extents`].
#[derive(Clone, Debug)]
pub struct Extents<'l> {
    spans: &'l [Span],
    start: u64,
    end: u64,
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.start >= self.end {
            return None;
        }
        let (span, rest) = self.spans.split_first()?;
        let end = self.end.min(span.end);
        let extent = Extent {
            file: span.file,
            offset: self.start - span.start,
            len: end - self.start,
            padding: span.padding,
        };
        self.start = end;
        self.spans = rest;
        Some(extent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(lens: &[u64]) -> Layout {
        let mut layout = Layout::new("t", false);
        for (index, &len) in lens.iter().enumerate() {
            let kind = if index % 5 == 3 { FileKind::Padding } else { FileKind::Data };
            assert!(layout.push(&index.to_string(), len, kind, false));
        }
        layout
    }

    #[test]
    fn extents_skip_empty_files_and_stop_at_the_end() {
        let layout = layout(&[0, 5, 0, 3, 0, 2, 0]);
        let extents: Vec<Extent> = layout.extents(4, 100).collect();
        let extent = |file, offset, len, padding| Extent { file, offset, len, padding };
        assert_eq!(
            extents,
            [extent(1, 4, 1, false), extent(3, 0, 3, true), extent(5, 0, 2, false)]
        );
        assert_eq!(layout.extents(10, 1).next(), None);
        assert_eq!(layout.extents(u64::MAX, u64::MAX).next(), None);
        assert_eq!(layout.extents(5, 0).next(), None);
        assert_eq!(Layout::default().extents(0, 1).next(), None);
    }

    #[test]
    fn files_know_their_paths_and_places() {
        let layout = layout(&[4, 0, 6]);
        let files = layout.files().map(|file| (file.path(), file.start, file.len));
        let files: Vec<(PathBuf, u64, u64)> = files.collect();
        let path = PathBuf::from;
        assert_eq!(files, [(path("t/0"), 0, 4), (path("t/1"), 4, 0), (path("t/2"), 4, 6)]);
        assert_eq!(layout.file(3), None);
    }

    #[test]
    fn a_total_beyond_64_bits_is_refused() {
        let mut layout = layout(&[u64::MAX]);
        assert!(!layout.push("x", 1, FileKind::Data, false));
    }

    proptest! {
        #[test]
        fn extents_are_what_counting_bytes_says(
            lens in proptest::collection::vec(prop_oneof![Just(0), 1u64..20], 1..12),
            start in 0u64..150,
            len in 0u64..150,
        ) {
            let layout = layout(&lens);
            let places = lens.iter().zip(0usize..);
            let bytes: Vec<(usize, u64)> =
                places.flat_map(|(&len, file)| (0..len).map(move |at| (file, at))).collect();
            let from = usize::try_from(start).unwrap().min(bytes.len());
            let to = usize::try_from(start + len).unwrap().min(bytes.len());
            let found: Vec<(usize, u64)> = layout
                .extents(start, len)
                .flat_map(|extent| (0..extent.len).map(move |at| (extent.file, extent.offset + at)))
                .collect();
            prop_assert_eq!(&found[..], &bytes[from..to]);
            prop_assert!(layout.extents(start, len).all(|extent| extent.len > 0));
        }
    }
}
