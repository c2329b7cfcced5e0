//! The workers of one server, without the rest of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use tempfile::TempDir;
use tokio::sync::mpsc;

use super::watch::{Seen, Watch};
use super::{Ring, Torrent, WAIT_MAX, wait_for};
use crate::metrics::{AcceptResult, Core, Direction, DisconnectReason, HandshakeResult};
use crate::mse;
use crate::ring::{self, Faulty, Uring};
use crate::storage::Mode;
use crate::swarm::{self, Offender, Source};
use crate::sys::net;
use crate::units::{Bitfield, PeerId};
use crate::worker::blocking::{Blocking, Lane};
use crate::worker::datagrams::WorkerEnd;
use crate::worker::keys::Keys;
use crate::worker::mailbox::{
    self, Directory, Letter, Mailbox, MetadataProgress, NewMagnet, NewTorrent, Report, Shared,
    Totals,
};
use crate::worker::{Options, SEALED_BYTES_MAX, Worker};

/// One worker as others see it.
pub(super) struct Member {
    pub(super) addr: SocketAddr,
    pub(super) core: Arc<Core>,
    pub(super) seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

/// Workers that share a directory; each listens on a port of its own.
pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    pub(super) save_path: TempDir,
    /// Bans that were reported.
    pub(super) bans: Vec<(Offender, Instant)>,
    shared: Shared,
    reports: mpsc::Receiver<Report>,
    runtime: tokio::runtime::Runtime,
}

/// Options of a worker with room for everything in these tests.
pub(super) fn options() -> Options {
    Options {
        number: 0,
        connections_max: 100,
        read_bytes_max: 8 << 20,
        sealed_bytes_max: SEALED_BYTES_MAX,
        piece_bytes_max: 16 << 20,
        mode: Mode::Auto,
        zero_copy: true,
        encryption: mse::Policy::default(),
        bind: None,
    }
}

/// What workers share that nobody has posted a letter to yet, and where their reports come out.
fn new_shared(name: u8) -> (Shared, mpsc::Receiver<Report>) {
    let (reports_in, reports) = mpsc::channel(64);
    let shared = Shared {
        peer_id: PeerId([name; 20]),
        directory: Arc::new(Directory::default()),
        mailboxes: Arc::new(OnceLock::new()),
        reports: reports_in,
        blocking: Blocking::start("files", 1).unwrap(),
        keys: Keys::start().unwrap(),
    };
    (shared, reports)
}

/// A worker that nobody runs and that listens nowhere, to be called by hand, and its cells.
pub(super) fn idle_worker() -> (Worker<Uring>, Arc<Core>) {
    idle_worker_on(|driver| driver)
}

/// The same on a driver that is made of the kernel's.
pub(super) fn idle_worker_on<D: ring::Driver>(
    wrap: impl FnOnce(Uring) -> D,
) -> (Worker<D>, Arc<Core>) {
    let core = Arc::<Core>::default();
    let driver = Uring::new(&ring::Config::default()).unwrap_or_else(|reason| panic!("{reason}"));
    let (_, letters) = mailbox::letters();
    let (shared, _) = new_shared(1);
    let worker =
        Worker::new(wrap(driver), options(), shared, letters, Vec::new(), Arc::clone(&core));
    (worker, core)
}

impl Fleet {
    /// Starts `count` workers, named by `name` towards peers.
    pub(super) fn start(name: u8, count: usize, ring: Ring, options: &Options) -> Self {
        Self::start_with(name, count, ring, options, |_| None)
    }

    /// The same; the first one is the home of the UDP sockets of the end that is made.
    pub(super) fn start_with(
        name: u8,
        count: usize,
        ring: Ring,
        options: &Options,
        make_end: impl FnOnce(&Arc<OnceLock<Vec<Mailbox>>>) -> Option<WorkerEnd>,
    ) -> Self {
        let (shared, reports) = new_shared(name);
        let mut end = make_end(&shared.mailboxes);
        let mut mailboxes = Vec::new();
        let mut members = Vec::new();
        for number in 0..count {
            let options = Options { number, ..options.clone() };
            let (member, mailbox) = start_worker(&shared, ring, options, end.take());
            members.push(member);
            mailboxes.push(mailbox);
        }
        shared.mailboxes.set(mailboxes).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (save_path, bans) = (TempDir::new().unwrap(), Vec::new());
        Self { members, save_path, bans, shared, reports, runtime }
    }

    /// Posts a letter to a worker.
    pub(super) fn post(&self, worker: usize, letter: Letter) {
        let mailbox = &self.shared.mailboxes.get().unwrap()[worker];
        assert!(mailbox.send(letter).is_ok(), "the letter was not taken");
    }

