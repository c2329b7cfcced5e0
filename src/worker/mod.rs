//! One core: the only place where events meet state machines.
//!
//! Completions of the ring, letters from other threads and due timers enter; operations, letters
//! and reports leave. A turn takes what has completed, feeds it to the state machines, then looks
//! once at every torrent and connection that was touched, then sleeps in the ring until there is
//! more. Invariant: nothing here blocks but the ring's wait; a turn's work is bounded by what the
//! ring may deliver in one go and by the named limits below.

mod accept;
mod admission;
pub mod blocking;
mod care;
mod closing;
mod connection;
mod counting;
pub mod datagrams;
mod departed;
mod exchange;
mod fetch;
mod hash;
mod health;
mod in_place;
pub mod keys;
mod magnet;
pub mod mailbox;
mod options;
mod read_back;
mod removal;
mod selection;
mod serve;
mod subject;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod timers;
mod torrent;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use self::admission::{Admission, Pause};
use self::closing::Remains;
use self::connection::Conn;
use self::counting::major_faults;
use self::datagrams::Datagrams;
use self::departed::LastSends;
use self::fetch::{PieceWrite, WriteOp};
use self::hash::{ToBlame, ToHash};
use self::in_place::InPlace;
use self::magnet::Magnets;
use self::mailbox::{Letter, Report, Shared};
pub use self::options::{Options, SEALED_BYTES_MAX};
use self::removal::Removals;
use self::serve::ChunkRead;
use self::table::{Key, Table};
use self::target::Target;
use self::timers::Wheel;
use self::torrent::Torrent;
use crate::metrics::{Core, DisconnectReason, HandshakeResult};
use crate::ring::{Driver, Event, Handle, Lender, Op};
use crate::storage::chunks::Chunks;
use crate::storage::pieces::{OpenPiece, Spares};
use crate::storage::residency::Residency;
use crate::swarm;
use crate::swarm::choker::Slots;
use crate::sys::clock;
use crate::sys::sha1::Engine;
use crate::units::{InfoHash, PieceIndex, to_usize};
use crate::wire;

/// Letters taken per turn; the rest waits for the next one.
const LETTERS_PER_TURN: usize = 64;

/// Of the memory for pieces, one part in so many may be kept for the next ones.
const SPARE_SHARE: u64 = 4;

/// A turn that takes longer keeps every peer of the core waiting, and is counted.
const STALL: Duration = Duration::from_millis(1);

/// How often gauges and processor times are brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long a stopping worker waits for its writes and flushes.
const STOP_TIMEOUT: Duration = Duration::from_secs(7);

/// One core's worker.
pub struct Worker<D: Driver> {
    driver: D,
    options: Options,
    shared: Shared,
    letters: Receiver<Letter>,
    /// There may be more letters than the last turn took; nobody wakes us for those again.
    letters_wait: bool,
    core: Arc<Core>,
    now: Instant,
    events: VecDeque<Event>,
    listeners: Vec<Handle>,
    /// A descriptor to give up when there is none left, so that whoever waits can be told.
    reserve: Option<OwnedFd>,
    /// How long accepting pauses when it fails next.
    pause: Pause,
    admission: Admission,
    conns: Table<Conn>,
    last_sends: LastSends,
    /// Connections that are not peers yet, and those of them that we began.
    handshake_count: usize,
    outgoing_count: usize,
    torrents: Table<Torrent>,
    by_hash: HashMap<InfoHash, Key>,
    magnets: Magnets,
    /// Torrents with peers, or whose rates have not faded yet: the others cost nothing.
    active: Vec<Key>,
    timers: Wheel<Timer>,
    /// Before this no idle peers are looked for, to make room for others.
    next_turnover: Instant,
    /// Torrents and connections to look at before the turn ends.
    dirty_torrents: Vec<Key>,
    dirty_conns: Vec<Key>,
    /// Connections whose receive found no buffer, and those that found no memory for a cold read.
    unbuffered: Vec<Key>,
    starved: VecDeque<Key>,
    /// Torrents with connections that are not received from until more of them is on the disk.
    backlogged: Vec<Key>,
    residency: Residency,
    chunks: Chunks,
    /// Copies on their way to encrypted peers.
    seals: Lender,
    reads: Table<ChunkRead>,
    writes: Table<WriteOp>,
    piece_writes: Table<PieceWrite>,
    datagrams: Datagrams,
    /// Pieces whose blocks are all here and whose digest is not known yet; whether the digests of
    /// their blocks are wanted too.
    to_hash: VecDeque<ToHash>,
    /// Pieces that are judged as soon as the digests of their blocks are known.
    to_blame: VecDeque<ToBlame>,
    /// Pieces of which something can be hashed; some more than once.
    fresh: VecDeque<(Key, PieceIndex)>,
    /// Pieces for which there was no memory.
    in_place: InPlace,
    removals: Removals,
    remains: Remains,
    engine: Engine,
    syncs_in_flight: usize,
    spares: Spares,
    budget: Rc<swarm::Shared>,
    reports: VecDeque<Report>,
    stopping: Option<Instant>,
    faults_before: u64,
    scratch: Scratch,
}

