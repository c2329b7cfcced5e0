//! Disks and files that fail under a running server: one torrent stops and says why, others go on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use seedring::sys::clock;

use crate::support::data::{Content, Shape, odd_tree, single, write_random};
use crate::support::process::{Process, run};
use crate::support::server::{Home, START, Server, fetch_from, start_get};
use crate::support::tracker::Listener;
use crate::support::wire::{Event, RawPeer, block};
use crate::support::{dir, free_addr, wait};

/// How soon a file that is gone has to be noticed while the torrent has peers.
const NOTICED: Duration = Duration::from_secs(60);

/// A server that seeds torrents of 4 MiB with these names.
fn seeding(dir: &Path, names: &[&str]) -> (Home, Server, Vec<Content>) {
    let home = Home::new(dir, "home");
    let shape = Shape::pieces_of(64 << 10);
    let contents: Vec<_> = names
        .iter()
        .zip(110..)
        .map(|(name, seed)| single(dir, name, 4 << 20, seed, &shape))
        .collect();
    let mut server = home.run(&[]);
    for content in &contents {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    server.wait_torrents("seeding", names.len() as u32, START);
    (home, server, contents)
}

fn unchoked(server: &Server, content: &Content, id: u32) -> RawPeer {
    let mut peer = RawPeer::handshaken(server.peer, &content.metainfo, id);
    peer.become_unchoked();
    peer
}

fn fetch_block(peer: &mut RawPeer, content: &Content, piece: u32) {
    peer.request(block(&content.metainfo, piece, 0));
    peer.expect("a block", |event| matches!(event, Event::Block(..)));
}

#[test]
fn a_truncated_file_stops_its_torrent_at_the_next_send() {
    let dir = dir();
    let (home, mut server, contents) = seeding(dir.path(), &["victim", "bystander"]);
    let mut peer = unchoked(&server, &contents[0], 1);
    let mut other = unchoked(&server, &contents[1], 2);
    for piece in 0..64 {
        fetch_block(&mut peer, &contents[0], piece);
    }
    let file = OpenOptions::new().write(true).open(home.downloads.join("victim")).unwrap();
    file.set_len(1 << 20).unwrap();
    peer.request(block(&contents[0].metainfo, 60, 0));
    peer.expect_close();
    server.wait_torrents("error", 1, Duration::from_secs(5));
    let log = server.process.stderr();
    assert!(log.contains("victim"), "{log}");
    fetch_block(&mut other, &contents[1], 63);
    // It refuses new peers rather than to serve what is not there.
    let hash_refused = |server: &Server| server.metric("seedring_torrents", &["state=\"seeding\""]);
    assert_eq!(hash_refused(&server), 1.0);
    server.stop();
}

#[test]
fn deleted_and_replaced_files_are_noticed_within_a_minute() {
    let dir = dir();
    let names = ["deleted", "replaced", "rewritten", "bystander"];
    let (home, mut server, contents) = seeding(dir.path(), &names);
    let mut peers: Vec<_> =
        contents.iter().zip(1..).map(|(content, id)| unchoked(&server, content, id)).collect();
    for (peer, content) in peers.iter_mut().zip(&contents) {
        fetch_block(peer, content, 5);
    }
    let path = |name: &str| home.downloads.join(name);
    fs::remove_file(path("deleted")).unwrap();
    write_random(&home.dir.join("other"), 4 << 20, 120);
    fs::rename(home.dir.join("other"), path("replaced")).unwrap();
    // The same inode and size, other bytes: only its time tells.
    let bytes = fs::read(home.downloads.join("replaced")).unwrap();
    fs::write(path("rewritten"), bytes).unwrap();

    let is_failed = |count: f64| count == 3.0;
    server.wait_metric("seedring_torrents", &["state=\"error\""], NOTICED, is_failed);
    let log = server.process.stderr();
    for name in &names[..3] {
        let named =
            |line: &str| line.contains(name) && (line.contains("WARN") || line.contains("ERROR"));
        assert!(log.lines().any(named), "no line about {name}\n{log}");
    }
    fetch_block(&mut peers[3], &contents[3], 6);
    server.stop();
}

/// A small file system of its own, gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, mib: u32) -> Self {
        fs::create_dir(&path).unwrap();
        run(as_root("mount").args(["-t", "tmpfs", "-o", &size(mib), "tmpfs"]).arg(&path));
        Self(path)
    }

    /// An ext4 in an image of its own, on a loop device that goes with the mount. Without extents
    /// it knows no `fallocate`, so that nothing can be reserved.
    fn ext4(image: &Path, path: PathBuf, mib: u32, has_extents: bool) -> Self {
        File::create(image).unwrap().set_len(u64::from(mib) << 20).unwrap();
        let features = if has_extents { "extent" } else { "^extent,^64bit,^has_journal" };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-O", features]).arg(image));
        fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        disk.attach(image);
        run(as_root("chmod").arg("0777").arg(&disk.0));
        disk
    }

    fn attach(&self, image: &Path) {
        run(as_root("mount").args(["-t", "ext4", "-o", "loop"]).arg(image).arg(&self.0));
    }

    /// Takes it away, as soon as nobody has a file open on it.
    fn detach(&self) {
        wait::until("the disk to be free", START, || {
            as_root("umount").arg(&self.0).output().unwrap().status.success().then_some(())
        });
    }

    fn remount(&self, options: &str) {
        run(as_root("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }

    /// From now on every read and write of it fails (`FS_IOC_SHUTDOWN`, without a last flush).
    #[expect(unsafe_code, reason = "std has no ioctl")]
    fn break_down(&self) {
        const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let root = File::open(&self.0).unwrap();
        let mut flags: u32 = 2;
        // SAFETY: the call reads one u32 behind the pointer, which lives until it is over.
        let code = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN as _, &raw mut flags) };
        assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
    }

    /// A file that takes all the room there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for len in [1 << 20, 64 << 10, 4 << 10] {
            while file.write_all(&vec![1; len]).is_ok() {}
        }
        // What was not written does not fit; that it says so again is no news.
        let _ = file.sync_all();
        path
    }

    fn grow(&self, mib: u32) {
        run(as_root("mount").args(["-o", &format!("remount,{}", size(mib))]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that still runs when a test fails must not keep it.
        let _ = as_root("umount").arg("-l").arg(&self.0).status();
    }
}

fn size(mib: u32) -> String {
    format!("size={mib}m,mode=0777")
}

/// Mounting is for root only; elsewhere sudo has to be there, without a password.
pub(crate) fn as_root(program: &str) -> Command {
    let is_root = run(Command::new("id").arg("-u")).trim() == "0";
    let mut command = Command::new(if is_root { program } else { "sudo" });
    if !is_root {
        command.args(["-n", program]);
    }
    command
}

/// A server that tries failed torrents again every second.
fn run_impatient(home: &Home, more: &str) -> Server {
    let config = home.dir.join("seedring.toml");
    fs::write(&config, format!("[storage]\nretry_seconds = 1\n{more}")).unwrap();
    home.run(&["--config", config.to_str().unwrap()])
}

/// A peer that has the first `have` bytes of `content`, and gives them to `server`.
fn feed(dir: &Path, name: &str, content: &Content, have: usize, server: &Server) -> Process {
    let root = dir.join(name);
    fs::create_dir(&root).unwrap();
    let mut bytes = fs::read(content.path()).unwrap();
    bytes[have..].fill(0);
    fs::write(root.join(&content.name), bytes).unwrap();
    start_get(name, dir, content, &root, &[server.peer], &["--seed"])
}

fn torrents(server: &Server, state: &str) -> f64 {
    server.metric("seedring_torrents", &[&format!("state=\"{state}\"")])
}

/// The disk fills when half of a torrent is written. `unreserve` gives the other half's space back,
/// where it could be reserved.
fn fill_in_the_middle(dir: &Path, home: &Home, disk: &SmallDisk, unreserve: impl Fn(&Path)) {
    const HALF: usize = 6 << 20;
    let shape = Shape::pieces_of(64 << 10);
    let small = single(dir, "small", 2 << 20, 150, &shape);
    let large = single(dir, "large", 2 * HALF as u64, 151, &shape);
    small.copy_to(&home.downloads);
    let mut server = run_impatient(home, "");
    home.add(&small);
    home.add(&large);
    server.wait_torrents("seeding", 1, START);
    server.wait_torrents("downloading", 1, START);
    let feeder = feed(dir, "half", &large, HALF, &server);
    let verified = "seedring_pieces_verified_total";
    server.wait_metric(verified, &[], START, |count| count == 96.0);
    drop(feeder);
    unreserve(&home.downloads.join("large"));
    let filler = disk.fill();
    let feeder = feed(dir, "whole", &large, 2 * HALF, &server);
    server.wait_torrents("error", 1, START);
    assert!(server.process.stderr().contains("space"), "{}", server.process.tail());
    // Others go on.
    fetch_from(dir, &small, server.peer);
    drop(feeder);
    assert_eq!(torrents(&server, "error"), 1.0);
    // However often it is tried, it is said once, and once more as there is no room to begin with.
    let lines = server.process.stderr().matches("torrent stopped").count();
    assert!((1..=2).contains(&lines), "{}", server.process.tail());

    // With room again it goes on where it stood, by itself.
    fs::remove_file(filler).unwrap();
    server.wait_torrents("downloading", 1, START);
    let feeder = feed(dir, "again", &large, 2 * HALF, &server);
    server.wait_torrents("seeding", 2, START);
    large.assert_same_in(&home.downloads);
    small.assert_same_in(&home.downloads);
    let again = server.metric(verified, &[]) - 192.0;
    assert!(again < 48.0, "{again} pieces were fetched twice");
    drop(feeder);
    server.stop();
}

#[test]
fn a_tmpfs_that_fills_in_the_middle_of_a_fetch_loses_nothing() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    fs::remove_dir(&home.downloads).unwrap();
    let disk = SmallDisk::mount(home.downloads.clone(), 24);
    fill_in_the_middle(dir.path(), &home, &disk, |path| {
        let hole = ["--punch-hole", "--offset", "6291456", "--length", "6291456"];
        run(Command::new("fallocate").args(hole).arg(path));
    });
}

