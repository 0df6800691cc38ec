//! What the limits do with requests: who goes, who waits, who is sent away.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::event::Usage;
use crate::rate_limit::{Counted, RateLimits, RateWindow};

/// Answers at once, with this in its headers and its usage.
#[derive(Debug, Default)]
struct Telling {
    headers: Mutex<VecDeque<RateLimits>>,
    usage: Option<Usage>,
    asked: Mutex<Vec<Instant>>,
}

impl Telling {
    fn new(headers: impl IntoIterator<Item = RateLimits>) -> Arc<Self> {
        Arc::new(Self {
            headers: Mutex::new(headers.into_iter().collect()),
            ..Self::default()
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Provider for Telling {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        self.asked.lock().unwrap().push(Instant::now());
        let told = self.headers.lock().unwrap().pop_front();
        let mut events = VecDeque::from([Ok(Event::Text("Hi"))]);
        events.extend(self.usage.map(Event::Usage).map(Ok));
        events.push_back(Ok(Event::Finish(FinishReason::Stop)));
        let stream = ChatStream::new(Events(events));
        let stream = stream.with_rate_limits(told.unwrap_or_default());
        Box::pin(std::future::ready(Ok(stream)))
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn at_most(requests: u32) -> Limits {
    Limits {
        max_in_flight: Some(requests),
        ..Limits::default()
    }
}

fn per_minute(requests: u32) -> Rate {
    Rate {
        requests_per_minute: Some(requests),
        tokens_per_minute: None,
    }
}

/// A route to providers that answer at once, each with these limits.
fn limited<const N: usize>(pool: &mut Pool, limits: [Limits; N]) -> ([Arc<Scripted>; N], Plan) {
    let providers: [_; N] = std::array::from_fn(|_| Scripted::new([Does::Answers]));
    let mut targets = Vec::new();
    for (at, limits) in limits.into_iter().enumerate() {
        let target = target(pool, &format!("p{at}"), &[&providers[at]]);
        target.member.limit(limits);
        targets.push(target);
    }
    (providers, plan(targets))
}

fn told(remaining: u64, reset: Duration) -> RateLimits {
    Box::new([RateWindow {
        counts: Counted::Requests,
        limit: Some(60),
        remaining,
        reset,
    }])
}

fn urgent(priority: Priority) -> Caller {
    Caller {
        priority,
        ..Caller::default()
    }
}

fn waiting(pool: &Pool) -> usize {
    pool.members()[0].status().waiting.0
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_until_there_is_room_and_the_trail_says_so() {
    let mut pool = pool();
    let (_, route) = limited(&mut pool, [at_most(1)]);
    let first = pool.chat(&route, request(), None).await.unwrap();
    let (second, ()) = tokio::join!(pool.chat(&route, request(), None), async {
        sleep(2 * SECOND).await;
        assert_eq!(waiting(&pool), 1);
        assert_eq!(text(first).await.unwrap(), "Hi");
    });
    let second = second.unwrap();
    assert_eq!(
        second.trail.to_string(),
        "p0/m skipped: limit_provider_in_flight (2000 ms); p0/m answered (0 ms)"
    );
    assert_eq!(text(second).await.unwrap(), "Hi");
    let status = pool.members()[0].status();
    assert_eq!((status.counts.queued, status.counts.shed), (1, 0));
    assert_eq!((in_flight(&pool), waiting(&pool)), (0, 0));
    assert_eq!(status.limits[0].left, 1);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_queue_ends_at_once() {
    let mut pool = pool();
    let limits = Limits {
        queue: 1,
        ..at_most(1)
    };
    let (providers, route) = limited(&mut pool, [limits]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    let mut queued = pin!(pool.chat(&route, request(), None));
    assert!(tokio::time::timeout(SECOND, &mut queued).await.is_err());
    let begun = Instant::now();
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(failed.error.kind, ErrorKind::Shed);
    assert_eq!(
        failed.trail.to_string(),
        "p0/m skipped: limit_provider_in_flight; p0/m skipped: queue_full"
    );
    drop(held);
    drop(queued.await.unwrap());
    assert_eq!(providers[0].asked(), 2);
    assert_eq!(pool.members()[0].counts().shed, 1);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_frees_its_place() {
    let mut pool = pool();
    let limits = Limits {
        queue: 1,
        ..at_most(1)
    };
    let (_, route) = limited(&mut pool, [limits]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    for _ in 0..3 {
        let asking = pool.chat(&route, request(), None);
        assert!(tokio::time::timeout(SECOND, asking).await.is_err());
        assert_eq!(waiting(&pool), 0);
    }
    // One that was let in and goes before it knows.
    let mut queued = Box::pin(pool.chat(&route, request(), None));
    assert!(tokio::time::timeout(SECOND, &mut queued).await.is_err());
    drop(held);
    drop(queued);
    assert_eq!(in_flight(&pool), 0);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert!(answer.trail.is_plain());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_configured_or_than_the_deadline_allows() {
    let mut pool = pool();
    let limits = Limits {
        queue_wait: 5 * SECOND,
        ..at_most(1)
    };
    let (_, route) = limited(&mut pool, [limits]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    for (deadline, seconds, why) in [(9, 5, "queue_timeout"), (3, 3, "queue_deadline")] {
        let begun = Instant::now();
        let deadline = Some(begun + deadline * SECOND);
        let failed = pool.chat(&route, request(), deadline).await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), seconds);
        assert_eq!(failed.error.kind, ErrorKind::Shed, "{failed}");
        let attempts = failed.trail.attempts();
        let last = attempts.last().unwrap();
        assert_eq!(last.outcome.to_string(), format!("skipped: {why}"));
        assert_eq!(last.took.as_secs(), 0);
        assert_eq!(attempts[0].took.as_secs(), seconds);
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_before_its_deadline_is_not_kept() {
    let mut pool = pool();
    let slow = Scripted::new([Does::AnswersAfter(10 * SECOND)]);
    let route = plan([target(&mut pool, "slow", &[&slow])]);
    pool.members()[0].limit(at_most(1));
    // So the pool knows how long its answers take.
    let answer = pool.chat(&route, request(), None).await.unwrap();
    text(answer).await.unwrap();
    let held = pool.chat(&route, request(), None).await.unwrap();
    let begun = Instant::now();
    let deadline = Some(begun + 15 * SECOND);
    let failed = pool.chat(&route, request(), deadline).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO, "{}", failed.trail);
    assert_eq!(failed.error.kind, ErrorKind::Shed);
    assert_eq!(failed.error.retry_after, Some(10 * SECOND));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn the_urgent_go_first_and_bulk_keeps_a_share() {
    let mut pool = pool();
    let (_, route) = limited(&mut pool, [at_most(1)]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    let order = Mutex::new(Vec::new());
    let one = async |priority| {
        let answer = pool
            .chat(&route, request(), urgent(priority))
            .await
            .unwrap();
        order.lock().unwrap().push(priority);
        sleep(SECOND).await;
        text(answer).await.unwrap();
    };
    let all = [
        Priority::Bulk,
        Priority::Normal,
        Priority::Interactive,
        Priority::Interactive,
        Priority::Interactive,
        Priority::Interactive,
    ];
    let everybody = async {
        let mut asking: Vec<_> = all
            .into_iter()
            .map(|priority| Box::pin(one(priority)))
            .collect();
        std::future::poll_fn(|cx| {
            asking.retain_mut(|asking| asking.as_mut().poll(cx).is_pending());
            match asking.is_empty() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    };
    tokio::join!(everybody, async {
        sleep(SECOND).await;
        drop(held);
    });
    let order = order.into_inner().unwrap();
    let letters: String = order
        .iter()
        .map(|priority| format!("{priority:?}").chars().next().unwrap())
        .collect();
    assert_eq!(letters, "IIINIB");
}

#[tokio::test(start_paused = true)]
async fn a_more_urgent_request_takes_the_place_of_the_last_one_in_a_full_queue() {
    let mut pool = pool();
    let limits = Limits {
        queue: 2,
        ..at_most(1)
    };
    let (_, route) = limited(&mut pool, [limits]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    let mut first = pin!(pool.chat(&route, request(), urgent(Priority::Bulk)));
    let mut last = pin!(pool.chat(&route, request(), urgent(Priority::Bulk)));
    assert!(tokio::time::timeout(SECOND, &mut first).await.is_err());
    assert!(tokio::time::timeout(SECOND, &mut last).await.is_err());
    let mut quick = pin!(pool.chat(&route, request(), urgent(Priority::Interactive)));
    assert!(tokio::time::timeout(SECOND, &mut quick).await.is_err());
    let failed = last.await.unwrap_err();
    assert!(
        failed.trail.to_string().ends_with("queue_displaced"),
        "{}",
        failed.trail
    );
    let another = pool.chat(&route, request(), urgent(Priority::Interactive));
    let failed = another.await.unwrap_err();
    assert!(
        failed.trail.to_string().ends_with("queue_full"),
        "bulk keeps its place"
    );
    drop(held);
    drop(quick.await.unwrap());
    drop(first.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_next_target_is_tried_before_anybody_waits() {
    let mut pool = pool();
    let (providers, route) = limited(&mut pool, [at_most(1), at_most(1)]);
    let first = pool.chat(&route, request(), None).await.unwrap();
    let second = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(
        second.trail.to_string(),
        "p0/m skipped: limit_provider_in_flight; p1/m answered (0 ms)"
    );
    // Both are full: whoever has room first is asked.
    let (third, ()) = tokio::join!(pool.chat(&route, request(), None), async {
        sleep(SECOND).await;
        drop(second);
    });
    let third = third.unwrap();
    assert_eq!(&*third.provider, "p1");
    assert_eq!(
        third.trail.to_string(),
        "p0/m skipped: limit_provider_in_flight; p1/m skipped: limit_provider_in_flight (1000 ms); p1/m answered (0 ms)"
    );
    assert_eq!(waiting(&pool), 0, "its place in the other line is free");
    drop((first, third));
    assert_eq!((providers[0].asked(), providers[1].asked()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn who_is_let_in_somewhere_keeps_no_place_elsewhere() {
    let mut pool = pool();
    let slow = Scripted::new([Does::Answers, Does::AnswersAfter(10 * SECOND)]);
    let other = Scripted::new([Does::Answers]);
    let targets = [("a", &slow), ("b", &other)].map(|(name, provider)| {
        let target = target(&mut pool, name, &[provider]);
        target.member.limit(at_most(1));
        target
    });
    let route = plan(targets);
    let first = pool.chat(&route, request(), None).await.unwrap();
    let second = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!((&*first.provider, &*second.provider), ("a", "b"));
    let mut third = pin!(pool.chat(&route, request(), None));
    assert!(tokio::time::timeout(SECOND, &mut third).await.is_err());
    drop(first);
    assert!(tokio::time::timeout(SECOND, &mut third).await.is_err());
    assert_eq!(slow.asked(), 2, "it was let in, and its answer is slow");
    // Now the other one is free, too: it is not this one's.
    drop(second);
    let begun = Instant::now();
    let fourth = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!((&*fourth.provider, begun.elapsed()), ("b", Duration::ZERO));
    assert_eq!(&*third.await.unwrap().provider, "a");
    drop(fourth);
    assert_eq!((in_flight(&pool), waiting(&pool)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whose_turn_came_to_nothing_waits_elsewhere_and_no_longer_in_all() {
    for (seconds, is_in_time) in [(2, true), (4, false)] {
        let mut config = PoolConfig::default();
        config.retries.attempts = 1;
        let mut pool = Pool::new(config);
        let bad = Scripted::new([Does::Answers, Does::Fails(ErrorKind::Overloaded)]);
        let good = Scripted::new([Does::Answers]);
        let targets = [("a", &bad), ("b", &good)].map(|(name, provider)| {
            let target = target(&mut pool, name, &[provider]);
            target.member.limit(Limits {
                queue_wait: 5 * SECOND,
                ..at_most(1)
            });
            target
        });
        let route = plan(targets);
        let first = pool.chat(&route, request(), None).await.unwrap();
        let second = pool.chat(&route, request(), None).await.unwrap();
        let begun = Instant::now();
        let asking = async {
            let outcome = pool.chat(&route, request(), None).await;
            (outcome, begun.elapsed().as_secs())
        };
        let (third, ()) = tokio::join!(asking, async {
            sleep(2 * SECOND).await;
            drop(first);
            sleep(seconds * SECOND).await;
            drop(second);
        });
        match third {
            (Ok(answer), 4) if is_in_time => assert_eq!(
                answer.trail.to_string(),
                "a/m skipped: limit_provider_in_flight (2000 ms); b/m skipped: limit_provider_in_flight (4000 ms); \
                 a/m failed: overloaded (0 ms); b/m answered (0 ms)"
            ),
            (Err(failed), 5) if !is_in_time => {
                let trail = failed.trail.to_string();
                assert!(trail.ends_with("b/m skipped: queue_timeout"), "{trail}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!((in_flight(&pool), waiting(&pool)), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_sent_away_holds_up_nobody_behind_it() {
    let mut pool = pool();
    let tokens = Rate {
        requests_per_minute: None,
        tokens_per_minute: Some(600),
    };
    let limits = Limits {
        rate: tokens,
        queue_wait: 20 * SECOND,
        ..Limits::default()
    };
    let (_, route) = limited(&mut pool, [limits]);
    let of = |tokens: u32| ChatRequest {
        max_tokens: Some(tokens - 5),
        ..request()
    };
    // Under way all the time, so that nothing is put right.
    let held = pool.chat(&route, of(600), None).await.unwrap();
    let begun = Instant::now();
    let small = async {
        let answer = pool.chat(&route, of(100), urgent(Priority::Bulk)).await;
        (answer.map(drop), begun.elapsed().as_secs())
    };
    let ((answer, seconds), ()) = tokio::join!(small, async {
        sleep(SECOND).await;
        // It would have to wait for too long.
        let large = pool.chat(&route, of(500), urgent(Priority::Interactive));
        let failed = large.await.unwrap_err();
        assert_eq!(failed.error.kind, ErrorKind::RateLimited);
        assert_eq!(begun.elapsed(), SECOND);
    });
    answer.unwrap();
    assert_eq!(seconds, 10);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_holds_up_nobody_behind_it() {
    let mut pool = pool();
    let limits = Limits {
        rate: Rate {
            requests_per_minute: None,
            tokens_per_minute: Some(600),
        },
        queue_wait: 100 * SECOND,
        ..Limits::default()
    };
    let (_, route) = limited(&mut pool, [limits]);
    let pool = Arc::new(pool);
    let of = |tokens: u32| ChatRequest {
        max_tokens: Some(tokens - 5),
        ..request()
    };
    let held = pool.chat(&route, of(600), None).await.unwrap();
    let begun = Instant::now();
    let mut large = Box::pin(pool.chat(&route, of(500), urgent(Priority::Interactive)));
    assert!(tokio::time::timeout(SECOND, &mut large).await.is_err());
    // In a task of its own: nothing but its turn wakes it.
    let small = tokio::spawn({
        let (pool, route, request) = (Arc::clone(&pool), route.clone(), of(100));
        async move {
            let answer = pool.chat(&route, request, urgent(Priority::Bulk)).await;
            (answer.map(drop), begun.elapsed().as_secs())
        }
    });
    sleep(2 * SECOND).await;
    // It sleeps until the large one's turn, which does not come.
    drop(large);
    let (answer, seconds) = small.await.unwrap();
    answer.unwrap();
    assert_eq!(seconds, 10);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_model_has_limits_of_its_own_and_does_not_hold_up_others() {
    let mut pool = pool();
    let limits = Limits {
        models: vec![(
            "large".into(),
            ModelLimits {
                max_in_flight: Some(1),
                rate: Rate::default(),
            },
        )],
        ..at_most(3)
    };
    let (_, route) = limited(&mut pool, [limits]);
    let of = |model: &str| {
        plan([Target {
            model: model.into(),
            ..route.targets[0].clone()
        }])
    };
    let (large, small) = (of("large"), of("small"));
    let held = pool.chat(&large, request(), None).await.unwrap();
    let mut queued = pin!(pool.chat(&large, request(), None));
    assert!(tokio::time::timeout(SECOND, &mut queued).await.is_err());
    let other = pool.chat(&small, request(), None).await.unwrap();
    assert!(other.trail.is_plain());
    drop(held);
    let answer = queued.await.unwrap();
    assert!(answer.trail.to_string().contains("limit_model_in_flight"));
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_waited_for_or_refused_with_the_time_to_wait() {
    let mut pool = pool();
    let limits = Limits {
        rate: per_minute(6),
        queue_wait: 15 * SECOND,
        ..Limits::default()
    };
    let (providers, route) = limited(&mut pool, [limits]);
    for _ in 0..6 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    let begun = Instant::now();
    let ask = async || {
        let outcome = pool.chat(&route, request(), None).await;
        (outcome, begun.elapsed().as_secs())
    };
    let ((seventh, ten), (eighth, fifteen)) = tokio::join!(ask(), ask());
    assert_eq!(
        seventh.unwrap().trail.to_string(),
        "p0/m skipped: limit_provider_requests (10000 ms); p0/m answered (0 ms)"
    );
    assert_eq!(eighth.unwrap_err().error.kind, ErrorKind::Shed);
    assert_eq!((ten, fifteen), (10, 15));
    // With less patience than that, it ends at once.
    let member = &pool.members()[0];
    member.limit(Limits {
        rate: per_minute(1),
        ..Limits::default()
    });
    drop(pool.chat(&route, request(), None).await.unwrap());
    let begun = Instant::now();
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(failed.error.kind, ErrorKind::RateLimited);
    assert_eq!(failed.error.retry_after, Some(60 * SECOND));
    assert_eq!(providers[0].asked(), 8);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_estimated_before_and_put_right_after() {
    let mut pool = pool();
    let usage = Usage {
        input_tokens: 10,
        output_tokens: 90,
        ..Usage::default()
    };
    let telling = Arc::new(Telling {
        usage: Some(usage),
        ..Telling::default()
    });
    let member = pool.add("p", vec![telling.clone()], all(), None);
    member.limit(Limits {
        rate: Rate {
            requests_per_minute: None,
            tokens_per_minute: Some(6000),
        },
        ..Limits::default()
    });
    let route = plan([Target {
        member: Arc::clone(&member),
        model: "m".into(),
        weight: 1,
    }]);
    let large = || ChatRequest {
        max_tokens: Some(4000),
        ..request()
    };
    let left = || member.status().limits[0].left;
    let answer = pool.chat(&route, large(), None).await.unwrap();
    assert_eq!(left(), 6000 - 4005);
    text(answer).await.unwrap();
    assert_eq!(left(), 5900);
    // What was cancelled costs what was said so far.
    let mut answer = pool.chat(&route, large(), None).await.unwrap();
    assert!(matches!(
        answer.given.next().await,
        Some(Ok(Event::Text(_)))
    ));
    drop(answer);
    assert_eq!(left(), 5900 - 5 - 1);
    // What failed costs nothing.
    let down = Scripted::new([Does::Fails(ErrorKind::InvalidRequest)]);
    let failing = target(&mut pool, "down", &[&down]);
    failing.member.limit(Limits {
        rate: Rate {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(6000),
        },
        ..Limits::default()
    });
    pool.chat(&plan([failing.clone()]), large(), None)
        .await
        .unwrap_err();
    let left: Vec<u64> = failing
        .member
        .status()
        .limits
        .iter()
        .map(|limit| limit.left)
        .collect();
    assert_eq!(left, [59, 6000]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_has_nothing_left_rests_instead_of_collecting_a_429() {
    let mut pool = pool();
    let spent = Telling::new([told(0, 20 * SECOND)]);
    let other = Telling::new([told(50, 20 * SECOND), told(0, 40 * SECOND)]);
    let accounts: Vec<Arc<dyn Provider>> = vec![spent.clone(), other.clone()];
    let member = pool.add("p", accounts, all(), None);
    let route = plan([Target {
        member: Arc::clone(&member),
        model: "m".into(),
        weight: 1,
    }]);
    for _ in 0..3 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!((spent.asked(), other.asked()), (1, 2));
    let status = member.status();
    let learned: Vec<_> = status
        .limits
        .iter()
        .map(|limit| (limit.key, limit.left))
        .collect();
    assert_eq!(learned, [(Some(1), 0), (Some(2), 0)]);
    // Now both have nothing left: the first reset is waited for.
    let begun = Instant::now();
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 20);
    assert_eq!(
        answer.trail.to_string(),
        "p/m skipped: limit_key_requests (20000 ms); p/m key 1 answered (0 ms)"
    );
    // Another model has limits of its own.
    drop(answer);
    let elsewhere = Target {
        model: "n".into(),
        ..route.targets[0].clone()
    };
    assert!(pool.chat(&plan([elsewhere]), request(), None).await.is_ok());
    member.limit(Limits {
        learn: false,
        ..Limits::default()
    });
    other
        .headers
        .lock()
        .unwrap()
        .push_back(told(0, 40 * SECOND));
    for _ in 0..4 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!(member.status().limits, [], "somebody does not want to know");
}

#[tokio::test(start_paused = true)]
async fn a_client_has_limits_whoever_answers() {
    let mut pool = pool();
    pool.limit_clients(per_minute(2), vec![(7, Rate::default())]);
    let (providers, route) = limited(&mut pool, [Limits::default()]);
    let of = |uid| Caller {
        uid: Some(uid),
        ..Caller::default()
    };
    for _ in 0..2 {
        drop(pool.chat(&route, request(), of(1)).await.unwrap());
    }
    let failed = pool.chat(&route, request(), of(1)).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::RateLimited);
    assert_eq!(failed.error.retry_after, Some(30 * SECOND));
    assert_eq!(
        failed.trail.to_string(),
        "p0/m skipped: limit_client_requests"
    );
    assert_eq!(providers[0].asked(), 2);
    assert!(pool.chat(&route, request(), of(2)).await.is_ok());
    assert!(pool.chat(&route, request(), None).await.is_ok());
    for _ in 0..5 {
        assert!(pool.chat(&route, request(), of(7)).await.is_ok());
    }
    sleep(30 * SECOND).await;
    assert!(pool.chat(&route, request(), of(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_are_told_when_the_breaker_opens() {
    let config = PoolConfig {
        breaker: BreakerConfig {
            min_calls: 1,
            ..BreakerConfig::default()
        },
        ..PoolConfig::default()
    };
    let mut pool = Pool::new(config);
    let breaking = Scripted::new([Does::BreaksOff]);
    let route = plan([target(&mut pool, "p", &[&breaking])]);
    pool.members()[0].limit(at_most(1));
    let held = pool.chat(&route, request(), None).await.unwrap();
    let begun = Instant::now();
    let deadline = Some(begun + 4 * SECOND);
    let (waited, ()) = tokio::join!(pool.chat(&route, request(), deadline), async {
        sleep(SECOND).await;
        text(held).await.unwrap_err();
    });
    assert_eq!(waited.unwrap_err().error.kind, ErrorKind::CircuitOpen);
    assert_eq!(begun.elapsed(), SECOND);
    assert_eq!((in_flight(&pool), waiting(&pool)), (0, 0));
}

/// Knows how many of its answers are under way, and how many there were at most.
#[derive(Debug, Default)]
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One that is under way, until it says its last word or is dropped.
struct UnderWay(Arc<Counting>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Telltale(Option<UnderWay>, Events);

impl EventStream for Telltale {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.1.poll_ready(cx)
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        let event = self.1.take();
        if matches!(event, Some(Ok(Event::Finish(_)))) {
            self.0 = None;
        }
        event
    }
}

#[derive(Debug)]
struct Shared(Arc<Counting>);

impl Provider for Shared {
    fn chat<'a>(
        &'a self,
        request: &'a ChatRequest,
    ) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        let now = self.0.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.most.fetch_max(now, Ordering::Relaxed);
        let under_way = UnderWay(Arc::clone(&self.0));
        let millis = u64::from(request.max_tokens.unwrap_or(1));
        Box::pin(async move {
            sleep(Duration::from_millis(millis)).await;
            if millis.is_multiple_of(7) {
                return Err(ProviderError::new(ErrorKind::InvalidRequest, ""));
            }
            let events = [Ok(Event::Text("Hi")), Ok(Event::Finish(FinishReason::Stop))];
            Ok(ChatStream::new(Telltale(
                Some(under_way),
                Events(events.into()),
            )))
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_at_once_keep_to_the_limits_and_each_ends() {
    let mut pool = pool();
    let counting = Arc::new(Counting::default());
    let account = || Arc::new(Shared(Arc::clone(&counting))) as Arc<dyn Provider>;
    let member = pool.add("p", vec![account(), account()], all(), None);
    member.limit(Limits {
        queue: 500,
        queue_wait: 20 * SECOND,
        ..at_most(8)
    });
    let route = plan([Target {
        member: Arc::clone(&member),
        model: "m".into(),
        weight: 1,
    }]);
    let (pool, route) = (Arc::new(pool), Arc::new(route));
    let mut all = tokio::task::JoinSet::new();
    for number in 0..1000u32 {
        let (pool, route) = (Arc::clone(&pool), Arc::clone(&route));
        all.spawn(async move {
            let asked = ChatRequest {
                max_tokens: Some(1 + number * 37 % 400),
                stream: !number.is_multiple_of(3),
                ..request()
            };
            let begun = Instant::now();
            let caller = Caller {
                deadline: number.is_multiple_of(2).then(|| begun + 5 * SECOND),
                priority: [Priority::Interactive, Priority::Normal, Priority::Bulk]
                    [number as usize % 3],
                uid: None,
            };
            let work = async {
                match pool.chat(&route, asked, caller).await {
                    Ok(answer) => text(answer).await.map_err(|error| error.kind),
                    Err(failed) => Err(failed.error.kind),
                }
            };
            if number.is_multiple_of(11) {
                // Gives up, wherever it is then.
                let patience = Duration::from_millis(u64::from(number * 3));
                return tokio::time::timeout(patience, work).await.ok();
            }
            let outcome = work.await;
            assert!(begun.elapsed() <= 21 * SECOND);
            Some(outcome)
        });
    }
    let outcomes = all.join_all().await;
    let count = |kind| {
        outcomes
            .iter()
            .flatten()
            .filter(|outcome| **outcome == Err(kind))
            .count()
    };
    let right = outcomes
        .iter()
        .flatten()
        .filter(|outcome| outcome.is_ok())
        .count();
    let (shed, wrong) = (count(ErrorKind::Shed), count(ErrorKind::InvalidRequest));
    let late = count(ErrorKind::TimedOut(Phase::Deadline));
    let gone = outcomes.iter().filter(|outcome| outcome.is_none()).count();
    assert_eq!(right + shed + wrong + late + gone, 1000, "{outcomes:?}");
    assert!(
        right > 100 && shed > 100 && gone > 0,
        "{right} {shed} {gone}"
    );
    assert_eq!(counting.most.load(Ordering::Relaxed), 8);
    assert_eq!(counting.now.load(Ordering::Relaxed), 0);
    let status = member.status();
    let counts = status.counts;
    assert_eq!(
        (counts.in_flight, status.waiting.0, status.limits[0].left),
        (0, 0, 8)
    );
    assert_eq!(
        counts.asked,
        counts.answered + counts.failed + counts.cancelled
    );
    assert_eq!(counts.shed as usize, shed);
}

#[tokio::test(start_paused = true)]
async fn vectors_and_counts_keep_to_the_limits_as_chats_do() {
    let mut pool = pool();
    let limits = Limits {
        rate: Rate {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(100),
        },
        ..at_most(1)
    };
    let (_, route) = limited(&mut pool, [limits]);
    let held = pool.chat(&route, request(), None).await.unwrap();
    let vectors = EmbeddingRequest {
        input: vec!["x".repeat(40)],
        ..EmbeddingRequest::default()
    };
    let soon = Some(Instant::now() + SECOND);
    let failed = pool.embed(&route, vectors.clone(), soon).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::Shed, "{}", failed.trail);
    drop(held);
    sleep(600 * SECOND).await;
    pool.embed(&route, vectors, None).await.unwrap();
    pool.count_tokens(&route, request(), None).await.unwrap();
    let status = pool.members()[0].status();
    let left: Vec<u64> = status.limits.iter().map(|limit| limit.left).collect();
    assert_eq!(left, [1, 58, 90]);
}
