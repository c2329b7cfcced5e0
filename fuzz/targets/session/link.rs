//! The wire between a live swarm and its peers.
//!
//! Bytes of peers are decoded as a server decodes them; what the swarm says is decoded, too, and
//! judged: nothing may leave that the other side did not agree to or that is not so.

use seedring::swarm::{CONTROL_LEN_MAX, Error, Offender, Payload, PeerInit, PeerKey};
use seedring::units::{BLOCK_LEN, Block, Geometry, PieceIndex};
use seedring::wire::{
    BLOCK_HEADER_LEN, Decoder, EXTENSION_HANDSHAKE_ID, ExtensionHandshake, Incoming, Limits,
    Message, PEX_NAME, block_header, encode,
};

use super::{Session, truth};
use crate::targets::Input;

/// Payload that one transmission may hold.
const BUDGET: u64 = 128 << 10;

/// A connection.
pub(super) struct Link {
    pub(super) key: PeerKey,
    init: PeerInit,
    /// Of what the peer says, and of what it is told.
    decoder: Decoder,
    told: Decoder,
    /// Blocks that the swarm asked for and that did not come.
    pub(super) asked: Vec<Block>,
    /// What becomes of the block that is on its way, and what has come of it.
    incoming: Option<(Payload, Vec<u8>)>,
    /// Whether it takes what it is sent.
    pub(super) reads: bool,
}

impl Link {
    pub(super) fn new(key: PeerKey, init: PeerInit, geometry: &Geometry) -> Self {
        let decoder = Decoder::new(Limits::new(geometry.piece_count()));
        let (told, asked) = (decoder.clone(), Vec::new());
        Self { key, init, decoder, told, asked, incoming: None, reads: true }
    }
}

impl Session {
    /// The peer sends bytes.
    pub(super) fn hear(&mut self, slot: usize, mut bytes: &[u8]) {
        while let Some(mut link) = self.links[slot].take() {
            // The decoder is out of the link while its message is handled.
            let decoded = match link.decoder.decode(&mut bytes) {
                Ok(None) => {
                    self.links[slot] = Some(link);
                    return;
                }
                Ok(Some(Incoming::Message(message))) => {
                    self.swarm.handle_message(self.now, link.key, message)
                }
                Ok(Some(Incoming::Payload { block, offset, data })) => {
                    let arrived = (block, offset, data);
                    self.take(link.key, &link.init, &mut link.incoming, &mut link.asked, arrived)
                }
                Err(_) => Err(Error::BadHandshake),
            };
            self.links[slot] = Some(link);
            self.judge(slot, decoded);
            self.drain();
        }
    }

