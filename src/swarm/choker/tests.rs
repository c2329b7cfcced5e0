//! Simulations, and rules that hold for every choker in the list.
//!
//! Time is a number here and every choice comes from a seed that a failure prints.

use super::*;
use crate::rate::Meter;
use fastrand::Rng;
use std::collections::HashSet;
use std::time::Instant;

const SEEDS: std::ops::Range<u64> = 0..10;
const PIECE_LEN: u32 = 1 << 20;

/// A seed and the peers that download from it, each as fast as it can.
struct Seed {
    choker: &'static dyn Choker,
    slots: Slots,
    rng: Rng,
    rechoke: Rechoke,
    peers: Vec<Candidate>,
    /// Bytes per second that each peer takes while it is unchoked.
    speeds: Vec<u64>,
    totals: Vec<u64>,
    /// Rounds that began with the peer unchoked.
    served: Vec<u32>,
}

impl Seed {
    fn new(choker: &'static dyn Choker, slots: u32, speeds: &[u64], seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let peers = (0..).zip(speeds).map(|(key, _)| newcomer(key, &mut rng)).collect();
        Self {
            choker,
            slots: Slots::Limited(slots),
            rng,
            rechoke: Rechoke::new(),
            peers,
            speeds: speeds.to_vec(),
            totals: vec![0; speeds.len()],
            served: vec![0; speeds.len()],
        }
    }

    fn round(&mut self) {
        let decision =
            self.rechoke.run(&self.peers, self.slots, PIECE_LEN, self.choker, &mut self.rng);
        carry_out(&mut self.peers, decision);
        for (index, peer) in self.peers.iter_mut().enumerate() {
            pass(peer, ROUND);
            if peer.unchoked {
                let len = self.speeds[index] * ROUND.as_secs();
                peer.uploaded_in_turn += len;
                peer.uploaded_rate = self.speeds[index];
                self.totals[index] += len;
                self.served[index] += 1;
            }
        }
    }
}

fn newcomer(key: u32, rng: &mut Rng) -> Candidate {
    Candidate { key, interested: true, tie: rng.u64(..), ..Candidate::default() }
}

fn pass(peer: &mut Candidate, time: Duration) {
    peer.connected_for += time;
    if peer.unchoked {
        peer.unchoked_for += time;
    } else if peer.interested {
        peer.waiting_for += time;
    }
}

fn set_unchoked(peer: &mut Candidate, unchoked: bool) {
    peer.unchoked = unchoked;
    peer.uploaded_in_turn = 0;
    peer.unchoked_for = Duration::ZERO;
    peer.waiting_for = Duration::ZERO;
}

fn carry_out(peers: &mut [Candidate], decision: &Decision) {
    for peer in peers {
        assert!(!(decision.unchoke.contains(&peer.key) && decision.choke.contains(&peer.key)));
        if decision.unchoke.contains(&peer.key) {
            assert!(!peer.unchoked && peer.interested);
            set_unchoked(peer, true);
        } else if decision.choke.contains(&peer.key) {
            assert!(peer.unchoked);
            set_unchoked(peer, false);
        }
        peer.optimistic = decision.optimistic == Some(peer.key);
    }
}

/// Jain's index: 1 if all are equal, 1/n if one has everything.
fn jain_permille(shares: &[u64]) -> u128 {
    let sum: u128 = shares.iter().map(|&share| u128::from(share)).sum();
    let squares: u128 = shares.iter().map(|&share| u128::from(share) * u128::from(share)).sum();
    1000 * sum * sum / (squares * shares.len() as u128)
}

fn seeding() -> impl Iterator<Item = &'static dyn Choker> {
    of_phase(Phase::Seeding)
}

// ---- the statements a choker is judged by ----