#[test]
fn an_ext4_that_fills_in_the_middle_of_a_fetch_loses_nothing() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let image = dir.path().join("image");
    let disk = SmallDisk::ext4(&image, home.downloads.clone(), 24, false);
    // There are no extents: nothing could be reserved.
    fill_in_the_middle(dir.path(), &home, &disk, |_| {});
}

#[test]
fn a_disk_that_breaks_costs_pieces_then_its_torrent_and_heals() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let victim = odd_tree(dir.path(), 160, &shape);
    let bystander = single(dir.path(), "bystander", 4 << 20, 175, &shape);
    let image = dir.path().join("image");
    let disk = SmallDisk::ext4(&image, home.downloads.join(&victim.name), 32, true);
    victim.copy_to(&home.downloads);
    bystander.copy_to(&home.downloads);
    run(Command::new("sync").arg("-f").arg(&disk.0));
    let mut server = run_impatient(&home, "mode = \"read\"\n");
    home.add(&victim);
    home.add(&bystander);
    server.wait_torrents("seeding", 2, START);
    let mut peer = unchoked(&server, &victim, 1);
    let mut other = unchoked(&server, &bystander, 2);
    fetch_block(&mut peer, &victim, 1);
    disk.break_down();
    // One piece is refused; the torrent lives.
    peer.request(block(&victim.metainfo, 10, 0));
    peer.expect("a reject", |event| matches!(event, Event::Reject(_)));
    assert_eq!(torrents(&server, "error"), 0.0);
    assert!(server.process.stderr().contains("a piece is lost"), "{}", server.process.tail());
    peer.request_all((11..30).map(|piece| block(&victim.metainfo, piece, 0)));
    peer.expect_close();
    server.wait_torrents("error", 1, START);
    fetch_block(&mut other, &bystander, 63);
    assert_eq!(server.metric("seedring_banned_peers", &[]), 0.0);
    // Without its disk it waits, and makes nothing on the bare mount point.
    disk.detach();
    let begun = clock::now();
    wait::until("some trials", START, || (begun.elapsed() > Duration::from_secs(3)).then_some(()));
    assert_eq!(torrents(&server, "error"), 1.0);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "something was made");
    disk.attach(&image);
    server.wait_torrents("seeding", 2, START);
    let mut peer = unchoked(&server, &victim, 3);
    fetch_block(&mut peer, &victim, 10);
    server.stop();
}

