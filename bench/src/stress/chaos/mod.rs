//! Level 5, chaos: clients die, lie, fall silent and want too much; the server is killed and stopped; and clients that keep the
//! rules work on.
//!
//! What happens is drawn from a seed, which is printed: the same seed gives the same events in the same order, at about the same
//! times. After each event every client that keeps the rules must be served again, and be served all the time while nothing is
//! done to the server itself: `recovery.rs`.

mod attacker;
mod normal;
mod raw;
mod recovery;
mod script;
mod server;

pub(crate) use attacker::attack;
pub(crate) use normal::normal;
pub(crate) use server::serve as chaos_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use lapce_ai_transport::RuntimeDir;
use rustix::process::Signal;
use serde_json::json;

use self::attacker::{ARMED, Attack, Seen};
use self::normal::{CLIENTS, GRACE, Told};
use self::recovery::{Kind, Record};
use self::server::BUDGET;
use super::Request;
use super::report::{Bound, Figure, NamedLatency, Outcome};
use super::watch::{Held, Watch, worst};
use crate::child::{Child, runtime_dir};
use crate::connections::raise_limit;
use crate::machine::{Cpus, monotonic};
use crate::measure::Latency;

/// Processes whose clients keep the rules, and of those that do not: eight together.
const NORMAL: usize = 2;
const ATTACKERS: usize = 6;
/// The bound: so many of the events may leave a client without an answer for longer than [`SOON`](recovery::SOON).
const NOT_SOON_PERCENT: f64 = 1.0;
/// A request has ended at the latest when its client gives up by itself; this is for the machine to run it then.
const SLACK: Duration = Duration::from_millis(100);
/// The same where times are not judged: a client that hangs is found.
const HANGS: Duration = Duration::from_secs(10);
/// Between two blows to the server, so that it is seen whether the clients recover.
const RESPITE: Duration = Duration::from_millis(700);
/// How long clients stand still.
const CLIENTS_STOPPED: Duration = Duration::from_millis(200);
/// The last part of the time, in which the server lives on, so that what is left over in it is seen.
const LAST_LIFE: f64 = 0.1;
/// Memory at rest: criterion 1.
const BASE: u64 = 3_000_000;
const PER_CONNECTION: u64 = 8 << 10;
/// How long memory is given to go back.
const SETTLE: Duration = Duration::from_secs(10);
const CONNECTIONS: u64 = 4000;

pub(super) fn run(request: &Request, seed: Option<u64>) -> Result<Outcome> {
    raise_limit(CONNECTIONS)?;
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut run = Run::start(&request.cpus, seed, request.duration)?;
    let fresh = run.descriptors()?;
    run.rage(request.duration)?;
    let aftermath = run.calm_down()?;
    run.judged(request, fresh, &aftermath)
}

struct Run {
    seed: u64,
    random: Rng,
    cpus: Cpus,
    dir: tempfile::TempDir,
    server: Child,
    normal: Vec<Child>,
    attackers: Vec<Child>,
    /// What each attacker is at, and what stands for it in the record once it has begun.
    busy: Vec<Option<Attack>>,
    begun: Vec<Option<usize>>,
    record: Record,
    answered: Vec<u64>,
    latencies: Vec<Latency>,
    noise: Vec<Latency>,
    /// What attackers saw.
    tried: BTreeMap<Attack, u64>,
    let_pass: Vec<String>,
    wrong: Vec<String>,
    watch: Watch,
    /// When the server was last dealt a blow.
    blow: Instant,
}

/// What is left when all is over.
struct Aftermath {
    told: Vec<Told>,
    held: Held,
    descriptors: u64,
    seconds: f64,
}

fn start_server(socket: &str, cpus: &Cpus) -> Result<Child> {
    Child::start(&["chaos-server", socket], cpus, &[])
}

fn start_attacker(socket: &str, cpus: &Cpus, index: usize) -> Result<Child> {
    Child::start(&["attacker", socket], &cpus.for_client(index), &[])
}

