//! `lapce-ai-bench`: measures the transport beside its peers, from real processes on the reader's own machine.
//!
//! ```text
//! cargo run --release -p lapce-ai-bench -- ipc           latency and throughput beside the peers
//! cargo run --release -p lapce-ai-bench -- connections   memory and idleness of many connections
//! cargo run --release -p lapce-ai-bench -- many          throughput of many connections from several processes
//! cargo run --release -p lapce-ai-bench -- active        one talking connection among many idle ones
//! cargo run --release -p lapce-ai-bench -- memory        stress level 2: more is sent than the server may keep
//! cargo run --release -p lapce-ai-bench -- busy          round trips while a compiler runs on every processor
//! cargo run --release -p lapce-ai-bench -- mixed         small messages beside large ones on the same connection
//! cargo run --release -p lapce-ai-bench -- priority      an interactive connection beside a flood
//! cargo run --release -p lapce-ai-bench -- stream        the reading of providers' streams, and their path to a client
//! cargo run --release -p lapce-ai-bench -- recovery      how soon clients are served again after a kill, and through planned restarts
//! cargo run --release -p lapce-ai-bench -- pool          what the pool of providers costs a request
//! cargo run --release -p lapce-ai-bench -- instructions  instructions a message, counted by valgrind
//! cargo run --release -p lapce-ai-bench -- stress        the five stress levels: docs/stress/README.md
//! cargo run --release -p lapce-ai-bench -- profile       where the time of a message goes, sampled by perf
//! ```
//!
//! Each peer is a child process: this program again, in a hidden role (`peer`). Nothing printed is a constant.
#![forbid(unsafe_code)]

mod active;
mod beside;
mod child;
mod connections;
mod contention;
mod daemon;
mod instructions;
mod ipc;
mod latency;
mod machine;
mod many;
mod measure;
mod memcpy;
mod memory;
mod message;
mod peers;
mod profile;
mod recovery;
mod report;
mod stress;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::beside::Program;
use crate::machine::{Cpus, Side};

/// Measures the lapce-ai transport beside its peers.
#[derive(Debug, Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Ipc(ipc::Arguments),
    Connections(connections::Arguments),
    Many(many::Arguments),
    Active(active::Arguments),
    Memory(memory::Arguments),
    Busy(contention::busy::Arguments),
    Mixed(contention::mixed::Arguments),
    Priority(contention::priority::Arguments),
    /// Measure the reading of providers' streams, and their whole path to a client
    Stream(beside::Arguments),
    /// Measure what the pool costs a request
    Pool(beside::Arguments),
    Recovery(recovery::Arguments),
    Instructions(instructions::Arguments),
    Stress(stress::Arguments),
    Profile(profile::Arguments),
    /// What `instructions` counts; started by it.
    #[command(hide = true)]
    Counted {
        payload: usize,
        window: usize,
        count: u64,
    },
    /// The other side of an exchange; started by the commands above.
    #[command(hide = true)]
    Peer {
        /// The run's processors.
        #[arg(long, value_delimiter = ',')]
        cpus: Vec<usize>,
        #[command(subcommand)]
        role: peers::Role,
    },
}

fn main() -> ExitCode {
    let result = match CommandLine::parse().command {
        Command::Ipc(arguments) => ipc::run(&arguments),
        Command::Connections(arguments) => connections::run(&arguments),
        Command::Many(arguments) => many::run(&arguments),
        Command::Active(arguments) => active::run(&arguments),
        Command::Memory(arguments) => memory::run(&arguments),
        Command::Busy(arguments) => contention::busy::run(&arguments),
        Command::Mixed(arguments) => contention::mixed::run(&arguments),
        Command::Priority(arguments) => contention::priority::run(&arguments),
        Command::Stream(arguments) => beside::run(Program::Stream, &arguments),
        Command::Pool(arguments) => beside::run(Program::Pool, &arguments),
        Command::Recovery(arguments) => recovery::run(&arguments),
        Command::Instructions(arguments) => instructions::run(&arguments),
        Command::Stress(arguments) => stress::run(&arguments),
        Command::Profile(arguments) => profile::run(&arguments),
        Command::Counted {
            payload,
            window,
            count,
        } => instructions::counted(payload, window, count).map(|()| true),
        Command::Peer { cpus, role } => play(cpus, role),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "lapce-ai-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(cpus: Vec<usize>, role: peers::Role) -> Result<bool> {
    let cpus = Cpus::from_list(cpus);
    if role.is_pinned() {
        cpus.pin(Side::Child)?;
    } else {
        cpus.unpin()?;
    }
    role.play()?;
    Ok(true)
}
