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
}

/// Why a URL is not announced to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// No URL at all, or one that is too long.
    #[error("it is not a URL of at most {URL_LEN_MAX} bytes")]
    Unreadable,
    /// A scheme that no executor speaks yet.
    #[error("UDP trackers are not supported yet")]
    Udp,
    /// A scheme that trackers do not have.
    #[error("trackers are not reached by this scheme")]
    Scheme,
    /// A name and password before the host.
    #[error("it carries a user name or password")]
    UserInfo,
    /// Port 0.
    #[error("its port is 0")]
    Port,
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
        check(&url)?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(UrlError::Unreadable);
        };
        if url.query_pairs().any(|(key, _)| OUR_KEYS.contains(&key.as_ref())) {
            return Err(UrlError::Baked);
        }
        let host = format!("{}://{host}:{port}", url.scheme()).into();
        Ok(Self { text: String::from(url).into(), host })
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

/// Scheme, host and port of a URL that may not be usable, cut and escaped.
pub(super) fn host_of(text: &str) -> Option<String> {
    let url = url::Url::parse(text.get(..URL_LEN_MAX).unwrap_or(text)).ok()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let host = super::display_text(url.host_str()?.as_bytes());
    Some(format!("{}://{host}{port}", url.scheme()))
}

/// The rules that hold for a tracker's URL and for every redirect.
///
/// # Errors
/// Says which rule `url` breaks.
pub fn check(url: &url::Url) -> Result<(), UrlError> {
    match url.scheme() {
        "http" | "https" => {}
        "udp" => return Err(UrlError::Udp),
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
            ("http://0x7f.1/announce", Ok("http://127.0.0.1:80")),
            ("udp://t.example:6969", Err(UrlError::Udp)),
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
        let long = format!("http://t.example/{}", "x".repeat(URL_LEN_MAX));
        assert_eq!(TrackerUrl::parse(&long), Err(UrlError::Unreadable));
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let url = TrackerUrl::parse("https://t.example/passkey/announce?k=secret").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://t.example:443/… https://t.example:443/…");
        assert_eq!(url.as_str(), "https://t.example/passkey/announce?k=secret");
    }
}
