//! The files of an `info` dictionary: lengths, kinds, and paths made safe.
//!
//! The `info` dictionary enters, a [`Layout`] and what was changed on the way leave. Invariant: the
//! path of every file that goes to disk is there once, and no file is another one's directory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

use super::layout::{FileKind, Layout};
use super::names::{Directory, Namespace, PATH_DEPTH_MAX, PATH_LEN_MAX, safe_name};
use super::urls::Warnings;
use super::{Error, FILE_LEN_MAX};
use crate::bencode::{Dict, Value, escape, excerpt};

/// How BitComet named its padding before BEP 47.
const PADDING_PREFIX: &[u8] = b"_____padding_file_";

/// Bytes of an original path that are kept for display.
const ORIGINAL_LEN_MAX: usize = 1024;

/// The files of a torrent, and their paths as the torrent had them where those were changed.
pub(super) struct Files {
    pub(super) layout: Layout,
    pub(super) originals: BTreeMap<usize, String>,
}

/// A file before its path is known to be its own.
struct Draft {
    /// Where its path below the torrent's name lies in the text of all paths.
    path: Range<usize>,
    len: u64,
    kind: FileKind,
    executable: bool,
}

/// Reads `length` or `files`; `name` is the torrent's name, safe.
pub(super) fn files(
    info: &Dict<'_>,
    name: &str,
    raw_name: &[u8],
    warnings: &mut Warnings,
) -> Result<Files, Error> {
    match (info.get(b"length"), info.get(b"files")) {
        (Some(_), Some(_)) => Err(Error::Ambiguous),
        (None, None) => Err(Error::Missing { key: "length" }),
        (Some(_), None) => single_file(info, name, raw_name),
        (None, Some(list)) => many_files(list, name, warnings),
    }
}

fn single_file(info: &Dict<'_>, name: &str, raw_name: &[u8]) -> Result<Files, Error> {
    let kind = kind(info, raw_name);
    let mut layout = Layout::new(name, true);
    let len = length(info, 0, kind)?;
    if !layout.push("", len, kind, has_attribute(info, b'x')) {
        return Err(Error::TotalLength { index: 0 });
    }
    layout.shrink();
    Ok(Files { layout, originals: BTreeMap::new() })
}

fn many_files(list: Value<'_>, name: &str, warnings: &mut Warnings) -> Result<Files, Error> {
    let entries = list.as_list().ok_or(Error::WrongKind { key: "files", expected: "a list" })?;
    let mut paths = String::new();
    let mut drafts = Vec::new();
    let mut originals = BTreeMap::new();
    for (index, entry) in entries.enumerate() {
        let kind = Error::WrongKind { key: "files", expected: "a list of dictionaries" };
        let entry = entry.as_dict().ok_or(kind)?;
        let (draft, original) = draft(&entry, index, name.len(), &mut paths)?;
        if draft.kind == FileKind::Symlink {
            let path = excerpt(paths[draft.path.clone()].as_bytes());
            warnings.push(format!("{path} is a symbolic link and will not be made"));
        }
        originals.extend(original.map(|original| (index, original)));
        drafts.push(draft);
    }
    if drafts.is_empty() {
        return Err(Error::NoFiles);
    }
    let mut files = Files { layout: Layout::new(name, false), originals };
    place(&paths, &drafts, &mut files)?;
    files.layout.shrink();
    Ok(files)
}

/// Reads one file, and appends its safe path to `paths`; also gives its original path if the safe
/// one is another.
fn draft(
    entry: &Dict<'_>,
    index: usize,
    name_len: usize,
    paths: &mut String,
) -> Result<(Draft, Option<String>), Error> {
    let elements = path_elements(entry, index)?;
    let kind = kind(entry, elements.last().copied().unwrap_or_default());
    let len = length(entry, index, kind)?;
    let start = paths.len();
    let mut changed = false;
    if elements.is_empty() {
        // BEP 47 gives padding a path, but some makers leave it out: nobody needs it.
        if kind != FileKind::Padding {
            return Err(Error::Path { index });
        }
        paths.push_str(&format!(".pad/{len}"));
    }
    for &element in &elements {
        let safe = safe_name(element)?;
        changed |= safe.as_bytes() != element;
        if paths.len() > start {
            paths.push('/');
        }
        paths.push_str(&safe);
    }
    let path = start..paths.len();
    check_path_len(index, name_len, path.len())?;
    let original = changed.then(|| original(&elements));
    Ok((Draft { path, len, kind, executable: has_attribute(entry, b'x') }, original))
}

