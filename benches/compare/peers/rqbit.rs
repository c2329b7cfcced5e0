//! rqbit: the fastest of the others. It takes up to 128 peers.

use std::process::Command;

use super::{PLENTY, Peer, Recipe, Scene, version_of};

/// `cargo install rqbit`.
pub(super) struct Rqbit;

impl Peer for Rqbit {
    fn name(&self) -> &'static str {
        "rqbit"
    }

    fn version(&self) -> Option<String> {
        version_of("rqbit", "--version")
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = rqbit(scene)?;
        command.args(["--listen-ip", &scene.listen.ip().to_string()]);
        command.args(["--listen-port", &scene.listen.port().to_string()]);
        // It checks what is there, finds it whole, and goes on seeding.
        command.args(["download", "--disable-http-api", "--overwrite", "-o"]);
        command.arg(&scene.ground.data_dir).arg(&scene.ground.torrent);
        Ok(Some(command))
    }

    fn fetch(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = rqbit(scene)?;
        command.args(["--disable-tcp-listen", "download", "--disable-http-api"]);
        command.args(["--exit-on-finish", "--initial-peers", &scene.source_list()]);
        command.arg("-o").arg(scene.target()?).arg(&scene.ground.torrent);
        Ok(Some(command))
    }

    fn check(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = rqbit(scene)?;
        command.args(["--disable-tcp-listen", "download", "--disable-http-api"]);
        command.args(["--exit-on-finish", "--overwrite", "-o"]);
        command.arg(&scene.ground.data_dir).arg(&scene.ground.torrent);
        Ok(Some(command))
    }
}

fn rqbit(scene: &Scene<'_>) -> std::io::Result<Command> {
    let mut command = Command::new("rqbit");
    command.env("HOME", scene.folder("home")?).env_remove("XDG_CACHE_HOME");
    command.args(["--disable-dht", "--disable-lsd", "--disable-trackers", "--ipv4-only"]);
    command.args(["--disable-upnp-port-forward", "--peer-limit", &PLENTY.to_string()]);
    Ok(command)
}
