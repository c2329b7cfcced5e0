//! Scenarios on the real kernel, each written for any driver and run on several.

mod datagrams;
mod echo;
mod files;
mod sockets;
mod start;

use super::*;
use crate::sys::clock;
use crate::sys::net;
use std::os::fd::AsFd;

/// How long a scenario may take before it has failed.
const SCENARIO_MAX: Duration = Duration::from_secs(60);

/// A driver with a configuration, or the sentence that says why there is none.
fn uring(config: &Config) -> Uring {
    Uring::new(config).unwrap_or_else(|unavailable| panic!("{unavailable}"))
}

/// Small queues and pools, so that everything that can overflow does.
fn tiny() -> Config {
    Config {
        entries: 8,
        completions: 16,
        small_buffers: Buffers { count: 2, len: 512 },
        large_buffers: Buffers { count: 2, len: 8192 },
        datagram_buffers: Buffers { count: 2, len: 1024 },
        ..Config::default()
    }
}

/// Turns the driver and hands its events over until `handle` says that it has seen enough.
fn run<D: Driver>(driver: &mut D, mut handle: impl FnMut(&mut D, Event) -> bool) {
    let end = clock::now() + SCENARIO_MAX;
    let mut events = VecDeque::new();
    loop {
        driver.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
        while let Some(event) = events.pop_front() {
            if handle(driver, event) {
                return;
            }
        }
        assert!(clock::now() < end, "no end: {} in flight", driver.in_flight());
    }
}

/// Turns the driver until nothing is in flight, and returns what came.
fn drain<D: Driver>(driver: &mut D) -> Vec<Event> {
    let end = clock::now() + SCENARIO_MAX;
    let mut events = VecDeque::new();
    while driver.in_flight() > 0 {
        driver.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
        assert!(clock::now() < end, "no end: {} in flight", driver.in_flight());
    }
    events.into()
}

/// Every operation that was pushed has had its last event.
fn assert_balanced<D: Driver>(driver: &D) {
    assert_eq!(driver.in_flight(), 0);
    assert_eq!(driver.counters().strays, 0);
    for kind in OpKind::ALL {
        let count = driver.counters().of(kind);
        assert_eq!(count.submitted, count.completed, "{}", kind.label());
    }
}

/// Two ends of a TCP connection over loopback.
fn tcp_pair() -> (Handle, Handle) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    (Rc::new(client.into()), Rc::new(server.into()))
}

/// Two connected sockets whose kernel buffers are as small as they can be.
fn narrow_pair() -> (Handle, Handle) {
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    for socket in [&client, &server] {
        net::set_send_buffer(socket.as_fd(), 1).unwrap();
    }
    (Rc::new(client.into()), Rc::new(server.into()))
}

/// Byte `at` of the stream that every connection carries.
fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]
}

/// A tag that is the index of something.
fn index_of(tag: Tag) -> usize {
    usize::try_from(tag.0).unwrap()
}
