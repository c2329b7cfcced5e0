//! The one task that announces all torrents, on the control thread.
//!
//! Commands come in by [`Handle`], peers go out by a bounded channel, status and counters are read
//! in place. Invariant: everything is bounded by [`Limits`] and [`FOUND_MAX`]; when nobody takes
//! the peers they are dropped and counted, never piled up.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

pub use super::executor::BuildError;
use super::executor::Executor;
use super::http::{Bind, HttpConfig};
use super::reply::Scraped;
use super::scheduler::{AddError, Job};
use super::tracker_url::{Protocol, TrackerUrl};
use super::udp::{Ignored, Outgoing};
use super::{AddressPolicy, Event, Failure, Limits, Options, Reply, Scheduler, Status, Totals};
use crate::metrics::{self, AnnounceProtocol, AnnounceResult, Labels as _, TrackerAnnounces};
use crate::sys::clock;
use crate::units::{InfoHash, PeerId};

/// Answers with peers that wait to be taken.
pub const FOUND_MAX: usize = 1024;

/// Scrapes that run at a time.
const SCRAPES_MAX: usize = 4;

/// Torrents of which it is remembered that peers were refused, so that each is said once.
const TOLD_MAX: usize = 1024;

/// Hosts and torrents of which it is remembered that announces fail; of more nothing is said.
const FAILING_MAX: usize = 4096;

/// Everything the service needs to know. [`Config::new`] fills in what a server uses.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our id, in every announce.
    pub peer_id: PeerId,
    /// The port that peers reach us at.
    pub port: u16,
    /// Decides shuffles, jitter and the `key`; from the system's randomness.
    pub seed: u64,
    /// Where connections may go, and which peers are believed.
    pub policy: AddressPolicy,
    /// What connections leave from (`--bind`).
    pub bind: Option<Bind>,
    /// What carries datagrams where it has a way; its other half calls [`Handle::handle_datagram`].
    pub outgoing: Option<Arc<dyn Outgoing>>,
    /// The times of the schedule.
    pub options: Options,
    /// How much may happen at once.
    pub limits: Limits,
    /// Time for one announce over HTTP as a whole.
    pub announce_wall: Duration,
    /// Time for one announce over UDP: enough for what is sent at 0, 15 and 45 s.
    pub datagram_wall: Duration,
    /// Time for one `stopped`.
    pub stop_wall: Duration,
    /// Where latencies are counted; the service's runtime has to be their one writer.
    pub cells: Arc<metrics::Process>,
    /// Where announces are counted by tracker.
    pub tracker_announces: TrackerAnnounces,
}

impl Config {
    /// The defaults of a server.
    pub fn new(peer_id: PeerId, port: u16, seed: u64) -> Self {
        Self {
            peer_id,
            port,
            seed,
            policy: AddressPolicy::default(),
            bind: None,
            outgoing: None,
            options: Options::default(),
            limits: Limits::default(),
            announce_wall: Duration::from_secs(30),
            datagram_wall: Duration::from_secs(60),
            stop_wall: Duration::from_secs(5),
            cells: Arc::default(),
            tracker_announces: TrackerAnnounces::default(),
        }
    }
}

/// Tells what a torrent has transferred and lacks, at the moment of an announce.
pub trait Source: Send + Sync {
    /// The numbers of now.
    fn totals(&self) -> Totals;
}

impl<F: Fn() -> Totals + Send + Sync> Source for F {
    fn totals(&self) -> Totals {
        self()
    }
}

/// Peers that a tracker named, already judged by the address policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Its peers; may hold our own address.
    pub peers: Vec<SocketAddr>,
    /// Our address as the tracker sees it, if it said so (BEP 24).
    pub external_ip: Option<IpAddr>,
}

/// What has happened, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    announces: [AtomicU64; AnnounceResult::COUNT],
    /// Announces on their way.
    pub in_flight: AtomicU64,
    /// Announces that are due and wait for the limits.
    pub queued: AtomicU64,
    /// Torrents, stopping ones included.
    pub torrents: AtomicU64,
    /// Peers handed out.
    pub peers_found: AtomicU64,
    /// Entries of peer lists that were no usable peers.
    pub peers_refused: AtomicU64,
    /// Peers dropped because nobody took them in time.
    pub peers_dropped: AtomicU64,
}

