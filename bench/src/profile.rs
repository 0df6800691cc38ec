//! `profile`: where the time of a message goes, function by function, on each side.
//!
//! perf interrupts both processes some thousand times a second by the clock, and what was running then is counted. So it sees what instruction
//! counts do not: the waiting for a line that the other core has, and for a fence. The counts are for the whole exchange; with one
//! message in flight a side spends half of it waiting for the other, which shows as the function that looks for it.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::ipc::window;
use crate::machine::{Cpus, Machine, Side};
use crate::measure::{Effort, latency, throughput};
use crate::message::Messages;
use crate::peers::{Kind, Setup};

/// What is profiled, in this order.
const CASES: [(usize, bool); 5] = [
    (64, false),
    (1 << 10, false),
    (64, true),
    (1 << 10, true),
    (10 << 20, true),
];
/// Samples a second of each side. Odd, so that it beats with nothing.
const FREQUENCY: u32 = 4999;
/// A function below this part of its side's samples is not listed.
const LEAST: f64 = 0.02;

/// Show where the time of a message goes, with perf
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Seconds for each case
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only payloads of these lengths in bytes
    #[arg(long, value_delimiter = ',')]
    payloads: Vec<usize>,
    /// Microseconds that ours spins before it sleeps
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One case.
#[derive(Debug, Serialize)]
struct Profile {
    payload: usize,
    /// Messages in flight.
    window: usize,
    client: Vec<Share>,
    server: Vec<Share>,
}

/// A function's part of its side's time.
#[derive(Debug, Serialize)]
struct Share {
    function: String,
    part: f64,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    ensure!(
        cpus.can_spin(),
        "fewer than two processors are usable: nothing spins, so nothing is to be seen"
    );
    cpus.pin(Side::Parent)?;
    let machine = Machine::look(&cpus);
    let setup = Setup {
        cpus,
        ring: 128 << 10,
        spin: Duration::from_micros(arguments.spin),
        node: None,
    };
    let mut profiles = Vec::new();
    for (payload, is_windowed) in CASES {
        if arguments.payloads.is_empty() || arguments.payloads.contains(&payload) {
            let time = Duration::from_secs(arguments.seconds.max(1));
            profiles.push(profile(&setup, payload, is_windowed, time)?);
        }
    }
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&profiles)?)?;
        return Ok(true);
    }
    writeln!(out, "{machine}")?;
    writeln!(
        out,
        "lapce-ai, spinning {} µs; samples of each side's processor, {FREQUENCY} a second; functions over {:.0} %",
        arguments.spin,
        LEAST * 100.0
    )?;
    for profile in &profiles {
        writeln!(out, "\n{} B, {} in flight", profile.payload, profile.window)?;
        for (side, shares) in [("client", &profile.client), ("server", &profile.server)] {
            for Share { function, part } in shares {
                writeln!(out, "  {side} {:>5.1} %  {function}", part * 100.0)?;
            }
        }
    }
    Ok(true)
}

fn profile(setup: &Setup, payload: usize, is_windowed: bool, time: Duration) -> Result<Profile> {
    let in_flight = if is_windowed { window(payload) } else { 1 };
    let messages = Messages::new(payload, in_flight);
    let dir = tempfile::tempdir()?;
    let samples = dir.path().join("samples");
    let effort = Effort { time, least: 1 };
    let mut peer = Kind::OursSpinning.start(setup, payload, in_flight)?;
    let us = std::process::id();
    let server = only_child(us)?;
    let perf = record(&samples, us, server)?;
    let measured = if is_windowed {
        throughput(&mut *peer, &messages, in_flight, effort).map(drop)
    } else {
        latency(&mut *peer, &messages, effort).map(drop)
    };
    stop(perf)?;
    measured?;
    let found = read(&samples)?;
    peer.finish()?;
    let of = |pid| found.get(&pid).map(shares).unwrap_or_default();
    let profile = Profile {
        payload,
        window: in_flight,
        client: of(us),
        server: of(server),
    };
    ensure!(
        !profile.client.is_empty() && !profile.server.is_empty(),
        "perf took no samples"
    );
    Ok(profile)
}

/// The one process that `parent` has started.
fn only_child(parent: u32) -> Result<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [child] => Ok(child.parse()?),
        _ => bail!("there should be one server, and {path} says {text:?}"),
    }
}

fn record(samples: &Path, client: u32, server: u32) -> Result<Child> {
    Command::new("perf")
        .args(["record", "--quiet", "--event=cpu-clock"])
        .arg(format!("--freq={FREQUENCY}"))
        .arg(format!("--pid={client},{server}"))
        .arg("--output")
        .arg(samples)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start perf, which profiling needs (Debian: linux-perf)")
}

fn stop(mut perf: Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(&perf);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    // It ends by the signal that it was told to end by, so its status says nothing; its file does.
    perf.wait()?;
    Ok(())
}

/// Samples by process and function.
type Samples = HashMap<u32, HashMap<String, u64>>;

fn read(samples: &Path) -> Result<Samples> {
    let output = Command::new("perf")
        .args(["script", "--fields", "pid,ip,sym", "--input"])
        .arg(samples)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "perf script ended with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let mut found = Samples::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // "1234  55d0c0ffee some::function"
        let mut words = line.trim().splitn(2, char::is_whitespace);
        let (Some(pid), Some(rest)) = (words.next(), words.next()) else {
            continue;
        };
        let function = rest.trim().split_once(' ').map_or("", |(_, name)| name);
        let counts = found.entry(pid.parse()?).or_default();
        *counts.entry(plain(function.trim())).or_default() += 1;
    }
    Ok(found)
}

/// A function's name without the compiler's hash.
fn plain(function: &str) -> String {
    match function.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name.to_owned()
        }
        _ => function.to_owned(),
    }
}

fn shares(counts: &HashMap<String, u64>) -> Vec<Share> {
    let all: u64 = counts.values().sum();
    let mut shares: Vec<_> = counts
        .iter()
        .map(|(function, &count)| Share {
            function: function.clone(),
            part: count as f64 / all as f64,
        })
        .filter(|share| share.part >= LEAST)
        .collect();
    shares.sort_by(|a, b| b.part.total_cmp(&a.part).then(a.function.cmp(&b.function)));
    shares
}
