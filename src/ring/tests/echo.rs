//! Many connections send batches of every kind and get the same bytes back.

use super::*;
use crate::sys::map::Mapping;
use std::io::Write;
use std::sync::Arc;

/// Bytes of the file that leases are taken from; the stream repeats after that many.
const SOURCE_LEN: usize = 1 << 18;

/// Memory and a mapping with the same bytes.
struct Source {
    mapped: Lease,
    pooled: Lease,
}

impl Source {
    fn new() -> Source {
        let bytes: Vec<u8> = (0..SOURCE_LEN).map(pattern).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mapping = Mapping::new(&file.into(), SOURCE_LEN as u64).unwrap();
        Source {
            mapped: Lease::Mapped(Rc::new(Arc::new(mapping))),
            pooled: Lease::Pooled(Rc::new(bytes)),
        }
    }

    /// A batch of up to `len_max` bytes of the stream from `at` on.
    fn batch(&self, rng: &mut fastrand::Rng, mut at: usize, len_max: usize) -> Batch {
        let mut batch = Batch::new();
        while batch.len() < len_max && !batch.is_full() {
            let offset = at % SOURCE_LEN;
            let len = rng.usize(1..=20_000).min(SOURCE_LEN - offset).min(len_max - batch.len());
            match rng.u8(0..3) {
                0 => batch.push_lease(&self.mapped, offset, len).unwrap(),
                1 => batch.push_lease(&self.pooled, offset, len).unwrap(),
                _ => {
                    let bytes: Vec<u8> = (offset..offset + len).map(pattern).collect();
                    batch.push_bytes(&bytes).unwrap();
                }
            }
            at += len;
        }
        batch
    }
}

/// What is being sent on one end.
#[derive(Default)]
struct Sending {
    batch: Option<Rc<Batch>>,
    from: usize,
}

/// One connection: end 0 sends and verifies, end 1 returns what it gets.
struct Connection {
    ends: [Handle; 2],
    sending: [Sending; 2],
    sent: usize,
    to_return: Vec<u8>,
    verified: usize,
    released: usize,
    held: usize,
    is_broken: bool,
}

pub(super) struct Echo {
    pub(super) connections: usize,
    pub(super) bytes_each: usize,
    pub(super) zero_copy: bool,
    pub(super) pair: fn() -> (Handle, Handle),
}

/// What came of it.
#[derive(Default, Debug)]
pub(super) struct Outcome {
    pub(super) echoed: usize,
    pub(super) broken: usize,
}

struct World<'a> {
    rng: fastrand::Rng,
    source: Source,
    echo: &'a Echo,
    connections: Vec<Connection>,
}

fn tag(connection: usize, end: usize) -> Tag {
    Tag((connection * 2 + end) as u64)
}

