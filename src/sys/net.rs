//! TCP and UDP sockets as the ring wants them: made here, listened, connected and read there.
//!
//! Addresses and descriptors enter; non-blocking, close-on-exec sockets, addresses, and the lock
//! on a port leave. Invariant: nothing here waits for the network, and no name is resolved.

pub mod multicast;

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// Connections that may wait to be accepted by one listener.
pub const BACKLOG: i32 = 1024;

/// Bytes of datagrams that may wait unread in one socket; the kernel doubles the value, and takes
/// less where its setting net.core.rmem_max is lower.
const DATAGRAM_BACKLOG: i32 = 1 << 20;

/// An address as the kernel reads it.
#[derive(Clone, Copy)]
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddr {
    /// Room for any address.
    pub(crate) fn unspecified() -> RawAddr {
        // SAFETY: the structure is integers only, for which zero is a value.
        let storage = unsafe { mem::zeroed() };
        RawAddr { storage, len: len_of::<libc::sockaddr_storage>() }
    }

    /// The address in the kernel's form.
    pub(crate) fn new(addr: &SocketAddr) -> RawAddr {
        let mut raw = RawAddr::unspecified();
        match addr {
            SocketAddr::V4(addr) => {
                let form = libc::sockaddr_in {
                    sin_family: family_number(libc::AF_INET),
                    sin_port: addr.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than and aligned for every form of address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(form) };
                raw.len = len_of::<libc::sockaddr_in>();
            }
            SocketAddr::V6(addr) => {
                let form = libc::sockaddr_in6 {
                    sin6_family: family_number(libc::AF_INET6),
                    sin6_port: addr.port().to_be(),
                    sin6_flowinfo: addr.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                    sin6_scope_id: addr.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(form) };
                raw.len = len_of::<libc::sockaddr_in6>();
            }
        }
        raw
    }

    /// Where it lies, for a system call.
    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// The address, if it is one of the Internet.
    fn to_std(self) -> io::Result<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says which form it is, and the storage holds every form.
                let form = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(form.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddrV4::new(ip, u16::from_be(form.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let form = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(form.sin6_addr.s6_addr);
                let port = u16::from_be(form.sin6_port);
                Ok(SocketAddrV6::new(ip, port, form.sin6_flowinfo, form.sin6_scope_id).into())
            }
            _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }
}

/// The address that a receive wrote in the kernel's form.
pub(crate) fn addr_from_raw(bytes: &[u8]) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::unspecified();
    let is_whole =
        match bytes.get(..2).map(|family| i32::from(u16::from_ne_bytes([family[0], family[1]]))) {
            Some(libc::AF_INET) => bytes.len() >= size_of::<libc::sockaddr_in>(),
            Some(libc::AF_INET6) => bytes.len() >= size_of::<libc::sockaddr_in6>(),
            _ => false,
        };
    if !is_whole || bytes.len() > size_of::<libc::sockaddr_storage>() {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    }
    // SAFETY: the storage is integers only, is not longer than this, and is nobody else's.
    unsafe {
        let into = (&raw mut raw.storage).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, bytes.len());
    }
    raw.to_std()
}

impl std::fmt::Debug for RawAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RawAddr").field(&self.to_std().ok()).finish()
    }
}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

fn family_number(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

/// Turns the result of a system call into ours.
fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets a socket option.
fn set_option<T>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value lives during the call and has the length that is given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            len_of::<T>(),
        )
    })
}

fn set_flag(socket: BorrowedFd<'_>, level: i32, name: i32, on: bool) -> io::Result<()> {
    set_option(socket, level, name, &i32::from(on))
}

/// A fresh TCP socket of the family of `addr`: non-blocking, close-on-exec, without Nagle's delay
/// (whole batches are sent).
///
/// # Errors
/// What socket(2) says: `EMFILE`, `EAFNOSUPPORT` where there is no IPv6.
pub fn tcp_socket(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = new_socket(addr, libc::SOCK_STREAM)?;
    set_nodelay(socket.as_fd())?;
    Ok(socket)
}

/// A UDP socket that is bound to `addr`, shared with nobody, and leaves from where `bind` says:
/// its address must be that of `addr`, its interface is the only one that is used.
///
/// # Errors
/// What the kernel says: `EADDRINUSE`, `EADDRNOTAVAIL`, `EAFNOSUPPORT`, `ENODEV`.
pub fn datagram_socket(addr: &SocketAddr, bind_to: Option<&Bind>) -> io::Result<OwnedFd> {
    let socket = new_socket(addr, libc::SOCK_DGRAM)?;
    match bind_to {
        None => {}
        Some(Bind::Address(source)) if *source == addr.ip() => {}
        Some(Bind::Address(_)) => return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        Some(Bind::Interface(device)) => bind_device(socket.as_fd(), device)?,
    }
    set_recv_buffer(socket.as_fd(), DATAGRAM_BACKLOG)?;
    bind(socket.as_fd(), addr)?;
    Ok(socket)
}

