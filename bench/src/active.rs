//! One connection that talks among many that are idle: what a message costs must not depend on them.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::child::Child;
use crate::connections::raise_limit;
use crate::ipc::{Regime, ping_pong, regime};
use crate::machine::{Cpus, Machine, Side};
use crate::measure::{Effort, Latency, Throughput, latency, median, throughput};
use crate::message::Messages;
use crate::peers::{Ours, Peer, ServerChild, Setup};
use crate::report::print;

/// Messages in flight for the throughput.
const WINDOW: usize = 64;
/// For the bare ping-pong.
const RING: usize = 128 * 1024;

/// Measure one active connection among many idle ones.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Connections in all, one of them active
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1000, 10_000])]
    connections: Vec<u64>,
    /// Payload in bytes
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// How often each row is measured, in turn
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 200)]
    millis: u64,
    /// Microseconds that both sides spin before they sleep
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Print JSON, with every repetition
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    payload: usize,
    window: usize,
    rows: Vec<Row>,
    /// Why rows are missing.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    connections: u64,
    repetitions: Vec<Repetition>,
}

#[derive(Debug, Serialize)]
struct Repetition {
    /// For all the idle connections, one after another.
    open_seconds: f64,
    /// Medians of the bare ping-pong, before and after.
    ping_pong_ns: [u64; 2],
    latency: Latency,
    throughput: Throughput,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let mut report = Report {
        machine: Machine::look(&cpus),
        payload: arguments.payload,
        window: WINDOW,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    for &connections in &arguments.connections {
        match raise_limit(connections) {
            Ok(()) => report.rows.push(Row {
                connections,
                repetitions: Vec::new(),
            }),
            Err(error) => report.left_out.push(format!("{error:#}")),
        }
    }
    for _ in 0..arguments.repeat.max(1) {
        for row in &mut report.rows {
            let found = measure(arguments, &cpus, row.connections)
                .with_context(|| format!("with {} connections", row.connections))?;
            row.repetitions.push(found);
        }
    }
    print(&report, arguments.json)?;
    Ok(true)
}

fn measure(arguments: &Arguments, cpus: &Cpus, connections: u64) -> Result<Repetition> {
    let spin = Duration::from_micros(arguments.spin);
    let effort = Effort {
        time: Duration::from_millis(arguments.millis),
        least: 100,
    };
    let setup = Setup {
        cpus: cpus.clone(),
        ring: RING,
        spin,
        node: None,
    };
    let server = ServerChild::start(cpus, spin, usize::try_from(connections)? + 1)?;
    let socket = server.socket();
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    // On our processor, where it sleeps while we measure.
    let mut holder = Child::start(&["holder", socket], &cpus.exchanged(), &[])?;
    let open_seconds: f64 = holder
        .ask(&format!("open {}", connections.saturating_sub(1)))?
        .parse()?;
    holder.ask("serve")?;
    let mut active = Box::new(Ours::beside(server, spin)?);
    let messages = Messages::new(arguments.payload, WINDOW);
    let before = ping_pong(&setup, effort)?;
    let latency = latency(active.as_mut(), &messages, effort)?;
    let throughput = throughput(active.as_mut(), &messages, WINDOW, effort)?;
    let after = ping_pong(&setup, effort)?;
    // They must all have lived through it.
    holder.ask("serve")?;
    holder.finish()?;
    active.finish()?;
    Ok(Repetition {
        open_seconds,
        ping_pong_ns: [before, after],
        latency,
        throughput,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(
            out,
            "one active connection, payload {} bytes, both sides spinning, among idle ones of another process, each served once before and after",
            self.payload
        )?;
        writeln!(
            out,
            "medians by regime; window {} for the rate\n",
            self.window
        )?;
        writeln!(
            out,
            "connections regime     n ping-pong   p50 µs   p99 µs  x first   messages/s  x first   all opened in s"
        )?;
        for wanted in [Regime::Near, Regime::Far] {
            let mut first = None;
            for row in &self.rows {
                let of = |figure: fn(&Repetition) -> f64| {
                    let [count, value] = row.median_of(wanted, figure);
                    (count > 0.0).then_some(value)
                };
                let (Some(p50), Some(p99), Some(rate), Some(ping), Some(open)) = (
                    of(|r| r.latency.p50 as f64 / 1e3),
                    of(|r| r.latency.p99 as f64 / 1e3),
                    of(|r| r.throughput.per_second),
                    of(|r| r.ping_pong_ns[0] as f64 / 1e3),
                    of(|r| r.open_seconds),
                ) else {
                    continue;
                };
                let (first_p50, first_rate) = *first.get_or_insert((p50, rate));
                writeln!(
                    out,
                    "{:>11} {:<8} {:>3} {ping:>9.2} {p50:>8.2} {p99:>8.2} {:>8.2} {rate:>12.0} {:>8.2} {open:>17.3}",
                    row.connections,
                    wanted.name(),
                    row.median_of(wanted, |_| 0.0)[0],
                    p50 / first_p50,
                    rate / first_rate,
                )?;
            }
        }
        for reason in &self.left_out {
            writeln!(out, "left out: {reason}")?;
        }
        Ok(())
    }
}

impl Row {
    /// How many repetitions were in this regime, and the median of a figure over them.
    fn median_of(&self, wanted: Regime, figure: impl Fn(&Repetition) -> f64) -> [f64; 2] {
        let within: Vec<f64> = self
            .repetitions
            .iter()
            .filter(|found| regime(found.ping_pong_ns[0], found.ping_pong_ns[1]) == wanted)
            .map(figure)
            .collect();
        [within.len() as f64, median(within).unwrap_or(0.0)]
    }
}
