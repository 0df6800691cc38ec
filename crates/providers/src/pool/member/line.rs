//! Those that wait for a member's limits, and how one of them gets its call.
//!
//! Whoever comes takes what it needs at once, if nobody waits. Else it gets a place in the [`Queue`], and everybody who
//! gives something back lets those in that can go now, in the order of their turns. Nobody overtakes one that waits for the
//! same limit, or a large request would wait for as long as small ones come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::call::{Call, Refused, Tickets};
use super::{Member, State};
use crate::pool::PoolConfig;
use crate::pool::gate::Charge;
use crate::pool::limits::{Priority, Rate, Scope};
use crate::pool::queue::{Place, Queue};
use crate::pool::rate::client::Bill;
use crate::pool::rate::{Busy, Cost};
use crate::pool::trail::Skip;

/// What a request asks of the limits.
#[derive(Clone, Debug, Default)]
pub(in crate::pool) struct Demand {
    pub(in crate::pool) priority: Priority,
    pub(in crate::pool) cost: Cost,
    /// Where its client's tokens are put down.
    pub(in crate::pool) bill: Option<Arc<Bill>>,
    /// When the answer becomes worthless.
    pub(in crate::pool) deadline: Option<Instant>,
}

/// What a call took of the member's state.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) tickets: Tickets,
    pub(super) key: usize,
    pub(super) charge: Charge,
    is_retry: bool,
}

/// Those who may go on, to be woken when the lock is free again.
#[derive(Debug, Default)]
#[must_use = "they sleep until they are woken"]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

#[derive(Debug)]
pub(super) struct Line {
    queue: Queue<Waiter>,
    /// What became of those that wait no longer, until they take it.
    decided: Vec<(Place, Result<Taken, Refused>)>,
    blocked: Blocked,
}

#[derive(Debug)]
struct Waiter {
    model: Arc<str>,
    cost: Cost,
    is_retry: bool,
    waker: Option<Waker>,
}

/// What kept those waiting that were looked at last.
#[derive(Debug, Default)]
struct Blocked {
    all: Option<Busy>,
    models: Vec<(Arc<str>, Busy)>,
}

impl Blocked {
    fn of(&self, model: &str) -> Option<Busy> {
        let mut models = self.models.iter();
        let of_model = models.find(|(known, _)| **known == *model);
        self.all.or(of_model.map(|(_, busy)| *busy))
    }

    /// When the first of these limits may have room by itself.
    fn next(&self) -> Option<Instant> {
        let all = self
            .all
            .iter()
            .chain(self.models.iter().map(|(_, busy)| busy));
        all.filter_map(|busy| busy.until).min()
    }
}

