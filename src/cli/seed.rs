//! `seedring seed`: serve one torrent, without any state, until a signal.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::get::for_one_torrent;
use super::run::replace_list;
use super::{Exit, session, source};
use crate::config::{Config, Error};
use crate::metainfo::selection::Wanted;
use crate::server::engine::{Add, Engine, Event, Past, Verify};
use crate::server::run as server;
use crate::server::settings::settings;

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
    #[arg(long, value_name = "ADDR:PORT", value_parser = super::parse_listen)]
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
    let config = match args.to_config(std::env::vars_os()) {
        Ok(config) => config,
        Err(error) => return super::fail_config(&error),
    };
    super::start_logging(config.log.level, super::LogStops::No);
    session::block_on(seed(args, config))
}

async fn seed(args: SeedArgs, config: Config) -> Result<Exit, String> {
    let metainfo = match source::read_torrent(&args.torrent) {
        Ok(metainfo) => metainfo,
        Err(unusable) => return Ok(unusable.tell()),
    };
    if let Some(wrong) = source::wrong_data(&metainfo, &args.data) {
        return Ok(wrong.tell());
    }
    if let Some(renames) = metainfo.renames_told() {
        eprintln!("seedring: {renames}");
    }
    let mut signals = session::Signals::new()?;
    let mut engine = match Engine::start(settings(&config)) {
        Ok(engine) => engine,
        Err(error) => return Ok(super::fail_start(&error)),
    };
    let opened = tokio::select! {
        opened = engine.open_blocklist() => opened,
        _ = signals.next() => return Ok(Exit::Ok),
    };
    if let Err(error) = opened {
        return Ok(super::fail_start(&error));
    }
    let verify = if args.trust { Verify::Trust } else { Verify::Full };
    let save_path = config.paths.downloads;
    let (wanted, peers, past) = (Wanted::default(), Vec::new(), Past::default());
    server::tell_trackers(&metainfo);
    let add = Add { metainfo, save_path, wanted, verify, fetch: false, peers, past };
    engine.add(add).map_err(|error| error.to_string())?;
    let result = loop {
        let event = tokio::select! {
            event = engine.event() => event,
            _ = signals.next() => break Ok(Exit::Ok),
        };
        match event {
            Event::Checked { have_count, piece_count, is_complete: false, .. } => {
                let files = if have_count == piece_count { ", but a file is missing" } else { "" };
                eprintln!(
                    "seedring: {have_count} of {piece_count} pieces are in {}{files}: not seeding; \
                     seedring check says what is missing",
                    args.data.display()
                );
                break Ok(Exit::Partial);
            }
            Event::Checked { .. } => {
                if let Some(&peer) = engine.peer_addrs().first() {
                    println!("{}", session::ready_line(peer, None));
                }
            }
            Event::Failed(_, error) => break Err(error.to_string()),
            Event::Died(reason) => return Err(reason),
            Event::Finished(_) | Event::Metadata(_) | Event::Unusable(..) => {}
        }
    };
    signals.end_at_next();
    engine.shutdown().await;
    result
}
