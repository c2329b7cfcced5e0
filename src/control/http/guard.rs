//! Connections that cannot be held for ever.
//!
//! Sockets enter, sockets with a deadline leave. Invariant: at most [`CONNECTION_COUNT_MAX`] are
//! open at a time (the kernel's backlog holds the rest), and one that does not bring its next
//! request, or does not take its answer, within [`REQUEST_TIME_MAX`] is closed, however slowly and
//! steadily it trickles.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections that are open at a time.
pub const CONNECTION_COUNT_MAX: usize = 256;
/// Time from the start of a connection, or from its last answer, to the end of the next request;
/// longer than the pause between two scrapes.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A listener that counts.
pub(super) struct GuardedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
    request_time_max: Duration,
}

impl GuardedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self::with_limits(listener, CONNECTION_COUNT_MAX, REQUEST_TIME_MAX)
    }

    pub(super) fn with_limits(
        listener: TcpListener,
        connection_count_max: usize,
        request_time_max: Duration,
    ) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connection_count_max)), request_time_max }
    }
}

impl Listener for GuardedListener {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        let places = Arc::clone(&self.places);
        let place = places.acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, addr)) => {
                    let time_max = self.request_time_max;
                    let deadline = Box::pin(sleep(time_max));
                    return (Guarded { stream, deadline, time_max, _place: place }, addr);
                }
                Err(error) => {
                    tracing::warn!(%error, "an HTTP connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with a deadline that only answers move.
pub(super) struct Guarded {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    time_max: Duration,
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn wrote<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Ok(_))) {
            let next = Instant::now() + self.time_max;
            self.deadline.as_mut().reset(next);
        }
        result
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let result = Pin::new(&mut self.stream).poll_write(context, buf);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
