//! The pool over real connections: cancellation reaches the provider, and what was said is not said again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use lapce_ai_providers::{
    Answer, ChatRequest, Counts, ErrorKind, Event, Feature, Features, NoAnswer, Phase, Plan, Pool,
    PoolConfig, Provider, Target, Timeouts,
};
use support::{Exchange, Upstream, request, text_chunk};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

fn add(pool: &mut Pool, name: &str, provider: impl Provider + 'static) -> Target {
    let all = Features::of(Feature::ALL);
    Target {
        member: pool.add(name, vec![Arc::new(provider)], all, None),
        model: "gpt-x".into(),
        weight: 1,
    }
}

fn plan(targets: impl IntoIterator<Item = Target>) -> Plan {
    Plan {
        targets: targets.into_iter().collect(),
        ..Plan::default()
    }
}

fn counts(pool: &Pool) -> Counts {
    pool.members()[0].status().counts
}

/// How far an upstream gets with its answer before the request is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    Nothing,
    Begun,
    InTheMiddle,
}

async fn answer_to(exchange: &mut Exchange, progress: Progress, streamed: bool) {
    if progress == Progress::Nothing {
        return;
    }
    if streamed {
        exchange.begin_stream().await;
        if progress == Progress::InTheMiddle {
            let event = format!("data: {}\n\n", text_chunk("a"));
            exchange.chunk(event).await;
        }
    } else {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n";
        exchange.send(head).await;
        if progress == Progress::InTheMiddle {
            exchange.send("{\"id\":").await;
        }
    }
}

async fn read_on(answer: Result<Answer, NoAnswer>) -> Result<(), ErrorKind> {
    let mut answer = answer.map_err(|failed| failed.error.kind)?;
    while let Some(event) = answer.given.next().await {
        event.map_err(|error| error.kind)?;
    }
    Ok(())
}

#[tokio::test]
async fn whoever_gives_up_closes_the_providers_connection_and_frees_everything() {
    let progresses = [Progress::Nothing, Progress::Begun, Progress::InTheMiddle];
    for (streamed, progress) in [true, false]
        .into_iter()
        .flat_map(|streamed| progresses.map(|to| (streamed, to)))
    {
        let upstream = Upstream::start().await;
        let mut pool = Pool::new(PoolConfig::default());
        let route = plan([add(&mut pool, "tested", upstream.provider())]);
        let asked = ChatRequest {
            stream: streamed,
            ..request()
        };
        let asking = async { read_on(pool.chat(&route, asked, None).await).await };
        let mut asking = Box::pin(asking);
        let exchange = tokio::select! {
            ended = &mut asking => panic!("{ended:?}"),
            exchange = async {
                let mut exchange = upstream.accept().await;
                answer_to(&mut exchange, progress, streamed).await;
                exchange
            } => exchange,
        };
        let given_up = Instant::now();
        drop(asking);
        exchange.closed().await;
        println!(
            "streamed {streamed}, {progress:?}: closed {:?} after it was given up",
            given_up.elapsed()
        );
        let Counts {
            in_flight,
            cancelled,
            failed,
            ..
        } = counts(&pool);
        assert_eq!(
            (in_flight, cancelled, failed),
            (0, 1, 0),
            "{streamed} {progress:?}"
        );
    }
}

#[tokio::test]
async fn so_does_the_deadline() {
    let progresses = [Progress::Nothing, Progress::Begun, Progress::InTheMiddle];
    for (streamed, progress) in [true, false]
        .into_iter()
        .flat_map(|streamed| progresses.map(|to| (streamed, to)))
    {
        let upstream = Upstream::start().await;
        let mut pool = Pool::new(PoolConfig::default());
        let route = plan([add(&mut pool, "tested", upstream.provider())]);
        let asked = ChatRequest {
            stream: streamed,
            ..request()
        };
        let deadline = Instant::now() + SECOND / 5;
        let asking = async { read_on(pool.chat(&route, asked, Some(deadline)).await).await };
        let (ended, ()) = tokio::join!(asking, async {
            let mut exchange = upstream.accept().await;
            answer_to(&mut exchange, progress, streamed).await;
            exchange.closed().await;
            println!(
                "streamed {streamed}, {progress:?}: closed {:?} after the deadline",
                deadline.elapsed()
            );
        });
        assert_eq!(ended, Err(ErrorKind::TimedOut(Phase::Deadline)));
        let Counts {
            in_flight,
            cancelled,
            failed,
            ..
        } = counts(&pool);
        assert_eq!(
            (in_flight, cancelled, failed),
            (0, 1, 0),
            "{streamed} {progress:?}"
        );
    }
}

#[tokio::test]
async fn heartbeats_are_no_tokens_and_what_was_said_is_not_said_again() {
    let upstream = Upstream::start().await;
    let mut pool = Pool::new(PoolConfig::default());
    let provider = upstream.provider().with_timeouts(Timeouts {
        between_tokens: SECOND / 2,
        ..Timeouts::default()
    });
    let route = plan([add(&mut pool, "stalls", provider)]);
    let serve = async {
        let mut exchange = upstream.accept().await;
        exchange.begin_stream().await;
        let event = format!("data: {}\n\n", text_chunk("a"));
        exchange.chunk(event).await;
        while exchange.try_chunk(b": ping\n\n").await {
            sleep(SECOND / 20).await;
        }
    };
    let ask = async {
        let mut answer = pool.chat(&route, request(), None).await.unwrap();
        let mut texts = 0;
        loop {
            match answer.given.next().await.unwrap() {
                Ok(Event::Text("a")) => texts += 1,
                Ok(_) => {}
                Err(error) => break (texts, error.kind),
            }
        }
    };
    let (ended, ()) = tokio::join!(ask, serve);
    assert_eq!(ended, (1, ErrorKind::TimedOut(Phase::NextToken)));
    assert_eq!((counts(&pool).in_flight, counts(&pool).failed), (0, 1));
}
