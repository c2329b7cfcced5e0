//! Our own server, with default settings.

use std::path::Path;
use std::process::Command;

use super::{Peer, Recipe, Scene, version_of};

/// The binary that was built beside this bench.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_seedring");

/// `seedring`.
pub(super) struct Seedring;

impl Peer for Seedring {
    fn name(&self) -> &'static str {
        "seedring"
    }

    fn version(&self) -> Option<String> {
        version_of(Path::new(PROGRAM), "--version")
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = Command::new(PROGRAM);
        command.arg("seed").arg(&scene.ground.torrent).arg("--data").arg(&scene.ground.data_dir);
        command.args(["--trust", "--listen", &scene.listen.to_string()]);
        command.current_dir(&scene.dir);
        Ok(Some(command))
    }

    fn fetch(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = Command::new(PROGRAM);
        command.arg("get").arg(&scene.ground.torrent).arg("-o").arg(scene.target()?);
        command.args(["--listen", &scene.listen.to_string()]);
        command.args(["--no-dht", "--no-lsd", "--no-pex"]);
        for source in &scene.sources {
            command.args(["--peer", &source.to_string()]);
        }
        command.current_dir(&scene.dir);
        Ok(Some(command))
    }

    fn check(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = Command::new(PROGRAM);
        command.arg("check").arg(&scene.ground.torrent).arg("--data").arg(&scene.ground.data_dir);
        Ok(Some(command))
    }
}
