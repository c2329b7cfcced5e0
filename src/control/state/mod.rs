//! What a server remembers: its torrents, their totals, its bans and its settings.
//!
//! Orders enter through a bounded queue, answers leave when what was ordered is on the device.
//! `STATE/torrents/<info-hash>.torrent` holds each torrent as it came, `STATE/dht.nodes` the nodes of
//! the DHT that were known last, `STATE/seedring.db` (SQLite) all else. One writer thread takes
//! whatever waits in the queue as one group: torrent files are written and flushed, then one
//! transaction commits, then files of removed torrents go. Totals and bans of a group that failed go
//! with the next one.
//!
//! The database runs with `synchronous = FULL`: with `NORMAL` a commit in WAL mode may be undone
//! by a power cut, so that a removed torrent could come back. A group pays for one flush, however
//! many orders it holds, and no caller waits on the control thread.
//!
//! Invariant: at any crash each torrent is either there whole or not at all, and one corrupt file
//! costs that file only: it gets the suffix `.corrupt` and the server starts without it.

mod database;
mod files;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use self::database::Database;
pub use self::files::LoadError;
use self::files::{Keepsake, TorrentFiles};
use self::writer::Writer;
use crate::dht;
use crate::metainfo::selection::Wanted;
use crate::metainfo::shown_name;
use crate::sys::process::AbortOnPanic;
use crate::units::InfoHash;

/// Orders that may wait for the writer; whoever gives one more waits too.
pub const QUEUE_LEN_MAX: usize = 1024;
/// Orders that are committed as one group.
pub const GROUP_LEN_MAX: usize = 256;

/// The file of the nodes of the DHT, beside the database: it may be removed at any time.
const NODES_NAME: &str = "dht.nodes";

/// One torrent of an earlier run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredTorrent {
    /// Its identity; [`State::load`] gives its metainfo.
    pub info_hash: InfoHash,
    /// The folder that holds its top name; `None` if the database was lost and with it the path.
    pub save_path: Option<PathBuf>,
    /// When it was added, in seconds since 1970; 0 if unknown.
    pub added_at: i64,
    /// Its name, for lists that are made before the metainfo is read.
    pub name: String,
    /// Payload bytes sent, of all runs.
    pub uploaded: u64,
    /// Payload bytes received, of all runs.
    pub downloaded: u64,
    /// The most bytes of it that were ever found right on the disk, in all runs since it was added.
    pub had_bytes: u64,
    /// Whether it was whole since it was added, and that was to be told to its trackers if it was
    /// fetched; `None` if an earlier version wrote it, or the database was lost.
    pub was_whole: Option<bool>,
    /// Which of its files are wanted.
    pub wanted: Wanted,
}

/// A torrent to remember.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTorrent {
    /// Its identity.
    pub info_hash: InfoHash,
    /// The `.torrent` file as it came.
    pub metainfo: Vec<u8>,
    /// The folder that holds its top name.
    pub save_path: PathBuf,
    /// Its name.
    pub name: String,
    /// Seconds since 1970.
    pub added_at: i64,
    /// Which of its files are wanted.
    pub wanted: Wanted,
}

/// A magnet link whose torrent is not known yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMagnet {
    /// The torrent that it names.
    pub info_hash: InfoHash,
    /// The link.
    pub link: String,
    /// The folder that will hold the torrent's top name.
    pub save_path: PathBuf,
    /// When it was added, in seconds since 1970.
    pub added_at: i64,
}

/// The totals of one torrent: absolute numbers, so that a lost update is repaired by the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Totals {
    /// The torrent; unknown ones are ignored.
    pub info_hash: InfoHash,
    /// Payload bytes sent, of all runs.
    pub uploaded: u64,
    /// Payload bytes received, of all runs.
    pub downloaded: u64,
    /// Bytes of it that were found right on the disk. The most that was ever written counts: who
    /// has nothing because the disk is not mounted does not erase it.
    pub had_bytes: u64,
    /// Whether it was whole, and that was to be told to its trackers if it was fetched; once
    /// written it stays.
    pub was_whole: bool,
}

/// One ban of an earlier run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredBan {
    /// The address, or a /64 of IPv6, its low half zero.
    pub ip: IpAddr,
    /// When it ends, in seconds since 1970.
    pub until: i64,
}

/// Why there is no state, so that the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock.
    #[error(
        "another seedring uses the state directory {}: stop it, \
         or name another directory with --state DIR (paths.state)",
        .0.display()
    )]
    InUse(PathBuf),
    /// The database is of a later version.
    #[error(
        "the database {} has version {found}, this seedring knows up to {known}: use a newer one",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The directory cannot be made, or nothing can be written in it.
    #[error(
        "cannot use the state directory {}: {error}; name another with --state DIR (paths.state)",
        path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The system refused.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// What was refused.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// SQLite refused, and not because the file is corrupt.
    #[error("cannot use the database {}: {error}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        error: rusqlite::Error,
    },
}

