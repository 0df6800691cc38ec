//! What a message costs while something else wants the same processors, the same connection or the same server.

pub(crate) mod busy;
pub(crate) mod compiler;
pub(crate) mod flood;
pub(crate) mod mixed;
pub(crate) mod priority;
mod probe;

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Latency, median};

/// A command's result: latencies under conditions, each measured several times in turn.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    /// What was measured, for people.
    about: String,
    rows: Vec<Row>,
    /// Why rows are missing.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    condition: String,
    repetitions: Vec<Repetition>,
}

#[derive(Debug, Serialize)]
struct Repetition {
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    /// Rates beside it: what they are of and how much.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rates: Vec<Rate>,
}

/// Something a second.
#[derive(Debug, Clone, Serialize)]
struct Rate {
    of: &'static str,
    per_second: f64,
}

impl Report {
    fn new(machine: Machine, about: String) -> Self {
        Self {
            machine,
            about,
            rows: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Adds a repetition to the row, which is made where it is not there.
    fn add(&mut self, what: &str, condition: &str, repetition: Repetition) {
        let known = self
            .rows
            .iter_mut()
            .find(|row| row.what == what && row.condition == condition);
        match known {
            Some(row) => row.repetitions.push(repetition),
            None => self.rows.push(Row {
                what: what.to_owned(),
                condition: condition.to_owned(),
                repetitions: vec![repetition],
            }),
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        let text = if json {
            serde_json::to_string_pretty(self)? + "\n"
        } else {
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = self.write(&mut text);
            text
        };
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}", self.machine)?;
        let repetitions = self.rows.iter().map(|row| row.repetitions.len()).max();
        writeln!(
            out,
            "{}\nmedians of {} repetitions, taken in turn\n",
            self.about,
            repetitions.unwrap_or(0)
        )?;
        writeln!(
            out,
            "{:<34} {:<24} {:>9} {:>9} {:>9}  beside it",
            "what", "condition", "p50 µs", "p99 µs", "worst µs"
        )?;
        for row in &self.rows {
            let of = |figure: fn(&Latency) -> u64| {
                let figures = row.repetitions.iter().filter_map(|found| found.latency);
                let found = median(figures.map(|latency| figure(&latency) as f64 / 1e3));
                found.map_or("-".to_owned(), |found| format!("{found:.2}"))
            };
            write!(
                out,
                "{:<34} {:<24} {:>9} {:>9} {:>9} ",
                row.what,
                row.condition,
                of(|latency| latency.p50),
                of(|latency| latency.p99),
                of(|latency| latency.max)
            )?;
            let first = row.repetitions.first().map(|found| found.rates.as_slice());
            for (at, rate) in first.unwrap_or_default().iter().enumerate() {
                let all = row
                    .repetitions
                    .iter()
                    .filter_map(|found| found.rates.get(at));
                let found = median(all.map(|rate| rate.per_second)).unwrap_or(0.0);
                write!(out, " {found:.1} {}/s", rate.of)?;
            }
            writeln!(out)?;
        }
        for reason in &self.left_out {
            writeln!(out, "left out: {reason}")?;
        }
        Ok(())
    }
}
