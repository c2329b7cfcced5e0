//! One torrent's schedule in virtual time.

use super::*;
use crate::tracker::Retry;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

struct World {
    now: Instant,
    options: Options,
    announcer: Announcer,
}

/// What a tracker of the tests does.
type Answer<'a> = &'a dyn Fn(&str, Event) -> Result<Reply, Failure>;

impl World {
    fn new(tiers: &[&[&str]], seed: u64) -> Self {
        let now = crate::sys::clock::now();
        let url = |name: &&str| format!("http://{name}/announce");
        let tiers: Vec<Vec<_>> = tiers.iter().map(|tier| tier.iter().map(url).collect()).collect();
        let options = Options::default();
        let announcer = Announcer::new(now, &options, &tiers, fastrand::Rng::with_seed(seed));
        Self { now, options, announcer }
    }

    fn poll(&mut self) -> Option<Announce> {
        let mut chains = 0..self.announcer.chain_count();
        chains.find_map(|chain| self.announcer.poll(self.now, chain, &self.options))
    }

    fn timeout(&self) -> Option<Instant> {
        self.announcer.status().next_at
    }

    fn reply(&mut self, announce: &Announce, result: Result<Reply, Failure>) {
        self.announcer.handle_reply(self.now, &self.options, announce.slot, &result);
    }

    /// Polls at every deadline for `time`, and notes each announce as `(seconds, host, event)`.
    fn run(&mut self, time: Duration, answer: Answer<'_>) -> Vec<(u64, String, Event)> {
        let (start, mut seen) = (self.now, Vec::new());
        for _ in 0..10_000 {
            while let Some(announce) = self.poll() {
                let name = name_of(&announce);
                seen.push(((self.now - start).as_secs(), name.clone(), announce.event));
                self.reply(&announce, answer(&name, announce.event));
            }
            match self.timeout() {
                Some(at) if at <= start + time => {
                    assert!(at > self.now, "a deadline that makes nothing due");
                    self.now = at;
                }
                _ => break,
            }
        }
        self.now = start + time;
        seen
    }
}

fn name_of(announce: &Announce) -> String {
    announce.url.host().trim_start_matches("http://").trim_end_matches(":80").to_owned()
}

fn interval(seconds: u64) -> Reply {
    Reply { interval: Some(Duration::from_secs(seconds)), ..Reply::default() }
}

fn down() -> Failure {
    Failure::Connect("refused".into())
}

#[test]
fn events_come_in_order() {
    let mut world = World::new(&[&["a"]], 1);
    let ok: Answer<'_> = &|_, _| Ok(interval(1800));
    let seen = world.run(2 * HOUR, ok);
    assert_eq!(seen.first(), Some(&(0, "a".into(), Event::Started)));
    assert!(seen[1..].iter().all(|(_, _, event)| *event == Event::Periodic));
    assert_eq!(seen.len(), 4, "{seen:?}");
    world.announcer.handle_completed(world.now);
    let seen = world.run(MINUTE, ok);
    assert_eq!(seen, [(0, "a".into(), Event::Completed)]);
    world.announcer.handle_stop(world.now);
    assert!(!world.announcer.is_stopped());
    let announce = world.poll().unwrap();
    assert_eq!((announce.event, announce.numwant), (Event::Stopped, 0));
    assert!(!world.announcer.is_stopped());
    world.reply(&announce, Err(down()));
    assert!(world.announcer.is_stopped());
    assert_eq!((world.poll(), world.timeout()), (None, None));
}

#[test]
fn completed_waits_for_started_and_is_sent_until_it_arrives() {
    let mut world = World::new(&[&["a"]], 1);
    let started = world.poll().unwrap();
    assert_eq!(world.poll(), None, "one at a time");
    world.announcer.handle_completed(world.now);
    assert_eq!(world.poll(), None, "one at a time");
    world.reply(&started, Ok(interval(1800)));
    let completed = world.poll().unwrap();
    assert_eq!((started.event, completed.event), (Event::Started, Event::Completed));
    world.reply(&completed, Err(down()));
    let seen = world.run(HOUR, &|_, _| Ok(interval(1800)));
    assert_eq!(seen.first().map(|seen| seen.2), Some(Event::Completed));
    assert!(seen.len() > 1 && seen[1..].iter().all(|(_, _, event)| *event == Event::Periodic));
}

