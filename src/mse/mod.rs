//! Message stream encryption: how two peers agree on a cipher before they speak BitTorrent.
//!
//! Bytes enter as they arrive; what is to be sent, work for another thread ([`Job`]) and at last an
//! [`Established`] stream leave. [`Responder`] is the side that was connected to, [`Initiator`] the
//! one that connects. It hides what a connection is from those who look at it in passing, and lets
//! nobody in who does not know the info-hash; it keeps no secret from those who try hard.
//!
//! The exchange, as the field wrote it down ("Message Stream Encryption" of the Vuze wiki); `S` is
//! the shared secret and `SKEY` the info-hash:
//!
//! ```text
//! A -> B  Ya, PadA
//! B -> A  Yb, PadB
//! A -> B  HASH("req1", S), HASH("req2", SKEY) xor HASH("req3", S),
//!         ENCRYPT(VC, crypto_provide, len(PadC), PadC, len(IA)), ENCRYPT(IA)
//! B -> A  ENCRYPT(VC, crypto_select, len(PadD), PadD), then the chosen stream
//! ```
//!
//! Invariant: a peer costs at most [`Responder::BUFFER_MAX`] bytes and two powers before it has
//! shown that it knows a torrent of ours; no byte behind the exchange is taken; nothing here
//! panics, whatever a peer sends.
#![forbid(unsafe_code)]

mod dh;
mod initiator;
mod intake;
mod rc4;
mod responder;
#[cfg(test)]
mod tests;

pub use dh::{Answer, Job, PrivateKey, PublicKey, Secret};
pub use initiator::Initiator;
pub use rc4::Rc4;
pub use responder::Responder;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use thiserror::Error;

use crate::units::InfoHash;

/// Random bytes that each side may send behind its public key, and the most that may follow later.
pub const PADDING_MAX: usize = 512;

/// Bytes of first payload (IA) that an initiator may send along; a handshake has 68.
pub const PAYLOAD_MAX: usize = 1024;

/// Zeros by which the start of an encrypted part is found.
const VERIFICATION: [u8; 8] = [0; 8];

/// The bit of `crypto_provide` and `crypto_select` for a plain stream.
const PLAIN_BIT: u32 = 1;
/// The bit for a stream under RC4.
const RC4_BIT: u32 = 2;

/// What we do about encryption: `net.encryption`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Plain connections only.
    Off,
    /// Both are answered; plain is tried first, encrypted after a refused handshake.
    #[default]
    Allow,
    /// Both are answered; encrypted is tried first, plain after a refused handshake.
    Prefer,
    /// Encrypted streams only, both ways.
    Require,
}

impl Policy {
    /// Whether a peer may begin with a plain handshake.
    pub fn takes_plain(self) -> bool {
        self != Self::Require
    }

    /// Whether a peer may begin with this exchange.
    pub fn takes_encrypted(self) -> bool {
        self != Self::Off
    }

    /// Whether the first attempt at an address begins with this exchange.
    pub fn begins_encrypted(self) -> bool {
        matches!(self, Self::Prefer | Self::Require)
    }

    /// Whether a second attempt is made, the other way, when the first one reached a peer that
    /// closed before its handshake.
    pub fn has_second_way(self) -> bool {
        matches!(self, Self::Allow | Self::Prefer)
    }

    /// The streams that we offer as initiator.
    fn provided(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Allow | Self::Prefer => PLAIN_BIT | RC4_BIT,
            Self::Require => RC4_BIT,
        }
    }

    /// The stream that we choose as responder: the cheaper one, unless the policy says otherwise.
    fn select(self, provided: u32) -> Option<u32> {
        let order: &[u32] = match self {
            Self::Off => &[],
            Self::Allow => &[PLAIN_BIT, RC4_BIT],
            Self::Prefer => &[RC4_BIT, PLAIN_BIT],
            Self::Require => &[RC4_BIT],
        };
        order.iter().copied().find(|bit| provided & bit != 0)
    }
}

/// Why an exchange ends; each closes its own connection.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
pub enum Error {
    /// 0, 1, the prime less 1, or not below the prime.
    #[error("the public key is one that gives the secret away")]
    PublicKey,
    /// More padding than may be, or none of this exchange at all.
    #[error("the next part does not begin within {PADDING_MAX} bytes of padding")]
    Lost,
    /// Something came before it could be known what to say.
    #[error("bytes came before their turn")]
    Early,
    /// The torrent is not one of ours.
    #[error("the torrent is not here")]
    UnknownTorrent,
    /// What was decrypted is not the protocol.
    #[error("the verification constant is not zero")]
    Verification,
    /// Padding behind the header.
    #[error("{0} bytes of padding are announced, {PADDING_MAX} are the most")]
    PaddingLen(u16),
    /// First payload.
    #[error("{0} bytes of first payload are announced, {PAYLOAD_MAX} are the most")]
    PayloadLen(u16),
    /// The two sides have no kind of stream in common.
    #[error("no kind of stream in common: the peer names {0:#x}")]
    NoMethod(u32),
}

/// The two ciphers of an encrypted stream.
#[derive(Clone, Debug)]
pub struct Ciphers {
    /// Of what arrives.
    pub incoming: Rc4,
    /// Of what is sent.
    pub outgoing: Rc4,
}

impl Ciphers {
    fn new(secret: &Secret, info_hash: &InfoHash, is_initiator: bool) -> Self {
        let key = |name: &[u8]| Rc4::for_stream(&hash(name, &[&secret.0, &info_hash.0]));
        let (a, b) = (key(b"keyA"), key(b"keyB"));
        let (incoming, outgoing) = if is_initiator { (b, a) } else { (a, b) };
        Self { incoming, outgoing }
    }
}

/// What an exchange led to.
#[derive(Clone, Debug)]
pub struct Established {
    /// The torrent that the connection is about.
    pub info_hash: InfoHash,
    /// What the initiator sent along, decrypted: the start of its stream.
    pub payload: Vec<u8>,
    /// The ciphers of all that follows; `None` for a plain stream.
    pub ciphers: Option<Box<Ciphers>>,
}

/// By what a torrent is found without naming it: HASH("req2", SKEY). A server keeps a table of
/// them, because they cannot be turned back.
pub fn torrent_mark(info_hash: &InfoHash) -> [u8; 20] {
    hash(b"req2", &[&info_hash.0])
}

/// SHA-1 of a name and what follows it.
fn hash(name: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    let mut hasher = Sha1::new();
    hasher.update(name);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
