//! Receive buffers: memory that the kernel picks from when bytes arrive.
//!
//! A count and a length enter; [`RecvBuffer`]s leave with a receive's bytes and come back when they
//! are dropped, to be offered again at the next wait. Memory is touched (and counted by the system)
//! only when it is first used. Invariant: a buffer is either the kernel's (offered) or a
//! [`RecvBuffer`]'s, never both.

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, cqueue};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Most buffers in one pool: the kernel's limit of a buffer ring.
pub const BUFFERS_MAX: u16 = 32_768;

/// Anonymous memory, given by the system page by page as it is touched.
#[derive(Debug)]
struct Pages {
    base: NonNull<u8>,
    len: usize,
}

impl Pages {
    fn new(len: usize) -> io::Result<Pages> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let pages = Pages { base, len };
        // A child would otherwise copy what the kernel writes into meanwhile.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) };
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the range came from mmap with this length, and is unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The memory of a pool, kept by the ring and by every buffer that is out.
#[derive(Debug)]
struct PoolMemory {
    pages: Pages,
    buffer_len: usize,
    /// How many [`RecvBuffer`]s share each buffer.
    shares: Box<[Cell<u32>]>,
    /// Buffers whose last share was dropped, to be offered again.
    returned: RefCell<Vec<u16>>,
}

impl PoolMemory {
    /// The first byte of a buffer.
    fn address(&self, id: u16) -> *mut u8 {
        self.pages.base.as_ptr().wrapping_add(usize::from(id) * self.buffer_len)
    }
}

/// Received bytes. Dropping them gives the buffer back to its pool.
pub struct RecvBuffer {
    /// None when nothing was received.
    source: Option<(Rc<PoolMemory>, u16)>,
    start: usize,
    end: usize,
}

impl RecvBuffer {
    /// No bytes: the peer has closed its side.
    pub(super) fn empty() -> RecvBuffer {
        RecvBuffer { source: None, start: 0, end: 0 }
    }

    /// Drops the first `count` bytes, or all of them if there are fewer.
    pub fn advance(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
    }

    /// Splits off what follows the first `at` bytes; both share the buffer, which goes back when
    /// both are dropped.
    pub fn split_off(&mut self, at: usize) -> RecvBuffer {
        let middle = self.end.min(self.start.saturating_add(at));
        let source = self.source.as_ref().map(|(memory, id)| {
            let shares = &memory.shares[usize::from(*id)];
            shares.set(shares.get() + 1);
            (Rc::clone(memory), *id)
        });
        let rest = RecvBuffer { source, start: middle, end: self.end };
        self.end = middle;
        rest
    }
}

impl Deref for RecvBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.source {
            None => &[],
            // SAFETY: `start..end` lies inside the buffer (`BufferRing::take` checked the length),
            // its pages live as long as `memory`, the kernel wrote it before the completion was
            // read, and does not write it again before the last share is dropped.
            Some((memory, id)) => unsafe {
                let first = memory.address(*id).wrapping_add(self.start).cast_const();
                std::slice::from_raw_parts(first, self.end - self.start)
            },
        }
    }
}

impl DerefMut for RecvBuffer {
    /// The bytes, to be decrypted where they are.
    fn deref_mut(&mut self) -> &mut [u8] {
        match &self.source {
            None => &mut [],
            // SAFETY: as in `deref`; and the ranges of buffers that share memory do not overlap,
            // because [`RecvBuffer::split_off`] is the only way to a second one.
            Some((memory, id)) => unsafe {
                let first = memory.address(*id).wrapping_add(self.start);
                std::slice::from_raw_parts_mut(first, self.end - self.start)
            },
        }
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        let Some((memory, id)) = &self.source else { return };
        let shares = &memory.shares[usize::from(*id)];
        shares.set(shares.get() - 1);
        if shares.get() == 0 {
            memory.returned.borrow_mut().push(*id);
        }
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBuffer").field("len", &self.len()).finish()
    }
}

/// A pool as the kernel sees it: a ring of buffers on offer (Linux 5.19).
#[derive(Debug)]
pub(super) struct BufferRing {
    entries: Pages,
    mask: u16,
    tail: u16,
    group: u16,
    memory: Rc<PoolMemory>,
}

impl BufferRing {
    /// Makes `count` buffers of `len` bytes and registers them as `group`.
    pub(super) fn new(ring: &IoUring, group: u16, count: u16, len: u32) -> io::Result<BufferRing> {
        let count = count.clamp(1, BUFFERS_MAX);
        let len = len.max(1);
        let slots = count.next_power_of_two();
        let buffer_len = usize::try_from(len).map_err(io::Error::other)?;
        let entries = Pages::new(usize::from(slots) * size_of::<BufRingEntry>())?;
        let memory = Rc::new(PoolMemory {
            pages: Pages::new(usize::from(count) * buffer_len)?,
            buffer_len,
            shares: (0..count).map(|_| Cell::new(0)).collect(),
            returned: RefCell::new((0..count).collect()),
        });
        // SAFETY: the entries are zeroed, page-aligned and hold `slots` of them; they live in the
        // same structure as the ring, which leaks them if it cannot make sure of its end.
        unsafe {
            let address = entries.base.as_ptr().addr() as u64;
            ring.submitter().register_buf_ring_with_flags(address, slots, group, 0)?;
        }
        Ok(BufferRing { entries, mask: slots - 1, tail: 0, group, memory })
    }

    /// The number by which operations name the pool.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// Offers every buffer that came back.
    pub(super) fn publish(&mut self) {
        let mut returned = self.memory.returned.borrow_mut();
        if returned.is_empty() {
            return;
        }
        let ring = self.entries.base.as_ptr().cast::<BufRingEntry>();
        // The newest first: its memory is the likeliest to be in the cache.
        for id in returned.drain(..).rev() {
            let index = usize::from(self.tail & self.mask);
            // SAFETY: the index is below the number of entries, and this one is not on offer: no
            // more buffers exist than entries. The entry's setters do not touch the ring's tail,
            // which lies in the spare field of the first entry.
            let entry = unsafe { &mut *ring.wrapping_add(index) };
            entry.set_addr(self.memory.address(id).addr() as u64);
            entry.set_len(u32::try_from(self.memory.buffer_len).unwrap_or(u32::MAX));
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: the tail lies inside the first entry, is aligned, and is shared with the kernel,
        // which reads it with acquire; release makes the entries visible before it.
        unsafe {
            let tail = BufRingEntry::tail(ring).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// The buffer that a completion names, holding the first `len` bytes; `None` if it names none.
    pub(super) fn take(&self, flags: u32, len: usize) -> Option<RecvBuffer> {
        let id = cqueue::buffer_select(flags)?;
        let shares = self.memory.shares.get(usize::from(id))?;
        shares.set(1);
        let end = len.min(self.memory.buffer_len);
        Some(RecvBuffer { source: Some((Rc::clone(&self.memory), id)), start: 0, end })
    }

    /// Keeps the memory for ever: the kernel may still write to it.
    pub(super) fn leak(self) {
        std::mem::forget(self);
    }
}
