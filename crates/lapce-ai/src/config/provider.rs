//! Sections `[providers.<name>]`.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use lapce_ai_providers::{
    BreakerConfig, ErrorKind, FailureMode, Format, Limits, LocalConfig, LocalFailure, PROFILES,
    Phase, Profile, SecretString,
};
use serde_json::Value;

use super::key::{self, ApiKey};
use super::layers::{Entry, Origin};
use super::limits;
use super::section::{Findings, Section, named_entries};
use super::waits::{self, Waits};
use super::{DAY, kinds, name_of, pool};

/// One configured provider.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Its name, before the `/` of a model.
    pub name: String,
    /// The model that is meant where only the provider is named.
    pub default_model: Option<String>,
    /// How much of it is used.
    pub limits: Limits,
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
    /// A server that is reached over HTTP.
    Http(Box<HttpSettings>),
    /// The built-in provider without a model.
    Local(LocalSettings),
}

/// A server that is reached over HTTP.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// What it is: the row of the table that says how it is spoken to.
    pub profile: &'static Profile,
    /// Replaces the row's address.
    pub base_url: Option<String>,
    /// The region or location, for clouds.
    pub region: Option<String>,
    /// The profile in the AWS files, for AWS.
    pub aws_profile: Option<String>,
    /// The project, for Google's cloud.
    pub project: Option<String>,
    /// The version of the API, for Azure.
    pub api_version: Option<String>,
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

/// How the provider without a model behaves.
pub type LocalSettings = LocalConfig;

const LOCAL: &str = "local";

/// Every type: the rows of the table, and `local`.
static TYPES: LazyLock<Vec<(&'static str, &'static str)>> = LazyLock::new(|| {
    let rows = PROFILES.iter().map(|profile| profile.name);
    rows.chain([LOCAL]).map(|name| (name, name)).collect()
});

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

/// What counts for a provider that does not say otherwise.
#[derive(Clone, Copy)]
pub(super) struct Usual<'a> {
    /// The file, beside which its files are.
    pub(super) file: Option<&'a Path>,
    pub(super) waits: Waits,
    pub(super) limits: &'a Limits,
    pub(super) breaker: BreakerConfig,
}

pub(super) fn read_all(
    entry: Option<Entry>,
    usual: Usual<'_>,
    findings: &mut Findings,
) -> Vec<ProviderSettings> {
    let must = "providers must hold tables such as [providers.openai]";
    let entries = named_entries(entry, must, findings);
    entries
        .into_iter()
        .filter_map(|(name, entry)| read(name, entry, usual, findings))
        .collect()
}

fn read(
    name: String,
    entry: Entry,
    usual: Usual<'_>,
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
    let type_kind = kinds::one_of(&TYPES, |ty| Value::from(*ty));
    let implied = match name.as_str() {
        LOCAL => Some(LOCAL),
        _ => Profile::named(&name).map(|known| known.name),
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
    let limits = limits::read(&mut section, usual.limits);
    let kind = match Profile::named(ty) {
        Some(profile) => {
            let http = read_http(&mut section, &place, profile, usual);
            ProviderKind::Http(Box::new(http))
        }
        None => ProviderKind::Local(read_local(&mut section)),
    };
    let probe = section.get("probe_secs", Duration::ZERO, &kinds::seconds(0..=DAY));
    let breaker = section.table("breaker", |section| {
        pool::breaker_of(section, usual.breaker)
    });
    section.finish();
    Some(ProviderSettings {
        name,
        default_model,
        limits,
        kind,
        breaker,
        probe: Some(probe).filter(|probe| !probe.is_zero()),
    })
}

fn read_http(
    section: &mut Section<'_>,
    place: &Origin,
    profile: &'static Profile,
    usual: Usual<'_>,
) -> HttpSettings {
    let url_kind = kinds::text("an address such as \"http://127.0.0.1:8080/v1\"");
    let base_url = if profile.base_url.is_empty() {
        if !section.has("base_url") && profile.url_variable.is_none() {
            let text = format!("base_url is missing; it must be {}", url_kind.allowed);
            section.problem(place.clone(), text);
        }
        section.maybe("base_url", &url_kind)
    } else {
        let url = section.get("base_url", profile.base_url.to_owned(), &url_kind);
        Some(url).filter(|url| url != profile.base_url)
    };
    if base_url.as_deref().is_some_and(has_user) {
        let origin = section.origin("base_url");
        let text = "base_url must have no user or password in it: use api_key or headers";
        section.problem(origin, text);
    }
    let profile = match &base_url {
        Some(url) => profile.at(url),
        None => profile,
    };
    let region = section.maybe("region", &kinds::text("a region such as \"us-east-1\""));
    let aws_profile = if profile.format == Format::Bedrock {
        section.maybe("aws_profile", &kinds::text("a profile's name"))
    } else {
        None
    };
    let project = section.maybe("project", &kinds::text("a project's name"));
    let api_version = if profile.has_api_version() {
        section.maybe("api_version", &kinds::text("a version of the API"))
    } else {
        None
    };
    let beside = |path| super::beside(usual.file, path);
    let keys = key::read(section, beside);
    let headers = section
        .maybe("headers", &kinds::secret_map())
        .unwrap_or_default();
    let models = section.get("models", Vec::new(), &kinds::texts());
    let waits = waits::read(section, usual.waits);
    let extra_root_certs = section
        .maybe("extra_root_certs", &kinds::path())
        .map(beside);
    HttpSettings {
        profile,
        base_url,
        region,
        aws_profile,
        project,
        api_version,
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

/// Whether there is a user before the host, and so perhaps a password.
fn has_user(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    rest.split(['/', '?', '#'])
        .next()
        .is_some_and(|authority| authority.contains('@'))
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
