//! The server: engine, state, watch folders and HTTP together.
//!
//! A configuration enters; the server runs until it is told to stop. Torrents come from the state
//! directory at start and from watch folders later. Invariant: a torrent is remembered on disk
//! before its file in the watch folder is renamed, so that none is lost between the two.

mod gauges;
mod links;

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::links::Links;
use super::engine::{Add, AddError, Engine, Event, Past, StartError, Verify};
use super::folders;
use super::ledger::{Counted, Ledger};
use super::settings::{Settings, settings};
use crate::config::Config;
use crate::control::http::{Http, Service};
use crate::control::state::{LoadError, NewTorrent, OpenError, State, StoredTorrent};
use crate::control::watch::{Found, Shape, TORRENT_LEN_MAX, Watch, is_magnet};
use crate::metainfo::selection::Wanted;
use crate::metainfo::{self, Metainfo};
use crate::metrics::{Registry, WatchResult};
use crate::sys::clock;
use crate::units::{InfoHash, to_usize};

/// How often totals go to the database.
const TOTALS_INTERVAL: Duration = Duration::from_secs(5);

/// How often the nodes of the DHT are saved, besides at the end.
const NODES_INTERVAL: Duration = Duration::from_secs(300);

/// How long the end waits for HTTP connections, after everything else.
const HTTP_STOP: Duration = Duration::from_millis(300);

/// How long the end waits for the watch folders, while the engine ends.
const WATCH_STOP: Duration = Duration::from_secs(5);

/// How long the end waits for the state, after the engine has ended.
const STATE_STOP: Duration = Duration::from_millis(1_500);

/// How often the gauges of this thread are brought up to date.
const GAUGES_INTERVAL: Duration = Duration::from_secs(1);

/// Torrents that were read from the state and wait to be added.
const LOADED_MAX: usize = 64;

/// Files of watch folders that are being remembered, or wait to be added, at a time.
const REMEMBERING_MAX: usize = 32;

/// Why the server ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Workers, ports or trackers.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A folder of the settings.
    #[error(transparent)]
    Folder(#[from] folders::Error),
    /// The state directory.
    #[error(transparent)]
    State(#[from] OpenError),
    /// The HTTP address.
    #[error(
        "cannot listen on {addr} for HTTP: {reason}; name another address with --http ADDR:PORT \
         (http.listen), or - for none"
    )]
    Http {
        /// The address.
        addr: SocketAddr,
        /// The system's words.
        reason: std::io::Error,
    },
    /// The watch folders.
    #[error("cannot watch folders: {0}")]
    Watch(std::io::Error),
    /// A worker died.
    #[error("the server cannot go on: {0}")]
    Died(String),
}

/// What a task of remembering a file came to.
type Remembered = (PathBuf, Result<Metainfo, String>);

struct Server {
    engine: Engine,
    state: Arc<State>,
    downloads: PathBuf,
    registry: Registry,
    watch: Option<Watch>,
    remembering: JoinSet<Remembered>,
    /// What is remembered and finds no room in the engine yet, with its file.
    waiting: VecDeque<(PathBuf, Metainfo)>,
    links: Links,
    ledger: Ledger,
    /// A torrent was checked since totals were last written: what it has is to outlast a crash.
    has_news: bool,
}

