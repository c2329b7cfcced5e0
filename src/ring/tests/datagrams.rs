//! Datagrams: both families, floods, losses, and senders that are told off.

use super::*;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Datagrams of one exchange.
const COUNT: u32 = 60;

/// Questions on their way at a time.
const WINDOW: usize = 20;

/// The tags: the end that asks, the end that answers, and what either sends.
const ASKS: Tag = Tag(1);
const ANSWERS: Tag = Tag(2);
const SENDS: Tag = Tag(3);

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn socket(ip: IpAddr) -> (Handle, SocketAddr) {
    let socket = net::datagram_socket(&SocketAddr::new(ip, 0), None).unwrap();
    let addr = net::local_addr(socket.as_fd()).unwrap();
    (Rc::new(socket), addr)
}

fn listen<D: Driver>(driver: &mut D, tag: Tag, socket: &Handle) {
    let socket = Rc::clone(socket);
    driver.push(tag, Op::ReceiveFrom { socket, pool: Pool::Datagrams });
}

fn send<D: Driver>(driver: &mut D, socket: &Handle, to: SocketAddr, bytes: Vec<u8>) {
    driver.push(SENDS, Op::SendTo { socket: Rc::clone(socket), to, bytes });
}

/// Question `number`: its number and as many bytes as follow from it.
fn question(number: u32) -> Vec<u8> {
    let len = pattern(number as usize) as usize * 3;
    let bytes = (0..len).map(|at| pattern(at + number as usize));
    number.to_be_bytes().into_iter().chain(bytes).collect()
}

