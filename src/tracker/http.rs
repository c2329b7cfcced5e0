//! Announces over HTTP and HTTPS.
//!
//! An [`Announce`] enters, the bytes of BEP 3 go out, a [`Reply`] or a [`Failure`] leaves.
//! Invariant: every hop, the first as well as each redirect, is checked against the address
//! policy, and the connection goes to the checked address; no proxy is taken from the
//! environment; at most [`BODY_LEN_MAX`] bytes are read and the whole exchange has one deadline.
//!
//! A tracker learns the IPv4 and the IPv6 address of a host only from connections of that family
//! (BEP 7), so an announce goes out over both where both sides have both, and the peers of both
//! answers are merged. The answer of one family never waits long for the other.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use url::{Host, Url};

use super::reply::{self, BODY_LEN_MAX, PEERS_MAX};
use super::resolver::{Family, FamilyResolver, Names, ResolveError};
use super::{AddressPolicy, Announce, Failure, Reply, Totals, display_text, tracker_url};
use crate::sys::clock;
use crate::units::{InfoHash, PeerId};

/// Redirects that are followed.
pub const REDIRECTS_MAX: usize = 5;

/// Header lines that an answer may have.
const HEADERS_MAX: usize = 64;

/// How long the answer of one family waits for that of the other.
const FAMILY_GRACE: Duration = Duration::from_secs(3);

/// How long a family is left out for a host where it failed while the other one worked.
const FAMILY_REST: Duration = Duration::from_secs(30 * 60);

/// Hosts of which a failing family is remembered.
const FAMILY_RESTS_MAX: usize = 4096;

/// How long an unused connection is kept for the next announce to its host.
const IDLE_KEPT: Duration = Duration::from_secs(30);

/// Unused connections kept per host: as many as are in use at once when a server ends.
const IDLE_PER_HOST_MAX: usize = 25;

pub use crate::sys::net::Bind;

/// What the executor tells trackers about us, and where it may go.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Our id, in every announce.
    pub peer_id: PeerId,
    /// The port that peers reach us at.
    pub port: u16,
    /// Tells a tracker that we are still the same when our address changes; random per start.
    pub key: u32,
    /// Where connections may go, and which peers are believed.
    pub policy: AddressPolicy,
    /// What connections leave from, if that is prescribed.
    pub bind: Option<Bind>,
}

