//! What every integration test needs: folders, processes, content, servers, waiting.

pub(crate) mod capture;
pub(crate) mod data;
pub(crate) mod netns;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod server;
pub(crate) mod tracker;
pub(crate) mod wait;
pub(crate) mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by tests that keep both cores busy, so that their time limits mean something.
static HEAVY: Mutex<()> = Mutex::new(());

/// Waits until no other heavy test runs.
pub(crate) fn heavy() -> MutexGuard<'static, ()> {
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder on the disk of the build directory (`/tmp` may be memory) that vanishes with the test.
pub(crate) fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// An address that nobody listens on. For foreign programs that cannot choose a port themselves.
pub(crate) fn free_addr(host: &str) -> SocketAddr {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}
