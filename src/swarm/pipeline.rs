//! How many blocks one peer is asked for ahead of their arrival.
//!
//! Answers, blocks and passing seconds enter, the number of requests leaves. With too few the way
//! to the peer runs empty. Too many wait in queues, the peer's and both kernels', and what has
//! waited there has left the processor's cache when we read it. By Little's law rate times latency
//! is always what is asked for, so a queue cannot be told from a longer way by looking. Therefore:
//! as long as answers take less than [`QUEUE_FACTOR`] times the shortest one there is one more
//! request with each block; when they take longer, no more than [`QUEUE_FACTOR`] times the rate
//! times the shortest latency, or [`REQUESTS_OUT_START`]; and now and then twice as many for a
//! second, for peers that answer in bursts, which are kept if they come with a higher rate. Never
//! more than came in two seconds.
//!
//! Invariant: from [`REQUESTS_OUT_MIN`] to [`REQUESTS_OUT_MAX`].
#![forbid(unsafe_code)]

use super::options::{REQUESTS_OUT_MAX, REQUESTS_OUT_MIN, REQUESTS_OUT_START};
use std::time::{Duration, Instant};

/// An answer that takes as many times the shortest one has waited in a queue.
const QUEUE_FACTOR: u32 = 2;

/// Blocks over which a rate is measured.
const ROUND: u32 = 256;

/// Seconds until the first trial after an unchoke, and from the end of one to the next.
const TRIAL_WAIT_START: u32 = 2;
/// See [`TRIAL_WAIT_START`].
const TRIAL_WAIT: u32 = 16;

/// The requests at one peer.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    len: u32,
    /// What came in two seconds; before the first whole second there is no such limit.
    len_max: u32,
    /// What a trial has shown to be worth it; 0 if none has.
    len_proven: u32,
    /// Blocks of this second, and of the one before.
    blocks: u32,
    blocks_before: u32,
    /// Blocks left of this round, and when it began.
    round_left: u32,
    round_began: Option<Instant>,
    /// How long the shortest and the last answer took since the peer unchoked us.
    latency_min: Duration,
    latency: Duration,
    /// No block has come in a second that is counted whole.
    is_fresh: bool,
    /// The peer has rejected a request in this second.
    was_rejected: bool,
    trial: Option<Trial>,
    /// Seconds until the next trial.
    wait: u32,
}

/// A greater length that is tried for a second.
#[derive(Clone, Copy, Debug)]
struct Trial {
    len_before: u32,
    /// Blocks per second before it.
    rate_before: u32,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            len: REQUESTS_OUT_START,
            len_max: REQUESTS_OUT_MAX,
            len_proven: 0,
            blocks: 0,
            blocks_before: 0,
            round_left: ROUND,
            round_began: None,
            latency_min: Duration::MAX,
            latency: Duration::ZERO,
            is_fresh: true,
            was_rejected: false,
            trial: None,
            wait: TRIAL_WAIT_START,
        }
    }
}

impl Pipeline {
    /// Blocks that the peer should be asked for at a time.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The peer answers requests again: the way to it may be another one by now.
    pub(super) fn restart(&mut self) {
        self.latency_min = Duration::MAX;
        self.latency = Duration::ZERO;
        self.round_began = None;
        self.is_fresh = true;
        self.end_trial();
        self.wait = TRIAL_WAIT_START;
    }

