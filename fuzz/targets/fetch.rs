//! A magnet link's swarm: peers who claim to have the metadata, right and wrong answers, time; and
//! what becomes of it all when the metadata is there.
//!
//! What is judged: only right metadata is believed, and once; nobody is banned who sent no wrong
//! byte; nobody is asked for more than was agreed; timers come to an end; and the swarm that
//! follows keeps its own promises.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use seedring::metainfo::Metainfo;
use seedring::metainfo::magnet::Magnet;
use seedring::swarm::choker::Slots;
use seedring::swarm::{
    CONTROL_LEN_MAX, Error, HALF_OPEN_MAX, MAGNET_PEERS_MAX, MagnetAction, MagnetSwarm, Offender,
    Options, PeerInit, PeerKey, Shared, Source,
};
use seedring::tracker::policy::permits_operator;
use seedring::units::{Bitfield, InfoHash, PeerId};
use seedring::wire::{
    Decoder, ExtensionHandshake, Incoming, Limits, METADATA_NAME, Message, MetadataMessage, encode,
    encode_extension_handshake, metadata_block,
};
use sha1::{Digest, Sha1};

use super::metainfo::directory;
use super::{Input, Script, assert_sentence, start, wire};

const SLOTS: usize = 4;
const EVENTS_MAX: usize = 300;
const TIMEOUTS_MAX: u32 = 20_000;
/// The id under which peers want messages about metadata.
const ID: u8 = 3;
/// Pieces that a torrent may have at most, as a decoder has it that does not know.
const PIECES_MAX: u32 = seedring::metainfo::PIECE_COUNT_MAX;

struct Link {
    key: PeerKey,
    init: PeerInit,
    decoder: Decoder,
    told: Decoder,
    /// Blocks that it was asked for.
    asked: VecDeque<u32>,
    /// The length that it claimed last, once it said anything of that.
    claimed: Option<Option<u32>>,
}

struct Session {
    now: Instant,
    magnet: MagnetSwarm,
    shared: Rc<Shared>,
    info: &'static [u8],
    info_hash: InfoHash,
    links: [Option<Link>; SLOTS],
    trying: VecDeque<SocketAddr>,
    liars: BTreeSet<Offender>,
    metadata: Option<Vec<u8>>,
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut session = Session::new(&mut input);
    for _ in 0..EVENTS_MAX {
        if input.is_empty() || session.metadata.is_some() {
            break;
        }
        session.step(&mut input);
        let connected = session.links.iter().flatten().count();
        assert_eq!(session.magnet.peer_count(), connected);
        assert!(session.magnet.source_count() <= connected && connected <= MAGNET_PEERS_MAX);
    }
    session.carry(&mut input);
}

/// Metadata of one block, and of two.
static INFOS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    [100_000, 900 * 16_384].map(|len| {
        let file = directory(&[(0, &[b"e"]), (100, &[b"s"]), (len, &[b"l"])], 16_384, "");
        Metainfo::parse(&file).unwrap().raw_info().to_vec()
    })
});

