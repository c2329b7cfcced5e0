//! Workers, checker and trackers as one thing that torrents are added to.
//!
//! Torrents and addresses of peers enter, [`Event`]s leave. The engine lives on the control thread
//! and is driven by polling [`Engine::event`]. Invariant: nothing here blocks; a letter that does
//! not fit into a worker's box waits here and is tried again.

mod checked;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::bans::BanList;
use super::blocklist::BlocklistFile;
use super::budgets::Budgets;
use super::dht::{self, Finder};
use super::lsd::{self, Neighbours};
use super::magnets::{Names, Pending};
use super::outbox::Outbox;
use super::own::OwnAddrs;
use super::ports::{self, Ports};
use super::retry::{CheckResult, PROBE_THREADS_MAX, Probed, Trial};
use super::settings::Settings;
pub use super::start::StartError;
use super::start::{
    check_bind, choose_cores, fitting_connections, new_peer_id, new_seed, start_workers,
};
use super::udp::{Hub, Machine};
use crate::metainfo::Metainfo;
use crate::metainfo::selection::Wanted;
use crate::metrics::{Core, DatagramKind, HashReason, Registry};
use crate::storage::recovery::Had;
use crate::storage::verify::{self, Checker, Progress};
use crate::storage::{self, Content};
use crate::swarm::Source;
use crate::sys::clock;
use crate::tracker;
use crate::units::{Bitfield, InfoHash};
use crate::worker::blocking::Blocking;
use crate::worker::datagrams::{self, Udp};
use crate::worker::keys::Keys;
use crate::worker::mailbox::{Directory, Letter, NewTorrent, Report, Shared, Totals};

/// Reports that may wait for the control thread.
const REPORTS_MAX: usize = 4096;

/// Threads for opening, reserving and comparing the files of torrents that are well: so many only
/// while many disks hang.
pub(super) const FILE_THREADS_MAX: usize = 64;

/// How often letters that found no room are posted again.
pub(super) const UNSENT_RETRY: Duration = Duration::from_millis(100);

/// What happened to a torrent, or to the engine.
#[derive(Debug)]
pub enum Event {
    /// Its data was checked; from now on it is served, and fetched if asked for.
    Checked {
        /// The torrent.
        info_hash: InfoHash,
        /// Pieces that are wanted and here.
        have_count: u32,
        /// Pieces that are wanted: all of them, if all files are.
        piece_count: u32,
        /// Whether all that is wanted is there: every piece, and every file, even the empty ones.
        is_complete: bool,
    },
    /// The metadata of a magnet link came: the torrent is to be added ([`Engine::add`]), or the link
    /// removed ([`Engine::remove_magnet`]).
    Metadata(Box<Metainfo>),
    /// The metadata of a magnet link came, but no torrent can be made of it: the link is removed.
    Unusable(InfoHash, String),
    /// All that is wanted of it is on disk, flushed.
    Finished(InfoHash),
    /// It stands still because of its files.
    Failed(InfoHash, storage::Error),
    /// The process cannot go on.
    Died(String),
}

/// Why a torrent is not added.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// It is there already.
    #[error("the torrent {0} is there already")]
    Duplicate(InfoHash),
    /// Too many torrents wait for their check.
    #[error("too many torrents wait to be checked; try again later")]
    Busy,
}

/// What to do with the data of a torrent that is added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// Hash what is there.
    Full,
    /// Take the operator's word that all of it is there.
    Trust,
}

/// A torrent to be added.
#[derive(Debug)]
pub struct Add {
    /// What it consists of.
    pub metainfo: Metainfo,
    /// The folder that holds its top name.
    pub save_path: PathBuf,
    /// Which of its files are wanted.
    pub wanted: Wanted,
    /// What to do with the data that is there.
    pub verify: Verify,
    /// Whether missing pieces are fetched; if not, an incomplete torrent is not served either.
    pub fetch: bool,
    /// Peers to connect to at once.
    pub peers: Vec<SocketAddr>,
    /// What is known of it from earlier runs.
    pub past: Past,
}

