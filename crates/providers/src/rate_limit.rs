//! What a provider says is left of its rate limits.

use std::time::Duration;

/// The windows that an answer's headers told of; often none.
pub type RateLimits = Box<[RateWindow]>;

/// What is left of one of a provider's limits for the key and the model that were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateWindow {
    /// What is counted.
    pub counts: Counted,
    /// The most in the provider's period, if it is told.
    pub limit: Option<u64>,
    /// What is left of it.
    pub remaining: u64,
    /// How long until all of it is there again.
    pub reset: Duration,
}

/// What a provider's limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Requests.
    Requests,
    /// Tokens of prompt and answer.
    Tokens,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens of answers.
    OutputTokens,
}