/// Why no executor could be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for trackers cannot be set up: {0}")]
pub struct BuildError(#[from] reqwest::Error);

/// The HTTP clients of both families, with their connections.
pub struct HttpExecutor {
    clients: Vec<(Family, Client)>,
    names: Arc<Names>,
    family_rests: Mutex<BTreeMap<(Arc<str>, Family), Instant>>,
    config: HttpConfig,
}

impl HttpExecutor {
    /// Sets up the clients.
    ///
    /// # Errors
    /// The TLS library refuses. A system without root certificates is no error: every HTTPS
    /// tracker fails then, and says why.
    pub fn new(config: HttpConfig) -> Result<Self, BuildError> {
        // An error only says that one is installed already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        let names = Arc::new(Names::new(config.policy.clone()));
        let families: &[Family] = match config.bind {
            Some(Bind::Address(ip)) => &[Family::of(ip)],
            _ => &[Family::V4, Family::V6],
        };
        let client = |family: &Family| {
            build(&config, &names, *family, false)
                .or_else(|_| build(&config, &names, *family, true))
                .map(|client| (*family, client))
        };
        let clients = families.iter().map(client).collect::<Result<_, _>>()?;
        Ok(Self { clients, names, family_rests: Mutex::default(), config })
    }

    /// Makes one announce, within `wall` as a whole.
    ///
    /// # Errors
    /// Says what went wrong, in the terms that the schedule needs.
    pub async fn announce(
        &self,
        info_hash: InfoHash,
        announce: &Announce,
        totals: Totals,
        wall: Duration,
    ) -> Result<Reply, Failure> {
        let url = announce_url(&self.config, info_hash, announce, totals)?;
        let exchange = self.over_families(announce.url.host(), &url);
        tokio::time::timeout(wall, exchange).await.unwrap_or(Err(Failure::Timeout(wall)))
    }

    /// Announces over every family that works, and merges the answers.
    async fn over_families(&self, host: &Arc<str>, url: &Url) -> Result<Reply, Failure> {
        let present = self.families_of(url).await?;
        let usable = |(family, _): &&(Family, Client)| present.contains(family);
        let mut usable: Vec<_> = self.clients.iter().filter(usable).collect();
        if usable.len() > 1 {
            usable.retain(|(family, _)| !self.is_family_resting(host, *family));
        }
        match usable.as_slice() {
            [(first, client), (second, other)] => {
                let (one, two) = (self.follow(client, url), self.follow(other, url));
                self.race(host, (*first, one), (*second, two)).await
            }
            [(_, client), ..] => self.follow(client, url).await,
            [] => match self.clients.iter().find(|(family, _)| present.contains(family)) {
                Some((_, client)) => self.follow(client, url).await,
                None => Err(Failure::Dns("it has no address of a family that we use".into())),
            },
        }
    }

    /// Both families at once: the first success waits a little for the other one.
    async fn race(
        &self,
        host: &Arc<str>,
        (first, one): (Family, impl Future<Output = Result<Reply, Failure>>),
        (second, two): (Family, impl Future<Output = Result<Reply, Failure>>),
    ) -> Result<Reply, Failure> {
        tokio::pin!(one, two);
        let (answer, late_family, late) = tokio::select! {
            answer = &mut one => match answer {
                Ok(_) => (answer, second, tokio::time::timeout(FAMILY_GRACE, two).await.ok()),
                Err(_) => (two.await, first, Some(answer)),
            },
            answer = &mut two => match answer {
                Ok(_) => (answer, first, tokio::time::timeout(FAMILY_GRACE, one).await.ok()),
                Err(_) => (one.await, second, Some(answer)),
            },
        };
        match (answer, late) {
            (Ok(answer), Some(Ok(late))) => Ok(merge(answer, late)),
            (Ok(answer), _) => {
                self.rest_family(host, late_family);
                Ok(answer)
            }
            // Of two failures, the one that the tracker itself gave says more.
            (Err(_), Some(Err(said @ (Failure::Reason { .. } | Failure::Status { .. })))) => {
                Err(said)
            }
            (failure, _) => failure,
        }
    }

    async fn families_of(&self, url: &Url) -> Result<Vec<Family>, Failure> {
        match url.host() {
            Some(Host::Ipv4(_)) => Ok(vec![Family::V4]),
            Some(Host::Ipv6(_)) => Ok(vec![Family::V6]),
            Some(Host::Domain(name)) => {
                let addresses = self.names.addresses(name).await.map_err(Failure::from)?;
                Ok(addresses.iter().copied().map(Family::of).collect())
            }
            None => Err(refused(url, "it names no host")),
        }
    }

    /// One exchange over one family, redirects included.
    async fn follow(&self, client: &Client, url: &Url) -> Result<Reply, Failure> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.check_literal(&url)?;
            let request = client.get(url.clone()).header(ACCEPT_ENCODING, IDENTITY);
            let response = request.send().await.map_err(|error| failure_of(&error))?;
            match response.headers().get(LOCATION) {
                Some(location) if response.status().is_redirection() => {
                    url = next_hop(&url, location)?;
                }
                _ => return self.read(response).await,
            }
        }
        Err(refused(&url, "it was reached over too many redirects"))
    }

    /// An address in the URL itself never passes the resolver.
    fn check_literal(&self, url: &Url) -> Result<(), Failure> {
        let ip: IpAddr = match url.host() {
            Some(Host::Ipv4(ip)) => ip.into(),
            Some(Host::Ipv6(ip)) => ip.into(),
            _ => return Ok(()),
        };
        self.config.policy.permits(ip).map_err(|reason| refused(url, &reason.to_string()))
    }

    async fn read(&self, mut response: Response) -> Result<Reply, Failure> {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Failure::Malformed("it is compressed, which was not asked for".into()));
        }
        let too_long = || Failure::Malformed(format!("it is longer than {BODY_LEN_MAX} bytes"));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failure_of(&error))? {
            if body.len() + chunk.len() > BODY_LEN_MAX {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        let reply = reply::parse(&body);
        match reply {
            Ok(mut reply) if status.is_success() => {
                self.keep_permitted(&mut reply);
                Ok(reply)
            }
            Err(failure) if status.is_success() => Err(failure),
            // Some trackers explain themselves in the body of an error.
            Err(failure @ Failure::Reason { .. }) if !speaks_for_itself(status) => Err(failure),
            _ => Err(Failure::Status { status: status.as_u16(), retry_after }),
        }
    }

    /// Drops the peers that the policy closes.
    fn keep_permitted(&self, reply: &mut Reply) {
        let policy = self.names.policy();
        let Reply { peers, dropped_count, refused, .. } = reply;
        peers.retain(|peer| {
            let Err(reason) = policy.permits(peer.ip()) else { return true };
            *dropped_count = dropped_count.saturating_add(1);
            refused.get_or_insert((peer.ip(), reason));
            false
        });
    }

    fn is_family_resting(&self, host: &Arc<str>, family: Family) -> bool {
        let rests = self.family_rests.lock().unwrap_or_else(PoisonError::into_inner);
        rests.get(&(Arc::clone(host), family)).is_some_and(|until| *until > clock::now())
    }

    fn rest_family(&self, host: &Arc<str>, family: Family) {
        let now = clock::now();
        let mut rests = self.family_rests.lock().unwrap_or_else(PoisonError::into_inner);
        if rests.len() >= FAMILY_RESTS_MAX {
            rests.retain(|_, until| *until > now);
        }
        if rests.len() < FAMILY_RESTS_MAX {
            rests.insert((Arc::clone(host), family), now + FAMILY_REST);
        }
    }
}

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// One client. `is_bare` leaves out the system's root certificates, where there are none.
fn build(
    config: &HttpConfig,
    names: &Arc<Names>,
    family: Family,
    is_bare: bool,
) -> Result<Client, reqwest::Error> {
    let resolver = FamilyResolver { names: Arc::clone(names), family };
    let mut builder = Client::builder()
        .user_agent(concat!("seedring/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .http1_only()
        .http1_max_headers(HEADERS_MAX)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .pool_idle_timeout(IDLE_KEPT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .dns_resolver(resolver);
    if is_bare {
        builder = builder.tls_certs_only([]);
    }
    builder = match &config.bind {
        Some(Bind::Address(ip)) => builder.local_address(*ip),
        Some(Bind::Interface(name)) => builder.interface(name),
        None => builder,
    };
    builder.build()
}

/// The URL of one announce: what the torrent gave, and our parameters behind it.
fn announce_url(
    config: &HttpConfig,
    info_hash: InfoHash,
    announce: &Announce,
    totals: Totals,
) -> Result<Url, Failure> {
    let malformed = |_| Failure::Refused { to: announce.url.to_string(), why: "not a URL".into() };
    let mut url = Url::parse(announce.url.as_str()).map_err(malformed)?;
    let mut query = url
        .query()
        .filter(|query| !query.is_empty())
        .map_or_else(String::new, |own| format!("{own}&"));
    let Totals { uploaded, downloaded, left } = totals;
    query.push_str("info_hash=");
    push_escaped(&mut query, &info_hash.0);
    query.push_str("&peer_id=");
    push_escaped(&mut query, &config.peer_id.0);
    let (port, numwant, key) = (config.port, announce.numwant, config.key);
    // Writing to a String does not fail.
    let _written = write!(
        query,
        "&port={port}&uploaded={uploaded}&downloaded={downloaded}&left={left}\
         &compact=1&no_peer_id=1&numwant={numwant}&key={key:08X}"
    );
    if let Some(event) = announce.event.wire() {
        query.push_str("&event=");
        query.push_str(event);
    }
    if let Some(id) = &announce.tracker_id {
        query.push_str("&trackerid=");
        push_escaped(&mut query, id);
    }
    url.set_fragment(None);
    url.set_query(Some(&query));
    Ok(url)
}

/// Escapes every byte but the unreserved ones (RFC 3986).
fn push_escaped(query: &mut String, bytes: &[u8]) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            query.push(char::from(*byte));
        } else {
            let _written = write!(query, "%{byte:02X}");
        }
    }
}

