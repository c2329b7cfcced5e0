//! The machine behind all UDP trackers: connections, retransmissions and answers.
//!
//! Questions, datagrams and `now` enter; datagrams and answers leave. A connection id is kept for
//! [`CONNECTION_KEPT`] per address and shared by all torrents; what is not answered is sent again
//! after 15·2ⁿ s, as long as its deadline allows (BEP 15). Invariant: at most [`REQUESTS_MAX`]
//! questions and [`LINKS_MAX`] addresses are known at a time, and a datagram from outside makes
//! nothing grow.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ::ring::hmac;

use super::packet::{self, Sender};
use super::{Answer, Ask};
use crate::tracker::Failure;
use crate::tracker::families::Family;
use crate::units::PeerId;

/// Questions that may wait for an answer.
pub const REQUESTS_MAX: usize = 1024;

/// Addresses whose connection ids are kept.
pub(super) const LINKS_MAX: usize = 4096;

/// How long a connection id is used.
pub(super) const CONNECTION_KEPT: Duration = Duration::from_secs(60);

/// The wait before the first retransmission; it doubles with each further one.
const RESEND_AFTER: Duration = Duration::from_secs(15);

/// Doublings of that wait.
const DOUBLINGS_MAX: u32 = 8;

/// Names a question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RequestId(u64);

/// Datagrams that were no answer, by why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ignored {
    /// Too short, torn, or of no known action.
    pub malformed: u64,
    /// Of a transaction that is not on its way: late, repeated or forged.
    pub transaction: u64,
    /// From another address than the one that was asked.
    pub source: u64,
    /// An answer to something else than what was asked.
    pub action: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    transaction_ids: TransactionIds,
    links: BTreeMap<SocketAddr, Link>,
    requests: BTreeMap<RequestId, Request>,
    transactions: BTreeMap<u32, Purpose>,
    timers: BTreeSet<(Instant, Timer)>,
    outgoing: VecDeque<(SocketAddr, Vec<u8>)>,
    outcomes: VecDeque<(RequestId, Result<Answer, Failure>)>,
    next_id: u64,
    ignored: Ignored,
}

/// What is known of one address.
#[derive(Debug, Default)]
struct Link {
    connection: Option<(u64, Instant)>,
    connecting: Option<Attempt>,
    /// Questions that wait for a connection id.
    waiting: BTreeSet<RequestId>,
}

#[derive(Debug)]
struct Request {
    to: SocketAddr,
    ask: Ask,
    started_at: Instant,
    deadline: Instant,
    attempt: Attempt,
    /// Whether the tracker refused the connection id before.
    is_renewed: bool,
}

/// How often something was sent, and when it is sent again.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    transaction: u32,
    sent_count: u32,
    resend_at: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Purpose {
    Connect(SocketAddr),
    Answer(RequestId),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    Resend(Purpose),
    Deadline(RequestId),
}

/// Numbers that nobody can guess from those that he has seen: whoever could, could answer in the
/// name of another tracker.
#[derive(Debug)]
struct TransactionIds {
    key: hmac::Key,
    count: u64,
}

impl TransactionIds {
    fn new(seed: u64) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &seed.to_le_bytes()), count: 0 }
    }

    fn next(&mut self) -> u32 {
        self.count += 1;
        let tag = hmac::sign(&self.key, &self.count.to_le_bytes());
        let first = tag.as_ref().first_chunk().copied();
        u32::from_be_bytes(first.unwrap_or_default())
    }
}

impl Client {
    /// Nothing asked yet. `port` is where peers reach us, `key` is random per start; `seed`
    /// decides transaction ids and has to be secret.
    pub fn new(peer_id: PeerId, port: u16, key: u32, seed: u64) -> Self {
        Self {
            sender: Sender { peer_id, port, key },
            transaction_ids: TransactionIds::new(seed),
            links: BTreeMap::new(),
            requests: BTreeMap::new(),
            transactions: BTreeMap::new(),
            timers: BTreeSet::new(),
            outgoing: VecDeque::new(),
            outcomes: VecDeque::new(),
            next_id: 0,
            ignored: Ignored::default(),
        }
    }

