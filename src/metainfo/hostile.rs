//! Hostile and odd torrents, each with its verdict, and random damage to good ones.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use proptest::prelude::*;
use sha1::{Digest, Sha1};

use super::*;
use crate::bencode::{Encoder, excerpt};

/// A torrent as text of its keys: small and good until keys are replaced.
#[derive(Clone)]
struct Torrent {
    root: BTreeMap<Vec<u8>, Vec<u8>>,
    info: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.bytes(bytes.as_ref());
    encoder.finish()
}

fn list(values: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let values: Vec<Vec<u8>> = values.into_iter().collect();
    [b"l".to_vec(), values.concat(), b"e".to_vec()].concat()
}

fn dict(pairs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let pairs: Vec<u8> =
        pairs.iter().flat_map(|(key, value)| [string(key), value.clone()].concat()).collect();
    [b"d".to_vec(), pairs, b"e".to_vec()].concat()
}

/// A file of a torrent: its length as text, its path, and what stands before and behind.
fn entry(attr: &str, length: &str, path: &[&[u8]], tail: &str) -> Vec<u8> {
    let head = if attr.is_empty() { Vec::new() } else { [string("attr"), string(attr)].concat() };
    let length = if length.is_empty() { String::new() } else { format!("6:lengthi{length}e") };
    let path = [b"4:path".to_vec(), list(path.iter().map(string))].concat();
    [b"d".to_vec(), head, length.into_bytes(), path, tail.into(), b"e".to_vec()].concat()
}

fn file(length: &str, path: &[&[u8]]) -> Vec<u8> {
    entry("", length, path, "")
}

/// One file of 5 bytes called `t`.
fn single() -> Torrent {
    let info = [
        ("length", b"i5e".to_vec()),
        ("name", string("t")),
        ("piece length", b"i16384e".to_vec()),
        ("pieces", string([7; 20])),
    ];
    let info = info.into_iter().map(|(key, value)| (key.into(), value)).collect();
    Torrent { root: BTreeMap::new(), info }
}

/// A directory `t` with these files.
fn multi(files: impl IntoIterator<Item = Vec<u8>>) -> Torrent {
    single().without("length").with("files", list(files))
}

/// A directory `t` with one file of 5 bytes at this path.
fn path(elements: &[&[u8]]) -> Torrent {
    multi([file("5", elements)])
}

impl Torrent {
    fn with(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.info.insert(key.into(), value.into());
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.info.remove(key.as_bytes());
        self
    }

    fn root(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.root.insert(key.into(), value.into());
        self
    }

    /// Pieces to match `count`, of 20 bytes each.
    fn pieces(self, count: usize) -> Self {
        self.with("pieces", string(vec![7; 20 * count]))
    }

    fn bytes(mut self) -> Vec<u8> {
        let info = dict(&self.info);
        self.root.insert(b"info".to_vec(), info);
        dict(&self.root)
    }

    fn parse(self) -> Metainfo {
        Metainfo::parse(&self.bytes()).unwrap()
    }
}

/// Asserts the verdict on each case: `""` if it is taken, else a part of the sentence.
fn judge(table: Vec<(&str, Vec<u8>, &str)>) {
    for (case, bytes, expected) in table {
        match Metainfo::parse(&bytes) {
            Ok(metainfo) => {
                assert_eq!(expected, "", "{case}: was taken");
                check_paths(&metainfo);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(!expected.is_empty() && text.contains(expected), "{case}: {text}");
                assert!(text.len() < 400 && !text.contains(char::is_control), "{case}: {text}");
                assert!(!error.label().is_empty() && !text.ends_with('.'), "{case}: {text}");
            }
        }
    }
}

/// No path may lead out, and no two files on disk may share one or lie inside each other.
fn check_paths(metainfo: &Metainfo) {
    let mut seen = std::collections::BTreeSet::new();
    for file in metainfo.layout.files() {
        let normal = |component: Component<'_>| match component {
            Component::Normal(name) => name.len() <= NAME_LEN_MAX,
            _ => false,
        };
        let path = file.path();
        assert!(path.components().all(normal), "{path:?}");
        assert!(path.starts_with(&metainfo.name), "{path:?}");
        let text = path.to_str().unwrap();
        assert!(!text.contains(char::is_control) && !text.contains("//") && !text.ends_with('/'));
        assert!(text.len() <= PATH_LEN_MAX);
        assert!(!file.is_on_disk() || seen.insert(path.clone()), "{text} twice");
    }
    for path in &seen {
        let parents = path.ancestors().skip(1);
        assert!(parents.into_iter().all(|parent| !seen.contains(parent)), "{path:?}");
    }
    assert_eq!(metainfo.layout.total_len(), metainfo.geometry.total_len());
    assert_eq!(metainfo.piece_hashes().len(), metainfo.geometry.piece_count() as usize);
}