impl Line {
    pub(super) fn new() -> Self {
        Self {
            queue: Queue::new(),
            decided: Vec::new(),
            blocked: Blocked::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Those that were let through and do not know it yet.
    #[cfg(test)]
    pub(super) fn let_through(&self) -> usize {
        self.decided
            .iter()
            .filter(|(_, taken)| taken.is_ok())
            .count()
    }

    /// Whether nobody waits, and everybody took what became of it.
    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.decided.is_empty()
    }

    /// Whose turn it is of those that nothing is known to block.
    fn next(&self) -> Option<(Place, Arc<str>, Cost, bool)> {
        let mut waiting = self.queue.in_order();
        let free = waiting.find(|(_, waiter)| self.blocked.of(&waiter.model).is_none());
        free.map(|(place, waiter)| {
            let model = Arc::clone(&waiter.model);
            (place, model, waiter.cost, waiter.is_retry)
        })
    }

    /// Those that sleep until `before` have to wake sooner where the first limit may have room sooner now.
    fn wake_for(&self, before: Option<Instant>, wakers: &mut Wakers) {
        let next = self.blocked.next();
        if next.is_some_and(|at| before.is_none_or(|before| at < before)) {
            let waiting = self.queue.in_order();
            let asleep = waiting.filter_map(|(_, waiter)| waiter.waker.clone());
            wakers.0.extend(asleep);
        }
    }

    fn decision(&mut self, place: Place) -> Option<Result<Taken, Refused>> {
        let at = self.decided.iter().position(|(known, _)| *known == place)?;
        Some(self.decided.swap_remove(at).1)
    }
}

impl State {
    /// Takes all that one call needs: the consent of both breakers, room within the limits, a key.
    pub(super) fn take(
        &mut self,
        model: &str,
        cost: Cost,
        is_retry: bool,
        now: Instant,
        config: PoolConfig,
    ) -> Result<Taken, Refused> {
        if is_retry && !self.budget.has_some() {
            return Err(Refused {
                why: Skip::RetryBudget,
                until: None,
            });
        }
        let opens = |until| Refused {
            why: Skip::BreakerOpen,
            until: Some(until),
        };
        let way = self.way.admit(now).map_err(opens)?;
        let of_model = match self.model(model, now, config) {
            Some(breaker) => match breaker.admit(now) {
                Ok(ticket) => Some(ticket),
                Err(until) => {
                    self.way.ignore(&way);
                    return Err(opens(until));
                }
            },
            None => None,
        };
        let tickets = Tickets { way, of_model };
        let gate = &self.gate;
        let key = match gate.busy(model, cost, now) {
            Some(busy) => Err(Refused::busy(busy)),
            None => {
                let busy = |key| gate.key_busy(key, model, cost, now);
                self.keys.pick(model, now, busy).map_err(Refused::no_key)
            }
        };
        let key = match key {
            Ok(key) => key,
            Err(refused) => {
                tickets.ignore(self, model);
                return Err(refused);
            }
        };
        if is_retry {
            self.budget.spend();
        }
        self.live.counts.in_flight += 1;
        self.live.counts.asked += 1;
        Ok(Taken {
            tickets,
            key,
            charge: self.gate.take(key, model, cost, now),
            is_retry,
        })
    }

    /// The call was never made: as if nothing had been taken.
    fn undo(&mut self, taken: Taken, model: &str, now: Instant) {
        taken.tickets.ignore(self, model);
        if taken.is_retry {
            self.budget.give_back();
        }
        self.live.counts.in_flight -= 1;
        self.live.counts.asked -= 1;
        self.gate.undo(taken.charge, model, now);
    }

    /// The same as [`take`](Self::take), behind those that wait.
    pub(super) fn take_in_turn(
        &mut self,
        model: &Arc<str>,
        demand: &Demand,
        is_retry: bool,
        now: Instant,
        config: PoolConfig,
    ) -> (Result<Taken, Refused>, Wakers) {
        if self.line.is_empty() {
            let taken = self.take(model, demand.cost, is_retry, now, config);
            return (taken, Wakers::default());
        }
        let before = self.line.blocked.next();
        let place = self.line_up(model, demand, is_retry);
        let mut wakers = self.let_in(now, config);
        let decided = self.line.decision(place).unwrap_or_else(|| {
            self.line.queue.remove(place);
            let refused = self.refusal(model);
            // Those behind it may need less.
            wakers.0.extend(self.let_in(now, config).0);
            Err(refused)
        });
        self.line.wake_for(before, &mut wakers);
        (decided, wakers)
    }

    fn line_up(&mut self, model: &Arc<str>, demand: &Demand, is_retry: bool) -> Place {
        let waiter = Waiter {
            model: Arc::clone(model),
            cost: demand.cost,
            is_retry,
            waker: None,
        };
        self.line.queue.push(demand.priority, waiter)
    }

    /// Why one waits that was looked at just now.
    fn refusal(&self, model: &str) -> Refused {
        match self.line.blocked.of(model) {
            Some(busy) => Refused::busy(busy),
            // Nobody waits for nothing; were it so, it is too many at once.
            None => Refused {
                why: Skip::QueueFull,
                until: None,
            },
        }
    }

