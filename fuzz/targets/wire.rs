//! The peer wire: its stream however it is cut, handshakes, and the messages of extensions.

use std::net::{IpAddr, SocketAddr};

use seedring::bencode::Limits as Bencode;
use seedring::units::{BLOCK_LEN, Block, InfoHash, PeerId, PieceIndex};
use seedring::wire::{
    CONTROL_LEN_MAX, Decoder, EXTENSION_COUNT_MAX, Error, ExtensionHandshake, Handshake,
    HandshakeReader, Incoming, Limits, METADATA_BLOCK_LEN, Message, MetadataMessage, PEX_PEERS_MAX,
    PexMessage, REQQ_MAX, block_header, encode, encode_extension_handshake, pex_flags,
};

use super::{Input, Script, assert_sentence, texts};

/// What came out of a stream, as it would be written.
#[derive(Default, PartialEq, Debug)]
struct Heard {
    /// Whole messages and data of blocks, as bytes of the wire.
    written: Vec<u8>,
    message_count: usize,
    error: Option<Error>,
}

impl Heard {
    /// Gives `chunks` to a decoder.
    fn new<'c>(limits: Limits, chunks: impl Iterator<Item = &'c [u8]>) -> Self {
        let mut heard = Self::default();
        let mut decoder = Decoder::new(limits);
        let mut given = 0;
        // Block and offset that must come next, if any.
        let mut owed: Option<(Block, u32)> = None;
        for chunk in chunks {
            let mut input = chunk;
            given += chunk.len();
            loop {
                match decoder.decode(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Incoming::Message(message))) => {
                        assert_eq!(owed, None, "a message amid the data of a block");
                        encode(&message, &mut heard.written);
                        heard.message_count += 1;
                    }
                    Ok(Some(Incoming::Payload { block, offset, data })) => {
                        let expected = owed.unwrap_or((block, 0));
                        assert_eq!((block, offset), expected);
                        assert!(offset == 0 || !data.is_empty());
                        assert!((1..=limits.block_len_max).contains(&block.len));
                        if owed.is_none() {
                            heard.written.extend(block_header(block));
                        }
                        heard.written.extend(data);
                        let end = offset + u32::try_from(data.len()).unwrap();
                        owed = (end < block.len).then_some((block, end));
                    }
                    Err(error) => {
                        assert_sentence(&error.to_string());
                        assert_eq!(decoder.decode(&mut input), Err(error.clone()), "it stays");
                        heard.error = Some(error);
                        return heard;
                    }
                }
            }
            assert!(input.is_empty());
            let taken = usize::try_from(decoder.bytes_taken()).unwrap();
            assert_eq!(taken, given);
            let under_way = taken - heard.written.len();
            assert_eq!(decoder.is_mid_message(), under_way > 0 || owed.is_some());
            assert_eq!(decoder.progress().is_some(), decoder.is_mid_message());
            let heap_max = (2 * under_way).min(CONTROL_LEN_MAX as usize);
            assert!(decoder.heap_len() <= heap_max, "{} bytes", decoder.heap_len());
        }
        heard
    }
}

/// A stream gives the same messages however it is cut, and they are written as they came.
pub(super) fn decoder(data: &[u8]) {
    let mut input = Input(data);
    let piece_count = u32::from(input.u16()) % 4096;
    let is_most = input.flag();
    let cut = usize::from(input.byte()) + 1;
    let mut rng = fastrand::Rng::with_seed(u64::from(input.byte()));
    let stream = input.0;
    let limits = if is_most { Limits::at_most(piece_count) } else { Limits::new(piece_count) };
    let whole = Heard::new(limits, std::iter::once(stream));
    assert!(stream.starts_with(&whole.written));
    let mut rest = stream;
    let cuts = std::iter::from_fn(|| {
        let (front, behind) = rest.split_at_checked(rng.usize(0..=cut).min(rest.len()))?;
        let is_last = rest.is_empty();
        rest = behind;
        (!is_last).then_some(front)
    });
    assert_eq!(Heard::new(limits, cuts), whole);
    assert_eq!(Heard::new(limits, stream.chunks(1)), whole);
}

/// Some of each message, as it stands on the wire.
pub(super) fn every_message(piece_count: u32) -> Vec<u8> {
    let block = Block { piece: PieceIndex(1), begin: 0, len: BLOCK_LEN };
    let bits = vec![0x80; piece_count.div_ceil(8) as usize];
    let mut out = Vec::new();
    for message in [
        Message::Bitfield(&bits),
        Message::KeepAlive,
        Message::Choke,
        Message::Unchoke,
        Message::Interested,
        Message::NotInterested,
        Message::Have(PieceIndex(2)),
        Message::Request(block),
        Message::Cancel(block),
        Message::Port(6881),
        Message::Suggest(PieceIndex(0)),
        Message::HaveAll,
        Message::HaveNone,
        Message::Reject(block),
        Message::AllowedFast(PieceIndex(3)),
        Message::Extended { id: 3, payload: b"d5:piecei0ee" },
    ] {
        encode(&message, &mut out);
    }
    let block = Block { len: 9, ..block };
    out.extend(block_header(block));
    out.extend(b"some data");
    out
}

