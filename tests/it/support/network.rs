//! A network of one's own: public addresses on a loopback device that nobody else sees.
//!
//! A test enters and is run again inside a network namespace, in a process of its own, because a
//! thread cannot leave the user namespace of its process. Invariant: nothing outside changes, and
//! no rights are needed but those that every user has.

use std::process::Command;

use super::process::run;

/// Set in the process that is inside.
const INSIDE: &str = "SEEDRING_TEST_NETWORK";

/// Whether this process has the network 20.0.0.0/16 to itself. If not, the test `name` (its whole
/// path) is run in a process that has, and this one has nothing left to do.
pub(crate) fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        run(Command::new("ip").args(["address", "add", "20.0.0.1/16", "dev", "lo"]));
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    let output = run(command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1"));
    assert!(output.contains("1 passed"), "{name} did not run: {output}");
    false
}
