//! Networks of a test's own: namespaces on one wire, with real multicast between them.
//!
//! A test enters and gets hosts with addresses, in which it starts programs, opens sockets and
//! listens on the wire. Invariant: names are unique to process and test; namespaces vanish with
//! their owner, also when the test fails. `ip netns` is for root: others are root in a namespace of
//! users that the test makes.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::process::{program, run};
use super::wait;

/// Names given out by this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// How long a wire may take to be one.
const READY: Duration = Duration::from_secs(20);

/// Set in the process that is root in a namespace of its own.
const INSIDE: &str = "SEEDRING_TEST_ROOT";

/// Whether this process is root. If not, the test `name` (its whole path) is run in a process that
/// is, as far as its own network and mounts go, and this one has nothing left to do.
pub(crate) fn is_root(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() || run(Command::new("id").arg("-u")).trim() == "0" {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"]);
    command.args([r#"mount -t tmpfs tmpfs /run && exec "$@""#, "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let output = run(command.env(INSIDE, "1"));
    assert!(output.contains("1 passed"), "{name} did not run: {output}");
    false
}

/// A host: a network namespace, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Host {
    name: String,
}

/// The device of every host that leads to the other one.
pub(crate) const DEVICE: &str = "wire";

impl Host {
    fn new() -> Self {
        let number = COUNT.fetch_add(1, Relaxed);
        let name = format!("sr-test-{}-{number}", std::process::id());
        run(program("ip").args(["netns", "add", &name]));
        let host = Self { name };
        host.ip(&["link", "set", "lo", "up"]);
        host
    }

    /// A host that reaches nobody, with these addresses (`ADDR/BITS`) on its loopback device.
    pub(crate) fn alone(addrs: &[&str]) -> Self {
        let host = Self::new();
        for addr in addrs {
            host.ip(&["address", "add", addr, "dev", "lo"]);
        }
        host
    }

    /// Two hosts joined by a wire, each with its addresses.
    pub(crate) fn pair(first: &[&str], second: &[&str]) -> [Self; 2] {
        let hosts = [Self::new(), Self::new()];
        let [one, two] = [&hosts[0].name, &hosts[1].name];
        let peer = ["peer", "name", DEVICE, "netns", two];
        let mut command = program("ip");
        command.args(["link", "add", DEVICE, "netns", one, "type", "veth"]).args(peer);
        run(&mut command);
        for (host, addrs) in hosts.iter().zip([first, second]) {
            for addr in addrs {
                let is_v6 = addr.contains(':');
                // Else it could not be used before a second or two.
                let nodad = is_v6.then_some("nodad");
                let words = ["address", "add", addr, "dev", DEVICE];
                host.ip(&words.into_iter().chain(nodad).collect::<Vec<_>>());
            }
            host.ip(&["link", "set", DEVICE, "up"]);
        }
        for host in &hosts {
            // The kernel is late with this one, and libtorrent looks for it once.
            wait::until("a route for groups of IPv6", READY, || {
                let mut command = program("ip");
                let words = ["-n", &host.name, "-6", "route", "show", "table", "local"];
                let routes = run(command.args(words).args(["type", "multicast", "dev", DEVICE]));
                routes.contains("ff00::/8").then_some(())
            });
        }
        hosts
    }

    fn ip(&self, words: &[&str]) {
        run(program("ip").args(["-n", &self.name]).args(words));
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same command, to be run on this host.
    pub(crate) fn command(&self, command: &Command) -> Command {
        inside(&self.name, command)
    }

    /// Does something on this host. Sockets that come out of it stay there.
    pub(crate) fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&namespace);
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The same command, to be run on the host of this name.
pub(crate) fn inside(host: &str, command: &Command) -> Command {
    let mut inside = program("ip");
    inside.args(["netns", "exec", host]);
    inside.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

impl Drop for Host {
    fn drop(&mut self) {
        // A panic here would hide the one that brought us here.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

#[expect(unsafe_code, reason = "std enters no namespace")]
fn enter(namespace: &File) {
    // SAFETY: the call takes two numbers; it changes this thread, which ends after its action.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// An address without its bits.
pub(crate) fn ip_of(addr: &str) -> IpAddr {
    addr.split('/').next().unwrap().parse().unwrap()
}
