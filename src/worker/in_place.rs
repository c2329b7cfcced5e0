//! Pieces for which there was no memory: their blocks go to the disk as they come.
//!
//! Blocks of such pieces enter, writes leave, one after another for each block and each in its
//! turn; the room `read_back` then reads the whole piece and hashes it. Nothing is served of it
//! meanwhile: the swarm hands out blocks of pieces that are ours and no others, this one is not
//! ours before `handle_stored`, and the writes touch no byte outside of it.
//! Invariants: no more than [`IN_PLACE_BYTES_MAX`] bytes of blocks are held, whatever the peers
//! send; while others wait, no peer that could send on holds some of them for longer than
//! [`ARRIVAL_MAX`] and the turns it takes to close it; of two writes to the same place the later
//! one begins when the earlier one has ended, and a piece is neither hashed nor written as a whole
//! before all of them have.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::hash::ToHash;
use super::read_back::{CHECK_STEP_LEN, CHECKS_MAX, Check};
use super::table::{Key, Table};
use super::torrent::Store;
use super::{Target, Worker};
use crate::metrics::{DisconnectReason, DiskOp};
use crate::ring::{Driver, Op};
use crate::storage::Error;
use crate::storage::pieces::Spares;
use crate::units::{BLOCK_LEN, Block, PieceIndex, to_usize};

/// Bytes of blocks that a worker holds at most, arriving or on their way to the disk. A block that
/// finds no room is dropped, and asked for again.
pub(super) const IN_PLACE_BYTES_MAX: usize = 8 << 20;

/// From so many bytes on, connections that may bring such blocks are not received from while
/// writes are under way. The rest is for what was on its way before: dropping is for emergencies.
const PAUSE_BYTES: usize = IN_PLACE_BYTES_MAX / 2;

/// How long a block may arrive while others find no room.
const ARRIVAL_MAX: Duration = Duration::from_secs(3);

/// How often, while blocks find no room, the ones that take longer are looked for, and how many of
/// them make room at a time.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// See [`ROOM_INTERVAL`].
const ROOM_MAX: usize = 16;

/// Memory of a block, whatever its length.
const BUFFER_LEN: usize = BLOCK_LEN as usize;

/// A buffer's part of what is held; dropping it gives it back.
#[derive(Debug)]
struct Charge(Rc<Cell<usize>>);

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.set(self.0.get() - BUFFER_LEN);
    }
}

/// Memory for one block that is arriving.
#[derive(Debug)]
pub(super) struct BlockBuffer {
    /// When its first byte came.
    since: Instant,
    data: Vec<u8>,
    charge: Charge,
}

impl BlockBuffer {
    /// When the first byte of the block came.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Puts a part of the block in its place; whether it fits there.
    pub(super) fn fill(&mut self, offset: u32, data: &[u8]) -> bool {
        let start = offset as usize;
        let Some(place) = self.data.get_mut(start..start.saturating_add(data.len())) else {
            return false;
        };
        place.copy_from_slice(data);
        true
    }
}

/// A block on its way to the disk.
#[derive(Debug)]
struct BlockWrite {
    torrent: Key,
    block: Block,
    data: Rc<Vec<u8>>,
    /// Bytes that are written.
    done: usize,
    is_in_flight: bool,
    /// Nobody wants it any more; it stays until the kernel is done with its memory.
    is_dead: bool,
    charge: Charge,
}

/// What a worker knows of its pieces in place.
pub(super) struct InPlace {
    /// Bytes of blocks held.
    used: Rc<Cell<usize>>,
    spares: Spares,
    writes: Table<BlockWrite>,
    /// The writes of each piece that has any, with where they begin, in the order they came.
    pieces: HashMap<(Key, PieceIndex), Vec<(u32, Key)>>,
    /// Writes that came since the last look.
    fresh: VecDeque<Key>,
    /// Blocks that found no room since it was last looked for, and when it may be again.
    dropped_count: usize,
    room_at: Option<Instant>,
    /// Connections that are not received from, the longest first.
    paused: VecDeque<Key>,
    /// Pieces to hash once their writes have ended.
    pub(super) to_check: VecDeque<ToHash>,
    /// Those that are being read.
    pub(super) checks: Table<Check>,
    pub(super) check_spares: Spares,
}

