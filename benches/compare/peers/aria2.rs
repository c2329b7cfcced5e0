//! aria2: seeds without checking; finds peers through trackers only, so it does not fetch here.

use std::process::Command;

use super::{Peer, Recipe, Scene, version_of};

/// `aria2c`.
pub(super) struct Aria2;

impl Peer for Aria2 {
    fn name(&self) -> &'static str {
        "aria2"
    }

    fn version(&self) -> Option<String> {
        version_of("aria2c", "--version")
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = aria2(scene);
        command.args(["--bt-seed-unverified=true", "--seed-ratio=0.0", "--bt-max-peers=0"]);
        command.arg(format!("--listen-port={}", scene.listen.port()));
        command.arg(&scene.ground.torrent);
        Ok(Some(command))
    }

    fn check(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = aria2(scene);
        command.args(["--check-integrity=true", "--hash-check-only=true", "--seed-time=0"]);
        command.args(["--bt-hash-check-seed=false"]).arg(&scene.ground.torrent);
        Ok(Some(command))
    }
}

fn aria2(scene: &Scene<'_>) -> Command {
    let mut command = Command::new("aria2c");
    command.args(["--no-conf=true", "--enable-dht=false", "--enable-dht6=false"]);
    command.args(["--enable-peer-exchange=false", "--bt-enable-lpd=false"]);
    command.args(["--allow-overwrite=false", "--file-allocation=none", "--disable-ipv6=true"]);
    command.args(["--auto-save-interval=0", "--console-log-level=warn", "--summary-interval=0"]);
    command.arg("--dir").arg(&scene.ground.data_dir);
    command
}
