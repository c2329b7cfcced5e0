//! Hashing pieces that were written as their blocks came.
//!
//! Whole pieces enter, and leave with a verdict for the swarm: they are read in steps, a few of
//! them at a time. A piece that turns out bad is read once more for the digests of its blocks, by
//! which the sender of a wrong one is found, and the verdict is that of the second reading.
//! Invariant: a piece is read only while none of its blocks is being written.

use std::io;
use std::rc::Rc;

use super::hash::ToHash;
use super::table::Key;
use super::torrent::Store;
use super::{Target, Worker};
use crate::metrics::{DiskOp, HashReason, Temperature};
use crate::ring::{Driver, Op};
use crate::storage::Error;
use crate::storage::pieces::Digest;
use crate::swarm::Verdict;
use crate::sys::map::{self, Residency};
use crate::sys::sha1::{self, Sha1};
use crate::sys::{clock, file};
use crate::units::{BLOCK_LEN, to_usize};

/// Pieces of a worker that are read at once.
pub(super) const CHECKS_MAX: usize = 2;

/// Bytes read and hashed at once: a third of a millisecond for the processor. Whole blocks.
pub(super) const CHECK_STEP_LEN: usize = 512 << 10;

/// A piece that is being read.
pub(super) struct Check {
    pub(super) entry: ToHash,
    /// Bytes of the piece that are hashed: whole steps.
    hashed: usize,
    /// Bytes of the step that are read.
    done: usize,
    stream: Sha1,
    blocks: Vec<Digest>,
    /// Its verdict is of no use any more; it stays until its read has ended.
    is_dead: bool,
}

impl<D: Driver> Worker<D> {
    /// Has a piece hashed that was written in place.
    pub(super) fn check_in_place(&mut self, entry: ToHash) {
        self.in_place.to_check.push_back(entry);
        self.start_checks();
    }

    /// Begins to read pieces whose writes have ended, as many as may be read at once.
    pub(super) fn start_checks(&mut self) {
        while self.in_place.checks.len() < CHECKS_MAX {
            let in_place = &mut self.in_place;
            let is_ready = |it: &ToHash| !in_place.is_writing(it.torrent, it.piece);
            let Some(at) = in_place.to_check.iter().position(is_ready) else { return };
            let Some(entry) = in_place.to_check.remove(at) else { return };
            let buffer = in_place.check_spares.take(CHECK_STEP_LEN);
            let key = in_place.checks.insert(Check {
                entry,
                hashed: 0,
                done: 0,
                stream: Sha1::new(),
                blocks: Vec::new(),
                is_dead: false,
            });
            self.continue_check(key, buffer);
        }
    }

    /// Forgets the pieces that `is_it`, if they wait for a verdict.
    pub(super) fn discard_checks(&mut self, is_it: impl Fn(&ToHash) -> bool) {
        self.in_place.to_check.retain(|entry| !is_it(entry));
        for key in self.in_place.checks.keys() {
            if let Some(check) = self.in_place.checks.get_mut(key) {
                check.is_dead |= is_it(&check.entry);
            }
        }
    }

    /// Reads on; hashes what was read of a step, and judges the piece after the last one.
    fn continue_check(&mut self, key: Key, mut buffer: Vec<u8>) {
        loop {
            let Some(check) = self.in_place.checks.get_mut(key) else { return };
            let (torrent_key, piece) = (check.entry.torrent, check.entry.piece);
            let torrent = self.torrents.get_mut(torrent_key);
            let Some(torrent) = torrent.filter(|_| !check.is_dead) else {
                return self.end_check(key, buffer);
            };
            let Store::Open(open) = &torrent.store else {
                // Files stay open as long as this takes, unless they fail: nothing comes of it.
                torrent.swarm.handle_verified(self.now, piece, Verdict::Unreadable);
                self.touch_torrent(torrent_key);
                return self.end_check(key, buffer);
            };
            let piece_len = torrent.geometry().piece_len(piece) as usize;
            let step_len = CHECK_STEP_LEN.min(piece_len - check.hashed);
            if check.done == step_len {
                let begun = clock::now();
                check.hash_step(&buffer[..step_len]);
                self.core.hash_seconds.add(clock::now() - begun);
                if check.hashed < piece_len {
                    continue;
                }
                if self.finish_check(key) {
                    return self.end_check(key, buffer);
                }
                continue;
            }
            let start = torrent.geometry().piece_start(piece) + (check.hashed + check.done) as u64;
            let left = (step_len - check.done) as u64;
            let Some(extent) = torrent.places(start, left).next() else {
                // The layout covers every piece: there is always a next extent.
                debug_assert!(false, "no extent at {start}");
                return;
            };
            let len = to_usize(extent.len);
            let Some(file) = open.files.get(extent.file).and_then(Option::as_ref) else {
                if !extent.padding {
                    torrent.swarm.handle_verified(self.now, piece, Verdict::Unreadable);
                    self.end_check(key, buffer);
                    return self.fail_absent(torrent_key, extent.file);
                }
                // Padding: zeros that are on no disk.
                buffer[check.done..check.done + len].fill(0);
                check.done += len;
                continue;
            };
            let fd = std::os::fd::AsFd::as_fd(&*file.handle);
            let hot = map::residency(fd, extent.offset, extent.len).is_ok_and(Residency::is_full);
            let temperature = if hot { Temperature::Hot } else { Temperature::Cold };
            self.core.disk_reads[temperature].add(1);
            self.core.disk_read_bytes[temperature].add(extent.len);
            let (file, start) = (Rc::clone(&file.handle), check.done);
            let op = Op::Read { file, offset: extent.offset, buffer, start, len };
            return self.operate(Target::Check(key), op);
        }
    }

