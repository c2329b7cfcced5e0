//! Accept, connect, cancel, and peers that do not behave.

use super::*;
use crate::sys::map::Mapping;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn listener() -> (Handle, SocketAddr) {
    let listener = net::listen(&ANY_PORT).unwrap();
    let addr = net::local_addr(listener.as_fd()).unwrap();
    (Rc::new(listener), addr)
}

/// A batch of one byte range.
fn batch_of(len: usize) -> Rc<Batch> {
    let mut batch = Batch::new();
    batch.push_lease(&Lease::Pooled(Rc::new(vec![1; len])), 0, len).unwrap();
    Rc::new(batch)
}

/// Connects `count` sockets to a listener of the same driver; the accept goes on until then.
fn connect_many<D: Driver>(driver: &mut D, count: usize) {
    let (listener, addr) = listener();
    driver.push(Tag(1), Op::Accept { listener: Rc::clone(&listener) });
    let mut sockets = BTreeMap::new();
    for index in 0..count {
        let socket: Handle = Rc::new(net::tcp_socket(&addr).unwrap());
        driver.push(Tag(100 + index as u64), Op::Connect { socket: Rc::clone(&socket), addr });
        sockets.insert(100 + index as u64, socket);
    }
    let (mut accepted, mut connected) = (Vec::new(), 0);
    run(driver, |driver, event| {
        match event {
            Event::Accepted { tag, result, last } => {
                assert_eq!(tag, Tag(1));
                accepted.push(result.unwrap());
                if last {
                    driver.push(Tag(1), Op::Accept { listener: Rc::clone(&listener) });
                }
            }
            Event::Connected { tag, result } => {
                result.unwrap();
                let socket = &sockets[&tag.0];
                assert_eq!(net::peer_addr(socket.as_fd()).unwrap(), addr);
                connected += 1;
            }
            other => panic!("unexpected: {other:?}"),
        }
        accepted.len() == count && connected == count
    });
    driver.cancel(Tag(1));
    let events = drain(driver);
    assert!(
        matches!(events.as_slice(), [Event::Accepted { result: Err(_), last: true, .. }]),
        "{events:?}"
    );
    assert_balanced(driver);
}

#[test]
fn connections_are_made_and_accepted() {
    connect_many(&mut uring(&Config::default()), 300);
    connect_many(&mut uring(&tiny()), 300);
    for seed in 0..50 {
        connect_many(&mut Faulty::new(uring(&tiny()), Faults::rough(), seed), 20);
    }
}

#[test]
fn a_refused_connection_says_so() {
    let mut driver = uring(&tiny());
    let (listener, addr) = listener();
    drop(listener);
    let socket = Rc::new(net::tcp_socket(&addr).unwrap());
    driver.push(Tag(3), Op::Connect { socket, addr });
    run(&mut driver, |_, event| {
        let Event::Connected { tag: Tag(3), result: Err(error) } = event else {
            panic!("unexpected: {event:?}")
        };
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
        true
    });
}

