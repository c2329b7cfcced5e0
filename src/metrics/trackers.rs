//! Announces by tracker: the one metric whose label comes from outside.
//!
//! Hosts and results enter, a counter per host and result leaves. Invariant: at most
//! [`TRACKERS_MAX`] hosts become labels, those that were announced to first; all others are
//! counted together as [`OTHERS`], so that no torrent can make the exposition grow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::labels::{AnnounceResult, Labels};
use super::{Kind, pair};

/// Hosts that get a label of their own.
pub const TRACKERS_MAX: usize = 50;

/// The label of all other hosts.
pub const OTHERS: &str = "other";

const NAME: &str = "seedring_tracker_announces_total";
const HELP: &str = "Announces by tracker, the first 50 of them, and by what became of them.";

/// Counts of announces by tracker. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct TrackerAnnounces {
    rows: Arc<Mutex<BTreeMap<String, [u64; AnnounceResult::COUNT]>>>,
}

impl TrackerAnnounces {
    /// Counts an announce to `host`: scheme, name and port, never the keys of a URL.
    pub fn count(&self, host: &str, result: AnnounceResult) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let is_labelled = rows.contains_key(host) || rows.len() < TRACKERS_MAX;
        let host = if is_labelled { host } else { OTHERS };
        let counts = match rows.get_mut(host) {
            Some(counts) => counts,
            None => rows.entry(host.to_owned()).or_default(),
        };
        counts[result.index()] += 1;
    }
}

impl Collector for TrackerAnnounces {
    fn desc(&self) -> Vec<&Desc> {
        // Checked at registration only, which needs no names of its own.
        Vec::new()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = rows.iter().flat_map(|(host, counts)| {
            AnnounceResult::ALL.iter().map(move |result| {
                let labels = vec![pair("tracker", host), pair("result", result.label())];
                let mut metric = proto::Metric::from_label(labels);
                Kind::Counter.fill(&mut metric, &[counts[result.index()]]);
                metric
            })
        });
        let metrics: Vec<_> = metrics.collect();
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(NAME.to_owned());
        family.set_help(HELP.to_owned());
        family.set_field_type(Kind::Counter.prometheus());
        family.set_metric(metrics);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn hosts_beyond_the_limit_are_others() {
        let registry = Registry::new(1);
        for index in 0..TRACKERS_MAX + 7 {
            let host = format!("udp://t{index}.example:1");
            registry.tracker_announces().count(&host, AnnounceResult::Timeout);
        }
        registry.tracker_announces().count("udp://t0.example:1", AnnounceResult::Ok);
        let text = registry.render();
        let line = |host: &str, result: &str, count: u32| {
            let line = format!("{NAME}{{result=\"{result}\",tracker=\"{host}\"}} {count}\n");
            let other = format!("{NAME}{{tracker=\"{host}\",result=\"{result}\"}} {count}\n");
            assert!(text.contains(&line) || text.contains(&other), "{line} in {text}");
        };
        line("udp://t0.example:1", "ok", 1);
        line("udp://t0.example:1", "timeout", 1);
        line(OTHERS, "timeout", 7);
        assert_eq!(text.matches("result=\"tls\"").count(), TRACKERS_MAX + 2, "one is of all");
        assert!(!Registry::new(1).render().contains(NAME));
    }
}
