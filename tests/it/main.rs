//! seedring from outside: the program as its users, its peers and its enemies meet it.
//!
//! Each module is one theme; `support` holds what they share. `tests/run.sh` installs the foreign
//! programs that the interop modules start. Invariant: loopback or a network of the test's own only,
//! ports chosen by the system, nothing skipped silently, every process ended by its id.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "in tests a panic is the report"
)]

mod support;

mod blocklist;
mod cli;
mod cold;
mod dht;
mod dht_nodes;
mod encryption;
mod faults;
mod handover;
mod hostile;
mod hung;
mod interop_aria2;
mod interop_libtorrent;
mod interop_qbittorrent;
mod interop_transmission;
mod lsd;
mod magnets;
mod names;
mod own;
mod pex;
mod private;
mod refusals;
mod restart;
mod seccomp;
mod selection;
mod swarm;
mod watch;