#[test]
fn contributors_get_twice_what_free_riders_get() {
    for (slots, riders) in [(4, 5), (4, 10), (6, 3)] {
        for seed in 0..20 {
            let got = leeching_swarm(10, riders, slots, seed);
            let (givers, takers) = got.split_at(10);
            let (least, most) = (givers.iter().min().unwrap(), takers.iter().max().unwrap());
            assert!(
                *least >= 2 * most,
                "seed {seed}, {slots} slots: a contributor got {least}, a free rider {most}"
            );
        }
    }
}

/// With two or three slots much of what we give is optimistic and single peers may be lucky or
/// not; what holds is the average.
#[test]
fn with_few_slots_contributors_get_twice_as_much_on_average() {
    for slots in [2, 3] {
        for seed in 0..20 {
            let got = leeching_swarm(10, 5, slots, seed);
            let (givers, takers) = got.split_at(10);
            let (giver, taker) = (givers.iter().sum::<u64>() / 10, takers.iter().sum::<u64>() / 5);
            assert!(giver >= 2 * taker, "seed {seed}, {slots} slots: {giver} against {taker}");
        }
    }
}

/// Bytes that each member got in ten minutes of a swarm in which everybody wants from everybody:
/// first the `givers`, who upload at 1 MB/s by tit for tat, then the `riders`, who give nothing.
fn leeching_swarm(givers: usize, riders: usize, slots: u32, seed: u64) -> Vec<u64> {
    #[allow(clippy::disallowed_methods)]
    let start = Instant::now();
    let choker = default_of(Phase::Leeching);
    let mut rng = Rng::with_seed(seed);
    let mut rechoke = Rechoke::new();
    let count = givers + riders;
    let mut views: Vec<Vec<Candidate>> = (0..givers)
        .map(|_| (0..).take(count).map(|key| newcomer(key, &mut rng)).collect())
        .collect();
    for (own, view) in views.iter_mut().enumerate() {
        view[own].interested = false;
    }
    // meters[from][to]
    let mut meters = vec![vec![Meter::new(); count]; count];
    let mut got = vec![0; count];
    let mut given = vec![vec![0; count]; count];
    for second in 0..600 {
        let now = start + Duration::from_secs(second);
        for (own, view) in views.iter_mut().enumerate() {
            for (other, peer) in view.iter_mut().enumerate() {
                peer.downloaded_rate = meters[other][own].rate(now);
                peer.downloaded_len = given[other][own];
            }
            // Members did not start together.
            if (second + own as u64).is_multiple_of(ROUND.as_secs()) {
                let slots = Slots::Limited(slots);
                let decision = rechoke.run(view, slots, PIECE_LEN, choker, &mut rng);
                carry_out(view, decision);
            }
            let open = view.iter().filter(|peer| peer.unchoked).count() as u64;
            for (other, peer) in view.iter_mut().enumerate() {
                pass(peer, Duration::from_secs(1));
                if peer.unchoked {
                    meters[own][other].add(now, 1_000_000 / open);
                    given[own][other] += 1_000_000 / open;
                    got[other] += 1_000_000 / open;
                }
            }
        }
    }
    got
}

#[test]
fn a_seed_with_few_slots_unchokes_everybody_in_20_rounds() {
    for choker in seeding() {
        for slots in 1..=4 {
            for seed in SEEDS {
                // A quarter is fast and near an end: whom fastest_upload and anti_leech like.
                let speeds: Vec<u64> = (0..20).map(|n| if n < 5 { 9_000_000 } else { 9 }).collect();
                let mut sim = Seed::new(choker, slots, &speeds, seed);
                sim.peers[5..].iter_mut().for_each(|peer| peer.progress_permille = 500);
                (0..ROUNDS_TO_SERVE_ALL).for_each(|_| sim.round());
                let name = choker.name();
                assert!(
                    sim.served.iter().all(|&rounds| rounds > 0),
                    "{name}, {slots} slots, seed {seed}: {:?}",
                    sim.served
                );
            }
        }
    }
}

