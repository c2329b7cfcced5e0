//! Queries of ours that wait for an answer, and how long answers take.
//!
//! Queries, answers and `now` enter; the query that an answer belongs to, and queries that are
//! late or lost, leave. Invariant: an answer counts only once, only from the address that was
//! asked, and only with the 32 unforeseeable bits that went there.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::NodeId;
use super::counters::Method;

/// Queries on their way.
pub(super) const PENDING_MAX: usize = 2048;

/// Time after which an answer is late, before any was measured.
pub(super) const LATE_AT_FIRST: Duration = Duration::from_secs(1);

/// The least and most time after which an answer is late.
pub(super) const LATE_RANGE: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(2));

/// The least and most time after which an answer is given up; between them four times the time
/// after which it is late.
pub(super) const LOST_RANGE: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(6));

/// What a query was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// To see whether a node is there.
    Ping,
    /// A step of the lookup of this number.
    Lookup(u64),
    /// To say that we have a torrent.
    Announce,
}

/// A query on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sent {
    pub(super) purpose: Purpose,
    pub(super) method: Method,
    /// Who should be there.
    pub(super) id: Option<NodeId>,
    pub(super) sent_at: Instant,
    is_late: bool,
    due_at: Instant,
}

/// What became of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    Late(SocketAddr, Sent),
    Lost(SocketAddr, Sent),
}

/// All queries on their way.
#[derive(Debug, Default)]
pub(super) struct Pending {
    sent: BTreeMap<(SocketAddr, u32), Sent>,
    due: BTreeSet<(Instant, SocketAddr, u32)>,
    /// Smoothed round trip and its deviation, as TCP keeps them (RFC 6298).
    round_trip: Option<(Duration, Duration)>,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Notes a query; false if there are too many, or one to the same address has the same id.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        transaction: u32,
        (purpose, method, id): (Purpose, Method, Option<NodeId>),
    ) -> bool {
        let key = (addr, transaction);
        if self.sent.len() >= PENDING_MAX || self.sent.contains_key(&key) {
            return false;
        }
        let due_at = now + self.late_after();
        self.due.insert((due_at, addr, transaction));
        let sent = Sent { purpose, method, id, sent_at: now, is_late: false, due_at };
        self.sent.insert(key, sent);
        true
    }

    /// The query that an answer from `addr` belongs to, which is thereby over.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        transaction: &[u8],
    ) -> Option<Sent> {
        let transaction = u32::from_be_bytes(transaction.try_into().ok()?);
        let sent = self.sent.remove(&(addr, transaction))?;
        self.due.remove(&(sent.due_at, addr, transaction));
        self.measure(now.saturating_duration_since(sent.sent_at));
        Some(sent)
    }

    /// A query whose answer is late, told once, or lost.
    pub(super) fn poll_due(&mut self, now: Instant) -> Option<Due> {
        let (due_at, addr, transaction) = self.due.first().copied().filter(|due| due.0 <= now)?;
        self.due.remove(&(due_at, addr, transaction));
        let key = (addr, transaction);
        let lost_after = (self.late_after() * 4).clamp(LOST_RANGE.0, LOST_RANGE.1);
        let sent = self.sent.get_mut(&key)?;
        if sent.is_late {
            return self.sent.remove(&key).map(|sent| Due::Lost(addr, sent));
        }
        sent.is_late = true;
        sent.due_at = (sent.sent_at + lost_after).max(due_at);
        self.due.insert((sent.due_at, addr, transaction));
        Some(Due::Late(addr, *sent))
    }

    /// When [`poll_due`](Self::poll_due) will have something to say.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|due| due.0)
    }

    fn late_after(&self) -> Duration {
        let measured = self.round_trip.map(|(mean, deviation)| mean + 4 * deviation);
        measured.unwrap_or(LATE_AT_FIRST).clamp(LATE_RANGE.0, LATE_RANGE.1)
    }

    fn measure(&mut self, sample: Duration) {
        self.round_trip = Some(match self.round_trip {
            None => (sample, sample / 2),
            Some((mean, deviation)) => {
                ((mean * 7 + sample) / 8, (deviation * 3 + mean.abs_diff(sample)) / 4)
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([8, 8, 8, 8], port).into()
    }

    const WHAT: (Purpose, Method, Option<NodeId>) = (Purpose::Ping, Method::Ping, None);

    #[test]
    fn only_the_one_that_was_asked_can_answer_and_only_once() {
        let now = super::super::tests::start();
        let mut pending = Pending::default();
        assert!(pending.insert(now, addr(1), 0x0102_0304, WHAT));
        assert!(!pending.insert(now, addr(1), 0x0102_0304, WHAT));
        for (from, transaction) in [
            (addr(2), b"\x01\x02\x03\x04".as_slice()),
            (addr(1), b"\x01\x02\x03\x05"),
            (addr(1), b"\x01\x02\x03"),
            (addr(1), b"\x01\x02\x03\x04\x05"),
            (addr(1), b""),
        ] {
            assert_eq!(pending.handle_answer(now, from, transaction), None);
        }
        assert!(pending.handle_answer(now, addr(1), b"\x01\x02\x03\x04").is_some());
        assert!(pending.handle_answer(now, addr(1), b"\x01\x02\x03\x04").is_none());
        assert_eq!((pending.len(), pending.next_at()), (0, None));
    }

    #[test]
    fn silence_is_late_first_and_then_lost() {
        let now = super::super::tests::start();
        let mut pending = Pending::default();
        pending.insert(now, addr(1), 1, WHAT);
        assert_eq!(pending.poll_due(now + LATE_AT_FIRST - Duration::from_nanos(1)), None);
        let late = pending.poll_due(now + LATE_AT_FIRST);
        assert!(matches!(late, Some(Due::Late(..))), "{late:?}");
        assert_eq!(pending.next_at(), Some(now + Duration::from_secs(4)));
        let lost = pending.poll_due(now + Duration::from_secs(4));
        assert!(matches!(lost, Some(Due::Lost(..))), "{lost:?}");
        assert_eq!((pending.len(), pending.next_at()), (0, None));
    }

    #[test]
    fn waits_follow_the_round_trip() {
        let now = super::super::tests::start();
        let mut pending = Pending::default();
        for at in 0..50u32 {
            pending.insert(now, addr(1), at, WHAT);
            pending.handle_answer(now + Duration::from_millis(100), addr(1), &at.to_be_bytes());
        }
        assert_eq!(pending.late_after(), LATE_RANGE.0);
        for at in 0..50u32 {
            pending.insert(now, addr(1), at, WHAT);
            pending.handle_answer(now + Duration::from_secs(600), addr(1), &at.to_be_bytes());
        }
        assert_eq!(pending.late_after(), LATE_RANGE.1);
    }

    #[test]
    fn the_table_is_bounded() {
        let now = super::super::tests::start();
        let mut pending = Pending::default();
        let taken = (0..10_000).filter(|at| pending.insert(now, addr(1), *at, WHAT)).count();
        assert_eq!((taken, pending.len()), (PENDING_MAX, PENDING_MAX));
        while pending.poll_due(now + Duration::from_secs(60)).is_some() {}
        assert_eq!((pending.len(), pending.next_at()), (0, None));
    }
}
