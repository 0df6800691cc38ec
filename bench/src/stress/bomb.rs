//! Level 1, connection bomb: a thousand connections at once, each with its window always full.
//!
//! Where the two processors stand to each other decides how fast messages can go at all, and changes within seconds. So the
//! load comes in rounds on the same connections, with a bare ping-pong and a plain ring measured between each two; each round's
//! floor follows from those around it, and the run's floor is their mean.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::Request;
use super::report::{Bound, Figure, NamedLatency, Outcome};
use super::watch::{Watch, worst};
use crate::connections::raise_limit;
use crate::ipc::{Regime, agree, regime};
use crate::many::{Brackets, Counted, Crowd, Crowding, Spread};
use crate::measure::Latency;
use crate::peers::ServerChild;

const CROWDING: Crowding = Crowding {
    connections: 1000,
    processes: 8,
    window: 16,
    payload: 1024,
};
/// Criterion 3b, where the processors are near.
const FLOOR: f64 = 1e6;
/// What a plain ring carries there of 1 KiB, by section 6 of the specification: where it carries less, so may we.
const NEAR_RING: f64 = 3.8e6;
/// The longest round.
const ROUND: Duration = Duration::from_secs(30);
/// How long the server spins before it sleeps: its default.
const SPIN: Duration = Duration::from_micros(50);

#[derive(Debug, Serialize)]
struct Round {
    per_second: f64,
    floor: Option<f64>,
    regime: &'static str,
    ping_pong_ns: Vec<u64>,
    plain_ring_per_second: Vec<f64>,
    slowest_to_mean: f64,
}

pub(super) fn run(request: &Request) -> Result<Outcome> {
    raise_limit(CROWDING.connections.into())?;
    let cpus = &request.cpus;
    let mut server = ServerChild::start(cpus, SPIN, CROWDING.connections as usize + 1)?;
    let pid = server.child.pid();
    let mut brackets = Brackets::new(cpus, CROWDING.window.into(), CROWDING.payload.into());
    let mut crowd = Crowd::open(&server.socket(), CROWDING, |index| cpus.for_client(index))?;
    let count = (request.duration.as_secs_f64() / ROUND.as_secs_f64())
        .ceil()
        .max(2.0) as u32;
    let time = request.duration / count;
    let mut watch = Watch::new("level 1", request.duration)?;
    let mut seen = Seen::default();
    let (mut rounds, mut all): (Vec<Round>, Vec<Vec<Counted>>) = (Vec::new(), Vec::new());
    brackets.take()?;
    for _ in 0..count {
        let counted = one_round(&mut crowd, time, pid, &mut watch, &mut seen)?;
        server.child.check()?;
        brackets.take()?;
        rounds.push(Round::new(&counted, &brackets));
        all.push(counted);
    }
    crowd_is_judged(request, &rounds, &all, watch, &seen, crowd, server)
}

/// What the client processes have told so far.
#[derive(Default)]
struct Seen {
    /// Of the rounds that are over, and of each process in this one.
    before: u64,
    answers: Vec<u64>,
    /// Since the last look, and of all looks.
    latest: Vec<Latency>,
    looks: Vec<Latency>,
}

fn one_round(
    crowd: &mut Crowd,
    time: Duration,
    pid: u32,
    watch: &mut Watch,
    seen: &mut Seen,
) -> Result<Vec<Counted>> {
    let tick = watch.interval();
    seen.answers = vec![0; CROWDING.processes as usize];
    let counted = crowd.run(time, tick, |told| {
        if let Some((process, tick)) = told {
            seen.answers[process] = tick.answers;
            seen.latest.extend(tick.latency);
        }
        if !watch.is_due() {
            return Ok(());
        }
        let latency = worst(seen.latest.drain(..));
        seen.looks.extend(latency);
        let answers = seen.before + seen.answers.iter().sum::<u64>();
        watch.look(Some(pid), answers, latency)
    })?;
    seen.before += counted.iter().flat_map(|c| &c.answers).sum::<u64>();
    seen.answers.clear();
    Ok(counted)
}

fn rates(counted: &[Counted]) -> Vec<f64> {
    let each = counted
        .iter()
        .flat_map(|c| c.answers.iter().map(|n| *n as f64 / c.seconds));
    each.collect()
}

impl Round {
    fn new(counted: &[Counted], brackets: &Brackets) -> Self {
        let last = |of: usize| of.saturating_sub(2);
        let pings = &brackets.ping_pongs[last(brackets.ping_pongs.len())..];
        let rings = &brackets.rings[last(brackets.rings.len())..];
        let rates = rates(counted);
        Self {
            per_second: rates.iter().sum(),
            floor: floor(pings, rings),
            regime: standing(pings).map_or("-", Regime::name),
            ping_pong_ns: pings.to_vec(),
            plain_ring_per_second: rings.to_vec(),
            slowest_to_mean: Spread::of(&rates).min_to_mean,
        }
    }
}

fn standing(pings: &[u64]) -> Option<Regime> {
    match pings {
        [before, after] if agree(pings) => Some(regime(*before, *after)),
        [_, _] => Some(Regime::Unsettled),
        _ => None,
    }
}

/// What a round must reach; `None` where nobody can spin, and so nothing was measured around it.
fn floor(pings: &[u64], rings: &[f64]) -> Option<f64> {
    match standing(pings)? {
        Regime::Near => Some(FLOOR),
        // In between it was one for a part of the time and the other for the rest.
        _ => {
            let mean = rings.iter().sum::<f64>() / rings.len() as f64;
            Some(FLOOR * (mean / NEAR_RING).min(1.0))
        }
    }
}

