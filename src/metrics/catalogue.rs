//! The catalogue: one documented line per metric.
//!
//! The doc comment of a line is its HELP text, the name of the field with `seedring_` in front
//! (and `_total` behind, for what only grows) is its exported name, the enums in brackets are its
//! labels, and `per core` gives it a `core` label instead of a sum over the cores.

use super::Entry;
use super::cells::{Counter, Family, Field, Gauge, Histogram, Latencies, Seconds};
use super::labels::*;

macro_rules! cell {
    (counter) => { Counter };
    (seconds) => { Seconds };
    (gauge) => { Gauge };
    (histogram) => { Histogram };
    (latency) => { Histogram<Latencies> };
    ($kind:ident [$set:ident]) => { Family<cell!($kind), $set, { <$set as Labels>::COUNT }> };
    ($kind:ident [$first:ident, $second:ident]) => {
        Family<cell!($kind), ($first, $second), { <($first, $second) as Labels>::COUNT }>
    };
}

macro_rules! names {
    ([]) => {
        Vec::new
    };
    ([$set:ident]) => {
        <$set as Labels>::names
    };
    ([$first:ident, $second:ident]) => {
        <($first, $second) as Labels>::names
    };
}

macro_rules! values {
    ([]) => {
        || vec![Vec::new()]
    };
    ([$set:ident]) => {
        <$set as Labels>::values
    };
    ([$first:ident, $second:ident]) => {
        <($first, $second) as Labels>::values
    };
}

macro_rules! exported_name {
    (counter $field:ident) => {
        concat!("seedring_", stringify!($field), "_total")
    };
    (seconds $field:ident) => {
        concat!("seedring_", stringify!($field), "_total")
    };
    (gauge $field:ident) => {
        concat!("seedring_", stringify!($field))
    };
    (histogram $field:ident) => {
        concat!("seedring_", stringify!($field))
    };
    (latency $field:ident) => {
        concat!("seedring_", stringify!($field))
    };
}

