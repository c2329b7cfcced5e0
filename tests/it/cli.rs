//! The contract with scripts: exit codes, the ready line, JSON, signals, ports.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::support::data::{Shape, single};
use crate::support::process::Process;
use crate::support::server::{Home, START, Server, TRANSFER, seedring, start_get, start_get_of};
use crate::support::tracker::Listener;
use crate::support::wire::{RawPeer, connect_from, handshake};
use crate::support::{dir, free_addr, network, wait};

/// Runs a command to its end; returns exit code, stdout and stderr.
pub(crate) fn end_of(command: &mut Command) -> (i32, String, String) {
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
        &["get", "x.torrent", "--peer", "nonsense"],
        &["seed", "x.torrent"],
    ] {
        let (code, stdout, stderr) = end_of(&mut seedring(words));
        assert_eq!(code, 2, "{words:?}: {stderr}");
        assert!(stdout.is_empty() && !stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn a_peer_at_a_cloud_metadata_address_is_refused() {
    for peer in ["169.254.169.254:80", "[fd00:ec2::254]:80", "[::ffff:169.254.169.254]:80"] {
        let (code, _, stderr) = end_of(&mut seedring(&["get", "x.torrent", "--peer", peer]));
        assert_eq!(code, 2, "{peer}: {stderr}");
        let sentence = format!("{peer}' for '--peer <ADDR:PORT>': it is the address of a cloud");
        assert!(stderr.contains(&sentence), "{stderr}");
    }
}

#[test]
fn a_torrent_at_a_cloud_metadata_address_is_refused_also_behind_a_redirect() {
    let url = "http://169.254.169.254/latest";
    assert!(sentence_of(&mut seedring(&["get", url]), 2).contains("cloud metadata"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = format!("http://{}/x.torrent", listener.local_addr().unwrap());
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The request is one small packet; what it says does not matter.
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let head = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: ";
        stream.write_all(format!("{head}{url}\r\n\r\n").as_bytes()).unwrap();
    });
    let mut get = seedring(&["get", &from]);
    // A proxy of the environment is not asked: nobody answers there.
    let sentence = sentence_of(get.env("http_proxy", "http://127.0.0.1:1"), 2);
    assert!(sentence.contains("it redirects to an address that is refused"), "{sentence}");
    assert!(sentence.contains("cloud metadata"), "{sentence}");
    answer.join().unwrap();
}

#[test]
fn get_says_what_is_wrong_with_its_folder_or_its_peer() {
    let dir = dir();
    let content = single(dir.path(), "data", 100_000, 60, &Shape::pieces_of(32 << 10));
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    let get = |output: &std::path::Path, words: &[&str]| {
        let mut get = seedring(&["get", "--listen", "127.0.0.1:0", "-o"]);
        get.arg(output).arg(&content.torrent).args(words);
        get
    };
    assert!(sentence_of(&mut get(&file, &[]), 2).contains("/file is not a folder"));
    assert!(sentence_of(&mut get(&file.join("x"), &[]), 2).contains("/file is a file"));
    let sentence = sentence_of(&mut get("/proc/x".as_ref(), &[]), 1);
    assert!(sentence.contains("cannot make the folder /proc/x: "), "{sentence}");
    let fresh = dir.path().join("fresh");
    let sentence = sentence_of(&mut get(&fresh, &["--peer", "nowhere.invalid:1"]), 5);
    assert!(sentence.contains("cannot look up the host of --peer nowhere.invalid:1"), "{sentence}");
    assert!(!fresh.exists(), "nothing is made before all is well");
}

#[test]
fn a_peer_may_be_named_by_its_host() {
    let dir = dir();
    let content = single(dir.path(), "data", 300_000, 61, &Shape::pieces_of(32 << 10));
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let output = dir.path().join("out");
    let peer = format!("localhost:{}", server.peer.port());
    start_get("get", dir.path(), &content, &output, &[], &["--peer", &peer]).wait_ok(TRANSFER);
    content.assert_same_in(&output);
    server.stop();
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
    for (line, expected) in [(run, 3), (get, 3), (seed, 3)] {
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
    assert!(stderr.contains(" in 1 file, 31 pieces of "), "{stderr}");

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
    let mut leech = RawPeer::handshaken(peer, &content.metainfo, 5);
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

/// Runs a command that has to end with one sentence on stderr, which is returned, and `code`.
pub(crate) fn sentence_of(command: &mut Command, code: i32) -> String {
    let (ended, stdout, stderr) = end_of(command);
    assert_eq!((ended, stdout.as_str()), (code, ""), "{command:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{command:?}: {stderr}");
    stderr
}

#[test]
fn create_says_that_a_private_torrent_without_a_tracker_finds_nobody() {
    let dir = dir();
    let data = dir.path().join("data");
    std::fs::write(&data, [1; 1000]).unwrap();
    for (words, warns) in [
        (&["--private"][..], true),
        (&["--private", "--tracker", "http://tracker.example/announce"][..], false),
        (&[][..], false),
    ] {
        let mut create = seedring(&["create", "--force"]);
        create.arg(&data).arg("-o").arg(dir.path().join("made.torrent")).args(words);
        let (code, _, stderr) = end_of(&mut create);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(stderr.contains("finds nobody"), warns, "{words:?}: {stderr}");
    }
}

#[test]
fn create_replaces_a_torrent_only_when_told() {
    let dir = dir();
    let (data, torrent) = (dir.path().join("data"), dir.path().join("precious.torrent"));
    std::fs::write(&data, [1; 1000]).unwrap();
    std::fs::write(&torrent, b"precious").unwrap();
    let create = |words: &[&str]| {
        let mut create = seedring(&["create"]);
        create.arg(&data).arg("-o").arg(&torrent).args(words);
        create
    };
    let sentence = sentence_of(&mut create(&[]), 1);
    assert!(sentence.contains("precious.torrent") && sentence.contains("--force"), "{sentence}");
    assert_eq!(std::fs::read(&torrent).unwrap(), b"precious");
    let (code, _, stderr) = end_of(&mut create(&["--force"]));
    assert_eq!(code, 0, "{stderr}");
    assert_ne!(std::fs::read(&torrent).unwrap(), b"precious");
}

#[test]
fn data_that_is_looked_for_in_the_wrong_folder_is_named() {
    let dir = dir();
    let content = single(dir.path(), "data", 100_000, 57, &Shape::pieces_of(32 << 10));
    let wrong = dir.path().join("wrong");
    std::fs::create_dir(&wrong).unwrap();
    for (command, is_silent) in [("seed", true), ("check", false)] {
        let of = |data: &std::path::Path| {
            let mut words = seedring(&[command]);
            words.arg(&content.torrent).arg("--data").arg(data);
            words
        };
        let (code, stdout, stderr) = end_of(&mut of(&wrong));
        assert_eq!((code, stdout.is_empty()), (6, is_silent), "{stderr}");
        assert!(stdout.lines().all(|line| line.starts_with("incomplete data: 0 of 4")), "{stdout}");
        assert!(stderr.contains("/wrong/data is not there"), "{stderr}");
        assert!(stderr.contains("--data must be the folder that holds data"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let sentence = sentence_of(&mut of(&dir.path().join("nowhere")), 3);
        assert!(sentence.contains("/nowhere does not exist"), "{sentence}");
        // The data itself was named instead of the folder that holds it.
        let sentence = sentence_of(&mut of(&content.path()), 2);
        let right = format!("here that is --data {}\n", content.root.display());
        assert!(sentence.ends_with(&right), "{sentence}");
    }
}

#[test]
fn a_magnet_link_that_is_wrong_or_in_the_wrong_place_gets_one_sentence() {
    for command in ["get", "check", "seed"] {
        let mut words = seedring(&[command, "magnet:?xt=urn:btih:0"]);
        if command != "get" {
            words.args(["--data", "."]);
        }
        let sentence = sentence_of(&mut words, 2);
        let why = if command == "get" { "is not an info-hash" } else { "give the .torrent file" };
        assert!(sentence.contains(why), "{sentence}");
    }
}

#[test]
fn a_configuration_that_is_not_there_ends_with_3_and_a_wrong_one_with_2() {
    let dir = dir();
    let config = dir.path().join("seedring.toml");
    let run = || {
        let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-", "--config"]);
        run.arg(&config).env("HOME", dir.path());
        run
    };
    assert!(sentence_of(&mut run(), 3).contains("seedring.toml"));
    std::fs::write(&config, "[net]\nnonsense = 1\n").unwrap();
    let (code, _, stderr) = end_of(&mut run());
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("nonsense"), "{stderr}");
    std::fs::write(&config, "").unwrap();
    let sentence = sentence_of(run().env("SEEDRING__LIMITS_UP", "1MiB"), 2);
    assert!(sentence.contains("it is SEEDRING__LIMITS__UP"), "{sentence}");
    let sentence = sentence_of(run().env("SEEDRING__NET__NONSENSE", "1"), 2);
    assert!(sentence.contains("SEEDRING__NET__NONSENSE"), "{sentence}");
}

#[test]
fn without_a_home_the_state_has_to_be_named() {
    let dir = dir();
    let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-"]);
    run.current_dir(dir.path()).env_remove("XDG_STATE_HOME").env_remove("HOME");
    let sentence = sentence_of(&mut run, 2);
    assert!(sentence.contains("--state"), "{sentence}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // Either variable is enough, if it is absolute; the first one counts.
    run.env("XDG_STATE_HOME", "relative");
    sentence_of(&mut run, 2);
    let home = dir.path().join("home");
    run.env("HOME", &home);
    Server::wait_ready(Process::start("home", dir.path(), &mut run)).stop();
    assert!(home.join(".local/state/seedring/torrents").is_dir());
    run.env("XDG_STATE_HOME", dir.path().join("xdg"));
    Server::wait_ready(Process::start("xdg", dir.path(), &mut run)).stop();
    assert!(dir.path().join("xdg/seedring/torrents").is_dir());
}

#[test]
fn a_variable_that_was_meant_as_a_setting_is_told() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let mut command = home.command("127.0.0.1:0", &[]);
    command.env("SEEDRING_LIMITS_UP", "1234567").env("SEEDRING_VENV", "x");
    let server = Server::wait_ready(Process::start("run", dir.path(), &mut command));
    let log = server.process.stderr();
    let told: Vec<_> = log.lines().filter(|line| line.contains("names no setting")).collect();
    assert!(told.len() == 1 && told[0].contains("WARN"), "{log}");
    assert!(told[0].contains("SEEDRING_LIMITS_UP") && !told[0].contains("1234567"), "{log}");
    assert!(told[0].contains("it is SEEDRING__LIMITS__UP"), "{log}");
    server.stop();
}

#[test]
fn a_folder_that_cannot_be_one_is_refused_at_start() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let file = dir.path().join("file");
    std::fs::write(&file, b"x").unwrap();
    for flag in ["--downloads", "--watch"] {
        let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-", "--state"]);
        run.arg(&home.state).arg(flag).arg(&file).current_dir(dir.path());
        let sentence = sentence_of(&mut run, 2);
        let named = sentence.contains(&*file.to_string_lossy()) && sentence.contains(flag);
        assert!(named, "{sentence}");
    }
    // What is missing is made.
    let fresh = dir.path().join("deep/down");
    let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", "-", "--state"]);
    run.arg(&home.state).arg("--downloads").arg(&fresh);
    Server::wait_ready(Process::start("run", dir.path(), &mut run)).stop();
    assert!(fresh.is_dir());
}

#[test]
fn an_http_port_in_use_is_named_and_how_to_take_another() {
    let dir = dir();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut run = seedring(&["run", "--listen", "127.0.0.1:0", "--http", &addr, "--state"]);
    run.arg(dir.path().join("state")).arg("--downloads").arg(dir.path());
    let sentence = sentence_of(&mut run, 1);
    assert!(sentence.contains(&addr) && sentence.contains("--http"), "{sentence}");
}

/// How soon `get` gives up after eight seconds without anybody, on a loaded machine.
const LONELY: Duration = Duration::from_secs(30);

#[test]
fn get_without_peers_says_what_was_tried() {
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 58, &Shape::pieces_of(32 << 10));
    let folder = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    // Nobody is at the first; the second one names a peer in a network that is not ours.
    let gone = free_addr("127.0.0.1");
    let url = format!("http://{gone}/announce?k=s3cret");
    let dead = content.with_tracker(&folder("dead-torrent"), &url);
    let tracker = Listener::naming(b"\x0a\x00\x00\x01\x1a\xe1");
    let far = content.with_tracker(&folder("far-torrent"), &tracker.url());
    let host = format!("tracker http://{gone}/…: no connection to the tracker");
    let given = format!("--peer {gone}: not connected");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent_at = silent.local_addr().unwrap();
    let url = format!("udp://{silent_at}/announce?k=s3cret");
    let udp = content.with_tracker(&folder("udp-torrent"), &url);
    let not_heard = format!("tracker udp://{silent_at}/…: no answer yet");
    let cases = [
        ("udp", &udp, vec![], vec![not_heard.as_str()]),
        ("none", &content, vec![], vec!["names no trackers"]),
        ("dead", &dead, vec![gone], vec![host.as_str(), given.as_str()]),
        ("far", &far, vec![], vec!["it names 0 peers", "10.0.0.1", "SEEDRING__NET__ALLOW_LOCAL="]),
    ];
    let started = cases.map(|(name, content, peers, expected)| {
        let output = dir.path().join(name);
        // It goes on for a while after it has said so.
        let get = start_get(name, dir.path(), content, &output, &peers, &["--timeout", "8"]);
        (get, expected, peers.is_empty())
    });
    for (mut get, expected, lacks_peer) in started {
        assert_eq!(get.wait(LONELY), 1, "{}", get.tail());
        let text = get.stderr();
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.contains("with --peer ADDR:PORT"), lacks_peer, "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(text.matches("no peers yet").count(), 1, "{text}");
    }
}

#[test]
fn a_peer_of_a_link_that_is_refused_is_told() {
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 60, &Shape::pieces_of(32 << 10));
    let link = format!("{}&x.pe=10.0.0.9:6881", content.link());
    let output = dir.path().join("output");
    let mut get = start_get_of("get", dir.path(), link, &output, &[], &["--timeout", "1"]);
    assert_eq!(get.wait(LONELY), 1, "{}", get.tail());
    let text = get.stderr();
    let says = |line: &&str| line.contains("10.0.0.9:6881") && line.contains("net.allow_local");
    assert_eq!(text.lines().filter(says).count(), 1, "{text}");
}

#[test]
fn a_local_peer_that_is_refused_is_said_once() {
    if !network::is_inside("cli::a_local_peer_that_is_refused_is_said_once") {
        return;
    }
    let dir = dir();
    let content = single(dir.path(), "data", 500_000, 59, &Shape::pieces_of(32 << 10));
    let server = Server::seed(dir.path(), &content, "20.0.9.1:0", &[]);
    for source in [Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)] {
        let mut peer = RawPeer::over(connect_from(source, server.peer).unwrap(), &content.metainfo);
        peer.send(&handshake(&content.metainfo, 1));
        peer.expect_close();
    }
    let told = |server: &Server| server.process.stderr().matches("net.allow_local").count();
    wait::until("two warnings", START, || (told(&server) >= 2).then_some(()));
    // Who is welcome is still taken, and nothing more was said.
    let welcome = connect_from(Ipv4Addr::new(20, 0, 3, 1), server.peer).unwrap();
    let mut peer = RawPeer::over(welcome, &content.metainfo);
    peer.send(&handshake(&content.metainfo, 2));
    peer.read_handshake();
    assert_eq!(told(&server), 2, "{}", server.process.tail());
    server.stop();
    // Opened, the same peer is taken.
    let mut seed = seedring(&["seed", "--listen", "20.0.9.1:0"]);
    seed.arg(&content.torrent).arg("--data").arg(&content.root);
    seed.env("SEEDRING__NET__ALLOW_LOCAL", "127.0.0.0/8");
    let server = Server::wait_ready(Process::start("open", dir.path(), &mut seed));
    let local = connect_from(Ipv4Addr::LOCALHOST, server.peer).unwrap();
    let mut peer = RawPeer::over(local, &content.metainfo);
    peer.send(&handshake(&content.metainfo, 3));
    peer.read_handshake();
    server.stop();
}
