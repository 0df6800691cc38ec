//! Hedged requests: where the first token lets wait for itself, the next target is asked as well, and the first token
//! wins (Dean and Barroso, "The Tail at Scale", 2013).
//!
//! A hedge costs a second answer's beginning, so there is at most one for a request, and in the long run only for a part
//! of the requests: in an outage, when every first token is late, the load grows by that part and no more.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Target;
use super::ask::Ask;
use super::asking::{Asking, Failures, Raced, ask};
use super::backoff::RetryBudget;
use super::recent::Recent;
use super::trail::Purpose;

/// With fewer first tokens of a target nothing can be said of the usual one.
const FEWEST: usize = 20;

/// When a first token is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// When it takes longer.
    Fixed(Duration),
    /// When it takes longer than so many of 100 of the target's last 256 on this route; after twenty, before which
    /// nobody is asked as well. A streamed token and a whole answer are counted apart.
    Percentile(u8),
}

/// How a route hedges its requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeConfig {
    /// When the next target is asked as well.
    pub after: HedgeAfter,
    /// For how many of the requests in the long run, from 0 to 1. Up to ten are saved up.
    pub budget: f64,
}

/// A route's hedging: its settings, and what it knows. Shared by all requests of the route.
pub struct Hedge {
    config: HedgeConfig,
    state: Mutex<State>,
}

struct State {
    budget: RetryBudget,
    /// The times to the first token, of each target; streamed ones and whole answers apart. As many as there are
    /// targets, so a search from the start is quick.
    times: Vec<(Arc<str>, Arc<str>, bool, Recent)>,
}

impl Hedge {
    /// Nothing is known yet.
    pub fn new(config: HedgeConfig) -> Self {
        Self {
            config,
            state: Mutex::new(State {
                budget: RetryBudget::new(config.budget),
                times: Vec::new(),
            }),
        }
    }

    /// A request came: it earns a part of a hedge.
    pub(super) fn earn(&self) {
        self.lock().budget.earn();
    }

    /// How long `target` has for its first token; `None`: as long as it takes.
    fn patience(&self, target: &Target, streamed: bool) -> Option<Duration> {
        match self.config.after {
            HedgeAfter::Fixed(after) => Some(after),
            HedgeAfter::Percentile(percent) => {
                let mut state = self.lock();
                let times = state.times(target, streamed);
                (times.len() >= FEWEST)
                    .then(|| times.percentile(percent.into()))
                    .flatten()
            }
        }
    }

    /// The first token of `target` took so long, or at least so long where it had not come yet.
    fn note(&self, target: &Target, streamed: bool, took: Duration) {
        if let HedgeAfter::Percentile(_) = self.config.after {
            self.lock().times(target, streamed).add(took);
        }
    }

    fn spend(&self) -> bool {
        let budget = &mut self.lock().budget;
        let has_some = budget.has_some();
        if has_some {
            budget.spend();
        }
        has_some
    }

    fn give_back(&self) {
        self.lock().budget.give_back();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn times(&mut self, target: &Target, streamed: bool) -> &mut Recent {
        let name = target.member.name();
        let known = self.times.iter().position(|(provider, model, kind, _)| {
            *kind == streamed && **model == *target.model && **provider == **name
        });
        let at = known.unwrap_or_else(|| {
            let recent = Recent::default();
            self.times.push((
                Arc::clone(name),
                Arc::clone(&target.model),
                streamed,
                recent,
            ));
            self.times.len() - 1
        });
        &mut self.times[at].3
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Asks `first`, and when its first token is late the next of `rest` that takes requests, too; nobody waits to be the second. `used` is set where that
/// happened. The one that loses is dropped, which cancels it.
pub(super) async fn ask_with_hedge<'a, A: Ask>(
    hedge: &Hedge,
    first: &'a Target,
    rest: &mut impl Iterator<Item = &'a Target>,
    request: &A,
    asking: Asking<'_>,
    failures: &mut Failures<'a>,
    used: &mut bool,
) -> Raced<'a, A::Given> {
    let streamed = request.is_streamed();
    let begun = Instant::now();
    let mut asked = pin!(ask(first, request, asking, Purpose::Answer, None));
    let early = match hedge.patience(first, streamed) {
        Some(patience) => timeout(patience, asked.as_mut()).await.ok(),
        None => Some(asked.as_mut().await),
    };
    if let Some(outcome) = early {
        if outcome.is_ok() {
            hedge.note(first, streamed, begun.elapsed());
        }
        return failures.conclude(first, outcome);
    }
    let alone = !hedge.spend();
    let mut copy = None;
    while !alone && let Some(second) = rest.next() {
        let copy = copy.get_or_insert_with(|| request.clone());
        second.names_model_of(copy);
        let hedge_begun = Instant::now();
        let mut other = pin!(ask(second, copy, asking, Purpose::Hedge, None));
        let is_final = tokio::select! {
            biased;
            outcome = asked.as_mut() => {
                *used = true;
                return match outcome {
                    Ok(given) => {
                        hedge.note(first, streamed, begun.elapsed());
                        asking.trail.lost(Instant::now());
                        Raced::Answered(first, given)
                    }
                    Err(failure) => match failures.note(first, failure) {
                        true => Raced::Failed { is_final: true },
                        false => failures.conclude(second, other.await),
                    },
                };
            }
            outcome = other.as_mut() => match outcome {
                Ok(given) => {
                    *used = true;
                    let now = Instant::now();
                    // It may have taken much longer: what is sure is that it was not there yet.
                    hedge.note(first, streamed, now - begun);
                    hedge.note(second, streamed, now - hedge_begun);
                    asking.trail.lost(now);
                    return Raced::Answered(second, given);
                }
                Err(failure) => {
                    *used = failure.asked;
                    failures.note(second, failure)
                }
            }
        };
        if *used {
            // What one finds wrong, the other may take: it has the last word.
            return match failures.conclude(first, asked.await) {
                Raced::Failed { is_final: own } => Raced::Failed {
                    is_final: own || is_final,
                },
                answered => answered,
            };
        }
    }
    if !alone {
        // Nobody took it.
        hedge.give_back();
    }
    let outcome = asked.await;
    if outcome.is_ok() {
        hedge.note(first, streamed, begun.elapsed());
    }
    failures.conclude(first, outcome)
}