impl Counters {
    /// Announces so far, by result.
    pub fn announces(&self) -> impl Iterator<Item = (AnnounceResult, u64)> + '_ {
        let counts = AnnounceResult::ALL.iter().zip(&self.announces);
        counts.map(|(result, count)| (*result, count.load(Relaxed)))
    }
}

/// Starts the task; everything else is done by its [`Handle`].
#[derive(Debug)]
pub struct Service;

impl Service {
    /// Starts the task on the current tokio runtime. It runs until [`Handle::shutdown`] or the end
    /// of the runtime. Peers come out of the receiver.
    ///
    /// # Errors
    /// The HTTP client or the UDP sockets cannot be set up.
    pub fn spawn(config: Config) -> Result<(Handle, mpsc::Receiver<Found>), BuildError> {
        let (found, receiver) = mpsc::channel(FOUND_MAX);
        let mut rng = fastrand::Rng::with_seed(config.seed);
        let http = HttpConfig {
            peer_id: config.peer_id,
            port: config.port,
            key: rng.u32(..),
            policy: config.policy,
            bind: config.bind,
        };
        let executor = Arc::new(Executor::new(http, rng.u64(..), config.outgoing)?);
        let (is_over, _) = watch::channel(false);
        let shared = Arc::new(Shared {
            scheduler: Mutex::new(Scheduler::new(config.options, config.limits, rng.u64(..))),
            changed: Notify::new(),
            is_over,
            counters: Counters::default(),
            executor,
            scrapes: Semaphore::new(SCRAPES_MAX),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            found,
            announce_wall: config.announce_wall,
            datagram_wall: config.datagram_wall,
            stop_wall: config.stop_wall,
            cells: config.cells,
            tracker_announces: config.tracker_announces,
            told: Mutex::default(),
            failing: Mutex::default(),
        };
        tokio::spawn(worker.run());
        Ok((Handle { shared }, receiver))
    }
}

/// The coordinator's side of the service. Cheap to clone; no call waits for the network.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    scheduler: Mutex<Scheduler<Arc<dyn Source>>>,
    changed: Notify,
    /// True once nothing will be announced any more.
    is_over: watch::Sender<bool>,
    counters: Counters,
    executor: Arc<Executor>,
    scrapes: Semaphore,
}

impl Handle {
    /// Starts to announce a torrent. `tiers` are the URLs of its metainfo; those that cannot be
    /// used are skipped and show in [`status`](Self::status). A torrent that lacks data goes
    /// before those that only seed. A torrent that is just being removed starts again after that.
    ///
    /// # Errors
    /// It is there already, the table is full, or the server is ending.
    pub fn add(
        &self,
        info_hash: InfoHash,
        tiers: &[Vec<String>],
        source: Arc<dyn Source>,
    ) -> Result<(), AddError> {
        let is_urgent = source.totals().left > 0;
        self.change(|scheduler, now| scheduler.add(now, info_hash, tiers, is_urgent, source))
    }

    /// The download of a torrent has just become complete: announces `completed`. Not to be called
    /// for a torrent that was complete from the start. False if it is not there.
    pub fn completed(&self, info_hash: InfoHash) -> bool {
        self.change(|scheduler, now| scheduler.handle_completed(now, info_hash))
    }

    /// Announces as soon as the trackers allow it. False if the torrent is not there.
    pub fn reannounce(&self, info_hash: InfoHash) -> bool {
        self.change(|scheduler, now| scheduler.handle_reannounce(now, info_hash))
    }

    /// Stops announcing a torrent: `stopped` goes out, then it is forgotten. False if it is not
    /// there.
    pub fn remove(&self, info_hash: InfoHash) -> bool {
        self.change(|scheduler, now| scheduler.remove(now, info_hash))
    }

    /// What to show of a torrent; `None` if it is not there.
    pub fn status(&self, info_hash: InfoHash) -> Option<Status> {
        self.shared.scheduler().status(info_hash)
    }

