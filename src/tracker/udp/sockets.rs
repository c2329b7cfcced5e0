//! Sockets for the datagrams of UDP trackers, on the control thread, where those of the peer port
//! have no way.
//!
//! Datagrams leave by [`Outgoing`] and come in by a function that is given to
//! [`Sockets::receive`]. Invariant: what `net.bind` names is what everything leaves from; a family
//! that it leaves out, or that the system lacks, is not used.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::executor::Outgoing;
use crate::sys::net::Bind;

/// No datagram is longer.
const DATAGRAM_LEN_MAX: usize = 65_535;

/// How long a socket that failed to receive is left alone.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// One socket for each family that can be used.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    /// Binds a port of the system's choice for each family.
    ///
    /// # Errors
    /// Neither family can be used.
    pub fn bind(from: Option<&Bind>) -> io::Result<Self> {
        let wildcard = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let [v4, v6] = wildcard.map(|any| match from {
            Some(Bind::Address(ip)) if ip.is_ipv4() != any.is_ipv4() => {
                Err(io::ErrorKind::AddrNotAvailable.into())
            }
            Some(Bind::Address(ip)) => socket(*ip, None),
            Some(Bind::Interface(name)) => socket(any, Some(name)),
            None => socket(any, None),
        });
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self { v4: v4.ok(), v6: v6.ok() }),
        }
    }

    /// Hands every datagram that comes in to `handle`, on the current tokio runtime, until the
    /// tasks are dropped.
    ///
    /// # Errors
    /// The runtime does not take a socket.
    pub fn receive(
        &self,
        handle: impl Fn(SocketAddr, &[u8]) + Send + Sync + 'static,
    ) -> io::Result<JoinSet<()>> {
        let (mut tasks, handle) = (JoinSet::new(), Arc::new(handle));
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
            let handle = Arc::clone(&handle);
            tasks.spawn(async move {
                let mut buffer = vec![0; DATAGRAM_LEN_MAX];
                loop {
                    match socket.recv_from(&mut buffer).await {
                        Ok((len, from)) => handle(from, buffer.get(..len).unwrap_or_default()),
                        Err(_) => tokio::time::sleep(RECEIVE_PAUSE).await,
                    }
                }
            });
        }
        Ok(tasks)
    }
}

fn socket(ip: IpAddr, device: Option<&String>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.set_nonblocking(true)?;
    if let Some(device) = device {
        let shared = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        shared.bind_device(Some(device.as_bytes()))?;
    }
    Ok(socket)
}

impl Outgoing for Sockets {
    fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let socket = socket.as_ref().ok_or(io::ErrorKind::AddrNotAvailable)?;
        match socket.send_to(datagram, to) {
            // Lost, as any datagram may be: it is sent again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(|_| ()),
        }
    }

    fn reaches(&self, is_ipv4: bool) -> bool {
        if is_ipv4 { self.v4.is_some() } else { self.v6.is_some() }
    }
}
