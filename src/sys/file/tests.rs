//! Files beneath a save path: links, reserving, holes, and the walk without `openat2`.

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const CREATE: Access = Access::ReadWrite { create: true };
const WRITE: Access = Access::ReadWrite { create: false };

fn tree() -> (TempDir, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    let root = create_root(&dir.path().join("save")).unwrap();
    (dir, root)
}

fn open(root: &OwnedFd, rel: &str, access: Access) -> io::Result<OwnedFd> {
    open_beneath(root.as_fd(), Path::new(rel), access)
}

fn code<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Forbids `openat2` to the calling thread, with the answer of an old kernel.
fn forbid_openat2(errno: i32) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let rules = [(libc::SYS_openat2, vec![])].into();
    let errno = u32::try_from(errno).unwrap();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter(&program).unwrap();
}

/// Runs `case` with `openat2` and, in threads of their own, where it is missing or forbidden.
fn with_and_without_openat2(case: fn(bool)) {
    case(true);
    for errno in [libc::ENOSYS, libc::EPERM] {
        let thread = std::thread::spawn(move || {
            forbid_openat2(errno);
            case(false);
        });
        thread.join().unwrap();
    }
}

#[test]
fn opens_and_creates_beneath() {
    with_and_without_openat2(|_| {
        let (dir, root) = tree();
        assert_eq!(code(open(&root, "a/b/c", Access::Read)), libc::ENOENT);
        assert_eq!(code(open(&root, "a/b/c", WRITE)), libc::ENOENT);
        let fd = open(&root, "a/b/c", CREATE).unwrap();
        truncate(fd.as_fd(), 5).unwrap();
        drop(open(&root, "a/b/d", CREATE).unwrap());
        assert_eq!(fs::metadata(dir.path().join("save/a/b/c")).unwrap().len(), 5);
        let fd = open(&root, "a/b/c", Access::Read).unwrap();
        assert_eq!(identity(fd.as_fd()).unwrap().size, 5);
        assert_eq!(identity_at(root.as_fd(), Path::new("a/b/c")).unwrap().size, 5);
        unlink_beneath(root.as_fd(), Path::new("a/b/c")).unwrap();
        assert_eq!(code(identity_at(root.as_fd(), Path::new("a/b/c"))), libc::ENOENT);
        let directory = Path::new("a/b");
        let removed = remove_directory_beneath(root.as_fd(), directory);
        assert_eq!(code(removed), libc::ENOTEMPTY);
        unlink_beneath(root.as_fd(), Path::new("a/b/d")).unwrap();
        remove_directory_beneath(root.as_fd(), directory).unwrap();
        assert!(!dir.path().join("save/a/b").exists());
    });
}

#[test]
fn refuses_paths_that_are_not_names() {
    with_and_without_openat2(|_| {
        let (_dir, root) = tree();
        for rel in ["", "/etc/passwd", "..", "../x", "a/../../x", ".", "./x", "a\0b"] {
            for access in [Access::Read, CREATE] {
                let error = open(&root, rel, access).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{rel:?}");
            }
            assert!(unlink_beneath(root.as_fd(), Path::new(rel)).is_err(), "{rel:?}");
            assert!(identity_at(root.as_fd(), Path::new(rel)).is_err(), "{rel:?}");
        }
    });
}

#[test]
fn a_link_that_leaves_is_refused_everywhere() {
    with_and_without_openat2(|_| {
        let (dir, root) = tree();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), b"secret").unwrap();
        let save = dir.path().join("save");
        symlink(&outside, save.join("absolute")).unwrap();
        symlink("../outside", save.join("relative")).unwrap();
        symlink("../outside/secret", save.join("file")).unwrap();
        symlink("../outside/new", save.join("dangling")).unwrap();
        symlink("/proc/self/root", save.join("magic")).unwrap();
        for rel in ["absolute/secret", "relative/secret", "file", "magic/etc/hostname"] {
            for access in [Access::Read, WRITE, CREATE] {
                assert!(open(&root, rel, access).is_err(), "{rel} {access:?}");
            }
            assert!(identity_at(root.as_fd(), Path::new(rel)).is_err(), "{rel}");
        }
        for rel in ["dangling", "absolute/new", "relative/new", "relative/sub/new", "absolute/a/b"]
        {
            assert!(open(&root, rel, CREATE).is_err(), "{rel}");
        }
        assert!(unlink_beneath(root.as_fd(), Path::new("relative/secret")).is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        // The link itself can be removed, and what it named stays.
        unlink_beneath(root.as_fd(), Path::new("file")).unwrap();
        assert!(outside.join("secret").exists());
    });
}

