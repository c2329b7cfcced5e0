//! One torrent on its home worker: its swarm, its open files, its totals.
//!
//! Letters and timers enter; the swarm's actions are carried out, files are opened at first use
//! and closed when nobody needs them. Invariant: a torrent in error talks to nobody, and what
//! stops one torrent touches no other.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::blocking::Lane;
use super::connection::Subject;
use super::fetch::why_closed;
use super::hash::ToHash;
use super::mailbox::{Letter, NewTorrent, Report, TorrentState, Totals};
use super::table::Key;
use super::{Target, Timer, Worker};
use crate::metrics::{DisconnectReason, DiskOp};
use crate::ring::{Driver, Handle, Lease, Op, Tag};
use crate::storage::chunks::ChunkKey;
use crate::storage::files::{self, Opened};
use crate::storage::pieces::OpenPieces;
use crate::storage::{Content, Error};
use crate::swarm::{Action, PeerKey, Source, Stats, Swarm};
use crate::sys::file::Identity;
use crate::units::{Geometry, InfoHash};

/// How long a torrent without peers keeps its files open, and how often the files of one with
/// peers are looked after: half of the minute within which a loss has to be seen.
const FILES_INTERVAL: Duration = Duration::from_secs(25);

/// When to ask again for files that no thread was free to open.
pub(super) const FILES_RETRY: Duration = Duration::from_secs(1);

/// Refused addresses that are said for one torrent; the log is not theirs to fill.
const REFUSALS_TOLD_MAX: usize = 8;

/// One torrent.
pub(super) struct Torrent {
    pub(super) info_hash: InfoHash,
    pub(super) content: Arc<Content>,
    pub(super) swarm: Swarm,
    pub(super) store: Store,
    pub(super) pieces: OpenPieces,
    pub(super) totals: Arc<Totals>,
    /// The connection of each peer, by the swarm's slot.
    conns: Vec<Option<Key>>,
    peer_count: usize,
    /// When the swarm's timer on the wheel fires.
    timer_at: Option<Instant>,
    files_timer: bool,
    /// Its files are wanted, and no job for them found room.
    was_refused_files: bool,
    last_peer: Instant,
    /// Whether missing pieces are fetched.
    pub(super) fetches: bool,
    /// Bytes of pieces that are not on disk yet.
    pub(super) left: u64,
    /// Bytes of whole pieces that are on their way there.
    pub(super) writing: Rc<Cell<u64>>,
    /// Connections that are not received from because of those.
    pub(super) paused: Vec<Key>,
    /// Pieces were written since the last flush.
    pub(super) unsynced: bool,
    syncs_pending: usize,
    pub(super) finished: bool,
    /// Whether its files were looked at since it was finished, and whether that is under way.
    pub(super) is_confirmed: bool,
    pub(super) is_confirming: bool,
    /// Since when its files are being compared with those that are open.
    comparing_since: Option<Instant>,
    /// Whether the control thread knows that it is finished.
    pub(super) is_reported: bool,
    /// Pieces that could not be read.
    pub(super) read_error_count: u32,
    /// Bytes sent and received before it was here, when it was added for the first time.
    counted_before: (u64, u64),
    /// Whether it is on the worker's list of active torrents, and of those to look at.
    is_active: bool,
    pub(super) is_dirty: bool,
    /// The files as they were when they were last known to be right; empty if that is unknown.
    pub(super) known: Vec<Option<Identity>>,
    /// Addresses of which was said that they are refused.
    refusals_told: Vec<IpAddr>,
}

/// The files of a torrent as its worker holds them.
#[derive(Debug)]
pub(super) enum Store {
    Closed,
    Opening,
    Open(OpenFiles),
    Failed,
}

/// Open files, in the order of the layout.
#[derive(Debug)]
pub(super) struct OpenFiles {
    pub(super) files: Vec<Option<ServedFile>>,
    /// Whether pieces can be written to them.
    pub(super) is_writable: bool,
    pub(super) mapped_bytes: u64,
}

impl OpenFiles {
    /// Who the files were when they were opened, or last known to be right.
    pub(super) fn identities(&self) -> Vec<Option<Identity>> {
        self.files.iter().map(|file| file.as_ref().map(|file| file.identity)).collect()
    }
}

