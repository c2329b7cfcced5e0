//! Local discovery on the control thread: torrents on one side, groups of neighbours on the other.
//!
//! Public torrents enter, peers in networks of ours leave; sockets and interfaces are looked after
//! here, and [`crate::lsd`] says what is due and what is listened to. Invariant: a private torrent
//! (BEP 27) is never named; nothing is said where peers could not connect to us, or where nothing
//! may leave from; who is in no network of the interface is not heard.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as Sender};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::lsd::{DATAGRAM_LEN_MAX, Discovery, Error, group};
use crate::metainfo::Metainfo;
use crate::metrics::{LocalDatagram, Process};
use crate::sys::clock;
use crate::sys::net::Bind;
use crate::sys::net::multicast::{Interface, Network, group_listener, group_sender, interfaces};
use crate::units::InfoHash;

/// Groups that are spoken to: two for each of so many interfaces.
const LINKS_MAX: usize = 64;

/// How often interfaces are looked for that came or went.
const SCAN_INTERVAL: Duration = Duration::from_secs(30);

/// The least time between two looks at the timers.
const STEP: Duration = Duration::from_millis(2);

/// One family of addresses on one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    interface: Interface,
    group: SocketAddr,
    /// The TCP port that neighbours reach us at.
    port: u16,
    /// The address that datagrams leave from, if only one will do.
    from: Option<IpAddr>,
}

impl Place {
    /// Whether somebody there is a neighbour. An IPv6 address that only means something together
    /// with an interface is nobody that a swarm could connect to.
    fn is_near(&self, ip: IpAddr) -> bool {
        let is_scoped = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        !is_scoped && self.interface.networks.iter().any(|network| network.holds(ip))
    }
}

/// A group that we belong to.
struct Link {
    place: Place,
    listener: UdpSocket,
    sender: Sender,
}

impl Link {
    fn open(place: Place) -> io::Result<Self> {
        let listener = UdpSocket::from_std(group_listener(place.group, &place.interface)?.into())?;
        let sender = group_sender(place.group, &place.interface, place.from)?.into();
        Ok(Self { place, listener, sender })
    }
}

/// What is announced to neighbours, and where they are.
pub(super) struct Neighbours {
    discovery: Discovery,
    listen: Vec<SocketAddr>,
    bind: Option<Bind>,
    links: Vec<Link>,
    /// The link that is read first, each time another one.
    first: usize,
    scan_at: Instant,
    buffer: Vec<u8>,
    cells: Arc<Process>,
}

impl Neighbours {
    /// For a server whose peers connect to `listen`, and of which everything leaves from `bind`.
    pub(super) fn new(listen: &[SocketAddr], bind: Option<&Bind>, cells: Arc<Process>) -> Self {
        let port = listen.first().map_or(0, SocketAddr::port);
        Self {
            discovery: Discovery::new(port, fastrand::u64(..)),
            listen: listen.to_vec(),
            bind: bind.cloned(),
            links: Vec::new(),
            first: 0,
            scan_at: clock::now(),
            buffer: vec![0; DATAGRAM_LEN_MAX + 1],
            cells,
        }
    }

    /// Announces a torrent from now on, unless it is private.
    pub(super) fn add(&mut self, metainfo: &Metainfo) {
        if !metainfo.private {
            self.seek(metainfo.info_hash);
        }
    }

    /// The same for a torrent of which no more is known yet.
    pub(super) fn seek(&mut self, info_hash: InfoHash) {
        if !self.discovery.insert(clock::now(), info_hash, false) {
            tracing::debug!(torrent = %info_hash, "too many torrents: not announced to neighbours");
        }
    }

    /// Announces a torrent no more.
    pub(super) fn remove(&mut self, info_hash: &InfoHash) {
        self.discovery.remove(info_hash);
    }

    /// Waits for a neighbour or a timer; returns whom a datagram named. Dropping the future loses
    /// nothing.
    async fn turn(&mut self) -> Vec<(InfoHash, SocketAddr)> {
        let now = clock::now();
        if now >= self.scan_at {
            self.scan_at = now + SCAN_INTERVAL;
            self.scan(now);
        }
        self.say(now);
        let pause = self.discovery.reads_again_at(now);
        let due = self.discovery.poll_timeout().filter(|_| !self.links.is_empty());
        let due = [due, pause, Some(self.scan_at)].into_iter().flatten().min().unwrap_or(now);
        let (first, links) = (self.first, &self.links);
        tokio::select! {
            (index, heard) = receive(links, first, &mut self.buffer), if pause.is_none() => {
                self.first = index + 1;
                self.hear(index, heard)
            }
            () = tokio::time::sleep_until(due.max(now + STEP).into()) => Vec::new(),
        }
    }

