//! A storm of failures over real connections: every request ends with a right answer or a typed error in its time, and
//! nothing is lost.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and tells what it saw"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapce_ai_providers::{
    BreakerConfig, ChatRequest, Counts, ErrorKind, Feature, Features, Hedge, HedgeAfter,
    HedgeConfig, HttpClient, HttpConfig, HttpProvider, Message, Outcome, Plan, Pool, PoolConfig,
    Provider, Purpose, Target, Timeouts, Trail,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{FINISH, client, request, text_chunk, wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

const SECOND: Duration = Duration::from_secs(1);

/// Time enough for a right answer on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(300);
/// How late a request may end, besides what the machine makes everything late by.
const GRACE: Duration = Duration::from_secs(10);

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
    CutsInTheMiddle,
    FailsInTheMiddle,
    WrongCertificate,
}

const BAD: [How; 11] = [
    How::SlowFirstToken,
    How::StallsWithHeartbeats,
    How::Resets,
    How::TooMany,
    How::Fails,
    How::Garbage,
    How::Drips,
    How::Refused,
    How::CutsInTheMiddle,
    How::FailsInTheMiddle,
    How::WrongCertificate,
];

/// Serves on loopback for as long as the test runs.
async fn upstream(how: How) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    match how {
        // Nobody listens there any more.
        How::Refused => return format!("http://{address}/v1"),
        How::WrongCertificate => {
            let acceptor = stranger();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move { acceptor.accept(stream).await.is_ok() });
                }
            });
            return format!("https://{address}/v1");
        }
        _ => {}
    }
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Whether the client hangs up in the middle is its own affair.
            tokio::spawn(async move { serve(stream, how).await.ok() });
        }
    });
    format!("http://{address}/v1")
}

/// TLS with a certificate that nobody has signed.
fn stranger() -> TlsAcceptor {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.into()], PrivateKeyDer::from(key))
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// What is left to say of the answer to a request: all of it, or what follows what was said.
fn rest(body: &serde_json::Value) -> String {
    let text = |at: usize| body["messages"][at]["content"].as_str().unwrap_or_default();
    let whole = format!("You said: {}", text(0));
    whole
        .strip_prefix(text(1))
        .unwrap_or("(lost the thread)")
        .to_owned()
}

