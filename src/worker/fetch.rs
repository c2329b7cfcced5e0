//! Receiving: from bytes of a connection to pieces on the disk.
//!
//! Received bytes enter; messages go to the swarm, block data to the piece it belongs to, and a
//! piece with the right digest to the disk, in runs as large as its files allow. Invariant: a
//! piece is announced only after its write has ended, and written only after its digest was right.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::connection::{Arrival, Phase};
use super::in_place::InPlace;
use super::table::Key;
use super::torrent::{Store, Torrent};
use super::{Target, Timer, Worker};
use crate::metrics::{Direction, DisconnectReason, DiskOp};
use crate::ring::{Driver, Op, Tag};
use crate::storage::Error;
use crate::storage::pieces::{Digest, Spares};
use crate::swarm::{self, Payload, PeerKey, Verdict};
use crate::units::{Block, PieceIndex, to_usize};
use crate::wire::{self, Incoming};

/// How often a message that has begun must have grown by [`wire::PROGRESS_LEN_MIN`].
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes of one torrent that may be on their way to the disk, unless two pieces are more. Beyond
/// that its peers are not received from, for what waits longer than this has left the processor's
/// cache before the kernel copies it, and a disk that stands still would fill the memory of all.
pub(super) const BACKLOG_MAX: u64 = 8 << 20;

/// Bytes on their way to the disk, counted until this is dropped.
#[derive(Debug)]
struct Backlog {
    bytes: u64,
    of_torrent: Rc<Cell<u64>>,
}

impl Backlog {
    fn new(bytes: u64, of_torrent: &Rc<Cell<u64>>) -> Self {
        of_torrent.set(of_torrent.get() + bytes);
        Self { bytes, of_torrent: Rc::clone(of_torrent) }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.of_torrent.set(self.of_torrent.get() - self.bytes);
    }
}

/// A piece on its way to the disk.
#[derive(Debug)]
pub(super) struct PieceWrite {
    _backlog: Backlog,
    torrent: Key,
    piece: PieceIndex,
    data: Rc<Vec<u8>>,
    /// Writes that have not ended; `None` until the files are open.
    pending: Option<usize>,
}

impl PieceWrite {
    /// Whether it writes this piece.
    pub(super) fn is_of(&self, torrent: Key, piece: PieceIndex) -> bool {
        (self.torrent, self.piece) == (torrent, piece)
    }
}

/// One run of a piece inside one file.
#[derive(Debug)]
pub(super) struct WriteOp {
    torrent: Key,
    write: Key,
    file: usize,
    offset: u64,
    start: usize,
    len: usize,
}

impl WriteOp {
    /// The torrent that it writes to, which may be gone.
    pub(super) fn torrent(&self) -> Key {
        self.torrent
    }
}

