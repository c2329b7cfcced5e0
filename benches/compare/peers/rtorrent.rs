//! rTorrent. It refuses a torrent without a tracker, so it gets one that does not answer.

use std::fs;
use std::process::Command;

use super::{PLENTY, Peer, Recipe, Scene};
use crate::process::first_line;

/// `rtorrent`.
pub(super) struct Rtorrent;

impl Peer for Rtorrent {
    fn name(&self) -> &'static str {
        "rtorrent"
    }

    fn version(&self) -> Option<String> {
        let said = first_line("rtorrent", &["-h"])?;
        Some(said.replace("Rakshasa's BitTorrent client version", "rTorrent"))
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let (ip, port) = (scene.listen.ip(), scene.listen.port());
        let session = scene.folder("session")?;
        let (session, data) = (session.display(), scene.ground.data_dir.display());
        let torrent = scene.ground.tracked_torrent.display();
        let settings = format!(
            "system.daemon.set = true\n\
             session.path.set = {session}\n\
             directory.default.set = {data}\n\
             network.bind_address.set = {ip}\n\
             network.port_range.set = {port}-{port}\n\
             network.port_random.set = no\n\
             network.max_open_sockets.set = {PLENTY}\n\
             network.max_open_files.set = 600\n\
             protocol.encryption.set = allow_incoming\n\
             protocol.pex.set = no\n\
             dht.mode.set = disable\n\
             trackers.use_udp.set = no\n\
             throttle.max_peers.seed.set = {PLENTY}\n\
             throttle.max_peers.normal.set = {PLENTY}\n\
             throttle.max_uploads.set = 0\n\
             throttle.max_uploads.global.set = 0\n\
             throttle.global_up.max_rate.set_kb = 0\n\
             load.start = {torrent}\n"
        );
        let file = scene.dir.join("rtorrent.rc");
        fs::write(&file, settings)?;
        let mut command = Command::new("rtorrent");
        command.arg("-n").arg("-o").arg(format!("import={}", file.display()));
        Ok(Some(command))
    }
}
