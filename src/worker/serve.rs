//! Sending: from the requests that are due to the batch that the kernel takes.
//!
//! Due blocks enter, one send per connection leaves. A block is sent from the file's mapping if it
//! is in the page cache, from memory if it was read already, and otherwise waits for a read of its
//! chunk, which is shared by all who want it. Invariant: a send never names a range of a mapping
//! that was not resident a moment ago; one send is in flight per connection, because two could be
//! reordered.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::connection::{SEND_LEN_MAX, SEND_LEN_MIN, Sending, ZeroCopy};
use super::departed::count_sent;
use super::health::is_of_medium;
use super::table::Key;
use super::torrent::{Store, Torrent, chunk_len};
use super::{Target, Timer, Worker};
use crate::metrics::{
    Direction, DisconnectReason, DiskOp, RequestResult, Temperature, ZeroCopyResult,
};
use crate::ring::{BATCH_PARTS_MAX, Batch, Driver, Lease, Op, Tag};
use crate::storage::Error;
use crate::storage::chunks::{Answer, ChunkKey, chunks_of};
use crate::swarm::PeerKey;
use crate::units::{Block, to_usize};
use crate::wire;

/// Blocks taken from the swarm per connection ahead of what is sent: how far cold reads run ahead.
const DUE_MAX: usize = SEND_LEN_MAX / crate::units::BLOCK_LEN as usize;

/// Parts kept free in a batch: room for a block that lies in that many files. One that lies in
/// more is read instead of mapped.
const PARTS_RESERVE: usize = 32;

/// Shortest batch that is worth a zero-copy send.
const ZERO_COPY_LEN_MIN: usize = 32 * 1024;

/// Bytes of zero-copy sends that one peer may keep the kernel holding.
const ZERO_COPY_HELD_MAX: usize = 4 * SEND_LEN_MAX;

/// How long a peer may take nothing of a batch before it is closed.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Connections that try again for each read or send that may have freed memory.
const STARVED_WAKES_MAX: usize = 16;

/// A chunk on its way from the disk.
#[derive(Debug)]
pub(super) struct ChunkRead {
    torrent: Key,
    chunk: ChunkKey,
    len: usize,
    done: usize,
}

/// Where a block is.
enum Located {
    /// It was added to the batch, from a mapping.
    Mapped,
    /// It was added to the batch, from memory that it had been read into.
    Read,
    /// It is being read; the connection is woken when it is there.
    Waits,
    /// It cannot be had: its piece is not ours any more.
    Lost,
    /// It cannot be had: the torrent has no files now.
    Gone,
}

impl<D: Driver> Worker<D> {
    /// Makes and sends the next batch of a connection, if it has anything to send and no send is
    /// in flight.
    pub(super) fn send_to(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.sending.is_some() {
            return;
        }
        let mut batch = Batch::new();
        let outbox = std::mem::take(&mut conn.outbox);
        let is_encrypted = conn.ciphers.is_some();
        if !is_encrypted {
            // An empty batch takes any number of bytes: they are one part.
            let _ = batch.push_bytes(&outbox);
        }
        let (payload, read) = self.fill(key, &mut batch);
        if is_encrypted {
            batch = self.seal(key, &outbox, &batch);
        }
        if batch.is_empty() {
            return;
        }
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.sending = Some(Sending {
            batch: Rc::new(batch),
            sent: 0,
            payload_left: payload,
            read_left: read,
            since: self.now,
            moved_at: self.now,
        });
        // One timer per connection, however many batches pass before it fires.
        if !std::mem::replace(&mut conn.is_stall_watched, true) {
            self.timers.set(self.now + STALL_TIMEOUT, Timer::Stall(key));
        }
        self.push_send(key);
    }

    /// Adds what is due to a peer to a batch; returns the bytes of block data among it, and how
    /// many of those were read into memory.
    fn fill(&mut self, key: Key, batch: &mut Batch) -> (u64, u64) {
        let sealed_len_max = self.sealed_len_max();
        let Some(conn) = self.conns.get_mut(key) else { return (0, 0) };
        let is_encrypted = conn.ciphers.is_some();
        let len_max =
            if is_encrypted { conn.send_len_max.min(sealed_len_max) } else { conn.send_len_max };
        let Some(peer) = conn.peer() else { return self.fill_for_magnet(key, batch) };
        let (torrent_key, peer_key) = (peer.torrent, peer.key);
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return (0, 0) };
        self.scratch.control.clear();
        self.scratch.blocks.clear();
        let due_len: u64 = peer.due.iter().map(|block| u64::from(block.len)).sum();
        let budget =
            if peer.due.len() < DUE_MAX { (len_max as u64).saturating_sub(due_len) } else { 0 };
        let (control, blocks) = (&mut self.scratch.control, &mut self.scratch.blocks);
        torrent.swarm.poll_transmit(self.now, peer_key, budget, control, blocks);
        peer.due.extend(blocks.iter().copied());
        // One part more: a batch that began with the handshake goes on with it.
        let _ = batch.push_bytes(control);
        self.core.protocol_bytes[Direction::Outgoing].add(control.len() as u64);

