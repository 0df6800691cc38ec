//! What a level found, beside what it may be.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::Form;
use super::plot::{Panel, picture};
use super::watch::Moment;
use crate::machine::Machine;
use crate::measure::Latency;

/// What a level hands back.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    /// The load, for people.
    pub(super) what: String,
    /// How long the load lasted.
    pub(super) seconds: f64,
    pub(super) bounds: Vec<Bound>,
    pub(super) figures: Vec<Figure>,
    pub(super) latencies: Vec<NamedLatency>,
    /// What must be known to read the figures.
    pub(super) notes: Vec<String>,
    /// What went wrong that no number says.
    pub(super) failures: Vec<String>,
    pub(super) timeline: Vec<Moment>,
    /// What belongs to this level alone.
    pub(super) detail: Value,
}

/// A figure with a limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bound {
    what: String,
    found: f64,
    relation: Relation,
    limit: f64,
    unit: &'static str,
    held: bool,
    /// Why it is printed and not judged, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_judged: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Relation {
    #[serde(rename = "<=")]
    AtMost,
    #[serde(rename = ">=")]
    AtLeast,
    #[serde(rename = "<")]
    Below,
}

impl Bound {
    pub(super) fn at_most(
        what: impl Into<String>,
        found: f64,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        Self::new(what.into(), found, Relation::AtMost, limit, unit)
    }

    pub(super) fn at_least(
        what: impl Into<String>,
        found: f64,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        Self::new(what.into(), found, Relation::AtLeast, limit, unit)
    }

    pub(super) fn below(
        what: impl Into<String>,
        found: f64,
        limit: f64,
        unit: &'static str,
    ) -> Self {
        Self::new(what.into(), found, Relation::Below, limit, unit)
    }

    /// Something of which there must be none.
    pub(super) fn none(what: impl Into<String>, found: u64) -> Self {
        Self::at_most(what, found as f64, 0.0, "")
    }

    fn new(what: String, found: f64, relation: Relation, limit: f64, unit: &'static str) -> Self {
        let held = match relation {
            Relation::AtMost => found <= limit,
            Relation::AtLeast => found >= limit,
            Relation::Below => found < limit,
        };
        Self {
            what,
            found,
            relation,
            limit,
            unit,
            held,
            not_judged: None,
        }
    }

    /// Only printed, where there is a reason for that.
    pub(super) fn unless(mut self, reason: Option<impl Into<String>>) -> Self {
        self.not_judged = reason.map(Into::into);
        self
    }

    fn is_broken(&self) -> bool {
        !self.held && self.not_judged.is_none()
    }

    fn verdict(&self) -> String {
        let word = if self.held { "holds" } else { "BROKEN" };
        match (&self.not_judged, self.held) {
            (None, _) => word.to_owned(),
            (Some(why), true) => format!("holds (not judged: {why})"),
            (Some(why), false) => format!("missed (not judged: {why})"),
        }
    }
}

/// A figure without a limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
}

impl Figure {
    pub(super) fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
        }
    }
}

/// Latencies, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NamedLatency {
    pub(super) what: String,
    #[serde(flatten)]
    pub(super) latency: Latency,
}

impl NamedLatency {
    pub(super) fn new(what: impl Into<String>, latency: Latency) -> Self {
        Self {
            what: what.into(),
            latency,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    level: u8,
    name: &'static str,
    form: Form,
    machine: Machine,
    #[serde(flatten)]
    outcome: Outcome,
    /// Why the run failed, if it did.
    pub(super) broken: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome {
            what,
            seconds,
            bounds,
            figures,
            latencies,
            notes,
            ..
        } = &self.outcome;
        writeln!(out, "{}\n", self.machine)?;
        let form = match self.form {
            Form::Full => "full form",
            Form::Timed => "for the time that was asked for",
            Form::Quick => "quick form",
        };
        writeln!(
            out,
            "STRESS LEVEL {}, {}; {form}; the load lasted {seconds:.1} s\n{what}\n",
            self.level, self.name
        )?;
        writeln!(out, "{:<58} {:>13}    {:>13}", "bound", "found", "limit")?;
        for bound in bounds {
            let sign = match bound.relation {
                Relation::AtMost => "<=",
                Relation::AtLeast => ">=",
                Relation::Below => "< ",
            };
            // What was found is set beside what it must be, whether it is or not.
            writeln!(
                out,
                "{:<58} {:>13} {sign} {:>13} {:<6} {}",
                bound.what,
                number(bound.found),
                number(bound.limit),
                bound.unit,
                bound.verdict()
            )?;
        }
        if !figures.is_empty() {
            writeln!(out)?;
        }
        for Figure { what, value, unit } in figures {
            writeln!(out, "{what:<58} {:>13} {unit}", number(*value))?;
        }
        if !latencies.is_empty() {
            writeln!(
                out,
                "\n{:<58} {:>9} {:>9} {:>9} {:>10} {:>10}",
                "latency, µs", "p50", "p99", "p99.9", "worst", "samples"
            )?;
        }
        for NamedLatency { what, latency } in latencies {
            let [p50, p99, p999, max] =
                [latency.p50, latency.p99, latency.p999, latency.max].map(|ns| ns as f64 / 1e3);
            writeln!(
                out,
                "{what:<58} {p50:>9.1} {p99:>9.1} {p999:>9.1} {max:>10.1} {:>10}",
                latency.samples
            )?;
        }
        for note in notes {
            writeln!(out, "\n{note}")?;
        }
        writeln!(out)?;
        for broken in &self.broken {
            writeln!(out, "BROKEN: {broken}")?;
        }
        if self.broken.is_empty() {
            writeln!(out, "every bound that is judged holds")?;
        }
        Ok(())
    }
}

impl Report {
    pub(super) fn new(
        level: u8,
        name: &'static str,
        form: Form,
        machine: Machine,
        outcome: Outcome,
    ) -> Self {
        let broken = outcome.bounds.iter().filter(|bound| bound.is_broken());
        let broken = broken.map(|bound| {
            let Bound {
                what,
                found,
                limit,
                unit,
                ..
            } = bound;
            let [found, limit] = [*found, *limit].map(number);
            format!("{what}: {found} {unit} where the bound is {limit}")
        });
        let broken = broken.chain(outcome.failures.iter().cloned()).collect();
        Self {
            level,
            name,
            form,
            machine,
            outcome,
            broken,
        }
    }

