//! Watch folders: `.torrent` and `.magnet` files that somebody leaves there.
//!
//! Directories enter, [`Found`] files leave through a bounded channel, and verdicts come back:
//! [`Watch::accept`] renames a file to `NAME.added`, [`Watch::reject`] to `NAME.rejected` with the
//! reason in `NAME.rejected.txt`. All of it happens on a thread of its own, because a directory on
//! a sleeping or remote disk can block for long.
//!
//! inotify tells at once what local programs do; a look at each folder's own time stamp every
//! second finds the rest, as on network file systems, where inotify is silent. A file is given out
//! as soon as it is whole (a torrent that ends where its encoding says), or once it has not changed
//! for a while: one that only ends too early for [`SETTLE_CUT`], in case its upload goes on, and one
//! that is wrong for [`SETTLE`], so that it still gets an answer within five seconds. A `.magnet`
//! of more than [`MAGNET_LEN_MAX`] bytes is wrong, whether or not it grows on.
//!
//! Invariant: only regular files are opened, never through a symbolic link, never more than
//! [`TORRENT_LEN_MAX`] bytes; a file that changed after it was given out is not renamed but given
//! out again; a file that cannot be renamed stays where it is.

mod folder;

pub use self::folder::{FOLDER_LEN_MAX, MAGNET_LEN_MAX, TORRENT_LEN_MAX, is_magnet};

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use self::folder::Folder;
use crate::sys::clock;

/// A file that is wrong is given out when it has not changed for this long.
pub const SETTLE: Duration = Duration::from_secs(3);
/// A file that is right as far as it goes is given out when it has not changed for this long.
pub const SETTLE_CUT: Duration = Duration::from_secs(60);
/// How often a folder's own time stamp is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looks into a folder that is changing are at least this far apart.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);
/// Files that wait in the channel, each with its bytes.
const FOUND_LEN_MAX: usize = 16;
/// Files that are given out and have no verdict yet, and so verdicts that may wait for the thread.
const GIVEN_MAX: usize = 256;

/// A file in a watch folder. It is not given out again until there is a verdict.
#[derive(Debug)]
pub struct Found {
    /// Where it lies.
    pub path: PathBuf,
    /// Its bytes, or a sentence that says why it can only be rejected.
    pub contents: Result<Vec<u8>, String>,
}

/// What the bytes of a `.torrent` look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// They can be judged.
    Whole,
    /// Each of them is right, and more have to follow.
    Cut,
    /// One that is there is wrong.
    Broken,
}

/// How a folder judges its files, and how long it waits for those that are not whole.
#[derive(Clone, Copy, Debug)]
struct Rules {
    shape: fn(&[u8]) -> Shape,
    settle: Duration,
    settle_cut: Duration,
}

enum Verdict {
    Accept(PathBuf),
    Reject(PathBuf, String),
}

/// The door to the thread that watches.
#[derive(Debug)]
pub struct Watch {
    verdicts: mpsc::Sender<Verdict>,
    ended: oneshot::Receiver<()>,
}

impl Watch {
    /// Watches `folders`, those too that do not exist yet. `shape` says what the bytes of a
    /// `.torrent` look like.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(
        folders: Vec<PathBuf>,
        shape: fn(&[u8]) -> Shape,
    ) -> io::Result<(Self, mpsc::Receiver<Found>)> {
        let rules = Rules { shape, settle: SETTLE, settle_cut: SETTLE_CUT };
        Self::start_with(folders, rules, true)
    }

    fn start_with(
        folders: Vec<PathBuf>,
        rules: Rules,
        notify: bool,
    ) -> io::Result<(Self, mpsc::Receiver<Found>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (found, receiver) = mpsc::channel(FOUND_LEN_MAX);
        let (verdicts, verdict_queue) = mpsc::channel(GIVEN_MAX);
        let (ending, ended) = oneshot::channel();
        let folders = folders.into_iter().map(|path| Folder::new(path, rules));
        let watcher = Watcher {
            folders: folders.collect(),
            ready: VecDeque::new(),
            given_count: 0,
            found,
            verdicts: verdict_queue,
        };
        thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let _guard = crate::sys::process::AbortOnPanic;
            runtime.block_on(watcher.run(notify));
            // Nobody waits if the door was dropped instead of closed.
            let _ = ending.send(());
        })?;
        Ok((Self { verdicts, ended }, receiver))
    }

    /// Renames the file to `NAME.added`, soon. At most one verdict counts for each file that was
    /// found.
    pub fn accept(&self, path: PathBuf) {
        self.decide(Verdict::Accept(path));
    }

    /// Renames the file to `NAME.rejected`, soon, and puts `sentence` beside it.
    pub fn reject(&self, path: PathBuf, sentence: String) {
        self.decide(Verdict::Reject(path, sentence));
    }

    fn decide(&self, verdict: Verdict) {
        // There is a place for each file that was given out, and the thread ends after its door.
        let _ = self.verdicts.try_send(verdict);
    }

    /// Carries out the verdicts that were given and ends the thread.
    pub async fn close(self) {
        drop(self.verdicts);
        let _ = self.ended.await;
    }
}

