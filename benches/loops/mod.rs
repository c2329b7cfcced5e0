//! The seeding loop with nothing around it, on three runtimes.
//!
//! A torrent and its file enter; whoever connects is told that everything is here, unchoked and
//! served, until the process is killed. The loops share what is a matter of the protocol (this
//! file) and how they batch: what has been asked for goes out in one vectored send of mapped
//! blocks, up to 1 MiB. They differ in the runtime alone, and in no more than that do they differ
//! from our server's data path: no picker, no choker, no limits, no cold data. Invariant: no block
//! is copied in user space.

mod plain_tokio;
mod ring;
mod tokio_uring;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use seedring::metainfo::Metainfo;
use seedring::units::{Bitfield, Block, Geometry, InfoHash, PeerId};
use seedring::wire::{self, Decoder, Handshake, HandshakeReader, Incoming, Limits, Message};

/// Most bytes of blocks in one send.
const SEND_LEN_MAX: usize = 1 << 20;

/// Requests of one peer that are kept; more close the connection.
const QUEUE_MAX: usize = 4096;

/// Bytes that one receive takes at most: some hundred requests.
const RECEIVE_LEN: usize = 4096;

/// Which loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Runtime {
    /// On `seedring::ring`.
    Ring,
    /// On tokio-uring, through its public interface.
    TokioUring,
    /// On tokio.
    Tokio,
}

impl Runtime {
    /// As the command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::TokioUring => "tokio-uring",
            Self::Tokio => "tokio",
        }
    }
}

/// Serves until the process is killed.
pub(crate) fn run(
    runtime: Runtime,
    listen: SocketAddr,
    torrent: &Path,
    data: &Path,
) -> io::Result<()> {
    let metainfo = Metainfo::parse(&fs::read(torrent)?).map_err(io::Error::other)?;
    let served = Served { geometry: metainfo.geometry, info_hash: metainfo.info_hash };
    match runtime {
        Runtime::Ring => ring::run(served, listen, data),
        Runtime::TokioUring => tokio_uring::run(served, listen, data),
        Runtime::Tokio => plain_tokio::run(served, listen, data),
    }
}

/// The torrent.
#[derive(Clone, Copy, Debug)]
struct Served {
    geometry: Geometry,
    info_hash: InfoHash,
}

impl Served {
    /// Where a block lies in the file.
    fn offset(&self, block: Block) -> usize {
        let offset = self.geometry.piece_start(block.piece) + u64::from(block.begin);
        usize::try_from(offset).expect("the file is mapped")
    }
}

/// One peer: what it said, and what it is owed.
#[derive(Debug)]
struct Session {
    served: Served,
    reader: Option<HandshakeReader>,
    decoder: Decoder,
    due: VecDeque<Block>,
}

impl Session {
    fn new(served: Served) -> Self {
        Self {
            served,
            reader: Some(HandshakeReader::new()),
            decoder: Decoder::new(Limits::new(served.geometry.piece_count())),
            due: VecDeque::new(),
        }
    }

    /// Takes what arrived; what has to be said at once is appended to `answer`.
    fn handle(&mut self, mut input: &[u8], answer: &mut Vec<u8>) -> io::Result<()> {
        if let Some(reader) = &mut self.reader {
            let taken = reader.handle_bytes(input).map_err(io::Error::other)?;
            input = &input[taken..];
            let Some(theirs) = reader.handshake() else { return Ok(()) };
            self.reader = None;
            self.greet(theirs, answer);
        }
        let due = &mut self.due;
        let handle = |incoming: Incoming<'_>| match incoming {
            Incoming::Message(Message::Request(block)) => due.push_back(block),
            Incoming::Message(Message::Cancel(block)) => due.retain(|queued| *queued != block),
            _ => {}
        };
        self.decoder.decode_all(input, handle).map_err(io::Error::other)?;
        let geometry = &self.served.geometry;
        let fits = |block: &Block| block.len as usize <= SEND_LEN_MAX && geometry.contains(*block);
        if self.due.len() > QUEUE_MAX || !self.due.iter().all(fits) {
            return Err(io::Error::other("requests that no client should make"));
        }
        Ok(())
    }

    fn greet(&self, theirs: Handshake, answer: &mut Vec<u8>) {
        let peer_id = PeerId(*b"-LP0000-000000000000");
        let mut ours = Handshake::new(self.served.info_hash, peer_id, false);
        // The Fast extension (BEP 6) and nothing else.
        ours.reserved = [0, 0, 0, 0, 0, 0, 0, 4];
        answer.extend_from_slice(&ours.encode());
        if theirs.supports_fast() {
            wire::encode(&Message::HaveAll, answer);
        } else {
            let bits = Bitfield::all(self.served.geometry.piece_count()).to_wire();
            wire::encode(&Message::Bitfield(&bits), answer);
        }
        wire::encode(&Message::Unchoke, answer);
    }

    /// Takes the blocks of the next send.
    fn next_batch(&mut self) -> impl Iterator<Item = Block> + '_ {
        let mut len = 0;
        let fits = |block: &&Block| {
            len += block.len as usize;
            len <= SEND_LEN_MAX
        };
        let count = self.due.iter().take_while(fits).count();
        self.due.drain(..count)
    }
}

/// A file as memory, for runtimes whose interface takes slices.
#[allow(unsafe_code)]
mod mapped {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd as _;
    use std::path::Path;

    /// Maps a whole file, for as long as the process lives.
    ///
    /// JUSTIFICATION: std has no mappings, and those of the library cannot be read on purpose.
    pub(super) fn map(path: &Path) -> io::Result<&'static [u8]> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is open.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping has this length and is never unmapped; the bench that starts the loop
        // made the file, and nobody changes it while the loop runs.
        Ok(unsafe { std::slice::from_raw_parts(base.cast::<u8>(), len) })
    }
}
