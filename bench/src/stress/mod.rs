//! The five stress levels: the real server in its own process, real clients in others, and bounds that hold or break.
//!
//! | level | here |
//! |---|---|
//! | 1 connection bomb | `bomb.rs`, with the client processes of `many` |
//! | 2 memory exhaustion | `exhaustion.rs`, with the load of `memory` |
//! | 3 latency torture | `torture.rs` |
//! | 4 leak | `leak/`, against the product itself |
//! | 5 chaos | `chaos/` |
//!
//! Each gives an [`Outcome`]; `report.rs` tells it, `watch.rs` looks at the server meanwhile, `plot.rs` draws what was seen.

mod bomb;
mod chaos;
mod exhaustion;
mod leak;
mod plot;
mod report;
mod torture;
mod watch;

pub(crate) use chaos::{attack, chaos_server, normal};
pub(crate) use leak::{editors, upstream};
pub(crate) use torture::probe;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::{Cpus, Machine, Side};
use crate::report::print;
use report::{Outcome, Report};

/// Run one of the five stress levels; fails when a bound breaks.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// 1 connection bomb, 2 memory exhaustion, 3 latency torture, 4 leak, 5 chaos
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5))]
    level: u8,
    /// How long the load lasts, such as 90s or 2h. Unless it is said: 5 min, (level 2 ends with its messages), 10 min, 2 h,
    /// 30 min
    #[arg(long, value_parser = humantime::parse_duration, conflicts_with = "quick")]
    duration: Option<Duration>,
    /// The compressed form, for machines that do other things as well: what is right, nobody starves and memory is bounded is
    /// judged, times are only printed
    #[arg(long)]
    quick: bool,
    /// Level 5: what happens is drawn from it. Unless it is said, one by chance, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Level 4: the lapce-ai program that is the server. Unless it is said: the one beside this program
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Print JSON, with all that was seen over time
    #[arg(long)]
    json: bool,
    /// Draw memory and latency over time into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

/// How much of a level is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// As the specification says.
    Full,
    /// For a time that somebody asked for; judged like the full form.
    Timed,
    /// Compressed: no time is judged.
    Quick,
}

/// What a level is asked for.
#[derive(Debug, Clone)]
struct Request {
    form: Form,
    /// How long the load lasts.
    duration: Duration,
    cpus: Cpus,
}

impl Request {
    /// The form, and the time of it.
    fn new(arguments: &Arguments, cpus: Cpus, full: Duration, quick: Duration) -> Self {
        let (form, duration) = match (arguments.duration, arguments.quick) {
            (Some(duration), _) => (Form::Timed, duration),
            (None, true) => (Form::Quick, quick),
            (None, false) => (Form::Full, full),
        };
        Self {
            form,
            duration,
            cpus,
        }
    }

    /// Why times are not judged here, if they are not.
    fn times_are_printed_only(&self) -> Option<&'static str> {
        if self.form == Form::Quick {
            Some("the quick form judges no times")
        } else if cfg!(debug_assertions) {
            Some("a debug build says nothing about speed")
        } else {
            None
        }
    }
}

/// Measures and prints. False: a bound broke.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let machine = Machine::look(&cpus);
    if let Some(dir) = &arguments.svg {
        // Before an hour is spent.
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let request = |full: u64, quick: u64| {
        let [full, quick] = [full, quick].map(Duration::from_secs);
        Request::new(arguments, cpus.clone(), full, quick)
    };
    let (name, form, outcome) = match arguments.level {
        1 => level("connection bomb", &request(300, 6), bomb::run)?,
        2 => level("memory exhaustion", &request(0, 0), exhaustion::run)?,
        3 => level("latency torture", &request(600, 6), torture::run)?,
        4 => level("leak", &request(7200, 30), |request| {
            leak::run(request, arguments.daemon.as_ref())
        })?,
        _ => level("chaos", &request(1800, 20), |request| {
            chaos::run(request, arguments.seed)
        })?,
    };
    let report = Report::new(arguments.level, name, form, machine, outcome);
    if let Some(dir) = &arguments.svg {
        for (what, picture) in report.pictures() {
            let path = dir.join(format!("level-{}-{what}.svg", arguments.level));
            fs::write(&path, picture)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    print(&report, arguments.json)?;
    Ok(report.broken.is_empty())
}

fn level(
    name: &'static str,
    request: &Request,
    run: impl FnOnce(&Request) -> Result<Outcome>,
) -> Result<(&'static str, Form, Outcome)> {
    Ok((name, request.form, run(request)?))
}
