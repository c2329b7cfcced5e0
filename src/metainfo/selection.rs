//! Which files of a torrent are wanted: all, or those that a magnet link asks for (BEP 53):
//! `so=0,2,4-7`.
//!
//! The text enters, a set of file indices leaves, and of it the pieces that have a part in those
//! files. Invariant: however wide the ranges of a text are, its set takes no more memory than
//! [`RANGES_MAX`] of them, and is walked by nobody but its ranges.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::layout::Layout;
use crate::bencode::excerpt;
use crate::units::{Bitfield, Geometry};

/// Most ranges that one selection may list.
pub const RANGES_MAX: usize = 1024;

/// Indices of files, as ranges that are in order and do not touch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileSelection(Vec<(u32, u32)>);

/// Why a text selects no files.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ParseSelectionError {
    /// An item that is no number and no range from a lower to a higher one.
    #[error("{0} is not a file index or a range of them such as 4-7")]
    Item(String),
    /// An empty text.
    #[error("it names no file")]
    Empty,
    /// There are more items than [`RANGES_MAX`].
    #[error("the selection of files lists more than {RANGES_MAX} ranges")]
    TooMany,
}

impl FileSelection {
    /// Whether the file with this index, counted from 0 as the torrent lists it, is asked for.
    pub fn contains(&self, index: usize) -> bool {
        let Ok(index) = u32::try_from(index) else { return false };
        let behind = self.0.partition_point(|&(first, _)| first <= index);
        let range = behind.checked_sub(1).and_then(|at| self.0.get(at));
        range.is_some_and(|&(_, last)| index <= last)
    }

    /// The first and last index of each range, in order.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }
}

/// Which files of a torrent are wanted; all of them, by default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted(Option<FileSelection>);

/// Nothing that a torrent has is asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("so={selection} selects no file of the torrent, which has {file_count} (from 0)")]
pub struct SelectsNothing {
    selection: String,
    file_count: usize,
}

impl Wanted {
    /// The files that `selection` names of a torrent with this layout, as far as it has them.
    ///
    /// # Errors
    /// If it has none of them.
    pub fn of(selection: Option<&FileSelection>, layout: &Layout) -> Result<Self, SelectsNothing> {
        let Some(selection) = selection else { return Ok(Self::default()) };
        let file_count = layout.file_count();
        let chosen = selection.clone().cut(file_count);
        if chosen.0.is_empty() {
            return Err(SelectsNothing { selection: selection.to_string(), file_count });
        }
        Ok(Self::from_flags((0..file_count).map(|index| chosen.contains(index))))
    }

    /// The files whose flag is set, in their order; behind the last flag none is.
    pub fn from_flags(flags: impl IntoIterator<Item = bool>) -> Self {
        let (mut ranges, mut is_all) = (Vec::<(u32, u32)>::new(), true);
        for (index, is_wanted) in (0u32..).zip(flags) {
            is_all &= is_wanted;
            match ranges.last_mut() {
                _ if !is_wanted => {}
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => ranges.push((index, index)),
            }
        }
        Self((!is_all).then_some(FileSelection(ranges)))
    }

    /// Whether every file is wanted.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the file with this index is wanted.
    pub fn has(&self, index: usize) -> bool {
        self.0.as_ref().is_none_or(|selection| selection.contains(index))
    }

    /// The text that [`Wanted::from_stored`] takes; `None` if all files are wanted.
    pub fn to_stored(&self) -> Option<String> {
        self.0.as_ref().map(ToString::to_string)
    }

    /// What [`Wanted::to_stored`] gave.
    ///
    /// # Errors
    /// If it is anything else.
    pub fn from_stored(text: Option<&str>) -> Result<Self, ParseSelectionError> {
        Ok(Self(match text {
            None => None,
            Some("") => Some(FileSelection(Vec::new())),
            Some(text) => Some(FileSelection(merged(text.split(','), usize::MAX)?)),
        }))
    }

    /// The selection, if it is not all.
    pub fn selection(&self) -> Option<&FileSelection> {
        self.0.as_ref()
    }

    /// The pieces that have a part in a wanted file; `None` if all files are wanted.
    pub fn pieces(&self, layout: &Layout, geometry: Geometry) -> Option<Bitfield> {
        let selection = self.0.as_ref()?;
        let mut pieces = Bitfield::none(geometry.piece_count());
        let wanted = layout.files().filter(|file| selection.contains(file.index));
        for file in wanted.filter(super::File::is_on_disk) {
            file.pieces(geometry).for_each(|piece| {
                pieces.set(piece);
            });
        }
        Some(pieces)
    }

    /// Bytes of the wanted files.
    pub fn len(&self, layout: &Layout) -> u64 {
        match &self.0 {
            None => layout.total_len(),
            Some(selection) => {
                let wanted = layout.files().filter(|file| selection.contains(file.index));
                wanted.map(|file| file.len).sum()
            }
        }
    }
}

impl FileSelection {
    /// Without the indices from `end` on.
    fn cut(mut self, end: usize) -> Self {
        let Some(last) = end.checked_sub(1) else { return Self(Vec::new()) };
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        self.0.retain(|&(first, _)| first <= last);
        if let Some((_, end)) = self.0.last_mut() {
            *end = last.min(*end);
        }
        self
    }

    /// Whether it names an index that a torrent with so many files does not have.
    pub fn goes_beyond(&self, file_count: usize) -> bool {
        self.0.last().is_some_and(|&(_, last)| last as usize >= file_count)
    }
}

impl FromStr for FileSelection {
    type Err = ParseSelectionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ParseSelectionError::Empty);
        }
        merged(text.split(','), RANGES_MAX).map(Self)
    }
}

