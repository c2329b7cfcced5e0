//! Messages to bytes.
//!
//! A [`Message`] enters and is appended to a buffer of the caller's; of a block only the header is
//! written, for its data is sent from where it lies. Invariant: what is written here is what the
//! decoder takes.
#![forbid(unsafe_code)]

use super::{Message, id};
use crate::units::{Block, PieceIndex};

/// Bytes that stand before the data of a block: length, id, index and begin.
pub const BLOCK_HEADER_LEN: usize = 13;

/// The header of a `piece` message (BEP 3, id 7); `block.len` bytes of data follow it on the wire.
pub fn block_header(block: Block) -> [u8; BLOCK_HEADER_LEN] {
    // Everything behind the prefix: id, index, begin and the data.
    let len = block.len.saturating_add(9);
    let mut header = [0; BLOCK_HEADER_LEN];
    header[..4].copy_from_slice(&len.to_be_bytes());
    header[4] = id::PIECE;
    header[5..9].copy_from_slice(&block.piece.0.to_be_bytes());
    header[9..].copy_from_slice(&block.begin.to_be_bytes());
    header
}

/// Appends `message` with its length prefix to `out`.
///
/// # Panics
/// If a bitfield or payload does not fit the 32-bit length, which none of ours comes near.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) {
    match *message {
        Message::KeepAlive => out.extend_from_slice(&[0; 4]),
        Message::Choke => state(out, id::CHOKE),
        Message::Unchoke => state(out, id::UNCHOKE),
        Message::Interested => state(out, id::INTERESTED),
        Message::NotInterested => state(out, id::NOT_INTERESTED),
        Message::Have(piece) => index(out, id::HAVE, piece),
        Message::Bitfield(bits) => body(out, id::BITFIELD, &[], bits),
        Message::Request(block) => range(out, id::REQUEST, block),
        Message::Cancel(block) => range(out, id::CANCEL, block),
        Message::Port(port) => body(out, id::PORT, &[], &port.to_be_bytes()),
        Message::Suggest(piece) => index(out, id::SUGGEST, piece),
        Message::HaveAll => state(out, id::HAVE_ALL),
        Message::HaveNone => state(out, id::HAVE_NONE),
        Message::Reject(block) => range(out, id::REJECT, block),
        Message::AllowedFast(piece) => index(out, id::ALLOWED_FAST, piece),
        Message::Extended { id, payload } => body(out, id::EXTENDED, &[id], payload),
    }
}

fn state(out: &mut Vec<u8>, id: u8) {
    out.extend_from_slice(&[0, 0, 0, 1, id]);
}

fn index(out: &mut Vec<u8>, id: u8, piece: PieceIndex) {
    let mut bytes = [0, 0, 0, 5, id, 0, 0, 0, 0];
    bytes[5..].copy_from_slice(&piece.0.to_be_bytes());
    out.extend_from_slice(&bytes);
}

fn range(out: &mut Vec<u8>, id: u8, block: Block) {
    let mut bytes = [0; 17];
    bytes[3..5].copy_from_slice(&[13, id]);
    bytes[5..9].copy_from_slice(&block.piece.0.to_be_bytes());
    bytes[9..13].copy_from_slice(&block.begin.to_be_bytes());
    bytes[13..].copy_from_slice(&block.len.to_be_bytes());
    out.extend_from_slice(&bytes);
}

fn body(out: &mut Vec<u8>, id: u8, head: &[u8], tail: &[u8]) {
    let len = u32::try_from(1 + head.len() + tail.len()).expect("a message of ours is short");
    out.extend_from_slice(&len.to_be_bytes());
    out.push(id);
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
}
