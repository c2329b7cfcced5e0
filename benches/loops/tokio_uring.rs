//! The loop on tokio-uring, through its public interface: one task per peer, owned buffers.
//!
//! Sockets enter, vectored writes leave. Its interface has no multishot accept, no buffer rings, no
//! poll-first and no deferred task work on its loop; that is what is measured here. Invariant:
//! while a batch is on its way its peer is not read.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use ::tokio_uring::buf::IoBuf;
use ::tokio_uring::net::{TcpListener, TcpStream};
use seedring::units::Block;
use seedring::wire::{BLOCK_HEADER_LEN, block_header};

use super::mapped::map;
use super::{RECEIVE_LEN, Served, Session};

/// Entries of the ring: as many as ours has.
const ENTRIES: u32 = 1024;

/// Serves until the process is killed.
pub(super) fn run(served: Served, listen: SocketAddr, data: &Path) -> io::Result<()> {
    let data = map(data)?;
    let mut builder = ::tokio_uring::builder();
    builder.entries(ENTRIES);
    builder.start(async {
        let listener = TcpListener::bind(listen)?;
        loop {
            let (stream, _) = listener.accept().await?;
            ::tokio_uring::spawn(async move {
                // Peers come and go; a bench has nobody to tell.
                let _ = serve(&stream, served, data).await;
            });
        }
    })
}

async fn serve(stream: &TcpStream, served: Served, data: &'static [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut session = Session::new(served);
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        let count = result?;
        if count == 0 {
            return Ok(());
        }
        let mut answer = Vec::new();
        session.handle(&buffer[..count], &mut answer)?;
        if !answer.is_empty() {
            stream.write_all(answer).await.0?;
        }
        while !session.due.is_empty() {
            let mut parts = Vec::with_capacity(2 * session.due.len());
            for block in session.next_batch() {
                parts.push(Part::Header { bytes: Box::new(block_header(block)), from: 0 });
                parts.push(Part::Data(bytes_of(served, data, block)));
            }
            send(stream, parts).await?;
        }
    }
}

fn bytes_of(served: Served, data: &'static [u8], block: Block) -> &'static [u8] {
    &data[served.offset(block)..][..block.len as usize]
}

async fn send(stream: &TcpStream, mut parts: Vec<Part>) -> io::Result<()> {
    while !parts.is_empty() {
        let (result, returned) = stream.writev(parts).await;
        parts = returned;
        let mut count = result?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let whole = parts
            .iter()
            .take_while(|part| {
                let fits = part.bytes().len() <= count;
                count -= if fits { part.bytes().len() } else { 0 };
                fits
            })
            .count();
        parts.drain(..whole);
        if let Some(first) = parts.first_mut() {
            first.advance(count);
        }
    }
    Ok(())
}

/// One range of a send.
enum Part {
    /// A header from its byte `from` on.
    Header { bytes: Box<[u8; BLOCK_HEADER_LEN]>, from: usize },
    /// Mapped data.
    Data(&'static [u8]),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Header { bytes, from } => &bytes[*from..],
            Self::Data(data) => data,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Header { from, .. } => *from += count,
            Self::Data(data) => *data = &data[count..],
        }
    }
}

// SAFETY: a header is on the heap and a mapping is for ever, so the address is the same however the
// part is moved, and stays good while the part lives; all of it is initialized.
// JUSTIFICATION: tokio-uring takes the buffers of one write as values of one type.
unsafe impl IoBuf for Part {
    fn stable_ptr(&self) -> *const u8 {
        self.bytes().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.bytes().len()
    }

    fn bytes_total(&self) -> usize {
        self.bytes().len()
    }
}
