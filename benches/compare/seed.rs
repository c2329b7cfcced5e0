//! Seeding: the same load against every program in turn, and iperf3 beside them.
//!
//! A load enters, a table leaves. Rounds are interleaved, so that a machine that slows down does it
//! to all. Invariant: no program runs while another one is measured.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::common::Spread;
use crate::iperf::{self, Stream};
use crate::load::{self, Outcome, Plan, VERIFY_ONE_IN};
use crate::peers::{Peer, Scene};
use crate::probe::wait_ready;
use crate::process::Running;
use crate::stage::Stage;
use crate::table::{Bound, Score, Table, failed, judge, ratio_to_ours};

/// How many peers ask, and how deep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    /// Number of connections.
    pub(crate) connections: usize,
    /// Requests in flight on each.
    pub(crate) depth: usize,
    /// Whether the streams are under RC4.
    pub(crate) is_encrypted: bool,
}

/// The loads that are run if none is named.
pub(crate) const STANDARD: [Load; 2] = [
    Load { connections: 8, depth: 128, is_encrypted: false },
    Load { connections: 500, depth: 8, is_encrypted: false },
];

/// The load of peers that insist on encryption.
pub(crate) const ENCRYPTED: Load = Load { is_encrypted: true, ..STANDARD[0] };

const GIB: f64 = (1u64 << 30) as f64;

const COLUMNS: [&str; 7] =
    ["seeder", "CPU s/GiB", "× seedring", "GiB/s", "served", "seeder's core", "load's core"];

/// Runs one load and says what came of it.
pub(crate) fn run(stage: &Stage, load: Load) -> io::Result<Table> {
    let peers: Vec<_> =
        stage.peers.iter().filter(|peer| !load.is_encrypted || peer.encrypts()).collect();
    let with_iperf = stage.with_iperf && !load.is_encrypted;
    let mut results: Vec<Vec<io::Result<Outcome>>> = peers.iter().map(|_| vec![]).collect();
    let mut streams: Vec<Vec<io::Result<Stream>>> = iperf::COUNTS.iter().map(|_| vec![]).collect();
    for round in 1..=stage.repeat {
        for (peer, results) in peers.iter().zip(&mut results) {
            stage.tell(&format!("seed {load}, round {round}: {}", peer.name()));
            results.push(measure(stage, load, **peer));
        }
        if with_iperf {
            for (&count, streams) in iperf::COUNTS.iter().zip(&mut streams) {
                stage.tell(&format!("seed {load}, round {round}: iperf3, {count} streams"));
                streams.push(iperf::measure(stage, count));
            }
        }
    }
    let scores: Vec<Score> = peers
        .iter()
        .zip(&results)
        .map(|(peer, results)| {
            let costs = results.iter().flatten().filter_map(cost);
            Score { name: peer.name(), value: Spread::of(costs) }
        })
        .collect();
    let mut table =
        Table { title: format!("Seeding, {load}"), columns: COLUMNS.to_vec(), ..Table::default() };
    for (peer, results) in peers.iter().zip(&results) {
        match row(peer.name(), results, &scores, load) {
            Some(row) => table.rows.push(row),
            None => failed(&mut table, peer.name(), results),
        }
    }
    for (&count, streams) in iperf::COUNTS.iter().zip(&streams).filter(|_| with_iperf) {
        match iperf::row(count, streams) {
            Some(row) => table.rows.push(row),
            None => failed(&mut table, "iperf3", streams),
        }
    }
    table.notes.push(verification(&results));
    table.notes.push(goals(load, &scores, &results, stage));
    table.notes.retain(|note| !note.is_empty());
    Ok(table)
}

impl std::fmt::Display for Load {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} connections × {} requests", self.connections, self.depth)?;
        out.write_str(if self.is_encrypted { ", under RC4" } else { "" })
    }
}

