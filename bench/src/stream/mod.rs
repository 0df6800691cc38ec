//! `stream`: tokens on their way from a provider to an editor. The parse alone, for every wire format, beside the ordinary
//! way; and the whole path through the daemon, from the upstream's writing of a token to the client's receipt.

pub(crate) mod formats;
mod ordinary;
mod parse;
mod path;
mod reading;
mod report;
mod upstream;

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use crate::machine::{Cpus, Machine, Side};
use formats::Format;
use parse::Parsed;
use path::{Load, Travelled};

pub(crate) use path::serve as serve_daemon;
pub(crate) use upstream::serve as serve_upstream;

/// Measure the reading of providers' streams, and their whole path to a client
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
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

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
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
        false => report.text(),
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(true)
}