#[test]
fn structure() {
    let good = single().bytes();
    let trailing = [&good[..], b"\n"].concat();
    let cut = good[..good.len() - 1].to_vec();
    let duplicate_root = [b"d4:info", &dict(&single().info)[..], b"4:infodee"].concat();
    let duplicate_info = b"d4:infod6:lengthi5e6:lengthi6e4:name1:tee".to_vec();
    let unsorted = [&b"d4:info"[..], &dict(&single().info), b"8:announce8:http://te"].concat();
    judge(vec![
        ("good", good.clone(), ""),
        ("empty file", vec![], "the file is empty"),
        ("html instead", b"<html>".to_vec(), "unexpected byte 0x3c"),
        ("an integer", b"i1e".to_vec(), "not a dictionary"),
        ("a list", list([good]), "not a dictionary"),
        ("trailing bytes", trailing, "1 bytes follow the value"),
        ("cut short", cut, "ends inside a value"),
        ("nesting", b"l".repeat(1_000_000), "nested deeper than 32"),
        ("nesting in unknown key", single().with("x", b"l".repeat(100_000)).bytes(), "nested"),
        (
            "token bomb",
            [b"l".to_vec(), b"le".repeat(3_000_000), b"e".to_vec()].concat(),
            "more than",
        ),
        ("11 MB", vec![b'l'; 11 << 20], "more than the 10485760 allowed"),
        ("length 2^64-1", b"d4:info18446744073709551615:abce".to_vec(), "malformed length"),
        ("length 10^10-1", b"d4:info9999999999:abce".to_vec(), "claims 9999999999 bytes"),
        ("length 10^6 digits", b"1".repeat(1_000_000), "malformed length"),
        ("duplicate info", duplicate_root, "\"info\" at byte"),
        ("duplicate length", duplicate_info, "\"length\" at byte"),
        ("unsorted keys", unsorted, ""),
        ("no info", b"de".to_vec(), "has no \"info\""),
        ("info is a list", b"d4:infolee".to_vec(), "\"info\" is not a dictionary"),
        ("info is empty", b"d4:infodee".to_vec(), "has no \"pieces\""),
        ("minus zero", single().with("length", "i-0e").bytes(), "not in canonical form"),
        ("leading zeros", single().with("length", "i007e").bytes(), "not in canonical form"),
        ("plus", single().with("length", "i+5e").bytes(), "not in canonical form"),
        ("2^63", single().with("length", "i9223372036854775808e").bytes(), "fit in 64 bits"),
        ("2^64", single().with("length", "i18446744073709551616e").bytes(), "fit in 64 bits"),
    ]);
}

