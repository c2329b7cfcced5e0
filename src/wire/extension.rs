//! The handshake of the extension protocol (BEP 10): which extensions a peer speaks, under which
//! ids, and a few facts about it.
//!
//! The payload of an extended message with id 0 enters, an [`ExtensionHandshake`] leaves, and back.
//! Invariant: a value that makes no sense is as good as absent; only what is not a dictionary at
//! all is an error. What is kept is bounded by [`EXTENSION_COUNT_MAX`] and [`CLIENT_LEN_MAX`].
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::{Error, Message, encode};
use crate::bencode::{Document, Encoder, Limits, Value};

/// The extended id of the handshake itself.
pub const EXTENSION_HANDSHAKE_ID: u8 = 0;

/// Extensions of one peer that are kept, in the order it names them.
pub const EXTENSION_COUNT_MAX: usize = 32;

/// Bytes of the longest name of an extension that is kept.
const NAME_LEN_MAX: usize = 32;

/// Characters of a client's name that are kept, before they are escaped.
pub const CLIENT_LEN_MAX: usize = 64;

/// Requests that a peer may have outstanding at another, at most, whatever `reqq` says.
pub const REQQ_MAX: u32 = 2048;

/// What BEP 10's authors assume of a peer that does not send `reqq`.
pub const REQQ_ABSENT: u32 = 250;

/// What a peer says of itself in an extension handshake.
///
/// A peer may send more than one; the later ones are updates, so what is absent from one leaves
/// in force what was said before.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ExtensionHandshake {
    /// Names of extensions with the ids under which messages are sent *to* the peer; 0 switches
    /// one off. No name and no other id is there twice.
    pub m: Vec<(Vec<u8>, u8)>,
    /// The name of the client, fit to be shown.
    pub v: Option<String>,
    /// The TCP port the peer listens on; never 0.
    pub p: Option<u16>,
    /// How many requests may be outstanding at the peer, 1 to [`REQQ_MAX`].
    pub reqq: Option<u32>,
    /// Whether the peer wants no data (BEP 21).
    pub upload_only: Option<bool>,
    /// The address under which the peer sees us.
    pub yourip: Option<IpAddr>,
    /// Length in bytes of the `info` dictionary (BEP 9): a claim, to be believed of no buffer.
    pub metadata_size: Option<u32>,
}

impl ExtensionHandshake {
    /// Reads the payload of an extended message with id [`EXTENSION_HANDSHAKE_ID`]. Bytes behind
    /// the dictionary are not looked at.
    ///
    /// # Errors
    /// [`Error::ExtensionHandshake`] or [`Error::ExtensionHandshakeForm`].
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (document, _) = Document::parse_prefix(payload, &Limits::EXTENSION_HANDSHAKE)
            .map_err(Error::ExtensionHandshake)?;
        let root = document.root();
        if root.as_dict().is_none() {
            return Err(Error::ExtensionHandshakeForm);
        }
        let int = |key: &[u8]| root.get(key).and_then(|value| value.as_int());
        let metadata_len_max = i64::try_from(Limits::METADATA.bytes).unwrap_or(i64::MAX);
        Ok(Self {
            m: root.get(b"m").map(parse_extensions).unwrap_or_default(),
            v: root.get(b"v").and_then(|name| name.as_bytes()).map(shown),
            p: int(b"p").and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
            reqq: int(b"reqq")
                .and_then(|count| u32::try_from(count.clamp(1, REQQ_MAX.into())).ok()),
            upload_only: int(b"upload_only").map(|flag| flag != 0),
            yourip: root.get(b"yourip").and_then(|address| parse_address(address.as_bytes()?)),
            metadata_size: int(b"metadata_size")
                .filter(|len| (1..=metadata_len_max).contains(len))
                .and_then(|len| u32::try_from(len).ok()),
        })
    }

    /// The payload, canonical bencode.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            dict.dict(b"m", |m| {
                for (name, id) in &self.m {
                    m.int(name, (*id).into());
                }
            });
            if let Some(name) = &self.v {
                dict.bytes(b"v", name.as_bytes());
            }
            let ints = [
                (b"p".as_slice(), self.p.map(i64::from)),
                (b"reqq", self.reqq.map(i64::from)),
                (b"upload_only", self.upload_only.map(i64::from)),
                (b"metadata_size", self.metadata_size.map(i64::from)),
            ];
            for (key, value) in ints {
                if let Some(value) = value {
                    dict.int(key, value);
                }
            }
            match self.yourip {
                Some(IpAddr::V4(address)) => drop(dict.bytes(b"yourip", &address.octets())),
                Some(IpAddr::V6(address)) => drop(dict.bytes(b"yourip", &address.octets())),
                None => {}
            }
        });
        encoder.finish()
    }

    /// The id under which the extension `name` is sent to the peer: `Some(0)` if the peer switches
    /// it off, `None` if this handshake does not mention it.
    pub fn id_of(&self, name: &[u8]) -> Option<u8> {
        self.m.iter().find(|(other, _)| other == name).map(|(_, id)| *id)
    }

    /// How many requests may be outstanding at a peer that has said no more than this.
    pub fn reqq_or_default(&self) -> u32 {
        self.reqq.unwrap_or(REQQ_ABSENT)
    }
}

