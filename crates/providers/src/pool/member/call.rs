//! One call to a member: what it took, and what its end says about the key, the model and the way to the provider.

use std::sync::Arc;

use tokio::time::Instant;

use super::line::{Taken, Wakers};
use super::{Member, State};
use crate::error::{ErrorKind, Phase, ProviderError};
use crate::event::{Event, Usage};
use crate::pool::breaker::Ticket;
use crate::pool::gate::Charge;
use crate::pool::keys::NoKey;
use crate::pool::rate::Cost;
use crate::pool::rate::client::Bill;
use crate::pool::trail::Skip;
use crate::rate_limit::RateWindow;

/// Why a member takes no call, and when it may again.
#[derive(Clone, Copy, Debug)]
pub(in crate::pool) struct Refused {
    pub(in crate::pool) why: Skip,
    pub(in crate::pool) until: Option<Instant>,
}

impl Refused {
    pub(super) fn no_key(none: NoKey) -> Self {
        match none {
            NoKey::Busy(busy) => Self::busy(busy),
            NoKey::Resting(rest) => Self {
                why: Skip::KeysResting(rest.why),
                until: Some(rest.until),
            },
        }
    }
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

/// Whether it is the way to the provider that failed.
pub(super) fn is_of_way(kind: ErrorKind) -> bool {
    Blame::of(kind) == Blame::Way
}

/// The consent of both breakers.
#[derive(Debug)]
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

    /// `heard`: the head of an answer came.
    fn failed(
        &self,
        state: &mut State,
        model: &str,
        now: Instant,
        error: &ProviderError,
        heard: bool,
    ) {
        match Blame::of(error.kind) {
            Blame::Way => {
                state.way.failure(&self.way, now, None);
                if let (Some(ticket), Some(breaker)) = (&self.of_model, state.models.get_mut(model))
                {
                    breaker.ignore(ticket);
                }
            }
            Blame::Model => {
                // Something answered, however badly: the way is clear. Where time ran out in silence nobody knows.
                let in_silence = !heard
                    && matches!(
                        error.kind,
                        ErrorKind::TimedOut(Phase::FirstToken | Phase::Whole)
                    );
                if in_silence {
                    state.way.ignore(&self.way);
                } else {
                    state.way.success(&self.way, now, false);
                }
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
    /// Until its end: what it took of the limits.
    charge: Option<Charge>,
    bill: Option<Arc<Bill>>,
    /// Whether the provider began to answer, how many bytes it said, and what it says that it cost.
    heard: bool,
    said: usize,
    usage: Option<Usage>,
    over: bool,
}

impl Call {
    pub(super) fn new(
        member: &Arc<Member>,
        model: &Arc<str>,
        taken: Taken,
        bill: Option<Arc<Bill>>,
        begun: Instant,
    ) -> Self {
        Self {
            member: Arc::clone(member),
            model: Arc::clone(model),
            key: taken.key,
            begun,
            tickets: Some(taken.tickets),
            charge: Some(taken.charge),
            bill,
            heard: false,
            said: 0,
            usage: None,
            over: false,
        }
    }

    /// The head of the answer came, with what it tells of the provider's own limits.
    pub(in crate::pool) fn heard(&mut self, told: &[RateWindow]) {
        self.heard = true;
        let Some(charge) = &mut self.charge else {
            return;
        };
        let now = Instant::now();
        let mut state = self.member.lock();
        state.gate.heard(charge, &self.model, told, now);
        let wakers = state.serve(now, self.member.config);
        drop(state);
        wakers.wake();
    }

    /// An event of the answer came: it costs tokens, or says how many there were.
    pub(in crate::pool) fn saw(&mut self, event: &Event<'_>) {
        match event {
            Event::Text(text) | Event::Reasoning { text, .. } => self.said += text.len(),
            Event::ToolCall(delta) => self.said += delta.arguments.len(),
            Event::Usage(usage) => self.usage = Some(*usage),
            _ => {}
        }
    }

    /// Gives back what it took of the limits, and lets those in that waited for it.
    fn close(&mut self, state: &mut State, failed: bool, whole: bool, now: Instant) -> Wakers {
        let Some(charge) = self.charge.take() else {
            return Wakers::default();
        };
        let actual = match self.usage {
            Some(usage) => Cost {
                input: usage.input_tokens,
                output: usage.output_tokens,
            },
            // Who does not answer counts nothing.
            None if failed && !self.heard => Cost::default(),
            None => charge.cost().said(self.said),
        };
        if let Some(bill) = self.bill.take() {
            bill.add(actual);
        }
        state.gate.close(charge, &self.model, actual, whole, now);
        state.serve(now, self.member.config)
    }

    #[cfg(test)]
    pub(super) fn is_for(&self, model: &str) -> bool {
        *self.model == *model
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
    pub(in crate::pool) fn gave(mut self, tokens: Option<u64>) {
        self.heard = true;
        self.usage = tokens.map(|input_tokens| Usage {
            input_tokens,
            ..Usage::default()
        });
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
        let member = Arc::clone(&self.member);
        let mut guard = member.lock();
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
            Some(tickets) => tickets.failed(state, &self.model, now, error, self.heard),
            // An answer that takes too long as a whole may have been read too slowly.
            None if error.kind == ErrorKind::TimedOut(Phase::Whole) => {}
            None if matches!(blame, Blame::Model | Blame::Way) => {
                if let Some(breaker) = state.models.get_mut(&*self.model) {
                    breaker.fault(now, error.retry_after);
                }
            }
            None => {}
        }
        if let Some(charge) = &mut self.charge {
            let told = &error.rate_limits;
            state.gate.heard(charge, &self.model, told, now);
        }
        let wakers = self.close(state, true, false, now);
        drop(guard);
        wakers.wake();
    }

    /// The answer is complete.
    pub(in crate::pool) fn finished(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            let member = Arc::clone(&self.member);
            let mut state = member.lock();
            state.live.counts.in_flight -= 1;
            state.live.counts.answered += 1;
            let wakers = self.close(&mut state, false, true, Instant::now());
            drop(state);
            wakers.wake();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let tickets = self.tickets.take();
        if self.over && tickets.is_none() {
            return;
        }
        let member = Arc::clone(&self.member);
        let mut guard = member.lock();
        let state = &mut *guard;
        if let Some(tickets) = tickets {
            tickets.ignore(state, &self.model);
        }
        if !self.over {
            state.live.counts.in_flight -= 1;
            state.live.counts.cancelled += 1;
        }
        let wakers = self.close(state, false, false, Instant::now());
        drop(guard);
        wakers.wake();
    }
}
