//! What nodes remember over a restart: their ids, their addresses, and nodes that answered.
//!
//! Bytes of a file enter and leave. Invariant: a damaged file is no error that stops anything, at
//! most [`NODES_MAX`] nodes are read, and none of them is trusted before it answered again.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use super::encode::{compact, compact_nodes};
use super::krpc::{address, address_v4, address_v6, contacts};
use super::nodes::NODES_MAX as OWN_MAX;
use super::{Contact, NodeId};
use crate::bencode::{Document, Encoder, Limits, Value};

/// Nodes that are saved.
pub(super) const NODES_MAX: usize = 200;

/// Nodes of this size in bytes, and room for the rest.
const LIMITS: Limits = Limits { depth: 2, tokens: 16, bytes: NODES_MAX * 38 + 256 };

/// A list of what was saved of each of our nodes.
const FILE_LIMITS: Limits =
    Limits { depth: 3, tokens: 16 * OWN_MAX + 1, bytes: (NODES_MAX * 38 + 256) * OWN_MAX };

/// Bytes of a file of saved nodes at most.
pub const FILE_LEN_MAX: usize = FILE_LIMITS.bytes;

/// What is saved of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Saved {
    /// Where its socket was bound.
    pub local: Option<SocketAddr>,
    /// Its id.
    pub id: Option<NodeId>,
    /// Where others saw it.
    pub external_ip: Option<IpAddr>,
    /// Nodes that answered it.
    pub nodes: Vec<Contact>,
}

impl Saved {
    /// A bencoded dictionary with `id`, `ip`, `local`, `nodes` and `nodes6`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let nodes = self.nodes.get(..NODES_MAX).unwrap_or(&self.nodes);
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            self.id.iter().for_each(|id| {
                dict.bytes(b"id", &id.0);
            });
            self.external_ip.iter().for_each(|ip| {
                dict.bytes(b"ip", &compact((*ip, 0).into()));
            });
            self.local.iter().for_each(|local| {
                dict.bytes(b"local", &compact(*local));
            });
            dict.bytes(b"nodes", &compact_nodes(nodes, true));
            dict.bytes(b"nodes6", &compact_nodes(nodes, false));
        });
        encoder.finish()
    }

    /// Reads what was saved; what cannot be read is left out.
    pub fn parse(bytes: &[u8]) -> Self {
        let Ok(document) = Document::parse(bytes, &LIMITS) else { return Self::default() };
        let root = document.root();
        let text = |key: &[u8]| root.get(key).as_ref().and_then(Value::as_bytes);
        let mut nodes = Vec::new();
        nodes.extend(text(b"nodes").into_iter().flat_map(|list| contacts(list, address_v4)));
        nodes.extend(text(b"nodes6").into_iter().flat_map(|list| contacts(list, address_v6)));
        nodes.truncate(NODES_MAX);
        Self {
            local: text(b"local").and_then(address),
            id: text(b"id").and_then(NodeId::from_slice),
            external_ip: text(b"ip").and_then(address).map(|addr| addr.ip()),
            nodes,
        }
    }
}

/// A bencoded list of what is saved of each node of ours.
pub(super) fn to_file(all: &[Saved]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.list(|list| {
        all.iter().for_each(|saved| {
            list.raw(&saved.to_bytes());
        });
    });
    encoder.finish()
}

