//! A client process that does nothing wrong, and notes what happens to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use hdrhistogram::Histogram;
use lapce_ai_client::{
    Class, Client, ClientError, ErrorCode, MessageType, Options, RequestOptions,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::script::{Script, pattern};
use super::server::{LONGEST, SCRIPT};
use crate::child::Parent;
use crate::machine::monotonic;
use crate::measure::{Latency, histogram};

/// Clients of one process, each with a connection.
pub(super) const CLIENTS: usize = 2;
/// Between two short echoes of a client, by which it is known when it was served.
const BEAT: Duration = Duration::from_millis(1);
/// Two answers that are further apart are a gap.
const GAP: Duration = Duration::from_millis(4);
/// A client itself gives up so long after a request's deadline, in case the daemon hangs: `RequestOptions::deadline`.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Of a short echo: longer than the server is ever away.
const PATIENCE: Duration = Duration::from_secs(10);
/// Texts of each kind that are told.
const TOLD: usize = 10;

/// What a process tells when it is asked, and at its end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    /// Of all kinds.
    pub(super) answered: u64,
    /// How requests ended, by name.
    pub(super) ends: BTreeMap<String, u64>,
    pub(super) wrong: Vec<String>,
    /// Errors that nobody who keeps the rules should see.
    pub(super) out_of_place: Vec<String>,
    /// By how much a request ended after its deadline at most, in nanoseconds.
    pub(super) latest: u64,
    pub(super) lost_connections: u64,
    /// Of each client since it was last told: from one answer to the next, where that took long, on the clock that all processes
    /// share.
    pub(super) gaps: Vec<Vec<[u64; 2]>>,
    /// Of each client, its latest answer.
    pub(super) last: Vec<u64>,
    /// Of the short echoes since they were last told.
    pub(super) latency: Option<Latency>,
    /// How late the system woke a thread of this process that slept for a millisecond, since it was last told.
    pub(super) noise: Option<Latency>,
}

#[derive(Debug)]
struct Ledger {
    stop: AtomicBool,
    answered: AtomicU64,
    latest: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ends: BTreeMap<String, u64>,
    wrong: Vec<String>,
    out_of_place: Vec<String>,
    gaps: Vec<Vec<[u64; 2]>>,
    last: Vec<u64>,
    lost: Vec<u64>,
    latency: Histogram<u64>,
    noise: Histogram<u64>,
}

/// How a request ended.
enum End {
    /// With what was asked for.
    Answered,
    /// Given up by its client on purpose.
    Cancelled,
    Failed(ClientError),
    Wrong(String),
}

impl Ledger {
    fn new() -> Result<Self> {
        Ok(Self {
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            latest: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                ends: BTreeMap::new(),
                wrong: Vec::new(),
                out_of_place: Vec::new(),
                gaps: vec![Vec::new(); CLIENTS],
                last: vec![monotonic(); CLIENTS],
                lost: vec![0; CLIENTS],
                latency: histogram()?,
                noise: histogram()?,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// A request of this kind has ended.
    fn note(&self, kind: &str, end: End, over: Duration) {
        self.latest
            .fetch_max(over.as_nanos() as u64, Ordering::Relaxed);
        let mut inner = self.lock();
        let how = match end {
            End::Answered => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                "answered".to_owned()
            }
            End::Cancelled => "cancelled by its client".to_owned(),
            End::Wrong(why) => {
                keep(&mut inner.wrong, why);
                "wrong".to_owned()
            }
            End::Failed(error) => {
                if !is_expected(&error) {
                    keep(&mut inner.out_of_place, format!("{kind}: {error}"));
                }
                error
                    .code()
                    .map_or("other".to_owned(), |code| code.name().to_owned())
            }
        };
        *inner.ends.entry(format!("{kind}: {how}")).or_default() += 1;
    }

    /// A client had an answer to its short echo.
    fn beat(&self, client: usize, took: Duration) {
        let mut inner = self.lock();
        let now = monotonic();
        let before = std::mem::replace(&mut inner.last[client], now);
        if now - before > GAP.as_nanos() as u64 {
            inner.gaps[client].push([before, now]);
        }
        inner
            .latency
            .saturating_record((took.as_nanos() as u64).max(1));
    }

    fn tell(&self) -> Told {
        let mut inner = self.lock();
        let latency = Latency::of(&inner.latency).ok();
        inner.latency.reset();
        let noise = Latency::of(&inner.noise).ok();
        inner.noise.reset();
        Told {
            answered: self.answered.load(Ordering::Relaxed),
            ends: inner.ends.clone(),
            wrong: inner.wrong.clone(),
            out_of_place: inner.out_of_place.clone(),
            latest: self.latest.load(Ordering::Relaxed),
            lost_connections: inner.lost.iter().sum(),
            gaps: inner.gaps.iter_mut().map(std::mem::take).collect(),
            last: inner.last.clone(),
            latency,
            noise,
        }
    }
}

fn keep(texts: &mut Vec<String>, text: String) {
    if texts.len() < TOLD {
        texts.push(text);
    }
}

/// What may happen to somebody who keeps the rules, where the server is killed and short of memory.
fn is_expected(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::DeadlineExceeded
                | ErrorCode::Overloaded
                | ErrorCode::OutcomeUnknown
                | ErrorCode::ServerRestarting
        )
    )
}

