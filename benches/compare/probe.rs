//! Whether a seeder is ready: it answers a handshake and says that it has everything.
//!
//! An address enters; nothing leaves but the moment. It works for every program alike, whatever it
//! checks before and however it says that it has begun. Invariant: the probing connection is closed
//! before the load begins.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use seedring::sys::clock;
use seedring::units::Bitfield;
use seedring::wire::{Decoder, Handshake, Incoming, Limits, Message};

use crate::ground::Ground;
use crate::load::{RESERVED, peer_id};
use crate::process::{Running, pause};

/// How long a program may take until it seeds: checking 2 GiB takes the slowest some seconds.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a connection may say nothing before it is given up and made anew.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Waits until the program at `addr` seeds the whole torrent.
///
/// # Errors
/// It ended, or was not ready in time; with the end of what it said.
pub(crate) fn wait_ready(
    ground: &Ground,
    addr: SocketAddr,
    program: &mut Running,
) -> io::Result<()> {
    let started = clock::now();
    loop {
        program.check_alive()?;
        if has_everything(ground, addr).unwrap_or(false) {
            return Ok(());
        }
        if clock::now() - started > READY_TIMEOUT {
            let said = crate::process::tail(&program.output());
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not ready: {said}")));
        }
        pause();
    }
}

fn has_everything(ground: &Ground, addr: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&addr, SILENCE_MAX)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let peer_id = peer_id(b'P', 0);
    let ours = Handshake { reserved: RESERVED, info_hash: ground.info_hash, peer_id };
    stream.write_all(&ours.encode())?;
    let mut theirs = [0; Handshake::LEN];
    stream.read_exact(&mut theirs)?;
    Handshake::parse(&theirs).map_err(io::Error::other)?;

    let piece_count = ground.geometry.piece_count();
    let mut decoder = Decoder::new(Limits::new(piece_count));
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(false);
        }
        let (mut has_all, mut has_less) = (false, false);
        let judge = |incoming: Incoming<'_>| match incoming {
            Incoming::Message(Message::HaveAll) => has_all = true,
            Incoming::Message(Message::HaveNone) => has_less = true,
            Incoming::Message(Message::Bitfield(bits)) => {
                let complete =
                    Bitfield::from_wire(bits, piece_count).is_some_and(|it| it.is_complete());
                has_all |= complete;
                has_less |= !complete;
            }
            _ => {}
        };
        decoder.decode_all(&buffer[..count], judge).map_err(io::Error::other)?;
        if has_all || has_less {
            return Ok(has_all);
        }
    }
}
