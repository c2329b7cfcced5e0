//! Three ways to receive blocks through io_uring: single-shot and multishot receives into buffers
//! that the kernel picks, each copied to where its block belongs, and receives of exactly one block
//! into its place.
//!
//! Frames of a header and a block come over loopback connections from threads of their own; what
//! the receiving thread spends per block, user and kernel, leaves. Invariant: every block ends up
//! in the same place with the same bytes, whatever the way.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use seedring::sys::process;

use crate::common::Spread;
use crate::timing::Bench;

const HEADER_LEN: usize = 13;
const BLOCK_LEN: usize = 16 * 1024;
const FRAME_LEN: usize = HEADER_LEN + BLOCK_LEN;

/// Connections that send at the same time.
const CONNECTIONS: usize = 8;

/// Blocks that each connection has room for: a piece of 1 MiB.
const PLACES: usize = 64;

/// Length and number of the buffers that the kernel picks from.
const BUFFER_LEN: usize = 64 * 1024;
const BUFFERS: u16 = 64;

const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    SingleShot,
    Multishot,
    Exact,
}

/// Runs the cases.
pub(crate) fn run(bench: &Bench) {
    let blocks = bench.size(8192, 8);
    let ways = [
        ("receive: single-shot, kernel's buffers", Way::SingleShot),
        ("receive: multishot, kernel's buffers", Way::Multishot),
        ("receive: exactly one block", Way::Exact),
    ];
    let mut costs = vec![Vec::new(); ways.len()];
    for _ in 0..bench.size(ROUNDS, 1) {
        for ((name, way), costs) in ways.iter().zip(&mut costs) {
            if bench.wants(name) {
                costs.push(measure(*way, blocks).expect("receiving over loopback"));
            }
        }
    }
    for ((name, _), costs) in ways.iter().zip(costs) {
        if let Some(spread) = Spread::of(costs) {
            println!("{name:<44} {:>32}   CPU", format!("{spread:.0} ns/block"));
        }
    }
}

/// Nanoseconds of this thread's processor time per block.
fn measure(way: Way, blocks: usize) -> io::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    let frame = frame();
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let frame = frame.clone();
        senders.push(std::thread::spawn(move || {
            let mut stream = TcpStream::connect(addr)?;
            (0..blocks).try_for_each(|_| stream.write_all(&frame))
        }));
    }
    let streams: io::Result<Vec<TcpStream>> =
        (0..CONNECTIONS).map(|_| listener.accept().map(|(stream, _)| stream)).collect();
    let mut receiver = Receiver::new(way, streams?, blocks)?;
    let before = process::thread_usage()?;
    receiver.run()?;
    let after = process::thread_usage()?;
    for sender in senders {
        sender.join().map_err(|_| io::Error::other("a sender died"))??;
    }
    for place in receiver.places.chunks(PLACES * FRAME_LEN) {
        assert_eq!(place[HEADER_LEN..FRAME_LEN], frame[HEADER_LEN..], "{way:?}: other bytes");
    }
    let cpu = (after.user + after.system).saturating_sub(before.user + before.system);
    Ok(cpu.as_secs_f64() * 1e9 / (blocks * CONNECTIONS) as f64)
}

fn frame() -> Vec<u8> {
    (0..=250).cycle().take(FRAME_LEN).collect()
}

/// A length for the kernel.
fn narrow(len: usize) -> u32 {
    u32::try_from(len).expect("lengths here are small")
}

struct Receiver {
    way: Way,
    ring: IoUring,
    streams: Vec<TcpStream>,
    /// Bytes that have come on each connection.
    received: Vec<usize>,
    /// Bytes that each connection brings.
    total: usize,
    /// Room for [`PLACES`] frames of each connection.
    places: Vec<u8>,
    buffers: Buffers,
}

