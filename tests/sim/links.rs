//! Links: how connections of the world begin and end, and what travels on them.
//!
//! What a swarm puts on a link comes out of it later, cut anywhere, into the other one's decoder.
//! Invariant: an honest node never closes on another honest node for breaking a rule.

use crate::node::Character;
use crate::world::{Defect, End, Event, World};
use seedring::swarm::{Error, Payload, PeerInit, PeerKey};
use seedring::units::{BLOCK_LEN, Block, PeerId};
use seedring::wire::{Decoder, Incoming, Limits, Message};
use std::net::SocketAddr;

impl World {
    pub(crate) fn end_of(&self, node: usize, key: PeerKey) -> Option<usize> {
        self.ends.iter().position(|end| end.open && end.node == node && end.key == key)
    }

    pub(crate) fn dial(&mut self, from: usize, to: usize) {
        let now = self.now();
        let fails = self.now_ms < self.plan.faults_until_ms && self.rng.u32(..10) == 0;
        let to_addr = self.nodes[to].addr;
        if fails {
            self.nodes[from].swarm.handle_connect_failed(now, to_addr);
            return self.drain(from);
        }
        self.next_port = self.next_port.wrapping_add(1).max(1024);
        let from_addr = SocketAddr::new(self.nodes[from].addr.ip(), self.next_port);
        let fast = self.plan.fast && self.rng.u32(..4) > 0;
        let init = |addr, number: usize, outgoing| PeerInit {
            addr,
            peer_id: PeerId([u8::try_from(number + 1).unwrap(); 20]),
            fast,
            extensions: fast,
            dht: false,
            outgoing,
        };
        let ours = self.nodes[from].swarm.handle_connected(now, init(to_addr, to, true));
        let Ok(ours) = ours else {
            return self.drain(from);
        };
        match self.nodes[to].swarm.handle_connected(now, init(from_addr, from, false)) {
            Ok(theirs) => {
                self.link(from, ours, to, theirs);
                self.drain(from);
                self.drain(to);
            }
            Err(_) => {
                self.nodes[from].swarm.handle_disconnected(now, ours);
                self.drain(from);
                self.drain(to);
            }
        }
    }

    fn link(&mut self, from: usize, ours: PeerKey, to: usize, theirs: PeerKey) {
        let pieces = self.geometry.piece_count();
        let base = self.ends.len();
        let (slow, fast) = self.plan.rate;
        let (near, far) = self.plan.delay_ms;
        for (node, key, peer, other) in [(from, ours, to, base + 1), (to, theirs, from, base)] {
            self.serial += 1;
            self.ends.push(End {
                node,
                key,
                peer,
                other,
                serial: self.serial,
                open: true,
                busy_until: 0,
                wants: false,
                on_the_way: std::collections::VecDeque::new(),
                decoder: Some(Decoder::new(Limits::new(pieces))),
                arriving: None,
                rate: self.rng.u64(slow..=fast),
                delay_ms: self.rng.u64(near..=far),
            });
        }
    }

    /// The node ends a connection; the other side learns of it at once.
    pub(crate) fn closed(&mut self, number: usize, key: PeerKey, reason: Error) {
        let Some(end) = self.end_of(number, key) else {
            return;
        };
        let peer = self.ends[end].peer;
        let honest = |node: usize| self.nodes[node].character == Character::Honest;
        let harmless = matches!(
            reason,
            Error::NothingToTrade | Error::Replaced | Error::Inactive | Error::BlockStalled
        );
        if honest(number) && honest(peer) && !harmless {
            self.violation(format!("node {number} closed honest node {peer}: {reason}"));
        }
        self.cut(end);
    }

    pub(crate) fn cut(&mut self, end: usize) {
        let other = self.ends[end].other;
        let now = self.now();
        for end in [end, other] {
            self.ends[end].open = false;
            let (node, key) = (self.ends[end].node, self.ends[end].key);
            self.nodes[node].swarm.handle_disconnected(now, key);
        }
        for end in [end, other] {
            self.drain(self.ends[end].node);
        }
    }

    /// Puts on the wire what the swarm has for this end, unless it is busy.
    pub(crate) fn transmit(&mut self, end: usize) {
        if self.now_ms < self.ends[end].busy_until {
            if !std::mem::replace(&mut self.ends[end].wants, true) {
                let wait = self.ends[end].busy_until - self.now_ms;
                let serial = self.ends[end].serial;
                self.after(wait, Event::Ready { end, serial });
            }
            return;
        }
        self.ends[end].wants = false;
        let (number, key) = (self.ends[end].node, self.ends[end].key);
        let now = self.now();
        // About what the link takes in half a second, as a worker would keep it.
        let blocks_max = (self.ends[end].rate / 2 / u64::from(BLOCK_LEN)).clamp(1, 64);
        let budget = u64::from(BLOCK_LEN) * self.rng.u64(1..=blocks_max);
        let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
        let more =
            self.nodes[number].swarm.poll_transmit(now, key, budget, &mut bytes, &mut blocks);
        if self.plan.defect == Defect::NeverAsksForPiece0 {
            bytes = self.without_requests_for_0(&bytes);
        }
        let mut payload = 0;
        for block in blocks {
            self.put_block(end, block, &mut bytes);
            payload += u64::from(block.len);
        }
        if payload > 0 {
            self.nodes[number].swarm.handle_sent(now, key, payload);
            *self.served.entry((number, self.ends[end].peer)).or_default() += payload;
        }
        self.send(end, bytes, more);
    }

