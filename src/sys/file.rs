//! Files beneath a save path: opening, reserving, reading, identity, and what lies under them.
//!
//! The directory of a save path and relative paths enter; descriptors, lengths and error codes
//! leave. Every wrapper is one or two system calls with their corners cut off. Invariant: no path
//! that came from a torrent leads out of the save path, and nothing here maps a file.
//!
//! # Links
//!
//! The save path belongs to the operator: its own symbolic links are followed, once, when it is
//! opened. Below it a link is followed while it stays beneath (`openat2` with `RESOLVE_BENEATH`),
//! because people keep one copy under two names; a link that leaves is refused (`EXDEV`), since
//! whoever can write one link into the tree could otherwise read or overwrite anything the daemon
//! can. Who keeps a torrent's folder on another disk gives that disk's folder as its save path, or
//! binds it into place: mount points beneath the save path are crossed. A file is never opened
//! *for writing* through a link of its last element, so a link to a finished file cannot lead a
//! download into it. Kernels and sandboxes without `openat2` get a walk that follows no link.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use libc::{c_int, mode_t, off_t};

/// How often `openat2` is tried again when a rename elsewhere made the kernel unsure (`EAGAIN`).
const RESOLVE_RETRIES_MAX: usize = 16;
/// Modes of what we create, before the umask.
const FILE_MODE: mode_t = 0o666;
const DIRECTORY_MODE: mode_t = 0o777;

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing; never through a link in the last place.
    ReadWrite {
        /// Makes the file, and its parents, where they are missing.
        create: bool,
    },
}

/// What tells whether a file is still the one that was verified (`stat(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The file system's number.
    pub dev: u64,
    /// The file's number on it.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of the last change of content, nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// How [`reserve`] kept space for a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// The blocks are ours: a write inside cannot fail for want of space.
    Allocated,
    /// Only the length was set; a write can still meet a full disk.
    Sparse,
}

/// The kinds of file system that matter to us (`statfs(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilesystemKind {
    /// ext2, ext3 and ext4, which share a number.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// F2FS.
    F2fs,
    /// ZFS on Linux: keeps a cache of its own beside the page cache.
    Zfs,
    /// tmpfs.
    Tmpfs,
    /// overlayfs, the root of a container.
    Overlay,
    /// NFS of any version.
    Nfs,
    /// SMB or CIFS.
    Smb,
    /// A file system in user space (mergerfs, sshfs, rclone).
    Fuse,
    /// Any other, by its magic number.
    Other(u32),
}

impl FilesystemKind {
    /// Its usual name, for messages and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::F2fs => "f2fs",
            Self::Zfs => "zfs",
            Self::Tmpfs => "tmpfs",
            Self::Overlay => "overlay",
            Self::Nfs => "nfs",
            Self::Smb => "smb",
            Self::Fuse => "fuse",
            Self::Other(_) => "other",
        }
    }

    fn from_magic(magic: u32) -> Self {
        match magic {
            0xef53 => Self::Ext4,
            0x5846_5342 => Self::Xfs,
            0x9123_683e => Self::Btrfs,
            0xf2f5_2010 => Self::F2fs,
            0x2fc1_2fc1 => Self::Zfs,
            0x0102_1994 => Self::Tmpfs,
            0x794c_7630 => Self::Overlay,
            0x6969 => Self::Nfs,
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => Self::Smb,
            0x6573_5546 => Self::Fuse,
            other => Self::Other(other),
        }
    }
}

/// Whether files of `kind` may be served from mappings.
///
/// ZFS keeps the data twice then, FUSE may refuse to map or page through a daemon, and a server
/// that hangs hangs every core that touches its pages. What we do not know is read.
pub fn maps_well(kind: FilesystemKind) -> bool {
    use FilesystemKind::{Btrfs, Ext4, F2fs, Overlay, Tmpfs, Xfs};
    matches!(kind, Ext4 | Xfs | Btrfs | F2fs | Tmpfs | Overlay)
}

