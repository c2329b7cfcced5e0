//! The reactor's floor: operations in, completions out.
//!
//! A worker pushes [`Op`]s, each with a [`Tag`] of its own choosing, and takes [`Event`]s that
//! carry the tag back. No kernel structure, buffer id or completion flag leaves this room. What an
//! operation needs it owns (sockets, files, buffers, leases), from [`Driver::push`] until its last
//! completion, so dropping a connection can never free what the kernel still reads or writes.
//!
//! A driver is one of: [`Uring`] (the kernel's io_uring), [`Faulty`] (any driver, with its
//! completions shuffled, cut short and failed, for tests) and, later, epoll.

mod batch;
mod buffers;
mod counters;
mod datagram;
mod entry;
mod faulty;
mod lender;
mod probe;
mod setup;
mod slots;
#[cfg(test)]
mod tests;
mod uring;
mod waker;

pub use self::batch::{BATCH_PARTS_MAX, Batch, BatchError, Lease};
pub use self::buffers::{BUFFERS_MAX, RecvBuffer};
pub use self::counters::{Counters, OpCounters, OpKind};
pub use self::datagram::Datagram;
pub use self::faulty::{Faults, Faulty};
pub use self::lender::{Lender, Loan};
pub use self::probe::{Finding, Report, probe};
pub use self::setup::{Buffers, Config, Features, Level, Unavailable};
pub use self::uring::{EVENTS_MAX, Uring};
pub use self::waker::Waker;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// What a worker attaches to an operation and gets back with each of its events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tag(pub u64);

/// A socket or file that operations share; it is closed when the last of them is done with it.
pub type Handle = Rc<OwnedFd>;

/// Which set of receive buffers an operation takes one from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pool {
    /// Many small ones: handshakes and the requests of peers that fetch from us.
    Small,
    /// Fewer large ones: connections that we fetch from.
    Large,
    /// For datagrams, and apart from the others: a flood of them leaves nobody else without.
    Datagrams,
}

