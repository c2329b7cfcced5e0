//! Many torrents in virtual time.

use std::collections::BinaryHeap;

use super::*;
use crate::tracker::Event;

/// A world of torrents and trackers: answers come after a delay, everything is counted.
struct World {
    now: Instant,
    limits: Limits,
    scheduler: Scheduler<()>,
    /// Announces on their way, soonest answer first.
    in_flight: BinaryHeap<std::cmp::Reverse<(Instant, usize)>>,
    jobs: Slab<Job>,
    per_host: BTreeMap<Arc<str>, usize>,
    in_flight_peak: usize,
    per_host_peak: usize,
    /// `(when, host, torrent, event)` of every announce.
    seen: Vec<(Instant, Arc<str>, InfoHash, Event)>,
}

type Answer<'a> = &'a dyn Fn(&Job) -> (Duration, Result<Reply, Failure>);

fn hash(index: u32) -> InfoHash {
    let mut hash = [0; 20];
    hash[..4].copy_from_slice(&index.to_be_bytes());
    InfoHash(hash)
}

fn tiers(hosts: &[&str]) -> Vec<Vec<String>> {
    hosts.iter().map(|host| vec![format!("http://{host}/announce")]).collect()
}

fn ok() -> Result<Reply, Failure> {
    Ok(Reply { interval: Some(Duration::from_secs(1800)), ..Reply::default() })
}

fn timeout() -> Failure {
    Failure::Timeout(Duration::from_secs(30))
}

const FAST: Duration = Duration::from_millis(20);

impl World {
    fn new(limits: Limits) -> Self {
        Self::with(Options::default(), limits)
    }

    fn with(options: Options, limits: Limits) -> Self {
        Self {
            now: crate::sys::clock::now(),
            limits: limits.clone(),
            scheduler: Scheduler::new(options, limits, 5),
            in_flight: BinaryHeap::new(),
            jobs: Slab::new(),
            per_host: BTreeMap::new(),
            in_flight_peak: 0,
            per_host_peak: 0,
            seen: Vec::new(),
        }
    }

    fn add(&mut self, index: u32, hosts: &[&str]) {
        self.scheduler.add(self.now, hash(index), &tiers(hosts), false, ()).unwrap();
    }

    /// Lets `time` pass; `answer` says how long each announce takes and what comes of it.
    fn run(&mut self, time: Duration, answer: Answer<'_>) {
        let end = self.now + time;
        let mut turn_count = 0u32;
        loop {
            turn_count += 1;
            assert!(turn_count < 1_000_000, "the schedule spins");
            while let Some(job) = self.scheduler.poll(self.now) {
                self.start(job, answer);
            }
            if turn_count.is_multiple_of(1000) {
                self.scheduler.check_invariants();
            }
            let answered_at = self.in_flight.peek().map(|next| next.0.0);
            let due_at = self.scheduler.poll_timeout();
            assert!(due_at.is_none_or(|at| at > self.now), "a deadline that makes nothing due");
            let Some(next) = answered_at.into_iter().chain(due_at).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(next);
            while let Some(std::cmp::Reverse((at, key))) = self.in_flight.peek().copied()
                && at <= self.now
            {
                self.in_flight.pop();
                let job = self.jobs.remove(key);
                *self.per_host.get_mut(job.announce.url.host()).unwrap() -= 1;
                self.scheduler.handle_reply(self.now, &job, &answer(&job).1);
            }
        }
        self.scheduler.check_invariants();
        self.now = end;
    }

    fn start(&mut self, job: Job, answer: Answer<'_>) {
        let host = Arc::clone(job.announce.url.host());
        self.seen.push((self.now, Arc::clone(&host), job.info_hash, job.announce.event));
        let on_host = self.per_host.entry(host).or_default();
        *on_host += 1;
        self.per_host_peak = self.per_host_peak.max(*on_host);
        let at = self.now + answer(&job).0;
        let key = self.jobs.insert(job);
        self.in_flight.push(std::cmp::Reverse((at, key)));
        self.in_flight_peak = self.in_flight_peak.max(self.in_flight.len());
    }

    fn seen_of(&self, host: &str) -> usize {
        self.seen.iter().filter(|(_, seen, ..)| seen.contains(host)).count()
    }
}

