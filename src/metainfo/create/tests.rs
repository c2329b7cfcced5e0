//! Torrents made of real files, read back and compared with what was there.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use super::*;

fn quiet(_: u64, _: u64) {}

fn make(path: &Path, options: &CreateOptions) -> (Created, Metainfo) {
    let created = create(path, options, &quiet).unwrap();
    let metainfo = Metainfo::parse(&created.bytes).unwrap();
    assert_eq!(created.info_hash, metainfo.info_hash);
    (created, metainfo)
}

/// Writes files, their directories made on the way, below a fresh directory's `top`.
fn tree<'f>(files: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("top")).unwrap();
    for (path, bytes) in files {
        let path = dir.path().join("top").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// The hashes that the files on disk have, taken in the plainest way.
fn hashes_on_disk(save_path: &Path, metainfo: &Metainfo) -> Vec<[u8; 20]> {
    let files = metainfo.layout.files();
    let content: Vec<u8> =
        files.flat_map(|file| fs::read(save_path.join(file.path())).unwrap()).collect();
    let piece_len = metainfo.geometry.piece_len_nominal() as usize;
    content.chunks(piece_len).map(|piece| Sha1::digest(piece).into()).collect()
}

#[test]
fn one_file_gives_the_bytes_that_the_format_asks_for() {
    let dir = tree([("a.txt", b"hello\n".as_slice())]);
    let options = CreateOptions { private: true, ..CreateOptions::default() };
    let (created, metainfo) = make(&dir.path().join("top/a.txt"), &options);
    let mut info = b"d6:lengthi6e4:name5:a.txt12:piece lengthi16384e6:pieces20:".to_vec();
    info.extend_from_slice(&Sha1::digest(b"hello\n"));
    info.extend_from_slice(b"7:privatei1ee");
    assert_eq!(metainfo.raw_info(), info);
    assert_eq!(created.info_hash.0, <[u8; 20]>::from(Sha1::digest(&info)));
    assert!(metainfo.layout.is_single_file() && metainfo.private);
    let expected = format!("magnet:?xt=urn:btih:{}&dn=a.txt", created.info_hash);
    assert_eq!(created.magnet, expected);
}

#[test]
fn a_directory_is_walked_in_the_order_of_bytes() {
    let files = [("b", b"1".as_slice()), ("a/z", b"22"), ("a.txt", b""), ("a/deep/er/x", b"333")];
    let dir = tree(files);
    symlink("/etc/passwd", dir.path().join("top/link")).unwrap();
    symlink("/etc", dir.path().join("top/a/dirlink")).unwrap();
    fs::create_dir(dir.path().join("top/a/nothing")).unwrap();
    let _socket = UnixListener::bind(dir.path().join("top/socket")).unwrap();
    let options = CreateOptions {
        trackers: vec!["http://t.example/a?b=1&c".to_owned(), "udp://u.example:1".to_owned()],
        web_seeds: vec!["https://w.example/".to_owned()],
        comment: Some("made by hand".to_owned()),
        creation_date: Some(1_700_000_000),
        ..CreateOptions::default()
    };
    let (created, metainfo) = make(&dir.path().join("top"), &options);
    let paths: Vec<PathBuf> = metainfo.layout.files().map(|file| file.path()).collect();
    let expected = ["top/a.txt", "top/a/deep/er/x", "top/a/z", "top/b"].map(PathBuf::from);
    assert_eq!(paths, expected);
    assert_eq!(metainfo.trackers.len(), 2);
    assert_eq!(metainfo.web_seeds.len(), 1);
    assert_eq!(metainfo.comment.as_deref(), Some("made by hand"));
    assert_eq!(metainfo.creation_date, Some(1_700_000_000));
    assert_eq!(metainfo.warnings, Vec::<String>::new());
    let mut warnings = created.warnings;
    warnings.sort();
    let expected = [
        "\"a/dirlink\" left out: it is a symbolic link",
        "\"a/nothing\" left out: it is an empty directory, which no torrent can hold",
        "\"link\" left out: it is a symbolic link",
        "\"socket\" left out: it is not a regular file",
    ];
    assert_eq!(warnings, expected);
    assert!(created.magnet.contains("&tr=http%3A%2F%2Ft.example%2Fa%3Fb%3D1%26c&tr=udp"));
    assert_eq!(metainfo.piece_hashes(), hashes_on_disk(dir.path(), &metainfo));
}

#[test]
fn threads_agree_and_progress_reaches_the_end() {
    let bytes: Vec<u8> =
        (0..3_000_000u32).map(|at| at.to_le_bytes()[usize::from(at % 3 == 0)]).collect();
    let dir = tree([("x", &bytes[..]), ("y", &bytes[7..2_000_000])]);
    let one = CreateOptions { threads: 1, ..CreateOptions::default() };
    let (alone, metainfo) = make(&dir.path().join("top"), &one);
    let most = AtomicU64::new(0);
    let many = CreateOptions { threads: 7, ..CreateOptions::default() };
    let progress = |done: u64, total: u64| {
        assert!(done <= total);
        most.fetch_max(done, Ordering::Relaxed);
    };
    let together = create(&dir.path().join("top"), &many, &progress).unwrap();
    assert_eq!(alone.bytes, together.bytes);
    assert_eq!(most.into_inner(), together.total_len);
    assert_eq!(metainfo.piece_hashes(), hashes_on_disk(dir.path(), &metainfo));
}

#[test]
fn pieces_side_by_side_have_the_hashes_they_have_alone() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut bytes = vec![0; 2_500_000];
    random.fill(&mut bytes);
    let names: Vec<String> = (0..200).map(|number| format!("{number:03}")).collect();
    let small = names.iter().zip(bytes.chunks(501)).map(|(name, bytes)| (name.as_str(), bytes));
    // One piece, fewer than are hashed at once, several groups; each with and without a short end.
    for len in [1, 100_000, 131_072, 524_288, 1_000_000, 2_097_152, 2_500_000] {
        let dir = tree(small.clone().chain([("long", &bytes[..len])]));
        for piece_length in [1 << 14, 1 << 17, 1 << 18] {
            for threads in [1, 3] {
                let piece_length = Some(piece_length);
                let options = CreateOptions { piece_length, threads, ..CreateOptions::default() };
                let (_, metainfo) = make(&dir.path().join("top"), &options);
                assert_eq!(metainfo.piece_hashes(), hashes_on_disk(dir.path(), &metainfo), "{len}");
            }
        }
    }
}

