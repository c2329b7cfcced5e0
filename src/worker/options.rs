//! What a worker is told when it is made.
//!
//! Settings of the server enter; each worker gets its share of them. Invariant: nothing here changes
//! while a worker runs.

use crate::storage::Mode;

/// Bytes of copies to encrypted peers that may be out before each peer gets a block at a time. What
/// is out then grows by a block and a few messages per connection at most.
pub const SEALED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a worker is given once.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its number, from 0.
    pub number: usize,
    /// Connections it may have.
    pub connections_max: usize,
    /// Bytes of memory for what is read from cold files.
    pub read_bytes_max: usize,
    /// Bytes of memory for copies to encrypted peers, before each gets a block at a time; see
    /// [`SEALED_BYTES_MAX`].
    pub sealed_bytes_max: usize,
    /// Bytes of memory for pieces that are being fetched.
    pub piece_bytes_max: u64,
    /// How blocks reach the socket.
    pub mode: Mode,
    /// Whether sends may do without a copy.
    pub zero_copy: bool,
    /// Whether connections are encrypted.
    pub encryption: crate::mse::Policy,
    /// Address or interface that outgoing connections leave from.
    pub bind: Option<crate::sys::net::Bind>,
}
