//! Runs that are kept: a file in `benches/runs/` that says what was measured, where, and how.
//!
//! Tables enter, a file leaves. Invariant: nothing in it names a host, a user or a path.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use seedring::sys::process;

use crate::process::first_line;
use crate::table::Table;

/// The folder of the runs.
const RUNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/runs");

/// What stands above the tables.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The arguments of this run.
    pub(crate) arguments: Vec<String>,
    /// Who took part, and what they say of their versions.
    pub(crate) versions: Vec<(&'static str, String)>,
    /// Who is not installed.
    pub(crate) missing: Vec<&'static str>,
    /// What was tried and dropped before this run, one sentence each.
    pub(crate) dropped: Vec<String>,
}

impl Setting {
    /// The head of the report: machine, kernel, commit, command, programs.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: &str| {
            let _ = writeln!(text, "- {what}: {value}");
        };
        line("Date", &date());
        line("Kernel", &kernel());
        line("Commit", &commit());
        line("Machine", &machine());
        line("Load average before it", &load_average());
        line("Command", &format!("`cargo bench --bench compare -- {}`", self.arguments.join(" ")));
        for (name, version) in &self.versions {
            line(name, version);
        }
        for name in &self.missing {
            line(name, "not installed, left out");
        }
        text
    }

    /// Writes the run's file and returns its path.
    pub(crate) fn keep(&self, tables: &[Table]) -> io::Result<PathBuf> {
        let name = format!("{}-{}-{}", date(), kernel(), commit());
        let mut text = format!("# {name}\n\n{}", self.describe());
        for table in tables {
            let _ = write!(text, "\n{table}");
        }
        text.push_str("\n## Tried and dropped\n\n");
        if self.dropped.is_empty() {
            text.push_str("Nothing since the run before.\n");
        }
        for sentence in &self.dropped {
            let _ = writeln!(text, "- {sentence}");
        }
        fs::create_dir_all(RUNS)?;
        let path = (1..100u32)
            .map(|number| if number == 1 { String::new() } else { format!("-{number}") })
            .map(|suffix| Path::new(RUNS).join(format!("{name}{suffix}.md")))
            .find(|path| !path.exists())
            .ok_or_else(|| io::Error::other("there are too many runs of this commit today"))?;
        fs::write(&path, text)?;
        Ok(path)
    }
}

fn date() -> String {
    first_line("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(|| "undated".to_owned())
}

/// The version without what a distribution or a host adds to it.
fn kernel() -> String {
    let version = process::kernel_version();
    version.split(|end: char| end != '.' && !end.is_ascii_digit()).next().unwrap_or("").to_owned()
}

/// The commit, marked if the tree differs from it.
fn commit() -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let Some(id) = first_line("git", &["-C", root, "rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changes = ["-C", root, "status", "--porcelain", "--untracked-files=no"];
    if first_line("git", &changes).is_some() { format!("{id}-changed") } else { id }
}

/// What else the machine does: over its number of cores, figures suffer.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        line.split_once(": ").map(|(_, value)| value.trim().to_owned())
    };
    let (model, family) = (field("model name"), field("cpu family"));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    let [model, family, stepping] =
        [model, family, field("model\t")].map(|value| value.unwrap_or_else(|| "?".to_owned()));
    format!("{model} (family {family}, model {stepping}), {cores} cores, {} GiB", kib >> 20)
}
