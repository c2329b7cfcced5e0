//! Inputs to start from: lives of swarms that go as they should, and some that do not.

use seedring::units::{BLOCK_LEN, Block, PieceIndex};
use seedring::wire::{
    ExtensionHandshake, Message, MetadataMessage, PexMessage, encode, encode_extension_handshake,
    pex_flags,
};

use crate::targets::Script;

impl Script {
    /// Torrent, pieces on disk, and the two bytes of settings.
    fn world(torrent: u8, have: u8, bits: u8, more: u8) -> Self {
        Self::default().bytes(&[torrent, have, bits, more])
    }

    fn connect(self, slot: u8, flags: u8) -> Self {
        self.bytes(&[0, slot, flags, slot + 1])
    }

    fn hear(self, slot: u8, bytes: &[u8]) -> Self {
        self.bytes(&[1, slot]).chunk(bytes)
    }

    fn hears(self, slot: u8, messages: &[Message<'_>]) -> Self {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encode(message, &mut bytes));
        self.hear(slot, &bytes)
    }

    /// Kind, piece and place, as the session reads them.
    fn says(self, slot: u8, what: [u8; 3], bits: &[u8]) -> Self {
        self.bytes(&[3, slot]).bytes(&what).bytes(bits)
    }

    fn deliver(self, slot: u8, count: u8, damage: u8) -> Self {
        self.bytes(&[6, slot, count - 1, damage])
    }

    fn pass(self, ms: u16) -> Self {
        self.bytes(&[8, 0]).bytes(&ms.to_be_bytes())
    }

    /// The disk does so many jobs.
    fn work(self, count: u8) -> Self {
        self.bytes(&[9, 0, count - 1]).bytes(&vec![0; count.into()])
    }
}

/// Six pieces at most, which one byte of bits names.
const BITS: &[u8] = &[0];

/// A peer that has everything, and sends all that it is asked for.
fn fetching(torrent: u8, bits: u8, more: u8, damage: u8) -> Vec<u8> {
    let mut script = Script::world(torrent, 0, bits, more).connect(0, 0x60);
    script = script.hears(0, &[Message::HaveAll, Message::Unchoke]);
    for _ in 0..4 {
        script = script.deliver(0, 8, damage).work(8).pass(1100);
    }
    script.0
}

/// A peer that wants things, of which `have` are there.
fn serving(have: u8) -> Vec<u8> {
    let block = |piece, begin, len| Block { piece: PieceIndex(piece), begin, len };
    Script::world(0, have, 0, 0)
        .connect(1, 0x60)
        .hears(1, &[Message::HaveNone, Message::Interested])
        .hears(1, &[Message::Request(block(0, 0, BLOCK_LEN)), Message::Request(block(4, 0, 1000))])
        .hears(1, &[Message::Cancel(block(0, 0, BLOCK_LEN)), Message::Request(block(1, 9, 77))])
        .says(1, [0xff, 1, 2], BITS)
        .pass(12_000)
        .hears(1, &[Message::Request(block(9, 0, 1))])
        .0
}

/// Pieces are lost while somebody who does not read waits for them.
fn lost() -> Vec<u8> {
    let block = |piece| Block { piece: PieceIndex(piece), begin: 0, len: BLOCK_LEN };
    let asks = [0, 1, 2, 3].map(|piece| Message::Request(block(piece)));
    let script = Script::world(0, 0xff, 0, 0).connect(0, 0x60);
    let script = script.hears(0, &[Message::HaveNone, Message::Interested]);
    let script = script.bytes(&[14, 0, 2]).hears(0, &asks).bytes(&[12, 0, 1, 12, 0, 2]);
    script.bytes(&[14, 0, 3]).pass(1000).hears(0, &asks).0
}

/// Extension messages of all kinds.
fn extended() -> Vec<u8> {
    let mut bytes = Vec::new();
    let handshake = ExtensionHandshake {
        m: vec![(b"ut_metadata".to_vec(), 3), (b"ut_pex".to_vec(), 4)],
        p: Some(6881),
        reqq: Some(20),
        ..ExtensionHandshake::default()
    };
    encode_extension_handshake(&handshake, &mut bytes);
    MetadataMessage::Request { block: 0 }.encode(2, &mut bytes);
    MetadataMessage::Request { block: 7 }.encode(2, &mut bytes);
    let added = vec![("20.0.0.9:7000".parse().unwrap(), pex_flags::SEED)];
    PexMessage { added, dropped: Vec::new() }.encode(1, &mut bytes);
    let off = ExtensionHandshake { upload_only: Some(true), ..ExtensionHandshake::default() };
    encode_extension_handshake(&off, &mut bytes);
    let script = Script::world(2, 1, 0, 0).connect(0, 0x60).connect(1, 0x62).connect(2, 0x64);
    // The peer that was named is connected to.
    script.hear(0, &bytes).pass(1100).connect(3, 0x61).pass(29_000).pass(29_000).pass(9000).0
}

/// Two that send, one of them wrong bytes; and a third that leaves and owes some.
fn poisoned(torrent: u8) -> Vec<u8> {
    let mut script = Script::world(torrent, 0, 0, 0);
    for slot in 0..3 {
        script = script.connect(slot, 0x60).hears(slot, &[Message::HaveAll, Message::Unchoke]);
    }
    for _ in 0..6 {
        script = script.deliver(0, 2, 0xff).deliver(1, 2, 0).work(4).pass(1100);
    }
    script.bytes(&[10, 2]).deliver(1, 16, 0).work(8).0
}

/// Everything that an operator and a disk can do amid a fetch.
fn disturbed() -> Vec<u8> {
    let script = Script::world(4, 0x0f, 0, 8).connect(0, 0x60).connect(1, 0x40).connect(2, 0x20);
    let script = script.hears(0, &[Message::HaveAll, Message::Unchoke]);
    let script = script.says(1, [6, 0, 0], &[0xf0, 0]).says(1, [2, 0, 0], &[0, 0]);
    let script = script.deliver(0, 4, 0).bytes(&[12, 0, 1]).bytes(&[12, 2, 0x37]).pass(2000);
    let script = script.bytes(&[14, 0, 0]).pass(20_000).bytes(&[14, 0, 1]).deliver(0, 9, 1);
    let script = script.bytes(&[11, 0, 4, 3, 1, 9, 1, 1, 2, 8, 8, 8, 8, 0x1a, 0xe1]).pass(500);
    let script = script.bytes(&[9, 0, 3, 0, 15, 14, 0]).bytes(&[15, 0]).bytes(&[15, 1]);
    let script =
        script.bytes(&[13, 0]).chunk(b"20.0.0.0/8\n").pass(1000).bytes(&[13, 0]).chunk(b"");
    script.connect(3, 0x68).bytes(&[14, 1, 2]).says(1, [0xff, 0, 0], &[0, 0]).bytes(&[14, 1, 3]).0
}

pub(in crate::targets) fn seeds() -> Vec<Vec<u8>> {
    vec![
        fetching(0, 0, 0, 0),
        fetching(1, 0, 0, 0),
        fetching(2, 8, 1, 0),
        fetching(4, 0, 8, 0),
        fetching(0, 0x40, 0, 0x21),
        fetching(5, 0, 0, 0),
        Script::world(3, 0, 0, 0).connect(0, 0x60).hears(0, &[Message::HaveAll]).pass(3000).0,
        serving(0xff),
        serving(0x0d),
        lost(),
        extended(),
        poisoned(0),
        poisoned(5),
        disturbed(),
    ]
}
