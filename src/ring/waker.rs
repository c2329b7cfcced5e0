//! How another thread gets a sleeping core out of the kernel, and leaves a busy one alone.
//!
//! [`Waker::wake`] enters, from any thread; one [`super::Event::Woken`] leaves for any number of
//! wakes since the last. Invariant: a wake-up is never lost, see [`State`].

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// The one word that both sides exchange.
///
/// The core goes from `AWAKE` to `ASLEEP` by compare-exchange directly before it may block, and to
/// `AWAKE` by swap when it is back. Others swap in `NOTIFIED`, and write to the eventfd if they
/// replaced `ASLEEP`. All accesses are to one word, so they have one order, and a wake is either
/// before the compare-exchange (which fails then: the core does not block) or after it (the writer
/// sees `ASLEEP`: the eventfd ends the sleep, even if it is written before the sleep begins,
/// because a read of it is armed). The swap back to `AWAKE` reads every wake so far, and its
/// acquire makes what the waking thread wrote before (a message in a queue) visible.
struct State;

impl State {
    const AWAKE: u8 = 0;
    const ASLEEP: u8 = 1;
    const NOTIFIED: u8 = 2;
}

/// The handle by which other threads wake a driver's thread.
#[derive(Debug)]
pub struct Waker {
    eventfd: OwnedFd,
    state: AtomicU8,
}

impl Waker {
    /// A waker whose core is awake.
    pub(super) fn new() -> io::Result<Waker> {
        // SAFETY: eventfd takes no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Waker { eventfd, state: AtomicU8::new(State::AWAKE) })
    }

    /// Makes the driver's current or next wait return with [`super::Event::Woken`]. Cheap while
    /// the core is awake: no system call.
    pub fn wake(&self) {
        if self.state.swap(State::NOTIFIED, Ordering::AcqRel) == State::ASLEEP {
            let one = 1_u64.to_ne_bytes();
            // The only possible failure is a counter at its maximum, which wakes as well.
            // SAFETY: eight bytes that live during the call.
            unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// The descriptor to keep a read armed on.
    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Whether the core may block now. If so, [`Waker::stay_awake`] has to follow.
    pub(super) fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(State::AWAKE, State::ASLEEP, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Ends a sleep, or looks for wakes that came without one: whether there was a wake.
    pub(super) fn stay_awake(&self) -> bool {
        // Mostly nothing has changed, and a load is cheaper than a swap.
        self.state.load(Ordering::Relaxed) != State::AWAKE
            && self.state.swap(State::AWAKE, Ordering::AcqRel) == State::NOTIFIED
    }
}
