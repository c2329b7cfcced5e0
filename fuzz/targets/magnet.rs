//! Magnet links, and files that hold one.

use seedring::metainfo::magnet::{LINK_LEN_MAX, Magnet, PEERS_MAX};
use seedring::metainfo::{TRACKERS_MAX, WARNINGS_MAX, WEB_SEEDS_MAX};

use super::metainfo::check_url;
use super::{assert_sentence, texts};

const HASH: &str = "c9e15763f722f23e98a29decdfae341b98d53056";

/// The input as a link, and as what stands behind the hash of a good one.
pub(super) fn link(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for link in [text.clone().into_owned(), format!("magnet:?xt=urn:btih:{HASH}&{text}")] {
        match Magnet::parse(&link) {
            Ok(magnet) => check(&link, magnet),
            Err(error) => {
                assert_sentence(&error.to_string());
                assert!(!error.label().is_empty());
            }
        }
    }
}

fn check(link: &str, magnet: Magnet) {
    assert!(Magnet::is_link(link));
    assert!(magnet.trackers.len() <= TRACKERS_MAX && magnet.web_seeds.len() <= WEB_SEEDS_MAX);
    assert!(magnet.peers.len() <= PEERS_MAX && magnet.warnings.len() <= WARNINGS_MAX);
    magnet.warnings.iter().for_each(|warning| assert_sentence(warning));
    magnet.trackers.iter().for_each(|url| check_url(url, &["http", "https", "udp"]));
    magnet.web_seeds.iter().for_each(|url| check_url(url, &["http", "https"]));
    assert!(magnet.peers.iter().all(|peer| peer.port != 0));
    if let Some(files) = &magnet.files {
        let ranges = files.ranges();
        assert!(ranges.iter().all(|(first, last)| first <= last));
        assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "they touch");
        for &(first, last) in ranges {
            assert!(files.contains(first as usize) && files.contains(last as usize));
            assert!(first == 0 || !files.contains(first as usize - 1));
        }
        assert_eq!(files.to_string().parse().as_ref(), Ok(files));
    }
    let written = magnet.to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b":?=&%-._~,".contains(&byte);
    assert!(written.bytes().all(is_plain), "{written}");
    if written.len() <= LINK_LEN_MAX {
        assert_eq!(Magnet::parse(&written), Ok(Magnet { warnings: Vec::new(), ..magnet }));
    }
}

/// The input as a `.magnet` file.
pub(super) fn file(data: &[u8]) {
    match Magnet::parse_file(data) {
        Ok(magnet) => {
            let text = std::str::from_utf8(data).unwrap();
            let line = text.trim_start_matches('\u{feff}').trim();
            assert_eq!(Magnet::parse(line).as_ref(), Ok(&magnet));
            check(line, magnet);
        }
        Err(error) => assert_sentence(&error.to_string()),
    }
}

pub(super) fn link_seeds() -> Vec<Vec<u8>> {
    let mut seeds = texts([
        "dn=a+b&tr=http%3A%2F%2Ft%2Fa&tr.1=udp://t:2&ws=https://w/&x.pe=1.2.3.4:5&so=1,3-4",
        "x.pe=[2001:db8::1]:6&x.pe=Host.example:7&x.pe=h:0&zz=%",
        "xt=urn:btmh:1220aa&xt.2=urn:sha1:X",
        "xt=urn:btih:ZHQVOY7XELZD5GFCTXWN7LRUDOMNKMCW",
        "so=4294967295,0-4294967294&so=9-1",
        "tr=http://t.example/a b?c=d%20e&tr=HTTP://T.EXAMPLE:80/&tr=udp://[::1]:1/%zz",
        "amp;dn=%ff%fe&tr=file:///etc/passwd&ws=udp://x:1",
        "magnet:?xt=urn:btmh:1220aa",
        "magnet:?xt=urn:btih:00",
        "http://x/",
    ]);
    seeds.push(format!("MAGNET:?dn=n&XT=x&xt=URN:BTIH:{}", HASH.to_uppercase()).into_bytes());
    // Longer by what is not ASCII in it than it may be.
    seeds.push(format!("tr=http://t.example/{}", "é".repeat(900)).into_bytes());
    seeds
}

pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    let link = format!("magnet:?xt=urn:btih:{HASH}&dn=x");
    let mut seeds = texts(["", " \n", "d4:infoe"]);
    seeds.extend([
        format!("{link}\n").into_bytes(),
        format!("\u{feff}\r\n  {link}\t\r\n\n").into_bytes(),
        format!("{link}\n{link}").into_bytes(),
        vec![0xff, 0xfe],
    ]);
    seeds
}
