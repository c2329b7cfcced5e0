//! How much of announcing may happen at once.
//!
//! Invariant: a limit holds always, also at the start of ten thousand torrents and at the end.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How much may happen at once. [`Limits::default`] is what a server uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Announces on their way, over all hosts; `stopped` at the end has as many again.
    pub in_flight_max: usize,
    /// Announces on their way to one host.
    pub in_flight_per_host_max: usize,
    /// The same while the server ends and every torrent says `stopped`.
    pub in_flight_per_host_ending_max: usize,
    /// Announces on their way to one host whose last answer was a fault, or that never gave one.
    pub in_flight_per_unproven_host_max: usize,
    /// Announces on their way to all such hosts together.
    pub in_flight_unproven_max: usize,
    /// Announces to one host that may start at once; further ones follow every `host_gap`.
    pub host_burst: u32,
    /// Time between two announces to one host once its burst is used up.
    pub host_gap: Duration,
    /// Faults in a row after which a host rests.
    pub host_fault_max: u32,
    /// The first rest of a host; it doubles with every further fault.
    pub host_rest_min: Duration,
    /// The longest rest of a host.
    pub host_rest_max: Duration,
    /// Hosts whose faults are remembered; those of further ones are not.
    pub hosts_max: usize,
    /// Torrents, stopping ones included.
    pub torrents_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: 50,
            in_flight_per_host_max: 6,
            in_flight_per_host_ending_max: 25,
            in_flight_per_unproven_host_max: 2,
            in_flight_unproven_max: 30,
            host_burst: 20,
            host_gap: Duration::from_millis(20),
            host_fault_max: 5,
            host_rest_min: Duration::from_secs(60),
            host_rest_max: Duration::from_secs(30 * 60),
            hosts_max: 16_384,
            torrents_max: 200_000,
        }
    }
}
