//! Torrents of generated files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::metainfo::Metainfo;
use crate::metainfo::create::{CreateOptions, create};
use crate::storage::{Content, verify};
use crate::sys::file;
use crate::units::{Bitfield, Block, Geometry, InfoHash, PieceIndex, to_usize};

/// A torrent whose data lies in a directory of its own.
pub(super) struct Torrent {
    dir: TempDir,
    bytes: Vec<u8>,
    /// All its bytes, in the order of its files.
    pub(super) whole: Vec<u8>,
    pub(super) info_hash: InfoHash,
    pub(super) geometry: Geometry,
}

/// A torrent of one file of `len` bytes.
pub(super) fn any_torrent(len: usize, seed: u64) -> Torrent {
    Torrent::new(&[("one", len)], 128 * 1024, seed)
}

impl Torrent {
    /// Makes files of these names and lengths. A name that begins with `_____padding_file` makes
    /// padding: zeros that nobody else stores.
    pub(super) fn new(files: &[(&str, usize)], piece_len: u32, seed: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let top = dir.path().join(format!("top{seed}"));
        for &(name, len) in files {
            let mut content = vec![0; len];
            if !name.starts_with("_____padding_file") {
                rng.fill(&mut content);
            }
            let path = top.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let options =
            CreateOptions { piece_length: Some(piece_len), threads: 1, ..CreateOptions::default() };
        let bytes = create(&top, &options, &|_, _| {}).unwrap().bytes;
        let metainfo = Metainfo::parse(&bytes).unwrap();
        let read = |path: PathBuf| std::fs::read(dir.path().join(path)).unwrap();
        let whole = metainfo.layout.files().flat_map(|file| read(file.path())).collect();
        let (info_hash, geometry) = (metainfo.info_hash, metainfo.geometry);
        Self { dir, bytes, whole, info_hash, geometry }
    }

    /// The folder that holds the data.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The file number `index` where the data lies.
    pub(super) fn file(&self, index: usize) -> PathBuf {
        let metainfo = Metainfo::parse(&self.bytes).unwrap();
        self.path().join(metainfo.layout.file(index).unwrap().path())
    }

    /// The torrent with its data at `save_path`.
    pub(super) fn content(&self, save_path: &Path) -> Arc<Content> {
        let metainfo = Metainfo::parse(&self.bytes).unwrap();
        Arc::new(Content::new(metainfo, save_path.to_owned()))
    }

    /// The bytes that a block must have.
    pub(super) fn bytes_of(&self, block: Block) -> &[u8] {
        let start = to_usize(self.geometry.piece_start(block.piece)) + block.begin as usize;
        &self.whole[start..start + block.len as usize]
    }

    /// All blocks, in order.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let pieces = (0..self.geometry.piece_count()).map(PieceIndex);
        let blocks = |piece| {
            let of = move |index| self.geometry.block(piece, index);
            (0..self.geometry.block_count(piece)).filter_map(of)
        };
        pieces.flat_map(blocks).collect()
    }

    /// Throws the data out of the page cache.
    pub(super) fn make_cold(&self) {
        for entry in self.content(self.path()).metainfo.layout.files() {
            if let Ok(open) = std::fs::File::open(self.path().join(entry.path())) {
                let fd = std::os::fd::AsFd::as_fd(&open);
                file::drop_cache(fd, 0..entry.len).unwrap();
            }
        }
    }

    /// The pieces that lie at `save_path`, by their hashes.
    pub(super) fn have_at(&self, save_path: &Path) -> Bitfield {
        let options = verify::Options { threads: 1, low_priority: false };
        verify::check(self.content(save_path), save_path, options, Arc::default()).have
    }

    /// Whether every file at `save_path` is the same as here; padding is on no disk.
    pub(super) fn is_same_at(&self, save_path: &Path) -> bool {
        self.content(save_path).metainfo.layout.files().all(|entry| {
            let read = |root: &Path| std::fs::read(root.join(entry.path())).ok();
            !entry.is_on_disk() || read(self.path()) == read(save_path)
        })
    }
}
