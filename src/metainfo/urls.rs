//! The addresses in a torrent: trackers, web seeds, DHT nodes.
//!
//! Values of a parsed torrent enter, URLs that may be connected to leave, and a sentence for each
//! that may not. Invariant: nothing here refuses a torrent, and every list has an end. Where a URL
//! *leads* (a private network, say) is judged by whoever connects, after the name was looked up.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use url::{Host, Url};

use super::{NODES_MAX, TIERS_MAX, TRACKERS_MAX, WARNINGS_MAX, WEB_SEEDS_MAX};
use crate::bencode::{Dict, Value, excerpt};

/// Longest URL that is kept, in bytes.
const URL_LEN_MAX: usize = 2048;

/// Sentences about what was left out, at most [`WARNINGS_MAX`].
#[derive(Default)]
pub(super) struct Warnings(Vec<String>);

impl Warnings {
    pub(super) fn push(&mut self, warning: String) {
        match self.0.len() + 1 {
            ..WARNINGS_MAX => self.0.push(warning),
            WARNINGS_MAX => self.0.push("there are more warnings than are kept".to_owned()),
            _ => {}
        }
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// What a URL is for: it decides which schemes it may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Tracker,
    WebSeed,
}

/// Judges one URL; the error is the reason in plain words.
pub(super) fn usable_url(raw: &[u8], purpose: Purpose) -> Result<Url, &'static str> {
    let raw = raw.trim_ascii_start();
    if raw.len() > URL_LEN_MAX {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(raw).map_err(|_| "it is not UTF-8")?;
    // The parser would drop line breaks and tabs without a word.
    let text = text.trim_end_matches(' ');
    if text.contains(char::is_control) {
        return Err("it holds control characters");
    }
    let url = Url::parse(text).map_err(|_| "it is not a URL")?;
    // What is not ASCII takes three times as many bytes from here on.
    if url.as_str().len() > URL_LEN_MAX {
        return Err("it is too long");
    }
    match (url.scheme(), purpose) {
        ("http" | "https", _) | ("udp", Purpose::Tracker) => {}
        (_, Purpose::Tracker) => return Err("its scheme is not http, https or udp"),
        (_, Purpose::WebSeed) => return Err("its scheme is not http or https"),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it has no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it holds a user name or password");
    }
    match url.port_or_known_default() {
        None => Err("it has no port"),
        Some(0) => Err("its port is 0"),
        Some(_) => Ok(url),
    }
}

/// The tiers of `announce-list`, or else `announce` alone (BEP 12); each tracker once.
pub(super) fn trackers(root: &Dict<'_>, warnings: &mut Warnings) -> Vec<Vec<Url>> {
    let mut seen = BTreeSet::new();
    let mut tiers: Vec<Vec<Url>> = Vec::new();
    let listed = root.get(b"announce-list").and_then(|list| list.as_list());
    for tier in listed.into_iter().flatten() {
        if tiers.len() >= TIERS_MAX {
            warnings.push(format!("tiers of trackers beyond {TIERS_MAX} were left out"));
            break;
        }
        // A list of URLs instead of a list of lists is a common mistake, with one clear meaning.
        let urls: Vec<Value<'_>> = match tier.as_list() {
            Some(urls) => urls.take(TRACKERS_MAX + 1).collect(),
            None => vec![tier],
        };
        let mut kept = Vec::new();
        for raw in urls.iter().filter_map(Value::as_bytes) {
            if seen.len() >= TRACKERS_MAX {
                warnings.push(format!("trackers beyond {TRACKERS_MAX} were left out"));
                break;
            }
            kept.extend(tracker(raw, warnings).filter(|url| seen.insert(url.clone())));
        }
        if !kept.is_empty() {
            tiers.push(kept);
        }
    }
    if tiers.is_empty()
        && let Some(raw) = root.get(b"announce").and_then(|url| url.as_bytes())
        && let Some(url) = tracker(raw, warnings)
    {
        tiers.push(vec![url]);
    }
    tiers
}

fn tracker(raw: &[u8], warnings: &mut Warnings) -> Option<Url> {
    // An empty `announce` is how some programs say that there is no tracker.
    if raw.is_empty() {
        return None;
    }
    let url = usable_url(raw, Purpose::Tracker);
    let warn = |reason| warnings.push(format!("tracker {} left out: {reason}", excerpt(raw)));
    url.map_err(warn).ok()
}

