//! Both sides against each other, however the bytes are cut, and against those that break rules.

use super::intake::xor;
use super::*;

const TORRENT: InfoHash = InfoHash([7; 20]);

fn private(rng: &mut fastrand::Rng) -> PrivateKey {
    PrivateKey::new(std::array::from_fn(|_| rng.u8(..)))
}

fn padding(rng: &mut fastrand::Rng) -> Vec<u8> {
    let len = *rng.choice(&[0, 1, 100, PADDING_MAX]).unwrap();
    (0..len).map(|_| rng.u8(..)).collect()
}

fn find(mark: &[u8; 20]) -> Option<InfoHash> {
    (*mark == torrent_mark(&TORRENT)).then_some(TORRENT)
}

struct Pair {
    a: Initiator,
    b: Responder,
    rng: fastrand::Rng,
}

impl Pair {
    fn new(seed: u64, a: Policy, b: Policy) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rng = &mut rng;
        let (key, pad) = (private(rng), padding(rng));
        let a = Initiator::new(a, TORRENT, key, pad, b"first words".to_vec());
        let (key, pad) = (private(rng), padding(rng));
        Self { a, b: Responder::new(b, key, pad), rng: rng.clone() }
    }

    /// Lets both speak until nothing moves; bytes arrive in pieces of random size, and answers of
    /// the other thread before or after them.
    fn run(&mut self) -> Result<(), Error> {
        let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
        let (mut job_a, mut job_b) = (None, None);
        for _ in 0..10_000 {
            job_a = job_a.or_else(|| self.a.poll_job());
            job_b = job_b.or_else(|| self.b.poll_job());
            to_b.extend(self.a.poll_transmit());
            to_a.extend(self.b.poll_transmit());
            if job_a.is_none() && job_b.is_none() && to_a.is_empty() && to_b.is_empty() {
                return Ok(());
            }
            match self.rng.u8(..4) {
                0 if !to_a.is_empty() => {
                    let now = self.rng.usize(1..=to_a.len());
                    let used = self.a.handle_bytes(&to_a[..now])?;
                    to_a.drain(..used);
                }
                1 if !to_b.is_empty() => {
                    let now = self.rng.usize(1..=to_b.len());
                    let used = self.b.handle_bytes(&to_b[..now], find)?;
                    to_b.drain(..used);
                }
                2 => job_a.take().map_or(Ok(()), |job| self.a.handle_answer(job.run()))?,
                3 => job_b.take().map_or(Ok(()), |job| self.b.handle_answer(job.run(), find))?,
                _ => {}
            }
        }
        panic!("it does not end");
    }
}

/// Whether bytes that one side encrypts are what the other decrypts.
fn is_same_stream(one: Option<Box<Ciphers>>, other: Option<Box<Ciphers>>) -> bool {
    let (Some(mut one), Some(mut other)) = (one, other) else { return false };
    let mut words = *b"words of one side";
    one.outgoing.apply(&mut words);
    let is_hidden = words != *b"words of one side";
    other.incoming.apply(&mut words);
    is_hidden && words == *b"words of one side"
}

#[test]
fn both_sides_agree_however_the_bytes_are_cut() {
    use Policy::{Allow, Prefer, Require};
    let cases = [
        (Allow, Allow, false),
        (Allow, Prefer, true),
        (Allow, Require, true),
        (Prefer, Allow, false),
        (Require, Allow, true),
        (Require, Require, true),
    ];
    for (seed, (a, b, is_encrypted)) in (0..).zip(cases.iter().cycle().take(60)) {
        let mut pair = Pair::new(seed, *a, *b);
        assert_eq!(pair.run(), Ok(()), "seed {seed}");
        let (one, other) = (pair.a.poll_established().unwrap(), pair.b.poll_established().unwrap());
        assert_eq!((one.info_hash, other.info_hash), (TORRENT, TORRENT));
        assert_eq!((&one.payload[..], &other.payload[..]), (&b""[..], &b"first words"[..]));
        assert_eq!(one.ciphers.is_some(), *is_encrypted, "seed {seed}");
        assert_eq!(other.ciphers.is_some(), *is_encrypted, "seed {seed}");
        if *is_encrypted {
            assert!(is_same_stream(one.ciphers.clone(), other.ciphers.clone()), "seed {seed}");
            assert!(is_same_stream(other.ciphers, one.ciphers), "seed {seed}");
        }
        assert!(pair.a.poll_established().is_none() && pair.b.poll_established().is_none());
    }
}

