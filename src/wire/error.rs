//! Why a connection ends: everything a peer can say that the protocol does not allow.
//!
//! Values of the offending bytes enter, a sentence and a metric label leave. Invariant: no text
//! of the peer is echoed but by `bencode`, which cuts and escapes it.
#![forbid(unsafe_code)]

use super::CONTROL_LEN_MAX;
use crate::bencode;

/// A violation of the wire protocol; the connection it came from is closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The first 20 bytes are not BEP 3's.
    #[error("byte {at} of the handshake is not that of the BitTorrent protocol")]
    NotBitTorrent {
        /// Offset of the first wrong byte, 0 to 19.
        at: usize,
    },
    /// An id that no extension we offer defines.
    #[error("message id {id} (length {len}) is unknown")]
    UnknownMessage {
        /// The id.
        id: u8,
        /// The declared length, id included.
        len: u32,
    },
    /// Choke, unchoke, interested, not interested, have all or have none with a body.
    #[error("a message of id {id} has length {len} instead of 1")]
    StateLen {
        /// The id.
        id: u8,
        /// The declared length, id included.
        len: u32,
    },
    /// Have, suggest or allowed fast with anything but one index.
    #[error("a message of id {id} has length {len} instead of 5")]
    IndexLen {
        /// The id.
        id: u8,
        /// The declared length, id included.
        len: u32,
    },
    /// A bitfield that is not one bit for each piece.
    #[error("a bitfield has length {len} instead of {expected}")]
    BitfieldLen {
        /// The declared length, id included.
        len: u32,
        /// What the piece count of the torrent asks for.
        expected: u32,
    },
    /// Request, cancel or reject with anything but one range.
    #[error("a message of id {id} has length {len} instead of 13")]
    RangeLen {
        /// The id.
        id: u8,
        /// The declared length, id included.
        len: u32,
    },
    /// A block without data, or with more than we ever ask for.
    #[error("a block has length {len}, which is not 10 to {max}")]
    BlockLen {
        /// The declared length, with id, index and begin.
        len: u32,
        /// Greatest length that is taken.
        max: u32,
    },
    /// A port that is not two bytes.
    #[error("a port message has length {len} instead of 3")]
    PortLen {
        /// The declared length, id included.
        len: u32,
    },
    /// An extended message without an id, or above [`CONTROL_LEN_MAX`].
    #[error("an extended message has length {len}, which is not 2 to {CONTROL_LEN_MAX}")]
    ExtendedLen {
        /// The declared length, id included.
        len: u32,
    },
    /// An extension handshake that is not bencode, or more of it than is read.
    #[error("the extension handshake cannot be read: {0}")]
    ExtensionHandshake(bencode::Error),
    /// An extension handshake that is some other value than a dictionary.
    #[error("the extension handshake is not a dictionary")]
    ExtensionHandshakeForm,
    /// A message about metadata (BEP 9) that is not bencode.
    #[error("the ut_metadata message cannot be read: {0}")]
    Metadata(bencode::Error),
    /// A message about metadata without kind or block, or with too long a block.
    #[error("the ut_metadata message has no kind, no block, or more than 16 KiB of data")]
    MetadataForm,
    /// A message of peer exchange (BEP 11) that is not bencode.
    #[error("the ut_pex message cannot be read: {0}")]
    Pex(bencode::Error),
    /// A message of peer exchange that is no dictionary, or too long.
    #[error("the ut_pex message is not a dictionary, or is too long")]
    PexForm,
}

impl Error {
    /// The name of the violation in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotBitTorrent { .. } => "not_bittorrent",
            Self::UnknownMessage { .. } => "unknown_message",
            Self::StateLen { .. } => "state_len",
            Self::IndexLen { .. } => "index_len",
            Self::BitfieldLen { .. } => "bitfield_len",
            Self::RangeLen { .. } => "range_len",
            Self::BlockLen { .. } => "block_len",
            Self::PortLen { .. } => "port_len",
            Self::ExtendedLen { .. } => "extended_len",
            Self::ExtensionHandshake(_) => "extension_handshake",
            Self::ExtensionHandshakeForm => "extension_handshake_form",
            Self::Metadata(_) => "metadata",
            Self::MetadataForm => "metadata_form",
            Self::Pex(_) => "pex",
            Self::PexForm => "pex_form",
        }
    }
}
