//! Bencode: a packet of the DHT, and a torrent of many files.

use seedring::bencode::{Document, Encoder, Limits};
use seedring::metainfo::Metainfo;

use crate::timing::{Bench, Per, fold};

/// A ping as BEP 5 shows it.
const PING: &[u8] = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";

const PIECE_LEN: usize = 1 << 20;

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let count = bench.size(200_000, 10);
    bench.case(
        "bencode: DHT ping",
        Per::Item("packet"),
        count,
        || (),
        |()| {
            (0..count).fold(0, |sum, _| {
                let document = Document::parse(PING, &Limits::KRPC).expect("a ping is valid");
                let root = document.root();
                let id = root.get(b"a").and_then(|arguments| arguments.get(b"id"));
                let id = id.and_then(|id| id.as_bytes()).map_or(0, <[u8]>::len);
                fold(sum, (id + document.token_count()) as u64)
            })
        },
    );

    let file_count = bench.size(10_000, 10);
    let torrent = torrent(file_count);
    let name = format!("bencode: torrent of {file_count} files, scan");
    bench.case(
        &name,
        Per::Item("file"),
        file_count,
        || (),
        |()| {
            let document = Document::parse(&torrent, &Limits::TORRENT).expect("a torrent is valid");
            document.token_count() as u64
        },
    );
    let name = format!("bencode: torrent of {file_count} files, whole");
    bench.case(
        &name,
        Per::Item("file"),
        file_count,
        || (),
        |()| {
            let metainfo = Metainfo::parse(&torrent).expect("a torrent is valid");
            fold(metainfo.layout.file_count() as u64, metainfo.layout.total_len())
        },
    );
}

/// A torrent of files of 3 MB in a hundred folders.
fn torrent(file_count: usize) -> Vec<u8> {
    let file_len = 3_000_000;
    let piece_count = (file_count * file_len).div_ceil(PIECE_LEN);
    let int = |value: usize| i64::try_from(value).expect("a small number");
    let mut hashes = vec![0; 20 * piece_count];
    fastrand::Rng::with_seed(5).fill(&mut hashes);
    let mut encoder = Encoder::new();
    encoder.dict(|torrent| {
        torrent.dict(b"info", |info| {
            info.list(b"files", |files| {
                for index in 0..file_count {
                    files.dict(|file| {
                        file.int(b"length", int(file_len));
                        file.list(b"path", |path| {
                            path.bytes(format!("folder {:02}", index % 100).as_bytes());
                            path.bytes(format!("file {index:05}.flac").as_bytes());
                        });
                    });
                }
            });
            info.bytes(b"name", b"collection");
            info.int(b"piece length", int(PIECE_LEN));
            info.bytes(b"pieces", &hashes);
        });
    });
    encoder.finish()
}
