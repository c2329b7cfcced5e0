//! qBittorrent without its window: libtorrent 1.2 or 2.0 with qBittorrent's settings.

use std::fs;
use std::process::Command;

use super::{Peer, Recipe, Scene, version_of};

/// `qbittorrent-nox`.
pub(super) struct Qbittorrent;

impl Peer for Qbittorrent {
    fn name(&self) -> &'static str {
        "qbittorrent"
    }

    fn version(&self) -> Option<String> {
        version_of("qbittorrent-nox", "--version")
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let (ip, port) = (scene.listen.ip(), scene.listen.port());
        let profile = scene.folder("profile")?;
        let config = scene.folder("profile/qBittorrent/config")?;
        let data = scene.ground.data_dir.display();
        // -1: no limit. Encryption 0: whatever the other side begins with.
        let settings = format!(
            "[LegalNotice]\nAccepted=true\n\
             [BitTorrent]\n\
             Session\\Port={port}\n\
             Session\\Interface=lo\n\
             Session\\InterfaceName=lo\n\
             Session\\InterfaceAddress={ip}\n\
             Session\\DefaultSavePath={data}\n\
             Session\\MaxConnections=-1\n\
             Session\\MaxConnectionsPerTorrent=-1\n\
             Session\\MaxUploads=-1\n\
             Session\\MaxUploadsPerTorrent=-1\n\
             Session\\MultiConnectionsPerIp=true\n\
             Session\\BTProtocol=TCP\n\
             Session\\Encryption=0\n\
             Session\\DHTEnabled=false\n\
             Session\\LSDEnabled=false\n\
             Session\\PeXEnabled=false\n\
             Session\\QueueingSystemEnabled=false\n\
             Session\\AddTorrentPaused=false\n\
             [Network]\nPortForwardingEnabled=false\n\
             [Preferences]\nWebUI\\Enabled=false\n"
        );
        fs::write(config.join("qBittorrent.conf"), settings)?;
        let mut command = Command::new("qbittorrent-nox");
        command.arg(format!("--profile={}", profile.display()));
        command.arg(format!("--save-path={data}")).arg("--add-paused=false");
        command.arg(&scene.ground.torrent);
        Ok(Some(command))
    }
}
