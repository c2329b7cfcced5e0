//! `seedring create`: a file or folder in, a `.torrent` out, its info-hash and magnet link shown.
//!
//! Invariant: a file that is there already is replaced only when that was asked for.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;

use super::{Exit, human, source};
use crate::config::Size;
use crate::metainfo::{CreateError, CreateOptions, create};

/// Flags of `seedring create`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CreateArgs {
    /// File or folder to share.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The .torrent file to write, or a folder for NAME.torrent.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
    /// Replace FILE if it is there already.
    #[arg(long)]
    pub force: bool,
    /// Length of a piece, as in 1MiB; a power of two [default: by the size of the data].
    #[arg(long, value_name = "SIZE")]
    pub piece_length: Option<Size>,
    /// Tracker; may be given several times.
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub tracker: Vec<url::Url>,
    /// HTTP server that has the data too; may be given several times.
    #[arg(long, value_name = "URL", value_parser = parse_url)]
    pub web_seed: Vec<url::Url>,
    /// Only peers of the trackers may be used.
    #[arg(long)]
    pub private: bool,
    /// Text for people.
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
}

fn parse_url(text: &str) -> Result<url::Url, &'static str> {
    text.parse().map_err(|_| "a URL is expected, as http://tracker.example:6969/announce")
}

/// Runs the command.
pub fn execute(args: &CreateArgs) -> Exit {
    let output = args.output();
    // Said before hours of hashing, not after.
    if let Some(folder) = folder_of(&output) {
        let shown = folder.display();
        match fs::metadata(source::without_slash(folder)) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return super::fail(Exit::Usage, format!("{shown} is not a folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return super::fail(Exit::NotFound, format!("the folder {shown} does not exist"));
            }
            Err(error) => {
                return super::fail(
                    Exit::Failure,
                    format!("cannot use the folder {shown}: {error}"),
                );
            }
        }
    }
    if let Err(sentence) = args.check_free(&output) {
        return super::fail(Exit::Failure, sentence);
    }
    let bar = super::progress_bar(0, "hash");
    let result = args.options().and_then(|options| {
        create(&args.path, &options, &|done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
    });
    bar.finish_and_clear();
    let created = match result {
        Ok(created) => created,
        Err(error) => return super::fail(exit_of(&error), error),
    };
    for warning in &created.warnings {
        eprintln!("seedring: {warning}");
    }
    if args.private && args.tracker.is_empty() {
        eprintln!(
            "seedring: a private torrent without a tracker finds nobody: give it one with --tracker"
        );
    }
    if let Err(sentence) = args.check_free(&output).and_then(|()| write(&output, &created.bytes)) {
        return super::fail(Exit::Failure, sentence);
    }
    eprintln!(
        "{}: {} in {}, {} of {}",
        created.name,
        human::size(created.total_len),
        human::counted(created.file_count as u64, "file"),
        human::counted(u64::from(created.piece_count), "piece"),
        human::size(u64::from(created.piece_len)),
    );
    println!("info-hash {}", created.info_hash);
    println!("magnet {}", created.magnet);
    Exit::Ok
}

impl CreateArgs {
    /// The file to write: in a folder that was named, it is called after what is shared.
    fn output(&self) -> PathBuf {
        if !self.output.is_dir() {
            return self.output.clone();
        }
        // The torrent's own name, as `create` makes it.
        let root = self.path.canonicalize().unwrap_or_default();
        let Some(name) = self.path.file_name().or(root.file_name()) else {
            return self.output.clone();
        };
        let mut name = name.to_owned();
        name.push(".torrent");
        self.output.join(name)
    }

    /// A sentence if there is something at `output`, where the new torrent goes, that must stay.
    fn check_free(&self, output: &Path) -> Result<(), String> {
        let shown = output.display();
        if output.is_dir() {
            return Err(format!("{shown} is a folder: name a file with -o FILE"));
        }
        if self.force || fs::symlink_metadata(output).is_err() {
            return Ok(());
        }
        Err(format!("{shown} is there already: use --force to replace it, or another name"))
    }

    /// What the flags ask for.
    ///
    /// # Errors
    /// If the piece length is beyond all that torrents can have.
    pub fn options(&self) -> Result<CreateOptions, CreateError> {
        let texts = |urls: &[url::Url]| urls.iter().map(|url| url.as_str().to_owned()).collect();
        let narrow = |size: Size| {
            u32::try_from(size.0).map_err(|_| CreateError::PieceLength { value: size.0 })
        };
        Ok(CreateOptions {
            piece_length: self.piece_length.map(narrow).transpose()?,
            trackers: texts(&self.tracker),
            web_seeds: texts(&self.web_seed),
            private: self.private,
            comment: self.comment.clone(),
            // Equal data gives equal torrents.
            creation_date: None,
            threads: 0,
        })
    }
}

fn exit_of(error: &CreateError) -> Exit {
    match error {
        CreateError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Exit::NotFound
        }
        CreateError::PieceLength { .. } | CreateError::Url { .. } => Exit::Usage,
        _ => Exit::Failure,
    }
}

/// The folder that a file goes to; `None` for the current one, which exists.
fn folder_of(file: &Path) -> Option<&Path> {
    if file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Some(file);
    }
    file.parent().filter(|folder| !folder.as_os_str().is_empty())
}

/// Whoever watches for the name sees a whole file.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".part");
    let written = fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        // A part of a torrent is of no use; the error that counts is the first one.
        let _ = fs::remove_file(&fresh);
        format!("cannot write {}: {error}", path.display())
    })
}
