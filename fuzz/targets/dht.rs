//! The DHT: datagrams as values, what is saved, and live nodes among datagrams of others.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use seedring::dht::counters::{Answered, Asked, Dropped, Method};
use seedring::dht::encode::{
    AMPLIFICATION_MAX, DATAGRAM_LEN_MAX, QueryOut, ReplyOut, Samples, encode_error,
};
use seedring::dht::krpc::{
    Args, Body, Message, NODES_PER_REPLY_MAX, TOKEN_LEN_MAX, TRANSACTION_LEN_MAX,
    VALUES_PER_REPLY_MAX,
};
use seedring::dht::node::{LOOKUPS_MAX, OUT_MAX, REPLY_RATE};
use seedring::dht::{Announce, Config, Contact, Counters, Dht, Event, K, NodeId, PORT_MIN, Saved};
use seedring::rate::BURST_LEN_MIN;
use seedring::tracker::AddressPolicy;
use seedring::units::InfoHash;

use super::{Input, Script, assert_sentence, start, texts};

const EVENTS_MAX: usize = 200;
const TIMEOUTS_MAX: u32 = 50_000;
/// Queries of ours that answers may still come to.
const SENT_MAX: usize = 32;
/// Nodes that a table has room for.
const TABLE_MAX: usize = 32 * K;
const LOCAL: [&str; 2] = ["9.9.9.9:6881", "[2a00::9]:6881"];

/// A datagram, and a query and an answer made of what it said.
pub(super) fn krpc(data: &[u8]) {
    let message = match Message::parse(data) {
        Ok(message) => message,
        Err(error) => return assert_sentence(&error.to_string()),
    };
    assert!(message.transaction.len() <= TRANSACTION_LEN_MAX);
    match message.body {
        Body::Query(query) => {
            let out = QueryOut {
                transaction: &message.transaction,
                id: &query.id,
                is_read_only: query.is_read_only,
                wants_both: query.want.v4 && query.want.v6,
                args: &query.args,
                port: 6881,
            };
            let again = Message::parse(&out.encode()).unwrap();
            assert_eq!(again.transaction, message.transaction);
            let Body::Query(again) = again.body else { panic!("a query stays one") };
            assert_eq!((again.id, again.is_read_only), (query.id, query.is_read_only));
            match query.args {
                Args::Unknown => assert_eq!(again.args, Args::Ping),
                args => assert_eq!(again.args, args),
            }
        }
        Body::Reply(reply) => {
            assert!(reply.nodes.len() <= 2 * NODES_PER_REPLY_MAX);
            assert!(reply.values.len() <= VALUES_PER_REPLY_MAX);
            assert!(reply.token.as_ref().is_none_or(|token| token.len() <= TOKEN_LEN_MAX));
            for len_max in [0, 60, 200, data.len(), DATAGRAM_LEN_MAX] {
                let out = ReplyOut {
                    transaction: &message.transaction,
                    id: Some(reply.id),
                    asker: reply.external,
                    nodes: reply.nodes.clone(),
                    lists: (true, true),
                    values: reply.values.clone(),
                    token: reply.token.clone(),
                    filters: reply.seeds.clone().zip(reply.leeches.clone()),
                    samples: Some(Samples { interval: 1, total: 2, hashes: Vec::new() }),
                };
                let Some(datagram) = out.encode(len_max) else { continue };
                assert!(datagram.len() <= len_max);
                let Body::Reply(again) = Message::parse(&datagram).unwrap().body else {
                    panic!("an answer stays one")
                };
                assert_eq!((again.id, &again.token), (reply.id, &reply.token));
                assert!(again.nodes.iter().all(|node| reply.nodes.contains(node)));
                assert!(reply.values.starts_with(&again.values));
            }
        }
        Body::Error => {
            let error = encode_error(&message.transaction, 203, "no");
            assert_eq!(Message::parse(&error).unwrap(), Message { body: Body::Error, ..message });
        }
    }
}

fn contact(seed: u8, addr: &str) -> Contact {
    Contact { id: NodeId([seed; 20]), addr: addr.parse().unwrap() }
}

