//! Whether a torrent that its files failed may go on, and whether one may begin to write.
//!
//! What the torrent had and what lies on disk now enter; nothing, or the reason to stand still,
//! leaves. [`find_any`] and [`probe`] ask the cheap questions before a check, [`judge`] and
//! [`judge_absence`] those that a check has answered. Invariant: nothing that was complete is made anew or overwritten because it is
//! missing or different now: it may be somebody's edit, or a disk that is not mounted.

use std::io::ErrorKind::NotFound;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::verify::{Checked, FileReport, FileState};
use super::{Content, Error, Mode, files};
use crate::metainfo::File;
use crate::sys::file::{self, Identity};
use crate::units::{Bitfield, Geometry, PieceIndex};

/// Pieces of a torrent that may turn out unreadable before it stops.
pub const READ_ERRORS_MAX: u32 = 8;

/// How long a torrent that its files failed stands still before it is tried again, unless the
/// configuration says otherwise.
pub const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// What a torrent had before its files failed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Had {
    /// Its pieces.
    pub have: Bitfield,
    /// Its files, in the order of the layout, as they were when they were last known to be right;
    /// `None` or shorter where that is not known.
    pub known: Vec<Option<Identity>>,
    /// Their times count: we have not written to them since.
    pub is_settled: bool,
}

/// Whether the files of a torrent that failed could be used again: those it had are there, all can
/// be opened, and there is room for what is missing. `fetch` is whether it may write at all.
pub fn probe(content: &Content, had: &Had, fetch: bool) -> Result<(), Error> {
    look(content, had)?;
    let fetch = fetch && !content.is_finished(&had.have);
    // Where its pieces lie is for the check to find out.
    let opened = files::open(content, fetch, Mode::Read, &[], &had.have, &had.have)?;
    let wanted_files =
        opened.files.iter().enumerate().filter(|(index, _)| content.wanted.has(*index));
    let fds = || wanted_files.clone().filter_map(|(_, file)| Some(&file.as_ref()?.fd));
    // The page cache may hold what the disk refused to take: the check is to see the disk.
    for (fd, entry) in opened.files.iter().zip(content.metainfo.layout.files()) {
        let Some(open) = fd else { continue };
        file::drop_cache(open.fd.as_fd(), 0..entry.len).map_err(|error| {
            Error::from_io("flush", &content.save_path.join(entry.path()), &error)
        })?;
    }
    let Some(first) = fds().next().filter(|_| fetch) else { return Ok(()) };
    // Where space cannot be reserved, writes would fail one by one and torrents begin in vain.
    let geometry = content.metainfo.geometry;
    let wanted_pieces = content.wanted_pieces();
    let is_wanted = |piece: &PieceIndex| wanted_pieces.as_ref().is_none_or(|it| it.has(*piece));
    let verified = had.have.iter().filter(is_wanted).map(|it| u64::from(geometry.piece_len(it)));
    let allocated: u64 = fds().filter_map(|fd| file::allocated_bytes(fd.as_fd()).ok()).sum();
    let needed = content.wanted.len(&content.metainfo.layout);
    let needed = needed.saturating_sub(allocated.max(verified.sum()));
    match file::free_bytes(first.as_fd()) {
        Ok(free) if free < needed => {
            Err(Error::NoSpace { path: content.save_path.display().to_string(), needed, free })
        }
        _ => Ok(()),
    }
}

/// Whether the files that were there still are. One that was not complete may have gone, unless the
/// disk under it has gone too.
fn look(content: &Content, had: &Had) -> Result<(), Error> {
    if had.known.iter().all(Option::is_none) {
        return Ok(());
    }
    let save_path = &content.save_path;
    let failed = |error| Error::from_io("open", save_path, &error);
    let root_dev = std::fs::metadata(save_path).map_err(failed)?.dev();
    let root = file::open_root(save_path).map_err(failed)?;
    for (entry, known) in content.metainfo.layout.files().zip(&had.known) {
        let is_ours = entry.is_on_disk() && content.wanted.has(entry.index);
        let Some(known) = known.filter(|_| is_ours) else { continue };
        let path = save_path.join(entry.path());
        let was_complete = is_within(&entry, content.metainfo.geometry, &had.have);
        match file::identity_at(root.as_fd(), &entry.path()) {
            Ok(found) if was_complete && found.size < entry.len => {
                let path = path.display().to_string();
                return Err(Error::Truncated { path, expected: entry.len, found: found.size });
            }
            Ok(_) => {}
            Err(error) if error.kind() == NotFound && !was_complete && known.dev == root_dev => {
                tracing::warn!(
                    torrent = %content.metainfo.info_hash,
                    name = %content.metainfo.shown_name(), path = %path.display(),
                    "the file has gone before it was complete: it is begun anew"
                );
            }
            Err(error) => return Err(Error::from_io("stat", &path, &error)),
        }
    }
    Ok(())
}

/// Whether any wanted file with bytes is there. Asked before anything is made for a torrent that had data
/// in an earlier run: where nothing of it is left, its disk may not be mounted.
pub fn find_any(content: &Content) -> Result<(), Error> {
    let root = match file::open_root(&content.save_path) {
        Ok(root) => root,
        Err(error) if error.kind() == NotFound => return Err(gone(content)),
        Err(error) => return Err(Error::from_io("open", &content.save_path, &error)),
    };
    let mut refused = None;
    for entry in files_with_bytes(content) {
        match file::identity_at(root.as_fd(), &entry.path()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == NotFound => {}
            Err(error) => {
                let path = content.save_path.join(entry.path());
                refused.get_or_insert_with(|| Error::from_io("stat", &path, &error));
            }
        }
    }
    Err(refused.unwrap_or_else(|| gone(content)))
}