    /// What has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Torrents whose announce has been due for more than
    /// [`OVERDUE_AFTER`](super::scheduler::OVERDUE_AFTER).
    pub fn overdue_count(&self) -> usize {
        self.shared.scheduler().overdue_count(clock::now())
    }

    /// Asks a tracker for its counts of `torrents`, which need not be announced here; see
    /// [`Executor::scrape`]. Only a few scrapes run at a time; others wait.
    ///
    /// # Errors
    /// Says what went wrong.
    pub async fn scrape(
        &self,
        url: &TrackerUrl,
        torrents: &[InfoHash],
        wall: Duration,
    ) -> Result<Vec<Scraped>, Failure> {
        // It is never closed; without a turn the scrape would only be one too many.
        let _turn = self.shared.scrapes.acquire().await;
        self.shared.executor.scrape(url, torrents, wall).await
    }

    /// Takes a datagram that may be a tracker's, from whoever carries those of [`Config::outgoing`].
    pub fn handle_datagram(&self, from: SocketAddr, bytes: &[u8]) {
        self.shared.executor.udp().handle_datagram(from, bytes);
    }

    /// Datagrams that were no answer of a UDP tracker.
    pub fn ignored_datagrams(&self) -> Ignored {
        self.shared.executor.udp().ignored()
    }

    /// Announces `stopped` for every torrent whose tracker heard `started`, within the limits, and
    /// ends the service after `deadline` at the latest. Says how many torrents did not get to say
    /// it.
    pub async fn shutdown(&self, deadline: Duration) -> usize {
        let mut is_over = self.shared.is_over.subscribe();
        self.change(Scheduler::handle_ending);
        let ended = async { is_over.wait_for(|over| *over).await.is_ok() };
        let _in_time = tokio::time::timeout(deadline, ended).await;
        self.shared.is_over.send_replace(true);
        self.shared.scheduler().torrent_count()
    }

    fn change<R>(&self, change: impl FnOnce(&mut Scheduler<Arc<dyn Source>>, Instant) -> R) -> R {
        let result = change(&mut self.shared.scheduler(), clock::now());
        self.shared.changed.notify_one();
        result
    }
}

impl Shared {
    fn scheduler(&self) -> MutexGuard<'_, Scheduler<Arc<dyn Source>>> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task: asks the schedule what is due, announces it, and hands back what came of it.
struct Worker {
    shared: Arc<Shared>,
    found: mpsc::Sender<Found>,
    announce_wall: Duration,
    datagram_wall: Duration,
    stop_wall: Duration,
    cells: Arc<metrics::Process>,
    tracker_announces: TrackerAnnounces,
    /// Torrents of which was said that peers were refused.
    told: Mutex<BTreeSet<InfoHash>>,
    /// Hosts, and torrents at a host, of which was said that announces fail.
    failing: Mutex<BTreeSet<(String, Option<InfoHash>)>>,
}

/// An announce, what came of it, and how long that took.
type Ended = (Job, Result<Reply, Failure>, Duration);

impl Worker {
    async fn run(self) {
        let mut announces: JoinSet<Ended> = JoinSet::new();
        let mut is_over = self.shared.is_over.subscribe();
        loop {
            let (timeout, is_done) = self.start_due(&mut announces);
            if is_done {
                self.shared.is_over.send_replace(true);
            }
            let sleep = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = is_over.wait_for(|over| *over) => return,
                () = self.shared.changed.notified() => {}
                () = sleep => {}
                Some(ended) = announces.join_next() => {
                    if let Ok((job, result, took)) = ended {
                        self.count(&job, &result, took);
                        self.handle_ended(&job, result);
                    }
                }
            }
        }
    }

