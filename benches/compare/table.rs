//! What is printed: tables in Markdown, and whether the goals were reached.
//!
//! Names and spreads enter; text leaves. Invariant: a program that failed keeps its row, which says
//! what happened.

use std::fmt;
use std::io;

use crate::common::Spread;

/// One table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// What was measured.
    pub(crate) title: String,
    /// The heads of the columns.
    pub(crate) columns: Vec<&'static str>,
    /// As many cells as there are columns; fewer leave the last ones empty.
    pub(crate) rows: Vec<Vec<String>>,
    /// Sentences below the table.
    pub(crate) notes: Vec<String>,
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let empty = String::new();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(self.columns[column].chars().count())
        };
        writeln!(out, "## {}\n", self.title)?;
        for (at, head) in self.columns.iter().enumerate() {
            write!(out, "| {head:<width$} ", width = width(at))?;
        }
        writeln!(out, "|")?;
        for at in 0..self.columns.len() {
            write!(out, "|{:-<width$}", "", width = width(at) + 2)?;
        }
        writeln!(out, "|")?;
        for row in &self.rows {
            for at in 0..self.columns.len() {
                let cell = row.get(at).unwrap_or(&empty);
                write!(out, "| {cell:<width$} ", width = width(at))?;
            }
            writeln!(out, "|")?;
        }
        for note in &self.notes {
            writeln!(out, "\n{note}")?;
        }
        Ok(())
    }
}

/// What one peer reached, for ratios and goals: lower or higher is better, as the goal says.
#[derive(Clone, Debug)]
pub(crate) struct Score {
    /// The peer.
    pub(crate) name: &'static str,
    /// What the goal is about; `None` if the peer failed.
    pub(crate) value: Option<Spread>,
}

/// The row of a program that gave no figure; what it said goes below the table.
pub(crate) fn failed<T>(table: &mut Table, name: &str, results: &[io::Result<T>]) {
    table.rows.push(vec![name.to_owned(), "failed".to_owned()]);
    if let Some(error) = results.iter().find_map(|result| result.as_ref().err()) {
        table.notes.push(format!("{name}: {error}"));
    }
}

/// How the figure of `name` relates to that of seedring, as a cell.
pub(crate) fn ratio_to_ours(scores: &[Score], name: &str) -> String {
    match (median(scores, name), median(scores, "seedring")) {
        (Some(value), Some(ours)) if ours > 0.0 => format!("{:.2}", value / ours),
        _ => "–".to_owned(),
    }
}

/// Which side of its bound a ratio shall be on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// Less or the same.
    AtMost(f64),
    /// More or the same.
    AtLeast(f64),
}

/// Says whether our figure stands to that of `other` as it should.
pub(crate) fn judge(scores: &[Score], what: &str, other: &str, bound: Bound) -> String {
    let (Some(ours), Some(theirs)) = (median(scores, "seedring"), median(scores, other)) else {
        return format!("- {what}: seedring and {other} were not both measured.");
    };
    let ratio = ours / theirs;
    let (sign, limit, reached) = match bound {
        Bound::AtMost(limit) => ('≤', limit, ratio <= limit),
        Bound::AtLeast(limit) => ('≥', limit, ratio >= limit),
    };
    let verdict = if reached { "reached" } else { "missed" };
    format!("- {what}: {ratio:.2} × {other}'s (goal {sign} {limit}): {verdict}.")
}

fn median(scores: &[Score], name: &str) -> Option<f64> {
    scores.iter().find(|score| score.name == name)?.value.map(|value| value.median)
}
