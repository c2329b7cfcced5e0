//! One torrent's announces: which tracker is next, when, and with which event.
//!
//! Tiers, replies, failures and `now` enter; due announces leave. Tiers follow BEP 12: shuffled
//! once, tried in order, and the tracker that answers moves to the front of its tier; or, by
//! [`Options::parallel_tiers`], each tier is tried by itself, at the same time as the others.
//!
//! Invariant: a tracker has at most one announce on its way, hears `started` before any other
//! event and `stopped` only if it heard `started`, and is not asked before the time that it set
//! itself. Of the trackers that are tried in turn, at most one is waited for, and no longer than
//! the caller's patience: a silent one keeps its own announce and back-off.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::chain::Chain;
pub use super::tracked::Outcome;
use super::tracked::{Tracker, stretched};
use super::tracker_url::{TrackerUrl, UrlError};
use super::{Announce, Event, Failure, Reply};

/// Tiers of a torrent that are looked at; the rest is ignored.
pub const TIERS_MAX: usize = 64;

/// Trackers of a torrent that are looked at; the rest is ignored.
pub const TRACKERS_MAX: usize = 256;

/// Bytes of a `tracker id` that are kept; a longer one is ignored.
pub const TRACKER_ID_LEN_MAX: usize = 256;

/// The times that govern a schedule. [`Options::default`] is what a server uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Shortest time between two periodic announces to one tracker, whatever it asks for.
    pub interval_min: Duration,
    /// Longest time between two periodic announces, whatever it asks for.
    pub interval_max: Duration,
    /// The interval of a reply that names none.
    pub interval_default: Duration,
    /// Wait after the first failure; it doubles with each further one.
    pub backoff_min: Duration,
    /// Longest wait after failures.
    pub backoff_max: Duration,
    /// Wait after the first answer that the torrent is unknown; doubles up to `interval_max`.
    pub unregistered_min: Duration,
    /// Shortest time between two announces to one tracker that a person asked for.
    pub manual_min: Duration,
    /// How long a silent tracker holds back the next one.
    pub patience: Duration,
    /// Whether every tier is announced to at once, and not only the first that works.
    pub parallel_tiers: bool,
    /// Peers to ask for.
    pub numwant: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval_min: Duration::from_secs(60),
            interval_max: Duration::from_secs(24 * 3600),
            interval_default: Duration::from_secs(30 * 60),
            backoff_min: Duration::from_secs(30),
            backoff_max: Duration::from_secs(45 * 60),
            unregistered_min: Duration::from_secs(5 * 60),
            manual_min: Duration::from_secs(5),
            patience: Duration::from_secs(15),
            parallel_tiers: false,
            numwant: 80,
        }
    }
}

/// The announce schedule of one torrent.
#[derive(Debug)]
pub struct Announcer {
    /// In the order of the torrent; an index is the `slot` of announces and never changes.
    trackers: Vec<Tracker>,
    /// One for all tiers, or one for each; an index never changes.
    chains: Vec<Chain>,
    skipped: Vec<Skipped>,
    is_stopping: bool,
    rng: fastrand::Rng,
}

/// A URL of the torrent that is not announced to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped {
    /// Its tier.
    pub tier: u16,
    /// Its position in the list of all trackers, tier after tier.
    pub position: usize,
    /// Scheme and host, if it has them; the rest of a URL holds keys.
    pub host: Option<String>,
    /// Why.
    pub why: UrlError,
}

/// One tracker, for display.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrackerStatus {
    /// Where it is.
    pub url: TrackerUrl,
    /// Its tier, from 0.
    pub tier: u16,
    /// Whether an announce is on its way.
    pub is_announcing: bool,
    /// The last answer or failure.
    pub last: Option<Outcome>,
    /// Failures in a row.
    pub failure_count: u32,
    /// The earliest time of the next announce to it; `None` if it asked to be left alone.
    pub next_at: Option<Instant>,
    /// Seeds it knows (`complete`).
    pub seeder_count: Option<u32>,
    /// Leeches it knows (`incomplete`).
    pub leecher_count: Option<u32>,
    /// Completed downloads it counted (`downloaded`).
    pub download_count: Option<u32>,
}

/// One torrent's trackers, for display.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// In the order of the torrent.
    pub trackers: Vec<TrackerStatus>,
    /// What is not announced to, and why.
    pub skipped: Vec<Skipped>,
    /// When the next announce is due; `None` while one is waited for or if no tracker is left.
    pub next_at: Option<Instant>,
}

