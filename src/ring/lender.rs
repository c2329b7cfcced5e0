//! Memory for copies that are sent, used again once the kernel is done with them.
//!
//! Bytes enter and leave as a share for a [`Batch`](super::Batch); when the last share is gone, the
//! memory is back. Fresh memory would cost a page fault per 4 KiB. Invariant: what is out is
//! counted by what it occupies, and at most [`SPARE_LEN_MAX`] bytes are kept for the next copies.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bytes kept without use.
const SPARE_LEN_MAX: usize = 4 * 1024 * 1024;

/// The memory of one thread's copies.
#[derive(Clone, Debug, Default)]
pub struct Lender(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Bytes that are out.
    lent_len: Cell<usize>,
    /// The last that came back first: most of it is still in the processor's cache.
    spare: RefCell<Vec<Vec<u8>>>,
    spare_len: Cell<usize>,
}

/// Bytes that go back where their memory came from.
#[derive(Debug)]
pub struct Loan {
    bytes: Vec<u8>,
    from: Rc<Inner>,
}

impl Lender {
    /// Empty memory, to be written and then lent.
    pub fn take(&self) -> Vec<u8> {
        let spare = self.0.spare.borrow_mut().pop().unwrap_or_default();
        self.0.spare_len.set(self.0.spare_len.get() - spare.capacity());
        spare
    }

    /// Makes bytes shareable; they do not change any more.
    pub fn lend(&self, bytes: Vec<u8>) -> Rc<Loan> {
        self.0.lent_len.set(self.0.lent_len.get() + bytes.capacity());
        Rc::new(Loan { bytes, from: Rc::clone(&self.0) })
    }

    /// Bytes of memory that are out.
    pub fn lent_len(&self) -> usize {
        self.0.lent_len.get()
    }

    /// Bytes of memory that are out or kept for the next.
    pub fn len(&self) -> usize {
        self.lent_len() + self.0.spare_len.get()
    }

    /// Whether it has no memory at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Loan {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let (mut bytes, from) = (std::mem::take(&mut self.bytes), &self.from);
        from.lent_len.set(from.lent_len.get() - bytes.capacity());
        let spare_len = from.spare_len.get() + bytes.capacity();
        if bytes.capacity() > 0 && spare_len <= SPARE_LEN_MAX {
            bytes.clear();
            from.spare.borrow_mut().push(bytes);
            from.spare_len.set(spare_len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_when_the_last_share_is_gone() {
        let lender = Lender::default();
        let mut bytes = lender.take();
        bytes.extend_from_slice(&[7; 1000]);
        let (address, capacity) = (bytes.as_ptr(), bytes.capacity());
        let one = lender.lend(bytes);
        let two = Rc::clone(&one);
        assert_eq!((one.as_bytes(), lender.lent_len()), (&[7; 1000][..], capacity));
        drop(one);
        assert_eq!(lender.lent_len(), capacity);
        drop(two);
        assert_eq!((lender.lent_len(), lender.len()), (0, capacity));
        let again = lender.take();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        assert!(lender.is_empty());
    }

    #[test]
    fn it_keeps_so_much_and_no_more() {
        let lender = Lender::default();
        let loans: Vec<_> =
            (0..3).map(|_| lender.lend(Vec::with_capacity(SPARE_LEN_MAX / 2))).collect();
        assert!(lender.lent_len() >= 3 * (SPARE_LEN_MAX / 2));
        drop(loans);
        assert_eq!((lender.lent_len(), lender.len()), (0, SPARE_LEN_MAX));
    }
}
