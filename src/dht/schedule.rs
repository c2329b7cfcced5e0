//! When which torrent is looked up and announced.
//!
//! Torrents, questions, outcomes and `now` enter; the next thing to do leaves. Invariant: nothing
//! here walks all torrents, a torrent is looked up by one lookup at a time, and what somebody
//! waits for goes before what comes round by itself.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::units::InfoHash;

/// Torrents that one node announces.
pub(super) const TORRENTS_MAX: usize = 200_000;

/// Questions that wait for their lookup.
pub(super) const QUESTIONS_MAX: usize = 1024;

/// Time between two announces of a torrent; each is moved by up to [`JITTER_PERCENT`].
pub(super) const ANNOUNCE_EVERY: Duration = Duration::from_secs(15 * 60);

/// Time until the next try of an announce that no node took.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Time until the next try of a torrent that lacks data, when a lookup found no peer of it; it
/// doubles with each such lookup in a row, up to [`ANNOUNCE_EVERY`].
pub(super) const SEEK_AFTER: Duration = Duration::from_secs(30);

/// How far, in percent, an announce is moved at random.
pub(super) const JITTER_PERCENT: u32 = 10;

/// What an announce says of us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Announce {
    /// TCP port that peers can reach us at.
    pub port: u16,
    /// Whether we have everything (BEP 33).
    pub is_seed: bool,
}

/// What to do with a torrent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Task {
    /// Find peers and say that we are one.
    Announce,
    /// Only find peers.
    FindPeers,
    /// Only count peers (BEP 33).
    Scrape,
}

#[derive(Debug)]
struct Torrent {
    announce: Announce,
    /// `None` while a lookup runs or waits among the questions.
    due_at: Option<Instant>,
    /// Lookups in a row that found no peer.
    fruitless_count: u32,
}

/// How a lookup for a torrent ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    /// Nodes that were told of us.
    pub(super) announce_count: usize,
    /// Peers that were named to us.
    pub(super) peer_count: usize,
}

/// The torrents of one node.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    torrents: BTreeMap<InfoHash, Torrent>,
    due: BTreeSet<(Instant, InfoHash)>,
    questions: VecDeque<(InfoHash, Task)>,
    running: BTreeSet<(InfoHash, Task)>,
}

impl Torrent {
    /// How long it is until its next lookup. Who lacks data and knows nobody asks again soon: the
    /// only peer may be announced a moment after we asked.
    fn wait_after(&mut self, found: Found) -> Duration {
        let is_fruitless = found.peer_count == 0 && !self.announce.is_seed;
        let wait = match is_fruitless {
            true => SEEK_AFTER.saturating_mul(1 << self.fruitless_count.min(16)),
            false => ANNOUNCE_EVERY,
        };
        self.fruitless_count =
            if is_fruitless { self.fruitless_count.saturating_add(1) } else { 0 };
        let wait_max = if found.announce_count == 0 { RETRY_AFTER } else { ANNOUNCE_EVERY };
        wait.min(wait_max)
    }
}

impl Schedule {
    /// Takes a torrent, due now, or changes what its announces say. False if there are too many.
    pub(super) fn add(&mut self, now: Instant, hash: InfoHash, announce: Announce) -> bool {
        if let Some(torrent) = self.torrents.get_mut(&hash) {
            torrent.announce = announce;
            return true;
        }
        if self.torrents.len() >= TORRENTS_MAX {
            return false;
        }
        // One that was removed and came back may still be running.
        let due_at = (!self.running.contains(&(hash, Task::Announce))).then_some(now);
        self.torrents.insert(hash, Torrent { announce, due_at, fruitless_count: 0 });
        self.due.extend(due_at.map(|due_at| (due_at, hash)));
        true
    }

    /// Forgets a torrent and the questions about it.
    pub(super) fn remove(&mut self, hash: InfoHash) {
        self.questions.retain(|(asked, _)| *asked != hash);
        if let Some(due_at) = self.torrents.remove(&hash).and_then(|torrent| torrent.due_at) {
            self.due.remove(&(due_at, hash));
        }
    }

