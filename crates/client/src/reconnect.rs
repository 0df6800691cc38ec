//! When to connect again: a state machine without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// When to try again after a connection was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconnectPolicy {
    /// How many attempts come quickly, each 1 to [`quick_delay`](Self::quick_delay) after the one before: 8. The very
    /// first is made at once.
    pub quick_attempts: u32,
    /// Longest pause between quick attempts: 4 ms.
    pub quick_delay: Duration,
    /// Later pauses are random between 0 and a bound that doubles from [`quick_delay`](Self::quick_delay) up to this: 100 ms.
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
            quick_attempts: 8,
            quick_delay: Duration::from_millis(4),
            max_delay: Duration::from_millis(100),
            max_attempts: None,
            give_up_after: Some(Duration::from_secs(30)),
            max_resends: 5,
        }
    }
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An attempt is being made.
    Connecting,
    /// There is a connection.
    Connected,
    /// The next attempt comes later.
    Waiting {
        /// The number of the next attempt since the connection was lost, from 1.
        attempt: u32,
        /// When it comes.
        until: Instant,
    },
    /// There is no connection, and the next request makes one: the daemon hung up an idle connection, or could not be reached.
    Idle,
    /// The client has been closed.
    Closed,
}

/// Something that happened to a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What.
    pub kind: EventKind,
}

/// What happened to a client's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A connection was made.
    Connected {
        /// Its number at the daemon.
        connection: u64,
        /// After how many attempts.
        attempts: u32,
        /// The daemon is not the one of the connection before: it was started anew.
        new_daemon: bool,
    },
    /// An attempt failed.
    Failed {
        /// Its number since the connection was lost, from 1.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// The daemon takes no new requests on the connection; running ones go on.
    GoingAway {
        /// Why.
        reason: String,
    },
    /// The connection was lost.
    Lost {
        /// Why.
        reason: String,
    },
    /// No more attempts are made before the next request.
    GaveUp {
        /// How many there were.
        attempts: u32,
    },
    /// The client was closed.
    Closed,
}

/// How often what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReconnectCounters {
    /// Connections made.
    pub connected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Connections lost.
    pub lost: u64,
    /// Connections after which the daemon was another.
    pub new_daemons: u64,
    /// Times that no more attempts were made.
    pub gave_up: u64,
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
    /// Since when there is none.
    since: Instant,
    daemon: Option<u128>,
    last_reason: String,
}

