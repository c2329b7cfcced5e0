//! Who is banned, in every torrent of every worker.
//!
//! What a worker found out enters; every worker's list hears of it. Invariant: nobody is banned here
//! but by the word of a worker, whose word is a hash.

use std::time::Instant;

use super::engine::Engine;
use crate::swarm::Offender;
use crate::worker::mailbox::Letter;

impl Engine {
    /// A worker has banned somebody: so do all. Its own other torrents hear of it this way, too.
    pub(super) fn on_ban(&mut self, offender: Offender, until: Instant) {
        self.bans.insert(offender, until);
        for worker in 0..self.loads.len() {
            self.post(worker, Letter::Ban(vec![(offender, until)]));
        }
    }

    /// Addresses that are banned now.
    pub fn banned_count(&mut self, now: Instant) -> usize {
        self.bans.expire(now);
        self.bans.len()
    }
}
