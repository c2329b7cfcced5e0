//! Trackers: when to announce to which, what they answer, and the one service that does it.
//!
//! Torrents and their tiers enter, peers and a status for display leave. The schedule
//! ([`announcer`], [`scheduler`]), the parser ([`reply`]) and the address policy ([`policy`]) are
//! pure, and so is the machine of [`udp`]; [`http`], [`executor`] and [`service`] are the edge. Invariant: nothing that a tracker sends is
//! trusted: numbers are clamped, texts are cut and escaped, addresses pass the policy.
//!
//! A kind of tracker is one executor that turns an [`Announce`] into a [`Reply`] or a [`Failure`];
//! [`executor`] is the door to all, and the schedule does not know how the bytes travel.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::metrics::AnnounceResult;

pub mod announcer;
mod chain;
pub mod executor;
mod families;
mod host;
pub mod http;
mod http_date;
mod limits;
pub mod policy;
pub mod reply;
mod resolver;
pub mod scheduler;
pub mod service;
mod tracked;
pub mod tracker_url;
pub mod udp;

pub use announcer::{Announcer, Options, Status, TrackerStatus};
pub use executor::Executor;
pub use policy::{AddressPolicy, Cidr};
pub use reply::{Reply, Scraped};
pub use scheduler::{Limits, Scheduler};
pub use service::{Config, Counters, Found, Handle, Service};
pub use tracker_url::{Protocol, TrackerUrl};

/// Bytes that are kept of a text from a tracker.
pub const TEXT_LEN_MAX: usize = 512;

/// What an announce tells the tracker (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The first announce to this tracker since the torrent was started.
    Started,
    /// One that only says that we are still here; it carries no event on the wire.
    Periodic,
    /// The download has just become complete.
    Completed,
    /// The torrent stops.
    Stopped,
}

/// The numbers that every announce carries, in bytes (BEP 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Uploaded since `started`.
    pub uploaded: u64,
    /// Downloaded since `started`.
    pub downloaded: u64,
    /// Still missing.
    pub left: u64,
}

/// One announce that is due now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announce {
    /// Which tracker of the torrent it goes to; the reply is handed back under this number.
    pub slot: u16,
    /// Where it goes.
    pub url: TrackerUrl,
    /// What it says.
    pub event: Event,
    /// How many peers to ask for; 0 when stopping.
    pub numwant: u16,
    /// The `tracker id` of an earlier reply, to be sent back unchanged.
    pub tracker_id: Option<Vec<u8>>,
}

/// When a tracker that failed wants to be asked again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// Not before this much time has passed.
    After(Duration),
    /// Never (BEP 31).
    Never,
}

/// Why an announce did not succeed. The tracker is asked again later, by its back-off.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The tracker answered with a `failure reason`.
    #[error("the tracker says: {reason}")]
    Reason {
        /// Its text, cut to [`TEXT_LEN_MAX`] and escaped.
        reason: String,
        /// Its `retry in`, if it gave one (BEP 31).
        retry: Option<Retry>,
    },
    /// An HTTP status other than success.
    #[error("the tracker answered with HTTP status {status}")]
    Status {
        /// The status.
        status: u16,
        /// Its `Retry-After`, if it gave one.
        retry_after: Option<Duration>,
    },
    /// An answer that is not a tracker's reply.
    #[error("the answer is not a tracker's reply: {0}")]
    Malformed(String),
    /// No complete answer in time.
    #[error("no complete answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The name has no address.
    #[error("the name of the tracker has no address: {0}")]
    Dns(String),
    /// The connection was refused, reset or could not be made.
    #[error("no connection to the tracker: {0}")]
    Connect(String),
    /// The TLS handshake failed, for instance for a bad certificate.
    #[error("no secure connection to the tracker: {0}")]
    Tls(String),
    /// We do not go where the URL or a redirect leads.
    #[error("refused to go to {to}: {why}")]
    Refused {
        /// The address or the URL without its secrets.
        to: String,
        /// The rule that forbids it.
        why: String,
    },
}

