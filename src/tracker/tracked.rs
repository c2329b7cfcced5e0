//! One tracker of one torrent: what it heard, what it answered, and when it may be asked again.
//!
//! Announces, replies and failures enter; its next event and the time of it leave. Invariant: it
//! hears `started` before any other event, `completed` at most once by success, `stopped` only if
//! it heard `started`, and nothing before the time that it set itself.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::announcer::{Options, TRACKER_ID_LEN_MAX};
use super::policy::Reason;
use super::tracker_url::TrackerUrl;
use super::{Event, Failure, Reply, Retry};

#[derive(Debug)]
pub(super) struct Tracker {
    pub(super) url: TrackerUrl,
    pub(super) tier: u16,
    /// The event that is on its way.
    pub(super) in_flight: Option<Event>,
    /// Whether it heard `started`, so that it has to hear `stopped`.
    pub(super) is_told: bool,
    pub(super) is_completed_due: bool,
    /// Whether it asked never to be asked again (BEP 31).
    pub(super) is_gone: bool,
    pub(super) failure_count: u32,
    /// Our own back-off; in the past if there is none.
    pub(super) backoff_until: Instant,
    /// The tracker's `min interval`: holds for periodic announces only.
    periodic_from: Option<Instant>,
    /// The tracker's `Retry-After` or `retry in`: holds for every event.
    pub(super) retry_from: Option<Instant>,
    pub(super) tracker_id: Option<Vec<u8>>,
    pub(super) last: Option<Outcome>,
    pub(super) seeder_count: Option<u32>,
    pub(super) leecher_count: Option<u32>,
    pub(super) download_count: Option<u32>,
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

impl Tracker {
    pub(super) fn new(now: Instant, url: TrackerUrl, tier: u16) -> Self {
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
    pub(super) fn event(&self) -> Event {
        match (self.is_told, self.is_completed_due) {
            (false, _) => Event::Started,
            (true, true) => Event::Completed,
            (true, false) => Event::Periodic,
        }
    }

    /// From when on it may be asked; `None` for never, and while an announce is on its way to it.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let periodic_from = self.periodic_from.filter(|_| self.event() == Event::Periodic);
        let ready_at = [periodic_from, self.retry_from].into_iter().flatten();
        let may_be_asked = !self.is_gone && self.in_flight.is_none();
        may_be_asked.then(|| ready_at.fold(self.backoff_until, Instant::max))
    }

    /// Whether it heard `started` and is to hear `completed`, which waits for no interval.
    pub(super) fn owes_completed(&self) -> bool {
        self.event() == Event::Completed
    }

    /// Whether it is to hear `stopped` now that the torrent stops.
    pub(super) fn owes_stopped(&self) -> bool {
        self.is_told && self.in_flight.is_none()
    }

    /// Takes a reply to `event`. Gives back the time until the next periodic announce; `None`
    /// after the last one.
    pub(super) fn succeed(
        &mut self,
        now: Instant,
        options: &Options,
        event: Event,
        reply: &Reply,
    ) -> Option<Duration> {
        let clamp = |time: Duration| time.clamp(options.interval_min, options.interval_max);
        let min_interval = clamp(reply.min_interval.unwrap_or_default());
        let interval = clamp(reply.interval.unwrap_or(options.interval_default)).max(min_interval);
        self.failure_count = 0;
        self.backoff_until = now;
        self.retry_from = None;
        self.seeder_count = reply.seeder_count.or(self.seeder_count);
        self.leecher_count = reply.leecher_count.or(self.leecher_count);
        self.download_count = reply.download_count.or(self.download_count);
        if let Some(id) = &reply.tracker_id
            && id.len() <= TRACKER_ID_LEN_MAX
        {
            self.tracker_id = Some(id.clone());
        }
        if event == Event::Stopped {
            return None;
        }
        self.is_told = true;
        self.is_completed_due &= event != Event::Completed;
        self.periodic_from = Some(now + min_interval);
        Some(interval)
    }

    /// Takes a failure: it is asked again after a back-off that doubles, stretched by `jitter`
    /// between 0 and 1.
    pub(super) fn fail(&mut self, now: Instant, options: &Options, failure: &Failure, jitter: f64) {
        let (first, last) = if failure.is_unregistered() {
            (options.unregistered_min, options.interval_max)
        } else {
            (options.backoff_min, options.backoff_max)
        };
        let wait = first.saturating_mul(2u32.saturating_pow(self.failure_count)).min(last);
        self.failure_count = self.failure_count.saturating_add(1);
        self.backoff_until = now + stretched(wait, jitter);
        match failure.retry() {
            Some(Retry::Never) => self.is_gone = true,
            Some(Retry::After(wait)) => {
                self.retry_from = Some(now + wait.min(options.interval_max));
            }
            None => {}
        }
    }
}

/// Adds up to a tenth, so that torrents that start together drift apart. Never subtracts: an
/// interval is the least that the tracker asked for.
pub(super) fn stretched(time: Duration, jitter: f64) -> Duration {
    time + time.mul_f64(jitter / 10.0)
}

impl Outcome {
    pub(super) fn new(at: Instant, event: Event, result: &Result<Reply, Failure>) -> Self {
        let warning = result.as_ref().ok().and_then(|reply| reply.warning.clone());
        let refused = result.as_ref().ok().and_then(|reply| reply.refused);
        let result = result.as_ref().map(|reply| reply.peers.len()).map_err(Failure::to_string);
        Self { at, event, result, refused, warning }
    }
}
