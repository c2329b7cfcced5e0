//! What one peer has asked us for and we have not sent yet: a queue with a constant-time look-up.
//!
//! Blocks enter by [`RequestQueue::push`] and leave in order by [`RequestQueue::pop`], or from the
//! middle by [`RequestQueue::cancel`]. A ring of slots keeps the order; beside it an open-addressed
//! index of slot numbers, twice as large as the ring, answers "is it queued?" with about one
//! probe. Its hash is one multiplication by a key drawn per torrent, so that a peer cannot choose
//! blocks that collide. Invariant: nothing is allocated per block (both tables double, up to
//! [`REQUEST_QUEUE_MAX`] slots), and no operation walks the queue except a compaction that at
//! least a quarter of its slots of cancels have paid for.
#![forbid(unsafe_code)]

use crate::units::{Block, PieceIndex};

/// Requests that one peer may have waiting with us: the `reqq` that we advertise (BEP 10).
pub const REQUEST_QUEUE_MAX: u32 = 2048;

const EMPTY: u16 = u16::MAX;
const SLOTS_MIN: usize = 16;
const GONE: Block = Block { piece: PieceIndex(0), begin: 0, len: 0 };

/// What became of a request that was pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Push {
    /// It waits now.
    Queued,
    /// The same block waits already; nothing changed.
    Duplicate,
    /// No room.
    Full,
}

#[derive(Default)]
pub(super) struct RequestQueue {
    slots: Vec<Block>,
    index: Vec<u16>,
    head: usize,
    used: usize,
    live: usize,
}

impl RequestQueue {
    /// Number of blocks waiting.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub(super) fn push(&mut self, key: u64, block: Block) -> Push {
        if self.live >= REQUEST_QUEUE_MAX as usize {
            return if self.find(key, block).is_some() { Push::Duplicate } else { Push::Full };
        }
        if self.used == self.slots.len() && !self.make_room(key) {
            return Push::Full;
        }
        let mask = self.index.len() - 1;
        let mut at = self.home(key, block);
        while self.index[at] != EMPTY {
            if self.slots[usize::from(self.index[at])] == block {
                return Push::Duplicate;
            }
            at = (at + 1) & mask;
        }
        let slot = (self.head + self.used) & (self.slots.len() - 1);
        self.slots[slot] = block;
        self.index[at] = Self::number(slot);
        self.used += 1;
        self.live += 1;
        Push::Queued
    }

    /// The block that has waited longest, without taking it.
    pub(super) fn peek(&self) -> Option<Block> {
        (self.live > 0).then(|| self.slots[self.head])
    }

    /// Takes the block that has waited longest.
    pub(super) fn pop(&mut self, key: u64) -> Option<Block> {
        let block = self.peek()?;
        if let Some(at) = self.find(key, block) {
            self.unlink(key, at);
        }
        self.skip_gone();
        Some(block)
    }

    /// Takes `block` out; false if it does not wait.
    pub(super) fn cancel(&mut self, key: u64, block: Block) -> bool {
        let Some(at) = self.find(key, block) else {
            return false;
        };
        self.unlink(key, at);
        self.skip_gone();
        true
    }

    /// Forgets everything, and gives its memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn home(&self, key: u64, block: Block) -> usize {
        let bits = self.index.len().trailing_zeros();
        let value = u64::from(block.piece.0) << 32 | u64::from(block.begin);
        usize::try_from(value.wrapping_mul(key) >> (64 - bits)).unwrap_or(0)
    }

    fn find(&self, key: u64, block: Block) -> Option<usize> {
        if self.live == 0 {
            return None;
        }
        let mask = self.index.len() - 1;
        let mut at = self.home(key, block);
        while self.index[at] != EMPTY {
            if self.slots[usize::from(self.index[at])] == block {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Empties the slot behind index entry `at`, and closes the gap in the index.
    fn unlink(&mut self, key: u64, at: usize) {
        self.slots[usize::from(self.index[at])] = GONE;
        self.live -= 1;
        let mask = self.index.len() - 1;
        let mut hole = at;
        let mut next = (at + 1) & mask;
        while self.index[next] != EMPTY {
            let home = self.home(key, self.slots[usize::from(self.index[next])]);
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = EMPTY;
    }

    fn skip_gone(&mut self) {
        let mask = self.slots.len() - 1;
        while self.used > 0 && self.slots[self.head] == GONE {
            self.head = (self.head + 1) & mask;
            self.used -= 1;
        }
    }

    /// Frees at least one slot by growing or by squeezing out cancelled ones.
    fn make_room(&mut self, key: u64) -> bool {
        let slots = self.slots.len();
        if self.live * 4 > slots * 3 && slots >= REQUEST_QUEUE_MAX as usize {
            return false;
        }
        let wanted = if self.live * 4 > slots * 3 { slots * 2 } else { slots };
        let mut grown = Self {
            slots: vec![GONE; wanted.max(SLOTS_MIN)],
            index: vec![EMPTY; 2 * wanted.max(SLOTS_MIN)],
            ..Self::default()
        };
        for step in 0..self.used {
            let block = self.slots[(self.head + step) & (slots - 1)];
            if block != GONE {
                grown.push(key, block);
            }
        }
        *self = grown;
        true
    }

    fn number(slot: usize) -> u16 {
        u16::try_from(slot).expect("the ring has at most REQUEST_QUEUE_MAX slots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const KEY: u64 = 0x9e37_79b9_7f4a_7c15;

    fn block(number: u32) -> Block {
        Block { piece: PieceIndex(number / 16), begin: number % 16 * 16_384, len: 16_384 }
    }

    #[test]
    fn behaves_like_a_plain_queue() {
        for seed in 0..40 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut queue, mut model) = (RequestQueue::default(), VecDeque::new());
            let range = [8, 300, 6000][rng.usize(..3)];
            for _ in 0..20_000 {
                let one = block(rng.u32(..range));
                match rng.u32(..10) {
                    0..=5 => match queue.push(KEY, one) {
                        Push::Queued => {
                            assert!(!model.contains(&one), "seed {seed}");
                            model.push_back(one);
                        }
                        Push::Duplicate => assert!(model.contains(&one), "seed {seed}"),
                        Push::Full => assert!(model.len() >= 1536, "seed {seed}"),
                    },
                    6 => {
                        let held = model.iter().position(|&other| other == one);
                        assert_eq!(queue.cancel(KEY, one), held.is_some(), "seed {seed}");
                        held.and_then(|at| model.remove(at));
                    }
                    7 if rng.u32(..1000) == 0 => {
                        queue.clear();
                        model.clear();
                    }
                    _ if range == 6000 && rng.bool() => {}
                    _ => assert_eq!(queue.pop(KEY), model.pop_front(), "seed {seed}"),
                }
                assert_eq!(queue.len(), model.len(), "seed {seed}");
                assert_eq!(queue.peek(), model.front().copied(), "seed {seed}");
            }
        }
    }

    #[test]
    fn holds_exactly_what_is_advertised() {
        let mut queue = RequestQueue::default();
        for number in 0..REQUEST_QUEUE_MAX {
            assert_eq!(queue.push(KEY, block(number)), Push::Queued);
        }
        assert_eq!(queue.push(KEY, block(0)), Push::Duplicate);
        assert_eq!(queue.push(KEY, block(REQUEST_QUEUE_MAX)), Push::Full);
        assert_eq!(queue.pop(KEY), Some(block(0)));
        assert_eq!(queue.push(KEY, block(REQUEST_QUEUE_MAX)), Push::Queued);
    }
}