#[test]
fn a_disk_that_is_not_mounted_at_a_restart_is_waited_for() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let victim = odd_tree(dir.path(), 185, &shape);
    let bystander = single(dir.path(), "bystander", 1 << 20, 186, &shape);
    let image = dir.path().join("image");
    let disk = SmallDisk::ext4(&image, home.downloads.join(&victim.name), 32, true);
    victim.copy_to(&home.downloads);
    bystander.copy_to(&home.downloads);
    let mut server = run_impatient(&home, "");
    home.add(&victim);
    home.add(&bystander);
    server.wait_torrents("seeding", 2, START);
    server.stop();
    disk.detach();

    // The second restart finds what the first one, which had nothing, did not forget.
    for _ in 0..2 {
        let mut server = run_impatient(&home, "");
        server.wait_torrents("error", 1, START);
        server.wait_torrents("seeding", 1, START);
        let log = server.process.stderr();
        assert!(log.contains("are gone from"), "{log}");
        assert!(log.contains("is the disk mounted?"), "{log}");
        let begun = clock::now();
        let lasted = || (begun.elapsed() > Duration::from_secs(3)).then_some(());
        wait::until("some trials", START, lasted);
        assert_eq!(torrents(&server, "error"), 1.0);
        assert_eq!(server.process.stderr().matches("torrent stopped").count(), 1);
        assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "something was made");
        server.stop();
    }

    let mut server = run_impatient(&home, "");
    server.wait_torrents("error", 1, START);
    disk.attach(&image);
    server.wait_torrents("seeding", 2, START);
    fetch_from(dir.path(), &victim, server.peer);
    assert_eq!(server.metric("seedring_pieces_verified_total", &[]), 0.0, "it was fetched anew");
    server.stop();
}

