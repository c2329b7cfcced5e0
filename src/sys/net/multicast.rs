//! Interfaces of this host, and sockets that speak to a group of neighbours on one of them.
//!
//! A group and an interface enter; UDP sockets leave that hear what is sent to the group on that
//! interface, or send there. Invariant: what is sent stays on the link, and what is addressed to this
//! host alone is not heard.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::{RawAddr, bind, bind_device, check, new_socket, set_flag, set_option, set_recv_buffer};

/// Interfaces that are looked at; a host with more has them for its containers.
pub const INTERFACES_MAX: usize = 256;

/// Addresses of one interface that are looked at.
pub const NETWORKS_MAX: usize = 32;

/// How many links a datagram may pass: one, for a neighbour is who is on the same.
const HOPS: i32 = 1;

/// Bytes of datagrams that may wait unread; the kernel doubles the value.
const BACKLOG: i32 = 64 << 10;

/// An address of ours and the network that it is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that its network has in common; all of them for a network of one.
    pub prefix: u32,
}

impl Network {
    /// Whether `ip` is in the network.
    pub fn holds(&self, ip: IpAddr) -> bool {
        let differing = match (self.ip, ip) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (ours.to_bits() ^ theirs.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        differing >= self.prefix
    }
}

/// A network interface that is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// Whether it reaches neighbours by multicast: not a loopback device, and no tunnel.
    pub has_neighbours: bool,
    /// Our addresses there.
    pub networks: Vec<Network>,
}

/// All interfaces that are up, at most [`INTERFACES_MAX`].
///
/// # Errors
/// What getifaddrs(3) says.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: the call writes the head of a list there, which is ours to free.
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut found: Vec<Interface> = Vec::new();
    let mut next = first;
    // SAFETY: every link of the list is null or a whole entry, and lives until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        let flags = entry.ifa_flags.cast_signed();
        if flags & libc::IFF_UP == 0 {
            continue;
        }
        // SAFETY: the name ends with a zero byte and lives as long as its entry.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        let shown = name.to_string_lossy();
        let place = found.iter().position(|it| it.name == shown).or_else(|| {
            // SAFETY: the name ends with a zero byte; the call keeps nothing.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            let has_neighbours = flags & libc::IFF_MULTICAST != 0
                && flags & (libc::IFF_LOOPBACK | libc::IFF_POINTOPOINT) == 0;
            let is_new = index != 0 && found.len() < INTERFACES_MAX;
            is_new.then(|| {
                let name = shown.clone().into_owned();
                found.push(Interface { name, index, has_neighbours, networks: Vec::new() });
                found.len() - 1
            })
        });
        // SAFETY: both are null or an address that is as long as its family says.
        let (ip, mask) = unsafe { (ip_at(entry.ifa_addr), ip_at(entry.ifa_netmask)) };
        if let (Some(place), Some(ip)) = (place, ip)
            && found[place].networks.len() < NETWORKS_MAX
        {
            let prefix = match mask {
                Some(IpAddr::V4(mask)) => mask.to_bits().leading_ones(),
                Some(IpAddr::V6(mask)) => mask.to_bits().leading_ones(),
                None if ip.is_ipv4() => 32,
                None => 128,
            };
            found[place].networks.push(Network { ip, prefix });
        }
    }
    // SAFETY: the list came from getifaddrs and is freed once; what was kept of it is copied.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// # Safety
/// The pointer is null, or leads to an address that is as long as its family says.
unsafe fn ip_at(addr: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller promises.
    let family = i32::from(unsafe { addr.as_ref() }?.sa_family);
    let mut raw = RawAddr::unspecified();
    let len = match family {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return None,
    };
    // SAFETY: the caller promises so many bytes, and the storage is longer than either form.
    unsafe {
        std::ptr::copy_nonoverlapping(addr.cast::<u8>(), (&raw mut raw.storage).cast::<u8>(), len);
    }
    raw.to_std().ok().map(|addr| addr.ip())
}

