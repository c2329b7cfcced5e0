//! The first half of `seedring get` with a magnet link: from the link to the torrent.
//!
//! A link enters; the torrent that its peers describe leaves, after a look at what lies where it
//! goes. Invariant: no file is changed before the torrent is known.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::get::{GetArgs, LONELY_AFTER, loneliness};
use super::{Exit, human, session, source};
use crate::metainfo::Metainfo;
use crate::metainfo::magnet::Magnet;
use crate::metainfo::selection::Wanted;
use crate::server::engine::{Engine, Event};
use crate::sys::clock;
use crate::units::InfoHash;

/// How the command ends without a torrent.
type Ended = Result<Exit, String>;

/// Fetches the metadata of `link` from peers; which of its files the link asks for goes with it.
///
/// # Errors
/// How the command ends: by a signal, for want of progress, or because there can be no torrent.
pub(super) async fn learn(
    engine: &mut Engine,
    link: Magnet,
    peers: &[SocketAddr],
    args: &GetArgs,
    signals: &mut session::Signals,
) -> Result<(Metainfo, Wanted), Ended> {
    for warning in &link.warnings {
        eprintln!("seedring: {warning}");
    }
    let selection = link.files.clone();
    let added = engine.add_magnet(link, peers.to_vec());
    let info_hash = added.map_err(|error| Err(error.to_string()))?;
    let bar = super::transfer_bar(0, "get");
    let mut wait = Wait {
        info_hash,
        most: (0, clock::now()),
        lonely_since: Some(clock::now()),
        timeout: args.timeout.map(Duration::from_secs),
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let metainfo = loop {
        let event = tokio::select! {
            event = engine.event() => event,
            exit = signals.next() => return Err(Ok(exit)),
            _ = ticks.tick() => {
                wait.show(engine, &bar);
                wait.tell_lonely(engine, args, &bar);
                if wait.is_stuck(engine) {
                    return Err(Err("no metadata within the time-out".into()));
                }
                continue;
            }
        };
        match event {
            Event::Metadata(metainfo) => break *metainfo,
            Event::Unusable(_, error) => {
                return Err(Err(format!("the link names a torrent that is not taken: {error}")));
            }
            Event::Died(reason) => return Err(Err(reason)),
            Event::Checked { .. } | Event::Finished(_) | Event::Failed(..) => {}
        }
    };
    bar.finish_and_clear();
    let (name, len) = (metainfo.shown_name(), metainfo.geometry.total_len());
    eprintln!("seedring: the metadata is here: {name}, {}", human::size(len));
    let wanted = Wanted::of(selection.as_ref(), &metainfo.layout);
    let wanted = wanted.map_err(|error| Err(error.to_string()))?;
    let file_count = metainfo.layout.file_count();
    if selection.is_some_and(|selection| selection.goes_beyond(file_count)) {
        eprintln!("seedring: so= names files that the torrent does not have: it has {file_count}");
    }
    let (save_path, overwrite) = (args.output.clone(), args.overwrite);
    let look = move || {
        let too_long = source::look(&metainfo, &wanted, &save_path, overwrite)?;
        source::cut(&save_path, &too_long)?;
        Ok((metainfo, wanted))
    };
    let looked = tokio::select! {
        looked = source::on_disk(look) => looked,
        exit = signals.next() => return Err(Ok(exit)),
    };
    looked.map_err(|unusable| Ok(unusable.tell()))
}

/// The wait for metadata.
struct Wait {
    info_hash: InfoHash,
    /// The bytes that had come in all, and since when there are no more.
    most: (u64, Instant),
    /// When the wait for a first peer began, until there was one or it was said.
    lonely_since: Option<Instant>,
    timeout: Option<Duration>,
}

impl Wait {
    /// Brings the bar up to date.
    fn show(&self, engine: &Engine, bar: &indicatif::ProgressBar) {
        let Some(pending) = engine.magnet(&self.info_hash) else { return };
        let progress = &pending.progress;
        let peers = human::counted(progress.peers.load(Relaxed), "peer");
        let (blocks, all) = (progress.blocks.load(Relaxed), progress.blocks_all.load(Relaxed));
        bar.set_length(all);
        bar.set_position(blocks);
        bar.set_message(match all {
            0 => format!("fetching metadata: {peers}"),
            _ => {
                format!("fetching metadata: {peers}, {blocks} of {}", human::counted(all, "piece"))
            }
        });
    }

    /// Says once that nobody is connected, what was tried, and what can be done.
    fn tell_lonely(&mut self, engine: &Engine, args: &GetArgs, bar: &indicatif::ProgressBar) {
        let Some(since) = self.lonely_since else { return };
        let peers = engine.magnet(&self.info_hash).map(|it| it.progress.peers.load(Relaxed));
        if peers.is_some_and(|count| count > 0) {
            self.lonely_since = None;
        } else if clock::now() - since >= LONELY_AFTER {
            self.lonely_since = None;
            let lines = loneliness(engine, &self.info_hash, false, &args.peer);
            bar.suspend(|| lines.iter().for_each(|line| eprintln!("seedring: {line}")));
        }
    }

    /// Whether nothing has come for longer than was allowed. What comes from those who are known to
    /// have lied does not count; what comes after another one's lie was found out does.
    fn is_stuck(&mut self, engine: &Engine) -> bool {
        let accepted =
            engine.magnet(&self.info_hash).map_or(0, |it| it.progress.accepted.load(Relaxed));
        let now = clock::now();
        if accepted > self.most.0 {
            self.most = (accepted, now);
        }
        self.timeout.is_some_and(|timeout| now - self.most.1 >= timeout)
    }
}
