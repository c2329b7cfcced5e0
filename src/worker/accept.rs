//! From a connection to a peer: accepting, connecting, handshakes, and the hand-over of a
//! connection to the worker that is the home of its torrent.
//!
//! Sockets and handshake bytes enter, peers of a swarm leave. Invariant: when a connection is
//! handed over no operation is in flight on it, and every byte that was read goes with it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::admission::Refusal;
use super::connection::{Conn, MagnetPeer, Peer, Phase, Subject, Way, ZeroCopy};
use super::mailbox::{Adopted, Letter};
use super::table::Key;
use super::{Target, Timer, Worker};
use crate::metainfo::PIECE_COUNT_MAX;
use crate::metrics::{
    AcceptResult, Direction, DisconnectReason, Encryption, HandoverResult, HandshakeResult,
};
use crate::ring::{Driver, Op, Pool, Tag};
use crate::swarm::{PeerInit, Refused, TURNOVER_PAUSE, TURNOVER_SHARE};
use crate::sys::net;
use crate::units::InfoHash;
use crate::wire::{Decoder, Handshake, HandshakeReader, Limits};

/// How long a handshake may take in all, whatever arrives meanwhile.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Outgoing handshakes that a worker waits for at a time; further connections are not begun.
const OUTGOING_MAX: usize = 1024;

/// Connections that are told at once that there is no descriptor for them, for each pause.
const TURNED_AWAY_MAX: usize = 64;

impl<D: Driver> Worker<D> {
    /// Accepts on a listener until it is told otherwise.
    pub(super) fn listen(&mut self, index: usize) {
        if self.stopping.is_none()
            && let Some(listener) = self.listeners.get(index)
        {
            let listener = Rc::clone(listener);
            self.operate(Target::Listener(index), Op::Accept { listener });
        }
    }

