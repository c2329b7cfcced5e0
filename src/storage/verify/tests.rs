//! Checks against a naive reading of the same files.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::sys::sha1::digest;

const ONE: Options = Options { threads: 1, low_priority: false };
const TWO: Options = Options { threads: 2, low_priority: true };

struct Torrent {
    geometry: Geometry,
    hashes: Vec<Digest>,
    files: Vec<ContentFile>,
}

impl Content for Torrent {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn piece_hash(&self, piece: PieceIndex) -> Option<Digest> {
        self.hashes.get(piece.0 as usize).copied()
    }

    fn file_count(&self) -> usize {
        self.files.len()
    }

    fn file(&self, index: usize) -> Option<ContentFile> {
        self.files.get(index).cloned()
    }
}

/// Files of the given lengths, negative for padding, with random content on disk.
fn torrent(lens: &[i64], piece_len: u32, seed: u64) -> (TempDir, Arc<Torrent>) {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut data, mut files) = (Vec::new(), Vec::new());
    for (index, &len) in lens.iter().enumerate() {
        let is_padding = len < 0;
        let len = usize::try_from(len.unsigned_abs()).unwrap();
        let path = PathBuf::from(format!("top/{}/{index}", index % 3));
        let mut content = vec![0; len];
        if !is_padding {
            rng.fill(&mut content);
            fs::create_dir_all(dir.path().join(&path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(&path), &content).unwrap();
        }
        data.extend(content);
        files.push(ContentFile { path, len: len as u64, is_on_disk: !is_padding });
    }
    let geometry = Geometry::new(data.len() as u64, piece_len).unwrap();
    let hashes = data.chunks(piece_len as usize).map(digest).collect();
    (dir, Arc::new(Torrent { geometry, hashes, files }))
}

/// What the files say when they are read in the simplest way.
fn oracle(torrent: &Torrent, root: &Path) -> Vec<bool> {
    let mut data: Vec<Option<u8>> = Vec::new();
    for file in &torrent.files {
        let len = usize::try_from(file.len).unwrap();
        let content = match file.is_on_disk {
            true => fs::read(root.join(&file.path)).unwrap_or_default(),
            false => vec![0; len],
        };
        let present = content.into_iter().map(Some).chain(std::iter::repeat(None));
        data.extend(present.take(len));
    }
    let pieces = data.chunks(torrent.geometry.piece_len_nominal() as usize);
    let is_right = |(piece, hash): (&[Option<u8>], &Digest)| {
        let bytes: Option<Vec<u8>> = piece.iter().copied().collect();
        bytes.is_some_and(|bytes| digest(&bytes) == *hash)
    };
    pieces.zip(&torrent.hashes).map(is_right).collect()
}

fn run(torrent: &Arc<Torrent>, root: &Path, options: Options) -> Checked {
    let progress = Arc::new(Progress::default());
    let checked = check(Arc::clone(torrent) as _, root, options, Arc::clone(&progress));
    assert_eq!(progress.bytes_done(), torrent.geometry.total_len());
    assert_eq!(checked.files.len(), torrent.files.len());
    assert!(!checked.cancelled);
    checked
}

fn have(checked: &Checked) -> Vec<bool> {
    (0..checked.have.len()).map(|index| checked.have.has(PieceIndex(index))).collect()
}

fn states(checked: &Checked) -> Vec<FileState> {
    checked.files.iter().map(|file| file.state).collect()
}

fn flip(path: &Path, offset: usize) {
    let mut content = fs::read(path).unwrap();
    content[offset] ^= 1;
    fs::write(path, content).unwrap();
}

#[test]
fn every_corrupted_piece_is_found() {
    let piece_len = 20_000;
    let (dir, torrent) = torrent(&[250_001], piece_len, 1);
    let path = dir.path().join(&torrent.files[0].path);
    assert!(run(&torrent, dir.path(), ONE).is_complete());
    for piece in 0..torrent.geometry.piece_count() {
        let start = usize::try_from(torrent.geometry.piece_start(PieceIndex(piece))).unwrap();
        let len = torrent.geometry.piece_len(PieceIndex(piece)) as usize;
        for offset in [start, start + len - 1] {
            flip(&path, offset);
            for options in [ONE, TWO] {
                let checked = run(&torrent, dir.path(), options);
                assert!(!checked.have.has(PieceIndex(piece)));
                assert_eq!(checked.have.count(), checked.have.len() - 1);
                assert_eq!(checked.bytes_hashed, 250_001);
                assert!(!checked.is_complete());
            }
            flip(&path, offset);
        }
    }
}

