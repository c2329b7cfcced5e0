//! Finding the files that a torrent is to hold. An edge: it reads directories.
//!
//! A path enters, its regular files leave, sorted by the bytes of their paths. Invariant: symbolic
//! links below the path are never followed, and a file is opened only if it is still the one found.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::{PATH_DEPTH_MAX, WARNINGS_MAX};
use super::CreateError;
use crate::bencode::{Limits, excerpt};

/// What must stay the same while a file is hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) len: u64,
    modified: (i64, i64),
    identity: (u64, u64),
}

impl From<&Metadata> for Stat {
    fn from(of: &Metadata) -> Self {
        Self {
            len: of.len(),
            modified: (of.mtime(), of.mtime_nsec()),
            identity: (of.dev(), of.ino()),
        }
    }
}

/// A file to be hashed.
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// The path below the torrent's name; empty if the torrent is this one file.
    pub(super) below: Vec<u8>,
    pub(super) stat: Stat,
}

impl Source {
    pub(super) fn changed(&self) -> CreateError {
        CreateError::Changed { path: self.path.clone() }
    }

    pub(super) fn io(&self, source: io::Error) -> CreateError {
        CreateError::Io { path: self.path.clone(), source }
    }

    /// Opens the file, if it is still the one that was found.
    pub(super) fn open(&self) -> Result<File, CreateError> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let file = file.map_err(|error| self.io(error))?;
        let stat = file.metadata().map_err(|error| self.io(error))?;
        if Stat::from(&stat) == self.stat { Ok(file) } else { Err(self.changed()) }
    }
}

/// The files of a torrent to be, in its order.
pub(super) struct Content {
    pub(super) name: Vec<u8>,
    pub(super) is_directory: bool,
    pub(super) files: Vec<Source>,
    pub(super) warnings: Vec<String>,
}

impl Content {
    pub(super) fn find(path: &Path) -> Result<Self, CreateError> {
        let io = |source| CreateError::Io { path: path.to_owned(), source };
        let root = fs::canonicalize(path).map_err(io)?;
        let stat = fs::metadata(&root).map_err(io)?;
        // A link that the caller named lends its name; `.` has the name of what it stands for.
        let name = path.file_name().or(root.file_name()).map(|name| name.as_bytes().to_vec());
        let name = name.ok_or_else(|| CreateError::NoName { path: path.to_owned() })?;
        let is_directory = stat.is_dir();
        let mut content = Self { name, is_directory, files: Vec::new(), warnings: Vec::new() };
        if stat.is_file() {
            let stat = Stat::from(&stat);
            content.files.push(Source { path: root, below: Vec::new(), stat });
        } else if is_directory {
            content.walk(&root)?;
            content.files.sort_by(|one, two| one.below.cmp(&two.below));
        } else {
            return Err(CreateError::NotAFile { path: path.to_owned() });
        }
        if content.files.is_empty() {
            return Err(CreateError::NoFiles { path: path.to_owned() });
        }
        Ok(content)
    }

    /// Finds the files below `root`, in no order.
    fn walk(&mut self, root: &Path) -> Result<(), CreateError> {
        let mut directories = vec![(root.to_owned(), Vec::new(), 2)];
        // Every file costs more than its path in the torrent.
        let mut paths_len = 0u64;
        while let Some((directory, below, depth)) = directories.pop() {
            let io = |source| CreateError::Io { path: directory.clone(), source };
            let mut is_empty = true;
            for entry in fs::read_dir(&directory).map_err(io)? {
                let entry = entry.map_err(io)?;
                is_empty = false;
                let path = entry.path();
                let stat = entry.metadata();
                let stat = stat.map_err(|source| CreateError::Io { path: path.clone(), source })?;
                let below = join(&below, &entry.file_name());
                if stat.is_dir() && depth < PATH_DEPTH_MAX {
                    directories.push((path, below, depth + 1));
                } else if stat.is_file() {
                    paths_len += entry.file_name().len() as u64;
                    self.files.push(Source { path, below, stat: Stat::from(&stat) });
                } else {
                    let what = match stat.file_type() {
                        kind if kind.is_symlink() => "a symbolic link",
                        kind if kind.is_dir() => "a directory too deep for a torrent",
                        _ => "not a regular file",
                    };
                    self.skip(&below, what);
                }
                let max = Limits::TORRENT.bytes;
                if paths_len > max as u64 {
                    return Err(CreateError::TooLong { len: paths_len, max });
                }
            }
            if is_empty && !below.is_empty() {
                self.skip(&below, "an empty directory, which no torrent can hold");
            }
        }
        Ok(())
    }

    /// Notes what is left out.
    fn skip(&mut self, below: &[u8], what: &str) {
        match self.warnings.len() + 1 {
            ..WARNINGS_MAX => {
                self.warnings.push(format!("{} left out: it is {what}", excerpt(below)));
            }
            WARNINGS_MAX => self.warnings.push("more was left out than is told here".to_owned()),
            _ => {}
        }
    }
}

fn join(below: &[u8], name: &OsStr) -> Vec<u8> {
    match below {
        b"" => name.as_bytes().to_vec(),
        _ => [below, b"/", name.as_bytes()].concat(),
    }
}
