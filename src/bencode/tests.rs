//! The rules of the decoder: a table, hostile sizes, and two other decoders as oracles.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_bencode::value::Value as Oracle;

use super::*;

const WIDE: Limits = Limits { depth: 32, tokens: 1 << 20, bytes: 10 << 20 };

fn label(input: &[u8]) -> &'static str {
    match Document::parse(input, &WIDE) {
        Ok(_) => "ok",
        Err(error) => error.label(),
    }
}

#[test]
fn every_form_has_one_verdict() {
    let table: &[(&[u8], &str)] = &[
        (b"i0e", "ok"),
        (b"i-1e", "ok"),
        (b"i9223372036854775807e", "ok"),
        (b"i-9223372036854775808e", "ok"),
        (b"0:", "ok"),
        (b"le", "ok"),
        (b"de", "ok"),
        (b"d0:i1ee", "ok"),
        (b"d1:bi1e1:ai2ee", "ok"),
        (b"d1:ad1:ai1ee1:bd1:ai1eee", "ok"),
        (b"", "bencode_unexpected_end"),
        (b"l", "bencode_unexpected_end"),
        (b"d1:a", "bencode_unexpected_end"),
        (b"i", "bencode_unexpected_end"),
        (b"i-", "bencode_unexpected_end"),
        (b"i12", "bencode_unexpected_end"),
        (b"12", "bencode_unexpected_end"),
        (b"e", "bencode_unexpected_byte"),
        (b"x", "bencode_unexpected_byte"),
        (b"-1:a", "bencode_unexpected_byte"),
        (b"lxe", "bencode_unexpected_byte"),
        (b"ie", "bencode_integer_form"),
        (b"i-e", "bencode_integer_form"),
        (b"i-0e", "bencode_integer_form"),
        (b"i00e", "bencode_integer_form"),
        (b"i007e", "bencode_integer_form"),
        (b"i-01e", "bencode_integer_form"),
        (b"i+5e", "bencode_integer_form"),
        (b"i1.5e", "bencode_integer_form"),
        (b"i 1e", "bencode_integer_form"),
        (b"i--1e", "bencode_integer_form"),
        (b"i9223372036854775808e", "bencode_integer_range"),
        (b"i-9223372036854775809e", "bencode_integer_range"),
        (b"i18446744073709551615e", "bencode_integer_range"),
        (b"i99999999999999999999e", "bencode_integer_range"),
        (b"00:", "bencode_length_form"),
        (b"03:abc", "bencode_length_form"),
        (b"3abc", "bencode_length_form"),
        (b"18446744073709551615:abc", "bencode_length_form"),
        (b"12345678901:abc", "bencode_length_form"),
        (b"4:abc", "bencode_length_beyond_end"),
        (b"9999999999:abc", "bencode_length_beyond_end"),
        (b"d4:infol18446744073709551595:ee", "bencode_length_form"),
        (b"di1ei1ee", "bencode_key_not_string"),
        (b"dle1:ae", "bencode_key_not_string"),
        (b"d1:ae", "bencode_key_without_value"),
        (b"d1:ai1e1:be", "bencode_key_without_value"),
        (b"d1:ai1e1:ai2ee", "bencode_duplicate_key"),
        (b"d1:ai1e1:bi1e1:ai2ee", "bencode_duplicate_key"),
        (b"d1:bi1e1:ai1e1:ble1:cdee", "bencode_duplicate_key"),
        (b"i1ei2e", "bencode_trailing_bytes"),
        (b"de\n", "bencode_trailing_bytes"),
        (b"lee", "bencode_trailing_bytes"),
    ];
    for (input, expected) in table {
        assert_eq!(label(input), *expected, "{}", excerpt(input));
    }
}

#[test]
fn a_million_levels_end_on_a_small_stack() {
    let run = || {
        for byte in [b'l', b'd'] {
            let input = vec![byte; 1_000_000];
            assert!(Document::parse(&input, &Limits::TORRENT).is_err());
        }
        let nested: Vec<u8> = b"d1:a".repeat(250_000);
        let error = Document::parse(&nested, &Limits::TORRENT).err();
        assert_eq!(error, Some(Error::TooDeep { offset: 32 * 4, max: 32 }));
    };
    let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap();
    thread.join().unwrap();
}

