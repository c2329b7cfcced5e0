//! Links that select files (BEP 53): only those are made, at any border of pieces, over a restart,
//! and what there is of them is served on.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::interop_libtorrent::{libtorrent, libtorrent_of};
use crate::support::data::{Content, Shape, odd_tree};
use crate::support::process::{Process, line_of};
use crate::support::server::{Home, START, Server, TRANSFER, addresses, start_get_of};
use crate::support::tracker::Listener;
use crate::support::{dir, free_addr, wait};

/// Many small files within pieces, and large ones that end inside of one.
fn content(dir: &Path, seed: u64) -> Content {
    odd_tree(dir, seed, &Shape::pieces_of(32 << 10))
}

/// Paths of the files, in the order of the torrent.
fn paths(content: &Content) -> Vec<PathBuf> {
    content.metainfo.layout.files().map(|file| file.path()).collect()
}

/// Files of which some lie between others that are not selected, and one is empty.
const SELECTED: [usize; 4] = [0, 2, 5, 8];

/// The link, with the files of [`SELECTED`].
fn link(content: &Content) -> String {
    format!("{}&so=0,2,5,8", content.link())
}

/// Paths and contents of all files below `root` but hidden ones in itself.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
            if path.is_dir() {
                folders.push(path);
            } else if folder != root || !is_hidden {
                let bytes = fs::read(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

/// Panics unless the selected files are below `root`, and nothing else.
fn assert_selected(content: &Content, root: &Path) {
    let paths = paths(content);
    let wanted = SELECTED.map(|index| paths[index].clone());
    let wanted: BTreeMap<_, _> = wanted
        .into_iter()
        .map(|path| (path.clone(), fs::read(content.root.join(path)).unwrap()))
        .collect();
    let found = tree(root);
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (path, bytes) in &found {
        assert!(wanted[path] == *bytes, "{} differs", path.display());
    }
}

fn libtorrent_seed(dir: &Path, content: &Content) -> (Process, SocketAddr) {
    let mut command = libtorrent("seed", content, &content.root, "127.0.0.1");
    let mut seed = Process::start("libtorrent-seed", dir, &mut command);
    let port = seed.wait_for_line("listening ", START).parse().unwrap();
    seed.wait_for_line("seeding", START);
    (seed, SocketAddr::new("127.0.0.1".parse().unwrap(), port))
}

#[test]
fn only_the_selected_files_are_fetched_and_they_are_served_to_libtorrent() {
    let dir = dir();
    let content = content(dir.path(), 300);
    let (seed, peer) = libtorrent_seed(dir.path(), &content);
    let output = dir.path().join("out");
    let words = ["--no-dht", "--json"];
    let mut get = start_get_of("get", dir.path(), link(&content), &output, &[peer], &words);
    get.wait_ok(TRANSFER);
    assert_selected(&content, &output);
    let report: serde_json::Value = serde_json::from_str(&get.stdout()).unwrap();
    let fetched = report["downloaded_bytes"].as_u64().unwrap();
    assert!(report["complete"] == true && fetched < report["size_bytes"].as_u64().unwrap());

    // What lies at the borders is there still: nothing is fetched twice.
    let mut get = start_get_of("again", dir.path(), link(&content), &output, &[peer], &words);
    get.wait_ok(TRANSFER);
    let report: serde_json::Value = serde_json::from_str(&get.stdout()).unwrap();
    assert_eq!((&report["downloaded_bytes"], &report["complete"]), (&0.into(), &true.into()));

    // The partial seed gives a peer with the same wishes all that it wants, pieces at borders too.
    let words = ["--no-dht", "--seed"];
    let mut ours = start_get_of("ours", dir.path(), link(&content), &output, &[peer], &words);
    let line = wait::until("the ready line", TRANSFER, || line_of(&ours.stderr(), "ready "));
    drop(seed);
    let (peer, _) = addresses(&line).unwrap();
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let mut command = libtorrent_of("leech", link(&content), &theirs, "127.0.0.1");
    command.arg(peer.to_string());
    let mut leech = Process::start("libtorrent-leech", dir.path(), &mut command);
    leech.wait_ok(TRANSFER);
    for index in SELECTED {
        let path = &paths(&content)[index];
        assert!(
            fs::read(theirs.join(path)).unwrap() == fs::read(content.root.join(path)).unwrap(),
            "{} differs",
            path.display()
        );
    }
    ours.signal(libc::SIGTERM);
    assert_eq!(ours.wait(START), 143, "{}", ours.tail());
    assert_selected(&content, &output);
}

#[test]
fn a_selection_outlasts_restarts_and_leaves_other_files_alone() {
    let dir = dir();
    let tracker = Listener::start();
    let content = content(dir.path(), 301).with_tracker(dir.path(), &tracker.url());
    let seed_addr = free_addr("127.0.0.1");
    let home = Home::new(dir.path(), "home");
    // Somebody's files under names that are not wanted, of which one is in a piece that is.
    let foreign = [1, 3, 6].map(|index| home.downloads.join(&paths(&content)[index]));
    for (number, path) in foreign.iter().enumerate() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![7; [5, 200_000, 10][number]]).unwrap();
    }
    let mut server = home.run(&["--no-dht"]);
    home.add_link("a.magnet", &format!("{}&x.pe={seed_addr}", link(&content)));
    home.wait_watched("a.magnet.added");
    server.wait_torrents("metadata", 1, START);
    server.stop();

    let seed = Server::seed(dir.path(), &content, &seed_addr.to_string(), &[]);
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, TRANSFER);
    seed.stop();
    server.stop();
    let assert_kept = || {
        let mut found = tree(&home.downloads);
        for (number, path) in foreign.iter().enumerate() {
            let path = path.strip_prefix(&home.downloads).unwrap();
            let bytes = found.remove(path).unwrap();
            assert!(bytes == vec![7; [5, 200_000, 10][number]], "{} changed", path.display());
        }
        assert_eq!(found.len(), SELECTED.len(), "{:?}", found.keys());
        for (path, bytes) in found {
            assert!(bytes == fs::read(content.root.join(&path)).unwrap(), "{}", path.display());
        }
    };
    assert_kept();

    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("seeding", 1, START);
    let log = server.process.stderr();
    assert!(!log.contains("missing") && !log.contains(" WARN ") && !log.contains("ERROR"), "{log}");
    server.stop();
    assert_kept();
    let lines = tracker.lines();
    assert!(!lines.iter().any(|line| line.contains("event=completed")), "{lines:?}");
    // As other clients count it, so that nobody takes it for a seed.
    let is_seed = |line: &&String| line.contains("left=0&") || line.contains("left=0 ");
    let ours = lines.iter().filter(|line| !line.contains(&format!("port={}&", seed_addr.port())));
    assert_eq!(ours.clone().find(is_seed), None);
    assert!(ours.count() > 0);
}

