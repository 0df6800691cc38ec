//! The effective configuration on paper.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::section::Setting;

/// Where the comment behind a setting begins.
const COMMENT_COLUMN: usize = 48;

pub(super) fn toml(file: Option<&Path>, settings: &[Setting]) -> String {
    let mut text = match file {
        Some(file) => format!("# Read from {}\n", file.display()),
        None => "# No configuration file; `lapce-ai config --example` prints one.\n".to_owned(),
    };
    let mut section = "";
    for setting in settings {
        if setting.section != section {
            section = &setting.section;
            // A string always takes what is written to it.
            let _ = writeln!(text, "\n[{}]", header(section));
        }
        let line = match &setting.value {
            Some(value) => format!("{} = {}", key(&setting.key), literal(value)),
            None => format!("# {} is not set", setting.key),
        };
        let _ = match &setting.value {
            Some(_) => writeln!(text, "{line:COMMENT_COLUMN$}# {}", setting.origin.short()),
            None => writeln!(text, "{line}"),
        };
    }
    text
}

pub(super) fn json(file: Option<&Path>, settings: &[Setting]) -> Value {
    let mut sections = Map::new();
    for setting in settings {
        let section = sections
            .entry(setting.section.clone())
            .or_insert_with(|| json!({}));
        if let Value::Object(section) = section {
            let entry = json!({ "value": setting.value, "source": setting.origin.short() });
            section.insert(setting.key.to_string(), entry);
        }
    }
    json!({ "file": file.map(Path::to_string_lossy), "sections": sections })
}

/// `providers.my.name` needs quotes around its last part.
fn header(section: &str) -> String {
    let Some((table, name)) = section.split_once('.') else {
        return section.to_owned();
    };
    format!("{table}.{}", key(name))
}

/// A key, in quotes where it needs them.
fn key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.chars().all(bare) {
        name.to_owned()
    } else {
        literal(&Value::from(name))
    }
}

/// A TOML value.
fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::from(text.as_str()).to_string(),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(literal).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(map) => {
            let key = |name: &String| literal(&Value::from(name.as_str()));
            let pairs: Vec<_> = map
                .iter()
                .map(|(name, value)| format!("{} = {}", key(name), literal(value)))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
