//! KRPC, the datagrams of the DHT (BEP 5, 32, 33, 42, 43, 51), from bytes to values.
//!
//! A datagram enters, a [`Message`] or the kind of its damage leaves; [`super::encode`] is the way
//! back. Invariant: no input panics, every list and string has its limit here, and what is not
//! understood is skipped, never guessed.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::bloom::Bloom;
use super::{Contact, NodeId};
use crate::bencode::{Document, Limits, Value};
use crate::units::InfoHash;

/// Bytes of a transaction id that we echo.
pub const TRANSACTION_LEN_MAX: usize = 32;

/// Bytes of a token that we keep and send back.
pub const TOKEN_LEN_MAX: usize = 64;

/// Nodes that are taken from one list of a reply; honest ones have 8.
pub const NODES_PER_REPLY_MAX: usize = 16;

/// Peers that are taken from one reply.
pub const VALUES_PER_REPLY_MAX: usize = 200;

/// Info-hashes that one answer to `sample_infohashes` holds (BEP 51).
pub const SAMPLES_MAX: usize = 20;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Args {
    /// Are you there?
    Ping,
    /// Which nodes are closest to it?
    FindNode {
        /// An id, of a node or not.
        target: NodeId,
    },
    /// Which peers have it, or which nodes are closer to it?
    GetPeers {
        /// The torrent.
        info_hash: InfoHash,
        /// Whether the answer shall count its peers (BEP 33).
        scrape: bool,
        /// Whether seeds are of no use to the asker (BEP 33).
        no_seeds: bool,
    },
    /// The asker has it.
    AnnouncePeer {
        /// The torrent.
        info_hash: InfoHash,
        /// Its TCP port; `None` if it is the one that the datagram came from (BEP 5).
        port: Option<u16>,
        /// What the node answered to `get_peers`.
        token: Vec<u8>,
        /// Whether it has everything (BEP 33).
        is_seed: bool,
    },
    /// Which torrents do you know of? (BEP 51)
    SampleInfohashes {
        /// As in `FindNode`.
        target: NodeId,
    },
    /// A method that we do not know.
    Unknown,
}

/// Lists of nodes that the asker wants (BEP 32); neither: that of the datagram's own family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Want {
    /// `n4`
    pub v4: bool,
    /// `n6`
    pub v6: bool,
}

/// A query with its sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// Who it says it is.
    pub id: NodeId,
    /// Lists it wants.
    pub want: Want,
    /// Whether it answers no queries itself (BEP 43).
    pub is_read_only: bool,
    /// What it asks.
    pub args: Args,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Who it says it is.
    pub id: NodeId,
    /// Nodes of either family, as told.
    pub nodes: Vec<Contact>,
    /// Peers of a torrent.
    pub values: Vec<SocketAddr>,
    /// Right to announce to this node.
    pub token: Option<Vec<u8>>,
    /// Our address as the node sees it (BEP 42).
    pub external: Option<SocketAddr>,
    /// Filter over the seeds it knows (BEP 33).
    pub seeds: Option<Bloom>,
    /// Filter over the other peers it knows (BEP 33).
    pub leeches: Option<Bloom>,
}

/// What a datagram is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Body {
    /// `y` = `q`
    Query(Query),
    /// `y` = `r`
    Reply(Reply),
    /// `y` = `e`
    Error,
}

/// A whole datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `t`, at most [`TRANSACTION_LEN_MAX`] bytes.
    pub transaction: Vec<u8>,
    /// The rest.
    pub body: Body,
}

/// Why a datagram is no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// It has no bytes at all.
    #[error("the datagram is empty")]
    Empty,
    /// It is no bencode, or more of it than [`Limits::KRPC`] allows.
    #[error("the datagram is not bencode as the DHT uses it")]
    Bencode,
    /// There is no `t`, or one that is too long.
    #[error("the transaction id is missing or longer than {TRANSACTION_LEN_MAX} bytes")]
    Transaction,
    /// `y` is missing or unknown, or what it announces is missing.
    #[error("the datagram is neither a query nor a reply nor an error")]
    Kind,
    /// There is no `id` of 20 bytes.
    #[error("the sender's id is missing or not 20 bytes long")]
    Id,
    /// A query lacks what its method needs.
    #[error("the query lacks an argument")]
    Arguments,
    /// A token that is too long to be sent back.
    #[error("the token is longer than {TOKEN_LEN_MAX} bytes")]
    Token,
}

impl Message {
    /// Reads a datagram.
    ///
    /// # Errors
    /// Says what is wrong with it; nothing is answered then.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        if datagram.is_empty() {
            return Err(Malformed::Empty);
        }
        let document = Document::parse(datagram, &Limits::KRPC).map_err(|_| Malformed::Bencode)?;
        let root = document.root();
        let transaction = bytes(&root, b"t")
            .filter(|id| id.len() <= TRANSACTION_LEN_MAX)
            .ok_or(Malformed::Transaction)?
            .to_vec();
        let body = match bytes(&root, b"y") {
            Some(b"q") => Body::Query(query(&root)?),
            Some(b"r") => Body::Reply(reply(&root)?),
            Some(b"e") => Body::Error,
            _ => return Err(Malformed::Kind),
        };
        Ok(Self { transaction, body })
    }
}

