//! `seedring get`: fetch one torrent and exit.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clap::Args;

use super::learn::learn;
use super::names::{LookUpError, Peer};
use super::run::replace_list;
use super::source::{Origin, TooLong, Unusable};
use super::{DiscoveryArgs, Exit, human, session, source};
use crate::config::{Config, Error, HttpListen, LogLevel};
use crate::metainfo::selection::Wanted;
use crate::server::engine::{Add, Engine, Event, Past, Verify};
use crate::server::settings::settings;
use crate::sys::clock;
use crate::sys::net::Bind;
use crate::tracker;
use crate::units::InfoHash;
use crate::worker::mailbox::Totals;

/// Flags of `seedring get`.
#[derive(Args, Clone, PartialEq, Debug)]
pub struct GetArgs {
    /// A .torrent file, an http(s) URL of one, or a magnet link.
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Folder that holds the torrent's top name; what lies there is kept and completed.
    #[arg(short = 'o', long = "output", value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Go on seeding when complete, until a signal.
    #[arg(long)]
    pub seed: bool,
    /// Peer to connect to; may be given several times. ADDR may be a host name: it is looked up once,
    /// at the start.
    #[arg(long, value_name = "ADDR:PORT", value_parser = Peer::parse)]
    pub peer: Vec<Peer>,
    /// Address for peers; may be given several times [default: any free port].
    #[arg(long, value_name = "ADDR:PORT", value_parser = super::parse_listen)]
    pub listen: Vec<SocketAddr>,
    /// End with 1 after this many seconds without progress [default: never].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Overwrite files that have another size than the torrent says.
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object when it ends.
    #[arg(long)]
    pub json: bool,
    /// Ways of finding peers.
    #[command(flatten)]
    pub discovery: DiscoveryArgs,
}

