//! Magnet links against peers of all kinds: seeds of ours, liars, and those who say nothing.

mod hostile;

use super::*;
use crate::swarm::choker::Slots;
use crate::swarm::{Shared, Swarm};
use crate::units::{BLOCK_LEN, Bitfield, Geometry, InfoHash, PeerId, PieceIndex};
use crate::wire::{Decoder, Incoming, Limits, metadata_block};
use sha1::{Digest, Sha1};

const PIECES: u32 = 9;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A swarm of ours that serves the metadata.
    Seed,
    /// Claims this length and sends rubbish.
    Liar(u32),
    /// Claims this length and never answers.
    Mute(u32),
    /// Claims this length and refuses every block.
    Refuser(u32),
    /// Claims this length and sends rubbish, just fast enough not to be called slow.
    Trickler(u32),
    /// The same, but it claims another length before its last block.
    Reclaimer(u32),
}

/// The swarm of a seed, and what it calls us.
type Behind = Option<(Swarm, PeerKey)>;

struct World {
    magnet: MagnetSwarm,
    info: Vec<u8>,
    now: Instant,
    peers: Vec<(Kind, PeerKey, Decoder, Behind)>,
    requests: Vec<u32>,
    /// Answers of tricklers, and when they come.
    late: Vec<(Instant, PeerKey, Vec<u8>)>,
    /// Blocks that each has sent, and the length that it claims now.
    sent: Vec<(u32, u32)>,
    names: Vec<u8>,
    /// Whether mutes come back by themselves when they are closed.
    is_stubborn: bool,
    /// Who is tried, in this order.
    tried: Vec<SocketAddr>,
    shared: Rc<Shared>,
    banned: Vec<Offender>,
    found: Option<Vec<u8>>,
}

fn geometry() -> Geometry {
    Geometry::new(u64::from(PIECES * BLOCK_LEN), BLOCK_LEN).unwrap()
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    Instant::now()
}

fn init(id: u8, outgoing: bool) -> PeerInit {
    let addr = SocketAddr::from(([20, 0, 0, id], 5000));
    PeerInit { addr, peer_id: PeerId([id; 20]), fast: true, extensions: true, dht: false, outgoing }
}

fn seed(info: &[u8]) -> Swarm {
    let options = Options {
        metadata: Some(info.to_vec().into()),
        peer_id: PeerId([200; 20]),
        ..Options::default()
    };
    let shared = Shared::new(None, None, Slots::Unlimited);
    Swarm::new(geometry(), Bitfield::all(PIECES), options, shared)
}

impl World {
    fn new(info_len: usize, seed_of_rng: u64, kinds: &[Kind]) -> Self {
        let mut info = vec![0; info_len];
        fastrand::Rng::with_seed(seed_of_rng).fill(&mut info);
        let info_hash = InfoHash(Sha1::digest(&info).into());
        let options = Options { info_hash, seed: seed_of_rng, ..Options::default() };
        let shared = Shared::new(None, None, Slots::Unlimited);
        let mut world = Self {
            magnet: MagnetSwarm::new(options, Rc::clone(&shared)),
            late: Vec::new(),
            sent: Vec::new(),
            names: Vec::new(),
            is_stubborn: false,
            tried: Vec::new(),
            shared,
            info,
            now: start(),
            peers: Vec::new(),
            requests: Vec::new(),
            banned: Vec::new(),
            found: None,
        };
        kinds.iter().for_each(|&kind| world.join(kind));
        world
    }

    fn join(&mut self, kind: Kind) {
        let id = u8::try_from(self.peers.len() + 1).unwrap();
        self.join_as(kind, init(id, true)).unwrap();
    }

    fn join_as(&mut self, kind: Kind, by: PeerInit) -> Result<(), Refused> {
        let key = self.magnet.handle_connected(self.now, by)?;
        let id = by.peer_id.0[0];
        let behind = (kind == Kind::Seed).then(|| {
            let mut swarm = seed(&self.info);
            let peer = swarm.handle_connected(self.now, init(id, false)).unwrap();
            (swarm, peer)
        });
        self.peers.push((kind, key, Decoder::new(Limits::new(PIECES)), behind));
        self.requests.push(0);
        self.names.push(id);
        self.sent.push((0, 0));
        if let Kind::Liar(len)
        | Kind::Mute(len)
        | Kind::Refuser(len)
        | Kind::Trickler(len)
        | Kind::Reclaimer(len) = kind
        {
            self.sent.last_mut().unwrap().1 = len;
            self.claim(key, len);
        }
        Ok(())
    }

