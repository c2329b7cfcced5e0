//! The gauges of the control thread, brought up to date once a second.
//!
//! Counts of engine, trackers and bans enter, cells of the metrics leave. Invariant: a scrape costs
//! nothing of this.

use std::sync::atomic::Ordering::Relaxed;

use super::Server;
use crate::metrics::{DatagramFault, TorrentState};
use crate::sys::clock;
use crate::worker::mailbox;

impl Server {
    pub(super) fn set_gauges(&mut self) {
        let mut counts = [0; TorrentState::ALL.len()];
        for (_, torrent) in self.engine.torrents() {
            counts[label(torrent.totals.state()) as usize] += 1;
        }
        counts[TorrentState::Metadata as usize] = self.engine.magnet_count() as u64;
        let cells = self.engine.cells();
        for &state in TorrentState::ALL {
            cells.torrents[state].set(counts[state as usize]);
        }
        let banned_count = self.engine.banned_count(clock::now());
        let process = self.registry.process();
        process.banned_peers.set(banned_count as u64);
        let file_threads = &self.engine.shared.blocking;
        process.file_jobs_waiting.set(file_threads.waiting_count() as u64);
        process.file_jobs_refused.set(file_threads.refused_count());
        let trackers = self.engine.trackers();
        let counters = trackers.counters();
        process.announces_in_flight.set(counters.in_flight.load(Relaxed));
        process.announces_queued.set(counters.queued.load(Relaxed));
        process.announces_overdue.set(trackers.overdue_count() as u64);
        for (result, count) in counters.announces() {
            process.announces[result].set(count);
        }
        let ignored = trackers.ignored_datagrams();
        for (fault, count) in [
            (DatagramFault::Malformed, ignored.malformed),
            (DatagramFault::Transaction, ignored.transaction),
            (DatagramFault::Source, ignored.source),
            (DatagramFault::Action, ignored.action),
        ] {
            process.tracker_datagrams_ignored[fault].set(count);
        }
    }
}

fn label(state: mailbox::TorrentState) -> TorrentState {
    match state {
        mailbox::TorrentState::Checking => TorrentState::Checking,
        mailbox::TorrentState::Downloading => TorrentState::Downloading,
        mailbox::TorrentState::Seeding => TorrentState::Seeding,
        mailbox::TorrentState::Error => TorrentState::Error,
    }
}
