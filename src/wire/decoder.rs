//! Bytes to messages, as they come from the socket.
//!
//! Slices of receive buffers enter; messages leave, and the data of blocks in place, chunk by
//! chunk. Invariant: a length is judged on the five bytes of length and id, memory is taken for
//! what has arrived and never for what was announced, and between messages none is held.
//!
//! What lies whole in the input is read where it lies. A message that straddles two inputs is
//! gathered: in 17 bytes of the decoder itself if it is short, on the heap if it is a bitfield or
//! an extended message. Block data is never gathered.
#![forbid(unsafe_code)]

use super::{CONTROL_LEN_MAX, Error, Message, id};
use crate::units::{BLOCK_LEN, Block, PieceIndex};

/// The longest head: a whole request, which is the longest message of fixed length.
const HEAD_LEN_MAX: usize = 17;

/// Length prefix and id: what a message is judged by.
const JUDGED_LEN: usize = 5;

/// Bytes that a message under way must grow by from one check to the next, lest the peer be taken
/// for one that holds its connection open by dribbling; see [`Progress::is_stalled_since`].
pub const PROGRESS_LEN_MIN: u64 = 1024;

/// What a peer may send, besides what the protocol says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Pieces of the torrent: a bitfield has exactly that many bits.
    pub piece_count: u32,
    /// Whether that is only the most that there can be, and a bitfield may be shorter.
    pub is_most: bool,
    /// Greatest number of data bytes in one block.
    pub block_len_max: u32,
}

impl Limits {
    /// The limits for a torrent of `piece_count` pieces and blocks of the universal 16 KiB.
    pub fn new(piece_count: u32) -> Self {
        Self { piece_count, is_most: false, block_len_max: BLOCK_LEN }
    }

    /// The limits while it is not known how many pieces the torrent has, but for the most.
    pub fn at_most(piece_count: u32) -> Self {
        Self { is_most: true, ..Self::new(piece_count) }
    }

    /// Judges the beginning of a message, as far as it has come.
    #[inline]
    fn judge(&self, bytes: &[u8]) -> Result<Shape, Error> {
        let Some((prefix, rest)) = bytes.split_first_chunk::<4>() else {
            return Ok(Shape::Unknown { head_len: 4 });
        };
        let len = u32::from_be_bytes(*prefix);
        if len == 0 {
            return Ok(Shape::KeepAlive);
        }
        let Some(&id) = rest.first() else {
            return Ok(Shape::Unknown { head_len: JUDGED_LEN });
        };
        self.judge_len(id, len)
    }

    /// Judges the id of a message and its declared length, which counts the id and is not 0.
    #[inline]
    fn judge_len(&self, id: u8, len: u32) -> Result<Shape, Error> {
        let fixed = |expected: u32, error: Error| {
            if len == expected { Ok(Shape::Fixed { id, len }) } else { Err(error) }
        };
        match id {
            id::REQUEST | id::CANCEL | id::REJECT => fixed(13, Error::RangeLen { id, len }),
            id::PIECE => match len.checked_sub(9) {
                Some(data_len) if data_len > 0 && data_len <= self.block_len_max => {
                    Ok(Shape::Piece { data_len })
                }
                _ => Err(Error::BlockLen { len, max: self.block_len_max.saturating_add(9) }),
            },
            id::HAVE | id::SUGGEST | id::ALLOWED_FAST => fixed(5, Error::IndexLen { id, len }),
            id::CHOKE
            | id::UNCHOKE
            | id::INTERESTED
            | id::NOT_INTERESTED
            | id::HAVE_ALL
            | id::HAVE_NONE => fixed(1, Error::StateLen { id, len }),
            id::PORT => fixed(3, Error::PortLen { len }),
            id::BITFIELD => {
                let expected = self.piece_count.div_ceil(8) + 1;
                let fits =
                    if self.is_most { (2..=expected).contains(&len) } else { len == expected };
                if !fits {
                    return Err(Error::BitfieldLen { len, expected });
                }
                Ok(Shape::Bitfield { len: len as usize - 1 })
            }
            id::EXTENDED if (2..=CONTROL_LEN_MAX).contains(&len) => {
                Ok(Shape::Extended { payload_len: len as usize - 2 })
            }
            id::EXTENDED => Err(Error::ExtendedLen { len }),
            _ => Err(Error::UnknownMessage { id, len }),
        }
    }
}

