//! Magnet links of the server: from a watch folder, or an earlier run, to torrents.
//!
//! Files and metadata enter; verdicts on the files, links for the engine and whole torrents leave.
//! Invariant: a link is remembered on disk before its file in the watch folder is renamed, and until
//! its torrent is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{REMEMBERING_MAX, Server};
use crate::control::state::{NewTorrent, OrderError, StoredMagnet, StoredTorrent};
use crate::control::watch::Found;
use crate::metainfo::magnet::Magnet;
use crate::metainfo::selection::Wanted;
use crate::metainfo::{Metainfo, shown_name};
use crate::metrics::WatchResult;
use crate::server::engine::{Add, AddError, Past, Verify};
use crate::sys::clock;
use crate::units::InfoHash;

/// What a task of remembering came to.
pub(super) enum Remembered {
    /// A link in a file of a watch folder.
    Link(PathBuf, Result<Magnet, String>),
    /// The torrent that a link named, and what is wanted of it.
    Torrent(Box<Metainfo>, Wanted, Result<(), OrderError>),
    /// Such a torrent again, which the engine has.
    Again(InfoHash, Result<(), OrderError>),
}

/// Torrents that are remembered by their links only, because the state refused them, and are tried
/// again in this run.
const UNWRITTEN_MAX: usize = 64 * 1024;

/// How long it is after a refusal until the next is tried.
const REWRITE_WAIT: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Default)]
pub(super) struct Links {
    remembering: JoinSet<Remembered>,
    /// Where the data of each link goes.
    save_paths: HashMap<InfoHash, PathBuf>,
    /// Links of torrents that are being read from the state, in case they cannot be.
    late: Vec<StoredMagnet>,
    /// Torrents whose metadata came and that are to be remembered, each in memory once until then,
    /// and what is wanted of them; there are as many at most as links.
    learnt: VecDeque<(Metainfo, Wanted)>,
    /// Torrents that find no room in the engine yet, and what is wanted of them.
    waiting: VecDeque<(Metainfo, Wanted)>,
    /// See [`UNWRITTEN_MAX`].
    unwritten: VecDeque<InfoHash>,
    /// When the next of those may be tried, and whether one is.
    rewrite_at: Option<Instant>,
    is_rewriting: bool,
}

impl Links {
    /// How many are being remembered.
    pub(super) fn remembering_count(&self) -> usize {
        self.remembering.len()
    }

    /// How many torrents wait to be remembered, or for room in the engine.
    pub(super) fn waiting_count(&self) -> usize {
        self.learnt.len() + self.waiting.len()
    }

    /// The torrent of a link is in the engine.
    pub(super) fn end(&mut self, info_hash: &InfoHash) {
        self.save_paths.remove(info_hash);
    }

    /// Keeps a torrent that the state refused; false if there are too many.
    fn keep_unwritten(&mut self, info_hash: InfoHash) -> bool {
        self.rewrite_at = Some(clock::now() + REWRITE_WAIT);
        let has_room = self.unwritten.len() < UNWRITTEN_MAX;
        if has_room {
            self.unwritten.push_back(info_hash);
        }
        has_room
    }

    /// The next one that was remembered, or not.
    pub(super) async fn next(&mut self) -> Option<Remembered> {
        loop {
            // A task that panics ends the process.
            if let Ok(remembered) = self.remembering.join_next().await? {
                return Some(remembered);
            }
        }
    }
}

impl Server {
    /// Goes on with the links of earlier runs. Those of torrents that are `stored` too wait until it
    /// is clear whether they can be read.
    pub(super) fn restore_links(&mut self, stored: &[StoredTorrent]) {
        let stored: HashSet<_> = stored.iter().map(|torrent| torrent.info_hash).collect();
        let magnets = self.state.magnets().to_vec();
        let (late, now): (Vec<_>, Vec<_>) =
            magnets.into_iter().partition(|magnet| stored.contains(&magnet.info_hash));
        self.links.late = late;
        now.into_iter().for_each(|magnet| self.restore_link(magnet));
    }

    /// Looks for torrents of earlier runs that could not be read and have links.
    pub(super) fn restore_late_links(&mut self) {
        let late = std::mem::take(&mut self.links.late);
        late.into_iter().for_each(|magnet| self.restore_link(magnet));
    }

