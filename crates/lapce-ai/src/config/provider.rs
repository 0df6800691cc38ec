//! Sections `[providers.<name>]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapce_ai_providers::{
    BreakerConfig, ErrorKind, FailureMode, Format, LocalConfig, LocalFailure, Phase, Profile,
    SecretString,
};
use serde_json::Value;

use super::layers::{Entry, Origin, Raw};
use super::section::{Findings, Section};
use super::waits::{self, Waits};
use super::{DAY, kinds, name_of, pool};

/// The most keys of one provider.
const MOST_KEYS: usize = 32;

/// One configured provider.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Its name, before the `/` of a model.
    pub name: String,
    /// The model that is meant where only the provider is named.
    pub default_model: Option<String>,
    /// How it is spoken to.
    pub kind: ProviderKind,
    /// When it is left alone, where that is not as for all.
    pub breaker: Option<BreakerConfig>,
    /// How often it is probed while nothing else tells how it does; `None` is never.
    pub probe: Option<Duration>,
}

/// How a provider is spoken to.
#[derive(Debug, Clone)]
pub enum ProviderKind {
    /// A server of `OpenAI` chat completions.
    OpenAi(Box<OpenAiSettings>),
    /// The built-in provider without a model.
    Local(LocalSettings),
}

/// A server of `OpenAI` chat completions.
#[derive(Debug, Clone)]
pub struct OpenAiSettings {
    /// Everything before `/chat/completions`.
    pub base_url: String,
    /// The region or location, for clouds.
    pub region: Option<String>,
    /// The profile in the AWS files, for AWS.
    pub aws_profile: Option<String>,
    /// The project, for Google's cloud.
    pub project: Option<String>,
    /// Where its keys are; they are used in turn.
    pub keys: Vec<ApiKey>,
    /// Further headers of every request. Their values are taken for secrets.
    pub headers: Vec<(String, SecretString)>,
    /// The models it is known to offer, where somebody listed them.
    pub models: Vec<String>,
    /// How long to wait.
    pub waits: Waits,
    /// Certificates to trust besides the compiled-in ones.
    pub extra_root_certs: Option<PathBuf>,
}

/// Where a key is.
#[derive(Debug, Clone)]
pub enum ApiKey {
    /// Here.
    Value(SecretString),
    /// In this environment variable.
    Environment(String),
    /// In this file, which holds nothing else.
    File(PathBuf),
}

/// How the provider without a model behaves.
pub type LocalSettings = LocalConfig;

#[derive(Clone, Copy, PartialEq)]
enum Type {
    OpenAi,
    Local,
}

const TYPES: &[(&str, Type)] = &[("openai", Type::OpenAi), ("local", Type::Local)];

const FAILURES: &[(&str, FailureMode)] = &[
    ("hang", FailureMode::Hang),
    (
        "authentication",
        FailureMode::Error(ErrorKind::Authentication),
    ),
    ("rate_limited", FailureMode::Error(ErrorKind::RateLimited)),
    ("overloaded", FailureMode::Error(ErrorKind::Overloaded)),
    (
        "provider_internal",
        FailureMode::Error(ErrorKind::ProviderInternal),
    ),
    (
        "connection_failed",
        FailureMode::Error(ErrorKind::ConnectionFailed),
    ),
    (
        "timed_out",
        FailureMode::Error(ErrorKind::TimedOut(Phase::NextToken)),
    ),
    ("stream_cut", FailureMode::Error(ErrorKind::StreamCut)),
    (
        "malformed_response",
        FailureMode::Error(ErrorKind::MalformedResponse),
    ),
    (
        "content_filtered",
        FailureMode::Error(ErrorKind::ContentFiltered),
    ),
];

pub(super) fn read_all(
    entry: Option<Entry>,
    file: Option<&Path>,
    usual: Waits,
    breaker: BreakerConfig,
    findings: &mut Findings,
) -> Vec<ProviderSettings> {
    let table = match entry {
        None => return Vec::new(),
        Some(Entry {
            raw: Raw::Table(table),
            ..
        }) => table,
        Some(Entry { raw, origin }) => {
            let text = format!(
                "providers must hold tables such as [providers.openai], not {}",
                raw.describe()
            );
            findings.problem(origin, text);
            return Vec::new();
        }
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(_, entry)| match &entry.origin {
        Origin::File { line, column, .. } => (*line, *column),
        _ => (usize::MAX, 0),
    });
    entries
        .into_iter()
        .filter_map(|(name, entry)| read(name, entry, file, usual, breaker, findings))
        .collect()
}

