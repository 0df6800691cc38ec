//! `busy`: round trips while a compiler runs on every processor.

use std::time::Duration;

use anyhow::Result;

use super::compiler::Compilers;
use super::probe::{open_loop, scheduling_noise};
use super::{Repetition, Report};
use crate::machine::{Cpus, Machine, Side};
use crate::measure::{Effort, Latency, latency};
use crate::message::Messages;
use crate::peers::{Kind, Setup};

/// Who is measured.
const KINDS: [Kind; 4] = [
    Kind::OursSpinning,
    Kind::OursServerAsleep,
    Kind::OursAsleep,
    Kind::UnixBlocking,
];
const RING: usize = 128 * 1024;

/// Measure round trips while a compiler runs on every processor
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Payload in bytes
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// Requests a second of the open loop
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How often each row is measured, in turn
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 2000)]
    millis: u64,
    /// Microseconds that both sides spin before they sleep, where they spin
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// One repetition of 100 ms
    #[arg(long)]
    quick: bool,
    /// Print JSON, with every repetition
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let (repeat, millis) = match arguments.quick {
        true => (1, 100),
        false => (arguments.repeat.max(1), arguments.millis),
    };
    let time = Duration::from_millis(millis);
    let about = format!(
        "payload {} bytes; closed loop: one after another; open loop: {} a second, each counted from when it was due; \
         \"no message\" is how late the system itself wakes a sleeper",
        arguments.payload, arguments.rate
    );
    let mut report = Report::new(Machine::look(&cpus), about);
    for _ in 0..repeat {
        measure(arguments, &cpus, time, "idle machine", &mut report)?;
        match Compilers::start(&cpus) {
            Ok(compilers) => {
                measure(arguments, &cpus, time, "compilers", &mut report)?;
                compilers.finish()?;
            }
            Err(error) => {
                report.left_out = vec![format!("beside a compiler: {error:#}")];
            }
        }
    }
    report.print(arguments.json)?;
    Ok(true)
}

fn measure(
    arguments: &Arguments,
    cpus: &Cpus,
    time: Duration,
    condition: &str,
    report: &mut Report,
) -> Result<()> {
    let setup = Setup {
        cpus: cpus.clone(),
        ring: RING,
        spin: Duration::from_micros(arguments.spin),
        node: None,
    };
    let effort = Effort { time, least: 20 };
    let messages = Messages::new(arguments.payload, 16);
    let mut add = |what: String, latency: Latency| {
        let repetition = Repetition {
            latency: Some(latency),
            rates: Vec::new(),
        };
        report.add(&what, condition, repetition);
    };
    for kind in KINDS {
        let mut peer = kind.start(&setup, arguments.payload, 1)?;
        let name = kind.name();
        let found = latency(peer.as_mut(), &messages, effort)?;
        add(format!("{name}, closed"), found);
        let found = open_loop(peer.as_mut(), &messages, arguments.rate, time)?;
        add(format!("{name}, open"), found);
        peer.finish()?;
    }
    let noise = scheduling_noise(arguments.rate, time)?;
    add("no message, open".to_owned(), noise);
    Ok(())
}
