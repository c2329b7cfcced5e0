//! `micro`: what the parts of the hot path cost by themselves.
//!
//! ```text
//! cargo bench --bench micro [-- FILTER]
//! ```
//!
//! One line per case leaves on stdout: time per item as median with extremes, and a checksum of the
//! results, which is the same in every run of the same code. Without `--bench`, as under `cargo
//! test`, sizes are tiny and times mean nothing. Invariant: seeds are fixed; every round of a case
//! has the same result, or the bench dies.

mod bencode;
mod choke;
#[path = "../common/mod.rs"]
mod common;
mod decode;
mod hash;
mod receive;
mod swarm;
mod timing;

use std::process::ExitCode;

use clap::Parser;

use crate::timing::{Bench, Scale};

/// The command line.
#[derive(Parser, Debug)]
#[command(name = "micro", about = "Times the parts of the hot path")]
struct Cli {
    /// Run only the cases whose name contains this.
    filter: Option<String>,
    /// What cargo adds when figures are wanted.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let scale = if cli.bench { Scale::Full } else { Scale::Smoke };
    let bench = Bench::new(scale, cli.filter);
    bench.print_head();
    decode::run(&bench);
    swarm::run(&bench);
    choke::run(&bench);
    hash::run(&bench);
    receive::run(&bench);
    bencode::run(&bench);
    ExitCode::SUCCESS
}
