//! The configuration: file, then environment, then flags, each over the one before.
//!
//! Every setting is read once, with its kind and its default, so the same lines decide what is allowed, what an error
//! says, and what `lapce-ai config` prints.

mod aliases;
mod cache;
mod key;
mod kinds;
mod layers;
mod limits;
mod pool;
mod provider;
mod section;
mod show;
mod spend;
mod waits;

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapce_ai_proto::{Limits, OPEN_PREFIX_LEN};
use lapce_ai_providers::{Budget, CacheConfig, PoolConfig};
use lapce_ai_server::{Options, RepeatOptions};
use lapce_ai_transport::{CONTROL_ROOM, PoolOptions, RuntimeDir, usable_cpus};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

pub use key::{ApiKey, KeyCommand, KeyProgram};
pub use layers::{Origin, Problem};
pub use limits::ClientLimits;
pub use pool::RouteSettings;
pub use provider::{HttpSettings, LocalSettings, ProviderKind, ProviderSettings};
pub use spend::SpendSettings;
pub use waits::Waits;

use kinds::written_size;
use section::{Findings, Section, Setting};

/// The commented example, in which every setting stands with its default.
pub const EXAMPLE: &str = include_str!("../../config.example.toml");

/// What stands where a key stood.
const REDACTED: &str = "[redacted]";
const SECTIONS: [&str; 16] = [
    "ipc",
    "requests",
    "retries",
    "breaker",
    "limits",
    "clients",
    "spend",
    "budgets",
    "cache",
    "log",
    "metrics",
    "discovery",
    "network",
    "providers",
    "aliases",
    "routes",
];
const DAY: u32 = 86_400;

/// Where a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file that `--config` names.
    pub file: Option<PathBuf>,
    /// The environment's variables.
    pub variables: Vec<(String, String)>,
    /// `section.key`, its value, and the flag that said so.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// The environment of this process, and no flags.
    pub fn from_process() -> Self {
        let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((
                name.into_string().ok()?,
                value.to_string_lossy().into_owned(),
            ))
        };
        Self {
            variables: env::vars_os().filter_map(variable).collect(),
            ..Self::default()
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// The file to read, and whether it must be there.
    fn file(&self) -> Option<(PathBuf, bool)> {
        if let Some(file) = &self.file {
            return Some((file.clone(), true));
        }
        if let Some(file) = self.variable("LAPCE_AI_CONFIG") {
            return Some((PathBuf::from(file), true));
        }
        let base = match self.variable("XDG_CONFIG_HOME").map(Path::new) {
            Some(base) if base.is_absolute() => base.to_owned(),
            _ => Path::new(self.variable("HOME")?).join(".config"),
        };
        Some((base.join("lapce-ai/config.toml"), false))
    }
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The file it was read from, if there is one.
    pub file: Option<PathBuf>,
    /// Towards editors.
    pub ipc: Ipc,
    /// Requests in general.
    pub requests: Requests,
    /// What happens when a provider fails.
    pub pool: PoolConfig,
    /// How much is used of providers that say nothing else.
    pub limits: lapce_ai_providers::Limits,
    /// How much each client may ask for.
    pub clients: ClientLimits,
    /// What answers cost, and where that is kept.
    pub spend: SpendSettings,
    /// How much they may cost, in the file's order.
    pub budgets: Vec<Budget>,
    /// Answers that are given again, if any are.
    pub cache: Option<CacheConfig>,
    /// The log.
    pub log: Log,
    /// Metrics.
    pub metrics: Metrics,
    /// What is used without being configured.
    pub discovery: Discovery,
    /// Towards providers.
    pub network: Network,
    /// The configured providers, in the file's order.
    pub providers: Vec<ProviderSettings>,
    /// Names for models, in the file's order, each with the model that it means.
    pub aliases: Vec<(String, String)>,
    /// Names that lead to several models, in the file's order.
    pub routes: Vec<RouteSettings>,
    settings: Vec<Setting>,
}

