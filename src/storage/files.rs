//! Opens a torrent's files, reserves their space, and tells when they are not the same any more.
//!
//! A [`Content`] enters, open files with their mappings leave, or the reason why the torrent has
//! to stop. Everything here may block: it runs on the threads for files, never on a worker.
//! Invariant: nothing is opened outside the save path, and no existing byte is changed.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::recovery::is_within;
use super::{Content, Error, Mode};
use crate::metainfo::File;
use crate::sys::file::{self, Access, Identity};
use crate::sys::map::Mapping;
use crate::units::Bitfield;

/// Files below this length are read instead of mapped: a mapping would cost more than it saves.
pub const MAP_LEN_MIN: u64 = 640 * 1024;

/// Mappings of one torrent; further files are read. The kernel allows 65,530 per process.
pub const MAPPINGS_MAX: usize = 4096;

/// The open files of a torrent, in the order of its layout.
#[derive(Debug, Default)]
pub struct Opened {
    /// `None` for padding and empty files, which have no bytes on disk, and for what is not wanted
    /// and not used.
    pub files: Vec<Option<OpenFile>>,
    /// Whether they were opened for writing too.
    pub is_writable: bool,
    /// Bytes that are mapped.
    pub mapped_bytes: u64,
    /// Files that are not wanted, and not there any more as they were: what was found in them is
    /// lost.
    pub gone: Vec<usize>,
    mapping_count: usize,
}

/// One open file.
#[derive(Debug)]
pub struct OpenFile {
    /// The file.
    pub fd: OwnedFd,
    /// Its mapping, if it is served from one.
    pub mapping: Option<Arc<Mapping>>,
    /// Who it was when it was opened.
    pub identity: Identity,
}

/// Opens all files of `content`, for serving or, with `fetch`, for writing too: then missing
/// files are made and their space is reserved. Where `known` names a file (in the order of the
/// layout), it has to be that one still, unchanged since it was verified. Two names of one file are
/// refused where pieces that are not in `have` would be written to either.
///
/// Files that are not wanted are neither made nor written to. One is opened if pieces of `in_files`
/// lie in it; if it is not what it was, [`Opened::gone`] names it. Behind the files comes the part
/// file (see [`super::parts`]), where not all files are wanted.
pub fn open(
    content: &Content,
    fetch: bool,
    mode: Mode,
    known: &[Option<Identity>],
    have: &Bitfield,
    in_files: &Bitfield,
) -> Result<Opened, Error> {
    let mut grown = Vec::new();
    let result = open_all(content, fetch, mode, known, (have, in_files), &mut grown);
    if result.is_err() {
        // What was reserved for a torrent that cannot be fetched is free again.
        for (file, len) in &grown {
            // A file that keeps its length costs space; the error that is told is the first one.
            let _ = file::truncate(file.as_fd(), *len);
        }
    }
    result
}

fn open_all(
    content: &Content,
    fetch: bool,
    mode: Mode,
    known: &[Option<Identity>],
    (have, in_files): (&Bitfield, &Bitfield),
    grown: &mut Vec<(OwnedFd, u64)>,
) -> Result<Opened, Error> {
    let save_path = &content.save_path;
    let failed = |action, path: &Path| {
        let path = path.to_path_buf();
        move |error: std::io::Error| Error::from_io(action, &path, &error)
    };
    if fetch {
        fs::create_dir_all(save_path).map_err(failed("create", save_path))?;
    }
    let root = file::open_root(save_path).map_err(failed("open", save_path))?;
    let mut opened = Opened { is_writable: fetch, ..Opened::default() };
    let mut by_inode = HashMap::new();
    for (index, entry) in content.metainfo.layout.files().enumerate() {
        if !entry.is_on_disk() || (entry.len == 0 && !fetch) {
            opened.files.push(None);
            continue;
        }
        let path = save_path.join(entry.path());
        if !content.wanted.has(index) {
            let is_used = entry.pieces(content.metainfo.geometry).any(|it| in_files.has(it));
            let known = known.get(index).copied().flatten();
            let kept = is_used.then(|| open_kept(&root, &entry, known)).flatten();
            opened.gone.extend((is_used && kept.is_none()).then_some(index));
            let kept = kept.map(|(fd, identity)| opened.serve(fd, identity, entry.len, mode));
            opened.files.push(kept);
            continue;
        }
        let access = if fetch { Access::ReadWrite { create: true } } else { Access::Read };
        let fd = file::open_beneath(root.as_fd(), &entry.path(), access)
            .map_err(failed("open", &path))?;
        let mut identity = file::identity(fd.as_fd()).map_err(failed("stat", &path))?;
        if let Some(Some(known)) = known.get(index) {
            same_file(entry.len.min(known.size), &path, &identity, known)?;
        }
        if fetch {
            let lacks = !is_within(&entry, content.metainfo.geometry, have);
            let one = by_inode.insert((identity.dev, identity.ino), (index, lacks));
            if let Some((other, _)) = one.filter(|(_, lacked)| lacks || *lacked) {
                let other = content.metainfo.layout.file(other).map(|it| it.path());
                return Err(one_file(&path, &other.unwrap_or_default()));
            }
            reserve(&fd, entry.len, &path)?;
            if identity.size < entry.len
                && let Ok(file) = fd.try_clone()
            {
                grown.push((file, identity.size));
            }
            identity = file::identity(fd.as_fd()).map_err(failed("stat", &path))?;
        }
        if identity.size < entry.len {
            let (path, expected) = (path.display().to_string(), entry.len);
            return Err(Error::Truncated { path, expected, found: identity.size });
        }
        if entry.len == 0 {
            opened.files.push(None);
            continue;
        }
        let file = opened.serve(fd, identity, entry.len, mode);
        opened.files.push(Some(file));
    }
    if !content.wanted.is_all() {
        let known = known.get(opened.files.len()).copied().flatten();
        let part_file = open_part_file(content, &root, fetch, known, (have, in_files))?;
        opened.files.push(part_file);
    }
    Ok(opened)
}

