//! What is printed: as text for people, as JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::ipc::{Mode, Regime, Sample, Settings, window};
use crate::machine::Machine;
use crate::measure::{Figure, median};
use crate::peers::{Kind, Waiting};

/// All that a run found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) settings: Settings,
    /// Node.js's version, if it is installed.
    pub(crate) node: Option<String>,
    /// Groups that were measured again because their ping-pongs disagreed.
    pub(crate) measured_again: u32,
    pub(crate) left_out: Vec<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// The repetitions of one figure in one regime: each column is the median of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    mode: Mode,
    payload: usize,
    peer: Kind,
    name: &'static str,
    waiting: Waiting,
    regime: Regime,
    repetitions: usize,
    ping_pong_us: Option<f64>,
    #[serde(flatten)]
    columns: Columns,
    to_plain_ring: Option<f64>,
    to_eventfd: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
enum Columns {
    Latency {
        p50_us: f64,
        p99_us: f64,
        p999_us: f64,
        max_us: f64,
        samples: u64,
    },
    Throughput {
        window: usize,
        messages_per_second: f64,
        megabytes_per_second: f64,
    },
}

impl Report {
    pub(crate) fn print(&self, as_json: bool) -> Result<()> {
        let mut text = if as_json {
            serde_json::to_string_pretty(&self.json())?
        } else {
            self.text()
        };
        text.push('\n');
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    /// Rows in the order of payload, mode, peer, regime.
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for mode in [Mode::Latency, Mode::Throughput] {
            for &payload in &self.settings.payloads {
                for peer in Kind::ALL {
                    for regime in [Regime::Near, Regime::Far, Regime::Unsettled, Regime::Any] {
                        let of_row: Vec<&Sample> = self
                            .samples
                            .iter()
                            .filter(|s| s.mode == mode && s.payload == payload)
                            .filter(|s| s.peer == peer && s.regime == regime)
                            .collect();
                        rows.extend(row(mode, payload, peer, regime, &of_row));
                    }
                }
            }
        }
        rows
    }