    fn claim(&mut self, key: PeerKey, len: u32) {
        let handshake = ExtensionHandshake {
            m: vec![(METADATA_NAME.to_vec(), 9)],
            metadata_size: Some(len),
            ..ExtensionHandshake::default()
        };
        let payload = handshake.encode();
        let message = Message::Extended { id: 0, payload: &payload };
        self.magnet.handle_message(self.now, key, message).unwrap();
    }

    /// Gives what tricklers have to say by now.
    fn give_late(&mut self) {
        let now = self.now;
        let due = self.late.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>();
        for (_, key, answer) in due {
            let Some(index) = self.peers.iter().position(|peer| peer.1 == key) else { continue };
            let (sent, len) = &mut self.sent[index];
            *sent += 1;
            let is_last = *sent == crate::wire::metadata_block_count(*len);
            if is_last && matches!(self.peers[index].0, Kind::Reclaimer(_)) {
                (*sent, *len) = (0, *len - 1);
                let len = *len;
                self.claim(key, len);
                continue;
            }
            let message = Message::Extended { id: answer[5], payload: &answer[6..] };
            let _ = self.magnet.handle_message(now, key, message);
        }
    }

    /// Closes a connection; a mute comes back at once, and forgets nothing.
    fn hang_up(&mut self, key: PeerKey) {
        self.magnet.handle_disconnected(self.now, key);
        self.late.retain(|(_, other, _)| *other != key);
        let Some(index) = self.peers.iter().position(|peer| peer.1 == key) else { return };
        self.peers[index].1 = PeerKey(u32::MAX);
        if let (kind @ Kind::Mute(_), true) = (self.peers[index].0, self.is_stubborn) {
            let name = self.names[index];
            let _ = self.join_as(kind, init(name, false));
        }
    }

    /// Moves bytes until nobody has any; true if something moved.
    fn exchange(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.magnet.poll_action() {
            moved = true;
            match action {
                MagnetAction::Transmit(key) => self.transmit(key),
                MagnetAction::Close(key, _) => self.hang_up(key),
                MagnetAction::Connect(addr) => self.tried.push(addr),
                MagnetAction::Node(_) => {}
                MagnetAction::Ban(offender, _) => self.banned.push(offender),
                MagnetAction::Metadata(info) => assert!(self.found.replace(info).is_none()),
            }
        }
        for index in 0..self.peers.len() {
            moved |= self.answer(index);
        }
        moved
    }

    fn transmit(&mut self, key: PeerKey) {
        let mut bytes = Vec::new();
        self.magnet.poll_transmit(self.now, key, &mut bytes);
        let index = self.peers.iter().position(|peer| peer.1 == key).unwrap();
        let (kind, _, decoder, behind) = &mut self.peers[index];
        let mut answers: Vec<Vec<u8>> = Vec::new();
        let (kind, now, requests) = (*kind, self.now, &mut self.requests[index]);
        let (late, len) = (&mut self.late, self.sent[index].1);
        decoder
            .decode_all(&bytes, |incoming| {
                let Incoming::Message(message) = incoming else { panic!("a block?") };
                if let Some((swarm, peer)) = behind {
                    swarm.handle_message(now, *peer, message).unwrap();
                }
                let Message::Extended { id: 9, payload } = message else { return };
                let Ok(Some(MetadataMessage::Request { block })) = MetadataMessage::parse(payload)
                else {
                    return;
                };
                *requests += 1;
                let mut answer = Vec::new();
                match kind {
                    Kind::Liar(len) => {
                        let (_, size) = metadata_block(len, block).unwrap();
                        let data = vec![7; size as usize];
                        MetadataMessage::Data { block, total_len: Some(len), data: &data }
                            .encode(METADATA_ID, &mut answer);
                    }
                    Kind::Refuser(_) => {
                        MetadataMessage::Reject { block }.encode(METADATA_ID, &mut answer);
                    }
                    Kind::Trickler(_) | Kind::Reclaimer(_) => {
                        let (_, size) = metadata_block(len, block).unwrap();
                        let data = vec![7; size as usize];
                        MetadataMessage::Data { block, total_len: Some(len), data: &data }
                            .encode(METADATA_ID, &mut answer);
                        // Two are under way at a time.
                        late.push((now + Duration::from_millis(3000), key, answer));
                        return;
                    }
                    Kind::Seed | Kind::Mute(_) => {}
                }
                answers.push(answer);
            })
            .unwrap();
        for answer in answers.iter().filter(|answer| !answer.is_empty()) {
            let message = Message::Extended { id: answer[5], payload: &answer[6..] };
            let _ = self.magnet.handle_message(now, key, message);
        }
    }

