//! What one send carries: a list of byte ranges, from anywhere, sent as if they were one.
//!
//! Headers (copied) and leases on mapped or pooled memory (referenced) enter; the operation's
//! iovecs leave, from any byte on. A batch keeps what it references alive. Invariant: a batch that
//! is shared ([`std::rc::Rc`]) does not change, so the kernel may read it as long as it likes.

use super::lender::Loan;
use crate::sys::map::Mapping;
use std::rc::Rc;
use std::sync::Arc;

/// Most byte ranges in one batch: what the kernel takes in one sendmsg(2) (`UIO_MAXIOV`).
pub const BATCH_PARTS_MAX: usize = 1024;

/// A share in memory that holds blocks. Cloning it costs no atomic operation.
#[derive(Clone, Debug)]
pub enum Lease {
    /// A mapped file; the outer count is the worker's, the inner one the torrent's.
    Mapped(Rc<Arc<Mapping>>),
    /// Memory that was read into.
    Pooled(Rc<Vec<u8>>),
    /// A copy, whose memory is used again.
    Lent(Rc<Loan>),
}

impl Lease {
    /// Bytes that the lease covers.
    pub fn len(&self) -> usize {
        match self {
            Lease::Mapped(mapping) => mapping.len(),
            Lease::Pooled(bytes) => bytes.len(),
            Lease::Lent(loan) => loan.as_bytes().len(),
        }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of a range, if it lies inside.
    fn address(&self, offset: usize, len: usize) -> Option<*const u8> {
        match self {
            Lease::Mapped(mapping) => mapping.address(offset, len),
            Lease::Pooled(bytes) => address_in(bytes, offset, len),
            Lease::Lent(loan) => address_in(loan.as_bytes(), offset, len),
        }
    }

    /// Whether both are shares in the same memory.
    fn is_same(&self, other: &Lease) -> bool {
        match (self, other) {
            (Lease::Mapped(one), Lease::Mapped(two)) => Rc::ptr_eq(one, two),
            (Lease::Pooled(one), Lease::Pooled(two)) => Rc::ptr_eq(one, two),
            (Lease::Lent(one), Lease::Lent(two)) => Rc::ptr_eq(one, two),
            _ => false,
        }
    }
}

fn address_in(bytes: &[u8], offset: usize, len: usize) -> Option<*const u8> {
    let end = offset.checked_add(len)?;
    bytes.get(offset..end).map(<[u8]>::as_ptr)
}

/// Why something was not added to a batch, which is unchanged then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BatchError {
    /// Send this batch and begin another.
    #[error("a batch holds at most {BATCH_PARTS_MAX} byte ranges")]
    Full,
    /// The lease is shorter than the caller believed.
    #[error("{len} bytes at offset {offset} reach beyond a lease of {lease_len} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: usize,
        /// Number of bytes asked for.
        len: usize,
        /// What there is.
        lease_len: usize,
    },
}

/// One byte range.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Of the batch's own bytes.
    Own { start: usize, len: usize },
    /// Of memory that one of the batch's leases keeps alive.
    Lent { address: *const u8, len: usize },
}

