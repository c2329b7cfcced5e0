//! The one door to trackers: an announce enters, a reply leaves, however the bytes travel.
//!
//! Invariant: the schedule sees no difference between HTTP and UDP but the time it takes.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::http::{self, HttpConfig, HttpExecutor};
use super::reply::Scraped;
use super::tracker_url::Protocol;
use super::udp::{Sockets, UdpExecutor};
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

/// Executors of both kinds.
pub struct Executor {
    http: HttpExecutor,
    udp: UdpExecutor,
    /// What receives datagrams and serves timers; it ends with this.
    _tasks: JoinSet<()>,
}

impl Executor {
    /// Sets up both kinds on the current tokio runtime. `seed` decides transaction ids.
    ///
    /// # Errors
    /// Says which kind cannot be set up.
    pub fn new(config: HttpConfig, seed: u64) -> Result<Self, BuildError> {
        let sockets = Arc::new(Sockets::bind(config.bind.as_ref())?);
        let http = HttpExecutor::new(config.clone())?;
        let udp = UdpExecutor::new(&config, http.names(), Arc::clone(&sockets) as _, seed);
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
