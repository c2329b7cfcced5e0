//! Making a torrent of a file or a directory. An edge: it walks directories, reads and hashes files
//! on threads of its own, and blocks until it is done.
//!
//! A path and [`CreateOptions`] enter, the bytes of a `.torrent` leave. Invariant: what is written
//! is first read by [`Metainfo::parse`], so that this server seeds what it creates; a file that
//! changes while it is hashed fails the whole, and nothing outside the given path is read: symbolic
//! links inside it are not followed.
//!
//! Names go into the torrent byte for byte. One that the parser would have to change (it is not
//! UTF-8, holds control or invisible characters) fails clearly, because every peer would store it
//! under another name than the one on this disk.
#![forbid(unsafe_code)]

mod content;
mod hashing;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use self::content::{Content, Source};
use self::hashing::Hashing;
use super::urls::{Purpose, usable_url};
use super::{Error, Metainfo, PIECE_LEN_MAX};
use crate::bencode::{DictEncoder, Encoder, Limits, excerpt};
use crate::units::{BLOCK_LEN, InfoHash};

/// Pieces that the automatic piece length stays below, as far as [`AUTO_PIECE_LEN_MAX`] goes.
const AUTO_PIECE_COUNT_MAX: u64 = 2000;

/// Longest piece that is chosen automatically, in bytes.
const AUTO_PIECE_LEN_MAX: u32 = 16 << 20;

/// How a torrent is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes of a piece, a power of two from 16 KiB to 512 MiB; `None` chooses by
    /// [`auto_piece_len`].
    pub piece_length: Option<u32>,
    /// URLs of trackers, each a tier of its own (BEP 12).
    pub trackers: Vec<String>,
    /// URLs of web seeds (BEP 19).
    pub web_seeds: Vec<String>,
    /// Peers may be learnt from the trackers only (BEP 27).
    pub private: bool,
    /// Free text.
    pub comment: Option<String>,
    /// Seconds since 1970; `None` leaves it out, so that equal content gives equal bytes.
    pub creation_date: Option<i64>,
    /// Threads that hash; 0 for as many as this process may use.
    pub threads: usize,
}

/// A torrent that was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// The `.torrent` file.
    pub bytes: Vec<u8>,
    /// Its info-hash.
    pub info_hash: InfoHash,
    /// Its magnet link.
    pub magnet: String,
    /// The name of the file or directory.
    pub name: String,
    /// Number of files, empty ones too.
    pub file_count: usize,
    /// Number of pieces.
    pub piece_count: u32,
    /// Bytes of a piece.
    pub piece_len: u32,
    /// Bytes of all files.
    pub total_len: u64,
    /// What was left out, one sentence each.
    pub warnings: Vec<String>,
}

