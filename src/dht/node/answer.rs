//! Queries of others, and what they get.
//!
//! A query and its sender enter, at most one datagram to that sender leaves. Invariant: an answer
//! is at most [`AMPLIFICATION_MAX`] times as long as its query, is sent once, and counts towards
//! the limits of its host, its network and all answers together; nobody is stored as a peer
//! without a token of ours.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use super::{CANDIDATES_HEARD_MAX, Node, OUT_MAX};
use crate::dht::Contact;
use crate::dht::NodeId;
use crate::dht::address::{Origin, Subnet, is_local};
use crate::dht::counters::{Answered, Dropped, Method};
use crate::dht::encode::{AMPLIFICATION_MAX, DATAGRAM_LEN_MAX, ReplyOut, encode_error};
use crate::dht::krpc::{Args, Query, Want};
use crate::dht::table::K;
use crate::units::InfoHash;

/// A query, where it came from, and its length in bytes.
pub(super) struct Asked {
    pub(super) from: SocketAddr,
    pub(super) query: Query,
    pub(super) len: usize,
}

/// A query that cannot be answered: code and text of BEP 5.
struct Refused(i64, &'static str);

impl Node {
    pub(super) fn handle_query(
        &mut self,
        now: Instant,
        transaction: &[u8],
        asked: Asked,
        sibling: Option<&Self>,
    ) {
        let Asked { from, query, len } = asked;
        if query.id == self.id() {
            self.counters.drop(Dropped::Ourselves);
            return;
        }
        if self.is_read_only {
            self.counters.drop(Dropped::ReadOnly);
            return;
        }
        let method = Method::of(&query.args);
        if !self.admit(now, from) {
            self.counters.answer(method, Answered::Limited);
            return;
        }
        let len_max = DATAGRAM_LEN_MAX.min(len * AMPLIFICATION_MAX);
        let (datagram, result) = match self.reply(now, from, &query, sibling) {
            Ok(mut reply) => {
                reply.transaction = transaction;
                (reply.encode(len_max), Answered::Reply)
            }
            Err(Refused(code, text)) => {
                (Some(encode_error(transaction, code, text)), Answered::Error)
            }
        };
        let Some(datagram) = datagram.filter(|it| it.len() as u64 <= self.replies.available(now))
        else {
            self.counters.answer(method, Answered::Limited);
            return;
        };
        self.replies.take(now, datagram.len() as u64);
        let datagram_len = datagram.len() as u64;
        if self.transmit(from, datagram, OUT_MAX / 2) {
            self.counters.answer(method, result);
            self.counters.reply_len += datagram_len;
        }
        self.hear_of(now, Contact { id: query.id, addr: from }, query.is_read_only);
    }

    /// Whether the sender's host and network have not asked too much.
    fn admit(&mut self, now: Instant, from: SocketAddr) -> bool {
        // A machine has a whole /64 to itself: were its addresses hosts of their own, it could fill
        // their table alone.
        let origin = match from.ip() {
            IpAddr::V6(ip) if !is_local(from.ip()) => {
                let net = Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64);
                Origin::Public(net.into())
            }
            _ => Origin::of(from),
        };
        self.hosts.admit(now, origin)
            && Subnet::of(from.ip()).is_none_or(|subnet| self.subnets.admit(now, subnet))
    }

    /// Notes who asked; a node that could have a place in the table gets a ping.
    fn hear_of(&mut self, now: Instant, contact: Contact, is_read_only: bool) {
        let is_new = !is_read_only && !self.table.handle_query(now, contact);
        if is_new && self.candidates.len() < CANDIDATES_HEARD_MAX {
            self.offer(now, contact);
        }
    }

    fn reply(
        &mut self,
        now: Instant,
        from: SocketAddr,
        query: &Query,
        sibling: Option<&Self>,
    ) -> Result<ReplyOut<'static>, Refused> {
        let mut reply = ReplyOut { id: Some(self.id()), asker: Some(from), ..ReplyOut::default() };
        match &query.args {
            Args::Ping => {}
            Args::FindNode { target } => {
                self.add_nodes(now, &mut reply, *target, query.want, sibling)
            }
            Args::GetPeers { info_hash, scrape, no_seeds } => {
                let hash = *info_hash;
                self.add_nodes(now, &mut reply, hash.into(), query.want, sibling);
                let is_v4 = self.is_ipv4();
                reply.values = self.store.peers(now, hash, is_v4, *no_seeds, &mut self.rng);
                reply.token = Some(self.secrets.token(now, from.ip(), hash).to_vec());
                if *scrape {
                    reply.filters = self.store.filters(now, hash);
                }
            }
            Args::AnnouncePeer { info_hash, port, token, is_seed } => {
                let peer = SocketAddr::new(from.ip(), port.unwrap_or(from.port()));
                self.store_peer(now, *info_hash, peer, token, *is_seed)?;
            }
            Args::SampleInfohashes { target } => {
                self.add_nodes(now, &mut reply, *target, query.want, sibling);
                reply.samples = Some(self.store.samples(now, &mut self.rng));
            }
            Args::Unknown => return Err(Refused(204, "Method Unknown")),
        }
        Ok(reply)
    }

    fn store_peer(
        &mut self,
        now: Instant,
        info_hash: InfoHash,
        peer: SocketAddr,
        token: &[u8],
        is_seed: bool,
    ) -> Result<(), Refused> {
        if !self.secrets.is_valid(now, peer.ip(), info_hash, token) {
            return Err(Refused(203, "Bad token"));
        }
        if self.gate.admit_peer(peer).is_err() {
            return Err(Refused(203, "Bad port"));
        }
        self.store.announce(now, info_hash, peer, is_seed);
        Ok(())
    }

    /// The nodes closest to `target`, of the families that the asker wants (BEP 32).
    fn add_nodes(
        &self,
        now: Instant,
        reply: &mut ReplyOut<'_>,
        target: NodeId,
        want: Want,
        sibling: Option<&Self>,
    ) {
        let is_v4 = self.is_ipv4();
        reply.lists = match want {
            Want { v4: false, v6: false } => (is_v4, !is_v4),
            Want { v4, v6 } => (v4, v6),
        };
        for (is_wanted, is_v4) in [(reply.lists.0, true), (reply.lists.1, false)] {
            let of_family = [Some(self), sibling].into_iter().flatten();
            let node = of_family.into_iter().find(|node| node.is_ipv4() == is_v4);
            if let Some(node) = node.filter(|_| is_wanted) {
                reply.nodes.extend(node.table.closest(now, &target, K));
            }
        }
    }
}
