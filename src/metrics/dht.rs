//! The DHT: what its nodes count themselves, by family of addresses.
//!
//! A source that says what the nodes have counted enters, families of metrics leave; nothing at all
//! without one, where the DHT is off. Invariant: the labels are the closed lists of
//! [`crate::dht::counters`]; nothing that comes from outside becomes one.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::{Kind, pair};
use crate::dht::counters::{Answered, Asked, Dropped, Method, WAIT_BOUNDS};
use crate::dht::{Counters, Gauges};

/// What one node says.
#[derive(Clone, Debug)]
pub struct DhtNode {
    /// Whether its addresses are IPv4.
    pub is_ipv4: bool,
    /// What it has counted.
    pub counters: Counters,
    /// What there is now.
    pub gauges: Gauges,
}

type Source = Box<dyn Fn() -> Vec<DhtNode> + Send + Sync>;

/// The door between the nodes and the exposition. Clones share it.
#[derive(Clone)]
pub struct DhtNodes {
    source: Arc<Mutex<Option<Source>>>,
    /// One of the families, to be told apart from other collectors by.
    desc: Arc<Desc>,
}

impl Default for DhtNodes {
    fn default() -> Self {
        let (name, help) = ("seedring_dht_nodes".to_owned(), "The DHT.".to_owned());
        let desc = Desc::new(name, help, Vec::new(), Default::default());
        Self { source: Arc::default(), desc: Arc::new(desc.expect("a constant, and a test")) }
    }
}

impl DhtNodes {
    /// Has `source` asked at every scrape from now on.
    pub fn set(&self, source: impl Fn() -> Vec<DhtNode> + Send + Sync + 'static) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(source));
    }
}

/// One series: its labels and its cells.
type Row = (Vec<(&'static str, &'static str)>, Vec<u64>);

/// Which of the counts, and which of the gauges.
type CountOf = fn(&Counters) -> u64;
type GaugeOf = fn(&Gauges) -> usize;

impl Collector for DhtNodes {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = source.as_ref().map(|source| source()).unwrap_or_default();
        if nodes.is_empty() { Vec::new() } else { families(&nodes) }
    }
}

fn families(nodes: &[DhtNode]) -> Vec<proto::MetricFamily> {
    let count = |name, help, rows| family(name, help, Kind::Counter, rows);
    let gauge = |name, help, rows| family(name, help, Kind::Gauge, rows);
    let total =
        |of: CountOf| vec![(Vec::new(), vec![nodes.iter().map(|node| of(&node.counters)).sum()])];
    vec![
        gauge("nodes", "Nodes in the routing tables, by state.", states(nodes)),
        gauge(
            "verified_nodes",
            "Nodes in the routing tables whose id belongs to their address.",
            by_family(nodes, |gauges| gauges.verified_count),
        ),
        gauge(
            "stored_torrents",
            "Torrents that peers are kept of for others.",
            by_family(nodes, |gauges| gauges.stored_hash_count),
        ),
        gauge(
            "stored_peers",
            "Peers that are kept for others.",
            by_family(nodes, |gauges| gauges.stored_peer_count),
        ),
        gauge("torrents", "Torrents that are announced.", by_family(nodes, |it| it.torrent_count)),
        gauge(
            "announces_overdue",
            "Torrents whose announce should have begun more than five minutes ago.",
            by_family(nodes, |gauges| gauges.overdue_count),
        ),
        gauge("lookups_running", "Lookups on their way.", by_family(nodes, |it| it.lookup_count)),
        gauge(
            "queries_pending",
            "Queries of ours that wait for their answer.",
            by_family(nodes, |gauges| gauges.pending_count),
        ),
        count("queries_total", "Queries, by direction, kind and result.", queries(nodes)),
        family(
            "query_seconds",
            "Time until a node answered us.",
            Kind::Histogram(&WAIT_BOUNDS),
            waits(nodes),
        ),
        count("bytes_total", "Bytes of datagrams, without their headers.", bytes(nodes)),
        count("dropped_total", "Datagrams that were dropped, by why.", dropped(nodes)),
        count(
            "refused_addresses_total",
            "Addresses in replies that may not be contacted.",
            total(|counters| counters.poisoned_count),
        ),
        count("lookups_total", "Lookups that ended.", total(|counters| counters.lookup_count)),
        count(
            "announces_total",
            "Announces that a node confirmed.",
            total(|counters| counters.announce_count),
        ),
        count(
            "lost_events_total",
            "Findings that nobody fetched in time.",
            total(|counters| counters.lost_event_count),
        ),
    ]
}

