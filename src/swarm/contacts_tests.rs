//! Addresses that are kept although they fail, and those that there was no room to try.

use super::super::choker::Slots;
use super::*;
use std::rc::Rc;

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    Instant::now()
}

fn shared() -> Rc<Shared> {
    Shared::new(None, None, Slots::Unlimited)
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
