//! Crashes, corruption and company.

use super::*;
use crate::swarm::BANS_MAX;
use crate::sys::clock;

impl State {
    /// A state whose writer hangs and whose queue is full; and what keeps the queue open.
    pub(crate) fn hanging(dir: &Path) -> (Self, impl Sized) {
        let (orders, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let files = TorrentFiles::new(dir.to_owned());
        let (totals_wait, settings, magnets) = (Arc::default(), BTreeMap::new(), Vec::new());
        while orders.try_send(Order::Totals(Vec::new())).is_ok() {}
        let bans = Vec::new();
        (Self { orders, totals_wait, files, settings, magnets, bans, nodes: Vec::new() }, queue)
    }
}

fn torrent(seed: u8) -> NewTorrent {
    NewTorrent {
        info_hash: InfoHash([seed; 20]),
        metainfo: vec![seed; 1000],
        save_path: format!("/data/{seed}").into(),
        name: format!("torrent {seed}"),
        wanted: Wanted::default(),
        added_at: i64::from(seed),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn open(dir: &Path) -> (State, Vec<StoredTorrent>) {
    State::open(dir).unwrap()
}

/// What a `kill -9` at this instant would leave.
fn snapshot(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("torrents")).unwrap();
    for part in ["", "torrents"] {
        for entry in std::fs::read_dir(dir.join(part)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let target = copy.path().join(part).join(entry.file_name());
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    copy
}

fn hashes(torrents: &[StoredTorrent]) -> Vec<u8> {
    torrents.iter().map(|torrent| torrent.info_hash.0[0]).collect()
}

#[test]
fn what_was_added_is_there_after_a_kill_and_what_was_removed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (state, stored) = open(dir.path());
    assert_eq!(stored, []);
    let copy = block_on(async {
        for seed in [3, 1, 2] {
            state.add(torrent(seed)).await.unwrap();
        }
        let totals = Totals { downloaded: u64::MAX, ..totals(1, 5) };
        state.update_totals(vec![totals]).await.unwrap();
        state.set("up".to_owned(), "10MiB".to_owned()).await.unwrap();
        state.remove(InfoHash([2; 20])).await.unwrap();
        snapshot(dir.path())
    });
    let (state, stored) = open(copy.path());
    assert_eq!(hashes(&stored), [1, 3]);
    assert_eq!(stored[0].save_path.as_deref(), Some(Path::new("/data/1")));
    assert_eq!((stored[0].uploaded, stored[0].downloaded), (5, i64::MAX.unsigned_abs()));
    assert_eq!(stored[1].name, "torrent 3");
    assert_eq!(state.load(&stored[1].info_hash).unwrap(), [3; 1000]);
    assert_eq!(state.settings()["up"], "10MiB");
    assert!(state.load(&InfoHash([2; 20])).is_err());
}

#[test]
fn bans_are_remembered_until_they_are_over_and_their_number_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let now = clock::wall_seconds();
    let ban = |ip: &str, seconds| StoredBan { ip: ip.parse().unwrap(), until: now + seconds };
    let (state, _) = open(dir.path());
    assert_eq!(state.bans(), []);
    block_on(async {
        let bans = vec![ban("1.2.3.4", 100), ban("2001:db8:0:1::", 900), ban("1.2.3.5", -1)];
        state.add_bans(bans).unwrap();
        state.add_bans(vec![ban("1.2.3.4", 50)]).unwrap();
        state.close().await;
    });
    let (state, _) = open(dir.path());
    assert_eq!(state.bans(), [ban("1.2.3.4", 100), ban("2001:db8:0:1::", 900)]);
    // Far too many: those that end last stay.
    let many = (0..u32::try_from(BANS_MAX).unwrap() + 10)
        .map(|number| StoredBan {
            ip: std::net::Ipv4Addr::from_bits((20 << 24) + number).into(),
            until: now + 1000 + i64::from(number),
        })
        .collect();
    block_on(async {
        state.add_bans(many).unwrap();
        state.close().await;
    });
    let (state, _) = open(dir.path());
    assert_eq!(state.bans().len(), BANS_MAX);
    assert!(state.bans().iter().all(|ban| ban.until >= now + 1010));
}

#[test]
fn closing_writes_all_and_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        let totals = Totals { downloaded: 8, ..totals(1, 9) };
        state.update_totals(vec![totals]).await.unwrap();
        state.close().await;
        assert_eq!(state.add(torrent(2)).await, Err(OrderError::Closed));
    });
    let (_state, stored) = open(dir.path());
    assert_eq!((stored[0].uploaded, stored[0].downloaded), (9, 8));
}

