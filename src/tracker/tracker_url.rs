//! The URL of a tracker, judged once.
//!
//! A text from a torrent enters, a URL that may be announced to leaves, or why not. Invariant:
//! `Debug` and `Display` never show path or query, where private trackers keep their keys.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

/// Bytes that the URL of a tracker may have.
pub const URL_LEN_MAX: usize = 2048;

/// Parameters that are ours to fill in; a URL that brings them along is a trap.
const OUR_KEYS: [&str; 2] = ["info_hash", "peer_id"];

/// A URL that an executor can announce to. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct TrackerUrl {
    text: Arc<str>,
    host: Arc<str>,
    protocol: Protocol,
}

/// What a tracker speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// HTTP in the open.
    Http,
    /// HTTP over TLS.
    Https,
    /// Datagrams (BEP 15).
    Udp,
}

/// Why a URL is not announced to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// No URL at all, or one that is too long.
    #[error("it is not a URL of at most {URL_LEN_MAX} bytes")]
    Unreadable,
    /// A scheme that trackers do not have.
    #[error("trackers are not reached by this scheme")]
    Scheme,
    /// A name and password before the host.
    #[error("it carries a user name or password")]
    UserInfo,
    /// Port 0.
    #[error("its port is 0")]
    Port,
    /// A UDP tracker without a port, for which there is no default.
    #[error("it is a UDP tracker and names no port")]
    NoPort,
    /// A query that already names a torrent or a peer.
    #[error("its query already holds info_hash or peer_id")]
    Baked,
}

impl TrackerUrl {
    /// Judges the URL of a tracker.
    ///
    /// # Errors
    /// Says which rule it breaks; see [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.len() > URL_LEN_MAX || text.chars().any(char::is_control) {
            return Err(UrlError::Unreadable);
        }
        let url = url::Url::parse(text).map_err(|_| UrlError::Unreadable)?;
        let (url, protocol) = match url.scheme() {
            "udp" => (udp_as_http(&url)?, Protocol::Udp),
            "https" => (url, Protocol::Https),
            _ => (url, Protocol::Http),
        };
        check(&url)?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(UrlError::Unreadable);
        };
        if url.query_pairs().any(|(key, _)| OUR_KEYS.contains(&key.as_ref())) {
            return Err(UrlError::Baked);
        }
        let host = format!("{}://{host}:{port}", protocol.scheme());
        let text = match protocol {
            Protocol::Udp => format!("{host}{}", path_and_query(&url)),
            Protocol::Http | Protocol::Https => String::from(url),
        };
        // What is not ASCII takes three times as many bytes by now.
        if text.len() > URL_LEN_MAX {
            return Err(UrlError::Unreadable);
        }
        Ok(Self { text: text.into(), host: host.into(), protocol })
    }

    /// What the tracker speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Name or address of the host, and the port. An IPv6 address is without its brackets.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (_, authority) = self.host.split_once("://")?;
        let (host, port) = authority.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Some((bare.unwrap_or(host), port.parse().ok()?))
    }

    /// Path and query of a UDP tracker, which go to it as URL data (BEP 41); empty for others.
    pub fn url_data(&self) -> &str {
        let data = self.text.strip_prefix(&*self.host).filter(|_| self.protocol == Protocol::Udp);
        data.unwrap_or_default()
    }

    /// The whole URL, with its secrets.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Scheme, host and port: what shares connections, limits and faults.
    pub fn host(&self) -> &Arc<str> {
        &self.host
    }
}

impl Protocol {
    /// The scheme of its URLs; also the label of metrics.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Udp => "udp",
        }
    }
}

/// The URL of a UDP tracker under the rules of the web, which give its host one spelling.
fn udp_as_http(url: &url::Url) -> Result<url::Url, UrlError> {
    if url.port().is_none() {
        return Err(UrlError::NoPort);
    }
    let (_, rest) = url.as_str().split_once(':').ok_or(UrlError::Unreadable)?;
    url::Url::parse(&format!("http:{rest}")).map_err(|_| UrlError::Unreadable)
}

/// Empty for the root without a query.
fn path_and_query(url: &url::Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None if url.path() == "/" => String::new(),
        None => url.path().to_owned(),
    }
}

/// Scheme, host and port of a URL that may not be usable, cut and escaped.
pub(super) fn host_of(text: &str) -> Option<String> {
    let url = url::Url::parse(text.get(..URL_LEN_MAX).unwrap_or(text)).ok()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = super::display_text(url.host_str()?.as_bytes());
    Some(format!("{}://{host}{port}", url.scheme()))
}