#[test]
fn a_downloads_folder_below_a_disk_that_is_not_mounted_is_not_made() {
    let dir = dir();
    let mut home = Home::new(dir.path(), "home");
    let image = dir.path().join("image");
    let disk = SmallDisk::ext4(&image, home.dir.join("disk"), 32, true);
    home.downloads = disk.0.join("below");
    let content = single(dir.path(), "data", 2 << 20, 187, &Shape::pieces_of(64 << 10));
    let mut server = run_impatient(&home, "");
    content.copy_to(&home.downloads);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    // Known a moment after the check: not only a clean stop writes it.
    let rows = home.state.join("seedring.db");
    let had = || {
        let rows = rusqlite::Connection::open(&rows).ok()?;
        let had: i64 = rows.query_row("SELECT had_bytes FROM torrents", [], |it| it.get(0)).ok()?;
        (had == 2 << 20).then_some(())
    };
    wait::until("what it had", START, had);
    server.process.signal(libc::SIGKILL);
    server.process.wait(START);
    disk.detach();

    let mut server = run_impatient(&home, "");
    server.wait_torrents("error", 1, START);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "something was made");
    disk.attach(&image);
    server.wait_torrents("seeding", 1, START);
    server.stop();

    // Deleted for good: an empty file in its place says that it is to be fetched.
    fs::remove_file(home.downloads.join("data")).unwrap();
    let mut server = run_impatient(&home, "");
    server.wait_torrents("error", 1, START);
    assert!(!home.downloads.join("data").exists());
    File::create(home.downloads.join("data")).unwrap();
    server.wait_torrents("downloading", 1, START);
    let feeder = feed(dir.path(), "whole", &content, 2 << 20, &server);
    server.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();
}

