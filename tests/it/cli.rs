//! The contract with scripts: exit codes, the ready line, JSON, signals, ports.

use std::process::Command;
use std::time::Duration;

use crate::support::data::{Shape, single};
use crate::support::dir;
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, seedring, start_get};

/// Runs a command to its end; returns exit code, stdout and stderr.
fn end_of(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_why() {
    for words in [
        &["frobnicate"][..],
        &["run", "--no-such-flag"],
        &["run", "--listen", "nonsense"],
        &["run", "--cores", "x"],
        &["get"],
        &["seed", "x.torrent"],
    ] {
        let (code, stdout, stderr) = end_of(&mut seedring(words));
        assert_eq!(code, 2, "{words:?}: {stderr}");
        assert!(stdout.is_empty() && !stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn help_and_version_are_data() {
    for words in [&["--help"][..], &["--version"], &["run", "--help"], &["get", "--help"]] {
        let (code, stdout, stderr) = end_of(&mut seedring(words));
        assert_eq!((code, stderr.as_str()), (0, ""), "{words:?}");
        assert!(stdout.contains("seedring"), "{words:?}: {stdout}");
    }
}

#[test]
fn every_documented_flag_parses() {
    let run = "run --config /nowhere.toml --state s --downloads d --watch a --watch b \
        --listen 127.0.0.1:0 --listen [::1]:0 --http 127.0.0.1:0 --bind 127.0.0.1 --cores 0 --no-dht \
        --no-lsd --no-pex --dht-bootstrap h:1 --dht-bootstrap i:2 --log-level debug";
    let get = "get /nowhere.torrent -o d --seed --peer 127.0.0.1:1 --peer [::1]:2 --listen 127.0.0.1:0 \
        --timeout 5 --overwrite --json --no-dht --no-lsd --no-pex --dht-bootstrap h:1";
    let seed = "seed /nowhere.torrent --data d --listen 127.0.0.1:0 --trust";
    for (line, expected) in [(run, 1), (get, 3), (seed, 3)] {
        let words: Vec<_> = line.split_whitespace().collect();
        let (code, _, stderr) = end_of(&mut seedring(&words));
        assert_eq!(code, expected, "{line}: {stderr}");
        assert!(stderr.contains("/nowhere."), "{line}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "one sentence: {stderr}");
    }
}

#[test]
fn create_and_check_agree_and_tell_complete_from_incomplete() {
    let dir = dir();
    let content = single(dir.path(), "data", 1_000_003, 50, &Shape::pieces_of(32 << 10));
    let torrent = dir.path().join("made.torrent");
    let mut create = seedring(&["create", "--piece-length", "32KiB", "-o"]);
    create.arg(&torrent).arg(content.path());
    let (code, stdout, stderr) = end_of(&mut create);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains(&content.info_hash()) && stdout.contains("magnet:?"), "{stdout}");

    let check = |words: &[&str]| {
        let mut check = seedring(&["check"]);
        check.arg(&torrent).arg("--data").arg(&content.root).args(words);
        end_of(&mut check)
    };
    assert_eq!(check(&[]).0, 0);
    let (code, stdout, _) = check(&["--json"]);
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(report.is_object(), "{stdout}");

    let mut bytes = std::fs::read(content.path()).unwrap();
    bytes[500_000] ^= 1;
    std::fs::write(content.path(), bytes).unwrap();
    let (code, _, stderr) = check(&[]);
    assert_eq!(code, 6, "{stderr}");
    assert_eq!(check(&["--json"]).0, 6);
}

#[test]
fn doctor_says_what_there_is() {
    let (code, stdout, stderr) = end_of(&mut seedring(&["doctor"]));
    assert!(code == 0 || code == 1, "{code}: {stderr}");
    assert!(stdout.contains("io_uring"), "{stdout}");
}

#[test]
fn seeding_incomplete_data_ends_with_6_and_trust_does_not_check() {
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 51, &Shape::pieces_of(32 << 10));
    let mut bytes = std::fs::read(content.path()).unwrap();
    bytes[0] ^= 1;
    std::fs::write(content.path(), bytes).unwrap();
    let mut seed = seedring(&["seed", "--listen", "127.0.0.1:0"]);
    seed.arg(&content.torrent).arg("--data").arg(&content.root);
    let (code, stdout, stderr) = end_of(&mut seed);
    assert_eq!((code, stdout.as_str()), (6, ""), "{stderr}");
    Server::seed(dir.path(), &content, "127.0.0.1:0", &["--trust"]).stop();
}

#[test]
fn get_gives_up_without_progress() {
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 52, &Shape::pieces_of(32 << 10));
    let mut get = seedring(&["get", "--timeout", "1", "--listen", "127.0.0.1:0", "-o"]);
    get.arg(dir.path().join("out")).arg(&content.torrent);
    let (code, _, stderr) = end_of(&mut get);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("progress"), "{stderr}");
}

#[test]
fn get_ends_by_signal_with_the_code_of_the_signal() {
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 53, &Shape::pieces_of(32 << 10));
    for (signal, expected) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let output = dir.path().join(format!("out-{signal}"));
        let mut get = start_get("get", dir.path(), &content, &output, &[], &[]);
        // Signals are taken before anything is created on disk.
        get.wait_for("file", START, || output.join("data").exists().then_some(()));
        get.signal(signal);
        assert_eq!(get.wait(Duration::from_secs(10)), expected, "{}", get.tail());
    }
}