#[test]
fn a_selection_of_nothing_is_said_to_be_one() {
    let dir = dir();
    let content = content(dir.path(), 302);
    let seed = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("out");
    let get = |so: &str| {
        let link = format!("{}&so={so}", content.link());
        start_get_of("get", dir.path(), link, &output, &[seed.peer], &["--no-dht"])
    };
    let mut beyond = get("11,20-30");
    assert_eq!(beyond.wait(TRANSFER), 1, "{}", beyond.tail());
    let sentence = "so=11,20-30 selects no file of the torrent, which has 11 (from 0)";
    assert!(beyond.stderr().contains(sentence), "{}", beyond.tail());
    let mut empty = get("");
    assert_eq!(empty.wait(START), 2, "{}", empty.tail());
    assert!(empty.stderr().contains("selects files (so=)"), "{}", empty.tail());
    // Some that are there are enough.
    let mut some = get("0,2,5,8,11-20");
    some.wait_ok(TRANSFER);
    assert!(some.stderr().contains("so= names files that the torrent does not have"));
    assert_selected(&content, &output);

    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&["--no-dht"]);
    home.add_link("a.magnet", &format!("{}&so=11&x.pe={}", content.link(), seed.peer));
    home.wait_watched("a.magnet.added");
    wait::until("the refusal", TRANSFER, || {
        server.process.stderr().contains("so=11 selects no file").then_some(())
    });
    server.wait_torrents("metadata", 0, START);
    server.stop();
    let mut server = home.run(&["--no-dht"]);
    server.wait_torrents("metadata", 0, START);
    server.stop();
    seed.stop();
}