    /// Lets all in that can go now, and has the others sleep no longer than they should.
    pub(super) fn serve(&mut self, now: Instant, config: PoolConfig) -> Wakers {
        let before = self.line.blocked.next();
        let mut wakers = self.let_in(now, config);
        self.line.wake_for(before, &mut wakers);
        wakers
    }

    fn let_in(&mut self, now: Instant, config: PoolConfig) -> Wakers {
        self.line.blocked = Blocked::default();
        let mut wakers = Vec::new();
        loop {
            let Some((place, model, cost, is_retry)) = self.line.next() else {
                return Wakers(wakers);
            };
            let taken = self.take(&model, cost, is_retry, now, config);
            let waiter = match &taken {
                Err(Refused {
                    why: Skip::Limited(limit),
                    until,
                }) => {
                    let busy = Busy {
                        limit: *limit,
                        until: *until,
                    };
                    // A key's own rate is for all models; what its headers tell is for one.
                    let of_keys = self.gate.limits().key_rate != Rate::default();
                    match limit.scope {
                        Scope::Provider => self.line.blocked.all = Some(busy),
                        Scope::Key if of_keys => self.line.blocked.all = Some(busy),
                        _ => self.line.blocked.models.push((model, busy)),
                    }
                    continue;
                }
                Ok(_) => self.line.queue.let_through(place),
                Err(_) => self.line.queue.remove(place),
            };
            wakers.extend(waiter.and_then(|waiter| waiter.waker));
            self.line.decided.push((place, taken));
        }
    }
}

impl Member {
    /// Gets a place in the line for one call, which has `waited` elsewhere already.
    ///
    /// # Errors
    ///
    /// There is no place, or waiting is of no use.
    pub(in crate::pool) fn wait(
        self: &Arc<Self>,
        model: &Arc<str>,
        is_retry: bool,
        demand: &Demand,
        waited: Duration,
        now: Instant,
    ) -> Result<Waiting, Refused> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let before = state.line.blocked.next();
        let place = state.line_up(model, demand, is_retry);
        let mut wakers = state.let_in(now, self.config);
        let limits = state.gate.limits();
        let patience = now.checked_add(limits.queue_wait.saturating_sub(waited));
        // Who is let in later than this has its answer too late.
        let expected = state.live.expected().unwrap_or_default();
        let latest = demand
            .deadline
            .map(|deadline| deadline.checked_sub(expected).unwrap_or(now));
        let ends = [
            patience.map(|at| (at, Skip::QueueTimeout)),
            latest.map(|at| (at, Skip::QueueDeadline)),
        ];
        let give_up = ends.into_iter().flatten().min_by_key(|(at, _)| *at);
        let is_waiting = state.line.queue.get_mut(place).is_some();
        let refused = match is_waiting {
            true => state.shed(place, model, demand, give_up, now, &mut wakers),
            false => None,
        };
        match refused {
            Some(_) => {
                state.line.queue.remove(place);
                state.live.counts.shed += 1;
                // Those behind it may need less.
                wakers.0.extend(state.let_in(now, self.config).0);
            }
            None if is_waiting => state.live.counts.queued += 1,
            None => {}
        }
        state.line.wake_for(before, &mut wakers);
        drop(guard);
        wakers.wake();
        if let Some(refused) = refused {
            return Err(refused);
        }
        Ok(Waiting {
            member: Arc::clone(self),
            model: Arc::clone(model),
            place,
            bill: demand.bill.clone(),
            give_up,
            timer: Box::pin(sleep_until(now)),
            over: false,
        })
    }

    /// Lets those in that can go now.
    fn serve(&self) {
        let mut state = self.lock();
        let wakers = state.serve(Instant::now(), self.config);
        drop(state);
        wakers.wake();
    }
}