/// A socket that hears what comes to `group` on an interface, and nothing else. Others on this host
/// may have one too (SO_REUSEADDR).
///
/// # Errors
/// What the kernel says: `ENODEV` if the interface has gone, `EAFNOSUPPORT`, `ENOBUFS` beyond the
/// memberships that it allows.
pub fn group_listener(group: SocketAddr, interface: &Interface) -> io::Result<OwnedFd> {
    let socket = new_socket(&group, libc::SOCK_DGRAM)?;
    let fd = socket.as_fd();
    set_flag(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, true)?;
    bind_device(fd, &interface.name)?;
    set_recv_buffer(fd, BACKLOG)?;
    // Bound to the group, it hears nothing that is sent to us alone.
    bind(fd, &group)?;
    match group.ip() {
        IpAddr::V4(group) => {
            let membership = membership(group, interface);
            set_option(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &membership)?;
        }
        IpAddr::V6(group) => {
            let membership = libc::ipv6_mreq {
                ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
                ipv6mr_interface: interface.index,
            };
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &membership)?;
        }
    }
    Ok(socket)
}

/// A socket that sends to groups of the family of `group` on an interface: `from` an address of
/// ours there, or from one that the kernel chooses. Listeners on this host hear it, too.
///
/// # Errors
/// What the kernel says: `ENODEV` if the interface has gone, `EADDRNOTAVAIL` if the address has.
pub fn group_sender(
    group: SocketAddr,
    interface: &Interface,
    from: Option<IpAddr>,
) -> io::Result<OwnedFd> {
    let socket = new_socket(&group, libc::SOCK_DGRAM)?;
    let fd = socket.as_fd();
    bind_device(fd, &interface.name)?;
    if let Some(ip) = from {
        bind(fd, &SocketAddr::new(ip, 0))?;
    }
    match group.ip() {
        IpAddr::V4(group) => {
            let interface = membership(group, interface);
            set_option(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface)?;
            set_option(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, &HOPS)?;
            set_flag(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, true)?;
        }
        IpAddr::V6(_) => {
            let index = interface.index.cast_signed();
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &index)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, &HOPS)?;
            set_flag(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, true)?;
        }
    }
    Ok(socket)
}

fn membership(group: Ipv4Addr, interface: &Interface) -> libc::ip_mreqn {
    let number = |ip: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
    libc::ip_mreqn {
        imr_multiaddr: number(group),
        imr_address: number(Ipv4Addr::UNSPECIFIED),
        imr_ifindex: interface.index.cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_with_its_network() {
        let found = interfaces().unwrap();
        let loopback = found.iter().find(|it| it.name == "lo").unwrap();
        assert!(!loopback.has_neighbours && loopback.index > 0, "{loopback:?}");
        let network = Network { ip: Ipv4Addr::LOCALHOST.into(), prefix: 8 };
        assert!(loopback.networks.contains(&network), "{loopback:?}");
    }

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        let network = |ip: &str, prefix| Network { ip: ip.parse().unwrap(), prefix };
        let cases = [
            ("10.1.2.3", 24, "10.1.2.250", true),
            ("10.1.2.3", 24, "10.1.3.3", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 0, "9.9.9.9", true),
            ("fd00::1", 64, "fd00::ffff:1", true),
            ("fd00::1", 64, "fd00:0:0:1::1", false),
            ("::1", 0, "127.0.0.1", false),
        ];
        for (ours, prefix, theirs, expected) in cases {
            assert_eq!(
                network(ours, prefix).holds(theirs.parse().unwrap()),
                expected,
                "{ours} {theirs}"
            );
        }
    }

    #[test]
    fn neighbours_on_one_host_hear_each_other() {
        use std::net::UdpSocket;
        let found = interfaces().unwrap();
        let loopback = found.iter().find(|it| it.name == "lo").unwrap();
        // Of the range for documentation: nobody else is there.
        let group: SocketAddr = "233.252.0.77:0".parse().unwrap();
        let first = UdpSocket::from(group_listener(group, loopback).unwrap());
        let group = SocketAddr::new(group.ip(), first.local_addr().unwrap().port());
        let second = UdpSocket::from(group_listener(group, loopback).unwrap());
        let ours = Ipv4Addr::LOCALHOST.into();
        let sender = UdpSocket::from(group_sender(group, loopback, Some(ours)).unwrap());
        sender.send_to(b"hello", group).unwrap();
        for socket in [&first, &second] {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            let mut buffer = [0; 16];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.ip()), (&b"hello"[..], ours));
        }
        let gone = Interface { name: "nosuchdevice".into(), ..loopback.clone() };
        assert!(group_listener(group, &gone).is_err());
        assert!(group_sender(group, &gone, None).is_err());
    }
}