#[test]
fn a_link_that_stays_is_read_through_but_not_written() {
    with_and_without_openat2(|openat2| {
        let (dir, root) = tree();
        let save = dir.path().join("save");
        fs::create_dir(save.join("real")).unwrap();
        fs::write(save.join("real/data"), b"data").unwrap();
        symlink("real", save.join("folder")).unwrap();
        symlink("real/data", save.join("copy")).unwrap();
        assert_eq!(open(&root, "folder/data", Access::Read).is_ok(), openat2);
        assert_eq!(open(&root, "copy", Access::Read).is_ok(), openat2);
        assert_eq!(open(&root, "folder/sub/new", CREATE).is_ok(), openat2);
        assert_eq!(save.join("real/sub/new").exists(), openat2);
        assert_eq!(code(open(&root, "copy", WRITE)), libc::ELOOP);
        assert_eq!(code(open(&root, "copy", CREATE)), libc::ELOOP);
    });
}

#[test]
fn the_save_path_may_be_a_link() {
    let (dir, _root) = tree();
    let link = dir.path().join("link");
    symlink("save", &link).unwrap();
    let root = open_root(&link).unwrap();
    drop(open(&root, "x", CREATE).unwrap());
    assert!(dir.path().join("save/x").exists());
    assert_eq!(code(open_root(&dir.path().join("missing"))), libc::ENOENT);
    assert_eq!(code(open_root(&dir.path().join("save/x"))), libc::ENOTDIR);
}

#[test]
fn what_is_not_a_regular_file_is_refused_at_once() {
    let (dir, root) = tree();
    let pipe = c_string(dir.path().join("save/pipe").as_os_str()).unwrap();
    // SAFETY: `pipe` is a NUL-terminated string that outlives the call.
    check(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }).unwrap();
    fs::create_dir(dir.path().join("save/directory")).unwrap();
    for access in [Access::Read, WRITE, CREATE] {
        assert!(open(&root, "pipe", access).is_err());
        assert!(open(&root, "directory", access).is_err());
    }
    assert!(identity_at(root.as_fd(), Path::new("directory")).is_err());
    let fd = open(&root, "file", CREATE).unwrap();
    // SAFETY: F_GETFL touches no memory of ours.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }).unwrap();
    assert_eq!(flags & (libc::O_NONBLOCK | libc::O_ACCMODE), libc::O_RDWR);
}

#[test]
fn identity_changes_with_the_file() {
    let (dir, root) = tree();
    let path = dir.path().join("save/file");
    fs::write(&path, b"one").unwrap();
    let rel = Path::new("file");
    let before = identity_at(root.as_fd(), rel).unwrap();
    assert_eq!(identity(open(&root, "file", Access::Read).unwrap().as_fd()).unwrap(), before);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let after = identity_at(root.as_fd(), rel).unwrap();
    assert_eq!((after.mtime_ns, after.size, after.ino), (0, before.size, before.ino));
    fs::write(dir.path().join("save/other"), b"one").unwrap();
    fs::rename(dir.path().join("save/other"), &path).unwrap();
    assert_ne!(identity_at(root.as_fd(), rel).unwrap().ino, before.ino);
}

#[test]
fn reserving_grows_and_never_shrinks() {
    let (_dir, root) = tree();
    let fd = open(&root, "file", CREATE).unwrap();
    assert_eq!(reserve(fd.as_fd(), 0).unwrap(), Reserved::Allocated);
    reserve(fd.as_fd(), 100_000).unwrap();
    assert_eq!(identity(fd.as_fd()).unwrap().size, 100_000);
    reserve(fd.as_fd(), 10).unwrap();
    assert_eq!(identity(fd.as_fd()).unwrap().size, 100_000);
    assert!(free_bytes(fd.as_fd()).unwrap() > 0);
    assert!(free_bytes(root.as_fd()).unwrap() > 0);
}