    /// Gives a worker a torrent that is complete where it was made.
    pub(super) fn seed(&self, worker: usize, torrent: &Torrent) -> Arc<Totals> {
        let have = Bitfield::all(torrent.geometry.piece_count());
        self.add(worker, torrent, torrent.path(), have)
    }

    /// Gives a worker a torrent to be fetched from nothing.
    pub(super) fn fetch(&self, worker: usize, torrent: &Torrent) -> Arc<Totals> {
        let have = Bitfield::none(torrent.geometry.piece_count());
        self.add(worker, torrent, self.save_path.path(), have)
    }

    /// Gives a worker a torrent of which `have` is said to lie at `path`.
    pub(super) fn add(
        &self,
        worker: usize,
        torrent: &Torrent,
        path: &Path,
        have: Bitfield,
    ) -> Arc<Totals> {
        self.add_with(worker, torrent, path, have, swarm::Options::default())
    }

    /// The same with other options for its swarm.
    pub(super) fn add_with(
        &self,
        worker: usize,
        torrent: &Torrent,
        path: &Path,
        have: Bitfield,
        options: swarm::Options,
    ) -> Arc<Totals> {
        let totals = Arc::new(Totals::new(torrent.geometry.total_len()));
        let options = swarm::Options {
            info_hash: torrent.info_hash,
            peer_id: self.shared.peer_id,
            seed: 7,
            ..options
        };
        let new = NewTorrent {
            info_hash: torrent.info_hash,
            content: torrent.content(path),
            in_files: have.clone(),
            have,
            known: Vec::new(),
            options,
            totals: Arc::clone(&totals),
        };
        self.shared.directory.insert(torrent.info_hash, worker);
        self.post(worker, Letter::Add(Box::new(new)));
        totals
    }

    /// Gives a worker a torrent of which it is told no more than the info-hash.
    pub(super) fn seek(&self, worker: usize, torrent: &Torrent) -> Arc<MetadataProgress> {
        let options = swarm::Options {
            info_hash: torrent.info_hash,
            peer_id: self.shared.peer_id,
            seed: 7,
            ..swarm::Options::default()
        };
        let progress = Arc::<MetadataProgress>::default();
        let new = NewMagnet { options, progress: Arc::clone(&progress) };
        self.shared.directory.insert(torrent.info_hash, worker);
        self.post(worker, Letter::AddMagnet(Box::new(new)));
        progress
    }

    /// Tells a worker where peers of a torrent are.
    pub(super) fn introduce(&self, worker: usize, torrent: &Torrent, addrs: &[SocketAddr]) {
        let (info_hash, addrs) = (torrent.info_hash, addrs.to_vec());
        self.post(worker, Letter::Contacts { info_hash, source: Source::Operator, addrs });
    }

    /// The next report; bans are put aside.
    pub(super) fn report(&mut self) -> Report {
        loop {
            let (runtime, reports) = (&self.runtime, &mut self.reports);
            let report =
                runtime.block_on(async { tokio::time::timeout(WAIT_MAX, reports.recv()).await });
            match report.expect("no report came").expect("the workers hold the other end") {
                Report::Banned(offender, until) => self.bans.push((offender, until)),
                report => return report,
            }
        }
    }

    /// The next report, if one is there already; bans are put aside.
    pub(super) fn report_now(&mut self) -> Option<Report> {
        loop {
            match self.reports.try_recv().ok()? {
                Report::Banned(offender, until) => self.bans.push((offender, until)),
                report => return Some(report),
            }
        }
    }

    /// Waits for the word that a torrent is gone.
    pub(super) fn expect_removed(&mut self, torrent: &Torrent) {
        let report = self.report();
        assert!(matches!(report, Report::Removed(it) if it == torrent.info_hash), "{report:?}");
    }

    /// Waits until a worker has no connection and nothing but its accept in flight.
    pub(super) fn wait_until_idle(&self) {
        for (number, member) in self.members.iter().enumerate() {
            let is_idle =
                || member.core.connections.get() == 0 && member.seen.in_flight.load(Relaxed) == 1;
            wait_for(&format!("worker {number} to be idle: {:?}", member.seen), is_idle);
        }
    }

    /// Stops all workers and checks what they leave behind; returns the reports that came
    /// meanwhile.
    pub(super) fn stop(mut self) -> Vec<Report> {
        for worker in 0..self.members.len() {
            self.post(worker, Letter::Stop);
        }
        let reports = self.join();
        for member in &self.members {
            let unflushed = member.seen.unflushed.load(Relaxed);
            assert_eq!(unflushed, 0, "files were written to and not flushed");
        }
        reports
    }

