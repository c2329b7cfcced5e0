//! What really goes over the wire of a test's own network: a raw socket on a host's device.
//!
//! Packets are written down as they pass; a test asks what one address has said. Invariant: nothing
//! is missed unnoticed, for the kernel counts what it could not hand out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::netns::{DEVICE, Host};

/// Bytes that may wait for the thread that writes down.
const BACKLOG: libc::c_int = 32 << 20;

/// What was said, by sender.
#[derive(Debug, Default)]
struct Said {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// Bytes of each direction of each connection, by its two ends.
    streams: HashMap<(SocketAddr, SocketAddr), Vec<u8>>,
}

/// A running capture.
#[derive(Debug)]
pub(crate) struct Capture {
    said: Arc<Mutex<Said>>,
    ends: Arc<AtomicBool>,
    socket: Arc<UdpSocket>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Writes down all IPv4 that passes the wire of a host.
    pub(crate) fn start(host: &Host) -> Self {
        let socket = Arc::new(UdpSocket::from(host.enter(open).unwrap()));
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (said, ends) = (Arc::<Mutex<Said>>::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (said, ends, socket) = (Arc::clone(&said), Arc::clone(&ends), Arc::clone(&socket));
            move || {
                let mut buffer = vec![0; 128 << 10];
                while !ends.load(Relaxed) {
                    if let Ok(len) = socket.recv(&mut buffer) {
                        said.lock().unwrap().note(&buffer[..len]);
                    }
                }
            }
        });
        Self { said, ends, socket, thread: Some(thread) }
    }

    /// Whether a datagram of `from` holds these bytes.
    pub(crate) fn has_datagram(&self, from: IpAddr, bytes: &[u8]) -> bool {
        let said = self.said.lock().unwrap();
        said.datagrams.iter().any(|(addr, datagram)| addr.ip() == from && holds(datagram, bytes))
    }

    /// Connections in which `from` opened with this info-hash, and those of them in which it said
    /// these bytes later.
    pub(crate) fn streams(&self, from: IpAddr, info_hash: &[u8], bytes: &[u8]) -> (usize, usize) {
        let said = self.said.lock().unwrap();
        let ours = said.streams.iter().filter(|((addr, _), stream)| {
            addr.ip() == from && stream.get(28..48) == Some(info_hash)
        });
        let streams: Vec<_> = ours.map(|(_, stream)| stream).collect();
        (streams.len(), streams.iter().filter(|stream| holds(stream, bytes)).count())
    }

    /// Panics if packets went by that were not written down.
    pub(crate) fn assert_whole(&self) {
        assert_eq!(dropped(&self.socket).unwrap(), 0, "the capture has holes");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Said {
    fn note(&mut self, packet: &[u8]) -> Option<()> {
        if packet.first()? >> 4 != 4 {
            return None;
        }
        let header_len = usize::from(packet.first()? & 15) * 4;
        let ip =
            |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        let total_len = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        let (from, to) = (ip(12)?, ip(16)?);
        let inner = packet.get(header_len..total_len.max(header_len).min(packet.len()))?;
        let port = |at: usize| Some(u16::from_be_bytes([*inner.get(at)?, *inner.get(at + 1)?]));
        let ends = (SocketAddr::from((from, port(0)?)), SocketAddr::from((to, port(2)?)));
        match i32::from(*packet.get(9)?) {
            libc::IPPROTO_UDP => self.datagrams.push((ends.0, inner.get(8..)?.to_vec())),
            libc::IPPROTO_TCP => {
                let payload = inner.get(usize::from(inner.get(12)? >> 4) * 4..)?;
                self.streams.entry(ends).or_default().extend_from_slice(payload);
            }
            _ => {}
        }
        Some(())
    }
}

fn holds(text: &[u8], bytes: &[u8]) -> bool {
    bytes.is_empty() || text.windows(bytes.len()).any(|part| part == bytes)
}

#[expect(unsafe_code, reason = "std has no raw sockets")]
fn open() -> io::Result<OwnedFd> {
    // SAFETY: the calls take numbers, and structures of ours that live as long as they last.
    unsafe {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from((libc::ETH_P_ALL as u16).to_be()));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let backlog = BACKLOG;
        let (value, len) = ((&raw const backlog).cast(), size_of_val(&backlog) as u32);
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, value, len);
        let mut place: libc::sockaddr_ll = std::mem::zeroed();
        place.sll_family = libc::AF_PACKET as u16;
        // All protocols: what leaves is only handed to those that take all.
        place.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = std::ffi::CString::new(DEVICE).unwrap();
        place.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
        let len = size_of_val(&place) as u32;
        if libc::bind(fd, (&raw const place).cast(), len) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Packets that found no room since this was last asked.
#[expect(unsafe_code, reason = "std has no raw sockets")]
fn dropped(socket: &UdpSocket) -> io::Result<u32> {
    let mut counts = [0_u32; 2];
    let mut len = size_of_val(&counts) as u32;
    let (fd, place) = (socket.as_raw_fd(), counts.as_mut_ptr().cast());
    // SAFETY: the structure is two numbers, and lives as long as the call.
    let result = unsafe {
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, place, &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(counts[1]) }
}
