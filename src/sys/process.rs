//! What the process and its threads may use: processors, descriptors, memory, system calls.
//!
//! Lists, limits and counts of the system enter and leave as plain values. Invariant: nothing here
//! ends a process or sends a signal, but for [`AbortOnPanic`].

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

/// Most processors that an affinity mask of ours can name.
pub const CORES_MAX: usize = libc::CPU_SETSIZE as usize;

/// Ends the process if it is dropped by a panic. Every thread of ours that others wait for holds one:
/// without it they would wait for ever, where panics do not abort by themselves.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic has been said already.
            std::process::abort();
        }
    }
}

/// Why a list of cores was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CoresError {
    /// Not a number, or not a range.
    #[error("{0:?} is not a core or a range of cores such as 2 or 0-3")]
    Syntax(String),
    /// More than this machine could name.
    #[error("core {0} is beyond {max}", max = CORES_MAX - 1)]
    TooHigh(usize),
    /// A range that runs backwards.
    #[error("the range {0}-{1} is empty")]
    EmptyRange(usize, usize),
    /// No core at all.
    #[error("the list of cores is empty")]
    Empty,
}

/// Parses a list such as `0-3,6`: ascending, without duplicates.
///
/// # Errors
/// [`CoresError`], naming what could not be understood.
pub fn parse_cores(list: &str) -> Result<Vec<usize>, CoresError> {
    let mut cores = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let syntax = || CoresError::Syntax(item.chars().take(20).collect());
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| syntax());
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if first.max(last) >= CORES_MAX {
            return Err(CoresError::TooHigh(first.max(last)));
        }
        if first > last {
            return Err(CoresError::EmptyRange(first, last));
        }
        cores.extend(first..=last);
    }
    cores.sort_unstable();
    cores.dedup();
    if cores.is_empty() { Err(CoresError::Empty) } else { Ok(cores) }
}

/// The cores on which the calling thread may run, ascending.
///
/// # Errors
/// What sched_getaffinity(2) says: `EINVAL` on a machine with more than [`CORES_MAX`] processors.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is of the size that is given, and lives during the call.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every index is below the number of bits in the set.
    Ok((0..CORES_MAX).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// Binds the calling thread to one core.
///
/// # Errors
/// `EINVAL` if the core does not exist, is offline or not allowed.
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= CORES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a cpu_set_t is an array of integers, for which zero is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the index was checked above.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is of the size that is given, and lives during the call.
    let result =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Names the calling thread for `ps -L` and debuggers; the system cuts at 15 bytes.
///
/// # Errors
/// What prctl(2) says; `EINVAL` for a name with a NUL.
pub fn name_thread(name: &str) -> io::Result<()> {
    let name =
        std::ffi::CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: a string that ends with NUL and lives during the call.
    let result = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A limit of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource {
    /// Open file descriptors (`RLIMIT_NOFILE`).
    OpenFiles,
    /// Bytes of locked memory (`RLIMIT_MEMLOCK`).
    LockedMemory,
}

/// The two values of a limit; `u64::MAX` means none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// How far it can be raised.
    pub hard: u64,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value| match value {
            u64::MAX => "unlimited".to_owned(),
            value => value.to_string(),
        };
        write!(f, "{} (at most {})", show(self.soft), show(self.hard))
    }
}

/// Asks for a limit.
///
/// # Errors
/// What getrlimit(2) says.
pub fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let result = match resource {
        // SAFETY: the structure lives during the call.
        Resource::OpenFiles => unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) },
        // SAFETY: as above.
        Resource::LockedMemory => unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) },
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Raises the limit of open files to what is allowed at most, and returns it.
///
/// # Errors
/// What setrlimit(2) says.
pub fn raise_open_files() -> io::Result<u64> {
    let Limit { soft, hard } = limit(Resource::OpenFiles)?;
    if soft < hard {
        let limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: the structure lives during the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(hard)
}

/// What a thread has used so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ThreadUsage {
    /// Time in user space.
    pub user: Duration,
    /// Time in the kernel on its behalf.
    pub system: Duration,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
}

