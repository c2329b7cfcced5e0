//! Peer exchange and private torrents: what a swarm tells its peers of each other, and believes.

use super::*;
use crate::units::BLOCK_LEN;
use crate::wire::{
    Decoder, ExtensionHandshake, Incoming, Message, PEX_NAME, PexMessage,
    encode_extension_handshake, pex_flags,
};
use std::time::Duration;

const PIECES: u32 = 4;
/// The id under which the peers here want the extension.
const THEIR_ID: u8 = 33;

struct World {
    swarm: Swarm,
    now: Instant,
}

fn addr(id: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([20, 0, 1, id], port))
}

impl World {
    fn new(options: Options) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any moment will do")]
        let now = Instant::now();
        let geometry = Geometry::new(u64::from(PIECES * BLOCK_LEN), BLOCK_LEN).unwrap();
        let shared = Shared::new(None, None, Slots::Unlimited);
        let options = Options { peer_id: PeerId([250; 20]), ..options };
        Self { swarm: Swarm::new(geometry, Bitfield::none(PIECES), options, shared), now }
    }

    fn join(&mut self, addr: SocketAddr, outgoing: bool, listens: Option<u16>) -> PeerKey {
        let mut id = [0; 20];
        id.iter_mut().zip(addr.to_string().bytes()).for_each(|(to, byte)| *to = byte);
        let peer_id = PeerId(id);
        let init = PeerInit { addr, peer_id, fast: true, extensions: true, dht: true, outgoing };
        let key = self.swarm.handle_connected(self.now, init).unwrap();
        let handshake = ExtensionHandshake {
            m: vec![(PEX_NAME.to_vec(), THEIR_ID)],
            p: listens,
            ..ExtensionHandshake::default()
        };
        let mut bytes = Vec::new();
        encode_extension_handshake(&handshake, &mut bytes);
        self.extended(key, bytes[5], &bytes[6..]).unwrap();
        key
    }

    fn extended(&mut self, key: PeerKey, id: u8, payload: &[u8]) -> Result<(), Error> {
        self.swarm.handle_message(self.now, key, Message::Extended { id, payload })
    }

    fn tell(&mut self, key: PeerKey, message: &PexMessage) -> Result<(), Error> {
        let mut bytes = Vec::new();
        message.encode(extension::PEX_ID, &mut bytes);
        self.extended(key, bytes[5], &bytes[6..])
    }

    /// Lets time pass, a second at a time.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.swarm.handle_timeout(self.now);
        }
    }

    /// What the peer has heard, and every id in our extension handshakes.
    fn hear(&mut self, key: PeerKey) -> (Vec<PexMessage>, Vec<Option<u8>>) {
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        self.swarm.poll_transmit(self.now, key, 0, &mut control, &mut blocks);
        let (mut heard, mut ids) = (Vec::new(), Vec::new());
        Decoder::new(crate::wire::Limits::new(PIECES))
            .decode_all(&control, |incoming| match incoming {
                Incoming::Message(Message::Extended { id: THEIR_ID, payload }) => {
                    heard.push(PexMessage::parse(payload).unwrap());
                }
                Incoming::Message(Message::Extended { id: 0, payload }) => {
                    ids.push(ExtensionHandshake::parse(payload).unwrap().id_of(PEX_NAME));
                }
                _ => {}
            })
            .unwrap();
        (heard, ids)
    }

    /// Addresses that are to be connected to now.
    fn connects(&mut self) -> Vec<SocketAddr> {
        let mut connects = Vec::new();
        while let Some(action) = self.swarm.poll_action() {
            connects.extend(match action {
                Action::Connect(addr) => Some(addr),
                _ => None,
            });
        }
        connects.sort();
        connects
    }
}

fn added(addrs: &[SocketAddr]) -> PexMessage {
    PexMessage { added: addrs.iter().map(|&addr| (addr, 0)).collect(), dropped: Vec::new() }
}

