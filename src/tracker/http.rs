//! Announces over HTTP and HTTPS.
//!
//! An [`Announce`] enters, the bytes of BEP 3 go out, a [`Reply`] or a [`Failure`] leaves.
//! Invariant: every hop, the first as well as each redirect, is checked against the address
//! policy, and the connection goes to the checked address; no proxy is taken from the
//! environment; at most [`BODY_LEN_MAX`] bytes are read and the whole exchange has one deadline.
//!
//! An announce goes out over IPv4 and IPv6 where both sides have both (BEP 7); see
//! `families`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use url::{Host, Url};

use super::families::{Families, Family};
use super::reply::{self, BODY_LEN_MAX, Scraped};
use super::resolver::{FamilyResolver, Names, ResolveError};
use super::udp::SCRAPE_MAX;
use super::{
    AddressPolicy, Announce, Failure, Reply, Totals, TrackerUrl, display_text, http_date,
    tracker_url,
};
use crate::sys::clock;
use crate::units::{InfoHash, PeerId};

/// Redirects that are followed.
pub const REDIRECTS_MAX: usize = 5;

/// Header lines that an answer may have.
const HEADERS_MAX: usize = 64;

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
    families: Families,
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
        Ok(Self { clients, names, families: Families::default(), config })
    }

    /// Names and their addresses, for executors of other kinds.
    pub(super) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.names)
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
        let exchange = async {
            let present = self.families_of(&url).await?;
            let over = |family| self.announce_over(family, &url);
            self.families.announce(announce.url.host(), &present, over).await
        };
        tokio::time::timeout(wall, exchange).await.unwrap_or(Err(Failure::Timeout(wall)))
    }

    /// Asks for the counts of `torrents` (BEP 48), in as many questions as that takes.
    ///
    /// # Errors
    /// As for an announce; [`Failure::Refused`] if the URL of the tracker names no scrape.
    pub async fn scrape(
        &self,
        url: &TrackerUrl,
        torrents: &[InfoHash],
        wall: Duration,
    ) -> Result<Vec<Scraped>, Failure> {
        let exchange = async {
            let mut rows = Vec::with_capacity(torrents.len());
            for part in torrents.chunks(SCRAPE_MAX) {
                let url = scrape_url(url, part)?;
                let family = self.families_of(&url).await?.first().copied();
                let client = family.and_then(|family| self.client(family));
                let client = client.ok_or_else(no_family)?;
                let (body, failure) = self.follow(client, &url).await?;
                let found = reply::parse_scrape(&body, part);
                rows.extend(explained(found, failure)?);
            }
            Ok(rows)
        };
        tokio::time::timeout(wall, exchange).await.unwrap_or(Err(Failure::Timeout(wall)))
    }

    fn client(&self, family: Family) -> Option<&Client> {
        self.clients.iter().find(|(own, _)| *own == family).map(|(_, client)| client)
    }

    async fn announce_over(&self, family: Family, url: &Url) -> Result<Reply, Failure> {
        let client = self.client(family).ok_or_else(no_family)?;
        let (body, failure) = self.follow(client, url).await?;
        let mut reply = explained(reply::parse(&body), failure)?;
        reply.keep_permitted(self.names.policy());
        Ok(reply)
    }

    /// The families of a host that we have a client for.
    async fn families_of(&self, url: &Url) -> Result<Vec<Family>, Failure> {
        let present = match url.host() {
            Some(Host::Ipv4(_)) => vec![Family::V4],
            Some(Host::Ipv6(_)) => vec![Family::V6],
            Some(Host::Domain(name)) => {
                let addresses = self.names.addresses(name).await.map_err(Failure::from)?;
                addresses.iter().copied().map(Family::of).collect()
            }
            None => return Err(refused(url, "it names no host")),
        };
        let usable = self.clients.iter().map(|(family, _)| *family);
        Ok(usable.filter(|family| present.contains(family)).collect())
    }

    /// One exchange over one family, redirects included. A body leaves, with the failure that its
    /// status means, if it means one.
    async fn follow(
        &self,
        client: &Client,
        url: &Url,
    ) -> Result<(Vec<u8>, Option<Failure>), Failure> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            self.check_literal(&url)?;
            let request = client.get(url.clone()).header(ACCEPT_ENCODING, IDENTITY);
            let response = request.send().await.map_err(|error| failure_of(&error))?;
            match response.headers().get(LOCATION) {
                Some(location) if response.status().is_redirection() => {
                    url = next_hop(&url, location)?;
                }
                _ => return read(response).await,
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
}