/// Section `[ipc]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipc {
    /// Where the daemon listens.
    pub socket_path: PathBuf,
    /// Connections at once.
    pub max_connections: u32,
    /// A connection without requests is closed after so long; `None` is never.
    pub idle_timeout: Option<Duration>,
    /// What one connection may do.
    pub limits: Limits,
    /// Payload bytes held at once, in all.
    pub buffer_pool_size: u64,
    /// Bytes of each ring of a connection.
    pub ring_size: u32,
    /// Longest time from connecting to a whole HELLO.
    pub handshake_timeout: Duration,
    /// Longest time without progress.
    pub stall_timeout: Duration,
    /// Bytes that are progress.
    pub stall_bytes: u32,
    /// How long running requests have when the daemon stops.
    pub drain_timeout: Duration,
    /// How long the next daemon may take to be ready in a planned restart.
    pub restart_timeout: Duration,
    /// How long the sync handlers of one batch may take before that is counted and logged.
    pub handler_limit: Duration,
    /// What is remembered of connections that were lost.
    pub repeats: RepeatOptions,
    /// How long the daemon looks for more before it sleeps.
    pub spin: Duration,
    /// Threads that read from connections.
    pub reactor_threads: u32,
    /// A CRC on every frame.
    pub require_crc: bool,
    /// Whether clients may use shared memory.
    pub shared_memory: bool,
    /// Users that are served beside the daemon's own and root.
    pub allowed_uids: Vec<u32>,
    /// Users whose daemon the client commands trust beside this user's and root's.
    pub server_uids: Vec<u32>,
}

/// Section `[requests]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    /// Where requests without a model go.
    pub default_model: Option<String>,
    /// Deadline of requests that name none; `None` is no deadline.
    pub default_deadline: Option<Duration>,
    /// How long to wait for providers that say nothing else.
    pub waits: Waits,
}

/// Section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What is worth a line.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Where lines go; `None` is standard error.
    pub file: Option<PathBuf>,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// As in the configuration.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    const NAMES: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// Section `[metrics]`. It is checked; the export itself is not there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Whether metrics are exported.
    pub enable: bool,
    /// How often.
    pub export_interval: Duration,
}

/// Section `[discovery]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discovery {
    /// Use providers whose keys are in the environment.
    pub environment: bool,
    /// Use Ollama and llama.cpp where they listen on this machine.
    pub loopback: bool,
}

/// Section `[network]`.
#[derive(Debug, Clone)]
pub struct Network {
    /// The HTTP proxy through which `https` addresses are reached. It may hold a password.
    pub https_proxy: Option<SecretString>,
    /// Hosts that are reached without it, in the form of curl's `NO_PROXY`.
    pub no_proxy: String,
    /// Whether to trust the system's certificates besides the compiled-in ones.
    pub system_root_certs: bool,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Some of its settings are wrong.
    #[error("{}", Lines(.0))]
    Wrong(Vec<Problem>),
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// A file that is named and cannot be read, or all settings that are wrong, each with its place.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut file = None;
        // It may hold keys.
        let mut text = Zeroizing::new(String::new());
        if let Some((path, must_exist)) = sources.file() {
            match fs::read_to_string(&path) {
                Ok(read) => {
                    text = Zeroizing::new(read);
                    file = Some(std::path::absolute(&path).unwrap_or(path));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
                Err(source) => return Err(ConfigError::Unreadable { path, source }),
            }
        }
        Self::read(file, &text, sources)
    }