#[test]
fn depth_is_counted_in_open_containers() {
    let nested = |depth: usize| [vec![b'l'; depth], vec![b'e'; depth]].concat();
    assert!(Document::parse(&nested(8), &Limits::KRPC).is_ok());
    assert!(matches!(
        Document::parse(&nested(9), &Limits::KRPC),
        Err(Error::TooDeep { offset: 8, max: 8 })
    ));
}

#[test]
fn a_token_bomb_ends_early_and_a_torrent_of_tiny_files_does_not() {
    let bomb = [b"l".to_vec(), b"le".repeat(3_000_000), b"e".to_vec()].concat();
    let Err(Error::TooManyTokens { max, .. }) = Document::parse(&bomb, &Limits::TORRENT) else {
        panic!("the bomb was accepted");
    };
    assert!(max * 16 <= bomb.len() * 4 + 32 * 1024, "{max} tokens");

    let files = b"d6:lengthi0e4:pathl1:aee".repeat(100_000);
    let dense = [b"l".to_vec(), files, b"e".to_vec()].concat();
    let document = Document::parse(&dense, &Limits::TORRENT).unwrap();
    assert_eq!(document.token_count(), 600_001);
}

#[test]
fn long_inputs_and_long_numbers_are_refused_at_once() {
    let digits = vec![b'1'; 1_000_000];
    assert_eq!(label(&digits), "bencode_length_form");
    assert_eq!(label(&[b"i".to_vec(), digits].concat()), "bencode_integer_range");
    let long = vec![b'l'; Limits::KRPC.bytes + 1];
    assert!(matches!(
        Document::parse(&long, &Limits::KRPC),
        Err(Error::TooLong { len: 2049, max: 2048 })
    ));
}

#[test]
fn a_large_unsorted_dictionary_is_judged_quickly() {
    let mut pairs: Vec<String> = (0..200_000).map(|key| format!("7:{key:07}le")).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut pairs);
    let dict = |pairs: &[String]| format!("d{}e", pairs.concat()).into_bytes();
    assert_eq!(label(&dict(&pairs)), "ok");
    pairs.push("7:0100000le".to_owned());
    assert_eq!(label(&dict(&pairs)), "bencode_duplicate_key");
}

#[test]
fn a_prefix_tells_its_length() {
    let message = b"d8:msg_typei1e5:piecei0eeBLOCK";
    let (document, used) = Document::parse_prefix(message, &Limits::EXTENSION_HANDSHAKE).unwrap();
    assert_eq!(&message[used..], b"BLOCK");
    assert_eq!(document.root().get(b"piece").and_then(|piece| piece.as_int()), Some(0));
}

#[test]
fn cursors_answer_none_for_other_kinds() {
    let document = Document::parse(b"d1:ali1ei2ee1:b1:xe", &WIDE).unwrap();
    let root = document.root();
    let list = root.get(b"a").unwrap();
    assert_eq!(list.as_list().unwrap().filter_map(|item| item.as_int()).sum::<i64>(), 3);
    assert_eq!(list.offset(), 4);
    assert!(list.get(b"a").is_none() && list.as_bytes().is_none() && list.as_int().is_none());
    assert!(root.as_list().is_none() && root.get(b"c").is_none());
    assert_eq!(
        root.as_dict().unwrap().iter().map(|(key, _)| key).collect::<Vec<_>>(),
        [b"a", b"b"]
    );
    assert_eq!(root.get(b"b").unwrap().as_str(), Some("x"));
    assert_eq!(root.as_dict().unwrap().raw().len(), 19);
}

#[test]
fn errors_echo_little_and_escape_it() {
    let key = [b"100000:".to_vec(), vec![0x1b; 100_000]].concat();
    let input = [b"d".as_slice(), &key, b"i1e", &key, b"i1ee"].concat();
    let text = Document::parse(&input, &WIDE).err().unwrap().to_string();
    assert!(text.len() < 500 && !text.contains('\x1b'), "{text}");
}

fn tree(value: Value<'_>) -> Oracle {
    match value.kind() {
        Kind::Int => Oracle::Int(value.as_int().unwrap()),
        Kind::Bytes => Oracle::Bytes(value.as_bytes().unwrap().to_vec()),
        Kind::List => Oracle::List(value.as_list().unwrap().map(tree).collect()),
        Kind::Dict => {
            let pairs = value.as_dict().unwrap();
            Oracle::Dict(pairs.iter().map(|(key, value)| (key.to_vec(), tree(value))).collect())
        }
    }
}

