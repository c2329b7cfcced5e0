//! The folders of the settings, before anything is started: they are there, or the start fails.
//!
//! Paths enter; a downloads folder that exists leaves, or one sentence about what is wrong with
//! which setting. Invariant: nothing is made but the downloads folder, and what may be mounted or
//! made later (a watch folder that is missing, a downloads folder that held data) is waited for.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::Paths;

/// Why the server does not start in these folders.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Torrents could not be kept there.
    #[error(
        "cannot use the downloads folder {}: {error}; \
         name another with --downloads DIR (paths.downloads)",
        path.display()
    )]
    Downloads {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// Nothing could be remembered there.
    #[error(
        "the state directory {} is not a folder: name another with --state DIR (paths.state)",
        .0.display()
    )]
    State(PathBuf),
    /// It would never hold a file.
    #[error(
        "the watch folder {} is not a folder: name another with --watch DIR (paths.watch)",
        .0.display()
    )]
    Watch(PathBuf),
}

/// Looks at the folders that are there, and makes nothing. Blocks on the disk.
///
/// # Errors
/// The first folder that cannot be what it should be.
pub(super) fn look(paths: &Paths) -> Result<(), Error> {
    let downloads = &paths.downloads;
    match std::fs::read_dir(downloads) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::Downloads { path: downloads.clone(), error });
        }
        _ => {}
    }
    // A file on the way to it stands in its place as well.
    let is_other = |path: &&PathBuf| match std::fs::metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(error) => error.kind() == io::ErrorKind::NotADirectory,
    };
    if is_other(&&paths.state) {
        return Err(Error::State(paths.state.clone()));
    }
    match paths.watch.iter().find(is_other) {
        Some(path) => Err(Error::Watch(path.clone())),
        None => Ok(()),
    }
}

/// Makes the downloads folder if there is none, unless it held data in an earlier run: then it may
/// lie on a disk that is not mounted. Blocks on the disk.
///
/// # Errors
/// Torrents could not be kept in it.
pub(super) fn prepare(downloads: &Path, held_data: bool) -> Result<(), Error> {
    let unusable = |error| Error::Downloads { path: downloads.to_owned(), error };
    if held_data && matches!(downloads.try_exists(), Ok(false)) {
        tracing::error!(
            folder = %downloads.display(),
            "the downloads folder is gone: is the disk mounted?"
        );
        return Ok(());
    }
    std::fs::create_dir_all(downloads).map_err(unusable)?;
    std::fs::read_dir(downloads).map_err(unusable)?;
    // Data that is complete is seeded from a folder that nobody may write to.
    if let Some(error) = write_refusal(downloads) {
        tracing::warn!(
            folder = %downloads.display(), %error,
            "nothing can be written to the downloads folder: what is there can only be seeded"
        );
    }
    Ok(())
}

/// Why nobody like us may write to a folder; `None` if we may, or if it does not show.
fn write_refusal(folder: &Path) -> Option<io::Error> {
    // A file without a name leaves no trace; where there is no such thing nothing is known.
    let nameless = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(folder);
    let refusals = [libc::EROFS, libc::EACCES, libc::EPERM];
    let error = nameless.err()?;
    error.raw_os_error().is_some_and(|code| refusals.contains(&code)).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_waited_for_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let (fresh, missing) = (dir.path().join("a/b"), dir.path().join("missing"));
        let mut paths = Paths { downloads: fresh.clone(), ..Paths::default() };
        paths.watch = vec![missing.clone(), dir.path().to_owned()];
        look(&paths).unwrap();
        prepare(&fresh, true).unwrap();
        assert!(!fresh.exists(), "what had data is waited for");
        prepare(&fresh, false).unwrap();
        assert!(fresh.is_dir() && !missing.exists());
        assert!(write_refusal(&fresh).is_none());
        paths.watch.push(file.clone());
        let refused = look(&paths).unwrap_err().to_string();
        assert!(refused.contains(&*file.to_string_lossy()), "{refused}");
        assert!(refused.contains("--watch"), "{refused}");
        for state in [file.clone(), file.join("below")] {
            paths = Paths { state: state.clone(), ..Paths::default() };
            let refused = look(&paths).unwrap_err().to_string();
            assert!(refused.contains(&*state.to_string_lossy()), "{refused}");
            assert!(refused.contains("--state"), "{refused}");
        }
        for downloads in [file.clone(), file.join("below")] {
            paths = Paths { downloads: downloads.clone(), ..Paths::default() };
            let refused = look(&paths).unwrap_err().to_string();
            assert!(refused.contains(&*downloads.to_string_lossy()), "{refused}");
            assert!(refused.contains("--downloads"), "{refused}");
        }
    }
}
