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
use super::mailbox::{NewTorrent, Report, TorrentState, Totals};
use super::table::Key;
use super::{Target, Timer, Worker};
use crate::metainfo::Extent;
use crate::metrics::{DisconnectReason, DiskOp};
use crate::ring::{Driver, Handle, Lease, Op, Tag};
use crate::storage::chunks::ChunkKey;
use crate::storage::pieces::OpenPieces;
use crate::storage::{Content, Error};
use crate::swarm::{Action, PeerKey, Source, Stats, Swarm};
use crate::sys::file::Identity;
use crate::sys::map::{self, Residency};
use crate::units::{Bitfield, Geometry, InfoHash, PieceIndex};

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
    pub(super) conns: Vec<Option<Key>>,
    pub(super) peer_count: usize,
    /// When the swarm's timer on the wheel fires.
    timer_at: Option<Instant>,
    /// When its files are looked at next; timers set for another time do nothing.
    pub(super) files_timer: Option<Instant>,
    /// Its files are wanted, and no job for them found room.
    pub(super) was_refused_files: bool,
    /// Others of its files are wanted than those that are being opened.
    pub(super) opens_again: bool,
    /// Files are wanted that may have to be made, although no piece of them is missing.
    pub(super) makes_files: bool,
    pub(super) last_peer: Instant,
    /// Whether missing pieces are fetched.
    pub(super) fetches: bool,
    /// Bytes of pieces that are not on disk yet, and of the wanted ones among them.
    pub(super) left: u64,
    pub(super) wanted_left: u64,
    /// Pieces that are read from the files, with nothing in the part file.
    pub(super) in_files: Bitfield,
    /// Bytes of whole pieces that are on their way there.
    pub(super) writing: Rc<Cell<u64>>,
    /// Connections that are not received from because of those.
    pub(super) paused: Vec<Key>,
    /// Pieces were written since the last flush.
    pub(super) unsynced: bool,
    pub(super) syncs_pending: usize,
    pub(super) finished: bool,
    /// Whether its files were looked at since it was finished, and whether that is under way.
    pub(super) is_confirmed: bool,
    pub(super) is_confirming: bool,
    /// Since when its files are being compared with those that are open.
    pub(super) comparing_since: Option<Instant>,
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

    /// Where a file lies that one of its [`Torrent::places`] names.
    pub(super) fn path_of(&self, file: usize) -> PathBuf {
        self.content.save_path.join(self.content.path_of(file))
    }

    /// Where bytes of one piece lie.
    pub(super) fn places(&self, start: u64, len: u64) -> impl Iterator<Item = Extent> + '_ {
        self.content.places(&self.in_files, start, len)
    }

    /// Whether every mapped or readable part of a chunk is in the page cache.
    pub(super) fn is_resident(&self, chunk: ChunkKey) -> bool {
        let Store::Open(open) = &self.store else { return false };
        let geometry = self.geometry();
        let start = geometry.piece_start(chunk.piece) + u64::from(chunk.begin());
        self.places(start, chunk_len(geometry, chunk) as u64).all(|extent| {
            let Some(file) = open.files.get(extent.file).and_then(Option::as_ref) else {
                return extent.padding;
            };
            let fd = std::os::fd::AsFd::as_fd(&*file.handle);
            map::residency(fd, extent.offset, extent.len).is_ok_and(Residency::is_full)
        })
    }

    /// Notes that bytes of a piece became ours, or are not any more.
    pub(super) fn count_piece(&mut self, piece: PieceIndex, is_ours: bool) {
        let len = u64::from(self.geometry().piece_len(piece));
        let wanted = if self.swarm.is_wanted(piece) { len } else { 0 };
        for (left, len) in [(&mut self.left, len), (&mut self.wanted_left, wanted)] {
            *left = if is_ours { left.saturating_sub(len) } else { *left + len };
        }
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
        self.becomes_active()
    }

    /// Notes that its totals change; true if they did not before.
    pub(super) fn becomes_active(&mut self) -> bool {
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
        self.totals.wanted_left.store(self.wanted_left, Relaxed);
        self.totals.peers.store(u64::from(stats.peers), Relaxed);
        self.totals.up_rate.store(stats.up_rate, Relaxed);
        self.totals.down_rate.store(stats.down_rate, Relaxed);
        stats
    }
}

impl<D: Driver> Worker<D> {
    pub(super) fn add_torrent(&mut self, new: NewTorrent) {
        let NewTorrent { info_hash, content, have, in_files, known, mut options, totals } = new;
        if self.by_hash.contains_key(&info_hash) || self.stopping.is_some() {
            return;
        }
        let geometry = content.metainfo.geometry;
        let piece_len = u64::from(geometry.piece_len_nominal()).max(1);
        let pieces_max = (self.options.piece_bytes_max / piece_len).max(2);
        options.partial_pieces_max = usize::try_from(pieces_max).unwrap_or(usize::MAX);
        let finished = content.is_finished(&have);
        let (left, wanted_left) = content.left(&have);
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
            files_timer: None,
            was_refused_files: false,
            opens_again: false,
            makes_files: false,
            last_peer: self.now,
            fetches,
            left,
            wanted_left,
            in_files,
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

    /// Every wanted piece is on disk: flush, look at the files once more, then say so.
    fn finish_torrent(&mut self, key: Key) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.finished = true;
        torrent.is_confirmed = false;
        torrent.publish(self.now);
        torrent.unsynced = true;
        self.sync_torrent(key);
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
