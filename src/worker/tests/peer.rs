//! A peer made by hand: blocking, and as badly behaved as its test wants it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use super::{Torrent, WAIT_MAX};
use crate::sys::{clock, net};
use crate::units::{Block, PeerId};
use crate::wire::{
    Decoder, ExtensionHandshake, Handshake, Incoming, Limits, Message, encode,
    encode_extension_handshake,
};

/// Receive buffer of a narrow peer: little beside a torrent, and still no window of a few bytes.
const RECV_BUFFER_LEN: i32 = 128 * 1024;

/// One connection to a worker.
pub(super) struct Peer {
    stream: TcpStream,
    handshake: Vec<u8>,
    decoder: Decoder,
    /// Whether we may ask.
    pub(super) is_unchoked: bool,
    /// What was sent to us.
    pub(super) blocks: HashMap<Block, Vec<u8>>,
    /// What was refused.
    pub(super) rejects: Vec<Block>,
    /// What we were asked for.
    pub(super) asked: Vec<Block>,
    /// The worker closed the connection.
    pub(super) is_closed: bool,
}

/// The first bytes of a peer called `name`.
pub(super) fn greeting(torrent: &Torrent, name: u8) -> Vec<u8> {
    Handshake::new(torrent.info_hash, PeerId([name; 20]), false).encode().to_vec()
}

/// An extension handshake, `interested` and requests for `blocks`.
pub(super) fn wishes(blocks: &[Block]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reqq = Some(500);
    encode_extension_handshake(&ExtensionHandshake { reqq, ..Default::default() }, &mut bytes);
    encode(&Message::HaveNone, &mut bytes);
    encode(&Message::Interested, &mut bytes);
    bytes.extend(requests(blocks));
    bytes
}

/// An extension handshake that takes one request at a time, all pieces, and an unchoke.
pub(super) fn offer() -> Vec<u8> {
    let mut bytes = Vec::new();
    let reqq = Some(1);
    encode_extension_handshake(&ExtensionHandshake { reqq, ..Default::default() }, &mut bytes);
    encode(&Message::HaveAll, &mut bytes);
    encode(&Message::Unchoke, &mut bytes);
    bytes
}

/// The message that brings `block`, as far as its first `count` bytes of data, all of them zeros.
pub(super) fn beginning(block: Block, count: usize) -> Vec<u8> {
    let mut bytes = (block.len + 9).to_be_bytes().to_vec();
    bytes.push(7);
    bytes.extend(block.piece.0.to_be_bytes());
    bytes.extend(block.begin.to_be_bytes());
    bytes.resize(bytes.len() + count, 0);
    bytes
}

/// Requests for `blocks`.
pub(super) fn requests(blocks: &[Block]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &block in blocks {
        encode(&Message::Request(block), &mut bytes);
    }
    bytes
}

impl Peer {
    /// Connects and writes `first` in one go.
    pub(super) fn connect(addr: SocketAddr, torrent: &Torrent, first: &[u8]) -> Self {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.write_all(first).unwrap();
        Self {
            stream,
            handshake: Vec::new(),
            decoder: Decoder::new(Limits::new(torrent.geometry.piece_count())),
            is_unchoked: false,
            blocks: HashMap::new(),
            rejects: Vec::new(),
            asked: Vec::new(),
            is_closed: false,
        }
    }

    /// Connects, greets as `name` and asks for `blocks`, in one segment.
    pub(super) fn asking(addr: SocketAddr, torrent: &Torrent, name: u8, blocks: &[Block]) -> Self {
        let mut first = greeting(torrent, name);
        first.extend(wishes(blocks));
        Self::connect(addr, torrent, &first)
    }

    /// The same, with a kernel that keeps little of what we do not read.
    pub(super) fn narrow(addr: SocketAddr, torrent: &Torrent, name: u8, blocks: &[Block]) -> Self {
        let mut peer = Self::connect(addr, torrent, &[]);
        net::set_recv_buffer(peer.stream.as_fd(), RECV_BUFFER_LEN).unwrap();
        peer.send(&greeting(torrent, name));
        peer.send(&wishes(blocks));
        peer
    }

    /// Where the worker sees us.
    pub(super) fn addr(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Sends messages, as far as the other side lets us.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.is_closed |= self.stream.write_all(bytes).is_err();
    }

    /// Reads once, or for a moment.
    pub(super) fn read(&mut self) {
        let mut buffer = vec![0; 256 * 1024];
        let count = match self.stream.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return;
            }
            Err(_) => 0,
        };
        self.is_closed |= count == 0;
        let missing = (Handshake::LEN - self.handshake.len()).min(count);
        self.handshake.extend(&buffer[..missing]);
        let Self { decoder, blocks, rejects, asked, is_unchoked, .. } = self;
        let handle = |incoming: Incoming<'_>| match incoming {
            Incoming::Message(Message::Unchoke) => *is_unchoked = true,
            Incoming::Message(Message::Choke) => *is_unchoked = false,
            Incoming::Message(Message::Reject(block)) => rejects.push(block),
            Incoming::Message(Message::Request(block)) => asked.push(block),
            Incoming::Payload { block, offset, data } => {
                let bytes = blocks.entry(block).or_default();
                // A block may be asked for twice.
                bytes.truncate(offset as usize);
                bytes.extend_from_slice(data);
            }
            Incoming::Message(_) => {}
        };
        decoder.decode_all(&buffer[missing..count], handle).expect("the worker speaks well");
    }

    /// Reads until `is_enough`.
    pub(super) fn read_until(&mut self, what: &str, is_enough: impl Fn(&Self) -> bool) {
        let end = clock::now() + WAIT_MAX;
        while !is_enough(self) {
            assert!(clock::now() < end, "waited in vain: {what}; {} blocks", self.blocks.len());
            assert!(!self.is_closed, "closed: {what}; {} blocks", self.blocks.len());
            self.read();
        }
    }

    /// Reads until the worker closes the connection.
    pub(super) fn read_to_end(&mut self) {
        let end = clock::now() + WAIT_MAX;
        while !self.is_closed {
            assert!(clock::now() < end, "not closed");
            self.read();
        }
    }

    /// Whether all of `block` is here.
    pub(super) fn has(&self, block: Block) -> bool {
        self.blocks.get(&block).is_some_and(|bytes| bytes.len() == block.len as usize)
    }

    /// Reads until all of `blocks` are here, and compares them.
    pub(super) fn expect(&mut self, torrent: &Torrent, blocks: &[Block]) {
        self.read_until("blocks", |peer| blocks.iter().all(|&block| peer.has(block)));
        self.assert_right(torrent);
        assert_eq!(self.rejects, []);
    }

    /// Every byte that came is right.
    pub(super) fn assert_right(&self, torrent: &Torrent) {
        for (&block, bytes) in &self.blocks {
            assert!(torrent.bytes_of(block).starts_with(bytes), "{block:?} is wrong");
        }
    }
}
