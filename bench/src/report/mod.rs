//! What is printed: as text for people, as JSON for programs, as a picture of the latencies.

mod json;
pub(crate) mod svg;
mod table;

use std::fmt;
use std::io::{self, Write as _};

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::ipc::{Mode, Regime, Sample, Settings, window};
use crate::machine::Machine;
use crate::measure::{Figure, median};
use crate::memcpy::Copied;
use crate::peers::{Kind, Waiting};

/// Prints what was found: JSON for programs, or else text for people.
pub(crate) fn print(found: &(impl fmt::Display + Serialize), json: bool) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(found)? + "\n"
    } else {
        found.to_string()
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

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
    /// What one core copies, of the large payloads.
    pub(crate) copied: Vec<Copied>,
}

/// The repetitions of one figure in one regime: each column is the median of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
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
    /// Of latencies: which share of all repetitions' samples took how many microseconds at most.
    distribution: Vec<(f64, f64)>,
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

    /// Medians of what one core copied, by payload.
    fn copied(&self) -> Vec<Copied> {
        let of = |payload: usize, column: fn(&Copied) -> f64| {
            let found = self.copied.iter().filter(|c| c.payload == payload);
            median(found.map(column))
        };
        self.settings
            .payloads
            .iter()
            .filter_map(|&payload| {
                Some(Copied {
                    payload,
                    walking_mb_per_second: of(payload, |c| c.walking_mb_per_second)?,
                    again_mb_per_second: of(payload, |c| c.again_mb_per_second)?,
                })
            })
            .collect()
    }
}

/// Ours against a peer, as a person would say it: above 1 ours is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Against {
    payload: usize,
    ours: Kind,
    regime: Regime,
    peer: Kind,
    p50: Option<f64>,
    p99: Option<f64>,
    rate: Option<f64>,
}

