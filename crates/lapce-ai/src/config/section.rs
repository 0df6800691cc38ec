//! Reading one table of the configuration: each key once, with its kind, and nothing left over.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lapce_ai_providers::SecretString;
use secrecy::zeroize::Zeroizing;
use serde_json::{Map, Value};

use super::REDACTED;
use super::kinds::{self, Kind};
use super::layers::{Entry, Origin, Problem, Raw, Table};

/// How alike an unknown name must be to a known one to be offered, from 0 to 1.
const NEAR_ENOUGH: f64 = 0.75;

/// What reading found: the problems, and every setting with its value and origin.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub settings: Vec<Setting>,
}

/// A setting in effect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    pub section: String,
    pub key: Cow<'static, str>,
    /// `None`: not set, and without a default.
    pub value: Option<Value>,
    pub origin: Origin,
}

impl Findings {
    /// Where a setting comes from.
    pub(super) fn origin(&self, section: &str, key: &str) -> Origin {
        let mut found = self
            .settings
            .iter()
            .filter(|setting| setting.section == section);
        found
            .find(|setting| setting.key == key)
            .map(|setting| setting.origin.clone())
            .unwrap_or_default()
    }

    pub(super) fn problem(&mut self, origin: Origin, text: impl Into<String>) {
        self.problems.push(Problem {
            origin,
            text: text.into(),
        });
    }

    /// A rule between several settings is broken: said where the first of them that somebody set stands.
    pub(super) fn conflict(&mut self, settings: &[(&str, &str)], text: impl Into<String>) {
        let origins = settings
            .iter()
            .map(|(section, key)| self.origin(section, key));
        let origin = origins
            .into_iter()
            .find(|origin| *origin != Origin::Default)
            .unwrap_or_default();
        self.problem(origin, text);
    }
}

/// What a table of names holds, in the order in which the user wrote it. `must` says what it has to be.
pub(super) fn named_entries(
    entry: Option<Entry>,
    must: &str,
    findings: &mut Findings,
) -> Vec<(String, Entry)> {
    let table = match entry {
        None => return Vec::new(),
        Some(Entry {
            raw: Raw::Table(table),
            ..
        }) => table,
        Some(Entry { raw, origin }) => {
            findings.problem(origin, format!("{must}, not {}", raw.describe()));
            return Vec::new();
        }
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.origin.place());
    entries
}

/// One table while it is being read.
pub(super) struct Section<'a> {
    name: String,
    table: Table,
    known: Vec<&'static str>,
    findings: &'a mut Findings,
}

impl<'a> Section<'a> {
    /// Takes table `key` out of `tree`; an absent one is an empty one.
    pub(super) fn take(tree: &mut Table, key: &str, findings: &'a mut Findings) -> Self {
        let entry = tree.remove(key);
        Self::new(key.to_owned(), entry, findings)
    }

    pub(super) fn new(name: String, entry: Option<Entry>, findings: &'a mut Findings) -> Self {
        let table = match entry {
            None => BTreeMap::new(),
            Some(Entry {
                raw: Raw::Table(table),
                ..
            }) => table,
            Some(Entry { raw, origin }) => {
                findings.problem(
                    origin,
                    format!(
                        "{name} must be a table such as [{name}], not {}",
                        raw.describe()
                    ),
                );
                BTreeMap::new()
            }
        };
        Self {
            name,
            table,
            known: Vec::new(),
            findings,
        }
    }

    /// Whether somebody set `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Where `key` is set.
    pub(super) fn origin(&self, key: &str) -> Origin {
        self.findings.origin(&self.name, key)
    }

    /// The value of `key`, or its default.
    pub(super) fn get<T>(&mut self, key: &'static str, default: T, kind: &Kind<T>) -> T {
        let (value, origin) = match self.read(key, kind) {
            Some((value, origin)) => (value, origin),
            None => (default, Origin::Default),
        };
        self.note(key, Some((kind.show)(&value)), origin);
        value
    }

    /// The value of `key`, if it has one.
    pub(super) fn maybe<T>(&mut self, key: &'static str, kind: &Kind<T>) -> Option<T> {
        let found = self.read(key, kind);
        let shown = found.as_ref().map(|(value, _)| (kind.show)(value));
        let (value, origin) = found.map_or((None, Origin::Default), |(value, origin)| {
            (Some(value), origin)
        });
        self.note(key, shown, origin);
        value
    }