fn read(
    name: String,
    entry: Entry,
    file: Option<&Path>,
    usual: Waits,
    breaker: BreakerConfig,
    findings: &mut Findings,
) -> Option<ProviderSettings> {
    let place = entry.origin.clone();
    let mut section = Section::new(format!("providers.{name}"), Some(entry), findings);
    if name.is_empty() || name.contains('/') {
        section.problem(
            place.clone(),
            "a provider's name must not be empty or have a `/`",
        );
    }
    let known = Profile::named(&name);
    let type_kind = kinds::one_of(TYPES, |ty| Value::from(name_of(TYPES, *ty)));
    let implied = match name.as_str() {
        "local" => Some(Type::Local),
        _ => known.map(|_| Type::OpenAi),
    };
    let ty = match implied {
        Some(ty) => section.get("type", ty, &type_kind),
        None => {
            let given = section.has("type");
            let Some(ty) = section.maybe("type", &type_kind) else {
                if !given {
                    section.problem(
                        place,
                        format!("type is missing; it must be {}", type_kind.allowed),
                    );
                }
                // Without its type, nobody knows which keys are right.
                return None;
            };
            ty
        }
    };
    let default_model = section.maybe("default_model", &kinds::text("a model's name"));
    let kind = match ty {
        Type::Local => ProviderKind::Local(read_local(&mut section)),
        Type::OpenAi => ProviderKind::OpenAi(Box::new(read_openai(
            &mut section,
            &place,
            known,
            file,
            usual,
        ))),
    };
    let probe = section.get("probe_secs", Duration::ZERO, &kinds::seconds(0..=DAY));
    let breaker = section.table("breaker", |section| pool::breaker_of(section, breaker));
    section.finish();
    Some(ProviderSettings {
        name,
        default_model,
        kind,
        breaker,
        probe: Some(probe).filter(|probe| !probe.is_zero()),
    })
}

fn read_openai(
    section: &mut Section<'_>,
    place: &Origin,
    known: Option<&Profile>,
    file: Option<&Path>,
    usual: Waits,
) -> OpenAiSettings {
    let url_kind = kinds::text("an address such as \"http://127.0.0.1:8080/v1\"");
    let base_url = match known {
        Some(known) => section.get("base_url", known.base_url.to_owned(), &url_kind),
        None => {
            let given = section.has("base_url");
            section.maybe("base_url", &url_kind).unwrap_or_else(|| {
                if !given {
                    section.problem(
                        place.clone(),
                        format!("base_url is missing; it must be {}", url_kind.allowed),
                    );
                }
                String::new()
            })
        }
    };
    let region = section.maybe("region", &kinds::text("a region such as \"us-east-1\""));
    let of_aws = known.is_some_and(|known| known.format == Format::Bedrock);
    let aws_profile = match of_aws {
        true => section.maybe("aws_profile", &kinds::text("a profile's name")),
        false => None,
    };
    let project = section.maybe("project", &kinds::text("a project's name"));
    let beside = |path| super::beside(file, path);
    let keys = read_keys(section, beside);
    let headers = section
        .maybe("headers", &kinds::secret_map())
        .unwrap_or_default();
    let models = section.get("models", Vec::new(), &kinds::texts());
    let waits = waits::read(section, usual);
    let extra_root_certs = section
        .maybe("extra_root_certs", &kinds::path())
        .map(beside);
    OpenAiSettings {
        base_url,
        region,
        aws_profile,
        project,
        keys,
        headers: headers
            .into_iter()
            .map(|(name, value)| (name, SecretString::from(value)))
            .collect(),
        models,
        waits,
        extra_root_certs,
    }
}

/// The key of `section`, or all of its `api_keys`.
fn read_keys(section: &mut Section<'_>, beside: impl Fn(PathBuf) -> PathBuf) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = read_key(section, &beside).into_iter().collect();
    let several = section.tables(
        "api_keys",
        "{ api_key_env = \"A_VARIABLE\" }",
        |one, place| {
            let key = read_key(one, &beside);
            if key.is_none() {
                one.problem(place, "it says nowhere where the key is");
            }
            key
        },
    );
    keys.extend(several);
    if keys.len() > MOST_KEYS {
        let origin = section.origin("api_keys");
        section.problem(origin, format!("there are more than {MOST_KEYS} keys"));
    }
    keys
}

/// The key of `section`.
fn read_key(section: &mut Section<'_>, beside: impl Fn(PathBuf) -> PathBuf) -> Option<ApiKey> {
    let value = section.secret("api_key");
    let variable = section.maybe(
        "api_key_env",
        &kinds::text("an environment variable's name"),
    );
    let key_file = section.maybe("api_key_file", &kinds::path());
    let given = ["api_key", "api_key_env", "api_key_file"];
    let set = [value.is_some(), variable.is_some(), key_file.is_some()];
    if set.iter().filter(|set| **set).count() > 1 {
        let last = given
            .into_iter()
            .zip(set)
            .rfind(|(_, set)| *set)
            .map_or("api_key", |(key, _)| key);
        let origin = section.origin(last);
        section.problem(
            origin,
            "only one of api_key, api_key_env and api_key_file may be set",
        );
    }
    value
        .map(ApiKey::Value)
        .or(variable.map(ApiKey::Environment))
        .or(key_file.map(|path| ApiKey::File(beside(path))))
}

fn read_local(section: &mut Section<'_>) -> LocalSettings {
    let first_token_ms = section.get("first_token_ms", 0, &kinds::integer(0u32..=3_600_000));
    let tokens_per_second = section.maybe("tokens_per_second", &kinds::number(0.001..=1e9));
    let tokens = section.maybe("tokens", &kinds::integer(0u32..=1_000_000_000));
    let fail = section.maybe(
        "fail",
        &kinds::one_of(FAILURES, |mode| Value::from(name_of(FAILURES, *mode))),
    );
    let after_tokens = section.get(
        "fail_after_tokens",
        0,
        &kinds::integer(0u32..=1_000_000_000),
    );
    LocalConfig {
        first_token_delay: Duration::from_millis(first_token_ms.into()),
        tokens_per_second,
        tokens,
        failure: fail.map(|how| LocalFailure { after_tokens, how }),
    }
}