#[test]
fn ten_thousand_torrents_are_no_storm() {
    let mut world = World::new(Limits::default());
    let start = world.now;
    for index in 0..10_000 {
        let host = format!("t{}", index % 4);
        world.add(index, &[&host]);
    }
    world.run(Duration::from_secs(300), &|_| (FAST, ok()));
    assert!(world.in_flight_peak <= world.limits.in_flight_max, "{}", world.in_flight_peak);
    assert!(world.per_host_peak <= world.limits.in_flight_per_host_max);
    assert_eq!(world.seen.len(), 10_000, "everyone announced once, nobody twice");
    let mut by_second = BTreeMap::new();
    for (at, ..) in &world.seen {
        *by_second.entry((*at - start).as_secs()).or_insert(0) += 1;
    }
    let busiest = by_second.values().max().unwrap();
    assert!(*busiest <= 4 * (50 + 20), "{busiest} in one second");
    assert!((45..=60).contains(&by_second.len()), "{} seconds", by_second.len());
    assert_eq!(world.scheduler.overdue_count(world.now), 0);
    // The second round is spread by the first and by jitter, and comes in time.
    world.run(Duration::from_secs(2100), &|_| (FAST, ok()));
    assert_eq!(world.seen.len(), 20_000);
}

#[test]
fn a_dead_host_neither_blocks_the_others_nor_is_hammered() {
    let mut world = World::new(Limits::default());
    for index in 0..2000 {
        world.add(index, &["dead"]);
    }
    for index in 2000..5000 {
        world.add(index, &["alive"]);
    }
    let answer: Answer<'_> = &|job| {
        if job.announce.url.host().contains("dead") {
            (Duration::from_secs(30), Err(timeout()))
        } else {
            (FAST, ok())
        }
    };
    world.run(Duration::from_secs(120), answer);
    assert_eq!(world.seen_of("alive"), 3000, "60 s at 50 a second");
    assert!(world.seen_of("dead") <= 12, "{}", world.seen_of("dead"));
    world.run(Duration::from_secs(3 * 3600), answer);
    assert!(world.seen_of("dead") <= 24, "{}", world.seen_of("dead"));
    let before = world.seen_of("dead");
    world.run(Duration::from_secs(3 * 3600), &|_| (FAST, ok()));
    assert!(world.seen_of("dead") >= before + 2000, "a host that returns is used again");
    assert!(world.per_host_peak <= world.limits.in_flight_per_host_max);
}

#[test]
fn a_resting_host_sends_its_torrents_to_the_next_tier() {
    let mut world = World::new(Limits::default());
    for index in 0..1000 {
        world.add(index, &["dead", "alive"]);
    }
    let start = world.now;
    world.run(Duration::from_secs(90), &|job| {
        let is_dead = job.announce.url.host().contains("dead");
        if is_dead { (Duration::from_secs(30), Err(timeout())) } else { (FAST, ok()) }
    });
    assert_eq!(world.seen_of("alive"), 1000);
    let last = world.seen.iter().filter(|seen| seen.1.contains("alive")).map(|seen| seen.0).max();
    assert!(
        last.unwrap() - start < Duration::from_secs(60),
        "30 s of dead slots, then 50 a second"
    );
}

/// Ten thousand torrents with two trackers each, on 24 hosts of which a quarter is silent for as
/// long as an announce may take and a quarter refuses at once.
fn mixed(options: Options) -> (World, usize) {
    let mut world = World::with(options, Limits::default());
    let host = |index: u32| match index % 4 {
        0 => format!("silent{}", index % 24),
        1 => format!("refused{}", index % 24),
        _ => format!("alive{}", index % 24),
    };
    let mut alive_count = 0;
    for index in 0..10_000 {
        let (first, second) = (host(index), host(index / 24 * 7 + index + 2));
        let is_alive = |host: &&String| host.starts_with("alive");
        let told = BTreeSet::from([&first, &second]);
        alive_count += told.into_iter().filter(is_alive).count();
        world.add(index, &[&first, &second]);
    }
    (world, alive_count)
}

fn of_mixed(job: &Job) -> (Duration, Result<Reply, Failure>) {
    let host = job.announce.url.host();
    if host.contains("silent") {
        (Duration::from_secs(60), Err(timeout()))
    } else if host.contains("refused") {
        (Duration::from_millis(1), Err(Failure::Connect("refused".into())))
    } else {
        (Duration::from_millis(100), ok())
    }
}

