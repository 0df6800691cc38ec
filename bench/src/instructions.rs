//! `instructions`: how many instructions a message costs, counted by valgrind's callgrind.
//!
//! Time on a shared machine says little about a change of a few percent; the count of what is executed says it on any.
//! Server and client are the real ones, in one process, since callgrind counts one; neither spins, so that nothing is counted
//! that depends on how long something took; and all is on one processor, since on two it depends on what else the machine
//! does how often both are awake at once: a fifth of the count of a round trip. For the same reason the threads are scheduled as batch work: kernels differ in
//! whether one that is woken runs at once or after the one that woke it, and batch work never does at once. Each case runs twice, with few messages and with many: the difference is what
//! the further messages cost, without start and end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapce_ai_client::BlockingClient;
use lapce_ai_proto::MessageType;
use lapce_ai_server::{Options, Server};
use lapce_ai_transport::{Listener, RuntimeDir};
use serde::{Deserialize, Serialize};

use crate::machine::{Cpus, Side};
use crate::measure::median;
use crate::message::{Flow, Messages};

/// What is counted: a name, the payload in bytes, the window, and the messages of the shorter and the longer run.
const CASES: [Case; 6] = [
    Case::new("echo 64 B", 64, 1, [200, 1200]),
    Case::new("echo 1 KiB", 1024, 1, [200, 1200]),
    Case::new("echo 64 KiB", 64 << 10, 1, [20, 120]),
    Case::new("echo 1 MiB", 1 << 20, 1, [4, 24]),
    Case::new("echo 64 B, window 64", 64, 64, [640, 12_800]),
    Case::new("echo 1 KiB, window 64", 1024, 64, [640, 12_800]),
];

#[derive(Debug)]
struct Case {
    name: &'static str,
    payload: usize,
    window: usize,
    messages: [u64; 2],
}

impl Case {
    const fn new(name: &'static str, payload: usize, window: usize, messages: [u64; 2]) -> Self {
        Self {
            name,
            payload,
            window,
            messages,
        }
    }
}

/// Count the instructions of a message with valgrind
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Compare with this file, and fail where a message costs over 5 % more
    #[arg(long)]
    check: Option<PathBuf>,
    /// Write the counts into this file
    #[arg(long, conflicts_with = "check")]
    write: Option<PathBuf>,
    /// How often each case is counted
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Only cases whose name has this in it
    #[arg(long)]
    only: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How much more a message may cost than the file says: what two counts of the same program differ, and a little.
const TOLERANCE: f64 = 0.05;

/// Counts of a machine. They depend on the compiler and on the C library's copies, so both are named.
#[derive(Debug, Serialize, Deserialize)]
struct Counts {
    compiler: String,
    valgrind: String,
    /// By case.
    instructions_per_message: BTreeMap<String, f64>,
}

/// Counts and prints, and compares where that is asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    // What this process starts stays there too.
    Cpus::allowed()?.pin(Side::Parent)?;
    let mut found = Counts {
        compiler: version("rustc")?,
        valgrind: version("valgrind")?,
        instructions_per_message: BTreeMap::new(),
    };
    let mut out = io::stdout().lock();
    for case in &CASES {
        if arguments
            .only
            .as_ref()
            .is_some_and(|only| !case.name.contains(only.as_str()))
        {
            continue;
        }
        let mut counts = Vec::new();
        for _ in 0..arguments.repeat.max(1) {
            counts.push(per_message(case)?);
        }
        let count = median(counts.iter().copied()).context("nothing was counted")?;
        if !arguments.json {
            let (least, most) = counts
                .iter()
                .fold((f64::MAX, 0.0_f64), |(least, most), &n| {
                    (least.min(n), most.max(n))
                });
            writeln!(
                out,
                "{:<24} {count:>12.0} instructions a message ({least:.0} to {most:.0} in {} counts)",
                case.name,
                counts.len()
            )?;
        }
        let rounded = count.round();
        found
            .instructions_per_message
            .insert(case.name.to_owned(), rounded);
    }
    ensure!(
        !found.instructions_per_message.is_empty(),
        "no case has {:?} in its name",
        arguments.only.as_deref().unwrap_or_default()
    );
    let json = serde_json::to_string_pretty(&found)? + "\n";
    if arguments.json {
        out.write_all(json.as_bytes())?;
    }
    if let Some(path) = &arguments.write {
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match &arguments.check {
        Some(path) => check(&found, path, &mut out),
        None => Ok(true),
    }
}

