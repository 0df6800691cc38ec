use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> BreakerConfig {
    BreakerConfig {
        window: 10 * SECOND,
        min_calls: 4,
        failure_rate: 0.5,
        slow_call: SECOND,
        slow_rate: 0.5,
        open: SECOND,
        max_open: 8 * SECOND,
        probes: 1,
    }
}

fn fail(breaker: &mut Breaker, now: Instant) {
    let ticket = breaker.admit(now).unwrap();
    breaker.failure(&ticket, now, None);
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(config(), now);
    (0..4).for_each(|_| fail(&mut breaker, now));
    assert_eq!(breaker.state(now), (BreakerState::Open, Some(now + SECOND)));
    breaker
}

#[test]
fn it_opens_by_rate_and_only_with_enough_calls() {
    let now = Instant::now();
    let mut breaker = Breaker::new(config(), now);
    (0..3).for_each(|_| fail(&mut breaker, now));
    assert_eq!(breaker.state(now).0, BreakerState::Closed);
    // Those are forgotten after a window.
    let later = now + 11 * SECOND;
    fail(&mut breaker, later);
    for _ in 0..2 {
        let ticket = breaker.admit(later).unwrap();
        breaker.success(&ticket, later, false);
    }
    assert_eq!(breaker.state(later).0, BreakerState::Closed);
    fail(&mut breaker, later);
    assert_eq!(breaker.state(later).0, BreakerState::Open, "2 of 4");
    assert_eq!(breaker.admit(later).unwrap_err(), later + SECOND);
}

#[test]
fn an_answer_that_breaks_off_is_one_call_and_failed() {
    let now = Instant::now();
    let mut breaker = Breaker::new(
        BreakerConfig {
            failure_rate: 0.75,
            ..config()
        },
        now,
    );
    let begin = |breaker: &mut Breaker, now| {
        let ticket = breaker.admit(now).unwrap();
        breaker.success(&ticket, now, false);
    };
    for _ in 0..3 {
        begin(&mut breaker, now);
        breaker.fault(now, None);
        assert_eq!(breaker.state(now).0, BreakerState::Closed);
    }
    begin(&mut breaker, now);
    assert_eq!(breaker.state(now).0, BreakerState::Open, "3 of 4");
    // Those that began before the window's time, and broke off within it, are calls of it.
    let mut breaker = Breaker::new(config(), now);
    (0..3).for_each(|_| begin(&mut breaker, now));
    let later = now + 11 * SECOND;
    (0..3).for_each(|_| breaker.fault(later, None));
    assert_eq!(breaker.state(later).0, BreakerState::Closed);
    begin(&mut breaker, later);
    assert_eq!(breaker.state(later).0, BreakerState::Open, "3 of 4");
}

#[test]
fn slow_calls_open_it_too() {
    let now = Instant::now();
    let mut breaker = Breaker::new(config(), now);
    for slow in [false, true, false, true] {
        let ticket = breaker.admit(now).unwrap();
        breaker.success(&ticket, now, slow);
    }
    assert_eq!(breaker.state(now).0, BreakerState::Open);
}

#[test]
fn each_trip_in_a_row_lasts_longer_up_to_a_bound() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    for seconds in [1, 2, 4, 8, 8] {
        now += seconds * SECOND - Duration::from_millis(1);
        assert_eq!(
            breaker.admit(now).unwrap_err(),
            now + Duration::from_millis(1)
        );
        now += Duration::from_millis(1);
        fail(&mut breaker, now);
    }
    now += 8 * SECOND;
    let probe = breaker.admit(now).unwrap();
    breaker.success(&probe, now, false);
    assert_eq!(breaker.state(now).0, BreakerState::Closed);
    // Soon after, the count goes on; after a good while it begins anew.
    let mut flapping = now;
    (0..4).for_each(|_| fail(&mut breaker, flapping));
    assert_eq!(breaker.state(flapping).1, Some(flapping + 8 * SECOND));
    flapping += 8 * SECOND;
    let probe = breaker.admit(flapping).unwrap();
    breaker.success(&probe, flapping, false);
    flapping += 9 * SECOND;
    (0..4).for_each(|_| fail(&mut breaker, flapping));
    assert_eq!(breaker.state(flapping).1, Some(flapping + SECOND));
}

#[test]
fn retry_after_opens_it_at_once_and_extends_it() {
    let now = Instant::now();
    let mut breaker = Breaker::new(config(), now);
    let (first, second) = (breaker.admit(now).unwrap(), breaker.admit(now).unwrap());
    breaker.failure(&first, now, Some(20 * SECOND));
    assert_eq!(breaker.state(now).1, Some(now + 20 * SECOND));
    // The second was asked before it opened, and its answer still says how long to wait.
    breaker.failure(&second, now + SECOND, Some(30 * SECOND));
    assert_eq!(breaker.state(now).1, Some(now + 31 * SECOND));
    breaker.fault(now, Some(SECOND));
    assert_eq!(
        breaker.state(now).1,
        Some(now + 31 * SECOND),
        "never shorter"
    );
    breaker.fault(now, Some(Duration::MAX));
    assert_eq!(breaker.state(now).1, Some(now + LONGEST_ASKED));
}

