//! Where a torrent comes from: a file, a URL; and whether its data may be put where it should go.

use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;

use super::Exit;
use crate::metainfo::Metainfo;
use crate::tracker::policy::{self, permits_operator};

/// Longest `.torrent` that is taken.
const TORRENT_LEN_MAX: usize = 10 * 1024 * 1024;

/// How long a URL may take in all.
const URL_TIMEOUT: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 10;

/// Why there is no torrent to work with.
#[derive(Debug)]
pub(super) struct Unreadable {
    exit: Exit,
    sentence: String,
}

impl Unreadable {
    fn new(exit: Exit, sentence: String) -> Self {
        Self { exit, sentence }
    }

    /// Says so, and how to exit.
    pub(super) fn fail(self) -> Exit {
        super::fail(self.exit, self.sentence)
    }
}

/// Reads a torrent from wherever `source` says.
pub(super) async fn read(source: &str) -> Result<Metainfo, Unreadable> {
    if source.starts_with("http://") || source.starts_with("https://") {
        let bytes = fetch(source).await.map_err(|(exit, why)| {
            Unreadable::new(exit, format!("cannot fetch {source}: {why}"))
        })?;
        return parse(source, &bytes);
    }
    read_torrent(Path::new(source))
}

/// Reads a `.torrent` file.
pub(super) fn read_torrent(path: &Path) -> Result<Metainfo, Unreadable> {
    let scheme = path.as_os_str().as_encoded_bytes().get(..7);
    if scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"magnet:")) {
        let sentence = "magnet links are not built yet: give a .torrent file instead";
        return Err(Unreadable::new(Exit::Failure, sentence.into()));
    }
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let is_absent = error.kind() == io::ErrorKind::NotFound;
        let exit = if is_absent { Exit::NotFound } else { Exit::Failure };
        Unreadable::new(exit, format!("cannot read {shown}: {error}"))
    };
    let len = std::fs::metadata(path).map_err(unreadable)?.len();
    if len > TORRENT_LEN_MAX as u64 {
        let sentence = format!("{shown} has {len} bytes; a torrent has at most {TORRENT_LEN_MAX}");
        return Err(Unreadable::new(Exit::Failure, sentence));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&shown.to_string(), &bytes)
}

fn parse(source: &str, bytes: &[u8]) -> Result<Metainfo, Unreadable> {
    if bytes.is_empty() {
        return Err(Unreadable::new(Exit::Failure, format!("{source} is empty: not a torrent")));
    }
    Metainfo::parse(bytes)
        .map_err(|error| Unreadable::new(Exit::Failure, format!("{source}: {error}")))
}