#[test]
fn stop_waits_for_the_answer_to_started() {
    let mut world = World::new(&[&["a"]], 1);
    let started = world.poll().unwrap();
    world.announcer.handle_stop(world.now);
    assert_eq!(world.poll(), None);
    world.reply(&started, Ok(interval(1800)));
    assert_eq!(world.poll().map(|announce| announce.event), Some(Event::Stopped));

    let mut world = World::new(&[&["a"]], 1);
    let started = world.poll().unwrap();
    world.announcer.handle_stop(world.now);
    world.reply(&started, Err(down()));
    assert!(world.announcer.is_stopped(), "who never heard of us hears no stop");

    let mut world = World::new(&[&["a"]], 1);
    world.run(MINUTE, &|_, _| Ok(interval(1800)));
    world.now += HOUR;
    let periodic = world.poll().unwrap();
    world.announcer.handle_stop(world.now);
    world.reply(&periodic, Err(down()));
    assert!(world.announcer.is_stopped(), "nor does who has just failed");
}

#[test]
fn every_tracker_that_heard_started_hears_stopped() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let ok = |name: &str| if name == "a" { Ok(interval(1800)) } else { Ok(interval(900)) };
    world.run(MINUTE, &|name, _| ok(name));
    world.run(HOUR, &|name, _| if name == "a" { Err(down()) } else { ok(name) });
    world.announcer.handle_stop(world.now);
    let mut stopped: Vec<_> = std::iter::from_fn(|| world.poll()).collect();
    stopped.sort_by_key(|announce| announce.slot);
    let told: Vec<_> = stopped.iter().map(|announce| (name_of(announce), announce.event)).collect();
    assert_eq!(told, [("a".into(), Event::Stopped), ("b".into(), Event::Stopped)]);
}

#[test]
fn tiers_are_shuffled_once_and_each_seed_differs() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let order = |seed| {
        let mut world = World::new(&[&names, &["last"]], seed);
        let seen = world.run(Duration::from_secs(1), &|_, _| Err(down()));
        seen.into_iter().map(|(_, name, _)| name).collect::<Vec<_>>()
    };
    let first = order(1);
    assert_eq!(first.len(), 7);
    assert_eq!(first.last().map(String::as_str), Some("last"), "tiers keep their order");
    assert_eq!(first, order(1));
    assert!((2..10).any(|seed| order(seed) != first));
}

#[test]
fn the_tracker_that_answers_moves_to_the_front_of_its_tier() {
    for lucky in ["a", "b", "c"] {
        let mut world = World::new(&[&["a", "b", "c"], &["z"]], 3);
        world.run(MINUTE, &|name, _| if name == lucky { Ok(interval(1800)) } else { Err(down()) });
        let seen = world.run(4 * HOUR, &|_, _| Ok(interval(1800)));
        assert!(seen.len() > 6);
        assert!(seen.iter().all(|(_, name, _)| name == lucky), "{lucky}: {seen:?}");
    }
}

#[test]
fn the_next_tier_is_asked_at_once_and_the_first_again_later() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let seen = world.run(MINUTE, &|name, _| {
        if name == "a" { Err(down()) } else { Ok(interval(1800)) }
    });
    assert_eq!(seen, [(0, "a".into(), Event::Started), (0, "b".into(), Event::Started)]);
    let seen = world.run(HOUR, &|_, _| Ok(interval(1800)));
    assert_eq!(seen[0].1, "a", "the first tier comes first (BEP 12): {seen:?}");
    assert_eq!(seen[0].2, Event::Started);
}

#[test]
fn back_off_doubles_up_to_its_limit() {
    let mut world = World::new(&[&["a"]], 1);
    let seen = world.run(24 * HOUR, &|_, _| Err(down()));
    let waits: Vec<_> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    for (wait, expected) in waits.iter().zip([30, 60, 120, 240, 480, 960, 1920, 2700, 2700]) {
        assert!((expected..=expected + expected / 10 + 1).contains(wait), "{waits:?}");
    }
    assert!(waits.len() > 30 && waits.iter().all(|wait| *wait <= 3600), "{waits:?}");
    assert_eq!(world.announcer.status().trackers[0].failure_count as usize, seen.len());
}

