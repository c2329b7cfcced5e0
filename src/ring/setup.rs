//! Building a ring: the best that this kernel gives, or one sentence that says why there is none.
//!
//! A [`Config`] enters; a ring with its [`Features`], or [`Unavailable`], leaves. Invariant: the
//! kernel's version is never parsed to decide anything (distributions backport), only what the
//! kernel accepts and announces.

use crate::sys::process::{self, Seccomp};
use io_uring::{IoUring, Probe, opcode};
use std::io;

/// A set of receive buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffers {
    /// How many; at most [`super::BUFFERS_MAX`].
    pub count: u16,
    /// Bytes of each.
    pub len: u32,
}

/// What a driver is made of. Memory of buffers is only taken as it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Operations that can be handed over at once; the kernel rounds up to a power of two.
    pub entries: u32,
    /// Completions that can wait without being parked in the kernel.
    pub completions: u32,
    /// Buffers of [`super::Pool::Small`].
    pub small_buffers: Buffers,
    /// Buffers of [`super::Pool::Large`].
    pub large_buffers: Buffers,
    /// Buffers of [`super::Pool::Datagrams`]. A datagram that does not fit, with some 50 bytes of
    /// header, is lost.
    pub datagram_buffers: Buffers,
    /// Kernel threads for file operations that this kernel or file system cannot do otherwise.
    pub file_threads_max: u32,
    /// The best level to try, for tests and to work around a kernel.
    pub level_max: Level,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            entries: 1024,
            completions: 8192,
            small_buffers: Buffers { count: 512, len: 4 << 10 },
            large_buffers: Buffers { count: 64, len: 256 << 10 },
            datagram_buffers: Buffers { count: 128, len: 4 << 10 },
            file_threads_max: 4,
            level_max: Level::NoIndirection,
        }
    }
}

/// How much of io_uring a ring uses, each with all below it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Linux 5.19: completions are prepared without interrupting the core; buffer rings, accepts
    /// that repeat.
    Cooperative,
    /// Linux 6.0: one thread submits, which saves locks.
    SingleIssuer,
    /// Linux 6.1: completions are prepared when the core asks for them, all at once.
    Deferred,
    /// Linux 6.6: no index array between the core and its entries.
    NoIndirection,
}

impl Level {
    /// From the best to the least.
    pub const ALL: [Level; 4] =
        [Level::NoIndirection, Level::Deferred, Level::SingleIssuer, Level::Cooperative];

    /// Its name, for people.
    pub fn label(self) -> &'static str {
        match self {
            Level::Cooperative => "cooperative (5.19)",
            Level::SingleIssuer => "single issuer (6.0)",
            Level::Deferred => "deferred (6.1)",
            Level::NoIndirection => "deferred, no indirection (6.6)",
        }
    }
}

/// What a ring can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// How it was set up.
    pub level: Level,
    /// Zero-copy sends that report whether they copied (SENDMSG_ZC), on a kernel that merges
    /// their notifications (6.10), which is what makes them pay.
    pub zero_copy: bool,
    /// Waiting is not accounted as waiting for a disk (6.15).
    pub no_iowait: bool,
}

/// Why there is no ring, and what to do about it. Displays as one sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("io_uring is not available: {cause} ({name}); {fix}", name = errno_name(*.errno))]
pub struct Unavailable {
    /// What the system call said; 0 if it worked but gave too little.
    pub errno: i32,
    /// What is in the way.
    pub cause: String,
    /// What removes it.
    pub fix: String,
}

/// The names of the errors that a setup can end with.
fn errno_name(errno: i32) -> String {
    match errno {
        0 => "missing operations".to_owned(),
        libc::ENOSYS => "ENOSYS".to_owned(),
        libc::EPERM => "EPERM".to_owned(),
        libc::EACCES => "EACCES".to_owned(),
        libc::ENOMEM => "ENOMEM".to_owned(),
        libc::EINVAL => "EINVAL".to_owned(),
        libc::EMFILE => "EMFILE".to_owned(),
        libc::ENFILE => "ENFILE".to_owned(),
        other => format!("errno {other}"),
    }
}