fn check(found: &Counts, path: &Path, out: &mut impl Write) -> Result<bool> {
    let named = || path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", named()))?;
    let before: Counts =
        serde_json::from_str(&text).with_context(|| format!("{} holds no counts", named()))?;
    for (what, was, is) in [
        ("compiler", &before.compiler, &found.compiler),
        ("valgrind", &before.valgrind, &found.valgrind),
    ] {
        if was != is {
            writeln!(
                out,
                "{} was written with another {what}: {was}; here it is {is}",
                named()
            )?;
        }
    }
    let mut good = true;
    for (case, &is) in &found.instructions_per_message {
        let Some(&was) = before.instructions_per_message.get(case) else {
            bail!(
                "{} has no count of {case:?}: write it anew with --write",
                named()
            );
        };
        let ratio = is / was;
        let verdict = if ratio > 1.0 + TOLERANCE {
            good = false;
            "SLOWER"
        } else if ratio < 1.0 - TOLERANCE {
            "faster: write the file anew"
        } else {
            continue;
        };
        writeln!(
            out,
            "{case}: {is:.0} instructions, {was:.0} in {}, {ratio:.3}x: {verdict}",
            named()
        )?;
    }
    if good {
        writeln!(
            out,
            "no message costs over {:.0} % more than {} says",
            TOLERANCE * 100.0,
            named()
        )?;
    }
    Ok(good)
}

fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("there is no {program}, which counting needs"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn per_message(case: &Case) -> Result<f64> {
    let [few, many] = case.messages;
    let further = count(case, many)?.saturating_sub(count(case, few)?);
    Ok(further as f64 / (many - few) as f64)
}

/// The instructions of a whole run.
fn count(case: &Case, messages: u64) -> Result<u64> {
    let dir = tempfile::tempdir()?;
    let counts = dir.path().join("counts");
    let program = std::env::current_exe().context("where this program lies is unknown")?;
    let output = Command::new("chrt")
        .args(["--batch", "0", "valgrind"])
        .args(["--tool=callgrind", "--fair-sched=yes"])
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(program)
        .args(["counted", &case.payload.to_string()])
        .args([case.window.to_string(), messages.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start chrt (Debian: util-linux), which starts valgrind")?;
    ensure!(
        output.status.success(),
        "{} under valgrind ended with {}:\n{}",
        case.name,
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = fs::read_to_string(&counts).context("valgrind wrote no counts")?;
    // "summary: 12345", or "totals: 12345": https://valgrind.org/docs/manual/cl-format.html
    text.lines()
        .find_map(|line| {
            line.strip_prefix("summary:")
                .or(line.strip_prefix("totals:"))
        })
        .and_then(|number| number.trim().parse().ok())
        .context("valgrind's counts have no sum")
}

/// What is counted: a server, a client, and so many messages between them.
pub(crate) fn counted(payload: usize, window: usize, count: u64) -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("lapce-ai-bench-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()?;
    let socket = dir.path().join(RuntimeDir::SOCKET);
    let mut server = Server::new(Options {
        spin: Duration::ZERO,
        ..Options::default()
    });
    server.handle(MessageType::ECHO, |request, reply| {
        reply.send_body(request.into_body());
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let listener = Listener::bind(&RuntimeDir::for_socket(&socket))?;
    let running = server.start(listener, runtime.handle())?;

    let mut options = lapce_ai_client::Options::new(&socket);
    options.spin = Duration::ZERO;
    let client = BlockingClient::connect(options)?;
    let messages = Messages::new(payload, window);
    let mut flow = Flow::new(&messages, window, count);
    let mut answer = Vec::new();
    if window == 1 {
        while let Some(index) = flow.next() {
            client.call_into(MessageType::ECHO, messages.payload(index), &mut answer)?;
            flow.sent();
            flow.answered(&answer)?;
        }
    } else {
        // All of a window, then all of its answers: how the two sides meet must not depend on the scheduler.
        let mut pending = Vec::with_capacity(window);
        while !flow.is_done() {
            while let Some(index) = flow.next() {
                pending.push(client.submit(MessageType::ECHO, messages.payload(index))?);
                flow.sent();
            }
            for answered in pending.drain(..) {
                answered.wait_into(&mut answer)?;
                flow.answered(&answer)?;
            }
        }
    }
    client.close();
    running.handle().shutdown(Duration::ZERO);
    running.join();
    Ok(())
}
