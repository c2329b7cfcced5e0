//! One watch folder: which files lie there and how far each of them is.
//!
//! Looks and verdicts enter, names that may be given out leave. Invariant: what is known of a file
//! holds only as long as its identity, size and times do ([`Stamp`]).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Found, Rules, Shape};

/// A `.torrent` may have this many bytes.
pub const TORRENT_LEN_MAX: u64 = 10 * 1024 * 1024;
/// A `.magnet` may have this many bytes.
pub const MAGNET_LEN_MAX: u64 = 64 * 1024;
/// Files of one folder that are known at a time; the others' turn comes when these have gone.
pub const FOLDER_LEN_MAX: usize = 10_000;
/// A folder that has changed is looked into for this long: a change within the same tick of the
/// file system's clock leaves no trace in its time stamp.
const WARM: Duration = Duration::from_secs(10);

const MAGNETS_REFUSED: &str = "Magnet links are not built yet, add the .torrent file instead.";

/// What must not change while a file is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// It may be looked at.
    Queued,
    /// It was not whole; it is looked at again when it changes, or has not changed for this long.
    Partial(Duration),
    /// It was given out and has no verdict yet.
    Given,
    /// It had a verdict but could not be renamed.
    Kept,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    stamp: Stamp,
    since: Instant,
    progress: Progress,
}

/// One watch folder.
pub(super) struct Folder {
    path: PathBuf,
    rules: Rules,
    stamp: Option<Stamp>,
    warm_since: Option<Instant>,
    touched: bool,
    overfull: bool,
    missing_told: bool,
    unreadable_told: bool,
    candidates: HashMap<OsString, Candidate>,
}

/// Whether a file of this name is ours to take: `*.torrent` and `*.magnet`, not hidden.
pub(super) fn is_candidate(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && (has_extension(path, "torrent") || is_magnet(path))
}

fn is_magnet(path: &Path) -> bool {
    has_extension(path, "magnet")
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

impl Folder {
    pub(super) fn new(path: PathBuf, rules: Rules) -> Self {
        Self {
            path,
            rules,
            stamp: None,
            warm_since: None,
            touched: false,
            overfull: false,
            missing_told: false,
            unreadable_told: false,
            candidates: HashMap::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that something happened in the folder.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Whether it should be looked at again soon.
    pub(super) fn is_busy(&self) -> bool {
        let settles_soon = Progress::Partial(self.rules.settle);
        let is_near = |candidate: &Candidate| candidate.progress == settles_soon;
        self.touched || self.overfull || self.candidates.values().any(is_near)
    }

    /// Whether a file may change or settle, which leaves no trace in the folder.
    fn is_waiting(&self) -> bool {
        let is_partial = |progress| matches!(progress, Progress::Partial(_));
        self.candidates.values().any(|candidate| is_partial(candidate.progress))
    }

    /// Looks whether anything changed, and if so into the folder; `queue` gets what may be taken.
    /// True if it is another directory than last time.
    pub(super) fn look(&mut self, now: Instant, queue: impl FnMut(PathBuf)) -> bool {
        let found = fs::metadata(&self.path).and_then(|found| match found.is_dir() {
            true => Ok(found),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        let stamp = match found {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) => {
                if !std::mem::replace(&mut self.missing_told, true) {
                    let folder = std::path::absolute(&self.path);
                    let folder = folder.as_deref().unwrap_or(&self.path);
                    tracing::warn!(
                        ?folder, %error,
                        "the watch folder is not there: its files are taken as soon as it is made or \
                         mounted"
                    );
                }
                self.stamp = None;
                return false;
            }
        };
        if std::mem::take(&mut self.missing_told) {
            tracing::info!(folder = ?self.path, "the watch folder is there now");
        }
        let fresh = self.stamp.is_none_or(|known| known.file != stamp.file);
        if self.stamp != Some(stamp) || self.touched {
            self.warm_since = Some(now);
        }
        let warm = self.warm_since.is_some_and(|since| now.duration_since(since) < WARM);
        if warm || self.is_busy() || self.is_waiting() {
            self.stamp = Some(stamp);
            self.touched = false;
            match self.look_into(now, queue) {
                Ok(()) => self.unreadable_told = false,
                Err(error) if !std::mem::replace(&mut self.unreadable_told, true) => {
                    tracing::warn!(folder = ?self.path, %error, "a watch folder cannot be read");
                }
                Err(_) => {}
            }
        }
        fresh
    }

    fn look_into(&mut self, now: Instant, mut queue: impl FnMut(PathBuf)) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.candidates);
        self.overfull = false;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_candidate(Path::new(&name)) {
                continue;
            }
            if self.candidates.len() >= FOLDER_LEN_MAX {
                self.overfull = true;
                break;
            }
            // Files may go while we look.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                continue;
            }
            let stamp = Stamp::of(&metadata);
            let mut candidate = match before.remove(&name) {
                Some(known) if known.progress == Progress::Given || known.stamp == stamp => known,
                Some(Candidate { progress: Progress::Queued, .. }) => {
                    // It is in the queue already and will be judged by what it is then.
                    Candidate { stamp, since: now, progress: Progress::Queued }
                }
                _ => {
                    queue(self.path.join(&name));
                    Candidate { stamp, since: now, progress: Progress::Queued }
                }
            };
            let unchanged = now.duration_since(candidate.since);
            if matches!(candidate.progress, Progress::Partial(wait) if unchanged >= wait) {
                queue(self.path.join(&name));
                candidate.progress = Progress::Queued;
            }
            self.candidates.insert(name, candidate);
        }
        // What waits for a verdict is remembered though it was not seen, in case it comes back.
        before.retain(|_, candidate| candidate.progress == Progress::Given);
        self.candidates.extend(before);
        Ok(())
    }

    /// Takes a queued file, unless it has gone or is worth waiting for.
    pub(super) fn take(&mut self, path: &Path, now: Instant) -> Option<Found> {
        let candidate = self.candidates.get_mut(path.file_name()?)?;
        if candidate.progress != Progress::Queued {
            return None;
        }
        let (stamp, contents) = match read(path) {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(file = ?path, %error, "a watched file cannot be read");
                candidate.progress = Progress::Kept;
                return None;
            }
        };
        if stamp != candidate.stamp {
            *candidate = Candidate { stamp, since: now, ..*candidate };
        }
        let shape = match &contents {
            Ok(_) if is_magnet(path) => Shape::Whole,
            Ok(bytes) => (self.rules.shape)(bytes),
            // It may still be growing; what is refused for what it is does not.
            Err(_) if stamp.len > TORRENT_LEN_MAX => Shape::Broken,
            Err(_) => Shape::Whole,
        };
        let wait = match shape {
            Shape::Whole => Duration::ZERO,
            Shape::Cut => self.rules.settle_cut,
            Shape::Broken => self.rules.settle,
        };
        if now.duration_since(candidate.since) < wait {
            candidate.progress = Progress::Partial(wait);
            return None;
        }
        candidate.progress = Progress::Given;
        let contents = contents.and_then(|bytes| {
            if is_magnet(path) { Err(MAGNETS_REFUSED.to_owned()) } else { Ok(bytes) }
        });
        Some(Found { path: path.to_owned(), contents })
    }

    /// Carries out a verdict: accepted, or rejected with a sentence.
    pub(super) fn settle(&mut self, path: &Path, sentence: Option<&str>) {
        let Some(name) = path.file_name() else { return };
        let Some(candidate) = self.candidates.get_mut(name) else { return };
        let same = fs::symlink_metadata(path).is_ok_and(|now| Stamp::of(&now) == candidate.stamp);
        if candidate.progress != Progress::Given || !same {
            tracing::info!(file = ?path, "a watched file changed, it is looked at again");
            self.candidates.remove(name);
            self.touched = true;
            return;
        }
        match put_aside(path, sentence) {
            Ok(_) => {
                self.candidates.remove(name);
            }
            Err(error) => {
                tracing::warn!(file = ?path, %error, "a watched file cannot be renamed");
                candidate.progress = Progress::Kept;
            }
        }
    }
}

