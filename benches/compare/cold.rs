//! A hot torrent beside a cold one: what reads from the disk cost those who need none.
//!
//! A stage enters, a table leaves. Both torrents are served by one worker. First only the hot one
//! is asked for, then both, after the cold one's file has left the page cache. The hot load is far
//! from filling the core, so that what it loses is time that the worker stood still. Invariant: the
//! cold file is evicted anew before each round.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use seedring::sys::file;

use crate::common::Spread;
use crate::ground::Ground;
use crate::load::{self, Outcome, Plan};
use crate::peers::PROGRAM;
use crate::probe::wait_ready;
use crate::process::Running;
use crate::seed::Load;
use crate::stage::Stage;
use crate::table::Table;

/// What is asked of the hot torrent, and of the cold one.
const HOT: Load = Load { connections: 4, depth: 64, is_encrypted: false };
const COLD: Load = Load { connections: 16, depth: 32, is_encrypted: false };

/// Bytes per second that each peer of the hot torrent wants: in all a tenth of what a core sends.
const HOT_RATE: u64 = 64 << 20;

/// Bytes of the hot torrent.
const HOT_LEN: u64 = 256 << 20;

/// The share of its rate that the hot torrent must keep.
const KEPT_MIN: f64 = 0.8;

const GIB: f64 = (1u64 << 30) as f64;

/// Measures all rounds against one server.
pub(crate) fn run(stage: &Stage, root: &Path, piece_len: u32) -> io::Result<Table> {
    let hot = Ground::prepare(root, HOT_LEN, piece_len)?;
    let cold = &stage.ground;
    let scene = stage.scene(Vec::new())?;
    let watched = scene.dir.join("watched");
    std::fs::create_dir(&watched)?;
    for (name, ground) in [("hot.torrent", &hot), ("cold.torrent", cold)] {
        std::fs::copy(&ground.torrent, watched.join(name))?;
    }
    let mut command = Command::new(PROGRAM);
    command.arg("run").arg("--watch").arg(&watched).arg("--downloads").arg(&cold.data_dir);
    command.arg("--state").arg(scene.dir.join("state")).args(["--http", "-"]);
    command.args(["--cores", &stage.core.to_string(), "--listen", &scene.listen.to_string()]);
    let mut program = Running::start(command, stage.core, &scene.dir.join("log"))?;
    wait_ready(&hot, scene.listen, &mut program)?;
    wait_ready(cold, scene.listen, &mut program)?;

    let plan = |load: Load, rate| Plan {
        target: scene.listen,
        connections: load.connections,
        depth: load.depth,
        is_encrypted: load.is_encrypted,
        rate,
        window: Duration::from_secs(stage.seconds),
        spin: stage.spin,
        core: stage.load_core,
    };
    let (mut alone, mut beside, mut cold_rates, mut kept) = (vec![], vec![], vec![], vec![]);
    for round in 1..=stage.repeat {
        stage.tell(&format!("cold, round {round}"));
        let before = load::run(&hot, &plan(HOT, Some(HOT_RATE)), || program.cpu())?;
        let evicted = File::open(cold.file())?;
        evicted.sync_all()?;
        file::drop_cache(evicted.as_fd(), 0..cold.geometry.total_len())?;
        let (hot_plan, cold_plan) = (plan(HOT, Some(HOT_RATE)), plan(COLD, None));
        let (with, of_cold) = std::thread::scope(|scope| {
            let of_cold = scope.spawn(|| load::run(cold, &cold_plan, || program.cpu()));
            let with = load::run(&hot, &hot_plan, || program.cpu())?;
            let of_cold = of_cold.join().map_err(|_| io::Error::other("the load died"))??;
            io::Result::Ok((with, of_cold))
        })?;
        kept.push(rate(&with) / rate(&before));
        alone.push(rate(&before));
        beside.push(rate(&with));
        cold_rates.push(rate(&of_cold));
    }
    program.check_alive()?;
    let show =
        |values: Vec<f64>| Spread::of(values).map_or_else(String::new, |it| format!("{it:.2}"));
    let median = Spread::of(kept.iter().copied()).map_or(0.0, |it| it.median);
    let verdict = if median >= KEPT_MIN { "reached" } else { "missed" };
    Ok(Table {
        title: format!("A hot torrent ({HOT}) beside a cold one ({COLD})"),
        columns: vec!["torrent", "GiB/s"],
        rows: vec![
            vec!["hot, alone".to_owned(), show(alone)],
            vec!["hot, beside the cold one".to_owned(), show(beside)],
            vec!["cold".to_owned(), show(cold_rates)],
        ],
        notes: vec![format!(
            "- The hot torrent keeps {:.0} % of its rate (goal ≥ {:.0} %): {verdict}.",
            100.0 * median,
            100.0 * KEPT_MIN
        )],
    })
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.bytes as f64 / GIB / outcome.elapsed.as_secs_f64()
}
