//! Level 4, leak: editors come, ask, and go, again and again, and the daemon is none the larger for it.
//!
//! The server is the product itself with its own AI handlers; its provider is a scripted one in a process of its own, over
//! loopback HTTP. Memory is looked at when a cycle's answers are there and nothing is asked any more (*live*), and when the
//! cycle's last connection is gone (*after*), each time once it goes down no further: both sides give memory back after a
//! second of quiet. A first cycle of the largest kind warms everything up; what is left after it is the level that all others are
//! held against. The quick form's cycles are so small that this one has ten times their rounds, and another one of the smallest
//! kind is the one whose rest is the level.

mod editors;
mod upstream;

pub(crate) use editors::editors;
pub(crate) use upstream::upstream;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

use self::editors::Told;
use super::report::{Bound, Figure, NamedLatency, Outcome};
use super::watch::{Held, Watch, worst};
use super::{Form, Request};
use crate::child::Child;
use crate::connections::{raise_limit, segments};
use crate::daemon::{Daemon, program};
use crate::measure::Latency;

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Shape {
    cycles: u64,
    /// The fewest connections of a cycle and the most.
    connections: [u64; 2],
    /// On each connection, so often all three kinds of requests.
    rounds: u64,
    /// As many in the warm-up: the heap has to have been used for as much, and as unevenly, as it ever is.
    warm_up: u64,
    window: u64,
    processes: u64,
}

const FULL: Shape = Shape {
    cycles: 120,
    connections: [100, 500],
    rounds: 100,
    warm_up: 100,
    window: 16,
    processes: 8,
};
const QUICK: Shape = Shape {
    cycles: 4,
    connections: [20, 100],
    rounds: 2,
    warm_up: 20,
    ..FULL
};
/// The bounds, in bytes over the level.
const AFTER: u64 = 512 << 10;
const AT_END: u64 = 256 << 10;
const PER_CONNECTION: u64 = 8 << 10;
/// How long memory is watched going down, and for how long, and how many looks, it must stay: where something else keeps the
/// processors, time alone passes without anybody having done anything.
const SETTLE: Duration = Duration::from_secs(8);
const QUIET: Duration = Duration::from_secs(2);
const QUIET_LOOKS: u32 = 20;
/// How long the daemon may take to notice that nothing is asked any more, and who has gone.
const NOTICES: Duration = Duration::from_secs(60);
/// Descriptors of a process of the run beside its connections: towards the provider there is one for each request in flight.
const DESCRIPTORS: u64 = 1024;
/// How far apart the marks of two processes' requests are.
const MARKS: u64 = 1 << 40;

/// What was seen of a cycle.
#[derive(Debug, Clone, Copy, Serialize)]
struct Cycle {
    connections: u64,
    seconds: f64,
    /// The most memory while it worked.
    working: Held,
    live: Held,
    after: Held,
    descriptors: u64,
    segments: u64,
    threads: u64,
}