/// What a file is and holds, or a sentence that says why it is refused.
fn read(path: &Path) -> io::Result<(Stamp, Result<Vec<u8>, String>)> {
    let metadata = fs::symlink_metadata(path)?;
    let refuse = |sentence: &str| Ok((Stamp::of(&metadata), Err(sentence.to_owned())));
    if metadata.is_symlink() {
        return refuse("it is a symbolic link: only regular files are taken");
    }
    if !metadata.is_file() {
        return refuse("it is not a regular file");
    }
    // The name may have changed hands since: neither links are followed nor pipes waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    let refuse = |sentence: String| Ok((Stamp::of(&metadata), Err(sentence)));
    if !metadata.is_file() {
        return refuse("it is not a regular file".to_owned());
    }
    let len_max = if is_magnet(path) { MAGNET_LEN_MAX } else { TORRENT_LEN_MAX };
    let mut bytes = Vec::new();
    file.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        return refuse(format!("it is larger than {len_max} bytes"));
    }
    Ok((Stamp::of(&metadata), Ok(bytes)))
}

/// Renames to the first free of `NAME.added`, `NAME.added.1`, … (or `NAME.rejected` and so on).
fn put_aside(path: &Path, sentence: Option<&str>) -> io::Result<PathBuf> {
    let suffix = if sentence.is_some() { ".rejected" } else { ".added" };
    let base = with_suffix(path.as_os_str(), suffix);
    let mut target = PathBuf::from(&base);
    let mut number = 0_u32;
    let taken = |path: &Path| path.symlink_metadata().is_ok();
    while taken(&target) || taken(Path::new(&with_suffix(target.as_os_str(), ".txt"))) {
        number += 1;
        target = with_suffix(&base, &format!(".{number}")).into();
    }
    fs::rename(path, &target)?;
    if let Some(sentence) = sentence {
        let note = with_suffix(target.as_os_str(), ".txt");
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&note)
            .and_then(|mut file| writeln!(file, "{sentence}"));
        if let Err(error) = written {
            tracing::warn!(file = ?note, %error, sentence, "a reason could not be written");
        }
    }
    Ok(target)
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}
