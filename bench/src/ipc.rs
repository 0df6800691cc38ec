//! The comparison: every peer, every payload, again and again in turn, in one run.
//!
//! Spinning figures depend on how far apart the two processors are at the moment, which on a virtual machine changes within
//! seconds. So the spinning peers of one payload form a group with a bare ping-pong before the first, between each two, and after
//! the last. Only where all of them agree, the figures belong together; otherwise the group is measured again.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine::{Cpus, Machine, Side};
use crate::measure::{Effort, Figure, Latency, Measured, distribution, latency, throughput};
use crate::memcpy::{self, Copied};
use crate::message::Messages;
use crate::peers::{Kind, Node, Setup, Waiting};
use crate::report::Report;

const PAYLOADS: [usize; 5] = [64, 1 << 10, 64 << 10, 1 << 20, 10 << 20];
/// The largest that is offered, and the largest that our server takes by default.
const LARGEST: usize = 10 << 20;
/// From this length on a payload is set beside what one core copies.
const LARGE: usize = 1 << 20;
/// Brackets that differ by more are of two regimes, or disturbed.
const AGREEMENT: f64 = 1.5;
/// So often a group is measured again before its figures are taken as they are, and said to be unsettled.
const MOST_AGAIN: u32 = 4;
/// Between the two regimes that have been seen: 110 and 500 ns.
const NEAR_BELOW_NS: f64 = 250.0;

/// Measure the transport beside its peers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// How often each figure is measured
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 200)]
    millis: u64,
    /// One short repetition: shows that everything works, and little more
    #[arg(long)]
    quick: bool,
    /// Only payloads of these lengths in bytes
    #[arg(long, value_delimiter = ',', value_parser = payload)]
    payloads: Vec<usize>,
    /// Only peers with one of these words in their name, beside those that ratios are taken to
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Microseconds that ours spins before it sleeps
    #[arg(long, default_value_t = 50)]
    spin: u64,
    /// Bytes of each of the plain ring's rings: as many as ours has by default
    #[arg(long, default_value_t = 128 << 10, value_parser = capacity)]
    ring: usize,
    /// The Node.js that is measured beside it, up to 4 KiB
    #[arg(long, default_value = "node")]
    node: PathBuf,
    /// Print JSON, with every single repetition
    #[arg(long)]
    json: bool,
    /// Draw the latencies' distributions into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn payload(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (16..=LARGEST).contains(&n) => Ok(n),
        _ => Err(format!("a payload has 16 to {LARGEST} bytes")),
    }
}

fn capacity(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n.is_power_of_two() && (32 << 10..=64 << 20).contains(&n) => Ok(n),
        _ => Err("a ring has a power of two from 32768 to 67108864 bytes".to_owned()),
    }
}

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Latency,
    Throughput,
}

/// How far apart the processors were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Regime {
    Near,
    Far,
    /// The ping-pongs around it disagree.
    Unsettled,
    /// Nobody spins, so it does not matter.
    Any,
}

impl Regime {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Unsettled => "unsettled",
            Self::Any => "-",
        }
    }
}

/// Messages in flight for a payload: as many as leave both rings something to do.
pub(crate) fn window(payload: usize) -> usize {
    match payload {
        0..=4096 => 64,
        4097..=131_072 => 8,
        _ => 2,
    }
}

/// One figure of one repetition.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) repetition: u32,
    pub(crate) mode: Mode,
    pub(crate) payload: usize,
    pub(crate) peer: Kind,
    pub(crate) regime: Regime,
    /// Medians of the bare ping-pong before and after, in nanoseconds.
    pub(crate) ping_pong_ns: Option<[u64; 2]>,
    #[serde(flatten)]
    pub(crate) figure: Figure,
    /// All that a latency is made of, in nanoseconds.
    #[serde(skip)]
    pub(crate) distribution: Option<Histogram<u64>>,
    /// To the plain ring of the same group.
    pub(crate) to_ring: Option<f64>,
    /// To the eventfd beside it.
    pub(crate) to_eventfd: Option<f64>,
}

