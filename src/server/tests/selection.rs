//! Which files of a torrent are wanted, asked of the engine.

use super::*;

/// A torrent of three files of two and a half pieces each.
fn three_files(dir: &Path) -> Metainfo {
    let top = dir.join("top");
    fs::create_dir(&top).unwrap();
    let mut rng = fastrand::Rng::with_seed(77);
    for name in ["a", "b", "c"] {
        let mut bytes = vec![0; 40 << 10];
        rng.fill(&mut bytes);
        fs::write(top.join(name), bytes).unwrap();
    }
    let options = CreateOptions { piece_length: Some(16 << 10), ..CreateOptions::default() };
    Metainfo::parse(&create(&top, &options, &|_, _| {}).unwrap().bytes).unwrap()
}

#[test]
fn wanted_files_may_change_while_a_torrent_is_checked_fetched_and_served() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let metainfo = three_files(from.path());
    block_on(async {
        let mut config = Config::default();
        config.net.listen = vec!["127.0.0.1:0".parse().unwrap()];
        let on_loopback = || Settings { cores: impatient().cores, ..settings(&config) };
        let mut seeder = Engine::start(on_loopback()).unwrap();
        let mut engine = Engine::start(on_loopback()).unwrap();
        let info_hash = seed(&mut seeder, metainfo.clone(), from.path()).await;
        let peers = vec![seeder.peer_addrs()[0]];
        let only = |flags: [bool; 3]| Wanted::from_flags(flags);
        let add = Add {
            metainfo,
            save_path: to.path().to_owned(),
            wanted: only([true, false, false]),
            verify: Verify::Full,
            fetch: true,
            peers,
            past: Past::default(),
        };
        engine.add(add).unwrap();
        // Its check has begun: what it finds is of the first file.
        assert!(engine.set_wanted(&info_hash, only([false, true, false])));
        let has = |name: &str| {
            let read = |dir: &Path| fs::read(dir.join("top").join(name)).ok();
            read(from.path()) == read(to.path())
        };
        let finish = async |engine: &mut Engine, seeder: &mut Engine| loop {
            let event = tokio::select! {
                event = next(engine) => event,
                _ = seeder.event() => continue,
            };
            match event {
                Event::Finished(_) => return,
                Event::Checked { is_complete: false, .. } => {}
                other => panic!("{other:?}"),
            }
        };
        finish(&mut engine, &mut seeder).await;
        assert!(has("b") && !to.path().join("top/c").exists());
        let totals = std::sync::Arc::clone(&engine.torrent(&info_hash).unwrap().totals);
        assert!(totals.left.load(Relaxed) > 0 && !totals.was_whole.load(Relaxed));
        assert!(engine.set_wanted(&info_hash, only([false, true, true])));
        finish(&mut engine, &mut seeder).await;
        assert!(has("b") && has("c"));
        assert!(engine.set_wanted(&info_hash, Wanted::default()));
        finish(&mut engine, &mut seeder).await;
        assert!(["a", "b", "c"].into_iter().all(has));
        assert_eq!((totals.left.load(Relaxed), totals.was_whole.load(Relaxed)), (0, true));
        assert!(!engine.set_wanted(&InfoHash([1; 20]), Wanted::default()));
        engine.shutdown().await;
        seeder.shutdown().await;
    });
}
