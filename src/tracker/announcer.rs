//! One torrent's announces: which tracker is next, when, and with which event.
//!
//! Tiers, replies, failures and `now` enter; due announces leave. Tiers follow BEP 12: shuffled
//! once, tried in order, and the tracker that answers moves to the front of its tier. Invariant:
//! a running torrent has at most one announce on its way, a tracker hears `started` before any
//! other event and `stopped` only if it heard `started`, and no tracker is asked before the time
//! that it set itself.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::policy::Reason;
use super::tracker_url::{TrackerUrl, UrlError};
use super::{Announce, Event, Failure, Reply, Retry};

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
            numwant: 80,
        }
    }
}

/// The announce schedule of one torrent.
#[derive(Debug)]
pub struct Announcer {
    /// In the order of the torrent; an index is the `slot` of announces and never changes.
    trackers: Vec<Tracker>,
    /// Slots in the order in which they are tried.
    tiers: Vec<Vec<u16>>,
    skipped: Vec<Skipped>,
    phase: Phase,
    /// When the next choice of a tracker is due; `None` if no tracker is left.
    next_at: Option<Instant>,
    rng: fastrand::Rng,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    Stopping,
}

#[derive(Debug)]
struct Tracker {
    url: TrackerUrl,
    tier: u16,
    /// The event that is on its way.
    in_flight: Option<Event>,
    /// Whether it heard `started`, so that it has to hear `stopped`.
    is_told: bool,
    is_completed_due: bool,
    /// Whether it asked never to be asked again (BEP 31).
    is_gone: bool,
    failure_count: u32,
    /// Our own back-off; in the past if there is none.
    backoff_until: Instant,
    /// The tracker's `min interval`: holds for periodic announces only.
    periodic_from: Option<Instant>,
    /// The tracker's `Retry-After` or `retry in`: holds for every event.
    retry_from: Option<Instant>,
    tracker_id: Option<Vec<u8>>,
    last: Option<Outcome>,
    seeder_count: Option<u32>,
    leecher_count: Option<u32>,
    download_count: Option<u32>,
}

/// How the last announce to a tracker went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// When the answer came.
    pub at: Instant,
    /// What was announced.
    pub event: Event,
    /// Peers in the reply, or the sentence that says why there is none.
    pub result: Result<usize, String>,
    /// A peer in the reply that the address policy closed, and why.
    pub refused: Option<(IpAddr, Reason)>,
    /// The reply's `warning message`, cut and escaped.
    pub warning: Option<String>,
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
    /// When the next announce is due; `None` while one is on its way or if no tracker is left.
    pub next_at: Option<Instant>,
}

impl Announcer {
    /// A torrent that starts now: its first announce is due at once.
    ///
    /// `tiers` are the URLs of the torrent (BEP 12); unusable ones are kept apart with a reason,
    /// repeated ones are dropped.
    pub fn new(now: Instant, tiers: &[Vec<String>], mut rng: fastrand::Rng) -> Self {
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
        let next_at = (!trackers.is_empty()).then_some(now);
        Self { trackers, tiers, skipped, phase: Phase::Running, next_at, rng }
    }

    /// Whether there is any tracker to announce to.
    pub fn has_trackers(&self) -> bool {
        !self.trackers.is_empty()
    }

