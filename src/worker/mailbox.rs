//! What crosses cores: letters to workers, and reports from them.
//!
//! Letters enter a worker's bounded queue and wake it if it sleeps; reports leave to the control
//! thread. Invariant: nothing here is per block, and a full queue is an answer, never a wait.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::blocking::{Blocking, Lane};
use super::keys::Keys;
use super::table::Key;
use crate::mse;
use crate::ring::Waker;
use crate::storage::{self, Content, files::Opened, recovery::Had};
use crate::swarm::{Blocklist, Offender, Options, Source};
use crate::sys::file::Identity;
use crate::units::{Bitfield, InfoHash, PeerId};
use crate::wire::Handshake;

/// Letters that may wait for one worker.
pub const LETTERS_MAX: usize = 4096;

/// A letter to a worker.
pub enum Letter {
    /// A torrent for this worker to be the home of.
    Add(Box<NewTorrent>),
    /// A torrent of which no more than the info-hash is known. When it is known, its `Add` goes to
    /// the same worker, and the connections go on.
    AddMagnet(Box<NewMagnet>),
    /// A torrent that this worker knows by its info-hash only is private (BEP 27).
    Private(InfoHash),
    /// Close the torrent's peers and forget it; `Report::Removed` is the answer.
    Remove(InfoHash),
    /// Addresses of peers.
    Contacts {
        /// The torrent.
        info_hash: InfoHash,
        /// Who says so.
        source: Source,
        /// Where its peers are said to be.
        addrs: Vec<SocketAddr>,
    },
    /// A connection that another worker accepted for a torrent of this one.
    Adopt(Box<Adopted>),
    /// The files of a torrent were opened, or not.
    Opened {
        /// The torrent, as its worker names it: one that was removed and added again has another
        /// key, and what is late for the old one finds nothing.
        torrent: Key,
        /// Where they are closed if nobody wants them any more.
        lane: Lane,
        /// Its files.
        result: Result<Opened, storage::Error>,
    },
    /// The files of a torrent that has every piece were looked at a last time.
    Confirmed {
        /// The torrent, as in `Opened`.
        torrent: Key,
        /// Who they are, in the order of the layout, if they are still those that were written.
        result: Result<Vec<Option<Identity>>, storage::Error>,
    },
    /// The files of a torrent were compared with those that are open.
    Compared {
        /// The torrent, as in `Opened`.
        torrent: Key,
        /// Who they are, in the order of the layout, if they are still the same; and which of those
        /// that are not wanted are not.
        result: Result<(Vec<Option<Identity>>, Vec<usize>), storage::Error>,
    },
    /// What an encrypted opening needed was computed.
    Computed {
        /// The connection, as its worker names it.
        conn: Key,
        /// What came out.
        answer: Box<mse::Answer>,
    },
    /// New limits for the worker as a whole.
    Budget {
        /// Upload slots, if bounded.
        slots: Option<u32>,
        /// Upload rate in bytes per second, if bounded.
        up: Option<u64>,
        /// Download rate in bytes per second, if bounded.
        down: Option<u64>,
    },
    /// Others of a torrent's files are wanted than before: its content with the new selection.
    Select(InfoHash, Arc<Content>),
    /// Have nothing to do with these any more, each until its moment.
    Ban(Vec<(Offender, Instant)>),
    /// Have nothing to do with anybody on this list, instead of the one before.
    Blocklist(Arc<Blocklist>),
    /// Where we can be reached ourselves.
    OwnAddrs(Arc<[SocketAddr]>),
    /// Write what is verified, sync, close everything and end.
    Stop,
}

/// A torrent as it is given to its home worker.
pub struct NewTorrent {
    /// Its identity.
    pub info_hash: InfoHash,
    /// What it consists of and where it lies.
    pub content: Arc<Content>,
    /// The pieces that were verified.
    pub have: Bitfield,
    /// Those among them that lie in the files, with nothing in the part file.
    pub in_files: Bitfield,
    /// The files as they were when that was found out, in the order of the layout; empty if nobody
    /// looked.
    pub known: Vec<Option<Identity>>,
    /// How it is to be served and fetched.
    pub options: Options,
    /// Where the worker writes its totals.
    pub totals: Arc<Totals>,
}