    /// Asks the tracker at `to`, until `deadline`.
    ///
    /// # Errors
    /// Too much is being asked already.
    pub fn ask(
        &mut self,
        now: Instant,
        to: SocketAddr,
        ask: Ask,
        deadline: Instant,
    ) -> Result<RequestId, Failure> {
        if self.links.len() >= LINKS_MAX {
            self.links.retain(|_, link| link.is_worth_keeping(now));
        }
        let is_known = self.links.contains_key(&to);
        let is_full = self.requests.len() >= REQUESTS_MAX;
        if is_full || (!is_known && self.links.len() >= LINKS_MAX) {
            return Err(Failure::Connect("too many UDP trackers are asked already".into()));
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let transaction = self.new_transaction(Purpose::Answer(id));
        let attempt = Attempt { transaction, sent_count: 0, resend_at: None };
        let (started_at, is_renewed) = (now, false);
        let request = Request { to, ask, started_at, deadline, attempt, is_renewed };
        self.requests.insert(id, request);
        self.timers.insert((deadline, Timer::Deadline(id)));
        self.proceed(now, id);
        Ok(id)
    }

    /// The answer is not wanted any more.
    pub fn cancel(&mut self, id: RequestId) {
        self.forget(id);
        self.outcomes.retain(|(other, _)| *other != id);
    }

    /// Takes a datagram. False if it was no answer that is waited for; then it is counted.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        let transaction = packet::transaction_of(bytes).filter(|_| packet::is_reply(bytes));
        let Some(transaction) = transaction else {
            self.ignored.malformed += 1;
            return false;
        };
        let Some(purpose) = self.transactions.get(&transaction).copied() else {
            self.ignored.transaction += 1;
            return false;
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if self.address_of(purpose) != Some(from) {
            self.ignored.source += 1;
            return false;
        }
        let Some(answer) = packet::parse(bytes, Family::of(from.ip())) else {
            self.ignored.malformed += 1;
            return false;
        };
        let is_taken = match purpose {
            Purpose::Connect(to) => self.handle_connect_answer(now, to, answer),
            Purpose::Answer(id) => self.handle_answer(now, id, answer),
        };
        self.ignored.action += u64::from(!is_taken);
        is_taken
    }

    /// Nothing can be sent to `to`: all that is asked there fails.
    pub fn handle_unreachable(&mut self, to: SocketAddr, why: &str) {
        self.fail_all(to, &Failure::Connect(why.to_owned()));
    }

    /// The deadline came.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, timer)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            match timer {
                Timer::Resend(Purpose::Connect(to)) => self.send_connect(now, to),
                Timer::Resend(Purpose::Answer(id)) => self.proceed(now, id),
                Timer::Deadline(id) => {
                    let Some(request) = self.forget(id) else { continue };
                    let waited = request.deadline.saturating_duration_since(request.started_at);
                    self.outcomes.push_back((id, Err(Failure::Timeout(waited))));
                }
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The next datagram to send, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outgoing.pop_front()
    }

    /// The next answer or failure.
    pub fn poll_outcome(&mut self) -> Option<(RequestId, Result<Answer, Failure>)> {
        self.outcomes.pop_front()
    }

    /// Datagrams that were ignored so far.
    pub fn ignored(&self) -> Ignored {
        self.ignored
    }

    /// Sends a question if there is a connection id, or asks for one first.
    fn proceed(&mut self, now: Instant, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let to = request.to;
        let link = self.links.entry(to).or_default();
        let Some((connection, _)) = link.connection.filter(|(_, until)| *until > now) else {
            request.attempt.resend_at = None;
            link.waiting.insert(id);
            if link.connecting.is_none() {
                self.send_connect(now, to);
            }
            return;
        };
        let transaction = request.attempt.transaction;
        let datagram = match &request.ask {
            Ask::Announce(what) => packet::announce(connection, transaction, &self.sender, what),
            Ask::Scrape(torrents) => packet::scrape(connection, transaction, torrents),
        };
        let resend_at = request.attempt.sent(now);
        self.timers.insert((resend_at, Timer::Resend(Purpose::Answer(id))));
        self.outgoing.push_back((to, datagram));
    }

    fn send_connect(&mut self, now: Instant, to: SocketAddr) {
        let is_wanted = self.links.get(&to).is_some_and(|link| !link.waiting.is_empty());
        if !is_wanted {
            self.end_connecting(to);
            return;
        }
        let old = self.links.get(&to).and_then(|link| link.connecting);
        let mut attempt = old.unwrap_or_else(|| Attempt {
            transaction: self.new_transaction(Purpose::Connect(to)),
            sent_count: 0,
            resend_at: None,
        });
        let resend_at = attempt.sent(now);
        self.timers.insert((resend_at, Timer::Resend(Purpose::Connect(to))));
        self.outgoing.push_back((to, packet::connect(attempt.transaction)));
        if let Some(link) = self.links.get_mut(&to) {
            link.connecting = Some(attempt);
        }
    }

