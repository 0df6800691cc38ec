//! What was found, as text and as JSON.

use std::fmt;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::cancellation::{self, GAP, LIMIT};
use crate::load::Measured;
use crate::machine::Machine;

/// What the pool may cost a request at most, and what we aim for, in µs at the 99th percentile.
const FLOOR_US: f64 = 5_000.0;
const AIM_US: f64 = 20.0;

/// Both ways of one case, run by run.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    direct: Vec<Measured>,
    pool: Vec<Measured>,
    pub(crate) errors: Vec<String>,
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) concurrent: u32,
    pub(crate) requests: u32,
    pub(crate) http_requests: u32,
    pub(crate) runs: u32,
    pub(crate) rows: Vec<Row>,
    pub(crate) cancellation: Vec<cancellation::Row>,
}

/// A quantile in µs.
fn at(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// The median.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (
        least,
        values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    )
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            direct: Vec::new(),
            pool: Vec::new(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, is_direct: bool, mut measured: Measured) {
        self.errors.append(&mut measured.errors);
        match is_direct {
            true => self.direct.push(measured),
            false => self.pool.push(measured),
        }
    }

    /// Of each run: a quantile through the pool less the same quantile without it.
    fn overhead(&self, quantile: f64) -> Vec<f64> {
        let pairs = self.pool.iter().zip(&self.direct);
        pairs
            .map(|(pool, direct)| at(&pool.work, quantile) - at(&direct.work, quantile))
            .collect()
    }

    fn of(ways: &[Measured], which: fn(&Measured) -> &Histogram<u64>, quantile: f64) -> f64 {
        median(ways.iter().map(|way| at(which(way), quantile)).collect())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.machine)?;
        writeln!(
            out,
            "{} requests at once; {} runs, in each of which both ways take turns with {} requests, over HTTP with {}; medians of the runs",
            self.concurrent, self.runs, self.requests, self.http_requests
        )?;
        writeln!(
            out,
            "work: for how long a request's own future was polled, from asking to the end of the answer, µs; whole: how long \
             it took, waiting for its turn included, µs\n"
        )?;
        writeln!(
            out,
            "{:<37} {:<7} {:>10} {:>10} {:>12} {:>12}",
            "", "", "work p50", "work p99", "whole p50", "whole p99"
        )?;
        for row in &self.rows {
            for (way, of) in [("direct", &row.direct), ("pool", &row.pool)] {
                writeln!(
                    out,
                    "{:<37} {:<7} {:>10.2} {:>10.2} {:>12.0} {:>12.0}",
                    row.name,
                    way,
                    Row::of(of, |way| &way.work, 0.5),
                    Row::of(of, |way| &way.work, 0.99),
                    Row::of(of, |way| &way.whole, 0.5),
                    Row::of(of, |way| &way.whole, 0.99),
                )?;
            }
        }
        writeln!(
            out,
            "\nOVERHEAD of the pool, µs of work a request: the difference of the quantiles, as median (least to most) of the runs"
        )?;
        for row in &self.rows {
            write!(out, "{:<37}", row.name)?;
            for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                let values = row.overhead(quantile);
                let (least, most) = spread(&values);
                write!(
                    out,
                    "  {name} {:>7.2} ({least:.2} to {most:.2})",
                    median(values)
                )?;
            }
            let p99 = median(row.overhead(0.99));
            let standing = match p99 {
                p99 if p99 < AIM_US => "aim met",
                p99 if p99 < FLOOR_US => "floor met, aim missed",
                _ => "FLOOR MISSED",
            };
            writeln!(out, "  {standing}")?;
        }
        writeln!(
            out,
            "floor: p99 below {FLOOR_US:.0} µs; aim: below {AIM_US:.0} µs"
        )?;
        writeln!(
            out,
            "\nCANCELLATION through the daemon, ms from when a client gives up to when the provider's socket sees its connection end;\n\
             the provider says a word every {} ms; one request at a time, each process a real one\n",
            GAP.as_millis()
        )?;
        writeln!(
            out,
            "{:<35} {:>7} {:>8} {:>8} {:>8} {:>6}",
            "", "samples", "p50", "p99", "max", "later"
        )?;
        for row in &self.cancellation {
            let [p50, p99, max] = row.times_ms();
            let standing = match row.late() {
                0 => "limit met",
                _ => "LIMIT MISSED",
            };
            writeln!(
                out,
                "{:<35} {:>7} {p50:>8.2} {p99:>8.2} {max:>8.2} {:>6}  {standing}",
                row.name(),
                row.samples(),
                row.late()
            )?;
        }
        writeln!(out, "limit: {} ms", LIMIT.as_millis())?;
        let errors = self.rows.iter().flat_map(|row| &row.errors);
        writeln!(out, "errors: {}", errors.clone().count())?;
        for error in errors.take(10) {
            writeln!(out, "FAILED: {error}")?;
        }
        Ok(())
    }
}

impl Report {
    pub(crate) fn is_right(&self) -> bool {
        self.rows.iter().all(|row| row.errors.is_empty())
    }

    pub(crate) fn json(&self) -> Value {
        let row = |row: &Row| {
            let runs = row.pool.iter().zip(&row.direct).map(|(pool, direct)| {
                let of = |way: &Measured| {
                    json!({"requests": way.work.len(),
                        "work_p50_us": at(&way.work, 0.5), "work_p99_us": at(&way.work, 0.99),
                        "whole_p50_us": at(&way.whole, 0.5), "whole_p99_us": at(&way.whole, 0.99)})
                };
                json!({"pool": of(pool), "direct": of(direct)})
            });
            json!({"name": row.name, "runs": runs.collect::<Vec<_>>(), "errors": row.errors,
                "overhead_p50_us": median(row.overhead(0.5)), "overhead_p99_us": median(row.overhead(0.99))})
        };
        json!({"machine": self.machine, "concurrent": self.concurrent,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "cancellation_limit_ms": LIMIT.as_millis() as u64,
            "cancellation": self.cancellation.iter().map(cancellation::Row::json).collect::<Vec<_>>()})
    }
}
