//! Active probes: a cheap request that nobody asked for, to learn how a provider does while no traffic tells.
//!
//! The list of models costs no tokens. It proves that the provider can be reached and answers; of a model that is overloaded
//! it says nothing, so the breakers of models are left to real requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::call::is_of_way;
use super::{Member, State};
use crate::error::{ErrorKind, ProviderError};
use crate::pool::breaker::{BreakerState, Ticket};

/// What the last probe of a [`Member`] told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeStatus {
    /// How long ago it ended.
    pub ago: Duration,
    /// How long it took.
    pub took: Duration,
    /// Whether the provider gave its list of models; why not.
    pub outcome: Result<(), ErrorKind>,
}

/// As it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastProbe {
    at: Instant,
    took: Duration,
    outcome: Result<(), ErrorKind>,
}

impl LastProbe {
    pub(super) fn status(self, now: Instant) -> ProbeStatus {
        ProbeStatus {
            ago: now.saturating_duration_since(self.at),
            took: self.took,
            outcome: self.outcome,
        }
    }
}

impl Member {
    /// Probes it every so often, as long as this future runs, while it was not asked since the last time or a breaker of
    /// its is not closed. Never returns.
    pub async fn keep_probing(self: Arc<Self>, every: Duration) {
        let mut known = 0;
        loop {
            sleep(every).await;
            let asked = self.counts().asked;
            let is_unused = std::mem::replace(&mut known, asked) == asked;
            if is_unused || self.is_in_trouble() {
                self.probe().await;
            }
        }
    }

    fn is_in_trouble(&self) -> bool {
        let now = Instant::now();
        let state = self.lock();
        let mut breakers = state.models.values().chain([&state.way]);
        breakers.any(|breaker| breaker.state(now).0 != BreakerState::Closed)
    }

    /// Asks for the list of models. Where the way to the provider was given up, a sign of life lets the next request
    /// through at once; where it is trusted, a failed probe counts like a failed request. Nothing is asked while
    /// each of its keys rests.
    pub async fn probe(&self) {
        let Ok(key) = self.any_key("") else {
            return;
        };
        let begun = Instant::now();
        let probing = Probing {
            member: self,
            ticket: self.lock().way.admit(begun).ok(),
        };
        let outcome = self.accounts[key].models().await;
        self.judge_key(key, "", &outcome);
        let now = Instant::now();
        let outcome = outcome.map(drop);
        probing.ended(&outcome, now);
        self.lock().probe = Some(LastProbe {
            at: now,
            took: now - begun,
            outcome: outcome.map_err(|error| error.kind),
        });
    }
}

/// A probe under way; dropped, it tells nothing.
struct Probing<'a> {
    member: &'a Member,
    /// None while the breaker is open: that is for requests to respect.
    ticket: Option<Ticket>,
}

impl Probing<'_> {
    fn ended(mut self, outcome: &Result<(), ProviderError>, now: Instant) {
        let ticket = self.ticket.take();
        let State { way, .. } = &mut *self.member.lock();
        // Whatever came back, however bad, came from there. Only what was never sent tells nothing.
        let reached = match outcome {
            Ok(()) => Some(true),
            Err(error) if is_of_way(error.kind) => Some(false),
            Err(error) if error.status.is_some() => Some(true),
            Err(_) => None,
        };
        match (reached, ticket) {
            (Some(true), Some(ticket)) => way.success(&ticket, now, false),
            (Some(true), None) => way.try_again(now),
            (Some(false), Some(ticket)) => way.failure(&ticket, now, None),
            (None, Some(ticket)) => way.ignore(&ticket),
            (_, None) => {}
        }
    }
}

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.member.lock().way.ignore(&ticket);
        }
    }
}