#[test]
fn dead_hosts_delay_nobody_who_announces_elsewhere() {
    let options = Options { parallel_tiers: true, ..Options::default() };
    let (mut world, alive_count) = mixed(options);
    let start = world.now;
    world.run(Duration::from_secs(120), &of_mixed);
    assert_eq!(world.seen_of("alive"), alive_count, "all who live are announced to, once");
    let last = world.seen.iter().filter(|seen| seen.1.contains("alive")).map(|seen| seen.0).max();
    let took = last.unwrap() - start;
    // Twenty slots for the living, a tenth of a second each, and fifty a second to each host.
    assert!(took < Duration::from_secs(75), "{took:?}");
    assert!(world.in_flight_peak <= world.limits.in_flight_max, "{}", world.in_flight_peak);
    assert!(world.per_host_peak <= world.limits.in_flight_per_host_max);
    assert!(world.seen_of("silent") <= 6 * 6, "{}", world.seen_of("silent"));
}

#[test]
fn a_silent_host_sends_its_torrents_to_the_next_tier_in_fifteen_seconds() {
    let mut world = World::new(Limits::default());
    for index in 0..1000 {
        world.add(index, &["silent", "alive"]);
    }
    let start = world.now;
    world.run(Duration::from_secs(120), &of_mixed);
    assert_eq!(world.seen_of("alive"), 1000);
    assert!(world.seen_of("silent") <= 4, "two, and one more after each rest");
    let first = world.seen.iter().find(|seen| seen.1.contains("alive")).unwrap().0;
    assert_eq!(first - start, Duration::from_secs(15));
    assert!(world.seen.iter().filter(|seen| seen.3 != Event::Started).count() == 0);
}

#[test]
fn tiers_one_by_one_reach_the_living_in_time_too() {
    let (mut world, _) = mixed(Options::default());
    world.run(Duration::from_secs(120), &of_mixed);
    let reached: BTreeSet<_> =
        world.seen.iter().filter(|seen| seen.1.contains("alive")).map(|seen| seen.2).collect();
    let reachable = (0..10_000).filter(|index| {
        let status = world.scheduler.status(hash(*index)).unwrap();
        status.trackers.iter().any(|tracker| tracker.url.host().contains("alive"))
    });
    assert_eq!(reached.len(), reachable.count());
    assert!(world.in_flight_peak <= world.limits.in_flight_max, "{}", world.in_flight_peak);
}

#[test]
fn too_many_requests_rest_the_host_for_everyone() {
    let mut world = World::new(Limits::default());
    for index in 0..100 {
        world.add(index, &["busy"]);
    }
    let hour = Duration::from_secs(3600);
    world.run(hour - Duration::from_secs(60), &|_| {
        (FAST, Err(Failure::Status { status: 429, retry_after: Some(hour) }))
    });
    assert!(world.seen.len() <= world.limits.in_flight_per_host_max, "{}", world.seen.len());
    world.run(hour, &|_| (FAST, ok()));
    assert!(world.seen.len() >= 100);
}

#[test]
fn a_person_can_have_a_resting_host_tried_again() {
    let mut world = World::new(Limits::default());
    for index in 0..10 {
        world.add(index, &["dead"]);
    }
    let down: Answer<'_> = &|_| (FAST, Err(timeout()));
    world.run(Duration::from_secs(3600), down);
    let before = world.seen.len();
    assert!(world.scheduler.handle_reannounce(world.now, hash(3)));
    world.run(Duration::from_secs(1), down);
    assert_eq!(world.seen.len(), before + 1, "one probe");
    assert!(world.scheduler.handle_reannounce(world.now, hash(3)));
    world.run(Duration::from_secs(6), &|_| (FAST, ok()));
    assert_eq!(world.seen.last().map(|seen| seen.2), Some(hash(3)));
    assert_eq!(world.seen.len(), before + 2);
    world.add(11, &["dead"]);
    world.run(Duration::from_secs(1), &|_| (FAST, ok()));
    assert_eq!(world.seen.len(), before + 3, "its success opened the host");
}