impl GetArgs {
    /// The settings of the engine; what is about this one torrent stays in the flags.
    ///
    /// # Errors
    /// If a variable is wrong, or settings contradict each other.
    pub fn to_config(
        &self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Config, Error> {
        let mut config = for_one_torrent(variables)?;
        config.paths.downloads.clone_from(&self.output);
        replace_list(&mut config.net.listen, self.listen.clone());
        self.discovery.apply(&mut config.net);
        config.check()?;
        Ok(config)
    }
}

/// Settings of `get` and `seed`: any free port, no HTTP, no watch folders.
pub(super) fn for_one_torrent(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, Error> {
    let mut config = Config::load(None, variables)?;
    config.net.listen = vec![(Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::UNSPECIFIED, 0).into()];
    config.http.listen = HttpListen(None);
    config.paths.watch.clear();
    Ok(config)
}

/// Runs the command.
pub fn execute(args: GetArgs) -> Exit {
    let mut config = match args.to_config(std::env::vars_os()) {
        Ok(config) => config,
        Err(error) => return super::fail_config(&error),
    };
    // Logs would tear the bar apart: on a terminal only what is wrong is said.
    if std::io::stderr().is_terminal() {
        config.log.level = LogLevel::Warn;
    }
    super::start_logging(config.log.level, super::LogStops::No);
    session::block_on(get(args, config))
}

async fn get(args: GetArgs, config: Config) -> Result<Exit, String> {
    let mut signals = session::Signals::new()?;
    let settings = settings(&config);
    if let Err(error) = Engine::judge(&settings) {
        return Ok(super::fail_start(&error));
    }
    let found = tokio::select! {
        found = find(&args, settings.bind.as_ref()) => found,
        exit = signals.next() => return Ok(exit),
    };
    let Found { origin, peers, too_long } = match found {
        Ok(found) => found,
        Err(unusable) => return Ok(unusable.tell()),
    };
    let mut engine = match Engine::start(settings) {
        Ok(engine) => engine,
        Err(error) => return Ok(super::fail_start(&error)),
    };
    let opened = tokio::select! {
        opened = engine.open_blocklist() => opened,
        exit = signals.next() => return Ok(exit),
    };
    if let Err(error) = opened {
        return Ok(super::fail_start(&error));
    }
    // Nothing on the disk is changed before all that may be refused has been.
    let save_path = args.output.clone();
    let make =
        move || source::make_folder(&save_path).and_then(|()| source::cut(&save_path, &too_long));
    let made = tokio::select! {
        made = source::on_disk(make) => made,
        exit = signals.next() => return Ok(exit),
    };
    if let Err(unusable) = made {
        return Ok(unusable.tell());
    }
    let (metainfo, wanted) = match origin {
        Origin::Torrent(metainfo) => (*metainfo, Wanted::default()),
        Origin::Link(link) => {
            let info_hash = link.info_hash;
            match learn(&mut engine, link, &peers, &args, &mut signals).await {
                Ok(learnt) => learnt,
                Err(ended) => {
                    signals.end_at_next();
                    engine.shutdown().await;
                    if args.json {
                        println!("{}", report(info_hash, None, 0, false));
                    }
                    return ended;
                }
            }
        }
    };
    for warning in metainfo.warnings.iter().chain(&metainfo.renames_told()) {
        eprintln!("seedring: {warning}");
    }
    let (info_hash, name) = (metainfo.info_hash, metainfo.name.clone());
    let (total, is_private) = (metainfo.geometry.total_len(), metainfo.private);
    let selected = (!wanted.is_all()).then(|| wanted.len(&metainfo.layout));
    let (save_path, verify, past) = (args.output.clone(), Verify::Full, Past::default());
    let add = Add { metainfo, save_path, wanted, verify, fetch: true, peers, past };
    engine.add(add).map_err(|error| error.to_string())?;
    let mut fetch = Fetch {
        engine,
        info_hash,
        bar: super::transfer_bar(total, "get"),
        total,
        is_private,
        is_checked: false,
        is_complete: false,
        best: (u64::MAX, clock::now()),
        lonely_since: None,
        peers: args.peer.clone(),
        timeout: args.timeout.map(Duration::from_secs),
        go_on: args.seed,
    };
    let result = fetch.run(&mut signals).await;
    fetch.bar.finish_and_clear();
    signals.end_at_next();
    let downloaded = fetch.totals().map_or(0, |totals| totals.downloaded.load(Relaxed));
    let is_complete = fetch.is_complete;
    fetch.engine.shutdown().await;
    if args.json {
        let content = Some((name.as_str(), total));
        println!("{}", report(info_hash, content, downloaded, is_complete));
    } else if let Some(len) = selected.filter(|_| is_complete) {
        eprintln!("{name}: the selected files are complete, {}", human::size(len));
    } else if is_complete {
        eprintln!("{name}: complete, {}", human::size(total));
    }
    result
}

/// What `--json` prints; name and size are null as long as they are not known.
fn report(
    info_hash: InfoHash,
    content: Option<(&str, u64)>,
    downloaded: u64,
    is_complete: bool,
) -> serde_json::Value {
    serde_json::json!({
        "info_hash": info_hash.to_string(),
        "name": content.map(|(name, _)| name),
        "size_bytes": content.map(|(_, len)| len),
        "downloaded_bytes": downloaded,
        "complete": is_complete,
    })
}

/// What the command line leads to.
struct Found {
    origin: Origin,
    peers: Vec<SocketAddr>,
    too_long: Vec<TooLong>,
}

/// Finds the torrent and its peers, and looks at what lies where it goes.
async fn find(args: &GetArgs, bind: Option<&Bind>) -> Result<Found, Unusable> {
    let origin = source::read(&args.source, bind).await?;
    let mut peers = Vec::new();
    for peer in &args.peer {
        let found = peer.addresses().await;
        peers.extend(found.map_err(|error| {
            let exit = match error {
                LookUpError::System(_) => Exit::Unreachable,
                LookUpError::Refused(..) => Exit::Usage,
            };
            Unusable::new(exit, format!("cannot look up the host of --peer {peer}: {error}"))
        })?);
    }
    let (save_path, overwrite) = (args.output.clone(), args.overwrite);
    source::on_disk(move || {
        let too_long = match &origin {
            Origin::Torrent(metainfo) => {
                source::look(metainfo, &Wanted::default(), &save_path, overwrite)?
            }
            Origin::Link(_) => Vec::new(),
        };
        Ok(Found { origin, peers, too_long })
    })
    .await
}

/// How long nobody may be connected before it is said.
pub(super) const LONELY_AFTER: Duration = Duration::from_secs(5);

/// Trackers and peers that are named when nobody is connected.
const NAMED_MAX: usize = 5;

/// One torrent on its way.
struct Fetch {
    engine: Engine,
    info_hash: InfoHash,
    bar: indicatif::ProgressBar,
    /// Bytes of the torrent, all files counted.
    total: u64,
    is_private: bool,
    is_checked: bool,
    is_complete: bool,
    /// The bytes that had come when last something came, and when that was.
    best: (u64, Instant),
    /// When the wait for a first peer began, until there was one or it was said.
    lonely_since: Option<Instant>,
    /// As the command line names them.
    peers: Vec<Peer>,
    timeout: Option<Duration>,
    go_on: bool,
}

impl Fetch {
    fn totals(&self) -> Option<&Totals> {
        self.engine.torrent(&self.info_hash).map(|torrent| &*torrent.totals)
    }

    async fn run(&mut self, signals: &mut session::Signals) -> Result<Exit, String> {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            let event = tokio::select! {
                event = self.engine.event() => event,
                exit = signals.next() => return Ok(exit),
                _ = ticks.tick() => {
                    self.show();
                    self.tell_lonely();
                    if self.is_stuck() {
                        return Err("no progress within the time-out".into());
                    }
                    continue;
                }
            };
            let complete = match event {
                Event::Checked { is_complete, .. } => {
                    self.is_checked = true;
                    self.best = (u64::MAX, clock::now());
                    self.lonely_since = (!is_complete).then(clock::now);
                    // From now on peers are served, if only with what is here.
                    if self.go_on
                        && let Some(&peer) = self.engine.peer_addrs().first()
                    {
                        eprintln!("{}", session::ready_line(peer, None));
                    }
                    is_complete
                }
                Event::Finished(_) => true,
                // There is no link among the torrents any more.
                Event::Metadata(_) | Event::Unusable(..) => continue,
                Event::Failed(_, error) => return Err(error.to_string()),
                Event::Died(reason) => return Err(reason),
            };
            if complete {
                self.is_complete = true;
                if !self.go_on {
                    return Ok(Exit::Ok);
                }
            }
        }
    }

    /// Brings the bar up to date.
    fn show(&self) {
        let Some(torrent) = self.engine.torrent(&self.info_hash) else { return };
        if !self.is_checked {
            self.bar.set_prefix("check");
            self.bar.set_length(self.total);
            self.bar.set_position(torrent.check.bytes_done());
            return;
        }
        let totals = &torrent.totals;
        let (left, rate) = (totals.wanted_left.load(Relaxed), totals.down_rate.load(Relaxed));
        let total = torrent.content.wanted_len();
        let peers = totals.peers.load(Relaxed);
        self.bar.set_prefix(if self.is_complete { "seed" } else { "get" });
        self.bar.set_length(total);
        self.bar.set_position(total - left.min(total));
        let time_left = human::time(human::time_left(left, rate));
        let peers = human::counted(peers, "peer");
        let message = format!("{}, {peers}, {time_left} left", human::rate(rate));
        self.bar.set_message(message);
    }

    /// Says once that nobody is connected, what was tried, and what can be done.
    fn tell_lonely(&mut self) {
        let Some(since) = self.lonely_since else { return };
        let has_met =
            |totals: &Totals| totals.peers.load(Relaxed) > 0 || totals.downloaded.load(Relaxed) > 0;
        if self.is_complete || self.totals().is_some_and(has_met) {
            self.lonely_since = None;
        } else if clock::now() - since >= LONELY_AFTER {
            self.lonely_since = None;
            let lines = loneliness(&self.engine, &self.info_hash, self.is_private, &self.peers);
            self.bar.suspend(|| lines.iter().for_each(|line| eprintln!("seedring: {line}")));
        }
    }

    /// Whether nothing has come for longer than was allowed.
    fn is_stuck(&mut self) -> bool {
        let moved = self.totals().map_or(0, |totals| totals.downloaded.load(Relaxed));
        let now = clock::now();
        if moved != self.best.0 || !self.is_checked || self.is_complete {
            self.best = (moved, now);
        }
        self.timeout.is_some_and(|timeout| now - self.best.1 >= timeout)
    }
}

/// That nobody is connected, what was tried, and what can be done; `named` are the peers of the
/// command line.
pub(super) fn loneliness(
    engine: &Engine,
    info_hash: &InfoHash,
    is_private: bool,
    named: &[Peer],
) -> Vec<String> {
    let mut lines = vec!["no peers yet; still looking".to_owned()];
    let status = engine.tracker_status(info_hash);
    let trackers = status.map(|status| lines_of(&status)).unwrap_or_default();
    if trackers.is_empty() {
        lines.push("the torrent names no trackers".to_owned());
    }
    lines.push(match engine.dht_node_count().filter(|_| !is_private) {
        Some(count) => {
            format!("the DHT was asked: {} answer", human::counted(count as u64, "node"))
        }
        None if is_private => "the torrent is private: the DHT is not asked".to_owned(),
        None => "the DHT is not asked".to_owned(),
    });
    lines.extend(trackers);
    let given = named.iter().take(NAMED_MAX);
    lines.extend(given.map(|peer| format!("--peer {peer}: not connected")));
    if named.is_empty() {
        lines.push("if you know a peer, name it with --peer ADDR:PORT".to_owned());
    }
    if let Some(line) = lines.iter().find(|line| line.contains("net.allow_local")) {
        let name = crate::config::ENV_PREFIX;
        let range = if line.contains("loopback") { "127.0.0.0/8" } else { "10.0.0.0/8" };
        lines.push(format!(
            "to set net.allow_local, use the variable {name}NET__ALLOW_LOCAL={range}"
        ));
    }
    lines
}

/// A line for each tracker: what came of it.
fn lines_of(status: &tracker::Status) -> Vec<String> {
    let asked = status.trackers.iter().map(|tracker| {
        let result = match &tracker.last {
            None if tracker.is_announcing => "no answer yet".to_owned(),
            None => "not asked yet".to_owned(),
            Some(last) => match (&last.result, last.refused) {
                (Err(failure), _) => failure.clone(),
                (Ok(count), None) => format!("it names {}", human::counted(*count as u64, "peer")),
                (Ok(count), Some((ip, reason))) => format!(
                    "it names {} and others that are refused, as {ip}: {reason}",
                    human::counted(*count as u64, "peer")
                ),
            },
        };
        // Neither path nor query is shown: they hold keys.
        format!("tracker {}: {result}", tracker.url)
    });
    let skipped = status.skipped.iter().map(|skipped| {
        let number = || format!("number {}", skipped.position + 1);
        let which = skipped.host.clone().unwrap_or_else(number);
        format!("tracker {which} not asked: {}", skipped.why)
    });
    let mut lines: Vec<_> = asked.chain(skipped).collect();
    let more = lines.len().saturating_sub(NAMED_MAX);
    lines.truncate(NAMED_MAX);
    if more > 0 {
        lines.push(format!("and {more} trackers more"));
    }
    lines
}
