//! The load: many peers that fetch and throw away.
//!
//! A plan enters; what was served leaves. Each connection comes from a loopback address and with a
//! peer id of its own, keeps its number of requests in flight, and asks for random pieces, block
//! after block inside a piece. All of them live on one thread and receive into one buffer, so that
//! the load costs as little of its core as it can. Invariant: of the pieces that are sampled every
//! byte is compared with what it must be; a block that was not asked for counts as wrong.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::{Duration, Instant};

use seedring::mse::{Ciphers, Initiator, Policy, PrivateKey};
use seedring::sys::{clock, process};
use seedring::units::{Block, Geometry, InfoHash, PeerId, PieceIndex};
use seedring::wire::{self, Decoder, Handshake, Incoming, Limits, Message};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio::time;

use crate::ground::{Content, Ground};

/// One piece in so many is compared byte by byte.
pub(crate) const VERIFY_ONE_IN: u32 = 64;

/// Most connections of one load: what the loopback addresses below are good for.
pub(crate) const CONNECTIONS_MAX: usize = 50_000;

/// Bytes that one receive takes at most.
const RECEIVE_LEN: usize = 256 * 1024;

/// Connections that are opened at the same time: below the backlog of every program.
const CONNECTING_MAX: usize = 64;

/// How long one handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long all handshakes may take together.
const HANDSHAKES_TIMEOUT: Duration = Duration::from_secs(30);

/// Random pieces that are looked at for one of which nothing is in flight.
const DRAWS_MAX: usize = 32;

/// How long slots may take after that: some programs give them every ten seconds.
const SLOTS_TIMEOUT: Duration = Duration::from_secs(12);

/// From the last slot to the measurement: windows grow.
const WARM_UP: Duration = Duration::from_secs(1);

/// The reserved bits of a peer with the Fast extension (BEP 6) and nothing else.
pub(crate) const RESERVED: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 4];

/// What to ask of a seeder.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where it listens.
    pub(crate) target: SocketAddr,
    /// Number of peers, at most [`CONNECTIONS_MAX`].
    pub(crate) connections: usize,
    /// Requests that each keeps in flight.
    pub(crate) depth: usize,
    /// Whether the streams are under RC4.
    pub(crate) is_encrypted: bool,
    /// Bytes per second that each asks for at most.
    pub(crate) rate: Option<u64>,
    /// How long is measured.
    pub(crate) window: Duration,
    /// Look for data without ever sleeping, so that the seeder need not wake this core.
    pub(crate) spin: bool,
    /// The core of the load.
    pub(crate) core: usize,
}

/// What was measured, all of it in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Bytes of blocks that arrived whole.
    pub(crate) bytes: u64,
    /// Length of the window.
    pub(crate) elapsed: Duration,
    /// Processor time of the seeder.
    pub(crate) seeder_cpu: Duration,
    /// Processor time of the load.
    pub(crate) load_cpu: Duration,
    /// Connections that got blocks.
    pub(crate) served: usize,
    /// Blocks that were compared, since the start.
    pub(crate) verified: u64,
    /// Blocks that were not what they must be, or were not asked for, since the start.
    pub(crate) wrong: u64,
}

/// Runs the load on a thread of its own; `seeder_cpu` is asked at both ends of the window.
pub(crate) fn run(
    ground: &Ground,
    plan: &Plan,
    seeder_cpu: impl Fn() -> io::Result<Duration> + Sync,
) -> io::Result<Outcome> {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            process::pin_thread(plan.core)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, measure(Shared::new(ground, plan), &seeder_cpu))
        });
        load.join().map_err(|_| io::Error::other("the load died"))?
    })
}

/// What the peers of one load share.
struct Shared {
    content: Content,
    geometry: Geometry,
    info_hash: InfoHash,
    plan: Plan,
    buffer: RefCell<Vec<u8>>,
    connecting: Semaphore,
    /// Peers whose handshake is over, well or not.
    settled: Cell<usize>,
    /// Bytes of whole blocks, by peer.
    received: Vec<Cell<u64>>,
    verified: Cell<u64>,
    wrong: Cell<u64>,
}

impl Shared {
    fn new(ground: &Ground, plan: &Plan) -> Rc<Self> {
        Rc::new(Self {
            content: ground.content.clone(),
            geometry: ground.geometry,
            info_hash: ground.info_hash,
            plan: plan.clone(),
            buffer: RefCell::new(vec![0; RECEIVE_LEN]),
            connecting: Semaphore::new(CONNECTING_MAX),
            settled: Cell::new(0),
            received: vec![Cell::new(0); plan.connections],
            verified: Cell::new(0),
            wrong: Cell::new(0),
        })
    }
}

