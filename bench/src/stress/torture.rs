//! Level 3, latency torture: 999 connections hammer, and one interactive connection asks for something now and then.
//!
//! Where there are three processors, server and probe have one each and everybody else shares the others: then what the probe
//! sees is what the server does. Where there are fewer the probe waits for a processor as well, whatever the server does, so
//! what the machine itself does to it is measured at the same moments and printed beside it.

use std::path::Path;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use lapce_ai_client::{BlockingClient, MessageType, Options, RequestOptions};
use lapce_ai_proto::Class;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::report::{Bound, Figure, NamedLatency, Outcome};
use super::watch::Watch;
use super::{Form, Request};
use crate::child::{Child, Parent};
use crate::connections::raise_limit;
use crate::machine::Side;
use crate::many::{Crowd, Crowding, Spread};
use crate::measure::{Latency, histogram};
use crate::message::Messages;
use crate::peers::ServerChild;

const CROWDING: Crowding = Crowding {
    connections: 999,
    processes: 8,
    window: 16,
    payload: 4096,
};
/// Bytes of the probe's messages.
const PAYLOAD: usize = 1 << 10;
/// Messages of the probe in the full form, and the time that goes with them.
const COUNT: u64 = 10_000;
const FULL: Duration = Duration::from_secs(600);
/// Fewer say nothing about one in a hundred.
const LEAST: u64 = 200;
/// Before there is a load: what it is compared with.
const ALONE: (u64, Duration) = (200, Duration::from_millis(400));
/// How long both sides spin before they sleep, and for how long the probe looks at the clock before each message.
const SPIN: Duration = Duration::from_micros(50);
/// The load goes on for so much longer than the probe.
const MARGIN: Duration = Duration::from_secs(5);
/// The bounds.
const LONG: Duration = Duration::from_micros(10);
const LONG_PERCENT: f64 = 1.0;
const WORST_US: f64 = 50.0;

/// What the probe tells at its end.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    latency: Latency,
    /// Messages that took longer than [`LONG`].
    long: u64,
    /// How late the system woke the probe when a message was due.
    late: Latency,
    /// The longest time from one reading of the clock to the next while the probe did nothing but read it.
    gaps: Latency,
}

pub(super) fn run(request: &Request) -> Result<Outcome> {
    raise_limit(u64::from(CROWDING.connections) + 1)?;
    let cpus = &request.cpus;
    let mut server = ServerChild::start(cpus, SPIN, CROWDING.connections as usize + 2)?;
    let socket = server.socket();
    let socket_text = socket.to_string_lossy().into_owned();
    // It takes the parent's processor over where there are enough.
    let mut probe = Child::start(&["probe", &socket_text], &cpus.exchanged(), &[])?;
    let others = if cpus.can_own() {
        cpus.without_parents()
    } else {
        cpus.clone()
    };
    others.pin(Side::Parent)?;
    let alone: Told =
        serde_json::from_str(&probe.ask(&asking(ALONE.0, ALONE.1, Duration::ZERO))?)?;

    let mut crowd = Crowd::open(&socket, CROWDING, |index| others.for_client(index))?;
    let count = match request.form {
        Form::Full => COUNT,
        _ => (COUNT as f64 * request.duration.as_secs_f64() / FULL.as_secs_f64()) as u64,
    }
    .max(LEAST);
    let mut watch = Watch::new("level 3", request.duration)?;
    let (tick, pid) = (watch.interval(), server.child.pid());
    let (mut began, mut told, mut latest) = (false, None::<Told>, None);
    let mut answers = vec![0; CROWDING.processes as usize];
    let counted = crowd.run(request.duration + MARGIN, tick, |heard| {
        if let Some((process, tick)) = heard {
            answers[process] = tick.answers;
        }
        // Once all of them are at it.
        if !began && answers.iter().all(|count| *count > 0) {
            began = true;
            probe.tell(&asking(count, request.duration, tick))?;
        }
        for (_, word) in Child::next_words(slice::from_mut(&mut probe), Duration::ZERO)? {
            match word.strip_prefix("tick ") {
                Some(tick) => latest = Some(serde_json::from_str(tick)?),
                None => told = Some(serde_json::from_str(&word)?),
            }
        }
        if watch.is_due() {
            server.child.check()?;
            watch.look(Some(pid), answers.iter().sum(), latest.take())?;
        }
        Ok(())
    })?;
    let Some(told) = told else {
        bail!("the probe had not all of its answers when the load ended");
    };
    crowd.finish()?;
    probe.finish()?;
    server.child.finish()?;

    let rates = counted
        .iter()
        .flat_map(|c| c.answers.iter().map(|n| *n as f64 / c.seconds));
    let spread = Spread::of(&rates.collect::<Vec<_>>());
    let errors: Vec<String> = counted.iter().flat_map(|c| c.errors.clone()).collect();
    let peak = watch.peak();
    let shares = "server and probe do not each own a core here: see the noise";
    let why_not = (!cpus.can_own())
        .then_some(shares)
        .or(request.times_are_printed_only());
    Ok(Outcome {
        what: format!(
            "{} connections from {} processes, each with {} messages of {} bytes in flight, while one interactive connection sends {count} of \
             {PAYLOAD} bytes, evenly over the time; every answer is checked",
            CROWDING.connections, CROWDING.processes, CROWDING.window, CROWDING.payload
        ),
        seconds: request.duration.as_secs_f64(),
        bounds: vec![
            Bound::below(
                "interactive messages over 10 µs",
                100.0 * told.long as f64 / told.latency.samples as f64,
                LONG_PERCENT,
                "%",
            )
            .unless(why_not),
            Bound::below("worst interactive message", told.latency.max as f64 / 1e3, WORST_US, "µs")
                .unless(why_not),
            Bound::at_least("interactive messages answered", told.latency.samples as f64, count as f64, ""),
            Bound::none("errors, and wrong or missing answers", errors.len() as u64),
            Bound::none("connections with under half of the mean", spread.under_half as u64),
        ],
        figures: vec![
            Figure::new("messages/s of the others", counted.iter().map(|c| c.answers.iter().sum::<u64>() as f64 / c.seconds).sum(), "/s"),
            Figure::new("slowest of the others to their mean", spread.min_to_mean, ""),
            Figure::new("the server's Pss_Anon + Pss_Shmem, most", peak.own() as f64 / 1024.0, "KiB"),
        ],
        latencies: vec![
            NamedLatency::new("interactive, beside the load", told.latency),
            NamedLatency::new("interactive, before there was a load", alone.latency),
            NamedLatency::new("noise: a sleeper is woken late by, same moments", told.late),
            NamedLatency::new("noise: longest gap in 50 µs of spinning, same moments", told.gaps),
            NamedLatency::new("noise without a load: a sleeper is woken late by", alone.late),
            NamedLatency::new("noise without a load: longest gap in 50 µs of spinning", alone.gaps),
        ],
        notes: vec![
            "The probe sleeps until a message is due, looks at the clock for 50 µs (the gap is what the scheduler took from it then), sends, and \
             spins 50 µs\nfor the answer before it sleeps. A message counts from when it was sent."
                .to_owned(),
        ],
        failures: errors,
        timeline: watch.finish(),
        detail: json!({ "alone": alone, "beside_the_load": told, "others": spread }),
    })
}