/// Cancels receives on silent sockets, some of which hear something at that moment.
fn cancel_races<D: Driver>(driver: &mut D, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let pairs: Vec<_> = (0..30).map(|_| narrow_pair()).collect();
    let mut events = VecDeque::new();
    for (index, (near, _)) in pairs.iter().enumerate() {
        let op = Op::Recv { socket: Rc::clone(near), pool: Pool::Large };
        driver.push(Tag(index as u64), op);
        if rng.bool() {
            driver.wait(Some(Duration::ZERO), &mut events).unwrap();
        }
    }
    let mut outcomes = vec![0; pairs.len()];
    for (index, (_, far)) in pairs.iter().enumerate() {
        if rng.bool() {
            let socket = Rc::clone(far);
            let send = Op::Send { socket, batch: batch_of(10), from: 0, zero_copy: false };
            driver.push(Tag(1000), send);
        }
        driver.cancel(Tag(index as u64));
        if rng.bool() {
            driver.wait(Some(Duration::ZERO), &mut events).unwrap();
        }
        driver.cancel(Tag(index as u64));
    }
    driver.cancel(Tag(999_999));
    events.extend(drain(driver));
    for event in events {
        match event {
            Event::Received { tag, result } => {
                outcomes[index_of(tag)] += 1;
                match result {
                    Ok(buffer) => assert!(!buffer.is_empty()),
                    Err(error) => assert!(
                        matches!(error.raw_os_error(), Some(libc::ECANCELED | libc::ENOBUFS)),
                        "{error}"
                    ),
                }
            }
            Event::Sent { tag, .. } => assert_eq!(tag, Tag(1000)),
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(outcomes.iter().all(|&count| count == 1), "seed {seed}: {outcomes:?}");
    assert_balanced(driver);
}

#[test]
fn every_cancelled_operation_ends_once() {
    for seed in 0..50 {
        cancel_races(&mut uring(&tiny()), seed);
        cancel_races(&mut uring(&Config::default()), seed);
        cancel_races(&mut Faulty::new(uring(&tiny()), Faults::rough(), seed), seed);
    }
}

#[test]
fn a_dropped_connection_keeps_what_the_kernel_uses() {
    let mut driver = uring(&tiny());
    let (near, far) = tcp_pair();
    let batch = batch_of(32 << 20);
    let weak = Rc::downgrade(&batch);
    let op = Op::Send { socket: near, batch, from: 0, zero_copy: false };
    driver.push(Tag(1), op);
    // The peer reads nothing: a first send fills its buffers, a second waits for room.
    run(&mut driver, |driver, event| match event {
        Event::Sent { result: Ok(count), .. } if count < 32 << 20 => {
            assert!(weak.upgrade().is_none(), "the last completion frees the batch");
            let batch = batch_of(1 << 20);
            let op = Op::Send { socket: Rc::clone(&far), batch, from: 0, zero_copy: false };
            driver.push(Tag(2), op);
            true
        }
        other => panic!("unexpected: {other:?}"),
    });
}

#[test]
fn a_peer_that_never_reads_does_not_keep_a_dropped_driver() {
    for zero_copy in [false, true] {
        let mut driver = uring(&Config::default());
        let (near, _far) = tcp_pair();
        let batch = batch_of(8 << 20);
        let mut sends = 0;
        let push = |driver: &mut Uring| {
            let (socket, batch) = (Rc::clone(&near), Rc::clone(&batch));
            driver.push(Tag(1), Op::Send { socket, batch, from: 1, zero_copy });
        };
        push(&mut driver);
        let mut events = VecDeque::new();
        loop {
            driver.wait(Some(Duration::from_millis(100)), &mut events).unwrap();
            if events.is_empty() {
                break;
            }
            for event in events.drain(..) {
                if matches!(event, Event::Sent { result: Ok(_), .. }) {
                    sends += 1;
                    push(&mut driver);
                }
            }
        }
        assert!(sends > 0 && driver.in_flight() > 0, "the last send waits");
        let begin = clock::now();
        drop(driver);
        assert!(clock::now() - begin < Duration::from_secs(5));
    }
}

#[test]
fn a_truncated_mapping_is_an_error_of_the_send() {
    for zero_copy in [false, true] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mapping = Mapping::new(&file.try_clone().unwrap().into(), 1 << 20).unwrap();
        let lease = Lease::Mapped(Rc::new(Arc::new(mapping)));
        let mut batch = Batch::new();
        batch.push_bytes(b"header").unwrap();
        batch.push_lease(&lease, 4096, 65_536).unwrap();
        file.set_len(0).unwrap();
        let mut driver = uring(&tiny());
        let (near, _far) = tcp_pair();
        let batch = Rc::new(batch);
        // Past the header, so that there is nothing that could be sent before the fault.
        driver.push(Tag(1), Op::Send { socket: near, batch, from: 6, zero_copy });
        let events = drain(&mut driver);
        let Some(Event::Sent { result: Err(error), .. }) = events.first() else {
            panic!("unexpected: {events:?}")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_balanced(&driver);
    }
}

#[test]
fn an_empty_range_is_sent_at_once() {
    let mut driver = uring(&tiny());
    let (near, _far) = tcp_pair();
    for from in [5, 6, usize::MAX] {
        let (socket, batch) = (Rc::clone(&near), batch_of(5));
        driver.push(Tag(1), Op::Send { socket, batch, from, zero_copy: false });
    }
    let events = drain(&mut driver);
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| matches!(event, Event::Sent { result: Ok(0), .. })));
}

#[test]
fn a_peer_that_is_gone_is_an_error_without_a_signal() {
    let mut driver = uring(&tiny());
    let (near, far) = narrow_pair();
    drop(far);
    driver.push(Tag(1), Op::Send { socket: near, batch: batch_of(5), from: 0, zero_copy: false });
    let events = drain(&mut driver);
    let Some(Event::Sent { result: Err(error), .. }) = events.first() else {
        panic!("unexpected: {events:?}")
    };
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
}

/// Names the test that runs in a child process, since it changes limits of the whole process.
const EMFILE_CHILD: &str = "SEEDRING_TEST_EMFILE";

#[test]
fn accepting_without_descriptors_ends_and_starts_again() {
    if std::env::var_os(EMFILE_CHILD).is_some() {
        accept_without_descriptors();
        return;
    }
    let name = "ring::tests::sockets::accepting_without_descriptors_ends_and_starts_again";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1"])
        .env(EMFILE_CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

fn accept_without_descriptors() {
    let mut driver = uring(&tiny());
    let (listener, addr) = listener();
    let client = std::net::TcpStream::connect(addr).unwrap();
    // Descriptors up to the highest that is open are used, so a limit there leaves none.
    let mut fill = Vec::new();
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the structure lives during the call; the process is this test's own.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    while let Ok(file) = std::fs::File::open("/dev/null") {
        fill.push(file);
    }
    driver.push(Tag(1), Op::Accept { listener: Rc::clone(&listener) });
    run(&mut driver, |_, event| {
        let Event::Accepted { result: Err(error), last, .. } = event else {
            panic!("unexpected: {event:?}")
        };
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        assert!(last, "an accept that fails is over");
        true
    });
    assert_eq!(driver.in_flight(), 0);
    fill.clear();
    driver.push(Tag(1), Op::Accept { listener });
    let from = client.local_addr().unwrap();
    let mut waits = 0;
    run(&mut driver, |_, event| {
        waits += 1;
        let Event::Accepted { result: Ok(socket), .. } = event else {
            panic!("unexpected: {event:?}")
        };
        assert_eq!(net::peer_addr(socket.as_fd()).unwrap(), from);
        true
    });
    assert_eq!(waits, 1);
}