/// Ours against some peers, each in the same regime, or in the only one that it has.
fn against(rows: &[Row], peers: fn(Kind) -> bool) -> Vec<Against> {
    let find = |like: &Row, mode: Mode| {
        let same = |row: &&Row| {
            (row.mode, row.peer, row.payload, row.regime)
                == (mode, like.peer, like.payload, like.regime)
        };
        rows.iter().find(same).map(|row| row.columns)
    };
    let mut found: Vec<Against> = Vec::new();
    for ours in rows.iter().filter(|row| row.peer.is_ours()) {
        for peer in rows.iter().filter(|row| peers(row.peer)) {
            let pair = |other: &Against| {
                (other.payload, other.ours, other.regime, other.peer)
                    == (ours.payload, ours.peer, ours.regime, peer.peer)
            };
            let comparable = peer.payload == ours.payload
                && (peer.regime == ours.regime || peer.regime == Regime::Any);
            // A pair has a row for its latency and one for its rate, or only one of them.
            if !comparable || found.iter().any(pair) {
                continue;
            }
            let both = |mode, column: fn(&Columns) -> Option<f64>| {
                let ours = column(&find(ours, mode)?)?;
                Some((ours, column(&find(peer, mode)?)?))
            };
            let faster = |column| both(Mode::Latency, column).map(|(ours, peer)| peer / ours);
            let rate = both(Mode::Throughput, Columns::rate).map(|(ours, peer)| ours / peer);
            found.push(Against {
                payload: ours.payload,
                ours: ours.peer,
                regime: ours.regime,
                peer: peer.peer,
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

fn against_node(rows: &[Row]) -> Vec<Against> {
    against(rows, |peer| peer.node_script().is_some())
}

fn against_iceoryx2(rows: &[Row]) -> Vec<Against> {
    against(rows, |peer| peer == Kind::Iceoryx2)
}

fn against_tonic(rows: &[Row]) -> Vec<Against> {
    against(rows, |peer| peer == Kind::Tonic)
}

/// The bytes of a large payload that a peer carries in a second, beside what one core copies in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct AgainstMemcpy {
    payload: usize,
    peer: Kind,
    regime: Regime,
    /// Requests and answers: each byte of them went from one process to the other.
    carried_mb_per_second: f64,
    /// Of requests alone, which is half of that.
    one_way_mb_per_second: f64,
    carried_to_walking: f64,
    carried_to_again: f64,
    one_way_to_walking: f64,
}

fn against_memcpy(rows: &[Row], copied: &[Copied]) -> Vec<AgainstMemcpy> {
    let of_row = |row: &Row| {
        let copied = copied.iter().find(|c| c.payload == row.payload)?;
        let one_way = row.columns.rate()? * row.payload as f64 / 1e6;
        let carried = 2.0 * one_way;
        Some(AgainstMemcpy {
            payload: row.payload,
            peer: row.peer,
            regime: row.regime,
            carried_mb_per_second: carried,
            one_way_mb_per_second: one_way,
            carried_to_walking: carried / copied.walking_mb_per_second,
            carried_to_again: carried / copied.again_mb_per_second,
            one_way_to_walking: one_way / copied.walking_mb_per_second,
        })
    };
    rows.iter().filter_map(of_row).collect()
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
        distribution: distribution(samples),
    })
}

/// From the fastest to the slowest of all samples, in ever smaller steps: ten for each further digit of the share.
fn distribution(samples: &[&Sample]) -> Vec<(f64, f64)> {
    const STEPS: f64 = 10.0;
    let mut parts = samples
        .iter()
        .filter_map(|sample| sample.distribution.as_ref());
    let Some(mut all) = parts.next().cloned() else {
        return Vec::new();
    };
    for part in parts {
        // Both have the same bounds.
        let _ = all.add(part);
    }
    quantiles(&all, STEPS)
}

fn quantiles(all: &Histogram<u64>, steps: f64) -> Vec<(f64, f64)> {
    let last = ((all.len() as f64).log10() * steps) as u32;
    (0..=last)
        .map(|step| {
            let share = 1.0 - 10_f64.powf(-f64::from(step) / steps);
            (share, all.value_at_quantile(share) as f64 / 1000.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Cpus;
    use crate::measure::{Effort, Latency, Throughput};
    use std::time::Duration;

    fn histogram_of(ns: u64) -> Histogram<u64> {
        let mut histogram = crate::measure::histogram().unwrap();
        histogram.saturating_record_n(ns.max(1), 1000);
        histogram
    }

    pub(super) fn latency(peer: Kind, regime: Regime, p50: u64, to_ring: f64) -> Sample {
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
            distribution: Some(histogram_of(p50)),
            to_ring: Some(to_ring),
            to_eventfd: None,
        }
    }

    pub(super) fn report() -> Report {
        let rate = Throughput {
            messages: 100,
            seconds: 0.1,
            per_second: 1000.0,
        };
        let throughput = Sample {
            mode: Mode::Throughput,
            figure: Figure::Throughput(rate),
            distribution: None,
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
                peers: Vec::new(),
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
            copied: Vec::new(),
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
    fn a_peer_is_compared_in_its_regime() {
        let mut report = report();
        report.samples.extend([
            latency(Kind::Iceoryx2, Regime::Near, 1000, 1.0),
            latency(Kind::Iceoryx2, Regime::Unsettled, 5000, 1.0),
            latency(Kind::OursAsleep, Regime::Any, 50_000, 1.0),
        ]);
        let found = against_iceoryx2(&report.rows());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].regime, found[0].p50), (Regime::Near, Some(2.5)));
    }

    #[test]
    fn large_payloads_stand_beside_copies() {
        let mut report = report();
        let copied = |walking| Copied {
            payload: 64,
            walking_mb_per_second: walking,
            again_mb_per_second: 1.0,
        };
        report.copied = vec![copied(0.1), copied(0.4), copied(0.256)];
        let found = against_memcpy(&report.rows(), &report.copied());
        assert_eq!(found.len(), 1);
        // 1000 messages of 64 bytes, there and back.
        assert_eq!(found[0].carried_mb_per_second, 0.128);
        assert_eq!(
            (found[0].carried_to_walking, found[0].one_way_to_walking),
            (0.5, 0.25)
        );
        assert_eq!(found[0].carried_to_again, 0.128);
        let text = report.text();
        assert!(
            text.contains("LARGE PAYLOADS") && text.contains("0.50"),
            "{text}"
        );
    }

    #[test]
    fn distributions_are_of_all_repetitions() {
        let rows = report().rows();
        let near = rows.iter().find(|row| row.regime == Regime::Near).unwrap();
        // 3,000 samples: up to 99.9 %, and a little.
        assert_eq!(near.distribution.len(), 35);
        assert_eq!(near.distribution[0].0, 0.0);
        let us: Vec<f64> = near.distribution.iter().map(|point| point.1).collect();
        assert!(
            (us[0] - 0.3).abs() < 0.001 && (us[34] - 0.5).abs() < 0.001,
            "{us:?}"
        );
        assert!(us.is_sorted());
    }
}
