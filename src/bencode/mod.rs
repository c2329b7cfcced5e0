//! Bencode (BEP 3): the encoding of torrents, tracker replies, extensions and DHT packets.
//!
//! Bytes enter [`Document::parse`] and a tree of borrowed [`Value`]s leaves it; values enter an
//! [`Encoder`] and canonical bytes leave it. Invariant: nothing recurses, nothing is allocated by a
//! length that the input claims, and at most 16 bytes are kept per value, so that no input costs
//! more than the [`Limits`] of the place that reads it.
//!
//! A document is a flat list of tokens, each a span of the input and the index of the token behind
//! its subtree. Skipping a value is one step, and the exact bytes of a value ([`Value::raw`]) are
//! there to be hashed: an info-hash is never taken over bytes that were encoded again.
//!
//! One form is accepted: integers and lengths without leading zeros, signs or overflow, and no key
//! twice in a dictionary. Only the order of keys is free, because torrents with unsorted keys
//! exist.
#![forbid(unsafe_code)]

mod encode;
mod scan;
mod value;

#[cfg(test)]
mod tests;

pub use encode::{DictEncoder, Encoder};
pub use value::{Dict, Document, Kind, List, Value};

/// The deepest nesting that any [`Limits`] can allow.
pub const DEPTH_MAX: usize = 32;

/// Values allowed per KiB of input, beside [`TOKENS_FREE`].
///
/// The densest honest input, a torrent of empty files with names of one letter, has 256 in a KiB.
/// At 16 bytes each the tokens never weigh more than four times the input.
pub const TOKENS_PER_KIB_MAX: usize = 256;

/// Values allowed in an input of any length.
pub const TOKENS_FREE: usize = 1000;

/// Bytes of untrusted text that [`excerpt`] shows.
pub const EXCERPT_LEN_MAX: usize = 64;

/// How much one place is ready to read; the named ones are the only ones in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Lists and dictionaries inside each other, at most [`DEPTH_MAX`].
    pub depth: usize,
    /// Values in all, keys included.
    pub tokens: usize,
    /// Length of the input in bytes.
    pub bytes: usize,
}

impl Limits {
    /// A `.torrent` file.
    pub const TORRENT: Self = Self { depth: 32, tokens: 2_000_000, bytes: 10 << 20 };
    /// An `info` dictionary that came from peers (BEP 9).
    pub const METADATA: Self = Self { depth: 32, tokens: 2_000_000, bytes: 8 << 20 };
    /// The handshake of the extension protocol (BEP 10), and `ut_metadata` messages (BEP 9).
    pub const EXTENSION_HANDSHAKE: Self = Self { depth: 8, tokens: 512, bytes: 64 << 10 };
    /// A list of peers from a peer (BEP 11).
    pub const PEX: Self = Self { depth: 4, tokens: 64, bytes: 64 << 10 };
    /// The reply of an HTTP tracker (BEP 3, BEP 23).
    pub const TRACKER: Self = Self { depth: 8, tokens: 20_000, bytes: 1 << 20 };
    /// A packet of the DHT (BEP 5).
    pub const KRPC: Self = Self { depth: 8, tokens: 256, bytes: 2 << 10 };

    /// Values that an input of `len` bytes may have.
    pub fn tokens_max(&self, len: usize) -> usize {
        let by_len = (len / 1024 + 1).saturating_mul(TOKENS_PER_KIB_MAX);
        self.tokens.min(by_len.saturating_add(TOKENS_FREE))
    }
}