#[test]
fn a_link_is_kept_until_its_torrent_is_known_or_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let magnet = |seed: u8| StoredMagnet {
        info_hash: InfoHash([seed; 20]),
        link: format!("magnet:?xt=urn:btih:{}", InfoHash([seed; 20])),
        save_path: PathBuf::from("/srv"),
        added_at: i64::from(9 - seed),
    };
    let (state, _) = open(dir.path());
    block_on(async {
        for seed in 1..=4 {
            state.add_magnet(magnet(seed)).await.unwrap();
        }
        state.add(torrent(2)).await.unwrap();
        // Whose file was lost since is looked for again.
        state.add_magnet(StoredMagnet { link: "old".to_owned(), ..magnet(5) }).await.unwrap();
        state.add(torrent(5)).await.unwrap();
        state.quarantine(&InfoHash([5; 20])).unwrap();
        state.add_magnet(StoredMagnet { link: "old".to_owned(), ..magnet(5) }).await.unwrap();
        state.add_magnet(magnet(5)).await.unwrap();
        state.remove(InfoHash([3; 20])).await.unwrap();
        state.close().await;
    });
    let (state, stored) = open(dir.path());
    assert_eq!(state.magnets(), [magnet(5), magnet(4), magnet(1)]);
    assert_eq!(stored.iter().map(|it| it.info_hash).collect::<Vec<_>>(), [InfoHash([2; 20])]);
    block_on(state.close());
    // Tables that were made before there were links get theirs.
    let database = rusqlite::Connection::open(dir.path().join(database::FILE_NAME)).unwrap();
    database.execute_batch("DROP TABLE magnets").unwrap();
    drop(database);
    let (state, _) = open(dir.path());
    assert!(state.magnets().is_empty());
    block_on(state.add_magnet(magnet(1))).unwrap();
    block_on(state.close());
}

#[test]
fn the_most_that_a_torrent_had_is_kept_until_it_is_added_again() {
    let dir = tempfile::tempdir().unwrap();
    let had = |had_bytes| Totals { had_bytes, was_whole: had_bytes == 700, ..totals(1, 0) };
    let stored = |orders: &[Option<u64>]| {
        let (state, _) = open(dir.path());
        block_on(async {
            for order in orders {
                match order {
                    None => state.add(torrent(1)).await.unwrap(),
                    Some(had_bytes) => state.update_totals(vec![had(*had_bytes)]).await.unwrap(),
                }
            }
            state.close().await;
        });
        let (state, stored) = open(dir.path());
        block_on(state.close());
        (stored[0].had_bytes, stored[0].was_whole)
    };
    let (whole, not_whole) = (Some(true), Some(false));
    assert_eq!(stored(&[None]), (0, not_whole));
    assert_eq!(stored(&[Some(700)]), (700, whole));
    assert_eq!(stored(&[Some(0)]), (700, whole));
    assert_eq!(stored(&[Some(900)]), (900, whole));
    assert_eq!(stored(&[None]), (0, not_whole));
}

#[test]
fn a_database_of_this_version_without_the_latest_columns_gets_them() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        state.close().await;
    });
    let connection = rusqlite::Connection::open(dir.path().join(database::FILE_NAME)).unwrap();
    for (name, _) in database::LATE_COLUMNS {
        connection.execute_batch(&format!("ALTER TABLE torrents DROP COLUMN {name}")).unwrap();
    }
    connection.close().unwrap();
    let (state, stored) = open(dir.path());
    assert_eq!((hashes(&stored), stored[0].had_bytes), (vec![1], 0));
    assert_eq!(stored[0].was_whole, None, "nobody knows");
    let info_hash = InfoHash([1; 20]);
    block_on(async {
        state.add(torrent(2)).await.unwrap();
        let totals =
            Totals { info_hash, uploaded: 1, downloaded: 2, had_bytes: 3, was_whole: true };
        state.update_totals(vec![totals]).await.unwrap();
        state.close().await;
    });
    let stored = open(dir.path()).1;
    assert_eq!((stored[0].had_bytes, stored[0].was_whole), (3, Some(true)));
    assert_eq!(stored[1].was_whole, Some(false), "one that is new was never whole");
    assert!(!dir.path().join("seedring.db.corrupt").exists());
}

