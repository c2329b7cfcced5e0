//! Files in memory, for the kernel's eyes only, and what of a file is in memory already.
//!
//! An open file and a length enter; a [`Mapping`] leaves, from which [`crate::ring`] takes checked
//! address ranges for send operations, or a [`Residency`]. Invariant: nothing here, and nothing
//! outside, reads a mapping in user space: a file that was cut short or fails is `EFAULT` in the
//! completion of a send, and never a SIGBUS.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// A whole file, mapped shared and read-only, without the kernel's read-ahead (MADV_RANDOM: the
/// caller fetches what is cold, in large runs).
///
/// There is no way to read it; see the invariant of this module.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only address space that is never dereferenced by this process; its
// address and length do not change until it is dropped, and munmap may be called on any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references only give out addresses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`. The descriptor may be closed afterwards.
    ///
    /// `len` may exceed the file: sends from beyond its end fail with `EFAULT`. A length of zero
    /// gives an empty mapping.
    ///
    /// # Errors
    /// What mmap(2) says: `ENODEV` where the file system cannot map, `ENOMEM` at the limit of
    /// `vm.max_map_count`, `EACCES` if the file is not open for reading; `EOVERFLOW` for a length
    /// that this machine cannot address.
    pub fn new(file: &OwnedFd, len: u64) -> io::Result<Mapping> {
        let len =
            usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        if len == 0 {
            return Ok(Mapping { base: NonNull::dangling(), len });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mapping = Mapping { base, len };
        // SAFETY: the range is the mapping just made; the advice changes no contents.
        let advised = unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_RANDOM) };
        if advised != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Length in bytes, as asked for when it was made.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `offset`, if `offset..offset + len` lies inside. It is for the kernel only,
    /// and only while the mapping lives.
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<*const u8> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.base.as_ptr().cast_const().wrapping_add(offset))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range came from mmap with this length and is unmapped once; whoever gave
            // its addresses to the kernel kept the mapping alive until the last completion.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

/// How much of a range of a file is in the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Residency {
    /// Pages of the range that are in memory. Where only its ends could be probed: all or none.
    pub resident_pages: u64,
    /// Pages that the range touches.
    pub pages: u64,
}

impl Residency {
    /// Whether every page is there, so that a send would not wait for the disk.
    pub fn is_full(self) -> bool {
        self.resident_pages >= self.pages
    }
}

/// cachestat(2), the same number on every architecture; not in libc's headers yet.
const SYS_CACHESTAT: libc::c_long = 451;

/// What cachestat(2) asks for.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    len: u64,
}

/// What cachestat(2) answers, in pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Asks how much of `len` bytes at `offset` is in memory: by cachestat(2) (Linux 6.5), else by
/// reading one byte at both ends with `RWF_NOWAIT`.
///
/// # Errors
/// What the kernel says of the file; `EINVAL` for offsets that no file has.
pub fn residency(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Residency> {
    let pages = pages_touched(offset, len)?;
    if pages == 0 {
        return Ok(Residency { resident_pages: 0, pages: 0 });
    }
    match cachestat(file, offset, len) {
        Ok(resident_pages) => Ok(Residency { resident_pages, pages }),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP) => {
                let there = probe(file, offset)? && probe(file, offset + (len - 1))?;
                Ok(Residency { resident_pages: if there { pages } else { 0 }, pages })
            }
            _ => Err(error),
        },
    }
}

/// Number of pages that a range touches.
fn pages_touched(offset: u64, len: u64) -> io::Result<u64> {
    if len == 0 {
        return Ok(0);
    }
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let last = offset.checked_add(len - 1).ok_or_else(invalid)?;
    i64::try_from(last).map_err(|_| invalid())?;
    let page = page_size();
    Ok(last / page - offset / page + 1)
}

/// The size of a page of this machine, in bytes.
fn page_size() -> u64 {
    // SAFETY: sysconf only reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(page).ok().filter(|&page| page > 0).unwrap_or(4096)
}

/// Pages in memory, by cachestat(2).
fn cachestat(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
    let range = CachestatRange { offset, len };
    let mut stat = Cachestat::default();
    // SAFETY: both structures have the layout of the system call and outlive it.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0)
    };
    if result == 0 { Ok(stat.cached) } else { Err(io::Error::last_os_error()) }
}

/// Whether the page at `offset` can be read without waiting. Behind the end of the file nothing
/// has to be waited for.
fn probe(file: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut byte = 0_u8;
    let iovec = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one iovec over one byte, both alive during the call.
    let result = unsafe {
        libc::preadv2(file.as_fd().as_raw_fd(), &raw const iovec, 1, offset, libc::RWF_NOWAIT)
    };
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Ok(false),
        // A file system that cannot answer: the caller has to treat the range as cold.
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file_of(len: usize) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; len]).unwrap();
        file
    }

    #[test]
    fn ranges_are_checked() {
        let file: OwnedFd = file_of(10_000).into();
        let mapping = Mapping::new(&file, 10_000).unwrap();
        assert_eq!(mapping.len(), 10_000);
        assert!(mapping.address(0, 10_000).is_some());
        assert!(mapping.address(10_000, 0).is_some());
        assert!(mapping.address(1, 10_000).is_none());
        assert!(mapping.address(usize::MAX, 2).is_none());
        let first = mapping.address(0, 1).unwrap();
        assert_eq!(mapping.address(4321, 1).unwrap().addr() - first.addr(), 4321);
    }

    #[test]
    fn empty_and_refused_mappings() {
        let file: OwnedFd = file_of(0).into();
        assert!(Mapping::new(&file, 0).unwrap().is_empty());
        let (pipe, _other) = io::pipe().unwrap();
        let error = Mapping::new(&pipe.into(), 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn fresh_data_is_resident_and_a_hole_is_not() {
        let file = file_of(100_000);
        file.set_len(1 << 20).unwrap();
        let there = residency(file.as_fd(), 10_000, 50_000).unwrap();
        assert!(there.is_full(), "{there:?}");
        let hole = residency(file.as_fd(), 512 << 10, 1 << 16).unwrap();
        assert!(!hole.is_full(), "{hole:?}");
        assert!(residency(file.as_fd(), 5, 0).unwrap().is_full());
        assert!(residency(file.as_fd(), u64::MAX, 2).is_err());
    }

    #[test]
    fn the_older_probe_agrees() {
        let file = file_of(100_000);
        assert!(probe(file.as_fd(), 0).unwrap());
        assert!(probe(file.as_fd(), 99_999).unwrap());
        assert!(probe(file.as_fd(), 1 << 40).unwrap());
    }

    #[test]
    fn pages_are_counted_at_both_ends() {
        let page = page_size();
        assert_eq!(pages_touched(0, 1).unwrap(), 1);
        assert_eq!(pages_touched(page - 1, 2).unwrap(), 2);
        assert_eq!(pages_touched(page, page).unwrap(), 1);
    }
}