/// Why an order was not carried out; nothing of it remains.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OrderError {
    /// The device or the database refused.
    #[error("the state could not be written: {0}")]
    Write(String),
    /// [`State::close`] was called.
    #[error("the state is closed")]
    Closed,
    /// Too much waits to be written already.
    #[error("the state's disk does not keep up")]
    Full,
}

/// A place in the queue for totals; see [`State::place_for_totals`].
#[derive(Debug)]
pub struct TotalsPlace<'a> {
    permit: mpsc::Permit<'a, Order>,
    is_waiting: &'a AtomicBool,
}

impl TotalsPlace<'_> {
    /// Has these totals written soon. A failure is logged, and they go with whatever is written
    /// next.
    pub fn put(self, totals: Vec<Totals>) {
        self.is_waiting.store(true, Relaxed);
        self.permit.send(Order::Totals(totals));
    }
}

type Answer = oneshot::Sender<Result<(), OrderError>>;

/// What the writer is asked to do.
#[derive(Debug)]
enum Order {
    Add(NewTorrent, Answer),
    AddMagnet(StoredMagnet, Answer),
    Remove(InfoHash, Answer),
    Select(InfoHash, Wanted, Answer),
    Totals(Vec<Totals>),
    Bans(Vec<StoredBan>),
    Setting(String, String, Answer),
    Nodes(Vec<u8>),
    Close(oneshot::Sender<()>),
}

/// The door to the writer thread. Dropping it lets the writer finish what is queued.
#[derive(Debug)]
pub struct State {
    orders: mpsc::Sender<Order>,
    /// Totals are in the queue, and the writer has not taken them yet.
    totals_wait: Arc<AtomicBool>,
    files: TorrentFiles,
    settings: BTreeMap<String, String>,
    magnets: Vec<StoredMagnet>,
    bans: Vec<StoredBan>,
    nodes: Vec<u8>,
}

