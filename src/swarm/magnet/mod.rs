//! A torrent of which no more than the info-hash is known: peers are met, and its metadata fetched
//! from them (BEP 9), until a [`Swarm`](super::Swarm) can be made of it.
//!
//! Connections, messages and addresses enter as with a swarm; connects, bytes and at last the
//! metadata leave, and [`MagnetSwarm::into_swarm`] carries the connections over. What a peer says
//! about its pieces cannot be judged before the torrent's size is known: it is kept as it came, and
//! judged then, as libtorrent and Transmission do; connecting anew, as aria2 does, would cost every
//! peer a round trip and many their place. Who says more than is kept is closed at that moment and
//! met again.
//!
//! Invariant: nothing is served and nothing is asked for but metadata; at most
//! [`MAGNET_PEERS_MAX`] peers are connected, and what they said takes at most [`SAID_LEN_MAX`]
//! bytes in all.
#![forbid(unsafe_code)]

mod carry;
mod faults;
mod fetch;
mod memory;
mod places;
#[cfg(test)]
mod tests;

use slab::Slab;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::bans::Offender;
use super::contacts::Contacts;
use super::extension::{METADATA_ID, PEX_ID};
use super::message::NUISANCE_SECONDS;
use super::options::Shared;
use super::options::{
    BAN_TTL, CONTACTS_MAX, CONTROL_LEN_MAX, INVALID_REQUESTS_MAX, NUISANCES_PER_SECOND_MAX,
};
use super::pex::PexIn;
use super::{Error, Options, PeerInit, PeerKey, Refused, Source, key_of};
use crate::wire::{
    EXTENSION_HANDSHAKE_ID, ExtensionHandshake, METADATA_NAME, Message, MetadataMessage, PEX_NAME,
    encode, encode_extension_handshake,
};
pub use carry::Carried;
use fetch::{Fetch, Outcome};
pub(super) use memory::METADATA_BYTES_MAX;
use memory::{Held, SAID_BYTES_MAX};

/// Peers of one torrent that are connected while its metadata is fetched.
pub const MAGNET_PEERS_MAX: usize = 50;
/// Bytes of what all of them said about their pieces.
pub const SAID_LEN_MAX: usize = 4 << 20;
/// How often signs of life are looked for and given.
const ROUND: Duration = Duration::from_secs(10);

/// What the caller has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MagnetAction {
    /// Call `poll_transmit` for the peer as soon as its connection can take bytes.
    Transmit(PeerKey),
    /// Close the connection, then call `handle_disconnected`.
    Close(PeerKey, Error),
    /// Connect; then `handle_connected` or `handle_connect_failed`.
    Connect(SocketAddr),
    /// The peer of this address says that it has a node of the DHT there.
    Node(SocketAddr),
    /// The offender is banned until then, as [`super::Action::Ban`] says.
    Ban(Offender, Instant),
    /// The `info` dictionary, whose SHA-1 is the info-hash: make a torrent of it, then call
    /// `into_swarm`. Comes once.
    Metadata(Vec<u8>),
}

struct Peer {
    init: PeerInit,
    source: Source,
    connected_at: Instant,
    last_heard_at: Instant,
    last_sent_at: Instant,
    closing: bool,
    transmit_due: bool,
    control: Vec<u8>,
    /// Its id for `ut_metadata`; 0 if it has none.
    metadata_id: u8,
    choking: bool,
    interested: bool,
    /// Messages to judge later, as they came; `None` if they were too many.
    said: Option<Vec<u8>>,
    pex: PexIn,
    nuisances: u32,
    invalid_requests: u32,
}

/// A torrent without metadata, and its peers.
pub struct MagnetSwarm {
    options: Options,
    shared: Rc<Shared>,
    peers: Slab<Peer>,
    contacts: Contacts,
    fetch: Fetch,
    is_done: bool,
    said_len: usize,
    said_held: Held,
    actions: VecDeque<MagnetAction>,
    rng: fastrand::Rng,
    next_round: Option<Instant>,
}

