//! The HTTP server: metrics and health, and the place where remote control will live.
//!
//! Requests enter, short answers leave: `GET /metrics` (Prometheus text), `GET /healthz/live` (200
//! while the control thread turns), `GET /healthz/ready` (503 until the server serves), 404
//! elsewhere.
//!
//! Metrics and health need no password: they hold no names, and the server listens on loopback
//! unless told otherwise. Against DNS rebinding a loopback listener answers 421 to a `Host` that is
//! a name other than `localhost`: a page in the operator's browser can make its own name point
//! here, but it cannot choose the name away. Other listeners do not look at the name, since
//! scrapers use whatever name their network gives.
//!
//! Invariant: connections, headers, bodies and time are bounded ([`CONNECTION_COUNT_MAX`],
//! [`BODY_LEN_MAX`], [`REQUEST_TIME_MAX`]), and no handler waits for a disk.

mod guard;

pub use self::guard::{CONNECTION_COUNT_MAX, REQUEST_TIME_MAX};

use std::future::IntoFuture as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use self::guard::GuardedListener;
use crate::metrics::{CONTENT_TYPE, HttpCode, HttpPath, Registry};

/// Bytes that the body of a request may have.
pub const BODY_LEN_MAX: u64 = 1024 * 1024;
/// After a stop, requests that are under way get this long.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// What the handlers answer from. Clones share it.
#[derive(Clone)]
pub struct Service {
    /// What `/metrics` shows, and where requests are counted.
    pub registry: Registry,
    /// Whether the server serves; `/healthz/ready` says 503 until then.
    pub ready: Arc<AtomicBool>,
}

/// A listening server that does not answer yet.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Http {
    /// Listens on `addr`; port 0 takes a free one. Needs a tokio runtime with IO and time.
    ///
    /// # Errors
    /// Whatever the system says, such as that the port is taken.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// The address with the port that was taken.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until `stop` is done, then lets requests under way end, for [`STOP_TIME_MAX`]. Runs
    /// on the thread that alone writes the process cells of the registry.
    ///
    /// # Errors
    /// If the listener fails for good.
    pub async fn serve(
        self,
        service: Service,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let gate = Gate { service: service.clone(), loopback: self.addr.ip().is_loopback() };
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz/live", get(async || "live\n"))
            .route("/healthz/ready", get(ready))
            .fallback(async || (StatusCode::NOT_FOUND, "there is nothing here\n"))
            .with_state(service)
            .layer(from_fn_with_state(gate, admit));
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let stop = async move {
            stop.await;
            drop(stopping);
        };
        let serve = axum::serve(GuardedListener::new(self.listener), router)
            .with_graceful_shutdown(stop)
            .into_future();
        let overtime = async {
            // The channel closes when the stop begins.
            let _ = stopped.await;
            tokio::time::sleep(STOP_TIME_MAX).await;
        };
        tokio::select! {
            ended = serve => ended,
            () = overtime => Ok(()),
        }
    }
}

async fn metrics(State(service): State<Service>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], service.registry.render()).into_response()
}

async fn ready(State(service): State<Service>) -> (StatusCode, &'static str) {
    if service.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready yet\n")
    }
}

/// What is decided before any handler sees a request.
#[derive(Clone)]
struct Gate {
    service: Service,
    loopback: bool,
}

async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let path = match request.uri().path() {
        "/metrics" => HttpPath::Metrics,
        "/healthz/live" => HttpPath::Live,
        "/healthz/ready" => HttpPath::Ready,
        "/transmission/rpc" => HttpPath::TransmissionRpc,
        _ => HttpPath::Other,
    };
    let response = if gate.loopback && !is_local_host(request.headers()) {
        (StatusCode::MISDIRECTED_REQUEST, "this name does not lead here\n").into_response()
    } else if body_len(request.headers()) > BODY_LEN_MAX {
        (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n").into_response()
    } else {
        next.run(request).await
    };
    let code = match response.status().as_u16() {
        200 => HttpCode::Ok,
        400 => HttpCode::BadRequest,
        404 => HttpCode::NotFound,
        405 => HttpCode::MethodNotAllowed,
        409 => HttpCode::Conflict,
        413 => HttpCode::TooLarge,
        421 => HttpCode::Misdirected,
        503 => HttpCode::Unavailable,
        _ => HttpCode::Other,
    };
    gate.service.registry.process().http_requests[(path, code)].add(1);
    response
}

/// Whether `Host` is an address or `localhost`, with or without a port. Without the header it is
/// no browser.
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let Some(authority) = authority else { return false };
    let name = authority.host();
    let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let name = bracketed.unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn body_len(headers: &HeaderMap) -> u64 {
    let len = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok());
    len.and_then(|len| len.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
