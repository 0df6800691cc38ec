//! The pool: one request survives any provider's bad day.
//!
//! A [`Plan`] lists the targets that may answer a request. [`Pool::chat`] asks them one after the other until the first
//! token comes, [`Pool::embed`] and [`Pool::count_tokens`] until all has come, and says in a [`Trail`] whom it asked and why it went on. What each provider and model did lately decides
//! whether it is asked at all ([`BreakerConfig`]), with which of its keys, and in which order ([`Balance`]).
//! When all have failed it waits and begins anew ([`RetryConfig`]), as long as the deadline allows.
//!
//! Once the first token is out, the answer is that target's to the end: nothing is repeated, nothing lost.
//! Dropping the future or the stream drops the HTTP request and gives everything back.

mod ask;
mod backoff;
mod balance;
mod breaker;
mod keys;
mod live;
mod member;
mod needs;
mod stream;
mod trail;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::chat::ChatRequest;
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::profile::Features;
use crate::provider::{ChatStream, Provider};
pub use backoff::RetryConfig;
pub use balance::Balance;
pub use breaker::{BreakerConfig, BreakerState};
pub use live::Counts;
pub use member::{Member, MemberStatus};
pub use trail::{Attempt, Outcome, Skip, Trail};

use ask::{Ask, Count};
use member::Refused;
use stream::Bound;

/// How a pool deals with failures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PoolConfig {
    /// When a provider or model is left alone.
    pub breaker: BreakerConfig,
    /// How requests are tried again.
    pub retries: RetryConfig,
}

/// The providers, with what is known of each.
#[derive(Debug, Default)]
pub struct Pool {
    config: PoolConfig,
    members: Vec<Arc<Member>>,
}

/// One that may answer.
#[derive(Clone, Debug)]
pub struct Target {
    /// The provider.
    pub member: Arc<Member>,
    /// The model, by the name that the provider uses.
    pub model: Arc<str>,
    /// Its part of the requests, for [`Balance::Weighted`].
    pub weight: u32,
}

/// Who may answer a request.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The targets, in order of preference.
    pub targets: Vec<Target>,
    /// How requests are spread over them.
    pub balance: Balance,
}

/// An answer: a chat's that has begun, or the whole of what else was asked for.
#[derive(Debug)]
pub struct Answer<T = ChatStream> {
    /// What was asked for; of a chat its events.
    pub given: T,
    /// Who gives it.
    pub provider: Arc<str>,
    /// The model that was asked.
    pub model: Arc<str>,
    /// Whom else was asked before.
    pub trail: Trail,
}

/// Nobody answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct NoAnswer {
    /// The last failure of somebody who was asked; where nobody was, why not.
    pub error: ProviderError,
    /// Who was asked.
    pub trail: Trail,
}

impl Pool {
    /// A pool without providers.
    pub fn new(config: PoolConfig) -> Self {
        Self {
            config,
            members: Vec::new(),
        }
    }

    /// Adds a provider, with an account for each of its keys (at least one), what it can do, and the most time for a
    /// whole answer.
    pub fn add(
        &mut self,
        name: &str,
        accounts: Vec<Arc<dyn Provider>>,
        features: Features,
        whole: Option<Duration>,
    ) -> Arc<Member> {
        let member = Arc::new(Member::new(name, accounts, features, whole, self.config));
        self.members.push(Arc::clone(&member));
        member
    }

    /// All providers, in the order in which they were added.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Has `request` answered by one of the plan's targets, whose model replaces the request's own. Returns when the
    /// first token is there, or without streaming the whole answer.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn chat(
        &self,
        plan: &Plan,
        request: ChatRequest,
        deadline: Option<Instant>,
    ) -> Result<Answer, NoAnswer> {
        self.ask(plan, request, deadline).await
    }

    /// Has vectors made by one of the plan's targets, as [`chat`](Self::chat) has a chat answered. Those of one model do
    /// not compare with another's, so a plan for vectors should have one model, wherever it runs.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn embed(
        &self,
        plan: &Plan,
        request: EmbeddingRequest,
        deadline: Option<Instant>,
    ) -> Result<Answer<Embeddings>, NoAnswer> {
        self.ask(plan, request, deadline).await
    }

    /// Has the tokens of `request` counted by the plan's first target: another's tokens are other tokens.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest; of the kind [`Unsupported`](ErrorKind::Unsupported) where the
    /// provider does not count.
    pub async fn count_tokens(
        &self,
        plan: &Plan,
        request: ChatRequest,
        deadline: Option<Instant>,
    ) -> Result<Answer<u64>, NoAnswer> {
        let first = Plan {
            targets: plan.targets.iter().take(1).cloned().collect(),
            balance: Balance::Ordered,
        };
        self.ask(&first, Count(request), deadline).await
    }

    async fn ask<A: Ask>(
        &self,
        plan: &Plan,
        mut request: A,
        deadline: Option<Instant>,
    ) -> Result<Answer<A::Given>, NoAnswer> {
        let mut trail = Trail::default();
        let mut last = None;
        let able = able(plan, &request, &mut trail, &mut last);
        for target in &able {
            target.member.earn();
        }
        for round in 0..self.config.retries.attempts.max(1) {
            let mut free_at = None;
            let order = plan.balance.order(&able, Instant::now(), backoff::chance);
            for target in order.into_iter().filter_map(|at| able.get(at)) {
                match ask(target, &mut request, round > 0, deadline, &mut trail).await {
                    Ok(given) => {
                        return Ok(Answer {
                            given,
                            provider: Arc::clone(target.member.name()),
                            model: Arc::clone(&target.model),
                            trail,
                        });
                    }
                    Err(failure) => {
                        free_at = free_at.into_iter().chain(failure.free_at).min();
                        let is_final = failure.asked && !goes_on(failure.error.kind);
                        // What somebody said who was asked tells more than why somebody was not.
                        if failure.asked || !last.as_ref().is_some_and(|last: &Failure| last.asked)
                        {
                            last = Some(failure);
                        }
                        if is_final {
                            return Err(no_answer(last, trail));
                        }
                    }
                }
            }
            match self.next_round(round, &able, free_at, deadline) {
                Some(wait) => sleep(wait).await,
                None => break,
            }
        }
        Err(no_answer(last, trail))
    }

    /// How long to wait before all are asked again, the first of which may be at `free_at`; `None`: not at all.
    fn next_round(
        &self,
        round: u32,
        able: &[Target],
        free_at: Option<Instant>,
        deadline: Option<Instant>,
    ) -> Option<Duration> {
        let retries = &self.config.retries;
        if round + 1 >= retries.attempts {
            return None;
        }
        let now = Instant::now();
        let asked = free_at?.saturating_duration_since(now);
        let wait = retries.wait(round, backoff::chance()).max(asked);
        if wait > retries.max {
            return None;
        }
        // A retry that could not be over in time is not begun.
        let expected = able
            .iter()
            .filter_map(|target| target.member.expected())
            .min();
        match deadline {
            Some(deadline) if now + wait + expected.unwrap_or_default() >= deadline => None,
            _ => Some(wait),
        }
    }
}