#[test]
fn no_byte_behind_the_exchange_is_taken() {
    let mut pair = Pair::new(1, Policy::Require, Policy::Require);
    let answer = pair.a.poll_job().unwrap().run();
    pair.a.handle_answer(answer).unwrap();
    let opening = pair.a.poll_transmit();
    assert_eq!(pair.b.handle_bytes(&opening, find), Ok(opening.len()));
    let answer = pair.b.poll_job().unwrap().run();
    pair.b.handle_answer(answer, find).unwrap();
    let reply = pair.b.poll_transmit();
    assert_eq!(pair.a.handle_bytes(&reply), Ok(reply.len()));
    let answer = pair.a.poll_job().unwrap().run();
    pair.a.handle_answer(answer).unwrap();
    let mut third = pair.a.poll_transmit();
    let len = third.len();
    third.extend([9; 300]);
    assert_eq!(pair.b.handle_bytes(&third, find), Ok(len));
    let mut fourth = pair.b.poll_transmit();
    let len = fourth.len();
    fourth.extend([9; 300]);
    assert_eq!(pair.a.handle_bytes(&fourth), Ok(len));
    assert_eq!(pair.a.handle_bytes(&fourth), Ok(0), "nothing more is taken");
    assert!(pair.a.poll_established().is_some() && pair.b.poll_established().is_some());
}

#[test]
fn who_has_nothing_in_common_is_refused() {
    let mut pair = Pair::new(2, Policy::Require, Policy::Require);
    pair.a.provided = PLAIN_BIT;
    assert_eq!(pair.run(), Err(Error::NoMethod(PLAIN_BIT)));
    let mut pair = Pair::new(3, Policy::Allow, Policy::Allow);
    pair.a.provided = 0xf0;
    assert_eq!(pair.run(), Err(Error::NoMethod(0xf0)));
    // A responder that chooses what was not offered.
    for wrong in [0, 4, PLAIN_BIT | RC4_BIT, PLAIN_BIT] {
        let (mut a, secret) = named(4);
        let mut hidden = VERIFICATION.to_vec();
        hidden.extend(wrong.to_be_bytes());
        hidden.extend([0, 0]);
        Ciphers::new(&secret, &TORRENT, false).outgoing.apply(&mut hidden);
        assert_eq!(a.handle_bytes(&hidden), Err(Error::NoMethod(wrong)));
    }
}

/// An initiator that requires encryption and has named its torrent, and the secret that it shares
/// with us.
fn named(seed: u64) -> (Initiator, Secret) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let ours = private(&mut rng);
    let mut a = Initiator::new(Policy::Require, TORRENT, private(&mut rng), vec![], vec![]);
    let answer = a.poll_job().unwrap().run();
    a.handle_answer(answer).unwrap();
    let theirs = PublicKey::parse(&a.poll_transmit()).unwrap();
    let answer = Job::both(ours, theirs).run();
    let secret = answer.secret.unwrap();
    a.handle_bytes(&answer.public.unwrap()).unwrap();
    let answer = a.poll_job().unwrap().run();
    a.handle_answer(answer).unwrap();
    assert_eq!(a.poll_transmit().len(), 40 + 16, "what names it, and the header");
    (a, secret)
}

#[test]
fn a_torrent_that_is_not_here_is_not_found() {
    let mut pair = Pair::new(5, Policy::Allow, Policy::Allow);
    pair.a.info_hash = InfoHash([8; 20]);
    assert_eq!(pair.run(), Err(Error::UnknownTorrent));
}

