//! Which block of the metadata is asked of whom, and whom to believe.
//!
//! Claims of a length, blocks, rejects and the time enter; requests leave, and at last the bytes
//! whose SHA-1 is the info-hash. Every claimed length is a candidate of its own. At first all who
//! claim it fetch it together; if what they made is wrong, they are set aside for a while, and from
//! then on one peer at a time makes it alone, those without a fault first: so one honest peer is
//! enough, and who fails alone twice is guilty.
//!
//! Nobody can hold a place by being slow on purpose: while others wait who failed no more often, a
//! length, and a peer that makes one alone, have their place for [`LIFE`], and for twice as long
//! each time it was too short. Whoever claims another length than before has lied; whoever leaves in
//! the middle has not delivered. Both are remembered by address ([`Faults`]).
//!
//! Invariant: memory is taken for what has arrived, never for what was claimed; at most
//! [`IN_FLIGHT_MAX`] requests are under way at a peer, and [`CANDIDATES_MAX`] lengths are tried at a
//! time.
#![forbid(unsafe_code)]

use sha1::{Digest, Sha1};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::faults::{Faults, Rank};
use super::memory::Held;
use crate::swarm::options::UNREQUESTED_MAX;
use crate::swarm::{Error, Offender, PeerKey, Shared};
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
/// For how long a length, or one peer with it, is tried at first while others wait.
const LIFE: Duration = Duration::from_secs(60);
/// How often that time is doubled at most: then it is enough for the longest metadata at the least
/// rate.
const LIFE_DOUBLINGS_MAX: u32 = 5;
/// While a claim waits for such room, it is looked for this often.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Blocks of it that were used.
    given: u32,
}

impl Source {
    fn is_working(&self) -> bool {
        self.asked.iter().any(|asked| !asked.is_late)
    }

    fn give_up(&mut self) {
        self.asked.iter_mut().for_each(|asked| asked.is_late = true);
    }
}

struct Asked {
    block: u32,
    at: Instant,
    /// Others may be asked for it meanwhile.
    is_late: bool,
}

struct Candidate {
    blocks: BTreeMap<u32, (Box<[u8]>, Offender)>,
    held: Held,
    /// The hash of the first so many blocks.
    hasher: Sha1,
    hashed: u32,
    /// Whether one peer has to make it alone, and which.
    is_solo: bool,
    owner: Option<PeerKey>,
    /// Since when it has its place.
    seated_at: Instant,
    /// Since when it is made, this time.
    begun_at: Instant,
}

impl Candidate {
    fn new(now: Instant, shared: &Rc<Shared>, is_solo: bool) -> Self {
        Self {
            blocks: BTreeMap::new(),
            held: Held::new(Rc::clone(shared), |shared| &shared.metadata_bytes),
            hasher: Sha1::new(),
            hashed: 0,
            is_solo,
            owner: None,
            seated_at: now,
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
        self.blocks.clear();
        self.held.set(0);
        (self.hasher, self.hashed) = (Sha1::new(), 0);
        (self.is_solo, self.owner, self.begun_at) = (true, None, now);
    }
}

/// For how long somebody has a place that was too short a time this often.
fn life(times: u32) -> Duration {
    LIFE * (1 << times.min(LIFE_DOUBLINGS_MAX))
}

/// What is held against a peer after it has not delivered once more.
fn after_a_stall((failures, stalls): Rank) -> Rank {
    (failures, stalls.saturating_add(1))
}

pub(super) struct Fetch {
    info_hash: InfoHash,
    shared: Rc<Shared>,
    sources: BTreeMap<PeerKey, Source>,
    candidates: BTreeMap<u32, Candidate>,
    /// Lengths that were made together once, and were wrong.
    solo: BTreeSet<u32>,
    /// How often a length had to give way before it was whole.
    cuts: BTreeMap<u32, u32>,
    /// Somebody waits for room, since the last look at this moment.
    waiting_since: Option<Instant>,
    faults: Faults,
    /// Bytes of blocks that were used, of peers that are not known to have lied.
    accepted: u64,
    rng: fastrand::Rng,
}

impl Fetch {
    pub(super) fn new(info_hash: InfoHash, seed: u64, shared: Rc<Shared>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            info_hash,
            shared,
            sources: BTreeMap::new(),
            candidates: BTreeMap::new(),
            solo: BTreeSet::new(),
            cuts: BTreeMap::new(),
            waiting_since: None,
            faults: Faults::new(rng.u64(..)),
            accepted: 0,
            rng,
        }
    }