    /// What a real seed has to say.
    fn answer(&mut self, index: usize) -> bool {
        let (now, key) = (self.now, self.peers[index].1);
        let Some((swarm, peer)) = &mut self.peers[index].3 else { return false };
        let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
        while swarm.poll_action().is_some() {}
        swarm.poll_transmit(now, *peer, 0, &mut bytes, &mut blocks);
        let mut decoder = Decoder::new(Limits::at_most(1000));
        let magnet = &mut self.magnet;
        decoder
            .decode_all(&bytes, |incoming| {
                if let Incoming::Message(message) = incoming {
                    magnet.handle_message(now, key, message).unwrap();
                }
            })
            .unwrap();
        !bytes.is_empty()
    }

    /// Runs until the metadata is there or so many seconds have passed.
    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        for _ in 0..100_000 {
            while self.exchange() {}
            let late = self.late.iter().map(|(at, ..)| *at);
            let next = late.chain(self.magnet.poll_timeout()).min().filter(|&at| at <= end);
            let Some(at) = next.filter(|_| self.found.is_none()) else { break };
            self.now = self.now.max(at);
            self.give_late();
            self.magnet.handle_timeout(self.now);
        }
    }
}

#[test]
fn a_seed_of_ours_gives_the_metadata_and_the_connection_goes_on() {
    for info_len in [1, 16_384, 16_385, 300_000] {
        let mut world = World::new(info_len, 1, &[Kind::Seed]);
        world.run(1);
        assert!(world.found.as_ref() == Some(&world.info), "{info_len} bytes");
        let key = world.peers[0].1;
        world.magnet.handle_message(world.now, key, Message::Unchoke).unwrap();
        let none = Bitfield::none(PIECES);
        let (mut swarm, carried) =
            world.magnet.into_swarm(world.now, geometry(), none, Options::default());
        assert_eq!(carried.len(), 1);
        let key = carried[0].1.unwrap();
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        swarm.poll_transmit(world.now, key, 0, &mut control, &mut blocks);
        let (mut asked, mut bitfields) = (0, 0);
        Decoder::new(Limits::new(PIECES))
            .decode_all(&control, |incoming| match incoming {
                Incoming::Message(Message::Request(_)) => asked += 1,
                Incoming::Message(Message::HaveNone | Message::Bitfield(_)) => bitfields += 1,
                _ => {}
            })
            .unwrap();
        assert_eq!((asked, bitfields), (PIECES, 0), "it has all, and we may ask at once");
        swarm.check_invariants();
    }
}

#[test]
fn one_honest_peer_is_enough() {
    let len = 100_000;
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut kinds = vec![Kind::Seed];
        for _ in 0..rng.usize(1..12) {
            let claim = if rng.bool() { len } else { rng.u32(1..200_000) };
            kinds.push(match rng.u32(..4) {
                0 | 1 => Kind::Liar(claim),
                2 => Kind::Mute(claim),
                _ => Kind::Refuser(claim),
            });
        }
        rng.shuffle(&mut kinds);
        let mut world = World::new(len as usize, seed, &kinds);
        world.run(3600);
        assert!(world.found.as_ref() == Some(&world.info), "seed {seed}: {kinds:?}");
        let honest = kinds.iter().position(|&kind| kind == Kind::Seed).unwrap();
        let its = Offender::of(init(u8::try_from(honest + 1).unwrap(), true).addr);
        assert!(!world.banned.contains(&its), "seed {seed}");
    }
}