/// One end asks until every question was answered once; the other returns what it gets.
fn exchange<D: Driver>(driver: &mut D, ip: IpAddr, seed: u64) {
    let ends = [socket(ip), socket(ip)];
    let [(asker, from), (answerer, to)] = &ends;
    listen(driver, ASKS, asker);
    listen(driver, ANSWERS, answerer);
    let mut open: BTreeSet<u32> = (0..COUNT).collect();
    let (mut events, mut sends, mut ends_count) = (VecDeque::new(), 0, 0);
    let end = clock::now() + SCENARIO_MAX;
    while !open.is_empty() {
        assert!(clock::now() < end, "seed {seed}: {} unanswered", open.len());
        if sends == 0 {
            for &number in open.iter().take(WINDOW) {
                send(driver, asker, *to, question(number));
                sends += 1;
            }
            // One without bytes ends a receive, which is no error.
            send(driver, asker, *to, Vec::new());
            sends += 1;
        }
        driver.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
        while let Some(event) = events.pop_front() {
            match event {
                Event::Datagram { tag, result, last } => {
                    let (near, far) = if tag == ASKS { (asker, to) } else { (answerer, from) };
                    match result {
                        Ok(datagram) => {
                            assert_eq!(datagram.from, *far, "seed {seed}");
                            if tag == ANSWERS && !datagram.bytes.is_empty() {
                                send(driver, near, *far, datagram.bytes.to_vec());
                                sends += 1;
                            } else if let Some(number) = datagram.bytes.first_chunk() {
                                let number = u32::from_be_bytes(*number);
                                assert_eq!(*datagram.bytes, *question(number), "seed {seed}");
                                open.remove(&number);
                            }
                        }
                        Err(error) => assert!(
                            matches!(
                                error.raw_os_error(),
                                Some(libc::ENOBUFS | libc::ECONNREFUSED)
                            ),
                            "seed {seed}: {error}"
                        ),
                    }
                    if last {
                        ends_count += 1;
                        let socket = Rc::clone(near);
                        driver.push(tag, Op::ReceiveFrom { socket, pool: Pool::Datagrams });
                    }
                }
                Event::SentTo { tag, .. } => {
                    assert_eq!(tag, SENDS);
                    sends -= 1;
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    assert!(ends_count > 0, "seed {seed}: an empty datagram ends a receive");
    driver.cancel(ASKS);
    driver.cancel(ANSWERS);
    drain(driver);
    assert_balanced(driver);
}

#[test]
fn datagrams_are_answered() {
    for ip in LOOPBACKS {
        exchange(&mut uring(&Config::default()), ip, 0);
        for level in Level::ALL {
            exchange(&mut uring(&Config { level_max: level, ..tiny() }), ip, 0);
        }
    }
}

#[test]
fn datagrams_are_answered_whatever_the_kernel_may_do() {
    for seed in 0..12 {
        let ip = LOOPBACKS[usize::from(seed % 2 == 0)];
        let faults = if seed % 3 == 0 { Faults::hostile() } else { Faults::rough() };
        let mut driver = Faulty::new(uring(&tiny()), faults, seed);
        exchange(&mut driver, ip, seed);
        assert_balanced(driver.inner());
    }
}

/// Takes what comes until nothing has for a while: results, with where a receive ended.
fn take_all<D: Driver>(driver: &mut D, socket: &Handle) -> Vec<io::Result<Vec<u8>>> {
    let (mut events, mut results) = (VecDeque::new(), Vec::new());
    loop {
        driver.wait(Some(Duration::from_millis(200)), &mut events).unwrap();
        if events.is_empty() {
            return results;
        }
        for event in events.drain(..) {
            if let Event::Datagram { tag, result, last } = event {
                results.push(result.map(|datagram| datagram.bytes.to_vec()));
                if last {
                    listen(driver, tag, socket);
                }
            }
        }
    }
}

#[test]
fn a_datagram_that_is_too_long_is_no_shorter_one() {
    for ip in LOOPBACKS {
        let mut driver = uring(&Config::default());
        let (near, addr) = socket(ip);
        listen(&mut driver, ASKS, &near);
        let other = UdpSocket::bind((ip, 0)).unwrap();
        let room = 4096 - 44;
        for len in [room + 1, room, 9000, 1] {
            other.send_to(&vec![7; len], addr).unwrap();
        }
        let seen: Vec<_> = take_all(&mut driver, &near)
            .into_iter()
            .map(|result| result.map(|bytes| bytes.len()).map_err(|error| error.raw_os_error()))
            .collect();
        let too_long = Err(Some(libc::EMSGSIZE));
        assert_eq!(seen, [too_long, Ok(room), too_long, Ok(1)], "{ip}");
        driver.cancel(ASKS);
        drain(&mut driver);
        assert_balanced(&driver);
    }
}

#[test]
fn a_flood_takes_the_buffers_of_datagrams_and_no_others() {
    let mut driver = uring(&tiny());
    let (near, addr) = socket(LOOPBACKS[0]);
    listen(&mut driver, ASKS, &near);
    let other = UdpSocket::bind((LOOPBACKS[0], 0)).unwrap();
    let mut events = VecDeque::new();
    driver.wait(Some(Duration::ZERO), &mut events).unwrap();
    for number in 0..20_u8 {
        other.send_to(&[number], addr).unwrap();
    }
    // The two buffers are held by these events; a stream has its own.
    let mut held = Vec::new();
    run(&mut driver, |_, event| {
        let Event::Datagram { result, last, .. } = event else { panic!("unexpected: {event:?}") };
        let error = result.map(|datagram| held.push(datagram)).err();
        assert_eq!(last, error.is_some());
        error.is_some_and(|it| it.raw_os_error() == Some(libc::ENOBUFS))
    });
    assert_eq!(held.len(), 2);
    let (client, server) = tcp_pair();
    driver.push(Tag(9), Op::Recv { socket: server, pool: Pool::Small });
    let mut batch = Batch::new();
    batch.push_bytes(b"stream").unwrap();
    let batch = Rc::new(batch);
    driver.push(Tag(8), Op::Send { socket: client, batch, from: 0, zero_copy: false });
    run(&mut driver, |_, event| match event {
        Event::Received { result, .. } => {
            assert_eq!(*result.unwrap(), *b"stream");
            true
        }
        _ => false,
    });
    let first: Vec<_> = held.drain(..).map(|datagram| datagram.bytes.to_vec()).collect();
    assert_eq!(first, [[0], [1]]);
    listen(&mut driver, ASKS, &near);
    let rest = take_all(&mut driver, &near);
    let rest: Vec<_> = rest.into_iter().filter_map(Result::ok).map(|bytes| bytes[0]).collect();
    assert_eq!(rest, (2..20).collect::<Vec<_>>());
    assert!(driver.counters().enobufs > 0);
}

#[test]
fn an_answer_that_nobody_is_there_does_not_end_receiving() {
    let mut driver = uring(&Config::default());
    let nobody = UdpSocket::bind((LOOPBACKS[0], 0)).unwrap();
    let nowhere = nobody.local_addr().unwrap();
    drop(nobody);
    // Only a connected socket is told.
    let near = UdpSocket::bind((LOOPBACKS[0], 0)).unwrap();
    near.connect(nowhere).unwrap();
    near.set_nonblocking(true).unwrap();
    let addr = near.local_addr().unwrap();
    let near: Handle = Rc::new(near.into());
    listen(&mut driver, ASKS, &near);
    let mut events = VecDeque::new();
    driver.wait(Some(Duration::ZERO), &mut events).unwrap();
    send(&mut driver, &near, nowhere, b"anybody?".to_vec());
    let mut is_refused = false;
    run(&mut driver, |driver, event| match event {
        Event::SentTo { .. } => false,
        Event::Datagram { result: Err(error), last, .. } => {
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            assert!(last && !std::mem::replace(&mut is_refused, true));
            listen(driver, ASKS, &near);
            let somebody = UdpSocket::bind(nowhere).unwrap();
            somebody.send_to(b"yes", addr).unwrap();
            false
        }
        Event::Datagram { result: Ok(datagram), .. } => {
            assert_eq!(*datagram.bytes, *b"yes");
            true
        }
        other => panic!("unexpected: {other:?}"),
    });
    assert!(is_refused);
}

#[test]
fn a_datagram_that_cannot_leave_says_so() {
    let mut driver = uring(&tiny());
    let (near, addr) = socket(LOOPBACKS[0]);
    send(&mut driver, &near, addr, vec![0; 70_000]);
    send(&mut driver, &near, "[::1]:1".parse().unwrap(), vec![0]);
    let events = drain(&mut driver);
    let errors: BTreeSet<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::SentTo { result: Err(error), .. } => error.raw_os_error(),
            _ => None,
        })
        .collect();
    assert_eq!(errors, BTreeSet::from([libc::EMSGSIZE, libc::EAFNOSUPPORT]));
    assert_balanced(&driver);
}
