//! What was tried for a request, in order: why one was skipped or failed, and how long each took.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::Limit;
use crate::error::ErrorKind;
use crate::event::Usage;
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
    /// Why it was its turn.
    pub purpose: Purpose,
    /// How it went.
    pub outcome: Outcome,
    /// From asking to the first token, to the whole answer where it was asked for in one piece, or to the failure. Where it
    /// was skipped: how long it was waited for.
    pub took: Duration,
    /// The tokens of its answer, where it told them.
    pub usage: Option<Usage>,
}

/// What an [`Attempt`] was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To answer the request.
    #[default]
    Answer,
    /// To answer it as well, since the one before let wait for its first token.
    Hedge,
    /// To go on with an answer that broke off.
    Continuation,
}

impl Purpose {
    /// A stable name in `snake_case`, for logs and clients.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Hedge => "hedge",
            Self::Continuation => "continuation",
        }
    }
}

/// How an [`Attempt`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has been asked.
    UnderWay,
    /// It answered.
    Answered,
    /// It was asked and failed.
    Failed(ErrorKind),
    /// Another one that was asked at the same time had its first token sooner.
    Lost,
    /// Whoever asked gave up.
    Cancelled,
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
            Self::UnderWay => f.write_str("under way"),
            Self::Answered => f.write_str("answered"),
            Self::Failed(kind) => write!(f, "failed: {}", kind.name()),
            Self::Lost => f.write_str("lost"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Skipped(skip) => write!(f, "skipped: {skip}"),
        }
    }
}

/// The attempts of one request, in the order in which they began. A clone is the same trail: whoever keeps one sees how
/// far the request has come, even when its future was dropped.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    /// Of the next one.
    number: u64,
    list: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    begun: Instant,
    attempt: Attempt,
}

impl Trail {
    /// The first 63 attempts, and the last one.
    pub fn attempts(&self) -> Vec<Attempt> {
        let entries = self.lock();
        let attempts = entries.list.iter().map(|entry| entry.attempt.clone());
        attempts.collect()
    }

    /// Whether it tells no more than that the first target answered.
    pub fn is_plain(&self) -> bool {
        match self.lock().list.as_slice() {
            [] => true,
            [only] => only.attempt.outcome == Outcome::Answered,
            _ => false,
        }
    }

    /// Adds one that was not asked.
    pub(crate) fn skipped(
        &self,
        provider: &Arc<str>,
        model: &Arc<str>,
        purpose: Purpose,
        why: Skip,
    ) {
        self.lock().add(
            Instant::now(),
            Attempt {
                provider: Arc::clone(provider),
                model: Arc::clone(model),
                key: None,
                purpose,
                outcome: Outcome::Skipped(why),
                took: Duration::ZERO,
                usage: None,
            },
        );
    }

    /// Adds one that is asked now.
    pub(super) fn begin(
        &self,
        provider: &Arc<str>,
        model: &Arc<str>,
        key: Option<usize>,
        purpose: Purpose,
        now: Instant,
    ) -> Step {
        let attempt = Attempt {
            provider: Arc::clone(provider),
            model: Arc::clone(model),
            key,
            purpose,
            outcome: Outcome::UnderWay,
            took: Duration::ZERO,
            usage: None,
        };
        Step {
            number: self.lock().add(now, attempt),
            trail: self.clone(),
        }
    }

    /// The last time that this one was passed over, it was waited for.
    pub(super) fn waited(&self, provider: &str, model: &str, took: Duration) {
        let mut entries = self.lock();
        let mut attempts = entries
            .list
            .iter_mut()
            .rev()
            .map(|entry| &mut entry.attempt);
        let same =
            |attempt: &&mut Attempt| *attempt.provider == *provider && *attempt.model == *model;
        if let Some(attempt) = attempts.find(same)
            && matches!(attempt.outcome, Outcome::Skipped(_))
        {
            attempt.took = took;
        }
    }