#[test]
fn a_liar_alone_is_banned_after_two_failures() {
    let mut world = World::new(40_000, 5, &[Kind::Liar(40_000)]);
    world.run(3600);
    assert_eq!(world.banned, [Offender::of(init(1, true).addr)]);
    assert_eq!(world.magnet.peer_count(), 0);
    assert_eq!(world.requests[0], 2 * 3);
    let again = world.magnet.handle_connected(world.now, init(1, false));
    assert_eq!(again, Err(Refused::Banned));
    assert_eq!(world.magnet.handle_connected(world.now, init(2, false)).map(|_| ()), Ok(()));
}

#[test]
fn claims_cost_no_memory_and_few_requests() {
    let kinds: Vec<Kind> = (0..40).map(|number| Kind::Mute((8 << 20) - number)).collect();
    let mut world = World::new(1, 6, &kinds);
    world.run(0);
    assert_eq!(world.magnet.fetch.held_len(), 0);
    let asked: u32 = world.requests.iter().sum();
    assert!(asked > 0 && asked <= 3 * 2, "{asked} requests");
    world.join(Kind::Seed);
    world.run(3600);
    assert_eq!(world.found.as_ref(), Some(&world.info));
}

#[test]
fn contradictions_and_floods_end_a_connection() {
    let data = |len: u32, block: u32, total: u32| {
        let mut bytes = Vec::new();
        let data = vec![1; len as usize];
        MetadataMessage::Data { block, total_len: Some(total), data: &data }.encode(2, &mut bytes);
        bytes.split_off(6)
    };
    for (payload, expected) in [
        (data(16_384, 0, 30_000), Error::BadMetadata),
        (data(16_383, 0, 40_000), Error::BadMetadata),
        (b"de".to_vec(), Error::BadMetadata),
    ] {
        let mut world = World::new(1, 7, &[Kind::Mute(40_000)]);
        while world.exchange() {}
        let message = Message::Extended { id: METADATA_ID, payload: &payload };
        let key = world.peers[0].1;
        assert_eq!(world.magnet.handle_message(world.now, key, message), Err(expected));
    }
    let mut world = World::new(1, 7, &[Kind::Mute(40_000)]);
    let key = world.peers[0].1;
    let payload = data(5, 9, 5);
    let message = Message::Extended { id: METADATA_ID, payload: &payload };
    let ended = (0..100).find_map(|_| world.magnet.handle_message(world.now, key, message).err());
    assert_eq!(ended, Some(Error::Unrequested));
}

#[test]
fn what_is_said_of_pieces_is_bounded_and_judged_later() {
    let mut world = World::new(1, 8, &[Kind::Mute(5), Kind::Mute(5), Kind::Mute(5), Kind::Seed]);
    let keys: Vec<PeerKey> = world.peers.iter().map(|peer| peer.1).collect();
    // One says more than is kept, one what does not fit the torrent, one what does.
    for piece in 0..100_000 {
        world
            .magnet
            .handle_message(world.now, keys[0], Message::Have(PieceIndex(piece)))
            .unwrap_or(());
    }
    world.magnet.handle_message(world.now, keys[1], Message::Bitfield(&[0; 77])).unwrap();
    world.magnet.handle_message(world.now, keys[2], Message::Bitfield(&[0xff, 0x80])).unwrap();
    world.magnet.handle_message(world.now, keys[2], Message::Interested).unwrap();
    assert!(world.magnet.said_len < 1000, "{}", world.magnet.said_len);
    world.run(60);
    assert!(world.found.is_some());
    let mut have = Bitfield::none(PIECES);
    have.set(PieceIndex(3));
    let options = Options::default();
    let (mut swarm, carried) = world.magnet.into_swarm(world.now, geometry(), have, options);
    let of = |key| carried.iter().find(|(old, _)| *old == key).unwrap().1;
    assert_eq!(of(keys[0]), Err(Error::Forgotten));
    assert_eq!(of(keys[1]), Err(Error::BadBitfield));
    let stats = swarm.peer_stats(world.now, of(keys[2]).unwrap()).unwrap();
    assert!(stats.is_seed && stats.peer_interested && !stats.am_choking);
    assert_eq!(swarm.peer_count(), 2);
    let (mut control, mut blocks) = (Vec::new(), Vec::new());
    swarm.poll_transmit(world.now, of(keys[2]).unwrap(), 0, &mut control, &mut blocks);
    assert_eq!(control[..9], [0, 0, 0, 5, 4, 0, 0, 0, 3], "what we have is told in single words");
    swarm.check_invariants();
}

