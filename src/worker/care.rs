//! The files of a torrent while it is on its worker: opened at first use, looked after, closed.
//!
//! Torrents that need their files enter; open files, or a torrent that stops, leave. Invariant: files
//! are opened and compared by threads that may block, and those of a torrent that nobody uses are
//! closed once all of it is flushed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocking::Lane;
use super::mailbox::Letter;
use super::table::Key;
use super::torrent::{FILES_RETRY, OpenFiles, ServedFile, Store};
use super::{Timer, Worker};
use crate::metrics::DiskOp;
use crate::ring::{Driver, Lease};
use crate::storage::Error;
use crate::storage::files::{self, Opened};
use crate::sys::file::Identity;

/// How long a torrent without peers keeps its files open, and how often the files of one with
/// peers are looked after: half of the minute within which a loss has to be seen.
const FILES_INTERVAL: Duration = Duration::from_secs(25);

/// Who the files of a torrent are now, and which of those that are not wanted are others.
pub(super) type Compared = (Vec<Option<Identity>>, Vec<usize>);

impl<D: Driver> Worker<D> {
    /// Opens the files of a torrent if they are not open.
    pub(super) fn need_files(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if !matches!(torrent.store, Store::Closed) {
            return;
        }
        if torrent.was_refused_files && torrent.files_timer.is_some() {
            // It is asked again when that fires, not with each block that somebody wants.
            return;
        }
        let fetch = !torrent.finished || torrent.makes_files;
        let content = Arc::clone(&torrent.content);
        let (known, have) = (torrent.known.clone(), torrent.swarm.bitfield().clone());
        let in_files = torrent.in_files.clone();
        let mode = self.options.mode;
        let lane = torrent.lane();
        let closing = lane.clone();
        let (mailboxes, home) = (Arc::clone(&self.shared.mailboxes), self.options.number);
        let job = Box::new(move || {
            let result = files::open(&content, fetch, mode, &known, &have, &in_files);
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker that takes no letters any more needs no files either.
                let opened = Letter::Opened { torrent: key, lane: closing, result };
                let _ = mailbox.send_waiting(opened);
            }
        });
        torrent.was_refused_files = self.shared.blocking.run(lane, job).is_err();
        let look_in = if torrent.was_refused_files {
            FILES_RETRY
        } else {
            torrent.store = Store::Opening;
            self.removals.begin_open(key);
            FILES_INTERVAL
        };
        let look_at = self.now + look_in;
        if torrent.files_timer.is_none_or(|at| look_at < at) {
            self.look_at_files(key, look_at);
        }
    }

    /// Sets the timer of a torrent's files; one set before does nothing when it fires.
    fn look_at_files(&mut self, key: Key, at: Instant) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.files_timer = Some(at);
        self.timers.set(at, Timer::Files(key));
    }

    /// The files of a torrent were opened, or not. `lane` is where they are closed if it has no use
    /// for them any more.
    pub(super) fn on_opened(&mut self, key: Key, lane: Lane, result: Result<Opened, Error>) {
        self.removals.end_open(key);
        let torrent = self.torrents.get_mut(key);
        let Some(torrent) = torrent.filter(|it| matches!(it.store, Store::Opening)) else {
            return self.shared.blocking.drop_there(lane, result);
        };
        if std::mem::take(&mut torrent.opens_again) {
            torrent.store = Store::Closed;
            torrent.known = Vec::new();
            self.shared.blocking.drop_there(lane, result);
            return self.need_files(key);
        }
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => {
                let is_space = matches!(error, Error::NoSpace { .. });
                let op = if is_space { DiskOp::Allocate } else { DiskOp::Open };
                self.core.disk_errors[op].add(1);
                return self.fail_torrent(key, error);
            }
        };
        let serve = |file: files::OpenFile| ServedFile {
            handle: Rc::new(file.fd),
            lease: file.mapping.map(|mapping| Lease::Mapped(Rc::new(mapping))),
            identity: file.identity,
        };
        let files = opened.files.into_iter().map(|file| file.map(serve)).collect();
        let (mapped_bytes, is_writable) = (opened.mapped_bytes, opened.is_writable);
        torrent.store = Store::Open(OpenFiles { files, is_writable, mapped_bytes });
        torrent.makes_files = false;
        self.core.mapped_bytes.add(mapped_bytes);
        self.lose_unwanted(key, &opened.gone);
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        for conn in torrent.conns.clone().into_iter().flatten() {
            self.touch_conn(conn);
        }
        self.write_waiting(key);
        self.write_waiting_blocks(key);
        // What is left of a torrent may be whole since others of its files are wanted.
        self.sync_finished(key);
        self.touch_torrent(key);
    }

    /// Flushes the files of a torrent that has what is wanted and was not looked at since.
    fn sync_finished(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.finished && !torrent.is_confirmed && !torrent.is_confirming {
            torrent.unsynced = true;
            self.sync_torrent(key);
        }
    }

    /// Looks after the files of a torrent: closes them when nobody needs them, and otherwise has
    /// them compared with what was opened.
    pub(super) fn on_files_timer(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.files_timer.is_none_or(|at| self.now < at) {
            // It was set anew since.
            return;
        }
        torrent.files_timer = None;
        let next = self.now + FILES_INTERVAL;
        if !matches!(torrent.store, Store::Open(_)) {
            match torrent.store {
                // Too many waited for its disk when this was asked for first.
                Store::Closed if torrent.was_refused_files => self.need_files(key),
                // They may take their time; afterwards the files are looked after again.
                Store::Opening => self.look_at_files(key, next),
                _ => {}
            }
            return;
        }
        let is_idle = torrent.peer_count == 0;
        self.look_at_files(key, next);
        if is_idle {
            return self.close_idle_files(key);
        }
        self.compare(key);
    }

    /// Has the files by the torrent's names compared with those that are open, if that is not under
    /// way already.
    pub(super) fn compare(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Store::Open(open) = &torrent.store else { return };
        if torrent.comparing_since.is_some() {
            // Its disk takes its time; another look would take longer.
            return;
        }
        // While pieces are written, the times of the files change by our own hand.
        let only_names = !torrent.finished || !torrent.is_confirmed || torrent.unsynced;
        let identities = open.identities();
        let content = Arc::clone(&torrent.content);
        let (mailboxes, home) = (Arc::clone(&self.shared.mailboxes), self.options.number);
        let job = Box::new(move || {
            let result = files::still_there(&content, &identities, only_names)
                .map(|now| (now, files::changed_others(&content, &identities)));
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker that takes no letters any more has closed its files.
                let _ = mailbox.send_waiting(Letter::Compared { torrent: key, result });
            }
        });
        // If too many jobs wait, the next look is soon enough.
        if self.shared.blocking.run(torrent.lane(), job).is_ok() {
            torrent.comparing_since = Some(self.now);
        }
    }

    pub(super) fn on_compared(&mut self, key: Key, result: Result<Compared, Error>) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Some(since) = torrent.comparing_since.take() else { return };
        let result = result.map(|(found, others)| {
            self.lose_unwanted(key, &others);
            found
        });
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        match result {
            Err(error) => self.fail_torrent(key, error),
            // An incomplete torrent is written to: what its files are, they are by our hand, unless
            // that was before the last peer went.
            Ok(found) if !torrent.finished && torrent.last_peer < since && self.is_idle(key) => {
                self.close_files(key, found);
            }
            Ok(_) => {}
        }
    }

    /// Whether a torrent has had no peers for a while, and nothing of it is on its way to the disk.
    fn is_idle(&self, key: Key) -> bool {
        let writes = self.has_writes(key);
        self.torrents.get(key).is_some_and(|torrent| {
            torrent.peer_count == 0
                && self.now.saturating_duration_since(torrent.last_peer) >= FILES_INTERVAL
                && !writes
                && torrent.syncs_pending == 0
                && (!torrent.finished || torrent.is_confirmed || torrent.unsynced)
        })
    }

    /// Closes the files of a torrent without peers, once all that was written is flushed.
    fn close_idle_files(&mut self, key: Key) {
        if !self.is_idle(key) {
            return;
        }
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.unsynced {
            return self.sync_torrent(key);
        }
        let Store::Open(open) = &torrent.store else { return };
        if !torrent.finished {
            // Their times have changed since they were opened.
            return self.compare(key);
        }
        let known = open.identities();
        self.close_files(key, known);
    }
}