/// A fresh socket of one kind, of the family of `addr`.
fn new_socket(addr: &SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the call takes no memory of ours.
    let fd = unsafe { libc::socket(family, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if addr.is_ipv6() {
        // Addresses of version 4 have listeners of their own: nothing arrives as ::ffff:a.b.c.d.
        set_flag(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, true)?;
    }
    Ok(socket)
}

/// Binds a socket to an address.
///
/// # Errors
/// What bind(2) says.
fn bind(socket: BorrowedFd<'_>, addr: &SocketAddr) -> io::Result<()> {
    let raw = RawAddr::new(addr);
    // SAFETY: the address lives during the call and has the length that is given.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.len()) })
}

/// A worker's listener: any number of them share the address (SO_REUSEPORT), and the kernel deals
/// connections to them. Take the [`PortLock`] first.
///
/// # Errors
/// What bind(2) and listen(2) say: `EADDRINUSE`, `EACCES`, `EADDRNOTAVAIL`.
pub fn listen(addr: &SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp_socket(addr)?;
    set_flag(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, true)?;
    set_flag(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, true)?;
    bind(socket.as_fd(), addr)?;
    // SAFETY: the call takes no memory of ours.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Takes the next connection of a non-blocking listener without a ring.
///
/// # Errors
/// What accept4(2) says: `EAGAIN` when nobody waits, `EMFILE`, `ENFILE`.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (addr, len) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: without room for an address the call takes no memory of ours.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), addr, len, libc::SOCK_CLOEXEC) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends small messages at once (TCP_NODELAY). Accepted sockets inherit it from their listener.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_nodelay(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, true)
}

/// Makes the close of a socket drop what is unsent and reset the connection (SO_LINGER 0): a peer
/// that does not read keeps no memory.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_linger_zero(socket: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Bounds what the kernel keeps unsent, in bytes; it doubles the value for its own needs.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes)
}

/// Bounds what the kernel keeps unread, in bytes; it doubles the value for its own needs.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_recv_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes)
}

/// Binds an outgoing socket to a source address; the port is chosen at connect, so that it can be
/// shared between destinations.
///
/// # Errors
/// What bind(2) says: `EADDRNOTAVAIL` if the address is not of this machine.
pub fn bind_source(socket: BorrowedFd<'_>, source: IpAddr) -> io::Result<()> {
    set_flag(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, true)?;
    bind(socket, &SocketAddr::new(source, 0))
}

/// Lets a socket use one network device only (SO_BINDTODEVICE).
///
/// # Errors
/// What setsockopt(2) says: `ENODEV`, `EPERM`; `EINVAL` for a name that is none.
pub fn bind_device(socket: BorrowedFd<'_>, device: &str) -> io::Result<()> {
    let mut name = [0_u8; libc::IFNAMSIZ];
    let bytes = device.as_bytes();
    // An empty name would lift the restriction instead of setting one.
    if bytes.is_empty() || bytes.len() >= name.len() || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    name[..bytes.len()].copy_from_slice(bytes);
    set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &name)
}

/// The address that a socket is bound to.
///
/// # Errors
/// What getsockname(2) says.
pub fn local_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::unspecified();
    // SAFETY: the storage has room for the length that is given, and both live during the call.
    check(unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut raw.storage).cast(), &raw mut raw.len)
    })?;
    raw.to_std()
}

/// The address that a socket is connected to.
///
/// # Errors
/// What getpeername(2) says: `ENOTCONN` when the peer has gone already.
pub fn peer_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut raw = RawAddr::unspecified();
    // SAFETY: the storage has room for the length that is given, and both live during the call.
    check(unsafe {
        libc::getpeername(socket.as_raw_fd(), (&raw mut raw.storage).cast(), &raw mut raw.len)
    })?;
    raw.to_std()
}

/// Ends both directions of a connection; operations in flight on it end.
///
/// # Errors
/// What shutdown(2) says: `ENOTCONN`.
pub fn shutdown(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no memory of ours.
    check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) })
}

/// What every outgoing connection leaves from (`--bind`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Bind {
    /// A local address; only its family is used.
    Address(IpAddr),
    /// A network interface.
    Interface(String),
}

