//! Tasks that end by themselves: fetching from seeders of ours, and checking what is there.
//!
//! A stage enters, tables leave. A task's time is from the start of its program to its end, unless
//! the program itself says what the task alone took. Invariant: what was fetched is compared byte
//! by byte, and removed before the next one begins.

use std::io;
use std::time::Duration;

use seedring::sys::clock;

use crate::common::Spread;
use crate::filler::Filler;
use crate::peers::{Peer, Recipe, Scene};
use crate::process::{Ended, Running, tail};
use crate::serve::Seeders;
use crate::stage::Stage;
use crate::table::{Bound, Score, Table, failed, judge, ratio_to_ours};

/// How long one task may take.
const TASK_TIMEOUT: Duration = Duration::from_secs(300);

const GIB: f64 = (1u64 << 30) as f64;

/// What one task took.
#[derive(Clone, Copy, Debug)]
struct Took {
    seconds: f64,
    cpu: f64,
}

/// Measures a task once; `None` if the program cannot do it.
type Measure<'a> = dyn Fn(&Stage, &dyn Peer) -> io::Result<Option<Took>> + 'a;

/// One kind of task.
struct Task<'a> {
    verb: &'static str,
    recipe: fn(&dyn Peer, &Scene<'_>) -> Recipe,
    measure: &'a Measure<'a>,
}

/// Fetches from the stage's number of seeders.
pub(crate) fn fetch(stage: &Stage) -> io::Result<Table> {
    let filler = Filler::new(stage.ground.scratch.path())?;
    // The first time takes so long that the host takes back what came first.
    stage.tell("fetch: filling the page cache");
    filler.fill()?;
    let task = Task {
        verb: "fetch",
        recipe: |peer, scene| peer.fetch(scene),
        measure: &|stage, peer| {
            let seeders = Seeders::start(&stage.ground, stage.sources, stage.load_core)?;
            let scene = stage.scene(seeders.addrs.clone())?;
            filler.fill()?;
            let took = run_once(stage, &scene, peer.fetch(&scene)?)?;
            if took.is_some() {
                let target = scene.target()?;
                if !stage.ground.is_fetched(&target)? {
                    return Err(io::Error::other("what it fetched is wrong"));
                }
                std::fs::remove_dir_all(target)?;
            }
            Ok(took)
        },
    };
    let (mut table, costs, _) = tabulate(stage, &task)?;
    let size = gib(stage);
    table.title = format!("Fetching {size:.2} GiB from {} seeders", stage.sources);
    table.notes.push(judge(&costs, "CPU per GiB", "libtorrent", Bound::AtMost(0.5)));
    Ok(table)
}

/// Checks the data, which is in memory.
pub(crate) fn check(stage: &Stage) -> io::Result<Table> {
    let task = Task {
        verb: "check",
        recipe: |peer, scene| peer.check(scene),
        measure: &|stage, peer| {
            let scene = stage.scene(Vec::new())?;
            stage.ground.warm()?;
            run_once(stage, &scene, peer.check(&scene)?)
        },
    };
    let (mut table, _, rates) = tabulate(stage, &task)?;
    table.title = format!("Checking {:.2} GiB of hot data on one core", gib(stage));
    table.notes.push(judge(&rates, "GiB/s", "libtorrent", Bound::AtLeast(1.6)));
    Ok(table)
}

fn gib(stage: &Stage) -> f64 {
    stage.ground.geometry.total_len() as f64 / GIB
}

/// Runs a task on all peers that can do it: the table, and the scores of costs and of rates.
fn tabulate(stage: &Stage, task: &Task<'_>) -> io::Result<(Table, Vec<Score>, Vec<Score>)> {
    let mut able = Vec::new();
    for peer in &stage.peers {
        if (task.recipe)(*peer, &stage.scene(Vec::new())?)?.is_some() {
            able.push((*peer, Vec::new()));
        }
    }
    for round in 1..=stage.repeat {
        for (peer, results) in &mut able {
            stage.tell(&format!("{}, round {round}: {}", task.verb, peer.name()));
            results.push(
                (task.measure)(stage, *peer)
                    .and_then(|took| took.ok_or_else(|| io::Error::other("it cannot do that"))),
            );
        }
    }
    let size = gib(stage);
    let spread = |results: &[io::Result<Took>], value: &dyn Fn(&Took) -> f64| {
        Spread::of(results.iter().flatten().map(value))
    };
    let scores = |value: &dyn Fn(&Took) -> f64| -> Vec<Score> {
        let score = |(peer, results): &(&'static dyn Peer, Vec<_>)| Score {
            name: peer.name(),
            value: spread(results, value),
        };
        able.iter().map(score).collect()
    };
    let (costs, rates) = (scores(&|it| it.cpu / size), scores(&|it| size / it.seconds));
    let columns = vec!["program", "CPU s/GiB", "× seedring", "GiB/s"];
    let mut table = Table { columns, ..Table::default() };
    for ((peer, results), (cost, rate)) in able.iter().zip(costs.iter().zip(&rates)) {
        match (cost.value, rate.value) {
            (Some(cost), Some(rate)) => table.rows.push(vec![
                peer.name().to_owned(),
                format!("{cost:.3}"),
                ratio_to_ours(&costs, peer.name()),
                format!("{rate:.2}"),
            ]),
            _ => failed(&mut table, peer.name(), results),
        }
    }
    Ok((table, costs, rates))
}

/// Runs a program to its end; `None` if there is none to run.
fn run_once(
    stage: &Stage,
    scene: &Scene<'_>,
    command: Option<std::process::Command>,
) -> io::Result<Option<Took>> {
    let Some(command) = command else { return Ok(None) };
    let started = clock::now();
    let program = Running::start(command, stage.core, &scene.dir.join("log"))?;
    let ended = program.finish(started, TASK_TIMEOUT)?;
    if !ended.status.success() {
        let said = tail(&ended.output);
        return Err(io::Error::other(format!("ended with {}: {said}", ended.status)));
    }
    Ok(Some(
        told(&ended)
            .unwrap_or(Took { seconds: ended.elapsed.as_secs_f64(), cpu: ended.cpu.as_secs_f64() }),
    ))
}

/// What a program says that its task took; see [`Peer::check`].
fn told(ended: &Ended) -> Option<Took> {
    let line = ended.output.lines().rev().find(|line| line.starts_with("checked in "))?;
    let mut numbers = line.split(' ').filter_map(|word| word.parse::<f64>().ok());
    Some(Took { seconds: numbers.next()?, cpu: numbers.next()? })
}
