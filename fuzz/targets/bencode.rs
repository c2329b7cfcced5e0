//! Bencode: every limit, every value, and both ways.

use std::collections::BTreeMap;

use seedring::bencode::{Document, Encoder, Kind, Limits, Value, excerpt};

use super::{Input, Script, assert_sentence, texts};

const LIMITS: [Limits; 6] = [
    Limits::TORRENT,
    Limits::METADATA,
    Limits::EXTENSION_HANDSHAKE,
    Limits::PEX,
    Limits::TRACKER,
    Limits::KRPC,
];

/// Reads bytes as every place reads them, and writes what was read.
pub(super) fn scan(data: &[u8]) {
    for limits in &LIMITS {
        let (document, used) = match Document::parse_prefix(data, limits) {
            Ok(parsed) => parsed,
            Err(error) => {
                assert_sentence(&error.to_string());
                assert_eq!(Document::parse(data, limits).err(), Some(error));
                continue;
            }
        };
        let root = document.root();
        assert_eq!(root.raw(), &data[..used]);
        assert_eq!(Document::parse(data, limits).is_ok(), used == data.len());
        assert!(document.token_count() <= limits.tokens_max(data.len()));
        let (mut written, mut count) = (Encoder::new(), 0);
        write(root, limits.depth + 1, &mut written, &mut count);
        assert_eq!(count, document.token_count());
        // There is one form of each value, but for the order of keys.
        let written = written.finish();
        assert_eq!(written.len(), used);
        let again = [&written[..], &data[used..]].concat();
        let (document, used_again) = Document::parse_prefix(&again, limits).unwrap();
        assert_eq!(used_again, used);
        let mut twice = Encoder::new();
        write(document.root(), limits.depth + 1, &mut twice, &mut 0);
        assert_eq!(twice.finish(), written);
    }
    assert_sentence(&excerpt(data));
}

/// Writes a value and counts its tokens; `depth` is how many levels there may be, its own included.
fn write(value: Value<'_>, depth: usize, out: &mut Encoder, count: &mut usize) {
    assert!(depth > 0, "deeper than allowed");
    *count += 1;
    match value.kind() {
        Kind::Int => {
            assert!(value.as_bytes().is_none() && value.as_list().is_none());
            out.int(value.as_int().expect("an integer has a value"));
        }
        Kind::Bytes => {
            assert!(value.as_int().is_none() && value.as_dict().is_none());
            out.bytes(value.as_bytes().expect("a string has bytes"));
        }
        Kind::List => {
            let list = value.as_list().expect("a list has elements");
            out.list(|out| list.for_each(|element| write(element, depth - 1, out, count)));
        }
        Kind::Dict => {
            let dict = value.as_dict().expect("a dictionary has pairs");
            out.dict(|out| {
                for (key, element) in dict.iter() {
                    let found = dict.get(key).expect("a key that is there is found");
                    assert_eq!(found.offset(), element.offset());
                    *count += 1;
                    out.pair(key, |out| write(element, depth - 1, out, count));
                }
            });
        }
    }
}

pub(super) fn scan_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        "i0e",
        "i-9223372036854775808e",
        "i9223372036854775807e",
        "i-0e",
        "i007e",
        "0:",
        "4:spam",
        "99999999999:x",
        "le",
        "l4:spami42elee",
        "de",
        "d3:bar4:spam3:fooi42ee",
        "d1:bi1e1:ai2ee",
        "d1:ai1e1:ai2ee",
        "d1:ae",
        "di1ei2ee",
        "d8:msg_typei1e5:piecei0eetail",
        "",
    ]);
    seeds.push([b"l".repeat(40), b"e".repeat(40)].concat());
    seeds.push([&b"l"[..], &b"le".repeat(1500), b"e"].concat());
    seeds
}

/// A value before it is written.
enum Tree {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Tree>),
    Dict(BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    fn read(input: &mut Input<'_>, depth: u32) -> Self {
        let kind = input.below(if depth == 0 { 2 } else { 4 });
        match kind {
            0 => Self::Int(i64::from_be_bytes(input.array())),
            1 => Self::Bytes(input.short().to_vec()),
            2 => Self::List((0..input.below(5)).map(|_| Self::read(input, depth - 1)).collect()),
            _ => {
                let pair = |_| (input.short().to_vec(), Self::read(input, depth - 1));
                let count = 3;
                Self::Dict((0..count).map(pair).collect())
            }
        }
    }

    /// Keys in the order that they do not have to have.
    fn write(&self, out: &mut Encoder) {
        match self {
            Self::Int(value) => drop(out.int(*value)),
            Self::Bytes(bytes) => drop(out.bytes(bytes)),
            Self::List(list) => drop(out.list(|out| list.iter().for_each(|it| it.write(out)))),
            Self::Dict(dict) => drop(out.dict(|out| {
                for (key, value) in dict.iter().rev() {
                    out.pair(key, |out| value.write(out));
                }
            })),
        }
    }

    fn is(&self, value: Value<'_>) -> bool {
        match self {
            Self::Int(expected) => value.as_int() == Some(*expected),
            Self::Bytes(expected) => value.as_bytes() == Some(expected),
            Self::List(expected) => {
                let found: Vec<_> = value.as_list().into_iter().flatten().collect();
                found.len() == expected.len()
                    && expected.iter().zip(found).all(|(tree, value)| tree.is(value))
            }
            Self::Dict(expected) => {
                let found: Vec<_> = value.as_dict().iter().flat_map(|it| it.iter()).collect();
                found.len() == expected.len()
                    && expected
                        .iter()
                        .zip(found)
                        .all(|((key, tree), (name, value))| key == name && tree.is(value))
            }
        }
    }
}

/// Writes a value made of the input, and reads it.
pub(super) fn encode(data: &[u8]) {
    let tree = Tree::read(&mut Input(data), 6);
    let mut out = Encoder::new();
    tree.write(&mut out);
    let written = out.finish();
    let document = Document::parse(&written, &Limits::TORRENT).unwrap();
    assert!(tree.is(document.root()), "{}", written.escape_ascii());
}

pub(super) fn encode_seeds() -> Vec<Vec<u8>> {
    let int = |value: i64| Script::default().bytes(&[0]).bytes(&value.to_be_bytes()).0;
    let text = Script::default().bytes(&[1]).short(b"spam").0;
    let list = Script::default().bytes(&[2, 2]).bytes(&int(i64::MIN)).bytes(&text).0;
    let dict = Script::default().bytes(&[3]).short(b"b").bytes(&list).short(b"a").bytes(&text);
    let dict = dict.short(b"").bytes(&int(-1)).0;
    vec![int(0), text, list, dict]
}
