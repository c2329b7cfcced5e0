//! From an operation to the entry that the kernel reads.
//!
//! An [`Op`] that already lies in its slot enters; a submission entry leaves that points into what
//! the op owns, or into [`Scratch`]. Invariant: an entry never points to memory that moves or is
//! freed before the kernel has taken it over.

use super::datagram::NAME_LEN;
use super::setup::Features;
use super::{Event, Op, Pool, Tag};
use crate::sys::net::RawAddr;
use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Wait for the socket to be ready before the first try (`IORING_RECVSEND_POLL_FIRST`).
const POLL_FIRST: u16 = 1 << 0;
/// Let the notification of a zero-copy send say whether it copied (`IORING_SEND_ZC_REPORT_USAGE`).
const REPORT_USAGE: u16 = 1 << 3;

/// A peer that has gone is an error of the send, not a signal.
const MSG_NOSIGNAL: u32 = libc::MSG_NOSIGNAL.cast_unsigned();

/// Number of pools.
pub(super) const POOL_COUNT: usize = 3;

/// The place of a pool in lists of them.
pub(super) fn pool_index(pool: Pool) -> usize {
    match pool {
        Pool::Small => 0,
        Pool::Large => 1,
        Pool::Datagrams => 2,
    }
}

/// Most messages whose memory is kept for the next turn.
const MESSAGES_KEPT_MAX: usize = 1024;

/// Headers and addresses that the kernel copies when it takes an entry over
/// (`IORING_FEAT_SUBMIT_STABLE`): they live until the submission queue is empty, then serve again.
#[expect(clippy::vec_box, reason = "the kernel holds addresses of messages while the list grows")]
#[derive(Debug, Default)]
pub(super) struct Scratch {
    used: Vec<Box<Message>>,
    free: Vec<Box<Message>>,
}

/// What one send, connect or receive of datagrams points to.
#[derive(Debug)]
struct Message {
    header: libc::msghdr,
    iovecs: Vec<libc::iovec>,
    addr: RawAddr,
}

impl Scratch {
    /// A message that stays where it is until [`Scratch::recycle`].
    fn take(&mut self) -> &mut Message {
        // SAFETY: a msghdr is integers and pointers, for which zero is a value.
        let header = unsafe { std::mem::zeroed() };
        let mut message = self.free.pop().unwrap_or_else(|| {
            Box::new(Message { header, iovecs: Vec::new(), addr: RawAddr::unspecified() })
        });
        message.header = header;
        self.used.push(message);
        self.used.last_mut().expect("one was just pushed")
    }

    /// Everything was handed over.
    pub(super) fn recycle(&mut self) {
        self.free.append(&mut self.used);
        self.free.truncate(MESSAGES_KEPT_MAX);
    }
}

/// The event of an operation that needs no kernel, or that must not reach it.
pub(super) fn refuse(tag: Tag, op: &mut Op) -> Option<Event> {
    // The largest offset would mean the file's own position.
    let fits = |offset: u64, start: usize, len: usize, buffer_len: usize| {
        start.checked_add(len).is_some_and(|end| end <= buffer_len)
            && u32::try_from(len).is_ok_and(|len| offset.checked_add(len.into()).is_some())
            && i64::try_from(offset).is_ok()
    };
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    match op {
        Op::Read { offset, buffer, start, len, .. }
            if !fits(*offset, *start, *len, buffer.len()) =>
        {
            Some(Event::Read { tag, result: Err(invalid()), buffer: std::mem::take(buffer) })
        }
        Op::Write { offset, buffer, start, len, .. }
            if !fits(*offset, *start, *len, buffer.len()) =>
        {
            Some(Event::Written { tag, result: Err(invalid()) })
        }
        Op::Send { batch, from, .. } if *from >= batch.len() => {
            Some(Event::Sent { tag, result: Ok(0), held: false })
        }
        _ => None,
    }
}