/// An operation, with all that the kernel will touch.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until cancelled; one [`Event::Accepted`] each.
    Accept {
        /// A listening socket.
        listener: Handle,
    },
    /// Connect a fresh socket.
    Connect {
        /// A non-connected TCP socket.
        socket: Handle,
        /// Where to.
        addr: SocketAddr,
    },
    /// Receive once, into a buffer that is taken when bytes arrive and not before. One at a time
    /// for each socket: of two, it is open which gets the earlier bytes.
    Recv {
        /// A connected socket.
        socket: Handle,
        /// Where the buffer comes from.
        pool: Pool,
    },
    /// Receive datagrams until cancelled or in want of a buffer; one [`Event::Datagram`] each
    /// (Linux 6.0; `EINVAL` before). It repeats by itself because datagrams come in bursts and
    /// from anybody: there is always a receive under way, and nothing is allocated for a sender
    /// before the bytes are there.
    ReceiveFrom {
        /// A datagram socket.
        socket: Handle,
        /// Where the buffers come from. Their number is the most that one turn takes in.
        pool: Pool,
    },
    /// Send one datagram. Any number at a time for each socket.
    SendTo {
        /// A datagram socket.
        socket: Handle,
        /// Where to.
        to: SocketAddr,
        /// What to send.
        bytes: Vec<u8>,
    },
    /// Send a batch, from its byte `from` to its end. One at a time for each socket: of two, a
    /// short first one would be followed by the second. (One that is only held may be followed.)
    Send {
        /// A connected socket.
        socket: Handle,
        /// What to send; shared, so that the rest can be sent again after a short send.
        batch: Rc<Batch>,
        /// Bytes of the batch that earlier sends have taken.
        from: usize,
        /// Ask the kernel to send from our pages instead of a copy.
        zero_copy: bool,
    },
    /// Read `len` bytes at `offset` into `buffer[start..start + len]`.
    Read {
        /// An open file.
        file: Handle,
        /// Offset in the file, in bytes.
        offset: u64,
        /// Memory that moves into the operation and back out with its event.
        buffer: Vec<u8>,
        /// First byte of the buffer to fill.
        start: usize,
        /// Number of bytes.
        len: usize,
    },
    /// Write `buffer[start..start + len]` at `offset`.
    Write {
        /// An open file.
        file: Handle,
        /// Offset in the file, in bytes.
        offset: u64,
        /// Memory to write from.
        buffer: Rc<Vec<u8>>,
        /// First byte to write.
        start: usize,
        /// Number of bytes.
        len: usize,
    },
    /// Flush a file's data (fdatasync).
    Sync {
        /// An open file.
        file: Handle,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub enum Event {
    /// A connection, or why there was none. After `last` the operation is over and has to be
    /// pushed again to accept more.
    Accepted {
        /// The tag of the operation.
        tag: Tag,
        /// The new socket.
        result: io::Result<OwnedFd>,
        /// Whether the operation ended with this event.
        last: bool,
    },
    /// A connect ended.
    Connected {
        /// The tag of the operation.
        tag: Tag,
        /// Whether there is a connection now.
        result: io::Result<()>,
    },
    /// Bytes arrived; none means the peer closed its side. `ENOBUFS` means that the pool was
    /// empty, nothing is lost: push the operation again once buffers have been dropped.
    Received {
        /// The tag of the operation.
        tag: Tag,
        /// The bytes; dropping them gives the buffer back.
        result: io::Result<RecvBuffer>,
    },
    /// A datagram, or why there was none. `EMSGSIZE`: it was longer than a buffer, and is gone;
    /// `ENOBUFS`: the pool is empty; errors that an earlier datagram of ours met on its way
    /// (`ECONNREFUSED`) say nothing about the next one. After `last` the operation is over and has
    /// to be pushed again to receive more, whatever the result.
    Datagram {
        /// The tag of the operation.
        tag: Tag,
        /// The datagram.
        result: io::Result<Datagram>,
        /// Whether the operation ended with this event.
        last: bool,
    },
    /// A datagram was sent, as far as this machine can tell.
    SentTo {
        /// The tag of the operation.
        tag: Tag,
        /// Its length in bytes.
        result: io::Result<usize>,
    },
    /// The kernel took some bytes of a batch. With zero-copy it may still read them: the driver
    /// keeps the batch until [`Event::Released`], the caller may send the rest meanwhile.
    Sent {
        /// The tag of the operation.
        tag: Tag,
        /// How many bytes, counted from the `from` of the operation; less than all is normal.
        result: io::Result<usize>,
        /// Whether a [`Event::Released`] will follow.
        held: bool,
    },
    /// The kernel is done with the pages of a zero-copy send.
    Released {
        /// The tag of the operation.
        tag: Tag,
        /// Whether it copied after all (loopback, veth, tun always do).
        copied: bool,
    },
    /// A read ended; fewer bytes than asked for means the end of the file.
    Read {
        /// The tag of the operation.
        tag: Tag,
        /// Number of bytes read.
        result: io::Result<usize>,
        /// The memory that was lent.
        buffer: Vec<u8>,
    },
    /// A write ended; a short write has to be continued by the caller.
    Written {
        /// The tag of the operation.
        tag: Tag,
        /// Number of bytes written.
        result: io::Result<usize>,
    },
    /// A flush ended.
    Synced {
        /// The tag of the operation.
        tag: Tag,
        /// Whether the data is on the device.
        result: io::Result<()>,
    },
    /// Another thread called [`Waker::wake`].
    Woken,
}

/// The interface that a worker sees: the same for the kernel's ring and for the tests' faults.
pub trait Driver {
    /// Queues an operation; it reaches the kernel with the next [`Driver::wait`] at the latest.
    fn push(&mut self, tag: Tag, op: Op);

    /// Asks every operation that carries `tag` to end early. Their events still come, with
    /// `ECANCELED` or with what had happened already.
    fn cancel(&mut self, tag: Tag);

    /// Submits what was pushed and appends what has completed to `events`, waiting up to `timeout`
    /// for the first completion (`None`: as long as it takes, zero: not at all). A return without
    /// events is normal.
    ///
    /// # Errors
    /// Only what ends the worker: a lost completion or a ring that cannot be entered any more.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut VecDeque<Event>) -> io::Result<()>;

    /// The handle by which other threads make [`Driver::wait`] return with [`Event::Woken`].
    fn waker(&self) -> std::sync::Arc<Waker>;

    /// Operations that have not had their last event (an armed accept or receive counts, the waker
    /// does not).
    fn in_flight(&self) -> usize;

    /// Running totals since the driver was made.
    fn counters(&self) -> &Counters;
}
