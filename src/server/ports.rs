//! The peer ports: bound once to be sure that nobody else has them, then by every worker.
//!
//! Addresses enter, one set of listeners per worker leaves. Invariant: two processes never share a
//! port, although every listener allows the sharing that workers need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::net::{self, PortError, PortLock};

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
    /// Held as long as the process lives.
    pub locks: Vec<PortLock>,
}

/// All addresses, IPv6 and IPv4, on `port`.
pub fn everywhere(port: u16) -> Vec<SocketAddr> {
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    vec![SocketAddr::new(IpAddr::V4(v4), port), SocketAddr::new(IpAddr::V6(v6), port)]
}

/// Binds `wanted` for `worker_count` workers. A port 0 is chosen by the system, the same one for
/// all addresses that ask for it. Addresses of a family that the host does not have are left out,
/// unless none is left.
pub fn bind(wanted: &[SocketAddr], worker_count: usize) -> Result<Ports, Error> {
    let mut listeners: Vec<Vec<OwnedFd>> = (0..worker_count).map(|_| Vec::new()).collect();
    let (mut addrs, mut locks) = (Vec::new(), Vec::new());
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
        addrs.push(addr);
        locks.push(lock);
    }
    Ok(Ports { addrs, listeners, locks })
}

fn is_family_missing(error: &PortError) -> bool {
    matches!(error, PortError::Unusable(_, error)
        if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)))
}