#[test]
fn pieces_longer_than_a_chunk_and_many_pieces() {
    for (lens, piece_len) in [
        (&[1_000_000, 300_000, 5, 0, 700_001][..], 1 << 18),
        (&[400_000, -113_856, 400_000], 200_000),
        (&[70_000; 9], 16_384),
        (&[5, 0, 0, 1, -16_378, 16_384, 0], 16_384),
        (&[0, 0], 16_384),
        (&[1], 16_384),
        (&[], 16_384),
    ] {
        let (dir, torrent) = torrent(lens, piece_len, 2);
        for options in [ONE, TWO, Options { threads: 0, low_priority: false }] {
            let checked = run(&torrent, dir.path(), options);
            assert!(checked.is_complete(), "{lens:?}");
            assert_eq!(
                (checked.bytes_hashed, checked.error_count),
                (torrent.geometry.total_len(), 0)
            );
        }
    }
}

#[test]
fn missing_short_long_and_strange_files() {
    use FileState::{Long, Missing, Short, Unusable, Virtual, Whole};
    let (dir, torrent) = torrent(&[10_000, 10_000, -6_384, 16_384, 9_000, 9_000, 0], 16_384, 3);
    let path = |index: usize| dir.path().join(&torrent.files[index].path);
    fs::remove_file(path(1)).unwrap();
    let file = fs::File::options().append(true).open(path(3)).unwrap();
    file.set_len(20_000).unwrap();
    fs::File::options().write(true).open(path(4)).unwrap().set_len(8_999).unwrap();
    fs::remove_file(path(5)).unwrap();
    fs::create_dir(path(5)).unwrap();
    fs::remove_file(path(6)).unwrap();
    let checked = run(&torrent, dir.path(), ONE);
    assert_eq!(states(&checked), [Whole, Missing, Virtual, Long, Short, Unusable, Missing]);
    assert_eq!(have(&checked), oracle(&torrent, dir.path()));
    assert_eq!(checked.errors.len(), 1);
    assert_eq!(checked.errors[0].file, Some(5));
    assert!(checked.errors[0].to_string().starts_with("file 5: "));
    let identity = checked.files[3].identity.unwrap();
    assert_eq!(identity.size, 20_000);
    assert!(checked.files[1].identity.is_none());
}

#[test]
fn a_missing_empty_file_is_not_complete() {
    let (dir, torrent) = torrent(&[100, 0], 16_384, 4);
    assert!(run(&torrent, dir.path(), ONE).is_complete());
    fs::remove_file(dir.path().join(&torrent.files[1].path)).unwrap();
    let checked = run(&torrent, dir.path(), ONE);
    assert!(checked.have.is_complete() && !checked.is_complete());
}

#[test]
fn a_missing_save_path_is_told() {
    let (dir, torrent) = torrent(&[100], 16_384, 5);
    let checked = run(&torrent, &dir.path().join("nowhere"), ONE);
    assert_eq!((checked.have.count(), checked.errors[0].file), (0, None));
    assert!(checked.errors[0].to_string().starts_with("the folder: "));
}

