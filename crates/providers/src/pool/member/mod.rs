//! A provider as the pool sees it: its keys, its circuit breakers, its traffic.
//!
//! It has a breaker for the way to it (name resolution, connecting, connections that break), and one for each model,
//! which looks at what comes back. A model that is overloaded says nothing about the provider's others, and a provider
//! that cannot be reached need not be found unreachable for one model after the other.

mod call;
mod line;
mod probe;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::PoolConfig;
use super::backoff::RetryBudget;
use super::breaker::{Breaker, BreakerState};
use super::gate::Gate;
use super::keys::{Keys, NoKey};
use super::limits::{LimitStatus, Limits};
use super::live::{Counts, Live};
use crate::chat::{ChatRequest, ModelInfo};
use crate::embeddings::{EmbeddingRequest, Embeddings};
use crate::error::{ErrorKind, ProviderError};
use crate::profile::Features;
use crate::provider::{BoxFuture, ChatStream, Provider};
pub(super) use call::{Call, Refused, is_of_key};
use line::Line;
pub(super) use line::{Demand, Waiting};
use probe::LastProbe;
pub use probe::ProbeStatus;

/// The most models that have a breaker of their own at once: clients may name any.
const MODELS: usize = 256;

/// A provider of a [`Pool`](super::Pool). As a [`Provider`] it takes its keys in turn; breakers, retries and failover are
/// the pool's.
pub struct Member {
    name: Arc<str>,
    accounts: Vec<Arc<dyn Provider>>,
    features: Features,
    /// The most time for a whole answer.
    pub(super) whole: Option<Duration>,
    config: PoolConfig,
    state: Mutex<State>,
}

struct State {
    way: Breaker,
    models: HashMap<Box<str>, Breaker>,
    keys: Keys,
    budget: RetryBudget,
    live: Live,
    gate: Gate,
    line: Line,
    probe: Option<LastProbe>,
}

/// What a [`Member`] is like now, for `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its requests.
    pub counts: Counts,
    /// The times to the first token that half, 95 and 99 of 100 of the last 256 answers did not exceed.
    pub first_token: Option<[Duration; 3]>,
    /// The breaker of the way to it, and how long it stays open.
    pub way: (BreakerState, Option<Duration>),
    /// The same of each model whose breaker is not closed, by name.
    pub models: Vec<(Box<str>, BreakerState, Option<Duration>)>,
    /// How many keys it has.
    pub keys: usize,
    /// How many of them rest, and how long until the first is used again.
    pub resting: (usize, Option<Duration>),
    /// How many requests wait for its limits now, and how many may.
    pub waiting: (usize, usize),
    /// What is left of its limits, of those that it told of, too.
    pub limits: Vec<LimitStatus>,
    /// What the last probe told, where there was one.
    pub probe: Option<ProbeStatus>,
}

impl Member {
    /// A provider with an account for each of its keys, at least one.
    pub(super) fn new(
        name: &str,
        accounts: Vec<Arc<dyn Provider>>,
        features: Features,
        whole: Option<Duration>,
        config: PoolConfig,
    ) -> Self {
        let state = State {
            way: Breaker::new(config.breaker, Instant::now()),
            models: HashMap::new(),
            keys: Keys::new(accounts.len()),
            budget: RetryBudget::new(config.retries.budget),
            live: Live::default(),
            gate: Gate::new(Limits::default(), accounts.len(), Instant::now()),
            line: Line::new(),
            probe: None,
        };
        Self {
            name: name.into(),
            accounts,
            features,
            whole,
            config,
            state: Mutex::new(state),
        }
    }

    /// Sets what may be used of it, before its first request. Without this there are no limits but the provider's own.
    pub fn limit(&self, limits: Limits) {
        let mut state = self.lock();
        state.gate = Gate::new(limits, self.accounts.len(), Instant::now());
    }

    /// Its name, as configured.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it can do.
    pub fn features(&self) -> Features {
        self.features
    }

    /// What it is like now.
    pub fn status(&self) -> MemberStatus {
        let now = Instant::now();
        let left = |until: Option<Instant>| until.map(|until| until - now);
        let state = self.lock();
        let percentile = |percent| state.live.percentile(percent);
        let (way, until) = state.way.state(now);
        let models = state.models.iter().map(|(name, breaker)| {
            let (state, until) = breaker.state(now);
            (name.clone(), state, left(until))
        });
        let mut models: Vec<_> = models
            .filter(|(_, state, _)| *state != BreakerState::Closed)
            .collect();
        models.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let (resting, first) = state.keys.resting(now);
        MemberStatus {
            name: self.name.clone(),
            counts: state.live.counts,
            first_token: percentile(50)
                .zip(percentile(95))
                .zip(percentile(99))
                .map(|((half, most), nearly)| [half, most, nearly]),
            way: (way, left(until)),
            models,
            keys: state.keys.count(),
            resting: (resting, left(first)),
            waiting: (state.line.len(), state.gate.limits().queue),
            limits: state.gate.status(now),
            probe: state.probe.map(|probe| probe.status(now)),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().live.counts
    }

    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.lock().live.cost(now)
    }

