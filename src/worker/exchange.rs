//! The encrypted opening of a connection, the steps until its handshake, and the sealing of what is
//! sent afterwards.
//!
//! Bytes of a connection without a handshake enter; the handshake and what follows it leave, in the
//! clear, with the ciphers kept beside the socket. The powers that an exchange needs are another
//! thread's work: a letter brings the answer back. Invariant: while a connection is in its exchange
//! it is received from only when nothing of ours is in flight on it, so that it can still be handed
//! over to another worker.

use ::ring::rand::{SecureRandom, SystemRandom};

use super::Worker;
use super::connection::{Exchange, Phase};
use super::keys::Side;
use super::mailbox::Letter;
use super::table::Key;
use crate::metrics::HandshakeResult;
use crate::mse::{self, Initiator, Job, PADDING_MAX, PrivateKey, Responder};
use crate::ring::{Batch, Driver, Lease};
use crate::units::{BLOCK_LEN, InfoHash};
use crate::wire::HandshakeReader;

/// Longest batch for an encrypted peer, in bytes: what is sent to it is a copy, and lies in memory
/// until it has gone.
const SEALED_LEN_MAX: usize = 256 * 1024;

impl<D: Driver> Worker<D> {
    /// Begins the exchange of a connection that we made, in place of a handshake; `payload` is the
    /// handshake, which it carries.
    pub(super) fn open_encrypted(&mut self, key: Key, info_hash: InfoHash, payload: Vec<u8>) {
        let policy = self.options.encryption;
        let Some((private, padding)) = fresh_secrets() else {
            return self.give_up(key, HandshakeResult::BadExchange);
        };
        let initiator = Initiator::new(policy, info_hash, private, padding, payload);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.exchange = Some(Box::new(Exchange::Initiator(initiator)));
        }
        self.advance_exchange(key, &[]);
    }

    /// Begins the exchange of a connection that was made to us and did not begin with a handshake:
    /// `first` is all that came. False if it may not.
    pub(super) fn answer_encrypted(&mut self, key: Key, first: &[u8]) -> bool {
        if !self.options.encryption.takes_encrypted() {
            return false;
        }
        // Once is enough: what is inside an exchange is a handshake.
        if self.conns.get(key).is_none_or(|conn| conn.about.is_some()) {
            return false;
        }
        let Some((private, padding)) = fresh_secrets() else {
            self.give_up(key, HandshakeResult::BadExchange);
            return true;
        };
        let Some(conn) = self.conns.get_mut(key) else { return true };
        let responder = Responder::new(self.options.encryption, private, padding);
        conn.exchange = Some(Box::new(Exchange::Responder(responder)));
        self.handle_exchange(key, first);
        true
    }

    /// Gives arrived bytes to the exchange of a connection.
    pub(super) fn handle_exchange(&mut self, key: Key, bytes: &[u8]) {
        let directory = &self.shared.directory;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(exchange) = conn.exchange.as_deref_mut() else { return };
        conn.has_heard |= !bytes.is_empty();
        let used = match exchange {
            Exchange::Responder(it) => it.handle_bytes(bytes, |mark| directory.marked(mark)),
            Exchange::Initiator(it) => it.handle_bytes(bytes),
        };
        match used {
            Ok(used) => self.advance_exchange(key, bytes.get(used..).unwrap_or_default()),
            Err(error) => self.fail_exchange(key, &error),
        }
    }

    /// Takes what the other thread has found.
    pub(super) fn on_computed(&mut self, key: Key, answer: mse::Answer) {
        let directory = &self.shared.directory;
        let Some(exchange) = self.conns.get_mut(key).and_then(|it| it.exchange.as_deref_mut())
        else {
            return;
        };
        let taken = match exchange {
            Exchange::Responder(it) => it.handle_answer(answer, |mark| directory.marked(mark)),
            Exchange::Initiator(it) => it.handle_answer(answer),
        };
        match taken {
            Ok(()) => self.advance_exchange(key, &[]),
            Err(error) => self.fail_exchange(key, &error),
        }
    }

    fn fail_exchange(&mut self, key: Key, error: &mse::Error) {
        if let Some(conn) = self.conns.get(key) {
            tracing::debug!(addr = %conn.addr, %error, "encrypted opening failed");
        }
        let result = match error {
            mse::Error::UnknownTorrent => HandshakeResult::UnknownTorrent,
            _ => HandshakeResult::BadExchange,
        };
        self.give_up(key, result);
    }

    /// Does what an exchange wants next; `rest` came behind its end.
    fn advance_exchange(&mut self, key: Key, rest: &[u8]) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(exchange) = conn.exchange.as_deref_mut() else { return };
        if let Some(job) = exchange.poll_job() {
            let side = match exchange {
                Exchange::Responder(_) => Side::Theirs,
                Exchange::Initiator(_) => Side::Ours,
            };
            return self.compute(key, side, job);
        }
        conn.outbox.append(&mut exchange.poll_transmit());
        let Some(mut established) = exchange.poll_established() else {
            return if conn.outbox.is_empty() { self.receive(key) } else { self.send_to(key) };
        };
        conn.exchange = None;
        conn.about = Some(established.info_hash);
        let mut stream = established.payload;
        let payload_len = stream.len();
        stream.extend_from_slice(rest);
        if let Some(ciphers) = &mut established.ciphers {
            ciphers.incoming.apply(&mut stream[payload_len..]);
        }
        conn.ciphers = established.ciphers;
        if let Phase::Incoming(reader) = &mut conn.phase {
            *reader = HandshakeReader::new();
        }
        self.shake_hands(key, &stream);
    }

    /// The longest batch to make for an encrypted peer now, in bytes: when much memory is out, a
    /// block at a time, so that peers who take nothing hold up nobody.
    pub(super) fn sealed_len_max(&self) -> usize {
        sealed_len_max(self.seals.lent_len(), self.options.sealed_bytes_max)
    }

    /// The batch as it goes out to an encrypted peer, behind `first`, which is as it goes out
    /// already: one copy, of memory that no mapping is part of.
    pub(super) fn seal(&mut self, key: Key, first: &[u8], batch: &Batch) -> Batch {
        let (mut sealed, mut bytes) = (Batch::new(), self.seals.take());
        bytes.extend_from_slice(first);
        let start = bytes.len();
        let is_copied = batch.copy_to(&mut bytes);
        debug_assert!(is_copied, "blocks for encrypted peers are read into memory");
        if let Some(ciphers) = self.conns.get_mut(key).and_then(|conn| conn.ciphers.as_mut()) {
            ciphers.outgoing.apply(&mut bytes[start..]);
        }
        let len = bytes.len();
        // A lease on all of its own bytes is one part.
        let _ = sealed.push_lease(&Lease::Lent(self.seals.lend(bytes)), 0, len);
        sealed
    }

    /// Has a power computed elsewhere.
    fn compute(&mut self, key: Key, side: Side, job: Job) {
        let (mailboxes, home) =
            (std::sync::Arc::clone(&self.shared.mailboxes), self.options.number);
        let work = Box::new(move || {
            let answer = job.run();
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker whose box is full has no time for handshakes, and others wait for this
                // thread: the connection is closed when its time is over.
                let _ = mailbox.send(Letter::Computed { conn: key, answer: Box::new(answer) });
            }
        });
        if !self.shared.keys.run(self.now, side, work) {
            self.give_up(key, HandshakeResult::Limit);
        }
    }
}

