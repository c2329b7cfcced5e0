//! Taking the bytes of one part of an exchange, and not one more; and the small readings of them.
#![forbid(unsafe_code)]

use super::{Error, PADDING_MAX};

/// The bytes of the part that is arriving.
#[derive(Clone, Default, Debug)]
pub(super) struct Intake(Vec<u8>);

impl Intake {
    /// Takes from the front of `input` until `len` bytes are there, and gives them then.
    pub(super) fn exactly(&mut self, input: &mut &[u8], len: usize) -> Option<Vec<u8>> {
        let missing = len.saturating_sub(self.0.len()).min(input.len());
        let (now, later) = input.split_at(missing);
        self.0.extend_from_slice(now);
        *input = later;
        (self.0.len() >= len).then(|| std::mem::take(&mut self.0))
    }

    /// Takes from the front of `input` until `mark` was taken; true when it was.
    ///
    /// # Errors
    /// [`Error::Lost`] when it does not end within [`PADDING_MAX`] bytes and its own length.
    pub(super) fn up_to(&mut self, input: &mut &[u8], mark: &[u8]) -> Result<bool, Error> {
        while let Some((&byte, later)) = input.split_first() {
            if self.0.len() >= PADDING_MAX + mark.len() {
                return Err(Error::Lost);
            }
            self.0.push(byte);
            *input = later;
            if self.0.ends_with(mark) {
                self.0.clear();
                return Ok(true);
            }
        }
        // Told at the last byte that could have ended it, not at the one behind.
        if self.0.len() >= PADDING_MAX + mark.len() { Err(Error::Lost) } else { Ok(false) }
    }
}

/// The big-endian number of two bytes at `at`; 0 where there are none.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    u16::from_be_bytes([byte(at), byte(at + 1)])
}

/// The big-endian number of four bytes at `at`; 0 where there are none.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// Keeps what came while somebody computes, and takes it off `input`.
///
/// # Errors
/// [`Error::Early`] for more than the padding that may come then.
pub(super) fn keep_early(early: &mut Vec<u8>, input: &mut &[u8]) -> Result<(), Error> {
    if early.len() + input.len() > PADDING_MAX {
        return Err(Error::Early);
    }
    early.extend_from_slice(std::mem::take(input));
    Ok(())
}

/// A length of padding as it was announced.
///
/// # Errors
/// [`Error::PaddingLen`] for more than [`PADDING_MAX`].
pub(super) fn bounded_padding(len: u16) -> Result<usize, Error> {
    if usize::from(len) > PADDING_MAX { Err(Error::PaddingLen(len)) } else { Ok(len.into()) }
}

/// A hash laid over the first bytes of another, which takes it off again too.
pub(super) fn xor(one: &[u8], mut other: [u8; 20]) -> [u8; 20] {
    for (byte, one) in other.iter_mut().zip(one) {
        *byte ^= one;
    }
    other
}