#[test]
fn numbers() {
    let piece_len = |value: &str| single().with("piece length", format!("i{value}e")).bytes();
    let len = |value: &str| single().with("length", format!("i{value}e")).bytes();
    let half = "281474976710655";
    let many = std::iter::repeat_n(entry("p", half, &[b"x"], ""), 70_000);
    let no_length = multi([entry("", "", &[b"a"], "")]);
    let text_length = multi([b"d6:length1:54:pathl1:aee".to_vec()]);
    let both = single().with("files", list([file("5", &[b"a"])]));
    judge(vec![
        ("piece length 0", piece_len("0"), "piece length of 0 bytes"),
        ("piece length -1", piece_len("-1"), "piece length of -1 bytes"),
        ("piece length 2^32+16384", piece_len("4294983680"), "piece length of 4294983680"),
        ("piece length > 512 MiB", piece_len("536870913"), "not between 1 and 536870912"),
        ("piece length 512 MiB", piece_len("536870912"), ""),
        ("piece length i64::MIN", piece_len("-9223372036854775808"), "is not between"),
        ("piece length not 2^n", piece_len("100000"), ""),
        ("piece length missing", single().without("piece length").bytes(), "no \"piece length\""),
        ("piece length text", single().with("piece length", "1:x").bytes(), "not an integer"),
        ("length -1", len("-1"), "length of -1 bytes"),
        ("length 2^48", len("281474976710656"), "length of 281474976710656"),
        ("length 2^48-1", len(half), "17179869184 pieces are more than 2097152"),
        ("length text", single().with("length", "1:5").bytes(), "file 0 has no length"),
        ("file length -5", multi([file("-5", &[b"a"])]).bytes(), "file 0 has a length of -5"),
        ("file length missing", no_length.bytes(), "file 0 has no length"),
        ("file length text", text_length.bytes(), "file 0 has no length"),
        (
            "sum over 64 bits",
            multi(many).bytes(),
            "add up to more than 64 bits can hold at file 65536",
        ),
        ("no length at all", single().without("length").bytes(), "has no \"length\""),
        ("length and files", both.bytes(), "both \"length\" and \"files\""),
        ("pieces missing", single().without("pieces").bytes(), "no \"pieces\""),
        ("pieces a list", single().with("pieces", "le").bytes(), "\"pieces\" is not a string"),
        ("pieces of 19", single().with("pieces", string([0; 19])).bytes(), "19 bytes of piece"),
        ("no pieces for 5 bytes", single().pieces(0).bytes(), "0 piece hashes for 1 pieces"),
        ("two pieces for 5 bytes", single().pieces(2).bytes(), "2 piece hashes for 1 pieces"),
        ("piece too few", single().with("length", "i16385e").bytes(), "1 piece hashes for 2"),
        ("pieces for nothing", single().with("length", "i0e").bytes(), "1 piece hashes for 0"),
        (
            "too many pieces",
            single().with("length", "i2097153e").with("piece length", "i1e").bytes(),
            "2097153 pieces",
        ),
        ("total 0", single().with("length", "i0e").pieces(0).bytes(), ""),
        ("total 0 in files", multi([file("0", &[b"a"]), file("0", &[b"b"])]).pieces(0).bytes(), ""),
        ("no files", multi([]).pieces(0).bytes(), "lists no files"),
        (
            "files a dictionary",
            single().without("length").with("files", "de").bytes(),
            "\"files\" is not a list",
        ),
        (
            "files of strings",
            multi([string("a")]).bytes(),
            "\"files\" is not a list of dictionaries",
        ),
    ]);
}

#[test]
fn paths() {
    let deep: Vec<&[u8]> = vec![b"d"; 100];
    let long = [b'x'; 250];
    let wide: Vec<&[u8]> = vec![&long; 20];
    let name = |name: &[u8]| single().with("name", string(name)).bytes();
    let same = |count| multi(std::iter::repeat_n(file("0", &[b"x"]), count)).pieces(0).bytes();
    let no_path = multi([b"d6:lengthi5ee".to_vec()]);
    let text_path = multi([b"d6:lengthi5e4:path1:ae".to_vec()]);
    let int_path = multi([b"d6:lengthi5e4:pathli1eee".to_vec()]);
    judge(vec![
        ("parent", path(&[b"..", b"x"]).bytes(), "\"..\" is not allowed: it names a directory"),
        ("parent inside", path(&[b"a", b"..", b"..", b"x"]).bytes(), "it names a directory"),
        ("parent last", path(&[b"a", b".."]).bytes(), "it names a directory"),
        ("dot", path(&[b".", b"x"]).bytes(), "\".\" is not allowed"),
        ("empty element", path(&[b"a", b"", b"x"]).bytes(), "\"\" is not allowed: it is empty"),
        ("only empty", path(&[b""]).bytes(), "it is empty"),
        ("absolute", path(&[b"/etc/passwd"]).bytes(), "it holds a slash"),
        ("slash", path(&[b"a/../../b"]).bytes(), "it holds a slash"),
        ("lone slash", path(&[b"/"]).bytes(), "it holds a slash"),
        ("NUL", path(&[b"a\0.txt"]).bytes(), "it holds a NUL byte"),
        ("backslash", path(&[b"..\\..\\x"]).bytes(), ""),
        ("drive", path(&[b"C:", b"x"]).bytes(), ""),
        ("device of Windows", path(&[b"con"]).bytes(), ""),
        ("control characters", path(&[b"a\x1b]0;x\x07"]).bytes(), ""),
        ("overlong encoding of ..", path(&[b"\xc0\xae\xc0\xae", b"x"]).bytes(), ""),
        ("overlong encoding of /", path(&[b"a\xc0\xafb"]).bytes(), ""),
        ("name ..", name(b".."), "\"..\" is not allowed"),
        ("name .", name(b"."), "\".\" is not allowed"),
        ("name empty", name(b""), "\"\" is not allowed: it is empty"),
        ("name /etc/x", name(b"/etc/x"), "it holds a slash"),
        ("name with NUL", name(b"a\0"), "it holds a NUL"),
        (
            "name very long and bad",
            name(&[b"/".as_slice(), &[7; 5000]].concat()),
            "it holds a slash",
        ),
        ("name missing", single().without("name").bytes(), "no \"name\""),
        ("name an integer", single().with("name", "i1e").bytes(), "\"name\" is not a string"),
        ("name too long", name(&[b'n'; 10_000]), ""),
        ("100 deep", path(&deep[..99]).bytes(), ""),
        ("101 deep", path(&deep).bytes(), "101 names deep, and 100"),
        ("path too long", path(&wide).bytes(), "5021 bytes long, and 4095"),
        ("no path", no_path.bytes(), "file 0 has no path"),
        ("empty path", path(&[]).bytes(), "file 0 has no path"),
        ("path a string", text_path.bytes(), "file 0 has no path"),
        ("path of integers", int_path.bytes(), "file 0 has no path"),
        ("one path 501 times", same(501), ""),
        ("one path 502 times", same(502), "more than 500 files share their path"),
    ]);
}

