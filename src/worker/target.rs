//! What an operation of the ring is for.
//!
//! A target enters as a tag and comes back out of it. Invariant: a tag names the slot and its
//! generation, so that what is late for one never reaches the next that has the slot.
#![forbid(unsafe_code)]

use super::table::{GENERATION_BITS, Key};
use crate::ring::Tag;

/// What an operation belongs to, packed into its [`Tag`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Listener(usize),
    Connect(Key),
    Receive(Key),
    Send(Key),
    Read(Key),
    Write(Key),
    Sync(Key),
    WriteBlock(Key),
    Check(Key),
    Datagrams(usize),
    SendTo(Key),
}

impl Target {
    /// The tag of its operations.
    pub(super) fn tag(self) -> Tag {
        let pack = |kind: u64, key: Key| {
            Tag(kind << (32 + GENERATION_BITS)
                | u64::from(key.generation) << 32
                | u64::from(key.slot))
        };
        match self {
            Self::Listener(index) => Tag(1 << (32 + GENERATION_BITS) | index as u64),
            Self::Connect(key) => pack(2, key),
            Self::Receive(key) => pack(3, key),
            Self::Send(key) => pack(4, key),
            Self::Read(key) => pack(5, key),
            Self::Write(key) => pack(6, key),
            Self::Sync(key) => pack(7, key),
            Self::WriteBlock(key) => pack(8, key),
            Self::Check(key) => pack(9, key),
            Self::Datagrams(index) => Tag(10 << (32 + GENERATION_BITS) | index as u64),
            Self::SendTo(key) => pack(11, key),
        }
    }

    /// What a tag was made of; `None` if it was not made here.
    pub(super) fn of(tag: Tag) -> Option<Self> {
        let slot = u32::try_from(tag.0 & u64::from(u32::MAX)).ok()?;
        let generation = u32::try_from(tag.0 >> 32 & ((1 << GENERATION_BITS) - 1)).ok()?;
        let key = Key { slot, generation };
        Some(match tag.0 >> (32 + GENERATION_BITS) {
            1 => Self::Listener(slot as usize),
            2 => Self::Connect(key),
            3 => Self::Receive(key),
            4 => Self::Send(key),
            5 => Self::Read(key),
            6 => Self::Write(key),
            7 => Self::Sync(key),
            8 => Self::WriteBlock(key),
            9 => Self::Check(key),
            10 => Self::Datagrams(slot as usize),
            11 => Self::SendTo(key),
            _ => return None,
        })
    }
}
