//! A client process of the load: real clients, each with its window always full.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use lapce_ai_client::{Client, MessageType, Options, ReconnectPolicy};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::child::Parent;
use crate::many::Tick;
use crate::measure::{Latency, histogram};

/// Payload of the two kinds of messages.
pub(super) const SMALL: usize = 4 << 10;
pub(super) const LARGE: usize = 1 << 20;
/// Texts of failures that a process tells of each kind.
const TOLD: usize = 3;

/// What a client process tells of its run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) small: Outcome,
    pub(super) large: Outcome,
    /// Large ones that were answered by when the last small one was.
    pub(super) large_beside_small: u64,
    /// Connections that were lost, though they may have been made again.
    pub(super) lost_connections: u64,
}

/// What became of the messages of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Answered with their own bytes.
    pub(crate) answered: u64,
    /// Answered with others.
    pub(crate) wrong: u64,
    /// Ended with an error.
    pub(crate) failed: u64,
    /// Until the last answer, and until the first connection and the last had all of theirs.
    pub(crate) seconds: f64,
    pub(crate) first_done: f64,
    /// From the call to the whole answer, without the first of each place in a window: for those the clients must first get
    /// more than a gigabyte of memory from the system, and nobody answers meanwhile. Of several processes the largest.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) errors: Vec<String>,
}

impl Outcome {
    /// Both together.
    pub(super) fn with(mut self, other: Self) -> Self {
        let neither = self.first_done.min(other.first_done) == 0.0;
        self.first_done = match neither {
            // A process without connections of this kind has no first.
            true => self.first_done.max(other.first_done),
            false => self.first_done.min(other.first_done),
        };
        self.answered += other.answered;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.seconds = self.seconds.max(other.seconds);
        self.p50_ms = self.p50_ms.max(other.p50_ms);
        self.p99_ms = self.p99_ms.max(other.p99_ms);
        self.max_ms = self.max_ms.max(other.max_ms);
        self.errors.extend(other.errors);
        self
    }
}

/// Bytes of which every eight, wherever they begin by eights, are there only once, in any process: so a message is known by
/// any part of it. Each message is the stretch that begins at its own number, and none has to be made or kept.
#[derive(Debug)]
pub(super) struct Stretches {
    bytes: Vec<u8>,
}

impl Stretches {
    /// For so many messages, of at most so many bytes.
    pub(super) fn new(process: u64, messages: u64, longest: usize) -> Self {
        let words = messages + longest as u64 / 8;
        let bytes = (0..words)
            .flat_map(|at| mixed(process << 40 | at).to_le_bytes())
            .collect();
        Self { bytes }
    }

    pub(super) fn of(&self, message: u64, len: usize) -> &[u8] {
        let from = message as usize * 8;
        &self.bytes[from..from + len]
    }
}

