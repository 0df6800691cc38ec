//! `lapce-ai providers`: the table of the providers that are known by name.

mod page;

use lapce_ai_providers::{Auth, Feature, Features, PROFILES, Profile, Settings};
use serde_json::{Value, json};

use crate::config::{ApiKey, Config, HttpSettings, ProviderKind};
use crate::failure::Failure;
use crate::output::{Output, table};

/// What is shown where requests are signed.
const ACCOUNT: &str = "AWS account";

/// Prints the table, or the row of one provider.
pub(crate) fn run(config: &Config, name: Option<&str>, json: bool) -> Result<(), Failure> {
    let wanted =
        |profile: &&Profile| name.is_none_or(|name| profile.name.eq_ignore_ascii_case(name));
    let lookup = |name: &str| std::env::var(name).ok();
    let rows: Vec<Row> = PROFILES
        .iter()
        .filter(wanted)
        .map(|profile| Row::new(profile, config, lookup))
        .collect();
    if let (Some(name), true) = (name, rows.is_empty()) {
        let known: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
        return Err(Failure::Usage(format!(
            "no provider is known as `{name}`: there are {}; any other server of OpenAI's kind is `compatible`",
            known.join(", ")
        )));
    }
    let mut out = Output::stdout();
    if json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        out.json(&json!({ "providers": rows }))?;
    } else {
        for line in lines(&rows) {
            out.line(&line)?;
        }
    }
    Ok(())
}

/// Prints the page of the documentation that is made from the table.
pub(crate) fn markdown() -> Result<(), Failure> {
    Ok(Output::stdout().text(&page::page())?)
}

/// A provider as this user has it.
struct Row {
    profile: &'static Profile,
    /// The names under which the configuration has it.
    configured: Vec<String>,
    key: Key,
}

/// Where a provider's key is; never the key.
#[derive(Debug, PartialEq)]
enum Key {
    /// In this variable of the environment.
    Variable(String),
    /// In the configuration, under this setting.
    Setting(&'static str),
    /// Requests are signed for an account of AWS, which the environment or the AWS files name.
    Account,
    /// Nowhere.
    Absent,
}

impl Row {
    fn new(
        profile: &'static Profile,
        config: &Config,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let of = |provider: &crate::config::ProviderSettings| match &provider.kind {
            ProviderKind::Http(http) if http.profile.name == profile.name => Some(http.clone()),
            _ => None,
        };
        let mut configured = Vec::new();
        let mut key = Key::Absent;
        for provider in &config.providers {
            let Some(http) = of(provider) else { continue };
            configured.push(provider.name.clone());
            if key == Key::Absent {
                key = configured_key(&http, &lookup);
            }
            if key == Key::Absent && http.aws_profile.is_some() {
                key = account(profile, http.aws_profile, &lookup);
            }
        }
        if key == Key::Absent && config.discovery.environment {
            key = known_key(profile, &lookup);
        }
        if key == Key::Absent && config.discovery.environment {
            key = account(profile, None, &lookup);
        }
        Self {
            profile,
            configured,
            key,
        }
    }

    fn json(&self) -> Value {
        let profile = self.profile;
        let variables = profile.key_variables;
        let (set, from) = match &self.key {
            Key::Variable(name) => (true, Some(name.as_str())),
            Key::Setting(name) => (true, Some(*name)),
            Key::Account => (true, Some(ACCOUNT)),
            Key::Absent => (false, None),
        };
        json!({
            "name": profile.name,
            "title": profile.title,
            "format": profile.format.title(),
            "baseUrl": profile.base_url,
            "baseUrlVariable": profile.url_variable,
            "auth": auth(profile.auth),
            "keyVariables": variables,
            "key": { "set": set, "from": from },
            "configuredAs": self.configured,
            "features": names(profile.features),
            "claims": profile.claims,
            "usualModel": profile.usual_model,
            "quirks": profile.quirks,
            "reference": profile.reference,
        })
    }
}

/// What the configuration says of a provider's keys, as far as that can be told without running a command: where the
/// first is that is there.
fn configured_key(http: &HttpSettings, lookup: impl Fn(&str) -> Option<String>) -> Key {
    let key = |key: &ApiKey| match key {
        ApiKey::Value(_) => Key::Setting("api_key"),
        ApiKey::Environment(name) if is_set(name, &lookup) => Key::Variable(name.clone()),
        ApiKey::File(path) if path.is_file() => Key::Setting("api_key_file"),
        ApiKey::Command(_) => Key::Setting("api_key_command"),
        ApiKey::Environment(_) | ApiKey::File(_) => Key::Absent,
    };
    let mut keys = http.keys.iter().map(key);
    keys.find(|key| *key != Key::Absent).unwrap_or(Key::Absent)
}

fn known_key(profile: &Profile, lookup: impl Fn(&str) -> Option<String>) -> Key {
    let mut variables = profile.key_variables.iter();
    match variables.find(|name| is_set(name, &lookup)) {
        Some(name) => Key::Variable((*name).to_owned()),
        None => Key::Absent,
    }
}

/// Whose account signs requests, where that takes the place of a key.
fn account(
    profile: &Profile,
    aws_profile: Option<String>,
    lookup: impl Fn(&str) -> Option<String>,
) -> Key {
    let settings = Settings {
        aws_profile,
        ..Settings::default()
    };
    match profile.in_environment(settings, lookup) {
        Ok(settings) if settings.aws.is_some() => Key::Account,
        Ok(_) | Err(_) => Key::Absent,
    }
}

fn is_set(name: &str, lookup: impl Fn(&str) -> Option<String>) -> bool {
    lookup(name).is_some_and(|value| !value.trim().is_empty())
}

fn auth(auth: Auth) -> String {
    match auth {
        Auth::Bearer => "Authorization: Bearer".to_owned(),
        Auth::Header(name) => format!("{name} header"),
        Auth::HeaderOrToken(name) => format!("{name} header, or Authorization: Bearer for a token"),
        Auth::AwsSigV4 => "AWS signature".to_owned(),
        Auth::None => "none".to_owned(),
    }
}

fn names(features: Features) -> Vec<&'static str> {
    let all = Feature::ALL.iter();
    all.filter(|feature| features.has(**feature))
        .map(|feature| feature.name())
        .collect()
}

