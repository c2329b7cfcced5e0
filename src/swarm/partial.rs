//! A piece that is under way: which of its blocks are free, asked for, arriving or stored.
//!
//! Invariant: `free` and `missing` equal a recount of the blocks, and a block that is arriving or
//! stored has exactly one source.
#![forbid(unsafe_code)]

use super::options::ENDGAME_PEERS_MAX;
use super::peer::PeerKey;
use crate::units::PeerId;
use std::net::SocketAddr;
use std::time::Instant;

/// Who sent a block, also when it is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    pub(super) addr: SocketAddr,
    pub(super) id: PeerId,
}

/// The peers that one block is asked from, and when the last one was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Askers {
    keys: [Option<PeerKey>; ENDGAME_PEERS_MAX],
    pub(super) at: Instant,
}

impl Askers {
    pub(super) fn one(now: Instant, key: PeerKey) -> Self {
        let mut keys = [None; ENDGAME_PEERS_MAX];
        keys[0] = Some(key);
        Self { keys, at: now }
    }

    /// With `key` added; `None` if it is there or there is no room.
    pub(super) fn with(mut self, now: Instant, key: PeerKey) -> Option<Self> {
        if self.keys.contains(&Some(key)) {
            return None;
        }
        *self.keys.iter_mut().find(|place| place.is_none())? = Some(key);
        Some(Self { at: now, ..self })
    }

    /// Without `key`; `None` if nobody is left.
    pub(super) fn without(mut self, key: PeerKey) -> Option<Self> {
        for place in &mut self.keys {
            if *place == Some(key) {
                *place = None;
            }
        }
        self.keys.iter().any(Option::is_some).then_some(self)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = PeerKey> {
        self.keys.into_iter().flatten()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Slot {
    Free,
    Asked(Askers),
    Arriving(PeerKey),
    /// All bytes are in, from the origin of this number.
    Stored(u16),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Fetching,
    /// All blocks are in; the caller hashes.
    Verifying,
    /// The hash is right; the caller writes.
    Writing,
}

pub(super) struct Partial {
    pub(super) phase: Phase,
    pub(super) blocks: Vec<Slot>,
    pub(super) free: u32,
    /// Blocks that are not stored.
    pub(super) missing: u32,
    pub(super) origins: Vec<Origin>,
    /// After a failure with several sources: the one peer that may fetch it.
    pub(super) exclusive: Option<PeerKey>,
    pub(super) is_suspect: bool,
    /// Its blocks go to the disk as they come; none of it is charged to the memory for pieces.
    pub(super) is_in_place: bool,
    /// Peers whose current piece this is.
    pub(super) users: u32,
    /// Tells it from an earlier attempt at the same piece.
    pub(super) serial: u64,
    /// No block before this one is free.
    cursor: u32,
}

impl Partial {
    pub(super) fn new(block_count: u32, is_in_place: bool, serial: u64) -> Self {
        Self {
            phase: Phase::Fetching,
            blocks: vec![Slot::Free; block_count as usize],
            free: block_count,
            missing: block_count,
            origins: Vec::new(),
            exclusive: None,
            is_suspect: false,
            is_in_place,
            users: 0,
            serial,
            cursor: 0,
        }
    }

    pub(super) fn slot(&self, index: u32) -> Option<Slot> {
        self.blocks.get(index as usize).copied()
    }

    pub(super) fn set(&mut self, index: u32, slot: Slot) {
        let Some(place) = self.blocks.get_mut(index as usize) else {
            return;
        };
        let old = std::mem::replace(place, slot);
        if slot == Slot::Free {
            self.cursor = self.cursor.min(index);
        }
        self.free = self.free + u32::from(slot == Slot::Free) - u32::from(old == Slot::Free);
        let is_stored = |slot| matches!(slot, Slot::Stored(_));
        self.missing = self.missing + u32::from(is_stored(old)) - u32::from(is_stored(slot));
    }

    /// The first free block.
    pub(super) fn first_free(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        while self.slot(self.cursor).is_some_and(|slot| slot != Slot::Free) {
            self.cursor += 1;
        }
        Some(self.cursor)
    }

    /// The number of `origin` in the list of those who sent something.
    pub(super) fn origin(&mut self, origin: Origin) -> u16 {
        let known = self.origins.iter().position(|&other| other == origin);
        let number = known.unwrap_or_else(|| {
            self.origins.push(origin);
            self.origins.len() - 1
        });
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// Forgets all blocks, as a new attempt; those that are asked for or arriving are the caller's
    /// to take back.
    pub(super) fn reset(&mut self, serial: u64) {
        let count = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let is_suspect = self.is_suspect;
        *self = Self { is_suspect, ..Self::new(count, self.is_in_place, serial) };
    }

    pub(super) fn check_invariants(&self) {
        let count = |wanted: fn(&Slot) -> bool| self.blocks.iter().filter(|s| wanted(s)).count();
        assert_eq!(self.free as usize, count(|slot| *slot == Slot::Free));
        assert_eq!(self.missing as usize, count(|slot| !matches!(slot, Slot::Stored(_))));
        assert_eq!(self.phase == Phase::Fetching, self.missing > 0);
    }
}
