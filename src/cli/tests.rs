//! The documented command line, word by word.

use clap::CommandFactory as _;

use super::*;
use crate::config::{Config, Size};

fn parse(line: &str) -> Result<Command, clap::Error> {
    let words = std::iter::once("seedring").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.command)
}

fn none() -> std::iter::Empty<(OsString, OsString)> {
    std::iter::empty()
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
    progress_bar(1, "x").finish_and_clear();
    transfer_bar(1, "x").finish_and_clear();
}

#[test]
fn every_documented_line_parses() {
    let discovery =
        "--no-dht --no-lsd --no-pex --dht-bootstrap a.example:1 --dht-bootstrap [::1]:2";
    let lines = [
        format!(
            "run --config f.toml --state s --downloads d --watch a --watch b --listen 127.0.0.1:0 \
             --listen [::1]:0 --http 127.0.0.1:0 --bind wg0 --cores 0-3,5 --log-level debug \
             {discovery}"
        ),
        "run --http - --bind 10.0.0.1".to_owned(),
        format!(
            "get magnet:?xt=urn:btih:0 -o d --seed --peer 127.0.0.1:1 --peer localhost:2 \
             --listen 127.0.0.1:0 --timeout 5 --overwrite --json {discovery}"
        ),
        "get a.torrent".to_owned(),
        "seed a.torrent --data d --listen 127.0.0.1:0 --listen [::1]:0 --trust".to_owned(),
        "create p -o f.torrent --force --piece-length 256KiB --tracker http://a.example/announce \
         --tracker udp://b.example:1 --web-seed http://c.example/ --private --comment hello"
            .to_owned(),
        "check a.torrent --data d --json".to_owned(),
        "doctor".to_owned(),
        "add a.torrent b.torrent --http 127.0.0.1:1 --data d --verify quick --paused --label x \
         --label y"
            .to_owned(),
        "add a --verify full".to_owned(),
        "add a --verify trust".to_owned(),
        "list --http 127.0.0.1:1".to_owned(),
        "show abc".to_owned(),
        "start abc def".to_owned(),
        "stop abc".to_owned(),
        "verify abc".to_owned(),
        "remove abc --http 127.0.0.1:1".to_owned(),
    ];
    for line in &lines {
        if let Err(error) = parse(line) {
            panic!("{line}\n{error}");
        }
    }
}

#[test]
fn wrong_lines_end_with_usage() {
    let lines = [
        "run --listen 51413",
        "run --cores 3-1",
        "run --log-level loud",
        "run --dht-bootstrap nowhere",
        "get",
        "get a --timeout 0",
        "seed a.torrent",
        "create p",
        "create p -o f --piece-length 3x",
        "create src -o f --piece-length 3",
        "create p -o f --tracker nonsense",
        "create p -o f --web-seed file:///x",
        "get a --peer 127.0.0.1",
        "get a --peer 169.254.169.254:80",
        "check a.torrent",
        "add",
        "add a --verify maybe",
        "frobnicate",
        "",
    ];
    for line in lines {
        let words = std::iter::once("seedring").chain(line.split_whitespace());
        assert_eq!(main_with(words.map(OsString::from)), Exit::Usage, "{line}");
    }
}

#[test]
fn a_wrong_address_to_listen_on_is_told_the_form() {
    for line in ["run --listen 51413", "get a --listen foo", "seed a --data d --listen ::1:7x"] {
        let error = parse(line).expect_err(line).to_string();
        assert!(error.contains("0.0.0.0:51413 or [::]:51413"), "{error}");
    }
}

#[test]
fn help_succeeds_and_says_what_is_not_built() {
    let help = |line: &str| parse(line).expect_err("help is shown").to_string();
    assert!(help("--help").contains("not built yet"));
    assert_eq!(main_with(["seedring", "--version"].map(OsString::from)), Exit::Ok);
    assert!(help("get --help").contains("magnet link"));
    assert!(help("run --help").contains(".magnet"));
    assert!(!help("add --help").contains("magnet"), "it is not built yet");
}

#[test]
fn commands_that_are_not_built_fail_with_one_sentence() {
    for line in ["list", "show x", "add x", "start x", "stop x", "verify x", "remove x"] {
        let words = std::iter::once("seedring").chain(line.split_whitespace());
        assert_eq!(main_with(words.map(OsString::from)), Exit::Failure, "{line}");
    }
}

#[test]
fn flags_win_over_variables_over_defaults() {
    let Ok(Command::Run(args)) =
        parse("run --downloads d --watch w --listen 127.0.0.1:0 --http - --cores 1 --bind wg0")
    else {
        panic!("it parses");
    };
    let variables = [
        ("SEEDRING__PATHS__DOWNLOADS", "from-variable"),
        ("SEEDRING__PATHS__STATE", "state-from-variable"),
        ("SEEDRING__LIMITS__UP", "1MiB"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    let config = args.into_config(variables.into_iter()).unwrap();
    assert_eq!(config.paths.downloads.to_str(), Some("d"));
    assert_eq!(config.paths.state.to_str(), Some("state-from-variable"));
    assert_eq!(config.limits.up, Size(1 << 20));
    assert_eq!(config.net.listen, ["127.0.0.1:0".parse().unwrap()]);
    assert_eq!(config.http.listen.0, None);
    let defaults = run::RunArgs::default().into_config(none()).unwrap();
    assert_eq!(defaults, Config::default());
}

#[test]
fn one_torrent_takes_any_port_and_no_http() {
    let Ok(Command::Get(get)) = parse("get a.torrent -o d") else { panic!("it parses") };
    let Ok(Command::Seed(seed)) = parse("seed a.torrent --data d --listen 127.0.0.1:7") else {
        panic!("it parses");
    };
    let (get, seed) = (get.to_config(none()).unwrap(), seed.to_config(none()).unwrap());
    assert!(get.net.listen.iter().all(|addr| addr.port() == 0));
    assert_eq!(seed.net.listen, ["127.0.0.1:7".parse().unwrap()]);
    for config in [get, seed] {
        assert_eq!(config.http.listen.0, None);
        assert_eq!(config.paths.downloads.to_str(), Some("d"));
    }
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let codes = [
        (Exit::Ok, 0),
        (Exit::Failure, 1),
        (Exit::Usage, 2),
        (Exit::NotFound, 3),
        (Exit::Auth, 4),
        (Exit::Unreachable, 5),
        (Exit::Partial, 6),
        (Exit::Interrupted, 130),
        (Exit::Terminated, 143),
    ];
    for (exit, code) in codes {
        assert_eq!(exit as u8, code);
    }
}
