//! From the bytes of a `.torrent` file to a [`Metainfo`].
//!
//! Untrusted bytes enter, a description that holds nothing unchecked leaves. Invariant: no panic
//! and no work beyond the length of the input, whatever the bytes are.
#![forbid(unsafe_code)]

use std::ops::Range;

use sha1::{Digest, Sha1};

use super::files::{Files, files};
use super::names::safe_name;
use super::urls::{Warnings, nodes, trackers, web_seeds};
use super::{Error, Metainfo, PIECE_COUNT_MAX, PIECE_LEN_MAX, TEXT_LEN_MAX};
use crate::bencode::{Dict, Document, Limits, Value, escape};
use crate::units::{Geometry, InfoHash};

pub(super) fn parse(bytes: &[u8]) -> Result<Metainfo, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let document = Document::parse(bytes, &Limits::TORRENT)?;
    let root = document.root().as_dict().ok_or(Error::NotADictionary)?;
    let info_value = root.get(b"info").ok_or(Error::Missing { key: "info" })?;
    let info =
        info_value.as_dict().ok_or(Error::WrongKind { key: "info", expected: "a dictionary" })?;
    let pieces = pieces(&info)?;
    let mut warnings = Warnings::default();
    let raw_name = raw_name(&info)?;
    let name = safe_name(raw_name)?;
    let Files { layout, originals } = files(&info, &name, raw_name, &mut warnings)?;
    let geometry = geometry(&info, layout.total_len(), pieces.len())?;
    if info.get(b"meta version").is_some() {
        warnings.push("of this hybrid torrent only the v1 part is used".to_owned());
    }
    Ok(Metainfo {
        info_hash: InfoHash(Sha1::digest(info.raw()).into()),
        original_name: (name.as_bytes() != raw_name).then(|| shown_name(raw_name)),
        name: name.into_owned(),
        geometry,
        layout,
        trackers: trackers(&root, &mut warnings),
        web_seeds: web_seeds(&root, &mut warnings),
        nodes: nodes(&root, &mut warnings),
        private: integer(&info, b"private").is_some_and(|private| private != 0),
        comment: text(&root, [b"comment.utf-8", b"comment"]),
        created_by: text(&root, [b"created by.utf-8", b"created by"]),
        creation_date: integer(&root, b"creation date").filter(|&seconds| seconds >= 0),
        warnings: warnings.into_vec(),
        originals,
        raw: bytes.into(),
        info: span(info_value.offset(), info.raw()),
        pieces: span_of_bytes(info.get(b"pieces")),
    })
}

fn span(start: usize, bytes: &[u8]) -> Range<usize> {
    start..start + bytes.len()
}

/// Where the content of a string lies in the input.
fn span_of_bytes(value: Option<Value<'_>>) -> Range<usize> {
    let content = value.and_then(|value| Some((value, value.as_bytes()?)));
    content.map_or(0..0, |(value, bytes)| {
        span(value.offset() + value.raw().len() - bytes.len(), bytes)
    })
}

/// The hashes of the pieces, or why there are none.
fn pieces<'d>(info: &Dict<'d>) -> Result<&'d [u8], Error> {
    let is_v2 = info.get(b"meta version").is_some() || info.get(b"file tree").is_some();
    let pieces = match info.get(b"pieces") {
        Some(pieces) => pieces,
        None if is_v2 => return Err(Error::V2Only),
        None => return Err(Error::Missing { key: "pieces" }),
    };
    let pieces =
        pieces.as_bytes().ok_or(Error::WrongKind { key: "pieces", expected: "a string" })?;
    match pieces.len().is_multiple_of(20) {
        true => Ok(pieces),
        false => Err(Error::PiecesLength { len: pieces.len() }),
    }
}

/// `name.utf-8` if it is UTF-8, else `name`.
fn raw_name<'d>(info: &Dict<'d>) -> Result<&'d [u8], Error> {
    if let Some(name) = info.get(b"name.utf-8").and_then(|name| name.as_str())
        && !name.is_empty()
    {
        return Ok(name.as_bytes());
    }
    let name = info.get(b"name").ok_or(Error::Missing { key: "name" })?;
    name.as_bytes().ok_or(Error::WrongKind { key: "name", expected: "a string" })
}

fn shown_name(raw: &[u8]) -> String {
    escape(raw.get(..TEXT_LEN_MAX).unwrap_or(raw))
}

/// Checks the length and number of pieces in 64 bits, before anything narrower holds them.
fn geometry(info: &Dict<'_>, total_len: u64, hashes_len: usize) -> Result<Geometry, Error> {
    let value = info.get(b"piece length").ok_or(Error::Missing { key: "piece length" })?;
    let value =
        value.as_int().ok_or(Error::WrongKind { key: "piece length", expected: "an integer" })?;
    let piece_len = u32::try_from(value).ok().filter(|len| (1..=PIECE_LEN_MAX).contains(len));
    let piece_len = piece_len.ok_or(Error::PieceLength { value })?;
    let count = total_len.div_ceil(u64::from(piece_len));
    if count > u64::from(PIECE_COUNT_MAX) {
        return Err(Error::TooManyPieces { count });
    }
    let found = hashes_len / 20;
    if usize::try_from(count) != Ok(found) {
        return Err(Error::PieceCount { expected: count, found });
    }
    Geometry::new(total_len, piece_len).ok_or(Error::TooManyPieces { count })
}

fn integer(dict: &Dict<'_>, key: &[u8]) -> Option<i64> {
    dict.get(key).and_then(|value| value.as_int())
}

/// The first of `keys` that is a string, fit for display.
fn text<const N: usize>(dict: &Dict<'_>, keys: [&[u8]; N]) -> Option<String> {
    let raw = keys.iter().find_map(|key| dict.get(key)?.as_bytes())?;
    let raw = raw.get(..TEXT_LEN_MAX).unwrap_or(raw);
    let shown = |character: &char| !character.is_control() || *character == '\n';
    Some(String::from_utf8_lossy(raw).chars().filter(shown).collect())
}
