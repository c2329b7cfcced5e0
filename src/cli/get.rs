//! `seedring get`: fetch one torrent and exit.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::run::replace_list;
use super::{DiscoveryArgs, Exit};
use crate::config::{Config, Error, HttpListen};

/// Flags of `seedring get`.
#[derive(Args, Clone, PartialEq, Debug)]
pub struct GetArgs {
    /// A .torrent file, an http(s) URL of one, or a magnet link.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Folder that holds the torrent's top name; what lies there is kept and completed.
    #[arg(short = 'o', long = "output", value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Go on seeding when complete, until a signal.
    #[arg(long)]
    pub seed: bool,
    /// Peer to connect to; may be given several times.
    #[arg(long, value_name = "ADDR:PORT")]
    pub peer: Vec<SocketAddr>,
    /// Address for peers; may be given several times [default: any free port].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// End with 1 after this many seconds without progress [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Overwrite files that have another size than the torrent says.
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object when it ends.
    #[arg(long)]
    pub json: bool,
    /// Ways of finding peers.
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
}

impl GetArgs {
    /// The settings of the engine; what is about this one torrent stays in the flags.
    ///
    /// # Errors
    /// If a variable is wrong, or settings contradict each other.
    pub fn to_config(
        &self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        let mut config = for_one_torrent(variables)?;
        config.paths.downloads.clone_from(&self.output);
        replace_list(&mut config.net.listen, self.listen.clone());
        config.check()?;
        Ok(config)
    }
}

/// Settings of `get` and `seed`: any free port, no HTTP, no watch folders.
pub(super) fn for_one_torrent(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, Error> {
    let mut config = Config::load(None, variables)?;
    config.net.listen = vec![(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into()];
    config.http.listen = HttpListen(None);
    config.paths.watch.clear();
    Ok(config)
}

/// Runs the command.
pub fn execute(args: GetArgs) -> Exit {
    match args.to_config(std::env::vars_os()) {
        Ok(config) => {
            super::start_logging(config.log.level);
            super::not_built("get")
        }
        Err(error) => super::fail(Exit::Failure, error),
    }
}
