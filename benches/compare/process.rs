//! Programs under measurement: started on one core, timed, ended by their id.
//!
//! A command enters; a running process, its processor time and its end leave. Invariant: nothing
//! outlives its [`Running`]: dropping it kills the process and waits for it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use seedring::sys::{clock, process};

/// Ticks per second of the times in `/proc` (USER_HZ, which Linux fixes for programs).
const TICKS_PER_SECOND: u64 = 100;

/// Fields of `/proc/PID/stat` behind the command's name, counted from the state: utime, stime.
const OWN_TIME: [usize; 2] = [11, 12];

/// The same for children that were waited for: cutime, cstime.
const CHILDREN_TIME: [usize; 2] = [13, 14];

/// How long one look at a condition is from the next.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whether it succeeded.
    pub(crate) status: ExitStatus,
    /// From its start to its end.
    pub(crate) elapsed: Duration,
    /// Processor time of all its threads.
    pub(crate) cpu: Duration,
    /// What it wrote to stdout and stderr.
    pub(crate) output: String,
}

impl Running {
    /// Starts a program on one core; what it says goes to `log`.
    pub(crate) fn start(mut command: Command, core: usize, log: &Path) -> io::Result<Self> {
        let out = File::create(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A process inherits the affinity of the thread that starts it.
        let spawned = std::thread::spawn(move || {
            process::pin_thread(core)?;
            command.spawn()
        });
        let child = spawned.join().map_err(|_| io::Error::other("the starting thread died"))??;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Processor time of all its threads so far.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        cpu_of(&self.child.id().to_string(), OWN_TIME)
    }

    /// What it wrote so far.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails with what the program said if it has ended.
    pub(crate) fn check_alive(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                Err(io::Error::other(format!("ended with {status}: {}", tail(&self.output()))))
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `TimedOut` after `timeout`; the program is killed then.
    pub(crate) fn finish(mut self, started: Instant, timeout: Duration) -> io::Result<Ended> {
        let before = cpu_of("self", CHILDREN_TIME)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let elapsed = clock::now() - started;
                let cpu = cpu_of("self", CHILDREN_TIME)?.saturating_sub(before);
                return Ok(Ended { status, elapsed, cpu, output: self.output() });
            }
            if clock::now() - started > timeout {
                let said = tail(&self.output());
                let text = format!("not done after {} s: {said}", timeout.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            pause();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets a moment go by between two looks at a condition.
pub(crate) fn pause() {
    std::thread::park_timeout(LOOK_AGAIN);
}

/// The first line of what `program args` says: its version. `None` if it cannot be run.
pub(crate) fn first_line(program: impl AsRef<Path>, args: &[&str]) -> Option<String> {
    let output = Command::new(program.as_ref()).args(args).stdin(Stdio::null()).output().ok()?;
    // Some write it to stderr, and one with an error as its status.
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The end of what a program said, for errors.
pub(crate) fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

fn cpu_of(process: &str, fields: [usize; 2]) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may hold anything, but the last bracket is its end.
    let (_, behind) = stat.rsplit_once(") ").ok_or_else(|| io::Error::other("a strange stat"))?;
    let values: Vec<&str> = behind.split(' ').collect();
    let ticks = fields.iter().filter_map(|&at| values.get(at)?.parse::<u64>().ok()).sum::<u64>();
    Ok(Duration::from_millis(ticks * (1000 / TICKS_PER_SECOND)))
}
