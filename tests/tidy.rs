//! The rules of the house that no compiler holds: what pure rooms may name, how files begin, how
//! long they are, and under which licences the dependencies come.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its own tree fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a file without its tests, at most.
const FILE_LINES_MAX: usize = 600;

/// Rooms that take values and give values.
const PURE: &[&str] = &[
    "units.rs",
    "bencode/",
    "dht/",
    "metainfo/error.rs",
    "metainfo/files.rs",
    "metainfo/layout.rs",
    "metainfo/magnet.rs",
    "metainfo/mod.rs",
    "metainfo/names.rs",
    "metainfo/parse.rs",
    "metainfo/selection.rs",
    "metainfo/urls.rs",
    "wire/",
    "worker/admission.rs",
    "lsd.rs",
    "mse/",
    "rate.rs",
    "swarm/",
    "tracker/announcer.rs",
    "tracker/chain.rs",
    "tracker/host.rs",
    "tracker/http_date.rs",
    "tracker/limits.rs",
    "tracker/policy.rs",
    "tracker/reply.rs",
    "tracker/scheduler.rs",
    "tracker/scheduler/",
    "tracker/tracked.rs",
    "tracker/tracker_url.rs",
    "tracker/udp/client.rs",
    "tracker/udp/packet.rs",
];

/// What they must not name.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::os",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "libc::",
    "io_uring",
    "tokio::",
    "Instant::now",
];

/// Licences that go together with ours; an expression needs one of them in each `AND` part.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "BSL-1.0",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "CDLA-Permissive-2.0",
    "OpenSSL",
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name below `src/` and text of every source file.
fn files() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    assert!(paths.len() > 50, "only {} files were found", paths.len());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// The part of a file that is not tests.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_tests(name: &str) -> bool {
    name.contains("tests/") || name.ends_with("tests.rs")
}

#[test]
fn every_file_says_what_it_is_for() {
    let mute: Vec<_> =
        files().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|it| it.0).collect();
    assert!(mute.is_empty(), "no //! at the top of {mute:?}");
}

#[test]
fn pure_rooms_are_pure() {
    for (name, text) in files().iter().filter(|(name, _)| !is_tests(name)) {
        if !PURE.iter().any(|room| name.starts_with(room)) {
            continue;
        }
        for (line, words) in without_tests(text).lines().enumerate() {
            let code = words.split("//").next().unwrap_or_default();
            let named = IMPURE.iter().find(|word| code.contains(**word));
            assert!(named.is_none(), "{name}:{}: names {named:?}", line + 1);
        }
    }
    for room in PURE {
        let exists = files().iter().any(|(name, _)| name.starts_with(room));
        assert!(exists, "{room} is on the list of pure rooms and does not exist");
    }
}

#[test]
fn unsafe_stays_in_its_two_rooms() {
    for (name, text) in files() {
        if name.starts_with("ring/") || name.starts_with("sys/") {
            continue;
        }
        let found = text.lines().position(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn")
        });
        assert_eq!(found, None, "{name} is outside of ring and sys");
    }
}

#[test]
fn files_are_short_and_nothing_is_left_behind() {
    for (name, text) in files() {
        let lines = without_tests(&text).lines().count();
        assert!(is_tests(&name) || lines <= FILE_LINES_MAX, "{name} has {lines} lines");
        // In two parts, so that this file does not find itself.
        for word in [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X")] {
            assert!(!text.contains(word), "{name} holds {word}");
        }
    }
}

/// The file `name` below `src/`, without white space.
fn squeezed(name: &str) -> String {
    let (_, text) = files().into_iter().find(|(it, _)| it == name).unwrap();
    text.split_whitespace().collect()
}

