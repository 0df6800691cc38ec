//! The policies together, with scripted providers on paused time.

mod continuing;
mod hedging;
mod probing;
mod speaker;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Mutex;
use std::task::{Context, Poll};

mod limits;

use super::*;
use crate::chat::{Message, ModelInfo, ResponseFormat, Tool};
use crate::error::Phase;
use crate::event::{Event, FinishReason};
use crate::profile::Feature;
use crate::provider::{BoxFuture, EventStream};

const SECOND: Duration = Duration::from_secs(1);

/// What a scripted provider does with the next request.
#[derive(Clone, Debug)]
enum Does {
    Answers,
    AnswersAfter(Duration),
    Fails(ErrorKind),
    FailsFor(ErrorKind, Duration),
    Hangs,
    /// Begins, says a word, breaks off.
    BreaksOff,
    /// Begins without a word, breaks off.
    BreaksOffAtOnce,
}

#[derive(Debug)]
struct Scripted {
    /// What it does first; then the last of these for ever.
    script: Mutex<VecDeque<Does>>,
    asked: Mutex<Vec<Instant>>,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Does>) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn does(&self) -> Does {
        self.asked.lock().unwrap().push(Instant::now());
        let mut script = self.script.lock().unwrap();
        let first = script.pop_front().unwrap();
        if script.is_empty() {
            script.push_back(first.clone());
        }
        first
    }
}

struct Events(VecDeque<Result<Event<'static>, ProviderError>>);

impl EventStream for Events {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<Result<Event<'_>, ProviderError>> {
        self.0.pop_front()
    }
}

impl Provider for Scripted {
    fn chat<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<ChatStream, ProviderError>> {
        let start = Ok(Event::Start {
            id: None,
            model: None,
        });
        let cut = || Err(ProviderError::new(ErrorKind::StreamCut, "cut"));
        let finish = Ok(Event::Finish(FinishReason::Stop));
        let does = self.does();
        Box::pin(async move {
            let events = match does {
                Does::Answers => vec![start, Ok(Event::Text("Hi")), finish],
                Does::AnswersAfter(wait) => {
                    sleep(wait).await;
                    vec![start, Ok(Event::Text("Hi")), finish]
                }
                Does::Fails(kind) => return Err(ProviderError::new(kind, "")),
                Does::FailsFor(kind, wait) => {
                    let mut error = ProviderError::new(kind, "");
                    error.retry_after = Some(wait);
                    return Err(error);
                }
                Does::Hangs => pending().await,
                Does::BreaksOff => vec![start, Ok(Event::Text("H")), cut()],
                Does::BreaksOffAtOnce => vec![start, cut()],
            };
            Ok(ChatStream::new(Events(events.into())))
        })
    }

    fn models(&self) -> BoxFuture<'_, Result<Vec<ModelInfo>, ProviderError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn embed<'a>(
        &'a self,
        _: &'a EmbeddingRequest,
    ) -> BoxFuture<'a, Result<Embeddings, ProviderError>> {
        let does = self.does();
        Box::pin(async move { simply(does).await.map(|()| Embeddings::default()) })
    }

    fn count_tokens<'a>(&'a self, _: &'a ChatRequest) -> BoxFuture<'a, Result<u64, ProviderError>> {
        let does = self.does();
        Box::pin(async move { simply(does).await.map(|()| 17) })
    }
}

/// The same where nothing is streamed.
async fn simply(does: Does) -> Result<(), ProviderError> {
    match does {
        Does::Answers => Ok(()),
        Does::Fails(kind) => Err(ProviderError::new(kind, "")),
        Does::Hangs => pending().await,
        other => panic!("{other:?} is for chats"),
    }
}

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

fn all() -> Features {
    Features::of(Feature::ALL)
}