    /// A value that must never be shown.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<SecretString> {
        self.known.push(key);
        let kind = kinds::text("a string that is not empty");
        let entry = self.table.remove(key);
        let Some(entry) = entry else {
            self.note(key, None, Origin::Default);
            return None;
        };
        let allowed = (kind.read)(&entry.raw).map(Zeroizing::new).is_some();
        let value = match entry.raw {
            // Moved, so that no copy stays behind.
            Raw::Text(text) | Raw::Untyped(text) if allowed => Some(SecretString::from(text)),
            _ => None,
        };
        if value.is_none() {
            let text = format!("{}.{key} must be {}", self.name, kind.allowed);
            self.findings.problem(entry.origin.clone(), text);
        }
        self.note(key, Some(Value::from(REDACTED)), entry.origin);
        value
    }

    /// Reads the table `key` as a section of its own, of which what is set is shown as one value.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> Option<T> {
        self.known.push(key);
        let Some(entry) = self.table.remove(key) else {
            self.note(key, None, Origin::Default);
            return None;
        };
        let origin = entry.origin.clone();
        let mut findings = Findings::default();
        let name = format!("{}.{key}", self.name);
        let mut section = Section::new(name, Some(entry), &mut findings);
        let value = read(&mut section);
        section.finish();
        let mut set = Map::new();
        for setting in findings.settings {
            if setting.origin != Origin::Default {
                let key = setting.key.into_owned();
                set.extend(setting.value.map(|value| (key, value)));
            }
        }
        self.note(key, Some(Value::Object(set)), origin);
        self.findings.problems.append(&mut findings.problems);
        Some(value)
    }

    /// Reads the list of tables `key`, each as a section of its own. What stands in them may be secret and is not noted.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        example: &str,
        mut read: impl FnMut(&mut Section<'_>, Origin) -> Option<T>,
    ) -> Vec<T> {
        self.known.push(key);
        let Some(Entry { raw, origin }) = self.table.remove(key) else {
            self.note(key, None, Origin::Default);
            return Vec::new();
        };
        self.note(key, Some(Value::from(REDACTED)), origin.clone());
        let Raw::List(items) = raw else {
            let text = format!("{key} must be a list of tables such as [{example}]");
            self.problem(origin, text);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (at, raw) in items.into_iter().enumerate() {
            let mut findings = Findings::default();
            let name = format!("{}.{key}[{at}]", self.name);
            if matches!(raw, Raw::Table(_)) {
                let entry = Entry {
                    raw,
                    origin: origin.clone(),
                };
                let mut section = Section::new(name, Some(entry), &mut findings);
                found.extend(read(&mut section, origin.clone()));
                section.finish();
            } else {
                findings.problem(
                    origin.clone(),
                    format!("{name} must be a table such as {example}"),
                );
            }
            self.findings.problems.append(&mut findings.problems);
        }
        found
    }

    /// Reads the table of tables `key`, each as a section of its own, with its name and its place. Nothing in them is secret.
    pub(super) fn named_tables<T>(
        &mut self,
        key: &'static str,
        example: &str,
        mut read: impl FnMut(&str, &mut Section<'_>, Origin) -> Option<T>,
    ) -> Vec<T> {
        self.known.push(key);
        let Some(Entry { raw, origin }) = self.table.remove(key) else {
            self.note(key, Some(Value::Object(Map::new())), Origin::Default);
            return Vec::new();
        };
        let Raw::Table(tables) = raw else {
            let text = format!("{key} must be a table such as {{ {example} }}");
            self.problem(origin, text);
            return Vec::new();
        };
        let (mut found, mut shown) = (Vec::new(), Map::new());
        for (name, entry) in tables {
            let mut findings = Findings::default();
            let place = entry.origin.clone();
            let of_name = format!("{}.{key}.{name}", self.name);
            let mut section = Section::new(of_name, Some(entry), &mut findings);
            found.extend(read(&name, &mut section, place));
            section.finish();
            self.findings.problems.append(&mut findings.problems);
            let set = findings.settings.into_iter();
            let set = set.filter(|setting| setting.origin != Origin::Default);
            let values = set.filter_map(|setting| Some((setting.key.to_string(), setting.value?)));
            shown.insert(name, Value::Object(values.collect()));
        }
        self.note(key, Some(Value::Object(shown)), origin);
        found
    }

    /// Reports something about `key`.
    pub(super) fn problem(&mut self, origin: Origin, text: impl Into<String>) {
        self.findings
            .problem(origin, format!("{}: {}", self.name, text.into()));
    }

    /// Of two settings the first is more than the second, which it must not be.
    pub(super) fn must_not_exceed(&mut self, less: &str, more: &str) {
        let name = self.name.as_str();
        let text = format!("{name}.{less} must not be more than {name}.{more}");
        self.findings.conflict(&[(name, less), (name, more)], text);
    }

    /// Whatever was not asked for is unknown.
    pub(super) fn finish(self) {
        for (key, entry) in self.table {
            let hint = match nearest(&key, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("[{}] has: {}", self.name, self.known.join(", ")),
            };
            self.findings.problem(
                entry.origin,
                format!("unknown key `{}.{key}`: {hint}", self.name),
            );
        }
    }

    fn read<T>(&mut self, key: &'static str, kind: &Kind<T>) -> Option<(T, Origin)> {
        self.known.push(key);
        let Entry { raw, origin } = self.table.remove(key)?;
        let value = (kind.read)(&raw);
        if value.is_none() {
            // What a table holds may be secret, so it is not repeated.
            let text = format!(
                "{}.{key} must be {}, not {}",
                self.name,
                kind.allowed,
                raw.describe()
            );
            self.findings.problem(origin.clone(), text);
        }
        value.map(|value| (value, origin))
    }

    fn note(&mut self, key: &'static str, value: Option<Value>, origin: Origin) {
        self.findings.settings.push(Setting {
            section: self.name.clone(),
            key: key.into(),
            value,
            origin,
        });
    }
}

/// The known name that is most like `name`, if any is.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= NEAR_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
