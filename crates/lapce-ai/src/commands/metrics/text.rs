//! Prometheus's text format, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{Display, Write as _};

/// What a family's values are.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Gauge,
    Counter,
}

/// A value with its labels.
pub(super) type Sample<'a> = (Vec<(&'static str, &'a str)>, String);

/// The text, family by family.
pub(super) struct Text(pub(super) String);

impl Text {
    /// A family, with all of its samples. Without any it is left out.
    pub(super) fn family<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let (kind, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        let name = format!("lapce_ai_{name}{suffix}");
        let text = &mut self.0;
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in samples {
            text.push_str(&name);
            for (at, (label, of)) in labels.iter().enumerate() {
                let before = if at == 0 { '{' } else { ',' };
                let _ = write!(text, "{before}{label}=\"{}\"", escaped(of));
            }
            let end = if labels.is_empty() { "" } else { "}" };
            let _ = writeln!(text, "{end} {value}");
        }
    }

    pub(super) fn one(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help, [(Vec::new(), value.to_string())]);
    }
}

/// A label's value as it stands between quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\")
        .replace('"', r#"\""#)
        .replace('\n', r"\n")
}

/// So many parts of a unit, of which it has ten to the power of `places`.
fn parts(number: u64, places: u32) -> String {
    let unit = 10_u64.pow(places);
    let width = places as usize;
    format!("{}.{:0width$}", number / unit, number % unit)
}

pub(super) fn seconds_of_millis(millis: u64) -> String {
    parts(millis, 3)
}

pub(super) fn seconds_of_micros(micros: u64) -> String {
    parts(micros, 6)
}

pub(super) fn usd(nano: u64) -> String {
    parts(nano, 9)
}
