//! Stub.
/// Stub.
#[derive(Debug)]
pub struct Batch;
/// Stub.
#[derive(Debug)]
pub struct RecvBuffer;
/// Stub.
#[derive(Debug)]
pub struct Waker;
/// Stub.
#[derive(Debug)]
pub struct Counters;
