//! Where a torrent comes from: a file, a URL; and whether its data may be put where it should go.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect;

use super::Exit;
use super::names::{self, LookUpError};
use crate::metainfo::Metainfo;
use crate::metainfo::magnet::Magnet;
use crate::metainfo::selection::Wanted;
use crate::sys::file::{self, Access};
use crate::sys::net::Bind;
use crate::tracker::policy::Reason;

/// Longest `.torrent` that is taken.
const TORRENT_LEN_MAX: usize = 10 * 1024 * 1024;

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// How long a URL may take in all.
const URL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no torrent, or no folder, to work with.
#[derive(Debug)]
pub(super) struct Unusable {
    exit: Exit,
    sentence: String,
}

impl Unusable {
    pub(super) fn new(exit: Exit, sentence: String) -> Self {
        Self { exit, sentence }
    }

    /// Says so, and how to exit.
    pub(super) fn tell(&self) -> Exit {
        super::fail(self.exit, &self.sentence)
    }
}

/// Does what may hang on a disk, on a thread that no signal waits for.
pub(super) async fn on_disk<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Unusable> + Send + 'static,
) -> Result<T, Unusable> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|error| Err(Unusable::new(Exit::Failure, error.to_string())))
}

/// A torrent as far as its source tells.
#[derive(Debug)]
pub(super) enum Origin {
    /// All of it.
    Torrent(Box<Metainfo>),
    /// Where to ask for it.
    Link(Magnet),
}

/// Reads a torrent from wherever `source` says, or a link; a connection leaves from where `bind`
/// says.
pub(super) async fn read(source: &str, bind: Option<&Bind>) -> Result<Origin, Unusable> {
    if Magnet::is_link(source) {
        let link = Magnet::parse(source);
        let link = link.map_err(|error| Unusable::new(Exit::Usage, error.to_string()))?;
        return Ok(Origin::Link(link));
    }
    read_whole(source, bind).await.map(|metainfo| Origin::Torrent(Box::new(metainfo)))
}

async fn read_whole(source: &str, bind: Option<&Bind>) -> Result<Metainfo, Unusable> {
    if source.starts_with("http://") || source.starts_with("https://") {
        let bytes = fetch(source, bind)
            .await
            .map_err(|(exit, why)| Unusable::new(exit, format!("cannot fetch {source}: {why}")))?;
        return parse(source, &bytes);
    }
    let path = PathBuf::from(source);
    on_disk(move || {
        let read = read_torrent(&path);
        match path.to_str().and_then(|text| text.split_once("://")) {
            Some((scheme, _)) if read.is_err() && !path.exists() => {
                let sentence = format!("cannot fetch from {scheme}://: http and https only");
                Err(Unusable::new(Exit::Usage, sentence))
            }
            _ => read,
        }
    })
    .await
}

/// Reads a `.torrent` file.
pub(super) fn read_torrent(path: &Path) -> Result<Metainfo, Unusable> {
    if path.to_str().is_some_and(Magnet::is_link) {
        let sentence = "a magnet link does not say what the data is: give the .torrent file";
        return Err(Unusable::new(Exit::Usage, sentence.into()));
    }
    let shown = path.display();
    let unreadable = |error: io::Error| {
        let is_absent = error.kind() == io::ErrorKind::NotFound;
        let exit = if is_absent { Exit::NotFound } else { Exit::Failure };
        Unusable::new(exit, format!("cannot read {shown}: {error}"))
    };
    let len = std::fs::metadata(path).map_err(unreadable)?.len();
    if len > TORRENT_LEN_MAX as u64 {
        let sentence = format!("{shown} has {len} bytes; a torrent has at most {TORRENT_LEN_MAX}");
        return Err(Unusable::new(Exit::Failure, sentence));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    parse(&shown.to_string(), &bytes)
}

fn parse(source: &str, bytes: &[u8]) -> Result<Metainfo, Unusable> {
    Metainfo::parse(bytes)
        .map_err(|error| Unusable::new(Exit::Failure, format!("{source}: {error}")))
}

/// Fetches what a URL names, up to the length of a torrent. Neither it nor a redirect leads to an
/// address that an operator has no business with.
async fn fetch(url: &str, bind: Option<&Bind>) -> Result<Vec<u8>, (Exit, String)> {
    let url = url::Url::parse(url).map_err(|error| (Exit::Usage, error.to_string()))?;
    if let Some(reason) = names::refusal(&url) {
        return Err((Exit::Usage, reason.to_string()));
    }
    // Somebody may have been first; which one it was makes no difference.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let redirects = redirect::Policy::custom(|attempt| match names::refusal(attempt.url()) {
        Some(reason) => attempt.error(Redirected(reason)),
        None if attempt.previous().len() > REDIRECTS_MAX => {
            attempt.error("it was redirected too often")
        }
        None => attempt.follow(),
    });
    let builder = reqwest::Client::builder()
        .user_agent(concat!("seedring/", env!("CARGO_PKG_VERSION")))
        .timeout(URL_TIMEOUT)
        // A proxy would be told names that nobody has judged, and would be sent to without `bind`.
        .no_proxy()
        .dns_resolver(names::Names)
        .redirect(redirects);
    let builder = match bind {
        Some(Bind::Address(ip)) => builder.local_address(*ip),
        Some(Bind::Interface(name)) => builder.interface(name),
        None => builder,
    };
    let client = builder.build().map_err(|error| explain(&error))?;
    let request = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
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

