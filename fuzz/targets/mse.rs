//! The opening of an encrypted connection: both sides speak as they should, and what is on its way
//! between them is changed, cut short or added to.
//!
//! RC4 passes changes on bit by bit, so the parts behind the key exchange are reached too.

use seedring::mse::{
    Answer, Established, Initiator, Job, PAYLOAD_MAX, Policy, PrivateKey, Responder,
};
use seedring::units::InfoHash;

use super::{Input, Script, assert_sentence};

const TORRENT: InfoHash = InfoHash([7; 20]);
const POLICIES: [Policy; 4] = [Policy::Off, Policy::Allow, Policy::Prefer, Policy::Require];
const FIRST: &[u8] = b"the first words of the stream";

/// Parts of an exchange, theirs and ours counted together.
const PART_COUNT: usize = 4;

/// One side of it.
enum Side {
    A(Box<Initiator>),
    B(Box<Responder>),
}

fn find(mark: &[u8; 20]) -> Option<InfoHash> {
    (*mark == seedring::mse::torrent_mark(&TORRENT)).then_some(TORRENT)
}

impl Side {
    fn handle(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self {
            Self::A(it) => it.handle_bytes(bytes),
            Self::B(it) => it.handle_bytes(bytes, find),
        }
        .map_err(|error| error.to_string())
    }

    fn poll_job(&mut self) -> Option<Job> {
        match self {
            Self::A(it) => it.poll_job(),
            Self::B(it) => it.poll_job(),
        }
    }

    fn answer(&mut self, answer: Answer) -> Result<(), String> {
        match self {
            Self::A(it) => it.handle_answer(answer),
            Self::B(it) => it.handle_answer(answer, find),
        }
        .map_err(|error| error.to_string())
    }

    fn poll_transmit(&mut self) -> Vec<u8> {
        match self {
            Self::A(it) => it.poll_transmit(),
            Self::B(it) => it.poll_transmit(),
        }
    }

    fn poll_established(&mut self) -> Option<Established> {
        match self {
            Self::A(it) => it.poll_established(),
            Self::B(it) => it.poll_established(),
        }
    }

    /// Takes a part in chunks; the answers of the other thread come at once or between chunks.
    fn take(&mut self, part: &[u8], chunk_len: usize) -> Result<(), String> {
        for chunk in part.chunks(chunk_len) {
            let used = self.handle(chunk)?;
            assert!(used <= chunk.len());
            if let Some(job) = self.poll_job() {
                self.answer(job.run())?;
            }
            if used < chunk.len() {
                // Whole: nothing behind it is taken.
                assert_eq!(self.handle(&chunk[used..]), Ok(0));
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let (a, b) = (POLICIES[input.below(4)], POLICIES[input.below(4)]);
    let (pad_a, pad_b) = (usize::from(input.u16()) % 600, usize::from(input.u16()) % 600);
    let chunk_len = 1 + usize::from(input.byte()) * 4;
    let key = |byte| PrivateKey::new([byte; 20]);
    let first = FIRST.to_vec();
    let initiator = Initiator::new(a, TORRENT, key(3), vec![1; pad_a], first);
    let mut sides = [
        Side::A(Box::new(initiator)),
        Side::B(Box::new(Responder::new(b, key(5), vec![2; pad_b]))),
    ];
    let job = sides[0].poll_job().expect("our key is wanted first");
    sides[0].answer(job.run()).unwrap();
    let mut is_changed = false;
    for number in 0..PART_COUNT {
        let mut part = sides[number % 2].poll_transmit();
        is_changed |= change(&mut part, &mut input);
        if let Err(sentence) = sides[1 - number % 2].take(&part, chunk_len) {
            assert_sentence(&sentence);
            let other = &mut sides[1 - number % 2];
            assert!(other.poll_established().is_none());
            assert_eq!(other.handle(b"more"), Ok(0), "who broke a rule is not heard again");
            let in_common = a != Policy::Off && b != Policy::Off;
            assert!(is_changed || !in_common, "honest sides did not agree: {sentence}");
            return;
        }
    }
    let [one, other] = sides.each_mut().map(Side::poll_established);
    for (established, policy) in [(&one, a), (&other, b)] {
        let Some(it) = established else { continue };
        assert_eq!(it.info_hash, TORRENT, "whatever was changed");
        assert!(policy != Policy::Require || it.ciphers.is_some(), "a plain stream, unwanted");
        assert!(it.payload.len() <= PAYLOAD_MAX, "{} bytes of payload", it.payload.len());
    }
    if is_changed {
        return;
    }
    let (one, other) = (one.expect("it is over"), other.expect("it is over"));
    assert_eq!((one.info_hash, other.info_hash), (TORRENT, TORRENT));
    assert_eq!((&one.payload[..], &other.payload[..]), (&b""[..], FIRST));
    match (one.ciphers, other.ciphers) {
        (None, None) => assert!(a != Policy::Require && b != Policy::Require),
        (Some(mut one), Some(mut other)) => {
            let mut words = *b"to and fro";
            one.outgoing.apply(&mut words);
            other.incoming.apply(&mut words);
            other.outgoing.apply(&mut words);
            one.incoming.apply(&mut words);
            assert_eq!(&words, b"to and fro");
        }
        _ => panic!("one side encrypts and the other does not"),
    }
}

/// Changes a part as the input says; whether it did.
fn change(part: &mut Vec<u8>, input: &mut Input<'_>) -> bool {
    let before = part.clone();
    match input.byte() % 4 {
        1 => {
            for _ in 0..=input.below(4) {
                let at = usize::from(input.u16());
                let mask = input.byte();
                let len = part.len();
                if let Some(byte) = part.get_mut(at % len.max(1)) {
                    *byte ^= mask;
                }
            }
        }
        2 => part.truncate(usize::from(input.u16())),
        3 => part.extend_from_slice(input.chunk()),
        _ => {}
    }
    *part != before
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let opening = |a, b| Script::default().bytes(&[a, b, 0, 50, 1, 0, 255]);
    let mut seeds: Vec<_> = (0..4).flat_map(|a| (0..4).map(move |b| opening(a, b).0)).collect();
    // The header of the third part: its constant, what is offered, and its lengths.
    for at in [40_u16, 51, 52, 53, 54, 55] {
        let flip = Script::default().bytes(&[0, 0, 1, 0]).bytes(&at.to_be_bytes()).bytes(&[3, 0]);
        seeds.push(opening(1, 1).bytes(&flip.0).0);
    }
    seeds.push(opening(1, 1).bytes(&[2, 0, 90]).0);
    seeds.push(opening(1, 1).bytes(&[3]).chunk(&[9; 600]).0);
    seeds.push(opening(3, 3).bytes(&[0, 0, 0, 3]).chunk(b"behind").0);
    seeds
}
