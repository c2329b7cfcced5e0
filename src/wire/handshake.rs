//! The 68 bytes that open a connection (BEP 3), and what their reserved bits offer.
//!
//! Bytes enter as they arrive; the info-hash leaves as soon as it is there, the handshake when it
//! is whole. Invariant: no byte behind the handshake is taken, and a peer that speaks something
//! else is told apart at its first wrong byte.
#![forbid(unsafe_code)]

use super::Error;
use crate::units::{InfoHash, PeerId};

/// Length byte and name of the protocol: how every handshake begins.
const PROTOCOL: [u8; 20] = *b"\x13BitTorrent protocol";
const RESERVED_END: usize = PROTOCOL.len() + 8;
const INFO_HASH_END: usize = RESERVED_END + 20;

/// Reserved bit of BEP 10, in byte 5.
const EXTENSIONS_BIT: u8 = 0x10;
/// Reserved bit of BEP 6, in byte 7.
const FAST_BIT: u8 = 0x04;
/// Reserved bit of BEP 5, in byte 7.
const DHT_BIT: u8 = 0x01;

/// What a peer says before its first message.
///
/// ```
/// use seedring::units::{InfoHash, PeerId};
/// use seedring::wire::Handshake;
/// let ours = Handshake::new(InfoHash([1; 20]), PeerId([2; 20]), false);
/// assert_eq!(Handshake::parse(&ours.encode()), Ok(ours));
/// assert!(ours.supports_fast() && ours.supports_extensions() && !ours.supports_dht());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    /// The bits by which extensions are offered.
    pub reserved: [u8; 8],
    /// The torrent that the connection is about.
    pub info_hash: InfoHash,
    /// The name the peer gives itself.
    pub peer_id: PeerId,
}

impl Handshake {
    /// Length in bytes.
    pub const LEN: usize = INFO_HASH_END + 20;

    /// A handshake of ours: Fast (BEP 6) and extension protocol (BEP 10) are always offered, the
    /// port message of BEP 5 if `dht`.
    pub fn new(info_hash: InfoHash, peer_id: PeerId, dht: bool) -> Self {
        let last = if dht { FAST_BIT | DHT_BIT } else { FAST_BIT };
        Self { reserved: [0, 0, 0, 0, 0, EXTENSIONS_BIT, 0, last], info_hash, peer_id }
    }

    /// Reads a whole handshake.
    ///
    /// # Errors
    /// [`Error::NotBitTorrent`] if it does not begin as BEP 3 says.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, Error> {
        check_protocol(bytes)?;
        Ok(Self {
            reserved: field(bytes, PROTOCOL.len()),
            info_hash: InfoHash(field(bytes, RESERVED_END)),
            peer_id: PeerId(field(bytes, INFO_HASH_END)),
        })
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..PROTOCOL.len()].copy_from_slice(&PROTOCOL);
        bytes[PROTOCOL.len()..RESERVED_END].copy_from_slice(&self.reserved);
        bytes[RESERVED_END..INFO_HASH_END].copy_from_slice(&self.info_hash.0);
        bytes[INFO_HASH_END..].copy_from_slice(&self.peer_id.0);
        bytes
    }

    /// Whether the Fast extension (BEP 6) is offered.
    pub fn supports_fast(&self) -> bool {
        self.reserved[7] & FAST_BIT != 0
    }

    /// Whether the extension protocol (BEP 10) is offered.
    pub fn supports_extensions(&self) -> bool {
        self.reserved[5] & EXTENSIONS_BIT != 0
    }

    /// Whether the peer has a DHT node and will name its port (BEP 5).
    pub fn supports_dht(&self) -> bool {
        self.reserved[7] & DHT_BIT != 0
    }
}

/// Takes a handshake from bytes as they arrive, in pieces of any size.
///
/// It sees the plain stream only. A transport that has an exchange of its own before it runs that
/// first and feeds what it decrypts, so nothing here has to be answered.
#[derive(Clone, Debug)]
pub struct HandshakeReader {
    bytes: [u8; Handshake::LEN],
    len: usize,
}

impl Default for HandshakeReader {
    fn default() -> Self {
        Self::new()
    }
}