#[test]
fn those_who_lack_data_go_first() {
    let mut world = World::new(Limits::default());
    for index in 0..1000 {
        world.add(index, &["t"]);
    }
    world.run(Duration::from_secs(1), &|_| (FAST, ok()));
    world.scheduler.add(world.now, hash(5000), &tiers(&["t"]), true, ()).unwrap();
    let seen_count = world.seen.len();
    world.run(Duration::from_secs(1), &|_| (FAST, ok()));
    let place = world.seen.iter().position(|seen| seen.2 == hash(5000)).unwrap();
    assert!(place < seen_count + 2, "{place} of {seen_count}");
}

#[test]
fn removing_says_stopped_and_adding_again_waits_for_it() {
    let mut world = World::new(Limits::default());
    world.add(1, &["t"]);
    let slow: Answer<'_> = &|_| (Duration::from_secs(2), ok());
    world.run(Duration::from_secs(10), slow);
    assert!(world.scheduler.remove(world.now, hash(1)));
    assert!(!world.scheduler.remove(world.now, hash(1)));
    assert_eq!(world.scheduler.status(hash(1)), None);
    world.add(1, &["t"]);
    let again = world.scheduler.add(world.now, hash(1), &tiers(&["t"]), false, ());
    assert_eq!(again, Err(AddError::Duplicate));
    world.run(Duration::from_secs(10), slow);
    let events: Vec<_> = world.seen.iter().map(|seen| seen.3).collect();
    assert_eq!(events, [Event::Started, Event::Stopped, Event::Started]);
    assert!(world.seen[2].0 >= world.seen[1].0 + Duration::from_secs(2), "one after the other");
    assert!(world.scheduler.handle_completed(world.now, hash(1)));
    world.run(Duration::from_secs(10), slow);
    assert_eq!(world.seen.last().map(|seen| seen.3), Some(Event::Completed));
    // An addition that waits can be taken back.
    world.scheduler.remove(world.now, hash(1));
    world.add(1, &["t"]);
    assert!(world.scheduler.remove(world.now, hash(1)));
    world.run(Duration::from_secs(10), slow);
    assert_eq!(world.scheduler.torrent_count(), 0);
}

#[test]
fn the_end_is_quick_and_within_the_limits() {
    let mut world = World::new(Limits::default());
    for index in 0..3000 {
        world.add(index, &[&format!("t{}", index % 3)]);
    }
    for index in 3000..3100 {
        world.add(index, &["dead"]);
    }
    let answer: Answer<'_> = &|job| {
        let is_dead = job.announce.url.host().contains("dead");
        if is_dead { (Duration::from_secs(30), Err(timeout())) } else { (FAST, ok()) }
    };
    world.run(Duration::from_secs(90), answer);
    assert_eq!(
        world.seen.iter().filter(|seen| seen.3 == Event::Started).count() - world.seen_of("dead"),
        3000
    );
    world.in_flight_peak = 0;
    world.scheduler.handle_ending(world.now);
    assert_eq!(
        world.scheduler.add(world.now, hash(9999), &tiers(&["t"]), true, ()),
        Err(AddError::Ending)
    );
    world.run(Duration::from_secs(5), answer);
    let stopped_count = world.seen.iter().filter(|seen| seen.3 == Event::Stopped).count();
    assert_eq!(stopped_count, 3000);
    assert!(world.in_flight_peak <= 2 * world.limits.in_flight_max);
    assert!(world.per_host_peak <= world.limits.in_flight_per_host_ending_max);
    world.run(Duration::from_secs(60), answer);
    assert!(world.scheduler.is_ended());
}

#[test]
fn the_table_of_torrents_has_an_end() {
    let mut world = World::new(Limits { torrents_max: 2, ..Limits::default() });
    world.add(1, &["t"]);
    world.add(2, &[]);
    let third = world.scheduler.add(world.now, hash(3), &tiers(&["t"]), false, ());
    assert_eq!(third, Err(AddError::Full(2)));
    world.scheduler.remove(world.now, hash(2));
    world.add(3, &["t"]);
}

#[test]
fn hosts_are_forgotten() {
    let mut world = World::new(Limits::default());
    for index in 0..500 {
        world.add(index, &[&format!("t{index}")]);
        world.scheduler.remove(world.now, hash(index));
    }
    for index in 0..500 {
        world.add(index, &[&format!("u{index}")]);
    }
    world.run(Duration::from_secs(100), &|_| (FAST, Err(timeout())));
    assert_eq!(world.scheduler.hosts.len(), 500);
    for index in 0..500 {
        world.scheduler.remove(world.now, hash(index));
    }
    world.add(1000, &["t"]);
    world.run(Duration::from_secs(4 * 3600), &|_| (FAST, ok()));
    assert!(world.scheduler.hosts.len() <= 1, "{}", world.scheduler.hosts.len());
}