/// Vectors that are used again every turn.
#[derive(Default)]
struct Scratch {
    control: Vec<u8>,
    blocks: Vec<crate::units::Block>,
    due: Vec<Timer>,
    dirty: Vec<Key>,
    hash_group: Vec<(Key, PieceIndex)>,
    hash_lent: Vec<OpenPiece>,
}

/// What a timer of the wheel is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// When the swarm of a torrent asked to be woken.
    Torrent(Key),
    /// The same of one without metadata.
    Magnet(Key),
    /// When a torrent without peers may close its files, and when open ones are looked after.
    Files(Key),
    /// When a handshake has to be whole.
    Handshake(Key),
    /// When a message that had begun must have got further.
    Progress(Key, wire::Progress),
    /// When a peer must have taken something of what is being sent.
    Stall(Key),
    /// When to have the files of a finished torrent looked at, after no thread was free for it.
    Confirm(Key),
    /// When to listen again after the system had no descriptor to give.
    Listen(usize),
    /// When to receive datagrams again after an error.
    Datagrams(usize),
    /// When to do the housekeeping.
    Housekeeping,
}

impl<D: Driver> Worker<D> {
    /// A worker that accepts on `listeners`. It has to be made on the thread that runs it.
    pub fn new(
        driver: D,
        options: Options,
        shared: Shared,
        letters: Receiver<Letter>,
        listeners: Vec<Handle>,
        core: Arc<Core>,
    ) -> Self {
        let now = clock::now();
        let budget = swarm::Shared::new(None, None, Slots::Unlimited);
        budget.piece_bytes_max.set(options.piece_bytes_max);
        Self {
            chunks: Chunks::new(options.read_bytes_max),
            seals: Lender::default(),
            spares: Spares::new(to_usize(options.piece_bytes_max / SPARE_SHARE)),
            driver,
            shared,
            letters,
            letters_wait: false,
            core,
            now,
            events: VecDeque::new(),
            reserve: listeners.first().and_then(|it| it.try_clone().ok()),
            listeners,
            pause: Pause::default(),
            admission: Admission::default(),
            conns: Table::default(),
            last_sends: LastSends::default(),
            handshake_count: 0,
            outgoing_count: 0,
            torrents: Table::default(),
            by_hash: HashMap::new(),
            magnets: Magnets::default(),
            active: Vec::new(),
            next_turnover: now,
            timers: Wheel::new(now),
            dirty_torrents: Vec::new(),
            dirty_conns: Vec::new(),
            unbuffered: Vec::new(),
            starved: VecDeque::new(),
            backlogged: Vec::new(),
            residency: Residency::default(),
            reads: Table::default(),
            writes: Table::default(),
            piece_writes: Table::default(),
            datagrams: Datagrams::default(),
            to_hash: VecDeque::new(),
            to_blame: VecDeque::new(),
            fresh: VecDeque::new(),
            in_place: InPlace::default(),
            removals: Removals::default(),
            remains: Remains::new(),
            engine: Engine::best(),
            syncs_in_flight: 0,
            options,
            budget,
            reports: VecDeque::new(),
            stopping: None,
            faults_before: major_faults(),
            scratch: Scratch::default(),
        }
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// Only a ring that fails as a whole; the process cannot go on then.
    pub fn run(mut self) -> io::Result<()> {
        for index in 0..self.listeners.len() {
            self.listen(index);
        }
        self.receive_all_datagrams();
        self.timers.set(self.now + HOUSEKEEPING, Timer::Housekeeping);
        loop {
            let timeout = self.timeout();
            let asleep = clock::now();
            self.driver.wait(timeout, &mut self.events)?;
            self.now = clock::now();
            self.core.core_idle_seconds.add(self.now - asleep);
            let begun = self.now;
            self.turn();
            let busy = clock::now() - begun;
            self.core.core_busy_seconds.add(busy);
            self.core.core_loops.add(1);
            if busy > STALL {
                self.core.core_stall_seconds.observe(busy);
            }
            if self.has_stopped() {
                break;
            }
        }
        self.count_ring();
        self.count_swarms();
        self.count_datagrams();
        for key in self.torrents.keys() {
            if let Some(torrent) = self.torrents.get_mut(key) {
                torrent.publish(self.now);
            }
        }
        // The control thread may be busy; it must hear of this one, and nothing else runs here.
        let _ = self.shared.reports.blocking_send(Report::Stopped(self.options.number));
        Ok(())
    }

    /// One turn: events, letters, timers, hashing; then everything that was touched.
    fn turn(&mut self) {
        while let Some(event) = self.events.pop_front() {
            self.handle_event(event);
        }
        self.letters_wait = true;
        for _ in 0..LETTERS_PER_TURN {
            match self.letters.try_recv() {
                Ok(letter) => self.handle_letter(letter),
                Err(_) => {
                    self.letters_wait = false;
                    break;
                }
            }
        }
        self.send_datagrams();
        let mut due = std::mem::take(&mut self.scratch.due);
        self.timers.turn(self.now, &mut due);
        for timer in due.drain(..) {
            self.handle_timer(timer);
        }
        self.scratch.due = due;
        self.hash_some();
        self.settle();
        self.confirm_removals();
        debug_assert!(self.piece_bytes() <= self.options.piece_bytes_max, "pieces overflow");
        self.send_reports();
    }

    /// How long the ring may wait before there is something to do anyway.
    fn timeout(&self) -> Option<Duration> {
        let more = self.letters_wait
            || self.datagrams.has_more()
            || self.can_fill_lanes()
            || !self.to_blame.is_empty()
            || !self.dirty_conns.is_empty()
            || !self.unbuffered.is_empty();
        if more {
            return Some(Duration::ZERO);
        }
        let next = self.timers.next().map(|at| at.saturating_duration_since(clock::now()));
        if self.to_hash.is_empty() {
            return next;
        }
        let wait = self.hash_wait();
        Some(next.map_or(wait, |next| next.min(wait)))
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Accepted { tag, result, last } => self.on_accepted(tag, result, last),
            Event::Connected { tag, result } => self.on_connected(tag, result),
            Event::Received { tag, result } => self.on_received(tag, result),
            Event::Datagram { tag, result, last } => self.on_datagram(tag, result, last),
            Event::SentTo { tag, result } => self.on_sent_to(tag, result),
            Event::Sent { tag, result, held } => self.on_sent(tag, result, held),
            Event::Released { tag, copied } => self.on_released(tag, copied),
            Event::Read { tag, result, buffer } => match Target::of(tag) {
                Some(Target::Check(key)) => self.on_check_read(key, result, buffer),
                _ => self.on_read(tag, result, buffer),
            },
            Event::Written { tag, result } => match Target::of(tag) {
                Some(Target::WriteBlock(key)) => self.on_block_written(key, result),
                _ => self.on_written(tag, result),
            },
            Event::Synced { tag, result } => self.on_synced(tag, result),
            // The letters are looked at in every turn.
            Event::Woken => {}
        }
    }

