//! Peers that claim to have metadata, and lie, or keep it; and those that ask for it without end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use seedring::units::{InfoHash, PeerId};
use seedring::wire::{
    Decoder, ExtensionHandshake, Handshake, Incoming, Limits, METADATA_NAME, Message,
    MetadataMessage, encode, metadata_block,
};
use sha1::{Digest, Sha1};

use super::content;
use crate::support::server::{Server, TRANSFER, start_get_of};
use crate::support::{dir, free_addr, wait};

/// Memory of a client that waits for metadata, whatever is claimed.
const MEMORY_MAX: u64 = 100 << 20;

/// How a peer answers requests for metadata.
#[derive(Clone, Debug)]
enum Answer {
    /// With these bytes.
    Right(Vec<u8>),
    /// With rubbish, as much as it claims.
    Wrong,
    /// Not at all.
    Never,
}

/// A peer that does nothing but claim to have metadata.
struct Claimer {
    addr: SocketAddr,
    met: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Claimer {
    /// Claims `len` bytes of metadata of a torrent.
    fn start(info_hash: InfoHash, id: u8, len: u64, answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, ends) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let met = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let (requests, ends) = (Arc::clone(&requests), Arc::clone(&ends));
            let met = Arc::clone(&met);
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if ends.load(Relaxed) {
                        return;
                    }
                    met.store(true, Relaxed);
                    // What it is closed for is the other side's business.
                    drop(talk(stream, info_hash, id, len, &answer, &requests));
                }
            }
        });
        Self { addr, met, requests, ends, thread: Some(thread) }
    }

    fn wait_asked(&self) {
        wait::until("a request", TRANSFER, || (self.requests.load(Relaxed) > 0).then_some(()));
    }
}

impl Drop for Claimer {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        drop(TcpStream::connect(self.addr));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn talk(
    mut stream: TcpStream,
    info_hash: InfoHash,
    id: u8,
    len: u64,
    answer: &Answer,
    requests: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut first = Handshake::new(info_hash, PeerId([id; 20]), false).encode().to_vec();
    let claim = format!("d1:md11:ut_metadatai3ee13:metadata_sizei{len}ee");
    encode(&Message::Extended { id: 0, payload: claim.as_bytes() }, &mut first);
    stream.write_all(&first)?;
    let mut theirs = [0; Handshake::LEN];
    stream.read_exact(&mut theirs)?;
    let (mut decoder, mut buffer) = (Decoder::new(Limits::new(1)), vec![0; 64 << 10]);
    let mut their_id = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut out = Vec::new();
        let decoded = decoder.decode_all(&buffer[..count], |incoming| {
            let Incoming::Message(Message::Extended { id, payload }) = incoming else { return };
            if id == 0 {
                let handshake = ExtensionHandshake::parse(payload).unwrap();
                their_id = handshake.id_of(METADATA_NAME).unwrap_or(their_id);
            } else if let Ok(Some(MetadataMessage::Request { block })) =
                MetadataMessage::parse(payload)
            {
                requests.fetch_add(1, Relaxed);
                let (start, part) = metadata_block(u32::try_from(len).unwrap(), block).unwrap();
                let data = match answer {
                    Answer::Right(info) => info[start as usize..][..part as usize].to_vec(),
                    Answer::Wrong => vec![7; part as usize],
                    Answer::Never => return,
                };
                let total_len = u32::try_from(len).ok();
                MetadataMessage::Data { block, total_len, data: &data }.encode(their_id, &mut out);
            }
        });
        decoded.map_err(|error| std::io::Error::other(error.to_string()))?;
        stream.write_all(&out)?;
    }
}

#[test]
fn liars_and_misers_keep_nobody_from_the_metadata() {
    let dir = dir();
    let content = content(dir.path(), 120);
    let (hash, len) = (content.metainfo.info_hash, content.metainfo.raw_info().len() as u64);
    let claimers = [
        Claimer::start(hash, 1, len, Answer::Wrong),
        Claimer::start(hash, 2, len, Answer::Never),
        Claimer::start(hash, 3, 8 << 20, Answer::Wrong),
        Claimer::start(hash, 4, 8 << 20, Answer::Never),
        Claimer::start(hash, 5, len + 1, Answer::Never),
    ];
    // The honest one comes when the others have had their say.
    let honest = free_addr("127.0.0.1");
    let mut peers: Vec<_> = claimers.iter().map(|it| it.addr).collect();
    peers.push(honest);
    let output = dir.path().join("out");
    let words = ["--no-dht", "--no-pex", "--timeout", "200"];
    let get = start_get_of("get", dir.path(), content.link(), &output, &peers, &words);
    claimers.iter().for_each(Claimer::wait_asked);
    let bytes = get.anonymous_bytes();
    assert!(bytes < MEMORY_MAX, "{bytes} bytes");
    let seed = Server::seed(dir.path(), &content, &honest.to_string(), &[]);
    let mut get = get;
    get.wait_ok(3 * TRANSFER);
    content.assert_same_in(&output);
    seed.stop();
}

