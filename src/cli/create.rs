//! `seedring create`: a file or folder in, a `.torrent` out, its info-hash and magnet link shown.

use std::path::PathBuf;

use clap::Args;

use super::Exit;
use crate::config::Size;

/// Flags of `seedring create`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CreateArgs {
    /// File or folder to share.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The .torrent file to write.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
    /// Length of a piece, as in 1MiB; a power of two [default: by the size of the data].
    #[arg(long, value_name = "SIZE")]
    pub piece_length: Option<Size>,
    /// Tracker; may be given several times.
    #[arg(long, value_name = "URL")]
    pub tracker: Vec<url::Url>,
    /// HTTP server that has the data too; may be given several times.
    #[arg(long, value_name = "URL")]
    pub web_seed: Vec<url::Url>,
    /// Only peers of the trackers may be used.
    #[arg(long)]
    pub private: bool,
    /// Text for people.
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
}

/// Runs the command.
pub fn execute(_args: &CreateArgs) -> Exit {
    super::not_built("create")
}
