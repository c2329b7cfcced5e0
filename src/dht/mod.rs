//! The DHT (BEP 5, 32, 33, 42, 43, 45, 51): peers of torrents without a tracker.
//!
//! Datagrams and `now` enter [`Dht`], datagrams and events leave it: a [`Node`] per socket. It is
//! pure: whoever owns the sockets moves the bytes, resolves the names of bootstrap hosts, and
//! gives a secret and a seed. Invariant: whatever comes in, memory and what is sent stay within
//! the limits named in these files, and no address is used that the policy refuses.
//!
//! Reading order: [`krpc`] and [`encode`] are the datagrams; `table` knows nodes, `lookup` walks
//! over them, `pending` waits for answers; `store` and `secrets` serve others, `limiter` and the
//! budget of answers protect others from us; `schedule` decides what is looked up when; [`node`]
//! joins them. Private torrents (BEP 27) do not get here: their owner does not name them, but for one
//! of which only a magnet link is known, until its metadata says that it is private.
#![forbid(unsafe_code)]

mod address;
pub mod bloom;
pub mod counters;
pub mod encode;
mod id;
pub mod krpc;
mod limiter;
mod lookup;
pub mod node;
mod nodes;
mod pending;
mod saved;
mod schedule;
mod secrets;
mod store;
mod table;
mod votes;

#[cfg(test)]
mod tests;

pub use address::{Contact, PORT_MIN};
pub use counters::Counters;
pub use id::NodeId;
pub use node::{Config, Event, Gauges, Node, Outcome};
pub use nodes::Dht;
pub use saved::{FILE_LEN_MAX, Saved, from_file};
pub use schedule::{Announce, Task};
pub use table::K;
pub(crate) use votes::Votes;