/// The body, and the failure that the status means.
async fn read(mut response: Response) -> Result<(Vec<u8>, Option<Failure>), Failure> {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| seconds(value, clock::wall_seconds()));
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
    let failure =
        (!status.is_success()).then(|| Failure::Status { status: status.as_u16(), retry_after });
    Ok((body, failure))
}

/// What an answer comes to whose status means `failure`.
fn explained<T>(parsed: Result<T, Failure>, failure: Option<Failure>) -> Result<T, Failure> {
    match (parsed, failure) {
        (parsed, None) => parsed,
        // Some trackers explain themselves in the body of an error.
        (Err(said @ Failure::Reason { .. }), Some(failure)) if !speaks_for_itself(&failure) => {
            Err(said)
        }
        (_, Some(failure)) => Err(failure),
    }
}

fn no_family() -> Failure {
    Failure::Dns("it has no address of a family that we use".into())
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

/// The URL that gives the counts of `torrents`: `scrape` in the place of the last `announce`, which
/// has to begin the last part of the path (BEP 48).
fn scrape_url(url: &TrackerUrl, torrents: &[InfoHash]) -> Result<Url, Failure> {
    let malformed = |_| Failure::Refused { to: url.to_string(), why: "not a URL".into() };
    let mut to = Url::parse(url.as_str()).map_err(malformed)?;
    let announce = to.path().rsplit_once('/').map(|(folder, name)| (folder.to_owned(), name));
    let named = announce.and_then(|(folder, name)| Some((folder, name.strip_prefix("announce")?)));
    let Some((folder, rest)) = named else {
        return Err(refused(&to, "its URL does not say where it is scraped"));
    };
    let path = format!("{folder}/scrape{rest}");
    let mut query = to
        .query()
        .filter(|query| !query.is_empty())
        .map_or_else(String::new, |own| format!("{own}&"));
    for (index, hash) in torrents.iter().enumerate() {
        query.push_str(if index == 0 { "info_hash=" } else { "&info_hash=" });
        push_escaped(&mut query, &hash.0);
    }
    to.set_path(&path);
    to.set_fragment(None);
    to.set_query(Some(&query));
    Ok(to)
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
fn speaks_for_itself(failure: &Failure) -> bool {
    let Failure::Status { status, .. } = failure else { return false };
    [StatusCode::GONE, StatusCode::TOO_MANY_REQUESTS].iter().any(|own| own.as_u16() == *status)
}

/// `Retry-After`: a number of seconds, or a date; nothing for one that has passed.
fn seconds(value: &HeaderValue, wall_now: i64) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let until = || {
        let ahead = http_date::parse(text)?.saturating_sub(wall_now);
        u64::try_from(ahead).ok().filter(|seconds| *seconds > 0)
    };
    text.parse().ok().or_else(until).map(Duration::from_secs)
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
    fn a_time_to_come_again_is_a_number_or_a_date() {
        let wait = |text: &str| seconds(&HeaderValue::from_str(text).unwrap(), 784_111_777);
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 09:49:37 GMT", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sat, 05 Nov 1994 08:49:37 GMT", None),
            ("-5", None),
            ("soon", None),
        ];
        for (text, expected) in table {
            assert_eq!(wait(text), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn the_scrape_of_a_tracker_stands_beside_its_announce() {
        let hashes = [InfoHash([1; 20]), InfoHash([b'a'; 20])];
        let query = format!("info_hash={}&info_hash={}", "%01".repeat(20), "a".repeat(20));
        let table = [
            ("http://t/announce", Some(format!("http://t/scrape?{query}"))),
            ("http://t/x/announce", Some(format!("http://t/x/scrape?{query}"))),
            ("http://t/announce.php", Some(format!("http://t/scrape.php?{query}"))),
            ("http://t/announce?x2%0644", Some(format!("http://t/scrape?x2%0644&{query}"))),
            ("http://t/a", None),
            ("http://t/x%064announce", None),
            ("http://t/announce/x", None),
        ];
        for (url, expected) in table {
            let scraped = scrape_url(&TrackerUrl::parse(url).unwrap(), &hashes);
            assert_eq!(scraped.ok().map(String::from), expected, "{url}");
        }
    }
}
