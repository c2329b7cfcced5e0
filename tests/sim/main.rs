//! Whole swarms in memory, with a virtual clock and one seed for everything.
//!
//! `SIM_SEED=7 cargo test --test sim` runs one seed of the random worlds, `SIM_SEEDS=5000` more of
//! them than usual. A failure names its seed. Invariant: no test here looks at the real clock for
//! anything but the zero of the virtual one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod links;
mod mischief;
mod node;
mod world;

use node::Character;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Defect, Plan, World};

const SEEDS: u64 = 200;

/// A world of some kind, each number its own.
fn plan(seed: u64) -> Plan {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let piece_len = [16_384, 32_768, 49_152][rng.usize(..3)];
    let pieces = rng.u64(1..16);
    let total_len = pieces * u64::from(piece_len) - rng.u64(..16_384);
    let adversary = |rng: &mut fastrand::Rng| match rng.u32(..7) {
        0 | 1 => Character::Corrupter(rng.u32(1..6)),
        2 => Character::Withholder(rng.u32(1..6)),
        3 => Character::Liar,
        4 => Character::Flapper,
        5 => Character::Flooder,
        _ => Character::Mutator(rng.u32(2..30)),
    };
    Plan {
        seed,
        piece_len,
        total_len,
        seeds: rng.usize(1..3),
        leechers: rng.usize(4..7),
        adversaries: (0..rng.usize(..4)).map(|_| adversary(&mut rng)).collect(),
        slots: [None, Some(2), Some(4)][rng.usize(..3)],
        free_riders: 0,
        head_start: 0,
        rate: (20_000, [100_000, 5_000_000][rng.usize(..2)]),
        delay_ms: (1, rng.u64(2..400)),
        faults_until_ms: rng.u64(..2) * rng.u64(5_000..60_000),
        end_ms: 1_500_000,
        sequential: rng.u32(..5) == 0,
        fast: rng.u32(..4) > 0,
        partial_pieces_max: [2, 3, 100][rng.usize(..3)],
        down: (rng.u32(..6) == 0).then_some(200_000),
        up: (rng.u32(..6) == 0).then_some(200_000),
        piece_bytes_max: [u64::MAX, 0, 100_000][rng.usize(..3)],
        defect: Defect::None,
        stop_when_done: true,
        hub: false,
        private: false,
        exchange: rng.u32(..3) == 0,
        choosy: rng.usize(..3),
    }
}

/// A small world without adversaries, for tests that look at one thing.
fn quiet(seed: u64) -> Plan {
    Plan {
        seed,
        piece_len: 32_768,
        total_len: 10 * 32_768,
        seeds: 1,
        leechers: 7,
        adversaries: Vec::new(),
        slots: None,
        free_riders: 0,
        head_start: 0,
        rate: (100_000, 200_000),
        delay_ms: (5, 50),
        faults_until_ms: 0,
        end_ms: 600_000,
        sequential: false,
        fast: true,
        partial_pieces_max: 16,
        piece_bytes_max: u64::MAX,
        down: None,
        up: None,
        defect: Defect::None,
        stop_when_done: true,
        hub: false,
        private: false,
        exchange: false,
        choosy: 0,
    }
}

/// Runs one world; what it violated, or how it panicked.
fn violations(plan: &Plan) -> Vec<String> {
    let run = AssertUnwindSafe(|| {
        let mut world = World::new(plan.clone());
        world.run();
        world.violations
    });
    catch_unwind(run).unwrap_or_else(|_| vec![String::from("a panic, see above")])
}

#[test]
fn random_worlds_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return failed;
                }
                let found = violations(&plan(seed));
                if !found.is_empty() {
                    failed.push(format!("SIM_SEED={seed}: {}", found.join("; ")));
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} worlds failed:\n{}", failed.len(), failed.join("\n"));
}

/// A world with this defect must be found out, in these words; without it there is nothing.
fn is_caught(defect: Defect, plan: Plan, words: &str) {
    assert_eq!(violations(&plan), Vec::<String>::new(), "seed {}", plan.seed);
    let found = violations(&Plan { defect, ..plan });
    assert!(found.iter().any(|text| text.contains(words)), "{defect:?}: {found:?}");
}

#[test]
fn a_broken_verifier_is_caught() {
    let plan = Plan { adversaries: vec![Character::Corrupter(1); 3], ..quiet(1) };
    is_caught(Defect::NoVerification, plan, "S2");
}

#[test]
fn a_broken_choker_is_caught() {
    is_caught(Defect::NoUnchoke, quiet(2), "liveness");
}

#[test]
fn a_broken_picker_is_caught() {
    is_caught(Defect::NeverAsksForPiece0, quiet(3), "liveness");
}

