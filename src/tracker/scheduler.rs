//! The announces of all torrents, so that many torrents are no storm.
//!
//! Torrents, outcomes and `now` enter; jobs leave, never more at once than [`Limits`] allow, in
//! all and to one host, in the order of their deadlines and paced per host. Invariant: a host
//! that fails again and again, or is silent for too long, rests and holds no slot meanwhile;
//! hosts that have not answered yet hold a part of the slots only, so that dead ones delay nobody
//! who announces elsewhere; and no step looks at all torrents: what is due is found in ordered
//! sets.
#![forbid(unsafe_code)]

mod queues;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::host::{Host, Place};
pub use super::limits::Limits;
use super::{Announce, Announcer, Failure, Options, Reply, Status};
use crate::units::InfoHash;

/// An announce that was due more than this long ago is overdue.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// Time between two looks for hosts that can be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// The announces of all torrents; see the module's text.
///
/// `T` is what the owner keeps with each torrent.
#[derive(Debug)]
pub struct Scheduler<T> {
    options: Options,
    limits: Limits,
    entries: Slab<Entry<T>>,
    /// The torrents that run, and those that stop; the same torrent may be in both for a while.
    by_info_hash: BTreeMap<InfoHash, usize>,
    stopping: BTreeMap<InfoHash, usize>,
    /// What has its next announce in the future.
    waiting: BTreeSet<(Instant, Line)>,
    hosts: BTreeMap<Arc<str>, Host>,
    /// Hosts that can be announced to now, by the rank of what waits first.
    runnable: BTreeSet<(Rank, Arc<str>)>,
    /// The same for hosts that have not answered yet.
    unproven: BTreeSet<(Rank, Arc<str>)>,
    /// Hosts that have torrents ready and wait for their pace.
    pausing: BTreeSet<(Instant, Arc<str>)>,
    /// When what is ready was due.
    ready: BTreeSet<(Instant, Line)>,
    /// Announces on their way, by torrent and slot.
    on_way: BTreeMap<(usize, u16), OnWay>,
    /// When those on their way that may still be waited for have been silent for too long.
    silences: BTreeSet<(Instant, (usize, u16))>,
    unproven_in_flight_count: usize,
    sweep_at: Option<Instant>,
    is_ending: bool,
    rng: fastrand::Rng,
}

/// What is announced one after another: a torrent, and the number of one of its chains.
type Line = (usize, u16);

/// Order among what is ready: urgent torrents first, then by deadline, then by age.
pub(super) type Rank = (bool, Instant, Line);

/// An announce that is on its way.
#[derive(Debug)]
struct OnWay {
    host: Arc<str>,
    started_at: Instant,
    /// Whether it counts as one to a host that has not answered yet.
    is_unproven: bool,
}

#[derive(Debug)]
struct Entry<T> {
    info_hash: InfoHash,
    announcer: Announcer,
    /// Whether its first announce goes before those of others: someone waits for its peers.
    is_urgent: bool,
    /// Where each chain of the torrent stands.
    queues: Vec<Queue>,
    in_flight_count: usize,
    /// A torrent of the same info-hash that was added while this one was stopping.
    successor: Option<Box<Addition<T>>>,
    attachment: T,
}

/// Where a chain of a torrent stands.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Queue {
    /// Nothing to do before something is handled.
    None,
    /// In `waiting`.
    Waiting(Instant),
    /// In the ready set of a host.
    Ready(Arc<str>, Rank),
}

#[derive(Debug)]
struct Addition<T> {
    tiers: Vec<Vec<String>>,
    is_urgent: bool,
    attachment: T,
}

/// An announce to make now; its outcome is handed back with `key`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Names the torrent to [`Scheduler::handle_reply`].
    pub key: usize,
    /// The torrent.
    pub info_hash: InfoHash,
    /// What to announce.
    pub announce: Announce,
}