    pub(super) fn on_check_read(&mut self, key: Key, result: io::Result<usize>, buffer: Vec<u8>) {
        let Some(check) = self.in_place.checks.get_mut(key) else { return };
        let error = match result {
            Ok(count) if count > 0 => {
                check.done += count;
                None
            }
            Ok(_) => Some(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => Some(error),
        };
        match error.filter(|_| !check.is_dead) {
            None => self.continue_check(key, buffer),
            Some(error) => {
                let entry = check.entry;
                let at = (check.hashed + check.done) as u64;
                self.end_check(key, buffer);
                self.fail_check(entry, at, &error);
            }
        }
        self.start_checks();
    }

    /// A piece cannot be read back: its torrent stops.
    fn fail_check(&mut self, entry: ToHash, at: u64, error: &io::Error) {
        self.core.disk_errors[DiskOp::Read].add(1);
        let Some(torrent) = self.torrents.get(entry.torrent) else { return };
        let start = torrent.geometry().piece_start(entry.piece) + at;
        let Some(extent) = torrent.places(start, 1).next() else { return };
        let path = torrent.path_of(extent.file);
        let found = match &torrent.store {
            Store::Open(open) => open.files.get(extent.file).and_then(Option::as_ref),
            _ => None,
        };
        let found = found
            .and_then(|found| file::identity(std::os::fd::AsFd::as_fd(&*found.handle)).ok())
            .zip(torrent.content.metainfo.layout.file(extent.file));
        let error = match found {
            Some((found, entry)) if found.size < entry.len => Error::Truncated {
                path: path.display().to_string(),
                expected: entry.len,
                found: found.size,
            },
            _ => Error::from_io("read", &path, error),
        };
        self.fail_torrent(entry.torrent, error);
    }

    /// All of a piece is hashed: judges it, or has it read again. Whether it is judged.
    fn finish_check(&mut self, key: Key) -> bool {
        let Some(check) = self.in_place.checks.get_mut(key) else { return true };
        let ToHash { torrent: torrent_key, piece, digests, .. } = check.entry;
        let Some(torrent) = self.torrents.get_mut(torrent_key) else { return true };
        let len = u64::from(torrent.geometry().piece_len(piece));
        self.core.hash_bytes[HashReason::Download].add(len);
        let digest = std::mem::take(&mut check.stream).finish();
        let good = torrent.content.metainfo.piece_hash(piece) == Some(&digest);
        if !good && !digests {
            check.entry.digests = true;
            check.hashed = 0;
            return false;
        }
        let blocks = std::mem::take(&mut check.blocks);
        let verdict = if good { Verdict::Good(blocks) } else { Verdict::Bad(blocks) };
        self.pronounce(torrent_key, piece, verdict);
        if good {
            self.piece_stored(torrent_key, piece);
        }
        true
    }

    fn end_check(&mut self, key: Key, buffer: Vec<u8>) {
        self.in_place.checks.remove(key);
        self.in_place.check_spares.give(buffer);
    }
}

impl Check {
    /// Takes the step that was read.
    fn hash_step(&mut self, bytes: &[u8]) {
        self.stream.update(bytes);
        if self.entry.digests {
            self.blocks.extend(bytes.chunks(BLOCK_LEN as usize).map(sha1::digest));
        }
        self.hashed += bytes.len();
        self.done = 0;
    }
}

const _: () = assert!(CHECK_STEP_LEN.is_multiple_of(BLOCK_LEN as usize), "blocks end in a step");
