//! What connections are about: a torrent, or one of which no more than the info-hash is known.
//!
//! A [`Subject`] enters, and the table that it names does what is asked. Invariant: a key of a
//! torrent that has gone finds nothing, whichever it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use super::connection::Subject;
use super::mailbox::Report;
use super::table::Key;
use crate::ring::Driver;
use crate::swarm::{Blocklist, Offender, PeerInit, PeerKey, Refused};
use crate::units::InfoHash;

/// Reports that may wait before one of a node of the DHT, which nobody misses.
const REPORTS_BEFORE_NODES_MAX: usize = 64;

impl<D: Driver> Worker<D> {
    /// Carries out what is decided for whatever something happened to.
    pub(super) fn act_all(&mut self) {
        while let Some(key) = self.dirty_torrents.pop() {
            self.act(key);
        }
        self.act_on_magnets();
    }

    /// Whether a torrent may have more connections as far as it is concerned itself.
    pub(super) fn may_meet_peers(&self, subject: Subject) -> bool {
        match subject {
            Subject::Torrent(key) => self.torrents.get(key).is_some_and(|it| !it.has_failed()),
            Subject::Magnet(key) => self.magnets.get(key).is_some(),
        }
    }

    /// Whether there is room for another connection of a torrent among those of its kind; if not,
    /// those who are of no use are asked to go.
    pub(super) fn has_room_for(&mut self, subject: Subject) -> bool {
        match subject {
            Subject::Torrent(_) => true,
            Subject::Magnet(_) => self.has_room_for_magnets() || self.make_room_for_magnets(),
        }
    }

    pub(super) fn connect_failed(&mut self, torrent: Subject, addr: SocketAddr) {
        match torrent {
            Subject::Torrent(key) => {
                if let Some(torrent) = self.torrents.get_mut(key) {
                    torrent.swarm.handle_connect_failed(self.now, addr);
                }
            }
            Subject::Magnet(key) => {
                if let Some(magnet) = self.magnets.get_mut(key) {
                    magnet.swarm.handle_connect_failed(self.now, addr);
                }
            }
        }
        self.touch_subject(torrent);
    }

    /// Whether a connection that failed may be begun again at once, the other way.
    pub(super) fn may_connect_again(&mut self, torrent: Subject, addr: SocketAddr) -> bool {
        let now = self.now;
        match torrent {
            Subject::Torrent(key) => {
                self.torrents.get(key).is_some_and(|it| it.swarm.may_connect_again(now, addr))
            }
            Subject::Magnet(key) => {
                self.magnets.get_mut(key).is_some_and(|it| it.swarm.may_connect_again(now, addr))
            }
        }
    }

    /// There was no room for a connection that a torrent has asked for: its address is not to blame.
    pub(super) fn connect_postponed(&mut self, subject: Subject, addr: SocketAddr) {
        match subject {
            Subject::Torrent(key) => {
                if let Some(torrent) = self.torrents.get_mut(key) {
                    torrent.swarm.handle_connect_postponed(self.now, addr);
                }
            }
            Subject::Magnet(key) => {
                if let Some(magnet) = self.magnets.get_mut(key) {
                    magnet.swarm.handle_connect_postponed(self.now, addr);
                }
            }
        }
        self.touch_subject(subject);
    }

    pub(super) fn touch_subject(&mut self, subject: Subject) {
        match subject {
            Subject::Torrent(key) => self.touch_torrent(key),
            Subject::Magnet(key) => self.touch_magnet(key),
        }
    }

    /// What a handshake with this info-hash is about, if that is at home here.
    pub(super) fn subject_of(&self, info_hash: &InfoHash) -> Option<Subject> {
        let torrent = self.by_hash.get(info_hash).copied().map(Subject::Torrent);
        torrent.or_else(|| self.magnets.find(info_hash).map(Subject::Magnet))
    }

    pub(super) fn info_hash_of(&self, subject: Subject) -> Option<InfoHash> {
        match subject {
            Subject::Torrent(key) => self.torrents.get(key).map(|it| it.info_hash),
            Subject::Magnet(key) => self.magnets.get(key).map(|it| it.info_hash),
        }
    }

    /// Whether its peers hear of our node of the DHT, and we of theirs.
    pub(super) fn has_dht(&self, subject: Subject) -> bool {
        match subject {
            Subject::Torrent(key) => self.torrents.get(key).is_some_and(|it| it.swarm.has_dht()),
            Subject::Magnet(key) => self.magnets.get(key).is_some_and(|it| it.swarm.has_dht()),
        }
    }

    /// Passes on where a peer has its node of the DHT, unless too much waits to be told already.
    pub(super) fn tell_node(&mut self, addr: SocketAddr) {
        if self.reports.len() < REPORTS_BEFORE_NODES_MAX {
            self.reports.push_back(Report::Node(addr));
        }
    }

    /// Lets a torrent judge a peer; `None` if it takes none.
    pub(super) fn admit(
        &mut self,
        subject: Subject,
        init: PeerInit,
    ) -> Option<Result<PeerKey, Refused>> {
        let now = self.now;
        match subject {
            Subject::Torrent(key) => {
                let torrent = self.torrents.get_mut(key).filter(|torrent| !torrent.has_failed())?;
                Some(torrent.swarm.handle_connected(now, init))
            }
            Subject::Magnet(key) => {
                let has_room = self.has_room_for(subject);
                let magnet = self.magnets.get_mut(key)?;
                if has_room {
                    return Some(magnet.swarm.handle_connected(now, init));
                }
                if init.outgoing {
                    magnet.swarm.handle_connect_postponed(now, init.addr);
                }
                Some(Err(Refused::Full))
            }
        }
    }

    /// Notes the connection of a new peer of a torrent.
    pub(super) fn enter_torrent(&mut self, key: Key, peer: PeerKey, conn: Key) {
        if self.torrents.get_mut(key).is_some_and(|torrent| torrent.enter(peer, conn, self.now)) {
            self.active.push(key);
        }
        self.need_files(key);
    }

    /// Has nothing to do any more with anybody on a list.
    pub(super) fn block(&mut self, list: Arc<Blocklist>) {
        self.budget.set_blocklist(Some(list));
        for key in self.active.clone() {
            if let Some(torrent) = self.torrents.get_mut(key) {
                torrent.swarm.handle_blocklist(self.now);
                self.touch_torrent(key);
            }
        }
        self.block_from_magnets();
    }

    /// Lets nobody of these in any more, and has every torrent with peers close on them.
    pub(super) fn ban(&mut self, bans: &[(Offender, Instant)]) {
        for &(offender, until) in bans {
            self.budget.ban(offender, until);
        }
        for key in self.active.clone() {
            if let Some(torrent) = self.torrents.get_mut(key) {
                torrent.swarm.handle_bans(self.now);
                self.touch_torrent(key);
            }
        }
        self.ban_from_magnets();
    }
}