fn queries() -> Vec<Vec<u8>> {
    let (id, info_hash) = (NodeId([1; 20]), InfoHash([2; 20]));
    let token = b"token".to_vec();
    [
        Args::Ping,
        Args::FindNode { target: NodeId([3; 20]) },
        Args::GetPeers { info_hash, scrape: true, no_seeds: true },
        Args::AnnouncePeer { info_hash, port: Some(6881), token: token.clone(), is_seed: true },
        Args::AnnouncePeer { info_hash, port: None, token, is_seed: false },
        Args::SampleInfohashes { target: id },
    ]
    .map(|args| {
        let (transaction, is_read_only, wants_both, port) = (b"aa", false, true, 6881);
        QueryOut { transaction, id: &id, is_read_only, wants_both, args: &args, port }.encode()
    })
    .into()
}

pub(super) fn krpc_seeds() -> Vec<Vec<u8>> {
    let reply = ReplyOut {
        transaction: b"aa",
        id: Some(NodeId([1; 20])),
        asker: Some("1.2.3.4:5".parse().unwrap()),
        nodes: vec![contact(3, "8.8.8.8:6881"), contact(4, "[2a00::1]:6881")],
        lists: (true, true),
        values: vec!["8.8.4.4:1024".parse().unwrap(), "[2a00::2]:1025".parse().unwrap()],
        token: Some(b"token".to_vec()),
        filters: None,
        samples: None,
    };
    let mut seeds = queries();
    seeds.push(reply.encode(DATAGRAM_LEN_MAX).unwrap());
    seeds.push(encode_error(b"x", 201, "words"));
    seeds.extend(texts(["d1:t2:aa1:y1:qe", "d1:rd2:id3:abce1:t1:x1:y1:re", "d1:y1:xe", "le", ""]));
    seeds
}

/// What was saved, read as far as it can be, and written again.
pub(super) fn saved(data: &[u8]) {
    let saved = Saved::parse(data);
    assert!(saved.nodes.len() <= 200);
    let again = Saved::parse(&saved.to_bytes());
    assert_eq!((again.id, again.external_ip), (saved.id, saved.external_ip));
    assert_eq!(again.local, saved.local);
    assert_eq!(again.nodes, saved.nodes);
    let mut config = config(0, 1);
    config.saved = saved;
    let node = seedring::dht::Node::new(start(), config);
    assert!(node.gauges(start()).pending_count == 0);
}

pub(super) fn saved_seeds() -> Vec<Vec<u8>> {
    let saved = Saved {
        local: LOCAL[0].parse().ok(),
        id: Some(NodeId([7; 20])),
        external_ip: Some(IpAddr::from([9, 9, 9, 9])),
        nodes: vec![contact(1, "8.8.8.8:6881"), contact(2, "[2a00::1]:6881")],
    };
    let v6 = Saved { external_ip: "2a00::5".parse().ok(), ..Saved::default() };
    let mut seeds = texts(["", "de", "d2:id3:abc5:nodesi1ee"]);
    seeds.extend([saved.to_bytes(), v6.to_bytes()]);
    seeds
}

fn config(index: usize, seed: u64) -> Config {
    let local = LOCAL[index].parse().unwrap();
    Config::new(local, AddressPolicy::default(), [7; 32], seed)
}

struct Session {
    now: Instant,
    start: Instant,
    dht: Dht,
    policy: AddressPolicy,
    is_read_only: bool,
    /// Queries of ours: the node, whom it asked, and how.
    sent: VecDeque<(usize, SocketAddr, Message)>,
    /// Answers that were given since it was last looked, and their length.
    answers: Vec<(SocketAddr, usize)>,
    is_watched: bool,
}

/// Two nodes of ours, and whatever comes to them.
pub(super) fn node(data: &[u8]) {
    let mut input = Input(data);
    let bits = input.byte();
    let now = start();
    let is_read_only = bits & 1 == 1;
    let one = |index| Config { is_read_only, ..config(index, bits.into()) };
    let configs = if bits & 2 == 2 { vec![one(0)] } else { vec![one(0), one(1)] };
    let mut session = Session {
        now,
        start: now,
        dht: Dht::new(now, configs),
        policy: AddressPolicy::default(),
        is_read_only,
        sent: VecDeque::new(),
        answers: Vec::new(),
        is_watched: false,
    };
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        session.step(&mut input);
        session.check();
    }
    session.pass(Duration::from_secs(60));
    session.check();
    session.end();
}