const FIX_SECCOMP: &str = "allow io_uring_setup, io_uring_enter and io_uring_register in the \
    seccomp profile (Docker and Podman: --security-opt seccomp=PROFILE.json)";

impl Unavailable {
    /// Explains an error of the setup by what the system tells of its settings.
    pub(super) fn explain(error: &io::Error) -> Unavailable {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        Unavailable::from_facts(errno, process::seccomp(), process::io_uring_disabled())
    }

    /// The same from facts alone.
    fn from_facts(errno: i32, seccomp: Seccomp, disabled: Option<u32>) -> Unavailable {
        let (cause, fix) = match (errno, seccomp, disabled) {
            (libc::EPERM | libc::EACCES, _, Some(2)) => (
                "the setting kernel.io_uring_disabled is 2, which forbids it to everyone",
                "run: sysctl -w kernel.io_uring_disabled=0",
            ),
            (libc::EPERM | libc::EACCES, Seccomp::Off | Seccomp::Unknown, Some(1)) => (
                "the setting kernel.io_uring_disabled is 1, which forbids it to ordinary users",
                "run: sysctl -w kernel.io_uring_disabled=0, or put the user's group into \
                 kernel.io_uring_group",
            ),
            (libc::EPERM | libc::EACCES, Seccomp::Filter, Some(1)) => (
                "a seccomp filter or the setting kernel.io_uring_disabled=1 forbids it",
                "set the latter to 0 and allow the io_uring system calls in the seccomp profile",
            ),
            (libc::EPERM | libc::EACCES, Seccomp::Filter, _) => {
                ("a seccomp filter forbids it", FIX_SECCOMP)
            }
            (libc::EPERM | libc::EACCES, _, _) => (
                "a security policy of this system forbids it",
                "allow io_uring to this program in SELinux, AppArmor or the container's policy",
            ),
            (libc::ENOSYS, Seccomp::Filter, _) => {
                ("a seccomp filter hides it, or the kernel is built without it", FIX_SECCOMP)
            }
            (libc::ENOSYS, _, _) => (
                "the kernel is older than 5.1 or built without it",
                "run Linux 5.19 or newer with CONFIG_IO_URING",
            ),
            (libc::ENOMEM, _, _) => (
                "there is not enough memory for its queues, or the limit of locked memory is too low",
                "raise it (systemd: LimitMEMLOCK=infinity, Docker: --ulimit memlock=-1)",
            ),
            (libc::EMFILE | libc::ENFILE, _, _) => (
                "no file descriptor is left",
                "raise the limit of open files (systemd: LimitNOFILE=, Docker: --ulimit nofile=)",
            ),
            (libc::EINVAL | 0, _, _) => {
                ("the kernel's io_uring is too old", "run Linux 5.19 or newer")
            }
            _ => ("the kernel refused to set it up", "see the kernel's log"),
        };
        Unavailable { errno, cause: cause.to_owned(), fix: fix.to_owned() }
    }
}

/// Operations that everything here needs.
const REQUIRED: [u8; 8] = [
    opcode::Accept::CODE,
    opcode::Connect::CODE,
    opcode::Recv::CODE,
    opcode::SendMsg::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::AsyncCancel::CODE,
];

/// Builds the best ring, on the thread that will use it.
pub(super) fn build(config: &Config) -> Result<(IoUring, Features), Unavailable> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for level in Level::ALL.into_iter().filter(|&level| level <= config.level_max) {
        match build_level(config, level) {
            Ok(ring) => return accept(ring, level, config),
            // A flag that this kernel does not know: one step down.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(Unavailable::explain(&error)),
        }
    }
    Err(Unavailable::explain(&refused))
}

fn build_level(config: &Config, level: Level) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_submit_all();
    builder.setup_cqsize(config.completions.max(config.entries));
    builder.setup_coop_taskrun().setup_taskrun_flag();
    if level >= Level::SingleIssuer {
        builder.setup_single_issuer();
    }
    if level >= Level::Deferred {
        builder.setup_defer_taskrun();
    }
    if level >= Level::NoIndirection {
        builder.setup_no_sqarray();
    }
    builder.build(config.entries.max(1))
}

