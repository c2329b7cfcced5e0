//! Settings: their names, their defaults and where they come from.
//!
//! A TOML file and environment variables enter, a checked [`Config`] leaves; flags of the command
//! line are written over it by [`crate::cli`]. Later wins: default, file, environment, flag.
//! `SEEDRING__SECTION__KEY` overrides `[section] key`; lists are TOML lists or one plain value,
//! in files too.
//!
//! Invariant: a key that does not exist is an error that names it, wherever it comes from, and
//! nothing here opens a socket or touches a directory. The doc of a field is its manual entry.

mod values;
mod variables;

pub use crate::mse::Policy as Encryption;
pub use crate::storage::Mode as StorageMode;
pub use crate::tracker::Cidr;

pub use self::values::{Bind, CoreList, HttpListen, ParseError, SeedChoker, Size};
pub use self::variables::{Misspelt, misspelt};

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::storage::recovery::RETRY_INTERVAL;

/// What the variables that override settings begin with.
pub const ENV_PREFIX: &str = "SEEDRING__";
/// The peer port when none is given.
pub const DEFAULT_PEER_PORT: u16 = 51413;
/// A configuration file may have this many bytes.
pub const FILE_LEN_MAX: u64 = 1024 * 1024;

/// A rate limit below this many bytes per second is one without its unit.
const RATE_MIN: u64 = 1024;

/// All settings of a server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where things are.
    pub paths: Paths,
    /// Peers and the way to them.
    pub net: Net,
    /// How trackers are asked.
    pub trackers: Trackers,
    /// Remote control and metrics.
    pub http: Http,
    /// How much at most.
    pub limits: Limits,
    /// Cores and memory.
    pub engine: Engine,
    /// How files are read.
    pub storage: Storage,
    /// What is logged.
    pub log: Log,
}

/// `[paths]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// Directory of the database and of copies of all torrents; only one server may use it.
    /// Default: `$XDG_STATE_HOME/seedring`, or `~/.local/state/seedring`; empty, which no server
    /// starts with, where there is neither.
    pub state: PathBuf,
    /// Save path of torrents that do not name one. Default: `./downloads`.
    pub downloads: PathBuf,
    /// Folders in which `.torrent` files are taken. Default: none.
    #[serde(deserialize_with = "values::one_or_list")]
    pub watch: Vec<PathBuf>,
}

/// `[net]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Net {
    /// Addresses that peers connect to. Port 0 takes any free port. Default: port 51413 on all
    /// addresses of both families.
    #[serde(deserialize_with = "values::one_or_list")]
    pub listen: Vec<SocketAddr>,
    /// Address or network interface that every outgoing connection leaves from, or fails. Default:
    /// empty, the kernel chooses.
    pub bind: Bind,
    /// Loopback and private networks (as `10.0.0.0/8`) from which trackers, peers and nodes are
    /// accepted although the server listens on public addresses. Default: none.
    #[serde(deserialize_with = "values::one_or_list")]
    pub allow_local: Vec<Cidr>,
    /// Connections with peers, of the whole server. Default: 8000.
    pub connections: u32,
    /// Connections with peers, of one torrent. Default: 2000.
    pub connections_per_torrent: u32,
    /// Whether connections with peers are encrypted: `off`, `allow` (both are answered, plain is
    /// tried first), `prefer` (both are answered, encrypted is tried first) or `require`. Default:
    /// `allow`.
    pub encryption: Encryption,
    /// Whether peers tell us, and we them, of other peers; private torrents never do. Default: true.
    pub pex: bool,
    /// Whether peers are found by the DHT, and other nodes answered; private torrents are never
    /// named there. Default: true.
    pub dht: bool,
    /// Nodes to enter the DHT by, each `HOST:PORT`. Default: those of the public DHT, which a
    /// server that only listens on local addresses does not ask.
    #[serde(deserialize_with = "values::one_or_list")]
    pub dht_bootstrap: Vec<String>,
    /// Whether peers are looked for on the local networks, by multicast (BEP 14); private torrents
    /// are never named there. Default: true.
    pub lsd: bool,
    /// File with ranges of addresses that no peer is met at, whoever names it: CIDR, P2P or DAT, one
    /// range on a line. It is read again when it changes; a broken line is told and passed over.
    /// Default: empty, none.
    pub blocklist: PathBuf,
}

