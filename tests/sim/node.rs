//! One member of a simulated swarm: a real [`Swarm`], a disk in memory, and its character.
//!
//! A character bends what leaves the node on its way to the wire; the state machine behind it is
//! always the product's own. Invariant: an honest node's bytes leave as its swarm said them.

use seedring::swarm::{BlockDigest, Offender, Shared, Swarm};
use seedring::units::{Bitfield, Block, PieceIndex};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// What kind of peer a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Character {
    Honest,
    /// Flips a byte in one of so many blocks.
    Corrupter(u32),
    /// Leaves out one of so many blocks.
    Withholder(u32),
    /// Says that it has everything, and sends no block.
    Liar,
    /// Chokes, unchokes and changes its interest all the time.
    Flapper,
    /// Sends rubbish: requests of all kinds, repeats, blocks that nobody asked for.
    Flooder,
    /// Flips bytes of the stream, one in so many.
    Mutator(u32),
}

impl Character {
    /// Whether its blocks may be wrong.
    pub(crate) fn may_lie_in_data(self) -> bool {
        matches!(self, Self::Corrupter(_) | Self::Mutator(_) | Self::Flooder)
    }
}

pub(crate) struct Node {
    pub(crate) swarm: Swarm,
    pub(crate) shared: std::rc::Rc<Shared>,
    pub(crate) character: Character,
    pub(crate) addr: SocketAddr,
    /// Pieces on disk.
    pub(crate) disk: BTreeMap<u32, Vec<u8>>,
    /// Pieces under way.
    pub(crate) buffers: BTreeMap<u32, Vec<u8>>,
    /// Which node sent each block of a piece under way.
    pub(crate) sources: BTreeMap<(u32, u32), usize>,
    /// Wrong blocks, by node, in pieces that failed.
    pub(crate) wrong: BTreeMap<usize, u32>,
    pub(crate) bans: Vec<Offender>,
    pub(crate) timer_serial: u64,
    pub(crate) slots: Option<u32>,
    /// Payload bytes stored, by node.
    pub(crate) got: BTreeMap<usize, u64>,
    /// Pieces that it wants or had at first, unless it wants all.
    pub(crate) may_have: Option<Bitfield>,
    pub(crate) finished_at_ms: Option<u64>,
}

impl Node {
    pub(crate) fn bans_ip(&self, ip: IpAddr) -> bool {
        self.bans.iter().any(|offender| match offender {
            Offender::Host(host) => *host == ip,
            Offender::Local(addr) => addr.ip() == ip,
        })
    }

    /// Takes the bytes of `block` into the buffer of its piece.
    pub(crate) fn store(&mut self, block: Block, data: &[u8], piece_len: u32, source: usize) {
        let buffer =
            self.buffers.entry(block.piece.0).or_insert_with(|| vec![0; piece_len as usize]);
        let begin = block.begin as usize;
        buffer[begin..begin + data.len()].copy_from_slice(data);
        self.sources.insert((block.piece.0, block.begin), source);
        *self.got.entry(source).or_default() += data.len() as u64;
    }

    pub(crate) fn discard(&mut self, piece: PieceIndex) {
        self.buffers.remove(&piece.0);
    }
}

/// Stands in for SHA-1: any function that tells blocks apart will do.
pub(crate) fn digest(data: &[u8]) -> BlockDigest {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in data.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    }
    let mut out = [0; 20];
    out[..8].copy_from_slice(&hash.to_le_bytes());
    out
}
