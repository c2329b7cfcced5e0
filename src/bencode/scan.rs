//! The scanner: one pass over the input that judges every byte and writes the tokens.
//!
//! Bytes and limits enter, tokens and the number of bytes used leave. Invariant: the open
//! containers are a fixed array, so that nesting costs neither stack nor heap.
#![forbid(unsafe_code)]

use super::value::{Kind, Token};
use super::{DEPTH_MAX, Error, Limits, excerpt};

/// Digits of the longest length that is looked at; BEP 3 sets no limit.
const LENGTH_DIGITS_MAX: usize = 10;

/// Digits of `i64::MIN` and `i64::MAX`.
const INTEGER_DIGITS_MAX: usize = 19;

/// A list or dictionary that is not closed yet.
#[derive(Clone, Copy)]
struct Frame {
    /// Index of its token.
    token: usize,
    kind: Kind,
    /// Index of the token of its newest key.
    key: Option<usize>,
    /// A key was read and its value was not.
    wants_value: bool,
    /// Each key so far was greater than the one before it.
    sorted: bool,
}

impl Frame {
    const NONE: Self =
        Self { token: 0, kind: Kind::List, key: None, wants_value: false, sorted: true };

    fn wants_key(&self) -> bool {
        self.kind == Kind::Dict && !self.wants_value
    }
}

pub(super) struct Scanner<'i> {
    input: &'i [u8],
    position: usize,
    tokens: Vec<Token>,
    tokens_max: usize,
    frames: [Frame; DEPTH_MAX],
    depth: usize,
    depth_max: usize,
}

/// Reads one value from the start of `input`: its tokens, and its length in bytes.
pub(super) fn scan(input: &[u8], limits: &Limits) -> Result<(Vec<Token>, usize), Error> {
    // Tokens hold offsets in 32 bits.
    let bytes_max = limits.bytes.min(u32::MAX as usize);
    if input.len() > bytes_max {
        return Err(Error::TooLong { len: input.len(), max: bytes_max });
    }
    let tokens_max = limits.tokens_max(input.len());
    let mut scanner = Scanner {
        input,
        position: 0,
        tokens: Vec::with_capacity(tokens_max.min(input.len() / 16 + 8).min(4096)),
        tokens_max,
        frames: [Frame::NONE; DEPTH_MAX],
        depth: 0,
        depth_max: limits.depth.min(DEPTH_MAX),
    };
    scanner.run()?;
    scanner.tokens.shrink_to_fit();
    Ok((scanner.tokens, scanner.position))
}