/// Why a torrent was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddError {
    /// It is there already.
    #[error("the torrent is announced already")]
    Duplicate,
    /// The table is full.
    #[error("{0} torrents are announced already, and more is not allowed")]
    Full(usize),
    /// The server is about to end.
    #[error("the server is ending")]
    Ending,
}

impl<T> Scheduler<T> {
    /// No torrents yet. `seed` decides shuffles and jitter.
    pub fn new(options: Options, limits: Limits, seed: u64) -> Self {
        Self {
            options,
            limits,
            entries: Slab::new(),
            by_info_hash: BTreeMap::new(),
            stopping: BTreeMap::new(),
            waiting: BTreeSet::new(),
            hosts: BTreeMap::new(),
            runnable: BTreeSet::new(),
            unproven: BTreeSet::new(),
            pausing: BTreeSet::new(),
            ready: BTreeSet::new(),
            on_way: BTreeMap::new(),
            silences: BTreeSet::new(),
            unproven_in_flight_count: 0,
            sweep_at: None,
            is_ending: false,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Starts a torrent: its first announce is due at once, and goes before those of torrents that
    /// are not urgent. A torrent that is still saying `stopped` starts when that is done.
    ///
    /// # Errors
    /// Says why it was not taken.
    pub fn add(
        &mut self,
        now: Instant,
        info_hash: InfoHash,
        tiers: &[Vec<String>],
        is_urgent: bool,
        attachment: T,
    ) -> Result<(), AddError> {
        if self.is_ending {
            return Err(AddError::Ending);
        }
        if self.by_info_hash.contains_key(&info_hash) {
            return Err(AddError::Duplicate);
        }
        if let Some(entry) =
            self.stopping.get(&info_hash).and_then(|key| self.entries.get_mut(*key))
        {
            if entry.successor.is_some() {
                return Err(AddError::Duplicate);
            }
            let addition = Addition { tiers: tiers.to_vec(), is_urgent, attachment };
            entry.successor = Some(Box::new(addition));
            return Ok(());
        }
        if self.entries.len() >= self.limits.torrents_max {
            return Err(AddError::Full(self.limits.torrents_max));
        }
        let announcer = Announcer::new(now, &self.options, tiers, self.rng.fork());
        let queues = vec![Queue::None; usize::from(announcer.chain_count())];
        let (in_flight_count, successor) = (0, None);
        let key = self.entries.insert(Entry {
            info_hash,
            announcer,
            is_urgent,
            queues,
            in_flight_count,
            successor,
            attachment,
        });
        self.by_info_hash.insert(info_hash, key);
        self.enqueue_all(now, key);
        Ok(())
    }

    /// Stops a torrent: `stopped` goes to the trackers that heard `started`, then it is forgotten.
    /// False if it is not there.
    pub fn remove(&mut self, now: Instant, info_hash: InfoHash) -> bool {
        let Some(key) = self.by_info_hash.remove(&info_hash) else {
            let entry = self.stopping.get(&info_hash).and_then(|key| self.entries.get_mut(*key));
            return entry.is_some_and(|entry| entry.successor.take().is_some());
        };
        self.stopping.insert(info_hash, key);
        self.stop(now, key);
        true
    }

    /// The download of a torrent has just become complete. False if it is not there.
    pub fn handle_completed(&mut self, now: Instant, info_hash: InfoHash) -> bool {
        self.touch(now, info_hash, |announcer, _| announcer.handle_completed(now))
    }

    /// A person asked for an announce now: the hosts of the torrent's trackers get a chance even if
    /// they rest. False if the torrent is not there.
    pub fn handle_reannounce(&mut self, now: Instant, info_hash: InfoHash) -> bool {
        let entry = self.by_info_hash.get(&info_hash).and_then(|key| self.entries.get(*key));
        for name in entry.into_iter().flat_map(|entry| entry.announcer.hosts()) {
            if let Some(host) = self.hosts.get_mut(name) {
                host.forgive();
            }
        }
        self.touch(now, info_hash, |announcer, options| announcer.handle_reannounce(now, options))
    }

    /// The server ends: every torrent says `stopped`, without pace, within the limits.
    pub fn handle_ending(&mut self, now: Instant) {
        self.is_ending = true;
        self.stopping.append(&mut self.by_info_hash);
        let hosts: Vec<_> = self.hosts.keys().cloned().collect();
        hosts.iter().for_each(|host| self.settle_host(now, host));
        for key in self.entries.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.successor = None;
            }
            self.stop(now, key);
        }
    }

