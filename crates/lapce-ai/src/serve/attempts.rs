//! What the pool knows, as the protocol says it.

use std::time::Duration;

use lapce_ai_proto::status::{self, Breaker, Health, Probe};
use lapce_ai_proto::{Attempt, ErrorBody};
use lapce_ai_providers::{
    BreakerState, LimitStatus, MemberStatus, NoAnswer, Outcome, ProviderError, Purpose, Trail,
};

use super::wire;

/// Who was asked; nothing where the first one answered at once.
pub(super) fn list(trail: &Trail) -> Vec<Attempt> {
    if trail.is_plain() {
        return Vec::new();
    }
    let attempts = trail.attempts().into_iter().map(|attempt| {
        let (outcome, why) = match attempt.outcome {
            Outcome::Answered => ("answered", None),
            Outcome::Failed(kind) => ("failed", Some(kind.name().to_owned())),
            Outcome::Skipped(why) => ("skipped", Some(why.to_string())),
            Outcome::Lost => ("lost", None),
            Outcome::UnderWay | Outcome::Cancelled => ("cancelled", None),
        };
        let purpose = (attempt.purpose != Purpose::Answer).then(|| attempt.purpose.name());
        Attempt {
            provider: attempt.provider.to_string(),
            model: attempt.model.to_string(),
            key: attempt.key.and_then(|key| u32::try_from(key).ok()),
            purpose: purpose.map(str::to_owned),
            outcome: outcome.to_owned(),
            why,
            took_ms: milliseconds(attempt.took),
            usage: attempt.usage.map(wire::usage),
        }
    });
    attempts.collect()
}

/// Nobody answered.
pub(super) fn no_answer(failed: &NoAnswer) -> ErrorBody {
    ErrorBody {
        attempts: list(&failed.trail).into(),
        ..wire::provider_error(&failed.error)
    }
}

/// An answer that had begun broke off.
pub(super) fn broke_off(error: &ProviderError, trail: &Trail) -> ErrorBody {
    ErrorBody {
        attempts: list(trail).into(),
        ..wire::provider_error(error)
    }
}

/// How a provider does.
pub(super) fn health(status: &MemberStatus) -> Health {
    let breaker = |model: Option<&str>, state: BreakerState, open: Option<Duration>| Breaker {
        model: model.map(str::to_owned),
        state: state.name().to_owned(),
        open_ms: open.map(milliseconds),
    };
    let (way, open) = status.way;
    let way = (way != BreakerState::Closed).then(|| breaker(None, way, open));
    let models = status.models.iter();
    let models = models.map(|(name, state, open)| breaker(Some(name), *state, *open));
    let percentile = |at: usize| status.first_token.map(|times| milliseconds(times[at]));
    let (resting, first) = status.resting;
    Health {
        in_flight: status.counts.in_flight,
        asked: status.counts.asked,
        answered: status.counts.answered,
        failed: status.counts.failed,
        cancelled: status.counts.cancelled,
        first_token_p50_ms: percentile(0),
        first_token_p95_ms: percentile(1),
        first_token_p99_ms: percentile(2),
        breakers: way.into_iter().chain(models).collect(),
        keys: status.keys as u64,
        resting_keys: resting as u64,
        rest_ms: first.map(milliseconds),
        waiting: status.waiting.0 as u64,
        max_waiting: status.waiting.1 as u64,
        queued: status.counts.queued,
        shed: status.counts.shed,
        limits: status.limits.iter().map(limit).collect(),
        probe: status.probe.map(|probe| Probe {
            ok: probe.outcome.is_ok(),
            why: probe.outcome.err().map(|kind| kind.name().to_owned()),
            took_ms: milliseconds(probe.took),
            ago_ms: milliseconds(probe.ago),
        }),
    }
}

fn limit(status: &LimitStatus) -> status::LimitStatus {
    status::LimitStatus {
        scope: status.limit.scope.name().to_owned(),
        measure: status.limit.measure.name().to_owned(),
        model: status.model.as_deref().map(str::to_owned),
        key: status.key.map(|key| key as u64),
        most: status.most,
        left: status.left,
        reset_ms: status.reset.map(milliseconds),
        learned: status.learned,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