/// The ranges that at most `count_max` items name, in order and without overlap.
fn merged<'t>(
    items: impl Iterator<Item = &'t str>,
    count_max: usize,
) -> Result<Vec<(u32, u32)>, ParseSelectionError> {
    let mut ranges = Vec::new();
    for item in items {
        if ranges.len() == count_max {
            return Err(ParseSelectionError::TooMany);
        }
        let wrong = || ParseSelectionError::Item(excerpt(item.as_bytes()));
        ranges.push(range(item).ok_or_else(wrong)?);
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    Ok(merged)
}

fn range(item: &str) -> Option<(u32, u32)> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// Digits only: the standard parser would take a sign.
fn number(text: &str) -> Option<u32> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for FileSelection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (first, last)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match first == last {
                true => write!(out, "{comma}{first}")?,
                false => write!(out, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::FileKind;
    use crate::units::PieceIndex;

    #[test]
    fn ranges_are_merged_and_searched() {
        let table = [
            ("0", "0"),
            ("0,2,4-7", "0,2,4-7"),
            ("6-7,4,5,0-0", "0,4-7"),
            ("5-9,2-6,1", "1-9"),
            ("0-4294967295", "0-4294967295"),
            ("4294967295,3-4294967294", "3-4294967295"),
        ];
        for (text, shown) in table {
            let selection: FileSelection = text.parse().unwrap();
            assert_eq!(selection.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(selection), "{text}");
        }
        let selection: FileSelection = "1,4-7".parse().unwrap();
        let chosen: Vec<usize> = (0..10).filter(|&index| selection.contains(index)).collect();
        assert_eq!(chosen, [1, 4, 5, 6, 7]);
        assert!(!selection.contains(usize::MAX));
    }

    /// Files of these lengths; the one at `padding` is padding.
    fn layout(lens: &[u64], padding: usize) -> Layout {
        let mut layout = Layout::new("t", false);
        for (index, &len) in lens.iter().enumerate() {
            let kind = if index == padding { FileKind::Padding } else { FileKind::Data };
            assert!(layout.push(&index.to_string(), len, kind, false));
        }
        layout
    }

    #[test]
    fn a_selection_is_cut_to_the_torrent() {
        let layout = layout(&[10, 0, 30], 9);
        let of = |text: &str| Wanted::of(Some(&text.parse().unwrap()), &layout);
        for (text, shown) in [("0", "0"), ("1-99", "1-2"), ("2,5", "2"), ("0,2-4294967295", "0,2")]
        {
            let wanted = of(text).unwrap();
            assert_eq!(wanted.selection().unwrap().to_string(), shown, "{text}");
        }
        assert!(of("0-2").unwrap().is_all(), "naming all is wanting all");
        assert!(of("0-99").unwrap().is_all());
        assert_eq!(Wanted::of(None, &layout), Ok(Wanted::default()));
        let refused = of("3,7-9").unwrap_err().to_string();
        let sentence = "so=3,7-9 selects no file of the torrent, which has 3 (from 0)";
        assert_eq!(refused, sentence);
        assert!(Wanted::from_stored(Some("0,x")).is_err());
        assert_eq!(of("0,2").unwrap().len(&layout), 40);
        assert_eq!(Wanted::default().len(&layout), 40);
        let selection: FileSelection = "1-2".parse().unwrap();
        assert!(selection.goes_beyond(2) && !selection.goes_beyond(3));
    }

    #[test]
    fn flags_and_ranges_are_one() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let flags: Vec<bool> = (0..rng.usize(1..40)).map(|_| rng.bool()).collect();
            let wanted = Wanted::from_flags(flags.iter().copied());
            assert_eq!(wanted.is_all(), flags.iter().all(|&flag| flag), "seed {seed}");
            let found: Vec<bool> = (0..flags.len()).map(|index| wanted.has(index)).collect();
            assert_eq!(found, flags, "seed {seed}");
            let stored = wanted.to_stored();
            assert_eq!(Wanted::from_stored(stored.as_deref()), Ok(wanted), "seed {seed}");
        }
    }

    #[test]
    fn the_pieces_of_a_selection_are_those_that_its_bytes_lie_in() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let lens: Vec<u64> =
                (0..rng.usize(1..12)).map(|_| rng.u64(..90_000) * rng.u64(..2)).collect();
            let padding = rng.usize(..12);
            let layout = layout(&lens, padding);
            let Some(geometry) = Geometry::new(layout.total_len(), 16_384 << rng.u32(..2)) else {
                continue;
            };
            let flags: Vec<bool> = lens.iter().map(|_| rng.bool()).collect();
            let Some(pieces) = Wanted::from_flags(flags.clone()).pieces(&layout, geometry) else {
                continue;
            };
            for piece in (0..geometry.piece_count()).map(PieceIndex) {
                let len = u64::from(geometry.piece_len(piece));
                let mut extents = layout.extents(geometry.piece_start(piece), len);
                let is_wanted = extents.any(|it| flags[it.file] && !it.padding);
                assert_eq!(pieces.has(piece), is_wanted, "seed {seed}, piece {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_selection_is_refused() {
        assert_eq!("".parse::<FileSelection>(), Err(ParseSelectionError::Empty));
        for text in [",", "0,", "a", "-1", "1-", "7-4", "4294967296", "+1", "1-2-3", " 1", "1 "] {
            let error = text.parse::<FileSelection>().unwrap_err();
            assert!(matches!(error, ParseSelectionError::Item(_)), "{text}");
        }
        let many = vec!["1"; RANGES_MAX + 1].join(",");
        assert_eq!(many.parse::<FileSelection>(), Err(ParseSelectionError::TooMany));
        assert_eq!(many[2..].parse::<FileSelection>().unwrap().ranges(), [(1, 1)]);
    }
}
