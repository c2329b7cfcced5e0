//! Asks UDP trackers on the control thread, whatever carries the datagrams.
//!
//! Announces and scrapes enter, replies leave; datagrams go out by an [`Outgoing`] and come in by
//! [`UdpExecutor::handle_datagram`]. Invariant: nothing is sent to an address that the policy
//! closes, and a question that nobody waits for any more is dropped at once.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::client::{Client, Ignored, RequestId};
use super::packet::SCRAPE_MAX;
use super::{Announcement, Answer, Ask};
use crate::sys::clock;
use crate::tracker::families::{Families, Family};
use crate::tracker::http::HttpConfig;
use crate::tracker::reply::{Reply, Scraped};
use crate::tracker::resolver::Names;
use crate::tracker::{Announce, Failure, Totals, TrackerUrl};
use crate::units::InfoHash;

/// Addresses of one tracker that are tried one after the other when nothing can be sent there.
const ADDRESSES_TRIED_MAX: usize = 3;

/// What carries datagrams away. Its other half calls [`UdpExecutor::handle_datagram`].
pub trait Outgoing: Send + Sync + std::fmt::Debug {
    /// Sends one datagram now. One that would have to wait may be dropped: it is sent again.
    ///
    /// # Errors
    /// The address cannot be reached at all.
    fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()>;

