//! Where we can be reached ourselves, so that no torrent connects to itself.
//!
//! Listeners, the addresses of our interfaces, and what trackers and the DHT say of us enter;
//! [`Letter::OwnAddrs`] leave whenever that comes to something else. What peers say is judged by
//! each worker itself, for it takes many of them. Invariant: nobody makes us forget an address that
//! we know by ourselves, and [`EXTERNAL_MAX`] bounds what others can add.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::Engine;
use crate::swarm::OWN_ADDRS_MAX;
use crate::sys::clock;
use crate::sys::net::multicast::interfaces;
use crate::worker::mailbox::Letter;

/// How often our interfaces are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Addresses that others see us at; the one that was named first makes room.
const EXTERNAL_MAX: usize = 4;

/// Our own addresses.
#[derive(Debug, Default)]
pub(super) struct OwnAddrs {
    next_look: Option<Instant>,
    external: Vec<IpAddr>,
    /// What workers were told last.
    told: Vec<SocketAddr>,
}

impl Engine {
    /// Somebody outside sees us at `ip`: a tracker (BEP 24), or most nodes of the DHT (BEP 42).
    pub(super) fn on_external(&mut self, ip: IpAddr) {
        let (ip, external) = (ip.to_canonical(), &mut self.own.external);
        if ip.is_unspecified() || ip.is_multicast() || external.contains(&ip) {
            return;
        }
        if external.len() >= EXTERNAL_MAX {
            // Whoever names ever more of them sets no pace: the next look is soon enough.
            external.remove(0);
            external.push(ip);
            return;
        }
        external.push(ip);
        self.own.next_look = None;
        self.renew_own_addrs(clock::now());
    }

    /// Tells the workers where we are, if that has changed since they were told.
    pub(super) fn renew_own_addrs(&mut self, now: Instant) {
        if self.own.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.own.next_look = Some(now + LOOK_INTERVAL);
        let ours = interfaces().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot look for our own addresses");
            Vec::new()
        });
        let ours: Vec<_> =
            ours.iter().flat_map(|it| &it.networks).map(|network| network.ip).collect();
        let addrs = own_addrs(self.peer_addrs(), &ours, &self.own.external);
        if addrs == self.own.told {
            return;
        }
        tracing::debug!(?addrs, "we can be reached there");
        let letter: Arc<[SocketAddr]> = addrs.as_slice().into();
        self.own.told = addrs;
        for worker in 0..self.loads.len() {
            self.post(worker, Letter::OwnAddrs(Arc::clone(&letter)));
        }
    }
}

/// Every address and port of ours, those that others see first: peers rank us by them (BEP 40).
fn own_addrs(listen: &[SocketAddr], ours: &[IpAddr], external: &[IpAddr]) -> Vec<SocketAddr> {
    let mut addrs = Vec::new();
    let mut add = |addr: SocketAddr| {
        if addrs.len() < OWN_ADDRS_MAX && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    };
    for ip in external.iter().rev() {
        listen.iter().for_each(|listener| add(SocketAddr::new(*ip, listener.port())));
    }
    for listener in listen {
        if listener.ip().is_unspecified() {
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == listener.is_ipv4();
            let there = ours.iter().filter(of_family);
            there.for_each(|ip| add(SocketAddr::new(*ip, listener.port())));
        } else {
            add(*listener);
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_where_we_listen_and_where_others_see_us() {
        let addrs = |listen: &[&str], external: &[&str]| {
            let listen: Vec<_> = listen.iter().map(|it| it.parse().unwrap()).collect();
            let external: Vec<_> = external.iter().map(|it| it.parse().unwrap()).collect();
            let ours = ["127.0.0.1", "10.0.0.5", "::1", "fd00::5"].map(|it| it.parse().unwrap());
            let own = own_addrs(&listen, &ours, &external);
            own.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(addrs(&["10.0.0.5:7"], &[]), "10.0.0.5:7");
        assert_eq!(addrs(&["0.0.0.0:7"], &[]), "127.0.0.1:7 10.0.0.5:7");
        let all = addrs(&["0.0.0.0:7", "[::]:8"], &["1.1.1.1", "2.2.2.2"]);
        let external = "2.2.2.2:7 2.2.2.2:8 1.1.1.1:7 1.1.1.1:8";
        assert_eq!(all, format!("{external} 127.0.0.1:7 10.0.0.5:7 [::1]:8 [fd00::5]:8"));
        let many: Vec<String> = (0..99).map(|number| format!("9.9.9.9:{}", 1 + number)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(addrs(&many, &[]).split(' ').count(), OWN_ADDRS_MAX);
    }
}
