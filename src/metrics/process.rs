//! What the kernel knows about this process, under the names that every Prometheus client uses.
//!
//! `/proc/self` enters at each scrape, `process_*` and `seedring_build_info` leave. Invariant: a
//! value that cannot be read is left out, never guessed.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::Kind;

/// Kernel ticks per second in `/proc/self/stat`: `USER_HZ`, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Name, help and kind of what this collector exports.
const EXPORTED: [(&str, &str, Kind); 6] = [
    ("seedring_build_info", "Always 1; the version is in the label.", Kind::Gauge),
    ("process_cpu_seconds_total", "Processor time, user and system.", Kind::Counter),
    ("process_resident_memory_bytes", "Resident memory, mapped files included.", Kind::Gauge),
    ("process_anonymous_memory_bytes", "Resident memory that no file backs.", Kind::Gauge),
    ("process_open_fds", "Open file descriptors.", Kind::Gauge),
    ("process_max_fds", "File descriptors that may be open.", Kind::Gauge),
];

/// Reads `/proc/self` when Prometheus asks.
pub(super) struct ProcessCollector {
    descs: Vec<Desc>,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let desc = |&(name, help, _): &(&str, &str, Kind)| {
            let labels = (name == EXPORTED[0].0).then(|| "version".to_owned());
            let labels = labels.into_iter().collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
                .expect("a test collects them: every name is valid")
        };
        Self { descs: EXPORTED.iter().map(desc).collect() }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let status = read("status");
        let values = [
            Some(1.0),
            read("stat").as_deref().and_then(cpu_seconds),
            status.as_deref().and_then(|text| status_bytes(text, "VmRSS:")),
            status.as_deref().and_then(|text| status_bytes(text, "RssAnon:")),
            open_fds(),
            read("limits").as_deref().and_then(max_fds),
        ];
        let known = EXPORTED.iter().zip(values).filter_map(|(line, value)| Some((line, value?)));
        known.map(|(&(name, help, kind), value)| family(name, help, kind, value)).collect()
    }
}

fn family(name: &str, help: &str, kind: Kind, value: f64) -> proto::MetricFamily {
    let mut labels = Vec::new();
    if name == EXPORTED[0].0 {
        labels.push(super::pair("version", env!("CARGO_PKG_VERSION")));
    }
    let mut metric = proto::Metric::from_label(labels);
    if kind == Kind::Counter {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind.prometheus());
    family.set_metric(vec![metric]);
    family
}

/// Fields 14 and 15 of `/proc/self/stat` (proc_pid_stat(5)), counted behind the program's name,
/// which may hold spaces and brackets itself.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// A line of `/proc/self/status` that is in kB.
fn status_bytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// Entries of `/proc/self/fd`, without the one that this reading opens.
fn open_fds() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(f64::from(u32::try_from(count.saturating_sub(1)).ok()?))
}

fn max_fds(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 150 0 0 20 0 5 0 9 1 2";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn status_and_limits_are_read() {
        assert_eq!(status_bytes("VmRSS:\t    2048 kB\n", "VmRSS:"), Some(2_097_152.0));
        assert_eq!(status_bytes("VmRSS:\t x kB\n", "VmRSS:"), None);
        let limits = "Limit  Soft  Hard\nMax open files            1024   4096   files \n";
        assert_eq!(max_fds(limits), Some(1024.0));
    }

    #[test]
    fn every_line_is_collected_here() {
        let families = ProcessCollector::new().collect();
        assert_eq!(families.len(), EXPORTED.len());
        for family in families {
            let metric = &family.get_metric()[0];
            let value = metric.get_gauge().get_value() + metric.get_counter().get_value();
            assert!(value >= 0.0, "{}", family.name());
        }
    }
}
