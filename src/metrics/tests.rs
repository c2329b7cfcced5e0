//! Tests over the whole catalogue and over the text that leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

/// Series (name with labels as written) to value; fails on anything that the text format forbids.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    let mut types = BTreeMap::new();
    let mut open = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("HELP has a text");
            assert!(!help.is_empty());
            assert!(!types.contains_key(name), "{name} comes twice");
            open = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("TYPE has a kind");
            assert_eq!(name, open);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (key, value) = line.rsplit_once(' ').expect("a sample has a value");
            let name = key.split_once('{').map_or(key, |(name, _)| name);
            let base = match types[&open].as_str() {
                "histogram" => name.trim_end_matches("_bucket").trim_end_matches("_sum"),
                _ => name,
            };
            assert_eq!(base.trim_end_matches("_count"), open.trim_end_matches("_count"), "{line}");
            check_labels(key);
            let value: f64 = value.parse().expect("a value is a number");
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} comes twice");
        }
    }
    series
}

fn check_labels(key: &str) {
    let Some((_, labels)) = key.split_once('{') else { return };
    let labels = labels.strip_suffix("\"}").expect("labels end");
    let mut names = BTreeSet::new();
    for label in labels.split("\",") {
        let (name, value) = label.split_once("=\"").expect("a label has a value");
        assert!(names.insert(name), "{key}");
        assert!(is_name(name), "{key}");
        assert!(!value.contains(['"', '\\', '\n']), "{key}");
    }
}

fn is_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    name.bytes().all(valid) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

fn lines() -> Vec<(&'static str, &'static str, Kind, usize)> {
    fn of<S>(entry: &Entry<S>) -> (&'static str, &'static str, Kind, usize) {
        (entry.name, entry.help, entry.kind, (entry.series)().len())
    }
    let core = Core::CATALOGUE.iter().map(of);
    core.chain(Process::CATALOGUE.iter().map(of)).collect()
}

#[test]
fn every_line_of_the_catalogue_keeps_the_rules() {
    let mut names = BTreeSet::new();
    for (name, help, kind, series_count) in lines() {
        assert!(names.insert(name), "{name} comes twice");
        assert!(name.starts_with("seedring_") && is_name(name), "{name}");
        let grows = matches!(kind, Kind::Counter | Kind::Seconds);
        assert_eq!(name.ends_with("_total"), grows, "{name}");
        assert!(
            help.ends_with('.') && help.starts_with(|c: char| c.is_ascii_uppercase()),
            "{name}"
        );
        assert!((1..=64).contains(&series_count), "{name} has {series_count} series");
    }
}

#[test]
fn every_series_is_there_from_the_start_with_zero() {
    let series = parse(&Registry::new(3).render());
    let mut seen = 0;
    for (name, _, kind, series_count) in lines() {
        let by_core = Core::CATALOGUE.iter().any(|entry| entry.name == name && entry.by_core);
        let suffix = if matches!(kind, Kind::Histogram(_)) { "_count" } else { "" };
        let own: Vec<_> = series
            .iter()
            .filter(|(key, _)| key.split('{').next() == Some(&format!("{name}{suffix}")))
            .collect();
        assert_eq!(own.len(), series_count * if by_core { 3 } else { 1 }, "{name}");
        assert!(own.iter().all(|(_, value)| **value == 0.0), "{name}");
        seen += own.len();
    }
    assert!(seen > 150);
    assert_eq!(series["seedring_build_info{version=\"0.1.0\"}"], 1.0);
    assert!(series["process_resident_memory_bytes"] > 0.0);
}

#[test]
fn the_page_stays_small_on_many_cores() {
    assert!(parse(&Registry::new(64).render()).len() < 2000);
}

#[test]
fn cells_are_summed_or_shown_by_core() {
    let registry = Registry::new(2);
    let (first, second, helper) = (&registry.cores()[0], &registry.cores()[1], registry.helper());
    first.sent_payload_bytes[SendPath::ZeroCopy].add(16_384);
    second.sent_payload_bytes[SendPath::ZeroCopy].add(1);
    first.handshakes[(Direction::Outgoing, HandshakeResult::Itself)].add(2);
    second.handshakes[(Direction::Outgoing, HandshakeResult::Itself)].add(3);
    helper.hash_bytes[HashReason::Recheck].add(7);
    helper.hash_seconds.add(Duration::from_millis(1500));
    second.hash_seconds.add(Duration::from_millis(500));
    first.peers[PeerState::Connected].set(5);
    first.peers[PeerState::Connected].sub(2);
    registry.process().http_requests[(HttpPath::Ready, HttpCode::Unavailable)].add(1);
    let series = parse(&registry.render());
    let expected = [
        ("seedring_sent_payload_bytes_total{core=\"0\",path=\"zerocopy\"}", 16_384.0),
        ("seedring_sent_payload_bytes_total{core=\"1\",path=\"zerocopy\"}", 1.0),
        ("seedring_sent_payload_bytes_total{core=\"1\",path=\"copy\"}", 0.0),
        ("seedring_handshakes_total{direction=\"out\",result=\"self\"}", 5.0),
        ("seedring_hash_bytes_total{reason=\"recheck\"}", 7.0),
        ("seedring_hash_seconds_total", 2.0),
        ("seedring_peers{state=\"connected\"}", 3.0),
        ("seedring_http_requests_total{path=\"/healthz/ready\",code=\"503\"}", 1.0),
    ];
    for (key, value) in expected {
        assert_eq!(series.get(key), Some(&value), "{key}");
    }
}

#[test]
fn stalls_fall_into_cumulative_buckets() {
    let registry = Registry::new(2);
    registry.cores()[0].core_stall_seconds.observe(Duration::from_millis(2));
    registry.cores()[1].core_stall_seconds.observe(Duration::from_millis(100));
    registry.cores()[1].core_stall_seconds.observe(Duration::from_secs(60));
    let series = parse(&registry.render());
    let name = "seedring_core_stall_seconds";
    for (bound, count) in [("0.0032", 1.0), ("0.0512", 1.0), ("0.2048", 2.0), ("+Inf", 3.0)] {
        assert_eq!(series[&format!("{name}_bucket{{le=\"{bound}\"}}")], count, "{bound}");
    }
    assert_eq!(series[&format!("{name}_count")], 3.0);
    assert!((series[&format!("{name}_sum")] - 60.102).abs() < 1e-9);
}

#[test]
fn label_sets_index_what_they_name() {
    for (index, value) in HttpCode::ALL.iter().enumerate() {
        for (path_index, path) in HttpPath::ALL.iter().enumerate() {
            let pair = (*path, *value);
            assert_eq!(pair.index(), path_index * HttpCode::COUNT + index);
            let names = &<(HttpPath, HttpCode)>::values()[pair.index()];
            assert_eq!(names, &[path.label(), value.label()]);
        }
    }
}

#[test]
fn cores_do_not_share_cache_lines() {
    assert_eq!(align_of::<Core>(), 128);
    assert_eq!(size_of::<Core>() % 128, 0);
}