#[test]
fn get_resumes_reports_in_json_and_goes_on_to_seed() {
    let dir = dir();
    let content = single(dir.path(), "data", 4 << 20, 54, &Shape::pieces_of(64 << 10));
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("out");
    std::fs::create_dir(&output).unwrap();
    let mut bytes = std::fs::read(content.path()).unwrap();
    bytes[1 << 20..].fill(0);
    std::fs::write(output.join("data"), bytes).unwrap();
    let peers = [server.peer];
    let mut get = start_get("get", dir.path(), &content, &output, &peers, &["--json"]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    let report: serde_json::Value = serde_json::from_str(&get.stdout()).unwrap();
    assert_eq!(report["info_hash"], content.info_hash().as_str());
    assert_eq!(report["complete"], true);
    let downloaded = report["downloaded_bytes"].as_u64().unwrap();
    assert!((3 << 20..(3 << 20) + (256 << 10)).contains(&downloaded), "fetched {downloaded} again");
    server.stop();

    // What is complete needs nobody, and is seeded on.
    let mut get = start_get("again", dir.path(), &content, &output, &[], &["--seed"]);
    let line = get.wait_for("ready line", START, || get_line(&dir.path().join("again.err")));
    let (peer, _) = crate::support::server::addresses(&line).unwrap();
    crate::support::server::fetch_from(dir.path(), &content, peer);
    get.signal(libc::SIGTERM);
    assert_eq!(get.wait(Duration::from_secs(10)), 143, "{}", get.tail());

    // It serves what it has while the rest is missing, and says so; a signal ends it all the same.
    let output = dir.path().join("part");
    std::fs::create_dir(&output).unwrap();
    let mut bytes = std::fs::read(content.path()).unwrap();
    bytes[1 << 20..].fill(0);
    std::fs::write(output.join("data"), bytes).unwrap();
    let mut get = start_get("part", dir.path(), &content, &output, &[], &["--seed"]);
    let line = get.wait_for("ready line", START, || get_line(&dir.path().join("part.err")));
    let (peer, _) = crate::support::server::addresses(&line).unwrap();
    let mut leech = crate::support::wire::RawPeer::handshaken(peer, &content.metainfo, 5);
    leech.become_unchoked();
    leech.request(crate::support::wire::block(&content.metainfo, 3, 0));
    let is_block = |event: &_| matches!(event, crate::support::wire::Event::Block(..));
    leech.expect("a block", is_block);
    get.signal(libc::SIGINT);
    assert_eq!(get.wait(Duration::from_secs(10)), 130, "{}", get.tail());
    assert_eq!(get.stderr().matches("ready peer=").count(), 1, "{}", get.tail());
}

fn get_line(path: &std::path::Path) -> Option<String> {
    let text = std::fs::read_to_string(path).unwrap();
    crate::support::process::line_of(&text, "ready ")
}

#[test]
fn get_overwrites_a_file_of_another_size_only_when_told() {
    let dir = dir();
    let content = single(dir.path(), "data", 300_000, 55, &Shape::pieces_of(32 << 10));
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("out");
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("data"), b"somebody's letter").unwrap();
    let peers = [server.peer];
    let mut get = start_get("get", dir.path(), &content, &output, &peers, &[]);
    assert_eq!(get.wait(START), 1);
    assert!(get.stderr().contains("--overwrite"), "{}", get.stderr());
    assert_eq!(std::fs::read(output.join("data")).unwrap(), b"somebody's letter");
    let mut get = start_get("get", dir.path(), &content, &output, &peers, &["--overwrite"]);
    get.wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
}

