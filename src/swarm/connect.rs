//! Peers come and go: admission, greeting, farewell, and addresses to try.
//!
//! Handshaken connections and addresses enter; a key or a refusal leaves. Invariant: whatever a
//! peer held (requests, slot, counts) is given back when it goes.
#![forbid(unsafe_code)]

use super::bans::{Offender, is_local};
use super::options::{CONTACTS_MAX, RECENT_MAX, RECENT_TTL};
use super::peer::{Error, Peer, PeerInit, PeerKey, Pieces, Refused};
use super::{Action, Source, Swarm, key_of};
use crate::units::PeerId;
use crate::wire::Message;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Two connections made towards each other at the same time: both sides keep the one that the
/// smaller peer id started, if the other one is not older than this.
const CROSSING_MAX: Duration = Duration::from_secs(10);
/// A connection that lasted this long shows that the address is worth another try soon.
const WORTHWHILE: Duration = Duration::from_secs(60);

/// Whether a new connection with somebody replaces the one that there is, `outgoing` or not and of
/// this age, because both crossed.
pub(super) fn wins_crossing(
    ours: &PeerId,
    new: &PeerInit,
    old_outgoing: bool,
    age: Duration,
) -> bool {
    let is_crossing = old_outgoing != new.outgoing && age < CROSSING_MAX;
    is_crossing && new.outgoing == (*ours < new.peer_id)
}

impl Swarm {
    /// Takes in a peer whose handshake is through, and greets it.
    ///
    /// # Errors
    /// Why it is not wanted; the caller closes the connection, no other call is needed.
    pub fn handle_connected(&mut self, now: Instant, init: PeerInit) -> Result<PeerKey, Refused> {
        if init.outgoing {
            self.contacts.connected(init.addr);
        }
        if let Err(refused) = self.admit(now, &init) {
            if init.outgoing {
                self.contacts.refused(now, init.addr, &refused);
            }
            return Err(refused);
        }
        Ok(self.seat(now, init, None))
    }

    /// Gives a peer its place. `greeted` has what waits to be sent to one that was greeted already,
    /// as by somebody who has nothing.
    fn seat(&mut self, now: Instant, init: PeerInit, greeted: Option<Vec<u8>>) -> PeerKey {
        let mut peer = Peer::new(now, init, self.rng.u64(..));
        if init.outgoing {
            peer.source = self.contacts.source_of(init.addr).unwrap_or(Source::Operator);
        }
        self.shared.seat(peer.source);
        let remembered = self.recent.get(&Offender::of(init.addr));
        peer.uploaded_recently = remembered.map_or(0, |&(bytes, _)| bytes);
        match greeted {
            None => self.greet(&mut peer),
            Some(control) => {
                peer.control = control;
                self.have.iter().for_each(|piece| peer.say(Message::Have(piece)));
                if peer.extensions {
                    self.say_extensions(&mut peer);
                }
            }
        }
        let listens_at = peer.listen_addr();
        let key = key_of(self.peers.insert(peer));
        self.relist(None, listens_at);
        self.by_addr.insert(init.addr, key);
        self.by_id.insert(init.peer_id, key);
        self.start_clocks(now);
        self.wake(key);
        self.settle(now);
        key
    }

    /// Takes in a peer that was greeted before there was a swarm; `control` waits to be sent.
    ///
    /// # Errors
    /// As [`Swarm::handle_connected`].
    pub(super) fn adopt_connection(
        &mut self,
        now: Instant,
        init: PeerInit,
        control: Vec<u8>,
    ) -> Result<PeerKey, Refused> {
        self.admit(now, &init)?;
        Ok(self.seat(now, init, Some(control)))
    }