/// Fetches what a URL names, up to the length of a torrent.
async fn fetch(url: &str) -> Result<Vec<u8>, (Exit, String)> {
    // Somebody may have been first; which one it was makes no difference.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let first = reqwest::Url::parse(url).map_err(|error| (Exit::Usage, error.to_string()))?;
    judge_host(&first).map_err(|reason| (Exit::Failure, reason.to_string()))?;
    let follow = redirect::Policy::custom(|attempt| match judge_host(attempt.url()) {
        Err(reason) => attempt.error(reason),
        Ok(()) if attempt.previous().len() > REDIRECTS_MAX => attempt.error("too many redirects"),
        Ok(()) => attempt.follow(),
    });
    let client = reqwest::Client::builder()
        .user_agent(concat!("seedring/", env!("CARGO_PKG_VERSION")))
        .timeout(URL_TIMEOUT)
        .redirect(follow)
        .dns_resolver(Guarded)
        .build()
        .map_err(|error| explain(&error))?;
    let request = client.get(first).send().await.and_then(reqwest::Response::error_for_status);
    let mut response = request.map_err(|error| explain(&error))?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| explain(&error))? {
        if bytes.len() + chunk.len() > TORRENT_LEN_MAX {
            let sentence = format!("it is longer than the {TORRENT_LEN_MAX} bytes of a torrent");
            return Err((Exit::Failure, sentence));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Whether an address that a URL names itself may be connected to.
fn judge_host(url: &reqwest::Url) -> Result<(), policy::Reason> {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => permits_operator(ip.into()),
        Some(url::Host::Ipv6(ip)) => permits_operator(ip.into()),
        Some(url::Host::Domain(_)) | None => Ok(()),
    }
}

/// Looks names up, and refuses those of addresses that nobody is sent to: a redirect is not the
/// operator's word.
struct Guarded;

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            for addr in &found {
                permits_operator(addr.ip())?;
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The exit code for an error of HTTP, and its innermost cause.
fn explain(error: &reqwest::Error) -> (Exit, String) {
    let exit = match error.status().map(|status| status.as_u16()) {
        Some(404 | 410) => Exit::NotFound,
        Some(401 | 403) => Exit::Auth,
        Some(_) => Exit::Failure,
        None if error.is_connect() || error.is_timeout() => Exit::Unreachable,
        None => Exit::Failure,
    };
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    (exit, cause.to_string())
}

/// Looks at what lies where the torrent's files will be: a file of another size is another file,
/// and only overwritten when that was asked for. An empty one holds nothing to lose.
pub(super) fn prepare(
    metainfo: &Metainfo,
    save_path: &Path,
    overwrite: bool,
) -> Result<(), String> {
    for file in metainfo.layout.files().filter(|file| file.is_on_disk()) {
        let path = save_path.join(file.path());
        let shown = path.display();
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if !found.is_file() {
            return Err(format!("{shown} is in the way: it is not a regular file"));
        }
        if found.len() == file.len || found.len() == 0 {
            continue;
        }
        if !overwrite {
            let (here, wanted) = (found.len(), file.len);
            return Err(format!(
                "{shown} has {here} bytes where the torrent has {wanted}: \
                 use --overwrite to replace it"
            ));
        }
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        opened
            .and_then(|opened| opened.set_len(file.len.min(found.len())))
            .map_err(|error| format!("cannot overwrite {shown}: {error}"))?;
    }
    Ok(())
}

/// A sentence if `save_path`, given as `flag`, is no folder that could hold the torrent.
pub(super) fn no_folder(flag: &str, metainfo: &Metainfo, save_path: &Path) -> Option<String> {
    let shown = save_path.display();
    let what = match std::fs::metadata(save_path) {
        Ok(found) if found.is_dir() => return None,
        Ok(_) => "is not a folder",
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            "is not there"
        }
        // Whatever else is wrong is said by those who read or write the data.
        Err(_) => return None,
    };
    let sentence =
        format!("{shown} {what}: {flag} must be a folder, the one that holds {}", metainfo.name);
    Some(with_better_folder(sentence, flag, metainfo, save_path))
}

/// A sentence if nothing of the torrent is in `save_path`, which then is the wrong folder.
pub(super) fn missing(metainfo: &Metainfo, save_path: &Path) -> Option<String> {
    let path = metainfo.layout.file(0)?.path();
    let top = Path::new(path.components().next()?.as_os_str());
    let wanted = save_path.join(top);
    let error = std::fs::symlink_metadata(&wanted).err()?;
    // Whatever else is wrong is said by those who read the data.
    if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        return None;
    }
    let sentence = format!(
        "{} is not there: --data must be the folder that holds {}",
        wanted.display(),
        top.display()
    );
    Some(with_better_folder(sentence, "--data", metainfo, save_path))
}

