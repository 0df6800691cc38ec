//! Section `[aliases]`: names that the user gives to models, each to one; a name for several is a route.

use serde_json::Value;

use super::kinds;
use super::layers::{Entry, Raw};
use super::provider::ProviderSettings;
use super::section::{Findings, Setting, named_entries};

const SECTION: &str = "aliases";

/// The aliases in the file's order, each with the model that it means.
pub(super) fn read_all(
    entry: Option<Entry>,
    providers: &[ProviderSettings],
    findings: &mut Findings,
) -> Vec<(String, String)> {
    let must = "aliases must be a table such as [aliases]";
    let entries = named_entries(entry, must, findings);
    let kind = kinds::text("a model such as \"groq/openai/gpt-oss-20b\"");
    let mut aliases = Vec::new();
    for (name, Entry { raw, origin }) in entries {
        let same = |provider: &&ProviderSettings| provider.name.eq_ignore_ascii_case(&name);
        let wrong = if name.trim().is_empty() || name.contains('/') {
            Some("an alias must not be empty or have a `/`".to_owned())
        } else {
            let taken = providers.iter().find(same);
            taken.map(|provider| {
                format!(
                    "[providers.{}] has the same name: choose another",
                    provider.name
                )
            })
        };
        if let Some(wrong) = wrong {
            findings.problem(origin, format!("aliases.{name}: {wrong}"));
            continue;
        }
        let Some(model) = (kind.read)(&raw) else {
            let hint = match raw {
                Raw::List(_) => ": several models are a route, see [routes]",
                _ => "",
            };
            let text = format!(
                "aliases.{name} must be {}, not {}{hint}",
                kind.allowed,
                raw.describe()
            );
            findings.problem(origin, text);
            continue;
        };
        findings.settings.push(Setting {
            section: SECTION.to_owned(),
            key: name.clone().into(),
            value: Some(Value::from(model.as_str())),
            origin,
        });
        aliases.push((name, model));
    }
    aliases
}
