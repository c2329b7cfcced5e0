//! What is refused before anything begins: one sentence that names the value and the way out, and
//! the exit code of a wrong command line or configuration.

use std::path::Path;
use std::time::Duration;

use crate::cli::{end_of, sentence_of};
use crate::support::data::{Shape, single};
use crate::support::dir;
use crate::support::process::{Process, run as run_to_end};
use crate::support::server::{Home, START, Server, seedring};

/// `seedring run` without HTTP, all below `dir`, and more words.
fn run(dir: &Path, words: &[&str]) -> std::process::Command {
    let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-"]);
    run.args(words).current_dir(dir).env("HOME", dir).env_remove("XDG_STATE_HOME");
    run
}

#[test]
fn create_refuses_what_no_torrent_can_have_before_it_hashes() {
    let dir = dir();
    std::fs::write(dir.path().join("data"), [1; 1000]).unwrap();
    let create = |words: &[&str]| {
        let mut create = seedring(&["create", "data"]);
        create.args(words).current_dir(dir.path());
        create
    };
    for (words, code, part) in [
        (&["-o", "x", "--piece-length", "3"][..], 2, "a piece length of 3 bytes is not a power"),
        (&["-o", "x", "--piece-length", "8GiB"], 2, "a piece length of 8589934592 bytes is not"),
        (&["-o", "x", "--tracker", "ftp://x/"], 2, "its scheme is not http, https or udp"),
        (&["-o", "nowhere/x"], 3, "the folder nowhere does not exist"),
        (&["-o", "nowhere/"], 3, "the folder nowhere/ does not exist"),
        (&["-o", "data/"], 2, "data/ is not a folder"),
        (&["-o", "data/x"], 2, "data is not a folder"),
        (&["-o", "data/x/y"], 1, "cannot use the folder data/x: "),
    ] {
        let sentence = sentence_of(&mut create(words), code);
        assert!(sentence.contains(part), "{words:?}: {sentence}");
    }
    let (code, _, stderr) = end_of(&mut create(&["-o", "x", "--tracker", "nonsense"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("'nonsense' for '--tracker <URL>': a URL is expected"), "{stderr}");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn create_into_a_folder_calls_the_torrent_after_what_is_shared() {
    let dir = dir();
    std::fs::create_dir_all(dir.path().join("album.torrent")).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    std::fs::write(dir.path().join("album.torrent/song"), [1; 1000]).unwrap();
    let create = |from: &str, words: &[&str]| {
        let mut create = seedring(&["create"]);
        create.args(words).current_dir(dir.path().join(from));
        end_of(&mut create)
    };
    assert_eq!(create("", &["album.torrent", "-o", "out"]).0, 0);
    assert!(dir.path().join("out/album.torrent.torrent").is_file());
    let (code, _, stderr) = create("album.torrent", &[".", "-o", "../out"]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("../out/album.torrent.torrent is there already"), "{stderr}");
    assert_eq!(create("album.torrent", &[".", "-o", "../out", "--force"]).0, 0);
}

#[test]
fn an_empty_torrent_is_said_to_be_empty() {
    let dir = dir();
    std::fs::write(dir.path().join("empty.torrent"), b"").unwrap();
    for words in [&["get", "empty.torrent"][..], &["check", "empty.torrent", "--data", "."]] {
        let sentence = sentence_of(seedring(words).current_dir(dir.path()), 1);
        assert_eq!(sentence, "seedring: empty.torrent: the file is empty\n");
    }
}

#[test]
fn a_setting_that_nothing_can_come_of_ends_with_2_and_leaves_nothing() {
    let dir = dir();
    std::fs::write(dir.path().join("file"), b"x").unwrap();
    for (words, parts) in [
        (&["--state", "file"][..], ["the state directory file is not a folder", "--state DIR"]),
        (&["--state", "file/x"], ["the state directory file/x is not a folder", "--state DIR"]),
        (&["--state", "/proc/x"], ["cannot use the state directory /proc/x: ", "--state DIR"]),
        (
            &["--bind", "nosuch0"],
            ["connections cannot leave from nosuch0: No such device", "--bind"],
        ),
        (&["--bind", "192.0.2.77"], ["connections cannot leave from 192.0.2.77: ", "--bind"]),
        (&["--cores", "8000"], ["core 8000 cannot be used", "this process may run on "]),
    ] {
        let sentence = sentence_of(&mut run(dir.path(), words), 2);
        assert!(parts.iter().all(|part| sentence.contains(part)), "{words:?}: {sentence}");
    }
    let sentence = sentence_of(run(dir.path(), &[]).env("SEEDRING__ENGINE__CHOKER", "x"), 2);
    let named = "SEEDRING__ENGINE__CHOKER is wrong: \"x\" is not one of the chokers for seeding: ";
    assert!(sentence.contains(named) && sentence.contains("round_robin, "), "{sentence}");
    for made in ["downloads", ".local"] {
        assert!(!dir.path().join(made).exists(), "{made} was made in vain");
    }
}

#[test]
fn get_judges_its_settings_before_it_fetches_and_all_else_before_it_overwrites() {
    let dir = dir();
    let content = single(dir.path(), "data", 300_000, 56, &Shape::pieces_of(32 << 10));
    let (output, torrent) = (dir.path().join("out"), content.torrent.to_str().unwrap());
    std::fs::create_dir(&output).unwrap();
    let other = vec![7; 400_000];
    std::fs::write(output.join("data"), &other).unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let overwrite = |words: &[&str]| {
        let mut get = seedring(&["get", "--overwrite", "-o"]);
        get.arg(&output).args(words);
        get
    };
    let listening = ["--listen", &busy, torrent];
    assert_eq!(end_of(&mut overwrite(&listening)).0, 1);
    // Nobody answers there: it would end with 5.
    let url = "http://127.0.0.1:1/x.torrent";
    let sentence = sentence_of(overwrite(&[url]).env("SEEDRING__NET__BIND", "nosuch0"), 2);
    assert!(sentence.contains("connections cannot leave from nosuch0"), "{sentence}");
    assert!(std::fs::read(output.join("data")).unwrap() == other, "it was cut in vain");
}

#[test]
fn a_torrent_that_never_comes_does_not_hold_the_end_up() {
    let dir = dir();
    let pipe = dir.path().join("pipe");
    run_to_end(std::process::Command::new("mkfifo").arg(&pipe));
    let mut get = seedring(&["get", "-o"]);
    let mut get = Process::start("get", dir.path(), get.arg(dir.path().join("out")).arg(&pipe));
    // Until it takes the signal itself, the system ends it.
    let status = format!("/proc/{}/status", get.id());
    get.wait_for("hold of SIGINT", START, || {
        let text = std::fs::read_to_string(&status).ok()?;
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim();
        let caught = u64::from_str_radix(caught, 16).unwrap();
        (caught & (1 << (libc::SIGINT - 1)) != 0).then_some(())
    });
    get.signal(libc::SIGINT);
    assert_eq!(get.wait(Duration::from_secs(10)), 130, "{}", get.tail());
}

#[test]
fn a_state_that_is_in_use_is_named_with_its_flag_and_nothing_else_is_made() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let first = home.run(&[]);
    let state = home.state.to_str().unwrap();
    let sentence = sentence_of(&mut run(dir.path(), &["--state", state]), 1);
    assert!(sentence.contains(state) && sentence.contains("--state DIR"), "{sentence}");
    assert!(!dir.path().join("downloads").exists(), "a folder was made in vain");
    first.stop();
    let mut second = run(dir.path(), &["--state", state]);
    Server::wait_ready(Process::start("second", dir.path(), &mut second)).stop();
    assert!(dir.path().join("downloads").is_dir());
}

#[test]
fn a_watch_folder_that_is_missing_is_waited_for_and_both_are_said() {
    let dir = dir();
    let watch = dir.path().join("not/yet");
    let mut run = run(dir.path(), &["--state", "s", "--watch", "not/yet"]);
    let mut server = Server::wait_ready(Process::start("run", dir.path(), &mut run));
    let mut told = |text: &str| {
        let out = dir.path().join("run.err");
        let has = || std::fs::read_to_string(&out).unwrap().contains(text);
        server.process.wait_for(text, START, || has().then_some(()));
    };
    told("is not there: its files are taken as soon as it is made or mounted");
    std::fs::create_dir_all(&watch).unwrap();
    std::fs::write(watch.join("x.torrent"), b"nonsense").unwrap();
    told("the watch folder is there now");
    server
        .process
        .wait_for("verdict", START, || watch.join("x.torrent.rejected").exists().then_some(()));
    server.stop();
}
