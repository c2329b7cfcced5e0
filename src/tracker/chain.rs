//! Tiers that are tried one after another: which of their trackers is next, and when.
//!
//! The trackers of a torrent and `now` enter, the slot of the next announce leaves. Order and
//! promotion are those of BEP 12. Invariant: at most one announce of a chain is waited for; one
//! that was silent for too long goes on by itself while the next tracker is tried.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::tracked::Tracker;

/// All tiers of a torrent, or one of them where tiers are announced to in parallel.
#[derive(Debug)]
pub(super) struct Chain {
    /// Slots in the order in which they are tried.
    tiers: Vec<Vec<u16>>,
    /// The tracker whose answer decides what comes next.
    awaited: Option<u16>,
    /// When the next periodic announce is due, because a tracker has answered.
    fed_until: Option<Instant>,
    /// When something last happened that made a new choice necessary.
    since: Instant,
}

impl Chain {
    pub(super) fn new(now: Instant, tiers: Vec<Vec<u16>>) -> Self {
        Self { tiers, awaited: None, fed_until: None, since: now }
    }

    /// Whether the tracker `slot` is one of its own.
    pub(super) fn holds(&self, slot: u16) -> bool {
        self.slots().any(|own| own == slot)
    }

    /// When the next announce is due; `None` until something is handled.
    pub(super) fn due_at(&self, trackers: &[Tracker], is_stopping: bool) -> Option<Instant> {
        let own = || self.slots().filter_map(|slot| trackers.get(usize::from(slot)));
        if is_stopping {
            return own().any(Tracker::owes_stopped).then_some(self.since);
        }
        if self.awaited.is_some() {
            return None;
        }
        let owing = own().filter(|tracker| tracker.owes_completed());
        let event_at = owing.filter_map(Tracker::ready_at).min();
        let ready_at = own().filter_map(Tracker::ready_at).min();
        let periodic_at = ready_at.map(|at| self.fed_until.map_or(at, |fed| fed.max(at)));
        let at = event_at.into_iter().chain(periodic_at).min()?;
        Some(at.max(self.since))
    }

    /// The tracker to announce to now. One that is to hear an event goes first.
    pub(super) fn choose(
        &self,
        trackers: &[Tracker],
        now: Instant,
        is_stopping: bool,
    ) -> Option<u16> {
        if self.due_at(trackers, is_stopping).is_none_or(|at| at > now) {
            return None;
        }
        let first = |fits: &dyn Fn(&Tracker) -> bool| {
            self.slots().find(|slot| trackers.get(usize::from(*slot)).is_some_and(fits))
        };
        if is_stopping {
            return first(&Tracker::owes_stopped);
        }
        let is_ready = |tracker: &Tracker| tracker.ready_at().is_some_and(|at| at <= now);
        first(&|tracker| tracker.owes_completed() && is_ready(tracker)).or_else(|| first(&is_ready))
    }

    /// An announce to `slot` begins.
    pub(super) fn start(&mut self, now: Instant, slot: u16) {
        self.awaited = Some(slot);
        self.fed_until = self.fed_until.filter(|at| *at > now);
    }

    /// The answer of `slot` is not waited for any longer, whether it came or not.
    pub(super) fn release(&mut self, now: Instant, slot: u16) {
        if self.awaited == Some(slot) {
            self.awaited = None;
            self.since = now;
        }
    }

    /// The tracker `slot` answered: the next periodic announce is due at `next_at`, unless one
    /// that others wait for has said so already. It moves to the front of its tier.
    pub(super) fn feed(&mut self, slot: u16, next_at: Instant, is_awaited: bool) {
        if is_awaited || self.fed_until.is_none() {
            self.fed_until = Some(next_at);
        }
        for tier in &mut self.tiers {
            if let Some(place) = tier.iter().position(|other| *other == slot)
                && let Some(head) = tier.get_mut(..=place)
            {
                head.rotate_right(1);
            }
        }
    }

    /// Whether the answer of `slot` is waited for.
    pub(super) fn awaits(&self, slot: u16) -> bool {
        self.awaited == Some(slot)
    }

    /// What is due from now on counts from now, unless it was due already.
    pub(super) fn touch(&mut self, now: Instant, trackers: &[Tracker]) {
        if self.due_at(trackers, false).is_none_or(|at| at > now) {
            self.since = now;
        }
    }

    /// A person wants an announce before the next one is due.
    pub(super) fn hurry(&mut self, now: Instant, trackers: &[Tracker]) {
        self.touch(now, trackers);
        self.fed_until = None;
    }

    /// The torrent stops: nothing is waited for.
    pub(super) fn stop(&mut self, now: Instant) {
        self.awaited = None;
        self.since = now;
    }

    fn slots(&self) -> impl Iterator<Item = u16> {
        self.tiers.iter().flatten().copied()
    }
}