/// Who names the torrent's own folder or file means the one that it is in.
fn with_better_folder(
    sentence: String,
    flag: &str,
    metainfo: &Metainfo,
    save_path: &Path,
) -> String {
    let path = metainfo.layout.file(0).map(|file| file.path());
    let top = path.as_deref().and_then(|path| path.components().next());
    let Some(top) = top.map(|top| Path::new(top.as_os_str())) else { return sentence };
    let named = std::path::absolute(save_path).ok();
    let above = named.as_deref().and_then(Path::parent);
    let above =
        above.filter(|above| named.as_deref() == Some(&above.join(top)) && save_path.exists());
    match above {
        Some(above) => format!("{sentence}; here that is {flag} {}", above.display()),
        None => sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{CreateOptions, create};

    fn torrent_of(contents: &[u8]) -> (tempfile::TempDir, Metainfo) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, contents).unwrap();
        let created = create(&path, &CreateOptions::default(), &|_, _| {}).unwrap();
        (dir, Metainfo::parse(&created.bytes).unwrap())
    }

    #[test]
    fn a_file_of_another_size_is_not_overwritten_unasked() {
        let (dir, metainfo) = torrent_of(&[7; 1000]);
        let path = dir.path().join("data");
        assert_eq!(prepare(&metainfo, dir.path(), false), Ok(()));
        for other in [&[1; 999][..], &[1; 1001]] {
            std::fs::write(&path, other).unwrap();
            let refused = prepare(&metainfo, dir.path(), false).unwrap_err();
            assert!(refused.contains("--overwrite"), "{refused}");
            assert_eq!(std::fs::read(&path).unwrap(), other, "it was changed nevertheless");
            assert_eq!(prepare(&metainfo, dir.path(), true), Ok(()));
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(prepare(&metainfo, dir.path(), false), Ok(()));
        std::fs::create_dir(&path).unwrap();
        assert!(prepare(&metainfo, dir.path(), true).is_err());
    }

    #[test]
    fn a_wrong_folder_is_named_and_the_right_one_if_it_shows() {
        let (dir, metainfo) = torrent_of(&[7; 1000]);
        assert_eq!(missing(&metainfo, dir.path()), None);
        let wrong = dir.path().join("elsewhere");
        let sentence = missing(&metainfo, &wrong).unwrap();
        assert!(sentence.contains("elsewhere/data is not there"), "{sentence}");
        assert!(!sentence.contains("here that is"), "{sentence}");
        let sentence = missing(&metainfo, &dir.path().join("data")).unwrap();
        let right = format!("here that is --data {}", dir.path().display());
        assert!(sentence.ends_with(&right), "{sentence}");
    }

    #[test]
    fn what_is_no_folder_is_told_from_one_that_is_missing() {
        let (dir, metainfo) = torrent_of(&[7; 1000]);
        assert_eq!(no_folder("-o", &metainfo, dir.path()), None);
        let sentence = no_folder("-o", &metainfo, &dir.path().join("data")).unwrap();
        assert!(sentence.contains("is not a folder"), "{sentence}");
        assert!(sentence.ends_with(&format!("-o {}", dir.path().display())), "{sentence}");
        for missing in ["nothing", "data/below"] {
            let sentence = no_folder("-o", &metainfo, &dir.path().join(missing)).unwrap();
            assert!(sentence.contains("is not there"), "{sentence}");
        }
    }

    /// The URL itself and a redirect of a server that is allowed.
    #[tokio::test]
    async fn nobody_is_sent_to_a_metadata_service() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let hop = format!("http://{}/x", server.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = server.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let answer = "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/x\r\n\
                          Content-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        });
        for url in ["http://169.254.169.254/x", &hop] {
            let refused = read(url).await.unwrap_err();
            assert!(refused.sentence.contains("metadata service"), "{}", refused.sentence);
        }
        thread.join().unwrap();
    }

    #[test]
    fn magnet_links_are_said_not_to_be_built() {
        for link in ["magnet:?xt=urn:btih:0", "MAGNET:?xt=x"] {
            let refused = read_torrent(Path::new(link)).unwrap_err();
            assert!(refused.sentence.contains("not built yet"), "{}", refused.sentence);
        }
    }

    #[test]
    fn what_is_no_torrent_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.torrent");
        assert!(read_torrent(&path).unwrap_err().sentence.contains("x.torrent"));
        std::fs::write(&path, b"").unwrap();
        assert!(read_torrent(&path).unwrap_err().sentence.contains("is empty"));
        std::fs::write(&path, b"hello").unwrap();
        assert!(read_torrent(&path).unwrap_err().sentence.contains("x.torrent"));
    }
}