impl Announcer {
    /// A torrent that starts now: its first announce is due at once.
    ///
    /// `tiers` are the URLs of the torrent (BEP 12); unusable ones are kept apart with a reason,
    /// repeated ones are dropped.
    pub fn new(
        now: Instant,
        options: &Options,
        tiers: &[Vec<String>],
        mut rng: fastrand::Rng,
    ) -> Self {
        let mut trackers: Vec<Tracker> = Vec::new();
        let mut skipped = Vec::new();
        let mut slots_by_tier = Vec::new();
        let listed = (0u16..).zip(tiers.iter().take(TIERS_MAX));
        let listed = listed.flat_map(|(tier, urls)| urls.iter().map(move |url| (tier, url)));
        for (position, (tier, url)) in listed.enumerate().take(TRACKERS_MAX) {
            match TrackerUrl::parse(url.trim()) {
                Ok(url) if trackers.iter().any(|tracker| tracker.url == url) => {}
                Ok(url) => {
                    slots_by_tier.push((tier, u16::try_from(trackers.len()).unwrap_or(u16::MAX)));
                    trackers.push(Tracker::new(now, url, tier));
                }
                Err(why) => {
                    let host = super::tracker_url::host_of(url.trim());
                    skipped.push(Skipped { tier, position, host, why });
                }
            }
        }
        let mut tiers: Vec<Vec<u16>> = slots_by_tier
            .chunk_by(|left, right| left.0 == right.0)
            .map(|tier| tier.iter().map(|(_, slot)| *slot).collect())
            .collect();
        tiers.iter_mut().for_each(|tier| rng.shuffle(tier));
        let chains = if options.parallel_tiers {
            tiers.into_iter().map(|tier| Chain::new(now, vec![tier])).collect()
        } else {
            vec![Chain::new(now, tiers)]
        };
        Self { trackers, chains, skipped, is_stopping: false, rng }
    }

    /// Whether there is any tracker to announce to.
    pub fn has_trackers(&self) -> bool {
        !self.trackers.is_empty()
    }

    /// How many announces may be waited for at a time; each has a number below this one.
    pub fn chain_count(&self) -> u16 {
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// The chain that the tracker `slot` belongs to.
    pub fn chain_of(&self, slot: u16) -> Option<u16> {
        (0..).zip(&self.chains).find(|(_, chain)| chain.holds(slot)).map(|(index, _)| index)
    }

    /// The hosts of its trackers; one may come more than once.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.trackers.iter().map(|tracker| tracker.url.host())
    }

    /// Where the next announce of `chain` would go if it were polled now.
    pub fn peek(&self, now: Instant, chain: u16) -> Option<(u16, &TrackerUrl)> {
        let chain = self.chains.get(usize::from(chain))?;
        let slot = chain.choose(&self.trackers, now, self.is_stopping)?;
        Some((slot, &self.trackers.get(usize::from(slot))?.url))
    }

    /// Whether the next announce is the first that any tracker hears of this torrent.
    pub fn is_first(&self) -> bool {
        !self.is_stopping && self.trackers.iter().all(|tracker| !tracker.is_told)
    }

    /// The announce of `chain` that is due, if any. It is on its way until
    /// [`handle_reply`](Self::handle_reply).
    pub fn poll(&mut self, now: Instant, chain: u16, options: &Options) -> Option<Announce> {
        let (slot, _) = self.peek(now, chain)?;
        let is_stopping = self.is_stopping;
        let tracker = self.tracker_mut(slot)?;
        let event = if is_stopping { Event::Stopped } else { tracker.event() };
        let numwant = if is_stopping { 0 } else { options.numwant };
        tracker.in_flight = Some(event);
        let (url, tracker_id) = (tracker.url.clone(), tracker.tracker_id.clone());
        if is_stopping {
            tracker.is_told = false;
        } else if let Some(chain) = self.chains.get_mut(usize::from(chain)) {
            chain.start(now, slot);
        }
        Some(Announce { slot, url, event, numwant, tracker_id })
    }

    /// When [`poll`](Self::poll) of `chain` is worth calling; `None` until something is handled.
    pub fn poll_timeout(&self, chain: u16) -> Option<Instant> {
        self.chains.get(usize::from(chain))?.due_at(&self.trackers, self.is_stopping)
    }

    /// The tracker `slot` has been silent for too long: the next one is tried, and what comes of
    /// the announce to `slot` is handled when it comes.
    pub fn handle_silence(&mut self, now: Instant, slot: u16) {
        if let Some(chain) = self.chain_mut(slot) {
            chain.release(now, slot);
        }
    }