    fn handle_letter(&mut self, letter: Letter) {
        match letter {
            Letter::Add(new) => self.add_torrent(*new),
            Letter::AddMagnet(new) => self.add_magnet(*new),
            Letter::Private(info_hash) => self.make_private(&info_hash),
            Letter::Remove(info_hash) => self.remove_torrent(&info_hash),
            Letter::Contacts { info_hash, source, addrs } => {
                self.add_contacts(&info_hash, source, &addrs);
            }
            Letter::Adopt(adopted) => self.adopt(*adopted),
            Letter::Opened { torrent, lane, result } => self.on_opened(torrent, lane, result),
            Letter::Confirmed { torrent, result } => self.on_confirmed(torrent, result),
            Letter::Compared { torrent, result } => self.on_compared(torrent, result),
            Letter::Computed { conn, answer } => self.on_computed(conn, *answer),
            Letter::Budget { slots, up, down } => {
                self.budget.slots.set(slots.map_or(Slots::Unlimited, Slots::Limited));
                self.budget.up.borrow_mut().set_rate(self.now, up);
                self.budget.down.borrow_mut().set_rate(self.now, down);
            }
            Letter::Ban(bans) => self.ban(&bans),
            Letter::Blocklist(list) => self.block(list),
            Letter::OwnAddrs(addrs) => self.budget.set_own_addrs(&addrs),
            Letter::Select(info_hash, content) => self.select(&info_hash, content),
            Letter::Stop => self.begin_stop(),
        }
    }