fn datagram_count(counters: &Counters) -> u64 {
    let answered = Answered::ALL.map(|it| Method::ALL.map(|method| counters.answered(method, it)));
    let asked = Asked::ALL.map(|it| Method::ALL.map(|method| counters.asked(method, it)));
    let dropped = Dropped::ALL.map(|it| counters.dropped(it));
    answered.iter().chain(&asked).flatten().chain(&dropped).sum()
}

impl Session {
    fn from(&self, input: &mut Input<'_>) -> (usize, SocketAddr) {
        let index = input.below(2).min(self.dht.nodes().len() - 1);
        let (kind, host) = (input.byte(), input.byte());
        let is_odd = kind & 0xf0 == 0xf0;
        let port = if is_odd { u16::from(host) } else { 6000 + u16::from(kind & 3) };
        let addr = match (index, is_odd && kind & 4 == 4) {
            (_, true) => SocketAddr::from((input.array::<4>(), port)),
            (0, _) => SocketAddr::from(([20, kind & 8, 0, host], port)),
            _ => {
                SocketAddr::from(([0x2a00, u16::from(kind & 8), 0, 0, 0, 0, 0, host.into()], port))
            }
        };
        (index, addr)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let hash = |input: &mut Input<'_>| InfoHash([input.byte() % 8; 20]);
        match input.below(12) {
            0 | 1 => {
                let (index, from) = self.from(input);
                self.receive(index, from, input.chunk());
            }
            2 => {
                let (index, from) = self.from(input);
                let query = self.query(from, input);
                let repeats = if input.flag() { 80 } else { 1 };
                (0..repeats).for_each(|_| self.receive(index, from, &query));
            }
            3..=5 => self.answer(input),
            6 => self.pass(Duration::from_millis(u64::from(input.u16()))),
            7 => self.pass(Duration::from_secs(u64::from(input.byte()))),
            8 => {
                let announce = Announce { port: 6881, is_seed: input.flag() };
                self.dht.add_torrent(self.now, hash(input), announce);
            }
            9 => match input.below(3) {
                0 => self.dht.remove_torrent(hash(input)),
                1 => drop(self.dht.find_peers(hash(input))),
                _ => drop(self.dht.scrape(hash(input))),
            },
            10 => {
                let (_, addr) = self.from(input);
                self.dht.insert_node(addr);
            }
            _ => {
                let addrs = [self.from(input).1, self.from(input).1];
                self.dht.set_bootstrap(self.now, &addrs);
            }
        }
        self.drain();
    }

    /// A query as others ask; the token of an announce is one that we gave out, as often as not.
    fn query(&mut self, from: SocketAddr, input: &mut Input<'_>) -> Vec<u8> {
        let (kind, target) = (input.byte(), NodeId([input.byte(); 20]));
        let info_hash = InfoHash([target.0[0] % 8; 20]);
        let args = match kind % 6 {
            0 => Args::Ping,
            1 => Args::FindNode { target },
            2 | 3 => Args::GetPeers { info_hash, scrape: kind & 16 != 0, no_seeds: kind & 32 != 0 },
            4 => {
                let get = Args::GetPeers { info_hash, scrape: false, no_seeds: false };
                let token = self.token(from, &get).unwrap_or_else(|| input.short().to_vec());
                let port = (kind & 16 != 0).then(|| input.u16());
                Args::AnnouncePeer { info_hash, port, token, is_seed: kind & 32 != 0 }
            }
            _ => Args::SampleInfohashes { target },
        };
        asking(from, &args, kind & 64 != 0)
    }

    /// Asks for peers to get a token.
    fn token(&mut self, from: SocketAddr, args: &Args) -> Option<Vec<u8>> {
        let index = self.dht.nodes().iter().position(|it| it.is_ipv4() == from.is_ipv4())?;
        self.dht.handle_datagram(self.now, index, from, &asking(from, args, false));
        let mut token = None;
        while let Some((_, to, datagram)) = self.dht.poll_transmit() {
            if let Ok(Message { body: Body::Reply(reply), .. }) = Message::parse(&datagram)
                && to == from
            {
                token = reply.token;
            }
        }
        token
    }

