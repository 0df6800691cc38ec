//! The server is killed and started anew, again and again: how long its clients wait, from the moment at which the new one
//! listens to the answer that each of them gets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lapce_ai_client::{BlockingClient, Client};
use lapce_ai_proto::MessageType;
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{Listener, RuntimeDir};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{
    Arguments, BODY, Kind, PATIENCE, async_clients, checked, options, percentile, start,
    start_clients,
};
use crate::child::{Child, Parent, runtime_dir};
use crate::machine::{Cpus, monotonic};

/// For how long the server is away, at least and at most. Random, so that no rhythm of the clients' is met.
const AWAY: [Duration; 2] = [Duration::from_millis(30), Duration::from_millis(150)];

/// Milliseconds from the new server's first moment to an answer.
#[derive(Debug, Serialize)]
pub(super) struct Row {
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

/// The socket, and which processors everybody may use.
struct Place {
    dir: TempDir,
    cpus: Cpus,
}

impl Place {
    fn new(cpus: &Cpus) -> Result<Self> {
        Ok(Self {
            dir: runtime_dir()?,
            cpus: cpus.clone(),
        })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(RuntimeDir::SOCKET)
    }

    /// A server, and when it began to listen.
    fn server(&self, clients: u32) -> Result<(Child, u64)> {
        let most = (clients + 1).to_string();
        let mut server = start("killed", &self.socket(), &self.cpus, &[&most])?;
        let since = server.ask("since")?.parse()?;
        Ok((server, since))
    }
}

pub(super) fn measure(
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
    let mut crowd = start_clients(
        "recovering",
        &place.socket(),
        cpus,
        clients,
        processes,
        kind,
    )?;
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

/// What is printed before the rows.
pub(super) fn explain(out: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    )
}

impl fmt::Display for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:>7} {:>9} {:<9} {:>6} {:>7} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>9.2}",
            self.clients,
            self.processes,
            self.kind.name(),
            self.rounds,
            self.samples,
            self.p50_ms,
            self.p99_ms,
            self.max_ms,
            self.last_p50_ms,
            self.last_max_ms
        )
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
    let since = monotonic().to_string();
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

/// Async clients, on a runtime of one thread.
struct Tasks {
    runtime: tokio::runtime::Handle,
    clients: Vec<Client>,
    send: Sender<Result<u64, String>>,
    receive: Receiver<Result<u64, String>>,
}

impl Tasks {
    fn connect(socket: &Path, clients: usize) -> Result<Self> {
        let (runtime, clients) = async_clients(socket, clients)?;
        let (send, receive) = channel();
        Ok(Self {
            runtime,
            clients,
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
    fn the_server_is_away_for_a_random_time() {
        for round in 0..100 {
            assert!((AWAY[0]..=AWAY[1]).contains(&away(round)));
        }
    }
}