#[test]
fn peers_hear_of_those_that_come_and_go_once_a_minute() {
    let mut world = World::new(Options::default());
    let first = world.join(addr(1, 5001), true, None);
    let second = world.join(addr(2, 40_000), false, Some(5002));
    // Nobody knows where these two listen, or it is nobody's business.
    world.join(addr(3, 40_001), false, None);
    world.join("10.0.0.1:5003".parse().unwrap(), true, None);
    world.pass(11);
    let (heard, ids) = world.hear(first);
    assert_eq!(ids, [Some(extension::PEX_ID)]);
    assert_eq!(heard, [added(&[addr(2, 5002)])]);
    let (heard, _) = world.hear(second);
    let reachable = vec![(addr(1, 5001), pex_flags::REACHABLE)];
    assert_eq!(heard, [PexMessage { added: reachable, dropped: Vec::new() }]);

    let third = world.join(addr(4, 5004), true, None);
    world.swarm.handle_disconnected(world.now, second);
    world.pass(48);
    assert_eq!(world.hear(first).0, [], "its minute is not over");
    world.pass(20);
    let expected = PexMessage {
        added: vec![(addr(4, 5004), pex_flags::REACHABLE)],
        dropped: vec![addr(2, 5002)],
    };
    assert_eq!(world.hear(first).0, [expected]);
    let (heard, _) = world.hear(third);
    assert!(heard[0].added.iter().all(|(addr, _)| *addr != self::addr(2, 5002)), "{heard:?}");
    world.pass(200);
    assert_eq!(world.hear(first).0, [], "there is no news");
    world.swarm.check_invariants();
}

#[test]
fn a_peer_is_told_of_fifty_at_most() {
    let mut world = World::new(Options::default());
    let first = world.join(addr(1, 5001), true, None);
    for number in 0..120 {
        world.join(SocketAddr::from(([21, 0, 0, number], 5000)), true, None);
    }
    world.pass(200);
    let heard = world.hear(first).0;
    assert_eq!(heard.iter().map(|message| message.added.len()).sum::<usize>(), PEX_TOLD_MAX);
}

#[test]
fn what_peers_tell_is_tried_within_limits() {
    let mut world = World::new(Options { local: Some(Default::default()), ..Options::default() });
    let teller = world.join(addr(1, 5001), true, None);
    let good = [addr(9, 6000), "[2600::9]:6000".parse().unwrap()];
    let bad = [
        "10.0.0.1:6000",
        "127.0.0.1:6000",
        "20.0.1.9:80",
        "169.254.169.254:6000",
        "224.0.0.1:6000",
    ];
    let bad = bad.map(|addr| addr.parse().unwrap());
    world.tell(teller, &added(&[&good[..], &bad].concat())).unwrap();
    assert_eq!(world.connects(), good);
    // Too early: passed over, and after some of it the connection ends.
    let ended =
        (0..100).find_map(|number| world.tell(teller, &added(&[addr(10, 6000 + number)])).err());
    assert_eq!(ended, Some(Error::PexFlood));
    world.pass(60);
    assert_eq!(world.connects(), []);
    assert_eq!(world.extended(teller, extension::PEX_ID, b"junk"), Err(Error::BadPex));
}

#[test]
fn a_private_torrent_exchanges_nothing_and_refuses_strangers() {
    let mut world = World::new(Options { private: true, ..Options::default() });
    let named = [addr(1, 5001), addr(2, 5002)];
    world.swarm.handle_contacts(world.now, Source::Tracker, &named);
    assert_eq!(world.connects(), named);
    let first = world.join(addr(1, 5001), true, None);
    world.join(addr(2, 5002), true, None);
    world.tell(first, &added(&[addr(9, 6000)])).unwrap();
    for source in [Source::Pex, Source::Dht, Source::Lsd] {
        world.swarm.handle_contacts(world.now, source, &[addr(10, 6000)]);
    }
    world.pass(120);
    let (heard, ids) = world.hear(first);
    assert_eq!((heard, ids), (vec![], vec![None]));
    assert_eq!(world.connects(), []);
    world.swarm.handle_contacts(world.now, Source::Tracker, &[addr(11, 6000)]);
    assert_eq!(world.connects(), [addr(11, 6000)]);
    world.join(addr(12, 40_000), false, Some(5002));
}

