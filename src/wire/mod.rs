//! The peer wire protocol as values: bytes in, messages out, and back.
//!
//! Bytes of a connection enter [`Decoder`], messages and slices of block data leave it; messages
//! enter [`encode`] and bytes leave it. Invariant: a length is judged on the header, before
//! anything is buffered for it, and no more than [`CONTROL_LEN_MAX`] bytes are ever kept.
//!
//! BEP 3 (messages), BEP 6 (Fast extension), BEP 10 (extension protocol), BEP 5 (port).
#![forbid(unsafe_code)]

use crate::units::{Block, PieceIndex};

/// One message of the peer wire protocol, borrowed from the bytes it was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// A length of zero: nothing but a sign of life.
    KeepAlive,
    /// Id 0.
    Choke,
    /// Id 1.
    Unchoke,
    /// Id 2.
    Interested,
    /// Id 3.
    NotInterested,
    /// Id 4.
    Have(PieceIndex),
    /// Id 5, the wire form of a [`crate::units::Bitfield`].
    Bitfield(&'a [u8]),
    /// Id 6.
    Request(Block),
    /// Id 8.
    Cancel(Block),
    /// Id 9: the UDP port of the peer's DHT node (BEP 5).
    Port(u16),
    /// Id 13 (BEP 6).
    Suggest(PieceIndex),
    /// Id 14 (BEP 6).
    HaveAll,
    /// Id 15 (BEP 6).
    HaveNone,
    /// Id 16 (BEP 6).
    Reject(Block),
    /// Id 17 (BEP 6).
    AllowedFast(PieceIndex),
    /// Id 20 (BEP 10): the extended id and what follows it.
    Extended {
        /// 0 for the extension handshake, else an id that we gave out in ours.
        id: u8,
        /// The bytes behind the id.
        payload: &'a [u8],
    },
}
