//! The extension handshake (BEP 10) as far as it concerns the swarm.
#![forbid(unsafe_code)]

use super::Swarm;
use super::peer::{Error, Peer, PeerKey};

impl Swarm {
    pub(super) fn say_extensions(&self, _peer: &mut Peer) {}
    pub(super) fn say_upload_only(&mut self, _key: PeerKey) {}
    pub(super) fn on_extended(
        &mut self,
        _key: PeerKey,
        _id: u8,
        _payload: &[u8],
    ) -> Result<(), Error> {
        Ok(())
    }
}