#[test]
fn a_reservation_that_fails_leaves_the_former_length() {
    let (_dir, root) = tree();
    let fd = open(&root, "file", CREATE).unwrap();
    truncate(fd.as_fd(), 3_000).unwrap();
    // Longer than the file system's longest file.
    for len in [1 << 50, u64::MAX] {
        assert!(reserve(fd.as_fd(), len).is_err());
        assert_eq!(identity(fd.as_fd()).unwrap().size, 3_000);
    }
    let read_only = open(&root, "file", Access::Read).unwrap();
    assert!(reserve(read_only.as_fd(), 10).is_err());
}

/// ext4 leaves what it could reserve of a request that was too large; only a full disk shows it.
#[test]
fn a_full_disk_leaves_the_former_length() {
    let Some(disk) = std::env::var_os("SEEDRING_TEST_SMALL_DISK") else {
        println!("skipped: SEEDRING_TEST_SMALL_DISK names no directory on a small disk");
        return;
    };
    let dir = tempfile::tempdir_in(disk).unwrap();
    let root = open_root(dir.path()).unwrap();
    let fd = open(&root, "file", CREATE).unwrap();
    truncate(fd.as_fd(), 3_000).unwrap();
    let free = free_bytes(fd.as_fd()).unwrap();
    assert_eq!(code(reserve(fd.as_fd(), 2 * free)), libc::ENOSPC);
    assert_eq!(identity(fd.as_fd()).unwrap().size, 3_000);
    assert!(free_bytes(fd.as_fd()).unwrap() > free / 2);
}

#[test]
fn file_systems_are_told_apart() {
    let (_dir, root) = tree();
    let kind = filesystem_kind(root.as_fd()).unwrap();
    assert!(!kind.name().is_empty());
    let proc = open_root(Path::new("/proc")).unwrap();
    assert_eq!(filesystem_kind(proc.as_fd()).unwrap(), FilesystemKind::Other(0x9fa0));
    for (magic, name, maps) in [
        (0xef53, "ext4", true),
        (0x5846_5342, "xfs", true),
        (0x2fc1_2fc1, "zfs", false),
        (0x6573_5546, "fuse", false),
        (0x6969, "nfs", false),
        (0xfe53_4d42, "smb", false),
        (0x1234, "other", false),
    ] {
        let kind = FilesystemKind::from_magic(magic);
        assert_eq!((kind.name(), maps_well(kind)), (name, maps));
    }
}

#[test]
fn holes_are_seen_and_advice_is_taken() {
    let (_dir, root) = tree();
    let fd = open(&root, "file", CREATE).unwrap();
    truncate(fd.as_fd(), 1 << 20).unwrap();
    let fd = fd.as_fd();
    // Whatever the file system can tell, an answer never lies before the question.
    assert!(next_data(fd, 0).unwrap().is_none_or(|at| at < 1 << 20));
    assert!(next_hole(fd, 4_096).unwrap().is_some_and(|at| at >= 4_096));
    assert_eq!(next_data(fd, 1 << 20).unwrap(), None);
    assert_eq!(next_hole(fd, 1 << 20).unwrap(), None);
    advise_random(fd).unwrap();
    advise_sequential(fd).unwrap();
    advise_needed(fd, 0..4_096).unwrap();
    drop_cache(fd, 0..1 << 20).unwrap();
}

#[test]
fn priority_can_be_lowered_in_a_thread_of_its_own() {
    std::thread::spawn(|| lower_thread_priority().unwrap()).join().unwrap();
}

proptest! {
    #[test]
    fn reads_are_what_std_reads(
        content in proptest::collection::vec(any::<u8>(), 0..5_000),
        offset in 0u64..6_000,
        len in 0usize..6_000,
    ) {
        let (dir, root) = tree();
        fs::write(dir.path().join("save/file"), &content).unwrap();
        let fd = open(&root, "file", Access::Read).unwrap();
        let start = content.len().min(usize::try_from(offset).unwrap());
        let expected = &content[start..content.len().min(start + len)];
        let mut buf = vec![0; len];
        let read = read_at(fd.as_fd(), &mut buf, offset).unwrap();
        prop_assert_eq!(&buf[..read], expected);
        prop_assert_eq!(read_exact_at(fd.as_fd(), &mut buf, offset).is_ok(), read == len);
    }
}
