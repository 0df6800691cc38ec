//! The kinds of value that a setting can have: how each is read, what it allows, how it is written.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lapce_ai_providers::HedgeAfter;
use serde_json::Value;

use super::key::{self, KeyProgram};
use super::layers::Raw;

/// Reads a value, if it is of the kind.
type Read<T> = Box<dyn Fn(&Raw) -> Option<T>>;

/// A kind of value.
pub(super) struct Kind<T> {
    /// What is allowed, to stand behind "must be".
    pub allowed: String,
    pub read: Read<T>,
    pub show: fn(&T) -> Value,
}

impl<T> Kind<T> {
    pub(super) fn new(
        allowed: impl Into<String>,
        read: impl Fn(&Raw) -> Option<T> + 'static,
        show: fn(&T) -> Value,
    ) -> Self {
        Self {
            allowed: allowed.into(),
            read: Box::new(read),
            show,
        }
    }
}

pub(super) fn switch() -> Kind<bool> {
    let read = |raw: &Raw| match raw {
        Raw::Bool(value) => Some(*value),
        Raw::Untyped(text) => match text.to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        },
        _ => None,
    };
    Kind::new("true or false", read, |value| Value::Bool(*value))
}

pub(super) fn integer<T>(range: RangeInclusive<T>) -> Kind<T>
where
    T: TryFrom<i64> + PartialOrd + Display + Copy + Into<u64> + 'static,
{
    let allowed = format!("a whole number from {} to {}", range.start(), range.end());
    let read = move |raw: &Raw| {
        T::try_from(whole(raw)?)
            .ok()
            .filter(|value| range.contains(value))
    };
    Kind::new(allowed, read, |value| Value::from((*value).into()))
}

pub(super) fn number(range: RangeInclusive<f64>) -> Kind<f64> {
    let allowed = format!("a number from {} to {}", range.start(), range.end());
    let read = move |raw: &Raw| real(raw).filter(|value| range.contains(value));
    Kind::new(allowed, read, |value| short_number(*value))
}

/// A number of bytes: an integer, or text such as `"10MiB"`.
pub(super) fn size(range: RangeInclusive<u64>) -> Kind<u64> {
    let allowed = format!(
        "a size from {} to {}, in bytes or with a unit such as \"64KiB\"",
        written_size(*range.start()),
        written_size(*range.end())
    );
    let read = move |raw: &Raw| {
        let bytes = match raw {
            Raw::Int(bytes) => u64::try_from(*bytes).ok()?,
            Raw::Text(text) | Raw::Untyped(text) => parse_size(text)?,
            _ => return None,
        };
        range.contains(&bytes).then_some(bytes)
    };
    Kind::new(allowed, read, |bytes| Value::from(written_size(*bytes)))
}

/// A duration, written as a number of seconds.
pub(super) fn seconds(range: RangeInclusive<u32>) -> Kind<Duration> {
    let allowed = format!(
        "a number of seconds from {} to {}",
        range.start(),
        range.end()
    );
    let (least, most) = (f64::from(*range.start()), f64::from(*range.end()));
    let read = move |raw: &Raw| {
        real(raw)
            .filter(|value| (least..=most).contains(value))
            .map(Duration::from_secs_f64)
    };
    Kind::new(allowed, read, |value| short_number(value.as_secs_f64()))
}

/// When a first token is late: a number of seconds, or a percentile such as `"p95"`.
pub(super) fn hedge_after() -> Kind<HedgeAfter> {
    let read = |raw: &Raw| {
        if let Some(seconds) = real(raw) {
            return (0.001..=3600.0)
                .contains(&seconds)
                .then(|| HedgeAfter::Fixed(Duration::from_secs_f64(seconds)));
        }
        let text = words(raw)?.to_lowercase();
        let percent: u8 = text.strip_prefix('p')?.parse().ok()?;
        (1..=99)
            .contains(&percent)
            .then_some(HedgeAfter::Percentile(percent))
    };
    Kind::new(
        "a number of seconds from 0.001 to 3600, or a percentile from \"p1\" to \"p99\"",
        read,
        |after| match after {
            HedgeAfter::Fixed(after) => short_number(after.as_secs_f64()),
            HedgeAfter::Percentile(percent) => Value::from(format!("p{percent}")),
        },
    )
}