    /// The peer answers metadata, and claims this length, in bytes; 0 and too long ones are none.
    pub(super) fn handle_claim(
        &mut self,
        now: Instant,
        peer: PeerKey,
        who: Offender,
        len: Option<u32>,
    ) -> Outcome {
        let len = len.filter(|len| (1..=METADATA_LEN_MAX).contains(len));
        let new = Source { who, len: None, asked: Vec::new(), unasked: 0, given: 0 };
        let before = self.sources.entry(peer).or_insert(new).len;
        if before == len {
            return Outcome::Nothing;
        }
        let was_part = self.has_part(peer);
        if let Some(source) = self.sources.get_mut(&peer) {
            source.len = len;
            source.asked.clear();
        }
        self.disown(now, peer);
        self.forget_unclaimed();
        match (before, len) {
            // There is one length: one of the claims was a lie.
            (Some(_), Some(_)) if self.faults.fail(now, who) => return Outcome::Guilty(who),
            (Some(_), None) if was_part => self.faults.stall(now, who),
            _ => {}
        }
        Outcome::Nothing
    }

    /// The connection is gone; by its own doing, or by ours.
    pub(super) fn handle_gone(&mut self, now: Instant, peer: PeerKey, by_itself: bool) {
        let was_part = self.has_part(peer);
        let Some(source) = self.sources.remove(&peer) else { return };
        if was_part && by_itself {
            self.faults.leave(source.who);
        }
        self.disown(now, peer);
        self.forget_unclaimed();
    }

    /// Whether what the peer claims is being made, and not without it.
    fn has_part(&self, peer: PeerKey) -> bool {
        let Some(source) = self.sources.get(&peer) else { return false };
        let candidate = source.len.and_then(|len| self.candidates.get(&len));
        let is_maker = |it: &Candidate| {
            it.owner == Some(peer) || it.blocks.values().any(|(_, who)| *who == source.who)
        };
        source.is_working() || candidate.is_some_and(is_maker)
    }

    /// Whether the peer claims to have the metadata.
    pub(super) fn is_source(&self, peer: PeerKey) -> bool {
        self.sources.get(&peer).is_some_and(|source| source.len.is_some())
    }

    /// What is held against a peer that claims to have the metadata, and has given nothing that was
    /// used or is known to have lied.
    pub(super) fn uselessness(&self, peer: PeerKey) -> Option<Rank> {
        let source = self.sources.get(&peer)?;
        let rank = self.faults.rank(&source.who);
        let is_useless = rank > (0, 0) && (source.given == 0 || rank.0 > 0);
        is_useless.then_some(rank)
    }

    /// Whether anything is held against `who`.
    pub(super) fn has_faults(&self, who: &Offender) -> bool {
        self.faults.rank(who) > (0, 0)
    }

    /// Bytes of blocks that were used, of peers that are not known to have lied.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// What a peer was making alone is begun anew by another one.
    fn disown(&mut self, now: Instant, peer: PeerKey) {
        for candidate in self.candidates.values_mut().filter(|it| it.owner == Some(peer)) {
            candidate.restart_solo(now);
        }
    }