impl Event {
    /// The value of `event` in an announce; `None` for a periodic one.
    pub fn wire(self) -> Option<&'static str> {
        match self {
            Self::Started => Some("started"),
            Self::Periodic => None,
            Self::Completed => Some("completed"),
            Self::Stopped => Some("stopped"),
        }
    }
}

impl Failure {
    /// What is counted for it.
    pub fn result(&self) -> AnnounceResult {
        match self {
            Self::Reason { .. } => AnnounceResult::Failure,
            Self::Status { .. } | Self::Malformed(_) => AnnounceResult::Http,
            Self::Timeout(_) => AnnounceResult::Timeout,
            Self::Dns(_) => AnnounceResult::Dns,
            Self::Connect(_) => AnnounceResult::Connect,
            Self::Tls(_) => AnnounceResult::Tls,
            Self::Refused { .. } => AnnounceResult::Refused,
        }
    }

    /// The label of `announces_total`; `ok` is the label of a success.
    pub fn label(&self) -> &'static str {
        self.result().label()
    }

    /// Whether the fault is the host's, so that other torrents would meet it too.
    pub fn is_of_host(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Timeout(_) | Self::Dns(_) | Self::Connect(_) | Self::Tls(_) => true,
            Self::Reason { .. } | Self::Malformed(_) | Self::Refused { .. } => false,
        }
    }

    /// When the tracker itself asked us to come again.
    pub fn retry(&self) -> Option<Retry> {
        match self {
            Self::Reason { retry, .. } => *retry,
            Self::Status { retry_after, .. } => retry_after.map(Retry::After),
            _ => None,
        }
    }

    /// Whether the tracker does not know the torrent, which only a person can change.
    pub fn is_unregistered(&self) -> bool {
        const PHRASES: [&str; 5] =
            ["not registered", "unregistered", "not authorized", "not found", "not exist"];
        match self {
            Self::Status { status, .. } => *status == 410,
            Self::Reason { reason, .. } => {
                let reason = reason.to_ascii_lowercase();
                PHRASES.iter().any(|phrase| reason.contains(phrase))
            }
            _ => false,
        }
    }
}

/// Makes text from outside fit for logs and pages: UTF-8 with control and direction characters
/// escaped, at most [`TEXT_LEN_MAX`] bytes of input, `…` where it was cut.
pub fn display_text(text: &[u8]) -> String {
    let cut = text.get(..TEXT_LEN_MAX);
    let mut shown = String::new();
    for char in String::from_utf8_lossy(cut.unwrap_or(text)).chars() {
        if char.is_control() || is_deceptive(char) {
            shown.extend(char.escape_unicode());
        } else {
            shown.push(char);
        }
    }
    if cut.is_some_and(|cut| cut.len() < text.len()) {
        shown.push('…');
    }
    shown
}

/// Characters that reorder or hide what stands beside them.
fn is_deceptive(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_cut_and_escaped() {
        assert_eq!(display_text(b"plain"), "plain");
        assert_eq!(display_text(b"\x1b[31mred\n"), "\\u{1b}[31mred\\u{a}");
        assert_eq!(display_text("\u{202e}evil".as_bytes()), "\\u{202e}evil");
        let long = display_text(&[b'x'; 1_000_000]);
        assert_eq!(long.chars().count(), TEXT_LEN_MAX + 1);
        assert!(long.ends_with('…'));
        assert_eq!(display_text(&[b'x'; TEXT_LEN_MAX]).len(), TEXT_LEN_MAX);
    }

    #[test]
    fn failures_know_whose_fault_they_are() {
        let status = |status| Failure::Status { status, retry_after: None };
        let reason = |text: &str| Failure::Reason { reason: text.into(), retry: None };
        assert!(status(503).is_of_host() && status(429).is_of_host() && !status(404).is_of_host());
        assert!(status(410).is_unregistered() && !status(404).is_unregistered());
        assert!(reason("Torrent Not Registered with this tracker").is_unregistered());
        assert!(!reason("slow down").is_unregistered());
    }
}
