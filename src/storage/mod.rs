//! Stub.

pub mod verify;