pub(super) fn text(allowed: &'static str) -> Kind<String> {
    Kind::new(
        allowed,
        |raw| words(raw).filter(|text| !text.trim().is_empty()),
        |text| Value::from(text.as_str()),
    )
}

/// A file's path. `~/` is the home directory.
pub(super) fn path() -> Kind<PathBuf> {
    let read = |raw: &Raw| {
        let text = words(raw).filter(|text| !text.is_empty() && !text.contains('\0'))?;
        match (text.strip_prefix("~/"), std::env::home_dir()) {
            (Some(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(PathBuf::from(text)),
        }
    };
    Kind::new("a path", read, |path| Value::from(path.to_string_lossy()))
}

pub(super) fn one_of<T: Copy + PartialEq + 'static>(
    choices: &'static [(&'static str, T)],
    show: fn(&T) -> Value,
) -> Kind<T> {
    let names: Vec<String> = choices
        .iter()
        .map(|(name, _)| format!("{name:?}"))
        .collect();
    let read = |raw: &Raw| {
        let text = words(raw)?;
        choices
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&text))
            .map(|(_, value)| *value)
    };
    Kind::new(format!("one of {}", names.join(", ")), read, show)
}

pub(super) fn uids() -> Kind<Vec<u32>> {
    let read = |raw: &Raw| match raw {
        Raw::List(items) => items
            .iter()
            .map(|item| u32::try_from(whole(item)?).ok())
            .collect(),
        Raw::Untyped(text) => {
            let text = text.trim_matches(['[', ']']);
            text.split(',')
                .map(str::trim)
                .filter(|uid| !uid.is_empty())
                .map(|uid| uid.parse().ok())
                .collect()
        }
        _ => None,
    };
    Kind::new("a list of user ids such as [1000, 1001]", read, |uids| {
        Value::from(uids.as_slice())
    })
}

