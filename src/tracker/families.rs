//! IPv4 and IPv6 of one tracker, which learns of each only by itself (BEP 7, BEP 15).
//!
//! An exchange per family enters, one reply leaves: the peers of both, merged. Invariant: what the
//! tracker says over one family, be it a refusal, never waits long for the other, and a family that
//! failed or was silent while the other one worked is left out for a while.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::reply::PEERS_MAX;
use super::{Failure, Reply};
use crate::sys::clock;

/// How long the answer of one family waits for that of the other.
const FAMILY_GRACE: Duration = Duration::from_secs(3);

/// How long a family is left out for a host where it failed while the other one worked.
const FAMILY_REST: Duration = Duration::from_secs(30 * 60);

/// Hosts of which a failing family is remembered.
const FAMILY_RESTS_MAX: usize = 4096;

/// A family of addresses: announces go out over each one that both sides have (BEP 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Which families fail at which hosts.
pub(super) struct Families {
    rests: Mutex<BTreeMap<(Arc<str>, Family), Instant>>,
    grace: Duration,
}

impl Default for Families {
    fn default() -> Self {
        Self { rests: Mutex::default(), grace: FAMILY_GRACE }
    }
}

impl Families {
    /// Announces over every family of `present` that works, and merges the answers.
    pub(super) async fn announce<E: Future<Output = Result<Reply, Failure>>>(
        &self,
        host: &Arc<str>,
        present: &[Family],
        exchange: impl Fn(Family) -> E,
    ) -> Result<Reply, Failure> {
        let awake = |family: &&Family| present.len() < 2 || !self.is_resting(host, **family);
        let usable: Vec<_> = present.iter().filter(awake).collect();
        match usable.as_slice() {
            [first, second, ..] => {
                let (one, two) = (exchange(**first), exchange(**second));
                self.race(host, (**first, one), (**second, two)).await
            }
            [family] => exchange(**family).await,
            [] => match present.first() {
                Some(family) => exchange(*family).await,
                None => Err(Failure::Dns("it has no address of a family that we use".into())),
            },
        }
    }

    /// Both families at once: the first word of the tracker waits a little for the other one.
    async fn race(
        &self,
        host: &Arc<str>,
        (first, one): (Family, impl Future<Output = Result<Reply, Failure>>),
        (second, two): (Family, impl Future<Output = Result<Reply, Failure>>),
    ) -> Result<Reply, Failure> {
        tokio::pin!(one, two);
        let (early, early_family, late, late_family) = tokio::select! {
            early = &mut one => {
                let late = self.wait(&early, two).await;
                (early, first, late, second)
            }
            early = &mut two => {
                let late = self.wait(&early, one).await;
                (early, second, late, first)
            }
        };
        match (early, late) {
            (Ok(early), Some(Ok(late))) => Ok(merge(early, late)),
            (Err(_), Some(Ok(late))) => {
                self.rest(host, early_family);
                Ok(late)
            }
            (Ok(early), _) => {
                self.rest(host, late_family);
                Ok(early)
            }
            (Err(early), None) => {
                self.rest(host, late_family);
                Err(early)
            }
            // Of two failures, the one that the tracker itself gave says more.
            (Err(early), Some(Err(late))) => Err(if is_said(&early) { early } else { late }),
        }
    }

    /// The other family's outcome: as long as the tracker has said nothing over the first one it is
    /// all that there is to wait for.
    async fn wait(
        &self,
        early: &Result<Reply, Failure>,
        late: impl Future<Output = Result<Reply, Failure>>,
    ) -> Option<Result<Reply, Failure>> {
        if early.as_ref().err().is_none_or(is_said) {
            tokio::time::timeout(self.grace, late).await.ok()
        } else {
            Some(late.await)
        }
    }

    fn is_resting(&self, host: &Arc<str>, family: Family) -> bool {
        let rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        rests.get(&(Arc::clone(host), family)).is_some_and(|until| *until > clock::now())
    }

    fn rest(&self, host: &Arc<str>, family: Family) {
        let now = clock::now();
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        if rests.len() >= FAMILY_RESTS_MAX {
            rests.retain(|_, until| *until > now);
        }
        if rests.len() < FAMILY_RESTS_MAX {
            rests.insert((Arc::clone(host), family), now + FAMILY_REST);
        }
    }
}

/// Whether a failure is the tracker's own word, and not the network's.
fn is_said(failure: &Failure) -> bool {
    matches!(failure, Failure::Reason { .. } | Failure::Status { .. })
}

/// The peers of both families in turn, so that the limit cuts neither off; all else is `one`'s.
fn merge(mut one: Reply, two: Reply) -> Reply {
    let length = one.peers.len().max(two.peers.len());
    let (mine, theirs) = (std::mem::take(&mut one.peers), two.peers);
    for index in 0..length {
        for peer in [mine.get(index), theirs.get(index)].into_iter().flatten() {
            if one.peers.len() < PEERS_MAX && !one.peers.contains(peer) {
                one.peers.push(*peer);
            }
        }
    }
    one.dropped_count = one.dropped_count.saturating_add(two.dropped_count);
    one.refused = one.refused.or(two.refused);
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_families_merge_in_turn() {
        let peers = |ips: &[&str]| ips.iter().map(|at| at.parse().unwrap()).collect();
        let one = Reply { peers: peers(&["1.1.1.1:1", "1.1.1.2:1"]), ..Reply::default() };
        let two = Reply { peers: peers(&["[2a00::1]:1", "1.1.1.1:1"]), ..Reply::default() };
        let merged: Vec<_> = merge(one, two).peers.iter().map(ToString::to_string).collect();
        assert_eq!(merged, ["1.1.1.1:1", "[2a00::1]:1", "1.1.1.2:1"]);
    }
    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// What an announce comes to where IPv4 answers and IPv6 takes connections and says nothing.
    async fn beside_silence(
        families: &Families,
        answer: Result<Reply, Failure>,
    ) -> Result<Reply, Failure> {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = silent.local_addr().unwrap();
        let exchange = |family| {
            let answer = answer.clone();
            async move {
                if family == Family::V6 {
                    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
                    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await;
                    unreachable!("the silent one said {read:?}");
                }
                answer
            }
        };
        let host = "t.example".into();
        let announce = families.announce(&host, &BOTH, exchange);
        let answer = tokio::time::timeout(Duration::from_secs(10), announce).await;
        answer.expect("it waits for the silent family")
    }

    #[tokio::test]
    async fn the_word_of_a_tracker_does_not_wait_for_a_silent_family() {
        let reason = Failure::Reason { reason: "not registered".into(), retry: None };
        let status = Failure::Status { status: 503, retry_after: None };
        for answer in [Ok(Reply::default()), Err(reason), Err(status)] {
            let families = Families { grace: Duration::from_millis(20), ..Families::default() };
            assert_eq!(beside_silence(&families, answer.clone()).await, answer);
            let is_resting = |family| families.is_resting(&"t.example".into(), family);
            assert!(is_resting(Family::V6) && !is_resting(Family::V4), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_family_that_the_network_failed_is_no_word_of_the_tracker() {
        let families = Families { grace: Duration::ZERO, ..Families::default() };
        let exchange = |family| async move {
            if family == Family::V4 {
                return Err(Failure::Connect("refused".into()));
            }
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            Ok(Reply::default())
        };
        let answer = families.announce(&"t.example".into(), &BOTH, exchange).await;
        assert_eq!(answer, Ok(Reply::default()));
        assert!(families.is_resting(&"t.example".into(), Family::V4));
    }
}
