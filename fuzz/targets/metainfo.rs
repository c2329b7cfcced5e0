//! `.torrent` files: what they say, and what their names become on disk.

use std::collections::BTreeSet;
use std::path::{Component, PathBuf};

use seedring::bencode::Encoder;
use seedring::metainfo::{
    COLLISIONS_MAX, Error, Metainfo, NAME_LEN_MAX, NODES_MAX, PATH_DEPTH_MAX, PATH_LEN_MAX,
    TIERS_MAX, TRACKERS_MAX, WARNINGS_MAX, WEB_SEEDS_MAX, magnet::Magnet,
};
use seedring::units::{InfoHash, PieceIndex};
use sha1::{Digest, Sha1};
use url::Url;

use super::{Input, Script, assert_sentence};

/// Longest URL that anything is connected to.
pub(super) const URL_LEN_MAX: usize = 2048;

/// A whole file.
pub(super) fn torrent(data: &[u8]) {
    let metainfo = match Metainfo::parse(data) {
        Ok(metainfo) => metainfo,
        Err(error) => {
            assert_sentence(&error.to_string());
            return assert!(!error.label().is_empty());
        }
    };
    assert_eq!(metainfo.raw()[..], *data);
    assert_eq!(metainfo.info_hash, InfoHash(Sha1::digest(metainfo.raw_info()).into()));
    assert_eq!(metainfo.shared_info()[..], *metainfo.raw_info());
    check_paths(&metainfo);
    check_layout(&metainfo);
    check_addresses(&metainfo);
    // The same torrent by way of a link and of peers.
    let magnet = metainfo.magnet();
    assert_eq!(magnet.info_hash, metainfo.info_hash);
    let fetched = magnet.metainfo(metainfo.raw_info()).unwrap();
    assert_eq!(fetched.info_hash, metainfo.info_hash);
    assert_eq!((fetched.geometry, &fetched.layout), (metainfo.geometry, &metainfo.layout));
    assert_eq!(fetched.private, metainfo.private);
    let trackers =
        |metainfo: &Metainfo| -> Vec<Url> { metainfo.trackers.iter().flatten().cloned().collect() };
    assert_eq!(trackers(&fetched).get(..TIERS_MAX), trackers(&metainfo).get(..TIERS_MAX));
    assert_eq!(fetched.web_seeds, metainfo.web_seeds);
    let link = magnet.to_string();
    if link.len() <= seedring::metainfo::magnet::LINK_LEN_MAX {
        assert_eq!(Magnet::parse(&link), Ok(magnet));
    }
}

/// No path leads out, none is another one's, and no file is a directory.
fn check_paths(metainfo: &Metainfo) {
    assert_eq!(metainfo.layout.name(), metainfo.name);
    let mut on_disk: BTreeSet<PathBuf> = BTreeSet::new();
    for file in metainfo.layout.files() {
        let path = file.path();
        let is_safe = |component: Component<'_>| match component {
            Component::Normal(name) => (1..=NAME_LEN_MAX).contains(&name.len()),
            _ => false,
        };
        assert!(path.components().all(is_safe), "{path:?}");
        let text = path.to_str().unwrap();
        assert!(text.split('/').all(|name| !matches!(name, "" | "." | "..")), "{text:?}");
        assert!(!text.contains(char::is_control) && text.len() <= PATH_LEN_MAX, "{text:?}");
        assert!(text.split('/').count() <= PATH_DEPTH_MAX, "{text:?}");
        assert!(path.starts_with(&metainfo.name), "{path:?}");
        if file.is_on_disk() {
            assert!(on_disk.insert(path.clone()), "{text:?} twice");
        }
    }
    for path in &on_disk {
        assert!(path.ancestors().skip(1).all(|parent| !on_disk.contains(parent)), "{path:?}");
    }
}

/// The files cover the torrent, and so do the pieces.
fn check_layout(metainfo: &Metainfo) {
    let (layout, geometry) = (&metainfo.layout, &metainfo.geometry);
    assert_eq!(layout.total_len(), geometry.total_len());
    assert_eq!(metainfo.piece_hashes().len(), geometry.piece_count() as usize);
    assert!(metainfo.piece_hash(PieceIndex(geometry.piece_count())).is_none());
    let mut end = 0;
    for file in layout.files() {
        assert_eq!(file.start, end);
        end += file.len;
    }
    assert_eq!(end, layout.total_len());
    for piece in (0..geometry.piece_count().min(64)).map(PieceIndex) {
        let (start, len) = (geometry.piece_start(piece), u64::from(geometry.piece_len(piece)));
        let mut at = start;
        for extent in layout.extents(start, len) {
            let file = layout.file(extent.file).unwrap();
            assert!(extent.len > 0 && extent.offset + extent.len <= file.len);
            assert_eq!(file.start + extent.offset, at);
            at += extent.len;
        }
        assert_eq!(at, start + len);
    }
    assert_eq!(layout.extents(layout.total_len(), u64::MAX).next(), None);
}

