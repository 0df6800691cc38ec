//! The pool over real connections: cancellation reaches the provider, and a storm of failures loses nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapce_ai_providers::{
    Answer, Balance, BreakerConfig, ChatRequest, Counts, ErrorKind, Event, Feature, Features,
    HttpProvider, Message, NoAnswer, Outcome, Phase, Plan, Pool, PoolConfig, Provider, Target,
    Timeouts,
};
use support::{Exchange, FINISH, Upstream, client, request, text_chunk, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
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
        balance: Balance::Ordered,
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

/// What an upstream does to every request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Good,
    SlowFirstToken,
    StallsWithHeartbeats,
    Resets,
    TooMany,
    Fails,
    Garbage,
    Drips,
    Refused,
}

const BAD: [How; 8] = [
    How::SlowFirstToken,
    How::StallsWithHeartbeats,
    How::Resets,
    How::TooMany,
    How::Fails,
    How::Garbage,
    How::Drips,
    How::Refused,
];

/// Serves on loopback for as long as the test runs.
async fn upstream(how: How) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    if how == How::Refused {
        // Nobody listens there any more.
        return url;
    }
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whether the client hangs up in the middle is its own affair.
            tokio::spawn(async move { serve(stream, how).await.ok() });
        }
    });
    url
}

async fn serve(mut stream: TcpStream, how: How) -> std::io::Result<()> {
    const STREAM: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let body = read_request(&mut stream).await?;
    let body: serde_json::Value = serde_json::from_slice(&body)?;
    let asked = body["messages"][0]["content"].as_str().unwrap_or_default();
    let streamed = body["stream"] == true;
    let text = |text: &str| format!("data: {}\n\n", text_chunk(text));
    let hang = || sleep(600 * SECOND);
    match how {
        How::Refused => {}
        How::Good if streamed => {
            stream.write_all(STREAM.as_bytes()).await?;
            for piece in ["You said: ", asked] {
                stream.write_all(text(piece).as_bytes()).await?;
            }
            let end = format!("data: {FINISH}\n\ndata: [DONE]\n\n");
            stream.write_all(end.as_bytes()).await?;
        }
        How::Good => {
            let answer = serde_json::json!({"id": "c1", "model": "gpt-x", "choices": [{"index": 0,
                "message": {"role": "assistant", "content": format!("You said: {asked}")}, "finish_reason": "stop"}]});
            status(&mut stream, "200 OK", "", &answer.to_string()).await?;
        }
        How::SlowFirstToken => hang().await,
        How::StallsWithHeartbeats => {
            stream.write_all(STREAM.as_bytes()).await?;
            stream.write_all(text("You said").as_bytes()).await?;
            loop {
                stream.write_all(b": ping\n\n").await?;
                sleep(SECOND / 20).await;
            }
        }
        How::Resets => {
            // What is unread makes the close a reset.
            stream.set_zero_linger()?;
        }
        How::TooMany => {
            status(
                &mut stream,
                "429 Too Many Requests",
                "retry-after: 1\r\n",
                "{}",
            )
            .await?;
        }
        How::Fails => {
            status(&mut stream, "500 Internal Server Error", "", "{}").await?;
        }
        How::Garbage => {
            stream.write_all(STREAM.as_bytes()).await?;
            stream.write_all(b"data: {\"choices\": <html>\n\n").await?;
        }
        How::Drips => {
            stream.write_all(STREAM.as_bytes()).await?;
            for byte in text("a").repeat(10_000).bytes() {
                stream.write_all(&[byte]).await?;
                sleep(SECOND / 50).await;
            }
        }
    }
    Ok(())
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Ok(bytes.split_off(end + 4));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn status(
    stream: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<()> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await
}

/// The usual soft limit of 1,024 descriptors is too few for both ends of a thousand connections in one process.
fn make_room_for_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_through_a_storm_each_end_rightly_and_in_time() {
    const REQUESTS: usize = 1000;
    make_room_for_descriptors();
    let config = PoolConfig {
        breaker: BreakerConfig {
            open: SECOND,
            ..BreakerConfig::default()
        },
        ..PoolConfig::default()
    };
    let mut pool = Pool::new(config);
    let timeouts = Timeouts {
        first_token: SECOND,
        between_tokens: SECOND,
        ..Timeouts::default()
    };
    let mut targets = Vec::new();
    for how in BAD.into_iter().chain([How::Good]) {
        let name = format!("{how:?}");
        let provider = HttpProvider::new(name.as_str(), wire(&upstream(how).await), client());
        let all = Features::of(Feature::ALL);
        // A busy machine must not make the good one look bad.
        let provider = match how {
            How::Good => provider,
            _ => provider.with_timeouts(timeouts),
        };
        let accounts: Vec<Arc<dyn Provider>> = vec![Arc::new(provider)];
        targets.push(Target {
            member: pool.add(
                &name,
                accounts,
                all,
                (how != How::Good).then_some(5 * SECOND),
            ),
            model: "gpt-x".into(),
            weight: 1,
        });
    }
    let pool = Arc::new(pool);
    let good = targets.pop().unwrap();
    let right = Arc::new(AtomicU64::new(0));
    let latest = Arc::new(AtomicU64::new(0));
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS {
        let (first, second) = (&targets[number % 8], &targets[(number / 8) % 8]);
        // Most have somebody good at the end; one in ten has not.
        let rescued = number % 10 != 9;
        let route = plan(
            [first, second]
                .into_iter()
                .chain(rescued.then_some(&good))
                .cloned(),
        );
        let streamed = number % 3 != 0;
        let gives_up = number % 17 == 16;
        let (pool, right, latest) = (Arc::clone(&pool), Arc::clone(&right), Arc::clone(&latest));
        requests.spawn(async move {
            let asked = ChatRequest {
                stream: streamed,
                ..ChatRequest::new("").with(Message::user(number.to_string()))
            };
            let deadline = Instant::now() + 15 * SECOND;
            let work = async {
                let answer = match pool.chat(&route, asked, Some(deadline)).await {
                    Ok(answer) => answer,
                    Err(failed) => return Err(failed.error.kind),
                };
                let (from, trail) = (answer.provider.clone(), answer.trail.clone());
                match answer.given.collect().await {
                    Ok(response) => {
                        assert_eq!(&*from, "Good", "{trail}");
                        assert_eq!(response.text, format!("You said: {number}"), "{trail}");
                        assert_eq!(trail.attempts().last().unwrap().outcome, Outcome::Answered);
                        right.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    }
                    Err(error) => Err(error.kind),
                }
            };
            if gives_up {
                drop(tokio::time::timeout(SECOND / 3, work).await);
                return;
            }
            let outcome = work.await;
            let late = u64::try_from(deadline.elapsed().as_millis()).unwrap();
            latest.fetch_max(late, Ordering::Relaxed);
            if let Err(kind) = outcome {
                // A stream that had begun where it came from somebody bad ends as it must, and so does a route
                // on which nobody is good. Nothing else fails.
                let begins = |how| [How::StallsWithHeartbeats, How::Drips].contains(&how);
                let may_begin = streamed
                    && [BAD[number % 8], BAD[(number / 8) % 8]]
                        .into_iter()
                        .any(begins);
                assert!(!rescued || may_begin, "{number}: {kind:?}");
            }
        });
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    println!(
        "{REQUESTS} requests: {} right answers; the last ended {} ms after its deadline",
        right.load(Ordering::Relaxed),
        latest.load(Ordering::Relaxed)
    );
    let mut asked_bad = 0;
    for member in pool.members() {
        let status = member.status();
        let Counts {
            in_flight,
            asked,
            answered,
            failed,
            cancelled,
        } = status.counts;
        println!("{:22} {status:?}", member.name());
        assert_eq!(in_flight, 0, "{}", member.name());
        assert_eq!(asked, answered + failed + cancelled, "{}", member.name());
        if &**member.name() != "Good" {
            asked_bad += asked;
            assert_eq!(answered, 0, "{}", member.name());
        }
    }
    assert!(asked_bad > 0);
    // Nothing was leaked: each of them takes requests again once it has rested.
    for target in targets {
        let route = plan([target, good.clone()]);
        let asked = ChatRequest {
            stream: false,
            ..request()
        };
        let answer = pool.chat(&route, asked, None).await.unwrap();
        assert_eq!(&*answer.provider, "Good");
    }
}