impl Default for InPlace {
    fn default() -> Self {
        Self {
            used: Rc::default(),
            spares: Spares::new(IN_PLACE_BYTES_MAX),
            writes: Table::default(),
            pieces: HashMap::new(),
            fresh: VecDeque::new(),
            dropped_count: 0,
            room_at: None,
            paused: VecDeque::new(),
            to_check: VecDeque::new(),
            checks: Table::default(),
            check_spares: Spares::new(CHECKS_MAX * CHECK_STEP_LEN),
        }
    }
}

impl InPlace {
    /// Memory for one more block, if there is any.
    pub(super) fn buffer(&mut self, now: Instant) -> Option<BlockBuffer> {
        let used = self.used.get() + BUFFER_LEN;
        if used > IN_PLACE_BYTES_MAX {
            self.dropped_count += 1;
            return None;
        }
        self.used.set(used);
        Some(BlockBuffer {
            since: now,
            data: self.spares.take(BUFFER_LEN),
            charge: Charge(Rc::clone(&self.used)),
        })
    }

    /// Takes a block that has arrived; it waits for [`Worker::write_fresh_blocks`].
    pub(super) fn add(&mut self, torrent: Key, block: Block, buffer: BlockBuffer) {
        let key = self.writes.insert(BlockWrite {
            torrent,
            block,
            data: Rc::new(buffer.data),
            done: 0,
            is_in_flight: false,
            is_dead: false,
            charge: buffer.charge,
        });
        self.pieces.entry((torrent, block.piece)).or_default().push((block.begin, key));
        self.fresh.push_back(key);
    }

    /// Buffers in use.
    pub(super) fn buffer_count(&self) -> u64 {
        (self.used.get() / BUFFER_LEN) as u64
    }

    /// Bytes of memory held.
    pub(super) fn bytes(&self) -> u64 {
        let checks = self.checks.len() * CHECK_STEP_LEN;
        (self.used.get() + checks) as u64 + self.spares.bytes() + self.check_spares.bytes()
    }

    /// Frees memory that was not needed lately.
    pub(super) fn tidy(&mut self) {
        self.spares.tidy();
        self.check_spares.tidy();
    }

    /// Whether blocks of a piece are on their way to the disk.
    pub(super) fn is_writing(&self, torrent: Key, piece: PieceIndex) -> bool {
        self.pieces.contains_key(&(torrent, piece))
    }

    /// Whether blocks of a torrent are on their way to the disk.
    pub(super) fn is_writing_any_of(&self, torrent: Key) -> bool {
        self.pieces.keys().any(|&(key, _)| key == torrent)
    }

    /// Whether nothing is on its way to the disk or to a verdict.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.to_check.is_empty() && self.checks.is_empty()
    }

    /// Whether anything of a torrent is on its way to the disk or to a verdict.
    pub(super) fn has_any_of(&self, torrent: Key) -> bool {
        let is_checked = |key| self.checks.get(key).is_some_and(|it| it.entry.torrent == torrent);
        self.is_writing_any_of(torrent)
            || self.to_check.iter().any(|entry| entry.torrent == torrent)
            || self.checks.keys().into_iter().any(is_checked)
    }

    /// The first write to the place of this one.
    fn first_like(&self, write: &BlockWrite) -> Option<Key> {
        let list = self.pieces.get(&(write.torrent, write.block.piece))?;
        list.iter().find(|&&(begin, _)| begin == write.block.begin).map(|&(_, key)| key)
    }

    /// Forgets a write that has ended.
    fn remove(&mut self, key: Key) -> Option<BlockWrite> {
        let write = self.writes.remove(key)?;
        let place = (write.torrent, write.block.piece);
        if let Some(list) = self.pieces.get_mut(&place) {
            list.retain(|&(_, other)| other != key);
            if list.is_empty() {
                self.pieces.remove(&place);
            }
        }
        Some(write)
    }
}

