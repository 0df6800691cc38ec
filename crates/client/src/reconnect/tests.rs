//! The state machine on times that are made up.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    assert_eq!(machine.health().policy, ReconnectPolicy::default());
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
