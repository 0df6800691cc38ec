//! Many busy connections: several client processes share one server, each connection with a window of its own.

use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use lapce_ai_proto::{FIN, Kind as FrameKind, MessageType};
use lapce_ai_transport::{Connection, flush};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::child::{Child, Parent};
use crate::connections::{memory, raise_limit};
use crate::ipc::{agree, ping_pong, plain_ring, regime};
use crate::machine::{Cpus, Machine, Side};
use crate::measure::{Effort, Latency, histogram, median};
use crate::message::Messages;
use crate::peers::{RAW_LARGEST, ServerChild, Setup, connect_raw};
use crate::report::print;

/// Longest wait for any answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for all connections.
const OPENING: Duration = Duration::from_secs(120);
/// Longest wait for a client process's word after its time.
const LATE: Duration = Duration::from_secs(30);
/// Passes over all connections without an answer before a client sleeps. After each it lets others run.
const IDLE_PASSES: u32 = 64;
/// For the bare ping-pong, and for the plain ring.
const BRACKET: Duration = Duration::from_millis(20);

/// Measure the throughput of many connections from several processes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Connections of all processes together
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Client processes
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    processes: u32,
    /// Messages in flight on each connection, up to as many as the server takes
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    window: u16,
    /// Bytes of each payload: of what surely fits one frame
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(16..=RAW_LARGEST as i64))]
    payload: u16,
    /// Seconds for which messages are counted
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    secs: f64,
    /// Microseconds that the server spins before it sleeps
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.01 to 600 seconds".to_owned()),
    }
}

/// What was found. Rates are messages with their answers, for each second.
#[derive(Debug, Serialize)]
struct Report {
    what: String,
    machine: Machine,
    connections: u32,
    processes: u32,
    window: u16,
    payload: u16,
    seconds: f64,
    open_seconds: f64,
    /// Connections that had an answer at all.
    served: usize,
    messages: u64,
    messages_per_second: f64,
    per_connection: Spread,
    /// The slowest process and the fastest.
    per_process: Spread,
    /// A plain ring with the same bytes and window between two processes, before and after.
    plain_ring_per_second: Vec<f64>,
    to_plain_ring: Option<f64>,
    /// Medians of the bare ping-pong, before and after; empty where nobody can spin.
    ping_pong_ns: Vec<u64>,
    regime: &'static str,
    /// Under load, at its end.
    server_rss: u64,
    server_pss_anon_and_shmem: u64,
    errors: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) mean: f64,
    pub(crate) max: f64,
    pub(crate) min_to_mean: f64,
    /// How many have less than half of the mean.
    pub(crate) under_half: usize,
}

impl Spread {
    pub(crate) fn of(rates: &[f64]) -> Self {
        let mean = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        let min = rates.iter().copied().fold(f64::INFINITY, f64::min);
        Self {
            min,
            mean,
            max: rates.iter().copied().fold(0.0, f64::max),
            min_to_mean: min / mean,
            under_half: rates.iter().filter(|rate| **rate < mean / 2.0).count(),
        }
    }
}

/// What a client process tells of its run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) seconds: f64,
    /// Of each connection, within those seconds.
    pub(crate) answers: Vec<u64>,
    /// Connections that had an answer at all.
    pub(crate) served: usize,
    pub(crate) errors: Vec<String>,
}

/// What a client process tells while it runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Tick {
    /// Answers since the run began.
    pub(crate) answers: u64,
    /// Of those since the last tick, one message in some: from when it was written to when its answer was taken.
    pub(crate) latency: Option<Latency>,
}

/// Client processes that share the connections to one server.
#[derive(Debug)]
pub(crate) struct Crowd {
    children: Vec<Child>,
    /// From the first connection to the last.
    pub(crate) open_seconds: f64,
}

/// How much such a crowd sends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crowding {
    pub(crate) connections: u32,
    pub(crate) processes: u32,
    pub(crate) window: u16,
    pub(crate) payload: u16,
}

