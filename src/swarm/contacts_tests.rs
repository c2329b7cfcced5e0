//! Addresses and their turns: budgets, sources, refusals, and what becomes of those that fail.

use super::super::choker::Slots;
use super::super::destinations::PER_NET_MAX;
use super::super::priority::canonical_priority;
use super::*;
use std::rc::Rc;

fn addr(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], number))
}

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    Instant::now()
}

fn shared() -> Rc<Shared> {
    Shared::new(None, None, Slots::Unlimited)
}

#[test]
fn neighbours_are_known_by_what_they_say_themselves() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let ip = addr(1).ip();
    for port in 5000..5100 {
        contacts.insert(start, Source::Tracker, addr(port), 0, &shared);
    }
    assert!(contacts.len() == 100 && !contacts.is_neighbour(ip));
    contacts = Contacts::default();
    for port in 5000..5100 {
        contacts.insert(start, Source::Lsd, addr(port), 0, &shared);
    }
    assert_eq!(contacts.len(), PER_HOST_KNOWN_MAX);
    assert!(contacts.is_neighbour(ip) && !contacts.is_neighbour([10, 0, 0, 2].into()));
}

#[test]
fn gossip_cannot_fill_the_table_with_one_place_nor_aim_at_it() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let insert = |contacts: &mut Contacts, source, addr: &str| {
        contacts.insert(start, source, addr.parse().unwrap(), 0, &shared);
    };
    (1..100).for_each(|port| insert(&mut contacts, Source::Pex, &format!("9.9.9.9:{port}")));
    assert_eq!(contacts.len(), PER_HOST_KNOWN_MAX);
    (1..250).for_each(|host| insert(&mut contacts, Source::Dht, &format!("9.9.9.{host}:5000")));
    assert_eq!(contacts.len(), PER_NET_KNOWN_MAX);
    (1..100).for_each(|host| insert(&mut contacts, Source::Pex, &format!("[2600::{host}]:5000")));
    assert_eq!(contacts.len(), PER_NET_KNOWN_MAX + 99);
    insert(&mut contacts, Source::Operator, "9.9.9.9:7000");
    assert_eq!(contacts.len(), PER_NET_KNOWN_MAX + 100);
    let mut tried = 0;
    for second in 0..59 {
        let at = start + Duration::from_secs(second);
        while let Some(addr) = contacts.take(at, &shared) {
            tried += u32::from(addr.is_ipv4());
            contacts.useless(addr);
        }
        contacts.check_invariants();
    }
    assert_eq!(tried, PER_NET_MAX + 1);
}

#[test]
fn the_best_of_those_that_are_due_comes_first() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let ours = "1.2.3.4:5".parse().unwrap();
    shared.set_own_addrs(&[ours]);
    let addr = |host: u8| SocketAddr::from(([9, host, 1, 1], 5000));
    (1..=30).for_each(|host| contacts.insert(start, Source::Pex, addr(host), 0, &shared));
    contacts.insert(start, Source::Tracker, ours, 0, &shared);
    let mut order = Vec::new();
    for second in 0..10 {
        let at = start + Duration::from_secs(second);
        order.extend(std::iter::from_fn(|| contacts.take(at, &shared)));
        order.iter().for_each(|&addr| contacts.useless(addr));
    }
    let priority = |&addr: &SocketAddr| canonical_priority(ours, addr).unwrap();
    assert_eq!(order.len(), 30, "ourselves we do not try");
    assert!(order.is_sorted_by_key(|addr| std::cmp::Reverse(priority(addr))));
}

#[test]
fn sources_are_kept_and_better_ones_make_room() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let addr = |number: u16| {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([9, high, low, 1], 5000))
    };
    for number in 0..3000 {
        contacts.insert(start, Source::Pex, addr(number), 0, &shared);
    }
    contacts.insert(start, Source::Dht, addr(0), 0, &shared);
    contacts.insert(start, Source::Tracker, addr(5000), 0, &shared);
    contacts.insert(start, Source::Pex, addr(5001), 0, &shared);
    let mut expected = [0; SOURCE_COUNT];
    expected[Source::Pex as usize] = CONTACTS_MAX - 1;
    expected[Source::Dht as usize] = 1;
    expected[Source::Tracker as usize] = 1;
    assert_eq!(contacts.by_source(), expected);
    assert_eq!(contacts.source_of(addr(0)), Some(Source::Dht));
    contacts.check_invariants();
}

#[test]
fn blocked_addresses_are_not_kept_and_not_tried() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let [first, second] = ["9.0.0.1:5000", "9.0.0.2:5000"].map(|addr| addr.parse().unwrap());
    contacts.insert(start, Source::Tracker, first, 0, &shared);
    let list = crate::swarm::Blocklist::parse(b"9.0.0.0/24").unwrap().list;
    shared.set_blocklist(Some(list.into()));
    contacts.insert(start, Source::Operator, second, 0, &shared);
    assert_eq!((contacts.len(), contacts.take(start, &shared)), (1, None));
    assert_eq!(shared.counted().addresses_blocked, 2);
    shared.set_blocklist(None);
    contacts.insert(start, Source::Operator, second, 0, &shared);
    assert_eq!(contacts.take(start, &shared), Some(second));
}