    fn restore_link(&mut self, StoredMagnet { info_hash, link, save_path, .. }: StoredMagnet) {
        match Magnet::parse_stored(&link) {
            // One that is here already needs no link.
            Ok(link) => drop(self.seek(link, save_path)),
            Err(error) => {
                tracing::error!(torrent = %info_hash, %error, "its link in the state is bad");
            }
        }
    }

    /// Has the engine look for what a link names.
    fn seek(&mut self, link: Magnet, save_path: PathBuf) -> Result<InfoHash, AddError> {
        let name = link.name.as_deref().map(shown_name).unwrap_or_default();
        for warning in &link.warnings {
            tracing::info!(torrent = %link.info_hash, %name, warning, "in the link");
        }
        let info_hash = self.engine.add_magnet(link, Vec::new())?;
        self.links.save_paths.insert(info_hash, save_path);
        tracing::info!(torrent = %info_hash, %name, "its metadata is being looked for");
        Ok(info_hash)
    }

    /// Judges a `.magnet` file of a watch folder, and remembers a good link on disk.
    pub(super) fn take_link(&mut self, found: Found) {
        let Found { path, contents } = found;
        let judged = contents.and_then(|bytes| {
            let link = Magnet::parse_file(&bytes).map_err(|error| error.to_string())?;
            // What the next start could not read is not accepted.
            let again = Magnet::parse_stored(&link.to_string());
            again.map(|_| link).map_err(|error| format!("it cannot be remembered: {error}"))
        });
        let is_known = judged.as_ref().is_ok_and(|link| {
            let info_hash = &link.info_hash;
            self.engine.torrent(info_hash).is_some() || self.engine.magnet(info_hash).is_some()
        });
        let (state, save_path) = (Arc::clone(&self.state), self.downloads.clone());
        self.links.remembering.spawn(async move {
            let link = match judged {
                Ok(link) if !is_known => link,
                judged => return Remembered::Link(path, judged),
            };
            let magnet = StoredMagnet {
                info_hash: link.info_hash,
                link: link.to_string(),
                save_path,
                added_at: clock::wall_seconds(),
            };
            let added = state.add_magnet(magnet).await;
            let link = added.map(|()| link);
            Remembered::Link(
                path,
                link.map_err(|error| format!("it cannot be remembered: {error}")),
            )
        });
    }

    /// Goes on with what was remembered.
    pub(super) fn on_remembered(&mut self, remembered: Remembered) {
        match remembered {
            Remembered::Link(path, judged) => {
                let result =
                    judged.and_then(|link| match self.seek(link, self.downloads.clone()) {
                        Ok(_) => Ok(WatchResult::Added),
                        Err(AddError::Duplicate(info_hash)) => {
                            let file = path.display();
                            tracing::info!(
                                torrent = %info_hash, %file,
                                "it is here already: nothing to add"
                            );
                            Ok(WatchResult::Duplicate)
                        }
                        Err(error) => Err(error.to_string()),
                    });
                self.give_verdict(path, result);
            }
            Remembered::Torrent(metainfo, wanted, result) => {
                if let Err(error) = result {
                    let (info_hash, name) = (metainfo.info_hash, metainfo.shown_name());
                    let is_kept = self.links.keep_unwritten(info_hash);
                    tracing::error!(
                        torrent = %info_hash, %name, %error, is_tried_again = is_kept,
                        "it is remembered by its link only: if that stays so, its metadata is \
                         fetched again at the next start"
                    );
                }
                self.remember_next();
                self.links.waiting.push_back((*metainfo, wanted));
                self.add_waiting_links();
            }
            Remembered::Again(info_hash, result) => {
                self.links.is_rewriting = false;
                match result {
                    Ok(()) => {
                        tracing::info!(torrent = %info_hash, "it is remembered now");
                        self.ledger.write_again(&info_hash);
                        self.remember_again();
                    }
                    // The state has said why.
                    Err(_) => drop(self.links.keep_unwritten(info_hash)),
                }
            }
        }
    }

