//! The one door to trackers: an announce enters, a reply leaves, however the bytes travel.
//!
//! Invariant: the schedule sees no difference between HTTP and UDP but the time it takes.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::http::{self, HttpConfig, HttpExecutor};
use super::reply::Scraped;
use super::tracker_url::Protocol;
use super::udp::{Outgoing, Sockets, UdpExecutor};
use super::{Announce, Failure, Reply, Totals, TrackerUrl};
use crate::units::InfoHash;

/// Why no executor could be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The HTTP half.
    #[error(transparent)]
    Http(#[from] http::BuildError),
    /// The UDP half.
    #[error("no socket for UDP trackers can be had: {0}")]
    Udp(#[from] io::Error),
}

/// One way for datagrams, and another where that one does not lead.
#[derive(Debug)]
struct Either {
    first: Arc<dyn Outgoing>,
    then: Arc<Sockets>,
}

impl Outgoing for Either {
    fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.first.send(to, datagram).or_else(|_| self.then.send(to, datagram))
    }

    fn reaches(&self, is_ipv4: bool) -> bool {
        self.first.reaches(is_ipv4) || self.then.reaches(is_ipv4)
    }
}

/// Executors of both kinds.
pub struct Executor {
    http: HttpExecutor,
    udp: UdpExecutor,
    /// What receives datagrams and serves timers; it ends with this.
    _tasks: JoinSet<()>,
}

impl Executor {
    /// Sets up both kinds on the current tokio runtime. `seed` decides transaction ids. Datagrams
    /// leave by `first` where that has a way, and their answers come back by
    /// [`UdpExecutor::handle_datagram`]; else by sockets of our own.
    ///
    /// # Errors
    /// Says which kind cannot be set up.
    pub fn new(
        config: HttpConfig,
        seed: u64,
        first: Option<Arc<dyn Outgoing>>,
    ) -> Result<Self, BuildError> {
        let sockets = Arc::new(Sockets::bind(config.bind.as_ref())?);
        let http = HttpExecutor::new(config.clone())?;
        let outgoing: Arc<dyn Outgoing> = match first {
            Some(first) => Arc::new(Either { first, then: Arc::clone(&sockets) }),
            None => Arc::clone(&sockets) as _,
        };
        let udp = UdpExecutor::new(&config, http.names(), outgoing, seed);
        let receiver = udp.clone();
        let mut tasks =
            sockets.receive(move |from, bytes| receiver.handle_datagram(from, bytes))?;
        tasks.spawn(udp.clone().run());
        Ok(Self { http, udp, _tasks: tasks })
    }

    /// The half for UDP trackers.
    pub fn udp(&self) -> &UdpExecutor {
        &self.udp
    }

    /// Makes one announce, within `wall` as a whole.
    ///
    /// # Errors
    /// Says what went wrong, in the terms that the schedule needs.
    pub async fn announce(
        &self,
        info_hash: InfoHash,
        announce: &Announce,
        totals: Totals,
        wall: Duration,
    ) -> Result<Reply, Failure> {
        match announce.url.protocol() {
            Protocol::Http | Protocol::Https => {
                self.http.announce(info_hash, announce, totals, wall).await
            }
            Protocol::Udp => self.udp.announce(info_hash, announce, totals, wall).await,
        }
    }

    /// Asks a tracker for its counts of `torrents` (BEP 48, BEP 15), within `wall` as a whole; a
    /// torrent that it does not know has none.
    ///
    /// # Errors
    /// As for an announce; [`Failure::Refused`] if the URL of the tracker names no scrape.
    pub async fn scrape(
        &self,
        url: &TrackerUrl,
        torrents: &[InfoHash],
        wall: Duration,
    ) -> Result<Vec<Scraped>, Failure> {
        match url.protocol() {
            Protocol::Http | Protocol::Https => self.http.scrape(url, torrents, wall).await,
            Protocol::Udp => self.udp.scrape(url, torrents, wall).await,
        }
    }
}
