//! The product is replaced by plan (`lapce-ai restart`), again and again, while its clients ask all the time: how long each of
//! them is without an answer, beside the same in a time of the same length in which nothing happens.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lapce_ai_client::{BlockingClient, Client};
use lapce_ai_proto::MessageType;
use serde::{Deserialize, Serialize};

use super::{Arguments, BODY, Kind, async_clients, checked, options, percentile, start_clients};
use crate::child::{Child, Parent};
use crate::daemon::Daemon;
use crate::machine::{Cpus, monotonic};

/// From a client's answer to its next request: without it fifty clients would measure how the processors are shared.
const PAUSE: Duration = Duration::from_millis(1);
/// For how long clients are watched before a restart is asked for, and after it is over.
const BEFORE: Duration = Duration::from_millis(100);
const AFTER: Duration = Duration::from_millis(300);
/// Texts of failures that a client process tells each time.
const TOLD: usize = 3;
/// The least that the daemon serves with: nothing of it is asked for.
const PROVIDERS: &str = "[providers.local]\ntype = \"local\"\n";

/// One number of clients through all of its restarts.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    clients: u32,
    processes: u32,
    kind: Kind,
    restarts: u32,
    /// Requests that were answered while the daemon was replaced, and those that failed, then or in the quiet times.
    answers: u64,
    failed: u64,
    /// Times a connection of a client's was gone on with by the next daemon, and times it was made anew.
    handed_over: u64,
    reconnected: u64,
    /// The longest gap between two answers of each client in each restart, and in each of the quiet times.
    restart: Gaps,
    quiet: Gaps,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
struct Gaps {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Gaps {
    fn of(mut gaps: Vec<u64>) -> Result<Self> {
        ensure!(!gaps.is_empty(), "nobody was watched");
        gaps.sort_unstable();
        Ok(Self {
            p50_ms: percentile(&gaps, 0.5),
            p99_ms: percentile(&gaps, 0.99),
            max_ms: percentile(&gaps, 1.0),
        })
    }
}

/// What clients saw since they were told to begin.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    /// Of each client, nanoseconds.
    gaps: Vec<u64>,
    answers: u64,
    failed: u64,
    /// Connections made.
    connected: u64,
    errors: Vec<String>,
}

pub(super) fn measure(
    arguments: &Arguments,
    cpus: &Cpus,
    program: &Path,
    clients: u32,
    kind: Kind,
    errors: &mut Vec<String>,
) -> Result<Row> {
    let processes = arguments.processes.min(clients);
    let restarts = match arguments.quick {
        true => 2,
        false => arguments.restarts,
    };
    // One more is the bench itself, and one more whoever comes anew before the daemon has seen that its old connection ended.
    let most = 2 * u64::from(clients + 1);
    let mut daemon = Daemon::start(program, cpus, PROVIDERS, most)?;
    let mut crowd = start_clients("asking", &daemon.socket(), cpus, clients, processes, kind)?;
    let (mut restarted, mut quiet) = (Told::default(), Told::default());
    for _ in 0..restarts {
        begin(&mut crowd)?;
        let began = Instant::now();
        thread::sleep(BEFORE);
        daemon.restart().with_context(|| daemon.log())?;
        thread::sleep(AFTER);
        let took = began.elapsed();
        end(&mut crowd, &mut restarted)?;
        begin(&mut crowd)?;
        thread::sleep(took);
        end(&mut crowd, &mut quiet)?;
    }
    crowd.into_iter().try_for_each(Child::finish)?;
    daemon.finish()?;
    errors.append(&mut restarted.errors);
    errors.append(&mut quiet.errors);
    let reconnected = restarted.connected + quiet.connected;
    Ok(Row {
        clients,
        processes,
        kind,
        restarts,
        answers: restarted.answers,
        failed: restarted.failed + quiet.failed,
        handed_over: u64::from(clients * restarts).saturating_sub(reconnected),
        reconnected,
        restart: Gaps::of(restarted.gaps)?,
        quiet: Gaps::of(quiet.gaps)?,
    })
}

fn begin(crowd: &mut [Child]) -> Result<()> {
    for child in crowd {
        let word = child.ask("begin")?;
        ensure!(word == "begun", "a client process said {word:?}");
    }
    Ok(())
}

fn end(crowd: &mut [Child], all: &mut Told) -> Result<()> {
    for child in crowd {
        let told: Told = serde_json::from_str(&child.ask("end")?)?;
        all.gaps.extend(told.gaps);
        all.answers += told.answers;
        all.failed += told.failed;
        all.connected += told.connected;
        all.errors.extend(told.errors);
    }
    Ok(())
}

/// What is printed before the rows.
pub(super) fn explain(out: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        out,
        "\nthe daemon is replaced by plan while each client asks again {} ms after each answer; ms of the longest gap between two answers of\n\
         each client in each restart, and in an equally long time without one; failed requests must be 0; nobody is pinned\n",
        PAUSE.as_millis(),
    )?;
    let of = ["p50", "p99", "max"]
        .map(|what| format!("{what:>8}"))
        .concat();
    writeln!(
        out,
        "{:62}through a restart       {:>17}",
        "", "without one"
    )?;
    writeln!(
        out,
        "clients processes kind      restarts answers failed handed over came anew{of}  {of}"
    )
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:>7} {:>9} {:<9} {:>8} {:>7} {:>6} {:>11} {:>9}",
            self.clients,
            self.processes,
            self.kind.name(),
            self.restarts,
            self.answers,
            self.failed,
            self.handed_over,
            self.reconnected,
        )?;
        for (before, gaps) in [("", &self.restart), ("  ", &self.quiet)] {
            write!(
                out,
                "{before}{:>8.2}{:>8.2}{:>8.2}",
                gaps.p50_ms, gaps.p99_ms, gaps.max_ms
            )?;
        }
        writeln!(out)
    }
}