#[test]
fn intervals_are_clamped_and_jittered_upwards() {
    let table = [
        (Some(0), None, 60),
        (Some(1), None, 60),
        (None, None, 1800),
        (Some(600), None, 600),
        (Some(600), Some(900), 900),
        (Some(u64::MAX), None, 86_400),
        (Some(60), Some(u64::MAX), 86_400),
    ];
    let time = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    for (interval, min_interval, expected) in table {
        let mut world = World::new(&[&["a"]], 9);
        let (interval, min_interval) = (time(interval), time(min_interval));
        let answer = Reply { interval, min_interval, ..Reply::default() };
        let seen = world.run(Duration::from_secs(expected * 5), &|_, _| Ok(answer.clone()));
        let waits: Vec<_> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(waits.len() >= 3, "{waits:?}");
        let fits = |wait: &u64| (expected..=expected + expected / 10 + 1).contains(wait);
        assert!(waits.iter().all(fits), "{interval:?} {min_interval:?}: {waits:?}");
    }
    let mut world = World::new(&[&["a"]], 9);
    world.options.interval_min = Duration::from_secs(1);
    assert!(world.run(MINUTE, &|_, _| Ok(interval(1))).len() > 50, "tests may go lower");
}

#[test]
fn trackers_are_asked_again_when_they_want_it() {
    let reason = |reason: &str, retry| Failure::Reason { reason: reason.into(), retry };
    let wait = |failure: Failure| {
        let mut world = World::new(&[&["a"]], 1);
        let seen = world.run(48 * HOUR, &|_, _| Err(failure.clone()));
        seen.get(1).map(|seen| seen.0)
    };
    let after = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(wait(reason("no", Some(Retry::Never))), None);
    assert_eq!(wait(reason("no", Some(Retry::After(HOUR)))), Some(3600));
    assert_eq!(wait(Failure::Status { status: 429, retry_after: after(7200) }), Some(7200));
    assert_eq!(wait(Failure::Status { status: 429, retry_after: after(u64::MAX) }), Some(86_400));
    for failure in
        [Failure::Status { status: 410, retry_after: None }, reason("Torrent not registered", None)]
    {
        assert!((300..=331).contains(&wait(failure).unwrap()));
    }
}

#[test]
fn a_reannounce_overrides_our_back_off_but_not_the_tracker() {
    let mut world = World::new(&[&["a"]], 1);
    let gone = Failure::Status { status: 410, retry_after: None };
    world.run(HOUR, &|_, _| Err(gone.clone()));
    world.announcer.handle_reannounce(world.now, &world.options);
    assert_eq!(world.run(Duration::ZERO, &|_, _| Ok(interval(1800))).len(), 1);
    for _ in 0..3 {
        world.announcer.handle_reannounce(world.now, &world.options);
        assert_eq!(world.poll(), None, "the minimum interval holds");
    }
    let seen = world.run(2 * MINUTE, &|_, _| Ok(interval(1800)));
    assert_eq!(seen.len(), 1, "then it comes: {seen:?}");
    let busy = Failure::Status { status: 429, retry_after: Some(HOUR) };
    world.now += HOUR;
    world.run(Duration::ZERO, &|_, _| Err(busy.clone()));
    world.announcer.handle_reannounce(world.now, &world.options);
    world.announcer.handle_completed(world.now);
    assert_eq!(world.poll(), None);
    assert_eq!(world.timeout(), Some(world.now + HOUR));
}

#[test]
fn the_tracker_id_is_kept_and_sent_back() {
    let mut world = World::new(&[&["a"]], 1);
    let first = world.poll().unwrap();
    assert_eq!(first.tracker_id, None);
    let answer = Reply { tracker_id: Some(b"id".to_vec()), ..interval(60) };
    world.reply(&first, Ok(answer));
    for tracker_id in [None, Some(vec![0; TRACKER_ID_LEN_MAX + 1])] {
        world.now = world.timeout().unwrap();
        let next = world.poll().unwrap();
        assert_eq!(next.tracker_id.as_deref(), Some(&b"id"[..]));
        world.reply(&next, Ok(Reply { tracker_id, ..interval(60) }));
    }
}

