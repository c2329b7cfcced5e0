//! Encrypted connections: whole transfers, the way home, and openings that go wrong.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::fleet::options;
use super::transfer::{many_files, transfer_with};
use super::*;
use crate::metrics::{Direction, Encryption, HandoverResult, HandshakeResult};
use crate::mse::Policy;
use crate::storage::Mode;

fn encrypted() -> Options {
    Options { encryption: Policy::Require, ..options() }
}

#[test]
fn everything_arrives_whole() {
    let (one, many) = (any_torrent(3_000_000, 30), many_files());
    on_every_ring(Faults::rough(), 0..3, |ring| {
        transfer_with(ring, &one, &encrypted(), false);
        transfer_with(ring, &many, &Options { mode: Mode::Map, ..encrypted() }, true);
        // A block at a time, as when too much is out.
        transfer_with(ring, &one, &Options { sealed_bytes_max: 0, ..encrypted() }, false);
    });
}

#[test]
fn the_ciphers_go_with_a_connection_that_is_handed_over() {
    let torrent = any_torrent(2_000_000, 31);
    on_every_ring(rough_without_short_receives(), 0..5, |ring| {
        let seeder = Fleet::start(1, 2, ring, &encrypted());
        let mut leecher = Fleet::start(2, 1, ring, &encrypted());
        seeder.seed(1, &torrent);
        leecher.fetch(0, &torrent);
        leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
        let report = leecher.report();
        assert!(matches!(report, Report::Finished(_)), "{report:?}");
        assert!(torrent.is_same_at(leecher.save_path.path()));
        let home = &seeder.members[1].core;
        assert_eq!(home.handovers[HandoverResult::Adopted].get(), 1);
        assert_eq!(home.peer_connections[(Direction::Incoming, Encryption::Rc4)].get(), 1);
        seeder.wait_until_idle();
        leecher.wait_until_idle();
        assert!(leecher.stop().is_empty());
        assert!(seeder.stop().is_empty());
    });
}

#[test]
fn who_is_refused_plainly_goes_the_other_way() {
    let torrent = any_torrent(500_000, 32);
    for (ours, theirs) in [(Policy::Allow, Policy::Require), (Policy::Prefer, Policy::Off)] {
        on_every_ring(Faults::rough(), 0..3, |ring| {
            let seeder = Fleet::start(1, 1, ring, &Options { encryption: theirs, ..options() });
            let leecher_options = Options { encryption: ours, ..options() };
            let mut leecher = Fleet::start(2, 1, ring, &leecher_options);
            seeder.seed(0, &torrent);
            leecher.fetch(0, &torrent);
            leecher.introduce(0, &torrent, &[seeder.members[0].addr]);
            let report = leecher.report();
            assert!(matches!(report, Report::Finished(_)), "{report:?}");
            let count =
                |result| leecher.members[0].core.handshakes[(Direction::Outgoing, result)].get();
            assert_eq!((count(HandshakeResult::Closed), count(HandshakeResult::Ok)), (1, 1));
            seeder.wait_until_idle();
            leecher.wait_until_idle();
            assert!(leecher.stop().is_empty());
            assert!(seeder.stop().is_empty());
        });
    }
}

/// A peer that has answered with a key speaks our language: a plain handshake would only tell
/// everybody on the way which torrent it is about.
#[test]
fn who_answers_the_exchange_is_not_asked_plainly() {
    let torrent = any_torrent(100_000, 34);
    let leecher_options = Options { encryption: Policy::Prefer, ..options() };
    let leecher = Fleet::start(1, 1, Ring::Plain, &leecher_options);
    leecher.fetch(0, &torrent);
    let count = |result| leecher.members[0].core.handshakes[(Direction::Outgoing, result)].get();
    for (answer, tries) in [(&[0x55; 96][..], 1), (&[][..], 2)] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let before = count(HandshakeResult::Closed);
        leecher.introduce(0, &torrent, &[listener.local_addr().unwrap()]);
        for _ in 0..tries {
            let (mut peer, _) = listener.accept().unwrap();
            peer.read_exact(&mut [0; 68]).unwrap();
            peer.write_all(answer).unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            // Theirs ends when they have seen that ours did.
            let _ = peer.read_to_end(&mut Vec::new());
        }
        wait_for("the end", || count(HandshakeResult::Closed) == before + tries);
        leecher.wait_until_idle();
        listener.set_nonblocking(true).unwrap();
        let more = listener.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(more, Err(io::ErrorKind::WouldBlock), "after {} bytes", answer.len());
    }
    assert!(leecher.stop().is_empty());
}

#[test]
fn garbage_ends_within_the_exchange_and_a_plain_handshake_where_it_may_not_be() {
    let torrent = any_torrent(100_000, 33);
    let fleet = Fleet::start(1, 1, Ring::Plain, &encrypted());
    fleet.seed(0, &torrent);
    let (addr, core) = (fleet.members[0].addr, &fleet.members[0].core);
    // A key, then more than the padding that may follow it.
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.write_all(&[0x55; 96]).unwrap();
    let mut key = [0; 96];
    stream.read_exact(&mut key).unwrap();
    assert_ne!(key, [0; 96]);
    stream.write_all(&[0x66; 532]).unwrap();
    let mut rest = Vec::new();
    // Closed: at an end, or by a reset where some of ours was not read.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() <= 512, "{} bytes behind the key", rest.len());
    let count = |result| core.handshakes[(Direction::Incoming, result)].get();
    wait_for("a bad exchange", || count(HandshakeResult::BadExchange) == 1);
    let mut plain = Peer::asking(addr, &torrent, 40, &torrent.blocks());
    plain.read_to_end();
    assert!(plain.blocks.is_empty());
    wait_for("a plain one", || count(HandshakeResult::Plain) == 1);
    fleet.wait_until_idle();
    assert!(fleet.stop().is_empty());
}