    fn json(&self) -> Value {
        let rows = self.rows();
        json!({
            "what": "round trips between two processes: request and answer with the same payload",
            "machine": self.machine,
            "settings": self.settings,
            "node": self.node,
            "groups_measured_again": self.measured_again,
            "left_out": self.left_out,
            "failures": self.failures,
            "rows": &rows,
            "against_node": against_node(&rows),
            "repetitions": self.samples,
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.head(&mut out);
        let rows = self.rows();
        let _ = latency_table(&mut out, &rows);
        let _ = throughput_table(&mut out, &rows);
        let _ = self.node_table(&mut out, &against_node(&rows));
        let _ = self.foot(&mut out);
        out
    }

    fn head(&self, out: &mut String) -> std::fmt::Result {
        let Machine {
            cpu,
            usable_cpus,
            kernel,
            load_average,
            date,
            version,
            build,
            ..
        } = &self.machine;
        writeln!(out, "lapce-ai-bench {version} ({build} build), {date}")?;
        let pinned = match self.machine.pinned_to.as_slice() {
            [parent, child] => format!("client on CPU {parent}, server on CPU {child}"),
            _ => "nobody pinned".to_owned(),
        };
        writeln!(
            out,
            "{cpu}, {usable_cpus} usable CPUs, {pinned}; {kernel}; load {load_average}"
        )?;
        writeln!(
            out,
            "two processes; request and answer carry the same payload behind 24 bytes of header; every answer's length \
             and stamps are checked"
        )?;
        writeln!(
            out,
            "medians over {} repetitions of {} ms each, by regime (near: bare ping-pong under 0.25 µs); groups measured \
             again because their ping-pongs disagreed: {}",
            self.settings.repetitions,
            self.settings.figure.time.as_millis(),
            self.measured_again,
        )?;
        writeln!(
            out,
            "lapce-ai spins {} µs where it spins; the plain ring's rings have {} KiB; each latency contains one reading \
             of the clock, {:.0} ns",
            self.settings.spin_us,
            self.settings.ring_bytes >> 10,
            self.machine.clock_ns,
        )?;
        if self.machine.build == "debug" {
            writeln!(out, "A DEBUG BUILD: these figures say nothing about speed.")?;
        }
        Ok(())
    }

    fn node_table(&self, out: &mut String, ratios: &[AgainstNode]) -> std::fmt::Result {
        let (Some(version), false) = (&self.node, ratios.is_empty()) else {
            return Ok(());
        };
        writeln!(
            out,
            "\nAGAINST NODE.JS {version}: how many times faster than it lapce-ai is (p50, p99), and how many times as many \
             messages it carries"
        )?;
        writeln!(
            out,
            "both sides run under node, which times itself and is not pinned; batched: all that is there goes in one write"
        )?;
        writeln!(
            out,
            "{:>8} {:<24} {:<9} {:<24} {:>8} {:>8} {:>10}",
            "payload", "ours", "regime", "node's", "x p50", "x p99", "x rate"
        )?;
        let mut last = None;
        for found in ratios {
            if last
                .replace(found.payload)
                .is_some_and(|last| last != found.payload)
            {
                writeln!(out)?;
            }
            writeln!(
                out,
                "{:>8} {:<24} {:<9} {:<24} {:>8} {:>8} {:>10}",
                bytes(found.payload),
                found.ours.name(),
                found.regime.name(),
                found.node.name(),
                ratio(found.p50),
                ratio(found.p99),
                ratio(found.rate),
            )?;
        }
        Ok(())
    }

    fn foot(&self, out: &mut String) -> std::fmt::Result {
        for left_out in &self.left_out {
            writeln!(out, "\nleft out: {left_out}")?;
        }
        for failure in &self.failures {
            writeln!(out, "\nFAILED: {failure}")?;
        }
        Ok(())
    }
}

/// Ours against one of Node.js's ways, as a person would say it: above 1 ours is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct AgainstNode {
    payload: usize,
    ours: Kind,
    regime: Regime,
    node: Kind,
    p50: Option<f64>,
    p99: Option<f64>,
    rate: Option<f64>,
}

fn against_node(rows: &[Row]) -> Vec<AgainstNode> {
    let find = |like: &Row, mode: Mode, regime: Option<Regime>| {
        rows.iter().find(|row| {
            row.mode == mode
                && row.peer == like.peer
                && row.payload == like.payload
                && regime.is_none_or(|regime| row.regime == regime)
        })
    };
    let mut found: Vec<AgainstNode> = Vec::new();
    for ours in rows {
        if !matches!(ours.peer, Kind::OursSpinning | Kind::OursAsleep) {
            continue;
        }
        for node in rows {
            let pair = |other: &AgainstNode| {
                (other.payload, other.ours, other.regime, other.node)
                    == (ours.payload, ours.peer, ours.regime, node.peer)
            };
            let is_pair = node.peer.node_script().is_some() && node.payload == ours.payload;
            // A pair has a row for its latency and one for its rate, or only one of them.
            if !is_pair || found.iter().any(pair) {
                continue;
            }
            let columns = |mode| {
                let ours = find(ours, mode, Some(ours.regime))?.columns;
                Some((ours, find(node, mode, None)?.columns))
            };
            let quotient = |column: fn(&Columns) -> Option<f64>, mode| {
                let (ours, node) = columns(mode)?;
                Some((column(&ours)?, column(&node)?))
            };
            let faster = |column| quotient(column, Mode::Latency).map(|(ours, node)| node / ours);
            let rate = quotient(Columns::rate, Mode::Throughput).map(|(ours, node)| ours / node);
            found.push(AgainstNode {
                payload: ours.payload,
                ours: ours.peer,
                regime: ours.regime,
                node: node.peer,
                p50: faster(Columns::p50),
                p99: faster(Columns::p99),
                rate,
            });
        }
    }
    found.retain(|pair| pair.p50.is_some() || pair.rate.is_some());
    found.sort_by_key(|pair| pair.payload);
    found
}

impl Columns {
    fn p50(&self) -> Option<f64> {
        match self {
            Self::Latency { p50_us, .. } => Some(*p50_us),
            Self::Throughput { .. } => None,
        }
    }

    fn p99(&self) -> Option<f64> {
        match self {
            Self::Latency { p99_us, .. } => Some(*p99_us),
            Self::Throughput { .. } => None,
        }
    }

