//! Torrents that their files failed: stopped here, and tried again until they can go on.
//!
//! Errors of files enter; a torrent leaves its worker and its trackers, and comes back once its
//! files can be opened and its data was checked again. Invariant: a torrent in error is announced
//! to nobody, and costs a look at its files now and then, on a thread that may block and that no
//! torrent without an error waits for.

use std::io::ErrorKind::NotFound;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::engine::{Engine, Event};
use crate::storage::recovery::{self, Had};
use crate::storage::{Content, Error, files, verify};
use crate::sys::{clock, file::Identity};
use crate::units::{Bitfield, InfoHash};
use crate::worker::blocking::Lane;
use crate::worker::mailbox::{Letter, TorrentState};

/// The longest wait that failures in a row lead to, unless the first wait or the checks are longer.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// A torrent whose checks take long and are in vain is tried less often: they take at most one part
/// in this many of the time, and after many in a row one in [`CHECK_SHARE_LATE`].
const CHECK_SHARE: u32 = 10;

/// See [`CHECK_SHARE`].
const CHECK_SHARE_LATE: u32 = 100;

/// Torrents that are tried again per tick of the engine, so that their looks at the files come to
/// the disks a few at a time.
const TRIALS_PER_TICK: usize = 16;

/// Threads for looking at the files of torrents in error: so many only while many disks hang. Those
/// who are well have threads of their own.
pub(super) const PROBE_THREADS_MAX: usize = 32;

/// What a check found.
pub(super) struct CheckResult {
    pub(super) info_hash: InfoHash,
    /// What was checked, with the selection of that time.
    pub(super) content: Arc<Content>,
    pub(super) have: Bitfield,
    /// The pieces among them that lie in the files, with nothing in the part file.
    pub(super) in_files: Bitfield,
    /// Every wanted file is there, even the empty ones.
    pub(super) is_whole: bool,
    pub(super) known: Vec<Option<Identity>>,
    pub(super) bytes_hashed: u64,
    pub(super) hash_time: Duration,
    /// What is missing cannot be made, or what is there must not be written to.
    pub(super) error: Option<Error>,
}

/// Whether the files of a torrent in error could be used again.
pub(super) type Probed = (InfoHash, Result<(), Error>);

/// The way of one torrent through error and back.
pub(super) struct Trial {
    /// What it had before its files failed it.
    had: Option<Arc<Had>>,
    /// When it is tried again.
    at: Option<Instant>,
    check_begun: Option<Instant>,
    /// How long the check of the last trial took; nothing if it did not get that far.
    check_took: Duration,
    pub(super) patience: Patience,
}

/// How long a torrent in error is left alone: twice as long after every failure in a row.
#[derive(Default)]
pub(super) struct Patience {
    /// Failures since it was last well for good.
    failure_count: u32,
    /// The last wait.
    pub(super) wait: Duration,
    /// Since when its files can be used again.
    well_since: Option<Instant>,
}

impl Patience {
    /// How long to wait after one more failure: `first`, and longer if it is not the first in a
    /// row. `check_took` is what the check before it cost. One that fails again sooner than its
    /// last trial was worth was never well: it may fail at the first write each time.
    pub(super) fn handle_failure(
        &mut self,
        now: Instant,
        first: Duration,
        check_took: Duration,
    ) -> Duration {
        let check_share = check_took.saturating_mul(CHECK_SHARE);
        let was_well = self.well_since.take().is_some_and(|since| {
            now.saturating_duration_since(since) >= self.wait.max(check_share)
        });
        if was_well {
            self.failure_count = 0;
        }
        self.wait = if self.failure_count == 0 {
            first
        } else {
            let least = first.max(check_share);
            let most = least.max(RETRY_MAX).max(check_took.saturating_mul(CHECK_SHARE_LATE));
            least.saturating_mul(2_u32.saturating_pow(self.failure_count)).min(most)
        };
        self.failure_count = self.failure_count.saturating_add(1);
        self.wait
    }

