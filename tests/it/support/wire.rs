//! A peer made of a plain socket and the library's codec, for tests that misbehave on purpose.
//!
//! Messages and raw bytes enter, decoded messages leave. Invariant: it never decides anything by
//! itself; every byte on the wire is one that the test asked for.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use seedring::metainfo::Metainfo;
use seedring::sys::net;
use seedring::units::{Block, PeerId, PieceIndex};
use seedring::wire::{Decoder, Handshake, Incoming, Limits, Message, block_header, encode};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came from the other side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A message without borrowed parts that tests care for.
    Unchoke,
    /// Bits of pieces, or all of them.
    Have,
    /// A whole block.
    Block(Block, Vec<u8>),
    /// A request was refused.
    Reject(Block),
    /// The other side wants a block.
    Request(Block),
    /// A piece may be asked for in spite of a choke.
    AllowedFast(PieceIndex),
    /// The other side closed.
    Closed,
    /// Any other message.
    Other,
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct RawPeer {
    stream: TcpStream,
    decoder: Decoder,
    arriving: Vec<u8>,
    events: std::collections::VecDeque<Event>,
}

impl RawPeer {
    /// Connects, says nothing.
    pub(crate) fn connect(addr: SocketAddr, metainfo: &Metainfo) -> Self {
        Self::over(TcpStream::connect(addr).unwrap(), metainfo)
    }

    /// Takes a connection that says nothing yet.
    pub(crate) fn over(stream: TcpStream, metainfo: &Metainfo) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let decoder = Decoder::new(Limits::new(metainfo.geometry.piece_count()));
        Self { stream, decoder, arriving: Vec::new(), events: std::collections::VecDeque::new() }
    }

    /// Connects and exchanges handshakes, with a peer id of its own.
    pub(crate) fn handshaken(addr: SocketAddr, metainfo: &Metainfo, id: u32) -> Self {
        let mut peer = Self::connect(addr, metainfo);
        peer.send(&handshake(metainfo, id));
        peer.read_handshake();
        peer
    }

    /// Offers every piece, by a handshake and two messages, whoever listens.
    pub(crate) fn offer(&mut self, metainfo: &Metainfo, id: u32) {
        let mut bytes = handshake(metainfo, id);
        encode(&Message::HaveAll, &mut bytes);
        encode(&Message::Unchoke, &mut bytes);
        self.send(&bytes);
        self.read_handshake();
    }

    /// Sends the data of a block, in one write; false if the other side has closed.
    pub(crate) fn send_block(&mut self, block: Block, data: &[u8]) -> bool {
        self.try_send(&[&block_header(block)[..], data].concat()).is_ok()
    }

    /// Takes the other side's handshake.
    pub(crate) fn read_handshake(&mut self) {
        let mut theirs = [0; Handshake::LEN];
        self.stream.read_exact(&mut theirs).unwrap();
        Handshake::parse(&theirs).unwrap();
    }

    /// Sends raw bytes and wants them taken.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends raw bytes to somebody who may have closed.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a message.
    pub(crate) fn say(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        self.send(&bytes);
    }

    /// The socket.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next thing that comes.
    pub(crate) fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let mut buffer = vec![0; 256 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Event::Closed,
                Ok(len) => self.take(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Event::Closed;
                }
                Err(error) => panic!("nothing came for {PATIENCE:?}: {error}"),
            }
        }
    }

    /// Reads until `wanted` holds; panics when the other side closes before.
    pub(crate) fn expect(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next();
            if wanted(&event) {
                return event;
            }
            assert_ne!(event, Event::Closed, "closed before {what}");
        }
    }

    /// Reads until the other side closes.
    pub(crate) fn expect_close(&mut self) {
        while self.next() != Event::Closed {}
    }

    /// Says that it is interested and waits until it may ask.
    pub(crate) fn become_unchoked(&mut self) {
        self.say(&Message::Interested);
        self.expect("unchoke", |event| *event == Event::Unchoke);
    }

    /// Asks for a block.
    pub(crate) fn request(&mut self, block: Block) {
        self.say(&Message::Request(block));
    }

    /// Asks for blocks of somebody who may close after the first of them.
    pub(crate) fn request_all(&mut self, blocks: impl IntoIterator<Item = Block>) {
        let mut bytes = Vec::new();
        for block in blocks {
            encode(&Message::Request(block), &mut bytes);
        }
        self.stream.write_all(&bytes).unwrap();
    }

    fn take(&mut self, bytes: &[u8]) {
        let (arriving, events) = (&mut self.arriving, &mut self.events);
        let taken = self.decoder.decode_all(bytes, |incoming| match incoming {
            Incoming::Message(Message::Unchoke) => events.push_back(Event::Unchoke),
            Incoming::Message(
                Message::Bitfield(_) | Message::HaveAll | Message::HaveNone | Message::Have(_),
            ) => events.push_back(Event::Have),
            Incoming::Message(Message::Reject(block)) => events.push_back(Event::Reject(block)),
            Incoming::Message(Message::Request(block)) => events.push_back(Event::Request(block)),
            Incoming::Message(Message::AllowedFast(piece)) => {
                events.push_back(Event::AllowedFast(piece));
            }
            Incoming::Message(_) => events.push_back(Event::Other),
            Incoming::Payload { block, offset, data } => {
                assert_eq!(offset as usize, arriving.len());
                arriving.extend_from_slice(data);
                if arriving.len() == block.len as usize {
                    events.push_back(Event::Block(block, std::mem::take(arriving)));
                }
            }
        });
        taken.unwrap_or_else(|error| panic!("the server broke the protocol: {error}"));
    }
}

/// Connects from an address of ours; the kernel chooses the port.
pub(crate) fn connect_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let SocketAddr::V4(to) = to else { return Err(io::ErrorKind::Unsupported.into()) };
    let socket = net::tcp_socket(&SocketAddr::V4(to))?;
    net::bind_source(socket.as_fd(), source.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    connect(&stream, to)?;
    Ok(stream)
}

#[expect(unsafe_code, reason = "std connects no socket that is bound to an address")]
fn connect(stream: &TcpStream, to: SocketAddrV4) -> io::Result<()> {
    let form = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let len = size_of_val(&form) as libc::socklen_t;
    // SAFETY: the address lives during the call and has the length that is given.
    let result = unsafe { libc::connect(stream.as_raw_fd(), (&raw const form).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The opening bytes of a peer that is told apart by `id`.
pub(crate) fn handshake(metainfo: &Metainfo, id: u32) -> Vec<u8> {
    let mut peer_id = *b"-TT0001-00000000test";
    peer_id[8..12].copy_from_slice(&id.to_be_bytes());
    Handshake::new(metainfo.info_hash, PeerId(peer_id), false).encode().to_vec()
}

/// The block number `index` of a piece.
pub(crate) fn block(metainfo: &Metainfo, piece: u32, index: u32) -> Block {
    metainfo.geometry.block(PieceIndex(piece), index).unwrap()
}