#[test]
fn nothing_but_empty_files_is_a_torrent_without_pieces() {
    let dir = tree([("a", b"".as_slice()), ("b", b"")]);
    let (created, metainfo) = make(&dir.path().join("top"), &CreateOptions::default());
    assert_eq!((created.piece_count, created.total_len, created.file_count), (0, 0, 2));
    assert_eq!(metainfo.geometry.piece_count(), 0);
}

#[test]
fn a_file_that_changes_fails_the_whole() {
    let grow = |path: &Path| {
        let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"more").unwrap();
    };
    let shrink = |path: &Path| {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let changes: [&(dyn Fn(&Path) + Sync); 3] = [&grow, &shrink, &remove];
    // The first file is open when it changes, the second is not.
    for (name, number) in [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)] {
        let dir = tree([("a", [1; 40_000].as_slice()), ("b", &[2; 40_000])]);
        let path = dir.path().join("top").join(name);
        let changed = AtomicBool::new(false);
        let most = AtomicU64::new(0);
        let progress = |done, _| {
            most.fetch_max(done, Ordering::Relaxed);
            if !changed.swap(true, Ordering::Relaxed) {
                changes[number](&path);
            }
        };
        let options = CreateOptions { threads: 1, ..CreateOptions::default() };
        let error = create(&dir.path().join("top"), &options, &progress).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("top/{name}\"")), "{name} {number}: {text}");
        let expected =
            if (name, number) == ("b", 2) { "cannot read" } else { "changed while it was hashed" };
        assert!(text.contains(expected), "{name} {number}: {text}");
    }
}

#[test]
fn each_failure_is_a_sentence_about_its_cause() {
    let dir = tree([("a/x", b"x".as_slice())]);
    let top = dir.path().join("top");
    let fails = |path: &Path, options: &CreateOptions, expected: &str| {
        let text = create(path, options, &quiet).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    let default = CreateOptions::default();
    fails(&dir.path().join("none"), &default, "No such file");
    fails(Path::new("/"), &default, "has no name");
    fails(Path::new("/dev/null"), &default, "neither a file nor a directory");
    fs::create_dir(dir.path().join("empty")).unwrap();
    fails(&dir.path().join("empty"), &default, "there is no file in");
    for value in [0, 1, 16_383, 3 << 14, 1 << 30, u32::MAX] {
        let options = CreateOptions { piece_length: Some(value), ..default.clone() };
        fails(&top, &options, "not a power of two");
    }
    let options = CreateOptions { trackers: vec!["file:///x".to_owned()], ..default.clone() };
    fails(&top, &options, "its scheme is not http, https or udp");
    let options = CreateOptions { web_seeds: vec!["udp://x:1".to_owned()], ..default.clone() };
    fails(&top, &options, "its scheme is not http or https");
    for name in [b"bad\xff.txt".as_slice(), b"bell\x07", "rtl\u{202e}".as_bytes()] {
        let path = top.join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, b"x").unwrap();
        fails(&top, &default, "rename it first");
        fails(&path, &default, "rename it first");
        fs::remove_file(path).unwrap();
    }
    let huge = top.join("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    let options = CreateOptions { piece_length: Some(16_384), ..default };
    fails(&top, &options, "choose longer pieces");
}

#[test]
fn piece_lengths_keep_the_count_in_hand() {
    for shift in 0..44 {
        let total = (1u64 << shift) + 12_345;
        let len = auto_piece_len(total);
        let count = total.div_ceil(u64::from(len));
        assert!(len.is_power_of_two() && (16 << 10..=16 << 20).contains(&len));
        assert!(count <= 2000 || len == 16 << 20, "{count}");
        assert!(count > 1000 || len == 16 << 10, "{count}");
    }
    assert_eq!(auto_piece_len(0), 16 << 10);
    assert_eq!(auto_piece_len(1000 << 20), 512 << 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_created_describes_what_is_there(
        files in proptest::collection::btree_map(
            "[a-cß]{1,3}(/[a-c .]{0,2}[x-z]){0,2}\\.t",
            0usize..50_000,
            1..8,
        ),
        threads in 0usize..4,
    ) {
        let filled = |len: usize| vec![len.to_le_bytes()[0]; len];
        let content: BTreeMap<&str, Vec<u8>> =
            files.iter().map(|(path, &len)| (path.as_str(), filled(len))).collect();
        let dir = tree(content.iter().map(|(path, bytes)| (*path, &bytes[..])));
        let options = CreateOptions { threads, ..CreateOptions::default() };
        let (created, metainfo) = make(&dir.path().join("top"), &options);
        prop_assert_eq!(created.file_count, files.len());
        for (file, (path, bytes)) in metainfo.layout.files().zip(&content) {
            prop_assert_eq!(file.path(), Path::new("top").join(path));
            prop_assert_eq!(file.len, bytes.len() as u64);
        }
        prop_assert_eq!(metainfo.piece_hashes(), hashes_on_disk(dir.path(), &metainfo));
    }
}
