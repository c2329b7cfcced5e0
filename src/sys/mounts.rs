//! Which file system a path is on, told without touching it.
//!
//! Paths enter, devices leave; the kernel's table of mounts is all that is read, so a mount that
//! does not answer costs no wait. Links in a path are not followed: what a link leads to counts as
//! the file system that the link is on.

use std::path::{Path, PathBuf};

/// A file system, or where nothing is known of that, the path itself.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Device {
    /// `major:minor`, as in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    Number(String),
    /// No mount is known that holds it.
    Path(PathBuf),
}

/// The mounts that there were at one time: where, and of which device.
#[derive(Clone, Default, Debug)]
pub struct Table(Vec<(PathBuf, String)>);

impl Table {
    /// The mounts of now; none, where the system does not tell them.
    pub fn read() -> Self {
        let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
        let mounts = mounts.map(|mounts| mounts.0).unwrap_or_default();
        let unescaped = |path: PathBuf| path.to_str().map_or(path.clone(), unescaped);
        mounts.into_iter().map(|mount| (unescaped(mount.mount_point), mount.majmin)).collect()
    }

    /// The device of the mount that holds the absolute `path`: the deepest, and of several in one
    /// place the last.
    pub fn device_of(&self, path: &Path) -> Device {
        let holding = self.0.iter().filter(|(point, _)| path.starts_with(point));
        let deepest = holding.max_by_key(|(point, _)| point.components().count());
        deepest.map_or_else(|| Device::Path(path.to_owned()), |(_, id)| Device::Number(id.clone()))
    }
}

/// A path without the kernel's escapes of space, tab, newline and backslash (`\\040`), which the
/// library leaves in.
fn unescaped(path: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    // The backslash comes last: what it begins is no escape.
    escapes.iter().fold(path.to_owned(), |path, (from, to)| path.replace(from, to)).into()
}

impl FromIterator<(PathBuf, String)> for Table {
    fn from_iter<I: IntoIterator<Item = (PathBuf, String)>>(mounts: I) -> Self {
        Self(mounts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_holds_a_path() {
        let table = [("/", "8:1"), ("/mnt/a", "0:40"), ("/mnt/a/b", "0:41"), ("/mnt/a", "0:42")];
        let table: Table =
            table.map(|(point, id)| (point.into(), id.to_owned())).into_iter().collect();
        let device = |path: &str| match table.device_of(Path::new(path)) {
            Device::Number(id) => id,
            Device::Path(path) => panic!("{path:?} is on no mount"),
        };
        assert_eq!(device("/srv/x"), "8:1");
        assert_eq!(device("/mnt/a"), "0:42", "what is mounted over another hides it");
        assert_eq!(device("/mnt/a/c"), "0:42");
        assert_eq!(device("/mnt/a/b/c"), "0:41");
        assert_eq!(device("/mnt/ab"), "8:1");
    }

    #[test]
    fn escapes_of_the_table_are_undone() {
        let cases = [("/a\\040b\\011\\012", "/a b\t\n"), ("/a\\134040", "/a\\040"), ("/ä", "/ä")];
        for (written, path) in cases {
            assert_eq!(unescaped(written), Path::new(path));
        }
    }

    #[test]
    fn the_systems_own_table_is_read() {
        let table = Table::read();
        assert!(matches!(table.device_of(Path::new("/")), Device::Number(_)));
        assert_ne!(table.device_of(Path::new("/proc/self")), table.device_of(Path::new("/")));
        assert_eq!(Table::default().device_of(Path::new("/a")), Device::Path("/a".into()));
    }
}
