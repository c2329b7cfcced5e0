//! A mount that does not answer: what lies on it waits, and nothing else does.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crate::faults::as_root;
use crate::support::data::{Shape, odd_tree, single};
use crate::support::dir;
use crate::support::server::{Home, START, fetch_from};

/// A FUSE mount behind which nobody answers, not even the first question, until it is dropped.
struct HungMount {
    path: PathBuf,
    holder: Child,
}

/// Mounts, says so, and holds the file system's end until its input ends.
const HOLDER: &str = r#"
import ctypes, os, sys
path = sys.argv[1].encode()
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hung", path, b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
print("mounted", flush=True)
sys.stdin.read()
libc.umount2(path, 2)
"#;

impl HungMount {
    fn new(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let mut command = as_root("/usr/bin/python3");
        command.arg("-c").arg(HOLDER).arg(&path);
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "mounted");
        Self { path, holder }
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        // Where it was killed instead.
        let _ = as_root("umount").arg("-ql").arg(&self.path).status();
    }
}

#[test]
fn a_mount_that_does_not_answer_stops_only_its_own_torrents() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let dead = odd_tree(dir.path(), 170, &shape);
    let hung = HungMount::new(home.downloads.join(&dead.name));
    let others: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .zip(171..)
        .map(|(name, seed)| single(dir.path(), name, 4 << 20, seed, &shape))
        .collect();
    // One hash thread: the first check has it.
    let mut server = home.run(&["--cores", "0"]);
    home.add(&dead);
    server.wait_torrents("checking", 1, START);
    for content in &others {
        content.copy_to(&home.downloads);
        home.add(content);
    }
    server.wait_torrents("seeding", 3, START);
    fetch_from(dir.path(), &others[0], server.peer);
    assert_eq!(server.metric("seedring_torrents", &["state=\"checking\""]), 1.0);
    let log = server.process.stderr();
    let says = |line: &str| line.contains("does not answer") && line.contains(&dead.name);
    assert!(log.lines().any(says), "{log}");
    assert_eq!(server.get("/healthz/live").0, 200);

    // Given up by the kernel, the mount gives errors: whatever they lead to, the check is over.
    drop(hung);
    server.wait_torrents("checking", 0, START);
    fetch_from(dir.path(), &others[1], server.peer);
    server.stop();
}

#[test]
fn a_mount_that_does_not_answer_keeps_no_server_from_stopping() {
    let dir = dir();
    let home = Home::new(dir.path(), "home");
    let shape = Shape::pieces_of(64 << 10);
    let dead = odd_tree(dir.path(), 174, &shape);
    let _hung = HungMount::new(home.downloads.join(&dead.name));
    let mut server = home.run(&[]);
    home.add(&dead);
    server.wait_torrents("checking", 1, START);
    server.stop();
}
