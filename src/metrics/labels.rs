//! The label values, all of them: an enum per label, so that no value from outside becomes one.
//!
//! Invariant: every set is closed and small, and every value of it is exported from the start
//! with 0, so that rates work and alerts need no `absent()`.

/// A label set with a closed list of values.
pub trait Labels: Copy {
    /// Number of combinations.
    const COUNT: usize;

    /// Position of this combination, below [`Labels::COUNT`].
    fn index(self) -> usize;

    /// The names of the labels.
    fn names() -> Vec<&'static str>;

    /// The values of every combination, in the order of [`Labels::index`].
    fn values() -> Vec<Vec<&'static str>>;
}

impl<A: Labels, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn index(self) -> usize {
        self.0.index() * B::COUNT + self.1.index()
    }

    fn names() -> Vec<&'static str> {
        [A::names(), B::names()].concat()
    }

    fn values() -> Vec<Vec<&'static str>> {
        let seconds = B::values();
        let pairs = A::values().into_iter().flat_map(|first| {
            seconds
                .iter()
                .map(move |second| [first.as_slice(), second].concat())
                .collect::<Vec<_>>()
        });
        pairs.collect()
    }
}

macro_rules! labels {
    ($(
        $(#[doc = $doc:literal])+
        $set:ident $name:literal { $( $(#[doc = $about:literal])+ $value:ident $text:literal, )+ }
    )+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $set { $( $(#[doc = $about])+ $value, )+ }

        impl $set {
            /// Every value, in the order of the catalogue.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The text of the label.
            pub fn label(self) -> &'static str {
                match self { $(Self::$value => $text),+ }
            }
        }

        impl Labels for $set {
            const COUNT: usize = Self::ALL.len();

            fn index(self) -> usize {
                self as usize
            }

            fn names() -> Vec<&'static str> {
                vec![$name]
            }

            fn values() -> Vec<Vec<&'static str>> {
                Self::ALL.iter().map(|value| vec![value.label()]).collect()
            }
        }
    )+};
}

labels! {
    /// Where the bytes of a sent block came from.
    SendPath "path" {
        /// From the mapping; the kernel copied them.
        Copy "copy",
        /// From the mapping; the network card reads the pages, or the kernel copies them late,
        /// which `zc_notifications` tells.
        ZeroCopy "zerocopy",
        /// From a pool buffer that was read before.
        Read "read",
    }

    /// Which way bytes or a connection went.
    Direction "direction" {
        /// To us.
        Incoming "in",
        /// From us.
        Outgoing "out",
    }

    /// What became of a request for a block.
    RequestResult "result" {
        /// The block was handed to the kernel.
        Served "served",
        /// We said no: the queue was full, or the piece was lost since.
        Rejected "rejected",
        /// The peer took it back.
        Cancelled "cancelled",
        /// The peer is choked, or was before its turn came.
        Choked "choked",
        /// It named a range that does not exist or that we do not have.
        Invalid "invalid",
    }

    /// In what state peers are; a peer counts in every state that is true of it.
    PeerState "state" {
        /// The handshake is not over.
        Handshaking "handshaking",
        /// The handshake is over.
        Connected "connected",
        /// It wants pieces of ours.
        Interested "interested",
        /// It may ask for blocks.
        Unchoked "unchoked",
        /// It owes us blocks and sends none.
        Snubbed "snubbed",
    }

    /// How a handshake ended.
    HandshakeResult "result" {
        /// It is a peer now.
        Ok "ok",
        /// It took too long.
        Timeout "timeout",
        /// It named a torrent that is not here.
        UnknownTorrent "unknown_torrent",
        /// It does not speak the protocol.
        BadProtocol "bad_protocol",
        /// It was ourselves.
        Itself "self",
        /// That peer is connected already.
        Duplicate "duplicate",
        /// The other side closed or reset the connection, or refused it.
        Closed "closed",
        /// The torrent or the process has as many peers as it may.
        Limit "limit",
        /// It was slow, and its place was needed for a newcomer.
        Evicted "evicted",
        /// The address is banned, or of a kind that is not welcome.
        Refused "refused",
        /// It was not encrypted, and has to be.
        Plain "plain",
        /// The exchange before an encrypted stream went wrong.
        BadExchange "bad_exchange",
    }

    /// How the stream of a connection is encrypted.
    Encryption "encryption" {
        /// Not at all.
        Plain "none",
        /// By RC4, as agreed in an exchange (MSE).
        Rc4 "rc4",
    }

    /// What carries a connection.
    Transport "transport" {
        /// TCP.
        Tcp "tcp",
    }

    /// Who named a peer; of several, the most trusted one.
    PeerSource "source" {
        /// The peer itself: it connected to us.
        Incoming "incoming",
        /// Another peer (PEX).
        Pex "pex",
        /// The DHT.
        Dht "dht",
        /// The peer itself, to its neighbours (LSD).
        Lsd "lsd",
        /// A tracker.
        Tracker "tracker",
        /// A magnet link.
        Magnet "magnet",
        /// The operator.
        Manual "manual",
    }

    /// What became of a connection on its way to the home worker of its torrent.
    HandoverResult "result" {
        /// It was put into the other worker's queue.
        Sent "sent",
        /// It arrived and was taken over.
        Adopted "adopted",
        /// The queue was full or the torrent had gone.
        Dropped "dropped",
    }

    /// What became of an incoming connection.
    AcceptResult "result" {
        /// It was taken.
        Ok "ok",
        /// It was closed at once, there are too many.
        Limit "limit",
        /// It was closed at once, its network has too many handshakes open.
        PrefixLimit "prefix_limit",
        /// It was closed at once, its network connects too often.
        PrefixRate "prefix_rate",
        /// It was closed at once, its address is on the blocklist.
        Blocked "blocked",
        /// It was closed at once, there is no descriptor for it.
        NoDescriptor "no_descriptor",
        /// The kernel could not give it to us, and accepting pauses; or it was dead on arrival.
        Error "error",
    }

    /// Why a connection that had been a peer was closed.
    DisconnectReason "reason" {
        /// The peer closed it.
        PeerClosed "peer_closed",
        /// The socket failed.
        Io "io",
        /// Nothing came for too long.
        Timeout "timeout",
        /// The peer did not read what it had asked for.
        Slow "slow",
        /// The peer broke the protocol.
        Protocol "protocol",
        /// Neither side can have anything for the other.
        Useless "useless",
        /// Nothing had moved for a minute, and others wanted the place.
        Idle "idle",
        /// It sent data that failed the hash check.
        Banned "banned",
        /// Its address came on the blocklist.
        Blocked "blocked",
        /// A second connection to the same peer.
        Duplicate "duplicate",
        /// The torrent was stopped or removed.
        TorrentStopped "torrent_stopped",
        /// The torrent's storage failed.
        Storage "storage",
        /// The process ends.
        Shutdown "shutdown",
    }

    /// Whether a read from the disk found its pages in memory.
    Temperature "temperature" {
        /// In the page cache.
        Hot "hot",
        /// Fetched from the device.
        Cold "cold",
    }

    /// An operation on a file.
    DiskOp "op" {
        /// Opening or creating it.
        Open "open",
        /// Reading from it.
        Read "read",
        /// Sending from its mapping.
        Map "map",
        /// Writing to it.
        Write "write",
        /// Flushing it.
        Sync "sync",
        /// Reserving its space.
        Allocate "allocate",
    }

    /// Why bytes were hashed.
    HashReason "reason" {
        /// They had just been received.
        Download "download",
        /// They were on the disk.
        Recheck "recheck",
    }

    /// An operation of the ring.
    RingOp "op" {
        /// Accept connections.
        Accept "accept",
        /// Open a connection.
        Connect "connect",
        /// Receive from a socket.
        Recv "recv",
        /// Receive datagrams.
        ReceiveFrom "recv_from",
        /// Send a datagram.
        SendTo "send_to",
        /// Send to a socket, with a copy.
        Send "send",
        /// Send to a socket, from our pages.
        SendZeroCopy "send_zc",
        /// Read from a file.
        Read "read",
        /// Write to a file.
        Write "write",
        /// Flush a file.
        Sync "sync",
    }

    /// What a datagram is, told by its content.
    DatagramKind "kind" {
        /// Of the DHT.
        Dht "dht",
        /// Of a UDP tracker.
        Tracker "tracker",
        /// Anything else.
        Unknown "unknown",
    }

    /// Why a datagram was dropped.
    DatagramDrop "reason" {
        /// It came and was longer than what is taken.
        TooLong "too_long",
        /// It came and is nothing that is known.
        Unknown "unknown",
        /// It came and too many waited for the control thread.
        QueueIn "queue_in",
        /// It came and nobody here speaks its protocol.
        Unclaimed "unclaimed",
        /// It was to leave and too many waited for that.
        QueueOut "queue_out",
        /// It was to leave to an address that no socket of ours reaches.
        NoSocket "no_socket",
        /// It was to leave and the kernel refused it.
        Send "send",
    }

    /// Whether an operation of the ring succeeded.
    RingResult "result" {
        /// It did.
        Ok "ok",
        /// The kernel gave an error; `ECANCELED` counts as one.
        Error "error",
    }

    /// What the kernel said about a zero-copy send when it was over.
    ZeroCopyResult "result" {
        /// It sent from our pages.
        ZeroCopy "zerocopy",
        /// It had copied after all.
        Copied "copied",
    }

    /// What metadata that came from peers was good for.
    MetadataResult "result" {
        /// It describes a torrent.
        Ok "ok",
        /// It is what the link asked for, and no torrent that is taken.
        Unusable "unusable",
    }

    /// In what state torrents are; each is in one.
    TorrentState "state" {
        /// Complete and offered.
        Seeding "seeding",
        /// Incomplete and fetched.
        Downloading "downloading",
        /// Being verified.
        Checking "checking",
        /// Known by a magnet link only.
        Metadata "metadata",
        /// Stopped by a failure.
        Error "error",
        /// Stopped by the operator.
        Stopped "stopped",
    }

    /// What became of an announce.
    AnnounceResult "result" {
        /// The tracker answered.
        Ok "ok",
        /// The tracker refused, with a reason of its own.
        Failure "failure",
        /// No answer in time.
        Timeout "timeout",
        /// The name did not resolve.
        Dns "dns",
        /// No secure connection.
        Tls "tls",
        /// An HTTP status or an answer that is not one of a tracker.
        Http "http",
        /// No connection.
        Connect "connect",
        /// The address is of a kind that is not talked to.
        Refused "refused",
    }

    /// What a tracker speaks.
    AnnounceProtocol "protocol" {
        /// HTTP in the open.
        Http "http",
        /// HTTP over TLS.
        Https "https",
        /// Datagrams.
        Udp "udp",
    }

    /// Why a datagram was no answer of a UDP tracker.
    DatagramFault "fault" {
        /// Too short, torn, or of no known action.
        Malformed "malformed",
        /// Late, repeated, or of a transaction that was never begun.
        Transaction "transaction",
        /// From another address than the one that was asked.
        Source "source",
        /// An answer to something else than what was asked.
        Action "action",
    }

    /// What became of a datagram of local discovery.
    LocalDatagram "result" {
        /// It was sent to neighbours.
        Sent "sent",
        /// It was to be sent, and the kernel refused it.
        Unsent "unsent",
        /// It came from a neighbour.
        Received "received",
        /// It came, and was our own.
        Own "own",
        /// It came, and was longer than what is read.
        TooLong "too_long",
        /// It came, and was no announce.
        NotSearch "not_search",
        /// It came, and named no port that peers listen on.
        Port "port",
        /// It came, and named no torrent.
        NoInfoHash "no_info_hash",
        /// It came from outside of our networks.
        Stranger "stranger",
        /// It came, and there were too many.
        Flood "flood",
    }

    /// What became of a file in a watch folder.
    WatchResult "result" {
        /// A torrent was added.
        Added "added",
        /// The torrent was there already.
        Duplicate "duplicate",
        /// It was refused, with a sentence beside it.
        Rejected "rejected",
    }

    /// Which resource an HTTP request named.
    HttpPath "path" {
        /// `/metrics`.
        Metrics "/metrics",
        /// `/healthz/live`.
        Live "/healthz/live",
        /// `/healthz/ready`.
        Ready "/healthz/ready",
        /// `/transmission/rpc`.
        TransmissionRpc "/transmission/rpc",
        /// Anything else.
        Other "other",
    }

    /// The status that an HTTP request was answered with.
    HttpCode "code" {
        /// 200.
        Ok "200",
        /// 400.
        BadRequest "400",
        /// 404.
        NotFound "404",
        /// 405.
        MethodNotAllowed "405",
        /// 409.
        Conflict "409",
        /// 413.
        TooLarge "413",
        /// 421.
        Misdirected "421",
        /// 503.
        Unavailable "503",
        /// Anything else.
        Other "other",
    }
}