    /// Answers a query of ours, more or less as it should be.
    fn answer(&mut self, input: &mut Input<'_>) {
        let how = input.byte();
        let index = usize::from(how >> 4).min(self.sent.len().saturating_sub(1));
        let contact = |input: &mut Input<'_>| {
            let (id, ip, port) = (NodeId([input.byte(); 20]), input.array::<4>(), input.u16());
            Contact { id, addr: SocketAddr::from((ip, port)) }
        };
        let nodes: Vec<Contact> = (0..input.below(10)).map(|_| contact(input)).collect();
        let values = (0..input.below(6)).map(|_| contact(input).addr).collect();
        let token = input.short().to_vec();
        let Some((node, to, query)) = self.sent.remove(index) else { return };
        let reply = ReplyOut {
            transaction: &query.transaction,
            id: Some(if how & 1 == 0 { id_of(to) } else { NodeId([how; 20]) }),
            asker: (how & 2 == 0).then(|| SocketAddr::from(([9, 9, how & 4, 9], 6881))),
            nodes,
            lists: (true, how & 4 == 0),
            values,
            token: (how & 8 == 0).then_some(token),
            ..ReplyOut::default()
        };
        let datagram = match how % 16 {
            15 => Some(encode_error(&query.transaction, 202, "busy")),
            _ => reply.encode(2048),
        };
        datagram.into_iter().for_each(|datagram| self.receive(node, to, &datagram));
    }

    fn receive(&mut self, index: usize, from: SocketAddr, datagram: &[u8]) {
        self.drain();
        let before = datagram_count(self.dht.nodes()[index].counters());
        (self.is_watched, self.answers) = (true, Vec::new());
        self.dht.handle_datagram(self.now, index, from, datagram);
        let after = datagram_count(self.dht.nodes()[index].counters());
        assert!(after > before, "a datagram that nobody counts");
        self.drain();
        self.is_watched = false;
        assert!(self.answers.len() <= 1 && (self.answers.is_empty() || !self.is_read_only));
        for &(to, len) in &self.answers {
            assert_eq!(to, from, "an answer to somebody else");
            assert!(len <= AMPLIFICATION_MAX * datagram.len(), "{len} bytes");
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut count = 0;
        while let Some(at) = self.dht.poll_timeout(self.now).filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.dht.handle_timeout(self.now);
            self.drain();
            count += 1;
            assert!(count < TIMEOUTS_MAX, "timers do not come to an end");
        }
        self.now = end;
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some((index, to, datagram)) = self.dht.poll_transmit() {
            count += 1;
            assert!(count <= 2 * OUT_MAX && datagram.len() <= DATAGRAM_LEN_MAX);
            assert!(to.port() >= PORT_MIN && self.policy.permits(to.ip()).is_ok(), "{to}");
            assert_eq!(self.dht.nodes()[index].is_ipv4(), to.is_ipv4());
            let local: SocketAddr = LOCAL[index].parse().unwrap();
            assert_ne!(to, local, "ourselves");
            let message = Message::parse(&datagram).unwrap();
            if matches!(message.body, Body::Query(_)) {
                self.sent.push_back((index, to, message));
                if self.sent.len() > SENT_MAX {
                    self.sent.pop_front();
                }
            } else {
                assert!(self.is_watched, "an answer that nobody asked for");
                self.answers.push((to, datagram.len()));
            }
        }
        while let Some((_, event)) = self.dht.poll_event() {
            if let Event::Peers { peers, .. } = event {
                assert!(!peers.is_empty());
                let permitted = |peer: &SocketAddr| self.policy.permits(peer.ip()).is_ok();
                assert!(peers.iter().all(|peer| peer.port() >= PORT_MIN && permitted(peer)));
            }
        }
    }

    fn check(&self) {
        let seconds = (self.now - self.start).as_secs() + 1;
        for node in self.dht.nodes() {
            let gauges = node.gauges(self.now);
            assert!(gauges.good_count + gauges.questionable_count + gauges.bad_count <= TABLE_MAX);
            assert!(gauges.pending_count <= 2048 && gauges.lookup_count <= LOOKUPS_MAX);
            assert!(gauges.stored_hash_count <= 2000 && gauges.torrent_count <= 8);
            assert!(gauges.stored_peer_count <= 100 * gauges.stored_hash_count);
            let reply_len_max = REPLY_RATE * seconds + BURST_LEN_MIN;
            assert!(node.counters().reply_len <= reply_len_max, "{:?}", node.counters());
        }
    }

    /// What is saved at the end is what will be read.
    fn end(&self) {
        for node in self.dht.nodes() {
            let saved = node.export(self.now);
            assert!(saved.nodes.len() <= 200);
            assert_eq!(Saved::parse(&saved.to_bytes()), saved);
        }
    }
}