    /// The next announce to make now, if there is one and the limits allow it.
    pub fn poll(&mut self, now: Instant) -> Option<Job> {
        self.wake(now);
        loop {
            let (host, line) = self.next_runnable()?;
            let (key, chain) = line;
            self.dequeue(now, line);
            let entry = self.entries.get_mut(key)?;
            // The choice may have changed while the torrent stood in the queue.
            let next = entry.announcer.peek(now, chain);
            let is_here = next.is_some_and(|(_, url)| *url.host() == host);
            let announce =
                if is_here { entry.announcer.poll(now, chain, &self.options) } else { None };
            let Some(announce) = announce else {
                self.enqueue(now, line);
                continue;
            };
            entry.in_flight_count += 1;
            let info_hash = entry.info_hash;
            self.start(now, host, (key, announce.slot));
            self.enqueue(now, line);
            return Some(Job { key, info_hash, announce });
        }
    }

    /// The host whose turn it is, and what waits for it, as far as the limits allow.
    fn next_runnable(&self) -> Option<(Arc<str>, Line)> {
        let ending_in_flight_max = if self.is_ending { self.limits.in_flight_max } else { 0 };
        if self.on_way.len() >= self.limits.in_flight_max + ending_in_flight_max {
            return None;
        }
        let may_probe = self.unproven_in_flight_count < self.limits.in_flight_unproven_max;
        let unproven = self.unproven.first().filter(|_| may_probe);
        let ((_, _, line), host) = self.runnable.first().into_iter().chain(unproven).min()?;
        Some((Arc::clone(host), *line))
    }

    /// Takes note of an announce that begins.
    fn start(&mut self, now: Instant, name: Arc<str>, on_way: (usize, u16)) {
        let host = self.hosts.entry(Arc::clone(&name)).or_default();
        let is_unproven = !host.is_proven();
        host.start(now, &self.limits);
        self.settle_host(now, &name);
        self.unproven_in_flight_count += usize::from(is_unproven);
        self.silences.insert((now + self.options.patience, on_way));
        self.on_way.insert(on_way, OnWay { host: name, started_at: now, is_unproven });
    }