impl Crowd {
    /// Starts the processes, each on the processors that `cpus` says, and has all of them connect at once.
    pub(crate) fn open(
        socket: &Path,
        crowding: Crowding,
        cpus: impl Fn(usize) -> Cpus,
    ) -> Result<Self> {
        let Crowding {
            connections,
            processes,
            window,
            payload,
        } = crowding;
        let socket = socket
            .to_str()
            .context("the temporary directory's path is no UTF-8")?;
        let (window, payload) = (window.to_string(), payload.to_string());
        let role = ["crowd", socket, &window, &payload];
        let mut children = (0..processes)
            .map(|index| Child::start(&role, &cpus(index as usize), &[]))
            .collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        for (index, child) in (0..processes).zip(&mut children) {
            let share = connections / processes + u32::from(index < connections % processes);
            child.tell(&format!("open {share}"))?;
        }
        let mut open = 0;
        while open < children.len() {
            if began.elapsed() > OPENING {
                bail!(
                    "{open} of {processes} client processes have all their connections after {OPENING:?}"
                );
            }
            for (_, word) in Child::next_words(&mut children, Duration::from_millis(100))? {
                if word != "open" {
                    bail!("a client process said {word:?} instead of open");
                }
                open += 1;
            }
        }
        Ok(Self {
            children,
            open_seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// Keeps every window full for this time, after a short one that does not count, and then has all answers come.
    /// In between, each process tells how far it is every `tick`, if that is not zero. `meanwhile` is told that, with the
    /// process's number, and is called some times a second without it.
    pub(crate) fn run(
        &mut self,
        time: Duration,
        tick: Duration,
        mut meanwhile: impl FnMut(Option<(usize, Tick)>) -> Result<()>,
    ) -> Result<Vec<Counted>> {
        for child in &mut self.children {
            child.tell(&format!("run {} {}", time.as_nanos(), tick.as_nanos()))?;
        }
        let until = Instant::now() + warm_up(time) + time + LATE;
        let mut counted: Vec<Option<Counted>> = self.children.iter().map(|_| None).collect();
        while counted.iter().any(Option::is_none) {
            if Instant::now() > until {
                bail!("not all client processes have ended {LATE:?} after their time");
            }
            let words = Child::next_words(&mut self.children, Duration::from_millis(20))?;
            for (index, word) in words {
                match word.strip_prefix("tick ") {
                    Some(tick) => meanwhile(Some((index, serde_json::from_str(tick)?)))?,
                    None => counted[index] = Some(serde_json::from_str(&word)?),
                }
            }
            meanwhile(None)?;
        }
        Ok(counted.into_iter().flatten().collect())
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.children.into_iter().try_for_each(Child::finish)
    }
}

/// Measures and prints. False: an answer was wrong or missing.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments {
        connections,
        processes,
        window,
        payload,
        ..
    } = *arguments;
    if processes > connections {
        bail!("{processes} processes cannot share {connections} connections");
    }
    raise_limit(connections.into())?;
    let cpus = Cpus::allowed()?;
    cpus.pin(Side::Parent)?;
    let machine = Machine::look(&cpus);
    let mut brackets = Brackets::new(&cpus, window.into(), payload.into());
    brackets.take()?;

    let spin = Duration::from_micros(arguments.spin);
    let mut server = ServerChild::start(&cpus, spin, connections as usize + 1)?;
    let crowding = Crowding {
        connections,
        processes,
        window,
        payload,
    };
    let mut crowd = Crowd::open(&server.socket(), crowding, |index| cpus.for_client(index))?;
    let open_seconds = crowd.open_seconds;
    let time = Duration::from_secs_f64(arguments.secs);
    let measured_at = Instant::now() + warm_up(time) + time;
    let pid = server.child.pid();
    let mut under_load = None;
    let counted = crowd.run(time, Duration::ZERO, |_| {
        if under_load.is_none() && Instant::now() >= measured_at {
            server.child.check()?;
            under_load = Some(memory(pid)?);
        }
        Ok(())
    })?;
    let memory = match under_load {
        Some(memory) => memory,
        None => memory(pid)?,
    };
    let errors: Vec<String> = counted.iter().flat_map(|c| c.errors.clone()).collect();
    crowd.finish()?;
    server.child.finish()?;
    brackets.take()?;

    let rates: Vec<f64> = counted
        .iter()
        .flat_map(|c| c.answers.iter().map(|n| *n as f64 / c.seconds))
        .collect();
    let of_processes: Vec<f64> = counted
        .iter()
        .map(|c| c.answers.iter().sum::<u64>() as f64 / c.seconds)
        .collect();
    let messages_per_second = rates.iter().sum();
    let report = Report {
        what: format!(
            "{connections} connections from {processes} processes to one server, each with {window} messages of {payload} \
             bytes in flight"
        ),
        machine,
        connections,
        processes,
        window,
        payload,
        seconds: arguments.secs,
        open_seconds,
        served: counted.iter().map(|c| c.served).sum(),
        messages: counted.iter().flat_map(|c| &c.answers).sum(),
        messages_per_second,
        per_connection: Spread::of(&rates),
        per_process: Spread::of(&of_processes),
        to_plain_ring: median(brackets.rings.iter().copied())
            .map(|ring| messages_per_second / ring),
        regime: brackets.regime(),
        plain_ring_per_second: brackets.rings,
        ping_pong_ns: brackets.ping_pongs,
        server_rss: memory.rss,
        server_pss_anon_and_shmem: memory.pss_anon + memory.pss_shmem,
        errors,
    };
    print(&report, arguments.json)?;
    Ok(report.errors.is_empty())
}

/// What the machine gives at the moment, before and after.
pub(crate) struct Brackets {
    setup: Setup,
    window: usize,
    payload: usize,
    /// Medians, in nanoseconds.
    pub(crate) ping_pongs: Vec<u64>,
    /// Messages for each second through a plain ring with the same bytes and window.
    pub(crate) rings: Vec<f64>,
}

impl Brackets {
    pub(crate) fn new(cpus: &Cpus, window: usize, payload: usize) -> Self {
        Self {
            setup: Setup {
                cpus: cpus.clone(),
                ring: 128 << 10,
                spin: Duration::ZERO,
                node: None,
            },
            window,
            payload,
            ping_pongs: Vec::new(),
            rings: Vec::new(),
        }
    }

