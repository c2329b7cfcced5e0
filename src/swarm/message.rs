//! Messages of a peer, judged and passed on to the file that they concern.
//!
//! Every index and range that comes from outside is checked here or in the first line of what is
//! called. Invariant: a message changes nothing before it is known to be valid.
#![forbid(unsafe_code)]

use super::options::{
    ALLOWED_FAST_MAX, NUISANCES_PER_SECOND_MAX, STATE_CHANGES_PER_SECOND_MAX, UNCHOKE_INTERVAL,
};
use super::peer::{Error, PeerKey, Pieces};
use super::{Action, Swarm};
use crate::units::{Bitfield, PieceIndex};
use crate::wire::Message;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Nuisances are counted over this long.
pub(super) const NUISANCE_SECONDS: u32 = 10;

impl Swarm {
    /// Takes one message of a peer (a block's header and data go to `handle_payload` and
    /// `handle_block` instead).
    ///
    /// # Errors
    /// The peer broke a rule: the caller closes the connection and calls `handle_disconnected`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        key: PeerKey,
        message: Message<'_>,
    ) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key).filter(|peer| !peer.closing) else {
            return Ok(());
        };
        peer.last_heard_at = now;
        let fast = peer.fast;
        let result = match message {
            // By far the most frequent one of a seed: nothing else is settled for it.
            Message::Request(block) => return self.on_request(now, key, block),
            Message::Cancel(block) => return self.on_cancel(key, block),
            Message::KeepAlive => self.nuisance(key),
            Message::Port(port) => self.on_port(key, port),
            Message::Choke => self.on_choke(now, key, true),
            Message::Unchoke => self.on_choke(now, key, false),
            Message::Interested => self.on_interest(now, key, true),
            Message::NotInterested => self.on_interest(now, key, false),
            Message::Have(piece) => self.on_have(now, key, piece),
            Message::Bitfield(bits) => self.on_bitfield(now, key, bits),
            Message::HaveAll if fast => self.on_pieces(now, key, Pieces::All),
            Message::HaveNone if fast => self.on_pieces(now, key, Pieces::None),
            Message::Reject(block) if fast => self.on_reject(key, block),
            Message::AllowedFast(piece) if fast => self.on_allowed_fast(now, key, piece),
            Message::Suggest(piece) if fast => self.on_suggest(key, piece),
            Message::HaveAll
            | Message::HaveNone
            | Message::Reject(_)
            | Message::AllowedFast(_)
            | Message::Suggest(_) => Err(Error::NotNegotiated),
            Message::Extended { id, payload } => self.on_extended(now, key, id, payload),
        };
        result?;
        self.settle(now);
        Ok(())
    }

    /// Takes word of the peer's node of the DHT (BEP 5); only the first counts.
    fn on_port(&mut self, key: PeerKey, port: u16) -> Result<(), Error> {
        let is_used = self.options.dht_port.is_some();
        if let Some(peer) = self.peer_mut(key).filter(|peer| is_used && peer.dht) {
            peer.dht = false;
            let ip = peer.addr.ip().to_canonical();
            self.actions.push_back(Action::Node(SocketAddr::new(ip, port)));
        }
        self.nuisance(key)
    }

    /// Counts something of no use; the count is cleared every ten seconds.
    pub(super) fn nuisance(&mut self, key: PeerKey) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        peer.nuisances += 1;
        if peer.nuisances > NUISANCES_PER_SECOND_MAX * NUISANCE_SECONDS {
            return Err(Error::NuisanceFlood);
        }
        Ok(())
    }

    fn state_change(&mut self, now: Instant, key: PeerKey) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if now.saturating_duration_since(peer.state_changes_since) >= Duration::from_secs(1) {
            peer.state_changes_since = now;
            peer.state_changes = 0;
        }
        peer.state_changes += 1;
        if peer.state_changes > STATE_CHANGES_PER_SECOND_MAX {
            return Err(Error::StateFlood);
        }
        Ok(())
    }

    fn on_choke(&mut self, now: Instant, key: PeerKey, choking: bool) -> Result<(), Error> {
        self.state_change(now, key)?;
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if !choking {
            self.take_unchoke(now, key);
            return Ok(());
        }
        peer.unchoke_due = false;
        if !std::mem::replace(&mut peer.peer_choking, true) {
            self.take_back_all(key, true);
            self.refill(now, key);
        }
        Ok(())
    }

    /// The peer unchokes us: everything is asked of it anew. What it says so soon after the last
    /// time is taken up by the clock of seconds, so that it cannot have that done all the time.
    pub(super) fn take_unchoke(&mut self, now: Instant, key: PeerKey) {
        let Some(peer) = self.peer_mut(key).filter(|peer| peer.peer_choking) else {
            return;
        };
        let since = peer.peer_unchoked_at.map(|at| now.saturating_duration_since(at));
        peer.unchoke_due = since.is_some_and(|since| since < UNCHOKE_INTERVAL);
        if peer.unchoke_due {
            return;
        }
        peer.peer_unchoked_at = Some(now);
        peer.peer_choking = false;
        peer.refused.clear();
        peer.pipeline.restart();
        self.refill(now, key);
    }

    fn on_interest(&mut self, now: Instant, key: PeerKey, interested: bool) -> Result<(), Error> {
        self.state_change(now, key)?;
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if peer.peer_interested == interested {
            return Ok(());
        }
        peer.peer_interested = interested;
        peer.waiting_since = (interested && peer.am_choking).then_some(now);
        if interested {
            self.counts.interested += 1;
            self.on_interested(now, key);
        } else {
            self.counts.interested -= 1;
            self.fill_slots(now);
        }
        Ok(())
    }

    fn on_have(&mut self, now: Instant, key: PeerKey, piece: PieceIndex) -> Result<(), Error> {
        let piece_count = self.geometry.piece_count();
        if piece.0 >= piece_count {
            return Err(Error::BadPiece);
        }
        let lacking = self.wanted.lacks(&self.have, piece);
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return Ok(());
        };
        peer.spoke = true;
        if matches!(peer.pieces, Pieces::None) {
            peer.pieces = Pieces::Some(Bitfield::none(piece_count));
        }
        let fresh = match &mut peer.pieces {
            Pieces::Some(pieces) => pieces.set(piece),
            Pieces::None | Pieces::All => false,
        };
        if !fresh {
            return self.nuisance(key);
        }
        peer.wanted += u32::from(lacking);
        if let Some(availability) = &mut self.availability {
            availability.add(piece);
        }
        self.after_pieces(now, key);
        Ok(())
    }

    fn on_bitfield(&mut self, now: Instant, key: PeerKey, bits: &[u8]) -> Result<(), Error> {
        let pieces = Bitfield::from_wire(bits, self.geometry.piece_count());
        let pieces = match pieces.ok_or(Error::BadBitfield)? {
            pieces if pieces.is_complete() => Pieces::All,
            pieces => Pieces::Some(pieces),
        };
        self.on_pieces(now, key, pieces)
    }

    /// A bitfield in one of its forms: at first it tells what the peer has, later what has come.
    fn on_pieces(&mut self, now: Instant, key: PeerKey, pieces: Pieces) -> Result<(), Error> {
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return Ok(());
        };
        if std::mem::replace(&mut peer.spoke, true) {
            return self.on_more_pieces(now, key, &pieces);
        }
        match &pieces {
            Pieces::All => self.counts.have_all += 1,
            Pieces::Some(pieces) => {
                peer.wanted = self.wanted.count_lacking(&self.have, pieces);
                if let Some(availability) = &mut self.availability {
                    availability.add_all(pieces);
                }
            }
            Pieces::None => {}
        }
        peer.pieces = pieces;
        self.after_pieces(now, key);
        Ok(())
    }

    /// A bitfield that is not the first word about pieces. aria2 sends one in place of many haves
    /// wherever that is shorter; it adds to what the peer has and takes nothing away.
    fn on_more_pieces(&mut self, now: Instant, key: PeerKey, pieces: &Pieces) -> Result<(), Error> {
        let all = Bitfield::all(self.geometry.piece_count());
        let more = match pieces {
            Pieces::None => return Err(Error::BadBitfield),
            Pieces::Some(more) => more,
            Pieces::All => &all,
        };
        self.nuisance(key)?;
        let Some(peer) = self.peers.get_mut(key.0 as usize) else {
            return Ok(());
        };
        if matches!(peer.pieces, Pieces::None) {
            peer.pieces = Pieces::Some(Bitfield::none(more.len()));
        }
        let Pieces::Some(known) = &mut peer.pieces else {
            return Ok(());
        };
        if !known.lacks_any_of(more) {
            return Ok(());
        }
        for piece in more.iter() {
            if known.set(piece) {
                peer.wanted += u32::from(self.wanted.lacks(&self.have, piece));
                if let Some(availability) = &mut self.availability {
                    availability.add(piece);
                }
            }
        }
        self.after_pieces(now, key);
        Ok(())
    }

    /// The peer has more than before.
    fn after_pieces(&mut self, now: Instant, key: PeerKey) {
        self.update_interest(key);
        self.refill(now, key);
        self.close_if_useless(key);
    }

    fn on_suggest(&mut self, key: PeerKey, piece: PieceIndex) -> Result<(), Error> {
        if piece.0 >= self.geometry.piece_count() {
            return Err(Error::BadPiece);
        }
        self.nuisance(key)
    }

    fn on_allowed_fast(
        &mut self,
        now: Instant,
        key: PeerKey,
        piece: PieceIndex,
    ) -> Result<(), Error> {
        if piece.0 >= self.geometry.piece_count() {
            return Err(Error::BadPiece);
        }
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if peer.allowed_fast.len() >= ALLOWED_FAST_MAX || peer.allowed_fast.contains(&piece) {
            return self.nuisance(key);
        }
        peer.allowed_fast.push(piece);
        self.refill(now, key);
        Ok(())
    }
}