    fn read(file: Option<PathBuf>, text: &str, sources: &Sources) -> Result<Self, ConfigError> {
        let place = file.clone().unwrap_or_default();
        let mut tree = layers::parse_file(&place, text)
            .map_err(|problem| ConfigError::Wrong(vec![problem]))?;
        layers::lay_environment(&mut tree, sources.variables.iter().cloned());
        for (path, value, flag) in &sources.flags {
            layers::lay_flag(&mut tree, path, value, flag.clone());
        }

        let mut findings = Findings::default();
        let ipc = read_ipc(&mut tree, &mut findings);
        let requests = read_requests(&mut tree, &mut findings);
        let pool = pool::read_pool(&mut tree, &mut findings);
        let limits = limits::read_usual(&mut tree, &mut findings);
        let clients = limits::read_clients(&mut tree, &mut findings);
        let spend = spend::read_spend(&mut tree, file.as_deref(), &mut findings);
        let cache = cache::read(&mut tree, &mut findings);
        let log = read_log(&mut tree, file.as_deref(), &mut findings);
        let metrics = read_metrics(&mut tree, &mut findings);
        let discovery = read_discovery(&mut tree, &mut findings);
        let network = read_network(&mut tree, sources, &mut findings);
        let providers = provider::read_all(
            tree.remove("providers"),
            provider::Usual {
                file: file.as_deref(),
                waits: requests.waits,
                limits: &limits,
                breaker: pool.breaker,
            },
            &mut findings,
        );
        let budgets = spend::read_budgets(tree.remove("budgets"), &mut findings);
        let aliases = aliases::read_all(tree.remove("aliases"), &providers, &mut findings);
        let routes = pool::read_routes(tree.remove("routes"), &providers, &aliases, &mut findings);
        for (name, entry) in tree {
            let hint = match section::nearest(&name, SECTIONS.into_iter()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are: {}", SECTIONS.join(", ")),
            };
            findings.problem(entry.origin, format!("unknown section `{name}`: {hint}"));
        }
        check_sizes(&ipc, &mut findings);
        if !findings.problems.is_empty() {
            findings
                .problems
                .sort_by_key(|problem| problem.origin.place());
            return Err(ConfigError::Wrong(findings.problems));
        }
        let settings = findings.settings;
        Ok(Self {
            file,
            ipc,
            requests,
            pool,
            limits,
            clients,
            spend,
            budgets,
            cache,
            log,
            metrics,
            discovery,
            network,
            providers,
            aliases,
            routes,
            settings,
        })
    }

    /// The effective configuration as TOML, with where each value comes from. Keys are left out.
    pub fn to_toml(&self) -> String {
        show::toml(self.file.as_deref(), &self.settings)
    }

    /// The same for programs: `{"ipc": {"max_connections": {"value": 1000, "source": "default"}}}`.
    pub fn to_json(&self) -> Value {
        show::json(self.file.as_deref(), &self.settings)
    }
}

fn read_ipc(tree: &mut layers::Table, findings: &mut Findings) -> Ipc {
    use kinds::{integer, path, seconds, size, switch, uids};
    let mut ipc = Section::take(tree, "ipc", findings);
    let socket = RuntimeDir::default_for_user().socket().to_owned();
    let socket_path = ipc.get("socket_path", socket, &path());
    let max_connections = ipc.get("max_connections", 1000, &integer(1..=1_000_000));
    let idle_timeout = ipc.get(
        "idle_timeout_secs",
        Duration::from_secs(1800),
        &seconds(0..=365 * DAY),
    );
    let max_message_size = ipc.get("max_message_size", 10 << 20, &size(1 << 10..=1 << 30));
    let buffer_pool_size = ipc.get(
        "buffer_pool_size",
        PoolOptions::default().budget,
        &size(64 << 10..=1 << 40),
    );
    let ring_size = ipc.get("ring_size", 128 << 10, &size(4 << 10..=1 << 30));
    let max_frame_payload = ipc.get("max_frame_payload", 16 << 10, &size(256..=256 << 20));
    let max_streams = ipc.get("max_streams", 256, &integer(1..=65_536));
    let inline_window = ipc.get("inline_window", 128 << 10, &size(1 << 10..=1 << 30));
    let handshake_timeout = ipc.get(
        "handshake_timeout_secs",
        Duration::from_secs(5),
        &seconds(1..=3600),
    );
    let stall_timeout = ipc.get(
        "stall_timeout_secs",
        Duration::from_secs(30),
        &seconds(1..=DAY),
    );
    let stall_bytes = ipc.get("stall_bytes", 64 << 10, &size(1..=1 << 30));
    let drain_timeout = ipc.get(
        "drain_timeout_secs",
        Duration::from_secs(10),
        &seconds(0..=DAY),
    );
    let restart_timeout = ipc.get(
        "restart_timeout_secs",
        Duration::from_secs(30),
        &seconds(1..=3600),
    );
    let handler_limit_millis = ipc.get("handler_limit_millis", 10, &integer(1u32..=60_000));
    let repeats = read_repeats(&mut ipc);
    let spin_micros = ipc.get("spin_micros", 50, &integer(0u32..=100_000));
    let threads = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let reactor_threads = ipc.get(
        "reactor_threads",
        threads(Options::reactors_for(usable_cpus())),
        &integer(1..=threads(Options::MOST_REACTORS)),
    );
    let require_crc = ipc.get("require_crc", false, &switch());
    let shared_memory = ipc.get("shared_memory", true, &switch());
    let allowed_uids = ipc.get("allowed_uids", Vec::new(), &uids());
    let server_uids = ipc.get("server_uids", Vec::new(), &uids());
    ipc.finish();
    // The kinds above keep these within 30 bits.
    let small = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
    Ipc {
        socket_path: std::path::absolute(&socket_path).unwrap_or(socket_path),
        max_connections,
        idle_timeout: Some(idle_timeout).filter(|timeout| !timeout.is_zero()),
        limits: Limits {
            max_message_size,
            max_frame_payload: small(max_frame_payload),
            max_streams,
            inline_window: small(inline_window),
        },
        buffer_pool_size,
        ring_size: small(ring_size),
        handshake_timeout,
        stall_timeout,
        stall_bytes: small(stall_bytes),
        drain_timeout,
        restart_timeout,
        handler_limit: Duration::from_millis(handler_limit_millis.into()),
        repeats,
        spin: Duration::from_micros(spin_micros.into()),
        reactor_threads,
        require_crc,
        shared_memory,
        allowed_uids,
        server_uids,
    }
}