/// Runs the server until `stop` is done. `ready` is told the addresses of peers and HTTP once it
/// serves.
pub async fn run(
    config: Config,
    ready: impl FnOnce(SocketAddr, Option<SocketAddr>),
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let (settings, paths) = (settings(&config), config.paths.clone());
    Engine::judge(&settings)?;
    tokio::pin!(stop);
    let open = move || {
        folders::look(&paths)?;
        Ok(State::open(&paths.state)?)
    };
    let Some((state, stored)) = on_disk(open, stop.as_mut()).await? else { return Ok(()) };
    let dht_saved = state.nodes().to_vec();
    let mut engine = Engine::start(Settings { dht_saved, ..settings })?;
    tokio::select! {
        opened = engine.open_blocklist() => opened?,
        // A disk that hangs from the start.
        () = stop.as_mut() => return Ok(()),
    }
    engine.restore_bans(state.bans());
    let registry = engine.registry().clone();
    let http = match config.http.listen.0 {
        Some(addr) => Some(Http::bind(addr).await.map_err(|reason| Error::Http { addr, reason })?),
        None => None,
    };
    // Nothing is made for a server that does not start.
    let downloads = config.paths.downloads.clone();
    let had_data = has_data_in(&downloads, &stored);
    let prepare = move || Ok(folders::prepare(&downloads, had_data)?);
    let Some(()) = on_disk(prepare, stop.as_mut()).await? else { return Ok(()) };
    let is_ready = Arc::new(AtomicBool::new(false));
    let http_addr = http.as_ref().map(Http::addr);
    let (stop_http, http_stopped) = tokio::sync::oneshot::channel::<()>();
    let http_task = http.map(|http| {
        let service = Service { registry: registry.clone(), ready: Arc::clone(&is_ready) };
        tokio::spawn(http.serve(service, async {
            // Either way it is over.
            let _ = http_stopped.await;
        }))
    });
    let (watch, mut found) = if config.paths.watch.is_empty() {
        (None, None)
    } else {
        let (watch, found) =
            Watch::start(config.paths.watch.clone(), shape_of).map_err(Error::Watch)?;
        (Some(watch), Some(found))
    };
    let peer_addr = engine.peer_addrs().first().copied();
    let state = Arc::new(state);
    let mut server = Server {
        engine,
        state: Arc::clone(&state),
        downloads: std::path::absolute(&config.paths.downloads)
            .unwrap_or(config.paths.downloads.clone()),
        registry,
        watch,
        remembering: JoinSet::new(),
        waiting: VecDeque::new(),
        links: Links::default(),
        ledger: Ledger::default(),
        has_news: false,
    };
    for &StoredTorrent { info_hash, uploaded, downloaded, had_bytes: had, was_whole, .. } in &stored
    {
        // Of those too whose file is bad: they may come back.
        server.ledger.remember(
            info_hash,
            Counted { uploaded, downloaded, had, was_whole: was_whole == Some(true) },
        );
    }
    server.restore_links(&stored);
    let mut loaded = load(state, stored);
    if let Some(peer_addr) = peer_addr {
        ready(peer_addr, http_addr);
    }
    let result = server.serve(&mut loaded, &mut found, &is_ready, stop.as_mut()).await;
    is_ready.store(false, Relaxed);
    server.end().await;
    drop(stop_http);
    if let Some(task) = http_task {
        // Whoever still asks when everything else has ended is not answered.
        let _ = tokio::time::timeout(HTTP_STOP, task).await;
    }
    result
}

/// What the bytes of a `.torrent` look like: whether it is worth waiting for more of them.
fn shape_of(bytes: &[u8]) -> Shape {
    let len_max = to_usize(TORRENT_LEN_MAX);
    match Metainfo::parse(bytes) {
        Ok(_) => Shape::Whole,
        Err(metainfo::Error::Bencode(error))
            if bytes.starts_with(b"d") && error.is_cut(len_max) =>
        {
            Shape::Cut
        }
        Err(_) => Shape::Broken,
    }
}

/// Does what may block, at the start; nothing comes of it if the end is nearer than the disk.
async fn on_disk<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Error> + Send + 'static,
    stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<T>, Error> {
    let done = tokio::select! {
        done = tokio::task::spawn_blocking(job) => done,
        // A disk that hangs from the start.
        () = stop => return Ok(None),
    };
    done.map_err(|error| Error::Died(format!("looking at the folders: {error}")))?.map(Some)
}

/// Whether a torrent of an earlier run had data in `downloads` or below.
fn has_data_in(downloads: &Path, stored: &[StoredTorrent]) -> bool {
    let downloads = std::path::absolute(downloads).unwrap_or_else(|_| downloads.to_owned());
    let is_there = |path: &PathBuf| path.starts_with(&downloads);
    stored.iter().any(|it| it.had_bytes > 0 && it.save_path.as_ref().is_none_or(is_there))
}

