//! What the long-running commands share: the runtime of the control thread, signals, the line that
//! says that the server is ready.

use std::future::Future;
use std::net::SocketAddr;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, fail};

/// Runs a command on the control thread's runtime; its error is its one sentence on stderr.
pub(super) fn block_on(command: impl Future<Output = Result<Exit, String>>) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(command);
            // A thread that hangs on a disk must not hold the end up.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(format!("cannot start: {error}")),
    };
    result.unwrap_or_else(|sentence| fail(Exit::Failure, sentence))
}

/// The line that programs wait for (design: `ready peer=ADDR:PORT http=ADDR:PORT`).
pub(super) fn ready_line(peer: SocketAddr, http: Option<SocketAddr>) -> String {
    let http = http.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
    format!("ready peer={peer} http={http}")
}

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over from the system's defaults.
    pub(super) fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot take signals: {error}"));
        let interrupt = listen(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: listen(SignalKind::terminate())? })
    }

    /// The exit code of the next signal.
    pub(super) async fn next(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }

    /// From now on a signal ends the process at once.
    pub(super) fn end_at_next(mut self) {
        tokio::spawn(async move {
            let exit = self.next().await;
            std::process::exit(i32::from(exit as u8));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_what_programs_wait_for() {
        let peer = "127.0.0.1:51413".parse().unwrap();
        let http = "[::1]:9091".parse().unwrap();
        assert_eq!(ready_line(peer, None), "ready peer=127.0.0.1:51413 http=-");
        assert_eq!(ready_line(peer, Some(http)), "ready peer=127.0.0.1:51413 http=[::1]:9091");
    }
}