    pub(super) fn expected(&self) -> Option<Duration> {
        self.lock().live.expected()
    }

    pub(super) fn keys(&self) -> usize {
        self.accounts.len()
    }

    pub(super) fn account(&self, key: usize) -> &Arc<dyn Provider> {
        &self.accounts[key]
    }

    /// When a call may be let through again.
    pub(super) fn free_at(&self, model: &str) -> Instant {
        let now = Instant::now();
        let state = self.lock();
        let of_model = state.models.get(model);
        let breakers = of_model.into_iter().chain([&state.way]);
        let opens = breakers.filter_map(|breaker| breaker.state(now).1).max();
        opens.unwrap_or(now).max(state.keys.free_at(model, now))
    }

    /// A request may come here: it earns a part of a retry.
    pub(super) fn earn(&self) {
        self.lock().budget.earn();
    }

    /// Takes what one call needs: a key, the consent of both breakers, and room within the limits. Does not wait.
    pub(super) fn admit(
        self: &Arc<Self>,
        model: &Arc<str>,
        is_retry: bool,
        demand: &Demand,
        now: Instant,
    ) -> Result<Call, Refused> {
        let mut state = self.lock();
        let (taken, wakers) = state.take_in_turn(model, demand, is_retry, now, self.config);
        drop(state);
        wakers.wake();
        taken.map(|taken| Call::new(self, model, taken, demand.bill.clone(), now))
    }

    /// A key for something else than a chat.
    fn any_key(&self, model: &str) -> Result<usize, ProviderError> {
        let now = Instant::now();
        let picked = self.lock().keys.pick(model, now, |_| None);
        picked.map_err(|none| {
            let (why, until) = match none {
                NoKey::Resting(rest) => (rest.why, Some(rest.until)),
                NoKey::Busy(busy) => (ErrorKind::RateLimited, busy.until),
            };
            let mut error = ProviderError::new(why, "each of its keys rests");
            error.provider = (*self.name).into();
            error.retry_after = until.map(|until| until.saturating_duration_since(now));
            error
        })
    }

    /// What a request that was no chat says about its key.
    fn judge_key<T>(&self, key: usize, model: &str, outcome: &Result<T, ProviderError>) {
        let mut state = self.lock();
        match outcome {
            Ok(_) => state.keys.well(key, model),
            Err(error) if is_of_key(error.kind) => {
                let now = Instant::now();
                state
                    .keys
                    .refused(key, model, now, error.kind, error.retry_after);
            }
            Err(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The breaker of this model; none where too many others are in trouble.
    fn model(&mut self, name: &str, now: Instant, config: PoolConfig) -> Option<&mut Breaker> {
        if !self.models.contains_key(name) {
            if self.models.len() == MODELS {
                self.models.retain(|_, breaker| !breaker.is_fresh(now));
            }
            if self.models.len() == MODELS {
                return None;
            }
            let breaker = Breaker::new(config.breaker, now);
            self.models.insert(name.into(), breaker);
        }
        self.models.get_mut(name)
    }
}

impl Provider for Member {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        Box::pin(async move {
            let key = self.any_key(&request.model)?;
            let outcome = self.accounts[key].chat(request).await;
            self.judge_key(key, &request.model, &outcome);
            outcome
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async move {
            let key = self.any_key("")?;
            let outcome = self.accounts[key].models().await;
            self.judge_key(key, "", &outcome);
            outcome
        })
    }

    fn embed<'a>(
        &'a self,
        request: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        Box::pin(async move {
            let key = self.any_key(&request.model)?;
            let outcome = self.accounts[key].embed(request).await;
            self.judge_key(key, &request.model, &outcome);
            outcome
        })
    }

    fn count_tokens<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<u64, ProviderError>> {
        Box::pin(async move {
            let key = self.any_key(&request.model)?;
            let outcome = self.accounts[key].count_tokens(request).await;
            self.judge_key(key, &request.model, &outcome);
            outcome
        })
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("name", &self.name)
            .field("keys", &self.accounts.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
