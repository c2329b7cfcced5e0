//! libFuzzer's door to the targets.
//!
//! `FUZZ_TARGET` names one, `list` prints all names with the longest input of each, and with
//! `FUZZ_SEEDS` its seeds are written to that directory instead of anything being run.
#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzzer fails by panicking")]

mod targets;

use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn choose() {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    if name == "list" {
        TARGETS.iter().for_each(|target| println!("{} {}", target.name, target.len_max));
        exit(0);
    }
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("FUZZ_TARGET names no target: {name:?}");
        exit(2);
    };
    if let Some(dir) = std::env::var_os("FUZZ_SEEDS") {
        for (index, seed) in (target.seeds)().into_iter().enumerate() {
            let path = Path::new(&dir).join(format!("seed-{index:02}"));
            std::fs::write(path, seed).unwrap();
        }
        exit(0);
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: choose(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
