//! The targets of `fuzz/` without libFuzzer: every known input, then random damage to them.
//!
//! `FUZZ_SEED=7 FUZZ_ROUNDS=100000 cargo test --test fuzz` tries others, and more of them, than
//! usual; `FUZZ_TARGET=name` looks at one target only. An input that breaks a promise is written to
//! a file that the failure names; it belongs into `fuzz/crashes/TARGET/` once the promise holds.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use targets::{TARGETS, Target};

/// Damaged inputs of each target.
const ROUNDS: usize = 3000;

/// Bytes of all files in `fuzz/corpus`.
const CORPUS_LEN_MAX: u64 = 1 << 20;

fn dir(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// The files of a directory that may not be there, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    paths
}

/// Seeds, corpus and everything that broke something once.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let known = ["corpus", "crashes"].map(|kind| files(&dir(kind, target.name)));
    let read = known.into_iter().flatten().map(|path| fs::read(path).unwrap());
    (target.seeds)().into_iter().chain(read).collect()
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs `work` for each target that is asked for, several at a time; gives what failed.
fn for_each(work: impl Fn(&Target) -> Result<(), String> + Sync) -> Vec<String> {
    let only = std::env::var("FUZZ_TARGET").ok();
    let is_there = |name: &String| TARGETS.iter().any(|target| name == target.name);
    assert!(only.as_ref().is_none_or(is_there), "FUZZ_TARGET={only:?} is no target");
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = |target: &&Target| only.as_ref().is_none_or(|name| name == target.name);
    let take = || TARGETS.get(next.fetch_add(1, Ordering::Relaxed));
    let run = || {
        let targets = std::iter::from_fn(take).filter(wanted);
        targets.filter_map(|target| work(target).err()).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Runs one input; where it is kept, and what it is, if it breaks a promise.
fn run(target: &Target, input: &[u8], what: &str) -> Result<(), String> {
    let run = AssertUnwindSafe(|| (target.run)(input));
    catch_unwind(run).map_err(|_| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        fs::write(&path, input).unwrap();
        format!("{}, {what}: see the panic above, and {}", target.name, path.display())
    })
}

/// One input with damage of the kinds that parsers fear, and now and then a part of another one.
fn damaged(rng: &mut fastrand::Rng, inputs: &[Vec<u8>], len_max: usize) -> Vec<u8> {
    let mut bytes = rng.choice(inputs).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 64));
        match rng.u32(..10) {
            0 | 1 => drop(bytes.get_mut(at).map(|byte| *byte ^= 1 << rng.u32(..8))),
            2 => drop(bytes.get_mut(at).map(|byte| *byte = rng.u8(..))),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..end)),
            5 => bytes.extend_from_within(at..end),
            6 => {
                let some: Vec<u8> = (0..rng.usize(1..9)).map(|_| rng.u8(..)).collect();
                drop(bytes.splice(at..at, some));
            }
            7 => change_number(rng, &mut bytes, at),
            // A length, an index or a port of the wire.
            8 => {
                let odd = [0, 1, 0x3fff, 0x4000, 0x4001, 0x7fff_ffff, 0x8000_0000, u32::MAX];
                let word = rng.choice(odd).unwrap_or(0).to_be_bytes();
                let rest = bytes.get_mut(at..).unwrap_or_default();
                rest.iter_mut().zip(word).for_each(|(byte, new)| *byte = new);
            }
            _ => {
                let other = rng.choice(inputs).cloned().unwrap_or_default();
                bytes.splice(
                    at..end,
                    other.get(rng.usize(..=other.len())..).unwrap_or(&[]).to_vec(),
                );
            }
        }
    }
    bytes.truncate(len_max);
    bytes
}

/// Writes another number over the digits at or behind `at`: bencode has its lengths in them.
fn change_number(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, at: usize) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(first) = bytes.iter().skip(at).position(is_digit).map(|first| at + first) else {
        return;
    };
    let len = bytes.iter().skip(first).take_while(|byte| is_digit(byte)).count();
    let new = match rng.u32(..4) {
        0 => rng.u32(..100).to_string(),
        1 => rng.u64(..).to_string(),
        2 => "0".to_owned(),
        _ => rng.choice(["-1", "4294967296", "9223372036854775807", "65536"]).unwrap().to_owned(),
    };
    drop(bytes.splice(first..first + len, new.into_bytes()));
}

#[test]
fn every_known_input_keeps_the_promises() {
    let failed = for_each(|target| {
        let mut known = inputs(target).into_iter().enumerate();
        known.try_for_each(|(at, input)| run(target, &input, &format!("known input {at}")))
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn damaged_inputs_keep_the_promises() {
    let seed = variable("FUZZ_SEED").unwrap_or(1);
    let rounds = variable("FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.try_into().unwrap());
    println!("FUZZ_SEED={seed} FUZZ_ROUNDS={rounds}");
    let failed = for_each(|target| {
        let known = inputs(target);
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..rounds).try_for_each(|round| {
            let input = damaged(&mut rng, &known, target.len_max);
            run(target, &input, &format!("FUZZ_SEED={seed} round {round}"))
        })
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_broken_promise_is_told() {
    fn breaks(input: &[u8]) {
        assert!(input.len() < 3, "this panic is part of the test");
    }
    let target = Target { name: "broken", len_max: 8, run: breaks, seeds: || vec![b"ab".to_vec()] };
    assert_eq!(run(&target, b"ab", "short"), Ok(()));
    let told = run(&target, b"abc", "long").unwrap_err();
    assert!(told.starts_with("broken, long: "), "{told}");
    let mut rng = fastrand::Rng::with_seed(1);
    let tried = (0..100).map(|_| damaged(&mut rng, &inputs(&target), target.len_max));
    let lens: Vec<usize> = tried.map(|input| input.len()).collect();
    assert!(lens.iter().any(|len| *len > 2) && lens.iter().all(|len| *len <= 8), "{lens:?}");
}

#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let mut len = 0;
    for kind in ["corpus", "crashes"] {
        for path in files(&dir(kind, "")) {
            let name = path.file_name().unwrap().to_str().unwrap();
            let target = TARGETS.iter().find(|target| target.name == name);
            let target = target.unwrap_or_else(|| panic!("{} is of no target", path.display()));
            for file in files(&path) {
                let file_len = fs::metadata(&file).unwrap().len();
                assert!(file_len <= target.len_max as u64 || kind == "crashes", "{file:?} is long");
                len += file_len;
            }
        }
    }
    assert!(len <= CORPUS_LEN_MAX, "{len} bytes");
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert!(names.is_sorted() && names.len() >= 25);
    names.dedup();
    assert_eq!(names.len(), TARGETS.len());
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(seeds.len() >= 3, "{} has few seeds", target.name);
        assert!(seeds.iter().all(|seed| seed.len() <= target.len_max), "{}", target.name);
    }
}