/// A redirect that is not followed.
#[derive(Debug, thiserror::Error)]
#[error("it redirects to an address that is refused: {0}")]
struct Redirected(Reason);

/// The exit code for an error of HTTP, and its innermost cause. An address that is refused ends with
/// the same code, however it was come by.
fn explain(error: &reqwest::Error) -> (Exit, String) {
    if let Some(status) = error.status() {
        let exit = match status.as_u16() {
            404 | 410 => Exit::NotFound,
            401 | 403 => Exit::Auth,
            _ => Exit::Failure,
        };
        return (exit, format!("the server answered {status}"));
    }
    let is_unreachable = error.is_connect() || error.is_timeout();
    let mut exit = if is_unreachable { Exit::Unreachable } else { Exit::Failure };
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
        let refused = cause.downcast_ref().map(|error| matches!(error, LookUpError::Refused(..)));
        if refused == Some(true) || cause.is::<Redirected>() {
            exit = Exit::Usage;
        }
    }
    (exit, cause.to_string())
}

/// Looks at what lies where the torrent's files will be, and changes nothing: a file of another size
/// is another file, and only overwritten when that was asked for. An empty one holds nothing to
/// lose. The files that are longer than the torrent's are given, for [`cut`]. What is not wanted is
/// left alone.
pub(super) fn look(
    metainfo: &Metainfo,
    wanted: &Wanted,
    save_path: &Path,
    overwrite: bool,
) -> Result<Vec<TooLong>, Unusable> {
    let refused = |sentence| Err(Unusable::new(Exit::Failure, sentence));
    let mut too_long = Vec::new();
    let files = metainfo.layout.files();
    for file in files.filter(|file| file.is_on_disk() && wanted.has(file.index)) {
        let path = save_path.join(file.path());
        let shown = path.display();
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        if !found.is_file() {
            return refused(format!("{shown} is in the way: it is not a regular file"));
        }
        if found.len() == file.len || found.len() == 0 {
            continue;
        }
        if !overwrite {
            let (here, wanted) = (found.len(), file.len);
            return refused(format!(
                "{shown} has {here} bytes where the torrent has {wanted}: \
                 use --overwrite to replace it"
            ));
        }
        if found.len() > file.len {
            let file = TooLong { path: file.path(), len: file.len };
            if let Err(error) = file.open(save_path) {
                return refused(format!("cannot overwrite {shown}: {error}"));
            }
            too_long.push(file);
        }
    }
    Ok(too_long)
}

/// A file that is longer than the torrent says.
#[derive(Debug)]
pub(super) struct TooLong {
    /// Beneath the folder that the torrent is fetched into.
    path: PathBuf,
    /// How long it may be, in bytes.
    len: u64,
}

impl TooLong {
    fn open(&self, save_path: &Path) -> io::Result<std::os::fd::OwnedFd> {
        let root = file::open_root(save_path)?;
        file::open_beneath(root.as_fd(), &self.path, Access::ReadWrite { create: false })
    }
}

/// Cuts the files that [`look`] has found.
pub(super) fn cut(save_path: &Path, too_long: &[TooLong]) -> Result<(), Unusable> {
    for file in too_long {
        file.open(save_path).and_then(|fd| file::truncate(fd.as_fd(), file.len)).map_err(
            |error| {
                let shown = save_path.join(&file.path);
                let sentence = format!("cannot overwrite {}: {error}", shown.display());
                Unusable::new(Exit::Failure, sentence)
            },
        )?;
    }
    Ok(())
}