#[test]
fn kinds_of_torrent() {
    let v2 = single().without("pieces").without("length").with("meta version", "i2e");
    let tree = "d1:td0:d6:lengthi5e11:pieces root32:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxeee";
    let link = |length| {
        multi([file("5", &[b"a"]), entry("l", length, &[b"l"], "12:symlink pathl2:..1:xe")])
    };
    judge(vec![
        ("v2 only", v2.clone().with("file tree", tree).bytes(), "this torrent is v2 only"),
        ("v2 without a tree", v2.bytes(), "v2 only"),
        (
            "tree without a version",
            single().without("pieces").with("file tree", tree).bytes(),
            "v2 only",
        ),
        ("hybrid", single().with("meta version", "i2e").with("file tree", tree).bytes(), ""),
        (
            "hybrid, deep tree",
            single().with("meta version", "i2e").with("file tree", "d1:a".repeat(50)).bytes(),
            "nested",
        ),
        ("version 9 with pieces", single().with("meta version", "i9e").bytes(), ""),
        ("symlink", link("0").bytes(), ""),
        ("symlink without length", link("").bytes(), ""),
        ("symlink with content", link("9").bytes(), "file 1 is a symbolic link with a length of 9"),
        ("attr an integer", multi([b"d4:attri1e6:lengthi5e4:pathl1:aee".to_vec()]).bytes(), ""),
        ("private text", single().with("private", "1:1").bytes(), ""),
        (
            "odd outer keys",
            single()
                .root("announce", "i1e")
                .root("url-list", "i1e")
                .root("nodes", "1:x")
                .root("comment", "le")
                .bytes(),
            "",
        ),
    ]);
}

#[test]
fn a_plain_torrent_is_described() {
    let torrent = single()
        .with("private", "i1e")
        .root("announce", string("http://t.example/"))
        .root("comment", string("two\nlines\x1b[2J"))
        .root("created by", string("maker"))
        .root("creation date", "i1700000000e")
        .root("nodes", "ll6:routeri6881eee")
        .root("url-list", string("http://w.example/"));
    let info = dict(&torrent.info);
    let bytes = torrent.bytes();
    let metainfo = Metainfo::parse(&bytes).unwrap();
    assert_eq!(metainfo.info_hash.0, <[u8; 20]>::from(Sha1::digest(&info)));
    assert_eq!(metainfo.raw_info(), info);
    assert_eq!(metainfo.raw()[..], bytes);
    assert_eq!(metainfo.piece_hash(PieceIndex(0)), Some(&[7; 20]));
    assert_eq!(metainfo.piece_hash(PieceIndex(1)), None);
    assert_eq!(metainfo.piece_hash(PieceIndex(u32::MAX)), None);
    assert!(metainfo.private && metainfo.layout.is_single_file());
    assert_eq!(metainfo.layout.file(0).unwrap().path(), Path::new("t"));
    assert_eq!(metainfo.comment.as_deref(), Some("two\nlines[2J"));
    assert_eq!(metainfo.created_by.as_deref(), Some("maker"));
    assert_eq!(metainfo.creation_date, Some(1_700_000_000));
    assert_eq!(metainfo.nodes, [("router".to_owned(), 6881)]);
    assert_eq!(metainfo.web_seeds.len(), 1);
    assert!(metainfo.warnings.is_empty() && metainfo.original_name.is_none());
    let again = metainfo.magnet().metainfo(&info).unwrap();
    assert_eq!(again.info_hash, metainfo.info_hash);
    assert_eq!(again.trackers, metainfo.trackers);
    assert_eq!(again.layout, metainfo.layout);
}

