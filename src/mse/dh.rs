//! The key exchange: Diffie–Hellman in the group of 768 bits that the field agreed on.
//!
//! A private key and perhaps a peer's public key enter as a [`Job`], its [`Answer`] leaves: our
//! public key, the shared secret, or both. One power costs about 80 µs, as much as thousands of
//! requests, so a job is a value: it is run by [`Job::run`] on another thread than a worker's.
//! Invariant: time does not depend on the private key, and no public key is taken that makes the
//! secret known to everybody.
#![forbid(unsafe_code)]

use std::fmt;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U192, U768};

use super::Error;

/// Bytes of a public key and of the shared secret: big-endian, padded with zeros on the left.
pub(super) const PUBLIC_KEY_LEN: usize = 96;

/// Bytes of a private key.
const PRIVATE_KEY_LEN: usize = 20;
const PRIVATE_KEY_BITS: u32 = 160;

/// The prime of RFC 2409's first group, but for its end: the field wrote it down another way.
const PRIME_HEX: &str = concat!(
    "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74",
    "020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437",
    "4fe1356d6d51c245e485b576625e7ec6f44c42e9a63a36210000000000090563",
);
const PRIME: U768 = U768::from_be_hex(PRIME_HEX);

/// What counting modulo the prime needs.
const FIELD: FixedMontyParams<{ U768::LIMBS }> =
    FixedMontyParams::new_vartime(Odd::<U768>::from_be_hex(PRIME_HEX));

/// The number that is raised to the private key.
const GENERATOR: FixedMontyForm<{ U768::LIMBS }> = FixedMontyForm::new(&U768::from_u64(2), &FIELD);

/// Our half of one exchange: 160 random bits, used once.
#[derive(Clone)]
pub struct PrivateKey([u8; PRIVATE_KEY_LEN]);

impl PrivateKey {
    /// A key of bytes from the system's generator. The first bit is set, so none is weak.
    pub fn new(mut random: [u8; PRIVATE_KEY_LEN]) -> Self {
        random[0] |= 0x80;
        Self(random)
    }

    fn power(&self, base: &FixedMontyForm<{ U768::LIMBS }>) -> [u8; PUBLIC_KEY_LEN] {
        let mut wide = [0; U192::BYTES];
        wide[U192::BYTES - PRIVATE_KEY_LEN..].copy_from_slice(&self.0);
        let exponent = U192::from_be_slice(&wide);
        let power = base.pow_bounded_exp(&exponent, PRIVATE_KEY_BITS).retrieve();
        power.to_be_bytes().into()
    }
}

/// A peer's half, found good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(U768);

impl PublicKey {
    /// Reads a key.
    ///
    /// # Errors
    /// [`Error::PublicKey`] for what has not 96 bytes, and for 0, 1, the prime less 1, and whatever
    /// is not below the prime: with those the secret would not depend on our key.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != PUBLIC_KEY_LEN {
            return Err(Error::PublicKey);
        }
        let key = U768::from_be_slice(bytes);
        let last = PRIME.wrapping_sub(&U768::ONE);
        if key > U768::ONE && key < last { Ok(Self(key)) } else { Err(Error::PublicKey) }
    }
}

/// What both sides know when public keys are exchanged, and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(super) [u8; PUBLIC_KEY_LEN]);

/// Work for another thread. The machine that asked for it waits for the answer.
#[derive(Clone, Debug)]
pub struct Job {
    private: PrivateKey,
    peer: Option<PublicKey>,
    wants_public: bool,
}

impl Job {
    /// Asks for our public key.
    pub(super) fn public(private: PrivateKey) -> Self {
        Self { private, peer: None, wants_public: true }
    }

    /// Asks for the secret shared with a peer.
    pub(super) fn secret(private: PrivateKey, peer: PublicKey) -> Self {
        Self { private, peer: Some(peer), wants_public: false }
    }

    /// Asks for both.
    pub(super) fn both(private: PrivateKey, peer: PublicKey) -> Self {
        Self { private, peer: Some(peer), wants_public: true }
    }

    /// Does the work: about 80 µs for each thing asked for.
    pub fn run(&self) -> Answer {
        let secret =
            |peer: PublicKey| Secret(self.private.power(&FixedMontyForm::new(&peer.0, &FIELD)));
        Answer {
            public: self.wants_public.then(|| self.private.power(&GENERATOR)),
            secret: self.peer.map(secret),
        }
    }
}

/// What came out of a [`Job`].
#[derive(Clone)]
pub struct Answer {
    pub(super) public: Option<[u8; PUBLIC_KEY_LEN]>,
    pub(super) secret: Option<Secret>,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: U768) -> [u8; PUBLIC_KEY_LEN] {
        number.to_be_bytes().into()
    }

    #[test]
    fn both_sides_come_to_the_same_secret() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut private = || PrivateKey::new(std::array::from_fn(|_| rng.u8(..)));
            let (a, b) = (private(), private());
            let ya = Job::public(a.clone()).run().public.unwrap();
            let answer = Job::both(b, PublicKey::parse(&ya).unwrap()).run();
            let yb = PublicKey::parse(&answer.public.unwrap()).unwrap();
            let secret = Job::secret(a, yb).run().secret;
            assert!(secret.is_some() && secret == answer.secret, "seed {seed}");
        }
    }

    #[test]
    fn powers_are_right_and_padded_on_the_left() {
        let base = |number| FixedMontyForm::new(&U768::from_u64(number), &FIELD);
        let exponent = |number: u8| {
            let mut bytes = [0; PRIVATE_KEY_LEN];
            bytes[PRIVATE_KEY_LEN - 1] = number;
            PrivateKey(bytes)
        };
        assert_eq!(exponent(10).power(&base(2)), key(U768::from_u64(1024)));
        assert_eq!(exponent(1).power(&base(7)), key(U768::from_u64(7)));
        // Fermat: the group's order is the prime less one, so an odd power of -1 is -1.
        let minus_one = PRIME.wrapping_sub(&U768::ONE);
        assert_eq!(exponent(255).power(&FixedMontyForm::new(&minus_one, &FIELD)), key(minus_one));
    }

    #[test]
    fn weak_keys_are_refused() {
        let last = PRIME.wrapping_sub(&U768::ONE);
        for bad in [U768::ZERO, U768::ONE, last, PRIME, U768::MAX] {
            assert_eq!(PublicKey::parse(&key(bad)), Err(Error::PublicKey), "{bad}");
        }
        for good in [U768::from_u64(2), last.wrapping_sub(&U768::ONE)] {
            assert!(PublicKey::parse(&key(good)).is_ok(), "{good}");
        }
    }
}