/// One id for each address.
fn id_of(addr: SocketAddr) -> NodeId {
    let mut rng = fastrand::Rng::with_seed(u64::from(addr.port()));
    NodeId::for_ip(addr.ip(), &mut rng)
}

fn asking(from: SocketAddr, args: &Args, is_read_only: bool) -> Vec<u8> {
    let (id, transaction) = (id_of(from), b"tx");
    QueryOut { transaction, id: &id, is_read_only, wants_both: true, args, port: 6881 }.encode()
}

pub(super) fn node_seeds() -> Vec<Vec<u8>> {
    let bootstrap = Script::default().bytes(&[0, 11, 0, 0, 1, 0, 0, 2]);
    let torrent = bootstrap.bytes(&[8, 1, 1, 6, 0, 200]);
    let answer = |script: Script, how: u8| {
        let script =
            script.bytes(&[3, how, 2, 5, 20, 0, 0, 9, 0x1a, 0xe1, 6, 20, 0, 1, 9, 0x1a, 0xe1]);
        script.bytes(&[1, 7, 8, 8, 8, 8, 0x1a, 0xe1]).short(b"token")
    };
    let mut lookup = torrent;
    for how in [0, 0, 4, 0x10, 1, 15, 8, 0] {
        lookup = answer(lookup, how).bytes(&[6, 4, 0]);
    }
    let raw = queries().into_iter().fold(Script::default().bytes(&[0]), |script, query| {
        script.bytes(&[0, 0, 0, 5]).chunk(&query)
    });
    let asked = (0..6).fold(Script::default().bytes(&[0]), |script, kind| {
        script.bytes(&[2, 0, 0, 6, kind + 48, 1, 0x1a, 0xe1, 0])
    });
    let flood = Script::default().bytes(&[0, 2, 0, 0, 6, 2, 1, 1, 7, 30, 2, 1, 0, 6, 1, 1, 1]);
    let odd = Script::default().bytes(&[2, 0, 0, 0xf4, 53, 127, 0, 0, 1]).chunk(b"x");
    let odd = odd.bytes(&[9, 1, 3, 9, 2, 3, 10, 0, 0, 9, 7, 200, 7, 200, 9, 0, 3]);
    // Many announce, and then the answer to one short query could be a long one.
    let crowd = (1..60).fold(Script::default().bytes(&[0]), |script, host| {
        let script = script.bytes(&[2, 0, 0, host, 4, 1, 0]);
        // No more than all answers together may take.
        if host % 8 == 0 { script.bytes(&[7, 1]) } else { script }
    });
    let info_hash = [&[1; 20][..], b"6:scrapei1ee1:q9:get_peers1:t1:a1:y1:qe"].concat();
    let short = [&b"d1:ad2:id20:"[..], &[5; 20], b"9:info_hash20:", &info_hash].concat();
    let crowd = crowd.bytes(&[2, 0, 0, 98, 2, 1, 0, 7, 1, 0, 0, 0, 99]).chunk(&short).0;
    let read_only = Script::default().bytes(&[1, 2, 0, 0, 6, 2, 1, 0]);
    vec![lookup.0, raw.0, crowd, asked.bytes(&[7, 250]).0, flood.0, odd.0, read_only.0]
}