    /// Enters the groups of interfaces that have come, and leaves those that have gone.
    fn scan(&mut self, now: Instant) {
        let found = match interfaces() {
            Ok(found) => found,
            Err(error) => return tracing::debug!(%error, "cannot look for network interfaces"),
        };
        let wanted = places(&found, &self.listen, self.bind.as_ref());
        self.links.retain(|link| wanted.contains(&link.place));
        let is_old = |place: &Place| self.links.iter().any(|link| link.place == *place);
        let fresh: Vec<Place> = wanted.into_iter().filter(|place| !is_old(place)).collect();
        for place in fresh {
            let (interface, group) = (place.interface.name.clone(), place.group);
            match Link::open(place) {
                Ok(link) => {
                    tracing::debug!(interface, %group, "looking for neighbours");
                    self.links.push(link);
                    self.discovery.announce_all(now);
                }
                Err(error) => tracing::debug!(interface, %group, %error, "no neighbours there"),
            }
        }
    }

    /// Announces what is due, on all links. One that fails is opened again with the next scan, if
    /// its interface is still there.
    fn say(&mut self, now: Instant) {
        while !self.links.is_empty()
            && let Some(mut search) = self.discovery.poll_datagram(now)
        {
            let cells = &self.cells;
            self.links.retain(|Link { place, sender, .. }| {
                search.port = place.port;
                let sent = sender.send_to(&search.encode(place.group), place.group);
                let result = match &sent {
                    Ok(_) => LocalDatagram::Sent,
                    Err(error) => {
                        let interface = &place.interface.name;
                        tracing::debug!(interface, %error, "cannot announce to neighbours");
                        LocalDatagram::Unsent
                    }
                };
                cells.local_datagrams[result].add(1);
                sent.is_ok()
            });
        }
    }

    fn hear(
        &mut self,
        index: usize,
        heard: io::Result<(usize, SocketAddr)>,
    ) -> Vec<(InfoHash, SocketAddr)> {
        let (len, from) = match heard {
            Ok(heard) => heard,
            Err(error) => {
                let interface = self.links.remove(index).place.interface.name;
                tracing::debug!(interface, %error, "cannot hear neighbours");
                return Vec::new();
            }
        };
        let is_near = self.links.get(index).is_some_and(|link| link.place.is_near(from.ip()));
        let datagram = self.buffer.get(..len).unwrap_or_default();
        let heard = self.discovery.handle_datagram(clock::now(), from, is_near, datagram);
        let result = match heard {
            Ok(_) => LocalDatagram::Received,
            Err(Error::Own) => LocalDatagram::Own,
            Err(Error::TooLong) => LocalDatagram::TooLong,
            Err(Error::NotSearch) => LocalDatagram::NotSearch,
            Err(Error::Port) => LocalDatagram::Port,
            Err(Error::NoInfoHash) => LocalDatagram::NoInfoHash,
            Err(Error::Stranger) => LocalDatagram::Stranger,
            Err(Error::Flood) => LocalDatagram::Flood,
        };
        self.cells.local_datagrams[result].add(1);
        heard.unwrap_or_default()
    }
}

/// Whom neighbours name next; never, if nobody listens to them.
pub(super) async fn next(neighbours: &mut Option<Neighbours>) -> Vec<(InfoHash, SocketAddr)> {
    match neighbours {
        Some(neighbours) => neighbours.turn().await,
        None => std::future::pending().await,
    }
}

/// The next datagram of any link, or its error; `first` is asked first.
async fn receive(
    links: &[Link],
    first: usize,
    buffer: &mut [u8],
) -> (usize, io::Result<(usize, SocketAddr)>) {
    std::future::poll_fn(|context| {
        for offset in 0..links.len() {
            let index = (first + offset) % links.len();
            let mut read = ReadBuf::new(buffer);
            if let Poll::Ready(from) = links[index].listener.poll_recv_from(context, &mut read) {
                let len = read.filled().len();
                return Poll::Ready((index, from.map(|from| (len, from))));
            }
        }
        Poll::Pending
    })
    .await
}