    /// When [`poll`](Self::poll) is worth calling, if nothing is handled before: `None` if only
    /// an outcome or a command can make something due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting_until = self.waiting.first().map(|(at, _)| *at);
        let pausing_until = self.pausing.first().map(|(at, _)| *at);
        let silent_at = self.silences.first().map(|(at, _)| *at);
        waiting_until.into_iter().chain(pausing_until).chain(silent_at).min()
    }

    /// Whether the server ends and nothing is left to announce.
    pub fn is_ended(&self) -> bool {
        self.is_ending && self.entries.is_empty()
    }

    /// Takes the outcome of a job. The torrent's own value comes back if it is still wanted.
    pub fn handle_reply(
        &mut self,
        now: Instant,
        job: &Job,
        result: &Result<Reply, Failure>,
    ) -> Option<&T> {
        let host = job.announce.url.host();
        let slot = job.announce.slot;
        let is_same = |entry: &&mut Entry<T>| entry.info_hash == job.info_hash;
        let entry = self.entries.get_mut(job.key).filter(is_same)?;
        let on_way = self.on_way.remove(&(job.key, slot))?;
        let silent_at = on_way.started_at + self.options.patience;
        self.silences.remove(&(silent_at, (job.key, slot)));
        self.unproven_in_flight_count -= usize::from(on_way.is_unproven);
        entry.in_flight_count -= 1;
        entry.announcer.handle_reply(now, &self.options, slot, result);
        let chain = entry.announcer.chain_of(slot).unwrap_or_default();
        let is_known = self.hosts.len() <= self.limits.hosts_max;
        if let Some(host) = self.hosts.get_mut(host) {
            let jitter = self.rng.f64();
            host.finish(now, &self.limits, result.as_ref().err().filter(|_| is_known), jitter);
        }
        if self.is_resting(now, host) {
            self.evict(now, host);
        }
        self.settle_host(now, host);
        self.dequeue(now, (job.key, chain));
        self.enqueue(now, (job.key, chain));
        let key = *self.by_info_hash.get(&job.info_hash).filter(|key| **key == job.key)?;
        Some(&self.entries.get(key)?.attachment)
    }

    /// The value that came with a torrent, as long as it is announced or stopping.
    pub fn attachment(&self, key: usize) -> Option<&T> {
        Some(&self.entries.get(key)?.attachment)
    }

    /// What to show of a torrent.
    pub fn status(&self, info_hash: InfoHash) -> Option<Status> {
        let key = self.by_info_hash.get(&info_hash)?;
        Some(self.entries.get(*key)?.announcer.status())
    }

    /// Torrents, stopping ones included.
    pub fn torrent_count(&self) -> usize {
        self.entries.len()
    }

    /// Announces on their way.
    pub fn in_flight_count(&self) -> usize {
        self.on_way.len()
    }

    /// Announces that are due and have to wait for the limits.
    pub fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Announces that have been due for more than [`OVERDUE_AFTER`].
    pub fn overdue_count(&self, now: Instant) -> usize {
        let before = now.checked_sub(OVERDUE_AFTER);
        before.map_or(0, |before| self.ready.range(..(before, (0, 0))).count())
    }

    fn touch(
        &mut self,
        now: Instant,
        info_hash: InfoHash,
        change: impl FnOnce(&mut Announcer, &Options),
    ) -> bool {
        let Some(key) = self.by_info_hash.get(&info_hash).copied() else { return false };
        self.dequeue_all(now, key);
        if let Some(entry) = self.entries.get_mut(key) {
            change(&mut entry.announcer, &self.options);
        }
        self.enqueue_all(now, key);
        true
    }

    fn stop(&mut self, now: Instant, key: usize) {
        self.dequeue_all(now, key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.announcer.handle_stop(now);
        }
        self.enqueue_all(now, key);
    }

    /// Moves what has become due: torrents to their hosts, hosts back to work.
    fn wake(&mut self, now: Instant) {
        while let Some((at, on_way)) = self.silences.first().copied()
            && at <= now
        {
            self.silences.pop_first();
            self.handle_silence(now, on_way);
        }
        while let Some((at, line)) = self.waiting.first().copied()
            && at <= now
        {
            self.dequeue(now, line);
            self.enqueue(now, line);
        }
        while let Some((at, host)) = self.pausing.first().cloned()
            && at <= now
        {
            self.settle_host(now, &host);
        }
        if self.sweep_at.is_none_or(|at| at <= now) {
            self.sweep_at = Some(now + SWEEP_EVERY);
            self.hosts.retain(|_, host| !host.is_forgettable(now));
        }
    }

    /// An announce has been silent for too long: the next tracker is tried, and a host that has
    /// not answered anything since rests.
    fn handle_silence(&mut self, now: Instant, (key, slot): (usize, u16)) {
        let Some(on_way) = self.on_way.get(&(key, slot)) else { return };
        let (name, started_at) = (Arc::clone(&on_way.host), on_way.started_at);
        let jitter = self.rng.f64();
        if let Some(host) = self.hosts.get_mut(&name)
            && host.handle_silence(now, &self.limits, started_at, jitter)
        {
            self.evict(now, &name);
            self.settle_host(now, &name);
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.announcer.handle_silence(now, slot);
        let chain = entry.announcer.chain_of(slot).unwrap_or_default();
        self.dequeue(now, (key, chain));
        self.enqueue(now, (key, chain));
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
