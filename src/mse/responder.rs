//! The side that was connected to.
//!
//! Invariant: the peer's part is taken byte by byte as far as it goes and no further; the secret is
//! computed once, after 96 bytes, and nothing is received meanwhile that has to be kept for longer
//! than [`PADDING_MAX`] bytes.
#![forbid(unsafe_code)]

use super::dh::{Answer, Job, PUBLIC_KEY_LEN, PrivateKey, PublicKey, Secret};
use super::intake::{Intake, bounded_padding, keep_early, u16_at, u32_at, xor};
use super::{
    Ciphers, Error, Established, PADDING_MAX, PAYLOAD_MAX, Policy, RC4_BIT, VERIFICATION, hash,
};
use crate::units::InfoHash;

/// Verification, `crypto_provide` and the length of PadC.
const HEADER_LEN: usize = VERIFICATION.len() + 4 + 2;

#[derive(Clone, Debug)]
enum Stage {
    /// Their public key arrives.
    Key,
    /// Somebody computes; what came meanwhile.
    Computing { early: Vec<u8> },
    /// Padding, and HASH("req1", S) behind it.
    Padding { secret: Secret },
    /// The name of the torrent, laid over.
    Torrent { secret: Secret },
    /// The header.
    Header { info_hash: InfoHash, ciphers: Box<Ciphers> },
    /// PadC and the length of the first payload.
    Behind { info_hash: InfoHash, ciphers: Box<Ciphers>, padding_len: usize, selected: u32 },
    /// The first payload.
    Payload { info_hash: InfoHash, ciphers: Box<Ciphers>, len: usize, selected: u32 },
    /// Everything was taken.
    Done(Option<Established>),
}

/// The exchange of a connection that somebody made to us.
#[derive(Clone, Debug)]
pub struct Responder {
    policy: Policy,
    stage: Stage,
    intake: Intake,
    private: PrivateKey,
    padding: Vec<u8>,
    job: Option<Job>,
    outbox: Vec<u8>,
}

impl Responder {
    /// Bytes that a peer can have us keep, at most.
    pub const BUFFER_MAX: usize = PADDING_MAX + PAYLOAD_MAX;

    /// An exchange with a fresh private key and `padding` random bytes, of which at most
    /// [`PADDING_MAX`] are sent.
    pub fn new(policy: Policy, private: PrivateKey, mut padding: Vec<u8>) -> Self {
        padding.truncate(PADDING_MAX);
        Self {
            policy,
            stage: Stage::Key,
            intake: Intake::default(),
            private,
            padding,
            job: None,
            outbox: Vec::new(),
        }
    }

    /// Takes bytes from the front of `input` and returns how many; those behind are the stream's.
    /// `torrent` finds a torrent by its [`super::torrent_mark`].
    ///
    /// # Errors
    /// The peer broke the rules, or wants what is not here.
    pub fn handle_bytes(
        &mut self,
        input: &[u8],
        torrent: impl Fn(&[u8; 20]) -> Option<InfoHash>,
    ) -> Result<usize, Error> {
        let mut rest = input;
        while self.step(&mut rest, &torrent)? {}
        Ok(input.len() - rest.len())
    }

