//! The side that connects.
//!
//! Invariant: nothing that tells the torrent leaves before the peer has sent a public key of its
//! own.
#![forbid(unsafe_code)]

use super::dh::{Answer, Job, PUBLIC_KEY_LEN, PrivateKey, PublicKey, Secret};
use super::intake::{Intake, bounded_padding, keep_early, u16_at, u32_at, xor};
use super::{
    Ciphers, Error, Established, PADDING_MAX, PAYLOAD_MAX, Policy, RC4_BIT, VERIFICATION, hash,
    torrent_mark,
};
use crate::units::InfoHash;

/// `crypto_select` and the length of PadD.
const HEADER_LEN: usize = 4 + 2;

#[derive(Clone, Debug)]
enum Stage {
    /// Our public key is being computed. Nothing is expected.
    Opening,
    /// Their public key arrives.
    Key,
    /// The secret is being computed; what came meanwhile.
    Computing { early: Vec<u8> },
    /// Padding, and the encrypted verification constant behind it.
    Padding { ciphers: Box<Ciphers>, mark: [u8; VERIFICATION.len()] },
    /// The header.
    Header { ciphers: Box<Ciphers> },
    /// PadD.
    Behind { ciphers: Box<Ciphers>, len: usize, selected: u32 },
    /// Everything was taken.
    Done(Option<Established>),
}

/// The exchange of a connection that we made.
#[derive(Clone, Debug)]
pub struct Initiator {
    pub(super) info_hash: InfoHash,
    pub(super) provided: u32,
    stage: Stage,
    intake: Intake,
    private: PrivateKey,
    padding: Vec<u8>,
    payload: Vec<u8>,
    job: Option<Job>,
    outbox: Vec<u8>,
}

impl Initiator {
    /// An exchange about a torrent with a fresh private key, `padding` random bytes, of which at
    /// most [`PADDING_MAX`] are sent, and the first bytes of our stream, at most [`PAYLOAD_MAX`],
    /// which save a round trip.
    pub fn new(
        policy: Policy,
        info_hash: InfoHash,
        private: PrivateKey,
        mut padding: Vec<u8>,
        mut payload: Vec<u8>,
    ) -> Self {
        padding.truncate(PADDING_MAX);
        debug_assert!(payload.len() <= PAYLOAD_MAX, "{} bytes of payload", payload.len());
        payload.truncate(PAYLOAD_MAX);
        Self {
            info_hash,
            provided: policy.provided(),
            stage: Stage::Opening,
            intake: Intake::default(),
            job: Some(Job::public(private.clone())),
            private,
            padding,
            payload,
            outbox: Vec::new(),
        }
    }

    /// Takes bytes from the front of `input` and returns how many; those behind are the stream's.
    ///
    /// # Errors
    /// The peer broke the rules.
    pub fn handle_bytes(&mut self, input: &[u8]) -> Result<usize, Error> {
        let mut rest = input;
        while self.step(&mut rest)? {}
        Ok(input.len() - rest.len())
    }

