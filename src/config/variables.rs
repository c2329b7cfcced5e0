//! Variables that were meant as settings and are none.
//!
//! Names of variables enter; those that look like settings leave, with the right spelling where it
//! shows. Invariant: a variable that has nothing in common with a setting is somebody else's, and
//! no value is looked at.

use std::ffi::OsString;
use std::fmt;

use super::{Config, ENV_PREFIX};

/// What all variables of ours begin with, however they are spelt.
const NAME: &str = "SEEDRING_";

/// A variable that looks like a setting and is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Misspelt {
    /// The variable.
    pub name: String,
    /// The one that was meant, if it shows.
    pub meant: Option<String>,
}

impl fmt::Display for Misspelt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the variable {} names no setting", self.name)?;
        match &self.meant {
            Some(meant) => write!(out, "; if it is to be one, it is {meant}"),
            None => write!(out, ": those that do are spelt {ENV_PREFIX}SECTION__KEY"),
        }
    }
}

impl Misspelt {
    /// A name that is no setting.
    pub(super) fn new(name: &str) -> Self {
        let (plain, settings) = (plain(name), settings());
        let whole = settings.iter().find(|(section, key)| plain == format!("{section}_{key}"));
        let mut of_key = settings.iter().filter(|(_, key)| plain == *key);
        // A key of several sections does not say which is meant.
        let alone = of_key.next().filter(|_| of_key.next().is_none());
        let meant = whole.or(alone);
        let meant =
            meant.map(|(section, key)| format!("{ENV_PREFIX}{section}__{key}").to_uppercase());
        Self { name: name.to_owned(), meant }
    }
}

/// The variables among `names` that nobody reads and that look like settings: they begin with a
/// section, or they are a key. Those that begin with [`ENV_PREFIX`] are judged as settings.
pub fn misspelt(names: impl Iterator<Item = OsString>) -> Vec<Misspelt> {
    let settings = settings();
    let is_like = |name: &str| {
        let plain = plain(name);
        let begins =
            |section: &str| plain.strip_prefix(section).is_some_and(|rest| rest.starts_with('_'));
        settings.iter().any(|(section, key)| begins(section) || plain == *key)
    };
    let mut found: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.to_ascii_uppercase().starts_with(NAME))
        .filter(|name| !name.starts_with(ENV_PREFIX) && is_like(name))
        .map(|name| Misspelt::new(&name))
        .collect();
    found.sort_by(|one, two| one.name.cmp(&two.name));
    found
}

/// The name in small letters, without what all of ours begin with, and with single underscores.
fn plain(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let parts = name.split('_').filter(|part| !part.is_empty()).skip(1);
    parts.collect::<Vec<_>>().join("_")
}

/// Section and key of every setting.
fn settings() -> Vec<(String, String)> {
    let table = toml::Table::try_from(Config::default()).unwrap_or_default();
    let mut settings = Vec::new();
    for (section, keys) in &table {
        for key in keys.as_table().into_iter().flat_map(toml::Table::keys) {
            settings.push((section.clone(), key.clone()));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_look_like_settings_are_told_and_others_are_not() {
        let table = [
            ("SEEDRING_LIMITS_UP", Some("SEEDRING__LIMITS__UP")),
            ("SEEDRING_NET_DHT_BOOTSTRAP", Some("SEEDRING__NET__DHT_BOOTSTRAP")),
            ("SEEDRING_NET__LISTEN", Some("SEEDRING__NET__LISTEN")),
            ("seedring__limits__up", Some("SEEDRING__LIMITS__UP")),
            ("SEEDRING_DOWNLOADS", Some("SEEDRING__PATHS__DOWNLOADS")),
            ("SEEDRING_LIMITS_UPP", None),
            ("SEEDRING_LISTEN", None),
        ];
        let others = [
            "SEEDRING__LIMITS__UP",
            "SEEDRING_TEST_NETWORK",
            "SEEDRING_VENV",
            "SEEDRING_NETWORK",
            "SEEDRING_",
            "SEEDRING",
            "LIMITS_UP",
            "PATH",
        ];
        let names = table.iter().map(|it| it.0).chain(others).map(OsString::from);
        let mut expected: Vec<_> = table
            .iter()
            .map(|(name, meant)| ((*name).to_owned(), meant.map(str::to_owned)))
            .collect();
        expected.sort();
        let found: Vec<_> = misspelt(names).into_iter().map(|it| (it.name, it.meant)).collect();
        assert_eq!(found, expected);
    }
}