/// Opens the directory `path` as a place to open files beneath; its own links are followed.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let path = c_string(path.as_os_str())?;
    open_at(libc::AT_FDCWD, &path, libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// [`open_root`], after making the directory and its parents where they are missing.
pub fn create_root(path: &Path) -> io::Result<OwnedFd> {
    std::fs::create_dir_all(path)?;
    open_root(path)
}

/// Opens the regular file `rel` beneath `root`; see the module's text for links.
///
/// # Errors
/// `InvalidInput` if `rel` is empty, absolute or holds `..`, or names something that is not a
/// regular file; `EXDEV` or `ELOOP` where a link leaves or may not be followed; else the system's.
pub fn open_beneath(root: BorrowedFd<'_>, rel: &Path, access: Access) -> io::Result<OwnedFd> {
    // A pipe in a file's place must not block us: opened without waiting, looked at, refused.
    let (flags, create) = match access {
        Access::Read => (libc::O_RDONLY, false),
        Access::ReadWrite { create } => (libc::O_RDWR | libc::O_NOFOLLOW, create),
    };
    let flags = flags | libc::O_NONBLOCK | libc::O_NOCTTY;
    let flags = if create { flags | libc::O_CREAT } else { flags };
    let path = relative(rel)?;
    let fd = match resolve_beneath(root, &path, flags) {
        Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
            create_parents(root, rel)?;
            resolve_beneath(root, &path, flags)?
        }
        other => other?,
    };
    if !is_regular(fd.as_fd())? {
        return Err(not_regular());
    }
    // The ring would take the flag as "never wait" and answer EAGAIN on some file systems.
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, 0) })?;
    Ok(fd)
}

/// The identity of the regular file `fd`.
pub fn identity(fd: BorrowedFd<'_>) -> io::Result<Identity> {
    let stat = stat(fd)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(not_regular());
    }
    Ok(Identity {
        dev: stat.st_dev,
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
    })
}

/// The identity of the regular file `rel` beneath `root`, without opening it for reading.
///
/// # Errors
/// `NotFound` where nothing is; otherwise as [`open_beneath`].
pub fn identity_at(root: BorrowedFd<'_>, rel: &Path) -> io::Result<Identity> {
    identity(resolve_beneath(root, &relative(rel)?, libc::O_PATH)?.as_fd())
}

/// Whether `fd` is a regular file.
pub fn is_regular(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(stat(fd)?.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Keeps space for the first `len` bytes of `fd`, which grows to `len` if it was shorter.
///
/// A file system that cannot reserve (ZFS, NFS, exFAT, many in user space) gets a sparse file.
///
/// # Errors
/// `ENOSPC`, `EDQUOT`, `EFBIG` and the like; the file then has its former length again, which
/// ext4 would not see to.
pub fn reserve(fd: BorrowedFd<'_>, len: u64) -> io::Result<Reserved> {
    let before = identity(fd)?.size;
    // Even where nothing is missing fallocate(2) would change the file's times.
    if len == 0 || (before >= len && allocated_bytes(fd)? >= len) {
        return Ok(Reserved::Allocated);
    }
    let end = offset(len)?;
    // SAFETY: fallocate takes integers and touches no memory of ours.
    match retry(|| unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, end) }) {
        Ok(_) => Ok(Reserved::Allocated),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            if before < len {
                truncate(fd, len)?;
            }
            Ok(Reserved::Sparse)
        }
        Err(error) => {
            truncate(fd, before)?;
            Err(error)
        }
    }
}

/// Sets the length of `fd` to `len` bytes (`ftruncate(2)`).
pub fn truncate(fd: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = offset(len)?;
    // SAFETY: ftruncate takes integers and touches no memory of ours.
    retry(|| unsafe { libc::ftruncate(fd.as_raw_fd(), len) }).map(drop)
}

/// Bytes of disk that the file takes up (`stat(2)`, `st_blocks`).
pub fn allocated_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(u64::try_from(stat(fd)?.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Bytes that we may still write to the file system of `fd` (`statvfs(3)`).
pub fn free_bytes(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the pointer is to room for one `statvfs`, which the call fills.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The kind of the file system of `fd` (`statfs(2)`).
pub fn filesystem_kind(fd: BorrowedFd<'_>) -> io::Result<FilesystemKind> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the pointer is to room for one `statfs`, which the call fills.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "magic numbers are 32 bits, in a field whose width and sign differ by platform"
    )]
    let magic = stat.f_type as u32;
    Ok(FilesystemKind::from_magic(magic))
}

/// Reads at `offset` until `buf` is full or the file ends; the bytes read.
pub fn read_at(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let at = self::offset(offset.saturating_add(filled as u64))?;
        // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`, which is ours alone.
        let read = retry_len(|| unsafe {
            libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at)
        })?;
        if read == 0 {
            break;
        }
        filled += read;
    }
    Ok(filled)
}

