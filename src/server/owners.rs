//! Torrents that lie in the same place: whose files they are.
//!
//! A torrent that would write enters; whether another one has the files it would write to leaves.
//! Invariant: no file is opened for writing, grown or touched for one torrent while it is another's:
//! one that is served, fetched, checked, or waits for its disk.

use std::collections::HashSet;
use std::path::PathBuf;

use super::engine::{Engine, top_path};
use crate::storage::{Content, Error};
use crate::units::InfoHash;

impl Engine {
    /// Why a torrent may not write to its files: another one has some of them. Only those below the
    /// same top name can. One that stands back itself has none.
    pub(super) fn shared_with_another(
        &self,
        info_hash: &InfoHash,
        content: &Content,
    ) -> Option<Error> {
        let path = top_path(content)?;
        let others = self.tops.get(&path)?.iter().filter(|&other| other != info_hash);
        let mut others = others.filter_map(|other| self.torrents.get(other)).peekable();
        others.peek()?;
        let paths = |content: &Content| -> HashSet<PathBuf> {
            let layout = content.metainfo.layout.files();
            let ours = layout.filter(|it| it.is_on_disk() && content.wanted.has(it.index));
            ours.map(|file| file.path()).collect()
        };
        let ours = paths(content);
        let is_owner = others
            .filter(|other| other.is_leaving || !other.stands_back)
            .any(|other| !ours.is_disjoint(&paths(&other.content)));
        is_owner.then(|| Error::Refused {
            path: path.display().to_string(),
            reason: "another torrent has files of the same names there".into(),
        })
    }
}
