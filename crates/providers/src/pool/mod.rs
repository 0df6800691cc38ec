//! The pool: one request survives any provider's bad day.
//!
//! A [`Plan`] lists the targets that may answer a request. [`Pool::chat`] asks them one after the other until the first
//! token comes, [`Pool::embed`] and [`Pool::count_tokens`] until all has come, and says in a [`Trail`] whom it asked and why it went on. What each provider and model did lately decides
//! whether it is asked at all ([`BreakerConfig`]), with which of its keys, and in which order ([`Balance`]).
//! When all have failed it waits and begins anew ([`RetryConfig`]), as long as the deadline allows. Where nobody has room
//! within its limits it waits for its turn ([`Limits`]). Where the plan says so, a second target is asked when the first
//! one's token is late ([`Hedge`]).
//!
//! Once the first token is out, the answer is that target's to the end: nothing is repeated, nothing lost. Unless the plan
//! says that another may go on with an answer that breaks off, which the events then say too
//! ([`Event::Continued`](crate::Event::Continued)).
//! Dropping the future or the stream drops the HTTP request and gives everything back.

mod ask;
mod asking;
mod backoff;
mod balance;
mod breaker;
mod caller;
mod continuation;
mod gate;
mod hedge;
mod keys;
mod limits;
mod lines;
mod live;
mod member;
mod needs;
mod queue;
mod rate;
mod recent;
mod seam;
mod stream;
mod trail;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::chat::ChatRequest;
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::profile::Features;
use crate::provider::{ChatStream, Provider};
pub use backoff::RetryConfig;
pub use balance::Balance;
pub use breaker::{BreakerConfig, BreakerState};
pub use caller::Caller;
pub use hedge::{Hedge, HedgeAfter, HedgeConfig};
pub use limits::{Limit, LimitStatus, Limits, Measure, ModelLimits, Priority, Rate, Scope};
pub use live::Counts;
pub use member::{Member, MemberStatus, ProbeStatus};
pub use trail::{Attempt, Outcome, Purpose, Skip, Trail};

use ask::{Ask, Count};
use asking::{Asking, Failure, Failures, Raced, ask, error_of, skipped};
use lines::Lines;
use member::Demand;
use rate::Busy;
use rate::client::Clients;

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
    /// Whether and when a second one is asked as well; shared by all requests of a route.
    pub hedge: Option<Arc<Hedge>>,
    /// Whether another one may go on with a streamed answer that breaks off.
    pub continues: bool,
}

