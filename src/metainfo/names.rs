//! Names of files: which are refused, which are made safe, and which are given a number.
//!
//! Raw names of a torrent enter, names that are safe on any Linux file system leave. Invariant: the
//! same torrent gives the same names every time, on every machine, and no name that leaves here
//! is empty, `.` or `..`, holds a `/` or NUL, or is longer than [`NAME_LEN_MAX`].
//!
//! A name that leads elsewhere refuses the torrent, because an honest maker never writes one. What
//! only misleads the eye (control characters, marks that turn the direction of text, characters
//! without width) becomes `_`. Backslashes and names that differ only in case stay as they are:
//! they are ordinary on Linux, and to change them would part a torrent from its data.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::Error;
use crate::bencode::excerpt;

/// Longest name in bytes, as Linux file systems have it (`NAME_MAX`).
pub const NAME_LEN_MAX: usize = 255;

/// Longest path in bytes (`PATH_MAX` without its NUL).
pub const PATH_LEN_MAX: usize = 4095;

/// Most names in a path, the torrent's own included.
pub const PATH_DEPTH_MAX: usize = 100;

/// Most files of a torrent that get a number because their path is taken.
pub const COLLISIONS_MAX: u32 = 500;

/// Longest extension in bytes, dot included, that survives when a name is shortened.
const EXTENSION_LEN_MAX: usize = 32;

/// One name of a path, as it may stand on disk; borrowed if it was safe as it was.
pub(super) fn safe_name(raw: &[u8]) -> Result<Cow<'_, str>, Error> {
    let refuse = |reason| Err(Error::Name { name: excerpt(raw), reason });
    match raw {
        b"" => return refuse("it is empty"),
        b"." | b".." => return refuse("it names a directory, not an entry of one"),
        _ if raw.contains(&b'/') => return refuse("it holds a slash"),
        _ if raw.contains(&0) => return refuse("it holds a NUL byte"),
        _ => {}
    }
    let mut name = String::from_utf8_lossy(raw);
    if name.contains(is_misleading) {
        name = Cow::Owned(name.replace(is_misleading, "_"));
    }
    if name.len() > NAME_LEN_MAX {
        name = Cow::Owned(with_suffix(&name, ""));
    }
    Ok(name)
}

