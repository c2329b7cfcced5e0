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

    /// The wanted pieces that have bytes of files that are not wanted, in order, each once.
    pub(crate) fn pieces_with_parts(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        let (layout, geometry) = (&self.metainfo.layout, self.metainfo.geometry);
        let wanted = self.wanted_pieces();
        let files = layout.files().filter(|it| it.is_on_disk() && !self.wanted.has(it.index));
        let pieces = files.flat_map(move |entry| {
            // Only the first and the last one can have a part in another file.
            let mut pieces = entry.pieces(geometry);
            let first = pieces.next();
            [first, pieces.last()]
        });
        let mut last = None;
        let pieces = pieces.flatten().filter(move |&piece| last.replace(piece) != Some(piece));
        pieces.filter(move |&piece| wanted.as_ref().is_some_and(|it| it.has(piece)))
    }

    /// Adds to `have`, which a check found in the files, the wanted pieces that are whole with what
    /// the part file has. Gives who the part file is, if there is one. Blocks on the disk.
    pub fn check_parts(&self, have: &mut Bitfield, progress: &Progress) -> Option<Identity> {
        if self.wanted.is_all() || progress.is_cancelled() {
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
            progress.saw_file();
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::files::{self, Opened};
    use super::super::recovery::{self, Had};
    use super::super::verify::{self, Checked, FileState};
    use super::super::{Error, Mode};
    use super::*;
    use crate::metainfo::selection::Wanted;
    use crate::metainfo::{CreateOptions, Metainfo, create};

    const PIECE_LEN: u32 = 16 << 10;

    /// Pieces of 16 KiB: `a` ends in the third one, where `b` is; `c` begins in the fifth.
    const FILES: [(&str, usize); 4] = [("a", 40_000), ("b", 30_000), ("c", 50_000), ("empty", 0)];

    struct Case {
        /// The data.
        origin: tempfile::TempDir,
        /// Where it goes.
        dir: tempfile::TempDir,
        content: Arc<Content>,
    }

    fn case(wanted: [bool; 4]) -> Case {
        let (origin, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let top = origin.path().join("top");
        fs::create_dir(&top).unwrap();
        let mut rng = fastrand::Rng::with_seed(9);
        for (name, len) in FILES {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes);
            fs::write(top.join(name), bytes).unwrap();
        }
        let options = CreateOptions { piece_length: Some(PIECE_LEN), ..CreateOptions::default() };
        let created = create(&top, &options, &|_, _| {}).unwrap();
        let metainfo = Metainfo::parse(&created.bytes).unwrap();
        let save_path = dir.path().to_owned();
        let wanted = Wanted::from_flags(wanted);
        Case { origin, dir, content: Arc::new(Content { metainfo, save_path, wanted }) }
    }

    impl Case {
        fn none(&self) -> Bitfield {
            Bitfield::none(self.content.metainfo.geometry.piece_count())
        }

        /// What a check finds: in the files, and with the part file.
        fn check(&self) -> (Bitfield, Checked) {
            let content = Arc::clone(&self.content) as Arc<dyn verify::Content>;
            let options = verify::Options { threads: 1, low_priority: false };
            let progress = Arc::<Progress>::default();
            let mut checked =
                verify::check(content, self.dir.path(), options, Arc::clone(&progress));
            let in_files = checked.have.clone();
            self.content.check_parts(&mut checked.have, &progress);
            (in_files, checked)
        }

        fn open(&self, have: &Bitfield, in_files: &Bitfield) -> Result<Opened, Error> {
            let fetch = !self.content.is_finished(have);
            files::open(&self.content, fetch, Mode::Auto, &[], have, in_files)
        }

        /// Writes the pieces that are wanted and missing, as a worker does.
        fn fetch(&self, have: &Bitfield, in_files: &Bitfield) {
            let opened = self.open(have, in_files).unwrap();
            let geometry = self.content.metainfo.geometry;
            let data: Vec<u8> = FILES
                .iter()
                .flat_map(|(name, _)| fs::read(self.origin.path().join("top").join(name)).unwrap())
                .collect();
            for piece in self.content.wanted_pieces().unwrap().iter().filter(|&it| !have.has(it)) {
                let (start, len) = (geometry.piece_start(piece), geometry.piece_len(piece));
                let mut at = to_usize(start);
                for place in self.content.places(in_files, start, u64::from(len)) {
                    let file = opened.files[place.file].as_ref().unwrap();
                    let bytes = &data[at..at + to_usize(place.len)];
                    std::os::unix::fs::FileExt::write_all_at(
                        &fs::File::from(file.fd.try_clone().unwrap()),
                        bytes,
                        place.offset,
                    )
                    .unwrap();
                    at += bytes.len();
                }
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("top").join(name)
        }

        fn is_right(&self, name: &str) -> bool {
            fs::read(self.path(name)).unwrap()
                == fs::read(self.origin.path().join("top").join(name)).unwrap()
        }

        fn part_file(&self) -> PathBuf {
            self.dir.path().join(self.content.part_file())
        }
    }

    fn pieces(set: &Bitfield) -> Vec<u32> {
        set.iter().map(|piece| piece.0).collect()
    }

    #[test]
    fn only_what_is_wanted_is_made_and_borders_are_kept_beside() {
        let case = case([false, true, false, false]);
        case.fetch(&case.none(), &case.none());
        assert!(case.is_right("b"));
        for name in ["a", "c", "empty"] {
            assert!(!case.path(name).exists(), "{name}");
        }
        let (in_files, checked) = case.check();
        assert_eq!((pieces(&in_files), pieces(&checked.have)), (vec![3], vec![2, 3, 4]));
        assert!(recovery::is_whole(&case.content, &checked));
        assert_eq!(case.content.left(&checked.have), (120_000 - 3 * u64::from(PIECE_LEN), 0));
        assert_eq!(case.content.wanted_counts(&checked.have), (3, 3));
        // Sparse: no more than the pieces at both ends, in whole blocks of the file system.
        let part_file = fs::File::open(case.part_file()).unwrap();
        let allocated = file::allocated_bytes(part_file.as_fd()).unwrap();
        assert!(allocated <= 2 * u64::from(PIECE_LEN) + 8 * 4096, "{allocated}");
        assert!(case.open(&checked.have, &in_files).unwrap().gone.is_empty());
    }

    #[test]
    fn empty_files_are_made_where_they_are_wanted() {
        let case = case([false, false, false, true]);
        assert_eq!(pieces(&case.content.wanted_pieces().unwrap()), Vec::<u32>::new());
        let (_, checked) = case.check();
        assert!(!recovery::is_whole(&case.content, &checked));
        files::make_empty(&case.content).unwrap();
        assert!(recovery::is_whole(&case.content, &case.check().1));
        let names: Vec<_> = fs::read_dir(case.dir.path().join("top")).unwrap().collect();
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn somebody_elses_files_are_not_touched() {
        let case = case([false, true, false, false]);
        fs::create_dir(case.dir.path().join("top")).unwrap();
        // Of the right size, and longer than the torrent says.
        let foreign = [("a", vec![1; 40_000]), ("c", vec![2; 60_000])];
        foreign.iter().for_each(|(name, bytes)| fs::write(case.path(name), bytes).unwrap());
        let (in_files, checked) = case.check();
        assert_eq!(recovery::judge(&case.content, None, &checked), None);
        case.fetch(&checked.have, &in_files);
        foreign.iter().for_each(|(name, bytes)| {
            assert!(fs::read(case.path(name)).unwrap() == *bytes, "{name}");
        });
        assert!(case.is_right("b"));
        assert!(recovery::is_whole(&case.content, &case.check().1));
    }

    #[test]
    fn what_is_there_of_other_files_is_used_as_long_as_it_is_there() {
        let case = case([false, true, false, false]);
        fs::create_dir(case.dir.path().join("top")).unwrap();
        for name in ["a", "b"] {
            fs::copy(case.origin.path().join("top").join(name), case.path(name)).unwrap();
        }
        let (in_files, checked) = case.check();
        // The border to `a` is in the files, the one to `c` is missing.
        assert_eq!(pieces(&checked.have), [0, 1, 2, 3]);
        assert_eq!(in_files, checked.have);
        case.fetch(&checked.have, &in_files);
        let (in_files, checked) = case.check();
        assert_eq!(pieces(&checked.have), [0, 1, 2, 3, 4]);
        let known: Vec<_> = checked.files.iter().map(|file| file.identity).collect();
        assert!(files::changed_others(&case.content, &known).is_empty());
        fs::remove_file(case.path("a")).unwrap();
        let (content, have) = (&case.content, &checked.have);
        let opened = files::open(content, false, Mode::Auto, &known, have, &in_files).unwrap();
        assert_eq!(opened.gone, [0], "what was found in it is lost");
        assert_eq!(files::changed_others(content, &known), [0]);
        assert!(files::still_there(content, &known, false).is_ok(), "and nobody else minds");
        let had = Had { have: have.clone(), known, is_settled: true };
        assert_eq!(recovery::probe(content, &had, true), Ok(()));
        let (_, checked) = case.check();
        assert_eq!(recovery::judge(content, Some(&had), &checked), None);
        assert!(recovery::missing(content, &checked).next().is_none());
        // All that is wanted gone is another matter.
        fs::remove_file(case.path("b")).unwrap();
        assert!(matches!(recovery::find_any(content), Err(Error::Gone { .. })));
        assert!(recovery::judge_absence(content, &case.check().1).is_some());
    }

    #[test]
    fn what_is_lost_of_other_files_while_others_are_fetched_has_a_place() {
        let case = case([false, true, false, false]);
        fs::create_dir(case.dir.path().join("top")).unwrap();
        for name in ["a", "b", "c"] {
            fs::copy(case.origin.path().join("top").join(name), case.path(name)).unwrap();
        }
        // All borders are whole in the files; what is missing lies inside the wanted one.
        let b = fs::File::options().write(true).open(case.path("b")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&b, &[1; 100], 3 * 16_384 - 40_000).unwrap();
        let (in_files, checked) = case.check();
        assert_eq!(pieces(&checked.have), [0, 1, 2, 4, 5, 6, 7]);
        let known: Vec<_> = checked.files.iter().map(|file| file.identity).collect();
        fs::remove_file(case.path("a")).unwrap();
        let (content, have) = (&case.content, &checked.have);
        let opened = files::open(content, true, Mode::Auto, &known, have, &in_files).unwrap();
        assert_eq!(opened.gone, [0]);
        assert!(opened.files[FILES.len()].is_some(), "the border to `a` can be written nowhere");
    }

    #[test]
    fn a_piece_with_several_other_files_comes_once() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        for (name, len) in [("a", 20_000), ("b", 100), ("c", 100), ("d", 100), ("e", 40_000)] {
            fs::write(top.join(name), vec![7; len]).unwrap();
        }
        let options = CreateOptions { piece_length: Some(PIECE_LEN), ..CreateOptions::default() };
        let created = create(&top, &options, &|_, _| {}).unwrap();
        let metainfo = Metainfo::parse(&created.bytes).unwrap();
        let wanted = Wanted::from_flags([true, false, false, true, false]);
        let content = Content { metainfo, save_path: dir.path().to_owned(), wanted };
        assert_eq!(content.pieces_with_parts().collect::<Vec<_>>(), [PieceIndex(1)]);
    }

    #[test]
    fn a_part_file_that_held_something_is_not_made_anew() {
        let case = case([false, true, false, false]);
        case.fetch(&case.none(), &case.none());
        let (in_files, mut checked) = case.check();
        let mut known: Vec<_> = checked.files.iter().map(|file| file.identity).collect();
        known
            .push(Some(file::identity(fs::File::open(case.part_file()).unwrap().as_fd()).unwrap()));
        assert!(files::all_there(&case.content, &known[..3]).is_ok());
        fs::remove_file(case.part_file()).unwrap();
        assert!(matches!(
            files::still_there(&case.content, &known, true),
            Err(Error::Missing { .. })
        ));
        // One piece is to be fetched; the part file would be made for it.
        checked.have.clear(PieceIndex(4));
        let refused = case.open(&checked.have, &in_files).unwrap_err();
        assert!(matches!(refused, Error::Missing { .. }), "{refused}");
        assert!(!case.part_file().exists());
        // A check finds out what is left, and then it is begun anew.
        let (in_files, checked) = case.check();
        assert_eq!(pieces(&checked.have), [3]);
        case.fetch(&checked.have, &in_files);
        assert!(recovery::is_whole(&case.content, &case.check().1));
    }

    #[test]
    fn space_is_needed_for_what_is_wanted_only() {
        let case = case([true, false, false, false]);
        let had = Had { have: case.none(), known: Vec::new(), is_settled: true };
        fs::create_dir(case.dir.path().join("top")).unwrap();
        assert_eq!(recovery::probe(&case.content, &had, true), Ok(()));
        assert_eq!(fs::metadata(case.path("a")).unwrap().len(), 40_000);
        assert!(!case.path("b").exists() && !case.path("c").exists());
        let (_, checked) = case.check();
        let states: Vec<_> = checked.files.iter().map(|file| file.state).collect();
        assert_eq!(states[1..3], [FileState::Missing; 2]);
        assert_eq!(case.content.wanted.len(&case.content.metainfo.layout), 40_000);
        assert_eq!(case.content.wanted_len(), 3 * u64::from(PIECE_LEN));
        assert_eq!(case.content.path_of(FILES.len()), case.content.part_file());
    }
}