impl Reconnect {
    pub(crate) fn new(policy: ReconnectPolicy, seed: u64, now: Instant) -> Self {
        Self {
            policy,
            state: State::Connecting,
            history: VecDeque::new(),
            counters: ReconnectCounters::default(),
            random: fastrand::Rng::with_seed(seed),
            attempts: 0,
            since: now,
            daemon: None,
            last_reason: String::new(),
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

    /// How the last round of attempts ended, for an error.
    pub(crate) fn last_failure(&self) -> (u32, String) {
        (self.attempts, self.last_reason.clone())
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
        self.daemon = Some(daemon);
        let attempts = self.attempts + 1;
        self.attempts = 0;
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
        self.last_reason.clone_from(&reason);
        self.note(
            now,
            EventKind::Failed {
                attempt: self.attempts,
                reason,
            },
        );
        let delay = self.delay();
        let late = |limit| now.duration_since(self.since) + delay > limit;
        if !retryable
            || self
                .policy
                .max_attempts
                .is_some_and(|limit| self.attempts >= limit)
            || self.policy.give_up_after.is_some_and(late)
        {
            self.counters.gave_up += 1;
            self.state = State::Idle;
            self.note(
                now,
                EventKind::GaveUp {
                    attempts: self.attempts,
                },
            );
        } else {
            self.state = State::Waiting {
                attempt: self.attempts + 1,
                until: now + delay,
            };
        }
    }

    /// The pause after attempt number `attempts`.
    fn delay(&mut self) -> Duration {
        let quick = self.policy.quick_delay;
        let (least, most) = match self.attempts.checked_sub(self.policy.quick_attempts) {
            None => (Duration::from_millis(1).min(quick), quick),
            Some(late) => {
                let factor = 2_u32.saturating_pow(late.saturating_add(1));
                (
                    Duration::ZERO,
                    quick.saturating_mul(factor).min(self.policy.max_delay),
                )
            }
        };
        let span = (most - least).as_nanos();
        least + Duration::from_nanos(self.random.u64(..=u64::try_from(span).unwrap_or(u64::MAX)))
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
        let begins = self.state == State::Idle;
        if begins {
            self.start(now);
        }
        begins
    }

    fn start(&mut self, now: Instant) {
        self.state = State::Connecting;
        self.attempts = 0;
        self.since = now;
    }

    pub(crate) fn close(&mut self, now: Instant) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.note(now, EventKind::Closed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn machine(policy: ReconnectPolicy) -> (Reconnect, Instant) {
        let now = Instant::now();
        let mut machine = Reconnect::new(policy, 7, now);
        machine.connected(now, 1, 100);
        (machine, now)
    }

    fn pause(machine: &Reconnect, now: Instant) -> Duration {
        match machine.state() {
            State::Waiting { until, .. } => until - now,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn attempts_are_quick_first_and_then_spread() {
        let (mut machine, mut now) = machine(ReconnectPolicy::default());
        machine.lost(now, "gone".to_owned(), true);
        assert!(machine.is_due(now), "the first attempt is made at once");
        let mut pauses = Vec::new();
        for attempt in 1..=60 {
            machine.failed(now, "nobody".to_owned(), true);
            let pause = pause(&machine, now);
            assert!(
                matches!(machine.state(), State::Waiting { attempt: next, .. } if next == attempt + 1)
            );
            assert!(!machine.is_due(now) || pause.is_zero());
            pauses.push(pause);
            now += pause;
            assert!(machine.is_due(now));
            assert_eq!(machine.state(), State::Connecting);
        }
        let quick = Duration::from_millis(1)..=Duration::from_millis(4);
        assert!(
            pauses[..7].iter().all(|pause| quick.contains(pause)),
            "{pauses:?}"
        );
        assert!(
            pauses
                .iter()
                .all(|pause| *pause <= Duration::from_millis(100)),
            "{pauses:?}"
        );
        // Full jitter: some are short and some are long, however late.
        assert!(
            pauses[20..]
                .iter()
                .any(|pause| *pause < Duration::from_millis(30)),
            "{pauses:?}"
        );
        assert!(
            pauses[20..]
                .iter()
                .any(|pause| *pause > Duration::from_millis(70)),
            "{pauses:?}"
        );
    }

    #[test]
    fn it_gives_up_after_a_time_or_a_number_and_begins_anew_when_wanted() {
        let policy = ReconnectPolicy {
            max_attempts: Some(2),
            ..ReconnectPolicy::default()
        };
        let (mut machine, now) = machine(policy);
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "a".to_owned(), true);
        machine.failed(now, "b".to_owned(), true);
        assert_eq!(machine.state(), State::Idle);
        assert_eq!(machine.last_failure(), (2, "b".to_owned()));
        assert!(!machine.is_due(now));
        assert!(machine.wanted(now) && machine.is_due(now));
        assert!(!machine.wanted(now), "attempts have begun already");

        let policy = ReconnectPolicy {
            give_up_after: Some(Duration::from_secs(1)),
            ..ReconnectPolicy::default()
        };
        let (mut machine, now) = self::machine(policy);
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "a".to_owned(), true);
        assert!(matches!(machine.state(), State::Waiting { .. }));
        machine.failed(now + Duration::from_secs(1), "b".to_owned(), true);
        assert_eq!(machine.state(), State::Idle);
        assert_eq!(machine.counters().gave_up, 1);
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        let (mut machine, now) = machine(ReconnectPolicy::default());
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "not yours".to_owned(), false);
        assert_eq!(machine.state(), State::Idle);
    }

    #[test]
    fn history_is_bounded_and_tells_of_another_life() {
        let (mut machine, now) = machine(ReconnectPolicy::default());
        for life in 0..100 {
            machine.lost(now, "gone".to_owned(), true);
            machine.connected(now, life, u128::from(life / 2));
        }
        assert_eq!(machine.history().len(), HISTORY);
        let counters = machine.counters();
        assert_eq!(
            (counters.connected, counters.lost, counters.new_daemons),
            (101, 100, 50)
        );
        machine.close(now);
        machine.connected(now, 1, 1);
        machine.failed(now, "late".to_owned(), true);
        machine.lost(now, "late".to_owned(), true);
        assert_eq!(machine.state(), State::Closed);
        assert_eq!(machine.history().last().unwrap().kind, EventKind::Closed);
    }

    #[test]
    fn a_connection_that_went_idle_waits_for_work() {
        let (mut machine, now) = machine(ReconnectPolicy::default());
        machine.lost(now, "idle".to_owned(), false);
        assert_eq!(machine.state(), State::Idle);
        assert!(!machine.is_due(now));
        assert!(machine.wanted(now));
        machine.connected(now, 2, 100);
        machine.going_away(now, "server_restarting".to_owned());
        assert_eq!(machine.state(), State::Connecting);
        assert_eq!(machine.counters().lost, 1);
    }
}
