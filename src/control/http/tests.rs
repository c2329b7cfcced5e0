//! A raw client against the server, on loopback and free ports.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;

struct Running {
    addr: SocketAddr,
    service: Service,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<io::Result<()>>,
}

async fn start() -> Running {
    let http = Http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = http.addr();
    let service = Service { registry: Registry::new(1), ready: Arc::default() };
    let (stop, stopped) = oneshot::channel::<()>();
    let serve = http.serve(service.clone(), async {
        let _ = stopped.await;
    });
    Running { addr, service, stop: Some(stop), server: tokio::spawn(serve) }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test ends");
    });
}

async fn ask(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(addr: SocketAddr, path: &str) -> String {
    ask(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")).await
}

#[test]
fn it_answers_metrics_and_health() {
    run(async {
        let server = start().await;
        assert!(get(server.addr, "/healthz/live").await.starts_with("HTTP/1.1 200"));
        assert!(get(server.addr, "/healthz/ready").await.starts_with("HTTP/1.1 503"));
        server.service.ready.store(true, Ordering::Relaxed);
        assert!(get(server.addr, "/healthz/ready?x=1").await.starts_with("HTTP/1.1 200"));
        let missing = get(server.addr, "/../etc/passwd").await;
        assert!(missing.starts_with("HTTP/1.1 404") && missing.ends_with("nothing here\n"));
        let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        assert!(ask(server.addr, post).await.starts_with("HTTP/1.1 405"));
        let page = get(server.addr, "/metrics").await;
        assert!(page.starts_with("HTTP/1.1 200"));
        assert!(page.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        for (path, code, count) in [("/healthz/ready", "503", 1), ("other", "404", 1)] {
            let line = format!(
                "seedring_http_requests_total{{path=\"{path}\",code=\"{code}\"}} {count}\n"
            );
            assert!(page.contains(&line), "{line}");
        }
    });
}

#[test]
fn a_foreign_name_is_refused_on_loopback() {
    run(async {
        let server = start().await;
        let cases = [
            ("evil.example", "421"),
            ("evil.example:80", "421"),
            ("localhost.evil.example", "421"),
            ("127.0.0.1.evil.example:9091", "421"),
            ("localhost", "200"),
            ("LOCALHOST:9091", "200"),
            ("127.0.0.1:9091", "200"),
            ("[::1]:9091", "200"),
            ("[::1]", "200"),
        ];
        for (host, code) in cases {
            let request =
                format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = ask(server.addr, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{host}: {answer}");
        }
        let old = ask(server.addr, "GET /healthz/live HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    });
}

#[test]
fn oversized_requests_are_refused() {
    run(async {
        let server = start().await;
        let body = "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n";
        assert!(ask(server.addr, body).await.starts_with("HTTP/1.1 413"));
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        let header = format!("X-Filler: {}\r\n", "x".repeat(1000));
        let mut sent = 0;
        // The server closes at some point; a client that never stops must not be fed for ever.
        while sent < 10_000_000 && stream.write_all(header.as_bytes()).await.is_ok() {
            sent += header.len();
        }
        assert!(sent < 10_000_000);
        assert!(get(server.addr, "/healthz/live").await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn trickled_requests_are_cut_and_places_are_given_back() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let guarded = GuardedListener::with_limits(listener, 2, Duration::from_millis(300));
        let router: Router = Router::new().route("/", axum::routing::get(async || "here"));
        let server = tokio::spawn(axum::serve(guarded, router).into_future());
        let mut loris = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(addr).await.unwrap();
            stream.write_all(b"GET / HT").await.unwrap();
            loris.push(stream);
        }
        // Both places are taken; this one is answered once they have been cut.
        let answer = ask(addr, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("here"));
        for mut stream in loris {
            let mut rest = Vec::new();
            // Closed or reset, both are an end.
            let _ = stream.read_to_end(&mut rest).await;
        }
        server.abort();
    });
}

#[test]
fn it_stops_though_connections_are_open() {
    run(async {
        let mut server = start().await;
        let idle = TcpStream::connect(server.addr).await.unwrap();
        let mut half = TcpStream::connect(server.addr).await.unwrap();
        half.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        assert!(get(server.addr, "/healthz/live").await.starts_with("HTTP/1.1 200"));
        let begin = tokio::time::Instant::now();
        drop(server.stop.take());
        server.server.await.unwrap().unwrap();
        assert!(begin.elapsed() < 2 * STOP_TIME_MAX);
        drop((idle, half));
        assert!(TcpStream::connect(server.addr).await.is_err());
    });
}
