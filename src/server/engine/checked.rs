//! What a check found: the torrent goes to its worker, or into its error.
//!
//! The result of a check enters; letters to the worker and announces leave. Invariant: a torrent
//! comes to a worker only with pieces that were found right, and its trackers, the DHT and
//! neighbours hear of it from then on.

use super::*;

impl Engine {
    pub(super) fn on_checked(&mut self, checked: CheckResult) -> Option<Event> {
        let CheckResult { info_hash, have, in_files, is_whole, known, error, .. } = checked;
        let CheckResult { content, bytes_hashed, hash_time, .. } = checked;
        self.cells.hash_bytes[HashReason::Recheck].add(bytes_hashed);
        self.cells.hash_seconds.add(hash_time);
        let torrent = self.torrents.get_mut(&info_hash)?;
        torrent.trial.end_check();
        let (have_count, piece_count) = content.wanted_counts(&have);
        let is_finished = have_count == piece_count;
        let is_complete = is_finished && is_whole;
        let event = Event::Checked { info_hash, have_count, piece_count, is_complete };
        let is_short = !is_complete && !torrent.fetch;
        // Its files failed it and the data is not back: there is nobody who could fetch it.
        let error = error.or_else(|| torrent.error.clone().filter(|_| is_short));
        if is_short && error.is_none() {
            return Some(event);
        }
        let writes = !is_finished && error.is_none();
        let shared = writes.then(|| self.shared_with_another(&info_hash, &content)).flatten();
        self.torrents.get_mut(&info_hash)?.stands_back = shared.is_some();
        if let Some(error) = error.or(shared) {
            // What a torrent had when its files failed it first is what counts.
            let is_first = self.torrents.get(&info_hash)?.trial.had().is_none();
            return self.fail(
                &info_hash,
                error,
                is_first.then_some(Had { have, known, is_settled: true }),
            );
        }
        let torrent = self.torrents.get_mut(&info_hash)?;
        if torrent.error.take().is_some() {
            let name = content.metainfo.shown_name();
            tracing::info!(torrent = %info_hash, %name, "its files can be used again: the torrent goes on");
        }
        torrent.awaits_files = false;
        torrent.trial.succeed();
        let totals = Arc::clone(&torrent.totals);
        let (peers, fetch) = (torrent.peers.clone(), torrent.fetch);
        // One whose metadata came from peers has its home already.
        let home = torrent.home.unwrap_or_else(|| {
            let home = self.least_loaded();
            self.loads[home] += 1;
            home
        });
        self.torrents.get_mut(&info_hash)?.home = Some(home);
        let (left, wanted_left) = content.left(&have);
        totals.left.store(left, Relaxed);
        totals.wanted_left.store(wanted_left, Relaxed);
        let mut options = self.swarm_options(info_hash);
        options.fetch = fetch;
        options.wanted = content.wanted_pieces();
        options.private = content.metainfo.private;
        options.dht_port = options.dht_port.filter(|_| !options.private);
        options.metadata = Some(content.metainfo.shared_info());
        if let Some(finder) = &self.finder {
            finder.add(&content.metainfo, left == 0);
        }
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.add(&content.metainfo);
        }
        let urls = |tier: &Vec<url::Url>| tier.iter().map(ToString::to_string).collect();
        let tiers: Vec<Vec<String>> = content.metainfo.trackers.iter().map(urls).collect();
        let told = Arc::clone(&totals);
        let fresh = self.torrents.get(&info_hash).map(|torrent| Arc::clone(&torrent.content));
        let fresh = fresh.filter(|fresh| !Arc::ptr_eq(fresh, &content));
        let new = NewTorrent { info_hash, content, have, in_files, known, options, totals: told };
        self.post(home, Letter::Add(Box::new(new)));
        if let Some(fresh) = fresh {
            // Others of its files are wanted than when its check began.
            self.post(home, Letter::Select(info_hash, fresh));
        }
        self.shared.directory.insert(info_hash, home);
        self.announce(info_hash, &self.shown_name(&info_hash), &tiers, &totals);
        let torrent = self.torrents.get_mut(&info_hash)?;
        if std::mem::take(&mut torrent.may_have_told) && is_complete && left == 0 {
            torrent.totals.was_whole.store(true, Relaxed);
        }
        if is_complete && left == 0 {
            self.note_whole(&info_hash);
        }
        self.add_peers(&info_hash, Source::Operator, peers);
        Some(event)
    }
}