impl State {
    /// Opens or makes the state in `dir` and gives what it holds, in the order of adding. Blocks
    /// on the disk. Torrents whose file is missing are left out and logged.
    ///
    /// # Errors
    /// Whatever makes it unsafe to go on: see [`OpenError`]. Corrupt files are no error.
    pub fn open(dir: &Path) -> Result<(Self, Vec<StoredTorrent>), OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        let torrents_dir = dir.join("torrents");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&torrents_dir)
            .map_err(|error| OpenError::Directory { path: dir.to_owned(), error })?;
        let lock = lock(dir)?;
        let files = TorrentFiles::new(torrents_dir.clone());
        let present = files.list().map_err(failed(&torrents_dir))?;
        let database = Database::open(dir, &present)?;
        let (rows, magnets, settings) = database
            .read()
            .map_err(|error| OpenError::Database { path: dir.join(database::FILE_NAME), error })?;
        let bans = database
            .read_bans()
            .map_err(|error| OpenError::Database { path: dir.join(database::FILE_NAME), error })?;
        let known: BTreeSet<_> = rows.iter().map(|row| row.info_hash).collect();
        for orphan in present.difference(&known) {
            tracing::info!(torrent = %orphan, "removing the file of a torrent that was removed");
            files.remove_all([orphan].into_iter()).map_err(failed(&torrents_dir))?;
        }
        let (kept, lost): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| present.contains(&row.info_hash));
        for torrent in &lost {
            let name = shown_name(&torrent.name);
            tracing::warn!(torrent = %torrent.info_hash, %name, "its file is missing");
        }
        let nodes_file = Keepsake::new(dir.join(NODES_NAME), dht::FILE_LEN_MAX as u64);
        let nodes = nodes_file.load();
        let (orders, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let totals_wait = Arc::default();
        let writer = Writer {
            database,
            files: files.clone(),
            nodes: nodes_file,
            queue,
            totals_wait: Arc::clone(&totals_wait),
            unwritten: BTreeMap::new(),
            unwritten_bans: Vec::new(),
            _lock: lock,
        };
        thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                let _guard = AbortOnPanic;
                writer.run();
            })
            .map_err(failed(dir))?;
        Ok((Self { orders, totals_wait, files, settings, magnets, bans, nodes }, kept))
    }

    /// The metainfo of a torrent, unchanged since it was added. Blocks on the disk.
    ///
    /// # Errors
    /// If the file cannot be read. A caller that finds it is not what it should be calls
    /// [`State::quarantine`].
    pub fn load(&self, info_hash: &InfoHash) -> Result<Vec<u8>, LoadError> {
        self.files.load(info_hash)
    }

    /// Puts a torrent file that does not parse aside, under the suffix `.corrupt`; the torrent's
    /// row stays, so that putting a good file back is enough. Blocks on the disk.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn quarantine(&self, info_hash: &InfoHash) -> io::Result<PathBuf> {
        self.files.quarantine(info_hash)
    }

    /// The settings of earlier runs.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// The bans of earlier runs, also those that are over.
    pub fn bans(&self) -> &[StoredBan] {
        &self.bans
    }

    /// What [`State::save_nodes`] was given by an earlier run; nothing if that cannot be read.
    pub fn nodes(&self) -> &[u8] {
        &self.nodes
    }

    /// The links of earlier runs whose torrents are not known yet, in the order of adding.
    pub fn magnets(&self) -> &[StoredMagnet] {
        &self.magnets
    }

    /// Remembers a link until its torrent is added, or removed; it is on the device when this
    /// returns. One of the same torrent is replaced. It is remembered beside a torrent too, whose
    /// file may be lost: whoever has that torrent does without the link.
    ///
    /// # Errors
    /// If it could not be written; then nothing of it remains.
    pub async fn add_magnet(&self, magnet: StoredMagnet) -> Result<(), OrderError> {
        self.order(|answer| Order::AddMagnet(magnet, answer)).await
    }

    /// Remembers a torrent; it is on the device when this returns. One that is there already is
    /// replaced: its totals stay, but it has no data yet.
    ///
    /// # Errors
    /// If it could not be written; then nothing of it remains.
    pub async fn add(&self, torrent: NewTorrent) -> Result<(), OrderError> {
        self.order(|answer| Order::Add(torrent, answer)).await
    }

    /// Forgets a torrent, for good when this returns. An unknown one is no error.
    ///
    /// # Errors
    /// If that could not be written; then the torrent is still there.
    pub async fn remove(&self, info_hash: InfoHash) -> Result<(), OrderError> {
        self.order(|answer| Order::Remove(info_hash, answer)).await
    }

    /// Remembers which files of a torrent are wanted. An unknown one is no error.
    ///
    /// # Errors
    /// If that could not be written; then it is as before.
    pub async fn set_wanted(&self, info_hash: InfoHash, wanted: Wanted) -> Result<(), OrderError> {
        self.order(|answer| Order::Select(info_hash, wanted, answer)).await
    }

    /// A place in the queue for totals, which waits for nobody. There is none while those before
    /// are still in the queue: a device that hangs piles up no more.
    pub fn place_for_totals(&self) -> Option<TotalsPlace<'_>> {
        if self.totals_wait.load(Relaxed) {
            return None;
        }
        let permit = self.orders.try_reserve().ok()?;
        Some(TotalsPlace { permit, is_waiting: &self.totals_wait })
    }

    /// Writes the totals of some torrents; waits for a place in the queue.
    ///
    /// # Errors
    /// [`OrderError::Closed`] only; a failure to write is logged, as by [`TotalsPlace::put`].
    pub async fn update_totals(&self, totals: Vec<Totals>) -> Result<(), OrderError> {
        self.orders.send(Order::Totals(totals)).await.map_err(|_| OrderError::Closed)
    }

    /// Writes bans soon, without waiting for the device; those that are over meanwhile go. Beyond
    /// [`crate::swarm::BANS_MAX`] those that end first go too.
    ///
    /// # Errors
    /// The bans, if the queue is full or the state is closed. A failure to write is logged, and they
    /// go with whatever is written next.
    pub fn add_bans(&self, bans: Vec<StoredBan>) -> Result<(), Vec<StoredBan>> {
        let Ok(permit) = self.orders.try_reserve() else { return Err(bans) };
        permit.send(Order::Bans(bans));
        Ok(())
    }

    /// As [`State::add_bans`], but waits for a place in the queue.
    ///
    /// # Errors
    /// [`OrderError::Closed`] only.
    pub async fn update_bans(&self, bans: Vec<StoredBan>) -> Result<(), OrderError> {
        self.orders.send(Order::Bans(bans)).await.map_err(|_| OrderError::Closed)
    }

    /// Writes the nodes of the DHT soon, without waiting for the device.
    ///
    /// # Errors
    /// If the queue is full or the state is closed; a failure to write is logged.
    pub fn save_nodes(&self, nodes: Vec<u8>) -> Result<(), OrderError> {
        self.try_order(Order::Nodes(nodes))
    }

    /// Remembers a setting for the next run.
    ///
    /// # Errors
    /// If it could not be written.
    pub async fn set(&self, key: String, value: String) -> Result<(), OrderError> {
        self.order(|answer| Order::Setting(key, value, answer)).await
    }

    /// Writes all that was ordered before and lets go of the directory.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.orders.send(Order::Close(done)).await.is_ok() {
            // An error means that the writer has gone already: nothing is left to wait for.
            let _ = closed.await;
        }
    }

    fn try_order(&self, order: Order) -> Result<(), OrderError> {
        self.orders.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OrderError::Full,
            mpsc::error::TrySendError::Closed(_) => OrderError::Closed,
        })
    }

    async fn order(&self, order: impl FnOnce(Answer) -> Order) -> Result<(), OrderError> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| OrderError::Closed)?;
        answered.await.unwrap_or(Err(OrderError::Closed))
    }
}

/// The file stays: removing it would let a third process lock another one of the same name.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let failed = |error| OpenError::Directory { path: dir.to_owned(), error };
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests;
