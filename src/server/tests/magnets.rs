//! Links in an engine with one real worker.

use super::*;
use crate::metainfo::magnet::Magnet;

/// How many torrents are named to the DHT after the metadata of a link came, and after its torrent
/// was added.
fn named_to_the_dht(private: bool) -> [usize; 3] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one");
    fs::write(&path, [7; 1000]).unwrap();
    let options = CreateOptions { private, ..CreateOptions::default() };
    let bytes = create(&path, &options, &|_, _| {}).unwrap().bytes;
    let metainfo = Metainfo::parse(&bytes).unwrap();
    block_on(async {
        let settings = Settings { dht: Some(Vec::new()), ..impatient() };
        let mut engine = Engine::start(settings).unwrap();
        let count = |engine: &Engine| engine.finder.as_ref().unwrap().torrent_count();
        let info_hash = metainfo.info_hash;
        let link = Magnet::parse(&format!("magnet:?xt=urn:btih:{info_hash}")).unwrap();
        engine.add_magnet(link, Vec::new()).unwrap();
        let sought = count(&engine);
        let event = engine.on_metadata(info_hash, metainfo.raw_info());
        assert!(matches!(event, Some(Event::Metadata(_))));
        let learnt = count(&engine);
        let (save_path, verify) = (dir.path().to_owned(), Verify::Full);
        let (peers, past, wanted) = (Vec::new(), Past::default(), Wanted::default());
        let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
        engine.add(add).unwrap();
        assert!(matches!(next(&mut engine).await, Event::Checked { .. }));
        let added = count(&engine);
        engine.shutdown().await;
        [sought, learnt, added]
    })
}

#[test]
fn a_link_that_turns_out_to_be_private_is_withdrawn_from_the_dht_at_once() {
    assert_eq!(named_to_the_dht(true), [1, 0, 0]);
    assert_eq!(named_to_the_dht(false), [1, 1, 1]);
}