    /// Its files can be used again.
    pub(super) fn handle_success(&mut self, now: Instant) {
        self.well_since = Some(now);
    }
}

impl Trial {
    /// Of a torrent that is well.
    pub(super) fn new() -> Self {
        Self {
            had: None,
            at: None,
            check_begun: None,
            check_took: Duration::ZERO,
            patience: Patience::default(),
        }
    }

    /// What the torrent had before its files failed it.
    pub(super) fn had(&self) -> Option<&Had> {
        self.had.as_deref()
    }

    /// Its files can be used again. What that took still counts: they may fail anew at the first
    /// write.
    pub(super) fn succeed(&mut self) {
        (self.had, self.at, self.check_begun) = (None, None, None);
        self.patience.handle_success(clock::now());
    }

    /// Notes how long the check took.
    pub(super) fn end_check(&mut self) {
        if let Some(begun) = self.check_begun.take() {
            self.check_took = clock::now().saturating_duration_since(begun);
        }
    }
}

/// Files of one torrent whose errors are said when it is checked.
const CHECK_ERRORS_TOLD_MAX: usize = 8;

impl Engine {
    /// Queues the check of a torrent's data; its result comes to `on_checked`.
    pub(super) fn check(&mut self, info_hash: &InfoHash) -> Result<(), verify::QueueFull> {
        let Some(torrent) = self.torrents.get_mut(info_hash) else { return Ok(()) };
        torrent.trial.check_begun = Some(clock::now());
        torrent.check = Arc::default();
        let (fetch, had) = (torrent.fetch, torrent.trial.had.clone());
        let awaits_files = torrent.awaits_files;
        let was_whole = torrent.totals.was_whole.load(Relaxed);
        let (content, progress) = (Arc::clone(&torrent.content), Arc::clone(&torrent.check));
        let (info_hash, root) = (*info_hash, content.save_path.clone());
        let (results, data) = (self.checked.0.clone(), Arc::clone(&content));
        let seen = Arc::clone(&progress);
        let done = Box::new(move |mut checked: verify::Checked| {
            let in_files = checked.have.clone();
            let part_file = data.check_parts(&mut checked.have, &seen);
            let checked = checked;
            // Where nothing is yet, nothing is wrong; what failed before need not be said again.
            let is_absent =
                |error: &verify::ReadError| had.is_some() || error.error.kind() == NotFound;
            let is_ours = |it: &verify::ReadError| it.file.is_none_or(|it| data.wanted.has(it));
            let errors = checked.errors.iter().filter(|it| !is_absent(it) && is_ours(it));
            let mut bad: Vec<_> = errors.collect();
            // One that only serves has nothing to lose here, until it had something.
            let judges = fetch || had.is_some();
            let judged = judges.then(|| recovery::judge(&data, had.as_deref(), &checked)).flatten();
            let absence = || recovery::judge_absence(&data, &checked).filter(|_| awaits_files);
            let judged = judged.or_else(absence);
            let is_there = recovery::is_whole(&data, &checked);
            let is_finished = data.is_finished(&checked.have);
            let missing = || recovery::missing(&data, &checked);
            let first_missing = missing().next().map(|file| data.save_path.join(file.path()));
            let missing_count = missing().count();
            let mut known: Vec<_> = checked.files.iter().map(|file| file.identity).collect();
            if !data.wanted.is_all() {
                known.push(part_file);
            }
            let (have, cancelled) = (checked.have, checked.cancelled);
            let (bytes_hashed, hash_time) = (checked.bytes_hashed, checked.hash_time);
            // Pieces bring their files with them; those without bytes are made here.
            let lacks_empty = fetch && is_finished && !is_there && !cancelled;
            let error =
                judged.or_else(|| lacks_empty.then(|| files::make_empty(&data).err()).flatten());
            let is_whole = is_there || (lacks_empty && error.is_none());
            if let Some(path) = first_missing.filter(|_| was_whole && fetch && error.is_none()) {
                let (name, path) = (data.metainfo.shown_name(), path.display());
                tracing::warn!(
                    torrent = %info_hash, %name, missing_count, first = %path,
                    "files of a torrent that was complete are missing: they are fetched anew"
                );
            }
            // What stops the torrent is said by whoever stops it; a file has one line, not one for
            // each of its pieces.
            bad.sort_by_key(|it| it.file);
            bad.dedup_by_key(|it| it.file);
            for bad in bad.iter().take(CHECK_ERRORS_TOLD_MAX).filter(|_| error.is_none()) {
                let (name, error) = (data.metainfo.shown_name(), &bad.error);
                let file = bad.file.and_then(|index| data.metainfo.layout.file(index));
                let path = file
                    .map_or_else(|| data.save_path.clone(), |it| data.save_path.join(it.path()));
                tracing::warn!(torrent = %info_hash, %name, ?path, %error, "while checking");
            }
            let result = CheckResult {
                info_hash,
                content: data,
                have,
                in_files,
                is_whole,
                known,
                bytes_hashed,
                hash_time,
                error,
            };
            // A hash thread may wait; if the engine has gone nobody wants the answer.
            let _ = results.blocking_send(result);
        });
        self.checker.submit(verify::Job { content, root, progress, done })
    }

