//! The encoder: values in, canonical bencode out.
//!
//! Integers, strings, lists and dictionaries enter in any order of keys; one byte string leaves.
//! Invariant: keys come out sorted, as BEP 3 asks.
#![forbid(unsafe_code)]

use std::io::Write;
use std::ops::Range;

/// Writes values one behind the other into a buffer.
///
/// ```
/// use seedring::bencode::Encoder;
/// let mut encoder = Encoder::new();
/// encoder.dict(|dict| {
///     dict.int(b"port", 6881).list(b"files", |list| {
///         list.bytes(b"a").bytes(b"b");
///     });
/// });
/// assert_eq!(encoder.finish(), b"d5:filesl1:a1:be4:porti6881ee");
/// ```
#[derive(Default)]
pub struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes behind what `out` holds already.
    pub fn append_to(out: Vec<u8>) -> Self {
        Self { out }
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    /// An integer.
    pub fn int(&mut self, value: i64) -> &mut Self {
        // Writing to a vector cannot fail.
        let _ = write!(self.out, "i{value}e");
        self
    }

    /// A string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let _ = write!(self.out, "{}:", value.len());
        self.out.extend_from_slice(value);
        self
    }

    /// A value that is bencode already.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.out.extend_from_slice(value);
        self
    }

    /// A list of what `fill` writes.
    pub fn list(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.out.push(b'l');
        fill(self);
        self.out.push(b'e');
        self
    }

    /// A dictionary of what `fill` writes.
    pub fn dict(&mut self, fill: impl FnOnce(&mut DictEncoder<'_>)) -> &mut Self {
        self.out.push(b'd');
        let start = self.out.len();
        let mut dict = DictEncoder { encoder: self, pairs: Vec::new() };
        fill(&mut dict);
        dict.sort(start);
        self.out.push(b'e');
        self
    }
}

/// Writes the pairs of one dictionary, in any order.
pub struct DictEncoder<'e> {
    encoder: &'e mut Encoder,
    pairs: Vec<Pair>,
}

/// Where a pair lies in the buffer, and where its key does.
struct Pair {
    key: Range<usize>,
    whole: Range<usize>,
}

impl DictEncoder<'_> {
    /// A pair whose value `fill` writes; it must write exactly one. A key may be given once.
    pub fn pair(&mut self, key: &[u8], fill: impl FnOnce(&mut Encoder)) -> &mut Self {
        let start = self.encoder.out.len();
        self.encoder.bytes(key);
        let key_end = self.encoder.out.len();
        fill(self.encoder);
        debug_assert!(self.encoder.out.len() > key_end, "a key needs a value");
        let whole = start..self.encoder.out.len();
        self.pairs.push(Pair { key: key_end - key.len()..key_end, whole });
        self
    }

    /// A pair with an integer.
    pub fn int(&mut self, key: &[u8], value: i64) -> &mut Self {
        self.pair(key, |encoder| {
            encoder.int(value);
        })
    }

    /// A pair with a string.
    pub fn bytes(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.pair(key, |encoder| {
            encoder.bytes(value);
        })
    }

    /// A pair with a value that is bencode already.
    pub fn raw(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.pair(key, |encoder| {
            encoder.raw(value);
        })
    }

    /// A pair with a list.
    pub fn list(&mut self, key: &[u8], fill: impl FnOnce(&mut Encoder)) -> &mut Self {
        self.pair(key, |encoder| {
            encoder.list(fill);
        })
    }

    /// A pair with a dictionary.
    pub fn dict(&mut self, key: &[u8], fill: impl FnOnce(&mut DictEncoder<'_>)) -> &mut Self {
        self.pair(key, |encoder| {
            encoder.dict(fill);
        })
    }

    /// Brings the pairs, written from `start` on, into the order of their keys.
    fn sort(mut self, start: usize) {
        let out = &mut self.encoder.out;
        if self.pairs.is_sorted_by(|one, two| out[one.key.clone()] < out[two.key.clone()]) {
            return;
        }
        let written = out.split_off(start);
        let text = |range: &Range<usize>| &written[range.start - start..range.end - start];
        self.pairs.sort_by_key(|pair| text(&pair.key));
        debug_assert!(
            self.pairs.is_sorted_by(|one, two| text(&one.key) < text(&two.key)),
            "a key was given twice"
        );
        self.pairs.iter().for_each(|pair| out.extend_from_slice(text(&pair.whole)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_out_sorted_at_every_level() {
        let mut encoder = Encoder::append_to(b"x".to_vec());
        encoder.dict(|dict| {
            dict.dict(b"b", |inner| {
                inner.int(b"z", 1).raw(b"y", b"le").bytes(b"yy", b"");
            });
            dict.int(b"a", i64::MIN);
        });
        assert_eq!(encoder.finish(), b"xd1:ai-9223372036854775808e1:bd1:yle2:yy0:1:zi1eee");
    }
}