/// The path on disk has the torrent's name and a slash before what is below it.
fn check_path_len(index: usize, name_len: usize, below_len: usize) -> Result<(), Error> {
    let len = name_len + 1 + below_len;
    if len > PATH_LEN_MAX { Err(Error::PathLength { index, len }) } else { Ok(()) }
}

/// `path.utf-8` if all of it is UTF-8, else `path`.
fn path_elements<'d>(entry: &Dict<'d>, index: usize) -> Result<Vec<&'d [u8]>, Error> {
    let read = |key: &[u8]| -> Option<Result<Vec<&'d [u8]>, Error>> {
        let list = entry.get(key)?.as_list()?;
        // The torrent's own name is one of the names that count.
        let depth = list.clone().count() + 1;
        if depth > PATH_DEPTH_MAX {
            return Some(Err(Error::PathDepth { index, depth }));
        }
        list.map(|element| element.as_bytes()).collect::<Option<_>>().map(Ok)
    };
    if let Some(elements) = read(b"path.utf-8") {
        let elements = elements?;
        let is_text = |element: &&[u8]| std::str::from_utf8(element).is_ok();
        if !elements.is_empty() && elements.iter().all(is_text) {
            return Ok(elements);
        }
    }
    match (read(b"path"), entry.get(b"path")) {
        (Some(elements), _) => elements,
        (None, Some(_)) => Err(Error::Path { index }),
        (None, None) => Ok(Vec::new()),
    }
}

fn original(elements: &[&[u8]]) -> String {
    let joined = elements.join(&b'/');
    let mut shown = escape(joined.get(..ORIGINAL_LEN_MAX).unwrap_or(&joined));
    if joined.len() > ORIGINAL_LEN_MAX {
        shown.push('…');
    }
    shown
}

fn length(entry: &Dict<'_>, index: usize, kind: FileKind) -> Result<u64, Error> {
    let value = match entry.get(b"length") {
        Some(value) => value.as_int().ok_or(Error::FileLengthKind { index })?,
        None if kind == FileKind::Symlink => 0,
        None => return Err(Error::FileLengthKind { index }),
    };
    let len = u64::try_from(value).ok().filter(|&len| len <= FILE_LEN_MAX);
    let len = len.ok_or(Error::FileLength { index, value })?;
    if kind == FileKind::Symlink && len > 0 {
        return Err(Error::SymlinkLength { index, len });
    }
    Ok(len)
}

fn kind(entry: &Dict<'_>, raw_name: &[u8]) -> FileKind {
    if has_attribute(entry, b'p') || raw_name.starts_with(PADDING_PREFIX) {
        FileKind::Padding
    } else if has_attribute(entry, b'l') {
        FileKind::Symlink
    } else {
        FileKind::Data
    }
}

/// `attr` is a string of letters, of which unknown ones are ignored (BEP 47).
fn has_attribute(entry: &Dict<'_>, letter: u8) -> bool {
    entry.get(b"attr").and_then(|attr| attr.as_bytes()).is_some_and(|attr| attr.contains(&letter))
}

/// Gives every file on disk a path of its own, and writes the layout.
fn place(paths: &str, drafts: &[Draft], files: &mut Files) -> Result<(), Error> {
    let mut namespace = Namespace::default();
    let split = |draft: &Draft| {
        let path = &paths[draft.path.clone()];
        path.rsplit_once('/').map_or((None, path), |(parent, name)| (Some(parent), name))
    };
    let on_disk = |draft: &Draft| draft.kind == FileKind::Data;
    let directories: Vec<Directory> = drafts
        .iter()
        .map(|draft| match on_disk(draft) {
            true => namespace.directory(split(draft).0.into_iter().flat_map(|it| it.split('/'))),
            false => Directory::default(),
        })
        .collect();
    for (index, (draft, &directory)) in drafts.iter().zip(&directories).enumerate() {
        let path = &paths[draft.path.clone()];
        let (parent, name) = split(draft);
        let renamed = match on_disk(draft) {
            true => namespace.file(directory, name)?,
            false => None,
        };
        let renamed = renamed.map(|name| match parent {
            Some(parent) => format!("{parent}/{name}"),
            None => name,
        });
        let safe = renamed.as_deref().unwrap_or(path);
        if renamed.is_some() {
            check_path_len(index, files.layout.name().len(), safe.len())?;
            files.originals.entry(index).or_insert_with(|| escape(path.as_bytes()));
        }
        if !files.layout.push(safe, draft.len, draft.kind, draft.executable) {
            return Err(Error::TotalLength { index });
        }
    }
    Ok(())
}