/// The rules that hold for the URL of an HTTP tracker and for every redirect.
///
/// # Errors
/// Says which rule `url` breaks.
pub fn check(url: &url::Url) -> Result<(), UrlError> {
    match url.scheme() {
        "http" | "https" => {}
        _ => return Err(UrlError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::UserInfo);
    }
    if url.port() == Some(0) {
        return Err(UrlError::Port);
    }
    Ok(())
}

impl fmt::Display for TrackerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/…", self.host)
    }
}

impl fmt::Debug for TrackerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_judged() {
        let table = [
            ("http://t.example/announce", Ok("http://t.example:80")),
            ("HTTPS://T.Example:8443/a?key=1", Ok("https://t.example:8443")),
            ("http://[::1]:6969/announce", Ok("http://[::1]:6969")),
            ("http://b\u{fc}cher.example/", Ok("http://xn--bcher-kva.example:80")),
            ("udp://tr\u{430}cker.example:1", Ok("udp://xn--trcker-4nf.example:1")),
            ("http://0x7f.1/announce", Ok("http://127.0.0.1:80")),
            ("udp://t.example:6969", Ok("udp://t.example:6969")),
            ("UDP://T.Example:80/announce", Ok("udp://t.example:80")),
            ("udp://[2001:DB8::1]:80", Ok("udp://[2001:db8::1]:80")),
            ("udp://0x7f.1:1/", Ok("udp://127.0.0.1:1")),
            ("udp://t.example/announce", Err(UrlError::NoPort)),
            ("udp://t.example:0/announce", Err(UrlError::Port)),
            ("udp://me@t.example:1/", Err(UrlError::UserInfo)),
            ("udp://t.example:1/?peer_id=x", Err(UrlError::Baked)),
            ("udp://:1/", Err(UrlError::Unreadable)),
            ("udp:t.example:1", Err(UrlError::NoPort)),
            ("file:///etc/passwd", Err(UrlError::Scheme)),
            ("ftp://t.example/", Err(UrlError::Scheme)),
            ("http://me@t.example/", Err(UrlError::UserInfo)),
            ("http://:pw@t.example/", Err(UrlError::UserInfo)),
            ("http://t.example:0/", Err(UrlError::Port)),
            ("http://t.example/?info_hash=x", Err(UrlError::Baked)),
            ("http://t.example/?%69nfo_hash=x", Err(UrlError::Baked)),
            ("http://t.example/\r\nHost: x", Err(UrlError::Unreadable)),
            ("http:///", Err(UrlError::Unreadable)),
            ("announce", Err(UrlError::Unreadable)),
            ("", Err(UrlError::Unreadable)),
        ];
        for (text, expected) in table {
            let judged = TrackerUrl::parse(text).map(|url| url.host().to_string());
            assert_eq!(judged, expected.map(str::to_owned), "{text}");
        }
        for text in ["udp://t.example:65536/", "udp://a b:1/", "udp://[::1:1/"] {
            assert_eq!(TrackerUrl::parse(text), Err(UrlError::Unreadable), "{text}");
        }
        let long = format!("http://t.example/{}", "x".repeat(URL_LEN_MAX));
        assert_eq!(TrackerUrl::parse(&long), Err(UrlError::Unreadable));
        let stretched = |count| format!("http://t/{}", "é".repeat(count));
        assert!(TrackerUrl::parse(&stretched(339)).is_ok());
        let longer = TrackerUrl::parse(&stretched(340));
        assert_eq!(longer, Err(UrlError::Unreadable), "as it would be sent");
    }

    #[test]
    fn udp_trackers_have_an_address_and_url_data() {
        let table = [
            ("udp://t.example:80", ("t.example", 80), ""),
            ("udp://t.example:80/", ("t.example", 80), ""),
            ("udp://t.example:80/announce", ("t.example", 80), "/announce"),
            ("udp://t.example:80/?a=b", ("t.example", 80), "/?a=b"),
            ("udp://t.example:80?a=b#c", ("t.example", 80), "/?a=b"),
            ("udp://[::1]:6969/a/b?c", ("::1", 6969), "/a/b?c"),
            ("https://[::1]/a/b?c", ("::1", 443), ""),
        ];
        for (text, address, data) in table {
            let url = TrackerUrl::parse(text).unwrap();
            assert_eq!((url.host_and_port(), url.url_data()), (Some(address), data), "{text}");
        }
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let url = TrackerUrl::parse("https://t.example/passkey/announce?k=secret").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://t.example:443/… https://t.example:443/…");
        assert_eq!(url.as_str(), "https://t.example/passkey/announce?k=secret");
    }
}