/// Code outside of the metrics themselves and of tests, without comments and white space.
fn counting_code() -> String {
    let of_others = |(name, _): &(String, String)| !name.starts_with("metrics/") && !is_tests(name);
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    let texts = files().into_iter().filter(of_others).map(|(_, text)| {
        without_tests(&text)
            .lines()
            .map(code)
            .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .collect::<String>()
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// Whether a cell is written to anywhere: `.field` or `.field[...]`, then a method that writes.
fn is_written(code: &str, field: &str) -> bool {
    const WRITES: [&str; 4] = [".add(", ".set(", ".sub(", ".observe("];
    code.match_indices(&format!(".{field}")).any(|(at, name)| {
        let rest = &code[at + name.len()..];
        let behind = match rest.strip_prefix('[') {
            Some(index) => index.split_once(']').map_or("", |(_, behind)| behind),
            None => rest,
        };
        WRITES.iter().any(|write| behind.starts_with(write))
    })
}

#[test]
fn every_metric_is_counted_somewhere() {
    let (code, catalogue) = (counting_code(), squeezed("metrics/catalogue.rs"));
    let kinds = [":counter", ":seconds", ":gauge", ":histogram", ":latency"];
    let fields: Vec<&str> = catalogue
        .split(';')
        .filter_map(|line| {
            let (head, _) = kinds.iter().find_map(|kind| line.split_once(kind))?;
            let name = head.rsplit(|c: char| !c.is_ascii_lowercase() && c != '_').next()?;
            (!name.is_empty() && !head.contains("macro_rules")).then_some(name)
        })
        .collect();
    assert!(fields.len() > 40, "only {fields:?}");
    let silent: Vec<_> = fields.iter().filter(|field| !is_written(&code, field)).collect();
    assert!(silent.is_empty(), "nobody writes to {silent:?}");
}

#[test]
fn every_label_value_is_counted_somewhere() {
    let (code, mut values) = (counting_code(), Vec::new());
    let (_, labels) = files().into_iter().find(|(name, _)| name == "metrics/labels.rs").unwrap();
    let mut set = "";
    for line in labels.lines().map(str::trim).filter(|line| line.contains(" \"")) {
        let word = line.split(' ').next().unwrap_or_default();
        if line.ends_with('{') {
            set = word;
        } else if line.ends_with("\",") {
            values.push((set, word));
        }
    }
    assert!(values.len() > 60, "only {values:?}");
    // A set that is walked as a whole has every value.
    let is_named = |(set, value): &(&str, &str)| {
        code.contains(&format!("{set}::{value}")) || code.contains(&format!("{set}::ALL"))
    };
    let silent: Vec<_> = values.iter().filter(|value| !is_named(value)).collect();
    assert!(silent.is_empty(), "nobody counts {silent:?}");
}

#[test]
fn silent_cells_are_seen() {
    let code = "core.sent[A::B].add(1);core.gone.get();core.time.add(x)";
    assert!(is_written(code, "sent") && is_written(code, "time"));
    assert!(!is_written(code, "gone") && !is_written(code, "ti"));
}

#[test]
fn the_licences_of_all_dependencies_go_together_with_ours() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        // Only what is built here was fetched.
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20, "only {} packages were found", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or("none"));
        assert!(is_compatible(licence), "{name} comes under {licence}");
    }
}

/// What only the program for libFuzzer depends on. It is linked into nothing that is given away:
/// (MIT OR Apache-2.0) AND NCSA, and MIT OR Apache-2.0.
const FUZZ_ONLY: &[&str] = &["arbitrary", "jobserver", "libfuzzer-sys", "seedring-fuzz"];

#[test]
fn the_fuzzer_depends_on_nothing_else_than_we_do() {
    let names = |lock: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(root().join(lock)).unwrap();
        let name = |line: &str| Some(line.strip_prefix("name = \"")?.strip_suffix('"')?.to_owned());
        text.lines().filter_map(name).collect()
    };
    let (ours, theirs) = (names("Cargo.lock"), names("fuzz/Cargo.lock"));
    assert!(theirs.len() > 20 && theirs.contains("libfuzzer-sys"), "only {theirs:?}");
    let is_new = |name: &&String| !ours.contains(*name) && !FUZZ_ONLY.contains(&name.as_str());
    let new: Vec<_> = theirs.iter().filter(is_new).collect();
    assert!(new.is_empty(), "the licences of {new:?} are not looked at");
}

/// Whether an SPDX expression can be met with [`LICENCES`]. Good for the shapes that occur: lists
/// joined by OR (or the old `/`), whose parts may be joined by AND, with one level of brackets.
fn is_compatible(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let known = |licence: &str| LICENCES.contains(&licence.trim());
    let by_or = expression.split(" OR ").any(|choice| choice.split(" AND ").all(known));
    let by_and = expression.split(" AND ").all(|part| part.split(" OR ").any(known));
    by_or || by_and
}

#[test]
fn licences_are_told_apart() {
    for good in ["MIT", "MIT OR Apache-2.0", "MIT/GPL-3.0", "(MIT OR GPL-3.0) AND Unicode-3.0"] {
        assert!(is_compatible(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "none", ""] {
        assert!(!is_compatible(bad), "{bad}");
    }
}