/// Asks what the calling thread has used (getrusage(2), `RUSAGE_THREAD`).
///
/// # Errors
/// What getrusage(2) says.
pub fn thread_usage() -> io::Result<ThreadUsage> {
    // SAFETY: an rusage is integers only, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives during the call.
    if unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let duration = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    Ok(ThreadUsage {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
        major_faults: u64::try_from(usage.ru_majflt).unwrap_or(0),
    })
}

/// Whether system calls of the calling thread are filtered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seccomp {
    /// No filter.
    Off,
    /// A filter, or the strict mode.
    Filter,
    /// The system does not tell.
    Unknown,
}

/// Reads the state of seccomp of the calling thread.
pub fn seccomp() -> Seccomp {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    match status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim) {
        Some("0") => Seccomp::Off,
        Some(_) => Seccomp::Filter,
        None => Seccomp::Unknown,
    }
}

/// The setting `kernel.io_uring_disabled` (0 free, 1 restricted, 2 off); `None` before Linux 6.6.
pub fn io_uring_disabled() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// The kernel's version, as it names itself.
pub fn kernel_version() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_process() {
        use std::os::unix::process::ExitStatusExt as _;
        const INNER: &str = "SEEDRING_TEST_PANICS";
        if std::env::var_os(INNER).is_some() {
            let thread = std::thread::spawn(|| {
                let _guard = AbortOnPanic;
                panic!("on purpose");
            });
            let _ = thread.join();
            return;
        }
        let mut inner = std::process::Command::new(std::env::current_exe().unwrap());
        inner.args(["--exact", "sys::process::tests::a_thread_that_panics_ends_the_process"]);
        let output = inner.env(INNER, "1").output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    }

    #[test]
    fn lists_of_cores() {
        let check = |list, expected: &[usize]| assert_eq!(parse_cores(list).unwrap(), expected);
        check("0", &[0]);
        check("0-3", &[0, 1, 2, 3]);
        check(" 6, 0-2 ,1,", &[0, 1, 2, 6]);
        check("5-5", &[5]);
    }

    #[test]
    fn lists_of_cores_that_are_refused() {
        let check = |list: &str, expected: &str| {
            assert_eq!(parse_cores(list).unwrap_err().to_string(), expected);
        };
        check("", "the list of cores is empty");
        check("a", "\"a\" is not a core or a range of cores such as 2 or 0-3");
        check("1-", "\"1-\" is not a core or a range of cores such as 2 or 0-3");
        check("-1", "\"-1\" is not a core or a range of cores such as 2 or 0-3");
        check("3-1", "the range 3-1 is empty");
        check("0-99999999999", "core 99999999999 is beyond 1023");
        assert!(parse_cores("0-184467440737095516160").is_err());
    }

    #[test]
    fn a_thread_is_pinned_and_named() {
        let cores = allowed_cores().unwrap();
        let last = *cores.last().unwrap();
        std::thread::spawn(move || {
            pin_thread(last).unwrap();
            assert_eq!(allowed_cores().unwrap(), [last]);
            name_thread("a-name-of-more-than-15").unwrap();
            let name = fs::read_to_string("/proc/thread-self/comm").unwrap();
            assert_eq!(name.trim(), "a-name-of-more-");
            assert!(pin_thread(CORES_MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn limits_and_usage() {
        let hard = raise_open_files().unwrap();
        assert_eq!(limit(Resource::OpenFiles).unwrap().soft, hard);
        assert!(limit(Resource::LockedMemory).unwrap().soft > 0);
        let before = thread_usage().unwrap();
        let mut sum = 0_u64;
        for turn in 0_u64.. {
            sum = std::hint::black_box(sum.wrapping_add(turn));
            let now = thread_usage().unwrap();
            if now.user + now.system > before.user + before.system {
                break;
            }
        }
        assert!(!kernel_version().is_empty());
    }
}