pub(super) fn decoder_seeds() -> Vec<Vec<u8>> {
    let seed = |head: [u8; 5], stream: &[u8]| [&head[..], stream].concat();
    let mut long = Vec::new();
    encode(&Message::Extended { id: 1, payload: &[b'x'; 300] }, &mut long);
    encode(&Message::Bitfield(&[0x55; 256]), &mut long);
    vec![
        seed([8, 0, 0, 70, 5], &long),
        seed([0, 12, 0, 3, 1], &every_message(12)),
        seed([0, 12, 1, 200, 2], &every_message(12)),
        seed([0, 12, 0, 0, 3], &[0, 0, 0, 1, 99]),
        seed([0, 12, 0, 0, 3], &[0xff; 6]),
        seed([0, 12, 0, 0, 3], &[0, 0, 0, 3, 5, 0, 0]),
        seed([0, 0, 0, 9, 4], &[0, 0, 0, 1, 5]),
        seed([0, 8, 0, 9, 4], &[0, 1, 0, 1, 20, 0]),
        seed([0, 8, 0, 9, 4], &[0, 0, 0x40, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
    ]
}

/// The 68 bytes, however they come.
pub(super) fn handshake(data: &[u8]) {
    let mut input = Input(data);
    let cut = usize::from(input.byte()) % 16 + 1;
    let stream = input.0;
    let mut whole = HandshakeReader::new();
    let taken = whole.handle_bytes(stream);
    let mut reader = HandshakeReader::new();
    let mut used = 0;
    let mut error = None;
    for chunk in stream.chunks(cut) {
        match reader.handle_bytes(chunk) {
            Ok(len) => used += len,
            Err(found) => {
                assert_eq!(reader.handle_bytes(b"more"), Err(found.clone()), "it stays");
                error = Some(found);
                break;
            }
        }
    }
    assert_eq!(taken, error.map_or(Ok(used), Err));
    let Ok(used) = taken else { return assert_eq!(reader.handshake(), None) };
    assert_eq!(used, stream.len().min(Handshake::LEN));
    assert_eq!(reader.info_hash().is_some(), used >= 48);
    assert_eq!(reader.handshake(), whole.handshake());
    assert_eq!(reader.handshake().is_some(), used == Handshake::LEN);
    if let Some(handshake) = reader.handshake() {
        assert_eq!(handshake.encode(), stream[..used]);
        assert_eq!(reader.info_hash(), Some(handshake.info_hash));
    }
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    let ours = Handshake::new(InfoHash([1; 20]), PeerId(*b"-sg0001-abcdefghijkl"), true).encode();
    let seed = |cut: u8, stream: &[u8]| [&[cut][..], stream].concat();
    vec![
        seed(0, &ours),
        seed(6, &[&ours[..], b"behind"].concat()),
        seed(3, &ours[..50]),
        seed(2, b"\x13BitTorrent prot0col"),
        seed(1, b"GET / HTTP/1.1\r\n\r\n"),
    ]
}

/// The handshake of the extension protocol: bounded, and read as it is written.
pub(super) fn extension(data: &[u8]) {
    let theirs = match ExtensionHandshake::parse(data) {
        Ok(theirs) => theirs,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    assert!(theirs.m.len() <= EXTENSION_COUNT_MAX);
    for (index, (name, id)) in theirs.m.iter().enumerate() {
        let before = &theirs.m[..index];
        assert!(before.iter().all(|(other, _)| other != name));
        assert!(*id == 0 || before.iter().all(|(_, other)| other != id));
        assert_eq!(theirs.id_of(name), Some(*id));
    }
    assert!(theirs.v.as_ref().is_none_or(|v| v.len() < 1024 && !v.contains(char::is_control)));
    assert!(theirs.reqq.is_none_or(|reqq| (1..=REQQ_MAX).contains(&reqq)));
    assert!((1..=REQQ_MAX).contains(&theirs.reqq_or_default()));
    assert!(theirs.p != Some(0) && theirs.metadata_size != Some(0));
    let metadata_len_max = u32::try_from(Bencode::METADATA.bytes).unwrap();
    assert!(theirs.metadata_size.is_none_or(|len| len <= metadata_len_max));
    let mut message = Vec::new();
    encode_extension_handshake(&theirs, &mut message);
    assert!(message.len() < 8192, "{} bytes", message.len());
    // A name is escaped once more, and the order of keys is that of bencode.
    let mut again = ExtensionHandshake::parse(&message[6..]).unwrap();
    let mut sorted = theirs.clone();
    sorted.m.sort();
    again.m.sort();
    assert_eq!(ExtensionHandshake { v: theirs.v, ..again }, sorted);
}

pub(super) fn extension_seeds() -> Vec<Vec<u8>> {
    let sample = ExtensionHandshake {
        m: vec![(b"ut_metadata".to_vec(), 2), (b"ut_pex".to_vec(), 0), (b"lt_x".to_vec(), 255)],
        v: Some("client\u{1b}[2J 1.0".to_owned()),
        p: Some(6881),
        reqq: Some(500),
        upload_only: Some(true),
        yourip: Some(IpAddr::from([192, 0, 2, 1])),
        metadata_size: Some(31_235),
    };
    let v6 = ExtensionHandshake { yourip: Some(IpAddr::from([7u8; 16])), ..sample.clone() };
    let mut seeds = texts([
        "de",
        "le",
        "d1:md1:ai3e1:bi3e1:ci0e1:di0e1:ei4eee",
        "d1:md1:ai256e1:bi-1e1:c1:xeetail",
        "d13:metadata_sizei8388609e1:pi65536e4:reqqi-5ee",
        "d13:metadata_sizei8388608e4:reqqi9223372036854775807ee",
    ]);
    seeds.extend([sample.encode(), v6.encode()]);
    seeds
}

/// Messages about metadata.
pub(super) fn metadata(data: &[u8]) {
    match MetadataMessage::parse(data) {
        Ok(None) => {}
        Ok(Some(message)) => {
            if let MetadataMessage::Data { data: block, .. } = message {
                assert!(block.len() <= METADATA_BLOCK_LEN as usize && data.ends_with(block));
            }
            let mut out = Vec::new();
            message.encode(3, &mut out);
            assert_eq!(out[4..6], [20, 3]);
            assert_eq!(MetadataMessage::parse(&out[6..]), Ok(Some(message)));
        }
        Err(error) => assert_sentence(&error.to_string()),
    }
}

pub(super) fn metadata_seeds() -> Vec<Vec<u8>> {
    let long = |len: u32| [&b"d8:msg_typei1e5:piecei0ee"[..], &vec![7; len as usize]].concat();
    let mut seeds = texts([
        "d8:msg_typei0e5:piecei0ee",
        "d8:msg_typei1e5:piecei0e10:total_sizei34256eexxxxxxxx",
        "d8:msg_typei1e5:piecei0e10:total_sizei-5ee",
        "d8:msg_typei2e5:piecei4294967295ee",
        "d8:msg_typei9e5:piecei0ee",
        "d8:msg_typei0e5:piecei4294967296ee",
        "i1e",
    ]);
    seeds.extend([long(METADATA_BLOCK_LEN), long(METADATA_BLOCK_LEN + 1)]);
    seeds
}

/// Messages of peer exchange: bounded, and what is written of them is read back.
pub(super) fn pex(data: &[u8]) {
    let message = match PexMessage::parse(data) {
        Ok(message) => message,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    assert!(message.added.len() <= 2 * PEX_PEERS_MAX);
    assert!(message.dropped.len() <= 2 * PEX_PEERS_MAX);
    let added = message.added.iter().map(|(addr, _)| *addr);
    for addr in added.clone().chain(message.dropped.iter().copied()) {
        assert!(addr.port() != 0 && addr.ip() == addr.ip().to_canonical());
    }
    let rewritten = |message: &PexMessage| {
        let mut out = Vec::new();
        message.encode(1, &mut out);
        PexMessage::parse(&out[6..]).unwrap()
    };
    // Addresses that were mapped into IPv6 go to the others, of which there may be too many then.
    let once = rewritten(&message);
    assert!(once.added.iter().all(|named| message.added.contains(named)));
    assert!(once.dropped.iter().all(|addr| message.dropped.contains(addr)));
    assert!(once.added.len() >= message.added.len().min(PEX_PEERS_MAX));
    assert_eq!(rewritten(&once), once);
}

pub(super) fn pex_seeds() -> Vec<Vec<u8>> {
    let v4: SocketAddr = "1.2.3.4:258".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
    let mut out = Vec::new();
    let added = vec![(v4, pex_flags::SEED | pex_flags::REACHABLE), (v6, pex_flags::UTP)];
    PexMessage { added, dropped: vec![v4, v6] }.encode(1, &mut out);
    let mapped = [&b"d6:added618:"[..], &[0; 10], &[0xff, 0xff, 9, 9, 9, 9, 4, 1], b"e"].concat();
    let torn = [&b"d5:added8:"[..], &[1; 8], b"7:dropped6:", &[0; 6], b"e"].concat();
    let many = [&b"d5:added1200:"[..], &[1; 1200], b"e"].concat();
    let parts = Script::default().bytes(b"de").0;
    vec![out.split_off(6), mapped, torn, many, parts, b"le".to_vec()]
}
