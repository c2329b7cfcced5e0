//! A peer made of a plain socket and the library's codec, for tests that misbehave on purpose.
//!
//! Messages and raw bytes enter, decoded messages leave. Invariant: it never decides anything by
//! itself; every byte on the wire is one that the test asked for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use seedring::metainfo::Metainfo;
use seedring::units::{Block, PeerId, PieceIndex};
use seedring::wire::{Decoder, Handshake, Incoming, Limits, Message, encode};

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
        let stream = TcpStream::connect(addr).unwrap();
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

    fn take(&mut self, bytes: &[u8]) {
        let (arriving, events) = (&mut self.arriving, &mut self.events);
        let taken = self.decoder.decode_all(bytes, |incoming| match incoming {
            Incoming::Message(Message::Unchoke) => events.push_back(Event::Unchoke),
            Incoming::Message(
                Message::Bitfield(_) | Message::HaveAll | Message::HaveNone | Message::Have(_),
            ) => events.push_back(Event::Have),
            Incoming::Message(Message::Reject(block)) => events.push_back(Event::Reject(block)),
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
