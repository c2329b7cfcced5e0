//! System calls that are not the ring: clocks, sockets, mappings, files, processors, and SHA-1 by
//! processor instructions.
//!
//! Typed values enter and leave; `unsafe` stays behind the doors of these modules. Invariant: user
//! code never looks into a mapping, only the kernel does, so no fault of a file can reach us as a
//! signal.

pub mod clock;
pub mod file;
pub mod map;
pub mod mounts;
pub mod net;
pub mod process;
pub mod sha1;