/// What the first bytes of a message say about it.
#[derive(Clone, Copy)]
enum Shape {
    /// Too few bytes to tell; that many are needed to tell more.
    Unknown {
        head_len: usize,
    },
    KeepAlive,
    /// A message of at most 13 bytes behind the prefix, all of which is head.
    Fixed {
        id: u8,
        len: u32,
    },
    /// A block: index and begin belong to the head, the data does not.
    Piece {
        data_len: u32,
    },
    /// A bitfield: only the id belongs to the head.
    Bitfield {
        len: usize,
    },
    /// An extended message: both ids belong to the head, the payload does not.
    Extended {
        payload_len: usize,
    },
}

impl Shape {
    /// Bytes of the head, length prefix included: at most [`HEAD_LEN_MAX`].
    #[inline]
    fn head_len(self) -> usize {
        match self {
            Self::Unknown { head_len } => head_len,
            Self::KeepAlive => 4,
            Self::Fixed { len, .. } => 4 + len as usize,
            Self::Piece { .. } => super::BLOCK_HEADER_LEN,
            Self::Bitfield { .. } => JUDGED_LEN,
            Self::Extended { .. } => JUDGED_LEN + 1,
        }
    }
}

/// The two messages whose end is gathered on the heap where it straddles inputs.
#[derive(Clone, Copy, Debug)]
enum Body {
    Bitfield,
    Extended { id: u8 },
}

impl Body {
    fn message(self, bytes: &[u8]) -> Message<'_> {
        match self {
            Self::Bitfield => Message::Bitfield(bytes),
            Self::Extended { id } => Message::Extended { id, payload: bytes },
        }
    }
}

/// What the decoder gives back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// Data of a block, straight from the input.
    ///
    /// The chunks of a block come in order and without a gap, with nothing between them. The first
    /// one has `offset` 0 and comes as soon as the header is known, if need be without data, so
    /// that the block can be refused early; the last one ends at `block.len`.
    Payload {
        /// What the peer says it sends; `len` is 1 to [`Limits::block_len_max`], `piece` and
        /// `begin` are as unchecked as in any message.
        block: Block,
        /// Where `data` lies in the block, in bytes.
        offset: u32,
        /// The bytes; empty only in a first chunk.
        data: &'a [u8],
    },
}

/// How far a message under way has come; see [`Decoder::progress`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    message_start: u64,
    taken: u64,
}

impl Progress {
    /// Whether the message is still the one of `earlier` and has not grown by
    /// [`PROGRESS_LEN_MIN`] since then.
    pub fn is_stalled_since(&self, earlier: &Self) -> bool {
        self.message_start == earlier.message_start
            && self.taken.saturating_sub(earlier.taken) < PROGRESS_LEN_MIN
    }
}

/// Where the decoder stands in the stream.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Between messages, or in a head of which `head_len` bytes have come.
    Head,
    /// In a body of which `body` holds what has come.
    Body { kind: Body, len: usize },
    /// In the data of a block, of which `offset` bytes (fewer than its length) were given out.
    Payload { block: Block, offset: u32 },
}

/// Reads the messages of one connection, from its handshake on.
///
/// ```
/// use seedring::units::PieceIndex;
/// use seedring::wire::{Decoder, Incoming, Limits, Message};
/// let mut decoder = Decoder::new(Limits::new(8));
/// let mut input: &[u8] = &[0, 0, 0, 1, 1, 0, 0, 0, 5, 4, 0, 0, 0, 7, 0, 0];
/// let unchoke = decoder.decode(&mut input);
/// assert_eq!(unchoke, Ok(Some(Incoming::Message(Message::Unchoke))));
/// let have = decoder.decode(&mut input);
/// assert_eq!(have, Ok(Some(Incoming::Message(Message::Have(PieceIndex(7))))));
/// assert_eq!(decoder.decode(&mut input), Ok(None));
/// assert!(input.is_empty() && decoder.is_mid_message());
/// ```
#[derive(Clone, Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    head: [u8; HEAD_LEN_MAX],
    head_len: usize,
    /// What has come of a bitfield or extended message. Given out when whole, and freed at the
    /// call after that, which is the first one that finds it under [`State::Head`].
    body: Vec<u8>,
    taken: u64,
    message_start: u64,
}