#[test]
fn round_robin_serves_twenty_peers_per_slot_in_20_rounds() {
    for (slots, count) in [(1, 20), (3, 10), (3, 60), (4, 79), (4, 7)] {
        for seed in SEEDS {
            let speeds = vec![100; count];
            let mut sim = Seed::new(default_of(Phase::Seeding), slots, &speeds, seed);
            (0..ROUNDS_TO_SERVE_ALL).for_each(|_| sim.round());
            assert!(
                sim.served.iter().all(|&rounds| rounds > 0),
                "{slots} slots, seed {seed}: {:?}",
                sim.served
            );
        }
    }
}

#[test]
fn anti_leech_prefers_both_ends() {
    let choker = find(Phase::Seeding, "anti_leech").unwrap();
    for seed in SEEDS {
        let mut sim = Seed::new(choker, 5, &[1_000_000; 21], seed);
        for (peer, tenths) in sim.peers.iter_mut().zip(0..) {
            peer.progress_permille = tenths * 50;
        }
        (0..100).for_each(|_| sim.round());
        let mean = |range: &[u64]| range.iter().sum::<u64>() / range.len() as u64;
        let (first, middle, last) =
            (mean(&sim.totals[..2]), mean(&sim.totals[5..16]), mean(&sim.totals[19..]));
        assert!(
            first.min(last) >= 4 * middle,
            "seed {seed}: {first} near 0 %, {middle} in the middle, {last} near 100 %"
        );
        assert!(first.abs_diff(last) <= first / 4, "seed {seed}: {first} and {last}");
    }
}

#[test]
fn fastest_upload_serves_the_fastest() {
    let choker = find(Phase::Seeding, "fastest_upload").unwrap();
    for seed in SEEDS {
        let speeds: Vec<u64> = (1..=20).map(|n| n * 100_000).collect();
        let mut sim = Seed::new(choker, 5, &speeds, seed);
        (0..100).for_each(|_| sim.round());
        let fast = sim.served[16..].iter().min().unwrap();
        let slow = sim.served[..16].iter().max().unwrap();
        assert!(fast >= &(4 * slow), "seed {seed}: {:?}", sim.served);
    }
}

#[test]
fn round_robin_is_fair_over_time() {
    for seed in SEEDS {
        let mut rng = Rng::with_seed(seed);
        let equal = vec![1_000_000; 20];
        let mixed: Vec<u64> = (0..12).map(|_| rng.u64(500_000..1_000_000)).collect();
        for (slots, speeds) in [(3, equal), (3, mixed)] {
            let mut sim = Seed::new(default_of(Phase::Seeding), slots, &speeds, seed);
            (0..360).for_each(|_| sim.round());
            let jain = jain_permille(&sim.totals);
            assert!(jain > 900, "seed {seed}: {jain} of {:?}", sim.totals);
        }
    }
}

#[test]
fn who_comes_back_under_a_new_connection_gains_nothing() {
    for choker in seeding() {
        for seed in SEEDS {
            let mut sim = Seed::new(choker, 3, &[1_000_000; 15], seed);
            for _ in 0..360 {
                sim.round();
                let Candidate { key, unchoked, .. } = sim.peers[0];
                if !unchoked || sim.peers[0].uploaded_in_turn > 0 && sim.rng.bool() {
                    let uploaded_recently = sim.totals[0];
                    sim.peers[0] = Candidate { uploaded_recently, ..newcomer(key, &mut sim.rng) };
                }
            }
            let others = sim.totals[1..].iter().sum::<u64>() / 14;
            assert!(
                sim.totals[0] <= others + others / 4,
                "{}, seed {seed}: {} against {others}",
                choker.name(),
                sim.totals[0]
            );
        }
    }
}

// ---- rules for the whole list ----

#[test]
fn names_are_unique_and_each_phase_has_a_default() {
    let names: HashSet<_> = CHOKERS.iter().map(|choker| choker.name()).collect();
    assert_eq!(names.len(), CHOKERS.len());
    for phase in [Phase::Leeching, Phase::Seeding] {
        assert_eq!(of_phase(phase).next().unwrap().name(), default_of(phase).name());
    }
    for choker in CHOKERS {
        let name = choker.name();
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(find(choker.phase(), name).map(|found| found.name()), Some(name));
    }
}

