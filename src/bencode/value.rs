//! A parsed document, and the cursors that walk it.
//!
//! A [`Document`] enters with the bytes it was read from; borrowed slices and integers leave.
//! Invariant: reading a value of the wrong kind gives `None`, never a panic.
#![forbid(unsafe_code)]

use super::{Error, Limits, scan};

/// The four kinds of value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `i…e`
    Int,
    /// `3:…`
    Bytes,
    /// `l…e`
    List,
    /// `d…e`
    Dict,
}

/// One value: where it lies in the input, and where the token behind its subtree is.
#[derive(Clone, Copy)]
pub(super) struct Token {
    start: u32,
    end: u32,
    next: u32,
    kind: Kind,
    /// Bytes from `start` to the content: the length and colon of a string, else the first letter.
    head: u8,
}

impl Token {
    /// The scanner takes no input past `u32::MAX` bytes, and every token has a byte of its own.
    pub(super) fn new(kind: Kind, start: usize, end: usize, next: usize, head: usize) -> Self {
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            start: narrow(start),
            end: narrow(end),
            next: narrow(next),
            kind,
            head: u8::try_from(head).unwrap_or(u8::MAX),
        }
    }

    /// Sets what is known only when a list or dictionary ends.
    pub(super) fn close(&mut self, end: usize, next: usize) {
        *self = Self::new(self.kind, self.start(), end, next, usize::from(self.head));
    }

    pub(super) fn start(&self) -> usize {
        self.start as usize
    }

    pub(super) fn next(&self) -> usize {
        self.next as usize
    }

    /// The bytes behind the head.
    pub(super) fn content<'i>(&self, input: &'i [u8]) -> &'i [u8] {
        input.get(self.start() + usize::from(self.head)..self.end as usize).unwrap_or_default()
    }
}

/// Parsed bencode: the input, and 16 bytes for each value in it.
///
/// ```
/// use seedring::bencode::{Document, Limits};
/// let document = Document::parse(b"d1:ai-3e1:bl1:x2:yzee", &Limits::KRPC).unwrap();
/// let root = document.root();
/// assert_eq!(root.get(b"a").and_then(|value| value.as_int()), Some(-3));
/// assert_eq!(root.get(b"b").unwrap().raw(), b"l1:x2:yze");
/// ```
pub struct Document<'i> {
    input: &'i [u8],
    tokens: Vec<Token>,
}

impl<'i> Document<'i> {
    /// Parses all of `input` as one value; anything behind it is an error.
    pub fn parse(input: &'i [u8], limits: &Limits) -> Result<Self, Error> {
        let (document, used) = Self::parse_prefix(input, limits)?;
        match input.len() - used {
            0 => Ok(document),
            count => Err(Error::TrailingBytes { offset: used, count }),
        }
    }

    /// Parses the value at the start of `input`, and tells its length in bytes; whatever follows
    /// is not looked at. The data message of `ut_metadata` has its piece there (BEP 9).
    pub fn parse_prefix(input: &'i [u8], limits: &Limits) -> Result<(Self, usize), Error> {
        let (tokens, used) = scan::scan(input, limits)?;
        Ok((Self { input, tokens }, used))
    }

    /// The value that the document is.
    pub fn root(&self) -> Value<'_> {
        Value { input: self.input, tokens: &self.tokens, index: 0 }
    }

    /// Number of values, keys included.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }
}

/// One value of a [`Document`]; a cursor that costs nothing to copy.
#[derive(Clone, Copy)]
pub struct Value<'d> {
    input: &'d [u8],
    tokens: &'d [Token],
    index: usize,
}

impl<'d> Value<'d> {
    fn token(&self) -> Token {
        // The scanner gives every document a root, and cursors stop before the end.
        self.tokens[self.index]
    }

    fn at(&self, index: usize) -> Self {
        Self { index, ..*self }
    }

    /// What kind of value it is.
    pub fn kind(&self) -> Kind {
        self.token().kind
    }

    /// The exact bytes of the value in the input, head and end included.
    pub fn raw(&self) -> &'d [u8] {
        let token = self.token();
        self.input.get(token.start()..token.end as usize).unwrap_or_default()
    }

    /// Offset in the input of the first byte of [`Value::raw`].
    pub fn offset(&self) -> usize {
        self.token().start()
    }

    /// The content of a string.
    pub fn as_bytes(&self) -> Option<&'d [u8]> {
        let token = self.token();
        (token.kind == Kind::Bytes).then(|| token.content(self.input))
    }

    /// The content of a string that is UTF-8.
    pub fn as_str(&self) -> Option<&'d str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// The value of an integer.
    pub fn as_int(&self) -> Option<i64> {
        let token = self.token();
        if token.kind != Kind::Int {
            return None;
        }
        let digits = token.content(self.input).strip_suffix(b"e")?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// The elements of a list, in order.
    pub fn as_list(&self) -> Option<List<'d>> {
        (self.kind() == Kind::List).then(|| List(self.children()))
    }

    /// The pairs of a dictionary.
    pub fn as_dict(&self) -> Option<Dict<'d>> {
        (self.kind() == Kind::Dict).then_some(Dict(*self))
    }

    /// The value of `key` in a dictionary; `None` of any other kind of value.
    pub fn get(&self, key: &[u8]) -> Option<Self> {
        self.as_dict()?.get(key)
    }

    fn children(&self) -> Children<'d> {
        Children { parent: *self, index: self.index + 1, end: self.token().next() }
    }
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&super::excerpt(self.raw()))
    }
}

/// The elements of a list or, in turn, the keys and values of a dictionary.
#[derive(Clone)]
struct Children<'d> {
    parent: Value<'d>,
    index: usize,
    end: usize,
}

impl<'d> Iterator for Children<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        if self.index >= self.end {
            return None;
        }
        let child = self.parent.at(self.index);
        self.index = child.token().next();
        Some(child)
    }
}

/// The elements of a list, in order.
#[derive(Clone)]
pub struct List<'d>(Children<'d>);

impl<'d> Iterator for List<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        self.0.next()
    }
}

/// A dictionary.
#[derive(Clone, Copy)]
pub struct Dict<'d>(Value<'d>);

impl<'d> Dict<'d> {
    /// The value of `key`; looks at the keys one by one.
    pub fn get(&self, key: &[u8]) -> Option<Value<'d>> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Keys and values, in the order of the input.
    pub fn iter(&self) -> impl Iterator<Item = (&'d [u8], Value<'d>)> + use<'d> {
        let mut children = self.0.children();
        std::iter::from_fn(move || {
            let key = children.next()?.as_bytes()?;
            Some((key, children.next()?))
        })
    }

    /// The exact bytes of the dictionary in the input.
    pub fn raw(&self) -> &'d [u8] {
        self.0.raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_weighs_16_bytes() {
        assert_eq!(size_of::<Token>(), 16);
    }
}