impl Opened {
    /// Makes an open file of `len` bytes ready for serving.
    fn serve(&mut self, fd: OwnedFd, identity: Identity, len: u64, mode: Mode) -> OpenFile {
        let map = len >= MAP_LEN_MIN
            && self.mapping_count < MAPPINGS_MAX
            && match mode {
                Mode::Map => true,
                Mode::Read => false,
                Mode::Auto => file::filesystem_kind(fd.as_fd()).is_ok_and(file::maps_well),
            };
        let mapping = map.then(|| Mapping::new(&fd, len).ok()).flatten().map(Arc::new);
        if mapping.is_some() {
            self.mapping_count += 1;
            self.mapped_bytes += len;
        }
        // Read-ahead is ours to decide, chunk by chunk; the kernel's would read what nobody asked.
        // It is advice: where it is refused, reading is only slower.
        let _ = file::advise_random(fd.as_fd());
        OpenFile { fd, mapping, identity }
    }
}

/// A file that is not wanted, if it is still the one in which pieces were found.
fn open_kept(
    root: &OwnedFd,
    entry: &File<'_>,
    known: Option<Identity>,
) -> Option<(OwnedFd, Identity)> {
    let fd = file::open_beneath(root.as_fd(), &entry.path(), Access::Read).ok()?;
    let identity = file::identity(fd.as_fd()).ok()?;
    let is_same = known.is_none_or(|known| known == identity);
    (is_same && identity.size >= entry.len).then_some((fd, identity))
}

/// The part file of a torrent of which not all is wanted, if it is needed.
fn open_part_file(
    content: &Content,
    root: &OwnedFd,
    fetch: bool,
    known: Option<Identity>,
    (have, in_files): (&Bitfield, &Bitfield),
) -> Result<Option<OpenFile>, Error> {
    let mut users = content.pieces_with_parts();
    let holds_some = users.any(|piece| have.has(piece) && !in_files.has(piece));
    // Also where no piece needs it yet: any of them may be lost, and be fetched again, while files
    // are open.
    let may_need = fetch && content.pieces_with_parts().next().is_some();
    if !holds_some && !may_need {
        return Ok(None);
    }
    let name = content.part_file();
    let path = content.save_path.join(&name);
    // One that held something is not made anew: what it held would be zeros.
    let access = if fetch { Access::ReadWrite { create: !holds_some } } else { Access::Read };
    let fd = file::open_beneath(root.as_fd(), &name, access)
        .map_err(|error| Error::from_io("open", &path, &error))?;
    let identity =
        file::identity(fd.as_fd()).map_err(|error| Error::from_io("stat", &path, &error))?;
    if let Some(known) = known.filter(|_| holds_some) {
        same_file(0, &path, &identity, &known)?;
    }
    // Sparse, and small where it is not: reading it costs less than its mapping.
    Ok(Some(OpenFile { fd, mapping: None, identity }))
}

/// Two names of a torrent that lead to one file.
fn one_file(path: &Path, other: &Path) -> Error {
    let reason = format!(
        "it is the same file as {other:?} here (names that differ only in case, or a hard link), \
         and both would be written to"
    );
    Error::Refused { path: path.display().to_string(), reason }
}

/// Makes sure that `len` bytes of the file have their place on the disk before any is written.
fn reserve(fd: &OwnedFd, len: u64, path: &Path) -> Result<(), Error> {
    match file::reserve(fd.as_fd(), len) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            let free = file::free_bytes(fd.as_fd()).unwrap_or(0);
            Err(Error::NoSpace { path: path.display().to_string(), needed: len, free })
        }
        Err(error) => Err(Error::from_io("reserve space for", path, &error)),
    }
}

