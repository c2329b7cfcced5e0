//! Torrents: what a `.torrent` file says, how its pieces lie in files, and how one is made.
//!
//! The bytes of a `.torrent` enter [`Metainfo::parse`]; an immutable description that any number of
//! threads may share leaves it. Invariant: no path in it leads out of the torrent's directory,
//! every number in it was checked in 64 bits before it was used, and its info-hash is taken over
//! the exact bytes of the `info` dictionary (BEP 3). [`mod@create`] is the exception in this pure
//! room: an edge that reads files and runs threads, and is kept in a file of its own.
//!
//! What is taken and what is not:
//! - v1 and hybrid torrents; of a hybrid only the v1 part is read. v2-only ones are refused (BEP
//!   52).
//! - Any piece length from 1 byte to 512 MiB, as other clients do; no power of two is asked for.
//! - `name.utf-8` and `path.utf-8` before `name` and `path` when they are UTF-8; bytes that are not
//!   become U+FFFD. `encoding` is ignored.
//! - Padding (BEP 47) is zeros that are never on disk. Symbolic links are never made, and a torrent
//!   that gives one a length is refused.
//! - Trackers, web seeds and nodes that cannot be used are left out, each with a sentence in
//!   [`Metainfo::warnings`]; they never refuse a torrent.
#![forbid(unsafe_code)]

pub mod create;
mod error;
mod files;
pub mod layout;
pub mod magnet;
mod names;
mod parse;
pub mod selection;
mod urls;

#[cfg(test)]
mod hostile;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use url::Url;

pub use create::{CreateError, CreateOptions, Created, create};
pub use error::Error;
pub use layout::{Extent, Extents, File, FileKind, Layout};
pub use names::{COLLISIONS_MAX, NAME_LEN_MAX, PATH_DEPTH_MAX, PATH_LEN_MAX};

use crate::bencode::escape;
use crate::units::{Geometry, InfoHash, PieceIndex};

/// Longest piece in bytes.
pub const PIECE_LEN_MAX: u32 = 512 << 20;

/// Most pieces of a torrent.
pub const PIECE_COUNT_MAX: u32 = 2 << 20;

/// Longest file in bytes.
pub const FILE_LEN_MAX: u64 = (1 << 48) - 1;

/// Most tiers of trackers that are kept (BEP 12).
pub const TIERS_MAX: usize = 64;

/// Most trackers that are kept, over all tiers.
pub const TRACKERS_MAX: usize = 256;

/// Most web seeds that are kept (BEP 19).
pub const WEB_SEEDS_MAX: usize = 32;

/// Most DHT nodes that are kept (BEP 5).
pub const NODES_MAX: usize = 64;

/// Most warnings that are kept; the last one then says that there were more.
pub const WARNINGS_MAX: usize = 64;

/// Characters of a name that logs show.
pub const NAME_SHOWN_MAX: usize = 80;

/// Paths that were made safe and are told one by one.
const RENAMES_TOLD_MAX: usize = 3;

/// Characters of such a path that are shown.
const PATH_SHOWN_MAX: usize = 200;

/// Longest comment, or name of a program, that is kept, in bytes.
pub const TEXT_LEN_MAX: usize = 4096;

/// What a `.torrent` file says.
#[derive(Clone, Debug)]
pub struct Metainfo {
    /// SHA-1 of the exact bytes of `info`.
    pub info_hash: InfoHash,
    /// The torrent's name, safe as a name of a file; the first name of every path.
    pub name: String,
    /// What the torrent calls itself, escaped for display, where [`Metainfo::name`] differs.
    pub original_name: Option<String>,
    /// How the bytes are cut into pieces.
    pub geometry: Geometry,
    /// How the bytes lie in files.
    pub layout: Layout,
    /// Tiers of trackers: http, https or udp, with a host, and for udp a port (BEP 12).
    pub trackers: Vec<Vec<Url>>,
    /// HTTP servers that have the files (BEP 19).
    pub web_seeds: Vec<Url>,
    /// DHT nodes, host and port (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// Peers may be learnt from the trackers only (BEP 27).
    pub private: bool,
    /// Without control characters other than line feeds.
    pub comment: Option<String>,
    /// The program that made it, without control characters.
    pub created_by: Option<String>,
    /// When it was made, in seconds since 1970.
    pub creation_date: Option<i64>,
    /// What was left out or is special, one sentence each.
    pub warnings: Vec<String>,
    /// Paths below the torrent's name as the torrent has them, by file, where they were changed.
    originals: BTreeMap<usize, String>,
    raw: Arc<[u8]>,
    info: Range<usize>,
    pieces: Range<usize>,
}

/// The exact bytes of an `info` dictionary, shared with the torrent that they are part of.
#[derive(Clone, Debug)]
pub struct RawInfo {
    raw: Arc<[u8]>,
    info: Range<usize>,
}