/// [`find_any`], answered by a check.
pub fn judge_absence(content: &Content, checked: &Checked) -> Option<Error> {
    let missing_count = missing(content, checked).count();
    let is_gone = missing_count > 0 && missing_count == files_with_bytes(content).count();
    is_gone.then(|| gone(content))
}

/// The wanted files with bytes that a check did not find.
pub fn missing<'c>(content: &'c Content, checked: &Checked) -> impl Iterator<Item = File<'c>> {
    let is_missing = move |entry: &File<'_>| {
        let report = checked.files.get(entry.index).filter(|_| !checked.cancelled);
        report.is_some_and(|report| report.state == FileState::Missing)
    };
    files_with_bytes(content).filter(is_missing)
}

fn files_with_bytes(content: &Content) -> impl Iterator<Item = File<'_>> {
    let files = content.metainfo.layout.files();
    files.filter(|it| it.is_on_disk() && it.len > 0 && content.wanted.has(it.index))
}

fn gone(content: &Content) -> Error {
    Error::Gone { path: content.save_path.display().to_string() }
}

/// What a check found that keeps a torrent from writing to its files; `had` is what it had before
/// they failed it, if they did.
pub fn judge(content: &Content, had: Option<&Had>, checked: &Checked) -> Option<Error> {
    if checked.cancelled {
        return None;
    }
    let layout = &content.metainfo.layout;
    let path = |index: usize| {
        let below = layout.file(index).map(|entry| entry.path());
        below.map_or_else(|| content.save_path.clone(), |below| content.save_path.join(below))
    };
    let is_ours = |file: Option<usize>| file.is_none_or(|index| content.wanted.has(index));
    let mut unread =
        checked.errors.iter().filter(|it| it.error.kind() != NotFound && is_ours(it.file));
    if let Some(error) = unread.clone().next()
        && unread.by_ref().count() >= READ_ERRORS_MAX as usize
    {
        let path = error.file.map_or_else(|| content.save_path.clone(), path);
        return Some(Error::from_io("read", &path, &error.error));
    }
    let geometry = content.metainfo.geometry;
    // What is not wanted is not written to, and may be whatever it likes.
    let ours = layout.files().zip(&checked.files).filter(|(it, _)| content.wanted.has(it.index));
    for (entry, report) in ours {
        let known = had.and_then(|had| Some((had, had.known.get(entry.index).copied().flatten()?)));
        let was_complete = known.is_some_and(|(had, _)| is_within(&entry, geometry, &had.have));
        let Some(found) = report.identity else {
            if was_complete {
                // It has gone since the probe: the disk may have, too.
                return Some(Error::Missing { path: path(entry.index).display().to_string() });
            }
            continue;
        };
        if report.state == FileState::Long && !is_confirmed(&entry, geometry, &checked.have) {
            let reason = format!(
                "it has {} bytes where the torrent has {}, and not its data: \
                 it is not overwritten",
                found.size, entry.len
            );
            let path = path(entry.index).display().to_string();
            return Some(Error::Refused { path, reason });
        }
        let Some((had, known)) = known else { continue };
        let is_same = (found.dev, found.ino) == (known.dev, known.ino)
            && (!was_complete || found.size == known.size)
            && (!was_complete || !had.is_settled || found == known);
        let is_lost = |&piece: &PieceIndex| had.have.has(piece) && !checked.have.has(piece);
        if !is_same && entry.pieces(geometry).any(|piece| is_lost(&piece)) {
            return Some(Error::Replaced { path: path(entry.index).display().to_string() });
        }
    }
    None
}

/// Whether a check found all that is wanted: every piece, and every file, even the empty ones.
pub fn is_whole(content: &Content, checked: &Checked) -> bool {
    let is_absent = |(index, file): (usize, &FileReport)| {
        matches!(file.state, FileState::Missing | FileState::Unusable) && content.wanted.has(index)
    };
    !checked.cancelled
        && content.is_finished(&checked.have)
        && !checked.files.iter().enumerate().any(is_absent)
}

/// Whether all of a file lies in pieces of `have`.
pub(super) fn is_within(entry: &File<'_>, geometry: Geometry, have: &Bitfield) -> bool {
    entry.pieces(geometry).all(|piece| have.has(piece))
}

/// Whether `have` shows that the file's first bytes are the torrent's: every piece that lies in it
/// alone is there, or, of a file too short for one, every piece it has a part in.
fn is_confirmed(entry: &File<'_>, geometry: Geometry, have: &Bitfield) -> bool {
    let lies_inside = |piece: &PieceIndex| {
        let start = geometry.piece_start(*piece);
        let end = start + u64::from(geometry.piece_len(*piece));
        start >= entry.start && end <= entry.start + entry.len
    };
    let mut inside = entry.pieces(geometry).filter(lies_inside).peekable();
    if inside.peek().is_none() {
        return is_within(entry, geometry, have);
    }
    inside.all(|piece| have.has(piece))
}

#[cfg(test)]
mod tests;