#[test]
fn random_worlds_keep_their_limits() {
    for seed in 0..10 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(Limits { in_flight_max: 7, ..Limits::default() });
        for index in 0..200 {
            let hosts: Vec<_> = (0..rng.usize(1..4)).map(|_| format!("t{}", rng.u8(..9))).collect();
            world.add(index, &hosts.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for _ in 0..50 {
            let chosen = hash(rng.u32(..200));
            match rng.u8(..4) {
                0 => drop(world.scheduler.remove(world.now, chosen)),
                1 => drop(world.scheduler.handle_completed(world.now, chosen)),
                2 => drop(world.scheduler.handle_reannounce(world.now, chosen)),
                _ => drop(world.scheduler.add(world.now, chosen, &tiers(&["t1", "x"]), true, ())),
            }
            let pick = rng.u64(..);
            world.run(Duration::from_secs(rng.u64(..600)), &|job| {
                let lot = pick ^ job.key as u64;
                let time = Duration::from_millis(lot % 31_000);
                let is_ok = (lot / 3).is_multiple_of(2);
                (time, if is_ok { ok() } else { Err(timeout()) })
            });
        }
        assert!(world.in_flight_peak <= 7, "seed {seed}");
        assert!(world.per_host_peak <= world.limits.in_flight_per_host_max, "seed {seed}");
        world.scheduler.handle_ending(world.now);
        world.run(Duration::from_secs(120), &|_| (FAST, ok()));
        assert!(world.scheduler.is_ended(), "seed {seed}");
    }
}

impl<T> Scheduler<T> {
    /// Every torrent stands in exactly the sets that its state names, and the counts are sums.
    fn check_invariants(&self) {
        let in_flight_count: usize = self.entries.iter().map(|(_, e)| e.in_flight_count).sum();
        assert_eq!(in_flight_count, self.on_way.len());
        let unproven_count = self.on_way.values().filter(|on_way| on_way.is_unproven).count();
        assert_eq!(unproven_count, self.unproven_in_flight_count);
        assert!(unproven_count <= self.limits.in_flight_unproven_max);
        assert!(self.silences.iter().all(|(_, on_way)| self.on_way.contains_key(on_way)));
        assert_eq!(self.entries.len(), self.by_info_hash.len() + self.stopping.len());
        let (mut waiting_count, mut ready_count) = (0, 0);
        let lines = self.entries.iter().flat_map(|(key, entry)| {
            (0..).zip(&entry.queues).map(move |(chain, queue)| ((key, chain), entry, queue))
        });
        for (line, entry, queue) in lines {
            match queue {
                Queue::None => assert!(
                    entry.in_flight_count > 0 || entry.announcer.poll_timeout(line.1).is_none(),
                    "a torrent that nobody will wake"
                ),
                Queue::Waiting(at) => {
                    waiting_count += 1;
                    assert!(self.waiting.contains(&(*at, line)));
                }
                Queue::Ready(host, rank) => {
                    ready_count += 1;
                    assert!(self.ready.contains(&(rank.1, line)));
                    assert!(self.hosts[host].ready.contains(rank));
                }
            }
        }
        assert_eq!((waiting_count, ready_count), (self.waiting.len(), self.ready.len()));
        let of_hosts: usize = self.hosts.values().map(|host| host.ready.len()).sum();
        assert_eq!(ready_count, of_hosts);
        let placed = |place: &Place| match place {
            Place::Off => (0, 0, 0),
            Place::Runnable(_) => (1, 0, 0),
            Place::Unproven(_) => (0, 1, 0),
            Place::Pausing(_) => (0, 0, 1),
        };
        let sum = |(a, b, c), (d, e, f)| (a + d, b + e, c + f);
        let counts = self.hosts.values().map(|host| placed(&host.place)).fold((0, 0, 0), sum);
        assert_eq!(counts, (self.runnable.len(), self.unproven.len(), self.pausing.len()));
    }
}
