//! What others must not guess: tokens and transaction ids, from one secret.
//!
//! A secret of 32 random bytes, `now`, addresses and info-hashes enter; tokens, transaction ids
//! and verdicts leave. Invariant: a token is good for one IP and one info-hash, for at least
//! [`TOKEN_LIFE`] and at most twice that, and seeing many outputs tells nothing of others.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ring::hmac;

use crate::units::InfoHash;

/// How long one secret makes tokens; those of the one before are still good.
pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(300);

/// Bytes of our tokens: with 5 queries per second and IP nobody guesses 64 bits in ten minutes.
pub(super) const TOKEN_LEN: usize = 8;

/// The secret and what is derived from it.
#[derive(Debug)]
pub(super) struct Secrets {
    key: hmac::Key,
    started_at: Instant,
    transaction_count: u64,
}

impl Secrets {
    pub(super) fn new(now: Instant, secret: &[u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self { key, started_at: now, transaction_count: 0 }
    }

    /// The token that `ip` needs to announce `info_hash`.
    pub(super) fn token(&self, now: Instant, ip: IpAddr, info_hash: InfoHash) -> [u8; TOKEN_LEN] {
        self.token_of(self.epoch(now), ip, info_hash)
    }

    /// Whether `ip` got `token` from us for `info_hash`, not long ago.
    pub(super) fn is_valid(
        &self,
        now: Instant,
        ip: IpAddr,
        info_hash: InfoHash,
        token: &[u8],
    ) -> bool {
        let epoch = self.epoch(now);
        [Some(epoch), epoch.checked_sub(1)].into_iter().flatten().any(|epoch| {
            let ours = self.token_of(epoch, ip, info_hash);
            // The length is public; the bytes are compared without an early end.
            token.len() == ours.len()
                && token.iter().zip(ours).fold(0, |differ, (one, two)| differ | (one ^ two)) == 0
        })
    }

    /// The next transaction id: 32 bits that nobody can foretell. They may repeat.
    pub(super) fn next_transaction(&mut self) -> u32 {
        self.transaction_count = self.transaction_count.wrapping_add(1);
        let mut text = *b"transact\0\0\0\0\0\0\0\0";
        text[8..].copy_from_slice(&self.transaction_count.to_be_bytes());
        let tag = hmac::sign(&self.key, &text);
        tag.as_ref().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started_at).as_secs() / TOKEN_LIFE.as_secs()
    }

    fn token_of(&self, epoch: u64, ip: IpAddr, info_hash: InfoHash) -> [u8; TOKEN_LEN] {
        let mut text = *b"rotating\0\0\0\0\0\0\0\0";
        text[8..].copy_from_slice(&epoch.to_be_bytes());
        let secret = hmac::sign(&self.key, &text);
        let mut context =
            hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref()));
        match ip {
            IpAddr::V4(ip) => context.update(&ip.octets()),
            IpAddr::V6(ip) => context.update(&ip.octets()),
        }
        context.update(&info_hash.0);
        context.sign().as_ref().first_chunk().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tokens_are_bound_to_ip_hash_and_time() {
        let now = super::super::tests::start();
        let secrets = Secrets::new(now, &[7; 32]);
        let (ip, other): (IpAddr, IpAddr) =
            ("1.1.1.1".parse().unwrap(), "1.1.1.2".parse().unwrap());
        let (hash, another) = (InfoHash([1; 20]), InfoHash([2; 20]));
        let token = secrets.token(now, ip, hash);
        let good = |at: u64, ip, hash, token: &[u8]| {
            secrets.is_valid(now + Duration::from_secs(at), ip, hash, token)
        };
        assert!(good(0, ip, hash, &token) && good(599, ip, hash, &token));
        assert!(!good(600, ip, hash, &token), "two secrets later");
        assert!(!good(0, other, hash, &token) && !good(0, ip, another, &token));
        assert!(!good(0, ip, hash, &token[..7]) && !good(0, ip, hash, b""));
        let elsewhere = Secrets::new(now, &[8; 32]);
        assert!(!elsewhere.is_valid(now, ip, hash, &token));
    }

    #[test]
    fn transaction_ids_differ() {
        let now = super::super::tests::start();
        let mut secrets = Secrets::new(now, &[7; 32]);
        let ids: BTreeSet<u32> = (0..1000).map(|_| secrets.next_transaction()).collect();
        assert!(ids.len() > 995, "{} of 1000", ids.len());
    }
}