#[test]
fn unusable_urls_are_skipped_with_a_reason() {
    let now = crate::sys::clock::now();
    let tier = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
    let tiers =
        [tier(&["udp://t.example/a", " http://t.example/a "]), tier(&["http://t.example/a", "x"])];
    let announcer = Announcer::new(now, &Options::default(), &tiers, fastrand::Rng::with_seed(1));
    let status = announcer.status();
    assert_eq!(status.trackers.len(), 1);
    let skipped: Vec<_> = status
        .skipped
        .iter()
        .map(|skipped| (skipped.tier, skipped.position, &skipped.why))
        .collect();
    assert_eq!(skipped, [(0, 0, &UrlError::NoPort), (1, 3, &UrlError::Unreadable)]);
    let hosts: Vec<_> = status.skipped.iter().map(|skipped| skipped.host.as_deref()).collect();
    assert_eq!(hosts, [Some("udp://t.example"), None]);
    let none = Announcer::new(now, &Options::default(), &[], fastrand::Rng::with_seed(1));
    assert!(!none.has_trackers() && none.status().next_at.is_none());
}

#[test]
fn hostile_tier_lists_are_cut() {
    let now = crate::sys::clock::now();
    let url = |index: usize| format!("http://t{index}/");
    let many = vec![(0..1000).map(url).collect::<Vec<_>>()];
    let announcer = Announcer::new(now, &Options::default(), &many, fastrand::Rng::with_seed(1));
    assert_eq!(announcer.status().trackers.len(), TRACKERS_MAX);
    let deep: Vec<_> = (0..1000).map(|index| vec![url(index)]).collect();
    let announcer = Announcer::new(now, &Options::default(), &deep, fastrand::Rng::with_seed(1));
    assert_eq!(announcer.status().trackers.len(), TIERS_MAX);
}

#[test]
fn a_deferred_tracker_is_passed_over_without_blame() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let (slot, _) = world.announcer.peek(world.now, 0).unwrap();
    world.announcer.handle_deferred(slot, world.now + HOUR);
    assert_eq!(world.poll().map(|announce| name_of(&announce)), Some("b".into()));
    assert_eq!(world.announcer.status().trackers[0].failure_count, 0);
}

#[test]
fn a_silent_tracker_does_not_hold_back_the_next_tier() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let first = world.poll().unwrap();
    assert_eq!((name_of(&first), world.poll(), world.timeout()), ("a".into(), None, None));
    world.now += Duration::from_secs(15);
    world.announcer.handle_silence(world.now, first.slot);
    let second = world.poll().unwrap();
    assert_eq!((name_of(&second), second.event), ("b".into(), Event::Started));
    assert_eq!(world.poll(), None, "both are on their way");
    world.reply(&second, Ok(interval(1800)));
    let fed_until = world.timeout().unwrap();
    assert!(fed_until >= world.now + Duration::from_secs(1800));
    // The silent one goes its own way: its failure changes nothing for the other.
    world.now += Duration::from_secs(15);
    world.reply(&first, Err(Failure::Timeout(Duration::from_secs(30))));
    assert_eq!(world.timeout(), Some(fed_until));
    assert_eq!(world.announcer.status().trackers[0].failure_count, 1);
    world.announcer.handle_stop(world.now);
    let stopped: Vec<_> = std::iter::from_fn(|| world.poll()).map(|a| name_of(&a)).collect();
    assert_eq!(stopped, ["b"], "who never answered hears no stop");
}

#[test]
fn a_silent_tracker_that_answers_late_is_told_the_rest() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let first = world.poll().unwrap();
    world.announcer.handle_silence(world.now, first.slot);
    let second = world.poll().unwrap();
    world.reply(&first, Ok(interval(900)));
    assert_eq!(world.poll(), None, "the second is waited for");
    world.reply(&second, Err(down()));
    let next_at = world.timeout().unwrap() - world.now;
    assert!((900..=990).contains(&next_at.as_secs()), "the late one feeds: {next_at:?}");
    world.now += HOUR;
    let third = world.poll().unwrap();
    assert_eq!((name_of(&third), third.event), ("a".into(), Event::Periodic));
    world.announcer.handle_silence(world.now, third.slot);
    let fourth = world.poll().unwrap();
    assert_eq!((name_of(&fourth), fourth.event), ("b".into(), Event::Started));
    world.reply(&fourth, Ok(interval(1800)));
    world.reply(&third, Ok(interval(1800)));
    // Both heard of the torrent, so both hear how it goes on.
    world.announcer.handle_completed(world.now);
    let mut told: Vec<_> = Vec::new();
    for _ in 0..2 {
        let announce = world.poll().unwrap();
        told.push((name_of(&announce), announce.event));
        world.reply(&announce, Ok(interval(1800)));
    }
    assert_eq!(told, [("a".into(), Event::Completed), ("b".into(), Event::Completed)]);
    assert_eq!(world.poll(), None);
    world.announcer.handle_stop(world.now);
    assert_eq!(std::iter::from_fn(|| world.poll()).count(), 2);
}