    /// The hosts of its trackers; one may come more than once.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.trackers.iter().map(|tracker| tracker.url.host())
    }

    /// Where the next announce would go if it were polled now.
    pub fn peek(&self, now: Instant) -> Option<(u16, &TrackerUrl)> {
        let slot = self.choose(now)?;
        Some((slot, &self.tracker(slot)?.url))
    }

    /// Whether the next announce is the first that any tracker hears of this torrent.
    pub fn is_first(&self) -> bool {
        self.phase == Phase::Running && self.trackers.iter().all(|tracker| !tracker.is_told)
    }

    /// The announce that is due, if any. It is on its way until
    /// [`handle_reply`](Self::handle_reply).
    pub fn poll(&mut self, now: Instant, options: &Options) -> Option<Announce> {
        let Some(slot) = self.choose(now) else {
            self.handle_timeout(now);
            return None;
        };
        let is_stopping = self.phase == Phase::Stopping;
        let tracker = self.tracker_mut(slot)?;
        let event = if is_stopping { Event::Stopped } else { tracker.event() };
        let numwant = if is_stopping { 0 } else { options.numwant };
        tracker.in_flight = Some(event);
        let (url, tracker_id) = (tracker.url.clone(), tracker.tracker_id.clone());
        if is_stopping {
            tracker.is_told = false;
        } else {
            self.next_at = None;
        }
        Some(Announce { slot, url, event, numwant, tracker_id })
    }

    /// The deadline came. Plans the next choice if no tracker may be asked yet.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_at.is_some_and(|at| at <= now) && self.choose(now).is_none() {
            self.plan(now, None);
        }
    }

    /// When [`poll`](Self::poll) is worth calling; `None` until something is handled.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Running if self.is_in_flight() => None,
            Phase::Running => self.next_at,
            Phase::Stopping => self.next_at.filter(|_| self.next_to_stop().is_some()),
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
        let Some(event) = self.tracker_mut(slot).and_then(|tracker| tracker.in_flight.take())
        else {
            return;
        };
        let is_stopping = self.phase == Phase::Stopping;
        if let Some(tracker) = self.tracker_mut(slot) {
            tracker.last = Some(Outcome::new(now, event, result));
            tracker.is_told &= result.is_ok() || !is_stopping;
        }
        let interval = match result {
            Ok(reply) => self.handle_success(now, options, slot, event, reply),
            Err(failure) => {
                self.handle_failure(now, options, slot, failure);
                None
            }
        };
        self.plan(now, interval);
    }

    /// Passes over the tracker `slot` until `until`, because its host is known to be down. Nothing
    /// was sent, so this is not counted as a failure; a `stopped` that is due is given up.
    pub fn handle_deferred(&mut self, now: Instant, slot: u16, until: Instant) {
        let is_stopping = self.phase == Phase::Stopping;
        if let Some(tracker) = self.tracker_mut(slot) {
            tracker.backoff_until = tracker.backoff_until.max(until);
            tracker.is_told &= !is_stopping;
        }
        self.plan(now, None);
    }

    /// The last piece has just been verified: `completed` goes out as soon as a tracker takes it.
    pub fn handle_completed(&mut self, now: Instant) {
        for tracker in &mut self.trackers {
            tracker.is_completed_due = true;
        }
        self.hurry(now);
    }

    /// A person asked for an announce now. Times that trackers set themselves still hold, our own
    /// back-off does not.
    pub fn handle_reannounce(&mut self, now: Instant, options: &Options) {
        for tracker in &mut self.trackers {
            let last_at = tracker.last.as_ref().map(|last| last.at + options.manual_min);
            tracker.backoff_until = last_at.map_or(now, |at| at.max(now));
        }
        self.hurry(now);
    }

    /// The torrent stops: every tracker that heard `started` hears `stopped`, once.
    pub fn handle_stop(&mut self, now: Instant) {
        self.phase = Phase::Stopping;
        self.next_at = Some(now);
        for tracker in &mut self.trackers {
            tracker.is_told &= !tracker.is_gone && tracker.retry_from.is_none_or(|at| at <= now);
        }
    }

    /// Whether the torrent has stopped and nothing is on its way any more.
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopping && !self.is_in_flight() && self.next_to_stop().is_none()
    }

    /// What to show of it.
    pub fn status(&self) -> Status {
        let trackers = self.trackers.iter().map(|tracker| self.tracker_status(tracker)).collect();
        Status { trackers, skipped: self.skipped.clone(), next_at: self.poll_timeout() }
    }

    fn tracker_status(&self, tracker: &Tracker) -> TrackerStatus {
        TrackerStatus {
            url: tracker.url.clone(),
            tier: tracker.tier,
            is_announcing: tracker.in_flight.is_some(),
            last: tracker.last.clone(),
            failure_count: tracker.failure_count,
            next_at: if tracker.is_gone { None } else { tracker.ready_at().max(self.next_at) },
            seeder_count: tracker.seeder_count,
            leecher_count: tracker.leecher_count,
            download_count: tracker.download_count,
        }
    }

    fn handle_success(
        &mut self,
        now: Instant,
        options: &Options,
        slot: u16,
        event: Event,
        reply: &Reply,
    ) -> Option<Duration> {
        let clamp = |time: Duration| time.clamp(options.interval_min, options.interval_max);
        let min_interval = clamp(reply.min_interval.unwrap_or_default());
        let interval = clamp(reply.interval.unwrap_or(options.interval_default)).max(min_interval);
        let tracker = self.tracker_mut(slot)?;
        tracker.failure_count = 0;
        tracker.backoff_until = now;
        tracker.retry_from = None;
        tracker.seeder_count = reply.seeder_count.or(tracker.seeder_count);
        tracker.leecher_count = reply.leecher_count.or(tracker.leecher_count);
        tracker.download_count = reply.download_count.or(tracker.download_count);
        if let Some(id) = &reply.tracker_id
            && id.len() <= TRACKER_ID_LEN_MAX
        {
            tracker.tracker_id = Some(id.clone());
        }
        if event == Event::Stopped {
            return None;
        }
        tracker.is_told = true;
        tracker.is_completed_due &= event != Event::Completed;
        tracker.periodic_from = Some(now + min_interval);
        let is_completed_due = tracker.is_completed_due;
        self.promote(slot);
        Some(if is_completed_due { Duration::ZERO } else { self.jittered(interval) })
    }

    fn handle_failure(&mut self, now: Instant, options: &Options, slot: u16, failure: &Failure) {
        let (first, last) = if failure.is_unregistered() {
            (options.unregistered_min, options.interval_max)
        } else {
            (options.backoff_min, options.backoff_max)
        };
        let Some(tracker) = self.tracker_mut(slot) else { return };
        let doubling = 2u32.saturating_pow(tracker.failure_count);
        tracker.failure_count = tracker.failure_count.saturating_add(1);
        match failure.retry() {
            Some(Retry::Never) => tracker.is_gone = true,
            Some(Retry::After(wait)) => {
                tracker.retry_from = Some(now + wait.min(options.interval_max));
            }
            None => {}
        }
        let wait = self.jittered(first.saturating_mul(doubling).min(last));
        if let Some(tracker) = self.tracker_mut(slot) {
            tracker.backoff_until = now + wait;
        }
    }

    /// Adds up to a tenth, so that torrents that start together drift apart. Never subtracts: an
    /// interval is the least that the tracker asked for.
    fn jittered(&mut self, time: Duration) -> Duration {
        time + time.mul_f64(self.rng.f64() / 10.0)
    }

    /// Moves the tracker that answered to the front of its tier (BEP 12).
    fn promote(&mut self, slot: u16) {
        for tier in &mut self.tiers {
            if let Some(place) = tier.iter().position(|other| *other == slot)
                && let Some(head) = tier.get_mut(..=place)
            {
                head.rotate_right(1);
            }
        }
    }

    /// Sets when the next choice is due: after `interval` if an announce succeeded, otherwise as
    /// soon as any tracker may be asked.
    fn plan(&mut self, now: Instant, interval: Option<Duration>) {
        if self.is_in_flight() && self.phase == Phase::Running {
            return;
        }
        let ready_at = || self.trackers.iter().filter_map(Tracker::ready_at).min();
        self.next_at = match (self.phase, interval) {
            (Phase::Stopping, _) => Some(now),
            (Phase::Running, Some(interval)) => Some(now + interval),
            (Phase::Running, None) => ready_at().map(|at| at.max(now)),
        };
    }

    /// Makes the next choice due as soon as a tracker may be asked, and not later than planned.
    fn hurry(&mut self, now: Instant) {
        if self.phase == Phase::Running && !self.is_in_flight() {
            let ready_at = self.trackers.iter().filter_map(Tracker::ready_at).min();
            let ready_at = ready_at.map(|at| at.max(now));
            self.next_at = self.next_at.into_iter().chain(ready_at).min();
        }
    }

    fn choose(&self, now: Instant) -> Option<u16> {
        if self.next_at.is_none_or(|at| at > now) {
            return None;
        }
        match self.phase {
            Phase::Stopping => self.next_to_stop(),
            Phase::Running if self.is_in_flight() => None,
            Phase::Running => self.tiers.iter().flatten().copied().find(|slot| {
                let ready_at = self.tracker(*slot).and_then(Tracker::ready_at);
                ready_at.is_some_and(|at| at <= now)
            }),
        }
    }

    fn next_to_stop(&self) -> Option<u16> {
        self.tiers.iter().flatten().copied().find(|slot| {
            self.tracker(*slot)
                .is_some_and(|tracker| tracker.is_told && tracker.in_flight.is_none())
        })
    }

    fn is_in_flight(&self) -> bool {
        self.trackers.iter().any(|tracker| tracker.in_flight.is_some())
    }

    fn tracker(&self, slot: u16) -> Option<&Tracker> {
        self.trackers.get(usize::from(slot))
    }

    fn tracker_mut(&mut self, slot: u16) -> Option<&mut Tracker> {
        self.trackers.get_mut(usize::from(slot))
    }
}

