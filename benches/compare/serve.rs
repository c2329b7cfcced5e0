//! The other side of a fetch: minimal seeders that are never what is waited for.
//!
//! A number of them enters; their addresses leave, and then whoever connects is served. They share
//! one thread on the load's core, say that they have everything, choke nobody, and answer all
//! requests that have arrived in one vectored write. The data comes from the content's table, so
//! that their own cost stays small. Invariant: every byte that is served is right.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use seedring::sys::process;
use seedring::units::{Bitfield, Block, Geometry, InfoHash, PeerId};
use seedring::wire::{
    self, BLOCK_HEADER_LEN, Decoder, Handshake, Incoming, Limits, Message, block_header,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::ground::{Content, Ground};
use crate::load::{RESERVED, peer_id};

/// Blocks that go into one write: 1 MiB.
const BATCH_MAX: usize = 64;

/// Requests of one peer that are kept; more close the connection.
const QUEUE_MAX: usize = 8192;

/// Longest block that may be asked for.
const REQUEST_LEN_MAX: u32 = 128 * 1024;

/// Bytes that one receive takes at most: some thousand requests.
const RECEIVE_LEN: usize = 64 * 1024;

/// Seeders that run until this is dropped.
#[derive(Debug)]
pub(crate) struct Seeders {
    /// Where each of them listens: addresses of their own, on the loopback.
    pub(crate) addrs: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Seeders {
    /// Starts `count` seeders on one core.
    pub(crate) fn start(ground: &Ground, count: usize, core: usize) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let (content, geometry, info_hash) =
            (ground.content.clone(), ground.geometry, ground.info_hash);
        let thread = std::thread::spawn(move || {
            process::pin_thread(core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            LocalSet::new().block_on(&runtime, async {
                let mut addrs = Vec::with_capacity(count);
                for index in 0..count {
                    let listener = TcpListener::bind(address(index)).await?;
                    addrs.push(listener.local_addr()?);
                    let peer_id = peer_id(b'S', index);
                    let shared = Shared { content: content.clone(), geometry, info_hash, peer_id };
                    tokio::task::spawn_local(accept(listener, Rc::new(shared)));
                }
                tell.send(addrs).map_err(io::Error::other)?;
                // Dropping the sender is the signal.
                let _ = stopped.await;
                Ok(())
            })
        });
        match told.recv() {
            Ok(addrs) => Ok(Self { addrs, stop: Some(stop), thread: Some(thread) }),
            Err(_) => match thread.join() {
                Ok(result) => Err(result.err().unwrap_or_else(|| io::Error::other("no address"))),
                Err(_) => Err(io::Error::other("the seeders died")),
            },
        }
    }
}

impl Drop for Seeders {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed, and its fetch has failed.
            let _ = thread.join();
        }
    }
}

/// The address of seeder `index`: 127.2.0.1 and on, at any free port.
fn address(index: usize) -> SocketAddr {
    let last = u8::try_from(index % 250).expect("below 250") + 1;
    (Ipv4Addr::new(127, 2, 0, last), 0).into()
}

/// What the connections of one seeder share.
struct Shared {
    content: Content,
    geometry: Geometry,
    info_hash: InfoHash,
    peer_id: PeerId,
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            if let Err(error) = serve(stream, &shared).await {
                eprintln!("a fetching peer was closed: {error}");
            }
        });
    }
}

/// Serves one peer until it goes away.
async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut theirs = [0; Handshake::LEN];
    stream.read_exact(&mut theirs).await?;
    let theirs = Handshake::parse(&theirs).map_err(io::Error::other)?;
    stream.write_all(&greeting(shared, theirs.supports_fast())).await?;

    let mut decoder = Decoder::new(Limits::new(shared.geometry.piece_count()));
    let mut queue: VecDeque<Block> = VecDeque::new();
    let mut buffer = vec![0; RECEIVE_LEN];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let handle = |incoming: Incoming<'_>| match incoming {
                    Incoming::Message(Message::Request(block)) => queue.push_back(block),
                    Incoming::Message(Message::Cancel(block)) => {
                        queue.retain(|queued| *queued != block);
                    }
                    _ => {}
                };
                decoder.decode_all(&buffer[..count], handle).map_err(io::Error::other)?;
            }
            // A client that is done may close with data unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        let is_fair =
            |block: &Block| block.len <= REQUEST_LEN_MAX && shared.geometry.contains(*block);
        if queue.len() > QUEUE_MAX || !queue.iter().all(is_fair) {
            return Err(io::Error::other("requests that no client should make"));
        }
        while !queue.is_empty() {
            let count = queue.len().min(BATCH_MAX);
            match send(&stream, shared, queue.drain(..count)).await {
                Ok(()) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn greeting(shared: &Shared, fast: bool) -> Vec<u8> {
    let (info_hash, peer_id) = (shared.info_hash, shared.peer_id);
    let mut bytes = Handshake { reserved: RESERVED, info_hash, peer_id }.encode().to_vec();
    if fast {
        wire::encode(&Message::HaveAll, &mut bytes);
    } else {
        let bits = Bitfield::all(shared.geometry.piece_count()).to_wire();
        wire::encode(&Message::Bitfield(&bits), &mut bytes);
    }
    wire::encode(&Message::Unchoke, &mut bytes);
    bytes
}

async fn send(
    stream: &TcpStream,
    shared: &Shared,
    blocks: impl Iterator<Item = Block>,
) -> io::Result<()> {
    let blocks: Vec<([u8; BLOCK_HEADER_LEN], &[u8])> = blocks
        .map(|block| (block_header(block), shared.content.block(&shared.geometry, block)))
        .collect();
    let mut slices = Vec::with_capacity(2 * blocks.len());
    for (header, data) in &blocks {
        slices.extend([IoSlice::new(header), IoSlice::new(data)]);
    }
    let mut left = &mut slices[..];
    while !left.is_empty() {
        stream.writable().await?;
        match stream.try_write_vectored(left) {
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