/// Why bytes are not bencode, or not bencode of the kind accepted here. Offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The input is longer than [`Limits::bytes`].
    #[error("{len} bytes are more than the {max} allowed here")]
    TooLong {
        /// Length of the input.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Lists and dictionaries are nested deeper than [`Limits::depth`].
    #[error("values are nested deeper than {max} levels at byte {offset}")]
    TooDeep {
        /// Where the level too many opens.
        offset: usize,
        /// The limit.
        max: usize,
    },
    /// There are more values than [`Limits::tokens_max`].
    #[error("there are more than {max} values at byte {offset}")]
    TooManyTokens {
        /// Where the value too many begins.
        offset: usize,
        /// The limit.
        max: usize,
    },
    /// The input ends inside a value.
    #[error("the data ends inside a value at byte {offset}")]
    UnexpectedEnd {
        /// Length of the input.
        offset: usize,
    },
    /// No value begins with this byte, or none can end here.
    #[error("unexpected byte 0x{byte:02x} at byte {offset}")]
    UnexpectedByte {
        /// Where it stands.
        offset: usize,
        /// The byte.
        byte: u8,
    },
    /// An integer that is empty, or has a plus, a leading zero or a negative zero.
    #[error("the integer at byte {offset} is not in canonical form")]
    IntegerForm {
        /// Where the integer begins.
        offset: usize,
    },
    /// An integer that does not fit in 64 bits with a sign.
    #[error("the integer at byte {offset} does not fit in 64 bits")]
    IntegerRange {
        /// Where the integer begins.
        offset: usize,
    },
    /// The length of a string has leading zeros, more than ten digits or no colon.
    #[error("the string at byte {offset} has a malformed length")]
    LengthForm {
        /// Where the string begins.
        offset: usize,
    },
    /// A string is said to be longer than what is left of the input.
    #[error("the string at byte {offset} claims {len} bytes, but {left} are left")]
    LengthBeyondEnd {
        /// Where the string begins.
        offset: usize,
        /// The length it claims.
        len: u64,
        /// The bytes behind its colon.
        left: usize,
    },
    /// A dictionary holds something else where a key must stand.
    #[error("the key at byte {offset} is not a string")]
    KeyNotString {
        /// Where the key should begin.
        offset: usize,
    },
    /// A dictionary ends behind a key.
    #[error("the dictionary that ends at byte {offset} lacks the value of its last key")]
    KeyWithoutValue {
        /// Where the dictionary ends.
        offset: usize,
    },
    /// A dictionary has the same key twice.
    #[error("the key {key} at byte {offset} stands twice in its dictionary")]
    DuplicateKey {
        /// Where the second one begins.
        offset: usize,
        /// The key, cut and escaped.
        key: String,
    },
    /// Something follows the value.
    #[error("{count} bytes follow the value that ends at byte {offset}")]
    TrailingBytes {
        /// Where the value ends.
        offset: usize,
        /// How many bytes follow.
        count: usize,
    },
}

impl Error {
    /// Whether the input is right as far as it goes, and only ends too early: with more bytes, of at
    /// most `bytes_max` in all, it could be whole.
    pub fn is_cut(&self, bytes_max: usize) -> bool {
        let fits = |offset: usize, len: u64| {
            bytes_max.checked_sub(offset).is_some_and(|left| len < left as u64)
        };
        match self {
            Self::UnexpectedEnd { offset } => fits(*offset, 0),
            Self::LengthBeyondEnd { offset, len, .. } => fits(*offset, *len),
            _ => false,
        }
    }

    /// The name of this refusal in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "bencode_too_long",
            Self::TooDeep { .. } => "bencode_too_deep",
            Self::TooManyTokens { .. } => "bencode_too_many_tokens",
            Self::UnexpectedEnd { .. } => "bencode_unexpected_end",
            Self::UnexpectedByte { .. } => "bencode_unexpected_byte",
            Self::IntegerForm { .. } => "bencode_integer_form",
            Self::IntegerRange { .. } => "bencode_integer_range",
            Self::LengthForm { .. } => "bencode_length_form",
            Self::LengthBeyondEnd { .. } => "bencode_length_beyond_end",
            Self::KeyNotString { .. } => "bencode_key_not_string",
            Self::KeyWithoutValue { .. } => "bencode_key_without_value",
            Self::DuplicateKey { .. } => "bencode_duplicate_key",
            Self::TrailingBytes { .. } => "bencode_trailing_bytes",
        }
    }
}

/// Untrusted text fit to be shown: quoted, escaped, and cut to [`EXCERPT_LEN_MAX`] bytes.
///
/// ```
/// use seedring::bencode::excerpt;
/// assert_eq!(excerpt(b"a\x1b[2Jb"), r#""a\u{1b}[2Jb""#);
/// assert_eq!(excerpt(&[b'x'; 1000]).len(), 64 + 2 + "…".len());
/// ```
pub fn excerpt(text: &[u8]) -> String {
    let shown = &text[..text.len().min(EXCERPT_LEN_MAX)];
    let ellipsis = if shown.len() < text.len() { "…" } else { "" };
    format!("\"{}{ellipsis}\"", escape(shown))
}

/// All of an untrusted text, with what is not printable UTF-8 escaped.
pub(crate) fn escape(text: &[u8]) -> String {
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        shown.extend(chunk.valid().escape_debug());
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}
