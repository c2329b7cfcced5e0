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

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
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

/// Ports for foreign programs: below those that the kernel gives to whoever binds to port 0
/// (`net.ipv4.ip_local_port_range` begins at 32768), so that no test takes one in between.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// An address that nobody listens on, by TCP or UDP, and that no other call returns. For foreign
/// programs that cannot choose a port themselves.
pub(crate) fn free_addr(host: &str) -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Another run of the tests beside this one begins elsewhere.
    let first = std::process::id().wrapping_mul(97) % count;
    for _ in 0..count {
        let offset = (first + NEXT.fetch_add(1, Relaxed)) % count;
        let port = PORTS.start + u16::try_from(offset).unwrap();
        let (tcp, udp) = (TcpListener::bind((host, port)), UdpSocket::bind((host, port)));
        if let (Ok(tcp), Ok(_)) = (tcp, udp) {
            return tcp.local_addr().unwrap();
        }
    }
    panic!("no port of {PORTS:?} is free on {host}");
}