#[test]
fn no_bytes_break_the_machine() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(50_000, seed, &[Kind::Mute(50_000)]);
        let key = world.peers[0].1;
        for _ in 0..50 {
            let mut payload = Vec::new();
            let kind = rng.u32(..4);
            let len = rng.usize(..60);
            payload.extend_from_slice(
                format!("d8:msg_typei{kind}e5:piecei{}ee", rng.u32(..5)).as_bytes(),
            );
            payload.extend((0..len).map(|_| rng.u8(..)));
            if rng.bool() {
                let at = rng.usize(..payload.len());
                payload[at] = rng.u8(..);
            }
            let id = rng.u8(..3);
            let _ = world.magnet.handle_message(
                world.now,
                key,
                Message::Extended { id, payload: &payload },
            );
            world.exchange();
            world.now += Duration::from_millis(rng.u64(..20_000));
            world.magnet.handle_timeout(world.now);
        }
        assert!(world.magnet.fetch.held_len() <= 50_000);
    }
}

#[test]
fn the_swarm_serves_metadata_twice_and_no_more() {
    let info = vec![5; 5 * 16_384 + 9];
    let mut swarm = seed(&info);
    let now = start();
    let key = swarm.handle_connected(now, init(1, false)).unwrap();
    let handshake = ExtensionHandshake {
        m: vec![(METADATA_NAME.to_vec(), 44)],
        ..ExtensionHandshake::default()
    };
    let payload = handshake.encode();
    swarm.handle_message(now, key, Message::Extended { id: 0, payload: &payload }).unwrap();
    let (mut given, mut rejected, mut first) = (0, 0, None);
    let mut drain = |swarm: &mut Swarm| {
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        let mut turns = 0;
        while swarm.poll_transmit(now, key, 0, &mut control, &mut blocks) {
            turns += 1;
            assert!(turns < 100);
        }
        Decoder::new(Limits::new(PIECES))
            .decode_all(&control, |incoming| match incoming {
                Incoming::Message(Message::Extended { id: 44, payload }) => {
                    match MetadataMessage::parse(payload).unwrap().unwrap() {
                        MetadataMessage::Data { block, total_len, data } => {
                            let (_, len) = metadata_block(81_929, block).unwrap();
                            assert_eq!((total_len, data.len()), (Some(81_929), len as usize));
                            given += data.len();
                        }
                        MetadataMessage::Reject { .. } => rejected += 1,
                        MetadataMessage::Request { .. } => panic!("we need none"),
                    }
                }
                Incoming::Message(Message::Extended { id: 0, payload }) => {
                    first = Some(ExtensionHandshake::parse(payload).unwrap());
                }
                _ => {}
            })
            .unwrap();
    };
    for round in 0..4 {
        for block in 0..6 {
            let mut bytes = Vec::new();
            MetadataMessage::Request { block }.encode(METADATA_ID, &mut bytes);
            let message = Message::Extended { id: bytes[5], payload: &bytes[6..] };
            assert_eq!(swarm.handle_message(now, key, message), Ok(()), "{round}");
        }
        drain(&mut swarm);
    }
    let mut bytes = Vec::new();
    MetadataMessage::Request { block: 6 }.encode(METADATA_ID, &mut bytes);
    swarm.handle_message(now, key, Message::Extended { id: 2, payload: &bytes[6..] }).unwrap();
    drain(&mut swarm);
    assert_eq!((given, rejected), (2 * info.len(), 2 * 6 + 1));
    let first = first.unwrap();
    assert_eq!((first.metadata_size, first.id_of(METADATA_NAME)), (Some(81_929), Some(2)));
}
