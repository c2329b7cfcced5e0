//! Links that are read, refused and written again.

use super::*;

const HASH: &str = "c9e15763f722f23e98a29decdfae341b98d53056";

fn parse(rest: &str) -> Magnet {
    Magnet::parse(&format!("magnet:?xt=urn:btih:{HASH}{rest}")).unwrap()
}

fn label(text: &str) -> &'static str {
    let error = Magnet::parse(text).unwrap_err();
    assert!(error.to_string().len() < 200, "{error}");
    error.label()
}

#[test]
fn names_and_trackers_survive_any_reader() {
    let name = "100% ü&x=1#frag+日本\n";
    let tracker = "http://t.example/announce?key=a&b=c%20d";
    let magnet = Magnet {
        name: Some(name.to_owned()),
        trackers: vec![tracker.parse().unwrap(), "udp://u:1".parse().unwrap()],
        ..Magnet::new(InfoHash([0xab; 20]))
    };
    let link = magnet.to_string();
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
    assert_eq!(Magnet::parse(&link), Ok(magnet));
}

#[test]
fn everything_a_link_can_say_is_kept() {
    let magnet = parse(
        "&xt=urn:btmh:1220aa&xt.2=urn:sha1:X&dn=a+b&tr=http%3A%2F%2Ft%2Fa&tr.1=udp://t:2\
         &ws=https://w/&x.pe=1.2.3.4:5&x.pe=[2001:db8::1]:6&x.pe=Host.example:7&so=1,3-4&zz=%",
    );
    assert_eq!(magnet.info_hash.to_string(), HASH);
    assert_eq!(magnet.name.as_deref(), Some("a b"));
    let urls: Vec<&str> = magnet.trackers.iter().map(Url::as_str).collect();
    assert_eq!(urls, ["http://t/a", "udp://t:2"]);
    assert_eq!(magnet.web_seeds[0].as_str(), "https://w/");
    let peers: Vec<String> = magnet.peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["1.2.3.4:5", "[2001:db8::1]:6", "host.example:7"]);
    assert_eq!(magnet.peers[1].addr(), "[2001:db8::1]:6".parse().ok());
    assert_eq!(magnet.peers[2].addr(), None);
    assert_eq!(magnet.files.as_ref().unwrap().to_string(), "1,3-4");
    assert_eq!(magnet.warnings, [""; 0]);
    assert_eq!(Magnet::parse(&magnet.to_string()), Ok(magnet));
}

#[test]
fn both_forms_of_the_hash_are_read() {
    // The same bytes, by another program's base32.
    let base32 = "ZHQVOY7XELZD5GFCTXWN7LRUDOMNKMCW";
    for digits in [HASH, &HASH.to_uppercase(), base32, &base32.to_lowercase()] {
        let link = format!("MAGNET:?dn=&XT=x&xt=URN:BTIH:{digits}");
        assert_eq!(Magnet::parse(&link).unwrap().info_hash.to_string(), HASH);
    }
    assert_eq!(Magnet::parse(&format!("magnet:?a=1&amp;xt=urn:btih:{HASH}")), Ok(parse("")));
}

#[test]
fn what_is_no_link_is_refused() {
    assert_eq!(label(""), "not_a_magnet");
    assert_eq!(label("http://x/?xt=urn:btih:00"), "not_a_magnet");
    assert_eq!(label("magnet:"), "not_a_magnet");
    assert_eq!(label("magnet:?"), "magnet_without_hash");
    assert_eq!(label("magnet:?xt=urn:sha1:abc&dn=x"), "magnet_without_hash");
    assert_eq!(label("magnet:?xt=urn:btmh:1220aa"), "magnet_v2_only");
    for digits in ["", "00", &HASH[1..], &format!("{HASH}0"), &"1".repeat(32), "é", "%%%"] {
        assert_eq!(label(&format!("magnet:?xt=urn:btih:{digits}")), "magnet_hash", "{digits}");
    }
    let two = format!("magnet:?xt=urn:btih:{HASH}&xt=urn:btih:{}", "00".repeat(20));
    assert_eq!(label(&two), "magnet_two_hashes");
    assert_eq!(label(&format!("magnet:?xt=urn:btih:{HASH}&so=9-1")), "magnet_selection");
    assert_eq!(label(&format!("magnet:?dn={}", "x".repeat(1 << 20))), "magnet_too_long");
    assert_eq!(label(&format!("magnet:?{}", "a=&".repeat(5000))), "magnet_parameters");
}

