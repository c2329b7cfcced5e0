//! seedring: a headless BitTorrent seedbox server for Linux.
//!
//! # The code map
//!
//! Reading order is the order of the modules below. Pure rooms take values and `now` and give
//! values back; edge rooms talk to the kernel, the network and the disk.
//!
//! Pure, no IO, no clock, no threads, no `unsafe`:
//! - [`units`]: the nouns (piece, block, info-hash, bitfield).
//! - [`bencode`]: the encoding of torrents, trackers and extensions.
//! - [`metainfo`]: `.torrent` files, and how pieces lie in files.
//! - [`wire`]: the peer protocol, bytes to messages and back.
//! - [`rate`]: token buckets.
//! - [`swarm`]: one torrent and its peers: picker, choker, requests, blame.
//! - [`tracker`]: when and where to announce (its HTTP executor is an edge).
//!
//! Edges:
//! - [`sys`]: system calls that are not the ring (one of two rooms with `unsafe`).
//! - [`ring`]: the reactor's floor (the other one).
//! - [`storage`]: where a block's bytes are: mapped, in memory, on disk.
//! - [`worker`]: one core: the only place where events meet state machines.
//! - [`server`]: boot, dealing torrents to workers, shutdown.
//! - [`control`]: HTTP, state, watch folders.
//! - [`metrics`]: the catalogue.
//! - [`config`]: settings, their defaults and where they come from.
//! - [`cli`]: the command line.

pub mod units;

pub mod bencode;
pub mod metainfo;

pub mod wire;

pub mod rate;
pub mod swarm;

pub mod tracker;

#[allow(unsafe_code)]
pub mod sys;

#[allow(unsafe_code)]
pub mod ring;

pub mod storage;
pub mod worker;

pub mod cli;
pub mod config;
pub mod control;
pub mod metrics;
pub mod server;