macro_rules! catalogue {
    ($(#[$attribute:meta])* $cells:ident {
        $(
            #[doc = $help:literal]
            $field:ident: $kind:ident $([$($set:ident),+])? $(per $core:ident)?;
        )+
    }) => {
        $(#[$attribute])*
        #[derive(Default, Debug)]
        #[repr(align(128))]
        pub struct $cells {
            $( #[doc = $help] pub $field: cell!($kind $([$($set),+])?), )+
        }

        impl $cells {
            pub(super) const CATALOGUE: &[Entry<Self>] = &[$(
                Entry {
                    name: exported_name!($kind $field),
                    help: $help.trim_ascii(),
                    kind: <cell!($kind $([$($set),+])?) as Field>::KIND,
                    by_core: catalogue!(@by_core $($core)?),
                    labels: names!([$($($set),+)?]),
                    series: values!([$($($set),+)?]),
                    read: |cells, values| cells.$field.read(values),
                },
            )+];
        }
    };
    (@by_core) => { false };
    (@by_core core) => { true };
}

catalogue! {
    /// What one worker, or one helper thread, counts. It alone writes; padded so that no two cores
    /// share a line.
    Core {
        /// Payload bytes of blocks that the kernel took for sending.
        sent_payload_bytes: counter [SendPath] per core;
        /// Payload bytes of blocks that arrived, wanted or not.
        received_payload_bytes: counter per core;
        /// Payload bytes of blocks that were dropped: they came twice, too late, or unasked.
        discarded_payload_bytes: counter per core;
        /// Bytes of the peer protocol that are not payload.
        protocol_bytes: counter [Direction];
        /// Requests for blocks, by what became of them.
        requests: counter [RequestResult];
        /// Peers, by state; a peer counts in every state that is true of it.
        peers: gauge [PeerState];
        /// Peers, by what carries their connection and how it is encrypted.
        peers_by_transport: gauge [Transport, Encryption];
        /// Peers, by who named them.
        peers_by_source: gauge [PeerSource];
        /// Addresses of peers that became known, by who named them first.
        peer_addresses: counter [PeerSource];
        /// Addresses of peers that were named, or due to be tried, and are on the blocklist.
        peer_addresses_blocked: counter;
        /// Open TCP connections with peers, handshakes included.
        connections: gauge per core;
        /// Connections that became peers.
        peer_connections: counter [Direction, Encryption];
        /// Handshakes that ended, by how.
        handshakes: counter [Direction, HandshakeResult];
        /// Connections handed over to the home worker of their torrent.
        handovers: counter [HandoverResult];
        /// Incoming connections, by what became of them.
        accepts: counter [AcceptResult];
        /// Peers that were disconnected, by why.
        disconnects: counter [DisconnectReason];
        /// UDP datagrams that came, or were handed to the network.
        udp_datagrams: counter [Direction, DatagramKind];
        /// Bytes in UDP datagrams, without their headers.
        udp_bytes: counter [Direction, DatagramKind];
        /// UDP datagrams that were dropped here, by why.
        udp_dropped: counter [DatagramDrop];
        /// Bytes read from files to serve them.
        disk_read_bytes: counter [Temperature];
        /// Reads from files to serve them.
        disk_reads: counter [Temperature];
        /// Bytes written to files.
        disk_write_bytes: counter;
        /// Writes to files.
        disk_writes: counter;
        /// Blocks that were written as they came, for want of memory for their pieces.
        in_place_blocks: counter;
        /// Bytes of blocks that were written as they came, for want of memory for their pieces.
        in_place_bytes: counter;
        /// Buffers in use for such blocks, arriving or on their way to the disk.
        in_place_buffers: gauge;
        /// Operations on files that failed.
        disk_errors: counter [DiskOp];
        /// Bytes that were hashed.
        hash_bytes: counter [HashReason];
        /// Time spent hashing.
        hash_seconds: seconds;
        /// Pieces whose data did not have the hash of the torrent.
        piece_hash_failures: counter;
        /// Pieces whose data had the hash of the torrent.
        pieces_verified: counter;
        /// Calls of io_uring_enter.
        ring_enter_calls: counter per core;
        /// Operations given to the ring.
        ring_submitted: counter [RingOp];
        /// Operations that the ring completed.
        ring_completions: counter [RingOp, RingResult];
        /// Times that the submission queue was full.
        ring_sq_full: counter per core;
        /// Completions that did not fit the completion queue at once.
        ring_cq_overflow: counter per core;
        /// Receives that found no free buffer.
        buffer_exhausted: counter per core;
        /// Zero-copy sends that are over, by what the kernel did.
        zc_notifications: counter [ZeroCopyResult];
        /// Page faults of the thread that had to wait for a device.
        major_faults: counter per core;
        /// Time in which the core worked.
        core_busy_seconds: seconds per core;
        /// Time in which the core waited.
        core_idle_seconds: seconds per core;
        /// Turns of the core's loop.
        core_loops: counter per core;
        /// Turns of a core's loop that took more than a millisecond.
        core_stall_seconds: histogram;
        /// Messages sent to other cores.
        core_messages_sent: counter per core;
        /// Decisions about who is unchoked.
        choker_rounds: counter;
        /// Metadata of magnet links that came from peers, by what it was good for.
        metadata_fetches: counter [MetadataResult];
        /// Torrents, by state.
        torrents: gauge [TorrentState];
        /// Memory in buffers for cold reads.
        read_buffers_bytes: gauge;
        /// Memory in copies on their way to encrypted peers.
        encrypted_buffers_bytes: gauge;
        /// Memory in pieces that are not complete or not yet written.
        piece_buffers_bytes: gauge;
        /// Address space in mappings of files; their pages belong to the page cache.
        mapped_bytes: gauge;
    }
}

catalogue! {
    /// What is counted once per process, by the control thread alone.
    Process {
        /// Addresses that are banned for bad data.
        banned_peers: gauge;
        /// Ranges of addresses on the blocklist, once those that touch are one.
        blocklist_ranges: gauge;
        /// Lines of the blocklist that are broken and were passed over.
        blocklist_broken_lines: gauge;
        /// Announces to trackers, by what became of them.
        announces: counter [AnnounceResult];
        /// Announces that wait for their tracker's answer.
        announces_in_flight: gauge;
        /// Announces that are due and wait for the limits.
        announces_queued: gauge;
        /// Announces that have been due for more than a minute.
        announces_overdue: gauge;
        /// Time until a tracker answered an announce, whatever it answered.
        announce_seconds: latency [AnnounceProtocol];
        /// Datagrams that were no answer of a UDP tracker, by why.
        tracker_datagrams_ignored: counter [DatagramFault];
        /// Datagrams of local discovery, by what became of them.
        local_datagrams: counter [LocalDatagram];
        /// Openings, looks and closings of files that wait for a thread: a disk that does not answer.
        file_jobs_waiting: gauge;
        /// Of those, what found the queue of its disk full and was put off.
        file_jobs_refused: counter;
        /// Files in watch folders, by what became of them.
        watch_files: counter [WatchResult];
        /// HTTP requests, by resource and status.
        http_requests: counter [HttpPath, HttpCode];
    }
}
