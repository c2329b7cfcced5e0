//! The peer ports: bound once to be sure that nobody else has them, then by every worker; and the
//! same numbers for UDP.
//!
//! Addresses enter, one set of listeners per worker and one of UDP sockets leave. Invariant: two
//! processes never share a port, although every listener allows the sharing that workers need, and
//! peers that know our TCP port know our UDP port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::net::{self, Bind, PortError, PortLock};

/// How often another number is tried when one that the system chose for TCP is taken for UDP, or
/// at another address.
const CHOICES_MAX: usize = 16;

/// Why the peer port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it.
    #[error("{0}; name another address for peers with --listen ADDR:PORT (net.listen)")]
    Port(#[from] PortError),
    /// The system refuses.
    #[error("cannot listen on {addr}: {reason}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's words.
        reason: std::io::Error,
    },
}

/// The ports of a process and the sockets of its workers.
#[derive(Debug)]
pub struct Ports {
    /// Where peers reach us, in the order in which it was asked for.
    pub addrs: Vec<SocketAddr>,
    /// One list per worker.
    pub listeners: Vec<Vec<OwnedFd>>,
    /// The UDP sockets and where they are bound: that of each address, or the one that everything
    /// is to leave from; none for a family that nothing may leave by.
    pub datagram_sockets: Vec<(SocketAddr, OwnedFd)>,
    /// Held as long as the process lives.
    pub locks: Vec<PortLock>,
}

/// All addresses, IPv6 and IPv4, on `port`.
pub fn everywhere(port: u16) -> Vec<SocketAddr> {
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    vec![SocketAddr::new(IpAddr::V4(v4), port), SocketAddr::new(IpAddr::V6(v6), port)]
}

/// Binds `wanted` for `worker_count` workers, and for UDP, which leaves from where `from` says. A
/// port 0 is chosen by the system, the same one for all addresses that ask for it. Addresses of a
/// family that the host does not have are left out, unless none is left.
pub fn bind(
    wanted: &[SocketAddr],
    from: Option<&Bind>,
    worker_count: usize,
) -> Result<Ports, Error> {
    choose(wanted, || bind_once(wanted, from, worker_count))
}

/// Tries again while a number that nobody asked for is in use.
fn choose<T>(
    wanted: &[SocketAddr],
    mut attempt: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    use PortError::{InUse, InUseForUdp, Locked};
    let is_asked = |addr: &SocketAddr| wanted.iter().any(|it| it.port() == addr.port());
    for _ in 1..CHOICES_MAX {
        match attempt() {
            Err(Error::Port(InUse(addr) | Locked(addr) | InUseForUdp(addr)))
                if !is_asked(&addr) => {}
            bound => return bound,
        }
    }
    attempt()
}