    /// Pictures of what was seen over time, each with its name.
    pub(super) fn pictures(&self) -> [(&'static str, String); 2] {
        let title =
            |of: &str| format!("Stress level {}, {}: {of} over time", self.level, self.name);
        let below = self.machine.to_string();
        let timeline = &self.outcome.timeline;
        [
            (
                "memory",
                picture(&title("memory"), &below, &Panel::of_memory(timeline)),
            ),
            (
                "latency",
                picture(&title("latency"), &below, &Panel::of_latency(timeline)),
            ),
        ]
    }
}

/// As many digits as say something, with thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v.fract() == 0.0 || v >= 1000.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 4,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_once('.').unwrap_or((&plain, ""));
    let digits = whole.trim_start_matches('-');
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if whole.starts_with('-') {
        out.insert(0, '-');
    }
    if !rest.is_empty() {
        out.push('.');
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use crate::machine::Cpus;

    fn report(bounds: Vec<Bound>) -> Report {
        let outcome = Outcome {
            what: "a load".to_owned(),
            bounds,
            timeline: Moment::examples(),
            ..Outcome::default()
        };
        let machine = Machine::look(&Cpus::from_list(Vec::new()));
        Report::new(1, "connection bomb", Form::Full, machine, outcome)
    }

    #[test]
    fn a_broken_bound_fails_the_run_and_says_so() {
        let held = report(vec![
            Bound::at_least("rate", 5.0, 5.0, "/s"),
            Bound::none("errors", 0),
        ]);
        assert_eq!(held.broken, [""; 0]);
        let broken = report(vec![
            Bound::at_least("rate", 4.9, 5.0, "/s"),
            Bound::none("errors", 1),
            Bound::below("share", 1.0, 1.0, "%"),
            Bound::at_most("memory", 5.0, 5.0, "KiB"),
        ]);
        assert_eq!(broken.broken.len(), 3, "{:?}", broken.broken);
        assert!(
            broken
                .to_string()
                .contains("BROKEN: rate: 4.90 /s where the bound is 5")
        );
    }

    #[test]
    fn what_is_not_judged_breaks_nothing_and_is_printed() {
        let found = report(vec![
            Bound::at_most("worst", 9.0, 5.0, "µs").unless(Some("two share a core")),
            Bound::at_most("best", 9.0, 10.0, "µs").unless(None::<&str>),
        ]);
        assert_eq!(found.broken, [""; 0]);
        let text = found.to_string();
        assert!(
            text.contains("missed (not judged: two share a core)"),
            "{text}"
        );
    }

    #[test]
    fn failures_without_a_number_count() {
        let mut outcome = Outcome::default();
        outcome.failures.push("it died".to_owned());
        let machine = Machine::look(&Cpus::from_list(Vec::new()));
        let report = Report::new(5, "chaos", Form::Quick, machine, outcome);
        assert_eq!(report.broken, ["it died"]);
    }

    #[test]
    fn numbers_are_readable() {
        let found = [0.0, 1_234_567.0, 999.0, 1000.6, 12.34, 0.5, 0.001, -1234.0];
        let expected = [
            "0",
            "1,234,567",
            "999",
            "1,001",
            "12.3",
            "0.50",
            "0.0010",
            "-1,234",
        ];
        assert_eq!(found.map(number), expected);
    }

    #[test]
    fn pictures_are_drawn_of_what_was_seen() {
        for (_, picture) in report(Vec::new()).pictures() {
            let document = roxmltree::Document::parse(&picture).unwrap();
            assert!(
                document
                    .descendants()
                    .any(|node| node.has_tag_name("polyline"))
            );
            assert!(
                !picture.contains("NaN") && !picture.contains("inf"),
                "{picture}"
            );
        }
    }
}