/// The entry of an operation that lies in its slot.
pub(super) fn build(
    op: &mut Op,
    groups: [u16; POOL_COUNT],
    features: Features,
    scratch: &mut Scratch,
) -> Entry {
    match op {
        Op::Accept { listener } => opcode::AcceptMulti::new(fd(listener))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build(),
        Op::Connect { socket, addr } => {
            let message = scratch.take();
            message.addr = RawAddr::new(addr);
            opcode::Connect::new(fd(socket), message.addr.as_ptr(), message.addr.len()).build()
        }
        Op::Recv { socket, pool } => {
            let group = groups[pool_index(*pool)];
            // Nearly always there is nothing to receive yet: a first try would be wasted.
            opcode::Recv::new(fd(socket), std::ptr::null_mut(), 0)
                .buf_group(group)
                .ioprio(POLL_FIRST)
                .build()
                .flags(Flags::BUFFER_SELECT)
        }
        Op::ReceiveFrom { socket, pool } => {
            let message = scratch.take();
            message.header.msg_namelen = NAME_LEN;
            let group = groups[pool_index(*pool)];
            opcode::RecvMsgMulti::new(fd(socket), &raw const message.header, group).build()
        }
        Op::SendTo { socket, to, bytes } => {
            let message = scratch.take();
            message.addr = RawAddr::new(to);
            message.header.msg_name = message.addr.as_ptr().cast_mut().cast();
            message.header.msg_namelen = message.addr.len();
            message.iovecs.clear();
            // The kernel only reads from it.
            let iov_base = bytes.as_ptr().cast_mut().cast();
            message.iovecs.push(libc::iovec { iov_base, iov_len: bytes.len() });
            message.header.msg_iov = message.iovecs.as_mut_ptr();
            message.header.msg_iovlen = message.iovecs.len();
            opcode::SendMsg::new(fd(socket), &raw const message.header).flags(MSG_NOSIGNAL).build()
        }
        Op::Send { socket, batch, from, zero_copy } => {
            let message = scratch.take();
            batch.iovecs(*from, &mut message.iovecs);
            message.header.msg_iov = message.iovecs.as_mut_ptr();
            message.header.msg_iovlen = message.iovecs.len();
            // A batch that was begun filled the socket's buffer: a first try would find no room.
            let poll_first = if *from > 0 { POLL_FIRST } else { 0 };
            let header = &raw const message.header;
            if *zero_copy && features.zero_copy {
                return opcode::SendMsgZc::new(fd(socket), header)
                    .ioprio(poll_first | REPORT_USAGE)
                    .flags(MSG_NOSIGNAL)
                    .build();
            }
            opcode::SendMsg::new(fd(socket), header).ioprio(poll_first).flags(MSG_NOSIGNAL).build()
        }
        Op::Read { file, offset, buffer, start, len } => {
            read(file, *offset, &mut buffer[*start..*start + *len])
        }
        Op::Write { file, offset, buffer, start, len } => {
            let from = buffer.as_ptr().wrapping_add(*start);
            opcode::Write::new(fd(file), from, len_u32(*len)).offset(*offset).build()
        }
        Op::Sync { file } => opcode::Fsync::new(fd(file)).flags(FsyncFlags::DATASYNC).build(),
    }
}

/// The entry that goes on with a read after its first `done` bytes.
pub(super) fn read_rest(op: &mut Op, done: usize) -> Option<Entry> {
    let Op::Read { file, offset, buffer, start, len } = op else { return None };
    let rest = buffer.get_mut(*start..*start + *len)?.get_mut(done..)?;
    Some(read(file, *offset + done as u64, rest))
}

fn read(file: &OwnedFd, offset: u64, into: &mut [u8]) -> Entry {
    opcode::Read::new(fd(file), into.as_mut_ptr(), len_u32(into.len())).offset(offset).build()
}

fn fd(file: &OwnedFd) -> Fd {
    Fd(file.as_raw_fd())
}

/// A length that [`refuse`] has let through.
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
