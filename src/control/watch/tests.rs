//! Every way in which a file arrives, and what must not be taken.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;

use super::*;

/// Short enough for a test, long enough to tell "at once" from "settled".
const TEST_SETTLE: Duration = Duration::from_millis(600);

/// What is cut is waited for for ever, unless a test says otherwise.
const RULES: Rules = Rules { shape, settle: TEST_SETTLE, settle_cut: Duration::from_secs(3600) };

fn shape(bytes: &[u8]) -> Shape {
    match bytes {
        [b'd', .., b'e'] => Shape::Whole,
        [] | [b'd', b'x', ..] => Shape::Broken,
        _ => Shape::Cut,
    }
}

struct Bench {
    dir: tempfile::TempDir,
    watch: Watch,
    found: mpsc::Receiver<Found>,
}

impl Bench {
    fn new(notify: bool, prepare: impl FnOnce(&Path)) -> Self {
        Self::with(RULES, notify, prepare)
    }

    fn with(rules: Rules, notify: bool, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let folders = vec![dir.path().to_owned()];
        let (watch, found) = Watch::start_with(folders, rules, notify).unwrap();
        Self { dir, watch, found }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn next(&mut self) -> Found {
        let next = tokio::time::timeout(Duration::from_secs(5), self.found.recv());
        next.await.expect("a file is found within 5 s").expect("the thread runs")
    }

    async fn names(self) -> BTreeSet<String> {
        self.watch.close().await;
        let entries = fs::read_dir(self.dir.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn files_arrive_in_every_way() {
    for notify in [true, false] {
        run(async {
            let mut bench = Bench::new(notify, |dir| {
                fs::write(dir.join("there.torrent"), "d1:ae").unwrap();
                fs::write(dir.join("original"), "d1:be").unwrap();
                fs::write(dir.join("moved"), "d1:ce").unwrap();
            });
            let mut seen = BTreeSet::new();
            seen.insert(bench.next().await.path);
            fs::hard_link(bench.path("original"), bench.path("linked.torrent")).unwrap();
            seen.insert(bench.next().await.path);
            fs::rename(bench.path("moved"), bench.path("moved.torrent")).unwrap();
            seen.insert(bench.next().await.path);
            fs::write(bench.path("written.TORRENT"), "d1:de").unwrap();
            let last = bench.next().await;
            assert_eq!(last.contents.unwrap(), b"d1:de");
            seen.insert(last.path);
            for path in seen {
                bench.watch.accept(path);
            }
            let expected = [
                "linked.torrent.added",
                "moved.torrent.added",
                "original",
                "there.torrent.added",
                "written.TORRENT.added",
            ];
            assert_eq!(bench.names().await, set(&expected), "notify {notify}");
        });
    }
}

#[test]
fn a_file_that_is_written_slowly_is_waited_for() {
    run(async {
        let mut bench = Bench::new(true, |_| {});
        let mut file = fs::File::create(bench.path("slow.torrent")).unwrap();
        for part in ["d", "1:x", "3:abc", "1:y"] {
            file.write_all(part.as_bytes()).unwrap();
            sleep(TEST_SETTLE / 3).await;
        }
        assert!(bench.found.try_recv().is_err());
        file.write_all(b"e").unwrap();
        drop(file);
        let found = bench.next().await;
        assert_eq!(found.contents.unwrap(), b"d1:x3:abc1:ye");
    });
}

#[test]
fn a_file_that_is_never_complete_gets_an_answer() {
    run(async {
        let mut bench = Bench::new(true, |dir| fs::write(dir.join("bad.torrent"), "dx").unwrap());
        fs::write(bench.path("empty.torrent"), "").unwrap();
        for _ in 0..2 {
            let found = bench.next().await;
            bench.watch.reject(found.path, "It is not a torrent.".to_owned());
        }
        let dir = bench.dir.path().to_owned();
        bench.watch.close().await;
        for name in ["bad", "empty"] {
            assert!(dir.join(format!("{name}.torrent.rejected")).exists());
            let note = fs::read_to_string(dir.join(format!("{name}.torrent.rejected.txt")));
            assert_eq!(note.unwrap(), "It is not a torrent.\n");
        }
    });
}

#[test]
fn a_file_that_only_ends_too_early_is_waited_for_longer() {
    for notify in [true, false] {
        run(async {
            let mut bench = Bench::new(notify, |dir| {
                fs::write(dir.join("cut.torrent"), "d1:a").unwrap();
                fs::write(dir.join("bad.torrent"), "dx").unwrap();
            });
            // Both were there at the same time: the cut one has had the time of the bad one.
            let bad = bench.next().await;
            assert_eq!(bad.path, bench.path("bad.torrent"));
            fs::write(bench.path("late.torrent"), "dx").unwrap();
            assert_eq!(bench.next().await.path, bench.path("late.torrent"));
            let mut file =
                fs::File::options().append(true).open(bench.path("cut.torrent")).unwrap();
            file.write_all(b"1:be").unwrap();
            let whole = bench.next().await;
            assert_eq!(whole.path, bench.path("cut.torrent"));
            assert_eq!(whole.contents.unwrap(), b"d1:a1:be");
        });
    }
}

#[test]
fn a_file_that_is_never_continued_gets_an_answer() {
    run(async {
        let rules = Rules { settle_cut: TEST_SETTLE * 2, ..RULES };
        let cut = |dir: &Path| fs::write(dir.join("cut.torrent"), "d1:a").unwrap();
        let begun = clock::now();
        let mut bench = Bench::with(rules, true, cut);
        assert_eq!(bench.next().await.contents.unwrap(), b"d1:a");
        assert!(clock::now() - begun >= TEST_SETTLE * 2);
    });
}

#[test]
fn what_is_not_a_plain_small_file_is_refused_unread() {
    run(async {
        let mut bench = Bench::new(true, |dir| {
            fs::write(dir.join("secret"), "d6:secrete").unwrap();
            std::os::unix::fs::symlink(dir.join("secret"), dir.join("link.torrent")).unwrap();
            let fifo = dir.join("fifo.torrent");
            let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
            assert!(made.success());
            fs::create_dir(dir.join("dir.torrent")).unwrap();
            fs::write(dir.join(".hidden.torrent"), "d1:he").unwrap();
            fs::write(dir.join("note.txt"), "d1:te").unwrap();
            let large = fs::File::create(dir.join("large.torrent")).unwrap();
            large.set_len(TORRENT_LEN_MAX + 1).unwrap();
            fs::write(dir.join("a.magnet"), "magnet:?xt=urn:btih:0").unwrap();
        });
        let mut reasons = BTreeSet::new();
        for _ in 0..4 {
            let found = bench.next().await;
            let sentence = found.contents.expect_err("it is refused");
            reasons.insert(sentence.clone());
            bench.watch.reject(found.path, sentence);
        }
        assert_eq!(reasons.len(), 4, "{reasons:?}");
        assert_eq!(fs::read(bench.path("secret")).unwrap(), b"d6:secrete");
        let expected = [
            ".hidden.torrent",
            "a.magnet.rejected",
            "a.magnet.rejected.txt",
            "dir.torrent",
            "fifo.torrent.rejected",
            "fifo.torrent.rejected.txt",
            "large.torrent.rejected",
            "large.torrent.rejected.txt",
            "link.torrent.rejected",
            "link.torrent.rejected.txt",
            "note.txt",
            "secret",
        ];
        assert_eq!(bench.names().await, set(&expected));
    });
}

#[test]
fn a_thousand_at_once_are_all_found_once() {
    run(async {
        let mut bench = Bench::new(true, |_| {});
        for index in 0..1000 {
            fs::write(bench.path(&format!("{index}.torrent")), "d1:ae").unwrap();
        }
        let mut seen = BTreeSet::new();
        for _ in 0..1000 {
            let found = bench.next().await;
            assert!(seen.insert(found.path.clone()), "{:?} came twice", found.path);
            bench.watch.accept(found.path);
        }
        let names = bench.names().await;
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.ends_with(".torrent.added")));
    });
}

#[test]
fn names_that_are_taken_get_a_number() {
    run(async {
        let mut bench = Bench::new(true, |dir| {
            fs::write(dir.join("a.torrent.added"), "old").unwrap();
            fs::write(dir.join("a.torrent"), "d1:ae").unwrap();
        });
        let found = bench.next().await;
        bench.watch.accept(found.path);
        let old = fs::read(bench.path("a.torrent.added")).unwrap();
        assert_eq!(old, b"old");
        assert_eq!(bench.names().await, set(&["a.torrent.added", "a.torrent.added.1"]));
    });
}

#[test]
fn a_file_that_changed_after_it_was_given_out_is_given_out_again() {
    run(async {
        let mut bench = Bench::new(true, |dir| fs::write(dir.join("a.torrent"), "d1:ae").unwrap());
        let first = bench.next().await;
        fs::write(bench.path("new"), "d1:bbbbe").unwrap();
        fs::rename(bench.path("new"), bench.path("a.torrent")).unwrap();
        bench.watch.accept(first.path);
        let second = bench.next().await;
        assert_eq!(second.contents.unwrap(), b"d1:bbbbe");
        bench.watch.accept(second.path);
        assert_eq!(bench.names().await, set(&["a.torrent.added"]));
    });
}

#[test]
fn a_folder_that_comes_later_is_watched() {
    run(async {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("later");
        let (watch, mut found) = Watch::start_with(vec![folder.clone()], RULES, true).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.torrent"), "d1:ae").unwrap();
        let next = tokio::time::timeout(Duration::from_secs(5), found.recv()).await;
        assert_eq!(next.unwrap().unwrap().path, folder.join("a.torrent"));
        watch.close().await;
    });
}