/// A second try at once is one more connection to a place that may have enough of them.
#[test]
fn a_second_try_is_within_the_same_budgets() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    let addr: SocketAddr = "9.0.0.1:5000".parse().unwrap();
    contacts.insert(start, Source::Pex, addr, 0, &shared);
    assert_eq!(contacts.take(start, &shared), Some(addr));
    let again = |shared: &Shared| contacts.may_connect_again(start, addr, shared);
    let count = (0..1000).filter(|_| again(&shared)).count();
    assert!((1..100).contains(&count), "{count} connections to one host at once");
    let fresh = self::shared();
    assert!(again(&fresh));
    let list = crate::swarm::Blocklist::parse(b"9.0.0.0/24").unwrap().list;
    fresh.set_blocklist(Some(list.into()));
    assert!(!again(&fresh), "a blocked address");
    fresh.set_blocklist(None);
    fresh.set_own_addrs(&[addr]);
    assert!(!again(&fresh), "ourselves");
}

#[test]
fn where_most_peers_see_us_we_are() {
    let (mut contacts, start, shared) = (Contacts::default(), now(), shared());
    shared.set_own_addrs(&["0.0.0.0:5000".parse().unwrap(), "1.2.3.4:6000".parse().unwrap()]);
    let insert = |contacts: &mut Contacts, addr: &str| {
        contacts.insert(start, Source::Pex, addr.parse().unwrap(), 0, &shared);
        contacts.len()
    };
    let hear = |voters: std::ops::Range<u8>, ip: &str| {
        let voter = |net| SocketAddr::from(([8, 8, net, 1], 5000));
        voters.for_each(|net| shared.handle_seen_at(start, voter(net), ip.parse().unwrap()));
    };
    // A few liars change nothing.
    hear(0..3, "9.9.9.9");
    assert_eq!(insert(&mut contacts, "9.9.9.9:5000"), 1);
    hear(3..20, "7.7.7.7");
    for own in ["7.7.7.7:5000", "7.7.7.7:6000", "1.2.3.4:6000"] {
        assert_eq!(insert(&mut contacts, own), 1, "{own}");
    }
    assert_eq!(insert(&mut contacts, "7.7.7.7:7000"), 2, "somebody behind the same address");
    assert_eq!(insert(&mut contacts, "1.2.3.4:5000"), 3);
}

#[test]
fn budget_and_half_open_cap_hold() {
    let (mut contacts, start) = (Contacts::default(), now());
    (1..=100).for_each(|port| contacts.insert(start, Source::Tracker, addr(port), 0, &shared()));
    let mut taken = 0;
    for second in 0..10 {
        let at = start + Duration::from_secs(second);
        let before = taken;
        while contacts.take(at, &shared()).is_some() {
            taken += 1;
        }
        assert!(taken - before <= CONNECTS_PER_SECOND_MAX as usize);
        contacts.check_invariants();
    }
    assert_eq!(taken, HALF_OPEN_MAX);
}

#[test]
fn failures_back_off_and_end() {
    let (mut contacts, mut at) = (Contacts::default(), now());
    contacts.insert(at, Source::Dht, addr(1), 0, &shared());
    contacts.insert(at, Source::Operator, addr(2), 0, &shared());
    let mut tries = [0, 0, 0];
    for _ in 0..40_000 {
        while let Some(tried) = contacts.take(at, &shared()) {
            tries[usize::from(tried.port())] += 1;
            contacts.failed(at, tried);
        }
        at += Duration::from_secs(1);
        contacts.check_invariants();
    }
    assert_eq!(tries[1], FAILURES_MAX + 1);
    assert!(tries[2] > tries[1] + 5, "{tries:?}");
    assert_eq!(contacts.len(), 1);
}

#[test]
fn the_table_is_bounded() {
    let (mut contacts, start) = (Contacts::default(), now());
    (1..=3000).for_each(|port| contacts.insert(start, Source::Pex, addr(port), 0, &shared()));
    assert_eq!(contacts.len(), CONTACTS_MAX);
    contacts.insert(start, Source::Operator, addr(4000), 0, &shared());
    assert_eq!(contacts.len(), CONTACTS_MAX);
    contacts.check_invariants();
}

#[test]
fn addresses_of_a_link_are_kept_up_to_their_number() {
    let (mut contacts, mut at, shared) = (Contacts::default(), now(), shared());
    let addr = |number: u16| {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([9, high, low, 1], 5000))
    };
    let more = u16::try_from(MAGNET_KEPT_MAX).unwrap() + 10;
    (0..more).for_each(|it| contacts.insert(at, Source::Magnet, addr(it), 0, &shared));
    for _ in 0..40_000 {
        while let Some(tried) = contacts.take(at, &shared) {
            contacts.failed(at, tried);
        }
        at += Duration::from_secs(1);
    }
    assert_eq!(contacts.len(), MAGNET_KEPT_MAX);
    contacts.check_invariants();
}

#[test]
fn want_of_room_is_no_failure_and_makes_a_pause() {
    let (mut contacts, mut at, shared) = (Contacts::default(), now(), shared());
    let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
    contacts.insert(at, Source::Dht, addr(1), 0, &shared);
    contacts.insert(at, Source::Dht, addr(2), 0, &shared);
    for _ in 0..100 {
        let tried = contacts.take(at, &shared).unwrap();
        contacts.postponed(at, tried);
        assert_eq!(contacts.take(at, &shared), None);
        assert_eq!(contacts.next_at(), Some(at + POSTPONE));
        at += POSTPONE;
        contacts.check_invariants();
    }
    assert_eq!(contacts.len(), 2);
}