    fn forget_unclaimed(&mut self) {
        let claimed: BTreeSet<u32> =
            self.sources.values().filter_map(|source| source.len).collect();
        self.candidates.retain(|len, _| claimed.contains(len));
        self.solo.retain(|len| claimed.contains(len));
        self.cuts.retain(|len, _| claimed.contains(len));
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
        candidate.held.add(data.len());
        source.given += 1;
        if self.faults.rank(&who).0 == 0 {
            self.accepted += data.len() as u64;
        }
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
        if let Some(&maker) = makers.first().filter(|_| makers.len() == 1) {
            let is_guilty = self.faults.fail(now, maker);
            return if is_guilty { Outcome::Guilty(maker) } else { Outcome::Nothing };
        }
        makers.iter().for_each(|&maker| self.faults.suspect(now, maker));
        Outcome::Nothing
    }

    /// The peer does not deliver: it is left alone for a while, and others go on.
    fn stall(&mut self, now: Instant, peer: PeerKey) {
        if let Some(source) = self.sources.get(&peer) {
            self.faults.stall(now, source.who);
        }
        self.disown(now, peer);
    }

    /// Gives up on what is late, and says what to ask for now.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<Ask> {
        self.expire(now);
        self.waiting_since = None;
        let ready = self.ready();
        self.rotate(now, &ready);
        self.seat(now, &ready);
        let mut asks = Vec::new();
        let ready = self.ready();
        for &(peer, len) in &ready {
            if self.may_make(peer, len, &ready) {
                self.ask(now, peer, len, &mut asks);
            }
        }
        asks
    }

    /// Who can be asked, and the length that it claims; whoever has failed before comes last.
    fn ready(&self) -> Vec<(PeerKey, u32)> {
        let present =
            self.sources.iter().filter(|(_, it)| self.faults.aside_until(&it.who).is_none());
        let mut ready: Vec<_> =
            present.filter_map(|(&peer, source)| Some((peer, source.len?))).collect();
        ready.sort_by_cached_key(|&(peer, _)| self.rank(peer));
        ready
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
        self.faults.expire(now);
        for source in self.sources.values_mut() {
            if self.faults.aside_until(&source.who).is_none() {
                source.asked.retain(|asked| !asked.is_late);
            }
        }
    }

    /// Takes a candidate from a peer that has made it alone for long enough, if there is somebody
    /// else who can.
    fn rotate(&mut self, now: Instant, ready: &[(PeerKey, u32)]) {
        let mut over = Vec::new();
        for (&len, candidate) in &self.candidates {
            let Some(owner) = candidate.owner else { continue };
            let rank = self.rank(owner);
            let others = ready.iter().filter(|&&(peer, other)| other == len && peer != owner);
            let Some(best) = others.map(|&(peer, _)| self.rank(peer)).next() else { continue };
            if best > after_a_stall(rank) {
                continue;
            }
            self.waiting_since = Some(now);
            if now.saturating_duration_since(candidate.begun_at) >= life(rank.1) {
                over.push(owner);
            }
        }
        for owner in over {
            if let Some(source) = self.sources.get_mut(&owner) {
                source.give_up();
            }
            self.stall(now, owner);
        }
    }

    /// Gives the lengths that wait a place, as far as there is room: first those whose claimants
    /// have failed least, then those that most hosts claim, then the shortest.
    fn seat(&mut self, now: Instant, ready: &[(PeerKey, u32)]) {
        let mut waiting: BTreeMap<u32, Rank> = BTreeMap::new();
        for &(peer, len) in ready.iter().filter(|(_, len)| !self.candidates.contains_key(len)) {
            waiting.entry(len).or_insert_with(|| self.rank(peer));
        }
        let mut waiting: Vec<_> = waiting
            .into_iter()
            .map(|(len, rank)| (rank, Reverse(self.claimants(len).len()), len))
            .collect();
        waiting.sort_unstable();
        for (rank, _, len) in waiting {
            if !self.make_room(now, rank) {
                self.waiting_since = Some(now);
                return;
            }
            let candidate = Candidate::new(now, &self.shared, self.solo.contains(&len));
            self.candidates.insert(len, candidate);
        }
    }

    /// The hosts that claim a length.
    fn claimants(&self, len: u32) -> BTreeSet<Offender> {
        let claiming = self.sources.values().filter(|source| source.len == Some(len));
        claiming.map(|source| source.who).collect()
    }

    /// Whether the peer may work on its candidate now, if there is one.
    fn may_make(&mut self, peer: PeerKey, len: u32, ready: &[(PeerKey, u32)]) -> bool {
        let Some(candidate) = self.candidates.get(&len) else { return false };
        if !candidate.is_solo {
            return true;
        }
        if candidate.owner.is_none() {
            let least = ready.iter().find(|(_, other)| *other == len).copied();
            let rank = least.map(|(peer, _)| self.rank(peer));
            let best: Vec<PeerKey> = ready
                .iter()
                .filter(|&&(peer, other)| other == len && Some(self.rank(peer)) == rank)
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

    /// What is held against a peer.
    fn rank(&self, peer: PeerKey) -> Rank {
        self.sources.get(&peer).map_or((0, 0), |source| self.faults.rank(&source.who))
    }

    /// Room for one more candidate, whose claimants have this rank at best; if need be in place of
    /// one that gets nothing or too little, or has had its time.
    fn make_room(&mut self, now: Instant, rank: Rank) -> bool {
        if self.candidates.len() < CANDIDATES_MAX {
            return true;
        }
        let working: BTreeSet<u32> = self
            .sources
            .values()
            .filter(|source| source.is_working())
            .filter_map(|source| source.len)
            .collect();
        // Nobody was asked yet for what got its place in this very moment.
        let is_idle = |len: &u32, it: &Candidate| it.seated_at < now && !working.contains(len);
        let is_over = |len: u32, it: &Candidate| {
            let times = self.cuts.get(&len).copied().unwrap_or(0);
            let least = self.claimants(len).iter().map(|who| self.faults.rank(who)).min();
            now.saturating_duration_since(it.seated_at) >= life(times)
                && least.is_none_or(|least| rank <= after_a_stall(least))
        };
        let oldest = |of: &dyn Fn(&u32, &Candidate) -> bool| {
            let them = self.candidates.iter().filter(|(len, it)| of(len, it));
            them.min_by_key(|(_, it)| it.seated_at).map(|(&len, _)| len)
        };
        if let Some(len) = oldest(&is_idle) {
            // Those who made it are set aside already.
            self.candidates.remove(&len);
            return true;
        }
        let over =
            oldest(&|_, it| it.is_slow(now)).or_else(|| oldest(&|&len, it| is_over(len, it)));
        over.inspect(|&len| self.cut(now, len)).is_some()
    }

    /// Takes its place from a length that is being made.
    fn cut(&mut self, now: Instant, len: u32) {
        let Some(candidate) = self.candidates.remove(&len) else { return };
        let mut makers: BTreeSet<Offender> =
            candidate.blocks.values().map(|(_, who)| *who).collect();
        for source in self.sources.values_mut().filter(|source| source.len == Some(len)) {
            if source.is_working() {
                makers.insert(source.who);
            }
            source.give_up();
        }
        makers.into_iter().for_each(|maker| self.faults.stall(now, maker));
        let times = self.cuts.entry(len).or_default();
        *times = times.saturating_add(1);
    }

    /// How much the candidate would be missed that is worth least of those that hold memory: the
    /// hosts that claim it, and then its bytes.
    pub(super) fn least_worth(&self) -> Option<(usize, Reverse<u64>)> {
        self.least().map(|(worth, _)| worth)
    }

    /// Gives the memory of that candidate back.
    pub(super) fn drop_least(&mut self, now: Instant) {
        if let Some((_, len)) = self.least() {
            self.cut(now, len);
        }
    }

    fn least(&self) -> Option<((usize, Reverse<u64>), u32)> {
        let holding = self.candidates.iter().filter(|(_, it)| it.held.bytes() > 0);
        holding.map(|(&len, it)| ((self.claimants(len).len(), Reverse(it.held.bytes())), len)).min()
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
            let until = self.faults.aside_until(&source.who);
            source.len.and(until)
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
