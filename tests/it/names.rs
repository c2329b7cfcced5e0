//! Names as torrents give them and as disks take them: made safe and told, links that lead out,
//! padding, empty files, paths that are too long, and two names of one file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use seedring::metainfo::Metainfo;

use crate::cli::end_of;
use crate::support::data::Content;
use crate::support::dir;
use crate::support::server::{Home, START, Server, TRANSFER, seedring, start_get};

/// Bytes of a piece.
const PIECE: usize = 16 << 10;

/// A file of a torrent: its path below the torrent's name, its length, its attributes (BEP 47).
type Entry<'e> = (&'e [&'e str], usize, &'e str);

fn text(text: &str) -> String {
    format!("{}:{text}", text.len())
}

/// A torrent made by hand, with its data where it should be, except where that is padding.
fn content(dir: &Path, name: &str, files: &[Entry<'_>], seed: u64) -> Content {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut whole, mut list) = (Vec::new(), String::new());
    for (path, len, attr) in files {
        let mut bytes = vec![0; *len];
        if *attr != "p" {
            rng.fill(&mut bytes);
        }
        whole.extend(bytes);
        let path: String = path.iter().map(|name| text(name)).collect();
        list += &format!("d4:attr{}6:lengthi{len}e4:pathl{path}ee", text(attr));
    }
    let mut info = format!("d5:filesl{list}e4:name{}", text(name)).into_bytes();
    let pieces: Vec<u8> = whole.chunks(PIECE).flat_map(seedring::sys::sha1::digest).collect();
    info.extend(format!("12:piece lengthi{PIECE}e6:pieces{}:", pieces.len()).bytes());
    info.extend(pieces);
    let torrent = [b"d4:info", &info[..], b"ee"].concat();
    let metainfo = Metainfo::parse(&torrent).unwrap();
    let root = dir.join(format!("origin{seed}"));
    for file in metainfo.layout.files().filter(|file| file.is_on_disk()) {
        let path = root.join(file.path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let start = file.start as usize;
        fs::write(path, &whole[start..start + file.len as usize]).unwrap();
    }
    let path = dir.join(format!("{seed}.torrent"));
    fs::write(&path, torrent).unwrap();
    Content { root, name: metainfo.name.clone(), torrent: path, metainfo }
}

fn check(content: &Content, data: &Path, words: &[&str]) -> (i32, String, String) {
    let mut check = seedring(&["check"]);
    end_of(check.arg(&content.torrent).arg("--data").arg(data).args(words))
}

/// All paths below a folder, with what is in the files.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
            found.push((path, Vec::new()));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn names_that_are_made_safe_are_told() {
    let dir = dir();
    let files: [Entry<'_>; 5] = [
        (&["a\u{1b}[2J.txt"], 20_000, ""),
        (&["same"], 1000, ""),
        (&["same"], 1000, ""),
        (&["same"], 1000, ""),
        (&["b\u{202e}"], 1000, ""),
    ];
    let content = content(dir.path(), "top", &files, 1);
    let told = "names were made safe: \"top/a\\u{1b}[2J.txt\" -> \"top/a_[2J.txt\", ";
    let (code, stdout, stderr) = check(&content, &content.root, &["--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains(told) && stderr.contains(" and 1 more"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["renamed"][0]["original"], "top/a\\u{1b}[2J.txt");
    assert_eq!(report["renamed"][0]["path"], "top/a_[2J.txt");
    assert_eq!(report["renamed"].as_array().unwrap().len(), 4);

    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    assert!(server.process.stderr().contains(told), "{}", server.process.tail());
    let output = dir.path().join("out");
    let mut get = start_get("get", dir.path(), &content, &output, &[server.peer], &[]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    assert!(get.stderr().contains(told), "{}", get.tail());
    server.stop();

    let home = Home::new(dir.path(), "home");
    content.copy_to(&home.downloads);
    let mut server = home.run(&[]);
    home.add(&content);
    server.wait_torrents("seeding", 1, START);
    let log = server.process.stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("made safe")).collect();
    assert!(lines.len() == 1 && lines[0].contains("WARN"), "{log}");
    assert!(lines[0].contains("a_[2J.txt"), "{log}");
    server.stop();
}

#[test]
fn links_that_lead_out_are_not_followed() {
    let dir = dir();
    let content = content(dir.path(), "top", &[(&["sub", "file"], 40_000, "")], 2);
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    for link in ["top", "top/sub"] {
        let place = dir.path().join(link.replace('/', "-"));
        let (outside, home) = (place.join("outside"), Home::new(&place, "home"));
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::write(outside.join("canary"), b"alive").unwrap();
        let link = home.downloads.join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&outside, &link).unwrap();
        let before = tree(&outside);

        let (code, _, stderr) = check(&content, &home.downloads, &[]);
        assert_eq!(code, 6, "{stderr}");
        assert!(stderr.contains("cannot read top/sub/file"), "{stderr}");
        let peers = [server.peer];
        let mut get = start_get("get", &place, &content, &home.downloads, &peers, &[]);
        assert_eq!(get.wait(START), 1, "{}", get.tail());
        assert!(get.stderr().contains("it leads out of the save path"), "{}", get.tail());
        let mut run = home.run(&[]);
        home.add(&content);
        run.wait_torrents("error", 1, START);
        let log = run.process.stderr();
        assert!(log.contains("it leads out of the save path"), "{log}");
        run.stop();
        assert!(tree(&outside) == before, "something outside was touched");
    }
    server.stop();
}

#[test]
fn padding_is_never_on_disk() {
    let dir = dir();
    let files: [Entry<'_>; 5] = [
        (&["a"], 10_000, ""),
        (&[".pad", "6384"], PIECE - 10_000, "p"),
        (&["b"], 20_000, ""),
        (&["_____padding_file_0_x"], 2 * PIECE - 20_000, "p"),
        (&["c"], 5, ""),
    ];
    let content = content(dir.path(), "top", &files, 3);
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("out");
    start_get("get", dir.path(), &content, &output, &[server.peer], &[]).wait_ok(TRANSFER);
    content.assert_same_in(&output);
    let names: Vec<_> = tree(&output).into_iter().map(|(path, _)| path).collect();
    let top = output.join("top");
    assert_eq!(names, [top.clone(), top.join("a"), top.join("b"), top.join("c")]);
    server.stop();
}

#[test]
fn torrents_of_nothing_but_empty_files_are_whole_at_once() {
    let dir = dir();
    let folder = dir.path().join("origin/empties");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for name in ["one", "sub/two"] {
        fs::write(folder.join(name), b"").unwrap();
    }
    let single = dir.path().join("origin/nothing");
    fs::write(&single, b"").unwrap();
    for path in [folder, single] {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let torrent = dir.path().join(format!("{name}.torrent"));
        let (code, _, stderr) = end_of(seedring(&["create", "-o"]).arg(&torrent).arg(&path));
        assert_eq!(code, 0, "{stderr}");
        let metainfo = Metainfo::parse(&fs::read(&torrent).unwrap()).unwrap();
        let root = dir.path().join("origin");
        let content = Content { root, name: name.clone(), torrent, metainfo };
        assert_eq!(check(&content, &content.root, &[]).0, 0);
        let output = dir.path().join(format!("out-{name}"));
        fs::create_dir(&output).unwrap();
        assert_eq!(check(&content, &output, &[]).0, 6);
        start_get(&name, dir.path(), &content, &output, &[], &[]).wait_ok(TRANSFER);
        content.assert_same_in(&output);
        Server::seed(dir.path(), &content, "127.0.0.1:0", &[]).stop();
    }
}

#[test]
fn a_path_longer_than_the_system_takes_in_one_piece_is_no_trouble() {
    let dir = dir();
    let (long, last) = ("x".repeat(250), "y".repeat(180));
    let mut path: Vec<&str> = vec![&long; 15];
    path.push(&last);
    let deep = content(dir.path(), "deep", &[(&path, 40_000, "")], 4);
    let server = Server::seed(dir.path(), &deep, "127.0.0.1:0", &[]);
    let output = dir.path().join("z".repeat(200));
    let file = output.join(deep.metainfo.layout.file(0).unwrap().path());
    assert!(file.as_os_str().len() > 4096);
    start_get("get", dir.path(), &deep, &output, &[server.peer], &[]).wait_ok(TRANSFER);
    let (code, _, stderr) = check(&deep, &output, &[]);
    assert_eq!(code, 0, "{stderr}");
    server.stop();
}

#[test]
fn two_names_of_one_file_refuse_the_torrent_and_lose_nothing() {
    let dir = dir();
    let content = content(dir.path(), "top", &[(&["a"], 40_000, ""), (&["A"], 40_000, "")], 6);
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    // As a disk has it on which both names are one file.
    let output = dir.path().join("out");
    fs::create_dir_all(output.join("top")).unwrap();
    fs::copy(content.root.join("top/a"), output.join("top/a")).unwrap();
    fs::hard_link(output.join("top/a"), output.join("top/A")).unwrap();
    let before = tree(&output);
    let mut get = start_get("get", dir.path(), &content, &output, &[server.peer], &[]);
    assert_eq!(get.wait(TRANSFER), 1, "{}", get.tail());
    assert!(get.stderr().contains("it is the same file as"), "{}", get.tail());
    assert!(tree(&output) == before, "something was written");
    server.stop();
}