/// One open file.
#[derive(Debug)]
pub(super) struct ServedFile {
    pub(super) handle: Handle,
    pub(super) lease: Option<Lease>,
    pub(super) identity: Identity,
}

impl Torrent {
    /// With whom it waits for its disk.
    pub(super) fn lane(&self) -> Lane {
        let save_path = &self.content.save_path;
        match &self.store {
            Store::Open(open) => Lane::of(&open.identities(), save_path),
            _ => Lane::of(&self.known, save_path),
        }
    }

    /// Whether its totals still change, now that they are as in `stats`; notes it if not.
    pub(super) fn stays_active(&mut self, stats: &Stats) -> bool {
        self.is_active = self.peer_count > 0
            || self.pieces.bytes() > 0
            || stats.up_rate > 0
            || stats.down_rate > 0;
        self.is_active
    }

    /// Whether its files have failed it.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.store, Store::Failed)
    }

    /// Whether pieces are missing and can be taken.
    pub(super) fn is_fetching(&self) -> bool {
        !self.finished && !self.has_failed()
    }

    /// The geometry of its pieces.
    pub(super) fn geometry(&self) -> Geometry {
        self.content.metainfo.geometry
    }

    /// Where a file of its layout lies.
    pub(super) fn path_of(&self, file: usize) -> PathBuf {
        let entry = self.content.metainfo.layout.file(file);
        let save_path = &self.content.save_path;
        entry.map_or_else(|| save_path.clone(), |entry| save_path.join(entry.path()))
    }

    /// The connection of a peer.
    pub(super) fn conn_of(&self, peer: PeerKey) -> Option<Key> {
        self.conns.get(peer.0 as usize).copied().flatten()
    }

    /// Notes the connection of a new peer; true if that makes the torrent an active one.
    pub(super) fn enter(&mut self, peer: PeerKey, conn: Key, now: Instant) -> bool {
        let slot = peer.0 as usize;
        if self.conns.len() <= slot {
            self.conns.resize(slot + 1, None);
        }
        self.conns[slot] = Some(conn);
        self.peer_count += 1;
        self.last_peer = now;
        !std::mem::replace(&mut self.is_active, true)
    }

    /// Forgets the connection of a peer.
    pub(super) fn leave(&mut self, peer: PeerKey, now: Instant) {
        if self.conns.get_mut(peer.0 as usize).and_then(Option::take).is_some() {
            self.peer_count -= 1;
            self.last_peer = now;
        }
    }

    /// Notes that an address is refused; true if the operator should hear of it: once.
    pub(super) fn is_refusal_news(&mut self, ip: IpAddr) -> bool {
        let told = &mut self.refusals_told;
        let is_news = told.len() < REFUSALS_TOLD_MAX && !told.contains(&ip);
        if is_news {
            told.push(ip);
        }
        is_news
    }

    /// Writes the totals that others read.
    pub(super) fn publish(&mut self, now: Instant) -> Stats {
        let (stats, sums) = (self.swarm.stats(now), self.swarm.totals());
        let (uploaded, downloaded) = self.counted_before;
        self.totals.uploaded.store(uploaded + sums.uploaded, Relaxed);
        self.totals.downloaded.store(downloaded + sums.downloaded, Relaxed);
        self.totals.left.store(self.left, Relaxed);
        self.totals.peers.store(u64::from(stats.peers), Relaxed);
        self.totals.up_rate.store(stats.up_rate, Relaxed);
        self.totals.down_rate.store(stats.down_rate, Relaxed);
        stats
    }
}