#[test]
fn unknown_keys_count_in_the_hash_and_outer_ones_do_not() {
    let hash = |torrent: Torrent| torrent.parse().info_hash;
    let plain = hash(single());
    assert_ne!(hash(single().with("x", "i1e")), plain);
    assert_eq!(hash(single().root("x", "i1e")), plain);
    // Keys out of order are another info: it is hashed as it stands, not put in order first.
    let info = b"d4:name1:t6:lengthi5e12:piece lengthi16384e6:pieces20:77777777777777777777e";
    let bytes = [b"d4:info", &info[..], b"e"].concat();
    let metainfo = Metainfo::parse(&bytes).unwrap();
    assert_eq!(metainfo.info_hash.0, <[u8; 20]>::from(Sha1::digest(info)));
}

#[test]
fn padding_is_never_on_disk_and_may_share_a_path() {
    let metainfo = multi([
        file("10", &[b"a"]),
        entry("p", "6", &[b".pad", b"6"], ""),
        file("10", &[b"b"]),
        entry("xp", "6", &[b".pad", b"6"], ""),
        file("3", &[b"_____padding_file_0_for BitComet"]),
        b"d4:attr1:p6:lengthi1ee".to_vec(),
        entry("hx", "0", &[b".pad"], ""),
    ])
    .parse();
    let kinds: Vec<FileKind> = metainfo.layout.files().map(|file| file.kind).collect();
    use FileKind::{Data, Padding};
    assert_eq!(kinds, [Data, Padding, Data, Padding, Padding, Padding, Data]);
    assert!(metainfo.layout.file(6).unwrap().executable);
    assert_eq!(metainfo.layout.file(6).unwrap().path(), Path::new("t/.pad"));
    assert_eq!(metainfo.layout.file(5).unwrap().path(), Path::new("t/.pad/1"));
    let extents: Vec<_> = metainfo
        .layout
        .extents(8, 12)
        .map(|extent| (extent.file, extent.len, extent.padding))
        .collect();
    assert_eq!(extents, [(0, 2, false), (1, 6, true), (2, 4, false)]);
    check_paths(&metainfo);
}

#[test]
fn changed_names_are_told() {
    let metainfo = multi([
        file("1", &[b"d\x07", b"a\x1b.txt"]),
        file("1", &[b"same"]),
        file("1", &[b"same"]),
        file("1", &[b"same", b"inside"]),
        file("1", &[b"\xff"]),
    ])
    .with("name", string("top\u{202e}"))
    .parse();
    assert_eq!(metainfo.name, "top_");
    assert_eq!(metainfo.original_name.as_deref(), Some("top\\u{202e}"));
    let told: Vec<(String, String)> = metainfo
        .original_paths()
        .map(|(file, original)| (file.path().to_str().unwrap().to_owned(), original.to_owned()))
        .collect();
    assert_eq!(
        told,
        [
            ("top_/d_/a_.txt".to_owned(), "d\\u{7}/a\\u{1b}.txt".to_owned()),
            ("top_/same.1".to_owned(), "same".to_owned()),
            ("top_/same.2".to_owned(), "same".to_owned()),
            ("top_/\u{fffd}".to_owned(), "\\xff".to_owned()),
        ]
    );
    assert_eq!(metainfo.original_path(3), None);
    let told = metainfo.renames_told().unwrap();
    let first =
        "names were made safe: \"top\\u{202e}/d\\u{7}/a\\u{1b}.txt\" -> \"top_/d_/a_.txt\", ";
    assert!(told.starts_with(first), "{told}");
    assert!(told.ends_with("\"top\\u{202e}/same\" -> \"top_/same.2\" and 2 more"), "{told}");
    check_paths(&metainfo);
}

#[test]
fn names_in_logs_are_quoted_and_cut() {
    let shown = |name: &str| single().with("name", string(name)).parse().shown_name();
    assert_eq!(shown("it's \"here\" x=1"), "\"it's \\\"here\\\" x=1\"");
    assert_eq!(shown(&"ü".repeat(NAME_SHOWN_MAX)).chars().count(), NAME_SHOWN_MAX + 2);
    let cut = shown(&"ü".repeat(NAME_SHOWN_MAX + 1));
    assert_eq!(cut, format!("\"{}…\"", "ü".repeat(NAME_SHOWN_MAX)));
}

