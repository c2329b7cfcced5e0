//! The data that every program serves, fetches and checks.
//!
//! A size enters; a file, its torrent and a way to know any byte of it leave. The content repeats a
//! table of random bytes whose length is prime to every piece length: what a block must be is a
//! slice of that table, so checking a byte costs a comparison, and no two pieces are equal.
//! Invariant: a file that lies there already is used only if its pieces are what they must be.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use seedring::metainfo::{self, CreateOptions, Metainfo};
use seedring::units::{Block, Geometry, InfoHash};

/// Bytes after which the content begins again: the greatest prime below 4 MiB.
const PERIOD: usize = 4_194_301;

/// Longest slice that [`Content::slice`] can give.
const SLICE_LEN_MAX: usize = 1 << 20;

/// Seed of the content.
const SEED: u64 = 0x5eed_0001;

/// A tracker that does not answer, for the client that refuses a torrent without one.
const NO_TRACKER: &str = "http://127.0.0.1:1/announce";

/// What the bytes of the file must be; a clone shares them.
#[derive(Clone, Debug)]
pub(crate) struct Content(Arc<Vec<u8>>);

impl Content {
    /// The same at every call.
    pub(crate) fn new() -> Self {
        let mut table = vec![0; PERIOD + SLICE_LEN_MAX];
        fastrand::Rng::with_seed(SEED).fill(&mut table[..PERIOD]);
        table.copy_within(..SLICE_LEN_MAX, PERIOD);
        Self(Arc::new(table))
    }

    /// The bytes from `offset` on, at most 1 MiB of them.
    pub(crate) fn slice(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset % PERIOD as u64).expect("less than the period");
        &self.0[start..][..len]
    }

    /// The bytes of a block.
    pub(crate) fn block(&self, geometry: &Geometry, block: Block) -> &[u8] {
        let offset = geometry.piece_start(block.piece) + u64::from(block.begin);
        self.slice(offset, block.len as usize)
    }

    /// Whether the file holds exactly the first `len` bytes of the content.
    pub(crate) fn is_in(&self, path: &Path, len: u64) -> io::Result<bool> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() != len {
            return Ok(false);
        }
        let (mut buffer, mut offset) = (vec![0; SLICE_LEN_MAX], 0);
        while offset < len {
            let count = file.read(&mut buffer)?;
            if count == 0 || buffer[..count] != *self.slice(offset, count) {
                return Ok(false);
            }
            offset += count as u64;
        }
        Ok(true)
    }
}

/// File, torrent and folders of one run.
#[derive(Debug)]
pub(crate) struct Ground {
    /// What the bytes of the file must be.
    pub(crate) content: Content,
    /// Folder that holds the file: the save path of every program.
    pub(crate) data_dir: PathBuf,
    /// Name of the torrent and of its one file.
    pub(crate) name: String,
    /// The torrent.
    pub(crate) torrent: PathBuf,
    /// The same torrent with a tracker that does not answer.
    pub(crate) tracked_torrent: PathBuf,
    /// What it is called on the wire.
    pub(crate) info_hash: InfoHash,
    /// How it is cut.
    pub(crate) geometry: Geometry,
    /// Folder for what a program keeps, and for what is fetched.
    pub(crate) scratch: tempfile::TempDir,
}

impl Ground {
    /// Makes what is not there yet below `root`. Making the torrent reads the whole file, so that
    /// it is in the page cache afterwards, if it fits.
    pub(crate) fn prepare(root: &Path, len: u64, piece_len: u32) -> io::Result<Self> {
        let content = Content::new();
        let data_dir = root.join("data");
        fs::create_dir_all(&data_dir)?;
        let name = format!("payload-{len}.bin");
        let file = data_dir.join(&name);
        if !content.is_in(&file, len).unwrap_or(false) {
            write_content(&content, &file, len)?;
        }
        let torrent = root.join(&name).with_extension("torrent");
        let tracked_torrent = root.join(&name).with_extension("tracked.torrent");
        let make = |to: &Path, trackers: Vec<String>| {
            let options =
                CreateOptions { piece_length: Some(piece_len), trackers, ..Default::default() };
            let created =
                metainfo::create(&file, &options, &|_, _| {}).map_err(io::Error::other)?;
            fs::write(to, &created.bytes)?;
            Metainfo::parse(&created.bytes).map_err(io::Error::other)
        };
        let parsed = make(&torrent, Vec::new())?;
        make(&tracked_torrent, vec![NO_TRACKER.to_owned()])?;
        Ok(Self {
            content,
            data_dir,
            name,
            torrent,
            tracked_torrent,
            info_hash: parsed.info_hash,
            geometry: parsed.geometry,
            scratch: tempfile::Builder::new().prefix("run-").tempdir_in(root)?,
        })
    }

    /// The file.
    pub(crate) fn file(&self) -> PathBuf {
        self.data_dir.join(&self.name)
    }

    /// Reads the file, so that it is in the page cache: the system may have let go of it.
    pub(crate) fn warm(&self) -> io::Result<()> {
        io::copy(&mut File::open(self.file())?, &mut io::sink()).map(drop)
    }

    /// Whether `dir` holds the whole file, byte by byte.
    pub(crate) fn is_fetched(&self, dir: &Path) -> io::Result<bool> {
        self.content.is_in(&dir.join(&self.name), self.geometry.total_len())
    }
}

fn write_content(content: &Content, path: &Path, len: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(SLICE_LEN_MAX, File::create(path)?);
    let mut offset = 0;
    while offset < len {
        let count = (len - offset).min(SLICE_LEN_MAX as u64);
        file.write_all(content.slice(offset, usize::try_from(count).expect("at most 1 MiB")))?;
        offset += count;
    }
    file.flush()?;
    // Dirty pages would be written back during the first measurement.
    file.get_ref().sync_all()
}