fn any_candidate(key: u32, rng: &mut Rng) -> Candidate {
    let unchoked = rng.bool();
    let interested = rng.u8(..4) > 0;
    let some = |rng: &mut Rng| Duration::from_secs(rng.u64(..120));
    let number = |rng: &mut Rng| [0, 1, 1_000, u64::MAX][rng.usize(..4)];
    Candidate {
        key,
        interested,
        unchoked,
        optimistic: false,
        snubbed: rng.u8(..5) == 0,
        connected_for: some(rng),
        unchoked_for: if unchoked { some(rng) } else { Duration::ZERO },
        waiting_for: if interested && !unchoked { some(rng) } else { Duration::ZERO },
        downloaded_rate: number(rng),
        downloaded_len: number(rng),
        uploaded_rate: number(rng),
        uploaded_in_turn: number(rng),
        uploaded_recently: number(rng),
        progress_permille: rng.u16(..),
        tie: rng.u64(..3),
    }
}

/// Calls `check` with every choker, every kind of slots and many random sets of peers.
fn walk(check: impl Fn(&'static dyn Choker, Slots, &[Candidate], u64)) {
    let limits = [0, 1, 2, 4, 30, u32::MAX].map(Slots::Limited);
    for seed in 0..60 {
        let mut rng = Rng::with_seed(seed);
        let count = [0, 1, 2, 5, 60][rng.usize(..5)];
        let mut peers: Vec<_> = (0..count).map(|key| any_candidate(key, &mut rng)).collect();
        if let Some(peer) = peers.iter_mut().find(|peer| peer.unchoked) {
            peer.optimistic = rng.bool();
        }
        for choker in CHOKERS {
            for slots in limits.into_iter().chain([Slots::Unlimited]) {
                check(*choker, slots, &peers, seed);
            }
        }
    }
}

#[test]
fn every_choker_fills_its_slots_and_no_more() {
    walk(|choker, slots, peers, seed| {
        let label = format!("{}, {slots:?}, seed {seed}", choker.name());
        let mut rng = Rng::with_seed(seed);
        let mut after = peers.to_vec();
        let mut rechoke = Rechoke::new();
        let decision = rechoke.run(peers, slots, PIECE_LEN, choker, &mut rng).clone();
        carry_out(&mut after, &decision);
        let unchoked = after.iter().filter(|peer| peer.unchoked).count();
        let interested = after.iter().filter(|peer| peer.interested).count();
        let served = after.iter().filter(|peer| peer.unchoked && peer.interested).count();
        let limit = slots.cut(u32::MAX) as usize;
        assert!(unchoked <= limit, "{label}: {unchoked} unchoked");
        assert_eq!(served, interested.min(limit), "{label}");
        if slots == Slots::Unlimited {
            assert!(decision.choke.is_empty(), "{label}");
        }
        if let Some(key) = decision.optimistic {
            let peer = after.iter().find(|peer| peer.key == key).unwrap();
            assert!(peer.unchoked && peer.interested, "{label}");
        }
        assert_eq!(pick_next(&after, slots, PIECE_LEN, choker), None, "{label}");
        let mut same = Rng::with_seed(seed);
        assert_eq!(&decision, Rechoke::new().run(peers, slots, PIECE_LEN, choker, &mut same));
    });
}

#[test]
fn every_choker_keeps_who_was_just_unchoked() {
    let is_fresh =
        |peer: &Candidate| peer.interested && peer.unchoked && peer.unchoked_for < UNCHOKE_MIN;
    walk(|choker, slots, peers, seed| {
        let mut peers = peers.to_vec();
        peers.iter_mut().for_each(|peer| peer.optimistic = false);
        let fresh: Vec<_> = peers.iter().filter(|peer| is_fresh(peer)).collect();
        let mut rng = Rng::with_seed(seed);
        let mut rechoke = Rechoke::new();
        let decision = rechoke.run(&peers, slots, PIECE_LEN, choker, &mut rng);
        if fresh.len() <= slots.cut(u32::MAX) as usize {
            let choked = fresh.iter().find(|peer| decision.choke.contains(&peer.key));
            assert_eq!(choked, None, "{}, {slots:?}, seed {seed}", choker.name());
        }
    });
}

#[test]
fn a_free_slot_is_given_at_once() {
    walk(|choker, slots, peers, seed| {
        let label = format!("{}, {slots:?}, seed {seed}", choker.name());
        let mut peers = peers.to_vec();
        let limit = slots.cut(u32::MAX) as usize;
        let unchoked = |peers: &[Candidate]| peers.iter().filter(|peer| peer.unchoked).count();
        let before = unchoked(&peers);
        for _ in 0..peers.len() {
            let Some(pick) = pick_next(&peers, slots, PIECE_LEN, choker) else { break };
            let decision = Decision {
                unchoke: vec![pick.unchoke],
                choke: pick.choke.into_iter().collect(),
                optimistic: None,
            };
            carry_out(&mut peers, &decision);
        }
        assert!(unchoked(&peers) <= limit.max(before), "{label}");
        let waits = peers.iter().any(|peer| peer.interested && !peer.unchoked);
        let idle = peers.iter().any(|peer| peer.unchoked && !peer.interested);
        if waits && before <= limit {
            assert!(unchoked(&peers) == limit && !idle, "{label}");
        }
    });
}

#[test]
fn nobody_starves_under_any_choker() {
    // Twice what drawing everybody once takes, three rounds each.
    let bound = |choker: &dyn Choker| match choker.phase() {
        Phase::Leeching => 2 * 3 * 12 + 3,
        Phase::Seeding => ROUNDS_TO_SERVE_ALL,
    };
    for choker in CHOKERS {
        for seed in SEEDS {
            let mut sim = Seed::new(*choker, 2, &[1_000; 12], seed);
            sim.peers[0].downloaded_rate = 1_000_000;
            let (mut waited, mut longest) = ([0; 12], 0);
            for _ in 0..1_000 {
                let before = sim.served.clone();
                sim.round();
                for (index, waited) in waited.iter_mut().enumerate() {
                    *waited = if sim.served[index] > before[index] { 0 } else { *waited + 1 };
                    longest = longest.max(*waited);
                }
            }
            assert!(longest <= bound(*choker), "{}, seed {seed}: {longest}", choker.name());
        }
    }
}

#[test]
fn fewer_slots_choke_and_more_slots_unchoke() {
    for choker in CHOKERS {
        let mut sim = Seed::new(*choker, 8, &[1_000; 12], 1);
        for slots in [8, 3, 0, 5, 12] {
            sim.slots = Slots::Limited(slots);
            sim.round();
            let unchoked = sim.peers.iter().filter(|peer| peer.unchoked).count();
            assert_eq!(unchoked, slots as usize, "{}", choker.name());
        }
    }
}

// ---- details of one choker ----

#[test]
fn tit_for_tat_ranks_by_what_it_gets_and_snubbers_last() {
    let choker = default_of(Phase::Leeching);
    let round = Round { interested_count: 9, slot_count: 2, piece_len: PIECE_LEN };
    let score = |downloaded_rate, downloaded_len, snubbed| {
        let peer = Candidate { downloaded_rate, downloaded_len, snubbed, ..Candidate::default() };
        choker.score(&peer, &round)
    };
    let best_first = [
        score(2_000, 1, false),
        score(1_000, 9, false),
        score(0, 9, false),
        score(0, 1, false),
        score(0, 0, false),
        score(u64::MAX, u64::MAX, true),
    ];
    assert!(best_first.is_sorted_by(|one, two| one > two), "{best_first:?}");
}

#[test]
fn a_newcomer_is_drawn_three_times_as_often() {
    let choker = default_of(Phase::Leeching);
    let mut rng = Rng::with_seed(7);
    let old = Duration::from_secs(600);
    let mut peers = [0, 1, 2, 3, 4].map(|key| newcomer(key, &mut rng));
    peers[0] = Candidate { unchoked: true, unchoked_for: old, downloaded_rate: 9, ..peers[0] };
    peers[2] = Candidate { connected_for: old, downloaded_len: 1, ..peers[2] };
    peers[3] = Candidate { uploaded_recently: 1, downloaded_len: 1, ..peers[3] };
    peers[4] = Candidate { connected_for: old, ..peers[4] };
    let mut drawn = [0u32; 5];
    for _ in 0..10_000 {
        let mut rechoke = Rechoke::new();
        let decision = rechoke.run(&peers, Slots::Limited(2), PIECE_LEN, choker, &mut rng);
        drawn[decision.optimistic.unwrap() as usize] += 1;
    }
    assert_eq!(drawn[0], 0);
    for (times, other) in [(3, drawn[2]), (3, drawn[3]), (6, drawn[4])] {
        let percent = 100 * drawn[1] / (times * other);
        assert!((85..115).contains(&percent), "seed 7: {drawn:?}");
    }
}

#[test]
fn the_drawn_slot_stays_for_three_rounds() {
    let mut sim = Seed::new(default_of(Phase::Leeching), 2, &[1_000; 12], 3);
    sim.peers[0].downloaded_rate = 1_000_000;
    sim.round();
    let mut holders = Vec::new();
    for _ in 0..12 {
        sim.round();
        holders.push(sim.peers.iter().find(|peer| peer.optimistic).unwrap().key);
    }
    let changes = holders.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((3..=4).contains(&changes), "seed 3: {holders:?}");
}

#[test]
fn an_uninterested_peer_yields_its_slot_only_to_one_that_waits() {
    let mut rng = Rng::with_seed(1);
    let old = Duration::from_secs(100);
    let idle =
        Candidate { interested: false, unchoked: true, unchoked_for: old, ..newcomer(0, &mut rng) };
    let waiting = newcomer(1, &mut rng);
    let one = Slots::Limited(1);
    for choker in CHOKERS {
        let mut rechoke = Rechoke::new();
        let alone = rechoke.run(&[idle], one, PIECE_LEN, *choker, &mut rng);
        assert_eq!(alone, &Decision::default());
        assert_eq!(pick_next(&[idle], one, PIECE_LEN, *choker), None);
        let pick = pick_next(&[idle, waiting], one, PIECE_LEN, *choker);
        assert_eq!(pick, Some(Pick { unchoke: 1, choke: Some(0) }));
    }
}

#[test]
fn shares_are_fair_bounded_and_complete() {
    for seed in 0..500 {
        let mut rng = Rng::with_seed(seed);
        let wishes: Vec<u32> =
            (0..rng.usize(..12)).map(|_| [0, 1, 5, 40, u32::MAX][rng.usize(..5)]).collect();
        let claim = |&wanted: &u32| Claim { wanted, granted: 77 };
        let mut claims: Vec<_> = wishes.iter().map(claim).collect();
        let total = [0, 1, 3, 20, 100, u32::MAX][rng.usize(..6)];
        share_slots(Slots::Limited(total), rng.usize(..), &mut claims);
        let wanted: u64 = wishes.iter().map(|&wish| u64::from(wish)).sum();
        let granted: u64 = claims.iter().map(|claim| u64::from(claim.granted)).sum();
        assert_eq!(granted, wanted.min(u64::from(total)), "seed {seed}: {claims:?}");
        let most = claims.iter().map(|claim| claim.granted).max().unwrap_or(0);
        for claim in &claims {
            let is_met = claim.granted == claim.wanted;
            assert!(is_met || claim.granted + 1 >= most, "seed {seed}: {claims:?}");
            assert!(claim.granted <= claim.wanted, "seed {seed}: {claims:?}");
        }
        share_slots(Slots::Unlimited, 0, &mut claims);
        assert!(claims.iter().all(|claim| claim.granted == claim.wanted), "seed {seed}");
    }
}