fn family(name: &str, help: &str, kind: Kind, rows: Vec<Row>) -> proto::MetricFamily {
    let metrics = rows.into_iter().map(|(labels, cells)| {
        let labels = labels.into_iter().map(|(name, value)| pair(name, value)).collect();
        let mut metric = proto::Metric::from_label(labels);
        kind.fill(&mut metric, &cells);
        metric
    });
    let mut family = proto::MetricFamily::default();
    family.set_name(format!("seedring_dht_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind.prometheus());
    family.set_metric(metrics.collect());
    family
}

fn label_of(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "ipv4" } else { "ipv6" }
}

/// A gauge by family, of those families that there are nodes of.
fn by_family(nodes: &[DhtNode], of: GaugeOf) -> Vec<Row> {
    let present =
        [true, false].into_iter().filter(|is_v4| nodes.iter().any(|node| node.is_ipv4 == *is_v4));
    let row = |is_v4| {
        let of_family = nodes.iter().filter(|node| node.is_ipv4 == is_v4);
        let sum: usize = of_family.map(|node| of(&node.gauges)).sum();
        (vec![("family", label_of(is_v4))], vec![sum as u64])
    };
    present.map(row).collect()
}

fn states(nodes: &[DhtNode]) -> Vec<Row> {
    let states: [(&str, GaugeOf); 3] = [
        ("good", |gauges| gauges.good_count),
        ("questionable", |gauges| gauges.questionable_count),
        ("bad", |gauges| gauges.bad_count),
    ];
    let of_state = states.into_iter().flat_map(|(state, of)| {
        let rows = by_family(nodes, of).into_iter();
        rows.map(move |(labels, cells)| ([labels, vec![("state", state)]].concat(), cells))
    });
    of_state.collect()
}

fn queries(nodes: &[DhtNode]) -> Vec<Row> {
    let sum = |of: &dyn Fn(&Counters) -> u64| nodes.iter().map(|node| of(&node.counters)).sum();
    let mut rows: Vec<Row> = Vec::new();
    for method in Method::ALL {
        let mut push = |direction, result, count| {
            let labels =
                vec![("direction", direction), ("query", method.label()), ("result", result)];
            rows.push((labels, vec![count]));
        };
        for result in Answered::ALL {
            push("in", result.label(), sum(&|it| it.answered(method, result)));
        }
        // We ask nobody what we do not know the name of.
        for result in Asked::ALL.into_iter().filter(|_| method != Method::Other) {
            push("out", result.label(), sum(&|it| it.asked(method, result)));
        }
    }
    rows
}

fn waits(nodes: &[DhtNode]) -> Vec<Row> {
    let mut cells = vec![0; WAIT_BOUNDS.len() + 2];
    for node in nodes {
        let waits = &node.counters.waits;
        let all = waits.counts.iter().chain([&waits.nanos]);
        cells.iter_mut().zip(all).for_each(|(sum, cell)| *sum += cell);
    }
    vec![(Vec::new(), cells)]
}

fn bytes(nodes: &[DhtNode]) -> Vec<Row> {
    let directions: [(&str, CountOf); 2] =
        [("in", |it| it.received_len), ("out", |it| it.sent_len)];
    let row = |(direction, of): (&'static str, CountOf)| {
        let sum = nodes.iter().map(|node| of(&node.counters)).sum();
        (vec![("direction", direction)], vec![sum])
    };
    directions.map(row).into()
}

fn dropped(nodes: &[DhtNode]) -> Vec<Row> {
    let row = |reason: Dropped| {
        let sum = nodes.iter().map(|node| node.counters.dropped(reason)).sum();
        (vec![("reason", reason.label())], vec![sum])
    };
    Dropped::ALL.map(row).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn nodes_of_both_families_are_told_apart_and_their_counts_summed() {
        let registry = Registry::new(1);
        assert!(!registry.render().contains("seedring_dht_"), "without the DHT there is nothing");
        let node = |is_ipv4, good_count: usize| {
            let gauges = Gauges { good_count, stored_peer_count: 7, ..Gauges::default() };
            let mut counters = Counters::default();
            counters.received_len = 100;
            counters.answer(Method::GetPeers, Answered::Limited);
            counters.ask(Method::Ping, Asked::Lost);
            counters.drop(Dropped::Unasked);
            counters.waited(std::time::Duration::from_millis(50));
            DhtNode { is_ipv4, counters, gauges }
        };
        registry.dht().set(move || vec![node(true, 3), node(true, 2), node(false, 1)]);
        let text = registry.render();
        for line in [
            "nodes{family=\"ipv4\",state=\"good\"} 5",
            "nodes{family=\"ipv6\",state=\"good\"} 1",
            "nodes{family=\"ipv6\",state=\"bad\"} 0",
            "stored_peers{family=\"ipv4\"} 14",
            "queries_total{direction=\"in\",query=\"get_peers\",result=\"limited\"} 3",
            "queries_total{direction=\"out\",query=\"ping\",result=\"lost\"} 3",
            "bytes_total{direction=\"in\"} 300",
            "bytes_total{direction=\"out\"} 0",
            "dropped_total{reason=\"unasked\"} 3",
            "query_seconds_bucket{le=\"0.1\"} 3",
            "query_seconds_bucket{le=\"0.025\"} 0",
            "query_seconds_count 3",
        ] {
            assert!(text.contains(&format!("seedring_dht_{line}\n")), "{line} in {text}");
        }
        registry.dht().set(move || vec![node(false, 1)]);
        assert!(!registry.render().contains("ipv4"), "there is no node of that family");
    }
}