impl<D: Driver> Worker<D> {
    pub(super) fn add_torrent(&mut self, new: NewTorrent) {
        let NewTorrent { info_hash, content, have, known, mut options, totals } = new;
        if self.by_hash.contains_key(&info_hash) || self.stopping.is_some() {
            return;
        }
        let geometry = content.metainfo.geometry;
        let piece_len = u64::from(geometry.piece_len_nominal()).max(1);
        let pieces_max = (self.options.piece_bytes_max / piece_len).max(2);
        options.partial_pieces_max = usize::try_from(pieces_max).unwrap_or(usize::MAX);
        let finished = have.is_complete();
        let left = geometry.total_len()
            - have.iter().map(|piece| u64::from(geometry.piece_len(piece))).sum::<u64>();
        let counted_before = (totals.uploaded.load(Relaxed), totals.downloaded.load(Relaxed));
        totals.set_state(if finished { TorrentState::Seeding } else { TorrentState::Downloading });
        let fetches = options.fetch;
        let (swarm, carried) = match self.take_magnet(&info_hash) {
            Some(magnet) => magnet.into_swarm(self.now, geometry, have, options),
            None => (Swarm::new(geometry, have, options, Rc::clone(&self.budget)), None),
        };
        let mut torrent = Torrent {
            info_hash,
            pieces: OpenPieces::new(geometry),
            content,
            swarm,
            store: Store::Closed,
            totals,
            conns: Vec::new(),
            peer_count: 0,
            timer_at: None,
            files_timer: false,
            was_refused_files: false,
            last_peer: self.now,
            fetches,
            left,
            writing: Rc::default(),
            paused: Vec::new(),
            unsynced: false,
            syncs_pending: 0,
            finished,
            is_confirmed: finished,
            is_confirming: false,
            comparing_since: None,
            is_reported: finished,
            read_error_count: 0,
            counted_before,
            is_active: false,
            is_dirty: false,
            known,
            refusals_told: Vec::new(),
        };
        torrent.publish(self.now);
        let key = self.torrents.insert(torrent);
        self.by_hash.insert(info_hash, key);
        if let Some(carried) = carried {
            self.carry_over(carried, key);
        }
        if !finished {
            // Space is reserved before the first byte is asked for.
            self.need_files(key);
        }
        self.touch_torrent(key);
    }

    pub(super) fn add_contacts(
        &mut self,
        info_hash: &InfoHash,
        source: Source,
        addrs: &[SocketAddr],
    ) {
        let Some(key) = self.torrent_key(info_hash) else {
            return self.add_magnet_contacts(info_hash, source, addrs);
        };
        if let Some(torrent) = self.torrents.get_mut(key)
            && !torrent.has_failed()
        {
            torrent.swarm.handle_contacts(self.now, source, addrs);
            self.touch_torrent(key);
        }
    }

    /// Carries out what the swarm of a torrent has decided, and sets its timer.
    pub(super) fn act(&mut self, key: Key) {
        if let Some(torrent) = self.torrents.get_mut(key) {
            torrent.is_dirty = false;
        }
        loop {
            let Some(torrent) = self.torrents.get_mut(key) else { return };
            let Some(action) = torrent.swarm.poll_action() else { break };
            match action {
                Action::Transmit(peer) => {
                    if let Some(conn) = torrent.conn_of(peer) {
                        self.touch_conn(conn);
                    }
                }
                Action::Close(peer, reason) => {
                    if let Some(conn) = torrent.conn_of(peer) {
                        self.close(conn, why_closed(&reason));
                    }
                }
                Action::Connect(addr) => self.connect(Subject::Torrent(key), addr),
                Action::Verify { piece, digests } => {
                    let entry = ToHash { torrent: key, piece, digests, since: self.now };
                    if torrent.swarm.is_in_place(piece) {
                        self.check_in_place(entry);
                    } else {
                        self.to_hash.push_back(entry);
                    }
                }
                Action::Discard(piece) => {
                    if let Some(data) = torrent.pieces.remove(piece) {
                        self.spares.give(data);
                    }
                    self.to_hash.retain(|it| (it.torrent, it.piece) != (key, piece));
                    self.to_blame.retain(|it| (it.torrent, it.piece) != (key, piece));
                    self.discard_in_place(key, piece);
                }
                Action::Ban(offender, until) => {
                    let name = torrent.content.metainfo.shown_name();
                    tracing::warn!(
                        ?offender, torrent = %torrent.info_hash, %name,
                        "peer banned: it sent bad data"
                    );
                    self.reports.push_back(Report::Banned(offender, until));
                }
                Action::Node(addr) => self.tell_node(addr),
                Action::Finished => self.finish_torrent(key),
            }
        }
        self.set_torrent_timer(key);
    }

    fn set_torrent_timer(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Some(at) = torrent.swarm.poll_timeout() else { return };
        if torrent.timer_at.is_none_or(|set| at < set) {
            torrent.timer_at = Some(at);
            self.timers.set(at, Timer::Torrent(key));
        }
    }

    pub(super) fn on_torrent_timer(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        // A timer that was set again for an earlier time leaves its old place on the wheel.
        if torrent.timer_at.is_some_and(|at| at <= self.now) {
            torrent.timer_at = None;
            torrent.swarm.handle_timeout(self.now);
        }
        self.touch_torrent(key);
    }

