//! KRPC, from values to bytes.
//!
//! Queries and answers enter, datagrams leave. Invariant: no answer is longer than it may be: what
//! the asker can best do without is left out first, so nobody is flooded through us.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use super::bloom::Bloom;
use super::krpc::Args;
use super::{Contact, NodeId};
use crate::bencode::{DictEncoder, Encoder};
use crate::units::InfoHash;

/// Bytes of a datagram that we send: one that no network on the way cuts in two.
pub const DATAGRAM_LEN_MAX: usize = 1400;

/// How many times longer than the query an answer may be.
pub const AMPLIFICATION_MAX: usize = 10;

/// What we are, in the `v` of every datagram: two letters, two digits.
pub const VERSION: &[u8; 4] = b"sg\x00\x01";

/// A query of ours.
#[derive(Clone, Copy, Debug)]
pub struct QueryOut<'a> {
    /// `t`
    pub transaction: &'a [u8],
    /// Our id.
    pub id: &'a NodeId,
    /// Whether we answer no queries (BEP 43).
    pub is_read_only: bool,
    /// Whether nodes of both families are wanted (BEP 32).
    pub wants_both: bool,
    /// What to ask.
    pub args: &'a Args,
    /// Port of an announce; also sent where the port is implied, for nodes that do not know that.
    pub port: u16,
}

impl QueryOut<'_> {
    /// The datagram. A method that we do not know is asked as `ping`.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            dict.dict(b"a", |args| self.encode_args(args));
            dict.bytes(b"q", self.method());
            if self.is_read_only {
                dict.int(b"ro", 1);
            }
            dict.bytes(b"t", self.transaction).bytes(b"v", VERSION).bytes(b"y", b"q");
        });
        encoder.finish()
    }

    fn method(&self) -> &'static [u8] {
        match self.args {
            Args::Ping | Args::Unknown => b"ping",
            Args::FindNode { .. } => b"find_node",
            Args::GetPeers { .. } => b"get_peers",
            Args::AnnouncePeer { .. } => b"announce_peer",
            Args::SampleInfohashes { .. } => b"sample_infohashes",
        }
    }

    fn encode_args(&self, dict: &mut DictEncoder<'_>) {
        dict.bytes(b"id", &self.id.0);
        let is_lookup = match self.args {
            Args::Ping | Args::Unknown => false,
            Args::FindNode { target } | Args::SampleInfohashes { target } => {
                dict.bytes(b"target", &target.0);
                true
            }
            Args::GetPeers { info_hash, scrape, no_seeds } => {
                dict.bytes(b"info_hash", &info_hash.0);
                if *no_seeds {
                    dict.int(b"noseed", 1);
                }
                if *scrape {
                    dict.int(b"scrape", 1);
                }
                true
            }
            Args::AnnouncePeer { info_hash, port, token, is_seed } => {
                dict.int(b"implied_port", i64::from(port.is_none()));
                dict.bytes(b"info_hash", &info_hash.0);
                dict.int(b"port", i64::from(port.unwrap_or(self.port)));
                dict.int(b"seed", i64::from(*is_seed)).bytes(b"token", token);
                false
            }
        };
        if is_lookup && self.wants_both {
            dict.list(b"want", |want| {
                want.bytes(b"n4").bytes(b"n6");
            });
        }
    }
}

/// Torrents that we know of (BEP 51).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Samples {
    /// Seconds until there are others.
    pub interval: i64,
    /// How many we have in all.
    pub total: i64,
    /// Some of them.
    pub hashes: Vec<InfoHash>,
}

/// An answer of ours.
#[derive(Clone, Debug, Default)]
pub struct ReplyOut<'a> {
    /// `t` of the query.
    pub transaction: &'a [u8],
    /// Our id.
    pub id: Option<NodeId>,
    /// Where the query came from; it learns its address by that (BEP 42).
    pub asker: Option<SocketAddr>,
    /// Nodes close to the target, of both families.
    pub nodes: Vec<Contact>,
    /// Whether lists of nodes are part of this answer, be they empty; IPv4, IPv6.
    pub lists: (bool, bool),
    /// Peers.
    pub values: Vec<SocketAddr>,
    /// Right to announce.
    pub token: Option<Vec<u8>>,
    /// Seeds and leeches (BEP 33).
    pub filters: Option<(Bloom, Bloom)>,
    /// Torrents (BEP 51).
    pub samples: Option<Samples>,
}