    pub(super) fn on_accepted(&mut self, tag: Tag, result: io::Result<OwnedFd>, last: bool) {
        let Some(Target::Listener(index)) = Target::of(tag) else { return };
        let failed = result.is_err();
        match result {
            Ok(socket) => {
                self.pause.reset();
                self.accept(socket);
            }
            Err(_) if self.stopping.is_some() => return,
            Err(error) => {
                self.core.accepts[AcceptResult::Error].add(1);
                tracing::warn!(%error, "cannot accept connections for a moment");
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    self.turn_away(index);
                }
            }
        }
        if last && failed {
            self.timers.set(self.now + self.pause.next(), Timer::Listen(index));
        } else if last {
            self.listen(index);
        }
    }

    /// Closes connections that no descriptor is left for, instead of letting them hang: the reserve
    /// is given up for as long as that takes.
    fn turn_away(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index).map(Rc::clone) else { return };
        if let Ok(spare) = listener.try_clone() {
            // It has passed: a descriptor came free, which may be the reserve from now on.
            self.reserve.get_or_insert(spare);
            return;
        }
        drop(self.reserve.take());
        for _ in 0..TURNED_AWAY_MAX {
            // Somebody else may have taken the descriptor, and the queue may be empty.
            let Ok(socket) = net::accept(listener.as_fd()) else { break };
            drop(socket);
            self.core.accepts[AcceptResult::NoDescriptor].add(1);
        }
        self.reserve = listener.try_clone().ok();
    }

    /// Takes a fresh connection, or closes it where a limit is met.
    fn accept(&mut self, socket: OwnedFd) {
        if self.stopping.is_some() {
            self.core.accepts[AcceptResult::Limit].add(1);
            return;
        }
        // A peer that is gone already has no address: nothing is lost with it.
        let Ok(addr) = net::peer_addr(socket.as_fd()) else {
            self.core.accepts[AcceptResult::Error].add(1);
            return;
        };
        if self.budget.blocks(addr.ip()) {
            self.core.accepts[AcceptResult::Blocked].add(1);
            return;
        }
        if let Err(refusal) = self.admission.judge(self.now, addr.ip()) {
            let result = match refusal {
                Refusal::Handshakes => AcceptResult::PrefixLimit,
                Refusal::Rate => AcceptResult::PrefixRate,
            };
            self.core.accepts[result].add(1);
            tracing::debug!(%addr, result = result.label(), "connection closed at once");
            return;
        }
        if !self.make_room(self.admission.is_full()) {
            self.core.accepts[AcceptResult::Limit].add(1);
            return;
        }
        if net::set_nodelay(socket.as_fd()).is_err() {
            self.core.accepts[AcceptResult::Error].add(1);
            return;
        }
        self.core.accepts[AcceptResult::Ok].add(1);
        let conn = Conn::new(Rc::new(socket), addr, Phase::Incoming(HandshakeReader::new()));
        let key = self.conns.insert(conn);
        self.handshake_count += 1;
        let place = self.admission.enter(addr.ip(), key);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.place = Some(place);
        }
        self.timers.set(self.now + HANDSHAKE_TIMEOUT, Timer::Handshake(key));
        self.receive(key);
    }

    /// Sees to it that one more connection fits, at the cost of idle peers or of the slowest
    /// handshake; false if nobody can give way. `is_full` says that the places for handshakes are
    /// taken.
    fn make_room(&mut self, is_full: bool) -> bool {
        let has_place = self.conns.len() < self.options.connections_max || self.let_idle_go();
        if has_place && !is_full {
            return true;
        }
        let oldest = self.admission.oldest();
        if let Some(key) = oldest {
            self.give_up(key, HandshakeResult::Evicted);
        }
        oldest.is_some()
    }

    /// Closes the connections of idle peers, those that are missed least first. False if there are
    /// none, or if they were looked for a moment ago.
    fn let_idle_go(&mut self) -> bool {
        if self.now < self.next_turnover {
            return false;
        }
        self.next_turnover = self.now + TURNOVER_PAUSE;
        let torrents = self.active.iter().filter_map(|&key| self.torrents.get(key));
        let idle = torrents.flat_map(|torrent| {
            let idle = torrent.swarm.idle_peers(self.now);
            idle.filter_map(|peer| Some((peer, torrent.conn_of(peer.key)?)))
        });
        let mut idle: Vec<_> = idle.collect();
        idle.sort_unstable_by_key(|&(peer, _)| peer);
        idle.truncate(self.conns.len().div_ceil(TURNOVER_SHARE));
        for &(_, conn) in &idle {
            self.close(conn, DisconnectReason::Idle);
        }
        !idle.is_empty()
    }

    /// Asks for what a connection sends next.
    pub(super) fn receive(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.receiving {
            return;
        }
        let pool = match &conn.phase {
            Phase::Connecting { .. } => return,
            Phase::Peer(peer)
                if self.torrents.get(peer.torrent).is_some_and(|torrent| torrent.is_fetching()) =>
            {
                Pool::Large
            }
            _ => Pool::Small,
        };
        conn.receiving = true;
        let socket = Rc::clone(&conn.socket);
        self.operate(Target::Receive(key), Op::Recv { socket, pool });
    }

    /// Connects to a peer of a torrent.
    pub(super) fn connect(&mut self, torrent: Subject, addr: SocketAddr) {
        let policy = self.options.encryption;
        let (is_encrypted, has_other) = (policy.begins_encrypted(), policy.has_second_way());
        self.connect_by(torrent, addr, Way { is_encrypted, has_other });
    }

    fn connect_by(&mut self, torrent: Subject, addr: SocketAddr, way: Way) {
        if self.stopping.is_some() || !self.may_meet_peers(torrent) {
            return self.connect_failed(torrent, addr);
        }
        let full =
            self.conns.len() >= self.options.connections_max || self.outgoing_count >= OUTGOING_MAX;
        if full || !self.has_room_for(torrent) {
            return self.connect_postponed(torrent, addr);
        }
        let socket = match net::outgoing(&addr, self.options.bind.as_ref()) {
            Ok(socket) => Rc::new(socket),
            Err(error) => {
                tracing::debug!(%addr, %error, "cannot make a socket");
                self.connect_failed(torrent, addr);
                return;
            }
        };
        let mut conn = Conn::new(Rc::clone(&socket), addr, Phase::Connecting { torrent });
        conn.way = Some(way);
        let key = self.conns.insert(conn);
        self.handshake_count += 1;
        self.outgoing_count += 1;
        self.timers.set(self.now + HANDSHAKE_TIMEOUT, Timer::Handshake(key));
        self.operate(Target::Connect(key), Op::Connect { socket, addr });
    }

    pub(super) fn on_connected(&mut self, tag: Tag, result: io::Result<()>) {
        let Some(Target::Connect(key)) = Target::of(tag) else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Connecting { torrent } = conn.phase else { return };
        if result.is_err() {
            return self.give_up(key, HandshakeResult::Closed);
        }
        let Some(info_hash) = self.info_hash_of(torrent) else {
            return self.give_up(key, HandshakeResult::UnknownTorrent);
        };
        let has_dht = self.has_dht(torrent);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let ours = Handshake::new(info_hash, self.shared.peer_id, has_dht).encode().to_vec();
        conn.phase = Phase::Outgoing { torrent, reader: HandshakeReader::new() };
        if conn.way.is_some_and(|way| way.is_encrypted) {
            return self.open_encrypted(key, info_hash, ours);
        }
        conn.outbox = ours;
        self.send_to(key);
        self.receive(key);
    }

    /// Gives arrived bytes to the handshake of a connection; what lies behind it to the peer.
    pub(super) fn shake_hands(&mut self, key: Key, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Some(place) = &conn.place {
            self.admission.heard(place);
        }
        if conn.exchange.is_some() {
            return self.handle_exchange(key, bytes);
        }
        let (reader, asked_for) = match &mut conn.phase {
            Phase::Incoming(reader) => (reader, None),
            Phase::Outgoing { reader, torrent } => (reader, Some(*torrent)),
            _ => return,
        };
        let known_len = reader.taken().len();
        let Ok(used) = reader.handle_bytes(bytes) else {
            let mut first = reader.taken().to_vec();
            first.extend_from_slice(bytes.get(first.len() - known_len..).unwrap_or_default());
            if asked_for.is_some() || !self.answer_encrypted(key, &first) {
                self.give_up(key, HandshakeResult::BadProtocol);
            }
            return;
        };
        let input = bytes.get(used..).unwrap_or_default();
        let Some(handshake) = reader.handshake() else {
            // The last part of an exchange may be what the peer waits for.
            return if conn.outbox.is_empty() { self.receive(key) } else { self.send_to(key) };
        };
        if conn.ciphers.is_none() && !self.options.encryption.takes_plain() {
            return self.give_up(key, HandshakeResult::Plain);
        }
        if conn.about.is_some_and(|about| about != handshake.info_hash) {
            return self.give_up(key, HandshakeResult::UnknownTorrent);
        }
        if let Some(torrent) = asked_for {
            if self.info_hash_of(torrent) != Some(handshake.info_hash) {
                return self.give_up(key, HandshakeResult::UnknownTorrent);
            }
            return self.become_peer(key, torrent, &handshake, input);
        }
        match self.shared.directory.home(&handshake.info_hash) {
            Some(home) if home == self.options.number => {
                match self.subject_of(&handshake.info_hash) {
                    Some(torrent) => self.become_peer(key, torrent, &handshake, input),
                    None => self.give_up(key, HandshakeResult::UnknownTorrent),
                }
            }
            Some(home) => self.hand_over(key, home, handshake, input.to_vec()),
            None => self.give_up(key, HandshakeResult::UnknownTorrent),
        }
    }

    /// Sends a connection to the home of its torrent.
    fn hand_over(&mut self, key: Key, home: usize, handshake: Handshake, rest: Vec<u8>) {
        let Some(mut conn) = self.conns.remove(key) else { return };
        self.handshake_count -= 1;
        self.leave_place(&mut conn);
        let mailbox = self.shared.mailboxes.get().and_then(|mailboxes| mailboxes.get(home));
        // The receive that brought the handshake is over and nothing was sent: the socket is ours
        // alone. Were it not, it must not move.
        let (Some(mailbox), Ok(socket)) = (mailbox, Rc::try_unwrap(conn.socket)) else {
            self.core.handovers[HandoverResult::Dropped].add(1);
            return;
        };
        let Conn { addr, outbox, ciphers, .. } = conn;
        let adopted = Box::new(Adopted { socket, addr, handshake, rest, outbox, ciphers });
        let result = match mailbox.send(Letter::Adopt(adopted)) {
            Ok(()) => HandoverResult::Sent,
            Err(_) => HandoverResult::Dropped,
        };
        self.core.handovers[result].add(1);
        self.core.core_messages_sent.add(1);
    }

    /// Takes a connection over from the worker that accepted it.
    pub(super) fn adopt(&mut self, adopted: Adopted) {
        let Adopted { socket, addr, handshake, rest, outbox, ciphers } = adopted;
        if self.stopping.is_some() || !self.make_room(false) {
            self.core.handovers[HandoverResult::Dropped].add(1);
            return;
        }
        self.core.handovers[HandoverResult::Adopted].add(1);
        let mut conn = Conn::new(Rc::new(socket), addr, Phase::Incoming(HandshakeReader::new()));
        (conn.outbox, conn.ciphers) = (outbox, ciphers);
        let key = self.conns.insert(conn);
        self.handshake_count += 1;
        match self.subject_of(&handshake.info_hash) {
            Some(torrent) => self.become_peer(key, torrent, &handshake, &rest),
            None => self.give_up(key, HandshakeResult::UnknownTorrent),
        }
    }

    /// Both handshakes are there: the connection becomes a peer of the swarm.
    fn become_peer(&mut self, key: Key, subject: Subject, handshake: &Handshake, rest: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let outgoing = matches!(conn.phase, Phase::Outgoing { .. });
        let direction = if outgoing { Direction::Outgoing } else { Direction::Incoming };
        let init = PeerInit {
            addr: conn.addr,
            peer_id: handshake.peer_id,
            fast: handshake.supports_fast(),
            extensions: handshake.supports_extensions(),
            dht: handshake.supports_dht() && self.has_dht(subject),
            outgoing,
        };
        let peer_key = match self.admit(subject, init) {
            None => return self.give_up(key, HandshakeResult::UnknownTorrent),
            Some(Ok(peer_key)) => peer_key,
            Some(Err(refused)) => return self.turn_down(key, subject, direction, &refused),
        };
        let has_dht = self.has_dht(subject);
        let Some(conn) = self.conns.get_mut(key) else { return };
        self.core.handshakes[(direction, HandshakeResult::Ok)].add(1);
        let encryption = if conn.ciphers.is_some() { Encryption::Rc4 } else { Encryption::Plain };
        self.core.peer_connections[(direction, encryption)].add(1);
        if !outgoing {
            let ours = Handshake::new(handshake.info_hash, self.shared.peer_id, has_dht);
            conn.push_first(&ours.encode());
        }
        conn.phase = match subject {
            Subject::Torrent(torrent) => {
                let piece_count =
                    self.torrents.get(torrent).map_or(0, |it| it.geometry().piece_count());
                Phase::Peer(Peer::new(torrent, peer_key, Decoder::new(Limits::new(piece_count))))
            }
            Subject::Magnet(magnet) => {
                let decoder = Decoder::new(Limits::at_most(PIECE_COUNT_MAX));
                Phase::Magnet(MagnetPeer { magnet, key: peer_key, decoder })
            }
        };
        // Over loopback the kernel copies after all; tests have nothing else to try it on.
        if self.options.zero_copy
            && conn.ciphers.is_none()
            && (cfg!(test) || !crate::swarm::is_local(conn.addr.ip()))
        {
            conn.zero_copy = ZeroCopy::Trying(4);
        }
        self.handshake_count -= 1;
        self.outgoing_count -= usize::from(outgoing);
        if let Some(place) = conn.place.take() {
            self.admission.leave(place);
        }
        self.touch_conn(key);
        self.touch_subject(subject);
        match subject {
            Subject::Torrent(torrent) => {
                self.enter_torrent(torrent, peer_key, key);
                self.feed(key, rest);
            }
            Subject::Magnet(magnet) => {
                self.enter_magnet(magnet, peer_key, key);
                self.feed_magnet(key, rest);
            }
        }
    }

    /// Closes a connection whose peer its torrent does not take.
    fn turn_down(&mut self, key: Key, subject: Subject, direction: Direction, refused: &Refused) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let addr = conn.addr;
        if direction == Direction::Outgoing {
            // The swarm knows already what became of the address.
            conn.phase = Phase::Incoming(HandshakeReader::new());
            self.outgoing_count -= 1;
        }
        // Only this one is for the operator to change.
        let torrent = match subject {
            Subject::Torrent(key) if *refused == Refused::LocalAddress => {
                self.torrents.get_mut(key)
            }
            _ => None,
        };
        if let Some(torrent) = torrent
            && torrent.is_refusal_news(addr.ip())
        {
            let (info_hash, name) = (torrent.info_hash, torrent.content.metainfo.shown_name());
            tracing::warn!(torrent = %info_hash, %name, %addr, %refused, "peer refused");
        } else {
            tracing::debug!(%addr, %refused, "peer not taken");
        }
        self.core.handshakes[(direction, refusal(refused))].add(1);
        self.touch_subject(subject);
        self.drop_conn(key, None);
    }

    /// Closes a connection before it is a peer, for a reason that is counted.
    pub(super) fn give_up(&mut self, key: Key, result: HandshakeResult) {
        let Some(conn) = self.conns.get(key) else { return };
        let direction = match conn.phase {
            Phase::Incoming(_) => Direction::Incoming,
            _ => Direction::Outgoing,
        };
        self.core.handshakes[(direction, result)].add(1);
        tracing::debug!(addr = %conn.addr, result = result.label(), "handshake ended");
        let is_closed = result == HandshakeResult::Closed && conn.has_heard_nothing();
        let second = conn.way.filter(|way| is_closed && way.has_other);
        self.drop_conn(key, second);
    }

    /// Closes the connection of a peer, for a reason that is counted.
    pub(super) fn close(&mut self, key: Key, reason: DisconnectReason) {
        let Some(conn) = self.conns.get(key) else { return };
        if !conn.phase.is_peer() {
            return self.give_up(key, HandshakeResult::Closed);
        }
        self.core.disconnects[reason].add(1);
        tracing::debug!(addr = %conn.addr, reason = reason.label(), "peer disconnected");
        self.drop_conn(key, None);
    }

    /// Forgets a connection. What is in flight on it ends by itself. One that was begun as `failed`
    /// is begun again the other way.
    fn drop_conn(&mut self, key: Key, failed: Option<Way>) {
        let Some(mut conn) = self.conns.remove(key) else { return };
        self.leave_place(&mut conn);
        let connecting = matches!(conn.phase, Phase::Connecting { .. });
        match conn.phase {
            Phase::Peer(peer) => {
                if let Some(torrent) = self.torrents.get_mut(peer.torrent) {
                    torrent.leave(peer.key, self.now);
                    torrent.swarm.handle_disconnected(self.now, peer.key);
                }
                self.touch_torrent(peer.torrent);
                if let Some(sending) = &conn.sending {
                    self.last_sends.keep(key, peer.torrent, sending);
                }
            }
            Phase::Magnet(peer) => self.leave_magnet(peer.magnet, peer.key),
            Phase::Connecting { torrent } | Phase::Outgoing { torrent, .. } => {
                self.handshake_count -= 1;
                self.outgoing_count -= 1;
                match failed {
                    Some(Way { is_encrypted, .. })
                        if self.may_connect_again(torrent, conn.addr) =>
                    {
                        let way = Way { is_encrypted: !is_encrypted, has_other: false };
                        self.connect_by(torrent, conn.addr, way);
                    }
                    _ => self.connect_failed(torrent, conn.addr),
                }
            }
            Phase::Incoming(_) => self.handshake_count -= 1,
        }
        // Ends receives and sends that wait; the descriptor is closed with the last of them. A
        // socket that never was connected has nothing to shut down.
        let _ = net::shutdown(conn.socket.as_fd());
        if conn.receiving {
            self.driver.cancel(Target::Receive(key).tag());
        }
        if conn.sending.is_some() {
            self.driver.cancel(Target::Send(key).tag());
        }
        if connecting {
            self.driver.cancel(Target::Connect(key).tag());
        }
    }

    fn leave_place(&mut self, conn: &mut Conn) {
        if let Some(place) = conn.place.take() {
            self.admission.leave(place);
        }
    }

    /// The key of the torrent with this info-hash, if it is at home here.
    pub(super) fn torrent_key(&self, info_hash: &InfoHash) -> Option<Key> {
        self.by_hash.get(info_hash).copied()
    }
}

/// How a refusal of the swarm is counted.
fn refusal(refused: &Refused) -> HandshakeResult {
    match refused {
        Refused::Ourselves => HandshakeResult::Itself,
        Refused::Duplicate => HandshakeResult::Duplicate,
        Refused::Full | Refused::FullForAddress => HandshakeResult::Limit,
        Refused::Banned | Refused::Blocked | Refused::LocalAddress | Refused::Private => {
            HandshakeResult::Refused
        }
    }
}