/// Fills `buf` from `offset`; `UnexpectedEof` if the file is shorter.
pub fn read_exact_at(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if read_at(fd, buf, offset)? == buf.len() {
        return Ok(());
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The first byte at or after `offset` that is not in a hole, `None` if only a hole is left.
///
/// File systems without holes, or without the question, answer `offset` (`lseek(2)`, `SEEK_DATA`).
/// It moves the descriptor's position, which nobody here uses.
pub fn next_data(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    seek(fd, offset, libc::SEEK_DATA)
}

/// The first byte at or after `offset` that is in a hole, at the latest the file's length; `None`
/// if `offset` is not inside the file.
pub fn next_hole(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Option<u64>> {
    seek(fd, offset, libc::SEEK_HOLE)
}

/// Takes `range` of the file out of the page cache, after writing it out, so that the next read
/// sees what the disk has.
pub fn drop_cache(fd: BorrowedFd<'_>, range: Range<u64>) -> io::Result<()> {
    sync_data(fd)?;
    advise(fd, range, libc::POSIX_FADV_DONTNEED)
}

/// Tells the kernel that reads of `fd` will jump: no read-ahead of its own.
pub fn advise_random(fd: BorrowedFd<'_>) -> io::Result<()> {
    advise(fd, 0..0, libc::POSIX_FADV_RANDOM)
}

/// Tells the kernel that `fd` will be read from front to back: twice the read-ahead.
pub fn advise_sequential(fd: BorrowedFd<'_>) -> io::Result<()> {
    advise(fd, 0..0, libc::POSIX_FADV_SEQUENTIAL)
}

/// Asks the kernel to begin reading `range` of `fd` into the page cache.
pub fn advise_needed(fd: BorrowedFd<'_>, range: Range<u64>) -> io::Result<()> {
    advise(fd, range, libc::POSIX_FADV_WILLNEED)
}

/// Waits until the content and length of `fd` are on the disk (`fdatasync(2)`).
///
/// An error here means that bytes written since the last success may be lost, even if a second
/// call succeeds: never try again and trust it.
pub fn sync_data(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fdatasync takes a descriptor and touches no memory of ours.
    retry(|| unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// Removes the file `rel` beneath `root`; a link in its place is removed, not followed.
pub fn unlink_beneath(root: BorrowedFd<'_>, rel: &Path) -> io::Result<()> {
    remove_beneath(root, rel, 0)
}

/// Removes the empty directory `rel` beneath `root`.
pub fn remove_directory_beneath(root: BorrowedFd<'_>, rel: &Path) -> io::Result<()> {
    remove_beneath(root, rel, libc::AT_REMOVEDIR)
}

fn remove_beneath(root: BorrowedFd<'_>, rel: &Path, flags: c_int) -> io::Result<()> {
    let parent = open_parent(root, rel)?;
    let name = c_string(rel.file_name().ok_or_else(bad_path)?)?;
    let dir = parent.as_ref().map_or(root, AsFd::as_fd);
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// Gives the calling thread the lowest processor and disk priority, for work that nobody waits for.
///
/// Only some disk schedulers look at the second (`ioprio_set(2)`, the idle class).
pub fn lower_thread_priority() -> io::Result<()> {
    const NICEST: c_int = 19;
    const IOPRIO_WHO_PROCESS: c_int = 1;
    const IOPRIO_IDLE: c_int = 3 << 13;
    // SAFETY: both calls take integers; 0 names the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICEST) })?;
    // SAFETY: as above.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `rel` as the kernel takes it, if it is nothing but names.
fn relative(rel: &Path) -> io::Result<CString> {
    if rel.as_os_str().is_empty() || !rel.components().all(|part| is_name(&part)) {
        return Err(bad_path());
    }
    c_string(rel.as_os_str())
}

fn is_name(part: &Component<'_>) -> bool {
    matches!(part, Component::Normal(_))
}

/// Opens `path` beneath `root` by `openat2`, or by a walk where the system call is not to be had.
fn resolve_beneath(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    match openat2(root, path, flags) {
        // EPERM is also how some sandboxes say it; where it was meant, the walk says it again.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            walk(root, path, flags)
        }
        other => other,
    }
}

fn openat2(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the structure is three integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = u64::try_from(flags | libc::O_CLOEXEC).map_err(|_| bad_path())?;
    how.mode = if flags & libc::O_CREAT == 0 { 0 } else { u64::from(FILE_MODE) };
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    for _ in 0..RESOLVE_RETRIES_MAX {
        // SAFETY: `path` is NUL-terminated, `how` has the size given, and both outlive the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        match c_int::try_from(fd) {
            // SAFETY: the call returned this descriptor just now, and nobody else knows of it.
            Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => {}
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(error);
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Opens `path` one name at a time, following no link at all.
fn walk(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let parents = path.parent().into_iter().flat_map(Path::components);
    let mut dir: Option<OwnedFd> = None;
    for part in parents.filter(is_name) {
        let at = dir.as_ref().map_or(root, AsFd::as_fd).as_raw_fd();
        let directory = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        dir = Some(open_at(at, &c_string(part.as_os_str())?, directory, 0)?);
    }
    let at = dir.as_ref().map_or(root, AsFd::as_fd).as_raw_fd();
    let name = c_string(path.file_name().ok_or_else(bad_path)?)?;
    let fd = open_at(at, &name, flags | libc::O_NOFOLLOW, FILE_MODE)?;
    // With O_PATH a link is opened itself; everything else refuses it.
    if stat(fd.as_fd())?.st_mode & libc::S_IFMT == libc::S_IFLNK {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    Ok(fd)
}

/// The directory that holds `rel`; `None` for the root itself.
fn open_parent(root: BorrowedFd<'_>, rel: &Path) -> io::Result<Option<OwnedFd>> {
    relative(rel)?;
    match rel.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => open_directory(root, parent).map(Some),
        None => Ok(None),
    }
}

fn open_directory(root: BorrowedFd<'_>, rel: &Path) -> io::Result<OwnedFd> {
    resolve_beneath(root, &relative(rel)?, libc::O_PATH | libc::O_DIRECTORY)
}

/// Makes the directories above `rel`, each beneath the one before.
///
/// `mkdirat` never follows a link in the last place, and the next directory is again resolved from
/// the root, so a link in the way is taken only if it stays beneath.
fn create_parents(root: BorrowedFd<'_>, rel: &Path) -> io::Result<()> {
    let mut parents: Vec<&Path> = rel.ancestors().skip(1).collect();
    parents.retain(|parent| !parent.as_os_str().is_empty());
    let mut dir: Option<OwnedFd> = None;
    for parent in parents.into_iter().rev() {
        let at = dir.as_ref().map_or(root, AsFd::as_fd);
        let name = c_string(parent.file_name().ok_or_else(bad_path)?)?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        match check(unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), DIRECTORY_MODE) }) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => dir = Some(open_directory(root, parent)?),
        }
    }
    Ok(())
}

fn open_at(dir: c_int, path: &CStr, flags: c_int, mode: mode_t) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let fd = retry(|| unsafe { libc::openat(dir, path.as_ptr(), flags, mode) })?;
    // SAFETY: the call returned this descriptor just now, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn stat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to room for one `stat`, which the call fills.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the structure.
    Ok(unsafe { stat.assume_init() })
}

fn advise(fd: BorrowedFd<'_>, range: Range<u64>, advice: c_int) -> io::Result<()> {
    let start = offset(range.start)?;
    let len = offset(range.end.saturating_sub(range.start))?;
    // SAFETY: posix_fadvise takes integers and touches no memory of ours.
    match unsafe { libc::posix_fadvise(fd.as_raw_fd(), start, len, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn seek(fd: BorrowedFd<'_>, offset: u64, whence: c_int) -> io::Result<Option<u64>> {
    let at = self::offset(offset)?;
    // SAFETY: lseek takes integers and touches no memory of ours.
    match u64::try_from(unsafe { libc::lseek(fd.as_raw_fd(), at, whence) }) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(offset)),
            error => Err(error),
        },
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| bad_path())
}

fn offset(value: u64) -> io::Result<off_t> {
    off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn retry(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn retry_len(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

fn bad_path() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the path is not a plain relative path of names")
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")
}

#[cfg(test)]
mod tests;
