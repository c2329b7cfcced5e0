//! Boot, dealing torrents to workers, shutdown.
//!
//! - [`engine`]: workers, checker and trackers as one thing that torrents are added to.
//! - [`folders`]: the folders of the settings, looked at before anything starts.
//! - [`ports`]: the peer ports, held once and listened on by every worker.
//! - [`settings`]: from the configuration to the engine.
//! - [`magnets`]: links on their way to torrents.
//! - [`blocklist`]: whom the operator wants nothing to do with.
//! - `bans`: who is banned, in every torrent of every worker.
//! - `ledger`: totals of torrents over all runs.
//! - `lsd`: neighbours that have the same torrents.
//! - `outbox`: letters on their way to workers, one queue for each.
//! - `own`: where we can be reached ourselves.
//! - `retry`: torrents that their files failed, until they can go on.
//! - `stop`: the end of an engine.
//! - [`udp`]: the machines behind the UDP sockets.
//! - [`run`]: the server: engine, state, watch folders and HTTP together.
//!
//! Invariant: the control thread never blocks on a disk, and a worker that dies ends the process.

mod bans;
pub mod blocklist;
mod budgets;
mod dht;
pub mod engine;
pub mod folders;
mod ledger;
mod lsd;
pub mod magnets;
mod outbox;
mod own;
mod owners;
pub mod ports;
mod reports;
mod retry;
pub mod run;
pub mod settings;
mod start;
mod stop;
pub mod udp;

#[cfg(test)]
mod tests;
