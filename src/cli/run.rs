//! `seedring run`: flags over variables over the file over the defaults.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{DiscoveryArgs, Exit, session};
use crate::config::{Bind, Config, CoreList, Error, HttpListen, LogLevel};
use crate::control::state::OpenError;
use crate::server::run as server;

/// Flags of `seedring run`. Each overrides the setting of the same name in the configuration.
#[derive(Args, Clone, PartialEq, Debug, Default)]
#[command(
    after_help = "SIGTERM or SIGINT ends the server within 10 s, with 0. A second signal ends it at \
    once, with 143 or 130: trackers may not hear that it stopped, the database stays whole."
)]
pub struct RunArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the database and of copies of all torrents
    /// [default: $XDG_STATE_HOME/seedring, or ~/.local/state/seedring].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Folder that new torrents are saved in [default: ./downloads].
    #[arg(long, value_name = "DIR")]
    pub downloads: Option<PathBuf>,
    /// Folder in which .torrent and .magnet files are taken; may be given several times.
    #[arg(long, value_name = "DIR")]
    pub watch: Vec<PathBuf>,
    /// Address for peers; may be given several times [default: port 51413 on all addresses].
    #[arg(long, value_name = "ADDR:PORT", value_parser = super::parse_listen)]
    pub listen: Vec<SocketAddr>,
    /// Address of metrics, health and remote control; - for none [default: 127.0.0.1:9091].
    #[arg(long, value_name = "ADDR:PORT", allow_hyphen_values = true)]
    pub http: Option<HttpListen>,
    /// Address or interface that every outgoing connection leaves from, or fails.
    #[arg(long, value_name = "ADDR|IFACE")]
    pub bind: Option<Bind>,
    /// Processors that get a worker, as in 0-3,8 [default: all allowed].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreList>,
    /// Ways of finding peers.
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
    /// Least important messages that are logged [default: info].
    #[arg(long, value_name = "L")]
    pub log_level: Option<LogLevel>,
}

impl RunArgs {
    /// The settings of the server.
    ///
    /// # Errors
    /// If a file or variable is wrong, or settings contradict each other.
    pub fn into_config(
        self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        let mut config = Config::load(self.config.as_deref(), variables)?;
        replace(&mut config.paths.state, self.state);
        replace(&mut config.paths.downloads, self.downloads);
        replace_list(&mut config.paths.watch, self.watch);
        replace_list(&mut config.net.listen, self.listen);
        replace(&mut config.http.listen, self.http);
        replace(&mut config.net.bind, self.bind);
        replace(&mut config.engine.cores, self.cores);
        replace(&mut config.log.level, self.log_level);
        self.discovery.apply(&mut config.net);
        if config.paths.state.as_os_str().is_empty() {
            return Err(Error::NoState);
        }
        config.check()?;
        Ok(config)
    }
}

fn replace<T>(setting: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *setting = value;
    }
}

/// A flag that is given replaces the whole list.
pub(super) fn replace_list<T>(setting: &mut Vec<T>, flags: Vec<T>) {
    if !flags.is_empty() {
        *setting = flags;
    }
}

/// Runs the command.
pub fn execute(args: RunArgs) -> Exit {
    let config = match args.into_config(std::env::vars_os()) {
        Ok(config) => config,
        Err(error) => return super::fail_config(&error),
    };
    super::start_logging(config.log.level, super::LogStops::Yes);
    session::block_on(async {
        let mut signals = session::Signals::new()?;
        let stop = async move {
            // Whichever it was: a server that stops as asked ends well.
            let _ = signals.next().await;
            tracing::info!("asked to stop: trackers are told, which takes 10 s at most");
            signals.end_at_next();
        };
        let ready = |peer, http| println!("{}", session::ready_line(peer, http));
        match server::run(config, ready, stop).await {
            Ok(()) => {
                tracing::info!("stopped");
                Ok(Exit::Ok)
            }
            Err(
                error @ (server::Error::Folder(_)
                | server::Error::State(OpenError::Directory { .. })),
            ) => Ok(super::fail(Exit::Usage, error)),
            Err(server::Error::Start(error)) => Ok(super::fail_start(&error)),
            Err(error) => Err(error.to_string()),
        }
    })
}