#[test]
fn files_that_cannot_be_read_cost_their_pieces_and_few_errors() {
    let lens = vec![16_384; ERRORS_MAX + 10];
    let (dir, torrent) = torrent(&lens, 16_384, 6);
    for file in &torrent.files[1..] {
        let path = dir.path().join(&file.path);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let checked = run(&torrent, dir.path(), TWO);
    assert_eq!(checked.have.iter().collect::<Vec<_>>(), [PieceIndex(0)]);
    assert_eq!(checked.errors.len(), ERRORS_MAX);
    assert_eq!(checked.error_count, torrent.files.len() as u64 - 1);
}

#[test]
fn holes_are_missing_without_reading_unless_zeros_are_wanted() {
    let piece_len = 1 << 16;
    let len = 16 * i64::from(piece_len) + 5;
    let (dir, torrent) = torrent(&[len], piece_len, 7);
    let path = dir.path().join(&torrent.files[0].path);
    let file = fs::File::create(&path).unwrap();
    file.set_len(torrent.geometry.total_len()).unwrap();
    let sparse = fs::File::open(&path).unwrap();
    let sees_holes = crate::sys::file::next_data(std::os::fd::AsFd::as_fd(&sparse), 0);
    let checked = run(&torrent, dir.path(), ONE);
    assert_eq!(checked.have.count(), 0);
    assert_eq!(states(&checked), [FileState::Whole]);
    if sees_holes.unwrap().is_none() {
        // The last piece is shorter, has a zero hash of its own, and is read.
        assert_eq!(checked.bytes_hashed, 5);
    }
    // Data in a hole is seen, and a reserved file is as empty as a sparse one.
    crate::sys::file::reserve(std::os::fd::AsFd::as_fd(&file), len.unsigned_abs()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 5 * u64::from(piece_len)).unwrap();
    assert_eq!(have(&run(&torrent, dir.path(), TWO)), oracle(&torrent, dir.path()));
    let zeros = vec![0; piece_len as usize];
    let hashes = vec![digest(&zeros); 16].into_iter().chain([digest(&zeros[..5])]).collect();
    let zeros = Torrent { geometry: torrent.geometry, hashes, files: torrent.files.clone() };
    let checked = run(&Arc::new(zeros), dir.path(), ONE);
    assert_eq!(checked.have.count(), 16);
    assert!(!checked.have.has(PieceIndex(5)));
}

#[test]
fn a_cancelled_check_says_so() {
    let (dir, torrent) = torrent(&[100_000], 16_384, 8);
    let progress = Arc::new(Progress::default());
    progress.cancel();
    let checked = check(torrent, dir.path(), TWO, progress);
    assert!(checked.cancelled && !checked.is_complete());
    assert_eq!((checked.have.count(), checked.bytes_hashed), (0, 0));
}

/// A torrent that lets something happen when the hash of piece number `at` is asked for.
struct Hooked<F> {
    torrent: Arc<Torrent>,
    at: u32,
    hook: F,
}

impl<F: Fn() + Send + Sync> Content for Hooked<F> {
    fn geometry(&self) -> Geometry {
        self.torrent.geometry
    }

    fn piece_hash(&self, piece: PieceIndex) -> Option<Digest> {
        if piece.0 == self.at {
            (self.hook)();
        }
        self.torrent.piece_hash(piece)
    }

    fn file_count(&self) -> usize {
        self.torrent.file_count()
    }

    fn file(&self, index: usize) -> Option<ContentFile> {
        self.torrent.file(index)
    }
}

#[test]
fn a_check_can_be_cancelled_in_the_middle() {
    let (dir, torrent) = torrent(&[16_384 * 600], 16_384, 9);
    let progress = Arc::new(Progress::default());
    let cancel = Arc::clone(&progress);
    let content = Hooked { torrent, at: 20, hook: move || cancel.cancel() };
    let checked = check(Arc::new(content), dir.path(), ONE, progress);
    assert!(checked.cancelled);
    assert!(checked.have.count() > 0 && checked.have.count() < 600, "{:?}", checked.have);
}

#[test]
fn a_file_truncated_underfoot_costs_its_last_pieces() {
    let (dir, torrent) = torrent(&[16_384 * 300], 16_384, 15);
    let path = dir.path().join(&torrent.files[0].path);
    let file = fs::File::options().write(true).open(path).unwrap();
    let hook = move || file.set_len(16_384 * 200).unwrap();
    let content = Arc::new(Hooked { torrent, at: 20, hook });
    let checked = check(content, dir.path(), ONE, Arc::default());
    let expected: Vec<PieceIndex> = (0..200).map(PieceIndex).collect();
    assert_eq!(checked.have.iter().collect::<Vec<_>>(), expected);
    assert_eq!(checked.error_count, 100);
    assert_eq!(checked.errors[0].error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(checked.files[0].identity.unwrap().size, 16_384 * 300);
}

/// The same through a `.torrent` file, with padding between the files.
#[test]
fn a_torrent_file_is_checked_as_it_was_made() {
    let (dir, _) = torrent(&[40_000, 70_000, 1, 0], 16_384, 14);
    let options = crate::metainfo::CreateOptions::default();
    let created = crate::metainfo::create(&dir.path().join("top"), &options, &|_, _| ()).unwrap();
    let metainfo = Arc::new(Metainfo::parse(&created.bytes).unwrap());
    let run = || check(Arc::clone(&metainfo) as _, dir.path(), TWO, Arc::default());
    let checked = run();
    assert!(checked.is_complete(), "{checked:?}");
    assert_eq!(checked.files.len(), 4);
    flip(&dir.path().join(metainfo.layout.file(0).unwrap().path()), 0);
    assert!(!run().is_complete());
}

fn job(torrent: &Arc<Torrent>, root: &Path, send: &mpsc::Sender<Checked>) -> Job {
    let send = send.clone();
    Job {
        content: Arc::clone(torrent) as _,
        root: root.to_owned(),
        progress: Arc::new(Progress::default()),
        // Nobody listens any more where a test has failed.
        done: Box::new(move |checked| drop(send.send(checked))),
    }
}

#[test]
fn a_checker_answers_every_job() {
    let (large_dir, large) = torrent(&[500_000, 5], 1 << 15, 10);
    let (small_dir, small) = torrent(&[100], 16_384, 11);
    for options in [ONE, TWO, Options { threads: 5, low_priority: false }] {
        let checker = Checker::start(options).unwrap();
        let (send, receive) = mpsc::channel();
        for _ in 0..20 {
            checker.submit(job(&large, large_dir.path(), &send)).unwrap();
            for _ in 0..10 {
                checker.submit(job(&small, small_dir.path(), &send)).unwrap();
            }
        }
        drop(send);
        let results: Vec<Checked> = receive.iter().collect();
        assert_eq!(results.len(), 220);
        assert!(results.iter().all(Checked::is_complete));
        assert_eq!(results.iter().map(|checked| checked.bytes_hashed).max(), Some(500_005));
        assert_eq!(checker.waiting_count(), 0);
    }
}

#[test]
fn a_dropped_checker_answers_what_waits_as_cancelled() {
    let (dir, torrent) = torrent(&[2_000_000], 1 << 16, 12);
    let checker = Checker::start(ONE).unwrap();
    let (send, receive) = mpsc::channel();
    for _ in 0..1_000 {
        checker.submit(job(&torrent, dir.path(), &send)).unwrap();
    }
    drop((checker, send));
    let results: Vec<Checked> = receive.iter().collect();
    assert_eq!(results.len(), 1_000);
    assert!(results.last().unwrap().cancelled);
    assert!(results.iter().all(|checked| checked.cancelled != checked.is_complete()));
}

#[test]
fn a_queued_job_can_be_cancelled_and_the_queue_has_an_end() {
    let (dir, torrent) = torrent(&[100], 16_384, 13);
    let checker = Checker::start(ONE).unwrap();
    let (send, receive) = mpsc::channel();
    // The only thread is held until the queue is full.
    let (release, held) = mpsc::channel::<()>();
    let (holding, is_held) = mpsc::channel::<()>();
    let mut first = job(&torrent, dir.path(), &send);
    first.done = Box::new(move |_| {
        holding.send(()).unwrap();
        held.recv().unwrap();
    });
    checker.submit(first).unwrap();
    is_held.recv().unwrap();
    for _ in 0..JOBS_MAX {
        let waiting = job(&torrent, dir.path(), &send);
        waiting.progress.cancel();
        checker.submit(waiting).unwrap();
    }
    let refused = checker.submit(job(&torrent, dir.path(), &send)).unwrap_err();
    assert!(!refused.0.progress.is_cancelled());
    drop(refused);
    release.send(()).unwrap();
    drop(send);
    assert!(receive.iter().all(|checked| checked.cancelled));
}

#[test]
fn a_disk_that_hangs_stops_only_its_own_checks() {
    hangs(false);
}

#[test]
fn a_disk_that_hangs_when_a_check_is_answered_stops_only_its_own_checks() {
    hangs(true);
}

/// On two mounts, of which one does not answer: in the check, or when its answer reads on.
fn hangs(in_answer: bool) {
    let (dead_dir, dead) = torrent(&[1_000_000], 16_384, 16);
    let (good_dir, good) = torrent(&[300_000], 16_384, 17);
    let (good_path, dead_path) = (good_dir.path().to_owned(), dead_dir.path().to_owned());
    let mounts = move || {
        let mounts = [("/".into(), "8:1"), (good_path.clone(), "8:1"), (dead_path.clone(), "8:2")];
        mounts.into_iter().map(|(path, device)| (path, device.to_owned())).collect()
    };
    let patience = Duration::from_millis(20);
    let checker = Checker::start_with(ONE, patience, Box::new(mounts)).unwrap();
    let (send, receive) = mpsc::channel();
    let (dead_send, dead_receive) = mpsc::channel();
    let (until, hang) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel();
    let hang = std::sync::Mutex::new(hang);
    let hook = move || {
        begun.send(()).unwrap();
        assert!(hang.lock().unwrap().recv().is_err());
    };
    let mut first = job(&dead, dead_dir.path(), &dead_send);
    if in_answer {
        let send = dead_send.clone();
        first.done = Box::new(move |checked| {
            hook();
            send.send(checked).unwrap();
        });
    } else {
        first.content = Arc::new(Hooked { torrent: Arc::clone(&dead), at: 0, hook });
    }
    checker.submit(first).unwrap();
    let wait = Duration::from_secs(20);
    has_begun.recv_timeout(wait).expect("the check begins");
    let behind = job(&dead, dead_dir.path(), &dead_send);
    let unwanted = job(&dead, dead_dir.path(), &dead_send);
    let cancel = Arc::clone(&unwanted.progress);
    checker.submit(behind).unwrap();
    checker.submit(unwanted).unwrap();
    for _ in 0..5 {
        checker.submit(job(&good, good_dir.path(), &send)).unwrap();
    }
    for _ in 0..5 {
        assert!(receive.recv_timeout(wait).expect("the good disk waits").is_complete());
    }
    // The thread hangs; what waits for that disk is held, but for what nobody wants any more.
    assert_eq!(checker.waiting_count(), 2);
    assert!(dead_receive.try_recv().is_err());
    cancel.cancel();
    assert!(dead_receive.recv_timeout(wait).expect("it waits for the disk").cancelled);
    drop(until);
    for _ in 0..2 {
        assert!(dead_receive.recv_timeout(wait).expect("it is held for ever").is_complete());
    }
    assert_eq!(checker.waiting_count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_damage_is_judged_as_the_oracle_does(
        lens in proptest::collection::vec(-40_000i64..100_000, 0..12),
        piece_len in prop_oneof![Just(16_384u32), Just(65_536), 1u32..100_000],
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..5, 0usize..200_000), 0..6),
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let total: u64 = lens.iter().map(|len| len.unsigned_abs()).sum();
        // Tiny pieces of large files take long and show nothing more.
        prop_assume!(total / u64::from(piece_len) < 500);
        let (dir, torrent) = torrent(&lens, piece_len, seed);
        for (index, kind, at) in damage {
            if torrent.files.is_empty() { break }
            let file = index.get(&torrent.files);
            let path = dir.path().join(&file.path);
            let Ok(len) = fs::metadata(&path).map(|meta| meta.len()) else { continue };
            let open = || fs::File::options().write(true).open(&path).unwrap();
            match kind {
                0 => fs::remove_file(&path).unwrap(),
                1 => open().set_len(len / 2).unwrap(),
                2 => open().set_len(len + at as u64).unwrap(),
                3 => fs::File::create(&path).unwrap().set_len(len).unwrap(),
                _ if len > 0 => flip(&path, at % usize::try_from(len).unwrap()),
                _ => {}
            }
        }
        let options = Options { threads, low_priority: false };
        let checked = run(&torrent, dir.path(), options);
        prop_assert_eq!(have(&checked), oracle(&torrent, dir.path()));
        prop_assert_eq!(checked.error_count, 0);
    }
}
