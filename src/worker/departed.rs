//! What the last send of a closed connection came to.
//!
//! Sends that were in flight when their connections closed enter, with the torrents that they were
//! for; what the kernel had taken of them by then is counted. Invariant: there is an entry only
//! while its operation is under way, and at most [`LAST_SENDS_MAX`] of them.

use std::collections::HashMap;
use std::io;

use super::Worker;
use super::connection::Sending;
use super::table::Key;
use crate::metrics::{Core, SendPath};
use crate::ring::Driver;

/// Sends of closed connections whose ends are awaited; what was sent by further ones stays
/// uncounted.
const LAST_SENDS_MAX: usize = 4096;

/// The block data of a send whose connection is gone.
struct LastSend {
    torrent: Key,
    payload_left: u64,
    read_left: u64,
}

/// The sends under way of connections that are gone, by those.
#[derive(Default)]
pub(super) struct LastSends(HashMap<Key, LastSend>);

impl LastSends {
    /// A connection closes while something is sent on it to a peer of `torrent`.
    pub(super) fn keep(&mut self, conn: Key, torrent: Key, sending: &Sending) {
        let &Sending { payload_left, read_left, .. } = sending;
        if payload_left > 0 && self.0.len() < LAST_SENDS_MAX {
            self.0.insert(conn, LastSend { torrent, payload_left, read_left });
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<D: Driver> Worker<D> {
    /// The send on a connection that is gone has ended: its peer has had what was taken, and may
    /// have left because it needed nothing else.
    pub(super) fn count_last_send(&mut self, conn: Key, result: &io::Result<usize>, held: bool) {
        let Some(last) = self.last_sends.0.remove(&conn) else { return };
        let Ok(count) = *result else { return };
        let payload = last.payload_left.min(count as u64);
        let read = last.read_left.min(payload);
        count_sent(&self.core, payload, read, held);
        let Some(torrent) = self.torrents.get_mut(last.torrent) else { return };
        torrent.swarm.handle_last_sent(self.now, payload);
        if torrent.becomes_active() {
            self.active.push(last.torrent);
        }
    }
}

/// Counts block data that the kernel has taken, by the way that it took.
pub(super) fn count_sent(core: &Core, payload: u64, read: u64, held: bool) {
    let mapped = if held { SendPath::ZeroCopy } else { SendPath::Copy };
    core.sent_payload_bytes[SendPath::Read].add(read);
    core.sent_payload_bytes[mapped].add(payload - read);
}
