//! Names of trackers to addresses that the policy permits.
//!
//! A name enters, addresses leave; the connection is made to exactly these, so a name that
//! changes its mind between check and use gains nothing. Invariant: at most [`LOOKUPS_MAX`]
//! look-ups run at once and at most [`CACHE_MAX`] answers are kept.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::display_text;
use super::families::Family;
use super::policy::{AddressPolicy, Reason};
use crate::sys::clock;

/// Look-ups at once; each takes a thread of the system's resolver.
const LOOKUPS_MAX: usize = 16;

/// Names whose answers are kept.
const CACHE_MAX: usize = 4096;

/// How long an answer is kept, so that many torrents of one tracker are one look-up.
const ANSWER_KEPT: Duration = Duration::from_secs(60);

/// How long it is kept that a name has no address.
const FAILURE_KEPT: Duration = Duration::from_secs(15);

/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 32;

/// Why a name leads nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("{0}")]
    Lookup(String),
    #[error("the name has no {0} address")]
    Family(&'static str),
    #[error("{0} is not permitted: {1}")]
    Refused(IpAddr, Reason),
}

/// Names and their addresses, shared by the clients of both families.
pub(super) struct Names {
    policy: AddressPolicy,
    lookups: Arc<Semaphore>,
    cache: Mutex<BTreeMap<String, Answer>>,
}

struct Answer {
    kept_until: Instant,
    addresses: Result<Arc<[IpAddr]>, ResolveError>,
}

impl Names {
    pub(super) fn new(policy: AddressPolicy) -> Self {
        let (lookups, cache) = (Arc::new(Semaphore::new(LOOKUPS_MAX)), Mutex::default());
        Self { policy, lookups, cache }
    }

    pub(super) fn policy(&self) -> &AddressPolicy {
        &self.policy
    }

    /// The permitted addresses of `name`.
    pub(super) async fn addresses(&self, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Some(addresses) = self.cached(name) {
            return addresses;
        }
        let turn = Arc::clone(&self.lookups).acquire_owned().await;
        if let Some(addresses) = self.cached(name) {
            return addresses;
        }
        // A task of its own, for a look-up cannot be broken off: its turn lasts as long as its
        // thread, even when whoever asked has given up.
        let target = (name.to_owned(), 0);
        let lookup = tokio::spawn(async move {
            let _turn = turn;
            let found = tokio::net::lookup_host(target).await?;
            Ok(found.map(|at| at.ip()).take(ADDRESSES_MAX).collect::<Vec<_>>())
        });
        let addresses = match lookup.await.unwrap_or_else(|broken| Err(broken.into())) {
            Ok(found) => self.permitted(found.into_iter()),
            Err(error) => {
                let text = display_text(std::io::Error::to_string(&error).as_bytes());
                Err(ResolveError::Lookup(text))
            }
        };
        self.keep(name, addresses.clone());
        addresses
    }

    fn permitted(
        &self,
        found: impl Iterator<Item = IpAddr>,
    ) -> Result<Arc<[IpAddr]>, ResolveError> {
        let mut refused = None;
        let mut permitted = Vec::new();
        for ip in found {
            match self.policy.permits(ip) {
                Ok(()) => permitted.push(ip),
                Err(reason) => refused = Some(ResolveError::Refused(ip, reason)),
            }
        }
        match refused {
            Some(refused) if permitted.is_empty() => Err(refused),
            _ => Ok(permitted.into()),
        }
    }

    fn cached(&self, name: &str) -> Option<Result<Arc<[IpAddr]>, ResolveError>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = cache.get(name).filter(|answer| answer.kept_until > clock::now())?;
        Some(answer.addresses.clone())
    }

    fn keep(&self, name: &str, addresses: Result<Arc<[IpAddr]>, ResolveError>) {
        let now = clock::now();
        let kept_until = now + if addresses.is_ok() { ANSWER_KEPT } else { FAILURE_KEPT };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_MAX {
            cache.retain(|_, answer| answer.kept_until > now);
        }
        if cache.len() < CACHE_MAX {
            cache.insert(name.to_owned(), Answer { kept_until, addresses });
        }
    }
}

/// The resolver of one client: the permitted addresses of its family.
pub(super) struct FamilyResolver {
    pub(super) names: Arc<Names>,
    pub(super) family: Family,
}

impl Resolve for FamilyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, family) = (Arc::clone(&self.names), self.family);
        Box::pin(async move {
            let addresses = names.addresses(name.as_str()).await?;
            let of_family = addresses.iter().copied().filter(|ip| Family::of(*ip) == family);
            let targets: Vec<_> = of_family.map(|ip| SocketAddr::new(ip, 0)).collect();
            if targets.is_empty() {
                return Err(ResolveError::Family(family.name()).into());
            }
            Ok(Box::new(targets.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_permitted_addresses_of_a_name_are_connected_to() {
        let names = Names::new(AddressPolicy::default());
        let permitted = |found: &[&str]| {
            let found = found.iter().map(|ip| ip.parse().unwrap());
            names.permitted(found).map(|ips| ips.iter().map(ToString::to_string).collect())
        };
        let good: Result<Vec<String>, _> = permitted(&["10.0.0.1", "1.1.1.1", "169.254.169.254"]);
        assert_eq!(good, Ok(vec!["1.1.1.1".into()]));
        let closed = permitted(&["127.0.0.1", "::ffff:10.0.0.1"]).unwrap_err();
        assert!(matches!(closed, ResolveError::Refused(..)), "{closed}");
        assert_eq!(permitted(&[]), Ok(vec![]));
    }

    #[test]
    fn answers_are_kept_for_a_while_and_in_bounds() {
        let names = Names::new(AddressPolicy::default());
        let address = || Ok(Arc::from([IpAddr::from([1, 1, 1, 1])]));
        names.keep("t.example", address());
        assert_eq!(names.cached("t.example"), Some(address()));
        let failed = || Err(ResolveError::Lookup("no".into()));
        names.keep("gone.example", failed());
        assert_eq!(names.cached("gone.example"), Some(failed()));
        assert_eq!(names.cached("other.example"), None);
        for index in 0..CACHE_MAX {
            names.keep(&format!("t{index}"), address());
        }
        assert_eq!(names.cache.lock().unwrap().len(), CACHE_MAX);
    }
}
