//! Who may download from us: one choker per torrent, a decision and nothing else.
//!
//! What is known of the peers enters as [`Candidate`]s with the number of [`Slots`]; whom to
//! unchoke and whom to choke leaves as a [`Decision`]. A choker is one file that ranks peers, and
//! one line in [`CHOKERS`]; slots, the optimistic slot, ties and the least time of an unchoke are
//! handled once for all of them by [`Rechoke`].
//!
//! Every [`ROUND`] the swarm calls [`Rechoke::run`]. In between it calls [`pick_next`] when a peer
//! becomes interested, when an unchoked one leaves or loses interest, or when slots grow, until it
//! answers `None`: a free slot is given at once, the round only redistributes.
//!
//! Invariant: nothing here reads a clock, holds a peer, or outlives a call with an opinion; the
//! same candidates and the same seed give the same decision.
#![forbid(unsafe_code)]

use std::time::Duration;

pub use rechoke::{Decision, Pick, Rechoke, pick_next};
pub use slots::{Claim, Slots, share_slots};

mod rechoke;
mod slots;

mod anti_leech;
mod fastest_upload;
mod round_robin;
mod tit_for_tat;

#[cfg(test)]
mod tests;

/// Every choker there is. The first one of a phase is its default.
pub const CHOKERS: &[&dyn Choker] = &[
    &tit_for_tat::TitForTat,
    &round_robin::RoundRobin,
    &fastest_upload::FastestUpload,
    &anti_leech::AntiLeech,
];

/// How far apart the swarm calls [`Rechoke::run`] (BEP 3: ten seconds, against fibrillation).
pub const ROUND: Duration = Duration::from_secs(10);

/// How early a round may come and still count as a whole one.
pub const ROUND_SLACK: Duration = Duration::from_secs(1);

/// How long a peer stays unchoked at least, unless slots were taken away.
pub const UNCHOKE_MIN: Duration = ROUND.saturating_sub(ROUND_SLACK);

/// Rounds within which a seeding choker gets round to everybody, if its slots can.
pub const ROUNDS_TO_SERVE_ALL: u32 = 20;

/// For how long after its handshake a peer counts as new.
pub const NEWCOMER: Duration = Duration::from_secs(60);

/// What a choker may know of a peer. Everything is as of the moment of the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The caller's name for the peer, unique within one call.
    pub key: u32,
    /// Whether the peer wants pieces of ours.
    pub interested: bool,
    /// Whether it may request now (we do not choke it).
    pub unchoked: bool,
    /// Whether it was named in [`Decision::optimistic`] of the last round.
    pub optimistic: bool,
    /// Whether it owes us blocks for a minute and sends none.
    pub snubbed: bool,
    /// Time since its handshake.
    pub connected_for: Duration,
    /// Time since we unchoked it; zero while it is choked.
    pub unchoked_for: Duration,
    /// Time that it has been both interested and choked; zero while it is not.
    pub waiting_for: Duration,
    /// Bytes per second from it to us.
    pub downloaded_rate: u64,
    /// Bytes that it gave us since its handshake.
    pub downloaded_len: u64,
    /// Bytes per second from us to it.
    pub uploaded_rate: u64,
    /// Bytes that it got since we last unchoked it; zero while it is choked.
    pub uploaded_in_turn: u64,
    /// Bytes that its address got on earlier connections in the last ten minutes. Who comes back
    /// is no newcomer. The memory is the swarm's: it knows addresses, a choker does not.
    pub uploaded_recently: u64,
    /// Thousandths of the torrent's pieces that it has, 0 to 1000.
    pub progress_permille: u16,
    /// A random number drawn for the peer when it connected: the order of equals.
    pub tie: u64,
}

/// What the round is about: the same for every peer that is ranked in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Peers that are interested.
    pub interested_count: u32,
    /// Peers that may be unchoked.
    pub slot_count: u32,
    /// Bytes of a piece.
    pub piece_len: u32,
}

/// When a choker is the torrent's one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// While pieces are wanted: peers are paid for theirs.
    Leeching,
    /// Once nothing more is wanted.
    Seeding,
}

/// How the optimistic slot goes round: the one that is given regardless of rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimistic {
    /// There is none: the ranks themselves let everybody in.
    Off,
    /// Drawn every 30 s among those who wait: newcomers have three times the chance of those who
    /// gave us something (BEP 3), and these twice that of those who did not.
    Drawn,
    /// The one that waits longest, every [`ROUND`].
    Longest,
}

/// Ranks peers. An implementation is a constant without state: it must not read a clock, draw a
/// number, or look at `key`.
pub trait Choker: Sync {
    /// What configuration and metrics call it: lower case, words joined by `_`.
    fn name(&self) -> &'static str;

    /// When it may be chosen.
    fn phase(&self) -> Phase;

    /// How much the peer deserves a slot; more is better. Equals are ordered by how long they
    /// wait, then by their `tie`. Only called for interested peers.
    fn score(&self, candidate: &Candidate, round: &Round) -> u64;

    /// What becomes of the optimistic slot.
    fn optimistic(&self) -> Optimistic;
}

/// The choker of `phase` called `name`.
///
/// ```
/// use seedring::swarm::choker::{Phase, find};
/// assert!(find(Phase::Seeding, "round_robin").is_some());
/// assert!(find(Phase::Leeching, "round_robin").is_none());
/// ```
pub fn find(phase: Phase, name: &str) -> Option<&'static dyn Choker> {
    of_phase(phase).find(|choker| choker.name() == name)
}

/// The chokers of `phase`; the default comes first.
pub fn of_phase(phase: Phase) -> impl Iterator<Item = &'static dyn Choker> {
    CHOKERS.iter().copied().filter(move |choker| choker.phase() == phase)
}

/// The choker that `phase` has unless another one is configured.
pub fn default_of(phase: Phase) -> &'static dyn Choker {
    match phase {
        Phase::Leeching => &tit_for_tat::TitForTat,
        Phase::Seeding => &round_robin::RoundRobin,
    }
}

/// Bits of a score below its band.
const BAND_SHIFT: u32 = 56;

/// A score whose `band` counts first and whose `value` orders within it.
fn banded(band: u8, value: u64) -> u64 {
    u64::from(band) << BAND_SHIFT | value.min((1 << BAND_SHIFT) - 1)
}

/// Whole milliseconds, for scores.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
