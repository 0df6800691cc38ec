//! Stress level 2, memory exhaustion: many connections send far more than the server may keep, and its memory stays
//! within what it was given.
//!
//! What the server's process may take is `BASE + budget + rings`:
//!
//! * `BASE`, 3 MB, for the program, its heap and whatever it keeps about 600 connections and their requests;
//! * the budget for payload bytes, 2 MiB, of which every message of 1 MiB needs the half, while 1,600 of them want it;
//! * what the connections' rings cost. A segment is a header page and two rings, without memory until a page of it is
//!   touched. How many are depends on how full a ring gets: one that runs empty starts again at its first page, one that
//!   never does goes round through all of its own. So the cost is no constant, and it is measured at each sample: the
//!   `Pss_Shmem` of the process less what shared memory it has mapped that is no segment (there should be none). A page that the
//!   client has touched too counts half, since its process bears the other half. What a segment's every page would cost
//!   is printed beside it, and there must be no more segments than connections. Once nothing is asked any more, rings go
//!   back to their first pages: then the bound allows each connection the 8 KiB of criterion 1 instead of what is
//!   measured.
//!
//! The rest of the judgement: each message is answered, with exactly its own bytes.

mod load;
mod report;

pub(crate) use load::load;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lapce_ai_client::{BlockingClient, Options};
use serde::Serialize;

use crate::child::Child;
use crate::connections::{Segments, memory, raise_limit, segments};
use crate::machine::{Cpus, Machine, Side};
use crate::many::Tick;
use crate::peers::ServerChild;
use crate::report::print;
use load::{LARGE, Told};
use report::Bound;
pub(crate) use report::Report;

/// Between two samples while the load runs.
const SAMPLE: Duration = Duration::from_millis(200);
/// How long the clients rest before a look whether the memory has gone back, and how many looks there are. Both ends give
/// memory back after a second of quiet.
const REST: Duration = Duration::from_millis(500);
const RESTS: u32 = 20;
/// How much less `--quick` sends.
const QUICK: u64 = 25;

/// Stress level 2: have many connections want more memory than there is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Connections that send messages of 4 KiB
    #[arg(long, default_value_t = 500)]
    small: u64,
    /// Connections that send messages of 1 MiB
    #[arg(long, default_value_t = 100)]
    large: u64,
    /// Messages of 4 KiB on each of their connections
    #[arg(long, default_value_t = 1000)]
    small_messages: u64,
    /// Messages of 1 MiB on each of their connections
    #[arg(long, default_value_t = 500)]
    large_messages: u64,
    /// Client processes
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=256))]
    processes: u64,
    /// Messages in flight on each connection, up to as many as the server takes
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    window: u16,
    /// Bytes of payload that the server may keep
    #[arg(long, default_value_t = 2 << 20, value_parser = clap::value_parser!(u64).range(LARGE as u64..))]
    budget: u64,
    /// Divide the numbers of messages by this, down to the window; connections stay as many
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "quick")]
    scale: u64,
    /// The compressed form: the same as --scale 25
    #[arg(long)]
    quick: bool,
    /// Microseconds that the server spins before it sleeps
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Seconds after which the run is given up
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The server's memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Since the load began.
    pub(crate) seconds: f64,
    pub(crate) rss: u64,
    pub(crate) pss_anon: u64,
    pub(crate) pss_shmem: u64,
    rss_shmem: u64,
    segments: u64,
    /// Shared memory that is no segment, of which there should be none.
    other_shmem: u64,
    /// Of the segment of which most is touched, all of it.
    largest_segment: u64,
}

impl Sample {
    fn take(pid: u32, began: Instant) -> Result<Self> {
        let memory = memory(pid)?;
        let Segments {
            count,
            rss,
            largest,
            other_pss,
        } = segments(pid)?;
        Ok(Self {
            seconds: began.elapsed().as_secs_f64(),
            rss: memory.rss,
            pss_anon: memory.pss_anon,
            pss_shmem: memory.pss_shmem,
            rss_shmem: rss,
            segments: count,
            other_shmem: other_pss,
            largest_segment: largest,
        })
    }

    /// What is bounded.
    fn total(&self) -> u64 {
        self.pss_anon + self.pss_shmem
    }

    /// What the segments' touched pages cost this process.
    fn rings(&self) -> u64 {
        self.pss_shmem.saturating_sub(self.other_shmem)
    }

    /// What is no ring.
    fn beside_rings(&self) -> u64 {
        self.total() - self.rings()
    }
}

/// The load's samples that matter.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Samples {
    /// Nobody is connected yet.
    started: Sample,
    /// Every connection has been served a message of a few bytes.
    open: Sample,
    /// Of those under load: the one with the most memory, and the one with the most beside the rings, which is the
    /// one that is nearest to the bound.
    peak: Sample,
    nearest: Sample,
    /// All is answered.
    end: Sample,
    /// Nothing was asked for a while.
    rest: Sample,
    /// How many were taken under load.
    taken: u64,
    /// The most segments that were there.
    most_segments: u64,
}

impl Samples {
    fn under_load(&mut self, sample: Sample) {
        self.taken += 1;
        self.most_segments = self.most_segments.max(sample.segments);
        if sample.total() > self.peak.total() {
            self.peak = sample;
        }
        if sample.beside_rings() > self.nearest.beside_rings() {
            self.nearest = sample;
        }
    }
}