impl Session {
    fn new(input: &mut Input<'_>) -> Self {
        let bits = input.byte();
        let info = &INFOS[usize::from(bits & 1)];
        let info_hash = InfoHash(Sha1::digest(info).into());
        let options = Options {
            dht_port: Some(6881),
            info_hash,
            peer_id: PeerId([0xaa; 20]),
            pex: bits & 2 == 0,
            seed: u64::from(bits),
            connections_max: if bits & 4 == 0 { 100 } else { 3 },
            ..Options::default()
        };
        let shared = Shared::new(None, None, Slots::Unlimited);
        Self {
            now: start(),
            magnet: MagnetSwarm::new(options, Rc::clone(&shared)),
            shared,
            info,
            info_hash,
            links: [const { None }; SLOTS],
            trying: VecDeque::new(),
            liars: BTreeSet::new(),
            metadata: None,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(8);
        let slot = input.below(SLOTS);
        match kind {
            0 => self.connect(slot, input.byte(), input.byte()),
            1 => self.hear(slot, input.chunk()),
            2 => {
                let size = match input.byte() {
                    byte @ 0..64 => u32::from(byte) * 4000,
                    64..128 => input.u32(),
                    _ => u32::try_from(self.info.len()).unwrap(),
                };
                self.claim(slot, size);
            }
            3 | 4 => self.answer(slot, input.byte()),
            5 => self.pass(Duration::from_millis(u64::from(input.u16()))),
            6 => self.disconnect(slot),
            _ => {
                let source = Source::ALL[input.below(Source::ALL.len())];
                let addr = SocketAddr::from((input.array::<4>(), input.u16()));
                self.magnet.handle_contacts(self.now, source, &[addr]);
            }
        }
        self.drain();
    }

    fn connect(&mut self, slot: usize, flags: u8, id: u8) {
        if self.links[slot].is_some() {
            return;
        }
        let called = if flags & 1 == 1 { self.trying.pop_front() } else { None };
        let host = u8::try_from(slot).unwrap() + 1;
        let addr = called.unwrap_or(SocketAddr::from(([20, 0, 0, host], 7000)));
        let (fast, extensions) = (flags & 2 == 0, flags & 4 == 0);
        let peer_id = PeerId([id % 8; 20]);
        let outgoing = called.is_some();
        let init = PeerInit { addr, peer_id, fast, extensions, dht: true, outgoing };
        if let Ok(key) = self.magnet.handle_connected(self.now, init) {
            let decoder = Decoder::new(Limits::at_most(PIECES_MAX));
            let (told, asked) = (decoder.clone(), VecDeque::new());
            self.links[slot] = Some(Link { key, init, decoder, told, asked, claimed: None });
        }
    }

    fn disconnect(&mut self, slot: usize) {
        if let Some(link) = self.links[slot].take() {
            self.magnet.handle_disconnected(self.now, link.key);
        }
    }

    fn hear(&mut self, slot: usize, mut bytes: &[u8]) {
        while let Some(link) = &mut self.links[slot] {
            let judged = match link.decoder.decode(&mut bytes) {
                Ok(None) => return,
                Ok(Some(Incoming::Message(message))) => {
                    if let Message::Extended { id: 2, payload } = message
                        && let Ok(Some(MetadataMessage::Data { block, data, .. })) =
                            MetadataMessage::parse(payload)
                        && !is_right(self.info, block, data)
                    {
                        self.liars.insert(Offender::of(link.init.addr));
                    }
                    // Whoever claims another length than before was wrong once.
                    if let Message::Extended { id: 0, payload } = message
                        && let Ok(handshake) = ExtensionHandshake::parse(payload)
                        && let now = handshake.metadata_size
                        && link.claimed.replace(now).is_some_and(|before| before != now)
                    {
                        self.liars.insert(Offender::of(link.init.addr));
                    }
                    self.magnet.handle_message(self.now, link.key, message)
                }
                // Nothing was asked for.
                Ok(Some(Incoming::Payload { .. })) | Err(_) => Err(Error::Unrequested),
            };
            if let Err(error) = judged {
                assert_sentence(&error.to_string());
                self.disconnect(slot);
            }
            self.drain();
        }
    }

    fn claim(&mut self, slot: usize, size: u32) {
        let handshake = ExtensionHandshake {
            m: vec![(METADATA_NAME.to_vec(), ID)],
            metadata_size: Some(size),
            ..ExtensionHandshake::default()
        };
        let mut bytes = Vec::new();
        encode_extension_handshake(&handshake, &mut bytes);
        self.hear(slot, &bytes);
    }

    /// Answers what the peer was asked first; `how` says how.
    fn answer(&mut self, slot: usize, how: u8) {
        let Some(link) = &mut self.links[slot] else { return };
        let Some(block) = link.asked.pop_front() else { return };
        let len = u32::try_from(self.info.len()).unwrap();
        let range =
            metadata_block(len, block).map(|(start, len)| start as usize..(start + len) as usize);
        let mut data = range.and_then(|range| self.info.get(range)).unwrap_or(b"none").to_vec();
        let mut total_len = Some(len);
        match how % 8 {
            0 => data[0] ^= 1,
            1 => data.truncate(data.len() / 2),
            2 => total_len = None,
            3 => total_len = Some(len + 1),
            _ => {}
        }
        let message = match how % 8 {
            4 => MetadataMessage::Reject { block },
            _ => MetadataMessage::Data { block, total_len, data: &data },
        };
        let mut bytes = Vec::new();
        message.encode(2, &mut bytes);
        self.hear(slot, &bytes);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut count = 0;
        while let Some(at) = self.magnet.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.magnet.handle_timeout(self.now);
            self.drain();
            count += 1;
            assert!(count < TIMEOUTS_MAX, "timers do not come to an end");
        }
        self.now = end;
    }

    fn drain(&mut self) {
        let slot_of = |links: &[Option<Link>; SLOTS], key: PeerKey| {
            let is = |link: &Option<Link>| link.as_ref().is_some_and(|link| link.key == key);
            links.iter().position(is).expect("whom an action names is connected")
        };
        while let Some(action) = self.magnet.poll_action() {
            match action {
                MagnetAction::Transmit(key) => self.transmit(slot_of(&self.links, key)),
                MagnetAction::Close(key, error) => {
                    assert_sentence(&error.to_string());
                    self.disconnect(slot_of(&self.links, key));
                }
                MagnetAction::Connect(addr) => {
                    assert!(permits_operator(addr.ip()).is_ok(), "{addr}");
                    self.trying.push_back(addr);
                    assert!(self.trying.len() <= HALF_OPEN_MAX);
                }
                MagnetAction::Node(addr) => {
                    assert!(!addr.ip().is_unspecified(), "{addr} is nobody's");
                }
                MagnetAction::Ban(who, _) => {
                    assert!(self.liars.contains(&who), "{who:?} never lied")
                }
                MagnetAction::Metadata(info) => {
                    assert_eq!(info, self.info, "wrong metadata");
                    assert_eq!(self.metadata.replace(info), None, "it comes once");
                }
            }
        }
    }

