//! The bare seeding loops of `benches/loops/`: this same program, told to be one of them.

use std::process::Command;

use super::{Peer, Recipe, Scene};
use crate::loops::Runtime;

/// One of the loops.
pub(super) struct Loop {
    runtime: Runtime,
    name: &'static str,
    version: &'static str,
}

/// On our own ring.
pub(super) const RING: Loop =
    Loop { runtime: Runtime::Ring, name: "ring-loop", version: "bare loop on `seedring::ring`" };

/// On tokio-uring.
pub(super) const TOKIO_URING: Loop = Loop {
    runtime: Runtime::TokioUring,
    name: "tokio-uring-loop",
    version: "bare loop on tokio-uring 0.5",
};

/// On tokio, which waits with epoll.
pub(super) const TOKIO: Loop =
    Loop { runtime: Runtime::Tokio, name: "tokio-loop", version: "bare loop on tokio 1" };

impl Peer for Loop {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> Option<String> {
        Some(self.version.to_owned())
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["loop", self.runtime.name(), &scene.listen.to_string()]);
        command.arg(&scene.ground.torrent).arg(scene.ground.file());
        Ok(Some(command))
    }
}
