//! When to connect again: a state machine without a clock. What it tells of itself is in `health.rs`.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::health::{Event, EventKind, Health, ReconnectCounters, State};

/// When to try again after a connection was lost.
///
/// The first attempt is made at once. If the daemon is not there, the socket's directory is watched, and the next attempt
/// comes when the socket does; attempts every second or so find what the watch does not tell. Where the directory cannot be
/// watched, attempts come quickly for the first moments and then less and less often.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconnectPolicy {
    /// Whether the socket's directory is watched (inotify): yes.
    pub watch: bool,
    /// How long each client of this process that waits for the same socket puts off its attempt, at most, for each of the
    /// others, so that they do not all come at once: 50 µs.
    pub spread: Duration,
    /// Pauses between attempts while the directory is watched are random between half of this and this: 1 s.
    pub watched_delay: Duration,
    /// How many attempts come quickly, each 1 to [`quick_delay`](Self::quick_delay) after the one before: 8. So it is when
    /// the socket has been seen to come, and from the start where it cannot be watched.
    pub quick_attempts: u32,
    /// Longest pause between quick attempts: 4 ms.
    pub quick_delay: Duration,
    /// Later pauses without a watch are random between 0 and a bound that doubles from [`quick_delay`](Self::quick_delay)
    /// up to this: 100 ms.
    pub max_delay: Duration,
    /// So many attempts in a row are made; `None` (the default): no limit.
    pub max_attempts: Option<u32>,
    /// No attempt is made after this time without a connection; `None`: no limit. 30 s.
    pub give_up_after: Option<Duration>,
    /// How often one request is sent again at most: 5.
    pub max_resends: u32,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        Self {
            watch: true,
            spread: Duration::from_micros(50),
            watched_delay: Duration::from_secs(1),
            quick_attempts: 8,
            quick_delay: Duration::from_millis(4),
            max_delay: Duration::from_millis(100),
            max_attempts: None,
            give_up_after: Some(Duration::from_secs(30)),
            max_resends: 5,
        }
    }
}

/// Events that are kept.
const HISTORY: usize = 64;

/// The state machine. Times and randomness come from outside.
#[derive(Debug)]
pub(crate) struct Reconnect {
    policy: ReconnectPolicy,
    state: State,
    history: VecDeque<Event>,
    counters: ReconnectCounters,
    random: fastrand::Rng,
    /// Attempts since there was a connection.
    attempts: u32,
    /// Attempts that come quickly from now on.
    quick: u32,
    /// Attempts since the last of those, without a watch.
    late: u32,
    /// The socket's directory is watched.
    watched: bool,
    /// Since when there is a connection, or none.
    since: Instant,
    /// When the present round of attempts began.
    begun: Instant,
    last_outage: Option<Duration>,
    daemon: Option<u128>,
    last_reason: Option<String>,
}

impl Reconnect {
    pub(crate) fn new(policy: ReconnectPolicy, seed: u64, now: Instant) -> Self {
        Self {
            quick: policy.quick_attempts,
            policy,
            state: State::Connecting,
            history: VecDeque::new(),
            counters: ReconnectCounters::default(),
            random: fastrand::Rng::with_seed(seed),
            attempts: 0,
            late: 0,
            watched: false,
            since: now,
            begun: now,
            last_outage: None,
            daemon: None,
            last_reason: None,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn history(&self) -> Vec<Event> {
        self.history.iter().cloned().collect()
    }

    pub(crate) fn counters(&self) -> ReconnectCounters {
        self.counters
    }

    pub(crate) fn health(&self) -> Health {
        Health {
            state: self.state,
            since: self.since,
            attempts: self.attempts,
            policy: self.policy.clone(),
            watched: self.watched,
            last_failure: self.last_reason.clone(),
            last_outage: self.last_outage,
            counters: self.counters,
        }
    }

    /// How the last round of attempts ended, for an error.
    pub(crate) fn last_failure(&self) -> (u32, String) {
        (self.attempts, self.last_reason.clone().unwrap_or_default())
    }

    fn note(&mut self, at: Instant, kind: EventKind) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Event { at, kind });
    }

    /// An attempt succeeded.
    pub(crate) fn connected(&mut self, now: Instant, connection: u64, daemon: u128) {
        if self.state == State::Closed {
            return;
        }
        let new_daemon = self.daemon.is_some_and(|before| before != daemon);
        if self.daemon.is_some() {
            self.last_outage = Some(now.saturating_duration_since(self.since));
        }
        self.daemon = Some(daemon);
        let attempts = self.attempts + 1;
        self.attempts = 0;
        self.since = now;
        self.watched = false;
        self.counters.connected += 1;
        self.counters.new_daemons += u64::from(new_daemon);
        self.state = State::Connected;
        self.note(
            now,
            EventKind::Connected {
                connection,
                attempts,
                new_daemon,
            },
        );
    }

