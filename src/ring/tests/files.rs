//! Reads, writes and flushes, compared with what the standard library sees.

use super::*;
use std::os::unix::fs::FileExt;

/// Random reads and writes through the driver; the file must hold what a plain array holds.
fn files<D: Driver>(driver: &mut D, seed: u64, rounds: usize, may_fail: bool) {
    const LEN: usize = 300_000;
    let mut rng = fastrand::Rng::with_seed(seed);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0; LEN], 0).unwrap();
    let handle: Handle = Rc::new(file.try_clone().unwrap().into());
    let mut model = vec![0_u8; LEN];
    for round in 0..rounds {
        let mut pending = Vec::new();
        // Ranges of one round do not overlap: their order is not defined.
        let mut at = rng.usize(0..1000);
        while at < LEN {
            let len = rng.usize(1..=60_000).min(LEN - at);
            let tag = Tag(pending.len() as u64);
            let start = rng.usize(0..10);
            if rng.bool() {
                let mut bytes = vec![0; start];
                bytes.extend((0..len).map(|_| rng.u8(..)));
                let buffer = Rc::new(bytes);
                let (file, offset) = (Rc::clone(&handle), at as u64);
                let op = Op::Write { file, offset, buffer: Rc::clone(&buffer), start, len };
                driver.push(tag, op);
                pending.push((at, start, len, Some(buffer)));
            } else {
                let (file, offset) = (Rc::clone(&handle), at as u64);
                let buffer = vec![0xee; start + len + 3];
                driver.push(tag, Op::Read { file, offset, buffer, start, len });
                pending.push((at, start, len, None));
            }
            at += len + rng.usize(0..5000);
        }
        driver.push(Tag(u64::MAX), Op::Sync { file: Rc::clone(&handle) });
        let events = drain(driver);
        assert_eq!(events.len(), pending.len() + 1, "seed {seed} round {round}");
        for event in events {
            match event {
                Event::Written { tag, result } => {
                    let (at, start, len, Some(buffer)) = &pending[index_of(tag)] else {
                        panic!("not a write")
                    };
                    let count = result.unwrap_or_else(|error| {
                        assert!(may_fail, "seed {seed}: {error}");
                        0
                    });
                    assert!(count <= *len);
                    model[*at..at + count].copy_from_slice(&buffer[*start..start + count]);
                }
                Event::Read { tag, result, buffer } => {
                    let &(at, start, len, None) = &pending[index_of(tag)] else {
                        panic!("not a read")
                    };
                    assert_eq!(buffer.len(), start + len + 3, "the whole buffer comes back");
                    let Ok(count) = result else {
                        assert!(may_fail);
                        continue;
                    };
                    assert!(count == len || may_fail);
                    assert_eq!(buffer[start..start + count], model[at..at + count]);
                    assert!(buffer[start + count..].iter().all(|&byte| byte == 0xee));
                }
                Event::Synced { result, .. } => assert!(result.is_ok() || may_fail),
                other => panic!("unexpected: {other:?}"),
            }
        }
        let mut whole = vec![0; LEN];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert!(whole == model, "seed {seed} round {round}");
    }
    assert_balanced(driver);
}

#[test]
fn files_hold_what_was_written() {
    files(&mut uring(&Config::default()), 1, 20, false);
    files(&mut uring(&tiny()), 2, 20, false);
    for seed in 0..50 {
        files(&mut Faulty::new(uring(&tiny()), Faults::rough(), seed), seed, 2, false);
        files(&mut Faulty::new(uring(&tiny()), Faults::hostile(), seed), seed, 2, true);
    }
}

#[test]
fn a_read_at_the_end_of_a_file_is_short() {
    let mut driver = uring(&tiny());
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[9; 1000], 0).unwrap();
    let file: Handle = Rc::new(file.into());
    for (offset, expected) in [(0, 1000), (990, 10), (1000, 0), (1 << 40, 0)] {
        let (file, buffer) = (Rc::clone(&file), vec![0; 5000]);
        driver.push(Tag(offset), Op::Read { file, offset, buffer, start: 0, len: 5000 });
        let events = drain(&mut driver);
        let [Event::Read { result: Ok(count), buffer, .. }] = events.as_slice() else {
            panic!("unexpected: {events:?}")
        };
        assert_eq!(*count, expected);
        assert!(buffer[..*count].iter().all(|&byte| byte == 9));
    }
}

#[test]
fn ranges_outside_the_memory_never_reach_the_kernel() {
    let mut driver = uring(&tiny());
    let file: Handle = Rc::new(tempfile::tempfile().unwrap().into());
    let ranges =
        [(0, 0, 11), (0, 11, 0), (0, 10, 1), (0, usize::MAX, 2), (u64::MAX, 0, 1), (1 << 63, 0, 1)];
    for (offset, start, len) in ranges {
        let buffer = vec![0; 10];
        let op = Op::Read { file: Rc::clone(&file), offset, buffer: buffer.clone(), start, len };
        driver.push(Tag(1), op);
        let buffer = Rc::new(buffer);
        driver.push(Tag(2), Op::Write { file: Rc::clone(&file), offset, buffer, start, len });
    }
    assert_eq!(driver.in_flight(), 2 * ranges.len());
    let events = drain(&mut driver);
    assert_eq!(events.len(), 2 * ranges.len());
    for event in events {
        let (Event::Read { result, .. } | Event::Written { result, .. }) = event else {
            panic!("unexpected: {event:?}")
        };
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
    assert_balanced(&driver);
}
