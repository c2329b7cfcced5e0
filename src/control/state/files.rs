//! One flat file per torrent: `<info-hash>.torrent`, as it came.
//!
//! Invariant: a name always stands for a whole file (written under another name, flushed, renamed,
//! directory flushed), and other programs may read the directory while we run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::units::InfoHash;

/// A stored torrent may have this many bytes; larger ones were never accepted.
pub(super) const FILE_LEN_MAX: u64 = 64 * 1024 * 1024;

/// Why the metainfo of a torrent could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is larger than any torrent that was ever written.
    #[error("{} has more than {FILE_LEN_MAX} bytes", .0.display())]
    TooLong(PathBuf),
}

/// The directory `STATE/torrents`.
#[derive(Clone, Debug)]
pub(super) struct TorrentFiles {
    dir: PathBuf,
}

impl TorrentFiles {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The torrents that have a file; leftovers of interrupted writes are cleared away.
    pub(super) fn list(&self) -> io::Result<BTreeSet<InfoHash>> {
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(stem) = name.strip_suffix(".torrent") {
                present.extend(stem.parse::<InfoHash>());
            } else if name.ends_with(".torrent.new") {
                fs::remove_file(self.dir.join(name))?;
            }
        }
        Ok(present)
    }

    pub(super) fn load(&self, info_hash: &InfoHash) -> Result<Vec<u8>, LoadError> {
        let path = self.path(info_hash);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes));
        match read {
            Ok(len) if len as u64 > FILE_LEN_MAX => Err(LoadError::TooLong(path)),
            Ok(_) => Ok(bytes),
            Err(error) => Err(LoadError::Read { path, error }),
        }
    }

    /// Writes all of them, or says why one could not be; the names that were given before then
    /// stand for whole files.
    pub(super) fn write<'a>(
        &self,
        torrents: impl Iterator<Item = (&'a InfoHash, &'a [u8])>,
    ) -> io::Result<()> {
        let mut any = false;
        for (info_hash, metainfo) in torrents {
            let path = self.path(info_hash);
            let fresh = path.with_extension("torrent.new");
            let mut file = File::create(&fresh)?;
            file.write_all(metainfo)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            any = true;
        }
        if any { sync_dir(&self.dir) } else { Ok(()) }
    }

    /// Removes those of them that exist.
    pub(super) fn remove_all<'a>(
        &self,
        torrents: impl Iterator<Item = &'a InfoHash>,
    ) -> io::Result<()> {
        let mut any = false;
        for info_hash in torrents {
            match fs::remove_file(self.path(info_hash)) {
                Ok(()) => any = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if any { sync_dir(&self.dir) } else { Ok(()) }
    }

    pub(super) fn quarantine(&self, info_hash: &InfoHash) -> io::Result<PathBuf> {
        quarantine(&self.path(info_hash))
    }

    fn path(&self, info_hash: &InfoHash) -> PathBuf {
        self.dir.join(format!("{info_hash}.torrent"))
    }
}

/// A file of which only the latest version counts, and which may be lost.
#[derive(Clone, Debug)]
pub(super) struct Keepsake {
    path: PathBuf,
    len_max: u64,
}

impl Keepsake {
    pub(super) fn new(path: PathBuf, len_max: u64) -> Self {
        Self { path, len_max }
    }

    /// What it holds; nothing if it is not there, cannot be read or is too long.
    pub(super) fn load(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(self.len_max + 1).read_to_end(&mut bytes));
        match read {
            Ok(len) if len as u64 <= self.len_max => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            result => {
                tracing::warn!(file = %self.path.display(), ?result, "it is not used");
                Vec::new()
            }
        }
    }

    /// Replaces what it holds: at any crash it is whole, in its old version or the new one.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Renames `path` to `path.corrupt`, or `path.corrupt.1` and so on if there is one already.
pub(super) fn quarantine(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".corrupt");
    let mut target = PathBuf::from(&aside);
    let mut number = 0;
    while target.symlink_metadata().is_ok() {
        number += 1;
        let mut numbered = aside.clone();
        numbered.push(format!(".{number}"));
        target = numbered.into();
    }
    fs::rename(path, &target)?;
    tracing::warn!(file = ?path, aside = ?target, "a corrupt file was put aside");
    Ok(target)
}