/// What one send carries.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    leases: Vec<Lease>,
    len: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Total bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a further push may be refused with [`BatchError::Full`]. A message of a header and
    /// a block needs two ranges, so there is room for both while this is false.
    pub fn is_full(&self) -> bool {
        self.parts.len() + 2 > BATCH_PARTS_MAX
    }

    /// Byte ranges that it still has room for.
    pub fn parts_left(&self) -> usize {
        BATCH_PARTS_MAX.saturating_sub(self.parts.len())
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.leases.clear();
        self.len = 0;
    }

    /// Appends a copy of `bytes`.
    ///
    /// # Errors
    /// [`BatchError::Full`].
    pub fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let start = self.bytes.len();
        let has_no_room = self.parts.len() >= BATCH_PARTS_MAX;
        match self.parts.last_mut() {
            // Own bytes lie in the order in which they were pushed: neighbours are adjacent.
            Some(Part::Own { len, .. }) => *len += bytes.len(),
            _ if has_no_room => return Err(BatchError::Full),
            _ => self.parts.push(Part::Own { start, len: bytes.len() }),
        }
        self.bytes.extend_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Appends `len` bytes at `offset` of a lease, without touching them, and keeps the lease.
    ///
    /// # Errors
    /// [`BatchError::OutOfRange`] or [`BatchError::Full`].
    pub fn push_lease(
        &mut self,
        lease: &Lease,
        offset: usize,
        len: usize,
    ) -> Result<(), BatchError> {
        let lease_len = lease.len();
        let Some(address) = lease.address(offset, len) else {
            return Err(BatchError::OutOfRange { offset, len, lease_len });
        };
        if len == 0 {
            return Ok(());
        }
        let has_no_room = self.parts.len() >= BATCH_PARTS_MAX;
        let known = self.leases.last().is_some_and(|last| last.is_same(lease));
        match self.parts.last_mut() {
            Some(Part::Lent { address: before, len: before_len })
                if known && before.wrapping_add(*before_len) == address =>
            {
                *before_len += len;
            }
            _ if has_no_room => return Err(BatchError::Full),
            _ => self.parts.push(Part::Lent { address, len }),
        }
        if !known {
            self.leases.push(lease.clone());
        }
        self.len += len;
        Ok(())
    }

    /// A copy of everything, appended to `bytes`; false, and nothing appended, if some of it lies
    /// in a mapped file, which nobody but the kernel reads.
    pub fn copy_to(&self, bytes: &mut Vec<u8>) -> bool {
        if self.leases.iter().any(|lease| matches!(lease, Lease::Mapped(_))) {
            return false;
        }
        bytes.reserve(self.len);
        for part in &self.parts {
            match *part {
                Part::Own { start, len } => {
                    bytes.extend_from_slice(self.bytes.get(start..start + len).unwrap_or_default());
                }
                // SAFETY: a lease of pooled or lent memory among `leases` keeps these bytes alive, `push_lease` made
                // sure that they lie inside it, and what is shared does not change.
                Part::Lent { address, len } => unsafe {
                    bytes.extend_from_slice(std::slice::from_raw_parts(address, len));
                },
            }
        }
        true
    }

    /// A batch of the first `len` bytes of this one, with shares in the same leases.
    pub(super) fn prefix(&self, len: usize) -> Batch {
        let mut parts = Vec::new();
        let mut rest = len.min(self.len);
        for &part in &self.parts {
            if rest == 0 {
                break;
            }
            let part = match part {
                Part::Own { start, len } => Part::Own { start, len: len.min(rest) },
                Part::Lent { address, len } => Part::Lent { address, len: len.min(rest) },
            };
            let (Part::Own { len, .. } | Part::Lent { len, .. }) = part;
            rest -= len;
            parts.push(part);
        }
        let len = len.min(self.len);
        Batch { bytes: self.bytes.clone(), parts, leases: self.leases.clone(), len }
    }

    /// Fills `iovecs` with the ranges from byte `from` to the end. Valid while the batch lives and
    /// does not change.
    pub(super) fn iovecs(&self, from: usize, iovecs: &mut Vec<libc::iovec>) {
        iovecs.clear();
        let mut skip = from;
        for &part in &self.parts {
            let (address, len) = match part {
                Part::Own { start, len } => (self.bytes.as_ptr().wrapping_add(start), len),
                Part::Lent { address, len } => (address, len),
            };
            if skip >= len {
                skip -= len;
                continue;
            }
            iovecs.push(libc::iovec {
                iov_base: address.wrapping_add(skip).cast_mut().cast(),
                iov_len: len - skip,
            });
            skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would send. Only for batches without mappings.
    fn gather(batch: &Batch, from: usize) -> Vec<u8> {
        let mut iovecs = Vec::new();
        batch.iovecs(from, &mut iovecs);
        let mut out = Vec::new();
        for iovec in iovecs {
            // SAFETY: the ranges lie in vectors that the batch keeps alive.
            out.extend_from_slice(unsafe {
                std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len)
            });
        }
        out
    }

    #[test]
    fn every_suffix_and_prefix_is_exact() {
        let one = Lease::Pooled(Rc::new((0..=99).collect()));
        let two = Lease::Pooled(Rc::new((100..=199).collect()));
        let mut batch = Batch::new();
        batch.push_bytes(b"head").unwrap();
        batch.push_bytes(b"er").unwrap();
        batch.push_lease(&one, 10, 5).unwrap();
        batch.push_lease(&one, 15, 5).unwrap();
        batch.push_lease(&one, 50, 0).unwrap();
        batch.push_bytes(b"x").unwrap();
        batch.push_lease(&two, 99, 1).unwrap();
        batch.push_lease(&one, 0, 3).unwrap();
        let whole =
            [b"header".as_slice(), &(10..20).collect::<Vec<u8>>(), b"x\xc7\x00\x01\x02"].concat();
        assert_eq!(batch.len(), whole.len());
        assert_eq!(batch.parts.len(), 5, "neighbours are one range");
        assert_eq!(batch.leases.len(), 3);
        for from in 0..=whole.len() + 1 {
            assert_eq!(gather(&batch, from), whole.get(from..).unwrap_or_default());
            let prefix = batch.prefix(from);
            assert_eq!(gather(&prefix, 0), whole.get(..from).unwrap_or(&whole));
            assert_eq!(prefix.len(), from.min(whole.len()));
        }
    }

    #[test]
    fn ranges_outside_a_lease_are_refused() {
        let lease = Lease::Pooled(Rc::new(vec![0; 10]));
        let mut batch = Batch::new();
        for (offset, len) in [(0, 11), (11, 0), (10, 1), (usize::MAX, 2), (5, usize::MAX)] {
            let error = batch.push_lease(&lease, offset, len).unwrap_err();
            assert_eq!(error, BatchError::OutOfRange { offset, len, lease_len: 10 });
        }
        assert!(batch.is_empty());
    }

    #[test]
    fn a_full_batch_says_so_and_does_not_change() {
        let lease = Lease::Pooled(Rc::new(vec![0; 10]));
        let mut batch = Batch::new();
        while !batch.is_full() {
            batch.push_bytes(&[1]).unwrap();
            batch.push_lease(&lease, 0, 2).unwrap();
        }
        assert_eq!(batch.parts.len(), BATCH_PARTS_MAX);
        let len = batch.len();
        assert_eq!(batch.push_bytes(&[1]), Err(BatchError::Full));
        assert_eq!(batch.len(), len);
        batch.clear();
        assert_eq!((batch.len(), batch.is_full()), (0, false));
    }

    #[test]
    fn leases_live_as_long_as_the_batch() {
        let bytes = Rc::new(vec![1; 10]);
        let mut batch = Batch::new();
        batch.push_lease(&Lease::Pooled(bytes.clone()), 0, 10).unwrap();
        assert_eq!(Rc::strong_count(&bytes), 2);
        drop(batch);
        assert_eq!(Rc::strong_count(&bytes), 1);
    }
}