/// `url-list`: one URL or a list of them (BEP 19).
pub(super) fn web_seeds(root: &Dict<'_>, warnings: &mut Warnings) -> Vec<Url> {
    let Some(value) = root.get(b"url-list") else {
        return Vec::new();
    };
    let urls: Vec<Value<'_>> = match value.as_list() {
        Some(urls) => urls.take(WEB_SEEDS_MAX + 1).collect(),
        None => vec![value],
    };
    if urls.len() > WEB_SEEDS_MAX {
        warnings.push(format!("web seeds beyond {WEB_SEEDS_MAX} were left out"));
    }
    let raw = urls.iter().take(WEB_SEEDS_MAX).filter_map(Value::as_bytes);
    raw.filter(|raw| !raw.is_empty())
        .filter_map(|raw| {
            let url = usable_url(raw, Purpose::WebSeed);
            let text = excerpt(raw);
            url.map_err(|reason| warnings.push(format!("web seed {text} left out: {reason}"))).ok()
        })
        .collect()
}

/// `nodes`: pairs of host and port (BEP 5).
pub(super) fn nodes(root: &Dict<'_>, warnings: &mut Warnings) -> Vec<(String, u16)> {
    let Some(list) = root.get(b"nodes").and_then(|nodes| nodes.as_list()) else {
        return Vec::new();
    };
    let mut nodes = Vec::new();
    for (number, value) in list.enumerate() {
        if number >= NODES_MAX {
            warnings.push(format!("DHT nodes beyond {NODES_MAX} were left out"));
            break;
        }
        match node(value) {
            Some(node) => nodes.push(node),
            None => warnings.push(format!("DHT node {value:?} left out: it is no host and port")),
        }
    }
    nodes
}

