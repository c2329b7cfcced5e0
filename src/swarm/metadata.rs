//! Serving the `info` dictionary to peers that came by a magnet link (BEP 9).
//!
//! Requests enter and wait; blocks leave with what is sent to the peer, a few at a time. Invariant:
//! a peer gets each byte no more than twice on average, and its requests wait in a bounded list.
#![forbid(unsafe_code)]

use super::Swarm;
use super::options::{METADATA_QUEUE_MAX, METADATA_REPEATS_MAX};
use super::peer::{Error, PeerKey};
use crate::wire::{METADATA_BLOCK_LEN, MetadataMessage, metadata_block};

/// Bytes of metadata that are put before a peer's connection at a time.
const TURN_LEN: usize = 4 * METADATA_BLOCK_LEN as usize;

impl Swarm {
    /// Length of the metadata in bytes; `None` if it is not served.
    pub(super) fn metadata_len(&self) -> Option<u32> {
        let info = self.options.metadata.as_ref()?;
        u32::try_from(info.len()).ok().filter(|&len| len > 0)
    }

    pub(super) fn on_metadata(&mut self, key: PeerKey, payload: &[u8]) -> Result<(), Error> {
        let message = MetadataMessage::parse(payload).map_err(|_| Error::BadMetadata)?;
        let (Some(MetadataMessage::Request { block }), Some(len)) = (message, self.metadata_len())
        else {
            // We ask for nothing, so that an answer is of no use.
            return self.nuisance(key);
        };
        let Some(peer) = self.peer_mut(key).filter(|peer| peer.metadata_id != 0) else {
            return self.nuisance(key);
        };
        let id = peer.metadata_id;
        let asked = metadata_block(len, block).map(|(_, len)| u64::from(len));
        let served_max = u64::from(len) * METADATA_REPEATS_MAX;
        match asked {
            Some(len)
                if peer.metadata_served + len <= served_max
                    && peer.metadata_due.len() < METADATA_QUEUE_MAX =>
            {
                peer.metadata_served += len;
                peer.metadata_due.push_back(block);
            }
            _ => {
                MetadataMessage::Reject { block }.encode(id, &mut peer.control);
                self.nuisance(key)?;
                self.check_control(key)?;
            }
        }
        self.wake(key);
        Ok(())
    }

    /// Puts blocks that the peer waits for among its messages. True if there are more.
    pub(super) fn say_metadata(&mut self, key: PeerKey) -> bool {
        let Some(peer) = self.peers.get_mut(key.0 as usize).filter(|peer| !peer.closing) else {
            return false;
        };
        while peer.control.len() < TURN_LEN
            && let Some(block) = peer.metadata_due.pop_front()
        {
            let Some(info) = &self.options.metadata else { break };
            let total_len = u32::try_from(info.len()).ok();
            let range = metadata_block(total_len.unwrap_or(0), block);
            let data =
                range.and_then(|(start, len)| info.get(start as usize..)?.get(..len as usize));
            let message = match data {
                Some(data) => MetadataMessage::Data { block, total_len, data },
                None => MetadataMessage::Reject { block },
            };
            message.encode(peer.metadata_id, &mut peer.control);
        }
        !peer.metadata_due.is_empty()
    }
}
