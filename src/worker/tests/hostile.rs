//! Peers that do not behave; the others must not notice.

use std::sync::atomic::Ordering::Relaxed;

use super::fleet::options;
use super::peer::{greeting, requests};
use super::*;
use crate::metrics::{Direction, DisconnectReason, HandshakeResult};
use crate::storage::Mode;
use crate::swarm::{BAN_TTL, Offender};
use crate::units::{Bitfield, Block};
use crate::wire::{Message, encode};

fn cancels(blocks: &[Block]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &block in blocks {
        encode(&Message::Cancel(block), &mut bytes);
    }
    bytes
}

/// All kinds of bad peers at once, and one good one.
fn bad_company(ring: Ring, torrent: &Torrent, mode: Mode) {
    let fleet = Fleet::start(1, 1, ring, &Options { mode, ..options() });
    let addr = fleet.members[0].addr;
    fleet.seed(0, torrent);
    let blocks = torrent.blocks();

    let deaf = Peer::narrow(addr, torrent, 10, &blocks);
    let mut killed = Peer::asking(addr, torrent, 11, &blocks);
    killed.read_until("a first block", |peer| !peer.blocks.is_empty());
    // Unread bytes make the kernel answer with a reset.
    drop(killed);

    let mut first = greeting(torrent, 12);
    first.extend([0xee; 3000]);
    let mut mad = Peer::connect(addr, torrent, &first);
    let mut mute = Peer::connect(addr, torrent, b"\x13BitTorrent protocoX");
    let mut half = Peer::connect(addr, torrent, &greeting(torrent, 13)[..50]);

    let mut fickle = Peer::asking(addr, torrent, 14, &[]);
    for _ in 0..5 {
        fickle.send(&requests(&blocks));
        fickle.send(&cancels(&blocks));
    }

    let mut good = Peer::asking(addr, torrent, 15, &blocks);
    good.expect(torrent, &blocks);
    mad.read_to_end();
    mute.read_to_end();
    half.read();
    fickle.read();
    fickle.assert_right(torrent);
    drop((deaf, half, fickle, good));
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}

/// A deaf peer holds all the memory that there is for reads; when it goes, the next one is served.
fn last_buffer(ring: Ring, torrent: &Torrent) {
    let options = Options { mode: Mode::Read, read_bytes_max: 256 * 1024, ..options() };
    let fleet = Fleet::start(1, 1, ring, &options);
    let addr = fleet.members[0].addr;
    fleet.seed(0, torrent);
    let blocks = torrent.blocks();
    let deaf = Peer::narrow(addr, torrent, 10, &blocks);
    let reads = &fleet.members[0].seen.reads;
    let mut before = usize::MAX;
    wait_for("the deaf peer to hold the buffer", || {
        std::thread::park_timeout(Duration::from_millis(30));
        std::mem::replace(&mut before, reads.load(Relaxed)) == reads.load(Relaxed)
    });
    let wanted = &blocks[blocks.len() - 1..];
    let mut next = Peer::asking(addr, torrent, 11, wanted);
    next.read_until("to be unchoked", |peer| peer.is_unchoked);
    drop(deaf);
    next.expect(torrent, wanted);
    drop(next);
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}

#[test]
fn who_waits_for_memory_is_served_when_a_connection_ends() {
    let torrent = any_torrent(10 << 20, 9);
    on_every_ring(Faults::rough(), 0..1, |ring| last_buffer(ring, &torrent));
}

