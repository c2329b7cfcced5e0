//! The peer wire protocol as values: bytes in, messages out, and back.
//!
//! Bytes of a connection enter a [`HandshakeReader`] and then a [`Decoder`]; a [`Handshake`],
//! messages and slices of block data leave them. Messages enter [`encode`] and bytes leave it.
//! Invariant: a length is judged on the header, before anything is buffered for it, and no more
//! than one extended message ([`CONTROL_LEN_MAX`]) or one bitfield is ever kept.
//!
//! This room judges form; whether an index or a range means anything in a torrent is the swarm's
//! to say. BEP 3 (messages), BEP 6 (Fast extension), BEP 10 (extension protocol), BEP 5 (port).
#![forbid(unsafe_code)]

mod decoder;
mod encoder;
mod error;
mod extension;
mod handshake;
mod metadata;
mod pex;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Incoming, Limits, PROGRESS_LEN_MIN, Progress};
pub use encoder::{BLOCK_HEADER_LEN, block_header, encode};
pub use error::Error;
pub use extension::{
    CLIENT_LEN_MAX, EXTENSION_COUNT_MAX, EXTENSION_HANDSHAKE_ID, ExtensionHandshake, REQQ_ABSENT,
    REQQ_MAX, encode_extension_handshake,
};
pub use handshake::{Handshake, HandshakeReader};
pub use metadata::{
    METADATA_BLOCK_LEN, METADATA_LEN_MAX, METADATA_NAME, MetadataMessage, metadata_block,
    metadata_block_count,
};
pub use pex::{PEX_LEN_MAX, PEX_NAME, PEX_PEERS_MAX, PexMessage, pex_flags};

use crate::units::{Block, PieceIndex};

/// Greatest length that an extended message may declare: its two ids and its payload, in bytes.
pub const CONTROL_LEN_MAX: u32 = 64 * 1024;

/// The ids of messages as they stand on the wire.
mod id {
    pub(super) const CHOKE: u8 = 0;
    pub(super) const UNCHOKE: u8 = 1;
    pub(super) const INTERESTED: u8 = 2;
    pub(super) const NOT_INTERESTED: u8 = 3;
    pub(super) const HAVE: u8 = 4;
    pub(super) const BITFIELD: u8 = 5;
    pub(super) const REQUEST: u8 = 6;
    pub(super) const PIECE: u8 = 7;
    pub(super) const CANCEL: u8 = 8;
    pub(super) const PORT: u8 = 9;
    pub(super) const SUGGEST: u8 = 13;
    pub(super) const HAVE_ALL: u8 = 14;
    pub(super) const HAVE_NONE: u8 = 15;
    pub(super) const REJECT: u8 = 16;
    pub(super) const ALLOWED_FAST: u8 = 17;
    pub(super) const EXTENDED: u8 = 20;
}

/// One message of the peer wire protocol, borrowed from the bytes it was read from.
///
/// Id 7, the data of a block, is not among them: it is streamed ([`Incoming::Payload`]) when it
/// arrives, and sent as a [`block_header`] with the data behind it.
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