/// Where a redirect leads, if we go there. Addresses are checked before the connection.
fn next_hop(from: &Url, location: &HeaderValue) -> Result<Url, Failure> {
    let location = std::str::from_utf8(location.as_bytes()).ok();
    let Some(to) = location.and_then(|location| from.join(location).ok()) else {
        return Err(refused(from, "its redirect is not a URL"));
    };
    tracker_url::check(&to).map_err(|why| refused(&to, &why.to_string()))?;
    if from.scheme() == "https" && to.scheme() == "http" {
        return Err(refused(&to, "a redirect must not leave HTTPS"));
    }
    Ok(to)
}

/// A refusal that names scheme and host only: the rest of a URL holds secrets.
fn refused(to: &Url, why: &str) -> Failure {
    let host = display_text(to.host_str().unwrap_or_default().as_bytes());
    Failure::Refused { to: format!("{}://{host}", to.scheme()), why: why.to_owned() }
}

/// Whether a status tells the schedule more than a text does.
fn speaks_for_itself(status: StatusCode) -> bool {
    matches!(status, StatusCode::GONE | StatusCode::TOO_MANY_REQUESTS)
}

/// `Retry-After` in seconds. The form with a date is left to our own back-off.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The peers of both families in turn, so that the limit cuts neither off; all else is `one`'s.
fn merge(mut one: Reply, two: Reply) -> Reply {
    let length = one.peers.len().max(two.peers.len());
    let (mine, theirs) = (std::mem::take(&mut one.peers), two.peers);
    for index in 0..length {
        for peer in [mine.get(index), theirs.get(index)].into_iter().flatten() {
            if one.peers.len() < PEERS_MAX && !one.peers.contains(peer) {
                one.peers.push(*peer);
            }
        }
    }
    one.dropped_count = one.dropped_count.saturating_add(two.dropped_count);
    one.refused = one.refused.or(two.refused);
    one
}

