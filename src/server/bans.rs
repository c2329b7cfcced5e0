//! Who is banned, in every torrent of every worker, and in the next run.
//!
//! What a worker found out enters, and what an earlier run left; every worker's list hears of it, and
//! the state is told. Invariant: nobody is banned here but by the word of a worker, whose word is a
//! hash; of an earlier run's bans none lasts longer than one that is new.

use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::control::state::StoredBan;
use crate::swarm::{BAN_TTL, BANS_MAX, Bans, Offender};
use crate::sys::clock;
use crate::worker::mailbox::Letter;

/// Who is banned.
#[derive(Debug, Default)]
pub(super) struct BanList {
    bans: Bans,
    /// Those that the state does not know yet, at most [`BANS_MAX`].
    fresh: Vec<StoredBan>,
}

impl Engine {
    /// A worker has banned somebody: so do all. Its own other torrents hear of it this way, too.
    pub(super) fn on_ban(&mut self, offender: Offender, until: Instant) {
        self.ban_everywhere(&[(offender, until)]);
        self.note_ban(offender, until);
    }

    /// Keeps a ban for the state, without telling anybody.
    pub(super) fn note_ban(&mut self, offender: Offender, until: Instant) {
        // A local address with its port may be anybody's next time.
        if let Offender::Host(ip) = offender
            && self.bans.fresh.len() < BANS_MAX
        {
            let left = until.saturating_duration_since(clock::now()).as_secs();
            let left = i64::try_from(left).unwrap_or(i64::MAX);
            self.bans
                .fresh
                .push(StoredBan { ip, until: clock::wall_seconds().saturating_add(left) });
        }
    }

    fn ban_everywhere(&mut self, bans: &[(Offender, Instant)]) {
        for &(offender, until) in bans {
            self.bans.bans.insert(offender, until);
        }
        for worker in 0..self.loads.len() {
            self.post(worker, Letter::Ban(bans.to_vec()));
        }
    }

    /// Takes up the bans of an earlier run, as far as they are not over.
    pub fn restore_bans(&mut self, stored: &[StoredBan]) {
        let (now, wall_now) = (clock::now(), clock::wall_seconds());
        let left = |ban: &StoredBan| {
            let seconds = u64::try_from(ban.until.saturating_sub(wall_now)).ok()?;
            // The clock may have been set back.
            Some(Duration::from_secs(seconds).min(BAN_TTL)).filter(|left| !left.is_zero())
        };
        let bans = stored.iter().filter_map(|ban| Some((Offender::Host(ban.ip), now + left(ban)?)));
        let bans: Vec<_> = bans.collect();
        if !bans.is_empty() {
            self.ban_everywhere(&bans);
        }
    }

    /// Bans that the state has to hear of.
    pub fn take_fresh_bans(&mut self) -> Vec<StoredBan> {
        std::mem::take(&mut self.bans.fresh)
    }

    /// Takes bans back that the state has no room for now.
    pub fn put_bans_back(&mut self, bans: Vec<StoredBan>) {
        let room = BANS_MAX.saturating_sub(self.bans.fresh.len());
        self.bans.fresh.extend(bans.into_iter().take(room));
    }

    /// Addresses that are banned now.
    pub fn banned_count(&mut self, now: Instant) -> usize {
        self.bans.bans.expire(now);
        self.bans.bans.len()
    }
}
