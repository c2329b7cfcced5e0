//! The blocklist on the control thread: from a file to every worker, and again when it changes.
//!
//! A path enters, [`Letter::Blocklist`]s leave. Invariant: the file is looked at and read on other
//! threads, one at a time; a list that cannot be read leaves the one in force as it is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::engine::{Engine, StartError};
use crate::swarm::{Blocklist, BlocklistError, ReadBlocklist};
use crate::sys::clock;
use crate::worker::mailbox::Letter;

/// Bytes of a list at most.
pub const FILE_LEN_MAX: u64 = 256 << 20;

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or unreadable.
    #[error("cannot read the blocklist {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// The file is larger than [`FILE_LEN_MAX`].
    #[error("the blocklist {} has more than {FILE_LEN_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is no list, or too long a one.
    #[error("{}: {error}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: BlocklistError,
    },
}

/// By what a change of the file shows: device, inode, length, and the moment of its last change in
/// nanoseconds; `None` while there is none.
type Stamp = Option<(u64, u64, u64, i128)>;

/// What a look at the file came to.
pub(super) struct Looked {
    stamp: Stamp,
    /// The list, if there was a reason to read it.
    read: Option<Result<ReadBlocklist, Error>>,
}

/// The file, and how far it is in force.
pub(super) struct BlocklistFile {
    /// What was read last, whatever came of it.
    read: Stamp,
    /// What was seen last: a file that is being written is waited for.
    seen: Stamp,
    /// When to look next; `None` while somebody looks, or without a list.
    next_look: Option<Instant>,
    sender: mpsc::Sender<Looked>,
    pub(super) looked: mpsc::Receiver<Looked>,
}

impl Default for BlocklistFile {
    fn default() -> Self {
        let (sender, looked) = mpsc::channel(1);
        Self { read: None, seen: None, next_look: None, sender, looked }
    }
}

impl Engine {
    /// Takes the list of the settings up, if they name one: to be awaited before torrents are added.
    ///
    /// # Errors
    /// It cannot be read. Later that is only told, and the list before it stays in force.
    pub async fn open_blocklist(&mut self) -> Result<(), StartError> {
        let Some(path) = self.settings.blocklist.clone() else { return Ok(()) };
        let read = tokio::task::spawn_blocking(move || (stamp(&path), read(&path)));
        let (stamp, read) = read.await.map_err(|error| StartError::Thread(error.into()))?;
        self.use_blocklist(read?);
        (self.blocklist.read, self.blocklist.seen) = (stamp, stamp);
        self.blocklist.next_look = Some(clock::now() + LOOK_INTERVAL);
        Ok(())
    }

    /// Has the file looked at when it is time.
    pub(super) fn watch_blocklist(&mut self, now: Instant) {
        let file = &mut self.blocklist;
        let Some(path) = self.settings.blocklist.clone() else { return };
        if file.next_look.take_if(|at| *at <= now).is_none() {
            return;
        }
        let (before, seen, sender) = (file.read, file.seen, file.sender.clone());
        tokio::task::spawn_blocking(move || {
            let stamp = stamp(&path);
            let is_due = stamp != before && stamp == seen;
            // Nobody waits for it when the engine has ended.
            let _ = sender.blocking_send(Looked { stamp, read: is_due.then(|| read(&path)) });
        });
    }

    pub(super) fn on_blocklist(&mut self, looked: Looked) {
        let Looked { stamp, read } = looked;
        self.blocklist.seen = stamp;
        self.blocklist.next_look = Some(clock::now() + LOOK_INTERVAL);
        let Some(read) = read else { return };
        self.blocklist.read = stamp;
        match read {
            Ok(read) => self.use_blocklist(read),
            Err(error) => tracing::warn!(%error, "the blocklist before it stays in force"),
        }
    }

    fn use_blocklist(&mut self, read: ReadBlocklist) {
        let ReadBlocklist { list, broken_count, broken } = read;
        for line in &broken {
            tracing::warn!("{line}: passed over");
        }
        if broken_count > broken.len() as u64 {
            tracing::warn!(broken_count, "more lines of the blocklist are passed over");
        }
        let range_count = list.range_count();
        tracing::info!(range_count, broken_count, "the blocklist is in force");
        let process = self.registry().process();
        process.blocklist_ranges.set(range_count as u64);
        process.blocklist_broken_lines.set(broken_count);
        let list = Arc::new(list);
        for worker in 0..self.loads.len() {
            self.post(worker, Letter::Blocklist(Arc::clone(&list)));
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    let nanos = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    Some((found.dev(), found.ino(), found.len(), nanos))
}

fn read(path: &Path) -> Result<ReadBlocklist, Error> {
    let failed = |error| Error::Read { path: path.to_owned(), error };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(Error::TooLong { path: path.to_owned() });
    }
    Blocklist::parse(&text).map_err(|error| Error::Content { path: path.to_owned(), error })
}
