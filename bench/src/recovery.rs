//! The server is killed and started anew, again and again: how long its clients wait, from the moment at which the new one
//! listens to the answer that each of them gets.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lapce_ai_client::{BlockingClient, Client, ReconnectPolicy};
use lapce_ai_proto::MessageType;
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{Listener, RuntimeDir};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::child::{Child, Parent};
use crate::connections::raise_limit;
use crate::machine::{Cpus, Machine};

/// What each client asks.
const BODY: &[u8] = b"is anybody there?";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// For how long the server is away, at least and at most. Random, so that no rhythm of the clients' is met.
const AWAY: [Duration; 2] = [Duration::from_millis(30), Duration::from_millis(150)];

/// Measure how soon clients are served again after the server was killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Clients, a row for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    clients: Vec<u32>,
    /// Client processes at most
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,
    /// Answers that are wanted for each row; the server is killed as often as that takes, 10 to 200 times
    #[arg(long, default_value_t = 2500)]
    samples: u32,
    /// Kill the server three times for each row: to see that it works
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which of the two clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Async,
    Blocking,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Blocking => "blocking",
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rows: Vec<Row>,
    errors: Vec<String>,
}

/// Milliseconds from the new server's first moment to an answer.
#[derive(Debug, Serialize)]
struct Row {
    clients: u32,
    processes: u32,
    kind: Kind,
    /// How often the server was killed.
    rounds: u32,
    samples: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Of each round the last client: the median of the rounds, and the worst.
    last_p50_ms: f64,
    last_max_ms: f64,
}

/// What a client process tells of a round.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// When each client had its answer, on the clock that all processes share.
    served: Vec<u64>,
    errors: Vec<String>,
}

/// Nanoseconds on the clock that all processes of the machine share and nobody sets.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Measures and prints. False: a client was not served.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    let mut report = Report {
        machine: Machine::look(&cpus),
        rows: Vec::new(),
        errors: Vec::new(),
    };
    for &clients in &arguments.clients {
        ensure!(clients > 0, "at least one client");
        raise_limit(clients.into())?;
        for kind in [Kind::Async, Kind::Blocking] {
            let found = measure(arguments, &cpus, clients, kind, &mut report.errors);
            let row = found.with_context(|| format!("{clients} {} clients", kind.name()))?;
            report.rows.push(row);
        }
    }
    let text = if arguments.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_string()
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(report.errors.is_empty())
}

/// The socket, and which processors everybody may use.
struct Place {
    dir: TempDir,
    cpus: Cpus,
}

impl Place {
    fn new(cpus: &Cpus) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lapce-ai-bench-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()?;
        Ok(Self {
            dir,
            cpus: cpus.clone(),
        })
    }

    fn start(&self, role: &str, more: &[&str]) -> Result<Child> {
        let socket = self.dir.path().join(RuntimeDir::SOCKET);
        let socket = socket
            .to_str()
            .context("the temporary directory's path is no UTF-8")?;
        let all = self.cpus.to_argument();
        let arguments = [&[role, socket, "--on", &all], more].concat();
        Child::start(&arguments, &self.cpus, &[])
    }

    /// A server, and when it began to listen.
    fn server(&self, clients: u32) -> Result<(Child, u64)> {
        let most = (clients + 1).to_string();
        let mut server = self.start("killed", &[&most])?;
        let since = server.ask("since")?.parse()?;
        Ok((server, since))
    }
}

