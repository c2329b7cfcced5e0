//! Slots and rates.

use std::cell::Cell;
use std::net::{TcpListener, TcpStream, UdpSocket};

use super::connection::{SEND_LEN_MAX, ZeroCopy};
use super::fleet::{idle_worker, idle_worker_on, options};
use super::*;
use crate::metrics::{AcceptResult, DisconnectReason};
use crate::ring::{Counters, Uring, Waker};
use crate::swarm;
use crate::units::Bitfield;
use crate::wire::HandshakeReader;
use crate::worker::Options;
use crate::worker::connection::Phase;

#[test]
fn one_slot_serves_one_peer_at_a_time() {
    // More pieces than anyone may have while choked.
    let torrent = Torrent::new(&[("one", 1_000_000)], 16 * 1024, 18);
    on_every_ring(Faults::rough(), 0..3, |ring| {
        let fleet = Fleet::start(1, 1, ring, &options());
        fleet.post(0, Letter::Budget { slots: Some(1), up: None, down: None });
        fleet.seed(0, &torrent);
        let (addr, blocks) = (fleet.members[0].addr, torrent.blocks());
        let mut first = Peer::asking(addr, &torrent, 30, &blocks);
        first.expect(&torrent, &blocks);
        // Blocks of the allowed-fast set come also to those who are choked.
        let mut second = Peer::asking(addr, &torrent, 31, &blocks);
        second.read_until("answers", |peer| peer.rejects.len() + peer.blocks.len() >= blocks.len());
        assert!(!second.is_unchoked && !second.rejects.is_empty());
        drop(first);
        second.read_until("the slot", |peer| peer.is_unchoked);
        second.rejects.clear();
        second.send(&peer::requests(&blocks));
        second.expect(&torrent, &blocks);
        drop(second);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn an_upload_limit_holds() {
    const RATE: u64 = 1_000_000;
    let torrent = any_torrent(2_000_000, 19);
    on_every_ring(Faults::rough(), 0..1, |ring| {
        let fleet = Fleet::start(1, 1, ring, &options());
        fleet.post(0, Letter::Budget { slots: None, up: Some(RATE), down: None });
        fleet.seed(0, &torrent);
        let begun = clock::now();
        let mut peer = Peer::asking(fleet.members[0].addr, &torrent, 32, &torrent.blocks());
        let of = |peer: &Peer| peer.blocks.values().map(|bytes| bytes.len() as u64).sum::<u64>();
        peer.read_until("blocks", |peer| of(peer) >= RATE / 2);
        let (took, came) = (clock::now() - begun, of(&peer));
        let most = u128::from(RATE) * (took + crate::rate::BURST).as_millis() / 1000 + 2 * 16_384;
        assert!(u128::from(came) <= most, "{came} bytes in {took:?}");
        drop(peer);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn who_only_holds_a_place_gives_way() {
    let torrent = any_torrent(300_000, 20);
    on_every_ring(Faults::rough(), 0..3, |ring| {
        let fleet = Fleet::start(1, 1, ring, &Options { connections_max: 3, ..options() });
        let have = Bitfield::all(torrent.geometry.piece_count());
        // Whoever has nothing to do is idle at once.
        let swarm = swarm::Options { idle_min: Duration::ZERO, ..swarm::Options::default() };
        fleet.add_with(0, &torrent, torrent.path(), have, swarm);
        let (addr, blocks) = (fleet.members[0].addr, torrent.blocks());
        let mut mute: Vec<_> =
            (33..36).map(|name| Peer::asking(addr, &torrent, name, &[])).collect();
        for peer in &mut mute {
            peer.read_until("the greeting", |peer| peer.is_unchoked);
        }
        let mut newcomer = Peer::asking(addr, &torrent, 36, &blocks);
        newcomer.expect(&torrent, &blocks);
        assert_eq!(fleet.members[0].core.disconnects[DisconnectReason::Idle].get(), 1);
        drop((mute, newcomer));
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn connections_that_are_dead_on_arrival_are_counted() {
    let (mut worker, core) = idle_worker();
    let counts = || [AcceptResult::Ok, AcceptResult::Error].map(|it| core.accepts[it].get());
    // A socket without another side has no address of it, and one that is not TCP has no delay to
    // be taken away: so it is with connections that died meanwhile.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    worker.on_accepted(Target::Listener(0).tag(), Ok(deaf.into()), false);
    assert_eq!(counts(), [0, 1]);
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let odd = UdpSocket::bind("127.0.0.1:0").unwrap();
    odd.connect(other.local_addr().unwrap()).unwrap();
    worker.on_accepted(Target::Listener(0).tag(), Ok(odd.into()), false);
    assert_eq!(counts(), [0, 2]);
}

/// A driver that does nothing and notes whether the last send asked to do without a copy.
struct Idle {
    inner: Uring,
    zero_copy: Rc<Cell<bool>>,
}

impl Driver for Idle {
    fn push(&mut self, _: Tag, op: Op) {
        if let Op::Send { zero_copy, .. } = op {
            self.zero_copy.set(zero_copy);
        }
    }

    fn cancel(&mut self, _: Tag) {}

    fn wait(&mut self, _: Option<Duration>, _: &mut VecDeque<Event>) -> io::Result<()> {
        Ok(())
    }

    fn waker(&self) -> Arc<Waker> {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn counters(&self) -> &Counters {
        self.inner.counters()
    }
}

#[test]
fn a_peer_that_acknowledges_nothing_keeps_few_pages_held() {
    let zero_copy = Rc::new(Cell::new(false));
    let noted = Rc::clone(&zero_copy);
    let (mut worker, _) = idle_worker_on(|inner| Idle { inner, zero_copy: noted });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let socket = Rc::new(OwnedFd::from(TcpStream::connect(addr).unwrap()));
    let mut conn = Conn::new(socket, addr, Phase::Incoming(HandshakeReader::new()));
    conn.zero_copy = ZeroCopy::On;
    let key = worker.conns.insert(conn);
    let tag = Target::Send(key).tag();
    // Every send is taken whole, and those without a copy stay with the kernel.
    let send = |worker: &mut Worker<Idle>| {
        worker.conns.get_mut(key).unwrap().outbox = vec![0; SEND_LEN_MAX];
        worker.send_to(key);
        worker.on_sent(tag, Ok(SEND_LEN_MAX), zero_copy.get());
        zero_copy.get()
    };
    let sent: Vec<_> = (0..8).map(|_| send(&mut worker)).collect();
    assert_eq!(sent, [true, true, true, true, false, false, false, false]);
    worker.on_released(tag, false);
    assert_eq!([send(&mut worker), send(&mut worker)], [true, false]);
}
