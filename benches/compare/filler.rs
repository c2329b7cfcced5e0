//! A full page cache, as a machine has that has been up for a while.
//!
//! Memory that has lain idle is expensive on a virtual machine: its host has taken it back, and
//! the first touch of a page costs ten times what writing to it does. Whoever fetches would pay
//! for that and not for its own work. So the page cache is filled with a file of nothing first, and
//! what a program needs is taken from there by the kernel, as in daily use. Invariant: the file is
//! sparse, nothing of it reaches the disk, and the memory is free again when this is dropped.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use seedring::sys::file;

/// Bytes that are read at a time.
const STEP_LEN: usize = 4 << 20;

/// A file whose pages fill the memory.
#[derive(Debug)]
pub(crate) struct Filler {
    file: File,
    len: u64,
}

impl Filler {
    /// A file in `dir` that is as large as the machine's memory.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let len = memory_len()?;
        let file = tempfile::tempfile_in(dir)?;
        file.set_len(len)?;
        Ok(Self { file, len })
    }

    /// Reads all of it, so that whatever was free has been in use just before.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut buffer = vec![0; STEP_LEN];
        let mut offset = 0;
        while offset < self.len {
            file::read_exact_at(self.file.as_fd(), &mut buffer, offset)?;
            offset += STEP_LEN as u64;
        }
        Ok(())
    }
}

/// Memory of this machine, in bytes, rounded down to whole steps (proc_meminfo(5)).
fn memory_len() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib: Option<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib = kib.ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    Ok((kib << 10) / STEP_LEN as u64 * STEP_LEN as u64)
}
