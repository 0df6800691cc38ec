//! What `lapce-ai-bench stream` hands over to: tokens on their way from a provider to an editor. The parse alone, for every wire format, beside the ordinary
//! way; and the whole path through the daemon, from the upstream's writing of a token to the client's receipt.

#![forbid(unsafe_code)]

#[allow(dead_code, reason = "the other program uses the rest")]
#[path = "../../child.rs"]
mod child;
mod formats;
#[path = "../../latency.rs"]
mod latency;
#[allow(dead_code, reason = "the other program uses the rest")]
#[path = "../../linked_daemon.rs"]
mod linked_daemon;
#[allow(dead_code, reason = "the other program uses the rest")]
#[path = "../../machine.rs"]
mod machine;
mod ordinary;
mod parse;
mod path;
mod reading;
mod report;
mod upstream;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use child::Parent;
use formats::Format;
use machine::{Cpus, Machine, Side};
use parse::Parsed;
use path::{Load, Travelled};

/// Measures the reading of providers' streams, and their whole path to a client.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(flatten)]
    arguments: Arguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The other side of an exchange; started by this program itself.
    #[command(hide = true)]
    Peer {
        /// The run's processors.
        #[arg(long, value_delimiter = ',')]
        cpus: Vec<usize>,
        #[command(subcommand)]
        role: Role,
    },
}

/// What a child does.
#[derive(Debug, clap::Subcommand)]
enum Role {
    Upstream,
    Daemon { socket: PathBuf, config: PathBuf },
}

#[derive(Debug, clap::Args)]
struct Arguments {
    /// Tokens of each run of the parse
    #[arg(long, default_value_t = 5000)]
    tokens: usize,
    /// Runs of the parse, of each row in turn
    #[arg(long, default_value_t = 200)]
    runs: usize,
    /// Tokens of each stream of the whole path
    #[arg(long, default_value_t = 300)]
    path_tokens: usize,
    /// Microseconds between two of them
    #[arg(long, default_value_t = 1000)]
    gap: u64,
    /// Streams of each row of the whole path, in turn
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Few and short runs
    #[arg(long)]
    quick: bool,
    /// Print JSON, with every run
    #[arg(long)]
    json: bool,
}

/// All that a run found.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    tokens: usize,
    runs: usize,
    load: Load,
    parse: Vec<Parsed>,
    path: Vec<Travelled>,
    left_out: Vec<String>,
}

fn main() -> ExitCode {
    let CommandLine { arguments, command } = CommandLine::parse();
    let result = match command {
        None => run(&arguments),
        Some(Command::Peer { cpus, role }) => play(cpus, role),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "lapce-ai-bench-stream: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Children run wherever the scheduler puts them.
fn play(cpus: Vec<usize>, role: Role) -> Result<()> {
    Cpus::from_list(cpus).unpin()?;
    let parent = Parent::from_stdin()?;
    match role {
        Role::Upstream => upstream::serve(parent),
        Role::Daemon { socket, config } => linked_daemon::serve(parent, &socket, &config),
    }
}

/// Measures and prints.
fn run(arguments: &Arguments) -> Result<()> {
    let (tokens, runs) = match arguments.quick {
        true => (200, 3),
        false => (arguments.tokens.max(1), arguments.runs.max(1)),
    };
    let load = match arguments.quick {
        true => Load {
            tokens: 20,
            gap_micros: 100,
            repeat: 1,
        },
        false => Load {
            tokens: arguments.path_tokens.max(1),
            gap_micros: arguments.gap,
            repeat: arguments.repeat.max(1),
        },
    };
    let cpus = Cpus::allowed()?;
    let machine = Machine::look(&cpus);
    let (formats, missing) = Format::all();
    let mut left_out: Vec<_> = missing
        .into_iter()
        .map(|profile| format!("the format of {profile}: this program has no stream in it"))
        .collect();

    cpus.pin(Side::Parent)?;
    let mut parse = parse::measure(&formats, tokens, runs)?;
    if let Err(why) = parse::count_allocations(&mut parse) {
        left_out.push(format!("allocations: {why:#}"));
    }
    // Three processes on their way to one another: where they run is the scheduler's business.
    cpus.unpin()?;
    let path = path::measure(&formats, load, &cpus)?;

    let report = Report {
        machine,
        tokens,
        runs,
        load,
        parse,
        path,
        left_out,
    };
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => report.to_string(),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}
