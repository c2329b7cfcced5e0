//! From the configuration to what the engine is given.
//!
//! A checked [`Config`] enters, [`Settings`] leave. Invariant: every limit of the configuration has
//! its effect here and nowhere else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{self, Config, StorageMode};
use crate::mse;
use crate::storage::Mode;
use crate::swarm::{self, choker::Slots};
use crate::sys::net::Bind;
use crate::tracker::AddressPolicy;

/// How the engine is to be.
#[derive(Clone)]
pub struct Settings {
    /// Addresses for peers to connect to.
    pub listen: Vec<SocketAddr>,
    /// Cores to run workers on; empty means all that the affinity mask allows.
    pub cores: Vec<usize>,
    /// Address or interface that outgoing connections leave from.
    pub bind: Option<Bind>,
    /// Connections in all.
    pub connections_max: usize,
    /// Memory for what is read from cold files, in bytes.
    pub read_bytes_max: usize,
    /// Memory for pieces that are being fetched, in bytes.
    pub piece_bytes_max: u64,
    /// How blocks reach the socket.
    pub mode: Mode,
    /// Whether sends may do without a copy.
    pub zero_copy: bool,
    /// Whether connections are encrypted.
    pub encryption: mse::Policy,
    /// How torrents are served and fetched.
    pub torrent: swarm::Options,
    /// Upload slots in all; `None` is unlimited.
    pub slots: Option<u32>,
    /// Upload rate in all, in bytes per second; `None` is unlimited.
    pub up: Option<u64>,
    /// Download rate in all, in bytes per second; `None` is unlimited.
    pub down: Option<u64>,
    /// Hash threads give way to everything else.
    pub quiet_checks: bool,
    /// How long a torrent that its files failed stands still before it is tried again.
    pub retry: Duration,
    /// Whether all tiers of trackers are announced to at once.
    pub parallel_tiers: bool,
    /// Names of nodes, `HOST:PORT`, to enter the DHT by; `None` if it is not used.
    pub dht: Option<Vec<String>>,
    /// Nodes of the DHT that were saved by an earlier run, as [`crate::dht::from_file`] takes them.
    pub dht_saved: Vec<u8>,
    /// File with addresses to have nothing to do with.
    pub blocklist: Option<PathBuf>,
    /// Whether peers are looked for among neighbours.
    pub lsd: bool,
    /// Which addresses may be talked to.
    pub policy: AddressPolicy,
}

/// Translates a configuration.
pub fn settings(config: &Config) -> Settings {
    let limit = |value: u32| (value > 0).then_some(value);
    let listen: Vec<_> = config.net.listen.iter().map(SocketAddr::ip).collect();
    let policy = AddressPolicy::for_listen(&listen, &config.net.allow_local);
    let torrent = swarm::Options {
        seed_choker: config.engine.choker.choker(),
        slots: limit(config.limits.slots_per_torrent).map_or(Slots::Unlimited, Slots::Limited),
        connections_max: config.net.connections_per_torrent as usize,
        local: Some(policy.clone()),
        pex: config.net.pex,
        ..swarm::Options::default()
    };
    Settings {
        listen: config.net.listen.clone(),
        cores: config.engine.cores.iter().collect(),
        bind: match &config.net.bind {
            config::Bind::Any => None,
            config::Bind::Addr(address) => Some(Bind::Address(*address)),
            config::Bind::Interface(name) => Some(Bind::Interface(name.clone())),
        },
        connections_max: config.net.connections as usize,
        read_bytes_max: usize::try_from(config.engine.read_memory.0).unwrap_or(usize::MAX),
        piece_bytes_max: config.engine.piece_memory.0,
        mode: match config.storage.mode {
            StorageMode::Auto => Mode::Auto,
            StorageMode::Map => Mode::Map,
            StorageMode::Read => Mode::Read,
        },
        zero_copy: true,
        encryption: config.net.encryption,
        torrent,
        slots: limit(config.limits.slots),
        up: (config.limits.up.0 > 0).then_some(config.limits.up.0),
        down: (config.limits.down.0 > 0).then_some(config.limits.down.0),
        quiet_checks: false,
        retry: Duration::from_secs(u64::from(config.storage.retry_seconds)),
        parallel_tiers: config.trackers.parallel_tiers,
        dht: config.net.dht.then(|| bootstrap(config)),
        dht_saved: Vec::new(),
        blocklist: Some(&config.net.blocklist).filter(|it| !it.as_os_str().is_empty()).cloned(),
        lsd: config.net.lsd,
        policy,
    }
}

/// The nodes to enter the DHT by. A server that only listens on local addresses is in a network of
/// its own: the nodes of the Internet are not asked unless they are named.
fn bootstrap(config: &Config) -> Vec<String> {
    let names = &config.net.dht_bootstrap;
    let is_local = config.net.listen.iter().all(|addr| swarm::is_local(addr.ip()));
    let is_default = *names == config::Net::default().dht_bootstrap;
    if is_local && is_default { Vec::new() } else { names.clone() }
}