fn lines(rows: &[Row]) -> Vec<String> {
    let text = |text: &str| text.to_owned();
    let header = ["NAME", "TITLE", "FORMAT", "AUTH", "KEY", "ADDRESS"];
    let mut cells = vec![header.map(text).to_vec()];
    for Row { profile, key, .. } in rows {
        let key = match key {
            Key::Variable(name) => format!("set: {name}"),
            Key::Setting(name) => format!("set: {name}"),
            Key::Account => format!("set: {ACCOUNT}"),
            Key::Absent => match profile.key_variables.first() {
                Some(name) => format!("not set: {name}"),
                None => text("not set"),
            },
        };
        let address = match profile.base_url {
            "" => "base_url",
            url => url,
        };
        cells.push(vec![
            text(profile.name),
            text(profile.title),
            text(profile.format.title()),
            auth(profile.auth),
            key,
            text(address),
        ]);
    }
    let mut lines = table(&cells);
    lines.push(String::new());
    lines.extend(abilities(rows));
    lines
}

/// What each can do, told once where all of them can.
fn abilities(rows: &[Row]) -> Vec<String> {
    let everybody = |feature: &Feature| rows.iter().all(|row| row.profile.features.has(*feature));
    let common: Vec<Feature> = match rows {
        [_] => Vec::new(),
        _ => Feature::ALL.iter().copied().filter(everybody).collect(),
    };
    let mut lines = Vec::new();
    if !common.is_empty() {
        let names: Vec<&str> = common.iter().map(|feature| feature.name()).collect();
        lines.push(format!("all of them: {}", names.join(", ")));
    }
    for Row {
        profile,
        configured,
        ..
    } in rows
    {
        let own = names(profile.features.without(&common)).join(", ");
        lines.push(format!("{}: {own}", profile.name));
        if !profile.quirks.is_empty() {
            lines.push(format!("    {}", profile.quirks));
        }
        if !configured.is_empty() {
            lines.push(format!("    configured as {}", configured.join(", ")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn config(text: &str) -> Config {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        Config::load(&sources).unwrap()
    }

    fn row(name: &str, text: &str, variables: &[&str]) -> Row {
        let lookup = |name: &str| variables.contains(&name).then(|| "sk-s3cret".to_owned());
        Row::new(Profile::named(name).unwrap(), &config(text), lookup)
    }

    #[test]
    fn it_is_said_where_a_key_is_and_never_what() {
        let by_variable = |name: &str| Key::Variable(name.to_owned());
        for (text, variables, key) in [
            ("", &[][..], Key::Absent),
            ("", &["GROQ_API_KEY"], by_variable("GROQ_API_KEY")),
            (
                "[discovery]\nenvironment = false",
                &["GROQ_API_KEY"],
                Key::Absent,
            ),
            (
                "[providers.groq]\napi_key = 'sk-s3cret'",
                &[],
                Key::Setting("api_key"),
            ),
            (
                "[providers.g]\ntype = 'groq'\napi_key_command = 'false'",
                &[],
                Key::Setting("api_key_command"),
            ),
            (
                "[providers.groq]\napi_key_env = 'MINE'",
                &["MINE"],
                by_variable("MINE"),
            ),
            ("[providers.groq]\napi_key_env = 'MINE'", &[], Key::Absent),
            (
                "[providers.groq]\napi_keys = [{ api_key_env = 'MINE' }, { api_key = 'sk-s3cret' }]",
                &[],
                Key::Setting("api_key"),
            ),
            (
                "[providers.groq]\napi_key_file = 'no.key'",
                &[],
                Key::Absent,
            ),
        ] {
            let row = row("groq", text, variables);
            assert_eq!(row.key, key, "{text}");
            let shown = format!("{} {}", row.json(), lines(&[row]).join("\n"));
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn an_account_of_aws_takes_the_place_of_a_key() {
        let account = &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"][..];
        let off = "[discovery]\nenvironment = false";
        for (text, variables, key) in [
            ("", account, Key::Account),
            (off, account, Key::Absent),
            ("", &account[..1], Key::Absent),
            ("[providers.bedrock]\naws_profile = 'x'", &[], Key::Absent),
            (
                "[providers.bedrock]\napi_key = 'k'",
                account,
                Key::Setting("api_key"),
            ),
        ] {
            assert_eq!(row("bedrock", text, variables).key, key, "{text}");
        }
        assert_eq!(row("groq", "", account).key, Key::Absent);
    }

    #[test]
    fn a_row_says_everything() {
        let row = row("perplexity", "[providers.search]\ntype = 'perplexity'", &[]);
        let text = lines(std::slice::from_ref(&row)).join("\n");
        for part in [
            "perplexity",
            "OpenAI chat completions",
            "Authorization: Bearer",
            "not set: PERPLEXITY_API_KEY",
            "https://api.perplexity.ai",
            "citations",
            "searches the web",
            "configured as search",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = row.json();
        assert_eq!(json["key"], json!({"set": false, "from": null}));
        assert_eq!(json["configuredAs"], json!(["search"]));
        assert!(
            json["features"]
                .as_array()
                .unwrap()
                .contains(&"citations".into())
        );
    }
}