    /// Some of a block.
    fn take(
        &mut self,
        key: PeerKey,
        init: &PeerInit,
        incoming: &mut Option<(Payload, Vec<u8>)>,
        asked: &mut Vec<Block>,
        (block, offset, data): (Block, u32, &[u8]),
    ) -> Result<(), Error> {
        if offset == 0 {
            asked.retain(|&other| other != block);
            let payload = self.swarm.handle_payload(self.now, key, block)?;
            if payload != Payload::Discard {
                assert!(self.geometry.is_aligned(block), "{block:?} was never asked for");
                let is_in_place = payload == Payload::AcceptInPlace;
                assert_eq!(self.swarm.is_in_place(block.piece), is_in_place);
                assert!(self.swarm.awaits(key, block));
            }
            *incoming = Some((payload, Vec::new()));
        }
        let Some((payload, bytes)) = incoming else { return Ok(()) };
        bytes.extend_from_slice(data);
        if bytes.len() < block.len as usize {
            return Ok(());
        }
        let (payload, bytes) = (*payload, std::mem::take(bytes));
        *incoming = None;
        if payload == Payload::Discard {
            return Ok(());
        }
        if self.swarm.is_discarding(block.piece) {
            self.swarm.handle_dropped(self.now, key, block);
        } else if self.swarm.handle_block(self.now, key, block) {
            if bytes != truth(&self.geometry, block.piece, block.begin, block.len) {
                self.liars.insert(Offender::of(init.addr));
            }
            let len = self.geometry.piece_len(block.piece) as usize;
            let buffer = self.buffers.entry(block.piece).or_insert_with(|| vec![0; len]);
            buffer[block.begin as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// The peer says something well-formed, about pieces that exist more often than not.
    pub(super) fn say(&mut self, slot: usize, input: &mut Input<'_>) {
        let (kind, piece, place) = (input.byte(), input.byte(), input.byte());
        let count = self.geometry.piece_count();
        let piece = PieceIndex(u32::from(piece) % (count + 1));
        let begin = u32::from(place >> 2) * (BLOCK_LEN / 2);
        let len = [BLOCK_LEN, BLOCK_LEN / 2, 1, 2 * BLOCK_LEN][usize::from(place & 3)];
        let left = self.geometry.piece_len(piece).saturating_sub(begin);
        // The last block of a piece is a short one.
        let len = if place & 3 == 0 { len.min(left) } else { len };
        let block = Block { piece, begin, len };
        let bits = input.take(count.div_ceil(8) as usize);
        let message = match kind % 16 {
            0 => Message::KeepAlive,
            1 => Message::Choke,
            2 => Message::Unchoke,
            3 => Message::Interested,
            4 => Message::NotInterested,
            5 => Message::Have(piece),
            6 => Message::Bitfield(bits),
            7 => Message::Cancel(block),
            8 => Message::Suggest(piece),
            9 => Message::HaveAll,
            10 => Message::HaveNone,
            11 => Message::Reject(self.asked_of(slot, place).unwrap_or(block)),
            12 => Message::AllowedFast(piece),
            _ => Message::Request(block),
        };
        let mut bytes = Vec::new();
        encode(&message, &mut bytes);
        // A flood is more than one.
        let repeats = if kind >= 0xf0 { 64 } else { 1 };
        for _ in 0..repeats {
            self.hear(slot, &bytes);
        }
    }

    fn asked_of(&self, slot: usize, index: u8) -> Option<Block> {
        let link = self.links[slot].as_ref()?;
        link.asked.get(usize::from(index) % link.asked.len().max(1)).copied()
    }

    /// The peer sends blocks that it was asked for; wrong ones where a bit of `damage` says so.
    pub(super) fn deliver(&mut self, slot: usize, count: usize, damage: u8) {
        for index in 0..count {
            let Some(block) = self.asked_of(slot, 0) else { return };
            let mut bytes = block_header(block).to_vec();
            bytes.extend(truth(&self.geometry, block.piece, block.begin, block.len));
            if damage >> (index % 8) & 1 == 1 {
                bytes[BLOCK_HEADER_LEN] ^= 1;
            }
            self.hear(slot, &bytes);
        }
    }

    /// Fetches what there is for the peer, and judges it.
    pub(super) fn transmit(&mut self, slot: usize) {
        let Some(link) = self.links[slot].as_mut().filter(|link| link.reads) else { return };
        for _ in 0..64 {
            let (mut control, mut blocks) = (Vec::new(), Vec::new());
            let more =
                self.swarm.poll_transmit(self.now, link.key, BUDGET, &mut control, &mut blocks);
            assert!(control.len() <= CONTROL_LEN_MAX + (128 << 10), "{} bytes", control.len());
            let mut len = 0;
            for block in blocks {
                assert!(self.geometry.contains(block) && block.len <= BLOCK_LEN, "{block:?}");
                assert!(self.disk.has(block.piece), "{block:?} is not on disk");
                len += u64::from(block.len);
            }
            assert!(len <= BUDGET);
            self.swarm.handle_sent(self.now, link.key, len);
            let (fast, extensions) = (link.init.fast, link.init.extensions);
            let asked = &mut link.asked;
            let decoded = link.told.decode_all(&control, |incoming| {
                let Incoming::Message(message) = incoming else { panic!("data among messages") };
                match message {
                    Message::Request(block) => {
                        assert!(self.geometry.is_aligned(block), "{block:?}");
                        assert!(!self.disk.has(block.piece), "{block:?} is on disk");
                        if !asked.contains(&block) {
                            asked.push(block);
                        }
                    }
                    Message::Cancel(block) => asked.retain(|&other| other != block),
                    Message::Have(piece) => assert!(self.ever.has(piece), "{piece} never was"),
                    Message::HaveAll => assert!(fast && self.ever.is_complete()),
                    Message::HaveNone | Message::Reject(_) | Message::AllowedFast(_) => {
                        assert!(fast, "{message:?}");
                    }
                    Message::Extended { id: EXTENSION_HANDSHAKE_ID, payload } => {
                        assert!(extensions, "{message:?}");
                        let ours = ExtensionHandshake::parse(payload).unwrap();
                        let offers = ours.id_of(PEX_NAME).is_some_and(|id| id != 0);
                        assert!(self.exchanges || !offers);
                    }
                    Message::Extended { .. } => assert!(extensions, "{message:?}"),
                    _ => {}
                }
            });
            assert_eq!(decoded, Ok(()));
            assert!(!link.told.is_mid_message());
            if !more {
                return;
            }
        }
    }
}