/// What a run is asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) repetitions: u32,
    pub(crate) figure: Effort,
    pub(crate) bracket: Effort,
    pub(crate) spin_us: u64,
    pub(crate) ring_bytes: usize,
    pub(crate) payloads: Vec<usize>,
    /// Words of the names of those who take part; none: all do.
    pub(crate) peers: Vec<String>,
}

impl From<&Arguments> for Settings {
    fn from(arguments: &Arguments) -> Self {
        let effort = |millis, least| Effort {
            time: Duration::from_millis(millis),
            least,
        };
        let (repetitions, figure, bracket) = if arguments.quick {
            (1, effort(10, 100), effort(1, 100))
        } else {
            (
                arguments.repeat.max(1),
                effort(arguments.millis, 1000),
                effort(10, 1000),
            )
        };
        let payloads = if arguments.payloads.is_empty() {
            PAYLOADS.to_vec()
        } else {
            arguments.payloads.clone()
        };
        Self {
            repetitions,
            figure,
            bracket,
            spin_us: arguments.spin,
            ring_bytes: arguments.ring,
            payloads,
            peers: arguments.peers.clone(),
        }
    }
}

impl Settings {
    fn names(&self, peer: Kind) -> bool {
        let is_in_name = |word: &String| peer.name().contains(word.as_str());
        self.peers.is_empty() || self.peers.iter().any(is_in_name)
    }

    /// Whether a peer takes part: one that is named, or one that a named one is compared with.
    fn wants(&self, peer: Kind) -> bool {
        let is_measure = matches!(peer, Kind::PlainRing | Kind::EventFd);
        self.names(peer) || (is_measure && self.wants_any(peer.waiting()))
    }

    fn wants_any(&self, waiting: Waiting) -> bool {
        let waits_so = |peer: &Kind| peer.waiting() == waiting;
        Kind::ALL
            .into_iter()
            .filter(waits_so)
            .any(|peer| self.names(peer))
    }
}

struct Run {
    settings: Settings,
    setup: Setup,
    measured_again: u32,
    failures: Vec<String>,
    samples: Vec<Sample>,
    copied: Vec<Copied>,
}

/// Measures and prints. False: a peer failed or data was wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let settings = Settings::from(arguments);
    let cpus = Cpus::allowed()?;
    let spinning = cpus.can_spin();
    cpus.pin(Side::Parent)?;
    let machine = Machine::look(&cpus);
    let mut left_out = Vec::new();
    let node = Node::find(&arguments.node)
        .map_err(|error| left_out.push(format!("Node.js: {error:#}")))
        .ok()
        .map(Arc::new);
    let setup = Setup {
        cpus,
        ring: settings.ring_bytes,
        spin: Duration::from_micros(settings.spin_us),
        node: node.clone(),
    };
    let mut run = Run {
        settings,
        setup,
        measured_again: 0,
        failures: Vec::new(),
        samples: Vec::new(),
        copied: Vec::new(),
    };
    for repetition in 0..run.settings.repetitions {
        progress(repetition + 1, run.settings.repetitions);
        for payload in run.settings.payloads.clone() {
            if payload >= LARGE {
                let time = run.settings.figure.time;
                run.copied.push(memcpy::measure(payload, time)?);
            }
            for mode in [Mode::Latency, Mode::Throughput] {
                if spinning && run.settings.wants_any(Waiting::Spinning) {
                    run.spinning(repetition, mode, payload);
                }
                run.asleep(repetition, mode, payload);
            }
        }
    }
    left_out.extend(
        Kind::ALL
            .into_iter()
            .filter(|peer| !peer.is_built())
            .map(|peer| format!("{}: built without the feature `peers`", peer.name())),
    );
    if !spinning {
        left_out.push("everything that spins: fewer than two processors are usable".to_owned());
    }
    let report = Report {
        machine,
        settings: run.settings,
        node: node.map(|node| node.version().to_owned()),
        measured_again: run.measured_again,
        left_out,
        failures: run.failures,
        samples: run.samples,
        copied: run.copied,
    };
    if let Some(file) = &arguments.svg {
        fs::write(file, report.svg())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    report.print(arguments.json)?;
    Ok(report.failures.is_empty())
}

