//! Which files of a torrent a magnet link asks for (BEP 53): `so=0,2,4-7`.
//!
//! The text enters, a set of file indices leaves. Invariant: however wide its ranges are, a set
//! takes no more memory than [`RANGES_MAX`] of them, and is walked by nobody but its ranges.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::bencode::excerpt;

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

impl FromStr for FileSelection {
    type Err = ParseSelectionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ranges = Vec::new();
        for item in text.split(',') {
            if ranges.len() == RANGES_MAX {
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
        Ok(Self(merged))
    }
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

    #[test]
    fn what_is_no_selection_is_refused() {
        for text in ["", ",", "0,", "a", "-1", "1-", "7-4", "4294967296", "+1", "1-2-3", " 1", "1 "]
        {
            let error = text.parse::<FileSelection>().unwrap_err();
            assert!(matches!(error, ParseSelectionError::Item(_)), "{text}");
        }
        let many = vec!["1"; RANGES_MAX + 1].join(",");
        assert_eq!(many.parse::<FileSelection>(), Err(ParseSelectionError::TooMany));
        assert_eq!(many[2..].parse::<FileSelection>().unwrap().ranges(), [(1, 1)]);
    }
}
