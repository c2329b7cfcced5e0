//! The command line: words in, one command out, an exit code back.
//!
//! One file per command. Data leaves on stdout, talk and progress on stderr; bars only on a
//! terminal, colours only without `NO_COLOR`. Invariant: every flag of the documented command line
//! parses, and a wrong one ends with 2.

pub mod check;
pub mod create;
pub mod doctor;
pub mod get;
pub mod human;
mod learn;
pub mod names;
pub mod remote;
pub mod run;
pub mod seed;
mod session;
mod source;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

use crate::config::{self, Error, LogLevel};
use crate::server::engine::StartError;

/// How a command ended; the numbers are part of the contract with scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, with a sentence on stderr.
    Failure = 1,
    /// The command line or the configuration was wrong.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// The server wants credentials.
    Auth = 4,
    /// The server cannot be reached.
    Unreachable = 5,
    /// Incomplete: data is missing, or some of several things failed.
    Partial = 6,
    /// Ended by SIGINT.
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A headless BitTorrent seedbox server.
#[derive(Parser, Debug)]
#[command(name = "seedring", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 authentication, \
    5 unreachable, 6 incomplete, 130 SIGINT, 143 SIGTERM.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the server until a signal.
    Run(run::RunArgs),
    /// Fetch one torrent and exit.
    Get(get::GetArgs),
    /// Seed one torrent without any state, until a signal.
    Seed(seed::SeedArgs),
    /// Make a .torrent file.
    Create(create::CreateArgs),
    /// Check data on disk against a torrent.
    Check(check::CheckArgs),
    /// Say what this system gives io_uring, and how to fix what is missing.
    Doctor,
    /// Add torrents to a running server (not built yet).
    Add(remote::AddArgs),
    /// List the torrents of a running server (not built yet).
    List(remote::ServerArgs),
    /// Show one torrent of a running server (not built yet).
    Show(remote::TorrentArgs),
    /// Start torrents of a running server (not built yet).
    Start(remote::TorrentArgs),
    /// Stop torrents of a running server (not built yet).
    Stop(remote::TorrentArgs),
    /// Verify the data of torrents of a running server (not built yet).
    Verify(remote::TorrentArgs),
    /// Remove torrents from a running server; their data stays (not built yet).
    Remove(remote::TorrentArgs),
}

/// Ways of finding peers.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct DiscoveryArgs {
    /// Do not use the DHT.
    #[arg(long)]
    pub no_dht: bool,
    /// Do not look for peers on the local networks.
    #[arg(long)]
    pub no_lsd: bool,
    /// Do not exchange peers with peers.
    #[arg(long)]
    pub no_pex: bool,
    /// Node to enter the DHT by, instead of those of the settings; may be given several times.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_host_port)]
    pub dht_bootstrap: Vec<String>,
}

impl DiscoveryArgs {
    /// Flags over settings.
    fn apply(&self, net: &mut config::Net) {
        net.pex &= !self.no_pex;
        net.dht &= !self.no_dht;
        net.lsd &= !self.no_lsd;
        run::replace_list(&mut net.dht_bootstrap, self.dht_bootstrap.clone());
    }
}

/// An address to listen on.
fn parse_listen(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an address and a port are expected, as 0.0.0.0:51413 or [::]:51413")
}

fn parse_host_port(text: &str) -> Result<String, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("HOST:PORT is expected")?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("HOST:PORT is expected");
    }
    Ok(text.to_owned())
}

/// Runs the command line of this process.
pub fn main() -> Exit {
    main_with(std::env::args_os())
}

fn main_with(words: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            // If not even this can be written, the exit code remains.
            let _ = error.print();
            return if failed { Exit::Usage } else { Exit::Ok };
        }
    };
    match cli.command {
        Command::Run(args) => run::execute(args),
        Command::Get(args) => get::execute(args),
        Command::Seed(args) => seed::execute(args),
        Command::Create(args) => create::execute(&args),
        Command::Check(args) => check::execute(&args),
        Command::Doctor => doctor::execute(),
        Command::Add(_) => not_built("add"),
        Command::List(_) => not_built("list"),
        Command::Show(_) => not_built("show"),
        Command::Start(_) => not_built("start"),
        Command::Stop(_) => not_built("stop"),
        Command::Verify(_) => not_built("verify"),
        Command::Remove(_) => not_built("remove"),
    }
}

/// Ends because there are no settings to work with.
fn fail_config(error: &Error) -> Exit {
    let exit = match error {
        Error::Read { error, .. } if error.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        _ => Exit::Usage,
    };
    fail(exit, error)
}

/// Ends because the engine does not start.
fn fail_start(error: &StartError) -> Exit {
    let exit = match error {
        StartError::Bind { .. } | StartError::Core { .. } | StartError::Blocklist(_) => Exit::Usage,
        _ => Exit::Failure,
    };
    fail(exit, error)
}

/// Ends with one sentence on stderr.
pub fn fail(exit: Exit, sentence: impl std::fmt::Display) -> Exit {
    eprintln!("seedring: {sentence}");
    exit
}

fn not_built(command: &str) -> Exit {
    fail(Exit::Failure, format_args!("the command \"{command}\" is not built yet"))
}

/// Where it is logged that a torrent stopped.
const STOPS: &str = "seedring::server::retry";

/// Whether an error that stops a torrent is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogStops {
    /// As every other error.
    Yes,
    /// No: it ends the command, whose last sentence it is.
    No,
}

/// Sends logs of `level` and above to stderr, in colour only on a terminal and without `NO_COLOR`.
/// Says then which variables of the environment were meant as settings and are none.
pub fn start_logging(level: LogLevel, stops: LogStops) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let colour = std::io::stderr().is_terminal() && !no_color();
    let logs = tracing_subscriber::fmt()
        .with_writer(std::io::stderr.with_filter(move |event| {
            let is_stop = event.target() == STOPS && *event.level() == tracing::Level::ERROR;
            stops == LogStops::Yes || !is_stop
        }))
        .with_max_level(level)
        .with_ansi(colour)
        .try_init();
    // A second start within one process (tests) keeps the first.
    drop(logs);
    for variable in config::misspelt(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!("{variable}");
    }
}

/// <https://no-color.org>: present and not empty.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// A bar over `total` bytes on stderr; hidden unless that is a terminal.
pub fn progress_bar(total: u64, what: &'static str) -> indicatif::ProgressBar {
    let template = if no_color() {
        "{prefix} [{bar:30}] {percent}% {bytes_per_sec} {eta}"
    } else {
        "{prefix} [{bar:30.cyan}] {percent}% {bytes_per_sec} {eta}"
    };
    styled_bar(total, what, template)
}

/// The same for a transfer, whose rate, peers and time left are told in the bar's message.
pub fn transfer_bar(total: u64, what: &'static str) -> indicatif::ProgressBar {
    let template = if no_color() {
        "{prefix} [{bar:30}] {percent}% {msg}"
    } else {
        "{prefix} [{bar:30.cyan}] {percent}% {msg}"
    };
    styled_bar(total, what, template)
}

fn styled_bar(total: u64, what: &'static str, template: &str) -> indicatif::ProgressBar {
    let style = indicatif::ProgressStyle::with_template(template)
        .expect("a test makes a bar: the template is valid")
        .progress_chars("=> ");
    let target = indicatif::ProgressDrawTarget::stderr();
    indicatif::ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_prefix(what)
}

#[cfg(test)]
mod tests;
