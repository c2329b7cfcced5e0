//! What the system gives to the ring, for `seedring doctor`.
//!
//! Nothing enters; a [`Report`] leaves: each finding with what it is for and, where it is missing,
//! what brings it. Invariant: everything is tried on the running kernel, nothing is inferred from
//! its version.

use super::setup::{self, Config, Features, Level, Unavailable};
use super::{Batch, Driver, Event, Op, Pool, Tag, Uring};
use crate::sys::clock;
use crate::sys::net;
use crate::sys::process::{self, Limit, Resource};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

/// One thing that was looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub is_there: bool,
    /// What was seen, in a few words.
    pub seen: String,
    /// What it is for.
    pub purpose: &'static str,
    /// What brings it, if it is missing.
    pub fix: Option<String>,
}

/// All that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The kernel's version, as it names itself.
    pub kernel: String,
    /// What a ring can do here, or why there is none.
    pub ring: Result<Features, Unavailable>,
    /// One entry for everything that was looked for.
    pub findings: Vec<Finding>,
}

/// Least descriptors for which a server is not warned: peers and files of a busy one.
const OPEN_FILES_WANTED: u64 = 65_536;

/// Least bytes of locked memory for zero-copy sends, which are charged to the user.
const LOCKED_MEMORY_WANTED: u64 = 64 << 20;

/// How long the trial of the ring may take.
const TRIAL_MAX: Duration = Duration::from_secs(2);

/// Looks at everything. Takes some milliseconds.
pub fn probe() -> Report {
    let config = Config::default();
    let ring = setup::build(&config).map(|(_, features)| features);
    let mut findings = vec![ring_finding(&ring)];
    if let Ok(features) = &ring {
        findings.extend(feature_findings(*features));
        findings.push(trial_finding(&config));
    }
    findings.push(sysctl_finding());
    findings.push(limit_finding(
        "open files",
        process::limit(Resource::OpenFiles),
        |limit| limit.hard >= OPEN_FILES_WANTED,
        "one for each peer and each open file",
        "raise it (systemd: LimitNOFILE=1048576, Docker: --ulimit nofile=1048576)",
    ));
    findings.push(limit_finding(
        "locked memory",
        process::limit(Resource::LockedMemory),
        |limit| limit.soft >= LOCKED_MEMORY_WANTED,
        "zero-copy sends that are under way, for users without CAP_IPC_LOCK",
        "raise it (systemd: LimitMEMLOCK=infinity, Docker: --ulimit memlock=-1)",
    ));
    Report { kernel: process::kernel_version(), ring, findings }
}

fn ring_finding(ring: &Result<Features, Unavailable>) -> Finding {
    let (is_there, seen, fix) = match ring {
        Ok(features) => (true, features.level.label().to_owned(), None),
        Err(unavailable) => (false, unavailable.cause.clone(), Some(unavailable.fix.clone())),
    };
    let purpose = "every socket and file operation of a worker";
    Finding { name: "io_uring", is_there, seen, purpose, fix }
}

fn feature_findings(features: Features) -> [Finding; 3] {
    let finding = |name, is_there: bool, purpose, kernel: &str| Finding {
        name,
        is_there,
        seen: if is_there { "yes" } else { "no" }.to_owned(),
        purpose,
        fix: (!is_there).then(|| format!("run Linux {kernel} or newer")),
    };
    [
        finding(
            "deferred completions",
            features.level >= Level::Deferred,
            "completions are prepared when the core asks for them, without interrupting it",
            "6.1",
        ),
        finding(
            "zero-copy sends",
            features.zero_copy,
            "large sends over a real network card without a copy",
            "6.10",
        ),
        finding(
            "quiet waiting",
            features.no_iowait,
            "an idle core is not shown as waiting for a disk",
            "6.15",
        ),
    ]
}

fn trial_finding(config: &Config) -> Finding {
    let result = trial(config);
    Finding {
        name: "trial over loopback",
        is_there: result.is_ok(),
        seen: result.map_or_else(|error| error.to_string(), |()| "passed".to_owned()),
        purpose: "accept, connect, send and receive really work",
        fix: None,
    }
}

fn sysctl_finding() -> Finding {
    let value = process::io_uring_disabled();
    let is_there = value.unwrap_or(0) == 0;
    Finding {
        name: "kernel.io_uring_disabled",
        is_there,
        seen: value.map_or_else(|| "no such setting".to_owned(), |value| value.to_string()),
        purpose: "0 lets every user have rings",
        fix: (!is_there).then(|| "run: sysctl -w kernel.io_uring_disabled=0".to_owned()),
    }
}

fn limit_finding(
    name: &'static str,
    limit: io::Result<Limit>,
    is_enough: impl Fn(&Limit) -> bool,
    purpose: &'static str,
    fix: &str,
) -> Finding {
    let is_there = limit.as_ref().is_ok_and(is_enough);
    let seen = limit.map_or_else(|error| error.to_string(), |limit| limit.to_string());
    Finding { name, is_there, seen, purpose, fix: (!is_there).then(|| fix.to_owned()) }
}

/// Connects to itself and sends some bytes, to see that what was announced also works.
fn trial(config: &Config) -> io::Result<()> {
    let mut driver = Uring::new(config).map_err(io::Error::other)?;
    let listener = net::listen(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let addr = net::local_addr(listener.as_fd())?;
    let client = Rc::new(net::tcp_socket(&addr)?);
    driver.push(Tag(0), Op::Accept { listener: Rc::new(listener) });
    driver.push(Tag(1), Op::Connect { socket: Rc::clone(&client), addr });
    let end = clock::now() + TRIAL_MAX;
    let mut events = VecDeque::new();
    let mut _accepted = None;
    while clock::now() < end {
        driver.wait(Some(TRIAL_MAX / 10), &mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Accepted { result, .. } => {
                    let mut batch = Batch::new();
                    batch.push_bytes(b"trial").map_err(io::Error::other)?;
                    let (socket, batch) = (Rc::new(result?), Rc::new(batch));
                    _accepted = Some(Rc::clone(&socket));
                    driver.push(Tag(2), Op::Send { socket, batch, from: 0, zero_copy: true });
                }
                Event::Connected { result, .. } => {
                    result?;
                    let (socket, pool) = (Rc::clone(&client), Pool::Small);
                    driver.push(Tag(3), Op::Recv { socket, pool });
                }
                Event::Sent { result, .. } => drop(result?),
                Event::Received { result, .. } => {
                    let is_same = result?.starts_with(b"trial");
                    return if is_same { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) };
                }
                _ => {}
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_fix() {
        let report = probe();
        assert!(report.ring.is_ok(), "{report:?}");
        assert!(!report.kernel.is_empty());
        for finding in &report.findings {
            let is_explained = finding.is_there || finding.fix.is_some();
            assert!(is_explained, "{finding:?}");
            assert!(!finding.seen.is_empty() && !finding.purpose.is_empty());
        }
        let trial = report.findings.iter().find(|finding| finding.name.starts_with("trial"));
        assert!(trial.is_some_and(|trial| trial.is_there), "{trial:?}");
    }
}
