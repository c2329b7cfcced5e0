//! Watch folders: a torrent is taken within five seconds however it arrives.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::support::data::{Content, Shape, single};
use crate::support::server::{Home, Server};
use crate::support::{dir, wait};

/// How soon a file has to be taken.
const TAKEN: Duration = Duration::from_secs(5);

fn content(dir: &Path, home: &Home, name: &str, seed: u64) -> Content {
    let content = single(dir, name, 100_000, seed, &Shape::pieces_of(16 << 10));
    content.copy_to(&home.downloads);
    content
}

/// Waits for the answer beside a torrent in the watch folder.
fn wait_answer(server: &mut Server, home: &Home, name: &str, answer: &str) {
    let path = home.watch.join(format!("{name}.{answer}"));
    server.process.wait_for(&format!("{name}.{answer}"), TAKEN, || path.exists().then_some(()));
    assert!(!home.watch.join(name).exists(), "{name} was left");
}

#[test]
fn a_torrent_is_taken_however_it_arrives() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let there = content(dir.path(), &home, "there", 60);
    fs::copy(&there.torrent, home.watch.join("there.torrent")).unwrap();
    let mut server = home.run(&[]);
    wait_answer(&mut server, &home, "there.torrent", "added");

    let renamed = content(dir.path(), &home, "renamed", 61);
    home.add(&renamed);
    wait_answer(&mut server, &home, "renamed.torrent", "added");

    let linked = content(dir.path(), &home, "linked", 62);
    fs::hard_link(&linked.torrent, home.watch.join("linked.torrent")).unwrap();
    wait_answer(&mut server, &home, "linked.torrent", "added");

    // Written in two parts, with other things happening between.
    let written = content(dir.path(), &home, "written", 63);
    let bytes = fs::read(&written.torrent).unwrap();
    let mut file = fs::File::create(home.watch.join("written.torrent")).unwrap();
    file.write_all(&bytes[..bytes.len() / 2]).unwrap();
    let other = content(dir.path(), &home, "other", 64);
    home.add(&other);
    wait_answer(&mut server, &home, "other.torrent", "added");
    file.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(file);
    wait_answer(&mut server, &home, "written.torrent", "added");

    // All of their data lay in DOWNLOADS and was verified.
    server.wait_torrents("seeding", 5, Duration::from_secs(20));
    // The same torrent again is no failure.
    fs::copy(&other.torrent, home.watch.join("again.torrent")).unwrap();
    wait_answer(&mut server, &home, "again.torrent", "added");
    let log = server.process.stderr();
    let line = log.lines().find(|line| line.contains("again.torrent"));
    let line = line.unwrap_or_else(|| panic!("not a word of the second one: {log}"));
    assert!(line.contains("INFO") && line.contains(&other.info_hash()), "{line}");
    server.wait_torrents("seeding", 5, Duration::from_secs(20));
    server.stop();
}

#[test]
fn a_hostile_torrent_is_refused_with_one_sentence() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let mut server = home.run(&[]);
    let info = |name: &str| {
        format!(
            "d4:infod6:lengthi4e4:name{}:{name}12:piece lengthi16384e6:pieces20:{}ee",
            name.len(),
            "x".repeat(20)
        )
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"this is no torrent at all".to_vec()),
        ("empty", Vec::new()),
        ("nested", vec![b'l'; 200_000]),
        ("dotdot", info("..").into_bytes()),
        ("slash", info("../../etc/passwd").into_bytes()),
        ("absolute", info("/etc/passwd").into_bytes()),
        ("zero-piece-length", info("x").replace("i16384e", "i0e").into_bytes()),
        ("negative", info("x").replace("i4e", "i-4e").into_bytes()),
        ("huge", info("x").replace("i4e", "i9223372036854775807e").into_bytes()),
        ("huge-string", b"d4:info99999999999999999999:x".to_vec()),
        ("trailing", [info("x").into_bytes(), b"more".to_vec()].concat()),
    ];
    for (name, bytes) in &cases {
        let hidden = home.dir.join(name);
        fs::write(&hidden, bytes).unwrap();
        fs::rename(hidden, home.watch.join(format!("{name}.torrent"))).unwrap();
    }
    for (name, _) in &cases {
        let file = format!("{name}.torrent");
        let answered = |answer: &str| home.watch.join(format!("{file}.{answer}"));
        server.process.wait_for(&format!("an answer to {file}"), TAKEN * 2, || {
            (answered("rejected").exists() && answered("rejected.txt").exists()
                || answered("added").exists())
            .then_some(())
        });
        assert!(!answered("added").exists(), "{file} was taken");
        let sentence = fs::read_to_string(answered("rejected.txt")).unwrap();
        assert_eq!(sentence.trim_end().lines().count(), 1, "{file}: {sentence:?}");
        assert!((10..500).contains(&sentence.len()), "{file}: {sentence:?}");
    }
    // It goes on.
    let good = content(dir.path(), &home, "good", 65);
    home.add(&good);
    wait_answer(&mut server, &home, "good.torrent", "added");
    server.wait_torrents("seeding", 1, Duration::from_secs(20));
    let rejected = server.metric("seedring_watch_files_total", &["result=\"rejected\""]);
    assert_eq!(rejected, cases.len() as f64);
    server.stop();
}