#[test]
fn completed_that_one_tracker_does_not_take_leaves_the_others_alone() {
    let mut world = World::new(&[&["a"], &["b"]], 1);
    let first = world.poll().unwrap();
    world.announcer.handle_silence(world.now, first.slot);
    let second = world.poll().unwrap();
    world.reply(&second, Ok(interval(1800)));
    world.reply(&first, Ok(interval(1800)));
    world.announcer.handle_completed(world.now);
    let seen = world.run(Duration::from_secs(1700), &|name, _| {
        if name == "b" { Err(down()) } else { Ok(interval(1800)) }
    });
    let of = |name: &str| seen.iter().filter(|seen| seen.1 == name).count();
    assert_eq!(of("a"), 1, "{seen:?}");
    assert!((5..9).contains(&of("b")), "{seen:?}");
}

#[test]
fn tiers_in_parallel_are_announced_to_by_themselves() {
    let now = crate::sys::clock::now();
    let options = Options { parallel_tiers: true, ..Options::default() };
    let tiers: Vec<Vec<_>> = [&["a", "b"][..], &["c"], &["d"]]
        .iter()
        .map(|tier| tier.iter().map(|name| format!("http://{name}/")).collect())
        .collect();
    let announcer = Announcer::new(now, &options, &tiers, fastrand::Rng::with_seed(2));
    let mut world = World { now, options, announcer };
    let ok: Answer<'_> = &|name, _| match name {
        "c" => Err(down()),
        _ => Ok(interval(if name == "d" { 600 } else { 1800 })),
    };
    let seen = world.run(Duration::from_secs(1), ok);
    let names: Vec<_> = seen.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!((seen.len(), &names[1..]), (3, &["c", "d"][..]), "{seen:?}");
    assert!(["a", "b"].contains(&names[0]), "one of the first tier");
    let first = names[0].to_owned();
    let seen = world.run(Duration::from_secs(1700), ok);
    let of = |name: &str| seen.iter().filter(|seen| seen.1 == name).count();
    assert_eq!((of("a") + of("b"), of("d")), (0, 2), "each has its interval: {seen:?}");
    assert!(of("c") >= 5, "and its back-off: {seen:?}");
    world.announcer.handle_completed(world.now);
    let seen = world.run(Duration::ZERO, ok);
    let completed = |name: &str| (0, name.to_owned(), Event::Completed);
    assert_eq!(seen, [completed(&first), completed("d")]);
    world.announcer.handle_stop(world.now);
    let stopped: Vec<_> = std::iter::from_fn(|| world.poll()).map(|a| name_of(&a)).collect();
    assert_eq!(stopped, [first, "d".into()]);
}

#[test]
fn random_outcomes_never_break_the_order_of_events() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(&[&["a", "b"], &["c"]], seed);
        let mut told = std::collections::BTreeSet::new();
        for _ in 0..300 {
            if let Some(announce) = world.poll() {
                let name = name_of(&announce);
                assert_eq!(announce.event == Event::Started, !told.contains(&name), "seed {seed}");
                let is_ok = rng.bool();
                if rng.u8(..) < 20 {
                    world.announcer.handle_completed(world.now);
                }
                let result = if is_ok { Ok(interval(rng.u64(..4000))) } else { Err(down()) };
                world.reply(&announce, result);
                if is_ok {
                    told.insert(name);
                }
            }
            let at = world.timeout().expect("something is always due");
            world.now = world.now.max(at);
        }
        world.announcer.handle_stop(world.now);
        let stops: Vec<_> = std::iter::from_fn(|| world.poll()).map(|a| name_of(&a)).collect();
        assert_eq!(stops.len(), told.len(), "seed {seed}");
        assert!(stops.iter().all(|name| told.contains(name)), "seed {seed}");
    }
}
