//! A worker that is the home of UDP sockets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::fleet::options;
use super::*;
use crate::metrics::{DatagramDrop, DatagramKind, Direction};
use crate::sys::net;
use crate::worker::datagrams::{
    ARRIVALS_MAX, Arrival, DEPARTURES_MAX, Departure, Udp, Unsent, ends,
};

/// A worker with one UDP socket, what goes to it, and what comes from it.
fn start(ring: Ring) -> (Fleet, Udp, mpsc::Receiver<Arrival>) {
    let socket = net::datagram_socket(&(Ipv4Addr::LOCALHOST, 0).into(), None).unwrap();
    let addr = net::local_addr(socket.as_fd()).unwrap();
    let mut others = None;
    let fleet = Fleet::start_with(1, 1, ring, &options(), |mailboxes| {
        let (end, udp, arrivals) = ends(vec![(addr, socket)], Arc::clone(mailboxes));
        others = Some((udp, arrivals));
        Some(end)
    });
    let (udp, arrivals) = others.unwrap();
    (fleet, udp, arrivals)
}

fn other() -> (UdpSocket, SocketAddr) {
    let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    other.set_nonblocking(true).unwrap();
    let addr = other.local_addr().unwrap();
    (other, addr)
}

/// Questions and answers until each number has made its way, whatever is lost.
fn exchange(ring: Ring) {
    let (fleet, udp, mut arrivals) = start(ring);
    let (other, from) = other();
    let mut open: BTreeSet<u32> = (0..50).collect();
    let mut bytes = [0; 64];
    wait_for("every number to come back", || {
        for number in &open {
            other.send_to(format!("d{number}e").as_bytes(), udp.addrs()[0]).unwrap();
        }
        while let Ok(arrival) = arrivals.try_recv() {
            assert_eq!((arrival.socket, arrival.from, arrival.kind), (0, from, DatagramKind::Dht));
            udp.send(arrival.kind, from, arrival.bytes).unwrap();
        }
        while let Ok(len) = other.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[1..len - 1]).unwrap();
            open.remove(&text.parse().unwrap());
        }
        open.is_empty()
    });
    udp.close();
    fleet.stop();
}

#[test]
fn datagrams_come_and_go_whatever_the_ring_does() {
    on_every_ring(Faults::rough(), 0..3, exchange);
    run_on(Ring::Faulty(Faults::hostile(), 7), exchange);
}

#[test]
fn full_queues_drop_and_count_and_the_worker_goes_on() {
    let (mut fleet, udp, mut arrivals) = start(Ring::Plain);
    let (other, to) = other();
    let core = Arc::clone(&fleet.members[0].core);
    let dropped = |reason| core.udp_dropped[reason].get();
    let came = || core.udp_datagrams[(Direction::Incoming, DatagramKind::Tracker)].get();
    wait_for("more to come than the queue takes", || {
        for _ in 0..64 {
            other.send_to(&[0; 16], udp.addrs()[0]).unwrap();
        }
        dropped(DatagramDrop::QueueIn) > 100
    });
    let mut taken = 0;
    wait_for("all of the queue", || {
        taken += std::iter::from_fn(|| arrivals.try_recv().ok()).count() as u64;
        taken + dropped(DatagramDrop::QueueIn) == came()
    });
    assert!(taken >= ARRIVALS_MAX as u64);
    // It sends as fast as we ask; so it is given something to do first.
    let departure =
        Departure { socket: None, to, kind: DatagramKind::Dht, bytes: vec![b'd'; 1000] };
    let mut asked = 0;
    let mut refused = 0;
    while refused == 0 && asked < 100 * DEPARTURES_MAX {
        match udp.offer(departure.clone()) {
            Ok(()) => asked += 1,
            Err(Unsent::Full(same)) => {
                assert_eq!(same, departure);
                refused = 1;
                let sent = udp.send(same.kind, same.to, same.bytes);
                asked += usize::from(sent.is_ok());
            }
            Err(error) => panic!("{error}"),
        }
    }
    // All that was taken leaves before the worker ends.
    udp.close();
    assert!(fleet.report_now().is_none(), "a closed door is no reason to end");
    fleet.stop();
    let left = core.udp_datagrams[(Direction::Outgoing, DatagramKind::Dht)].get();
    assert_eq!(left + dropped(DatagramDrop::Send), asked as u64);
    assert_eq!(core.udp_bytes[(Direction::Outgoing, DatagramKind::Dht)].get(), left * 1000);
}