/// Where to announce: on every interface with neighbours and each family, if peers can connect to
/// us there and things may leave from there.
fn places(found: &[Interface], listen: &[SocketAddr], bind: Option<&Bind>) -> Vec<Place> {
    let mut places = Vec::new();
    for interface in found.iter().filter(|it| it.has_neighbours) {
        if matches!(bind, Some(Bind::Interface(name)) if *name != interface.name) {
            continue;
        }
        for is_v4 in [true, false] {
            let of_family = |network: &&Network| network.ip.is_ipv4() == is_v4;
            let networks: Vec<_> = interface.networks.iter().filter(of_family).copied().collect();
            let has = |ip: IpAddr| networks.iter().any(|network| network.ip == ip);
            let everywhere: IpAddr = match is_v4 {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            let listener = listen
                .iter()
                .find(|addr| has(addr.ip()) || (addr.ip() == everywhere && !networks.is_empty()));
            let Some(listener) = listener else { continue };
            let heard_at = Some(listener.ip()).filter(|ip| !ip.is_unspecified());
            let from = match bind {
                Some(Bind::Address(ip)) if !has(*ip) || heard_at.is_some_and(|it| it != *ip) => {
                    continue;
                }
                Some(Bind::Address(ip)) => Some(*ip),
                _ => heard_at,
            };
            let interface = Interface { networks, ..interface.clone() };
            places.push(Place { interface, group: group(is_v4), port: listener.port(), from });
        }
    }
    places.truncate(LINKS_MAX);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, index: u32, networks: &[&str]) -> Interface {
        let network = |text: &&str| {
            let (ip, prefix) = text.split_once('/').unwrap();
            Network { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
        };
        let networks = networks.iter().map(network).collect();
        Interface { name: name.to_owned(), index, has_neighbours: name != "lo", networks }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", 1, &["127.0.0.1/8", "::1/128"]),
            interface("eth0", 2, &["10.0.0.5/24", "fe80::5/64", "2001:db8::5/64"]),
            interface("eth1", 3, &["192.168.7.5/24", "192.168.8.5/24"]),
        ]
    }

    /// Interface, group and port of each place, and what datagrams leave from.
    fn told(listen: &[&str], bind: Option<Bind>) -> Vec<String> {
        let listen: Vec<_> = listen.iter().map(|addr| addr.parse().unwrap()).collect();
        let told = |place: Place| {
            let family = if place.group.is_ipv4() { 4 } else { 6 };
            let from = place.from.map(|ip| format!(" from {ip}")).unwrap_or_default();
            format!("{} IPv{family} :{}{from}", place.interface.name, place.port)
        };
        places(&host(), &listen, bind.as_ref()).into_iter().map(told).collect()
    }

    #[test]
    fn neighbours_are_told_where_they_can_connect() {
        let everywhere = ["0.0.0.0:5", "[::]:6"];
        assert_eq!(told(&everywhere, None), ["eth0 IPv4 :5", "eth0 IPv6 :6", "eth1 IPv4 :5"]);
        assert_eq!(told(&["127.0.0.1:5", "[::1]:5"], None), [""; 0]);
        assert_eq!(told(&["192.168.8.5:5"], None), ["eth1 IPv4 :5 from 192.168.8.5"]);
        assert_eq!(told(&["9.9.9.9:5"], None), [""; 0]);
    }

    #[test]
    fn nothing_is_said_where_nothing_may_leave_from() {
        let everywhere = ["0.0.0.0:5", "[::]:6"];
        let device = |name: &str| Some(Bind::Interface(name.to_owned()));
        let address = |ip: &str| Some(Bind::Address(ip.parse().unwrap()));
        assert_eq!(told(&everywhere, device("eth1")), ["eth1 IPv4 :5"]);
        assert_eq!(told(&everywhere, device("lo")), [""; 0]);
        let bound = address("2001:db8::5");
        assert_eq!(told(&everywhere, bound), ["eth0 IPv6 :6 from 2001:db8::5"]);
        let bound = address("192.168.7.5");
        assert_eq!(told(&everywhere, bound.clone()), ["eth1 IPv4 :5 from 192.168.7.5"]);
        assert_eq!(told(&["192.168.8.5:5"], bound), [""; 0]);
    }

    #[test]
    fn who_is_on_the_link_is_a_neighbour() {
        let everywhere = ["0.0.0.0:5".parse().unwrap(), "[::]:6".parse().unwrap()];
        let places = places(&host(), &everywhere, None);
        let near = |place: usize, ip: &str| places[place].is_near(ip.parse().unwrap());
        assert!(near(0, "10.0.0.200") && near(1, "2001:db8::99") && near(2, "192.168.8.1"));
        assert!(!near(0, "10.0.1.1") && !near(0, "192.168.8.1") && !near(1, "2001:db9::1"));
        assert!(!near(1, "fe80::99"), "the swarm would not know on which interface");
    }
}
