//! IPv4 and IPv6 of one tracker, which learns of each only by itself (BEP 7, BEP 15).
//!
//! An exchange per family enters, one reply leaves: the peers of both, merged. Invariant: the
//! answer of one family never waits long for the other, and a family that failed while the other
//! one worked is left out for a while.
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
#[derive(Default)]
pub(super) struct Families {
    rests: Mutex<BTreeMap<(Arc<str>, Family), Instant>>,
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

    /// Both families at once: the first success waits a little for the other one.
    async fn race(
        &self,
        host: &Arc<str>,
        (first, one): (Family, impl Future<Output = Result<Reply, Failure>>),
        (second, two): (Family, impl Future<Output = Result<Reply, Failure>>),
    ) -> Result<Reply, Failure> {
        tokio::pin!(one, two);
        let (answer, late_family, late) = tokio::select! {
            answer = &mut one => match answer {
                Ok(_) => (answer, second, tokio::time::timeout(FAMILY_GRACE, two).await.ok()),
                Err(_) => (two.await, first, Some(answer)),
            },
            answer = &mut two => match answer {
                Ok(_) => (answer, first, tokio::time::timeout(FAMILY_GRACE, one).await.ok()),
                Err(_) => (one.await, second, Some(answer)),
            },
        };
        match (answer, late) {
            (Ok(answer), Some(Ok(late))) => Ok(merge(answer, late)),
            (Ok(answer), _) => {
                self.rest(host, late_family);
                Ok(answer)
            }
            // Of two failures, the one that the tracker itself gave says more.
            (Err(_), Some(Err(said @ (Failure::Reason { .. } | Failure::Status { .. })))) => {
                Err(said)
            }
            (failure, _) => failure,
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
}
