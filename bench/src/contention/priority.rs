//! `priority`: who is served first when several want the server at once.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use lapce_ai_client::{BlockingClient, Options};
use lapce_ai_proto::Class;

use super::flood::Floods;
use super::probe::calls;
use super::{Rate, Repetition, Report};
use crate::machine::{Cpus, Machine, Side};
use crate::peers::ServerChild;

/// Processes that flood, with a connection each.
const FLOODS: usize = 8;

/// Measure one interactive connection beside a flood, and bulk beside a flood that claims to be interactive
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Payload of the probe's requests in bytes
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// Payload of the flood's requests in bytes
    #[arg(long, default_value_t = 4096)]
    flood: usize,
    /// Requests that each connection of the flood has in flight
    #[arg(long, default_value_t = 64)]
    window: usize,
    /// How often each row is measured, in turn
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Microseconds that all sides spin before they sleep
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
        "a probe of {} bytes, one after another, beside {FLOODS} processes with {} requests of {} bytes in flight each; with fewer \
         processors than processes the probe waits for a processor too, whatever its class",
        arguments.payload, arguments.window, arguments.flood
    );
    let mut report = Report::new(Machine::look(&cpus), about);
    let spin = Duration::from_micros(arguments.spin);
    for _ in 0..repeat {
        let server = ServerChild::start(&cpus, spin, 64)?;
        let socket = server.socket();
        probe(arguments, &cpus, time, &socket, &mut report)?;
        shares(arguments, &cpus, time, &socket, &mut report)?;
        server.child.finish()?;
    }
    report.print(arguments.json)?;
    Ok(true)
}

/// The probe alone, beside a flood of bulk, and as one of the flood's own class.
fn probe(
    arguments: &Arguments,
    cpus: &Cpus,
    time: Duration,
    socket: &Path,
    report: &mut Report,
) -> Result<()> {
    let mut options = Options::new(socket);
    options.spin = Duration::from_micros(arguments.spin);
    let client = BlockingClient::connect(options)?;
    let alone = calls(&client, arguments.payload, Class::Interactive, time)?;
    let row = |latency, rates| Repetition {
        latency: Some(latency),
        rates,
    };
    report.add("interactive probe", "alone", row(alone, Vec::new()));
    let mut floods = Floods::start(
        cpus,
        socket,
        FLOODS,
        Class::Bulk,
        arguments.flood,
        arguments.window,
    )?;
    for (class, name) in [
        (Class::Interactive, "interactive probe"),
        (Class::Bulk, "bulk probe"),
    ] {
        floods.begin()?;
        let found = calls(&client, arguments.payload, class, time)?;
        let rate = Rate {
            of: "of the flood",
            per_second: floods.rate()?,
        };
        report.add(name, "beside a bulk flood", row(found, vec![rate]));
    }
    floods.finish()?;
    client.close();
    Ok(())
}

/// Bulk alone, and beside a flood that claims to be interactive for everything.
fn shares(
    arguments: &Arguments,
    cpus: &Cpus,
    time: Duration,
    socket: &Path,
    report: &mut Report,
) -> Result<()> {
    let start = |processes, class| {
        Floods::start(
            cpus,
            socket,
            processes,
            class,
            arguments.flood,
            arguments.window,
        )
    };
    let mut bulk = start(1, Class::Bulk)?;
    bulk.begin()?;
    std::thread::sleep(time);
    let alone = Rate {
        of: "of bulk",
        per_second: bulk.rate()?,
    };
    let row = |rates| Repetition {
        latency: None,
        rates,
    };
    report.add("one bulk connection", "alone", row(vec![alone]));
    let mut interactive = start(FLOODS - 1, Class::Interactive)?;
    bulk.begin()?;
    interactive.begin()?;
    std::thread::sleep(time);
    let rates = vec![
        Rate {
            of: "of bulk",
            per_second: bulk.rate()?,
        },
        Rate {
            of: "of interactive",
            per_second: interactive.rate()?,
        },
    ];
    report.add("one bulk connection", "7 interactive floods", row(rates));
    interactive.finish()?;
    bulk.finish()
}