    fn transmit(&mut self, slot: usize) {
        let Some(link) = &mut self.links[slot] else { return };
        let mut control = Vec::new();
        self.magnet.poll_transmit(self.now, link.key, &mut control);
        assert!(control.len() <= CONTROL_LEN_MAX + (64 << 10), "{} bytes", control.len());
        let (init, asked) = (link.init, &mut link.asked);
        let decoded = link.told.decode_all(&control, |incoming| match incoming {
            Incoming::Message(Message::Extended { id: ID, payload }) => {
                if let Ok(Some(MetadataMessage::Request { block })) =
                    MetadataMessage::parse(payload)
                {
                    asked.push_back(block);
                }
            }
            Incoming::Message(Message::Extended { .. }) => assert!(init.extensions),
            Incoming::Message(Message::HaveNone | Message::Reject(_)) => assert!(init.fast),
            Incoming::Message(Message::Port(_)) => assert!(init.dht),
            Incoming::Message(Message::KeepAlive) => {}
            other => panic!("{other:?} has no place here"),
        });
        assert_eq!(decoded, Ok(()));
    }

    /// The end: connections go on in the swarm of the torrent.
    fn carry(mut self, input: &mut Input<'_>) {
        let Some(info) = self.metadata.take() else { return };
        let metainfo = Magnet::new(self.info_hash).metainfo(&info).unwrap();
        let geometry = metainfo.geometry;
        let is_known = input.flag();
        let count = geometry.piece_count();
        let have = if is_known { Bitfield::all(count) } else { Bitfield::none(count) };
        let options = Options {
            info_hash: self.info_hash,
            peer_id: PeerId([0xaa; 20]),
            private: input.flag(),
            metadata: Some(metainfo.shared_info()),
            ..Options::default()
        };
        let (mut swarm, carried) = self.magnet.into_swarm(self.now, geometry, have, options);
        swarm.check_invariants();
        assert_eq!(carried.len(), self.links.iter().flatten().count());
        for (old, taken) in carried {
            let link = self.links.iter().flatten().find(|link| link.key == old).unwrap();
            let Ok(key) = taken else { continue };
            let mut decoder = link.told.clone();
            decoder.set_piece_count(count);
            let (mut control, mut blocks) = (Vec::new(), Vec::new());
            swarm.poll_transmit(self.now, key, 1 << 20, &mut control, &mut blocks);
            assert!(blocks.is_empty(), "nothing was asked for");
            assert_eq!(decoder.decode_all(&control, |_| {}), Ok(()));
        }
        for _ in 0..100 {
            let Some(at) = swarm.poll_timeout() else { break };
            self.now = self.now.max(at);
            swarm.handle_timeout(self.now);
        }
        swarm.check_invariants();
        drop(swarm);
        assert_eq!(self.shared.unchoked_count(), 0);
        // Bans hold for all torrents, and so outlive this one.
        assert!(self.shared.banned_count() <= self.liars.len());
    }
}

fn is_right(info: &[u8], block: u32, data: &[u8]) -> bool {
    let len = u32::try_from(info.len()).unwrap();
    let range = metadata_block(len, block);
    range.is_some_and(|(start, len)| info.get(start as usize..(start + len) as usize) == Some(data))
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let world = |bits: u8| Script::default().bytes(&[bits]);
    let meet = |script: Script, slot: u8| script.bytes(&[0, slot, 0, slot + 1, 2, slot, 255]);
    let mut said = Vec::new();
    encode(&Message::HaveAll, &mut said);
    encode(&Message::Unchoke, &mut said);
    let right = meet(world(0), 0).bytes(&[1, 0]).chunk(&said).bytes(&[3, 0, 7, 0, 0]).0;
    let two = meet(meet(world(1), 0), 1).bytes(&[3, 0, 7, 3, 1, 7, 3, 0, 7, 3, 1, 7, 1, 1]).0;
    // Wrong blocks, until their sender is banned, and right ones from somebody else then.
    let mut liar = meet(meet(world(0), 0), 1).bytes(&[3, 0, 0, 3, 1, 0]);
    for _ in 0..6 {
        liar = liar.bytes(&[5, 0, 0xff, 0xff, 3, 0, 0, 3, 1, 7]);
    }
    let claims = (0..4).fold(world(2), |script, slot| {
        script.bytes(&[0, slot, 0, slot + 1, 2, slot, 10 + slot, 3, slot, slot, 5, 0, 0x40, 0])
    });
    let every = world(4).bytes(&[0, 0, 0, 1, 1, 0]).chunk(&wire::every_message(8)).bytes(&[6, 0]);
    let named =
        world(0).bytes(&[7, 0, 6, 9, 9, 9, 9, 0x1a, 0xe1, 5, 0, 9, 9, 0, 2, 1, 5, 2, 2, 255]);
    vec![right, two, liar.0, claims.0, every.0, named.bytes(&[3, 2, 4, 3, 2, 7]).0]
}