impl MagnetSwarm {
    /// A torrent of which `Options::info_hash` is known; limits and identity are those that its
    /// swarm will have.
    pub fn new(options: Options, shared: Rc<Shared>) -> Self {
        let mut rng = fastrand::Rng::with_seed(options.seed);
        Self {
            fetch: Fetch::new(options.info_hash, rng.u64(..), Rc::clone(&shared)),
            said_held: Held::new(Rc::clone(&shared), |shared| &shared.said_bytes),
            options,
            shared,
            peers: Slab::new(),
            contacts: Contacts::default(),
            is_done: false,
            said_len: 0,
            actions: VecDeque::new(),
            rng,
            next_round: None,
        }
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<MagnetAction> {
        let action = self.actions.pop_front()?;
        if let MagnetAction::Transmit(key) = action
            && let Some(peer) = self.peers.get_mut(key.0 as usize)
        {
            peer.transmit_due = false;
        }
        Some(action)
    }

    /// Whether peers are told of our node of the DHT, and theirs is taken.
    pub fn has_dht(&self) -> bool {
        self.options.dht_port.is_some()
    }

    /// When `handle_timeout` has to be called, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_done {
            // Those who are connected go on with the torrent: they get signs of life until then.
            return self.next_round;
        }
        let contact = self.has_room().then(|| self.contacts.next_at()).flatten();
        [contact, self.fetch.next_at(), self.next_round].into_iter().flatten().min()
    }

    /// Peers that are connected.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// Peers that claim to have the metadata.
    pub fn source_count(&self) -> usize {
        self.peers.iter().filter(|&(slot, _)| self.fetch.is_source(key_of(slot))).count()
    }

    /// Bytes of metadata that have come, also of attempts that were given up, of peers that are not
    /// known to have lied: it grows as long as there is progress.
    pub fn accepted(&self) -> u64 {
        self.fetch.accepted()
    }

    /// Blocks of metadata that have come, and how many there are of the length that is furthest;
    /// 0 if nobody has claimed any.
    pub fn progress(&self) -> (u32, u32) {
        self.fetch.progress()
    }

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
        let mut control = Vec::new();
        // BEP 6 wants one of three words first; it binds us to nothing later.
        if init.fast {
            encode(&Message::HaveNone, &mut control);
        }
        if init.extensions {
            encode_extension_handshake(&self.introduction(&init), &mut control);
        }
        if let Some(port) = self.options.dht_port.filter(|_| init.dht) {
            encode(&Message::Port(port), &mut control);
        }
        let named = self.contacts.source_of(init.addr).unwrap_or(Source::Operator);
        let source = if init.outgoing { named } else { Source::Incoming };
        self.shared.seat(source);
        let key = key_of(self.peers.insert(Peer {
            init,
            source,
            connected_at: now,
            last_heard_at: now,
            last_sent_at: now,
            closing: false,
            transmit_due: false,
            control,
            metadata_id: 0,
            choking: true,
            interested: false,
            said: Some(Vec::new()),
            pex: PexIn::default(),
            nuisances: 0,
            invalid_requests: 0,
        }));
        self.next_round.get_or_insert(now + ROUND);
        self.wake(key);
        Ok(key)
    }

    fn introduction(&self, init: &PeerInit) -> ExtensionHandshake {
        let mut m = self.options.extensions.clone();
        m.push((METADATA_NAME.to_vec(), METADATA_ID));
        m.extend(self.options.pex.then(|| (PEX_NAME.to_vec(), PEX_ID)));
        ExtensionHandshake {
            m,
            v: Some(self.options.client.clone()),
            reqq: Some(super::REQUEST_QUEUE_MAX),
            yourip: Some(init.addr.ip().to_canonical()),
            p: self.options.listen_port,
            ..ExtensionHandshake::default()
        }
    }

    /// The connection is gone, for whatever reason; its key is free from now on.
    pub fn handle_disconnected(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peers.try_remove(key.0 as usize) else { return };
        self.shared.unseat(peer.source);
        self.said_len -= peer.said.as_ref().map_or(0, Vec::len);
        self.said_held.set(self.said_len);
        self.fetch.handle_gone(now, key, !peer.closing);
        self.actions.retain(|action| {
            !matches!(action, MagnetAction::Transmit(other) | MagnetAction::Close(other, _)
                if *other == key)
        });
        if !self.contacts.is_trying(peer.init.addr) {
            self.contacts.failed(now, peer.init.addr);
        }
        self.go_on(now);
    }

    /// Learns addresses that may be peers of this torrent.
    pub fn handle_contacts(&mut self, now: Instant, source: Source, addrs: &[SocketAddr]) {
        if self.options.private && !source.suits_private() {
            return;
        }
        for addr in addrs.iter().take(CONTACTS_MAX) {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            if self.options.may_try(source, addr.ip()) {
                let tie = self.rng.u32(..);
                self.contacts.insert(now, source, addr, tie, &self.shared);
            }
        }
        self.connect_due(now);
    }

    /// An address given out by `Connect` could not be connected to, or its handshake failed.
    pub fn handle_connect_failed(&mut self, now: Instant, addr: SocketAddr) {
        self.contacts.failed(now, addr);
    }

    /// [`Swarm::may_connect_again`](crate::swarm::Swarm::may_connect_again).
    pub fn may_connect_again(&self, now: Instant, addr: SocketAddr) -> bool {
        self.contacts.may_connect_again(now, addr, &self.shared)
    }

    /// An address given out by `Connect` was not tried, for want of room elsewhere: it is not to
    /// blame, and comes again.
    pub fn handle_connect_postponed(&mut self, now: Instant, addr: SocketAddr) {
        self.contacts.postponed(now, addr);
    }

    fn has_room(&self) -> bool {
        self.peers.len() + self.contacts.trying_count() < self.peers_max()
    }

    fn connect_due(&mut self, now: Instant) {
        while !self.is_done
            && self.has_room()
            && let Some(addr) = self.contacts.take(now, &self.shared)
        {
            self.actions.push_back(MagnetAction::Connect(addr));
        }
    }

    /// Takes one message of a peer. Blocks cannot have been asked for: the caller closes a
    /// connection that sends one.
    ///
    /// # Errors
    /// The peer broke a rule: the caller closes the connection and calls `handle_disconnected`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        key: PeerKey,
        message: Message<'_>,
    ) -> Result<(), Error> {
        let Some(peer) = self.peers.get_mut(key.0 as usize).filter(|peer| !peer.closing) else {
            return Ok(());
        };
        peer.last_heard_at = now;
        let (fast, extensions) = (peer.init.fast, peer.init.extensions);
        match message {
            Message::Choke | Message::Unchoke => {
                peer.choking = message == Message::Choke;
                peer.nuisance()
            }
            Message::Interested | Message::NotInterested => {
                peer.interested = message == Message::Interested;
                peer.nuisance()
            }
            Message::Port(port) => {
                let is_used = std::mem::take(&mut peer.init.dht);
                if is_used && self.options.dht_port.is_some() {
                    let ip = peer.init.addr.ip().to_canonical();
                    self.actions.push_back(MagnetAction::Node(SocketAddr::new(ip, port)));
                }
                peer.nuisance()
            }
            Message::KeepAlive | Message::Cancel(_) => peer.nuisance(),
            Message::Have(_) | Message::Bitfield(_) => self.keep(key, message),
            Message::Extended { .. } if !extensions => Err(Error::NotNegotiated),
            Message::Extended { id, payload } => self.on_extended(now, key, id, payload),
            Message::HaveAll
            | Message::HaveNone
            | Message::AllowedFast(_)
            | Message::Suggest(_)
            | Message::Reject(_)
                if !fast =>
            {
                Err(Error::NotNegotiated)
            }
            Message::HaveAll | Message::HaveNone | Message::AllowedFast(_) => {
                self.keep(key, message)
            }
            Message::Suggest(_) | Message::Reject(_) => peer.nuisance(),
            Message::Request(block) => {
                peer.invalid_requests += 1;
                if peer.invalid_requests > INVALID_REQUESTS_MAX {
                    return Err(Error::InvalidRequests);
                }
                if fast {
                    encode(&Message::Reject(block), &mut peer.control);
                    self.wake(key);
                }
                Ok(())
            }
        }
    }

    /// Keeps what cannot be judged yet, as long as there is room for it.
    fn keep(&mut self, key: PeerKey, message: Message<'_>) -> Result<(), Error> {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return Ok(()) };
        let Some(said) = &mut peer.said else { return peer.nuisance() };
        let before = said.len();
        encode(&message, said);
        self.said_len += said.len() - before;
        self.said_held.set(self.said_len);
        // No more than an eighth of the room is one peer's alone.
        let is_too_much = self.said_len > SAID_LEN_MAX || said.len() > SAID_LEN_MAX / 8;
        if is_too_much || self.shared.said_bytes.get() > SAID_BYTES_MAX {
            self.said_len -= said.len();
            self.said_held.set(self.said_len);
            peer.said = None;
        }
        Ok(())
    }

    fn on_extended(
        &mut self,
        now: Instant,
        key: PeerKey,
        id: u8,
        payload: &[u8],
    ) -> Result<(), Error> {
        match id {
            EXTENSION_HANDSHAKE_ID => self.on_extension_handshake(now, key, payload)?,
            METADATA_ID => self.on_metadata(now, key, payload)?,
            PEX_ID if self.options.pex && !self.options.private => {
                self.on_pex(now, key, payload)?
            }
            _ => {}
        }
        if let Some(peer) = self.peers.get_mut(key.0 as usize) {
            peer.nuisance()?;
        }
        self.go_on(now);
        Ok(())
    }

    fn on_extension_handshake(
        &mut self,
        now: Instant,
        key: PeerKey,
        payload: &[u8],
    ) -> Result<(), Error> {
        let theirs = ExtensionHandshake::parse(payload).map_err(|_| Error::BadHandshake)?;
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return Ok(()) };
        if let Some(id) = theirs.id_of(METADATA_NAME) {
            peer.metadata_id = id;
        }
        let claim = theirs.metadata_size.filter(|_| peer.metadata_id != 0);
        // What is absent leaves in force what was said before.
        if theirs.metadata_size.is_some() || peer.metadata_id == 0 {
            let who = Offender::of(peer.init.addr);
            let outcome = self.fetch.handle_claim(now, key, who, claim);
            self.carry_out(now, outcome);
        }
        let payload = theirs.encode();
        self.keep(key, Message::Extended { id: EXTENSION_HANDSHAKE_ID, payload: &payload })
    }

    fn on_metadata(&mut self, now: Instant, key: PeerKey, payload: &[u8]) -> Result<(), Error> {
        let message = MetadataMessage::parse(payload).map_err(|_| Error::BadMetadata)?;
        match message {
            Some(MetadataMessage::Request { block }) => {
                let Some(peer) = self.peers.get_mut(key.0 as usize) else { return Ok(()) };
                if peer.metadata_id != 0 {
                    let id = peer.metadata_id;
                    MetadataMessage::Reject { block }.encode(id, &mut peer.control);
                    self.wake(key);
                }
            }
            Some(MetadataMessage::Reject { block }) => self.fetch.handle_reject(now, key, block),
            Some(MetadataMessage::Data { block, total_len, data }) if !self.is_done => {
                let outcome = self.fetch.handle_data(now, key, block, total_len, data)?;
                self.carry_out(now, outcome);
            }
            Some(MetadataMessage::Data { .. }) | None => {}
        }
        Ok(())
    }

    fn carry_out(&mut self, now: Instant, outcome: Outcome) {
        match outcome {
            Outcome::Nothing => {}
            Outcome::Done(info) => {
                self.is_done = true;
                self.actions.push_back(MagnetAction::Metadata(info));
            }
            Outcome::Guilty(offender) => self.ban(now, offender),
        }
    }

    fn on_pex(&mut self, now: Instant, key: PeerKey, payload: &[u8]) -> Result<(), Error> {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else { return Ok(()) };
        let addrs = peer.pex.take(now, payload, true)?;
        self.handle_contacts(now, Source::Pex, &addrs);
        Ok(())
    }

    fn ban(&mut self, now: Instant, offender: Offender) {
        let until = now + BAN_TTL;
        if self.shared.ban(offender, until) {
            self.actions.push_back(MagnetAction::Ban(offender, until));
        }
        self.handle_bans(now);
    }

    /// Somebody was banned, here or for what it sent to another swarm: it is done with.
    pub fn handle_bans(&mut self, now: Instant) {
        let shared = Rc::clone(&self.shared);
        for key in self.keys() {
            let addr = self.peers.get(key.0 as usize).map(|peer| peer.init.addr);
            if addr.is_some_and(|addr| shared.is_banned(now, addr)) {
                self.close(key, Error::Banned);
            }
        }
    }

    /// The list of whom we have nothing to do with was changed.
    pub fn handle_blocklist(&mut self) {
        for key in self.keys() {
            let ip = self.peers.get(key.0 as usize).map(|peer| peer.init.addr.ip());
            if ip.is_some_and(|ip| self.shared.blocks(ip)) {
                self.close(key, Error::Blocked);
            }
        }
    }

    /// Asks for what can be asked for now.
    fn go_on(&mut self, now: Instant) {
        if self.is_done {
            return;
        }
        for ask in self.fetch.poll(now) {
            let Some(peer) = self.peers.get_mut(ask.peer.0 as usize) else { continue };
            let id = peer.metadata_id;
            MetadataMessage::Request { block: ask.block }.encode(id, &mut peer.control);
            self.wake(ask.peer);
        }
        self.connect_due(now);
    }

    /// Does what is due at `now`; the moment is the one of `poll_timeout`, or later.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_round.is_some_and(|at| now >= at) {
            self.next_round = (!self.peers.is_empty()).then_some(now + ROUND);
            self.round(now);
        }
        self.go_on(now);
    }

    fn round(&mut self, now: Instant) {
        for key in self.keys() {
            let Some(peer) = self.peers.get_mut(key.0 as usize) else { continue };
            peer.nuisances = 0;
            let since = |at: Instant| now.saturating_duration_since(at);
            if since(peer.last_heard_at) >= self.options.inactivity_timeout {
                self.close(key, Error::Inactive);
            } else if since(peer.last_sent_at) >= self.options.keep_alive {
                encode(&Message::KeepAlive, &mut peer.control);
                self.wake(key);
            }
        }
        if self.peers.len() >= self.peers_max() {
            self.close_silent(now);
        }
        self.shared.expire_bans(now);
    }

    /// Appends encoded messages for the peer to `control`.
    pub fn poll_transmit(&mut self, now: Instant, key: PeerKey, control: &mut Vec<u8>) {
        let peer = self.peers.get_mut(key.0 as usize);
        if let Some(peer) = peer.filter(|peer| !peer.closing && !peer.control.is_empty()) {
            control.append(&mut peer.control);
            peer.last_sent_at = now;
        }
    }

    fn keys(&self) -> Vec<PeerKey> {
        self.peers.iter().map(|(slot, _)| key_of(slot)).collect()
    }

    fn wake(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(key.0 as usize).filter(|peer| !peer.closing) else {
            return;
        };
        if peer.control.len() > CONTROL_LEN_MAX {
            return self.close(key, Error::NotReading);
        }
        if !std::mem::replace(&mut peer.transmit_due, true) {
            self.actions.push_back(MagnetAction::Transmit(key));
        }
    }

    fn close(&mut self, key: PeerKey, reason: Error) {
        if let Some(peer) = self.peers.get_mut(key.0 as usize)
            && !std::mem::replace(&mut peer.closing, true)
        {
            self.actions.push_back(MagnetAction::Close(key, reason));
        }
    }
}

impl Drop for MagnetSwarm {
    /// Seats of the worker that its peers held are free again.
    fn drop(&mut self) {
        self.peers.iter().for_each(|(_, peer)| self.shared.unseat(peer.source));
    }
}

impl Peer {
    fn nuisance(&mut self) -> Result<(), Error> {
        self.nuisances += 1;
        let flood = self.nuisances > NUISANCES_PER_SECOND_MAX * NUISANCE_SECONDS;
        if flood { Err(Error::NuisanceFlood) } else { Ok(()) }
    }
}