    fn admit(&mut self, now: Instant, init: &PeerInit) -> Result<(), Refused> {
        let local = is_local(init.addr.ip());
        if init.peer_id == self.options.peer_id {
            return Err(Refused::Ourselves);
        }
        if self.shared.blocks(init.addr.ip()) {
            return Err(Refused::Blocked);
        }
        if self.shared.is_banned(now, init.addr) {
            return Err(Refused::Banned);
        }
        let is_welcome =
            || self.options.welcomes(init.addr.ip()) || self.contacts.is_neighbour(init.addr.ip());
        if local && !init.outgoing && !is_welcome() {
            return Err(Refused::LocalAddress);
        }
        if self.by_addr.contains_key(&init.addr) {
            return Err(Refused::Duplicate);
        }
        if init.outgoing && !self.expects(init.addr) {
            return Err(Refused::Private);
        }
        if let Some(&old) = self.by_id.get(&init.peer_id) {
            let wins = self.peer(old).is_some_and(|peer| {
                let age = now.saturating_duration_since(peer.connected_at);
                wins_crossing(&self.options.peer_id, init, peer.outgoing, age)
            });
            if !wins {
                return Err(Refused::Duplicate);
            }
            self.close(old, Error::Replaced);
        }
        let host = Offender::of(init.addr);
        let is_of_host = |addr: &&SocketAddr| Offender::of(**addr) == host;
        let from_there = || self.by_addr.keys().filter(is_of_host).count();
        if !local && from_there() >= self.options.connections_per_host_max {
            return Err(Refused::FullForAddress);
        }
        // Those that give way are there until the turn ends.
        if self.peers.len() >= self.options.connections_max && !self.make_room(now) {
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// The first messages: what we have, what we can, what may be asked for in spite of a choke.
    fn greet(&self, peer: &mut Peer) {
        if peer.fast && self.have.is_complete() {
            peer.say(Message::HaveAll);
        } else if peer.fast && self.have.count() == 0 {
            peer.say(Message::HaveNone);
        } else if self.have.count() > 0 {
            peer.say(Message::Bitfield(&self.have.to_wire()));
        }
        if peer.extensions {
            self.say_extensions(peer);
        }
        if let Some(port) = self.options.dht_port.filter(|_| peer.dht) {
            peer.say(Message::Port(port));
        }
        self.offer_fast_set(peer);
    }

    /// The connection is gone, for whatever reason; its key is free from now on.
    pub fn handle_disconnected(&mut self, now: Instant, key: PeerKey) {
        if self.peer(key).is_none() {
            return;
        }
        self.take_back_all(key, false);
        let peer = self.peers.remove(key.0 as usize);
        self.shared.unseat(peer.source);
        match &peer.pieces {
            Pieces::All => self.counts.have_all -= 1,
            Pieces::Some(pieces) => {
                if let Some(availability) = &mut self.availability {
                    availability.remove_all(pieces);
                }
            }
            Pieces::None => {}
        }
        self.counts.interested -= u32::from(peer.peer_interested);
        self.counts.interesting -= u32::from(peer.am_interested);
        if !peer.am_choking {
            self.counts.unchoked -= 1;
            self.shared.unchoked.set(self.shared.unchoked.get().saturating_sub(1));
        }
        self.relist(peer.listen_addr(), None);
        if self.by_addr.get(&peer.addr) == Some(&key) {
            self.by_addr.remove(&peer.addr);
        }
        if self.by_id.get(&peer.id) == Some(&key) {
            self.by_id.remove(&peer.id);
        }
        self.up.leave(key);
        self.down.leave(key);
        self.idle.retain(|&other| other != key);
        self.actions.retain(|action| {
            !matches!(action, Action::Transmit(other) | Action::Close(other, _) if *other == key)
        });
        self.remember(now, &peer);
        let lasted = now.saturating_duration_since(peer.connected_at) >= WORTHWHILE;
        // Who came to us is met where it listens.
        let addr = peer.listen_addr().unwrap_or(peer.addr);
        if lasted || peer.uploaded + peer.downloaded > 0 {
            self.contacts.worthwhile(addr);
        }
        if self.contacts.is_trying(addr) {
            // What comes of that attempt is told when it ends.
        } else if self.is_finished() && peer.is_seed() {
            self.contacts.is_seed(addr);
        } else {
            self.contacts.failed(now, addr);
        }
        if !peer.am_choking {
            self.fill_slots(now);
        }
        self.settle(now);
    }

    /// Who comes back is no newcomer to the choker.
    fn remember(&mut self, now: Instant, peer: &Peer) {
        let bytes = peer.uploaded.saturating_add(peer.uploaded_recently);
        if bytes == 0 {
            return;
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_first();
        }
        self.recent.insert(Offender::of(peer.addr), (bytes, now + RECENT_TTL));
    }

    /// Learns addresses that may be peers of this torrent.
    pub fn handle_contacts(&mut self, now: Instant, source: Source, addrs: &[SocketAddr]) {
        self.learn(now, source, addrs);
        self.settle(now);
    }

    pub(super) fn learn(&mut self, now: Instant, source: Source, addrs: &[SocketAddr]) {
        if self.options.private && !source.suits_private() {
            return;
        }
        for addr in addrs.iter().take(CONTACTS_MAX) {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            if self.options.may_try(source, addr.ip()) && !self.by_addr.contains_key(&addr) {
                let tie = self.rng.u32(..);
                self.contacts.insert(now, source, addr, tie, &self.shared);
            }
        }
        self.connect_due(now);
    }

    /// The list of whom we have nothing to do with was changed: closes those whom it names. They and
    /// addresses that it names are passed over when they are due.
    pub fn handle_blocklist(&mut self, now: Instant) {
        for key in self.keys() {
            if self.peer(key).is_some_and(|peer| self.shared.blocks(peer.addr.ip())) {
                self.close(key, Error::Blocked);
            }
        }
        self.settle(now);
    }

    /// An address given out by `Action::Connect` could not be connected to, or its handshake
    /// failed.
    pub fn handle_connect_failed(&mut self, now: Instant, addr: SocketAddr) {
        self.contacts.failed(now, addr);
        self.settle(now);
    }

    /// Whether an address given out by `Action::Connect` may be connected to once more at once,
    /// another way: it counts as one more try, and fails if not.
    pub fn may_connect_again(&self, now: Instant, addr: SocketAddr) -> bool {
        self.contacts.may_connect_again(now, addr, &self.shared)
    }

    /// An address given out by `Action::Connect` was not tried, for want of room elsewhere: it is
    /// not to blame, and comes again.
    pub fn handle_connect_postponed(&mut self, now: Instant, addr: SocketAddr) {
        self.contacts.postponed(now, addr);
        self.settle(now);
    }

    /// Whether a connection with `addr`, begun by us, may go on as far as privacy is concerned: in a
    /// private torrent (BEP 27) with those whom a tracker or whoever runs this has named.
    pub fn expects(&self, addr: SocketAddr) -> bool {
        !self.options.private || self.contacts.suits_private(addr)
    }

    /// Whether another connection may be tried.
    pub(super) fn has_room(&self) -> bool {
        self.peers.len() + self.contacts.trying_count() < self.options.connections_max
    }

    pub(super) fn connect_due(&mut self, now: Instant) {
        while self.has_room()
            && let Some(addr) = self.contacts.take(now, &self.shared)
        {
            if self.by_addr.contains_key(&addr) {
                self.contacts.connected(addr);
            } else {
                self.actions.push_back(Action::Connect(addr));
            }
        }
    }

    /// Starts the timers that only run while somebody is connected.
    fn start_clocks(&mut self, now: Instant) {
        self.next_round.get_or_insert(now + super::choker::ROUND);
        self.start_seconds(now);
    }
}