impl Tracker {
    fn new(now: Instant, url: TrackerUrl, tier: u16) -> Self {
        Self {
            url,
            tier,
            in_flight: None,
            is_told: false,
            is_completed_due: false,
            is_gone: false,
            failure_count: 0,
            backoff_until: now,
            periodic_from: None,
            retry_from: None,
            tracker_id: None,
            last: None,
            seeder_count: None,
            leecher_count: None,
            download_count: None,
        }
    }

    /// What the next announce to it says.
    fn event(&self) -> Event {
        match (self.is_told, self.is_completed_due) {
            (false, _) => Event::Started,
            (true, true) => Event::Completed,
            (true, false) => Event::Periodic,
        }
    }

    /// From when on it may be asked; `None` for never.
    fn ready_at(&self) -> Option<Instant> {
        let periodic_from = self.periodic_from.filter(|_| self.event() == Event::Periodic);
        let ready_at = [periodic_from, self.retry_from].into_iter().flatten();
        (!self.is_gone).then(|| ready_at.fold(self.backoff_until, Instant::max))
    }
}

impl Outcome {
    fn new(at: Instant, event: Event, result: &Result<Reply, Failure>) -> Self {
        let warning = result.as_ref().ok().and_then(|reply| reply.warning.clone());
        let refused = result.as_ref().ok().and_then(|reply| reply.refused);
        let result = result.as_ref().map(|reply| reply.peers.len()).map_err(Failure::to_string);
        Self { at, event, result, refused, warning }
    }
}

#[cfg(test)]
#[path = "announcer_tests.rs"]
mod tests;
