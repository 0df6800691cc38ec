//! What may be used of a provider: how many requests at once, how many of them and how many tokens in a minute, and how
//! many may wait for that.

use std::fmt;
use std::time::Duration;

/// The limits of one provider.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most requests under way at once. No limit by default.
    pub max_in_flight: Option<u32>,
    /// The most requests that wait until there is room again. 100 by default.
    pub queue: usize,
    /// How long one may wait. 30 s by default.
    pub queue_wait: Duration,
    /// All requests together.
    pub rate: Rate,
    /// The requests with each key.
    pub key_rate: Rate,
    /// Models with limits of their own beside the provider's, by the name that the provider uses.
    pub models: Vec<(Box<str>, ModelLimits)>,
    /// Whether what the provider's headers say is left of its own limits counts, too. So by default.
    pub learn: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_in_flight: None,
            queue: 100,
            queue_wait: Duration::from_secs(30),
            rate: Rate::default(),
            key_rate: Rate::default(),
            models: Vec::new(),
            learn: true,
        }
    }
}

/// The limits of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// The most requests under way at once.
    pub max_in_flight: Option<u32>,
    /// Its requests and tokens.
    pub rate: Rate,
}

/// How much there may be in a minute. A minute's worth may come at once after a quiet minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Requests; `None`: any number.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers; `None`: any number.
    pub tokens_per_minute: Option<u32>,
}

/// How urgent a request is among those that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A person waits for every millisecond.
    Interactive,
    /// A person waits.
    #[default]
    Normal,
    /// Nobody waits.
    Bulk,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whose it is.
    pub scope: Scope,
    /// What it counts.
    pub measure: Measure,
}

/// Whose a [`Limit`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The provider's as a whole.
    Provider,
    /// One of its models'.
    Model,
    /// Each of its keys'.
    Key,
    /// The client's.
    Client,
}

/// What a [`Limit`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Requests under way.
    InFlight,
    /// Requests in a time.
    Requests,
    /// Tokens in a time.
    Tokens,
    /// Tokens of prompts in a time.
    InputTokens,
    /// Tokens of answers in a time.
    OutputTokens,
}

impl Scope {
    /// A stable name in `snake_case`, for logs and `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Key => "key",
            Self::Client => "client",
        }
    }
}

impl Measure {
    /// A stable name in `snake_case`, for logs and `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::InFlight => "in_flight",
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.scope.name(), self.measure.name())
    }
}

/// How much of a limit is left, for `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitStatus {
    /// Which one.
    pub limit: Limit,
    /// The model, where it is one model's.
    pub model: Option<Box<str>>,
    /// Which of several keys, from 1, where it is a key's.
    pub key: Option<usize>,
    /// The most there may be; unknown where a provider tells no more than what is left.
    pub most: Option<u64>,
    /// What is left.
    pub left: u64,
    /// How long until all of it is there again; `None` for requests under way.
    pub reset: Option<Duration>,
    /// Whether the provider told it.
    pub learned: bool,
}
