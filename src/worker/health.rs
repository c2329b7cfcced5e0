//! Files that fail under a torrent: pieces that cannot be read, torrents that stop, and the last
//! look at the files before a torrent is called complete.
//!
//! Errors of files enter; lost pieces, stopped torrents and reports leave. Invariant: an error of
//! a file costs the pieces it touched or the torrent it belongs to, never a peer its good name and
//! never another torrent anything.

use std::io;
use std::sync::Arc;

use super::mailbox::{Letter, Report, TorrentState};
use super::table::Key;
use super::torrent::{FILES_RETRY, Store};
use super::{Timer, Worker};
use crate::metrics::{DisconnectReason, DiskOp};
use crate::ring::Driver;
use crate::storage::pieces::OpenPieces;
use crate::storage::recovery::{Had, READ_ERRORS_MAX};
use crate::storage::{Error, files};
use crate::sys::file::Identity;
use crate::units::PieceIndex;

impl<D: Driver> Worker<D> {
    /// A piece of ours cannot be read: it is not served any more, and fetched again by torrents
    /// that fetch. The one that makes [`READ_ERRORS_MAX`] stops the torrent.
    pub(super) fn lose_piece(&mut self, key: Key, piece: PieceIndex, error: Error) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.has_failed() || !torrent.swarm.bitfield().has(piece) {
            return;
        }
        torrent.read_error_count += 1;
        if torrent.read_error_count >= READ_ERRORS_MAX {
            return self.fail_torrent(key, error);
        }
        let (info_hash, name) = (torrent.info_hash, torrent.content.metainfo.shown_name());
        tracing::warn!(
            torrent = %info_hash, %name, %piece, %error,
            "a piece is lost: it cannot be read"
        );
        self.forget_piece(key, piece);
    }

    /// A piece is not ours any more.
    pub(super) fn forget_piece(&mut self, key: Key, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.count_piece(piece, false);
        // What is fetched of a file that is not wanted goes to the part file.
        torrent.in_files.clear(piece);
        torrent.swarm.handle_lost(self.now, piece);
        if torrent.fetches && !torrent.swarm.is_finished() {
            torrent.finished = false;
            torrent.totals.set_state(TorrentState::Downloading);
        }
        torrent.publish(self.now);
        self.touch_torrent(key);
    }

    /// Files that are not wanted have gone, or are others: what was found in them is not ours.
    pub(super) fn lose_unwanted(&mut self, key: Key, files: &[usize]) {
        for &file in files {
            let Some(torrent) = self.torrents.get(key) else { return };
            let Some(entry) = torrent.content.metainfo.layout.file(file) else { continue };
            let have = torrent.swarm.bitfield();
            let is_lost = |it: &PieceIndex| torrent.in_files.has(*it) && have.has(*it);
            let lost: Vec<_> = entry.pieces(torrent.geometry()).filter(is_lost).collect();
            if lost.is_empty() {
                continue;
            }
            let path = torrent.path_of(file);
            tracing::info!(
                torrent = %torrent.info_hash, path = %path.display(), pieces = lost.len(),
                "a file that is not wanted has gone or changed: it is served no more"
            );
            lost.into_iter().for_each(|piece| self.forget_piece(key, piece));
        }
    }

    /// Has the files opened anew if pieces cannot be written to those that are open. True if so.
    pub(super) fn reopen_for_writing(&mut self, key: Key) -> bool {
        let Some(torrent) = self.torrents.get_mut(key) else { return false };
        let Store::Open(open) = &torrent.store else { return false };
        if open.is_writable {
            return false;
        }
        torrent.known = open.identities();
        let lane = torrent.lane();
        let store = std::mem::replace(&mut torrent.store, Store::Closed);
        self.release_store(lane, store);
        self.need_files(key);
        true
    }

    /// Has the files of a torrent that has every wanted piece looked at, by a thread that may block: they
    /// must still be those that were written.
    pub(super) fn confirm(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Store::Open(open) = &torrent.store else { return };
        if !torrent.finished || torrent.is_confirmed || torrent.is_confirming {
            return;
        }
        let (identities, content) = (open.identities(), Arc::clone(&torrent.content));
        let (mailboxes, home) = (Arc::clone(&self.shared.mailboxes), self.options.number);
        let job = Box::new(move || {
            let result = files::all_there(&content, &identities);
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker that takes no letters any more says nothing either.
                let _ = mailbox.send_waiting(Letter::Confirmed { torrent: key, result });
            }
        });
        if self.shared.blocking.run(torrent.lane(), job).is_ok() {
            torrent.is_confirming = true;
        } else {
            self.timers.set(self.now + FILES_RETRY, Timer::Confirm(key));
        }
    }

    pub(super) fn on_confirmed(&mut self, key: Key, result: Result<Vec<Option<Identity>>, Error>) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if !std::mem::replace(&mut torrent.is_confirming, false) || torrent.has_failed() {
            return;
        }
        let found = match result {
            Ok(found) => found,
            Err(error) => return self.fail_torrent(key, error),
        };
        if !torrent.finished || torrent.is_confirmed {
            // A piece was lost meanwhile.
            return;
        }
        torrent.is_confirmed = true;
        torrent.totals.set_state(TorrentState::Seeding);
        // From now on a change of the files is somebody else's: remember who they are.
        if let Store::Open(open) = &mut torrent.store {
            for (file, found) in open.files.iter_mut().zip(found) {
                if let (Some(file), Some(found)) = (file, found) {
                    file.identity = found;
                }
            }
        }
        if std::mem::replace(&mut torrent.is_reported, true) {
            let (info_hash, name) = (torrent.info_hash, torrent.content.metainfo.shown_name());
            tracing::info!(torrent = %info_hash, %name, "whole again: the lost pieces are back");
        } else {
            self.reports.push_back(Report::Finished(torrent.info_hash));
        }
    }

    /// A file has to be used that is not open: nothing may be taken for its bytes.
    pub(super) fn fail_absent(&mut self, key: Key, file: usize) {
        let Some(torrent) = self.torrents.get(key) else { return };
        let path = torrent.path_of(file).display().to_string();
        self.core.disk_errors[DiskOp::Open].add(1);
        self.fail_torrent(key, Error::Io { action: "use", path, reason: "it is not open".into() });
    }

    /// Stops a torrent because of its files: its peers go, the others' do not notice.
    pub(super) fn fail_torrent(&mut self, key: Key, error: Error) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if matches!(torrent.store, Store::Failed) {
            return;
        }
        torrent.totals.set_state(TorrentState::Error);
        let lane = torrent.lane();
        let store = std::mem::replace(&mut torrent.store, Store::Failed);
        let known = match &store {
            Store::Open(open) => open.identities(),
            _ => torrent.known.clone(),
        };
        let have = torrent.swarm.bitfield().clone();
        let is_settled = torrent.finished && torrent.is_confirmed && !torrent.unsynced;
        let had = Box::new(Had { have, known, is_settled });
        self.reports.push_back(Report::Failed(torrent.info_hash, error, had));
        self.release_store(lane, store);
        self.close_peers(key, DisconnectReason::Storage);
        self.drop_pieces(key);
        if let Some(torrent) = self.torrents.get_mut(key) {
            torrent.pieces = OpenPieces::new(torrent.geometry());
            torrent.publish(self.now);
        }
    }
}

/// Whether an error says that some bytes of a file cannot be read, rather than the file as such.
pub(super) fn is_of_medium(error: &io::Error) -> bool {
    let codes = [libc::EIO, libc::EREMOTEIO, libc::ENODATA, libc::EBADMSG, libc::EUCLEAN];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