impl<D: Driver> Worker<D> {
    pub(super) fn on_received(&mut self, tag: Tag, result: io::Result<crate::ring::RecvBuffer>) {
        let Some(Target::Receive(key)) = Target::of(tag) else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.receiving = false;
        let mut bytes = match result {
            Ok(bytes) => bytes,
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::ENOBUFS) => {
                        self.core.buffer_exhausted.add(1);
                        self.unbuffered.push(key);
                    }
                    Some(libc::EINTR | libc::EAGAIN) => self.receive(key),
                    _ => self.close(key, DisconnectReason::Io),
                };
            }
        };
        if bytes.is_empty() {
            return self.close(key, DisconnectReason::PeerClosed);
        }
        if let Some(ciphers) = &mut conn.ciphers {
            ciphers.incoming.apply(&mut bytes);
        }
        match conn.phase {
            Phase::Peer(_) => self.feed(key, &bytes),
            Phase::Magnet(_) => self.feed_magnet(key, &bytes),
            _ => self.shake_hands(key, &bytes),
        }
    }

    /// Gives received bytes to a peer, and asks for more.
    pub(super) fn feed(&mut self, key: Key, bytes: &[u8]) {
        let mut input = bytes;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let watched = conn.is_watched;
        let Some(peer) = conn.peer() else { return };
        let (torrent_key, peer_key) = (peer.torrent, peer.key);
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return };
        let now = self.now;
        let mut payload_bytes = 0;
        let mut intake = Intake {
            now,
            torrent_key,
            peer_key,
            torrent,
            spares: &mut self.spares,
            fresh: &mut self.fresh,
            in_place: &mut self.in_place,
        };
        let failed = loop {
            match peer.decoder.decode(&mut input) {
                Ok(None) => break None,
                Ok(Some(Incoming::Message(message))) => {
                    let swarm = &mut intake.torrent.swarm;
                    if let Err(error) = swarm.handle_message(now, peer_key, message) {
                        break Some(why_closed(&error));
                    }
                }
                Ok(Some(Incoming::Payload { block, offset, data })) => {
                    if let Err(error) = intake.take(&mut peer.arriving, block, offset, data) {
                        break Some(why_closed(&error));
                    }
                    payload_bytes += data.len() as u64;
                }
                Err(error) => {
                    tracing::debug!(%error, "the peer broke the protocol");
                    break Some(DisconnectReason::Protocol);
                }
            }
        };
        let watch = peer.decoder.progress().filter(|_| !watched);
        self.core.received_payload_bytes.add(payload_bytes);
        self.core.protocol_bytes[Direction::Incoming]
            .add((bytes.len() as u64).saturating_sub(payload_bytes));
        self.write_fresh_blocks();
        self.free_buffers();
        self.touch_torrent(torrent_key);
        if let Some(reason) = failed {
            return self.close(key, reason);
        }
        if let Some(progress) = watch {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.is_watched = true;
            }
            self.timers.set(now + PROGRESS_INTERVAL, Timer::Progress(key, progress));
        }
        if self.is_backlogged(torrent_key) {
            return self.pause_for_backlog(key, torrent_key);
        }
        self.receive_in_turn(key, torrent_key);
    }

    /// Whether so much of a torrent is on its way to the disk that no more should come.
    fn is_backlogged(&self, torrent: Key) -> bool {
        self.torrents.get(torrent).is_some_and(|torrent| {
            let two_pieces = 2 * u64::from(torrent.geometry().piece_len_nominal());
            torrent.writing.get() > BACKLOG_MAX.max(two_pieces)
        })
    }

    /// Does not receive from a peer of `torrent` until more of it is on the disk.
    fn pause_for_backlog(&mut self, key: Key, torrent_key: Key) {
        self.pause(key);
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return };
        if torrent.paused.len() > 2 * self.conns.len() {
            // Peers that come and go while a disk stands still leave their names here.
            torrent.paused.retain(|&conn| self.conns.get(conn).is_some());
        }
        let is_first = torrent.paused.is_empty();
        torrent.paused.push(key);
        if is_first {
            self.backlogged.push(torrent_key);
        }
    }

    /// Receives again from peers of torrents whose writes have got on.
    pub(super) fn resume_backlogged(&mut self) {
        let mut index = 0;
        while let Some(&key) = self.backlogged.get(index) {
            if self.is_backlogged(key) {
                index += 1;
                continue;
            }
            self.backlogged.swap_remove(index);
            let paused =
                self.torrents.get_mut(key).map(|torrent| std::mem::take(&mut torrent.paused));
            paused.into_iter().flatten().for_each(|conn| self.resume(conn));
        }
    }

    /// Does not receive from a peer for a while, which is not its fault.
    pub(super) fn pause(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_paused = true;
        conn.is_excused = true;
        let Some(peer) = conn.peer() else { return };
        if let Some(torrent) = self.torrents.get_mut(peer.torrent) {
            torrent.swarm.handle_paused(self.now, peer.key);
        }
    }

    /// Receives from a peer again, if it is still there.
    pub(super) fn resume(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_paused = false;
        conn.resumed_at = Some(self.now);
        if let Some(peer) = conn.peer()
            && let Some(torrent) = self.torrents.get_mut(peer.torrent)
        {
            torrent.swarm.handle_resumed(self.now, peer.key);
        }
        self.receive(key);
    }

    /// A message had begun: unless it is over, enough of it must have come meanwhile.
    pub(super) fn on_progress_timer(&mut self, key: Key, before: &wire::Progress) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_watched = false;
        let is_excused = std::mem::replace(&mut conn.is_excused, conn.is_paused);
        let Some(progress) = conn.progress() else { return };
        if progress.is_stalled_since(before) && !is_excused {
            return self.close(key, DisconnectReason::Timeout);
        }
        conn.is_watched = true;
        self.timers.set(self.now + PROGRESS_INTERVAL, Timer::Progress(key, progress));
    }

    /// Tells the swarm whether a piece is good.
    pub(super) fn pronounce(&mut self, key: Key, piece: PieceIndex, verdict: Verdict) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if matches!(verdict, Verdict::Bad(_)) {
            self.core.piece_hash_failures.add(1);
            let name = torrent.content.metainfo.shown_name();
            tracing::info!(torrent = %torrent.info_hash, %name, %piece, "a piece failed its hash");
        } else {
            self.core.pieces_verified.add(1);
        }
        torrent.swarm.handle_verified(self.now, piece, verdict);
        self.touch_torrent(key);
    }

    /// Judges a piece in memory, and writes it if it is good. `blocks` are the digests of its
    /// blocks, if they were wanted.
    pub(super) fn judge(&mut self, key: Key, piece: PieceIndex, good: bool, blocks: Vec<Digest>) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if !good {
            return self.pronounce(key, piece, Verdict::Bad(blocks));
        }
        let data = torrent.pieces.remove(piece);
        let of_torrent = Rc::clone(&torrent.writing);
        self.pronounce(key, piece, Verdict::Good(blocks));
        let Some(data) = data else { return };
        let _backlog = Backlog::new(data.len() as u64, &of_torrent);
        let write =
            PieceWrite { _backlog, torrent: key, piece, data: Rc::new(data), pending: None };
        let write_key = self.piece_writes.insert(write);
        self.write_piece(write_key);
    }

    /// Writes a piece to the files it lies in, if they are open.
    fn write_piece(&mut self, write_key: Key) {
        let Some(write) = self.piece_writes.get_mut(write_key) else { return };
        let (torrent_key, piece) = (write.torrent, write.piece);
        if self.in_place.is_writing(torrent_key, piece) {
            // Blocks of an earlier attempt: the last of them to end starts this.
            return;
        }
        if self.reopen_for_writing(torrent_key) {
            // The write begins once they are open.
            return;
        }
        let Some(write) = self.piece_writes.get_mut(write_key) else { return };
        let Some(torrent) = self.torrents.get_mut(torrent_key) else {
            self.piece_writes.remove(write_key);
            return;
        };
        let Store::Open(open) = &torrent.store else {
            if torrent.has_failed() {
                self.piece_writes.remove(write_key);
            } else {
                self.need_files(torrent_key);
            }
            return;
        };
        let geometry = torrent.geometry();
        let (start, len) = (geometry.piece_start(write.piece), geometry.piece_len(write.piece));
        let (mut position, mut runs, mut absent) = (0, Vec::new(), None);
        for extent in torrent.places(start, u64::from(len)) {
            let len = to_usize(extent.len);
            if open.files.get(extent.file).is_some_and(Option::is_some) {
                runs.push(WriteOp {
                    torrent: torrent_key,
                    write: write_key,
                    file: extent.file,
                    offset: extent.offset,
                    start: position,
                    len,
                });
            } else if !extent.padding {
                absent = Some(extent.file);
            }
            position += len;
        }
        if let Some(file) = absent {
            self.piece_writes.remove(write_key);
            return self.fail_absent(torrent_key, file);
        }
        torrent.unsynced = true;
        write.pending = Some(runs.len());
        if runs.is_empty() {
            return self.piece_written(write_key);
        }
        for run in runs {
            self.core.disk_writes.add(1);
            self.core.disk_write_bytes.add(run.len as u64);
            let run_key = self.writes.insert(run);
            self.push_write(run_key);
        }
    }

    /// Starts the writes of pieces that waited for the files to be open, or for earlier writes.
    pub(super) fn write_waiting(&mut self, torrent: Key) {
        for write_key in self.piece_writes.keys() {
            let waits = self
                .piece_writes
                .get(write_key)
                .is_some_and(|write| write.torrent == torrent && write.pending.is_none());
            if waits {
                self.write_piece(write_key);
            }
        }
    }

    fn push_write(&mut self, run_key: Key) {
        let Some(run) = self.writes.get(run_key) else { return };
        let Some(write) = self.piece_writes.get(run.write) else {
            // Another run of the same piece has failed.
            self.writes.remove(run_key);
            return;
        };
        let file = self.torrents.get(write.torrent).and_then(|torrent| match &torrent.store {
            Store::Open(open) => open.files.get(run.file).and_then(Option::as_ref),
            _ => None,
        });
        let Some(file) = file else {
            let write_key = run.write;
            self.writes.remove(run_key);
            self.piece_writes.remove(write_key);
            return;
        };
        let op = Op::Write {
            file: Rc::clone(&file.handle),
            offset: run.offset,
            buffer: Rc::clone(&write.data),
            start: run.start,
            len: run.len,
        };
        self.operate(Target::Write(run_key), op);
    }

    pub(super) fn on_written(&mut self, tag: Tag, result: io::Result<usize>) {
        let Some(Target::Write(run_key)) = Target::of(tag) else { return };
        let Some(run) = self.writes.get_mut(run_key) else { return };
        let error = match result {
            Ok(count) if count >= run.len => {
                let write_key = run.write;
                self.writes.remove(run_key);
                if let Some(write) = self.piece_writes.get_mut(write_key) {
                    let pending = write.pending.map_or(0, |pending| pending.saturating_sub(1));
                    write.pending = Some(pending);
                    if pending == 0 {
                        self.piece_written(write_key);
                    }
                }
                return;
            }
            Ok(count) if count > 0 => {
                run.offset += count as u64;
                run.start += count;
                run.len -= count;
                return self.push_write(run_key);
            }
            Ok(_) => io::Error::from_raw_os_error(libc::ENOSPC),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return self.push_write(run_key);
            }
            Err(error) => error,
        };
        self.core.disk_errors[DiskOp::Write].add(1);
        let file = run.file;
        let write = self.piece_writes.remove(run.write);
        self.writes.remove(run_key);
        let Some(torrent_key) = write.map(|write| write.torrent) else { return };
        if let Some(torrent) = self.torrents.get(torrent_key) {
            let path = torrent.path_of(file);
            self.fail_torrent(torrent_key, Error::from_io("write", &path, &error));
        }
    }

    /// Bytes of pieces in memory, whatever becomes of them.
    pub(super) fn piece_bytes(&self) -> u64 {
        let torrents = self.active.iter().filter_map(|&key| self.torrents.get(key));
        let keys = self.piece_writes.keys().into_iter();
        let writes = keys.filter_map(|key| Some(self.piece_writes.get(key)?.data.len() as u64));
        torrents.map(|torrent| torrent.pieces.bytes()).chain(writes).sum()
    }

    /// Whether pieces of a torrent are on their way to the disk.
    pub(super) fn has_writes(&self, torrent: Key) -> bool {
        let of_it = |key| self.piece_writes.get(key).is_some_and(|it| it.torrent == torrent);
        self.to_hash.iter().any(|entry| entry.torrent == torrent)
            || self.to_blame.iter().any(|entry| entry.torrent == torrent)
            || self.in_place.has_any_of(torrent)
            || self.piece_writes.keys().into_iter().any(of_it)
    }

    /// Forgets the pieces of a torrent that are not on disk and never will be.
    pub(super) fn drop_pieces(&mut self, torrent_key: Key) {
        self.to_hash.retain(|entry| entry.torrent != torrent_key);
        self.to_blame.retain(|entry| entry.torrent != torrent_key);
        self.fresh.retain(|&(key, _)| key != torrent_key);
        for write_key in self.piece_writes.keys() {
            if self.piece_writes.get(write_key).is_some_and(|write| write.torrent == torrent_key) {
                // What the kernel is writing keeps its memory until it is done.
                self.piece_writes.remove(write_key);
            }
        }
        self.drop_in_place(torrent_key);
    }

    /// A piece is verified and in its files: from now on it is ours.
    pub(super) fn piece_stored(&mut self, key: Key, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        torrent.count_piece(piece, true);
        // A flush that began while this was being written did not cover it.
        torrent.unsynced = true;
        torrent.swarm.handle_stored(self.now, piece);
        self.touch_torrent(key);
    }

    /// All of a piece is written.
    fn piece_written(&mut self, write_key: Key) {
        let Some(write) = self.piece_writes.remove(write_key) else { return };
        self.piece_stored(write.torrent, write.piece);
        if let Ok(data) = Rc::try_unwrap(write.data) {
            self.spares.give(data);
        }
    }
}