pub(super) fn texts() -> Kind<Vec<String>> {
    let read = |raw: &Raw| match raw {
        Raw::List(items) => items.iter().map(words).collect(),
        Raw::Untyped(text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
        _ => None,
    };
    Kind::new("a list of strings", read, |texts| {
        Value::from(texts.as_slice())
    })
}

/// A list of whole numbers.
pub(super) fn integers(range: RangeInclusive<u32>) -> Kind<Vec<u32>> {
    let allowed = format!(
        "a list of whole numbers from {} to {}",
        range.start(),
        range.end()
    );
    let one = move |number: i64| {
        let number = u32::try_from(number).ok();
        number.filter(|number| range.contains(number))
    };
    let read = move |raw: &Raw| match raw {
        Raw::List(items) => items.iter().map(|item| one(whole(item)?)).collect(),
        Raw::Untyped(text) => {
            let items = text.trim_matches(['[', ']']).split(',');
            items.map(|item| one(item.trim().parse().ok()?)).collect()
        }
        _ => None,
    };
    Kind::new(allowed, read, |numbers| Value::from(numbers.as_slice()))
}

/// A command: a line for the shell, or a list of a program and its arguments.
pub(super) fn command() -> Kind<KeyProgram> {
    let read = |raw: &Raw| match raw {
        Raw::List(items) => {
            let words: Option<Vec<String>> = items.iter().map(words).collect();
            let (program, arguments) = words?
                .split_first()
                .map(|(first, rest)| (first.clone(), rest.to_vec()))?;
            (!program.is_empty()).then_some(KeyProgram::Program(program, arguments))
        }
        _ => words(raw)
            .filter(|line| !line.trim().is_empty())
            .map(KeyProgram::Shell),
    };
    let allowed = "a line for the shell such as \"pass show openai\", or a list such as [\"pass\", \"show\", \"openai\"]";
    Kind::new(allowed, read, key::show)
}

/// Names with values that may be secret, such as HTTP headers.
pub(super) fn secret_map() -> Kind<Vec<(String, String)>> {
    let read = |raw: &Raw| match raw {
        Raw::Table(table) => table
            .iter()
            .map(|(name, entry)| Some((name.clone(), words(&entry.raw)?)))
            .collect(),
        _ => None,
    };
    Kind::new(
        "a table of strings such as { \"X-Team\" = \"editors\" }",
        read,
        |map| {
            map.iter()
                .map(|(name, _)| (name.clone(), Value::from(super::REDACTED)))
                .collect()
        },
    )
}

fn whole(raw: &Raw) -> Option<i64> {
    match raw {
        Raw::Int(value) => Some(*value),
        Raw::Untyped(text) => text.trim().replace('_', "").parse().ok(),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "settings are far below 2^53")]
fn real(raw: &Raw) -> Option<f64> {
    match raw {
        Raw::Float(value) => Some(*value),
        Raw::Untyped(text) => text.trim().parse().ok(),
        _ => whole(raw).map(|value| value as f64),
    }
}

fn words(raw: &Raw) -> Option<String> {
    match raw {
        Raw::Text(text) | Raw::Untyped(text) => Some(text.clone()),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^53")]
fn short_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}

const UNITS: [(&str, u64); 8] = [
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
    ("", 1),
];

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))?;
    number
        .trim()
        .replace('_', "")
        .parse::<u64>()
        .ok()?
        .checked_mul(*unit)
}

/// Bytes with the largest unit that leaves no rest.
pub(super) fn written_size(bytes: u64) -> String {
    for (unit, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("10MiB", 10 << 20),
            ("64 kib", 65536),
            ("1GB", 1_000_000_000),
            ("7", 7),
            ("1_000b", 1000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&written_size(bytes)), Some(bytes));
        }
        for text in ["", "MiB", "ten", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(written_size(128 << 10), "128KiB");
        assert_eq!(written_size(1025), "1025B");
    }

    #[test]
    fn text_from_outside_takes_the_kind_of_its_setting() {
        let untyped = |text: &str| Raw::Untyped(text.to_owned());
        assert_eq!((switch().read)(&untyped("on")), Some(true));
        assert_eq!((switch().read)(&Raw::Int(1)), None);
        assert_eq!((integer(1u32..=100).read)(&untyped("50")), Some(50));
        assert_eq!((integer(1u32..=100).read)(&untyped("101")), None);
        assert_eq!(
            (uids().read)(&untyped("[1000, 1001]")),
            Some(vec![1000, 1001])
        );
        assert_eq!((uids().read)(&untyped("x")), None);
        assert_eq!(
            (seconds(0..=10).read)(&untyped("0.25")),
            Some(Duration::from_millis(250))
        );
        assert_eq!((seconds(0..=10).read)(&Raw::Float(f64::NAN)), None);
        let second = HedgeAfter::Fixed(Duration::from_secs(1));
        for (text, after) in [
            ("p95", Some(HedgeAfter::Percentile(95))),
            ("P50", Some(HedgeAfter::Percentile(50))),
            ("1", Some(second)),
            ("p100", None),
            ("p", None),
            ("95", Some(HedgeAfter::Fixed(Duration::from_secs(95)))),
            ("0", None),
        ] {
            assert_eq!((hedge_after().read)(&untyped(text)), after, "{text}");
        }
        assert_eq!((hedge_after().read)(&Raw::Float(1.0)), Some(second));
        assert_eq!((hedge_after().show)(&HedgeAfter::Percentile(9)), "p9");
    }
}
