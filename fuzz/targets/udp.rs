//! UDP trackers: the client among answers that are right, wrong, late, and of nobody.
//!
//! What is judged: each question is answered once, at its deadline at the latest; what is sent has
//! its length; what is believed keeps its limits; and timers come to an end.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use seedring::tracker::reply::PEERS_MAX;
use seedring::tracker::udp::{
    Announcement, Answer, Ask, Client, REQUESTS_MAX, RequestId, SCRAPE_MAX,
};
use seedring::tracker::{Event, Totals};
use seedring::units::{InfoHash, PeerId};

use super::{Input, Script, assert_sentence, start};

const EVENTS_MAX: usize = 300;
const TIMEOUTS_MAX: u32 = 20_000;
/// Datagrams of ours that answers may still come to.
const SENT_MAX: usize = 32;
/// Bytes of an announce before its options.
const ANNOUNCE_LEN: usize = 98;
const EVENTS: [Event; 4] = [Event::Started, Event::Periodic, Event::Completed, Event::Stopped];

struct Session {
    now: Instant,
    client: Client,
    /// Questions without an answer: how many torrents they are about, and until when.
    open: BTreeMap<RequestId, (usize, Instant)>,
    sent: VecDeque<(SocketAddr, Vec<u8>)>,
}

pub(super) fn client(data: &[u8]) {
    let mut input = Input(data);
    let now = start();
    let client = Client::new(PeerId([b'p'; 20]), 6881, 5, u64::from(input.byte()));
    let mut session = Session { now, client, open: BTreeMap::new(), sent: VecDeque::new() };
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        session.step(&mut input);
    }
    session.pass(Duration::from_secs(600));
    assert!(session.open.is_empty(), "a question stays open behind its deadline");
    assert_eq!(session.client.poll_timeout(), None);
    assert_eq!(session.client.poll_transmit(), None);
}

fn tracker(index: usize) -> SocketAddr {
    match index % 4 {
        0 => SocketAddr::from(([1, 2, 3, 4], 80)),
        1 => SocketAddr::from(([1, 2, 3, 4], 81)),
        2 => SocketAddr::from(([0x2a00, 0, 0, 0, 0, 0, 0, 1], 80)),
        _ => SocketAddr::from(([9, 9, 9, 9], 6969)),
    }
}