/// `[trackers]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trackers {
    /// Announce to every tier of a torrent's trackers at once, and not only to the first one that
    /// works. Default: false.
    pub parallel_tiers: bool,
}

/// `[http]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address of metrics, health and remote control; `-` for none. Default: `127.0.0.1:9091`.
    pub listen: HttpListen,
}

/// `[limits]`: 0 means unlimited. Rates are bytes per second and take units, as in `10MiB`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Peers that may fetch from us at a time, of the whole server. Default: 0.
    pub slots: u32,
    /// Peers that may fetch from us at a time, of one torrent. Default: 0.
    pub slots_per_torrent: u32,
    /// Payload sent, bytes per second. Default: 0.
    pub up: Size,
    /// Payload received, bytes per second. Default: 0.
    pub down: Size,
}

/// `[engine]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Processors that get a worker, as in `0-3,8`. Default: empty, all that the process may use.
    pub cores: CoreList,
    /// Who is unchoked when we seed and slots are short: `round_robin`, `fastest_upload` or
    /// `anti_leech`. Default: `round_robin`.
    pub choker: SeedChoker,
    /// Memory for data that is read from disk before it is sent. Default: `256MiB`.
    pub read_memory: Size,
    /// Memory for pieces that are being fetched; beyond it blocks are written at once and the
    /// piece is hashed from disk. Default: `256MiB`.
    pub piece_memory: Size,
}

/// `[storage]`
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// `auto`: map large files where mapping works; `map`: map all; `read`: map none. Default:
    /// `auto`.
    pub mode: StorageMode,
    /// After how many seconds a torrent that stopped because of its files is tried again; each
    /// trial in a row that fails doubles the wait, up to an hour or so. Default: 60.
    pub retry_seconds: u32,
}