    /// A torrent stands still because of its files, until they can be used again. `had` is what it
    /// had before, where that is news.
    pub(super) fn fail(
        &mut self,
        info_hash: &InfoHash,
        error: Error,
        had: Option<Had>,
    ) -> Option<Event> {
        let retry = self.settings.retry;
        let torrent = self.torrents.get_mut(info_hash)?;
        let now = clock::now();
        let check_took = torrent.trial.check_took;
        let wait = torrent.trial.patience.handle_failure(now, retry, check_took);
        if torrent.error.as_ref().is_none_or(|before| !before.is_like(&error)) {
            let name = torrent.content.metainfo.shown_name();
            tracing::error!(torrent = %info_hash, %name, %error, "torrent stopped");
        }
        torrent.error = Some(error.clone());
        torrent.totals.set_state(TorrentState::Error);
        if let Some(had) = had {
            torrent.trial.had = Some(Arc::new(had));
        }
        let at = now + wait;
        torrent.trial.at = Some(at);
        let home = torrent.home.take();
        self.trials.entry(at).or_default().push(*info_hash);
        self.take_home(info_hash, home);
        Some(Event::Failed(*info_hash, error))
    }

    /// Takes a torrent from its worker and from its trackers, which hear that it stopped.
    pub(super) fn take_home(&mut self, info_hash: &InfoHash, home: Option<usize>) {
        let Some(home) = home else { return };
        if let Some(torrent) = self.torrents.get_mut(info_hash) {
            torrent.is_leaving = true;
        }
        self.leave_home(info_hash, home);
    }

