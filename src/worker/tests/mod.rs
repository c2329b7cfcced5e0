//! Whole workers on threads of their own, on the kernel's ring and on one that makes faults.
//!
//! Sockets are real and on loopback, files lie in directories that vanish. Every scenario is a
//! function of a [`Ring`]; [`on_every_ring`] runs it on the kernel's and, over seeds, on
//! `Faulty`, and names the ring of a failure.

mod data;
mod datagrams;
mod encrypted;
mod files;
mod fleet;
mod handover;
mod hostile;
mod in_place;
mod limits;
mod losses;
mod magnet;
mod peer;
mod selection;
mod stopping;
mod transfer;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use self::data::{Torrent, any_torrent};
use self::fleet::Fleet;
use self::peer::Peer;
use super::table::GENERATION_BITS;
use super::*;
use crate::ring::{Faults, Tag};

/// How long anything may take before it has failed.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// On what a worker runs.
#[derive(Clone, Copy, Debug)]
enum Ring {
    /// The kernel's ring.
    Plain,
    /// The same with faults, decided by a seed.
    Faulty(Faults, u64),
}

/// Everything that correct code survives without losing a connection, for connections that may
/// move between workers: what a short receive leaves over would stay behind with the old ring.
fn rough_without_short_receives() -> Faults {
    Faults { short_recv: 0.0, ..Faults::rough() }
}

/// Runs a scenario on the kernel's ring and with `faults` over `seeds`.
fn on_every_ring(faults: Faults, seeds: std::ops::Range<u64>, scenario: impl Fn(Ring)) {
    run_on(Ring::Plain, &scenario);
    for seed in seeds {
        run_on(Ring::Faulty(faults, seed), &scenario);
    }
}

fn run_on(ring: Ring, scenario: impl Fn(Ring)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(ring))) {
        eprintln!("failed on {ring:?}");
        resume_unwind(panic);
    }
}

/// Waits until `is_true`, and fails with `what` if it does not become so.
fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = clock::now() + WAIT_MAX;
    while !is_true() {
        assert!(clock::now() < end, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn targets_survive_their_tags() {
    let key = Key { slot: u32::MAX, generation: (1 << GENERATION_BITS) - 1 };
    for target in [
        Target::Listener(3),
        Target::Connect(key),
        Target::Receive(key),
        Target::Send(key),
        Target::Read(key),
        Target::Write(key),
        Target::Sync(key),
        Target::WriteBlock(key),
        Target::Check(key),
        Target::Datagrams(3),
        Target::SendTo(key),
    ] {
        assert_eq!(Target::of(target.tag()), Some(target));
    }
    assert_eq!(Target::of(Tag(0)), None);
}