/// What was saved for the nodes behind the sockets `locals`, in their order; nothing for those that
/// nothing fits. A node takes what was saved for its address, or else for another of its family:
/// the address may have changed.
pub fn from_file(bytes: &[u8], locals: &[SocketAddr]) -> Vec<Saved> {
    let document = Document::parse(bytes, &FILE_LIMITS);
    let list = document.as_ref().ok().and_then(|document| document.root().as_list());
    let values = list.into_iter().flatten();
    let mut all: Vec<_> = values.map(|value| Saved::parse(value.raw())).take(OWN_MAX).collect();
    let mut found = vec![Saved::default(); locals.len()];
    for is_exact in [true, false] {
        for (place, local) in found.iter_mut().zip(locals).filter(|(it, _)| it.local.is_none()) {
            let fits = |it: &Saved| match it.local {
                Some(other) if is_exact => other == *local,
                Some(other) => other.is_ipv4() == local.is_ipv4(),
                None => false,
            };
            if let Some(at) = all.iter().position(fits) {
                *place = all.remove(at);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_again() {
        let v4 = |at: u8| Contact { id: NodeId([at; 20]), addr: ([8, 8, 8, at], 2000).into() };
        let v6 = Contact { id: NodeId([9; 20]), addr: "[2a00::1]:6881".parse().unwrap() };
        for external_ip in [None, Some([9, 9, 9, 9].into()), Some("2a00::2".parse().unwrap())] {
            let nodes = (0..150).map(v4).chain([v6]).collect();
            let local = Some("[::]:51413".parse().unwrap());
            let saved = Saved { local, id: Some(NodeId([1; 20])), external_ip, nodes };
            assert_eq!(Saved::parse(&saved.to_bytes()), saved);
        }
        let many = Saved { nodes: (0..255).map(v4).collect(), ..Saved::default() };
        assert_eq!(Saved::parse(&many.to_bytes()).nodes, many.nodes[..NODES_MAX]);
    }

    #[test]
    fn each_node_gets_what_was_saved_for_it() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let saved = |local: &str, at: u8| {
            let nodes = vec![Contact { id: NodeId([at; 20]), addr: ([8, 8, 8, at], 2000).into() }];
            Saved { local: Some(addr(local)), id: Some(NodeId([at; 20])), external_ip: None, nodes }
        };
        let all = [saved("10.0.0.1:1000", 1), saved("10.0.0.2:1000", 2), saved("[::]:1000", 3)];
        let bytes = to_file(&all);
        assert!(bytes.len() <= FILE_LEN_MAX);
        let taken = |locals: &[&str]| {
            let locals: Vec<_> = locals.iter().map(|local| addr(local)).collect();
            let of_each = from_file(&bytes, &locals).into_iter();
            of_each.map(|it| it.id.map_or(0, |id| id.0[0])).collect::<Vec<_>>()
        };
        assert_eq!(taken(&["[::]:1000", "10.0.0.2:1000", "10.0.0.1:1000"]), [3, 2, 1]);
        assert_eq!(taken(&["0.0.0.0:7", "10.0.0.1:1000", "10.9.9.9:7"]), [2, 1, 0]);
        assert_eq!(taken(&["[::1]:7", "[::2]:7"]), [3, 0]);
        for damaged in [b"".as_slice(), b"le", b"li1ee", b"ldee", &bytes[1..], &bytes[..40]] {
            assert_eq!(from_file(damaged, &[addr("0.0.0.0:7")]), [Saved::default()]);
        }
        let full = Saved { nodes: vec![all[0].nodes[0]; NODES_MAX], ..all[2].clone() };
        let many = to_file(&vec![full; OWN_MAX]);
        assert!(many.len() <= FILE_LEN_MAX);
        assert!(from_file(&many, &[addr("[::]:1000"); OWN_MAX]).iter().all(|it| it.id.is_some()));
    }

    #[test]
    fn damage_costs_only_what_is_damaged() {
        for bytes in [b"".as_slice(), b"x", b"de", b"le", b"d2:id3:abc5:nodesi1ee", &[b'd'; 9000]] {
            assert_eq!(Saved::parse(bytes), Saved::default(), "{}", bytes.escape_ascii());
        }
        let saved = Saved { id: Some(NodeId([1; 20])), ..Saved::default() }.to_bytes();
        for at in 0..saved.len() {
            let mut bytes = saved.clone();
            bytes[at] ^= 1;
            assert!(Saved::parse(&bytes).nodes.is_empty());
        }
    }
}