#[test]
fn a_second_process_on_the_same_port_ends_with_1_and_names_it() {
    let dir = dir();
    let first = Home::new(dir.path(), "first").run(&[]);
    let listen = first.peer.to_string();
    let second = Home::new(dir.path(), "second");
    let mut process = second.start(&listen, &[]);
    assert_eq!(process.wait(START), 1, "{}", process.tail());
    assert!(process.stderr().contains(&first.peer.port().to_string()), "{}", process.stderr());
    assert_eq!(process.stdout(), "");
    first.stop();
}

#[test]
fn two_processes_on_one_state_directory_do_not_meet() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let first = home.run(&[]);
    let mut command = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-", "--state"]);
    command.arg(&home.state);
    let mut second = Process::start("second", dir.path(), &mut command);
    assert_eq!(second.wait(START), 1, "{}", second.tail());
    first.stop();
}

#[test]
fn a_server_is_alive_ready_and_counts() {
    let dir = dir();
    let mut server = Home::new(dir.path(), "home").run(&["--cores", "0"]);
    assert_eq!(server.get("/healthz/live").0, 200);
    let http = server.http.unwrap();
    server.process.wait_for("readiness", START, || {
        (crate::support::server::http_get(http, "/healthz/ready").0 == 200).then_some(())
    });
    assert!(server.metric("seedring_torrents", &["state=\"seeding\""]) == 0.0);
    assert_eq!(server.get("/no/such/thing").0, 404);
    let ready: Vec<_> = server.process.stdout().lines().map(str::to_owned).collect();
    assert_eq!(ready, [format!("ready peer={} http={http}", server.peer)], "stdout is data");
    server.stop();
}

#[test]
fn an_idle_server_ends_at_either_signal() {
    let dir = dir();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut server = Home::new(dir.path(), &format!("home{signal}")).run(&[]);
        server.process.signal(signal);
        server.process.wait_ok(Duration::from_secs(10));
    }
}

#[test]
fn what_finds_no_memory_for_a_piece_is_fetched_all_the_same() {
    let dir = dir();
    let dir = dir.path();
    let content = single(dir, "large", 9_000_001, 56, &Shape::pieces_of(2 << 20));
    let seed = Server::seed(dir, &content, "127.0.0.1:0", &[]);
    let output = dir.join("fetched");
    std::fs::create_dir(&output).unwrap();
    let peer = seed.peer.to_string();
    let mut get = seedring(&["get", "--timeout", "60", "--listen", "127.0.0.1:0", "--peer", &peer]);
    get.arg(&content.torrent).arg("-o").arg(&output);
    get.env("SEEDRING__ENGINE__PIECE_MEMORY", "1MiB");
    Process::start("get", dir, &mut get).wait_ok(TRANSFER);
    content.assert_same_in(&output);
    seed.stop();
}