impl World<'_> {
    /// Begins or goes on with a send, if there is something to send and none in flight.
    fn send<D: Driver>(&mut self, driver: &mut D, index: usize, end: usize) {
        let connection = &mut self.connections[index];
        if connection.is_broken {
            return;
        }
        if connection.sending[end].batch.is_none() {
            let batch = if end == 0 {
                let len = self.rng.usize(1..=100_000).min(self.echo.bytes_each - connection.sent);
                let batch = self.source.batch(&mut self.rng, connection.sent, len);
                connection.sent += batch.len();
                batch
            } else {
                let mut batch = Batch::new();
                batch.push_bytes(&std::mem::take(&mut connection.to_return)).unwrap();
                batch
            };
            if batch.is_empty() {
                return;
            }
            connection.sending[end] = Sending { batch: Some(Rc::new(batch)), from: 0 };
        }
        let Sending { batch: Some(batch), from } = &connection.sending[end] else { return };
        let op = Op::Send {
            socket: Rc::clone(&connection.ends[end]),
            batch: Rc::clone(batch),
            from: *from,
            zero_copy: self.echo.zero_copy,
        };
        driver.push(tag(index, end), op);
    }

    fn recv<D: Driver>(&mut self, driver: &mut D, index: usize, end: usize) {
        let connection = &self.connections[index];
        if !connection.is_broken {
            let pool = if self.rng.bool() { Pool::Small } else { Pool::Large };
            let socket = Rc::clone(&connection.ends[end]);
            driver.push(tag(index, end), Op::Recv { socket, pool });
        }
    }

    fn received<D: Driver>(&mut self, driver: &mut D, index: usize, end: usize, bytes: &[u8]) {
        let connection = &mut self.connections[index];
        if end == 0 {
            for &byte in bytes {
                assert_eq!(byte, pattern(connection.verified % SOURCE_LEN));
                connection.verified += 1;
            }
        } else {
            connection.to_return.extend_from_slice(bytes);
            if connection.sending[1].batch.is_none() {
                self.send(driver, index, 1);
            }
        }
        if self.connections[index].verified < self.echo.bytes_each || end == 1 {
            self.recv(driver, index, end);
        } else {
            net::shutdown(self.connections[index].ends[0].as_fd()).ok();
        }
    }

    fn break_off<D: Driver>(&mut self, driver: &mut D, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.is_broken {
            connection.is_broken = true;
            for end in [0, 1] {
                net::shutdown(connection.ends[end].as_fd()).ok();
                driver.cancel(tag(index, end));
            }
        }
    }

    fn handle<D: Driver>(&mut self, driver: &mut D, event: Event) {
        match event {
            Event::Received { tag, result } => {
                let (index, end) = (index_of(tag) / 2, index_of(tag) % 2);
                match result {
                    Ok(buffer) if buffer.is_empty() => {
                        let is_done = self.connections[index].verified == self.echo.bytes_each;
                        if !is_done {
                            self.break_off(driver, index);
                        }
                    }
                    Ok(buffer) => self.received(driver, index, end, &buffer),
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        self.recv(driver, index, end);
                    }
                    Err(_) => self.break_off(driver, index),
                }
            }
            Event::Sent { tag, result, held } => {
                let (index, end) = (index_of(tag) / 2, index_of(tag) % 2);
                let connection = &mut self.connections[index];
                connection.held += usize::from(held);
                match result {
                    Ok(count) => {
                        let sending = &mut connection.sending[end];
                        sending.from += count;
                        let batch = sending.batch.as_ref().expect("a send was in flight");
                        assert!(sending.from <= batch.len());
                        if sending.from == batch.len() {
                            sending.batch = None;
                        }
                        self.send(driver, index, end);
                    }
                    Err(_) => self.break_off(driver, index),
                }
            }
            Event::Released { tag, .. } => {
                let connection = &mut self.connections[index_of(tag) / 2];
                connection.released += 1;
                assert!(connection.released <= connection.held, "released before it was sent");
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
}

/// Runs the scenario until nothing is in flight.
pub(super) fn echo<D: Driver>(driver: &mut D, seed: u64, echo: &Echo) -> Outcome {
    let connections = (0..echo.connections).map(|_| {
        let (client, server) = (echo.pair)();
        Connection {
            ends: [client, server],
            sending: Default::default(),
            sent: 0,
            to_return: Vec::new(),
            verified: 0,
            released: 0,
            held: 0,
            is_broken: false,
        }
    });
    let connections = connections.collect();
    let rng = fastrand::Rng::with_seed(seed);
    let mut world = World { rng, source: Source::new(), echo, connections };
    for index in 0..echo.connections {
        world.recv(driver, index, 0);
        world.recv(driver, index, 1);
        world.send(driver, index, 0);
    }
    let end = clock::now() + SCENARIO_MAX;
    let mut events = VecDeque::new();
    while driver.in_flight() > 0 || !events.is_empty() {
        driver.wait(Some(Duration::from_millis(50)), &mut events).unwrap();
        while let Some(event) = events.pop_front() {
            world.handle(driver, event);
        }
        assert!(clock::now() < end, "seed {seed}: {} in flight", driver.in_flight());
    }
    let mut outcome = Outcome::default();
    for connection in &world.connections {
        assert_eq!(connection.held, connection.released, "seed {seed}");
        outcome.broken += usize::from(connection.is_broken);
        outcome.echoed += usize::from(connection.verified == echo.bytes_each);
        assert!(connection.is_broken || connection.verified == echo.bytes_each, "seed {seed}");
    }
    assert_balanced(driver);
    outcome
}

#[test]
fn bytes_come_back_through_roomy_queues() {
    let scenario =
        Echo { connections: 20, bytes_each: 1_000_000, zero_copy: false, pair: tcp_pair };
    let outcome = echo(&mut uring(&Config::default()), 1, &scenario);
    assert_eq!(outcome.echoed, 20);
}

#[test]
fn bytes_come_back_through_tiny_queues_and_sockets() {
    let scenario =
        Echo { connections: 40, bytes_each: 60_000, zero_copy: false, pair: narrow_pair };
    for level in Level::ALL {
        let mut driver = uring(&Config { level_max: level, ..tiny() });
        assert_eq!(driver.features().level, level);
        let outcome = echo(&mut driver, 2, &scenario);
        assert_eq!(outcome.echoed, 40);
        let counters = driver.counters();
        assert!(counters.sq_full > 0, "{counters:?}");
        assert!(counters.enobufs > 0, "{counters:?}");
        assert!(counters.short_sends > 0, "{counters:?}");
    }
}

#[test]
fn zero_copy_over_loopback_admits_that_it_copied() {
    let scenario = Echo { connections: 5, bytes_each: 500_000, zero_copy: true, pair: tcp_pair };
    let mut driver = uring(&Config::default());
    assert_eq!(echo(&mut driver, 3, &scenario).echoed, 5);
    if driver.features().zero_copy {
        let counters = driver.counters();
        assert!(counters.zero_copy_copied > 0, "{counters:?}");
        assert_eq!(counters.zero_copy_sent, 0, "{counters:?}");
    }
}

#[test]
fn bytes_come_back_whatever_the_kernel_may_do() {
    for seed in 0..50 {
        let scenario = Echo {
            connections: 6,
            bytes_each: 60_000,
            zero_copy: seed % 2 == 0,
            pair: if seed % 3 == 0 { tcp_pair } else { narrow_pair },
        };
        // Zero-copy is an error on unix sockets.
        let scenario = Echo { zero_copy: scenario.zero_copy && seed % 3 == 0, ..scenario };
        let config = if seed % 5 == 0 { Config::default() } else { tiny() };
        let mut driver = Faulty::new(uring(&config), Faults::rough(), seed);
        let outcome = echo(&mut driver, seed, &scenario);
        assert_eq!(outcome.echoed, 6, "seed {seed}");
        assert_balanced(driver.inner());
    }
}

#[test]
fn broken_connections_end_with_all_their_events() {
    let mut broken = 0;
    for seed in 0..50 {
        let scenario = Echo { connections: 6, bytes_each: 30_000, zero_copy: true, pair: tcp_pair };
        let mut driver = Faulty::new(uring(&tiny()), Faults::hostile(), seed);
        broken += echo(&mut driver, seed, &scenario).broken;
        assert_balanced(driver.inner());
    }
    assert!(broken > 0);
}