    /// Takes the outcome of the announce to the tracker `slot`.
    pub fn handle_reply(
        &mut self,
        now: Instant,
        options: &Options,
        slot: u16,
        result: &Result<Reply, Failure>,
    ) {
        let (is_stopping, jitter) = (self.is_stopping, self.rng.f64());
        let Some(tracker) = self.tracker_mut(slot) else { return };
        let Some(event) = tracker.in_flight.take() else { return };
        tracker.last = Some(Outcome::new(now, event, result));
        tracker.is_told &= result.is_ok() || !is_stopping;
        let interval = match result {
            Ok(reply) => tracker.succeed(now, options, event, reply),
            Err(failure) => {
                tracker.fail(now, options, failure, jitter);
                None
            }
        };
        let Some(chain) = self.chain_mut(slot) else { return };
        let is_awaited = chain.awaits(slot);
        chain.release(now, slot);
        if let Some(interval) = interval {
            chain.feed(slot, now + stretched(interval, jitter), is_awaited);
        }
    }

    /// Passes over the tracker `slot` until `until`, because its host is known to be down. Nothing
    /// was sent, so this is not counted as a failure; a `stopped` that is due is given up.
    pub fn handle_deferred(&mut self, slot: u16, until: Instant) {
        let is_stopping = self.is_stopping;
        if let Some(tracker) = self.tracker_mut(slot) {
            tracker.backoff_until = tracker.backoff_until.max(until);
            tracker.is_told &= !is_stopping;
        }
    }

    /// The last piece has just been verified: `completed` goes to every tracker that is told of
    /// the torrent, as soon as it takes it.
    pub fn handle_completed(&mut self, now: Instant) {
        self.chains.iter_mut().for_each(|chain| chain.touch(now, &self.trackers));
        for tracker in &mut self.trackers {
            tracker.is_completed_due = true;
        }
    }

    /// A person asked for an announce now. Times that trackers set themselves still hold, our own
    /// back-off does not.
    pub fn handle_reannounce(&mut self, now: Instant, options: &Options) {
        self.chains.iter_mut().for_each(|chain| chain.hurry(now, &self.trackers));
        for tracker in &mut self.trackers {
            let last_at = tracker.last.as_ref().map(|last| last.at + options.manual_min);
            tracker.backoff_until = last_at.map_or(now, |at| at.max(now));
        }
    }

    /// The torrent stops: every tracker that heard `started` hears `stopped`, once.
    pub fn handle_stop(&mut self, now: Instant) {
        self.is_stopping = true;
        self.chains.iter_mut().for_each(|chain| chain.stop(now));
        for tracker in &mut self.trackers {
            tracker.is_told &= !tracker.is_gone && tracker.retry_from.is_none_or(|at| at <= now);
        }
    }

    /// Whether the torrent has stopped and nothing is on its way any more.
    pub fn is_stopped(&self) -> bool {
        let is_silent = |tracker: &Tracker| tracker.in_flight.is_none() && !tracker.owes_stopped();
        self.is_stopping && self.trackers.iter().all(is_silent)
    }

    /// What to show of it.
    pub fn status(&self) -> Status {
        let slots = 0u16..;
        let shown = slots.zip(&self.trackers);
        let trackers = shown.map(|(slot, tracker)| self.tracker_status(slot, tracker)).collect();
        let next_at = (0..self.chain_count()).filter_map(|chain| self.poll_timeout(chain)).min();
        Status { trackers, skipped: self.skipped.clone(), next_at }
    }

    fn tracker_status(&self, slot: u16, tracker: &Tracker) -> TrackerStatus {
        let due_at = self.chain_of(slot).and_then(|chain| self.poll_timeout(chain));
        TrackerStatus {
            url: tracker.url.clone(),
            tier: tracker.tier,
            is_announcing: tracker.in_flight.is_some(),
            last: tracker.last.clone(),
            failure_count: tracker.failure_count,
            next_at: tracker.ready_at().map(|at| due_at.map_or(at, |due| due.max(at))),
            seeder_count: tracker.seeder_count,
            leecher_count: tracker.leecher_count,
            download_count: tracker.download_count,
        }
    }

    fn tracker_mut(&mut self, slot: u16) -> Option<&mut Tracker> {
        self.trackers.get_mut(usize::from(slot))
    }

    fn chain_mut(&mut self, slot: u16) -> Option<&mut Chain> {
        self.chains.iter_mut().find(|chain| chain.holds(slot))
    }
}

#[cfg(test)]
#[path = "announcer_tests.rs"]
mod tests;