impl<D: Driver> Worker<D> {
    /// Starts the writes of blocks that have arrived.
    pub(super) fn write_fresh_blocks(&mut self) {
        while let Some(key) = self.in_place.fresh.pop_front() {
            let Some(write) = self.in_place.writes.get(key) else { continue };
            if self.in_place.first_like(write) == Some(key) {
                self.write_block(key);
            }
        }
    }

    /// Starts the writes of blocks that waited for the files of their torrent to be open.
    pub(super) fn write_waiting_blocks(&mut self, torrent: Key) {
        for key in self.in_place.writes.keys() {
            let waits = |it: &BlockWrite| it.torrent == torrent && !it.is_in_flight;
            if self.in_place.writes.get(key).is_some_and(waits) {
                self.in_place.fresh.push_back(key);
            }
        }
        self.write_fresh_blocks();
    }

    /// Writes the next run of a block; ends the write when there is none.
    fn write_block(&mut self, key: Key) {
        loop {
            let Some(write) = self.in_place.writes.get(key) else { return };
            let torrent_key = write.torrent;
            if self.reopen_for_writing(torrent_key) {
                // The write begins once they are open.
                return;
            }
            let Some(write) = self.in_place.writes.get_mut(key) else { return };
            let left = write.block.len as usize - write.done;
            let torrent = self.torrents.get_mut(write.torrent);
            let is_wanted = left > 0 && !write.is_dead;
            let Some(torrent) = torrent.filter(|torrent| is_wanted && !torrent.has_failed()) else {
                return self.block_written(key);
            };
            let Store::Open(open) = &torrent.store else {
                return self.need_files(torrent_key);
            };
            let start = torrent.geometry().piece_start(write.block.piece)
                + u64::from(write.block.begin)
                + write.done as u64;
            let Some(extent) = torrent.places(start, left as u64).next() else {
                // The layout covers every block: there is always a next extent.
                debug_assert!(false, "no extent at {start}");
                return;
            };
            let len = to_usize(extent.len);
            let Some(file) = open.files.get(extent.file).and_then(Option::as_ref) else {
                if !extent.padding {
                    write.is_dead = true;
                    self.fail_absent(torrent_key, extent.file);
                    return self.block_written(key);
                }
                // Padding: on no disk.
                write.done += len;
                continue;
            };
            let op = Op::Write {
                file: Rc::clone(&file.handle),
                offset: extent.offset,
                buffer: Rc::clone(&write.data),
                start: write.done,
                len,
            };
            write.is_in_flight = true;
            torrent.unsynced = true;
            self.core.disk_writes.add(1);
            return self.operate(Target::WriteBlock(key), op);
        }
    }