#[test]
fn utf8_names_come_first_when_they_are_utf8() {
    let named =
        |utf8: &[u8]| single().with("name", string("plain")).with("name.utf-8", string(utf8));
    assert_eq!(named("ü".as_bytes()).parse().name, "ü");
    assert_eq!(named(b"\xff").parse().name, "plain");
    let with_path = |utf8: &[&[u8]]| {
        let tail = [b"10:path.utf-8".to_vec(), list(utf8.iter().map(string))].concat();
        let tail = String::from_utf8_lossy(&tail).into_owned();
        multi([entry("", "5", &[b"plain"], &tail)]).parse()
    };
    let path_of = |metainfo: Metainfo| metainfo.layout.file(0).unwrap().path();
    assert_eq!(path_of(with_path(&["ü".as_bytes()])), Path::new("t/ü"));
    assert_eq!(path_of(with_path(&[])), Path::new("t/plain"));
    let bad = b"d6:lengthi5e4:pathl5:plaine10:path.utf-8l1:\xffee".to_vec();
    assert_eq!(path_of(multi([bad]).parse()), Path::new("t/plain"));
    let escape = b"d6:lengthi5e4:pathl5:plaine10:path.utf-8l2:..1:xee".to_vec();
    assert!(Metainfo::parse(&multi([escape]).bytes()).is_err());
}

#[test]
fn symlinks_are_told_and_never_on_disk() {
    let metainfo =
        multi([file("5", &[b"a"]), entry("l", "0", &[b"l"], "12:symlink pathl2:..e")]).parse();
    assert!(!metainfo.layout.file(1).unwrap().is_on_disk());
    assert_eq!(metainfo.warnings, ["\"l\" is a symbolic link and will not be made"]);
}

#[test]
fn many_directories_and_long_keys_cost_no_more_than_their_length() {
    // Each path shares all but its last name with the others.
    let deep: Vec<Vec<u8>> = (0..20_000)
        .map(|index| {
            let last = format!("{index}");
            let mut names: Vec<&[u8]> = vec![b"dir"; 90];
            names.push(last.as_bytes());
            file("0", &names)
        })
        .collect();
    let metainfo = multi(deep).pieces(0).parse();
    assert_eq!(metainfo.layout.file_count(), 20_000);
    let tiny = (0..200_000u32).map(|index| file("0", &[format!("{index}").as_bytes()]));
    let metainfo = multi(tiny).pieces(0).parse();
    assert_eq!(metainfo.layout.extents(0, u64::MAX).count(), 0);
}

fn samples() -> Vec<Vec<u8>> {
    vec![
        single().root("announce", string("udp://t.example:1/announce")).bytes(),
        multi([
            file("9000", &[b"a", b"b.txt"]),
            entry("p", "7384", &[b".pad", b"7384"], ""),
            entry("x", "100", &[b"a", "ü\u{202e}".as_bytes()], ""),
            file("0", &[b"a"]),
        ])
        .pieces(2)
        .root("announce-list", list([list([string("http://a/")]), list([string("udp://b:1")])]))
        .root("nodes", "ll1:xi1eee")
        .bytes(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn damage_never_panics_and_never_escapes(
        which in 0usize..2,
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<u8>(), 0..4u8),
            1..6,
        ),
    ) {
        let mut bytes = samples().swap_remove(which);
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => { bytes.remove(at); }
                _ => bytes[at] = b"./\0-019:eild"[usize::from(byte) % 12],
            }
        }
        if let Ok(metainfo) = Metainfo::parse(&bytes) {
            check_paths(&metainfo);
        }
    }

    #[test]
    fn no_path_escapes(
        paths in proptest::collection::vec(
            proptest::collection::vec(
                "[.a]{0,3}|[\\PC\u{0}-\u{1f}/\u{202e}]{0,4}|\\.\\.|(long){60,90}",
                0..5,
            ),
            1..12,
        ),
    ) {
        let files = paths.iter().map(|path| {
            let names: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
            file("0", &names)
        });
        let bytes = multi(files).pieces(0).bytes();
        match Metainfo::parse(&bytes) {
            Ok(metainfo) => check_paths(&metainfo),
            Err(error) => prop_assert!(
                matches!(error, Error::Name { .. } | Error::Path { .. }),
                "{} for {}", error, excerpt(&bytes)
            ),
        }
    }
}
