//! Where io_uring is refused: one sentence with errno, cause and fix, and exit code 1.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::support::data::{Shape, single};
use crate::support::dir;
use crate::support::server::seedring;

/// A filter as container runtimes have it: io_uring does not exist, all else does.
fn filter(errno: i32) -> BpfProgram {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let rules: BTreeMap<_, _> = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let refuse = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    filter.try_into().unwrap()
}

#[expect(unsafe_code, reason = "a filter is set between fork and exec")]
fn without_io_uring(command: &mut Command, errno: i32) {
    let filter = filter(errno);
    // SAFETY: the closure makes two system calls (prctl, seccomp) with memory that was allocated
    // before the fork; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&filter)
                .map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
        });
    }
}

#[test]
fn run_get_and_seed_end_with_one_sentence() {
    let dir = dir();
    let content = single(dir.path(), "data", 100_000, 80, &Shape::pieces_of(16 << 10));
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (torrent, root) =
        (content.torrent.display().to_string(), content.root.display().to_string());
    let (state, out) = (path("state"), path("out"));
    let commands: [&[&str]; 3] = [
        &["run", "--state", &state, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        &["get", &torrent, "-o", &out, "--listen", "127.0.0.1:0", "--timeout", "5"],
        &["seed", &torrent, "--data", &root, "--listen", "127.0.0.1:0"],
    ];
    for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        for words in commands {
            let mut command = seedring(words);
            without_io_uring(&mut command, errno);
            let output = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
            assert!(output.stdout.is_empty(), "{words:?}");
            assert_eq!(stderr.trim_end().lines().count(), 1, "one sentence: {stderr}");
            assert!(stderr.contains("io_uring") && stderr.contains(name), "{words:?}: {stderr}");
        }
    }
}

/// The setting holds for the whole machine. A mount namespace of its own lets the program read
/// another value; the filter answers as the kernel does where the setting is what it reads.
#[test]
fn the_setting_that_forbids_it_is_named() {
    let dir = dir();
    let content = single(dir.path(), "data", 100_000, 81, &Shape::pieces_of(16 << 10));
    let setting = dir.path().join("io_uring_disabled");
    for (value, fix) in
        [(1, "kernel.io_uring_disabled"), (2, "sysctl -w kernel.io_uring_disabled=0")]
    {
        std::fs::write(&setting, format!("{value}\n")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /proc/sys/kernel/io_uring_disabled && exec \"$@\"");
        command.arg(&setting).arg(env!("CARGO_BIN_EXE_seedring"));
        command.arg("seed").arg(&content.torrent).arg("--data").arg(&content.root);
        command.args(["--listen", "127.0.0.1:0"]);
        without_io_uring(&mut command, libc::EPERM);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{value}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "one sentence: {stderr}");
        assert!(stderr.contains("(EPERM)") && stderr.contains(fix), "{value}: {stderr}");
        let named = [format!("io_uring_disabled is {value}"), format!("io_uring_disabled={value}")];
        assert!(named.iter().any(|named| stderr.contains(named)), "{value}: {stderr}");
    }
}

#[test]
fn doctor_names_what_is_refused() {
    let mut command = seedring(&["doctor"]);
    without_io_uring(&mut command, libc::EPERM);
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("io_uring") && stdout.contains("seccomp"), "{stdout}");
}
