//! Making a torrent of a file or a directory. An edge: it walks directories, reads and hashes files
//! on threads of its own, and blocks until it is done.
//!
//! A path and [`CreateOptions`] enter, the bytes of a `.torrent` leave. Invariant: what is written is
//! first read by [`Metainfo::parse`], so that this server seeds what it creates; a file that changes
//! while it is hashed fails the whole, and nothing outside the given path is read: symbolic links
//! inside it are not followed.
//!
//! Names go into the torrent byte for byte. One that the parser would have to change (it is not
//! UTF-8, holds control or invisible characters) fails clearly, because every peer would store it
//! under another name than the one on this disk.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha1::{Digest, Sha1};

use super::urls::{Purpose, usable_url};
use super::{Error, Metainfo, PATH_DEPTH_MAX, PIECE_LEN_MAX, WARNINGS_MAX};
use crate::bencode::{DictEncoder, Encoder, Limits, excerpt};
use crate::units::{BLOCK_LEN, InfoHash, PieceIndex};

/// Pieces that the automatic piece length stays below, as far as [`AUTO_PIECE_LEN_MAX`] goes.
const AUTO_PIECE_COUNT_MAX: u64 = 2000;

/// Longest piece that is chosen automatically, in bytes.
const AUTO_PIECE_LEN_MAX: u32 = 16 << 20;

/// Bytes that a thread reads at once.
const READ_LEN: usize = 1 << 20;

/// Most threads that hash.
const THREADS_MAX: usize = 256;

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
        value: u32,
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

/// The piece length for `total_len` bytes: the shortest power of two that makes at most 2000 pieces,
/// between 16 KiB and 16 MiB.
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
/// `progress` is told the bytes hashed so far and the bytes in all, from several threads, about
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
        Some(value) => return Err(CreateError::PieceLength { value }),
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
        magnet: metainfo.magnet(),
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

/// What must stay the same while a file is hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stat {
    len: u64,
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
struct Source {
    path: PathBuf,
    /// The path below the torrent's name; empty if the torrent is this one file.
    below: Vec<u8>,
    stat: Stat,
}

impl Source {
    fn changed(&self) -> CreateError {
        CreateError::Changed { path: self.path.clone() }
    }

    fn io(&self, source: io::Error) -> CreateError {
        CreateError::Io { path: self.path.clone(), source }
    }

    /// Opens the file, if it is still the one that was found.
    fn open(&self) -> Result<File, CreateError> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        let file = file.map_err(|error| self.io(error))?;
        let stat = file.metadata().map_err(|error| self.io(error))?;
        if Stat::from(&stat) == self.stat { Ok(file) } else { Err(self.changed()) }
    }
}

/// The files of a torrent to be, in its order.
struct Content {
    name: Vec<u8>,
    is_directory: bool,
    files: Vec<Source>,
    warnings: Vec<String>,
}

impl Content {
    fn find(path: &Path) -> Result<Self, CreateError> {
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
            for entry in fs::read_dir(&directory).map_err(io)? {
                let entry = entry.map_err(io)?;
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
                    self.skip(&below, &stat);
                }
                let max = Limits::TORRENT.bytes;
                if paths_len > max as u64 {
                    return Err(CreateError::TooLong { len: paths_len, max });
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, below: &[u8], stat: &Metadata) {
        let what = match stat.file_type() {
            kind if kind.is_symlink() => "a symbolic link",
            kind if kind.is_dir() => "a directory too deep for a torrent",
            _ => "not a regular file",
        };
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

/// The work that threads share: which piece is next, what is done, what went wrong.
struct Hashing<'a> {
    files: &'a [Source],
    draft: &'a Metainfo,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    done: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<CreateError>>,
}

impl Hashing<'_> {
    fn run(
        files: &[Source],
        draft: &Metainfo,
        threads: usize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Vec<[u8; 20]>, CreateError> {
        let hashing = Hashing {
            files,
            draft,
            progress,
            done: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
        };
        let mut hashes = vec![[0; 20]; draft.geometry.piece_count() as usize];
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { available() } else { threads };
        let threads = threads.min(THREADS_MAX).min(hashes.len());
        let slots = Mutex::new(hashes.iter_mut().zip((0..).map(PieceIndex)));
        let next = || slots.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| hashing.work(&next));
            }
        });
        let failure = hashing.failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = failure {
            return Err(failure);
        }
        for file in files {
            let now = fs::symlink_metadata(&file.path).map_err(|_| file.changed())?;
            if Stat::from(&now) != file.stat {
                return Err(file.changed());
            }
        }
        progress(draft.geometry.total_len(), draft.geometry.total_len());
        Ok(hashes)
    }

    /// One thread: takes pieces until there are none, or another thread failed.
    fn work<'h>(&self, next: &dyn Fn() -> Option<(&'h mut [u8; 20], PieceIndex)>) {
        let mut buffer = vec![0; READ_LEN];
        let mut open = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((hash, piece)) = next() else { return };
            match self.hash(piece, &mut open, &mut buffer) {
                Ok(found) => *hash = found,
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
    }

    /// The SHA-1 of one piece; `open` is the file that this thread read last.
    fn hash(
        &self,
        piece: PieceIndex,
        open: &mut Option<(usize, File)>,
        buffer: &mut [u8],
    ) -> Result<[u8; 20], CreateError> {
        let geometry = self.draft.geometry;
        let len = u64::from(geometry.piece_len(piece));
        let mut sha1 = Sha1::new();
        for extent in self.draft.layout.extents(geometry.piece_start(piece), len) {
            let source = &self.files[extent.file];
            if open.as_ref().is_none_or(|(index, _)| *index != extent.file) {
                *open = Some((extent.file, source.open()?));
            }
            let Some((_, file)) = open.as_ref() else { continue };
            let (mut offset, end) = (extent.offset, extent.offset + extent.len);
            while offset < end {
                let want = usize::try_from(end - offset).unwrap_or(READ_LEN).min(buffer.len());
                let chunk = &mut buffer[..want];
                file.read_exact_at(chunk, offset).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => source.changed(),
                    _ => source.io(error),
                })?;
                sha1.update(&*chunk);
                offset += want as u64;
                let done = self.done.fetch_add(want as u64, Ordering::Relaxed) + want as u64;
                (self.progress)(done, geometry.total_len());
            }
        }
        Ok(sha1.finalize().into())
    }
}