/// A socket to connect to `addr` with, that leaves from where `bind` says or not at all.
///
/// # Errors
/// What the kernel says; `EADDRNOTAVAIL` for an address of the family that `bind` leaves out.
pub fn outgoing(addr: &SocketAddr, bind: Option<&Bind>) -> io::Result<OwnedFd> {
    let socket = tcp_socket(addr)?;
    match bind {
        None => {}
        Some(Bind::Address(source)) if source.is_ipv4() == addr.is_ipv4() => {
            bind_source(socket.as_fd(), *source)?;
        }
        Some(Bind::Address(_)) => return Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        Some(Bind::Interface(device)) => bind_device(socket.as_fd(), device)?,
    }
    set_nodelay(socket.as_fd())?;
    Ok(socket)
}

/// Why a port is not ours.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A process of our kind holds it.
    #[error("{0} is in use by another seedring")]
    Locked(SocketAddr),
    /// Some other program holds it.
    #[error("{0} is in use by another program")]
    InUse(SocketAddr),
    /// Its number is held for UDP.
    #[error("{0} is in use for UDP by another program")]
    InUseForUdp(SocketAddr),
    /// It cannot be used at all.
    #[error("{0} cannot be listened on: {1}")]
    Unusable(SocketAddr, #[source] io::Error),
}

/// The right of this process to listen on an address, held until it is dropped or the process
/// ends.
///
/// Listeners that share an address would share it with a second process of the same user as well,
/// and the kernel would deal it half of the connections. Two things prevent that. A guard socket
/// is bound to the address without sharing, which fails if anybody listens there, also on an
/// address that overlaps; only then is it opened to sharing, and kept (it never listens). An
/// abstract unix socket named by address and port is held as well: it says who holds the port, and
/// decides between two starts at the same moment. Both belong to the network namespace, as ports
/// do, and vanish with the process, which no file does.
#[derive(Debug)]
pub struct PortLock {
    addr: SocketAddr,
    _guard: OwnedFd,
    _name: UnixListener,
}

impl PortLock {
    /// Takes an address; with port 0, one of the kernel's choice.
    ///
    /// # Errors
    /// [`PortError`], naming the address.
    pub fn take(wanted: SocketAddr) -> Result<PortLock, PortError> {
        let unusable = |error| PortError::Unusable(wanted, error);
        // With port 0 the name is only known after the bind.
        let early = if wanted.port() == 0 { None } else { Some(hold_name(wanted)?) };
        let guard = tcp_socket(&wanted).map_err(unusable)?;
        if let Err(error) = bind(guard.as_fd(), &wanted) {
            if error.raw_os_error() != Some(libc::EADDRINUSE) {
                return Err(unusable(error));
            }
            // Perhaps only connections of an earlier run that linger in TIME_WAIT.
            set_flag(guard.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, true)
                .map_err(unusable)?;
            bind(guard.as_fd(), &wanted).map_err(|error| match error.raw_os_error() {
                Some(libc::EADDRINUSE) => PortError::InUse(wanted),
                _ => unusable(error),
            })?;
        }
        let addr = local_addr(guard.as_fd()).map_err(unusable)?;
        let name = match early {
            Some(name) => name,
            None => hold_name(addr)?,
        };
        // From here on our own listeners may join, and nobody who does not ask to share.
        set_flag(guard.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, false).map_err(unusable)?;
        set_flag(guard.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, true).map_err(unusable)?;
        Ok(PortLock { addr, _guard: guard, _name: name })
    }