/// A torrent without metadata as it is given to its home worker.
pub struct NewMagnet {
    /// How its peers are met, and its identity.
    pub options: Options,
    /// Where the worker writes how far it is.
    pub progress: Arc<MetadataProgress>,
}

/// How far the metadata of a torrent is, written by its home worker and read by everyone else.
#[derive(Debug, Default)]
pub struct MetadataProgress {
    /// Peers connected.
    pub peers: AtomicU64,
    /// Those among them that claim to have the metadata.
    pub sources: AtomicU64,
    /// Bytes of it that have come, also in attempts that were given up: no progress, no more of them.
    pub accepted: AtomicU64,
    /// Blocks of it that have come.
    pub blocks: AtomicU64,
    /// Blocks in all, as far as anybody has said; 0 if nobody has.
    pub blocks_all: AtomicU64,
}

/// A connection on its way from the worker that accepted it to the torrent's home.
#[derive(Debug)]
pub struct Adopted {
    /// The connected socket; no operation is in flight on it.
    pub socket: OwnedFd,
    /// The other side.
    pub addr: SocketAddr,
    /// What it said first.
    pub handshake: Handshake,
    /// Bytes that came behind the handshake in the same read, decrypted.
    pub rest: Vec<u8>,
    /// Bytes to send before anything else, as they go out.
    pub outbox: Vec<u8>,
    /// The ciphers of an encrypted stream.
    pub ciphers: Option<Box<mse::Ciphers>>,
}

/// The state of a torrent as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TorrentState {
    /// Its data is being checked.
    Checking = 0,
    /// Pieces that are wanted are missing.
    Downloading = 1,
    /// All pieces that are wanted are here.
    Seeding = 2,
    /// It stands still because of its files.
    Error = 3,
}

/// Totals of a torrent, written by its home worker, but for the last, and read by everyone else.
#[derive(Debug)]
pub struct Totals {
    /// Payload bytes sent.
    pub uploaded: AtomicU64,
    /// Payload bytes received and kept.
    pub downloaded: AtomicU64,
    /// Bytes of the whole torrent that are not verified yet, as trackers are told.
    pub left: AtomicU64,
    /// Bytes among them of pieces that are wanted.
    pub wanted_left: AtomicU64,
    /// Peers connected.
    pub peers: AtomicU64,
    /// Upload rate in bytes per second.
    pub up_rate: AtomicU64,
    /// Download rate in bytes per second.
    pub down_rate: AtomicU64,
    state: AtomicU8,
    /// Whether it was whole once, and its trackers heard so if it was fetched; written by the control
    /// thread.
    pub was_whole: AtomicBool,
}

impl Totals {
    /// Totals of a torrent of which `left` bytes are missing.
    pub fn new(left: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            uploaded: zero(),
            downloaded: zero(),
            left: AtomicU64::new(left),
            wanted_left: AtomicU64::new(left),
            peers: zero(),
            up_rate: zero(),
            down_rate: zero(),
            state: AtomicU8::new(TorrentState::Checking as u8),
            was_whole: AtomicBool::new(false),
        }
    }

    /// What the torrent is doing.
    pub fn state(&self) -> TorrentState {
        match self.state.load(Relaxed) {
            0 => TorrentState::Checking,
            1 => TorrentState::Downloading,
            2 => TorrentState::Seeding,
            _ => TorrentState::Error,
        }
    }

    /// Says what the torrent is doing.
    pub fn set_state(&self, state: TorrentState) {
        self.state.store(state as u8, Relaxed);
    }
}