/// What is remembered of connections that were lost.
fn read_repeats(ipc: &mut Section<'_>) -> RepeatOptions {
    let default = RepeatOptions::default();
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    RepeatOptions {
        clients: size(ipc.get(
            "remembered_clients",
            count(default.clients),
            &kinds::integer(0u32..=1_000_000),
        )),
        age: ipc.get("remembered_secs", default.age, &kinds::seconds(0..=3600)),
        running: size(ipc.get(
            "lost_requests",
            count(default.running),
            &kinds::integer(0u32..=100_000),
        )),
        grace: ipc.get("lost_request_secs", default.grace, &kinds::seconds(0..=600)),
    }
}

fn read_requests(tree: &mut layers::Table, findings: &mut Findings) -> Requests {
    let mut requests = Section::take(tree, "requests", findings);
    let default_model = requests.maybe(
        "default_model",
        &kinds::text("a model such as \"openai/gpt-5.4\""),
    );
    let deadline = requests.get(
        "default_deadline_secs",
        Duration::from_secs(600),
        &kinds::seconds(0..=DAY),
    );
    let waits = waits::read(&mut requests, Waits::default());
    requests.finish();
    Requests {
        waits,
        default_model,
        default_deadline: Some(deadline).filter(|deadline| !deadline.is_zero()),
    }
}

fn read_log(tree: &mut layers::Table, place: Option<&Path>, findings: &mut Findings) -> Log {
    let mut log = Section::take(tree, "log", findings);
    let show_level = |level: &LogLevel| Value::from(level.name());
    let level = log.get(
        "level",
        LogLevel::Info,
        &kinds::one_of(LogLevel::NAMES, show_level),
    );
    let show_format = |format: &LogFormat| Value::from(name_of(LogFormat::NAMES, *format));
    let format = log.get(
        "format",
        LogFormat::Text,
        &kinds::one_of(LogFormat::NAMES, show_format),
    );
    let file = log
        .maybe("file", &kinds::path())
        .map(|path| beside(place, path));
    log.finish();
    Log {
        level,
        format,
        file,
    }
}

fn read_metrics(tree: &mut layers::Table, findings: &mut Findings) -> Metrics {
    let mut metrics = Section::take(tree, "metrics", findings);
    let enable = metrics.get("enable", false, &kinds::switch());
    let export_interval = metrics.get(
        "export_interval_secs",
        Duration::from_secs(15),
        &kinds::seconds(1..=DAY),
    );
    metrics.finish();
    Metrics {
        enable,
        export_interval,
    }
}

