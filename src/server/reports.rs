//! What workers report, as far as it concerns the engine.
//!
//! A [`Report`] enters, an [`Event`] leaves where somebody outside has to hear of it. Invariant: what
//! is late for a torrent that was removed since changes nothing.

use super::engine::{Engine, Event};
use crate::worker::mailbox::Report;
use std::sync::atomic::Ordering::Relaxed;

impl Engine {
    pub(super) fn on_report(&mut self, report: Report) -> Option<Event> {
        Some(match report {
            Report::Finished(info_hash) => {
                // Who wanted some files only is no seed to trackers and to the DHT (BEP 21).
                let torrent = self.torrents.get(&info_hash);
                if let Some(torrent) = torrent.filter(|it| it.totals.left.load(Relaxed) == 0) {
                    self.note_whole(&info_hash);
                    if let Some(finder) = &self.finder {
                        finder.add(&torrent.content.metainfo, true);
                    }
                }
                Event::Finished(info_hash)
            }
            Report::Metadata(info_hash, info) => return self.on_metadata(info_hash, &info),
            Report::Failed(info_hash, error, had) => {
                // One that is nowhere was added again since, or failed here already.
                self.torrents.get(&info_hash).filter(|torrent| torrent.home.is_some())?;
                return self.fail(&info_hash, error, Some(*had));
            }
            Report::Banned(offender, until) => {
                self.on_ban(offender, until);
                return None;
            }
            Report::Node(addr) => {
                self.finder.as_ref()?.insert_node(addr);
                return None;
            }
            Report::Removed(info_hash) => {
                self.torrents.get_mut(&info_hash)?.is_leaving = false;
                return None;
            }
            Report::Stopped(worker) => {
                self.gone_count += 1;
                Event::Died(format!("worker {worker} ended unasked"))
            }
            Report::Died(worker, reason) => {
                self.gone_count += 1;
                Event::Died(format!("worker {worker}: {reason}"))
            }
        })
    }
}
