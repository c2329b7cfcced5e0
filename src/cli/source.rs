//! Torrent files that are named on the command line.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Exit;
use crate::metainfo::{Error, Metainfo};

/// Bytes that are read of a torrent file at most; the parser has a limit of its own below it.
const FILE_LEN_MAX: u64 = 128 * 1024 * 1024;

/// Why a torrent file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not a torrent that can be used.
    #[error("{} is not a usable torrent: {error}", path.display())]
    Torrent {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Error,
    },
}

impl SourceError {
    /// The exit code of a command that dies of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { error, .. } if error.kind() == io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Failure,
        }
    }
}

/// Reads and parses the `.torrent` file at `path`; what is odd in it is said on stderr.
///
/// # Errors
/// If it cannot be read or is not a usable torrent.
pub fn read_torrent(path: &Path) -> Result<Metainfo, SourceError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_LEN_MAX).read_to_end(&mut bytes))
        .map_err(|error| SourceError::Read { path: path.to_owned(), error })?;
    let metainfo = Metainfo::parse(&bytes)
        .map_err(|error| SourceError::Torrent { path: path.to_owned(), error })?;
    for warning in &metainfo.warnings {
        eprintln!("seedring: {}: {warning}", path.display());
    }
    Ok(metainfo)
}