/// The targets that can do what the request needs.
fn able(
    plan: &Plan,
    request: &impl Ask,
    trail: &mut Trail,
    last: &mut Option<Failure>,
) -> Vec<Target> {
    let is_able = |target: &&Target| {
        let Some(feature) = request.lacking(target.member.features()) else {
            return true;
        };
        skipped(target, Skip::Lacks(feature), trail);
        let message = format!("it cannot do what the request needs: {}", feature.name());
        *last = Some(Failure {
            error: error_of(target, ErrorKind::Unsupported, &message),
            asked: false,
            free_at: None,
        });
        false
    };
    plan.targets.iter().filter(is_able).cloned().collect()
}

/// Why a target gave no answer.
struct Failure {
    error: ProviderError,
    /// Whether it was asked at all.
    asked: bool,
    /// When it may be asked again, if that can help.
    free_at: Option<Instant>,
}

/// Asks one target, with one key after the other while it is the keys that are refused.
async fn ask<A: Ask>(
    target: &Target,
    request: &mut A,
    is_retry: bool,
    deadline: Option<Instant>,
    trail: &mut Trail,
) -> Result<A::Given, Failure> {
    let Target { member, model, .. } = target;
    let named = request.model();
    named.clear();
    named.push_str(model);
    let mut failed = None;
    for _ in 0..member.keys() {
        let begun = Instant::now();
        let call = match member.admit(model, is_retry, begun) {
            Ok(call) => call,
            Err(Refused { why, until }) => {
                skipped(target, why, trail);
                // The keys that are left rest: what the one just tried was told counts.
                return Err(failed.unwrap_or_else(|| refused(target, why, until, begun)));
            }
        };
        let key = call.key;
        let bound = Bound::of(begun, member.whole, deadline);
        let outcome = request.open(call, bound).await;
        trail.add(Attempt {
            provider: Arc::clone(member.name()),
            model: Arc::clone(model),
            key: (member.keys() > 1).then_some(key + 1),
            outcome: match &outcome {
                Ok(_) => Outcome::Answered,
                Err(error) => Outcome::Failed(error.kind),
            },
            took: begun.elapsed(),
        });
        let error = match outcome {
            Ok(given) => return Ok(given),
            Err(error) => error,
        };
        let of_key = member::is_of_key(error.kind);
        let may_retry = error.is_retryable();
        failed = Some(Failure {
            error,
            asked: true,
            free_at: may_retry.then(|| member.free_at(model)),
        });
        if !of_key {
            break;
        }
    }
    Err(failed.unwrap_or_else(|| Failure {
        error: error_of(target, ErrorKind::Configuration, "it has no account"),
        asked: false,
        free_at: None,
    }))
}

/// Whether another provider may do better.
fn goes_on(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::InvalidRequest
            | ErrorKind::ContentFiltered
            | ErrorKind::TimedOut(Phase::Deadline)
    )
}

fn skipped(target: &Target, why: Skip, trail: &mut Trail) {
    trail.add(Attempt {
        provider: Arc::clone(target.member.name()),
        model: Arc::clone(&target.model),
        key: None,
        outcome: Outcome::Skipped(why),
        took: Duration::ZERO,
    });
}

fn refused(target: &Target, why: Skip, until: Option<Instant>, now: Instant) -> Failure {
    let (kind, message) = match why {
        Skip::KeysResting(kind) => (kind, "each of its keys rests after it was refused"),
        Skip::RetryBudget => (ErrorKind::CircuitOpen, "there were too many retries lately"),
        Skip::BreakerOpen | Skip::Lacks(_) => (
            ErrorKind::CircuitOpen,
            "it failed too often just now, and is left alone for a while",
        ),
    };
    let mut error = error_of(target, kind, message);
    error.retry_after = until.map(|until| until.saturating_duration_since(now));
    Failure {
        error,
        asked: false,
        free_at: until,
    }
}

fn error_of(target: &Target, kind: ErrorKind, message: &str) -> ProviderError {
    let mut error = ProviderError::new(kind, message);
    error.provider = (**target.member.name()).into();
    error
}

fn no_answer(last: Option<Failure>, trail: Trail) -> NoAnswer {
    let error = last.map_or_else(
        || ProviderError::new(ErrorKind::Configuration, "the route leads to no provider"),
        |last| last.error,
    );
    NoAnswer { error, trail }
}

#[cfg(test)]
mod tests;