fn crowd_is_judged(
    request: &Request,
    rounds: &[Round],
    all: &[Vec<Counted>],
    watch: Watch,
    seen: &Seen,
    crowd: Crowd,
    server: ServerChild,
) -> Result<Outcome> {
    let open_seconds = crowd.open_seconds;
    let peak = watch.peak();
    crowd.finish()?;
    server.child.finish()?;
    let mean =
        |of: &dyn Fn(&Round) -> f64| rounds.iter().map(of).sum::<f64>() / rounds.len() as f64;
    let per_second = mean(&|round| round.per_second);
    let floors: Option<Vec<f64>> = rounds.iter().map(|round| round.floor).collect();
    let (floor, nobody_spins) = match &floors {
        Some(floors) => (floors.iter().sum::<f64>() / floors.len() as f64, None),
        None => (FLOOR, Some("two processes cannot run at once here")),
    };
    // Each connection's share of the whole run.
    let mut answers = vec![0.0; CROWDING.connections as usize];
    for round in all {
        let of_round = round.iter().flat_map(|counted| &counted.answers);
        for (sum, count) in answers.iter_mut().zip(of_round) {
            *sum += *count as f64;
        }
    }
    let spread = Spread::of(&answers);
    let last = all.last().map(Vec::as_slice).unwrap_or_default();
    let errors: Vec<&String> = last.iter().flat_map(|counted| &counted.errors).collect();
    let served: usize = last.iter().map(|counted| counted.served).sum();
    let total = answers.iter().sum::<f64>();
    let mut outcome = Outcome {
        what: format!(
            "{} connections at once from {} processes, each with {} messages of {} bytes in flight; {} rounds on the same \
             connections; every answer's request, length and stamps are checked",
            CROWDING.connections,
            CROWDING.processes,
            CROWDING.window,
            CROWDING.payload,
            rounds.len()
        ),
        seconds: request.duration.as_secs_f64(),
        bounds: vec![
            Bound::at_least("messages/s, mean of the rounds", per_second, floor, "/s")
                .unless(nobody_spins.or(request.times_are_printed_only())),
            Bound::none("errors, and wrong or missing answers", errors.len() as u64),
            Bound::at_least(
                "connections served",
                served as f64,
                CROWDING.connections.into(),
                "",
            ),
            Bound::none(
                "connections with under half of the mean",
                spread.under_half as u64,
            ),
        ],
        figures: vec![
            Figure::new("messages with their answers", total, ""),
            Figure::new(
                "slowest round",
                rounds
                    .iter()
                    .map(|r| r.per_second)
                    .fold(f64::INFINITY, f64::min),
                "/s",
            ),
            Figure::new(
                "fastest round",
                rounds.iter().map(|r| r.per_second).fold(0.0, f64::max),
                "/s",
            ),
            Figure::new("slowest connection to the mean", spread.min_to_mean, ""),
            Figure::new(
                "the same in the round where it was least",
                rounds
                    .iter()
                    .map(|r| r.slowest_to_mean)
                    .fold(f64::INFINITY, f64::min),
                "",
            ),
            Figure::new("all connections opened in", open_seconds, "s"),
            Figure::new(
                "the server's Pss_Anon + Pss_Shmem, most",
                peak.own() as f64 / 1024.0,
                "KiB",
            ),
            Figure::new("the server's Rss, then", peak.rss as f64 / 1024.0, "KiB"),
        ],
        notes: vec![rounds_told(rounds)],
        failures: errors.into_iter().cloned().collect(),
        detail: json!({ "rounds": rounds, "per_connection": spread }),
        ..Outcome::default()
    };
    if let Some(latency) = worst(seen.looks.iter().copied()) {
        let what = "message to answer, the worst of each process and look";
        outcome.latencies.push(NamedLatency::new(what, latency));
    }
    outcome.timeline = watch.finish();
    Ok(outcome)
}

fn rounds_told(rounds: &[Round]) -> String {
    let mut told = format!(
        "The floor is {FLOOR:.0}/s where the processors are near (bare ping-pong under 250 ns), and else that much less by which a plain \
         ring carries\nless than {NEAR_RING:.0}/s.\n\nround  regime     ping-pong ns     plain ring/s          messages/s       floor"
    );
    for (index, round) in rounds.iter().enumerate() {
        let pair = |values: Vec<String>| values.join(" ");
        told += &format!(
            "\n{:>5}  {:<9} {:>13} {:>20} {:>15.0} {:>11}",
            index + 1,
            round.regime,
            pair(round.ping_pong_ns.iter().map(u64::to_string).collect()),
            pair(
                round
                    .plain_ring_per_second
                    .iter()
                    .map(|r| format!("{r:.0}"))
                    .collect()
            ),
            round.per_second,
            round
                .floor
                .map_or("-".to_owned(), |floor| format!("{floor:.0}")),
        );
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_absolute_near_and_follows_the_plain_ring_elsewhere() {
        assert_eq!(floor(&[110, 120], &[1e6, 1e6]), Some(FLOOR), "near");
        assert_eq!(
            floor(&[480, 500], &[1.9e6, 1.9e6]),
            Some(FLOOR / 2.0),
            "far"
        );
        assert_eq!(
            floor(&[110, 500], &[3.8e6, 1.9e6]),
            Some(FLOOR * 0.75),
            "both"
        );
        assert_eq!(floor(&[480, 500], &[7e6, 7e6]), Some(FLOOR), "never more");
        assert_eq!(floor(&[], &[]), None, "nobody can spin");
    }
}