pub(super) fn run(request: &Request, named: Option<&PathBuf>) -> Result<Outcome> {
    let program = program(named.map(PathBuf::as_path))?;
    let shape = match request.form {
        Form::Full => FULL,
        Form::Quick => QUICK,
        Form::Timed => {
            let minutes = request.duration.as_secs_f64() / 60.0;
            Shape {
                cycles: (minutes.round() as u64).max(2),
                ..FULL
            }
        }
    };
    let [_, most] = shape.connections;
    raise_limit(most * (shape.window + 2) + DESCRIPTORS)?;
    let cpus = &request.cpus;
    let mut upstream = Child::start(&["upstream"], &cpus.exchanged(), &[])?;
    let address = upstream.ask("address")?;
    let provider = format!(
        "[providers.scripted]\ntype = \"openai\"\nbase_url = \"http://{address}/v1\"\ndefault_model = \"scripted\"\n"
    );
    let daemon = Daemon::start(&program, cpus, &provider, most + 1)?;
    let socket = daemon.socket();
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    let processes = (0..shape.processes)
        .map(|index| Child::start(&["editors", socket], &cpus.for_client(index as usize), &[]))
        .collect::<Result<Vec<_>>>()?;
    let mut load = Load {
        shape,
        daemon,
        processes,
        next_mark: 1,
        asked: 0,
        watch: Watch::new("level 4", request.duration)?,
        answers: vec![0; shape.processes as usize],
        answered: 0,
        told: Told::default(),
        latencies: Vec::new(),
    };
    let started = Held::of(load.pid())?;
    let began = Instant::now();
    let mut warm = load.cycle(most, shape.warm_up)?;
    if request.form == Form::Quick {
        // That was far more than any other cycle asks: what it leaves would hide what they do.
        warm = load.cycle(shape.connections[0], shape.rounds)?;
    }
    let mut cycles = Vec::new();
    for number in 0..shape.cycles {
        cycles.push(load.cycle(connections_of(shape, number), shape.rounds)?);
        // Cycles are spread over the time; what is left of one's share is quiet.
        let due = began
            + request
                .duration
                .mul_f64((number + 1) as f64 / shape.cycles as f64);
        while request.form != Form::Quick && Instant::now() < due {
            load.look_on()?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let outcome = judged(&load, started, warm, &cycles, seconds);
    load.processes.into_iter().try_for_each(Child::finish)?;
    load.daemon
        .finish()
        .context("the daemon did not stop as it should")?;
    upstream.finish()?;
    Ok(Outcome {
        timeline: load.watch.finish(),
        ..outcome
    })
}

/// From the fewest to the most and back, in uneven steps.
fn connections_of(shape: Shape, number: u64) -> u64 {
    let [least, most] = shape.connections;
    // A step that shares no divisor with the span comes everywhere.
    least + number * 167 % (most - least + 1)
}

struct Load {
    shape: Shape,
    daemon: Daemon,
    processes: Vec<Child>,
    next_mark: u64,
    /// Requests.
    asked: u64,
    watch: Watch,
    /// Of each process in this cycle, and of all in the cycles before.
    answers: Vec<u64>,
    answered: u64,
    told: Told,
    latencies: Vec<Latency>,
}

impl Load {
    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn tell_all(&mut self, words: impl Fn(u64) -> String) -> Result<()> {
        for (index, process) in (0..).zip(&mut self.processes) {
            process.tell(&words(index))?;
        }
        Ok(())
    }

    fn expect_all(&mut self, expected: &str) -> Result<()> {
        for process in &mut self.processes {
            let word = process.read_word()?;
            if word != expected {
                bail!("a client process said {word:?} instead of {expected}");
            }
        }
        Ok(())
    }

    /// Editors come, ask and go.
    fn cycle(&mut self, connections: u64, rounds: u64) -> Result<Cycle> {
        let began = Instant::now();
        let Shape {
            window, processes, ..
        } = self.shape;
        let share = |index| connections / processes + u64::from(index < connections % processes);
        self.tell_all(|index| format!("open {}", share(index)))?;
        self.expect_all("open")?;
        let (tick, first) = (self.watch.interval().as_nanos(), self.next_mark);
        self.next_mark += connections * rounds * 3;
        self.asked += connections * rounds * 3;
        self.tell_all(|index| format!("run {rounds} {window} {} {tick}", index * MARKS + first))?;
        let working = self.work()?;
        let live = self.settled(connections)?;
        self.tell_all(|_| "close".to_owned())?;
        self.expect_all("closed")?;
        let after = self.settled(0)?;
        let pid = self.pid();
        let count = |what: &str| -> Result<u64> {
            Ok(fs::read_dir(format!("/proc/{pid}/{what}"))?.count() as u64)
        };
        Ok(Cycle {
            connections,
            seconds: began.elapsed().as_secs_f64(),
            working,
            live,
            after,
            descriptors: count("fd")?,
            segments: segments(pid)?.count,
            threads: count("task")?,
        })
    }

    /// Until all of a cycle's requests have ended. The most memory meanwhile.
    fn work(&mut self) -> Result<Held> {
        let mut most = Held::default();
        let mut ended = 0;
        let mut latest = Vec::new();
        while ended < self.processes.len() {
            let words = Child::next_words(&mut self.processes, Duration::from_millis(50))?;
            for (index, word) in words {
                if let Some(tick) = word.strip_prefix("tick ") {
                    let tick: crate::many::Tick = serde_json::from_str(tick)?;
                    self.answers[index] = tick.answers;
                    latest.extend(tick.latency);
                    continue;
                }
                let told: Told = serde_json::from_str(&word)?;
                self.answers[index] = 0;
                self.answered += told.answered;
                self.told.answered += told.answered;
                self.told.wrong += told.wrong;
                self.told.failed += told.failed;
                self.told.lost_connections += told.lost_connections;
                self.told.errors.extend(told.errors);
                self.told.errors.truncate(10);
                ended += 1;
            }
            if self.watch.is_due() {
                let alive = self.daemon.check();
                alive.with_context(|| self.daemon.log())?;
                let latency = worst(latest.drain(..));
                self.latencies.extend(latency);
                let held = self.look(latency)?;
                if held.own() > most.own() {
                    most = held;
                }
            }
        }
        Ok(most)
    }

    fn look(&mut self, latency: Option<Latency>) -> Result<Held> {
        let held = Held::of(self.pid())?;
        let answers = self.answered + self.answers.iter().sum::<u64>();
        self.watch.note(Some(held), answers, latency);
        Ok(held)
    }

    /// Nothing is asked for a moment.
    fn look_on(&mut self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(50));
        if self.watch.is_due() {
            self.look(None)?;
        }
        Ok(())
    }

    /// The memory once it goes down no further, or time is up, with so many clients that ask nothing: they do what a client does
    /// then.
    fn settled(&mut self, clients: u64) -> Result<Held> {
        self.daemon_is_idle(clients)?;
        let began = Instant::now();
        let mut least = Held::of(self.pid())?;
        let (mut since, mut looks) = (began, 0);
        while (since.elapsed() < QUIET || looks < QUIET_LOOKS) && began.elapsed() < SETTLE {
            if clients > 0 {
                self.tell_all(|_| "rest 100".to_owned())?;
                self.expect_all("rested")?;
            }
            self.look_on()?;
            looks += 1;
            let held = Held::of(self.pid())?;
            if held.own() < least.own() {
                (least, since, looks) = (held, Instant::now(), 0);
            }
        }
        // What it is, not what it was: it may have grown again.
        Held::of(self.pid())
    }

    /// Waits for the daemon's own word that nothing runs, and that nobody is connected but these clients and the one that looks on.
    fn daemon_is_idle(&self, clients: u64) -> Result<()> {
        let until = Instant::now() + NOTICES;
        loop {
            let connections = self.daemon.observer.status()?.connections;
            let in_flight: u64 = connections.iter().map(|one| one.in_flight).sum();
            // The question itself is one.
            if connections.len() as u64 == clients + 1 && in_flight <= 1 {
                return Ok(());
            }
            if Instant::now() > until {
                let found = connections.len();
                bail!(
                    "the daemon has {found} connections and {in_flight} requests, where {clients} clients and one more ask nothing"
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn judged(load: &Load, started: Held, warm: Cycle, cycles: &[Cycle], seconds: f64) -> Outcome {
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let shape = load.shape;
    let level = warm.after.own();
    let over = |held: Held| held.own() as f64 / 1024.0 - kib(level);
    let most = |of: &dyn Fn(&Cycle) -> f64| cycles.iter().map(of).fold(f64::MIN, f64::max);
    let worst_of = |of: &dyn Fn(&Cycle) -> f64| {
        let numbered = (1_u32..)
            .zip(cycles)
            .map(|(number, cycle)| (number, of(cycle)));
        numbered
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(0.0, |worst| f64::from(worst.0))
    };
    let last = cycles.last().unwrap_or(&warm);
    // Which cycle was nearest to its bound, or beyond it.
    let beyond = |cycle: &Cycle| over(cycle.live) - kib(PER_CONNECTION * cycle.connections);
    // Short cycles may be over before anybody looks.
    let working = most(&|c| kib(c.working.own()));
    let working = (working > 0.0).then(|| Figure::new("while it works, most", working, "KiB"));
    let told = &load.told;
    let mut latencies = Vec::new();
    if let Some(latency) = worst(load.latencies.iter().copied()) {
        let what = "request to whole answer, the worst of each process and look";
        latencies.push(NamedLatency::new(what, latency));
    }
    Outcome {
        what: format!(
            "{} cycles of {} to {} connections from {} processes, each {} x (autocomplete, chat, file analysis), window {}, against the daemon \
             with\nits own handlers and a scripted provider over loopback HTTP; every answer is compared with what the provider said",
            shape.cycles, shape.connections[0], shape.connections[1], shape.processes, shape.rounds, shape.window
        ),
        seconds,
        bounds: vec![
            Bound::at_most("after a cycle's last disconnect, most over the level", most(&|c| over(c.after)), kib(AFTER), "KiB"),
            Bound::at_most("after the last cycle, over the level", over(last.after), kib(AT_END), "KiB"),
            Bound::at_most("live and at rest, most over level + 8 KiB/connection", most(&beyond), kib(AFTER), "KiB"),
            Bound::at_least("requests answered with what the provider said", told.answered as f64, load.asked as f64, ""),
            Bound::none("wrong answers", told.wrong),
            Bound::none("failed requests", told.failed),
            Bound::none("connections lost", told.lost_connections),
            Bound::at_most("segments still mapped after a cycle, most", most(&|c| c.segments as f64), 1.0, ""),
            Bound::at_most("descriptors after the last cycle", last.descriptors as f64, (warm.descriptors + 2) as f64, ""),
            Bound::at_most("threads after the last cycle", last.threads as f64, warm.threads as f64, ""),
        ],
        figures: [
            Some(Figure::new("Pss_Anon + Pss_Shmem at the start, nobody connected", kib(started.own()), "KiB")),
            Some(Figure::new("the level: after the warm-up cycle", kib(level), "KiB")),
            Some(Figure::new("after the last cycle", kib(last.after.own()), "KiB")),
            Some(Figure::new("live and at rest, most", most(&|c| kib(c.live.own())), "KiB")),
            Some(Figure::new("the cycle that was nearest to its live bound, of all", worst_of(&beyond), "")),
            Some(Figure::new("the cycle after which most was left", worst_of(&|c| over(c.after)), "")),
            working,
            Some(Figure::new("requests/s", told.answered as f64 / seconds, "/s")),
            Some(Figure::new("longest cycle", most(&|c| c.seconds), "s")),
        ]
        .into_iter()
        .flatten()
        .collect(),
        latencies,
        notes: vec![
            "The bounds are about memory when nothing is asked: a request that is under way costs the daemon a connection to the provider, a task \
             and\nbuffers, which \"while it works\" has. One segment is that of the client that looks on."
                .to_owned(),
            one_by_one(cycles, &over),
        ],
        failures: told.errors.clone(),
        detail: json!({ "warm_up": warm, "cycles": cycles }),
        ..Outcome::default()
    }
}

/// What every cycle left, in the order of time: a leak is a slope, and what the heap's fragments leave comes and goes.
fn one_by_one(cycles: &[Cycle], over: &dyn Fn(Held) -> f64) -> String {
    let found: Vec<String> = (cycles.iter())
        .map(|cycle| format!("{:>5}:{:<5.0}", cycle.connections, over(cycle.after)))
        .collect();
    let lines: Vec<String> = found.chunks(10).map(<[String]>::concat).collect();
    format!(
        "Connections of each cycle, and what was left after it, over the level, KiB:\n{}",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_have_from_the_fewest_to_the_most() {
        let found: Vec<u64> = (0..120).map(|n| connections_of(FULL, n)).collect();
        assert!(found.iter().all(|n| (100..=500).contains(n)));
        assert!(found.iter().min() < Some(&110) && found.iter().max() > Some(&490));
        let quick: Vec<u64> = (0..4).map(|n| connections_of(QUICK, n)).collect();
        assert!(quick.iter().all(|n| (20..=100).contains(n)), "{quick:?}");
    }
}
