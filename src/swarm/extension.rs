//! The extension handshake (BEP 10) as far as it concerns the swarm.
//!
//! Ours is said in the greeting, and again when we have all that we want (BEP 21); theirs tells how many
//! requests they take and whether they want data. Ids below 16 are those of our own extensions; what
//! comes under others is of no use, and is counted as that.
//! Invariant: what is absent from a handshake leaves in force what was said before.
#![forbid(unsafe_code)]

use super::options::REQUESTS_OUT_MAX;
use super::peer::{Error, Peer, PeerKey};
use super::{REQUEST_QUEUE_MAX, Swarm};
use std::time::Instant;

use crate::wire::{
    EXTENSION_HANDSHAKE_ID, ExtensionHandshake, METADATA_NAME, PEX_NAME, encode_extension_handshake,
};

/// Our id for `ut_pex`.
pub(super) const PEX_ID: u8 = 1;
/// Our id for `ut_metadata`.
pub(super) const METADATA_ID: u8 = 2;

impl Swarm {
    /// Introduces us to the peer.
    pub(super) fn say_extensions(&self, peer: &mut Peer) {
        let metadata_size = self.metadata_len();
        let mut m = self.options.extensions.clone();
        m.extend(metadata_size.map(|_| (METADATA_NAME.to_vec(), METADATA_ID)));
        m.extend(self.exchanges_peers().then(|| (PEX_NAME.to_vec(), PEX_ID)));
        let handshake = ExtensionHandshake {
            m,
            v: Some(self.options.client.clone()),
            reqq: Some(REQUEST_QUEUE_MAX),
            upload_only: self.is_finished().then_some(true),
            yourip: Some(peer.addr.ip().to_canonical()),
            p: self.options.listen_port,
            metadata_size,
        };
        encode_extension_handshake(&handshake, &mut peer.control);
    }

    pub(super) fn on_extended(
        &mut self,
        now: Instant,
        key: PeerKey,
        id: u8,
        payload: &[u8],
    ) -> Result<(), Error> {
        let Some(peer) = self.peer_mut(key) else {
            return Ok(());
        };
        if !peer.extensions {
            return Err(Error::NotNegotiated);
        }
        match id {
            EXTENSION_HANDSHAKE_ID => {}
            PEX_ID => return self.on_pex(now, key, payload),
            METADATA_ID => return self.on_metadata(key, payload),
            _ => return self.nuisance(key),
        }
        let theirs = ExtensionHandshake::parse(payload).map_err(|_| Error::BadHandshake)?;
        if let Some(reqq) = theirs.reqq {
            peer.reqq = reqq.clamp(1, REQUESTS_OUT_MAX);
        }
        if let Some(id) = theirs.id_of(METADATA_NAME) {
            peer.metadata_id = id;
        }
        if let Some(id) = theirs.id_of(PEX_NAME) {
            peer.pex_out.id = id;
        }
        let (voter, yourip) = (peer.addr, theirs.yourip);
        let before = peer.listen_addr();
        peer.listen_port = theirs.p.or(peer.listen_port);
        let after = peer.listen_addr();
        if let Some(upload_only) = theirs.upload_only {
            peer.upload_only = upload_only;
        }
        self.relist(before, after);
        if let Some(ip) = yourip {
            self.shared.handle_seen_at(now, voter, ip);
        }
        // While we seed, those who came to us know the way back.
        if let Some(addr) = after.filter(|_| before != after && self.wants_pieces()) {
            let tie = self.rng.u32(..);
            self.contacts.met(now, addr, tie, &self.shared);
        }
        self.nuisance(key)?;
        self.close_if_useless(key);
        Ok(())
    }
}