#[test]
fn serving_what_is_not_there_is_caught() {
    is_caught(Defect::ServesUnverified, quiet(4), "S1");
}

#[test]
fn serving_what_was_asked_for_and_never_there_is_caught() {
    let plan = Plan { adversaries: vec![Character::Flooder], ..quiet(5) };
    is_caught(Defect::ServesLacked, plan, "S1");
}

#[test]
fn corrupters_are_banned_and_nobody_else() {
    for seed in 0..5 {
        let adversaries = vec![Character::Corrupter(1), Character::Corrupter(4)];
        let mut world = World::new(Plan { adversaries, ..quiet(seed) });
        world.run();
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
        let liars: Vec<usize> = (0..world.nodes.len())
            .filter(|&n| world.nodes[n].character.may_lie_in_data())
            .collect();
        let banned = world.honest().filter(|(_, node)| {
            liars.iter().any(|&liar| node.bans_ip(world.nodes[liar].addr.ip()))
        });
        assert!(banned.count() > 0, "seed {seed}: nobody met a corrupter");
    }
}

#[test]
fn leechers_find_each_other_by_exchange_alone() {
    for seed in 0..3 {
        let plan = Plan { hub: true, exchange: true, rate: (20_000, 30_000), ..quiet(seed) };
        let mut world = World::new(plan);
        world.run();
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
        let met = world.pairs_of_leechers();
        // Not everybody has the extension protocol in this world.
        assert!(met.len() > 3, "seed {seed}: only {met:?} met");
        let between = world.served.iter().filter(|((from, to), _)| *from > 0 && *to > 0);
        assert!(between.map(|(_, len)| len).sum::<u64>() > 0, "seed {seed}");
    }
}

#[test]
fn who_wants_some_pieces_fetches_those_and_serves_them_on() {
    for seed in 0..5 {
        let choosy = 1..4;
        let plan = Plan { choosy: choosy.len(), total_len: 60 * 32_768, ..quiet(seed) };
        let mut world = World::new(plan);
        let sent = |world: &World| {
            let served = world.served.iter().filter(|((from, _), _)| choosy.contains(from));
            served.map(|(_, len)| len).sum::<u64>()
        };
        world.run_until(|it| it.nodes[choosy.clone()].iter().all(|it| it.swarm.is_finished()));
        let before = sent(&world);
        assert!(!world.is_done(), "seed {seed}: the others want more");
        world.run();
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
        assert!(sent(&world) > before, "seed {seed}: partial seeds serve");
        let is_partial = |node: &node::Node| node.swarm.is_finished() && !node.swarm.is_complete();
        assert!(world.nodes[choosy.clone()].iter().all(is_partial), "seed {seed}");
    }
}

#[test]
fn nobody_learns_of_others_in_a_private_torrent() {
    for seed in 0..3 {
        let plan = Plan { hub: true, exchange: true, private: true, ..quiet(seed) };
        let mut world = World::new(plan);
        world.run();
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
        assert_eq!(world.pairs_of_leechers(), [], "seed {seed}");
    }
}

#[test]
fn a_seed_with_few_slots_serves_everybody_within_20_rounds() {
    for seed in 0..3 {
        let plan = Plan {
            leechers: 12,
            slots: Some(3),
            total_len: 400 * 16_384,
            piece_len: 16_384,
            rate: (8_000, 12_000),
            end_ms: 205_000,
            stop_when_done: false,
            ..quiet(seed)
        };
        let mut world = World::new(plan);
        world.run();
        assert_eq!(world.violations, Vec::<String>::new(), "seed {seed}");
        for leecher in 1..13 {
            let got = world.served.get(&(0, leecher)).copied().unwrap_or(0);
            assert!(got > 0, "seed {seed}: node {leecher} got nothing of the seed");
        }
    }
}

#[test]
fn contributors_get_twice_what_free_riders_get() {
    for seed in 0..3 {
        let plan = Plan {
            seeds: 0,
            leechers: 10,
            free_riders: 3,
            head_start: 50,
            slots: Some(4),
            total_len: 900 * 16_384,
            piece_len: 16_384,
            rate: (15_000, 20_000),
            up: Some(30_000),
            end_ms: 1_500_000,
            stop_when_done: false,
            ..quiet(seed)
        };
        let mut world = World::new(plan);
        // Most of the half that they lack: beyond it nobody wants anything any more.
        world.run_until_one_got(350 * 16_384);
        let got = |node: usize| world.got(node);
        let contributors = (0..7).map(got).sum::<u64>() / 7;
        let riders = (7..10).map(got).sum::<u64>() / 3;
        assert!(contributors >= 2 * riders, "seed {seed}: {contributors} against {riders}");
    }
}
