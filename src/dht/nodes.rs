//! All nodes of ours together: one per socket (BEP 45), of one family or both (BEP 32).
//!
//! Datagrams with the number of their socket, torrents and `now` enter; datagrams with the number
//! of the socket they leave through, and events, leave. Invariant: nodes share nothing but the
//! addresses that they name to each other.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Instant;

use super::node::{Config, Event, Node};
use super::saved::to_file;
use super::schedule::Announce;
use crate::units::InfoHash;

/// Sockets at most.
pub(super) const NODES_MAX: usize = 16;

/// The nodes of one program. A node's number is its place among the settings it was made of.
#[derive(Debug)]
pub struct Dht {
    nodes: Vec<Node>,
    /// Whose turn it is to transmit.
    turn: usize,
}

impl Dht {
    /// One node per socket, at most 16; nodes of both families want each other's.
    pub fn new(now: Instant, configs: Vec<Config>) -> Self {
        let is_both = configs.iter().any(|it| it.local.is_ipv4())
            && configs.iter().any(|it| it.local.is_ipv6());
        let node = |config| Node::new(now, Config { wants_both: is_both, ..config });
        Self { nodes: configs.into_iter().take(NODES_MAX).map(node).collect(), turn: 0 }
    }

    /// The nodes, in the order of their sockets.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What is worth saving of all of them, for [`from_file`](super::from_file); nothing if they
    /// know nobody, for what was saved before is then worth more.
    pub fn export(&self, now: Instant) -> Option<Vec<u8>> {
        let all: Vec<_> = self.nodes.iter().map(|node| node.export(now)).collect();
        all.iter().any(|saved| !saved.nodes.is_empty()).then(|| to_file(&all))
    }

    /// Takes a datagram that came through the socket of node `index`.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        index: usize,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let Some((before, rest)) = self.nodes.split_at_mut_checked(index) else { return };
        let Some((node, after)) = rest.split_first_mut() else { return };
        let is_sibling = |other: &&Node| other.is_ipv4() != node.is_ipv4();
        let sibling = before.iter().chain(after.iter()).find(is_sibling);
        node.handle_datagram(now, from, datagram, sibling);
        while let Some(contact) = node.poll_foreign() {
            let others = before.iter_mut().chain(after.iter_mut());
            others
                .filter(|other| other.is_ipv4() == contact.addr.is_ipv4())
                .for_each(|other| other.offer(now, contact));
        }
    }

    /// The next datagram to send: the node whose socket it leaves through, where to, and the bytes.
    pub fn poll_transmit(&mut self) -> Option<(usize, SocketAddr, Vec<u8>)> {
        for _ in 0..self.nodes.len() {
            let index = self.turn % self.nodes.len();
            self.turn = index + 1;
            if let Some((to, datagram)) = self.nodes[index].poll_transmit() {
                return Some((index, to, datagram));
            }
        }
        None
    }

    /// The next thing that happened, and to which node.
    pub fn poll_event(&mut self) -> Option<(usize, Event)> {
        let mut nodes = self.nodes.iter_mut().enumerate();
        nodes.find_map(|(index, node)| node.poll_event().map(|event| (index, event)))
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called at the latest; `None` if there
    /// is no node. It changes with every call of anything else.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.nodes.iter().map(|node| node.poll_timeout(now)).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for node in &mut self.nodes {
            if node.poll_timeout(now) <= now {
                node.handle_timeout(now);
            }
        }
    }

    /// Names addresses to start from; each goes to the nodes of its family.
    pub fn set_bootstrap(&mut self, now: Instant, addrs: &[SocketAddr]) {
        self.nodes.iter_mut().for_each(|node| node.set_bootstrap(now, addrs));
    }

    /// Names a node that may be there: a PORT message, the `nodes` of a torrent.
    pub fn insert_node(&mut self, addr: SocketAddr) {
        let of_family = self.nodes.iter_mut().filter(|node| node.is_ipv4() == addr.is_ipv4());
        of_family.for_each(|node| node.insert_node(addr));
    }

    /// Announces a torrent from now on, or changes what is said of it; private ones must not get
    /// here. False if there are too many.
    pub fn add_torrent(&mut self, now: Instant, info_hash: InfoHash, announce: Announce) -> bool {
        self.all(|node| node.add_torrent(now, info_hash, announce))
    }

    /// Stops all that is done for a torrent.
    pub fn remove_torrent(&mut self, info_hash: InfoHash) {
        self.nodes.iter_mut().for_each(|node| node.remove_torrent(info_hash));
    }

    /// Looks for peers of a torrent, ahead of all announces. False if too many wait already.
    pub fn find_peers(&mut self, info_hash: InfoHash) -> bool {
        self.all(|node| node.find_peers(info_hash))
    }

    /// Counts the peers of a torrent (BEP 33). False if too many wait already.
    pub fn scrape(&mut self, info_hash: InfoHash) -> bool {
        self.all(|node| node.scrape(info_hash))
    }

    fn all(&mut self, mut act: impl FnMut(&mut Node) -> bool) -> bool {
        // Every node is told, whatever the others say.
        let refused = self.nodes.iter_mut().filter_map(|node| (!act(node)).then_some(())).count();
        refused == 0
    }
}