impl HandshakeReader {
    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self { bytes: [0; Handshake::LEN], len: 0 }
    }

    /// Takes bytes from the front of `input` and returns how many; what lies behind belongs to the
    /// [`super::Decoder`].
    ///
    /// # Errors
    /// [`Error::NotBitTorrent`] at the first byte that is not the protocol's.
    pub fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, Error> {
        let room = &mut self.bytes[self.len..];
        let used = room.len().min(input.len());
        room[..used].copy_from_slice(&input[..used]);
        self.len += used;
        check_protocol(&self.bytes[..self.len])?;
        Ok(used)
    }

    /// The bytes taken so far, the first wrong one and what came with it included.
    pub fn taken(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The torrent that the peer is after: there from byte 48 on, before its peer id.
    pub fn info_hash(&self) -> Option<InfoHash> {
        (self.len >= INFO_HASH_END).then(|| InfoHash(field(&self.bytes, RESERVED_END)))
    }

    /// The whole handshake, once 68 bytes were taken.
    pub fn handshake(&self) -> Option<Handshake> {
        if self.len < Handshake::LEN {
            return None;
        }
        Handshake::parse(&self.bytes).ok()
    }
}

/// Whether `bytes`, the beginning of a handshake, are right as far as they go.
fn check_protocol(bytes: &[u8]) -> Result<(), Error> {
    match bytes.iter().zip(&PROTOCOL).position(|(byte, expected)| byte != expected) {
        Some(at) => Err(Error::NotBitTorrent { at }),
        None => Ok(()),
    }
}

/// `N` bytes at the constant offset `at`.
fn field<const N: usize>(bytes: &[u8; Handshake::LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Handshake {
        Handshake::new(InfoHash(*b"aaaaaaaaaabbbbbbbbbb"), PeerId(*b"-sg0100-cccccccccccc"), true)
    }

    #[test]
    fn handshake_is_laid_out_as_bep_3_says() {
        let bytes = sample().encode();
        assert_eq!(
            &bytes[..],
            b"\x13BitTorrent protocol\0\0\0\0\0\x10\0\x05aaaaaaaaaabbbbbbbbbb-sg0100-cccccccccccc"
        );
        assert_eq!(Handshake::parse(&bytes), Ok(sample()));
    }

    #[test]
    fn each_reserved_bit_is_told_apart() {
        let with = |index: usize, bit: u8| {
            let mut handshake = Handshake { reserved: [0; 8], ..sample() };
            handshake.reserved[index] = bit;
            (handshake.supports_extensions(), handshake.supports_fast(), handshake.supports_dht())
        };
        assert_eq!(with(5, 0x10), (true, false, false));
        assert_eq!(with(7, 0x04), (false, true, false));
        assert_eq!(with(7, 0x01), (false, false, true));
        assert_eq!(with(0, 0xff), (false, false, false));
        assert!(!Handshake::new(InfoHash([0; 20]), PeerId([0; 20]), false).supports_dht());
    }

    #[test]
    fn reader_takes_any_split_and_nothing_behind() {
        let mut stream = sample().encode().to_vec();
        stream.extend_from_slice(b"behind");
        for split in 0..=stream.len() {
            let mut reader = HandshakeReader::new();
            let first = reader.handle_bytes(&stream[..split]).unwrap();
            assert_eq!(first, split.min(Handshake::LEN));
            assert_eq!(reader.info_hash(), (split >= 48).then_some(sample().info_hash));
            assert_eq!(reader.handshake(), (split >= 68).then_some(sample()));
            let second = reader.handle_bytes(&stream[first..]).unwrap();
            assert_eq!(first + second, Handshake::LEN);
            assert_eq!(reader.handshake(), Some(sample()));
            assert_eq!(reader.handle_bytes(b"more"), Ok(0));
        }
    }

    #[test]
    fn the_first_wrong_byte_is_an_error_at_once() {
        for at in 0..PROTOCOL.len() {
            let mut bytes = sample().encode();
            bytes[at] ^= 0x20;
            assert_eq!(Handshake::parse(&bytes), Err(Error::NotBitTorrent { at }));
            let mut reader = HandshakeReader::new();
            assert_eq!(reader.handle_bytes(&bytes[..at]), Ok(at));
            let wrong = reader.handle_bytes(&bytes[at..=at]);
            assert_eq!(wrong, Err(Error::NotBitTorrent { at }));
            assert_eq!(reader.handle_bytes(&bytes[at + 1..]), wrong, "it stays refused");
            assert_eq!(reader.handshake(), None);
        }
    }
}
