//! Totals of torrents over all runs, and which of them the database has yet to hear of.
//!
//! Totals of earlier runs and those that workers count now enter; sums that have changed leave.
//! Invariant: to find them costs one look per torrent and no search, for all are looked at every
//! few seconds on the control thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::control::state::Totals;
use crate::units::InfoHash;
use crate::worker::mailbox;

/// What is known of a torrent over all runs, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counted {
    /// Payload sent.
    pub(super) uploaded: u64,
    /// Payload received.
    pub(super) downloaded: u64,
    /// The most that was ever found right on the disk.
    pub(super) had: u64,
    /// Whether it was whole, and that was to be told to its trackers if it was fetched.
    pub(super) was_whole: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    /// What torrents counted in earlier runs that have no account yet.
    before: HashMap<InfoHash, Counted>,
    accounts: Vec<Account>,
}

struct Account {
    info_hash: InfoHash,
    /// What its worker counts in this run.
    now: Arc<mailbox::Totals>,
    total_len: u64,
    before: Counted,
    /// As the database has it.
    written: Counted,
    /// What the database has is not that, whatever was counted since.
    is_unknown: bool,
}

impl Ledger {
    /// Notes what a torrent counted in earlier runs, before its account is opened.
    pub(super) fn remember(&mut self, info_hash: InfoHash, counted: Counted) {
        self.before.insert(info_hash, counted);
    }

    /// A torrent was added again before its account is opened: what it moved stays, and nothing of it
    /// is on the disk by now.
    pub(super) fn renew(&mut self, info_hash: &InfoHash) {
        if let Some(before) = self.before.get_mut(info_hash) {
            *before = Counted { had: 0, was_whole: false, ..*before };
        }
    }

    /// The database has a new row of a torrent: its sums are written once more.
    pub(super) fn write_again(&mut self, info_hash: &InfoHash) {
        let account = self.accounts.iter_mut().find(|it| it.info_hash == *info_hash);
        if let Some(account) = account {
            account.is_unknown = true;
        }
    }

    /// Counts a torrent of `total_len` bytes from now on; once for each.
    pub(super) fn open(&mut self, info_hash: InfoHash, now: Arc<mailbox::Totals>, total_len: u64) {
        let before = self.before.remove(&info_hash).unwrap_or_default();
        let (written, is_unknown) = (before, false);
        self.accounts.push(Account { info_hash, now, total_len, before, written, is_unknown });
    }

    /// The sums that are others than when this was last asked.
    pub(super) fn take_changed(&mut self) -> Vec<Totals> {
        let mut changed = Vec::new();
        for account in &mut self.accounts {
            let Account { info_hash, now, total_len, before, written, is_unknown } = account;
            let counted = Counted {
                uploaded: before.uploaded + now.uploaded.load(Relaxed),
                downloaded: before.downloaded + now.downloaded.load(Relaxed),
                had: written.had.max(total_len.saturating_sub(now.left.load(Relaxed))),
                was_whole: now.was_whole.load(Relaxed),
            };
            let is_unknown = std::mem::take(is_unknown);
            if std::mem::replace(written, counted) != counted || is_unknown {
                let Counted { uploaded, downloaded, had: had_bytes, was_whole } = counted;
                let info_hash = *info_hash;
                changed.push(Totals { info_hash, uploaded, downloaded, had_bytes, was_whole });
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(ledger: &mut Ledger) -> Vec<(u8, u64, u64)> {
        let changed = ledger.take_changed();
        changed.iter().map(|it| (it.info_hash.0[0], it.uploaded, it.downloaded)).collect()
    }

    #[test]
    fn sums_go_over_all_runs_and_leave_once_when_they_change() {
        let mut ledger = Ledger::default();
        let totals: [Arc<mailbox::Totals>; 3] =
            std::array::from_fn(|_| Arc::new(mailbox::Totals::new(9)));
        let counted = |uploaded, downloaded| Counted { uploaded, downloaded, ..Counted::default() };
        ledger.remember(InfoHash([0; 20]), counted(100, 10));
        ledger.remember(InfoHash([2; 20]), counted(300, 30));
        for (number, totals) in (0u8..).zip(&totals) {
            ledger.open(InfoHash([number; 20]), Arc::clone(totals), 9);
        }
        assert_eq!(take(&mut ledger), []);
        totals[0].uploaded.store(5, Relaxed);
        totals[1].downloaded.store(7, Relaxed);
        assert_eq!(take(&mut ledger), [(0, 105, 10), (1, 0, 7)]);
        assert_eq!(take(&mut ledger), []);
        totals[2].uploaded.store(1, Relaxed);
        assert_eq!(take(&mut ledger), [(2, 301, 30)]);
    }

    #[test]
    fn what_a_torrent_had_never_becomes_less() {
        let mut ledger = Ledger::default();
        let totals = Arc::new(mailbox::Totals::new(100));
        let info_hash = InfoHash([0; 20]);
        ledger.remember(info_hash, Counted { had: 40, ..Counted::default() });
        ledger.open(info_hash, Arc::clone(&totals), 100);
        let mut had_at = |left| {
            totals.left.store(left, Relaxed);
            ledger.take_changed().first().map(|totals| totals.had_bytes)
        };
        // Not checked yet, or not mounted: all of it is left.
        assert_eq!(had_at(100), None);
        assert_eq!(had_at(30), Some(70));
        assert_eq!(had_at(80), None);
        assert_eq!(had_at(0), Some(100));
        assert_eq!(had_at(100), None);
    }

    #[test]
    fn a_torrent_that_is_added_again_has_nothing_yet_but_what_it_moved() {
        let mut ledger = Ledger::default();
        let totals = Arc::new(mailbox::Totals::new(100));
        let info_hash = InfoHash([0; 20]);
        let counted = Counted { uploaded: 3, downloaded: 4, had: 40, was_whole: true };
        ledger.remember(info_hash, counted);
        ledger.renew(&info_hash);
        ledger.open(info_hash, Arc::clone(&totals), 100);
        totals.uploaded.store(1, Relaxed);
        let changed = ledger.take_changed()[0];
        assert_eq!((changed.uploaded, changed.downloaded), (4, 4));
        assert_eq!((changed.had_bytes, changed.was_whole), (0, false));
        // Its row was written anew, with nothing in it.
        assert_eq!(take(&mut ledger), []);
        ledger.write_again(&info_hash);
        assert_eq!(take(&mut ledger), [(0, 4, 4)]);
        assert_eq!(take(&mut ledger), []);
    }

    #[test]
    fn that_a_torrent_was_whole_is_a_change_of_its_own() {
        let mut ledger = Ledger::default();
        let totals = Arc::new(mailbox::Totals::new(0));
        ledger.open(InfoHash([0; 20]), Arc::clone(&totals), 0);
        assert_eq!(take(&mut ledger), []);
        totals.was_whole.store(true, Relaxed);
        assert!(ledger.take_changed()[0].was_whole);
        assert_eq!(take(&mut ledger), []);
    }
}