/// The finaliser of splitmix64: no two numbers come to the same.
fn mixed(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The connections of one kind.
#[derive(Default)]
struct Kind {
    clients: Vec<Client>,
    payload: usize,
}

/// A client process: `open <small> <large>` connections, `run <small> <large> <nanoseconds from tick to tick, or 0>` messages
/// on each of them, and `rest <milliseconds>`, in which the clients do what they do when nothing is asked of them.
pub(crate) fn load(parent: Parent, socket: &Path, process: u64, window: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut small, mut large) = (Kind::default(), Kind::default());
    let mut voice = parent.voice()?;
    parent.serve(|request| {
        let words: Vec<&str> = request.split(' ').collect();
        match words[..] {
            ["open", of_small, of_large] => {
                let (of_small, of_large) = (of_small.parse()?, of_large.parse()?);
                runtime.block_on(async {
                    small = Kind::open(socket, of_small, SMALL).await?;
                    large = Kind::open(socket, of_large, LARGE).await?;
                    Ok("open".to_owned())
                })
            }
            ["run", of_small, of_large, tick] => {
                let counts: [u64; 2] = [of_small.parse()?, of_large.parse()?];
                let tick = Duration::from_nanos(tick.parse()?);
                let seen = Arc::new(Seen::new()?);
                let told = runtime.block_on(async {
                    let run = run([&small, &large], counts, process, window, &seen);
                    let ticks = seen.tell(tick, |tick| {
                        voice.say(&format!("tick {}", serde_json::to_string(&tick)?))
                    });
                    tokio::select! {
                        told = run => told,
                        failed = ticks => Err(failed),
                    }
                })?;
                Ok(serde_json::to_string(&told)?)
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

impl Kind {
    /// Connects, and has each connection serve one short message.
    async fn open(socket: &Path, count: usize, payload: usize) -> Result<Self> {
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
            let client = Client::connect(options).await?;
            let answer = client.call(MessageType::ECHO, b"ready").await?;
            if answer != b"ready" {
                bail!("wrong data: {answer:?} for b\"ready\"");
            }
            clients.push(client);
        }
        Ok(Self { clients, payload })
    }
}

/// What somebody who looks on may see of a run.
#[derive(Debug)]
struct Seen {
    answered: AtomicU64,
    /// Since it was last told.
    latencies: Mutex<Histogram<u64>>,
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self {
            answered: AtomicU64::new(0),
            latencies: Mutex::new(histogram()?),
        })
    }

    fn note(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record((took.as_nanos() as u64).max(1));
    }

    /// Tells it every so often; returns only when it cannot. Zero: never.
    async fn tell(
        &self,
        every: Duration,
        mut tell: impl FnMut(Tick) -> Result<()>,
    ) -> anyhow::Error {
        if every.is_zero() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(every).await;
            let latency = {
                let mut latencies = self
                    .latencies
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let latency = Latency::of(&latencies).ok();
                latencies.reset();
                latency
            };
            let answers = self.answered.load(Ordering::Relaxed);
            if let Err(error) = tell(Tick { answers, latency }) {
                return error;
            }
        }
    }
}

/// Sends `counts` messages on each connection of the two kinds, all at once.
async fn run(
    kinds: [&Kind; 2],
    counts: [u64; 2],
    process: u64,
    window: usize,
    seen: &Arc<Seen>,
) -> Result<Told> {
    let of_kind = |at: usize| kinds[at].clients.len() as u64 * counts[at];
    let stretches = Arc::new(Stretches::new(process, of_kind(0) + of_kind(1), LARGE));
    let began = Instant::now();
    let mut first = 0;
    let mut running = kinds.map(|_| JoinSet::new());
    let answered = kinds.map(|_| Arc::new(AtomicU64::new(0)));
    for (at, lines) in running.iter_mut().enumerate() {
        let (kind, count) = (kinds[at], counts[at]);
        for client in &kind.clients {
            let line = Line {
                client: client.clone(),
                stretches: Arc::clone(&stretches),
                payload: kind.payload,
                answered: Arc::clone(&answered[at]),
                seen: Arc::clone(seen),
                next: AtomicU64::new(first),
                end: first + count,
            };
            first += count;
            lines.spawn(line.exchange(window, began));
        }
    }
    let [mut small, mut large] = running;
    let small = async {
        let outcome = gathered(&mut small).await?;
        Ok((outcome, answered[1].load(Ordering::Relaxed)))
    };
    let ((small, large_beside_small), large) = tokio::try_join!(small, gathered(&mut large))?;
    let clients = kinds.iter().flat_map(|kind| &kind.clients);
    Ok(Told {
        small,
        large,
        large_beside_small,
        lost_connections: clients.map(|client| client.counters().lost).sum(),
    })
}

/// One connection.
struct Line {
    client: Client,
    stretches: Arc<Stretches>,
    payload: usize,
    /// Messages of all connections of its kind.
    answered: Arc<AtomicU64>,
    seen: Arc<Seen>,
    /// The message that is sent next, and where to stop.
    next: AtomicU64,
    end: u64,
}

/// What became of the messages of one connection, or of one of the places in its window.
#[derive(Default)]
struct Tally {
    answered: u64,
    /// Of all but the first of each place.
    times: Vec<Duration>,
    wrong: u64,
    failed: u64,
    errors: Vec<String>,
    done: Duration,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.times.extend(other.times);
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.errors.extend(other.errors);
        self.errors.truncate(TOLD);
        self.done = self.done.max(other.done);
    }
}

