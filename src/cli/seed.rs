//! `seedring seed`: serve one torrent, without any state, until a signal.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::Exit;
use super::get::for_one_torrent;
use super::run::replace_list;
use crate::config::{Config, Error};

/// Flags of `seedring seed`.
#[derive(Args, Clone, PartialEq, Debug)]
pub struct SeedArgs {
    /// The .torrent file.
    #[arg(value_name = "TORRENT")]
    pub torrent: PathBuf,
    /// Folder that holds the torrent's top name.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Address for peers; may be given several times [default: any free port].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// Take the data for complete without checking it first.
    #[arg(long)]
    pub trust: bool,
}

impl SeedArgs {
    /// The settings of the engine; what is about this one torrent stays in the flags.
    ///
    /// # Errors
    /// If a variable is wrong, or settings contradict each other.
    pub fn to_config(
        &self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        let mut config = for_one_torrent(variables)?;
        config.paths.downloads.clone_from(&self.data);
        replace_list(&mut config.net.listen, self.listen.clone());
        config.check()?;
        Ok(config)
    }
}

/// Runs the command.
pub fn execute(args: SeedArgs) -> Exit {
    match args.to_config(std::env::vars_os()) {
        Ok(config) => {
            super::start_logging(config.log.level);
            super::not_built("seed")
        }
        Err(error) => super::fail(Exit::Failure, error),
    }
}