/// Why no torrent was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", excerpt(path.as_os_str().as_bytes()))]
    Io {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The path is a socket, a device or the like.
    #[error("{} is neither a file nor a directory", excerpt(path.as_os_str().as_bytes()))]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The path is the root directory or ends in `..`, which gives the torrent no name.
    #[error("{} has no name that a torrent could have", excerpt(path.as_os_str().as_bytes()))]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// There is no file in the directory.
    #[error("there is no file in {}", excerpt(path.as_os_str().as_bytes()))]
    NoFiles {
        /// The directory.
        path: PathBuf,
    },
    /// A name that other machines would store differently.
    #[error(
        "the name {name} is not UTF-8 or holds invisible characters; other machines would store \
         the file under another name, so rename it first"
    )]
    Name {
        /// The name or path, cut and escaped.
        name: String,
    },
    /// The piece length asked for is not one that all clients take.
    #[error(
        "a piece length of {value} bytes is not a power of two from {BLOCK_LEN} to {PIECE_LEN_MAX}"
    )]
    PieceLength {
        /// The value.
        value: u64,
    },
    /// The torrent would be longer than clients read.
    #[error(
        "the torrent would have {len} bytes, more than {max}; choose longer pieces or fewer files"
    )]
    TooLong {
        /// Its length, or the least that it can be.
        len: u64,
        /// The limit.
        max: usize,
    },
    /// A tracker or web seed cannot be used.
    #[error("the URL {url} cannot be used: {reason}")]
    Url {
        /// The URL, cut and escaped.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file was not the same before and after.
    #[error("{} changed while it was hashed", excerpt(path.as_os_str().as_bytes()))]
    Changed {
        /// Which one.
        path: PathBuf,
    },
    /// The files do not make a torrent that the parser takes.
    #[error("these files do not make a usable torrent: {0}")]
    Unusable(#[from] Error),
}

/// The piece length for `total_len` bytes: the shortest power of two that makes at most 2000
/// pieces, between 16 KiB and 16 MiB.
///
/// | content up to | piece | | content up to | piece |
/// |---|---|---|---|---|
/// | 31 MiB | 16 KiB | | 1 GiB (1000 MiB) | 512 KiB |
/// | 62 MiB | 32 KiB | | 1.95 GiB | 1 MiB |
/// | 125 MiB | 64 KiB | | 3.9 GiB | 2 MiB |
/// | 250 MiB | 128 KiB | | 7.8 GiB | 4 MiB |
/// | 500 MiB | 256 KiB | | 15.6 GiB | 8 MiB, and 16 MiB beyond |
pub fn auto_piece_len(total_len: u64) -> u32 {
    let mut len = BLOCK_LEN;
    while len < AUTO_PIECE_LEN_MAX && total_len.div_ceil(u64::from(len)) > AUTO_PIECE_COUNT_MAX {
        len *= 2;
    }
    len
}

/// Makes a torrent of the file or directory at `path`.
///
/// `progress` is told the bytes hashed so far and the bytes in all, from several threads, at least
/// once for each MiB; the numbers of two threads may arrive in either order.
pub fn create(
    path: &Path,
    options: &CreateOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Created, CreateError> {
    check_urls(options)?;
    let content = Content::find(path)?;
    let total_len: u64 = content.files.iter().map(|file| file.stat.len).sum();
    let piece_len = match options.piece_length {
        None => auto_piece_len(total_len),
        Some(len) if len.is_power_of_two() && (BLOCK_LEN..=PIECE_LEN_MAX).contains(&len) => len,
        Some(value) => return Err(CreateError::PieceLength { value: value.into() }),
    };
    let max = Limits::TORRENT.bytes;
    let hashes_len = total_len.div_ceil(u64::from(piece_len)).saturating_mul(20);
    let hashes_len = usize::try_from(hashes_len).ok().filter(|&len| len <= max);
    let too_long = |len| CreateError::TooLong { len, max };
    let hashes_len = hashes_len.ok_or_else(|| too_long(total_len / u64::from(piece_len) * 20))?;
    // Everything but the hashes is judged before hours may go into them.
    let draft = encode(&content, options, piece_len, &vec![0; hashes_len]);
    if draft.len() > max {
        return Err(too_long(draft.len() as u64));
    }
    let draft = Metainfo::parse(&draft)?;
    check_names(&draft)?;
    let hashes = Hashing::run(&content.files, &draft, options.threads, progress)?;
    let bytes = encode(&content, options, piece_len, hashes.as_flattened());
    let metainfo = Metainfo::parse(&bytes)?;
    Ok(Created {
        bytes,
        info_hash: metainfo.info_hash,
        magnet: metainfo.magnet().to_string(),
        file_count: metainfo.layout.file_count(),
        piece_count: metainfo.geometry.piece_count(),
        piece_len,
        total_len,
        name: metainfo.name,
        warnings: content.warnings,
    })
}

fn check_urls(options: &CreateOptions) -> Result<(), CreateError> {
    let trackers = options.trackers.iter().map(|url| (url, Purpose::Tracker));
    let web_seeds = options.web_seeds.iter().map(|url| (url, Purpose::WebSeed));
    for (url, purpose) in trackers.chain(web_seeds) {
        usable_url(url.as_bytes(), purpose)
            .map_err(|reason| CreateError::Url { url: excerpt(url.as_bytes()), reason })?;
    }
    Ok(())
}

/// Refuses what the parser would store under another name.
fn check_names(draft: &Metainfo) -> Result<(), CreateError> {
    let changed = draft.original_paths().next().map(|(_, path)| path);
    match draft.original_name.as_deref().or(changed) {
        Some(name) => Err(CreateError::Name { name: format!("\"{name}\"") }),
        None => Ok(()),
    }
}

/// Writes the torrent with the hashes in `pieces`.
fn encode(content: &Content, options: &CreateOptions, piece_len: u32, pieces: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.dict(|dict| {
        if let Some(first) = options.trackers.first() {
            dict.bytes(b"announce", first.as_bytes());
        }
        if options.trackers.len() > 1 {
            dict.list(b"announce-list", |tiers| {
                for url in &options.trackers {
                    tiers.list(|tier| {
                        tier.bytes(url.as_bytes());
                    });
                }
            });
        }
        if let Some(comment) = &options.comment {
            dict.bytes(b"comment", comment.as_bytes());
        }
        dict.bytes(b"created by", concat!("seedring/", env!("CARGO_PKG_VERSION")).as_bytes());
        if let Some(seconds) = options.creation_date {
            dict.int(b"creation date", seconds);
        }
        dict.dict(b"info", |info| {
            encode_files(content, info);
            info.bytes(b"name", &content.name);
            info.int(b"piece length", i64::from(piece_len));
            info.bytes(b"pieces", pieces);
            if options.private {
                info.int(b"private", 1);
            }
        });
        if !options.web_seeds.is_empty() {
            dict.list(b"url-list", |urls| {
                options.web_seeds.iter().for_each(|url| {
                    urls.bytes(url.as_bytes());
                });
            });
        }
    });
    encoder.finish()
}

fn encode_files(content: &Content, info: &mut DictEncoder<'_>) {
    // No file system holds a file whose length does not fit in i64.
    let length = |file: &Source| i64::try_from(file.stat.len).unwrap_or(i64::MAX);
    if !content.is_directory {
        content.files.iter().for_each(|file| {
            info.int(b"length", length(file));
        });
        return;
    }
    info.list(b"files", |files| {
        for file in &content.files {
            files.dict(|entry| {
                entry.int(b"length", length(file));
                entry.list(b"path", |path| {
                    file.below.split(|&byte| byte == b'/').for_each(|name| {
                        path.bytes(name);
                    });
                });
            });
        }
    });
}