impl Receiver {
    fn new(way: Way, streams: Vec<TcpStream>, blocks: usize) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(1024)
            .build(256)?;
        let buffers = Buffers::register(&ring)?;
        Ok(Self {
            way,
            ring,
            received: vec![0; streams.len()],
            total: blocks * FRAME_LEN,
            places: vec![0; streams.len() * PLACES * FRAME_LEN],
            buffers,
            streams,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        for index in 0..self.streams.len() {
            self.arm(index)?;
        }
        while self.received.iter().any(|&received| received < self.total) {
            self.ring.submit_and_wait(1)?;
            let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
            for completion in completions {
                self.complete(&completion)?;
            }
            self.buffers.publish();
        }
        Ok(())
    }

    fn arm(&mut self, index: usize) -> io::Result<()> {
        let fd = Fd(self.streams[index].as_raw_fd());
        let entry = match self.way {
            Way::SingleShot => opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                .buf_group(0)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            Way::Multishot => opcode::RecvMulti::new(fd, 0).build(),
            Way::Exact => {
                let at = self.place(index);
                let left = FRAME_LEN - self.received[index] % FRAME_LEN;
                let place = &mut self.places[at..at + left];
                opcode::Recv::new(fd, place.as_mut_ptr(), narrow(left))
                    .flags(libc::MSG_WAITALL)
                    .build()
            }
        };
        // SAFETY: the places and the buffers live as long as the ring; no place is looked at
        // before its receive has completed.
        unsafe { self.ring.submission().push(&entry.user_data(index as u64)) }
            .map_err(io::Error::other)
    }

    /// Where the next byte of a connection belongs.
    fn place(&self, index: usize) -> usize {
        let area = PLACES * FRAME_LEN;
        index * area + self.received[index] % area
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let index = usize::try_from(completion.user_data()).map_err(io::Error::other)?;
        let is_armed = cqueue::more(completion.flags());
        match completion.result() {
            count @ 1.. if self.way == Way::Exact => {
                self.received[index] += count.unsigned_abs() as usize;
            }
            count @ 1.. => {
                let id = cqueue::buffer_select(completion.flags())
                    .ok_or_else(|| io::Error::other("a receive without a buffer"))?;
                self.copy(index, id, count.unsigned_abs() as usize);
            }
            0 if self.received[index] == self.total => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            error if -error == libc::ENOBUFS => {}
            error => return Err(io::Error::from_raw_os_error(-error)),
        }
        if !is_armed && self.received[index] < self.total {
            self.arm(index)?;
        }
        Ok(())
    }

    /// Copies what a buffer holds to where it belongs, and gives the buffer back.
    fn copy(&mut self, index: usize, id: u16, count: usize) {
        let start = usize::from(id) * BUFFER_LEN;
        let mut from = start;
        while from < start + count {
            let at = self.place(index);
            let room = (index + 1) * PLACES * FRAME_LEN - at;
            let len = room.min(start + count - from);
            self.places[at..at + len].copy_from_slice(&self.buffers.memory[from..from + len]);
            self.received[index] += len;
            from += len;
        }
        self.buffers.back.push(id);
    }
}

/// Buffers that the kernel picks from.
struct Buffers {
    memory: Vec<u8>,
    entries: *mut BufRingEntry,
    back: Vec<u16>,
    tail: u16,
}

impl Buffers {
    fn layout() -> Layout {
        Layout::from_size_align(usize::from(BUFFERS) * size_of::<BufRingEntry>(), 4096)
            .expect("a small power of two")
    }

    fn register(ring: &IoUring) -> io::Result<Self> {
        // SAFETY: the layout is not empty; the entries are freed after the ring is closed.
        let entries = unsafe { alloc_zeroed(Self::layout()) }.cast::<BufRingEntry>();
        // SAFETY: the entries are aligned to a page, and there are as many as is said.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries.addr() as u64, BUFFERS, 0, 0)?;
        }
        let memory = vec![0; usize::from(BUFFERS) * BUFFER_LEN];
        let mut buffers = Self { memory, entries, back: (0..BUFFERS).collect(), tail: 0 };
        buffers.publish();
        Ok(buffers)
    }

    /// Offers what has come back.
    fn publish(&mut self) {
        for id in self.back.drain(..) {
            let index = usize::from(self.tail % BUFFERS);
            // SAFETY: the index is in range, and the kernel does not look at it before the tail.
            let entry = unsafe { &mut *self.entries.add(index) };
            entry.set_addr(self.memory[usize::from(id) * BUFFER_LEN..].as_ptr().addr() as u64);
            entry.set_len(narrow(BUFFER_LEN));
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: the tail is an aligned part of the first entry.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // A multishot receive may be armed still: its connection has nothing more to bring.
        let _ = self.ring.submitter().unregister_buf_ring(0);
        // SAFETY: the kernel has let go of the entries.
        unsafe { dealloc(self.buffers.entries.cast(), Buffers::layout()) };
    }
}
