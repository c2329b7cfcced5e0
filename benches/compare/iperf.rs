//! iperf3 on the same cores: what moving bytes costs without a file and without a protocol.
//!
//! A number of streams enters; cost and rate leave. Its sender is pinned like a seeder, its
//! receiver like the load. Its buffer stays in the processor's cache, which file data does not.

use std::io;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use seedring::sys::clock;

use crate::common::Spread;
use crate::process::{Running, first_line, pause, tail};
use crate::stage::Stage;

/// How many streams are run, each in a row of its own.
pub(crate) const COUNTS: [u32; 2] = [1, 8];

/// How long the receiver may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

const GIB: f64 = (1u64 << 30) as f64;

/// What one run of it said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    /// Processor seconds of the sender per GiB.
    cost: f64,
    /// GiB per second.
    rate: f64,
}

/// Its version, if it is installed.
pub(crate) fn version() -> Option<String> {
    first_line("iperf3", &["--version"])
}

/// Runs it once.
pub(crate) fn measure(stage: &Stage, count: u32) -> io::Result<Stream> {
    let scene = stage.scene(Vec::new())?;
    let (ip, port) = (scene.listen.ip().to_string(), scene.listen.port().to_string());
    let mut receiver = Command::new("iperf3");
    receiver.args(["-s", "-B", &ip, "-p", &port]);
    let mut receiver = Running::start(receiver, stage.load_core, &scene.dir.join("receiver"))?;
    let started = clock::now();
    while TcpStream::connect(scene.listen).is_err() {
        receiver.check_alive()?;
        if clock::now() - started > LISTEN_TIMEOUT {
            return Err(io::Error::other("iperf3 does not listen"));
        }
        pause();
    }
    let mut sender = Command::new("iperf3");
    sender.args(["-c", &ip, "-p", &port, "-P", &count.to_string(), "-l", "512K", "-J"]);
    sender.args(["-t", &stage.seconds.to_string()]);
    let sender = Running::start(sender, stage.core, &scene.dir.join("sender"))?;
    let ended = sender.finish(clock::now(), Duration::from_secs(stage.seconds + 30))?;
    let report: serde_json::Value =
        serde_json::from_str(&ended.output).map_err(|_| io::Error::other(tail(&ended.output)))?;
    let sum = &report["end"]["sum_sent"];
    match (sum["bytes"].as_f64(), sum["seconds"].as_f64()) {
        (Some(bytes), Some(seconds)) if bytes > 0.0 && seconds > 0.0 => {
            Ok(Stream { cost: ended.cpu.as_secs_f64() * GIB / bytes, rate: bytes / GIB / seconds })
        }
        _ => Err(io::Error::other(tail(&ended.output))),
    }
}

/// The row of one number of streams in the table of seeders; `None` without a figure.
pub(crate) fn row(count: u32, streams: &[io::Result<Stream>]) -> Option<Vec<String>> {
    let name = format!("iperf3, {count} stream{}", if count == 1 { "" } else { "s" });
    let cost = Spread::of(streams.iter().flatten().map(|it| it.cost))?;
    let rate = Spread::of(streams.iter().flatten().map(|it| it.rate))?;
    Some(vec![name, format!("{cost:.3}"), "–".into(), format!("{rate:.2}")])
}
