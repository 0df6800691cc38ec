//! How long to wait for providers: in `[requests]` for all of them, in `[providers.<name>]` for one.

use std::time::Duration;

use lapce_ai_providers::Timeouts;

use super::section::Section;
use super::{DAY, kinds};

/// How long to wait for a provider. Each request's own deadline bounds all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// For a connection.
    pub connect: Duration,
    /// For tokens, and for lists of models.
    pub timeouts: Timeouts,
    /// For a whole answer; `None`: no limit but the request's deadline.
    pub answer: Option<Duration>,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            timeouts: Timeouts::default(),
            answer: None,
        }
    }
}

/// Reads the settings of `section`; what it leaves out is `usual`.
pub(super) fn read(section: &mut Section<'_>, usual: Waits) -> Waits {
    let mut wait = |key, usual, range| section.get(key, usual, &kinds::seconds(range));
    let connect = wait("connect_timeout_secs", usual.connect, 1..=3600);
    let first_token = wait(
        "first_token_timeout_secs",
        usual.timeouts.first_token,
        1..=DAY,
    );
    let between_tokens = wait(
        "between_tokens_timeout_secs",
        usual.timeouts.between_tokens,
        1..=DAY,
    );
    let answer = wait(
        "answer_timeout_secs",
        usual.answer.unwrap_or_default(),
        0..=DAY,
    );
    let models = wait("models_timeout_secs", usual.timeouts.models, 1..=DAY);
    Waits {
        connect,
        timeouts: Timeouts {
            first_token,
            between_tokens,
            models,
        },
        answer: Some(answer).filter(|answer| !answer.is_zero()),
    }
}