fn query(root: &Value<'_>) -> Result<Query, Malformed> {
    let method = bytes(root, b"q").ok_or(Malformed::Kind)?;
    let args = root.get(b"a").ok_or(Malformed::Arguments)?;
    let id = id(&args, b"id").ok_or(Malformed::Id)?;
    let mut want = Want::default();
    for name in args.get(b"want").and_then(|want| want.as_list()).into_iter().flatten() {
        want.v4 |= name.as_bytes() == Some(b"n4");
        want.v6 |= name.as_bytes() == Some(b"n6");
    }
    let is_read_only = is_set(root, b"ro");
    Ok(Query { id, want, is_read_only, args: arguments(method, &args)? })
}

fn arguments(method: &[u8], args: &Value<'_>) -> Result<Args, Malformed> {
    let target = || id(args, b"target").ok_or(Malformed::Arguments);
    let info_hash = || id(args, b"info_hash").map(|id| InfoHash(id.0)).ok_or(Malformed::Arguments);
    Ok(match method {
        b"ping" => Args::Ping,
        b"find_node" => Args::FindNode { target: target()? },
        b"get_peers" => Args::GetPeers {
            info_hash: info_hash()?,
            scrape: is_set(args, b"scrape"),
            no_seeds: is_set(args, b"noseed"),
        },
        b"announce_peer" => {
            let token = bytes(args, b"token").ok_or(Malformed::Arguments)?;
            if token.len() > TOKEN_LEN_MAX {
                return Err(Malformed::Token);
            }
            let port = args.get(b"port").and_then(|port| port.as_int());
            let port = match is_set(args, b"implied_port") {
                true => None,
                false => {
                    let port = port.and_then(|port| u16::try_from(port).ok());
                    Some(port.ok_or(Malformed::Arguments)?)
                }
            };
            let is_seed = is_set(args, b"seed");
            Args::AnnouncePeer { info_hash: info_hash()?, port, token: token.to_vec(), is_seed }
        }
        b"sample_infohashes" => Args::SampleInfohashes { target: target()? },
        _ => Args::Unknown,
    })
}

fn reply(root: &Value<'_>) -> Result<Reply, Malformed> {
    let body = root.get(b"r").ok_or(Malformed::Kind)?;
    let id = id(&body, b"id").ok_or(Malformed::Id)?;
    let mut nodes = Vec::new();
    if let Some(list) = bytes(&body, b"nodes") {
        nodes.extend(contacts(list, address_v4).take(NODES_PER_REPLY_MAX));
    }
    if let Some(list) = bytes(&body, b"nodes6") {
        nodes.extend(contacts(list, address_v6).take(NODES_PER_REPLY_MAX));
    }
    let values = body.get(b"values").and_then(|values| values.as_list());
    let values = values.into_iter().flatten().filter_map(|value| address(value.as_bytes()?));
    let token = bytes(&body, b"token");
    if token.is_some_and(|token| token.len() > TOKEN_LEN_MAX) {
        return Err(Malformed::Token);
    }
    let filter = |key: &[u8]| bytes(&body, key).and_then(Bloom::from_slice);
    Ok(Reply {
        id,
        nodes,
        values: values.take(VALUES_PER_REPLY_MAX).collect(),
        token: token.map(<[u8]>::to_vec),
        // The text of BEP 42 has it at the top, some programs write it into the body.
        external: bytes(root, b"ip").or_else(|| bytes(&body, b"ip")).and_then(address),
        seeds: filter(b"BFsd"),
        leeches: filter(b"BFpe"),
    })
}

/// Entries of an id, an address of `N` bytes and a port; what is behind the last whole one is
/// skipped.
pub(super) fn contacts<'l, const N: usize>(
    list: &'l [u8],
    address: fn([u8; N]) -> IpAddr,
) -> impl Iterator<Item = Contact> + use<'l, N> {
    list.chunks_exact(N + 22).filter_map(move |entry| {
        let (id, rest) = entry.split_at_checked(20)?;
        Some(Contact { id: NodeId::from_slice(id)?, addr: endpoint(rest, address)? })
    })
}

/// An address and port in 6 or 18 bytes.
pub(super) fn address(bytes: &[u8]) -> Option<SocketAddr> {
    match bytes.len() {
        6 => endpoint(bytes, address_v4),
        18 => endpoint(bytes, address_v6),
        _ => None,
    }
}

fn endpoint<const N: usize>(bytes: &[u8], address: fn([u8; N]) -> IpAddr) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_first_chunk()?;
    Some(SocketAddr::new(address(*ip), u16::from_be_bytes(port.try_into().ok()?)))
}

pub(super) fn address_v4(bytes: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(bytes).into()
}

pub(super) fn address_v6(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).into()
}

fn bytes<'d>(dict: &Value<'d>, key: &[u8]) -> Option<&'d [u8]> {
    dict.get(key)?.as_bytes()
}

fn id(dict: &Value<'_>, key: &[u8]) -> Option<NodeId> {
    NodeId::from_slice(bytes(dict, key)?)
}

/// An integer that is there and not 0.
fn is_set(dict: &Value<'_>, key: &[u8]) -> bool {
    dict.get(key).and_then(|value| value.as_int()).is_some_and(|value| value != 0)
}
