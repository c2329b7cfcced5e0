//! What a node remembers over a restart: its id, its address, and nodes that answered.
//!
//! Bytes of a file enter and leave. Invariant: a damaged file is no error that stops anything, at
//! most [`NODES_MAX`] nodes are read, and none of them is trusted before it answered again.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::encode::{compact, compact_nodes};
use super::krpc::{address, address_v4, address_v6, contacts};
use super::{Contact, NodeId};
use crate::bencode::{Document, Encoder, Limits, Value};

/// Nodes that are saved.
pub(super) const NODES_MAX: usize = 200;

/// Nodes of this size in bytes, and room for the rest.
const LIMITS: Limits = Limits { depth: 2, tokens: 16, bytes: NODES_MAX * 38 + 256 };

/// What is saved of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Saved {
    /// Its id.
    pub id: Option<NodeId>,
    /// Where others saw it.
    pub external_ip: Option<IpAddr>,
    /// Nodes that answered it.
    pub nodes: Vec<Contact>,
}

impl Saved {
    /// A bencoded dictionary with `id`, `ip`, `nodes` and `nodes6`.
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
            id: text(b"id").and_then(NodeId::from_slice),
            external_ip: text(b"ip").and_then(address).map(|addr| addr.ip()),
            nodes,
        }
    }
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
            let saved = Saved { id: Some(NodeId([1; 20])), external_ip, nodes };
            assert_eq!(Saved::parse(&saved.to_bytes()), saved);
        }
        let many = Saved { nodes: (0..255).map(v4).collect(), ..Saved::default() };
        assert_eq!(Saved::parse(&many.to_bytes()).nodes, many.nodes[..NODES_MAX]);
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
