//! The control thread's rooms: what is remembered, where new torrents come from, who may ask.
//!
//! Invariant: nothing here is on the data path, and nothing that can wait for a disk runs on the
//! control thread: [`state`] and [`watch`] have threads of their own and are reached by messages.

pub mod http;
pub mod state;
pub mod watch;
