//! Settings: the file, and the kinds of values that flags and variables share.

use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::str::FromStr;

use seedring::config::{Bind, Cidr, Config, CoreList, HttpListen, SeedChoker, Size};

use super::{assert_sentence, texts};

/// The input as a file, and as the value of each setting by its variable.
pub(super) fn toml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = toml::from_str::<Config>(text) {
        check(&config);
    }
    let (name, value) = text.split_once('\n').unwrap_or((text, ""));
    let variable = format!("SEEDRING__{}", name.to_ascii_uppercase());
    match Config::load(None, std::iter::once((variable.into(), value.into()))) {
        Ok(config) => check(&config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check(config: &Config) {
    assert_eq!(toml::from_str::<Config>(&config.to_toml()).as_ref(), Ok(config));
    if let Err(error) = config.check() {
        assert_sentence(&error.to_string());
    }
}

pub(super) fn toml_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        "",
        "[limits]\nup = \"10MiB\"\nslots = 4\n",
        "[net]\nlisten = [\"127.0.0.1:0\", \"[::1]:1\"]\nbind = \"wg0\"\nallow_local = [\"fd00::/8\"]\n",
        "[engine]\ncores = \"0-3,8\"\nchoker = \"fastest_upload\"\n[storage]\nmode = \"map\"\n",
        "[paths]\nwatch = [\"/a\", \"b c\"]\n[http]\nlisten = \"-\"\n[log]\nlevel = \"trace\"\n",
        "[limits]\nslotz = 1\n",
        "limits__up\n2MiB",
        "net__listen\n127.0.0.1:0",
        "paths__watch\n[\"/a\", \"/b\"]",
        "net__dht\nfalse",
        "net__connections\n-1",
        "engine__choker\nx",
    ]);
    seeds.push(Config::default().to_toml().into_bytes());
    seeds
}

/// The input as each kind of value.
pub(super) fn value(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    read::<Size>(text);
    read::<Cidr>(text);
    read::<CoreList>(text);
    read::<Bind>(text);
    read::<HttpListen>(text);
    read::<SeedChoker>(text);
    if let Ok(cores) = text.parse::<CoreList>() {
        assert!(cores.iter().is_sorted() && cores.iter().all(|core| core < 8192));
    }
    if let Ok(network) = text.parse::<Cidr>() {
        let addr = text.split('/').next().and_then(|addr| addr.trim().parse().ok());
        // A mapped address is IPv4 also where a network of IPv6 holds all of those.
        let is_wide = |ip: IpAddr| ip.to_canonical() != ip && network.to_string().contains(':');
        assert!(addr.is_some_and(|addr| is_wide(addr) || network.contains(addr)));
    }
}

/// What is read is written as the same value.
fn read<T>(text: &str)
where
    T: FromStr<Err: Display + Debug + PartialEq> + Display + PartialEq + Debug,
{
    match text.parse::<T>() {
        Ok(value) => assert_eq!(value.to_string().parse(), Ok(value)),
        Err(error) => assert_sentence(&error.to_string()),
    }
}

pub(super) fn value_seeds() -> Vec<Vec<u8>> {
    texts([
        "1.5GiB",
        "9223372036854775807",
        "16 kib",
        "0.000000001TB",
        "10.0.0.0/8",
        "fd00::/128",
        "::ffff:1.2.3.4/104",
        "0-3,8",
        "8191-8191",
        "3-1",
        "wg0",
        "[::1]:80",
        "-",
        "round_robin",
        "\u{1b}[2J",
        "",
    ])
}
