//! The loop on tokio: one current-thread runtime, one task per peer, epoll beneath.
//!
//! Sockets enter, vectored writes leave. Invariant: while a batch is on its way its peer is not
//! read; its requests wait in the socket.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::path::Path;

use seedring::units::Block;
use seedring::wire::{BLOCK_HEADER_LEN, block_header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::mapped::map;
use super::{RECEIVE_LEN, Served, Session};

/// Serves until the process is killed.
pub(super) fn run(served: Served, listen: SocketAddr, data: &Path) -> io::Result<()> {
    let data = map(data)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                // Peers come and go; a bench has nobody to tell.
                let _ = serve(stream, served, data).await;
            });
        }
    })
}

async fn serve(mut stream: TcpStream, served: Served, data: &'static [u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut session = Session::new(served);
    let (mut buffer, mut answer) = (vec![0; RECEIVE_LEN], Vec::new());
    let mut headers: Vec<(Block, [u8; BLOCK_HEADER_LEN])> = Vec::new();
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        session.handle(&buffer[..count], &mut answer)?;
        stream.write_all(&answer).await?;
        answer.clear();
        while !session.due.is_empty() {
            headers.clear();
            headers.extend(session.next_batch().map(|block| (block, block_header(block))));
            send(&stream, &headers, |block| &data[served.offset(block)..][..block.len as usize])
                .await?;
            // What was asked for meanwhile joins the next batch.
            match stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => session.handle(&buffer[..count], &mut answer)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

async fn send(
    stream: &TcpStream,
    headers: &[(Block, [u8; BLOCK_HEADER_LEN])],
    bytes_of: impl Fn(Block) -> &'static [u8],
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(2 * headers.len());
    for (block, header) in headers {
        slices.extend([IoSlice::new(header), IoSlice::new(bytes_of(*block))]);
    }
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match stream.try_write_vectored(left) {
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
