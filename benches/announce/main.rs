//! How long it takes until ten thousand torrents with two trackers each are announced once, while
//! a third of the trackers is dead in one of three ways.
//!
//! Nothing enters; a table leaves for each of three runs: the living trackers alone, all of them
//! tier after tier, and all of them with tiers in parallel. It runs in a network namespace of its
//! own, where nft drops what goes to some addresses, and so needs root, `unshare`, `ip` and `nft`.
//! Invariant: the trackers run on a thread of their own, so that what is measured is the service.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]

mod trackers;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use seedring::sys::clock;
use seedring::tracker::{AddressPolicy, Config, Service, Totals};
use seedring::units::{InfoHash, PeerId};
use trackers::{Kind, Tracker};

const TORRENTS: u32 = 10_000;

/// By then everyone has to be announced.
const GOAL: Duration = Duration::from_secs(120);

/// Passed to ourselves inside of the namespace.
const INSIDE: &str = "--inside";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench" || argument == INSIDE) {
        println!("nothing to measure without --bench");
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|argument| argument == INSIDE) {
        let ourselves = std::env::current_exe().unwrap();
        let status = Command::new("unshare").arg("--net").arg(ourselves).arg(INSIDE).status();
        let is_ok = status.is_ok_and(|status| status.success());
        return if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    run("ip", &["link", "set", "lo", "up"]);
    run("nft", &["add table inet announce"]);
    run("nft", &["add chain inet announce in { type filter hook input priority 0; }"]);
    run("nft", &[&format!("add rule inet announce in ip daddr {} drop", trackers::DROPPED)]);
    let trackers = trackers::start();
    let mut is_met = true;
    for setting in [Setting::Living, Setting::Tiers, Setting::Parallel] {
        trackers.iter().for_each(Tracker::reset);
        is_met &= measure(setting, &trackers);
    }
    if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {arguments:?} failed");
}

/// Which trackers the torrents name, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// Only those that answer.
    Living,
    /// The first tier may be dead, the second one answers.
    Tiers,
    /// The same, with both announced to at once.
    Parallel,
}

impl Setting {
    fn title(self) -> &'static str {
        match self {
            Self::Living => "only living trackers, both tiers at once",
            Self::Tiers => "a third is dead, tier after tier",
            Self::Parallel => "a third is dead, both tiers at once",
        }
    }

    /// The two trackers of a torrent; the second one is alive.
    fn trackers(self, index: usize, trackers: &[Tracker]) -> [&Tracker; 2] {
        let alive: Vec<_> = trackers.iter().filter(|it| it.kind.is_alive()).collect();
        let second = alive[(index / 7) % alive.len()];
        let first = match self {
            Self::Living => alive[index % alive.len()],
            Self::Tiers | Self::Parallel => &trackers[index % trackers.len()],
        };
        if first.at == second.at {
            [first, alive[(index / 7 + 1) % alive.len()]]
        } else {
            [first, second]
        }
    }
}

/// Runs one setting and prints its table. Whether all were announced in time, within the limits.
fn measure(setting: Setting, trackers: &[Tracker]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (took, peak, limit) = runtime.block_on(announce_all(setting, trackers));
    print_table(setting, trackers);
    let time = took.map_or("never".to_owned(), |took| format!("{:.1} s", took.as_secs_f64()));
    println!("all announced: {time}; in flight at most {peak} of {limit}\n");
    took.is_some_and(|took| took <= GOAL) && peak <= limit
}

async fn announce_all(setting: Setting, trackers: &[Tracker]) -> (Option<Duration>, u64, u64) {
    let mut config = Config::new(PeerId(*b"-sg0100-announcing--"), 6881, 1);
    config.policy = AddressPolicy { allow_loopback: true, ..AddressPolicy::default() };
    config.options.parallel_tiers = setting != Setting::Tiers;
    let limit = config.limits.in_flight_max as u64;
    let (handle, mut found) = Service::spawn(config).unwrap();
    let drain = tokio::spawn(async move { while found.recv().await.is_some() {} });
    let start = clock::now();
    trackers.iter().for_each(|tracker| tracker.begin(start));
    let mut expected = 0;
    for index in 0..TORRENTS {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&index.to_be_bytes());
        let named = setting.trackers(index as usize, trackers);
        let alive_count = named.iter().filter(|it| it.kind.is_alive()).count();
        expected += if setting == Setting::Tiers { 1 } else { alive_count };
        let tiers = named.map(|tracker| vec![tracker.url()]);
        handle.add(InfoHash(hash), &tiers, Arc::new(Totals::default)).unwrap();
    }
    let (mut peak, mut took) = (0, None);
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    while clock::now() - start < GOAL + Duration::from_secs(30) {
        ticks.tick().await;
        peak = peak.max(handle.counters().in_flight.load(Relaxed));
        if trackers.iter().map(Tracker::torrent_count).sum::<usize>() >= expected {
            took = Some(clock::now() - start);
            break;
        }
    }
    // Nobody waits for the goodbye of ten thousand torrents.
    handle.shutdown(Duration::ZERO).await;
    drain.abort();
    (took, peak, limit)
}

fn print_table(setting: Setting, trackers: &[Tracker]) {
    let mut groups: BTreeMap<Kind, Vec<&Tracker>> = BTreeMap::new();
    for tracker in trackers {
        groups.entry(tracker.kind).or_default().push(tracker);
    }
    println!("{}: {TORRENTS} torrents × 2 trackers\n", setting.title());
    println!(
        "| tracker        | addresses | torrents heard | heard again | first s | last of the fastest, slowest s |"
    );
    println!(
        "|----------------|-----------|----------------|-------------|---------|--------------------------------|"
    );
    for (kind, group) in groups {
        let torrents: usize = group.iter().map(|tracker| tracker.torrent_count()).sum();
        let again: usize = group.iter().map(|tracker| tracker.repeat_count()).sum();
        let firsts = group.iter().filter_map(|tracker| tracker.first()).min();
        let mut lasts: Vec<_> = group.iter().filter_map(|tracker| tracker.last()).collect();
        lasts.sort();
        let shown = |time: Option<Duration>| {
            time.map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
        };
        println!(
            "| {:14} | {:9} | {torrents:14} | {again:11} | {:>7} | {:>30} |",
            kind.name(),
            group.len(),
            shown(firsts),
            format!("{}, {}", shown(lasts.first().copied()), shown(lasts.last().copied())),
        );
    }
    println!();
}
