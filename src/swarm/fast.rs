//! The allowed-fast set: pieces that a peer may fetch although we choke it (BEP 6).
//!
//! An address and an info-hash enter, the same few pieces come out on every client that follows
//! the BEP. It is only offered where somebody may have to wait for a slot. Invariant: such pieces
//! are served no more than [`ALLOWED_FAST_REPEATS_MAX`] times their length while the peer is
//! choked.
#![forbid(unsafe_code)]

use super::Swarm;
use super::choker::Slots;
use super::options::{ALLOWED_FAST_MAX, ALLOWED_FAST_REPEATS_MAX};
use super::peer::Peer;
use crate::units::{Block, Geometry, InfoHash, PieceIndex};
use crate::wire::Message;
use sha1::{Digest, Sha1};
use std::net::{IpAddr, Ipv4Addr};

/// Hashes per set: far more than ten pieces ever take.
const ROUNDS_MAX: u32 = 64;

/// The canonical set of `len_max` pieces for the peer at `ip` (BEP 6, "Allowed Fast Set
/// Generation").
fn canonical_set(
    ip: Ipv4Addr,
    info_hash: InfoHash,
    piece_count: u32,
    len_max: usize,
) -> Vec<PieceIndex> {
    let mut set = Vec::new();
    let len = len_max.min(piece_count as usize);
    if len == 0 {
        return set;
    }
    let [a, b, c, _] = ip.octets();
    let mut seed: Vec<u8> = [a, b, c, 0].into_iter().chain(info_hash.0).collect();
    for _ in 0..ROUNDS_MAX {
        seed = Sha1::digest(&seed).to_vec();
        for word in seed.chunks_exact(4).take(5) {
            let word = word.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
            let piece = PieceIndex(word % piece_count);
            if set.len() < len && !set.contains(&piece) {
                set.push(piece);
            }
        }
        if set.len() == len {
            break;
        }
    }
    set
}

impl Swarm {
    /// Offers the set to a peer that may have to wait for a slot.
    pub(super) fn offer_fast_set(&self, peer: &mut Peer) {
        let waits =
            self.options.slots != Slots::Unlimited || self.shared.slots.get() != Slots::Unlimited;
        let IpAddr::V4(ip) = peer.addr.ip().to_canonical() else {
            return;
        };
        if !waits || !peer.fast || !self.have.is_complete() {
            return;
        }
        let pieces = self.geometry.piece_count();
        peer.fast_set = canonical_set(ip, self.options.info_hash, pieces, ALLOWED_FAST_MAX);
        for piece in peer.fast_set.clone() {
            peer.say(Message::AllowedFast(piece));
        }
    }
}

impl Peer {
    /// Whether `block` may be asked for although we choke the peer.
    pub(super) fn may_ask_choked(&self, block: Block, geometry: &Geometry) -> bool {
        let set_len: u64 =
            self.fast_set.iter().map(|&piece| u64::from(geometry.piece_len(piece))).sum();
        let waiting = self.queue.len() as u64 * u64::from(crate::units::BLOCK_LEN);
        self.fast_set.contains(&block.piece)
            && self.fast_sent + waiting + u64::from(block.len) <= set_len * ALLOWED_FAST_REPEATS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_those_of_the_bep() {
        let ip = Ipv4Addr::new(80, 4, 4, 200);
        let set = |len| canonical_set(ip, InfoHash([0xaa; 20]), 1313, len);
        let expected = [1059, 431, 808, 1217, 287, 376, 1188, 353, 508].map(PieceIndex);
        assert_eq!(set(7), expected[..7]);
        assert_eq!(set(9), expected);
    }

    #[test]
    fn small_torrents_end() {
        let set = canonical_set(Ipv4Addr::LOCALHOST, InfoHash([1; 20]), 3, ALLOWED_FAST_MAX);
        assert_eq!(set.len(), 3);
        assert!(canonical_set(Ipv4Addr::LOCALHOST, InfoHash([1; 20]), 0, 10).is_empty());
    }
}