    /// Every piece is on disk: flush, look at the files once more, then say so.
    fn finish_torrent(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.finished = true;
        torrent.is_confirmed = false;
        torrent.publish(self.now);
        torrent.unsynced = true;
        self.sync_torrent(key);
    }

    /// Opens the files of a torrent if they are not open.
    pub(super) fn need_files(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if !matches!(torrent.store, Store::Closed) {
            return;
        }
        let (content, fetch) = (Arc::clone(&torrent.content), !torrent.finished);
        let (known, have) = (torrent.known.clone(), torrent.swarm.bitfield().clone());
        let mode = self.options.mode;
        let lane = torrent.lane();
        let closing = lane.clone();
        let (mailboxes, home) = (Arc::clone(&self.shared.mailboxes), self.options.number);
        let job = Box::new(move || {
            let result = files::open(&content, fetch, mode, &known, &have);
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker that takes no letters any more needs no files either.
                let opened = Letter::Opened { torrent: key, lane: closing, result };
                let _ = mailbox.send_waiting(opened);
            }
        });
        torrent.was_refused_files = self.shared.blocking.run(lane, job).is_err();
        let look_in = if torrent.was_refused_files {
            FILES_RETRY
        } else {
            torrent.store = Store::Opening;
            self.removals.begin_open(key);
            FILES_INTERVAL
        };
        if !torrent.files_timer {
            torrent.files_timer = true;
            self.timers.set(self.now + look_in, Timer::Files(key));
        }
    }

    /// The files of a torrent were opened, or not. `lane` is where they are closed if it has no use
    /// for them any more.
    pub(super) fn on_opened(&mut self, key: Key, lane: Lane, result: Result<Opened, Error>) {
        self.removals.end_open(key);
        let torrent = self.torrents.get_mut(key);
        let Some(torrent) = torrent.filter(|it| matches!(it.store, Store::Opening)) else {
            return self.shared.blocking.drop_there(lane, result);
        };
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => {
                let is_space = matches!(error, Error::NoSpace { .. });
                let op = if is_space { DiskOp::Allocate } else { DiskOp::Open };
                self.core.disk_errors[op].add(1);
                return self.fail_torrent(key, error);
            }
        };
        let serve = |file: files::OpenFile| ServedFile {
            handle: Rc::new(file.fd),
            lease: file.mapping.map(|mapping| Lease::Mapped(Rc::new(mapping))),
            identity: file.identity,
        };
        let files = opened.files.into_iter().map(|file| file.map(serve)).collect();
        let (mapped_bytes, is_writable) = (opened.mapped_bytes, opened.is_writable);
        torrent.store = Store::Open(OpenFiles { files, is_writable, mapped_bytes });
        self.core.mapped_bytes.add(opened.mapped_bytes);
        for conn in torrent.conns.clone().into_iter().flatten() {
            self.touch_conn(conn);
        }
        self.write_waiting(key);
        self.write_waiting_blocks(key);
        self.touch_torrent(key);
    }

    /// Looks after the files of a torrent: closes them when nobody needs them, and otherwise has
    /// them compared with what was opened.
    pub(super) fn on_files_timer(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.files_timer = false;
        if !matches!(torrent.store, Store::Open(_)) {
            match torrent.store {
                // Too many waited for its disk when this was asked for first.
                Store::Closed if torrent.was_refused_files => self.need_files(key),
                // They may take their time; afterwards the files are looked after again.
                Store::Opening => {
                    torrent.files_timer = true;
                    self.timers.set(self.now + FILES_INTERVAL, Timer::Files(key));
                }
                _ => {}
            }
            return;
        }
        torrent.files_timer = true;
        self.timers.set(self.now + FILES_INTERVAL, Timer::Files(key));
        if torrent.peer_count == 0 {
            return self.close_idle_files(key);
        }
        self.compare(key);
    }

    /// Has the files by the torrent's names compared with those that are open, if that is not under
    /// way already.
    pub(super) fn compare(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Store::Open(open) = &torrent.store else { return };
        if torrent.comparing_since.is_some() {
            // Its disk takes its time; another look would take longer.
            return;
        }
        // While pieces are written, the times of the files change by our own hand.
        let only_names = !torrent.finished || !torrent.is_confirmed || torrent.unsynced;
        let identities = open.identities();
        let content = Arc::clone(&torrent.content);
        let (mailboxes, home) = (Arc::clone(&self.shared.mailboxes), self.options.number);
        let job = Box::new(move || {
            let result = files::still_there(&content, &identities, only_names);
            if let Some(mailbox) = mailboxes.get().and_then(|mailboxes| mailboxes.get(home)) {
                // A worker that takes no letters any more has closed its files.
                let _ = mailbox.send_waiting(Letter::Compared { torrent: key, result });
            }
        });
        // If too many jobs wait, the next look is soon enough.
        if self.shared.blocking.run(torrent.lane(), job).is_ok() {
            torrent.comparing_since = Some(self.now);
        }
    }

    pub(super) fn on_compared(&mut self, key: Key, result: Result<Vec<Option<Identity>>, Error>) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let Some(since) = torrent.comparing_since.take() else { return };
        match result {
            Err(error) => self.fail_torrent(key, error),
            // An incomplete torrent is written to: what its files are, they are by our hand, unless
            // that was before the last peer went.
            Ok(found) if !torrent.finished && torrent.last_peer < since && self.is_idle(key) => {
                self.close_files(key, found);
            }
            Ok(_) => {}
        }
    }

    /// Whether a torrent has had no peers for a while, and nothing of it is on its way to the disk.
    fn is_idle(&self, key: Key) -> bool {
        let writes = self.has_writes(key);
        self.torrents.get(key).is_some_and(|torrent| {
            torrent.peer_count == 0
                && self.now.saturating_duration_since(torrent.last_peer) >= FILES_INTERVAL
                && !writes
                && torrent.syncs_pending == 0
                && (!torrent.finished || torrent.is_confirmed || torrent.unsynced)
        })
    }

    /// Closes the files of a torrent without peers, once all that was written is flushed.
    fn close_idle_files(&mut self, key: Key) {
        if !self.is_idle(key) {
            return;
        }
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.unsynced {
            return self.sync_torrent(key);
        }
        let Store::Open(open) = &torrent.store else { return };
        if !torrent.finished {
            // Their times have changed since they were opened.
            return self.compare(key);
        }
        let known = open.identities();
        self.close_files(key, known);
    }

    pub(super) fn close_peers(&mut self, key: Key, reason: DisconnectReason) {
        let Some(torrent) = self.torrents.get(key) else { return };
        for conn in torrent.conns.clone().into_iter().flatten() {
            self.close(conn, reason);
        }
    }

    /// Flushes the files of a torrent if anything was written to them.
    pub(super) fn sync_torrent(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if !torrent.unsynced || torrent.syncs_pending > 0 {
            return;
        }
        let Store::Open(open) = &torrent.store else { return };
        torrent.unsynced = false;
        let handles: Vec<_> =
            open.files.iter().flatten().map(|file| Rc::clone(&file.handle)).collect();
        if handles.is_empty() {
            // All of it is padding.
            return self.synced(key);
        }
        torrent.syncs_pending = handles.len();
        self.syncs_in_flight += handles.len();
        for file in handles {
            self.operate(Target::Sync(key), Op::Sync { file });
        }
    }

    pub(super) fn on_synced(&mut self, tag: Tag, result: std::io::Result<()>) {
        let Some(Target::Sync(key)) = Target::of(tag) else { return };
        self.syncs_in_flight -= 1;
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.syncs_pending -= 1;
        if let Err(error) = result {
            self.core.disk_errors[DiskOp::Sync].add(1);
            let error = Error::from_io("flush", &torrent.content.save_path, &error);
            return self.fail_torrent(key, error);
        }
        if torrent.syncs_pending == 0 {
            self.synced(key);
        }
    }

    /// Everything that was written before the flush is on the device.
    fn synced(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.unsynced {
            // Written while the flush was under way.
            return self.sync_torrent(key);
        }
        if torrent.finished && !torrent.is_confirmed {
            self.confirm(key);
        }
    }
}

/// Bytes of a chunk: the last one of a piece may be shorter.
pub(super) fn chunk_len(geometry: Geometry, chunk: ChunkKey) -> usize {
    let left = geometry.piece_len(chunk.piece).saturating_sub(chunk.begin());
    left.min(crate::storage::chunks::CHUNK_LEN) as usize
}