#[test]
fn retry_after_is_kept_to_exactly_and_counts_as_no_trip() {
    let asked = SECOND / 10;
    let mut now = Instant::now();
    let mut breaker = Breaker::new(config(), now);
    let rests = |breaker: &mut Breaker, now: &mut Instant| {
        let ticket = breaker.admit(*now).unwrap();
        breaker.failure(&ticket, *now, Some(asked));
        assert_eq!(breaker.state(*now).1, Some(*now + asked));
        *now += asked;
        let probe = breaker.admit(*now).unwrap();
        breaker.success(&probe, *now, false);
        assert_eq!(breaker.state(*now).0, BreakerState::Closed);
    };
    (0..3).for_each(|_| rests(&mut breaker, &mut now));
    (0..4).for_each(|_| fail(&mut breaker, now));
    assert_eq!(breaker.state(now).1, Some(now + SECOND), "the first trip");
    now += SECOND;
    let probe = breaker.admit(now).unwrap();
    breaker.success(&probe, now, false);
    // It does not hide either that all was well for a good while.
    now += 9 * SECOND;
    rests(&mut breaker, &mut now);
    (0..4).for_each(|_| fail(&mut breaker, now));
    assert_eq!(breaker.state(now).1, Some(now + SECOND), "begun anew");
    // A probe that fails is a trip, whatever it asks for.
    now += SECOND;
    let probe = breaker.admit(now).unwrap();
    breaker.failure(&probe, now, Some(asked));
    assert_eq!(breaker.state(now).1, Some(now + 2 * SECOND));
}

#[test]
fn what_was_asked_before_it_opened_is_no_probe() {
    let now = Instant::now();
    let mut breaker = Breaker::new(config(), now);
    let old = breaker.admit(now).unwrap();
    (0..4).for_each(|_| fail(&mut breaker, now));
    let later = now + 2 * SECOND;
    let probe = breaker.admit(later).unwrap();
    breaker.success(&old, later, false);
    assert_eq!(breaker.state(later).0, BreakerState::HalfOpen);
    assert!(breaker.admit(later).is_err(), "one probe at once");
    breaker.ignore(&probe);
    let probe = breaker.admit(later).unwrap();
    breaker.success(&probe, later, true);
    assert_eq!(breaker.state(later).0, BreakerState::Open, "too slow");
}

#[test]
fn a_sign_of_life_lets_a_probe_through_at_once() {
    let now = Instant::now();
    let mut breaker = opened(now);
    breaker.try_again(now);
    assert_eq!(breaker.state(now).0, BreakerState::HalfOpen);
    fail(&mut breaker, now);
    assert_eq!(
        breaker.state(now).1,
        Some(now + 2 * SECOND),
        "as after any other"
    );
    let mut closed = Breaker::new(config(), now);
    closed.try_again(now);
    assert_eq!(closed.state(now).0, BreakerState::Closed);
}

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Pass(u64),
    Success(prop::sample::Index, bool),
    Failure(prop::sample::Index, Option<u64>),
    Ignore(prop::sample::Index),
    Fault,
    TryAgain,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => Just(Step::Admit),
        2 => (0..5_000u64).prop_map(Step::Pass),
        2 => (index(), any::<bool>()).prop_map(|(at, slow)| Step::Success(at, slow)),
        3 => (index(), prop::option::of(0..10_000u64)).prop_map(|(at, asked)| Step::Failure(at, asked)),
        1 => index().prop_map(Step::Ignore),
        1 => Just(Step::Fault),
        1 => Just(Step::TryAgain),
    ]
}

proptest! {
    #[test]
    fn never_stuck_and_never_too_many_probes(probes in 1..4u32, steps in prop::collection::vec(step(), 0..300)) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(BreakerConfig { probes, ..config() }, now);
        let mut held: Vec<Ticket> = Vec::new();
        for step in steps {
            let pick = |at: prop::sample::Index| (!held.is_empty()).then(|| at.index(held.len()));
            match step {
                Step::Admit => match breaker.admit(now) {
                    Ok(ticket) => held.push(ticket),
                    Err(until) => prop_assert!(until >= now && until <= now + 10 * SECOND),
                },
                Step::Pass(millis) => now += Duration::from_millis(millis),
                Step::Success(at, slow) => if let Some(at) = pick(at) {
                    breaker.success(&held.swap_remove(at), now, slow);
                },
                Step::Failure(at, asked) => if let Some(at) = pick(at) {
                    let asked = asked.map(Duration::from_millis);
                    breaker.failure(&held.swap_remove(at), now, asked);
                },
                Step::Ignore(at) => if let Some(at) = pick(at) {
                    breaker.ignore(&held.swap_remove(at));
                },
                Step::Fault => breaker.fault(now, None),
                Step::TryAgain => breaker.try_again(now),
            }
            if let State::HalfOpen { under_way, well } = breaker.state {
                let probing = held.iter().filter(|ticket| ticket.epoch == breaker.epoch).count();
                prop_assert_eq!(under_way as usize, probing, "every probe is held by somebody");
                prop_assert!(under_way + well <= probes);
            }
        }
        // Whatever happened: let everything go, wait, and good calls close it.
        for ticket in held.drain(..) {
            breaker.ignore(&ticket);
        }
        now += 10 * SECOND;
        for _ in 0..=probes {
            let ticket = breaker.admit(now).unwrap();
            breaker.success(&ticket, now, false);
        }
        prop_assert_eq!(breaker.state(now).0, BreakerState::Closed);
    }
}