    /// Gives a trial up: nothing was learnt from it.
    fn end_trial(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.len = self.len.min(trial.len_before);
            self.wait = TRIAL_WAIT;
        }
    }

    /// A block begins to arrive, so long after it was asked for.
    pub(super) fn handle_answer(&mut self, latency: Duration) {
        self.latency = latency;
        self.latency_min = self.latency_min.min(latency);
    }

    /// A block that was asked for is here.
    pub(super) fn handle_block(&mut self, now: Instant) {
        self.blocks = self.blocks.saturating_add(1);
        if !self.is_queueing() && !self.was_rejected && self.len < self.len_max {
            self.len += 1;
        }
        self.round_left -= 1;
        if self.round_left == 0 {
            self.round_left = ROUND;
            if let Some(began) = self.round_began.replace(now) {
                self.trim(now.saturating_duration_since(began));
            }
        }
    }

    /// The peer rejects a request: its queue is full or it lost the piece.
    pub(super) fn handle_reject(&mut self) {
        self.was_rejected = true;
        self.end_trial();
        self.len_proven = 0;
        self.len = (self.len - self.len / 4).max(REQUESTS_OUT_MIN);
    }

    /// A second has passed; `is_asked` if the peer owes us anything.
    pub(super) fn handle_second(&mut self, is_asked: bool) {
        let before = std::mem::replace(&mut self.blocks_before, self.blocks);
        let rate = std::mem::take(&mut self.blocks);
        self.was_rejected = false;
        if rate == 0 || !is_asked {
            // What the next round will have waited for is not the peer.
            self.round_began = None;
            self.end_trial();
            return;
        }
        if std::mem::take(&mut self.is_fresh) {
            // The blocks of a part of a second.
            return;
        }
        self.try_more(rate, rate.max(before));
        let most = rate.max(rate.midpoint(before)).saturating_mul(2);
        self.len_max = most.clamp(REQUESTS_OUT_MIN, REQUESTS_OUT_MAX);
        self.len = self.len.clamp(self.len_max.min(REQUESTS_OUT_START), self.len_max);
    }

    /// Lets a queue get shorter, after a round that took so long.
    fn trim(&mut self, took: Duration) {
        if !self.is_queueing() || self.trial.is_some() {
            return;
        }
        let way = self.latency_min.saturating_mul(QUEUE_FACTOR);
        let on_the_way = u128::from(ROUND) * way.as_nanos() / took.as_nanos().max(1);
        let enough = u32::try_from(on_the_way).unwrap_or(u32::MAX);
        let enough = enough.max(self.len_proven).max(REQUESTS_OUT_START);
        self.len -= self.len.saturating_sub(enough) / 2;
    }

    /// Ends a trial, or begins one. `rate_usual` is what came without any.
    fn try_more(&mut self, rate: u32, rate_usual: u32) {
        let rate_before = match self.trial.take() {
            Some(trial) if rate > trial.rate_before.saturating_add(trial.rate_before / 8) => {
                self.len_proven = self.len;
                rate
            }
            Some(trial) => {
                self.len = trial.len_before;
                // It may have been luck, or another time.
                self.len_proven -= self.len_proven / 8;
                self.wait = TRIAL_WAIT;
                return;
            }
            None if self.wait > 0 => {
                self.wait -= 1;
                return;
            }
            None => rate_usual,
        };
        // Without a queue it grows by itself.
        if self.is_queueing() {
            self.trial = Some(Trial { len_before: self.len, rate_before });
            self.len = self.len.saturating_mul(2);
        }
    }

    /// Whether what is asked for waits in a queue, or all that can be told is that it may.
    fn is_queueing(&self) -> bool {
        self.latency > self.latency_min.saturating_mul(QUEUE_FACTOR)
            && self.len >= REQUESTS_OUT_START
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    /// A peer at a distance whose allowance of blocks comes in intervals.
    struct Path {
        distance: Duration,
        rate: u32,
        interval: Duration,
    }

    impl Path {
        fn new(distance_ms: u64, rate: u32, interval_ms: u64) -> Self {
            let interval = Duration::from_millis(interval_ms);
            Self { distance: Duration::from_millis(distance_ms), rate, interval }
        }

        /// Runs a pipeline over it for some seconds; returns the blocks of each.
        fn run(&self, pipeline: &mut Pipeline, seconds: u32) -> Vec<u32> {
            let (start, step) = (clock::now(), Duration::from_millis(1));
            // When each request reaches the peer, in milliseconds, and when it was sent.
            let mut asked = std::collections::VecDeque::new();
            let mut arriving = std::collections::VecDeque::new();
            let mut rates = Vec::new();
            let (mut now, mut credit) = (Duration::ZERO, 0.0);
            for _ in 0..seconds {
                let mut count = 0;
                for _ in 0..1000 {
                    while asked.len() + arriving.len() < pipeline.len() as usize {
                        asked.push_back(now);
                    }
                    // The peer's allowance comes in intervals, and does not add up.
                    if now.as_millis().is_multiple_of(self.interval.as_millis()) {
                        credit = f64::from(self.rate) * self.interval.as_secs_f64();
                    }
                    while credit >= 1.0
                        && asked.front().is_some_and(|&at| at + self.distance <= now)
                    {
                        credit -= 1.0;
                        arriving.push_back((asked.pop_front().unwrap(), now + self.distance));
                    }
                    while let Some((at, _)) = arriving.pop_front_if(|&mut (_, at)| at <= now) {
                        pipeline.handle_answer(now - at);
                        pipeline.handle_block(start + now);
                        count += 1;
                    }
                    now += step;
                }
                rates.push(count);
                pipeline.handle_second(true);
            }
            rates
        }
    }

    #[test]
    fn a_near_and_fast_peer_is_asked_for_no_more_than_it_takes() {
        let mut pipeline = Pipeline::default();
        let rates = Path::new(1, 9000, 1).run(&mut pipeline, 60);
        assert!(rates[1..].iter().all(|&rate| rate > 8500), "{rates:?}");
        assert!(pipeline.len() <= REQUESTS_OUT_START + 2, "{}", pipeline.len());
    }

    #[test]
    fn a_distant_and_fast_peer_is_asked_for_enough_within_two_seconds() {
        let mut pipeline = Pipeline::default();
        let rates = Path::new(50, 9000, 1).run(&mut pipeline, 20);
        assert!(rates[2..].iter().all(|&rate| rate > 8500), "{rates:?}");
    }

    #[test]
    fn a_peer_that_sends_in_bursts_gets_to_its_rate() {
        let mut pipeline = Pipeline::default();
        let rates = Path::new(1, 3000, 500).run(&mut pipeline, 60);
        assert!(rates[20..].iter().all(|&rate| rate > 2500), "{rates:?}");
    }

    #[test]
    fn a_slow_peer_is_asked_for_two_seconds_worth() {
        let mut pipeline = Pipeline::default();
        Path::new(100, 10, 100).run(&mut pipeline, 20);
        assert!((15..=24).contains(&pipeline.len()), "{}", pipeline.len());
        Path::new(100, 1, 1000).run(&mut pipeline, 20);
        assert_eq!(pipeline.len(), REQUESTS_OUT_MIN);
    }

    #[test]
    fn a_part_of_a_second_and_a_trial_that_ends_early_teach_nothing() {
        let mut pipeline = Pipeline::default();
        let second = |pipeline: &mut Pipeline, block_count| {
            for _ in 0..block_count {
                pipeline.handle_block(clock::now());
            }
            pipeline.handle_second(true);
        };
        pipeline.handle_answer(Duration::from_millis(1));
        pipeline.handle_answer(Duration::from_millis(100));
        second(&mut pipeline, 1);
        assert_eq!(pipeline.len(), REQUESTS_OUT_START, "the second had begun before");
        while pipeline.trial.is_none() {
            second(&mut pipeline, 100);
        }
        assert_eq!(pipeline.len(), 2 * REQUESTS_OUT_START);
        second(&mut pipeline, 0);
        assert_eq!(pipeline.len(), REQUESTS_OUT_START);
        second(&mut pipeline, 100);
        assert_eq!(pipeline.len(), REQUESTS_OUT_START, "not at once again");
    }

    #[test]
    fn a_rejecting_peer_is_asked_for_less() {
        let mut pipeline = Pipeline::default();
        pipeline.handle_reject();
        assert_eq!(pipeline.len(), REQUESTS_OUT_START * 3 / 4);
        for _ in 0..100 {
            pipeline.handle_answer(Duration::from_millis(1));
            pipeline.handle_block(clock::now());
        }
        assert_eq!(pipeline.len(), REQUESTS_OUT_START * 3 / 4, "not in the same second");
        for _ in 0..100 {
            pipeline.handle_reject();
        }
        assert_eq!(pipeline.len(), REQUESTS_OUT_MIN);
    }
}
