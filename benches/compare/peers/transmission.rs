//! Transmission's daemon: a torrent that lies in its watch folder is added, checked and seeded.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::{PLENTY, Peer, Recipe, Scene, version_of};

/// `transmission-daemon`.
pub(super) struct Transmission;

impl Peer for Transmission {
    fn name(&self) -> &'static str {
        "transmission"
    }

    fn version(&self) -> Option<String> {
        version_of("transmission-daemon", "--version")
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let config = scene.folder("config")?;
        let watched = scene.folder("watched")?;
        fs::copy(&scene.ground.torrent, watched.join("one.torrent"))?;
        let settings = json!({
            "bind-address-ipv4": scene.listen.ip().to_string(),
            "peer-port": scene.listen.port(),
            "peer-port-random-on-start": false,
            "download-dir": scene.ground.data_dir,
            "watch-dir": watched,
            "watch-dir-enabled": true,
            "rpc-enabled": false,
            "dht-enabled": false,
            "lpd-enabled": false,
            "pex-enabled": false,
            "utp-enabled": false,
            "port-forwarding-enabled": false,
            // 0: plaintext preferred.
            "encryption": 0,
            "peer-limit-global": PLENTY,
            "peer-limit-per-torrent": PLENTY,
            "upload-slots-per-torrent": PLENTY,
            "speed-limit-up-enabled": false,
            "ratio-limit-enabled": false,
            "idle-seeding-limit-enabled": false,
            "start-added-torrents": true,
        });
        fs::write(config.join("settings.json"), settings.to_string())?;
        let mut command = Command::new("transmission-daemon");
        command.arg("--foreground").arg("--config-dir").arg(config);
        Ok(Some(command))
    }
}
