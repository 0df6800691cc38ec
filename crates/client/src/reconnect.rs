//! When to connect again: a state machine without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

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
        /// When it comes, or earlier if the socket does.
        until: Instant,
    },
    /// There is no connection and none was wanted since the daemon hung up an idle one: the next request makes one.
    Idle,
    /// The daemon could not be reached within the limits of the policy. The next request tries again.
    GivenUp,
    /// The client has been closed.
    Closed,
}

/// How a client's connection does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Where it stands.
    pub state: State,
    /// Since when there is a connection, or none.
    pub since: Instant,
    /// Attempts that failed since there was a connection.
    pub attempts: u32,
    /// Whether the next attempt comes as soon as the socket does.
    pub watched: bool,
    /// How the last attempt failed, if one ever did.
    pub last_failure: Option<String>,
    /// How long there was no connection the last time.
    pub last_outage: Option<Duration>,
    /// How often what happened.
    pub counters: ReconnectCounters,
}

impl Health {
    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.state == State::Connected
    }
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
    /// The socket was made, or a daemon began to listen on it.
    Appeared,
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
        assert_eq!(machine.state(), State::GivenUp);
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
        assert_eq!(machine.state(), State::GivenUp);
        assert_eq!(machine.counters().gave_up, 1);
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        let (mut machine, now) = machine(ReconnectPolicy::default());
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "not yours".to_owned(), false);
        assert_eq!(machine.state(), State::GivenUp);
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

    #[test]
    fn a_watched_socket_is_tried_when_it_comes() {
        let (mut machine, mut now) = machine(ReconnectPolicy::default());
        machine.lost(now, "gone".to_owned(), true);
        assert!(machine.is_due(now) && !machine.wants_watch());
        machine.failed(now, "nobody".to_owned(), true);
        assert!(machine.wants_watch());
        machine.watched(now);
        assert!(!machine.wants_watch());
        assert!(
            machine.is_due(now),
            "it may have come before the watch was there"
        );
        // Nothing comes: attempts are rare, and no two clients make them together.
        let long = Duration::from_millis(500)..=Duration::from_secs(1);
        for _ in 0..5 {
            machine.failed(now, "nobody".to_owned(), true);
            let pause = pause(&machine, now);
            assert!(long.contains(&pause), "{pause:?}");
            now += pause;
            assert!(machine.is_due(now));
        }
        machine.failed(now, "nobody".to_owned(), true);
        // It comes: alone at once, in a crowd a little later.
        machine.appeared(now, 1);
        assert_eq!(pause(&machine, now), Duration::ZERO);
        assert!(machine.is_due(now));
        // The name is there a moment before anybody listens.
        machine.failed(now, "refused".to_owned(), true);
        assert!(pause(&machine, now) <= Duration::from_millis(4));
        machine.appeared(now, 1);
        assert!(machine.is_due(now));
        let outage = Duration::from_secs(7);
        machine.connected(now + outage, 2, 101);
        let health = machine.health();
        assert!(health.is_connected() && !health.watched);
        assert!(health.last_outage.unwrap() >= outage);
        assert_eq!(health.last_failure.as_deref(), Some("refused"));
        assert_eq!(machine.counters().new_daemons, 1);
        let appeared = |event: &&Event| event.kind == EventKind::Appeared;
        assert_eq!(machine.history().iter().filter(appeared).count(), 2);
    }

    #[test]
    fn a_crowd_is_spread() {
        let mut pauses = Vec::new();
        for seed in 0..1000 {
            let now = Instant::now();
            let mut machine = Reconnect::new(ReconnectPolicy::default(), seed, now);
            machine.failed(now, "nobody".to_owned(), true);
            machine.watched(now);
            machine.failed(now, "nobody".to_owned(), true);
            machine.appeared(now, 1000);
            pauses.push(pause(&machine, now));
        }
        // 50 µs for each: all come within 50 ms, and in none of these more than three times its share.
        pauses.sort_unstable();
        assert!(pauses[999] < Duration::from_millis(50), "{:?}", pauses[999]);
        for slice in 0..10 {
            let slice = Duration::from_millis(5 * slice)..Duration::from_millis(5 * slice + 5);
            let share = pauses.iter().filter(|pause| slice.contains(pause)).count();
            assert!((30..300).contains(&share), "{share} in {slice:?}");
        }
    }

    #[test]
    fn without_its_directory_a_socket_is_looked_for_as_without_a_watch() {
        let (mut machine, now) = machine(ReconnectPolicy::default());
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "nobody".to_owned(), true);
        machine.watched(now);
        machine.failed(now, "nobody".to_owned(), true);
        machine.unwatched(now);
        assert!(machine.is_due(now));
        machine.failed(now, "nobody".to_owned(), true);
        assert!(machine.wants_watch(), "there may be one again");
        assert!(pause(&machine, now) <= Duration::from_millis(4));
        let unwatched = ReconnectPolicy {
            watch: false,
            ..ReconnectPolicy::default()
        };
        let (mut machine, now) = self::machine(unwatched);
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "nobody".to_owned(), true);
        assert!(!machine.wants_watch());
    }

    #[test]
    fn an_outage_lasts_through_what_was_given_up() {
        let policy = ReconnectPolicy {
            max_attempts: Some(1),
            ..ReconnectPolicy::default()
        };
        let (mut machine, now) = machine(policy);
        machine.lost(now, "gone".to_owned(), true);
        machine.failed(now, "nobody".to_owned(), true);
        assert_eq!(machine.health().state, State::GivenUp);
        let later = now + Duration::from_secs(3600);
        assert!(machine.wanted(later));
        machine.connected(later, 2, 101);
        let outage = machine.health().last_outage;
        assert_eq!(outage, Some(Duration::from_secs(3600)));
    }
}