impl From<ResolveError> for Failure {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Refused(ip, reason) => {
                Self::Refused { to: ip.to_string(), why: reason.to_string() }
            }
            ResolveError::Lookup(_) | ResolveError::Family(_) => Self::Dns(error.to_string()),
        }
    }
}

/// Sorts an error of the HTTP library by what failed; its text never holds the URL.
fn failure_of(error: &reqwest::Error) -> Failure {
    let mut deepest = String::from("the exchange broke off");
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ResolveError>() {
            return error.clone().into();
        }
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Failure::Tls(display_text(error.to_string().as_bytes()));
        }
        deepest = error.to_string();
        cause = inner(error);
    }
    let deepest = display_text(deepest.as_bytes());
    if error.is_connect() { Failure::Connect(deepest) } else { Failure::Malformed(deepest) }
}

/// The cause of an error. An `io::Error` names as its source that of what it wraps, and so would
/// pass over the wrapped error itself.
fn inner<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::{Event, TrackerUrl};

    fn query_of(url: &str, event: Event, tracker_id: Option<&[u8]>) -> String {
        let config = HttpConfig {
            peer_id: PeerId(*b"-sg0100-\x00\xff &%=abcdef"),
            port: 51413,
            key: 0xBEEF,
            policy: AddressPolicy::default(),
            bind: None,
        };
        let announce = Announce {
            slot: 0,
            url: TrackerUrl::parse(url).unwrap(),
            event,
            numwant: 80,
            tracker_id: tracker_id.map(<[u8]>::to_vec),
        };
        let totals = Totals { uploaded: 1, downloaded: 2, left: u64::MAX };
        announce_url(&config, InfoHash([0xAB; 20]), &announce, totals).unwrap().to_string()
    }

    #[test]
    fn the_query_is_exact() {
        let ours = format!(
            "info_hash={}&peer_id=-sg0100-%00%FF%20%26%25%3Dabcdef&port=51413&uploaded=1\
             &downloaded=2&left=18446744073709551615&compact=1&no_peer_id=1&numwant=80\
             &key=0000BEEF",
            "%AB".repeat(20)
        );
        let table = [
            (
                ("http://t.example/announce", Event::Periodic, None),
                format!("http://t.example/announce?{ours}"),
            ),
            (
                ("http://t.example/a?pass=a%2Fb", Event::Started, None),
                format!("http://t.example/a?pass=a%2Fb&{ours}&event=started"),
            ),
            (
                ("http://t.example/a?#part", Event::Stopped, Some(&b"\x00id"[..])),
                format!("http://t.example/a?{ours}&event=stopped&trackerid=%00id"),
            ),
        ];
        for ((url, event, tracker_id), expected) in table {
            assert_eq!(query_of(url, event, tracker_id), expected);
        }
    }

    #[test]
    fn redirects_are_judged() {
        let judge = |from: &str, location: &str| {
            let from = Url::parse(from).unwrap();
            next_hop(&from, &HeaderValue::from_str(location).unwrap()).map(String::from)
        };
        assert_eq!(judge("http://a/x", "/y?z=1"), Ok("http://a/y?z=1".into()));
        assert_eq!(judge("http://a/x", "https://b/"), Ok("https://b/".into()));
        for (from, location) in [
            ("https://a/", "http://a/"),
            ("http://a/", "file:///etc/passwd"),
            ("http://a/", "http://u:p@b/"),
            ("http://a/", "http://b:0/"),
            ("http://a/", "http://[::1"),
        ] {
            let failure = judge(from, location).unwrap_err();
            assert_eq!(failure.label(), "refused", "{from} {location}");
        }
    }

    #[test]
    fn answers_of_both_families_merge_in_turn() {
        let peers = |ips: &[&str]| ips.iter().map(|at| at.parse().unwrap()).collect();
        let one = Reply { peers: peers(&["1.1.1.1:1", "1.1.1.2:1"]), ..Reply::default() };
        let two = Reply { peers: peers(&["[2a00::1]:1", "1.1.1.1:1"]), ..Reply::default() };
        let merged: Vec<_> = merge(one, two).peers.iter().map(ToString::to_string).collect();
        assert_eq!(merged, ["1.1.1.1:1", "[2a00::1]:1", "1.1.1.2:1"]);
    }
}