    /// Work that somebody else has to do before this goes on; its answer is awaited.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.job.take()
    }

    /// Whether an answer is awaited. Receiving can wait meanwhile.
    pub fn is_computing(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Computing { .. })
    }

    /// What came out of the work.
    ///
    /// # Errors
    /// As [`Initiator::handle_bytes`], for what came meanwhile.
    pub fn handle_answer(&mut self, answer: Answer) -> Result<(), Error> {
        match (&mut self.stage, answer) {
            (Stage::Opening, Answer { public: Some(public), .. }) => {
                self.outbox.extend_from_slice(&public);
                self.outbox.append(&mut self.padding);
                self.stage = Stage::Key;
                Ok(())
            }
            (Stage::Computing { early }, Answer { secret: Some(secret), .. }) => {
                let early = std::mem::take(early);
                self.name_torrent(&secret);
                // Whatever may follow the padding is an answer to what was not sent yet.
                let taken = self.handle_bytes(&early)?;
                if matches!(self.stage, Stage::Padding { .. }) && taken == early.len() {
                    Ok(())
                } else {
                    self.stage = Stage::Done(None);
                    Err(Error::Early)
                }
            }
            _ => Ok(()),
        }
    }

    /// What is to be sent now.
    pub fn poll_transmit(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbox)
    }

    /// The stream, once, when the exchange is over; its payload is empty.
    pub fn poll_established(&mut self) -> Option<Established> {
        match &mut self.stage {
            Stage::Done(established) => established.take(),
            _ => None,
        }
    }

    /// Says which torrent it is about, what kinds of streams we offer, and the first payload.
    fn name_torrent(&mut self, secret: &Secret) {
        let mut ciphers = Box::new(Ciphers::new(secret, &self.info_hash, true));
        self.outbox.extend_from_slice(&hash(b"req1", &[&secret.0]));
        let mark = torrent_mark(&self.info_hash);
        self.outbox.extend_from_slice(&xor(&mark, hash(b"req3", &[&secret.0])));
        let mut hidden = VERIFICATION.to_vec();
        hidden.extend_from_slice(&self.provided.to_be_bytes());
        hidden.extend_from_slice(&0_u16.to_be_bytes());
        let payload_len = u16::try_from(self.payload.len()).unwrap_or_default();
        hidden.extend_from_slice(&payload_len.to_be_bytes());
        hidden.append(&mut self.payload);
        ciphers.outgoing.apply(&mut hidden);
        self.outbox.append(&mut hidden);
        let mut mark = VERIFICATION;
        ciphers.incoming.apply(&mut mark);
        self.stage = Stage::Padding { ciphers, mark };
    }

    /// Goes on by one stage if the bytes for it are there, and says whether they were.
    fn step(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let len = match &self.stage {
            Stage::Key => Some(PUBLIC_KEY_LEN),
            Stage::Header { .. } => Some(HEADER_LEN),
            Stage::Behind { len, .. } => Some(*len),
            _ => None,
        };
        let mut bytes = Vec::new();
        if let Some(len) = len {
            let Some(whole) = self.intake.exactly(input, len) else { return Ok(false) };
            bytes = whole;
        }
        // What breaks a rule here leaves a machine that takes nothing more.
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done(None)) {
            Stage::Opening if input.is_empty() => {
                self.stage = Stage::Opening;
                return Ok(false);
            }
            Stage::Opening => return Err(Error::Early),
            Stage::Key => {
                let peer = PublicKey::parse(&bytes)?;
                self.job = Some(Job::secret(self.private.clone(), peer));
                Stage::Computing { early: Vec::new() }
            }
            Stage::Computing { mut early } => {
                keep_early(&mut early, input)?;
                self.stage = Stage::Computing { early };
                return Ok(false);
            }
            Stage::Padding { ciphers, mark } => {
                if !self.intake.up_to(input, &mark)? {
                    self.stage = Stage::Padding { ciphers, mark };
                    return Ok(false);
                }
                Stage::Header { ciphers }
            }
            Stage::Header { mut ciphers } => {
                ciphers.incoming.apply(&mut bytes);
                let (selected, len) = (u32_at(&bytes, 0), bounded_padding(u16_at(&bytes, 4))?);
                // One bit, and one that we offered.
                if selected.count_ones() != 1 || selected & self.provided == 0 {
                    return Err(Error::NoMethod(selected));
                }
                Stage::Behind { ciphers, len, selected }
            }
            Stage::Behind { mut ciphers, selected, .. } => {
                ciphers.incoming.apply(&mut bytes);
                let ciphers = (selected == RC4_BIT).then_some(ciphers);
                let info_hash = self.info_hash;
                Stage::Done(Some(Established { info_hash, payload: Vec::new(), ciphers }))
            }
            Stage::Done(established) => {
                self.stage = Stage::Done(established);
                return Ok(false);
            }
        };
        Ok(true)
    }
}