/// What is known of a torrent from earlier runs; nothing, by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// Some of it was on disk: if none of its files is there now, they are waited for and not made
    /// anew.
    pub had_data: bool,
    /// Some of it was fetched.
    pub has_fetched: bool,
    /// It was whole, and that was to be told to its trackers if it was fetched. If nobody knows,
    /// one that its first check finds whole counts as told.
    pub was_whole: Option<bool>,
}

/// A torrent as the engine knows it.
pub struct Torrent {
    /// What it consists of and where it lies.
    pub content: Arc<Content>,
    /// What its worker says of it.
    pub totals: Arc<Totals>,
    /// Why it stands still.
    pub error: Option<storage::Error>,
    /// How far its check is.
    pub check: Arc<Progress>,
    pub(super) home: Option<usize>,
    /// Its last worker has not said that it leaves its files alone.
    pub(super) is_leaving: bool,
    pub(super) fetch: bool,
    peers: Vec<SocketAddr>,
    /// Some of it was fetched in an earlier run.
    has_fetched: bool,
    /// Nobody knows whether its trackers heard that it is whole, until its first check.
    may_have_told: bool,
    /// It had data in an earlier run, and nothing of it was found in this one yet.
    pub(super) awaits_files: bool,
    /// Another torrent has its files: it has none of them.
    pub(super) stands_back: bool,
    pub(super) trial: Trial,
}

/// See the module.
pub struct Engine {
    pub(super) settings: Settings,
    ports: Ports,
    registry: Registry,
    pub(super) shared: Shared,
    pub(super) torrents: HashMap<InfoHash, Torrent>,
    /// Torrents whose metadata is being looked for.
    pub(super) magnets: HashMap<InfoHash, Pending>,
    pub(super) names: Names,
    /// Torrents by the path of their top name, to find those that lie in the same place.
    pub(super) tops: HashMap<PathBuf, Vec<InfoHash>>,
    /// Torrents per worker, to deal the next one to the least loaded.
    pub(super) loads: Vec<usize>,
    pub(super) checker: Checker,
    pub(super) checked: (mpsc::Sender<CheckResult>, mpsc::Receiver<CheckResult>),
    pub(super) probed: (mpsc::Sender<Probed>, mpsc::Receiver<Probed>),
    /// Threads that look at the files of torrents in error, and at no others.
    pub(super) probes: Blocking,
    /// Torrents that their files failed, by when they are tried again.
    pub(super) trials: BTreeMap<Instant, Vec<InfoHash>>,
    /// The cells of this thread.
    pub(super) cells: Arc<Core>,
    pub(super) trackers: tracker::Handle,
    found: mpsc::Receiver<tracker::Found>,
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) outbox: Outbox,
    pub(super) hub: Hub,
    pub(super) finder: Option<Finder>,
    pub(super) neighbours: Option<Neighbours>,
    pub(super) budgets: Budgets,
    pub(super) bans: BanList,
    pub(super) blocklist: BlocklistFile,
    pub(super) own: OwnAddrs,
    retry: tokio::time::Interval,
    /// Workers that have ended.
    pub(super) gone_count: usize,
}

impl Engine {
    /// Says what of the settings cannot be, as far as it shows before anything is started or made.
    pub fn judge(settings: &Settings) -> Result<(), StartError> {
        choose_cores(&settings.cores)?;
        check_bind(settings.bind.as_ref())
    }