    pub(super) fn on_block_written(&mut self, key: Key, result: io::Result<usize>) {
        let Some(write) = self.in_place.writes.get_mut(key) else { return };
        write.is_in_flight = false;
        let error = match result {
            Ok(count) if count > 0 => {
                self.core.disk_write_bytes.add(count as u64);
                write.done += count;
                if let Some(torrent) = self.torrents.get_mut(write.torrent) {
                    // A flush that began meanwhile did not cover it.
                    torrent.unsynced = true;
                }
                return self.write_block(key);
            }
            Ok(_) => io::Error::from_raw_os_error(libc::ENOSPC),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return self.write_block(key);
            }
            Err(error) => error,
        };
        self.core.disk_errors[DiskOp::Write].add(1);
        let (torrent_key, block, done) = (write.torrent, write.block, write.done);
        self.block_written(key);
        if let Some(torrent) = self.torrents.get(torrent_key) {
            let start = torrent.geometry().piece_start(block.piece) + u64::from(block.begin);
            let extent = torrent.places(start + done as u64, 1).next();
            let path = torrent.path_of(extent.map_or(usize::MAX, |extent| extent.file));
            self.fail_torrent(torrent_key, Error::from_io("write", &path, &error));
        }
    }

    /// A write is over, in one way or another: what waited for it goes on.
    fn block_written(&mut self, key: Key) {
        let Some(write) = self.in_place.remove(key) else { return };
        if write.done == write.block.len as usize {
            self.core.in_place_blocks.add(1);
            self.core.in_place_bytes.add(u64::from(write.block.len));
        }
        let (torrent, piece) = (write.torrent, write.block.piece);
        let next = self.in_place.first_like(&write);
        if let Ok(data) = Rc::try_unwrap(write.data) {
            self.in_place.spares.give(data);
        }
        drop(write.charge);
        if let Some(next) = next {
            self.write_block(next);
        }
        if !self.in_place.is_writing(torrent, piece) {
            self.start_checks();
            self.write_waiting(torrent);
        }
        self.resume_paused();
    }

    /// Forgets what came of a piece: its next blocks belong to another attempt.
    pub(super) fn discard_in_place(&mut self, torrent: Key, piece: PieceIndex) {
        self.discard_checks(|entry| entry.torrent == torrent && entry.piece == piece);
        let Some(list) = self.in_place.pieces.get(&(torrent, piece)).cloned() else { return };
        for &(_, key) in &list {
            if let Some(write) = self.in_place.writes.get_mut(key) {
                write.is_dead = true;
            }
        }
        for (_, key) in list {
            if self.in_place.writes.get(key).is_some_and(|write| !write.is_in_flight) {
                self.block_written(key);
            }
        }
    }

    /// Forgets everything in place of a torrent.
    pub(super) fn drop_in_place(&mut self, torrent: Key) {
        self.discard_checks(|entry| entry.torrent == torrent);
        let places: Vec<_> =
            self.in_place.pieces.keys().filter(|(key, _)| *key == torrent).copied().collect();
        for (_, piece) in places {
            self.discard_in_place(torrent, piece);
        }
    }

    /// Asks for what a peer sends next, or leaves it in the kernel while too much is on its way to
    /// the disk already.
    pub(super) fn receive_in_turn(&mut self, conn_key: Key, torrent: Key) {
        let in_place = &self.in_place;
        // Where nothing is being written nothing would end the pause.
        let is_full = in_place.used.get() >= PAUSE_BYTES && !in_place.writes.is_empty();
        let is_of_it = |key| self.torrents.get(key).is_some_and(|it| it.swarm.in_place_count() > 0);
        if !is_full || !is_of_it(torrent) {
            return self.receive(conn_key);
        }
        self.pause(conn_key);
        if self.in_place.paused.len() > 2 * self.conns.len() {
            // Peers that come and go while a disk stands still leave their names here.
            self.in_place.paused.retain(|&conn| self.conns.get(conn).is_some());
        }
        self.in_place.paused.push_back(conn_key);
    }

    /// Blocks found no room: the peers whose blocks have been arriving for too long make some, the
    /// slowest first. Each holds one buffer at most, so that all of them together can keep others
    /// waiting no longer than this takes.
    pub(super) fn free_buffers(&mut self) {
        let is_due = self.in_place.room_at.is_none_or(|at| self.now >= at);
        if self.in_place.dropped_count == 0 || !is_due {
            return;
        }
        let wanted = std::mem::take(&mut self.in_place.dropped_count).min(ROOM_MAX);
        self.in_place.room_at = Some(self.now + ROOM_INTERVAL);
        let mut slow: Vec<_> = (self.conns.keys().into_iter())
            .filter_map(|key| Some((self.conns.get(key)?.arriving_since()?, key)))
            .filter(|&(since, _)| self.now.saturating_duration_since(since) >= ARRIVAL_MAX)
            .collect();
        slow.sort_unstable_by_key(|&(since, _)| since);
        for (_, key) in slow.into_iter().take(wanted) {
            self.close(key, DisconnectReason::Timeout);
        }
    }

    /// A write has ended: one connection goes on, or all if no other write would wake them.
    fn resume_paused(&mut self) {
        let count = if self.in_place.writes.is_empty() {
            self.in_place.paused.len()
        } else {
            usize::from(self.in_place.used.get() < PAUSE_BYTES)
        };
        for _ in 0..count {
            let Some(key) = self.in_place.paused.pop_front() else { return };
            self.resume(key);
        }
    }
}