    /// Starts what is due. Gives back when to look again, and whether the end is reached.
    fn start_due(&self, announces: &mut JoinSet<Ended>) -> (Option<Instant>, bool) {
        let now = clock::now();
        let mut scheduler = self.shared.scheduler();
        while let Some(job) = scheduler.poll(now) {
            let totals = scheduler.attachment(job.key).map(|source| source.totals());
            let totals = totals.unwrap_or_default();
            let executor = Arc::clone(&self.shared.executor);
            let wall = match (job.announce.event, job.announce.url.protocol()) {
                (Event::Stopped, _) => self.stop_wall,
                (_, Protocol::Udp) => self.datagram_wall,
                (_, Protocol::Http | Protocol::Https) => self.announce_wall,
            };
            announces.spawn(async move {
                let result = executor.announce(job.info_hash, &job.announce, totals, wall).await;
                (job, result, clock::now() - now)
            });
        }
        let counters = &self.shared.counters;
        let gauge = |cell: &AtomicU64, value: usize| cell.store(value as u64, Relaxed);
        gauge(&counters.in_flight, scheduler.in_flight_count());
        gauge(&counters.queued, scheduler.ready_count());
        gauge(&counters.torrents, scheduler.torrent_count());
        (scheduler.poll_timeout(), scheduler.is_ended())
    }

    fn count(&self, job: &Job, result: &Result<Reply, Failure>, took: Duration) {
        let url = &job.announce.url;
        let label = result.as_ref().map_or_else(Failure::result, |_| AnnounceResult::Ok);
        if let Some(count) = self.shared.counters.announces.get(label.index()) {
            count.fetch_add(1, Relaxed);
        }
        self.tracker_announces.count(url.host(), label);
        let has_answered =
            matches!(label, AnnounceResult::Ok | AnnounceResult::Failure | AnnounceResult::Http);
        if has_answered {
            let protocol = match url.protocol() {
                Protocol::Http => AnnounceProtocol::Http,
                Protocol::Https => AnnounceProtocol::Https,
                Protocol::Udp => AnnounceProtocol::Udp,
            };
            self.cells.announce_seconds[protocol].observe(took);
        }
    }

    fn handle_ended(&self, job: &Job, result: Result<Reply, Failure>) {
        let counters = &self.shared.counters;
        let is_wanted = {
            let mut scheduler = self.shared.scheduler();
            scheduler.handle_reply(clock::now(), job, &result).is_some()
        };
        self.tell_failure(job, &result);
        let Ok(reply) = result else { return };
        counters.peers_refused.fetch_add(u64::from(reply.dropped_count), Relaxed);
        self.tell_refused(&job.info_hash, &reply);
        if !is_wanted || (reply.peers.is_empty() && reply.external_ip.is_none()) {
            return;
        }
        let peer_count = reply.peers.len() as u64;
        let Reply { peers, external_ip, .. } = reply;
        let found = Found { info_hash: job.info_hash, peers, external_ip };
        let cell = match self.found.try_send(found) {
            Ok(()) => &counters.peers_found,
            Err(_) => &counters.peers_dropped,
        };
        cell.fetch_add(peer_count, Relaxed);
    }

    /// Says when announces begin to fail, and when they go through again: once for a host that
    /// fails, for all its torrents, and once for each torrent that a tracker refuses.
    fn tell_failure(&self, job: &Job, result: &Result<Reply, Failure>) {
        let (torrent, tracker) = (&job.info_hash, &job.announce.url);
        let of_host = (tracker.host().to_string(), None);
        let of_torrent = (tracker.host().to_string(), Some(*torrent));
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => {
                let (host, own) = (failing.remove(&of_host), failing.remove(&of_torrent));
                if host || own {
                    tracing::info!(%torrent, %tracker, "a tracker answers again");
                }
            }
            Err(failure) => {
                let key = if failure.is_of_host() { of_host } else { of_torrent };
                if failing.len() < FAILING_MAX && failing.insert(key) {
                    tracing::warn!(%torrent, %tracker, %failure, "an announce failed");
                }
            }
        }
    }

    /// Says once for each torrent that its trackers name peers that may not be connected to.
    fn tell_refused(&self, info_hash: &InfoHash, reply: &Reply) {
        let Some((ip, reason)) = reply.refused else { return };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < TOLD_MAX && told.insert(*info_hash) {
            tracing::info!(torrent = %info_hash, %ip, %reason, "a tracker names peers that are refused");
        }
    }
}
