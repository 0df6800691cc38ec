//! Circuit breaker: who fails too often is left alone for a while. A state machine without a clock: `now` is passed in.
//!
//! ```text
//!            too many failed or slow            the open time is over
//!   Closed ---------------------------> Open ------------------------> HalfOpen
//!     ^                                  ^                              |    |
//!     |                                  +------- a probe failed -------+    |
//!     +------------------------------- enough probes did well ---------------+
//! ```
//!
//! Each call takes a [`Ticket`] and hands it back with its outcome. A ticket from before the last change of state counts
//! for nothing: what was asked before the breaker opened says nothing about a probe.

mod window;

use std::time::Duration;

use tokio::time::Instant;

use window::Window;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// How far back calls count. 30 s by default.
    pub window: Duration,
    /// With fewer calls in the window nothing can be said. 5 by default.
    pub min_calls: u32,
    /// The part of failed calls at which it opens, from 0 to 1. 0.5 by default.
    pub failure_rate: f64,
    /// A first token that takes longer is slow. 60 s by default.
    pub slow_call: Duration,
    /// The part of slow calls at which it opens, from 0 to 1. 0.8 by default.
    pub slow_rate: f64,
    /// How long it stays open at first; each trip in a row doubles it. 5 s by default.
    pub open: Duration,
    /// The longest that it stays open by itself; a provider's Retry-After may ask for up to an hour.
    /// 120 s by default.
    pub max_open: Duration,
    /// The most probes under way at once while it is half open, and how many must do well. 1 by default.
    pub probes: u32,
}

/// The longest Retry-After that is believed: a provider's slip must not lock it out for a year.
pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(3600);

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            min_calls: 5,
            failure_rate: 0.5,
            slow_call: Duration::from_secs(60),
            slow_rate: 0.8,
            open: Duration::from_secs(5),
            max_open: Duration::from_secs(120),
            probes: 1,
        }
    }
}

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Lets it through.
    Closed,
    /// Refuses it.
    Open,
    /// Lets a few through to see how they do.
    HalfOpen,
}

impl BreakerState {
    /// A stable name in `snake_case`, for logs and `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// The right to one call, to be handed back with its outcome, or by [`ignore`](Breaker::ignore).
#[derive(Debug)]
#[must_use = "a probe that is never handed back blocks the others"]
pub(super) struct Ticket {
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct Breaker {
    config: BreakerConfig,
    state: State,
    /// The calls since it was closed last.
    window: Window,
    /// Counts the changes of state.
    epoch: u64,
    /// How often in a row it opened.
    trips: u32,
}

#[derive(Debug)]
enum State {
    Closed { since: Instant },
    Open { until: Instant },
    HalfOpen { under_way: u32, well: u32 },
}

impl Breaker {
    pub(super) fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Closed { since: now },
            window: Window::new(config.window, now),
            epoch: 0,
            trips: 0,
        }
    }

    /// Lets a call through, or says when to ask again.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, Instant> {
        if let State::Open { until } = self.state {
            if now < until {
                return Err(until);
            }
            self.enter(State::HalfOpen {
                under_way: 0,
                well: 0,
            });
        }
        if let State::HalfOpen { under_way, well } = &mut self.state {
            // Those that did well need no second look: only what is missing is let through.
            if *under_way + *well >= self.config.probes {
                return Err(now + self.config.open);
            }
            *under_way += 1;
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// The call did well, if perhaps slowly.
    pub(super) fn success(&mut self, ticket: &Ticket, now: Instant, slow: bool) {
        if ticket.epoch != self.epoch {
            return;
        }
        match &mut self.state {
            State::Closed { .. } => {
                self.window.add_success(now, slow);
                self.trip_if_bad(now);
            }
            State::HalfOpen { .. } if slow => self.trip(now, None),
            State::HalfOpen { under_way, well } => {
                *under_way -= 1;
                *well += 1;
                if *well >= self.config.probes {
                    self.window = Window::new(self.config.window, now);
                    self.enter(State::Closed { since: now });
                }
            }
            State::Open { .. } => {}
        }
    }

    /// The call failed, and the other side is to blame, which may have said how long it wants to be left alone.
    pub(super) fn failure(&mut self, ticket: &Ticket, now: Instant, asked: Option<Duration>) {
        if ticket.epoch == self.epoch {
            self.blame(now, asked, false);
        } else {
            self.extend(now, asked);
        }
    }

    /// A call failed that was counted as a success before, since its answer had begun. It is no second call.
    pub(super) fn fault(&mut self, now: Instant, asked: Option<Duration>) {
        self.blame(now, asked, true);
    }

    /// `counted`: the call is one of the window's already.
    fn blame(&mut self, now: Instant, asked: Option<Duration>, counted: bool) {
        match &mut self.state {
            State::Closed { .. } => {
                self.window.add_failure(now, counted);
                match asked {
                    Some(asked) => self.rest(now, asked),
                    None => self.trip_if_bad(now),
                }
            }
            State::HalfOpen { .. } => self.trip(now, asked),
            State::Open { .. } => self.extend(now, asked),
        }
    }

    /// The call tells nothing: it was cancelled, or failed by the caller's own fault.
    pub(super) fn ignore(&mut self, ticket: &Ticket) {
        if let State::HalfOpen { under_way, .. } = &mut self.state
            && ticket.epoch == self.epoch
        {
            *under_way -= 1;
        }
    }

    /// There are signs of life: if it is open, the next call is let through as a probe.
    pub(super) fn try_again(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = (*until).min(now);
        }
    }

    /// Its state, and when it lets a call through again if that is not now.
    pub(super) fn state(&self, now: Instant) -> (BreakerState, Option<Instant>) {
        match self.state {
            State::Closed { .. } => (BreakerState::Closed, None),
            State::Open { until } if now < until => (BreakerState::Open, Some(until)),
            State::Open { .. } | State::HalfOpen { .. } => (BreakerState::HalfOpen, None),
        }
    }

    /// Whether it would be the same if it were made anew now.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        matches!(self.state, State::Closed { since } if self.window.is_empty(now) && (self.trips == 0 || now >= since + self.config.max_open))
    }

    fn trip_if_bad(&mut self, now: Instant) {
        let counts = self.window.counts(now);
        if counts.calls < self.config.min_calls.max(1) {
            return;
        }
        let rate = |part: u32| f64::from(part) / f64::from(counts.calls);
        if rate(counts.failed) >= self.config.failure_rate
            || rate(counts.slow) >= self.config.slow_rate
        {
            self.trip(now, None);
        }
    }

    /// Opens it while it is closed for as long as the other side asks. That is no trip: it said itself how long it takes.
    fn rest(&mut self, now: Instant, asked: Duration) {
        self.forgive(now);
        self.enter(State::Open {
            until: now + asked.min(LONGEST_ASKED),
        });
    }

    /// Who did well for long enough begins from the start.
    fn forgive(&mut self, now: Instant) {
        if let State::Closed { since } = self.state
            && now >= since + self.config.max_open
        {
            self.trips = 0;
        }
    }

    fn trip(&mut self, now: Instant, asked: Option<Duration>) {
        self.forgive(now);
        let own = self.config.open.saturating_mul(1 << self.trips.min(16));
        let own = own.min(self.config.max_open);
        self.trips = self.trips.saturating_add(1);
        let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
        self.enter(State::Open {
            until: now + own.max(asked),
        });
    }

    fn extend(&mut self, now: Instant, asked: Option<Duration>) {
        if let (State::Open { until }, Some(asked)) = (&mut self.state, asked) {
            *until = (*until).max(now + asked.min(LONGEST_ASKED));
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests;