    /// Work that somebody else has to do before this goes on; its answer is awaited.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.job.take()
    }

    /// What came out of the work.
    ///
    /// # Errors
    /// As [`Responder::handle_bytes`], for what came meanwhile.
    pub fn handle_answer(
        &mut self,
        answer: Answer,
        torrent: impl Fn(&[u8; 20]) -> Option<InfoHash>,
    ) -> Result<(), Error> {
        let Stage::Computing { early } = &mut self.stage else { return Ok(()) };
        let (early, Answer { public, secret }) = (std::mem::take(early), answer);
        // Both were asked for.
        let (Some(public), Some(secret)) = (public, secret) else { return Ok(()) };
        self.outbox.extend_from_slice(&public);
        self.outbox.append(&mut self.padding);
        self.stage = Stage::Padding { secret };
        // What follows the padding depends on our key, so it cannot have come whole.
        if self.handle_bytes(&early, torrent)? == early.len() {
            return Ok(());
        }
        self.stage = Stage::Done(None);
        Err(Error::Early)
    }

    /// What is to be sent now.
    pub fn poll_transmit(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbox)
    }

    /// The stream, once, when the exchange is over. What [`Responder::poll_transmit`] gives goes
    /// before it.
    pub fn poll_established(&mut self) -> Option<Established> {
        match &mut self.stage {
            Stage::Done(established) => established.take(),
            _ => None,
        }
    }

    /// Goes on by one stage if the bytes for it are there, and says whether they were.
    fn step(
        &mut self,
        input: &mut &[u8],
        torrent: &impl Fn(&[u8; 20]) -> Option<InfoHash>,
    ) -> Result<bool, Error> {
        let len = match &self.stage {
            Stage::Key => Some(PUBLIC_KEY_LEN),
            Stage::Torrent { .. } => Some(20),
            Stage::Header { .. } => Some(HEADER_LEN),
            Stage::Behind { padding_len, .. } => Some(padding_len + 2),
            Stage::Payload { len, .. } => Some(*len),
            Stage::Computing { .. } | Stage::Padding { .. } | Stage::Done(_) => None,
        };
        let mut bytes = Vec::new();
        if let Some(len) = len {
            let Some(whole) = self.intake.exactly(input, len) else { return Ok(false) };
            bytes = whole;
        }
        // What breaks a rule here leaves a machine that takes nothing more.
        self.stage = match std::mem::replace(&mut self.stage, Stage::Done(None)) {
            Stage::Key => {
                let peer = PublicKey::parse(&bytes)?;
                self.job = Some(Job::both(self.private.clone(), peer));
                Stage::Computing { early: Vec::new() }
            }
            Stage::Computing { mut early } => {
                keep_early(&mut early, input)?;
                self.stage = Stage::Computing { early };
                return Ok(false);
            }
            Stage::Padding { secret } => {
                if !self.intake.up_to(input, &hash(b"req1", &[&secret.0]))? {
                    self.stage = Stage::Padding { secret };
                    return Ok(false);
                }
                Stage::Torrent { secret }
            }
            Stage::Torrent { secret } => {
                let mark = xor(&bytes, hash(b"req3", &[&secret.0]));
                let info_hash = torrent(&mark).ok_or(Error::UnknownTorrent)?;
                let ciphers = Box::new(Ciphers::new(&secret, &info_hash, false));
                Stage::Header { info_hash, ciphers }
            }
            Stage::Header { info_hash, mut ciphers } => {
                ciphers.incoming.apply(&mut bytes);
                if !bytes.starts_with(&VERIFICATION) {
                    return Err(Error::Verification);
                }
                let provided = u32_at(&bytes, VERIFICATION.len());
                let padding_len = bounded_padding(u16_at(&bytes, VERIFICATION.len() + 4))?;
                let selected = self.policy.select(provided).ok_or(Error::NoMethod(provided))?;
                Stage::Behind { info_hash, ciphers, padding_len, selected }
            }
            Stage::Behind { info_hash, mut ciphers, padding_len, selected } => {
                ciphers.incoming.apply(&mut bytes);
                let len = u16_at(&bytes, padding_len);
                if usize::from(len) > PAYLOAD_MAX {
                    return Err(Error::PayloadLen(len));
                }
                Stage::Payload { info_hash, ciphers, len: usize::from(len), selected }
            }
            Stage::Payload { info_hash, mut ciphers, selected, .. } => {
                ciphers.incoming.apply(&mut bytes);
                let mut answer = VERIFICATION.to_vec();
                answer.extend_from_slice(&selected.to_be_bytes());
                answer.extend_from_slice(&0_u16.to_be_bytes());
                ciphers.outgoing.apply(&mut answer);
                self.outbox.append(&mut answer);
                let ciphers = (selected == RC4_BIT).then_some(ciphers);
                Stage::Done(Some(Established { info_hash, payload: bytes, ciphers }))
            }
            Stage::Done(established) => {
                self.stage = Stage::Done(established);
                return Ok(false);
            }
        };
        Ok(true)
    }
}