#[test]
fn nobody_is_asked_for_more_metadata_than_there_can_be() {
    let dir = dir();
    let hash = InfoHash([5; 20]);
    let claimers = [(1, (8 << 20) + 1), (2, 1 << 31), (3, u64::MAX >> 1)]
        .map(|(id, len)| Claimer::start(hash, id, len, Answer::Never));
    let peers = claimers.each_ref().map(|it| it.addr);
    let (link, output) = (format!("magnet:?xt=urn:btih:{hash}"), dir.path().join("out"));
    let words = ["--no-dht", "--timeout", "5"];
    let mut get = start_get_of("get", dir.path(), &link, &output, &peers, &words);
    assert_eq!(get.wait(TRANSFER), 1, "{}", get.tail());
    assert!(get.stderr().contains("no metadata within the time-out"), "{}", get.tail());
    let asked = claimers.each_ref().map(|it| (it.met.load(Relaxed), it.requests.load(Relaxed)));
    assert_eq!(asked, [(true, 0); 3]);
}

#[test]
fn metadata_of_no_torrent_ends_with_a_sentence() {
    let dir = dir();
    let info = b"d4:name1:xe".to_vec();
    let hash = InfoHash(Sha1::digest(&info).into());
    let peer = Claimer::start(hash, 1, info.len() as u64, Answer::Right(info));
    let link = format!("magnet:?xt=urn:btih:{hash}");
    let output = dir.path().join("out");
    let mut get = start_get_of("get", dir.path(), &link, &output, &[peer.addr], &["--no-dht"]);
    assert_eq!(get.wait(TRANSFER), 1, "{}", get.tail());
    let said = "seedring: the link names a torrent that is not taken: ";
    assert!(get.stderr().contains(said), "{}", get.tail());
}

#[test]
fn metadata_is_served_twice_to_one_peer_and_no_more() {
    let dir = dir();
    let content = content(dir.path(), 121);
    let server = Server::seed(dir.path(), &content, "127.0.0.1:0", &[]);
    let info = content.metainfo.raw_info();
    let mut stream = TcpStream::connect(server.peer).unwrap();
    stream.set_read_timeout(Some(TRANSFER)).unwrap();
    let mut first =
        Handshake::new(content.metainfo.info_hash, PeerId([9; 20]), false).encode().to_vec();
    encode(&Message::Extended { id: 0, payload: b"d1:md11:ut_metadatai5eee" }, &mut first);
    stream.write_all(&first).unwrap();
    stream.read_exact(&mut [0; Handshake::LEN]).unwrap();
    let piece_count = content.metainfo.geometry.piece_count();
    let (mut decoder, mut buffer) = (Decoder::new(Limits::new(piece_count)), vec![0; 64 << 10]);
    let (mut id, mut served, mut rejected, mut blocks) = (0, 0, 0, Vec::new());
    let mut asked = 0;
    // Sixty times all of it, block by block; an answer is awaited before the next one.
    while asked < 180 {
        if id != 0 {
            let mut out = Vec::new();
            MetadataMessage::Request { block: asked % 3 }.encode(id, &mut out);
            stream.write_all(&out).unwrap();
            asked += 1;
        }
        let before = served + rejected;
        while id == 0 || served + rejected == before {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "closed after {asked} requests");
            let taken = decoder.decode_all(&buffer[..count], |incoming| {
                let Incoming::Message(Message::Extended { id: kind, payload }) = incoming else {
                    return;
                };
                if kind == 0 {
                    let handshake = ExtensionHandshake::parse(payload).unwrap();
                    assert_eq!(handshake.metadata_size, u32::try_from(info.len()).ok());
                    id = handshake.id_of(METADATA_NAME).unwrap();
                    return;
                }
                assert_eq!(kind, 5);
                match MetadataMessage::parse(payload).unwrap().unwrap() {
                    MetadataMessage::Data { block, data, .. } => {
                        served += 1;
                        blocks.push((block, data.to_vec()));
                    }
                    MetadataMessage::Reject { .. } => rejected += 1,
                    MetadataMessage::Request { .. } => panic!("it is a seed"),
                }
            });
            taken.unwrap();
            if asked == 0 {
                break;
            }
        }
    }
    let bytes: usize = blocks.iter().map(|(_, data)| data.len()).sum();
    assert!(bytes <= 2 * info.len() && bytes > info.len(), "{bytes} bytes of {}", info.len());
    assert_eq!(served + rejected, 180);
    for (block, data) in blocks {
        let (start, len) = metadata_block(u32::try_from(info.len()).unwrap(), block).unwrap();
        assert_eq!(data, info[start as usize..][..len as usize]);
    }
    server.stop();
}
