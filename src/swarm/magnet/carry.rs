//! From the peers of a magnet link to the swarm of its torrent.
//!
//! Connections and what their peers said enter; a swarm, and what became of each connection, leave.
//! Invariant: what was said before the torrent's size was known is judged exactly as if it came
//! now, and no peer is told what it was told before.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::time::Instant;

use super::{MagnetSwarm, Peer};
use crate::swarm::options::ADOPTED_HAVES_MAX;
use crate::swarm::{Error, Options, PeerKey, Swarm};
use crate::units::{Bitfield, Geometry};
use crate::wire::{Decoder, Incoming, Limits, Message, encode};

/// A connection that a swarm takes over: its key in the [`MagnetSwarm`], and its key in the swarm or
/// why it has to be closed.
pub type Carried = (PeerKey, Result<PeerKey, Error>);

impl MagnetSwarm {
    /// Makes the swarm of the torrent whose metadata came. Bytes for a peer that were not polled yet
    /// go with it. The caller gives each connection its new key and its decoder the number of
    /// pieces ([`Decoder::set_piece_count`]), or closes it, and polls the swarm's actions only then.
    pub fn into_swarm(
        mut self,
        now: Instant,
        geometry: Geometry,
        have: Bitfield,
        options: Options,
    ) -> (Swarm, Vec<Carried>) {
        let mut swarm = Swarm::new(geometry, have, options, Rc::clone(&self.shared));
        swarm.contacts = std::mem::take(&mut self.contacts);
        let mut carried = Vec::new();
        for key in self.keys() {
            let Some(peer) = self.peers.try_remove(key.0 as usize) else { continue };
            let addr = peer.init.addr;
            self.shared.unseat(peer.source);
            let taken = swarm.adopt(now, peer);
            if taken.is_err() {
                swarm.contacts.failed(now, addr);
            }
            carried.push((key, taken));
        }
        if swarm.options.private {
            swarm.contacts.forget_strangers();
        }
        swarm.connect_due(now);
        (swarm, carried)
    }
}

impl Swarm {
    /// Takes over a peer of a magnet link.
    fn adopt(&mut self, now: Instant, peer: Peer) -> Result<PeerKey, Error> {
        let Peer { init, control, said, choking, interested, closing, .. } = peer;
        // It was told that we have nothing; single words can mend that, but not any number of them.
        let Some(mut said) = said.filter(|_| !closing && self.have.count() <= ADOPTED_HAVES_MAX)
        else {
            return Err(Error::Forgotten);
        };
        if init.outgoing && !self.expects(init.addr) {
            return Err(Error::Private);
        }
        let key = self.adopt_connection(now, init, control).map_err(|_| Error::Forgotten)?;
        if !choking {
            encode(&Message::Unchoke, &mut said);
        }
        if interested {
            encode(&Message::Interested, &mut said);
        }
        let mut judged = Ok(());
        let mut decoder = Decoder::new(Limits::new(self.geometry.piece_count()));
        let decoded = decoder.decode_all(&said, |incoming| {
            if let (Incoming::Message(message), Ok(())) = (incoming, judged) {
                judged = self.handle_message(now, key, message);
            }
        });
        // Only a bitfield can have a length that this torrent does not allow.
        if let Err(error) = decoded.map_err(|_| Error::BadBitfield).and(judged) {
            self.handle_disconnected(now, key);
            return Err(error);
        }
        Ok(key)
    }
}
