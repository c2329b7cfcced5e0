//! The thread that writes the state, a group of orders at a time.
//!
//! Orders enter, answers leave. Invariant: torrent files are on the device before the transaction
//! that names them, and go after the one that does not any more; what nobody gives a second time,
//! totals and bans, goes with the next group when its own failed.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::sync::{mpsc, oneshot};

use super::database::Database;
use super::files::{Keepsake, TorrentFiles};
use super::{GROUP_LEN_MAX, Order, OrderError, StoredBan, Totals};
use crate::swarm::BANS_MAX;
use crate::sys::clock;
use crate::units::InfoHash;

/// The thread that writes.
pub(super) struct Writer {
    pub(super) database: Database,
    pub(super) files: TorrentFiles,
    pub(super) nodes: Keepsake,
    pub(super) queue: mpsc::Receiver<Order>,
    pub(super) totals_wait: Arc<AtomicBool>,
    /// Totals of groups that failed: nobody gives them a second time.
    pub(super) unwritten: BTreeMap<InfoHash, Totals>,
    /// Bans of such groups, at most [`BANS_MAX`].
    pub(super) unwritten_bans: Vec<StoredBan>,
    pub(super) _lock: File,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut closing = None;
        while closing.is_none()
            && let Some(first) = self.queue.blocking_recv()
        {
            let mut group = vec![first];
            while group.len() < GROUP_LEN_MAX
                && !matches!(group.last(), Some(Order::Close(_)))
                && let Ok(order) = self.queue.try_recv()
            {
                group.push(order);
            }
            self.totals_wait.store(false, Relaxed);
            closing = self.write(group);
        }
        // The lock goes before the answer, so that whoever closed may open again at once.
        drop(self);
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// Writes one group and answers; gives the answer that has to wait for the end.
    pub(super) fn write(&mut self, group: Vec<Order>) -> Option<oneshot::Sender<()>> {
        let result = self.try_write(&group);
        if let Err(error) = &result {
            tracing::error!(%error, "the state could not be written");
        }
        let mut closing = None;
        for order in group {
            match order {
                Order::Add(_, answer)
                | Order::AddMagnet(_, answer)
                | Order::Remove(_, answer)
                | Order::Select(_, _, answer)
                | Order::Setting(_, _, answer) => {
                    // Nobody listens any more if the caller was cancelled; the work is done.
                    let _ = answer.send(result.clone());
                }
                Order::Totals(totals) if result.is_err() => {
                    self.unwritten.extend(totals.into_iter().map(|it| (it.info_hash, it)));
                }
                Order::Bans(bans) if result.is_err() => {
                    let room = BANS_MAX.saturating_sub(self.unwritten_bans.len());
                    self.unwritten_bans.extend(bans.into_iter().take(room));
                }
                Order::Totals(_) | Order::Bans(_) => {}
                // They have nothing to do with what else the group holds.
                Order::Nodes(bytes) => {
                    if let Err(error) = self.nodes.write(&bytes) {
                        tracing::warn!(%error, "nodes of the DHT are not saved");
                    }
                }
                Order::Close(done) => closing = Some(done),
            }
        }
        if result.is_ok() {
            self.unwritten.clear();
            self.unwritten_bans.clear();
        }
        closing
    }

    fn try_write(&mut self, group: &[Order]) -> Result<(), OrderError> {
        let mut final_state = BTreeMap::new();
        for order in group {
            match order {
                Order::Add(torrent, _) => final_state.insert(torrent.info_hash, Some(torrent)),
                Order::Remove(info_hash, _) => final_state.insert(*info_hash, None),
                Order::AddMagnet(..)
                | Order::Select(..)
                | Order::Totals(_)
                | Order::Bans(_)
                | Order::Setting(..)
                | Order::Nodes(_)
                | Order::Close(_) => None,
            };
        }
        let added = final_state.values().flatten();
        let written =
            self.files.write(added.map(|torrent| (&torrent.info_hash, &*torrent.metainfo)));
        let committed = written
            .map_err(|error| OrderError::Write(error.to_string()))
            .and_then(|()| self.commit(group));
        let gone = final_state.iter().filter(|(_, torrent)| torrent.is_none());
        match committed {
            Ok(()) => {
                let removed = gone.map(|(info_hash, _)| info_hash);
                if let Err(error) = self.files.remove_all(removed) {
                    // The row is gone: the next start removes the file.
                    tracing::warn!(%error, "the file of a removed torrent is still there");
                }
                Ok(())
            }
            // Files of torrents without a row go at the next start.
            Err(error) => Err(error),
        }
    }

    fn commit(&mut self, group: &[Order]) -> Result<(), OrderError> {
        let write = |error: rusqlite::Error| OrderError::Write(error.to_string());
        let transaction = self.database.begin().map_err(write)?;
        // They are older than all orders of the group.
        self.unwritten.values().try_for_each(|each| transaction.total(each)).map_err(write)?;
        if !self.unwritten_bans.is_empty() {
            transaction.ban(clock::wall_seconds(), &self.unwritten_bans).map_err(write)?;
        }
        for order in group {
            match order {
                Order::Add(torrent, _) => transaction.add(torrent),
                Order::AddMagnet(magnet, _) => transaction.add_magnet(magnet),
                Order::Remove(info_hash, _) => transaction.remove(info_hash),
                Order::Select(info_hash, wanted, _) => transaction.select(info_hash, wanted),
                Order::Totals(totals) => totals.iter().try_for_each(|each| transaction.total(each)),
                Order::Bans(bans) => transaction.ban(clock::wall_seconds(), bans),
                Order::Setting(key, value, _) => transaction.set(key, value),
                Order::Nodes(_) | Order::Close(_) => Ok(()),
            }
            .map_err(write)?;
        }
        transaction.commit().map_err(write)
    }
}
