//! What a receive of datagrams brings: one buffer that holds a header, an address and the bytes.
//!
//! A filled buffer enters, a [`Datagram`] leaves. Invariant: the bytes are those of one datagram,
//! whole; one that the buffer cut is an error, never a shorter datagram.

use super::RecvBuffer;
use crate::sys::net;
use io_uring::types::RecvMsgOut;
use std::io;
use std::net::SocketAddr;

/// Room for the sender's address: the longer one, of IPv6.
pub(super) const NAME_LEN: u32 = 28;

/// What lies before the bytes of a datagram: four numbers of the kernel, and the address.
const HEADER_LEN: usize = 16 + 28;

/// One datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it, or whom the sender pretends to be.
    pub from: SocketAddr,
    /// Its bytes, perhaps none; dropping them gives the buffer back.
    pub bytes: RecvBuffer,
}

/// Takes a buffer of a receive that repeats apart. `EMSGSIZE` means that the datagram was longer
/// than the buffer.
pub(super) fn parse(mut buffer: RecvBuffer) -> io::Result<Datagram> {
    let invalid = || io::Error::from_raw_os_error(libc::EIO);
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = NAME_LEN;
    let parts = RecvMsgOut::parse(&buffer, &header).map_err(|()| invalid())?;
    if parts.is_payload_truncated() {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    if parts.is_name_data_truncated() {
        return Err(invalid());
    }
    let from = net::addr_from_raw(parts.name_data())?;
    buffer.advance(HEADER_LEN);
    Ok(Datagram { from, bytes: buffer })
}
