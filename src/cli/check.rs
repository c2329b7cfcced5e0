//! `seedring check`: a torrent and a folder in, what of it is there out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Exit, human, source};
use crate::metainfo::{FileKind, Metainfo};
use crate::storage::Content;
use crate::storage::verify::{self, Checked, FileState, Options, Progress, ReadError};
use crate::units::PieceIndex;

/// How often the bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Flags of `seedring check`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = SCHEMA)]
pub struct CheckArgs {
    /// The .torrent file.
    #[arg(value_name = "TORRENT")]
    pub torrent: PathBuf,
    /// Folder that holds the torrent's top name.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

const SCHEMA: &str = "Exits with 0 if everything is there, with 6 if not; with 3 if TORRENT or DIR
does not exist, with 2 if DIR is a file.

--json prints one object:
  info_hash  40 hexadecimal digits
  name       the torrent's top name
  complete   whether every piece is right and every file is there
  pieces     {total, have}
  bytes      {total, have}: of all pieces, of those that are right
  files      [{path, length, state}]: path beneath DIR; state is whole, damaged (of the right size,
             but pieces that it lies in are wrong), missing, short, long, unusable or padding
  renamed    [{original, path}]: names of the torrent that were made safe, escaped, and the path
             beneath DIR that is used instead
  errors     [sentence]: what could not be read";

/// The object of `--json`: [`SCHEMA`] says what is in it.
#[derive(Serialize, Debug)]
struct Report {
    info_hash: String,
    name: String,
    complete: bool,
    pieces: Share,
    bytes: Share,
    files: Vec<FileLine>,
    renamed: Vec<Renamed>,
    errors: Vec<String>,
}

#[derive(Serialize, Debug)]
struct Share {
    total: u64,
    have: u64,
}

#[derive(Serialize, Debug)]
struct Renamed {
    original: String,
    path: String,
}

#[derive(Serialize, Debug)]
struct FileLine {
    path: String,
    length: u64,
    state: &'static str,
}

/// Runs the command.
pub fn execute(args: &CheckArgs) -> Exit {
    let metainfo = match source::read_torrent(&args.torrent) {
        Ok(metainfo) => metainfo,
        Err(unusable) => return unusable.tell(),
    };
    let wrong = source::wrong_data(&metainfo, &args.data);
    if let Some(wrong) = &wrong {
        let exit = wrong.tell();
        // A folder without any of it is incomplete: what that comes to is in the report.
        if exit != Exit::Partial {
            return exit;
        }
    }
    let content = Arc::new(Content::new(metainfo, args.data.clone()));
    let checked = check_with_bar(&content);
    let report = Report::new(&content.metainfo, &checked);
    if let Some(renames) = content.metainfo.renames_told() {
        eprintln!("seedring: {renames}");
    }
    if args.json {
        match serde_json::to_string(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => return super::fail(Exit::Failure, error),
        }
    } else {
        report.print(wrong.is_none());
    }
    if report.complete { Exit::Ok } else { Exit::Partial }
}

/// Checks a torrent's data on all processors, with a bar if there is a terminal.
pub fn check_with_bar(content: &Arc<Content>) -> Checked {
    let bar = super::progress_bar(content.metainfo.geometry.total_len(), "check");
    let progress = Arc::<Progress>::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options { threads, low_priority: false };
    let (done, ended) = channel::<()>();
    let checked = std::thread::scope(|scope| {
        let (bar, progress_seen) = (&bar, &progress);
        scope.spawn(move || {
            while ended.recv_timeout(BAR_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                bar.set_position(progress_seen.bytes_done());
            }
        });
        let shared: Arc<dyn verify::Content> = Arc::clone(content) as _;
        let checked = verify::check(shared, &content.save_path, options, Arc::clone(&progress));
        drop(done);
        checked
    });
    bar.finish_and_clear();
    checked
}

impl Report {
    fn new(metainfo: &Metainfo, checked: &Checked) -> Self {
        let geometry = metainfo.geometry;
        let have = checked.have.iter().map(|piece| u64::from(geometry.piece_len(piece))).sum();
        let sentence = |failed: &ReadError| {
            let file = failed.file.and_then(|index| metainfo.layout.file(index));
            let path = file.map(|file| file.path().display().to_string());
            format!("cannot read {}: {}", path.as_deref().unwrap_or("the folder"), failed.error)
        };
        let damaged = damaged(metainfo, checked);
        let files = metainfo.layout.files().zip(&checked.files).enumerate();
        let files = files.map(|(index, (file, report))| FileLine {
            path: file.path().to_string_lossy().into_owned(),
            length: file.len,
            state: match (file.kind, report.state) {
                (FileKind::Padding | FileKind::Symlink, _) | (_, FileState::Virtual) => "padding",
                (_, FileState::Whole) if damaged.contains(&index) => "damaged",
                (_, FileState::Whole) => "whole",
                (_, FileState::Missing) => "missing",
                (_, FileState::Short) => "short",
                (_, FileState::Long) => "long",
                (_, FileState::Unusable) => "unusable",
            },
        });
        Self {
            info_hash: metainfo.info_hash.to_string(),
            name: metainfo.name.clone(),
            complete: checked.is_complete(),
            pieces: Share {
                total: u64::from(geometry.piece_count()),
                have: u64::from(checked.have.count()),
            },
            bytes: Share { total: geometry.total_len(), have },
            files: files.collect(),
            renamed: metainfo
                .renames()
                .map(|(original, path)| Renamed {
                    original,
                    path: path.to_string_lossy().into_owned(),
                })
                .collect(),
            errors: checked.errors.iter().map(sentence).collect(),
        }
    }