    /// Somebody has answered: whatever else is under way has lost.
    pub(super) fn lost(&self, now: Instant) {
        for entry in &mut self.lock().list {
            entry.end(Outcome::Lost, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Nothing in here panics halfway.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn add(&mut self, begun: Instant, attempt: Attempt) -> u64 {
        let number = self.number;
        self.number += 1;
        // The last one says how it ended.
        self.list.truncate(MOST - 1);
        self.list.push(Entry {
            number,
            begun,
            attempt,
        });
        number
    }
}

impl Entry {
    /// Ends it, unless it has ended.
    fn end(&mut self, outcome: Outcome, now: Instant) {
        if self.attempt.outcome == Outcome::UnderWay {
            self.attempt.outcome = outcome;
            self.attempt.took = now.saturating_duration_since(self.begun);
        }
    }
}

/// One attempt of a [`Trail`] that has begun. Dropped before it has ended, it counts as given up.
#[derive(Debug)]
pub(super) struct Step {
    trail: Trail,
    number: u64,
}

impl Step {
    /// The first token came, or without streaming the whole answer.
    pub(super) fn answered(&self, now: Instant) {
        self.with(|entry| entry.end(Outcome::Answered, now));
    }

    /// It failed, before or after its first token.
    pub(super) fn failed(&self, kind: ErrorKind, now: Instant) {
        self.with(|entry| {
            entry.end(Outcome::Failed(kind), now);
            if entry.attempt.outcome == Outcome::Answered {
                entry.attempt.outcome = Outcome::Failed(kind);
            }
        });
    }

    /// What its answer took.
    pub(super) fn used(&self, usage: Usage) {
        self.with(|entry| entry.attempt.usage = Some(usage));
    }

    fn with(&self, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.trail.lock();
        // From the end: it is seldom far from there. In a long trail it may have made room for a later one.
        let mut list = entries.list.iter_mut().rev();
        if let Some(entry) = list.find(|entry| entry.number == self.number) {
            change(entry);
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.with(|entry| {
            if entry.attempt.outcome == Outcome::UnderWay {
                entry.end(Outcome::Cancelled, Instant::now());
            }
        });
    }
}

/// In one line: `groq/llama skipped: breaker_open; openai/gpt answered (120 ms)`.
impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Entry { attempt, .. }) in self.lock().list.iter().enumerate() {
            let Attempt {
                provider,
                model,
                key,
                purpose,
                outcome,
                took,
                usage: _,
            } = attempt;
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{provider}/{model}")?;
            if let Some(key) = key {
                write!(f, " key {key}")?;
            }
            if *purpose != Purpose::Answer {
                write!(f, " {}", purpose.name())?;
            }
            write!(f, " {outcome}")?;
            let has_taken = match outcome {
                Outcome::UnderWay => false,
                Outcome::Skipped(_) => !took.is_zero(),
                _ => true,
            };
            if has_taken {
                write!(f, " ({} ms)", took.as_millis())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_trail_reads_as_one_line_and_stays_short() {
        let (provider, model): (Arc<str>, Arc<str>) = ("groq".into(), "llama".into());
        let later = |millis| Instant::now() + Duration::from_millis(millis);
        let trail = Trail::default();
        let begin = |trail: &Trail, key, purpose| {
            trail.begin(&provider, &model, key, purpose, Instant::now())
        };
        begin(&trail, None, Purpose::Answer).answered(later(12));
        assert!(trail.is_plain());
        let trail = Trail::default();
        for skip in [
            Skip::Lacks(Feature::Images),
            Skip::KeysResting(ErrorKind::RateLimited),
        ] {
            trail.skipped(&provider, &model, Purpose::Answer, skip);
        }
        trail.waited("groq", "llama", Duration::from_secs(2));
        let step = begin(&trail, Some(2), Purpose::Answer);
        assert!(trail.to_string().ends_with("groq/llama key 2 under way"));
        step.answered(later(12));
        step.failed(ErrorKind::StreamCut, later(99));
        assert_eq!(
            trail.to_string(),
            "groq/llama skipped: lacks_images; groq/llama skipped: keys_resting_rate_limited (2000 ms); \
             groq/llama key 2 failed: stream_cut (12 ms)"
        );
        assert!(!trail.is_plain());
        for _ in 0..1000 {
            begin(&trail, None, Purpose::Continuation).answered(later(0));
        }
        assert_eq!(trail.attempts().len(), MOST);
        // Its place belongs to another now.
        step.failed(ErrorKind::Overloaded, later(0));
        let last = trail.attempts().pop();
        assert_eq!(last.map(|last| last.outcome), Some(Outcome::Answered));
    }

    #[tokio::test(start_paused = true)]
    async fn who_loses_and_who_is_given_up_is_told_apart() {
        let (provider, model): (Arc<str>, Arc<str>) = ("p".into(), "m".into());
        let now = Instant::now();
        let trail = Trail::default();
        let begin = |purpose| trail.begin(&provider, &model, None, purpose, now);
        let (first, hedge) = (begin(Purpose::Answer), begin(Purpose::Hedge));
        hedge.answered(now + Duration::from_millis(5));
        trail.lost(now + Duration::from_millis(5));
        drop(first);
        hedge.used(Usage::default());
        drop(begin(Purpose::Continuation));
        assert_eq!(
            trail.to_string(),
            "p/m lost (5 ms); p/m hedge answered (5 ms); p/m continuation cancelled (0 ms)"
        );
        assert_eq!(trail.attempts()[1].usage, Some(Usage::default()));
    }
}