#[test]
fn a_read_only_disk_is_an_error_until_it_is_writable() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let image = dir.path().join("image");
    let disk = SmallDisk::ext4(&image, home.downloads.clone(), 24, true);
    let content = single(dir.path(), "data", 2 << 20, 180, &Shape::pieces_of(64 << 10));
    disk.remount("ro");
    let mut server = run_impatient(&home, "");
    home.add(&content);
    server.wait_torrents("error", 1, START);
    assert!(server.process.stderr().contains("Read-only"), "{}", server.process.tail());
    disk.remount("rw");
    server.wait_torrents("downloading", 1, START);
    let feeder = feed(dir.path(), "whole", &content, 2 << 20, &server);
    server.wait_torrents("seeding", 1, START);
    content.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();
}

#[test]
fn a_failed_torrent_is_announced_when_it_lives_again() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let tracker = Listener::start();
    let shape = Shape { trackers: vec![tracker.url()], ..Shape::pieces_of(64 << 10) };
    let content = single(dir.path(), "data", 4 << 20, 181, &shape);
    content.copy_to(&home.downloads);
    let mut server = run_impatient(&home, "");
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let heard = |event: &str| tracker.lines().iter().filter(|line| line.contains(event)).count();
    let hear = |event: &str, count: usize| {
        wait::until(event, START, || (heard(event) == count).then_some(()));
    };
    hear("event=started", 1);
    let mut peer = unchoked(&server, &content, 1);
    fetch_block(&mut peer, &content, 1);
    let path = home.downloads.join("data");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    peer.request(block(&content.metainfo, 60, 0));
    peer.expect_close();
    server.wait_torrents("error", 1, START);
    hear("event=stopped", 1);
    let begun = clock::now();
    wait::until("some trials", START, || (begun.elapsed() > Duration::from_secs(3)).then_some(()));
    assert_eq!(torrents(&server, "error"), 1.0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1000, "a truncated file was made longer");
    content.copy_to(&home.downloads);
    server.wait_torrents("seeding", 1, START);
    hear("event=started", 2);
    assert_eq!(heard("event=stopped"), 1);
    let mut peer = unchoked(&server, &content, 2);
    fetch_block(&mut peer, &content, 60);
    server.stop();
}

#[test]
fn a_file_deleted_before_the_last_piece_fails_get() {
    let dir = dir();
    let content = single(dir.path(), "data", 2 << 20, 182, &Shape::pieces_of(64 << 10));
    let output = dir.path().join("out");
    let listen = free_addr("127.0.0.1").to_string();
    let mut get = start_get("get", dir.path(), &content, &output, &[], &["--listen", &listen]);
    let is_reserved = || fs::metadata(output.join("data")).is_ok_and(|it| it.len() == 2 << 20);
    get.wait_for("the file", START, || is_reserved().then_some(()));
    fs::remove_file(output.join("data")).unwrap();
    let peers = [listen.parse().unwrap()];
    let root = content.root.clone();
    let feeder = start_get("feed", dir.path(), &content, &root, &peers, &["--seed"]);
    assert_eq!(get.wait(START), 1, "{}", get.tail());
    assert!(get.stderr().contains("missing"), "{}", get.tail());
    drop(feeder);
}

