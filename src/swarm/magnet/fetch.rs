//! Which block of the metadata is asked of whom, and whom to believe.
//!
//! Claims of a length, blocks, rejects and the time enter; requests leave, and at last the bytes
//! whose SHA-1 is the info-hash. Every claimed length is a candidate of its own. At first all who
//! claim it fetch it together; if what they made is wrong, they are set aside for a while, and from
//! then on one peer at a time makes it alone, those without a fault first: so one honest peer is
//! enough, and who fails alone twice is guilty.
//!
//! Invariant: memory is taken for what has arrived, never for what was claimed; at most
//! [`IN_FLIGHT_MAX`] requests are under way at a peer, and [`CANDIDATES_MAX`] lengths are tried at a
//! time.
#![forbid(unsafe_code)]

use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::swarm::options::UNREQUESTED_MAX;
use crate::swarm::{Error, Offender, PeerKey};
use crate::units::InfoHash;
use crate::wire::{METADATA_LEN_MAX, metadata_block, metadata_block_count};

/// Requests under way at one peer.
pub(super) const IN_FLIGHT_MAX: usize = 2;
/// Lengths that are tried at the same time.
const CANDIDATES_MAX: usize = 3;
/// How long a block is waited for before others are asked for it.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A candidate of this age that got fewer blocks than one in two seconds makes room for another.
const CANDIDATE_AGE: Duration = Duration::from_secs(20);
/// While a claim waits for such room, it is looked for this often.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// For how many seconds a peer is left alone after a failure, a reject or no answer.
const ASIDE_SECONDS: std::ops::RangeInclusive<u64> = 20..=70;
/// Wrong metadata of one peer alone that ban it.
const SOLO_FAILURES_MAX: u32 = 2;
/// Peers whose failures are remembered; they are counted although a peer comes back.
const RECORDS_MAX: usize = 1024;

/// A request to send.
pub(super) struct Ask {
    pub(super) peer: PeerKey,
    pub(super) block: u32,
}

/// What an answer led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Nothing,
    /// Everything is there and right.
    Done(Vec<u8>),
    /// It was wrong, and this peer alone made it, twice.
    Guilty(Offender),
}

struct Source {
    who: Offender,
    /// The length it claims.
    len: Option<u32>,
    asked: Vec<Asked>,
    unasked: u32,
}

struct Asked {
    block: u32,
    at: Instant,
    /// Others may be asked for it meanwhile.
    is_late: bool,
}

#[derive(Default)]
struct Record {
    failures: u32,
    stalls: u32,
    aside_until: Option<Instant>,
}

struct Candidate {
    blocks: BTreeMap<u32, (Box<[u8]>, Offender)>,
    /// The hash of the first so many blocks.
    hasher: Sha1,
    hashed: u32,
    /// Whether one peer has to make it alone, and which.
    is_solo: bool,
    owner: Option<PeerKey>,
    begun_at: Instant,
}

impl Candidate {
    fn new(now: Instant) -> Self {
        Self {
            blocks: BTreeMap::new(),
            hasher: Sha1::new(),
            hashed: 0,
            is_solo: false,
            owner: None,
            begun_at: now,
        }
    }

    /// Whether it gets less than one block in two seconds.
    fn is_slow(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.begun_at);
        age >= CANDIDATE_AGE && 2 * (self.blocks.len() as u64) < age.as_secs()
    }

    /// From now on one peer alone makes it, from the beginning.
    fn restart_solo(&mut self, now: Instant) {
        *self = Self { is_solo: true, ..Self::new(now) };
    }
}

pub(super) struct Fetch {
    info_hash: InfoHash,
    sources: BTreeMap<PeerKey, Source>,
    candidates: BTreeMap<u32, Candidate>,
    /// Lengths that were made together once, and were wrong.
    solo: BTreeSet<u32>,
    /// Claims wait for room, since the last look at this moment.
    waiting_since: Option<Instant>,
    records: BTreeMap<Offender, Record>,
    rng: fastrand::Rng,
}