/// Makes the folder that a torrent is fetched into, and those above it.
pub(super) fn make_folder(folder: &Path) -> Result<(), Unusable> {
    let Err(error) = std::fs::create_dir_all(folder) else { return Ok(()) };
    let shown = folder.display();
    // The highest thing on the way that is there and is no folder stands in it.
    let is_other = |path: &&Path| std::fs::metadata(path).is_ok_and(|found| !found.is_dir());
    let bare = without_slash(folder);
    match bare.ancestors().find(is_other) {
        Some(found) if found == bare => {
            let sentence = format!("{shown} is not a folder: -o must be one, or a new name");
            Err(Unusable::new(Exit::Usage, sentence))
        }
        Some(found) => {
            let sentence = format!("cannot make the folder {shown}: {} is a file", found.display());
            Err(Unusable::new(Exit::Usage, sentence))
        }
        None => {
            let sentence = format!("cannot make the folder {shown}: {error}");
            Err(Unusable::new(Exit::Failure, sentence))
        }
    }
}

/// A path without the slash at its end: with it, a file is said not to be there at all.
pub(super) fn without_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// What is wrong with `save_path` as the `--data` of a torrent: it is no folder, or nothing of the
/// torrent is in it.
pub(super) fn wrong_data(metainfo: &Metainfo, save_path: &Path) -> Option<Unusable> {
    let path = metainfo.layout.file(0)?.path();
    let top = Path::new(path.components().next()?.as_os_str());
    let (shown, wanted) = (save_path.display(), save_path.join(top));
    let save_path = &without_slash(save_path);
    let (exit, what) = match std::fs::metadata(save_path) {
        Err(error) if is_absent(&error) => {
            (Exit::NotFound, format!("the folder {shown} does not exist"))
        }
        Ok(found) if !found.is_dir() => (Exit::Usage, format!("{shown} is not a folder")),
        _ => match std::fs::symlink_metadata(&wanted) {
            Err(error) if is_absent(&error) => {
                (Exit::Partial, format!("{} is not there", wanted.display()))
            }
            // Whatever else is wrong is said by those who read the data.
            _ => return None,
        },
    };
    let mut sentence = format!("{what}: --data must be the folder that holds {}", top.display());
    // Who names the torrent's own folder or file means the one that it is in.
    let named = std::path::absolute(save_path).ok();
    let above = named.as_deref().and_then(Path::parent);
    let above =
        above.filter(|above| named.as_deref() == Some(&above.join(top)) && save_path.exists());
    if let Some(above) = above {
        sentence += &format!("; here that is --data {}", above.display());
    }
    Some(Unusable::new(exit, sentence))
}

