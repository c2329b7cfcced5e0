//! What is fuzzed: one function for each door through which bytes of others come in.
//!
//! Bytes enter; a panic says that a promise was broken. Each target asserts more than that nothing
//! panics: what is read is written and read again, limits hold, machines keep their bounds. The same
//! functions are run by libFuzzer (`fuzz/run.sh`) and by `tests/fuzz.rs`, on the same inputs.
//! Invariant: a target depends on its input alone, so that every finding can be run again; the
//! clock is asked for nothing but the zero of a virtual one.

mod bencode;
mod config;
mod dht;
mod fetch;
mod lists;
mod magnet;
mod metainfo;
mod mse;
mod session;
mod tracker;
mod udp;
mod units;
mod wire;

/// Something that is fuzzed.
pub(crate) struct Target {
    /// Its name, and that of its directory in `fuzz/corpus` and `fuzz/crashes`.
    pub(crate) name: &'static str,
    /// Longer inputs show nothing new.
    pub(crate) len_max: usize,
    /// Panics if a promise is broken.
    pub(crate) run: fn(&[u8]),
    /// Inputs to start from.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

const fn target(
    name: &'static str,
    len_max: usize,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target { name, len_max, run, seeds }
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    target("address_policy", 256, tracker::address_policy, tracker::address_policy_seeds),
    target("announcer", 2048, tracker::announcer, tracker::announcer_seeds),
    target("bencode", 4096, bencode::scan, bencode::scan_seeds),
    target("bencode_encode", 2048, bencode::encode, bencode::encode_seeds),
    target("blocklist", 2048, lists::blocklist, lists::blocklist_seeds),
    target("config_toml", 4096, config::toml, config::toml_seeds),
    target("config_value", 256, config::value, config::value_seeds),
    target("dht", 2048, dht::node, dht::node_seeds),
    target("dht_saved", 4096, dht::saved, dht::saved_seeds),
    target("extension_handshake", 4096, wire::extension, wire::extension_seeds),
    target("handshake", 256, wire::handshake, wire::handshake_seeds),
    target("http_date", 64, tracker::date, tracker::date_seeds),
    target("krpc", 2560, dht::krpc, dht::krpc_seeds),
    target("lsd", 2048, lists::lsd, lists::lsd_seeds),
    target("magnet", 8192, magnet::link, magnet::link_seeds),
    target("magnet_file", 8192, magnet::file, magnet::file_seeds),
    target("magnet_swarm", 1024, fetch::run, fetch::seeds),
    target("metainfo", 8192, metainfo::torrent, metainfo::torrent_seeds),
    target("metainfo_paths", 2048, metainfo::paths, metainfo::paths_seeds),
    target("mse", 2048, mse::run, mse::seeds),
    target("swarm", 1024, session::run, session::seeds),
    target("tracker_reply", 4096, tracker::reply, tracker::reply_seeds),
    target("tracker_scrape", 4096, tracker::scrape, tracker::scrape_seeds),
    target("tracker_url", 2560, tracker::url, tracker::url_seeds),
    target("udp_tracker", 4096, udp::client, udp::client_seeds),
    target("units", 512, units::units, units::units_seeds),
    target("ut_metadata", 17_408, wire::metadata, wire::metadata_seeds),
    target("ut_pex", 2560, wire::pex, wire::pex_seeds),
    target("wire", 4096, wire::decoder, wire::decoder_seeds),
];

/// Reads an input from its front; behind its end everything is 0 or empty.
struct Input<'d>(&'d [u8]);

impl<'d> Input<'d> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, len: usize) -> &'d [u8] {
        let (front, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        front
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.take(N);
        let mut array = [0; N];
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// Bytes behind their length in one byte.
    fn short(&mut self) -> &'d [u8] {
        let len = self.byte();
        self.take(len.into())
    }

    /// Bytes behind their length in two bytes.
    fn chunk(&mut self) -> &'d [u8] {
        let len = self.u16();
        self.take(len.into())
    }
}

/// Writes what [`Input`] reads.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn short(self, bytes: &[u8]) -> Self {
        let len = u8::try_from(bytes.len()).expect("a seed is short");
        self.bytes(&[len]).bytes(bytes)
    }

    fn chunk(self, bytes: &[u8]) -> Self {
        let len = u16::try_from(bytes.len()).expect("a seed is short");
        self.bytes(&len.to_be_bytes()).bytes(bytes)
    }
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<Vec<u8>> {
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// A sentence for people: not empty, not long, and nothing in it that a terminal would obey.
fn assert_sentence(text: &str) {
    assert!(!text.is_empty() && text.len() < 2048, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}

/// The zero of a virtual clock.
fn start() -> std::time::Instant {
    seedring::sys::clock::now()
}