fn read_discovery(tree: &mut layers::Table, findings: &mut Findings) -> Discovery {
    let mut discovery = Section::take(tree, "discovery", findings);
    let environment = discovery.get("environment", true, &kinds::switch());
    let loopback = discovery.get("loopback", true, &kinds::switch());
    discovery.finish();
    Discovery {
        environment,
        loopback,
    }
}

/// Everybody's variables for this stand below the file and above the defaults.
fn read_network(tree: &mut layers::Table, sources: &Sources, findings: &mut Findings) -> Network {
    for (key, names) in [
        ("https_proxy", ["HTTPS_PROXY", "https_proxy"]),
        ("no_proxy", ["NO_PROXY", "no_proxy"]),
    ] {
        let mut set = names
            .iter()
            .filter_map(|name| Some((*name, sources.variable(name)?)));
        if let Some((name, value)) = set.next() {
            layers::lay_below(tree, ["network", key], name, value);
        }
    }
    let mut network = Section::take(tree, "network", findings);
    let https_proxy = network.secret("https_proxy");
    let no_proxy = network.maybe(
        "no_proxy",
        &kinds::text("a list such as \"a.example, 10.0.0.0/8\""),
    );
    let system_root_certs = network.get("system_root_certs", true, &kinds::switch());
    network.finish();
    Network {
        https_proxy: https_proxy
            .filter(|proxy| !proxy.expose_secret().eq_ignore_ascii_case("none")),
        no_proxy: no_proxy.unwrap_or_default(),
        system_root_certs,
    }
}

/// A path in the configuration is relative to its file, wherever the daemon was started.
fn beside(file: Option<&Path>, path: PathBuf) -> PathBuf {
    match file.and_then(Path::parent) {
        Some(directory) => directory.join(path),
        None => path,
    }
}

/// The rules between sizes.
fn check_sizes(ipc: &Ipc, findings: &mut Findings) {
    let Limits {
        max_message_size,
        max_frame_payload,
        inline_window,
        ..
    } = ipc.limits;
    if ipc.buffer_pool_size < max_message_size {
        let text = format!(
            "ipc.buffer_pool_size ({}) must be at least ipc.max_message_size ({}), or the largest message could never be taken",
            written_size(ipc.buffer_pool_size),
            written_size(max_message_size)
        );
        findings.conflict(
            &[("ipc", "buffer_pool_size"), ("ipc", "max_message_size")],
            text,
        );
    }
    if !ipc.ring_size.is_power_of_two() {
        let near = ipc.ring_size.next_power_of_two();
        let text = format!(
            "ipc.ring_size must be a power of two such as {} or {}, not {}",
            written_size(u64::from(near / 2)),
            written_size(u64::from(near)),
            written_size(ipc.ring_size.into())
        );
        findings.conflict(&[("ipc", "ring_size")], text);
    } else if u64::from(max_frame_payload) > longest_payload(ipc.ring_size) {
        let text = format!(
            "ipc.max_frame_payload ({}) may be at most {} with ipc.ring_size = {}: two frames must fit into a ring",
            written_size(max_frame_payload.into()),
            written_size(longest_payload(ipc.ring_size)),
            written_size(ipc.ring_size.into())
        );
        findings.conflict(&[("ipc", "max_frame_payload"), ("ipc", "ring_size")], text);
    }
    if inline_window < max_frame_payload {
        let text = format!(
            "ipc.inline_window ({}) must be at least ipc.max_frame_payload ({}), or a full frame could never be sent",
            written_size(inline_window.into()),
            written_size(max_frame_payload.into())
        );
        findings.conflict(
            &[("ipc", "inline_window"), ("ipc", "max_frame_payload")],
            text,
        );
    }
}

/// Half of the ring, without the longest prefix and the room kept for control frames, as the server has it.
fn longest_payload(ring_size: u32) -> u64 {
    (u64::from(ring_size) / 2).saturating_sub((CONTROL_ROOM + OPEN_PREFIX_LEN) as u64)
}

fn name_of<T: Copy + PartialEq>(names: &'static [(&'static str, T)], value: T) -> &'static str {
    names
        .iter()
        .find(|(_, known)| *known == value)
        .map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests;
