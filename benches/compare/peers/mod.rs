//! The programs that are compared: one file each, and one line in [`PEERS`].
//!
//! A scene enters; the command that puts a program into it leaves. They are made comparable: as
//! many slots and connections as it can have, encryption only where the load begins with it, no
//! search for other peers, no limits; everything else as it comes. Invariant: what a program keeps
//! lies in the scene's folder, so that no run sees another one's.

mod aria2;
mod libtorrent;
mod loops;
mod qbittorrent;
mod rqbit;
mod rtorrent;
mod seedring;
mod transmission;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ground::Ground;
use crate::process::first_line;

pub(crate) use self::seedring::PROGRAM;

/// Every program there is, in the order of the tables.
pub(crate) const PEERS: &[&dyn Peer] = &[
    &seedring::Seedring,
    &loops::RING,
    &loops::TOKIO_URING,
    &loops::TOKIO,
    &rqbit::Rqbit,
    &libtorrent::Libtorrent,
    &rtorrent::Rtorrent,
    &aria2::Aria2,
    &qbittorrent::Qbittorrent,
    &transmission::Transmission,
];

/// Slots and connections where a program wants a number.
const PLENTY: u32 = 10_000;

/// What a program is put into.
#[derive(Debug)]
pub(crate) struct Scene<'g> {
    /// Data and torrent.
    pub(crate) ground: &'g Ground,
    /// A fresh folder of its own.
    pub(crate) dir: PathBuf,
    /// Where it shall listen: an address of the loopback, and a port that was free a moment ago.
    pub(crate) listen: SocketAddr,
    /// Whom it shall fetch from.
    pub(crate) sources: Vec<SocketAddr>,
}

impl Scene<'_> {
    /// Makes a folder in the scene.
    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The folder that is fetched into.
    pub(crate) fn target(&self) -> io::Result<PathBuf> {
        self.folder("fetched")
    }

    /// The addresses to fetch from, as a list with commas.
    fn source_list(&self) -> String {
        self.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// How a program is brought to do something; `None` where it cannot be.
pub(crate) type Recipe = io::Result<Option<Command>>;

/// One program.
pub(crate) trait Peer: Sync {
    /// What tables and `--peers` call it.
    fn name(&self) -> &'static str;

    /// What it says of its version; `None` if it is not installed.
    fn version(&self) -> Option<String>;

    /// Seeds the ground's data, which may be checked first, until it is killed.
    fn seed(&self, scene: &Scene<'_>) -> Recipe;

    /// Whether it talks to peers that insist on encryption.
    fn encrypts(&self) -> bool {
        true
    }

    /// Fetches into the scene's target from the scene's sources, and ends by itself.
    fn fetch(&self, scene: &Scene<'_>) -> Recipe {
        let _ = scene;
        Ok(None)
    }

    /// Checks the ground's data on one core, and ends by itself. If it is not only that, it says
    /// in its last line how long it took: `checked in SECONDS s, CPU SECONDS s`.
    fn check(&self, scene: &Scene<'_>) -> Recipe {
        let _ = scene;
        Ok(None)
    }
}

/// The peer called `name`.
pub(crate) fn find(name: &str) -> Result<&'static dyn Peer, String> {
    PEERS.iter().copied().find(|peer| peer.name() == name).ok_or_else(|| {
        let names: Vec<_> = PEERS.iter().map(|peer| peer.name()).collect();
        format!("there is no peer `{name}`; there are {}", names.join(", "))
    })
}

/// The version of a program that is called with one flag.
fn version_of(program: impl AsRef<Path>, flag: &str) -> Option<String> {
    first_line(program, &[flag])
}
