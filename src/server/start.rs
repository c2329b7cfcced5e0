//! Starting the engine: which cores, under which name, and one worker thread on each.
//!
//! Settings enter; running workers with open mailboxes leave. Invariant: no mailbox is open before
//! every worker has its ring, so that a start that fails has begun nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use super::settings::Settings;
use super::{blocklist, ports};
use crate::metrics::Registry;
use crate::ring::{self, Driver, Uring};
use crate::sys::net::{self, Bind};
use crate::sys::process;
use crate::units::PeerId;
use crate::worker::Worker;
use crate::worker::datagrams::{HOME, WorkerEnd};
use crate::worker::mailbox::{self, Mailbox, Report, Shared};

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The peer port.
    #[error(transparent)]
    Ports(#[from] ports::Error),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] ring::Unavailable),
    /// A core that does not exist or may not be used.
    #[error("core {core} cannot be used: this process may run on {allowed}")]
    Core {
        /// The core asked for.
        core: usize,
        /// The cores there are.
        allowed: String,
    },
    /// Nothing could leave from where everything is to leave from.
    #[error(
        "connections cannot leave from {from}: {reason}; \
         name another with --bind ADDR|IFACE (net.bind)"
    )]
    Bind {
        /// The address or interface.
        from: String,
        /// The system's words.
        reason: std::io::Error,
    },
    /// The blocklist.
    #[error("{0} (net.blocklist)")]
    Blocklist(#[from] blocklist::Error),
    /// Trackers cannot be talked to.
    #[error("cannot ask trackers: {0}")]
    Trackers(String),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The system has no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

/// The cores to use: those asked for, or all that are allowed.
pub(super) fn choose_cores(wanted: &[usize]) -> Result<Vec<usize>, StartError> {
    let allowed = process::allowed_cores().map_err(StartError::Thread)?;
    if let Some(&core) = wanted.iter().find(|core| !allowed.contains(core)) {
        let names: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        return Err(StartError::Core { core, allowed: names.join(",") });
    }
    Ok(if wanted.is_empty() { allowed } else { wanted.to_vec() })
}

/// Makes sure that connections can leave from where they are to leave from. What goes away later
/// makes them fail; a name that was never there is a slip of the pen.
pub(super) fn check_bind(bind: Option<&Bind>) -> Result<(), StartError> {
    let (from, family) = match bind {
        None => return Ok(()),
        Some(Bind::Address(ip)) => (ip.to_string(), *ip),
        Some(Bind::Interface(name)) => (name.clone(), Ipv4Addr::LOCALHOST.into()),
    };
    match net::outgoing(&SocketAddr::new(family, 0), bind) {
        Ok(_) => Ok(()),
        Err(reason) => Err(StartError::Bind { from, reason }),
    }
}

/// A seed that nobody can guess.
pub(super) fn new_seed() -> Result<u64, StartError> {
    use ::ring::rand::SecureRandom;
    let mut random = [0; 8];
    let system = ::ring::rand::SystemRandom::new();
    system.fill(&mut random).map_err(|_| StartError::Random)?;
    Ok(u64::from_le_bytes(random))
}

/// A peer id of BEP 20's shape: `-sg<version>-` and random digits and letters.
pub(super) fn new_peer_id() -> Result<PeerId, StartError> {
    use ::ring::rand::SecureRandom;
    const LETTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    let mut random = [0; 12];
    let system = ::ring::rand::SystemRandom::new();
    system.fill(&mut random).map_err(|_| StartError::Random)?;
    let mut id = *b"-sg0000-............";
    let version = env!("CARGO_PKG_VERSION").split('.').filter_map(|part| part.bytes().next());
    for (place, digit) in id[3..7].iter_mut().zip(version) {
        *place = digit;
    }
    for (place, byte) in id[8..].iter_mut().zip(random) {
        *place = LETTERS[usize::from(byte % 64)];
    }
    Ok(PeerId(id))
}

/// Takes as many descriptors as we may have, and returns how many of the `wanted` connections fit.
/// A quarter stays for files, HTTP and trackers; if that is too little, accept says so when it
/// matters.
pub(super) fn fitting_connections(wanted: usize) -> usize {
    let Ok(limit) = process::raise_open_files() else { return wanted };
    let fitting = usize::try_from(limit - limit / 4).unwrap_or(usize::MAX).max(1);
    if fitting < wanted {
        tracing::warn!(limit, fitting, "fewer connections than asked for: descriptors are limited");
    }
    fitting.min(wanted)
}

/// Starts one worker per core, each with its ring, and opens their mailboxes once all are ready.
pub(super) fn start_workers(
    settings: &Settings,
    shared: &Shared,
    registry: &Registry,
    cores: &[usize],
    listeners: Vec<Vec<OwnedFd>>,
    datagrams: WorkerEnd,
) -> Result<(), StartError> {
    let mut mailboxes = Vec::new();
    let count = cores.len();
    let mut datagrams = Some(datagrams);
    for ((number, &core), sockets) in cores.iter().enumerate().zip(listeners) {
        let (ready, waker) = std::sync::mpsc::sync_channel(1);
        let (letters_in, letters) = mailbox::letters();
        let (shared, cells) = (shared.clone(), Arc::clone(&registry.cores()[number]));
        let datagrams = datagrams.take_if(|_| number == HOME);
        let options = crate::worker::Options {
            number,
            connections_max: settings.connections_max.div_ceil(count),
            read_bytes_max: settings.read_bytes_max / count,
            sealed_bytes_max: crate::worker::SEALED_BYTES_MAX,
            piece_bytes_max: settings.piece_bytes_max / count as u64,
            mode: settings.mode,
            zero_copy: settings.zero_copy,
            encryption: settings.encryption,
            bind: settings.bind.clone(),
        };
        let run = move || {
            let _guard = process::AbortOnPanic;
            if let Err(error) = process::pin_thread(core) {
                tracing::warn!(core, %error, "cannot pin a worker to its core");
            }
            let driver = match Uring::new(&ring::Config::default()) {
                Ok(driver) => driver,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(driver.waker()));
            let reports = shared.reports.clone();
            let listeners = sockets.into_iter().map(Rc::new).collect();
            let mut worker = Worker::new(driver, options, shared, letters, listeners, cells);
            if let Some(end) = datagrams {
                worker = worker.with_datagrams(end);
            }
            if let Err(error) = worker.run() {
                let _ = reports.blocking_send(Report::Died(number, error.to_string()));
            }
        };
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(run)
            .map_err(StartError::Thread)?;
        let waker = waker.recv().map_err(|_| {
            StartError::Thread(std::io::Error::other("a worker ended before it was ready"))
        })??;
        mailboxes.push(Mailbox::new(letters_in, waker));
    }
    // Set once, here.
    let _ = shared.mailboxes.set(mailboxes);
    Ok(())
}