impl Scanner<'_> {
    fn run(&mut self) -> Result<(), Error> {
        loop {
            let byte = self.peek()?;
            let offset = self.position;
            if byte == b'e' {
                self.close()?;
            } else if self.frame().is_some_and(|frame| frame.wants_key()) {
                self.key(byte)?;
            } else {
                if let Some(frame) = self.frame() {
                    frame.wants_value = false;
                }
                match byte {
                    b'0'..=b'9' => self.string()?,
                    b'i' => self.integer()?,
                    b'l' => self.open(Kind::List)?,
                    b'd' => self.open(Kind::Dict)?,
                    _ => return Err(Error::UnexpectedByte { offset, byte }),
                }
            }
            if self.depth == 0 {
                return Ok(());
            }
        }
    }

    fn peek(&self) -> Result<u8, Error> {
        let byte = self.input.get(self.position).copied();
        byte.ok_or(Error::UnexpectedEnd { offset: self.input.len() })
    }

    /// The innermost open container.
    fn frame(&mut self) -> Option<&mut Frame> {
        let innermost = self.depth.checked_sub(1)?;
        self.frames.get_mut(innermost)
    }

    fn push(&mut self, kind: Kind, start: usize, head: usize) -> Result<(), Error> {
        if self.tokens.len() >= self.tokens_max {
            return Err(Error::TooManyTokens { offset: start, max: self.tokens_max });
        }
        let next = self.tokens.len() + 1;
        self.tokens.push(Token::new(kind, start, self.position, next, head));
        Ok(())
    }

    fn open(&mut self, kind: Kind) -> Result<(), Error> {
        let offset = self.position;
        if self.depth >= self.depth_max {
            return Err(Error::TooDeep { offset, max: self.depth_max });
        }
        self.position += 1;
        self.push(kind, offset, 1)?;
        self.frames[self.depth] = Frame { token: self.tokens.len() - 1, kind, ..Frame::NONE };
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        let offset = self.position;
        let Some(&mut frame) = self.frame() else {
            return Err(Error::UnexpectedByte { offset, byte: b'e' });
        };
        if frame.wants_value {
            return Err(Error::KeyWithoutValue { offset });
        }
        self.position += 1;
        self.depth -= 1;
        let next = self.tokens.len();
        self.tokens[frame.token].close(self.position, next);
        if frame.sorted { Ok(()) } else { self.refuse_duplicates(frame.token) }
    }

    fn key(&mut self, byte: u8) -> Result<(), Error> {
        if !byte.is_ascii_digit() {
            return Err(Error::KeyNotString { offset: self.position });
        }
        self.string()?;
        let key = self.tokens.len() - 1;
        let input = self.input;
        let text = self.tokens[key].content(input);
        let before = self.frame().and_then(|frame| frame.key);
        let order = before.map(|before| self.tokens[before].content(input).cmp(text));
        if order.is_some_and(std::cmp::Ordering::is_eq) {
            return Err(self.duplicate(key));
        }
        if let Some(frame) = self.frame() {
            frame.key = Some(key);
            frame.wants_value = true;
            frame.sorted &= order.is_none_or(std::cmp::Ordering::is_lt);
        }
        Ok(())
    }

    /// Judges a dictionary whose keys were not sorted; sorted ones are judged key by key.
    fn refuse_duplicates(&self, dict: usize) -> Result<(), Error> {
        let mut keys = Vec::new();
        let mut key = dict + 1;
        while key < self.tokens[dict].next() {
            keys.push(key);
            key = self.tokens[key + 1].next();
        }
        keys.sort_by_key(|&key| (self.tokens[key].content(self.input), key));
        let text = |key: usize| self.tokens[key].content(self.input);
        match keys.windows(2).find(|pair| text(pair[0]) == text(pair[1])) {
            Some(pair) => Err(self.duplicate(pair[1])),
            None => Ok(()),
        }
    }

    fn duplicate(&self, key: usize) -> Error {
        let token = &self.tokens[key];
        Error::DuplicateKey { offset: token.start(), key: excerpt(token.content(self.input)) }
    }

    fn string(&mut self) -> Result<(), Error> {
        let offset = self.position;
        let mut len = 0u64;
        loop {
            let byte = self.peek()?;
            let digits = self.position - offset;
            match byte {
                b':' => break,
                b'0'..=b'9' if digits < LENGTH_DIGITS_MAX && (digits == 0 || len > 0) => {
                    len = len * 10 + u64::from(byte - b'0');
                }
                _ => return Err(Error::LengthForm { offset }),
            }
            self.position += 1;
        }
        let content = self.position + 1;
        let left = self.input.len() - content;
        match usize::try_from(len) {
            Ok(len) if len <= left => self.position = content + len,
            _ => return Err(Error::LengthBeyondEnd { offset, len, left }),
        }
        self.push(Kind::Bytes, offset, content - offset)
    }

    fn integer(&mut self) -> Result<(), Error> {
        let offset = self.position;
        self.position += 1;
        let negative = self.peek()? == b'-';
        self.position += usize::from(negative);
        let digits_start = self.position;
        let mut value = 0i64;
        loop {
            let byte = self.peek()?;
            let digits = self.position - digits_start;
            match byte {
                b'e' if digits == 0 || (negative && value == 0) => {
                    return Err(Error::IntegerForm { offset });
                }
                b'e' => break,
                b'0'..=b'9' if digits == 0 || value != 0 => {
                    if digits >= INTEGER_DIGITS_MAX {
                        return Err(Error::IntegerRange { offset });
                    }
                    let digit = i64::from(byte - b'0');
                    let scaled = value.checked_mul(10);
                    value = scaled
                        .and_then(|scaled| {
                            scaled.checked_add(if negative { -digit } else { digit })
                        })
                        .ok_or(Error::IntegerRange { offset })?;
                }
                _ => return Err(Error::IntegerForm { offset }),
            }
            self.position += 1;
        }
        self.position += 1;
        self.push(Kind::Int, offset, 1)
    }
}
