//! What a node counts: queries by method and result, bytes, and what it dropped and why.
//!
//! Increments enter, totals since the start leave. Invariant: the labels are few and fixed;
//! nothing that comes from outside becomes one.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::address::Refusal;
use super::krpc::{Args, Malformed};

/// The kinds of query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `ping`
    Ping,
    /// `find_node`
    FindNode,
    /// `get_peers`
    GetPeers,
    /// `announce_peer`
    AnnouncePeer,
    /// `sample_infohashes`
    SampleInfohashes,
    /// Any other.
    Other,
}

impl Method {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Ping,
        Self::FindNode,
        Self::GetPeers,
        Self::AnnouncePeer,
        Self::SampleInfohashes,
        Self::Other,
    ];

    /// The kind of a query.
    pub fn of(args: &Args) -> Self {
        match args {
            Args::Ping => Self::Ping,
            Args::FindNode { .. } => Self::FindNode,
            Args::GetPeers { .. } => Self::GetPeers,
            Args::AnnouncePeer { .. } => Self::AnnouncePeer,
            Args::SampleInfohashes { .. } => Self::SampleInfohashes,
            Args::Unknown => Self::Other,
        }
    }

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::FindNode => "find_node",
            Self::GetPeers => "get_peers",
            Self::AnnouncePeer => "announce_peer",
            Self::SampleInfohashes => "sample_infohashes",
            Self::Other => "other",
        }
    }
}

/// What became of a query of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// It got its answer.
    Reply,
    /// It got an error: a bad token, port or method.
    Error,
    /// Its sender or all senders together asked too much.
    Limited,
}

impl Answered {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Reply, Self::Error, Self::Limited];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Error => "error",
            Self::Limited => "limited",
        }
    }
}

/// What became of a query of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// It was answered.
    Reply,
    /// It was answered with an error.
    Error,
    /// It was not answered.
    Lost,
}

impl Asked {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Reply, Self::Error, Self::Lost];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::Error => "error",
            Self::Lost => "lost",
        }
    }
}

/// Why a datagram, or a part of one, was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Nothing in it.
    Empty,
    /// Not bencode within our limits.
    Bencode,
    /// No transaction id, or a long one.
    Transaction,
    /// Neither query nor reply nor error.
    Kind,
    /// No sender's id.
    Id,
    /// A query without its arguments.
    Arguments,
    /// A token too long.
    Token,
    /// From the wrong family of addresses.
    Family,
    /// From a port below 1024, or naming one.
    Port,
    /// From an address that the policy closes, or naming one.
    Address,
    /// From ourselves, or naming us.
    Ourselves,
    /// An answer that nobody waited for.
    Unasked,
    /// An answer of another node than was asked.
    WrongId,
    /// A query while we only ask (BEP 43).
    ReadOnly,
    /// There was no place for it in a queue.
    QueueFull,
}

impl Dropped {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Empty,
        Self::Bencode,
        Self::Transaction,
        Self::Kind,
        Self::Id,
        Self::Arguments,
        Self::Token,
        Self::Family,
        Self::Port,
        Self::Address,
        Self::Ourselves,
        Self::Unasked,
        Self::WrongId,
        Self::ReadOnly,
        Self::QueueFull,
    ];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Bencode => "bencode",
            Self::Transaction => "transaction",
            Self::Kind => "kind",
            Self::Id => "id",
            Self::Arguments => "arguments",
            Self::Token => "token",
            Self::Family => "family",
            Self::Port => "port",
            Self::Address => "address",
            Self::Ourselves => "ourselves",
            Self::Unasked => "unasked",
            Self::WrongId => "wrong_id",
            Self::ReadOnly => "read_only",
            Self::QueueFull => "queue_full",
        }
    }
}

impl From<Malformed> for Dropped {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Empty => Self::Empty,
            Malformed::Bencode => Self::Bencode,
            Malformed::Transaction => Self::Transaction,
            Malformed::Kind => Self::Kind,
            Malformed::Id => Self::Id,
            Malformed::Arguments => Self::Arguments,
            Malformed::Token => Self::Token,
        }
    }
}

impl From<Refusal> for Dropped {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Family => Self::Family,
            Refusal::Port => Self::Port,
            Refusal::Policy => Self::Address,
            Refusal::Ourselves => Self::Ourselves,
        }
    }
}

/// Upper bounds in seconds of the buckets of [`Waits`], but for the last one (infinity).
pub const WAIT_BOUNDS: [f64; 6] = [0.025, 0.1, 0.4, 1.6, 3.2, 6.4];

/// How long answers took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waits {
    /// Answers by bucket.
    pub counts: [u64; WAIT_BOUNDS.len() + 1],
    /// Nanoseconds of all of them together.
    pub nanos: u64,
}

impl Waits {
    fn add(&mut self, wait: Duration) {
        let seconds = wait.as_secs_f64();
        let bucket = WAIT_BOUNDS.partition_point(|&bound| bound < seconds);
        self.counts[bucket] += 1;
        self.nanos = self.nanos.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Totals since a node was made; they only grow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    answered: [[u64; 3]; 6],
    asked: [[u64; 3]; 6],
    dropped: [u64; 15],
    /// How long it took others to answer us, be it with an error.
    pub waits: Waits,
    /// Bytes of all datagrams that came.
    pub received_len: u64,
    /// Bytes of all datagrams that were handed out.
    pub sent_len: u64,
    /// Bytes of answers among them.
    pub reply_len: u64,
    /// Addresses in replies that may not be contacted.
    pub poisoned_count: u64,
    /// Lookups that came to their end.
    pub lookup_count: u64,
    /// Announces that nodes confirmed.
    pub announce_count: u64,
    /// Events that nobody fetched in time.
    pub lost_event_count: u64,
}

impl Counters {
    /// Queries of others with this method and result.
    pub fn answered(&self, method: Method, result: Answered) -> u64 {
        self.answered[method as usize][result as usize]
    }

    /// Queries of ours with this method and result; those on their way are not among them.
    pub fn asked(&self, method: Method, result: Asked) -> u64 {
        self.asked[method as usize][result as usize]
    }

    /// Datagrams that were dropped for this reason.
    pub fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    pub(crate) fn answer(&mut self, method: Method, result: Answered) {
        self.answered[method as usize][result as usize] += 1;
    }

    pub(crate) fn ask(&mut self, method: Method, result: Asked) {
        self.asked[method as usize][result as usize] += 1;
    }

    pub(crate) fn waited(&mut self, wait: Duration) {
        self.waits.add(wait);
    }

    pub(crate) fn drop(&mut self, reason: Dropped) {
        self.dropped[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_fall_into_their_buckets() {
        let mut counters = Counters::default();
        for ms in [0, 25, 26, 100, 6_400, 6_401] {
            counters.waited(Duration::from_millis(ms));
        }
        assert_eq!(counters.waits.counts, [2, 2, 0, 0, 0, 1, 1]);
        assert_eq!(counters.waits.nanos, 12_952_000_000);
    }

    #[test]
    fn every_value_has_its_own_cell_and_label() {
        for (at, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, at);
        }
        for (at, reason) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
        for (at, result) in Asked::ALL.into_iter().enumerate() {
            assert_eq!((result as usize, Answered::ALL[at] as usize), (at, at));
        }
        let labels: std::collections::BTreeSet<_> =
            Dropped::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Dropped::ALL.len());
    }
}
