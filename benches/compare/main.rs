//! `compare`: the same work for seedring and for every other client that is installed.
//!
//! ```text
//! cargo bench --bench compare -- [seed|encrypted|fetch|check|cold|all] [--connections 8 --depth 128] [--seconds 5]
//!     [--repeat 3] [--data-size 2GiB] [--spin] [--peers seedring,rqbit,iperf3] [--keep]
//! ```
//!
//! The program under measurement runs on one core and the load on another. A table leaves on
//! stdout, progress on stderr. Invariant: figures are printed as they were measured, also those
//! that fall short.

mod cold;
#[path = "../common/mod.rs"]
mod common;
mod filler;
mod ground;
mod iperf;
mod load;
#[path = "../loops/mod.rs"]
mod loops;
mod once;
mod peers;
mod probe;
mod process;
mod record;
mod seed;
mod serve;
mod stage;
mod table;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use seedring::config::Size;
use seedring::sys::process as system;

use crate::ground::Ground;
use crate::load::CONNECTIONS_MAX;
use crate::record::Setting;
use crate::seed::Load;
use crate::stage::Stage;

/// Where data and torrents are kept between runs.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/compare");

/// What `--peers` calls the line that is no peer.
const IPERF: &str = "iperf3";

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "compare", about = "Measures seedring beside the clients that are installed")]
struct Cli {
    /// What to compare [default: all].
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand, Clone, Debug)]
enum Task {
    /// Processor time per GiB sent, with 8 connections × 128 requests and with 500 × 8, or with
    /// what --connections and --depth say.
    Seed,
    /// Processor time per GiB sent to peers that insist on encryption, 8 connections × 128
    /// requests.
    Encrypted,
    /// Processor time per GiB fetched from minimal seeders.
    Fetch,
    /// GiB per second when checking hot data on one core.
    Check,
    /// The rate of a hot torrent alone, and beside one that comes from the disk.
    Cold,
    /// All of these.
    All,
    /// Serves with one of the bare loops until it is killed; for this program itself.
    #[command(hide = true)]
    Loop { runtime: loops::Runtime, listen: SocketAddr, torrent: PathBuf, data: PathBuf },
}

#[derive(Args, Clone, Debug)]
struct Options {
    /// Number of connections of one load.
    #[arg(long, global = true, requires = "depth")]
    connections: Option<usize>,
    /// Requests that each connection keeps in flight.
    #[arg(long, global = true, requires = "connections")]
    depth: Option<usize>,
    /// Seconds that each load is measured for.
    #[arg(long, global = true, default_value_t = 5)]
    seconds: u64,
    /// Rounds, one after another over all programs; the median is printed with the extremes.
    #[arg(long, global = true, default_value_t = 3)]
    repeat: u32,
    /// Size of the file.
    #[arg(long, global = true, default_value = "2GiB")]
    data_size: Size,
    /// Length of a piece.
    #[arg(long, global = true, default_value = "1MiB")]
    piece_length: Size,
    /// Keep the load's core awake, so that the seeder does not pay for waking it.
    #[arg(long, global = true)]
    spin: bool,
    /// Who takes part, by name [default: all that are installed].
    #[arg(long, global = true, value_delimiter = ',')]
    peers: Vec<String>,
    /// Number of seeders to fetch from.
    #[arg(long, global = true, default_value_t = 4)]
    sources: usize,
    /// The core of the program under measurement.
    #[arg(long, global = true, default_value_t = 0)]
    core: usize,
    /// The core of the load.
    #[arg(long, global = true, default_value_t = 1)]
    load_core: usize,
    /// Write the run to benches/runs/.
    #[arg(long, global = true)]
    keep: bool,
    /// Something that was tried and dropped, for the run's file; may be given several times.
    #[arg(long, global = true, value_name = "SENTENCE")]
    dropped: Vec<String>,
    /// What cargo adds; it changes nothing.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.task.unwrap_or(Task::All) {
        Task::Loop { runtime, listen, torrent, data } => {
            loops::run(runtime, listen, &torrent, &data)
        }
        task => compare(&task, &cli.options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(task: &Task, options: &Options) -> io::Result<()> {
    system::raise_open_files()?;
    let loads = loads(options)?;
    let (stage, setting) = prepare(options)?;
    println!("{}", setting.describe());
    let mut tables = Vec::new();
    let mut show = |table: table::Table| {
        println!("{table}");
        tables.push(table);
    };
    if matches!(task, Task::Seed | Task::All) {
        for load in loads {
            show(seed::run(&stage, load)?);
        }
    }
    if matches!(task, Task::Encrypted | Task::All) {
        show(seed::run(&stage, seed::ENCRYPTED)?);
    }
    if matches!(task, Task::Fetch | Task::All) {
        show(once::fetch(&stage)?);
    }
    if matches!(task, Task::Check | Task::All) {
        show(once::check(&stage)?);
    }
    if matches!(task, Task::Cold | Task::All) {
        show(cold::run(&stage, Path::new(ROOT), piece_len(options)?)?);
    }
    if options.keep {
        stage.tell(&format!("kept as {}", setting.keep(&tables)?.display()));
    }
    Ok(())
}

fn loads(options: &Options) -> io::Result<Vec<Load>> {
    match (options.connections, options.depth) {
        (Some(connections @ 1..=CONNECTIONS_MAX), Some(depth @ 1..)) => {
            Ok(vec![Load { connections, depth, is_encrypted: false }])
        }
        (None, None) => Ok(seed::STANDARD.to_vec()),
        _ => Err(io::Error::other("a load of nothing, or of more than there are addresses")),
    }
}

fn piece_len(options: &Options) -> io::Result<u32> {
    u32::try_from(options.piece_length.0).map_err(io::Error::other)
}

fn prepare(options: &Options) -> io::Result<(Stage, Setting)> {
    let (mut peers, mut versions, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for name in options.peers.iter().filter(|name| *name != IPERF) {
        peers.push(peers::find(name).map_err(io::Error::other)?);
    }
    if options.peers.is_empty() {
        peers.extend(peers::PEERS);
    }
    peers.retain(|peer| match peer.version() {
        Some(version) => {
            versions.push((peer.name(), version));
            true
        }
        None => {
            missing.push(peer.name());
            false
        }
    });
    let iperf_wanted = options.peers.is_empty() || options.peers.iter().any(|name| name == IPERF);
    let iperf_version = iperf::version().filter(|_| iperf_wanted);
    let with_iperf = iperf_version.is_some();
    match iperf_version {
        Some(version) => versions.push((IPERF, version)),
        None if iperf_wanted => missing.push(IPERF),
        None => {}
    }
    let stage = Stage {
        ground: Ground::prepare(Path::new(ROOT), options.data_size.0, piece_len(options)?)?,
        peers,
        with_iperf,
        repeat: options.repeat.max(1),
        seconds: options.seconds.max(1),
        spin: options.spin,
        sources: options.sources,
        core: options.core,
        load_core: options.load_core,
        scenes: Cell::new(0),
    };
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let dropped = options.dropped.clone();
    Ok((stage, Setting { arguments, versions, missing, dropped }))
}