        let mut due = std::mem::take(&mut peer.due);
        let (mut payload, mut read) = (0, 0);
        while let Some(&block) = due.front() {
            let full =
                batch.len() + block.len as usize > len_max || batch.parts_left() < PARTS_RESERVE;
            if payload > 0 && full {
                break;
            }
            let located = self.locate(key, torrent_key, block, !is_encrypted, batch);
            match located {
                Located::Mapped | Located::Read => {
                    let is_read = matches!(located, Located::Read);
                    read += if is_read { u64::from(block.len) } else { 0 };
                    payload += u64::from(block.len);
                    due.pop_front();
                    self.core.requests[RequestResult::Served].add(1);
                }
                Located::Waits => {
                    // What lies behind it is read meanwhile, so that a disk has work ahead.
                    for &ahead in due.iter().skip(1) {
                        self.read_ahead(key, torrent_key, ahead);
                    }
                    break;
                }
                Located::Lost => {
                    due.pop_front();
                    self.refuse(key, torrent_key, peer_key, block);
                }
                Located::Gone => {
                    due.clear();
                }
            }
        }
        if let Some(peer) = self.conns.get_mut(key).and_then(|conn| conn.peer()) {
            peer.due = due;
        }
        (payload, read)
    }

    /// Tells a peer that a block that was due to it does not come.
    fn refuse(&mut self, conn: Key, torrent_key: Key, peer_key: PeerKey, block: Block) {
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return };
        torrent.swarm.handle_unsendable(self.now, peer_key, block);
        self.touch_torrent(torrent_key);
        // What it asked for behind this one is still due.
        self.touch_conn(conn);
    }

    /// Adds a block to a batch from wherever its bytes are, or sees to it that they come. Only the
    /// kernel reads a mapping: what is encrypted here may not lie in one.
    fn locate(
        &mut self,
        conn: Key,
        torrent_key: Key,
        block: Block,
        may_map: bool,
        batch: &mut Batch,
    ) -> Located {
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return Located::Gone };
        match &torrent.store {
            Store::Open(_) => {}
            Store::Failed => return Located::Gone,
            Store::Closed | Store::Opening => {
                self.need_files(torrent_key);
                return Located::Waits;
            }
        }
        if !torrent.swarm.bitfield().has(block.piece) {
            return Located::Lost;
        }
        if may_map && self.add_mapped(torrent_key, block, batch) {
            return Located::Mapped;
        }
        let mut parts = [None, None];
        for (place, chunk) in parts.iter_mut().zip(chunks_of(torrent_key.slot, block)) {
            match self.request_chunk(conn, torrent_key, chunk) {
                Some(data) => *place = Some((chunk, data)),
                None => return Located::Waits,
            }
        }
        if batch.parts_left() < 4 {
            return Located::Waits;
        }
        let _ = batch.push_bytes(&wire::block_header(block));
        let (mut begin, end) = (block.begin, block.begin + block.len);
        for (chunk, data) in parts.into_iter().flatten() {
            let offset = (begin - chunk.begin()) as usize;
            let len = (data.len() - offset).min((end - begin) as usize);
            let added = batch.push_lease(&Lease::Pooled(data), offset, len);
            debug_assert!(added.is_ok(), "chunks cover their blocks");
            begin += u32::try_from(len).unwrap_or(0);
        }
        Located::Read
    }

    /// Adds a block from mappings if all of it is mapped and resident.
    fn add_mapped(&mut self, torrent_key: Key, block: Block, batch: &mut Batch) -> bool {
        let Some(torrent) = self.torrents.get(torrent_key) else { return false };
        let Store::Open(open) = &torrent.store else { return false };
        let start = torrent.geometry().piece_start(block.piece) + u64::from(block.begin);
        let mut extent_count = 0;
        for extent in torrent.places(start, u64::from(block.len)) {
            let mapped = open.files.get(extent.file).and_then(Option::as_ref);
            if mapped.is_none_or(|file| file.lease.is_none()) {
                return false;
            }
            extent_count += 1;
        }
        if batch.parts_left() < extent_count + 1 {
            return false;
        }
        for chunk in chunks_of(torrent_key.slot, block) {
            if !self.residency.is_hot(self.now, chunk.number()) {
                if self.chunks.is_reading(chunk) || !torrent.is_resident(chunk) {
                    return false;
                }
                self.residency.set_hot(self.now, chunk.number());
            }
        }
        // Room was counted above, and ranges lie inside mappings by the layout.
        let _ = batch.push_bytes(&wire::block_header(block));
        for extent in torrent.places(start, u64::from(block.len)) {
            if let Some(lease) =
                open.files[extent.file].as_ref().and_then(|file| file.lease.as_ref())
            {
                let added = batch.push_lease(lease, to_usize(extent.offset), to_usize(extent.len));
                debug_assert!(added.is_ok(), "a file is mapped whole");
            }
        }
        true
    }

    /// Asks for the chunks of a block that will be sent later.
    fn read_ahead(&mut self, conn: Key, torrent_key: Key, block: Block) {
        let Some(torrent) = self.torrents.get(torrent_key) else { return };
        let is_ours = torrent.swarm.bitfield().has(block.piece);
        if !is_ours || !matches!(torrent.store, Store::Open(_)) {
            return;
        }
        for chunk in chunks_of(torrent_key.slot, block) {
            if self.chunks.ready(chunk).is_none()
                && !self.residency.is_hot(self.now, chunk.number())
            {
                self.request_chunk(conn, torrent_key, chunk);
            }
        }
    }

    /// The bytes of a chunk, or `None` while they are being read.
    fn request_chunk(
        &mut self,
        conn: Key,
        torrent_key: Key,
        chunk: ChunkKey,
    ) -> Option<Rc<Vec<u8>>> {
        let geometry = self.torrents.get(torrent_key)?.geometry();
        let len = chunk_len(geometry, chunk);
        match self.chunks.request(chunk, len, conn.slot) {
            Answer::Ready(data) => Some(data),
            Answer::Reading => None,
            Answer::Full => {
                if let Some(starved) = self.conns.get_mut(conn)
                    && !std::mem::replace(&mut starved.is_starved, true)
                {
                    self.starved.push_back(conn);
                }
                None
            }
            Answer::Read(buffer) => {
                let hot = self.torrents.get(torrent_key).is_some_and(|it| it.is_resident(chunk));
                let temperature = if hot { Temperature::Hot } else { Temperature::Cold };
                self.core.disk_reads[temperature].add(1);
                self.core.disk_read_bytes[temperature].add(len as u64);
                let read = ChunkRead { torrent: torrent_key, chunk, len, done: 0 };
                let read_key = self.reads.insert(read);
                self.continue_read(read_key, buffer);
                None
            }
        }
    }

    /// Reads the next extent of a chunk; ends the read when there is none.
    fn continue_read(&mut self, read_key: Key, mut buffer: Vec<u8>) {
        loop {
            let Some(read) = self.reads.get_mut(read_key) else { return };
            let (torrent_key, chunk, left) = (read.torrent, read.chunk, read.len - read.done);
            if self.torrents.get(torrent_key).is_none() {
                // Its chunks went with it; the key may be another torrent's by now.
                self.reads.remove(read_key);
                return;
            }
            if left == 0 {
                self.reads.remove(read_key);
                let waiters = self.chunks.finish(chunk, buffer);
                return self.wake_readers(&waiters);
            }
            let Some((torrent, open)) =
                self.torrents.get(torrent_key).and_then(|torrent| match &torrent.store {
                    Store::Open(open) => Some((torrent, open)),
                    _ => None,
                })
            else {
                self.reads.remove(read_key);
                let waiters = self.chunks.fail(chunk, buffer);
                return self.wake_readers(&waiters);
            };
            let geometry = torrent.geometry();
            let start =
                geometry.piece_start(chunk.piece) + u64::from(chunk.begin()) + read.done as u64;
            let Some(extent) = torrent.places(start, left as u64).next() else {
                // The layout covers every chunk: there is always a next extent.
                debug_assert!(false, "no extent at {start}");
                return;
            };
            let len = to_usize(extent.len);
            match open.files.get(extent.file).and_then(Option::as_ref) {
                None if !extent.padding => {
                    self.reads.remove(read_key);
                    let waiters = self.chunks.fail(chunk, buffer);
                    self.fail_absent(torrent_key, extent.file);
                    return self.wake_readers(&waiters);
                }
                None => {
                    // Padding: zeros that are on no disk.
                    buffer[read.done..read.done + len].fill(0);
                    read.done += len;
                }
                Some(file) => {
                    let (file, start) = (Rc::clone(&file.handle), read.done);
                    let op = Op::Read { file, offset: extent.offset, buffer, start, len };
                    return self.operate(Target::Read(read_key), op);
                }
            }
        }
    }

    pub(super) fn on_read(&mut self, tag: Tag, result: io::Result<usize>, buffer: Vec<u8>) {
        let Some(Target::Read(read_key)) = Target::of(tag) else { return };
        let Some(read) = self.reads.get_mut(read_key) else { return };
        let (torrent_key, chunk) = (read.torrent, read.chunk);
        let done = read.done;
        let error = match result {
            Ok(count) if count > 0 => {
                read.done += count;
                return self.continue_read(read_key, buffer);
            }
            Ok(_) => None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return self.continue_read(read_key, buffer);
            }
            Err(error) => Some(error),
        };
        self.reads.remove(read_key);
        let Some(torrent) = self.torrents.get(torrent_key) else { return };
        self.core.disk_errors[DiskOp::Read].add(1);
        let start = torrent.geometry().piece_start(chunk.piece) + u64::from(chunk.begin());
        let extent = torrent.places(start + done as u64, 1).next();
        let is_of_medium = error.as_ref().is_some_and(is_of_medium);
        let error = match (error, extent) {
            (Some(error), Some(extent)) => {
                Error::from_io("read", &torrent.path_of(extent.file), &error)
            }
            _ => unreadable(torrent, "a file ends before its data"),
        };
        let waiters = self.chunks.fail(chunk, buffer);
        if is_of_medium {
            self.lose_piece(torrent_key, chunk.piece, error);
        } else {
            self.fail_torrent(torrent_key, error);
        }
        self.wake_readers(&waiters);
    }

    fn wake_readers(&mut self, waiters: &[u32]) {
        for &slot in waiters {
            if let Some(key) = self.conns.key_at(slot) {
                self.touch_conn(key);
            }
        }
        self.wake_starved();
    }

    /// Memory for cold reads may be free: some of those that found none try again, in the order in
    /// which they came. Each one that gets on ends in a send or a read, which wakes the next.
    pub(super) fn wake_starved(&mut self) {
        let mut left = STARVED_WAKES_MAX;
        while left > 0
            && let Some(key) = self.starved.pop_front()
        {
            if let Some(conn) = self.conns.get_mut(key) {
                conn.is_starved = false;
                left -= 1;
                self.touch_conn(key);
            }
        }
    }

    /// Sends a connection's batch from where the last send ended.
    fn push_send(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(sending) = &conn.sending else { return };
        let left = sending.batch.len() - sending.sent;
        let zero_copy = conn.zero_copy != ZeroCopy::Off
            && left >= ZERO_COPY_LEN_MIN
            && conn.held_len + left <= ZERO_COPY_HELD_MAX;
        let op = Op::Send {
            socket: Rc::clone(&conn.socket),
            batch: Rc::clone(&sending.batch),
            from: sending.sent,
            zero_copy,
        };
        self.operate(Target::Send(key), op);
    }

    pub(super) fn on_sent(&mut self, tag: Tag, result: io::Result<usize>, held: bool) {
        let Some(Target::Send(key)) = Target::of(tag) else { return };
        let Some(conn) = self.conns.get_mut(key) else {
            self.count_last_send(key, &result, held);
            return self.wake_starved();
        };
        if held {
            let len = result.as_ref().map_or(0, |&count| count);
            conn.held.push_back(len);
            conn.held_len += len;
        }
        let Some(sending) = &mut conn.sending else { return };
        let count = match result {
            Ok(count) => count,
            Err(error) => {
                self.send_failed(key, &error);
                return self.wake_starved();
            }
        };
        let (payload, read) = sending.advance(count, self.now);
        let ended = sending.sent >= sending.batch.len();
        if ended && let Some(ended) = conn.sending.take() {
            let took = self.now.saturating_duration_since(ended.since);
            conn.send_len_max = next_send_len(conn.send_len_max, ended.batch.len(), took);
        }
        let is_peer = conn.phase.is_peer();
        count_sent(&self.core, payload, read, held);
        if payload > 0
            && let Some(peer) = conn.peer()
        {
            let (torrent_key, peer_key) = (peer.torrent, peer.key);
            if let Some(torrent) = self.torrents.get_mut(torrent_key) {
                torrent.swarm.handle_sent(self.now, peer_key, payload);
                self.touch_torrent(torrent_key);
            }
        }
        if ended {
            if !is_peer {
                // An exchange goes on when all of our part is out.
                self.receive(key);
            }
            self.touch_conn(key);
            self.wake_starved();
        } else {
            self.push_send(key);
        }
    }

    fn send_failed(&mut self, key: Key, error: &io::Error) {
        let close = |worker: &mut Self, reason| {
            // Nothing of it is under way any more.
            worker.conns.get_mut(key).map(|conn| conn.sending.take());
            worker.close(key, reason);
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => self.push_send(key),
            // Pages for zero-copy are limited per user: the same bytes go out as a copy.
            Some(libc::ENOMEM | libc::EOPNOTSUPP | libc::EINVAL)
                if self.conns.get(key).is_some_and(|conn| conn.zero_copy != ZeroCopy::Off) =>
            {
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.zero_copy = ZeroCopy::Off;
                }
                self.push_send(key);
            }
            // The kernel could not read the mapping: the file was truncated, or its disk failed.
            Some(libc::EFAULT) => {
                let torrent_key =
                    self.conns.get_mut(key).and_then(|conn| conn.peer()).map(|peer| peer.torrent);
                close(self, DisconnectReason::Storage);
                if let Some(torrent_key) = torrent_key {
                    self.fail_mapping(torrent_key);
                }
            }
            _ => close(self, DisconnectReason::Io),
        }
    }

    /// Finds out which file of a torrent cannot be read any more, and stops the torrent.
    fn fail_mapping(&mut self, torrent_key: Key) {
        let Some(torrent) = self.torrents.get(torrent_key) else { return };
        self.core.disk_errors[DiskOp::Map].add(1);
        let error = unreadable(torrent, "the kernel could not read a mapped file");
        self.fail_torrent(torrent_key, error);
    }

    pub(super) fn on_released(&mut self, tag: Tag, copied: bool) {
        let result = if copied { ZeroCopyResult::Copied } else { ZeroCopyResult::ZeroCopy };
        self.core.zc_notifications[result].add(1);
        let Some(Target::Send(key)) = Target::of(tag) else { return };
        self.wake_starved();
        let Some(conn) = self.conns.get_mut(key) else { return };
        // One per send that was held, and in their order: the peer acknowledges bytes in order.
        conn.held_len -= conn.held.pop_front().unwrap_or(0);
        conn.zero_copy = match conn.zero_copy {
            _ if copied => ZeroCopy::Off,
            ZeroCopy::Trying(left) if left > 1 => ZeroCopy::Trying(left - 1),
            ZeroCopy::Trying(_) => ZeroCopy::On,
            known => known,
        };
    }

    /// Closes a peer that takes nothing of what it is sent; otherwise looks again later.
    pub(super) fn on_stall_timer(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.is_stall_watched = false;
        let Some(sending) = &conn.sending else { return };
        let at = sending.moved_at + STALL_TIMEOUT;
        if at <= self.now {
            return self.close(key, DisconnectReason::Slow);
        }
        conn.is_stall_watched = true;
        self.timers.set(at, Timer::Stall(key));
    }
}