/// Tells a person who waits how far it is.
fn progress(repetition: u32, of: u32) {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Who cannot be told does not wait.
        let _ = writeln!(stderr, "repetition {repetition} of {of}");
    }
}

impl Run {
    /// The spinning peers of a payload, until all ping-pongs between them agree.
    fn spinning(&mut self, repetition: u32, mode: Mode, payload: usize) {
        for attempt in 0..=MOST_AGAIN {
            let failures = self.failures.len();
            let (group, brackets) = self.spinning_once(repetition, mode, payload);
            let settled = agree(&brackets);
            if settled || attempt == MOST_AGAIN || self.failures.len() > failures {
                self.add(group, settled);
                return;
            }
            self.measured_again += 1;
        }
    }

    fn spinning_once(
        &mut self,
        repetition: u32,
        mode: Mode,
        payload: usize,
    ) -> (Vec<Sample>, Vec<u64>) {
        let mut group = Vec::new();
        let mut brackets = Vec::new();
        brackets.extend(self.bracket());
        for peer in self.peers(Waiting::Spinning, repetition, mode, payload) {
            let figure = self.figure(peer, mode, payload);
            let before = brackets.last().copied();
            let after = self.bracket();
            brackets.extend(after);
            if let (Some(found), Some(before), Some(after)) = (figure, before, after) {
                group.push(Sample {
                    repetition,
                    mode,
                    payload,
                    peer,
                    regime: regime(before, after),
                    ping_pong_ns: Some([before, after]),
                    figure: found.figure,
                    distribution: found.distribution,
                    to_ring: None,
                    to_eventfd: None,
                });
            }
        }
        (group, brackets)
    }

    fn asleep(&mut self, repetition: u32, mode: Mode, payload: usize) {
        let mut group = Vec::new();
        for peer in self.peers(Waiting::Asleep, repetition, mode, payload) {
            if let Some(found) = self.figure(peer, mode, payload) {
                group.push(Sample {
                    repetition,
                    mode,
                    payload,
                    peer,
                    regime: Regime::Any,
                    ping_pong_ns: None,
                    figure: found.figure,
                    distribution: found.distribution,
                    to_ring: None,
                    to_eventfd: None,
                });
            }
        }
        self.add(group, true);
    }

    /// Those that take part, in turns from the first and from the last, so that no one always follows the same one.
    fn peers(&self, waiting: Waiting, repetition: u32, mode: Mode, payload: usize) -> Vec<Kind> {
        let takes_part = |peer: &Kind| {
            peer.waiting() == waiting
                && peer.is_built()
                && peer.carries(payload)
                && self.settings.wants(*peer)
                && (!peer.spins_on_one_side() || self.setup.cpus.can_spin())
                && (peer.node_script().is_none() || self.setup.node.is_some())
                && match mode {
                    Mode::Latency => peer.has_latency(),
                    Mode::Throughput => peer.has_window(),
                }
        };
        let mut peers: Vec<Kind> = Kind::ALL.into_iter().filter(takes_part).collect();
        if repetition % 2 == 1 {
            peers.reverse();
        }
        peers
    }

    fn figure(&mut self, peer: Kind, mode: Mode, payload: usize) -> Option<Measured> {
        let figure = measure(peer, mode, payload, &self.setup, self.settings.figure);
        self.note(peer, payload, figure)
    }

    /// The median of a bare ping-pong, in nanoseconds.
    fn bracket(&mut self) -> Option<u64> {
        let effort = self.settings.bracket;
        let median = ping_pong(&self.setup, effort);
        self.note(Kind::PingPong, 0, median)
    }