#[test]
fn which_files_are_wanted_is_kept_and_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = |flags: [bool; 4]| Wanted::from_flags(flags);
    let (some, others) = (wanted([true, false, true, true]), wanted([false; 4]));
    let (state, _) = open(dir.path());
    block_on(async {
        state.add(NewTorrent { wanted: some.clone(), ..torrent(1) }).await.unwrap();
        state.add(torrent(2)).await.unwrap();
        state.close().await;
    });
    let kept = |stored: &[StoredTorrent]| -> Vec<_> {
        stored.iter().map(|torrent| torrent.wanted.clone()).collect()
    };
    let (state, stored) = open(dir.path());
    assert_eq!(kept(&stored), [some.clone(), Wanted::default()]);
    block_on(async {
        state.set_wanted(InfoHash([1; 20]), Wanted::default()).await.unwrap();
        state.set_wanted(InfoHash([2; 20]), others.clone()).await.unwrap();
        state.set_wanted(InfoHash([3; 20]), some.clone()).await.unwrap();
        state.close().await;
    });
    let (state, stored) = open(dir.path());
    assert_eq!(kept(&stored), [Wanted::default(), others]);
    // Added anew it is as it is added.
    block_on(async {
        state.add(NewTorrent { wanted: some.clone(), ..torrent(2) }).await.unwrap();
        state.close().await;
    });
    assert_eq!(kept(&open(dir.path()).1), [Wanted::default(), some]);
}

#[test]
fn orders_of_one_group_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        let (first, second) = (InfoHash([1; 20]), InfoHash([2; 20]));
        // Polled together on one thread, these reach the writer as one burst.
        let results = tokio::join!(
            state.remove(first),
            state.add(torrent(1)),
            state.add(torrent(2)),
            state.remove(second),
        );
        assert_eq!(results, (Ok(()), Ok(()), Ok(()), Ok(())));
        state.close().await;
    });
    let (state, stored) = open(dir.path());
    assert_eq!(hashes(&stored), [1]);
    assert!(state.load(&InfoHash([1; 20])).is_ok());
    assert!(state.load(&InfoHash([2; 20])).is_err());
}

#[test]
fn a_crash_between_file_and_row_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        state.close().await;
    });
    let stray = dir.path().join(format!("torrents/{}.torrent", InfoHash([7; 20])));
    let half = dir.path().join(format!("torrents/{}.torrent.new", InfoHash([8; 20])));
    std::fs::write(&stray, b"d").unwrap();
    std::fs::write(&half, b"d").unwrap();
    let (_state, stored) = open(dir.path());
    assert_eq!(hashes(&stored), [1]);
    assert!(!stray.exists() && !half.exists());
}

#[test]
fn a_corrupt_database_is_put_aside_and_the_torrents_stay() {
    for garbage in [&b"not a database, but long enough to look like a header"[..], b""] {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = open(dir.path());
        block_on(async {
            state.add(torrent(1)).await.unwrap();
            state.add(torrent(2)).await.unwrap();
            state.close().await;
        });
        std::fs::write(dir.path().join(database::FILE_NAME), garbage).unwrap();
        let (state, stored) = open(dir.path());
        assert_eq!(hashes(&stored), [1, 2]);
        assert_eq!(stored[0].save_path, None);
        assert_eq!(state.load(&InfoHash([2; 20])).unwrap(), [2; 1000]);
        let aside = dir.path().join("seedring.db.corrupt");
        assert_eq!(aside.exists(), !garbage.is_empty());
        block_on(state.close());
        assert_eq!(hashes(&open(dir.path()).1), [1, 2]);
    }
}

#[test]
fn pages_that_rotted_are_found_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(async {
        for seed in 0..100 {
            state.add(torrent(seed)).await.unwrap();
        }
        state.close().await;
    });
    let path = dir.path().join(database::FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    let from = bytes.len() - 4096;
    bytes[from..].fill(0xAA);
    std::fs::write(&path, bytes).unwrap();
    let (_state, stored) = open(dir.path());
    assert_eq!(stored.len(), 100);
    assert!(dir.path().join("seedring.db.corrupt").exists());
}

#[test]
fn a_corrupt_torrent_costs_that_torrent_only() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    let (first, second) = (InfoHash([1; 20]), InfoHash([2; 20]));
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        state.add(torrent(2)).await.unwrap();
    });
    let aside = state.quarantine(&first).unwrap();
    assert!(aside.to_str().unwrap().ends_with(".torrent.corrupt"));
    assert!(state.load(&first).is_err() && state.load(&second).is_ok());
    block_on(state.close());
    let (state, stored) = open(dir.path());
    assert_eq!(hashes(&stored), [2]);
    block_on(async {
        state.add(torrent(1)).await.unwrap();
        state.close().await;
    });
    assert_eq!(hashes(&open(dir.path()).1), [1, 2]);
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    let error = State::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    block_on(state.close());
    assert!(State::open(dir.path()).is_ok());
}

#[test]
fn a_later_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    block_on(state.close());
    let path = dir.path().join(database::FILE_NAME);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    connection.close().unwrap();
    let error = State::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("version 2"));
    assert!(path.exists() && !dir.path().join("seedring.db.corrupt").exists());
}

