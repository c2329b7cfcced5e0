//! Open files on their way out: closing and unmapping take their time, and may hang.
//!
//! Stores that nobody needs any more enter; a thread that may block drops them. Invariant: no file
//! is closed or unmapped on a worker while it runs, however many jobs wait and whatever operation
//! still holds on to it.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use super::blocking::Lane;
use super::table::Key;
use super::torrent::{ServedFile, Store};
use crate::ring::{Driver, Lease};
use crate::sys::file::Identity;
use crate::sys::map::Mapping;

/// Files that were let go of while operations in flight still held on to them, by their disk. They
/// are open, and of that the system has a limit.
pub(super) type Remains = Vec<(Lane, Vec<ServedFile>)>;

impl<D: Driver> Worker<D> {
    /// Closes the files of a torrent; `known` is who they are.
    pub(super) fn close_files(&mut self, key: Key, known: Vec<Option<Identity>>) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.unsynced || !matches!(torrent.store, Store::Open(_)) {
            return;
        }
        let lane = torrent.lane();
        torrent.known = known;
        let store = std::mem::replace(&mut torrent.store, Store::Closed);
        self.release_store(lane, store);
    }

    /// Lets go of open files.
    pub(super) fn release_store(&mut self, lane: Lane, store: Store) {
        let Store::Open(open) = store else { return };
        self.core.mapped_bytes.sub(open.mapped_bytes);
        self.remains.push((lane, open.files.into_iter().flatten().collect()));
        self.close_remains();
    }

    /// Has those files closed that no operation holds on to any more.
    pub(super) fn close_remains(&mut self) {
        let blocking = &self.shared.blocking;
        self.remains.retain_mut(|(lane, files)| {
            let (mut held, mut free) = (Vec::new(), Vec::new());
            for file in files.drain(..) {
                match parts(file) {
                    Ok(parts) => free.push(parts),
                    Err(file) => held.push(file),
                }
            }
            *files = held;
            if !free.is_empty() {
                blocking.drop_there(lane.clone(), free);
            }
            !files.is_empty()
        });
    }
}

/// What may leave the worker of a file that nobody else on it holds.
fn parts(file: ServedFile) -> Result<(OwnedFd, Option<Arc<Mapping>>), ServedFile> {
    let ServedFile { handle, lease, identity } = file;
    let handle = match Rc::try_unwrap(handle) {
        Ok(fd) => fd,
        Err(handle) => return Err(ServedFile { handle, lease, identity }),
    };
    match lease.map(unmapped).transpose() {
        Ok(mapping) => Ok((handle, mapping.flatten())),
        Err(lease) => Err(ServedFile { handle: Rc::new(handle), lease: Some(lease), identity }),
    }
}

/// The mapping of a lease that is the only one.
fn unmapped(lease: Lease) -> Result<Option<Arc<Mapping>>, Lease> {
    match lease {
        Lease::Mapped(mapping) => Rc::try_unwrap(mapping).map(Some).map_err(Lease::Mapped),
        // Memory of our own.
        Lease::Pooled(_) | Lease::Lent(_) => Ok(None),
    }
}
