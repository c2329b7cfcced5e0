//! Messages of `ut_metadata` (BEP 9): the `info` dictionary of a torrent, 16 KiB at a time.
//!
//! The payload of an extended message enters, a [`MetadataMessage`] leaves, and back. Invariant: no
//! message carries more than [`METADATA_BLOCK_LEN`] bytes of metadata, and no length that a peer
//! states is allocated.
#![forbid(unsafe_code)]

use super::{Error, Message, encode};
use crate::bencode::{Document, Encoder, Limits};

/// The name of the extension in handshakes.
pub const METADATA_NAME: &[u8] = b"ut_metadata";

/// Bytes of every block of metadata but the last one.
pub const METADATA_BLOCK_LEN: u32 = 16 * 1024;

/// Longest metadata in bytes.
pub const METADATA_LEN_MAX: u32 = 8 << 20;

/// One message about metadata. Blocks are counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetadataMessage<'a> {
    /// Asks for a block.
    Request {
        /// Its index.
        block: u32,
    },
    /// Brings a block.
    Data {
        /// Its index.
        block: u32,
        /// Length of the whole metadata in bytes, where the peer says it.
        total_len: Option<u32>,
        /// The bytes, at most [`METADATA_BLOCK_LEN`].
        data: &'a [u8],
    },
    /// Refuses a block.
    Reject {
        /// Its index.
        block: u32,
    },
}

impl<'a> MetadataMessage<'a> {
    /// Reads a payload; `None` for a kind of message that BEP 9 does not know and has ignored.
    ///
    /// # Errors
    /// [`Error::Metadata`] or [`Error::MetadataForm`].
    pub fn parse(payload: &'a [u8]) -> Result<Option<Self>, Error> {
        let (document, len) = Document::parse_prefix(payload, &Limits::EXTENSION_HANDSHAKE)
            .map_err(Error::Metadata)?;
        let root = document.root();
        let int = |key: &[u8]| root.get(key).and_then(|value| value.as_int());
        let kind = int(b"msg_type").ok_or(Error::MetadataForm)?;
        let block = int(b"piece").and_then(|block| u32::try_from(block).ok());
        let block = block.ok_or(Error::MetadataForm)?;
        let data = payload.get(len..).unwrap_or_default();
        Ok(match kind {
            0 => Some(Self::Request { block }),
            1 if data.len() > METADATA_BLOCK_LEN as usize => return Err(Error::MetadataForm),
            1 => {
                let total_len = int(b"total_size").and_then(|len| u32::try_from(len).ok());
                Some(Self::Data { block, total_len, data })
            }
            2 => Some(Self::Reject { block }),
            _ => None,
        })
    }

    /// Appends the extended message with this `id`, the peer's own for the extension, to `out`.
    pub fn encode(&self, id: u8, out: &mut Vec<u8>) {
        let (kind, block, total_len, data) = match *self {
            Self::Request { block } => (0, block, None, &[][..]),
            Self::Data { block, total_len, data } => (1, block, total_len, data),
            Self::Reject { block } => (2, block, None, &[][..]),
        };
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            dict.int(b"msg_type", kind).int(b"piece", block.into());
            if let Some(len) = total_len {
                dict.int(b"total_size", len.into());
            }
        });
        let mut payload = encoder.finish();
        payload.extend_from_slice(data);
        encode(&Message::Extended { id, payload: &payload }, out);
    }
}

/// Blocks of a metadata of `len` bytes.
pub fn metadata_block_count(len: u32) -> u32 {
    len.div_ceil(METADATA_BLOCK_LEN)
}

/// Where block `block` of a metadata of `len` bytes begins and how long it is; `None` behind its
/// end.
pub fn metadata_block(len: u32, block: u32) -> Option<(u32, u32)> {
    let start = block.checked_mul(METADATA_BLOCK_LEN).filter(|&start| start < len)?;
    Some((start, METADATA_BLOCK_LEN.min(len - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: MetadataMessage<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(3, &mut out);
        assert_eq!(out[4..6], [20, 3]);
        out.split_off(6)
    }

    #[test]
    fn messages_are_those_of_the_bep() {
        let data = MetadataMessage::Data { block: 0, total_len: Some(34_256), data: b"xxxxxxxx" };
        let table = [
            (MetadataMessage::Request { block: 0 }, &b"d8:msg_typei0e5:piecei0ee"[..]),
            (data, b"d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxxxxxx"),
            (MetadataMessage::Reject { block: 7 }, b"d8:msg_typei2e5:piecei7ee"),
        ];
        for (message, bytes) in table {
            assert_eq!(encoded(message), bytes);
            assert_eq!(MetadataMessage::parse(bytes), Ok(Some(message)));
        }
    }

    #[test]
    fn nonsense_is_refused_and_the_unknown_passed_over() {
        for payload in [
            &b""[..],
            b"i1e",
            b"de",
            b"d8:msg_typei0ee",
            b"d5:piecei0ee",
            b"d8:msg_typei0e5:piecei-1ee",
            b"d8:msg_typei0e5:piecei4294967296ee",
            b"d8:msg_type1:x5:piecei0ee",
        ] {
            assert!(MetadataMessage::parse(payload).is_err(), "{}", payload.escape_ascii());
        }
        assert_eq!(MetadataMessage::parse(b"d8:msg_typei9e5:piecei0ee"), Ok(None));
        let head = b"d8:msg_typei1e5:piecei0e10:total_sizei-5ee";
        let most = [&head[..], &[0; METADATA_BLOCK_LEN as usize]].concat();
        let parsed = MetadataMessage::parse(&most).unwrap();
        assert!(matches!(parsed, Some(MetadataMessage::Data { total_len: None, .. })));
        let more = [&most[..], &[0]].concat();
        assert_eq!(MetadataMessage::parse(&more), Err(Error::MetadataForm));
    }

    #[test]
    fn blocks_cover_the_metadata() {
        assert_eq!(metadata_block_count(16_385), 2);
        assert_eq!(metadata_block(16_385, 0), Some((0, 16_384)));
        assert_eq!(metadata_block(16_385, 1), Some((16_384, 1)));
        assert_eq!(metadata_block(16_384, 1), None);
        assert_eq!(metadata_block(METADATA_LEN_MAX, u32::MAX), None);
    }
}