#[test]
fn neighbours_are_welcome_although_their_addresses_are_private() {
    for is_private in [false, true] {
        let local = Some(Default::default());
        let options = Options { local, private: is_private, ..Options::default() };
        let mut world = World::new(options);
        let init = |port| PeerInit {
            addr: SocketAddr::from(([192, 168, 1, 9], port)),
            peer_id: PeerId([9; 20]),
            fast: true,
            extensions: true,
            dht: false,
            outgoing: false,
        };
        let refused = world.swarm.handle_connected(world.now, init(40_000));
        assert_eq!(refused, Err(Refused::LocalAddress));
        let neighbour = SocketAddr::from(([192, 168, 1, 9], 5000));
        world.swarm.handle_contacts(world.now, Source::Lsd, &[neighbour]);
        let connected = world.swarm.handle_connected(world.now, init(40_001));
        assert_eq!(connected.is_ok(), !is_private);
        assert_eq!(world.connects(), if is_private { vec![] } else { vec![neighbour] });
    }
}

#[test]
fn where_peers_see_us_nobody_is_looked_for() {
    let mut world = World::new(Options::default());
    let ours = SocketAddr::from(([7, 7, 7, 7], 5000));
    world.swarm.shared.set_own_addrs(&["10.0.0.1:5000".parse().unwrap()]);
    for net in 0..20 {
        let key = world.join(SocketAddr::from(([20, 0, net, 1], 5001)), true, None);
        let handshake =
            ExtensionHandshake { yourip: Some(ours.ip()), ..ExtensionHandshake::default() };
        let mut bytes = Vec::new();
        encode_extension_handshake(&handshake, &mut bytes);
        world.extended(key, bytes[5], &bytes[6..]).unwrap();
    }
    let other = SocketAddr::from(([7, 7, 7, 7], 5001));
    world.swarm.handle_contacts(world.now, Source::Tracker, &[ours, other]);
    assert_eq!(world.connects(), [other]);
}

#[test]
fn exchange_can_be_switched_off() {
    let mut world = World::new(Options { pex: false, ..Options::default() });
    let first = world.join(addr(1, 5001), true, None);
    world.join(addr(2, 5002), true, None);
    world.tell(first, &added(&[addr(9, 6000)])).unwrap();
    world.pass(120);
    assert_eq!(world.hear(first), (vec![], vec![None]));
    assert_eq!(world.connects(), []);
}

/// BEP 5: who has a node of the DHT is told of ours, and the first word of its own counts.
#[test]
fn nodes_of_the_dht_are_told_both_ways_unless_the_torrent_has_none() {
    for dht_port in [Some(6881), None] {
        let mut world = World::new(Options { dht_port, ..Options::default() });
        let key = world.join(addr(1, 5000), false, None);
        let (mut control, mut blocks) = (Vec::new(), Vec::new());
        world.swarm.poll_transmit(world.now, key, 0, &mut control, &mut blocks);
        let mut told = Vec::new();
        Decoder::new(crate::wire::Limits::new(PIECES))
            .decode_all(&control, |incoming| {
                if let Incoming::Message(Message::Port(port)) = incoming {
                    told.push(port);
                }
            })
            .unwrap();
        assert_eq!(told, Vec::from_iter(dht_port));
        for port in [7000, 7000, 7001] {
            world.swarm.handle_message(world.now, key, Message::Port(port)).unwrap();
        }
        let actions = std::iter::from_fn(|| world.swarm.poll_action());
        let nodes: Vec<_> = actions.filter(|action| matches!(action, Action::Node(_))).collect();
        assert_eq!(nodes, Vec::from_iter(dht_port.map(|_| Action::Node(addr(1, 7000)))));
    }
}