    /// Whether addresses of IPv4 (true) or IPv6 (false) can be reached from here.
    fn reaches(&self, is_ipv4: bool) -> bool;
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct UdpExecutor {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// A deadline may have moved.
    changed: Notify,
    outgoing: Arc<dyn Outgoing>,
    names: Arc<Names>,
    families: Families,
}

struct State {
    client: Client,
    waiters: BTreeMap<RequestId, oneshot::Sender<Result<Answer, Failure>>>,
}

impl UdpExecutor {
    /// Nothing is sent again, and no deadline holds, unless [`run`](Self::run) runs.
    pub(in crate::tracker) fn new(
        config: &HttpConfig,
        names: Arc<Names>,
        outgoing: Arc<dyn Outgoing>,
        seed: u64,
    ) -> Self {
        let client = Client::new(config.peer_id, config.port, config.key, seed);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { client, waiters: BTreeMap::new() }),
            changed: Notify::new(),
            outgoing,
            names,
            families: Families::default(),
        });
        Self { shared }
    }

    /// Serves the timers; never ends by itself.
    pub async fn run(self) {
        loop {
            let timeout = self.shared.state().client.poll_timeout();
            let sleep = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = sleep => {
                    self.shared.state().client.handle_timeout(clock::now());
                    self.shared.flush();
                }
            }
        }
    }

    /// Takes a datagram that may be a tracker's; see [`is_reply`](super::is_reply).
    pub fn handle_datagram(&self, from: SocketAddr, bytes: &[u8]) {
        let is_taken = self.shared.state().client.handle_datagram(clock::now(), from, bytes);
        if is_taken {
            self.shared.flush();
        }
    }

    /// Datagrams that were ignored so far.
    pub fn ignored(&self) -> Ignored {
        self.shared.state().client.ignored()
    }

    /// Makes one announce, within `wall` as a whole, over both families where the tracker has
    /// both.
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
        let exchange = async {
            let addresses = self.addresses(&announce.url).await?;
            let ask = Ask::Announce(Announcement {
                info_hash,
                totals,
                event: announce.event,
                numwant: announce.numwant,
                url_data: announce.url.url_data().to_owned(),
            });
            let families = self.families_of(&addresses);
            let over = |family| self.announce_over(family, &addresses, &ask, wall);
            self.shared.families.announce(announce.url.host(), &families, over).await
        };
        tokio::time::timeout(wall, exchange).await.unwrap_or(Err(Failure::Timeout(wall)))
    }

    /// Asks for the counts of `torrents`, in as many questions as that takes.
    ///
    /// # Errors
    /// As for an announce.
    pub async fn scrape(
        &self,
        url: &TrackerUrl,
        torrents: &[InfoHash],
        wall: Duration,
    ) -> Result<Vec<Scraped>, Failure> {
        let exchange = async {
            let addresses = self.addresses(url).await?;
            let family = self.families_of(&addresses).first().copied();
            let family = family.ok_or_else(no_family)?;
            let mut rows = Vec::with_capacity(torrents.len());
            for part in torrents.chunks(SCRAPE_MAX) {
                let ask = Ask::Scrape(part.to_vec());
                let Answer::Scraped(mut found) = self.ask(family, &addresses, &ask, wall).await?
                else {
                    continue;
                };
                // A tracker that knows fewer leaves out the last ones.
                found.resize(part.len(), Scraped::default());
                rows.append(&mut found);
            }
            Ok(rows)
        };
        tokio::time::timeout(wall, exchange).await.unwrap_or(Err(Failure::Timeout(wall)))
    }

    /// The permitted addresses of a tracker, with its port.
    async fn addresses(&self, url: &TrackerUrl) -> Result<Vec<SocketAddr>, Failure> {
        let no_host = || Failure::Dns("it names no host".into());
        let (host, port) = url.host_and_port().ok_or_else(no_host)?;
        if let Ok(ip) = host.parse::<IpAddr>() {
            let refused = |reason: crate::tracker::policy::Reason| Failure::Refused {
                to: url.host().to_string(),
                why: reason.to_string(),
            };
            self.shared.names.policy().permits(ip).map_err(refused)?;
            return Ok(vec![SocketAddr::new(ip.to_canonical(), port)]);
        }
        let found = self.shared.names.addresses(host).await?;
        Ok(found.iter().map(|ip| SocketAddr::new(ip.to_canonical(), port)).collect())
    }

    /// Those families of `addresses` that can be reached from here.
    fn families_of(&self, addresses: &[SocketAddr]) -> Vec<Family> {
        let is_usable = |family: &Family| {
            let is_ipv4 = *family == Family::V4;
            let is_present = addresses.iter().any(|at| at.is_ipv4() == is_ipv4);
            is_present && self.shared.outgoing.reaches(is_ipv4)
        };
        [Family::V4, Family::V6].into_iter().filter(is_usable).collect()
    }

    async fn announce_over(
        &self,
        family: Family,
        addresses: &[SocketAddr],
        ask: &Ask,
        wall: Duration,
    ) -> Result<Reply, Failure> {
        match self.ask(family, addresses, ask, wall).await? {
            Answer::Announced(mut reply) => {
                reply.keep_permitted(self.shared.names.policy());
                Ok(*reply)
            }
            Answer::Scraped(_) => Err(Failure::Malformed("it answers another question".into())),
        }
    }

    /// Asks the first address of `family` that something can be sent to.
    async fn ask(
        &self,
        family: Family,
        addresses: &[SocketAddr],
        ask: &Ask,
        wall: Duration,
    ) -> Result<Answer, Failure> {
        let of_family = addresses.iter().filter(|at| Family::of(at.ip()) == family);
        let mut failure = no_family();
        for to in of_family.take(ADDRESSES_TRIED_MAX) {
            match self.ask_one(*to, ask.clone(), wall).await {
                Err(unsent @ Failure::Connect(_)) => failure = unsent,
                result => return result,
            }
        }
        Err(failure)
    }

    async fn ask_one(&self, to: SocketAddr, ask: Ask, wall: Duration) -> Result<Answer, Failure> {
        let (waiter, answer) = oneshot::channel();
        let now = clock::now();
        let id = {
            let mut state = self.shared.state();
            let id = state.client.ask(now, to, ask, now + wall)?;
            state.waiters.insert(id, waiter);
            id
        };
        let _dropped = Dropped { shared: &self.shared, id };
        self.shared.flush();
        answer.await.unwrap_or_else(|_| Err(Failure::Connect("the server is ending".into())))
    }
}

fn no_family() -> Failure {
    Failure::Dns("it has no address of a family that we use".into())
}

/// Takes a question back when nobody waits for its answer any more.
struct Dropped<'s> {
    shared: &'s Shared,
    id: RequestId,
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.waiters.remove(&self.id).is_some() {
            state.client.cancel(self.id);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is to be sent and hands out what has been answered.
    fn flush(&self) {
        let mut state = self.state();
        while let Some((to, datagram)) = state.client.poll_transmit() {
            if let Err(error) = self.outgoing.send(to, &datagram) {
                state.client.handle_unreachable(to, &error.to_string());
            }
        }
        while let Some((id, result)) = state.client.poll_outcome() {
            if let Some(waiter) = state.waiters.remove(&id) {
                // Whoever asked may have gone in this very moment.
                let _gone = waiter.send(result);
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}