fn asking(count: u64, time: Duration, tick: Duration) -> String {
    format!("{count} {} {}", time.as_nanos(), tick.as_nanos())
}

/// The probe's process: so many messages evenly over this time, and a word every so often, if that is not 0.
pub(crate) fn probe(parent: Parent, socket: &Path) -> Result<()> {
    let mut options = Options::new(socket);
    options.spin = SPIN;
    let client = BlockingClient::connect(options)?;
    let messages = Messages::new(PAYLOAD, 16);
    let mut voice = parent.voice()?;
    parent.serve(|request| {
        let numbers: Vec<u64> = request
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let &[count, time, tick] = numbers.as_slice() else {
            bail!("an unknown request: {request}");
        };
        let [time, tick] = [time, tick].map(Duration::from_nanos);
        let told = send(&client, &messages, count, time, tick, |latency| {
            voice.say(&format!("tick {}", serde_json::to_string(&latency)?))
        })?;
        Ok(serde_json::to_string(&told)?)
    })
}

fn send(
    client: &BlockingClient,
    messages: &Messages,
    count: u64,
    time: Duration,
    tick: Duration,
    mut tell: impl FnMut(Latency) -> Result<()>,
) -> Result<Told> {
    let options = RequestOptions {
        class: Class::Interactive,
        ..RequestOptions::default()
    };
    let [mut all, mut late, mut gaps, mut since_tick] =
        [histogram()?, histogram()?, histogram()?, histogram()?];
    let mut long = 0;
    let began = Instant::now();
    let mut next_tick = tick;
    for number in 0..count {
        let due = began + time.mul_f64(number as f64 / count as f64);
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            thread::sleep(early);
            record(&mut late, due.elapsed());
        }
        record(&mut gaps, longest_gap());
        let index = number as usize % messages.len();
        let body = messages.payload(index);
        let sent = Instant::now();
        let answer = client.call_with(MessageType::ECHO, body, &options)?;
        let took = sent.elapsed();
        messages.check_whole(index, &answer)?;
        record(&mut all, took);
        record(&mut since_tick, took);
        long += u64::from(took > LONG);
        if !tick.is_zero() && began.elapsed() >= next_tick {
            next_tick = began.elapsed() + tick;
            tell(Latency::of(&since_tick)?)?;
            since_tick.reset();
        }
    }
    ensure!(all.len() == count, "messages got lost");
    if late.is_empty() {
        // It was never early: nothing woke it late.
        record(&mut late, Duration::ZERO);
    }
    Ok(Told {
        latency: Latency::of(&all)?,
        long,
        late: Latency::of(&late)?,
        gaps: Latency::of(&gaps)?,
    })
}

/// Reads the clock for a while: what passes from one reading to the next is not ours.
fn longest_gap() -> Duration {
    let began = Instant::now();
    let (mut before, mut longest) = (began, Duration::ZERO);
    while before - began < SPIN {
        let now = Instant::now();
        longest = longest.max(now - before);
        before = now;
    }
    longest
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record((took.as_nanos() as u64).max(1));
}