#[test]
fn a_device_that_refuses_fails_the_order_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = open(dir.path());
    let target = dir.path().join(format!("torrents/{}.torrent", InfoHash([1; 20])));
    std::fs::create_dir(&target).unwrap();
    block_on(async {
        assert!(matches!(state.add(torrent(1)).await, Err(OrderError::Write(_))));
        state.add(torrent(2)).await.unwrap();
        std::fs::remove_dir(&target).unwrap();
        state.add(torrent(1)).await.unwrap();
        state.close().await;
    });
    assert_eq!(hashes(&open(dir.path()).1), [1, 2]);
}

#[test]
fn nodes_of_the_dht_are_kept_in_a_file_that_may_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NODES_NAME);
    let kept = || {
        let (state, _) = open(dir.path());
        block_on(state.close());
        state.nodes().to_vec()
    };
    assert!(kept().is_empty());
    for bytes in [b"some".as_slice(), b"fewer"] {
        let (state, _) = open(dir.path());
        state.save_nodes(b"older".into()).unwrap();
        state.save_nodes(bytes.into()).unwrap();
        block_on(state.close());
        assert_eq!(state.save_nodes(Vec::new()), Err(OrderError::Closed));
        assert_eq!(kept(), bytes);
    }
    std::fs::write(&path, vec![0; dht::FILE_LEN_MAX + 1]).unwrap();
    assert!(kept().is_empty(), "it is longer than any that was written");
    std::fs::remove_file(&path).unwrap();
    // Nothing can be written there: a server starts and ends all the same.
    std::fs::create_dir(&path).unwrap();
    let (state, _) = open(dir.path());
    state.save_nodes(b"lost".into()).unwrap();
    block_on(state.close());
    assert!(kept().is_empty());
}

fn totals(seed: u8, uploaded: u64) -> Totals {
    let info_hash = InfoHash([seed; 20]);
    Totals { info_hash, uploaded, downloaded: 0, had_bytes: 0, was_whole: false }
}

#[test]
fn totals_and_bans_of_a_group_that_failed_go_with_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let torrents_dir = dir.path().join("torrents");
    std::fs::create_dir(&torrents_dir).unwrap();
    let (_orders, queue) = mpsc::channel(1);
    let mut writer = Writer {
        database: Database::open(dir.path(), &BTreeSet::new()).unwrap(),
        files: TorrentFiles::new(torrents_dir.clone()),
        nodes: Keepsake::new(dir.path().join(NODES_NAME), 9),
        queue,
        totals_wait: Arc::default(),
        unwritten: BTreeMap::new(),
        unwritten_bans: Vec::new(),
        _lock: lock(dir.path()).unwrap(),
    };
    let add = |seed| Order::Add(torrent(seed), oneshot::channel().0);
    assert!(writer.write(vec![add(1), add(2)]).is_none());
    let refused = torrents_dir.join(format!("{}.torrent", InfoHash([3; 20])));
    std::fs::create_dir(&refused).unwrap();
    writer.write(vec![Order::Totals(vec![totals(1, 10), totals(2, 20)]), add(3)]);
    let ban = StoredBan { ip: [1, 2, 3, 4].into(), until: clock::wall_seconds() + 100 };
    writer.write(vec![Order::Totals(vec![totals(1, 11)]), Order::Bans(vec![ban]), add(3)]);
    let uploaded = |writer: &Writer| {
        let (stored, ..) = writer.database.read().unwrap();
        stored.iter().map(|it| it.uploaded).collect::<Vec<_>>()
    };
    assert_eq!(uploaded(&writer), [0, 0], "the group was written after all");
    assert_eq!(writer.database.read_bans().unwrap(), []);
    writer.write(vec![Order::Setting("a".into(), "b".into(), oneshot::channel().0)]);
    assert_eq!(uploaded(&writer), [11, 20]);
    assert_eq!(writer.database.read_bans().unwrap(), [ban]);
    // What was written is not written again over something newer.
    writer.write(vec![Order::Totals(vec![totals(2, 30)])]);
    writer.write(vec![Order::Setting("a".into(), "c".into(), oneshot::channel().0)]);
    assert_eq!(uploaded(&writer), [11, 30]);
}

#[test]
fn totals_wait_in_the_queue_once_and_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _queue) = State::hanging(dir.path());
    assert!(state.place_for_totals().is_none(), "the queue is full");
    let (orders, mut queue) = mpsc::channel(QUEUE_LEN_MAX);
    let state = State { orders, ..state };
    state.place_for_totals().unwrap().put(vec![totals(1, 1)]);
    assert!(state.place_for_totals().is_none(), "the first ones still wait");
    assert!(matches!(queue.try_recv(), Ok(Order::Totals(_))));
    state.totals_wait.store(false, Relaxed);
    assert!(state.place_for_totals().is_some());
}
