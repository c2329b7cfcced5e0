//! Stub.
pub mod choker;
