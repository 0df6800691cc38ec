//! How soon clients are served again: after the server was killed (`kill.rs`), and while the daemon is replaced by plan
//! (`restart.rs`).

mod kill;
mod restart;

pub(crate) use kill::{recover, serve};
pub(crate) use restart::ask;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lapce_ai_client::{Client, ReconnectPolicy};
use serde::Serialize;

use crate::child::Child;
use crate::connections::raise_limit;
use crate::daemon::program;
use crate::machine::{Cpus, Machine, monotonic};
use crate::report::print;

/// What each client asks.
const BODY: &[u8] = b"is anybody there?";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Measure how soon clients are served again after the server was killed, and while the daemon is replaced by plan.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Clients of a server that is killed, a row for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50, 1000])]
    clients: Vec<u32>,
    /// Client processes at most
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,
    /// Answers that are wanted for each row; the server is killed as often as that takes, 10 to 200 times
    #[arg(long, default_value_t = 2500)]
    samples: u32,
    /// Clients of a daemon that is replaced by plan, a row for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 50])]
    restart_clients: Vec<u32>,
    /// Planned restarts for each row
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
    /// The lapce-ai program that is replaced by plan. Unless it is said: the one beside this program
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Kill the server three times for each row, and replace the daemon twice: to see that it works
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
    /// After a kill.
    rows: Vec<kill::Row>,
    /// Through planned restarts.
    restarts: Vec<restart::Row>,
    left_out: Vec<String>,
    errors: Vec<String>,
}

/// Measures and prints. False: a client was not served.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    let mut report = Report {
        machine: Machine::look(&cpus),
        rows: Vec::new(),
        restarts: Vec::new(),
        left_out: Vec::new(),
        errors: Vec::new(),
    };
    let daemon = match program(arguments.daemon.as_deref()) {
        Ok(daemon) => Some(daemon),
        // The rest can be measured without it; whoever named one wants these rows.
        Err(error) if arguments.daemon.is_none() => {
            report.left_out.push(format!("planned restarts: {error:#}"));
            None
        }
        Err(error) => return Err(error),
    };
    for &clients in &arguments.clients {
        for kind in [Kind::Async, Kind::Blocking] {
            prepare(clients)?;
            let found = kill::measure(arguments, &cpus, clients, kind, &mut report.errors);
            let row = found.with_context(|| format!("{clients} {} clients", kind.name()))?;
            report.rows.push(row);
        }
    }
    if let Some(daemon) = &daemon {
        for &clients in &arguments.restart_clients {
            for kind in [Kind::Async, Kind::Blocking] {
                prepare(clients)?;
                let what = || format!("planned restarts with {clients} {} clients", kind.name());
                let errors = &mut report.errors;
                let found = restart::measure(arguments, &cpus, daemon, clients, kind, errors);
                report.restarts.push(found.with_context(what)?);
            }
        }
    }
    print(&report, arguments.json)?;
    Ok(report.errors.is_empty())
}

fn prepare(clients: u32) -> Result<()> {
    ensure!(clients > 0, "at least one client");
    // One that is replaced by plan keeps two for each.
    raise_limit(2 * u64::from(clients))
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        kill::explain(out)?;
        self.rows.iter().try_for_each(|row| row.fmt(out))?;
        if !self.restarts.is_empty() {
            restart::explain(out)?;
            self.restarts.iter().try_for_each(|row| row.fmt(out))?;
        }
        for what in &self.left_out {
            writeln!(out, "LEFT OUT: {what}")?;
        }
        for error in &self.errors {
            writeln!(out, "NOT SERVED: {error}")?;
        }
        Ok(())
    }
}

/// Of sorted nanoseconds, in milliseconds: the least that so large a part of them does not exceed.
fn percentile(sorted: &[u64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    let at = rank.clamp(1, sorted.len()) - 1;
    sorted[at] as f64 / 1e6
}

/// A child in a role that knows the socket and runs on any processor.
fn start(role: &str, socket: &Path, cpus: &Cpus, more: &[&str]) -> Result<Child> {
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    let all = cpus.to_argument();
    let arguments = [&[role, socket, "--on", &all], more].concat();
    Child::start(&arguments, cpus, &[])
}

/// So many processes that share so many clients.
fn start_clients(
    role: &str,
    socket: &Path,
    cpus: &Cpus,
    clients: u32,
    processes: u32,
    kind: Kind,
) -> Result<Vec<Child>> {
    (0..processes)
        .map(|index| {
            let share = clients / processes + u32::from(index < clients % processes);
            start(role, socket, cpus, &[&share.to_string(), kind.name()])
        })
        .collect()
}

fn options(socket: &Path) -> lapce_ai_client::Options {
    lapce_ai_client::Options {
        name: "lapce-ai-bench".to_owned(),
        connect_timeout: PATIENCE,
        reconnect: ReconnectPolicy::default(),
        ..lapce_ai_client::Options::new(socket)
    }
}

/// When the answer was there, if it is the right one.
fn checked<E: fmt::Display>(answer: Result<Vec<u8>, E>) -> Result<u64, String> {
    let at = monotonic();
    match answer {
        Ok(answer) if answer == BODY => Ok(at),
        Ok(answer) => Err(format!("{} bytes of another answer", answer.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Async clients, connected on a runtime of one thread, which ends with the process.
fn async_clients(socket: &Path, count: usize) -> Result<(tokio::runtime::Handle, Vec<Client>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    let socket = socket.to_owned();
    let (connected, wait) = channel();
    thread::spawn(move || {
        runtime.block_on(async move {
            let mut found = Vec::with_capacity(count);
            for _ in 0..count {
                match Client::connect(options(&socket)).await {
                    Ok(client) => found.push(client),
                    Err(error) => return drop(connected.send(Err(error))),
                }
            }
            let _ = connected.send(Ok(found));
            std::future::pending::<()>().await;
        });
    });
    Ok((handle, wait.recv()??))
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
}
