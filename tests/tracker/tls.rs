//! HTTPS trackers whose certificates are wrong: nothing is announced to them.
//!
//! The certificates are made by `openssl` for each run. The authority that is trusted is named to
//! a process of its own, for the whole process shares it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use seedring::sys::clock;

use super::{Failure, WALL, announce};

/// Set for the inner process: where the certificates are.
const INSIDE: &str = "SEEDRING_TEST_CERTIFICATES";

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .expect("the program `openssl` is needed; `tests/run.sh` installs it");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority of a name of its own.
fn make_authority(dir: &Path, name: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(
        dir,
        &format!("req -x509 {key} -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}"),
    );
}

/// A certificate for `ip` by the authority `by`, good for `days`.
fn make_leaf(dir: &Path, name: &str, by: &str, ip: &str, days: u32) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    std::fs::write(dir.join("leaf.ext"), format!("subjectAltName=IP:{ip}\n")).unwrap();
    openssl(dir, &format!("req {key} -keyout {name}.key -out leaf.csr -subj /CN={name}"));
    let signed_by = format!("-CA {by}.pem -CAkey {by}.key -set_serial 2 -days {days}");
    openssl(dir, &format!("x509 -req -in leaf.csr {signed_by} -extfile leaf.ext -out {name}.pem"));
}

/// Answers announces over TLS with the certificate `name`, as long as the process lasts.
fn serve(dir: &Path, name: &str) -> SocketAddr {
    let certificate = CertificateDer::from_pem_file(dir.join(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = Stream::new(&mut connection, &mut stream);
            let mut request = vec![0; 4096];
            // Whoever does not like the certificate goes away here.
            if tls.read(&mut request).is_ok_and(|len| len > 0) {
                let _gone = tls.write_all(
                    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nde",
                );
                let _gone = tls.flush();
            }
        }
    });
    at
}

#[tokio::test]
async fn only_good_certificates_are_announced_to() {
    let Some(dir) = std::env::var_os(INSIDE).map(PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        make_authority(dir.path(), "trusted");
        make_authority(dir.path(), "other");
        let here = "127.0.0.1";
        make_leaf(dir.path(), "good", "trusted", here, 2);
        make_leaf(dir.path(), "unknown", "other", here, 2);
        make_leaf(dir.path(), "elsewhere", "trusted", "127.0.0.9", 2);
        make_leaf(dir.path(), "expired", "trusted", here, 0);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tls::only_good_certificates_are_announced_to", "--nocapture"])
            .env("SSL_CERT_FILE", dir.path().join("trusted.pem"))
            .env(INSIDE, dir.path())
            .status();
        assert!(status.unwrap().success());
        return;
    };
    let url = |name| format!("https://{}/announce?k=secret", serve(&dir, name));
    announce(&url("good")).await.unwrap();
    for name in ["unknown", "elsewhere"] {
        let failed = announce(&url(name)).await.unwrap_err();
        assert!(matches!(failed, Failure::Tls(_)), "{name}: {failed}");
        assert!(!failed.to_string().contains("secret"), "{failed}");
    }
    // It is good within the second in which it was made.
    let (expired, deadline) = (url("expired"), clock::now() + WALL);
    let failed = loop {
        assert!(clock::now() < deadline, "it never expires");
        if let Err(failed) = announce(&expired).await {
            break failed;
        }
    };
    assert!(matches!(&failed, Failure::Tls(why) if why.contains("expired")), "{failed}");
}
