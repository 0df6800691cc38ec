//! What `status` answers. Fields are only ever added.

use serde::{Deserialize, Serialize};

/// The daemon at a glance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `lapce-ai 0.1.0`.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_secs: u64,
    /// Path of the socket.
    pub socket: String,
    /// Path of the configuration file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The daemon stops by itself after so many seconds without a client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stops_when_idle_secs: Option<u64>,
    /// Who is connected.
    pub connections: Vec<ConnectionStatus>,
    /// The threads that serve them, by number.
    pub reactors: Vec<ReactorStatus>,
    /// What runs beside them: requests that are answered by and by, connections to providers, and what the daemon does for itself.
    pub tasks: u64,
    /// Which providers are usable.
    pub providers: Vec<ProviderStatus>,
    /// Where requests without a model go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_model: Option<String>,
    /// Counters since the start.
    pub counters: Counters,
    /// What the buffers hold and did.
    pub pool: PoolStatus,
    /// How much may be spent, and how much is.
    pub budgets: Vec<BudgetStatus>,
    /// Answers that are given again, if any are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheStatus>,
    /// Where what was spent is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerStatus>,
}

/// A client that is connected.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionStatus {
    /// The connection's number.
    pub id: u64,
    /// The number of the reactor that serves it.
    pub reactor: u64,
    /// What the client calls itself.
    pub name: String,
    /// Its process id, from the kernel.
    pub pid: i32,
    /// Its user id, from the kernel.
    pub uid: u32,
    /// `shared memory` or `socket`.
    pub transport: String,
    /// How many connections it had before this one, by its own word.
    pub earlier: u64,
    /// Requests taken since it connected.
    pub requests: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Seconds since it connected.
    pub connected_secs: u64,
}

/// A thread that reads from connections and runs sync handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReactorStatus {
    /// Connections that it serves.
    pub connections: u64,
    /// Requests that they made since the start, those of past connections included.
    pub requests: u64,
}

/// A provider that the daemon knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderStatus {
    /// Its name in the daemon.
    pub name: String,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// How the daemon came to know it: `configuration`, `environment`, `discovered`, `built in`.
    pub source: String,
    /// Its default model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_model: Option<String>,
    /// How it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What its answers cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spend: Option<Spending>,
}

/// What a provider's answers cost, today and this month in UTC; in billionths of a US dollar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spending {
    /// Today.
    pub today_nano_usd: u64,
    /// This month.
    pub month_nano_usd: u64,
    /// Tokens of this month's requests.
    pub month_input_tokens: u64,
    /// Tokens of this month's answers.
    pub month_output_tokens: u64,
    /// This month's answers.
    pub month_requests: u64,
    /// Those of them that came from the cache.
    pub month_cached: u64,
    /// Those of them whose price is not known; they are not in the sums of money.
    pub month_unpriced: u64,
}

/// A budget; in billionths of a US dollar.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetStatus {
    /// Its name.
    pub name: String,
    /// `day` or `month`.
    pub per: String,
    /// Only what is spent there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Only what this uid spends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<u32>,
    /// What was spent.
    pub spent_nano_usd: u64,
    /// What requests under way may cost at most.
    pub reserved_nano_usd: u64,
    /// From here on there are warnings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_nano_usd: Option<u64>,
    /// No request may lead beyond it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_nano_usd: Option<u64>,
    /// The day on which it is new, such as `2026-12-01`.
    pub until: String,
}

/// The cache of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CacheStatus {
    /// Answers that are kept.
    pub answers: u64,
    /// The memory that they take.
    pub bytes: u64,
    /// Requests under way that others may join.
    pub under_way: u64,
    /// Requests that were answered from what is kept.
    pub hits: u64,
    /// Requests that joined one under way.
    pub joined: u64,
    /// Requests that were looked up and not found.
    pub misses: u64,
    /// Answers that had to make room for others.
    pub evicted: u64,
}

