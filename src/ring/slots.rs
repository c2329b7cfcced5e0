//! The operations in flight: each owns what the kernel may touch until its last completion.
//!
//! An [`Op`] enters and a key for the kernel leaves; the key comes back with each completion.
//! Invariant: a key names one operation for ever, because a slot that is used again has another
//! generation; a completion can come late, but never to the wrong operation.

use super::{Op, Tag};

/// Bits of a key that hold the slot, and then those of the generation; the rest is the kind.
const SLOT_BITS: u32 = 32;
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// What a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// Something whose outcome does not matter: a cancellation.
    Ignored,
    /// The read that other threads end to wake this one.
    Wake,
    /// An operation.
    Op { slot: u32, generation: u32 },
}

impl Key {
    const IGNORED: u64 = 0;
    const OP: u64 = 1;
    const WAKE: u64 = 2;

    /// As the kernel carries it.
    pub(super) fn pack(self) -> u64 {
        let kind_shift = SLOT_BITS + GENERATION_BITS;
        match self {
            Key::Ignored => Key::IGNORED << kind_shift,
            Key::Wake => Key::WAKE << kind_shift,
            Key::Op { slot, generation } => {
                let generation = u64::from(generation & GENERATION_MASK);
                Key::OP << kind_shift | generation << SLOT_BITS | u64::from(slot)
            }
        }
    }

    /// As it comes back; `None` for what was never packed.
    pub(super) fn unpack(packed: u64) -> Option<Key> {
        let slot = u32::try_from(packed & u64::from(u32::MAX)).ok()?;
        let generation = u32::try_from(packed >> SLOT_BITS & u64::from(GENERATION_MASK)).ok()?;
        match packed >> (SLOT_BITS + GENERATION_BITS) {
            Key::IGNORED => Some(Key::Ignored),
            Key::WAKE => Some(Key::Wake),
            Key::OP => Some(Key::Op { slot, generation }),
            _ => None,
        }
    }
}

/// One operation in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) tag: Tag,
    pub(super) op: Op,
    /// Of a read: bytes that earlier parts of it brought.
    pub(super) done: usize,
    /// Of a zero-copy send: its result is out, only the notification is missing.
    pub(super) is_sent: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    used: Option<InFlight>,
}

/// The table of operations in flight.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// The tag of each slot's latest operation: apart and dense, so that a cancellation, which
    /// looks at all of them, reads little memory.
    tags: Vec<u64>,
    free: Vec<u32>,
    len: usize,
}

impl Slots {
    /// Operations in flight.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Takes an operation in.
    pub(super) fn insert(&mut self, tag: Tag, op: Op) -> Key {
        let used = Some(InFlight { tag, op, done: 0, is_sent: false });
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.used = used;
            self.tags[index as usize] = tag.0;
            return Key::Op { slot: index, generation: slot.generation };
        }
        let index = u32::try_from(self.slots.len()).expect("fewer operations than descriptors");
        self.slots.push(Slot { generation: 0, used });
        self.tags.push(tag.0);
        Key::Op { slot: index, generation: 0 }
    }

    /// The operation that a key names, if it is still in flight.
    pub(super) fn get_mut(&mut self, slot: u32, generation: u32) -> Option<&mut InFlight> {
        let slot = self.slots.get_mut(slot as usize)?;
        if slot.generation != generation {
            return None;
        }
        slot.used.as_mut()
    }

    /// Ends an operation: its resources are the caller's, its key names nothing any more.
    pub(super) fn remove(&mut self, slot: u32, generation: u32) -> Option<InFlight> {
        self.get_mut(slot, generation)?;
        let entry = self.slots.get_mut(slot as usize)?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        self.free.push(slot);
        self.len -= 1;
        entry.used.take()
    }

    /// The keys of all operations of a tag that can still be cancelled.
    pub(super) fn of_tag(&self, tag: Tag) -> impl Iterator<Item = Key> + '_ {
        let hits = self.tags.iter().enumerate().filter(move |&(_, &other)| other == tag.0);
        hits.filter_map(|(index, _)| {
            let slot = self.slots.get(index)?;
            let used = slot.used.as_ref()?;
            let index = u32::try_from(index).ok()?;
            (!used.is_sent).then_some(Key::Op { slot: index, generation: slot.generation })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Handle;
    use super::*;

    fn sync_op() -> Op {
        Op::Sync { file: Handle::new(std::fs::File::open("/dev/null").unwrap().into()) }
    }

    #[test]
    fn keys_survive_the_kernel() {
        for key in [
            Key::Ignored,
            Key::Wake,
            Key::Op { slot: 0, generation: 0 },
            Key::Op { slot: u32::MAX, generation: GENERATION_MASK },
            Key::Op { slot: 7, generation: 9 },
        ] {
            assert_eq!(Key::unpack(key.pack()), Some(key));
            assert_ne!(key.pack(), u64::MAX);
        }
        assert_eq!(Key::unpack(u64::MAX), None);
    }

    #[test]
    fn a_reused_slot_does_not_answer_to_its_old_key() {
        let mut slots = Slots::default();
        let Key::Op { slot, generation } = slots.insert(Tag(1), sync_op()) else { panic!() };
        assert!(slots.remove(slot, generation).is_some());
        assert!(slots.remove(slot, generation).is_none());
        let Key::Op { slot: again, generation: next } = slots.insert(Tag(2), sync_op()) else {
            panic!()
        };
        assert_eq!(slot, again);
        assert_ne!(generation, next);
        assert!(slots.get_mut(slot, generation).is_none());
        assert_eq!(slots.of_tag(Tag(1)).count(), 0);
        assert_eq!(slots.of_tag(Tag(2)).count(), 1);
        assert_eq!(slots.len(), 1);
    }
}
