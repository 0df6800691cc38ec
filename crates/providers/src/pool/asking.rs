//! How one target is asked, and why it gave no answer.

use tokio::time::Instant;

use super::ask::Ask;
use super::limits::{Limit, Measure};
use super::member::{Call, Demand, Refused, is_of_key};
use super::stream::Bound;
use super::trail::{Purpose, Skip, Trail};
use super::{NoAnswer, Target};
use crate::error::{ErrorKind, Phase, ProviderError};

/// How a target is asked.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) is_retry: bool,
    pub(super) demand: &'a Demand,
    pub(super) trail: &'a Trail,
}

/// Asks one target for `request`, which has its model, with one key after the other while it is the keys that are refused.
/// `turn` is what came of waiting for it, if it was waited for.
pub(super) async fn ask<A: Ask>(
    target: &Target,
    request: &A,
    asking: Asking<'_>,
    purpose: Purpose,
    mut turn: Option<Result<Call, Refused>>,
) -> Result<A::Given, Failure> {
    let Target { member, model, .. } = target;
    let mut failed = None;
    for _ in 0..member.keys() {
        let begun = Instant::now();
        let turn = turn.take();
        let had_turn = turn.is_some();
        let admitted =
            turn.unwrap_or_else(|| member.admit(model, asking.is_retry, asking.demand, begun));
        let call = match admitted {
            Ok(call) => call,
            Err(refusal) => {
                // That a limit is reached was said when it was its turn.
                if !(had_turn && refusal.is_busy()) {
                    skipped(target, purpose, refusal.why, asking.trail);
                }
                // The keys that are left rest: what the one just tried was told counts.
                return Err(failed.unwrap_or_else(|| refused(target, &refusal, begun)));
            }
        };
        let key = (member.keys() > 1).then_some(call.key + 1);
        let step = asking
            .trail
            .begin(member.name(), model, key, purpose, begun);
        let bound = Bound::of(begun, member.whole, asking.demand.deadline);
        let error = match request.open(call, step, bound).await {
            Ok(given) => return Ok(given),
            Err(error) => error,
        };
        let of_key = is_of_key(error.kind);
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

/// Why a target gave no answer.
pub(super) struct Failure {
    pub(super) error: ProviderError,
    /// Whether it was asked at all.
    pub(super) asked: bool,
    /// Whether it is a limit that has no room.
    pub(super) busy: bool,
    /// When it may be asked again, if that can help.
    pub(super) free_at: Option<Instant>,
}

/// What came of asking a target, and perhaps another.
pub(super) enum Raced<'a, T> {
    Answered(&'a Target, T),
    /// Why is in the failures.
    Failed {
        /// Whether it is of no use to ask anybody else.
        is_final: bool,
    },
}

/// Why nobody has answered so far.
#[derive(Default)]
pub(super) struct Failures<'a> {
    last: Option<Failure>,
    /// When the first of this round's may be asked again.
    pub(super) free_at: Option<Instant>,
    /// Those of this round whose limits had no room.
    pub(super) busy: Vec<&'a Target>,
}

impl<'a> Failures<'a> {
    /// Adds that of one target, and says whether it is of no use to ask anybody else.
    pub(super) fn note(&mut self, target: &'a Target, failure: Failure) -> bool {
        if failure.busy {
            self.busy.push(target);
        }
        self.free_at = self.free_at.into_iter().chain(failure.free_at).min();
        let is_final = failure.asked && !goes_on(failure.error.kind);
        // What somebody said who was asked tells more than why somebody was not.
        if failure.asked || !self.last.as_ref().is_some_and(|last| last.asked) {
            self.last = Some(failure);
        }
        is_final
    }

    pub(super) fn conclude<T>(
        &mut self,
        target: &'a Target,
        outcome: Result<T, Failure>,
    ) -> Raced<'a, T> {
        match outcome {
            Ok(given) => Raced::Answered(target, given),
            Err(failure) => Raced::Failed {
                is_final: self.note(target, failure),
            },
        }
    }

    pub(super) fn no_answer(self, trail: &Trail) -> NoAnswer {
        let error = self.last.map_or_else(
            || ProviderError::new(ErrorKind::Configuration, "the route leads to no provider"),
            |last| last.error,
        );
        let trail = trail.clone();
        NoAnswer { error, trail }
    }
}

/// Whether another provider may do better.
pub(super) fn goes_on(kind: ErrorKind) -> bool {
    !matches!(
        kind,
        ErrorKind::InvalidRequest
            | ErrorKind::ContentFiltered
            | ErrorKind::TimedOut(Phase::Deadline)
    )
}

pub(super) fn skipped(target: &Target, purpose: Purpose, why: Skip, trail: &Trail) {
    trail.skipped(target.member.name(), &target.model, purpose, why);
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

pub(super) fn error_of(target: &Target, kind: ErrorKind, message: &str) -> ProviderError {
    let mut error = ProviderError::new(kind, message);
    error.provider = (**target.member.name()).into();
    error
}
