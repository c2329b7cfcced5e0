//! The engine with one real worker, and torrents whose files fail them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::engine::{Add, Engine, Event, Settings, Verify};
use super::settings::settings;
use crate::config::Config;
use crate::metainfo::{CreateOptions, Metainfo, create};
use crate::storage::Error;
use crate::storage::recovery::Had;
use crate::sys::process;
use crate::units::{Bitfield, InfoHash};

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
    let add = Add { metainfo, save_path, verify: Verify::Full, fetch: false, peers: Vec::new() };
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
        for _ in 0..super::engine::FILE_THREADS {
            let hang = std::sync::Arc::clone(&hang);
            let job = Box::new(move || assert!(hang.lock().unwrap().recv().is_err()));
            assert!(engine.shared.blocking.run(job).is_ok());
        }
        fail(&mut engine, &info_hash, error());
        assert!(matches!(next(&mut engine).await, Event::Checked { is_complete: true, .. }));
        assert!(engine.torrent(&info_hash).unwrap().error.is_none());
        drop(until);
        engine.shutdown().await;
    });
}