    /// Binds the ports and starts every thread.
    pub fn start(mut settings: Settings) -> Result<Self, StartError> {
        Self::judge(&settings)?;
        let cores = choose_cores(&settings.cores)?;
        settings.connections_max = fitting_connections(settings.connections_max);
        let mut ports = ports::bind(&settings.listen, settings.bind.as_ref(), cores.len())?;
        let registry = Registry::new(cores.len());
        let (reports_in, reports) = mpsc::channel(REPORTS_MAX);
        let shared = Shared {
            peer_id: new_peer_id()?,
            directory: Arc::new(Directory::default()),
            mailboxes: Arc::new(OnceLock::new()),
            reports: reports_in,
            blocking: Blocking::start("files", FILE_THREADS_MAX).map_err(StartError::Thread)?,
            keys: Keys::start().map_err(StartError::Thread)?,
        };
        let listeners = std::mem::take(&mut ports.listeners);
        let sockets = std::mem::take(&mut ports.datagram_sockets);
        let (end, udp, arrivals) = datagrams::ends(sockets, Arc::clone(&shared.mailboxes));
        let mut hub = Hub::new(udp, arrivals);
        start_workers(&settings, &shared, &registry, &cores, listeners, end)?;
        let port = ports.addrs.first().map_or(0, SocketAddr::port);
        let finder = match &settings.dht {
            Some(names) => {
                let saved = std::mem::take(&mut settings.dht_saved);
                Finder::start(hub.udp(), &settings.policy, port, names, &saved)?
            }
            None => None,
        };
        if let Some(finder) = &finder {
            hub.attach(DatagramKind::Dht, finder.machine());
            let source = finder.clone();
            registry.dht().set(move || source.figures());
        }
        let cells = registry.process();
        let neighbours = settings
            .lsd
            .then(|| Neighbours::new(&ports.addrs, settings.bind.as_ref(), Arc::clone(cells)));
        let mut config = tracker::Config::new(shared.peer_id, port, new_seed()?);
        config.policy = settings.policy.clone();
        config.bind.clone_from(&settings.bind);
        config.options.parallel_tiers = settings.parallel_tiers;
        config.cells = Arc::clone(registry.process());
        config.tracker_announces = registry.tracker_announces().clone();
        config.outgoing = Some(Arc::new(hub.udp().clone()));
        let (trackers, found) = tracker::Service::spawn(config)
            .map_err(|error| StartError::Trackers(error.to_string()))?;
        hub.attach(DatagramKind::Tracker, Box::new(trackers.clone()));
        let threads = verify::Options { threads: cores.len(), low_priority: settings.quiet_checks };
        let checker = Checker::start(threads).map_err(StartError::Thread)?;
        let mut retry = tokio::time::interval(UNSENT_RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut engine = Self {
            loads: vec![0; cores.len()],
            settings,
            ports,
            cells: registry.helper(),
            registry,
            shared,
            torrents: HashMap::new(),
            magnets: HashMap::new(),
            names: Names::new(),
            tops: HashMap::new(),
            checker,
            checked: mpsc::channel(REPORTS_MAX),
            probed: mpsc::channel(REPORTS_MAX),
            probes: Blocking::start("probe", PROBE_THREADS_MAX).map_err(StartError::Thread)?,
            trials: BTreeMap::new(),
            trackers,
            found,
            reports,
            outbox: Outbox::new(cores.len()),
            hub,
            finder,
            neighbours,
            budgets: Budgets::new(cores.len()),
            bans: BanList::default(),
            blocklist: BlocklistFile::default(),
            own: OwnAddrs::default(),
            retry,
            gone_count: 0,
        };
        engine.share_budgets(clock::now());
        engine.renew_own_addrs(clock::now());
        Ok(engine)
    }

    /// Where peers reach us.
    pub fn peer_addrs(&self) -> &[SocketAddr] {
        &self.ports.addrs
    }

    /// Nodes of the DHT that answered lately; `None` if it is not used.
    pub fn dht_node_count(&self) -> Option<usize> {
        self.finder.as_ref().map(Finder::node_count)
    }

    /// What is worth saving of the DHT, for [`Settings::dht_saved`], if anything is.
    pub fn dht_export(&self) -> Option<Vec<u8>> {
        self.finder.as_ref().and_then(Finder::export)
    }

    /// The way out for datagrams.
    pub fn udp(&self) -> &Udp {
        self.hub.udp()
    }

    /// Lets a machine have all datagrams of a kind, instead of an earlier one; it is turned while
    /// [`Engine::event`] or [`Engine::shutdown`] is polled.
    pub fn attach(&mut self, kind: DatagramKind, machine: Box<dyn Machine>) {
        self.hub.attach(kind, machine);
    }

    /// The metrics.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The cells of the control thread.
    pub fn cells(&self) -> &Core {
        &self.cells
    }

    /// The announces of all torrents.
    pub fn trackers(&self) -> &tracker::Handle {
        &self.trackers
    }

    /// How the trackers of a torrent do.
    pub fn tracker_status(&self, info_hash: &InfoHash) -> Option<tracker::Status> {
        self.trackers.status(*info_hash)
    }

    /// A torrent that was added.
    pub fn torrent(&self, info_hash: &InfoHash) -> Option<&Torrent> {
        self.torrents.get(info_hash)
    }

    /// The name of a torrent for logs; empty if it is not here.
    pub fn shown_name(&self, info_hash: &InfoHash) -> String {
        let torrent = self.torrents.get(info_hash);
        torrent.map(|torrent| torrent.content.metainfo.shown_name()).unwrap_or_default()
    }

    /// All torrents.
    pub fn torrents(&self) -> impl Iterator<Item = (&InfoHash, &Torrent)> {
        self.torrents.iter()
    }

    /// Whether too many torrents wait for their check for another one to be added.
    pub fn is_busy(&self) -> bool {
        self.checker.is_full()
    }

    /// Adds a torrent: its data is checked, then it goes to its worker.
    pub fn add(&mut self, add: Add) -> Result<InfoHash, AddError> {
        let Add { metainfo, save_path, wanted, verify, fetch, peers, past } = add;
        let info_hash = metainfo.info_hash;
        if self.torrents.contains_key(&info_hash) {
            return Err(AddError::Duplicate(info_hash));
        }
        let geometry = metainfo.geometry;
        let magnet = self.magnets.get(&info_hash);
        let totals = magnet.map(|it| Arc::clone(&it.totals));
        let totals = totals.unwrap_or_else(|| Arc::new(Totals::new(geometry.total_len())));
        totals.was_whole.store(past.was_whole == Some(true), Relaxed);
        let home = magnet.map(|it| it.home);
        let content = Arc::new(Content { metainfo, save_path, wanted });
        let torrent = Torrent {
            content: Arc::clone(&content),
            totals,
            error: None,
            check: Arc::new(Progress::default()),
            home,
            is_leaving: false,
            fetch,
            peers,
            has_fetched: past.has_fetched,
            may_have_told: past.was_whole.is_none() && past.has_fetched,
            awaits_files: past.had_data,
            stands_back: false,
            trial: Trial::new(),
        };
        if let Some(path) = top_path(&content) {
            self.tops.entry(path).or_default().push(info_hash);
        }
        self.torrents.insert(info_hash, torrent);
        if verify == Verify::Trust {
            let have = Bitfield::all(geometry.piece_count());
            // The queue has room for every torrent that is being added in one go, or the checker
            // is asked after all.
            let trusted = CheckResult {
                info_hash,
                content: Arc::clone(&content),
                in_files: have.clone(),
                have,
                is_whole: true,
                known: Vec::new(),
                bytes_hashed: 0,
                hash_time: Duration::ZERO,
                error: None,
            };
            if self.checked.0.try_send(trusted).is_ok() {
                self.end_magnet(&content.metainfo);
                return Ok(info_hash);
            }
        }
        if self.check(&info_hash).is_err() {
            self.forget(&info_hash);
            return Err(AddError::Busy);
        }
        self.end_magnet(&content.metainfo);
        Ok(info_hash)
    }

    /// Changes which files of a torrent are wanted; false if it is not here. Peers stay connected.
    /// [`Event::Finished`] follows once all that is wanted is there, if anything was missing.
    pub fn set_wanted(&mut self, info_hash: &InfoHash, wanted: Wanted) -> bool {
        let Some(torrent) = self.torrents.get_mut(info_hash) else { return false };
        let Content { metainfo, save_path, .. } = &*torrent.content;
        let (metainfo, save_path) = (metainfo.clone(), save_path.clone());
        let content = Arc::new(Content { metainfo, save_path, wanted });
        torrent.content = Arc::clone(&content);
        // While it is checked its worker does not know it: it hears of it afterwards.
        if let Some(home) = torrent.home {
            self.post(home, Letter::Select(*info_hash, content));
        }
        true
    }

    fn forget(&mut self, info_hash: &InfoHash) {
        let Some(torrent) = self.torrents.remove(info_hash) else { return };
        if let Some(path) = top_path(&torrent.content)
            && let Some(others) = self.tops.get_mut(&path)
        {
            others.retain(|other| other != info_hash);
            if others.is_empty() {
                self.tops.remove(&path);
            }
        }
    }

    /// The next thing that happened. Dropping the future loses nothing.
    pub async fn event(&mut self) -> Event {
        loop {
            let event = tokio::select! {
                Some(checked) = self.checked.1.recv() => self.on_checked(checked),
                Some(report) = self.reports.recv() => self.on_report(report),
                Some(probed) = self.probed.1.recv() => self.on_probed(probed),
                Some(found) = self.found.recv() => {
                    if let Some(ip) = found.external_ip {
                        self.on_external(ip);
                    }
                    self.add_peers(&found.info_hash, Source::Tracker, found.peers);
                    None
                }
                Some((info_hash, addrs)) = self.names.found.recv() => {
                    self.add_peers(&info_hash, Source::Magnet, addrs);
                    None
                }
                () = self.hub.turn(&self.cells) => {
                    while let Some(found) = self.finder.as_ref().and_then(Finder::poll_found) {
                        match found {
                            dht::Found::External(ip) => self.on_external(ip),
                            dht::Found::Peers(info_hash, peers) => {
                                self.add_peers(&info_hash, Source::Dht, peers);
                            }
                        }
                    }
                    None
                }
                Some(looked) = self.blocklist.looked.recv() => {
                    self.on_blocklist(looked);
                    None
                }
                named = lsd::next(&mut self.neighbours) => {
                    for (info_hash, addr) in named {
                        self.add_peers(&info_hash, Source::Lsd, vec![addr]);
                    }
                    None
                }
                _ = self.retry.tick() => {
                    self.post_unsent();
                    let now = clock::now();
                    self.share_budgets(now);
                    self.renew_own_addrs(now);
                    self.watch_blocklist(now);
                    self.try_due();
                    None
                }
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Tells a torrent of peers.
    pub fn add_peers(&mut self, info_hash: &InfoHash, source: Source, addrs: Vec<SocketAddr>) {
        let home = self.torrents.get(info_hash).and_then(|torrent| torrent.home);
        if let Some(home) = home.or_else(|| self.magnets.get(info_hash).map(|it| it.home))
            && !addrs.is_empty()
            && (self.outbox.has_room(home) || source == Source::Operator)
        {
            self.post(home, Letter::Contacts { info_hash: *info_hash, source, addrs });
        }
    }

    /// A torrent is whole. If it was fetched `completed` is queued for its trackers, once for all
    /// runs: it may have become whole while the server ended, and one that loses a piece becomes
    /// whole again. Trackers that are silent until the server ends do not hear of it.
    pub(super) fn note_whole(&self, info_hash: &InfoHash) {
        let Some(torrent) = self.torrents.get(info_hash) else { return };
        let was_whole = torrent.totals.was_whole.swap(true, Relaxed);
        let is_fetched = torrent.has_fetched || torrent.totals.downloaded.load(Relaxed) > 0;
        if !was_whole && is_fetched {
            self.trackers.completed(*info_hash);
        }
    }

    pub(super) fn post(&mut self, worker: usize, letter: Letter) {
        self.outbox.push(worker, letter);
        self.post_unsent();
    }

    pub(super) fn post_unsent(&mut self) {
        let Some(mailboxes) = self.shared.mailboxes.get() else { return };
        self.outbox.flush(|worker, letter| match mailboxes.get(worker) {
            Some(mailbox) => mailbox.send(letter),
            None => Ok(()),
        });
    }
}

/// Where the top name of a torrent lies.
pub(super) fn top_path(content: &Content) -> Option<PathBuf> {
    let path = content.metainfo.layout.file(0)?.path();
    Some(content.save_path.join(path.components().next()?))
}