impl Session {
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.below(8);
        let to = tracker(input.below(4));
        match kind {
            0 => {
                let (event, wait) = (EVENTS[input.below(4)], input.byte());
                let url_data = String::from_utf8_lossy(input.short()).into_owned();
                let info_hash = InfoHash([event_number(event); 20]);
                let totals = Totals { uploaded: u64::MAX, downloaded: 1, left: 0 };
                let what = Announcement { info_hash, totals, event, numwant: 80, url_data };
                self.ask(to, Ask::Announce(what), 1, wait);
            }
            1 => {
                let (count, wait) = (input.below(100), input.byte());
                self.ask(to, Ask::Scrape(vec![InfoHash([1; 20]); count]), count, wait);
            }
            2 => {
                self.receive(to, input.chunk());
            }
            3 | 4 => self.answer(to, input),
            5 => self.pass(Duration::from_millis(u64::from(input.u16()) * 4)),
            6 => self.client.handle_unreachable(to, "it is not there"),
            _ => {
                let id = self.open.keys().nth(input.below(8)).copied();
                if let Some(id) = id {
                    self.client.cancel(id);
                    self.open.remove(&id);
                }
            }
        }
        self.drain();
    }

    fn ask(&mut self, to: SocketAddr, ask: Ask, count: usize, wait: u8) {
        let deadline = self.now + Duration::from_secs(u64::from(wait));
        match self.client.ask(self.now, to, ask, deadline) {
            Ok(id) => assert_eq!(self.open.insert(id, (count, deadline)), None),
            Err(failure) => assert_sentence(&failure.to_string()),
        }
        assert!(self.open.len() <= REQUESTS_MAX);
    }

    /// True if it was an answer that was waited for.
    fn receive(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        let ignored = |client: &Client| {
            let it = client.ignored();
            it.malformed + it.transaction + it.source + it.action
        };
        let before = ignored(&self.client);
        let is_taken = self.client.handle_datagram(self.now, from, datagram);
        assert_eq!(ignored(&self.client) - before, u64::from(!is_taken));
        is_taken
    }

    /// Answers one of the datagrams that were sent, more or less as it should be.
    fn answer(&mut self, other: SocketAddr, input: &mut Input<'_>) {
        let (how, action) = (input.byte(), input.byte());
        let rest = input.chunk();
        let index = usize::from(how >> 4).min(self.sent.len().saturating_sub(1));
        let Some((to, datagram)) = self.sent.remove(index) else { return };
        let from = if how & 1 == 1 { other } else { to };
        let asked = datagram.get(8..16).expect("a question has a head");
        let mut answer = asked.to_vec();
        if action < 0x80 {
            answer[3] = action % 5;
        }
        answer.extend(rest);
        let is_taken = self.receive(from, &answer);
        assert!(from == to || !is_taken, "an answer of somebody else");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut count = 0;
        while let Some(at) = self.client.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.client.handle_timeout(self.now);
            self.drain();
            count += 1;
            assert!(count < TIMEOUTS_MAX, "timers do not come to an end");
        }
        self.now = end;
        assert!(self.open.values().all(|(_, deadline)| *deadline > end));
    }

    fn drain(&mut self) {
        while let Some((to, datagram)) = self.client.poll_transmit() {
            let len = datagram.len();
            match datagram[8..12] {
                [0, 0, 0, 0] => assert_eq!(len, 16),
                [0, 0, 0, 1] => assert!((ANNOUNCE_LEN..ANNOUNCE_LEN + 800).contains(&len)),
                _ => assert!(len <= 16 + 20 * SCRAPE_MAX),
            }
            self.sent.push_back((to, datagram));
            if self.sent.len() > SENT_MAX {
                self.sent.pop_front();
            }
        }
        while let Some((id, outcome)) = self.client.poll_outcome() {
            let (count, _) = self.open.remove(&id).expect("each question is answered once");
            match outcome {
                Ok(Answer::Announced(reply)) => {
                    assert!(reply.peers.len() <= PEERS_MAX);
                    assert!(reply.peers.iter().all(|peer| peer.port() != 0));
                    assert!(reply.interval.is_none_or(|interval| !interval.is_zero()));
                }
                Ok(Answer::Scraped(rows)) => assert!(rows.len() <= count.min(SCRAPE_MAX)),
                Err(failure) => {
                    let text = failure.to_string();
                    assert!(text.len() < 8192 && !text.contains(char::is_control), "{text:?}");
                }
            }
        }
    }
}

fn event_number(event: Event) -> u8 {
    EVENTS.iter().position(|&other| other == event).and_then(|at| at.try_into().ok()).unwrap_or(0)
}

pub(super) fn client_seeds() -> Vec<Vec<u8>> {
    let announce = |tracker: u8, wait: u8| {
        Script::default().bytes(&[7, 0, tracker, 0, wait]).short(b"/announce?k=1")
    };
    let connected = |script: Script| script.bytes(&[3, 0, 0, 0]).chunk(&[9; 8]);
    let body = [&[0, 0, 7, 8, 0, 0, 0, 3, 0, 0, 0, 5][..], &[1, 1, 1, 1, 0, 1, 2, 2]].concat();
    let good = connected(announce(0, 60)).bytes(&[3, 0, 0, 1]).chunk(&body).0;
    let v6 = connected(announce(2, 60)).bytes(&[3, 2, 0, 0xff]).chunk(&[7; 48]).0;
    let renewed =
        connected(announce(0, 60)).bytes(&[3, 0, 0, 3]).chunk(b"Connection ID missmatch\0");
    let renewed = connected(renewed).bytes(&[3, 0, 0, 3]).chunk(b"no\x1b[2J").0;
    let scrape = connected(Script::default().bytes(&[1, 1, 3, 2, 90]));
    let scrape =
        scrape.bytes(&[3, 3, 0, 2]).chunk(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2]);
    let late = announce(1, 200).bytes(&[5, 0, 0xff, 0xff, 5, 0, 0xff, 0xff]);
    let wrong = connected(announce(0, 60)).bytes(&[3, 1, 1, 1]).chunk(&body);
    let wrong = wrong.bytes(&[2, 0]).chunk(&[0, 0, 0, 9, 1]).bytes(&[6, 0, 7, 0, 0]);
    let empty = connected(announce(3, 9)).bytes(&[4, 0, 0, 1]).chunk(&[]).0;
    vec![good, v6, renewed, scrape.0, connected(late).0, wrong.0, empty]
}
