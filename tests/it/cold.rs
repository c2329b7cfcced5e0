//! Cold data: a file that is not in the page cache is served without a core ever waiting for it.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::support::data::{BIG_LEN, Content, Shape, big, single};
use crate::support::server::{Home, START};
use crate::support::wire::{Event, RawPeer, block};
use crate::support::{dir, heavy};

/// Peers that ask for random pieces, and how many pieces each.
const PEER_COUNT: u32 = 16;
const PIECES_PER_PEER: u32 = 24;

/// Takes a file out of the page cache, as far as nobody maps it.
#[expect(unsafe_code, reason = "std has no advice about files")]
fn evict(path: &std::path::Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    // SAFETY: the descriptor is open for the whole call, and no memory is touched.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
}

/// Fetches whole pieces, chosen by `seed`; returns the bytes.
fn fetch_pieces(server: std::net::SocketAddr, content: &Content, id: u32, count: u32) -> u64 {
    let metainfo = &content.metainfo;
    let geometry = metainfo.geometry;
    let mut rng = fastrand::Rng::with_seed(u64::from(id));
    let mut peer = RawPeer::handshaken(server, metainfo, id);
    peer.become_unchoked();
    let mut fetched = 0;
    for _ in 0..count {
        let piece = rng.u32(0..geometry.piece_count() - 1);
        let blocks = geometry.block_count(seedring::units::PieceIndex(piece));
        for index in 0..blocks {
            peer.request(block(metainfo, piece, index));
        }
        for _ in 0..blocks {
            let event = peer.expect("a block", |event| matches!(event, Event::Block(..)));
            let Event::Block(_, bytes) = event else { unreachable!("it was waited for") };
            fetched += bytes.len() as u64;
        }
    }
    fetched
}

#[test]
fn cold_data_makes_no_core_wait() {
    let (_heavy, dir) = (heavy(), dir());
    let home = Home::new(dir.path(), "home");
    let cold = big();
    let hot = single(dir.path(), "hot", 16 << 20, 160, &Shape::pieces_of(256 << 10));
    hot.copy_to(&home.downloads);
    cold.copy_to(&home.downloads);
    let mut server = home.run(&["--cores", "0,1"]);
    home.add(cold);
    home.add(&hot);
    server.wait_torrents("seeding", 2, START);
    evict(&home.downloads.join(&cold.name));

    let faults_before = server.metric("seedring_major_faults_total", &[]);
    let disk_before = server.process.disk_read_bytes();
    let addr = server.peer;
    let (fetched, beside) = std::thread::scope(|scope| {
        let peers: Vec<_> = (0..PEER_COUNT)
            .map(|id| scope.spawn(move || fetch_pieces(addr, cold, id, PIECES_PER_PEER)))
            .collect();
        // How much of its rate the hot torrent keeps is measured by `compare cold`.
        let beside = fetch_pieces(addr, &hot, 901, 400);
        (peers.into_iter().map(|peer| peer.join().unwrap()).sum::<u64>(), beside)
    });
    assert_eq!(fetched, u64::from(PEER_COUNT * PIECES_PER_PEER) << 20);
    // The workers count their faults once a second.
    let faults = server.metric("seedring_major_faults_total", &[]) - faults_before;
    let disk = server.process.disk_read_bytes() - disk_before;
    let counted = server.metric("seedring_disk_read_bytes_total", &["temperature=\"cold\""]);
    eprintln!(
        "sent {fetched} bytes of cold data with {disk} from the disk ({counted} counted), \
         {faults} major faults, beside {beside} of hot data"
    );
    assert_eq!(beside, 400 * (256 << 10), "the hot torrent is served meanwhile");
    assert!(disk > BIG_LEN / 4, "the file was not cold: {disk} bytes from the disk");
    assert!(disk as f64 <= 1.3 * fetched as f64, "{disk} bytes from the disk for {fetched}");
    assert!(faults <= (fetched as f64 / f64::from(1 << 30)).max(1.0), "{faults} major faults");
    assert!(counted > 0.0, "cold reads are not counted");
    server.stop();
}