#[test]
fn lists_have_an_end_and_warnings() {
    let many: String = (0..70).map(|port| format!("&x.pe=h:{}", port + 1)).collect();
    let magnet = parse(&format!("{many}&x.pe=h:0&x.pe=h&x.pe=::1:5&x.pe=a%20b:1&x.pe=h:+1"));
    assert_eq!(magnet.peers.len(), PEERS_MAX);
    assert_eq!(magnet.warnings.len(), 6 + 5);
    let many: String = (0..300).map(|port| format!("&tr=udp://t:{}", port + 1)).collect();
    assert_eq!(parse(&many).trackers.len(), TRACKERS_MAX);
    let many: String = (0..40).map(|port| format!("&ws=http://t:{}", port + 1)).collect();
    assert_eq!(parse(&many).web_seeds.len(), WEB_SEEDS_MAX);
    let magnet =
        parse("&tr=file:///etc/passwd&ws=udp://x:1&tr=http://u:p@x/&tr=&tr=http://a%0d%0a/");
    assert!(magnet.trackers.is_empty() && magnet.web_seeds.is_empty());
    assert_eq!(magnet.warnings.len(), 4, "{:?}", magnet.warnings);
}

#[test]
fn files_hold_one_link() {
    let link = format!("magnet:?xt=urn:btih:{HASH}");
    for text in [format!("{link}\n"), format!("\u{feff}\r\n  {link}\t\r\n\n"), link.clone()] {
        assert_eq!(Magnet::parse_file(text.as_bytes()), Ok(parse("")), "{text:?}");
    }
    let label = |bytes: &[u8]| Magnet::parse_file(bytes).unwrap_err().label();
    assert_eq!(label(b""), "magnet_empty");
    assert_eq!(label(b" \n"), "magnet_empty");
    assert_eq!(label(&[0xff, 0xfe]), "magnet_not_text");
    assert_eq!(label(format!("{link}\n{link}").as_bytes()), "magnet_lines");
    assert_eq!(label(b"d4:infoe"), "not_a_magnet");
    assert_eq!(label(&vec![b' '; 1 << 20]), "magnet_too_long");
}

#[test]
fn a_link_and_its_metadata_make_a_torrent() {
    let mut info = Encoder::new();
    info.dict(|dict| {
        dict.int(b"length", 1).bytes(b"name", b"n").int(b"piece length", 16_384);
        dict.bytes(b"pieces", &[0; 20]);
    });
    let info = info.finish();
    let magnet = parse("&tr=udp://a:1&tr=udp://b:2&ws=http://w/");
    let metainfo = magnet.metainfo(&info).unwrap();
    assert_eq!(metainfo.raw_info(), info);
    assert_eq!((metainfo.trackers.len(), metainfo.web_seeds.len()), (2, 1));
    assert!(magnet.metainfo(b"i1e").is_err());
    let link = metainfo.magnet();
    assert_eq!(link.info_hash, metainfo.info_hash);
    assert_eq!((link.trackers, link.name.as_deref()), (magnet.trackers, Some("n")));
}

#[test]
fn all_trackers_of_a_link_are_in_its_torrent() {
    let mut info = Encoder::new();
    info.dict(|dict| {
        dict.int(b"length", 1).bytes(b"name", b"n").int(b"piece length", 16_384);
        dict.bytes(b"pieces", &[0; 20]);
    });
    let info = info.finish();
    for count in [1, TIERS_MAX, TIERS_MAX + 1, TRACKERS_MAX] {
        let many: String = (0..count).map(|port| format!("&tr=udp://t:{}", port + 1)).collect();
        let magnet = parse(&many);
        let metainfo = magnet.metainfo(&info).unwrap();
        let tiers: Vec<&[Url]> = metainfo.trackers.iter().map(Vec::as_slice).collect();
        assert_eq!(tiers, magnet.tiers().collect::<Vec<_>>());
        assert_eq!(tiers.concat(), magnet.trackers, "{count}");
    }
}

#[test]
fn the_longest_links_are_read_again_as_they_are_stored() {
    let front = format!("magnet:?xt=urn:btih:{HASH}");
    let name = "é".repeat(LINK_LEN_MAX / 2 - 50);
    let trackers = |filler: &str| -> String {
        (0..50).map(|port| format!("&tr=udp://t:{}/{}x", port + 1, filler.repeat(100))).collect()
    };
    for rest in [format!("&dn={name}"), trackers("é"), trackers("+"), trackers(" ")] {
        let magnet = Magnet::parse(&format!("{front}{rest}")).unwrap();
        let stored = magnet.to_string();
        assert!(stored.len() > LINK_LEN_MAX, "{}", stored.len());
        assert_eq!(Magnet::parse_stored(&stored), Ok(magnet));
    }
}

#[test]
fn no_text_breaks_the_reader() {
    proptest::proptest!(|(text in ".{0,200}", bytes: Vec<u8>)| {
        if let Ok(magnet) = Magnet::parse(&format!("magnet:?xt=urn:btih:{HASH}&{text}")) {
            let again = Magnet::parse(&magnet.to_string()).unwrap();
            proptest::prop_assert_eq!(Magnet { warnings: Vec::new(), ..magnet }, again);
        }
        drop((Magnet::parse(&text), Magnet::parse_file(&bytes)));
    });
}
