//! Torrents that come back, and those that must not.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::verify::{self, Progress};
use super::*;
use crate::metainfo::{CreateOptions, Metainfo, create};

struct Case {
    dir: tempfile::TempDir,
    content: Arc<Content>,
}

/// Two files of four pieces each, and what was known of them when all was well.
fn case() -> (Case, Had) {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir(&top).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    for name in ["a", "b"] {
        let mut bytes = vec![0; 64 << 10];
        rng.fill(&mut bytes);
        fs::write(top.join(name), bytes).unwrap();
    }
    let options = CreateOptions { piece_length: Some(16 << 10), ..CreateOptions::default() };
    let metainfo = Metainfo::parse(&create(&top, &options, &|_, _| {}).unwrap().bytes).unwrap();
    let content = Arc::new(Content::new(metainfo, dir.path().to_owned()));
    let case = Case { dir, content };
    let checked = case.check();
    assert!(checked.is_complete());
    let known = checked.files.iter().map(|file| file.identity).collect();
    (case, Had { have: checked.have, known, is_settled: true })
}

impl Case {
    fn check(&self) -> Checked {
        let content = Arc::clone(&self.content) as Arc<dyn verify::Content>;
        let options = verify::Options { threads: 1, low_priority: false };
        verify::check(content, self.dir.path(), options, Arc::<Progress>::default())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("top").join(name)
    }

    fn probe(&self, had: &Had) -> Result<(), Error> {
        probe(&self.content, had, true)
    }

    fn judge(&self, had: &Had) -> Option<Error> {
        judge(&self.content, Some(had), &self.check())
    }
}

#[test]
fn what_is_as_it_was_goes_on() {
    let (case, had) = case();
    assert_eq!(case.probe(&had), Ok(()));
    assert_eq!(case.judge(&had), None);
}

#[test]
fn a_complete_file_that_is_missing_is_waited_for_and_not_made_anew() {
    let (case, mut had) = case();
    // Of the other file; so it is to be written to.
    had.have.clear(PieceIndex(6));
    let aside = case.dir.path().join("aside");
    fs::rename(case.path("a"), &aside).unwrap();
    assert!(matches!(case.probe(&had), Err(Error::Missing { .. })));
    assert!(!case.path("a").exists());
    fs::rename(&aside, case.path("a")).unwrap();
    assert_eq!(case.probe(&had), Ok(()));
    // Nor is a folder that has gone as a whole, as when a disk is not mounted.
    fs::rename(case.dir.path().join("top"), &aside).unwrap();
    assert!(matches!(case.probe(&had), Err(Error::Missing { .. })));
    assert!(!case.dir.path().join("top").exists());
}

#[test]
fn a_file_that_was_not_complete_is_begun_anew_unless_its_disk_has_gone() {
    let (case, mut had) = case();
    had.have.clear(PieceIndex(1));
    fs::remove_file(case.path("a")).unwrap();
    let mut moved = had.clone();
    moved.known[0].as_mut().unwrap().dev ^= 1;
    assert!(matches!(case.probe(&moved), Err(Error::Missing { .. })));
    assert_eq!(case.probe(&had), Ok(()));
}

#[test]
fn somebody_elses_data_is_left_alone() {
    let (case, mut had) = case();
    // Of the other file; so it is to be written to.
    had.have.clear(PieceIndex(6));
    fs::write(case.path("a"), vec![1; 64 << 10]).unwrap();
    assert_eq!(case.probe(&had), Ok(()));
    assert!(matches!(case.judge(&had), Some(Error::Replaced { .. })));
    fs::write(case.path("a"), b"short").unwrap();
    assert!(matches!(case.probe(&had), Err(Error::Truncated { .. })));
    assert_eq!(fs::read(case.path("a")).unwrap(), b"short");
}

#[test]
fn a_copy_in_another_file_is_as_good() {
    let (case, had) = case();
    fs::copy(case.path("a"), case.dir.path().join("copy")).unwrap();
    fs::rename(case.dir.path().join("copy"), case.path("a")).unwrap();
    assert_eq!(case.judge(&had), None);
}

#[test]
fn a_longer_file_is_written_to_only_if_it_begins_with_the_torrents_data() {
    let (case, _) = case();
    let judge = || judge(&case.content, None, &case.check());
    let mut bytes = fs::read(case.path("a")).unwrap();
    bytes.extend([7; 100]);
    fs::write(case.path("a"), &bytes).unwrap();
    fs::write(case.path("b"), b"").unwrap();
    assert_eq!(judge(), None);
    bytes[20 << 10] ^= 1;
    fs::write(case.path("a"), &bytes).unwrap();
    assert!(matches!(judge(), Some(Error::Refused { .. })));
    assert_eq!(fs::read(case.path("a")).unwrap(), bytes);
}

#[test]
fn files_are_gone_only_if_none_with_bytes_is_left() {
    let (case, _) = case();
    let judge = || judge_absence(&case.content, &case.check());
    assert_eq!((find_any(&case.content), judge()), (Ok(()), None));
    fs::remove_file(case.path("a")).unwrap();
    assert_eq!((find_any(&case.content), judge()), (Ok(()), None));
    // The folders of a bare mount point are no files.
    fs::remove_file(case.path("b")).unwrap();
    let gone = Error::Gone { path: case.dir.path().display().to_string() };
    assert_eq!((find_any(&case.content), judge()), (Err(gone.clone()), Some(gone.clone())));
    fs::remove_dir(case.dir.path().join("top")).unwrap();
    assert_eq!((find_any(&case.content), judge()), (Err(gone.clone()), Some(gone)));
    // A file in the place of the folder is something else.
    fs::write(case.dir.path().join("top"), b"in the way").unwrap();
    assert!(matches!(find_any(&case.content), Err(Error::Refused { .. })));
    fs::remove_file(case.dir.path().join("top")).unwrap();
    // An empty one is how an operator says that it is to be fetched anew.
    fs::create_dir(case.dir.path().join("top")).unwrap();
    fs::write(case.path("b"), b"").unwrap();
    assert_eq!((find_any(&case.content), judge()), (Ok(()), None));
}

#[test]
fn a_disk_that_reads_badly_is_not_written_to() {
    let (case, _) = case();
    let mut checked = case.check();
    let bad =
        || verify::ReadError { file: Some(1), error: std::io::Error::from_raw_os_error(libc::EIO) };
    checked.errors.extend((1..READ_ERRORS_MAX).map(|_| bad()));
    assert_eq!(judge(&case.content, None, &checked), None);
    checked.errors.push(bad());
    assert!(matches!(judge(&case.content, None, &checked), Some(Error::Io { .. })));
}