    fn rate(&self) -> Option<f64> {
        match self {
            Self::Throughput {
                messages_per_second,
                ..
            } => Some(*messages_per_second),
            Self::Latency { .. } => None,
        }
    }
}

fn row(mode: Mode, payload: usize, peer: Kind, regime: Regime, samples: &[&Sample]) -> Option<Row> {
    let of = |column: &dyn Fn(&Figure) -> Option<f64>| {
        median(samples.iter().filter_map(|sample| column(&sample.figure)))
    };
    let us = |column: fn(&crate::measure::Latency) -> u64| {
        of(&|figure| match figure {
            Figure::Latency(latency) => Some(column(latency) as f64 / 1000.0),
            Figure::Throughput(_) => None,
        })
    };
    let columns = match mode {
        Mode::Latency => Columns::Latency {
            p50_us: us(|l| l.p50)?,
            p99_us: us(|l| l.p99)?,
            p999_us: us(|l| l.p999)?,
            max_us: us(|l| l.max)?,
            samples: samples
                .iter()
                .map(|sample| match sample.figure {
                    Figure::Latency(latency) => latency.samples,
                    Figure::Throughput(_) => 0,
                })
                .sum(),
        },
        Mode::Throughput => {
            let rate = of(&|figure| match figure {
                Figure::Throughput(throughput) => Some(throughput.per_second),
                Figure::Latency(_) => None,
            })?;
            Columns::Throughput {
                window: window(payload),
                messages_per_second: rate,
                megabytes_per_second: rate * payload as f64 / 1e6,
            }
        }
    };
    let ping_pong = samples
        .iter()
        .filter_map(|sample| sample.ping_pong_ns)
        .flatten();
    Some(Row {
        mode,
        payload,
        peer,
        name: peer.name(),
        waiting: peer.waiting(),
        regime,
        repetitions: samples.len(),
        ping_pong_us: median(ping_pong.map(|ns| ns as f64 / 1000.0)),
        columns,
        to_plain_ring: median(samples.iter().filter_map(|sample| sample.to_ring)),
        to_eventfd: median(samples.iter().filter_map(|sample| sample.to_eventfd)),
    })
}

fn latency_table(out: &mut String, rows: &[Row]) -> std::fmt::Result {
    writeln!(out, "\nLATENCY, one message in flight, µs")?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:>2} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7} {:>9}",
        "payload",
        "peer",
        "regime",
        "n",
        "ping-pong",
        "p50",
        "p99",
        "p99.9",
        "max",
        "samples",
        "x ring",
        "x eventfd"
    )?;
    let mut last = None;
    for row in rows {
        let Columns::Latency {
            p50_us,
            p99_us,
            p999_us,
            max_us,
            samples,
        } = row.columns
        else {
            continue;
        };
        separate(out, &mut last, row)?;
        writeln!(
            out,
            "{} {:>8.2} {:>8.2} {:>8.2} {:>9.1} {:>9} {:>7} {:>9}",
            beginning(row),
            p50_us,
            p99_us,
            p999_us,
            max_us,
            samples,
            ratio(row.to_plain_ring),
            ratio(row.to_eventfd),
        )?;
    }
    Ok(())
}

fn throughput_table(out: &mut String, rows: &[Row]) -> std::fmt::Result {
    writeln!(
        out,
        "\nTHROUGHPUT, messages with their answers; MB/s counts the payload one way"
    )?;
    writeln!(
        out,
        "{:>8} {:<24} {:<9} {:>2} {:>9} {:>6} {:>12} {:>9} {:>7}",
        "payload", "peer", "regime", "n", "ping-pong", "window", "messages/s", "MB/s", "x ring"
    )?;
    let mut last = None;
    for row in rows {
        let Columns::Throughput {
            window,
            messages_per_second,
            megabytes_per_second,
        } = row.columns
        else {
            continue;
        };
        separate(out, &mut last, row)?;
        writeln!(
            out,
            "{} {:>6} {:>12.0} {:>9.1} {:>7}",
            beginning(row),
            window,
            messages_per_second,
            megabytes_per_second,
            ratio(row.to_plain_ring),
        )?;
    }
    Ok(())
}

/// An empty line between payloads.
fn separate(out: &mut String, last: &mut Option<usize>, row: &Row) -> std::fmt::Result {
    if last
        .replace(row.payload)
        .is_some_and(|last| last != row.payload)
    {
        writeln!(out)?;
    }
    Ok(())
}