impl Target {
    fn names_model_of(&self, request: &mut impl Ask) {
        let named = request.model();
        named.clear();
        named.push_str(&self.model);
    }
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
    /// Who was asked. It grows where another goes on with the answer.
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
        self.add_with_breaker(name, accounts, features, whole, self.config.breaker)
    }

    /// The same for a provider whose breakers differ from the pool's.
    pub fn add_with_breaker(
        &mut self,
        name: &str,
        accounts: Vec<Arc<dyn Provider>>,
        features: Features,
        whole: Option<Duration>,
        breaker: BreakerConfig,
    ) -> Arc<Member> {
        let config = PoolConfig {
            breaker,
            ..self.config
        };
        let member = Arc::new(Member::new(name, accounts, features, whole, config));
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
        let trail = Trail::default();
        self.chat_traced(plan, request, caller, &trail).await
    }

    /// The same, on a trail that the caller has: who keeps it can tell what was tried even when this future is dropped.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn chat_traced(
        &self,
        plan: &Plan,
        mut request: ChatRequest,
        caller: impl Into<Caller>,
        trail: &Trail,
    ) -> Result<Answer, NoAnswer> {
        let hedge = plan.hedge.as_deref();
        let found = self.find(plan, &mut request, hedge, caller.into(), trail);
        let mut found = found.await?;
        if plan.continues && continuation::is_possible(&request) {
            let able = &found.able;
            let order = found.order.iter().filter_map(|at| able.get(*at));
            let (stream, order) = (found.given, order.cloned().collect());
            let demand = found.demand.clone();
            found.given = continuation::over(stream, &found.target, order, request, demand, trail);
        }
        Ok(found.answer(trail))
    }

    /// Has vectors made by one of the plan's targets, as [`chat`](Self::chat) has a chat answered; never hedged. Those of
    /// one model do not compare with another's, so a plan for vectors should have one model, wherever it runs.
    ///
    /// # Errors
    ///
    /// [`NoAnswer`], by the deadline at the latest.
    pub async fn embed(
        &self,
        plan: &Plan,
        mut request: EmbeddingRequest,
        caller: impl Into<Caller>,
    ) -> Result<Answer<Embeddings>, NoAnswer> {
        let trail = Trail::default();
        self.embed_traced(plan, &mut request, caller.into(), &trail)
            .await
    }

    /// The same, on a trail that the caller has.
    pub(crate) async fn embed_traced(
        &self,
        plan: &Plan,
        request: &mut EmbeddingRequest,
        caller: Caller,
        trail: &Trail,
    ) -> Result<Answer<Embeddings>, NoAnswer> {
        let found = self.find(plan, request, None, caller, trail);
        Ok(found.await?.answer(trail))
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
            ..Plan::default()
        };
        let trail = Trail::default();
        let mut request = Count(request);
        let found = self.find(&first, &mut request, None, caller.into(), &trail);
        Ok(found.await?.answer(&trail))
    }

    /// Asks the plan's targets, round by round, until one gives what is asked for.
    async fn find<A: Ask>(
        &self,
        plan: &Plan,
        request: &mut A,
        mut hedge: Option<&Hedge>,
        caller: Caller,
        trail: &Trail,
    ) -> Result<Found<A::Given>, NoAnswer> {
        let mut failures = Failures::default();
        let able = able(plan, request, trail, &mut failures);
        if able.is_empty() {
            return Err(failures.no_answer(trail));
        }
        let demand = match self.demand(&caller, request) {
            Ok(demand) => demand,
            Err(busy) => return Err(client_busy(&able, busy, trail)),
        };
        for target in &able {
            target.member.earn();
        }
        if let Some(hedge) = hedge {
            hedge.earn();
        }
        for round in 0..self.config.retries.attempts.max(1) {
            failures.free_at = None;
            let order = plan.balance.order(&able, Instant::now(), backoff::chance);
            let asking = Asking {
                is_retry: round > 0,
                demand: &demand,
                trail,
            };
            let targets = order.iter().filter_map(|at| able.get(*at));
            match ask_round(targets, request, &mut hedge, asking, &mut failures).await {
                Raced::Answered(target, given) => {
                    let target = target.clone();
                    return Ok(Found {
                        given,
                        target,
                        able,
                        order,
                        demand,
                    });
                }
                Raced::Failed { is_final: true } => return Err(failures.no_answer(trail)),
                Raced::Failed { is_final: false } => {}
            }
            match self.next_round(round, &able, failures.free_at, caller.deadline) {
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
fn able<'a>(
    plan: &'a Plan,
    request: &impl Ask,
    trail: &Trail,
    failures: &mut Failures<'a>,
) -> Vec<Target> {
    let is_able = |target: &&'a Target| {
        let Some(feature) = request.lacking(target.member.features()) else {
            return true;
        };
        skipped(target, Purpose::Answer, Skip::Lacks(feature), trail);
        let message = format!("it cannot do what the request needs: {}", feature.name());
        failures.note(
            target,
            Failure {
                error: error_of(target, ErrorKind::Unsupported, &message),
                asked: false,
                busy: false,
                free_at: None,
            },
        );
        false
    };
    plan.targets.iter().filter(is_able).cloned().collect()
}

/// Who gave what was asked for.
struct Found<T> {
    given: T,
    target: Target,
    /// Those that could have, and the order in which they were asked.
    able: Vec<Target>,
    order: Vec<usize>,
    demand: Demand,
}

impl<T> Found<T> {
    fn answer(self, trail: &Trail) -> Answer<T> {
        Answer {
            given: self.given,
            provider: Arc::clone(self.target.member.name()),
            model: self.target.model,
            trail: trail.clone(),
        }
    }
}

/// Asks each of `targets` once: those that have room in this order, and where none of them answers, whoever of the others has
/// room first. `hedge` is taken away once it was used.
async fn ask_round<'a, A: Ask>(
    mut targets: impl Iterator<Item = &'a Target>,
    request: &mut A,
    hedge: &mut Option<&Hedge>,
    asking: Asking<'_>,
    failures: &mut Failures<'a>,
) -> Raced<'a, A::Given> {
    while let Some(target) = targets.next() {
        target.names_model_of(request);
        let raced = match *hedge {
            None => {
                let outcome = ask(target, request, asking, Purpose::Answer, None).await;
                failures.conclude(target, outcome)
            }
            Some(of_route) => {
                let mut used = false;
                let asked = hedge::ask_with_hedge(
                    of_route,
                    target,
                    &mut targets,
                    request,
                    asking,
                    failures,
                    &mut used,
                );
                let raced = asked.await;
                if used {
                    *hedge = None;
                }
                raced
            }
        };
        if !matches!(raced, Raced::Failed { is_final: false }) {
            return raced;
        }
    }
    // Nobody who had room has answered: now it may wait. Nobody is asked beside the one whose turn it is then.
    let busy = std::mem::take(&mut failures.busy).into_iter();
    let mut lines = Lines::new(busy.map(|target| (target, asking.is_retry)), asking.demand);
    while let Some((target, turn)) = lines.next(asking.trail).await {
        target.names_model_of(request);
        let outcome = ask(target, request, asking, Purpose::Answer, Some(turn)).await;
        let raced = failures.conclude(target, outcome);
        if !matches!(raced, Raced::Failed { is_final: false }) {
            return raced;
        }
    }
    Raced::Failed { is_final: false }
}

/// The client has asked for as much as it may.
fn client_busy(able: &[Target], busy: Busy, trail: &Trail) -> NoAnswer {
    if let Some(first) = able.first() {
        skipped(first, Purpose::Answer, Skip::Limited(busy.limit), trail);
    }
    let message = match busy.limit.measure {
        Measure::Requests => "this client made as many requests in the last minute as it may",
        _ => "this client used as many tokens in the last minute as it may",
    };
    let mut error = ProviderError::new(ErrorKind::RateLimited, message);
    let until = busy.until;
    error.retry_after = until.map(|until| until.saturating_duration_since(Instant::now()));
    let trail = trail.clone();
    NoAnswer { error, trail }
}

#[cfg(test)]
mod tests;
