//! Hedged requests, on paused time.

use super::speaker::{Line, Speaker, text};
use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn hedge(after: HedgeAfter, budget: f64) -> Option<Arc<Hedge>> {
    Some(Arc::new(Hedge::new(HedgeConfig { after, budget })))
}

/// A route over these, hedged after 100 ms.
fn hedged(pool: &mut Pool, speakers: &[(&str, &Arc<Speaker>)]) -> Plan {
    let targets = speakers.iter().map(|(name, speaker)| {
        let account = Arc::clone(speaker) as Arc<dyn Provider>;
        Target {
            member: pool.add(name, vec![account], all(), None),
            model: "m".into(),
            weight: 1,
        }
    });
    Plan {
        targets: targets.collect(),
        hedge: hedge(HedgeAfter::Fixed(100 * MILLI), 1.0),
        ..Plan::default()
    }
}

fn counts(pool: &Pool, at: usize) -> Counts {
    pool.members()[at].status().counts
}

#[tokio::test(start_paused = true)]
async fn the_first_token_wins_and_the_other_is_cancelled_at_once() {
    for streamed in [true, false] {
        let (slow, quick) = (Speaker::after(900, "slow"), Speaker::after(50, "quick"));
        let mut pool = pool();
        let route = hedged(&mut pool, &[("slow", &slow), ("quick", &quick)]);
        let asked = ChatRequest {
            stream: streamed,
            ..request()
        };
        let begun = Instant::now();
        let answer = pool.chat(&route, asked, None).await.unwrap();
        assert_eq!(begun.elapsed(), 150 * MILLI);
        assert_eq!((slow.held(), quick.held()), (0, 1), "it was let go of");
        assert_eq!(&*answer.provider, "quick");
        assert_eq!(
            answer.trail.to_string(),
            "slow/m lost (150 ms); quick/m hedge answered (50 ms)"
        );
        assert_eq!(super::text(answer).await.unwrap(), "quick");
        assert_eq!(in_flight(&pool), 0);
        // Nobody's fault.
        let Counts {
            cancelled, failed, ..
        } = counts(&pool, 0);
        assert_eq!((cancelled, failed), (1, 0));
        assert!(pool.members()[0].status().models.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_in_time_has_no_rival_and_who_is_late_may_still_win() {
    let first = Speaker::new([
        vec![Line::Wait(99), text("in time"), Line::Finish],
        vec![Line::Wait(120), text("late"), Line::Finish],
    ]);
    let second = Speaker::after(50, "second");
    let mut pool = pool();
    let route = hedged(&mut pool, &[("first", &first), ("second", &second)]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert!(answer.trail.is_plain());
    assert_eq!(super::text(answer).await.unwrap(), "in time");
    assert_eq!(second.asked(), 0);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "first/m answered (120 ms); second/m hedge lost (20 ms)"
    );
    assert_eq!((first.held(), second.held()), (1, 0));
    assert_eq!(super::text(answer).await.unwrap(), "late");
    assert_eq!(in_flight(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_one_leaves_the_other_and_of_both_the_rest() {
    let fails = |after, kind| vec![Line::Wait(after), Line::Fails(kind)];
    let internal = ErrorKind::ProviderInternal;
    let first = Speaker::new([
        fails(120, internal),
        vec![Line::Wait(200), text("first"), Line::Finish],
        fails(120, internal),
        vec![Line::Wait(200), text("first"), Line::Finish],
        fails(120, ErrorKind::InvalidRequest),
    ]);
    let second = Speaker::new([
        vec![Line::Wait(50), text("second"), Line::Finish],
        fails(50, internal),
        fails(50, internal),
        // What it finds wrong the first one may take.
        fails(50, ErrorKind::InvalidRequest),
        vec![Line::Wait(50), text("second"), Line::Finish],
    ]);
    let third = Speaker::after(500, "third");
    let mut pool = pool();
    let speakers = [("first", &first), ("second", &second), ("third", &third)];
    let route = hedged(&mut pool, &speakers);
    for (said, trail) in [
        (
            "second",
            "first/m failed: provider_internal (120 ms); second/m hedge answered (50 ms)",
        ),
        (
            "first",
            "first/m answered (200 ms); second/m hedge failed: provider_internal (50 ms)",
        ),
        (
            "third",
            "first/m failed: provider_internal (120 ms); second/m hedge failed: provider_internal (50 ms); \
             third/m answered (500 ms)",
        ),
        (
            "first",
            "first/m answered (200 ms); second/m hedge failed: invalid_request (50 ms)",
        ),
    ] {
        let answer = pool.chat(&route, request(), None).await.unwrap();
        assert_eq!(answer.trail.to_string(), trail);
        assert_eq!(super::text(answer).await.unwrap(), said);
    }
    // A request that is wrong in itself goes no further.
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::InvalidRequest);
    assert_eq!(
        failed.trail.to_string(),
        "first/m failed: invalid_request (120 ms); second/m hedge cancelled (20 ms)"
    );
    assert_eq!(third.asked(), 1);
    assert_eq!(in_flight(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_hedged_once_and_only_by_who_takes_it() {
    let slow = || Speaker::after(900, "slow");
    let (first, second, third) = (slow(), slow(), slow());
    let mut pool = pool();
    let speakers = [("first", &first), ("second", &second), ("third", &third)];
    let route = hedged(&mut pool, &speakers);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(&*answer.provider, "first");
    drop(answer);
    assert_eq!((first.asked(), second.asked(), third.asked()), (1, 1, 0));
    // The second is left alone for a while: the third is asked instead.
    let down = Speaker::new([vec![Line::Fails(ErrorKind::Overloaded)]]);
    let mut pool = super::pool();
    let route = hedged(
        &mut pool,
        &[("first", &first), ("down", &down), ("third", &third)],
    );
    let only = plan([route.targets[1].clone()]);
    for _ in 0..5 {
        let soon = Some(Instant::now() + MILLI);
        pool.chat(&only, request(), soon).await.unwrap_err();
    }
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "first/m answered (900 ms); down/m hedge skipped: breaker_open; third/m hedge lost (800 ms)"
    );
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_hedges_are_a_small_part_of_the_load() {
    let (slow, other) = (Speaker::after(900, "slow"), Speaker::after(900, "other"));
    let mut pool = pool();
    let mut route = hedged(&mut pool, &[("slow", &slow), ("other", &other)]);
    route.hedge = hedge(HedgeAfter::Fixed(100 * MILLI), 0.1);
    for _ in 0..500 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!(slow.asked(), 500);
    assert!((50..=60).contains(&other.asked()), "{}", other.asked());
    // Where nobody can be asked nothing is spent.
    let mut route = hedged(&mut pool, &[("alone", &slow)]);
    route.hedge = hedge(HedgeAfter::Fixed(100 * MILLI), 0.0001);
    for _ in 0..50 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    route.targets.push(Target {
        member: Arc::clone(&pool.members()[1]),
        model: "m".into(),
        weight: 1,
    });
    let before = other.asked();
    for _ in 0..50 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!(other.asked() - before, 10);
}

#[tokio::test(start_paused = true)]
async fn what_is_late_is_learned_from_the_target() {
    let usual = (0..100).map(|at| vec![Line::Wait(100 + at), text("usual"), Line::Finish]);
    let late = vec![Line::Wait(5000), text("late"), Line::Finish];
    let first = Speaker::new([late.clone()].into_iter().chain(usual).chain([late]));
    let second = Speaker::after(10, "second");
    let mut pool = pool();
    let mut route = hedged(&mut pool, &[("first", &first), ("second", &second)]);
    route.hedge = hedge(HedgeAfter::Percentile(95), 1.0);
    // Nothing is known yet.
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(&*answer.provider, "first");
    for _ in 0..100 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    let before = second.asked();
    let begun = Instant::now();
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(&*answer.provider, "second");
    assert_eq!(second.asked(), before + 1);
    let took = begun.elapsed();
    assert!((200 * MILLI..230 * MILLI).contains(&took), "{took:?}");
    // Whole answers are counted apart: of them nothing is known.
    let whole = ChatRequest {
        stream: false,
        ..request()
    };
    let begun = Instant::now();
    let answer = pool.chat(&route, whole, None).await.unwrap();
    assert_eq!(
        (&*answer.provider, begun.elapsed()),
        ("first", 5000 * MILLI)
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_frees_both() {
    for millis in [0, 50, 99, 101, 120, 149, 151, 200, 500] {
        let say = |after| {
            let lines = [Line::Wait(after), text("a"), Line::Wait(900), text("b")];
            Speaker::new([lines.into_iter().chain([Line::Finish]).collect()])
        };
        let (first, second) = (say(900), say(50));
        let mut pool = pool();
        let route = hedged(&mut pool, &[("first", &first), ("second", &second)]);
        let trail = Trail::default();
        let work = async {
            let asked = pool.chat_traced(&route, request(), None, &trail);
            super::text(asked.await.unwrap()).await.unwrap();
        };
        let given_up = tokio::time::timeout(millis * MILLI, work).await;
        assert!(given_up.is_err(), "{millis}");
        assert_eq!((first.held(), second.held()), (0, 0), "{millis}");
        assert_eq!(in_flight(&pool), 0, "{millis}");
        for at in [0, 1] {
            assert_eq!(counts(&pool, at).failed, 0);
            assert_eq!(counts(&pool, at).asked, counts(&pool, at).cancelled);
        }
        // What was tried is known all the same.
        let tried = trail.to_string();
        let end = match millis {
            0..100 => format!("first/m cancelled ({millis} ms)"),
            100..150 => format!("second/m hedge cancelled ({} ms)", millis - 100),
            _ => "second/m hedge answered (50 ms)".to_owned(),
        };
        assert!(tried.ends_with(&end), "{millis}: {tried}");
    }
}

/// One request at once.
fn one_at_once() -> Limits {
    Limits {
        max_in_flight: Some(1),
        ..Limits::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedge_is_asked_of_nobody_whose_limits_have_no_room() {
    let (slow, full) = (Speaker::after(900, "slow"), Speaker::after(50, "full"));
    let quick = Speaker::after(50, "quick");
    let mut pool = pool();
    let speakers = [("slow", &slow), ("full", &full), ("quick", &quick)];
    let route = hedged(&mut pool, &speakers);
    route.targets[1].member.limit(one_at_once());
    let only = plan([route.targets[1].clone()]);
    let held = pool.chat(&only, request(), None).await.unwrap();
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "slow/m lost (150 ms); full/m hedge skipped: limit_provider_in_flight; quick/m hedge answered (50 ms)"
    );
    let status = pool.members()[1].status();
    assert_eq!((status.waiting.0, status.counts.queued), (0, 0));
    drop((held, answer));
    assert_eq!((full.asked(), in_flight(&pool)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_had_no_room_for_a_hedge_is_waited_for_when_nobody_has_answered() {
    let failing = Speaker::new([vec![Line::Wait(200), Line::Fails(ErrorKind::Overloaded)]]);
    let full = Speaker::after(50, "full");
    let mut pool = pool();
    let route = hedged(&mut pool, &[("failing", &failing), ("full", &full)]);
    route.targets[1].member.limit(one_at_once());
    let only = plan([route.targets[1].clone()]);
    let held = pool.chat(&only, request(), None).await.unwrap();
    let (answer, ()) = tokio::join!(pool.chat(&route, request(), None), async {
        sleep(SECOND).await;
        drop(held);
    });
    let answer = answer.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "failing/m failed: overloaded (200 ms); \
         full/m hedge skipped: limit_provider_in_flight (800 ms); full/m answered (50 ms)"
    );
    assert_eq!(super::text(answer).await.unwrap(), "full");
    assert_eq!(in_flight(&pool), 0);
}