impl ReplyOut<'_> {
    /// The datagram, at most `len_max` bytes long where that is possible: first peers are left
    /// out, then samples, then nodes of the other family, then the filters, then all nodes.
    /// `None` if even the rest is longer.
    pub fn encode(mut self, len_max: usize) -> Option<Vec<u8>> {
        let mut datagram = self.encode_whole();
        for step in 0..5 {
            let excess = datagram.len().saturating_sub(len_max);
            if excess == 0 {
                break;
            }
            match step {
                0 => {
                    let value_len = if self.asker.is_some_and(|it| it.is_ipv6()) { 21 } else { 8 };
                    let count = self.values.len().saturating_sub(excess.div_ceil(value_len));
                    self.values.truncate(count);
                }
                1 => {
                    if let Some(samples) = &mut self.samples {
                        let count = samples.hashes.len().saturating_sub(excess.div_ceil(20));
                        samples.hashes.truncate(count);
                    }
                }
                2 => {
                    let is_v4 = self.asker.is_none_or(|asker| asker.is_ipv4());
                    self.nodes.retain(|node| node.addr.is_ipv4() == is_v4);
                }
                3 => self.filters = None,
                _ => self.nodes.clear(),
            }
            datagram = self.encode_whole();
        }
        (datagram.len() <= len_max).then_some(datagram)
    }

    fn encode_whole(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.dict(|dict| {
            if let Some(asker) = self.asker {
                dict.bytes(b"ip", &compact(asker));
            }
            dict.dict(b"r", |body| self.encode_body(body));
            dict.bytes(b"t", self.transaction).bytes(b"v", VERSION).bytes(b"y", b"r");
        });
        encoder.finish()
    }

    fn encode_body(&self, dict: &mut DictEncoder<'_>) {
        if let Some((seeds, leeches)) = &self.filters {
            dict.bytes(b"BFpe", leeches.as_bytes()).bytes(b"BFsd", seeds.as_bytes());
        }
        dict.bytes(b"id", &self.id.unwrap_or(NodeId([0; 20])).0);
        if let Some(samples) = &self.samples {
            let hashes: Vec<u8> = samples.hashes.iter().flat_map(|hash| hash.0).collect();
            dict.int(b"interval", samples.interval).int(b"num", samples.total);
            dict.bytes(b"samples", &hashes);
        }
        if self.lists.0 {
            dict.bytes(b"nodes", &compact_nodes(&self.nodes, true));
        }
        if self.lists.1 {
            dict.bytes(b"nodes6", &compact_nodes(&self.nodes, false));
        }
        if let Some(token) = &self.token {
            dict.bytes(b"token", token);
        }
        if !self.values.is_empty() {
            dict.list(b"values", |list| {
                self.values.iter().for_each(|peer| {
                    list.bytes(&compact(*peer));
                });
            });
        }
    }
}

/// An error message (BEP 5): 203 is a bad query, 204 an unknown method.
pub fn encode_error(transaction: &[u8], code: i64, text: &str) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.dict(|dict| {
        dict.list(b"e", |list| {
            list.int(code).bytes(text.as_bytes());
        });
        dict.bytes(b"t", transaction).bytes(b"v", VERSION).bytes(b"y", b"e");
    });
    encoder.finish()
}

/// The entries of one family, one behind the other.
pub(super) fn compact_nodes(nodes: &[Contact], is_v4: bool) -> Vec<u8> {
    let mut list = Vec::with_capacity(nodes.len() * 38);
    for node in nodes.iter().filter(|node| node.addr.is_ipv4() == is_v4) {
        list.extend_from_slice(&node.id.0);
        list.extend_from_slice(&compact(node.addr));
    }
    list
}

