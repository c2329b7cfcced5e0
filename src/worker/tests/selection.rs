//! Torrents of which some files are wanted, and others a moment later.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::transfer::many_files;
use super::*;
use crate::metainfo::selection::Wanted;
use crate::storage::Content;
use crate::worker::mailbox::TorrentState;

/// The torrent with some of its files wanted.
fn selected(torrent: &Torrent, save_path: &Path, flags: &[bool]) -> Arc<Content> {
    let all = torrent.content(save_path);
    let wanted = Wanted::from_flags(flags.iter().copied());
    Arc::new(Content { metainfo: all.metainfo.clone(), save_path: save_path.to_owned(), wanted })
}

/// Whether every wanted file is at `save_path` as it should be.
fn has_selected(torrent: &Torrent, content: &Content) -> bool {
    let wanted = content.metainfo.layout.files().filter(|it| content.wanted.has(it.index));
    wanted.filter(|it| it.is_on_disk()).all(|entry| {
        let read = |root: &Path| std::fs::read(root.join(entry.path())).ok();
        read(torrent.path()) == read(&content.save_path)
    })
}

#[test]
fn wishes_that_change_amid_a_fetch_end_in_what_was_wanted_last() {
    let torrent = many_files();
    let file_count = torrent.content(torrent.path()).metainfo.layout.file_count();
    let rounds = std::cell::Cell::new(0);
    on_every_ring(Faults::rough(), 40..52, |ring| {
        rounds.set(rounds.get() + 1);
        let mut rng = fastrand::Rng::with_seed(rounds.get());
        let seeder = Fleet::start(1, 1, ring, &options());
        let leecher = Fleet::start(2, 1, ring, &options());
        seeder.seed(0, &torrent);
        let taken = leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let save_path = leecher.save_path.path().to_owned();
        let select = |leecher: &Fleet, flags: &[bool]| {
            let content = selected(&torrent, &save_path, flags);
            leecher.post(0, Letter::Select(torrent.info_hash, Arc::clone(&content)));
            content
        };
        for _ in 0..4 {
            let flags: Vec<bool> = (0..file_count).map(|_| rng.bool()).collect();
            select(&leecher, &flags);
            // At any time: at once, or when something has come, or all of it.
            let before = taken.downloaded.load(Relaxed);
            let share = rng.u64(..600_000);
            wait_for("bytes, or nothing to fetch", || {
                taken.downloaded.load(Relaxed) >= before + share
                    || taken.wanted_left.load(Relaxed) == 0
            });
        }
        // Something is always left for the end.
        let mut flags: Vec<bool> = (0..file_count).map(|_| rng.bool()).collect();
        flags[file_count - 1] = true;
        let content = select(&leecher, &flags);
        wait_for("what was wanted last", || {
            let is_done = taken.state() == TorrentState::Seeding;
            is_done && taken.wanted_left.load(Relaxed) == 0 && has_selected(&torrent, &content)
        });
        select(&leecher, &vec![true; file_count]);
        wait_for("everything", || {
            let is_done = taken.state() == TorrentState::Seeding;
            is_done && taken.left.load(Relaxed) == 0 && torrent.is_same_at(&save_path)
        });
        // What was on its way when files were opened anew is flushed by other descriptors of the
        // same files, which `Fleet::stop` does not take for the same.
        leecher.stop_amid_faults();
        seeder.stop();
    });
}