    /// The address, with the port that was chosen.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Binds the abstract unix socket of an address.
fn hold_name(addr: SocketAddr) -> Result<UnixListener, PortError> {
    let unusable = |error| PortError::Unusable(addr, error);
    let name = format!("seedring/tcp/{addr}");
    let name = UnixAddr::from_abstract_name(name).map_err(unusable)?;
    UnixListener::bind_addr(&name).map_err(|error| match error.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::Locked(addr),
        _ => unusable(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn addresses_keep_their_meaning() {
        for text in ["1.2.3.4:5", "0.0.0.0:0", "[::1]:65535", "[fe80::1:2%7]:80"] {
            let addr: SocketAddr = text.parse().unwrap();
            let raw = RawAddr::new(&addr);
            assert_eq!(raw.to_std().unwrap(), addr);
            let len = usize::try_from(raw.len()).unwrap();
            // SAFETY: the storage is longer than the address, and lives as long as `raw`.
            let bytes = unsafe { std::slice::from_raw_parts(raw.as_ptr().cast::<u8>(), len) };
            assert_eq!(addr_from_raw(bytes).unwrap(), addr);
            assert!(addr_from_raw(&bytes[..len - 1]).is_err());
            assert!(addr_from_raw(&[bytes, &[0; 200]].concat()).is_err());
        }
        assert!(addr_from_raw(&[]).is_err() && addr_from_raw(&[1; 16]).is_err());
    }

    #[test]
    fn workers_share_a_locked_port_and_strangers_do_not() {
        let lock = PortLock::take(ANY_PORT).unwrap();
        let addr = lock.addr();
        assert_ne!(addr.port(), 0);
        let workers = [listen(&addr).unwrap(), listen(&addr).unwrap()];
        let error = PortLock::take(addr).unwrap_err();
        assert_eq!(error.to_string(), format!("{addr} is in use by another seedring"));
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
        let error = PortLock::take(everywhere).unwrap_err();
        assert_eq!(error.to_string(), format!("{everywhere} is in use by another program"));
        assert!(TcpListener::bind(addr).is_err());
        drop((workers, lock));
        assert_eq!(PortLock::take(addr).unwrap().addr(), addr);
    }

    #[test]
    fn a_lock_holds_before_anybody_listens() {
        let lock = PortLock::take(ANY_PORT).unwrap();
        assert!(TcpListener::bind(lock.addr()).is_err());
        let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), lock.addr().port());
        assert!(matches!(PortLock::take(everywhere), Err(PortError::InUse(_))));
    }

    #[test]
    fn a_port_with_old_connections_can_be_taken_again() {
        let lock = PortLock::take(ANY_PORT).unwrap();
        let addr = lock.addr();
        let listener = TcpListener::from(listen(&addr).unwrap());
        listener.set_nonblocking(false).unwrap();
        let mut client = TcpStream::connect(addr).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // The side that closes first is left in TIME_WAIT.
        drop((listener, lock));
        server.write_all(b"x").unwrap();
        drop(server);
        assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 1);
        drop(client);
        let lock = PortLock::take(addr).unwrap();
        listen(&lock.addr()).unwrap();
    }

    #[test]
    fn a_listener_lets_so_many_wait() {
        let listener = listen(&ANY_PORT).unwrap();
        // SAFETY: all its fields are numbers.
        let mut info: libc::tcp_info = unsafe { mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
        let (fd, place) = (listener.as_raw_fd(), (&raw mut info).cast());
        // SAFETY: both live during the call, and the length is that of the place.
        let result =
            unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut len) };
        check(result).unwrap();
        let system = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let most: u32 = system.trim().parse().unwrap();
        // Of a listener this field tells the limit, as ss(8) shows it.
        assert_eq!(info.tcpi_sacked, u32::try_from(BACKLOG).unwrap().min(most));
    }

    #[test]
    fn another_program_on_the_port_is_named() {
        let other = TcpListener::bind(ANY_PORT).unwrap();
        let addr = other.local_addr().unwrap();
        assert!(matches!(PortLock::take(addr), Err(PortError::InUse(found)) if found == addr));
        let nowhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
        assert!(matches!(PortLock::take(nowhere), Err(PortError::Unusable(..))));
    }

    #[test]
    fn options_and_addresses_of_a_connection() {
        let listener = TcpListener::bind(ANY_PORT).unwrap();
        let addr = listener.local_addr().unwrap();
        let socket = tcp_socket(&addr).unwrap();
        bind_source(socket.as_fd(), "127.9.8.7".parse().unwrap()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        let socket = OwnedFd::from(stream);
        let raw = RawAddr::new(&addr);
        // SAFETY: the address lives during the call and has the length that is given.
        check(unsafe { libc::connect(socket.as_raw_fd(), raw.as_ptr(), raw.len()) }).unwrap();
        assert_eq!(peer_addr(socket.as_fd()).unwrap(), addr);
        let local = local_addr(socket.as_fd()).unwrap();
        assert_eq!(local.ip().to_string(), "127.9.8.7");
        let (mut accepted, from) = listener.accept().unwrap();
        assert_eq!(from, local);
        set_linger_zero(socket.as_fd()).unwrap();
        drop(socket);
        let error = accepted.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn devices_are_checked() {
        let socket = tcp_socket(&ANY_PORT).unwrap();
        for name in ["", "a-name-that-is-too-long", "a\0b"] {
            let error = bind_device(socket.as_fd(), name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
        let error = bind_device(socket.as_fd(), "nosuchdevice").unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }
}
