//! The metrics: cells that cores write and a registry that reads them without stopping anybody.
//!
//! Workers, hash threads and the control thread count into cells of their own; a scrape sums the
//! cells and leaves as Prometheus text (format 0.0.4). A new metric is one documented line in
//! [`catalogue`](self::Core) and one `.add(n)` where it happens; its name, help, label values and
//! zeroes follow from that line.
//!
//! Invariant: counting is one relaxed load and one relaxed store, never a locked instruction, a
//! lock, an allocation or a lookup by name; no name of a torrent or peer ever becomes a label.
//! The names of a few trackers do, which only the control thread counts: [`TrackerAnnounces`].

mod catalogue;
mod cells;
mod dht;
mod labels;
mod process;
mod trackers;

pub use self::catalogue::{Core, Process};
pub use self::cells::{
    BUCKETS, Bounds, Counter, Family, Gauge, Histogram, Kind, LATENCY_BUCKETS, Latencies,
    STALL_BUCKETS, Seconds, Stalls,
};
pub use self::dht::{DhtNode, DhtNodes};
pub use self::labels::*;
pub use self::trackers::{OTHERS, TRACKERS_MAX, TrackerAnnounces};

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto;
use prometheus::{Encoder as _, TextEncoder};

/// Content-Type of what [`Registry::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One line of the catalogue, as the collector sees it.
#[derive(Clone, Copy)]
struct Entry<S> {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    by_core: bool,
    labels: fn() -> Vec<&'static str>,
    series: fn() -> Vec<Vec<&'static str>>,
    read: fn(&S, &mut Vec<u64>),
}

/// All cells of the process and the door to their text form. Clones share the cells.
///
/// ```
/// use seedring::metrics::{Registry, RequestResult};
/// let registry = Registry::new(2);
/// registry.cores()[1].requests[RequestResult::Served].add(3);
/// let text = registry.render();
/// assert!(text.contains("seedring_requests_total{result=\"served\"} 3\n"));
/// ```
#[derive(Clone)]
pub struct Registry {
    cells: Arc<Cells>,
    exposition: prometheus::Registry,
}

struct Cells {
    cores: Vec<Arc<Core>>,
    helpers: Mutex<Vec<Arc<Core>>>,
    process: Arc<Process>,
    tracker_announces: TrackerAnnounces,
    dht: DhtNodes,
}

impl Registry {
    /// A registry with one [`Core`] per worker, everything at 0.
    pub fn new(core_count: usize) -> Self {
        let cells = Arc::new(Cells {
            cores: (0..core_count).map(|_| Arc::default()).collect(),
            helpers: Mutex::default(),
            process: Arc::default(),
            tracker_announces: TrackerAnnounces::default(),
            dht: DhtNodes::default(),
        });
        let exposition = prometheus::Registry::new();
        exposition
            .register(Box::new(CellCollector::new(Arc::clone(&cells))))
            .expect("a test walks the catalogue: names are unique and valid");
        exposition
            .register(Box::new(process::ProcessCollector::new()))
            .expect("the names of the process collector are its own");
        exposition
            .register(Box::new(cells.tracker_announces.clone()))
            .expect("a collector without fixed names collides with none");
        exposition
            .register(Box::new(cells.dht.clone()))
            .expect("a collector without fixed names collides with none");
        Self { cells, exposition }
    }

    /// The cells of the workers, in the order of their `core` label. Only that worker's thread may
    /// write to them; anyone may read.
    pub fn cores(&self) -> &[Arc<Core>] {
        &self.cells.cores
    }

    /// Fresh cells for one more thread, such as a hash thread. They are part of every sum; a
    /// metric that is labelled by core shows the workers only.
    pub fn helper(&self) -> Arc<Core> {
        let core = Arc::<Core>::default();
        self.cells.helpers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&core));
        core
    }

    /// The cells of the control thread, the only one that may write to them.
    pub fn process(&self) -> &Arc<Process> {
        &self.cells.process
    }

    /// Announces by tracker.
    pub fn tracker_announces(&self) -> &TrackerAnnounces {
        &self.cells.tracker_announces
    }

    /// The nodes of the DHT.
    pub fn dht(&self) -> &DhtNodes {
        &self.cells.dht
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.exposition.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Sums cells when Prometheus asks.
struct CellCollector {
    cells: Arc<Cells>,
    descs: Vec<Desc>,
}

impl CellCollector {
    fn new(cells: Arc<Cells>) -> Self {
        let core = Core::CATALOGUE.iter().map(|entry| entry.desc());
        let process = Process::CATALOGUE.iter().map(|entry| entry.desc());
        Self { cells, descs: core.chain(process).collect() }
    }
}

impl Collector for CellCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let helpers = self.cells.helpers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = || self.cells.cores.iter().chain(&helpers).map(Arc::as_ref);
        let core = Core::CATALOGUE.iter().map(|entry| {
            if entry.by_core {
                entry.family_by_core(self.cells.cores.iter().map(Arc::as_ref))
            } else {
                entry.family(all())
            }
        });
        let process = Process::CATALOGUE
            .iter()
            .map(|entry| entry.family(std::iter::once(self.cells.process.as_ref())));
        core.chain(process).filter(|family| !family.get_metric().is_empty()).collect()
    }
}

impl<S> Entry<S> {
    fn desc(&self) -> Desc {
        let core = self.by_core.then_some("core");
        let labels = core.into_iter().chain((self.labels)()).map(str::to_owned).collect();
        Desc::new(self.name.to_owned(), self.help.to_owned(), labels, Default::default())
            .expect("a test walks the catalogue: every name and label is valid")
    }

    /// One series per combination of label values, each the sum over `cells`.
    fn family<'a>(&self, cells: impl Iterator<Item = &'a S>) -> proto::MetricFamily
    where
        S: 'a,
    {
        let mut sums = Vec::new();
        for cell in cells {
            let mut values = Vec::new();
            (self.read)(cell, &mut values);
            sums.resize(values.len(), 0);
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = value.wrapping_add(*sum);
            }
        }
        self.wrap(self.metrics(&[], &sums))
    }

    /// The same per core, without sums.
    fn family_by_core<'a>(&self, cells: impl Iterator<Item = &'a S>) -> proto::MetricFamily
    where
        S: 'a,
    {
        let mut metrics = Vec::new();
        for (core, cell) in cells.enumerate() {
            let mut values = Vec::new();
            (self.read)(cell, &mut values);
            metrics.extend(self.metrics(&[pair("core", &core.to_string())], &values));
        }
        self.wrap(metrics)
    }

    fn metrics(&self, leading: &[proto::LabelPair], values: &[u64]) -> Vec<proto::Metric> {
        let labels = (self.labels)();
        let series = (self.series)();
        let mut metrics = Vec::with_capacity(series.len());
        for (names, cells) in series.iter().zip(values.chunks(self.kind.cell_count())) {
            let own = labels.iter().zip(names).map(|(label, value)| pair(label, value));
            let all = leading.iter().cloned().chain(own).collect();
            let mut metric = proto::Metric::from_label(all);
            self.kind.fill(&mut metric, cells);
            metrics.push(metric);
        }
        metrics
    }

    fn wrap(&self, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
        let mut family = proto::MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(self.kind.prometheus());
        family.set_metric(metrics);
        family
    }
}

fn pair(name: &str, value: &str) -> proto::LabelPair {
    let mut pair = proto::LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

#[cfg(test)]
mod tests;