    /// Stops like [`Fleet::stop`] and moves the files to `path`, to be looked at.
    pub(super) fn stop_into(mut self, path: &Path) {
        let save_path = std::mem::replace(&mut self.save_path, TempDir::new().unwrap()).keep();
        self.stop();
        std::fs::rename(save_path, path).unwrap();
    }

    /// Keeps the thread for files busy until the other end is gone.
    pub(super) fn block_files(&self, until: std::sync::mpsc::Receiver<()>) {
        // The end is that the other end is gone.
        let job = Box::new(move || assert!(until.recv().is_err()));
        assert!(self.shared.blocking.run(Lane::Device(0), job).is_ok());
    }

    /// The same where disks fail: what a torrent in error has written is nobody's.
    pub(super) fn stop_amid_faults(mut self) {
        for worker in 0..self.members.len() {
            self.post(worker, Letter::Stop);
        }
        self.join();
    }

    fn join(&mut self) -> Vec<Report> {
        let (mut reports, mut stopped) = (Vec::new(), 0);
        while stopped < self.members.len() {
            match self.report() {
                Report::Stopped(_) => stopped += 1,
                Report::Died(number, reason) => panic!("worker {number} died: {reason}"),
                report => reports.push(report),
            }
        }
        for member in &mut self.members {
            member.thread.take().unwrap().join().expect("a worker ends in peace");
            assert_connections_balance(&member.core);
        }
        reports
    }
}

/// Every connection had one result of its handshake, and every peer was disconnected once.
fn assert_connections_balance(core: &Core) {
    use crate::metrics::HandoverResult::{Adopted, Dropped, Sent};
    let count = |direction, result| core.handshakes[(direction, result)].get();
    let incoming: u64 =
        HandshakeResult::ALL.iter().map(|&result| count(Direction::Incoming, result)).sum();
    let handovers = |result| core.handovers[result].get();
    let accepted = core.accepts[AcceptResult::Ok].get() + handovers(Adopted) - handovers(Sent);
    assert_eq!(handovers(Dropped), 0);
    assert_eq!(accepted, incoming, "connections that came, and results of their handshakes");
    let peers: u64 =
        Direction::ALL.iter().map(|&direction| count(direction, HandshakeResult::Ok)).sum();
    let gone: u64 = DisconnectReason::ALL.iter().map(|&it| core.disconnects[it].get()).sum();
    assert_eq!(peers, gone, "peers that came, and went");
}

/// A worker, as the home of sockets if it is given any.
fn new_worker<D: ring::Driver>(worker: Worker<D>, end: Option<WorkerEnd>) -> Worker<D> {
    match end {
        Some(end) => worker.with_datagrams(end),
        None => worker,
    }
}

fn start_worker(
    shared: &Shared,
    ring: Ring,
    options: Options,
    end: Option<WorkerEnd>,
) -> (Member, Mailbox) {
    let (shared, core, seen) = (shared.clone(), Arc::<Core>::default(), Arc::<Seen>::default());
    let listener = net::listen(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = net::local_addr(listener.as_fd()).unwrap();
    let (letters_in, letters) = mailbox::letters();
    let (ready, waker) = std::sync::mpsc::sync_channel(1);
    let (cells, watched) = (Arc::clone(&core), Arc::clone(&seen));
    let run = move || {
        let (number, reports) = (options.number, shared.reports.clone());
        let config = ring::Config {
            small_buffers: ring::Buffers { count: 64, len: 4 << 10 },
            large_buffers: ring::Buffers { count: 8, len: 256 << 10 },
            ..ring::Config::default()
        };
        let driver = Uring::new(&config).unwrap_or_else(|reason| panic!("{reason}"));
        ready.send(ring::Driver::waker(&driver)).unwrap();
        let listeners = vec![Rc::new(listener)];
        let work = std::panic::AssertUnwindSafe(|| match ring {
            Ring::Plain => {
                let driver = Watch::new(driver, watched);
                let worker = Worker::new(driver, options, shared, letters, listeners, cells);
                new_worker(worker, end).run()
            }
            Ring::Faulty(faults, seed) => {
                let seed = seed << 8 | number as u64;
                let driver = Watch::new(Faulty::new(driver, faults, seed), watched);
                let worker = Worker::new(driver, options, shared, letters, listeners, cells);
                new_worker(worker, end).run()
            }
        });
        match std::panic::catch_unwind(work) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                reports.blocking_send(Report::Died(number, error.to_string())).unwrap()
            }
            Err(_) => reports.blocking_send(Report::Died(number, "a panic".into())).unwrap(),
        }
    };
    let thread = std::thread::Builder::new().name("worker".into()).spawn(run).unwrap();
    let mailbox = Mailbox::new(letters_in, waker.recv().unwrap());
    (Member { addr, core, seen, thread: Some(thread) }, mailbox)
}