fn bind_once(
    wanted: &[SocketAddr],
    from: Option<&Bind>,
    worker_count: usize,
) -> Result<Ports, Error> {
    let mut listeners: Vec<Vec<OwnedFd>> = (0..worker_count).map(|_| Vec::new()).collect();
    let (mut addrs, mut locks, mut datagram_sockets) = (Vec::new(), Vec::new(), Vec::new());
    let mut chosen = None;
    for &addr in wanted {
        let mut addr = addr;
        if addr.port() == 0
            && let Some(port) = chosen
        {
            addr.set_port(port);
        }
        let lock = match PortLock::take(addr) {
            Ok(lock) => lock,
            Err(error) if is_family_missing(&error) && wanted.len() > 1 => {
                tracing::info!(%addr, "this host has no such addresses: not listening there");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let addr = lock.addr();
        chosen.get_or_insert(addr.port());
        for sockets in &mut listeners {
            let failed = |reason| Error::Listen { addr, reason };
            let socket = net::listen(&addr).map_err(failed)?;
            debug_assert_eq!(net::local_addr(socket.as_fd()).ok(), Some(addr));
            sockets.push(socket);
        }
        if let Some(addr) = datagram_addr(addr, from)
            && datagram_sockets.iter().all(|(other, _)| *other != addr)
        {
            datagram_sockets.push((addr, bind_datagrams(addr, from)?));
        }
        addrs.push(addr);
        locks.push(lock);
    }
    Ok(Ports { addrs, listeners, datagram_sockets, locks })
}

/// Where the UDP socket beside a listener is bound. One socket sends and receives, so that what
/// everything is to leave from goes before what is listened on.
fn datagram_addr(addr: SocketAddr, from: Option<&Bind>) -> Option<SocketAddr> {
    match from {
        Some(Bind::Address(ip)) if ip.is_ipv4() != addr.is_ipv4() => None,
        Some(Bind::Address(ip)) => Some(SocketAddr::new(*ip, addr.port())),
        Some(Bind::Interface(_)) | None => Some(addr),
    }
}

fn bind_datagrams(addr: SocketAddr, from: Option<&Bind>) -> Result<OwnedFd, Error> {
    net::datagram_socket(&addr, from).map_err(|reason| match reason.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::InUseForUdp(addr).into(),
        _ => Error::Listen { addr, reason },
    })
}

fn is_family_missing(error: &PortError) -> bool {
    matches!(error, PortError::Unusable(_, error)
        if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn numbers(ports: &Ports) -> Vec<u16> {
        let datagrams = ports.datagram_sockets.iter().map(|(addr, _)| addr);
        ports.addrs.iter().chain(datagrams).map(SocketAddr::port).collect()
    }

    #[test]
    fn udp_has_the_number_of_tcp_in_both_families() {
        let ports = bind(&addrs(&["127.0.0.1:0", "[::1]:0"]), None, 2).unwrap();
        let number = ports.addrs[0].port();
        assert_eq!(numbers(&ports), [number; 4]);
        for (addr, socket) in &ports.datagram_sockets {
            assert_eq!(net::local_addr(socket.as_fd()).unwrap(), *addr);
            assert!(UdpSocket::bind(addr).is_err());
        }
        let mut next = bind(&[SocketAddr::new(ports.addrs[0].ip(), number)], None, 1).unwrap_err();
        assert!(matches!(&next, Error::Port(PortError::Locked(_))), "{next}");
        drop(ports);
        // Somebody may have taken it meanwhile, but hardly for UDP alone.
        let taken = UdpSocket::bind(("127.0.0.1", number)).unwrap();
        next = bind(&[taken.local_addr().unwrap()], None, 1).unwrap_err();
        let sentence = format!("127.0.0.1:{number} is in use for UDP by another program; name");
        assert!(next.to_string().starts_with(&sentence), "{next}");
    }

    #[test]
    fn what_is_bound_is_where_everything_leaves_from() {
        let everywhere = everywhere(0);
        let from = Bind::Address("127.0.0.9".parse().unwrap());
        let ports = bind(&everywhere, Some(&from), 1).unwrap();
        let number = ports.addrs[0].port();
        let bound: Vec<_> = ports.datagram_sockets.iter().map(|(addr, _)| *addr).collect();
        assert_eq!(bound, [SocketAddr::new("127.0.0.9".parse().unwrap(), number)]);
        let device = Bind::Interface("lo".into());
        let ports = bind(&addrs(&["0.0.0.0:0"]), Some(&device), 1).unwrap();
        assert_eq!(numbers(&ports), [ports.addrs[0].port(); 2]);
    }

    #[test]
    fn another_number_is_tried_unless_one_was_asked_for() {
        let taken = |port| {
            move || -> Result<(), _> {
                Err(PortError::InUseForUdp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).into())
            }
        };
        let count = |wanted: &str, port, free_at| {
            let (mut tries, taken) = (0, taken(port));
            let bound = choose(&addrs(&[wanted]), || {
                tries += 1;
                if tries == free_at { Ok(()) } else { taken() }
            });
            (tries, bound.is_ok())
        };
        assert_eq!(count("127.0.0.1:0", 40_000, 1), (1, true));
        assert_eq!(count("127.0.0.1:0", 40_000, 3), (3, true));
        assert_eq!(count("127.0.0.1:0", 40_000, 0), (CHOICES_MAX, false));
        assert_eq!(count("127.0.0.1:40000", 40_000, 3), (1, false));
    }
}