/// Reads the torrents of the state, on a thread that may block.
fn load(
    state: Arc<State>,
    stored: Vec<StoredTorrent>,
) -> mpsc::Receiver<(StoredTorrent, Metainfo)> {
    let (sender, receiver) = mpsc::channel(LOADED_MAX);
    tokio::task::spawn_blocking(move || {
        for torrent in stored {
            let info_hash = torrent.info_hash;
            let bytes = match state.load(&info_hash) {
                // Another time it may be readable: it stays where it is.
                Err(error @ LoadError::Read { .. }) => {
                    let name = metainfo::shown_name(&torrent.name);
                    tracing::error!(torrent = %info_hash, %name, %error, "not added again");
                    continue;
                }
                other => other,
            };
            let metainfo = bytes
                .map_err(|error| error.to_string())
                .and_then(|bytes| Metainfo::parse(&bytes).map_err(|error| error.to_string()))
                .and_then(|metainfo| {
                    let same = metainfo.info_hash == info_hash;
                    same.then_some(metainfo).ok_or_else(|| "it is another torrent".to_owned())
                });
            match metainfo {
                Ok(metainfo) => {
                    if sender.blocking_send((torrent, metainfo)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let name = metainfo::shown_name(&torrent.name);
                    tracing::error!(torrent = %info_hash, %name, %error, "its file in the state is bad");
                    if let Err(error) = state.quarantine(&info_hash) {
                        tracing::warn!(torrent = %info_hash, %error, "and cannot be put aside");
                    }
                }
            }
        }
    });
    receiver
}

impl Server {
    /// Serves until `stop` is done. Nothing in here waits for a disk.
    async fn serve(
        &mut self,
        loaded: &mut mpsc::Receiver<(StoredTorrent, Metainfo)>,
        found: &mut Option<mpsc::Receiver<Found>>,
        is_ready: &AtomicBool,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let mut totals = tokio::time::interval(TOTALS_INTERVAL);
        let mut gauges = tokio::time::interval(GAUGES_INTERVAL);
        let first = tokio::time::Instant::now() + NODES_INTERVAL;
        let mut nodes = tokio::time::interval_at(first, NODES_INTERVAL);
        loop {
            let remembering_count = self.remembering.len() + self.links.remembering_count();
            let waiting_count = self.waiting.len() + self.links.waiting_count();
            let room = remembering_count + waiting_count < REMEMBERING_MAX;
            let loads = !is_ready.load(Relaxed) && !self.engine.is_busy();
            tokio::select! {
                () = &mut stop => return Ok(()),
                event = self.engine.event() => self.handle_event(event)?,
                next = loaded.recv(), if loads => match next {
                    Some((stored, metainfo)) => self.restore(stored, metainfo),
                    None => {
                        is_ready.store(true, Relaxed);
                        self.restore_late_links();
                    }
                },
                Some(found) = next_found(found), if room && is_ready.load(Relaxed) => self.take(found),
                Some(remembered) = self.remembering.join_next() => {
                    if let Ok((path, result)) = remembered {
                        self.answer(path, result);
                    }
                }
                Some(remembered) = self.links.next() => self.on_remembered(remembered),
                _ = totals.tick() => self.write_totals(),
                _ = nodes.tick() => save_nodes(&self.state, self.engine.dht_export()),
                _ = gauges.tick() => {
                    self.set_gauges();
                    self.answer_waiting();
                    self.add_waiting_links();
                    self.remember_again();
                    if self.has_news {
                        self.write_totals();
                    }
                }
            }
        }
    }

    fn handle_event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Checked { info_hash, have_count, piece_count, .. } => {
                let name = self.engine.shown_name(&info_hash);
                tracing::info!(torrent = %info_hash, %name, have_count, piece_count, "checked");
                self.has_news = true;
            }
            Event::Finished(info_hash) => {
                let name = self.engine.shown_name(&info_hash);
                let torrent = self.engine.torrent(&info_hash);
                let what = match torrent.is_none_or(|torrent| torrent.content.wanted.is_all()) {
                    true => "complete",
                    false => "complete as far as it is wanted",
                };
                tracing::info!(torrent = %info_hash, %name, "{what}");
            }
            // Whoever found it has logged it, with its reason.
            Event::Failed(..) => {}
            Event::Metadata(metainfo) => self.remember_learnt(*metainfo),
            Event::Unusable(info_hash, error) => self.forget_link(info_hash, &error),
            Event::Died(reason) => return Err(Error::Died(reason)),
        }
        Ok(())
    }

    /// Adds a torrent of an earlier run.
    fn restore(&mut self, stored: StoredTorrent, metainfo: Metainfo) {
        let save_path = stored.save_path.unwrap_or_else(|| self.downloads.clone());
        let (verify, peers) = (Verify::Full, Vec::new());
        let past = Past {
            had_data: stored.had_bytes > 0,
            has_fetched: stored.downloaded > 0,
            was_whole: stored.was_whole,
        };
        let wanted = stored.wanted;
        let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
        let name = add.metainfo.shown_name();
        if let Err(error) = self.add(add) {
            tracing::warn!(torrent = %stored.info_hash, %name, %error, "not added again");
        }
    }

    /// Adds a torrent and counts what it moves.
    fn add(&mut self, add: Add) -> Result<InfoHash, AddError> {
        let info_hash = self.engine.add(add)?;
        self.links.end(&info_hash);
        if let Some(torrent) = self.engine.torrent(&info_hash) {
            tell_trackers(&torrent.content.metainfo);
            let total_len = torrent.content.metainfo.geometry.total_len();
            self.ledger.open(info_hash, Arc::clone(&torrent.totals), total_len);
        }
        Ok(info_hash)
    }

    /// Judges a file of a watch folder, and remembers a good one on disk.
    fn take(&mut self, found: Found) {
        if is_magnet(&found.path) {
            return self.take_link(found);
        }
        let (state, save_path) = (Arc::clone(&self.state), self.downloads.clone());
        let known = |info_hash: &InfoHash| self.engine.torrent(info_hash).is_some();
        let Found { path, contents } = found;
        let judged =
            contents.and_then(|bytes| Metainfo::parse(&bytes).map_err(|error| error.to_string()));
        if judged.as_ref().is_ok_and(|metainfo| known(&metainfo.info_hash)) {
            self.remembering.spawn(async { (path, judged) });
            return;
        }
        self.remembering.spawn(async move {
            let result = match judged {
                Err(sentence) => Err(sentence),
                Ok(metainfo) => {
                    let new = NewTorrent {
                        info_hash: metainfo.info_hash,
                        metainfo: metainfo.raw().to_vec(),
                        save_path,
                        name: metainfo.name.clone(),
                        added_at: clock::wall_seconds(),
                        wanted: Wanted::default(),
                    };
                    let added = state.add(new).await;
                    added
                        .map(|()| metainfo)
                        .map_err(|error| format!("it cannot be remembered: {error}"))
                }
            };
            (path, result)
        });
    }

    /// Answers the files that waited, as far as there is room now.
    fn answer_waiting(&mut self) {
        while !self.engine.is_busy()
            && let Some((path, metainfo)) = self.waiting.pop_front()
        {
            self.answer(path, Ok(metainfo));
        }
    }

    /// Adds a torrent that was remembered, as soon as there is room, and answers in the watch
    /// folder.
    fn answer(&mut self, path: PathBuf, result: Result<Metainfo, String>) {
        let result = match result {
            // Rejected it would come back at the next start, for it is remembered.
            Ok(metainfo) if self.engine.is_busy() => {
                return self.waiting.push_back((path, metainfo));
            }
            other => other,
        };
        let file = path.display();
        let result = result.and_then(|metainfo| {
            let name = metainfo.shown_name();
            for warning in &metainfo.warnings {
                tracing::info!(torrent = %metainfo.info_hash, %name, warning, "in the torrent");
            }
            if let Some(renames) = metainfo.renames_told() {
                tracing::warn!(torrent = %metainfo.info_hash, %name, "{renames}");
            }
            let save_path = self.downloads.clone();
            let (verify, peers, past) = (Verify::Full, Vec::new(), Past::default());
            let wanted = Wanted::default();
            self.ledger.renew(&metainfo.info_hash);
            let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
            match self.add(add) {
                Ok(info_hash) => {
                    tracing::info!(torrent = %info_hash, %name, %file, "added");
                    Ok(WatchResult::Added)
                }
                Err(AddError::Duplicate(info_hash)) => {
                    tracing::info!(
                        torrent = %info_hash, %name, %file,
                        "it is here already: nothing to add"
                    );
                    Ok(WatchResult::Duplicate)
                }
                Err(error) => Err(error.to_string()),
            }
        });
        self.give_verdict(path, result);
    }

    /// Answers in the watch folder.
    fn give_verdict(&self, path: PathBuf, result: Result<WatchResult, String>) {
        let Some(watch) = &self.watch else { return };
        let counted = match result {
            Ok(counted) => {
                watch.accept(path);
                counted
            }
            Err(sentence) => {
                tracing::warn!(file = %path.display(), sentence, "rejected");
                watch.reject(path, sentence);
                WatchResult::Rejected
            }
        };
        self.registry.process().watch_files[counted].add(1);
    }

    /// Has new bans written, and the totals that have changed since, unless those before still wait:
    /// then these have changed the next time, too.
    fn write_totals(&mut self) {
        let Some(place) = self.state.place_for_totals() else { return };
        self.has_news = false;
        let bans = self.engine.take_fresh_bans();
        if !bans.is_empty()
            && let Err(bans) = self.state.add_bans(bans)
        {
            self.engine.put_bans_back(bans);
        }
        let changed = self.ledger.take_changed();
        if !changed.is_empty() {
            place.put(changed);
        }
    }

    async fn end(self) {
        let Self { engine, state, watch, mut ledger, .. } = self;
        save_nodes(&state, engine.dht_export());
        // A disk that hangs must not hold up what does not need it.
        let close = async {
            if let Some(watch) = watch {
                watch.close().await;
            }
        };
        let close = tokio::time::timeout(WATCH_STOP, close);
        let (closed, bans) = tokio::join!(close, engine.shutdown());
        if closed.is_err() {
            tracing::warn!(
                "a watch folder does not answer: its files are looked at at the next start"
            );
        }
        // By now the workers have counted their last bytes.
        let last = async {
            // One that is closed already has ended by itself, and said why.
            let _ = state.update_totals(ledger.take_changed()).await;
            let _ = state.update_bans(bans).await;
            state.close().await;
        };
        if tokio::time::timeout(STATE_STOP, last).await.is_err() {
            tracing::warn!("the state does not answer: totals may be lost");
        }
    }
}

/// Has the nodes of the DHT written, if any are known.
fn save_nodes(state: &State, nodes: Option<Vec<u8>>) {
    if let Some(nodes) = nodes
        && let Err(error) = state.save_nodes(nodes)
    {
        tracing::warn!(%error, "nodes of the DHT are not saved");
    }
}

/// Says that a torrent has no trackers, if it has none.
pub fn tell_trackers(metainfo: &Metainfo) {
    if metainfo.trackers.iter().flatten().next().is_none() {
        let (info_hash, name) = (metainfo.info_hash, metainfo.shown_name());
        tracing::info!(
            torrent = %info_hash, %name,
            "it names no trackers: its peers are found in other ways, or they connect by themselves"
        );
    }
}

/// The next file of a watch folder; never, without one.
async fn next_found(found: &mut Option<mpsc::Receiver<Found>>) -> Option<Found> {
    match found {
        Some(found) => found.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