/// Starts a program, waits until it seeds, and loads it.
fn measure(stage: &Stage, load: Load, peer: &dyn Peer) -> io::Result<Outcome> {
    let scene = stage.scene(Vec::new())?;
    let command = peer.seed(&scene)?.ok_or_else(|| io::Error::other("it cannot seed"))?;
    let mut program = Running::start(command, stage.core, &scene.dir.join("log"))?;
    wait_ready(&stage.ground, scene.listen, &mut program)?;
    let outcome = load::run(&stage.ground, &plan(stage, load, &scene), || program.cpu());
    program.check_alive()?;
    outcome
}

fn plan(stage: &Stage, load: Load, scene: &Scene<'_>) -> Plan {
    let target: SocketAddr = scene.listen;
    Plan {
        target,
        connections: load.connections,
        depth: load.depth,
        is_encrypted: load.is_encrypted,
        rate: None,
        window: Duration::from_secs(stage.seconds),
        spin: stage.spin,
        core: stage.load_core,
    }
}

/// Processor seconds of the seeder per GiB that it sent.
fn cost(outcome: &Outcome) -> Option<f64> {
    (outcome.bytes > 0).then(|| outcome.seeder_cpu.as_secs_f64() * GIB / outcome.bytes as f64)
}

fn row(
    name: &'static str,
    results: &[io::Result<Outcome>],
    scores: &[Score],
    load: Load,
) -> Option<Vec<String>> {
    let good: Vec<&Outcome> = results.iter().flatten().collect();
    let spread = |value: &dyn Fn(&Outcome) -> f64| Spread::of(good.iter().map(|it| value(it)));
    let rate = spread(&|it| it.bytes as f64 / GIB / it.elapsed.as_secs_f64())?;
    let costs = Spread::of(good.iter().filter_map(|it| cost(it)));
    let served = good.iter().map(|it| it.served).min().unwrap_or(0);
    let share = |cpu: &dyn Fn(&Outcome) -> Duration| {
        spread(&|it| 100.0 * cpu(it).as_secs_f64() / it.elapsed.as_secs_f64())
            .map_or_else(String::new, |it| format!("{:.0} %", it.median))
    };
    Some(vec![
        name.to_owned(),
        costs.map_or_else(|| "nothing sent".to_owned(), |it| format!("{it:.3}")),
        ratio_to_ours(scores, name),
        format!("{rate:.2}"),
        format!("{served} of {}", load.connections),
        share(&|it| it.seeder_cpu),
        share(&|it| it.load_cpu),
    ])
}

fn verification(results: &[Vec<io::Result<Outcome>>]) -> String {
    let outcomes = || results.iter().flatten().flatten();
    let (verified, wrong): (u64, u64) =
        (outcomes().map(|it| it.verified).sum(), outcomes().map(|it| it.wrong).sum());
    format!(
        "{verified} blocks of one piece in {VERIFY_ONE_IN} were compared byte by byte; {wrong} were \
         wrong or not asked for."
    )
}

fn goals(
    load: Load,
    scores: &[Score],
    results: &[Vec<io::Result<Outcome>>],
    stage: &Stage,
) -> String {
    let [few_deep, many_shallow] = STANDARD;
    if load == few_deep {
        let rqbit = judge(scores, "CPU per GiB", "rqbit", Bound::AtMost(0.6));
        let libtorrent = judge(scores, "CPU per GiB", "libtorrent", Bound::AtMost(0.25));
        return format!("{rqbit}\n{libtorrent}");
    }
    if load != many_shallow {
        return String::new();
    }
    let ours = stage.peers.iter().position(|peer| peer.name() == "seedring");
    let served = ours.and_then(|at| results[at].iter().flatten().map(|it| it.served).min());
    let served = match served {
        Some(served) if served == load.connections => "- Every connection served: reached.".into(),
        Some(served) => format!("- Every connection served: missed, {served} were."),
        None => String::from("- Every connection served: seedring was not measured."),
    };
    format!("{served}\n{}", judge(scores, "CPU per GiB", "libtorrent", Bound::AtMost(0.3)))
}