    /// Takes whatever it is from its worker and from all who are told of it.
    pub(super) fn leave_home(&mut self, info_hash: &InfoHash, home: usize) {
        self.trackers.remove(*info_hash);
        if let Some(finder) = &self.finder {
            finder.remove(*info_hash);
        }
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.remove(info_hash);
        }
        self.shared.directory.remove(info_hash);
        self.loads[home] -= 1;
        self.post(home, Letter::Remove(*info_hash));
    }

    /// Has the files of torrents looked at whose time has come.
    pub(super) fn try_due(&mut self) {
        let now = clock::now();
        for _ in 0..TRIALS_PER_TICK {
            let Some(mut due) = self.trials.first_entry().filter(|entry| *entry.key() <= now)
            else {
                return;
            };
            let at = *due.key();
            let info_hash = due.get_mut().pop();
            if due.get().is_empty() {
                due.remove();
            }
            if let Some(info_hash) = info_hash {
                self.probe(info_hash, at);
            }
        }
    }

    /// Has the files of a torrent looked at, if it is still to be tried again at that time.
    fn probe(&mut self, info_hash: InfoHash, at: Instant) {
        let Some(torrent) = self.torrents.get_mut(&info_hash) else { return };
        if torrent.trial.at != Some(at) {
            return;
        }
        if torrent.is_leaving {
            // What it still writes would come behind the back of the check.
            return self.try_later(info_hash);
        }
        let (content, fetch) = (Arc::clone(&torrent.content), torrent.fetch);
        let Some(had) = torrent.trial.had.clone() else { return };
        let awaits_files = torrent.awaits_files;
        torrent.trial.check_took = Duration::ZERO;
        // To look whether it could write is to write.
        let writes = fetch && !content.is_finished(&had.have);
        let shared = writes.then(|| self.shared_with_another(&info_hash, &content)).flatten();
        if let Some(torrent) = self.torrents.get_mut(&info_hash) {
            torrent.stands_back = shared.is_some();
        }
        if let Some(error) = shared {
            return drop(self.fail(&info_hash, error, None));
        }
        let lane = Lane::of(&had.known, &content.save_path);
        let results = self.probed.0.clone();
        let job = Box::new(move || {
            // What was never found in this run is unknown to the probe, which would make it.
            let found = if awaits_files { recovery::find_any(&content) } else { Ok(()) };
            let result = found.and_then(|()| recovery::probe(&content, &had, fetch));
            // If the engine has gone nobody wants the answer.
            let _ = results.blocking_send((info_hash, result));
        });
        if self.probes.run(lane, job).is_err() {
            self.try_later(info_hash);
        }
    }

    fn try_later(&mut self, info_hash: InfoHash) {
        let Some(torrent) = self.torrents.get_mut(&info_hash) else { return };
        let at = clock::now() + self.settings.retry;
        torrent.trial.at = Some(at);
        self.trials.entry(at).or_default().push(info_hash);
    }

    /// The files of a torrent in error were looked at: its data is checked before it goes on.
    pub(super) fn on_probed(&mut self, (info_hash, result): Probed) -> Option<Event> {
        self.torrents.get(&info_hash).filter(|torrent| torrent.error.is_some())?;
        if let Err(error) = result {
            return self.fail(&info_hash, error, None);
        }
        if self.check(&info_hash).is_err() {
            self.try_later(info_hash);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metainfo::selection::Wanted;
    use crate::metainfo::{CreateOptions, Metainfo, create};
    use crate::server::engine::{Add, Past, Verify};
    use crate::server::settings::Settings;
    use crate::server::settings::settings;

    #[tokio::test]
    async fn files_are_not_looked_at_before_their_last_worker_leaves_them_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let created = create(&path, &CreateOptions::default(), &|_, _| {}).unwrap();
        let metainfo = Metainfo::parse(&created.bytes).unwrap();
        let settings = Settings {
            listen: vec![([127, 0, 0, 1], 0).into()],
            retry: Duration::ZERO,
            ..settings(&Config::default())
        };
        let mut engine = Engine::start(settings).unwrap();
        let save_path = dir.path().to_owned();
        let add = Add {
            metainfo,
            save_path,
            wanted: Wanted::default(),
            verify: Verify::Full,
            fetch: true,
            peers: Vec::new(),
            past: Past::default(),
        };
        let info_hash = engine.add(add).unwrap();
        let checked = engine.event().await;
        assert!(matches!(checked, Event::Checked { is_complete: true, .. }), "{checked:?}");

        let error = Error::Missing { path: "data".into() };
        let had = Had { have: Bitfield::all(created.piece_count), known: vec![], is_settled: true };
        engine.fail(&info_hash, error, Some(had));
        // Its worker may have answered, but nobody has heard it yet.
        let at = engine.torrents[&info_hash].trial.at.unwrap();
        engine.trials.clear();
        engine.probe(info_hash, at);
        assert_eq!(engine.trials.values().flatten().count(), 1, "it was put off");
        let checked = engine.event().await;
        assert!(matches!(checked, Event::Checked { is_complete: true, .. }), "{checked:?}");
        assert!(!engine.torrents[&info_hash].is_leaving);
        engine.shutdown().await;
    }
}
