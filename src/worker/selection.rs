//! A change of what is wanted of a torrent that is here.
//!
//! A selection enters, as the content that it is part of; what is fetched, where it goes and which
//! files are open follows. Peers stay. Invariant: a piece counts as ours only if all of its bytes
//! lie where the new selection looks for them. Of those at borders some may not: they are fetched
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Worker;
use super::mailbox::TorrentState;
use super::table::Key;
use super::torrent::Store;
use crate::ring::Driver;
use crate::storage::Content;
use crate::units::{Bitfield, InfoHash, PieceIndex};

impl<D: Driver> Worker<D> {
    /// Has `content`, which differs from what the torrent has in its selection only, take its place.
    pub(super) fn select(&mut self, info_hash: &InfoHash, content: Arc<Content>) {
        let Some(key) = self.torrent_key(info_hash) else { return };
        let torrent = self.torrents.get_mut(key).filter(|torrent| !torrent.has_failed());
        // One that failed is checked anew, with what is wanted then.
        let Some(torrent) = torrent else { return };
        let old = std::mem::replace(&mut torrent.content, content);
        let mut had_parts = Bitfield::none(torrent.in_files.len());
        old.pieces_with_parts().for_each(|piece| {
            had_parts.set(piece);
        });
        let have = torrent.swarm.bitfield();
        for piece in have.iter().filter(|&piece| !had_parts.has(piece)) {
            torrent.in_files.set(piece);
        }
        let borders = old.pieces_with_parts().chain(torrent.content.pieces_with_parts());
        let geometry = torrent.geometry();
        let moved: BTreeSet<_> = borders
            .filter(|&piece| {
                let (start, len) = (geometry.piece_start(piece), geometry.piece_len(piece));
                let places = |content: &Content| -> Vec<_> {
                    content.places(&torrent.in_files, start, u64::from(len)).collect()
                };
                places(&old) != places(&torrent.content)
            })
            .collect();
        moved.into_iter().for_each(|piece| self.forget_attempt(key, piece));
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        let wanted = torrent.content.wanted_pieces();
        torrent.swarm.set_wanted(self.now, wanted);
        (torrent.left, torrent.wanted_left) = torrent.content.left(torrent.swarm.bitfield());
        if torrent.fetches && !torrent.swarm.is_finished() {
            (torrent.finished, torrent.is_reported) = (false, false);
            torrent.totals.set_state(TorrentState::Downloading);
        }
        torrent.makes_files = torrent.fetches;
        torrent.publish(self.now);
        self.reopen(key);
        self.touch_torrent(key);
    }

    /// Forgets what there is of a piece, on the disk and on its way there.
    fn forget_attempt(&mut self, key: Key, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        if torrent.swarm.bitfield().has(piece) {
            return self.forget_piece(key, piece);
        }
        torrent.swarm.give_up(self.now, piece);
        let writes = self.piece_writes.keys().into_iter();
        let is_of_it = |it: &super::fetch::PieceWrite| it.is_of(key, piece);
        let of_it: Vec<_> =
            writes.filter(|&write| self.piece_writes.get(write).is_some_and(is_of_it)).collect();
        for write in of_it {
            // What the kernel is writing keeps its memory until it is done.
            self.piece_writes.remove(write);
        }
    }

    /// Has the files opened anew: others are wanted than before.
    fn reopen(&mut self, key: Key) {
        // What was written goes to the device by the hands that wrote it, as far as it is written.
        self.sync_torrent(key);
        let Some(torrent) = self.torrents.get_mut(key) else { return };
        match &torrent.store {
            Store::Opening => torrent.opens_again = true,
            Store::Open(open) => {
                // While we write to them they change by our own hand.
                torrent.known = if open.is_writable { Vec::new() } else { open.identities() };
                let lane = torrent.lane();
                let store = std::mem::replace(&mut torrent.store, Store::Closed);
                self.release_store(lane, store);
                self.need_files(key);
            }
            Store::Closed => self.need_files(key),
            Store::Failed => {}
        }
    }
}
