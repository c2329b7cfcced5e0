//! Datagrams through a whole engine.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::engine::Engine;
use super::super::settings::Settings;
use super::super::udp::{Machine, Transmit};
use super::{WAIT_MAX, block_on, impatient};
use crate::metrics::{DatagramDrop, DatagramKind, Direction};

/// Datagrams that are sent at once.
const BURST: usize = 40;

/// Returns what it gets through the socket that it came by, and says something when its time comes.
#[derive(Default)]
struct Echo {
    out: VecDeque<Transmit>,
    seen: Arc<Mutex<Vec<(usize, SocketAddr)>>>,
    alarm: Option<(Instant, SocketAddr)>,
}

impl Machine for Echo {
    fn handle_datagram(&mut self, now: Instant, socket: usize, from: SocketAddr, bytes: &[u8]) {
        self.seen.lock().unwrap().push((socket, from));
        self.out.push_back(Transmit { socket: Some(socket), to: from, bytes: bytes.to_vec() });
        self.alarm = Some((now + Duration::from_millis(20), from));
    }

    fn handle_timeout(&mut self, now: Instant) {
        let (at, to) = self.alarm.take().unwrap();
        assert!(at <= now);
        self.out.push_back(Transmit { socket: None, to, bytes: b"late".to_vec() });
    }

    fn poll_timeout(&self, _now: Instant) -> Option<Instant> {
        self.alarm.map(|(at, _)| at)
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }
}

/// Turns the engine until `socket` receives something.
async fn receive(engine: &mut Engine, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = [0; 2048];
    let answer = async {
        loop {
            if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                return (bytes[..len].to_vec(), from);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(WAIT_MAX, async {
        tokio::select! {
            event = engine.event() => panic!("unexpected: {event:?}"),
            answer = answer => answer,
        }
    })
    .await
    .expect("no answer came")
}

#[test]
fn a_machine_talks_through_the_sockets_of_the_peer_port() {
    block_on(async {
        let listen = ["127.0.0.1:0", "[::1]:0"].map(|addr| addr.parse().unwrap()).to_vec();
        let mut engine = Engine::start(Settings { listen, ..impatient() }).unwrap();
        assert_eq!(engine.udp().addrs(), engine.peer_addrs());
        assert!(engine.udp().reaches(true) && engine.udp().reaches(false));
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let echo = Echo { seen: Arc::clone(&seen), ..Echo::default() };
        engine.attach(DatagramKind::Dht, Box::new(echo));
        for (index, addr) in engine.peer_addrs().to_vec().into_iter().enumerate() {
            let other = UdpSocket::bind((addr.ip(), 0)).unwrap();
            other.set_nonblocking(true).unwrap();
            // What is nothing, too long, or nobody's is dropped without a word.
            other.send_to(&[1; 20], addr).unwrap();
            other.send_to(&[b'd'; 9000], addr).unwrap();
            other.send_to(&[0; 16], addr).unwrap();
            let ask = |number: usize| format!("d{}:{number}e", "x".repeat(number * 20));
            for number in 0..BURST {
                other.send_to(ask(number).as_bytes(), addr).unwrap();
            }
            let mut answers = Vec::new();
            while answers.len() <= BURST {
                let (bytes, from) = receive(&mut engine, &other).await;
                assert_eq!(from, addr);
                answers.push(String::from_utf8(bytes).unwrap());
            }
            let asked: Vec<_> = (0..BURST).map(ask).chain(["late".to_owned()]).collect();
            answers.sort_unstable_by_key(|it| asked.iter().position(|other| other == it));
            assert_eq!(answers, asked);
            let here = (index, other.local_addr().unwrap());
            assert_eq!(seen.lock().unwrap().split_off(0), vec![here; BURST]);
        }
        let core = Arc::clone(&engine.registry().cores()[0]);
        let count = |direction, kind| core.udp_datagrams[(direction, kind)].get();
        let burst = BURST as u64;
        assert_eq!(count(Direction::Incoming, DatagramKind::Dht), 2 * burst);
        assert_eq!(count(Direction::Incoming, DatagramKind::Tracker), 2);
        assert_eq!(count(Direction::Incoming, DatagramKind::Unknown), 2);
        assert_eq!(engine.cells().udp_dropped[DatagramDrop::Unclaimed].get(), 0);
        // They went to the machine behind the UDP trackers, which had asked nobody.
        assert_eq!(engine.trackers().ignored_datagrams().transaction, 2);
        assert_eq!(core.udp_dropped[DatagramDrop::TooLong].get(), 2);
        assert_eq!(core.udp_dropped[DatagramDrop::Unknown].get(), 2);
        // What is handed over before the end still leaves.
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.set_read_timeout(Some(WAIT_MAX)).unwrap();
        let to = other.local_addr().unwrap();
        engine.udp().send(DatagramKind::Tracker, to, b"farewell".to_vec()).unwrap();
        engine
            .udp()
            .send(DatagramKind::Tracker, "1.2.3.4:5".parse().unwrap(), Vec::new())
            .unwrap_err();
        engine.shutdown().await;
        let mut bytes = [0; 64];
        let len = other.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"farewell");
        assert_eq!(count(Direction::Outgoing, DatagramKind::Tracker), 1);
        assert_eq!(count(Direction::Outgoing, DatagramKind::Dht), 2 * burst + 2);
        assert_eq!(core.udp_dropped[DatagramDrop::NoSocket].get(), 1);
    });
}
