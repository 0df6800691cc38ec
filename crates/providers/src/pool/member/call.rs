//! One call to a member: what it took, and what its end says about the key, the model and the way to the provider.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Member, State};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::pool::breaker::Ticket;
use crate::pool::trail::Skip;

/// Why a member takes no call, and when it may again.
#[derive(Debug)]
pub(in crate::pool) struct Refused {
    pub(in crate::pool) why: Skip,
    pub(in crate::pool) until: Option<Instant>,
}

/// What is to blame for a failure, as far as it says something about later calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The way to the provider.
    Way,
    /// The provider's model.
    Model,
    /// The key.
    Key,
    /// Nobody but this very request, or our own settings.
    Nobody,
}

impl Blame {
    fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::ConnectionFailed | ErrorKind::TimedOut(Phase::Connect) => Self::Way,
            ErrorKind::Overloaded
            | ErrorKind::ProviderInternal
            | ErrorKind::StreamCut
            | ErrorKind::MalformedResponse
            | ErrorKind::TimedOut(
                Phase::FirstToken | Phase::NextToken | Phase::Upstream | Phase::Whole,
            ) => Self::Model,
            ErrorKind::RateLimited
            | ErrorKind::Authentication
            | ErrorKind::Permission
            | ErrorKind::QuotaExhausted => Self::Key,
            _ => Self::Nobody,
        }
    }
}

/// Whether it is the key that a provider refuses.
pub(in crate::pool) fn is_of_key(kind: ErrorKind) -> bool {
    Blame::of(kind) == Blame::Key
}

/// The consent of both breakers.
pub(super) struct Tickets {
    pub(super) way: Ticket,
    pub(super) of_model: Option<Ticket>,
}

impl Tickets {
    pub(super) fn ignore(&self, state: &mut State, model: &str) {
        state.way.ignore(&self.way);
        if let (Some(ticket), Some(breaker)) = (&self.of_model, state.models.get_mut(model)) {
            breaker.ignore(ticket);
        }
    }

    fn failed(&self, state: &mut State, model: &str, now: Instant, error: &ProviderError) {
        match Blame::of(error.kind) {
            Blame::Way => {
                state.way.failure(&self.way, now, None);
                if let (Some(ticket), Some(breaker)) = (&self.of_model, state.models.get_mut(model))
                {
                    breaker.ignore(ticket);
                }
            }
            Blame::Model => {
                // Something answered, however badly: the way is clear.
                state.way.success(&self.way, now, false);
                if let (Some(ticket), Some(breaker)) = (&self.of_model, state.models.get_mut(model))
                {
                    breaker.failure(ticket, now, error.retry_after);
                }
            }
            Blame::Key | Blame::Nobody => self.ignore(state, model),
        }
    }
}

/// One call under way. Dropping it gives everything back, and counts as given up by whoever asked.
pub(in crate::pool) struct Call {
    member: Arc<Member>,
    model: Arc<str>,
    pub(in crate::pool) key: usize,
    begun: Instant,
    /// Until the first token: it is what a breaker looks at.
    tickets: Option<Tickets>,
    over: bool,
}

impl Call {
    pub(super) fn new(
        member: &Arc<Member>,
        model: &Arc<str>,
        key: usize,
        tickets: Tickets,
        begun: Instant,
    ) -> Self {
        Self {
            member: Arc::clone(member),
            model: Arc::clone(model),
            key,
            begun,
            tickets: Some(tickets),
            over: false,
        }
    }

    pub(in crate::pool) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// The first token came, or without streaming the whole answer.
    pub(in crate::pool) fn began(&mut self, streamed: bool) {
        let now = Instant::now();
        let took = now - self.begun;
        let slow = streamed && took > self.member.config.breaker.slow_call;
        if self.went_well(now, slow) {
            self.member.lock().live.first_token(took, now);
        }
    }

    /// What was asked for came, whole, and is no chat: it says nothing about first tokens.
    pub(in crate::pool) fn gave(mut self) {
        self.went_well(Instant::now(), false);
        self.finished();
    }

    /// Tells the breakers and the key; `false` if they know already.
    fn went_well(&mut self, now: Instant, slow: bool) -> bool {
        let Some(tickets) = self.tickets.take() else {
            return false;
        };
        let mut state = self.member.lock();
        state.way.success(&tickets.way, now, false);
        if let (Some(ticket), Some(breaker)) =
            (&tickets.of_model, state.models.get_mut(&*self.model))
        {
            breaker.success(ticket, now, slow);
        }
        state.keys.well(self.key, &self.model);
        true
    }

    /// It failed, before or after its first token.
    pub(in crate::pool) fn failed(&mut self, error: &ProviderError) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let now = Instant::now();
        let mut guard = self.member.lock();
        let state = &mut *guard;
        state.live.counts.in_flight -= 1;
        let blame = Blame::of(error.kind);
        // Whoever asked ran out of time: that is no failure of the provider's.
        if error.kind == ErrorKind::TimedOut(Phase::Deadline) {
            state.live.counts.cancelled += 1;
        } else {
            state.live.counts.failed += 1;
        }
        if blame == Blame::Key {
            state
                .keys
                .refused(self.key, &self.model, now, error.kind, error.retry_after);
        }
        match self.tickets.take() {
            Some(tickets) => tickets.failed(state, &self.model, now, error),
            // An answer that takes too long as a whole may have been read too slowly.
            None if error.kind == ErrorKind::TimedOut(Phase::Whole) => {}
            None if matches!(blame, Blame::Model | Blame::Way) => {
                if let Some(breaker) = state.models.get_mut(&*self.model) {
                    breaker.fault(now, error.retry_after);
                }
            }
            None => {}
        }
    }

    /// The answer is complete.
    pub(in crate::pool) fn finished(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            let mut state = self.member.lock();
            state.live.counts.in_flight -= 1;
            state.live.counts.answered += 1;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let tickets = self.tickets.take();
        if self.over && tickets.is_none() {
            return;
        }
        let mut guard = self.member.lock();
        let state = &mut *guard;
        if let Some(tickets) = tickets {
            tickets.ignore(state, &self.model);
        }
        if !self.over {
            state.live.counts.in_flight -= 1;
            state.live.counts.cancelled += 1;
        }
    }
}