/// Appends the extended message that carries `handshake` to `out`.
pub fn encode_extension_handshake(handshake: &ExtensionHandshake, out: &mut Vec<u8>) {
    let payload = handshake.encode();
    encode(&Message::Extended { id: EXTENSION_HANDSHAKE_ID, payload: &payload }, out);
}

/// The extensions in the dictionary `m`.
///
/// Of two names with one id the first keeps it and the second is not there: a message under that
/// id would be read as one or the other, and we cannot know which.
fn parse_extensions(m: Value<'_>) -> Vec<(Vec<u8>, u8)> {
    let mut extensions: Vec<(Vec<u8>, u8)> = Vec::new();
    for (name, id) in m.as_dict().iter().flat_map(|dict| dict.iter()) {
        let Some(id) = id.as_int().and_then(|id| u8::try_from(id).ok()) else { continue };
        let is_taken = id != 0 && extensions.iter().any(|(_, other)| *other == id);
        if is_taken || name.len() > NAME_LEN_MAX {
            continue;
        }
        if extensions.len() == EXTENSION_COUNT_MAX {
            break;
        }
        extensions.push((name.to_vec(), id));
    }
    extensions
}

/// A client's name with what is not printable escaped, cut to [`CLIENT_LEN_MAX`] characters.
fn shown(name: &[u8]) -> String {
    // A character has at most four bytes.
    let front = name.get(..4 * CLIENT_LEN_MAX).unwrap_or(name);
    let text = String::from_utf8_lossy(front);
    text.chars().take(CLIENT_LEN_MAX).flat_map(char::escape_debug).collect()
}

fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ExtensionHandshake {
        ExtensionHandshake {
            m: vec![(b"ut_metadata".to_vec(), 2), (b"ut_pex".to_vec(), 0)],
            v: Some("client 1.0".to_owned()),
            p: Some(6881),
            reqq: Some(500),
            upload_only: Some(true),
            yourip: Some(IpAddr::from([192, 0, 2, 1])),
            metadata_size: Some(31_235),
        }
    }

    fn parse(payload: &[u8]) -> ExtensionHandshake {
        ExtensionHandshake::parse(payload).unwrap()
    }

    #[test]
    fn what_is_written_is_canonical_and_read_back() {
        let bytes = sample().encode();
        assert_eq!(
            bytes,
            b"d1:md11:ut_metadatai2e6:ut_pexi0ee13:metadata_sizei31235e1:pi6881e4:reqqi500e\
              11:upload_onlyi1e1:v10:client 1.06:yourip4:\xc0\x00\x02\x01e"
        );
        assert_eq!(parse(&bytes), sample());
        let v6 = ExtensionHandshake { yourip: Some(IpAddr::from([7u8; 16])), ..sample() };
        assert_eq!(parse(&v6.encode()), v6);
        assert_eq!(ExtensionHandshake::default().encode(), b"d1:mdee");

        let mut message = Vec::new();
        encode_extension_handshake(&sample(), &mut message);
        assert_eq!(message[..6], [0, 0, 0, u8::try_from(bytes.len()).unwrap() + 2, 20, 0]);
        assert_eq!(message[6..], bytes);
    }

    #[test]
    fn ids_say_on_off_and_nothing() {
        let handshake = sample();
        assert_eq!(handshake.id_of(b"ut_metadata"), Some(2));
        assert_eq!(handshake.id_of(b"ut_pex"), Some(0));
        assert_eq!(handshake.id_of(b"lt_donthave"), None);
    }

    #[test]
    fn values_without_sense_are_absent() {
        let absent = ExtensionHandshake::default();
        for payload in [
            b"de".as_slice(),
            b"d1:mi1ee",
            b"d1:md1:ai256e1:bi-1e1:c1:xee",
            b"d1:pi0ee",
            b"d1:pi65536ee",
            b"d1:pi-1ee",
            b"d1:p4:6881e",
            b"d13:metadata_sizei0ee",
            b"d13:metadata_sizei-1ee",
            b"d13:metadata_sizei8388609ee",
            b"d6:yourip3:abce",
            b"d1:vi1ee",
            b"d4:reqq3:abce",
        ] {
            assert_eq!(parse(payload), absent, "{}", payload.escape_ascii());
        }
        assert_eq!(parse(b"d13:metadata_sizei8388608ee").metadata_size, Some(8 << 20));
        assert_eq!(parse(b"d11:upload_onlyi0ee").upload_only, Some(false));
    }

    #[test]
    fn reqq_is_clamped() {
        for (payload, expected) in [
            (b"d4:reqqi-5ee".as_slice(), 1),
            (b"d4:reqqi0ee", 1),
            (b"d4:reqqi2048ee", 2048),
            (b"d4:reqqi9223372036854775807ee", 2048),
            (b"de", 250),
        ] {
            assert_eq!(parse(payload).reqq_or_default(), expected);
        }
    }

    #[test]
    fn the_first_name_keeps_an_id() {
        let handshake = parse(b"d1:md1:ai3e1:bi3e1:ci0e1:di0e1:ei4eee");
        let names: Vec<_> = handshake.m.iter().map(|(name, id)| (name[0], *id)).collect();
        assert_eq!(names, [(b'a', 3), (b'c', 0), (b'd', 0), (b'e', 4)]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: String = (1..=100).map(|id| format!("3:{id:03}i{id}e")).collect();
        let handshake = parse(format!("d1:md{many}ee").as_bytes());
        assert_eq!(handshake.m.len(), EXTENSION_COUNT_MAX);
        let long = [b"d1:md33:".as_slice(), &[b'x'; 33], b"i1eee"].concat();
        assert!(parse(&long).m.is_empty());

        let name = "\x1b[2Jµ".repeat(1000);
        let v = parse(format!("d1:v{}:{name}e", name.len()).as_bytes()).v.unwrap();
        assert!(v.starts_with("\\u{1b}[2Jµ\\u{1b}[2Jµ") && v.len() < 10 * CLIENT_LEN_MAX, "{v}");
        assert_eq!(v.matches('µ').count(), 12);
        assert_eq!(parse(b"d1:v3:\xff\xfeae").v.unwrap(), "\u{fffd}\u{fffd}a");
    }

    #[test]
    fn what_is_no_dictionary_is_an_error() {
        let label = |payload: &[u8]| ExtensionHandshake::parse(payload).map_err(|e| e.label());
        assert_eq!(label(b""), Err("extension_handshake"));
        assert_eq!(label(b"d1:m"), Err("extension_handshake"));
        assert_eq!(label(b"le"), Err("extension_handshake_form"));
        assert_eq!(label(b"i1e"), Err("extension_handshake_form"));
        let refusal = |payload: &[u8]| match ExtensionHandshake::parse(payload) {
            Err(Error::ExtensionHandshake(error)) => error.label(),
            other => panic!("{other:?}"),
        };
        let deep = [b"d1:a".repeat(8), b"le".to_vec(), b"e".repeat(8)].concat();
        assert_eq!(refusal(&deep), "bencode_too_deep");
        let bomb = [b"d1:al".to_vec(), b"le".repeat(512), b"ee".to_vec()].concat();
        assert_eq!(refusal(&bomb), "bencode_too_many_tokens");
        let long = [b"d1:a65536:".to_vec(), vec![0; 65536], b"e".to_vec()].concat();
        assert_eq!(refusal(&long), "bencode_too_long");
        assert_eq!(label(b"debehind"), Ok(ExtensionHandshake::default()));
    }
}
