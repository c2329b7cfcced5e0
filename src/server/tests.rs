//! The engine with one real worker, and torrents whose files fail them.

mod datagrams;
mod magnets;
mod selection;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::engine::{Add, Engine, Event, Past, Verify};
use super::retry::Patience;
use super::settings::Settings;
use super::settings::settings;
use crate::config::Config;
use crate::control::state::StoredBan;
use crate::metainfo::selection::Wanted;
use crate::metainfo::{CreateOptions, Metainfo, create};
use crate::storage::Error;
use crate::storage::recovery::Had;
use crate::swarm::Offender;
use crate::sys::{clock, process};
use crate::units::{Bitfield, InfoHash};
use crate::worker::blocking::Lane;

/// How long anything may take here before it counts as never.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Settings of an engine on one core and a free port, that tries again at once.
fn impatient() -> Settings {
    let mut settings = settings(&Config::default());
    settings.listen = vec!["127.0.0.1:0".parse().unwrap()];
    settings.cores = vec![process::allowed_cores().unwrap()[0]];
    settings.retry = Duration::from_millis(10);
    settings
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// A torrent of one file of four pieces in `dir`, and the path of that file.
fn torrent(dir: &Path, name: &str, seed: u64) -> (Metainfo, PathBuf) {
    let path = dir.join(name);
    let mut bytes = vec![0; 64 << 10];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let options = CreateOptions { piece_length: Some(16 << 10), ..CreateOptions::default() };
    (Metainfo::parse(&create(&path, &options, &|_, _| {}).unwrap().bytes).unwrap(), path)
}

/// Adds a torrent that is only served, and waits until it is.
async fn seed(engine: &mut Engine, metainfo: Metainfo, dir: &Path) -> InfoHash {
    let save_path = dir.to_owned();
    let (verify, peers) = (Verify::Full, Vec::new());
    let (wanted, past) = (Wanted::default(), Past::default());
    let add = Add { metainfo, save_path, wanted, verify, fetch: false, peers, past };
    let info_hash = engine.add(add).unwrap();
    assert!(matches!(next(engine).await, Event::Checked { is_complete: true, .. }));
    info_hash
}

async fn next(engine: &mut Engine) -> Event {
    tokio::time::timeout(WAIT_MAX, engine.event()).await.expect("nothing happens")
}

fn error() -> Error {
    Error::Missing { path: "it".into() }
}

/// The files of a complete torrent of four pieces fail it.
fn fail(engine: &mut Engine, info_hash: &InfoHash, error: Error) {
    let had = Had { have: Bitfield::all(4), known: Vec::new(), is_settled: true };
    assert!(matches!(engine.fail(info_hash, error, Some(had)), Some(Event::Failed(..))));
}

#[test]
fn looks_at_failed_files_do_not_take_the_threads_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let (metainfo, _) = torrent(dir.path(), "one", 1);
    block_on(async {
        let mut engine = Engine::start(impatient()).unwrap();
        let info_hash = seed(&mut engine, metainfo, dir.path()).await;
        // Were there a thread for both, it would be one of these.
        let (until, hang) = sync_channel::<()>(0);
        let hang = std::sync::Arc::new(std::sync::Mutex::new(hang));
        for device in 0..super::engine::FILE_THREADS_MAX {
            let hang = std::sync::Arc::clone(&hang);
            let job = Box::new(move || assert!(hang.lock().unwrap().recv().is_err()));
            assert!(engine.shared.blocking.run(Lane::Device(device as u64), job).is_ok());
        }
        fail(&mut engine, &info_hash, error());
        assert!(matches!(next(&mut engine).await, Event::Checked { is_complete: true, .. }));
        assert!(engine.torrent(&info_hash).unwrap().error.is_none());
        drop(until);
        engine.shutdown().await;
    });
}

#[test]
fn failures_in_a_row_double_the_wait_up_to_a_limit() {
    let seconds = Duration::from_secs;
    let (mut now, first, none) = (clock::now(), seconds(60), Duration::ZERO);
    let mut patience = Patience::default();
    // The first wait is as promised, however long the check that brought it took.
    let mut fail = |patience: &mut Patience, check_took| {
        let wait = patience.handle_failure(now, first, check_took);
        now += wait;
        (wait.as_secs(), now)
    };
    assert_eq!(fail(&mut patience, seconds(600)).0, 60);
    for wait in [120, 240, 480, 960, 1920, 3600, 3600] {
        assert_eq!(fail(&mut patience, none).0, wait);
    }
    let (_, then) = fail(&mut patience, none);
    // Well for a moment only: it is as it was.
    patience.handle_success(then);
    assert_eq!(patience.handle_failure(then + seconds(9), first, none).as_secs(), 3600);
    // Well for as long as it had waited: it is forgotten.
    patience.handle_success(then);
    assert_eq!(patience.handle_failure(then + seconds(3600), first, none).as_secs(), 60);
    // Long checks in vain take a tenth of the time, and less and less.
    for wait in [2 * 6000, 4 * 6000, 8 * 6000, 60_000, 60_000] {
        assert_eq!(patience.handle_failure(then, first, seconds(600)).as_secs(), wait);
    }
    // One that can be told to wait longer than the limit does so.
    let mut patience = Patience::default();
    for _ in 0..70 {
        assert_eq!(patience.handle_failure(now, seconds(7200), none).as_secs(), 7200);
    }
}