/// Characters that a reader does not see, or that change how the text beside them is seen.
fn is_misleading(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `name` with `suffix` before its extension, the part before that cut to fit.
fn with_suffix(name: &str, suffix: &str) -> String {
    let dot = name.rfind('.').filter(|&dot| dot > 0 && name.len() - dot <= EXTENSION_LEN_MAX);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let room = NAME_LEN_MAX - extension.len() - suffix.len();
    let mut cut = stem.len().min(room);
    while !stem.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{suffix}{extension}", &stem[..cut])
}

/// Hands out the paths of one torrent, so that each is there once and no file is a directory too.
///
/// Directories come first and keep their names; a file whose path is taken gets `.1`, `.2` and so
/// on before its extension. Paths are a tree of numbered directories, so that the cost is one
/// look-up for each name, however deep it lies.
#[derive(Default)]
pub(super) struct Namespace<'n> {
    directories: HashMap<(u32, &'n str), u32>,
    files: HashSet<(u32, Cow<'n, str>)>,
    collisions: u32,
}

/// A directory of a [`Namespace`].
#[derive(Clone, Copy, Default)]
pub(super) struct Directory(u32);

impl<'n> Namespace<'n> {
    /// The directory at the end of `names`, made if need be. All of them before the first file.
    pub(super) fn directory(&mut self, names: impl Iterator<Item = &'n str>) -> Directory {
        debug_assert!(self.files.is_empty(), "directories come first");
        let root = Directory::default();
        names.fold(root, |parent, name| {
            let new = u32::try_from(self.directories.len() + 1).unwrap_or(u32::MAX);
            Directory(*self.directories.entry((parent.0, name)).or_insert(new))
        })
    }

    /// Takes `name` in `parent`: `None` if it was free, else the name to use instead.
    pub(super) fn file(
        &mut self,
        parent: Directory,
        name: &'n str,
    ) -> Result<Option<String>, Error> {
        if self.take(parent, Cow::Borrowed(name)) {
            return Ok(None);
        }
        if self.collisions >= COLLISIONS_MAX {
            return Err(Error::Collisions);
        }
        self.collisions += 1;
        for number in 1..=COLLISIONS_MAX {
            let numbered = with_suffix(name, &format!(".{number}"));
            if self.take(parent, Cow::Owned(numbered.clone())) {
                return Ok(Some(numbered));
            }
        }
        Err(Error::Collisions)
    }

    fn take(&mut self, parent: Directory, name: Cow<'n, str>) -> bool {
        !self.directories.contains_key(&(parent.0, name.as_ref()))
            && self.files.insert((parent.0, name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_kept_changed_or_refused() {
        let long = "x".repeat(300);
        let table: &[(&[u8], Option<&str>)] = &[
            (b"plain.txt", Some("plain.txt")),
            ("Übergröße 日本語.mkv".as_bytes(), Some("Übergröße 日本語.mkv")),
            (b"...", Some("...")),
            (b"..a", Some("..a")),
            (b" ", Some(" ")),
            (b"a\\b", Some("a\\b")),
            (b"C:\\x", Some("C:\\x")),
            (b"a\x1b[2Jb", Some("a_[2Jb")),
            (b"a\r\nb\x7f", Some("a__b_")),
            ("a\u{85}b".as_bytes(), Some("a_b")),
            ("exe.\u{202e}gpj".as_bytes(), Some("exe._gpj")),
            ("a\u{200b}\u{feff}b".as_bytes(), Some("a__b")),
            (b"\xff\xfe.txt", Some("\u{fffd}\u{fffd}.txt")),
            (b"", None),
            (b".", None),
            (b"..", None),
            (b"/", None),
            (b"/etc/passwd", None),
            (b"../x", None),
            (b"a/b", None),
            (b"a\0b", None),
            (b"\0", None),
            (long.as_bytes(), Some(&long[..NAME_LEN_MAX])),
        ];
        for (raw, expected) in table {
            let name = safe_name(raw);
            assert_eq!(name.as_deref().ok(), *expected, "{}", excerpt(raw));
        }
    }

    #[test]
    fn a_shortened_name_keeps_its_extension() {
        let name = format!("{}.tar.gz", "日".repeat(200));
        let short = safe_name(name.as_bytes()).unwrap();
        assert!(short.len() <= NAME_LEN_MAX && short.len() > NAME_LEN_MAX - 4, "{}", short.len());
        assert!(short.ends_with("日.gz") || short.ends_with(".tar.gz"), "{short}");
        let hidden = format!(".{}", "h".repeat(400));
        assert_eq!(safe_name(hidden.as_bytes()).unwrap().len(), NAME_LEN_MAX);
    }

    #[test]
    fn taken_paths_get_numbers_and_directories_keep_their_names() {
        let mut space = Namespace::default();
        let top = space.directory(["top"].into_iter());
        let inner = space.directory(["top", "a"].into_iter());
        assert_eq!(space.directory(["top", "a"].into_iter()).0, inner.0);
        assert_eq!(space.file(top, "b.txt"), Ok(None));
        assert_eq!(space.file(top, "b.txt"), Ok(Some("b.1.txt".to_owned())));
        assert_eq!(space.file(top, "b.1.txt"), Ok(Some("b.1.1.txt".to_owned())));
        assert_eq!(space.file(inner, "b.txt"), Ok(None));
        assert_eq!(space.file(top, "a"), Ok(Some("a.1".to_owned())));
    }

    #[test]
    fn numbers_end_at_their_limit() {
        let mut space = Namespace::default();
        let top = space.directory(["top"].into_iter());
        for _ in 0..=COLLISIONS_MAX {
            space.file(top, "x").unwrap();
        }
        assert_eq!(space.file(top, "x"), Err(Error::Collisions));
    }

    proptest! {
        #[test]
        fn a_safe_name_is_safe(raw: Vec<u8>, repeat in 1usize..40) {
            let raw = raw.repeat(repeat);
            if let Ok(name) = safe_name(&raw) {
                prop_assert!(!name.is_empty() && name != "." && name != "..");
                prop_assert!(name.len() <= NAME_LEN_MAX);
                prop_assert!(!name.contains(|c| c == '/' || c == '\0' || is_misleading(c)));
                let again = safe_name(name.as_bytes()).unwrap();
                prop_assert_eq!(again.as_ref(), name.as_ref());
            }
        }
    }
}
