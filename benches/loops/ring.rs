//! The loop on our own ring, as our worker uses it: the floor under its figures.
//!
//! Completions enter, receives and sends leave. Invariant: one receive and one send are in flight
//! per peer; a send that was short goes on where it stopped.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use seedring::ring::{Batch, Config, Driver, Event, Handle, Lease, Op, Pool, Tag, Uring};
use seedring::sys::map::Mapping;
use seedring::sys::net;
use seedring::wire::block_header;
use slab::Slab;

use super::{Served, Session};

/// The tag of the accept; others are the number of a peer.
const ACCEPT: Tag = Tag(u64::MAX - 1);

/// Set in the tag of a send.
const SEND: u64 = 1 << 32;

/// One peer.
struct Peer {
    socket: Handle,
    session: Session,
    /// What has to be said before the next block.
    answer: Vec<u8>,
    /// The batch on its way, and how much of it is out.
    sending: Option<(Rc<Batch>, usize)>,
    receiving: bool,
    closed: bool,
}

/// Serves until the process is killed.
pub(super) fn run(served: Served, listen: SocketAddr, data: &Path) -> io::Result<()> {
    let file = OwnedFd::from(File::open(data)?);
    let mapping = Mapping::new(&file, served.geometry.total_len())?;
    let driver = Uring::new(&Config::default()).map_err(io::Error::other)?;
    let lease = Lease::Mapped(Rc::new(Arc::new(mapping)));
    let mut server = Server { served, lease, driver, peers: Slab::new() };
    let listener = Rc::new(net::listen(&listen)?);
    server.driver.push(ACCEPT, Op::Accept { listener: Rc::clone(&listener) });
    let mut events = VecDeque::new();
    loop {
        server.driver.wait(None, &mut events)?;
        while let Some(event) = events.pop_front() {
            server.handle(event, &listener)?;
        }
    }
}

struct Server {
    served: Served,
    lease: Lease,
    driver: Uring,
    peers: Slab<Peer>,
}

impl Server {
    fn handle(&mut self, event: Event, listener: &Handle) -> io::Result<()> {
        match event {
            Event::Accepted { result, last, .. } => {
                if last {
                    self.driver.push(ACCEPT, Op::Accept { listener: Rc::clone(listener) });
                }
                self.add(Rc::new(result?));
            }
            Event::Received { tag: Tag(tag), result } => {
                let key = usize::try_from(tag).map_err(io::Error::other)?;
                let peer = &mut self.peers[key];
                peer.receiving = false;
                match result {
                    Ok(bytes) if !bytes.is_empty() => {
                        let handled = peer.session.handle(&bytes, &mut peer.answer);
                        peer.closed |= handled.is_err();
                        drop(bytes);
                    }
                    // No buffer was left: it comes back with this turn.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                    _ => peer.closed = true,
                }
                self.go_on(key);
            }
            Event::Sent { tag: Tag(tag), result, .. } => {
                let key = usize::try_from(tag & !SEND).map_err(io::Error::other)?;
                let peer = &mut self.peers[key];
                if let Some((batch, from)) = peer.sending.take() {
                    match result {
                        Ok(count) if from + count < batch.len() => {
                            peer.sending = Some((batch, from + count));
                            self.push_send(key);
                        }
                        Ok(_) => {}
                        Err(_) => peer.closed = true,
                    }
                }
                self.go_on(key);
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, socket: Handle) {
        let key = self.peers.insert(Peer {
            socket,
            session: Session::new(self.served),
            answer: Vec::new(),
            sending: None,
            receiving: false,
            closed: false,
        });
        self.go_on(key);
    }

    /// Receives and sends again, or forgets a peer that is gone.
    fn go_on(&mut self, key: usize) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.closed {
            // What is in flight ends by itself once the socket is shut down.
            let _ = net::shutdown(std::os::fd::AsFd::as_fd(&*peer.socket));
            if !peer.receiving && peer.sending.is_none() {
                self.peers.remove(key);
            }
            return;
        }
        if !peer.receiving {
            peer.receiving = true;
            let socket = Rc::clone(&peer.socket);
            self.driver.push(Tag(key as u64), Op::Recv { socket, pool: Pool::Small });
        }
        if peer.sending.is_some() || (peer.answer.is_empty() && peer.session.due.is_empty()) {
            return;
        }
        let mut batch = Batch::new();
        let mut push = || {
            batch.push_bytes(&peer.answer)?;
            peer.answer.clear();
            for block in peer.session.next_batch() {
                batch.push_bytes(&block_header(block))?;
                batch.push_lease(&self.lease, self.served.offset(block), block.len as usize)?;
            }
            Ok::<(), seedring::ring::BatchError>(())
        };
        push().expect("a batch of 1 MiB has room for its parts");
        peer.sending = Some((Rc::new(batch), 0));
        self.push_send(key);
    }

    fn push_send(&mut self, key: usize) {
        let peer = &self.peers[key];
        let Some((batch, from)) = &peer.sending else { return };
        let op = Op::Send {
            socket: Rc::clone(&peer.socket),
            batch: Rc::clone(batch),
            from: *from,
            zero_copy: false,
        };
        self.driver.push(Tag(SEND | key as u64), op);
    }
}
