//! What goes wrong in the world: faults that are nobody's, and what bad characters do.
//!
//! A node's character bends what its swarm wants sent, or sends of its own. Invariant: an honest
//! node's blocks leave as they are, and only if they are on its disk.

use crate::node::Character;
use crate::world::{Event, World};
use seedring::units::{BLOCK_LEN, Block, PieceIndex};
use seedring::wire::{Decoder, Incoming, Limits, Message, block_header, encode};

impl World {
    /// Appends a block as the node's character sends it.
    pub(crate) fn put_block(&mut self, end: usize, block: Block, bytes: &mut Vec<u8>) {
        let number = self.ends[end].node;
        let character = self.nodes[number].character;
        let honest = character == Character::Honest;
        if honest && !self.nodes[number].disk.contains_key(&block.piece.0) {
            self.violation(format!("S1: node {number} serves {block:?} without having it"));
            return;
        }
        match character {
            Character::Liar => return,
            Character::Withholder(of) if self.rng.u32(..of) == 0 => return,
            _ => {}
        }
        let Some(piece) = self.nodes[number].disk.get(&block.piece.0) else {
            return;
        };
        bytes.extend_from_slice(&block_header(block));
        let start = bytes.len();
        let range = block.begin as usize..(block.begin + block.len) as usize;
        bytes.extend_from_slice(&piece[range]);
        if let Character::Corrupter(of) = character
            && self.rng.u32(..of) == 0
        {
            let at = self.rng.usize(start..bytes.len());
            bytes[at] ^= self.rng.u8(1..);
        }
    }

    pub(crate) fn without_requests_for_0(&self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::new();
        let mut decoder = Decoder::new(Limits::new(self.geometry.piece_count()));
        decoder
            .decode_all(bytes, |incoming| match incoming {
                Incoming::Message(Message::Request(block)) if block.piece == PieceIndex(0) => {}
                Incoming::Message(message) => encode(&message, &mut kept),
                Incoming::Payload { .. } => {}
            })
            .unwrap();
        kept
    }

    /// Something goes wrong that is nobody's fault.
    pub(crate) fn fault(&mut self) {
        let now = self.now();
        match self.rng.u32(..4) {
            0 | 1 => {
                let open: Vec<usize> =
                    (0..self.ends.len()).filter(|&end| self.ends[end].open).collect();
                if !open.is_empty() {
                    let end = open[self.rng.usize(..open.len())];
                    self.cut(end);
                }
            }
            2 => {
                let node = self.rng.usize(self.plan.seeds..self.nodes.len());
                let pieces: Vec<u32> = self.nodes[node].disk.keys().copied().collect();
                if self.nodes[node].character == Character::Honest && !pieces.is_empty() {
                    let piece = pieces[self.rng.usize(..pieces.len())];
                    self.nodes[node].disk.remove(&piece);
                    self.nodes[node].swarm.handle_lost(now, PieceIndex(piece));
                    self.drain(node);
                }
            }
            _ => {}
        }
        let wait = self.rng.u64(200..3000);
        if self.now_ms + wait < self.plan.faults_until_ms {
            self.after(wait, Event::Fault);
        }
    }

    /// What flappers and flooders do of their own accord.
    pub(crate) fn mischief(&mut self, number: usize) {
        let ends: Vec<usize> = (0..self.ends.len())
            .filter(|&end| self.ends[end].open && self.ends[end].node == number)
            .collect();
        for end in ends {
            let mut bytes = Vec::new();
            match self.nodes[number].character {
                Character::Flapper => {
                    for message in [Message::Choke, Message::Unchoke, Message::Interested] {
                        if self.rng.bool() {
                            encode(&message, &mut bytes);
                        }
                    }
                    encode(&Message::NotInterested, &mut bytes);
                }
                Character::Flooder => {
                    // Whoever is not unchoked is refused before anybody looks at what it asks for.
                    encode(&Message::Interested, &mut bytes);
                    self.rubbish(&mut bytes);
                }
                _ => {}
            }
            if !bytes.is_empty() {
                let serial = self.ends[end].serial;
                // Between two batches, so that no message of the swarm's own is torn.
                self.ends[end].on_the_way.push_back(bytes);
                let wait = self.ends[end].busy_until.saturating_sub(self.now_ms) + 1;
                let delay = self.ends[end].delay_ms;
                self.after(wait + delay, Event::Deliver { end, serial });
            }
        }
        let wait = self.rng.u64(5..1500);
        self.after(wait, Event::Mischief { node: number });
    }

    fn rubbish(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.rng.u32(1..40) {
            let pieces = self.geometry.piece_count();
            let beyond = u32::from(self.rng.u32(..50) == 0);
            let piece = PieceIndex(self.rng.u32(..pieces + beyond));
            let block = Block {
                piece,
                begin: self.rng.u32(..4) * BLOCK_LEN,
                len: if self.rng.u32(..4) == 0 { self.rng.u32(..) } else { BLOCK_LEN },
            };
            match self.rng.u32(..9) {
                0 => encode(&Message::Request(block), bytes),
                1 => encode(&Message::Cancel(block), bytes),
                2 => encode(&Message::Reject(block), bytes),
                3 => encode(&Message::Have(piece), bytes),
                4 => encode(&Message::AllowedFast(piece), bytes),
                5 => encode(&Message::Suggest(piece), bytes),
                6 => encode(&Message::KeepAlive, bytes),
                7 => encode(&Message::Extended { id: 7, payload: &[0; 9] }, bytes),
                _ => {
                    let block = Block { len: 64, ..block };
                    bytes.extend_from_slice(&block_header(block));
                    bytes.extend_from_slice(&[7; 64]);
                }
            }
        }
    }
}
