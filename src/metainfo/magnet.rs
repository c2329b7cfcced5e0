//! Magnet links (BEP 9): an info-hash, a name and trackers in one line of text.
//!
//! Values enter, a link leaves. Invariant: everything but unreserved characters (RFC 3986) is
//! percent-encoded, so that no name can add a parameter.
#![forbid(unsafe_code)]

use crate::units::InfoHash;

/// The link of a v1 torrent: `xt`, `dn`, and a `tr` for each tracker.
///
/// ```
/// use seedring::metainfo::magnet::magnet_link;
/// let hash = "00".repeat(20);
/// let link = magnet_link(hash.parse().unwrap(), "a&b", ["udp://t:1"]);
/// assert_eq!(link, format!("magnet:?xt=urn:btih:{hash}&dn=a%26b&tr=udp%3A%2F%2Ft%3A1"));
/// ```
pub fn magnet_link<'t>(
    info_hash: InfoHash,
    name: &str,
    trackers: impl IntoIterator<Item = &'t str>,
) -> String {
    let mut link = format!("magnet:?xt=urn:btih:{info_hash}&dn=");
    push_encoded(&mut link, name);
    for tracker in trackers {
        link.push_str("&tr=");
        push_encoded(&mut link, tracker);
    }
    link
}

fn push_encoded(link: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            link.push(char::from(byte));
        } else {
            link.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    #[test]
    fn names_and_trackers_survive_any_reader() {
        let name = "100% ü&x=1#frag+日本\n";
        let tracker = "http://t.example/announce?key=a&b=c%20d";
        let link = magnet_link(InfoHash([0xab; 20]), name, [tracker, "udp://u:1"]);
        assert!(link.is_ascii() && !link.contains(char::is_whitespace));
        let url = Url::parse(&link).unwrap();
        let pairs: Vec<_> = url.query_pairs().collect();
        let expected = [
            ("xt", format!("urn:btih:{}", "ab".repeat(20))),
            ("dn", name.to_owned()),
            ("tr", tracker.to_owned()),
            ("tr", "udp://u:1".to_owned()),
        ];
        assert_eq!(pairs.len(), expected.len());
        for ((key, value), (expected_key, expected_value)) in pairs.iter().zip(&expected) {
            assert_eq!((key.as_ref(), value.as_ref()), (*expected_key, expected_value.as_str()));
        }
    }
}