fn write(encoder: &mut Encoder, value: &Oracle) {
    match value {
        Oracle::Int(int) => {
            encoder.int(*int);
        }
        Oracle::Bytes(bytes) => {
            encoder.bytes(bytes);
        }
        Oracle::List(items) => {
            encoder.list(|list| items.iter().for_each(|item| write(list, item)));
        }
        Oracle::Dict(pairs) => {
            encoder.dict(|dict| {
                for (key, value) in pairs {
                    dict.pair(key, |encoder| write(encoder, value));
                }
            });
        }
    }
}

/// Values up to six levels deep.
fn any_value() -> impl Strategy<Value = Oracle> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..12);
    let leaf =
        prop_oneof![any::<i64>().prop_map(Oracle::Int), bytes.clone().prop_map(Oracle::Bytes),];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let pairs = proptest::collection::hash_map(bytes.clone(), inner.clone(), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Oracle::List),
            pairs.prop_map(|pairs: HashMap<_, _>| Oracle::Dict(pairs)),
        ]
    })
}

/// Text that is often bencode, and almost bencode when it is not.
fn almost_bencode() -> impl Strategy<Value = Vec<u8>> {
    let scraps = prop_oneof![
        proptest::sample::select(vec![
            "d",
            "l",
            "e",
            "e",
            "i0e",
            "i-1e",
            "i-0e",
            "i07e",
            "1:a",
            "1:b",
            "0:",
            "2:a",
            "01:a",
            "i9223372036854775808e",
            "d1:ai1ee",
            "le",
        ])
        .prop_map(|scrap| scrap.as_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ];
    proptest::collection::vec(scraps, 0..24).prop_map(|scraps| scraps.concat())
}

/// Whether bendy's token layer takes all of `input` as one value.
fn bendy_accepts(input: &[u8]) -> bool {
    let mut decoder = bendy::decoding::Decoder::new(input).with_max_depth(32);
    let one = match decoder.next_object() {
        Ok(Some(bendy::decoding::Object::List(list))) => list.into_raw().map(<[u8]>::len),
        Ok(Some(bendy::decoding::Object::Dict(dict))) => dict.into_raw().map(<[u8]>::len),
        Ok(Some(bendy::decoding::Object::Integer(digits))) => Ok(digits.len() + 2),
        Ok(Some(bendy::decoding::Object::Bytes(bytes))) => {
            Ok(bytes.len().to_string().len() + 1 + bytes.len())
        }
        Ok(None) => return false,
        Err(error) => Err(error),
    };
    one.is_ok_and(|used| used == input.len())
}

fn is_sorted(value: Value<'_>) -> bool {
    match value.kind() {
        Kind::Dict => {
            let dict = value.as_dict().unwrap();
            dict.iter().map(|(key, _)| key).is_sorted() && dict.iter().all(|pair| is_sorted(pair.1))
        }
        Kind::List => value.as_list().unwrap().all(is_sorted),
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_we_write_we_read_and_so_do_others(value in any_value()) {
        let mut encoder = Encoder::new();
        write(&mut encoder, &value);
        let bytes = encoder.finish();
        prop_assert_eq!(&bytes, &serde_bencode::to_bytes(&value).unwrap());
        prop_assert!(bendy_accepts(&bytes));
        let document = Document::parse(&bytes, &WIDE).unwrap();
        prop_assert_eq!(tree(document.root()), value);
        prop_assert_eq!(document.root().raw(), &bytes[..]);
    }

    #[test]
    fn we_agree_with_others_where_the_rules_are_the_same(input in almost_bencode()) {
        match Document::parse(&input, &WIDE) {
            Ok(document) => {
                prop_assert_eq!(bendy_accepts(&input), is_sorted(document.root()));
                let oracle: Oracle = serde_bencode::from_bytes(&input).unwrap();
                prop_assert_eq!(tree(document.root()), oracle);
            }
            // Integers of any size are bendy's rule.
            Err(Error::IntegerRange { .. }) => {}
            Err(error) => prop_assert!(!bendy_accepts(&input), "{}", error),
        }
    }

    #[test]
    fn mutations_never_panic(value in any_value(), position: usize, byte: u8) {
        let mut bytes = serde_bencode::to_bytes(&value).unwrap();
        let index = position % bytes.len();
        bytes[index] = byte;
        if let Ok(document) = Document::parse(&bytes, &WIDE) {
            let _ = tree(document.root());
        }
    }
}