#[test]
fn a_half_written_torrent_is_waited_for() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let slow = content(dir.path(), &home, "slow", 66);
    let mut server = home.run(&[]);
    let bytes = fs::read(&slow.torrent).unwrap();
    let path = home.watch.join("slow.torrent");
    let mut file = fs::File::create(&path).unwrap();
    for part in bytes.chunks(bytes.len() / 8 + 1) {
        file.write_all(part).unwrap();
        assert!(path.exists(), "answered before it was whole");
        wait::pause();
    }
    drop(file);
    wait_answer(&mut server, &home, "slow.torrent", "added");
    server.stop();
}

#[test]
fn an_upload_that_pauses_is_waited_for() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let slow = content(dir.path(), &home, "slow", 66);
    let mut server = home.run(&[]);
    let bytes = fs::read(&slow.torrent).unwrap();
    let mut file = fs::File::create(home.watch.join("slow.torrent")).unwrap();
    file.write_all(&bytes[..bytes.len() / 2]).unwrap();
    // One that is wrong and came later has had its answer.
    fs::write(home.watch.join("wrong.torrent"), b"d4:infox").unwrap();
    wait_answer(&mut server, &home, "wrong.torrent", "rejected");
    file.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(file);
    wait_answer(&mut server, &home, "slow.torrent", "added");
    server.stop();
}

#[test]
fn only_files_of_the_folder_itself_are_taken() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let one = content(dir.path(), &home, "one", 67);
    fs::create_dir(home.watch.join("folder.torrent")).unwrap();
    fs::copy(&one.torrent, home.watch.join("folder.torrent/inside.torrent")).unwrap();
    std::os::unix::fs::symlink(&one.torrent, home.watch.join("link.torrent")).unwrap();
    let mut server = home.run(&[]);
    wait_answer(&mut server, &home, "link.torrent", "rejected");
    assert!(one.torrent.exists());
    assert!(home.watch.join("folder.torrent/inside.torrent").exists());
    server.wait_torrents("seeding", 0, TAKEN);
    server.stop();
}

#[test]
fn a_watch_folder_that_becomes_a_file_is_said_once() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let other = home.dir.join("other");
    fs::create_dir(&other).unwrap();
    let mut server = home.run(&["--watch", &other.to_string_lossy()]);
    fs::remove_dir(&other).unwrap();
    fs::write(&other, b"no folder").unwrap();
    let told =
        |server: &Server| server.process.stderr().matches("the watch folder is not there").count();
    wait::until("a warning", TAKEN, || (told(&server) > 0).then_some(()));
    // Each torrent makes it look at all of its folders again.
    for (name, seed) in [("one", 67), ("two", 68), ("three", 69)] {
        home.add(&content(dir.path(), &home, name, seed));
        wait_answer(&mut server, &home, &format!("{name}.torrent"), "added");
    }
    assert_eq!(told(&server), 1, "{}", server.process.tail());
    server.stop();
}

#[test]
fn what_is_logged_names_the_torrent_and_trackers_that_fail() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let plain = content(dir.path(), &home, "a plain one", 68);
    let other = content(dir.path(), &home, "other", 69);
    let other = other.with_tracker(&home.dir, "http://127.0.0.1:1/announce?key=secret");
    let server = home.run(&[]);
    home.add(&plain);
    fs::copy(&other.torrent, home.watch.join("other.torrent")).unwrap();
    let has = |parts: &[&str]| {
        let log = server.process.stderr();
        log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
    };
    let hash = format!("torrent={}", plain.info_hash());
    let named = [hash.as_str(), "name=\"a plain one\""];
    for text in [" added ", " checked ", " it names no trackers"] {
        wait::until(text, TAKEN, || has(&[&named[..], &[text]].concat()));
    }
    let hash = format!("torrent={}", other.info_hash());
    let told = ["WARN", "an announce failed", &hash, "tracker=http://127.0.0.1:1", "no connection"];
    wait::until("the failure", TAKEN, || has(&told));
    assert!(!server.process.stderr().contains("secret"), "{}", server.process.tail());
    let count = server.process.stderr().matches("it names no trackers").count();
    assert_eq!(count, 1, "once for each torrent");
    server.stop();
}