fn sealed_len_max(lent_len: usize, bytes_max: usize) -> usize {
    if lent_len + SEALED_LEN_MAX <= bytes_max { SEALED_LEN_MAX } else { BLOCK_LEN as usize }
}

/// A private key and padding of random length; `None` if the system gives no random numbers.
fn fresh_secrets() -> Option<(PrivateKey, Vec<u8>)> {
    let (system, mut key, mut len) = (SystemRandom::new(), [0; 20], [0; 2]);
    system.fill(&mut key).ok()?;
    system.fill(&mut len).ok()?;
    let mut padding = vec![0; usize::from(u16::from_le_bytes(len)) % (PADDING_MAX + 1)];
    system.fill(&mut padding).ok()?;
    Some((PrivateKey::new(key), padding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::SEALED_BYTES_MAX;

    #[test]
    fn peers_who_take_nothing_hold_a_block_each_when_much_is_out() {
        let (mut lent, mut peers) = (0, 0);
        while lent < SEALED_BYTES_MAX {
            lent += sealed_len_max(lent, SEALED_BYTES_MAX);
            peers += 1;
        }
        assert_eq!((lent, peers), (SEALED_BYTES_MAX, 256));
        assert_eq!(sealed_len_max(lent, SEALED_BYTES_MAX), BLOCK_LEN as usize);
    }

    #[test]
    fn padding_has_all_lengths_that_may_be() {
        let lens: Vec<_> = (0..200).map(|_| fresh_secrets().unwrap().1.len()).collect();
        assert!(lens.iter().all(|&len| len <= PADDING_MAX));
        assert!(lens.iter().any(|&len| len < 100) && lens.iter().any(|&len| len > 400));
    }
}