/// Lists have an end, URLs lead where they may, and what is shown is fit for it.
fn check_addresses(metainfo: &Metainfo) {
    assert!(metainfo.trackers.len() <= TIERS_MAX && metainfo.nodes.len() <= NODES_MAX);
    assert!(metainfo.trackers.iter().flatten().count() <= TRACKERS_MAX);
    assert!(metainfo.web_seeds.len() <= WEB_SEEDS_MAX);
    assert!(metainfo.warnings.len() <= WARNINGS_MAX);
    metainfo.warnings.iter().for_each(|warning| assert_sentence(warning));
    metainfo.trackers.iter().flatten().for_each(|url| check_url(url, &["http", "https", "udp"]));
    metainfo.web_seeds.iter().for_each(|url| check_url(url, &["http", "https"]));
    assert!(metainfo.nodes.iter().all(|(host, port)| !host.is_empty() && *port != 0));
    let shown = [&metainfo.original_name, &metainfo.created_by];
    let originals = metainfo.original_paths().map(|(_, path)| path);
    for text in shown.into_iter().flatten().map(String::as_str).chain(originals) {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
    assert!(metainfo.creation_date.is_none_or(|seconds| seconds >= 0));
}

pub(super) fn check_url(url: &Url, schemes: &[&str]) {
    assert!(schemes.contains(&url.scheme()), "{url}");
    assert!(url.host_str().is_some_and(|host| !host.is_empty()), "{url}");
    assert!(url.port_or_known_default().is_some_and(|port| port != 0), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    assert!(url.as_str().len() <= URL_LEN_MAX, "{} bytes", url.as_str().len());
    assert!(!url.as_str().contains(char::is_control), "{url}");
    assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(url));
}

/// A directory `t` with files of these lengths under these names.
pub(super) fn directory(files: &[(u64, &[&[u8]])], piece_len: u32, attr: &str) -> Vec<u8> {
    let total: u64 = files.iter().map(|(len, _)| len).sum();
    let count = usize::try_from(total.div_ceil(piece_len.into())).unwrap();
    let mut out = Encoder::new();
    out.dict(|root| {
        root.dict(b"info", |info| {
            info.list(b"files", |list| {
                for (len, names) in files {
                    list.dict(|file| {
                        file.int(b"length", i64::try_from(*len).unwrap());
                        file.list(b"path", |path| {
                            names.iter().for_each(|name| {
                                path.bytes(name);
                            });
                        });
                        if !attr.is_empty() {
                            file.bytes(b"attr", attr.as_bytes());
                        }
                    });
                }
            });
            info.bytes(b"name", b"t").int(b"piece length", piece_len.into());
            info.bytes(b"pieces", &vec![7; 20 * count]);
        });
    });
    out.finish()
}

pub(super) fn torrent_seeds() -> Vec<Vec<u8>> {
    let mut everything = Encoder::new();
    everything.dict(|root| {
        root.bytes(b"announce", b"http://t.example/announce?k=1");
        root.list(b"announce-list", |tiers| {
            tiers.list(|tier| {
                tier.bytes(b"udp://t.example:80/a").bytes(b"https://[2001:db8::1]:443/");
            });
            tiers.list(|tier| {
                tier.bytes(b"file:///etc/passwd").bytes(b"http://u:p@x/").bytes(b"");
            });
        });
        root.bytes(b"comment", b"some\x1bwords")
            .bytes(b"created by", b"us")
            .int(b"creation date", 5);
        root.list(b"nodes", |nodes| {
            nodes.list(|node| {
                node.bytes(b"router.example").int(6881);
            });
        });
        root.list(b"url-list", |urls| {
            urls.bytes(b"http://w.example/").bytes(b"ftp://w/");
        });
        root.dict(b"info", |info| {
            info.int(b"length", 40_000).bytes(b"name", b"one.bin").int(b"piece length", 16_384);
            info.int(b"private", 1).bytes(b"pieces", &[1; 60]);
            info.bytes(b"name.utf-8", "é\u{202e}n".as_bytes());
        });
    });
    let data: &[(u64, &[&[u8]])] = &[(0, &[b"empty"]), (100, &[b"a", b"b.txt"]), (70_000, &[b"c"])];
    let taken: &[(u64, &[&[u8]])] =
        &[(1, &[b"x"]), (1, &[b"x"]), (1, &[b"x", b"y"]), (1, &[b"x.1"])];
    let bad: &[(u64, &[&[u8]])] = &[(1, &[b"..", b"x"])];
    let odd: &[(u64, &[&[u8]])] = &[(1, &[b"a\r\nb\xff"]), (1, &[b"_____padding_file_0"])];
    // Longer by what is not ASCII in it than it may be.
    let long = format!("http://t.example/{}", "é".repeat(900));
    let mut stretched = Encoder::new();
    stretched.dict(|root| {
        root.bytes(b"announce", long.as_bytes());
        root.dict(b"info", |info| {
            info.int(b"length", 0).bytes(b"name", b"n").int(b"piece length", 1);
            info.bytes(b"pieces", b"");
        });
    });
    vec![
        everything.finish(),
        stretched.finish(),
        directory(data, 32_768, ""),
        directory(taken, 1, "x"),
        directory(bad, 16_384, ""),
        directory(odd, 16_384, ""),
        directory(data, 16_384, "p"),
        directory(&[(0, &[b"l"])], 16_384, "l"),
        b"d4:infod9:file treede12:meta versioni2e4:name1:nee".to_vec(),
    ]
}

/// Names of the input as names of files: safe ones are taken as they are.
pub(super) fn paths(data: &[u8]) {
    let mut input = Input(data);
    let attr = ["", "p", "l", "x"][input.below(4)];
    let mut files: Vec<Vec<&[u8]>> = Vec::new();
    while !input.is_empty() && files.len() < 64 {
        let depth = input.below(6);
        files.push((0..depth).map(|_| input.short()).collect());
    }
    let listed: Vec<(u64, &[&[u8]])> = files.iter().map(|names| (0, &names[..])).collect();
    let parsed = Metainfo::parse(&directory(&listed, 16_384, attr));
    let is_plain =
        |name: &&[u8]| (1..=40).contains(&name.len()) && name.iter().all(u8::is_ascii_alphanumeric);
    let all_plain = files.iter().all(|it| !it.is_empty() && it.iter().all(is_plain));
    let metainfo = match parsed {
        Ok(metainfo) => metainfo,
        Err(error) => {
            assert!(!all_plain || files.is_empty(), "{error}");
            assert_sentence(&error.to_string());
            return assert!(!matches!(error, Error::Bencode(_) | Error::TotalLength { .. }));
        }
    };
    check_paths(&metainfo);
    check_addresses(&metainfo);
    let mut renamed = 0;
    for (index, names) in files.iter().enumerate() {
        let file = metainfo.layout.file(index).unwrap();
        let said = names.join(&b'/');
        if metainfo.original_path(index).is_none() && !names.is_empty() {
            assert_eq!(file.below.as_bytes(), said, "a change that nobody is told of");
        } else if names.iter().all(is_plain) {
            renamed += 1;
        }
    }
    assert!(renamed <= COLLISIONS_MAX);
    // The same torrent gets the same names, wherever and whenever.
    let again = Metainfo::parse(metainfo.raw()).unwrap();
    assert_eq!(again.layout, metainfo.layout);
}

pub(super) fn paths_seeds() -> Vec<Vec<u8>> {
    let one = |names: &[&[u8]]| {
        let depth = u8::try_from(names.len()).unwrap();
        let head = Script::default().bytes(&[0, depth]);
        names.iter().fold(head, |script, name| script.short(name)).0
    };
    let long = format!("{}.tar.gz", "日".repeat(80));
    let mut seeds: Vec<Vec<u8>> = [
        &[&b"a"[..], b"b", b"c.txt"][..],
        &[b".."],
        &[b"."],
        &[b""],
        &[b"a/b"],
        &[b"/etc", b"passwd"],
        &[b"a\0b"],
        &[b"..."],
        &[b"C:\\x"],
        &["exe.\u{202e}gpj".as_bytes()],
        &[b"\xff\xfe"],
        &[long.as_bytes()],
    ]
    .map(one)
    .into();
    let twice = Script::default().bytes(&[0, 1]).short(b"a").bytes(&[1]).short(b"a");
    let twice = twice.bytes(&[2]).short(b"a").short(b"b").bytes(&[1]).short(b"a.1").0;
    seeds.push(twice);
    seeds
}