impl Fetch {
    pub(super) fn new(info_hash: InfoHash, seed: u64) -> Self {
        Self {
            info_hash,
            sources: BTreeMap::new(),
            candidates: BTreeMap::new(),
            solo: BTreeSet::new(),
            waiting_since: None,
            records: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// The peer answers metadata, and claims this length, in bytes; 0 and too long ones are none.
    pub(super) fn handle_claim(&mut self, peer: PeerKey, who: Offender, len: Option<u32>) {
        let len = len.filter(|len| (1..=METADATA_LEN_MAX).contains(len));
        let source = Source { who, len: None, asked: Vec::new(), unasked: 0 };
        let source = self.sources.entry(peer).or_insert(source);
        if source.len != len {
            source.len = len;
            source.asked.clear();
            self.disown(peer);
            self.forget_unclaimed();
        }
    }

    pub(super) fn handle_gone(&mut self, peer: PeerKey) {
        self.sources.remove(&peer);
        self.disown(peer);
        self.forget_unclaimed();
    }

    /// Whether the peer claims to have the metadata.
    pub(super) fn is_source(&self, peer: PeerKey) -> bool {
        self.sources.get(&peer).is_some_and(|source| source.len.is_some())
    }

    /// What a peer was making alone is begun anew by another one.
    fn disown(&mut self, peer: PeerKey) {
        for candidate in self.candidates.values_mut().filter(|it| it.owner == Some(peer)) {
            let at = candidate.begun_at;
            candidate.restart_solo(at);
        }
    }

    fn forget_unclaimed(&mut self) {
        let claimed: BTreeSet<u32> =
            self.sources.values().filter_map(|source| source.len).collect();
        self.candidates.retain(|len, _| claimed.contains(len));
        self.solo.retain(|len| claimed.contains(len));
    }

    pub(super) fn handle_reject(&mut self, now: Instant, peer: PeerKey, block: u32) {
        let Some(source) = self.sources.get_mut(&peer) else { return };
        let Some(at) = source.asked.iter().position(|asked| asked.block == block) else { return };
        source.asked.swap_remove(at);
        self.stall(now, peer);
    }

    /// A block has come.
    ///
    /// # Errors
    /// It contradicts the length that the peer claimed, or comes unasked too often.
    pub(super) fn handle_data(
        &mut self,
        now: Instant,
        peer: PeerKey,
        block: u32,
        total_len: Option<u32>,
        data: &[u8],
    ) -> Result<Outcome, Error> {
        let Some(source) = self.sources.get_mut(&peer) else { return Err(Error::Unrequested) };
        let asked = source.asked.iter().position(|asked| asked.block == block);
        let (Some(at), Some(len)) = (asked, source.len) else {
            source.unasked += 1;
            let flood = source.unasked > UNREQUESTED_MAX;
            return if flood { Err(Error::Unrequested) } else { Ok(Outcome::Nothing) };
        };
        source.asked.swap_remove(at);
        let fits = metadata_block(len, block).is_some_and(|(_, len)| data.len() == len as usize);
        if !fits || total_len.is_some_and(|total| total != len) {
            return Err(Error::BadMetadata);
        }
        let who = source.who;
        let Some(candidate) = self.candidates.get_mut(&len) else { return Ok(Outcome::Nothing) };
        let is_for_another = candidate.is_solo && candidate.owner != Some(peer);
        if is_for_another || candidate.blocks.contains_key(&block) {
            return Ok(Outcome::Nothing);
        }
        candidate.blocks.insert(block, (data.into(), who));
        // Hashed as it comes, so that no turn has to hash all of it.
        while let Some((data, _)) = candidate.blocks.get(&candidate.hashed) {
            candidate.hasher.update(data);
            candidate.hashed += 1;
        }
        if candidate.hashed < metadata_block_count(len) {
            return Ok(Outcome::Nothing);
        }
        Ok(self.judge(now, len))
    }

    /// All blocks of a candidate are there.
    fn judge(&mut self, now: Instant, len: u32) -> Outcome {
        let Some(candidate) = self.candidates.get_mut(&len) else { return Outcome::Nothing };
        let digest: [u8; 20] = candidate.hasher.finalize_reset().into();
        if digest == self.info_hash.0 {
            let blocks = std::mem::take(&mut candidate.blocks);
            return Outcome::Done(blocks.into_values().flat_map(|(data, _)| data).collect());
        }
        let makers: BTreeSet<Offender> = candidate.blocks.values().map(|(_, who)| *who).collect();
        candidate.restart_solo(now);
        self.solo.insert(len);
        for &maker in &makers {
            self.set_aside(now, maker);
        }
        if makers.len() != 1 {
            return Outcome::Nothing;
        }
        let Some(&maker) = makers.first() else { return Outcome::Nothing };
        let record = self.records.entry(maker).or_default();
        record.failures += 1;
        let is_guilty = record.failures >= SOLO_FAILURES_MAX;
        if is_guilty { Outcome::Guilty(maker) } else { Outcome::Nothing }
    }

    /// The peer does not deliver: it is left alone for a while, and others go on.
    fn stall(&mut self, now: Instant, peer: PeerKey) {
        if let Some(who) = self.sources.get(&peer).map(|source| source.who) {
            self.set_aside(now, who);
            if let Some(record) = self.records.get_mut(&who) {
                record.stalls = record.stalls.saturating_add(1);
            }
        }
        self.disown(peer);
    }

    fn set_aside(&mut self, now: Instant, who: Offender) {
        if self.records.len() >= RECORDS_MAX && !self.records.contains_key(&who) {
            // Those with the fewest faults are missed least.
            let least = self.records.iter().min_by_key(|(_, it)| (it.failures, it.aside_until));
            if let Some(least) = least.map(|(&who, _)| who) {
                self.records.remove(&least);
            }
        }
        let wait = Duration::from_secs(self.rng.u64(ASIDE_SECONDS));
        self.records.entry(who).or_default().aside_until = Some(now + wait);
    }

    fn is_aside(&self, now: Instant, who: &Offender) -> bool {
        let until = self.records.get(who).and_then(|record| record.aside_until);
        until.is_some_and(|until| now < until)
    }

    /// Gives up on what is late, and says what to ask for now.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Ask> {
        self.expire(now);
        let mut ready: Vec<(PeerKey, u32)> = self
            .sources
            .iter()
            .filter(|(_, source)| !self.is_aside(now, &source.who))
            .filter_map(|(&peer, source)| Some((peer, source.len?)))
            .collect();
        // Whoever has failed before comes last.
        ready.sort_by_cached_key(|&(peer, _)| self.faults(peer));
        self.waiting_since = None;
        let mut asks = Vec::new();
        for &(peer, len) in &ready {
            if self.may_make(now, peer, len, &ready) {
                self.ask(now, peer, len, &mut asks);
            }
        }
        asks
    }

    fn expire(&mut self, now: Instant) {
        let mut late = Vec::new();
        for (&peer, source) in &mut self.sources {
            for asked in source.asked.iter_mut().filter(|asked| !asked.is_late) {
                if now.saturating_duration_since(asked.at) >= ANSWER_MAX {
                    asked.is_late = true;
                    late.push(peer);
                }
            }
        }
        late.dedup();
        late.into_iter().for_each(|peer| self.stall(now, peer));
        // When its time aside is over, a peer begins with nothing owed.
        for record in self.records.values_mut() {
            record.aside_until = record.aside_until.filter(|&until| now < until);
        }
        let records = &self.records;
        for source in self.sources.values_mut() {
            let is_aside = records.get(&source.who).is_some_and(|it| it.aside_until.is_some());
            if !is_aside {
                source.asked.retain(|asked| !asked.is_late);
            }
        }
    }

    /// Whether the peer may work on its candidate now; makes the candidate if there is room.
    fn may_make(
        &mut self,
        now: Instant,
        peer: PeerKey,
        len: u32,
        ready: &[(PeerKey, u32)],
    ) -> bool {
        if !self.candidates.contains_key(&len) && !self.make_room(now) {
            return false;
        }
        let is_solo = self.solo.contains(&len);
        let new = || Candidate { is_solo, ..Candidate::new(now) };
        let candidate = self.candidates.entry(len).or_insert_with(new);
        if !candidate.is_solo {
            return true;
        }
        if candidate.owner.is_none() {
            let least = ready.iter().find(|(_, other)| *other == len).copied();
            let faults = least.map(|(peer, _)| self.faults(peer));
            let best: Vec<PeerKey> = ready
                .iter()
                .filter(|&&(peer, other)| other == len && Some(self.faults(peer)) == faults)
                .map(|&(peer, _)| peer)
                .collect();
            let owner = self.rng.choice(best);
            if let Some(candidate) = self.candidates.get_mut(&len) {
                candidate.owner = owner;
            }
            return owner == Some(peer);
        }
        candidate.owner == Some(peer)
    }

    /// Failures and missing answers of a peer, under whatever port it comes.
    fn faults(&self, peer: PeerKey) -> (u32, u32) {
        let record = self.sources.get(&peer).and_then(|source| self.records.get(&source.who));
        record.map_or((0, 0), |record| (record.failures, record.stalls))
    }

    /// Room for one more candidate, if need be in place of one that gets nothing or too little.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.candidates.len() < CANDIDATES_MAX {
            return true;
        }
        let working: BTreeSet<u32> = self
            .sources
            .values()
            .filter(|source| source.asked.iter().any(|asked| !asked.is_late))
            .filter_map(|source| source.len)
            .collect();
        let slow =
            self.candidates.iter().filter(|(len, it)| it.is_slow(now) || !working.contains(len));
        let Some(len) = slow.min_by_key(|(_, it)| it.begun_at).map(|(&len, _)| len) else {
            self.waiting_since = Some(now);
            return false;
        };
        self.candidates.remove(&len);
        for source in self.sources.values_mut().filter(|source| source.len == Some(len)) {
            source.asked.iter_mut().for_each(|asked| asked.is_late = true);
        }
        true
    }

    fn ask(&mut self, now: Instant, peer: PeerKey, len: u32, asks: &mut Vec<Ask>) {
        let Some(candidate) = self.candidates.get(&len) else { return };
        let mut taken: BTreeSet<u32> = self
            .sources
            .values()
            .filter(|source| source.len == Some(len) && !candidate.is_solo)
            .flat_map(|source| source.asked.iter().filter(|asked| !asked.is_late))
            .map(|asked| asked.block)
            .collect();
        let Some(source) = self.sources.get_mut(&peer) else { return };
        taken.extend(source.asked.iter().map(|asked| asked.block));
        let free = (candidate.hashed..metadata_block_count(len))
            .filter(|block| !candidate.blocks.contains_key(block) && !taken.contains(block));
        let room = IN_FLIGHT_MAX.saturating_sub(source.asked.len());
        for block in free.take(room) {
            source.asked.push(Asked { block, at: now, is_late: false });
            asks.push(Ask { peer, block });
        }
    }

    /// When `poll` has something to do, if nothing else happens before.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let asked = self.sources.values().flat_map(|source| &source.asked);
        let late = asked.filter(|asked| !asked.is_late).map(|asked| asked.at + ANSWER_MAX);
        let back = self.sources.values().filter_map(|source| {
            let record = self.records.get(&source.who)?;
            source.len.and(record.aside_until)
        });
        late.chain(back).chain(self.waiting_since.map(|at| at + ROOM_INTERVAL)).min()
    }

    /// Blocks that have come of the candidate that has most of its own, and how many it has in all.
    pub(super) fn progress(&self) -> (u32, u32) {
        // Those of one that is done have left already.
        let come =
            |it: &Candidate| u32::try_from(it.blocks.len()).map_or(u32::MAX, |n| n.max(it.hashed));
        let furthest = self.candidates.iter().max_by_key(|(_, candidate)| come(candidate));
        furthest.map_or((0, 0), |(&len, it)| (come(it), metadata_block_count(len)))
    }

    /// Bytes that have been received and are kept.
    #[cfg(test)]
    pub(super) fn held_len(&self) -> usize {
        let blocks = self.candidates.values().flat_map(|candidate| candidate.blocks.values());
        blocks.map(|(data, _)| data.len()).sum()
    }
}