    fn send(&mut self, end: usize, mut bytes: Vec<u8>, more: bool) {
        let character = self.nodes[self.ends[end].node].character;
        if let Character::Mutator(of) = character {
            let strikes = self.rng.u32(..of) == 0 && !bytes.is_empty();
            if strikes {
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= self.rng.u8(1..);
            }
        }
        let one = &mut self.ends[end];
        let took = bytes.len() as u64 * 1000 / one.rate + 1;
        one.busy_until = self.now_ms + took;
        let (serial, delay) = (one.serial, one.delay_ms);
        if !bytes.is_empty() {
            one.on_the_way.push_back(bytes);
            self.after(took + delay, Event::Deliver { end, serial });
        }
        if more {
            self.ends[end].wants = true;
            self.after(took, Event::Ready { end, serial });
        }
    }

    /// Bytes come out of the link, cut anywhere.
    pub(crate) fn deliver(&mut self, end: usize) {
        let Some(bytes) = self.ends[end].on_the_way.pop_front() else {
            return;
        };
        let Some(mut decoder) = self.ends[end].decoder.take() else {
            return;
        };
        let mut rest = &bytes[..];
        let mut good = true;
        while !rest.is_empty() && good {
            let cut =
                if self.rng.u32(..4) == 0 { self.rng.usize(1..=rest.len()) } else { rest.len() };
            let (mut input, later) = rest.split_at(cut);
            rest = later;
            loop {
                match decoder.decode(&mut input) {
                    Ok(Some(incoming)) if self.ends[end].open => {
                        good = self.receive(end, incoming);
                        if !good {
                            break;
                        }
                    }
                    Ok(_) => break,
                    Err(_) => {
                        good = false;
                        break;
                    }
                }
            }
        }
        self.ends[end].decoder = Some(decoder);
        let other = self.ends[end].other;
        if !good && self.ends[end].open {
            self.cut(other);
        } else if self.ends[end].open {
            self.drain(self.ends[other].node);
        }
    }

    /// Whether a request for what is not there is answered all the same, by a defect.
    fn serves_blindly(&self, number: usize, key: PeerKey, block: Block) -> bool {
        let swarm = &self.nodes[number].swarm;
        self.plan.defect == Defect::ServesLacked
            && self.geometry.contains(block)
            && !swarm.bitfield().has(block.piece)
            && swarm.peer_stats(self.now(), key).is_some_and(|peer| !peer.am_choking)
    }

    /// One message or chunk reaches the swarm at the other end; false ends the connection.
    fn receive(&mut self, end: usize, incoming: Incoming<'_>) -> bool {
        let other = self.ends[end].other;
        let (number, key, source) =
            (self.ends[other].node, self.ends[other].key, self.ends[end].node);
        let now = self.now();
        let result = match incoming {
            Incoming::Message(Message::Request(block))
                if self.serves_blindly(number, key, block) =>
            {
                self.put_block(other, block, &mut Vec::new());
                Ok(())
            }
            Incoming::Message(message) => {
                self.nodes[number].swarm.handle_message(now, key, message)
            }
            Incoming::Payload { block, offset, data } => {
                let mut result = Ok(());
                // A header may come alone: then the first data has offset 0 as well.
                if offset == 0 && self.ends[end].arriving.is_none() {
                    let payload = self.nodes[number].swarm.handle_payload(now, key, block);
                    result = payload.map(|payload| {
                        let mut accepted = payload != Payload::Discard;
                        if payload == Payload::AcceptInPlace && self.rng.u32(..50) == 0 {
                            // No room for it just now.
                            self.nodes[number].swarm.handle_dropped(now, key, block);
                            accepted = false;
                        }
                        self.ends[end].arriving = Some((accepted, Vec::new()));
                    });
                }
                if let Some((accepted, buffer)) = &mut self.ends[end].arriving {
                    buffer.extend_from_slice(data);
                    if buffer.len() == block.len as usize {
                        let (accepted, buffer) = (*accepted, std::mem::take(buffer));
                        self.ends[end].arriving = None;
                        if accepted {
                            let piece_len = self.geometry.piece_len(block.piece);
                            self.nodes[number].store(block, &buffer, piece_len, source);
                            self.nodes[number].swarm.handle_block(now, key, block);
                        }
                    }
                }
                result
            }
        };
        let Err(error) = result else {
            return true;
        };
        let honest = |node: usize| self.nodes[node].character == Character::Honest;
        if honest(number) && honest(source) {
            self.violation(format!("node {number} closes honest node {source}: {error}"));
        }
        false
    }
}
