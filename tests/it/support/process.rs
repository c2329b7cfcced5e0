//! Child processes: started with their output in files, ended by their id.
//!
//! A command enters, a [`Process`] leaves that is killed when it is dropped. Invariant: no test
//! leaves a process behind, and none is ever ended by its name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::wait;

/// Lines of each output shown when a test fails.
const TAIL_LINES: usize = 40;

/// A running child.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`; its outputs go to `DIR/NAME.out` and `DIR/NAME.err`.
    pub(crate) fn start(name: &str, dir: &Path, command: &mut Command) -> Self {
        let (stdout, stderr) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let program = command.get_program().to_owned();
        command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; tests/run.sh installs it", program.display())
        });
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// Process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed to stdout.
    pub(crate) fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// What it has printed to stderr.
    pub(crate) fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Waits for a line of stdout that begins with `prefix`; returns what follows it.
    pub(crate) fn wait_for_line(&mut self, prefix: &str, limit: Duration) -> String {
        let out = self.stdout.clone();
        self.wait_for(&format!("a line {prefix:?}"), limit, || line_of(&text(&out), prefix))
    }

    /// Waits for an answer while the process lives.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ask: impl FnMut() -> Option<T>,
    ) -> T {
        let answer = wait::within(limit, || match ask() {
            Some(answer) => Some(Ok(answer)),
            None => self.child.try_wait().unwrap().map(|status| {
                // It may have said it with its last breath.
                ask().ok_or(status)
            }),
        });
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(status)) => {
                panic!("{} ended ({status}) before {what}\n{}", self.name, self.tail())
            }
            None => panic!("{}: no {what} within {limit:?}\n{}", self.name, self.tail()),
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        assert!(signal_process(self.child.id(), signal), "{} is gone already", self.name);
    }

    /// The exit code, or `None` while it runs; a signal that ended it counts as 128 + signal.
    pub(crate) fn try_code(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Waits for its end; returns the exit code.
    pub(crate) fn wait(&mut self, limit: Duration) -> i32 {
        match wait::within(limit, || self.try_code()) {
            Some(code) => code,
            None => panic!("{} did not end within {limit:?}\n{}", self.name, self.tail()),
        }
    }

    /// Waits for its end and wants the exit code 0.
    pub(crate) fn wait_ok(&mut self, limit: Duration) {
        let code = self.wait(limit);
        assert_eq!(code, 0, "{} ended with {code}\n{}", self.name, self.tail());
    }

    /// Memory of the process that is not shared with a file, in bytes.
    pub(crate) fn anonymous_bytes(&self) -> u64 {
        proc_value(&format!("/proc/{}/status", self.id()), "RssAnon:") * 1024
    }

    /// Bytes that the process made the disk read.
    pub(crate) fn disk_read_bytes(&self) -> u64 {
        proc_value(&format!("/proc/{}/io", self.id()), "read_bytes:")
    }

    /// The ends of its outputs.
    pub(crate) fn tail(&self) -> String {
        let mut tail = String::new();
        for (name, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(TAIL_LINES);
            tail += &format!("--- {} {name}\n{}\n", self.name, lines[from..].join("\n"));
        }
        tail
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command of a program that tests/run.sh installs.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let name = name.as_ref();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = Path::new(name).is_absolute() && Path::new(name).exists()
        || std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    assert!(is_there, "{} is not installed: run tests/run.sh, which installs it", name.display());
    Command::new(name)
}

/// Runs a short command to its end and wants it to succeed; returns its stdout.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rest of the first whole line that begins with `prefix`.
pub(crate) fn line_of(text: &str, prefix: &str) -> Option<String> {
    let whole = &text[..text.rfind('\n')?];
    whole.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn proc_value(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{path} has no {key}"))
}

#[expect(unsafe_code, reason = "std sends no signal but SIGKILL")]
fn signal_process(id: u32, signal: i32) -> bool {
    // SAFETY: kill takes two numbers and touches no memory; the id is that of a child of ours that
    // was not waited for, so it names no other process.
    unsafe { libc::kill(id.cast_signed(), signal) == 0 }
}
