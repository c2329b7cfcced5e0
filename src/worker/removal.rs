//! Torrents that leave: nothing of theirs may reach their files once they are gone.
//!
//! The order to forget a torrent enters, the word that it is gone leaves. What the kernel has
//! taken cannot be taken back, and neither can the work of a thread that opens and makes files: a
//! check that began before their end would vouch for bytes that are changed behind its back.
//! Invariant: every order is answered, and not before the last write of the torrent has ended.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use super::Worker;
use super::mailbox::Report;
use super::table::Key;
use super::torrent::{Store, chunk_len};
use crate::metrics::DisconnectReason;
use crate::ring::Driver;
use crate::units::InfoHash;

/// What is under way of torrents that were removed, or may be.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Torrents that were removed and not said to be gone.
    leaving: Vec<(Key, InfoHash)>,
    /// Torrents whose files a thread is opening.
    opening: HashSet<Key>,
}

impl Removals {
    /// A thread was asked to open the files of a torrent.
    pub(super) fn begin_open(&mut self, torrent: Key) {
        self.opening.insert(torrent);
    }

    /// It has done so, or failed.
    pub(super) fn end_open(&mut self, torrent: Key) {
        self.opening.remove(&torrent);
    }
}

impl<D: Driver> Worker<D> {
    /// Forgets a torrent; [`Report::Removed`] follows once its files are left alone.
    pub(super) fn remove_torrent(&mut self, info_hash: &InfoHash) {
        self.remove_magnet(info_hash);
        let Some(key) = self.by_hash.remove(info_hash) else {
            return self.reports.push_back(Report::Removed(*info_hash));
        };
        self.close_peers(key, DisconnectReason::TorrentStopped);
        self.drop_pieces(key);
        if let Some(mut torrent) = self.torrents.remove(key) {
            let lane = torrent.lane();
            let store = std::mem::replace(&mut torrent.store, Store::Closed);
            self.release_store(lane, store);
            torrent.publish(self.now);
            for gauge in [&torrent.totals.peers, &torrent.totals.up_rate, &torrent.totals.down_rate]
            {
                gauge.store(0, Relaxed);
            }
            let geometry = torrent.geometry();
            self.chunks.forget(key.slot, |chunk| chunk_len(geometry, chunk));
            // What waits for memory may have it now.
            self.wake_starved();
        }
        self.removals.leaving.push((key, *info_hash));
    }

    /// Says of which torrents nothing is under way to the disk any more.
    pub(super) fn confirm_removals(&mut self) {
        if self.removals.leaving.is_empty() {
            return;
        }
        let mut leaving = std::mem::take(&mut self.removals.leaving);
        leaving.retain(|&(key, info_hash)| {
            let is_gone = !self.may_touch_files(key);
            if is_gone {
                self.reports.push_back(Report::Removed(info_hash));
            }
            !is_gone
        });
        self.removals.leaving = leaving;
    }

    /// Whether the files of a torrent that was removed may still be changed by it.
    fn may_touch_files(&self, key: Key) -> bool {
        self.removals.opening.contains(&key)
            || self.in_place.is_writing_any_of(key)
            || self
                .writes
                .keys()
                .into_iter()
                .any(|run| self.writes.get(run).is_some_and(|run| run.torrent() == key))
    }
}