/// Where what was spent is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LedgerStatus {
    /// The file.
    pub file: String,
    /// Why it is not written now; what is spent is counted in memory meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How a provider does, from its traffic since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Requests under way.
    pub in_flight: u64,
    /// Requests that were sent to it, retries included.
    pub asked: u64,
    /// Those that ended with a whole answer.
    pub answered: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were given up by whoever asked: cancelled, gone, or over their deadline.
    pub cancelled: u64,
    /// Milliseconds to the first token that half of the last 256 answers did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_p50_ms: Option<u64>,
    /// The same of 95 in 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_p95_ms: Option<u64>,
    /// The same of 99 in 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_p99_ms: Option<u64>,
    /// The circuit breakers that are not closed.
    pub breakers: Vec<Breaker>,
    /// How many keys it has.
    pub keys: u64,
    /// How many of them rest after they were refused.
    pub resting_keys: u64,
    /// Milliseconds until the first of those is used again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest_ms: Option<u64>,
    /// Requests that wait for its limits now.
    pub waiting: u64,
    /// How many may.
    pub max_waiting: u64,
    /// Requests that had to wait for its limits.
    pub queued: u64,
    /// Requests that were sent away, since the limits had no room for them in time.
    pub shed: u64,
    /// What is left of its limits: those that are configured, and those that it told of.
    pub limits: Vec<LimitStatus>,
    /// What the last active probe told, where the provider is probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// What is left of a limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LimitStatus {
    /// Whose: `provider`, `model` or `key`.
    pub scope: String,
    /// Of what: `in_flight`, `requests`, `tokens`, `input_tokens` or `output_tokens`.
    pub measure: String,
    /// The model, where it is one model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which of several keys, from 1, where it is a key's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<u64>,
    /// The most there may be, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<u64>,
    /// What is left.
    pub left: u64,
    /// Milliseconds until all of it is there again; absent for requests under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_ms: Option<u64>,
    /// Whether the provider told of it; else it is configured.
    pub learned: bool,
}

/// The end of an active probe: a request for the list of models that only asks how the provider does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// Whether the list came.
    pub ok: bool,
    /// Why not, as the name of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// Milliseconds since it ended.
    pub ago_ms: u64,
}

/// A circuit breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Breaker {
    /// The model; absent: the way to the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `open` or `half_open`.
    pub state: String,
    /// Milliseconds until it lets a request through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_ms: Option<u64>,
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// Connections taken.
    pub connections: u64,
    /// Those of them whose clients had had one before: of this daemon, or of one before it.
    pub reconnections: u64,
    /// Requests that came again after their connection was lost.
    pub repeated: u64,
    /// Those of them that ran on meanwhile and were fetched.
    pub fetched: u64,
    /// Connections refused: uid, limit, version.
    pub refused: u64,
    /// Requests taken.
    pub requests: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Requests cancelled.
    pub cancelled: u64,
    /// Connections cut for a fault.
    pub faults: u64,
    /// Batches of requests whose sync handlers held every connection up for too long.
    pub overruns: u64,
}

/// The buffers of payload bytes and their budget.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolStatus {
    /// Payload bytes that may be held at once.
    pub budget: u64,
    /// Payload bytes held now.
    pub held: u64,
    /// The most that were ever held.
    pub peak: u64,
    /// Bytes kept free for reuse.
    pub kept: u64,
    /// Requests that wait for the budget now.
    pub waiting: u64,
    /// Requests that had to wait for it since the start, those that wait now included.
    pub waits: u64,
    /// Microseconds that all of those waited that wait no longer.
    pub waited_micros: u64,
    /// Microseconds of the longest wait that is over.
    pub longest_wait_micros: u64,
    /// Buffers of each size, and last of those that are larger.
    pub tiers: Vec<TierStatus>,
}

/// The buffers of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TierStatus {
    /// Bytes of each. None: what is over the largest size, each as large as it has to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Buffers that hold payload now.
    pub in_use: u64,
    /// Buffers kept free for reuse.
    pub kept: u64,
    /// How many are kept at most.
    pub cap: u64,
    /// Buffers that were taken from the kept ones.
    pub hits: u64,
    /// Buffers that needed new memory.
    pub misses: u64,
}