impl Line {
    /// Keeps the window full until every message has ended.
    async fn exchange(self, window: usize, began: Instant) -> Result<Tally> {
        let line = Arc::new(self);
        let mut places = JoinSet::new();
        for _ in 0..window {
            places.spawn(Arc::clone(&line).place(began));
        }
        let mut all = Tally::default();
        while let Some(place) = places.join_next().await {
            all.add(place.context("a task of the load ended")?);
        }
        Ok(all)
    }

    /// One place in the window: a message after another.
    async fn place(self: Arc<Self>, began: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut is_first = true;
        loop {
            let message = self.next.fetch_add(1, Ordering::Relaxed);
            if message >= self.end {
                tally.done = began.elapsed();
                return tally;
            }
            let body = self.stretches.of(message, self.payload);
            let sent = Instant::now();
            match self.client.call(MessageType::ECHO, body).await {
                Ok(answer) if answer == body => {
                    tally.answered += 1;
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    self.seen.note(sent.elapsed());
                    if !std::mem::take(&mut is_first) {
                        tally.times.push(sent.elapsed());
                    }
                }
                Ok(answer) => {
                    tally.wrong += 1;
                    tally.errors.push(format!(
                        "message {message} of {} bytes was answered with {} others",
                        body.len(),
                        answer.len()
                    ));
                }
                Err(error) => {
                    tally.failed += 1;
                    tally.errors.push(format!("message {message}: {error}"));
                }
            }
            tally.errors.truncate(TOLD);
        }
    }
}

async fn gathered(lines: &mut JoinSet<Result<Tally>>) -> Result<Outcome> {
    let mut all = Tally::default();
    let mut first_done = Duration::MAX;
    while let Some(line) = lines.join_next().await {
        let line = line.context("a task of the load ended")??;
        first_done = first_done.min(line.done);
        all.add(line);
    }
    if all.done.is_zero() {
        first_done = Duration::ZERO;
    }
    all.times.sort_unstable();
    let at = |quantile: f64| {
        let rank = (all.times.len() as f64 * quantile).ceil() as usize;
        let found = all.times.get(rank.saturating_sub(1));
        found.map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    Ok(Outcome {
        answered: all.answered,
        wrong: all.wrong,
        failed: all.failed,
        seconds: all.done.as_secs_f64(),
        first_done: first_done.as_secs_f64(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        errors: all.errors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_messages_are_alike() {
        let (ours, theirs) = (Stretches::new(0, 100, 64), Stretches::new(1, 100, 64));
        let mut words: Vec<&[u8]> = [&ours, &theirs]
            .iter()
            .flat_map(|stretches| stretches.bytes.chunks(8))
            .collect();
        assert_eq!(words.len(), 2 * 108);
        words.sort_unstable();
        assert!(words.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(ours.of(99, 64).len(), 64, "the last is whole");
        assert_ne!(ours.of(3, 64), ours.of(4, 64));
    }

    #[test]
    fn outcomes_are_added() {
        let one = Outcome {
            answered: 3,
            seconds: 2.0,
            first_done: 1.5,
            max_ms: 4.0,
            errors: vec!["x".to_owned()],
            ..Outcome::default()
        };
        let none = Outcome::default();
        assert_eq!(none.clone().with(one.clone()), one);
        let other = Outcome {
            answered: 4,
            failed: 1,
            seconds: 3.0,
            first_done: 0.5,
            ..none
        };
        let both = one.with(other);
        assert_eq!((both.answered, both.failed, both.errors.len()), (7, 1, 1));
        assert_eq!(
            (both.seconds, both.first_done, both.max_ms),
            (3.0, 0.5, 4.0)
        );
    }
}
