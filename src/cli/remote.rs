//! The flags of the commands that talk to a running server. They parse already; the commands
//! themselves are not built yet and say so.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which server.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ServerArgs {
    /// Address of the server's HTTP side.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9091")]
    pub http: SocketAddr,
}

/// Which torrents of which server.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct TorrentArgs {
    /// Info-hash, or the beginning of one.
    #[arg(value_name = "TORRENT", required = true)]
    pub torrents: Vec<String>,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of `seedring add`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct AddArgs {
    /// .torrent files, or http(s) URLs of them.
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Folder that holds the torrent's top name [default: the server's downloads].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// How existing data is verified.
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    pub verify: Verify,
    /// Add it stopped.
    #[arg(long)]
    pub paused: bool,
    /// Label; may be given several times.
    #[arg(long, value_name = "L")]
    pub label: Vec<String>,
}

/// How data that is there already is verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Verify {
    /// Hash everything before it is offered.
    Full,
    /// Compare sizes and times, hash the rest when it is first asked for.
    Quick,
    /// Believe it.
    Trust,
}