    /// What an announce of the torrent says.
    pub(super) fn announce(&self, hash: InfoHash) -> Option<Announce> {
        self.torrents.get(&hash).map(|torrent| torrent.announce)
    }

    /// Puts a question before all announces that come round by themselves. Finding peers of a
    /// torrent that is announced is its announce. False if there are too many.
    pub(super) fn ask(&mut self, hash: InfoHash, task: Task) -> bool {
        let task = match (task, self.torrents.get_mut(&hash)) {
            (Task::FindPeers, Some(torrent)) => {
                let Some(due_at) = torrent.due_at else { return true };
                if self.questions.len() >= QUESTIONS_MAX {
                    return false;
                }
                torrent.due_at = None;
                self.due.remove(&(due_at, hash));
                Task::Announce
            }
            _ => task,
        };
        let question = (hash, task);
        if self.running.contains(&question) || self.questions.contains(&question) {
            return true;
        }
        let has_place = self.questions.len() < QUESTIONS_MAX;
        if has_place {
            self.questions.push_back(question);
        }
        has_place
    }

    /// When there is something to do.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        match self.questions.is_empty() {
            false => Some(now),
            true => self.due.first().map(|(due_at, _)| *due_at),
        }
    }

    /// The next thing to do; its end is told to [`handle_done`](Self::handle_done).
    pub(super) fn poll(&mut self, now: Instant) -> Option<(InfoHash, Task)> {
        let next = self.questions.pop_front().or_else(|| {
            let (due_at, hash) = self.due.first().copied().filter(|(due_at, _)| *due_at <= now)?;
            self.due.remove(&(due_at, hash));
            self.torrents.get_mut(&hash)?.due_at = None;
            Some((hash, Task::Announce))
        })?;
        self.running.insert(next);
        Some(next)
    }

    /// Notes that a lookup ended.
    pub(super) fn handle_done(
        &mut self,
        now: Instant,
        (hash, task): (InfoHash, Task),
        found: Found,
        rng: &mut fastrand::Rng,
    ) {
        self.running.remove(&(hash, task));
        let torrent = self.torrents.get_mut(&hash).filter(|_| task == Task::Announce);
        if let Some(torrent) = torrent {
            let percent = 100 - JITTER_PERCENT + rng.u32(..=2 * JITTER_PERCENT);
            let due_at = now + torrent.wait_after(found) / 100 * percent;
            torrent.due_at = Some(due_at);
            self.due.insert((due_at, hash));
        }
    }

    /// Torrents that are announced.
    pub(super) fn len(&self) -> usize {
        self.torrents.len()
    }

    /// Announces that should have begun `late` ago.
    pub(super) fn overdue_count(&self, now: Instant, late: Duration) -> usize {
        self.due.iter().take_while(|(due_at, _)| *due_at + late < now).count()
    }

    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        assert!(self.questions.len() <= QUESTIONS_MAX && self.due.len() <= self.torrents.len());
        for (hash, torrent) in &self.torrents {
            match torrent.due_at {
                Some(due_at) => assert!(self.due.contains(&(due_at, *hash))),
                None => {
                    let entry = (*hash, Task::Announce);
                    assert!(self.running.contains(&entry) || self.questions.contains(&entry));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAYS: Announce = Announce { port: 6881, is_seed: true };

    const NOBODY: Found = Found { announce_count: 0, peer_count: 0 };

    fn hash(number: u8) -> InfoHash {
        InfoHash([number; 20])
    }

    #[test]
    fn who_lacks_data_and_finds_nobody_asks_again_soon_and_then_less_often() {
        let mut now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(8);
        let mut waits = |announce: Announce, founds: &[Found]| {
            let mut schedule = Schedule::default();
            schedule.add(now, hash(1), announce);
            let waits = founds.iter().map(|found| {
                assert_eq!(schedule.poll(now), Some((hash(1), Task::Announce)));
                schedule.handle_done(now, (hash(1), Task::Announce), *found, &mut rng);
                schedule.check_invariants();
                let due_at = schedule.next_at(now).unwrap();
                let wait = due_at - now;
                now = due_at;
                wait.as_secs_f64()
            });
            waits.collect::<Vec<_>>()
        };
        let about = |waits: Vec<f64>, expected: &[u32]| {
            assert_eq!(waits.len(), expected.len());
            for (wait, expected) in waits.iter().zip(expected) {
                let share = wait / f64::from(*expected);
                assert!((0.89..1.11).contains(&share), "{waits:?}");
            }
        };
        let leech = Announce { is_seed: false, ..SAYS };
        let told = Found { announce_count: 8, peer_count: 0 };
        let met = Found { announce_count: 8, peer_count: 1 };
        about(waits(leech, &[told; 8]), &[30, 60, 120, 240, 480, 900, 900, 900]);
        about(waits(leech, &[told, told, met, told, told]), &[30, 60, 900, 30, 60]);
        about(waits(leech, &[NOBODY; 4]), &[30, 60, 60, 60]);
        about(waits(SAYS, &[told, told, NOBODY]), &[900, 900, 60]);
    }

    #[test]
    fn torrents_come_round_and_failures_sooner() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::default();
        assert!(schedule.add(now, hash(1), SAYS));
        assert_eq!(schedule.poll(now), Some((hash(1), Task::Announce)));
        assert_eq!((schedule.poll(now), schedule.next_at(now)), (None, None));
        schedule.handle_done(
            now,
            (hash(1), Task::Announce),
            Found { announce_count: 8, peer_count: 0 },
            &mut rng,
        );
        let wait = schedule.next_at(now).unwrap() - now;
        assert!((ANNOUNCE_EVERY * 9 / 10..=ANNOUNCE_EVERY * 11 / 10).contains(&wait), "{wait:?}");
        assert_eq!(schedule.overdue_count(now + wait * 2, wait / 2), 1);
        assert!(schedule.poll(now + wait).is_some());
        schedule.handle_done(now + wait, (hash(1), Task::Announce), NOBODY, &mut rng);
        assert!(schedule.next_at(now).unwrap() - (now + wait) <= RETRY_AFTER * 11 / 10);
        schedule.check_invariants();
    }

    #[test]
    fn questions_go_first_and_once() {
        let now = super::super::tests::start();
        let mut schedule = Schedule::default();
        (1..=3).for_each(|number| assert!(schedule.add(now, hash(number), SAYS)));
        assert!(schedule.ask(hash(3), Task::FindPeers) && schedule.ask(hash(3), Task::FindPeers));
        assert!(schedule.ask(hash(9), Task::Scrape) && schedule.ask(hash(9), Task::FindPeers));
        schedule.check_invariants();
        let order: Vec<_> = std::iter::from_fn(|| schedule.poll(now)).collect();
        let expected = [
            (hash(3), Task::Announce),
            (hash(9), Task::Scrape),
            (hash(9), Task::FindPeers),
            (hash(1), Task::Announce),
            (hash(2), Task::Announce),
        ];
        assert_eq!(order, expected);
        assert!(schedule.ask(hash(9), Task::Scrape), "it runs already");
        assert_eq!(schedule.poll(now), None);
        schedule.check_invariants();
        for number in 0..=255 {
            schedule.ask(hash(number), Task::Scrape);
            (0..5).for_each(|low| {
                let mut other = hash(number);
                other.0[19] = low;
                schedule.ask(other, Task::Scrape);
            });
        }
        assert_eq!(schedule.questions.len(), QUESTIONS_MAX);
    }

    #[test]
    fn a_removed_torrent_is_not_announced_again() {
        let now = super::super::tests::start();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut schedule = Schedule::default();
        schedule.add(now, hash(1), SAYS);
        schedule.poll(now);
        schedule.remove(hash(1));
        assert_eq!(schedule.announce(hash(1)), None);
        schedule.add(now, hash(1), SAYS);
        assert_eq!(schedule.poll(now), None, "the old lookup runs still");
        schedule.handle_done(now, (hash(1), Task::Announce), NOBODY, &mut rng);
        schedule.check_invariants();
        schedule.remove(hash(1));
        assert_eq!((schedule.len(), schedule.next_at(now)), (0, None));
    }
}