    /// Takes one more, unless nobody can spin here.
    pub(crate) fn take(&mut self) -> Result<()> {
        if !self.setup.cpus.can_spin() {
            return Ok(());
        }
        let effort = Effort {
            time: BRACKET,
            least: 1000,
        };
        self.ping_pongs.push(ping_pong(&self.setup, effort)?);
        let ring = plain_ring(&self.setup, self.payload, self.window, effort)?;
        self.rings.push(ring);
        Ok(())
    }

    fn regime(&self) -> &'static str {
        match self.ping_pongs.as_slice() {
            [before, after] if agree(&[*before, *after]) => regime(*before, *after).name(),
            [] => "-",
            _ => "unsettled",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(out, "{}", self.what)?;
        writeln!(
            out,
            "the server has a CPU of its own where there are two, the clients share the others; every answer's request, \
             length and stamps are checked\n"
        )?;
        writeln!(
            out,
            "{:.0} messages/s: {} messages with their answers in {:.2} s; regime: {}; opened in {:.3} s",
            self.messages_per_second, self.messages, self.seconds, self.regime, self.open_seconds
        )?;
        writeln!(
            out,
            "bare ping-pong before and after, ns: {:?}; plain ring, same bytes and window, one connection, messages/s: {}; \
             to it: {}",
            self.ping_pong_ns,
            self.plain_ring_per_second
                .iter()
                .map(|rate| format!("{rate:.0}"))
                .collect::<Vec<_>>()
                .join(", "),
            self.to_plain_ring
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        )?;
        writeln!(
            out,
            "\n{:<14} {:>10} {:>10} {:>10} {:>10} {:>11}",
            "messages/s", "min", "mean", "max", "min/mean", "under half"
        )?;
        for (name, spread) in [
            ("a connection", &self.per_connection),
            ("a process", &self.per_process),
        ] {
            writeln!(
                out,
                "{name:<14} {:>10.0} {:>10.0} {:>10.0} {:>10.2} {:>11}",
                spread.min, spread.mean, spread.max, spread.min_to_mean, spread.under_half
            )?;
        }
        writeln!(
            out,
            "\nthe server under load: {} KiB RSS, {} KiB Pss_Anon + Pss_Shmem",
            self.server_rss >> 10,
            self.server_pss_anon_and_shmem >> 10
        )?;
        writeln!(
            out,
            "{} of {} connections served; errors: {}",
            self.served,
            self.connections,
            self.errors.len()
        )?;
        for error in &self.errors {
            writeln!(out, "FAILED: {error}")?;
        }
        Ok(())
    }
}

fn warm_up(time: Duration) -> Duration {
    (time / 5).min(Duration::from_millis(500))
}

/// A client process: `open <count>`, then any number of `run <nanoseconds> <nanoseconds from tick to tick, or 0>`.
pub(crate) fn crowd(parent: Parent, socket: &Path, window: usize, payload: usize) -> Result<()> {
    let messages = Messages::new(payload, window);
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut voice = parent.voice()?;
    parent.serve(|request| match request.split(' ').collect::<Vec<_>>()[..] {
        ["open", count] => {
            for _ in 0..count.parse()? {
                lines.push(Line::new(connect_raw(socket)?, &messages, window));
            }
            Ok("open".to_owned())
        }
        ["run", time, tick] => {
            let (time, tick) = (nanos(time)?, nanos(tick)?);
            let told = |tick: Tick| voice.say(&format!("tick {}", serde_json::to_string(&tick)?));
            let counted = exchange(&mut lines, time, tick, told)?;
            Ok(serde_json::to_string(&counted)?)
        }
        _ => bail!("an unknown request: {request}"),
    })
}

fn nanos(text: &str) -> Result<Duration> {
    Ok(Duration::from_nanos(text.parse()?))
}

/// Keeps every connection's window full for the time, then lets all answers come.
fn exchange(
    lines: &mut [Line<'_>],
    time: Duration,
    tick: Duration,
    mut tell: impl FnMut(Tick) -> Result<()>,
) -> Result<Counted> {
    let mut scratch = Vec::new();
    let longest = lines
        .iter()
        .map(|line| line.connection.reader.scratch_len());
    scratch.resize(longest.max().unwrap_or(0), 0);
    let mut passes = Passes {
        scratch,
        without_answer: 0,
        // Without ticks nobody asks, and no clock is read.
        latencies: (!tick.is_zero()).then(histogram).transpose()?,
    };
    for line in lines.iter_mut() {
        line.stopped = false;
    }
    let warm_until = Instant::now() + warm_up(time);
    let served = |line: &Line<'_>| line.answers > 0;
    let waits = |line: &Line<'_>| line.is_open() && !served(line);
    while (Instant::now() < warm_until || lines.iter().any(waits)) && passes.one(lines) {}
    let before: Vec<u64> = lines.iter().map(|line| line.answers).collect();
    let count = |lines: &[Line<'_>]| -> Vec<u64> {
        let each = lines.iter().zip(&before);
        each.map(|(line, before)| line.answers - before).collect()
    };
    let began = Instant::now();
    let mut next_tick = tick;
    loop {
        let elapsed = began.elapsed();
        if elapsed >= time || !passes.one(lines) {
            break;
        }
        if let Some(latencies) = passes.latencies.as_mut().filter(|_| elapsed >= next_tick) {
            next_tick = elapsed + tick;
            let latency = Latency::of(latencies).ok();
            latencies.reset();
            let answers = count(lines).iter().sum();
            tell(Tick { answers, latency })?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let answers = count(lines);
    for line in lines.iter_mut() {
        line.stopped = true;
    }
    while passes.one(lines) {}
    Ok(Counted {
        seconds,
        answers,
        served: lines.iter().filter(|line| served(line)).count(),
        errors: lines
            .iter_mut()
            .filter_map(|line| line.error.clone())
            .collect(),
    })
}

/// One connection and what is in flight on it.
struct Line<'a> {
    connection: Connection,
    messages: &'a Messages,
    window: usize,
    /// The request that each message is in flight for; 0: none. Answers may overtake each other where the ring is full.
    in_flight: Vec<u64>,
    last_sent: u64,
    answers: u64,
    /// When the first message of the stock was sent, for whoever wants to know how long its answer takes.
    sampled: Option<Instant>,
    stopped: bool,
    error: Option<String>,
}

impl<'a> Line<'a> {
    fn new(connection: Connection, messages: &'a Messages, window: usize) -> Self {
        Self {
            connection,
            messages,
            window,
            in_flight: vec![0; messages.len()],
            last_sent: 0,
            answers: 0,
            sampled: None,
            stopped: false,
            error: None,
        }
    }

    fn is_open(&self) -> bool {
        self.error.is_none() && !(self.stopped && self.answers == self.last_sent)
    }

    /// Takes what answers there are and sends as many messages as may be. True: there were answers.
    fn exchange(
        &mut self,
        scratch: &mut [u8],
        mut latencies: Option<&mut Histogram<u64>>,
    ) -> Result<bool> {
        let Connection { reader, writer, .. } = &mut self.connection;
        let (messages, in_flight) = (self.messages, &mut self.in_flight);
        let (before, sent) = (self.answers, self.last_sent);
        let (answers, sampled) = (&mut self.answers, &mut self.sampled);
        while reader.read(scratch, |frame| {
            let index = (frame.id % messages.len() as u64) as usize;
            if frame.kind != FrameKind::End || frame.id == 0 || in_flight[index] != frame.id {
                let (kind, id) = (frame.kind, frame.id);
                bail!("wrong data: {kind:?} for the request {id}, which is not in flight");
            }
            in_flight[index] = 0;
            *answers += 1;
            if index == 0
                && let (Some(latencies), Some(sent)) = (latencies.as_deref_mut(), sampled.take())
            {
                latencies.saturating_record((sent.elapsed().as_nanos() as u64).max(1));
            }
            messages.check(index, frame.payload)
        })? > 0
        {}
        while !self.stopped && self.last_sent - self.answers < self.window as u64 {
            let id = self.last_sent + 1;
            let index = (id % messages.len() as u64) as usize;
            let body = messages.payload(index);
            // The message may still be in flight for a request that was overtaken.
            if in_flight[index] != 0
                || !writer.frame(FrameKind::Open, FIN, MessageType::ECHO.0, id, &[], body)?
            {
                break;
            }
            in_flight[index] = id;
            self.last_sent = id;
            if index == 0 && latencies.is_some() {
                self.sampled = Some(Instant::now());
            }
        }
        let some = self.answers > before;
        if some || self.last_sent > sent {
            flush(reader, writer)?;
        }
        Ok(some)
    }
}

struct Passes {
    scratch: Vec<u8>,
    without_answer: u32,
    /// Where somebody wants them.
    latencies: Option<Histogram<u64>>,
}

impl Passes {
    /// Looks at every connection once. False: none is open any more.
    fn one(&mut self, lines: &mut [Line<'_>]) -> bool {
        let (mut open, mut answers) = (false, false);
        for (index, line) in lines.iter_mut().enumerate() {
            if !line.is_open() {
                continue;
            }
            match line.exchange(&mut self.scratch, self.latencies.as_mut()) {
                Ok(some) => {
                    open |= line.is_open();
                    answers |= some;
                }
                Err(error) => line.error = Some(format!("connection {index}: {error:#}")),
            }
        }
        if answers {
            self.without_answer = 0;
        } else if self.without_answer < IDLE_PASSES {
            self.without_answer += 1;
            // Other clients share the processor.
            thread::yield_now();
        } else if open {
            self.without_answer = 0;
            if let Err(error) = sleep(lines) {
                for line in lines.iter_mut().filter(|line| line.is_open()) {
                    line.error = Some(format!("{error:#}"));
                }
            }
        }
        open
    }
}

/// Sleeps until an answer comes on any connection.
fn sleep(lines: &mut [Line<'_>]) -> Result<()> {
    let mut nothing = true;
    for line in lines.iter_mut().filter(|line| line.is_open()) {
        nothing &= line.connection.reader.prepare_to_sleep()?;
    }
    let mut rung = vec![false; lines.len()];
    if nothing {
        let open: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].is_open()).collect();
        let mut sockets: Vec<PollFd<'_>> = open
            .iter()
            .map(|i| PollFd::from_borrowed_fd(lines[*i].connection.reader.socket(), PollFlags::IN))
            .collect();
        let limit = Timespec::try_from(PATIENCE)?;
        if poll(&mut sockets, Some(&limit))? == 0 {
            bail!("no answer on any connection within {PATIENCE:?}");
        }
        for (socket, index) in sockets.iter().zip(open) {
            rung[index] = !socket.revents().is_empty();
        }
    }
    for (line, rung) in lines.iter_mut().zip(rung) {
        if rung && let Err(error) = line.connection.reader.drain_bell() {
            line.error = Some(error.to_string());
        }
        line.connection.reader.awake();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_counts_the_starved() {
        let found = Spread::of(&[10.0, 20.0, 30.0, 1.0]);
        assert_eq!((found.min, found.max, found.under_half), (1.0, 30.0, 1));
        assert!((found.mean - 15.25).abs() < 1e-9);
    }

    #[test]
    fn seconds_are_checked() {
        assert_eq!(seconds("3"), Ok(3.0));
        seconds("0").unwrap_err();
        seconds("x").unwrap_err();
    }
}