#[test]
fn a_torrent_that_is_refused_for_good_is_tried_less_and_less() {
    let dir = tempfile::tempdir().unwrap();
    let (metainfo, path) = torrent(dir.path(), "one", 2);
    block_on(async {
        let mut engine = Engine::start(impatient()).unwrap();
        let info_hash = seed(&mut engine, metainfo, dir.path()).await;
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        let wait = |engine: &Engine| engine.torrent(&info_hash).unwrap().trial.patience.wait;
        fail(&mut engine, &info_hash, error());
        let mut waits = vec![wait(&engine).as_millis()];
        for _ in 0..3 {
            assert!(matches!(next(&mut engine).await, Event::Failed(..)));
            waits.push(wait(&engine).as_millis());
        }
        assert_eq!(waits, [10, 20, 40, 80]);
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        while !matches!(next(&mut engine).await, Event::Checked { is_complete: true, .. }) {}
        assert!(engine.torrent(&info_hash).unwrap().error.is_none());
        engine.shutdown().await;
    });
}

#[test]
fn a_torrent_that_only_serves_waits_until_its_data_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (metainfo, path) = torrent(dir.path(), "one", 3);
    let right = fs::read(&path).unwrap();
    block_on(async {
        let mut engine = Engine::start(impatient()).unwrap();
        let info_hash = seed(&mut engine, metainfo, dir.path()).await;
        // The file is there again, can be opened, and holds something else.
        fs::write(&path, vec![0; right.len()]).unwrap();
        fail(&mut engine, &info_hash, error());
        for _ in 0..2 {
            let event = next(&mut engine).await;
            assert!(matches!(event, Event::Failed(..)), "{event:?}");
            assert_eq!(engine.torrent(&info_hash).unwrap().home, None);
        }
        fs::write(&path, right).unwrap();
        while !matches!(next(&mut engine).await, Event::Checked { is_complete: true, .. }) {}
        let torrent = engine.torrent(&info_hash).unwrap();
        assert!(torrent.error.is_none() && torrent.home.is_some());
        engine.shutdown().await;
    });
}

/// Two torrents of different contents that name the same file: the complete one owns it, also while
/// it is in error, and what the other one tries leaves no trace.
#[test]
fn a_file_of_another_torrent_is_neither_written_nor_touched() {
    block_on(async {
        let dir = tempfile::TempDir::new().unwrap();
        let (other, path) = torrent(dir.path(), "data", 1);
        let (owner, _) = torrent(dir.path(), "data", 2);
        let (before, bytes) =
            (fs::metadata(&path).unwrap().modified().unwrap(), fs::read(&path).unwrap());
        let mut engine = Engine::start(impatient()).unwrap();
        let owner = seed(&mut engine, owner, dir.path()).await;
        let (save_path, verify, peers) = (dir.path().to_owned(), Verify::Full, Vec::new());
        let metainfo = other.clone();
        let (wanted, past) = (Wanted::default(), Past::default());
        let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
        engine.add(add).unwrap();
        let is_refused = |event: &Event| matches!(event, Event::Failed(hash, Error::Refused { .. }) if *hash == other.info_hash);
        let event = next(&mut engine).await;
        assert!(is_refused(&event), "{event:?}");
        // Its disk fails the owner for a moment; meanwhile and later the other one is tried again.
        let reason = "Input/output error".to_owned();
        let broken = Error::Io { action: "read", path: path.display().to_string(), reason };
        let had = Had { have: Bitfield::all(4), known: vec![None], is_settled: true };
        engine.fail(&owner, broken, Some(had));
        let event = next(&mut engine).await;
        let is_owners = matches!(&event, Event::Checked { info_hash, .. } if *info_hash == owner);
        assert!(is_owners, "{event:?}");
        let trials = tokio::time::timeout(impatient().retry * 40, engine.event()).await;
        assert!(trials.is_err(), "{trials:?}");
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "it was touched");
        assert!(fs::read(&path).unwrap() == bytes, "it was written to");
        engine.shutdown().await;
    });
}

#[test]
fn bans_of_an_earlier_run_go_on_for_as_long_as_they_have_left() {
    block_on(async {
        let mut engine = Engine::start(impatient()).unwrap();
        let now = clock::wall_seconds();
        let ban = |host: u8, until| StoredBan { ip: [20, 0, 0, host].into(), until };
        // One that is over, and one that a clock set back has made endless.
        engine.restore_bans(&[ban(1, now + 1000), ban(2, now - 1), ban(3, i64::MAX)]);
        let at = |seconds| clock::now() + Duration::from_secs(seconds);
        assert_eq!(engine.banned_count(at(0)), 2);
        assert_eq!(engine.banned_count(at(1001)), 1);
        assert_eq!(engine.banned_count(at(24 * 3600)), 0);
        assert_eq!(engine.take_fresh_bans(), [], "the state knows them");
        engine.on_ban(Offender::of("20.0.0.4:5".parse().unwrap()), at(100));
        engine.on_ban(Offender::of("10.0.0.4:5".parse().unwrap()), at(100));
        let fresh = engine.take_fresh_bans();
        assert_eq!(fresh.len(), 1, "{fresh:?}");
        assert!(
            fresh[0].ip.to_string() == "20.0.0.4"
                && (now + 98..=now + 101).contains(&fresh[0].until)
        );
        engine.shutdown().await;
    });
}