    /// `lists_files` is whether the files that are not as they should be are named one by one.
    fn print(&self, lists_files: bool) {
        for error in &self.errors {
            eprintln!("seedring: {error}");
        }
        let odd = |file: &&FileLine| !matches!(file.state, "whole" | "padding");
        for file in self.files.iter().filter(odd).filter(|_| lists_files) {
            println!("{:8} {}", file.state, file.path);
        }
        println!(
            "{} {}: {} of {} pieces, {} of {} ({} %)",
            if self.complete { "complete" } else { "incomplete" },
            self.name,
            self.pieces.have,
            self.pieces.total,
            human::size(self.bytes.have),
            human::size(self.bytes.total),
            human::percent(self.bytes.have, self.bytes.total),
        );
    }
}

/// Files of the right size that lie in wrong pieces, unless another file of the piece explains that.
fn damaged(metainfo: &Metainfo, checked: &Checked) -> BTreeSet<usize> {
    let (geometry, layout) = (metainfo.geometry, &metainfo.layout);
    let is_whole = |index: usize| {
        let state = checked.files.get(index).map(|file| file.state);
        matches!(state, Some(FileState::Whole | FileState::Virtual))
    };
    let pieces = (0..geometry.piece_count()).map(PieceIndex);
    let wrong = pieces.filter(|&piece| !checked.have.has(piece));
    let extents = wrong.map(|piece| {
        let len = u64::from(geometry.piece_len(piece));
        let extents = layout.extents(geometry.piece_start(piece), len);
        extents.map(|extent| extent.file).collect::<Vec<_>>()
    });
    extents.filter(|files| files.iter().all(|&file| is_whole(file))).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::create::{self, CreateArgs};

    /// A folder with two files and a torrent of it beside it.
    fn folder() -> (tempfile::TempDir, CheckArgs) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("top")).unwrap();
        fs::write(dir.path().join("top/a"), [1; 40_000]).unwrap();
        fs::write(dir.path().join("top/b"), [2; 10_000]).unwrap();
        let create = CreateArgs {
            path: dir.path().join("top"),
            output: dir.path().join("top.torrent"),
            force: false,
            piece_length: Some(crate::config::Size(16 * 1024)),
            tracker: vec!["http://tracker.example/announce".parse().unwrap()],
            web_seed: Vec::new(),
            private: false,
            comment: None,
        };
        assert_eq!(create::execute(&create), Exit::Ok);
        let data = dir.path().to_owned();
        (dir, CheckArgs { torrent: create.output, data, json: true })
    }

    fn report(args: &CheckArgs) -> Report {
        let metainfo = source::read_torrent(&args.torrent).unwrap();
        let content = Arc::new(Content::new(metainfo, args.data.clone()));
        Report::new(&content.metainfo, &check_with_bar(&content))
    }

    #[test]
    fn what_was_created_is_complete_until_a_byte_changes() {
        let (dir, args) = folder();
        assert_eq!(execute(&args), Exit::Ok);
        fs::write(dir.path().join("top/b"), [3; 10_000]).unwrap();
        assert_eq!(execute(&args), Exit::Partial);
        let report = report(&args);
        assert!(!report.complete);
        // Pieces of 16 KiB: the files' border lies in the third of four.
        assert_eq!((report.pieces.total, report.pieces.have), (4, 2));
        assert_eq!((report.bytes.total, report.bytes.have), (50_000, 32_768));
        // The third piece is of both.
        assert!(report.files.iter().all(|file| file.state == "damaged"));
        let torrent = fs::read(dir.path().join("top/a")).unwrap();
        fs::write(dir.path().join("top/b"), [2; 10_000]).unwrap();
        fs::write(dir.path().join("top/a"), [&[9; 10], &torrent[10..]].concat()).unwrap();
        let states: Vec<_> = self::report(&args).files.iter().map(|file| file.state).collect();
        assert_eq!(states, ["damaged", "whole"]);
    }

    #[test]
    fn files_are_told_apart() {
        let (dir, args) = folder();
        fs::remove_file(dir.path().join("top/a")).unwrap();
        fs::write(dir.path().join("top/b"), [2; 9_000]).unwrap();
        let report = report(&args);
        let states: Vec<_> = report.files.iter().map(|file| (&*file.path, file.state)).collect();
        assert_eq!(states, [("top/a", "missing"), ("top/b", "short")]);
        let json: serde_json::Value =
            serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(json["complete"], false);
        assert_eq!(json["files"][0]["length"], 40_000);
        for key in json.as_object().unwrap().keys() {
            assert!(SCHEMA.contains(&format!("\n  {key} ")), "{key} is documented");
        }
    }

    #[test]
    fn a_torrent_that_is_not_there_is_not_found() {
        let (dir, mut args) = folder();
        args.torrent = dir.path().join("nothing.torrent");
        assert_eq!(execute(&args), Exit::NotFound);
        args.torrent = dir.path().join("top/a");
        assert_eq!(execute(&args), Exit::Failure);
    }
}