/// Checks that the wanted files by the torrent's names, and the part file, are still those that were
/// opened. `identities` is what [`open`] found, in the order of the layout; with `only_names` their content may change, but
/// not their length, which was set when they were opened. Who they are now is given, in that order.
pub fn still_there(
    content: &Content,
    identities: &[Option<Identity>],
    only_names: bool,
) -> Result<Vec<Option<Identity>>, Error> {
    let root = file::open_root(&content.save_path)
        .map_err(|error| Error::from_io("open", &content.save_path, &error))?;
    let mut now = Vec::with_capacity(identities.len());
    for (index, known) in identities.iter().enumerate() {
        let entry = content.metainfo.layout.file(index);
        let is_watched = entry.is_none() || content.wanted.has(index);
        let Some(known) = known.filter(|_| is_watched) else {
            now.push(*known);
            continue;
        };
        let below = entry.map_or_else(|| content.part_file(), |entry| entry.path());
        let path = content.save_path.join(&below);
        let found = file::identity_at(root.as_fd(), &below)
            .map_err(|error| Error::from_io("stat", &path, &error))?;
        let mut known = known;
        if only_names {
            known.mtime_ns = found.mtime_ns;
            if entry.is_none() {
                // The part file grows as it is written.
                known.size = found.size;
            }
        }
        same_file(entry.map_or(0, |entry| entry.len), &path, &found, &known)?;
        now.push(Some(found));
    }
    Ok(now)
}

/// The open files that are not wanted and are not what they were any more, by their place in the
/// layout. `identities` is what [`open`] found.
pub fn changed_others(content: &Content, identities: &[Option<Identity>]) -> Vec<usize> {
    let Ok(root) = file::open_root(&content.save_path) else { return Vec::new() };
    let others = content.metainfo.layout.files().zip(identities);
    let others = others.filter(|(entry, _)| !content.wanted.has(entry.index));
    let has_changed = |(entry, known): (File<'_>, &Option<Identity>)| {
        let found = file::identity_at(root.as_fd(), &entry.path()).ok();
        known.is_some_and(|known| found != Some(known)).then_some(entry.index)
    };
    others.filter_map(has_changed).collect()
}

/// Checks, once the last piece is written, that every file is there by its name, the empty ones
/// too, and is still the one that was opened (device, inode and length). Who they are now is given
/// as by [`still_there`].
pub fn all_there(
    content: &Content,
    identities: &[Option<Identity>],
) -> Result<Vec<Option<Identity>>, Error> {
    let now = still_there(content, identities, true)?;
    for entry in empty_files(content) {
        let path = content.save_path.join(entry.path());
        file::open_root(&content.save_path)
            .and_then(|root| file::identity_at(root.as_fd(), &entry.path()))
            .map_err(|error| Error::from_io("stat", &path, &error))?;
    }
    Ok(now)
}

/// Whether `found` is the file that was `known`, of at least `len` bytes.
fn same_file(len: u64, path: &Path, found: &Identity, known: &Identity) -> Result<(), Error> {
    let path = || path.display().to_string();
    if found.size < len {
        return Err(Error::Truncated { path: path(), expected: len, found: found.size });
    }
    if found != known {
        return Err(Error::Replaced { path: path() });
    }
    Ok(())
}

/// The wanted files without bytes.
fn empty_files(content: &Content) -> impl Iterator<Item = File<'_>> {
    let files = content.metainfo.layout.files();
    files.filter(|it| it.is_on_disk() && it.len == 0 && content.wanted.has(it.index))
}

