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
mod caller;
mod gate;
mod keys;
mod limits;
mod lines;
mod live;
mod member;
mod needs;
mod queue;
mod rate;
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
pub use caller::Caller;
pub use limits::{Limit, LimitStatus, Limits, Measure, ModelLimits, Priority, Rate, Scope};
pub use live::Counts;
pub use member::{Member, MemberStatus};
pub use trail::{Attempt, Outcome, Skip, Trail};

use ask::{Ask, Count};
use lines::Lines;
use member::{Call, Demand, Refused};
use rate::Busy;
use rate::client::Clients;
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
    clients: Option<Arc<Clients>>,
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
            clients: None,
        }
    }

    /// Sets what each client may ask for, and those users who may ask for something else.
    pub fn limit_clients(&mut self, usual: Rate, special: Vec<(u32, Rate)>) {
        self.clients = Some(Clients::new(usual, special));
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
    /// first token is there, or without streaming the whole answer. Where the limits have no room, it waits for its turn.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn chat(
        &self,
        plan: &Plan,
        request: ChatRequest,
        caller: impl Into<Caller>,
    ) -> Result<Answer, NoAnswer> {
        self.ask(plan, request, caller.into()).await
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
        caller: impl Into<Caller>,
    ) -> Result<Answer<Embeddings>, NoAnswer> {
        self.ask(plan, request, caller.into()).await
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
        caller: impl Into<Caller>,
    ) -> Result<Answer<u64>, NoAnswer> {
        let first = Plan {
            targets: plan.targets.iter().take(1).cloned().collect(),
            balance: Balance::Ordered,
        };
        self.ask(&first, Count(request), caller.into()).await
    }

    async fn ask<A: Ask>(
        &self,
        plan: &Plan,
        mut request: A,
        caller: Caller,
    ) -> Result<Answer<A::Given>, NoAnswer> {
        let deadline = caller.deadline;
        let mut trail = Trail::default();
        let mut failures = Failures::default();
        let able = able(plan, &request, &mut trail, &mut failures);
        if able.is_empty() {
            return Err(failures.no_answer(trail));
        }
        let demand = match self.demand(&caller, &request) {
            Ok(demand) => demand,
            Err(busy) => return Err(client_busy(&able, busy, trail)),
        };
        for target in &able {
            target.member.earn();
        }
        for round in 0..self.config.retries.attempts.max(1) {
            failures.free_at = None;
            let order = plan.balance.order(&able, Instant::now(), backoff::chance);
            let mut busy = Vec::new();
            for target in order.into_iter().filter_map(|at| able.get(at)) {
                let asking = Asking {
                    is_retry: round > 0,
                    demand: &demand,
                    turn: None,
                };
                match ask(target, &mut request, asking, &mut trail).await {
                    Ok(given) => return Ok(answer(target, given, trail)),
                    Err(failure) => {
                        if failure.busy {
                            busy.push(target);
                        }
                        if failures.note(failure) {
                            return Err(failures.no_answer(trail));
                        }
                    }
                }
            }
            // Nobody who had room has answered: now it may wait.
            let mut lines = Lines::join(busy, &demand, round > 0);
            while let Some((target, turn)) = lines.next(&mut trail).await {
                let asking = Asking {
                    is_retry: round > 0,
                    demand: &demand,
                    turn: Some(turn),
                };
                match ask(target, &mut request, asking, &mut trail).await {
                    Ok(given) => return Ok(answer(target, given, trail)),
                    Err(failure) => {
                        if failures.note(failure) {
                            return Err(failures.no_answer(trail));
                        }
                    }
                }
            }
            drop(lines);
            match self.next_round(round, &able, failures.free_at, deadline) {
                Some(wait) => sleep(wait).await,
                None => break,
            }
        }
        Err(failures.no_answer(trail))
    }

    /// What the request asks of the limits, its client's first.
    fn demand(&self, caller: &Caller, request: &impl Ask) -> Result<Demand, Busy> {
        let cost = request.cost();
        let bill = match (&self.clients, caller.uid) {
            (Some(clients), Some(uid)) => clients.charge(uid, cost, Instant::now())?,
            _ => None,
        };
        Ok(Demand {
            priority: caller.priority,
            cost,
            bill,
            deadline: caller.deadline,
        })
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
    failures: &mut Failures,
) -> Vec<Target> {
    let is_able = |target: &&Target| {
        let Some(feature) = request.lacking(target.member.features()) else {
            return true;
        };
        skipped(target, Skip::Lacks(feature), trail);
        let message = format!("it cannot do what the request needs: {}", feature.name());
        failures.note(Failure {
            error: error_of(target, ErrorKind::Unsupported, &message),
            asked: false,
            busy: false,
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
    /// Whether it is a limit that has no room.
    busy: bool,
    /// When it may be asked again, if that can help.
    free_at: Option<Instant>,
}

/// Why nobody has answered so far.
#[derive(Default)]
struct Failures {
    last: Option<Failure>,
    /// When the first of this round's may be asked again.
    free_at: Option<Instant>,
}

impl Failures {
    /// Adds one, and says whether it is of no use to ask anybody else.
    fn note(&mut self, failure: Failure) -> bool {
        self.free_at = self.free_at.into_iter().chain(failure.free_at).min();
        let is_final = failure.asked && !goes_on(failure.error.kind);
        // What somebody said who was asked tells more than why somebody was not.
        if failure.asked || !self.last.as_ref().is_some_and(|last| last.asked) {
            self.last = Some(failure);
        }
        is_final
    }

    fn no_answer(self, trail: Trail) -> NoAnswer {
        let error = self.last.map_or_else(
            || ProviderError::new(ErrorKind::Configuration, "the route leads to no provider"),
            |last| last.error,
        );
        NoAnswer { error, trail }
    }
}

fn answer<T>(target: &Target, given: T, trail: Trail) -> Answer<T> {
    Answer {
        given,
        provider: Arc::clone(target.member.name()),
        model: Arc::clone(&target.model),
        trail,
    }
}

/// How a target is asked.
struct Asking<'a> {
    is_retry: bool,
    demand: &'a Demand,
    /// What came of waiting for it, if it was waited for.
    turn: Option<Result<Call, Refused>>,
}

/// Asks one target, with one key after the other while it is the keys that are refused.
async fn ask<A: Ask>(
    target: &Target,
    request: &mut A,
    mut asking: Asking<'_>,
    trail: &mut Trail,
) -> Result<A::Given, Failure> {
    let Target { member, model, .. } = target;
    let named = request.model();
    named.clear();
    named.push_str(model);
    let mut failed = None;
    for _ in 0..member.keys() {
        let begun = Instant::now();
        let turn = asking.turn.take();
        let had_turn = turn.is_some();
        let admitted =
            turn.unwrap_or_else(|| member.admit(model, asking.is_retry, asking.demand, begun));
        let call = match admitted {
            Ok(call) => call,
            Err(refusal) => {
                // That a limit is reached was said when it was its turn.
                if !(had_turn && refusal.is_busy()) {
                    skipped(target, refusal.why, trail);
                }
                // The keys that are left rest: what the one just tried was told counts.
                return Err(failed.unwrap_or_else(|| refused(target, &refusal, begun)));
            }
        };
        let key = call.key;
        let bound = Bound::of(begun, member.whole, asking.demand.deadline);
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
            busy: false,
            free_at: may_retry.then(|| member.free_at(model)),
        });
        if !of_key {
            break;
        }
    }
    Err(failed.unwrap_or_else(|| Failure {
        error: error_of(target, ErrorKind::Configuration, "it has no account"),
        asked: false,
        busy: false,
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

fn refused(target: &Target, refusal: &Refused, now: Instant) -> Failure {
    let Refused { why, until } = *refusal;
    let (kind, message) = match why {
        Skip::KeysResting(kind) => (kind, "each of its keys rests after it was refused"),
        Skip::RetryBudget => (ErrorKind::CircuitOpen, "there were too many retries lately"),
        Skip::BreakerOpen | Skip::Lacks(_) | Skip::BudgetSpent => (
            ErrorKind::CircuitOpen,
            "it failed too often just now, and is left alone for a while",
        ),
        Skip::Limited(Limit {
            measure: Measure::InFlight,
            ..
        }) => (ErrorKind::Shed, "as many requests are under way as may be"),
        Skip::Limited(_) => (
            ErrorKind::RateLimited,
            "as much was asked for in the last minute as may be; it was not asked",
        ),
        Skip::QueueFull => (ErrorKind::Shed, "too many requests wait for it already"),
        Skip::Displaced => (ErrorKind::Shed, "more urgent requests wait for it"),
        Skip::QueueTimeout => (ErrorKind::Shed, "the request waited for its turn too long"),
        Skip::QueueDeadline => (
            ErrorKind::Shed,
            "the request's turn would come too late for its deadline",
        ),
    };
    let mut error = error_of(target, kind, message);
    error.retry_after = until.map(|until| until.saturating_duration_since(now));
    let waits_elsewhere = matches!(why, Skip::BreakerOpen | Skip::KeysResting(_));
    Failure {
        error,
        asked: false,
        busy: refusal.is_busy(),
        // What the limits have no room for had its turn: it does not come back by another way.
        free_at: until.filter(|_| waits_elsewhere),
    }
}

/// The client has asked for as much as it may.
fn client_busy(able: &[Target], busy: Busy, mut trail: Trail) -> NoAnswer {
    if let Some(first) = able.first() {
        skipped(first, Skip::Limited(busy.limit), &mut trail);
    }
    let message = match busy.limit.measure {
        Measure::Requests => "this client made as many requests in the last minute as it may",
        _ => "this client used as many tokens in the last minute as it may",
    };
    let mut error = ProviderError::new(ErrorKind::RateLimited, message);
    let until = busy.until;
    error.retry_after = until.map(|until| until.saturating_duration_since(Instant::now()));
    NoAnswer { error, trail }
}

fn error_of(target: &Target, kind: ErrorKind, message: &str) -> ProviderError {
    let mut error = ProviderError::new(kind, message);
    error.provider = (**target.member.name()).into();
    error
}

#[cfg(test)]
mod tests;