/// What receives the block data of one peer.
struct Intake<'a> {
    now: Instant,
    torrent_key: Key,
    peer_key: PeerKey,
    torrent: &'a mut Torrent,
    spares: &'a mut Spares,
    fresh: &'a mut VecDeque<(Key, PieceIndex)>,
    in_place: &'a mut InPlace,
}

impl Intake<'_> {
    /// Takes a part of a block, `offset` bytes into it; `arriving` is what had come of it before.
    fn take(
        &mut self,
        arriving: &mut Option<(Block, Arrival)>,
        block: Block,
        offset: u32,
        data: &[u8],
    ) -> Result<(), swarm::Error> {
        let mut arrival = match arriving.take() {
            // Its piece may have been begun anew, and the block be somebody else's by now.
            Some(_) if !self.torrent.swarm.awaits(self.peer_key, block) => Arrival::Unwanted,
            Some((_, arrival)) => arrival,
            None => self.begin(block)?,
        };
        let stored = match &mut arrival {
            Arrival::Unwanted => false,
            Arrival::InMemory => {
                self.torrent.pieces.store(block, offset, data, |len| self.spares.take(len))
            }
            Arrival::InPlace(buffer) => buffer.fill(offset, data),
        };
        // The decoder never hands out more than the block has.
        if u64::from(offset) + (data.len() as u64) < u64::from(block.len) {
            *arriving = Some((block, arrival));
        } else if stored {
            self.complete(block, arrival);
        }
        Ok(())
    }

    /// Finds out where the data of a block goes.
    fn begin(&mut self, block: Block) -> Result<Arrival, swarm::Error> {
        let swarm = &mut self.torrent.swarm;
        Ok(match swarm.handle_payload(self.now, self.peer_key, block)? {
            Payload::Discard => Arrival::Unwanted,
            // What came of the piece before is still here, and goes at the end of the turn.
            _ if swarm.is_discarding(block.piece) => {
                swarm.handle_dropped(self.now, self.peer_key, block);
                Arrival::Unwanted
            }
            Payload::Accept => Arrival::InMemory,
            Payload::AcceptInPlace => match self.in_place.buffer(self.now) {
                Some(buffer) => Arrival::InPlace(buffer),
                None => {
                    swarm.handle_dropped(self.now, self.peer_key, block);
                    Arrival::Unwanted
                }
            },
        })
    }

    /// All of a block is here.
    fn complete(&mut self, block: Block, arrival: Arrival) {
        if !self.torrent.swarm.handle_block(self.now, self.peer_key, block) {
            return;
        }
        match arrival {
            Arrival::InMemory => {
                if self.torrent.pieces.complete(block) {
                    self.fresh.push_back((self.torrent_key, block.piece));
                }
            }
            Arrival::InPlace(buffer) => self.in_place.add(self.torrent_key, block, buffer),
            Arrival::Unwanted => {}
        }
    }
}

/// How a closing that the swarm asked for is counted.
pub(super) fn why_closed(error: &swarm::Error) -> DisconnectReason {
    tracing::debug!(%error, "the swarm closes a connection");
    match error {
        swarm::Error::Banned => DisconnectReason::Banned,
        swarm::Error::Blocked => DisconnectReason::Blocked,
        swarm::Error::NothingToTrade => DisconnectReason::Useless,
        swarm::Error::Replaced | swarm::Error::Forgotten => DisconnectReason::Duplicate,
        swarm::Error::Idle => DisconnectReason::Idle,
        swarm::Error::Inactive | swarm::Error::BlockStalled => DisconnectReason::Timeout,
        swarm::Error::NotReading => DisconnectReason::Slow,
        _ => DisconnectReason::Protocol,
    }
}
