//! UDP trackers (BEP 15, 41), without a socket of their own.
//!
//! [`Client`] is the machine: datagrams and `now` enter, datagrams and answers leave.
//! [`UdpExecutor`] drives it on the control thread; what carries its datagrams is an [`Outgoing`]:
//! the sockets with the number of the peer port, or the [`Sockets`] of this room. Invariant: nothing that a datagram says is believed unless
//! its source, its transaction and its action are those that were asked; all else is counted.
#![forbid(unsafe_code)]

mod client;
mod executor;
mod packet;
mod sockets;

pub use client::{Client, Ignored, REQUESTS_MAX, RequestId};
pub use executor::{Outgoing, UdpExecutor};
pub use packet::{SCRAPE_MAX, is_reply};
pub use sockets::Sockets;

use super::reply::{Reply, Scraped};
use super::{Event, Totals};
use crate::units::InfoHash;

/// What one announce says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Its numbers.
    pub totals: Totals,
    /// Its event.
    pub event: Event,
    /// How many peers to ask for.
    pub numwant: u16,
    /// Path and query of the tracker's URL; empty for none.
    pub url_data: String,
}

/// What a tracker is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// To take an announce.
    Announce(Announcement),
    /// For the counts of at most [`SCRAPE_MAX`] torrents.
    Scrape(Vec<InfoHash>),
}

/// What it answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To an announce.
    Announced(Box<Reply>),
    /// To a scrape: one row per torrent, in the order of the question, possibly fewer.
    Scraped(Vec<Scraped>),
}