/// Whether there is nothing of that name.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
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
        assert!(look(&metainfo, &Wanted::default(), dir.path(), false).unwrap().is_empty());
        for other in [&[1; 999][..], &[1; 1001]] {
            std::fs::write(&path, other).unwrap();
            let refused =
                look(&metainfo, &Wanted::default(), dir.path(), false).unwrap_err().sentence;
            assert!(refused.contains("--overwrite"), "{refused}");
            let too_long = look(&metainfo, &Wanted::default(), dir.path(), true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), other, "it was changed nevertheless");
            cut(dir.path(), &too_long).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(look(&metainfo, &Wanted::default(), dir.path(), false).unwrap().is_empty());
        std::fs::create_dir(&path).unwrap();
        assert!(look(&metainfo, &Wanted::default(), dir.path(), true).is_err());
    }

    #[test]
    fn nothing_is_cut_outside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (data, other) = (dir.path().join("data"), dir.path().join("other"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("file"), [7; 1000]).unwrap();
        let created = create(&data, &CreateOptions::default(), &|_, _| {}).unwrap();
        let metainfo = Metainfo::parse(&created.bytes).unwrap();
        std::fs::rename(&data, &other).unwrap();
        std::fs::write(other.join("file"), [8; 2000]).unwrap();
        let save_path = dir.path().join("save");
        std::fs::create_dir(&save_path).unwrap();
        std::os::unix::fs::symlink(&other, save_path.join("data")).unwrap();
        let refused = look(&metainfo, &Wanted::default(), &save_path, true).unwrap_err().sentence;
        assert!(refused.contains("cannot overwrite"), "{refused}");
        assert_eq!(std::fs::metadata(other.join("file")).unwrap().len(), 2000);
    }

    #[test]
    fn a_wrong_folder_is_named_and_the_right_one_if_it_shows() {
        let (dir, metainfo) = torrent_of(&[7; 1000]);
        let told = |path: &Path| wrong_data(&metainfo, path).map(|it| (it.exit, it.sentence));
        assert_eq!(told(dir.path()), None);
        let folder = dir.path().join("folder");
        let (exit, sentence) = told(&folder).unwrap();
        assert_eq!(exit, Exit::NotFound);
        assert!(sentence.contains("/folder does not exist: --data must be"), "{sentence}");
        std::fs::create_dir(&folder).unwrap();
        let (exit, sentence) = told(&folder).unwrap();
        assert_eq!(exit, Exit::Partial);
        assert!(sentence.contains("folder/data is not there: --data must be"), "{sentence}");
        assert!(!sentence.contains("here that is"), "{sentence}");
        let (exit, sentence) = told(&dir.path().join("data")).unwrap();
        assert_eq!(exit, Exit::Usage);
        assert!(sentence.contains("/data is not a folder"), "{sentence}");
        let right = format!("here that is --data {}", dir.path().display());
        assert!(sentence.ends_with(&right), "{sentence}");
        assert_eq!(told(&dir.path().join("data/")).unwrap().0, Exit::Usage);
        assert_eq!(told(&dir.path().join("data/x")).unwrap().0, Exit::NotFound);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_with_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let told = |path: &Path| make_folder(path).map_err(|it| (it.exit, it.sentence));
        assert_eq!(told(&dir.path().join("a/b")), Ok(()));
        assert_eq!(told(dir.path()), Ok(()));
        for file in [&file, &file.join("")] {
            let (exit, sentence) = told(file).unwrap_err();
            assert_eq!(exit, Exit::Usage);
            let part = format!("{} is not a folder: -o must be one", file.display());
            assert!(sentence.contains(&part), "{sentence}");
        }
        let (exit, sentence) = told(&file.join("below/it")).unwrap_err();
        assert_eq!(exit, Exit::Usage);
        assert!(sentence.ends_with("/file is a file"), "{sentence}");
        let (exit, sentence) = told(Path::new("/proc/nothing")).unwrap_err();
        assert_eq!(exit, Exit::Failure);
        assert!(sentence.starts_with("cannot make the folder /proc/nothing: "), "{sentence}");
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
            let refused = read(url, None).await.unwrap_err();
            assert_eq!(refused.exit, Exit::Usage, "{}", refused.sentence);
            assert!(refused.sentence.contains("metadata service"), "{}", refused.sentence);
        }
        thread.join().unwrap();
        // The same of a name: a resolver that refuses stands for one that was lied to.
        struct Refusing;
        impl reqwest::dns::Resolve for Refusing {
            fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
                let metadata = "169.254.169.254".parse().unwrap();
                Box::pin(
                    async move { Err(LookUpError::Refused(metadata, Reason::Metadata).into()) },
                )
            }
        }
        let client = reqwest::Client::builder().no_proxy().dns_resolver(Refusing).build().unwrap();
        let (exit, sentence) = explain(&client.get("http://x.example/").send().await.unwrap_err());
        assert_eq!(exit, Exit::Usage);
        assert!(sentence.contains("its address is 169.254.169.254: "), "{sentence}");
    }

    #[tokio::test]
    async fn only_the_web_is_fetched_from() {
        let refused = read("ftp://x.example/x.torrent", None).await.unwrap_err();
        assert_eq!(refused.exit, Exit::Usage);
        assert_eq!(refused.sentence, "cannot fetch from ftp://: http and https only");
        let refused = read("no/such:/file", None).await.unwrap_err();
        assert_eq!(refused.exit, Exit::NotFound, "{}", refused.sentence);
    }

    #[tokio::test]
    async fn magnet_links_are_taken_where_metadata_can_be_fetched() {
        for link in ["magnet:?xt=urn:btih:0", "MAGNET:?xt=x"] {
            let refused = read_torrent(Path::new(link)).unwrap_err();
            assert!(refused.sentence.contains("give the .torrent file"), "{}", refused.sentence);
            let refused = read(link, None).await.unwrap_err();
            assert_eq!(refused.exit, Exit::Usage, "{}", refused.sentence);
        }
        let link = format!("magnet:?xt=urn:btih:{}", "7".repeat(40));
        assert!(matches!(read(&link, None).await, Ok(Origin::Link(_))));
    }

    #[test]
    fn what_is_no_torrent_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.torrent");
        assert!(read_torrent(&path).unwrap_err().sentence.contains("x.torrent"));
        std::fs::write(&path, b"hello").unwrap();
        assert!(read_torrent(&path).unwrap_err().sentence.contains("x.torrent"));
    }
}
