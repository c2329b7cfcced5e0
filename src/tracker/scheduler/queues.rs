//! The queues of the scheduler: who stands where, and how it moves.
//!
//! A torrent that has changed enters, its place in the ordered sets leaves. Invariant: each chain
//! of a torrent stands in exactly the sets that its [`Queue`] names, and each host in those that
//! its [`Place`] names.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::{Entry, Line, Place, Queue, Scheduler};

impl<T> Scheduler<T> {
    pub(super) fn enqueue_all(&mut self, now: Instant, key: usize) {
        let chain_count = self.entries.get(key).map_or(0, |entry| entry.announcer.chain_count());
        (0..chain_count).for_each(|chain| self.enqueue(now, (key, chain)));
        if chain_count == 0 {
            self.forget_stopped(now, key);
        }
    }

    pub(super) fn dequeue_all(&mut self, now: Instant, key: usize) {
        let chain_count = self.entries.get(key).map_or(0, |entry| entry.announcer.chain_count());
        (0..chain_count).for_each(|chain| self.dequeue(now, (key, chain)));
    }

    /// Puts what stands nowhere where it belongs; forgets a torrent once it has stopped.
    pub(super) fn enqueue(&mut self, now: Instant, line: Line) {
        let (key, chain) = line;
        let Some(entry) = self.entries.get_mut(key) else { return };
        // Its torrent may have been forgotten and have started anew under the same key.
        if entry.queues.get(usize::from(chain)).is_none_or(|queue| *queue != Queue::None) {
            return;
        }
        // A tracker on a resting host is passed over; each is passed over once at most.
        while let Some((slot, url)) = entry.announcer.peek(now, chain)
            && let Some(until) = self.hosts.get(url.host()).and_then(|host| host.rests_until(now))
        {
            // Not all at the same moment; they would only queue up again.
            let spread = self.limits.host_rest_min.mul_f64(self.rng.f64());
            entry.announcer.handle_deferred(slot, until + spread);
        }
        if self.forget_stopped(now, key) {
            return;
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(due_at) = entry.announcer.poll_timeout(chain) else { return };
        let host = entry.announcer.peek(now, chain).map(|(_, url)| Arc::clone(url.host()));
        let rank = (!(entry.is_urgent && entry.announcer.is_first()), due_at, line);
        let Some(queue) = entry.queues.get_mut(usize::from(chain)) else { return };
        match host {
            Some(host) => {
                *queue = Queue::Ready(Arc::clone(&host), rank);
                self.ready.insert((due_at, line));
                self.hosts.entry(Arc::clone(&host)).or_default().ready.insert(rank);
                self.settle_host(now, &host);
            }
            None => {
                *queue = Queue::Waiting(due_at);
                self.waiting.insert((due_at, line));
            }
        }
    }

    /// Takes a chain of a torrent out of whatever set it stands in.
    pub(super) fn dequeue(&mut self, now: Instant, line: Line) {
        let (key, chain) = line;
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(queue) = entry.queues.get_mut(usize::from(chain)) else { return };
        match std::mem::replace(queue, Queue::None) {
            Queue::None => {}
            Queue::Waiting(at) => {
                self.waiting.remove(&(at, line));
            }
            Queue::Ready(host, rank) => {
                self.ready.remove(&(rank.1, line));
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.ready.remove(&rank);
                }
                self.settle_host(now, &host);
            }
        }
    }

    /// Forgets a torrent that has stopped; false if it has not.
    pub(super) fn forget_stopped(&mut self, now: Instant, key: usize) -> bool {
        let is_over = |entry: &Entry<T>| {
            entry.announcer.is_stopped()
                && entry.in_flight_count == 0
                && entry.queues.iter().all(|queue| *queue == Queue::None)
        };
        let is_over = self.entries.get(key).is_some_and(is_over);
        if is_over {
            self.forget(now, key);
        }
        is_over
    }

    fn forget(&mut self, now: Instant, key: usize) {
        let Some(entry) = self.entries.try_remove(key) else { return };
        self.stopping.remove(&entry.info_hash);
        if let Some(next) = entry.successor {
            // Its place is free: it was just given back.
            let _taken =
                self.add(now, entry.info_hash, &next.tiers, next.is_urgent, next.attachment);
        }
    }

    pub(super) fn is_resting(&self, now: Instant, host: &Arc<str>) -> bool {
        self.hosts.get(host).is_some_and(|host| host.rests_until(now).is_some())
    }

    /// Sends the torrents that stand in the queue of a host that begins to rest elsewhere.
    pub(super) fn evict(&mut self, now: Instant, host: &Arc<str>) {
        while let Some((_, _, line)) = self.hosts.get(host).and_then(|host| host.ready.first()) {
            let line = *line;
            self.dequeue(now, line);
            self.enqueue(now, line);
        }
    }

    /// Brings the place of a host among the runnable and pausing ones up to date.
    pub(super) fn settle_host(&mut self, now: Instant, name: &Arc<str>) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        let place = host.place(now, &self.limits, self.is_ending);
        if place != host.place {
            match host.place {
                Place::Off => {}
                Place::Runnable(rank) => {
                    self.runnable.remove(&(rank, Arc::clone(name)));
                }
                Place::Unproven(rank) => {
                    self.unproven.remove(&(rank, Arc::clone(name)));
                }
                Place::Pausing(at) => {
                    self.pausing.remove(&(at, Arc::clone(name)));
                }
            }
            host.place = place;
            match place {
                Place::Off => {}
                Place::Runnable(rank) => {
                    self.runnable.insert((rank, Arc::clone(name)));
                }
                Place::Unproven(rank) => {
                    self.unproven.insert((rank, Arc::clone(name)));
                }
                Place::Pausing(at) => {
                    self.pausing.insert((at, Arc::clone(name)));
                }
            }
        }
    }
}
