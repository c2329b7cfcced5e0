//! `seedring doctor`: what this system gives, and the exact fix for what it does not.
//!
//! Facts of the kernel and the process enter, a line per fact leaves on stdout, and beneath each
//! that is not good the command or setting that makes it so. Invariant: nothing is changed.

use std::fmt;
use std::fs;

use super::Exit;
use crate::ring::{Config, Features, Unavailable, Uring};
use crate::sys::process::{self, Resource};

/// Enough for some ten thousand connections with their files.
const OPEN_FILES_WANTED: u64 = 65_536;
/// One mapping per large file; the kernel's default runs out at some 65,000 (vm.max_map_count).
const MAPPINGS_WANTED: u64 = 262_144;
/// Connections that wait to be accepted while a core is busy.
const BACKLOG_WANTED: u64 = 4096;
/// One batch of blocks should fit the send buffer of a fast peer.
const SEND_BUFFER_WANTED: u64 = 4 << 20;

/// How good a fact is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Good,
    /// It works, but not as well as it could.
    Advice,
    /// Without it nothing works.
    Needed,
}

/// One line of the report.
struct Fact {
    what: &'static str,
    found: String,
    verdict: Verdict,
    fix: String,
}

impl Fact {
    fn good(what: &'static str, found: impl fmt::Display) -> Self {
        Self { what, found: found.to_string(), verdict: Verdict::Good, fix: String::new() }
    }

    /// Good if `found` reaches `wanted`, else advice.
    fn at_least(what: &'static str, found: Option<u64>, wanted: u64, fix: &str) -> Self {
        let text = match found {
            Some(u64::MAX) => "unlimited".to_owned(),
            Some(found) => found.to_string(),
            None => "unknown".to_owned(),
        };
        let enough = found.is_none_or(|found| found >= wanted);
        let verdict = if enough { Verdict::Good } else { Verdict::Advice };
        Self { what, found: text, verdict, fix: fix.to_owned() }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Good => "ok  ",
            Verdict::Advice => "slow",
            Verdict::Needed => "FAIL",
        };
        write!(out, "{mark}  {}: {}", self.what, self.found)?;
        if self.verdict == Verdict::Good {
            return Ok(());
        }
        write!(out, "\n      fix: {}", self.fix)
    }
}

/// Runs the command: 0 if the server can run here, 1 if not.
pub fn execute() -> Exit {
    let ring = Uring::new(&Config::default()).map(|ring| ring.features());
    let facts = facts(&ring);
    for fact in &facts {
        println!("{fact}");
    }
    let failed = facts.iter().any(|fact| fact.verdict == Verdict::Needed);
    if failed { Exit::Failure } else { Exit::Ok }
}

fn facts(ring: &Result<Features, Unavailable>) -> Vec<Fact> {
    let mut facts = vec![Fact::good("kernel", process::kernel_version())];
    facts.extend(ring_facts(ring));
    let open_files = process::limit(Resource::OpenFiles).ok().map(|limit| limit.hard);
    let locked = process::limit(Resource::LockedMemory).ok().map(|limit| limit.soft);
    facts.extend([
        Fact::at_least(
            "open files (hard limit)",
            open_files,
            OPEN_FILES_WANTED,
            "systemd: LimitNOFILE=1048576, Docker: --ulimit nofile=1048576",
        ),
        Fact::at_least(
            "locked memory",
            locked,
            64 << 20,
            "systemd: LimitMEMLOCK=infinity, Docker: --ulimit memlock=-1",
        ),
        Fact::at_least(
            "vm.max_map_count",
            setting("vm/max_map_count"),
            MAPPINGS_WANTED,
            "run: sysctl -w vm.max_map_count=262144 (for more than 60,000 files)",
        ),
        Fact::at_least(
            "net.core.somaxconn",
            setting("net/core/somaxconn"),
            BACKLOG_WANTED,
            "run: sysctl -w net.core.somaxconn=4096",
        ),
        Fact::at_least(
            "net.ipv4.tcp_wmem (maximum)",
            setting("net/ipv4/tcp_wmem"),
            SEND_BUFFER_WANTED,
            "run: sysctl -w net.ipv4.tcp_wmem='4096 16384 4194304'",
        ),
    ]);
    facts
}

fn ring_facts(ring: &Result<Features, Unavailable>) -> Vec<Fact> {
    match ring {
        Ok(features) => {
            let zero_copy = Fact {
                what: "zero-copy sends",
                found: if features.zero_copy { "yes" } else { "no" }.to_owned(),
                verdict: if features.zero_copy { Verdict::Good } else { Verdict::Advice },
                fix: "run Linux 6.10 or newer".to_owned(),
            };
            vec![Fact::good("io_uring", features.level.label()), zero_copy]
        }
        Err(unavailable) => vec![Fact {
            what: "io_uring",
            found: unavailable.cause.clone(),
            verdict: Verdict::Needed,
            fix: unavailable.fix.clone(),
        }],
    }
}

/// The last number of a file beneath `/proc/sys`.
fn setting(path: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_fix() {
        let unavailable = Unavailable {
            errno: libc::EPERM,
            cause: "a filter forbids it".to_owned(),
            fix: "allow it".to_owned(),
        };
        let facts = facts(&Err(unavailable));
        let ring = facts.iter().find(|fact| fact.what == "io_uring").expect("it is a fact");
        assert_eq!(ring.to_string(), "FAIL  io_uring: a filter forbids it\n      fix: allow it");
        let low = Fact::at_least("x", Some(1), 2, "more");
        assert_eq!(low.to_string(), "slow  x: 1\n      fix: more");
        assert_eq!(Fact::at_least("x", Some(u64::MAX), 2, "").to_string(), "ok    x: unlimited");
        assert_eq!(Fact::at_least("x", None, 2, "").verdict, Verdict::Good);
    }

    #[test]
    fn settings_are_read_here() {
        assert!(setting("vm/max_map_count").is_some_and(|count| count > 0));
        assert_eq!(setting("no/such/file"), None);
    }
}
