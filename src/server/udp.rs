//! The machines behind the UDP sockets, and what turns them on the control thread.
//!
//! Datagrams that a worker received enter, with due timers; what the machines have to say leaves
//! through the worker. A machine says what else it found out by ways of its own: it may share its
//! state with whoever attached it. Invariant: nothing here blocks, a turn is bounded by the named
//! limits, and what a machine wants to send waits in the machine while the worker's queue is full.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::metrics::{Core, DatagramDrop, DatagramKind};
use crate::sys::clock;
use crate::tracker::{self, udp::Outgoing};
use crate::worker::datagrams::{Arrival, Departure, Udp, Unsent};

/// Datagrams taken from the worker in one turn.
const ARRIVALS_PER_TURN: usize = 256;

/// Datagrams that one machine sends in one turn.
const SENDS_PER_TURN: usize = 256;

/// How long a full queue is given before it is tried again, and the least time between two looks
/// at the timers.
const STEP: Duration = Duration::from_millis(2);

/// A datagram that a machine wants sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// The number of the socket, in the order of [`Udp::addrs`]; `None` for one that reaches `to`.
    pub socket: Option<usize>,
    /// Where to.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A protocol over datagrams as a state machine without sockets, clock or threads.
pub trait Machine: Send {
    /// Takes a datagram of its kind that `from` sent to the socket of this number.
    fn handle_datagram(&mut self, now: Instant, socket: usize, from: SocketAddr, bytes: &[u8]);

    /// Does what is due.
    fn handle_timeout(&mut self, now: Instant);

    /// When [`Machine::handle_timeout`] has to be called at the latest; it may change with every
    /// other call.
    fn poll_timeout(&self, now: Instant) -> Option<Instant>;

    /// The next datagram to send.
    fn poll_transmit(&mut self) -> Option<Transmit>;
}

/// Datagrams of UDP trackers (BEP 15) leave by the ring's sockets, so that trackers see the port that
/// peers know.
impl Outgoing for Udp {
    fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        if !self.has_way(to) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        match self.send(DatagramKind::Tracker, to, datagram.to_vec()) {
            // Lost, as any datagram may be: it is sent again.
            Ok(()) | Err(Unsent::Full(_)) => Ok(()),
            Err(Unsent::Unreachable(_)) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }

    fn reaches(&self, is_ipv4: bool) -> bool {
        self.reaches(is_ipv4)
    }
}

/// The announces are a machine with a task of its own for all that is not the answer to something.
impl Machine for tracker::Handle {
    fn handle_datagram(&mut self, _: Instant, _: usize, from: SocketAddr, bytes: &[u8]) {
        tracker::Handle::handle_datagram(self, from, bytes);
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_timeout(&self, _: Instant) -> Option<Instant> {
        None
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }
}

/// A machine with what was taken out of it and found no room.
struct Attached {
    kind: DatagramKind,
    machine: Box<dyn Machine>,
    unsent: Option<Departure>,
}

/// All machines, and the queues between them and the worker that has the sockets.
pub(super) struct Hub {
    udp: Udp,
    arrivals: mpsc::Receiver<Arrival>,
    batch: Vec<Arrival>,
    machines: Vec<Attached>,
    /// The worker has gone.
    is_over: bool,
}

impl Hub {
    /// No machine yet.
    pub(super) fn new(udp: Udp, arrivals: mpsc::Receiver<Arrival>) -> Self {
        Self { udp, arrivals, batch: Vec::new(), machines: Vec::new(), is_over: false }
    }

    /// The way out.
    pub(super) fn udp(&self) -> &Udp {
        &self.udp
    }

    /// Gives all datagrams of a kind to a machine from now on.
    pub(super) fn attach(&mut self, kind: DatagramKind, machine: Box<dyn Machine>) {
        self.machines.retain(|attached| attached.kind != kind);
        self.machines.push(Attached { kind, machine, unsent: None });
    }

    /// Waits for datagrams or a timer and lets the machines handle them. Dropping the future loses
    /// nothing.
    pub(super) async fn turn(&mut self, cells: &Core) {
        let now = clock::now();
        let is_flushed = self.flush();
        let timeouts = self.machines.iter().filter_map(|it| it.machine.poll_timeout(now));
        let due = timeouts.chain((!is_flushed).then_some(now)).min();
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at.max(now + STEP).into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            count = self.arrivals.recv_many(&mut self.batch, ARRIVALS_PER_TURN), if !self.is_over => {
                self.is_over = count == 0;
            }
            () = sleep => {}
        }
        let now = clock::now();
        for arrival in self.batch.drain(..) {
            let Arrival { socket, from, kind, bytes } = arrival;
            match self.machines.iter_mut().find(|attached| attached.kind == kind) {
                Some(it) => it.machine.handle_datagram(now, socket, from, &bytes),
                None => cells.udp_dropped[DatagramDrop::Unclaimed].add(1),
            }
        }
        for Attached { machine, .. } in &mut self.machines {
            if machine.poll_timeout(now).is_some_and(|at| at <= now) {
                machine.handle_timeout(now);
            }
        }
        self.flush();
    }

    /// Sends what the machines have to say. False if there is more than fits now.
    fn flush(&mut self) -> bool {
        let mut is_flushed = true;
        for Attached { kind, machine, unsent } in &mut self.machines {
            is_flushed &= 'machine: {
                for _ in 0..SENDS_PER_TURN {
                    let next = unsent.take().or_else(|| {
                        let Transmit { socket, to, bytes } = machine.poll_transmit()?;
                        Some(Departure { socket, to, kind: *kind, bytes })
                    });
                    let Some(departure) = next else { break 'machine true };
                    if let Err(Unsent::Full(departure)) = self.udp.offer(departure) {
                        *unsent = Some(departure);
                        break 'machine false;
                    }
                }
                false
            };
        }
        is_flushed
    }
}

impl Drop for Hub {
    /// The worker need not wait for more.
    fn drop(&mut self) {
        self.flush();
        self.udp.close();
    }
}