fn node(value: Value<'_>) -> Option<(String, u16)> {
    let mut pair = value.as_list()?;
    let (host, port) = (pair.next()?.as_str()?, pair.next()?.as_int()?);
    let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
    let host = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => address.to_string(),
        Err(_) => Host::parse(host).ok()?.to_string(),
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bencode::{Document, Encoder, Limits};

    #[test]
    fn urls_are_judged_by_what_they_may_reach() {
        let table: &[(&str, Result<&str, &str>)] = &[
            ("http://t.example/announce", Ok("http://t.example/announce")),
            (" https://t.example:8443/a?k=1 ", Ok("https://t.example:8443/a?k=1")),
            ("udp://t.example:6969", Ok("udp://t.example:6969")),
            ("udp://[2001:db8::1]:80/announce", Ok("udp://[2001:db8::1]:80/announce")),
            ("UDP://T.example:80", Ok("udp://T.example:80")),
            ("udp://t.example/announce", Err("it has no port")),
            ("udp://t.example:0", Err("its port is 0")),
            ("http://t.example:0/", Err("its port is 0")),
            ("http://t.example:65536/", Err("it is not a URL")),
            ("file:///etc/passwd", Err("its scheme is not http, https or udp")),
            ("unix:///run/x.sock", Err("its scheme is not http, https or udp")),
            ("wss://t.example/", Err("its scheme is not http, https or udp")),
            ("ftp://t.example/", Err("its scheme is not http, https or udp")),
            ("http://user@t.example/", Err("it holds a user name or password")),
            ("http://user:secret@t.example/", Err("it holds a user name or password")),
            ("http://t.example/\r\nX-Header: 1", Err("it holds control characters")),
            ("http://t.example/\u{85}", Err("it holds control characters")),
            ("http:///", Err("it is not a URL")),
            ("udp:t.example:80", Err("it has no host")),
            ("udp:///announce", Err("it has no host")),
            ("t.example", Err("it is not a URL")),
            ("", Err("it is not a URL")),
        ];
        for (raw, expected) in table {
            let url = usable_url(raw.as_bytes(), Purpose::Tracker);
            assert_eq!(url.as_ref().map(Url::as_str).map_err(|reason| *reason), *expected, "{raw}");
        }
        assert!(usable_url(b"http://t/\xff", Purpose::Tracker).is_err());
        assert!(usable_url("http://t/".repeat(300).as_bytes(), Purpose::Tracker).is_err());
        let stretched = |count| format!("http://t/{}", "é".repeat(count));
        assert!(usable_url(stretched(339).as_bytes(), Purpose::Tracker).is_ok());
        let longer = usable_url(stretched(340).as_bytes(), Purpose::Tracker);
        assert_eq!(longer, Err("it is too long"), "as it would be sent");
        assert!(usable_url(b"udp://t:80", Purpose::WebSeed).is_err());
    }

    fn torrent(fill: impl FnOnce(&mut crate::bencode::DictEncoder<'_>)) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.dict(fill);
        encoder.finish()
    }

    fn read<T>(bytes: &[u8], read: fn(&Dict<'_>, &mut Warnings) -> T) -> (T, Vec<String>) {
        let document = Document::parse(bytes, &Limits::TORRENT).unwrap();
        let mut warnings = Warnings::default();
        let read = read(&document.root().as_dict().unwrap(), &mut warnings);
        (read, warnings.into_vec())
    }

    #[test]
    fn tiers_are_kept_without_what_is_unusable() {
        let bytes = torrent(|dict| {
            dict.bytes(b"announce", b"http://unused.example/");
            dict.list(b"announce-list", |tiers| {
                tiers.list(|tier| {
                    tier.bytes(b"http://a.example/").bytes(b"file:///x").int(3);
                });
                tiers.list(|tier| {
                    tier.bytes(b"http://a.example/");
                });
                tiers.bytes(b"udp://b.example:1");
            });
        });
        let (tiers, warnings) = read(&bytes, trackers);
        let texts: Vec<Vec<&str>> =
            tiers.iter().map(|tier| tier.iter().map(Url::as_str).collect()).collect();
        assert_eq!(texts, [["http://a.example/"], ["udp://b.example:1"]]);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("file:///x"), "{}", warnings[0]);
    }

    #[test]
    fn announce_stands_in_for_an_unusable_list() {
        let bytes = torrent(|dict| {
            dict.bytes(b"announce", b"http://a.example/");
            dict.list(b"announce-list", |tiers| {
                tiers.list(|_| {}).int(1);
            });
        });
        assert_eq!(read(&bytes, trackers).0[0][0].as_str(), "http://a.example/");
    }

    #[test]
    fn lists_have_an_end() {
        let url = |index: usize| format!("http://t{index}.example/").into_bytes();
        let many_tiers = torrent(|dict| {
            dict.list(b"announce-list", |tiers| {
                for index in 0..1000 {
                    tiers.list(|tier| {
                        tier.bytes(&url(index));
                    });
                }
            });
        });
        assert_eq!(read(&many_tiers, trackers).0.len(), TIERS_MAX);
        let many_trackers = torrent(|dict| {
            dict.list(b"announce-list", |tiers| {
                for tier_index in 0..3 {
                    tiers.list(|tier| {
                        (0..200).for_each(|index| {
                            tier.bytes(&url(tier_index * 200 + index));
                        });
                    });
                }
            });
        });
        let (tiers, warnings) = read(&many_trackers, trackers);
        assert_eq!(tiers.iter().flatten().count(), TRACKERS_MAX);
        assert!(!warnings.is_empty());
        let seeds = torrent(|dict| {
            dict.list(b"url-list", |urls| {
                (0..100).for_each(|index| {
                    urls.bytes(&url(index));
                })
            });
        });
        assert_eq!(read(&seeds, web_seeds).0.len(), WEB_SEEDS_MAX);
        let bad = torrent(|dict| {
            dict.list(b"announce-list", |tiers| {
                (0..10_000).for_each(|index| {
                    tiers.bytes(format!("x{index}").as_bytes());
                });
            });
        });
        assert_eq!(read(&bad, trackers).1.len(), WARNINGS_MAX);
    }

    #[test]
    fn nodes_are_hosts_with_ports() {
        let bytes = torrent(|dict| {
            dict.list(b"nodes", |nodes| {
                let mut node = |host: &str, port| {
                    nodes.list(|pair| {
                        pair.bytes(host.as_bytes()).int(port);
                    });
                };
                node("router.example", 6881);
                node("2001:db8::1", 1);
                node("127.0.0.1", 0);
                node("127.0.0.1", 65_536);
                node("a b\r\n", 1);
                (0..100).for_each(|_| node("n", 2));
            });
        });
        let (nodes, warnings) = read(&bytes, nodes);
        assert_eq!(nodes.len(), NODES_MAX - 3);
        assert_eq!(nodes[1], ("2001:db8::1".to_owned(), 1));
        assert_eq!(warnings.len(), 4);
    }
}
