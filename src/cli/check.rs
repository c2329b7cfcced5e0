//! `seedring check`: a torrent and a folder in, what of it is there out.

use std::path::PathBuf;

use clap::Args;

use super::Exit;

/// Flags of `seedring check`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CheckArgs {
    /// The .torrent file.
    #[arg(value_name = "TORRENT")]
    pub torrent: PathBuf,
    /// Folder that holds the torrent's top name.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn execute(_args: &CheckArgs) -> Exit {
    super::not_built("check")
}
