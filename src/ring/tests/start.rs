//! Waking, waiting, and what is said where there is no io_uring.

use super::*;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

#[test]
fn no_wake_is_lost() {
    const WAKES: u64 = 20_000;
    const LOST: Duration = Duration::from_secs(10);
    let mut driver = uring(&tiny());
    let waker = driver.waker();
    let posted = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&posted);
    let (seen, last_seen) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for number in 1..=WAKES {
            theirs.store(number, Ordering::Relaxed);
            waker.wake();
            // Every other time, let the core fall asleep first: it says when it saw the number.
            if number % 2 == 0 {
                while last_seen.recv().unwrap() < number {}
            }
        }
    });
    let mut found = 0;
    let end = clock::now() + SCENARIO_MAX;
    let mut events = VecDeque::new();
    while found < WAKES {
        // Only a lost wake lets this time pass.
        let begin = clock::now();
        driver.wait(Some(LOST), &mut events).unwrap();
        assert!(clock::now() - begin < LOST, "a wake was lost after {found}");
        for event in events.drain(..) {
            assert!(matches!(event, Event::Woken), "unexpected: {event:?}");
            found = posted.load(Ordering::Relaxed);
            seen.send(found).ok();
        }
        assert!(clock::now() < end);
    }
    thread.join().unwrap();
    assert!(driver.counters().wakes > 0);
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn a_wake_of_a_busy_core_comes_with_the_next_wait() {
    let mut driver = uring(&tiny());
    let mut events = VecDeque::new();
    driver.waker().wake();
    driver.waker().wake();
    driver.wait(None, &mut events).unwrap();
    assert!(matches!(events.make_contiguous(), [Event::Woken]), "{events:?}");
    events.clear();
    driver.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert!(events.is_empty());
    assert_eq!(driver.counters().wakes, 0, "no system call was needed");
}

#[test]
fn a_wait_ends_with_its_time() {
    let mut driver = uring(&tiny());
    let mut events = VecDeque::new();
    let begin = clock::now();
    driver.wait(Some(Duration::from_millis(30)), &mut events).unwrap();
    assert!(events.is_empty());
    assert!(clock::now() - begin >= Duration::from_millis(25));
}

/// What is said on a thread where the system call that makes a ring ends with `errno`.
fn refusal(errno: i32) -> String {
    let thread = std::thread::spawn(move || {
        let filter = SeccompFilter::new(
            BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.cast_unsigned()),
            TargetArch::try_from(std::env::consts::ARCH).unwrap(),
        );
        let program = BpfProgram::try_from(filter.unwrap()).unwrap();
        seccompiler::apply_filter(&program).unwrap();
        Uring::new(&tiny()).unwrap_err().to_string()
    });
    thread.join().unwrap()
}

#[test]
fn a_filter_that_refuses_is_named_with_its_fix() {
    assert_eq!(
        refusal(libc::EPERM),
        "io_uring is not available: a seccomp filter forbids it (EPERM); allow io_uring_setup, \
         io_uring_enter and io_uring_register in the seccomp profile (Docker and Podman: \
         --security-opt seccomp=PROFILE.json)"
    );
    assert_eq!(
        refusal(libc::ENOSYS),
        "io_uring is not available: a seccomp filter hides it, or the kernel is built without it \
         (ENOSYS); allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp \
         profile (Docker and Podman: --security-opt seccomp=PROFILE.json)"
    );
    assert!(refusal(libc::ENOMEM).contains("LimitMEMLOCK=infinity"));
}

#[test]
fn queues_that_overflow_lose_nothing() {
    // Far more completions than the queue holds, all at once.
    let mut driver = uring(&tiny());
    let file: Handle = Rc::new(tempfile::tempfile().unwrap().into());
    for index in 0..5000 {
        let (file, buffer) = (Rc::clone(&file), vec![0; 8]);
        driver.push(Tag(index), Op::Read { file, offset: 0, buffer, start: 0, len: 8 });
    }
    let mut seen = vec![0; 5000];
    for event in drain(&mut driver) {
        let Event::Read { tag, result: Ok(0), .. } = event else { panic!("unexpected: {event:?}") };
        seen[index_of(tag)] += 1;
    }
    assert!(seen.iter().all(|&count| count == 1));
    assert!(driver.counters().cq_overflow > 0, "{:?}", driver.counters());
    assert_balanced(&driver);
}