impl State {
    /// Whether the last one in its lane has to go again at once, and why. Where the queue is full it may take the place of
    /// one that is less urgent.
    fn shed(
        &mut self,
        place: Place,
        model: &str,
        demand: &Demand,
        give_up: Option<(Instant, Skip)>,
        now: Instant,
        wakers: &mut Wakers,
    ) -> Option<Refused> {
        let busy = self.refusal(model);
        let before = self.line.queue.before(demand.priority).saturating_sub(1);
        let expected = self.gate.expected_wait(before, model);
        let probably = expected.and_then(|wait| now.checked_add(wait));
        if let Some((at, why)) = give_up {
            // A rate has room when it has; how long calls take is a guess, which only a deadline makes worth while.
            let too_late = busy.until.is_some_and(|until| until > at);
            if too_late && why == Skip::QueueTimeout {
                return Some(busy);
            }
            let probably_late = probably.is_some_and(|then| then > at) || at <= now;
            if why == Skip::QueueDeadline && (too_late || probably_late) {
                return Some(Refused {
                    why,
                    until: busy.until.or(probably),
                });
            }
        }
        let places = self.gate.limits().queue;
        if self.line.queue.len() > places {
            let Some((displaced, waiter)) = self.line.queue.displace(demand.priority, places)
            else {
                return Some(Refused {
                    why: Skip::QueueFull,
                    until: busy.until.or(probably),
                });
            };
            self.live.counts.shed += 1;
            let refused = Refused {
                why: Skip::Displaced,
                until: busy.until.or(probably),
            };
            debug_assert_ne!(displaced, place);
            self.line.decided.push((displaced, Err(refused)));
            wakers.0.extend(waiter.waker);
        }
        None
    }
}

/// One that waits for a member's limits. Dropping it frees its place.
#[derive(Debug)]
pub(in crate::pool) struct Waiting {
    member: Arc<Member>,
    model: Arc<str>,
    place: Place,
    bill: Option<Arc<Bill>>,
    give_up: Option<(Instant, Skip)>,
    timer: Pin<Box<Sleep>>,
    over: bool,
}

impl Future for Waiting {
    type Output = Result<Call, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            let now = Instant::now();
            let mut guard = this.member.lock();
            let state = &mut *guard;
            let mut wakers = Wakers::default();
            if state.line.blocked.next().is_some_and(|at| at <= now) {
                wakers = state.serve(now, this.member.config);
            }
            let mut decision = state.line.decision(this.place);
            let mut wake_at = state.line.blocked.next();
            if let (None, Some((at, why))) = (&decision, this.give_up) {
                if at <= now {
                    state.line.queue.remove(this.place);
                    state.live.counts.shed += 1;
                    let until = state.refusal(&this.model).until;
                    // Those behind it may need less.
                    wakers.0.extend(state.serve(now, this.member.config).0);
                    decision = Some(Err(Refused { why, until }));
                }
                wake_at = wake_at.into_iter().chain([at]).min();
            }
            if decision.is_none()
                && let Some(waiter) = state.line.queue.get_mut(this.place)
            {
                waiter.waker = Some(cx.waker().clone());
            }
            drop(guard);
            wakers.wake();
            if let Some(decision) = decision {
                this.over = true;
                let call = decision.map(|taken| {
                    Call::new(&this.member, &this.model, taken, this.bill.take(), now)
                });
                return Poll::Ready(call);
            }
            let Some(wake_at) = wake_at else {
                return Poll::Pending;
            };
            if this.timer.deadline() != wake_at {
                this.timer.as_mut().reset(wake_at);
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.member.lock();
        state.line.queue.remove(self.place);
        if let Some(Ok(taken)) = state.line.decision(self.place) {
            state.undo(taken, &self.model, Instant::now());
        }
        drop(state);
        self.member.serve();
    }
}

impl Refused {
    pub(super) fn busy(busy: Busy) -> Self {
        Self {
            why: Skip::Limited(busy.limit),
            until: busy.until,
        }
    }

    /// Whether it helps to wait in line.
    pub(in crate::pool) fn is_busy(&self) -> bool {
        matches!(self.why, Skip::Limited(_))
    }
}