async fn measure(
    shared: Rc<Shared>,
    seeder_cpu: &impl Fn() -> io::Result<Duration>,
) -> io::Result<Outcome> {
    let mut tasks = JoinSet::new();
    for index in 0..shared.plan.connections {
        tasks.spawn_local(run_peer(Rc::clone(&shared), index));
    }
    if shared.plan.spin {
        tasks.spawn_local(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
    }
    // Who is not that far by then is missed in what is served.
    let all = shared.plan.connections;
    until(HANDSHAKES_TIMEOUT, || shared.settled.get() == all).await;
    until(SLOTS_TIMEOUT, || shared.received.iter().all(|bytes| bytes.get() > 0)).await;
    time::sleep(WARM_UP).await;

    let before: Vec<u64> = shared.received.iter().map(Cell::get).collect();
    let (started, cpu_before, own_before) = (clock::now(), seeder_cpu()?, own_cpu()?);
    time::sleep(shared.plan.window).await;
    let (elapsed, cpu_after, own_after) = (clock::now() - started, seeder_cpu()?, own_cpu()?);
    let grown: Vec<u64> =
        shared.received.iter().zip(&before).map(|(after, before)| after.get() - before).collect();
    Ok(Outcome {
        bytes: grown.iter().sum(),
        elapsed,
        seeder_cpu: cpu_after.saturating_sub(cpu_before),
        load_cpu: own_after.saturating_sub(own_before),
        served: grown.iter().filter(|&&bytes| bytes > 0).count(),
        verified: shared.verified.get(),
        wrong: shared.wrong.get(),
    })
}

/// Waits for a condition, but not for ever.
async fn until(timeout: Duration, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    // What is missing then is seen in the figures.
    let _ = time::timeout(timeout, wait).await;
}

fn own_cpu() -> io::Result<Duration> {
    process::thread_usage().map(|usage| usage.user + usage.system)
}

/// The address that peer `index` comes from: 127.1.0.1 and on.
fn source(index: usize) -> SocketAddr {
    let offset = u32::try_from(index + 1).expect("limited by CONNECTIONS_MAX");
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + offset);
    SocketAddrV4::new(ip, 0).into()
}

/// A peer id that no other peer of the bench has.
pub(crate) fn peer_id(kind: u8, index: usize) -> PeerId {
    let mut id = *b"-XX0000-............";
    id[8] = kind;
    id[12..].copy_from_slice(&(index as u64).to_be_bytes());
    PeerId(id)
}

/// One peer, until its seeder closes or the load ends.
async fn run_peer(shared: Rc<Shared>, index: usize) -> io::Result<()> {
    let greeted = {
        let _permit = shared.connecting.acquire().await.map_err(io::Error::other)?;
        let greeted = time::timeout(HANDSHAKE_TIMEOUT, greet(&shared, index)).await;
        shared.settled.set(shared.settled.get() + 1);
        greeted
    };
    let Greeted { mut stream, fast, mut ciphers } = greeted??;
    let mut decoder = Decoder::new(Limits::new(shared.geometry.piece_count()));
    let mut peer = Peer::new(Rc::clone(&shared), index, fast);
    loop {
        stream.readable().await?;
        let count = match stream.try_read(&mut shared.buffer.borrow_mut()) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if let Some(ciphers) = &mut ciphers {
            ciphers.incoming.apply(&mut shared.buffer.borrow_mut()[..count]);
        }
        let handle = |incoming: Incoming<'_>| peer.handle(incoming);
        decoder.decode_all(&shared.buffer.borrow()[..count], handle).map_err(io::Error::other)?;
        let ahead = peer.ahead();
        if ahead > Duration::ZERO {
            time::sleep(ahead).await;
        }
        peer.ask();
        if let Some(ciphers) = &mut ciphers {
            ciphers.outgoing.apply(&mut peer.out);
        }
        stream.write_all(&peer.out).await?;
        peer.out.clear();
    }
}

/// A connection after its handshakes.
struct Greeted {
    stream: TcpStream,
    /// Whether both sides have the Fast extension.
    fast: bool,
    /// Those of an encrypted stream.
    ciphers: Option<Box<Ciphers>>,
}

/// Connects and shakes hands.
async fn greet(shared: &Shared, index: usize) -> io::Result<Greeted> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(source(index))?;
    socket.set_nodelay(true)?;
    let mut stream = socket.connect(shared.plan.target).await?;
    let peer_id = peer_id(b'L', index);
    let ours = Handshake { reserved: RESERVED, info_hash: shared.info_hash, peer_id };
    let mut ciphers = None;
    if shared.plan.is_encrypted {
        ciphers = exchange(&mut stream, shared.info_hash, &ours).await?;
    } else {
        stream.write_all(&ours.encode()).await?;
    }
    let mut theirs = [0; Handshake::LEN];
    stream.read_exact(&mut theirs).await?;
    if let Some(ciphers) = &mut ciphers {
        ciphers.incoming.apply(&mut theirs);
    }
    let fast = Handshake::parse(&theirs).map_err(io::Error::other)?.supports_fast();
    let mut hello = Vec::new();
    if fast {
        wire::encode(&Message::HaveNone, &mut hello);
    }
    wire::encode(&Message::Interested, &mut hello);
    if let Some(ciphers) = &mut ciphers {
        ciphers.outgoing.apply(&mut hello);
    }
    stream.write_all(&hello).await?;
    Ok(Greeted { stream, fast, ciphers })
}