fn measure(
    arguments: &Arguments,
    cpus: &Cpus,
    clients: u32,
    kind: Kind,
    errors: &mut Vec<String>,
) -> Result<Row> {
    let processes = arguments.processes.min(clients);
    let rounds = if arguments.quick {
        3
    } else {
        arguments.samples.div_ceil(clients).clamp(10, 200)
    };
    let place = Place::new(cpus)?;
    let (mut server, _) = place.server(clients)?;
    let mut crowd = Vec::new();
    for index in 0..processes {
        let share = clients / processes + u32::from(index < clients % processes);
        crowd.push(place.start("recovering", &[&share.to_string(), kind.name()])?);
    }
    let mut waits = Vec::new();
    let mut lasts = Vec::new();
    for round in 0..rounds {
        // Killed, and waited for.
        drop(server);
        for child in &mut crowd {
            child.tell("ask")?;
        }
        for child in &mut crowd {
            let word = child.read_word()?;
            ensure!(word == "asked", "a client process said {word:?}");
        }
        thread::sleep(away(round));
        let since;
        (server, since) = place.server(clients)?;
        let before = waits.len();
        for child in &mut crowd {
            child.tell("tell")?;
        }
        for child in &mut crowd {
            let told: Told = serde_json::from_str(&child.read_word()?)?;
            waits.extend(told.served.iter().map(|at| at.saturating_sub(since)));
            errors.extend(told.errors);
        }
        lasts.extend(waits[before..].iter().max());
    }
    crowd.into_iter().try_for_each(Child::finish)?;
    server.finish()?;
    waits.sort_unstable();
    lasts.sort_unstable();
    if waits.is_empty() {
        bail!("nobody was served: {errors:?}");
    }
    Ok(Row {
        clients,
        processes,
        kind,
        rounds,
        samples: waits.len(),
        p50_ms: percentile(&waits, 0.5),
        p99_ms: percentile(&waits, 0.99),
        max_ms: percentile(&waits, 1.0),
        last_p50_ms: percentile(&lasts, 0.5),
        last_max_ms: percentile(&lasts, 1.0),
    })
}

/// How long the server is away in this round.
fn away(round: u32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(round) as f64 / u64::MAX as f64;
    AWAY[0] + (AWAY[1] - AWAY[0]).mul_f64(random)
}

/// Of sorted nanoseconds, in milliseconds: the least that so large a part of them does not exceed.
fn percentile(sorted: &[u64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len()) - 1;
    sorted[at] as f64 / 1e6
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(
            out,
            "the server is killed (SIGKILL) while its clients are connected, they all ask, and {} to {} ms later another is started;",
            AWAY[0].as_millis(),
            AWAY[1].as_millis()
        )?;
        writeln!(
            out,
            "ms from when it listens to each client's answer; \"last\" is the last client of a round; nobody is pinned\n"
        )?;
        writeln!(
            out,
            "clients processes kind      rounds samples      p50      p99      max  last p50  last max"
        )?;
        for row in &self.rows {
            writeln!(
                out,
                "{:>7} {:>9} {:<9} {:>6} {:>7} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>9.2}",
                row.clients,
                row.processes,
                row.kind.name(),
                row.rounds,
                row.samples,
                row.p50_ms,
                row.p99_ms,
                row.max_ms,
                row.last_p50_ms,
                row.last_max_ms
            )?;
        }
        for error in &self.errors {
            writeln!(out, "NOT SERVED: {error}")?;
        }
        Ok(())
    }
}

/// The child that is killed: a server with its defaults.
pub(crate) fn serve(
    parent: Parent,
    socket: &Path,
    on: Vec<usize>,
    max_connections: usize,
) -> Result<()> {
    Cpus::from_list(on).unpin()?;
    let mut server = Server::new(Options {
        max_connections,
        ..Options::default()
    });
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    // Only for the handle: there are no async handlers.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let listener = Listener::bind(&RuntimeDir::for_socket(socket))?;
    let since = now().to_string();
    let running = server.start(listener, runtime.handle())?;
    parent.serve(|request| match request {
        "since" => Ok(since.clone()),
        other => bail!("asked for {other:?}"),
    })?;
    running.handle().shutdown(Duration::ZERO);
    running.join();
    Ok(())
}

/// The child with clients that ask again and again.
pub(crate) fn recover(
    parent: Parent,
    socket: &Path,
    on: Vec<usize>,
    clients: usize,
    kind: &str,
) -> Result<()> {
    Cpus::from_list(on).unpin()?;
    let mut crowd: Box<dyn Crowd> = match kind {
        "async" => Box::new(Tasks::connect(socket, clients)?),
        "blocking" => Box::new(Threads::connect(socket, clients)?),
        other => bail!("there are no {other} clients"),
    };
    parent.serve(|request| match request {
        "ask" => {
            crowd.ask()?;
            Ok("asked".to_owned())
        }
        "tell" => Ok(serde_json::to_string(&crowd.gather()?)?),
        other => bail!("asked for {other:?}"),
    })
}

/// Clients of one kind.
trait Crowd {
    /// Has all of them ask, without waiting for the answers.
    fn ask(&mut self) -> Result<()>;
    /// When each had its answer, or why it had none.
    fn answers(&self) -> &Receiver<Result<u64, String>>;
    fn len(&self) -> usize;