/// `[log]`
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`. Default: `info`.
    pub level: LogLevel,
}

/// The least important messages that are still logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What fails.
    Error,
    /// What looks wrong.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl Default for Paths {
    fn default() -> Self {
        Self { state: default_state(), downloads: "downloads".into(), watch: Vec::new() }
    }
}

/// Nodes that clients of the public DHT enter it by.
const DHT_BOOTSTRAP: [&str; 4] = [
    "dht.libtorrent.org:25401",
    "router.bittorrent.com:6881",
    "dht.transmissionbt.com:6881",
    "router.utorrent.com:6881",
];

impl Default for Net {
    fn default() -> Self {
        Self {
            listen: vec![
                (Ipv4Addr::UNSPECIFIED, DEFAULT_PEER_PORT).into(),
                (Ipv6Addr::UNSPECIFIED, DEFAULT_PEER_PORT).into(),
            ],
            bind: Bind::Any,
            allow_local: Vec::new(),
            connections: 8000,
            connections_per_torrent: 2000,
            encryption: Encryption::default(),
            pex: true,
            dht: true,
            dht_bootstrap: DHT_BOOTSTRAP.map(String::from).to_vec(),
            lsd: true,
            blocklist: PathBuf::new(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: HttpListen(Some((Ipv4Addr::LOCALHOST, 9091).into())) }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            cores: CoreList::default(),
            choker: SeedChoker::default(),
            read_memory: Size(256 << 20),
            piece_memory: Size(256 << 20),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        let retry_seconds = u32::try_from(RETRY_INTERVAL.as_secs()).unwrap_or(u32::MAX);
        Self { mode: StorageMode::default(), retry_seconds }
    }
}

/// The XDG base directory rules: a relative path in the variable is ignored. Empty if there is
/// nothing to go by: the folder that the server happens to be started in is nobody's choice.
fn default_state() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
    };
    let home = || absolute("HOME").map(|home| home.join(".local/state"));
    absolute("XDG_STATE_HOME").or_else(home).map(|dir| dir.join("seedring")).unwrap_or_default()
}

/// Why there is no configuration, so that the program does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or unreadable.
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is larger than [`FILE_LEN_MAX`].
    #[error("the configuration {} has {len} bytes, more than {FILE_LEN_MAX}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// Not TOML, a key that does not exist, or a value of the wrong kind.
    #[error("the configuration {} is wrong: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what, in words of the parser.
        error: toml::de::Error,
    },
    /// A variable that names no setting.
    #[error("{0}")]
    UnknownVariable(Misspelt),
    /// A variable whose value does not fit its setting.
    #[error("the variable {name} is wrong: {reason}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// No directory for the state: none was named, and the system names none.
    #[error(
        "there is no state directory: name one with --state DIR (paths.state), \
         or set XDG_STATE_HOME or HOME to an absolute path"
    )]
    NoState,
    /// Settings that contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

impl Config {
    /// Defaults, then `file`, then those of the `variables` that begin with [`ENV_PREFIX`].
    ///
    /// # Errors
    /// Whatever would leave a setting different from what was written: see [`Error`].
    pub fn load(
        file: Option<&Path>,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut config = match file {
            Some(path) => read_file(path)?,
            None => Self::default(),
        };
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
                continue;
            };
            let value = value.into_string().map_err(|_| Error::Variable {
                name: name.to_owned(),
                reason: "it is not UTF-8".to_owned(),
            })?;
            config = config.with_variable(name, &value)?;
        }
        Ok(config)
    }

    /// Checks what only shows when all settings are known.
    ///
    /// # Errors
    /// [`Error::Contradiction`] with a sentence.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |condition: bool, sentence| {
            if condition { Err(Error::Contradiction(sentence)) } else { Ok(()) }
        };
        wrong(self.net.listen.is_empty(), "net.listen names no address")?;
        wrong(self.net.connections == 0, "net.connections is 0, no peer could connect")?;
        wrong(self.net.connections_per_torrent == 0, "net.connections_per_torrent is 0")?;
        wrong(self.storage.retry_seconds == 0, "storage.retry_seconds is 0")?;
        let is_slip = |rate: Size| (1..RATE_MIN).contains(&rate.0);
        wrong(
            is_slip(self.limits.up),
            "limits.up is below 1KiB a second: give a unit, as in 10MiB",
        )?;
        wrong(
            is_slip(self.limits.down),
            "limits.down is below 1KiB a second: give a unit, as in 10MiB",
        )?;
        wrong(self.engine.read_memory.0 < 1 << 20, "engine.read_memory is below 1MiB")?;
        wrong(self.engine.piece_memory.0 < 1 << 20, "engine.piece_memory is below 1MiB")
    }

    /// All settings as TOML; reading it again gives the same settings.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a setting is a string, a number or a list of strings")
    }

    /// The kind of the present value decides how the text of a variable is read.
    fn with_variable(&self, name: &str, text: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownVariable(Misspelt::new(name));
        let wrong = |reason: &dyn std::fmt::Display| Error::Variable {
            name: name.to_owned(),
            reason: first_line(reason),
        };
        let path = name.strip_prefix(ENV_PREFIX).unwrap_or_default().to_ascii_lowercase();
        let (section, key) = path.split_once("__").ok_or_else(unknown)?;
        let mut table = toml::Table::try_from(self).map_err(|error| wrong(&error))?;
        let slot = table.get_mut(section).and_then(|section| section.get_mut(key));
        let slot = slot.ok_or_else(unknown)?;
        *slot = match slot {
            toml::Value::String(_) => toml::Value::String(text.to_owned()),
            toml::Value::Array(_) if !text.trim_start().starts_with('[') => {
                let plain = text.trim();
                let one = (!plain.is_empty()).then(|| toml::Value::String(plain.to_owned()));
                toml::Value::Array(one.into_iter().collect())
            }
            _ => text.trim().parse::<toml::Value>().map_err(|error| wrong(&error))?,
        };
        table.try_into().map_err(|error: toml::de::Error| wrong(&error))
    }
}

fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn read_file(path: &Path) -> Result<Config, Error> {
    let failed = |error| Error::Read { path: path.to_owned(), error };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > FILE_LEN_MAX {
        return Err(Error::TooLong { path: path.to_owned(), len });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text).map_err(|error| Error::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seedring.toml");
        std::fs::write(&path, text).unwrap();
        let variables = variables.iter().map(|&(name, value)| (name.into(), value.into()));
        Config::load(Some(&path), variables)
    }

    #[test]
    fn the_dump_of_all_fields_parses_back() {
        let mut config = Config::default();
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
        config.paths.watch = vec!["/a".into(), "/b c".into()];
        config.net.bind = Bind::Interface("wg0".to_owned());
        config.net.allow_local = vec!["fd00::/8".parse().unwrap()];
        config.http.listen = HttpListen(None);
        config.limits.up = Size(12_345);
        config.engine.cores = "1-3,7".parse().unwrap();
        config.storage.mode = StorageMode::Read;
        config.log.level = LogLevel::Trace;
        assert_eq!(load(&config.to_toml(), &[]).unwrap(), config);
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = Config::default();
        assert!(config.check().is_ok());
        assert_eq!(config.http.listen.to_string(), "127.0.0.1:9091");
        assert_eq!(config.net.listen[0].to_string(), "0.0.0.0:51413");
        assert_eq!(config.net.listen[1].to_string(), "[::]:51413");
        assert_eq!((config.limits.slots, config.limits.up), (0, Size(0)));
        assert_eq!(config.paths.downloads, Path::new("downloads"));
        assert!(config.paths.state.ends_with("seedring"));
        assert_eq!(config.engine.piece_memory, Size(256 << 20));
    }

    #[test]
    fn the_sample_of_the_manual_holds_every_key_and_the_defaults() {
        let readme = include_str!("../../README.md");
        let settings =
            readme.split("## Settings").nth(1).and_then(|rest| rest.split("\n## ").next());
        let lines = settings.unwrap().lines().filter_map(|line| line.strip_prefix("    "));
        let sample: Vec<_> = lines.map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
        let mut config = load(&sample.join("\n"), &[]).unwrap();
        config.check().unwrap();
        let table: toml::Table = sample.join("\n").parse().unwrap();
        for (section, keys) in &toml::Table::try_from(Config::default()).unwrap() {
            for key in keys.as_table().unwrap().keys() {
                assert!(table.get(section).and_then(|it| it.get(key)).is_some(), "{section}.{key}");
            }
        }
        (config.paths, config.engine.cores) = (Paths::default(), CoreList::default());
        assert_eq!(config, Config::default());
    }

    #[test]
    fn contradictions_are_found() {
        let spoil: [fn(&mut Config); 5] = [
            |config| config.net.listen.clear(),
            |config| config.net.connections = 0,
            |config| config.engine.piece_memory = Size(1),
            |config| config.limits.up = Size(5),
            |config| config.limits.down = Size(1023),
        ];
        for (index, spoil) in spoil.iter().enumerate() {
            let mut config = Config::default();
            spoil(&mut config);
            assert!(matches!(config.check(), Err(Error::Contradiction(_))), "{index}");
        }
    }

    #[test]
    fn every_key_can_be_set_by_its_variable() {
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut key_count = 0;
        for (section, keys) in &defaults {
            for (key, value) in keys.as_table().unwrap() {
                let name = format!("{ENV_PREFIX}{section}__{key}").to_uppercase();
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let config = load("", &[(&name, &text)]);
                assert_eq!(config.unwrap(), Config::default(), "{name}");
                key_count += 1;
            }
        }
        assert!(key_count >= 16, "{key_count}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let file = "[limits]\nup = \"1MiB\"\nslots = 4\n[net]\nlisten = [\"127.0.0.1:1\"]\n";
        let variables = [
            ("SEEDRING__LIMITS__UP", "2MiB"),
            ("SEEDRING__NET__LISTEN", "127.0.0.1:0"),
            ("SEEDRING__PATHS__WATCH", "[\"/a\", \"/b\"]"),
            ("SEEDRING__PATHS__STATE", "123"),
            ("SEEDRING__ENGINE__CORES", "2"),
            ("OTHER", "x"),
        ];
        let config = load(file, &variables).unwrap();
        assert_eq!((config.limits.up, config.limits.slots), (Size(2 << 20), 4));
        assert_eq!(config.net.listen, ["127.0.0.1:0".parse().unwrap()]);
        assert_eq!(config.paths.watch, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(config.paths.state, Path::new("123"));
        assert_eq!(config.engine.cores, "2".parse().unwrap());
    }

    #[test]
    fn one_value_is_a_list_of_one() {
        let text = "[paths]\nwatch = \"/a\"\n[net]\nlisten = \"127.0.0.1:1\"\n\
                    allow_local = \"10.0.0.0/8\"\ndht_bootstrap = \"host:1\"\n";
        let config = load(text, &[]).unwrap();
        assert_eq!(config.paths.watch, [Path::new("/a")]);
        assert_eq!(config.net.listen, ["127.0.0.1:1".parse().unwrap()]);
        assert_eq!(config.net.allow_local, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(config.net.dht_bootstrap, ["host:1"]);
    }

    #[test]
    fn what_is_not_a_setting_is_named() {
        type Variables = [(&'static str, &'static str)];
        let cases: &[(&str, &Variables, &str)] = &[
            ("[limits]\nslotz = 1\n", &[], "slotz"),
            ("[limitz]\n", &[], "limitz"),
            ("[limits]\nup = \"10 parsecs\"\n", &[], "10 parsecs"),
            ("[storage]\nmode = \"mmap\"\n", &[], "mmap"),
            ("[paths]\nwatch = 7\n", &[], "watch = 7"),
            ("[net]\nlisten = \"7\"\n", &[], "invalid socket address"),
            ("[net]\nallow_local = [\"10.0.0.0\"]\n", &[], "10.0.0.0/8"),
            ("[engine]\nchoker = \"tit_for_tat\"\n", &[], "\"tit_for_tat\" is not one of"),
            ("[engine]\nchoker = \"x\"\n", &[], "round_robin, fastest_upload, anti_leech"),
            ("[engine]\nchoker = \"x\"\n", &[], "seedring.toml"),
            ("", &[("SEEDRING__ENGINE__CHOKER", "x")], "SEEDRING__ENGINE__CHOKER is wrong: \"x\""),
            ("", &[("SEEDRING__LIMITS__SLOTZ", "1")], "SEEDRING__LIMITS__SLOTZ"),
            ("", &[("SEEDRING__LIMITS", "1")], "SEEDRING__LIMITS names no setting"),
            ("", &[("SEEDRING__LIMITS_UP", "1")], "it is SEEDRING__LIMITS__UP"),
            ("", &[("SEEDRING__LIMITS__SLOTS", "many")], "SEEDRING__LIMITS__SLOTS"),
            ("", &[("SEEDRING__NET__LISTEN", "here")], "SEEDRING__NET__LISTEN"),
        ];
        for (file, variables, named) in cases {
            let error = load(file, variables).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(matches!(
            Config::load(Some(Path::new("/nonexistent/x.toml")), std::iter::empty()),
            Err(Error::Read { .. })
        ));
    }
}