/// Makes the empty files of `content` that are missing: no piece of it would.
pub fn make_empty(content: &Content) -> Result<(), Error> {
    if empty_files(content).next().is_none() {
        return Ok(());
    }
    let root = file::create_root(&content.save_path)
        .map_err(|error| Error::from_io("create", &content.save_path, &error))?;
    for entry in empty_files(content) {
        file::open_beneath(root.as_fd(), &entry.path(), Access::ReadWrite { create: true })
            .map_err(|error| {
                Error::from_io("create", &content.save_path.join(entry.path()), &error)
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metainfo::{CreateOptions, Metainfo, create};

    fn content_of(files: &[(&str, usize)]) -> (tempfile::TempDir, Content) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        for (name, len) in files {
            fs::write(top.join(name), vec![7; *len]).unwrap();
        }
        let created = create(&top, &CreateOptions::default(), &|_, _| {}).unwrap();
        let metainfo = Metainfo::parse(&created.bytes).unwrap();
        let save_path = dir.path().to_owned();
        (dir, Content::new(metainfo, save_path))
    }

    fn none(content: &Content) -> Bitfield {
        Bitfield::none(content.metainfo.geometry.piece_count())
    }

    #[test]
    fn two_names_of_one_file_are_refused_where_either_would_be_written_to() {
        let (dir, content) = content_of(&[("a", 40_000), ("b", 40_000), ("c", 40_000)]);
        let top = dir.path().join("top");
        fs::remove_file(top.join("b")).unwrap();
        fs::hard_link(top.join("a"), top.join("b")).unwrap();
        let before = fs::read(top.join("a")).unwrap();
        let refused =
            open(&content, true, Mode::Read, &[], &none(&content), &none(&content)).unwrap_err();
        let sentence = refused.to_string();
        assert!(matches!(refused, Error::Refused { .. }), "{sentence}");
        assert!(sentence.contains("top/b") && sentence.contains("top/a"), "{sentence}");
        assert!(fs::read(top.join("b")).unwrap() == before, "it was written to");
        // Copies that are whole are served as they are, also while another file is fetched.
        let all = Bitfield::all(content.metainfo.geometry.piece_count());
        assert!(open(&content, true, Mode::Read, &[], &all, &none(&content)).is_ok());
        assert!(open(&content, false, Mode::Read, &[], &none(&content), &none(&content)).is_ok());
    }

    #[test]
    fn only_the_files_that_were_checked_are_opened() {
        let (dir, content) = content_of(&[("a", 1000), ("b", 2000)]);
        let opened =
            open(&content, false, Mode::Auto, &[], &none(&content), &none(&content)).unwrap();
        let known: Vec<_> =
            opened.files.iter().map(|file| file.as_ref().map(|file| file.identity)).collect();
        assert!(
            open(&content, false, Mode::Auto, &known, &none(&content), &none(&content)).is_ok()
        );
        assert!(still_there(&content, &known, false).is_ok());
        let path = dir.path().join("top/b");
        fs::rename(&path, dir.path().join("old")).unwrap();
        fs::write(&path, vec![8; 2000]).unwrap();
        for fetch in [false, true] {
            let refused =
                open(&content, fetch, Mode::Auto, &known, &none(&content), &none(&content))
                    .unwrap_err();
            assert!(matches!(refused, Error::Replaced { .. }), "{refused}");
        }
        for only_names in [false, true] {
            assert!(still_there(&content, &known, only_names).is_err());
        }
    }

    #[test]
    fn a_file_that_is_written_keeps_its_name_and_may_change_otherwise() {
        let (dir, content) = content_of(&[("a", 1000)]);
        let opened =
            open(&content, true, Mode::Auto, &[], &none(&content), &none(&content)).unwrap();
        let known: Vec<_> =
            opened.files.iter().map(|file| file.as_ref().map(|file| file.identity)).collect();
        let path = dir.path().join("top/a");
        // Not within the tick of the clock in which it was made.
        let later = fs::metadata(&path).unwrap().modified().unwrap() + Duration::from_secs(2);
        fs::write(&path, vec![9; 1000]).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(still_there(&content, &known, true).is_ok());
        assert!(still_there(&content, &known, false).is_err());
        fs::write(&path, vec![9; 1500]).unwrap();
        assert!(still_there(&content, &known, true).is_err());
    }

    #[test]
    fn before_a_torrent_is_complete_every_name_is_looked_at() {
        let (dir, content) = content_of(&[("a", 1000), ("empty", 0)]);
        let opened =
            open(&content, true, Mode::Auto, &[], &none(&content), &none(&content)).unwrap();
        let known: Vec<_> =
            opened.files.iter().map(|file| file.as_ref().map(|file| file.identity)).collect();
        assert!(all_there(&content, &known).is_ok());
        for name in ["empty", "a"] {
            let (path, aside) = (dir.path().join("top").join(name), dir.path().join("aside"));
            fs::rename(&path, &aside).unwrap();
            assert!(matches!(all_there(&content, &known), Err(Error::Missing { .. })), "{name}");
            fs::rename(&aside, &path).unwrap();
        }
        assert!(all_there(&content, &known).is_ok());
    }

    #[test]
    fn a_failed_reservation_gives_back_what_was_reserved_before() {
        let (dir, content) = content_of(&[("a", 5000), ("b", 10)]);
        let top = dir.path().join("top");
        fs::write(top.join("a"), b"begun").unwrap();
        fs::remove_file(top.join("b")).unwrap();
        fs::create_dir(top.join("b")).unwrap();
        assert!(open(&content, true, Mode::Auto, &[], &none(&content), &none(&content)).is_err());
        assert_eq!(fs::read(top.join("a")).unwrap(), b"begun");
    }

    #[test]
    fn empty_files_are_made_where_they_are_missing() {
        let (dir, content) = content_of(&[("a", 10), ("empty", 0)]);
        let path = dir.path().join("top/empty");
        fs::remove_file(&path).unwrap();
        assert_eq!(make_empty(&content), Ok(()));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
