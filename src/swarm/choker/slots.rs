//! How many peers may be unchoked: of one torrent, and of all together.
//!
//! Limits and claims enter, numbers of slots leave. Invariant: the sum of what is shared out never
//! exceeds the total, and nobody gets more than it claims.
#![forbid(unsafe_code)]

/// A number of upload slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slots {
    /// Everybody interested is unchoked.
    #[default]
    Unlimited,
    /// At most so many peers are.
    Limited(u32),
}

impl Slots {
    /// The smaller of the two.
    pub fn min(self, other: Self) -> Self {
        match (self, other) {
            (Self::Limited(one), Self::Limited(two)) => Self::Limited(one.min(two)),
            (limited @ Self::Limited(_), Self::Unlimited) => limited,
            (Self::Unlimited, other) => other,
        }
    }

    /// What is left of `wanted` slots.
    pub fn cut(self, wanted: u32) -> u32 {
        match self {
            Self::Unlimited => wanted,
            Self::Limited(limit) => wanted.min(limit),
        }
    }
}

impl From<Option<u32>> for Slots {
    /// A setting that is not set is no limit.
    fn from(limit: Option<u32>) -> Self {
        limit.map_or(Self::Unlimited, Self::Limited)
    }
}

/// What one torrent claims of the slots that torrents share, and what it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Slots it could fill: its interested peers, cut to its own limit.
    pub wanted: u32,
    /// Slots it gets, set by [`share_slots`].
    pub granted: u32,
}

/// Shares `total` slots among `claims` so that the smallest share is as large as can be: small
/// claims are met, and large ones get equal parts of the rest.
///
/// What does not divide evenly goes by one to each claim from number `first` on; a caller that
/// moves `first` on gives every torrent its turn even if there are more torrents than slots.
///
/// ```
/// use seedring::swarm::choker::{Claim, Slots, share_slots};
/// let mut claims = [1, 9, 9].map(|wanted| Claim { wanted, granted: 0 });
/// share_slots(Slots::Limited(8), 2, &mut claims);
/// assert_eq!(claims.map(|claim| claim.granted), [1, 3, 4]);
/// ```
pub fn share_slots(total: Slots, first: usize, claims: &mut [Claim]) {
    let wanted: u64 = claims.iter().map(|claim| u64::from(claim.wanted)).sum();
    let total = match total {
        Slots::Limited(total) if u64::from(total) < wanted => u64::from(total),
        _ => return claims.iter_mut().for_each(|claim| claim.granted = claim.wanted),
    };
    let level = highest_level(total, claims);
    let mut left = total - sum_up_to(level, claims);
    claims.iter_mut().for_each(|claim| claim.granted = claim.wanted.min(level));
    let count = claims.len();
    for index in (0..count).map(|offset| (first % count + offset) % count) {
        if left > 0 && claims[index].granted < claims[index].wanted {
            claims[index].granted += 1;
            left -= 1;
        }
    }
}

/// The largest share that every claim can have, or its wish if that is less. The claims together
/// want more than `total`.
fn highest_level(total: u64, claims: &[Claim]) -> u32 {
    let (mut fits, mut too_high) = (0, u32::MAX);
    while too_high - fits > 1 {
        let level = fits + (too_high - fits) / 2;
        if sum_up_to(level, claims) <= total {
            fits = level;
        } else {
            too_high = level;
        }
    }
    fits
}

fn sum_up_to(level: u32, claims: &[Claim]) -> u64 {
    claims.iter().map(|claim| u64::from(claim.wanted.min(level))).sum()
}