    fn handle_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Torrent(key) => self.on_torrent_timer(key),
            Timer::Magnet(key) => self.on_magnet_timer(key),
            Timer::Files(key) => self.on_files_timer(key),
            Timer::Handshake(key) => {
                let waits = self.conns.get(key).map(|conn| !conn.phase.is_peer());
                if waits == Some(true) {
                    self.give_up(key, HandshakeResult::Timeout);
                }
            }
            Timer::Progress(key, before) => self.on_progress_timer(key, &before),
            Timer::Stall(key) => self.on_stall_timer(key),
            Timer::Confirm(key) => self.confirm(key),
            Timer::Listen(index) => self.listen(index),
            Timer::Datagrams(index) => self.receive_datagrams(index),
            Timer::Housekeeping => self.housekeep(),
        }
    }

    /// Looks at what the turn has touched: actions of swarms, then sends, once each.
    fn settle(&mut self) {
        self.act_all();
        // A connection may become dirty again below; that waits for the next turn.
        let mut dirty =
            std::mem::replace(&mut self.dirty_conns, std::mem::take(&mut self.scratch.dirty));
        for key in dirty.drain(..) {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.is_dirty = false;
                self.send_to(key);
            }
        }
        self.scratch.dirty = dirty;
        for key in std::mem::take(&mut self.unbuffered) {
            self.receive(key);
        }
        self.resume_backlogged();
        self.act_all();
    }

    fn touch_conn(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.is_dirty
        {
            conn.is_dirty = true;
            self.dirty_conns.push(key);
        }
    }

    fn touch_torrent(&mut self, key: Key) {
        if let Some(torrent) = self.torrents.get_mut(key)
            && !std::mem::replace(&mut torrent.is_dirty, true)
        {
            self.dirty_torrents.push(key);
        }
    }

    fn send_reports(&mut self) {
        while let Some(report) = self.reports.pop_front() {
            if let Err(error) = self.shared.reports.try_send(report) {
                use tokio::sync::mpsc::error::TrySendError::{Closed, Full};
                match error {
                    // The control thread is slow: the next turn tries again.
                    Full(report) => self.reports.push_front(report),
                    Closed(_) => self.begin_stop(),
                }
                return;
            }
        }
    }

    /// Stops accepting and talking; what is verified is still written and synced.
    fn begin_stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(self.now + STOP_TIMEOUT);
        for index in 0..self.listeners.len() {
            self.driver.cancel(Target::Listener(index).tag());
        }
        for key in self.conns.keys() {
            self.close(key, DisconnectReason::Shutdown);
        }
    }

    fn has_stopped(&mut self) -> bool {
        let Some(deadline) = self.stopping else { return false };
        let hashes = !self.to_hash.is_empty() || !self.to_blame.is_empty();
        let writes = hashes || !self.piece_writes.is_empty() || !self.in_place.is_idle();
        if !writes && self.syncs_in_flight == 0 {
            // Whatever the last writes were, and however they ended: nothing stays unflushed.
            for key in self.torrents.keys() {
                self.sync_torrent(key);
            }
        }
        let idle = !writes && self.syncs_in_flight == 0 && self.reports.is_empty();
        let idle = idle && self.datagrams.is_done();
        idle || self.now >= deadline
    }

    fn operate(&mut self, target: Target, op: Op) {
        self.driver.push(target.tag(), op);
    }
}
