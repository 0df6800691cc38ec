//! A client process: editors that come, ask for completions, chats and analyses, and go.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use lapce_ai_client::ai::{
    AIRequest, AutocompleteRequest, FileAnalysisRequest, FinishReason, Message, StreamEvent,
};
use lapce_ai_client::{ChatStream, Client, ClientError, Options, ReconnectPolicy};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::upstream::{mark, words};
use crate::child::Parent;
use crate::many::Tick;
use crate::measure::{Latency, histogram};

/// Texts of failures that a process tells.
const TOLD: usize = 3;
/// Lines of the file that is asked about, and of the code around a cursor.
const LINES: usize = 40;

/// What became of a cycle's requests.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) answered: u64,
    pub(super) wrong: u64,
    pub(super) failed: u64,
    pub(super) lost_connections: u64,
    pub(super) errors: Vec<String>,
}

/// What the tasks of a process share.
#[derive(Debug)]
struct Seen {
    answered: AtomicU64,
    wrong: AtomicU64,
    failed: AtomicU64,
    errors: Mutex<Vec<String>>,
    latencies: Mutex<Histogram<u64>>,
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self {
            answered: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            errors: Mutex::default(),
            latencies: Mutex::new(histogram()?),
        })
    }

    fn complain(&self, counter: &AtomicU64, what: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        if errors.len() < TOLD {
            errors.push(what);
        }
    }

    fn tick(&self) -> Tick {
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let latency = Latency::of(&latencies).ok();
        latencies.reset();
        let answers = self.answered.load(Ordering::Relaxed);
        Tick { answers, latency }
    }
}

/// The child: `open <count>`, `run <rounds> <window> <first mark> <nanoseconds from tick to tick>`, `close`.
pub(crate) fn editors(parent: Parent, socket: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut clients = Vec::new();
    let mut voice = parent.voice()?;
    parent.serve(|request| {
        let words: Vec<&str> = request.split(' ').collect();
        match words[..] {
            ["open", count] => {
                let count = count.parse()?;
                clients = runtime.block_on(open(socket, count))?;
                Ok("open".to_owned())
            }
            ["run", rounds, window, first, tick] => {
                let (rounds, window) = (rounds.parse()?, window.parse()?);
                let (first, tick) = (first.parse()?, Duration::from_nanos(tick.parse()?));
                let told = runtime.block_on(async {
                    let seen = Arc::new(Seen::new()?);
                    let run = work(&clients, rounds, window, first, &seen);
                    tokio::pin!(run);
                    loop {
                        tokio::select! {
                            told = &mut run => break told,
                            () = tokio::time::sleep(tick) => {
                                voice.say(&format!("tick {}", serde_json::to_string(&seen.tick())?))?;
                            }
                        }
                    }
                })?;
                Ok(serde_json::to_string(&told)?)
            }
            ["close"] => {
                runtime.block_on(async {
                    for client in clients.drain(..) {
                        client.close().await;
                    }
                    // Their tasks see it.
                    tokio::task::yield_now().await;
                });
                Ok("closed".to_owned())
            }
            ["rest", millis] => {
                let rest = Duration::from_millis(millis.parse()?);
                // Made inside of the runtime, whose timer it is.
                runtime.block_on(async { tokio::time::sleep(rest).await });
                Ok("rested".to_owned())
            }
            _ => bail!("an unknown request: {request}"),
        }
    })
}

async fn open(socket: &Path, count: usize) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let mut options = Options::new(socket);
        "lapce-ai-bench".clone_into(&mut options.name);
        options.connect_timeout = Duration::from_secs(20);
        // A connection that is lost is a failure here.
        options.reconnect = ReconnectPolicy {
            max_attempts: Some(1),
            max_resends: 0,
            ..ReconnectPolicy::default()
        };
        clients.push(Client::connect(options).await?);
    }
    Ok(clients)
}

/// So many rounds of the three on each connection, with so many of them in flight.
async fn work(
    clients: &[Client],
    rounds: u64,
    window: u64,
    first: u64,
    seen: &Arc<Seen>,
) -> Result<Told> {
    let per_connection = rounds * 3;
    let mut places = JoinSet::new();
    for (at, client) in (0..).zip(clients) {
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..window {
            let (client, next, seen) = (client.clone(), Arc::clone(&next), Arc::clone(seen));
            let first = first + at * per_connection;
            places.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= per_connection {
                        return;
                    }
                    ask(&client, first + number, &seen).await;
                }
            });
        }
    }
    while let Some(place) = places.join_next().await {
        place.context("a task of the load ended")?;
    }
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let errors = std::mem::take(&mut *seen.errors.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Told {
        answered: of(&seen.answered),
        wrong: of(&seen.wrong),
        failed: of(&seen.failed),
        lost_connections: clients.iter().map(|client| client.counters().lost).sum(),
        errors,
    })
}

async fn ask(client: &Client, number: u64, seen: &Seen) {
    let mark = mark(number);
    let began = Instant::now();
    let answer = match number % 3 {
        0 => client.autocomplete(&completion(&mark)).await,
        1 => {
            client
                .chat(&AIRequest::new("", vec![Message::user(mark.clone())]))
                .await
        }
        _ => client.analyze_file(&analysis(&mark)).await,
    };
    let answer = match answer {
        Ok(stream) => collect(stream).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(Some(text)) if text == words(&mark).concat() => {
            seen.answered.fetch_add(1, Ordering::Relaxed);
            let took = (began.elapsed().as_nanos() as u64).max(1);
            let mut latencies = seen
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            latencies.saturating_record(took);
        }
        Ok(Some(text)) => seen.complain(&seen.wrong, format!("{mark} was answered with {text:?}")),
        Ok(None) => seen.complain(&seen.wrong, format!("the answer to {mark} has no end")),
        Err(error) => seen.complain(&seen.failed, format!("{mark}: {error}")),
    }
}

/// An answer's text; `None`: it did not come to its end.
async fn collect(mut stream: ChatStream) -> Result<Option<String>, ClientError> {
    let mut text = String::new();
    let mut finished = false;
    while let Some(event) = stream.next().await {
        match event? {
            StreamEvent::Text { text: piece } => text.push_str(&piece),
            StreamEvent::Finish { reason, .. } => finished = reason == FinishReason::Stop,
            _ => {}
        }
    }
    Ok(finished.then_some(text))
}

fn completion(mark: &str) -> AutocompleteRequest {
    AutocompleteRequest {
        prefix: format!(
            "// {mark}\n{}",
            "    let value = compute(input);\n".repeat(LINES)
        ),
        suffix: "    value\n}\n".repeat(LINES),
        path: Some("src/main.rs".to_owned()),
        language: Some("rust".to_owned()),
        ..AutocompleteRequest::default()
    }
}

fn analysis(mark: &str) -> FileAnalysisRequest {
    FileAnalysisRequest {
        path: "src/main.rs".to_owned(),
        content: "fn line() -> u32 { 42 }\n".repeat(LINES),
        question: format!("What does {mark} do?"),
        ..FileAnalysisRequest::default()
    }
}