/// The child with clients that ask all the time: `begin`, and `end` with what they have seen since.
pub(crate) fn ask(
    parent: Parent,
    socket: &Path,
    on: Vec<usize>,
    clients: usize,
    kind: &str,
) -> Result<()> {
    Cpus::from_list(on).unpin()?;
    let asking = match kind {
        "async" => asking(socket, clients)?,
        "blocking" => asking_in_threads(socket, clients)?,
        other => bail!("there are no {other} clients"),
    };
    let mut connected = 0;
    let connections = || {
        asking
            .iter()
            .map(|asking| asking.client.connections())
            .sum()
    };
    parent.serve(|request| match request {
        "begin" => {
            connected = connections();
            for asking in &asking {
                asking.seen().begin();
            }
            Ok("begun".to_owned())
        }
        "end" => {
            let mut told = Told {
                connected: connections() - connected,
                ..Told::default()
            };
            for asking in &asking {
                asking.seen().end(monotonic(), &mut told);
            }
            Ok(serde_json::to_string(&told)?)
        }
        other => bail!("asked for {other:?}"),
    })
}

/// A client that asks, and what it sees.
struct Asking {
    client: Either,
    seen: Arc<Mutex<Seen>>,
}

enum Either {
    Async(Client),
    Blocking(Arc<BlockingClient>),
}

impl Either {
    fn connections(&self) -> u64 {
        match self {
            Self::Async(client) => client.counters().connected,
            Self::Blocking(client) => client.counters().connected,
        }
    }
}

impl Asking {
    fn new(client: Either) -> Self {
        let seen = Seen {
            latest: monotonic(),
            ..Seen::default()
        };
        Self {
            client,
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a client sees from `begin` to `end`. The gap that it is in at either moment counts as a whole or as far as it has come.
#[derive(Debug, Default)]
struct Seen {
    /// When the latest answer came.
    latest: u64,
    longest: u64,
    answers: u64,
    failed: u64,
    errors: Vec<String>,
}

impl Seen {
    fn begin(&mut self) {
        *self = Self {
            latest: self.latest,
            ..Self::default()
        };
    }

    fn note(&mut self, answer: Result<u64, String>) {
        match answer {
            Ok(at) => {
                self.longest = self.longest.max(at.saturating_sub(self.latest));
                self.latest = at;
                self.answers += 1;
            }
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < TOLD {
                    self.errors.push(error);
                }
            }
        }
    }

    fn end(&mut self, at: u64, told: &mut Told) {
        told.gaps
            .push(self.longest.max(at.saturating_sub(self.latest)));
        told.answers += self.answers;
        told.failed += self.failed;
        told.errors.append(&mut self.errors);
        told.errors.truncate(TOLD);
    }
}

fn asking(socket: &Path, clients: usize) -> Result<Vec<Asking>> {
    let (runtime, clients) = async_clients(socket, clients)?;
    let start = |client: Client| {
        let asking = Asking::new(Either::Async(client.clone()));
        let seen = Arc::clone(&asking.seen);
        runtime.spawn(async move {
            loop {
                let answer = client.call(MessageType::ECHO, BODY).await;
                lock(&seen).note(checked(answer));
                tokio::time::sleep(PAUSE).await;
            }
        });
        asking
    };
    Ok(clients.into_iter().map(start).collect())
}

/// Each in a thread of its own, which ends with the process.
fn asking_in_threads(socket: &Path, clients: usize) -> Result<Vec<Asking>> {
    let start = |_| {
        let client = Arc::new(BlockingClient::connect(options(socket))?);
        let asking = Asking::new(Either::Blocking(Arc::clone(&client)));
        let seen = Arc::clone(&asking.seen);
        thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || {
                loop {
                    let answer = client.call(MessageType::ECHO, BODY);
                    lock(&seen).note(checked(answer));
                    thread::sleep(PAUSE);
                }
            })?;
        Ok(asking)
    };
    (0..clients).map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_of_what_was_seen() {
        let mut seen = Seen {
            latest: 100,
            ..Seen::default()
        };
        seen.begin();
        for at in [130, 140, 200, 210] {
            seen.note(Ok(at));
        }
        seen.note(Err("no".to_owned()));
        let mut told = Told::default();
        seen.end(220, &mut told);
        assert_eq!(told.gaps, [60]);
        assert_eq!((told.answers, told.failed), (4, 1));
        assert_eq!(told.errors, ["no"]);
        // It goes on from the latest answer, and counts the gap that it is in.
        seen.begin();
        seen.end(300, &mut told);
        assert_eq!(told.gaps, [60, 90]);
        assert_eq!((told.answers, told.failed), (4, 1));
    }
}