/// An address and port in 6 or 18 bytes.
pub(super) fn compact(addr: SocketAddr) -> Vec<u8> {
    let mut bytes = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.extend_from_slice(&addr.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::K;
    use super::super::krpc::{Body, Malformed, Message, Want};
    use super::*;

    const ID: NodeId = NodeId([b'i'; 20]);

    fn round_trip(args: Args) -> Args {
        let query = QueryOut {
            transaction: b"aa",
            id: &ID,
            is_read_only: true,
            wants_both: true,
            args: &args,
            port: 7,
        };
        let message = Message::parse(&query.encode()).unwrap();
        let Body::Query(query) = message.body else { panic!("{message:?}") };
        assert_eq!((message.transaction.as_slice(), query.id), (b"aa".as_slice(), ID));
        assert!(query.is_read_only);
        let is_lookup = !matches!(args, Args::Ping | Args::AnnouncePeer { .. });
        assert_eq!(query.want, Want { v4: is_lookup, v6: is_lookup });
        query.args
    }

    #[test]
    fn queries_come_back_as_they_were() {
        let (target, info_hash) = (NodeId([1; 20]), InfoHash([2; 20]));
        let announce =
            |port| Args::AnnouncePeer { info_hash, port, token: b"t".into(), is_seed: true };
        for args in [
            Args::Ping,
            Args::FindNode { target },
            Args::GetPeers { info_hash, scrape: true, no_seeds: true },
            Args::GetPeers { info_hash, scrape: false, no_seeds: false },
            announce(Some(6881)),
            announce(None),
            Args::SampleInfohashes { target },
        ] {
            assert_eq!(round_trip(args.clone()), args);
        }
    }

    #[test]
    fn the_examples_of_bep_5_are_read() {
        let query = |text: &[u8]| match Message::parse(text).unwrap().body {
            Body::Query(query) => query.args,
            other => panic!("{other:?}"),
        };
        let ping = b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
        assert_eq!(query(ping), Args::Ping);
        let announce =
            b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz123456\
            4:porti6881e5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe";
        let expected = Args::AnnouncePeer {
            info_hash: InfoHash(*b"mnopqrstuvwxyz123456"),
            port: None,
            token: b"aoeusnth".into(),
            is_seed: false,
        };
        assert_eq!(query(announce), expected);
        let reply = b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re";
        let Body::Reply(reply) = Message::parse(reply).unwrap().body else { panic!() };
        assert_eq!(
            reply.values,
            ["97.120.106.101:11893".parse().unwrap(), "105.100.104.116:28269".parse().unwrap()]
        );
        let error = b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee";
        assert_eq!(Message::parse(error).unwrap().body, Body::Error);
    }

    #[test]
    fn damage_is_told_by_kind() {
        let long_t = [
            b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t33:".as_slice(),
            &[b'x'; 33],
            b"1:y1:qe",
        ]
        .concat();
        let long_token = [
            b"d1:rd2:id20:abcdefghij01234567895:token65:".as_slice(),
            &[b'x'; 65],
            b"e1:t2:aa1:y1:re",
        ]
        .concat();
        let table: [(&[u8], Malformed); 14] = [
            (b"", Malformed::Empty),
            (b"x", Malformed::Bencode),
            (&[b'l'; 1000], Malformed::Bencode),
            (&[b'd'; 3000], Malformed::Bencode),
            (b"de", Malformed::Transaction),
            (b"i1e", Malformed::Transaction),
            (&long_t, Malformed::Transaction),
            (b"d1:t1:ae", Malformed::Kind),
            (b"d1:t1:a1:y1:xe", Malformed::Kind),
            (b"d1:t1:a1:y1:re", Malformed::Kind),
            (b"d1:rd2:id3:abce1:t1:a1:y1:re", Malformed::Id),
            (b"d1:q4:ping1:t1:a1:y1:qe", Malformed::Arguments),
            (b"d1:ad2:id20:abcdefghij0123456789e1:q9:find_node1:t1:a1:y1:qe", Malformed::Arguments),
            (&long_token, Malformed::Token),
        ];
        for (datagram, expected) in table {
            assert_eq!(Message::parse(datagram), Err(expected), "{}", datagram.escape_ascii());
        }
        let unknown = b"d1:ad2:id20:abcdefghij0123456789e1:q4:vote1:t1:a1:y1:qe";
        let Body::Query(query) = Message::parse(unknown).unwrap().body else { panic!() };
        assert_eq!(query.args, Args::Unknown);
    }

    fn full_reply() -> ReplyOut<'static> {
        let node = |at: u8| Contact { id: NodeId([at; 20]), addr: ([9, 9, 9, at], 2000).into() };
        let node6 = |at: u8| Contact {
            id: NodeId([at; 20]),
            addr: SocketAddr::new("2a00::1".parse().unwrap(), 2000 + u16::from(at)),
        };
        ReplyOut {
            transaction: b"aa",
            id: Some(ID),
            asker: Some(([1, 2, 3, 4], 5000).into()),
            nodes: (0..8).map(node).chain((0..8).map(node6)).collect(),
            lists: (true, true),
            values: (0..40).map(|at| ([8, 8, 8, at], 3000).into()).collect(),
            token: Some(b"token".into()),
            filters: Some((Bloom::default(), Bloom::default())),
            samples: Some(Samples {
                interval: 300,
                total: 99,
                hashes: vec![InfoHash([3; 20]); 20],
            }),
        }
    }

    #[test]
    fn replies_come_back_as_they_were() {
        let sent = full_reply();
        let Body::Reply(reply) = Message::parse(&sent.encode_whole()[..]).unwrap().body else {
            panic!()
        };
        assert_eq!((reply.id, reply.external), (ID, sent.asker));
        assert_eq!((reply.nodes, reply.values), (sent.nodes, sent.values));
        assert_eq!(reply.token, sent.token);
        assert_eq!((reply.seeds, reply.leeches), (Some(Bloom::default()), Some(Bloom::default())));
    }

    #[test]
    fn replies_are_cut_to_what_is_allowed() {
        for len_max in 0..2600 {
            let datagram = full_reply().encode(len_max);
            let Some(datagram) = datagram else {
                assert!(len_max < 160, "{len_max}");
                continue;
            };
            assert!(datagram.len() <= len_max);
            let Body::Reply(reply) = Message::parse(&datagram).unwrap().body else { panic!() };
            assert!(reply.token.is_some());
        }
        let cut = full_reply().encode(1180).unwrap();
        let Body::Reply(reply) = Message::parse(&cut).unwrap().body else { panic!() };
        assert!(reply.nodes.len() >= K && reply.seeds.is_some() && reply.values.is_empty());
    }
}