/// Why the thread woke up.
enum Next {
    Verdict(Option<Verdict>),
    Place(bool),
    Event,
    Look,
}

struct Watcher {
    folders: Vec<Folder>,
    /// Folder and name of files that may be given out.
    ready: VecDeque<(usize, PathBuf)>,
    /// Files that were given out and have no verdict.
    given_count: usize,
    found: mpsc::Sender<Found>,
    verdicts: mpsc::Receiver<Verdict>,
}

impl Watcher {
    async fn run(mut self, notify: bool) {
        let mut notify = notify.then(Notify::new).flatten();
        let mut looked = None;
        loop {
            let now = clock::now();
            if looked.is_none_or(|at| now.duration_since(at) >= BUSY_INTERVAL) {
                looked = Some(now);
                self.look(&mut notify);
            }
            let has_ready = !self.ready.is_empty() && self.given_count < GIVEN_MAX;
            let busy = self.folders.iter().any(Folder::is_busy);
            let pause = if busy { BUSY_INTERVAL } else { LOOK_INTERVAL };
            let next = tokio::select! {
                biased;
                verdict = self.verdicts.recv() => Next::Verdict(verdict),
                place = self.found.reserve(), if has_ready => {
                    Next::Place(place.is_ok())
                }
                () = wait(&mut notify) => Next::Event,
                () = sleep(pause) => Next::Look,
            };
            match next {
                Next::Verdict(Some(verdict)) => self.decide(verdict),
                Next::Verdict(None) => return,
                Next::Place(true) => self.give(),
                // Nobody takes files any more, but verdicts may still come.
                Next::Place(false) => self.ready.clear(),
                Next::Event => self.folders.iter_mut().for_each(Folder::touch),
                Next::Look => {}
            }
        }
    }

    /// Gives out the next file that is ready; the channel has a place, we are its only sender.
    fn give(&mut self) {
        let Some((index, path)) = self.ready.pop_front() else { return };
        let folder = self.folders.get_mut(index);
        if let Some(found) = folder.and_then(|folder| folder.take(&path, clock::now())) {
            self.given_count += 1;
            // A receiver that has just gone takes nothing; the file stays where it is.
            let _ = self.found.try_send(found);
        }
    }

    fn look(&mut self, notify: &mut Option<Notify>) {
        let now = clock::now();
        for (index, folder) in self.folders.iter_mut().enumerate() {
            if folder.look(now, |path| self.ready.push_back((index, path)))
                && let Some(notify) = notify
            {
                notify.add(folder.path());
            }
        }
    }

    fn decide(&mut self, verdict: Verdict) {
        self.given_count = self.given_count.saturating_sub(1);
        let (path, sentence) = match &verdict {
            Verdict::Accept(path) => (path, None),
            Verdict::Reject(path, sentence) => (path, Some(sentence.as_str())),
        };
        for folder in &mut self.folders {
            if path.parent() == Some(folder.path()) {
                folder.settle(path, sentence);
            }
        }
    }
}

/// inotify as a bell: what happened where does not matter, the folders are looked at.
struct Notify {
    inotify: AsyncFd<Inotify>,
}

impl Notify {
    /// Without inotify (its limits are per user) the looks every second remain.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may lie about their descriptor; this one \
                  owns it, and unsafe stays in `ring` and `sys`"
    )]
    fn new() -> Option<Self> {
        match Inotify::init().and_then(AsyncFd::new) {
            Ok(inotify) => Some(Self { inotify }),
            Err(error) => {
                tracing::warn!(%error, "watch folders are polled, inotify is not to be had");
                None
            }
        }
    }

    fn add(&mut self, folder: &Path) {
        // CREATE is for hard links, which are never closed after writing.
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::ONLYDIR;
        if let Err(error) = self.inotify.get_mut().watches().add(folder, mask) {
            tracing::warn!(?folder, %error, "this watch folder is polled");
        }
    }

    /// Takes all events; an overflow is one too. Whether there was one that is not ours.
    fn drain(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let mut foreign = false;
        while let Ok(events) = self.inotify.get_mut().read_events(&mut buffer) {
            for event in events {
                foreign |= event.name.is_none_or(|name| folder::is_candidate(Path::new(name)));
            }
        }
        foreign
    }
}

/// Waits for an event; for ever if there is no inotify.
async fn wait(notify: &mut Option<Notify>) {
    let Some(notify) = notify else { return std::future::pending().await };
    loop {
        match notify.inotify.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => return std::future::pending().await,
        }
        if notify.drain() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
