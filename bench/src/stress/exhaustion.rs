//! Level 2, memory exhaustion: far more is sent than the server may keep. The load and its judgement are those of
//! `lapce-ai-bench memory`.

use std::time::Duration;

use anyhow::{Result, bail};

use super::report::{Bound, Figure, Outcome};
use super::watch::{Held, Watch, worst};
use super::{Form, Request};
use crate::memory::{Arguments, measure};

/// How long it takes, about, on two processors: for the bar.
const EXPECTED: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(4)];
/// Client processes.
const PROCESSES: &str = "8";

pub(super) fn run(request: &Request) -> Result<Outcome> {
    let (words, expected) = match request.form {
        Form::Full => (vec!["--processes", PROCESSES], EXPECTED[0]),
        Form::Quick => (vec!["--processes", PROCESSES, "--quick"], EXPECTED[1]),
        Form::Timed => bail!("level 2 ends when its messages are through: it takes no --duration"),
    };
    let arguments = Arguments::of(&words)?;
    let mut watch = Watch::new("level 2", expected)?;
    let (mut answers, mut latest) = (vec![0; 8], Vec::new());
    let report = measure(
        &arguments,
        &request.cpus,
        watch.interval(),
        |sample, ticks| {
            for (process, tick) in ticks {
                answers[*process] = tick.answers;
                latest.extend(tick.latency);
            }
            if watch.is_due() {
                let held = Held {
                    rss: sample.rss,
                    pss_anon: sample.pss_anon,
                    pss_shmem: sample.pss_shmem,
                };
                watch.note(Some(held), answers.iter().sum(), worst(latest.drain(..)));
            }
        },
    )?;
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let mut bounds: Vec<Bound> = report
        .bounds
        .iter()
        .map(|bound| {
            let what = format!("{}: base + budget + rings", bound.what);
            Bound::at_most(what, kib(bound.found), kib(bound.limit()), "KiB")
        })
        .collect();
    let mut figures = Vec::new();
    for (what, expected, outcome) in [
        ("4 KiB", report.small_expected, &report.small),
        ("1 MiB", report.large_expected, &report.large),
    ] {
        let answered = format!("messages of {what} answered with their own bytes");
        bounds.push(Bound::at_least(
            answered,
            outcome.answered as f64,
            expected as f64,
            "",
        ));
        let lost = outcome.wrong + outcome.failed;
        bounds.push(Bound::none(
            format!("messages of {what} wrong or failed"),
            lost,
        ));
        for (name, value) in [
            ("p50", outcome.p50_ms),
            ("p99", outcome.p99_ms),
            ("worst", outcome.max_ms),
        ] {
            figures.push(Figure::new(
                format!("{what}, {name} of the slowest process"),
                value,
                "ms",
            ));
        }
        let rate = outcome.answered as f64 / outcome.seconds.max(1e-9);
        figures.push(Figure::new(format!("{what}, messages/s"), rate, "/s"));
    }
    Ok(Outcome {
        what: report.what.clone(),
        seconds: report.small.seconds.max(report.large.seconds),
        bounds,
        figures,
        notes: vec![report.to_string()],
        // The bounds of memory are among them once more, with those of which there is no figure here.
        failures: report.broken.clone(),
        timeline: watch.finish(),
        detail: serde_json::to_value(&report)?,
        ..Outcome::default()
    })
}