impl std::ops::Deref for RawInfo {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.raw.get(self.info.clone()).unwrap_or_default()
    }
}

impl From<Vec<u8>> for RawInfo {
    fn from(info: Vec<u8>) -> Self {
        Self { info: 0..info.len(), raw: info.into() }
    }
}

/// The name of a torrent for logs: in quotes, cut to [`NAME_SHOWN_MAX`] characters, with whatever is
/// not printable escaped.
pub fn shown_name(name: &str) -> String {
    cut_and_quoted(name, NAME_SHOWN_MAX)
}

fn cut_and_quoted(name: &str, shown_max: usize) -> String {
    match name.char_indices().nth(shown_max) {
        Some((end, _)) => format!("{:?}", format!("{}…", name.get(..end).unwrap_or(""))),
        None => format!("{name:?}"),
    }
}

impl Metainfo {
    /// Reads a `.torrent` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        parse::parse(bytes)
    }

    /// [`shown_name`] of its name.
    pub fn shown_name(&self) -> String {
        shown_name(&self.name)
    }

    /// The `.torrent` file as it came.
    pub fn raw(&self) -> &Arc<[u8]> {
        &self.raw
    }

    /// The exact bytes of `info`, as peers ask for them (BEP 9).
    pub fn raw_info(&self) -> &[u8] {
        self.raw.get(self.info.clone()).unwrap_or_default()
    }

    /// The same bytes, to be kept beside this description.
    pub fn shared_info(&self) -> RawInfo {
        RawInfo { raw: Arc::clone(&self.raw), info: self.info.clone() }
    }

    /// The SHA-1 that `piece` must have; `None` for an index that does not exist.
    pub fn piece_hash(&self, piece: PieceIndex) -> Option<&[u8; 20]> {
        self.piece_hashes().get(piece.0 as usize)
    }

    /// The SHA-1 of every piece, in order.
    pub fn piece_hashes(&self) -> &[[u8; 20]] {
        self.raw.get(self.pieces.clone()).unwrap_or_default().as_chunks().0
    }

    /// The path of file `index` below the torrent's name as the torrent has it, escaped for
    /// display; `None` if it is used unchanged.
    pub fn original_path(&self, index: usize) -> Option<&str> {
        self.originals.get(&index).map(String::as_str)
    }

    /// Every file whose path was changed, with what [`Metainfo::original_path`] says of it.
    pub fn original_paths(&self) -> impl Iterator<Item = (File<'_>, &str)> + '_ {
        self.originals
            .iter()
            .filter_map(|(&index, path)| Some((self.layout.file(index)?, path.as_str())))
    }

    /// Every path that was made safe, as the torrent has it (escaped for display) and as it is on disk.
    pub fn renames(&self) -> impl Iterator<Item = (String, PathBuf)> + '_ {
        let top = self.original_name.as_deref();
        // A torrent of one file has no path but its name.
        let single = top.filter(|_| self.layout.is_single_file());
        let single = single.map(|top| (top.to_owned(), PathBuf::from(&self.name)));
        let is_changed =
            move |file: &File<'_>| top.is_some() || self.originals.contains_key(&file.index);
        let files = self.layout.files().filter(move |file| {
            !self.layout.is_single_file() && file.is_on_disk() && is_changed(file)
        });
        single.into_iter().chain(files.map(move |file| {
            let below = self
                .original_path(file.index)
                .map_or_else(|| escape(file.below.as_bytes()), str::to_owned);
            let top = top.map_or_else(|| escape(self.name.as_bytes()), str::to_owned);
            (format!("{top}/{below}"), file.path())
        }))
    }

    /// One sentence with the first few of [`Metainfo::renames`]; `None` if every name is as the
    /// torrent has it.
    pub fn renames_told(&self) -> Option<String> {
        let mut renames = self.renames();
        let told: Vec<_> = renames
            .by_ref()
            .take(RENAMES_TOLD_MAX)
            .map(|(original, safe)| {
                let original = match original.char_indices().nth(PATH_SHOWN_MAX) {
                    Some((end, _)) => format!("{}…", original.get(..end).unwrap_or("")),
                    None => original,
                };
                let safe = cut_and_quoted(&safe.to_string_lossy(), PATH_SHOWN_MAX);
                format!("\"{original}\" -> {safe}")
            })
            .collect();
        let more = match renames.count() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        (!told.is_empty()).then(|| format!("names were made safe: {}{more}", told.join(", ")))
    }

    /// The magnet link (BEP 9).
    pub fn magnet(&self) -> magnet::Magnet {
        magnet::Magnet {
            name: Some(self.name.clone()),
            trackers: self.trackers.iter().flatten().cloned().collect(),
            web_seeds: self.web_seeds.clone(),
            ..magnet::Magnet::new(self.info_hash)
        }
    }
}
