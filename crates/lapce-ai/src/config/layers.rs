//! File, environment and flags as one tree of values, each with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What every overriding environment variable starts with.
const PREFIX: &str = "LAPCE_AI_";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// Nobody set it.
    #[default]
    Default,
    /// The configuration file; line and column count from 1.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line.
        line: usize,
        /// The column, in characters.
        column: usize,
    },
    /// This environment variable.
    Environment(String),
    /// This command-line flag.
    Flag(String),
}

impl Origin {
    /// In a few words, for the comment behind a value.
    pub fn short(&self) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::File { line, .. } => format!("file, line {line}"),
            Self::Environment(name) => format!("environment: {name}"),
            Self::Flag(name) => format!("flag: {name}"),
        }
    }

    /// Line and column in the file; what comes from elsewhere is behind all of it.
    pub(super) fn place(&self) -> (usize, usize) {
        match self {
            Self::File { line, column, .. } => (*line, *column),
            _ => (usize::MAX, 0),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub origin: Origin,
    /// What is wrong with it, and what is allowed. Never holds a key.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

/// A value that is not looked at yet.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Raw>),
    Table(Table),
    /// From the environment or a flag, where everything is text.
    Untyped(String),
    /// A kind that no setting has.
    Other(&'static str),
}

impl Raw {
    /// What it is, for an error.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) | Self::Untyped(text) => format!("{text:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

pub(super) type Table = BTreeMap<String, Entry>;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub raw: Raw,
    pub origin: Origin,
}

/// Reads the file's text. On a syntax error there is no table.
pub(super) fn parse_file(path: &Path, text: &str) -> Result<Table, Problem> {
    let place = Places {
        path: path.into(),
        text,
    };
    match DeTable::parse(text) {
        Ok(document) => Ok(place.table(document.get_ref())),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            // The error's own text would quote the line, which may hold a key.
            Err(Problem {
                origin: place.origin(at),
                text: error.message().trim().replace('\n', ", "),
            })
        }
    }
}

struct Places<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl Places<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = &self.text[..self.text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            path: Arc::clone(&self.path),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entry = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            let origin = self.origin(key.span().start);
            (
                key.get_ref().to_string(),
                Entry {
                    raw: self.raw(value.get_ref()),
                    origin,
                },
            )
        };
        table.iter().map(entry).collect()
    }

    fn raw(&self, value: &DeValue<'_>) -> Raw {
        match value {
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Raw::Other("a number out of range"), Raw::Int),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or(Raw::Other("a number out of range"), Raw::Float),
            DeValue::Boolean(value) => Raw::Bool(*value),
            DeValue::Datetime(_) => Raw::Other("a date"),
            DeValue::Array(list) => {
                Raw::List(list.iter().map(|item| self.raw(item.get_ref())).collect())
            }
            DeValue::Table(table) => Raw::Table(self.table(table)),
        }
    }
}

/// Lays `LAPCE_AI_<SECTION>__<KEY>` over the tree. Other variables, and empty ones, count for nothing.
pub(super) fn lay_environment(
    tree: &mut Table,
    variables: impl IntoIterator<Item = (String, String)>,
) {
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if rest.contains("__") && !value.is_empty() {
            let path = rest.to_lowercase();
            let path: Vec<&str> = path.split("__").collect();
            lay(
                tree,
                &path,
                Entry {
                    raw: Raw::Untyped(value),
                    origin: Origin::Environment(name.clone()),
                },
            );
        }
    }
}

/// Lays `section.key=value` over the tree.
pub(super) fn lay_flag(tree: &mut Table, path: &str, value: &str, flag: String) {
    let path: Vec<&str> = path.split('.').collect();
    lay(
        tree,
        &path,
        Entry {
            raw: Raw::Untyped(value.to_owned()),
            origin: Origin::Flag(flag),
        },
    );
}

/// Lays the value of the variable `name` below the tree: it counts where nobody else set anything.
pub(super) fn lay_below(tree: &mut Table, path: [&str; 2], name: &str, value: &str) {
    let [section, key] = path;
    let set = match tree.get(section) {
        None => false,
        Some(Entry {
            raw: Raw::Table(table),
            ..
        }) => table.contains_key(key),
        // It is reported when the section is read.
        Some(_) => true,
    };
    if !set {
        let entry = Entry {
            raw: Raw::Untyped(value.to_owned()),
            origin: Origin::Environment(name.to_owned()),
        };
        lay(tree, &path, entry);
    }
}

fn lay(tree: &mut Table, path: &[&str], entry: Entry) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    // Variables cannot have a hyphen; a provider's name can.
    let same = |name: &&String| name.to_lowercase().replace('-', "_") == first.replace('-', "_");
    let name = tree
        .keys()
        .find(same)
        .cloned()
        .unwrap_or_else(|| (*first).to_owned());
    if rest.is_empty() {
        tree.insert(name, entry);
        return;
    }
    let origin = entry.origin.clone();
    let below = tree.entry(name).or_insert_with(|| Entry {
        raw: Raw::Table(Table::new()),
        origin,
    });
    if let Raw::Table(table) = &mut below.raw {
        lay(table, rest, entry);
    }
    // Something else than a table is reported when the section is read.
}