    /// An attempt failed. The state says when the next one comes, if one does.
    pub(crate) fn failed(&mut self, now: Instant, reason: String, retryable: bool) {
        if self.state == State::Closed {
            return;
        }
        self.attempts += 1;
        self.counters.failed += 1;
        self.last_reason = Some(reason.clone());
        self.note(
            now,
            EventKind::Failed {
                attempt: self.attempts,
                reason,
            },
        );
        let delay = self.delay();
        let late = |limit| now.saturating_duration_since(self.begun) + delay > limit;
        if !retryable
            || self
                .policy
                .max_attempts
                .is_some_and(|limit| self.attempts >= limit)
            || self.policy.give_up_after.is_some_and(late)
        {
            self.counters.gave_up += 1;
            self.state = State::GivenUp;
            self.watched = false;
            self.note(
                now,
                EventKind::GaveUp {
                    attempts: self.attempts,
                },
            );
        } else {
            self.wait_until(now + delay);
        }
    }

    fn wait_until(&mut self, until: Instant) {
        self.state = State::Waiting {
            attempt: self.attempts + 1,
            until,
        };
    }

    /// The pause after an attempt that failed.
    fn delay(&mut self) -> Duration {
        let quick = self.policy.quick_delay;
        if self.quick > 0 {
            self.quick -= 1;
            return self.between(Duration::from_millis(1).min(quick), quick);
        }
        if self.watched {
            let most = self.policy.watched_delay;
            return self.between(most / 2, most);
        }
        self.late = self.late.saturating_add(1);
        let most = quick.saturating_mul(2_u32.saturating_pow(self.late));
        self.between(Duration::ZERO, most.min(self.policy.max_delay))
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
        least + Duration::from_nanos(self.random.u64(..=span))
    }

    /// Whether the socket's directory should be watched from now on.
    pub(crate) fn wants_watch(&self) -> bool {
        self.policy.watch && !self.watched && matches!(self.state, State::Waiting { .. })
    }

    /// The socket's directory is watched from now on. The socket may have come just before, so the next attempt is made
    /// at once.
    pub(crate) fn watched(&mut self, now: Instant) {
        self.watched = true;
        self.quick = 0;
        self.wait_until(now);
    }

    /// The watch has ended, since the directory has.
    pub(crate) fn unwatched(&mut self, now: Instant) {
        self.watched = false;
        self.hurry(now, Duration::ZERO);
    }

    /// The socket was made anew, and so many clients of this process wait for it.
    pub(crate) fn appeared(&mut self, now: Instant, crowd: usize) {
        if matches!(self.state, State::Waiting { .. }) {
            self.note(now, EventKind::Appeared);
        }
        let others = u32::try_from(crowd.saturating_sub(1)).unwrap_or(u32::MAX);
        let put_off = self.between(Duration::ZERO, self.policy.spread.saturating_mul(others));
        self.hurry(now, put_off);
    }

    /// The next attempts come quickly. One that is under way may have been too early.
    fn hurry(&mut self, now: Instant, put_off: Duration) {
        self.quick = self.policy.quick_attempts;
        self.late = 0;
        if let State::Waiting { until, .. } = self.state {
            self.wait_until(until.min(now + put_off));
        }
    }

    /// Whether it is time for an attempt; the state is then `Connecting`.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        match self.state {
            State::Waiting { until, .. } if until <= now => {
                self.state = State::Connecting;
                true
            }
            State::Connecting => true,
            _ => false,
        }
    }

    /// The daemon takes no new requests: a new connection is wanted.
    pub(crate) fn going_away(&mut self, now: Instant, reason: String) {
        if self.state == State::Connected {
            self.start(now);
            self.note(now, EventKind::GoingAway { reason });
        }
    }

    /// The connection was lost. `wanted`: a new one is to be made at once, not at the next request.
    pub(crate) fn lost(&mut self, now: Instant, reason: String, wanted: bool) {
        if self.state == State::Connected {
            self.start(now);
            if !wanted {
                self.state = State::Idle;
            }
            self.counters.lost += 1;
            self.note(now, EventKind::Lost { reason });
        }
    }

    /// A request wants a connection. True: attempts begin now.
    pub(crate) fn wanted(&mut self, now: Instant) -> bool {
        let begins = matches!(self.state, State::Idle | State::GivenUp);
        if begins {
            self.start(now);
        }
        begins
    }

    fn start(&mut self, now: Instant) {
        // An outage lasts until there is a connection, given up in between or not.
        if self.state == State::Connected {
            self.since = now;
        }
        self.state = State::Connecting;
        self.attempts = 0;
        self.begun = now;
        self.quick = self.policy.quick_attempts;
        self.late = 0;
    }

    pub(crate) fn close(&mut self, now: Instant) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.watched = false;
            self.note(now, EventKind::Closed);
        }
    }
}