async fn serve(mut stream: TcpStream, how: How) -> std::io::Result<()> {
    const STREAM: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    let body = read_request(&mut stream).await?;
    let body: serde_json::Value = serde_json::from_slice(&body)?;
    let left = rest(&body);
    // Never all of it.
    let (some, more) = left.split_at(left.len().min(8).saturating_sub(3));
    let streamed = body["stream"] == true;
    let text = |text: &str| format!("data: {}\n\n", text_chunk(text));
    let hang = || sleep(600 * SECOND);
    match how {
        How::Refused | How::WrongCertificate => {}
        How::Good if streamed => {
            stream.write_all(STREAM.as_bytes()).await?;
            for piece in [some, more] {
                stream.write_all(text(piece).as_bytes()).await?;
            }
            let end = format!("data: {FINISH}\n\ndata: [DONE]\n\n");
            stream.write_all(end.as_bytes()).await?;
        }
        How::Good => {
            let answer = serde_json::json!({"id": "c1", "model": "gpt-x", "choices": [{"index": 0,
                "message": {"role": "assistant", "content": left}, "finish_reason": "stop"}]});
            status(&mut stream, "200 OK", "", &answer.to_string()).await?;
        }
        How::SlowFirstToken => hang().await,
        How::StallsWithHeartbeats => {
            stream.write_all(STREAM.as_bytes()).await?;
            stream.write_all(text(some).as_bytes()).await?;
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
            let line = "429 Too Many Requests";
            status(&mut stream, line, "retry-after: 1\r\n", "{}").await?;
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
            for byte in text(some).repeat(10_000).bytes() {
                stream.write_all(&[byte]).await?;
                sleep(SECOND / 50).await;
            }
        }
        How::CutsInTheMiddle => {
            stream.write_all(STREAM.as_bytes()).await?;
            stream.write_all(text(some).as_bytes()).await?;
        }
        How::FailsInTheMiddle => {
            stream.write_all(STREAM.as_bytes()).await?;
            stream.write_all(text(some).as_bytes()).await?;
            let error = "data: {\"error\":{\"message\":\"boom\",\"type\":\"server_error\"}}\n\n";
            stream.write_all(error.as_bytes()).await?;
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
    storm(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_do_with_hedges_and_continuations_and_then_none_is_lost() {
    storm(true).await;
}

/// Two storms at once would be a storm of their own.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A thousand requests over routes of two bad providers and mostly a good one. `rescuing`: with hedges and continuations.
async fn storm(rescuing: bool) {
    const REQUESTS: usize = 1000;
    let _turn = ONE_AT_A_TIME.lock().await;
    make_room_for_descriptors();
    let config = PoolConfig {
        breaker: BreakerConfig {
            open: SECOND,
            ..BreakerConfig::default()
        },
        ..PoolConfig::default()
    };
    let mut pool = Pool::new(config);
    // A busy machine must not make the good one look bad.
    let patient_breaker = BreakerConfig {
        slow_call: PATIENCE,
        ..config.breaker
    };
    let patient = HttpConfig {
        connect_timeout: PATIENCE,
        ..HttpConfig::default()
    };
    let patient = HttpClient::new(&patient).unwrap();
    let mut targets = Vec::new();
    for how in BAD.into_iter().chain([How::Good]) {
        let name = format!("{how:?}");
        let is_good = how == How::Good;
        let client = if is_good { patient.clone() } else { client() };
        let provider = HttpProvider::new(name.as_str(), wire(&upstream(how).await), client);
        let all = Features::of(Feature::ALL);
        let provider = if is_good {
            provider
        } else {
            provider.with_timeouts(Timeouts {
                // It is to be hedged long before.
                first_token: match how {
                    How::SlowFirstToken => 3 * SECOND,
                    _ => SECOND,
                },
                between_tokens: SECOND,
                ..Timeouts::default()
            })
        };
        let accounts: Vec<Arc<dyn Provider>> = vec![Arc::new(provider)];
        let (whole, breaker) = match is_good {
            true => (None, patient_breaker),
            false => (Some(5 * SECOND), config.breaker),
        };
        targets.push(Target {
            member: pool.add_with_breaker(&name, accounts, all, whole, breaker),
            model: "gpt-x".into(),
            weight: 1,
        });
    }
    let pool = Arc::new(pool);
    let good = targets.pop().unwrap();
    let hedge = rescuing.then(|| {
        Arc::new(Hedge::new(HedgeConfig {
            after: HedgeAfter::Fixed(SECOND / 5),
            budget: 0.1,
        }))
    });
    let seen = Arc::new(Seen::default());
    if rescuing {
        before_the_storm(&pool, &targets, &good, hedge.clone(), &seen).await;
    }
    let lag = Arc::new(AtomicU64::new(0));
    let watching = tokio::spawn(watch_lag(Arc::clone(&lag)));
    let mut requests = JoinSet::new();
    for number in 0..REQUESTS {
        let (first, second) = (number % BAD.len(), (number / BAD.len()) % BAD.len());
        // Most have somebody good at the end; one in ten has not.
        let rescued = number % 10 != 9;
        let route = [&targets[first], &targets[second]]
            .into_iter()
            .chain(rescued.then_some(&good));
        let route = Plan {
            targets: route.cloned().collect(),
            hedge: hedge.clone(),
            continues: rescuing,
            ..Plan::default()
        };
        let streamed = number % 3 != 0;
        let gives_up = number % 17 == 16;
        // A stream that had begun where it came from somebody bad ends as it must, and so does a route on which nobody
        // is good. Nothing else fails; and with continuations not even the former.
        let may_break = streamed
            && !rescuing
            && [first, second]
                .into_iter()
                .any(|at| BEGINS.contains(&BAD[at]));
        let (pool, seen) = (Arc::clone(&pool), Arc::clone(&seen));
        requests.spawn(async move {
            let asked = ChatRequest {
                stream: streamed,
                ..ChatRequest::new("").with(Message::user(number.to_string()))
            };
            // Where nobody is good the deadline may be what ends it.
            let time = if rescued { PATIENCE } else { 5 * SECOND };
            let deadline = Instant::now() + time;
            let work = answer(&pool, &route, asked, deadline, number, &seen);
            if gives_up {
                drop(tokio::time::timeout(SECOND / 3, work).await);
                return;
            }
            let outcome = work.await;
            let late = u64::try_from(deadline.elapsed().as_millis()).unwrap();
            seen.latest.fetch_max(late, Ordering::Relaxed);
            if let Err((kind, trail)) = outcome {
                assert!(!rescued || may_break, "{number}: {kind:?}: {trail}");
            }
        });
    }
    while let Some(ended) = requests.join_next().await {
        ended.unwrap();
    }
    watching.abort();
    let millis = |of: &AtomicU64| Duration::from_millis(of.load(Ordering::Relaxed));
    let (latest, lag) = (millis(&seen.latest), millis(&lag));
    println!("{REQUESTS} requests, rescuing {rescuing}, timers up to {lag:?} late: {seen:?}");
    // Its timer goes off, and then it is its turn.
    assert!(latest < GRACE + 2 * lag, "{latest:?} after its deadline");
    assert_eq!(rescuing, seen.continued.load(Ordering::Relaxed) > 0);
    assert_eq!(rescuing, seen.hedged.load(Ordering::Relaxed) > 0);
    let mut asked_bad = 0;
    for member in pool.members() {
        let status = member.status();
        let Counts {
            in_flight,
            asked,
            answered,
            failed,
            cancelled,
            ..
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
        let route = Plan {
            targets: vec![target, good.clone()],
            ..Plan::default()
        };
        let asked = ChatRequest {
            stream: false,
            ..request()
        };
        let answer = pool.chat(&route, asked, None).await.unwrap();
        assert_eq!(&*answer.provider, "Good");
    }
}

/// Notes by how many milliseconds timers go off late at most: that is the machine's fault, and the test's own.
async fn watch_lag(most: Arc<AtomicU64>) {
    loop {
        let due = Instant::now() + SECOND / 10;
        sleep_until(due).await;
        let late = u64::try_from(due.elapsed().as_millis()).unwrap();
        most.fetch_max(late, Ordering::Relaxed);
    }
}

/// While it is quiet each policy does its work; in the storm a busy machine may leave it nothing to do.
async fn before_the_storm(
    pool: &Pool,
    targets: &[Target],
    good: &Target,
    hedge: Option<Arc<Hedge>>,
    seen: &Seen,
) {
    let rescued = [
        How::SlowFirstToken,
        How::StallsWithHeartbeats,
        How::CutsInTheMiddle,
        How::FailsInTheMiddle,
    ];
    for how in rescued {
        let at = BAD.iter().position(|bad| *bad == how).unwrap();
        let route = Plan {
            targets: vec![targets[at].clone(), good.clone()],
            hedge: hedge.clone(),
            continues: true,
            ..Plan::default()
        };
        let asked = ChatRequest::new("").with(Message::user("7"));
        let deadline = Instant::now() + PATIENCE;
        let outcome = answer(pool, &route, asked, deadline, 7, seen).await;
        assert!(outcome.is_ok(), "{how:?}: {outcome:?}");
    }
}

/// Those whose streams begin and break.
const BEGINS: [How; 4] = [
    How::StallsWithHeartbeats,
    How::Drips,
    How::CutsInTheMiddle,
    How::FailsInTheMiddle,
];

/// What came of all requests.
#[derive(Debug, Default)]
struct Seen {
    right: AtomicU64,
    continued: AtomicU64,
    hedged: AtomicU64,
    /// Milliseconds after a deadline.
    latest: AtomicU64,
}

/// Asks and reads the whole answer, which must be right where there is one.
async fn answer(
    pool: &Pool,
    route: &Plan,
    asked: ChatRequest,
    deadline: Instant,
    number: usize,
    seen: &Seen,
) -> Result<(), (ErrorKind, Trail)> {
    let trail = Trail::default();
    let asking = pool.chat_traced(route, asked, Some(deadline), &trail);
    let outcome = match asking.await {
        Ok(answer) => answer.given.collect().await,
        Err(failed) => Err(failed.error),
    };
    let attempts = trail.attempts();
    let has = |purpose| attempts.iter().any(|attempt| attempt.purpose == purpose);
    seen.hedged
        .fetch_add(has(Purpose::Hedge).into(), Ordering::Relaxed);
    match outcome {
        Ok(response) => {
            assert_eq!(response.text, format!("You said: {number}"), "{trail}");
            // Nobody else comes to an end.
            let mut answered = attempts
                .iter()
                .filter(|attempt| attempt.outcome == Outcome::Answered);
            let last = answered.next_back().unwrap();
            assert_eq!(&*last.provider, "Good", "{trail}");
            assert!(answered.next().is_none(), "{trail}");
            seen.right.fetch_add(1, Ordering::Relaxed);
            let continued = has(Purpose::Continuation).into();
            seen.continued.fetch_add(continued, Ordering::Relaxed);
            Ok(())
        }
        Err(error) => Err((error.kind, trail)),
    }
}
