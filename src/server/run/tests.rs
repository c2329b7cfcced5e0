//! A server whose state hangs, or whose engine has no room.

use std::sync::mpsc::sync_channel;

use super::*;
use crate::metainfo::{CreateOptions, create};
use crate::storage::verify::{self, Progress};
use crate::sys::process;
use crate::worker::mailbox::Totals;

/// How long anything may take here before it counts as never.
const WAIT_MAX: Duration = Duration::from_secs(20);

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// A server on one core and a free port that saves to `dir`.
fn server(state: State, dir: &Path, watch: Option<Watch>) -> Server {
    let mut settings = settings(&Config::default());
    settings.listen = vec![([127, 0, 0, 1], 0).into()];
    settings.cores = vec![process::allowed_cores().unwrap()[0]];
    settings.dht = None;
    let engine = Engine::start(settings).unwrap();
    Server {
        registry: engine.registry().clone(),
        engine,
        state: Arc::new(state),
        downloads: dir.to_owned(),
        watch,
        remembering: JoinSet::new(),
        waiting: VecDeque::new(),
        ledger: Ledger::default(),
        has_news: false,
    }
}

#[test]
fn a_state_that_hangs_keeps_no_server_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _queue) = State::hanging(dir.path());
    block_on(async {
        let mut server = server(state, dir.path(), None);
        let totals = Arc::new(Totals::new(9));
        server.ledger.open(InfoHash([1; 20]), Arc::clone(&totals), 9);
        totals.uploaded.store(5, Relaxed);
        server.has_news = true;
        let (_nothing, mut loaded) = mpsc::channel(1);
        let (mut found, is_ready) = (None, AtomicBool::new(true));
        // The totals are due at once and again a second later.
        let stop = tokio::time::sleep(GAUGES_INTERVAL + GAUGES_INTERVAL / 2);
        tokio::pin!(stop);
        let served = server.serve(&mut loaded, &mut found, &is_ready, stop);
        let served = tokio::time::timeout(WAIT_MAX, served).await;
        assert!(served.expect("it is deaf").is_ok());
        assert!(server.has_news, "what was not written is forgotten");
        assert_eq!(server.ledger.take_changed().len(), 1, "what was not written is forgotten");
        let begun = clock::now();
        server.end().await;
        assert!(clock::now() - begun < Duration::from_secs(10));
    });
}

#[test]
fn a_file_that_finds_no_room_waits_and_is_not_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (watched, data) = (dir.path().join("watched"), dir.path().join("data"));
    std::fs::create_dir(&watched).unwrap();
    std::fs::write(&data, vec![7; 100_000]).unwrap();
    let created = create(&data, &CreateOptions::default(), &|_, _| {}).unwrap();
    std::fs::write(watched.join("a.torrent"), &created.bytes).unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    block_on(async {
        let (watch, found) = Watch::start(vec![watched.clone()], |_| Shape::Whole).unwrap();
        let mut server = server(state, dir.path(), Some(watch));
        // The one hash thread hangs, and the queue behind it is full.
        let (until, hang) = sync_channel::<()>(0);
        let content = Arc::new(Metainfo::parse(&created.bytes).unwrap());
        let cancelled = Arc::new(Progress::default());
        cancelled.cancel();
        let submit = |done: Box<dyn FnOnce(verify::Checked) + Send>| {
            let (content, progress) = (content.clone(), Arc::clone(&cancelled));
            let root = dir.path().to_owned();
            server.engine.checker.submit(verify::Job { content, root, progress, done }).is_ok()
        };
        let (hangs, is_hanging) = sync_channel(1);
        assert!(submit(Box::new(move |_| {
            hangs.send(()).unwrap();
            assert!(hang.recv().is_err());
        })));
        is_hanging.recv().unwrap();
        while submit(Box::new(|_| {})) {}
        assert!(server.engine.is_busy());

        let (_nothing, mut loaded) = mpsc::channel(1);
        let is_ready = AtomicBool::new(true);
        let mut found = Some(found);
        let mut serve_until = async |server: &mut Server, time| {
            let stop = tokio::time::sleep(time);
            tokio::pin!(stop);
            server.serve(&mut loaded, &mut found, &is_ready, stop).await.unwrap();
        };
        let begun = clock::now();
        while server.waiting.is_empty() {
            serve_until(&mut server, GAUGES_INTERVAL / 10).await;
            assert!(clock::now() - begun < WAIT_MAX, "it was not found");
        }
        assert!(watched.join("a.torrent").exists());
        drop(until);
        let added = watched.join("a.torrent.added");
        while !added.exists() {
            serve_until(&mut server, GAUGES_INTERVAL / 10).await;
            assert!(clock::now() - begun < WAIT_MAX, "it was not added");
        }
        assert!(server.engine.torrent(&content.info_hash).is_some());
        server.end().await;
    });
}

#[test]
fn what_only_ends_too_early_is_told_from_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::write(&data, vec![7; 100_000]).unwrap();
    let bytes = create(&data, &CreateOptions::default(), &|_, _| {}).unwrap().bytes;
    assert_eq!(shape_of(&bytes), Shape::Whole);
    for end in 1..bytes.len() {
        assert_eq!(shape_of(&bytes[..end]), Shape::Cut, "{end} bytes");
    }
    let wrong: [&[u8]; 8] = [
        b"",
        b"l",
        b"this is no torrent",
        b"d4:infox",
        b"d4:info99999999999:",
        b"d4:info20000000:",
        b"d4:infod4:name1:xee",
        &[&bytes, &b"x"[..]].concat(),
    ];
    for bytes in wrong {
        assert_eq!(shape_of(bytes), Shape::Broken, "{}", String::from_utf8_lossy(bytes));
    }
}