    /// Tries again to remember a torrent that the state refused, one at a time.
    pub(super) fn remember_again(&mut self) {
        if self.links.is_rewriting || self.links.rewrite_at.is_some_and(|at| at > clock::now()) {
            return;
        }
        // One that waits for room in the engine keeps its turn.
        let in_engine = |info_hash: &InfoHash| self.engine.torrent(info_hash).is_some();
        let Some(place) = self.links.unwritten.iter().position(in_engine) else { return };
        let Some(info_hash) = self.links.unwritten.remove(place) else { return };
        let Some(torrent) = self.engine.torrent(&info_hash) else { return };
        let (content, state) = (Arc::clone(&torrent.content), Arc::clone(&self.state));
        self.links.is_rewriting = true;
        self.links.remembering.spawn(async move {
            let (save_path, wanted) = (content.save_path.clone(), content.wanted.clone());
            let added = state.add(new_torrent(&content.metainfo, save_path, wanted)).await;
            Remembered::Again(info_hash, added)
        });
    }

    /// The metadata of a link came: it is remembered in place of the link.
    pub(super) fn remember_learnt(&mut self, metainfo: Metainfo) {
        let (info_hash, name) = (metainfo.info_hash, metainfo.shown_name());
        tracing::info!(torrent = %info_hash, %name, "its metadata is here");
        for warning in metainfo.warnings.iter().chain(&metainfo.renames_told()) {
            tracing::info!(torrent = %info_hash, %name, warning, "in the torrent");
        }
        let pending = self.engine.magnet(&info_hash);
        let selection = pending.and_then(|pending| pending.link.files.clone());
        let wanted = match Wanted::of(selection.as_ref(), &metainfo.layout) {
            Ok(wanted) => wanted,
            Err(error) => {
                self.engine.remove_magnet(&info_hash);
                return self.forget_link(info_hash, &error.to_string());
            }
        };
        let file_count = metainfo.layout.file_count();
        if let Some(selection) = selection {
            let lacks = selection.goes_beyond(file_count);
            let beyond = if lacks { ", and the link names others beside" } else { "" };
            tracing::info!(
                torrent = %info_hash, %name,
                "so={selection}: of the {file_count} files only these are wanted{beyond}"
            );
        }
        self.links.learnt.push_back((metainfo, wanted));
        self.remember_next();
    }

    /// Remembers torrents whose metadata came: a few at a time, for each is copied meanwhile.
    fn remember_next(&mut self) {
        while self.links.remembering_count() < REMEMBERING_MAX
            && let Some((metainfo, wanted)) = self.links.learnt.pop_front()
        {
            let save_path = self.save_path_of(&metainfo.info_hash);
            let state = Arc::clone(&self.state);
            self.links.remembering.spawn(async move {
                let added = state.add(new_torrent(&metainfo, save_path, wanted.clone())).await;
                Remembered::Torrent(Box::new(metainfo), wanted, added)
            });
        }
    }

    fn save_path_of(&self, info_hash: &InfoHash) -> PathBuf {
        self.links.save_paths.get(info_hash).unwrap_or(&self.downloads).clone()
    }

    /// Adds the torrents whose metadata came, as far as there is room.
    pub(super) fn add_waiting_links(&mut self) {
        while !self.engine.is_busy()
            && let Some((metainfo, wanted)) = self.links.waiting.pop_front()
        {
            let (info_hash, name) = (metainfo.info_hash, metainfo.shown_name());
            let save_path = self.save_path_of(&info_hash);
            let (verify, peers, past) = (Verify::Full, Vec::new(), Past::default());
            self.ledger.renew(&info_hash);
            let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
            match self.add(add) {
                // Its file came into a watch folder meanwhile.
                Ok(_) | Err(AddError::Duplicate(_)) => {}
                Err(error) => tracing::warn!(torrent = %info_hash, %name, %error, "not added"),
            }
        }
    }

    /// A link turned out to name something that is not taken.
    pub(super) fn forget_link(&mut self, info_hash: InfoHash, error: &str) {
        tracing::error!(
            torrent = %info_hash, error,
            "its metadata is here and describes nothing that is taken: the link is forgotten"
        );
        self.links.end(&info_hash);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            if let Err(error) = state.remove(info_hash).await {
                tracing::warn!(torrent = %info_hash, %error, "the link comes back at the next start");
            }
        });
    }
}

fn new_torrent(metainfo: &Metainfo, save_path: PathBuf, wanted: Wanted) -> NewTorrent {
    NewTorrent {
        info_hash: metainfo.info_hash,
        metainfo: metainfo.raw().to_vec(),
        save_path,
        name: metainfo.name.clone(),
        added_at: clock::wall_seconds(),
        wanted,
    }
}
