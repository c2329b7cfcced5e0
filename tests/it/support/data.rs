//! Content to share, made from a seed, and its comparison.
//!
//! A seed enters, files leave. Invariant: equal seeds give equal bytes, and two trees count as the
//! same only if every name, length and byte is.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use seedring::metainfo::{CreateOptions, Metainfo, create};

/// Bytes of the big single-file torrent.
pub(crate) const BIG_LEN: u64 = 256 << 20;

/// A torrent and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Folder that holds the torrent's top name.
    pub(crate) root: PathBuf,
    /// The top name.
    pub(crate) name: String,
    /// The `.torrent` file.
    pub(crate) torrent: PathBuf,
    /// What it says.
    pub(crate) metainfo: Metainfo,
}

impl Content {
    /// The file or directory with the data.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The info-hash in hexadecimal.
    pub(crate) fn info_hash(&self) -> String {
        self.metainfo.info_hash.to_string()
    }

    /// The same content, found through `url` too: another `.torrent` under `dir`.
    pub(crate) fn with_tracker(&self, dir: &Path, url: &str) -> Self {
        let mut bytes = format!("d8:announce{}:{url}4:info", url.len()).into_bytes();
        bytes.extend_from_slice(self.metainfo.raw_info());
        bytes.push(b'e');
        let torrent = dir.join(format!("{}.torrent", self.name.replace(' ', "-")));
        fs::write(&torrent, &bytes).unwrap();
        let metainfo = Metainfo::parse(&bytes).unwrap();
        assert_eq!(metainfo.info_hash, self.metainfo.info_hash);
        Self { torrent, metainfo, ..self.clone() }
    }

    /// Its magnet link.
    pub(crate) fn link(&self) -> String {
        self.metainfo.magnet().to_string()
    }

    /// Copies the data to below `root`.
    pub(crate) fn copy_to(&self, root: &Path) {
        copy(&self.path(), &root.join(&self.name));
    }

    /// Panics unless `root` holds the same data.
    pub(crate) fn assert_same_in(&self, root: &Path) {
        assert_same(&self.path(), &root.join(&self.name));
    }
}

/// How a torrent is made, beside its data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Bytes of a piece.
    pub(crate) piece_length: u32,
    /// Trackers.
    pub(crate) trackers: Vec<String>,
    /// Only for the peers of trackers (BEP 27).
    pub(crate) private: bool,
}

impl Shape {
    /// Pieces of this length and no tracker.
    pub(crate) fn pieces_of(piece_length: u32) -> Self {
        Self { piece_length, ..Self::default() }
    }
}

/// The big single-file torrent: made once, kept in the build directory, never written to.
pub(crate) fn big() -> &'static Content {
    static BIG: OnceLock<Content> = OnceLock::new();
    BIG.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("big");
        let root = dir.join("big.bin.origin");
        let torrent = dir.join("big.bin.torrent");
        match fs::read(&torrent).map(|bytes| Metainfo::parse(&bytes).unwrap()) {
            Ok(metainfo) => Content { root, name: "big.bin".to_owned(), torrent, metainfo },
            // The torrent is written last: without it the data may be of a run that was ended.
            Err(_) => single(&dir, "big.bin", BIG_LEN + 12_345, 1, &Shape::pieces_of(1 << 20)),
        }
    })
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for name in names(from) {
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// A torrent of one file of `len` bytes under `dir`.
pub(crate) fn single(dir: &Path, name: &str, len: u64, seed: u64, shape: &Shape) -> Content {
    let root = dir.join(format!("{name}.origin"));
    fs::create_dir_all(&root).unwrap();
    write_random(&root.join(name), len, seed);
    torrent_of(dir, root, name, shape)
}

/// A torrent of many files: odd sizes, an empty one, names in several scripts, pieces of 32 KiB
/// that span files.
pub(crate) fn odd_tree(dir: &Path, seed: u64, shape: &Shape) -> Content {
    let (name, root) = ("odd tree", dir.join("odd.origin"));
    let files: [(&str, u64); 11] = [
        ("a/one byte", 1),
        ("a/empty", 0),
        ("a/almost a piece.bin", 32 * 1024 - 1),
        ("b/русский/Война и мир.txt", 100_003),
        ("b/日本語/吾輩は猫である.txt", 65_537),
        ("b/العربية/كتاب.txt", 7),
        ("c/d/e/f/deep", 3 * 1024 * 1024 + 17),
        ("c/Ωμέγα – naïve ☃ 🎈.dat", 500_009),
        ("c/it's 'quoted' & [odd] #1 %20 +.txt", 12_345),
        ("z/last but one", 16 * 1024),
        ("z/last", 777_777),
    ];
    for (index, (path, len)) in files.into_iter().enumerate() {
        let path = root.join(name).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_random(&path, len, seed + index as u64);
    }
    torrent_of(dir, root, name, shape)
}

fn torrent_of(dir: &Path, root: PathBuf, name: &str, shape: &Shape) -> Content {
    let options = CreateOptions {
        piece_length: Some(shape.piece_length),
        trackers: shape.trackers.clone(),
        private: shape.private,
        ..CreateOptions::default()
    };
    let created = create(&root.join(name), &options, &|_, _| {}).unwrap();
    let torrent = dir.join(format!("{}.torrent", name.replace(' ', "-")));
    fs::write(&torrent, &created.bytes).unwrap();
    let metainfo = Metainfo::parse(&created.bytes).unwrap();
    Content { root, name: name.to_owned(), torrent, metainfo }
}

/// Writes `len` pseudo-random bytes.
pub(crate) fn write_random(path: &Path, len: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut buffer = vec![0; 64 * 1024];
    let mut left = len;
    while left > 0 {
        let part = usize::try_from(left.min(buffer.len() as u64)).unwrap();
        rng.fill(&mut buffer[..part]);
        file.write_all(&buffer[..part]).unwrap();
        left -= part as u64;
    }
    file.flush().unwrap();
}

/// Panics unless both paths hold the same names and bytes.
pub(crate) fn assert_same(left: &Path, right: &Path) {
    if !left.is_dir() {
        return assert_same_file(left, right);
    }
    assert_eq!(names(left), names(right), "{} and {}", left.display(), right.display());
    for name in names(left) {
        assert_same(&left.join(&name), &right.join(&name));
    }
}

fn names(dir: &Path) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn assert_same_file(left: &Path, right: &Path) {
    let open = |path: &Path| {
        File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (mut one, mut two) = (open(left), open(right));
    let lens = (one.metadata().unwrap().len(), two.metadata().unwrap().len());
    assert_eq!(lens.0, lens.1, "length of {} and {}", left.display(), right.display());
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < lens.0 {
        let part = usize::try_from((lens.0 - at).min(1 << 20)).unwrap();
        one.read_exact(&mut ours[..part]).unwrap();
        two.read_exact(&mut theirs[..part]).unwrap();
        assert!(
            ours[..part] == theirs[..part],
            "{} and {} differ behind byte {at}",
            left.display(),
            right.display()
        );
        at += part as u64;
    }
}