/// Measures and prints. False: something was lost or wrong, or a bound broke.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let report = measure(arguments, &cpus, Duration::ZERO, |_, _| ())?;
    print(&report, arguments.json)?;
    Ok(report.broken.is_empty())
}

/// Measures. The client processes tell how far they are every `tick`, if that is not zero; `look_on` gets each sample, and what
/// they have told since the one before: who, and what.
pub(crate) fn measure(
    arguments: &Arguments,
    cpus: &Cpus,
    tick: Duration,
    mut look_on: impl FnMut(&Sample, &[(usize, Tick)]),
) -> Result<Report> {
    let connections = arguments.small + arguments.large;
    if connections < arguments.processes {
        bail!(
            "{} processes cannot share {connections} connections",
            arguments.processes
        );
    }
    raise_limit(connections)?;
    let machine = Machine::look(cpus);
    let spin = Duration::from_micros(arguments.spin);
    // One more asks for the status at the end.
    let most = usize::try_from(connections)? + 1;
    let mut server = ServerChild::with_budget(cpus, spin, most, arguments.budget)?;
    let (samples, told) = exhaust(arguments, cpus, &mut server, tick, &mut look_on)?;
    let mut status = {
        let client = BlockingClient::connect(Options::new(server.socket()))?;
        let status = client.status()?;
        client.close();
        status
    };
    server.child.finish()?;
    // Hundreds of them, of which nothing is to be seen any more.
    status.connections.clear();
    Ok(Report::new(arguments, machine, samples, told, status))
}

/// Whoever gets the samples, with what the client processes have told.
type LookOn<'a> = dyn FnMut(&Sample, &[(usize, Tick)]) + 'a;

/// Runs the load and looks at the server meanwhile.
fn exhaust(
    arguments: &Arguments,
    cpus: &Cpus,
    server: &mut ServerChild,
    tick: Duration,
    look_on: &mut LookOn<'_>,
) -> Result<(Samples, Vec<Told>)> {
    let socket = server.socket();
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    let pid = server.child.pid();
    let processes = arguments.processes;
    let window = arguments.window.to_string();
    let mut clients = (0..processes)
        .map(|index| {
            let role = ["load", socket, &index.to_string(), &window];
            Child::start(&role, &cpus.for_client(index as usize), &[])
        })
        .collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let mut samples = Samples {
        started: Sample::take(pid, began)?,
        ..Samples::default()
    };
    for (index, client) in (0..processes).zip(&mut clients) {
        let share = |of: u64| of / processes + u64::from(index < of % processes);
        // The rest of one kind goes to the first processes, that of the other to the last.
        let index_from_behind = processes - 1 - index;
        let large = arguments.large / processes
            + u64::from(index_from_behind < arguments.large % processes);
        client.tell(&format!("open {} {large}", share(arguments.small)))?;
    }
    expect(&mut clients, "open")?;
    samples.open = Sample::take(pid, began)?;

    let [small, large] = arguments.messages();
    let began = Instant::now();
    for client in &mut clients {
        client.tell(&format!("run {small} {large} {}", tick.as_nanos()))?;
    }
    let limit = Duration::from_secs(arguments.limit);
    let mut told = Vec::new();
    let mut ticks = Vec::new();
    while told.len() < clients.len() {
        if began.elapsed() > limit {
            let missing = clients.len() - told.len();
            bail!("{missing} client processes have not ended after {limit:?}");
        }
        for (index, word) in Child::next_words(&mut clients, SAMPLE)? {
            match word.strip_prefix("tick ") {
                Some(tick) => ticks.push((index, serde_json::from_str(tick)?)),
                None => told.push(serde_json::from_str(&word)?),
            }
        }
        let sample = Sample::take(pid, began)?;
        samples.under_load(sample);
        look_on(&sample, &ticks);
        ticks.clear();
        server.child.check()?;
    }
    samples.end = Sample::take(pid, began)?;
    samples.under_load(samples.end);

    samples.rest = samples.end;
    for _ in 0..RESTS {
        for client in &mut clients {
            client.tell(&format!("rest {}", REST.as_millis()))?;
        }
        expect(&mut clients, "rested")?;
        let before = std::mem::replace(&mut samples.rest, Sample::take(pid, began)?);
        // Until no more goes back.
        if Bound::at_rest(arguments, &samples.rest).held && samples.rest.total() >= before.total() {
            break;
        }
    }
    clients.into_iter().try_for_each(Child::finish)?;
    Ok((samples, told))
}

fn expect(clients: &mut [Child], expected: &str) -> Result<()> {
    for client in clients {
        let word = client.read_word()?;
        if word != expected {
            bail!("a client process said {word:?} instead of {expected}");
        }
    }
    Ok(())
}

impl Arguments {
    /// As they come from such words on a command line.
    pub(crate) fn of(words: &[&str]) -> Result<Self> {
        let command = <Self as clap::Args>::augment_args(clap::Command::new("memory"));
        let words = std::iter::once("memory").chain(words.iter().copied());
        let matches = command.try_get_matches_from(words)?;
        Ok(<Self as clap::FromArgMatches>::from_arg_matches(&matches)?)
    }

    /// Messages on each connection of the two kinds.
    fn messages(&self) -> [u64; 2] {
        let scale = if self.quick { QUICK } else { self.scale };
        [self.small_messages, self.large_messages]
            .map(|count| (count / scale).max(count.min(self.window.into())))
    }
}