/// The next batch is what the peer drained per second, within bounds. A batch too short to show
/// that (a few messages) can only lengthen it.
fn next_send_len(before: usize, len: usize, took: Duration) -> usize {
    let nanos = took.as_nanos().max(1);
    let per_second = len as u128 * 1_000_000_000 / nanos;
    let drained = usize::try_from(per_second).unwrap_or(SEND_LEN_MAX);
    let least = if len < SEND_LEN_MIN { before } else { SEND_LEN_MIN };
    drained.clamp(least, SEND_LEN_MAX)
}

/// Why the files of a torrent cannot be read any more: one was truncated, or what `reason` says.
fn unreadable(torrent: &Torrent, reason: &str) -> Error {
    if let Store::Open(open) = &torrent.store {
        for (file, entry) in open.files.iter().zip(torrent.content.metainfo.layout.files()) {
            let Some(file) = file else { continue };
            let found = crate::sys::file::identity(std::os::fd::AsFd::as_fd(&*file.handle));
            if let Ok(found) = found
                && found.size < entry.len
            {
                let path = torrent.content.save_path.join(entry.path()).display().to_string();
                return Error::Truncated { path, expected: entry.len, found: found.size };
            }
        }
    }
    let path = torrent.content.save_path.display().to_string();
    Error::Io { action: "read", path, reason: reason.into() }
}

const _: () =
    assert!(2 * DUE_MAX + PARTS_RESERVE < BATCH_PARTS_MAX, "a full batch has room for its parts");