/// The child: `tell` any number of times, and `stop`, which waits until every request has ended. The connections stay.
pub(crate) fn normal(parent: Parent, socket: &Path, seed: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ledger = Arc::new(Ledger::new()?);
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(options(socket)).await?);
        }
        Ok::<_, ClientError>(clients)
    })?;
    // It sleeps most of the time, as the clients do.
    let of_noise = Arc::clone(&ledger);
    thread::spawn(move || {
        loop {
            let due = Instant::now() + BEAT;
            thread::sleep(BEAT);
            let late = (due.elapsed().as_nanos() as u64).max(1);
            of_noise.lock().noise.saturating_record(late);
        }
    });
    let (of_work, ended) = (Arc::clone(&ledger), Arc::new(AtomicBool::new(false)));
    let has_ended = Arc::clone(&ended);
    thread::spawn(move || {
        runtime.block_on(async {
            work(&clients, seed, &of_work).await;
            has_ended.store(true, Ordering::Release);
            // The clients still do what a client does when nothing is asked of it.
            std::future::pending::<()>().await;
        });
    });
    parent.serve(|request| {
        match request {
            "tell" => {}
            "stop" => {
                ledger.stop.store(true, Ordering::Relaxed);
                let until = Instant::now() + PATIENCE + Duration::from_secs(5);
                while !ended.load(Ordering::Acquire) {
                    if Instant::now() > until {
                        bail!("not every request has ended long after its deadline");
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
            _ => bail!("an unknown request: {request}"),
        }
        Ok(serde_json::to_string(&ledger.tell())?)
    })
}

fn options(socket: &Path) -> Options {
    let mut options = Options::new(socket);
    options.crc = true;
    "normal".clone_into(&mut options.name);
    options
}

async fn work(clients: &[Client], seed: u64, ledger: &Arc<Ledger>) {
    let mut tasks = JoinSet::new();
    for (index, client) in clients.iter().enumerate() {
        tasks.spawn(beat(client.clone(), index, seed, Arc::clone(ledger)));
        for place in 0..3 {
            let random = Rng::with_seed(seed ^ (index as u64) << 32 ^ place << 40);
            tasks.spawn(mix(client.clone(), random, Arc::clone(ledger)));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            keep(&mut ledger.lock().wrong, format!("a task ended: {error}"));
        }
    }
}

/// Short echoes, one after another.
async fn beat(client: Client, index: usize, seed: u64, ledger: Arc<Ledger>) {
    let mut number = 0_u64;
    let options = RequestOptions {
        class: Class::Interactive,
        ..RequestOptions::with_deadline(PATIENCE)
    };
    while !ledger.stopped() {
        number += 1;
        let body = pattern(seed ^ number, 16 + number as usize % 200);
        let began = Instant::now();
        let (end, over) = timed(PATIENCE, echo(&client, &body, &options)).await;
        if matches!(end, End::Answered) {
            ledger.beat(index, began.elapsed());
        }
        ledger.note("short echo", end, over);
        ledger.lock().lost[index] = client.counters().lost;
        tokio::time::sleep(BEAT).await;
    }
}

/// Whatever clients ask for, by chance.
async fn mix(client: Client, mut random: Rng, ledger: Arc<Ledger>) {
    while !ledger.stopped() {
        let patience = Duration::from_millis(random.u64(1000..5000));
        let options = RequestOptions {
            deadline: Some(patience),
            class: [Class::ByType, Class::Normal, Class::Bulk][random.usize(0..3)],
            // An echo is it anyway.
            repeatable: false,
        };
        let script = Script {
            nonce: random.u64(..),
            items: random.u32(1..20),
            length: random.u32(0..4096),
            pause: Duration::from_micros(random.u64(0..3000)),
        };
        match random.u32(0..10) {
            0..4 => {
                let body = pattern(random.u64(..), random.usize(0..16 << 10));
                let (end, over) = timed(patience, echo(&client, &body, &options)).await;
                ledger.note("echo", end, over);
            }
            4 => {
                let body = pattern(random.u64(..), random.usize(0..=LONGEST as usize));
                let (end, over) = timed(patience, echo(&client, &body, &options)).await;
                ledger.note("long echo", end, over);
            }
            5..8 => {
                let run = stream(&client, script, &options, u32::MAX);
                let (end, over) = timed(patience, run).await;
                ledger.note("stream", end, over);
            }
            8 => {
                let run = stream(&client, script, &options, script.items / 2);
                let (end, over) = timed(patience, run).await;
                ledger.note("stream, given up", end, over);
            }
            _ => {
                // It cannot be done in that time.
                let patience = Duration::from_millis(random.u64(20..100));
                let options = RequestOptions {
                    deadline: Some(patience),
                    ..options
                };
                let script = Script {
                    items: 1000,
                    pause: Duration::from_millis(5),
                    ..script
                };
                let (end, over) =
                    timed(patience, stream(&client, script, &options, u32::MAX)).await;
                ledger.note("stream without enough time", end, over);
            }
        }
        // A client thinks now and then.
        tokio::time::sleep(Duration::from_micros(random.u64(0..5000))).await;
    }
}

/// How it ended, and how long after its deadline.
async fn timed(patience: Duration, request: impl Future<Output = End>) -> (End, Duration) {
    let deadline = Instant::now() + patience;
    let end = request.await;
    (end, deadline.elapsed())
}

async fn echo(client: &Client, body: &[u8], options: &RequestOptions) -> End {
    match client.call_with(MessageType::ECHO, body, options).await {
        Ok(answer) if answer == body => End::Answered,
        Ok(answer) => {
            let (len, other) = (body.len(), answer.len());
            End::Wrong(format!("an echo of {len} bytes came as {other} others"))
        }
        Err(error) => End::Failed(error),
    }
}

/// Reads an answer up to its end, or up to this item.
async fn stream(client: &Client, script: Script, options: &RequestOptions, most: u32) -> End {
    let mut items = match client.stream(SCRIPT, script.encode(), options).await {
        Ok(items) => items,
        Err(error) => return End::Failed(error),
    };
    let mut number = 0;
    loop {
        if number >= most {
            return End::Cancelled;
        }
        match items.next().await {
            Some(Ok(item)) => {
                if let Err(why) = script.check(number, &item) {
                    return End::Wrong(why);
                }
                number += 1;
            }
            Some(Err(error)) => return End::Failed(error),
            None if number == script.items => return End::Answered,
            None => {
                let (nonce, items) = (script.nonce, script.items);
                return End::Wrong(format!(
                    "request {nonce:x} ended after {number} of {items} items"
                ));
            }
        }
    }
}

impl Told {
    pub(super) fn read(word: &str) -> Result<Self> {
        serde_json::from_str(word).with_context(|| format!("a client process said {word:?}"))
    }
}
