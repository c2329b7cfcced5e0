//! Letters on their way to workers.
//!
//! Letters enter in the order in which they are to arrive, one queue per worker; they leave when
//! the worker's box has room. Invariant: a worker whose box is full keeps nobody's letters back but
//! its own.

use std::collections::VecDeque;

use crate::worker::mailbox::Letter;

/// Letters that may wait for one worker before further addresses of peers for it are dropped. What
/// must arrive goes beyond that: a worker that takes no letters reports nothing either, so that is
/// at most the removal and the return of each torrent, what operators say of it, and the bans that
/// the other workers report meanwhile, of which each is small.
const UNSENT_MAX: usize = 16 * 1024;

/// See the module.
pub(super) struct Outbox {
    unsent: Vec<VecDeque<Letter>>,
}

impl Outbox {
    /// An empty one for `worker_count` workers.
    pub(super) fn new(worker_count: usize) -> Self {
        Self { unsent: (0..worker_count).map(|_| VecDeque::new()).collect() }
    }

    /// Whether a worker may be told what it can do without.
    pub(super) fn has_room(&self, worker: usize) -> bool {
        self.unsent.get(worker).is_some_and(|letters| letters.len() < UNSENT_MAX)
    }

    /// Puts a letter behind those that wait for the same worker; one to nobody is dropped.
    pub(super) fn push(&mut self, worker: usize, letter: Letter) {
        if let Some(letters) = self.unsent.get_mut(worker) {
            letters.push_back(letter);
        }
    }

    /// Gives each worker its letters until `send` gives one back. Order matters between the letters
    /// of one worker: nothing overtakes that one.
    pub(super) fn flush(&mut self, mut send: impl FnMut(usize, Letter) -> Result<(), Letter>) {
        for (worker, letters) in self.unsent.iter_mut().enumerate() {
            while let Some(letter) = letters.pop_front() {
                if let Err(letter) = send(worker, letter) {
                    letters.push_front(letter);
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::InfoHash;

    fn letter(number: u8) -> Letter {
        Letter::Remove(InfoHash([number; 20]))
    }

    /// The worker and number of every letter that leaves; `open` workers have room.
    fn flush(outbox: &mut Outbox, open: &[usize]) -> Vec<(usize, u8)> {
        let mut sent = Vec::new();
        outbox.flush(|worker, letter| {
            let Letter::Remove(InfoHash([number, ..])) = letter else { unreachable!() };
            if !open.contains(&worker) {
                return Err(letter);
            }
            sent.push((worker, number));
            Ok(())
        });
        sent
    }

    #[test]
    fn a_full_box_keeps_back_its_own_letters_and_no_others() {
        let mut outbox = Outbox::new(2);
        for number in 0..3 {
            outbox.push(0, letter(number));
            outbox.push(1, letter(number + 10));
        }
        outbox.push(2, letter(99));
        assert_eq!(flush(&mut outbox, &[1]), [(1, 10), (1, 11), (1, 12)]);
        outbox.push(0, letter(3));
        outbox.push(1, letter(13));
        let sent = flush(&mut outbox, &[0, 1]);
        assert_eq!(sent, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 13)]);
        assert!(flush(&mut outbox, &[0, 1]).is_empty());
    }

    #[test]
    fn a_worker_that_takes_nothing_is_told_no_more_than_it_must_be() {
        let mut outbox = Outbox::new(2);
        for _ in 0..UNSENT_MAX {
            assert!(outbox.has_room(0));
            outbox.push(0, letter(0));
        }
        assert!(!outbox.has_room(0) && outbox.has_room(1) && !outbox.has_room(2));
    }
}