/// A read ends after its torrent has gone and another has taken its place.
#[test]
fn a_late_read_is_not_served_as_another_torrent() {
    let (old, new) = (any_torrent(200_000, 10), any_torrent(200_000, 11));
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let mut fleet = Fleet::start(1, 1, ring, &options());
        let (addr, seen) = (fleet.members[0].addr, Arc::clone(&fleet.members[0].seen));
        fleet.seed(0, &old);
        seen.holds_files.store(true, Relaxed);
        let mut before = Peer::asking(addr, &old, 10, &old.blocks());
        wait_for("a read", || seen.reads.load(Relaxed) > 0);
        fleet.post(0, Letter::Remove(old.info_hash));
        before.read_to_end();
        // It writes nothing: what it reads is nobody's concern.
        fleet.expect_removed(&old);
        fleet.seed(0, &new);
        let reads = seen.reads.load(Relaxed);
        let mut after = Peer::asking(addr, &new, 11, &new.blocks());
        wait_for("another read", || seen.reads.load(Relaxed) > reads);
        seen.holds_files.store(false, Relaxed);
        after.expect(&new, &new.blocks());
        drop(after);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

/// Files are opened after their torrent has gone and come back from another place.
#[test]
fn late_files_are_not_those_of_the_torrent_that_came_back() {
    let torrent = any_torrent(200_000, 13);
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let mut fleet = Fleet::start(1, 1, ring, &options());
        let addr = fleet.members[0].addr;
        let (release, blocked) = std::sync::mpsc::channel();
        fleet.block_files(blocked);
        let nowhere = fleet.save_path.path().join("nowhere");
        fleet.add(0, &torrent, &nowhere, Bitfield::all(torrent.geometry.piece_count()));
        let mut before = Peer::asking(addr, &torrent, 10, &[]);
        before.read_until("to be unchoked", |peer| peer.is_unchoked);
        fleet.post(0, Letter::Remove(torrent.info_hash));
        before.read_to_end();
        fleet.seed(0, &torrent);
        let mut after = Peer::asking(addr, &torrent, 11, &torrent.blocks());
        after.read_until("to be unchoked", |peer| peer.is_unchoked);
        // A thread may still make its files.
        assert!(fleet.report_now().is_none());
        drop::<std::sync::mpsc::Sender<()>>(release);
        after.expect(&torrent, &torrent.blocks());
        fleet.expect_removed(&torrent);
        drop(after);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

#[test]
fn bad_peers_disturb_nobody() {
    let torrent = any_torrent(8 << 20, 8);
    for mode in [Mode::Map, Mode::Read] {
        on_every_ring(Faults::rough(), 0..2, |ring| bad_company(ring, &torrent, mode));
    }
}

#[test]
fn every_end_of_a_handshake_is_counted_by_its_name() {
    let (torrent, unknown) = (any_torrent(100_000, 21), any_torrent(100_000, 22));
    // Where both kinds are answered, what is no handshake may be the start of an exchange.
    let options = Options { encryption: crate::mse::Policy::Off, ..options() };
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let fleet = Fleet::start(1, 1, ring, &options);
        fleet.seed(0, &torrent);
        let member = &fleet.members[0];
        let count = |result| member.core.handshakes[(Direction::Incoming, result)].get();
        let mut good = Peer::asking(member.addr, &torrent, 10, &[]);
        good.read_until("to be unchoked", |peer| peer.is_unchoked);
        for (result, opening) in [
            (HandshakeResult::UnknownTorrent, greeting(&unknown, 11)),
            (HandshakeResult::Itself, greeting(&torrent, 1)),
            (HandshakeResult::Duplicate, greeting(&torrent, 10)),
            (HandshakeResult::BadProtocol, b"\x13BitTorrent protocoX".to_vec()),
        ] {
            let mut peer = Peer::connect(member.addr, &torrent, &opening);
            peer.read_to_end();
            assert_eq!(count(result), 1, "{result:?}");
        }
        assert_eq!(count(HandshakeResult::Ok), 1);
        good.send(&requests(&torrent.blocks()));
        good.expect(&torrent, &torrent.blocks());
        drop(good);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}

/// Another worker, or an earlier run, has found somebody out.
#[test]
fn a_ban_by_letter_ends_connections_of_every_torrent() {
    let torrents = [any_torrent(100_000, 23), any_torrent(100_000, 24)];
    on_every_ring(Faults::rough(), 0..2, |ring| {
        let fleet = Fleet::start(1, 1, ring, &options());
        torrents.iter().for_each(|torrent| drop(fleet.seed(0, torrent)));
        let member = &fleet.members[0];
        let mut peers: Vec<_> = [10, 11, 12, 13]
            .into_iter()
            .zip(torrents.iter().cycle())
            .map(|(name, torrent)| Peer::asking(member.addr, torrent, name, &[]))
            .collect();
        for peer in &mut peers {
            peer.read_until("to be unchoked", |peer| peer.is_unchoked);
        }
        let guilty = peers.drain(..2).collect::<Vec<_>>();
        let until = clock::now() + BAN_TTL;
        let bans = guilty.iter().map(|peer| (Offender::of(peer.addr()), until)).collect();
        fleet.post(0, Letter::Ban(bans));
        guilty.into_iter().for_each(|mut peer| peer.read_to_end());
        assert_eq!(member.core.disconnects[DisconnectReason::Banned].get(), 2);
        for (torrent, peer) in torrents.iter().zip(&mut peers) {
            peer.send(&requests(&torrent.blocks()));
            peer.expect(torrent, &torrent.blocks());
        }
        drop(peers);
        fleet.wait_until_idle();
        assert!(fleet.stop().is_empty());
    });
}
