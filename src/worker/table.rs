//! Tables with stable keys that never name the wrong thing: a slot and a generation.
//!
//! Values enter and get a [`Key`], later keys find them or find nothing. Invariant: a key of a
//! value that was removed finds nothing for as long as 2²⁴ values pass through its slot, so the
//! completion of an operation whose connection has gone is recognised, never misdelivered.
#![forbid(unsafe_code)]

use slab::Slab;

/// Names a value of a [`Table`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// The slot; small numbers, used again.
    pub(super) slot: u32,
    /// How often the slot had been used, 24 bits.
    pub(super) generation: u32,
}

/// Bits of a generation that a [`Key`] holds.
pub(super) const GENERATION_BITS: u32 = 24;

/// A table of values under stable keys.
#[derive(Debug)]
pub(super) struct Table<T> {
    values: Slab<T>,
    generations: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { values: Slab::new(), generations: Vec::new() }
    }
}

impl<T> Table<T> {
    /// Puts a value in.
    pub(super) fn insert(&mut self, value: T) -> Key {
        let slot = self.values.insert(value);
        if slot == self.generations.len() {
            self.generations.push(0);
        }
        let generation = &mut self.generations[slot];
        *generation = (*generation + 1) & ((1 << GENERATION_BITS) - 1);
        Key { slot: u32::try_from(slot).unwrap_or(u32::MAX), generation: *generation }
    }

    /// The value, if it is still there.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        self.is_current(key).then(|| self.values.get(key.slot as usize)).flatten()
    }

    /// The value, if it is still there.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.is_current(key).then(|| self.values.get_mut(key.slot as usize)).flatten()
    }

    /// Takes a value out.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        self.is_current(key).then(|| self.values.try_remove(key.slot as usize)).flatten()
    }

    /// The key of whatever is in `slot` now.
    pub(super) fn key_at(&self, slot: u32) -> Option<Key> {
        self.values
            .contains(slot as usize)
            .then(|| Key { slot, generation: self.generations[slot as usize] })
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All keys, in the order of their slots.
    pub(super) fn keys(&self) -> Vec<Key> {
        let key = |(slot, _)| self.key_at(u32::try_from(slot).unwrap_or(u32::MAX));
        self.values.iter().filter_map(key).collect()
    }

    /// All values, in the order of their slots.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    fn is_current(&self, key: Key) -> bool {
        self.generations.get(key.slot as usize) == Some(&key.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_finds_nothing_in_a_slot_used_again() {
        let mut table = Table::default();
        let old = table.insert("old");
        assert_eq!(table.remove(old), Some("old"));
        let new = table.insert("new");
        assert_eq!(new.slot, old.slot);
        assert_eq!(table.get(old), None);
        assert_eq!(table.remove(old), None);
        assert_eq!(table.get(new), Some(&"new"));
        assert_eq!(table.keys(), [new]);
        assert_eq!(table.len(), 1);
    }
}