impl Decoder {
    /// A decoder at the first byte behind the handshake.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: [0; HEAD_LEN_MAX],
            head_len: 0,
            body: Vec::new(),
            taken: 0,
            message_start: 0,
        }
    }

    /// Takes the next message or chunk of block data from the front of `input`; to be called until
    /// it returns `None`, which says that the input is used up.
    ///
    /// # Errors
    /// The violation that ends the connection, found before anything of the message but its length
    /// and id is taken. The decoder stays in front of it: each further call says the same.
    #[inline]
    pub fn decode<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Incoming<'a>>, Error> {
        match self.state {
            State::Head => self.decode_head(input),
            State::Body { kind, len } => Ok(self.decode_body(kind, len, input)),
            State::Payload { .. } if input.is_empty() => Ok(None),
            State::Payload { block, offset } => Ok(Some(self.decode_payload(block, offset, input))),
        }
    }

    /// Gives everything that `input` holds to `handle`, in order.
    ///
    /// # Errors
    /// As [`Self::decode`]; what came before the violation was handled.
    pub fn decode_all(
        &mut self,
        mut input: &[u8],
        mut handle: impl FnMut(Incoming<'_>),
    ) -> Result<(), Error> {
        while let Some(incoming) = self.decode(&mut input)? {
            handle(incoming);
        }
        Ok(())
    }

    /// The torrent turns out to have `piece_count` pieces. A bitfield that is under way keeps the
    /// length that it began with.
    pub fn set_piece_count(&mut self, piece_count: u32) {
        self.limits =
            Limits { block_len_max: self.limits.block_len_max, ..Limits::new(piece_count) };
    }

    /// Whether a message has begun and is not whole.
    pub fn is_mid_message(&self) -> bool {
        self.head_len > 0 || !matches!(self.state, State::Head)
    }

    /// Bytes of the stream taken so far.
    pub fn bytes_taken(&self) -> u64 {
        self.taken
    }

    /// How far the message under way has come; `None` between messages. The caller keeps it from
    /// one check (say, every 10 s) to the next and asks [`Progress::is_stalled_since`].
    pub fn progress(&self) -> Option<Progress> {
        self.is_mid_message()
            .then_some(Progress { message_start: self.message_start, taken: self.taken })
    }

    /// Bytes of heap that the decoder holds: 0 between messages, and never more than twice what has
    /// arrived of a message, nor than its length.
    pub fn heap_len(&self) -> usize {
        self.body.capacity()
    }

    #[inline]
    fn decode_head<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Incoming<'a>>, Error> {
        if self.head_len > 0 {
            return self.gather_head(input);
        }
        if self.body.capacity() > 0 {
            self.body = Vec::new();
        }
        self.message_start = self.taken;
        let shape = self.limits.judge(input)?;
        let Some((head, rest)) = input.split_at_checked(shape.head_len()) else {
            return self.gather_head(input);
        };
        *input = rest;
        self.taken += head.len() as u64;
        Ok(self.handle_head(shape, head, input))
    }

    /// Adds bytes to the head until it is whole or the input is used up.
    #[cold]
    fn gather_head<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Incoming<'a>>, Error> {
        loop {
            let shape = self.limits.judge(&self.head[..self.head_len])?;
            let missing = shape.head_len() - self.head_len;
            if missing == 0 {
                let head = self.head;
                self.head_len = 0;
                return Ok(self.handle_head(shape, &head[..shape.head_len()], input));
            }
            if input.is_empty() {
                return Ok(None);
            }
            let bytes = self.take(missing, input);
            self.head[self.head_len..][..bytes.len()].copy_from_slice(bytes);
            self.head_len += bytes.len();
        }
    }

    /// Handles a whole head, which `input` lies behind.
    #[inline]
    fn handle_head<'a, 'i: 'a>(
        &'a mut self,
        shape: Shape,
        head: &[u8],
        input: &mut &'i [u8],
    ) -> Option<Incoming<'a>> {
        let words = head.get(JUDGED_LEN..).unwrap_or_default();
        match shape {
            Shape::Unknown { .. } => None,
            Shape::KeepAlive => Some(Incoming::Message(Message::KeepAlive)),
            Shape::Fixed { id, .. } => Some(Incoming::Message(fixed_message(id, words))),
            Shape::Piece { data_len } => {
                let block = Block {
                    piece: PieceIndex(word(words, 0)),
                    begin: word(words, 1),
                    len: data_len,
                };
                Some(self.decode_payload(block, 0, input))
            }
            Shape::Bitfield { len } => self.decode_body(Body::Bitfield, len, input),
            Shape::Extended { payload_len } => {
                let id = words.first().copied().unwrap_or_default();
                self.decode_body(Body::Extended { id }, payload_len, input)
            }
        }
    }

    fn decode_payload<'i>(
        &mut self,
        block: Block,
        offset: u32,
        input: &mut &'i [u8],
    ) -> Incoming<'i> {
        let left = block.len - offset;
        let data = self.take(left as usize, input);
        // Cannot fail, as `data` is no longer than `left`.
        let end = u32::try_from(data.len()).map_or(block.len, |len| offset + len);
        self.state =
            if end < block.len { State::Payload { block, offset: end } } else { State::Head };
        Incoming::Payload { block, offset, data }
    }

    fn decode_body<'a, 'i: 'a>(
        &'a mut self,
        kind: Body,
        len: usize,
        input: &mut &'i [u8],
    ) -> Option<Incoming<'a>> {
        let bytes = self.take(len - self.body.len(), input);
        if self.body.is_empty() && bytes.len() == len {
            self.state = State::Head;
            return Some(Incoming::Message(kind.message(bytes)));
        }
        let gathered = self.body.len() + bytes.len();
        if gathered > self.body.capacity() {
            let capacity = (2 * gathered).min(len);
            self.body.reserve_exact(capacity - self.body.len());
        }
        self.body.extend_from_slice(bytes);
        if gathered < len {
            self.state = State::Body { kind, len };
            return None;
        }
        self.state = State::Head;
        Some(Incoming::Message(kind.message(&self.body)))
    }

    /// Takes up to `len` bytes from the front of `input`.
    #[inline]
    fn take<'i>(&mut self, len: usize, input: &mut &'i [u8]) -> &'i [u8] {
        let (front, rest) = input.split_at(len.min(input.len()));
        *input = rest;
        self.taken += front.len() as u64;
        front
    }
}

