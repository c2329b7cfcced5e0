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
//! - [`mse`]: the encryption that peers may put around it.
//! - [`rate`]: token buckets.
//! - [`swarm`]: one torrent and its peers: picker, choker, requests, blame.
//! - [`tracker`]: when and where to announce (its executors are an edge).
//! - [`dht`]: peers without a tracker: routing table, lookups, answers to others.
//! - [`lsd`]: peers in the local network.
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
//!
//! Direction: pure rooms never name an edge; [`storage`] knows [`ring`]'s leases and [`sys`]; only
//! [`worker`] sees both sides. A torrent lives and dies on one worker, its home; what crosses cores
//! is a letter ([`worker::mailbox`]) or a descriptor.
//!
//! # Anatomy of a block
//!
//! *Up.* The ring says that bytes came ([`ring::Event::Received`]). [`wire::Decoder`] finds a
//! request in them, in place. The swarm judges it and queues it ([`swarm::Swarm::handle_message`]);
//! at the end of the turn the worker takes what is due ([`swarm::Swarm::poll_transmit`]). For each
//! block it asks whether the range is in the page cache ([`storage::residency`], one cachestat(2)
//! per 256 KiB and quarter of a second). If so, header and mapped range go into the batch
//! ([`ring::Batch`]); if not, the chunk is read into memory ([`storage::chunks`]), once for all who
//! want it, and goes into the batch from there. One SENDMSG takes up to 1 MiB. The batch keeps what
//! it names alive until the kernel's last completion. Rust copies no payload and looks into no
//! mapping.
//!
//! *Down.* The decoder hands out block data as slices of the receive buffer. The swarm says whether
//! it was asked for ([`swarm::Swarm::handle_payload`]); the slice is copied to its place in the
//! piece ([`storage::pieces`]) and hashed while it is in the processor's cache, if it is the next
//! one in order. With the last block the digest is there within the turn; a good piece is written
//! by ring WRITEs as long as its files allow, and when the last of them has ended it is ours: HAVE
//! to everybody. A bad one is traced to its sender.

pub mod units;

pub mod bencode;
pub mod metainfo;

pub mod mse;
pub mod wire;

pub mod rate;
pub mod swarm;

pub mod dht;
pub mod lsd;
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
