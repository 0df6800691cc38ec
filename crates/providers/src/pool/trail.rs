//! What was tried for a request, in order: why one was skipped or failed, and how long each took.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::limits::Limit;
use crate::error::ErrorKind;
use crate::profile::Feature;

/// The most attempts that are kept.
const MOST: usize = 64;

/// One target that was asked, or passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The provider.
    pub provider: Arc<str>,
    /// The model.
    pub model: Arc<str>,
    /// Which of several keys was used, from 1. The key itself is never here.
    pub key: Option<usize>,
    /// How it went.
    pub outcome: Outcome,
    /// From asking to the first token, to the whole answer where it was asked for in one piece, or to the failure. Where it
    /// was skipped: how long it was waited for.
    pub took: Duration,
}

/// How an [`Attempt`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Answered,
    /// It was asked and failed.
    Failed(ErrorKind),
    /// It was not asked.
    Skipped(Skip),
}

/// Why a target was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// The request needs what it cannot do.
    Lacks(Feature),
    /// Its circuit breaker is open, or half open with enough probes under way.
    BreakerOpen,
    /// Each of its keys rests, for this reason.
    KeysResting(ErrorKind),
    /// A retry would go beyond the part of the load that retries may be.
    RetryBudget,
    /// A limit is reached.
    Limited(Limit),
    /// Too many wait for its limits.
    QueueFull,
    /// A more urgent request took the place of this one among those that wait.
    Displaced,
    /// It waited for the limits for as long as it may.
    QueueTimeout,
    /// The limits have no room before the deadline.
    QueueDeadline,
    /// What may be spent there is spent, or would not be enough.
    BudgetSpent,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lacks(feature) => write!(f, "lacks_{}", feature.name()),
            Self::BreakerOpen => f.write_str("breaker_open"),
            Self::KeysResting(kind) => write!(f, "keys_resting_{}", kind.name()),
            Self::RetryBudget => f.write_str("retry_budget"),
            Self::Limited(limit) => write!(f, "limit_{limit}"),
            Self::QueueFull => f.write_str("queue_full"),
            Self::Displaced => f.write_str("queue_displaced"),
            Self::QueueTimeout => f.write_str("queue_timeout"),
            Self::QueueDeadline => f.write_str("queue_deadline"),
            Self::BudgetSpent => f.write_str("budget_spent"),
        }
    }
}

/// As logs and clients read it: `answered`, `failed: overloaded`, `skipped: breaker_open`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Failed(kind) => write!(f, "failed: {}", kind.name()),
            Self::Skipped(skip) => write!(f, "skipped: {skip}"),
        }
    }
}

/// The attempts of one request, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    attempts: Vec<Attempt>,
}

impl Trail {
    /// The first 63 attempts, and the last one.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Whether it tells no more than that the first target answered.
    pub fn is_plain(&self) -> bool {
        matches!(
            self.attempts.as_slice(),
            [] | [Attempt {
                outcome: Outcome::Answered,
                ..
            }]
        )
    }

    /// The answer that had begun broke off.
    pub fn broke_off(&mut self, kind: ErrorKind) {
        if let Some(last) = self.attempts.last_mut() {
            last.outcome = Outcome::Failed(kind);
        }
    }

    /// The last time that this one was passed over, it was waited for.
    pub(super) fn waited(&mut self, provider: &str, model: &str, took: Duration) {
        let mut attempts = self.attempts.iter_mut().rev();
        let same =
            |attempt: &&mut Attempt| *attempt.provider == *provider && *attempt.model == *model;
        if let Some(attempt) = attempts.find(same)
            && matches!(attempt.outcome, Outcome::Skipped(_))
        {
            attempt.took = took;
        }
    }

    /// Puts those before all others that were passed over before anybody was asked.
    pub(crate) fn preceded_by(&mut self, skipped: Vec<Attempt>) {
        let asked = std::mem::replace(&mut self.attempts, skipped);
        for attempt in asked {
            self.add(attempt);
        }
    }

    pub(super) fn add(&mut self, attempt: Attempt) {
        // The last one says how it ended.
        self.attempts.truncate(MOST - 1);
        self.attempts.push(attempt);
    }
}

/// In one line: `groq/llama skipped: breaker_open; openai/gpt answered (120 ms)`.
impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, attempt) in self.attempts.iter().enumerate() {
            let Attempt {
                provider,
                model,
                key,
                outcome,
                took,
            } = attempt;
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{provider}/{model}")?;
            if let Some(key) = key {
                write!(f, " key {key}")?;
            }
            write!(f, " {outcome}")?;
            if !matches!(outcome, Outcome::Skipped(_)) || !took.is_zero() {
                write!(f, " ({} ms)", took.as_millis())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_reads_as_one_line_and_stays_short() {
        let attempt = |key, outcome| Attempt {
            provider: "groq".into(),
            model: "llama".into(),
            key,
            outcome,
            took: Duration::from_millis(12),
        };
        let mut trail = Trail::default();
        trail.add(attempt(None, Outcome::Answered));
        assert!(trail.is_plain());
        trail = Trail::default();
        let skipped = |skip| Attempt {
            took: Duration::ZERO,
            ..attempt(None, Outcome::Skipped(skip))
        };
        for skip in [
            Skip::Lacks(Feature::Images),
            Skip::KeysResting(ErrorKind::RateLimited),
        ] {
            trail.add(skipped(skip));
        }
        trail.waited("groq", "llama", Duration::from_secs(2));
        trail.add(attempt(Some(2), Outcome::Answered));
        trail.broke_off(ErrorKind::StreamCut);
        assert_eq!(
            trail.to_string(),
            "groq/llama skipped: lacks_images; groq/llama skipped: keys_resting_rate_limited (2000 ms); \
             groq/llama key 2 failed: stream_cut (12 ms)"
        );
        assert!(!trail.is_plain());
        for _ in 0..1000 {
            trail.add(attempt(None, Outcome::Answered));
        }
        assert_eq!(trail.attempts().len(), MOST);
    }
}