/// Checks what a ring can do, and bounds its kernel threads.
fn accept(
    ring: IoUring,
    level: Level,
    config: &Config,
) -> Result<(IoUring, Features), Unavailable> {
    let explain = |error: io::Error| Unavailable::explain(&error);
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(explain)?;
    let params = ring.params();
    let complete = REQUIRED.iter().all(|&code| probe.is_supported(code));
    if !complete || !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
        return Err(Unavailable::explain(&io::Error::from_raw_os_error(0)));
    }
    let mut threads = [config.file_threads_max.max(1); 2];
    ring.submitter().register_iowq_max_workers(&mut threads).map_err(explain)?;
    let features = Features {
        level,
        // Bundles came with 6.10, as did the merging of notifications, which has no sign.
        zero_copy: probe.is_supported(opcode::SendMsgZc::CODE)
            && params.is_feature_recvsend_bundle(),
        no_iowait: params.is_feature_no_iowait(),
    };
    Ok((ring, features))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_one_sentence_with_a_fix() {
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EMFILE, libc::EINVAL, 0, 5] {
            for seccomp in [Seccomp::Off, Seccomp::Filter, Seccomp::Unknown] {
                for disabled in [None, Some(0), Some(1), Some(2)] {
                    let text = Unavailable::from_facts(errno, seccomp, disabled).to_string();
                    assert!(text.contains(&format!("({})", errno_name(errno))), "{text}");
                    let (_, fix) = text.split_once("; ").unwrap();
                    assert!(fix.len() > 10, "{text}");
                    assert!(text.starts_with("io_uring is not available: "), "{text}");
                    assert!(!text.contains('\n') && !text.contains("  "), "{text}");
                }
            }
        }
    }

    /// The setting answers with EPERM, whatever filters there are, and is named whenever it can
    /// be the cause; where it is 0 or not there, it never is.
    #[test]
    fn the_setting_is_named_when_it_forbids() {
        for errno in [libc::EPERM, libc::EACCES] {
            for seccomp in [Seccomp::Off, Seccomp::Filter, Seccomp::Unknown] {
                let text = |disabled| Unavailable::from_facts(errno, seccomp, disabled).to_string();
                assert!(
                    text(Some(2)).contains("kernel.io_uring_disabled is 2"),
                    "{}",
                    text(Some(2))
                );
                assert!(text(Some(2)).contains("sysctl -w kernel.io_uring_disabled=0"));
                assert!(text(Some(1)).contains("kernel.io_uring_disabled"), "{}", text(Some(1)));
                for harmless in [None, Some(0)] {
                    assert!(!text(harmless).contains("io_uring_disabled"), "{}", text(harmless));
                }
            }
        }
        // A filter that hides the call and a kernel without it look the same, but for the filter.
        let hidden = |seccomp| Unavailable::from_facts(libc::ENOSYS, seccomp, Some(0)).to_string();
        assert!(
            hidden(Seccomp::Filter).contains("seccomp")
                && hidden(Seccomp::Filter).contains("ENOSYS")
        );
        assert!(!hidden(Seccomp::Off).contains("seccomp"));
    }

    #[test]
    fn the_cause_follows_the_facts() {
        let text = |errno, seccomp, disabled| {
            Unavailable::from_facts(errno, seccomp, disabled).to_string()
        };
        assert!(text(libc::EPERM, Seccomp::Filter, Some(0)).contains("--security-opt seccomp="));
        assert!(text(libc::EPERM, Seccomp::Filter, Some(2)).contains("io_uring_disabled is 2"));
        assert!(text(libc::EPERM, Seccomp::Off, Some(1)).contains("kernel.io_uring_group"));
        assert!(text(libc::ENOSYS, Seccomp::Off, None).contains("older than 5.1"));
        assert!(text(libc::ENOMEM, Seccomp::Off, None).contains("LimitMEMLOCK=infinity"));
    }
}