fn beginning(row: &Row) -> String {
    let payload = if row.peer.has_window() {
        bytes(row.payload)
    } else {
        "-".to_owned()
    };
    let regime = row.regime.name();
    let ping_pong = row
        .ping_pong_us
        .map_or_else(|| "-".to_owned(), |us| format!("{us:.2}"));
    format!(
        "{payload:>8} {:<24} {regime:<9} {:>2} {ping_pong:>9}",
        row.name, row.repetitions
    )
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn bytes(n: usize) -> String {
    match n {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cpus;
    use crate::measure::{Effort, Latency, Throughput};
    use std::time::Duration;

    fn latency(peer: Kind, regime: Regime, p50: u64, to_ring: f64) -> Sample {
        Sample {
            repetition: 0,
            mode: Mode::Latency,
            payload: 64,
            peer,
            regime,
            ping_pong_ns: Some([100, 120]),
            figure: Figure::Latency(Latency {
                p50,
                p99: 2000,
                p999: 3000,
                max: 4000,
                samples: 10,
            }),
            to_ring: Some(to_ring),
            to_eventfd: None,
        }
    }

    fn report() -> Report {
        let rate = Throughput {
            messages: 100,
            seconds: 0.1,
            per_second: 1000.0,
        };
        let throughput = Sample {
            mode: Mode::Throughput,
            figure: Figure::Throughput(rate),
            ..latency(Kind::PlainRing, Regime::Far, 0, 1.0)
        };
        let effort = Effort {
            time: Duration::from_millis(5),
            least: 10,
        };
        Report {
            machine: Machine::look(&Cpus::from_list(vec![0, 1])),
            settings: Settings {
                repetitions: 3,
                figure: effort,
                bracket: effort,
                spin_us: 50,
                ring_bytes: 131_072,
                payloads: vec![64],
            },
            node: Some("v0".to_owned()),
            measured_again: 2,
            left_out: vec!["the sun".to_owned()],
            failures: vec!["the moon".to_owned()],
            samples: vec![
                latency(Kind::OursSpinning, Regime::Near, 300, 1.5),
                latency(Kind::OursSpinning, Regime::Near, 500, 1.1),
                latency(Kind::OursSpinning, Regime::Near, 400, 1.3),
                latency(Kind::OursSpinning, Regime::Far, 900, 1.2),
                throughput,
            ],
        }
    }

    #[test]
    fn rows_are_medians_by_regime() {
        let rows = report().rows();
        assert_eq!(rows.len(), 3);
        let near = rows.iter().find(|row| row.regime == Regime::Near).unwrap();
        assert_eq!((near.repetitions, near.to_plain_ring), (3, Some(1.3)));
        assert_eq!(near.ping_pong_us, Some(0.11));
        let Columns::Latency {
            p50_us, samples, ..
        } = near.columns
        else {
            panic!("a latency is no throughput")
        };
        assert_eq!((p50_us, samples), (0.4, 30));
        let Columns::Throughput {
            megabytes_per_second,
            window,
            ..
        } = rows[2].columns
        else {
            panic!("a throughput is no latency")
        };
        assert_eq!((megabytes_per_second, window), (0.064, 64));
    }

    #[test]
    fn the_text_says_everything() {
        let text = report().text();
        for word in [
            "near",
            "far",
            "1.30",
            "lapce-ai, spinning",
            "64 B",
            "left out: the sun",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
        assert!(
            text.contains("FAILED: the moon") && text.contains("disagreed: 2"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_the_rows_and_every_repetition() {
        let json = report().json();
        assert_eq!(json["rows"].as_array().unwrap().len(), 3);
        assert_eq!(json["repetitions"].as_array().unwrap().len(), 5);
        assert_eq!(json["rows"][0]["peer"], "ours_spinning");
        assert_eq!(json["rows"][0]["p50_us"], 0.4);
        assert_eq!(json["repetitions"][0]["latency"]["p50"], 300);
        assert_eq!(json["failures"][0], "the moon");
    }

    #[test]
    fn node_is_compared_by_payload_and_regime() {
        let mut report = report();
        report.samples.extend([
            latency(Kind::NodeChildProcess, Regime::Any, 40_000, 1.0),
            Sample {
                payload: 1024,
                ..latency(Kind::NodeNet, Regime::Any, 40_000, 1.0)
            },
        ]);
        report.settings.payloads.push(1024);
        let found = against_node(&report.rows());
        // Of 64 bytes the one, near and far; of 1024 there is nothing of ours.
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].p50, Some(100.0));
        assert_eq!((found[0].p99, found[0].rate), (Some(1.0), None));
        let text = report.text();
        assert!(
            text.contains("NODE.JS v0") && text.contains("100.00"),
            "{text}"
        );
    }

    #[test]
    fn lengths_are_readable() {
        assert_eq!(
            [64, 1024, 65536, 1 << 20, 1500].map(bytes),
            ["64 B", "1 KiB", "64 KiB", "1 MiB", "1500 B"]
        );
    }
}
