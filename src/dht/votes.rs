//! Which address of ours others see (BEP 42).
//!
//! What single nodes say enters, an address that most of them agree on leaves. Invariant: only
//! answers of public nodes about public addresses count, each network of them once, and the
//! result changes at most once per [`CHANGE_EVERY`].
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::address::{Subnet, is_local};

/// Votes that are counted at the earliest.
pub(super) const VOTES_MIN: usize = 8;

/// Votes that are collected when no address has a majority; then it begins anew.
pub(super) const VOTES_MAX: usize = 32;

/// Time between two changes of our address.
pub(super) const CHANGE_EVERY: Duration = Duration::from_secs(300);

/// The votes of one round.
#[derive(Debug, Default)]
pub(crate) struct Votes {
    votes: BTreeMap<Subnet, IpAddr>,
    changed_at: Option<Instant>,
}

impl Votes {
    /// Takes the word of the node at `voter`; gives the address that won, if it is another one
    /// than `current`.
    pub(crate) fn handle_vote(
        &mut self,
        now: Instant,
        voter: IpAddr,
        ip: IpAddr,
        current: Option<IpAddr>,
    ) -> Option<IpAddr> {
        let subnet = Subnet::of(voter)?;
        let is_resting = |at| now.saturating_duration_since(at) < CHANGE_EVERY;
        if voter.is_ipv4() != ip.is_ipv4()
            || is_local(ip)
            || self.changed_at.is_some_and(is_resting)
        {
            return None;
        }
        self.votes.insert(subnet, ip);
        if self.votes.len() < VOTES_MIN {
            return None;
        }
        let count = |ip: &IpAddr| self.votes.values().filter(|vote| *vote == ip).count();
        let winner = self.votes.values().copied().max_by_key(|ip| (count(ip), *ip))?;
        let has_majority = count(&winner) * 2 > self.votes.len();
        if has_majority || self.votes.len() >= VOTES_MAX {
            self.votes.clear();
        }
        if !has_majority || current == Some(winner) {
            return None;
        }
        self.changed_at = Some(now);
        Some(winner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(net: u8) -> IpAddr {
        [8, 8, net, 1].into()
    }

    const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9));

    #[test]
    fn most_networks_decide_and_not_often() {
        let now = super::super::tests::start();
        let mut votes = Votes::default();
        for net in 0..3 {
            assert_eq!(votes.handle_vote(now, voter(net), [7, 7, 7, net].into(), None), None);
        }
        for _ in 0..100 {
            let liar: IpAddr = [8, 8, 3, 77].into();
            assert_eq!(votes.handle_vote(now, liar, [6, 6, 6, 6].into(), None), None);
        }
        let won: Vec<_> =
            (4..20).filter_map(|net| votes.handle_vote(now, voter(net), OURS, None)).collect();
        assert_eq!(won, [OURS]);
        let other: IpAddr = [5, 5, 5, 5].into();
        for net in 0..100 {
            assert_eq!(votes.handle_vote(now, voter(net), other, Some(OURS)), None);
        }
        let later = now + CHANGE_EVERY;
        let won: Vec<_> = (0..100)
            .filter_map(|net| votes.handle_vote(later, voter(net), other, Some(OURS)))
            .collect();
        assert_eq!(won, [other]);
    }

    #[test]
    fn votes_without_meaning_do_not_count() {
        let now = super::super::tests::start();
        let mut votes = Votes::default();
        for net in 0..100 {
            let local: IpAddr = [10, 0, net, 1].into();
            assert_eq!(votes.handle_vote(now, local, OURS, None), None);
            assert_eq!(votes.handle_vote(now, voter(net), local, None), None);
            let v6: IpAddr = "2a00::1".parse().unwrap();
            assert_eq!(votes.handle_vote(now, voter(net), v6, None), None);
            let own: IpAddr = [7, 7, net, 1].into();
            assert_eq!(votes.handle_vote(now, voter(net), own, None), None, "no majority");
        }
        assert!(votes.votes.len() < VOTES_MAX);
    }
}