#[test]
fn a_longer_file_of_somebody_else_is_left_alone() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let content = single(dir.path(), "data", 1 << 20, 183, &Shape::pieces_of(64 << 10));
    let path = home.downloads.join("data");
    write_random(&path, (1 << 20) + 5, 184);
    let theirs = fs::read(&path).unwrap();
    let mut server = run_impatient(&home, "");
    home.add(&content);
    server.wait_torrents("error", 1, START);
    assert!(server.process.stderr().contains("not overwritten"), "{}", server.process.tail());
    assert!(fs::read(&path).unwrap() == theirs);
    // Once it is out of the way the torrent begins.
    fs::rename(&path, home.dir.join("theirs")).unwrap();
    server.wait_torrents("downloading", 1, START);
    server.stop();
}

#[test]
fn a_full_disk_stops_the_torrent_and_loses_nothing() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    fs::remove_dir(&home.downloads).unwrap();
    let disk = SmallDisk::mount(home.downloads.clone(), 8);
    let shape = Shape::pieces_of(64 << 10);
    let small = single(dir.path(), "small", 4 << 20, 130, &shape);
    let large = single(dir.path(), "large", 12 << 20, 131, &shape);
    small.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&small);
    server.wait_torrents("seeding", 1, START);
    home.add(&large);
    let origin = dir.path().join("origin");
    fs::create_dir(&origin).unwrap();
    large.copy_to(&origin);
    let feed = |server: &Server| {
        start_get("feed", dir.path(), &large, &origin, &[server.peer], &["--seed"])
    };
    let feeder = feed(&server);
    server.wait_torrents("error", 1, START);
    let log = server.process.stderr();
    assert!(log.contains("space"), "{log}");
    // What is complete goes on, and is whole.
    fetch_from(dir.path(), &small, server.peer);
    small.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();

    // With room again all goes on where it stood.
    disk.grow(64);
    let mut server = home.run(&[]);
    server
        .wait_metric("seedring_torrents", &["state=\"downloading\""], START, |count| count == 1.0);
    let feeder = feed(&server);
    server.wait_torrents("seeding", 2, START);
    large.assert_same_in(&home.downloads);
    small.assert_same_in(&home.downloads);
    drop(feeder);
    server.stop();
}

#[test]
fn get_on_a_full_disk_says_so() {
    let dir = dir();
    let disk = SmallDisk::mount(dir.path().join("disk"), 8);
    let content = single(dir.path(), "large", 12 << 20, 132, &Shape::pieces_of(64 << 10));
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let mut get = start_get("get", dir.path(), &content, &disk.0, &[server.peer], &[]);
    assert_eq!(get.wait(START), 1, "{}", get.tail());
    assert_eq!(get.stderr().matches("space").count(), 1, "said once: {}", get.tail());
    assert!(get.stderr().starts_with("seedring: no space left"), "{}", get.tail());
    disk.grow(64);
    let mut get = start_get("get", dir.path(), &content, &disk.0, &[server.peer], &[]);
    get.wait_ok(START);
    content.assert_same_in(&disk.0);
    server.stop();
}

#[test]
fn a_file_where_a_folder_should_be_stops_only_that_torrent() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let blocked = odd_tree(dir.path(), 140, &shape);
    let good = single(dir.path(), "good", 1 << 20, 141, &shape);
    good.copy_to(&home.downloads);
    fs::write(home.downloads.join(&blocked.name), b"in the way").unwrap();
    let mut server = home.run(&[]);
    home.add(&blocked);
    home.add(&good);
    server.wait_torrents("seeding", 1, START);
    server.wait_torrents("error", 1, START);
    assert_eq!(fs::read(home.downloads.join(&blocked.name)).unwrap(), b"in the way");
    wait::until("a log line", START, || {
        server.process.stderr().contains(&blocked.name).then_some(())
    });
    server.stop();
}