/// The message of a fixed length whose body, of the right length, is `body`.
#[inline]
fn fixed_message(id: u8, body: &[u8]) -> Message<'static> {
    let piece = || PieceIndex(word(body, 0));
    let block = || Block { piece: piece(), begin: word(body, 1), len: word(body, 2) };
    match id {
        id::CHOKE => Message::Choke,
        id::UNCHOKE => Message::Unchoke,
        id::INTERESTED => Message::Interested,
        id::NOT_INTERESTED => Message::NotInterested,
        id::HAVE => Message::Have(piece()),
        id::REQUEST => Message::Request(block()),
        id::CANCEL => Message::Cancel(block()),
        id::PORT => Message::Port(body.first_chunk().map_or(0, |port| u16::from_be_bytes(*port))),
        id::SUGGEST => Message::Suggest(piece()),
        id::HAVE_ALL => Message::HaveAll,
        id::HAVE_NONE => Message::HaveNone,
        id::REJECT => Message::Reject(block()),
        // The last of the ids that `judge_len` calls fixed.
        _ => Message::AllowedFast(piece()),
    }
}

/// The 32-bit number at `index` in `body`, which is long enough.
#[inline]
fn word(body: &[u8], index: usize) -> u32 {
    body.as_chunks().0.get(index).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