    /// False if that is not what a connect is answered with.
    fn handle_connect_answer(
        &mut self,
        now: Instant,
        to: SocketAddr,
        answer: packet::Answer,
    ) -> bool {
        match answer {
            packet::Answer::Connected(connection) => {
                self.end_connecting(to);
                let Some(link) = self.links.get_mut(&to) else { return true };
                link.connection = Some((connection, now + CONNECTION_KEPT));
                for id in std::mem::take(&mut link.waiting) {
                    self.proceed(now, id);
                }
                true
            }
            packet::Answer::Error(reason) => {
                self.fail_all(to, &Failure::Reason { reason, retry: None });
                true
            }
            packet::Answer::Announced(_) | packet::Answer::Scraped(_) | packet::Answer::Empty => {
                false
            }
        }
    }

    /// False if that is not what the question is answered with.
    fn handle_answer(&mut self, now: Instant, id: RequestId, answer: packet::Answer) -> bool {
        let Some(request) = self.requests.get_mut(&id) else { return false };
        let outcome = match (answer, &request.ask) {
            (packet::Answer::Announced(reply), Ask::Announce(_)) => Ok(Answer::Announced(reply)),
            (packet::Answer::Scraped(mut rows), Ask::Scrape(torrents)) => {
                rows.truncate(torrents.len());
                Ok(Answer::Scraped(rows))
            }
            (packet::Answer::Empty, Ask::Announce(_)) => {
                let what = "it is empty, so it seems not to serve the torrent";
                Err(Failure::Malformed(what.into()))
            }
            (packet::Answer::Error(reason), _) => {
                if !request.is_renewed && is_about_connection(&reason) {
                    request.is_renewed = true;
                    self.renew(now, id);
                    return true;
                }
                Err(Failure::Reason { reason, retry: None })
            }
            _ => return false,
        };
        self.forget(id);
        self.outcomes.push_back((id, outcome));
        true
    }

    /// A tracker that forgot our connection id, as after its restart, is connected to again.
    fn renew(&mut self, now: Instant, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (to, resend_at) = (request.to, request.attempt.resend_at.take());
        if let Some(at) = resend_at {
            self.timers.remove(&(at, Timer::Resend(Purpose::Answer(id))));
        }
        if let Some(link) = self.links.get_mut(&to) {
            link.connection = None;
        }
        self.proceed(now, id);
    }

    fn fail_all(&mut self, to: SocketAddr, failure: &Failure) {
        let of_link = |(id, request): (&RequestId, &Request)| (request.to == to).then_some(*id);
        let ids: Vec<_> = self.requests.iter().filter_map(of_link).collect();
        for id in ids {
            self.forget(id);
            self.outcomes.push_back((id, Err(failure.clone())));
        }
    }

    /// Drops a question and all that waits for it.
    fn forget(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.transactions.remove(&request.attempt.transaction);
        self.timers.remove(&(request.deadline, Timer::Deadline(id)));
        if let Some(at) = request.attempt.resend_at {
            self.timers.remove(&(at, Timer::Resend(Purpose::Answer(id))));
        }
        let link = self.links.get_mut(&request.to)?;
        link.waiting.remove(&id);
        if link.waiting.is_empty() {
            self.end_connecting(request.to);
        }
        Some(request)
    }

    fn end_connecting(&mut self, to: SocketAddr) {
        let connecting = self.links.get_mut(&to).and_then(|link| link.connecting.take());
        let Some(attempt) = connecting else { return };
        self.transactions.remove(&attempt.transaction);
        if let Some(at) = attempt.resend_at {
            self.timers.remove(&(at, Timer::Resend(Purpose::Connect(to))));
        }
    }

    fn address_of(&self, purpose: Purpose) -> Option<SocketAddr> {
        match purpose {
            Purpose::Connect(to) => Some(to),
            Purpose::Answer(id) => self.requests.get(&id).map(|request| request.to),
        }
    }

    /// A number that no other transaction has; there are few, so it is found at once.
    fn new_transaction(&mut self, purpose: Purpose) -> u32 {
        let mut transaction = self.transaction_ids.next();
        while self.transactions.contains_key(&transaction) {
            transaction = transaction.wrapping_add(1);
        }
        self.transactions.insert(transaction, purpose);
        transaction
    }
}

impl Attempt {
    /// It is sent now. Gives back when it is sent again.
    fn sent(&mut self, now: Instant) -> Instant {
        let doubling = 2u32.saturating_pow(self.sent_count.min(DOUBLINGS_MAX));
        self.sent_count = self.sent_count.saturating_add(1);
        let resend_at = now + RESEND_AFTER.saturating_mul(doubling);
        self.resend_at = Some(resend_at);
        resend_at
    }
}

impl Link {
    fn is_worth_keeping(&self, now: Instant) -> bool {
        let is_connected = self.connection.is_some_and(|(_, until)| until > now);
        is_connected || self.connecting.is_some() || !self.waiting.is_empty()
    }
}

/// Whether a tracker complains about the connection id; there is no number for that.
fn is_about_connection(reason: &str) -> bool {
    reason.to_ascii_lowercase().contains("connection id")
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