/// A responder that has answered a key, and the secret that it shares with us.
fn answered(seed: u64) -> (Responder, Secret) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let ours = private(&mut rng);
    let mut b = Responder::new(Policy::Allow, private(&mut rng), Vec::new());
    let public = Job::public(ours.clone()).run().public.unwrap();
    assert_eq!(b.handle_bytes(&public, find), Ok(96));
    let answer = b.poll_job().unwrap().run();
    b.handle_answer(answer, find).unwrap();
    let theirs = PublicKey::parse(&b.poll_transmit()).unwrap();
    (b, Job::secret(ours, theirs).run().secret.unwrap())
}

/// The third part of an exchange with any header, in the clear behind `cut` bytes.
fn third(secret: &Secret, hidden: &[u8]) -> Vec<u8> {
    let mut part = hash(b"req1", &[&secret.0]).to_vec();
    part.extend(xor(&torrent_mark(&TORRENT), hash(b"req3", &[&secret.0])));
    let mut hidden = hidden.to_vec();
    Ciphers::new(secret, &TORRENT, true).outgoing.apply(&mut hidden);
    part.extend(hidden);
    part
}

#[test]
fn padding_has_an_end() {
    for (len, is_good) in [(0, true), (PADDING_MAX, true), (PADDING_MAX + 1, false)] {
        let (mut b, secret) = answered(6);
        let mut bytes = vec![0; len];
        bytes.extend(third(&secret, b"\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\0"));
        let result = b.handle_bytes(&bytes, find);
        assert_eq!(result.is_ok(), is_good, "{len}");
        assert_eq!(b.poll_established().is_some(), is_good, "{len}");
        if !is_good {
            assert_eq!(result, Err(Error::Lost));
        }
    }
    // One that says nothing but padding is let go at the last byte that could have ended it.
    let (mut b, _) = answered(7);
    assert_eq!(b.handle_bytes(&[0; PADDING_MAX + 19], find), Ok(PADDING_MAX + 19));
    assert_eq!(b.handle_bytes(&[0], find), Err(Error::Lost));
}

#[test]
fn lengths_and_constants_of_the_header_are_judged() {
    let cases: [(&[u8], Error); 4] = [
        (b"\0\0\0\0\0\0\0\x01\0\0\0\x03\0\0\0\0", Error::Verification),
        (b"\0\0\0\0\0\0\0\0\0\0\0\x03\x02\x01\0\0", Error::PaddingLen(513)),
        (b"\0\0\0\0\0\0\0\0\0\0\0\x03\0\0\x04\x01", Error::PayloadLen(1025)),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Error::NoMethod(0)),
    ];
    for (hidden, error) in cases {
        let (mut b, secret) = answered(8);
        assert_eq!(b.handle_bytes(&third(&secret, hidden), find), Err(error));
    }
}

#[test]
fn who_speaks_while_we_compute_is_kept_within_bounds() {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut b = Responder::new(Policy::Allow, private(&mut rng), Vec::new());
    let public = Job::public(private(&mut rng)).run().public.unwrap();
    b.handle_bytes(&public, find).unwrap();
    for _ in 0..PADDING_MAX {
        assert_eq!(b.handle_bytes(&[1], find), Ok(1));
    }
    assert_eq!(b.handle_bytes(&[1], find), Err(Error::Early));

    let mut a = Initiator::new(Policy::Allow, TORRENT, private(&mut rng), vec![], vec![]);
    assert_eq!(a.handle_bytes(&[1]), Err(Error::Early), "nothing was said yet");
}

#[test]
fn garbage_never_panics_and_never_gets_in() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut b, _) = answered(seed);
        let bytes: Vec<u8> = (0..rng.usize(..3000)).map(|_| rng.u8(..)).collect();
        let mut rest = &bytes[..];
        let mut result = Ok(0);
        while !rest.is_empty() && result.is_ok() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
            (result, rest) = (b.handle_bytes(now, find), later);
        }
        assert_eq!(result.is_err(), bytes.len() >= PADDING_MAX + 20, "seed {seed}");
        assert!(b.poll_established().is_none(), "seed {seed}");
    }
}