/// The exchange before an encrypted stream, which carries our handshake.
async fn exchange(
    stream: &mut TcpStream,
    info_hash: InfoHash,
    ours: &Handshake,
) -> io::Result<Option<Box<Ciphers>>> {
    let key = PrivateKey::new(std::array::from_fn(|_| fastrand::u8(..)));
    let first = ours.encode().to_vec();
    let mut exchange = Initiator::new(Policy::Require, info_hash, key, Vec::new(), first);
    // Byte by byte: what follows the exchange is the stream's.
    let mut byte = [0];
    loop {
        if let Some(job) = exchange.poll_job() {
            exchange.handle_answer(job.run()).map_err(io::Error::other)?;
        }
        let out = exchange.poll_transmit();
        stream.write_all(&out).await?;
        if let Some(established) = exchange.poll_established() {
            return Ok(established.ciphers);
        }
        if !exchange.is_computing() {
            stream.read_exact(&mut byte).await?;
            exchange.handle_bytes(&byte).map_err(io::Error::other)?;
        }
    }
}

/// What one peer wants.
struct Peer {
    shared: Rc<Shared>,
    index: usize,
    fast: bool,
    rng: fastrand::Rng,
    is_choked: bool,
    /// Asked for and not come yet, in the order of asking.
    asked: VecDeque<Block>,
    /// The piece that is being asked for, and its next block.
    cursor: (PieceIndex, u32),
    /// Requests to send.
    out: Vec<u8>,
    started: Instant,
    /// Bytes asked for since then.
    asked_len: u64,
}

impl Peer {
    fn new(shared: Rc<Shared>, index: usize, fast: bool) -> Self {
        Self {
            shared,
            index,
            fast,
            rng: fastrand::Rng::with_seed(index as u64),
            is_choked: true,
            asked: VecDeque::new(),
            cursor: (PieceIndex(0), u32::MAX),
            out: Vec::new(),
            started: clock::now(),
            asked_len: 0,
        }
    }

    /// How far what was asked for is ahead of the plan's rate.
    fn ahead(&self) -> Duration {
        let Some(rate) = self.shared.plan.rate else { return Duration::ZERO };
        let due = Duration::from_secs_f64(self.asked_len as f64 / rate as f64);
        due.saturating_sub(clock::now() - self.started)
    }

    fn handle(&mut self, incoming: Incoming<'_>) {
        match incoming {
            Incoming::Payload { block, offset, data } => self.handle_data(block, offset, data),
            Incoming::Message(Message::Unchoke) => self.is_choked = false,
            Incoming::Message(Message::Choke) => {
                self.is_choked = true;
                if !self.fast {
                    // Without the Fast extension a choke drops what was asked for.
                    self.asked.clear();
                }
            }
            Incoming::Message(Message::Reject(block)) => {
                self.take_asked(block);
            }
            Incoming::Message(_) => {}
        }
    }

    fn handle_data(&mut self, block: Block, offset: u32, data: &[u8]) {
        let shared = Rc::clone(&self.shared);
        let is_last = offset as usize + data.len() == block.len as usize;
        let is_sampled = block.piece.0.is_multiple_of(VERIFY_ONE_IN);
        if is_sampled && shared.geometry.contains(block) {
            let expected = shared.content.block(&shared.geometry, block);
            if expected[offset as usize..][..data.len()] != *data {
                shared.wrong.set(shared.wrong.get() + 1);
            }
        }
        if !is_last {
            return;
        }
        if is_sampled {
            shared.verified.set(shared.verified.get() + 1);
        }
        if self.take_asked(block) {
            let received = &shared.received[self.index];
            received.set(received.get() + u64::from(block.len));
        } else {
            shared.wrong.set(shared.wrong.get() + 1);
        }
    }

    /// Whether the block was asked for; it no longer is then.
    fn take_asked(&mut self, block: Block) -> bool {
        let at = self.asked.iter().position(|&asked| asked == block);
        at.is_some_and(|at| self.asked.remove(at).is_some())
    }

    /// Asks until as much is in flight as should be.
    fn ask(&mut self) {
        while !self.is_choked && self.asked.len() < self.shared.plan.depth {
            if let Some(block) = self.shared.geometry.block(self.cursor.0, self.cursor.1) {
                self.cursor.1 += 1;
                self.asked_len += u64::from(block.len);
                wire::encode(&Message::Request(block), &mut self.out);
                self.asked.push_back(block);
            } else if !self.choose_piece() {
                return;
            }
        }
    }

    /// Moves to a random piece of which nothing is in flight; false if none was found.
    fn choose_piece(&mut self) -> bool {
        let piece_count = self.shared.geometry.piece_count();
        for _ in 0..DRAWS_MAX {
            let piece = PieceIndex(self.rng.u32(..piece_count));
            if self.asked.iter().all(|block| block.piece != piece) {
                self.cursor = (piece, 0);
                return true;
            }
        }
        false
    }
}