fn target(pool: &mut Pool, name: &str, accounts: &[&Arc<Scripted>]) -> Target {
    let dynamic = |account: &&Arc<Scripted>| Arc::clone(account) as Arc<dyn Provider>;
    let accounts = accounts.iter().map(dynamic).collect();
    Target {
        member: pool.add(name, accounts, all(), None),
        model: "m".into(),
        weight: 1,
    }
}

fn plan(targets: impl IntoIterator<Item = Target>) -> Plan {
    Plan {
        targets: targets.into_iter().collect(),
        ..Plan::default()
    }
}

fn request() -> ChatRequest {
    ChatRequest::new("").with(Message::user("Hi"))
}

fn in_flight(pool: &Pool) -> u64 {
    pool.members()
        .iter()
        .map(|member| member.counts().in_flight)
        .sum()
}

async fn text(answer: Answer) -> Result<String, ProviderError> {
    answer.given.collect().await.map(|response| response.text)
}

#[tokio::test(start_paused = true)]
async fn the_next_target_answers_where_one_fails_before_its_first_token() {
    let mut pool = pool();
    let bad = Scripted::new([
        Does::BreaksOffAtOnce,
        Does::Fails(ErrorKind::Authentication),
    ]);
    let good = Scripted::new([Does::Answers]);
    let route = plan([
        target(&mut pool, "bad", &[&bad]),
        target(&mut pool, "good", &[&good]),
    ]);
    for expected in ["stream_cut", "authentication"] {
        let answer = pool.chat(&route, request(), None).await.unwrap();
        assert_eq!(
            answer.trail.to_string(),
            format!("bad/m failed: {expected} (0 ms); good/m answered (0 ms)")
        );
        assert_eq!(&*answer.provider, "good");
        assert_eq!(text(answer).await.unwrap(), "Hi");
    }
    assert_eq!(in_flight(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_begun_is_never_asked_again_but_a_whole_answer_is() {
    let mut pool = pool();
    let bad = Scripted::new([Does::BreaksOff]);
    let good = Scripted::new([Does::Answers]);
    let route = plan([
        target(&mut pool, "bad", &[&bad]),
        target(&mut pool, "good", &[&good]),
    ]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(text(answer).await.unwrap_err().kind, ErrorKind::StreamCut);
    assert_eq!((bad.asked(), good.asked()), (1, 0));
    let whole = ChatRequest {
        stream: false,
        ..request()
    };
    let answer = pool.chat(&route, whole, None).await.unwrap();
    assert_eq!(text(answer).await.unwrap(), "Hi");
    assert_eq!((bad.asked(), good.asked()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_gathered_up_to_a_bound() {
    for (pieces, expected) in [
        (130_000, None),
        (400_000, Some(ErrorKind::MalformedResponse)),
    ] {
        let mut pool = pool();
        let mut lines = vec![speaker::Line::Call; pieces];
        lines.push(speaker::Line::Finish);
        let speaker = speaker::Speaker::new([lines]);
        let member = pool.add("p", vec![speaker.clone()], all(), None);
        let route = plan([Target {
            member,
            model: "m".into(),
            weight: 1,
        }]);
        let whole = ChatRequest {
            stream: false,
            ..request()
        };
        let answer = pool.chat(&route, whole, None).await;
        let kind = answer.err().map(|failed| failed.error.kind);
        assert_eq!(kind, expected, "{pieces}");
        assert_eq!(
            (speaker.asked(), speaker.held(), in_flight(&pool)),
            (1, 0, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_fault_goes_nowhere_else() {
    let mut pool = pool();
    let bad = Scripted::new([Does::Fails(ErrorKind::InvalidRequest)]);
    let other = Scripted::new([Does::Answers]);
    let route = plan([
        target(&mut pool, "bad", &[&bad]),
        target(&mut pool, "other", &[&other]),
    ]);
    for _ in 0..100 {
        let failed = pool.chat(&route, request(), None).await.unwrap_err();
        assert_eq!(failed.error.kind, ErrorKind::InvalidRequest);
    }
    assert_eq!(other.asked(), 0);
    assert_eq!(bad.asked(), 100, "and opens no breaker");
}

#[tokio::test(start_paused = true)]
async fn it_waits_as_long_as_the_provider_asks_and_no_longer_than_the_deadline_allows() {
    let mut pool = pool();
    let busy = Scripted::new([
        Does::FailsFor(ErrorKind::Overloaded, 7 * SECOND),
        Does::Answers,
    ]);
    let limited = Scripted::new([
        Does::FailsFor(ErrorKind::RateLimited, 7 * SECOND),
        Does::Answers,
    ]);
    for (name, provider) in [("busy", &busy), ("limited", &limited)] {
        let route = plan([target(&mut pool, name, &[provider])]);
        let begun = Instant::now();
        let answer = pool.chat(&route, request(), None).await.unwrap();
        assert_eq!(text(answer).await.unwrap(), "Hi");
        assert_eq!(begun.elapsed().as_secs(), 7, "{name}");
    }
    let slow = Scripted::new([Does::FailsFor(ErrorKind::Overloaded, 7 * SECOND)]);
    let route = plan([target(&mut pool, "slow", &[&slow])]);
    let begun = Instant::now();
    let failed = pool.chat(&route, request(), Some(begun + 6 * SECOND)).await;
    assert_eq!(failed.unwrap_err().error.kind, ErrorKind::Overloaded);
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "it could not be over in time"
    );
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(
        (failed.error.kind, slow.asked()),
        (ErrorKind::Overloaded, 3)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_for_longer_than_we_wait_is_passed_on() {
    let mut pool = pool();
    let busy = Scripted::new([Does::FailsFor(ErrorKind::RateLimited, 60 * SECOND)]);
    let route = plan([target(&mut pool, "busy", &[&busy])]);
    for asked in [60 * SECOND, 60 * SECOND] {
        let failed = pool.chat(&route, request(), None).await.unwrap_err();
        assert_eq!(failed.error.kind, ErrorKind::RateLimited);
        assert_eq!(failed.error.retry_after, Some(asked));
    }
    assert_eq!(
        busy.asked(),
        1,
        "the second time its key rests, and nobody bothers it"
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_opens_the_breaker_and_a_probe_closes_it() {
    let mut pool = pool();
    let down = Scripted::new(
        std::iter::repeat_n(Does::Fails(ErrorKind::ProviderInternal), 5).chain([Does::Answers]),
    );
    let route = plan([target(&mut pool, "down", &[&down])]);
    for _ in 0..5 {
        let soon = Some(Instant::now() + Duration::from_nanos(1));
        let failed = pool.chat(&route, request(), soon).await.unwrap_err();
        assert_eq!(failed.error.kind, ErrorKind::ProviderInternal);
    }
    let status = pool.members()[0].status();
    assert_eq!(status.way.0, BreakerState::Closed, "it can be reached");
    assert_eq!(status.models[0].1, BreakerState::Open);
    let soon = Some(Instant::now() + SECOND);
    let failed = pool.chat(&route, request(), soon).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::CircuitOpen);
    assert_eq!(failed.trail.to_string(), "down/m skipped: breaker_open");
    assert_eq!(down.asked(), 5);
    // Whoever has the time waits for the probe.
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(text(answer).await.unwrap(), "Hi");
    assert!(pool.members()[0].status().models.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_provider_is_known_to_be_so_for_every_model() {
    let mut pool = pool();
    let gone = Scripted::new([Does::Fails(ErrorKind::ConnectionFailed)]);
    let first = target(&mut pool, "gone", &[&gone]);
    let second = Target {
        model: "other".into(),
        ..first.clone()
    };
    for _ in 0..5 {
        let soon = Some(Instant::now() + Duration::from_nanos(1));
        pool.chat(&plan([first.clone()]), request(), soon)
            .await
            .unwrap_err();
    }
    let soon = Some(Instant::now() + SECOND);
    let failed = pool
        .chat(&plan([second]), request(), soon)
        .await
        .unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::CircuitOpen);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_in_silence_does_not_show_that_the_way_is_clear() {
    let mut pool = Pool::new(PoolConfig {
        retries: RetryConfig {
            attempts: 1,
            ..RetryConfig::default()
        },
        ..PoolConfig::default()
    });
    let silent = ErrorKind::TimedOut(Phase::FirstToken);
    let gone = Does::Fails(ErrorKind::ConnectionFailed);
    let gone = std::iter::repeat_n(gone, 5);
    let then = [Does::Fails(silent), Does::Hangs, Does::BreaksOffAtOnce];
    let account: Arc<dyn Provider> = Scripted::new(gone.chain(then));
    let member = pool.add("p", vec![account], all(), Some(3 * SECOND));
    let route = plan([Target {
        member: Arc::clone(&member),
        model: "m".into(),
        weight: 1,
    }]);
    for _ in 0..5 {
        pool.chat(&route, request(), None).await.unwrap_err();
    }
    assert_eq!(member.status().way.0, BreakerState::Open);
    sleep(6 * SECOND).await;
    for (kind, way) in [
        (silent, BreakerState::HalfOpen),
        (ErrorKind::TimedOut(Phase::Whole), BreakerState::HalfOpen),
        // Its head came.
        (ErrorKind::StreamCut, BreakerState::Closed),
    ] {
        let failed = pool.chat(&route, request(), None).await.unwrap_err();
        assert_eq!(failed.error.kind, kind);
        assert_eq!(member.status().way.0, way, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_or_runs_out_of_time_is_not_held_against_the_provider() {
    let mut pool = pool();
    let slow = Scripted::new([Does::Hangs]);
    let route = plan([target(&mut pool, "slow", &[&slow])]);
    for _ in 0..20 {
        let asking = pool.chat(&route, request(), None);
        assert!(tokio::time::timeout(SECOND, asking).await.is_err());
        let soon = Some(Instant::now() + SECOND);
        let failed = pool.chat(&route, request(), soon).await.unwrap_err();
        assert_eq!(failed.error.kind, ErrorKind::TimedOut(Phase::Deadline));
    }
    assert_eq!(slow.asked(), 40);
    let status = pool.members()[0].status();
    assert!(status.models.is_empty(), "{status:?}");
    let Counts {
        in_flight,
        cancelled,
        failed,
        ..
    } = status.counts;
    assert_eq!((in_flight, cancelled, failed), (0, 40, 0));
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_retries_are_a_small_part_of_the_load() {
    let config = PoolConfig {
        breaker: BreakerConfig {
            failure_rate: 2.0,
            ..BreakerConfig::default()
        },
        ..PoolConfig::default()
    };
    let mut pool = Pool::new(config);
    let down = Scripted::new([Does::Fails(ErrorKind::ProviderInternal)]);
    let route = plan([target(&mut pool, "down", &[&down])]);
    for _ in 0..500 {
        pool.chat(&route, request(), None).await.unwrap_err();
    }
    let asked = down.asked();
    assert!((550..=620).contains(&asked), "{asked}");
    let failed = pool.chat(&route, request(), None).await.unwrap_err();
    assert_eq!(
        failed.error.kind,
        ErrorKind::ProviderInternal,
        "its own words, not ours"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_rests_and_the_others_go_on() {
    let mut pool = pool();
    let wrong = Scripted::new([Does::Fails(ErrorKind::Authentication)]);
    let limited = Scripted::new([
        Does::FailsFor(ErrorKind::RateLimited, 9 * SECOND),
        Does::Answers,
    ]);
    let good = Scripted::new([Does::Answers]);
    let route = plan([target(&mut pool, "p", &[&wrong, &limited, &good])]);
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "p/m key 1 failed: authentication (0 ms); p/m key 2 failed: rate_limited (0 ms); p/m key 3 answered (0 ms)"
    );
    drop(answer);
    for _ in 0..4 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!((wrong.asked(), limited.asked(), good.asked()), (1, 1, 5));
    assert_eq!(pool.members()[0].status().resting, (2, Some(9 * SECOND)));
    sleep(9 * SECOND).await;
    for _ in 0..4 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    assert_eq!((wrong.asked(), limited.asked(), good.asked()), (1, 3, 7));
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_only_where_it_can_be_answered() {
    let mut pool = pool();
    let provider = Scripted::new([Does::Answers]);
    let account = || vec![Arc::clone(&provider) as Arc<dyn Provider>];
    let mut able_to = |name: &str, features| Target {
        member: pool.add(name, account(), features, None),
        model: "m".into(),
        weight: 1,
    };
    let plain = able_to(
        "plain",
        all().without(&[Feature::Tools, Feature::JsonSchema]),
    );
    let tools = able_to("tools", all().without(&[Feature::JsonSchema]));
    let with_tools = ChatRequest {
        tools: vec![Tool {
            name: "add".into(),
            description: None,
            parameters: None,
            strict: None,
        }],
        ..request()
    };
    let route = plan([plain, tools]);
    let answer = pool.chat(&route, with_tools.clone(), None).await.unwrap();
    assert_eq!(
        answer.trail.to_string(),
        "plain/m skipped: lacks_tools; tools/m answered (0 ms)"
    );
    let schema = serde_json::value::RawValue::from_string("{}".into()).unwrap();
    let with_schema = ChatRequest {
        response_format: Some(ResponseFormat::JsonSchema {
            name: "n".into(),
            schema,
            strict: None,
        }),
        ..request()
    };
    let failed = pool.chat(&route, with_schema, None).await.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::Unsupported);
    assert_eq!(failed.trail.attempts().len(), 2);
    assert_eq!(provider.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_has_its_limit() {
    let mut pool = pool();
    let slow = Scripted::new([Does::Hangs]);
    let member = pool.add("slow", vec![slow.clone()], all(), Some(3 * SECOND));
    let route = plan([Target {
        member,
        model: "m".into(),
        weight: 1,
    }]);
    let begun = Instant::now();
    let soon = Some(begun + 4 * SECOND);
    let failed = pool.chat(&route, request(), soon).await.unwrap_err();
    assert!(
        matches!(
            failed.error.kind,
            ErrorKind::TimedOut(Phase::Whole | Phase::Deadline)
        ),
        "{failed}"
    );
    assert!(matches!(
        failed.trail.attempts()[0].outcome,
        Outcome::Failed(ErrorKind::TimedOut(Phase::Whole))
    ));
    assert!(begun.elapsed() <= 4 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn requests_are_spread_as_the_route_says() {
    let mut pool = pool();
    let quick = Scripted::new([Does::AnswersAfter(SECOND / 10)]);
    let slow = Scripted::new([Does::AnswersAfter(SECOND)]);
    let heavy = Target {
        weight: 3,
        ..target(&mut pool, "heavy", &[&slow])
    };
    let light = target(&mut pool, "light", &[&quick]);
    let mut route = plan([heavy, light]);

    route.balance = Balance::Weighted;
    for _ in 0..400 {
        drop(pool.chat(&route, request(), None).await.unwrap());
    }
    // 300 of 400 are expected, with a deviation of 9.
    assert!((240..=360).contains(&slow.asked()), "{}", slow.asked());

    route.balance = Balance::LeastInFlight;
    let held = pool.chat(&route, request(), None).await.unwrap();
    let other = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!((&*held.provider, &*other.provider), ("heavy", "light"));
    drop(held);
    let next = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(&*next.provider, "heavy");
    drop((other, next));

    route.balance = Balance::PeakEwma;
    for _ in 0..20 {
        let answer = pool.chat(&route, request(), None).await.unwrap();
        assert_eq!(&*answer.provider, "light");
    }
    // Ten under way there, and the slow one is the better choice.
    let held = futures_of(10, &pool, &route).await;
    let answer = pool.chat(&route, request(), None).await.unwrap();
    assert_eq!(&*answer.provider, "heavy");
    drop(held);
}

/// So many answers that have begun and are held, all from the second target.
async fn futures_of(count: usize, pool: &Pool, route: &Plan) -> Vec<Answer> {
    let only = plan([route.targets[1].clone()]);
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pool.chat(&only, request(), None).await.unwrap());
    }
    held
}

#[tokio::test(start_paused = true)]
async fn vectors_are_retried_and_go_on_to_the_next_target_as_chats_do() {
    let mut pool = pool();
    let overloaded = || Does::Fails(ErrorKind::Overloaded);
    let bad = Scripted::new([overloaded(), overloaded(), Does::Answers]);
    let good = Scripted::new([overloaded(), Does::Answers]);
    let none = Scripted::new([Does::Answers]);
    let dynamic: Arc<dyn Provider> = none.clone();
    let lacking = Target {
        member: pool.add("lacking", vec![dynamic], Features::of(&[]), None),
        model: "m".into(),
        weight: 1,
    };
    let route = plan([
        lacking,
        target(&mut pool, "bad", &[&bad]),
        target(&mut pool, "good", &[&good]),
    ]);
    let request = EmbeddingRequest::default();
    let answer = pool.embed(&route, request, None).await.unwrap();
    assert_eq!(&*answer.provider, "good");
    assert_eq!((none.asked(), bad.asked(), good.asked()), (0, 2, 2));
    let told = answer.trail.to_string();
    assert!(
        told.starts_with("lacking/m skipped: lacks_embeddings; bad/m failed"),
        "{told}"
    );
    let status = route.targets[2].member.status();
    assert_eq!((status.counts.answered, status.counts.failed), (1, 1));
    assert_eq!(status.first_token, None, "there was no token");
    assert_eq!(in_flight(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_vectors_opened_is_open_for_all() {
    let mut pool = pool();
    let bad = Scripted::new([Does::Fails(ErrorKind::ProviderInternal)]);
    let route = plan([target(&mut pool, "bad", &[&bad])]);
    // No time for retries, so that no breaker is half open soon.
    let soon = || Some(Instant::now() + Duration::from_millis(1));
    let mut kind = ErrorKind::ProviderInternal;
    for _ in 0..10 {
        let request = EmbeddingRequest::default();
        kind = pool
            .embed(&route, request, soon())
            .await
            .unwrap_err()
            .error
            .kind;
    }
    assert_eq!(kind, ErrorKind::CircuitOpen);
    let asked = bad.asked();
    let counted = pool.count_tokens(&route, request(), soon()).await;
    assert_eq!(counted.unwrap_err().error.kind, ErrorKind::CircuitOpen);
    assert_eq!(bad.asked(), asked);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_counted_by_the_first_target_by_the_deadline() {
    let mut pool = pool();
    let first = Scripted::new([Does::Answers, Does::Hangs]);
    let other = Scripted::new([Does::Answers]);
    let route = plan([
        target(&mut pool, "first", &[&first]),
        target(&mut pool, "other", &[&other]),
    ]);
    let answer = pool.count_tokens(&route, request(), None).await.unwrap();
    assert_eq!((answer.given, &*answer.provider), (17, "first"));
    let deadline = Some(Instant::now() + SECOND);
    let error = pool
        .count_tokens(&route, request(), deadline)
        .await
        .unwrap_err()
        .error;
    assert_eq!(error.kind, ErrorKind::TimedOut(Phase::Deadline));
    assert_eq!((first.asked(), other.asked(), in_flight(&pool)), (2, 0, 0));
}
