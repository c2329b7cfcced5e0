//! The limits that hold for the whole server, leased to its workers by what they can use.
//!
//! What each worker used in the last second enters, its lease for the next one leaves. Invariant:
//! the leases of a rate never add up to more than the limit (but for one byte per second and worker
//! where it is smaller than that), and no worker is ever left without any, for it could not show
//! that it wants more.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::metrics::{Core, PeerState, SendPath};
use crate::sys::clock;
use crate::worker::mailbox::Letter;

/// How often leases are made anew.
const INTERVAL: Duration = Duration::from_secs(1);

/// The part of an even share that a worker keeps that uses none of it: so fast it begins.
const FLOOR_PART: u64 = 16;

/// The leases of all workers.
#[derive(Debug)]
pub(super) struct Budgets {
    due_at: Instant,
    made_at: Instant,
    up: Vec<Flow>,
    down: Vec<Flow>,
    slots: Vec<u64>,
}

/// Bytes of one worker in one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// All that were counted when leases were last made.
    counted: u64,
    /// How many it may move per second.
    leased: u64,
}

impl Budgets {
    /// Even leases are made at the first turn.
    pub(super) fn new(worker_count: usize) -> Self {
        let (now, flows) = (clock::now(), vec![Flow::default(); worker_count]);
        Self { due_at: now, made_at: now, up: flows.clone(), down: flows, slots: Vec::new() }
    }
}

impl Engine {
    /// Leases every worker its share of the limits, once a second.
    pub(super) fn share_budgets(&mut self, now: Instant) {
        if now < self.budgets.due_at {
            return;
        }
        let passed = now.saturating_duration_since(self.budgets.made_at);
        (self.budgets.due_at, self.budgets.made_at) = (now + INTERVAL, now);
        let cores = self.registry().cores();
        let sent = |core: &Core| {
            SendPath::ALL.iter().map(|&path| core.sent_payload_bytes[path].get()).sum()
        };
        let sent: Vec<u64> = cores.iter().map(|core| sent(core)).collect();
        let received: Vec<_> = cores.iter().map(|core| core.received_payload_bytes.get()).collect();
        let wanted: Vec<_> =
            cores.iter().map(|core| core.peers[PeerState::Interested].get()).collect();
        let (up, down) = (self.settings.up, self.settings.down);
        let is_up_new = up.is_some_and(|limit| renew(&mut self.budgets.up, limit, &sent, passed));
        let is_down_new =
            down.is_some_and(|limit| renew(&mut self.budgets.down, limit, &received, passed));
        let slots = self.settings.slots.map(|limit| split(u64::from(limit), &wanted));
        let slots = slots.unwrap_or_default();
        let are_slots_new = slots != self.budgets.slots;
        self.budgets.slots = slots;
        if !is_up_new && !is_down_new && !are_slots_new {
            return;
        }
        for index in 0..self.loads.len() {
            let rate = |flows: &[Flow], limit: Option<u64>| {
                limit.and_then(|_| flows.get(index)).map(|flow| flow.leased.max(1))
            };
            // A worker without a slot would serve nobody at all.
            let slots = self.budgets.slots.get(index);
            let slots = slots.map(|&count| u32::try_from(count).unwrap_or(u32::MAX).max(1));
            let (up, down) = (rate(&self.budgets.up, up), rate(&self.budgets.down, down));
            self.post(index, Letter::Budget { slots, up, down });
        }
    }
}

/// Makes new leases of `limit` bytes per second after `passed`; false if they are as before.
fn renew(flows: &mut [Flow], limit: u64, counted: &[u64], passed: Duration) -> bool {
    let floor = limit / FLOOR_PART / flows.len().max(1) as u64;
    let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut wanted = Vec::new();
    for (flow, &counted) in flows.iter_mut().zip(counted) {
        let moved = counted.saturating_sub(flow.counted);
        flow.counted = counted;
        let used = moved.saturating_mul(1000) / millis;
        // Whoever uses nearly all of its lease may want any more.
        let is_short = used >= flow.leased - flow.leased / 8;
        wanted.push(if is_short { u64::MAX } else { (used + used / 4).max(floor) });
    }
    let leases = split(limit, &wanted);
    let is_new = flows.iter().zip(&leases).any(|(flow, &lease)| flow.leased != lease);
    flows.iter_mut().zip(leases).for_each(|(flow, lease)| flow.leased = lease);
    is_new
}

/// Splits `limit` so that nobody gets more than it wants while another lacks something; what is
/// left over then is for all alike.
fn split(limit: u64, wanted: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&index| wanted[index]);
    let (mut shares, mut rest) = (vec![0; wanted.len()], limit);
    for (place, &index) in order.iter().enumerate() {
        // What does not divide goes to those that want most.
        let fair = rest / (order.len() - place) as u64;
        shares[index] = wanted[index].min(fair);
        rest -= shares[index];
    }
    for (place, &index) in order.iter().enumerate() {
        let extra = rest / (order.len() - place) as u64;
        shares[index] += extra;
        rest -= extra;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nobody_gets_what_it_does_not_want_while_another_lacks_it() {
        assert_eq!(split(10, &[0, 0]), [5, 5]);
        assert_eq!(split(10, &[3, u64::MAX]), [3, 7]);
        assert_eq!(split(10, &[u64::MAX, u64::MAX, u64::MAX]), [3, 3, 4]);
        assert_eq!(split(10, &[1, 2, 3]), [2, 3, 5]);
        assert_eq!(split(1, &[7, 7]), [0, 1]);
        assert!(split(10, &[]).is_empty());
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            let wanted: Vec<u64> = (0..rng.usize(1..9)).map(|_| rng.u64(..100)).collect();
            let limit = rng.u64(..300);
            assert_eq!(split(limit, &wanted).iter().sum::<u64>(), limit, "{limit} {wanted:?}");
        }
    }

    #[test]
    fn one_busy_worker_gets_nearly_all_and_two_get_half() {
        let mut flows = vec![Flow::default(); 2];
        let mut counted = [0, 0];
        assert!(renew(&mut flows, 1000, &counted, SECOND));
        assert_eq!(flows.iter().map(|flow| flow.leased).collect::<Vec<_>>(), [500, 500]);
        let run = |flows: &mut Vec<Flow>, counted: &mut [u64; 2], wants: [u64; 2]| {
            for _ in 0..3 {
                for index in 0..2 {
                    counted[index] += wants[index].min(flows[index].leased);
                }
                renew(flows, 1000, counted, SECOND);
            }
            [flows[0].leased, flows[1].leased]
        };
        let [busy, idle] = run(&mut flows, &mut counted, [u64::MAX, 0]);
        assert!(busy >= 950 && idle > 0, "{busy} {idle}");
        assert_eq!(run(&mut flows, &mut counted, [u64::MAX, u64::MAX]), [500, 500]);
        let [most, little] = run(&mut flows, &mut counted, [u64::MAX, 100]);
        assert!(most >= 850 && little >= 100, "{most} {little}");
    }
}
