//! `seedring create`: a file or folder in, a `.torrent` out, its info-hash and magnet link shown.
//!
//! Invariant: a file that is there already is replaced only when that was asked for.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;

use super::{Exit, human};
use crate::config::Size;
use crate::metainfo::{CreateError, CreateOptions, create};

/// Flags of `seedring create`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CreateArgs {
    /// File or folder to share.
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// The .torrent file to write.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: PathBuf,
    /// Replace FILE if it is there already.
    #[arg(long)]
    pub force: bool,
    /// Length of a piece, as in 1MiB; a power of two [default: by the size of the data].
    #[arg(long, value_name = "SIZE")]
    pub piece_length: Option<Size>,
    /// Tracker; may be given several times.
    #[arg(long, value_name = "URL", value_parser = parse_tracker)]
    pub tracker: Vec<url::Url>,
    /// HTTP server that has the data too; may be given several times.
    #[arg(long, value_name = "URL", value_parser = parse_web_seed)]
    pub web_seed: Vec<url::Url>,
    /// Only peers of the trackers may be used.
    #[arg(long)]
    pub private: bool,
    /// Text for people.
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
}

fn parse_tracker(text: &str) -> Result<url::Url, String> {
    parse_url(text, &["http", "https", "udp", "ws", "wss"])
        .ok_or_else(|| "the URL of a tracker is expected, as http://HOST:PORT/announce".into())
}

fn parse_web_seed(text: &str) -> Result<url::Url, String> {
    parse_url(text, &["http", "https", "ftp"])
        .ok_or_else(|| "the URL of a file or folder is expected, as http://HOST/PATH".into())
}

fn parse_url(text: &str, schemes: &[&str]) -> Option<url::Url> {
    let url = url::Url::parse(text).ok()?;
    (schemes.contains(&url.scheme()) && url.has_host()).then_some(url)
}

/// Runs the command.
pub fn execute(args: &CreateArgs) -> Exit {
    // Said before hours of hashing, not after.
    if args.output.is_dir() {
        let shown = args.output.display();
        let sentence = format!("{shown} is a folder: -o names the .torrent file to write");
        return super::fail(Exit::Usage, sentence);
    }
    if let Err(sentence) = args.check_free() {
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
    if let Err(sentence) = args.check_free().and_then(|()| write(&args.output, &created.bytes)) {
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
    /// A sentence if there is something in the place of the new torrent that must stay.
    fn check_free(&self) -> Result<(), String> {
        if self.force || fs::symlink_metadata(&self.output).is_err() {
            return Ok(());
        }
        let shown = self.output.display();
        Err(format!("{shown} is there already: use --force to replace it, or another name"))
    }

    /// What the flags ask for.
    ///
    /// # Errors
    /// If the piece length is beyond all that torrents can have.
    pub fn options(&self) -> Result<CreateOptions, CreateError> {
        let texts = |urls: &[url::Url]| urls.iter().map(|url| url.as_str().to_owned()).collect();
        let narrow = |size: Size| {
            u32::try_from(size.0).map_err(|_| CreateError::PieceLength { value: u32::MAX })
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
        CreateError::PieceLength { .. } => Exit::Usage,
        _ => Exit::Failure,
    }
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