/// What a worker tells the control thread.
#[derive(Debug)]
pub enum Report {
    /// The last wanted piece of a torrent is on disk, in files that are still those that were opened.
    Finished(InfoHash),
    /// The `info` dictionary of a torrent without metadata, whose SHA-1 is its info-hash. Its peers
    /// stay connected until it is added, or removed.
    Metadata(InfoHash, Vec<u8>),
    /// A torrent stands still because of its files.
    Failed(InfoHash, storage::Error, Box<Had>),
    /// Somebody was banned until this moment; the other workers are to hear of it.
    Banned(Offender, Instant),
    /// A peer says that it has a node of the DHT there (BEP 5).
    Node(SocketAddr),
    /// A torrent was removed, and nothing of it is on its way to its files any more: only now may
    /// they be looked at for another attempt.
    Removed(InfoHash),
    /// A worker has ended as asked.
    Stopped(usize),
    /// A worker cannot go on; the process has to end.
    Died(usize, String),
}

/// The door to one worker, for other threads.
#[derive(Clone, Debug)]
pub struct Mailbox {
    letters: SyncSender<Letter>,
    waker: Arc<Waker>,
}

impl Mailbox {
    /// Puts a letter in and wakes the worker if it sleeps; gives the letter back if the queue is
    /// full or the worker has ended.
    pub fn send(&self, letter: Letter) -> Result<(), Letter> {
        match self.letters.try_send(letter) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(letter) | TrySendError::Disconnected(letter)) => Err(letter),
        }
    }
}

impl Mailbox {
    /// Wakes the worker if it sleeps, for queues beside the letters.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// [`Mailbox::send`] that waits for room: for threads that may block, and letters that must
    /// arrive. The letter comes back if the worker has ended.
    pub fn send_waiting(&self, letter: Letter) -> Result<(), Letter> {
        self.letters.send(letter).map_err(|refused| refused.0)?;
        self.waker.wake();
        Ok(())
    }
}

/// The queue of letters whose door is made once the worker has a waker.
pub fn letters() -> (SyncSender<Letter>, Receiver<Letter>) {
    sync_channel(LETTERS_MAX)
}

impl Mailbox {
    /// The door to a worker that is woken by `waker`.
    pub fn new(letters: SyncSender<Letter>, waker: Arc<Waker>) -> Self {
        Self { letters, waker }
    }
}

/// Which worker is the home of which torrent; read when a handshake comes in.
#[derive(Debug, Default)]
pub struct Directory {
    homes: RwLock<HashMap<InfoHash, usize>>,
    /// Torrents by the mark that encrypted openings name them by.
    marks: RwLock<HashMap<[u8; 20], InfoHash>>,
}

impl Directory {
    /// The home of a torrent.
    pub fn home(&self, info_hash: &InfoHash) -> Option<usize> {
        self.homes.read().unwrap_or_else(PoisonError::into_inner).get(info_hash).copied()
    }

    /// The torrent that an encrypted opening is about.
    pub fn marked(&self, mark: &[u8; 20]) -> Option<InfoHash> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).get(mark).copied()
    }

    /// Makes `worker` the home of a torrent.
    pub fn insert(&self, info_hash: InfoHash, worker: usize) {
        let mark = mse::torrent_mark(&info_hash);
        self.marks.write().unwrap_or_else(PoisonError::into_inner).insert(mark, info_hash);
        self.homes.write().unwrap_or_else(PoisonError::into_inner).insert(info_hash, worker);
    }

    /// Forgets a torrent.
    pub fn remove(&self, info_hash: &InfoHash) {
        let mark = mse::torrent_mark(info_hash);
        self.marks.write().unwrap_or_else(PoisonError::into_inner).remove(&mark);
        self.homes.write().unwrap_or_else(PoisonError::into_inner).remove(info_hash);
    }
}

/// What every worker knows and none changes.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Our name towards peers.
    pub peer_id: PeerId,
    /// Where torrents live.
    pub directory: Arc<Directory>,
    /// The doors to all workers, by number.
    pub mailboxes: Arc<std::sync::OnceLock<Vec<Mailbox>>>,
    /// The way to the control thread.
    pub reports: tokio::sync::mpsc::Sender<Report>,
    /// Threads that may block on a disk.
    pub blocking: Blocking,
    /// The thread that computes what encrypted openings need.
    pub keys: Keys,
}
