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
    start_after(ring, |_| {})
}

/// The same; `begin` is done before the worker starts.
fn start_after(ring: Ring, begin: impl FnOnce(&Udp)) -> (Fleet, Udp, mpsc::Receiver<Arrival>) {
    let socket = net::datagram_socket(&(Ipv4Addr::LOCALHOST, 0).into(), None).unwrap();
    let addr = net::local_addr(socket.as_fd()).unwrap();
    let mut others = None;
    let fleet = Fleet::start_with(1, 1, ring, &options(), |mailboxes| {
        let (end, udp, arrivals) = ends(vec![(addr, socket)], Arc::clone(mailboxes));
        begin(&udp);
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
fn a_full_queue_of_arrivals_drops_and_counts() {
    let (fleet, udp, mut arrivals) = start(Ring::Plain);
    let (other, _) = other();
    let core = Arc::clone(&fleet.members[0].core);
    let dropped = || core.udp_dropped[DatagramDrop::QueueIn].get();
    let came = || core.udp_datagrams[(Direction::Incoming, DatagramKind::Tracker)].get();
    wait_for("more to come than the queue takes", || {
        for _ in 0..64 {
            other.send_to(&[0; 16], udp.addrs()[0]).unwrap();
        }
        dropped() > 100
    });
    let mut taken = 0;
    wait_for("all of the queue", || {
        taken += std::iter::from_fn(|| arrivals.try_recv().ok()).count() as u64;
        taken + dropped() == came()
    });
    assert!(taken >= ARRIVALS_MAX as u64);
    udp.close();
    fleet.stop();
}

#[test]
fn a_full_queue_of_departures_refuses_and_all_of_it_leaves_before_the_end() {
    let (other, to) = other();
    let departure = Departure { socket: None, to, kind: DatagramKind::Dht, bytes: vec![b'd'; 9] };
    // Before the worker starts, so that it takes none.
    let (fleet, udp, _arrivals) = start_after(Ring::Plain, |udp| {
        for _ in 0..DEPARTURES_MAX {
            udp.offer(departure.clone()).unwrap();
        }
        assert_eq!(udp.offer(departure.clone()), Err(Unsent::Full(departure.clone())));
        udp.send(DatagramKind::Dht, to, vec![1]).unwrap_err();
        udp.close();
    });
    let core = Arc::clone(&fleet.members[0].core);
    assert!(udp.reaches(true) && !udp.reaches(false));
    fleet.stop();
    let left = core.udp_datagrams[(Direction::Outgoing, DatagramKind::Dht)].get();
    let dropped = |reason| core.udp_dropped[reason].get();
    assert_eq!(left + dropped(DatagramDrop::Send), DEPARTURES_MAX as u64);
    assert_eq!(core.udp_bytes[(Direction::Outgoing, DatagramKind::Dht)].get(), left * 9);
    assert_eq!(dropped(DatagramDrop::QueueOut), 1);
    assert_eq!(other.recv(&mut [0; 64]).unwrap(), 9);
}