    fn note<T>(&mut self, peer: Kind, payload: usize, figure: Result<T>) -> Option<T> {
        figure
            .with_context(|| format!("{}, {payload} bytes", peer.name()))
            .map_err(|error| self.failures.push(format!("{error:#}")))
            .ok()
    }

    fn add(&mut self, mut group: Vec<Sample>, settled: bool) {
        let of = |peer| {
            group
                .iter()
                .find(|sample| sample.peer == peer)
                .map(|s| s.figure)
        };
        let (ring, eventfd) = (of(Kind::PlainRing), of(Kind::EventFd));
        for sample in &mut group {
            sample.to_ring = ring.and_then(|ring| sample.figure.ratio_to(&ring));
            sample.to_eventfd = eventfd.and_then(|eventfd| sample.figure.ratio_to(&eventfd));
            if !settled {
                sample.regime = Regime::Unsettled;
            }
        }
        self.samples.extend(group);
    }
}

/// The median of a bare ping-pong, in nanoseconds.
pub(crate) fn ping_pong(setup: &Setup, effort: Effort) -> Result<u64> {
    let mut running = Kind::PingPong.start(setup, 64, 1)?;
    let found = latency(running.as_mut(), &Messages::new(64, 1), effort)?;
    running.finish()?;
    Ok(found.p50)
}

/// A plain ring's messages for each second.
pub(crate) fn plain_ring(
    setup: &Setup,
    payload: usize,
    window: usize,
    effort: Effort,
) -> Result<f64> {
    let mut ring = Kind::PlainRing.start(setup, payload, window)?;
    let messages = Messages::new(payload, window);
    let found = throughput(ring.as_mut(), &messages, window, effort)?;
    ring.finish()?;
    Ok(found.per_second)
}

fn measure(
    peer: Kind,
    mode: Mode,
    payload: usize,
    setup: &Setup,
    effort: Effort,
) -> Result<Measured> {
    let in_flight = match mode {
        Mode::Latency => 1,
        Mode::Throughput => window(payload),
    };
    if let Some(script) = peer.node_script() {
        let node = setup.node.as_ref().context("there is no Node.js")?;
        return node.measure(script, (mode, payload, in_flight), &setup.cpus, effort);
    }
    let mut running = peer.start(setup, payload, in_flight)?;
    let messages = Messages::new(payload, in_flight);
    let found = match mode {
        Mode::Latency => {
            let found = distribution(running.as_mut(), &messages, effort)?;
            Measured {
                figure: Figure::Latency(Latency::of(&found)?),
                distribution: Some(found),
            }
        }
        Mode::Throughput => Measured {
            figure: Figure::Throughput(throughput(running.as_mut(), &messages, in_flight, effort)?),
            distribution: None,
        },
    };
    running.finish()?;
    Ok(found)
}

pub(crate) fn agree(brackets: &[u64]) -> bool {
    match (brackets.iter().min(), brackets.iter().max()) {
        (Some(least), Some(most)) => *most as f64 <= *least as f64 * AGREEMENT,
        _ => false,
    }
}

pub(crate) fn regime(before: u64, after: u64) -> Regime {
    let mean = ((before as f64) * (after as f64)).sqrt();
    if mean < NEAR_BELOW_NS {
        Regime::Near
    } else {
        Regime::Far
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_agree_or_not() {
        assert!(agree(&[100, 150]) && agree(&[500, 510, 490]));
        assert!(!agree(&[100, 151]) && !agree(&[]));
        assert_eq!(regime(110, 120), Regime::Near);
        assert_eq!(regime(480, 500), Regime::Far);
    }

    #[test]
    fn arguments_are_checked() {
        assert_eq!(payload("64"), Ok(64));
        payload("8").unwrap_err();
        assert_eq!(capacity("65536"), Ok(65536));
        capacity("65537").unwrap_err();
        assert_eq!([64, 1024, 65536, 1 << 20].map(window), [64, 64, 8, 2]);
    }
}