    fn gather(&mut self) -> Result<Told> {
        let until = Instant::now() + PATIENCE;
        let mut told = Told {
            served: Vec::new(),
            errors: Vec::new(),
        };
        for _ in 0..self.len() {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers().recv_timeout(left) {
                Ok(Ok(at)) => told.served.push(at),
                Ok(Err(error)) => told.errors.push(error),
                Err(error) => {
                    told.errors.push(format!("no answer: {error}"));
                    break;
                }
            }
        }
        Ok(told)
    }
}

fn options(socket: &Path) -> lapce_ai_client::Options {
    lapce_ai_client::Options {
        name: "lapce-ai-bench".to_owned(),
        connect_timeout: PATIENCE,
        reconnect: ReconnectPolicy::default(),
        ..lapce_ai_client::Options::new(socket)
    }
}

fn checked<E: fmt::Display>(answer: Result<Vec<u8>, E>) -> Result<u64, String> {
    let at = now();
    match answer {
        Ok(answer) if answer == BODY => Ok(at),
        Ok(answer) => Err(format!("{} bytes of another answer", answer.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Async clients, on a runtime of one thread.
struct Tasks {
    runtime: tokio::runtime::Handle,
    clients: Vec<Client>,
    send: Sender<Result<u64, String>>,
    receive: Receiver<Result<u64, String>>,
}

impl Tasks {
    fn connect(socket: &Path, clients: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let socket = socket.to_owned();
        let (connected, wait) = channel();
        // Ends with the process.
        thread::spawn(move || {
            runtime.block_on(async move {
                let mut found = Vec::with_capacity(clients);
                for _ in 0..clients {
                    match Client::connect(options(&socket)).await {
                        Ok(client) => found.push(client),
                        Err(error) => return drop(connected.send(Err(error))),
                    }
                }
                let _ = connected.send(Ok(found));
                std::future::pending::<()>().await;
            });
        });
        let (send, receive) = channel();
        Ok(Self {
            runtime: handle,
            clients: wait.recv()??,
            send,
            receive,
        })
    }
}

impl Crowd for Tasks {
    fn ask(&mut self) -> Result<()> {
        for client in &self.clients {
            let (client, send) = (client.clone(), self.send.clone());
            self.runtime.spawn(async move {
                let answer = client.call(MessageType::ECHO, BODY).await;
                let _ = send.send(checked(answer));
            });
        }
        Ok(())
    }

    fn answers(&self) -> &Receiver<Result<u64, String>> {
        &self.receive
    }

    fn len(&self) -> usize {
        self.clients.len()
    }
}

/// Blocking clients, each in a thread of its own.
struct Threads {
    go: Vec<Sender<()>>,
    receive: Receiver<Result<u64, String>>,
}

impl Threads {
    fn connect(socket: &Path, clients: usize) -> Result<Self> {
        let (send, receive) = channel();
        let ready = Arc::new(Barrier::new(clients + 1));
        let socket: Arc<PathBuf> = Arc::new(socket.to_owned());
        let mut go = Vec::with_capacity(clients);
        for _ in 0..clients {
            let (start, started) = channel();
            go.push(start);
            let (send, ready, socket) = (send.clone(), Arc::clone(&ready), Arc::clone(&socket));
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || {
                    let client = BlockingClient::connect(options(&socket));
                    ready.wait();
                    while started.recv().is_ok() {
                        let answer = match &client {
                            Ok(client) => client
                                .call(MessageType::ECHO, BODY)
                                .map_err(|error| error.to_string()),
                            Err(error) => Err(error.to_string()),
                        };
                        let _ = send.send(checked(answer));
                    }
                })?;
        }
        ready.wait();
        Ok(Self { go, receive })
    }
}

impl Crowd for Threads {
    fn ask(&mut self) -> Result<()> {
        for go in &self.go {
            go.send(())?;
        }
        Ok(())
    }

    fn answers(&self) -> &Receiver<Result<u64, String>> {
        &self.receive
    }

    fn len(&self) -> usize {
        self.go.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let sorted: Vec<u64> = (1..=100).map(|n| n * 1_000_000).collect();
        assert_eq!(
            [0.5, 0.99, 1.0].map(|part| percentile(&sorted, part)),
            [50.0, 99.0, 100.0]
        );
        assert_eq!(percentile(&[7_000_000], 0.99), 7.0);
    }

    #[test]
    fn the_server_is_away_for_a_random_time() {
        for round in 0..100 {
            assert!((AWAY[0]..=AWAY[1]).contains(&away(round)));
        }
    }
}