impl Run {
    fn start(cpus: &Cpus, seed: u64, duration: Duration) -> Result<Self> {
        let dir = runtime_dir()?;
        let socket = socket_in(&dir)?;
        let server = start_server(&socket, cpus)?;
        let mut random = Rng::with_seed(seed);
        let normal = (0..NORMAL)
            .map(|index| {
                let seed = random.u64(..).to_string();
                Child::start(&["normal", &socket, &seed], &cpus.for_client(index), &[])
            })
            .collect::<Result<Vec<_>>>()?;
        let attackers = (0..ATTACKERS)
            .map(|index| start_attacker(&socket, cpus, index))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            seed,
            random,
            cpus: cpus.clone(),
            dir,
            server,
            normal,
            attackers,
            busy: vec![None; ATTACKERS],
            begun: vec![None; ATTACKERS],
            record: Record::new(NORMAL * CLIENTS),
            answered: vec![0; NORMAL],
            latencies: Vec::new(),
            noise: Vec::new(),
            tried: BTreeMap::new(),
            let_pass: Vec::new(),
            wrong: Vec::new(),
            watch: Watch::new("level 5", duration)?,
            blow: Instant::now(),
        })
    }

    fn descriptors(&self) -> Result<u64> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.server.pid()))?.count() as u64)
    }

    /// One event after another, until the time is over.
    fn rage(&mut self, duration: Duration) -> Result<()> {
        let began = Instant::now();
        let mut next = began;
        while began.elapsed() < duration {
            self.hear(Duration::from_millis(10))?;
            if self.watch.is_due() {
                self.look()?;
            }
            if Instant::now() >= next {
                // The draws are the same whatever becomes of them.
                let (kind, pause) = (self.random.u32(0..100), self.random.u64(50..400));
                let (millis, seed) = (self.random.u64(0..400), self.random.u64(..));
                let may_strike = self.blow.elapsed() > RESPITE
                    && began.elapsed() < duration.mul_f64(1.0 - LAST_LIFE);
                match kind {
                    0..15 if may_strike => self.kill_server(Duration::from_millis(millis / 2))?,
                    15..30 if may_strike => self.stop_server(Duration::from_millis(millis))?,
                    _ => self.attack(Attack::ALL[kind as usize % Attack::ALL.len()], seed)?,
                }
                next = Instant::now() + Duration::from_millis(pause);
            }
        }
        Ok(())
    }

    fn kill_server(&mut self, away: Duration) -> Result<()> {
        let socket = socket_in(&self.dir)?;
        self.server.check()?;
        let from = monotonic();
        self.server.kill()?;
        thread::sleep(away);
        self.server = start_server(&socket, &self.cpus)?;
        self.record.blow(Kind::ServerKilled, from, monotonic());
        self.blow = Instant::now();
        Ok(())
    }

    fn stop_server(&mut self, away: Duration) -> Result<()> {
        self.server.check()?;
        let from = monotonic();
        self.server.signal(Signal::STOP)?;
        thread::sleep(away);
        let at = monotonic();
        self.server.signal(Signal::CONT)?;
        self.record.blow(Kind::ServerStopped, from, at);
        self.blow = Instant::now();
        Ok(())
    }

    /// Has an attacker do it, if one is free.
    fn attack(&mut self, attack: Attack, seed: u64) -> Result<()> {
        let Some(free) = self.busy.iter().position(Option::is_none) else {
            return Ok(());
        };
        self.busy[free] = Some(attack);
        let word = format!("{} {seed}", serde_json::to_string(&attack)?);
        self.attackers[free].tell(&word)?;
        if !matches!(attack, Attack::KilledClients | Attack::StoppedClients) {
            self.begun[free] = Some(self.record.attack(attack, monotonic()));
        }
        Ok(())
    }

    /// What attackers say.
    fn hear(&mut self, limit: Duration) -> Result<()> {
        for (index, word) in Child::next_words(&mut self.attackers, limit)? {
            let attack = self.busy[index].take();
            if word == ARMED {
                match attack {
                    Some(Attack::StoppedClients) => self.stop_clients(index)?,
                    _ => self.kill_clients(index)?,
                }
                continue;
            }
            if let Some(begun) = self.begun[index].take() {
                self.record.attack_is_over(begun, monotonic());
            }
            let seen: Seen = serde_json::from_str(&word)?;
            if let Some(attack) = attack {
                *self.tried.entry(attack).or_default() += seen.tried;
            }
            self.let_pass.extend(seen.let_pass);
            self.wrong.extend(seen.wrong);
        }
        Ok(())
    }

    fn kill_clients(&mut self, index: usize) -> Result<()> {
        self.record.attack(Attack::KilledClients, monotonic());
        self.attackers[index].kill()?;
        let socket = socket_in(&self.dir)?;
        self.attackers[index] = start_attacker(&socket, &self.cpus, index)?;
        *self.tried.entry(Attack::KilledClients).or_default() += 1;
        Ok(())
    }

    /// While they stand still nothing else is done to the server.
    fn stop_clients(&mut self, index: usize) -> Result<()> {
        let begun = self.record.attack(Attack::StoppedClients, monotonic());
        self.begun[index] = Some(begun);
        self.attackers[index].signal(Signal::STOP)?;
        self.busy[index] = Some(Attack::StoppedClients);
        thread::sleep(CLIENTS_STOPPED);
        self.attackers[index].signal(Signal::CONT)
    }

    fn look(&mut self) -> Result<()> {
        self.server.check()?;
        let mut latest = Vec::new();
        for index in 0..self.normal.len() {
            let told = Told::read(&self.normal[index].ask("tell")?)?;
            latest.extend(told.latency);
            self.take(index, &told);
        }
        let latency = worst(latest);
        self.latencies.extend(latency);
        let pid = self.server.pid();
        self.watch
            .look(Some(pid), self.answered.iter().sum(), latency)
    }

    fn take(&mut self, process: usize, told: &Told) {
        self.answered[process] = told.answered;
        self.noise.extend(told.noise);
        for client in 0..CLIENTS {
            let at = process * CLIENTS + client;
            self.record.told(at, &told.gaps[client], told.last[client]);
        }
    }

    /// Lets everybody come to an end, and looks at what is left.
    fn calm_down(&mut self) -> Result<Aftermath> {
        let seconds = self.watch.elapsed().as_secs_f64();
        let until = Instant::now() + Duration::from_secs(60);
        while self.busy.iter().any(Option::is_some) {
            if Instant::now() > until {
                bail!("an attacker does not end: {:?}", self.busy);
            }
            self.hear(Duration::from_millis(50))?;
        }
        // The clients that keep the rules are served a while longer, so that the last event is followed by answers.
        thread::sleep(Duration::from_millis(500));
        let mut all = Vec::new();
        for index in 0..self.normal.len() {
            let stopped = monotonic();
            let told = Told::read(&self.normal[index].ask("stop")?)?;
            self.take(index, &told);
            for client in 0..CLIENTS {
                self.record.stopped(index * CLIENTS + client, stopped);
            }
            all.push(told);
        }
        let began = Instant::now();
        let bound = at_rest();
        let mut held = Held::of(self.server.pid())?;
        while held.own() > bound && began.elapsed() < SETTLE
            || began.elapsed() < Duration::from_secs(2)
        {
            thread::sleep(Duration::from_millis(100));
            held = Held::of(self.server.pid())?;
        }
        Ok(Aftermath {
            told: all,
            held,
            descriptors: self.descriptors()?,
            seconds,
        })
    }

    fn judged(self, request: &Request, fresh: u64, aftermath: &Aftermath) -> Result<Outcome> {
        let told = &aftermath.told;
        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        for (how, count) in told.iter().flat_map(|told| &told.ends) {
            *ends.entry(how.clone()).or_default() += count;
        }
        let wrong: Vec<String> = told
            .iter()
            .flat_map(|t| t.wrong.clone())
            .chain(self.wrong.clone())
            .collect();
        let out_of_place: Vec<String> = told.iter().flat_map(|t| t.out_of_place.clone()).collect();
        let latest = told.iter().map(|told| told.latest).max().unwrap_or(0);
        let lost: u64 = told.iter().map(|told| told.lost_connections).sum();
        let recovered = self.record.judged();
        let kills = self.record.number_of(Kind::ServerKilled);
        let clients = (NORMAL * CLIENTS) as u64;
        let why_not = request.times_are_printed_only();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        let late = millis(Duration::from_nanos(latest));
        let mut notes = vec![format!(
            "seed {}: --seed {0} gives the same events again",
            self.seed
        )];
        notes.push(recovered.table());
        let ends_told: Vec<String> = ends
            .iter()
            .map(|(how, n)| format!("{n:>9} {how}"))
            .collect();
        notes.push(format!(
            "how requests of clients that keep the rules ended\n{}",
            ends_told.join("\n")
        ));
        let mut latencies = Vec::new();
        for (what, found) in [
            (
                "short echo, the worst of each process and look",
                &self.latencies,
            ),
            (
                "noise: a sleeper is woken late by, in the same processes",
                &self.noise,
            ),
        ] {
            latencies.extend(worst(found.iter().copied()).map(|l| NamedLatency::new(what, l)));
        }
        let peak = self.watch.peak();
        let outcome = Outcome {
            what: format!(
                "{clients} clients that keep the rules, in {NORMAL} processes, CRC on; {ATTACKERS} processes that attack; the server is killed \
                 and stopped; {} events",
                self.record.events()
            ),
            seconds: aftermath.seconds,
            bounds: vec![
                Bound::none(
                    "wrong answers, answers to a request that ran twice",
                    wrong.len() as u64,
                ),
                Bound::none(
                    "errors that nobody who keeps the rules should see",
                    out_of_place.len() as u64,
                ),
                Bound::none(
                    "recoveries that never came, or after 10 s",
                    recovered.never(),
                ),
                Bound::below(
                    "server killed or stopped: not served within 100 ms",
                    recovered.blows_not_soon(),
                    NOT_SOON_PERCENT,
                    "%",
                )
                .unless(why_not),
                Bound::below(
                    "clients' attacks: others without answer for over 100 ms",
                    recovered.attacks_not_soon(),
                    NOT_SOON_PERCENT,
                    "%",
                )
                .unless(why_not),
                Bound::at_most(
                    "a request ended after its deadline by, at most",
                    late,
                    millis(GRACE + SLACK),
                    "ms",
                )
                .unless(why_not),
                Bound::at_most("the same, so that none hangs", late, millis(HANGS), "ms"),
                Bound::none(
                    "connections lost without the server being killed",
                    lost.saturating_sub(kills * clients),
                ),
                Bound::none(
                    "faults that the server let pass",
                    self.let_pass.len() as u64,
                ),
                Bound::at_most(
                    "Pss_Anon + Pss_Shmem at rest: 3 MB + budget + 8 KiB each",
                    kib(aftermath.held.own()),
                    kib(at_rest()),
                    "KiB",
                ),
                Bound::at_most(
                    "descriptors at rest",
                    aftermath.descriptors as f64,
                    fresh as f64,
                    "",
                ),
            ],
            figures: vec![
                Figure::new(
                    "requests of those clients that were answered",
                    told.iter().map(|t| t.answered as f64).sum(),
                    "",
                ),
                Figure::new("connections they lost", lost as f64, ""),
                Figure::new(
                    "gaps over 100 ms that no blow to the server explains",
                    recovered.unexplained() as f64,
                    "",
                ),
                Figure::new(
                    "the longest of them",
                    millis(recovered.longest_unexplained()),
                    "ms",
                ),
                Figure::new("times the server was killed", kills as f64, ""),
                Figure::new(
                    "the server's Pss_Anon + Pss_Shmem, most",
                    kib(peak.own()),
                    "KiB",
                ),
            ],
            latencies,
            notes,
            failures: [wrong, out_of_place, self.let_pass.clone()].concat(),
            detail: json!({
                "seed": self.seed, "events": self.record.json(), "tried": self.tried, "ends": ends,
                "descriptors": [fresh, aftermath.descriptors],
            }),
            ..Outcome::default()
        };
        let Self {
            attackers,
            normal,
            server,
            watch,
            ..
        } = self;
        for child in attackers.into_iter().chain(normal) {
            child.finish()?;
        }
        server.finish()?;
        Ok(Outcome {
            timeline: watch.finish(),
            ..outcome
        })
    }
}

fn at_rest() -> u64 {
    BASE + BUDGET + PER_CONNECTION * (NORMAL * CLIENTS) as u64
}

fn socket_in(dir: &tempfile::TempDir) -> Result<String> {
    let socket: PathBuf = dir.path().join(RuntimeDir::SOCKET);
    let socket = socket
        .to_str()
        .context("the temporary directory's path is no UTF-8")?;
    Ok(socket.to_owned())
}
