//! What a worker counts by looking: gauges once a second, and totals of rooms that keep their own.
//!
//! The worker's state enters, its cells of the catalogue are set. Invariant: nothing is changed here
//! but cells, and what is no longer needed is let go.

use super::connection::Conn;
use super::{HOUSEKEEPING, Timer, Worker};
use crate::metrics::{
    Encryption, PeerSource, PeerState, RequestResult, RingOp, RingResult, Transport,
};
use crate::ring::{Driver, OpKind};
use crate::swarm::Source;
use crate::sys::process;

impl<D: Driver> Worker<D> {
    pub(super) fn housekeep(&mut self) {
        self.timers.set(self.now + HOUSEKEEPING, Timer::Housekeeping);
        self.close_remains();
        self.count_ring();
        self.count_swarms();
        self.count_datagrams();
        let faults = major_faults();
        self.core.major_faults.add(faults.saturating_sub(self.faults_before));
        self.faults_before = faults;
        self.core.connections.set(self.conns.len() as u64);
        self.core.peers[PeerState::Handshaking].set(self.handshake_count as u64);
        self.core.read_buffers_bytes.set(self.chunks.bytes() as u64);
        self.core.encrypted_buffers_bytes.set(self.seals.len() as u64);
        let (mut connected, mut interested) = (self.magnets.conn_count() as u64, 0);
        let (mut unchoked, mut snubbed) = (0, 0);
        let mut piece_bytes = 0;
        let mut active = std::mem::take(&mut self.active);
        active.retain(|&key| {
            let Some(torrent) = self.torrents.get_mut(key) else { return false };
            let stats = torrent.publish(self.now);
            connected += u64::from(stats.peers);
            interested += u64::from(stats.interested);
            unchoked += u64::from(stats.unchoked);
            snubbed += u64::from(stats.snubbed);
            piece_bytes += torrent.pieces.bytes();
            torrent.stays_active(&stats)
        });
        self.active = active;
        self.count_peers();
        self.core.peers[PeerState::Connected].set(connected);
        self.core.peers[PeerState::Interested].set(interested);
        self.core.peers[PeerState::Unchoked].set(unchoked);
        self.core.peers[PeerState::Snubbed].set(snubbed);
        self.spares.tidy();
        self.in_place.tidy();
        self.core.in_place_buffers.set(self.in_place.buffer_count());
        let bytes = piece_bytes + self.spares.bytes() + self.in_place.bytes();
        self.core.piece_buffers_bytes.set(bytes);
    }

    /// Copies the ring's totals to the core's cells.
    pub(super) fn count_ring(&mut self) {
        let (core, counters) = (&self.core, self.driver.counters());
        core.ring_enter_calls.set(counters.enters);
        core.ring_sq_full.set(counters.sq_full);
        core.ring_cq_overflow.set(counters.cq_overflow);
        for kind in OpKind::ALL {
            let (op, of) = (ring_op(kind), counters.of(kind));
            core.ring_submitted[op].set(of.submitted);
            core.ring_completions[(op, RingResult::Ok)].set(of.completed.saturating_sub(of.failed));
            core.ring_completions[(op, RingResult::Error)].set(of.failed);
        }
    }

    /// Copies what the swarms have counted to the core's cells.
    pub(super) fn count_swarms(&self) {
        let (core, counted) = (&self.core, self.budget.counted());
        core.requests[RequestResult::Rejected].set(counted.requests_rejected);
        core.requests[RequestResult::Cancelled].set(counted.requests_cancelled);
        core.requests[RequestResult::Choked].set(counted.requests_choked);
        core.requests[RequestResult::Invalid].set(counted.requests_invalid);
        core.choker_rounds.set(counted.choker_rounds);
        core.discarded_payload_bytes.set(counted.bytes_discarded);
        core.peer_addresses_blocked.set(counted.addresses_blocked);
        for (source, count) in Source::ALL.into_iter().zip(counted.addresses_learnt) {
            core.peer_addresses[source_label(source)].set(count);
        }
    }

    /// Counts the peers that there are by how they are met and who named them.
    fn count_peers(&self) {
        let is_encrypted = |conn: &Conn| conn.phase.is_peer().then_some(conn.ciphers.is_some());
        let (mut plain, mut encrypted) = (0, 0);
        for is_encrypted in self.conns.values().filter_map(is_encrypted) {
            *(if is_encrypted { &mut encrypted } else { &mut plain }) += 1;
        }
        for (encryption, count) in [(Encryption::Plain, plain), (Encryption::Rc4, encrypted)] {
            self.core.peers_by_transport[(Transport::Tcp, encryption)].set(count);
        }
        for (source, count) in Source::ALL.into_iter().zip(self.budget.seated()) {
            self.core.peers_by_source[source_label(source)].set(count.into());
        }
    }
}

/// The label of a kind of operations.
fn ring_op(kind: OpKind) -> RingOp {
    match kind {
        OpKind::Accept => RingOp::Accept,
        OpKind::Connect => RingOp::Connect,
        OpKind::Recv => RingOp::Recv,
        OpKind::ReceiveFrom => RingOp::ReceiveFrom,
        OpKind::SendTo => RingOp::SendTo,
        OpKind::Send => RingOp::Send,
        OpKind::SendZeroCopy => RingOp::SendZeroCopy,
        OpKind::Read => RingOp::Read,
        OpKind::Write => RingOp::Write,
        OpKind::Sync => RingOp::Sync,
    }
}

/// Faults of this thread that waited for a device; 0 where the system does not tell.
pub(super) fn major_faults() -> u64 {
    process::thread_usage().map_or(0, |usage| usage.major_faults)
}

/// The label of who named a peer.
fn source_label(source: Source) -> PeerSource {
    match source {
        Source::Incoming => PeerSource::Incoming,
        Source::Pex => PeerSource::Pex,
        Source::Dht => PeerSource::Dht,
        Source::Lsd => PeerSource::Lsd,
        Source::Tracker => PeerSource::Tracker,
        Source::Magnet => PeerSource::Magnet,
        Source::Operator => PeerSource::Manual,
    }
}
