//! What all measurements of one run share: the data, who takes part, and on which cores.
//!
//! The command line enters; scenes leave. Invariant: every scene has a folder and a port of its
//! own, and its folder is gone when the run is.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::ground::Ground;
use crate::peers::{Peer, Scene};

/// One run.
pub(crate) struct Stage {
    /// Data, torrent and folders.
    pub(crate) ground: Ground,
    /// Who takes part.
    pub(crate) peers: Vec<&'static dyn Peer>,
    /// Whether iperf3 does.
    pub(crate) with_iperf: bool,
    /// Number of rounds.
    pub(crate) repeat: u32,
    /// Seconds that a load is measured for.
    pub(crate) seconds: u64,
    /// Whether the load looks for data without sleeping.
    pub(crate) spin: bool,
    /// Number of seeders to fetch from.
    pub(crate) sources: usize,
    /// The core of the program under measurement.
    pub(crate) core: usize,
    /// The core of the load.
    pub(crate) load_core: usize,
    /// Scenes made so far.
    pub(crate) scenes: Cell<u32>,
}

impl Stage {
    /// A fresh scene.
    pub(crate) fn scene(&self, sources: Vec<SocketAddr>) -> io::Result<Scene<'_>> {
        self.scenes.set(self.scenes.get() + 1);
        let dir = self.ground.scratch.path().join(self.scenes.get().to_string());
        std::fs::create_dir_all(&dir)?;
        // Most programs cannot be told to take any free port and to say which.
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        Ok(Scene { ground: &self.ground, dir, listen, sources })
    }

    /// Says on stderr what is going on.
    pub(crate) fn tell(&self, text: &str) {
        eprintln!("{text}");
    }
}
